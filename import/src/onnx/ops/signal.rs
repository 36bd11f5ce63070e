//! Signal processing.

use crate::diagnostic::code;
use crate::onnx::cx::{Cx, Fail, Out};
use crate::onnx::tensor;
use kiln_ir::graph::Value;
use kiln_ir::ops::layout::{Pad, PadMode};
use kiln_ir::ops::source::Iota;
use kiln_ir::{BinaryFn, DType, Dim, Tensor, UnaryFn};
use std::f64::consts::PI;

/// A window `a₀ − a₁·cos(2πn/N) + a₂·cos(4πn/N)`, where N is the length, or one
/// less if it is to be symmetric.
pub(crate) fn window(cx: &mut Cx, terms: [f64; 3]) -> Out {
    let length = cx.arg(0)?;
    let length = cx.b.cast(length, DType::I64)?;
    let length = cx.size(length)?;
    let to = cx.int("output_datatype", 1)?;
    let to = tensor::dtype(to).ok_or_else(|| Fail::invalid(format!("{to} is no element type")))?;
    let period = match cx.flag("periodic", true)? {
        true => length.clone(),
        false => (length.clone() - Dim::ONE).maximum(&Dim::ONE),
    };
    let op = Iota {
        shape: vec![length],
        axis: 0,
        dtype: DType::F64,
    };
    let n = cx.b.one(op, &[])?;
    let period = cx.scalar_dim(period)?;
    let period = cx.b.cast(period, DType::F64)?;
    let mut y = cx.b.full(DType::F64, &cx.shape(n), terms[0])?;
    for (k, f) in [(1, BinaryFn::Sub), (2, BinaryFn::Add)] {
        if terms[k] == 0.0 {
            continue;
        }
        let turn = cx.like(n, 2.0 * PI * k as f64)?;
        let angle = cx.b.mul(n, turn)?;
        let angle = cx.b.div(angle, period)?;
        let c = cx.b.unary(UnaryFn::Cos, angle)?;
        let factor = cx.like(c, terms[k])?;
        let c = cx.b.mul(c, factor)?;
        y = cx.b.binary(f, y, c)?;
    }
    Ok(vec![cx.b.cast(y, to)?])
}

/// The most elements of a transform's matrix.
const LARGEST: i64 = 1 << 24;

/// `f(2π·row·column/n)`; the product is reduced first, so that it is exact.
fn waves(
    cx: &mut Cx,
    dtype: DType,
    (rows, columns, n): (i64, i64, i64),
    f: impl Fn(f64, i64) -> f64,
) -> Result<Value, Fail> {
    if rows.saturating_mul(columns) > LARGEST {
        return Err(Fail::form(format!("a Fourier transform of length {n}")));
    }
    let mut all = Vec::with_capacity((rows * columns) as usize);
    for r in 0..rows {
        for c in 0..columns {
            all.push(f(2.0 * PI * ((r * c) % n) as f64 / n as f64, r));
        }
    }
    let t = Tensor::from_f64(dtype, [rows as usize, columns as usize], &all);
    Ok(cx
        .b
        .constant(t.map_err(|e| Fail::invalid(format!("{e:?}")))?)?)
}

/// An extent that must be known.
fn fixed(d: &Dim, what: &str) -> Result<i64, Fail> {
    d.as_const().filter(|&n| n > 0).ok_or_else(|| {
        Fail::new(
            code::DATA_SHAPE,
            format!("{what} must be known when the model is compiled"),
        )
        .help("fix it with --dim, or with --freeze NAME=FILE.npy where an input holds it")
    })
}

/// What a transform is.
struct Transform {
    n: i64,
    inverse: bool,
    onesided: bool,
}

