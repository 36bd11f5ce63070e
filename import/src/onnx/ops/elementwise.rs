//! Elementwise operators, activations and casts.

use crate::onnx::cx::{Cx, Fail, Out};
use crate::onnx::tensor;
use kiln_ir::graph::Value;
use kiln_ir::ops::composite::{Gelu, Silu};
use kiln_ir::ops::elementwise::BitCast;
use kiln_ir::{BinaryFn, CompareFn, DType, Dim, Kind, UnaryFn};

type One = Result<Value, Fail>;

fn one(v: One) -> Out {
    v.map(|v| vec![v])
}

pub(crate) fn unary(cx: &mut Cx, f: UnaryFn) -> Out {
    let x = cx.arg(0)?;
    Ok(vec![cx.b.unary(f, x)?])
}

pub(crate) fn binary(cx: &mut Cx, f: BinaryFn) -> Out {
    let (a, b) = two(cx)?;
    Ok(vec![cx.b.binary(f, a, b)?])
}

/// Two arguments that broadcast. Before opset 7, `axis` says where the axes of
/// the second stand among those of the first.
fn two(cx: &mut Cx) -> Result<(Value, Value), Fail> {
    let (a, b) = (cx.arg(0)?, cx.arg(1)?);
    if cx.opset >= 7 || !cx.has("axis") {
        let met = cx.meet(&[a, b])?;
        return Ok((met[0], met[1]));
    }
    let (rank, mut shape) = (cx.rank(a), cx.shape(b));
    let axis = cx.axis_attr(0, rank)?;
    let after = rank
        .checked_sub(axis + shape.len())
        .ok_or_else(|| Fail::invalid("the second argument has more axes than the first"))?;
    shape.extend(vec![Dim::ONE; after]);
    Ok((a, cx.b.reshape(b, &shape)?))
}

pub(crate) fn compare(cx: &mut Cx, f: CompareFn) -> Out {
    let (a, b) = two(cx)?;
    Ok(vec![cx.b.compare(f, a, b)?])
}

pub(crate) fn variadic(cx: &mut Cx, f: BinaryFn) -> Out {
    let all = cx.all()?;
    let all = cx.meet(&all)?;
    let mut acc = all[0];
    for &v in &all[1..] {
        acc = cx.b.binary(f, acc, v)?;
    }
    Ok(vec![acc])
}

pub(crate) fn mean(cx: &mut Cx) -> Out {
    let n = cx.all()?.len();
    let sum = variadic(cx, BinaryFn::Add)?[0];
    let n = cx.like(sum, n as f64)?;
    Ok(vec![cx.b.div(sum, n)?])
}

pub(crate) fn select(cx: &mut Cx) -> Out {
    let args = [cx.arg(0)?, cx.arg(1)?, cx.arg(2)?];
    let met = cx.meet(&args)?;
    Ok(vec![cx.b.select(met[0], met[1], met[2])?])
}

pub(crate) fn modulo(cx: &mut Cx) -> Out {
    let c_like = cx.flag("fmod", false)?;
    let (x, y) = two(cx)?;
    if c_like || !cx.dtype(x).is_float() {
        return binary(cx, if c_like { BinaryFn::Rem } else { BinaryFn::Mod });
    }
    // The remainder takes the divisor's sign, as in Python.
    let r = cx.b.binary(BinaryFn::Rem, x, y)?;
    let (zero_r, zero_y) = (cx.like(r, 0.0)?, cx.like(y, 0.0)?);
    let some = cx.b.compare(CompareFn::Ne, r, zero_r)?;
    let low = cx.b.compare(CompareFn::Lt, r, zero_r)?;
    let down = cx.b.compare(CompareFn::Lt, y, zero_y)?;
    let apart = cx.b.compare(CompareFn::Ne, low, down)?;
    let wrong = cx.b.binary(BinaryFn::And, some, apart)?;
    let turned = cx.b.add(r, y)?;
    Ok(vec![cx.b.select(wrong, turned, r)?])
}

/// The result has the base's type; the power is computed in the wider family.
pub(crate) fn pow(cx: &mut Cx) -> Out {
    let (x, y) = two(cx)?;
    let (dx, dy) = (cx.dtype(x), cx.dtype(y));
    if dx.is_int() && dy.is_float() {
        let xf = cx.b.cast(x, dy)?;
        let p = cx.b.binary(BinaryFn::Pow, xf, y)?;
        return Ok(vec![cx.b.cast(p, dx)?]);
    }
    // Squares and roots are common, and exact as such.
    if dx.is_float() {
        match cx.number(y) {
            Some(2.0) => return Ok(vec![cx.b.mul(x, x)?]),
            Some(0.5) => return Ok(vec![cx.b.unary(UnaryFn::Sqrt, x)?]),
            Some(1.0) if cx.rank(y) == 0 => return Ok(vec![x]),
            _ => {}
        }
    }
    let y = cx.b.cast(y, dx)?;
    Ok(vec![cx.b.binary(BinaryFn::Pow, x, y)?])
}

