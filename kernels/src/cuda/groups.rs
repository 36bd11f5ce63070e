//! Contractions of f16, bf16, tf32, f8 or bytes on Hopper's tensor cores (`wgmma`), both sides with
//! neighbours along k next to each other in memory.
//!
//! A block of two groups of four warps computes 128 × 256 (or 128 × 128) sums, a group 64
//! rows of them, straight from shared memory. Parts of [`ROW`] bytes a row are copied
//! [`AHEAD`] parts ahead; the products of a part are under way while the next ones are
//! started, so a part's place is written again two parts later, when every group has waited
//! for them. The epilogue reads the sums from shared memory.

use super::GpuKernel;
use super::block::{self, Place, Shape, Sums};
use super::copies::{self, Layout, Rows};
use super::halves::sum_elem;
use crate::LoopNest;
use crate::matmul::MatMulSpec;
use kiln_codegen::ptx::{B32, B64, Kernel, Order, Pred, Reg, Space, Sum};
use kiln_codegen::{Elem, Emitter, GpuTarget, Val};

/// Threads of a block: two groups of four warps.
const THREADS: i64 = 256;

/// Rows of a block, and of a group.
const ROWS: i64 = 128;
const GROUP_ROWS: i64 = 64;

/// Parts in shared memory, and how far ahead they are copied.
const STAGES: i64 = 4;
const AHEAD: i64 = STAGES - 2;

/// Bytes of a row of a part: what a swizzle of 128 bytes spans.
pub(super) const ROW: i64 = 128;

/// Columns of a block: the widest product, where few are wasted, and where registers hold
/// its sums once.
pub(super) fn columns<T: Sum>(spec: &MatMulSpec, of: T::Factors) -> i64 {
    match spec.n.as_const() {
        _ if T::is_short(of) => 128,
        Some(n) if n % 256 != 0 && n % 256 <= 128 => 128,
        _ => 256,
    }
}

pub(super) fn emit<T: Sum>(
    spec: &MatMulSpec,
    of: T::Factors,
    nest: &LoopNest,
    name: &str,
    target: &GpuTarget,
) -> GpuKernel {
    let columns = columns::<T>(spec, of);
    let (stage, pitch) = ((ROWS + columns) * ROW, columns + 4);
    let shape = Shape {
        rows: ROWS,
        columns,
        threads: THREADS,
    };
    let layout = Layout::of::<T>(of, THREADS, ROW);
    let shared = (STAGES * stage).max(4 * ROWS * pitch);
    block::kernel((name, target), spec, nest, shape, shared, |e, cx, p| {
        let shared = e.kernel_mut().dynamic_shared();
        let product: Product<T> = Product {
            of,
            layout,
            columns,
            stage,
            shared: e.from_word(shared, Elem::Ptr),
        };
        let parts = [(ROWS, 0), (columns, ROWS * ROW)];
        let sides = copies::sides(e, cx, spec, layout, p, parts);
        let sums = product.sums(e, p, &sides);
        product.share(e, p, &sums, pitch)
    })
}

struct Product<T: Sum> {
    of: T::Factors,
    /// How parts are copied and lie.
    layout: Layout,
    /// Columns of a block.
    columns: i64,
    /// Bytes of a stage: a part of A, then one of B.
    stage: i64,
    shared: Val,
}

