//! Attention without tensor cores: any types, strides, masks and biases.
//!
//! A block of 128 threads takes some queries of one head and walks blocks of keys, as
//! FlashAttention-2 does (Dao 2023): scores stay in registers, the weights of a thread's
//! rows pass through shared memory to the eight threads (of one warp) that share these
//! rows, maxima and sums are joined by shuffles, and the result is rescaled in registers.
//! Exponentials are `ex2.approx` of the special function unit.

use super::gemm::coordinates;
use super::nest::{divide, long};
use super::{GpuKernel, Ports, attention_groups, attention_halves, attention_split, dim, entry};
use crate::Size;
use crate::attention::AttentionSpec;
use crate::lower::{ExprCx, convert, memory_elem, widen};
use crate::matmul::advance;
use crate::nest::SpecError;
use crate::softmax::Bounds;
use kiln_codegen::emit::Cmp;
use kiln_codegen::ptx::Fn1;
use kiln_codegen::{Elem, Emitter, GpuTarget, Ty, Val};
use kiln_ir::{DType, Dim};

/// Threads of a block: 16 rows of 8.
const THREADS: i64 = 128;

/// Threads that share rows.
const ACROSS: i64 = 8;

/// Words that rows of shared memory are apart more than they hold: other banks, and
/// still 16 bytes.
const PAD: i64 = 4;

const F32: Ty = Ty::scalar(Elem::F32);

/// How many queries and keys a block works on, and where in shared memory.
#[derive(Clone, Copy, Debug)]
struct Tile {
    queries: i64,
    keys: i64,
    /// Features, and values to a multiple of 32.
    features: i64,
    values: i64,
}

impl Tile {
    /// The largest that a block's shared memory holds.
    fn of(spec: &AttentionSpec, target: &GpuTarget) -> Option<Tile> {
        let all = [(64, 64), (64, 32), (32, 32), (16, 32), (16, 16)];
        let few = [(16, 64), (16, 32), (16, 16)];
        let sizes: &[(i64, i64)] = if spec.block <= 16 { &few } else { &all };
        sizes
            .iter()
            .map(|&(queries, keys)| Tile {
                queries,
                keys,
                features: spec.features,
                values: (spec.values + 31) / 32 * 32,
            })
            .find(|t| t.bytes() <= i64::from(target.shared_per_block))
    }

    /// Places, in words: queries `[feature][query]`, keys `[feature][key]`, values
    /// `[key][value]`, weights `[key][query]`; and the end.
    fn places(&self) -> [i64; 5] {
        let q = self.features * (self.queries + PAD);
        let k = self.features * (self.keys + PAD);
        let v = self.keys * (self.values + PAD);
        let p = self.keys * (self.queries + PAD);
        [0, q, q + k, q + k + v, q + k + v + p]
    }

    fn bytes(&self) -> i64 {
        4 * self.places()[4]
    }

    /// Rows of a thread.
    fn rows(&self) -> i64 {
        self.queries / (THREADS / ACROSS)
    }

    /// Keys of a thread.
    fn columns(&self) -> i64 {
        self.keys / ACROSS
    }
}

pub(super) fn emit(
    spec: &AttentionSpec,
    name: &str,
    target: &GpuTarget,
) -> Result<Vec<GpuKernel>, SpecError> {
    let split =
        attention_halves::serves(spec).map(|half| attention_split::emit(spec, half, name, target));
    let whole = whole(spec, name, target)?;
    Ok(split.into_iter().flatten().chain(whole).collect())
}

