//! Attention and rotary position embedding (opset 23 on).

use crate::onnx::cx::{Cx, Fail, Out};
use crate::onnx::item::Item;
use crate::onnx::tensor;
use kiln_ir::graph::Value;
use kiln_ir::ops::attention::{Attention, MaskKind, Rope};
use kiln_ir::ops::layout::{Pad, PadMode};
use kiln_ir::ops::source::Iota;
use kiln_ir::{BinaryFn, CompareFn, DType, Dim, ReduceFn, Tri, UnaryFn};

type One = Result<Value, Fail>;

/// `[b, s, h·d]` as `[b, h, s, d]`; what has rank 4 already stays.
pub(super) fn heads_first(cx: &mut Cx, x: Value, heads: i64) -> One {
    let shape = cx.shape(x);
    match &shape[..] {
        [_, _, _, _] => Ok(x),
        [b, s, width] if heads > 0 => {
            let d = width.floor_div(&heads.into());
            let split = [b.clone(), s.clone(), heads.into(), d];
            let v = cx.b.reshape(x, &split)?;
            Ok(cx.b.transpose(v, &[0, 2, 1, 3])?)
        }
        [_, _, _] => Err(Fail::invalid("the number of heads is missing")),
        _ => Err(Fail::invalid(format!(
            "an argument of rank {}",
            shape.len()
        ))),
    }
}

/// `[b, h, s, d]` as `[b, s, h·d]`.
pub(super) fn heads_last(cx: &mut Cx, x: Value) -> One {
    let v = cx.b.transpose(x, &[0, 2, 1, 3])?;
    let s = cx.shape(v);
    let flat = [s[0].clone(), s[1].clone(), s[2].clone() * s[3].clone()];
    Ok(cx.b.reshape(v, &flat)?)
}

pub(super) fn index(cx: &mut Cx, shape: Vec<Dim>, axis: usize) -> One {
    let op = Iota {
        shape,
        axis,
        dtype: DType::I64,
    };
    Ok(cx.b.one(op, &[])?)
}

pub(super) fn both(cx: &mut Cx, a: Option<Value>, b: Value) -> Result<Option<Value>, Fail> {
    match a {
        None => Ok(Some(b)),
        Some(a) => Ok(Some(cx.b.binary(BinaryFn::And, a, b)?)),
    }
}

/// What restricts the keys that a query sees.
pub(super) struct Masks {
    /// Bool, true where seen; broadcasts to the scores.
    pub(super) keep: Option<Value>,
    /// Added to the scores.
    pub(super) bias: Option<Value>,
    /// Causal with this many keys before the first query.
    pub(super) causal: Option<Dim>,
    /// Keys of each row that count.
    pub(super) lengths: Option<Value>,
}

pub(crate) fn attention(cx: &mut Cx) -> Out {
    let (q, k, v) = (cx.arg(0)?, cx.arg(1)?, cx.arg(2)?);
    let flat = cx.rank(q) == 3;
    let (qh, kh) = (cx.int("q_num_heads", 0)?, cx.int("kv_num_heads", 0)?);
    let q = heads_first(cx, q, qh)?;
    let (mut k, mut v) = (heads_first(cx, k, kh)?, heads_first(cx, v, kh)?);
    let mut offset = Dim::ZERO;
    if let (Some(past_k), Some(past_v)) = (cx.opt(4), cx.opt(5)) {
        offset = cx.extent(past_k, 2)?;
        k = cx.b.concat(&[past_k, k], 2)?;
        v = cx.b.concat(&[past_v, v], 2)?;
    }
    let features = cx.shape(q)[3].as_const();
    let scale = match (cx.opt_float("scale")?, features) {
        (Some(s), _) => s,
        (None, Some(d)) => 1.0 / (d as f64).sqrt(),
        (None, None) => return Err(Fail::form("the head size of attention must be a constant")),
    };
    let masks = masks(cx, q, k, offset)?;
    let softcap = cx.float("softcap", 0.0)?;
    let mut scores = None;
    let y = if softcap == 0.0 && !cx.wants(3) {
        composite(cx, [q, k, v], scale, masks)?
    } else {
        let (y, s) = spelled_out(cx, [q, k, v], scale, softcap, masks)?;
        scores = Some(s);
        y
    };
    let y = if flat { heads_last(cx, y)? } else { y };
    Ok(vec![y, k, v, scores.unwrap_or(y)])
}

