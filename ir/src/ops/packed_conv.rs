//! The convolution with channels last and packed filters: what `channels_last`
//! makes.

use crate::graph::Value;
use crate::op::*;
use crate::ops::util::*;
use crate::ops::winograd;
use crate::{Builder, Dim, Guard, Relation, Tensor, TensorType, Tri};

/// `packed_conv(x: f[n, s.., c], w) -> f[n, o.., filters]`: the cross-correlation of
/// `x`, padded with zeros, and filters of `kernel` taps.
///
/// `w` is what [`super::pack_filters::PackFilters`] makes of filters:
/// `[groups, ceil(m/nr), taps·c/groups, nr]`, where `m = filters/groups` and taps count
/// row-major; or `[taps, c]` where every channel is a group of its own and has one
/// filter; or `[36, ceil(m/nr), c, nr]`, plain 3×3 filters transformed by
/// [`super::winograd`].
#[derive(Clone, Debug, PartialEq)]
pub struct PackedConv {
    /// Channels of the result.
    pub filters: usize,
    /// Channels come in this many groups that do not meet.
    pub groups: usize,
    /// Taps along each spatial axis.
    pub kernel: Vec<usize>,
    /// From one result element to the next, by spatial axis.
    pub strides: Vec<usize>,
    /// From one tap to the next.
    pub dilations: Vec<usize>,
    /// Zeros before each spatial axis.
    pub lo: Vec<Dim>,
    /// Zeros after each spatial axis.
    pub hi: Vec<Dim>,
    /// Whether the filters are transformed.
    pub winograd: bool,
}

parse_one!(PackedConv, "packed_conv", |a| Ok(PackedConv {
    filters: a.index("filters")?,
    groups: a.index("groups")?,
    kernel: a.indices("kernel")?,
    strides: a.indices("strides")?,
    dilations: a.indices("dilations")?,
    lo: a.dims("lo")?,
    hi: a.dims("hi")?,
    winograd: a.bool("winograd")?,
}));

impl PackedConv {
    /// Taps of a filter.
    pub fn taps(&self) -> usize {
        self.kernel.iter().product()
    }

    /// Taps of a filter, if they are as few as any filter has.
    fn checked_taps(&self) -> Option<usize> {
        let all = (self.kernel.iter()).try_fold(1usize, |n, &k| n.checked_mul(k));
        all.filter(|&n| n <= 1 << 32)
    }

    /// How many elements a filter reaches over along a spatial axis.
    pub fn span(&self, axis: usize) -> usize {
        (self.kernel[axis] - 1) * self.dilations[axis] + 1
    }

    /// Whether `w` says that every channel has a filter of its own.
    pub fn is_depthwise(w: &TensorType) -> bool {
        w.rank() == 2
    }

    fn check_lists(&self, spatial: usize) -> Result<(), TypeError> {
        let lists = [&self.kernel, &self.strides, &self.dilations];
        // Counts of elements: none is near this, and their products fit.
        let sane = |&n: &usize| (1..=1 << 20).contains(&n);
        if spatial == 0
            || lists
                .iter()
                .any(|l| l.len() != spatial || !l.iter().all(sane))
            || self.checked_taps().is_none()
            || self.lo.len() != spatial
            || self.hi.len() != spatial
            || self.groups == 0
            || !self.filters.is_multiple_of(self.groups)
        {
            return type_err(format!(
                "needs taps, strides, dilations and paddings of {spatial} axes, and groups that \
                 divide {} filters",
                self.filters
            ));
        }
        Ok(())
    }

    fn check_filters(&self, channels: usize, w: &TensorType) -> Result<(), TypeError> {
        let one = |l: &[usize]| l.iter().all(|&n| n == 1);
        let plain = self.kernel == [3, 3] && one(&self.strides) && one(&self.dilations);
        let fits = match w.const_shape().as_deref() {
            Some([places, panels, c, nr]) if self.winograd => {
                plain
                    && self.groups == 1
                    && [*places, *c] == [winograd::PLACES, channels]
                    && *nr > 0
                    && *panels == self.filters.div_ceil(*nr)
            }
            _ if self.winograd => false,
            Some([taps, c]) => {
                *taps == self.taps() && *c == channels && [self.groups, self.filters] == [*c; 2]
            }
            Some([g, panels, depth, nr]) => {
                *g == self.groups
                    && *nr > 0
                    && *panels == (self.filters / self.groups).div_ceil(*nr)
                    && channels.is_multiple_of(self.groups)
                    && Some(*depth) == self.taps().checked_mul(channels / self.groups)
            }
            _ => false,
        };
        match fits {
            true => Ok(()),
            false => type_err(format!(
                "{w} does not hold {} filters of {} taps for {channels} channels in {} groups",
                self.filters,
                self.taps(),
                self.groups
            )),
        }
    }

