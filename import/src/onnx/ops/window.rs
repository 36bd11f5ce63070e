//! Convolution and pooling.

use crate::onnx::cx::{Cx, Fail, Out};
use kiln_ir::graph::Value;
use kiln_ir::ops::composite::Silu;
use kiln_ir::ops::conv::Conv;
use kiln_ir::ops::index::{ScatterElements, ScatterFn};
use kiln_ir::ops::layout::{Pad, PadMode};
use kiln_ir::ops::reduce::ArgReduce;
use kiln_ir::ops::source::Iota;
use kiln_ir::ops::window::Unfold;
use kiln_ir::{BinaryFn, DType, Dim, ReduceFn, Tensor, UnaryFn};

type One = Result<Value, Fail>;

/// Windows, steps and paddings beyond this are mistakes; sums of products of two
/// stay within 64 bits.
pub(super) const LARGEST: i64 = i32::MAX as i64;
/// The most places that the importer lists one by one.
const MOST_PLACES: i64 = 1 << 22;

/// How windows lie over the spatial axes.
struct Frame {
    kernel: Vec<usize>,
    strides: Vec<usize>,
    dilations: Vec<usize>,
    lo: Vec<Dim>,
    hi: Vec<Dim>,
    /// What rounding up adds after `hi`: never counted as padding.
    extra: Vec<Dim>,
}

pub(super) fn counts(cx: &Cx, name: &str, spatial: usize) -> Result<Vec<usize>, Fail> {
    let given = match cx.ints(name)? {
        None => return Ok(vec![1; spatial]),
        Some(v) => v,
    };
    let all: Option<Vec<usize>> = (given.iter())
        .map(|&i| {
            usize::try_from(i)
                .ok()
                .filter(|_| (1..=LARGEST).contains(&i))
        })
        .collect();
    all.filter(|v| v.len() == spatial)
        .ok_or_else(|| Fail::invalid(format!("`{name}` is {given:?} for {spatial} axes")))
}

/// Strides, dilations and paddings of a node over these spatial extents.
fn frame(cx: &Cx, lengths: &[Dim], kernel: Vec<usize>) -> Result<Frame, Fail> {
    let n = lengths.len();
    if kernel.len() != n {
        return Err(Fail::invalid(format!(
            "a window of {kernel:?} over {n} axes"
        )));
    }
    let (strides, dilations) = (counts(cx, "strides", n)?, counts(cx, "dilations", n)?);
    let span = |i: usize| Dim::from((kernel[i] - 1) * dilations[i] + 1);
    let (mut lo, mut hi) = (vec![Dim::ZERO; n], vec![Dim::ZERO; n]);
    match cx.text("auto_pad", "NOTSET")? {
        "NOTSET" | "" => {
            if let Some(pads) = cx.ints("pads")? {
                if pads.len() != 2 * n {
                    return Err(Fail::invalid(format!("`pads` is {pads:?} for {n} axes")));
                }
                lo = pads[..n].iter().map(|&p| p.into()).collect();
                hi = pads[n..].iter().map(|&p| p.into()).collect();
            }
        }
        "VALID" => {}
        same @ ("SAME_UPPER" | "SAME_LOWER") => {
            for i in 0..n {
                let step = Dim::from(strides[i]);
                let out = lengths[i].ceil_div(&step);
                let total = (out - Dim::ONE) * step + span(i) - lengths[i].clone();
                let total = total.maximum(&Dim::ZERO);
                let less = total.floor_div(&2.into());
                let more = total - less.clone();
                (lo[i], hi[i]) = match same {
                    "SAME_UPPER" => (less, more),
                    _ => (more, less),
                };
            }
        }
        other => return Err(Fail::invalid(format!("`auto_pad` is {other}"))),
    }
    let mut extra = vec![Dim::ZERO; n];
    if cx.flag("ceil_mode", false)? {
        for i in 0..n {
            extra[i] = rounded_up(&lengths[i], &lo[i], &hi[i], &span(i), strides[i]);
        }
    }
    Ok(Frame {
        kernel,
        strides,
        dilations,
        lo,
        hi,
        extra,
    })
}

