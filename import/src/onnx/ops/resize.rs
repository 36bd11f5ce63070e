//! Resampling: one axis at a time, each result element a weighted sum of a few
//! neighbours whose places follow from its own.

use crate::diagnostic::code;
use crate::onnx::cx::{Cx, Fail, Out};
use kiln_ir::graph::Value;
use kiln_ir::ops::source::Iota;
use kiln_ir::{BinaryFn, CompareFn, DType, Dim, UnaryFn};

type One = Result<Value, Fail>;

/// How values are found between the points.
#[derive(Clone, Copy, PartialEq)]
enum Mode {
    Nearest,
    Linear,
    Cubic,
}

/// The attributes.
struct How<'m> {
    mode: Mode,
    nearest: &'m str,
    coordinates: &'m str,
    cubic: f64,
    antialias: bool,
    exclude_outside: bool,
    extrapolation: f64,
}

/// How Resize of opset 10 rounds, which names no mode: up where the axis shrinks,
/// down where it grows (as ONNX's test data and ONNX Runtime have it).
const CORNER: &str = "";

/// What becomes of one axis.
struct Axis {
    axis: usize,
    /// Result extent over argument extent, where it is a number.
    scale: Option<f64>,
    length: Dim,
    /// Start and end of the region, as shares of the axis.
    roi: (f64, f64),
}

fn mode(text: &str) -> Result<Mode, Fail> {
    match text {
        "nearest" => Ok(Mode::Nearest),
        "linear" | "bilinear" => Ok(Mode::Linear),
        "cubic" => Ok(Mode::Cubic),
        other => Err(Fail::invalid(format!("there is no mode `{other}`"))),
    }
}

/// Upsample, and Resize of opset 10: scales alone, places counted from the corner.
fn by_scales(cx: &mut Cx, scales: Vec<f64>) -> Out {
    let how = How {
        mode: mode(cx.text("mode", "nearest")?)?,
        nearest: CORNER,
        coordinates: "asymmetric",
        cubic: -0.75,
        antialias: false,
        exclude_outside: false,
        extrapolation: 0.0,
    };
    let x = cx.arg(0)?;
    let axes: Vec<usize> = (0..cx.rank(x)).collect();
    let plan = scaled(cx, x, &axes, &scales)?;
    resample(cx, x, &plan, &how)
}

pub(crate) fn upsample(cx: &mut Cx) -> Out {
    let scales = match cx.floats("scales")? {
        Some(s) => s.iter().map(|&s| s.into()).collect(),
        None => numbers(cx, cx.arg(1)?, "the scales")?,
    };
    by_scales(cx, scales)
}

pub(crate) fn resize(cx: &mut Cx) -> Out {
    let x = cx.arg(0)?;
    if cx.opset < 11 {
        let scales = numbers(cx, cx.arg(1)?, "the scales")?;
        return by_scales(cx, scales);
    }
    let how = How {
        mode: mode(cx.text("mode", "nearest")?)?,
        nearest: match cx.text("nearest_mode", "round_prefer_floor")? {
            CORNER => return Err(Fail::invalid("the nearest_mode is empty")),
            given => given,
        },
        coordinates: cx.text("coordinate_transformation_mode", "half_pixel")?,
        cubic: cx.float("cubic_coeff_a", -0.75)?,
        antialias: cx.flag("antialias", false)?,
        exclude_outside: cx.flag("exclude_outside", false)?,
        extrapolation: cx.float("extrapolation_value", 0.0)?,
    };
    let rank = cx.rank(x);
    let axes: Vec<usize> = match cx.ints("axes")? {
        None => (0..rank).collect(),
        Some(a) => (a.iter().map(|&a| cx.axis(a, rank))).collect::<Result<_, _>>()?,
    };
    let empty = |cx: &Cx, v: Value| cx.shape(v).first() == Some(&Dim::ZERO);
    let given = |cx: &Cx, i: usize| cx.opt(i).filter(|&v| !empty(cx, v));
    let mut plan = match (given(cx, 2), given(cx, 3)) {
        (Some(scales), _) => {
            let scales = numbers(cx, scales, "the scales")?;
            scaled(cx, x, &axes, &scales)?
        }
        (None, Some(sizes)) => sized(cx, x, &axes, sizes)?,
        (None, None) => return Err(Fail::invalid("neither scales nor sizes are given")),
    };
    if how.coordinates == "tf_crop_and_resize" {
        let roi = given(cx, 1).ok_or_else(|| Fail::invalid("the region is missing"))?;
        let roi = numbers(cx, roi, "the region")?;
        if roi.len() != 2 * plan.len() {
            return Err(Fail::invalid(format!("a region of {} numbers", roi.len())));
        }
        for (i, a) in plan.iter_mut().enumerate() {
            a.roi = (roi[i], roi[axes.len() + i]);
        }
    }
    resample(cx, x, &plan, &how)
}