fn masks(cx: &mut Cx, q: Value, k: Value, offset: Dim) -> Result<Masks, Fail> {
    let (rows, keys) = (cx.shape(q)[2].clone(), cx.shape(k)[2].clone());
    let mut m = Masks {
        keep: None,
        bias: None,
        causal: None,
        lengths: cx.opt(6),
    };
    if let Some(mask) = cx.opt(3) {
        let mask = widen_mask(cx, mask, &keys)?;
        match cx.dtype(mask) {
            DType::Bool => m.keep = Some(mask),
            _ => m.bias = Some(mask),
        }
    }
    let causal = cx.flag("is_causal", false)?;
    let (left, right) = (
        cx.int("left_window_size", -1)?,
        cx.int("right_window_size", -1)?,
    );
    if m.lengths.is_none() && left < 0 && right < 0 {
        m.causal = causal.then_some(offset);
        return Ok(m);
    }
    // Positions differ by row, or a window is open on one side: a plain mask.
    let at = index(cx, vec![rows.clone(), Dim::ONE], 0)?;
    let before = match m.lengths {
        None => cx.scalar_dim(offset)?,
        Some(lengths) => {
            let rows = cx.scalar_dim(rows)?;
            let wide = cx.b.cast(lengths, DType::I64)?;
            let before = cx.b.sub(wide, rows)?;
            let n = cx.extent(before, 0)?;
            cx.b.reshape(before, &[n, Dim::ONE, Dim::ONE, Dim::ONE])?
        }
    };
    let at = cx.b.add(at, before)?;
    let key = index(cx, vec![Dim::ONE, keys], 1)?;
    if causal {
        let seen = cx.b.compare(CompareFn::Le, key, at)?;
        m.keep = both(cx, m.keep, seen)?;
    }
    if left >= 0 {
        let oldest = cx.with_int(BinaryFn::Sub, at, left)?;
        let seen = cx.b.compare(CompareFn::Ge, key, oldest)?;
        m.keep = both(cx, m.keep, seen)?;
    }
    if right >= 0 {
        let newest = cx.with_int(BinaryFn::Add, at, right)?;
        let seen = cx.b.compare(CompareFn::Le, key, newest)?;
        m.keep = both(cx, m.keep, seen)?;
    }
    Ok(m)
}

/// A mask shorter than the keys hides the rest.
fn widen_mask(cx: &mut Cx, mask: Value, keys: &Dim) -> One {
    let shape = cx.shape(mask);
    let Some(own) = shape.last() else {
        return Ok(mask);
    };
    if own.same(keys) != Tri::No || *own == Dim::ONE {
        return Ok(mask);
    }
    let bool = cx.dtype(mask) == DType::Bool;
    let fill = cx.like(mask, if bool { 0.0 } else { f64::NEG_INFINITY })?;
    let mut hi = vec![Dim::ZERO; shape.len()];
    hi[shape.len() - 1] = keys.clone() - own.clone();
    let op = Pad {
        lo: vec![Dim::ZERO; shape.len()],
        hi,
        mode: PadMode::Constant,
    };
    Ok(cx.b.one(op, &[mask, fill])?)
}

pub(super) fn composite(cx: &mut Cx, qkv: [Value; 3], scale: f64, m: Masks) -> One {
    let op = Attention {
        scale,
        mask: match m.causal {
            None => MaskKind::Full,
            Some(offset) => MaskKind::Causal { offset },
        },
        bias: m.bias.is_some(),
        keep: m.keep.is_some(),
        slopes: false,
        lengths: m.lengths.is_some(),
    };
    let mut args = qkv.to_vec();
    args.extend(m.bias);
    args.extend(m.keep);
    args.extend(m.lengths);
    Ok(cx.b.one(op, &args)?)
}

