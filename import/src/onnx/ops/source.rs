//! Constants, sizes and what is made of them.

use crate::onnx::cx::{Cx, Fail, Out};
use crate::onnx::{constants::Const, tensor};
use kiln_ir::graph::Value;
use kiln_ir::ops::source::Iota;
use kiln_ir::{BinaryFn, CompareFn, DType, Dim, Tensor, UnaryFn};

pub(crate) fn constant(cx: &mut Cx) -> Out {
    let bad = |e: kiln_ir::tensor::SizeMismatch| Fail::invalid(e.to_string());
    let value = if let Some(c) = cx.tensor("value")? {
        c
    } else if cx.has("sparse_value") {
        cx.sparse_tensor("sparse_value")?
    } else if let Some(f) = cx.opt_float("value_float")? {
        Const::Inline(Tensor::scalar_f64(DType::F32, f))
    } else if let Some(i) = cx.opt_int("value_int")? {
        Const::Inline(Tensor::scalar_i64(DType::I64, i))
    } else if let Some(fs) = cx.floats("value_floats")? {
        Const::Inline(Tensor::from_f32([fs.len()], fs).map_err(bad)?)
    } else if let Some(is) = cx.ints("value_ints")? {
        Const::Inline(Tensor::from_i64(DType::I64, [is.len()], is).map_err(bad)?)
    } else if cx.has("value_string") {
        let s = cx.text("value_string", "")?.to_string();
        Const::Inline(Tensor::strings([], vec![s]).map_err(bad)?)
    } else if let Some(strings) = cx.texts("value_strings")? {
        Const::Inline(Tensor::strings([strings.len()], strings).map_err(bad)?)
    } else {
        return Err(Fail::invalid("the constant has no value"));
    };
    Ok(vec![cx.place(value)?])
}

pub(crate) fn constant_of_shape(cx: &mut Cx) -> Out {
    let shape = cx.arg(0)?;
    let shape = cx.sizes(shape)?;
    let fill = match cx.tensor("value")? {
        None => Tensor::scalar_f64(DType::F32, 0.0),
        Some(Const::Inline(t)) if t.len() == 1 => {
            t.reshaped([]).map_err(|e| Fail::invalid(e.to_string()))?
        }
        Some(_) => return Err(Fail::invalid("the fill value is not one number")),
    };
    let fill = cx.b.constant(fill)?;
    Ok(vec![cx.b.broadcast_to(fill, &shape)?])
}

pub(crate) fn shape(cx: &mut Cx) -> Out {
    let dims = cx.shape(cx.arg(0)?);
    let n = dims.len() as i64;
    let clamp = |i: i64| (if i < 0 { i + n } else { i }).clamp(0, n) as usize;
    let (start, end) = (clamp(cx.int("start", 0)?), clamp(cx.int("end", n)?));
    let taken = dims.get(start..end).unwrap_or_default().to_vec();
    Ok(vec![cx.vector(taken)?])
}

pub(crate) fn size(cx: &mut Cx) -> Out {
    let n = Dim::product(&cx.shape(cx.arg(0)?));
    Ok(vec![cx.scalar_dim(n)?])
}

/// `start, start + delta, …` below `limit`.
pub(crate) fn range(cx: &mut Cx) -> Out {
    let scalars: Vec<Value> = (0..3)
        .map(|i| {
            let v = cx.arg(i)?;
            Ok(cx.b.reshape(v, &[])?)
        })
        .collect::<Result<_, Fail>>()?;
    let &[start, limit, delta] = &scalars[..] else {
        return Err(Fail::invalid("needs start, limit and delta"));
    };
    let dtype = cx.dtype(start);
    let count = range_count(cx, start, limit, delta)?;
    let iota = Iota {
        shape: vec![count],
        axis: 0,
        dtype,
    };
    let mut v = cx.b.one(iota, &[])?;
    if cx.number(delta) != Some(1.0) {
        v = cx.b.mul(v, delta)?;
    }
    if cx.number(start) != Some(0.0) {
        v = cx.b.add(v, start)?;
    }
    Ok(vec![v])
}

/// Of ONNX Runtime: the step is 1 where it is left out.
pub(crate) fn range_from(cx: &mut Cx) -> Out {
    if cx.opt(2).is_none() {
        let one = cx.like(cx.arg(0)?, 1.0)?;
        cx.args.resize(3, None);
        cx.args[2] = Some(one);
    }
    range(cx)
}

