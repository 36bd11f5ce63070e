//! Reductions, cumulations and selections.

use crate::{Dim, ReduceFn};

/// Reduces axes; mnemonic `reduce_sum`, `reduce_max` …
#[derive(Clone, Debug, PartialEq)]
pub struct Reduce {
    /// The function.
    pub f: ReduceFn,
    /// The axes, ascending.
    pub axes: Vec<usize>,
    /// Whether they stay with extent 1.
    pub keep: bool,
}

/// The i64 index of the largest or smallest element along an axis.
#[derive(Clone, Debug, PartialEq)]
pub struct ArgReduce {
    /// Largest (else smallest).
    pub largest: bool,
    /// The axis.
    pub axis: usize,
    /// Whether it stays with extent 1.
    pub keep: bool,
    /// Among equals, the last (else the first).
    pub last: bool,
}

/// Running sums or products along an axis.
#[derive(Clone, Debug, PartialEq)]
pub struct Cumulate {
    /// `Sum` or `Prod`, `Max`, `Min`.
    pub f: ReduceFn,
    /// The axis.
    pub axis: usize,
    /// Element `i` leaves itself out.
    pub exclusive: bool,
    /// From the end.
    pub reverse: bool,
}

/// The `k` largest (or smallest) elements along an axis, in order, and their
/// i64 indices; among equals the lower index first.
#[derive(Clone, Debug, PartialEq)]
pub struct TopK {
    /// The axis.
    pub axis: usize,
    /// How many.
    pub k: Dim,
    /// Largest (else smallest).
    pub largest: bool,
}
