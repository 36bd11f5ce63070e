//! Elementwise ops. Arguments broadcast against each other as in NumPy.

use crate::{BinaryFn, CompareFn, DType, UnaryFn};

/// `f(x)` elementwise; the mnemonic is the function's name.
#[derive(Clone, Debug, PartialEq)]
pub struct Unary {
    /// The function.
    pub f: UnaryFn,
}

/// `f(a, b)` elementwise; both of one dtype; the mnemonic is the function's name.
#[derive(Clone, Debug, PartialEq)]
pub struct Binary {
    /// The function.
    pub f: BinaryFn,
}

/// `f(a, b)` elementwise, giving bool; the mnemonic is the function's name.
#[derive(Clone, Debug, PartialEq)]
pub struct Compare {
    /// The comparison.
    pub f: CompareFn,
}

/// `select(cond, a, b)`: `a` where `cond`, else `b`.
#[derive(Clone, Debug, PartialEq)]
pub struct Select;

/// Conversion: floats round to nearest even, float to integer truncates and
/// saturates (NaN gives 0), integers wrap, bool is `x != 0`.
#[derive(Clone, Debug, PartialEq)]
pub struct Cast {
    /// The result's dtype.
    pub to: DType,
}