/// Attention whose scores are capped or wanted: in plain ops, in f32 at least.
fn spelled_out(
    cx: &mut Cx,
    [q, k, v]: [Value; 3],
    scale: f64,
    softcap: f64,
    mut m: Masks,
) -> Result<(Value, Value), Fail> {
    let narrow = cx.dtype(q);
    let compute = match cx.opt_int("softmax_precision")? {
        Some(n) => tensor::dtype(n).unwrap_or(DType::F32),
        None if narrow == DType::F64 => DType::F64,
        None => DType::F32,
    };
    let mode = cx.int("qk_matmul_output_mode", 0)?;
    let q = cx.b.cast(q, compute)?;
    let (k, v) = (spread_heads(cx, k, q)?, spread_heads(cx, v, q)?);
    let (k, v) = (cx.b.cast(k, compute)?, cx.b.cast(v, compute)?);
    let raw = cx.b.matmul_t(q, k, false, true)?;
    let factor = cx.like(raw, scale)?;
    let mut score = cx.b.mul(raw, factor)?;
    let mut shown = score;
    if softcap > 0.0 {
        let cap = cx.like(score, softcap)?;
        let s = cx.b.div(score, cap)?;
        let s = cx.b.unary(UnaryFn::Tanh, s)?;
        score = cx.b.mul(s, cap)?;
        // Opsets 23 to 25 show the capped scores in mode 0 as well.
        shown = score;
    }
    hide(cx, &mut m, score)?;
    if let Some(bias) = m.bias {
        let bias = cx.b.cast(bias, compute)?;
        score = cx.b.add(score, bias)?;
    }
    if let Some(keep) = m.keep {
        let never = cx.like(score, f64::NEG_INFINITY)?;
        score = cx.b.select(keep, score, never)?;
    }
    if mode == 2 {
        shown = score;
    }
    let weights = softmax_or_nothing(cx, score)?;
    if mode == 3 {
        shown = weights;
    }
    let y = cx.b.matmul(weights, v)?;
    Ok((cx.b.cast(y, narrow)?, cx.b.cast(shown, narrow)?))
}

/// Attention with graphs that change the scores before the softmax and the
/// weights after it. Without them, it is plain attention.
pub(crate) fn flex_attention(cx: &mut Cx) -> Out {
    let (q, k, v) = (cx.arg(0)?, cx.arg(1)?, cx.arg(2)?);
    let narrow = cx.dtype(q);
    let features = cx.shape(q).last().and_then(Dim::as_const);
    let scale = match (cx.opt_float("scale")?, features) {
        (Some(s), _) => s,
        (None, Some(d)) => 1.0 / (d as f64).sqrt(),
        (None, None) => return Err(Fail::form("the head size of attention must be a constant")),
    };
    if !cx.has("score_mod") && !cx.has("prob_mod") {
        let masks = Masks {
            keep: None,
            bias: None,
            causal: None,
            lengths: None,
        };
        return Ok(vec![composite(cx, [q, k, v], scale, masks)?]);
    }
    let compute = match cx.opt_int("softmax_precision")? {
        Some(n) => tensor::dtype(n).unwrap_or(DType::F32),
        None if narrow == DType::F64 => DType::F64,
        None => DType::F32,
    };
    let q = cx.b.cast(q, compute)?;
    let (k, v) = (spread_heads(cx, k, q)?, spread_heads(cx, v, q)?);
    let (k, v) = (cx.b.cast(k, compute)?, cx.b.cast(v, compute)?);
    let score = cx.b.matmul_t(q, k, false, true)?;
    let factor = cx.like(score, scale)?;
    let score = cx.b.mul(score, factor)?;
    let score = changed(cx, "score_mod", score)?;
    let weights = softmax_or_nothing(cx, score)?;
    let weights = changed(cx, "prob_mod", weights)?;
    let y = cx.b.matmul(weights, v)?;
    Ok(vec![cx.b.cast(y, narrow)?])
}

/// What a graph of one argument makes of a value.
fn changed(cx: &mut Cx, name: &str, x: Value) -> One {
    if !cx.has(name) {
        return Ok(x);
    }
    let graph = cx.graph(name)?;
    let out = cx
        .imp
        .subgraph(cx.b, cx.scope, graph, &[Item::Tensor(x)], cx.env)?;
    let first = out.first();
    first
        .ok_or_else(|| Fail::invalid(format!("`{name}` yields nothing")))?
        .tensor()
}

/// Causality and lengths as a part of the bool mask.
pub(super) fn hide(cx: &mut Cx, m: &mut Masks, score: Value) -> Result<(), Fail> {
    let shape = cx.ranked(score, 4)?;
    let (rows, keys) = (shape[2].clone(), shape[3].clone());
    let key = index(cx, vec![Dim::ONE, keys], 1)?;
    if let Some(offset) = m.causal.take() {
        let at = index(cx, vec![rows, Dim::ONE], 0)?;
        let offset = cx.scalar_dim(offset)?;
        let at = cx.b.add(at, offset)?;
        let seen = cx.b.compare(CompareFn::Le, key, at)?;
        m.keep = both(cx, m.keep, seen)?;
    }
    if let Some(lengths) = m.lengths.take() {
        let n = cx.extent(lengths, 0)?;
        let wide = cx.b.cast(lengths, DType::I64)?;
        let wide = cx.b.reshape(wide, &[n, Dim::ONE, Dim::ONE, Dim::ONE])?;
        let seen = cx.b.compare(CompareFn::Lt, key, wide)?;
        m.keep = both(cx, m.keep, seen)?;
    }
    Ok(())
}

