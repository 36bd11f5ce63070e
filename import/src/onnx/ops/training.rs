//! The optimizers of ai.onnx.preview.training: one step for each tensor.

use crate::onnx::cx::{Cx, Fail, Out};
use kiln_ir::graph::Value;
use kiln_ir::{BinaryFn, CompareFn, DType, UnaryFn};

type One = Result<Value, Fail>;

/// Arguments after the rate and the step count, in groups of one kind.
fn groups(cx: &Cx, kinds: usize) -> Result<Vec<Vec<Value>>, Fail> {
    let all: Vec<Value> = (2..cx.args.len())
        .map(|i| cx.arg(i))
        .collect::<Result<_, _>>()?;
    if all.is_empty() || !all.len().is_multiple_of(kinds) {
        return Err(Fail::invalid(format!(
            "{} tensors of {kinds} kinds",
            all.len()
        )));
    }
    let each = all.len() / kinds;
    Ok(all.chunks(each).map(<[Value]>::to_vec).collect())
}

fn by(cx: &mut Cx, f: BinaryFn, x: Value, c: f64) -> One {
    let c = cx.like(x, c)?;
    Ok(cx.b.binary(f, x, c)?)
}

/// The scalar rate and step count, in the tensors' type.
fn scalars(cx: &mut Cx, like: Value) -> Result<(Value, Value), Fail> {
    let dtype = cx.dtype(like);
    let mut one = |i: usize| -> One {
        let v = cx.arg(i)?;
        let v = cx.b.reshape(v, &[])?;
        Ok(cx.b.cast(v, dtype)?)
    };
    Ok((one(0)?, one(1)?))
}

/// The gradient with the L2 norm's.
fn regularised(cx: &mut Cx, x: Value, g: Value) -> One {
    let norm = cx.float("norm_coefficient", 0.0)?;
    let pull = by(cx, BinaryFn::Mul, x, norm)?;
    Ok(cx.b.add(pull, g)?)
}

/// `share·old + rest·new`.
fn blended(cx: &mut Cx, old: Value, new: Value, share: f64, rest: f64) -> One {
    let old = by(cx, BinaryFn::Mul, old, share)?;
    let new = by(cx, BinaryFn::Mul, new, rest)?;
    Ok(cx.b.add(old, new)?)
}

pub(crate) fn adagrad(cx: &mut Cx) -> Out {
    let all = groups(cx, 3)?;
    let (decay, eps) = (cx.float("decay_factor", 0.0)?, cx.float("epsilon", 1e-6)?);
    let (mut xs, mut hs) = (vec![], vec![]);
    for ((&x, &g), &h) in all[0].iter().zip(&all[1]).zip(&all[2]) {
        let (rate, t) = scalars(cx, x)?;
        let slower = by(cx, BinaryFn::Mul, t, decay)?;
        let slower = by(cx, BinaryFn::Add, slower, 1.0)?;
        let rate = cx.b.div(rate, slower)?;
        let g = regularised(cx, x, g)?;
        let square = cx.b.mul(g, g)?;
        let h = cx.b.add(h, square)?;
        let root = cx.b.unary(UnaryFn::Sqrt, h)?;
        let root = by(cx, BinaryFn::Add, root, eps)?;
        let step = cx.b.mul(rate, g)?;
        let step = cx.b.div(step, root)?;
        xs.push(cx.b.sub(x, step)?);
        hs.push(h);
    }
    Ok([xs, hs].concat())
}

pub(crate) fn adam(cx: &mut Cx) -> Out {
    let all = groups(cx, 4)?;
    let (alpha, beta) = (cx.float("alpha", 0.9)?, cx.float("beta", 0.999)?);
    let (eps, post) = (
        cx.float("epsilon", 1e-6)?,
        cx.float("norm_coefficient_post", 0.0)?,
    );
    let (mut xs, mut vs, mut hs) = (vec![], vec![], vec![]);
    let tensors = all[0].iter().zip(&all[1]).zip(&all[2]).zip(&all[3]);
    for (((&x, &g), &v), &h) in tensors {
        let (rate, t) = scalars(cx, x)?;
        let g = regularised(cx, x, g)?;
        let square = cx.b.mul(g, g)?;
        let v = blended(cx, v, g, alpha, 1.0 - alpha)?;
        let h = blended(cx, h, square, beta, 1.0 - beta)?;
        let root = cx.b.unary(UnaryFn::Sqrt, h)?;
        let root = by(cx, BinaryFn::Add, root, eps)?;
        // The moments begin at zero: from the first step on, that is made up for.
        let unbiased = |cx: &mut Cx, base: f64| -> One {
            let base = cx.like(t, base)?;
            let power = cx.b.binary(BinaryFn::Pow, base, t)?;
            let one = cx.like(power, 1.0)?;
            Ok(cx.b.sub(one, power)?)
        };
        let (first, second) = (unbiased(cx, alpha)?, unbiased(cx, beta)?);
        let second = cx.b.unary(UnaryFn::Sqrt, second)?;
        let adjusted = cx.b.mul(rate, second)?;
        let adjusted = cx.b.div(adjusted, first)?;
        let zero = cx.like(t, 0.0)?;
        let begun = cx.b.compare(CompareFn::Gt, t, zero)?;
        let rate = cx.b.select(begun, adjusted, rate)?;
        let step = cx.b.mul(rate, v)?;
        let step = cx.b.div(step, root)?;
        let x = cx.b.sub(x, step)?;
        xs.push(by(cx, BinaryFn::Mul, x, 1.0 - post)?);
        vs.push(v);
        hs.push(h);
    }
    Ok([xs, vs, hs].concat())
}

