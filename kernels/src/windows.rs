//! Windows of few points, as pooling has them, written out point by point.

use crate::emit_nest::{Accs, NestEmitter, combine};
use crate::nest::{Effect, LANES, Reducer, Stage};
use kiln_codegen::{Emitter, Val};
use kiln_ir::DType;

/// Points of a window that is written out.
pub(crate) const MOST_POINTS: i64 = 32;

/// Expressions times points of a window that is written out.
const MOST_UNROLLED: i64 = 600;

impl<'a> NestEmitter<'a> {
    /// The points of an axis one after the other: in the same order, so with the same
    /// bits. Extremes are free of order: those of the rows of a window do not wait for
    /// each other.
    pub(crate) fn written_out(
        &mut self,
        e: &mut Emitter,
        stage: &'a Stage,
        (axis, points): (u8, i64),
        rest: &[u8],
        accs: &Accs,
        carried: &[Val],
    ) -> Vec<Val> {
        let extremes: Option<Vec<(Reducer, DType)>> = (stage.effects.iter())
            .map(|effect| match effect {
                Effect::Reduce {
                    by: by @ (Reducer::Max | Reducer::Min),
                    value,
                    ..
                } => Some((*by, self.nest.exprs.dtype(*value))),
                _ => None,
            })
            .collect();
        let rows = extremes.filter(|_| !rest.is_empty());
        let mut now = carried.to_vec();
        for i in 0..points {
            let i = e.i64(i);
            let from = match rows {
                Some(_) => accs.start(e, self.nest, LANES as u32),
                None => now.clone(),
            };
            let to = self.in_loop(axis, i, None, |s| s.loops(e, stage, rest, accs, &from));
            now = match &rows {
                None => to,
                Some(rows) => (rows.iter().zip(now.iter().zip(&to)))
                    .map(|(&(by, t), (&a, &b))| combine(e, by, t, a, b))
                    .collect(),
            };
        }
        now
    }

    /// How many points the first of a stage's remaining axes has, if they are few
    /// enough to be written out: windows of pooling.
    pub(crate) fn unrolled(&self, stage: &Stage, axes: &[u8]) -> Option<i64> {
        self.outer_vector()?;
        let known = |a: u8| self.nest.axes[a as usize].as_const();
        let points = (axes.iter()).try_fold(1i64, |n, &a| n.checked_mul(known(a)?))?;
        let roots: Vec<_> = stage.effects.iter().flat_map(Effect::roots).collect();
        let nodes = self.nest.exprs.reachable(&roots).len() as i64;
        let few = points <= MOST_POINTS && points * nodes <= MOST_UNROLLED;
        if few { known(axes[0]) } else { None }
    }
}