    /// The results of transformed filters, tile by tile.
    fn by_tiles(&self, x: &Tensor, w: &Tensor, lo: &[i64], out: &[usize]) -> Vec<f64> {
        let (shape, filters) = (x.shape(), self.filters);
        let (h, width, channels) = (shape[1], shape[2], shape[3]);
        let (panels, nr) = (w.shape()[1], w.shape()[3]);
        let mut values = vec![0.0; out.iter().product()];
        let tiles = [out[0], out[1].div_ceil(4), out[2].div_ceil(4)];
        for_each_index(&tiles, |t| {
            let element = |place: usize, c: usize| {
                let y = (t[1] * 4 + place / 6) as i64 - lo[0];
                let x_at = (t[2] * 4 + place % 6) as i64 - lo[1];
                let inside = (0..h as i64).contains(&y) && (0..width as i64).contains(&x_at);
                match inside {
                    true => {
                        let pixel = (t[0] * h + y as usize) * width + x_at as usize;
                        x.get_f64(pixel * channels + c)
                    }
                    false => 0.0,
                }
            };
            let v: Vec<[f64; winograd::PLACES]> = (0..channels)
                .map(|c| winograd::transformed(&std::array::from_fn(|p| element(p, c))))
                .collect();
            for f in 0..filters {
                let m = std::array::from_fn(|p| {
                    let at = |c: usize| ((p * panels + f / nr) * channels + c) * nr + f % nr;
                    (0..channels).map(|c| v[c][p] * w.get_f64(at(c))).sum()
                });
                for i in 0..16 {
                    let (y, x) = (t[1] * 4 + i / 4, t[2] * 4 + i % 4);
                    if y < out[1] && x < out[2] {
                        let pixel = (t[0] * out[1] + y) * out[2] + x;
                        values[pixel * filters + f] = winograd::result(&m, i / 4, i % 4);
                    }
                }
            }
        });
        values
    }

    /// Calls `f(element of x, tap)` for each tap of the result element at `at`
    /// (batch, then spatial places) that is inside `x`; elements count pixels.
    fn for_taps(&self, shape: &[usize], lo: &[i64], at: &[usize], f: &mut dyn FnMut(usize, usize)) {
        let mut tap = 0;
        for_each_index(&self.kernel, |k| {
            let mut pixel = Some(at[0]);
            for i in 0..k.len() {
                let p = (at[i + 1] * self.strides[i] + k[i] * self.dilations[i]) as i64 - lo[i];
                let inside = (0..shape[i + 1] as i64).contains(&p);
                pixel = pixel
                    .filter(|_| inside)
                    .map(|q| q * shape[i + 1] + p as usize);
            }
            if let Some(pixel) = pixel {
                f(pixel, tap);
            }
            tap += 1;
        });
    }
}