pub(crate) fn bit_shift(cx: &mut Cx) -> Out {
    match cx.text("direction", "")? {
        "LEFT" => binary(cx, BinaryFn::Shl),
        "RIGHT" => binary(cx, BinaryFn::Shr),
        other => Err(Fail::invalid(format!(
            "there is no shift direction `{other}`"
        ))),
    }
}

/// Bounds are attributes before opset 11, then arguments; either may be left out.
pub(crate) fn clip(cx: &mut Cx) -> Out {
    let mut x = cx.arg(0)?;
    let (low, high) = if cx.opset < 11 {
        let bound = |cx: &mut Cx, name| match cx.opt_float(name)? {
            Some(v) => cx.like(x, v).map(Some),
            None => Ok(None),
        };
        (bound(cx, "min")?, bound(cx, "max")?)
    } else {
        (cx.opt(1), cx.opt(2))
    };
    if let Some(low) = low {
        let low = scalar(cx, low)?;
        x = cx.b.binary(BinaryFn::Max, x, low)?;
    }
    if let Some(high) = high {
        let high = scalar(cx, high)?;
        x = cx.b.binary(BinaryFn::Min, x, high)?;
    }
    Ok(vec![x])
}

/// A one-element value with rank 0.
pub(crate) fn scalar(cx: &mut Cx, v: Value) -> One {
    Ok(cx.b.reshape(v, &[])?)
}

pub(crate) fn is_inf(cx: &mut Cx) -> Out {
    let x = cx.arg(0)?;
    let (negative, positive) = (
        cx.flag("detect_negative", true)?,
        cx.flag("detect_positive", true)?,
    );
    let inf = cx.b.unary(UnaryFn::IsInf, x)?;
    let f = match (negative, positive) {
        (true, true) => return Ok(vec![inf]),
        (true, false) => CompareFn::Lt,
        (false, true) => CompareFn::Gt,
        (false, false) => CompareFn::Ne,
    };
    let zero = cx.like(x, 0.0)?;
    let zero = if f == CompareFn::Ne { x } else { zero };
    let side = cx.b.compare(f, x, zero)?;
    Ok(vec![cx.b.binary(BinaryFn::And, inf, side)?])
}

/// In inference nothing drops, and the mask is all true.
pub(crate) fn dropout(cx: &mut Cx) -> Out {
    let x = cx.arg(0)?;
    if let Some(training) = cx.opt(2)
        && cx.known_truth(training) != Some(false)
    {
        return super::random::dropout(cx, training);
    }
    let mut out = vec![x];
    if cx.wants(1) {
        let shape = cx.shape(x);
        let dtype = if cx.opset < 10 {
            cx.dtype(x)
        } else {
            DType::Bool
        };
        out.push(cx.b.full(dtype, &shape, 1.0)?);
    }
    Ok(out)
}

pub(crate) fn cast(cx: &mut Cx) -> Out {
    let to = cx.int("to", 0)?;
    let to = tensor::dtype(to).ok_or_else(|| Fail::invalid(format!("{to} is no element type")))?;
    let x = cx.arg(0)?;
    Ok(vec![cast_value(cx, x, to)?])
}

/// The same bits as another type.
pub(crate) fn bit_cast(cx: &mut Cx) -> Out {
    let to = cx.int("to", 0)?;
    let to = tensor::dtype(to).ok_or_else(|| Fail::invalid(format!("{to} is no element type")))?;
    let x = cx.arg(0)?;
    let from = cx.dtype(x);
    if from.bits() != to.bits() {
        return Err(Fail::invalid(format!(
            "{from} and {to} have different widths"
        )));
    }
    Ok(vec![cx.b.one(BitCast { to }, &[x])?])
}

pub(crate) fn cast_like(cx: &mut Cx) -> Out {
    let (x, to) = (cx.arg(0)?, cx.dtype(cx.arg(1)?));
    Ok(vec![cast_value(cx, x, to)?])
}

