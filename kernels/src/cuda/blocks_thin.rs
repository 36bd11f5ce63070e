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
use super::thin::{self, Line, Thin, WARPS};
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
    let weights = Weights::of(e, cx, spec, blocks, Some(half));
    let columns: Vec<_> = (0..thin.columns / 8)
        .map(|j| {
            let skip = e.i64(8 * j);
            let column = e.add(of_eight, skip);
            let column = e.add(p.columns.0, column);
            weights.column(e, cx, p, column)
        })
        .collect();
    let (span, run) = (e.i64(4 * RUN), e.i64(RUN));
    let first = e.mul(warp, span);
    let skip = e.mul(quarter, run);
    let first = e.add(first, skip);
    // Lanes of a warp stay together: as many turns as its first lane has.
    let high = e.add(p.k, skip);
    let aligned = thin.aligned(e, cx, p.k);
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
                let a = chunk(e, thin, &rows, at, (p.k, aligned));
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
    sums
}

/// Eight elements of each row.
fn chunk(
    e: &mut Emitter,
    thin: &Thin<F32>,
    rows: &[Line],
    at: Val,
    (all, aligned): (Val, Val),
) -> Vec<Vec<Reg<kiln_codegen::ptx::B32>>> {
    let k = e.kernel_mut();
    let to: Vec<Vec<_>> = (rows.iter())
        .map(|_| (0..4).map(|_| k.mov(0i32)).collect())
        .collect();
    let set = |e: &mut Emitter, from: Vec<Vec<Reg<_>>>| {
        let k = e.kernel_mut();
        for (to, from) in to.iter().flatten().zip(from.into_iter().flatten()) {
            k.set(*to, from);
        }
        vec![]
    };
    e.either(
        aligned,
        &[],
        &mut (),
        |e, ()| {
            let from = thin.chunks(e, rows, at, all);
            set(e, from)
        },
        |e, ()| {
            let from = thin.pieces(e, rows, at, all);
            set(e, from)
        },
    );
    to
}
