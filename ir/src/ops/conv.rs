//! Convolution, over any number of spatial axes.

use crate::builder::Builder;
use crate::graph::Value;
use crate::op::*;
use crate::ops::composite::*;
use crate::ops::contract::MatMul;
use crate::ops::layout::{Pad, PadMode};
use crate::ops::window::Unfold;
use crate::{DType, Dim, TensorType};

/// `conv(x: f[n, c, ..], w: f[m, c/groups, k..], bias?: f[m]) -> f[n, m, ..]`: the
/// cross-correlation of `x`, padded with zeros, and `w` (ONNX's Conv). Of i32 likewise;
/// bytes, of either sign, are summed in i32 where `out` says so, and the third argument
/// is then what `x` is padded with, a scalar of its type.
#[derive(Clone, Debug, PartialEq)]
pub struct Conv {
    /// From one result element to the next, by spatial axis.
    pub strides: Vec<usize>,
    /// From one tap to the next.
    pub dilations: Vec<usize>,
    /// Zeros before each spatial axis.
    pub lo: Vec<Dim>,
    /// Zeros after each spatial axis.
    pub hi: Vec<Dim>,
    /// Channels come in this many groups that do not meet.
    pub groups: usize,
    /// The result's dtype; none for the arguments'.
    pub out: Option<DType>,
}

/// Depthwise convolutions of at most this many taps are sums of shifted products,
/// which fuse; larger ones are matrix products, as all others are.
const UNROLLED_TAPS: usize = 32;

composite_parse! { Conv }

/// What a convolution's arguments say.
struct Sizes {
    batch: Dim,
    channels: i64,
    filters: i64,
    taps: Vec<usize>,
}

impl Conv {
    fn sizes(&self, x: &TensorType, w: &TensorType) -> Result<Sizes, TypeError> {
        let constant = |d: &Dim, what: &str| {
            d.as_const()
                .filter(|&d| d > 0)
                .ok_or_else(|| TypeError(format!("{what} is {d}, not a constant above 0")))
        };
        let taps = w.shape[2..]
            .iter()
            .map(|d| constant(d, "an extent of the filter").map(|d| d as usize))
            .collect::<Result<_, _>>()?;
        Ok(Sizes {
            batch: x.shape[0].clone(),
            channels: constant(&x.shape[1], "the number of channels")?,
            filters: constant(&w.shape[0], "the number of filters")?,
            taps,
        })
    }

    /// What `args` add to each result: none where they are bytes.
    fn bias(&self, args: &[Value]) -> Option<Value> {
        args.get(2).copied().filter(|_| self.out.is_none())
    }

    /// `x` with its border.
    fn padded(&self, b: &mut Builder, args: &[Value]) -> Result<Value, TypeError> {
        let x = args[0];
        if self.lo.iter().chain(&self.hi).all(|d| *d == Dim::ZERO) {
            return Ok(x);
        }
        let with_outer = |d: &[Dim]| [&[Dim::ZERO, Dim::ZERO], d].concat();
        let (lo, hi) = (with_outer(&self.lo), with_outer(&self.hi));
        let around = match args.get(2).filter(|_| self.out.is_some()) {
            Some(&pad) => pad,
            None => b.scalar_like(x, 0.0)?,
        };
        let mode = PadMode::Constant;
        b.one(Pad { lo, hi, mode }, &[x, around])
    }

    /// One product and sum a tap: `x` is `[n, c, windows, taps, ..]`.
    fn depthwise(
        &self,
        b: &mut Builder,
        x: Value,
        w: Value,
        taps: &[usize],
    ) -> Result<Value, TypeError> {
        let mut column: Vec<Dim> = vec![b.shape(w)[0].clone()];
        taps.iter()
            .for_each(|&k| column.extend([Dim::ONE, k.into()]));
        let w = b.reshape(w, &column)?;
        let mut sum: Option<Value> = None;
        for tap in 0..taps.iter().product::<usize>() {
            let (mut xk, mut wk, mut rest) = (x, w, tap);
            for (i, &k) in taps.iter().enumerate().rev() {
                let at = Dim::from(rest % k);
                rest /= k;
                xk = b.slice_axis(xk, 3 + 2 * i, at.clone(), Dim::ONE)?;
                wk = b.slice_axis(wk, 2 + 2 * i, at, Dim::ONE)?;
            }
            if let Some(out) = self.out {
                (xk, wk) = (b.cast(xk, out)?, b.cast(wk, out)?);
            }
            let product = b.mul(xk, wk)?;
            sum = Some(match sum {
                Some(s) => b.add(s, product)?,
                None => product,
            });
        }
        sum.ok_or_else(|| TypeError("a filter has no taps".into()))
    }

