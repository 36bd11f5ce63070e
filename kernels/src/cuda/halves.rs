//! Contractions of f16 or bf16 on tensor cores by `mma.sync`, both sides with neighbours
//! along k next to each other in memory.
//!
//! A block of 256 threads computes 128 × 128 sums, a warp 64 × 32. Parts of [`DEPTH`]
//! products of A and of B are copied to shared memory without waiting, [`STAGES`] − 1 of
//! them ahead; a part takes one barrier. Rows of a part are 64 bytes, whose chunks of 16
//! are swapped so that the eight rows which an instruction reads lie on all banks. The
//! epilogue reads the sums from shared memory.

use super::copies::{self, Layout, Place, Rows};
use super::gemm::{Shown, Source, store};
use super::nest::{divide, long};
use super::{GpuKernel, Ports, entry, tail};
use crate::LoopNest;
use crate::Size;
use crate::lower::ExprCx;
use crate::matmul::{Columns, MatMulSpec};
use kiln_codegen::emit::Cmp;
use kiln_codegen::ptx::{B32, F32, Half, Reg, Space};
use kiln_codegen::{Elem, Emitter, GpuTarget, Val};
use kiln_ir::{DType, Dim};

/// Threads of a block: 2 × 4 warps.
const THREADS: i64 = 256;

/// Rows and columns of a block, and of a warp.
const SIDE: i64 = 128;
const WARP_ROWS: i64 = 64;
const WARP_COLUMNS: i64 = 32;

/// Products of a part, and parts in shared memory.
const DEPTH: i64 = 32;
const STAGES: i64 = 4;

/// How parts are copied and lie: rows of 64 bytes.
const LAYOUT: Layout = Layout {
    threads: THREADS,
    chunks: DEPTH / copies::CHUNK,
};

/// Bytes of a row of a part, of a part of one side, and of both.
const ROW: i64 = 2 * DEPTH;
const PART: i64 = SIDE * ROW;
const BOTH: i64 = 2 * PART;

/// Elements between rows of sums.
const SUM_PITCH: i64 = SIDE + 4;

/// What the contraction is of, if this serves it.
pub(super) fn serves(spec: &MatMulSpec) -> Option<Half> {
    let half = match spec.args[0] {
        DType::F16 => Half::F16,
        DType::BF16 => Half::Bf16,
        _ => return None,
    };
    let alike = spec.args[0] == spec.args[1] && spec.acc == DType::F32;
    let runs = spec.a.last() == Some(&Size::ONE)
        && matches!(spec.b, Columns::Strided { row: Size::ONE, .. });
    (alike && runs).then_some(half)
}

pub(super) fn emit(
    spec: &MatMulSpec,
    half: Half,
    nest: &LoopNest,
    name: &str,
    target: &GpuTarget,
) -> GpuKernel {
    let [rows, columns, _, batches] = spec.dims();
    let (body, _) = entry(name, target, THREADS as u32, |e| {
        Product { spec, half }.write(e, nest);
    });
    GpuKernel {
        entry: name.to_string(),
        body,
        grid: [
            batches * rows.ceil_div(&SIDE.into()),
            columns.ceil_div(&SIDE.into()),
            Dim::ONE,
        ],
        block: [THREADS as u32, 1, 1],
        cluster: [1, 1, 1],
        shared: (STAGES * BOTH).max(4 * SIDE * SUM_PITCH) as u32,
        scratch: Dim::ZERO,
    }
}

struct Product<'a> {
    spec: &'a MatMulSpec,
    half: Half,
}

