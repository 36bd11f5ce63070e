//! Attention on tensor cores by `mma.sync`, of f16 or bf16 with sums in f32, in the shape
//! of FlashAttention-2 (Dao 2023).
//!
//! A block of four warps takes 64 queries of one head, a warp 16 of them; or all warps take
//! the same few rows, and each a quarter of the keys ([`Deal`]). Blocks of keys and of values
//! are copied to shared memory while those before are worked on (two places each). Scores
//! stay in registers: a product's fragments of sums are, rounded, the next product's fragments
//! of A, so weights never leave them. Maxima and sums are joined by the four lanes that share
//! rows.

use super::attention_rows::{self, Block, Place, Rows, Softmax, State, Sums};
use super::attention_split::{self, Kept};
use super::nest::long;
use super::{GpuKernel, Unit, attention, attention_few};
use crate::attention::AttentionSpec;
use crate::softmax::Bounds;
use kiln_codegen::emit::Cmp;
use kiln_codegen::ptx::{B32, Half, Reg};
use kiln_codegen::{Elem, Emitter, GpuTarget, Ty, Val};

/// Threads of a block.
pub(super) const THREADS: i64 = 128;

/// Queries of a block.
const QUERIES: i64 = 64;

/// Keys between two rescalings; of large heads fewer, for which there are registers and
/// shared memory. Warps that share keys have 16 each, as many as an instruction.
const KEYS: i64 = 64;
const FEWER: i64 = 32;

/// Rows of a warp, and warps.
pub(super) const ROWS: i64 = 16;
pub(super) const WARPS: i64 = THREADS / 32;

/// What warps of a block have of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Deal {
    /// Rows, and all keys.
    Rows,
    /// Keys, and all rows, of which there are few.
    Keys,
}

impl Deal {
    /// Rows of a block.
    pub(super) fn rows(self) -> i64 {
        match self {
            Deal::Rows => QUERIES,
            Deal::Keys => ROWS,
        }
    }

    /// Warps that share keys.
    fn warps(self) -> i64 {
        match self {
            Deal::Rows => 1,
            Deal::Keys => WARPS,
        }
    }
}

/// Elements that rows of shared memory are apart more than they hold: the eight rows that
/// an instruction reads start on different banks.
const PAD: i64 = 8;

/// Elements that one copy moves.
const CHUNK: i64 = 8;

/// The largest heads whose sums stay in registers, and of which a multiprocessor holds two
/// blocks.
const MOST: i64 = 256;
const TWO: i64 = 128;

/// Whether tensor cores serve the problem, where shared memory is large enough.
pub(super) fn serves(spec: &AttentionSpec) -> Option<Half> {
    let half = attention_rows::halves(spec)?;
    (spec.features <= MOST && spec.values <= MOST).then_some(half)
}

/// Features and values, to whole instructions, and keys between two rescalings.
#[derive(Clone, Copy)]
pub(super) struct Shape {
    deal: Deal,
    keys: i64,
    features: i64,
    values: i64,
}

impl Shape {
    /// None where shared memory is too small.
    fn of(spec: &AttentionSpec, deal: Deal, target: &GpuTarget) -> Option<Shape> {
        let up = |n: i64| (n + 15) / 16 * 16;
        let (features, values) = (up(spec.features), up(spec.values));
        let keys = match deal {
            Deal::Rows if features.max(values) > TWO => FEWER,
            _ => KEYS,
        };
        let shape = Shape {
            deal,
            keys,
            features,
            values,
        };
        (shape.bytes() <= i64::from(target.shared_per_block)).then_some(shape)
    }

    /// Keys of a warp, of those between two rescalings.
    fn own_keys(&self) -> i64 {
        self.keys / self.deal.warps()
    }

    /// Blocks that a multiprocessor is to hold.
    fn resident(&self) -> u32 {
        match self.features.max(self.values) > TWO {
            true => 1,
            false => 2,
        }
    }

    /// Bytes from row to row of queries and keys, and of values.
    fn pitch(&self) -> (i64, i64) {
        (2 * (self.features + PAD), 2 * (self.values + PAD))
    }

    /// Where keys and values start, behind queries; the end.
    pub(super) fn places(&self) -> [i64; 3] {
        let (k, v) = self.pitch();
        let keys = self.deal.rows() * k;
        let values = keys + 2 * self.keys * k;
        [keys, values, values + 2 * self.keys * v]
    }

    fn bytes(&self) -> i64 {
        self.places()[2]
    }
}

