//! Selections of the `k` best elements along an axis, in order: what the runtime computes on
//! a CPU ([`runtime/src/top_k.rs`]), with the same indices.
//!
//! A launch's arguments are the elements, the values and the indices (i64) that are taken;
//! its parameters are the lanes outside of the axis, the elements along it, the lanes inside
//! of it, and `k`. An element becomes an integer that orders as it does (NaN above all
//! numbers, −0 as 0), turned over where the largest come first; its index settles ties.
//!
//! - Up to 2,048 elements: a block for each lane ([`super::sort_rows`]).
//! - Any number: four bits at a time from the lowest ones on, each time stable:
//!
//! ```text
//! keys, then for each digit: count digits of parts; where each part's begin; move; then take
//! ```
//! A launch of four bits finds in scratch which ones they are, so all share their text.

use super::group::WARP;
use super::nest::{divide, long};
use super::vectors::stored;
use super::{GpuKernel, Ports, THREADS, entry, entry_of};
use crate::expr::compute_dtype;
use crate::lower::{is_unsigned, memory_elem, widen};
use kiln_codegen::emit::Cmp;
use kiln_codegen::{Elem, Emitter, GpuTarget, Ty, Val};
use kiln_ir::{DType, Dim};
use serde::{Deserialize, Serialize};

/// A selection: of which elements, and which of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct SortSpec {
    /// The elements' type, of a byte at least.
    pub dtype: DType,
    /// The largest first, not the smallest.
    pub largest: bool,
}

/// Elements of a lane that a block sorts by itself: 24 KB of keys and indices.
pub(super) const IN_BLOCK: i64 = 2048;

/// Neighbouring elements of a thread, and elements of a block.
const RUN: i64 = 8;
const PART: i64 = RUN * THREADS as i64;

/// Values of a digit, and bits.
const DIGITS: i64 = 16;
const BITS: i64 = 4;

/// Bytes at the start of scratch: the digit that is counted, and the one that is moved by.
const HEAD: i64 = 64;

pub(super) const WORD: Ty = Ty::scalar(Elem::I32);
pub(super) const LONG: Ty = Ty::scalar(Elem::I64);

/// The forms of a selection, the one for any number of elements last.
pub fn emit_sort(spec: &SortSpec, name: &str, target: &GpuTarget) -> Vec<GpuKernel> {
    let [outer, n, inner, k] = [0, 1, 2, 3].map(|i| Dim::sym(format!("p{i}")));
    let lanes = outer * inner;
    // Of nothing, nothing is taken.
    let some = k.minimum(&Dim::ONE);
    let kernel = |form: &str, blocks: Dim, write: &dyn Fn(&mut Emitter, &Sort)| {
        let name = match form {
            "" => name.to_string(),
            _ => entry_of(name, form),
        };
        let (body, _) = entry(&name, target, THREADS, |e| {
            let sort = Sort::begin(e, *spec);
            write(e, &sort);
        });
        GpuKernel {
            entry: name,
            body,
            grid: [blocks, Dim::ONE, Dim::ONE],
            block: [THREADS, 1, 1],
            cluster: [1; 3],
            ..GpuKernel::default()
        }
    };
    let parts = n.ceil_div(&PART.into());
    let blocks = lanes.clone() * some.clone() * parts.clone();
    let small = GpuKernel {
        when: vec![(n.clone(), IN_BLOCK.into())],
        ..kernel("rows", lanes.clone() * some.clone(), &|e, s| s.in_block(e))
    };
    let threads = i64::from(THREADS);
    let taken = (lanes.clone() * k).ceil_div(&threads.into());
    let digit = [
        kernel("count", blocks.clone(), &|e, s| s.count(e)),
        kernel("place", lanes.clone() * some, &|e, s| s.place(e)),
        kernel("move", blocks.clone(), &|e, s| s.shift(e)),
    ];
    // The text is there once.
    let again = digit.clone().map(|k| GpuKernel {
        body: String::new(),
        ..k
    });
    let mut then = digit.to_vec();
    (1..spec.digits()).for_each(|_| then.extend(again.clone()));
    then.push(kernel("take", taken, &|e, s| s.take(e)));
    let elements = lanes.clone() * n;
    let counts = lanes * parts * DIGITS.into();
    let general = GpuKernel {
        scratch: elements * 24.into() + counts * 8.into() + HEAD.into(),
        then,
        ..kernel("", blocks, &|e, s| s.keys(e))
    };
    vec![small, general]
}

