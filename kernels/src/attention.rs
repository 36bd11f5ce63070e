//! The attention family: `softmax(score(Q·Kᵀ))·V` without the score matrix in
//! memory, by online softmax (Milakov and Gimelshein 2018; Dao et al. 2022).
//!
//! A work unit is a block of queries of one head. Lanes run along *queries*: the
//! unit transposes its queries once, then scores come as `Sᵀ[key][query]` from
//! the register tile with K's rows as they lie in memory, maxima and sums over
//! keys need no horizontal step, and a mask that does not depend on the query is
//! one scalar load a key. Of bf16, both products sum two neighbours at a time
//! (`pairs.rs`).

mod pairs;

use crate::check::Names;
use crate::expr::{ExprId, Exprs, Size};
use crate::lower::{ExprCx, memory_elem};
use crate::matmul::{advance, ceil_div, div_rem};
use crate::micro::{self, Operand, Tile};
use crate::nest::{LANES, SCRATCH_HEAD, SpecError, size_dim};
use crate::softmax::Bounds;
use kiln_codegen::emit::{Cmp, KernelArgs};
use kiln_codegen::{CpuTarget, Elem, Emitter, Ty, Val};
use kiln_ir::{DType, Dim};
use serde::{Deserialize, Serialize};

/// Keys handled between two rescalings.
const KEYS: i64 = 128;

/// Attention of one precision (f32 inside). Buffers: q, k, v, the score's own,
/// the result. The score's axes are batch, head, query, key; its `Acc(0)` is
/// `q·k`, and −inf hides a key. A query that sees no key gives 0.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct AttentionSpec {
    /// The score's expressions.
    pub exprs: Exprs,
    /// Element type of each buffer.
    pub args: Vec<DType>,
    /// How many launch parameters there are.
    pub params: u16,
    /// Batches.
    pub batch: Size,
    /// Query heads.
    pub heads: Size,
    /// Query heads that share a key head.
    pub group: Size,
    /// Queries.
    pub queries: Size,
    /// Keys.
    pub keys: Size,
    /// Features of q and k.
    pub features: i64,
    /// Features of v and the result.
    pub values: i64,
    /// Strides of q along batch, head, query, feature; likewise the others.
    pub q: [Size; 4],
    /// k's.
    pub k: [Size; 4],
    /// v's; the last is 1.
    pub v: [Size; 4],
    /// The result's.
    pub out: [Size; 4],
    /// The score, f32.
    pub score: ExprId,
    /// Queries of a work unit, a multiple of 16.
    pub block: i64,
}

impl AttentionSpec {
    /// Checks that the parts agree.
    pub fn check(&self) -> Result<(), SpecError> {
        let fits = self.args.len() >= 4
            && self.block > 0
            && self.block % LANES == 0
            && self.features > 0
            && self.values > 0
            && self.v[3] == Size::ONE
            && (self.score.0 as usize) < self.exprs.len()
            && self.exprs.dtype(self.score) == DType::F32;
        if !fits {
            return Err(SpecError("attention's parts do not agree".into()));
        }
        let names = Names {
            exprs: &self.exprs,
            args: &self.args[..self.args.len() - 1],
            params: self.params,
            axes: 4,
            acc: DType::F32,
        };
        names.expression(self.score)?;
        names.sizes(&[self.batch, self.heads, self.group, self.queries, self.keys])?;
        [self.q, self.k, self.v, self.out]
            .iter()
            .try_for_each(|s| names.sizes(s))
    }

    /// Work units of a launch.
    pub fn tiles(&self, params: &[Dim]) -> Dim {
        let dim = |s: Size| size_dim(s, params);
        dim(self.batch) * dim(self.heads) * dim(self.queries).ceil_div(&self.block.into())
    }

    /// Scratch bytes of a thread.
    pub fn scratch_bytes(&self, _: &[Dim]) -> Dim {
        Dim::from(self.places().end)
    }