    /// A matrix product a group: `x` is `[n, c, windows, taps, ..]`.
    fn product(&self, b: &mut Builder, x: Value, w: Value, s: &Sizes) -> Result<Value, TypeError> {
        let spatial = s.taps.len();
        let windows: Vec<Dim> = (0..spatial)
            .map(|i| b.shape(x)[2 + 2 * i].clone())
            .collect();
        let mut perm = vec![0, 1];
        perm.extend((0..spatial).map(|i| 3 + 2 * i));
        perm.extend((0..spatial).map(|i| 2 + 2 * i));
        let x = b.transpose(x, &perm)?;
        let groups = self.groups as i64;
        let depth = s.channels / groups * s.taps.iter().product::<usize>() as i64;
        let places = Dim::product(&windows);
        let columns = [s.batch.clone(), groups.into(), depth.into(), places];
        let rows = [groups.into(), (s.filters / groups).into(), depth.into()];
        // One group is a plain batched product, which the kernels like better.
        let skip = |d: &[Dim], at: usize| {
            let mut d = d.to_vec();
            if self.groups == 1 {
                d.remove(at);
            }
            d
        };
        let x = b.reshape(x, &skip(&columns, 1))?;
        let w = b.reshape(w, &skip(&rows, 0))?;
        let product = MatMul {
            transpose_a: false,
            transpose_b: false,
            out: self.out,
            tf32: false,
        };
        b.one(product, &[w, x])
    }
}

impl Composite for Conv {
    const MNEMONIC: &'static str = "conv";
    const DONATES: &'static [usize] = &[];

    fn check(&self, args: &[&TensorType]) -> Result<(), TypeError> {
        if !(2..=3).contains(&args.len()) {
            return type_err(format!("takes 2 or 3 arguments, not {}", args.len()));
        }
        let (x, w) = (args[0], args[1]);
        let byte = |t: &TensorType| matches!(t.dtype, DType::I8 | DType::U8);
        let types = match self.out {
            None => x.dtype == w.dtype && (x.dtype.is_float() || x.dtype == DType::I32),
            Some(out) => byte(x) && byte(w) && out == DType::I32,
        };
        if !types || x.rank() < 3 || w.rank() != x.rank() {
            return type_err(format!("cannot convolve {x} with {w}"));
        }
        let spatial = x.rank() - 2;
        let lists = [
            self.strides.len(),
            self.dilations.len(),
            self.lo.len(),
            self.hi.len(),
        ];
        if lists != [spatial; 4] {
            return type_err(format!(
                "needs a stride, a dilation and two paddings for each of {spatial} axes"
            ));
        }
        let s = self.sizes(x, w)?;
        let groups = self.groups as i64;
        if groups < 1 || s.channels % groups != 0 || s.filters % groups != 0 {
            return type_err(format!(
                "{} channels and {} filters do not make {groups} groups",
                s.channels, s.filters
            ));
        }
        let depth = Dim::from(s.channels / groups);
        may_be(&w.shape[1], &depth, "channels of a group")?;
        if let (Some(pad), Some(_)) = (args.get(2), self.out) {
            if pad.dtype != x.dtype || pad.rank() != 0 {
                return type_err(format!("{x} is padded with {pad}"));
            }
        } else if let Some(bias) = args.get(2) {
            if bias.dtype != x.dtype || bias.rank() != 1 {
                return type_err(format!("the bias is {bias}"));
            }
            may_be(&bias.shape[0], &w.shape[0], "elements of the bias")?;
        }
        Ok(())
    }

    fn expand(&self, b: &mut Builder, args: &[Value]) -> Result<Vec<Value>, TypeError> {
        let s = self.sizes(&b.ty(args[0]), &b.ty(args[1]))?;
        let mut x = self.padded(b, args)?;
        let mut shape = vec![s.batch.clone(), s.filters.into()];
        for (i, &size) in s.taps.iter().enumerate() {
            let window = Unfold {
                axis: 2 + 2 * i,
                size,
                step: self.strides[i],
                dilation: self.dilations[i],
            };
            x = b.one(window, &[x])?;
            shape.push(b.shape(x)[2 + 2 * i].clone());
        }
        let count: usize = s.taps.iter().product();
        let alone = s.channels == self.groups as i64 && s.filters == s.channels;
        let y = if alone && count <= UNROLLED_TAPS {
            self.depthwise(b, x, args[1], &s.taps)?
        } else {
            self.product(b, x, args[1], &s)?
        };
        let mut y = b.reshape(y, &shape)?;
        if let Some(bias) = self.bias(args) {
            let mut column = vec![Dim::ONE; s.taps.len() + 1];
            column[0] = s.filters.into();
            let bias = b.reshape(bias, &column)?;
            y = b.add(y, bias)?;
        }
        Ok(vec![y])
    }

    grad_by_expansion!();

    fn attrs(&self) -> Attrs {
        let ints = |v: &[usize]| v.iter().map(|&i| i as i64).collect::<Vec<_>>();
        let attrs = Attrs::none()
            .with_ints("strides", ints(&self.strides))
            .with_ints("dilations", ints(&self.dilations))
            .with("lo", Attr::Dims(self.lo.clone()))
            .with("hi", Attr::Dims(self.hi.clone()))
            .with("groups", Attr::Int(self.groups as i64));
        match self.out {
            Some(d) => attrs.with("out", Attr::Name(d.name().into())),
            None => attrs,
        }
    }

    fn from_attrs(a: &Attrs) -> Result<Self, TypeError> {
        Ok(Conv {
            strides: a.indices("strides")?,
            dilations: a.indices("dilations")?,
            lo: a.dims("lo")?,
            hi: a.dims("hi")?,
            groups: a.index("groups")?,
            out: match a.get("out") {
                Ok(_) => Some(a.dtype("out")?),
                Err(_) => None,
            },
        })
    }
}