impl SortSpec {
    /// Whether keys have 64 bits, not 32.
    fn long(self) -> bool {
        self.dtype.bits() > 32
    }

    fn digits(self) -> i64 {
        if self.long() { 64 / BITS } else { 32 / BITS }
    }

    /// The key of an element as it lies in memory: less is sooner, by unsigned comparison.
    pub(super) fn key(self, e: &mut Emitter, raw: Val) -> Val {
        let elem = memory_elem(self.dtype);
        let x = match elem {
            Elem::I1 => e.cast(raw, elem, true, true),
            _ => e.bitcast(raw, elem),
        };
        let x = widen(e, x, self.dtype);
        let ones = e.i64(if self.long() { -1 } else { 0xffff_ffff });
        let top = if self.long() { i64::MIN } else { 1 << 31 };
        let t = compute_dtype(self.dtype);
        let key = if t.is_float() {
            // −0 + 0 = 0.
            let zero = e.float(x.ty, 0.0);
            let x = e.add(x, zero);
            let nan = e.cmp(Cmp::Ne, x, x, false);
            let bits = match self.long() {
                true => e.bitcast(x, Elem::I64),
                false => {
                    let bits = e.bitcast(x, Elem::I32);
                    e.cast(bits, Elem::I64, true, true)
                }
            };
            let (high, none) = (e.i64(top), e.i64(0));
            let sign = e.op2("arith.andi", bits, high);
            let negative = e.cmp(Cmp::Ne, sign, none, false);
            let turned = e.select(negative, ones, high);
            let key = e.op2("arith.xori", bits, turned);
            e.select(nan, ones, key)
        } else {
            let x = e.cast(x, Elem::I64, is_unsigned(t), false);
            match is_unsigned(t) {
                true => x,
                false => {
                    let high = e.i64(top);
                    let x = e.op2("arith.xori", x, high);
                    e.op2("arith.andi", x, ones)
                }
            }
        };
        match self.largest {
            true => e.op2("arith.xori", key, ones),
            false => key,
        }
    }
}

/// A selection while a launch of it is written.
pub(super) struct Sort {
    pub spec: SortSpec,
    args: Vec<Val>,
    scratch: Val,
    outer: Val,
    pub n: Val,
    inner: Val,
    pub k: Val,
    pub thread: Val,
    pub block: Val,
}

/// Where a thread of a part is.
struct Part {
    lane: Val,
    part: Val,
    parts: Val,
    /// The thread's first element.
    first: Val,
}

impl Sort {
    fn begin(e: &mut Emitter, spec: SortSpec) -> Sort {
        let ports = Ports::declare(e, 3, 4);
        let (thread, block) = (e.kernel_mut().thread(), e.kernel_mut().block(0));
        let (thread, block) = (long(e, thread), long(e, block));
        let [outer, n, inner, k] = [0, 1, 2, 3].map(|i| ports.params[i]);
        Sort {
            spec,
            args: ports.args,
            scratch: ports.scratch,
            outer,
            n,
            inner,
            k,
            thread,
            block,
        }
    }

    /// Where a lane begins among so many elements along the axis.
    pub(super) fn start(&self, e: &mut Emitter, lane: Val, along: Val) -> Val {
        let (outer, inner) = divide(e, lane, self.inner, None);
        let at = e.mul(outer, along);
        let at = e.mul(at, self.inner);
        e.add(at, inner)
    }

    fn raw(&self) -> Elem {
        stored(memory_elem(self.spec.dtype))
    }

    /// Element number `i` of a lane that begins there, as it lies in memory.
    pub(super) fn element(&self, e: &mut Emitter, start: Val, i: Val) -> Val {
        let at = e.mul(i, self.inner);
        let at = e.add(start, at);
        let from = e.offset(self.args[0], at, self.raw());
        e.load(from, Ty::scalar(self.raw()))
    }

    /// Takes an element as a lane's number `rank`.
    pub(super) fn put(&self, e: &mut Emitter, lane: Val, rank: Val, index: Val) {
        let start = self.start(e, lane, self.n);
        let raw = self.element(e, start, index);
        let out = self.start(e, lane, self.k);
        let at = e.mul(rank, self.inner);
        let at = e.add(out, at);
        let to = e.offset(self.args[1], at, self.raw());
        e.store(raw, to);
        let to = e.offset(self.args[2], at, Elem::I64);
        e.store(index, to);
    }

