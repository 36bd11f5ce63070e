//! Composites: ops defined by their expansion.

use crate::builder::Builder;
use crate::graph::Value;
use crate::op::*;
use crate::{DType, Dim, ReduceFn, TensorType, Tri, UnaryFn};

/// Softmax (or its logarithm) along an axis.
#[derive(Clone, Debug, PartialEq)]
pub struct Softmax {
    /// The axis.
    pub axis: usize,
    /// The logarithm.
    pub log: bool,
}

/// GELU (Hendrycks and Gimpel 2016): exact by erf, or the tanh approximation.
#[derive(Clone, Debug, PartialEq)]
pub struct Gelu {
    /// The tanh approximation.
    pub tanh: bool,
}

/// `x * sigmoid(x)`.
#[derive(Clone, Debug, PartialEq)]
pub struct Silu;

/// `layer_norm(x, scale, bias)` over the axes from `axis` on (Ba et al. 2016);
/// scale and bias have the shape of those axes.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerNorm {
    /// First axis normalised.
    pub axis: usize,
    /// Added to the variance.
    pub eps: f64,
}

/// `rms_norm(x, scale)` over the axes from `axis` on (Zhang and Sennrich 2019).
#[derive(Clone, Debug, PartialEq)]
pub struct RmsNorm {
    /// First axis normalised.
    pub axis: usize,
    /// Added to the mean square.
    pub eps: f64,
}

/// `cross_entropy(logits: f[.., classes], target: i64[..]) -> f[]`: the mean of
/// −log softmax(logits)[target] over targets that are not `ignore` (NaN if there
/// are none). The loss of f16 and bf16 logits is f32.
#[derive(Clone, Debug, PartialEq)]
pub struct CrossEntropy {
    /// The target that does not count.
    pub ignore: i64,
}

/// `embedding(table: f[n, d], ids: i64[..]) -> f[.., d]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Embedding;

/// `adamw(p, g, m, v, lr: f32[], step: i64[]) -> (p, m, v)` (Loshchilov and
/// Hutter 2019), bias-corrected, `step` counting from 1. Consumes p, m, v.
#[derive(Clone, Debug, PartialEq)]
pub struct AdamW {
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root.
    pub eps: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
}

/// `dequantize(x: int or f8, scale, zero_point?)`: `(x − zero_point) * scale`, of
/// the scale's dtype; per tensor (rank 0) or per element of `axis` (rank 1), or in
/// blocks along `axis` (the scale has `x`'s rank).
#[derive(Clone, Debug, PartialEq)]
pub struct Dequantize {
    /// The axis of rank-1 or blocked scales.
    pub axis: usize,
    /// Elements a block; 0 for none.
    pub block: usize,
}

/// `quantize(x: float, scale, zero_point?)`: divide by the scale, round half to
/// even, add the zero point, saturate to `to` (an integer; to f8: convert).
#[derive(Clone, Debug, PartialEq)]
pub struct Quantize {
    /// The axis of rank-1 or blocked scales.
    pub axis: usize,
    /// Elements a block; 0 for none.
    pub block: usize,
    /// The result's dtype.
    pub to: DType,
}

/// Ops defined by their expansion: a blanket [`OpDef`] derives types, meaning and
/// axes from it (`derive.rs`).
pub trait Composite: Sized {
    /// The name in the text form.
    const MNEMONIC: &'static str;

    /// Arguments that are consumed.
    const DONATES: &'static [usize];

    /// What the arguments must be, beyond what the expansion's ops check: here
    /// the messages speak of this op.
    fn check(&self, args: &[&TensorType]) -> Result<(), TypeError>;

    /// The same in other ops. Types follow from it, so it must hold for every
    /// argument that `check` lets pass.
    fn expand(&self, b: &mut Builder, args: &[Value]) -> Result<Vec<Value>, TypeError>;

