//! Contractions of f16, bf16, tf32, f8 or bytes on Hopper's tensor cores (`wgmma`) from tiles
//! that the tensor memory accelerator copies.
//!
//! Blocks come in clusters of two, one multiprocessor each, which stay and work off the
//! product's parts in turn: 256 rows and 256 (or 128) columns a cluster, 128 rows a block.
//! A block has one group of four warps of which one thread copies, and two groups that
//! multiply, 64 rows each. Each block copies its rows of A, and half of the columns of B
//! to both blocks. A ring of [`STAGES`] places holds parts of [`ROW`] bytes a row; barriers
//! say which are full and which may be filled again, so that copies go on while sums are
//! written: a warp does that for its own sixteen rows, [`PIECE`] columns after the other,
//! through a place of its own in shared memory.

use super::block::{self, Place, Shape, Sums};
use super::gemm::{Source, coordinates};
use super::groups::{self, ROW};
use super::halves::sum_elem;
use super::nest::{divide, long};
use super::{GpuKernel, Ports, Tile, Unit, dim, entry, entry_of, tail};
use crate::emit_nest::NestEmitter;
use crate::lower::ExprCx;
use crate::matmul::{Columns, MatMulSpec};
use crate::{LoopNest, Size};
use kiln_codegen::emit::Cmp;
use kiln_codegen::ptx::{B32, B64, Order, Reg, Space, Sum};
use kiln_codegen::{Elem, Emitter, GpuTarget, Val};
use kiln_ir::Dim;

/// Threads of a group of four warps, and of a block.
const GROUP: i64 = 128;
const THREADS: i64 = 3 * GROUP;

/// Blocks of a cluster.
const CLUSTER: i64 = 2;

/// Rows of a block, and of a group that multiplies.
const ROWS: i64 = 128;
const GROUP_ROWS: i64 = 64;

/// Places in the ring.
const STAGES: i64 = 4;

/// Columns of sums that a warp writes at once, elements between rows of them, and their
/// bytes.
const PIECE: i64 = 64;
const PITCH: i64 = PIECE + 4;
const PIECE_BYTES: i64 = 4 * 16 * PITCH;

/// Warps that multiply.
const WARPS: i64 = 8;

/// Registers of a thread that copies, and of one that multiplies.
const FEW: u32 = 40;
const MANY: u32 = 232;

/// Pairs of blocks of rows that are worked off side by side, so that what they read of B
/// stays in the second-level cache.
const SIDE_BY_SIDE: i64 = 8;

/// The form that reads tiles; none where A or B has too many dimensions, or too few rows
/// for two blocks.
pub(super) fn emit<T: Sum>(
    spec: &MatMulSpec,
    of: T::Factors,
    nest: &LoopNest,
    name: &str,
    target: &GpuTarget,
) -> Option<GpuKernel> {
    let [rows, columns, _, batches] = spec.dims();
    if rows.as_const().is_some_and(|m| m <= ROWS) {
        return None;
    }
    let wide = groups::columns::<T>(spec, of);
    let mut when = vec![(Dim::from(ROWS + 1), rows.clone())];
    let a = side_a(spec, &mut when)?;
    let b = side_b(spec, wide)?;
    let stage = (ROWS + wide) * ROW;
    let bars = STAGES * stage + WARPS * PIECE_BYTES;
    let entry_name = entry_of(name, "tiles");
    let (body, _) = entry(&entry_name, target, THREADS as u32, |e| {
        let ports = Ports::declare(e, nest.args.len(), nest.params);
        let maps = [a.0.len(), b.0.len()].map(|_| e.kernel_mut().tensor_map());
        let cx = ExprCx::new(&nest.exprs, ports.args, ports.params, ports.status);
        let product = Product::<T>::new(e, &cx, (spec, of), wide, (stage, bars), maps);
        product.write(e, nest, cx, [&a.0, &b.0]);
    });
    let parts = rows.ceil_div(&(CLUSTER * ROWS).into()) * columns.ceil_div(&wide.into()) * batches;
    let at_once = i64::from(target.multiprocessors) / CLUSTER;
    Some(GpuKernel {
        entry: entry_name,
        body,
        when,
        tiles: vec![a.1, b.1],
        grid: [
            parts.clone().minimum(&at_once.into()) * CLUSTER.into(),
            Dim::ONE,
            Dim::ONE,
        ],
        block: [THREADS as u32, 1, 1],
        cluster: [CLUSTER as u32, 1, 1],
        shared: (bars + 16 * STAGES) as u32,
        unit: Unit::Wgmma,
        parts: Some(parts),
        ..GpuKernel::default()
    })
}

