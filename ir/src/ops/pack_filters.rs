//! Filters as [`PackedConv`](super::packed_conv::PackedConv) reads them.

use crate::graph::Value;
use crate::op::*;
use crate::ops::util::*;
use crate::ops::winograd;
use crate::tensor::{Encoder, read_f64};
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

    /// All elements of `N` bytes in their places, 0 elsewhere; `transform` gives the
    /// places of a filter's taps where filters are transformed.
    ///
    /// Whole networks are packed while compiling, so the order of the loops counts:
    /// filters are read along their channels, and what a block of channels of one
    /// panel writes fits the first cache.
    fn packed<const N: usize>(
        &self,
        s: &Sizes,
        w: &[[u8; N]],
        transform: impl Fn(&[[u8; N]; 9]) -> [[u8; N]; winograd::PLACES],
    ) -> Vec<u8> {
        let mut bytes = vec![0; self.shape(s).iter().product::<usize>() * N];
        let (out, _) = bytes.as_chunks_mut::<N>();
        let places = if self.winograd {
            winograd::PLACES
        } else {
            s.taps
        };
        // How far apart the places of two taps are.
        let apart = match places {
            1 => 0,
            _ => self.place(s, 0, 0, 1) - self.place(s, 0, 0, 0),
        };
        let block = (CACHED / (places * self.nr.max(1) * N)).clamp(1, 64);
        let panels = (0..self.groups).flat_map(|g| {
            let end = (g + 1) * s.m;
            let first = (g * s.m..end).step_by(self.nr.max(1));
            first.map(move |f| f..(f + self.nr.max(1)).min(end))
        });
        if self.group > 1 {
            // Bytes, a quarter of what floats would be: each finds its place.
            for (i, x) in w.iter().enumerate() {
                let (c, tap) = (i / s.taps % s.depth, i % s.taps);
                out[self.place(s, i / s.taps / s.depth, c, tap)] = *x;
            }
            return bytes;
        }
        for panel in panels {
            for first in (0..s.depth).step_by(block) {
                let last = (first + block).min(s.depth);
                for filter in panel.clone() {
                    let from = &w[(filter * s.depth + first) * s.taps..];
                    let mut at = self.place(s, filter, first, 0);
                    for taps in from.chunks_exact(s.taps).take(last - first) {
                        match taps.first_chunk::<9>().filter(|_| self.winograd) {
                            Some(g) => spread(&mut out[at..], apart, &transform(g)),
                            None => spread(&mut out[at..], apart, taps),
                        }
                        at += self.nr;
                    }
                }
            }
        }
        bytes
    }
}

/// Bytes of a panel's block that stay in the first cache.
const CACHED: usize = 1 << 14;

/// The transformation of filters through numbers.
fn by_element<const N: usize>(
    number: impl Fn(&[u8]) -> f64,
    element: impl Fn(f64) -> Vec<u8>,
) -> impl Fn(&[[u8; N]; 9]) -> [[u8; N]; winograd::PLACES] {
    move |g| {
        let g = std::array::from_fn(|t| number(&g[t]));
        winograd::transformed_filter(&g).map(|v| {
            let mut raw = [0; N];
            raw.copy_from_slice(&element(v));
            raw
        })
    }
}

/// Writes elements `apart` from each other.
fn spread<const N: usize>(to: &mut [[u8; N]], apart: usize, elements: &[[u8; N]]) {
    for (i, e) in elements.iter().enumerate() {
        to[i * apart] = *e;
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
        let (dtype, bytes) = (w.dtype(), w.bytes());
        let number = |e: &[u8]| read_f64(dtype, e, 0);
        let element = |v: f64| {
            let mut out = Encoder::new(dtype, 1);
            out.push_f64(v);
            out.finish()
        };
        let packed = match dtype.size() {
            Some(4) if dtype == DType::F32 => self.packed(&s, bytes.as_chunks::<4>().0, |g| {
                let g = g.map(|e| f64::from(f32::from_le_bytes(e)));
                winograd::transformed_filter(&g).map(|v| (v as f32).to_le_bytes())
            }),
            Some(1) => self.packed(&s, bytes.as_chunks::<1>().0, by_element(number, element)),
            Some(2) => self.packed(&s, bytes.as_chunks::<2>().0, by_element(number, element)),
            Some(8) => self.packed(&s, bytes.as_chunks::<8>().0, by_element(number, element)),
            _ => return Err(EvalError(format!("filters of {dtype} are not packed"))),
        };
        let y = Tensor::new(dtype, shape, packed);
        Ok(vec![y.map_err(|e| EvalError(e.to_string()))?])
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