/// The form for all launches; none where shared memory is too small.
pub(super) fn emit(
    spec: &AttentionSpec,
    half: Half,
    name: &str,
    target: &GpuTarget,
) -> Option<GpuKernel> {
    part(spec, half, (name, target), (Deal::Rows, None))
}

/// The same, or only what a block finds in a part of so many keys (a multiple of 64), which
/// its number along y says, for rows of all heads that share keys: see [`attention_split`].
/// None where shared memory is too small.
pub(super) fn part(
    spec: &AttentionSpec,
    half: Half,
    named: (&str, &GpuTarget),
    (deal, keys): (Deal, Option<i64>),
) -> Option<GpuKernel> {
    let shape = Shape::of(spec, deal, named.1)?;
    let block = (THREADS, QUERIES);
    let kernel = attention::kernel(spec, named, block, shape.bytes(), |e, cx, scratch| {
        let softmax = Softmax {
            spec,
            cx,
            // Of large heads there is no register to spare for addresses and what is read.
            pause: (shape.resident() == 1 && attention_rows::demanding(spec)).then_some(1),
        };
        let attend = Attend {
            softmax,
            half,
            shape,
        };
        attend.write(e, keys.map(|keys| (keys, scratch)));
    });
    Some(GpuKernel {
        unit: Unit::Mma,
        ..kernel
    })
}

pub(super) struct Attend<'a> {
    pub softmax: Softmax<'a>,
    half: Half,
    pub shape: Shape,
}

/// Where a thread is.
pub(super) struct Thread {
    pub number: Val,
    lane: Val,
    pub warp: Val,
    pub shared: Val,
}

