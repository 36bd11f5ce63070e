//! Normalizations.

use super::reduce;
use crate::onnx::cx::{Cx, Fail, Out};
use kiln_ir::graph::Value;
use kiln_ir::ops::composite::{LayerNorm, RmsNorm, Softmax};
use kiln_ir::ops::reduce::ArgReduce;
use kiln_ir::ops::source::Iota;
use kiln_ir::{CompareFn, DType, Dim, ReduceFn, UnaryFn};

type One = Result<Value, Fail>;

/// Before opset 13 the axes from `axis` on (1 by default) count as one.
pub(crate) fn softmax(cx: &mut Cx, log: bool) -> Out {
    let x = cx.arg(0)?;
    let shape = cx.shape(x);
    if cx.opset >= 13 {
        let axis = cx.axis_attr(-1, shape.len())?;
        return Ok(vec![cx.b.one(Softmax { axis, log }, &[x])?]);
    }
    let axis = cx.int("axis", 1)?;
    let axis = if axis == shape.len() as i64 {
        shape.len()
    } else {
        cx.axis(axis, shape.len())?
    };
    let last = axis + 1 == shape.len();
    if last {
        return Ok(vec![cx.b.one(Softmax { axis, log }, &[x])?]);
    }
    let flat = [Dim::product(&shape[..axis]), Dim::product(&shape[axis..])];
    let y = cx.b.reshape(x, &flat)?;
    let y = cx.b.one(Softmax { axis: 1, log }, &[y])?;
    Ok(vec![cx.b.reshape(y, &shape)?])
}

/// 1 at the first largest element, 0 elsewhere.
pub(crate) fn hardmax(cx: &mut Cx) -> Out {
    let x = cx.arg(0)?;
    let shape = cx.shape(x);
    let (axis, flat) = if cx.opset >= 13 {
        (cx.axis_attr(-1, shape.len())?, shape.clone())
    } else {
        let axis = cx.axis_attr(1, shape.len())?;
        let flat = vec![Dim::product(&shape[..axis]), Dim::product(&shape[axis..])];
        (1, flat)
    };
    let x2 = cx.b.reshape(x, &flat)?;
    let arg = ArgReduce {
        largest: true,
        axis,
        keep: true,
        last: false,
    };
    let at = cx.b.one(arg, &[x2])?;
    let mut line = vec![Dim::ONE; flat.len()];
    line[axis] = flat[axis].clone();
    let iota = Iota {
        shape: line,
        axis,
        dtype: DType::I64,
    };
    let iota = cx.b.one(iota, &[])?;
    let hit = cx.b.compare(CompareFn::Eq, at, iota)?;
    let dtype = cx.dtype(x);
    let y = cx.b.cast(hit, dtype)?;
    Ok(vec![cx.b.reshape(y, &shape)?])
}

pub(crate) fn layer_norm(cx: &mut Cx) -> Out {
    let (x, scale, bias) = (cx.arg(0)?, cx.arg(1)?, cx.opt(2));
    let axis = cx.axis_attr(-1, cx.rank(x))?;
    let eps = cx.float("epsilon", 1e-5)?;
    let mut out = vec![layer_norm_of(cx, x, scale, bias, axis, eps)?];
    if cx.wants(1) || cx.wants(2) {
        let stash = if cx.int("stash_type", 1)? == 1 {
            DType::F32
        } else {
            cx.dtype(x)
        };
        let x = cx.b.cast(x, stash)?;
        let axes: Vec<usize> = (axis..cx.rank(x)).collect();
        let mean = cx.b.reduce(ReduceFn::Mean, x, &axes, true)?;
        let centred = cx.b.sub(x, mean)?;
        out.push(mean);
        out.push(inverse_deviation(cx, centred, &axes, eps)?);
    }
    Ok(out)
}

/// The composite, its vectors brought to the shape of the normalised axes.
pub(super) fn layer_norm_of(
    cx: &mut Cx,
    x: Value,
    scale: Value,
    bias: Option<Value>,
    axis: usize,
    eps: f64,
) -> One {
    let shape = cx.shape(x)[axis..].to_vec();
    let scale = cx.b.broadcast_to(scale, &shape)?;
    let bias = match bias {
        Some(b) => cx.b.broadcast_to(b, &shape)?,
        None => {
            let dtype = cx.dtype(scale);
            cx.b.full(dtype, &shape, 0.0)?
        }
    };
    Ok(cx.b.one(LayerNorm { axis, eps }, &[x, scale, bias])?)
}

/// 1 / √(mean of squares + eps).
fn inverse_deviation(cx: &mut Cx, x: Value, axes: &[usize], eps: f64) -> One {
    let squares = cx.b.mul(x, x)?;
    let mean = cx.b.reduce(ReduceFn::Mean, squares, axes, true)?;
    let eps = cx.like(mean, eps)?;
    let sum = cx.b.add(mean, eps)?;
    Ok(cx.b.unary(UnaryFn::Rsqrt, sum)?)
}