/// The forms for any number of queries and keys.
fn whole(
    spec: &AttentionSpec,
    name: &str,
    target: &GpuTarget,
) -> Result<Vec<GpuKernel>, SpecError> {
    if let Some(half) = attention_groups::serves(spec, target) {
        return Ok(attention_groups::emit(spec, half, name, target));
    }
    let halves = attention_halves::serves(spec)
        .and_then(|half| attention_halves::emit(spec, half, name, target));
    if let Some(kernel) = halves {
        return Ok(vec![kernel]);
    }
    let Some(tile) = Tile::of(spec, target) else {
        return Err(SpecError(format!(
            "heads of {} and {} features are too large for {}",
            spec.features, spec.values, target.name
        )));
    };
    let shared = tile.bytes();
    let block = (THREADS, tile.queries);
    let write = |e: &mut Emitter, cx, _| Attend { spec, tile, cx }.write(e);
    Ok(vec![kernel(spec, (name, target), block, shared, write)])
}

/// A kernel whose blocks, of so many threads, attend from so many queries of a head each,
/// with `shared` bytes of shared memory. `write` gets what expressions need, and scratch.
pub(super) fn kernel<'a>(
    spec: &'a AttentionSpec,
    (name, target): (&str, &GpuTarget),
    (threads, queries): (i64, i64),
    shared: i64,
    write: impl FnOnce(&mut Emitter, ExprCx<'a>, Val),
) -> GpuKernel {
    let blocks = dim(spec.queries).ceil_div(&queries.into());
    let (body, _) = entry(name, target, threads as u32, |e| {
        let ports = Ports::declare(e, spec.args.len(), spec.params);
        let cx = ExprCx::new(&spec.exprs, ports.args, ports.params, ports.status);
        write(e, cx, ports.scratch);
    });
    GpuKernel {
        entry: name.to_string(),
        body,
        grid: [
            dim(spec.batch) * dim(spec.heads) * blocks,
            Dim::ONE,
            Dim::ONE,
        ],
        block: [threads as u32, 1, 1],
        cluster: [1; 3],
        shared: shared as u32,
        ..GpuKernel::default()
    }
}

struct Attend<'a> {
    spec: &'a AttentionSpec,
    tile: Tile,
    cx: ExprCx<'a>,
}

/// Where a block and a thread are.
struct Place {
    thread: Val,
    batch: Val,
    head: Val,
    /// The block's first query, and how many there are.
    first: Val,
    queries: Val,
    keys: Val,
    /// The thread's first row in the block, and its place among those that share it.
    row: Val,
    across: Val,
    /// Queries, keys, values and weights in shared memory.
    shared: [Val; 4],
}

/// What a thread carries from one block of keys to the next, for each of its rows.
struct State {
    max: Vec<Val>,
    sum: Vec<Val>,
    /// Row by row, chunks of four values.
    result: Vec<Val>,
}

impl<'a> Attend<'a> {
    fn write(&mut self, e: &mut Emitter) {
        let (spec, tile) = (self.spec, self.tile);
        let [batch, heads, queries, keys, group] =
            [spec.batch, spec.heads, spec.queries, spec.keys, spec.group]
                .map(|s| self.cx.size(e, s));
        let _ = batch;
        let (thread, x) = (e.kernel_mut().thread(), e.kernel_mut().block(0));
        let (thread, x) = (long(e, thread), long(e, x));
        let (less, high) = (e.i64(tile.queries - 1), e.i64(tile.queries));
        let up = e.add(queries, less);
        let blocks = e.op2("arith.divui", up, high);
        let (rest, block) = divide(e, x, blocks, None);
        let at = coordinates(e, rest, &[batch, heads]);
        let (batch, head) = (at[0], at[1]);
        let first = e.mul(block, high);
        let base = e.kernel_mut().dynamic_shared();
        let base = e.from_word(base, Elem::Ptr);
        let places = tile.places();
        let shared = [0, 1, 2, 3].map(|i| {
            let skip = e.i64(places[i]);
            e.offset(base, skip, Elem::F32)
        });
        let (eight, rows) = (e.i64(ACROSS), e.i64(tile.rows()));
        let row = e.op2("arith.divui", thread, eight);
        let p = Place {
            thread,
            batch,
            head,
            first,
            queries,
            keys,
            row: e.mul(row, rows),
            across: e.op2("arith.remui", thread, eight),
            shared,
        };
        let (key_head, _) = divide(e, head, group, spec.group.as_const());
        let q0 = self.base(e, 0, &spec.q, batch, head);
        let k0 = self.base(e, 1, &spec.k, batch, key_head);
        let v0 = self.base(e, 2, &spec.v, batch, key_head);
        let extents = (tile.queries, tile.features);
        self.turn(
            e,
            &p,
            (0, q0, &spec.q),
            (first, queries),
            extents,
            shared[0],
        );
        let state = self.start(e);
        let bounds = Bounds::of(&spec.exprs, spec.score);
        let left = e.sub(queries, first);
        let rows = e.min(left, high, false);
        let (low, end) = bounds.range(e, &mut self.cx, [batch, head, first, rows], keys);
        let step = e.i64(tile.keys);
        let low = e.op2("arith.divsi", low, step);
        let low = e.mul(low, step);
        e.for_loop(low, end, step, &[], |e, key0, _| {
            // What was read of the last block of keys has been used.
            e.kernel_mut().barrier();
            let extents = (tile.keys, tile.features);
            self.turn(e, &p, (1, k0, &spec.k), (key0, keys), extents, p.shared[1]);
            self.values(e, &p, v0, key0);
            e.kernel_mut().barrier();
            self.block_of_keys(e, &p, &state, key0);
            vec![]
        });
        self.finish(e, &p, &state);
    }

