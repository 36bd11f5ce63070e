//! Attention whose projection belongs to it, and attention of many heads.

use super::super::attention::{Masks, composite, heads_first, heads_last, index};
use super::product;
use crate::onnx::cx::{Cx, Fail, Out};
use kiln_ir::graph::Value;
use kiln_ir::{BinaryFn, CompareFn, DType, Dim};

type One = Result<Value, Fail>;

/// More are a mistake.
const MAX_HEADS: i64 = 1 << 20;

/// Queries, keys and values, heads first: `[b, h, s, d]`.
struct Heads {
    q: Value,
    k: Value,
    v: Value,
}

/// `x[b, s, i]·w[i, q+k+v] + bias`, split into heads, with what came before.
pub(crate) fn attention(cx: &mut Cx) -> Out {
    refuse(cx, "do_rotary", "rotary positions inside an attention")?;
    let (x, w) = (cx.arg(0)?, cx.arg(1)?);
    let mut y = cx.b.matmul(x, w)?;
    if let Some(bias) = cx.opt(2) {
        y = cx.b.add(y, bias)?;
    }
    let past = cx.opt(4);
    projected(cx, y, cx.opt(3), cx.opt(5), past)
}

/// The same with a quantized product.
pub(crate) fn quantized(cx: &mut Cx) -> Out {
    refuse(cx, "do_rotary", "rotary positions inside an attention")?;
    let (x, w, bias) = (cx.arg(0)?, cx.arg(1)?, cx.arg(2)?);
    let (sx, sw) = (cx.arg(3)?, cx.arg(4)?);
    let y = product::integer(cx, x, w, cx.opt(6), cx.opt(7))?;
    let y = product::scaled(cx, y, sx, sw)?;
    let y = cx.b.add(y, bias)?;
    let past = cx.opt(8);
    projected(cx, y, cx.opt(5), None, past)
}

fn refuse(cx: &Cx, flag: &str, what: &str) -> Result<(), Fail> {
    for (name, what) in [
        (flag, what),
        ("past_present_share_buffer", "a cache that is shared"),
    ] {
        if cx.flag(name, false)? {
            return Err(Fail::form(format!("{what}: not supported")));
        }
    }
    Ok(())
}

/// The number of heads.
pub(super) fn heads(cx: &Cx, name: &str) -> Result<i64, Fail> {
    let n = cx.int(name, 0)?;
    match n {
        1..=MAX_HEADS => Ok(n),
        _ => Err(Fail::invalid(format!("`{name}` is {n}"))),
    }
}

/// The score's factor: given, or 1/√(head size).
pub(super) fn scale(cx: &Cx, q: Value) -> Result<f64, Fail> {
    match cx.float("scale", 0.0)? {
        0.0 => {}
        s => return Ok(s),
    }
    let features = cx.shape(q).last().and_then(Dim::as_const);
    match features {
        Some(d) if d > 0 => Ok(1.0 / (d as f64).sqrt()),
        _ => Err(Fail::form("the head size of attention must be a constant")),
    }
}

/// Attention over a projection `[b, s, q+k+v]`; the past and the present are keys
/// and values in one `[2, b, h, t, d]`.
fn projected(
    cx: &mut Cx,
    y: Value,
    mask: Option<Value>,
    bias: Option<Value>,
    past: Option<Value>,
) -> Out {
    let n = heads(cx, "num_heads")?;
    let width = cx.extent(y, 2)?;
    let sizes: Vec<Dim> = match cx.ints("qkv_hidden_sizes")? {
        Some(s) if s.len() == 3 => s.iter().map(|&s| s.into()).collect(),
        Some(s) => return Err(Fail::invalid(format!("`qkv_hidden_sizes` is {s:?}"))),
        None => vec![width.floor_div(&3.into()); 3],
    };
    let mut at = Dim::ZERO;
    let mut parts = vec![];
    for size in sizes {
        let part = cx.b.slice_axis(y, 2, at.clone(), size.clone())?;
        parts.push(heads_first(cx, part, n)?);
        at = at + size;
    }
    let mut h = Heads {
        q: parts[0],
        k: parts[1],
        v: parts[2],
    };
    let mut before = Dim::ZERO;
    if let Some(past) = past {
        before = cx.extent(past, 3)?;
        let (pk, pv) = (half(cx, past, 0)?, half(cx, past, 1)?);
        h.k = cx.b.concat(&[pk, h.k], 2)?;
        h.v = cx.b.concat(&[pv, h.v], 2)?;
    }
    let bias = added(cx, &h, mask, bias)?;
    let out = attend(cx, &h, bias, before)?;
    let mut all = vec![out];
    if cx.wants(1) {
        let (k, v) = (with_axis(cx, h.k)?, with_axis(cx, h.v)?);
        all.push(cx.b.concat(&[k, v], 0)?);
    }
    Ok(all)
}