/// The node's cast, of this value.
pub(crate) fn cast_value(cx: &mut Cx, x: Value, to: DType) -> One {
    let from = cx.dtype(x);
    if from.kind() == Kind::Str || to.kind() == Kind::Str {
        return super::strings::cast(cx, x, to);
    }
    if to == DType::F8E5M2 && from.is_float() && !cx.flag("saturate", true)? {
        return overflowing(cx, x);
    }
    if to == DType::F8E8M0 && from.is_float() {
        return to_power(cx, x);
    }
    let x = match to.bits() == 8 && to.is_float() && !cx.flag("saturate", true)? {
        true => unsaturated(cx, x, to)?,
        false => x,
    };
    // Floats saturate to integers, but those below a byte take the low bits.
    let narrow = to.is_int() && to.bits() < 8 && from.is_float();
    let x = if narrow { cx.b.cast(x, DType::I32)? } else { x };
    Ok(cx.b.cast(x, to)?)
}

/// What the cast, which saturates, must be given so that numbers beyond the range
/// become NaN.
fn unsaturated(cx: &mut Cx, x: Value, to: DType) -> One {
    // The first numbers that would round to the next power of two.
    let (limit, inclusive) = match to {
        DType::F8E4M3FN => (464.0, false),
        DType::F8E4M3FNUZ => (248.0, true),
        DType::F8E5M2FNUZ => (61440.0, true),
        _ => return Err(Fail::invalid(format!("a cast to {to} cannot overflow"))),
    };
    let x = cx.b.cast(x, DType::F32)?;
    let size = cx.b.unary(UnaryFn::Abs, x)?;
    let (limit, nan) = (cx.like(x, limit)?, cx.like(x, f64::NAN)?);
    let how = match inclusive {
        true => CompareFn::Ge,
        false => CompareFn::Gt,
    };
    let over = cx.b.compare(how, size, limit)?;
    Ok(cx.b.select(over, nan, x)?)
}

/// To E5M2, where numbers beyond the range become infinite. The cast saturates
/// even infinities, so those are put in by their bits.
fn overflowing(cx: &mut Cx, x: Value) -> One {
    let x = cx.b.cast(x, DType::F32)?;
    let limit = cx.like(x, 61440.0)?;
    let size = cx.b.unary(UnaryFn::Abs, x)?;
    let over = cx.b.compare(CompareFn::Ge, size, limit)?;
    let narrow = cx.b.cast(x, DType::F8E5M2)?;
    let bits = cx.b.one(BitCast { to: DType::U8 }, &[narrow])?;
    let zero = cx.like(x, 0.0)?;
    let below = cx.b.compare(CompareFn::Lt, x, zero)?;
    let (up, down) = (cx.like(bits, 0x7c as f64)?, cx.like(bits, 0xfc as f64)?);
    let infinite = cx.b.select(below, down, up)?;
    let bits = cx.b.select(over, infinite, bits)?;
    let to = DType::F8E5M2;
    Ok(cx.b.one(BitCast { to }, &[bits])?)
}

/// To a power of two, rounding as `round_mode` says (ONNX: up by default); the
/// IR's cast rounds to the nearest.
fn to_power(cx: &mut Cx, x: Value) -> One {
    let mode = cx.text("round_mode", "up")?;
    let near = cx.b.cast(x, DType::F8E8M0)?;
    let (how, factor) = match mode {
        "up" => (CompareFn::Lt, 2.0),
        "down" => (CompareFn::Gt, 0.5),
        "nearest" => return Ok(near),
        other => return Err(Fail::invalid(format!("`round_mode` is {other}"))),
    };
    let (x, back) = (cx.b.cast(x, DType::F32)?, cx.b.cast(near, DType::F32)?);
    let wrong = cx.b.compare(how, back, x)?;
    let factor = cx.like(back, factor)?;
    let next = cx.b.mul(back, factor)?;
    let right = cx.b.select(wrong, next, back)?;
    Ok(cx.b.cast(right, DType::F8E8M0)?)
}

pub(crate) fn relu(cx: &mut Cx) -> Out {
    let x = cx.arg(0)?;
    one(relu_of(cx, x))
}

pub(super) fn relu_of(cx: &mut Cx, x: Value) -> One {
    let zero = cx.like(x, 0.0)?;
    Ok(cx.b.binary(BinaryFn::Max, x, zero)?)
}

/// `x` where it is positive (or not negative), else what `f` makes of it.
fn where_positive(cx: &mut Cx, x: Value, f: impl Fn(&mut Cx, Value) -> One) -> One {
    let zero = cx.like(x, 0.0)?;
    let positive = cx.b.compare(CompareFn::Gt, x, zero)?;
    let other = f(cx, x)?;
    Ok(cx.b.select(positive, x, other)?)
}