    fn base(&self, e: &mut Emitter, arg: usize, s: &[Size; 4], batch: Val, head: Val) -> Val {
        let zero = e.i64(0);
        let at = advance(e, &self.cx, zero, batch, s[0]);
        let at = advance(e, &self.cx, at, head, s[1]);
        e.offset(self.cx.args[arg], at, memory_elem(self.spec.args[arg]))
    }

    /// Rows of `arg` from `first` on to shared memory, `[feature][row]`, those beyond the
    /// end as 0.
    fn turn(
        &self,
        e: &mut Emitter,
        p: &Place,
        (arg, from, strides): (usize, Val, &[Size; 4]),
        (first, count): (Val, Val),
        (rows, features): (i64, i64),
        to: Val,
    ) {
        let t = self.spec.args[arg];
        let (all, threads) = (e.i64(rows * features), e.i64(THREADS));
        let along_rows = strides[2] == Size::ONE && strides[3] != Size::ONE;
        let fast = e.i64(if along_rows { rows } else { features });
        e.for_loop(p.thread, all, threads, &[], |e, i, _| {
            let fast_at = e.op2("arith.remui", i, fast);
            let slow_at = e.op2("arith.divui", i, fast);
            let (r, f) = match along_rows {
                true => (fast_at, slow_at),
                false => (slow_at, fast_at),
            };
            let row = e.add(first, r);
            let exists = e.cmp(Cmp::Lt, row, count, false);
            let zero = e.i64(0);
            let at = advance(e, &self.cx, zero, row, strides[2]);
            let at = advance(e, &self.cx, at, f, strides[3]);
            let x = self.element(e, (from, at), t, exists);
            let pitch = e.i64(rows + PAD);
            let at = e.mul(f, pitch);
            let at = e.add(at, r);
            let place = e.offset(to, at, Elem::F32);
            e.store(x, place);
            vec![]
        });
    }

    /// A block of values to shared memory, `[key][value]`, what does not exist as 0.
    fn values(&self, e: &mut Emitter, p: &Place, from: Val, key0: Val) {
        let tile = self.tile;
        let t = self.spec.args[2];
        let (all, threads) = (e.i64(tile.keys * tile.values), e.i64(THREADS));
        let width = e.i64(tile.values);
        e.for_loop(p.thread, all, threads, &[], |e, i, _| {
            let c = e.op2("arith.remui", i, width);
            let r = e.op2("arith.divui", i, width);
            let key = e.add(key0, r);
            let mut exists = e.cmp(Cmp::Lt, key, p.keys, false);
            if tile.values != self.spec.values {
                let width = e.i64(self.spec.values);
                let inside = e.cmp(Cmp::Lt, c, width, false);
                exists = e.op2("arith.andi", exists, inside);
            }
            let at = advance(e, &self.cx, c, key, self.spec.v[2]);
            let x = self.element(e, (from, at), t, exists);
            let pitch = e.i64(tile.values + PAD);
            let at = e.mul(r, pitch);
            let at = e.add(at, c);
            let place = e.offset(p.shared[2], at, Elem::F32);
            e.store(x, place);
            vec![]
        });
    }