fn half(cx: &mut Cx, past: Value, i: i64) -> One {
    let part = cx.b.slice_axis(past, 0, i.into(), Dim::ONE)?;
    let shape = cx.shape(part)[1..].to_vec();
    Ok(cx.b.reshape(part, &shape)?)
}

fn with_axis(cx: &mut Cx, x: Value) -> One {
    let shape = [&[Dim::ONE], &cx.shape(x)[..]].concat();
    Ok(cx.b.reshape(x, &shape)?)
}

fn attend(cx: &mut Cx, h: &Heads, bias: Option<Value>, before: Dim) -> One {
    let masks = Masks {
        keep: None,
        bias,
        causal: cx.flag("unidirectional", false)?.then_some(before),
        lengths: None,
    };
    let scale = scale(cx, h.q)?;
    let y = composite(cx, [h.q, h.k, h.v], scale, masks)?;
    heads_last(cx, y)
}

/// What is added to the scores: the bias, and the filter value where the mask
/// hides a key. Hidden keys are not gone: where all are hidden, all are seen.
fn added(
    cx: &mut Cx,
    h: &Heads,
    mask: Option<Value>,
    bias: Option<Value>,
) -> Result<Option<Value>, Fail> {
    let Some(mask) = mask else { return Ok(bias) };
    let seen = seen(cx, h, mask)?;
    let filter = cx.float("mask_filter_value", -10000.0)?;
    let (zero, filter) = (cx.like(h.q, 0.0)?, cx.like(h.q, filter)?);
    let hidden = cx.b.select(seen, zero, filter)?;
    match bias {
        None => Ok(Some(hidden)),
        Some(bias) => Ok(Some(cx.b.add(bias, hidden)?)),
    }
}

/// Which keys a mask shows: `[b, t]` or `[b, s, t]` of truths, `[b]` lengths,
/// `[2b]` ends and then starts, `[3b + 2]` lengths and then offsets.
fn seen(cx: &mut Cx, h: &Heads, mask: Value) -> One {
    let (shape, batch) = (cx.shape(mask), cx.extent(h.q, 0)?);
    let column = [batch.clone(), Dim::ONE, Dim::ONE, Dim::ONE];
    let truths = match &shape[..] {
        [n] => {
            let keys = cx.extent(h.k, 2)?;
            let key = index(cx, vec![Dim::ONE, keys], 1)?;
            let bound = |cx: &mut Cx, from: Dim| -> One {
                let part = cx.b.slice_axis(mask, 0, from, batch.clone())?;
                let part = cx.b.cast(part, DType::I64)?;
                Ok(cx.b.reshape(part, &column)?)
            };
            let twice = batch.clone() * Dim::from(2);
            let end = bound(cx, Dim::ZERO)?;
            let mut seen = cx.b.compare(CompareFn::Lt, key, end)?;
            if *n == twice {
                let start = bound(cx, batch.clone())?;
                let after = cx.b.compare(CompareFn::Ge, key, start)?;
                seen = cx.b.binary(BinaryFn::And, seen, after)?;
            }
            return Ok(seen);
        }
        [b, t] => [b.clone(), Dim::ONE, Dim::ONE, t.clone()],
        [b, s, t] => [b.clone(), Dim::ONE, s.clone(), t.clone()],
        _ => {
            return Err(Fail::form(format!(
                "an attention mask of rank {} is not supported",
                shape.len()
            )));
        }
    };
    let mask = cx.b.reshape(mask, &truths)?;
    let zero = cx.like(mask, 0.0)?;
    Ok(cx.b.compare(CompareFn::Gt, mask, zero)?)
}

