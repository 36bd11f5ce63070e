//! Filters as [`PackedConv`](super::packed_conv::PackedConv) reads them.

use crate::graph::Value;
use crate::op::*;
use crate::ops::util::*;
use crate::ops::winograd;
use crate::tensor::Encoder;
use crate::{Builder, DType, Dim, Tensor, TensorType};

/// `pack_filters(w: f[filters, c/groups, k..])`: the filters of a convolution as
/// panels `[groups, ceil(m/nr), taps·c/groups, nr]` of each group's `m` filters, columns
/// beyond the end zero; as `[taps, filters]` if `nr` is 0 (each channel has one filter);
/// or, transformed by [`winograd`], as `[36, ceil(m/nr), c, nr]`.
///
/// Of i8, elements come in groups of `group` that lie together, as kernels sum them: those
/// of `run` taps and all their channels, `[groups, ceil(m/nr), taps/run ·
/// ceil(run·c/groups / group), nr, group]`, or, if `nr` is 0, those of `run` taps of a
/// channel, `[taps/run · ceil(run/group), filters, group]`; the last group of a run is
/// filled up with 0.
#[derive(Clone, Debug, PartialEq)]
pub struct PackFilters {
    /// Groups of channels.
    pub groups: usize,
    /// Columns of a panel.
    pub nr: usize,
    /// Whether the filters are transformed.
    pub winograd: bool,
    /// Neighbours that lie together; 1 for floats.
    pub group: usize,
    /// Taps whose elements follow each other in what is convolved.
    pub run: usize,
}

parse_one!(PackFilters, "pack_filters", |a| Ok(PackFilters {
    groups: a.index("groups")?,
    nr: a.index("nr")?,
    winograd: a.bool("winograd")?,
    group: one_unless(a, "group")?,
    run: one_unless(a, "run")?,
}));

/// A count that is 1 where it is not given.
fn one_unless(a: &Attrs, name: &str) -> Result<usize, TypeError> {
    match a.get(name) {
        Ok(_) => a.index(name),
        Err(_) => Ok(1),
    }
}

/// The extents of filters.
struct Sizes {
    /// Filters of a group.
    m: usize,
    depth: usize,
    taps: usize,
}

impl PackFilters {
    fn sizes(&self, shape: &[usize]) -> Result<Sizes, TypeError> {
        let [filters, depth, kernel @ ..] = shape else {
            return type_err("filters have channels and taps");
        };
        let g = self.groups;
        // A type may promise more elements than there are numbers.
        let each = (kernel.iter()).try_fold(1usize, |n, &k| n.checked_mul(k));
        let all = each.and_then(|t| {
            t.checked_mul(*depth)?
                .checked_mul(filters.checked_add(self.nr)?)
        });
        let (Some(taps), Some(_)) = (each, all.and_then(|n| n.checked_mul(winograd::PLACES)))
        else {
            return type_err(format!("filters {shape:?} are too many to pack"));
        };
        let whole = g > 0 && filters.is_multiple_of(g);
        let depthwise = self.nr > 0 || *depth == 1 && *filters == g;
        let plain = !self.winograd
            || kernel == [3, 3] && g == 1 && self.nr > 0 && [self.group, self.run] == [1, 1];
        let runs = (1..=16).contains(&self.group) && self.run > 0 && taps.is_multiple_of(self.run);
        match whole && depthwise && plain && runs && !kernel.is_empty() {
            true => Ok(Sizes {
                m: filters / g,
                depth: *depth,
                taps,
            }),
            false => type_err(format!(
                "filters {shape:?} in {g} groups do not pack by {}",
                self.nr
            )),
        }
    }

    /// The result's shape for filters of this shape, if they can be packed.
    pub fn shape_of(&self, filters: &[usize]) -> Option<Vec<usize>> {
        self.sizes(filters).ok().map(|s| self.shape(&s))
    }

    /// Groups of a run.
    fn groups_of_run(&self, s: &Sizes) -> usize {
        let each = if self.nr == 0 { 1 } else { s.depth };
        (self.run * each).div_ceil(self.group)
    }

    fn shape(&self, s: &Sizes) -> Vec<usize> {
        let panels = s.m.div_ceil(self.nr.max(1));
        let rows = s.taps / self.run * self.groups_of_run(s);
        let mut shape = match self.nr {
            0 => vec![rows, self.groups],
            nr if self.winograd => vec![winograd::PLACES, panels, s.depth, nr],
            nr => vec![self.groups, panels, rows, nr],
        };
        if self.group > 1 {
            shape.push(self.group);
        }
        shape
    }

