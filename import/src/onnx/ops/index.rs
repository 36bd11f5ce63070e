//! Operators that read or write where other values say.

use crate::onnx::cx::{Cx, Fail, Out};
use kiln_ir::ops::index::{
    GatherElements, GatherNd, NonZero, ScatterElements, ScatterFn, ScatterNd,
};
use kiln_ir::ops::reduce::{ArgReduce, TopK};
use kiln_ir::ops::source::Iota;
use kiln_ir::{BinaryFn, CompareFn, DType, Dim};

pub(crate) fn gather(cx: &mut Cx) -> Out {
    let (x, indices) = (cx.arg(0)?, cx.arg(1)?);
    let axis = cx.axis_attr(0, cx.rank(x))?;
    Ok(vec![cx.b.gather(x, indices, axis)?])
}

pub(crate) fn gather_elements(cx: &mut Cx) -> Out {
    let (x, indices) = (cx.arg(0)?, cx.arg(1)?);
    let axis = cx.axis_attr(0, cx.rank(x))?;
    Ok(vec![cx.b.one(GatherElements { axis }, &[x, indices])?])
}

pub(crate) fn gather_nd(cx: &mut Cx) -> Out {
    let (x, indices) = (cx.arg(0)?, cx.arg(1)?);
    let batch_dims = cx.int("batch_dims", 0)?;
    let batch_dims = usize::try_from(batch_dims)
        .map_err(|_| Fail::invalid(format!("{batch_dims} leading axes cannot be shared")))?;
    Ok(vec![cx.b.one(GatherNd { batch_dims }, &[x, indices])?])
}

fn reduction(cx: &Cx) -> Result<ScatterFn, Fail> {
    match cx.text("reduction", "none")? {
        "none" => Ok(ScatterFn::Set),
        "add" => Ok(ScatterFn::Add),
        "mul" => Ok(ScatterFn::Mul),
        "max" => Ok(ScatterFn::Max),
        "min" => Ok(ScatterFn::Min),
        other => Err(Fail::invalid(format!("there is no reduction `{other}`"))),
    }
}

pub(crate) fn scatter_elements(cx: &mut Cx) -> Out {
    let (x, indices, updates) = (cx.arg(0)?, cx.arg(1)?, cx.arg(2)?);
    let op = ScatterElements {
        axis: cx.axis_attr(0, cx.rank(x))?,
        f: reduction(cx)?,
    };
    Ok(vec![cx.b.one(op, &[x, indices, updates])?])
}

pub(crate) fn scatter_nd(cx: &mut Cx) -> Out {
    let (x, indices, updates) = (cx.arg(0)?, cx.arg(1)?, cx.arg(2)?);
    let f = reduction(cx)?;
    Ok(vec![cx.b.one(ScatterNd { f }, &[x, indices, updates])?])
}

/// Opset 24: rows of a cache written from each batch entry's own place on, round
/// the end where it is circular.
pub(crate) fn tensor_scatter(cx: &mut Cx) -> Out {
    let (past, update) = (cx.arg(0)?, cx.arg(1)?);
    let shape = cx.shape(update);
    let axis = cx.axis(cx.int("axis", -2)?, shape.len())?;
    let length = cx.extent(past, axis)?;
    let mut line = vec![Dim::ONE; shape.len()];
    line[axis] = shape[axis].clone();
    let op = Iota {
        shape: line.clone(),
        axis,
        dtype: DType::I64,
    };
    let mut at = cx.b.one(op, &[])?;
    if let Some(starts) = cx.opt(2) {
        let starts = cx.b.cast(starts, DType::I64)?;
        let mut column = vec![Dim::ONE; shape.len()];
        column[0] = shape[0].clone();
        let starts = cx.b.reshape(starts, &column)?;
        at = cx.b.add(at, starts)?;
    }
    match cx.text("mode", "linear")? {
        "linear" => {}
        "circular" => {
            let length = cx.scalar_dim(length)?;
            at = cx.b.binary(BinaryFn::Mod, at, length)?;
        }
        other => return Err(Fail::invalid(format!("there is no mode `{other}`"))),
    }
    let at = cx.b.broadcast_to(at, &shape)?;
    let op = ScatterElements {
        axis,
        f: ScatterFn::Set,
    };
    Ok(vec![cx.b.one(op, &[past, at, update])?])
}

