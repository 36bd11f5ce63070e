//! Transposed convolution, as convolutions.

use super::window::{LARGEST, counts, filter, groups, spatial};
use crate::onnx::cx::{Cx, Fail, Out};
use kiln_ir::Dim;
use kiln_ir::graph::Value;
use kiln_ir::ops::conv::Conv;
use kiln_ir::ops::layout::{Pad, PadMode, Slice};

type One = Result<Value, Fail>;

/// The operator.
pub(crate) fn conv_transpose(cx: &mut Cx) -> Out {
    let pads = cx.ints("pads")?.map(<[i64]>::to_vec);
    transposed(cx, cx.opt(2), pads)
}

/// Of ONNX Runtime: the paddings are the third argument.
pub(crate) fn conv_transpose_padded(cx: &mut Cx) -> Out {
    let pads = match cx.opt(2) {
        Some(p) => Some(cx.need_ints(p, "the paddings")?),
        None => None,
    };
    transposed(cx, cx.opt(3), pads)
}

fn transposed(cx: &mut Cx, bias: Option<Value>, pads: Option<Vec<i64>>) -> Out {
    let (x, w) = (cx.arg(0)?, cx.arg(1)?);
    let lengths = spatial(cx, x)?;
    let n = lengths.len();
    let kernel = filter(cx, w, n)?;
    let (strides, dilations) = (counts(cx, "strides", n)?, counts(cx, "dilations", n)?);
    let extra = match cx.ints("output_padding")? {
        None => vec![0; n],
        Some(v) if v.len() == n && v.iter().all(|p| (0..=LARGEST).contains(p)) => v.to_vec(),
        Some(v) => return Err(Fail::invalid(format!("`output_padding` is {v:?}"))),
    };
    let span: Vec<i64> = (0..n)
        .map(|i| ((kernel[i] - 1) * dilations[i] + 1) as i64)
        .collect();
    let (lo, hi) = borders(cx, &lengths, &strides, &span, (&extra, pads))?;
    let shape = Shape {
        lengths,
        kernel,
        strides,
        dilations,
        extra,
        lo,
        hi,
        groups: groups(cx)?,
    };
    let y = match shape.phases(cx, x, w)? {
        Some(y) => y,
        None => return shape.spread(cx, x, w, bias),
    };
    let y = match bias {
        Some(bias) => {
            let mut column = vec![Dim::ONE; n + 1];
            column[0] = cx.shape(bias)[0].clone();
            let bias = cx.b.reshape(bias, &column)?;
            cx.b.add(y, bias)?
        }
        None => y,
    };
    Ok(vec![y])
}

/// A transposed convolution over these spatial extents.
struct Shape {
    lengths: Vec<Dim>,
    kernel: Vec<usize>,
    strides: Vec<usize>,
    dilations: Vec<usize>,
    /// What is added behind.
    extra: Vec<i64>,
    /// What is cut from each side.
    lo: Vec<Dim>,
    hi: Vec<Dim>,
    groups: usize,
}

impl Shape {
    /// A convolution of the input with `stride − 1` zeros between its elements, with
    /// the filter back to front.
    fn spread(&self, cx: &mut Cx, x: Value, w: Value, bias: Option<Value>) -> Out {
        let n = self.kernel.len();
        let w = mirrored(cx, w, self.groups)?;
        let mut spread = x;
        for (i, &by) in self.strides.iter().enumerate() {
            spread = spaced(cx, spread, 2 + i, by)?;
        }
        let border = |i: usize, cut: &Dim, more: i64| {
            let span = ((self.kernel[i] - 1) * self.dilations[i] + 1) as i64;
            Dim::from(span - 1 + more) - cut.clone()
        };
        let op = Conv {
            strides: vec![1; n],
            dilations: self.dilations.clone(),
            lo: (0..n).map(|i| border(i, &self.lo[i], 0)).collect(),
            hi: (0..n)
                .map(|i| border(i, &self.hi[i], self.extra[i]))
                .collect(),
            groups: self.groups,
            out: None,
        };
        let args: Vec<Value> = [spread, w].into_iter().chain(bias).collect();
        Ok(vec![cx.b.one(op, &args)?])
    }

