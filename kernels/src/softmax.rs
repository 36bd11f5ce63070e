//! The softmax inside attention: which keys a block of queries can see at all,
//! and scores to weights with running maxima and sums.

use crate::attention::AttentionSpec;
use crate::expr::{ExprId, Exprs, Node, Size};
use crate::lower::ExprCx;
use crate::nest::LANES;
use kiln_codegen::emit::Cmp;
use kiln_codegen::{Elem, Emitter, Ty, Val};
use kiln_ir::{BinaryFn, CompareFn, Dim};

/// Bounds that the score puts on the key's position: `key ≤ x` and the like.
#[derive(Default)]
pub(crate) struct Bounds {
    /// Expression, and whether the key may equal it.
    below: Vec<(ExprId, bool)>,
    above: Vec<(ExprId, bool)>,
    /// The conditions that say so.
    conditions: Vec<ExprId>,
}

impl Bounds {
    /// Reads them off the selections of −inf that end the score.
    pub(crate) fn of(exprs: &Exprs, score: ExprId) -> Bounds {
        let mut bounds = Bounds::default();
        let mut at = score;
        while let Node::Select(shown, kept, hidden) = exprs.node(at) {
            let low = f32::NEG_INFINITY.to_bits() as u64;
            if !matches!(exprs.node(*hidden), Node::Const { bits, .. } if *bits == low) {
                break;
            }
            bounds.condition(exprs, *shown);
            at = *kept;
        }
        bounds
    }

    fn condition(&mut self, exprs: &Exprs, c: ExprId) {
        match exprs.node(c) {
            Node::Binary(BinaryFn::And, a, b) => {
                self.condition(exprs, *a);
                self.condition(exprs, *b);
            }
            Node::Compare(f, a, b) => {
                let key = |x: ExprId| *exprs.node(x) == Node::Axis(3);
                let (f, x) = match (key(*a), key(*b)) {
                    (true, false) => (*f, *b),
                    (false, true) => (mirrored(*f), *a),
                    _ => return,
                };
                if !rises_with_query(exprs, x) {
                    return;
                }
                match f {
                    CompareFn::Lt => self.below.push((x, false)),
                    CompareFn::Le => self.below.push((x, true)),
                    CompareFn::Gt => self.above.push((x, false)),
                    CompareFn::Ge => self.above.push((x, true)),
                    CompareFn::Eq | CompareFn::Ne => return,
                }
                self.conditions.push(c);
            }
            _ => {}
        }
    }

    /// The first key that some query of the block sees, and one past the last.
    pub(crate) fn range(
        &self,
        e: &mut Emitter,
        cx: &mut ExprCx,
        [batch, head, first, rows]: [Val; 4],
        keys: Val,
    ) -> (Val, Val) {
        let last = last(e, first, rows);
        self.between(e, cx, [batch, head, first, last], keys)
    }

    /// The first key that every query of the block sees, as far as the bounds go, and one
    /// past the last.
    pub(crate) fn inner(
        &self,
        e: &mut Emitter,
        cx: &mut ExprCx,
        [batch, head, first, rows]: [Val; 4],
        keys: Val,
    ) -> (Val, Val) {
        let last = last(e, first, rows);
        self.between(e, cx, [batch, head, last, first], keys)
    }

    /// Whether they are other ones for each head.
    pub(crate) fn by_head(&self, exprs: &Exprs) -> bool {
        let roots: Vec<ExprId> = self.below.iter().chain(&self.above).map(|b| b.0).collect();
        exprs
            .reachable(&roots)
            .iter()
            .any(|id| match exprs.node(*id) {
                Node::Axis(1) => true,
                Node::Load { index, .. } => index.strides.get(1).is_some_and(|&s| s != Size::ZERO),
                _ => false,
            })
    }

    /// Keys that queries see, all together, as far as the bounds go and are known: four
    /// queries, evenly spread, stand for all.
    pub(crate) fn seen(&self, exprs: &Exprs, params: &[Dim], queries: &Dim, keys: &Dim) -> Dim {
        if self.conditions.is_empty() {
            return queries.clone() * keys.clone();
        }
        let sum = (0..4i64).fold(Dim::ZERO, |sum, i| {
            let query = (queries.clone() * (2 * i + 1).into()).floor_div(&8.into());
            let at = |&(x, more): &(ExprId, bool)| {
                let x = size_of(exprs, x, &query, params)?;
                Some(if more { x + Dim::ONE } else { x })
            };
            let ends = self.below.iter().filter_map(at);
            let end = ends.fold(keys.clone(), |end, x| end.minimum(&x));
            let starts = self.above.iter().map(|&(x, equal)| (x, !equal));
            let starts = starts.filter_map(|b| at(&b));
            let start = starts.fold(Dim::ZERO, |start, x| start.maximum(&x));
            sum + (end - start).maximum(&Dim::ZERO)
        });
        (queries.clone() * sum).ceil_div(&4.into())
    }