/// What must follow the padding so that the last, partial window is whole; a
/// window that would begin behind the input and its first padding is left out.
fn rounded_up(length: &Dim, lo: &Dim, hi: &Dim, span: &Dim, stride: usize) -> Dim {
    let step = Dim::from(stride);
    let whole = length.clone() + lo.clone() + hi.clone();
    let mut windows = (whole.clone() - span.clone()).ceil_div(&step) + Dim::ONE;
    let reach = hi.clone() + step.clone() - Dim::ONE;
    // The last window begins less than `reach − span` behind the input.
    if reach.le(&(span.clone() - Dim::ONE)) != kiln_ir::Tri::Yes {
        // As many windows begin inside as there are steps there.
        windows = windows.minimum(&(length.clone() + lo.clone()).ceil_div(&step));
    }
    let used = (windows - Dim::ONE) * step + span.clone();
    (used - whole).maximum(&Dim::ZERO)
}

/// Batch and channels, then spatial axes.
pub(super) fn spatial(cx: &Cx, x: Value) -> Result<Vec<Dim>, Fail> {
    let shape = cx.shape(x);
    if shape.len() < 3 {
        return Err(Fail::invalid(format!(
            "rank {} has no spatial axes",
            shape.len()
        )));
    }
    Ok(shape[2..].to_vec())
}

impl Frame {
    fn padded(&self, cx: &mut Cx, x: Value, fill: Value) -> One {
        let outer = || vec![Dim::ZERO; 2];
        let (mut lo, mut hi) = (outer(), outer());
        lo.extend(self.lo.iter().cloned());
        hi.extend(
            self.hi
                .iter()
                .zip(&self.extra)
                .map(|(a, b)| a.clone() + b.clone()),
        );
        if lo.iter().chain(&hi).all(|d| *d == Dim::ZERO) {
            return Ok(x);
        }
        let mode = PadMode::Constant;
        Ok(cx.b.one(Pad { lo, hi, mode }, &[x, fill])?)
    }

    /// `[n, c, windows, places, …]`.
    fn windows(&self, cx: &mut Cx, mut x: Value) -> One {
        for i in 0..self.kernel.len() {
            let window = Unfold {
                axis: 2 + 2 * i,
                size: self.kernel[i],
                step: self.strides[i],
                dilation: self.dilations[i],
            };
            x = cx.b.one(window, &[x])?;
        }
        Ok(x)
    }

    /// The axes of places.
    fn places(&self) -> Vec<usize> {
        (0..self.kernel.len()).map(|i| 3 + 2 * i).collect()
    }
}

pub(crate) fn conv(cx: &mut Cx) -> Out {
    let (x, w) = (cx.arg(0)?, cx.arg(1)?);
    let y = convolution(cx, x, w, cx.opt(2))?;
    Ok(vec![y])
}

fn convolution(cx: &mut Cx, x: Value, w: Value, bias: Option<Value>) -> One {
    let lengths = spatial(cx, x)?;
    let kernel = filter(cx, w, lengths.len())?;
    let f = frame(cx, &lengths, kernel)?;
    let op = Conv {
        strides: f.strides,
        dilations: f.dilations,
        lo: f.lo,
        hi: f.hi,
        groups: groups(cx)?,
        out: None,
    };
    let args: Vec<Value> = [x, w].into_iter().chain(bias).collect();
    Ok(cx.b.one(op, &args)?)
}

pub(super) fn groups(cx: &Cx) -> Result<usize, Fail> {
    let g = cx.int("group", 1)?;
    usize::try_from(g)
        .ok()
        .filter(|&g| g > 0)
        .ok_or_else(|| Fail::invalid(format!("`group` is {g}")))
}

/// The spatial extents of a filter.
pub(super) fn filter(cx: &Cx, w: Value, spatial: usize) -> Result<Vec<usize>, Fail> {
    let shape = cx.shape(w);
    let constant = |d: &Dim| {
        d.as_const()
            .filter(|d| (1..=LARGEST).contains(d))
            .and_then(|d| usize::try_from(d).ok())
    };
    let kernel: Option<Vec<usize>> = shape.iter().skip(2).map(constant).collect();
    kernel.filter(|k| k.len() == spatial).ok_or_else(|| {
        Fail::form("the filter's extents must be constant, one for each spatial axis")
    })
}

