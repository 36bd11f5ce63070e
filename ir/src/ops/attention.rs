//! Attention and what belongs to it.

use crate::graph::Value;
use crate::op::*;
use crate::ops::composite::{
    Composite, Softmax, composite_parse, count, float, grad_by_expansion, may_be, widen,
};
use crate::ops::index::DynamicUpdateSlice;
use crate::ops::source::Iota;
use crate::{BinaryFn, Builder, CompareFn, DType, Dim, ReduceFn, Tensor, TensorType, UnaryFn};

/// `rope(x: f[b, h, s, d], cos: f[.., s, d/2], sin: f[.., s, d/2])`: rotary
/// position embedding (Su et al. 2021).
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// Pairs are neighbours (GPT-J), else halves (GPT-NeoX, LLaMA).
    pub interleaved: bool,
    /// Leading features that rotate; the rest pass through. None for all.
    pub rotary_dims: Option<usize>,
}

/// Which keys a query sees.
#[derive(Clone, Debug, PartialEq)]
pub enum MaskKind {
    /// All of them.
    Full,
    /// Key `j` for query `i` if `j <= i + offset` (`offset` = keys before the
    /// first query).
    Causal {
        /// Keys before the first query.
        offset: Dim,
    },
    /// Causal, and at most `window` keys back, but always the first `sinks`
    /// (Xiao et al. 2024; 0 for none).
    Sliding {
        /// Keys before the first query.
        offset: Dim,
        /// Keys seen, the query's own included.
        window: i64,
        /// Leading keys always seen.
        sinks: i64,
    },
    /// Causal, and all of the first `prefix` keys.
    Prefix {
        /// Keys before the first query.
        offset: Dim,
        /// Keys seen by all.
        prefix: Dim,
    },
}

/// `attention(q: f[b, h, s, d], k: f[b, g, t, d], v: f[b, g, t, e], extra…) ->
/// f[b, h, s, e]`, `h` a multiple of `g` (grouped queries): softmax(scale·q·kᵀ +
/// bias)·v over the keys that the mask shows. The optional extra arguments, in
/// order: `bias` (float, broadcasts to [b, h, s, t], added), `keep` (bool,
/// broadcasts likewise; false hides the key), `slopes` (f[h], ALiBi: slope·(j − i
/// − offset)), `lengths` (i64[b]: keys at or beyond are hidden). A query that
/// sees no key gives 0.
#[derive(Clone, Debug, PartialEq)]
pub struct Attention {
    /// The score's factor.
    pub scale: f64,
    /// Which keys are seen.
    pub mask: MaskKind,
    /// An additive bias follows.
    pub bias: bool,
    /// A bool mask follows.
    pub keep: bool,
    /// ALiBi slopes follow.
    pub slopes: bool,
    /// Key counts follow.
    pub lengths: bool,
}

/// `kv_cache_append(cache: f[b, g, capacity, d], new: f[b, g, s, d], at: i64[])
/// -> f[b, g, capacity, d]`: writes `new` at position `at` of axis 2. Consumes
/// the cache.
#[derive(Clone, Debug, PartialEq)]
pub struct KvCacheAppend;

composite_parse!(Rope, Attention, KvCacheAppend);

impl Composite for Rope {
    const MNEMONIC: &'static str = "rope";
    const DONATES: &'static [usize] = &[];

    fn check(&self, args: &[&TensorType]) -> Result<(), TypeError> {
        count(args, 3)?;
        for (ty, what) in args.iter().zip(["the argument", "the cosine", "the sine"]) {
            float(ty, what)?;
        }
        let Some(full) = args[0].shape.last().and_then(Dim::as_const) else {
            return type_err(format!("the head size of {} must be a constant", args[0]));
        };
        let dims = self.rotary_dims.map_or(full, |d| d as i64);
        if dims <= 0 || dims % 2 != 0 || dims > full {
            return type_err(format!("cannot rotate {dims} of {full} features"));
        }
        for (ty, what) in args[1..].iter().zip(["the cosines", "the sines"]) {
            match ty.shape.last() {
                Some(d) if ty.rank() <= args[0].rank() => may_be(d, &(dims / 2).into(), what)?,
                _ => return type_err(format!("{what} of {ty} do not go with {}", args[0])),
            }
        }
        Ok(())
    }