pub(crate) fn rms_norm(cx: &mut Cx) -> Out {
    let (x, scale) = (cx.arg(0)?, cx.arg(1)?);
    let axis = cx.axis_attr(-1, cx.rank(x))?;
    let eps = cx.float("epsilon", 1e-5)?;
    let shape = cx.shape(x)[axis..].to_vec();
    let scale = cx.b.broadcast_to(scale, &shape)?;
    Ok(vec![cx.b.one(RmsNorm { axis, eps }, &[x, scale])?])
}

/// Of ONNX Runtime: `x + skip (+ bias)`, normalised; result 3 is the sum.
pub(crate) fn skip_layer_norm(cx: &mut Cx) -> Out {
    let (x, skip, gamma) = (cx.arg(0)?, cx.arg(1)?, cx.arg(2)?);
    let eps = cx.float("epsilon", 1e-12)?;
    let mut sum = cx.b.add(x, skip)?;
    if let Some(bias) = cx.opt(4) {
        sum = cx.b.add(sum, bias)?;
    }
    let axis = cx.axis(-1, cx.rank(sum))?;
    let beta = cx.opt(3);
    let y = layer_norm_of(cx, sum, gamma, beta, axis, eps)?;
    let mut out = vec![y];
    if cx.wants(1) || cx.wants(2) {
        let wide = widened(cx, sum)?;
        let mean = cx.b.reduce(ReduceFn::Mean, wide, &[axis], true)?;
        let centred = cx.b.sub(wide, mean)?;
        out.push(mean);
        out.push(inverse_deviation(cx, centred, &[axis], eps)?);
    }
    out.resize(3, y);
    out.push(sum);
    Ok(out)
}

pub(crate) fn skip_rms_norm(cx: &mut Cx) -> Out {
    let (x, skip, gamma) = (cx.arg(0)?, cx.arg(1)?, cx.arg(2)?);
    let eps = cx.float("epsilon", 1e-12)?;
    let mut sum = cx.b.add(x, skip)?;
    if let Some(bias) = cx.opt(3) {
        sum = cx.b.add(sum, bias)?;
    }
    let axis = cx.axis(-1, cx.rank(sum))?;
    let y = cx.b.one(RmsNorm { axis, eps }, &[sum, gamma])?;
    if cx.wants(1) {
        return Err(Fail::form("an RMS norm has no mean"));
    }
    let deviation = match cx.wants(2) {
        true => {
            let wide = widened(cx, sum)?;
            inverse_deviation(cx, wide, &[axis], eps)?
        }
        false => y,
    };
    Ok(vec![y, y, deviation, sum])
}

/// In inference: a factor and an offset for each channel.
pub(crate) fn batch_norm(cx: &mut Cx) -> Out {
    let x = cx.arg(0)?;
    let later = (1..5).any(|i| cx.wants(i));
    if cx.flag("training_mode", false)? {
        return super::training::batch_norm(cx);
    }
    if later {
        return Err(
            Fail::form("batch normalization in training mode is not supported")
                .help("export the model for inference (model.eval())"),
        );
    }
    let shape = cx.shape(x);
    let mut line = vec![Dim::ONE; shape.len()];
    if let (Some(slot), Some(channels)) = (line.get_mut(1), shape.get(1)) {
        *slot = channels.clone();
    } else if let (Some(slot), Some(n)) = (line.first_mut(), shape.first()) {
        // Of rank 1: one channel each element.
        *slot = n.clone();
    }
    let dtype = cx.dtype(x);
    let channel = |cx: &mut Cx, i: usize| -> One {
        let v = cx.arg(i)?;
        Ok(cx.b.reshape(v, &line)?)
    };
    let (scale, bias) = (channel(cx, 1)?, channel(cx, 2)?);
    let (mean, variance) = (channel(cx, 3)?, channel(cx, 4)?);
    let eps = cx.float("epsilon", 1e-5)?;
    let eps = cx.like(variance, eps)?;
    let v = cx.b.add(variance, eps)?;
    let v = cx.b.unary(UnaryFn::Rsqrt, v)?;
    let v = cx.b.cast(v, dtype)?;
    let mean = cx.b.cast(mean, dtype)?;
    let (scale, bias) = (cx.b.cast(scale, dtype)?, cx.b.cast(bias, dtype)?);
    let factor = cx.b.mul(scale, v)?;
    let c = cx.b.sub(x, mean)?;
    let y = cx.b.mul(c, factor)?;
    Ok(vec![cx.b.add(y, bias)?])
}

/// `x` with mean 0 and deviation 1 over `axes`, in f32 at least.
fn standardise(cx: &mut Cx, x: Value, axes: &[usize], eps: f64) -> One {
    let mean = cx.b.reduce(ReduceFn::Mean, x, axes, true)?;
    let c = cx.b.sub(x, mean)?;
    let r = inverse_deviation(cx, c, axes, eps)?;
    Ok(cx.b.mul(c, r)?)
}

