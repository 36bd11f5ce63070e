//! Products of up to 64 rows of halves with quantized blocks: they take as long as reading
//! the weights does.
//!
//! As `thin.rs`, whose rows of A and joining of sums these are: a block has all rows and few
//! columns, its eight warps share k, and both sides go from memory to `mma.sync`'s
//! registers. A lane reads a run of 32 elements of its column, 16 bytes of 4 bits each, and
//! the same elements of its rows.

use super::GpuKernel;
use super::block::{self, Place, Shape};
use super::blocks::{RUN, Run, Weights};
use super::nest::long;
use super::thin::{self, Thin, WARPS};
use crate::LoopNest;
use crate::lower::ExprCx;
use crate::matmul::{Columns, MatMulSpec};
use kiln_codegen::ptx::{F32, Half, Reg, Sum};
use kiln_codegen::{Elem, Emitter, GpuTarget, Val};

/// Runs of each column that a lane reads before it multiplies.
const AHEAD: i64 = 2;

/// The forms for few rows, as [`thin::emit`] has them.
pub(super) fn emit(
    spec: &MatMulSpec,
    half: Half,
    nest: &LoopNest,
    name: &str,
    target: &GpuTarget,
) -> Vec<GpuKernel> {
    thin::forms(spec, name, |name, rows| {
        let shape = Shape {
            rows,
            columns: thin::wide(rows),
            threads: 32 * WARPS,
        };
        let thin: Thin<F32> = Thin::new(spec, half, shape);
        let shared = thin.shared();
        block::kernel((name, target), spec, nest, shape, shared, |e, cx, p| {
            if rows == 16 {
                // Else the assembler takes 64 registers, and spills some.
                e.kernel_mut().set_resident(2);
            }
            let shared = e.kernel_mut().dynamic_shared();
            let shared = e.from_word(shared, Elem::Ptr);
            let sums = sums(e, cx, p, (spec, half), &thin);
            thin.join(e, p, &sums, shared)
        })
    })
}

/// The warp's sums over its part of k: of each sixteen rows, by eight columns.
fn sums(
    e: &mut Emitter,
    cx: &ExprCx,
    p: &Place,
    (spec, half): (&MatMulSpec, Half),
    thin: &Thin<F32>,
) -> Vec<[Reg<F32>; 4]> {
    let Columns::Blocks(blocks) = &spec.b else {
        unreachable!("`blocks::emit` looked");
    };
    let k = e.kernel_mut();
    let tiles = (thin.rows / 16 * thin.columns / 8) as usize;
    let sums: Vec<[Reg<F32>; 4]> = (0..tiles)
        .map(|_| std::array::from_fn(|_| F32::zero(k)))
        .collect();
    let lane = k.lane();
    let lane = long(e, lane);
    let (four, size) = (e.i64(4), e.i64(32));
    let of_eight = e.op2("arith.divui", lane, four);
    let quarter = e.op2("arith.remui", lane, four);
    let warp = e.op2("arith.divui", p.thread, size);
    let rows = thin.a_lines(e, cx, p, of_eight);
    let weights = Weights::of(spec, blocks, Some(half));
    let places: Vec<Val> = (0..thin.columns / 8)
        .map(|j| {
            let skip = e.i64(8 * j);
            let column = e.add(of_eight, skip);
            e.add(p.columns.0, column)
        })
        .collect();
    let columns: Vec<_> = (places.iter())
        .map(|&at| weights.column(e, cx, p, at))
        .collect();
    let (span, run) = (e.i64(4 * RUN), e.i64(RUN));
    let first = e.mul(warp, span);
    let skip = e.mul(quarter, run);
    let first = e.add(first, skip);
    // Lanes of a warp stay together: as many turns as its first lane has.
    let high = e.add(p.k, skip);
    let aligned = thin.aligned(e, cx, p.k);
    let fast = |e: &mut Emitter, (): &mut ()| {
        let step = e.i64(AHEAD * WARPS * 4 * RUN);
        e.for_loop(first, high, step, &[], |e, k0, _| {
            let parts: Vec<(Val, Vec<Run>)> = (0..AHEAD)
                .map(|i| {
                    let skip = e.i64(i * WARPS * 4 * RUN);
                    let at = e.add(k0, skip);
                    let runs = columns.iter().map(|c| weights.run(e, cx, c, at, p.k));
                    (at, runs.collect())
                })
                .collect();
            for (at, runs) in &parts {
                for i in 0..RUN / 8 {
                    let skip = e.i64(8 * i);
                    let at = e.add(*at, skip);
                    let a = thin.chunks(e, &rows, at, p.k);
                    for step in [0, 2] {
                        let pair = 4 * i as usize + step;
                        let b: Vec<_> = (runs.iter())
                            .map(|run| [pair, pair + 1].map(|i| weights.pair(e, half, run, i)))
                            .collect();
                        thin.step(e, &a, step, &b, &sums);
                    }
                }
            }
            vec![]
        });
        vec![]
    };
    // Rows that start anywhere are read element by element.
    let slow = |e: &mut Emitter, (): &mut ()| {
        let step = e.i64(WARPS * 4 * RUN);
        e.for_loop(first, high, step, &[], |e, k0, _| {
            let (none, all, eight) = (e.i64(0), e.i64(RUN), e.i64(8));
            e.for_loop(none, all, eight, &[], |e, i, _| {
                e.kernel_mut().nounroll();
                let at = e.add(k0, i);
                let a = thin.pieces(e, &rows, at, p.k);
                for step in [0, 2] {
                    let b: Vec<_> = (places.iter())
                        .map(|&column| {
                            [step, step + 1].map(|pair| {
                                let skip = e.i64(2 * pair as i64);
                                let at = e.add(at, skip);
                                weights.single_pair(e, cx, p, half, (at, column))
                            })
                        })
                        .collect();
                    thin.step(e, &a, step, &b, &sums);
                }
                vec![]
            });
            vec![]
        });
        vec![]
    };
    e.either(aligned, &[], &mut (), fast, slow);
    sums
}
