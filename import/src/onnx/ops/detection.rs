//! Detection: the choice of boxes.

use crate::onnx::cx::{Cx, Fail, Out};
use kiln_ir::graph::Value;
use kiln_ir::ops::control::Loop;
use kiln_ir::ops::index::NonZero;
use kiln_ir::ops::reduce::ArgReduce;
use kiln_ir::ops::source::Iota;
use kiln_ir::{BinaryFn, Builder, CompareFn, DType, Dim, ReduceFn, Tensor, TensorType, TypeError};

type One = Result<Value, Fail>;
type Typed = Result<Value, TypeError>;

/// The corners of all boxes: low and high along two axes, each `[batch, 1, n]`.
struct Corners {
    low: [Value; 2],
    high: [Value; 2],
}

fn corners(cx: &mut Cx, boxes: Value) -> Result<Corners, Fail> {
    let shape = cx.ranked(boxes, 3)?;
    let line = [shape[0].clone(), Dim::ONE, shape[1].clone()];
    let mut part = |i: i64| -> One {
        let v = cx.b.slice_axis(boxes, 2, i.into(), Dim::ONE)?;
        Ok(cx.b.reshape(v, &line)?)
    };
    let parts = [part(0)?, part(1)?, part(2)?, part(3)?];
    let (mut low, mut high) = (vec![], vec![]);
    for k in 0..2 {
        // Two corners in any order, or the centre and the size.
        let (a, b) = (parts[k], parts[k + 2]);
        let (l, h) = match cx.flag("center_point_box", false)? {
            false => (
                cx.b.binary(BinaryFn::Min, a, b)?,
                cx.b.binary(BinaryFn::Max, a, b)?,
            ),
            true => {
                let two = cx.like(b, 2.0)?;
                let half = cx.b.div(b, two)?;
                (cx.b.sub(a, half)?, cx.b.add(a, half)?)
            }
        };
        low.push(l);
        high.push(h);
    }
    Ok(Corners {
        low: [low[0], low[1]],
        high: [high[0], high[1]],
    })
}

impl Corners {
    /// The truth, for each box, that it overlaps the chosen one (`chosen`: true
    /// at its place) by more than the threshold.
    fn overlap(&self, b: &mut Builder, chosen: Value, threshold: Value) -> Typed {
        let mut only = |v: Value| -> Typed {
            let zero = b.scalar_like(v, 0.0)?;
            let v = b.select(chosen, v, zero)?;
            b.reduce(ReduceFn::Sum, v, &[2], true)
        };
        let mut own = vec![];
        for k in 0..2 {
            own.push((only(self.low[k])?, only(self.high[k])?));
        }
        let zero = b.scalar_like(self.low[0], 0.0)?;
        let (mut shared, mut area, mut area_own, mut meets) = (None, None, None, None);
        let times = |b: &mut Builder, a: &mut Option<Value>, v: Value| -> Result<(), TypeError> {
            *a = Some(match *a {
                None => v,
                Some(a) => b.mul(a, v)?,
            });
            Ok(())
        };
        for (k, &(own_low, own_high)) in own.iter().enumerate() {
            let l = b.binary(BinaryFn::Max, self.low[k], own_low)?;
            let h = b.binary(BinaryFn::Min, self.high[k], own_high)?;
            let common = b.sub(h, l)?;
            let some = b.compare(CompareFn::Gt, common, zero)?;
            meets = Some(match meets {
                None => some,
                Some(m) => b.binary(BinaryFn::And, m, some)?,
            });
            times(b, &mut shared, common)?;
            let side = b.sub(self.high[k], self.low[k])?;
            times(b, &mut area, side)?;
            let side = b.sub(own_high, own_low)?;
            times(b, &mut area_own, side)?;
        }
        let (Some(shared), Some(area), Some(area_own), Some(meets)) =
            (shared, area, area_own, meets)
        else {
            return Err(TypeError("a box has two axes".into()));
        };
        let union = b.add(area, area_own)?;
        let union = b.sub(union, shared)?;
        let ratio = b.div(shared, union)?;
        let over = b.compare(CompareFn::Gt, ratio, threshold)?;
        b.binary(BinaryFn::And, over, meets)
    }
}

/// A scalar argument in a type, or a default.
fn scalar(cx: &mut Cx, i: usize, dtype: DType) -> Result<Option<Value>, Fail> {
    match cx.opt(i) {
        None => Ok(None),
        Some(v) => {
            let v = cx.b.reshape(v, &[])?;
            Ok(Some(cx.b.cast(v, dtype)?))
        }
    }
}

