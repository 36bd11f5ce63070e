//! Contractions of f16, bf16, tf32, f8 or bytes on tensor cores by `mma.sync`, both sides with
//! neighbours along k next to each other in memory.
//!
//! A block of 256 threads computes 128 × 128 sums, a warp 64 × 32. Parts of 64 bytes a row
//! of A and of B are copied to shared memory without waiting, [`STAGES`] − 1 of them ahead;
//! a part takes one barrier. A row's chunks of 16 bytes are swapped so that the eight rows
//! which an instruction reads lie on all banks. Fragments are the same in words, whatever
//! the type. The epilogue reads the sums from shared memory.

use super::GpuKernel;
use super::block::{self, Place, Shape, Sums};
use super::copies::{self, Layout, Rows};
use super::nest::long;
use crate::LoopNest;
use crate::Size;
use crate::matmul::{Columns, MatMulSpec};
use kiln_codegen::emit::Cmp;
use kiln_codegen::ptx::{B32, Byte, Eight, F32, Floats, Half, Reg, Space, Sum, Type};
use kiln_codegen::{Elem, Emitter, GpuTarget, Val};
use kiln_ir::DType;

/// Threads of a block: 2 × 4 warps.
pub(super) const THREADS: i64 = 256;

/// Rows and columns of a block, and of a warp.
pub(super) const SIDE: i64 = 128;
pub(super) const WARP_ROWS: i64 = 64;
pub(super) const WARP_COLUMNS: i64 = 32;

/// Parts in shared memory.
const STAGES: i64 = 4;

/// Bytes of a row of a part, of a part of one side, and of both.
const ROW: i64 = 64;
const PART: i64 = SIDE * ROW;
const BOTH: i64 = 2 * PART;

/// Elements between rows of sums.
const SUM_PITCH: i64 = SIDE + 4;

/// Bytes of a block's sums in shared memory.
pub(super) const SUMS: i64 = 4 * SIDE * SUM_PITCH;

/// What is multiplied.
#[derive(Clone, Copy, Debug)]
pub(super) enum Factors {
    /// Floats, with sums in f32.
    Floats(Floats),
    /// Bytes, with sums in i32.
    Bytes((Byte, Byte)),
}

/// What the contraction is of, if this serves it: f8 on targets that multiply it.
pub(super) fn serves(spec: &MatMulSpec, target: &GpuTarget) -> Option<Factors> {
    let byte = |t| match t {
        DType::I8 => Some(Byte::Signed),
        DType::U8 => Some(Byte::Unsigned),
        _ => None,
    };
    let eight = |t| match t {
        DType::F8E4M3FN => Some(Eight::E4m3),
        DType::F8E5M2 => Some(Eight::E5m2),
        _ => None,
    };
    let factors = match (spec.args[0], spec.args[1], spec.acc) {
        (DType::F16, DType::F16, DType::F32) => Factors::Floats(Half::F16.into()),
        (DType::BF16, DType::BF16, DType::F32) => Factors::Floats(Half::Bf16.into()),
        (DType::F32, DType::F32, DType::F32) if spec.tf32 => Factors::Floats(Floats::Tf32),
        (a, b, DType::F32) if target.f8_peak > 0.0 => {
            Factors::Floats(Floats::Eights(eight(a)?, eight(b)?))
        }
        (a, b, DType::I32) => Factors::Bytes((byte(a)?, byte(b)?)),
        _ => return None,
    };
    let runs = spec.a.last() == Some(&Size::ONE)
        && matches!(spec.b, Columns::Strided { row: Size::ONE, .. });
    runs.then_some(factors)
}

pub(super) fn emit<T: Sum>(
    spec: &MatMulSpec,
    of: T::Factors,
    nest: &LoopNest,
    name: &str,
    target: &GpuTarget,
) -> GpuKernel {
    let shape = Shape {
        rows: SIDE,
        columns: SIDE,
        threads: THREADS,
    };
    let layout = Layout::of::<T>(of, THREADS, ROW);
    let shared = (STAGES * BOTH).max(SUMS);
    block::kernel((name, target), spec, nest, shape, shared, |e, cx, p| {
        let shared = e.kernel_mut().dynamic_shared();
        let shared = e.from_word(shared, Elem::Ptr);
        let product: Product<T> = Product { of, layout, shared };
        let sides = copies::sides(e, cx, spec, layout, p, [(SIDE, 0), (SIDE, PART)]);
        let sums = product.sums(e, p, &sides);
        product.share(e, p, &sums)
    })
}

/// A block's product.
pub(super) struct Product<T: Sum> {
    pub of: T::Factors,
    /// How parts are copied and lie: rows of 64 bytes.
    pub layout: Layout,
    pub shared: Val,
}

impl<T: Sum> Product<T> {
    fn sums(&self, e: &mut Emitter, p: &Place, sides: &[Rows; 2]) -> Vec<[Reg<T>; 4]> {
        let tiles = (WARP_ROWS / 16 * WARP_COLUMNS / 8) as usize;
        let k = e.kernel_mut();
        let sums: Vec<[Reg<T>; 4]> = (0..tiles)
            .map(|_| std::array::from_fn(|_| T::zero(k)))
            .collect();
        let (layout, deep) = (self.layout, self.layout.depth());
        let (zero, depth, size) = (e.i64(0), e.i64(deep), e.i64(BOTH));
        for s in 0..STAGES - 1 {
            let (k0, stage) = (e.i64(s * deep), e.i64(s * BOTH));
            for side in sides {
                copies::copy(e, layout, (p, self.shared), side, k0, stage);
            }
            e.kernel_mut().end_copies();
        }
        let (row, _) = corner(e, p.thread);
        let lowest = e.add(p.rows.0, row);
        // Warps whose rows do not exist only help to copy.
        let works = e.cmp(Cmp::Lt, lowest, p.rows.1, false);
        let ahead = e.i64((STAGES - 1) * deep);
        let last = e.i64((STAGES - 1) * BOTH);
        let stages = e.variables(&[zero, last]);
        e.for_loop(zero, p.k, depth, &[], |e, k0, _| {
            e.kernel_mut().wait_copies(STAGES as u32 - 2);
            e.kernel_mut().barrier();
            e.if_then(works, |e| self.multiply(e, p, stages[0], &sums));
            let next = e.add(k0, ahead);
            for side in sides {
                copies::copy(e, layout, (p, self.shared), side, next, stages[1]);
            }
            e.kernel_mut().end_copies();
            copies::turn(e, &stages, (size, last));
            vec![]
        });
        // The sums take the place of the parts.
        e.kernel_mut().wait_copies(0);
        e.kernel_mut().barrier();
        sums
    }

