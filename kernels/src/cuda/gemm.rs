//! Sums of products without tensor cores: every type of sums, every layout.
//!
//! What is multiplied is a [`Source`]'s: a contraction's (`matmul.rs`) or a
//! convolution's (`conv.rs`). A block of 128 threads computes `16·t × 8·t` sums, `t × t` a thread, in registers.
//! Parts of A and B of [`DEPTH`] products are read into registers while the parts before
//! them are multiplied, and go to shared memory (two parts there, one barrier each). The
//! sums then pass through shared memory to the epilogue, which is written once and
//! stores 16 bytes at a time.

use super::GpuKernel;
use super::block::{self, Place, Shape, Sums};
use super::nest::divide;
use crate::LoopNest;
use crate::lower::{ExprCx, compute_elem, convert, is_unsigned, memory_elem, widen};
use kiln_codegen::emit::Cmp;
use kiln_codegen::{Elem, Emitter, GpuTarget, Ty, Val};
use kiln_ir::{DType, Dim};

/// Threads of a block.
const THREADS: i64 = 128;

/// Products between two barriers.
const DEPTH: i64 = 16;

/// Products that the text of a kernel names.
const WRITTEN: i64 = 4;

/// How sums are dealt out.
#[derive(Clone, Copy)]
struct Tile {
    /// Rows and columns of a thread.
    own: i64,
    /// Rows of a block.
    rows: i64,
    /// Columns of a block.
    columns: i64,
    /// Elements between rows of columns in shared memory, and of rows.
    pitch: (i64, i64),
    elem: Elem,
}

impl Tile {
    fn of(acc: DType) -> Tile {
        let elem = compute_elem(acc);
        let own = if elem == Elem::F64 { 4 } else { 8 };
        // Rows start on other banks, and at multiples of 16 bytes.
        let pad = 128 / i64::from(elem.bits());
        Tile {
            own,
            rows: 16 * own,
            columns: 8 * own,
            pitch: (16 * own + pad, 8 * own + pad),
            elem,
        }
    }

    fn size(&self) -> i64 {
        i64::from(self.elem.bits() / 8)
    }

    /// Elements of a part of A in shared memory, and of one of B.
    fn parts(&self) -> (i64, i64) {
        (DEPTH * self.pitch.0, DEPTH * self.pitch.1)
    }

    /// Bytes of shared memory: two parts each, or all sums.
    fn shared(&self) -> i64 {
        let (a, b) = self.parts();
        self.size() * (2 * (a + b)).max(self.rows * self.pitch.1)
    }
}

/// What is multiplied: `rows × k` times `k × columns`, for each of several batches.
pub(super) trait Source {
    /// Types of A, B and the sums.
    fn types(&self) -> [DType; 3];

    /// Rows, columns and products of a batch, and batches, as dims over the launch's
    /// parameters.
    fn dims(&self) -> [Dim; 4];

    /// The same while a kernel runs.
    fn extents(&self, e: &mut Emitter, cx: &ExprCx) -> [Val; 4];

    /// How many numbers a row's place in A takes.
    fn width(&self) -> i64;

    /// A row's place in A, which does not depend on the product. The row may not exist.
    fn row(&self, e: &mut Emitter, cx: &ExprCx, batch: Val, row: Val) -> Vec<Val>;

    /// What the place of a product in A takes, which does not depend on the row.
    fn product(&self, e: &mut Emitter, cx: &ExprCx, k: Val) -> Vec<Val>;

    /// The element of A of a row and a product; whether it is there, if it may not be.
    fn a(
        &self,
        e: &mut Emitter,
        cx: &ExprCx,
        batch: Val,
        row: &[Val],
        product: &[Val],
    ) -> (Val, Option<Val>);

    /// What A has where an element is not there, if not 0, as sums have it.
    fn around(&self, e: &mut Emitter, cx: &ExprCx) -> Option<Val>;

    /// The element of B.
    fn b(&self, e: &mut Emitter, cx: &ExprCx, batch: Val, k: Val, column: Val) -> Val;

    /// An element of B as sums have it, or 0 where it does not exist, if that is more than
    /// reading what is at [`b`](Self::b).
    fn b_made(&self, e: &mut Emitter, cx: &ExprCx, exists: Val, place: (Val, Val)) -> Option<Val>;

    /// Whether neighbouring rows of A are neighbours in memory, rather than neighbouring
    /// products; and whether neighbouring products of B are, rather than columns.
    fn turned(&self) -> [bool; 2];

