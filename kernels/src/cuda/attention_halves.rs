//! Attention on tensor cores by `mma.sync`, of f16 or bf16 with sums in f32, in the shape
//! of FlashAttention-2 (Dao 2023).
//!
//! A block of four warps takes 64 queries of one head, a warp 16 of them. Blocks of keys
//! and of values are copied to shared memory while those before are worked on (two places
//! each). Scores stay in registers: a product's fragments of sums are, rounded, the next
//! product's fragments of A, so weights never leave them. Maxima and sums are joined by the
//! four lanes that share rows.

use super::attention::{exponential, larger};
use super::gemm::coordinates;
use super::nest::{divide, long};
use super::{GpuKernel, attention};
use crate::Size;
use crate::attention::AttentionSpec;
use crate::lower::{ExprCx, convert, memory_elem};
use crate::matmul::advance;
use crate::softmax::Bounds;
use kiln_codegen::emit::Cmp;
use kiln_codegen::ptx::{B32, F32, Half, Reg};
use kiln_codegen::{Elem, Emitter, GpuTarget, Ty, Val};
use kiln_ir::DType;

/// Threads of a block.
const THREADS: i64 = 128;

/// Queries of a block, and keys between two rescalings.
const QUERIES: i64 = 64;
const KEYS: i64 = 64;

/// Queries of a warp.
const ROWS: i64 = 16;

/// Elements that rows of shared memory are apart more than they hold: the eight rows that
/// an instruction reads start on different banks.
const PAD: i64 = 8;

/// Elements that one copy moves.
const CHUNK: i64 = 8;

/// The largest heads whose sums stay in registers.
const MOST: i64 = 128;

/// Whether tensor cores serve the problem.
pub(super) fn serves(spec: &AttentionSpec, target: &GpuTarget) -> Option<Half> {
    let half = match spec.args[0] {
        DType::F16 => Half::F16,
        DType::BF16 => Half::Bf16,
        _ => return None,
    };
    let alike = spec.args[..3].iter().all(|&t| t == spec.args[0]);
    let runs = [spec.q[3], spec.k[3], spec.v[3]] == [Size::ONE; 3];
    let small = spec.features <= MOST && spec.values <= MOST;
    let fits = Shape::of(spec).bytes() <= i64::from(target.shared_per_block);
    (alike && runs && small && fits).then_some(half)
}

/// Features and values, to whole instructions.
#[derive(Clone, Copy)]
struct Shape {
    features: i64,
    values: i64,
}

impl Shape {
    fn of(spec: &AttentionSpec) -> Shape {
        let up = |n: i64| (n + 15) / 16 * 16;
        Shape {
            features: up(spec.features),
            values: up(spec.values),
        }
    }

    /// Bytes from row to row of queries and keys, and of values.
    fn pitch(&self) -> (i64, i64) {
        (2 * (self.features + PAD), 2 * (self.values + PAD))
    }

    /// Where keys and values start, behind queries; the end.
    fn places(&self) -> [i64; 3] {
        let (k, v) = self.pitch();
        let keys = QUERIES * k;
        let values = keys + 2 * KEYS * k;
        [keys, values, values + 2 * KEYS * v]
    }

    fn bytes(&self) -> i64 {
        self.places()[2]
    }
}

pub(super) fn emit(spec: &AttentionSpec, half: Half, name: &str, target: &GpuTarget) -> GpuKernel {
    let shape = Shape::of(spec);
    let block = (THREADS, QUERIES);
    attention::kernel(spec, (name, target), block, shape.bytes(), |e, cx| {
        let attend = Attend {
            spec,
            half,
            shape,
            cx,
        };
        attend.write(e);
    })
}

struct Attend<'a> {
    spec: &'a AttentionSpec,
    half: Half,
    shape: Shape,
    cx: ExprCx<'a>,
}

/// Rows that are copied to shared memory.
struct Rows {
    /// The head's first element.
    base: Val,
    /// Elements from row to row.
    step: Val,
    /// How many there are.
    count: Val,
    /// Elements of a row, and of a row in shared memory.
    width: (i64, i64),
    /// Whether rows start at multiples of 16 bytes.
    aligned: Val,
}