/// The batch axes whose coordinates a side's tiles have, and the tiles.
type Side = (Vec<usize>, Tile);

/// A's tiles: products, then rows, then batch axes; where the batch is shared, its axes
/// must be one with the rows.
fn side_a(spec: &MatMulSpec, when: &mut Vec<(Dim, Dim)>) -> Option<Side> {
    let rank = spec.batch.len();
    if !spec.shared() {
        return batched(0, spec, spec.m, spec.a[rank], &spec.a[..rank], ROWS);
    }
    // Of batch axes and rows, those that have extents; each steps over all of the next.
    let axes: Vec<(Size, Size)> = (spec.batch.iter().copied().chain([spec.m]))
        .zip(spec.a.iter().copied())
        .filter(|&(extent, _)| extent != Size::ONE)
        .collect();
    for pair in axes.windows(2) {
        let (step, over) = (dim(pair[0].1), dim(pair[1].0) * dim(pair[1].1));
        if step != over {
            if step.as_const().is_some() && over.as_const().is_some() {
                return None;
            }
            when.extend([(step.clone(), over.clone()), (over, step)]);
        }
    }
    let step = axes.last().map_or(spec.a[rank], |&(_, step)| step);
    let mut side = batched(0, spec, spec.m, step, &[], ROWS)?;
    side.1.sizes[1] = spec.dims()[0].clone();
    Some(side)
}

/// B's tiles: products, then half of a block's columns, then batch axes.
fn side_b(spec: &MatMulSpec, wide: i64) -> Option<Side> {
    let Columns::Strided { column, .. } = spec.b else {
        return None;
    };
    batched(1, spec, spec.n, column, &spec.b_batch, wide / CLUSTER)
}

fn batched(
    arg: u16,
    spec: &MatMulSpec,
    lines: Size,
    step: Size,
    batch: &[Size],
    many: i64,
) -> Option<Side> {
    let size = spec.args[arg as usize].size()? as i64;
    let deep = ROW / size;
    // Along axes without a step there is one matrix.
    let axes: Vec<usize> = (0..batch.len())
        .filter(|&i| batch[i] != Size::ZERO)
        .collect();
    let mut tile = Tile {
        arg,
        dtype: spec.args[arg as usize],
        sizes: vec![dim(spec.k), dim(lines)],
        strides: vec![dim(step)],
        tile: vec![deep as u32, many as u32],
    };
    for &i in &axes {
        tile.sizes.push(dim(spec.batch[i]));
        tile.strides.push(dim(batch[i]));
        tile.tile.push(1);
    }
    (tile.sizes.len() <= 5).then_some((axes, tile))
}

/// A part of the product: a cluster's rows and columns.
struct Part {
    batch: Val,
    /// The block's first row, the cluster's first column.
    row: Val,
    column: Val,
}

/// Where a thread is in the ring: the place, and the parity of its round.
struct Turn {
    slot: Val,
    parity: Val,
}

struct Product<'a, T: Sum> {
    spec: &'a MatMulSpec,
    of: T::Factors,
    /// Columns of a cluster.
    wide: i64,
    /// Bytes of a stage: a part of A, then one of B.
    stage: i64,
    /// Shared memory: the ring, the warps' places, barriers of full and of empty places.
    shared: Val,
    bars: Val,
    maps: [Reg<B64>; 2],
    /// The thread in its block, the block in its cluster.
    thread: Val,
    rank: Val,
    /// Rows, columns, products and batches.
    extents: [Val; 4],
}