    fn expand(&self, b: &mut Builder, args: &[Value]) -> Result<Vec<Value>, TypeError> {
        let (dtype, shape) = (b.ty(args[0]).dtype, b.shape(args[0]));
        let rank = shape.len();
        let full = shape.last().and_then(Dim::as_const).unwrap_or(0) as usize;
        let dims = self.rotary_dims.unwrap_or(full);
        let x = widen(b, args[0])?;
        let compute = b.ty(x).dtype;
        let (cos, sin) = (b.cast(args[1], compute)?, b.cast(args[2], compute)?);
        let last = rank - 1;
        let turned = b.slice_axis(x, last, Dim::ZERO, dims.into())?;
        let (first, second) = if self.interleaved {
            let mut pairs = shape[..last].to_vec();
            pairs.extend([Dim::from(dims / 2), Dim::from(2)]);
            let p = b.reshape(turned, &pairs)?;
            let mut half = shape[..last].to_vec();
            half.push((dims / 2).into());
            let (a, c) = (
                b.slice_axis(p, rank, Dim::ZERO, Dim::ONE)?,
                b.slice_axis(p, rank, Dim::ONE, Dim::ONE)?,
            );
            (b.reshape(a, &half)?, b.reshape(c, &half)?)
        } else {
            let h = Dim::from(dims / 2);
            (
                b.slice_axis(turned, last, Dim::ZERO, h.clone())?,
                b.slice_axis(turned, last, h.clone(), h)?,
            )
        };
        let (fc, ss) = (b.mul(first, cos)?, b.mul(second, sin)?);
        let (sc, fs) = (b.mul(second, cos)?, b.mul(first, sin)?);
        let (p, q) = (b.sub(fc, ss)?, b.add(sc, fs)?);
        let mut y = if self.interleaved {
            let mut one = b.shape(p);
            one.push(Dim::ONE);
            let (p, q) = (b.reshape(p, &one)?, b.reshape(q, &one)?);
            let pairs = b.concat(&[p, q], rank)?;
            let mut whole = shape[..last].to_vec();
            whole.push(dims.into());
            b.reshape(pairs, &whole)?
        } else {
            b.concat(&[p, q], last)?
        };
        if dims < full {
            let rest = b.slice_axis(x, last, dims.into(), (full - dims).into())?;
            y = b.concat(&[y, rest], last)?;
        }
        Ok(vec![b.cast(y, dtype)?])
    }

    grad_by_expansion!();

    fn attrs(&self) -> Attrs {
        let attrs = Attrs::none().with("interleaved", Attr::Bool(self.interleaved));
        match self.rotary_dims {
            Some(d) => attrs.with("rotary_dims", Attr::Int(d as i64)),
            None => attrs,
        }
    }

    fn from_attrs(a: &Attrs) -> Result<Self, TypeError> {
        let rotary_dims = if a.get("rotary_dims").is_ok() {
            Some(a.index("rotary_dims")?)
        } else {
            None
        };
        Ok(Rope {
            interleaved: a.bool("interleaved")?,
            rotary_dims,
        })
    }
}

/// A size as an i64 scalar.
fn size(b: &mut Builder, d: &Dim) -> Result<Value, TypeError> {
    b.dims(crate::SymValue::scalar(d.clone()))
}

/// The optional arguments by name.
struct Extras<'a, T> {
    bias: Option<&'a T>,
    keep: Option<&'a T>,
    slopes: Option<&'a T>,
    lengths: Option<&'a T>,
}

impl Attention {
    /// How many extra arguments follow q, k and v.
    pub fn extras(&self) -> usize {
        [self.bias, self.keep, self.slopes, self.lengths]
            .into_iter()
            .filter(|&x| x)
            .count()
    }