    /// The coordinates of a sum: the epilogue's axes.
    fn point(&self, e: &mut Emitter, cx: &ExprCx, batch: Val, row: Val, column: Val) -> Vec<Val>;
}

/// Emits a kernel. `nest` is the epilogue, as [`tail::nest`] makes it; columns that are
/// neighbours are neighbours along its last axis.
pub(super) fn emit(
    source: &dyn Source,
    nest: &LoopNest,
    name: &str,
    target: &GpuTarget,
) -> GpuKernel {
    let tile = Tile::of(source.types()[2]);
    let shape = Shape {
        rows: tile.rows,
        columns: tile.columns,
        threads: THREADS,
    };
    block::kernel((name, target), source, nest, shape, 0, |e, cx, p| {
        let table = e
            .kernel_mut()
            .shared((8 * tile.rows * source.width()) as u32, 8);
        let shared = e.kernel_mut().shared(tile.shared() as u32, 16);
        let table = e.from_word(table, Elem::Ptr);
        let shared = e.from_word(shared, Elem::Ptr);
        let product = Product {
            source,
            tile,
            table,
            shared,
        };
        product.fill_table(e, cx, p);
        e.kernel_mut().barrier();
        let sums = product.sums(e, cx, p);
        product.share(e, p, &sums)
    })
}

struct Product<'a> {
    source: &'a dyn Source,
    tile: Tile,
    /// Where the place of each of the block's rows in A is; of a row that does not exist it
    /// is the last one's, and nobody stores its sums.
    table: Val,
    /// Where parts and sums are.
    shared: Val,
}