/// The transform of `[…, length, parts]` (parts: the real one, or both) over its
/// last axis but one: products with constant matrices.
fn transform(cx: &mut Cx, x: Value, t: &Transform) -> Result<Value, Fail> {
    let rank = cx.rank(x);
    let (axis, dtype, n) = (rank - 2, cx.dtype(x), t.n);
    let half = n / 2 + 1;
    let to_real = t.inverse && t.onesided;
    let (rows, columns) = match (t.inverse, t.onesided) {
        (true, true) => (half, n),
        (false, true) => (n, half),
        _ => (n, n),
    };
    let complex = match fixed(&cx.extent(x, rank - 1)?, "the last axis")? {
        1 => false,
        2 => true,
        other => return Err(Fail::invalid(format!("numbers of {other} parts"))),
    };
    let x = resized(cx, x, axis, rows)?;
    let mut shape = cx.shape(x);
    shape.pop();
    let mut parts = vec![];
    for i in 0..=complex as i64 {
        let part = cx.b.slice_axis(x, rank - 1, Dim::from(i), Dim::ONE)?;
        parts.push(cx.b.reshape(part, &shape)?);
    }
    // Where the result is real, each frequency but the first and the middle one
    // stands for its mirror image as well.
    let twice = |row: i64| match to_real && row != 0 && 2 * row != n {
        true => 2.0,
        false => 1.0,
    };
    let by = if t.inverse { 1.0 / n as f64 } else { 1.0 };
    let size = (rows, columns, n);
    let c = waves(cx, dtype, size, |a, row| a.cos() * by * twice(row))?;
    // e^(−i·angle) forward, e^(i·angle) back.
    let sign = if t.inverse { 1.0 } else { -1.0 };
    let s = waves(cx, dtype, size, |a, row| sign * a.sin() * by * twice(row))?;
    let mut real = cx.b.matmul(parts[0], c)?;
    let mut imaginary = cx.b.matmul(parts[0], s)?;
    if let Some(&y) = parts.get(1) {
        let (ys, yc) = (cx.b.matmul(y, s)?, cx.b.matmul(y, c)?);
        real = cx.b.sub(real, ys)?;
        imaginary = cx.b.add(imaginary, yc)?;
    }
    let mut column = cx.shape(real);
    column.push(Dim::ONE);
    let real = cx.b.reshape(real, &column)?;
    if to_real {
        return Ok(real);
    }
    let imaginary = cx.b.reshape(imaginary, &column)?;
    Ok(cx.b.concat(&[real, imaginary], rank - 1)?)
}

/// An axis cut, or filled with zeros, to `n`.
fn resized(cx: &mut Cx, x: Value, axis: usize, n: i64) -> Result<Value, Fail> {
    let length = cx.extent(x, axis)?;
    let n = Dim::from(n);
    if length == n {
        return Ok(x);
    }
    let rank = cx.rank(x);
    let x =
        cx.b.slice_axis(x, axis, Dim::ZERO, length.clone().minimum(&n))?;
    let mut hi = vec![Dim::ZERO; rank];
    hi[axis] = n.clone() - length.minimum(&n);
    let op = Pad {
        lo: vec![Dim::ZERO; rank],
        hi,
        mode: PadMode::Constant,
    };
    let zero = cx.like(x, 0.0)?;
    Ok(cx.b.one(op, &[x, zero])?)
}

/// The axis is an attribute before opset 20, then an argument.
pub(crate) fn dft(cx: &mut Cx) -> Out {
    let x = cx.arg(0)?;
    let rank = cx.rank(x);
    let axis = match cx.opset < 20 {
        true => cx.int("axis", 1)?,
        false => match cx.opt(2) {
            None => -2,
            Some(a) => cx.need_ints(a, "the axis of a transform")?[..]
                .first()
                .copied()
                .unwrap_or(-2),
        },
    };
    let axis = cx.axis(axis, rank)?;
    if axis + 1 == rank {
        return Err(Fail::invalid("the last axis holds the parts of numbers"));
    }
    let (inverse, onesided) = (cx.flag("inverse", false)?, cx.flag("onesided", false)?);
    let n = match cx.opt(1) {
        Some(n) => *cx
            .need_ints(n, "the length of a transform")?
            .first()
            .ok_or_else(|| Fail::invalid("an empty length"))?,
        None => {
            let length = fixed(&cx.extent(x, axis)?, "the length of a transform")?;
            match inverse && onesided {
                true => (length - 1).saturating_mul(2),
                false => length,
            }
        }
    };
    if n <= 0 {
        return Err(Fail::invalid(format!("a transform of length {n}")));
    }
    let mut perm: Vec<usize> = (0..rank).collect();
    perm.swap(axis, rank - 2);
    let x = cx.b.transpose(x, &perm)?;
    let t = Transform {
        n,
        inverse,
        onesided,
    };
    let y = transform(cx, x, &t)?;
    Ok(vec![cx.b.transpose(y, &perm)?])
}

