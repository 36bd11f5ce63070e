//! Operators between quantized values of one scale each: read as numbers, computed
//! in f32, quantized again.

use super::super::{reduce, window};
use crate::onnx::cx::{Cx, Fail, Out};
use kiln_ir::graph::Value;
use kiln_ir::ops::composite::Softmax;
use kiln_ir::{CompareFn, DType, Dim, ReduceFn, UnaryFn};

type One = Result<Value, Fail>;

/// Argument `i`, of one element, as an f32 scalar.
pub(super) fn scalar(cx: &mut Cx, i: usize) -> One {
    let v = cx.arg(i)?;
    let v = cx.b.reshape(v, &[])?;
    Ok(cx.b.cast(v, DType::F32)?)
}

/// The quantized argument `x` as numbers: `(x − zero)·scale`, the scale in
/// argument `at` and the zero point, where given, behind it.
fn numbers(cx: &mut Cx, x: Value, at: usize) -> One {
    let s = scalar(cx, at)?;
    let x = integers(cx, x, cx.opt(at + 1))?;
    let x = cx.b.cast(x, DType::F32)?;
    Ok(cx.b.mul(x, s)?)
}

/// `x − zero` in i32.
fn integers(cx: &mut Cx, x: Value, zero: Option<Value>) -> One {
    let x = cx.b.cast(x, DType::I32)?;
    let Some(z) = zero else { return Ok(x) };
    let z = cx.b.reshape(z, &[])?;
    let z = cx.b.cast(z, DType::I32)?;
    Ok(cx.b.sub(x, z)?)
}

/// `y` rounded to even, the zero point added, saturated.
pub(super) fn rounded(cx: &mut Cx, y: Value, zero: Option<Value>, to: DType) -> One {
    let mut y = cx.b.unary(UnaryFn::Round, y)?;
    if let Some(z) = zero {
        let z = cx.b.reshape(z, &[])?;
        let z = cx.b.cast(z, DType::F32)?;
        y = cx.b.add(y, z)?;
    }
    // A cast of a float saturates.
    Ok(cx.b.cast(y, to)?)
}

/// Numbers quantized by the scale in argument `at` and the zero point behind it.
fn quantized(cx: &mut Cx, y: Value, at: usize, to: DType) -> Out {
    let s = scalar(cx, at)?;
    let y = cx.b.div(y, s)?;
    Ok(vec![rounded(cx, y, cx.opt(at + 1), to)?])
}

pub(crate) fn add(cx: &mut Cx) -> Out {
    let (a, b) = (cx.arg(0)?, cx.arg(3)?);
    let to = cx.dtype(a);
    let (a, b) = (numbers(cx, a, 1)?, numbers(cx, b, 4)?);
    let y = cx.b.add(a, b)?;
    quantized(cx, y, 6, to)
}

/// The product of the integers is exact; the three scales become one.
pub(crate) fn mul(cx: &mut Cx) -> Out {
    let (a, b) = (cx.arg(0)?, cx.arg(3)?);
    let to = cx.dtype(a);
    let (a, b) = (integers(cx, a, cx.opt(2))?, integers(cx, b, cx.opt(5))?);
    let y = cx.b.mul(a, b)?;
    let y = cx.b.cast(y, DType::F32)?;
    let (sa, sb, sy) = (scalar(cx, 1)?, scalar(cx, 4)?, scalar(cx, 6)?);
    let s = cx.b.mul(sa, sb)?;
    let s = cx.b.div(s, sy)?;
    let y = cx.b.mul(y, s)?;
    Ok(vec![rounded(cx, y, cx.opt(7), to)?])
}

pub(crate) fn sigmoid(cx: &mut Cx) -> Out {
    let x = cx.arg(0)?;
    let to = cx.dtype(x);
    let x = numbers(cx, x, 1)?;
    let y = cx.b.unary(UnaryFn::Sigmoid, x)?;
    quantized(cx, y, 3, to)
}

pub(crate) fn leaky_relu(cx: &mut Cx) -> Out {
    let x = cx.arg(0)?;
    let to = cx.dtype(x);
    let x = numbers(cx, x, 1)?;
    let alpha = cx.float("alpha", 0.01)?;
    let (zero, alpha) = (cx.like(x, 0.0)?, cx.like(x, alpha)?);
    let below = cx.b.compare(CompareFn::Lt, x, zero)?;
    let less = cx.b.mul(x, alpha)?;
    let y = cx.b.select(below, less, x)?;
    quantized(cx, y, 3, to)
}

/// Along one axis from opset 13 on, over all axes from `axis` on before.
pub(crate) fn softmax(cx: &mut Cx) -> Out {
    let x = cx.arg(0)?;
    let (to, shape) = (cx.dtype(x), cx.shape(x));
    let axis = cx.axis_attr(-1, shape.len())?;
    let x = numbers(cx, x, 1)?;
    let y = match cx.int("opset", 13)? {
        13.. => cx.b.one(Softmax { axis, log: false }, &[x])?,
        _ => {
            let flat = [Dim::product(&shape[..axis]), Dim::product(&shape[axis..])];
            let x = cx.b.reshape(x, &flat)?;
            let softmax = Softmax {
                axis: 1,
                log: false,
            };
            let y = cx.b.one(softmax, &[x])?;
            cx.b.reshape(y, &shape)?
        }
    };
    // ONNX Runtime's factor is a whole number: 1/255 as an f32 gives 254.
    let (sy, one) = (scalar(cx, 3)?, cx.like(y, 1.0)?);
    let factor = cx.b.div(one, sy)?;
    let factor = cx.b.unary(UnaryFn::Floor, factor)?;
    let y = cx.b.mul(y, factor)?;
    Ok(vec![rounded(cx, y, cx.opt(4), to)?])
}

