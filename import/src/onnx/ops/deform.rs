//! Convolution whose taps stand where the data says.

use super::attention::index;
use super::window::{counts, groups};
use crate::onnx::cx::{Cx, Fail, Out};
use kiln_ir::graph::Value;
use kiln_ir::ops::index::GatherElements;
use kiln_ir::{BinaryFn, CompareFn, DType, Dim, UnaryFn};

type One = Result<Value, Fail>;

/// The extents of one convolution, in the order of ONNX's letters.
struct Sizes {
    n: Dim,
    c: Dim,
    h: Dim,
    w: Dim,
    /// Taps along each axis.
    taps: [i64; 2],
    /// The result's plane.
    out: [Dim; 2],
    /// Groups of channels with offsets of their own.
    offsets: i64,
}

/// Dai et al. 2017, with the mask of Zhu et al. 2019: every tap is moved by its own
/// offset and read between elements; what lies outside is 0. Two spatial axes.
pub(crate) fn deform_conv(cx: &mut Cx) -> Out {
    let (x, w, offset) = (cx.arg(0)?, cx.arg(1)?, cx.arg(2)?);
    let s = sizes(cx, x, w, offset)?;
    let read = taps(cx, x, offset, &s)?;
    let read = match cx.opt(4) {
        None => read,
        Some(mask) => {
            let places = [
                s.n.clone(),
                s.offsets.into(),
                Dim::ONE,
                Dim::from(s.taps[0] * s.taps[1]) * s.out[0].clone() * s.out[1].clone(),
            ];
            let mask = cx.b.cast(mask, cx.dtype(read))?;
            let mask = cx.b.reshape(mask, &places)?;
            cx.b.mul(read, mask)?
        }
    };
    // A product for each group of channels.
    let groups = i64::try_from(groups(cx)?).map_err(|_| Fail::invalid("too many groups"))?;
    let depth = s.c.floor_div(&groups.into()) * Dim::from(s.taps[0] * s.taps[1]);
    let plane = s.out[0].clone() * s.out[1].clone();
    let filters = cx.extent(w, 0)?;
    let columns = [s.n.clone(), groups.into(), depth.clone(), plane];
    let rows = [groups.into(), filters.floor_div(&groups.into()), depth];
    let narrow = cx.dtype(x);
    let w = cx.b.cast(w, cx.dtype(read))?;
    let (read, w) = (cx.b.reshape(read, &columns)?, cx.b.reshape(w, &rows)?);
    let y = cx.b.matmul(w, read)?;
    let [oh, ow] = s.out;
    let mut y = cx.b.reshape(y, &[s.n, filters.clone(), oh, ow])?;
    if let Some(bias) = cx.opt(3) {
        let bias = cx.b.cast(bias, cx.dtype(y))?;
        let bias = cx.b.reshape(bias, &[filters, Dim::ONE, Dim::ONE])?;
        y = cx.b.add(y, bias)?;
    }
    Ok(vec![cx.b.cast(y, narrow)?])
}

fn sizes(cx: &Cx, x: Value, w: Value, offset: Value) -> Result<Sizes, Fail> {
    let (x, w, o) = (cx.shape(x), cx.shape(w), cx.shape(offset));
    let ([n, c, h, wide], [_, _, kh, kw], [_, _, oh, ow]) = (&x[..], &w[..], &o[..]) else {
        return Err(Fail::form(
            "deformable convolution over other than two spatial axes",
        ));
    };
    let (Some(kh), Some(kw)) = (kh.as_const(), kw.as_const()) else {
        return Err(Fail::form("the filter's extents must be constant"));
    };
    let offsets = cx.int("offset_group", 1)?;
    if offsets < 1 || kh < 1 || kw < 1 {
        return Err(Fail::invalid(format!("{offsets} groups of offsets")));
    }
    Ok(Sizes {
        n: n.clone(),
        c: c.clone(),
        h: h.clone(),
        w: wide.clone(),
        taps: [kh, kw],
        out: [oh.clone(), ow.clone()],
        offsets,
    })
}