    fn element(&self, e: &mut Emitter, (from, at): (Val, Val), t: DType, exists: Val) -> Val {
        let elem = memory_elem(t);
        let at = e.offset(from, at, elem);
        let x = e.load_where(exists, at, Ty::scalar(elem));
        let x = widen(e, x, t);
        convert(e, x, t, DType::F32)
    }

    fn start(&self, e: &mut Emitter) -> State {
        let rows = self.tile.rows();
        let (low, zero) = (e.float(F32, f64::NEG_INFINITY), e.float(F32, 0.0));
        let columns = rows * self.tile.values / ACROSS;
        State {
            max: e.variables(&vec![low; rows as usize]),
            sum: e.variables(&vec![zero; rows as usize]),
            result: e.variables(&vec![zero; columns as usize]),
        }
    }

    /// Scores, weights and what they add, for one block of keys.
    fn block_of_keys(&mut self, e: &mut Emitter, p: &Place, state: &State, key0: Val) {
        let products = self.products(e, p);
        let scores = self.scores(e, p, key0, &products);
        self.weights(e, p, state, &scores);
        // Weights of a row are written and read by lanes of one warp.
        e.kernel_mut().warp_barrier();
        self.add_values(e, p, state);
    }

    /// `q·k` of the thread's rows and keys, row by row.
    fn products(&self, e: &mut Emitter, p: &Place) -> Vec<Val> {
        let tile = self.tile;
        let (rows, columns) = (tile.rows(), tile.columns());
        let zero = e.float(F32, 0.0);
        let sums = e.variables(&vec![zero; (rows * columns) as usize]);
        let a0 = e.offset(p.shared[0], p.row, Elem::F32);
        let step = e.i64(chunk(columns));
        let column = e.mul(p.across, step);
        let b0 = e.offset(p.shared[1], column, Elem::F32);
        let (none, features, unroll) = (e.i64(0), e.i64(tile.features), e.i64(1));
        e.for_loop(none, features, unroll, &[], |e, f, _| {
            let (pa, pb) = (e.i64(tile.queries + PAD), e.i64(tile.keys + PAD));
            let at = e.mul(f, pa);
            let a = e.offset(a0, at, Elem::F32);
            let a = e.load_few(a, Elem::F32, rows as u32);
            let at = e.mul(f, pb);
            let b = e.offset(b0, at, Elem::F32);
            let b = self.spread(e, b, columns);
            for (i, &x) in a.iter().enumerate() {
                for (j, &y) in b.iter().enumerate() {
                    e.multiply_into(sums[i * columns as usize + j], x, y);
                }
            }
            vec![]
        });
        sums
    }

    /// The thread's `count` of a row in shared memory: chunks of neighbours, those of the
    /// eight threads one after the other.
    fn spread(&self, e: &mut Emitter, from: Val, count: i64) -> Vec<Val> {
        let own = chunk(count);
        (0..count / own)
            .flat_map(|c| {
                let skip = e.i64(c * own * ACROSS);
                let at = e.offset(from, skip, Elem::F32);
                e.load_few(at, Elem::F32, own as u32)
            })
            .collect()
    }

    /// The number of the thread's key `j` in the block.
    fn key_of(&self, e: &mut Emitter, p: &Place, j: i64) -> Val {
        let own = chunk(self.tile.columns());
        let (skip, step) = (e.i64(j / own * own * ACROSS + j % own), e.i64(own));
        let at = e.mul(p.across, step);
        e.add(at, skip)
    }