    /// Arithmetic operations and bytes moved by a launch: of the keys that queries see, which
    /// heads in a group read once.
    pub fn cost(&self, params: &[Dim]) -> (Dim, Dim) {
        let dim = |s: Size| size_dim(s, params);
        let heads = dim(self.batch) * dim(self.heads);
        let key_heads = dim(self.batch) * dim(self.heads).floor_div(&dim(self.group));
        let bounds = Bounds::of(&self.exprs, self.score);
        let seen = bounds.seen(&self.exprs, params, &dim(self.queries), &dim(self.keys));
        let size = Dim::from(self.args[0].size().unwrap_or(4));
        let rows = heads.clone() * dim(self.queries) + key_heads * dim(self.keys);
        let row = Dim::from(self.features + self.values);
        (
            heads * seen * Dim::from(2 * (self.features + self.values) + 24),
            rows * row * size,
        )
    }

    fn places(&self) -> Places {
        let b = self.block;
        let mut at = SCRATCH_HEAD;
        let mut take = |elements: i64| {
            let here = at;
            at += (elements * 4 + 63) / 64 * 64;
            here
        };
        let value_columns = (self.values + LANES - 1) / LANES * LANES;
        Places {
            queries: take((self.features + LANES - 1) / LANES * LANES * b),
            scores: take(KEYS * b),
            result: take(b * value_columns),
            max: take(b),
            sum: take(b),
            scale: take(b),
            values: match self.as_pairs() {
                Some(_) => take(KEYS / 2 * value_columns),
                None => 0,
            },
            end: at,
        }
    }

    /// The kernel's MLIR.
    pub fn emit(&self, symbol: &str, target: &CpuTarget) -> String {
        Emitter::kernel(symbol, target, |e, args| self.body(e, args, target))
    }

    fn body(&self, e: &mut Emitter, args: KernelArgs, target: &CpuTarget) -> Val {
        let params = micro::params(e, args.params, self.params);
        let buffers: Vec<Val> = (0..self.args.len())
            .map(|i| micro::buffer(e, args.args, i))
            .collect();
        let mut cx = ExprCx::new(&self.exprs, buffers, params, args.scratch);
        cx.clear_status(e);
        let (queries, heads) = (cx.size(e, self.queries), cx.size(e, self.heads));
        let block = e.i64(self.block);
        let blocks = ceil_div(e, queries, block);
        let one = e.i64(1);
        e.for_loop(args.begin, args.end, one, &[], |e, unit, _| {
            cx.push();
            let (rest, at) = div_rem(e, unit, blocks);
            let (batch, head) = div_rem(e, rest, heads);
            let first = e.mul(at, block);
            self.unit(e, &mut cx, target, batch, head, first);
            cx.pop();
            vec![]
        });
        cx.status(e)
    }

