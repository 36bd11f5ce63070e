//! Threads that share a work unit: a warp or a block, its points dealt out in turn.

use crate::emit_nest::{NestEmitter, beats, combine};
use crate::nest::{Effect, Stage};
use kiln_codegen::emit::Cmp;
use kiln_codegen::{Elem, Emitter, Ty, Val};

/// Threads of a warp.
pub(super) const WARP: u32 = 32;

/// Two threads' values to one's.
type Combine<'a> = dyn FnMut(&mut Emitter, &[Val], &[Val]) -> Vec<Val> + 'a;

/// The threads that share a work unit.
pub(crate) struct Group {
    /// The axis whose points are dealt out.
    pub axis: u8,
    /// The thread's first point.
    pub first: Val,
    /// Points to its next one: threads of the group.
    pub step: Val,
    /// Whether it is the group's first thread.
    pub leads: Val,
    /// Warps of the group, and the thread's own.
    pub warps: (u32, Val),
    /// Shared memory for what warps tell each other: 8 bytes a warp for each value,
    /// and how many values have a place there.
    pub told: Option<(Val, i64)>,
}

impl NestEmitter<'_> {
    /// Joins the threads' accumulators of a stage: every thread has the whole after it.
    /// By halves within a warp, then warp after warp: a fixed tree.
    pub(crate) fn join_threads(&mut self, e: &mut Emitter, stage: &Stage) {
        for effect in &stage.effects {
            match effect {
                Effect::Reduce { acc, by, value } => {
                    let t = self.nest.exprs.dtype(*value);
                    let x = self.cx.accs[acc];
                    let whole =
                        self.join(e, &[x], &mut |e, a, b| vec![combine(e, *by, t, a[0], b[0])]);
                    self.cx.accs.insert(*acc, whole[0]);
                }
                Effect::ArgReduce {
                    best, at, value, ..
                } => {
                    let t = self.nest.exprs.dtype(*value);
                    let own = [self.cx.accs[best], self.cx.accs[at]];
                    let whole = self.join(e, &own, &mut |e, a, b| {
                        let wins = beats(e, effect, t, (b[0], b[1]), (a[0], a[1]));
                        vec![e.select(wins, b[0], a[0]), e.select(wins, b[1], a[1])]
                    });
                    self.cx.accs.insert(*best, whole[0]);
                    self.cx.accs.insert(*at, whole[1]);
                }
                Effect::Scan { .. } | Effect::Store { .. } | Effect::Keep { .. } => {}
            }
        }
    }

    fn join(&mut self, e: &mut Emitter, own: &[Val], f: &mut Combine<'_>) -> Vec<Val> {
        let mut now = own.to_vec();
        let mut mask = WARP / 2;
        while mask > 0 {
            let theirs: Vec<Val> = now.iter().map(|&x| e.shuffle_xor(x, mask)).collect();
            now = f(e, &now, &theirs);
            mask /= 2;
        }
        let Some(group) = &mut self.group else {
            return now;
        };
        let (warps, warp) = group.warps;
        let Some((told, used)) = &mut group.told else {
            return now;
        };
        // Every value has a place of its own, so one barrier each is enough.
        let base = *told;
        let first = *used;
        *used += own.len() as i64;
        let place = |e: &mut Emitter, i: usize, warp: Val| {
            let skip = e.i64((first + i as i64) * i64::from(warps));
            let at = e.add(skip, warp);
            e.offset(base, at, Elem::F64)
        };
        let zero = e.i64(0);
        let lane = e.kernel_mut().lane();
        let lane = e.from_word(lane, Elem::I32);
        let none = e.int(Ty::scalar(Elem::I32), 0);
        let speaks = e.cmp(Cmp::Eq, lane, none, false);
        e.if_then(speaks, |e| {
            for (i, &x) in now.iter().enumerate() {
                let at = place(e, i, warp);
                e.store(x, at);
            }
        });
        e.kernel_mut().barrier();
        let hear = |e: &mut Emitter, w: i64| -> Vec<Val> {
            let w = e.i64(w);
            let w = e.add(zero, w);
            (own.iter().enumerate())
                .map(|(i, x)| {
                    let at = place(e, i, w);
                    e.load(at, x.ty)
                })
                .collect()
        };
        let mut whole = hear(e, 0);
        for w in 1..i64::from(warps) {
            let next = hear(e, w);
            whole = f(e, &whole, &next);
        }
        whole
    }
}