fn unknown(what: &str) -> Fail {
    Fail::new(
        code::DATA_SHAPE,
        format!("{what} must be known when the model is compiled"),
    )
    .help("if an input holds them, fix it with --freeze NAME=FILE.npy; or export the model with them as constants")
}

/// Numbers that must be known while importing.
fn numbers(cx: &Cx, v: Value, what: &str) -> Result<Vec<f64>, Fail> {
    if let Some(t) = cx.literal(v) {
        return Ok((0..t.len()).map(|i| t.get_f64(i)).collect());
    }
    Err(unknown(what))
}

/// `⌊length · scale⌋`, exact for every scale that is an f32.
fn grown(length: &Dim, scale: f64) -> Result<Dim, Fail> {
    let mut by = (scale, 1i64);
    while by.0.fract() != 0.0 && by.1 < 1 << 30 {
        by = (by.0 * 2.0, by.1 * 2);
    }
    match scale.is_finite() && scale > 0.0 && by.0 < 2f64.powi(40) {
        true => Ok((length.clone() * Dim::from(by.0 as i64)).floor_div(&by.1.into())),
        false => Err(Fail::invalid(format!("a scale of {scale}"))),
    }
}

fn scaled(cx: &Cx, x: Value, axes: &[usize], scales: &[f64]) -> Result<Vec<Axis>, Fail> {
    if scales.len() != axes.len() {
        let message = format!("{} scales for {} axes", scales.len(), axes.len());
        return Err(Fail::invalid(message));
    }
    let one = |(&axis, &scale): (&usize, &f64)| {
        Ok(Axis {
            axis,
            scale: Some(scale),
            length: grown(&cx.extent(x, axis)?, scale)?,
            roi: (0.0, 1.0),
        })
    };
    axes.iter().zip(scales).map(one).collect()
}

fn sized(cx: &mut Cx, x: Value, axes: &[usize], sizes: Value) -> Result<Vec<Axis>, Fail> {
    let sizes = cx.sizes(sizes)?;
    if sizes.len() != axes.len() {
        let message = format!("{} sizes for {} axes", sizes.len(), axes.len());
        return Err(Fail::invalid(message));
    }
    let shape = cx.shape(x);
    let ratio = |i: usize| {
        let (to, from) = (sizes[i].as_const()?, shape[axes[i]].as_const()?);
        (from > 0).then(|| to as f64 / from as f64)
    };
    let ratios: Vec<Option<f64>> = (0..axes.len()).map(ratio).collect();
    let pick: fn(f64, f64) -> f64 = match cx.text("keep_aspect_ratio_policy", "stretch")? {
        "stretch" => {
            let plan = (0..axes.len()).map(|i| Axis {
                axis: axes[i],
                scale: ratios[i],
                length: sizes[i].clone(),
                roi: (0.0, 1.0),
            });
            return Ok(plan.collect());
        }
        "not_larger" => f64::min,
        "not_smaller" => f64::max,
        other => return Err(Fail::invalid(format!("there is no policy `{other}`"))),
    };
    let known: Option<Vec<f64>> = ratios.into_iter().collect();
    let scale = known.and_then(|all| all.into_iter().reduce(pick));
    let scale =
        scale.ok_or_else(|| unknown("the extents of a resampling that keeps the aspect ratio"))?;
    let plan = axes.iter().map(|&axis| {
        let from = shape[axis].as_const().unwrap_or(0) as f64;
        Axis {
            axis,
            scale: Some(scale),
            length: Dim::from((scale * from + 0.5) as i64),
            roi: (0.0, 1.0),
        }
    });
    Ok(plan.collect())
}