impl Attend<'_> {
    fn write(mut self, e: &mut Emitter, part: Option<(i64, Val)>) {
        let spec = self.softmax.spec;
        e.kernel_mut().set_resident(self.shape.resident());
        let b = match part {
            None => Block::of(e, &self.softmax.cx, spec, QUERIES),
            Some(_) => Block::packed(e, &self.softmax.cx, spec, self.shape.deal.rows()),
        };
        let t = thread(e);
        let own = self.own(e, &t, Deal::Rows, ROWS);
        let first = e.add(b.first, own);
        let lane = e.kernel_mut().lane();
        let p = Place::of(e, &b, lane, first);
        let [q, k, v] = Rows::all(e, &self.softmax.cx, spec, &b);
        let zero = e.i64(0);
        let (features, values) = (self.shape.features, self.shape.values);
        copy(
            e,
            &t,
            (&q, features),
            (b.first, self.shape.deal.rows()),
            zero,
        );
        let (low, end) = match part {
            None => self.range(e, &b),
            Some((keys, _)) => attention_split::range(e, &mut self.softmax, &b, keys),
        };
        let step = e.i64(self.shape.keys);
        let low = e.op2("arith.divsi", low, step);
        let low = e.mul(low, step);
        let [keys_at, values_at, _] = self.shape.places();
        let (keys_at, values_at) = (e.i64(keys_at), e.i64(values_at));
        copy(e, &t, (&k, features), (low, self.shape.keys), keys_at);
        e.kernel_mut().end_copies();
        copy(e, &t, (&v, values), (low, self.shape.keys), values_at);
        e.kernel_mut().end_copies();
        let state = State::start(e, values);
        let buffer = e.variables(&[zero])[0];
        let one = e.i64(1);
        e.for_loop(low, end, step, &[], |e, key0, _| {
            let other = e.sub(one, buffer);
            let next = e.add(key0, step);
            e.kernel_mut().wait_copies(1);
            e.kernel_mut().barrier();
            let products = self.products(e, &t, buffer);
            let to = self.part(e, other, keys_at, self.shape.pitch().0);
            copy(e, &t, (&k, features), (next, self.shape.keys), to);
            e.kernel_mut().end_copies();
            let own = self.own(e, &t, Deal::Keys, self.shape.own_keys());
            let key0 = e.add(key0, own);
            let weights = self.weights(e, (&b, &p), &state, key0, &products);
            e.kernel_mut().wait_copies(1);
            e.kernel_mut().barrier();
            self.add_values(e, &t, &state, buffer, &weights);
            let to = self.part(e, other, values_at, self.shape.pitch().1);
            copy(e, &t, (&v, values), (next, self.shape.keys), to);
            e.kernel_mut().end_copies();
            e.assign(&[buffer], &[other]);
            vec![]
        });
        e.kernel_mut().wait_copies(0);
        match part {
            None => self.softmax.finish(e, (&b, &p), &state),
            Some((keys, scratch)) => {
                let kept = Kept::of(e, &self.softmax, &b, (keys, scratch));
                match self.shape.deal {
                    Deal::Rows => kept.keep(e, &self.softmax, (&b, &p), &state),
                    Deal::Keys => attention_few::join(e, &self, &kept, (&b, &p, &t), &state),
                }
            }
        }
    }

    /// Where the warp's own begin of what is dealt out, of so many each; else 0.
    fn own(&self, e: &mut Emitter, t: &Thread, of: Deal, each: i64) -> Val {
        let each = e.i64(if self.shape.deal == of { each } else { 0 });
        e.mul(t.warp, each)
    }

    /// The keys that a block's queries see, from the first to behind the last.
    fn range(&mut self, e: &mut Emitter, b: &Block) -> (Val, Val) {
        let spec = self.softmax.spec;
        let (left, high) = (e.sub(b.queries, b.first), e.i64(QUERIES));
        let rows = e.min(left, high, false);
        let at = [b.batch, b.head, b.first, rows];
        Bounds::of(&spec.exprs, spec.score).range(e, &mut self.softmax.cx, at, b.keys)
    }

    /// The start of place `which` of two, in bytes.
    fn part(&self, e: &mut Emitter, which: Val, start: Val, pitch: i64) -> Val {
        let size = e.i64(self.shape.keys * pitch);
        let skip = e.mul(which, size);
        e.add(start, skip)
    }

    /// A lane's address for a matrix instruction: row `l % 8 + 8·a`, 16 bytes at `b`, where
    /// `a` and `b` are bits of `l / 8`: bit 0 is the row's if `rows_first`.
    fn matrix_address(
        &self,
        e: &mut Emitter,
        t: &Thread,
        start: Val,
        pitch: i64,
        rows_first: bool,
    ) -> Reg<B32> {
        let (eight, two, sixteen) = (e.i64(8), e.i64(2), e.i64(16));
        let r = e.op2("arith.remui", t.lane, eight);
        let which = e.op2("arith.divui", t.lane, eight);
        let low = e.op2("arith.remui", which, two);
        let high = e.op2("arith.divui", which, two);
        let (a, b) = if rows_first { (low, high) } else { (high, low) };
        let skip = e.mul(a, eight);
        let r = e.add(r, skip);
        let pitch = e.i64(pitch);
        let at = e.mul(r, pitch);
        let skip = e.mul(b, sixteen);
        let at = e.add(at, skip);
        let at = e.add(at, start);
        let at = e.offset(t.shared, at, Elem::I8);
        e.word(at)
    }

    /// `q·k` of the warp's rows and a block of keys: eight keys after eight.
    fn products(&self, e: &mut Emitter, t: &Thread, buffer: Val) -> Vec<Sums> {
        let (pitch, keys) = (self.shape.pitch().0, self.shape.own_keys());
        let own = self.own(e, t, Deal::Rows, ROWS * pitch);
        let a0 = self.matrix_address(e, t, own, pitch, true);
        let keys_at = e.i64(self.shape.places()[0]);
        let start = self.part(e, buffer, keys_at, pitch);
        let own = self.own(e, t, Deal::Keys, keys * pitch);
        let start = e.add(start, own);
        let b0 = self.matrix_address(e, t, start, pitch, false);
        let k = e.kernel_mut();
        let sums: Vec<Sums> = (0..keys / 8)
            .map(|_| std::array::from_fn(|_| k.mov(0.0f32)))
            .collect();
        for f in 0..self.shape.features / 16 {
            let a = k.load_matrices(a0, 32 * f);
            for j in 0..keys / 16 {
                let b = k.load_matrices(b0, 16 * j * pitch + 32 * f);
                let at = 2 * j as usize;
                k.multiply(self.half, sums[at], a, [b[0], b[1]]);
                k.multiply(self.half, sums[at + 1], a, [b[2], b[3]]);
            }
        }
        sums
    }

    /// Weights as fragments of A; maxima, sums and results as the new maxima want them.
    fn weights(
        &mut self,
        e: &mut Emitter,
        at: (&Block, &Place),
        state: &State,
        key0: Val,
        products: &[Sums],
    ) -> Vec<[Reg<B32>; 4]> {
        let scores = self.softmax.scores(e, at, key0, products, None);
        let [above, below] = [0, 1].map(|i| {
            let (weights, scale) = self.softmax.weights(e, state, i, &scores[i]);
            state.rescale(e.kernel_mut(), i, scale);
            weights
        });
        let both = above.chunks_exact(2).zip(below.chunks_exact(2));
        let weights: Vec<Sums> = both.map(|(a, b)| [a[0], a[1], b[0], b[1]]).collect();
        attention_rows::fragments(e.kernel_mut(), self.half, &weights)
    }

    /// `result += weights · values`.
    fn add_values(
        &self,
        e: &mut Emitter,
        t: &Thread,
        state: &State,
        buffer: Val,
        weights: &[[Reg<B32>; 4]],
    ) {
        let pitch = self.shape.pitch().1;
        let values_at = e.i64(self.shape.places()[1]);
        let start = self.part(e, buffer, values_at, pitch);
        let own = self.own(e, t, Deal::Keys, self.shape.own_keys() * pitch);
        let start = e.add(start, own);
        let b0 = self.matrix_address(e, t, start, pitch, true);
        let k = e.kernel_mut();
        for (j, &a) in (0..).zip(weights) {
            for c in 0..self.shape.values / 16 {
                let b = k.load_matrices_turned(b0, 16 * j * pitch + 32 * c);
                let at = 2 * c as usize;
                k.multiply(self.half, state.result[at], a, [b[0], b[1]]);
                k.multiply(self.half, state.result[at + 1], a, [b[2], b[3]]);
            }
        }
    }
}