/// Transforms of windows that lie `frame_step` apart.
pub(crate) fn stft(cx: &mut Cx) -> Out {
    let (x, hop) = (cx.arg(0)?, cx.arg(1)?);
    let first = |v: Vec<i64>| v.first().copied().filter(|&n| n > 0);
    let bad = || Fail::invalid("a step or a length below 1");
    let hop = first(cx.need_ints(hop, "the step between frames")?).ok_or_else(bad)?;
    let n = match (cx.opt(3), cx.opt(2)) {
        (Some(n), _) => first(cx.need_ints(n, "the length of a frame")?).ok_or_else(bad)?,
        (None, Some(w)) => fixed(&cx.extent(w, 0)?, "the length of a frame")?,
        (None, None) => return Err(Fail::invalid("the length of a frame is missing")),
    };
    let x = match cx.rank(x) {
        2 => {
            let mut shape = cx.shape(x);
            shape.push(Dim::ONE);
            cx.b.reshape(x, &shape)?
        }
        _ => x,
    };
    let frames = (cx.extent(x, 1)? - n.into()).floor_div(&hop.into()) + Dim::ONE;
    let index = |cx: &mut Cx, axis: usize| {
        let op = Iota {
            shape: vec![frames.clone(), n.into()],
            axis,
            dtype: DType::I64,
        };
        cx.b.one(op, &[])
    };
    let (start, within) = (index(cx, 0)?, index(cx, 1)?);
    let start = cx.with_int(BinaryFn::Mul, start, hop)?;
    let at = cx.b.add(start, within)?;
    let mut x = cx.b.gather(x, at, 1)?;
    if let Some(w) = cx.opt(2) {
        // A short window stands in the middle of the frame.
        let length = fixed(&cx.extent(w, 0)?, "the length of a window")?;
        let op = Pad {
            lo: vec![Dim::from((n - length) / 2)],
            hi: vec![Dim::from(n - length - (n - length) / 2)],
            mode: PadMode::Constant,
        };
        let zero = cx.like(w, 0.0)?;
        let w = cx.b.one(op, &[w, zero])?;
        let w = cx.b.reshape(w, &[n.into(), Dim::ONE])?;
        x = cx.b.mul(x, w)?;
    }
    let t = Transform {
        n,
        inverse: false,
        onesided: cx.flag("onesided", true)?,
    };
    Ok(vec![transform(cx, x, &t)?])
}

/// Triangles over the frequencies of a one-sided transform, evenly spaced on the
/// mel scale (2595·log₁₀(1 + f/700)): `[length/2 + 1, bands]`, computed while
/// importing.
pub(crate) fn mel_weights(cx: &mut Cx) -> Out {
    let mut given = [0.0; 5];
    for (i, slot) in given.iter_mut().enumerate() {
        let v = cx.arg(i)?;
        *slot = cx.number(v).ok_or_else(|| {
            Fail::new(
                code::DATA_SHAPE,
                "the numbers of a mel matrix must be known when the model is compiled",
            )
            .help("if an input holds them, fix it with --freeze NAME=FILE.npy")
        })?;
    }
    let [bands, length, rate, low, high] = given;
    let sound = (1.0..=65536.0).contains(&bands) && (0.0..=1e8).contains(&length) && rate > 0.0;
    if !sound {
        return Err(Fail::invalid(format!(
            "{bands} bands of a transform of {length} at a rate of {rate}"
        )));
    }
    let (bands, bins) = (bands as usize, length as usize / 2 + 1);
    let mel = |f: f64| 2595.0 * (1.0 + f / 700.0).log10();
    // The standard divides by the number of edges, not of the gaps between them.
    let step = (mel(high) - mel(low)) / (bands + 2) as f64;
    let edge = |i: usize| {
        let f = 700.0 * (10f64.powf((i as f64 * step + mel(low)) / 2595.0) - 1.0);
        (((length + 1.0) * f) / rate).floor()
    };
    let mut out = vec![0.0; bins * bands];
    for band in 0..bands {
        let (left, top, right) = (edge(band), edge(band + 1), edge(band + 2));
        for (bin, slot) in out.iter_mut().skip(band).step_by(bands).enumerate() {
            let j = bin as f64;
            *slot = if (top..right).contains(&j) {
                (right - j) / (right - top)
            } else if j == top && left == top {
                1.0
            } else if (left..=top).contains(&j) {
                (j - left) / (top - left)
            } else {
                0.0
            };
        }
    }
    let to = cx.int("output_datatype", 1)?;
    let to = tensor::dtype(to).ok_or_else(|| Fail::invalid(format!("{to} is no element type")))?;
    let t = Tensor::from_f64(DType::F64, [bins, bands], &out);
    let t =
        cx.b.constant(t.map_err(|e| Fail::invalid(e.to_string()))?)?;
    Ok(vec![cx.b.cast(t, to)?])
}
