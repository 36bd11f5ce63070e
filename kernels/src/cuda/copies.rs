//! Parts of two matrices, with neighbours along k together, on their way to shared memory
//! without waiting (`cp.async`).
//!
//! A part has rows of a few chunks of 16 bytes. They are swapped so that eight
//! neighbouring rows, which an instruction reads at one chunk, lie on all banks: in rows of
//! 128 bytes chunk `c` of row `r` lies at `c ^ (r % 8)`, which is also what tensor cores of
//! Hopper call a swizzle of 128 bytes; in rows of 64, of which two fill the banks, at
//! `c ^ (r / 2 % 4)`.

use super::block::Place;
use super::gemm::Source;
use crate::lower::ExprCx;
use crate::matmul::{Columns, MatMulSpec};
use kiln_codegen::emit::Cmp;
use kiln_codegen::ptx::Sum;
use kiln_codegen::{Elem, Emitter, Ty, Val};

/// Bytes of a chunk.
pub(super) const CHUNK: i64 = 16;

/// How a part is copied and lies.
#[derive(Clone, Copy)]
pub(super) struct Layout {
    /// Threads of a block, which copy a chunk each in turn.
    pub threads: i64,
    /// Chunks of a row: 4 or 8.
    pub chunks: i64,
    /// Bytes of an element: 1, 2 or 4.
    pub size: i64,
}

/// The integer that the bits of an element of so many bytes are.
pub(super) fn bits_elem(size: i64) -> Elem {
    match size {
        1 => Elem::I8,
        2 => Elem::I16,
        _ => Elem::I32,
    }
}

impl Layout {
    /// Of rows of so many bytes of these factors.
    pub fn of<T: Sum>(of: T::Factors, threads: i64, row: i64) -> Layout {
        Layout {
            threads,
            chunks: row / CHUNK,
            size: i64::from(T::factor_bits(of) / 8),
        }
    }

    /// Elements of a row.
    pub fn depth(self) -> i64 {
        self.chunks * CHUNK / self.size
    }
}

/// Rows of one side that a thread copies chunks of: of every few rows the same chunk.
pub(super) struct Rows {
    /// The thread's chunks of the first part; of a row that does not exist those of the first
    /// one, as nobody stores what comes of them.
    chunks: Vec<Val>,
    /// Whether every row starts at a multiple of 16 bytes.
    aligned: Val,
    /// Bytes from a part's start to this side.
    skip: i64,
}

/// The byte of a side's part at which chunk `c` of row `r` lies.
pub(super) fn place(e: &mut Emitter, layout: Layout, r: Val, c: Val) -> Val {
    let (row, sixteen, chunks) = (e.i64(16 * layout.chunks), e.i64(16), e.i64(layout.chunks));
    // Rows that share the banks.
    let share = e.i64(8 / layout.chunks);
    let turn = e.op2("arith.divui", r, share);
    let turn = e.op2("arith.remui", turn, chunks);
    let c = e.op2("arith.xori", c, turn);
    let at = e.mul(r, row);
    let skip = e.mul(c, sixteen);
    e.add(at, skip)
}

/// Rows from one of the thread's chunks to the next: their chunks are swapped alike.
fn apart(layout: Layout) -> i64 {
    let rows = layout.threads / layout.chunks;
    debug_assert_eq!(rows % 8, 0);
    rows
}

/// Row (of a part) and chunk of the thread's first copy.
fn chunk(e: &mut Emitter, layout: Layout, thread: Val) -> (Val, Val) {
    let chunks = e.i64(layout.chunks);
    let row = e.op2("arith.divui", thread, chunks);
    (row, e.op2("arith.remui", thread, chunks))
}

/// The thread's rows of A and of B: how many rows a part of each has, and where it lies.
pub(super) fn sides(
    e: &mut Emitter,
    cx: &ExprCx,
    spec: &MatMulSpec,
    layout: Layout,
    p: &Place,
    [a, b]: [(i64, i64); 2],
) -> [Rows; 2] {
    let rows = left(e, cx, spec, layout, p, a);
    let mut strides: Vec<Val> = spec.b_batch.iter().map(|&s| cx.size(e, s)).collect();
    if let Columns::Strided { column, .. } = spec.b {
        strides.push(cx.size(e, column));
    }
    let columns = self::rows(e, cx.args[1], &strides, layout, p, b, |e, column| {
        let column = e.add(p.columns.0, column);
        let exists = e.cmp(Cmp::Lt, column, p.columns.1, false);
        let zero = e.i64(0);
        (spec.b(e, cx, p.batch, zero, column), exists)
    });
    [rows, columns]
}

/// The thread's rows of A: how many rows a part has, and where it lies.
pub(super) fn left(
    e: &mut Emitter,
    cx: &ExprCx,
    spec: &MatMulSpec,
    layout: Layout,
    p: &Place,
    a: (i64, i64),
) -> Rows {
    let rank = spec.batch.len();
    let strides: Vec<Val> = spec.a[..=rank].iter().map(|&s| cx.size(e, s)).collect();
    rows(e, cx.args[0], &strides, layout, p, a, |e, row| {
        let row = e.add(p.rows.0, row);
        let exists = e.cmp(Cmp::Lt, row, p.rows.1, false);
        (spec.row(e, cx, p.batch, row)[0], exists)
    })
}

