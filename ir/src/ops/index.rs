//! Ops that read or write where other values say, and ops whose result's size
//! depends on data. Negative indices count from the end; an index out of range
//! is an error at run time.

use crate::Dim;
use std::sync::Arc;

/// `gather(x, indices)`: takes slices of `x` along `axis`; the result's shape is
/// `x`'s with the axis replaced by the indices' shape (ONNX Gather).
#[derive(Clone, Debug, PartialEq)]
pub struct Gather {
    /// The axis of `x`.
    pub axis: usize,
}

/// ONNX GatherElements: `out[i,j] = x[indices[i,j], j]` for axis 0.
#[derive(Clone, Debug, PartialEq)]
pub struct GatherElements {
    /// The axis of `x`.
    pub axis: usize,
}

/// ONNX GatherND.
#[derive(Clone, Debug, PartialEq)]
pub struct GatherNd {
    /// Leading axes shared by both arguments.
    pub batch_dims: usize,
}

/// How scattered updates combine with what is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ScatterFn {
    /// The update replaces (the last in row-major order, where several meet).
    Set,
    /// Sum.
    Add,
    /// Product.
    Mul,
    /// The larger.
    Max,
    /// The smaller.
    Min,
}

/// ONNX ScatterElements: `scatter_elements(x, indices, updates)`.
#[derive(Clone, Debug, PartialEq)]
pub struct ScatterElements {
    /// The axis of `x`.
    pub axis: usize,
    /// How updates combine.
    pub f: ScatterFn,
}

/// ONNX ScatterND: `scatter_nd(x, indices, updates)`.
#[derive(Clone, Debug, PartialEq)]
pub struct ScatterNd {
    /// How updates combine.
    pub f: ScatterFn,
}

/// `dynamic_slice(x, starts: i64[rank])`: a box at a place known when it runs.
/// A box that leaves `x` is an error.
#[derive(Clone, Debug, PartialEq)]
pub struct DynamicSlice {
    /// The box.
    pub sizes: Vec<Dim>,
}

/// `dynamic_update_slice(x, update, starts: i64[rank])`: `x` with a box
/// replaced. Consumes `x`. A box that leaves `x` is an error.
#[derive(Clone, Debug, PartialEq)]
pub struct DynamicUpdateSlice;

/// The indices of nonzero elements, `i64[rank, count]` in row-major order, where
/// `count` is a size of this name known when it runs, at most the element count.
#[derive(Clone, Debug, PartialEq)]
pub struct NonZero {
    /// The minted size.
    pub symbol: Arc<str>,
}

/// `bind_dim(n: i64[])`: gives a size known only when it runs a name. No
/// results; nodes after it may use the size. Negative values are an error.
#[derive(Clone, Debug, PartialEq)]
pub struct BindDim {
    /// The minted size.
    pub symbol: Arc<str>,
    /// The largest it may be, where known.
    pub max: Option<Dim>,
}
