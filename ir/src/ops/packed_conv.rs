//! The convolution with channels last and packed filters: what `channels_last`
//! makes.

use crate::graph::Value;
use crate::op::*;
use crate::ops::pack_filters::PackFilters;
use crate::ops::util::*;
use crate::ops::winograd;
use crate::tensor::Encoder;
use crate::{Builder, DType, Dim, Guard, Relation, Tensor, TensorType, Tri};

/// Bytes that kernels multiply and add at once.
const GROUP: usize = 4;

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
        match w.dtype {
            DType::I8 => w.rank() == 3,
            _ => w.rank() == 2,
        }
    }

    /// Whether some tap may be outside `x`.
    pub fn is_bordered(&self) -> bool {
        self.lo.iter().chain(&self.hi).any(|d| *d != Dim::ZERO)
    }

    /// Taps whose elements follow each other in `x`: without a border, those along the
    /// last axis.
    pub fn joined_taps(&self) -> usize {
        match (self.kernel.last(), self.dilations.last()) {
            (Some(&k), Some(1)) if self.groups == 1 && !self.is_bordered() => k,
            _ => 1,
        }
    }

    /// How filters of bytes for this convolution are packed.
    pub fn pack_of_bytes(&self, nr: usize) -> PackFilters {
        PackFilters {
            groups: self.groups,
            nr,
            winograd: false,
            group: GROUP,
            run: match nr {
                0 => self.kernel.last().copied().unwrap_or(1),
                _ => self.joined_taps(),
            },
        }
    }

    /// Whether `w` is what [`PackedConv::pack_of_bytes`] makes of filters.
    fn holds_bytes(&self, channels: usize, w: &[usize]) -> bool {
        let nr = match w {
            [_, _, _, nr, _] if *nr > 0 => *nr,
            [_, _, _] => 0,
            _ => return false,
        };
        if self.winograd || self.groups == 0 || !channels.is_multiple_of(self.groups) {
            return false;
        }
        let filters = [&[self.filters, channels / self.groups], &self.kernel[..]].concat();
        self.pack_of_bytes(nr).shape_of(&filters).as_deref() == Some(w)
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
            Some(shape) if w.dtype == DType::I8 => self.holds_bytes(channels, shape),
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

    /// The weight of a tap and a channel of its group for a filter, in `w` as it is
    /// packed for `channels`.
    fn place_of(&self, w: &Tensor, channels: usize) -> impl Fn(usize, usize, usize) -> usize {
        let (depth, m) = (channels / self.groups, self.filters / self.groups);
        let bytes = w.dtype() == DType::I8;
        let (group, shape) = (if bytes { GROUP } else { 1 }, w.shape().to_vec());
        let lying = shape.len() - bytes as usize;
        let run = match lying {
            _ if !bytes => 1,
            2 => self.kernel.last().copied().unwrap_or(1),
            _ => self.joined_taps(),
        };
        let each = if lying == 2 { 1 } else { depth };
        let row_of = move |tap: usize, c: usize| {
            let within = tap % run * each + c;
            let groups = (run * each).div_ceil(group);
            (tap / run * groups + within / group, within % group)
        };
        move |tap, c, filter| {
            if lying == 2 {
                let (row, sub) = row_of(tap, 0);
                return (row * channels + filter) * group + sub;
            }
            let (row, sub) = row_of(tap, c);
            let (block, j) = (filter / m, filter % m);
            let (panels, rows, nr) = (shape[1], shape[2], shape[3]);
            let panel = block * panels + j / nr;
            ((panel * rows + row) * nr + j % nr) * group + sub
        }
    }

    /// Calls `f(element of x, tap)` for each tap of the result element at `at` (batch,
    /// then spatial places); elements count pixels, none is outside `x`.
    fn for_taps(
        &self,
        shape: &[usize],
        lo: &[i64],
        at: &[usize],
        f: &mut dyn FnMut(Option<usize>, usize),
    ) {
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
            f(pixel, tap);
            tap += 1;
        });
    }
}

fn is_byte(t: DType) -> bool {
    matches!(t, DType::I8 | DType::U8)
}