/// Integers: zero points are taken away, and sums are exact in f64.
pub(crate) fn conv_integer(cx: &mut Cx) -> Out {
    let (x, w) = (cx.arg(0)?, cx.arg(1)?);
    let x = centred(cx, x, cx.opt(2), false)?;
    let w = centred(cx, w, cx.opt(3), true)?;
    Ok(vec![convolution(cx, x, w, None)?])
}

/// `x − zero` in i32: integers wrap alike wherever a zero point is taken off.
fn centred(cx: &mut Cx, x: Value, zero: Option<Value>, per_filter: bool) -> One {
    let wide = cx.b.cast(x, DType::I32)?;
    let Some(z) = zero else { return Ok(wide) };
    let z = match &cx.shape(z)[..] {
        [n] if per_filter && *n != Dim::ONE => {
            let mut column = vec![Dim::ONE; cx.rank(x)];
            let first = column.first_mut();
            *first.ok_or_else(|| Fail::invalid("a scalar is no filter"))? = n.clone();
            cx.b.reshape(z, &column)?
        }
        [_] => cx.b.reshape(z, &[])?,
        _ => z,
    };
    let z = cx.b.cast(z, DType::I32)?;
    Ok(cx.b.sub(wide, z)?)
}

/// `saturate(round(conv(x, w)·(sx·sw/sy)) + zy)`.
pub(crate) fn qlinear_conv(cx: &mut Cx) -> Out {
    let (x, sx, zx) = (cx.arg(0)?, cx.arg(1)?, cx.opt(2));
    let (w, sw, zw) = (cx.arg(3)?, cx.arg(4)?, cx.opt(5));
    let (sy, zy) = (cx.arg(6)?, cx.arg(7)?);
    let to = cx.dtype(zy);
    let x = centred(cx, x, zx, false)?;
    let w = centred(cx, w, zw, true)?;
    let y = convolution(cx, x, w, cx.opt(8))?;
    // The sum is exact; what scales it is one f32, as in ONNX Runtime.
    let y = cx.b.cast(y, DType::F32)?;
    let channels = |cx: &mut Cx, s: Value| -> One {
        let s = cx.b.cast(s, DType::F32)?;
        match &cx.shape(s)[..] {
            [n] if *n != Dim::ONE => {
                let mut column = vec![Dim::ONE; cx.rank(y) - 1];
                column[0] = n.clone();
                Ok(cx.b.reshape(s, &column)?)
            }
            _ => Ok(cx.b.reshape(s, &[])?),
        }
    };
    let (sx, sw, sy) = (channels(cx, sx)?, channels(cx, sw)?, channels(cx, sy)?);
    let s = cx.b.mul(sx, sw)?;
    let s = cx.b.div(s, sy)?;
    let y = cx.b.mul(y, s)?;
    let y = cx.b.unary(UnaryFn::Round, y)?;
    let z = channels(cx, zy)?;
    let y = cx.b.add(y, z)?;
    // A cast of a float saturates.
    Ok(vec![cx.b.cast(y, to)?])
}

/// Opset 27: each channel over its present and past positions, of which the last
/// are kept for the next call.
pub(crate) fn causal_conv(cx: &mut Cx) -> Out {
    let (x, w) = (cx.arg(0)?, cx.arg(1)?);
    let kernel = filter(cx, w, 1)?;
    let before = Dim::from(kernel[0] as i64 - 1);
    let shape = cx.ranked(x, 3)?;
    let past = match cx.opt(3) {
        Some(past) => past,
        None => {
            let blank = [shape[0].clone(), shape[1].clone(), before.clone()];
            cx.b.full(cx.dtype(x), &blank, 0.0)?
        }
    };
    let all = match before == Dim::ZERO {
        true => x,
        false => cx.b.concat(&[past, x], 2)?,
    };
    let groups = shape[1].as_const().and_then(|c| usize::try_from(c).ok());
    let op = Conv {
        strides: vec![1],
        dilations: vec![1],
        lo: vec![Dim::ZERO],
        hi: vec![Dim::ZERO],
        groups: groups.ok_or_else(|| Fail::form("the number of channels must be a constant"))?,
        out: None,
    };
    let args: Vec<Value> = [all, w].into_iter().chain(cx.opt(2)).collect();
    let mut y = cx.b.one(op, &args)?;
    match cx.text("activation", "none")? {
        "none" => {}
        "silu" | "swish" => {
            let wide = cx.b.cast(y, DType::F32)?;
            let wide = cx.b.one(Silu, &[wide])?;
            y = cx.b.cast(wide, cx.dtype(y))?;
        }
        other => return Err(Fail::invalid(format!("there is no activation `{other}`"))),
    }
    let last = match before == Dim::ZERO {
        true => past,
        false => cx.b.slice_axis(all, 2, shape[2].clone(), before)?,
    };
    Ok(vec![y, last])
}