/// Queries, keys and values that are projected already; packed, apart, or keys
/// and values with their heads first.
pub(crate) fn multi_head(cx: &mut Cx) -> Out {
    for (i, what) in [
        (8, "a cache that is shared"),
        (9, "beams that share a cache"),
    ] {
        if cx.opt(i).is_some() {
            return Err(Fail::form(format!("{what}: not supported")));
        }
    }
    let n = heads(cx, "num_heads")?;
    let (mut h, plain) = unpacked(cx, n)?;
    if !plain && cx.opt(3).is_some() {
        return Err(Fail::invalid(
            "keys and values with their heads first take no bias",
        ));
    }
    let mut before = Dim::ZERO;
    if let (Some(pk), Some(pv)) = (cx.opt(6), cx.opt(7)) {
        before = cx.extent(pk, 2)?;
        h.k = cx.b.concat(&[pk, h.k], 2)?;
        h.v = cx.b.concat(&[pv, h.v], 2)?;
    }
    let bias = added(cx, &h, cx.opt(4), cx.opt(5))?;
    let y = attend(cx, &h, bias, before)?;
    let mut out = vec![y, h.k, h.v];
    if cx.wants(3) {
        out.push(scores(cx, &h, bias)?);
    }
    Ok(out)
}

/// The scaled scores with what is added to them.
fn scores(cx: &mut Cx, h: &Heads, bias: Option<Value>) -> One {
    if cx.flag("unidirectional", false)? {
        return Err(Fail::form(
            "the scores of causal attention are not supported",
        ));
    }
    let factor = scale(cx, h.q)?;
    let factor = cx.like(h.q, factor)?;
    let s = cx.b.matmul_t(h.q, h.k, false, true)?;
    let s = cx.b.mul(s, factor)?;
    match bias {
        None => Ok(s),
        Some(bias) => Ok(cx.b.add(s, bias)?),
    }
}

/// Heads first, biases added; and whether biases could be.
fn unpacked(cx: &mut Cx, n: i64) -> Result<(Heads, bool), Fail> {
    let q = cx.arg(0)?;
    let (q, k, v) = match (cx.rank(q), cx.opt(1), cx.opt(2)) {
        // [b, s, n, 3, d]
        (5, ..) => (part(cx, q, 0)?, part(cx, q, 1)?, part(cx, q, 2)?),
        (_, Some(k), None) if cx.rank(k) == 5 => (q, part(cx, k, 0)?, part(cx, k, 1)?),
        (_, Some(k), Some(v)) if cx.rank(k) == 4 => {
            let q = biased(cx, q, Dim::ZERO)?;
            let q = heads_first(cx, q, n)?;
            return Ok((Heads { q, k, v }, false));
        }
        (_, Some(k), Some(v)) => (q, k, v),
        _ => return Err(Fail::invalid("the keys or values are missing")),
    };
    let (wq, wk) = (cx.extent(q, 2)?, cx.extent(k, 2)?);
    let q = biased(cx, q, Dim::ZERO)?;
    let k = biased(cx, k, wq.clone())?;
    let v = biased(cx, v, wq + wk)?;
    let h = Heads {
        q: heads_first(cx, q, n)?,
        k: heads_first(cx, k, n)?,
        v: heads_first(cx, v, n)?,
    };
    Ok((h, true))
}

/// One of several packed along axis 3, as `[b, s, n·d]`.
fn part(cx: &mut Cx, x: Value, i: i64) -> One {
    let x = cx.b.slice_axis(x, 3, i.into(), Dim::ONE)?;
    let s = cx.shape(x);
    let flat = [s[0].clone(), s[1].clone(), s[2].clone() * s[4].clone()];
    Ok(cx.b.reshape(x, &flat)?)
}

/// With its part of the bias, which begins at `from`.
fn biased(cx: &mut Cx, x: Value, from: Dim) -> One {
    let Some(bias) = cx.opt(3) else { return Ok(x) };
    let width = cx.extent(x, 2)?;
    let own = cx.b.slice_axis(bias, 0, from, width)?;
    Ok(cx.b.add(x, own)?)
}
