//! Ops that move elements and compute nothing.

use crate::Dim;

/// The same elements in row-major order under another shape; equal element
/// counts are required (a guard where it is not known).
#[derive(Clone, Debug, PartialEq)]
pub struct Reshape {
    /// The result's shape.
    pub shape: Vec<Dim>,
}

/// Broadcasts to a shape as NumPy does: new axes in front, extents of 1 repeat.
#[derive(Clone, Debug, PartialEq)]
pub struct Broadcast {
    /// The result's shape.
    pub shape: Vec<Dim>,
}

/// A permutation of 0..n, proved by construction.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Perm(Vec<usize>);

impl Perm {
    /// `v` if it is a permutation.
    pub fn new(v: Vec<usize>) -> Option<Perm> {
        let mut seen = vec![false; v.len()];
        for &i in &v {
            if std::mem::replace(seen.get_mut(i)?, true) {
                return None;
            }
        }
        Some(Perm(v))
    }

    /// Result axis `i` is argument axis `self.axes()[i]`.
    pub fn axes(&self) -> &[usize] {
        &self.0
    }

    /// Whether nothing moves.
    pub fn is_identity(&self) -> bool {
        self.0.iter().enumerate().all(|(i, &p)| i == p)
    }

    /// `self` after `inner`: transposing by `inner` and then by `self`.
    pub fn after(&self, inner: &Perm) -> Perm {
        Perm(self.0.iter().map(|&i| inner.0[i]).collect())
    }

    /// What undoes it.
    pub fn inverse(&self) -> Perm {
        let mut v = vec![0; self.0.len()];
        self.0.iter().enumerate().for_each(|(i, &p)| v[p] = i);
        Perm(v)
    }
}

/// Permutes axes.
#[derive(Clone, Debug, PartialEq)]
pub struct Transpose {
    /// Result axis `i` is argument axis `perm[i]`.
    pub perm: Perm,
}

/// A strided box, one entry per axis: element `i` of an axis is argument index
/// `start + i*step`, for `i < size`. Nothing is clamped: importers clamp.
#[derive(Clone, Debug, PartialEq)]
pub struct Slice {
    /// First index taken.
    pub starts: Vec<Dim>,
    /// Elements taken.
    pub sizes: Vec<Dim>,
    /// Steps, not 0; negative steps walk back.
    pub steps: Vec<i64>,
}

/// Joins arguments along an axis.
#[derive(Clone, Debug, PartialEq)]
pub struct Concat {
    /// The axis.
    pub axis: usize,
}

/// What stands beyond the border.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PadMode {
    /// The second argument, a scalar.
    Constant,
    /// Mirrored without the border element.
    Reflect,
    /// The border element.
    Edge,
    /// From the other side.
    Wrap,
}

/// `pad(x, value)`: adds elements before and after each axis (negative counts
/// take away).
#[derive(Clone, Debug, PartialEq)]
pub struct Pad {
    /// Elements before.
    pub lo: Vec<Dim>,
    /// Elements after.
    pub hi: Vec<Dim>,
    /// What they are.
    pub mode: PadMode,
}
