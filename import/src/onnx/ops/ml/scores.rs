//! From scores to labels and probabilities.

use super::table;
use crate::onnx::cx::{Cx, Fail};
use kiln_ir::graph::Value;
use kiln_ir::ops::composite::Softmax;
use kiln_ir::ops::reduce::ArgReduce;
use kiln_ir::{CompareFn, DType, Dim, ReduceFn, Tensor, UnaryFn};

type One = Result<Value, Fail>;

/// The attribute `post_transform` over the last axis of `[n, e]`.
pub(super) fn transformed(cx: &mut Cx, y: Value) -> One {
    let name = cx.text("post_transform", "NONE")?;
    transform(cx, y, name)
}

/// The transform of this name.
pub(super) fn transform(cx: &mut Cx, y: Value, name: &str) -> One {
    match name {
        "NONE" => Ok(y),
        "LOGISTIC" => Ok(cx.b.unary(UnaryFn::Sigmoid, y)?),
        "SOFTMAX" => {
            let softmax = Softmax {
                axis: 1,
                log: false,
            };
            Ok(cx.b.one(softmax, &[y])?)
        }
        "SOFTMAX_ZERO" => softmax_zero(cx, y),
        other => Err(Fail::form(format!(
            "the transform `{other}` of scores is not supported"
        ))),
    }
}

/// Softmax over the elements that are not 0, which stay 0.
fn softmax_zero(cx: &mut Cx, y: Value) -> One {
    let (zero, never) = (cx.like(y, 0.0)?, cx.like(y, f64::NEG_INFINITY)?);
    let some = cx.b.compare(CompareFn::Ne, y, zero)?;
    let most = cx.b.select(some, y, never)?;
    let most = cx.b.reduce(ReduceFn::Max, most, &[1], true)?;
    let d = cx.b.sub(y, most)?;
    let e = cx.b.unary(UnaryFn::Exp, d)?;
    let e = cx.b.select(some, e, zero)?;
    let sum = cx.b.reduce(ReduceFn::Sum, e, &[1], true)?;
    let one = cx.like(sum, 1.0)?;
    let none = cx.b.compare(CompareFn::Eq, sum, zero)?;
    let sum = cx.b.select(none, one, sum)?;
    Ok(cx.b.div(e, sum)?)
}

/// The labels, integers in this attribute or strings: at least one.
pub(super) fn labels(cx: &Cx, name: &str) -> Result<Tensor, Fail> {
    let made = match (cx.ints(name)?, cx.texts("classlabels_strings")?) {
        (Some(v), _) if !v.is_empty() => Tensor::from_i64(DType::I64, [v.len()], v),
        (_, Some(v)) if !v.is_empty() => Tensor::strings([v.len()], v),
        _ => return Err(Fail::invalid("the labels are missing")),
    };
    made.map_err(|e| Fail::invalid(e.to_string()))
}

/// The label of each row's largest score, the first among equals.
pub(super) fn best(cx: &mut Cx, scores: Value, labels: &Tensor) -> One {
    let op = ArgReduce {
        largest: true,
        axis: 1,
        keep: false,
        last: false,
    };
    let at = cx.b.one(op, &[scores])?;
    let labels = cx.b.constant(labels.clone())?;
    Ok(cx.b.gather(labels, at, 0)?)
}

/// The second label where the score `[n, 1]` is above the threshold, else the
/// first: `[n]`.
pub(super) fn above(cx: &mut Cx, score: Value, threshold: f64, labels: &Tensor) -> One {
    if labels.len() != 2 {
        return Err(Fail::invalid(format!(
            "one score for {} labels",
            labels.len()
        )));
    }
    let threshold = cx.like(score, threshold)?;
    let over = cx.b.compare(CompareFn::Gt, score, threshold)?;
    let n = cx.extent(over, 0)?;
    let over = cx.b.reshape(over, &[n])?;
    let labels = cx.b.constant(labels.clone())?;
    let first = cx.b.slice_axis(labels, 0, Dim::ZERO, Dim::ONE)?;
    let second = cx.b.slice_axis(labels, 0, Dim::ONE, Dim::ONE)?;
    Ok(cx.b.select(over, second, first)?)
}

/// The scores of two classes from one: `[from − p, p]`, or both through the
/// logistic function.
pub(super) fn two(cx: &mut Cx, p: Value, from: f64) -> One {
    let from = match cx.text("post_transform", "NONE")? {
        "LOGISTIC" => 0.0,
        _ => from,
    };
    let from = cx.like(p, from)?;
    let other = cx.b.sub(from, p)?;
    let y = cx.b.concat(&[other, p], 1)?;
    match cx.text("post_transform", "NONE")? {
        "LOGISTIC" => Ok(cx.b.unary(UnaryFn::Sigmoid, y)?),
        "NONE" | "SOFTMAX" | "SOFTMAX_ZERO" => Ok(y),
        other => Err(Fail::form(format!(
            "the transform `{other}` of scores is not supported"
        ))),
    }
}

/// `x·wᵀ + bias` for weights `[e, f]` given as a list.
pub(super) fn product(cx: &mut Cx, x: Value, weights: &[f64], bias: &[f64], e: usize) -> One {
    let f = super::width(cx, x)?;
    if Some(weights.len()) != e.checked_mul(f) || !(bias.is_empty() || bias.len() == e) {
        return Err(Fail::invalid(format!(
            "{} weights and {} offsets for {e} results of {f} features",
            weights.len(),
            bias.len()
        )));
    }
    let w = table(cx, weights, &[e, f], DType::F32)?;
    let y = cx.b.matmul_t(x, w, false, true)?;
    if bias.is_empty() {
        return Ok(y);
    }
    let bias = table(cx, bias, &[e], DType::F32)?;
    Ok(cx.b.add(y, bias)?)
}

/// How many of each row's elements are true, `[n, k]` to `[n]`, in i64.
pub(super) fn counted(cx: &mut Cx, truths: Value) -> One {
    let n = cx.b.cast(truths, DType::I64)?;
    Ok(cx.b.reduce(ReduceFn::Sum, n, &[1], false)?)
}

/// One column of `[n, k]`, as `[n, 1]`.
pub(super) fn column(cx: &mut Cx, x: Value, i: usize) -> One {
    Ok(cx.b.slice_axis(x, 1, i.into(), Dim::ONE)?)
}
