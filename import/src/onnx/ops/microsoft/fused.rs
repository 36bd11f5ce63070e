//! Products and convolutions with an activation behind them.

use super::super::{elementwise as e, linear, window};
use crate::onnx::cx::{Cx, Fail, Out};
use kiln_ir::graph::Value;
use kiln_ir::{BinaryFn, UnaryFn};

type One = Result<Value, Fail>;

/// An activation's numbers, in the order of ONNX's attributes.
struct Numbers {
    first: Option<f64>,
    second: Option<f64>,
}

pub(crate) fn gemm(cx: &mut Cx) -> Out {
    let y = linear::gemm(cx)?[0];
    let numbers = Numbers {
        first: cx.opt_float("activation_alpha")?,
        second: cx.opt_float("activation_beta")?,
    };
    Ok(vec![activated(cx, y, numbers)?])
}

/// `activation(conv(x, w) + b + z)`.
pub(crate) fn conv(cx: &mut Cx) -> Out {
    let mut y = window::conv(cx)?[0];
    if let Some(z) = cx.opt(3) {
        y = cx.b.add(y, z)?;
    }
    let given = cx.floats("activation_params")?.unwrap_or_default();
    let at = |i: usize| given.get(i).map(|&v| f64::from(v));
    let numbers = Numbers {
        first: at(0),
        second: at(1),
    };
    Ok(vec![activated(cx, y, numbers)?])
}

fn activated(cx: &mut Cx, y: Value, n: Numbers) -> One {
    let plain = |cx: &mut Cx, f| Ok(cx.b.unary(f, y)?);
    match cx.text("activation", "")? {
        "" => Ok(y),
        "Relu" => e::relu_of(cx, y),
        "Tanh" => plain(cx, UnaryFn::Tanh),
        "Sigmoid" => plain(cx, UnaryFn::Sigmoid),
        "LeakyRelu" => e::leaky_relu_of(cx, y, n.first.unwrap_or(0.01)),
        "HardSigmoid" => {
            let (alpha, beta) = (n.first.unwrap_or(0.2), n.second.unwrap_or(0.5));
            e::hard_sigmoid_of(cx, y, alpha, beta)
        }
        "Clip" => {
            let low = cx.like(y, n.first.unwrap_or(f64::NEG_INFINITY))?;
            let high = cx.like(y, n.second.unwrap_or(f64::INFINITY))?;
            let y = cx.b.binary(BinaryFn::Max, y, low)?;
            Ok(cx.b.binary(BinaryFn::Min, y, high)?)
        }
        other => Err(Fail::form(format!(
            "the fused activation `{other}` is not supported"
        ))),
    }
}
