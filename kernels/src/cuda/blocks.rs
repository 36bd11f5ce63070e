//! Weights of a few bits, quantized in blocks: from bytes to what is multiplied, in
//! registers.
//!
//! ```text
//! word of eight q of 4 bits     q7 q6 q5 q4 q3 q2 q1 q0
//! two neighbours' bytes apart   .. q1    .. q0              (prmt with the word down by 4)
//! as halves 1024 + q            64 q1    64 q0              (and, or)
//! minus (1024 + zero), times the scale                      (two fma, each rounded once)
//! ```
//! The first difference is exact, so that the product is rounded as the meaning of a weight
//! says ([`Blocks`]). bf16 has 128 + q; eight bits do not fit behind it, and go by f32, as
//! scales of another type than A's do.
//!
//! `blocks_thin.rs` has the products of few rows, `blocks_wide.rs` and, on Hopper,
//! `blocks_groups.rs` those of many, `blocks_lanes.rs` those of few rows in f32; other
//! products go element by element (`blocks_element.rs`).

use super::block::Place;
use super::blocks_element::element;
use super::{GpuKernel, Unit, blocks_groups, blocks_lanes, blocks_thin, blocks_wide, gemm};
use crate::LoopNest;
use crate::Size;
use crate::lower::{ExprCx, memory_elem, widen};
use crate::matmul::{Blocks, Columns, MatMulSpec};
use kiln_codegen::emit::Cmp;
use kiln_codegen::ptx::{B32, B64, F32, Half, Pred, Reg, Space};
use kiln_codegen::{Elem, Emitter, GpuTarget, Val};
use kiln_ir::DType;

/// Elements of a column that a lane reads at once: they share a scale.
pub(super) const RUN: i64 = 32;

/// 2²³ as f32: its last bits count ones.
const ONES: i32 = 0x4b00_0000;

/// The forms of a product with quantized blocks, or none: B is something else.
pub(super) fn emit(
    spec: &MatMulSpec,
    nest: &LoopNest,
    name: &str,
    target: &GpuTarget,
) -> Option<Vec<GpuKernel>> {
    let Columns::Blocks(blocks) = &spec.b else {
        return None;
    };
    let runs = blocks.aligned && blocks.size % RUN == 0 && spec.a.last() == Some(&Size::ONE);
    let half = match spec.args[0] {
        DType::F16 => Some(Half::F16),
        DType::BF16 => Some(Half::Bf16),
        _ => None,
    };
    let mut forms = match half {
        Some(half) if runs => blocks_thin::emit(spec, half, nest, name, target),
        None if runs => (blocks_lanes::emit(spec, nest, name, target).into_iter()).collect(),
        _ => vec![],
    };
    if forms.last().is_some_and(|k| k.when.is_empty()) {
        return Some(forms);
    }
    match half {
        Some(half) if runs && target.is_hopper() => {
            forms.extend(blocks_groups::emit(spec, half, nest, name, target));
        }
        Some(half) if runs => forms.push(GpuKernel {
            unit: Unit::Mma,
            ..blocks_wide::emit(spec, half, nest, name, target)
        }),
        _ => forms.push(gemm::emit(spec, nest, name, target)),
    }
    Some(forms)
}

/// How the numbers of a weight become what is multiplied.
#[derive(Clone, Copy, PartialEq)]
enum Way {
    /// In halves.
    Halves(Half),
    /// In f32, then rounded to halves if those are asked for.
    Singles,
}

/// Reads columns of B.
pub(super) struct Weights<'a> {
    spec: &'a MatMulSpec,
    blocks: &'a Blocks,
    way: Way,
}

/// A column.
pub(super) struct Column {
    /// Its first byte, and its first scale.
    data: Val,
    scales: Val,
    exists: Val,
}

/// A column's numbers of one run, as they lie, with what they mean.
#[derive(Clone)]
pub(super) struct Run {
    words: Vec<Reg<B32>>,
    meaning: Meaning,
}

/// A block's scale, and its zero if it has one, as they are stored.
pub(super) struct Stored {
    scale: Reg<B32>,
    zero: Option<Reg<B32>>,
}

impl Stored {
    /// Its registers, to be assigned.
    pub fn registers(&self) -> impl Iterator<Item = Reg<B32>> {
        [Some(self.scale), self.zero].into_iter().flatten()
    }
}

