//! Elementwise operators.

use crate::onnx::cx::{Cx, Fail, Out};
use kiln_ir::ops::composite::Gelu;
use kiln_ir::{Dim, Tri};

/// `x + bias` cut in two along the last axis: the first half times the GELU of the
/// second.
pub(crate) fn bias_split_gelu(cx: &mut Cx) -> Out {
    let (x, bias) = (cx.arg(0)?, cx.arg(1)?);
    let x = cx.b.add(x, bias)?;
    let Some(last) = cx.rank(x).checked_sub(1) else {
        return Err(Fail::invalid("a scalar has no halves"));
    };
    let width = cx.extent(x, last)?;
    let half = width.floor_div(&2.into());
    if (half.clone() * Dim::from(2)).same(&width) == Tri::No {
        return Err(Fail::invalid(format!("{width} features have no halves")));
    }
    let left = cx.b.slice_axis(x, last, Dim::ZERO, half.clone())?;
    let right = cx.b.slice_axis(x, last, half.clone(), half)?;
    let right = cx.b.one(Gelu { tanh: false }, &[right])?;
    Ok(vec![cx.b.mul(left, right)?])
}
