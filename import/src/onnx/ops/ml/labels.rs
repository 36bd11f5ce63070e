//! Values exchanged for others by a table.

use super::table;
use crate::onnx::cx::{Cx, Fail, Out};
use kiln_ir::graph::Value;
use kiln_ir::tensor::SizeMismatch;
use kiln_ir::{CompareFn, DType, Dim, ReduceFn, Tensor, UnaryFn};

fn bad(e: SizeMismatch) -> Fail {
    Fail::invalid(e.to_string())
}

/// The attribute `{kind}_int64s`, `{kind}_floats`, `{kind}_strings` or `{kind}_tensor`
/// as a vector.
fn list(cx: &mut Cx, kind: &str) -> Result<Tensor, Fail> {
    if let Some(v) = cx.ints(&format!("{kind}_int64s"))? {
        return Tensor::from_i64(DType::I64, [v.len()], v).map_err(bad);
    }
    if let Some(v) = cx.floats(&format!("{kind}_floats"))? {
        return Tensor::from_f32([v.len()], v).map_err(bad);
    }
    if let Some(v) = cx.texts(&format!("{kind}_strings"))? {
        return Tensor::strings([v.len()], v).map_err(bad);
    }
    if let Some(t) = cx.tensor(&format!("{kind}_tensor"))? {
        let v = cx.place(t)?;
        let t = cx.literal(v).ok_or_else(Fail::reported)?;
        return t.reshaped([t.len()]).map_err(bad);
    }
    Err(Fail::invalid(format!("the {kind} are missing")))
}

/// What stands for a value without a key.
fn default(cx: &mut Cx, dtype: DType) -> Result<Tensor, Fail> {
    if let Some(t) = cx.tensor("default_tensor")? {
        let v = cx.place(t)?;
        let t = cx.literal(v).ok_or_else(Fail::reported)?;
        return t.reshaped([1]).map_err(bad);
    }
    let t = match dtype {
        DType::Str => {
            let text = cx.text("default_string", "_Unused")?.to_string();
            Tensor::strings([], vec![text]).map_err(bad)?
        }
        d if d.is_float() => Tensor::scalar_f64(d, cx.float("default_float", -0.0)?),
        d => Tensor::scalar_i64(d, cx.int("default_int64", -1)?),
    };
    t.reshaped([1]).map_err(bad)
}

/// The value of the first key that equals the element.
pub(crate) fn label_encoder(cx: &mut Cx) -> Out {
    let x = cx.arg(0)?;
    // The first version had strings and their places.
    let (keys, values) = match cx.texts("classes_strings")? {
        Some(v) => classes(v, cx.dtype(x))?,
        None => (list(cx, "keys")?, list(cx, "values")?),
    };
    Ok(vec![exchange(cx, x, keys, values)?])
}

/// Strings for numbers or numbers for strings, whichever the argument is.
pub(crate) fn category_mapper(cx: &mut Cx) -> Out {
    let x = cx.arg(0)?;
    let (texts, numbers) = (cx.texts("cats_strings")?, cx.ints("cats_int64s")?);
    let (Some(texts), Some(numbers)) = (texts, numbers) else {
        return Err(Fail::invalid("the categories are missing"));
    };
    let texts = Tensor::strings([texts.len()], texts).map_err(bad)?;
    let numbers = Tensor::from_i64(DType::I64, [numbers.len()], numbers).map_err(bad)?;
    let (keys, values) = match cx.dtype(x) {
        DType::Str => (texts, numbers),
        _ => (numbers, texts),
    };
    Ok(vec![exchange(cx, x, keys, values)?])
}

/// Keys and values of classes: each string's place for strings, else the other way.
fn classes(all: Vec<String>, of: DType) -> Result<(Tensor, Tensor), Fail> {
    let n = all.len();
    let places: Vec<i64> = (0..n as i64).collect();
    let places = Tensor::from_i64(DType::I64, [n], &places).map_err(bad)?;
    let texts = Tensor::strings([n], all).map_err(bad)?;
    Ok(match of {
        DType::Str => (texts, places),
        _ => (places, texts),
    })
}

/// Every key is compared: the cost is the product of the counts.
fn exchange(cx: &mut Cx, x: Value, keys: Tensor, values: Tensor) -> Result<Value, Fail> {
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
    let nan = keys.dtype().is_float() && keys.to_f64().iter().any(|k| k.is_nan());
    let keys = cx.b.constant(keys)?;
    let mut hit = cx.b.compare(CompareFn::Eq, x, keys)?;
    // From version 4 on NaN is a key like any other.
    if cx.opset >= 4 && nan {
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
    Ok(cx.b.gather(all, place, 0)?)
}