impl<'a, T: Sum> Product<'a, T> {
    fn new(
        e: &mut Emitter,
        cx: &ExprCx,
        (spec, of): (&'a MatMulSpec, T::Factors),
        wide: i64,
        (stage, bars): (i64, i64),
        maps: [Reg<B64>; 2],
    ) -> Product<'a, T> {
        let k = e.kernel_mut();
        let (shared, thread, rank) = (k.dynamic_shared(), k.thread(), k.cluster_rank());
        let shared = e.from_word(shared, Elem::Ptr);
        let bars = e.i64(bars);
        Product {
            spec,
            of,
            wide,
            stage,
            shared,
            bars: e.offset(shared, bars, Elem::I8),
            maps,
            thread: long(e, thread),
            rank: long(e, rank),
            extents: spec.extents(e, cx),
        }
    }

    fn write(&self, e: &mut Emitter, nest: &LoopNest, cx: ExprCx, axes: [&[usize]; 2]) {
        let zero = e.i64(0);
        let first = e.cmp(Cmp::Eq, self.thread, zero, false);
        e.if_then(first, |e| self.make_barriers(e));
        e.kernel_mut().cluster_barrier();
        let group = e.i64(GROUP);
        let copies = e.cmp(Cmp::Lt, self.thread, group, false);
        let batches = self.spec.batch_extents(e, &cx);
        let mut tail = tail::emitter(e, nest, cx);
        e.either(
            copies,
            &[],
            &mut tail,
            |e, _| {
                e.kernel_mut().registers(FEW, false);
                e.if_then(first, |e| self.copy(e, &batches, axes));
                vec![]
            },
            |e, tail| {
                e.kernel_mut().registers(MANY, true);
                self.multiply(e, tail);
                vec![]
            },
        );
        // A block that is left may still be written to.
        e.kernel_mut().cluster_barrier();
    }

    /// Products of a part.
    fn depth(&self) -> i64 {
        8 * ROW / i64::from(T::factor_bits(self.of))
    }

    fn make_barriers(&self, e: &mut Emitter) {
        for i in 0..STAGES {
            let slot = e.i64(i);
            let [full, empty] = [0, STAGES].map(|from| self.bar(e, from, slot));
            let k = e.kernel_mut();
            k.barrier_init(full, 1);
            k.barrier_init(empty, (CLUSTER * WARPS) as u32);
        }
        e.kernel_mut().fence_barriers();
    }

    /// The barrier of a place among those from `from` on: full ones first, then empty ones.
    fn bar(&self, e: &mut Emitter, from: i64, slot: Val) -> Reg<B32> {
        let from = e.i64(from);
        let at = e.add(slot, from);
        let at = e.offset(self.bars, at, Elem::I64);
        e.word(at)
    }

    /// Where a place of the ring is.
    fn place(&self, e: &mut Emitter, slot: Val, skip: i64) -> Val {
        let (size, skip) = (e.i64(self.stage), e.i64(skip));
        let at = e.mul(slot, size);
        let at = e.add(at, skip);
        e.offset(self.shared, at, Elem::I8)
    }

    fn begin(&self, e: &mut Emitter, parity: i64) -> Turn {
        let (slot, parity) = (e.i64(0), e.i64(parity));
        let both = e.variables(&[slot, parity]);
        Turn {
            slot: both[0],
            parity: both[1],
        }
    }

    fn step(&self, e: &mut Emitter, turn: &Turn) {
        let (zero, one, all) = (e.i64(0), e.i64(1), e.i64(STAGES));
        let next = e.add(turn.slot, one);
        let over = e.cmp(Cmp::Ge, next, all, false);
        let slot = e.select(over, zero, next);
        let other = e.op2("arith.xori", turn.parity, one);
        let parity = e.select(over, other, turn.parity);
        e.assign(&[turn.slot, turn.parity], &[slot, parity]);
    }

    fn wait(&self, e: &mut Emitter, from: i64, turn: &Turn) {
        let bar = self.bar(e, from, turn.slot);
        let parity = e.long(turn.parity);
        let parity = e.kernel_mut().low(parity);
        e.kernel_mut().barrier_wait(bar, parity);
    }