/// Where a block and a thread are.
struct Place {
    thread: Val,
    batch: Val,
    head: Val,
    queries: Val,
    keys: Val,
    /// The thread's two queries, and its first key in each eight.
    rows: [Val; 2],
    column: Val,
    shared: Val,
    lane: Val,
    warp: Val,
}

/// What a thread carries from block to block, of its two rows.
struct State {
    max: [Val; 2],
    sum: [Val; 2],
    result: Vec<[Reg<F32>; 4]>,
}

impl Attend<'_> {
    fn write(mut self, e: &mut Emitter) {
        let spec = self.spec;
        let [batch, heads, queries, keys, group] =
            [spec.batch, spec.heads, spec.queries, spec.keys, spec.group]
                .map(|s| self.cx.size(e, s));
        let (thread, x) = (e.kernel_mut().thread(), e.kernel_mut().block(0));
        let (thread, x) = (long(e, thread), long(e, x));
        let (less, high) = (e.i64(QUERIES - 1), e.i64(QUERIES));
        let up = e.add(queries, less);
        let blocks = e.op2("arith.divui", up, high);
        let (rest, block) = divide(e, x, blocks, None);
        let at = coordinates(e, rest, &[batch, heads]);
        let first = e.mul(block, high);
        let p = self.place(e, thread, (at[0], at[1]), (first, queries, keys));
        let (key_head, _) = divide(e, p.head, group, spec.group.as_const());
        let q = self.rows(e, 0, &spec.q, (p.batch, p.head), queries);
        let k = self.rows(e, 1, &spec.k, (p.batch, key_head), keys);
        let v = self.rows(e, 2, &spec.v, (p.batch, key_head), keys);
        let zero = e.i64(0);
        self.copy(e, &p, &q, (first, QUERIES), zero);
        let bounds = Bounds::of(&spec.exprs, spec.score);
        let left = e.sub(queries, first);
        let rows = e.min(left, high, false);
        let (low, end) = bounds.range(e, &mut self.cx, [p.batch, p.head, first, rows], keys);
        let step = e.i64(KEYS);
        let low = e.op2("arith.divsi", low, step);
        let low = e.mul(low, step);
        let [keys_at, values_at, _] = self.shape.places();
        let (keys_at, values_at) = (e.i64(keys_at), e.i64(values_at));
        self.copy(e, &p, &k, (low, KEYS), keys_at);
        e.kernel_mut().end_copies();
        self.copy(e, &p, &v, (low, KEYS), values_at);
        e.kernel_mut().end_copies();
        let state = self.start(e);
        let buffer = e.variables(&[zero])[0];
        let one = e.i64(1);
        e.for_loop(low, end, step, &[], |e, key0, _| {
            let other = e.sub(one, buffer);
            let next = e.add(key0, step);
            e.kernel_mut().wait_copies(1);
            e.kernel_mut().barrier();
            let products = self.products(e, &p, buffer);
            let to = self.part(e, other, keys_at, self.shape.pitch().0);
            self.copy(e, &p, &k, (next, KEYS), to);
            e.kernel_mut().end_copies();
            let weights = self.weights(e, &p, &state, key0, &products);
            e.kernel_mut().wait_copies(1);
            e.kernel_mut().barrier();
            self.add_values(e, &p, &state, buffer, &weights);
            let to = self.part(e, other, values_at, self.shape.pitch().1);
            self.copy(e, &p, &v, (next, KEYS), to);
            e.kernel_mut().end_copies();
            e.assign(&[buffer], &[other]);
            vec![]
        });
        e.kernel_mut().wait_copies(0);
        self.finish(e, &p, &state);
    }

    fn place(
        &self,
        e: &mut Emitter,
        thread: Val,
        (batch, head): (Val, Val),
        (first, queries, keys): (Val, Val, Val),
    ) -> Place {
        let lane = e.kernel_mut().lane();
        let lane = long(e, lane);
        let (size, four, two, eight) = (e.i64(32), e.i64(4), e.i64(2), e.i64(8));
        let warp = e.op2("arith.divui", thread, size);
        let rows = e.i64(ROWS);
        let before = e.mul(warp, rows);
        let g = e.op2("arith.divui", lane, four);
        let t = e.op2("arith.remui", lane, four);
        let row = e.add(before, g);
        let row = e.add(first, row);
        let shared = e.kernel_mut().dynamic_shared();
        Place {
            thread,
            batch,
            head,
            queries,
            keys,
            rows: [row, e.add(row, eight)],
            column: e.mul(t, two),
            shared: e.from_word(shared, Elem::Ptr),
            lane,
            warp,
        }
    }

    fn rows(
        &self,
        e: &mut Emitter,
        arg: usize,
        s: &[Size; 4],
        (batch, head): (Val, Val),
        count: Val,
    ) -> Rows {
        let zero = e.i64(0);
        let at = advance(e, &self.cx, zero, batch, s[0]);
        let at = advance(e, &self.cx, at, head, s[1]);
        let base = e.offset(self.cx.args[arg], at, Elem::I16);
        let step = self.cx.size(e, s[2]);
        let width = match arg {
            2 => (self.spec.values, self.shape.values),
            _ => (self.spec.features, self.shape.features),
        };
        let r = e.long(base);
        let address = e.from_long(r, Elem::I64);
        let two = e.i64(2);
        let bytes = e.mul(step, two);
        let bits = e.op2("arith.ori", address, bytes);
        let (mask, zero) = (e.i64(15), e.i64(0));
        let low = e.op2("arith.andi", bits, mask);
        Rows {
            base,
            step,
            count,
            width,
            aligned: e.cmp(Cmp::Eq, low, zero, false),
        }
    }

    /// The start of place `which` of two, in bytes.
    fn part(&self, e: &mut Emitter, which: Val, start: Val, pitch: i64) -> Val {
        let size = e.i64(KEYS * pitch);
        let skip = e.mul(which, size);
        e.add(start, skip)
    }

    /// Starts copying `many` rows from `first` on to shared memory at `to`; what does not
    /// exist becomes zeros.
    fn copy(&self, e: &mut Emitter, p: &Place, rows: &Rows, (first, many): (Val, i64), to: Val) {
        let (width, padded) = rows.width;
        let chunks = padded / CHUNK;
        let (all, threads, per_row) = (e.i64(many * chunks), e.i64(THREADS), e.i64(chunks));
        let pitch = e.i64(2 * (padded + PAD));
        e.for_loop(p.thread, all, threads, &[], |e, i, _| {
            let r = e.op2("arith.divui", i, per_row);
            let c = e.op2("arith.remui", i, per_row);
            let row = e.add(first, r);
            let exists = e.cmp(Cmp::Lt, row, rows.count, false);
            let eight = e.i64(CHUNK);
            let column = e.mul(c, eight);
            let at = e.mul(row, rows.step);
            let at = e.add(at, column);
            let place = e.mul(r, pitch);
            let two = e.i64(2);
            let skip = e.mul(column, two);
            let place = e.add(place, skip);
            let place = e.add(place, to);
            let place = e.offset(p.shared, place, Elem::I8);
            // Elements of the chunk that exist.
            let wide = e.i64(width);
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

    fn start(&self, e: &mut Emitter) -> State {
        let single = Ty::scalar(Elem::F32);
        let (low, zero) = (e.float(single, f64::NEG_INFINITY), e.float(single, 0.0));
        let max = e.variables(&[low, low]);
        let sum = e.variables(&[zero, zero]);
        let k = e.kernel_mut();
        State {
            max: [max[0], max[1]],
            sum: [sum[0], sum[1]],
            result: (0..self.shape.values / 8)
                .map(|_| std::array::from_fn(|_| k.mov(0.0f32)))
                .collect(),
        }
    }

    /// A lane's address for a matrix instruction: row `l % 8 + 8·a`, 16 bytes at `b`, where
    /// `a` and `b` are bits of `l / 8`: bit 0 is the row's if `rows_first`.
    fn matrix_address(
        &self,
        e: &mut Emitter,
        p: &Place,
        start: Val,
        pitch: i64,
        rows_first: bool,
    ) -> Reg<B32> {
        let (eight, two, sixteen) = (e.i64(8), e.i64(2), e.i64(16));
        let r = e.op2("arith.remui", p.lane, eight);
        let which = e.op2("arith.divui", p.lane, eight);
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
        let at = e.offset(p.shared, at, Elem::I8);
        e.word(at)
    }

    /// `q·k` of the warp's rows and a block of keys: eight keys after eight.
    fn products(&self, e: &mut Emitter, p: &Place, buffer: Val) -> Vec<[Reg<F32>; 4]> {
        let pitch = self.shape.pitch().0;
        let rows = e.i64(ROWS * pitch);
        let own = e.mul(p.warp, rows);
        let a0 = self.matrix_address(e, p, own, pitch, true);
        let keys_at = e.i64(self.shape.places()[0]);
        let start = self.part(e, buffer, keys_at, pitch);
        let b0 = self.matrix_address(e, p, start, pitch, false);
        let k = e.kernel_mut();
        let sums: Vec<[Reg<F32>; 4]> = (0..KEYS / 8)
            .map(|_| std::array::from_fn(|_| k.mov(0.0f32)))
            .collect();
        for f in 0..self.shape.features / 16 {
            let a = k.load_matrices(a0, 32 * f);
            for j in 0..KEYS / 16 {
                let b = k.load_matrices(b0, 16 * j * pitch + 32 * f);
                let at = 2 * j as usize;
                k.multiply(self.half, sums[at], a, [b[0], b[1]]);
                k.multiply(self.half, sums[at + 1], a, [b[2], b[3]]);
            }
        }
        sums
    }

    /// Scores of the products of one of the thread's rows; −∞ where there is no key.
    fn scores(
        &mut self,
        e: &mut Emitter,
        p: &Place,
        key0: Val,
        products: &[[Reg<F32>; 4]],
    ) -> [Vec<Val>; 2] {
        let one = e.i64(1);
        let [last_query, last_key] = [p.queries, p.keys].map(|n| e.sub(n, one));
        // Beyond the end the last one stands in.
        let queries = p.rows.map(|r| e.min(r, last_query, false));
        let mut out = [vec![], vec![]];
        self.cx.axes = vec![Some(p.batch), Some(p.head), None, None];
        self.cx.push();
        self.cx.hoist(e, &[self.spec.score]);
        for (j, sums) in (0..).zip(products) {
            for c in 0..2 {
                let skip = e.i64(8 * j + c);
                let key = e.add(p.column, skip);
                let key = e.add(key0, key);
                let exists = e.cmp(Cmp::Lt, key, p.keys, false);
                let key = e.min(key, last_key, false);
                self.cx.axes[3] = Some(key);
                self.cx.push();
                self.cx.hoist(e, &[self.spec.score]);
                for (i, scores) in out.iter_mut().enumerate() {
                    self.cx.axes[2] = Some(queries[i]);
                    let sum = e.from_single(sums[2 * i + c as usize]);
                    self.cx.accs.insert(0, sum);
                    self.cx.push();
                    let score = self.cx.value(e, self.spec.score);
                    self.cx.pop();
                    self.cx.accs.clear();
                    self.cx.axes[2] = None;
                    let low = e.float(Ty::scalar(Elem::F32), f64::NEG_INFINITY);
                    scores.push(e.select(exists, score, low));
                }
                self.cx.pop();
                self.cx.axes[3] = None;
            }
        }
        self.cx.pop();
        out
    }

    /// Weights as fragments of A, sixteen keys after sixteen; maxima, sums and results as
    /// the new maxima want them.
    fn weights(
        &mut self,
        e: &mut Emitter,
        p: &Place,
        state: &State,
        key0: Val,
        products: &[[Reg<F32>; 4]],
    ) -> Vec<[Reg<B32>; 4]> {
        let scores = self.scores(e, p, key0, products);
        let single = Ty::scalar(Elem::F32);
        let mut weights: [Vec<Reg<F32>>; 2] = [vec![], vec![]];
        for (i, own) in scores.iter().enumerate() {
            let mut max = own.iter().skip(1).fold(own[0], |m, &x| larger(e, m, x));
            for mask in [1, 2] {
                let other = e.shuffle_xor(max, mask);
                max = larger(e, max, other);
            }
            let before = state.max[i];
            let now = larger(e, before, max);
            // A query that has seen no key has −∞, whose difference is no number.
            let low = e.float(single, f64::NEG_INFINITY);
            let none = e.cmp(Cmp::Eq, now, low, false);
            let zero = e.float(single, 0.0);
            let from = e.select(none, zero, now);
            let scale = exponential(e, before, from);
            let mut sum = e.mul(state.sum[i], scale);
            for &x in own {
                let w = exponential(e, x, from);
                sum = e.add(sum, w);
                weights[i].push(e.single(w));
            }
            let scale = e.single(scale);
            for r in &state.result {
                for half in &r[2 * i..2 * i + 2] {
                    let scaled = e.kernel_mut().mul(*half, scale);
                    e.kernel_mut().set(*half, scaled);
                }
            }
            e.assign(&[before, state.sum[i]], &[now, sum]);
        }
        let k = e.kernel_mut();
        (0..KEYS as usize / 16)
            .map(|j| {
                // Two eights of keys, of each two neighbours a row.
                let mut pair = |row: usize, eight: usize| {
                    let at = 2 * (2 * j + eight);
                    k.pack_halves(self.half, weights[row][at], weights[row][at + 1])
                };
                [pair(0, 0), pair(1, 0), pair(0, 1), pair(1, 1)]
            })
            .collect()
    }

    /// `result += weights · values`.
    fn add_values(
        &self,
        e: &mut Emitter,
        p: &Place,
        state: &State,
        buffer: Val,
        weights: &[[Reg<B32>; 4]],
    ) {
        let pitch = self.shape.pitch().1;
        let values_at = e.i64(self.shape.places()[1]);
        let start = self.part(e, buffer, values_at, pitch);
        let b0 = self.matrix_address(e, p, start, pitch, true);
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

    /// Divides by the sums and stores.
    fn finish(&self, e: &mut Emitter, p: &Place, state: &State) {
        let spec = self.spec;
        let arg = spec.args.len() - 1;
        let (t, single) = (spec.args[arg], Ty::scalar(Elem::F32));
        let zero = e.i64(0);
        let at = advance(e, &self.cx, zero, p.batch, spec.out[0]);
        let head = advance(e, &self.cx, at, p.head, spec.out[1]);
        for i in 0..2 {
            let mut total = state.sum[i];
            for mask in [1, 2] {
                let other = e.shuffle_xor(total, mask);
                total = e.add(total, other);
            }
            let (none, one) = (e.float(single, 0.0), e.float(single, 1.0));
            let empty = e.cmp(Cmp::Eq, total, none, false);
            let total = e.select(empty, one, total);
            let inverse = e.divf(one, total);
            let exists = e.cmp(Cmp::Lt, p.rows[i], p.queries, false);
            e.if_then(exists, |e| {
                let row = advance(e, &self.cx, head, p.rows[i], spec.out[2]);
                for (j, r) in (0..).zip(&state.result) {
                    for c in 0..2 {
                        let skip = e.i64(8 * j + c);
                        let column = e.add(p.column, skip);
                        let x = e.from_single(r[2 * i + c as usize]);
                        let x = e.mul(x, inverse);
                        let x = convert(e, x, DType::F32, t);
                        let at = advance(e, &self.cx, row, column, spec.out[3]);
                        let to = e.offset(self.cx.args[arg], at, memory_elem(t));
                        if 8 * (j + 1) <= spec.values {
                            e.store(x, to);
                            continue;
                        }
                        let width = e.i64(spec.values);
                        let inside = e.cmp(Cmp::Lt, column, width, false);
                        e.if_then(inside, |e| e.store(x, to));
                    }
                }
            });
        }
    }
}
