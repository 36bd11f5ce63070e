//! Values exchanged for others by a table.

use super::table;
use crate::onnx::cx::{Cx, Fail, Out};
use kiln_ir::{CompareFn, DType, Dim, ReduceFn, Tensor, UnaryFn};

/// The attribute `{kind}_int64s`, `{kind}_floats` or `{kind}_tensor` as a vector.
fn list(cx: &mut Cx, kind: &str) -> Result<Tensor, Fail> {
    let bad = |e: kiln_ir::tensor::SizeMismatch| Fail::invalid(e.to_string());
    if let Some(v) = cx.ints(&format!("{kind}_int64s"))? {
        return Tensor::from_i64(DType::I64, [v.len()], v).map_err(bad);
    }
    if let Some(v) = cx.floats(&format!("{kind}_floats"))? {
        return Tensor::from_f32([v.len()], v).map_err(bad);
    }
    if let Some(t) = cx.tensor(&format!("{kind}_tensor"))? {
        let v = cx.place(t)?;
        let t = cx.literal(v).ok_or_else(Fail::reported)?;
        if t.dtype() != DType::Str {
            return t.reshaped([t.len()]).map_err(bad);
        }
    }
    if cx.has(&format!("{kind}_strings")) || cx.has(&format!("{kind}_tensor")) {
        return Err(Fail::form("labels that are strings are not compiled"));
    }
    Err(Fail::invalid(format!("the {kind} are missing")))
}

/// What stands for a value without a key.
fn default(cx: &mut Cx, dtype: DType) -> Result<Tensor, Fail> {
    if let Some(t) = cx.tensor("default_tensor")? {
        let v = cx.place(t)?;
        let t = cx.literal(v).ok_or_else(Fail::reported)?;
        return t.reshaped([1]).map_err(|e| Fail::invalid(e.to_string()));
    }
    let t = match dtype.is_float() {
        true => Tensor::scalar_f64(dtype, cx.float("default_float", -0.0)?),
        false => Tensor::scalar_i64(dtype, cx.int("default_int64", -1)?),
    };
    t.reshaped([1]).map_err(|e| Fail::invalid(e.to_string()))
}

/// The value of the first key that equals the element. Every key is compared: the
/// cost is the product of the counts.
pub(crate) fn label_encoder(cx: &mut Cx) -> Out {
    let x = cx.arg(0)?;
    if cx.dtype(x) == DType::Str || cx.has("classes_strings") {
        return Err(Fail::form("labels that are strings are not compiled"));
    }
    let (keys, values) = (list(cx, "keys")?, list(cx, "values")?);
    let n = keys.len();
    if n != values.len() || n == 0 {
        return Err(Fail::invalid(format!(
            "{n} keys for {} values",
            values.len()
        )));
    }
    if keys.dtype() != cx.dtype(x) {
        return Err(Fail::invalid(format!(
            "keys of {} for elements of {}",
            keys.dtype(),
            cx.dtype(x)
        )));
    }
    let otherwise = default(cx, values.dtype())?;
    let mut column = cx.shape(x);
    column.push(Dim::ONE);
    let last = cx.rank(x);
    let x = cx.b.reshape(x, &column)?;
    let numbers = keys.to_f64();
    let keys = cx.b.constant(keys)?;
    let mut hit = cx.b.compare(CompareFn::Eq, x, keys)?;
    // From version 4 on NaN is a key like any other.
    if cx.opset >= 4 && numbers.iter().any(|k| k.is_nan()) {
        let (a, b) = (
            cx.b.unary(UnaryFn::IsNan, x)?,
            cx.b.unary(UnaryFn::IsNan, keys)?,
        );
        let both = cx.b.binary(kiln_ir::BinaryFn::And, a, b)?;
        hit = cx.b.binary(kiln_ir::BinaryFn::Or, hit, both)?;
    }
    let place: Vec<f64> = (0..n).map(|i| i as f64).collect();
    let place = table(cx, &place, &[n], DType::I64)?;
    let beyond = cx.like(place, n as f64)?;
    let place = cx.b.select(hit, place, beyond)?;
    let place = cx.b.reduce(ReduceFn::Min, place, &[last], false)?;
    let (values, otherwise) = (cx.b.constant(values)?, cx.b.constant(otherwise)?);
    let all = cx.b.concat(&[values, otherwise], 0)?;
    Ok(vec![cx.b.gather(all, place, 0)?])
}