    /// The gradient: [`Grad::Expand`] unless the whole has a better one.
    fn grad(&self, b: &mut Builder, io: Io<'_>, d: &[Value]) -> Result<Grad, TypeError>;

    /// The attributes, for printing.
    fn attrs(&self) -> Attrs;

    /// From the attributes.
    fn from_attrs(attrs: &Attrs) -> Result<Self, TypeError>;
}

/// `parse` for composites.
macro_rules! composite_parse {
    ($($ty:ty),* $(,)?) => {$(
        impl $ty {
            /// The op from its text form; none if the mnemonic is another's.
            pub fn parse(
                mnemonic: &str,
                attrs: &crate::op::Attrs,
            ) -> Option<Result<Self, crate::op::TypeError>> {
                use crate::ops::composite::Composite;
                (mnemonic == <$ty>::MNEMONIC).then(|| <$ty>::from_attrs(attrs))
            }
        }
    )*};
}
pub(crate) use composite_parse;

composite_parse! {
    Softmax, Gelu, Silu, LayerNorm, RmsNorm, CrossEntropy, Embedding, AdamW, Dequantize, Quantize,
}

/// The gradient of the expansion.
macro_rules! grad_by_expansion {
    () => {
        fn grad(
            &self,
            _: &mut crate::Builder,
            _: crate::op::Io<'_>,
            _: &[crate::Value],
        ) -> Result<crate::op::Grad, crate::op::TypeError> {
            Ok(crate::op::Grad::Expand)
        }
    };
}
pub(crate) use grad_by_expansion;

/// How many arguments.
pub(crate) fn count(args: &[&TensorType], n: usize) -> Result<(), TypeError> {
    match args.len() {
        k if k == n => Ok(()),
        k => type_err(format!("takes {n} arguments, not {k}")),
    }
}

/// A float of at least 16 bits: what arithmetic is done on.
pub(crate) fn float(ty: &TensorType, what: &str) -> Result<(), TypeError> {
    match ty.dtype {
        DType::F64 | DType::F32 | DType::F16 | DType::BF16 => Ok(()),
        d => type_err(format!(
            "{what} is {d}, which is not a float of 16 bits or more"
        )),
    }
}

/// The dtype in which values of this dtype are computed.
pub(crate) fn wide(dtype: DType) -> DType {
    if dtype == DType::F64 {
        DType::F64
    } else {
        DType::F32
    }
}

/// The value in the dtype in which it is computed.
pub(crate) fn widen(b: &mut Builder, x: Value) -> Result<Value, TypeError> {
    let to = wide(b.ty(x).dtype);
    b.cast(x, to)
}

/// Whether the two extents can be equal.
pub(crate) fn may_be(a: &Dim, b: &Dim, what: &str) -> Result<(), TypeError> {
    match a.same(b) {
        Tri::No => type_err(format!("{what}: {a} is not {b}")),
        Tri::Yes | Tri::Unknown => Ok(()),
    }
}

impl Composite for Softmax {
    const MNEMONIC: &'static str = "softmax";
    const DONATES: &'static [usize] = &[];

    fn check(&self, args: &[&TensorType]) -> Result<(), TypeError> {
        count(args, 1)?;
        float(args[0], "the argument")?;
        super::util::check_axis(self.axis, args[0].rank())
    }

    fn expand(&self, b: &mut Builder, args: &[Value]) -> Result<Vec<Value>, TypeError> {
        let dtype = b.ty(args[0]).dtype;
        let x = widen(b, args[0])?;
        let top = b.reduce(ReduceFn::Max, x, &[self.axis], true)?;
        let x = b.sub(x, top)?;
        let e = b.unary(UnaryFn::Exp, x)?;
        let sum = b.reduce(ReduceFn::Sum, e, &[self.axis], true)?;
        let y = if self.log {
            let log = b.unary(UnaryFn::Log, sum)?;
            b.sub(x, log)?
        } else {
            b.div(e, sum)?
        };
        Ok(vec![b.cast(y, dtype)?])
    }