    /// Attention of one block of queries.
    fn unit(
        &self,
        e: &mut Emitter,
        cx: &mut ExprCx,
        target: &CpuTarget,
        batch: Val,
        head: Val,
        first: Val,
    ) {
        let places = self.places();
        let scratch = cx.scratch;
        let place = |e: &mut Emitter, at: i64| {
            let at = e.i64(at);
            e.offset(scratch, at, Elem::I8)
        };
        let (qt, scores, result) = (
            place(e, places.queries),
            place(e, places.scores),
            place(e, places.result),
        );
        let (max, sum, scale) = (
            place(e, places.max),
            place(e, places.sum),
            place(e, places.scale),
        );
        let (queries, keys) = (cx.size(e, self.queries), cx.size(e, self.keys));
        let (zero, one) = (e.i64(0), e.i64(1));
        let left = e.sub(queries, first);
        let block = e.i64(self.block);
        let rows = e.min(left, block, false);
        let group = cx.size(e, self.group);
        let (key_head, _) = div_rem(e, head, group);
        let base = |e: &mut Emitter, cx: &ExprCx, arg: usize, s: &[Size; 4], head: Val| {
            let at = advance(e, cx, zero, batch, s[0]);
            let at = advance(e, cx, at, head, s[1]);
            e.offset(cx.args[arg], at, memory_elem(self.args[arg]))
        };
        let (q0, k0) = (
            base(e, cx, 0, &self.q, head),
            base(e, cx, 1, &self.k, key_head),
        );
        let v0 = base(e, cx, 2, &self.v, key_head);
        let out0 = base(e, cx, self.args.len() - 1, &self.out, head);
        let lanes = LANES as u32;
        let wide = Ty::vector(Elem::F32, lanes);

        let q_strides = [cx.size(e, self.q[2]), cx.size(e, self.q[3])];
        let at = e.mul(first, q_strides[0]);
        let q_elem = memory_elem(self.args[0]);
        let q_first = e.offset(q0, at, q_elem);
        let pairs = self.as_pairs();
        let paired_values = place(e, places.values);
        match &pairs {
            Some(pairs) => pairs.transpose_queries(e, q_first, q_strides[0], rows, qt),
            None => self.transpose_queries(e, q_first, q_strides, rows, qt),
        }
        let (low, none) = (e.float(wide, f64::NEG_INFINITY), e.float(wide, 0.0));
        for j in (0..self.block).step_by(LANES as usize) {
            let j = e.i64(j);
            let (pm, ps) = (e.offset(max, j, Elem::F32), e.offset(sum, j, Elem::F32));
            e.store(low, pm);
            e.store(none, ps);
        }
        let columns = places.columns(self.values);
        let cells = e.i64(self.block * columns);
        let step = e.i64(LANES);
        e.for_loop(zero, cells, step, &[], |e, i, _| {
            let p = e.offset(result, i, Elem::F32);
            e.store(none, p);
            vec![]
        });

        // Blocks of keys that no query here sees are skipped; the others stay where
        // they are, so that a query's result depends on no other query.
        let key_block = e.i64(KEYS);
        let bounds = Bounds::of(&self.exprs, self.score);
        let (low_key, high_key) = bounds.range(e, cx, [batch, head, first, rows], keys);
        let low_block = e.op2("arith.divsi", low_key, key_block);
        let low_key = e.mul(low_block, key_block);
        e.for_loop(low_key, high_key, key_block, &[], |e, key0, _| {
            let left = e.sub(high_key, key0);
            let count = e.min(left, key_block, false);
            match &pairs {
                Some(pairs) => pairs.scores(e, cx, target, (k0, key0, count), qt, scores),
                None => self.scores(e, cx, target, (k0, key0, count), (qt, block), scores),
            }
            self.softmax_block(
                e,
                cx,
                [batch, head, first, rows],
                (key0, count),
                scores,
                [max, sum, scale],
            );
            if let Some(pairs) = &pairs {
                pairs.narrow_weights(e, count, rows, scores);
                pairs.pack_values(e, cx, (v0, key0, count), paired_values);
                let from = (scores, paired_values, count);
                pairs.accumulate(e, target, from, (result, columns, rows), scale);
                return vec![];
            }
            self.accumulate(
                e,
                cx,
                target,
                (v0, key0, count),
                (scores, block),
                (result, columns, rows),
                scale,
            );
            vec![]
        });

        // Divide by the sums and store.
        let out_elem = memory_elem(self.args[self.args.len() - 1]);
        let (out_query, out_feature) = (cx.size(e, self.out[2]), cx.size(e, self.out[3]));
        let width = e.i64(columns);
        e.for_loop(zero, rows, one, &[], |e, r, _| {
            let p = e.offset(sum, r, Elem::F32);
            let total = e.load(p, Ty::scalar(Elem::F32));
            let zero_f = e.float(Ty::scalar(Elem::F32), 0.0);
            let one_f = e.float(Ty::scalar(Elem::F32), 1.0);
            let empty = e.cmp(Cmp::Eq, total, zero_f, false);
            let total = e.select(empty, one_f, total);
            let inverse = e.divf(one_f, total);
            let query = e.add(first, r);
            let to = e.mul(query, out_query);
            let from = e.mul(r, width);
            for j in (0..self.values).step_by(LANES as usize) {
                let c = e.i64(j);
                let at = e.add(from, c);
                let p = e.offset(result, at, Elem::F32);
                let x = e.load(p, wide);
                let y = e.mul(x, inverse);
                let y = e.cast(y, out_elem, false, false);
                let count = e.i64((self.values - j).min(LANES));
                let mask = e.mask_first(count, lanes);
                let skip = e.mul(c, out_feature);
                let at = e.add(to, skip);
                let p = e.offset(out0, at, out_elem);
                if self.out[3] == Size::ONE {
                    e.store_masked(y, p, mask);
                } else {
                    let lane = e.iota(Elem::I64, lanes);
                    let steps = e.mul(lane, out_feature);
                    let pointers = e.offset(p, steps, out_elem);
                    e.scatter(y, pointers, mask);
                }
            }
            vec![]
        });
    }