fn thread(e: &mut Emitter) -> Thread {
    let number = e.kernel_mut().thread();
    let number = long(e, number);
    let lane = e.kernel_mut().lane();
    let lane = long(e, lane);
    let size = e.i64(32);
    let shared = e.kernel_mut().dynamic_shared();
    Thread {
        number,
        lane,
        warp: e.op2("arith.divui", number, size),
        shared: e.from_word(shared, Elem::Ptr),
    }
}

/// Starts copying `many` rows from `first` on to shared memory at `to`, `padded` elements
/// of each; what does not exist becomes zeros.
fn copy(
    e: &mut Emitter,
    t: &Thread,
    (rows, padded): (&Rows, i64),
    (first, many): (Val, i64),
    to: Val,
) {
    let chunks = padded / CHUNK;
    let (all, threads, per_row) = (e.i64(many * chunks), e.i64(THREADS), e.i64(chunks));
    let pitch = e.i64(2 * (padded + PAD));
    e.for_loop(t.number, all, threads, &[], |e, i, _| {
        let r = e.op2("arith.divui", i, per_row);
        let c = e.op2("arith.remui", i, per_row);
        let row = e.add(first, r);
        let exists = e.cmp(Cmp::Lt, row, rows.count, false);
        let eight = e.i64(CHUNK);
        let column = e.mul(c, eight);
        let at = rows.start(e, row);
        let at = e.add(at, column);
        let place = e.mul(r, pitch);
        let two = e.i64(2);
        let skip = e.mul(column, two);
        let place = e.add(place, skip);
        let place = e.add(place, to);
        let place = e.offset(t.shared, place, Elem::I8);
        // Elements of the chunk that exist.
        let wide = e.i64(rows.width);
        let left = e.sub(wide, column);
        let left = e.min(left, eight, false);
        let zero = e.i64(0);
        let left = e.select(exists, left, zero);
        let left = e.max(left, zero, false);
        e.either(
            rows.aligned,
            &[],
            &mut (),
            |e, ()| {
                // Where nothing is read the address must still be one.
                let some = e.cmp(Cmp::Gt, left, zero, false);
                let at = e.select(some, at, zero);
                let from = e.offset(rows.base, at, Elem::I16);
                let bytes = e.mul(left, two);
                let (to, from, bytes) = (e.word(place), e.long(from), e.long(bytes));
                let bytes = e.kernel_mut().low(bytes);
                e.kernel_mut().copy_async(to, 0, from, bytes);
                vec![]
            },
            |e, ()| {
                let one = e.i64(1);
                e.for_loop(zero, eight, one, &[], |e, j, _| {
                    let there = e.cmp(Cmp::Lt, j, left, false);
                    let at = e.add(at, j);
                    let from = e.offset(rows.base, at, Elem::I16);
                    let x = e.load_where(there, from, Ty::scalar(Elem::I16));
                    let to = e.offset(place, j, Elem::I16);
                    e.store(x, to);
                    vec![]
                });
                vec![]
            },
        );
        vec![]
    });
}
