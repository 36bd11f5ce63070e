//! Products of few rows in f32 with quantized blocks (`skinny.rs` has the frame).
//!
//! A lane has a run of 32 elements of two columns and the same elements of every row of A,
//! which the eight lanes beside it read too; a warp has 16 columns and four runs of each.

use super::GpuKernel;
use super::block::{self, Place, Sums};
use super::blocks::{Column, RUN, Weights};
use super::blocks_element::element;
use super::gemm::Source;
use super::skinny::{
    self, COLUMNS, ROWS, WARPS, aligned, join, part, row_strides, rows, warp_and_lane,
};
use crate::LoopNest;
use crate::lower::ExprCx;
use crate::matmul::{Blocks, Columns, MatMulSpec};
use kiln_codegen::emit::Cmp;
use kiln_codegen::{Elem, Emitter, GpuTarget, Ty, Val};

/// Columns of a lane.
const OWN: i64 = COLUMNS / 8;

/// Elements that are read of A at once, and that are multiplied then.
const CHUNK: i64 = 4;

/// Emits the form for few rows, if there is one; it has the given name where it serves every
/// launch.
pub(super) fn emit(
    spec: &MatMulSpec,
    nest: &LoopNest,
    name: &str,
    target: &GpuTarget,
) -> Option<GpuKernel> {
    let Columns::Blocks(blocks) = &spec.b else {
        return None;
    };
    let when = skinny::few(spec)?;
    let entry = match when.is_empty() {
        true => name.to_string(),
        false => format!("{name}_few"),
    };
    let kernel = block::kernel(
        (&entry, target),
        spec,
        nest,
        skinny::SHAPE,
        0,
        |e, cx, p| {
            let bytes = 4 * WARPS * ROWS * COLUMNS;
            let shared = e.kernel_mut().shared(bytes as u32, 16);
            let sums = Sums {
                at: e.from_word(shared, Elem::Ptr),
                pitch: COLUMNS,
                elem: Elem::F32,
            };
            Lanes::of(e, cx, spec, blocks, p).share(e, cx, p, sums);
            join(e, p.thread, rows(spec), sums);
            sums
        },
    );
    Some(GpuKernel {
        when,
        height: Some(rows(spec)),
        ..kernel
    })
}

struct Lanes<'a> {
    spec: &'a MatMulSpec,
    blocks: &'a Blocks,
    weights: Weights<'a>,
    /// The elements of A at which rows start.
    rows: Vec<Val>,
    /// The first of the lane's columns, which are 8 apart.
    first: Val,
    columns: Vec<Column>,
    /// By row, then column.
    sums: Vec<Val>,
}