    /// Queries as f32, `[feature][query]`. Those beyond the end repeat the last.
    fn transpose_queries(
        &self,
        e: &mut Emitter,
        from: Val,
        [query, feature]: [Val; 2],
        rows: Val,
        qt: Val,
    ) {
        let (zero, one, step) = (e.i64(0), e.i64(1), e.i64(LANES));
        let (block, features) = (e.i64(self.block), e.i64(self.features));
        let (elem, lanes) = (memory_elem(self.args[0]), LANES as u32);
        let ty = Ty::vector(elem, lanes);
        if self.q[3] == Size::ONE {
            let extents = (rows, features, self.features % LANES == 0);
            micro::turn(e, extents, (qt, block), &mut |e, row, f, mask| {
                let at = e.mul(row, query);
                let at = e.add(at, f);
                let p = e.offset(from, at, elem);
                let raw = e.load_run(p, ty, mask);
                micro::widen(e, raw, self.args[0], DType::F32)
            });
            return;
        }
        let lane = e.iota(Elem::I64, lanes);
        e.for_loop(zero, features, one, &[], |e, f, _| {
            let skip = e.mul(f, feature);
            let to = e.mul(f, block);
            e.for_loop(zero, rows, step, &[], |e, j, _| {
                let left = e.sub(rows, j);
                let mask = e.mask_first(left, lanes);
                let at = e.mul(j, query);
                let at = e.add(at, skip);
                let p = e.offset(from, at, elem);
                let steps = e.mul(lane, query);
                let pointers = e.offset(p, steps, elem);
                let raw = e.gather(pointers, ty, mask);
                let x = micro::widen(e, raw, self.args[0], DType::F32);
                let at = e.add(to, j);
                let p = e.offset(qt, at, Elem::F32);
                e.store(x, p);
                vec![]
            });
            vec![]
        });
    }

    /// `Sᵀ[key][query]` of one block of keys.
    fn scores(
        &self,
        e: &mut Emitter,
        cx: &ExprCx,
        target: &CpuTarget,
        (k0, key0, count): (Val, Val, Val),
        (qt, block): (Val, Val),
        scores: Val,
    ) {
        let tile = Tile::of(target, 4);
        let elem = memory_elem(self.args[1]);
        let (row, feature) = (cx.size(e, self.k[2]), cx.size(e, self.k[3]));
        let a = Operand {
            dtype: self.args[1],
            step: feature,
        };
        let b = Operand {
            dtype: DType::F32,
            step: block,
        };
        let depth = e.i64(self.features);
        // Bounds may cut a block of keys anywhere.
        micro::for_rows(e, count, tile.rows, &None, &mut |e, first, rows| {
            let pointers: Vec<Val> = (0..rows)
                .map(|r| {
                    let r = e.i64(r as i64);
                    let key = e.add(first, r);
                    let key = e.add(key0, key);
                    let at = e.mul(key, row);
                    e.offset(k0, at, elem)
                })
                .collect();
            let mut j = 0;
            while j < self.block {
                let left = (self.block - j) / tile.lanes as i64;
                let vectors = (left as u32).min(tile.vectors(rows));
                let zero = e.zero(Ty::vector(Elem::F32, tile.lanes));
                let init = vec![zero; (rows * vectors) as usize];
                let here = e.i64(j);
                let from = e.offset(qt, here, Elem::F32);
                let out =
                    micro::multiply(e, DType::F32, depth, (a, &pointers), (b, from), None, &init);
                for (i, &x) in out.iter().enumerate() {
                    let (r, v) = (i as i64 / vectors as i64, i as i64 % vectors as i64);
                    let r = e.i64(r);
                    let key = e.add(first, r);
                    let at = e.mul(key, block);
                    let query = e.i64(j + v * tile.lanes as i64);
                    let at = e.add(at, query);
                    let p = e.offset(scores, at, Elem::F32);
                    e.store(x, p);
                }
                j += vectors as i64 * tile.lanes as i64;
            }
        });
    }