    fn named_extras<'a, T>(&self, args: &'a [T]) -> Extras<'a, T> {
        let mut rest = args.iter();
        let mut next = |present: bool| if present { rest.next() } else { None };
        Extras {
            bias: next(self.bias),
            keep: next(self.keep),
            slopes: next(self.slopes),
            lengths: next(self.lengths),
        }
    }

    /// Keys before the first query.
    fn offset(&self) -> Dim {
        match &self.mask {
            MaskKind::Full => Dim::ZERO,
            MaskKind::Causal { offset }
            | MaskKind::Sliding { offset, .. }
            | MaskKind::Prefix { offset, .. } => offset.clone(),
        }
    }

    /// The position of each query among the keys as a column, and of each key as
    /// a row, as i64.
    fn positions(&self, b: &mut Builder, score: Value) -> Result<(Value, Value), TypeError> {
        let shape = b.shape(score);
        let count = |shape: Vec<Dim>, axis| Iota {
            shape,
            axis,
            dtype: DType::I64,
        };
        let i = b.one(count(vec![shape[2].clone(), Dim::ONE], 0), &[])?;
        let j = b.one(count(vec![Dim::ONE, shape[3].clone()], 1), &[])?;
        let offset = size(b, &self.offset())?;
        Ok((b.add(i, offset)?, j))
    }

    /// `slope · (j − i − offset)`.
    fn alibi(&self, b: &mut Builder, slopes: Value, score: Value) -> Result<Value, TypeError> {
        let (place, j) = self.positions(b, score)?;
        let distance = b.sub(j, place)?;
        let compute = b.ty(score).dtype;
        let (distance, slopes) = (b.cast(distance, compute)?, b.cast(slopes, compute)?);
        let heads = b.shape(score)[1].clone();
        let slopes = b.reshape(slopes, &[heads, Dim::ONE, Dim::ONE])?;
        b.mul(slopes, distance)
    }

    /// Which (query, key) pairs the mask kind shows; none for all.
    fn shown(&self, b: &mut Builder, score: Value) -> Result<Option<Value>, TypeError> {
        if self.mask == MaskKind::Full {
            return Ok(None);
        }
        let (place, j) = self.positions(b, score)?;
        let causal = b.compare(CompareFn::Le, j, place)?;
        Ok(Some(match &self.mask {
            MaskKind::Full | MaskKind::Causal { .. } => causal,
            MaskKind::Sliding { window, sinks, .. } => {
                let window = b.constant(Tensor::scalar_i64(DType::I64, *window))?;
                let first = b.sub(place, window)?;
                let near = b.compare(CompareFn::Gt, j, first)?;
                let sinks = b.constant(Tensor::scalar_i64(DType::I64, *sinks))?;
                let sink = b.compare(CompareFn::Lt, j, sinks)?;
                let kept = b.binary(BinaryFn::Or, near, sink)?;
                b.binary(BinaryFn::And, causal, kept)?
            }
            MaskKind::Prefix { prefix, .. } => {
                let prefix = size(b, prefix)?;
                let inside = b.compare(CompareFn::Lt, j, prefix)?;
                b.binary(BinaryFn::Or, causal, inside)?
            }
        }))
    }

    /// The pairs that the mask kind, the mask and the lengths all show.
    fn visible(
        &self,
        b: &mut Builder,
        extras: &Extras<Value>,
        score: Value,
    ) -> Result<Option<Value>, TypeError> {
        let mut visible = self.shown(b, score)?;
        let mut hide = |b: &mut Builder, keep: Value| -> Result<(), TypeError> {
            visible = Some(match visible {
                Some(other) => b.binary(BinaryFn::And, other, keep)?,
                None => keep,
            });
            Ok(())
        };
        if let Some(&keep) = extras.keep {
            hide(b, keep)?;
        }
        if let Some(&lengths) = extras.lengths {
            let shape = b.shape(score);
            let lengths = b.cast(lengths, DType::I64)?;
            let column = b.reshape(lengths, &[shape[0].clone(), Dim::ONE, Dim::ONE, Dim::ONE])?;
            let keys = Iota {
                shape: vec![shape[3].clone()],
                axis: 0,
                dtype: DType::I64,
            };
            let j = b.one(keys, &[])?;
            let keep = b.compare(CompareFn::Lt, j, column)?;
            hide(b, keep)?;
        }
        Ok(visible)
    }
}

/// Each of `g` heads repeated for its group of query heads.
fn share_heads(b: &mut Builder, x: Value, heads: &Dim) -> Result<Value, TypeError> {
    let shape = b.shape(x);
    if shape[1] == *heads {
        return Ok(x);
    }
    let Some(group) = heads.div_exact(&shape[1]) else {
        return type_err(format!(
            "{heads} query heads do not divide among {} key heads",
            shape[1]
        ));
    };
    let mut split = shape.clone();
    split.insert(2, Dim::ONE);
    let mut wide = shape.clone();
    wide.insert(2, group);
    let mut joined = shape;
    joined[1] = heads.clone();
    let x = b.reshape(x, &split)?;
    let x = b.broadcast_to(x, &wide)?;
    b.reshape(x, &joined)
}

