//! Contractions of f16 or bf16 on Hopper's tensor cores (`wgmma`), both sides with
//! neighbours along k next to each other in memory.
//!
//! A block of two groups of four warps computes 128 × 256 (or 128 × 128) sums, a group 64
//! rows of them, straight from shared memory. Parts of [`DEPTH`] products are copied
//! [`AHEAD`] parts ahead; the products of a part are under way while the next ones are
//! started, so a part's place is written again two parts later, when every group has waited
//! for them. The epilogue reads the sums from shared memory.

use super::copies::{self, Layout, Place, Rows};
use super::gemm::{Shown, Source, store};
use super::nest::{divide, long};
use super::{GpuKernel, Ports, entry, tail};
use crate::LoopNest;
use crate::lower::ExprCx;
use crate::matmul::MatMulSpec;
use kiln_codegen::ptx::{B64, F32, Half, Order, Reg, Space};
use kiln_codegen::{Elem, Emitter, GpuTarget, Val};
use kiln_ir::Dim;

/// Threads of a block: two groups of four warps.
const THREADS: i64 = 256;

/// Rows of a block, and of a group.
const ROWS: i64 = 128;
const GROUP_ROWS: i64 = 64;

/// Products of a part, parts in shared memory, and how far ahead they are copied.
const DEPTH: i64 = 64;
const STAGES: i64 = 4;
const AHEAD: i64 = STAGES - 2;

/// Bytes of a row of a part: what a swizzle of 128 bytes spans.
const ROW: i64 = 2 * DEPTH;

/// How parts are copied and lie.
const LAYOUT: Layout = Layout {
    threads: THREADS,
    chunks: DEPTH / copies::CHUNK,
};

/// Columns of a block: the widest product, where few are wasted.
fn columns(spec: &MatMulSpec) -> i64 {
    match spec.n.as_const() {
        Some(n) if n % 256 != 0 && n % 256 <= 128 => 128,
        _ => 256,
    }
}

pub(super) fn emit(
    spec: &MatMulSpec,
    half: Half,
    nest: &LoopNest,
    name: &str,
    target: &GpuTarget,
) -> GpuKernel {
    let [rows, all, _, batches] = spec.dims();
    let product = Product {
        spec,
        half,
        columns: columns(spec),
    };
    let shared = (STAGES * product.stage()).max(4 * ROWS * product.pitch());
    let columns = product.columns;
    let (body, _) = entry(name, target, THREADS as u32, |e| product.write(e, nest));
    GpuKernel {
        entry: name.to_string(),
        body,
        grid: [
            batches * rows.ceil_div(&ROWS.into()),
            all.ceil_div(&columns.into()),
            Dim::ONE,
        ],
        block: [THREADS as u32, 1, 1],
        cluster: [1, 1, 1],
        shared: shared as u32,
        scratch: Dim::ZERO,
    }
}

struct Product<'a> {
    spec: &'a MatMulSpec,
    half: Half,
    /// Columns of a block.
    columns: i64,
}

