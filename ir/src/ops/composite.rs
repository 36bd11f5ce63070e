//! Composites: ops defined by their expansion.

use crate::DType;
use std::sync::Arc;

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
/// −log softmax(logits)[target] over targets that are not `ignore`.
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

/// `dequantize(x: int, scale, zero_point?)`: `(x − zero_point) * scale`, per
/// tensor (rank 0) or per element of `axis` (rank 1), or in blocks along `axis`.
#[derive(Clone, Debug, PartialEq)]
pub struct Dequantize {
    /// The axis of rank-1 or blocked scales.
    pub axis: usize,
    /// Elements a block; 0 for none.
    pub block: usize,
}

/// `quantize(x: float, scale, zero_point?)`: round half to even, add the zero
/// point, saturate to `to`.
#[derive(Clone, Debug, PartialEq)]
pub struct Quantize {
    /// The axis of rank-1 or blocked scales.
    pub axis: usize,
    /// Elements a block; 0 for none.
    pub block: usize,
    /// The result's dtype.
    pub to: DType,
}

/// Ops defined by their expansion: the blanket `OpDef` derives the rest.
pub trait Composite: Sized {
    /// The name in the text form.
    const MNEMONIC: &'static str;

    /// The same in other ops.
    fn expand(
        &self,
        b: &mut crate::builder::Builder,
        args: &[crate::graph::Value],
    ) -> Result<Vec<crate::graph::Value>, crate::op::TypeError>;

    /// The attributes, for printing.
    fn attrs(&self) -> crate::op::Attrs;

    /// From the attributes.
    fn from_attrs(attrs: &crate::op::Attrs) -> Result<Self, crate::op::TypeError>;
}

/// A shared name, kept for composites that refer to globals.
pub type Name = Arc<str>;