fn range_count(cx: &mut Cx, start: Value, limit: Value, delta: Value) -> Result<Dim, Fail> {
    let known = |cx: &Cx, v| cx.b.graph.known(v).and_then(|k| k.dims.first().cloned());
    let dims = (known(cx, start), known(cx, limit), known(cx, delta));
    if let (Some(start), Some(limit), Some(delta)) = dims
        && let Some(step) = delta.as_const()
    {
        if step == 0 {
            return Err(Fail::invalid("the step is 0"));
        }
        let span = if step > 0 {
            limit - start
        } else {
            start - limit
        };
        let n = span.ceil_div(&step.saturating_abs().into());
        return Ok(if n.is_nonneg() {
            n
        } else {
            n.maximum(&Dim::ZERO)
        });
    }
    if let (Some(start), Some(limit), Some(delta)) =
        (cx.number(start), cx.number(limit), cx.number(delta))
    {
        let n = ((limit - start) / delta).ceil();
        return match n.is_nan() || n > 1e15 {
            true => Err(Fail::invalid("the range is endless")),
            false => Ok(Dim::from(n.max(0.0) as i64)),
        };
    }
    let span = cx.b.sub(limit, start)?;
    let n = if cx.dtype(start).is_float() {
        let q = cx.b.div(span, delta)?;
        let q = cx.b.unary(UnaryFn::Ceil, q)?;
        cx.b.cast(q, DType::I64)?
    } else {
        // ⌈span / delta⌉ = −⌊−span / delta⌋, and floored division is what Mod
        // leaves over.
        let (span, delta) = (cx.b.cast(span, DType::I64)?, cx.b.cast(delta, DType::I64)?);
        let negated = cx.b.unary(UnaryFn::Neg, span)?;
        let rest = cx.b.binary(BinaryFn::Mod, negated, delta)?;
        let whole = cx.b.sub(negated, rest)?;
        let q = cx.b.div(whole, delta)?;
        cx.b.unary(UnaryFn::Neg, q)?
    };
    let n = cx.with_int(BinaryFn::Max, n, 0)?;
    cx.mint(n, None)
}

pub(crate) fn one_hot(cx: &mut Cx) -> Out {
    let (indices, depth, values) = (cx.arg(0)?, cx.arg(1)?, cx.arg(2)?);
    let depth = cx.b.reshape(depth, &[])?;
    let depth = cx.b.cast(depth, DType::I64)?;
    let depth = match cx.number(depth) {
        Some(n) if n >= 0.0 => Dim::from(n as i64),
        _ => cx.size(depth)?,
    };
    let indices = cx.b.cast(indices, DType::I64)?;
    let mut shape = cx.shape(indices);
    let axis = cx.axis_attr(-1, shape.len() + 1)?;
    let n = cx.scalar_dim(depth.clone())?;
    let zero = cx.like(indices, 0.0)?;
    let negative = cx.b.compare(CompareFn::Lt, indices, zero)?;
    let wrapped = cx.b.add(indices, n)?;
    let indices = cx.b.select(negative, wrapped, indices)?;
    shape.insert(axis, Dim::ONE);
    let indices = cx.b.reshape(indices, &shape)?;
    let mut classes = vec![Dim::ONE; shape.len()];
    classes[axis] = depth;
    let iota = Iota {
        shape: classes,
        axis,
        dtype: DType::I64,
    };
    let iota = cx.b.one(iota, &[])?;
    let hit = cx.b.compare(CompareFn::Eq, indices, iota)?;
    let off = cx.b.slice_axis(values, 0, Dim::ZERO, Dim::ONE)?;
    let on = cx.b.slice_axis(values, 0, Dim::ONE, Dim::ONE)?;
    let (off, on) = (cx.b.reshape(off, &[])?, cx.b.reshape(on, &[])?);
    Ok(vec![cx.b.select(hit, on, off)?])
}

/// Row and column numbers of the last two axes of `shape`.
pub(crate) fn row_and_column(cx: &mut Cx, shape: &[Dim]) -> Result<(Value, Value), Fail> {
    let [.., rows, columns] = shape else {
        return Err(Fail::invalid("the value has no rows and columns"));
    };
    let iota = |shape: Vec<Dim>, axis| Iota {
        shape,
        axis,
        dtype: DType::I64,
    };
    let row = cx.b.one(iota(vec![rows.clone(), Dim::ONE], 0), &[])?;
    let column = cx.b.one(iota(vec![Dim::ONE, columns.clone()], 1), &[])?;
    Ok((row, column))
}

pub(crate) fn eye_like(cx: &mut Cx) -> Out {
    let x = cx.arg(0)?;
    let (shape, k) = (cx.shape(x), cx.int("k", 0)?);
    let to = match cx.opt_int("dtype")? {
        None => cx.dtype(x),
        Some(n) => {
            tensor::dtype(n).ok_or_else(|| Fail::invalid(format!("{n} is no element type")))?
        }
    };
    if shape.len() != 2 {
        return Err(Fail::invalid("the argument is no matrix"));
    }
    let (row, column) = row_and_column(cx, &shape)?;
    let row = cx.with_int(BinaryFn::Add, row, k)?;
    let eye = cx.b.compare(CompareFn::Eq, row, column)?;
    Ok(vec![cx.b.cast(eye, to)?])
}