/// Softmax over the last axis of what is visible. A row that sees nothing (its
/// largest score is −inf) is 0.
fn masked_softmax(
    b: &mut Builder,
    score: Value,
    visible: Option<Value>,
) -> Result<Value, TypeError> {
    let never = b.scalar_like(score, f64::NEG_INFINITY)?;
    let (zero, one) = (b.scalar_like(score, 0.0)?, b.scalar_like(score, 1.0)?);
    let score = match visible {
        Some(visible) => b.select(visible, score, never)?,
        None => score,
    };
    let max = b.reduce(ReduceFn::Max, score, &[3], true)?;
    let empty = b.compare(CompareFn::Eq, max, never)?;
    let base = b.select(empty, zero, max)?;
    let shifted = b.sub(score, base)?;
    let e = b.unary(UnaryFn::Exp, shifted)?;
    let sum = b.reduce(ReduceFn::Sum, e, &[3], true)?;
    let sum = b.select(empty, one, sum)?;
    b.div(e, sum)
}

impl Composite for Attention {
    const MNEMONIC: &'static str = "attention";
    const DONATES: &'static [usize] = &[];

    fn check(&self, args: &[&TensorType]) -> Result<(), TypeError> {
        count(args, 3 + self.extras())?;
        for (ty, what) in args.iter().zip(["the query", "the key", "the value"]) {
            float(ty, what)?;
            if ty.rank() != 4 {
                return type_err(format!(
                    "{what} has the axes batch, head, position, feature; it is {ty}"
                ));
            }
        }
        let (q, k, v) = (args[0], args[1], args[2]);
        may_be(&q.shape[0], &k.shape[0], "the batch of query and key")?;
        may_be(&q.shape[3], &k.shape[3], "the features of query and key")?;
        for axis in 0..3 {
            may_be(
                &k.shape[axis],
                &v.shape[axis],
                "the extents of key and value",
            )?;
        }
        if q.shape[1] != k.shape[1] && q.shape[1].div_exact(&k.shape[1]).is_none() {
            return type_err(format!(
                "{} query heads do not divide among {} key heads",
                q.shape[1], k.shape[1]
            ));
        }
        let extras = self.named_extras(&args[3..]);
        if let Some(&ty) = extras.bias {
            float(ty, "the bias")?;
        }
        if let Some(ty) = extras.keep.filter(|ty| ty.dtype != DType::Bool) {
            return type_err(format!("the mask is bool, not {ty}"));
        }
        if let Some(ty) = extras
            .bias
            .into_iter()
            .chain(extras.keep)
            .find(|ty| ty.rank() > 4)
        {
            return type_err(format!("{ty} does not broadcast to the scores"));
        }
        if let Some(ty) = extras.slopes {
            float(ty, "a slope")?;
            let heads = ty.shape.first().filter(|_| ty.rank() == 1);
            may_be(
                heads.unwrap_or(&Dim::ZERO),
                &q.shape[1],
                "the number of slopes and of heads",
            )?;
        }
        if let Some(ty) = extras.lengths {
            let rows = ty
                .shape
                .first()
                .filter(|_| ty.rank() == 1 && ty.dtype.is_int());
            may_be(
                rows.unwrap_or(&Dim::ZERO),
                &q.shape[0],
                "the number of lengths and the batch",
            )?;
        }
        Ok(())
    }

    fn expand(&self, b: &mut Builder, args: &[Value]) -> Result<Vec<Value>, TypeError> {
        let dtype = b.ty(args[0]).dtype;
        let q = widen(b, args[0])?;
        let compute = b.ty(q).dtype;
        let (k, v) = (b.cast(args[1], compute)?, b.cast(args[2], compute)?);
        let heads = b.shape(q)[1].clone();
        let (k, v) = (share_heads(b, k, &heads)?, share_heads(b, v, &heads)?);
        let extras = self.named_extras(&args[3..]);
        let raw = b.matmul_t(q, k, false, true)?;
        let scale = b.scalar_like(raw, self.scale)?;
        let mut score = b.mul(raw, scale)?;
        if let Some(&bias) = extras.bias {
            let bias = b.cast(bias, compute)?;
            score = b.add(score, bias)?;
        }
        if let Some(&slopes) = extras.slopes {
            let alibi = self.alibi(b, slopes, score)?;
            score = b.add(score, alibi)?;
        }
        let weights = match self.visible(b, &extras, score)? {
            None if !self.bias => b.one(
                Softmax {
                    axis: 3,
                    log: false,
                },
                &[score],
            )?,
            visible => masked_softmax(b, score, visible)?,
        };
        let y = b.matmul(weights, v)?;
        Ok(vec![b.cast(y, dtype)?])
    }

