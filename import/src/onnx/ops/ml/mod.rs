//! Operators of the domain `ai.onnx.ml` that are arithmetic on numbers. Where the
//! standard leaves a question open, ONNX Runtime's kernels answer it;
//! `scripts/ml_cases.py` holds them against each other.

pub(crate) mod features;
mod forest;
pub(crate) mod labels;
pub(crate) mod linear;
pub(crate) mod scores;
pub(crate) mod svm;
pub(crate) mod trees;

use crate::onnx::cx::{Cx, Fail};
use kiln_ir::graph::Value;
use kiln_ir::{DType, Tensor};

/// A list of floats as a constant of this shape.
fn table(cx: &mut Cx, values: &[f64], shape: &[usize], dtype: DType) -> Result<Value, Fail> {
    let t = Tensor::from_f64(dtype, shape, values).map_err(|e| Fail::invalid(e.to_string()))?;
    Ok(cx.b.constant(t)?)
}

/// A list of integers as a constant of this shape.
fn indices(cx: &mut Cx, values: &[i64], shape: &[usize]) -> Result<Value, Fail> {
    let t =
        Tensor::from_i64(DType::I64, shape, values).map_err(|e| Fail::invalid(e.to_string()))?;
    Ok(cx.b.constant(t)?)
}

/// The attribute's floats as f64; none where it is left out.
fn floats(cx: &Cx, name: &str) -> Result<Option<Vec<f64>>, Fail> {
    let given = cx.floats(name)?;
    Ok(given.map(|v| v.iter().map(|&f| f64::from(f)).collect()))
}

/// Rows of features in f32: `[n, f]`, a vector being one row.
fn rows(cx: &mut Cx) -> Result<Value, Fail> {
    let x = cx.arg(0)?;
    let x = cx.b.cast(x, DType::F32)?;
    match cx.shape(x).as_slice() {
        [_, _] => Ok(x),
        [f] => Ok(cx.b.reshape(x, &[kiln_ir::Dim::ONE, f.clone()])?),
        s => Err(Fail::invalid(format!(
            "rows of features of rank {}",
            s.len()
        ))),
    }
}

/// How many features a row has, which must be known.
fn width(cx: &Cx, x: Value) -> Result<usize, Fail> {
    let n = cx.shape(x).last().and_then(kiln_ir::Dim::as_const);
    n.and_then(|n| usize::try_from(n).ok())
        .ok_or_else(|| Fail::form("the number of features must be a constant"))
}
