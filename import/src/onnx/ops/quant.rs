//! Quantized values.

use crate::onnx::cx::{Cx, Fail, Out};
use crate::onnx::tensor;
use kiln_ir::graph::Value;
use kiln_ir::ops::composite::{Dequantize, Quantize};
use kiln_ir::{BinaryFn, DType, Dim, ReduceFn, UnaryFn};

/// The axis and the block size that scales of this rank mean.
fn granularity(cx: &mut Cx, x: Value, scale: Value) -> Result<(usize, usize), Fail> {
    if cx.rank(scale) == 0 {
        return Ok((0, 0));
    }
    let axis = cx.axis_attr(1, cx.rank(x))?;
    let block = match (cx.rank(scale), cx.int("block_size", 0)?) {
        // One scale an element of the axis; but a vector may have blocks as well.
        (1, size) if size == 0 || cx.rank(x) > 1 => 0,
        (_, size) => match size {
            0 => implied_block(cx, x, scale, axis)?,
            n => usize::try_from(n).map_err(|_| Fail::invalid(format!("blocks of {n}")))?,
        },
    };
    Ok((axis, block))
}

fn implied_block(cx: &Cx, x: Value, scale: Value, axis: usize) -> Result<usize, Fail> {
    let (n, s) = (cx.shape(x), cx.shape(scale));
    let block = n
        .get(axis)
        .zip(s.get(axis))
        .and_then(|(n, s)| n.div_exact(s)?.as_const());
    block
        .and_then(|b| usize::try_from(b).ok())
        .filter(|&b| b > 0)
        .ok_or_else(|| Fail::invalid("the block size is missing"))
}

/// A scale or zero point of one element as a scalar.
pub(super) fn parameter(cx: &mut Cx, v: Value) -> Result<Value, Fail> {
    match &cx.shape(v)[..] {
        [n] if *n == Dim::ONE => Ok(cx.b.reshape(v, &[])?),
        _ => Ok(v),
    }
}

pub(crate) fn dequantize(cx: &mut Cx) -> Out {
    let (x, scale) = (cx.arg(0)?, cx.arg(1)?);
    let scale = parameter(cx, scale)?;
    let (axis, block) = granularity(cx, x, scale)?;
    let mut args = vec![x, scale];
    if let Some(z) = cx.opt(2) {
        args.push(parameter(cx, z)?);
    }
    let y = cx.b.one(Dequantize { axis, block }, &args)?;
    match cx.opt_int("output_dtype")? {
        None | Some(0) => Ok(vec![y]),
        Some(n) => {
            let to =
                tensor::dtype(n).ok_or_else(|| Fail::invalid(format!("{n} is no element type")))?;
            Ok(vec![cx.b.cast(y, to)?])
        }
    }
}

pub(crate) fn quantize(cx: &mut Cx) -> Out {
    let (mut x, scale) = (cx.arg(0)?, cx.arg(1)?);
    let scale = parameter(cx, scale)?;
    let (axis, block) = granularity(cx, x, scale)?;
    let zero = match cx.opt(2) {
        Some(z) => Some(parameter(cx, z)?),
        None => None,
    };
    let to = match (zero, cx.int("output_dtype", 0)?) {
        (Some(z), _) => cx.dtype(z),
        (None, 0) => DType::U8,
        (None, n) => {
            tensor::dtype(n).ok_or_else(|| Fail::invalid(format!("{n} is no element type")))?
        }
    };
    if !cx.dtype(x).is_float() {
        let float = cx.dtype(scale);
        x = cx.b.cast(x, float)?;
    }
    let mut args = vec![x, scale];
    args.extend(zero);
    Ok(vec![cx.b.one(Quantize { axis, block, to }, &args)?])
}

pub(crate) fn dynamic_quantize(cx: &mut Cx) -> Out {
    let x = cx.arg(0)?;
    Ok(by_range(cx, x)?.to_vec())
}

/// The range of the data, zero included, spread over 0 … 255: the quantized
/// values, their scale and their zero point.
pub(super) fn by_range(cx: &mut Cx, x: Value) -> Result<[Value; 3], Fail> {
    let axes: Vec<usize> = (0..cx.rank(x)).collect();
    let zero = cx.like(x, 0.0)?;
    let low = cx.b.reduce(ReduceFn::Min, x, &axes, false)?;
    let low = cx.b.binary(BinaryFn::Min, low, zero)?;
    let high = cx.b.reduce(ReduceFn::Max, x, &axes, false)?;
    let high = cx.b.binary(BinaryFn::Max, high, zero)?;
    let span = cx.b.sub(high, low)?;
    let steps = cx.like(x, 255.0)?;
    let scale = cx.b.div(span, steps)?;
    let z = cx.b.div(low, scale)?;
    let z = cx.b.sub(zero, z)?;
    let z = cx.b.binary(BinaryFn::Max, z, zero)?;
    let z = cx.b.binary(BinaryFn::Min, z, steps)?;
    let z = cx.b.unary(UnaryFn::Round, z)?;
    let z = cx.b.cast(z, DType::U8)?;
    let op = Quantize {
        axis: 0,
        block: 0,
        to: DType::U8,
    };
    let y = cx.b.one(op, &[x, scale, z])?;
    Ok([y, scale, z])
}