    /// The parts that the cluster works off, in turn.
    fn parts(&self, e: &mut Emitter, body: impl FnOnce(&mut Emitter, &Part)) {
        let [rows, columns, _, batches] = self.extents;
        let (pairs, across) = (
            ceil_div(e, rows, CLUSTER * ROWS),
            ceil_div(e, columns, self.wide),
        );
        let each = e.mul(pairs, across);
        let all = e.mul(each, batches);
        let two = e.i64(CLUSTER);
        let block = e.kernel_mut().block(0);
        let block = long(e, block);
        let cluster = e.op2("arith.divui", block, two);
        let blocks = e.kernel_mut().blocks(0);
        let blocks = long(e, blocks);
        let clusters = e.op2("arith.divui", blocks, two);
        e.for_loop(cluster, all, clusters, &[], |e, at, _| {
            let part = self.part(e, at, (pairs, across, each));
            body(e, &part);
            vec![]
        });
    }

    /// The part of a number: a few pairs of blocks of rows under each other, then the next
    /// columns.
    fn part(&self, e: &mut Emitter, at: Val, (pairs, across, each): (Val, Val, Val)) -> Part {
        let (batch, at) = divide(e, at, each, None);
        let most = e.i64(SIDE_BY_SIDE);
        let in_band = e.mul(across, most);
        let (band, at) = divide(e, at, in_band, None);
        let first = e.mul(band, most);
        let left = e.sub(pairs, first);
        let high = e.min(left, most, false);
        let (across, down) = divide(e, at, high, None);
        let pair = e.add(first, down);
        let (two, rows, wide) = (e.i64(CLUSTER), e.i64(ROWS), e.i64(self.wide));
        let block = e.mul(pair, two);
        let block = e.add(block, self.rank);
        Part {
            batch,
            row: e.mul(block, rows),
            column: e.mul(across, wide),
        }
    }

    /// One thread's copies.
    fn copy(&self, e: &mut Emitter, batches: &[Val], axes: [&[usize]; 2]) {
        let [rows, columns, products, _] = self.extents;
        let turn = self.begin(e, 1);
        let share = self.wide / CLUSTER;
        self.parts(e, |e, part| {
            let share_val = e.i64(share);
            let skip = e.mul(self.rank, share_val);
            let column = e.add(part.column, skip);
            // Where nothing is left a block copies what there is: its sums are not written.
            let lines = [(part.row, rows), (column, columns)].map(|(at, all)| {
                let one = e.i64(1);
                let last = e.sub(all, one);
                e.min(at, last, false)
            });
            let point = match batches {
                [] => vec![],
                extents => coordinates(e, part.batch, extents),
            };
            let at: Vec<Vec<Reg<B32>>> = (lines.into_iter().zip(axes))
                .map(|(line, axes)| {
                    let outer = axes.iter().map(|&i| point[i]);
                    [line].into_iter().chain(outer).map(|c| low(e, c)).collect()
                })
                .collect();
            let (zero, depth) = (e.i64(0), e.i64(self.depth()));
            e.for_loop(zero, products, depth, &[], |e, k0, _| {
                self.wait(e, STAGES, &turn);
                let full = self.bar(e, 0, turn.slot);
                e.kernel_mut().barrier_expect(full, self.stage as u32);
                let k0 = low(e, k0);
                let a = self.place(e, turn.slot, 0);
                let b = self.place(e, turn.slot, ROWS * ROW);
                let bytes = e.i64(share * ROW);
                let skip = e.mul(self.rank, bytes);
                let b = e.offset(b, skip, Elem::I8);
                let (a, b) = (e.word(a), e.word(b));
                let k = e.kernel_mut();
                let from = |side: usize| [&[k0][..], &at[side]].concat();
                k.copy_tile(a, self.maps[0], &from(0), full, None);
                k.copy_tile(b, self.maps[1], &from(1), full, Some((1 << CLUSTER) - 1));
                self.step(e, &turn);
                vec![]
            });
        });
    }