    fn part(&self, e: &mut Emitter) -> Part {
        let (less, each, run) = (e.i64(PART - 1), e.i64(PART), e.i64(RUN));
        let up = e.add(self.n, less);
        let parts = e.op2("arith.divui", up, each);
        let (lane, part) = divide(e, self.block, parts, None);
        let first = e.mul(part, each);
        let own = e.mul(self.thread, run);
        Part {
            lane,
            part,
            parts,
            first: e.add(first, own),
        }
    }

    /// Where scratch has keys and indices, of either side, and counts of digits.
    fn side(&self, e: &mut Emitter, second: Val) -> (Val, Val) {
        let all = self.elements(e);
        let zero = e.i64(0);
        let skip = e.select(second, all, zero);
        let head = e.i64(HEAD / 8);
        let at = e.add(head, skip);
        let keys = e.offset(self.scratch, at, Elem::I64);
        // Indices of four bytes lie behind both sides' keys.
        let both = e.add(all, all);
        let at = e.add(head, both);
        let places = e.offset(self.scratch, at, Elem::I64);
        (keys, e.offset(places, skip, Elem::I32))
    }

    fn elements(&self, e: &mut Emitter) -> Val {
        let lanes = e.mul(self.outer, self.inner);
        e.mul(lanes, self.n)
    }

    fn counts(&self, e: &mut Emitter) -> Val {
        let all = self.elements(e);
        let (head, three) = (e.i64(HEAD / 8), e.i64(3));
        let at = e.mul(all, three);
        let at = e.add(head, at);
        e.offset(self.scratch, at, Elem::I64)
    }

    /// A count's place: a lane's counts by digit, then by part.
    fn count_at(&self, e: &mut Emitter, p: &Part, digit: Val) -> Val {
        let digits = e.i64(DIGITS);
        let at = e.mul(p.lane, digits);
        let at = e.add(at, digit);
        let at = e.mul(at, p.parts);
        let at = e.add(at, p.part);
        let counts = self.counts(e);
        e.offset(counts, at, Elem::I64)
    }

    /// Makes keys and indices, on the first side, and begins with the lowest digit.
    fn keys(&self, e: &mut Emitter) {
        let p = self.part(e);
        let (zero, one, run) = (e.i64(0), e.i64(1), e.i64(RUN));
        let no = e.cmp(Cmp::Lt, zero, zero, false);
        let (keys, places) = self.side(e, no);
        let start = self.start(e, p.lane, self.n);
        let before = e.mul(p.lane, self.n);
        let end = e.add(p.first, run);
        let end = e.min(end, self.n, false);
        e.for_loop(p.first, end, one, &[], |e, i, _| {
            let raw = self.element(e, start, i);
            let key = self.spec.key(e, raw);
            let at = e.add(before, i);
            let to = e.offset(keys, at, Elem::I64);
            e.store(key, to);
            let index = e.cast(i, Elem::I32, true, true);
            let to = e.offset(places, at, Elem::I32);
            e.store(index, to);
            vec![]
        });
        let number = e.op2("arith.ori", self.block, self.thread);
        let first = e.cmp(Cmp::Eq, number, zero, false);
        e.if_then(first, |e| e.store(zero, self.scratch));
    }

    /// The digit that the word at `slot` of scratch names: its lowest bit, and whether keys
    /// are on the second side.
    fn digit(&self, e: &mut Emitter, slot: i64) -> (Val, Val) {
        let (slot, bits, one, zero) = (e.i64(slot), e.i64(BITS), e.i64(1), e.i64(0));
        let from = e.offset(self.scratch, slot, Elem::I64);
        let digit = e.load(from, LONG);
        let low = e.op2("arith.andi", digit, one);
        (e.mul(digit, bits), e.cmp(Cmp::Ne, low, zero, false))
    }

    /// The thread's elements: their keys, digits, and whether they are there; and the block's
    /// counters `[digit][thread]` with how many each thread has.
    fn counted(&self, e: &mut Emitter, p: &Part, keys: Val, bit: Val) -> (Val, Vec<[Val; 3]>) {
        let counters = e.kernel_mut().shared((4 * DIGITS) as u32 * THREADS, 4);
        let counters = e.from_word(counters, Elem::Ptr);
        let (none, one) = (e.int(WORD, 0), e.int(WORD, 1));
        for digit in 0..DIGITS {
            let digit = e.i64(digit);
            let to = self.counter(e, counters, digit);
            e.store(none, to);
        }
        let (before, last, mask) = (e.mul(p.lane, self.n), e.i64(1), e.i64(DIGITS - 1));
        let last = e.sub(self.n, last);
        let own: Vec<[Val; 3]> = (0..RUN)
            .map(|i| {
                let skip = e.i64(i);
                let i = e.add(p.first, skip);
                let exists = e.cmp(Cmp::Lt, i, self.n, false);
                let i = e.min(i, last, false);
                let at = e.add(before, i);
                let from = e.offset(keys, at, Elem::I64);
                let key = e.load(from, LONG);
                let digit = e.op2("arith.shrui", key, bit);
                [key, e.op2("arith.andi", digit, mask), exists]
            })
            .collect();
        for &[_, digit, exists] in &own {
            e.if_then(exists, |e| {
                let at = self.counter(e, counters, digit);
                let old = e.load(at, WORD);
                let new = e.add(old, one);
                e.store(new, at);
            });
        }
        e.kernel_mut().barrier();
        (counters, own)
    }