/// Softmax over the last axis; a row of −∞ gives zeros.
pub(super) fn softmax_or_nothing(cx: &mut Cx, score: Value) -> One {
    let m = cx.b.reduce(ReduceFn::Max, score, &[3], true)?;
    let (never, zero) = (cx.like(score, f64::NEG_INFINITY)?, cx.like(score, 0.0)?);
    let nothing = cx.b.compare(CompareFn::Eq, m, never)?;
    let m = cx.b.select(nothing, zero, m)?;
    let d = cx.b.sub(score, m)?;
    let e = cx.b.unary(UnaryFn::Exp, d)?;
    let sum = cx.b.reduce(ReduceFn::Sum, e, &[3], true)?;
    let one = cx.like(score, 1.0)?;
    let sum = cx.b.select(nothing, one, sum)?;
    Ok(cx.b.div(e, sum)?)
}

/// Grouped keys or values repeated for each query head.
pub(super) fn spread_heads(cx: &mut Cx, x: Value, q: Value) -> One {
    let (s, heads) = (cx.ranked(x, 4)?, cx.extent(q, 1)?);
    if s[1] == heads {
        return Ok(x);
    }
    let share = heads.floor_div(&s[1]);
    let tail = [s[2].clone(), s[3].clone()];
    let split = [&[s[0].clone(), s[1].clone(), Dim::ONE][..], &tail].concat();
    let wide = [&[s[0].clone(), s[1].clone(), share][..], &tail].concat();
    let flat = [&[s[0].clone(), heads][..], &tail].concat();
    let v = cx.b.reshape(x, &split)?;
    let v = cx.b.broadcast_to(v, &wide)?;
    Ok(cx.b.reshape(v, &flat)?)
}

pub(crate) fn rotary_embedding(cx: &mut Cx) -> Out {
    let x = cx.arg(0)?;
    rotate(cx, x, 1, 2, cx.opt(3))
}

/// Of ONNX Runtime: positions are the second argument and always given.
pub(crate) fn microsoft_rotary_embedding(cx: &mut Cx) -> Out {
    let (x, positions) = (cx.arg(0)?, cx.arg(1)?);
    if cx.has("scale") && cx.float("scale", 1.0)? != 1.0 {
        return Err(Fail::form(
            "a rotary embedding with a scale is not supported",
        ));
    }
    let positions = match cx.rank(positions) {
        // Of the first row, from which the others count on.
        1 => {
            let rows = cx.extent(x, cx.rank(x).saturating_sub(2))?;
            let at = index(cx, vec![Dim::ONE, rows], 1)?;
            let from = cx.b.cast(positions, DType::I64)?;
            cx.b.add(at, from)?
        }
        _ => positions,
    };
    rotate(cx, x, 2, 3, Some(positions))
}

fn rotate(cx: &mut Cx, x: Value, cos: usize, sin: usize, positions: Option<Value>) -> Out {
    let flat = cx.rank(x) == 3;
    let dims = cx.int("rotary_embedding_dim", 0)?;
    let mut tables = vec![];
    for i in [cos, sin] {
        let mut t = cx.arg(i)?;
        if let Some(p) = positions {
            t = cx.b.gather(t, p, 0)?;
        }
        // [b, s, d/2] lies under the heads.
        let mut shape = cx.shape(t);
        if shape.len() == 3 {
            shape.insert(1, Dim::ONE);
        }
        tables.push(cx.b.reshape(t, &shape)?);
    }
    let mut heads = cx.int("num_heads", 0)?;
    if flat && heads == 0 {
        // The tables' width gives the head size.
        let half = cx
            .shape(tables[0])
            .last()
            .and_then(Dim::as_const)
            .unwrap_or(0);
        let width = cx.shape(x)[2].as_const().unwrap_or(0);
        heads = width.checked_div(half.saturating_mul(2)).unwrap_or(0);
    }
    let x = heads_first(cx, x, heads)?;
    let op = Rope {
        interleaved: cx.flag("interleaved", false)?,
        rotary_dims: usize::try_from(dims).ok().filter(|&d| d > 0),
    };
    let y = cx.b.one(op, &[x, tables[0], tables[1]])?;
    Ok(vec![if flat { heads_last(cx, y)? } else { y }])
}
