//! Products of up to 64 rows of halves with quantized blocks: they take as long as reading
//! the weights does.
//!
//! As `thin.rs`, whose rows of A and joining of sums these are: a block has all rows and few
//! columns, its eight warps share k, and both sides go from memory to `mma.sync`'s
//! registers. A lane reads a run of 32 elements of its column, 16 bytes of 4 bits each, and
//! the same elements of its rows.

use super::block::{Place, Shape};
use super::blocks::{Column, RUN, Run, Weights};
use super::nest::long;
use super::thin::{self, Line, Thin, WARPS};
use super::{GpuKernel, split};
use crate::LoopNest;
use crate::lower::ExprCx;
use crate::matmul::{Columns, MatMulSpec};
use kiln_codegen::ptx::{B32, F32, Floats, Half, Reg, Sum};
use kiln_codegen::{Elem, Emitter, GpuTarget, Val};

/// Runs of each column that a lane reads before it multiplies: of 16 rows, and of more, which
/// leave less room.
const AHEAD: i64 = 2;
const AHEAD_OF_MANY: i64 = 1;

/// The forms for few rows, as [`thin::emit`] has them.
pub(super) fn emit(
    spec: &MatMulSpec,
    half: Half,
    nest: &LoopNest,
    name: &str,
    target: &GpuTarget,
) -> Vec<GpuKernel> {
    let Columns::Blocks(blocks) = &spec.b else {
        unreachable!("`blocks::emit` looked");
    };
    let wide = |rows| match blocks.bits {
        // As many bytes of B as of other widths, whose registers there are.
        8 => thin::wide(16),
        _ => thin::wide(rows),
    };
    thin::forms(spec, (name, target), wide, |name, rows, parts| {
        let columns = wide(rows);
        let shape = Shape {
            rows,
            columns,
            threads: 32 * WARPS,
        };
        let thin: Thin<F32> = Thin::new(spec, Floats::Halves(half), shape);
        let size = (shape, thin.shared());
        split::kernel((name, target), spec, nest, size, parts, |e, cx, p| {
            // Else the assembler aims at twice as many, and spills registers for it.
            match (rows, columns) {
                (16, _) => e.kernel_mut().set_resident(2),
                (_, 16) => e.kernel_mut().set_resident(1),
                _ => {}
            }
            let shared = e.kernel_mut().dynamic_shared();
            let shared = e.from_word(shared, Elem::Ptr);
            let sums = sums(e, cx, p, (spec, half), &thin);
            thin.join(e, p, &sums, shared)
        })
    })
}

/// What a lane reads: rows of A, and columns of B with their numbers.
struct Lane<'a> {
    half: Half,
    thin: &'a Thin<'a, F32>,
    rows: Vec<Line>,
    weights: Weights<'a>,
    places: Vec<Val>,
    columns: Vec<Column>,
    /// The lane's first element, and where it ends: lanes of a warp stay together, so that
    /// there are as many turns as its first lane has.
    span: (Val, Val),
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
    let weights = Weights::of(spec, blocks, Some(half));
    let lane = Lane::of(e, cx, p, (half, thin), weights);
    let aligned = thin.aligned(e, cx, p.k);
    e.either(
        aligned,
        &[],
        &mut (),
        |e, ()| {
            lane.runs(e, cx, p, &sums);
            vec![]
        },
        |e, ()| {
            lane.pieces(e, cx, p, &sums);
            vec![]
        },
    );
    sums
}

impl<'a> Lane<'a> {
    fn of(
        e: &mut Emitter,
        cx: &ExprCx,
        p: &Place,
        (half, thin): (Half, &'a Thin<'a, F32>),
        weights: Weights<'a>,
    ) -> Lane<'a> {
        let lane = e.kernel_mut().lane();
        let lane = long(e, lane);
        let (four, size) = (e.i64(4), e.i64(32));
        let of_eight = e.op2("arith.divui", lane, four);
        let quarter = e.op2("arith.remui", lane, four);
        let warp = e.op2("arith.divui", p.thread, size);
        let places: Vec<Val> = (0..thin.columns / 8)
            .map(|j| {
                let skip = e.i64(8 * j);
                let column = e.add(of_eight, skip);
                e.add(p.columns.0, column)
            })
            .collect();
        let column = |&at| weights.column(e, cx, p, at);
        let columns = places.iter().map(column).collect();
        let (span, run) = (e.i64(4 * RUN), e.i64(RUN));
        let first = e.mul(warp, span);
        let first = e.add(p.span.0, first);
        let skip = e.mul(quarter, run);
        Lane {
            half,
            thin,
            rows: thin.a_lines(e, cx, p, of_eight),
            weights,
            places,
            columns,
            span: (e.add(first, skip), e.add(p.span.1, skip)),
        }
    }

    /// Adds the products of the warp's runs.
    fn runs(&self, e: &mut Emitter, cx: &ExprCx, p: &Place, sums: &[[Reg<F32>; 4]]) {
        let ahead = match self.thin.rows {
            16 => AHEAD,
            _ => AHEAD_OF_MANY,
        };
        let step = e.i64(ahead * WARPS * 4 * RUN);
        e.for_loop(self.span.0, self.span.1, step, &[], |e, k0, _| {
            let parts: Vec<(Val, Vec<Run>)> = (0..ahead)
                .map(|i| {
                    let skip = e.i64(i * WARPS * 4 * RUN);
                    let at = e.add(k0, skip);
                    let run = |c| self.weights.run(e, cx, c, at, p.k);
                    (at, self.columns.iter().map(run).collect())
                })
                .collect();
            for (at, runs) in &parts {
                for i in 0..RUN / 8 {
                    let skip = e.i64(8 * i);
                    let at = e.add(*at, skip);
                    if self.thin.rows > 16 {
                        // Else the assembler reads all chunks before it multiplies, and
                        // has no room for them.
                        e.kernel_mut().warp_barrier();
                    }
                    let a = self.thin.chunks(e, &self.rows, at, p.k);
                    for step in [0, 2] {
                        let first = 4 * i as usize + step;
                        let mut pair = |run, i| self.weights.pair(e, self.half, run, i);
                        let b: Vec<Vec<[Reg<B32>; 2]>> = (runs.iter())
                            .map(|run| vec![[first, first + 1].map(|i| pair(run, i))])
                            .collect();
                        self.thin.steps(e, &a, &[step], &b, sums);
                    }
                }
            }
            vec![]
        });
    }

    /// The same element by element, where rows start anywhere.
    fn pieces(&self, e: &mut Emitter, cx: &ExprCx, p: &Place, sums: &[[Reg<F32>; 4]]) {
        let step = e.i64(WARPS * 4 * RUN);
        e.for_loop(self.span.0, self.span.1, step, &[], |e, k0, _| {
            let (none, all, eight) = (e.i64(0), e.i64(RUN), e.i64(8));
            e.for_loop(none, all, eight, &[], |e, i, _| {
                e.kernel_mut().nounroll();
                let at = e.add(k0, i);
                let a = self.thin.pieces(e, &self.rows, at, p.k);
                for step in [0, 2] {
                    let mut pair = |column, i: i64| {
                        let skip = e.i64(2 * i);
                        let place = (e.add(at, skip), column);
                        self.weights.single_pair(e, cx, p, self.half, place)
                    };
                    let b: Vec<Vec<[Reg<B32>; 2]>> = (self.places.iter())
                        .map(|&column| vec![[step, step + 1].map(|i| pair(column, i as i64))])
                        .collect();
                    self.thin.steps(e, &a, &[step], &b, sums);
                }
                vec![]
            });
            vec![]
        });
    }
}