/// The attribute `kernel_shape`.
fn kernel_shape(cx: &Cx, spatial: usize) -> Result<Vec<usize>, Fail> {
    match cx.has("kernel_shape") {
        true => counts(cx, "kernel_shape", spatial),
        false => Err(Fail::invalid("`kernel_shape` is missing")),
    }
}

pub(crate) fn max_pool(cx: &mut Cx) -> Out {
    let x = cx.arg(0)?;
    let lengths = spatial(cx, x)?;
    let f = frame(cx, &lengths, kernel_shape(cx, lengths.len())?)?;
    let dtype = cx.dtype(x);
    let least = match dtype {
        d if d.is_float() => cx.like(x, f64::NEG_INFINITY)?,
        DType::I8 => cx.like(x, -128.0)?,
        _ => cx.like(x, 0.0)?,
    };
    let padded = f.padded(cx, x, least)?;
    let windows = f.windows(cx, padded)?;
    let y = cx.b.reduce(ReduceFn::Max, windows, &f.places(), false)?;
    if !cx.wants(1) {
        return Ok(vec![y]);
    }
    let indices = max_indices(cx, &f, windows, &lengths)?;
    Ok(vec![y, indices])
}

/// The place of each window's largest element in the flat input.
fn max_indices(cx: &mut Cx, f: &Frame, windows: Value, lengths: &[Dim]) -> One {
    let n = lengths.len();
    let shape = cx.shape(windows);
    let mut perm = vec![0, 1];
    perm.extend((0..n).map(|i| 2 + 2 * i));
    perm.extend(f.places());
    let flat = cx.b.transpose(windows, &perm)?;
    let mut out: Vec<Dim> = (0..n + 2).map(|i| shape[perm[i]].clone()).collect();
    let taps: usize = f.kernel.iter().product();
    out.push(taps.into());
    let flat = cx.b.reshape(flat, &out)?;
    out.pop();
    let arg = ArgReduce {
        largest: true,
        axis: n + 2,
        keep: false,
        last: false,
    };
    let mut tap = cx.b.one(arg, &[flat])?;
    let column_major = cx.flag("storage_order", false)?;
    let iota = |cx: &mut Cx, axis: usize| -> One {
        let (shape, dtype) = (out.clone(), DType::I64);
        Ok(cx.b.one(Iota { shape, axis, dtype }, &[])?)
    };
    let mut places = vec![];
    for i in (0..n).rev() {
        let k = cx.with_int(BinaryFn::Mod, tap, f.kernel[i] as i64)?;
        tap = cx.with_int(BinaryFn::Div, tap, f.kernel[i] as i64)?;
        let k = cx.with_int(BinaryFn::Mul, k, f.dilations[i] as i64)?;
        let o = iota(cx, 2 + i)?;
        let o = cx.with_int(BinaryFn::Mul, o, f.strides[i] as i64)?;
        let place = cx.b.add(o, k)?;
        let lo = cx.scalar_dim(f.lo[i].clone())?;
        places.push((i, cx.b.sub(place, lo)?));
    }
    // Row-major: the last axis is next to itself; column-major: the first.
    places.sort_by_key(|p| p.0);
    let order: Vec<usize> = match column_major {
        true => (0..n).rev().collect(),
        false => (0..n).collect(),
    };
    let mut at = iota(cx, 0)?;
    let channels = cx.scalar_dim(shape[1].clone())?;
    at = cx.b.mul(at, channels)?;
    let c = iota(cx, 1)?;
    at = cx.b.add(at, c)?;
    for i in order {
        let length = cx.scalar_dim(lengths[i].clone())?;
        at = cx.b.mul(at, length)?;
        at = cx.b.add(at, places[i].1)?;
    }
    Ok(at)
}

