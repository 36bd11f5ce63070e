//! GridSample: elements at places that another tensor gives.

use crate::onnx::cx::{Cx, Fail, Out};
use kiln_ir::graph::Value;
use kiln_ir::ops::index::GatherElements;
use kiln_ir::{BinaryFn, CompareFn, DType, Dim, UnaryFn};

type One = Result<Value, Fail>;

/// What lies outside.
#[derive(Clone, Copy, PartialEq)]
enum Outside {
    Zeros,
    Border,
    Reflection,
}

/// A spatial axis of the argument.
struct Axis {
    length: Dim,
    /// The same as `f64[]`.
    extent: Value,
    outside: Outside,
    /// The first and the last element's centres are the ends.
    corners: bool,
}

fn by(cx: &mut Cx, f: BinaryFn, x: Value, c: f64) -> One {
    let c = cx.like(x, c)?;
    Ok(cx.b.binary(f, x, c)?)
}

impl Axis {
    /// From −1 … 1 to elements.
    fn place(&self, cx: &mut Cx, g: Value) -> One {
        let g = by(cx, BinaryFn::Add, g, 1.0)?;
        let less = if self.corners { -1.0 } else { 0.0 };
        let span = by(cx, BinaryFn::Add, self.extent, less)?;
        let p = cx.b.mul(g, span)?;
        let p = by(cx, BinaryFn::Mul, p, 0.5)?;
        match self.corners {
            true => Ok(p),
            false => by(cx, BinaryFn::Sub, p, 0.5),
        }
    }

    /// A place or an index brought inside, as far as the padding does that.
    fn inside(&self, cx: &mut Cx, mut p: Value) -> One {
        if self.outside == Outside::Zeros {
            return Ok(p);
        }
        if self.outside == Outside::Reflection {
            // A triangle wave of twice the span.
            let (low, more) = if self.corners {
                (0.0, -1.0)
            } else {
                (-0.5, 0.0)
            };
            let span = by(cx, BinaryFn::Add, self.extent, more)?;
            let span = by(cx, BinaryFn::Max, span, f64::MIN_POSITIVE)?;
            let twice = by(cx, BinaryFn::Mul, span, 2.0)?;
            let away = by(cx, BinaryFn::Sub, p, low)?;
            let away = cx.b.unary(UnaryFn::Abs, away)?;
            let rest = cx.b.binary(BinaryFn::Rem, away, twice)?;
            let back = cx.b.sub(twice, rest)?;
            let wave = cx.b.binary(BinaryFn::Min, rest, back)?;
            p = by(cx, BinaryFn::Add, wave, low)?;
        }
        self.clamped(cx, p)
    }

    fn clamped(&self, cx: &mut Cx, p: Value) -> One {
        let last = by(cx, BinaryFn::Sub, self.extent, 1.0)?;
        let p = cx.b.binary(BinaryFn::Min, p, last)?;
        by(cx, BinaryFn::Max, p, 0.0)
    }

    /// An index, and the truth that it lies inside where zeros are outside.
    fn index(&self, cx: &mut Cx, at: Value) -> Result<(Value, Option<Value>), Fail> {
        let kept = match self.outside {
            Outside::Zeros => {
                let (zero, end) = (cx.like(at, 0.0)?, self.extent);
                let low = cx.b.compare(CompareFn::Ge, at, zero)?;
                let high = cx.b.compare(CompareFn::Lt, at, end)?;
                Some(cx.b.binary(BinaryFn::And, low, high)?)
            }
            _ => None,
        };
        let at = self.inside(cx, at)?;
        // NaN and what is far outside must not become an index.
        let at = self.clamped(cx, at)?;
        Ok((cx.b.cast(at, DType::I64)?, kept))
    }
}