/// Values, each with its scale and zero point, joined under one of both. Each is quantized
/// first, by what makes it, so that bytes are joined.
pub(crate) fn concat(cx: &mut Cx) -> Out {
    let count = cx.args.len().saturating_sub(2);
    if count == 0 || !count.is_multiple_of(3) {
        return Err(Fail::invalid("each value has a scale and a zero point"));
    }
    let to = cx.dtype(cx.arg(1)?);
    let mut parts = vec![];
    for i in (2..2 + count).step_by(3) {
        let x = cx.arg(i)?;
        let x = numbers(cx, x, i + 1)?;
        parts.extend(quantized(cx, x, 0, to)?);
    }
    let axis = cx.axis_attr(0, cx.rank(parts[0]))?;
    Ok(vec![cx.b.concat(&parts, axis)?])
}

pub(crate) fn select(cx: &mut Cx) -> Out {
    let (c, x, y) = (cx.arg(0)?, cx.arg(1)?, cx.arg(4)?);
    let to = cx.dtype(x);
    let (x, y) = (numbers(cx, x, 2)?, numbers(cx, y, 5)?);
    let z = cx.b.select(c, x, y)?;
    quantized(cx, z, 7, to)
}

pub(crate) fn reduce_mean(cx: &mut Cx) -> Out {
    let x = cx.arg(0)?;
    let (to, rank) = (cx.dtype(x), cx.rank(x));
    let axes = match cx.ints("axes")? {
        Some(axes) => cx.axes(axes, rank)?,
        None => (0..rank).collect(),
    };
    let keep = cx.flag("keepdims", true)?;
    let x = numbers(cx, x, 1)?;
    let y = reduce::apply(cx, reduce::Kind::Mean, x, &axes, keep)?;
    quantized(cx, y, 3, to)
}

pub(crate) fn average_pool(cx: &mut Cx) -> Out {
    let x = cx.arg(0)?;
    let to = cx.dtype(x);
    let last = cx.flag("channels_last", false)?;
    let x = numbers(cx, x, 1)?;
    let x = channels_first(cx, x, last)?;
    let y = window::average_pool_of(cx, x)?;
    let y = channels_last(cx, y, last)?;
    quantized(cx, y, 3, to)
}

/// The sum is exact; scales and the number of elements become one factor.
pub(crate) fn global_average_pool(cx: &mut Cx) -> Out {
    let x = cx.arg(0)?;
    let (to, shape) = (cx.dtype(x), cx.shape(x));
    let last = cx.flag("channels_last", false)?;
    let Some(spatial) = shape.len().checked_sub(2) else {
        return Err(Fail::invalid(format!(
            "rank {} has no channels",
            shape.len()
        )));
    };
    let from = if last { 1 } else { 2 };
    let axes: Vec<usize> = (from..from + spatial).collect();
    let x = integers(cx, x, cx.opt(2))?;
    let sum = cx.b.reduce(ReduceFn::Sum, x, &axes, true)?;
    let sum = cx.b.cast(sum, DType::F32)?;
    let count: Vec<Dim> = axes.iter().map(|&a| shape[a].clone()).collect();
    let count = cx.scalar_dim(Dim::product(&count))?;
    let count = cx.b.cast(count, DType::F32)?;
    let (sx, sy) = (scalar(cx, 1)?, scalar(cx, 3)?);
    let below = cx.b.mul(sy, count)?;
    let s = cx.b.div(sx, below)?;
    let y = cx.b.mul(sum, s)?;
    Ok(vec![rounded(cx, y, cx.opt(4), to)?])
}

/// Convolution whose channels may stand last.
pub(crate) fn conv(cx: &mut Cx) -> Out {
    let last = cx.flag("channels_last", false)?;
    let x = cx.arg(0)?;
    cx.args[0] = Some(channels_first(cx, x, last)?);
    let y = window::qlinear_conv(cx)?[0];
    Ok(vec![channels_last(cx, y, last)?])
}

/// The largest of each window, channels last.
pub(crate) fn max_pool(cx: &mut Cx) -> Out {
    let x = cx.arg(0)?;
    cx.args[0] = Some(channels_first(cx, x, true)?);
    let y = window::max_pool(cx)?[0];
    Ok(vec![channels_last(cx, y, true)?])
}

/// `[n, s…, c]` as `[n, c, s…]`.
fn channels_first(cx: &mut Cx, x: Value, last: bool) -> One {
    let rank = cx.rank(x);
    if !last || rank < 2 {
        return Ok(x);
    }
    let perm: Vec<usize> = [0, rank - 1].into_iter().chain(1..rank - 1).collect();
    Ok(cx.b.transpose(x, &perm)?)
}

/// `[n, c, s…]` as `[n, s…, c]`.
fn channels_last(cx: &mut Cx, x: Value, last: bool) -> One {
    let rank = cx.rank(x);
    if !last || rank < 2 {
        return Ok(x);
    }
    let perm: Vec<usize> = [0].into_iter().chain(2..rank).chain([1]).collect();
    Ok(cx.b.transpose(x, &perm)?)
}