impl Product<'_> {
    fn write(&self, e: &mut Emitter, nest: &LoopNest) {
        let ports = Ports::declare(e, nest.args.len(), nest.params);
        let cx = ExprCx::new(&nest.exprs, ports.args, ports.params, ports.status);
        let [rows, columns, k, _] = self.spec.extents(e, &cx);
        let thread = e.kernel_mut().thread();
        let thread = long(e, thread);
        let (x, y) = (e.kernel_mut().block(0), e.kernel_mut().block(1));
        let (x, y) = (long(e, x), long(e, y));
        let (less, side) = (e.i64(SIDE - 1), e.i64(SIDE));
        let up = e.add(rows, less);
        let blocks = e.op2("arith.divui", up, side);
        let (batch, block) = divide(e, x, blocks, None);
        let shared = e.kernel_mut().dynamic_shared();
        let p = Place {
            thread,
            batch,
            rows: (e.mul(block, side), rows),
            columns: (e.mul(y, side), columns),
            k,
            shared: e.from_word(shared, Elem::Ptr),
        };
        let sides = copies::sides(e, &cx, self.spec, LAYOUT, &p, [(SIDE, 0), (SIDE, PART)]);
        let sums = self.sums(e, &p, &sides);
        self.share(e, &p, &sums);
        e.kernel_mut().barrier();
        self.finish(e, nest, cx, &p);
    }

    fn sums(&self, e: &mut Emitter, p: &Place, sides: &[Rows; 2]) -> Vec<[Reg<F32>; 4]> {
        let tiles = (WARP_ROWS / 16 * WARP_COLUMNS / 8) as usize;
        let k = e.kernel_mut();
        let sums: Vec<[Reg<F32>; 4]> = (0..tiles)
            .map(|_| std::array::from_fn(|_| k.mov(0.0f32)))
            .collect();
        let (zero, depth, size) = (e.i64(0), e.i64(DEPTH), e.i64(BOTH));
        for s in 0..STAGES - 1 {
            let (k0, stage) = (e.i64(s * DEPTH), e.i64(s * BOTH));
            for side in sides {
                copies::copy(e, LAYOUT, p, side, k0, stage);
            }
            e.kernel_mut().end_copies();
        }
        let (row, _) = corner(e, p.thread);
        let lowest = e.add(p.rows.0, row);
        // Warps whose rows do not exist only help to copy.
        let works = e.cmp(Cmp::Lt, lowest, p.rows.1, false);
        let ahead = e.i64((STAGES - 1) * DEPTH);
        let last = e.i64((STAGES - 1) * BOTH);
        let stages = e.variables(&[zero, last]);
        e.for_loop(zero, p.k, depth, &[], |e, k0, _| {
            e.kernel_mut().wait_copies(STAGES as u32 - 2);
            e.kernel_mut().barrier();
            e.if_then(works, |e| self.multiply(e, p, stages[0], &sums));
            let next = e.add(k0, ahead);
            for side in sides {
                copies::copy(e, LAYOUT, p, side, next, stages[1]);
            }
            e.kernel_mut().end_copies();
            let turned: Vec<Val> = stages
                .iter()
                .map(|&s| {
                    let up = e.add(s, size);
                    let over = e.cmp(Cmp::Gt, up, last, false);
                    e.select(over, zero, up)
                })
                .collect();
            e.assign(&stages, &turned);
            vec![]
        });
        // The sums take the place of the parts.
        e.kernel_mut().wait_copies(0);
        e.kernel_mut().barrier();
        sums
    }

    /// A lane's address for a matrix instruction at product `step·16` of a part: row
    /// `l % 8 + 8·a` from `first` on, chunk `2·step + b`, where `a` and `b` are bits of
    /// `l / 8`: bit 0 is the row's if `rows_first`.
    fn address(
        &self,
        e: &mut Emitter,
        p: &Place,
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
        let at = copies::place(e, LAYOUT, r, c);
        let at = e.add(at, stage);
        let skip = e.i64(skip);
        let at = e.add(at, skip);
        let at = e.offset(p.shared, at, Elem::I8);
        e.word(at)
    }

    /// Adds the products of a stage's part to the warp's sums.
    fn multiply(&self, e: &mut Emitter, p: &Place, stage: Val, sums: &[[Reg<F32>; 4]]) {
        let (row, column) = corner(e, p.thread);
        for step in 0..DEPTH / 16 {
            // Rows 16 apart have their chunks swapped alike.
            let a0 = self.address(e, p, row, (stage, 0), step, true);
            let b0 = self.address(e, p, column, (stage, PART), step, false);
            let k = e.kernel_mut();
            let b: Vec<[Reg<B32>; 4]> = (0..WARP_COLUMNS / 16)
                .map(|j| k.load_matrices(b0, 16 * j * ROW))
                .collect();
            for i in 0..WARP_ROWS / 16 {
                let a = k.load_matrices(a0, 16 * i * ROW);
                for (j, b) in b.iter().enumerate() {
                    let at = (i * WARP_COLUMNS / 8) as usize + 2 * j;
                    k.multiply_halves(self.half, sums[at], a, [b[0], b[1]]);
                    k.multiply_halves(self.half, sums[at + 1], a, [b[2], b[3]]);
                }
            }
        }
    }

    /// Writes the warp's sums to shared memory, `[row][column]`.
    fn share(&self, e: &mut Emitter, p: &Place, sums: &[[Reg<F32>; 4]]) {
        let (row, column) = corner(e, p.thread);
        let lane = e.kernel_mut().lane();
        let lane = long(e, lane);
        let (four, two) = (e.i64(4), e.i64(2));
        let t = e.op2("arith.remui", lane, four);
        let g = e.op2("arith.divui", lane, four);
        let r = e.add(row, g);
        let pitch = e.i64(SUM_PITCH);
        let at = e.mul(r, pitch);
        let c = e.mul(t, two);
        let c = e.add(column, c);
        let at = e.add(at, c);
        let to = e.offset(p.shared, at, Elem::F32);
        let to = e.word(to);
        let k = e.kernel_mut();
        for (at, s) in (0..).zip(sums) {
            let (i, j) = (at / (WARP_COLUMNS / 8), at % (WARP_COLUMNS / 8));
            for half in 0..2 {
                let skip = 4 * ((16 * i + 8 * half) * SUM_PITCH + 8 * j);
                let h = 2 * half as usize;
                k.store(Space::Shared, to, skip, &s[h..h + 2]);
            }
        }
    }

    /// The epilogue, neighbours along a row together.
    fn finish(&self, e: &mut Emitter, nest: &LoopNest, cx: ExprCx, p: &Place) {
        let run = tail::run(nest, 4);
        let mut tail = tail::emitter(e, nest, cx);
        let width = SIDE / i64::from(run);
        let (threads, all) = (e.i64(THREADS), e.i64(SIDE * width));
        e.for_loop(p.thread, all, threads, &[], |e, i, _| {
            let width = e.i64(width);
            let r = e.op2("arith.divui", i, width);
            let c = e.op2("arith.remui", i, width);
            let step = e.i64(i64::from(run));
            let c = e.mul(c, step);
            let sums = Shown {
                at: p.shared,
                pitch: SUM_PITCH,
                elem: Elem::F32,
                run,
            };
            let within = [(p.rows, r), (p.columns, c)];
            store(&mut tail, e, self.spec, p.batch, within, &sums);
            vec![]
        });
    }
}

/// The first row and column of the thread's warp in the block.
fn corner(e: &mut Emitter, thread: Val) -> (Val, Val) {
    let (size, across) = (e.i64(32), e.i64(SIDE / WARP_COLUMNS));
    let warp = e.op2("arith.divui", thread, size);
    let (rows, columns) = (e.i64(WARP_ROWS), e.i64(WARP_COLUMNS));
    let row = e.op2("arith.divui", warp, across);
    let column = e.op2("arith.remui", warp, across);
    (e.mul(row, rows), e.mul(column, columns))
}
