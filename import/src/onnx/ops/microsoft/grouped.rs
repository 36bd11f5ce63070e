//! Attention in which several queries share a key, over a cache whose rows fill at
//! different speeds.

use super::super::attention::{
    Masks, both, composite, heads_first, heads_last, index, spread_heads,
};
use super::attention::{heads, scale};
use crate::onnx::cx::{Cx, Fail, Out};
use kiln_ir::graph::Value;
use kiln_ir::ops::attention::Rope;
use kiln_ir::ops::composite::RmsNorm;
use kiln_ir::ops::index::GatherElements;
use kiln_ir::ops::layout::{Pad, PadMode};
use kiln_ir::{BinaryFn, CompareFn, DType, Dim, ReduceFn, Tri, UnaryFn};

type One = Result<Value, Fail>;

/// Where the rows of this call stand in the cache.
struct Place {
    /// Rows of this call.
    rows: Dim,
    /// How many of them count, where some are padding: `i64[b, 1, 1, 1]`, or one
    /// number for all.
    count: Value,
    /// Rows of the past cache; none without one.
    past: Dim,
    /// Rows of the present cache.
    capacity: Dim,
    /// `i64[b, 1, 1, 1]`: rows of the cache that count before this call.
    start: Value,
    /// The same after it.
    end: Value,
}

pub(crate) fn grouped(cx: &mut Cx) -> Out {
    refuse(cx)?;
    let (n, g) = (heads(cx, "num_heads")?, heads(cx, "kv_num_heads")?);
    let [q, k, v] = parts(cx, n, g)?;
    let place = place(cx, q)?;
    let (q, k) = (normed(cx, q, 14)?, normed(cx, k, 15)?);
    let (q, k) = match cx.flag("do_rotary", false)? {
        false => (q, k),
        true => {
            let at = positions(cx, &place)?;
            (turned(cx, q, at)?, turned(cx, k, at)?)
        }
    };
    let k = appended(cx, &place, k, 3)?;
    let v = appended(cx, &place, v, 4)?;
    let masks = masks(cx, &place)?;
    let scale = scale(cx, q)?;
    let softcap = cx.float("softcap", 0.0)?;
    let sink = sink(cx, n)?;
    let y = match softcap == 0.0 && sink.is_none() {
        true => composite(cx, [q, k, v], scale, masks)?,
        false => spelled_out(cx, [q, k, v], scale, softcap, masks, sink)?,
    };
    Ok(vec![heads_last(cx, y)?, k, v])
}

fn refuse(cx: &Cx) -> Result<(), Fail> {
    let no = |what: &str| Err(Fail::form(format!("{what}: not supported")));
    if cx.opt(12).is_some() || cx.opt(13).is_some() {
        return no("a quantized cache");
    }
    if cx.flag("sliding_window_cache", false)? {
        return no("a cache as long as the window");
    }
    if cx.wants(3) {
        return no("the scores of grouped attention");
    }
    Ok(())
}

/// Queries, keys and values, heads first; packed in one or apart.
fn parts(cx: &mut Cx, n: i64, g: i64) -> Result<[Value; 3], Fail> {
    let q = cx.arg(0)?;
    if let (Some(k), Some(v)) = (cx.opt(1), cx.opt(2)) {
        return Ok([
            heads_first(cx, q, n)?,
            heads_first(cx, k, g)?,
            heads_first(cx, v, g)?,
        ]);
    }
    let all = heads_first(cx, q, n + 2 * g)?;
    let mut take = |from: i64, count: i64| cx.b.slice_axis(all, 1, from.into(), count.into());
    Ok([take(0, n)?, take(n, g)?, take(n + g, g)?])
}