/// Whether what starts at these addresses, with elements of `size` bytes and these
/// distances between rows, has every row at a multiple of 16 bytes.
pub(super) fn aligned(e: &mut Emitter, bases: &[Val], strides: &[Val], size: i64) -> Val {
    let mut bits = e.i64(0);
    for &base in bases {
        let r = e.long(base);
        let address = e.from_long(r, Elem::I64);
        bits = e.op2("arith.ori", bits, address);
    }
    for &s in strides {
        let size = e.i64(size);
        let bytes = e.mul(s, size);
        bits = e.op2("arith.ori", bits, bytes);
    }
    let (mask, zero) = (e.i64(CHUNK - 1), e.i64(0));
    let low = e.op2("arith.andi", bits, mask);
    e.cmp(Cmp::Eq, low, zero, false)
}

/// Moves on to the next stage of a ring, of `size` bytes each, after the last one to the
/// first, at 0.
pub(super) fn turn(e: &mut Emitter, stages: &[Val], (size, last): (Val, Val)) {
    let zero = e.i64(0);
    let turned: Vec<Val> = stages
        .iter()
        .map(|&s| {
            let up = e.add(s, size);
            let over = e.cmp(Cmp::Gt, up, last, false);
            e.select(over, zero, up)
        })
        .collect();
    e.assign(stages, &turned);
}

fn rows(
    e: &mut Emitter,
    base: Val,
    strides: &[Val],
    layout: Layout,
    p: &Place,
    (many, skip): (i64, i64),
    mut row: impl FnMut(&mut Emitter, Val) -> (Val, Val),
) -> Rows {
    let aligned = aligned(e, &[base], strides, layout.size);
    let (first, c) = chunk(e, layout, p.thread);
    let (zero, each) = (e.i64(0), e.i64(CHUNK / layout.size));
    let within = e.mul(c, each);
    let apart = apart(layout);
    let chunks = (0..many / apart)
        .map(|j| {
            let skip = e.i64(j * apart);
            let r = e.add(first, skip);
            let (at, exists) = row(e, r);
            let at = e.select(exists, at, zero);
            let at = e.add(at, within);
            e.offset(base, at, bits_elem(layout.size))
        })
        .collect();
    Rows {
        chunks,
        aligned,
        skip,
    }
}

/// Starts copying a side's part from product `k0` on, at most a few parts behind the last
/// one, to the stage that starts at this byte of shared memory; products that do not exist
/// become zeros.
pub(super) fn copy(
    e: &mut Emitter,
    layout: Layout,
    (p, shared): (&Place, Val),
    side: &Rows,
    k0: Val,
    stage: Val,
) {
    let (many, elem) = (CHUNK / layout.size, bits_elem(layout.size));
    let (row, c) = chunk(e, layout, p.thread);
    let (each, none) = (e.i64(many), e.int(Ty::scalar(Elem::I32), 0));
    let within = e.mul(c, each);
    // Elements of the chunks that exist.
    let k = e.add(k0, within);
    let left = e.sub(p.k, k);
    let left = e.min(left, each, false);
    let left = e.cast(left, Elem::I32, false, false);
    let left = e.max(left, none, false);
    // Where nothing is read the address must still be one: the row's first.
    let some = e.cmp(Cmp::Gt, left, none, false);
    let zero = e.i64(0);
    let first = e.sub(zero, within);
    let along = e.select(some, k0, first);
    let size = e.i64(layout.size);
    let along = e.mul(along, size);
    let to = place(e, layout, row, c);
    let to = e.add(to, stage);
    let skip = e.i64(side.skip);
    let to = e.add(to, skip);
    let to = e.offset(shared, to, Elem::I8);
    let apart = apart(layout) * layout.chunks * CHUNK;
    let chunks = (0..).zip(&side.chunks);
    e.either(
        side.aligned,
        &[],
        &mut (),
        |e, ()| {
            let size = e.int(Ty::scalar(Elem::I32), layout.size);
            let bytes = e.mul(left, size);
            let (to, bytes) = (e.word(to), e.word(bytes));
            for (j, &chunk) in chunks.clone() {
                let from = e.offset(chunk, along, Elem::I8);
                let from = e.long(from);
                e.kernel_mut().copy_async(to, j * apart, from, bytes);
            }
            vec![]
        },
        |e, ()| {
            let left = e.cast(left, Elem::I64, true, true);
            for (j, &chunk) in chunks.clone() {
                let from = e.offset(chunk, along, Elem::I8);
                let skip = e.i64(j * apart);
                let to = e.offset(to, skip, Elem::I8);
                one_by_one(e, elem, (from, to), left, many);
            }
            vec![]
        },
    );
}

/// Copies a chunk's elements, of which so many exist.
fn one_by_one(e: &mut Emitter, elem: Elem, (from, to): (Val, Val), left: Val, many: i64) {
    let (zero, one, many) = (e.i64(0), e.i64(1), e.i64(many));
    e.for_loop(zero, many, one, &[], |e, i, _| {
        let there = e.cmp(Cmp::Lt, i, left, false);
        let from = e.offset(from, i, elem);
        let x = e.load_where(there, from, Ty::scalar(elem));
        let to = e.offset(to, i, elem);
        e.store(x, to);
        vec![]
    });
}