pub(crate) fn momentum(cx: &mut Cx) -> Out {
    let all = groups(cx, 3)?;
    let (alpha, beta) = (cx.float("alpha", 0.0)?, cx.float("beta", 0.0)?);
    let nesterov = match cx.text("mode", "standard")? {
        "standard" => false,
        "nesterov" => true,
        other => return Err(Fail::invalid(format!("there is no mode `{other}`"))),
    };
    let (mut xs, mut vs) = (vec![], vec![]);
    for ((&x, &g), &v) in all[0].iter().zip(&all[1]).zip(&all[2]) {
        let (rate, t) = scalars(cx, x)?;
        let g = regularised(cx, x, g)?;
        let (zero, one) = (cx.like(t, 0.0)?, cx.like(t, 1.0)?);
        let begun = cx.b.compare(CompareFn::Gt, t, zero)?;
        let share = cx.like(t, beta)?;
        let share = cx.b.select(begun, share, one)?;
        let new = cx.b.mul(share, g)?;
        let old = by(cx, BinaryFn::Mul, v, alpha)?;
        let v = cx.b.add(old, new)?;
        let ahead = match nesterov {
            false => v,
            true => {
                let ahead = by(cx, BinaryFn::Mul, v, alpha)?;
                cx.b.add(g, ahead)?
            }
        };
        let step = cx.b.mul(rate, ahead)?;
        xs.push(cx.b.sub(x, step)?);
        vs.push(v);
    }
    Ok([xs, vs].concat())
}

/// Batch normalization by the batch's own mean and variance, and the running ones.
pub(crate) fn batch_norm(cx: &mut Cx) -> Out {
    let x = cx.arg(0)?;
    let shape = cx.shape(x);
    let axes: Vec<usize> = (0..shape.len()).filter(|&a| a != 1).collect();
    let wide = match cx.dtype(x) {
        DType::F64 => x,
        _ => cx.b.cast(x, DType::F32)?,
    };
    let mean = cx.b.reduce(kiln_ir::ReduceFn::Mean, wide, &axes, true)?;
    let apart = cx.b.sub(wide, mean)?;
    let square = cx.b.mul(apart, apart)?;
    let variance = cx.b.reduce(kiln_ir::ReduceFn::Mean, square, &axes, true)?;
    let eps = cx.float("epsilon", 1e-5)?;
    let v = by(cx, BinaryFn::Add, variance, eps)?;
    let v = cx.b.unary(UnaryFn::Rsqrt, v)?;
    let line = cx.shape(mean);
    let compute = cx.dtype(wide);
    let column = |cx: &mut Cx, i: usize| -> One {
        let p = cx.arg(i)?;
        let p = cx.b.cast(p, compute)?;
        Ok(cx.b.reshape(p, &line)?)
    };
    let (scale, bias) = (column(cx, 1)?, column(cx, 2)?);
    let y = cx.b.mul(apart, v)?;
    let y = cx.b.mul(y, scale)?;
    let y = cx.b.add(y, bias)?;
    let share = cx.float("momentum", 0.9)?;
    let mut out = vec![cx.b.cast(y, cx.dtype(x))?];
    for (i, now) in [(3, mean), (4, variance)] {
        let old = cx.arg(i)?;
        let now = cx.b.reshape(now, &cx.shape(old))?;
        let now = cx.b.cast(now, cx.dtype(old))?;
        out.push(blended(cx, old, now, share, 1.0 - share)?);
    }
    Ok(out)
}