fn scaled(cx: &mut Cx, x: Value, factor: f64) -> One {
    if factor == 1.0 {
        return Ok(x);
    }
    let c = cx.like(x, factor)?;
    Ok(cx.b.mul(x, c)?)
}

fn shifted(cx: &mut Cx, x: Value, by: f64) -> One {
    let c = cx.like(x, by)?;
    Ok(cx.b.add(x, c)?)
}

fn exp_minus_one(cx: &mut Cx, x: Value) -> One {
    let e = cx.b.unary(UnaryFn::Exp, x)?;
    shifted(cx, e, -1.0)
}

pub(crate) fn leaky_relu(cx: &mut Cx) -> Out {
    let (x, alpha) = (cx.arg(0)?, cx.float("alpha", 0.01)?);
    one(leaky_relu_of(cx, x, alpha))
}

pub(super) fn leaky_relu_of(cx: &mut Cx, x: Value, alpha: f64) -> One {
    where_positive(cx, x, |cx, x| scaled(cx, x, alpha))
}

pub(crate) fn prelu(cx: &mut Cx) -> Out {
    let (x, mut slope) = (cx.arg(0)?, cx.arg(1)?);
    // Before opset 7 a vector of slopes is one for each channel.
    if cx.opset < 7 && cx.rank(slope) == 1 && cx.rank(x) > 2 {
        let mut line = cx.shape(slope);
        line.extend(vec![Dim::ONE; cx.rank(x) - 2]);
        slope = cx.b.reshape(slope, &line)?;
    }
    one(where_positive(cx, x, |cx, x| Ok(cx.b.mul(x, slope)?)))
}

pub(crate) fn elu(cx: &mut Cx) -> Out {
    let (x, alpha) = (cx.arg(0)?, cx.float("alpha", 1.0)?);
    one(where_positive(cx, x, |cx, x| {
        let e = exp_minus_one(cx, x)?;
        scaled(cx, e, alpha)
    }))
}

pub(crate) fn celu(cx: &mut Cx) -> Out {
    let (x, alpha) = (cx.arg(0)?, cx.float("alpha", 1.0)?);
    one(where_positive(cx, x, |cx, x| {
        let a = cx.like(x, alpha)?;
        let q = cx.b.div(x, a)?;
        let e = exp_minus_one(cx, q)?;
        scaled(cx, e, alpha)
    }))
}

pub(crate) fn selu(cx: &mut Cx) -> Out {
    let x = cx.arg(0)?;
    // The constants of Klambauer et al. 2017, as ONNX rounds them.
    let alpha = cx.float("alpha", 1.673_263_192_176_818_8)?;
    let gamma = cx.float("gamma", 1.050_701_022_148_132_3)?;
    let inner = where_positive(cx, x, |cx, x| {
        let e = exp_minus_one(cx, x)?;
        scaled(cx, e, alpha)
    })?;
    one(scaled(cx, inner, gamma))
}

/// `log(1 + exp x)` without overflow: `max(x, 0) + log(1 + exp −|x|)`.
fn softplus_of(cx: &mut Cx, x: Value) -> One {
    let a = cx.b.unary(UnaryFn::Abs, x)?;
    let n = cx.b.unary(UnaryFn::Neg, a)?;
    let e = cx.b.unary(UnaryFn::Exp, n)?;
    let s = shifted(cx, e, 1.0)?;
    let l = cx.b.unary(UnaryFn::Log, s)?;
    let r = relu_of(cx, x)?;
    Ok(cx.b.add(r, l)?)
}

pub(crate) fn softplus(cx: &mut Cx) -> Out {
    let x = cx.arg(0)?;
    one(softplus_of(cx, x))
}

pub(crate) fn softsign(cx: &mut Cx) -> Out {
    let x = cx.arg(0)?;
    let a = cx.b.unary(UnaryFn::Abs, x)?;
    let d = shifted(cx, a, 1.0)?;
    Ok(vec![cx.b.div(x, d)?])
}

pub(crate) fn mish(cx: &mut Cx) -> Out {
    let x = cx.arg(0)?;
    let s = softplus_of(cx, x)?;
    let t = cx.b.unary(UnaryFn::Tanh, s)?;
    Ok(vec![cx.b.mul(x, t)?])
}

pub(super) fn hard_sigmoid_of(cx: &mut Cx, x: Value, alpha: f64, beta: f64) -> One {
    let s = scaled(cx, x, alpha)?;
    let s = shifted(cx, s, beta)?;
    let (zero, top) = (cx.like(x, 0.0)?, cx.like(x, 1.0)?);
    let s = cx.b.binary(BinaryFn::Max, s, zero)?;
    Ok(cx.b.binary(BinaryFn::Min, s, top)?)
}

