//! ONNX Runtime's operators on quantized values, which its quantizer writes in the
//! form without QuantizeLinear and DequantizeLinear: each is the plain operator
//! between the two, with one scale and zero point a tensor.

use super::quant::parameter;
use crate::onnx::cx::{Cx, Fail, Out};
use kiln_ir::graph::Value;
use kiln_ir::ops::composite::{Dequantize, Quantize};
use kiln_ir::{BinaryFn, DType, Dim, ReduceFn, UnaryFn};

type One = Result<Value, Fail>;

/// The numbers that the inputs from `at` on (elements, scale, zero point) stand for.
fn real(cx: &mut Cx, at: usize) -> One {
    let (x, scale) = (cx.arg(at)?, cx.arg(at + 1)?);
    let mut args = vec![x, parameter(cx, scale)?];
    if let Some(z) = cx.opt(at + 2) {
        args.push(parameter(cx, z)?);
    }
    Ok(cx.b.one(Dequantize { axis: 0, block: 0 }, &args)?)
}

/// Quantized by the inputs from `at` on (scale, zero point).
fn rounded(cx: &mut Cx, y: Value, at: usize, to: DType) -> Out {
    let scale = cx.arg(at)?;
    let mut args = vec![y, parameter(cx, scale)?];
    if let Some(z) = cx.opt(at + 1) {
        args.push(parameter(cx, z)?);
    }
    let op = Quantize {
        axis: 0,
        block: 0,
        to,
    };
    Ok(vec![cx.b.one(op, &args)?])
}

/// Of two tensors.
pub(crate) fn binary(cx: &mut Cx, f: BinaryFn) -> Out {
    let to = cx.dtype(cx.arg(0)?);
    let (a, b) = (real(cx, 0)?, real(cx, 3)?);
    let y = cx.b.binary(f, a, b)?;
    rounded(cx, y, 6, to)
}

pub(crate) fn sigmoid(cx: &mut Cx) -> Out {
    let to = cx.dtype(cx.arg(0)?);
    let x = real(cx, 0)?;
    let y = cx.b.unary(UnaryFn::Sigmoid, x)?;
    rounded(cx, y, 3, to)
}

pub(crate) fn global_average_pool(cx: &mut Cx) -> Out {
    if cx.flag("channels_last", false)? {
        return Err(Fail::form("channels as the last axis are not supported"));
    }
    let to = cx.dtype(cx.arg(0)?);
    let x = real(cx, 0)?;
    let axes: Vec<usize> = (2..cx.rank(x)).collect();
    let y = cx.b.reduce(ReduceFn::Mean, x, &axes, true)?;
    rounded(cx, y, 3, to)
}

/// `saturate(round((a·b + c) · (α·sa·sb/sy)) + zy)`, the product exact in integers; in
/// f32 and not rounded where no output scale is given.
pub(crate) fn gemm(cx: &mut Cx) -> Out {
    let to = cx.dtype(cx.arg(0)?);
    let (ta, tb) = (cx.flag("transA", false)?, cx.flag("transB", false)?);
    let alpha = cx.float("alpha", 1.0)?;
    let a = centred(cx, 0, false)?;
    let b = centred(cx, 3, tb)?;
    let mut y = cx.b.matmul_t(a, b, ta, tb)?;
    if let Some(c) = cx.opt(6) {
        let c = cx.b.cast(c, DType::I32)?;
        y = cx.b.add(y, c)?;
    }
    let y = cx.b.cast(y, DType::F64)?;
    let (sa, sb) = (double(cx, 1)?, double(cx, 4)?);
    let scale = cx.b.mul(sa, sb)?;
    let alpha = cx.like(scale, alpha)?;
    let scale = cx.b.mul(scale, alpha)?;
    if cx.opt(7).is_none() {
        let y = cx.b.mul(y, scale)?;
        return Ok(vec![cx.b.cast(y, DType::F32)?]);
    }
    let sy = double(cx, 7)?;
    let scale = cx.b.div(scale, sy)?;
    let y = cx.b.mul(y, scale)?;
    let mut y = cx.b.unary(UnaryFn::Round, y)?;
    if cx.opt(8).is_some() {
        let z = double(cx, 8)?;
        y = cx.b.add(y, z)?;
    }
    // A cast of a float saturates.
    Ok(vec![cx.b.cast(y, to)?])
}

fn double(cx: &mut Cx, at: usize) -> One {
    let v = cx.arg(at)?;
    let v = parameter(cx, v)?;
    Ok(cx.b.cast(v, DType::F64)?)
}

/// The integers from `at` on less their zero point, of which there may be one a
/// column, or a row where the matrix is transposed.
fn centred(cx: &mut Cx, at: usize, rows: bool) -> One {
    let x = cx.arg(at)?;
    let wide = cx.b.cast(x, DType::I32)?;
    let Some(z) = cx.opt(at + 2) else {
        return Ok(wide);
    };
    let z = parameter(cx, z)?;
    let z = match &cx.shape(z)[..] {
        [n] if rows => cx.b.reshape(z, &[n.clone(), Dim::ONE])?,
        _ => z,
    };
    let z = cx.b.cast(z, DType::I32)?;
    Ok(cx.b.sub(wide, z)?)
}