fn place(cx: &mut Cx, q: Value) -> Result<Place, Fail> {
    let (batch, rows) = (cx.extent(q, 0)?, cx.extent(q, 2)?);
    let past = match cx.opt(3) {
        Some(past) => cx.extent(past, 2)?,
        None => Dim::ZERO,
    };
    let total = cx.arg(6)?;
    let total = match (cx.b.graph.known(total), cx.known_ints(total)) {
        (None, None) => {
            let one = cx.element(total, 0)?;
            // With counts of its own the call names any bound.
            let most = past.clone() + rows.clone();
            cx.mint(one, Some(most).filter(|_| cx.opt(16).is_none()))?
        }
        _ => cx.size(total)?,
    };
    let capacity = match total.le(&past) {
        Tri::Yes => past.clone(),
        Tri::No => total.clone(),
        Tri::Unknown => total.maximum(&past),
    };
    let last = cx.arg(5)?;
    let last = cx.b.cast(last, DType::I64)?;
    let last = cx.b.reshape(last, &[batch, Dim::ONE, Dim::ONE, Dim::ONE])?;
    let end = cx.with_int(BinaryFn::Add, last, 1)?;
    let all_rows = cx.scalar_dim(rows.clone())?;
    let count = match cx.opt(16) {
        None => all_rows,
        Some(counts) => {
            let counts = cx.b.cast(counts, DType::I64)?;
            let column = cx.shape(last);
            cx.b.reshape(counts, &column)?
        }
    };
    let mut start = cx.b.sub(end, count)?;
    // A call that holds everything is the first: its rows begin at 0, also where
    // some are padding.
    let first = match total.same(&rows) {
        _ if cx.opt(16).is_some() => None,
        Tri::No => None,
        Tri::Yes | Tri::Unknown => {
            let all = cx.scalar_dim(total)?;
            Some(cx.b.compare(CompareFn::Eq, all, all_rows)?)
        }
    };
    if let Some(first) = first {
        let zero = cx.like(start, 0.0)?;
        start = cx.b.select(first, zero, start)?;
    }
    Ok(Place {
        rows,
        count,
        past,
        capacity,
        start,
        end,
    })
}

/// RMS normalization of each head, where its weights are given.
fn normed(cx: &mut Cx, x: Value, weights: usize) -> One {
    let Some(w) = cx.opt(weights) else {
        return Ok(x);
    };
    let own = match weights {
        14 => "q_norm_epsilon",
        _ => "k_norm_epsilon",
    };
    let eps = cx.float(own, cx.float("qk_norm_epsilon", 1e-6)?)?;
    Ok(cx.b.one(RmsNorm { axis: 3, eps }, &[x, w])?)
}

/// `i64[b, s]`: given, or each row's place in the cache.
fn positions(cx: &mut Cx, place: &Place) -> One {
    if let Some(given) = cx.opt(9) {
        return Ok(given);
    }
    let row = index(cx, vec![place.rows.clone(), Dim::ONE], 0)?;
    let at = cx.b.add(place.start, row)?;
    // Padding behind a prompt's end stands at 1.
    let counts = cx.b.compare(CompareFn::Lt, at, place.end)?;
    let one = cx.like(at, 1.0)?;
    let at = cx.b.select(counts, at, one)?;
    let batch = cx.extent(at, 0)?;
    Ok(cx.b.reshape(at, &[batch, place.rows.clone()])?)
}

fn turned(cx: &mut Cx, x: Value, at: Value) -> One {
    let mut tables = vec![];
    for i in [7, 8] {
        let table = cx.arg(i)?;
        let t = cx.b.gather(table, at, 0)?;
        let [b, s, half] = &cx.shape(t)[..] else {
            return Err(Fail::invalid("positions are a matrix, and tables too"));
        };
        let shape = [b.clone(), Dim::ONE, s.clone(), half.clone()];
        tables.push(cx.b.reshape(t, &shape)?);
    }
    let half = cx.shape(tables[0]).last().and_then(Dim::as_const);
    let op = Rope {
        interleaved: cx.flag("rotary_interleaved", false)?,
        rotary_dims: half.and_then(|d| usize::try_from(2 * d).ok()),
    };
    Ok(cx.b.one(op, &[x, tables[0], tables[1]])?)
}

/// The cache with this call's rows at their place, zeros behind them.
fn appended(cx: &mut Cx, place: &Place, new: Value, past: usize) -> One {
    let shape = cx.shape(new);
    let mut zeros = shape.clone();
    zeros[2] = Dim::ONE;
    let zeros = cx.b.full(cx.dtype(new), &zeros, 0.0)?;
    // What is there: the past, this call's rows, and one row of zeros.
    let all: Vec<Value> = cx.opt(past).into_iter().chain([new, zeros]).collect();
    let all = cx.b.concat(&all, 2)?;
    let row = index(cx, vec![place.capacity.clone(), Dim::ONE], 0)?;
    let (count, before) = (
        cx.scalar_dim(place.rows.clone())?,
        cx.scalar_dim(place.past.clone())?,
    );
    let own = cx.b.sub(row, place.start)?;
    let old = cx.b.compare(CompareFn::Lt, row, place.start)?;
    let mine = cx.b.compare(CompareFn::Lt, own, place.count)?;
    let mine_at = cx.b.add(own, before)?;
    let none_at = cx.b.add(before, count)?;
    let at = cx.b.select(mine, mine_at, none_at)?;
    let at = cx.b.select(old, row, at)?;
    let mut wide = shape;
    wide[2] = place.capacity.clone();
    let at = cx.b.broadcast_to(at, &wide)?;
    Ok(cx.b.one(GatherElements { axis: 2 }, &[all, at])?)
}