pub(crate) fn hard_sigmoid(cx: &mut Cx) -> Out {
    let x = cx.arg(0)?;
    let (alpha, beta) = (cx.float("alpha", 0.2)?, cx.float("beta", 0.5)?);
    one(hard_sigmoid_of(cx, x, alpha, beta))
}

pub(crate) fn hard_swish(cx: &mut Cx) -> Out {
    let x = cx.arg(0)?;
    let s = hard_sigmoid_of(cx, x, 1.0 / 6.0, 0.5)?;
    Ok(vec![cx.b.mul(x, s)?])
}

pub(crate) fn swish(cx: &mut Cx) -> Out {
    let (x, alpha) = (cx.arg(0)?, cx.float("alpha", 1.0)?);
    if alpha == 1.0 {
        return Ok(vec![cx.b.one(Silu, &[x])?]);
    }
    let s = scaled(cx, x, alpha)?;
    let s = cx.b.unary(UnaryFn::Sigmoid, s)?;
    Ok(vec![cx.b.mul(x, s)?])
}

/// `x · sigmoid(1.702 x)`, of ONNX Runtime.
pub(crate) fn quick_gelu(cx: &mut Cx) -> Out {
    let (x, alpha) = (cx.arg(0)?, cx.float("alpha", 1.702)?);
    let s = scaled(cx, x, alpha)?;
    let s = cx.b.unary(UnaryFn::Sigmoid, s)?;
    Ok(vec![cx.b.mul(x, s)?])
}

pub(crate) fn thresholded_relu(cx: &mut Cx) -> Out {
    let (x, alpha) = (cx.arg(0)?, cx.float("alpha", 1.0)?);
    let (alpha, zero) = (cx.like(x, alpha)?, cx.like(x, 0.0)?);
    let above = cx.b.compare(CompareFn::Gt, x, alpha)?;
    Ok(vec![cx.b.select(above, x, zero)?])
}

pub(crate) fn shrink(cx: &mut Cx) -> Out {
    let x = cx.arg(0)?;
    let (lambd, bias) = (cx.float("lambd", 0.5)?, cx.float("bias", 0.0)?);
    let (low, high) = (cx.like(x, -lambd)?, cx.like(x, lambd)?);
    let below = cx.b.compare(CompareFn::Lt, x, low)?;
    let above = cx.b.compare(CompareFn::Gt, x, high)?;
    let (up, down) = (shifted(cx, x, bias)?, shifted(cx, x, -bias)?);
    let zero = cx.like(x, 0.0)?;
    let rest = cx.b.select(above, down, zero)?;
    Ok(vec![cx.b.select(below, up, rest)?])
}

pub(crate) fn gelu(cx: &mut Cx) -> Out {
    let x = cx.arg(0)?;
    let tanh = match cx.text("approximate", "none")? {
        "none" => false,
        "tanh" => true,
        other => {
            return Err(Fail::invalid(format!(
                "there is no GELU approximation `{other}`"
            )));
        }
    };
    Ok(vec![cx.b.one(Gelu { tanh }, &[x])?])
}

fn with_bias(cx: &mut Cx) -> One {
    let x = cx.arg(0)?;
    match cx.opt(1) {
        Some(bias) => Ok(cx.b.add(x, bias)?),
        None => Ok(x),
    }
}

pub(crate) fn bias_gelu(cx: &mut Cx) -> Out {
    let x = with_bias(cx)?;
    Ok(vec![cx.b.one(Gelu { tanh: false }, &[x])?])
}

pub(crate) fn fast_gelu(cx: &mut Cx) -> Out {
    let x = with_bias(cx)?;
    Ok(vec![cx.b.one(Gelu { tanh: true }, &[x])?])
}

/// `swish(a) · b`.
pub(crate) fn swiglu(cx: &mut Cx) -> Out {
    let gate = swish(cx)?[0];
    let b = cx.arg(1)?;
    Ok(vec![cx.b.mul(gate, b)?])
}

/// Of ai.onnx.ml: 1 above the threshold, else 0.
pub(crate) fn binarizer(cx: &mut Cx) -> Out {
    let x = cx.arg(0)?;
    let threshold = cx.float("threshold", 0.0)?;
    let threshold = cx.like(x, threshold)?;
    let over = cx.b.compare(CompareFn::Gt, x, threshold)?;
    Ok(vec![cx.b.cast(over, cx.dtype(x))?])
}