/// The best box of each class is taken and those that it overlaps are struck out,
/// until none is left or there are enough; all classes advance together.
pub(crate) fn non_max_suppression(cx: &mut Cx) -> Out {
    let (boxes, scores) = (cx.arg(0)?, cx.arg(1)?);
    let shape = cx.shape(scores);
    let [batch, classes, n] = &shape[..] else {
        return Err(Fail::invalid(format!("scores of rank {}", shape.len())));
    };
    let dtype = cx.dtype(scores);
    let boxes = corners(cx, boxes)?;
    let zero = cx.b.constant(Tensor::scalar_i64(DType::I64, 0))?;
    let most = scalar(cx, 2, DType::I64)?.unwrap_or(zero);
    let count = cx.scalar_dim(n.clone())?;
    let most = cx.b.binary(BinaryFn::Min, most, count)?;
    let trip = cx.b.binary(BinaryFn::Max, most, zero)?;
    let threshold = match scalar(cx, 3, dtype)? {
        Some(t) => t,
        None => cx.like(scores, 0.0)?,
    };
    let struck = cx.like(scores, f64::NEG_INFINITY)?;
    let start = match scalar(cx, 4, dtype)? {
        None => scores,
        Some(least) => {
            let good = cx.b.compare(CompareFn::Gt, scores, least)?;
            cx.b.select(good, scores, struck)?
        }
    };

    let region = cx.b.graph.add_region();
    let index = TensorType::scalar(DType::I64);
    cx.b.graph.add_region_param(region, index);
    let ty = cx.ty(start);
    let left = cx.b.graph.add_region_param(region, ty);
    let yielded = cx.b.in_region(region, |b| {
        let best = b.reduce(ReduceFn::Max, left, &[2], true)?;
        let found = b.compare(CompareFn::Gt, best, struck)?;
        let op = ArgReduce {
            largest: true,
            axis: 2,
            keep: true,
            last: false,
        };
        let at = b.one(op, &[left])?;
        let op = Iota {
            shape: vec![Dim::ONE, Dim::ONE, n.clone()],
            axis: 2,
            dtype: DType::I64,
        };
        let place = b.one(op, &[])?;
        let chosen = b.compare(CompareFn::Eq, place, at)?;
        let over = boxes.overlap(b, chosen, threshold)?;
        let gone = b.binary(BinaryFn::Or, over, chosen)?;
        let next = b.select(gone, struck, left)?;
        let some = b.cast(found, DType::I32)?;
        let some = b.reduce(ReduceFn::Max, some, &[0, 1, 2], false)?;
        let none = b.scalar_like(some, 0.0)?;
        let go = b.compare(CompareFn::Gt, some, none)?;
        let flat = [batch.clone(), classes.clone()];
        let (at, found) = (b.reshape(at, &flat)?, b.reshape(found, &flat)?);
        let found = b.cast(found, DType::U8)?;
        Ok::<_, TypeError>(vec![go, next, at, found])
    })?;
    cx.b.graph.region_mut(region).results = yielded;
    let symbol = cx.b.graph.fresh_symbol("rounds");
    let op = Loop {
        carried: 1,
        symbol: Some(symbol.clone()),
        sizes: vec![],
    };
    let go = cx.b.constant(Tensor::scalar_i64(DType::Bool, 1))?;
    let out =
        cx.b.push_with_regions(op, &[trip, go, start], vec![region])?;
    let (at, found) = (out[1], out[2]);
    let (at, found) = (
        cx.b.transpose(at, &[1, 2, 0])?,
        cx.b.transpose(found, &[1, 2, 0])?,
    );

    // By batch, class and the order in which they were taken.
    let kept = cx.b.graph.fresh_symbol("boxes");
    let op = NonZero {
        symbol: kept.clone(),
    };
    let where_ = cx.b.one(op, &[found])?;
    let kept = Dim::sym(kept);
    let row = |cx: &mut Cx, i: i64| -> One {
        let v = cx.b.slice_axis(where_, 0, i.into(), Dim::ONE)?;
        Ok(cx.b.reshape(v, std::slice::from_ref(&kept))?)
    };
    let (b, c, k) = (row(cx, 0)?, row(cx, 1)?, row(cx, 2)?);
    let (classes, rounds) = (
        cx.scalar_dim(classes.clone())?,
        cx.scalar_dim(Dim::sym(symbol))?,
    );
    let p = cx.b.mul(b, classes)?;
    let p = cx.b.add(p, c)?;
    let p = cx.b.mul(p, rounds)?;
    let p = cx.b.add(p, k)?;
    let flat = Dim::product(&cx.shape(at));
    let at = cx.b.reshape(at, &[flat])?;
    let chosen = cx.b.gather(at, p, 0)?;
    let mut columns = vec![];
    for v in [b, c, chosen] {
        columns.push(cx.b.reshape(v, &[kept.clone(), Dim::ONE])?);
    }
    Ok(vec![cx.b.concat(&columns, 1)?])
}