    /// Scores of products; −∞ where there is no key.
    fn scores(&mut self, e: &mut Emitter, p: &Place, key0: Val, products: &[Val]) -> Vec<Val> {
        let (rows, columns) = (self.tile.rows(), self.tile.columns());
        let one = e.i64(1);
        let mut scores = vec![products[0]; products.len()];
        let last = [p.queries, p.keys].map(|n| e.sub(n, one));
        let queries: Vec<Val> = (0..rows)
            .map(|i| {
                let skip = e.i64(i);
                let r = e.add(p.row, skip);
                let q = e.add(p.first, r);
                // Beyond the end the last one stands in.
                e.min(q, last[0], false)
            })
            .collect();
        self.cx.axes = vec![Some(p.batch), Some(p.head), None, None];
        self.cx.push();
        self.cx.hoist(e, &[self.spec.score]);
        for j in 0..columns {
            let key = self.key_of(e, p, j);
            let key = e.add(key0, key);
            let exists = e.cmp(Cmp::Lt, key, p.keys, false);
            let key = e.min(key, last[1], false);
            self.cx.axes[3] = Some(key);
            self.cx.push();
            self.cx.hoist(e, &[self.spec.score]);
            for i in 0..rows {
                let at = (i * columns + j) as usize;
                self.cx.axes[2] = Some(queries[i as usize]);
                self.cx.accs.insert(0, products[at]);
                self.cx.push();
                let score = self.cx.value(e, self.spec.score);
                self.cx.pop();
                self.cx.accs.clear();
                self.cx.axes[2] = None;
                let low = e.float(F32, f64::NEG_INFINITY);
                scores[at] = e.select(exists, score, low);
            }
            self.cx.pop();
            self.cx.axes[3] = None;
        }
        self.cx.pop();
        scores
    }

    /// Weights to shared memory; maxima, sums and results as the new maxima want them.
    fn weights(&self, e: &mut Emitter, p: &Place, state: &State, scores: &[Val]) {
        let tile = self.tile;
        let (rows, columns) = (tile.rows(), tile.columns());
        let mut weights = vec![vec![]; columns as usize];
        for i in 0..rows {
            let own = &scores[(i * columns) as usize..((i + 1) * columns) as usize];
            let mut max = own[0];
            for &x in &own[1..] {
                max = larger(e, max, x);
            }
            for mask in [4, 2, 1] {
                let other = e.shuffle_xor(max, mask);
                max = larger(e, max, other);
            }
            let before = state.max[i as usize];
            let now = larger(e, before, max);
            // A query that has seen no key has −∞, whose difference is no number.
            let low = e.float(F32, f64::NEG_INFINITY);
            let none = e.cmp(Cmp::Eq, now, low, false);
            let zero = e.float(F32, 0.0);
            let from = e.select(none, zero, now);
            let scale = exponential(e, before, from);
            let mut sum = e.mul(state.sum[i as usize], scale);
            for (j, &x) in own.iter().enumerate() {
                let w = exponential(e, x, from);
                sum = e.add(sum, w);
                weights[j].push(w);
            }
            let per_row = state.result.len() / rows as usize;
            let results = &state.result[i as usize * per_row..(i as usize + 1) * per_row];
            let scaled: Vec<Val> = results.iter().map(|&x| e.mul(x, scale)).collect();
            e.assign(results, &scaled);
            e.assign(&[before, state.sum[i as usize]], &[now, sum]);
        }
        for (j, rows) in (0..).zip(&weights) {
            let key = self.key_of(e, p, j);
            let pitch = e.i64(tile.queries + PAD);
            let at = e.mul(key, pitch);
            let at = e.add(at, p.row);
            let to = e.offset(p.shared[3], at, Elem::F32);
            e.store_few(rows, to);
        }
    }