impl<T: Sum> Product<T> {
    fn sums(&self, e: &mut Emitter, p: &Place, sides: &[Rows; 2]) -> Vec<Reg<T>> {
        let k = e.kernel_mut();
        let sums: Vec<Reg<T>> = (0..self.columns / 2).map(|_| T::zero(k)).collect();
        let own = own::<T>(k, self.of, &sums);
        let (layout, deep) = (self.layout, self.layout.depth());
        for s in 0..AHEAD {
            let (k0, stage) = (e.i64(s * deep), e.i64(s * self.stage));
            for side in sides {
                copies::copy(e, layout, (p, self.shared), side, k0, stage);
            }
            e.kernel_mut().end_copies();
        }
        let (zero, depth) = (e.i64(0), e.i64(deep));
        let (size, all) = (e.i64(self.stage), e.i64(STAGES * self.stage));
        let (ahead, next) = (e.i64(AHEAD * deep), e.i64(AHEAD * self.stage));
        let stages = e.variables(&[zero, next]);
        e.for_loop(zero, p.k, depth, &[], |e, k0, _| {
            let k = e.kernel_mut();
            k.wait_copies(AHEAD as u32 - 1);
            // Copies are ordinary writes; products read by another way.
            k.fence_shared();
            k.barrier();
            self.multiply(e, p, stages[0], k0, own.as_ref().unwrap_or(&sums));
            let k1 = e.add(k0, ahead);
            for side in sides {
                copies::copy(e, layout, (p, self.shared), side, k1, stages[1]);
            }
            e.kernel_mut().end_copies();
            match &own {
                Some(own) => {
                    e.kernel_mut().wait_products(0);
                    e.kernel_mut().add_all(&sums, own);
                }
                None => e.kernel_mut().wait_products(1),
            }
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
    fn multiply(&self, e: &mut Emitter, p: &Place, stage: Val, k0: Val, sums: &[Reg<T>]) {
        let rows = e.i64(GROUP_ROWS);
        let group = self.group(e, p.thread);
        let row = e.mul(group, rows);
        let bytes = e.i64(ROW);
        let skip = e.mul(row, bytes);
        let a = e.add(stage, skip);
        let behind = e.i64(ROWS * ROW);
        let b = e.add(stage, behind);
        let sides = [a, b].map(|at| e.offset(self.shared, at, Elem::I8));
        let add = follows::<T>(e, self.of, k0);
        start(e, self.of, sides, add, sums);
    }

    /// Which group the thread is of.
    fn group(&self, e: &mut Emitter, thread: Val) -> Val {
        let size = e.i64(128);
        e.op2("arith.divui", thread, size)
    }

    /// Writes the group's sums to shared memory.
    fn share(&self, e: &mut Emitter, p: &Place, sums: &[Reg<T>], pitch: i64) -> Sums {
        let shown = Sums {
            at: self.shared,
            pitch,
            elem: sum_elem::<T>(),
        };
        // Warps have sixteen rows each, group after group.
        let (size, sixteen, zero) = (e.i64(32), e.i64(16), e.i64(0));
        let warp = e.op2("arith.divui", p.thread, size);
        let row = e.mul(warp, sixteen);
        let to = block::fragment(e, shown, (row, zero));
        let k = e.kernel_mut();
        for (j, four) in (0..).zip(sums.chunks(4)) {
            for half in 0..2 {
                let skip = 4 * (8 * half * pitch + 8 * j);
                let h = 2 * half as usize;
                k.store(Space::Shared, to, skip, &four[h..h + 2]);
            }
        }
        shown
    }
}

/// Registers for the sums of a part alone, where tensor cores hold few bits of them. A part
/// has 128 products of f8, after as many of which DeepSeek-V3 adds them up in f32.
pub(super) fn own<T: Sum>(k: &mut Kernel, of: T::Factors, sums: &[Reg<T>]) -> Option<Vec<Reg<T>>> {
    T::is_short(of).then(|| sums.iter().map(|_| T::zero(k)).collect())
}

/// Whether the products from `k0` on are added to those before them.
pub(super) fn follows<T: Sum>(e: &mut Emitter, of: T::Factors, k0: Val) -> Reg<Pred> {
    let k0 = e.long(k0);
    let least = if T::is_short(of) { i64::MAX } else { 0 };
    e.kernel_mut().compare(Order::Gt, k0, least, false)
}

/// Starts the products of parts of 64 rows and of columns, [`ROW`] bytes each, which lie at
/// these places of shared memory, to be added to `sums` where `add` holds and to zeros
/// elsewhere.
pub(super) fn start<T: Sum>(
    e: &mut Emitter,
    of: T::Factors,
    sides: [Val; 2],
    add: Reg<Pred>,
    sums: &[Reg<T>],
) {
    let [a, b] = sides.map(|at| descriptor(e, at));
    let k = e.kernel_mut();
    let zero: Reg<B32> = k.mov(0);
    let always = k.compare(Order::Eq, zero, 0, false);
    k.fence_group();
    for step in 0..ROW / 32 {
        // An instruction takes 32 bytes of a row.
        let (a, b) = (k.add(a, 2 * step), k.add(b, 2 * step));
        let add = if step == 0 { add } else { always };
        k.multiply_group(of, sums, a, b, add);
    }
    k.end_products();
}

/// What a product reads: rows of 128 bytes that are swizzled, eight of them 1024 bytes
/// after the eight before ("Matrix descriptor format", PTX ISA 9.7.15.5.1).
pub(super) fn descriptor(e: &mut Emitter, at: Val) -> Reg<B64> {
    let at = e.word(at);
    let k = e.kernel_mut();
    let wide = k.extend(at, false);
    let address = k.shr(false, wide, 4);
    let address: Reg<B64> = k.bitwise("and", address, 0x3fff);
    let rest = (1i64 << 62) | (64 << 32) | (1 << 16);
    k.bitwise("or", address, rest)
}
