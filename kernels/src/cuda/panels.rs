//! Matrices of halves in shared memory as Hopper's tensor cores read them, and how a group of
//! four warps copies them there without waiting (`cp.async`), whatever their strides.

use super::attention_rows::Rows;
use kiln_codegen::emit::Cmp;
use kiln_codegen::ptx::{B32, Reg};
use kiln_codegen::{Elem, Emitter, Ty, Val};

/// Threads of a group of four warps.
pub(super) const GROUP: i64 = 128;

/// Elements that one copy moves.
const CHUNK: i64 = 8;

const WORD: Ty = Ty::scalar(Elem::I32);

/// A matrix of halves: columns of panels as wide as the widest swizzle that divides its rows,
/// each with all rows, chunks of 16 bytes swapped as the swizzle has it.
#[derive(Clone, Copy)]
pub(super) struct Panels {
    pub rows: i64,
    /// Elements of a row, a multiple of 16, at most 256.
    pub elements: i64,
}

/// What a thread of the group copies: one chunk of every few rows.
struct Own {
    /// The first row, and from row to row.
    row: Val,
    step: Val,
    /// The chunk in its panel, and where that starts.
    chunk: Val,
    to: Val,
    /// Bytes of the chunk that exist where its row does.
    bytes: Val,
    /// The chunk's first element in its row.
    column: Val,
}

/// Rows as they lie in memory.
struct From {
    base: Val,
    /// The thread's first element, and from one of its rows to the next.
    start: Val,
    apart: Val,
    /// Rows that exist.
    left: Val,
}

impl Panels {
    /// Bytes of a panel's row: 128, 64 or 32.
    pub(super) fn width(self) -> i64 {
        let all = 2 * self.elements;
        [128, 64].into_iter().find(|w| all % w == 0).unwrap_or(32)
    }

    /// Bytes of a panel.
    fn panel(self) -> i64 {
        self.rows * self.width()
    }

    pub(super) fn bytes(self) -> i64 {
        2 * self.rows * self.elements
    }

    /// The bytes from the start to element `16·i` of the first row.
    pub(super) fn column(self, i: i64) -> i64 {
        let at = 32 * i;
        at / self.width() * self.panel() + at % self.width()
    }

    /// The bytes from the start to row `16·i`.
    pub(super) fn below(self, i: i64) -> i64 {
        16 * i * self.width()
    }

    /// A descriptor of the matrix without its address ("Matrix descriptor format", PTX ISA
    /// 9.7.15.5.1): eight rows of a panel after eight, and, where neighbours of a row are not
    /// `along_k`, panel after panel.
    pub(super) fn descriptor(self, along_k: bool) -> i64 {
        let panels = if along_k { 1 } else { self.panel() >> 4 };
        let eights = (8 * self.width()) >> 4;
        let swizzle: i64 = match self.width() {
            128 => 1,
            64 => 2,
            _ => 3,
        };
        (swizzle << 62) | (eights << 32) | (panels << 16)
    }

    /// Starts copying rows from row `first` on to shared memory; what does not exist becomes
    /// zeros.
    pub(super) fn copy(self, e: &mut Emitter, rows: &Rows, first: Val, to: Reg<B32>) {
        let own = self.own(e, rows.width, to);
        let row = e.cast(own.row, Elem::I64, true, true);
        let start = e.add(first, row);
        let start = e.mul(start, rows.step);
        let step = e.cast(own.step, Elem::I64, true, true);
        let (zero, all) = (e.i64(0), e.i64(self.rows));
        let left = e.sub(rows.count, first);
        let left = e.min(left, all, false);
        let left = e.max(left, zero, false);
        let from = From {
            base: rows.base,
            start: e.add(start, own.column),
            apart: e.mul(step, rows.step),
            left: e.cast(left, Elem::I32, false, false),
        };
        e.either(
            rows.aligned,
            &[],
            &mut (),
            |e, ()| {
                self.copy_rows(e, &own, &from, chunk);
                vec![]
            },
            |e, ()| {
                self.copy_rows(e, &own, &from, elements);
                vec![]
            },
        );
    }