/// Where the taps stand along one axis, in elements of the input: `[n, offset
/// groups, taps·places]`.
fn places(cx: &mut Cx, offset: Value, s: &Sizes, axis: usize) -> One {
    let strides = counts(cx, "strides", 2)?[axis] as i64;
    let dilations = counts(cx, "dilations", 2)?[axis] as i64;
    let pad = match cx.ints("pads")? {
        None => 0,
        Some(p) if p.len() == 4 => p[axis],
        Some(p) => return Err(Fail::invalid(format!("`pads` is {p:?} for 2 axes"))),
    };
    // [n, groups, taps down, taps across, axis, rows, columns]
    let [kh, kw] = s.taps;
    let [oh, ow] = s.out.clone();
    let own = cx.b.slice_axis(offset, 4, (axis as i64).into(), Dim::ONE)?;
    let whole = [
        s.n.clone(),
        s.offsets.into(),
        kh.into(),
        kw.into(),
        oh.clone(),
        ow.clone(),
    ];
    let own = cx.b.reshape(own, &whole)?;
    let mut line = vec![Dim::ONE; 4];
    line[axis] = s.taps[axis].into();
    let tap = index(cx, line, axis)?;
    let tap = cx.with_int(BinaryFn::Mul, tap, dilations)?;
    let mut line = vec![Dim::ONE; 4];
    line[2 + axis] = s.out[axis].clone();
    let place = index(cx, line, 2 + axis)?;
    let place = cx.with_int(BinaryFn::Mul, place, strides)?;
    let place = cx.with_int(BinaryFn::Sub, place, pad)?;
    let at = cx.b.add(tap, place)?;
    let at = cx.b.cast(at, cx.dtype(own))?;
    let at = cx.b.add(own, at)?;
    let flat = [s.n.clone(), s.offsets.into(), Dim::from(kh * kw) * oh * ow];
    Ok(cx.b.reshape(at, &flat)?)
}

/// The elements below and above a place, each with whether it is inside and its
/// share.
fn neighbours(cx: &mut Cx, at: Value, length: &Dim) -> Result<[(Value, Value, Value); 2], Fail> {
    let low = cx.b.unary(UnaryFn::Floor, at)?;
    let above = cx.b.sub(at, low)?;
    let one = cx.like(at, 1.0)?;
    let below = cx.b.sub(one, above)?;
    let high = cx.b.add(low, one)?;
    let last = cx.scalar_dim(length.clone() - Dim::ONE)?;
    let mut side = |v: Value, share: Value| -> Result<(Value, Value, Value), Fail> {
        let v = cx.b.cast(v, DType::I64)?;
        let zero = cx.like(v, 0.0)?;
        let (a, b) = (
            cx.b.compare(CompareFn::Ge, v, zero)?,
            cx.b.compare(CompareFn::Le, v, last)?,
        );
        let inside = cx.b.binary(BinaryFn::And, a, b)?;
        let v = cx.b.binary(BinaryFn::Max, v, zero)?;
        let v = cx.b.binary(BinaryFn::Min, v, last)?;
        Ok((v, inside, share))
    };
    Ok([side(low, below)?, side(high, above)?])
}

/// What the taps read: `[n, offset groups, channels of one, taps·places]`.
fn taps(cx: &mut Cx, x: Value, offset: Value, s: &Sizes) -> One {
    let compute = match cx.dtype(x) {
        DType::F64 => DType::F64,
        _ => DType::F32,
    };
    let [kh, kw] = s.taps;
    let [oh, ow] = s.out.clone();
    let apart = [
        s.n.clone(),
        s.offsets.into(),
        kh.into(),
        kw.into(),
        2.into(),
        oh.clone(),
        ow.clone(),
    ];
    let offset = cx.b.cast(offset, compute)?;
    let offset = cx.b.reshape(offset, &apart)?;
    let (down, across) = (places(cx, offset, s, 0)?, places(cx, offset, s, 1)?);
    let (down, across) = (neighbours(cx, down, &s.h)?, neighbours(cx, across, &s.w)?);
    let each = s.c.floor_div(&s.offsets.into());
    let planes = [
        s.n.clone(),
        s.offsets.into(),
        each.clone(),
        s.h.clone() * s.w.clone(),
    ];
    let x = cx.b.cast(x, compute)?;
    let x = cx.b.reshape(x, &planes)?;
    let count = Dim::from(kh * kw) * oh * ow;
    let line = [s.n.clone(), s.offsets.into(), Dim::ONE, count.clone()];
    let wide = [s.n.clone(), s.offsets.into(), each, count];
    let columns = cx.scalar_dim(s.w.clone())?;
    let mut sum = None;
    for (row, row_in, row_share) in down {
        for (column, column_in, column_share) in across {
            let at = cx.b.mul(row, columns)?;
            let at = cx.b.add(at, column)?;
            let at = cx.b.reshape(at, &line)?;
            let at = cx.b.broadcast_to(at, &wide)?;
            let v = cx.b.one(GatherElements { axis: 3 }, &[x, at])?;
            let inside = cx.b.binary(BinaryFn::And, row_in, column_in)?;
            let share = cx.b.mul(row_share, column_share)?;
            let zero = cx.like(share, 0.0)?;
            let share = cx.b.select(inside, share, zero)?;
            let share = cx.b.reshape(share, &line)?;
            let v = cx.b.mul(v, share)?;
            sum = Some(match sum {
                None => v,
                Some(s) => cx.b.add(s, v)?,
            });
        }
    }
    sum.ok_or_else(|| Fail::invalid("no neighbours"))
}