    fn counter(&self, e: &mut Emitter, counters: Val, digit: Val) -> Val {
        let threads = e.i64(i64::from(THREADS));
        let at = e.mul(digit, threads);
        let at = e.add(at, self.thread);
        e.offset(counters, at, Elem::I32)
    }

    /// Counters become sums of those before them in their digit. Sixteen threads have a
    /// digit; `total` hears of the digit, its whole count, and whether it is for this thread
    /// to say.
    fn summed(&self, e: &mut Emitter, counters: Val, total: impl FnOnce(&mut Emitter, [Val; 3])) {
        let (sixteen, most) = (e.i64(DIGITS), e.i64(DIGITS - 1));
        let digit = e.op2("arith.divui", self.thread, sixteen);
        let segment = e.op2("arith.remui", self.thread, sixteen);
        let first = e.mul(self.thread, sixteen);
        let places: Vec<Val> = (0..DIGITS)
            .map(|i| {
                let skip = e.i64(i);
                let at = e.add(first, skip);
                e.offset(counters, at, Elem::I32)
            })
            .collect();
        let counts: Vec<Val> = places.iter().map(|&from| e.load(from, WORD)).collect();
        let none = e.int(WORD, 0);
        let own = counts.iter().fold(none, |sum, &c| e.add(sum, c));
        let up_to = [1, 2, 4, 8].into_iter().fold(own, |sum, by| {
            let other = e.shuffle_up(sum, by);
            let least = e.i64(i64::from(by));
            let has = e.cmp(Cmp::Ge, segment, least, false);
            let more = e.add(sum, other);
            e.select(has, more, sum)
        });
        let mut before = e.sub(up_to, own);
        for (&to, count) in places.iter().zip(counts) {
            e.store(before, to);
            before = e.add(before, count);
        }
        let says = e.cmp(Cmp::Eq, segment, most, false);
        total(e, [digit, up_to, says]);
    }

    /// Counts the digits of a part.
    fn count(&self, e: &mut Emitter) {
        let p = self.part(e);
        let (bit, second) = self.digit(e, 0);
        let (keys, _) = self.side(e, second);
        let (counters, _) = self.counted(e, &p, keys, bit);
        self.summed(e, counters, |e, [digit, count, says]| {
            e.if_then(says, |e| {
                let count = e.cast(count, Elem::I64, true, true);
                let to = self.count_at(e, &p, digit);
                e.store(count, to);
            });
        });
    }

    /// A block for each lane: counts become the places where each part's digits begin.
    fn place(&self, e: &mut Emitter) {
        let (zero, one, threads) = (e.i64(0), e.i64(1), e.i64(i64::from(THREADS)));
        let (less, each, digits) = (e.i64(PART - 1), e.i64(PART), e.i64(DIGITS));
        let up = e.add(self.n, less);
        let parts = e.op2("arith.divui", up, each);
        let all = e.mul(parts, digits);
        let counts = self.counts(e);
        let first = e.mul(self.block, all);
        let counts = e.offset(counts, first, Elem::I64);
        let more = e.add(all, threads);
        let more = e.sub(more, one);
        let run = e.op2("arith.divui", more, threads);
        let from = e.mul(self.thread, run);
        let to = e.add(from, run);
        let to = e.min(to, all, false);
        let own = e.for_loop(from, to, one, &[zero], |e, i, sum| {
            let at = e.offset(counts, i, Elem::I64);
            let count = e.load(at, LONG);
            vec![e.add(sum[0], count)]
        });
        let before = self.before(e, own[0]);
        e.for_loop(from, to, one, &[before], |e, i, sum| {
            let at = e.offset(counts, i, Elem::I64);
            let count = e.load(at, LONG);
            e.store(sum[0], at);
            vec![e.add(sum[0], count)]
        });
        // Moves go by the digit that was counted; the next count takes the next one.
        let number = e.op2("arith.ori", self.block, self.thread);
        let is_first = e.cmp(Cmp::Eq, number, zero, false);
        e.if_then(is_first, |e| {
            let digit = e.load(self.scratch, LONG);
            let moved = e.offset(self.scratch, one, Elem::I64);
            e.store(digit, moved);
            let next = e.add(digit, one);
            e.store(next, self.scratch);
        });
    }