    /// One convolution at the input's own resolution. Result element `s·q + r` of an
    /// axis of stride `s` is `Σ_j x[q − j]·w[r + s·j]`, so each phase `r` has a filter of
    /// `ceil(k/s)` taps; all phases are computed side by side, and then put in their
    /// places. None where nothing is gained by that, or paddings are no constants.
    fn phases(&self, cx: &mut Cx, x: Value, w: Value) -> Result<Option<Value>, Fail> {
        let n = self.kernel.len();
        let cuts = self.lo.iter().chain(&self.hi);
        let plain = cuts.clone().all(|d| d.as_const().is_some_and(|d| d >= 0));
        let strided = self.strides.iter().any(|&s| s > 1);
        if self.groups != 1 || !plain || !strided || self.dilations.iter().any(|&d| d != 1) {
            return Ok(None);
        }
        let taps: Vec<usize> = (0..n)
            .map(|i| self.kernel[i].div_ceil(self.strides[i]))
            .collect();
        let filters = cx.shape(w)[1].clone();
        let w = self.phase_filters(cx, w, &taps)?;
        let border: Vec<Dim> = taps.iter().map(|&t| Dim::from(t - 1)).collect();
        let op = Conv {
            strides: vec![1; n],
            dilations: vec![1; n],
            lo: border.clone(),
            hi: border,
            groups: 1,
            out: None,
        };
        let y = cx.b.one(op, &[x, w])?;
        // [n, phases.., filters, places..] to [n, filters, (places, phases)..].
        let shape = cx.shape(y);
        let mut split = vec![shape[0].clone()];
        split.extend(self.strides.iter().map(|&s| Dim::from(s)));
        split.push(filters.clone());
        split.extend(shape[2..].iter().cloned());
        let y = cx.b.reshape(y, &split)?;
        let mut perm = vec![0, n + 1];
        (0..n).for_each(|i| perm.extend([n + 2 + i, 1 + i]));
        let y = cx.b.transpose(y, &perm)?;
        let mut joined = vec![shape[0].clone(), filters];
        joined.extend((0..n).map(|i| shape[2 + i].clone() * Dim::from(self.strides[i])));
        let y = cx.b.reshape(y, &joined)?;
        self.cut(cx, y, joined).map(Some)
    }

    /// `[c, m, k..]` to `[phases..·m, c, taps..]`, the taps back to front.
    fn phase_filters(&self, cx: &mut Cx, w: Value, taps: &[usize]) -> One {
        let n = taps.len();
        let shape = cx.shape(w);
        let mut hi = vec![Dim::ZERO; n + 2];
        let mut split = shape[..2].to_vec();
        for i in 0..n {
            hi[2 + i] = (taps[i] * self.strides[i] - self.kernel[i]).into();
            split.extend([taps[i].into(), self.strides[i].into()]);
        }
        let zero = cx.like(w, 0.0)?;
        let pad = Pad {
            lo: vec![Dim::ZERO; n + 2],
            hi,
            mode: PadMode::Constant,
        };
        let w = cx.b.one(pad, &[w, zero])?;
        let w = cx.b.reshape(w, &split)?;
        let (mut starts, mut steps) = (vec![Dim::ZERO; split.len()], vec![1; split.len()]);
        for i in 0..n {
            (starts[2 + 2 * i], steps[2 + 2 * i]) = ((taps[i] - 1).into(), -1);
        }
        let back = Slice {
            starts,
            sizes: split,
            steps,
        };
        let w = cx.b.one(back, &[w])?;
        let mut perm: Vec<usize> = (0..n).map(|i| 3 + 2 * i).collect();
        perm.extend([1, 0]);
        perm.extend((0..n).map(|i| 2 + 2 * i));
        let w = cx.b.transpose(w, &perm)?;
        let phases: usize = self.strides.iter().product();
        let mut joined = vec![shape[1].clone() * Dim::from(phases), shape[0].clone()];
        joined.extend(taps.iter().map(|&t| Dim::from(t)));
        Ok(cx.b.reshape(w, &joined)?)
    }

    /// All phases' places to those of the result.
    fn cut(&self, cx: &mut Cx, mut y: Value, whole: Vec<Dim>) -> One {
        let n = self.kernel.len();
        let (mut starts, mut sizes) = (vec![Dim::ZERO; n + 2], whole.clone());
        let mut hi = vec![Dim::ZERO; n + 2];
        for i in 0..n {
            let reach = (self.lengths[i].clone() - Dim::ONE) * Dim::from(self.strides[i])
                + Dim::from(self.kernel[i] as i64 + self.extra[i]);
            let short = reach.clone() - whole[2 + i].clone();
            // Behind the last phase nothing was added up.
            hi[2 + i] = short.maximum(&Dim::ZERO);
            starts[2 + i] = self.lo[i].clone();
            sizes[2 + i] = reach - self.lo[i].clone() - self.hi[i].clone();
        }
        if hi.iter().any(|d| *d != Dim::ZERO) {
            let zero = cx.like(y, 0.0)?;
            let pad = Pad {
                lo: vec![Dim::ZERO; n + 2],
                hi,
                mode: PadMode::Constant,
            };
            y = cx.b.one(pad, &[y, zero])?;
        }
        let steps = vec![1; n + 2];
        let op = Slice {
            starts,
            sizes,
            steps,
        };
        Ok(cx.b.one(op, &[y])?)
    }
}

