//! Contractions without tensor cores: every type of sums, every layout.
//!
//! A block of 128 threads computes `16·t × 8·t` sums, `t × t` a thread, in registers.
//! Parts of A and B of [`DEPTH`] products are read into registers while the parts before
//! them are multiplied, and go to shared memory (two parts there, one barrier each). The
//! sums then pass through shared memory to the epilogue, which is written once and
//! stores 16 bytes at a time.

use super::nest::divide;
use super::tail;
use super::{GpuKernel, Ports, dim, entry, vectors};
use crate::Size;
use crate::lower::{ExprCx, compute_elem, convert, is_unsigned, memory_elem, widen};
use crate::matmul::{Columns, MatMulSpec};
use crate::nest::SpecError;
use kiln_codegen::emit::Cmp;
use kiln_codegen::{Elem, Emitter, GpuTarget, Ty, Val};
use kiln_ir::{DType, Dim};

/// Threads of a block.
const THREADS: i64 = 128;

/// Products between two barriers.
const DEPTH: i64 = 16;

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

pub(super) fn emit(
    spec: &MatMulSpec,
    name: &str,
    target: &GpuTarget,
) -> Result<GpuKernel, SpecError> {
    let tile = Tile::of(spec.acc);
    let batch = spec.batch.iter().fold(Dim::ONE, |n, &s| n * dim(s));
    let (m, n) = (dim(spec.m), dim(spec.n));
    let blocks = match spec.shared() {
        true => (batch * m).ceil_div(&tile.rows.into()),
        false => batch * m.ceil_div(&tile.rows.into()),
    };
    let axes = spec.batch.iter().copied().chain([spec.m, spec.n]).collect();
    let nest = tail::nest(
        &spec.exprs,
        &spec.args,
        spec.params,
        axes,
        (&spec.out, spec.value),
    );
    let (body, _) = entry(name, target, THREADS as u32, |e| {
        Product { spec, tile }.write(e, &nest);
    });
    Ok(GpuKernel {
        entry: name.to_string(),
        body,
        grid: [blocks, n.ceil_div(&tile.columns.into()), Dim::ONE],
        block: [THREADS as u32, 1, 1],
        cluster: [1, 1, 1],
        shared: 0,
        scratch: Dim::ZERO,
    })
}

struct Product<'a> {
    spec: &'a MatMulSpec,
    tile: Tile,
}

/// Where a block is, and what its parts need.
struct Place {
    /// The thread's number.
    thread: Val,
    /// The block's first row, and all rows.
    rows: (Val, Val),
    /// The block's first column.
    column: Val,
    /// The batch, unless every row has its own.
    fixed: Option<Vec<Val>>,
    /// Where the offset of each of the block's rows in A is; −1: no such row.
    table: Val,
    /// Where parts and sums are.
    shared: Val,
    k: Val,
}

