//! One-op conveniences of the builder.

use super::contract::MatMul;
use super::elementwise::{Binary, Cast, Compare, Select, Unary};
use super::index::Gather;
use super::layout::{Broadcast, Concat, Perm, Reshape, Slice, Transpose};
use super::reduce::Reduce;
use crate::op::TypeError;
use crate::{BinaryFn, Builder, CompareFn, DType, Dim, ReduceFn, UnaryFn, Value};

#[allow(missing_docs)]
impl Builder<'_> {
    pub fn unary(&mut self, f: UnaryFn, x: Value) -> Result<Value, TypeError> {
        self.one(Unary { f }, &[x])
    }

    pub fn binary(&mut self, f: BinaryFn, a: Value, b: Value) -> Result<Value, TypeError> {
        self.one(Binary { f }, &[a, b])
    }

    pub fn compare(&mut self, f: CompareFn, a: Value, b: Value) -> Result<Value, TypeError> {
        self.one(Compare { f }, &[a, b])
    }

    pub fn add(&mut self, a: Value, b: Value) -> Result<Value, TypeError> {
        self.binary(BinaryFn::Add, a, b)
    }

    pub fn sub(&mut self, a: Value, b: Value) -> Result<Value, TypeError> {
        self.binary(BinaryFn::Sub, a, b)
    }

    pub fn mul(&mut self, a: Value, b: Value) -> Result<Value, TypeError> {
        self.binary(BinaryFn::Mul, a, b)
    }

    pub fn div(&mut self, a: Value, b: Value) -> Result<Value, TypeError> {
        self.binary(BinaryFn::Div, a, b)
    }

    pub fn select(&mut self, cond: Value, a: Value, b: Value) -> Result<Value, TypeError> {
        self.one(Select, &[cond, a, b])
    }

    /// A cast; none where the dtype is right already.
    pub fn cast(&mut self, x: Value, to: DType) -> Result<Value, TypeError> {
        if self.ty(x).dtype == to {
            Ok(x)
        } else {
            self.one(Cast { to }, &[x])
        }
    }

    /// A scalar of `x`'s dtype.
    pub fn scalar_like(&mut self, x: Value, value: f64) -> Result<Value, TypeError> {
        let dtype = self.ty(x).dtype;
        self.scalar(dtype, value)
    }

    pub fn reshape(&mut self, x: Value, shape: &[Dim]) -> Result<Value, TypeError> {
        if self.shape(x) == shape {
            return Ok(x);
        }
        self.one(
            Reshape {
                shape: shape.to_vec(),
            },
            &[x],
        )
    }

    pub fn broadcast_to(&mut self, x: Value, shape: &[Dim]) -> Result<Value, TypeError> {
        if self.shape(x) == shape {
            return Ok(x);
        }
        self.one(
            Broadcast {
                shape: shape.to_vec(),
            },
            &[x],
        )
    }

    pub fn transpose(&mut self, x: Value, perm: &[usize]) -> Result<Value, TypeError> {
        let perm = Perm::new(perm.to_vec())
            .ok_or_else(|| TypeError(format!("{perm:?} is no permutation")))?;
        if perm.is_identity() {
            Ok(x)
        } else {
            self.one(Transpose { perm }, &[x])
        }
    }

    /// Elements `start .. start + size` of one axis.
    pub fn slice_axis(
        &mut self,
        x: Value,
        axis: usize,
        start: Dim,
        size: Dim,
    ) -> Result<Value, TypeError> {
        let mut sizes = self.shape(x);
        let mut starts = vec![Dim::ZERO; sizes.len()];
        let steps = vec![1; sizes.len()];
        if axis >= sizes.len() {
            return Err(TypeError(format!(
                "axis {axis} is beyond rank {}",
                sizes.len()
            )));
        }
        (starts[axis], sizes[axis]) = (start, size);
        self.one(
            Slice {
                starts,
                sizes,
                steps,
            },
            &[x],
        )
    }

    pub fn concat(&mut self, xs: &[Value], axis: usize) -> Result<Value, TypeError> {
        if let [x] = xs {
            Ok(*x)
        } else {
            self.one(Concat { axis }, xs)
        }
    }

    pub fn gather(&mut self, x: Value, indices: Value, axis: usize) -> Result<Value, TypeError> {
        self.one(Gather { axis }, &[x, indices])
    }

    pub fn reduce(
        &mut self,
        f: ReduceFn,
        x: Value,
        axes: &[usize],
        keep: bool,
    ) -> Result<Value, TypeError> {
        self.one(
            Reduce {
                f,
                axes: axes.to_vec(),
                keep,
            },
            &[x],
        )
    }

    pub fn matmul(&mut self, a: Value, b: Value) -> Result<Value, TypeError> {
        self.one(
            MatMul {
                transpose_a: false,
                transpose_b: false,
                out: None,
                tf32: false,
            },
            &[a, b],
        )
    }

    pub fn matmul_t(
        &mut self,
        a: Value,
        b: Value,
        transpose_a: bool,
        transpose_b: bool,
    ) -> Result<Value, TypeError> {
        self.one(
            MatMul {
                transpose_a,
                transpose_b,
                out: None,
                tf32: false,
            },
            &[a, b],
        )
    }

    /// A tensor full of one number.
    pub fn full(&mut self, dtype: DType, shape: &[Dim], value: f64) -> Result<Value, TypeError> {
        let v = self.scalar(dtype, value)?;
        self.broadcast_to(v, shape)
    }
}