/// A row sees what stands before it in its own cache, at most a window back.
fn masks(cx: &mut Cx, place: &Place) -> Result<Masks, Fail> {
    let key = index(cx, vec![Dim::ONE, place.capacity.clone()], 1)?;
    let mut keep = None;
    if cx.flag("causal", true)? {
        let row = index(cx, vec![place.rows.clone(), Dim::ONE], 0)?;
        let at = cx.b.add(place.start, row)?;
        let seen = cx.b.compare(CompareFn::Le, key, at)?;
        keep = both(cx, keep, seen)?;
        let window = cx.int("local_window_size", -1)?;
        if window > 0 {
            let oldest = cx.with_int(BinaryFn::Sub, at, window)?;
            let seen = cx.b.compare(CompareFn::Gt, key, oldest)?;
            keep = both(cx, keep, seen)?;
        }
    } else {
        let seen = cx.b.compare(CompareFn::Lt, key, place.end)?;
        keep = both(cx, keep, seen)?;
    }
    let bias = match cx.opt(10) {
        Some(bias) => Some(widened(cx, bias, &place.capacity)?),
        None => None,
    };
    Ok(Masks {
        keep,
        bias,
        causal: None,
        lengths: None,
    })
}

/// A bias as wide as the cache: what is behind it is never seen.
fn widened(cx: &mut Cx, bias: Value, capacity: &Dim) -> One {
    let own = cx.extent(bias, 3)?;
    if own.same(capacity) == Tri::Yes {
        return Ok(bias);
    }
    let mut hi = vec![Dim::ZERO; 4];
    hi[3] = capacity.clone() - own;
    let op = Pad {
        lo: vec![Dim::ZERO; 4],
        hi,
        mode: PadMode::Constant,
    };
    let zero = cx.like(bias, 0.0)?;
    Ok(cx.b.one(op, &[bias, zero])?)
}

/// What each head's softmax also divides by, as the logarithm: `[h, 1, 1]`.
fn sink(cx: &mut Cx, n: i64) -> Result<Option<Value>, Fail> {
    if let Some(sink) = cx.opt(11) {
        return Ok(Some(cx.b.reshape(sink, &[n.into(), Dim::ONE, Dim::ONE])?));
    }
    match cx.flag("smooth_softmax", false)? {
        true => Ok(Some(cx.b.scalar(DType::F32, 0.0)?)),
        false => Ok(None),
    }
}

/// With scores capped or a sink: in plain ops, in f32 at least.
fn spelled_out(
    cx: &mut Cx,
    [q, k, v]: [Value; 3],
    scale: f64,
    softcap: f64,
    masks: Masks,
    sink: Option<Value>,
) -> One {
    let narrow = cx.dtype(q);
    let compute = match narrow {
        DType::F64 => DType::F64,
        _ => DType::F32,
    };
    let q = cx.b.cast(q, compute)?;
    let (k, v) = (spread_heads(cx, k, q)?, spread_heads(cx, v, q)?);
    let (k, v) = (cx.b.cast(k, compute)?, cx.b.cast(v, compute)?);
    let score = cx.b.matmul_t(q, k, false, true)?;
    let factor = cx.like(score, scale)?;
    let mut score = cx.b.mul(score, factor)?;
    if softcap > 0.0 {
        let cap = cx.like(score, softcap)?;
        let s = cx.b.div(score, cap)?;
        let s = cx.b.unary(UnaryFn::Tanh, s)?;
        score = cx.b.mul(s, cap)?;
    }
    if let Some(bias) = masks.bias {
        let bias = cx.b.cast(bias, compute)?;
        score = cx.b.add(score, bias)?;
    }
    if let Some(keep) = masks.keep {
        let never = cx.like(score, f64::NEG_INFINITY)?;
        score = cx.b.select(keep, score, never)?;
    }
    let mut most = cx.b.reduce(ReduceFn::Max, score, &[3], true)?;
    let sink = match sink {
        Some(s) => Some(cx.b.cast(s, compute)?),
        None => None,
    };
    if let Some(sink) = sink {
        most = cx.b.binary(BinaryFn::Max, most, sink)?;
    }
    let d = cx.b.sub(score, most)?;
    let e = cx.b.unary(UnaryFn::Exp, d)?;
    let mut sum = cx.b.reduce(ReduceFn::Sum, e, &[3], true)?;
    if let Some(sink) = sink {
        let d = cx.b.sub(sink, most)?;
        let own = cx.b.unary(UnaryFn::Exp, d)?;
        sum = cx.b.add(sum, own)?;
    }
    let weights = cx.b.div(e, sum)?;
    let y = cx.b.matmul(weights, v)?;
    Ok(cx.b.cast(y, narrow)?)
}