/// The neighbours of a place along an axis: indices and weights.
fn taps(cx: &mut Cx, mode: &str, p: Value) -> Result<Vec<(Value, Option<Value>)>, Fail> {
    match mode {
        "nearest" => Ok(vec![(cx.b.unary(UnaryFn::Round, p)?, None)]),
        "linear" | "bilinear" => {
            let floor = cx.b.unary(UnaryFn::Floor, p)?;
            let part = cx.b.sub(p, floor)?;
            let one = cx.like(part, 1.0)?;
            let rest = cx.b.sub(one, part)?;
            let next = by(cx, BinaryFn::Add, floor, 1.0)?;
            Ok(vec![(floor, Some(rest)), (next, Some(part))])
        }
        "cubic" | "bicubic" => {
            let floor = cx.b.unary(UnaryFn::Floor, p)?;
            let part = cx.b.sub(p, floor)?;
            let mut out = vec![];
            for i in -1..=2 {
                let d = by(cx, BinaryFn::Sub, part, i as f64)?;
                let d = cx.b.unary(UnaryFn::Abs, d)?;
                // Keys' cubic with a = −0.75, near and far.
                let c = match i {
                    0 | 1 => [1.25, -2.25, 0.0, 1.0],
                    _ => [-0.75, 3.75, -6.0, 3.0],
                };
                let mut w = by(cx, BinaryFn::Mul, d, c[0])?;
                for &c in &c[1..3] {
                    w = by(cx, BinaryFn::Add, w, c)?;
                    w = cx.b.mul(w, d)?;
                }
                let w = by(cx, BinaryFn::Add, w, c[3])?;
                out.push((by(cx, BinaryFn::Add, floor, i as f64)?, Some(w)));
            }
            Ok(out)
        }
        other => Err(Fail::invalid(format!("there is no mode `{other}`"))),
    }
}

fn combine(
    cx: &mut Cx,
    f: BinaryFn,
    a: Option<Value>,
    b: Option<Value>,
) -> Result<Option<Value>, Fail> {
    match (a, b) {
        (Some(a), Some(b)) => Ok(Some(cx.b.binary(f, a, b)?)),
        (a, b) => Ok(a.or(b)),
    }
}

/// Axes that are sampled together: each multiplies the taps by up to four.
const MOST_AXES: usize = 3;

pub(crate) fn grid_sample(cx: &mut Cx) -> Out {
    let (x, grid) = (cx.arg(0)?, cx.arg(1)?);
    let (shape, places) = (cx.shape(x), cx.shape(grid));
    let n = shape.len().saturating_sub(2);
    if n == 0 || places.len() != n + 2 || places[n + 1] != Dim::from(n) {
        return Err(Fail::invalid(format!("a grid of {places:?} over {n} axes")));
    }
    if n > MOST_AXES {
        return Err(Fail::form(format!("sampling over {n} axes")));
    }
    let mode = cx.text("mode", "linear")?;
    let outside = match cx.text("padding_mode", "zeros")? {
        "zeros" => Outside::Zeros,
        "border" => Outside::Border,
        "reflection" => Outside::Reflection,
        other => return Err(Fail::invalid(format!("there is no padding_mode `{other}`"))),
    };
    let corners = cx.flag("align_corners", false)?;
    let count = Dim::product(&places[1..=n]);
    let batch = shape[0].clone();
    let grid = cx.b.cast(grid, DType::F64)?;
    // Every combination of the axes' taps: an index into the flattened axes, a
    // weight, and whether it is inside.
    let mut all: Vec<(Option<Value>, Option<Value>, Option<Value>)> = vec![(None, None, None)];
    for i in 0..n {
        let length = shape[2 + i].clone();
        let extent = cx.scalar_dim(length.clone())?;
        let axis = Axis {
            extent: cx.b.cast(extent, DType::F64)?,
            length,
            outside,
            corners,
        };
        // The grid names the last axis first.
        let g =
            cx.b.slice_axis(grid, n + 1, Dim::from(n - 1 - i), Dim::ONE)?;
        let g = cx.b.reshape(g, &[batch.clone(), Dim::ONE, count.clone()])?;
        let p = axis.place(cx, g)?;
        let p = axis.inside(cx, p)?;
        let stride = cx.scalar_dim(axis.length.clone())?;
        let mut next = vec![];
        for (at, w) in taps(cx, mode, p)? {
            let (at, kept) = axis.index(cx, at)?;
            for &(base, weight, inside) in &all {
                let at = match base {
                    None => at,
                    Some(base) => {
                        let base = cx.b.mul(base, stride)?;
                        cx.b.add(base, at)?
                    }
                };
                let weight = combine(cx, BinaryFn::Mul, weight, w)?;
                let inside = combine(cx, BinaryFn::And, inside, kept)?;
                next.push((Some(at), weight, inside));
            }
        }
        all = next;
    }
    let dtype = cx.dtype(x);
    let computes = mode != "nearest";
    let wide = if computes && !matches!(dtype, DType::F32 | DType::F64) {
        DType::F32
    } else {
        dtype
    };
    let flat = cx.b.cast(x, wide)?;
    let flat = cx.b.reshape(
        flat,
        &[batch.clone(), shape[1].clone(), Dim::product(&shape[2..])],
    )?;
    let whole = [batch, shape[1].clone(), count];
    let mut sum = None;
    for (at, w, inside) in all {
        let at = at.ok_or_else(|| Fail::invalid("a grid over no axes"))?;
        let at = cx.b.broadcast_to(at, &whole)?;
        let mut v = cx.b.one(GatherElements { axis: 2 }, &[flat, at])?;
        if let Some(inside) = inside {
            let zero = cx.like(v, 0.0)?;
            v = cx.b.select(inside, v, zero)?;
        }
        if let Some(w) = w {
            let w = cx.b.cast(w, wide)?;
            v = cx.b.mul(v, w)?;
        }
        sum = combine(cx, BinaryFn::Add, sum, Some(v))?;
    }
    let y = sum.ok_or_else(|| Fail::invalid("a grid over no axes"))?;
    let mut out = vec![whole[0].clone(), whole[1].clone()];
    out.extend_from_slice(&places[1..=n]);
    let y = cx.b.reshape(y, &out)?;
    Ok(vec![cx.b.cast(y, dtype)?])
}

