//! Attention and what belongs to it.

use crate::Dim;

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

use crate::graph::Value;
use crate::op::*;
use crate::ops::composite::{Composite, Softmax, parse_composite, take, widen};
use crate::ops::index::DynamicUpdateSlice;
use crate::ops::source::Iota;
use crate::{BinaryFn, Builder, CompareFn, DType, ReduceFn, Tensor, UnaryFn};

parse_composite!(Rope, Attention, KvCacheAppend);

impl Composite for Rope {
    const MNEMONIC: &'static str = "rope";

    fn expand(&self, b: &mut Builder, args: &[Value]) -> Result<Vec<Value>, TypeError> {
        let [x, cos, sin] = take(args)?;
        let (rank, shape) = (b.ty(x).rank(), b.shape(x));
        let full = shape.last().and_then(Dim::as_const).map(|d| d as usize);
        let Some(full) = full else {
            return type_err("the head size must be a constant");
        };
        let dims = self.rotary_dims.unwrap_or(full);
        if dims == 0 || dims % 2 != 0 || dims > full {
            return type_err(format!("cannot rotate {dims} of {full} features"));
        }
        let (x, dtype) = widen(b, x)?;
        let ((cos, _), (sin, _)) = (widen(b, cos)?, widen(b, sin)?);
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

impl Attention {
    /// Which (query, key) pairs the mask kind shows, `bool[s, t]`; none for all.
    fn seen(&self, b: &mut Builder, s: &Dim, t: &Dim) -> Result<Option<Value>, TypeError> {
        let grid = [s.clone(), t.clone()];
        let index = |b: &mut Builder, axis| {
            b.one(
                Iota {
                    shape: grid.to_vec(),
                    axis,
                    dtype: DType::I64,
                },
                &[],
            )
        };
        let offset = match &self.mask {
            MaskKind::Full => return Ok(None),
            MaskKind::Causal { offset }
            | MaskKind::Sliding { offset, .. }
            | MaskKind::Prefix { offset, .. } => offset,
        };
        let (i, j) = (index(b, 0)?, index(b, 1)?);
        let offset = size(b, offset)?;
        let place = b.add(i, offset)?;
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

    /// How many extra arguments follow q, k and v.
    pub fn extras(&self) -> usize {
        [self.bias, self.keep, self.slopes, self.lengths]
            .into_iter()
            .filter(|&x| x)
            .count()
    }
}

impl Composite for Attention {
    const MNEMONIC: &'static str = "attention";

    fn expand(&self, b: &mut Builder, args: &[Value]) -> Result<Vec<Value>, TypeError> {
        if args.len() != 3 + self.extras() {
            return type_err(format!(
                "takes {} arguments, not {}",
                3 + self.extras(),
                args.len()
            ));
        }
        let (q, k, v) = (args[0], args[1], args[2]);
        if [q, k, v].iter().any(|&x| b.ty(x).rank() != 4) {
            return type_err("q, k and v have four axes: batch, heads, sequence, features");
        }
        let ((q, dtype), (mut k, _), (mut v, _)) = (widen(b, q)?, widen(b, k)?, widen(b, v)?);
        let (qs, ks) = (b.shape(q), b.shape(k));
        let (s, t) = (qs[2].clone(), ks[2].clone());
        if qs[1] != ks[1] {
            // Each key head serves a group of query heads.
            let Some(group) = qs[1].div_exact(&ks[1]) else {
                return type_err(format!("{} query heads over {} key heads", qs[1], ks[1]));
            };
            for x in [&mut k, &mut v] {
                let shape = b.shape(*x);
                let split = [&shape[..2], &[Dim::ONE], &shape[2..]].concat();
                let wide = [&shape[..2], std::slice::from_ref(&group), &shape[2..]].concat();
                let joined = [
                    shape[0].clone(),
                    qs[1].clone(),
                    shape[2].clone(),
                    shape[3].clone(),
                ];
                let r = b.reshape(*x, &split)?;
                let r = b.broadcast_to(r, &wide)?;
                *x = b.reshape(r, &joined)?;
            }
        }
        let raw = b.matmul_t(q, k, false, true)?;
        let scale = b.scalar_like(raw, self.scale)?;
        let mut score = b.mul(raw, scale)?;
        let mut seen = self.seen(b, &s, &t)?;
        let mut rest = args[3..].iter().copied();
        let mut hide = |b: &mut Builder, keep: Value| -> Result<(), TypeError> {
            seen = Some(match seen {
                Some(other) => b.binary(BinaryFn::And, other, keep)?,
                None => keep,
            });
            Ok(())
        };
        if self.bias {
            let bias = rest
                .next()
                .ok_or_else(|| TypeError("the bias is missing".into()))?;
            let (bias, _) = widen(b, bias)?;
            score = b.add(score, bias)?;
        }
        if self.keep {
            let keep = rest
                .next()
                .ok_or_else(|| TypeError("the mask is missing".into()))?;
            hide(b, keep)?;
        }
        let wide = b.ty(score).dtype;
        if self.slopes {
            let slopes = rest
                .next()
                .ok_or_else(|| TypeError("the slopes are missing".into()))?;
            let slopes = b.cast(slopes, wide)?;
            let column = b.reshape(slopes, &[qs[1].clone(), Dim::ONE, Dim::ONE])?;
            let grid = vec![s.clone(), t.clone()];
            let (i, j) = (
                b.one(
                    Iota {
                        shape: grid.clone(),
                        axis: 0,
                        dtype: wide,
                    },
                    &[],
                )?,
                b.one(
                    Iota {
                        shape: grid,
                        axis: 1,
                        dtype: wide,
                    },
                    &[],
                )?,
            );
            let offset = match &self.mask {
                MaskKind::Full => Dim::ZERO,
                MaskKind::Causal { offset }
                | MaskKind::Sliding { offset, .. }
                | MaskKind::Prefix { offset, .. } => offset.clone(),
            };
            let offset = size(b, &offset)?;
            let offset = b.cast(offset, wide)?;
            let place = b.add(i, offset)?;
            let distance = b.sub(j, place)?;
            let alibi = b.mul(column, distance)?;
            score = b.add(score, alibi)?;
        }
        if self.lengths {
            let lengths = rest
                .next()
                .ok_or_else(|| TypeError("the lengths are missing".into()))?;
            let column = b.reshape(lengths, &[qs[0].clone(), Dim::ONE, Dim::ONE, Dim::ONE])?;
            let j = b.one(
                Iota {
                    shape: vec![t.clone()],
                    axis: 0,
                    dtype: DType::I64,
                },
                &[],
            )?;
            let keep = b.compare(CompareFn::Lt, j, column)?;
            hide(b, keep)?;
        }
        let weights = match seen {
            None => b.one(
                Softmax {
                    axis: 3,
                    log: false,
                },
                &[score],
            )?,
            Some(seen) => {
                // A row without a key has maximum −inf and sum 0: it gives 0.
                let never = b.scalar_like(score, f64::NEG_INFINITY)?;
                let zero = b.scalar_like(score, 0.0)?;
                let masked = b.select(seen, score, never)?;
                let max = b.reduce(ReduceFn::Max, masked, &[3], true)?;
                let empty = b.compare(CompareFn::Eq, max, never)?;
                let base = b.select(empty, zero, max)?;
                let shifted = b.sub(masked, base)?;
                let e = b.unary(UnaryFn::Exp, shifted)?;
                let sum = b.reduce(ReduceFn::Sum, e, &[3], true)?;
                let one = b.scalar_like(score, 1.0)?;
                let sum = b.select(empty, one, sum)?;
                b.div(e, sum)?
            }
        };
        let y = b.matmul(weights, v)?;
        Ok(vec![b.cast(y, dtype)?])
    }

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

    fn expand(&self, b: &mut Builder, args: &[Value]) -> Result<Vec<Value>, TypeError> {
        let [cache, new, at] = take(args)?;
        if b.ty(cache).rank() != 4 {
            return type_err("a cache has four axes: batch, heads, sequence, features");
        }
        let one = b.reshape(at, &[Dim::ONE])?;
        let zeros = b.constant(
            Tensor::from_i64(DType::I64, [1], &[0]).map_err(|e| TypeError(e.to_string()))?,
        )?;
        let starts = b.concat(&[zeros, zeros, one, zeros], 0)?;
        Ok(vec![b.one(DynamicUpdateSlice, &[cache, new, starts])?])
    }

    fn attrs(&self) -> Attrs {
        Attrs::none()
    }

    fn from_attrs(_: &Attrs) -> Result<Self, TypeError> {
        Ok(KvCacheAppend)
    }
}
