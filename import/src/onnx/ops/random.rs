//! Random numbers: bits of a counter (Philox), keyed by the node's seed, or by its
//! name where it has none. The same artifact draws the same numbers in every run.

use crate::onnx::cx::{Cx, Fail, Out};
use crate::onnx::tensor;
use kiln_ir::graph::Value;
use kiln_ir::ops::composite::Softmax;
use kiln_ir::ops::reduce::Cumulate;
use kiln_ir::ops::source::Philox;
use kiln_ir::{BinaryFn, CompareFn, DType, Dim, ReduceFn, Tensor, UnaryFn};
use std::f64::consts::TAU;

type One = Result<Value, Fail>;

/// FNV-1a of the node's first result, which no other node has.
fn named(cx: &Cx) -> u64 {
    let name = cx.node.output.first().map_or("", |n| n.as_str());
    name.bytes().fold(0xcbf2_9ce4_8422_2325, |h, b| {
        (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// Numbers in [0, 1), in f64; each is one word of 32 bits.
fn uniform(cx: &mut Cx, shape: &[Dim]) -> One {
    // A number of either kind, by the operator.
    let key = match (cx.opt_float("seed"), cx.opt_int("seed")) {
        (Ok(Some(seed)), _) => seed.to_bits(),
        (_, Ok(Some(seed))) => seed as u64,
        (Ok(None), _) | (_, Ok(None)) => named(cx),
        (Err(e), Err(_)) => return Err(e),
    };
    let word = |v: u64| Tensor::scalar_i64(DType::U64, v as i64);
    let (key, from) = (cx.b.constant(word(key))?, cx.b.constant(word(0))?);
    let shape = shape.to_vec();
    let bits = cx.b.one(Philox { shape }, &[key, from])?;
    let x = cx.b.cast(bits, DType::F64)?;
    let scale = cx.like(x, 2f64.powi(-32))?;
    Ok(cx.b.mul(x, scale)?)
}

/// Box and Muller's pairs, of which the first is used.
fn normal(cx: &mut Cx, shape: &[Dim]) -> One {
    let pairs = [&[Dim::from(2)], shape].concat();
    let u = uniform(cx, &pairs)?;
    let half = |cx: &mut Cx, i: i64| -> One {
        let v = cx.b.slice_axis(u, 0, i.into(), Dim::ONE)?;
        Ok(cx.b.reshape(v, shape)?)
    };
    let (a, b) = (half(cx, 0)?, half(cx, 1)?);
    // The logarithm is of numbers above 0, at most 1.
    let one = cx.like(a, 1.0)?;
    let a = cx.b.sub(one, a)?;
    let a = cx.b.unary(UnaryFn::Log, a)?;
    let minus = cx.like(a, -2.0)?;
    let a = cx.b.mul(a, minus)?;
    let radius = cx.b.unary(UnaryFn::Sqrt, a)?;
    let turn = cx.like(b, TAU)?;
    let b = cx.b.mul(b, turn)?;
    let b = cx.b.unary(UnaryFn::Cos, b)?;
    Ok(cx.b.mul(radius, b)?)
}

/// `x·factor + offset`.
fn moved(cx: &mut Cx, x: Value, factor: f64, offset: f64) -> One {
    let (factor, offset) = (cx.like(x, factor)?, cx.like(x, offset)?);
    let x = cx.b.mul(x, factor)?;
    Ok(cx.b.add(x, offset)?)
}

/// The attribute `dtype`, or what it is without.
fn dtype(cx: &Cx, without: DType) -> Result<DType, Fail> {
    match cx.opt_int("dtype")? {
        None | Some(0) => Ok(without),
        Some(n) => tensor::dtype(n).ok_or_else(|| Fail::invalid(format!("{n} is no element type"))),
    }
}

/// The attribute `shape`, or argument 0's.
fn shape(cx: &Cx, like: bool) -> Result<Vec<Dim>, Fail> {
    if like {
        return Ok(cx.shape(cx.arg(0)?));
    }
    let given = cx.ints("shape")?;
    let given = given.ok_or_else(|| Fail::invalid("`shape` is missing"))?;
    match given.iter().all(|&d| d >= 0) {
        true => Ok(given.iter().map(|&d| d.into()).collect()),
        false => Err(Fail::invalid(format!("`shape` is {given:?}"))),
    }
}

fn without(cx: &Cx, like: bool) -> Result<DType, Fail> {
    match like {
        true => Ok(cx.dtype(cx.arg(0)?)),
        false => Ok(DType::F32),
    }
}

pub(crate) fn random_uniform(cx: &mut Cx, like: bool) -> Out {
    let (low, high) = (cx.float("low", 0.0)?, cx.float("high", 1.0)?);
    let (shape, to) = (shape(cx, like)?, dtype(cx, without(cx, like)?)?);
    let u = uniform(cx, &shape)?;
    let y = moved(cx, u, high - low, low)?;
    Ok(vec![cx.b.cast(y, to)?])
}

pub(crate) fn random_normal(cx: &mut Cx, like: bool) -> Out {
    let (mean, scale) = (cx.float("mean", 0.0)?, cx.float("scale", 1.0)?);
    let (shape, to) = (shape(cx, like)?, dtype(cx, without(cx, like)?)?);
    let n = normal(cx, &shape)?;
    let y = moved(cx, n, scale, mean)?;
    Ok(vec![cx.b.cast(y, to)?])
}

/// 1 with the probability that the argument gives.
pub(crate) fn bernoulli(cx: &mut Cx) -> Out {
    let p = cx.arg(0)?;
    let to = dtype(cx, cx.dtype(p))?;
    let p = cx.b.cast(p, DType::F64)?;
    let shape = cx.shape(p);
    let u = uniform(cx, &shape)?;
    let hit = cx.b.compare(CompareFn::Lt, u, p)?;
    Ok(vec![cx.b.cast(hit, to)?])
}

/// Classes drawn by the logarithms of their (unnormalised) probabilities: how many
/// sums of probabilities a uniform number reaches.
pub(crate) fn multinomial(cx: &mut Cx) -> Out {
    let x = cx.arg(0)?;
    let [rows, classes] = &cx.shape(x)[..] else {
        return Err(Fail::invalid("the logarithms are a matrix"));
    };
    let (rows, classes) = (rows.clone(), classes.clone());
    let samples = cx.int("sample_size", 1)?;
    if samples < 0 {
        return Err(Fail::invalid(format!("{samples} samples")));
    }
    let to = dtype(cx, DType::I32)?;
    let x = cx.b.cast(x, DType::F64)?;
    let softmax = Softmax {
        axis: 1,
        log: false,
    };
    let p = cx.b.one(softmax, &[x])?;
    let op = Cumulate {
        f: ReduceFn::Sum,
        axis: 1,
        exclusive: false,
        reverse: false,
    };
    let sums = cx.b.one(op, &[p])?;
    let sums =
        cx.b.reshape(sums, &[rows.clone(), Dim::ONE, classes.clone()])?;
    let u = uniform(cx, &[rows, samples.into(), Dim::ONE])?;
    let below = cx.b.compare(CompareFn::Ge, u, sums)?;
    let below = cx.b.cast(below, DType::I64)?;
    let at = cx.b.reduce(ReduceFn::Sum, below, &[2], false)?;
    // The last sum may round to less than the number drawn.
    let last = cx.scalar_dim(classes - Dim::ONE)?;
    let at = cx.b.binary(BinaryFn::Min, at, last)?;
    Ok(vec![cx.b.cast(at, to)?])
}

/// In training: elements that a uniform number below the ratio hits become 0, the
/// others grow so that the mean stays. Where only running tells whether it trains,
/// both are chosen from then.
pub(crate) fn dropout(cx: &mut Cx, training: Value) -> Out {
    let x = cx.arg(0)?;
    let narrow = cx.dtype(x);
    let shape = cx.shape(x);
    let ratio = match cx.opt(1) {
        Some(r) => cx.b.reshape(r, &[])?,
        None => cx.b.scalar(DType::F64, 0.5)?,
    };
    let ratio = cx.b.cast(ratio, DType::F64)?;
    let training = cx.b.reshape(training, &[])?;
    let known = cx.known_truth(training) == Some(true);
    let mut kept = match cx.number(ratio) {
        Some(0.0) => cx.b.full(DType::Bool, &shape, 1.0)?,
        _ => {
            let u = uniform(cx, &shape)?;
            cx.b.compare(CompareFn::Ge, u, ratio)?
        }
    };
    if !known {
        let always = cx.b.unary(UnaryFn::Not, training)?;
        kept = cx.b.binary(BinaryFn::Or, kept, always)?;
    }
    let one = cx.like(ratio, 1.0)?;
    let share = cx.b.sub(one, ratio)?;
    let mut factor = cx.b.div(one, share)?;
    if !known {
        factor = cx.b.select(training, factor, one)?;
    }
    let factor = cx.b.cast(factor, narrow)?;
    let y = cx.b.mul(x, factor)?;
    let zero = cx.like(y, 0.0)?;
    Ok(vec![cx.b.select(kept, y, zero)?, kept])
}