    /// What the threads before this one have.
    fn before(&self, e: &mut Emitter, own: Val) -> Val {
        let lanes = e.i64(i64::from(WARP));
        let lane = e.op2("arith.remui", self.thread, lanes);
        let warp = e.op2("arith.divui", self.thread, lanes);
        let up_to = [1, 2, 4, 8, 16].into_iter().fold(own, |sum, by| {
            let other = e.shuffle_up(sum, by);
            let least = e.i64(i64::from(by));
            let has = e.cmp(Cmp::Ge, lane, least, false);
            let more = e.add(sum, other);
            e.select(has, more, sum)
        });
        let warps = THREADS / WARP;
        let told = e.kernel_mut().shared(8 * warps, 8);
        let told = e.from_word(told, Elem::Ptr);
        let most = e.i64(i64::from(WARP) - 1);
        let says = e.cmp(Cmp::Eq, lane, most, false);
        e.if_then(says, |e| {
            let to = e.offset(told, warp, Elem::I64);
            e.store(up_to, to);
        });
        e.kernel_mut().barrier();
        let start = e.sub(up_to, own);
        (0..i64::from(warps)).fold(start, |sum, w| {
            let w = e.i64(w);
            let from = e.offset(told, w, Elem::I64);
            let theirs = e.load(from, LONG);
            let is_before = e.cmp(Cmp::Lt, w, warp, false);
            let more = e.add(sum, theirs);
            e.select(is_before, more, sum)
        })
    }

    /// Moves keys and indices to the other side, to where their digits are in order.
    fn shift(&self, e: &mut Emitter) {
        let p = self.part(e);
        let (bit, second) = self.digit(e, 1);
        let (keys, places) = self.side(e, second);
        let zero = e.i64(0);
        let yes = e.cmp(Cmp::Eq, zero, zero, false);
        let other = e.op2("arith.xori", second, yes);
        let (to_keys, to_places) = self.side(e, other);
        let (counters, own) = self.counted(e, &p, keys, bit);
        self.summed(e, counters, |_, _| {});
        e.kernel_mut().barrier();
        let before = e.mul(p.lane, self.n);
        let one = e.int(WORD, 1);
        for (i, [key, digit, exists]) in (0..).zip(own) {
            e.if_then(exists, |e| {
                let skip = e.i64(i);
                let from = e.add(p.first, skip);
                let from = e.add(before, from);
                let from = e.offset(places, from, Elem::I32);
                let index = e.load(from, WORD);
                let counter = self.counter(e, counters, digit);
                let rank = e.load(counter, WORD);
                let next = e.add(rank, one);
                e.store(next, counter);
                let begins = self.count_at(e, &p, digit);
                let begins = e.load(begins, LONG);
                let rank = e.cast(rank, Elem::I64, true, true);
                let at = e.add(begins, rank);
                let at = e.add(before, at);
                let to = e.offset(to_keys, at, Elem::I64);
                e.store(key, to);
                let to = e.offset(to_places, at, Elem::I32);
                e.store(index, to);
            });
        }
    }

    /// A thread for each element that is taken; keys are on the first side again, as there
    /// is an even number of digits.
    fn take(&self, e: &mut Emitter) {
        let threads = e.i64(i64::from(THREADS));
        let unit = e.mul(self.block, threads);
        let unit = e.add(unit, self.thread);
        let lanes = e.mul(self.outer, self.inner);
        let all = e.mul(lanes, self.k);
        let exists = e.cmp(Cmp::Lt, unit, all, false);
        e.if_then(exists, |e| {
            let zero = e.i64(0);
            let no = e.cmp(Cmp::Lt, zero, zero, false);
            let (_, places) = self.side(e, no);
            let (lane, rank) = divide(e, unit, self.k, None);
            let at = e.mul(lane, self.n);
            let at = e.add(at, rank);
            let from = e.offset(places, at, Elem::I32);
            let index = e.load(from, WORD);
            let index = e.cast(index, Elem::I64, true, true);
            self.put(e, lane, rank, index);
        });
    }
}
