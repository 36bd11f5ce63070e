//! Contractions and the layouts of what they read.

use crate::DType;

/// `matmul(a, b)`: `[.., m, k] · [.., k, n]`, leading axes broadcast. Both of
/// one dtype; f16 and bf16 accumulate in f32, integers in i32 where `out` says so.
#[derive(Clone, Debug, PartialEq)]
pub struct MatMul {
    /// `a` is `[.., k, m]`.
    pub transpose_a: bool,
    /// `b` is `[.., n, k]`.
    pub transpose_b: bool,
    /// The result's dtype; none for the arguments'.
    pub out: Option<DType>,
}

/// `pack(w)`: the last two axes `[k, n]` (or `[n, k]` if `transposed`) as panels
/// `[ceil(n/nr), k, nr]`, zero-padded: what the matmul kernels read.
#[derive(Clone, Debug, PartialEq)]
pub struct Pack {
    /// Columns a panel.
    pub nr: usize,
    /// `w` is `[.., n, k]`.
    pub transposed: bool,
}

/// `decode(x)`: the plain elements of an encoded value.
#[derive(Clone, Debug, PartialEq)]
pub struct Decode;
