//! Signal processing.

use crate::onnx::cx::{Cx, Fail, Out};
use crate::onnx::tensor;
use kiln_ir::ops::source::Iota;
use kiln_ir::{BinaryFn, DType, Dim, UnaryFn};
use std::f64::consts::PI;

/// A window `a₀ − a₁·cos(2πn/N) + a₂·cos(4πn/N)`, where N is the length, or one
/// less if it is to be symmetric.
pub(crate) fn window(cx: &mut Cx, terms: [f64; 3]) -> Out {
    let length = cx.arg(0)?;
    let length = cx.b.cast(length, DType::I64)?;
    let length = cx.size(length)?;
    let to = cx.int("output_datatype", 1)?;
    let to = tensor::dtype(to).ok_or_else(|| Fail::invalid(format!("{to} is no element type")))?;
    let period = match cx.flag("periodic", true)? {
        true => length.clone(),
        false => (length.clone() - Dim::ONE).maximum(&Dim::ONE),
    };
    let op = Iota {
        shape: vec![length],
        axis: 0,
        dtype: DType::F64,
    };
    let n = cx.b.one(op, &[])?;
    let period = cx.scalar_dim(period)?;
    let period = cx.b.cast(period, DType::F64)?;
    let mut y = cx.b.full(DType::F64, &cx.shape(n), terms[0])?;
    for (k, f) in [(1, BinaryFn::Sub), (2, BinaryFn::Add)] {
        if terms[k] == 0.0 {
            continue;
        }
        let turn = cx.like(n, 2.0 * PI * k as f64)?;
        let angle = cx.b.mul(n, turn)?;
        let angle = cx.b.div(angle, period)?;
        let c = cx.b.unary(UnaryFn::Cos, angle)?;
        let factor = cx.like(c, terms[k])?;
        let c = cx.b.mul(c, factor)?;
        y = cx.b.binary(f, y, c)?;
    }
    Ok(vec![cx.b.cast(y, to)?])
}
