//! Contractions on tensor cores by `mma.sync`: of bf16 with sums in f32, of bytes with
//! sums in i32.
//!
//! A word of 32 bits holds two bf16 or four bytes that are neighbours along k, in A as it
//! lies and in B as it is packed, and the instructions' fragments are the same in words:
//! so one kernel serves both. A block of 256 threads computes 128 × 128 sums, a warp 64 ×
//! 32. Parts of [`DEPTH`] words are read into registers while the parts before them are
//! multiplied, and go to shared memory (two parts, one barrier each), whose rows start on
//! other banks: A's fragments come by `ldmatrix`, B's by plain loads. The epilogue reads
//! the sums from shared memory.

use super::GpuKernel;
use super::block::{self, Place, Shape, Sums};
use super::gemm::Source;
use super::nest::long;
use crate::LoopNest;
use crate::lower::ExprCx;
use crate::matmul::{Columns, MatMulSpec, Words};
use kiln_codegen::emit::Cmp;
use kiln_codegen::ptx::{B32, Byte, F32, Half, Reg, Space};
use kiln_codegen::{Elem, Emitter, GpuTarget, Ty, Val};
use kiln_ir::DType;

/// Threads of a block: 2 × 4 warps.
const THREADS: i64 = 256;

/// Rows and columns of a block.
const ROWS: i64 = 128;
const COLUMNS: i64 = 128;

/// Rows and columns of a warp.
const WARP_ROWS: i64 = 64;
const WARP_COLUMNS: i64 = 32;

/// Words along k between two barriers.
const DEPTH: i64 = 16;

/// Words between rows of A in shared memory, of B, and of sums.
const A_PITCH: i64 = DEPTH + 4;
const B_PITCH: i64 = COLUMNS + 8;
const SUM_PITCH: i64 = COLUMNS + 4;

/// Words of a part of A, and of one of B.
const A_PART: i64 = ROWS * A_PITCH;
const B_PART: i64 = DEPTH * B_PITCH;

/// Words that an instruction multiplies along k.
const STEP: i64 = 8;

/// Words that one access moves.
const CHUNK: i64 = 4;

/// The contraction's words, if tensor cores serve it.
pub(super) fn serves(spec: &MatMulSpec) -> Option<Words> {
    match spec.b {
        Columns::Grouped => spec.words(),
        Columns::Packed | Columns::Strided { .. } | Columns::Blocks(_) => None,
    }
}

pub(super) fn emit(
    spec: &MatMulSpec,
    words: Words,
    nest: &LoopNest,
    name: &str,
    target: &GpuTarget,
) -> GpuKernel {
    let shape = Shape {
        rows: ROWS,
        columns: COLUMNS,
        threads: THREADS,
    };
    let parts = 2 * (A_PART + B_PART);
    let shared = 4 * parts.max(ROWS * SUM_PITCH);
    block::kernel((name, target), spec, nest, shape, shared, |e, cx, p| {
        let shared = e.kernel_mut().dynamic_shared();
        let aligned = aligned(e, cx, spec, words, p.k);
        let product = Product {
            words,
            shared: e.from_word(shared, Elem::Ptr),
            aligned,
            starts: starts(e, cx, spec, p),
            columns: columns(e, cx, spec, words, p),
            nr: spec.nr,
        };
        let sums = product.sums(e, cx, p);
        product.share(e, p, &sums)
    })
}

struct Product {
    words: Words,
    shared: Val,
    /// Whether rows of A start at multiples of 16 bytes and hold whole chunks.
    aligned: Val,
    /// The starts in A of the thread's rows; of one that does not exist the last one's.
    starts: Vec<Val>,
    /// Where the thread's columns of B start.
    columns: Val,
    /// Words between neighbours along k.
    nr: i64,
}

/// A warp's sums: by 16 rows, then 8 columns.
enum Own {
    Floats(Vec<[Reg<F32>; 4]>),
    Ints(Vec<[Reg<B32>; 4]>),
}