impl Product<'_> {
    /// Writes down where each row of the block is in A.
    fn fill_table(&self, e: &mut Emitter, cx: &ExprCx, p: &Place) {
        let high = e.i64(self.tile.rows);
        let mine = e.cmp(Cmp::Lt, p.thread, high, false);
        e.if_then(mine, |e| {
            let row = e.add(p.rows.0, p.thread);
            let row = block::existing(e, row, p.rows.1);
            let at = self.source.row(e, cx, p.batch, row);
            for (i, x) in (0..).zip(at) {
                let to = self.slot(e, p.thread, i);
                e.store(x, to);
            }
        });
    }

    /// Where number `i` of a row's place is.
    fn slot(&self, e: &mut Emitter, row: Val, i: i64) -> Val {
        let skip = e.i64(i * self.tile.rows);
        let at = e.add(row, skip);
        e.offset(self.table, at, Elem::I64)
    }

    /// The thread's sums, row by row.
    fn sums(&self, e: &mut Emitter, cx: &ExprCx, p: &Place) -> Vec<Val> {
        let tile = self.tile;
        let zero = e.zero(Ty::scalar(tile.elem));
        let sums = e.variables(&vec![zero; (tile.own * tile.own) as usize]);
        let (none, one, depth) = (e.i64(0), e.i64(1), e.i64(DEPTH));
        // Warps whose rows do not exist only help to read.
        let warp = e.i64(32);
        let warp = e.op2("arith.divui", p.thread, warp);
        let height = e.i64(4 * tile.own / 2);
        let skip = e.mul(warp, height);
        let lowest = e.add(p.rows.0, skip);
        let works = e.cmp(Cmp::Lt, lowest, p.rows.1, false);
        let buffer = e.variables(&[none])[0];
        // The turn before the first product only reads, so that the text reads once.
        let before = e.i64(-DEPTH);
        e.for_loop(before, p.k, depth, &[], |e, k0, _| {
            let k1 = e.add(k0, depth);
            let next = self.read(e, cx, p, k1);
            let begun = e.cmp(Cmp::Ge, k0, none, false);
            let multiplies = e.op2("arith.andi", works, begun);
            e.if_then(multiplies, |e| self.multiply(e, p, buffer, &sums));
            let other = e.sub(one, buffer);
            self.keep(e, p, &next, other);
            e.assign(&[buffer], &[other]);
            e.kernel_mut().barrier();
            vec![]
        });
        sums
    }

    /// Reads the thread's elements of the parts from `k0` on.
    fn read(&self, e: &mut Emitter, cx: &ExprCx, p: &Place, k0: Val) -> [Vec<Val>; 2] {
        let (source, tile) = (self.source, self.tile);
        let of = |count: i64| 0..count * DEPTH / THREADS;
        let mut a = vec![];
        let around = source.around(e, cx);
        let mut product: Option<(Val, Vec<Val>)> = None;
        for j in of(tile.rows) {
            let (row, k) = self.a_place(e, p.thread, j);
            let numbers: Vec<Val> = (0..source.width())
                .map(|i| {
                    let slot = self.slot(e, row, i);
                    e.load(slot, Ty::scalar(Elem::I64))
                })
                .collect();
            // Without turning, all of a thread's elements are of one product.
            let (k_is, product) = match &product {
                Some(known) if !source.turned()[0] => known.clone(),
                _ => {
                    let k = e.add(k0, k);
                    let k_is = e.cmp(Cmp::Lt, k, p.k, false);
                    let of_k = source.product(e, cx, k);
                    product = Some((k_is, of_k.clone()));
                    (k_is, of_k)
                }
            };
            let mut exists = k_is;
            let (at, there) = source.a(e, cx, p.batch, &numbers, &product);
            if let Some(there) = there {
                exists = e.op2("arith.andi", exists, there);
            }
            let mut x = self.element(e, cx, 0, exists, at);
            if let (Some(there), Some(around)) = (there, around) {
                x = e.select(there, x, around);
            }
            a.push(x);
        }
        let mut b = vec![];
        for j in of(tile.columns) {
            let (column, k) = self.b_place(e, p.thread, j);
            let (column, k) = (e.add(p.columns.0, column), e.add(k0, k));
            let (column_is, k_is) = (
                e.cmp(Cmp::Lt, column, p.columns.1, false),
                e.cmp(Cmp::Lt, k, p.k, false),
            );
            let both = e.op2("arith.andi", column_is, k_is);
            b.push(match source.b_made(e, cx, both, (k, column)) {
                Some(x) => x,
                None => {
                    let at = source.b(e, cx, p.batch, k, column);
                    self.element(e, cx, 1, both, at)
                }
            });
        }
        [a, b]
    }

    /// An element of A or B as sums have it.
    fn element(&self, e: &mut Emitter, cx: &ExprCx, arg: usize, exists: Val, at: Val) -> Val {
        let t = self.source.types()[arg];
        let elem = memory_elem(t);
        let from = e.offset(cx.args[arg], at, elem);
        let x = e.load_where(exists, from, Ty::scalar(elem));
        summand(e, x, t, self.source.types()[2])
    }

    /// Row and product of the thread's element `j` of a part of A: neighbours in memory
    /// are neighbouring threads'.
    fn a_place(&self, e: &mut Emitter, thread: Val, j: i64) -> (Val, Val) {
        let turned = self.source.turned()[0];
        let fast = if turned { self.tile.rows } else { DEPTH };
        let (fast, slow) = spread(e, thread, j, fast);
        if turned { (fast, slow) } else { (slow, fast) }
    }

    /// The same of B: column and product.
    fn b_place(&self, e: &mut Emitter, thread: Val, j: i64) -> (Val, Val) {
        let turned = self.source.turned()[1];
        let fast = if turned { DEPTH } else { self.tile.columns };
        let (fast, slow) = spread(e, thread, j, fast);
        if turned { (slow, fast) } else { (fast, slow) }
    }

    /// Writes what was read to shared memory, `[product][row]` and `[product][column]`.
    fn keep(&self, e: &mut Emitter, p: &Place, read: &[Vec<Val>; 2], buffer: Val) {
        let (a_size, b_size) = self.tile.parts();
        let both = e.i64(a_size + b_size);
        let start = e.mul(buffer, both);
        for (j, &x) in (0..).zip(&read[0]) {
            let (row, k) = self.a_place(e, p.thread, j);
            let pitch = e.i64(self.tile.pitch.0);
            let at = e.mul(k, pitch);
            let at = e.add(at, row);
            let at = e.add(at, start);
            let to = e.offset(self.shared, at, self.tile.elem);
            e.store(x, to);
        }
        let behind = e.i64(a_size);
        let start = e.add(start, behind);
        for (j, &x) in (0..).zip(&read[1]) {
            let (column, k) = self.b_place(e, p.thread, j);
            let pitch = e.i64(self.tile.pitch.1);
            let at = e.mul(k, pitch);
            let at = e.add(at, column);
            let at = e.add(at, start);
            let to = e.offset(self.shared, at, self.tile.elem);
            e.store(x, to);
        }
    }

    /// The thread's place among rows and columns: rows `half·r + first.0 ..`, and so on.
    fn corner(&self, e: &mut Emitter, thread: Val) -> (Val, Val) {
        let (eight, half) = (e.i64(8), e.i64(self.tile.own / 2));
        let row = e.op2("arith.divui", thread, eight);
        let column = e.op2("arith.remui", thread, eight);
        (e.mul(row, half), e.mul(column, half))
    }

    /// Adds the products of the parts in a buffer.
    fn multiply(&self, e: &mut Emitter, p: &Place, buffer: Val, sums: &[Val]) {
        let tile = self.tile;
        let (a_size, b_size) = tile.parts();
        let both = e.i64(a_size + b_size);
        let start = e.mul(buffer, both);
        let (row, column) = self.corner(e, p.thread);
        let at = e.add(start, row);
        let a0 = e.offset(self.shared, at, tile.elem);
        let behind = e.i64(a_size);
        let at = e.add(start, behind);
        let at = e.add(at, column);
        let b0 = e.offset(self.shared, at, tile.elem);
        let half = (tile.own / 2) as u32;
        let halves = |e: &mut Emitter, base: Val, skip: i64, all: i64| -> Vec<Val> {
            let mut xs = vec![];
            for h in 0..2 {
                let skip = e.i64(skip + h * all / 2);
                let at = e.offset(base, skip, tile.elem);
                xs.extend(e.load_few(at, tile.elem, half));
            }
            xs
        };
        // The text of a few products: the driver translates it anew on every machine.
        let (none, all, few) = (e.i64(0), e.i64(DEPTH), e.i64(WRITTEN));
        e.for_loop(none, all, few, &[], |e, k0, _| {
            let (pa, pb) = (e.i64(tile.pitch.0), e.i64(tile.pitch.1));
            let (at_a, at_b) = (e.mul(k0, pa), e.mul(k0, pb));
            let (a0, b0) = (e.offset(a0, at_a, tile.elem), e.offset(b0, at_b, tile.elem));
            for k in 0..WRITTEN {
                let a = halves(e, a0, k * tile.pitch.0, tile.rows);
                let b = halves(e, b0, k * tile.pitch.1, tile.columns);
                for (i, &x) in a.iter().enumerate() {
                    for (j, &y) in b.iter().enumerate() {
                        e.multiply_into(sums[i * tile.own as usize + j], x, y);
                    }
                }
            }
            vec![]
        });
    }

    /// Writes the thread's sums to shared memory, `[row][column]`.
    fn share(&self, e: &mut Emitter, p: &Place, sums: &[Val]) -> Sums {
        let tile = self.tile;
        let half = tile.own / 2;
        let (row, column) = self.corner(e, p.thread);
        let pitch = e.i64(tile.pitch.1);
        for i in 0..tile.own {
            let skip = e.i64(i / half * (tile.rows / 2) + i % half);
            let r = e.add(row, skip);
            let at = e.mul(r, pitch);
            let at = e.add(at, column);
            for h in 0..2 {
                let skip = e.i64(h * tile.columns / 2);
                let at = e.add(at, skip);
                let to = e.offset(self.shared, at, tile.elem);
                let first = (i * tile.own + h * half) as usize;
                e.store_few(&sums[first..first + half as usize], to);
            }
        }
        Sums {
            at: self.shared,
            pitch: tile.pitch.1,
            elem: tile.elem,
        }
    }
}