    /// Where element `(filter, channel, tap or place)` goes.
    fn place(&self, s: &Sizes, filter: usize, c: usize, tap: usize) -> usize {
        let (nr, depth) = (self.nr, if self.nr == 0 { 1 } else { s.depth });
        let within = tap % self.run * depth + c;
        let each = self.groups_of_run(s);
        let row = tap / self.run * each + within / self.group;
        let element = match nr {
            0 => row * self.groups + filter,
            _ => {
                let (group, j) = (filter / s.m, filter % s.m);
                let panels = s.m.div_ceil(nr);
                let row = match self.winograd {
                    true => (tap * panels + j / nr) * s.depth + c,
                    false => (group * panels + j / nr) * (s.taps / self.run * each) + row,
                };
                row * nr + j % nr
            }
        };
        element * self.group + within % self.group
    }

    /// All elements in their places, 0 elsewhere.
    fn packed<T: Copy + Default>(
        &self,
        s: &Sizes,
        get: impl Fn(usize) -> T,
        wide: impl Fn(T) -> f64,
        narrow: impl Fn(f64) -> T,
    ) -> Vec<T> {
        let mut out = vec![T::default(); self.shape(s).iter().product()];
        for filter in 0..self.groups * s.m {
            for c in 0..s.depth {
                let from = (filter * s.depth + c) * s.taps;
                if self.winograd {
                    let g = std::array::from_fn(|t| wide(get(from + t)));
                    for (p, u) in winograd::transformed_filter(&g).into_iter().enumerate() {
                        out[self.place(s, filter, c, p)] = narrow(u);
                    }
                } else {
                    for t in 0..s.taps {
                        out[self.place(s, filter, c, t)] = get(from + t);
                    }
                }
            }
        }
        out
    }
}

impl OpDef for PackFilters {
    fn mnemonic(&self) -> &'static str {
        "pack_filters"
    }

    fn infer(&self, _: &mut InferCx, args: &[Arg]) -> Result<Vec<Inferred>, TypeError> {
        let w = arity(args, 1)?[0].ty;
        plain(w)?;
        let fits = match self.group {
            1 => w.dtype.is_float(),
            _ => w.dtype == DType::I8,
        };
        let Some(shape) = w.const_shape().filter(|_| fits) else {
            return type_err(format!("{w} are no filters of known extents"));
        };
        let s = self.sizes(&shape)?;
        let dims: Vec<Dim> = self.shape(&s).into_iter().map(Dim::from).collect();
        Ok(vec![w.with_shape(dims).into()])
    }

    fn axes(&self, _: &[&TensorType]) -> AxisMap {
        AxisMap::Whole {
            because: "panels hold what lies apart",
        }
    }

    fn eval(&self, _: &EvalCx, args: &[&Tensor]) -> Result<Vec<Tensor>, EvalError> {
        let w = args[0];
        let s = self
            .sizes(w.shape())
            .map_err(|e| EvalError(e.to_string()))?;
        let shape = self.shape(&s);
        if w.dtype() == DType::F32 {
            // Whole networks are packed while compiling: this way is worth its lines.
            let values = w.to_f32();
            let out = self.packed(&s, |i| values[i], f64::from, |v| v as f32);
            let y = Tensor::from_f32(shape, &out);
            return Ok(vec![y.map_err(|e| EvalError(e.to_string()))?]);
        }
        if w.dtype() == DType::I8 {
            let bytes = w.bytes();
            let out = self.packed(&s, |i| bytes[i], |_| 0.0, |_| 0);
            let y = Tensor::new(DType::I8, shape, out);
            return Ok(vec![y.map_err(|e| EvalError(e.to_string()))?]);
        }
        let values = self.packed(&s, |i| w.get_f64(i), |v| v, |v| v);
        let mut out = Encoder::new(w.dtype(), values.len());
        values.into_iter().for_each(|v| out.push_f64(v));
        finish(w.dtype(), shape, out)
    }

    fn grad(&self, _: &mut Builder, _: Io<'_>, _: &[Value]) -> Result<Grad, TypeError> {
        Ok(Grad::Unsupported {
            because: "layouts are chosen after differentiation",
        })
    }

    fn attrs(&self) -> Attrs {
        let attrs = Attrs::none()
            .with("groups", Attr::Int(self.groups as i64))
            .with("nr", Attr::Int(self.nr as i64))
            .with("winograd", Attr::Bool(self.winograd));
        match [self.group, self.run] {
            [1, 1] => attrs,
            [group, run] => attrs
                .with("group", Attr::Int(group as i64))
                .with("run", Attr::Int(run as i64)),
        }
    }

    primitive!();
}