impl Product {
    /// Elements of a word.
    fn group(&self) -> i64 {
        self.words.group()
    }

    fn a_elem(&self) -> Elem {
        a_elem(self.words)
    }

    /// The thread's words of the parts from product `k0` on, chunk by chunk.
    fn read(&self, e: &mut Emitter, cx: &ExprCx, p: &Place, k0: Val) -> [Vec<Val>; 2] {
        let word = Ty::scalar(Elem::I32);
        let group = e.i64(self.group());
        let mut a = vec![];
        for (j, &start) in (0..).zip(&self.starts) {
            let (_, chunk) = a_chunk(e, p.thread, j);
            let four = e.i64(CHUNK);
            let at = e.mul(chunk, four);
            let at = e.mul(at, group);
            let k = e.add(k0, at);
            let exists = e.cmp(Cmp::Lt, k, p.k, false);
            let from = e.add(start, k);
            let words = e.either(
                self.aligned,
                &[word; CHUNK as usize],
                &mut (),
                |e, ()| {
                    let from = e.offset(cx.args[0], from, self.a_elem());
                    load_chunk(e, from, exists)
                },
                |e, ()| words_apart(e, (cx.args[0], self.a_elem()), (from, k, p.k)),
            );
            a.extend(words);
        }
        let mut b = vec![];
        let nr = e.i64(self.nr);
        for j in 0..B_CHUNKS {
            let (word, _) = b_chunk(e, p.thread, j);
            let at = e.mul(word, group);
            let k = e.add(k0, at);
            let exists = e.cmp(Cmp::Lt, k, p.k, false);
            let word = e.op2("arith.divui", k, group);
            let at = e.mul(word, nr);
            let from = e.offset(self.columns, at, Elem::I32);
            b.extend(load_chunk(e, from, exists));
        }
        [a, b]
    }

    /// Writes what was read to shared memory.
    fn keep(&self, e: &mut Emitter, p: &Place, read: &[Vec<Val>; 2], buffer: Val) {
        for (j, words) in (0..).zip(read[0].chunks(CHUNK as usize)) {
            let (row, chunk) = a_chunk(e, p.thread, j);
            put_chunk(e, buffer, (row, A_PITCH), chunk, words);
        }
        let behind = e.i64(A_PART);
        let start = e.offset(buffer, behind, Elem::I32);
        for (j, words) in (0..).zip(read[1].chunks(CHUNK as usize)) {
            let (row, chunk) = b_chunk(e, p.thread, j);
            put_chunk(e, start, (row, B_PITCH), chunk, words);
        }
    }

    fn sums(&self, e: &mut Emitter, cx: &ExprCx, p: &Place) -> Own {
        let tiles = (WARP_ROWS / 16 * WARP_COLUMNS / 8) as usize;
        let sums = match self.words {
            Words::Pairs => Own::Floats(
                (0..tiles)
                    .map(|_| std::array::from_fn(|_| e.kernel_mut().mov(0.0f32)))
                    .collect(),
            ),
            Words::Bytes(_) => Own::Ints(
                (0..tiles)
                    .map(|_| std::array::from_fn(|_| e.kernel_mut().mov(0i32)))
                    .collect(),
            ),
        };
        let (none, depth) = (e.i64(0), e.i64(DEPTH * self.group()));
        let (row, _) = corner(e, p.thread);
        let lowest = e.add(p.rows.0, row);
        // Warps whose rows do not exist only help to read.
        let works = e.cmp(Cmp::Lt, lowest, p.rows.1, false);
        let part = e.i64(A_PART + B_PART);
        let second = e.offset(self.shared, part, Elem::I32);
        let both = e.add(self.shared, second);
        let buffer = e.variables(&[self.shared])[0];
        // The turn before the first product only reads, so that the text reads once.
        let before = e.i64(-DEPTH * self.group());
        e.for_loop(before, p.k, depth, &[], |e, k0, _| {
            let k1 = e.add(k0, depth);
            let next = self.read(e, cx, p, k1);
            let begun = e.cmp(Cmp::Ge, k0, none, false);
            let multiplies = e.op2("arith.andi", works, begun);
            e.if_then(multiplies, |e| self.multiply(e, p, buffer, &sums));
            let other = e.sub(both, buffer);
            self.keep(e, p, &next, other);
            e.assign(&[buffer], &[other]);
            e.kernel_mut().barrier();
            vec![]
        });
        sums
    }