    grad_by_expansion!();

    fn attrs(&self) -> Attrs {
        let attrs = Attrs::none().with("scale", Attr::Float(self.scale));
        let named = |a: Attrs, n: &str| a.with("mask", Attr::Name(n.into()));
        let mut attrs = match &self.mask {
            MaskKind::Full => named(attrs, "full"),
            MaskKind::Causal { offset } => {
                named(attrs, "causal").with("offset", Attr::Dim(offset.clone()))
            }
            MaskKind::Sliding {
                offset,
                window,
                sinks,
            } => named(attrs, "sliding")
                .with("offset", Attr::Dim(offset.clone()))
                .with("window", Attr::Int(*window))
                .with("sinks", Attr::Int(*sinks)),
            MaskKind::Prefix { offset, prefix } => named(attrs, "prefix")
                .with("offset", Attr::Dim(offset.clone()))
                .with("prefix", Attr::Dim(prefix.clone())),
        };
        let flags = [
            ("bias", self.bias),
            ("keep", self.keep),
            ("slopes", self.slopes),
            ("lengths", self.lengths),
        ];
        for (name, set) in flags {
            if set {
                attrs = attrs.with(name, Attr::Bool(true));
            }
        }
        attrs
    }

    fn from_attrs(a: &Attrs) -> Result<Self, TypeError> {
        let flag = |name: &str| {
            if a.get(name).is_ok() {
                a.bool(name)
            } else {
                Ok(false)
            }
        };
        let mask = match a.name("mask")? {
            "full" => MaskKind::Full,
            "causal" => MaskKind::Causal {
                offset: a.dim("offset")?,
            },
            "sliding" => MaskKind::Sliding {
                offset: a.dim("offset")?,
                window: a.int("window")?,
                sinks: a.int("sinks")?,
            },
            "prefix" => MaskKind::Prefix {
                offset: a.dim("offset")?,
                prefix: a.dim("prefix")?,
            },
            other => return type_err(format!("there is no mask kind `{other}`")),
        };
        Ok(Attention {
            scale: a.float("scale")?,
            mask,
            bias: flag("bias")?,
            keep: flag("keep")?,
            slopes: flag("slopes")?,
            lengths: flag("lengths")?,
        })
    }
}

impl Composite for KvCacheAppend {
    const MNEMONIC: &'static str = "kv_cache_append";
    const DONATES: &'static [usize] = &[0];

    fn check(&self, args: &[&TensorType]) -> Result<(), TypeError> {
        count(args, 3)?;
        let (cache, new, at) = (args[0], args[1], args[2]);
        if cache.rank() != 4 || new.rank() != 4 {
            return type_err(format!(
                "the axes are batch, head, position, feature; they are {cache} and {new}"
            ));
        }
        for axis in [0, 1, 3] {
            may_be(
                &new.shape[axis],
                &cache.shape[axis],
                "the extents of the cache and of what is added",
            )?;
        }
        if new.shape[2].le(&cache.shape[2]) == crate::Tri::No {
            return type_err(format!(
                "{} positions do not fit into {}",
                new.shape[2], cache.shape[2]
            ));
        }
        if at.rank() != 0 || !at.dtype.is_int() {
            return type_err(format!("the position is an integer scalar, not {at}"));
        }
        Ok(())
    }

    fn expand(&self, b: &mut Builder, args: &[Value]) -> Result<Vec<Value>, TypeError> {
        let dtype = b.ty(args[0]).dtype;
        let new = b.cast(args[1], dtype)?;
        let at = b.cast(args[2], DType::I64)?;
        let at = b.reshape(at, &[Dim::ONE])?;
        let zero = b.full(DType::I64, &[Dim::ONE], 0.0)?;
        let starts = b.concat(&[zero, zero, at, zero], 0)?;
        Ok(vec![b.one(DynamicUpdateSlice, &[args[0], new, starts])?])
    }

    grad_by_expansion!();

    fn attrs(&self) -> Attrs {
        Attrs::none()
    }

    fn from_attrs(_: &Attrs) -> Result<Self, TypeError> {
        Ok(KvCacheAppend)
    }
}