    /// What holds between the keys of [`Bounds::inner`].
    pub(crate) fn conditions(&self) -> &[ExprId] {
        &self.conditions
    }

    /// From the bound below of one query to the bound above of another.
    fn between(
        &self,
        e: &mut Emitter,
        cx: &mut ExprCx,
        [batch, head, lower, upper]: [Val; 4],
        keys: Val,
    ) -> (Val, Val) {
        let (zero, one) = (e.i64(0), e.i64(1));
        let mut at = |e: &mut Emitter, query: Val, x: ExprId| {
            cx.push();
            cx.axes = vec![Some(batch), Some(head), Some(query), None];
            (cx.vector, cx.mask) = (None, None);
            let v = cx.value(e, x);
            cx.pop();
            v
        };
        let (mut low, mut high) = (zero, keys);
        for &(x, equal) in &self.below {
            let x = at(e, upper, x);
            let x = if equal { e.add(x, one) } else { x };
            high = e.min(high, x, false);
        }
        for &(x, equal) in &self.above {
            let x = at(e, lower, x);
            let x = if equal { x } else { e.add(x, one) };
            low = e.max(low, x, false);
        }
        (low, high)
    }
}

/// A bound at a query; none where it depends on more than the launch's sizes.
fn size_of(exprs: &Exprs, x: ExprId, query: &Dim, params: &[Dim]) -> Option<Dim> {
    let of = |x: ExprId| size_of(exprs, x, query, params);
    match exprs.node(x) {
        Node::Const { dtype, bits } if !dtype.is_float() => Some(Dim::from(*bits as i64)),
        Node::Param(i) => Some(params[*i as usize].clone()),
        Node::Axis(2) => Some(query.clone()),
        Node::Cast(_, a) => of(*a),
        Node::Binary(BinaryFn::Add, a, b) => Some(of(*a)? + of(*b)?),
        Node::Binary(BinaryFn::Sub, a, b) => Some(of(*a)? - of(*b)?),
        _ => None,
    }
}

/// The last of so many queries from the first on.
fn last(e: &mut Emitter, first: Val, rows: Val) -> Val {
    let one = e.i64(1);
    let end = e.add(first, rows);
    e.sub(end, one)
}

fn mirrored(f: CompareFn) -> CompareFn {
    match f {
        CompareFn::Lt => CompareFn::Gt,
        CompareFn::Le => CompareFn::Ge,
        CompareFn::Gt => CompareFn::Lt,
        CompareFn::Ge => CompareFn::Le,
        CompareFn::Eq | CompareFn::Ne => f,
    }
}

/// Whether an expression is the same for all keys and never falls from one query
/// to the next.
fn rises_with_query(exprs: &Exprs, x: ExprId) -> bool {
    match exprs.node(x) {
        Node::Axis(2) => true,
        Node::Binary(BinaryFn::Add, a, b) => {
            rises_with_query(exprs, *a) && rises_with_query(exprs, *b)
        }
        Node::Binary(BinaryFn::Sub, a, b) => rises_with_query(exprs, *a) && is_fixed(exprs, *b),
        _ => is_fixed(exprs, x),
    }
}

/// Whether an expression is the same for all queries and keys of a head, and
/// cannot fail.
fn is_fixed(exprs: &Exprs, x: ExprId) -> bool {
    match exprs.node(x) {
        Node::Const { .. } | Node::Param(_) | Node::Axis(0 | 1) => true,
        Node::Load { index, guard, .. } => {
            let moves = index.strides.len() > 2;
            guard.is_none() && index.gathers.is_empty() && !moves
        }
        Node::Cast(_, a) => is_fixed(exprs, *a),
        Node::Binary(BinaryFn::Add | BinaryFn::Sub, a, b) => {
            is_fixed(exprs, *a) && is_fixed(exprs, *b)
        }
        _ => false,
    }
}