impl Product<'_> {
    fn write(&self, e: &mut Emitter, nest: &crate::LoopNest) {
        let (spec, tile) = (self.spec, self.tile);
        let ports = Ports::declare(e, spec.args.len(), spec.params);
        let cx = ExprCx::new(&nest.exprs, ports.args, ports.params, ports.status);
        let (m, n, k) = (cx.size(e, spec.m), cx.size(e, spec.n), cx.size(e, spec.k));
        let batch: Vec<Val> = spec.batch.iter().map(|&s| cx.size(e, s)).collect();
        let thread = e.kernel_mut().thread();
        let thread = super::nest::long(e, thread);
        let (x, y) = (e.kernel_mut().block(0), e.kernel_mut().block(1));
        let (x, y) = (super::nest::long(e, x), super::nest::long(e, y));
        let rows = match spec.shared() {
            true => batch.iter().fold(m, |n, &s| e.mul(n, s)),
            false => m,
        };
        let high = e.i64(tile.rows);
        let (block, fixed) = match spec.shared() {
            true => (x, None),
            false => {
                let less = e.i64(tile.rows - 1);
                let up = e.add(m, less);
                let blocks = e.op2("arith.divui", up, high);
                let (rest, block) = divide(e, x, blocks, None);
                (block, Some(coordinates(e, rest, &batch)))
            }
        };
        let first = e.mul(block, high);
        let wide = e.i64(tile.columns);
        let column = e.mul(y, wide);
        let table = e.kernel_mut().shared(8 * tile.rows as u32, 8);
        let shared = e.kernel_mut().shared(tile.shared() as u32, 16);
        let place = Place {
            thread,
            rows: (first, rows),
            column,
            fixed,
            table: e.from_word(table, Elem::Ptr),
            shared: e.from_word(shared, Elem::Ptr),
            k,
        };
        self.fill_table(e, &cx, &place, m, &batch);
        e.kernel_mut().barrier();
        let sums = self.sums(e, &cx, &place, n);
        self.share(e, &place, &sums);
        e.kernel_mut().barrier();
        self.finish(e, nest, cx, &place, (m, n), &batch);
    }

    /// Writes down where each row of the block starts in A.
    fn fill_table(&self, e: &mut Emitter, cx: &ExprCx, p: &Place, m: Val, batch: &[Val]) {
        let high = e.i64(self.tile.rows);
        let mine = e.cmp(Cmp::Lt, p.thread, high, false);
        e.if_then(mine, |e| {
            let row = e.add(p.rows.0, p.thread);
            let exists = e.cmp(Cmp::Lt, row, p.rows.1, false);
            let at = self.row(e, p, row, m, batch);
            let zero = e.i64(0);
            let offset = (at.iter().zip(&self.spec.a)).fold(zero, |sum, (&c, &s)| {
                crate::matmul::advance(e, cx, sum, c, s)
            });
            let none = e.i64(-1);
            let offset = e.select(exists, offset, none);
            let to = e.offset(p.table, p.thread, Elem::I64);
            e.store(offset, to);
        });
    }

    /// The coordinates of a row: of each batch axis, then m.
    fn row(&self, e: &mut Emitter, p: &Place, row: Val, m: Val, batch: &[Val]) -> Vec<Val> {
        if let Some(fixed) = &p.fixed {
            return fixed.iter().copied().chain([row]).collect();
        }
        if batch.is_empty() {
            return vec![row];
        }
        let (rest, m) = divide(e, row, m, self.spec.m.as_const());
        let mut at = coordinates(e, rest, batch);
        at.push(m);
        at
    }

    /// The thread's sums, row by row.
    fn sums(&self, e: &mut Emitter, cx: &ExprCx, p: &Place, n: Val) -> Vec<Val> {
        let tile = self.tile;
        let zero = e.zero(Ty::scalar(tile.elem));
        let sums = e.variables(&vec![zero; (tile.own * tile.own) as usize]);
        let (none, one, depth) = (e.i64(0), e.i64(1), e.i64(DEPTH));
        let next = self.read(e, cx, p, n, none);
        self.keep(e, p, &next, none);
        e.kernel_mut().barrier();
        // Warps whose rows do not exist only help to read.
        let warp = e.i64(32);
        let warp = e.op2("arith.divui", p.thread, warp);
        let height = e.i64(4 * tile.own / 2);
        let skip = e.mul(warp, height);
        let lowest = e.add(p.rows.0, skip);
        let works = e.cmp(Cmp::Lt, lowest, p.rows.1, false);
        let buffer = e.variables(&[none])[0];
        e.for_loop(none, p.k, depth, &[], |e, k0, _| {
            let k1 = e.add(k0, depth);
            let next = self.read(e, cx, p, n, k1);
            e.if_then(works, |e| self.multiply(e, p, buffer, &sums));
            let other = e.sub(one, buffer);
            self.keep(e, p, &next, other);
            e.assign(&[buffer], &[other]);
            e.kernel_mut().barrier();
            vec![]
        });
        sums
    }

    /// Reads the thread's elements of the parts from `k0` on.
    fn read(&self, e: &mut Emitter, cx: &ExprCx, p: &Place, n: Val, k0: Val) -> [Vec<Val>; 2] {
        let (spec, tile) = (self.spec, self.tile);
        let rank = spec.batch.len();
        let of = |count: i64| 0..count * DEPTH / THREADS;
        let mut a = vec![];
        for j in of(tile.rows) {
            let (row, k) = self.a_place(e, p.thread, j);
            let slot = e.offset(p.table, row, Elem::I64);
            let start = e.load(slot, Ty::scalar(Elem::I64));
            let k = e.add(k0, k);
            let zero = e.i64(0);
            let (row_is, k_is) = (
                e.cmp(Cmp::Ge, start, zero, false),
                e.cmp(Cmp::Lt, k, p.k, false),
            );
            let both = e.op2("arith.andi", row_is, k_is);
            let at = crate::matmul::advance(e, cx, start, k, spec.a[rank + 1]);
            a.push(self.element(e, cx, 0, both, at));
        }
        let zero = e.i64(0);
        let base = (p.fixed.iter().flatten().zip(&spec.b_batch)).fold(zero, |sum, (&c, &s)| {
            crate::matmul::advance(e, cx, sum, c, s)
        });
        let mut b = vec![];
        for j in of(tile.columns) {
            let (column, k) = self.b_place(e, p.thread, j);
            let (column, k) = (e.add(p.column, column), e.add(k0, k));
            let (column_is, k_is) = (
                e.cmp(Cmp::Lt, column, n, false),
                e.cmp(Cmp::Lt, k, p.k, false),
            );
            let both = e.op2("arith.andi", column_is, k_is);
            let at = self.b_offset(e, cx, base, (k, column), p.k);
            b.push(self.element(e, cx, 1, both, at));
        }
        [a, b]
    }

    /// An element of A or B as sums have it.
    fn element(&self, e: &mut Emitter, cx: &ExprCx, arg: usize, exists: Val, at: Val) -> Val {
        let t = self.spec.args[arg];
        let elem = memory_elem(t);
        let from = e.offset(cx.args[arg], at, elem);
        let x = e.load_where(exists, from, Ty::scalar(elem));
        let x = widen(e, x, t);
        match x.ty.elem == self.tile.elem {
            true => x,
            false if self.tile.elem == Elem::I32 => e.cast(x, Elem::I32, is_unsigned(t), false),
            false => convert(e, x, t, self.spec.acc),
        }
    }

    /// Row and product of the thread's element `j` of a part of A: neighbours in memory
    /// are neighbouring threads'.
    fn a_place(&self, e: &mut Emitter, thread: Val, j: i64) -> (Val, Val) {
        let rank = self.spec.batch.len();
        let along_rows = self.spec.a[rank] == Size::ONE;
        let fast = if along_rows { self.tile.rows } else { DEPTH };
        let (fast, slow) = spread(e, thread, j, fast);
        if along_rows {
            (fast, slow)
        } else {
            (slow, fast)
        }
    }

    /// The same of B: column and product.
    fn b_place(&self, e: &mut Emitter, thread: Val, j: i64) -> (Val, Val) {
        let along_k = matches!(self.spec.b, Columns::Strided { row: Size::ONE, column } if column != Size::ONE);
        let fast = if along_k { DEPTH } else { self.tile.columns };
        let (fast, slow) = spread(e, thread, j, fast);
        if along_k { (slow, fast) } else { (fast, slow) }
    }

    fn b_offset(
        &self,
        e: &mut Emitter,
        cx: &ExprCx,
        base: Val,
        (k, column): (Val, Val),
        all: Val,
    ) -> Val {
        let spec = self.spec;
        let group = match (&spec.b, spec.words()) {
            (Columns::Strided { row, column: step }, _) => {
                let at = crate::matmul::advance(e, cx, base, k, *row);
                return crate::matmul::advance(e, cx, at, column, *step);
            }
            (Columns::Grouped, Some(words)) => words.group(),
            (Columns::Grouped | Columns::Packed, _) => 1,
        };
        let nr = e.i64(spec.nr);
        let panel = e.op2("arith.divui", column, nr);
        let within = e.op2("arith.remui", column, nr);
        let (less, size) = (e.i64(group - 1), e.i64(group));
        let up = e.add(all, less);
        let groups = e.op2("arith.divui", up, size);
        let (of, part) = match group {
            1 => (k, None),
            _ => (
                e.op2("arith.divui", k, size),
                Some(e.op2("arith.remui", k, size)),
            ),
        };
        let row = e.mul(panel, groups);
        let row = e.add(row, of);
        let at = e.mul(row, nr);
        let mut at = e.add(at, within);
        if let Some(part) = part {
            at = e.mul(at, size);
            at = e.add(at, part);
        }
        e.add(base, at)
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
            let to = e.offset(p.shared, at, self.tile.elem);
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
            let to = e.offset(p.shared, at, self.tile.elem);
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
        let a0 = e.offset(p.shared, at, tile.elem);
        let behind = e.i64(a_size);
        let at = e.add(start, behind);
        let at = e.add(at, column);
        let b0 = e.offset(p.shared, at, tile.elem);
        let half = (tile.own / 2) as u32;
        for k in 0..DEPTH {
            let halves = |e: &mut Emitter, base: Val, pitch: i64, all: i64| -> Vec<Val> {
                let mut xs = vec![];
                for h in 0..2 {
                    let skip = e.i64(k * pitch + h * all / 2);
                    let at = e.offset(base, skip, tile.elem);
                    xs.extend(e.load_few(at, tile.elem, half));
                }
                xs
            };
            let a = halves(e, a0, tile.pitch.0, tile.rows);
            let b = halves(e, b0, tile.pitch.1, tile.columns);
            for (i, &x) in a.iter().enumerate() {
                for (j, &y) in b.iter().enumerate() {
                    e.multiply_into(sums[i * tile.own as usize + j], x, y);
                }
            }
        }
    }

    /// Writes the thread's sums to shared memory, `[row][column]`.
    fn share(&self, e: &mut Emitter, p: &Place, sums: &[Val]) {
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
                let to = e.offset(p.shared, at, tile.elem);
                let first = (i * tile.own + h * half) as usize;
                e.store_few(&sums[first..first + half as usize], to);
            }
        }
    }

    /// The epilogue, neighbours along a row together.
    fn finish(
        &self,
        e: &mut Emitter,
        nest: &crate::LoopNest,
        cx: ExprCx,
        p: &Place,
        (m, n): (Val, Val),
        batch: &[Val],
    ) {
        let tile = self.tile;
        let run = tail::run(nest, (16 / tile.size()) as u32);
        let mut tail = tail::emitter(e, nest, cx);
        let rank = self.spec.batch.len();
        let width = tile.columns / i64::from(run);
        let (threads, all) = (e.i64(THREADS), e.i64(tile.rows * width));
        e.for_loop(p.thread, all, threads, &[], |e, i, _| {
            let width = e.i64(width);
            let r = e.op2("arith.divui", i, width);
            let c = e.op2("arith.remui", i, width);
            let step = e.i64(i64::from(run));
            let c = e.mul(c, step);
            let (row, first) = (e.add(p.rows.0, r), e.add(p.column, c));
            let row_is = e.cmp(Cmp::Lt, row, p.rows.1, false);
            let column_is = e.cmp(Cmp::Lt, first, n, false);
            let exists = e.op2("arith.andi", row_is, column_is);
            e.if_then(exists, |e| {
                let pitch = e.i64(tile.pitch.1);
                let at = e.mul(r, pitch);
                let at = e.add(at, c);
                let from = e.offset(p.shared, at, tile.elem);
                let end = e.add(first, step);
                let end = e.min(end, n, false);
                tail.cx.push();
                for (axis, c) in self.row(e, p, row, m, batch).into_iter().enumerate() {
                    tail.cx.axes[axis] = Some(c);
                }
                let sums = Some((from, tile.elem));
                vectors::neighbours(&mut tail, e, (first, end), run, sums);
                tail.cx.axes[..=rank].fill(None);
                tail.cx.pop();
            });
            vec![]
        });
    }
}

/// Element `j` of a thread among those of a part, as a fast and a slow coordinate.
fn spread(e: &mut Emitter, thread: Val, j: i64, fast: i64) -> (Val, Val) {
    let skip = e.i64(j * THREADS);
    let i = e.add(thread, skip);
    let fast = e.i64(fast);
    (e.op2("arith.remui", i, fast), e.op2("arith.divui", i, fast))
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