/// What the numbers of a block mean.
#[derive(Clone, Copy)]
pub(super) struct Meaning {
    /// What stands for a zero, its sign turned if in halves; two of them if in halves.
    zero: Reg<B32>,
    scale: Reg<B32>,
}

impl Run {
    /// Registers of a run, to be assigned.
    pub fn registers(&self) -> impl Iterator<Item = Reg<B32>> + '_ {
        let Meaning { zero, scale } = self.meaning;
        self.words.iter().copied().chain([zero, scale])
    }
}

impl<'a> Weights<'a> {
    /// Of halves, or of f32.
    pub fn of(spec: &'a MatMulSpec, blocks: &'a Blocks, half: Option<Half>) -> Weights<'a> {
        let same = spec.args[2] == spec.args[0];
        let way = match half {
            Some(Half::Bf16) if blocks.bits == 8 => Way::Singles,
            Some(half) if same => Way::Halves(half),
            _ => Way::Singles,
        };
        Weights { spec, blocks, way }
    }

    /// Words of a run.
    fn many(&self) -> usize {
        usize::from(self.blocks.bits) * RUN as usize / 32
    }

    /// The column `at` of `all`.
    pub fn column(&self, e: &mut Emitter, cx: &ExprCx, p: &Place, at: Val) -> Column {
        let exists = e.cmp(Cmp::Lt, at, p.columns.1, false);
        let zero = e.i64(0);
        let at = e.select(exists, at, zero);
        let count = cx.size(e, self.blocks.count);
        let scales = e.mul(at, count);
        let own = e.i64(self.blocks.size * i64::from(self.blocks.bits) / 8);
        Column {
            data: e.mul(scales, own),
            scales,
            exists,
        }
    }

    /// The run from element `at` on, if that is one of `all`; else weights of 0.
    pub fn run(&self, e: &mut Emitter, cx: &ExprCx, c: &Column, at: Val, all: Val) -> Run {
        let (exists, from) = self.place(e, cx, c, at, all);
        let k = e.kernel_mut();
        let words: Vec<Reg<B32>> = (0..self.many()).map(|_| k.mov(0i32)).collect();
        k.guarded(exists, |k| {
            for (i, to) in (0..).zip(words.chunks(4)) {
                k.load_to(Space::Global, from, 16 * i, to);
            }
        });
        let stored = self.stored(e, cx, c, (at, 0), all);
        let meaning = self.meaning(e, &stored);
        Run { words, meaning }
    }

    /// Whether there is an element `at` of `all`, and where it is.
    fn place(
        &self,
        e: &mut Emitter,
        cx: &ExprCx,
        c: &Column,
        at: Val,
        all: Val,
    ) -> (Reg<Pred>, Reg<B64>) {
        let some = e.cmp(Cmp::Lt, at, all, false);
        let exists = e.op2("arith.andi", some, c.exists);
        let each = e.i64(8 / i64::from(self.blocks.bits));
        let byte = e.op2("arith.divui", at, each);
        let byte = e.add(c.data, byte);
        let from = e.offset(cx.args[1], byte, Elem::I8);
        (e.pred(exists), e.long(from))
    }

    /// What is stored of the block of the element that is so many `behind` element `start`
    /// (a multiple of 64 if any are): zeros if it is none of `all`.
    pub fn stored(
        &self,
        e: &mut Emitter,
        cx: &ExprCx,
        c: &Column,
        (start, behind): (Val, i64),
        all: Val,
    ) -> Stored {
        let skip = e.i64(behind);
        let at = e.add(start, skip);
        let some = e.cmp(Cmp::Lt, at, all, false);
        let exists = e.op2("arith.andi", some, c.exists);
        // Where blocks start at `start`, others are a known distance from there.
        let (from, blocks) = match 64 % self.blocks.size {
            0 => (start, behind / self.blocks.size),
            _ => (at, 0),
        };
        let size = e.i64(self.blocks.size);
        let block = e.op2("arith.divui", from, size);
        let block = e.add(c.scales, block);
        let exists = e.pred(exists);
        let mut read = |arg: usize, elem: Elem| {
            let from = e.offset(cx.args[arg], block, elem);
            let (from, skip) = (e.long(from), blocks * i64::from(elem.bits() / 8));
            let k = e.kernel_mut();
            let to = k.mov(0i32);
            k.guarded(exists, |k| match elem.bits() {
                32 => k.load_to(Space::Global, from, skip, &[to]),
                bits => k.load_narrow_to(Space::Global, from, skip, bits, to),
            });
            to
        };
        Stored {
            scale: read(2, memory_elem(self.spec.args[2])),
            zero: self.blocks.zeros.then(|| read(3, Elem::I8)),
        }
    }

    /// What that means.
    pub fn meaning(&self, e: &mut Emitter, stored: &Stored) -> Meaning {
        Meaning {
            zero: self.zero(e, stored.zero),
            scale: self.scale(e, stored.scale),
        }
    }

    /// Bytes of a chunk: of a column what is copied at once, a run or part of one.
    pub fn chunk(&self) -> i64 {
        4 * (self.many() as i64).min(4)
    }

    /// Starts copying the chunk from element `at` on to shared memory; zeros if that is
    /// none of `all`.
    pub fn copy(
        &self,
        e: &mut Emitter,
        cx: &ExprCx,
        c: &Column,
        (at, all): (Val, Val),
        to: Reg<B32>,
    ) {
        let (exists, from) = self.place(e, cx, c, at, all);
        // Where nothing is read the address must still be one.
        let any = e.long(cx.args[1]);
        let (size, k) = (self.chunk(), e.kernel_mut());
        let from = k.select(exists, from, any);
        k.copy_async_small(size, (to, from), exists);
    }

    /// A run that lies in shared memory, chunks that many bytes apart.
    pub fn copied(
        &self,
        e: &mut Emitter,
        at: (Reg<B32>, i64),
        apart: i64,
        meaning: Meaning,
    ) -> Run {
        let k = e.kernel_mut();
        let words: Vec<Reg<B32>> = (0..self.many()).map(|_| k.reg()).collect();
        for (i, to) in (0..).zip(words.chunks(4)) {
            k.load_to(Space::Shared, at.0, at.1 + i * apart, to);
        }
        Run { words, meaning }
    }

    fn scale(&self, e: &mut Emitter, stored: Reg<B32>) -> Reg<B32> {
        if let Way::Halves(_) = self.way {
            return e.kernel_mut().permute(stored, stored, 0x1010i32);
        }
        match self.spec.args[2] {
            DType::F32 => stored,
            t => {
                let s = e.from_word(stored, memory_elem(t));
                let s = widen(e, s, t);
                let s = e.single(s);
                e.kernel_mut().bits_of(s)
            }
        }
    }

    /// What a number of 0 looks like when [`raw`](Self::raw) has it: a few ones.
    fn ones(&self) -> i32 {
        match self.way {
            Way::Halves(Half::F16) => 0x6400_6400,
            Way::Halves(Half::Bf16) => 0x4300_4300,
            Way::Singles => ONES,
        }
    }

    fn zero(&self, e: &mut Emitter, stored: Option<Reg<B32>>) -> Reg<B32> {
        let bits = u32::from(self.blocks.bits);
        let two = match self.way {
            Way::Halves(_) => 0x1_0001,
            Way::Singles => 1,
        };
        let sign = match self.way {
            Way::Halves(_) => 0x8000_8000_u32 as i32,
            Way::Singles => 0,
        };
        let ones = self.ones() | sign;
        let k = e.kernel_mut();
        let Some(mut z) = stored else {
            return k.mov(ones | two << (bits - 1));
        };
        if bits < 8 {
            z = k.bitwise("and", z, (1i32 << bits) - 1);
        }
        if two > 1 {
            z = k.permute(z, z, 0x1010i32);
        }
        k.bitwise("or", z, ones)
    }

    /// Elements `2·i` and the next of a run, as a word of halves.
    pub fn pair(&self, e: &mut Emitter, half: Half, run: &Run, i: usize) -> Reg<B32> {
        let k = e.kernel_mut();
        let raw = match self.blocks.bits {
            8 => {
                let low = 2 * (i as i32 % 2);
                let w = run.words[i / 2];
                k.permute(w, w, low | (low + 1) << 8)
            }
            bits => {
                // Pairs of a word, and the byte in which this one's first element lies.
                let each = 16 / usize::from(bits);
                let byte = (i % each * usize::from(bits) / 4) as i32;
                let mut w = run.words[i / each];
                if bits == 2 && i % 2 == 1 {
                    w = k.shr(false, w, 4);
                }
                let next = k.shr(false, w, i32::from(bits));
                k.permute(w, next, byte | (byte + 4) << 8)
            }
        };
        self.finish(e, half, run, raw)
    }

    /// Elements `k` and the next of a column as a word of halves, read one by one.
    pub fn single_pair(
        &self,
        e: &mut Emitter,
        cx: &ExprCx,
        p: &Place,
        half: Half,
        (k, column): (Val, Val),
    ) -> Reg<B32> {
        let there = e.cmp(Cmp::Lt, column, p.columns.1, false);
        let [low, high] = [0, 1].map(|i| {
            let skip = e.i64(i);
            let k = e.add(k, skip);
            let some = e.cmp(Cmp::Lt, k, p.k, false);
            let exists = e.op2("arith.andi", some, there);
            let x = element(e, cx, self.spec, self.blocks, exists, (k, column));
            e.single(x)
        });
        e.kernel_mut().pack_halves(half, low, high)
    }

    /// Both words that a lane of `mma.sync` has of step `i` (16 elements) of a run: elements
    /// `2·c` and the next, and those 8 behind them; `which` is [`which`](Self::which)'s.
    pub fn fragment(
        &self,
        e: &mut Emitter,
        half: Half,
        run: &Run,
        i: usize,
        which: Reg<B32>,
    ) -> [Reg<B32>; 2] {
        let k = e.kernel_mut();
        let raw = match self.blocks.bits {
            2 => {
                let w = k.shr(false, run.words[i], which);
                let next = k.shr(false, w, 2);
                [0x0400, 0x0602].map(|bytes| k.permute(w, next, bytes))
            }
            4 => [0, 1].map(|j| {
                let w = run.words[2 * i + j];
                let next = k.shr(false, w, 4);
                k.permute(w, next, which)
            }),
            _ => [0, 2].map(|j| {
                let at = 4 * i + j;
                k.permute(run.words[at], run.words[at + 1], which)
            }),
        };
        raw.map(|raw| self.finish(e, half, run, raw))
    }

    /// How lane `c` of four takes its elements: for [`fragment`](Self::fragment).
    pub fn which(&self, e: &mut Emitter, c: Reg<B32>) -> Reg<B32> {
        let k = e.kernel_mut();
        match self.blocks.bits {
            2 => k.shl(c, 2),
            4 => {
                let up = k.shl(c, 8);
                let both = k.bitwise("or", up, c);
                k.bitwise("or", both, 0x0400i32)
            }
            _ => {
                let low = k.shl(c, 1);
                let up = k.shl(low, 8);
                let both = k.bitwise("or", up, low);
                k.bitwise("or", both, 0x0100i32)
            }
        }
    }

    /// Two elements whose bits are the lowest of a word's bytes 0 and 2, with anything above
    /// them, as halves.
    fn finish(&self, e: &mut Emitter, half: Half, run: &Run, raw: Reg<B32>) -> Reg<B32> {
        let mask = (1i32 << self.blocks.bits) - 1;
        let k = e.kernel_mut();
        let Way::Halves(half) = self.way else {
            let high = k.shr(false, raw, 16);
            let [low, high] = [raw, high].map(|q| k.masked(q, mask, ONES));
            let [low, high] = [low, high].map(|q| self.single(e, run, q));
            return e.kernel_mut().pack_halves(half, low, high);
        };
        let q = k.masked(raw, mask | mask << 16, self.ones());
        let one = match half {
            Half::F16 => 0x3c00_3c00,
            Half::Bf16 => 0x3f80_3f80,
        };
        let one = k.mov(one);
        let off = k.fma_halves(half, q, one, run.meaning.zero);
        // What is added is −0, which leaves a zero's sign.
        let none = k.mov(0x8000_8000_u32 as i32);
        k.fma_halves(half, off, run.meaning.scale, none)
    }

    /// Element `i` of a run in f32.
    pub fn one(&self, e: &mut Emitter, run: &Run, i: usize) -> Reg<F32> {
        let bits = u32::from(self.blocks.bits);
        let each = (32 / bits) as usize;
        let (w, at) = (run.words[i / each], (i % each) as u32);
        let k = e.kernel_mut();
        let q = k.field(w, at * bits, bits);
        let q = k.bitwise("or", q, ONES);
        self.single(e, run, q)
    }

    /// A number as ones, in f32.
    fn single(&self, e: &mut Emitter, run: &Run, q: Reg<B32>) -> Reg<F32> {
        let k = e.kernel_mut();
        let (q, zero) = (k.float_of(q), k.float_of(run.meaning.zero));
        let off = k.sub(q, zero);
        let scale = k.float_of(run.meaning.scale);
        k.mul(off, scale)
    }
}