fn resample(cx: &mut Cx, x: Value, plan: &[Axis], how: &How) -> Out {
    let dtype = cx.dtype(x);
    let mut y = x;
    let computes = how.mode != Mode::Nearest;
    if computes && !matches!(dtype, DType::F32 | DType::F64) {
        y = cx.b.cast(y, DType::F32)?;
    }
    for a in plan {
        let same = a.scale == Some(1.0) && a.length == cx.shape(y)[a.axis];
        if same && a.roi == (0.0, 1.0) {
            continue;
        }
        y = match repeats(a, how) {
            Some(n) => repeat(cx, y, a.axis, n)?,
            None => along(cx, y, a, how)?,
        };
    }
    if dtype.is_int() && computes {
        y = cx.b.unary(UnaryFn::Round, y)?;
    }
    Ok(vec![cx.b.cast(y, dtype)?])
}

/// How often each element is repeated, where the nearest one is taken from a
/// whole number of times as many.
fn repeats(a: &Axis, how: &How) -> Option<i64> {
    let n = a
        .scale
        .filter(|s| s.fract() == 0.0 && (1.0..=64.0).contains(s))? as i64;
    let plain = match how.coordinates {
        "asymmetric" => how.nearest == "floor" || how.nearest == CORNER,
        // (o + ½)/n − ½ rounds to ⌊o/n⌋ for the rounding to the nearest.
        "half_pixel" | "pytorch_half_pixel" => how.nearest == "round_prefer_ceil" || n % 2 == 1,
        _ => false,
    };
    let rounds = how.nearest.starts_with("round") || how.coordinates == "asymmetric";
    (how.mode == Mode::Nearest && plain && rounds && n > 1).then_some(n)
}

fn repeat(cx: &mut Cx, x: Value, axis: usize, n: i64) -> One {
    let shape = cx.shape(x);
    let (mut split, mut wide, mut flat) = (shape.clone(), shape.clone(), shape);
    split.insert(axis + 1, Dim::ONE);
    wide.insert(axis + 1, Dim::from(n));
    flat[axis] = flat[axis].clone() * Dim::from(n);
    let x = cx.b.reshape(x, &split)?;
    let x = cx.b.broadcast_to(x, &wide)?;
    Ok(cx.b.reshape(x, &flat)?)
}

/// Arithmetic on f64 with numbers.
impl Cx<'_, '_, '_> {
    fn by(&mut self, f: BinaryFn, a: Value, c: f64) -> One {
        let c = self.like(a, c)?;
        Ok(self.b.binary(f, a, c)?)
    }

    fn extent_f64(&mut self, d: &Dim) -> One {
        let v = self.scalar_dim(d.clone())?;
        Ok(self.b.cast(v, DType::F64)?)
    }
}