/// What is cut from each side of a transposed convolution's whole result.
fn borders(
    cx: &Cx,
    lengths: &[Dim],
    strides: &[usize],
    span: &[i64],
    (extra, pads): (&[i64], Option<Vec<i64>>),
) -> Result<(Vec<Dim>, Vec<Dim>), Fail> {
    let n = lengths.len();
    let auto = cx.text("auto_pad", "NOTSET")?;
    let wanted: Option<Vec<Dim>> = match (cx.ints("output_shape")?, auto) {
        (Some(v), _) => {
            let last = v.len().checked_sub(n);
            let last = last.ok_or_else(|| Fail::invalid(format!("`output_shape` is {v:?}")))?;
            Some(v[last..].iter().map(|&d| d.into()).collect())
        }
        (None, "SAME_UPPER" | "SAME_LOWER") => {
            let grown = lengths.iter().zip(strides);
            Some(grown.map(|(l, &s)| l.clone() * Dim::from(s)).collect())
        }
        (None, _) => None,
    };
    let Some(wanted) = wanted else {
        return match pads {
            None => Ok((vec![Dim::ZERO; n], vec![Dim::ZERO; n])),
            Some(p) if p.len() == 2 * n => Ok((
                p[..n].iter().map(|&p| p.into()).collect(),
                p[n..].iter().map(|&p| p.into()).collect(),
            )),
            Some(p) => Err(Fail::invalid(format!("`pads` is {p:?} for {n} axes"))),
        };
    };
    let (mut lo, mut hi) = (vec![], vec![]);
    for i in 0..n {
        let whole =
            (lengths[i].clone() - Dim::ONE) * Dim::from(strides[i]) + Dim::from(extra[i] + span[i]);
        let total = whole - wanted[i].clone();
        let cut = total.maximum(&Dim::ZERO);
        // Where more is wanted than there is, zeros follow.
        let grown = total.minimum(&Dim::ZERO);
        let less = cut.floor_div(&2.into());
        let more = cut - less.clone();
        let (a, b) = match auto {
            "SAME_UPPER" => (less, more),
            _ => (more, less),
        };
        lo.push(a);
        hi.push(b + grown);
    }
    Ok((lo, hi))
}

/// `[c, m/groups, k…]` to `[m, c/groups, k…]`, the taps back to front.
fn mirrored(cx: &mut Cx, w: Value, groups: usize) -> One {
    let shape = cx.shape(w);
    let rank = shape.len();
    let g = Dim::from(groups);
    let depth = (shape[0].div_exact(&g))
        .ok_or_else(|| Fail::invalid(format!("{} channels in {groups} groups", shape[0])))?;
    let mut split = vec![g.clone(), depth.clone()];
    split.extend(shape[1..].iter().cloned());
    let w = cx.b.reshape(w, &split)?;
    let mut perm: Vec<usize> = (0..rank + 1).collect();
    perm.swap(1, 2);
    let w = cx.b.transpose(w, &perm)?;
    let mut joined = vec![g * shape[1].clone(), depth];
    joined.extend(shape[2..].iter().cloned());
    let w = cx.b.reshape(w, &joined)?;
    let mut starts = vec![Dim::ZERO; rank];
    let mut steps = vec![1; rank];
    for i in 2..rank {
        (starts[i], steps[i]) = (joined[i].clone() - Dim::ONE, -1);
    }
    let op = Slice {
        starts,
        sizes: joined,
        steps,
    };
    Ok(cx.b.one(op, &[w])?)
}

/// An axis with `by − 1` zeros between its elements.
fn spaced(cx: &mut Cx, x: Value, axis: usize, by: usize) -> One {
    if by == 1 {
        return Ok(x);
    }
    let shape = cx.shape(x);
    let mut column = shape.clone();
    column.insert(axis + 1, Dim::ONE);
    let x = cx.b.reshape(x, &column)?;
    let lo = vec![Dim::ZERO; column.len()];
    let mut hi = lo.clone();
    hi[axis + 1] = (by - 1).into();
    let zero = cx.like(x, 0.0)?;
    let mode = PadMode::Constant;
    let x = cx.b.one(Pad { lo, hi, mode }, &[x, zero])?;
    let mut joined = shape;
    joined[axis] = joined[axis].clone() * Dim::from(by);
    let x = cx.b.reshape(x, &joined)?;
    let used = joined[axis].clone() - Dim::from(by - 1);
    Ok(cx.b.slice_axis(x, axis, Dim::ZERO, used)?)
}