pub(crate) fn average_pool(cx: &mut Cx) -> Out {
    let x = cx.arg(0)?;
    Ok(vec![average_pool_of(cx, x)?])
}

pub(super) fn average_pool_of(cx: &mut Cx, x: Value) -> One {
    let lengths = spatial(cx, x)?;
    let n = lengths.len();
    let f = frame(cx, &lengths, kernel_shape(cx, n)?)?;
    let zero = cx.like(x, 0.0)?;
    let padded = f.padded(cx, x, zero)?;
    let windows = f.windows(cx, padded)?;
    let sum = cx.b.reduce(ReduceFn::Sum, windows, &f.places(), false)?;
    let include = cx.flag("count_include_pad", false)?;
    let none = |d: &[Dim]| d.iter().all(|d| *d == Dim::ZERO);
    let whole = none(&f.extra) && (include || (none(&f.lo) && none(&f.hi)));
    if whole {
        let taps: usize = f.kernel.iter().product();
        let taps = cx.like(x, taps as f64)?;
        return Ok(cx.b.div(sum, taps)?);
    }
    // How many places count: a product of one vector for each axis.
    let mut y = sum;
    for (i, length) in lengths.iter().enumerate() {
        let (lo, hi) = match include {
            true => (Dim::ZERO, f.extra[i].clone()),
            false => (f.lo[i].clone(), f.hi[i].clone() + f.extra[i].clone()),
        };
        let length = match include {
            true => length.clone() + f.lo[i].clone() + f.hi[i].clone(),
            false => length.clone(),
        };
        let dtype = cx.dtype(x);
        let ones = cx.b.full(dtype, &[length], 1.0)?;
        let mode = PadMode::Constant;
        let (lo, hi) = (vec![lo], vec![hi]);
        let ones = cx.b.one(Pad { lo, hi, mode }, &[ones, zero])?;
        let window = Unfold {
            axis: 0,
            size: f.kernel[i],
            step: f.strides[i],
            dilation: f.dilations[i],
        };
        let ones = cx.b.one(window, &[ones])?;
        let count = cx.b.reduce(ReduceFn::Sum, ones, &[1], false)?;
        let mut column = vec![Dim::ONE; n - i];
        column[0] = cx.shape(count)[0].clone();
        // A window all in the border has the average 0.
        let least = cx.like(x, 1.0)?;
        let count = cx.b.binary(BinaryFn::Max, count, least)?;
        let count = cx.b.reshape(count, &column)?;
        y = cx.b.div(y, count)?;
    }
    Ok(y)
}

/// `(Σ |x|ᵖ)^(1/p)`.
pub(crate) fn lp_pool(cx: &mut Cx) -> Out {
    let x = cx.arg(0)?;
    let lengths = spatial(cx, x)?;
    let f = frame(cx, &lengths, kernel_shape(cx, lengths.len())?)?;
    let zero = cx.like(x, 0.0)?;
    let padded = f.padded(cx, x, zero)?;
    let windows = f.windows(cx, padded)?;
    let p = cx.int("p", 2)? as f64;
    Ok(vec![norm(cx, windows, p, &f.places(), false)?])
}

/// The same over whole planes.
pub(crate) fn global_lp_pool(cx: &mut Cx) -> Out {
    let x = cx.arg(0)?;
    let axes: Vec<usize> = (2..2 + spatial(cx, x)?.len()).collect();
    let p = cx.int("p", 2)? as f64;
    Ok(vec![norm(cx, x, p, &axes, true)?])
}

fn norm(cx: &mut Cx, x: Value, p: f64, axes: &[usize], keep: bool) -> One {
    let x = cx.b.unary(UnaryFn::Abs, x)?;
    let (power, root) = (cx.like(x, p)?, cx.like(x, 1.0 / p)?);
    let x = cx.b.binary(BinaryFn::Pow, x, power)?;
    let sum = cx.b.reduce(ReduceFn::Sum, x, axes, keep)?;
    Ok(cx.b.binary(BinaryFn::Pow, sum, root)?)
}