    /// Adds the products of the parts in a buffer to the warp's sums.
    fn multiply(&self, e: &mut Emitter, p: &Place, buffer: Val, sums: &Own) {
        let (row, column) = corner(e, p.thread);
        let lane = lane(e);
        // Lane `l` gives row `l % 16` of 16, at its first or second four words.
        let (sixteen, four) = (e.i64(16), e.i64(CHUNK));
        let in_rows = e.op2("arith.remui", lane, sixteen);
        let half = e.op2("arith.divui", lane, sixteen);
        let r = e.add(row, in_rows);
        let pitch = e.i64(A_PITCH);
        let at = e.mul(r, pitch);
        let skip = e.mul(half, four);
        let at = e.add(at, skip);
        let a0 = e.offset(buffer, at, Elem::I32);
        let a0 = e.word(a0);
        // And has word `l % 4` of column `l / 4` of 8.
        let t = e.op2("arith.remui", lane, four);
        let g = e.op2("arith.divui", lane, four);
        let pitch = e.i64(B_PITCH);
        let at = e.mul(t, pitch);
        let at = e.add(at, g);
        let at = e.add(at, column);
        let behind = e.i64(A_PART);
        let at = e.add(at, behind);
        let b0 = e.offset(buffer, at, Elem::I32);
        let b0 = e.word(b0);
        let k = e.kernel_mut();
        for step in 0..DEPTH / STEP {
            let b: Vec<[Reg<B32>; 2]> = (0..WARP_COLUMNS / 8)
                .map(|j| {
                    [0, CHUNK].map(|half| {
                        let skip = 4 * ((step * STEP + half) * B_PITCH + 8 * j);
                        k.load::<B32, B32>(Space::Shared, b0, skip, 1)[0]
                    })
                })
                .collect();
            for i in 0..WARP_ROWS / 16 {
                let a = k.load_matrices(a0, 4 * (16 * i * A_PITCH + step * STEP));
                for (j, &b) in b.iter().enumerate() {
                    let at = (i * WARP_COLUMNS / 8) as usize + j;
                    match (sums, self.words) {
                        (Own::Floats(s), _) => k.multiply(Half::Bf16, s[at], a, b),
                        (Own::Ints(s), Words::Bytes(signs)) => {
                            let types = (byte(signs.a), byte(signs.b));
                            k.multiply(types, s[at], a, b);
                        }
                        (Own::Ints(_), Words::Pairs) => unreachable!("pairs have floats' sums"),
                    }
                }
            }
        }
    }

    /// Writes the warp's sums to shared memory.
    fn share(&self, e: &mut Emitter, p: &Place, sums: &Own) -> Sums {
        let shown = Sums {
            at: self.shared,
            pitch: SUM_PITCH,
            elem: match self.words {
                Words::Bytes(_) => Elem::I32,
                Words::Pairs => Elem::F32,
            },
        };
        let corner = corner(e, p.thread);
        let to = block::fragment(e, shown, corner);
        let k = e.kernel_mut();
        for i in 0..WARP_ROWS / 16 {
            for j in 0..WARP_COLUMNS / 8 {
                let at = (i * WARP_COLUMNS / 8 + j) as usize;
                for half in 0..2 {
                    let skip = 4 * ((16 * i + 8 * half) * SUM_PITCH + 8 * j);
                    let h = 2 * half as usize;
                    match sums {
                        Own::Floats(s) => k.store(Space::Shared, to, skip, &s[at][h..h + 2]),
                        Own::Ints(s) => k.store(Space::Shared, to, skip, &s[at][h..h + 2]),
                    }
                }
            }
        }
        shown
    }
}