fn widened(cx: &mut Cx, x: Value) -> One {
    match cx.dtype(x) {
        DType::F64 => Ok(x),
        _ => Ok(cx.b.cast(x, DType::F32)?),
    }
}

/// `y · scale + bias` for each channel of axis 1, in `x`'s type.
fn per_channel(cx: &mut Cx, y: Value, x: Value) -> Out {
    let (scale, bias) = (cx.arg(1)?, cx.arg(2)?);
    let shape = cx.shape(x);
    let mut line = vec![Dim::ONE; shape.len()];
    line[1] = shape[1].clone();
    let (wide, narrow) = (cx.dtype(y), cx.dtype(x));
    let (scale, bias) = (cx.b.cast(scale, wide)?, cx.b.cast(bias, wide)?);
    let (scale, bias) = (cx.b.reshape(scale, &line)?, cx.b.reshape(bias, &line)?);
    let y = cx.b.mul(y, scale)?;
    let y = cx.b.add(y, bias)?;
    Ok(vec![cx.b.cast(y, narrow)?])
}

fn need_channels(cx: &Cx, x: Value) -> Result<Vec<Dim>, Fail> {
    let shape = cx.shape(x);
    if shape.len() < 2 {
        return Err(Fail::invalid("the argument has no channels"));
    }
    Ok(shape)
}

pub(crate) fn instance_norm(cx: &mut Cx) -> Out {
    let x = cx.arg(0)?;
    let rank = need_channels(cx, x)?.len();
    let eps = cx.float("epsilon", 1e-5)?;
    let wide = widened(cx, x)?;
    let axes: Vec<usize> = (2..rank).collect();
    let y = if axes.is_empty() {
        wide
    } else {
        standardise(cx, wide, &axes, eps)?
    };
    per_channel(cx, y, x)
}

/// Scale and bias are per group before opset 21, per channel from then on.
pub(crate) fn group_norm(cx: &mut Cx) -> Out {
    let x = cx.arg(0)?;
    let shape = need_channels(cx, x)?;
    let eps = cx.float("epsilon", 1e-5)?;
    let groups = cx.int("num_groups", 0)?;
    if groups < 1 {
        return Err(Fail::invalid(format!("{groups} groups")));
    }
    let wide = widened(cx, x)?;
    let size = shape[1].floor_div(&groups.into());
    let mut grouped = vec![shape[0].clone(), groups.into(), size];
    grouped.extend_from_slice(&shape[2..]);
    let g = cx.b.reshape(wide, &grouped)?;
    let axes: Vec<usize> = (2..grouped.len()).collect();
    let y = standardise(cx, g, &axes, eps)?;
    let (scale, bias) = (cx.arg(1)?, cx.arg(2)?);
    let by_group = cx.shape(scale) != [shape[1].clone()];
    if !by_group {
        let y = cx.b.reshape(y, &shape)?;
        return per_channel(cx, y, x);
    }
    let mut line = vec![Dim::ONE; grouped.len()];
    line[1] = groups.into();
    let dtype = cx.dtype(y);
    let (scale, bias) = (cx.b.cast(scale, dtype)?, cx.b.cast(bias, dtype)?);
    let (scale, bias) = (cx.b.reshape(scale, &line)?, cx.b.reshape(bias, &line)?);
    let y = cx.b.mul(y, scale)?;
    let y = cx.b.add(y, bias)?;
    let y = cx.b.reshape(y, &shape)?;
    let narrow = cx.dtype(x);
    Ok(vec![cx.b.cast(y, narrow)?])
}

pub(crate) fn mean_variance(cx: &mut Cx) -> Out {
    let x = cx.arg(0)?;
    let axes = cx.ints("axes")?.unwrap_or(&[0, 2, 3]).to_vec();
    let axes = cx.axes(&axes, cx.rank(x))?;
    let mean = cx.b.reduce(ReduceFn::Mean, x, &axes, true)?;
    let c = cx.b.sub(x, mean)?;
    let squares = cx.b.mul(c, c)?;
    let variance = cx.b.reduce(ReduceFn::Mean, squares, &axes, true)?;
    let deviation = cx.b.unary(UnaryFn::Sqrt, variance)?;
    // The definition adds 1e-9 to the deviation.
    let eps = cx.like(x, 1e-9)?;
    let deviation = cx.b.add(deviation, eps)?;
    Ok(vec![cx.b.div(c, deviation)?])
}

pub(crate) fn lp_norm(cx: &mut Cx) -> Out {
    let x = cx.arg(0)?;
    let axis = cx.axis_attr(-1, cx.rank(x))?;
    let kind = match cx.int("p", 2)? {
        1 => reduce::Kind::L1,
        2 => reduce::Kind::L2,
        p => return Err(Fail::invalid(format!("there is no norm of order {p} here"))),
    };
    let n = reduce::apply(cx, kind, x, &[axis], true)?;
    let zero = cx.like(n, 0.0)?;
    let y = cx.b.div(x, n)?;
    let none = cx.b.compare(CompareFn::Eq, n, zero)?;
    Ok(vec![cx.b.select(none, zero, y)?])
}