    /// `result += weights · values`.
    fn add_values(&self, e: &mut Emitter, p: &Place, state: &State) {
        let tile = self.tile;
        let rows = tile.rows();
        let per_row = tile.values / ACROSS;
        let a0 = e.offset(p.shared[3], p.row, Elem::F32);
        let four = e.i64(chunk(per_row));
        let column = e.mul(p.across, four);
        let b0 = e.offset(p.shared[2], column, Elem::F32);
        let (none, keys, one) = (e.i64(0), e.i64(tile.keys), e.i64(1));
        e.for_loop(none, keys, one, &[], |e, key, _| {
            let (pa, pb) = (e.i64(tile.queries + PAD), e.i64(tile.values + PAD));
            let at = e.mul(key, pa);
            let a = e.offset(a0, at, Elem::F32);
            let a = e.load_few(a, Elem::F32, rows as u32);
            let at = e.mul(key, pb);
            let b = e.offset(b0, at, Elem::F32);
            let b = self.spread(e, b, per_row);
            for (i, &x) in a.iter().enumerate() {
                for (j, &y) in b.iter().enumerate() {
                    e.multiply_into(state.result[i * per_row as usize + j], x, y);
                }
            }
            vec![]
        });
    }

    /// Divides by the sums and stores.
    fn finish(&self, e: &mut Emitter, p: &Place, state: &State) {
        let (spec, tile) = (self.spec, self.tile);
        let arg = spec.args.len() - 1;
        let t = spec.args[arg];
        let to = self.base(e, arg, &spec.out, p.batch, p.head);
        let per_row = tile.values / ACROSS;
        let own = chunk(per_row);
        for i in 0..tile.rows() {
            let mut total = state.sum[i as usize];
            for mask in [4, 2, 1] {
                let other = e.shuffle_xor(total, mask);
                total = e.add(total, other);
            }
            let (zero, one) = (e.float(F32, 0.0), e.float(F32, 1.0));
            let empty = e.cmp(Cmp::Eq, total, zero, false);
            let total = e.select(empty, one, total);
            let inverse = e.divf(one, total);
            let skip = e.i64(i);
            let r = e.add(p.row, skip);
            let query = e.add(p.first, r);
            let exists = e.cmp(Cmp::Lt, query, p.queries, false);
            e.if_then(exists, |e| {
                let zero = e.i64(0);
                let row = advance(e, &self.cx, zero, query, spec.out[2]);
                for j in 0..per_row {
                    let (skip, step) = (e.i64(j / own * own * ACROSS + j % own), e.i64(own));
                    let c = e.mul(p.across, step);
                    let c = e.add(c, skip);
                    let x = state.result[(i * per_row + j) as usize];
                    let x = e.mul(x, inverse);
                    let x = convert(e, x, DType::F32, t);
                    let at = advance(e, &self.cx, row, c, spec.out[3]);
                    let place = e.offset(to, at, memory_elem(t));
                    match tile.values == spec.values {
                        true => e.store(x, place),
                        false => {
                            let width = e.i64(spec.values);
                            let inside = e.cmp(Cmp::Lt, c, width, false);
                            e.if_then(inside, |e| e.store(x, place));
                        }
                    }
                }
            });
        }
    }
}

/// Neighbours that a thread reads at once of `count`.
fn chunk(count: i64) -> i64 {
    count.min(4)
}

/// The larger number: of NaN and a number NaN, so that it is not lost.
pub(super) fn larger(e: &mut Emitter, a: Val, b: Val) -> Val {
    if e.kernel_mut().target().is_hopper() {
        let (a, b) = (e.single(a), e.single(b));
        let r = e.kernel_mut().larger_or_nan(a, b);
        return e.from_single(r);
    }
    e.max(a, b, false)
}

/// `exp(x - from)`.
pub(super) fn exponential(e: &mut Emitter, x: Val, from: Val) -> Val {
    let difference = e.sub(x, from);
    let scale = e.float(F32, std::f64::consts::LOG2_E);
    let power = e.mul(difference, scale);
    let r = e.single(power);
    let r = e.kernel_mut().float_fn(Fn1::Exp2Approx, r);
    e.from_single(r)
}