/// Chunks of a part of A that a thread reads, and of one of B.
const A_CHUNKS: i64 = ROWS * DEPTH / CHUNK / THREADS;
const B_CHUNKS: i64 = DEPTH * COLUMNS / CHUNK / THREADS;

/// Row and chunk of the thread's chunk `j` of a part of A.
fn a_chunk(e: &mut Emitter, thread: Val, j: i64) -> (Val, Val) {
    let per_row = e.i64(DEPTH / CHUNK);
    let row = e.op2("arith.divui", thread, per_row);
    let skip = e.i64(j * THREADS * CHUNK / DEPTH);
    (e.add(row, skip), e.op2("arith.remui", thread, per_row))
}

/// Product (in words) and chunk of columns of the thread's chunk `j` of a part of B.
fn b_chunk(e: &mut Emitter, thread: Val, j: i64) -> (Val, Val) {
    let per_row = e.i64(COLUMNS / CHUNK);
    let row = e.op2("arith.divui", thread, per_row);
    let skip = e.i64(j * THREADS * CHUNK / COLUMNS);
    (e.add(row, skip), e.op2("arith.remui", thread, per_row))
}

/// The starts in A of the thread's rows.
fn starts(e: &mut Emitter, cx: &ExprCx, spec: &MatMulSpec, p: &Place) -> Vec<Val> {
    (0..A_CHUNKS)
        .map(|j| {
            let (row, _) = a_chunk(e, p.thread, j);
            let row = e.add(p.rows.0, row);
            let row = block::existing(e, row, p.rows.1);
            spec.row(e, cx, p.batch, row)[0]
        })
        .collect()
}

/// Words of `group` elements along k.
pub(super) fn deep(e: &mut Emitter, group: i64, k: Val) -> Val {
    let (less, group) = (e.i64(group - 1), e.i64(group));
    let up = e.add(k, less);
    e.op2("arith.divui", up, group)
}

/// Where the first word along k of the thread's chunk of columns is, the same of all of its
/// chunks of B; of one that does not exist the block's first.
fn columns(e: &mut Emitter, cx: &ExprCx, spec: &MatMulSpec, words: Words, p: &Place) -> Val {
    let (zero, four, nr) = (e.i64(0), e.i64(CHUNK), e.i64(spec.nr));
    let (_, chunk) = b_chunk(e, p.thread, 0);
    let column = e.mul(chunk, four);
    let column = e.add(p.columns.0, column);
    let exists = e.cmp(Cmp::Lt, column, p.columns.1, false);
    let column = e.select(exists, column, p.columns.0);
    let batch = match spec.shared() {
        true => zero,
        // The offset of the batch's first element.
        false => spec.b(e, cx, p.batch, zero, zero),
    };
    let base = e.offset(cx.args[1], batch, a_elem(words));
    // A chunk lies in one panel, whose columns beyond the last are zeros.
    let panel = e.op2("arith.divui", column, nr);
    let within = e.op2("arith.remui", column, nr);
    let deep = deep(e, words.group(), p.k);
    let row = e.mul(panel, deep);
    let at = e.mul(row, nr);
    let at = e.add(at, within);
    e.offset(base, at, Elem::I32)
}

/// The integer that an element of A's bits are.
fn a_elem(words: Words) -> Elem {
    match words {
        Words::Bytes(_) => Elem::I8,
        Words::Pairs => Elem::I16,
    }
}