/// The place in the argument of each result index, `f64[length]`.
fn places(cx: &mut Cx, from: &Dim, a: &Axis, how: &How) -> One {
    let op = Iota {
        shape: vec![a.length.clone()],
        axis: 0,
        dtype: DType::F64,
    };
    let o = cx.b.one(op, &[])?;
    let (input, whole) = (cx.extent_f64(from)?, cx.extent_f64(&a.length)?);
    let scale = match a.scale {
        Some(s) => cx.b.scalar(DType::F64, s)?,
        None => cx.b.div(whole, input)?,
    };
    // The extent before it was rounded down.
    let exact = match a.scale {
        Some(_) => cx.b.mul(scale, input)?,
        None => whole,
    };
    let one = cx.b.scalar(DType::F64, 1.0)?;
    let single = cx.b.compare(CompareFn::Eq, exact, one)?;
    let last = cx.by(BinaryFn::Sub, input, 1.0)?;
    let steps = cx.by(BinaryFn::Sub, exact, 1.0)?;
    let steps = cx.b.select(single, one, steps)?;
    let half_pixel = |cx: &mut Cx| -> One {
        let p = cx.by(BinaryFn::Add, o, 0.5)?;
        let p = cx.b.div(p, scale)?;
        cx.by(BinaryFn::Sub, p, 0.5)
    };
    match how.coordinates {
        "asymmetric" => Ok(cx.b.div(o, scale)?),
        "half_pixel" => half_pixel(cx),
        // Of opsets 11 and 12.
        "tf_half_pixel_for_nn" => {
            let p = cx.by(BinaryFn::Add, o, 0.5)?;
            Ok(cx.b.div(p, scale)?)
        }
        "pytorch_half_pixel" => {
            let p = half_pixel(cx)?;
            let first = cx.b.scalar(DType::F64, 0.0)?;
            Ok(cx.b.select(single, first, p)?)
        }
        "half_pixel_symmetric" => {
            let p = half_pixel(cx)?;
            let adjusted = cx.b.div(whole, exact)?;
            let missing = cx.b.sub(one, adjusted)?;
            let centre = cx.by(BinaryFn::Mul, input, 0.5)?;
            let offset = cx.b.mul(centre, missing)?;
            Ok(cx.b.add(offset, p)?)
        }
        "align_corners" => {
            let p = cx.b.mul(o, last)?;
            let p = cx.b.div(p, steps)?;
            let zero = cx.b.scalar(DType::F64, 0.0)?;
            Ok(cx.b.select(single, zero, p)?)
        }
        "tf_crop_and_resize" => {
            let (start, end) = a.roi;
            let span = cx.by(BinaryFn::Mul, last, end - start)?;
            let p = cx.b.mul(o, span)?;
            let p = cx.b.div(p, steps)?;
            let middle = cx.by(BinaryFn::Mul, span, 0.5)?;
            let p = cx.b.select(single, middle, p)?;
            let first = cx.by(BinaryFn::Mul, last, start)?;
            Ok(cx.b.add(p, first)?)
        }
        other => Err(Fail::invalid(format!(
            "there is no coordinate_transformation_mode `{other}`"
        ))),
    }
}

/// One axis resampled.
fn along(cx: &mut Cx, x: Value, a: &Axis, how: &How) -> One {
    let from = cx.extent(x, a.axis)?;
    let p = places(cx, &from, a, how)?;
    let floor = cx.b.unary(UnaryFn::Floor, p)?;
    let part = cx.b.sub(p, floor)?;
    let last = cx.extent_f64(&(from - Dim::ONE))?;
    let y = match how.mode {
        Mode::Nearest => {
            let up = match how.nearest {
                "floor" => None,
                CORNER if a.scale.is_none_or(|s| s >= 1.0) => None,
                CORNER => Some((CompareFn::Gt, 0.0)),
                "ceil" => Some((CompareFn::Gt, 0.0)),
                "round_prefer_floor" => Some((CompareFn::Gt, 0.5)),
                "round_prefer_ceil" => Some((CompareFn::Ge, 0.5)),
                other => return Err(Fail::invalid(format!("there is no nearest_mode `{other}`"))),
            };
            let at = match up {
                None => floor,
                Some((f, from)) => {
                    let from = cx.like(part, from)?;
                    let up = cx.b.compare(f, part, from)?;
                    let next = cx.by(BinaryFn::Add, floor, 1.0)?;
                    cx.b.select(up, next, floor)?
                }
            };
            taken(cx, x, a.axis, at, last)?
        }
        _ => weighted(cx, x, a, how, floor, part, last)?,
    };
    if how.coordinates != "tf_crop_and_resize" {
        return Ok(y);
    }
    let zero = cx.like(p, 0.0)?;
    let low = cx.b.compare(CompareFn::Lt, p, zero)?;
    let high = cx.b.compare(CompareFn::Gt, p, last)?;
    let outside = cx.b.binary(BinaryFn::Or, low, high)?;
    let outside = on_axis(cx, outside, a.axis, y)?;
    let fill = cx.like(y, how.extrapolation)?;
    Ok(cx.b.select(outside, fill, y)?)
}

/// The elements at these places; those beyond an end are the end.
fn taken(cx: &mut Cx, x: Value, axis: usize, at: Value, last: Value) -> One {
    let at = cx.b.binary(BinaryFn::Min, at, last)?;
    let at = cx.by(BinaryFn::Max, at, 0.0)?;
    let at = cx.b.cast(at, DType::I64)?;
    Ok(cx.b.gather(x, at, axis)?)
}