    /// A lane's address for a matrix instruction at byte `step·32` of a part's rows: row
    /// `l % 8 + 8·a` from `first` on, chunk `2·step + b`, where `a` and `b` are bits of
    /// `l / 8`: bit 0 is the row's if `rows_first`.
    pub fn address(
        &self,
        e: &mut Emitter,
        first: Val,
        (stage, skip): (Val, i64),
        step: i64,
        rows_first: bool,
    ) -> Reg<B32> {
        let (eight, two) = (e.i64(8), e.i64(2));
        let lane = e.kernel_mut().lane();
        let lane = long(e, lane);
        let r = e.op2("arith.remui", lane, eight);
        let which = e.op2("arith.divui", lane, eight);
        let (low, high) = (
            e.op2("arith.remui", which, two),
            e.op2("arith.divui", which, two),
        );
        let (a, b) = if rows_first { (low, high) } else { (high, low) };
        let down = e.mul(a, eight);
        let r = e.add(r, down);
        let r = e.add(first, r);
        let before = e.i64(2 * step);
        let c = e.add(before, b);
        let at = copies::place(e, self.layout, r, c);
        let at = e.add(at, stage);
        let skip = e.i64(skip);
        let at = e.add(at, skip);
        let at = e.offset(self.shared, at, Elem::I8);
        e.word(at)
    }

    /// Adds the products of a stage's part to the warp's sums.
    fn multiply(&self, e: &mut Emitter, p: &Place, stage: Val, sums: &[[Reg<T>; 4]]) {
        let (row, column) = corner(e, p.thread);
        let steps = ROW / 32;
        // Products that are added up on their own take a part's steps together.
        let apart = T::is_short(self.of);
        let together = if apart { steps } else { 1 };
        for first in (0..steps).step_by(together as usize) {
            // Rows 16 apart have their chunks swapped alike.
            let at: Vec<[Reg<B32>; 2]> = (first..first + together)
                .map(|step| {
                    let a = self.address(e, row, (stage, 0), step, true);
                    [a, self.address(e, column, (stage, PART), step, false)]
                })
                .collect();
            let k = e.kernel_mut();
            let b: Vec<Vec<[Reg<B32>; 4]>> = (0..WARP_COLUMNS / 16)
                .map(|j| (at.iter().map(|at| k.load_matrices(at[1], 16 * j * ROW))).collect())
                .collect();
            for i in 0..WARP_ROWS / 16 {
                let a: Vec<[Reg<B32>; 4]> = (at.iter())
                    .map(|at| k.load_matrices(at[0], 16 * i * ROW))
                    .collect();
                for (j, b) in b.iter().enumerate() {
                    let at = (i * WARP_COLUMNS / 8) as usize + 2 * j;
                    let pairs = |low: usize| {
                        let of_b = b.iter().map(move |b| [b[low], b[low + 1]]);
                        a.iter().copied().zip(of_b)
                    };
                    k.multiply_steps(self.of, sums[at], apart, pairs(0));
                    k.multiply_steps(self.of, sums[at + 1], apart, pairs(2));
                }
            }
        }
    }

    /// Writes the warp's sums to shared memory.
    pub fn share(&self, e: &mut Emitter, p: &Place, sums: &[[Reg<T>; 4]]) -> Sums {
        let shown = Sums {
            at: self.shared,
            pitch: SUM_PITCH,
            elem: sum_elem::<T>(),
        };
        let corner = corner(e, p.thread);
        let to = block::fragment(e, shown, corner);
        let k = e.kernel_mut();
        for (at, s) in (0..).zip(sums) {
            let (i, j) = (at / (WARP_COLUMNS / 8), at % (WARP_COLUMNS / 8));
            for half in 0..2 {
                let skip = 4 * ((16 * i + 8 * half) * SUM_PITCH + 8 * j);
                let h = 2 * half as usize;
                k.store(Space::Shared, to, skip, &s[h..h + 2]);
            }
        }
        shown
    }
}

/// The type of sums.
pub(super) fn sum_elem<T: Sum>() -> Elem {
    match T::REGISTER {
        F32::REGISTER => Elem::F32,
        _ => Elem::I32,
    }
}

/// The first row and column of the thread's warp in the block.
pub(super) fn corner(e: &mut Emitter, thread: Val) -> (Val, Val) {
    let (size, across) = (e.i64(32), e.i64(SIDE / WARP_COLUMNS));
    let warp = e.op2("arith.divui", thread, size);
    let (rows, columns) = (e.i64(WARP_ROWS), e.i64(WARP_COLUMNS));
    let row = e.op2("arith.divui", warp, across);
    let column = e.op2("arith.remui", warp, across);
    (e.mul(row, rows), e.mul(column, columns))
}
