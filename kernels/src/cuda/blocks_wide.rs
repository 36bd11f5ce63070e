//! Products of many rows of halves with quantized blocks, by `mma.sync`.
//!
//! As `halves.rs`: 128 × 128 sums a block, 64 × 32 a warp, A copied to shared memory without
//! waiting, four parts of 32 elements a row there. B goes from memory to registers, a part
//! ahead, where its numbers become halves: the lanes that share a column read the same 16
//! bytes (of 4 bits each), and each takes its own elements from them.

use super::GpuKernel;
use super::block::{self, Place, Shape};
use super::blocks::{Column, RUN, Run, Weights};
use super::copies::{self, Layout};
use super::halves::{self, Product, SIDE, THREADS, WARP_COLUMNS, WARP_ROWS, corner};
use super::nest::long;
use crate::LoopNest;
use crate::lower::ExprCx;
use crate::matmul::{Columns, MatMulSpec};
use kiln_codegen::emit::Cmp;
use kiln_codegen::ptx::{B32, F32, Floats, Half, Reg, Sum};
use kiln_codegen::{Elem, Emitter, GpuTarget, Val};

/// Parts of A in shared memory.
const STAGES: i64 = 4;

/// Bytes of a row of a part, and of a part.
const ROW: i64 = 2 * RUN;
const PART: i64 = SIDE * ROW;

pub(super) fn emit(
    spec: &MatMulSpec,
    half: Half,
    nest: &LoopNest,
    name: &str,
    target: &GpuTarget,
) -> GpuKernel {
    let shape = Shape {
        rows: SIDE,
        columns: SIDE,
        threads: THREADS,
    };
    let layout = Layout::of::<F32>(Floats::Halves(half), THREADS, ROW);
    let shared = (STAGES * PART).max(halves::SUMS);
    block::kernel((name, target), spec, nest, shape, shared, |e, cx, p| {
        let shared = e.kernel_mut().dynamic_shared();
        let shared = e.from_word(shared, Elem::Ptr);
        let wide = Wide {
            spec,
            half,
            product: Product {
                of: Floats::Halves(half),
                layout,
                shared,
            },
        };
        let sums = wide.sums(e, cx, p);
        wide.product.share(e, p, &sums)
    })
}

struct Wide<'a> {
    spec: &'a MatMulSpec,
    half: Half,
    product: Product<F32>,
}

impl Wide<'_> {
    fn sums(&self, e: &mut Emitter, cx: &ExprCx, p: &Place) -> Vec<[Reg<F32>; 4]> {
        let Columns::Blocks(blocks) = &self.spec.b else {
            unreachable!("`blocks::emit` looked");
        };
        let tiles = (WARP_ROWS / 16 * WARP_COLUMNS / 8) as usize;
        let k = e.kernel_mut();
        let sums: Vec<[Reg<F32>; 4]> = (0..tiles)
            .map(|_| std::array::from_fn(|_| F32::zero(k)))
            .collect();
        let (layout, shared) = (self.product.layout, self.product.shared);
        let a = copies::left(e, cx, self.spec, layout, p, (SIDE, 0));
        let (zero, depth, size) = (e.i64(0), e.i64(RUN), e.i64(PART));
        for s in 0..STAGES - 1 {
            let (k0, stage) = (e.i64(s * RUN), e.i64(s * PART));
            copies::copy(e, layout, (p, shared), &a, k0, stage);
            e.kernel_mut().end_copies();
        }
        let weights = Weights::of(self.spec, blocks, Some(self.half));
        let (row, _) = corner(e, p.thread);
        let lowest = e.add(p.rows.0, row);
        // Warps whose rows do not exist only help to copy.
        let works = e.cmp(Cmp::Lt, lowest, p.rows.1, false);
        let (columns, which) = self.columns(e, cx, p, &weights);
        let read = |e: &mut Emitter, at: Val| -> Vec<Run> {
            let run = |c| weights.run(e, cx, c, at, p.k);
            columns.iter().map(run).collect()
        };
        let now = read(e, zero);
        let ahead = e.i64((STAGES - 1) * RUN);
        let last = e.i64((STAGES - 1) * PART);
        let stages = e.variables(&[zero, last]);
        e.for_loop(zero, p.k, depth, &[], |e, k0, _| {
            e.kernel_mut().wait_copies(STAGES as u32 - 2);
            e.kernel_mut().barrier();
            let next = e.add(k0, depth);
            let then = read(e, next);
            e.if_then(works, |e| {
                self.multiply(e, p, stages[0], (&weights, &now, which), &sums);
            });
            let next = e.add(k0, ahead);
            copies::copy(e, layout, (p, shared), &a, next, stages[1]);
            e.kernel_mut().end_copies();
            copies::turn(e, &stages, (size, last));
            for (now, then) in now.iter().zip(&then) {
                for (to, from) in now.registers().zip(then.registers()) {
                    e.kernel_mut().set(to, from);
                }
            }
            vec![]
        });
        // The sums take the place of the parts.
        e.kernel_mut().wait_copies(0);
        e.kernel_mut().barrier();
        sums
    }

    /// The lane's columns: of each eight, `l / 4`; and which of a column's elements it takes.
    fn columns(
        &self,
        e: &mut Emitter,
        cx: &ExprCx,
        p: &Place,
        weights: &Weights,
    ) -> (Vec<Column>, Reg<B32>) {
        let lane = e.kernel_mut().lane();
        let lane = long(e, lane);
        let four = e.i64(4);
        let of_eight = e.op2("arith.divui", lane, four);
        let (_, first) = corner(e, p.thread);
        let first = e.add(p.columns.0, first);
        let first = e.add(first, of_eight);
        let columns = (0..WARP_COLUMNS / 8)
            .map(|j| {
                let skip = e.i64(8 * j);
                let at = e.add(first, skip);
                weights.column(e, cx, p, at)
            })
            .collect();
        let quarter = e.op2("arith.remui", lane, four);
        let quarter = e.long(quarter);
        let quarter = e.kernel_mut().low(quarter);
        (columns, weights.which(e, quarter))
    }

    /// Adds the products of a stage's part to the warp's sums.
    fn multiply(
        &self,
        e: &mut Emitter,
        p: &Place,
        stage: Val,
        (weights, runs, which): (&Weights, &[Run], Reg<B32>),
        sums: &[[Reg<F32>; 4]],
    ) {
        let (row, _) = corner(e, p.thread);
        for step in 0..ROW / 32 {
            let b: Vec<[Reg<B32>; 2]> = (runs.iter())
                .map(|run| weights.fragment(e, self.half, run, step as usize, which))
                .collect();
            let a0 = self.product.address(e, row, (stage, 0), step, true);
            let k = e.kernel_mut();
            for (i, sums) in (0..).zip(sums.chunks(b.len())) {
                let a = k.load_matrices(a0, 16 * i * ROW);
                for (&b, &sums) in b.iter().zip(sums) {
                    k.multiply(Floats::Halves(self.half), sums, a, b);
                }
            }
        }
    }
}