impl AttentionSpec {
    /// Scores to weights: `exp(score − max)`, with the running maximum and sum.
    pub(crate) fn softmax_block(
        &self,
        e: &mut Emitter,
        cx: &mut ExprCx,
        [batch, head, first, rows]: [Val; 4],
        (key0, count): (Val, Val),
        scores: Val,
        [max, sum, scale]: [Val; 3],
    ) {
        let lanes = LANES as u32;
        let wide = Ty::vector(Elem::F32, lanes);
        let (zero, one, block) = (e.i64(0), e.i64(1), e.i64(self.block));
        let group = e.i64(LANES);
        e.for_loop(zero, rows, group, &[], |e, j, _| {
            cx.push();
            let left = e.sub(rows, j);
            let mask = e.mask_first(left, lanes);
            let query = e.add(first, j);
            let pm = e.offset(max, j, Elem::F32);
            let before = e.load(pm, wide);
            let now = e.for_loop(zero, count, one, &[before], |e, i, m| {
                cx.push();
                let at = e.mul(i, block);
                let at = e.add(at, j);
                let p = e.offset(scores, at, Elem::F32);
                let raw = e.load(p, wide);
                let key = e.add(key0, i);
                cx.axes = vec![Some(batch), Some(head), Some(query), Some(key)];
                cx.vector = Some(2);
                cx.mask = Some(mask);
                cx.accs.insert(0, raw);
                let s = cx.value(e, self.score);
                let s = e.splat(s, lanes);
                e.store(s, p);
                cx.mask = None;
                cx.pop();
                // One instruction; a NaN score makes its weight NaN all the same.
                let above = e.cmp(Cmp::Gt, m[0], s, false);
                vec![e.select(above, m[0], s)]
            });
            // Where nothing is seen yet, subtract 0: exp(−inf) is 0, not NaN.
            let low = e.float(wide, f64::NEG_INFINITY);
            let none = e.float(wide, 0.0);
            let blind = e.cmp(Cmp::Eq, now[0], low, false);
            let base = e.select(blind, none, now[0]);
            let shift = e.sub(before, base);
            let factor = exp_below_one(e, shift);
            let ps = e.offset(sum, j, Elem::F32);
            let old = e.load(ps, wide);
            let old = e.mul(old, factor);
            let total = e.for_loop(zero, count, one, &[old], |e, i, l| {
                let at = e.mul(i, block);
                let at = e.add(at, j);
                let p = e.offset(scores, at, Elem::F32);
                let s = e.load(p, wide);
                let d = e.sub(s, base);
                let w = exp_below_one(e, d);
                e.store(w, p);
                vec![e.add(l[0], w)]
            });
            e.store(now[0], pm);
            e.store(total[0], ps);
            let pf = e.offset(scale, j, Elem::F32);
            e.store(factor, pf);
            cx.pop();
            vec![]
        });
    }
}

/// `exp(x)` for `x ≤ 0`, within 2e-7 of itself; below −87 it is 0, which beside
/// the largest weight, 1, nothing can tell. NaN stays.
pub(crate) fn exp_below_one(e: &mut Emitter, x: Val) -> Val {
    let ty = x.ty;
    let c = |e: &mut Emitter, v: f64| e.float(ty, v);
    let least = c(e, -87.0);
    let tiny = e.cmp(Cmp::Lt, x, least, false);
    let x = e.select(tiny, least, x);
    // x·log2(e) = n + f with |f| ≤ ½, the constant in two parts. Adding 1.5·2²³
    // leaves n in the low bits.
    let (log2_e, rest, magic) = (
        c(e, 1.4426950216293335),
        c(e, 1.92596298909109e-8),
        c(e, 12582912.0),
    );
    let shifted = e.fma(x, log2_e, magic);
    let n = e.sub(shifted, magic);
    let minus_n = e.neg(n);
    let f = e.fma(x, log2_e, minus_n);
    let f = e.fma(x, rest, f);
    // 2^f, minimax with 1 exact at 0.
    let mut p = c(e, 0.001326472731307149);
    for a in [
        0.009671512991189957,
        0.05550733581185341,
        0.24022242426872253,
        0.6931470036506653,
        1.0,
    ] {
        let a = c(e, a);
        p = e.fma(p, f, a);
    }
    let zero = c(e, 0.0);
    if let Some(power) = e.scale(p, n) {
        return e.select(tiny, zero, power);
    }
    let bits = e.bitcast(shifted, Elem::I32);
    let (place, one) = (e.int(bits.ty, 23), e.int(bits.ty, 0x3f80_0000));
    let n = e.op2("arith.shli", bits, place);
    let n = e.add(n, one);
    let power = e.bitcast(n, Elem::F32);
    let power = e.select(tiny, zero, power);
    e.mul(p, power)
}