/// An element of type `t` of A or B as sums of type `acc` have it.
pub(super) fn summand(e: &mut Emitter, x: Val, t: DType, acc: DType) -> Val {
    let (x, elem) = (widen(e, x, t), compute_elem(acc));
    match x.ty.elem == elem {
        true => x,
        false if elem == Elem::I32 => e.cast(x, elem, is_unsigned(t), false),
        false => convert(e, x, t, acc),
    }
}

/// Element `j` of a thread among those of a part, as a fast and a slow coordinate. The fast
/// ones are the same for every `j`, and there are no more of them than threads.
fn spread(e: &mut Emitter, thread: Val, j: i64, fast: i64) -> (Val, Val) {
    let skip = e.i64(j * THREADS / fast);
    let fast = e.i64(fast);
    let slow = e.op2("arith.divui", thread, fast);
    (e.op2("arith.remui", thread, fast), e.add(slow, skip))
}

/// Coordinates of a row-major position.
pub(super) fn coordinates(e: &mut Emitter, mut at: Val, extents: &[Val]) -> Vec<Val> {
    let mut c = vec![];
    for i in (0..extents.len()).rev() {
        if i == 0 {
            c.push(at);
        } else {
            let (rest, here) = divide(e, at, extents[i], None);
            c.push(here);
            at = rest;
        }
    }
    c.reverse();
    c
}