    /// `result[query] = result[query]·scale + Σ_key weight·v[key]`.
    #[allow(clippy::too_many_arguments)]
    fn accumulate(
        &self,
        e: &mut Emitter,
        cx: &ExprCx,
        target: &CpuTarget,
        (v0, key0, count): (Val, Val, Val),
        (scores, block): (Val, Val),
        (result, columns, rows): (Val, i64, Val),
        scale: Val,
    ) {
        let tile = Tile::of(target, 4);
        let elem = memory_elem(self.args[2]);
        let v_row = cx.size(e, self.v[2]);
        let at = e.mul(key0, v_row);
        let v_base = e.offset(v0, at, elem);
        let a = Operand {
            dtype: DType::F32,
            step: block,
        };
        let b = Operand {
            dtype: self.args[2],
            step: v_row,
        };
        let width = e.i64(columns);
        let sizes = micro::block_sizes(self.queries.as_const(), self.block);
        micro::for_rows(e, rows, tile.rows, &sizes, &mut |e, first, count_rows| {
            let mut pointers = vec![];
            let mut factors = vec![];
            let mut places = vec![];
            for r in 0..count_rows {
                let r = e.i64(r as i64);
                let query = e.add(first, r);
                pointers.push(e.offset(scores, query, Elem::F32));
                let p = e.offset(scale, query, Elem::F32);
                factors.push(e.load(p, Ty::scalar(Elem::F32)));
                let at = e.mul(query, width);
                places.push(e.offset(result, at, Elem::F32));
            }
            let mut j = 0;
            while j < self.values {
                let lanes = tile.lanes as i64;
                let left = (self.values - j + lanes - 1) / lanes;
                let vectors = left.min(tile.vectors(count_rows) as i64);
                let here = e.i64(j);
                let from = e.offset(v_base, here, elem);
                let whole = j + vectors * lanes <= self.values;
                let masks: Vec<Val> = (0..vectors)
                    .map(|v| {
                        let count = e.i64((self.values - j - v * lanes).clamp(0, lanes));
                        e.mask_first(count, tile.lanes)
                    })
                    .collect();
                let mut init = vec![];
                let mut slots = vec![];
                for r in 0..count_rows as usize {
                    for v in 0..vectors {
                        let at = e.i64(j + v * lanes);
                        let p = e.offset(places[r], at, Elem::F32);
                        let x = e.load(p, Ty::vector(Elem::F32, tile.lanes));
                        init.push(e.mul(x, factors[r]));
                        slots.push(p);
                    }
                }
                let masks = (!whole).then_some(&masks[..]);
                let out = micro::multiply(
                    e,
                    DType::F32,
                    count,
                    (a, &pointers),
                    (b, from),
                    masks,
                    &init,
                );
                out.iter().zip(slots).for_each(|(&x, p)| e.store(x, p));
                j += vectors * lanes;
            }
        });
    }
}

/// Byte offsets of a unit's parts in scratch.
struct Places {
    queries: i64,
    scores: i64,
    result: i64,
    max: i64,
    sum: i64,
    scale: i64,
    /// V in pairs of keys.
    values: i64,
    end: i64,
}

impl Places {
    /// Columns of the result block: whole vectors.
    fn columns(&self, values: i64) -> i64 {
        (values + LANES - 1) / LANES * LANES
    }
}
