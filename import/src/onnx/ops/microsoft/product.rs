//! Products of quantized matrices.

use super::super::{linear, quant};
use super::qlinear::{self, scalar};
use crate::onnx::cx::{Cx, Fail, Out};
use kiln_ir::graph::Value;
use kiln_ir::{DType, Dim};

type One = Result<Value, Fail>;

/// `(a − za)·(b − zb)` in i32; a zero point of the right matrix may be one for
/// each column.
pub(super) fn integer(
    cx: &mut Cx,
    a: Value,
    b: Value,
    za: Option<Value>,
    zb: Option<Value>,
) -> One {
    let a = linear::centred(cx, a, za, true)?;
    let b = linear::centred(cx, b, zb, false)?;
    linear::product(cx, a, b)
}

/// An integer product as numbers: times both scales, of which the second may be
/// one for each column.
pub(super) fn scaled(cx: &mut Cx, y: Value, sa: Value, sb: Value) -> One {
    let (sa, sb) = (flat(cx, sa)?, flat(cx, sb)?);
    let s = cx.b.mul(sa, sb)?;
    let y = cx.b.cast(y, cx.dtype(s))?;
    Ok(cx.b.mul(y, s)?)
}

/// A vector of one element as a scalar.
fn flat(cx: &mut Cx, s: Value) -> One {
    match &cx.shape(s)[..] {
        [n] if *n == Dim::ONE => Ok(cx.b.reshape(s, &[])?),
        _ => Ok(s),
    }
}

fn plus(cx: &mut Cx, y: Value, bias: Option<Value>) -> Out {
    match bias {
        None => Ok(vec![y]),
        Some(bias) => Ok(vec![cx.b.add(y, bias)?]),
    }
}

/// The left matrix is quantized by its own range.
pub(crate) fn dynamic_quantize_matmul(cx: &mut Cx) -> Out {
    let (a, b, sb) = (cx.arg(0)?, cx.arg(1)?, cx.arg(2)?);
    let [a, sa, za] = quant::by_range(cx, a)?;
    let y = integer(cx, a, b, Some(za), cx.opt(3))?;
    let y = scaled(cx, y, sa, sb)?;
    plus(cx, y, cx.opt(4))
}

pub(crate) fn matmul_integer_to_float(cx: &mut Cx) -> Out {
    let (a, b, sa, sb) = (cx.arg(0)?, cx.arg(1)?, cx.arg(2)?, cx.arg(3)?);
    if cx.rank(sa) == 1 && cx.shape(sa) != [Dim::ONE] {
        return Err(Fail::form(
            "a scale for each column of the left matrix is not supported",
        ));
    }
    let y = integer(cx, a, b, cx.opt(4), cx.opt(5))?;
    let y = scaled(cx, y, sa, sb)?;
    plus(cx, y, cx.opt(6))
}

/// `alpha·(a·b + c)`, quantized again where a scale for the result is given.
pub(crate) fn qgemm(cx: &mut Cx) -> Out {
    let (mut a, mut b) = (cx.arg(0)?, cx.arg(3)?);
    if cx.flag("transA", false)? {
        a = cx.b.transpose(a, &[1, 0])?;
    }
    if cx.flag("transB", false)? {
        b = cx.b.transpose(b, &[1, 0])?;
    }
    let mut y = integer(cx, a, b, cx.opt(2), cx.opt(5))?;
    if let Some(c) = cx.opt(6) {
        y = cx.b.add(y, c)?;
    }
    let (sa, sb) = (cx.arg(1)?, cx.arg(4)?);
    let (sa, sb) = (flat(cx, sa)?, flat(cx, sb)?);
    let mut s = cx.b.mul(sa, sb)?;
    let alpha = cx.float("alpha", 1.0)?;
    if alpha != 1.0 {
        let alpha = cx.like(s, alpha)?;
        s = cx.b.mul(s, alpha)?;
    }
    if cx.opt(7).is_some() {
        let sy = scalar(cx, 7)?;
        s = cx.b.div(s, sy)?;
    }
    let y = cx.b.cast(y, DType::F32)?;
    let y = cx.b.mul(y, s)?;
    if cx.opt(7).is_none() {
        return Ok(vec![y]);
    }
    let z = cx.arg(8)?;
    let to = cx.dtype(z);
    Ok(vec![qlinear::rounded(cx, y, Some(z), to)?])
}