impl OpDef for PackedConv {
    fn mnemonic(&self) -> &'static str {
        "packed_conv"
    }

    fn infer(&self, cx: &mut InferCx, args: &[Arg]) -> Result<Vec<Inferred>, TypeError> {
        let bytes = args.first().is_some_and(|x| is_byte(x.ty.dtype));
        let args = match args {
            [_, _, pad] if bytes && pad.ty.dtype == args[0].ty.dtype && pad.ty.rank() == 0 => args,
            _ => arity(args, 2)?,
        };
        let (x, w) = (args[0].ty, args[1].ty);
        let types = match bytes {
            true => w.dtype == DType::I8,
            false => x.dtype.is_float() && w.dtype.is_float(),
        };
        if x.rank() < 3 || !types {
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
        let dtype = if bytes { DType::I32 } else { x.dtype };
        Ok(vec![TensorType::new(dtype, shape).into()])
    }

    fn axes(&self, args: &[&TensorType]) -> AxisMap {
        let rank = args[0].rank();
        let mut batch = vec![None; rank];
        batch[0] = Some(0);
        AxisMap::Labels {
            args: std::iter::once(batch.clone())
                .chain(args[1..].iter().map(|a| vec![None; a.rank()]))
                .collect(),
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
        let weight = self.place_of(w, channels);
        if self.winograd {
            let values = self.by_tiles(x, w, &lo, &out);
            let y = Tensor::from_f64(x.dtype(), out, &values);
            return Ok(vec![y.map_err(|e| EvalError(e.to_string()))?]);
        }
        if is_byte(x.dtype()) {
            let pad = args.get(2).map_or(0, |pad| pad.get_i64(0));
            let mut sums = Encoder::new(DType::I32, out.iter().product());
            for_each_index(&out, |at| {
                let filter = at[spatial + 1];
                let mut sum = 0i64;
                self.for_taps(shape, &lo, at, &mut |pixel, tap| {
                    for c in 0..depth {
                        let channel = filter / m * depth + c;
                        let v = pixel.map_or(pad, |p| x.get_i64(p * channels + channel));
                        sum += v * w.get_i64(weight(tap, c, filter));
                    }
                });
                sums.push_i64(sum as i32 as i64);
            });
            return finish(DType::I32, out, sums);
        }
        let mut values = Vec::with_capacity(out.iter().product());
        for_each_index(&out, |at| {
            let filter = at[spatial + 1];
            let mut sum = 0.0;
            self.for_taps(shape, &lo, at, &mut |pixel, tap| {
                let Some(pixel) = pixel else { return };
                for c in 0..depth {
                    let channel = filter / m * depth + c;
                    let v = x.get_f64(pixel * channels + channel);
                    sum += v * w.get_f64(weight(tap, c, filter));
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
    use crate::Binding;
    use crate::ops::conv::Conv;
    use std::cell::RefCell;

    fn draw(shape: &[usize], k: usize) -> Tensor {
        let values: Vec<f64> = (0..shape.iter().product())
            .map(|i: usize| ((i * k) % 23) as f64 / 8.0 - 1.0)
            .collect();
        Tensor::from_f64(DType::F64, shape.to_vec(), &values).unwrap()
    }

    /// A tensor with its axes in another order.
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
                out: None,
            };
            let x = draw(&[2, groups * depth, 6, 9], 7919);
            let w = draw(&[groups * m, depth, 3, 3], 104_729);
            let want = plain.eval(&cx, &[&x, &w]).unwrap();
            let pack = PackFilters {
                groups,
                nr,
                winograd,
                group: 1,
                run: 1,
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

    /// Small integers as bytes.
    fn bytes(dtype: DType, shape: &[usize], k: usize) -> Tensor {
        let values: Vec<i64> = (0..shape.iter().product())
            .map(|i: usize| ((i * k) % 251) as i64 - if dtype == DType::I8 { 125 } else { 0 })
            .collect();
        Tensor::from_i64(dtype, shape.to_vec(), &values).unwrap()
    }

    #[test]
    fn packed_filters_of_bytes_give_the_sums_of_plain_ones() {
        let binding = RefCell::new(Binding::new());
        let cx = EvalCx::pure(&binding);
        for (groups, depth, m, nr, pads, x_type) in [
            (1, 3, 5, 4, [0, 0], DType::U8),
            (1, 3, 5, 16, [1, 2], DType::U8),
            (1, 8, 2, 4, [1, 0], DType::I8),
            (2, 5, 3, 16, [0, 2], DType::U8),
            (6, 1, 1, 0, [1, 2], DType::U8),
            (6, 1, 1, 0, [0, 0], DType::I8),
        ] {
            let plain = Conv {
                strides: vec![2, 1],
                dilations: vec![2, 1],
                lo: vec![pads[0].into(), 0.into()],
                hi: vec![0.into(), pads[1].into()],
                groups,
                out: Some(DType::I32),
            };
            let op = PackedConv {
                filters: groups * m,
                groups,
                kernel: vec![3, 5],
                strides: plain.strides.clone(),
                dilations: plain.dilations.clone(),
                lo: plain.lo.clone(),
                hi: plain.hi.clone(),
                winograd: false,
            };
            let x = bytes(x_type, &[2, groups * depth, 6, 9], 7919);
            let w = bytes(DType::I8, &[groups * m, depth, 3, 5], 104_729);
            let pad = Tensor::scalar_i64(x_type, 77);
            let want = plain.eval(&cx, &[&x, &w, &pad]).unwrap();
            let panels = op.pack_of_bytes(nr).eval(&cx, &[&w]).unwrap();
            let x = moved(&x, &[0, 2, 3, 1]);
            let got = op.eval(&cx, &[&x, &panels[0], &pad]).unwrap();
            assert_eq!(moved(&got[0], &[0, 3, 1, 2]), want[0], "{op:?}");
        }
    }
}
