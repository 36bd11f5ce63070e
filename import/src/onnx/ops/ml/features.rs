//! Features scaled, normalised, filled in, encoded and joined.

use super::{floats, indices, rows, table};
use crate::onnx::cx::{Cx, Fail, Out};
use crate::onnx::ops::strings;
use kiln_ir::graph::Value;
use kiln_ir::{CompareFn, DType, Dim, ReduceFn, UnaryFn};

/// `(x − offset)·scale`.
pub(crate) fn scaler(cx: &mut Cx) -> Out {
    let mut y = cx.arg(0)?;
    y = cx.b.cast(y, DType::F32)?;
    if let Some(offset) = floats(cx, "offset")? {
        let offset = table(cx, &offset, &[offset.len()], DType::F32)?;
        y = cx.b.sub(y, offset)?;
    }
    if let Some(scale) = floats(cx, "scale")? {
        let scale = table(cx, &scale, &[scale.len()], DType::F32)?;
        y = cx.b.mul(y, scale)?;
    }
    Ok(vec![y])
}

/// Each row divided by its largest element, or by its norm; rows that have none
/// stay.
pub(crate) fn normalizer(cx: &mut Cx) -> Out {
    let x = cx.arg(0)?;
    let x = cx.b.cast(x, DType::F32)?;
    let last = cx.rank(x).checked_sub(1);
    let last = last.ok_or_else(|| Fail::invalid("a scalar is no row"))?;
    let by = match cx.text("norm", "MAX")? {
        "MAX" => cx.b.reduce(ReduceFn::Max, x, &[last], true)?,
        "L1" => {
            let a = cx.b.unary(UnaryFn::Abs, x)?;
            cx.b.reduce(ReduceFn::Sum, a, &[last], true)?
        }
        "L2" => {
            let squares = cx.b.mul(x, x)?;
            let sum = cx.b.reduce(ReduceFn::Sum, squares, &[last], true)?;
            cx.b.unary(UnaryFn::Sqrt, sum)?
        }
        other => return Err(Fail::invalid(format!("there is no norm `{other}`"))),
    };
    let (zero, one) = (cx.like(by, 0.0)?, cx.like(by, 1.0)?);
    let none = cx.b.compare(CompareFn::Eq, by, zero)?;
    let by = cx.b.select(none, one, by)?;
    Ok(vec![cx.b.div(x, by)?])
}

/// Elements that equal one value (or are NaN, where that is it) replaced, by one
/// number or one for each feature.
pub(crate) fn imputer(cx: &mut Cx) -> Out {
    let x = cx.arg(0)?;
    let dtype = cx.dtype(x);
    if dtype.is_float() {
        let by = floats(cx, "imputed_value_floats")?.unwrap_or_default();
        let by = table(cx, &by, &[by.len()], dtype)?;
        let what = cx.float("replaced_value_float", 0.0)?;
        let hit = equal_or_nan(cx, x, what)?;
        return Ok(vec![cx.b.select(hit, by, x)?]);
    }
    let by = cx.ints("imputed_value_int64s")?.unwrap_or_default();
    let by = indices(cx, by, &[by.len()])?;
    let by = cx.b.cast(by, dtype)?;
    let what = cx.int("replaced_value_int64", 0)?;
    let what = indices(cx, &[what], &[])?;
    let what = cx.b.cast(what, dtype)?;
    let hit = cx.b.compare(CompareFn::Eq, x, what)?;
    Ok(vec![cx.b.select(hit, by, x)?])
}

fn equal_or_nan(cx: &mut Cx, x: Value, what: f64) -> Result<Value, Fail> {
    if what.is_nan() {
        return Ok(cx.b.unary(UnaryFn::IsNan, x)?);
    }
    let what = cx.like(x, what)?;
    Ok(cx.b.compare(CompareFn::Eq, x, what)?)
}

/// A last axis with 1 at the element's category. Without `zeros`, an element of no
/// category is an error when the model runs: it reads a place that a table lacks.
pub(crate) fn one_hot(cx: &mut Cx) -> Out {
    let x = cx.arg(0)?;
    let (x, n, categories) = if cx.dtype(x) == DType::Str {
        let all = cx.texts("cats_strings")?.unwrap_or_default();
        (x, all.len(), strings::vector(cx, &all)?)
    } else {
        let all = cx.ints("cats_int64s")?.unwrap_or_default();
        let x = cx.b.cast(x, DType::I64)?;
        (x, all.len(), indices(cx, all, &[all.len()])?)
    };
    if n == 0 {
        return Err(Fail::invalid(
            "the categories of the argument's type are missing",
        ));
    }
    let mut column = cx.shape(x);
    column.push(Dim::ONE);
    let at = cx.rank(x);
    let x = cx.b.reshape(x, &column)?;
    let hit = cx.b.compare(CompareFn::Eq, x, categories)?;
    let ones = cx.b.cast(hit, DType::F32)?;
    if cx.flag("zeros", true)? {
        return Ok(vec![ones]);
    }
    let place: Vec<i64> = (0..n as i64).collect();
    let place = indices(cx, &place, &[n])?;
    let beyond = indices(cx, &[n as i64], &[])?;
    let place = cx.b.select(hit, place, beyond)?;
    let place = cx.b.reduce(ReduceFn::Min, place, &[at], false)?;
    let known = table(cx, &vec![1.0; n], &[n], DType::F32)?;
    let known = cx.b.gather(known, place, 0)?;
    let mut column = cx.shape(known);
    column.push(Dim::ONE);
    let known = cx.b.reshape(known, &column)?;
    Ok(vec![cx.b.mul(ones, known)?])
}

/// Rows joined; each is as wide as `inputdimensions` says.
pub(crate) fn vectorizer(cx: &mut Cx) -> Out {
    let widths = cx.ints("inputdimensions")?.unwrap_or_default().to_vec();
    let mut parts = vec![];
    for (i, x) in cx.all()?.into_iter().enumerate() {
        cx.args[0] = Some(x);
        let x = rows(cx)?;
        let width = cx.extent(x, 1)?;
        match widths.get(i).map(|&w| Dim::from(w)) {
            Some(w) if w.same(&width) == kiln_ir::Tri::No => {
                return Err(Fail::invalid(format!(
                    "{width} features where {w} are said"
                )));
            }
            Some(_) => parts.push(x),
            None => return Err(Fail::invalid("`inputdimensions` is too short")),
        }
    }
    Ok(vec![cx.b.concat(&parts, 1)?])
}