/// Sample points along an axis of each region: `f64[regions, bins·samples]`, with
/// their low neighbour, the high one, the latter's weight, and whether they are
/// on the map.
struct Points {
    low: Value,
    high: Value,
    part: Value,
    inside: Value,
}

fn by(cx: &mut Cx, f: BinaryFn, x: Value, c: f64) -> One {
    let c = cx.like(x, c)?;
    Ok(cx.b.binary(f, x, c)?)
}

fn points(
    cx: &mut Cx,
    ends: (Value, Value),
    length: &Dim,
    (bins, samples): (i64, i64),
    half_pixel: bool,
) -> Result<Points, Fail> {
    let scale = cx.float("spatial_scale", 1.0)?;
    let place = |cx: &mut Cx, v: Value| -> One {
        let v = by(cx, BinaryFn::Mul, v, scale)?;
        by(cx, BinaryFn::Sub, v, if half_pixel { 0.5 } else { 0.0 })
    };
    let (start, end) = (place(cx, ends.0)?, place(cx, ends.1)?);
    let mut span = cx.b.sub(end, start)?;
    if !half_pixel {
        span = by(cx, BinaryFn::Max, span, 1.0)?;
    }
    let op = Iota {
        shape: vec![Dim::ONE, Dim::from(bins * samples)],
        axis: 1,
        dtype: DType::F64,
    };
    // The samples of all bins lie evenly.
    let i = cx.b.one(op, &[])?;
    let i = by(cx, BinaryFn::Add, i, 0.5)?;
    let step = by(cx, BinaryFn::Div, span, (bins * samples) as f64)?;
    let p = cx.b.mul(i, step)?;
    let p = cx.b.add(p, start)?;
    let length = cx.scalar_dim(length.clone())?;
    let length = cx.b.cast(length, DType::F64)?;
    let before = cx.like(p, -1.0)?;
    let after_first = cx.b.compare(CompareFn::Ge, p, before)?;
    let before_end = cx.b.compare(CompareFn::Le, p, length)?;
    let inside = cx.b.binary(BinaryFn::And, after_first, before_end)?;
    let last = by(cx, BinaryFn::Sub, length, 1.0)?;
    let p = by(cx, BinaryFn::Max, p, 0.0)?;
    let p = cx.b.binary(BinaryFn::Min, p, last)?;
    let low = cx.b.unary(kiln_ir::UnaryFn::Floor, p)?;
    let part = cx.b.sub(p, low)?;
    let high = by(cx, BinaryFn::Add, low, 1.0)?;
    let high = cx.b.binary(BinaryFn::Min, high, last)?;
    Ok(Points {
        low: cx.b.cast(low, DType::I64)?,
        high: cx.b.cast(high, DType::I64)?,
        part,
        inside,
    })
}

