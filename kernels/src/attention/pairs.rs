//! Attention of bf16: queries and keys in pairs of features, weights and values in
//! pairs of keys, as [`crate::pairs`] sums them. Weights are rounded to bf16; their sum
//! is that of the unrounded ones.

use super::{AttentionSpec, KEYS};
use crate::dot::Depth;
use crate::expr::Size;
use crate::lower::ExprCx;
use crate::matmul::ceil_div;
use crate::micro;
use crate::nest::LANES;
use crate::pairs::{PAIR, PairTile};
use kiln_codegen::emit::Cmp;
use kiln_codegen::{CpuTarget, Elem, Emitter, Ty, Val};
use kiln_ir::DType;

/// An attention whose features lie in whole pairs.
pub(super) struct AsPairs<'a>(&'a AttentionSpec);

impl AttentionSpec {
    /// Itself, if it can be summed in pairs.
    pub(super) fn as_pairs(&self) -> Option<AsPairs<'_>> {
        let narrow = self.args[..3].iter().all(|&t| t == DType::BF16);
        let runs = self.q[3] == Size::ONE && self.k[3] == Size::ONE;
        (narrow && runs && self.features % PAIR == 0).then_some(AsPairs(self))
    }
}

impl AsPairs<'_> {
    /// Queries as `[feature / 2][query]` words. Those beyond the end repeat the last.
    pub(super) fn transpose_queries(
        &self,
        e: &mut Emitter,
        from: Val,
        query: Val,
        rows: Val,
        qt: Val,
    ) {
        let words = self.0.features / PAIR;
        let ty = Ty::vector(Elem::I32, LANES as u32);
        let (block, all) = (e.i64(self.0.block), e.i64(words));
        // Words beyond the last fit: places are whole vectors.
        let extents = (rows, all, words % LANES == 0);
        micro::turn(e, extents, (qt, block), &mut |e, row, f, mask| {
            let at = e.mul(row, query);
            let p = e.offset(from, at, Elem::I16);
            let p = e.offset(p, f, Elem::I32);
            e.load_run_bytes(p, ty, mask)
        });
    }

    /// `Sᵀ[key][query]` of one block of keys.
    pub(super) fn scores(
        &self,
        e: &mut Emitter,
        cx: &ExprCx,
        target: &CpuTarget,
        (k0, key0, count): (Val, Val, Val),
        qt: Val,
        scores: Val,
    ) {
        let spec = self.0;
        let tile = PairTile::of(target);
        let lanes = tile.lanes as i64;
        let row = cx.size(e, spec.k[2]);
        let (block, step) = (e.i64(spec.block), e.i64(4 * spec.block));
        let depth = Depth {
            products: e.i64(spec.features),
            whole: true,
            group: PAIR,
            tail: None,
        };
        micro::for_rows(e, count, tile.rows, &None, &mut |e, first, rows| {
            let pointers: Vec<Val> = (0..rows)
                .map(|r| {
                    let r = e.i64(r as i64);
                    let key = e.add(first, r);
                    let key = e.add(key0, key);
                    let at = e.mul(key, row);
                    e.offset(k0, at, Elem::I16)
                })
                .collect();
            let mut j = 0;
            while j < spec.block {
                let left = (spec.block - j) / lanes;
                let vectors = (left as u32).min(tile.vectors(rows)) as i64;
                let none = e.zero(Ty::vector(Elem::F32, tile.lanes));
                let init = vec![none; rows as usize * vectors as usize];
                let here = e.i64(j);
                let panel = e.offset(qt, here, Elem::I32);
                let out = tile.multiply(e, depth, &pointers, (panel, step), &init);
                for (i, &x) in (0..).zip(&out) {
                    let r = e.i64(i / vectors);
                    let key = e.add(first, r);
                    let at = e.mul(key, block);
                    let query = e.i64(j + i % vectors * lanes);
                    let at = e.add(at, query);
                    let p = e.offset(scores, at, Elem::F32);
                    e.store(x, p);
                }
                j += vectors * lanes;
            }
        });
    }

    /// Weights `[key][query]` to words `[key / 2][query]`, in place.
    pub(super) fn narrow_weights(&self, e: &mut Emitter, count: Val, rows: Val, scores: Val) {
        let (zero, step, block) = (e.i64(0), e.i64(LANES), e.i64(self.0.block));
        let wide = Ty::vector(Elem::F32, LANES as u32);
        let two = e.i64(PAIR);
        let whole = e.op2("arith.divui", count, two);
        let begun = ceil_div(e, count, two);
        let none = e.zero(wide);
        let place = |e: &mut Emitter, row: Val, j: Val| {
            let at = e.mul(row, block);
            let at = e.add(at, j);
            e.offset(scores, at, Elem::F32)
        };
        for (from, to, second) in [(zero, whole, true), (whole, begun, false)] {
            let one = e.i64(1);
            e.for_loop(from, to, one, &[], |e, i, _| {
                let key = e.mul(i, two);
                e.for_loop(zero, rows, step, &[], |e, j, _| {
                    let p = place(e, key, j);
                    let low = e.load(p, wide);
                    let high = match second {
                        true => {
                            let next = e.add(key, one);
                            let p = place(e, next, j);
                            e.load(p, wide)
                        }
                        false => none,
                    };
                    let words = e.bf16_words(low, high);
                    let to = place(e, i, j);
                    e.store(words, to);
                    vec![]
                });
                vec![]
            });
        }
    }

    /// Rows of V as words `[key / 2][value]`; a key beyond the last is 0.
    pub(super) fn pack_values(
        &self,
        e: &mut Emitter,
        cx: &ExprCx,
        (v0, key0, count): (Val, Val, Val),
        to: Val,
    ) {
        let lanes = LANES as u32;
        let (zero, one, two) = (e.i64(0), e.i64(1), e.i64(PAIR));
        let row = cx.size(e, self.0.v[2]);
        let columns = e.i64(self.columns());
        let words = Ty::vector(Elem::I32, lanes);
        let (none, by) = (e.zero(words), e.int(words, 16));
        let begun = ceil_div(e, count, two);
        e.for_loop(zero, begun, one, &[], |e, i, _| {
            let key = e.mul(i, two);
            let next = e.add(key, one);
            let exists = e.cmp(Cmp::Lt, next, count, false);
            let next = e.select(exists, next, key);
            for j in (0..self.0.values).step_by(LANES as usize) {
                let c = e.i64(j);
                let left = e.i64((self.0.values - j).min(LANES));
                let mask = e.mask_first(left, lanes);
                let load = |e: &mut Emitter, key: Val| {
                    let key = e.add(key0, key);
                    let at = e.mul(key, row);
                    let at = e.add(at, c);
                    let p = e.offset(v0, at, Elem::I16);
                    let x = e.load_masked(p, words.with(Elem::I16), mask);
                    e.cast(x, Elem::I32, true, true)
                };
                let (low, high) = (load(e, key), load(e, next));
                let high = e.op2("arith.shli", high, by);
                let high = e.select(exists, high, none);
                let pair = e.op2("arith.ori", low, high);
                let at = e.mul(i, columns);
                let at = e.add(at, c);
                let p = e.offset(to, at, Elem::I32);
                e.store(pair, p);
            }
            vec![]
        });
    }

    fn columns(&self) -> i64 {
        (self.0.values + LANES - 1) / LANES * LANES
    }

    /// `result[query] = result[query]·scale + Σ_key weight·v[key]`.
    pub(super) fn accumulate(
        &self,
        e: &mut Emitter,
        target: &CpuTarget,
        (weights, values, count): (Val, Val, Val),
        (result, columns, rows): (Val, i64, Val),
        scale: Val,
    ) {
        let spec = self.0;
        let tile = PairTile::of(target);
        let lanes = tile.lanes as i64;
        let two = e.i64(PAIR);
        let pairs = ceil_div(e, count, two);
        let (width, block) = (e.i64(columns), e.i64(spec.block));
        let step = e.i64(4 * columns);
        let sizes = micro::block_sizes(spec.queries.as_const(), spec.block);
        micro::for_rows(e, rows, tile.rows, &sizes, &mut |e, first, count_rows| {
            let (mut pointers, mut factors, mut places) = (vec![], vec![], vec![]);
            for r in 0..count_rows {
                let r = e.i64(r as i64);
                let query = e.add(first, r);
                pointers.push(e.offset(weights, query, Elem::I32));
                let p = e.offset(scale, query, Elem::F32);
                factors.push(e.load(p, Ty::scalar(Elem::F32)));
                let at = e.mul(query, width);
                places.push(e.offset(result, at, Elem::F32));
            }
            let mut j = 0;
            while j < columns {
                let vectors = ((columns - j) / lanes).min(tile.vectors(count_rows) as i64);
                let (mut init, mut slots) = (vec![], vec![]);
                for (&place, &factor) in places.iter().zip(&factors) {
                    for v in 0..vectors {
                        let at = e.i64(j + v * lanes);
                        let p = e.offset(place, at, Elem::F32);
                        let x = e.load(p, Ty::vector(Elem::F32, tile.lanes));
                        init.push(e.mul(x, factor));
                        slots.push(p);
                    }
                }
                let here = e.i64(j);
                let panel = e.offset(values, here, Elem::I32);
                let rows = (&pointers[..], block);
                let out = tile.multiply_spread(e, pairs, rows, (panel, step), &init);
                out.iter().zip(slots).for_each(|(&x, p)| e.store(x, p));
                j += vectors * lanes;
            }
        });
    }
}

// A block of keys is whole pairs, so only the last of all may be half a pair.
const _: () = assert!(KEYS % PAIR == 0);