    /// From the result alone: `y·(d − Σ d·y)`, for the logarithm `d − eʸ·Σ d`.
    fn grad(&self, b: &mut Builder, io: Io<'_>, d: &[Value]) -> Result<Grad, TypeError> {
        let dtype = b.ty(io.args[0]).dtype;
        let (y, d) = (widen(b, io.results[0])?, widen(b, d[0])?);
        let dx = if self.log {
            let sum = b.reduce(ReduceFn::Sum, d, &[self.axis], true)?;
            let p = b.unary(UnaryFn::Exp, y)?;
            let t = b.mul(p, sum)?;
            b.sub(d, t)?
        } else {
            let dy = b.mul(d, y)?;
            let sum = b.reduce(ReduceFn::Sum, dy, &[self.axis], true)?;
            let t = b.sub(d, sum)?;
            b.mul(y, t)?
        };
        Ok(Grad::Args(vec![Some(b.cast(dx, dtype)?)]))
    }

    fn attrs(&self) -> Attrs {
        Attrs::none()
            .with("axis", Attr::Int(self.axis as i64))
            .with("log", Attr::Bool(self.log))
    }

    fn from_attrs(a: &Attrs) -> Result<Self, TypeError> {
        Ok(Softmax {
            axis: a.index("axis")?,
            log: a.bool("log")?,
        })
    }
}

impl Composite for Gelu {
    const MNEMONIC: &'static str = "gelu";
    const DONATES: &'static [usize] = &[];

    fn check(&self, args: &[&TensorType]) -> Result<(), TypeError> {
        count(args, 1)?;
        float(args[0], "the argument")
    }

    /// `x · Φ(x)`, or `x/2 · (1 + tanh …)`.
    fn expand(&self, b: &mut Builder, args: &[Value]) -> Result<Vec<Value>, TypeError> {
        use std::f64::consts::FRAC_2_PI;
        let dtype = b.ty(args[0]).dtype;
        let x = widen(b, args[0])?;
        if !self.tanh {
            let gate = b.unary(UnaryFn::NormalCdf, x)?;
            let y = b.mul(x, gate)?;
            return Ok(vec![b.cast(y, dtype)?]);
        }
        let cubic = b.scalar_like(x, 0.044715)?;
        let factor = b.scalar_like(x, FRAC_2_PI.sqrt())?;
        let square = b.mul(x, x)?;
        let cube = b.mul(square, x)?;
        let bend = b.mul(cubic, cube)?;
        let inner = b.add(x, bend)?;
        let inner = b.mul(factor, inner)?;
        let f = b.unary(UnaryFn::Tanh, inner)?;
        let (half, one) = (b.scalar_like(x, 0.5)?, b.scalar_like(x, 1.0)?);
        let gate = b.add(one, f)?;
        let x = b.mul(half, x)?;
        let y = b.mul(x, gate)?;
        Ok(vec![b.cast(y, dtype)?])
    }

    grad_by_expansion!();

    fn attrs(&self) -> Attrs {
        Attrs::none().with("tanh", Attr::Bool(self.tanh))
    }

    fn from_attrs(a: &Attrs) -> Result<Self, TypeError> {
        Ok(Gelu {
            tanh: a.bool("tanh")?,
        })
    }
}

impl Composite for Silu {
    const MNEMONIC: &'static str = "silu";
    const DONATES: &'static [usize] = &[];

    fn check(&self, args: &[&TensorType]) -> Result<(), TypeError> {
        count(args, 1)?;
        float(args[0], "the argument")
    }

    fn expand(&self, b: &mut Builder, args: &[Value]) -> Result<Vec<Value>, TypeError> {
        let dtype = b.ty(args[0]).dtype;
        let x = widen(b, args[0])?;
        let gate = b.unary(UnaryFn::Sigmoid, x)?;
        let y = b.mul(x, gate)?;
        Ok(vec![b.cast(y, dtype)?])
    }

    grad_by_expansion!();

    fn attrs(&self) -> Attrs {
        Attrs::none()
    }

    fn from_attrs(_: &Attrs) -> Result<Self, TypeError> {
        Ok(Silu)
    }
}