/// Regions of a map sampled between its elements and pooled into bins.
pub(crate) fn roi_align(cx: &mut Cx) -> Out {
    let (x, rois, batch) = (cx.arg(0)?, cx.arg(1)?, cx.arg(2)?);
    let usual = if cx.opset < 16 {
        "output_half_pixel"
    } else {
        "half_pixel"
    };
    let half_pixel = match cx.text("coordinate_transformation_mode", usual)? {
        "half_pixel" => true,
        "output_half_pixel" => false,
        other => return Err(Fail::invalid(format!("there is no mode `{other}`"))),
    };
    let samples = cx.int("sampling_ratio", 0)?;
    if samples <= 0 {
        return Err(
            Fail::form("RoiAlign whose number of samples follows from the regions")
                .help("export the model with a sampling_ratio above 0"),
        );
    }
    let (ph, pw) = (cx.int("output_height", 1)?, cx.int("output_width", 1)?);
    let bins = 1..=i64::from(i32::MAX);
    if ![ph, pw, samples].iter().all(|n| bins.contains(n)) {
        return Err(Fail::invalid(format!(
            "{ph} by {pw} bins of {samples} samples"
        )));
    }
    let shape = cx.shape(x);
    let [n, c, h, w] = &shape[..] else {
        return Err(Fail::invalid(format!("a map of rank {}", shape.len())));
    };
    let r = cx.extent(rois, 0)?;
    let wide = cx.b.cast(rois, DType::F64)?;
    let column = |cx: &mut Cx, i: i64| cx.b.slice_axis(wide, 1, i.into(), Dim::ONE);
    let (x1, y1) = (column(cx, 0)?, column(cx, 1)?);
    let (x2, y2) = (column(cx, 2)?, column(cx, 3)?);
    let ys = points(cx, (y1, y2), h, (ph, samples), half_pixel)?;
    let xs = points(cx, (x1, x2), w, (pw, samples), half_pixel)?;
    // [regions, rows, 1] against [regions, 1, columns].
    let down = [r.clone(), Dim::from(ph * samples), Dim::ONE];
    let across = [r.clone(), Dim::ONE, Dim::from(pw * samples)];
    let (rows, columns) = (cx.scalar_dim(h.clone())?, cx.scalar_dim(w.clone())?);
    let image = cx.b.cast(batch, DType::I64)?;
    let image = cx.b.mul(image, rows)?;
    let image = cx.b.reshape(image, &[r.clone(), Dim::ONE, Dim::ONE])?;
    let dtype = match cx.dtype(x) {
        DType::F64 => DType::F64,
        _ => DType::F32,
    };
    let flat = cx.b.cast(x, dtype)?;
    let flat = cx.b.transpose(flat, &[1, 0, 2, 3])?;
    let all = n.clone() * h.clone() * w.clone();
    let flat = cx.b.reshape(flat, &[c.clone(), all])?;
    let (inside_y, inside_x) = (
        cx.b.reshape(ys.inside, &down)?,
        cx.b.reshape(xs.inside, &across)?,
    );
    let inside = cx.b.binary(BinaryFn::And, inside_y, inside_x)?;
    let weight = |cx: &mut Cx, part: Value, high: bool, line: &[Dim]| -> One {
        let one = cx.like(part, 1.0)?;
        let w = if high { part } else { cx.b.sub(one, part)? };
        let w = cx.b.cast(w, dtype)?;
        Ok(cx.b.reshape(w, line)?)
    };
    let largest = match cx.text("mode", "avg")? {
        "avg" => false,
        "max" => true,
        other => return Err(Fail::invalid(format!("there is no mode `{other}`"))),
    };
    let mut sum = None;
    for (y_high, x_high) in [(false, false), (false, true), (true, false), (true, true)] {
        let y = cx.b.reshape(if y_high { ys.high } else { ys.low }, &down)?;
        let x =
            cx.b.reshape(if x_high { xs.high } else { xs.low }, &across)?;
        let at = cx.b.add(image, y)?;
        let at = cx.b.mul(at, columns)?;
        let at = cx.b.add(at, x)?;
        let v = cx.b.gather(flat, at, 1)?;
        let wy = weight(cx, ys.part, y_high, &down)?;
        let wx = weight(cx, xs.part, x_high, &across)?;
        let w = cx.b.mul(wy, wx)?;
        let v = cx.b.mul(v, w)?;
        sum = Some(match sum {
            None => v,
            Some(s) if largest => cx.b.binary(BinaryFn::Max, s, v)?,
            Some(s) => cx.b.add(s, v)?,
        });
    }
    let y = sum.ok_or_else(|| Fail::invalid("no neighbours"))?;
    let zero = cx.like(y, 0.0)?;
    let y = cx.b.select(inside, y, zero)?;
    let bins = [
        c,
        &r,
        &ph.into(),
        &samples.into(),
        &pw.into(),
        &samples.into(),
    ];
    let bins: Vec<Dim> = bins.into_iter().cloned().collect();
    let y = cx.b.reshape(y, &bins)?;
    let f = if largest {
        ReduceFn::Max
    } else {
        ReduceFn::Mean
    };
    let y = cx.b.reduce(f, y, &[3, 5], false)?;
    let y = cx.b.transpose(y, &[1, 0, 2, 3])?;
    Ok(vec![cx.b.cast(y, cx.dtype(x))?])
}