    fn own(self, e: &mut Emitter, width: i64, to: Reg<B32>) -> Own {
        let word = |e: &mut Emitter, n: i64| e.int(WORD, n);
        let chunks = self.elements / CHUNK;
        let thread = e.kernel_mut().thread();
        let thread = e.from_word(thread, Elem::I32);
        let (by, many, step) = (word(e, chunks), word(e, self.rows), word(e, GROUP / chunks));
        let row = e.op2("arith.divui", thread, by);
        // Threads that are too many have no row.
        let real = e.cmp(Cmp::Lt, row, step, false);
        let row = e.select(real, row, many);
        let c = e.op2("arith.remui", thread, by);
        let (per, size) = (word(e, self.width() / 16), word(e, self.panel()));
        let panel = e.op2("arith.divui", c, per);
        let chunk = e.op2("arith.remui", c, per);
        let skip = e.mul(panel, size);
        let to = e.from_word(to, Elem::I32);
        let to = e.add(to, skip);
        let (sixteen, width, none) = (word(e, 16), word(e, 2 * width), word(e, 0));
        let at = e.mul(c, sixteen);
        let bytes = e.sub(width, at);
        let bytes = e.min(bytes, sixteen, false);
        let bytes = e.max(bytes, none, false);
        let (c, eight) = (e.cast(c, Elem::I64, true, true), e.i64(CHUNK));
        Own {
            row,
            step,
            chunk,
            to,
            bytes,
            column: e.mul(c, eight),
        }
    }

    /// Copies the thread's rows, each by `one` from an element to an address, so many bytes.
    fn copy_rows(
        self,
        e: &mut Emitter,
        own: &Own,
        from: &From,
        one: impl FnOnce(&mut Emitter, (Val, Val), Reg<B32>, Val),
    ) {
        let many = e.int(WORD, self.rows);
        e.for_loop(own.row, many, own.step, &[from.start], |e, r, at| {
            let exists = e.cmp(Cmp::Lt, r, from.left, false);
            let none = e.int(WORD, 0);
            let bytes = e.select(exists, own.bytes, none);
            let to = self.place(e, own, r);
            one(e, (from.base, at[0]), to, bytes);
            vec![e.add(at[0], from.apart)]
        });
    }

    /// Where the thread's chunk of a row lies.
    fn place(self, e: &mut Emitter, own: &Own, r: Val) -> Reg<B32> {
        let (width, mask) = (
            e.int(WORD, self.width()),
            e.int(WORD, self.width() / 16 - 1),
        );
        let (seven, four) = (e.int(WORD, 7), e.int(WORD, 4));
        let at = e.mul(r, width);
        let turn = e.op2("arith.shrui", at, seven);
        let turn = e.op2("arith.andi", turn, mask);
        let c = e.op2("arith.xori", own.chunk, turn);
        let c = e.op2("arith.shli", c, four);
        let at = e.add(at, c);
        let at = e.add(at, own.to);
        e.word(at)
    }
}

/// A chunk at once.
fn chunk(e: &mut Emitter, (base, at): (Val, Val), to: Reg<B32>, bytes: Val) {
    let (none, zero) = (e.int(WORD, 0), e.i64(0));
    // Where nothing is read the address must still be one.
    let some = e.cmp(Cmp::Gt, bytes, none, false);
    let at = e.select(some, at, zero);
    let from = e.offset(base, at, Elem::I16);
    let (from, bytes) = (e.long(from), e.word(bytes));
    e.kernel_mut().copy_async(to, 0, from, bytes);
}

/// A chunk element by element.
fn elements(e: &mut Emitter, (base, at): (Val, Val), to: Reg<B32>, bytes: Val) {
    let (zero, one, eight) = (e.i64(0), e.i64(1), e.i64(CHUNK));
    let bytes = e.cast(bytes, Elem::I64, true, true);
    let there = e.op2("arith.shrui", bytes, one);
    let to = e.from_word(to, Elem::Ptr);
    e.for_loop(zero, eight, one, &[], |e, i, _| {
        let exists = e.cmp(Cmp::Lt, i, there, false);
        let from = e.add(at, i);
        let from = e.offset(base, from, Elem::I16);
        let x = e.load_where(exists, from, Ty::scalar(Elem::I16));
        let to = e.offset(to, i, Elem::I16);
        e.store(x, to);
        vec![]
    });
}
