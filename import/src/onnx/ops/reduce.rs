//! Reductions and running sums.

use crate::onnx::cx::{Cx, Fail, Out};
use kiln_ir::graph::Value;
use kiln_ir::ops::reduce::Cumulate;
use kiln_ir::{DType, ReduceFn, UnaryFn};

/// What a reduction computes.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Kind {
    L1,
    L2,
    LogSum,
    LogSumExp,
    Max,
    Mean,
    Min,
    Prod,
    Sum,
    SumSquare,
}

/// Axes are an attribute before opset 18 (ReduceSum: 13), then an argument.
pub(crate) fn reduce(cx: &mut Cx, kind: Kind) -> Out {
    let x = cx.arg(0)?;
    let since = if kind == Kind::Sum { 13 } else { 18 };
    let axes = if cx.opset < since {
        cx.ints("axes")?.map(|a| a.to_vec())
    } else {
        match cx.opt(1) {
            Some(v) => Some(cx.need_ints(v, "the reduced axes")?),
            None => None,
        }
    };
    let keep = cx.flag("keepdims", true)?;
    let axes = match axes {
        Some(axes) if !axes.is_empty() => cx.axes(&axes, cx.rank(x))?,
        _ if cx.flag("noop_with_empty_axes", false)? => vec![],
        _ => (0..cx.rank(x)).collect(),
    };
    Ok(vec![apply(cx, kind, x, &axes, keep)?])
}

/// The reduction over these axes.
pub(crate) fn apply(
    cx: &mut Cx,
    kind: Kind,
    x: Value,
    axes: &[usize],
    keep: bool,
) -> Result<Value, Fail> {
    let f = match kind {
        Kind::L1 => {
            let a = cx.b.unary(UnaryFn::Abs, x)?;
            return fold(cx, ReduceFn::Sum, a, axes, keep);
        }
        Kind::L2 | Kind::SumSquare => {
            let s = cx.b.mul(x, x)?;
            let s = fold(cx, ReduceFn::Sum, s, axes, keep)?;
            return match kind {
                Kind::L2 => in_floats(cx, s, |cx, s| Ok(cx.b.unary(UnaryFn::Sqrt, s)?)),
                _ => Ok(s),
            };
        }
        Kind::LogSum => {
            let s = fold(cx, ReduceFn::Sum, x, axes, keep)?;
            return in_floats(cx, s, |cx, s| Ok(cx.b.unary(UnaryFn::Log, s)?));
        }
        Kind::LogSumExp => {
            return in_floats(cx, x, |cx, x| log_sum_exp(cx, x, axes, keep));
        }
        Kind::Max => ReduceFn::Max,
        Kind::Mean => ReduceFn::Mean,
        Kind::Min => ReduceFn::Min,
        Kind::Prod => ReduceFn::Prod,
        Kind::Sum => ReduceFn::Sum,
    };
    // The largest of truths is their union.
    if cx.dtype(x) == DType::Bool {
        // In u8, whose least is false: that is the largest of none.
        let ints = cx.b.cast(x, DType::U8)?;
        let r = fold(cx, f, ints, axes, keep)?;
        return Ok(cx.b.cast(r, DType::Bool)?);
    }
    fold(cx, f, x, axes, keep)
}

fn fold(cx: &mut Cx, f: ReduceFn, x: Value, axes: &[usize], keep: bool) -> Result<Value, Fail> {
    if axes.is_empty() {
        return Ok(x);
    }
    Ok(cx.b.reduce(f, x, axes, keep)?)
}

/// `f` computed in f64 for integers, and rounded back.
fn in_floats(
    cx: &mut Cx,
    x: Value,
    f: impl Fn(&mut Cx, Value) -> Result<Value, Fail>,
) -> Result<Value, Fail> {
    let dtype = cx.dtype(x);
    if dtype.is_float() {
        return f(cx, x);
    }
    let wide = cx.b.cast(x, DType::F64)?;
    let r = f(cx, wide)?;
    Ok(cx.b.cast(r, dtype)?)
}

/// `m + log Σ exp(x − m)` with `m` the largest, or 0 where that is infinite.
fn log_sum_exp(cx: &mut Cx, x: Value, axes: &[usize], keep: bool) -> Result<Value, Fail> {
    let m = fold(cx, ReduceFn::Max, x, axes, true)?;
    let (inf, zero) = (cx.b.unary(UnaryFn::IsInf, m)?, cx.like(x, 0.0)?);
    let m = cx.b.select(inf, zero, m)?;
    let d = cx.b.sub(x, m)?;
    let e = cx.b.unary(UnaryFn::Exp, d)?;
    let s = fold(cx, ReduceFn::Sum, e, axes, true)?;
    let l = cx.b.unary(UnaryFn::Log, s)?;
    let y = cx.b.add(l, m)?;
    if keep || axes.is_empty() {
        return Ok(y);
    }
    let shape = cx.shape(y);
    let kept: Vec<_> = (0..shape.len())
        .filter(|i| !axes.contains(i))
        .map(|i| shape[i].clone())
        .collect();
    Ok(cx.b.reshape(y, &kept)?)
}

/// Over all axes after the channels'.
pub(crate) fn global_pool(cx: &mut Cx, kind: Kind) -> Out {
    let x = cx.arg(0)?;
    let rank = cx.rank(x);
    if rank < 2 {
        return Err(Fail::invalid("the argument has no channels"));
    }
    let axes: Vec<usize> = (2..rank).collect();
    Ok(vec![apply(cx, kind, x, &axes, true)?])
}

/// Running sums or products along an axis.
pub(crate) fn cumulate(cx: &mut Cx, f: ReduceFn) -> Out {
    let (x, axis) = (cx.arg(0)?, cx.arg(1)?);
    let axis = match cx.need_ints(axis, "the axis")?[..] {
        [a] => cx.axis(a, cx.rank(x))?,
        _ => return Err(Fail::invalid("the axis is not one number")),
    };
    let op = Cumulate {
        f,
        axis,
        exclusive: cx.flag("exclusive", false)?,
        reverse: cx.flag("reverse", false)?,
    };
    Ok(vec![cx.b.one(op, &[x])?])
}