    /// A group's products, and what becomes of their sums.
    fn multiply(&self, e: &mut Emitter, tail: &mut NestEmitter) {
        let products = self.extents[2];
        let k = e.kernel_mut();
        let sums: Vec<Reg<T>> = (0..self.wide / 2).map(|_| T::zero(k)).collect();
        let own = groups::own::<T>(k, self.of, &sums);
        let size = e.i64(GROUP);
        let group = e.op2("arith.divui", self.thread, size);
        let one = e.i64(1);
        let group = e.sub(group, one);
        let bytes = e.i64(GROUP_ROWS * ROW);
        let skip = e.mul(group, bytes);
        let turn = self.begin(e, 0);
        let before = e.variables(&[one])[0];
        self.parts(e, |e, part| {
            let (zero, depth) = (e.i64(0), e.i64(self.depth()));
            if own.is_some() {
                e.kernel_mut().clear(&sums);
            }
            e.for_loop(zero, products, depth, &[], |e, k0, _| {
                self.wait(e, 0, &turn);
                let a = self.place(e, turn.slot, 0);
                let a = e.offset(a, skip, Elem::I8);
                let b = self.place(e, turn.slot, ROWS * ROW);
                let started = groups::follows::<T>(e, self.of, k0);
                if let Some(own) = &own {
                    groups::start(e, self.of, [a, b], started, own);
                    e.kernel_mut().wait_products(0);
                    self.release(e, turn.slot);
                    e.kernel_mut().add_all(&sums, own);
                    self.step(e, &turn);
                    return vec![];
                }
                groups::start(e, self.of, [a, b], started, &sums);
                e.kernel_mut().wait_products(1);
                let again = e.from_pred(started);
                e.if_then(again, |e| self.release(e, before));
                e.assign(&[before], &[turn.slot]);
                self.step(e, &turn);
                vec![]
            });
            if own.is_none() {
                e.kernel_mut().wait_products(0);
                self.release(e, before);
            }
            self.finish(e, tail, part, &sums);
        });
    }

    /// The warp does not need a place's part any more: both blocks may fill it.
    fn release(&self, e: &mut Emitter, slot: Val) {
        let empty = self.bar(e, STAGES, slot);
        let k = e.kernel_mut();
        let lane = k.lane();
        let one = k.compare(Order::Lt, lane, CLUSTER as i32, false);
        k.if_then(one, |k| k.barrier_arrive_at(empty, lane));
    }

    /// Writes the warp's sums.
    fn finish(&self, e: &mut Emitter, tail: &mut NestEmitter, part: &Part, sums: &[Reg<T>]) {
        let lane = e.kernel_mut().lane();
        let lane = long(e, lane);
        let (group, size, sixteen) = (e.i64(GROUP), e.i64(32), e.i64(16));
        let thread = e.sub(self.thread, group);
        let warp = e.op2("arith.divui", thread, size);
        let row = e.mul(warp, sixteen);
        let row = e.add(part.row, row);
        let bytes = e.i64(PIECE_BYTES);
        let own = e.mul(warp, bytes);
        let own = e.offset(self.shared, own, Elem::I8);
        let behind = e.i64(STAGES * self.stage);
        let shown = Sums {
            at: e.offset(own, behind, Elem::I8),
            pitch: PITCH,
            elem: sum_elem::<T>(),
        };
        let [rows, columns, k, _] = self.extents;
        let zero = e.i64(0);
        let to = block::fragment(e, shown, (zero, zero));
        for (i, piece) in (0..).zip(sums.chunks(PIECE as usize / 2)) {
            e.kernel_mut().warp_barrier();
            for (j, four) in (0..).zip(piece.chunks(4)) {
                for half in 0..2 {
                    let skip = 4 * (8 * half * PITCH + 8 * j);
                    let h = 2 * half as usize;
                    let k = e.kernel_mut();
                    k.store(Space::Shared, to, skip, &four[h..h + 2]);
                }
            }
            e.kernel_mut().warp_barrier();
            let skip = e.i64(i * PIECE);
            let place = Place {
                thread: lane,
                batch: part.batch,
                rows: (row, rows),
                columns: (e.add(part.column, skip), columns),
                k,
                span: (zero, k),
            };
            let shape = Shape {
                rows: 16,
                columns: PIECE,
                threads: 32,
            };
            block::write(e, tail, self.spec, &place, shape, shown);
        }
    }
}

fn ceil_div(e: &mut Emitter, n: Val, by: i64) -> Val {
    let (less, by) = (e.i64(by - 1), e.i64(by));
    let up = e.add(n, less);
    e.op2("arith.divui", up, by)
}

/// The low 32 bits.
fn low(e: &mut Emitter, x: Val) -> Reg<B32> {
    let x = e.long(x);
    e.kernel_mut().low(x)
}