impl Product<'_> {
    /// Bytes of a stage: a part of A, then one of B.
    fn stage(&self) -> i64 {
        (ROWS + self.columns) * ROW
    }

    /// Elements between rows of sums.
    fn pitch(&self) -> i64 {
        self.columns + 4
    }

    fn write(&self, e: &mut Emitter, nest: &LoopNest) {
        let ports = Ports::declare(e, nest.args.len(), nest.params);
        let cx = ExprCx::new(&nest.exprs, ports.args, ports.params, ports.status);
        let [rows, columns, k, _] = self.spec.extents(e, &cx);
        let thread = e.kernel_mut().thread();
        let thread = long(e, thread);
        let (x, y) = (e.kernel_mut().block(0), e.kernel_mut().block(1));
        let (x, y) = (long(e, x), long(e, y));
        let (less, high, wide) = (e.i64(ROWS - 1), e.i64(ROWS), e.i64(self.columns));
        let up = e.add(rows, less);
        let blocks = e.op2("arith.divui", up, high);
        let (batch, block) = divide(e, x, blocks, None);
        let shared = e.kernel_mut().dynamic_shared();
        let p = Place {
            thread,
            batch,
            rows: (e.mul(block, high), rows),
            columns: (e.mul(y, wide), columns),
            k,
            shared: e.from_word(shared, Elem::Ptr),
        };
        let parts = [(ROWS, 0), (self.columns, ROWS * ROW)];
        let sides = copies::sides(e, &cx, self.spec, LAYOUT, &p, parts);
        let sums = self.sums(e, &p, &sides);
        self.share(e, &p, &sums);
        e.kernel_mut().barrier();
        self.finish(e, nest, cx, &p);
    }

    fn sums(&self, e: &mut Emitter, p: &Place, sides: &[Rows; 2]) -> Vec<Reg<F32>> {
        let k = e.kernel_mut();
        let sums: Vec<Reg<F32>> = (0..self.columns / 2).map(|_| k.mov(0.0f32)).collect();
        for s in 0..AHEAD {
            let (k0, stage) = (e.i64(s * DEPTH), e.i64(s * self.stage()));
            for side in sides {
                copies::copy(e, LAYOUT, p, side, k0, stage);
            }
            e.kernel_mut().end_copies();
        }
        let (zero, depth) = (e.i64(0), e.i64(DEPTH));
        let (size, all) = (e.i64(self.stage()), e.i64(STAGES * self.stage()));
        let (ahead, next) = (e.i64(AHEAD * DEPTH), e.i64(AHEAD * self.stage()));
        let stages = e.variables(&[zero, next]);
        e.for_loop(zero, p.k, depth, &[], |e, k0, _| {
            let k = e.kernel_mut();
            k.wait_copies(AHEAD as u32 - 1);
            // Copies are ordinary writes; products read by another way.
            k.fence_shared();
            k.barrier();
            self.multiply(e, p, stages[0], k0, &sums);
            let k1 = e.add(k0, ahead);
            for side in sides {
                copies::copy(e, LAYOUT, p, side, k1, stages[1]);
            }
            e.kernel_mut().end_copies();
            e.kernel_mut().wait_products(1);
            let turned: Vec<Val> = stages
                .iter()
                .map(|&s| {
                    let up = e.add(s, size);
                    let over = e.cmp(kiln_codegen::emit::Cmp::Ge, up, all, false);
                    e.select(over, zero, up)
                })
                .collect();
            e.assign(&stages, &turned);
            vec![]
        });
        // The sums take the place of the parts.
        let k = e.kernel_mut();
        k.wait_products(0);
        k.wait_copies(0);
        k.barrier();
        sums
    }

    /// Starts the products of a stage's part.
    fn multiply(&self, e: &mut Emitter, p: &Place, stage: Val, k0: Val, sums: &[Reg<F32>]) {
        let rows = e.i64(GROUP_ROWS);
        let group = self.group(e, p.thread);
        let row = e.mul(group, rows);
        let bytes = e.i64(ROW);
        let skip = e.mul(row, bytes);
        let a = e.add(stage, skip);
        let behind = e.i64(ROWS * ROW);
        let b = e.add(stage, behind);
        let (a, b) = (self.descriptor(e, p, a), self.descriptor(e, p, b));
        let k0 = e.long(k0);
        let k = e.kernel_mut();
        let add = k.compare(Order::Gt, k0, 0, false);
        let always = k.compare(Order::Ge, k0, 0, false);
        k.fence_group();
        for step in 0..DEPTH / 16 {
            // 16 products are 32 bytes of a row.
            let (a, b) = (k.add(a, 2 * step), k.add(b, 2 * step));
            let add = if step == 0 { add } else { always };
            k.multiply_group(self.half, sums, a, b, add);
        }
        k.end_products();
    }

    /// Which group the thread is of.
    fn group(&self, e: &mut Emitter, thread: Val) -> Val {
        let size = e.i64(128);
        e.op2("arith.divui", thread, size)
    }

    /// What a product reads: rows of 128 bytes that are swizzled, eight of them 1024 bytes
    /// after the eight before ("Matrix descriptor format", PTX ISA 9.7.15.5.1).
    fn descriptor(&self, e: &mut Emitter, p: &Place, at: Val) -> Reg<B64> {
        let at = e.offset(p.shared, at, Elem::I8);
        let at = e.word(at);
        let k = e.kernel_mut();
        let wide = k.extend(at, false);
        let address = k.shr(false, wide, 4);
        let address: Reg<B64> = k.bitwise("and", address, 0x3fff);
        let rest = (1i64 << 62) | (64 << 32) | (1 << 16);
        k.bitwise("or", address, rest)
    }

    /// Writes the group's sums to shared memory, `[row][column]`.
    fn share(&self, e: &mut Emitter, p: &Place, sums: &[Reg<F32>]) {
        let lane = e.kernel_mut().lane();
        let lane = long(e, lane);
        let (four, two, size, sixteen) = (e.i64(4), e.i64(2), e.i64(32), e.i64(16));
        // Warps have sixteen rows each, group after group.
        let warp = e.op2("arith.divui", p.thread, size);
        let row = e.mul(warp, sixteen);
        let g = e.op2("arith.divui", lane, four);
        let row = e.add(row, g);
        let t = e.op2("arith.remui", lane, four);
        let column = e.mul(t, two);
        let pitch = e.i64(self.pitch());
        let at = e.mul(row, pitch);
        let at = e.add(at, column);
        let to = e.offset(p.shared, at, Elem::F32);
        let to = e.word(to);
        let k = e.kernel_mut();
        for (j, four) in (0..).zip(sums.chunks(4)) {
            for half in 0..2 {
                let skip = 4 * (8 * half * self.pitch() + 8 * j);
                let h = 2 * half as usize;
                k.store(Space::Shared, to, skip, &four[h..h + 2]);
            }
        }
    }

    /// The epilogue, neighbours along a row together.
    fn finish(&self, e: &mut Emitter, nest: &LoopNest, cx: ExprCx, p: &Place) {
        let run = tail::run(nest, 4);
        let mut tail = tail::emitter(e, nest, cx);
        let width = self.columns / i64::from(run);
        let (threads, all) = (e.i64(THREADS), e.i64(ROWS * width));
        e.for_loop(p.thread, all, threads, &[], |e, i, _| {
            let width = e.i64(width);
            let r = e.op2("arith.divui", i, width);
            let c = e.op2("arith.remui", i, width);
            let step = e.i64(i64::from(run));
            let c = e.mul(c, step);
            let sums = Shown {
                at: p.shared,
                pitch: self.pitch(),
                elem: Elem::F32,
                run,
            };
            let within = [(p.rows, r), (p.columns, c)];
            store(&mut tail, e, self.spec, p.batch, within, &sums);
            vec![]
        });
    }
}