pub(crate) fn non_zero(cx: &mut Cx) -> Out {
    let x = cx.arg(0)?;
    let symbol = cx.b.graph.fresh_symbol("nonzero");
    Ok(vec![cx.b.one(NonZero { symbol }, &[x])?])
}

/// Elements (or slices along an axis) where a vector of truths holds.
pub(crate) fn compress(cx: &mut Cx) -> Out {
    let (mut x, keep) = (cx.arg(0)?, cx.arg(1)?);
    let axis = match cx.opt_int("axis")? {
        Some(a) => cx.axis(a, cx.rank(x))?,
        None => {
            let n = Dim::product(&cx.shape(x));
            x = cx.b.reshape(x, &[n])?;
            0
        }
    };
    let symbol = cx.b.graph.fresh_symbol("kept");
    let at = cx.b.one(
        NonZero {
            symbol: symbol.clone(),
        },
        &[keep],
    )?;
    let at = cx.b.reshape(at, &[Dim::sym(symbol)])?;
    Ok(vec![cx.b.gather(x, at, axis)?])
}

pub(crate) fn arg_reduce(cx: &mut Cx, largest: bool) -> Out {
    let x = cx.arg(0)?;
    let op = ArgReduce {
        largest,
        axis: cx.axis_attr(0, cx.rank(x))?,
        keep: cx.flag("keepdims", true)?,
        last: cx.flag("select_last_index", false)?,
    };
    Ok(vec![cx.b.one(op, &[x])?])
}

/// `k` is an attribute before opset 10, then an argument.
pub(crate) fn top_k(cx: &mut Cx) -> Out {
    let x = cx.arg(0)?;
    let k = if cx.opset < 10 {
        Dim::from(cx.int("k", 0)?)
    } else {
        let k = cx.arg(1)?;
        let k = cx.b.cast(k, DType::I64)?;
        cx.size(k)?
    };
    let axis = cx.axis_attr(-1, cx.rank(x))?;
    let largest = cx.flag("largest", true)?;
    Ok(cx.b.push(TopK { axis, k, largest }, &[x])?)
}

/// Runs of each row (of length `sequence_lens`) turned round along an axis.
pub(crate) fn reverse_sequence(cx: &mut Cx) -> Out {
    let (x, lengths) = (cx.arg(0)?, cx.arg(1)?);
    let shape = cx.shape(x);
    let batch = cx.axis(cx.int("batch_axis", 1)?, shape.len())?;
    let time = cx.axis(cx.int("time_axis", 0)?, shape.len())?;
    let iota = |axis: usize| {
        let mut s = vec![Dim::ONE; shape.len()];
        s[axis] = shape[axis].clone();
        Iota {
            shape: s,
            axis,
            dtype: DType::I64,
        }
    };
    let at = cx.b.one(iota(time), &[])?;
    let mut line = vec![Dim::ONE; shape.len()];
    line[batch] = shape[batch].clone();
    let lengths = cx.b.cast(lengths, DType::I64)?;
    let lengths = cx.b.reshape(lengths, &line)?;
    let turned = cx.b.sub(lengths, at)?;
    let turned = cx.with_int(BinaryFn::Sub, turned, 1)?;
    let inside = cx.b.compare(CompareFn::Lt, at, lengths)?;
    let from = cx.b.select(inside, turned, at)?;
    let from = cx.b.broadcast_to(from, &shape)?;
    Ok(vec![cx.b.one(GatherElements { axis: time }, &[x, from])?])
}

/// Of ai.onnx.ml: chosen columns.
pub(crate) fn array_feature_extractor(cx: &mut Cx) -> Out {
    let (x, columns) = (cx.arg(0)?, cx.arg(1)?);
    let count = Dim::product(&cx.shape(columns));
    let columns = cx.b.reshape(columns, &[count])?;
    let last = cx.rank(x).checked_sub(1);
    let last = last.ok_or_else(|| Fail::invalid("a scalar has no columns"))?;
    Ok(vec![cx.b.gather(x, columns, last)?])
}
