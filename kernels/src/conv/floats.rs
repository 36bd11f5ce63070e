//! Convolutions of floats: a block of sums by register tiles of multiply-adds.

use super::{ConvSpec, MC, Unit};
use crate::image::{Image, Origin};
use crate::lower::{ExprCx, memory_elem};
use crate::micro::{self, Operand, Tile};
use kiln_codegen::{CpuTarget, Elem, Emitter, Ty, Val};
use kiln_ir::DType;

/// Products summed between two visits to the block of sums.
const KC: i64 = 1024;

/// What the tiles of a unit share.
struct Part<'a> {
    kernel: &'a [i64],
    sums: Val,
    zeros: Val,
    /// Channels before the group's.
    group_skip: Val,
    /// Whether sums start at 0: they are visited once.
    fresh: bool,
}

/// Some taps and channels.
struct Chunk {
    c0: Val,
    run: Val,
    t0: Val,
    end: Val,
    depth: i64,
}

impl ConvSpec {
    /// The sums of a unit, by rows of `nr`.
    pub(super) fn sum_floats(
        &self,
        e: &mut Emitter,
        cx: &mut ExprCx,
        target: &CpuTarget,
        image: &Image,
        unit: &Unit,
        sums: Val,
    ) {
        let (kernel, depth) = self.runs();
        let taps: i64 = kernel.iter().product();
        let b_elem = memory_elem(self.args[1]);
        let panel_size = e.i64(taps * depth * self.nr);
        let at = e.mul(unit.panel, panel_size);
        let panel = e.offset(cx.args[1], at, b_elem);
        let place = e.i64(self.zeros_place());
        let part = Part {
            kernel: &kernel,
            sums,
            zeros: e.offset(cx.scratch, place, Elem::I8),
            group_skip: {
                let depth = e.i64(self.depth());
                e.mul(unit.group, depth)
            },
            fresh: taps * depth <= KC,
        };
        // Sums that are visited more than once start at 0 in memory.
        if !part.fresh {
            let nr = e.i64(self.nr);
            let cells = e.mul(unit.count, nr);
            micro::clear(e, sums, cells, Elem::F32);
        }
        let run = depth.min(KC);
        let together = (KC / run).max(1);
        let (zero, depth_v, run_v) = (e.i64(0), e.i64(depth), e.i64(run));
        let (taps_v, together_v) = (e.i64(taps), e.i64(together));
        let whole = self.tile_rows(target);
        let sizes = micro::block_sizes(self.const_rows(), MC);
        e.for_loop(zero, depth_v, run_v, &[], |e, c0, _| {
            let left = e.sub(depth_v, c0);
            let run = e.min(left, run_v, false);
            e.for_loop(zero, taps_v, together_v, &[], |e, t0, _| {
                let end = e.add(t0, together_v);
                let end = e.min(end, taps_v, false);
                micro::for_rows(e, unit.count, whole, &sizes, &mut |e, first, count| {
                    let row = e.add(unit.first, first);
                    let origins = image.origins(e, self, row, count);
                    let chunk = Chunk {
                        c0,
                        run,
                        t0,
                        end,
                        depth,
                    };
                    self.tile(
                        e,
                        cx,
                        target,
                        image,
                        &part,
                        (panel, &chunk),
                        (&origins, first),
                    );
                });
                vec![]
            });
            vec![]
        });
    }

    /// A few rows times a panel, over some taps and channels.
    #[allow(clippy::too_many_arguments)]
    fn tile(
        &self,
        e: &mut Emitter,
        cx: &ExprCx,
        target: &CpuTarget,
        image: &Image,
        part: &Part,
        (panel, chunk): (Val, &Chunk),
        (origins, first): (&[Origin], Val),
    ) {
        let tile = Tile::of(target, 4);
        let lanes = tile.lanes as i64;
        let nr = e.i64(self.nr);
        let (a_elem, b_elem) = (memory_elem(self.args[0]), memory_elem(self.args[1]));
        let one = e.i64(1);
        let most = tile.vectors(origins.len() as u32) as usize;
        let mut j = 0;
        while j < self.nr {
            // The last vector of a panel may be half of one.
            let starts = (j..self.nr).step_by(lanes as usize).take(most);
            let vectors: Vec<(i64, u32)> = starts
                .map(|at| (at, lanes.min(self.nr - at) as u32))
                .collect();
            let mut slots = vec![];
            for r in 0..origins.len() as i64 {
                let r = e.i64(r);
                let row = e.add(first, r);
                let at = e.mul(row, nr);
                for &(column, lanes) in &vectors {
                    let column = e.i64(column);
                    let at = e.add(at, column);
                    let ty = Ty::vector(Elem::F32, lanes);
                    slots.push((e.offset(part.sums, at, Elem::F32), ty));
                }
            }
            let init: Vec<Val> = slots
                .iter()
                .map(|&(p, ty)| match part.fresh {
                    true => e.zero(ty),
                    false => e.load(p, ty),
                })
                .collect();
            let here = e.i64(j);
            let panel = e.offset(panel, here, b_elem);
            let sums = e.for_loop(chunk.t0, chunk.end, one, &init, |e, t, acc| {
                let hit = image.hits(e, self, part.kernel, t, origins);
                let skip = e.add(part.group_skip, chunk.c0);
                let rows: Vec<Val> = hit
                    .into_iter()
                    .map(|(at, inside)| {
                        let at = e.add(at, skip);
                        let p = e.offset(cx.args[0], at, a_elem);
                        match inside {
                            Some(ok) => e.select(ok, p, part.zeros),
                            None => p,
                        }
                    })
                    .collect();
                let depth = e.i64(chunk.depth);
                let line = e.mul(t, depth);
                let line = e.add(line, chunk.c0);
                let at = e.mul(line, nr);
                let b0 = e.offset(panel, at, b_elem);
                let a = Operand {
                    dtype: self.args[0],
                    step: one,
                };
                let b = Operand {
                    dtype: self.args[1],
                    step: nr,
                };
                micro::multiply(e, DType::F32, chunk.run, (a, &rows), (b, b0), None, acc)
            });
            sums.iter()
                .zip(slots)
                .for_each(|(&sum, (p, _))| e.store(sum, p));
            j += vectors.iter().map(|&(_, lanes)| lanes as i64).sum::<i64>();
        }
    }
}