/// `[n]` so that it broadcasts along one axis of `y`.
fn on_axis(cx: &mut Cx, v: Value, axis: usize, y: Value) -> One {
    let mut shape = vec![Dim::ONE; cx.rank(y) - axis];
    shape[0] = cx.extent(v, 0)?;
    Ok(cx.b.reshape(v, &shape)?)
}

/// Sums of neighbours by the distance from the place.
fn weighted(
    cx: &mut Cx,
    x: Value,
    a: &Axis,
    how: &How,
    floor: Value,
    part: Value,
    last: Value,
) -> One {
    // When it shrinks, antialiasing widens the filter.
    let squeeze = match (how.antialias, a.scale) {
        (false, _) => 1.0,
        (true, Some(s)) => s.min(1.0),
        (true, None) => {
            return Err(unknown("the extents of an antialiased resampling"));
        }
    };
    let reach = if how.mode == Mode::Linear { 1.0 } else { 2.0 };
    let first = (-reach / squeeze).floor() as i64 + 1;
    let (mut taps, mut total) = (vec![], None);
    for i in first..=1 - first {
        let distance = cx.like(part, i as f64)?;
        let distance = cx.b.sub(distance, part)?;
        let distance = cx.by(BinaryFn::Mul, distance, squeeze)?;
        let distance = cx.b.unary(UnaryFn::Abs, distance)?;
        let at = cx.by(BinaryFn::Add, floor, i as f64)?;
        let mut w = filter(cx, distance, how)?;
        if how.exclude_outside {
            let zero = cx.like(at, 0.0)?;
            let low = cx.b.compare(CompareFn::Lt, at, zero)?;
            let high = cx.b.compare(CompareFn::Gt, at, last)?;
            let outside = cx.b.binary(BinaryFn::Or, low, high)?;
            w = cx.b.select(outside, zero, w)?;
        }
        total = Some(match total {
            None => w,
            Some(t) => cx.b.add(t, w)?,
        });
        taps.push((at, w));
    }
    let normalize = how.exclude_outside || squeeze < 1.0;
    let mut sum = None;
    for (at, w) in taps {
        let w = match total.filter(|_| normalize) {
            Some(t) => cx.b.div(w, t)?,
            None => w,
        };
        let v = taken(cx, x, a.axis, at, last)?;
        let w = cx.b.cast(w, cx.dtype(x))?;
        let w = on_axis(cx, w, a.axis, x)?;
        let v = cx.b.mul(v, w)?;
        sum = Some(match sum {
            None => v,
            Some(s) => cx.b.add(s, v)?,
        });
    }
    sum.ok_or_else(|| Fail::invalid("a filter without taps"))
}

/// The weight at a distance: a triangle, or the cubic of Keys (1981).
fn filter(cx: &mut Cx, d: Value, how: &How) -> One {
    if how.mode == Mode::Linear {
        let one = cx.like(d, 1.0)?;
        let w = cx.b.sub(one, d)?;
        return cx.by(BinaryFn::Max, w, 0.0);
    }
    let a = how.cubic;
    // Polynomials by Horner's rule, the highest power first.
    let polynomial = |cx: &mut Cx, c: [f64; 4]| -> One {
        let mut y = cx.by(BinaryFn::Mul, d, c[0])?;
        for &c in &c[1..3] {
            y = cx.by(BinaryFn::Add, y, c)?;
            y = cx.b.mul(y, d)?;
        }
        cx.by(BinaryFn::Add, y, c[3])
    };
    let near = polynomial(cx, [a + 2.0, -(a + 3.0), 0.0, 1.0])?;
    let far = polynomial(cx, [a, -5.0 * a, 8.0 * a, -4.0 * a])?;
    let (one, two, zero) = (cx.like(d, 1.0)?, cx.like(d, 2.0)?, cx.like(d, 0.0)?);
    let is_near = cx.b.compare(CompareFn::Le, d, one)?;
    let is_far = cx.b.compare(CompareFn::Lt, d, two)?;
    let far = cx.b.select(is_far, far, zero)?;
    Ok(cx.b.select(is_near, near, far)?)
}