impl OpDef for PackedConv {
    fn mnemonic(&self) -> &'static str {
        "packed_conv"
    }

    fn infer(&self, cx: &mut InferCx, args: &[Arg]) -> Result<Vec<Inferred>, TypeError> {
        let (x, w) = (arity(args, 2)?[0].ty, args[1].ty);
        if x.rank() < 3 || !x.dtype.is_float() || !w.dtype.is_float() {
            return type_err(format!("cannot convolve {x} with {w}"));
        }
        let spatial = x.rank() - 2;
        self.check_lists(spatial)?;
        let Some(channels) = x.shape[spatial + 1].as_const() else {
            return type_err(format!("the channels of {x} are no constant"));
        };
        self.check_filters(channels.max(0) as usize, w)?;
        let mut shape = vec![x.shape[0].clone()];
        for i in 0..spatial {
            let length = x.shape[i + 1].clone() + self.lo[i].clone() + self.hi[i].clone();
            let span = Dim::from(self.span(i));
            match span.le(&length) {
                Tri::Yes => {}
                Tri::No => {
                    return type_err(format!("a filter spans {span} elements of {length}"));
                }
                Tri::Unknown => cx.guards.push(Guard {
                    left: span.clone(),
                    relation: Relation::Le,
                    right: length.clone(),
                    because: format!("a filter fits into spatial axis {i}"),
                }),
            }
            shape.push((length - span).floor_div(&self.strides[i].into()) + Dim::ONE);
        }
        shape.push(self.filters.into());
        Ok(vec![x.with_shape(shape).into()])
    }

    fn axes(&self, args: &[&TensorType]) -> AxisMap {
        let rank = args[0].rank();
        let mut batch = vec![None; rank];
        batch[0] = Some(0);
        AxisMap::Labels {
            args: vec![batch.clone(), vec![None; args[1].rank()]],
            results: vec![batch],
            reduce: None,
        }
    }

    fn eval(&self, cx: &EvalCx, args: &[&Tensor]) -> Result<Vec<Tensor>, EvalError> {
        let (x, w) = (args[0], args[1]);
        let spatial = self.kernel.len();
        let (shape, channels) = (x.shape(), x.shape()[spatial + 1]);
        let lo: Vec<i64> = cx.dims(&self.lo)?.iter().map(|&d| d as i64).collect();
        let hi = cx.dims(&self.hi)?;
        let mut out = vec![shape[0]];
        for i in 0..spatial {
            let length = shape[i + 1] + lo[i] as usize + hi[i];
            let room = length.checked_sub(self.span(i));
            let room = room.ok_or_else(|| EvalError("a filter does not fit".into()))?;
            out.push(room / self.strides[i] + 1);
        }
        out.push(self.filters);
        let (depth, m) = (channels / self.groups, self.filters / self.groups);
        let weight = |tap: usize, c: usize, filter: usize| match w.shape() {
            [_, channels] => w.get_f64(tap * channels + filter),
            s => {
                let (group, j) = (filter / m, filter % m);
                let (panels, rows, nr) = (s[1], s[2], s[3]);
                let panel = group * panels + j / nr;
                w.get_f64((panel * rows + tap * depth + c) * nr + j % nr)
            }
        };
        if self.winograd {
            let values = self.by_tiles(x, w, &lo, &out);
            let y = Tensor::from_f64(x.dtype(), out, &values);
            return Ok(vec![y.map_err(|e| EvalError(e.to_string()))?]);
        }
        let mut values = Vec::with_capacity(out.iter().product());
        for_each_index(&out, |at| {
            let filter = at[spatial + 1];
            let mut sum = 0.0;
            self.for_taps(shape, &lo, at, &mut |pixel, tap| {
                for c in 0..depth {
                    let channel = filter / m * depth + c;
                    sum += x.get_f64(pixel * channels + channel) * weight(tap, c, filter);
                }
            });
            values.push(sum);
        });
        let y = Tensor::from_f64(x.dtype(), out, &values);
        Ok(vec![y.map_err(|e| EvalError(e.to_string()))?])
    }

    fn grad(&self, _: &mut Builder, _: Io<'_>, _: &[Value]) -> Result<Grad, TypeError> {
        Ok(Grad::Unsupported {
            because: "layouts are chosen after differentiation",
        })
    }

    fn attrs(&self) -> Attrs {
        let ints = |v: &[usize]| v.iter().map(|&i| i as i64).collect::<Vec<_>>();
        Attrs::none()
            .with("filters", Attr::Int(self.filters as i64))
            .with("groups", Attr::Int(self.groups as i64))
            .with_ints("kernel", ints(&self.kernel))
            .with_ints("strides", ints(&self.strides))
            .with_ints("dilations", ints(&self.dilations))
            .with("lo", Attr::Dims(self.lo.clone()))
            .with("hi", Attr::Dims(self.hi.clone()))
            .with("winograd", Attr::Bool(self.winograd))
    }

    primitive!();
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::conv::Conv;
    use crate::ops::pack_filters::PackFilters;
    use crate::{Binding, DType};
    use std::cell::RefCell;

    fn draw(shape: &[usize], k: usize) -> Tensor {
        let values: Vec<f64> = (0..shape.iter().product())
            .map(|i: usize| ((i * k) % 23) as f64 / 8.0 - 1.0)
            .collect();
        Tensor::from_f64(DType::F64, shape.to_vec(), &values).unwrap()
    }

    /// A tensor with channels behind, or before.
    fn moved(t: &Tensor, perm: &[usize]) -> Tensor {
        let shape: Vec<usize> = perm.iter().map(|&p| t.shape()[p]).collect();
        let from = strides(t.shape());
        let mut values = vec![];
        for_each_index(&shape, |at| {
            let place: usize = at.iter().zip(perm).map(|(i, &p)| i * from[p]).sum();
            values.push(t.get_f64(place));
        });
        Tensor::from_f64(t.dtype(), shape, &values).unwrap()
    }

    #[test]
    fn packed_filters_give_the_results_of_plain_ones() {
        let binding = RefCell::new(Binding::new());
        let cx = EvalCx::pure(&binding);
        for (groups, depth, m, nr, winograd) in [
            (1, 3, 5, 4, false),
            (2, 2, 3, 16, false),
            (6, 1, 1, 0, false),
            (1, 3, 5, 4, true),
        ] {
            let plain = Conv {
                strides: if winograd { vec![1, 1] } else { vec![2, 1] },
                dilations: if winograd { vec![1, 1] } else { vec![1, 2] },
                lo: vec![1.into(), 0.into()],
                hi: vec![0.into(), 2.into()],
                groups,
            };
            let x = draw(&[2, groups * depth, 6, 9], 7919);
            let w = draw(&[groups * m, depth, 3, 3], 104_729);
            let want = plain.eval(&cx, &[&x, &w]).unwrap();
            let pack = PackFilters {
                groups,
                nr,
                winograd,
            };
            let panels = pack.eval(&cx, &[&w]).unwrap();
            let op = PackedConv {
                filters: groups * m,
                groups,
                kernel: vec![3, 3],
                strides: plain.strides.clone(),
                dilations: plain.dilations.clone(),
                lo: plain.lo.clone(),
                hi: plain.hi.clone(),
                winograd,
            };
            let x = moved(&x, &[0, 2, 3, 1]);
            let got = op.eval(&cx, &[&x, &panels[0]]).unwrap();
            let got = moved(&got[0], &[0, 3, 1, 2]);
            assert_eq!(got.shape(), want[0].shape());
            for (a, b) in got.to_f64().iter().zip(want[0].to_f64()) {
                assert!((a - b).abs() < 1e-10, "{op:?}: {a} is not {b}");
            }
        }
    }
}
