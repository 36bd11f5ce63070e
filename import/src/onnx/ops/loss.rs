//! Losses.

use crate::onnx::cx::{Cx, Fail, Out};
use kiln_ir::graph::Value;
use kiln_ir::ops::composite::Softmax;
use kiln_ir::ops::index::GatherElements;
use kiln_ir::{CompareFn, DType, Dim, ReduceFn, UnaryFn};

type One = Result<Value, Fail>;

/// Minus the log-probability of each target, weighted.
pub(crate) fn negative_log_likelihood(cx: &mut Cx) -> Out {
    let x = cx.arg(0)?;
    Ok(vec![loss(cx, x)?])
}

/// The same of the logarithm of the softmax.
pub(crate) fn softmax_cross_entropy(cx: &mut Cx) -> Out {
    let x = cx.arg(0)?;
    if cx.rank(x) < 2 {
        return Err(Fail::invalid("the scores have no classes"));
    }
    let log = cx.b.one(Softmax { axis: 1, log: true }, &[x])?;
    let y = loss(cx, log)?;
    Ok(vec![y, log])
}

fn loss(cx: &mut Cx, log: Value) -> One {
    let target = cx.arg(1)?;
    let shape = cx.shape(log);
    if shape.len() < 2 || cx.rank(target) + 1 != shape.len() {
        return Err(Fail::invalid("scores and targets do not fit"));
    }
    let target = cx.b.cast(target, DType::I64)?;
    let places = cx.shape(target);
    let ignored = match cx.opt_int("ignore_index")? {
        None => None,
        Some(i) => {
            let i = cx.like(target, i as f64)?;
            Some(cx.b.compare(CompareFn::Eq, target, i)?)
        }
    };
    // What is ignored may be no class at all: it is looked up as class 0.
    let class = match ignored {
        None => target,
        Some(skip) => {
            let zero = cx.like(target, 0.0)?;
            cx.b.select(skip, zero, target)?
        }
    };
    let mut column = places.clone();
    column.insert(1, Dim::ONE);
    let index = cx.b.reshape(class, &column)?;
    let picked = cx.b.one(GatherElements { axis: 1 }, &[log, index])?;
    let picked = cx.b.reshape(picked, &places)?;
    let mut each = cx.b.unary(UnaryFn::Neg, picked)?;
    let mut weight = match cx.opt(2) {
        None => None,
        Some(w) => Some(cx.b.gather(w, class, 0)?),
    };
    if let Some(skip) = ignored {
        let w = match weight {
            Some(w) => w,
            None => {
                let dtype = cx.dtype(log);
                cx.b.full(dtype, &places, 1.0)?
            }
        };
        let zero = cx.like(w, 0.0)?;
        weight = Some(cx.b.select(skip, zero, w)?);
        // An ignored place counts nothing, whatever stands in its class.
        each = cx.b.select(skip, zero, each)?;
    }
    if let Some(w) = weight {
        each = cx.b.mul(each, w)?;
    }
    let all: Vec<usize> = (0..places.len()).collect();
    match cx.text("reduction", "mean")? {
        "none" => Ok(each),
        "sum" => Ok(cx.b.reduce(ReduceFn::Sum, each, &all, false)?),
        "mean" => match weight {
            None => Ok(cx.b.reduce(ReduceFn::Mean, each, &all, false)?),
            Some(w) => {
                let sum = cx.b.reduce(ReduceFn::Sum, each, &all, false)?;
                let count = cx.b.reduce(ReduceFn::Sum, w, &all, false)?;
                Ok(cx.b.div(sum, count)?)
            }
        },
        other => Err(Fail::invalid(format!("`reduction` is {other}"))),
    }
}