/// The grid of places that an affine map of the result's own places gives.
pub(crate) fn affine_grid(cx: &mut Cx) -> Out {
    let (theta, size) = (cx.arg(0)?, cx.arg(1)?);
    let size = cx.sizes(size)?;
    let n = size.len().saturating_sub(2);
    if n == 0 || cx.ranked(theta, 3)?[1..] != [Dim::from(n), Dim::from(n + 1)] {
        return Err(Fail::invalid(format!("a map for {n} axes")));
    }
    let corners = cx.flag("align_corners", false)?;
    let space = size[2..].to_vec();
    let mut sum: Option<Value> = None;
    let mut wide = space.clone();
    wide.insert(0, size[0].clone());
    // Column k of the map belongs to the axis that is the k-th from the end; the
    // last column is added as it is.
    for k in 0..=n {
        let row = cx.b.slice_axis(theta, 2, Dim::from(k), Dim::ONE)?;
        let mut shape = vec![Dim::ONE; n + 2];
        (shape[0], shape[n + 1]) = (size[0].clone(), Dim::from(n));
        let mut term = cx.b.reshape(row, &shape)?;
        if k < n {
            let axis = n - 1 - k;
            let mut line = vec![Dim::ONE; n + 1];
            line[axis] = space[axis].clone();
            let op = kiln_ir::ops::source::Iota {
                shape: line,
                axis,
                dtype: DType::F64,
            };
            let i = cx.b.one(op, &[])?;
            let extent = cx.scalar_dim(space[axis].clone())?;
            let extent = cx.b.cast(extent, DType::F64)?;
            let p = match corners {
                true => {
                    let span = by(cx, BinaryFn::Sub, extent, 1.0)?;
                    let twice = by(cx, BinaryFn::Mul, i, 2.0)?;
                    cx.b.div(twice, span)?
                }
                false => {
                    let odd = by(cx, BinaryFn::Mul, i, 2.0)?;
                    let odd = by(cx, BinaryFn::Add, odd, 1.0)?;
                    cx.b.div(odd, extent)?
                }
            };
            let p = by(cx, BinaryFn::Sub, p, 1.0)?;
            let p = cx.b.cast(p, cx.dtype(theta))?;
            term = cx.b.mul(term, p)?;
        }
        sum = combine(cx, BinaryFn::Add, sum, Some(term))?;
    }
    let y = sum.ok_or_else(|| Fail::invalid("a map of no axes"))?;
    wide.push(Dim::from(n));
    Ok(vec![cx.b.broadcast_to(y, &wide)?])
}
