//! Ops without arguments (and the random bits).

use crate::graph::SymValue;
use crate::{DType, Dim, Tensor};
use std::sync::Arc;

/// A small literal. Big constants are globals.
#[derive(Clone, Debug, PartialEq)]
pub struct Constant {
    /// Its elements.
    pub value: Tensor,
}

/// The value of a const global.
#[derive(Clone, Debug, PartialEq)]
pub struct Global {
    /// Its name, without `@`.
    pub name: Arc<str>,
}

/// Sizes as an i64 tensor: shape arithmetic, done.
#[derive(Clone, Debug, PartialEq)]
pub struct Dims {
    /// The sizes.
    pub value: SymValue,
}

/// The index along one axis: element `[.., i, ..]` is `i`.
#[derive(Clone, Debug, PartialEq)]
pub struct Iota {
    /// The result's shape.
    pub shape: Vec<Dim>,
    /// The axis that counts.
    pub axis: usize,
    /// The result's dtype.
    pub dtype: DType,
}

/// `philox(key: u64[], offset: u64[]) -> u32[shape]`: counter-based random bits,
/// Philox4x32-10 (Salmon et al., SC 2011). Element `i` is word `i % 4` of block
/// `offset + i / 4`.
#[derive(Clone, Debug, PartialEq)]
pub struct Philox {
    /// The result's shape.
    pub shape: Vec<Dim>,
}