/// `x / (bias + alpha/size · Σ x²)^beta`, the sum over neighbouring channels.
pub(crate) fn lrn(cx: &mut Cx) -> Out {
    let x = cx.arg(0)?;
    let size = cx.int("size", 0)?;
    if size < 1 || cx.rank(x) < 2 {
        return Err(Fail::invalid(format!("`size` is {size}")));
    }
    let (alpha, beta) = (cx.float("alpha", 1e-4)?, cx.float("beta", 0.75)?);
    let bias = cx.float("bias", 1.0)?;
    let squares = cx.b.mul(x, x)?;
    let rank = cx.rank(x);
    let (mut lo, mut hi) = (vec![Dim::ZERO; rank], vec![Dim::ZERO; rank]);
    (lo[1], hi[1]) = (((size - 1) / 2).into(), (size / 2).into());
    let zero = cx.like(x, 0.0)?;
    let mode = PadMode::Constant;
    let padded = cx.b.one(Pad { lo, hi, mode }, &[squares, zero])?;
    let windows = cx.b.unfold(padded, 1, size as usize, 1, 1)?;
    let sum = cx.b.reduce(ReduceFn::Sum, windows, &[2], false)?;
    let (scale, bias, beta) = (
        cx.like(x, alpha / size as f64)?,
        cx.like(x, bias)?,
        cx.like(x, beta)?,
    );
    let sum = cx.b.mul(sum, scale)?;
    let sum = cx.b.add(sum, bias)?;
    let power = cx.b.binary(BinaryFn::Pow, sum, beta)?;
    Ok(vec![cx.b.div(x, power)?])
}

/// Columns of windows added up where the windows lie.
pub(crate) fn col2im(cx: &mut Cx) -> Out {
    let x = cx.arg(0)?;
    let image = cx.need_ints(cx.arg(1)?, "the image's shape")?;
    let block = cx.need_ints(cx.arg(2)?, "the block's shape")?;
    let n = image.len();
    let (strides, dilations) = (counts(cx, "strides", n)?, counts(cx, "dilations", n)?);
    let pads = match cx.ints("pads")? {
        None => vec![0; 2 * n],
        Some(p) if p.len() == 2 * n && p.iter().all(|p| p.unsigned_abs() <= LARGEST as u64) => {
            p.to_vec()
        }
        Some(p) => return Err(Fail::invalid(format!("`pads` is {p:?} for {n} axes"))),
    };
    let mut sizes = block.iter().chain(&image);
    if block.len() != n || sizes.any(|d| !(1..=LARGEST).contains(d)) {
        return Err(Fail::invalid(format!("blocks of {block:?} in {image:?}")));
    }
    let total = image.iter().try_fold(1i64, |n, &d| n.checked_mul(d));
    let total = total
        .filter(|&t| t < i64::MAX)
        .ok_or_else(|| Fail::invalid(format!("an image of {image:?}")))?;
    let shape = cx.ranked(x, 3)?;
    // For every element of a block and every block: where it lies, flattened, and
    // one place behind the image for what falls on the padding.
    let mut places = vec![(0i64, true)];
    for i in 0..n {
        let span = (block[i] - 1) * dilations[i] as i64 + 1;
        let room = image[i] + pads[i] + pads[n + i] - span;
        if room < 0 {
            return Err(Fail::invalid(format!("blocks of {block:?} in {image:?}")));
        }
        let blocks = room / strides[i] as i64 + 1;
        let count = (block[i].saturating_mul(blocks)).saturating_mul(places.len() as i64);
        if count > MOST_PLACES {
            return Err(Fail::form(format!("blocks of {block:?} in {image:?}")));
        }
        let mut axis = vec![];
        for b in 0..block[i] {
            for l in 0..blocks {
                let at = b * dilations[i] as i64 + l * strides[i] as i64 - pads[i];
                axis.push((at, (0..image[i]).contains(&at)));
            }
        }
        // Kept as [blocks' elements so far…, blocks so far…]: sorted below.
        let mut next = vec![];
        for &(base, inside) in &places {
            for &(at, here) in &axis {
                let inside = inside && here;
                // What falls on the padding has no place to keep count of.
                let place = if inside { base * image[i] + at } else { 0 };
                next.push((place, inside));
            }
        }
        places = next;
    }
    let flat: Vec<i64> = places
        .iter()
        .map(|&(at, inside)| if inside { at } else { total })
        .collect();
    // [b₀, l₀, b₁, l₁, …] to [b₀, b₁, …, l₀, l₁, …].
    let mut split = vec![];
    for i in 0..n {
        let span = (block[i] - 1) * dilations[i] as i64 + 1;
        let blocks = (image[i] + pads[i] + pads[n + i] - span) / strides[i] as i64 + 1;
        split.extend([block[i] as usize, blocks as usize]);
    }
    let at = Tensor::from_i64(DType::I64, split, &flat);
    let at = at.map_err(|e| Fail::invalid(format!("{e:?}")))?;
    let at = cx.b.constant(at)?;
    let perm: Vec<usize> = (0..n)
        .map(|i| 2 * i)
        .chain((0..n).map(|i| 2 * i + 1))
        .collect();
    let at = cx.b.transpose(at, &perm)?;
    let elements: i64 = block.iter().product();
    let channels = shape[1].div_exact(&elements.into());
    let channels = channels.ok_or_else(|| Fail::invalid("the blocks do not divide the columns"))?;
    let all = Dim::from(elements) * shape[2].clone();
    let x =
        cx.b.reshape(x, &[shape[0].clone(), channels.clone(), all.clone()])?;
    let at = cx.b.reshape(at, &[Dim::ONE, Dim::ONE, all.clone()])?;
    let at =
        cx.b.broadcast_to(at, &[shape[0].clone(), channels.clone(), all])?;
    let blank = [shape[0].clone(), channels.clone(), Dim::from(total + 1)];
    let blank = cx.b.full(cx.dtype(x), &blank, 0.0)?;
    let op = ScatterElements {
        axis: 2,
        f: ScatterFn::Add,
    };
    let y = cx.b.one(op, &[blank, at, x])?;
    let y = cx.b.slice_axis(y, 2, Dim::ZERO, total.into())?;
    let mut out = vec![shape[0].clone(), channels];
    out.extend(image.iter().map(|&d| Dim::from(d)));
    Ok(vec![cx.b.reshape(y, &out)?])
}