impl<'a> Lanes<'a> {
    fn of(
        e: &mut Emitter,
        cx: &ExprCx,
        spec: &'a MatMulSpec,
        blocks: &'a Blocks,
        p: &Place,
    ) -> Lanes<'a> {
        let starts = (0..rows(spec))
            .map(|i| {
                let row = e.i64(i);
                let row = block::existing(e, row, p.rows.1);
                spec.row(e, cx, p.batch, row)[0]
            })
            .collect();
        let weights = Weights::of(spec, blocks, None);
        let (_, lane) = warp_and_lane(e, p.thread);
        let four = e.i64(4);
        let of_eight = e.op2("arith.divui", lane, four);
        let first = e.add(p.columns.0, of_eight);
        let columns = (0..OWN)
            .map(|j| {
                let skip = e.i64(8 * j);
                let at = e.add(first, skip);
                weights.column(e, cx, p, at)
            })
            .collect();
        let zero = e.zero(Ty::scalar(Elem::F32));
        Lanes {
            spec,
            blocks,
            weights,
            rows: starts,
            first,
            columns,
            sums: e.variables(&vec![zero; (rows(spec) * OWN) as usize]),
        }
    }

    /// Leaves the warp's sums in shared memory.
    fn share(&self, e: &mut Emitter, cx: &ExprCx, p: &Place, sums: Sums) {
        let (warp, lane) = warp_and_lane(e, p.thread);
        let (four, run, span) = (e.i64(4), e.i64(RUN), e.i64(4 * RUN));
        let of_eight = e.op2("arith.divui", lane, four);
        let quarter = e.op2("arith.remui", lane, four);
        let first = e.mul(warp, span);
        let skip = e.mul(quarter, run);
        let first = e.add(first, skip);
        let turn = e.i64(WARPS * 4 * RUN);
        let mut sizes = row_strides(e, cx, self.spec);
        sizes.push(p.k);
        let wide = aligned(e, (cx.args[0], Elem::F32), sizes, 4 * CHUNK);
        e.for_loop(first, p.k, turn, &[], |e, k0, _| {
            e.either(
                wide,
                &[],
                &mut (),
                |e, ()| {
                    self.together(e, cx, p, k0);
                    vec![]
                },
                |e, ()| {
                    self.apart(e, cx, p, k0);
                    vec![]
                },
            );
            vec![]
        });
        let whole: Vec<Val> = (self.sums.iter())
            .map(|&sum| {
                [1, 2].iter().fold(sum, |sum, &mask| {
                    let other = e.shuffle_xor(sum, mask);
                    e.add(sum, other)
                })
            })
            .collect();
        let none = e.i64(0);
        let writes = e.cmp(Cmp::Eq, quarter, none, false);
        e.if_then(writes, |e| {
            for (row, own) in (0..).zip(whole.chunks(OWN as usize)) {
                for (j, &sum) in (0..).zip(own) {
                    let (row, skip) = (e.i64(row), e.i64(8 * j));
                    let column = e.add(of_eight, skip);
                    let to = part(e, sums, warp, row, column);
                    e.store(sum, to);
                }
            }
        });
    }

    /// Adds a run's products from `k0` on.
    fn together(&self, e: &mut Emitter, cx: &ExprCx, p: &Place, k0: Val) {
        let runs: Vec<_> = (self.columns.iter())
            .map(|c| self.weights.run(e, cx, c, k0, p.k))
            .collect();
        for i in 0..RUN / CHUNK {
            let skip = e.i64(i * CHUNK);
            let at = e.add(k0, skip);
            let some = e.cmp(Cmp::Lt, at, p.k, false);
            let b: Vec<Vec<Val>> = (runs.iter())
                .map(|run| {
                    (0..CHUNK)
                        .map(|j| {
                            let w = self.weights.one(e, run, (i * CHUNK + j) as usize);
                            e.from_single(w)
                        })
                        .collect()
                })
                .collect();
            for (&start, sums) in self.rows.iter().zip(self.sums.chunks(OWN as usize)) {
                let from = e.add(start, at);
                let from = e.offset(cx.args[0], from, Elem::F32);
                let xs = e.load_few_where(some, from, Elem::F32, CHUNK as u32);
                for (j, &x) in xs.iter().enumerate() {
                    for (&sum, b) in sums.iter().zip(&b) {
                        e.multiply_into(sum, x, b[j]);
                    }
                }
            }
        }
    }

    /// The same element by element.
    fn apart(&self, e: &mut Emitter, cx: &ExprCx, p: &Place, k0: Val) {
        let (none, one, run) = (e.i64(0), e.i64(1), e.i64(RUN));
        e.for_loop(none, run, one, &[], |e, i, _| {
            let at = e.add(k0, i);
            let some = e.cmp(Cmp::Lt, at, p.k, false);
            let b: Vec<Val> = (0..OWN)
                .map(|j| {
                    let skip = e.i64(8 * j);
                    let column = e.add(self.first, skip);
                    let there = e.cmp(Cmp::Lt, column, p.columns.1, false);
                    let exists = e.op2("arith.andi", some, there);
                    element(e, cx, self.spec, self.blocks, exists, (at, column))
                })
                .collect();
            for (&start, sums) in self.rows.iter().zip(self.sums.chunks(OWN as usize)) {
                let from = e.add(start, at);
                let from = e.offset(cx.args[0], from, Elem::F32);
                let x = e.load_where(some, from, Ty::scalar(Elem::F32));
                for (&sum, &w) in sums.iter().zip(&b) {
                    e.multiply_into(sum, x, w);
                }
            }
            vec![]
        });
    }
}