/// Whether all that A's rows start at is a multiple of 16 bytes.
fn aligned(e: &mut Emitter, cx: &ExprCx, spec: &MatMulSpec, words: Words, k: Val) -> Val {
    let size = e.i64(i64::from(a_elem(words).bits() / 8));
    let r = e.long(cx.args[0]);
    let mut bits = e.from_long(r, Elem::I64);
    let rank = spec.batch.len();
    let strides: Vec<Val> = spec.a[..=rank].iter().map(|&s| cx.size(e, s)).collect();
    for x in strides.into_iter().chain([k]) {
        let bytes = e.mul(x, size);
        bits = e.op2("arith.ori", bits, bytes);
    }
    let (mask, zero) = (e.i64(15), e.i64(0));
    let low = e.op2("arith.andi", bits, mask);
    e.cmp(Cmp::Eq, low, zero, false)
}

/// A chunk of words element by element: `from` in memory, from product `k` of `all` on;
/// zeros beyond the last.
pub(super) fn words_apart(
    e: &mut Emitter,
    (base, elem): (Val, Elem),
    (from, k, all): (Val, Val, Val),
) -> Vec<Val> {
    let bits = i64::from(elem.bits());
    let (none, one, group) = (e.i64(0), e.i64(1), e.i64(32 / bits));
    let zero = e.int(Ty::scalar(Elem::I32), 0);
    // In a loop: all elements at once take many registers.
    e.for_loop(
        none,
        group,
        one,
        &[zero; CHUNK as usize],
        |e, part, words| {
            let by = e.i64(bits);
            let by = e.mul(part, by);
            (0..)
                .zip(words)
                .map(|(w, &word)| {
                    let skip = e.i64(w * (32 / bits));
                    let skip = e.add(skip, part);
                    let at = e.add(k, skip);
                    let there = e.cmp(Cmp::Lt, at, all, false);
                    let at = e.add(from, skip);
                    let at = e.offset(base, at, elem);
                    let x = e.load_where(there, at, Ty::scalar(elem));
                    let x = e.cast(x, Elem::I32, true, true);
                    let x = e.op2("arith.shli", x, by);
                    e.op2("arith.ori", word, x)
                })
                .collect()
        },
    )
}

pub(super) fn byte(t: DType) -> Byte {
    match t {
        DType::U8 => Byte::Unsigned,
        _ => Byte::Signed,
    }
}

fn lane(e: &mut Emitter) -> Val {
    let lane = e.kernel_mut().lane();
    long(e, lane)
}

/// The first row and column of the thread's warp in the block.
fn corner(e: &mut Emitter, thread: Val) -> (Val, Val) {
    let (size, across) = (e.i64(32), e.i64(COLUMNS / WARP_COLUMNS));
    let warp = e.op2("arith.divui", thread, size);
    let (rows, columns) = (e.i64(WARP_ROWS), e.i64(WARP_COLUMNS));
    let row = e.op2("arith.divui", warp, across);
    let column = e.op2("arith.remui", warp, across);
    (e.mul(row, rows), e.mul(column, columns))
}

/// A chunk of words where it exists; zeros elsewhere.
fn load_chunk(e: &mut Emitter, from: Val, exists: Val) -> Vec<Val> {
    let (p, at) = (e.pred(exists), e.long(from));
    let k = e.kernel_mut();
    let to: Vec<Reg<B32>> = (0..CHUNK).map(|_| k.mov(0i32)).collect();
    k.guarded(p, |k| k.load_to(Space::Global, at, 0, &to));
    to.into_iter().map(|r| e.from_word(r, Elem::I32)).collect()
}

fn put_chunk(e: &mut Emitter, start: Val, (row, pitch): (Val, i64), chunk: Val, words: &[Val]) {
    let (pitch, four) = (e.i64(pitch), e.i64(CHUNK));
    let at = e.mul(row, pitch);
    let skip = e.mul(chunk, four);
    let at = e.add(at, skip);
    let to = e.offset(start, at, Elem::I32);
    e.store_few(words, to);
}