/// Maxima put back where they came from, by indices into the flattened result.
pub(crate) fn max_unpool(cx: &mut Cx) -> Out {
    let (x, at) = (cx.arg(0)?, cx.arg(1)?);
    let shape = cx.shape(x);
    let n = shape.len().saturating_sub(2);
    let sane = |all: &[i64]| all.iter().all(|p| (0..=LARGEST).contains(p));
    let kernel = match cx.ints("kernel_shape")? {
        Some(k) if k.len() == n && n > 0 && sane(k) => k.to_vec(),
        other => return Err(Fail::invalid(format!("`kernel_shape` is {other:?}"))),
    };
    let strides = counts(cx, "strides", n)?;
    let pads = match cx.ints("pads")? {
        None => vec![0; 2 * n],
        Some(p) if p.len() == 2 * n && sane(p) => p.to_vec(),
        Some(p) => return Err(Fail::invalid(format!("`pads` is {p:?} for {n} axes"))),
    };
    let mut whole = shape[..2].to_vec();
    for i in 0..n {
        let grown = (shape[2 + i].clone() - Dim::ONE) * Dim::from(strides[i]);
        let cut = Dim::from(pads[i]) + Dim::from(pads[n + i]);
        whole.push(grown + Dim::from(kernel[i]) - cut);
    }
    let count = Dim::product(&shape);
    let flat = cx.b.reshape(x, std::slice::from_ref(&count))?;
    let at = cx.b.reshape(at, &[count])?;
    let blank = cx.b.full(cx.dtype(x), &[Dim::product(&whole)], 0.0)?;
    let op = ScatterElements {
        axis: 0,
        f: ScatterFn::Set,
    };
    let y = cx.b.one(op, &[blank, at, flat])?;
    let mut y = cx.b.reshape(y, &whole)?;
    if let Some(wanted) = cx.opt(2) {
        let wanted = cx.sizes(wanted)?;
        if wanted.len() != whole.len() {
            return Err(Fail::invalid("the result's shape has another rank"));
        }
        let hi = wanted
            .iter()
            .zip(&whole)
            .map(|(w, h)| w.clone() - h.clone());
        let op = Pad {
            lo: vec![Dim::ZERO; whole.len()],
            hi: hi.collect(),
            mode: PadMode::Constant,
        };
        let zero = cx.like(y, 0.0)?;
        y = cx.b.one(op, &[y, zero])?;
    }
    Ok(vec![y])
}
