//! Determinants and inverses by elimination with pivots: a loop over columns, all
//! matrices at once, in f64.

use super::attention::index;
use crate::onnx::cx::{Cx, Fail, Out};
use kiln_ir::graph::Value;
use kiln_ir::ops::control::Loop;
use kiln_ir::ops::index::GatherElements;
use kiln_ir::ops::reduce::ArgReduce;
use kiln_ir::{
    BinaryFn, Builder, CompareFn, DType, Dim, ReduceFn, Tensor, TensorType, TypeError, UnaryFn,
};

type One = Result<Value, Fail>;

/// What one step of an elimination works on.
struct Step {
    /// `i64[1, n]`: the rows.
    rows: Value,
    /// `i64[1, 1, w]`: the columns, at least as many as rows.
    columns: Value,
    /// `[b, n, w]`.
    wide: [Dim; 3],
}

/// What a step finds.
struct Pivoted {
    /// The matrices, the pivot's row in its place.
    a: Value,
    /// `[b, n]`: the pivot's column.
    column: Value,
    /// `[b, 1]`: the pivot.
    pivot: Value,
    /// `bool[b]`: the row stood there already.
    stays: Value,
    /// `[b, 1, w]`: the pivot's row.
    row: Value,
}

impl Step {
    fn new(cx: &mut Cx, a: Value) -> Result<Step, Fail> {
        let s = cx.shape(a);
        Ok(Step {
            rows: index(cx, vec![Dim::ONE, s[1].clone()], 1)?,
            columns: index(cx, vec![Dim::ONE, Dim::ONE, s[2].clone()], 2)?,
            wide: [s[0].clone(), s[1].clone(), s[2].clone()],
        })
    }

    /// Column `k` of every matrix: `[b, n]`.
    fn column(&self, b: &mut Builder, a: Value, k: Value) -> Result<Value, TypeError> {
        let here = b.compare(CompareFn::Eq, self.columns, k)?;
        let zero = b.scalar_like(a, 0.0)?;
        let only = b.select(here, a, zero)?;
        b.reduce(ReduceFn::Sum, only, &[2], false)
    }

    /// The largest element of column `k` from row `k` on brought to row `k`.
    fn pivot(&self, b: &mut Builder, a: Value, k: Value) -> Result<Pivoted, TypeError> {
        let [batch, n, w] = self.wide.clone();
        let column = self.column(b, a, k)?;
        let size = b.unary(UnaryFn::Abs, column)?;
        let (open, never) = (
            b.compare(CompareFn::Ge, self.rows, k)?,
            b.scalar_like(size, -1.0)?,
        );
        let size = b.select(open, size, never)?;
        let op = ArgReduce {
            largest: true,
            axis: 1,
            keep: true,
            last: false,
        };
        let p = b.one(op, &[size])?;
        let at_k = b.compare(CompareFn::Eq, self.rows, k)?;
        let at_p = b.compare(CompareFn::Eq, self.rows, p)?;
        let from = b.select(at_p, k, self.rows)?;
        let from = b.select(at_k, p, from)?;
        let from = b.reshape(from, &[batch.clone(), n.clone(), Dim::ONE])?;
        let from = b.broadcast_to(from, &self.wide)?;
        let a = b.one(GatherElements { axis: 1 }, &[a, from])?;
        let column = self.column(b, a, k)?;
        let zero = b.scalar_like(a, 0.0)?;
        let pivot = b.select(at_k, column, zero)?;
        let pivot = b.reduce(ReduceFn::Sum, pivot, &[1], true)?;
        let here = b.reshape(at_k, &[Dim::ONE, n, Dim::ONE])?;
        let row = b.select(here, a, zero)?;
        let row = b.reduce(ReduceFn::Sum, row, &[1], false)?;
        let row = b.reshape(row, &[batch.clone(), Dim::ONE, w])?;
        let stays = b.compare(CompareFn::Eq, p, k)?;
        let stays = b.reshape(stays, &[batch])?;
        Ok(Pivoted {
            a,
            column,
            pivot,
            stays,
            row,
        })
    }

    /// `a` less `factor[b, n]` times a row.
    fn less(
        &self,
        b: &mut Builder,
        a: Value,
        factor: Value,
        row: Value,
    ) -> Result<Value, TypeError> {
        let mut tall = b.shape(factor);
        tall.push(Dim::ONE);
        let factor = b.reshape(factor, &tall)?;
        let taken = b.mul(factor, row)?;
        b.sub(a, taken)
    }
}

/// The loop over columns; `f` makes the next values of the carried ones.
fn each_column(
    cx: &mut Cx,
    n: Dim,
    carried: &[Value],
    f: impl FnOnce(&mut Builder, Value, &[Value]) -> Result<Vec<Value>, TypeError>,
) -> Out {
    let region = cx.b.graph.add_region();
    let k = TensorType::scalar(DType::I64);
    let k = cx.b.graph.add_region_param(region, k);
    let mut params = vec![];
    for &v in carried {
        let ty = cx.ty(v);
        params.push(cx.b.graph.add_region_param(region, ty));
    }
    let yielded = cx.b.in_region(region, |b| {
        let mut out = vec![b.constant(Tensor::scalar_i64(DType::Bool, 1))?];
        out.extend(f(b, k, &params)?);
        Ok::<_, TypeError>(out)
    })?;
    cx.b.graph.region_mut(region).results = yielded;
    let trip = cx.scalar_dim(n)?;
    let go = cx.b.constant(Tensor::scalar_i64(DType::Bool, 1))?;
    let op = Loop {
        carried: carried.len(),
        symbol: None,
        sizes: vec![],
    };
    let mut args = vec![trip, go];
    args.extend_from_slice(carried);
    Ok(cx.b.push_with_regions(op, &args, vec![region])?)
}

/// Square matrices `[b, n, n]` in f64.
fn square(cx: &mut Cx, x: Value) -> One {
    let shape = cx.shape(x);
    let [outer @ .., n, m] = &shape[..] else {
        return Err(Fail::invalid("a matrix has two axes"));
    };
    if n.same(m) == kiln_ir::Tri::No {
        return Err(Fail::invalid(format!("{n} rows of {m} are no square")));
    }
    let x = cx.b.cast(x, DType::F64)?;
    Ok(cx
        .b
        .reshape(x, &[Dim::product(outer), n.clone(), n.clone()])?)
}

/// Determinants of `[.., n, n]`.
pub(super) fn determinant(cx: &mut Cx, x: Value) -> One {
    let (narrow, shape) = (cx.dtype(x), cx.shape(x));
    let a = square(cx, x)?;
    let s = Step::new(cx, a)?;
    let [batch, n, _] = s.wide.clone();
    let one = cx.b.full(DType::F64, std::slice::from_ref(&batch), 1.0)?;
    let out = each_column(cx, n, &[a, one], |b, k, v| {
        let p = s.pivot(b, v[0], k)?;
        let flat = b.reshape(p.pivot, std::slice::from_ref(&batch))?;
        let turned = b.unary(UnaryFn::Neg, flat)?;
        let signed = b.select(p.stays, flat, turned)?;
        let d = b.mul(v[1], signed)?;
        // Below the pivot; a column of zeros leaves its matrix as it is.
        let (zero, unit) = (b.scalar_like(d, 0.0)?, b.scalar_like(d, 1.0)?);
        let none = b.compare(CompareFn::Eq, p.pivot, zero)?;
        let by = b.select(none, unit, p.pivot)?;
        let factor = b.div(p.column, by)?;
        let below = b.compare(CompareFn::Gt, s.rows, k)?;
        let factor = b.select(below, factor, zero)?;
        Ok(vec![s.less(b, p.a, factor, p.row)?, d])
    })?;
    let d = cx.b.cast(out[1], narrow)?;
    Ok(cx.b.reshape(d, &shape[..shape.len() - 2])?)
}

/// Of ONNX Runtime: inverses of `[.., n, n]` (Gauss and Jordan). A singular matrix
/// gives numbers that are not finite.
pub(crate) fn inverse(cx: &mut Cx) -> Out {
    let x = cx.arg(0)?;
    let (narrow, shape) = (cx.dtype(x), cx.shape(x));
    let a = square(cx, x)?;
    let s = cx.shape(a);
    let (n, wide) = (s[1].clone(), s[1].clone() * Dim::from(2));
    // The unit matrix stands to the right of each.
    let (i, j) = (
        index(cx, vec![n.clone(), Dim::ONE], 0)?,
        index(cx, vec![Dim::ONE, n.clone()], 1)?,
    );
    let unit = cx.b.compare(CompareFn::Eq, i, j)?;
    let unit = cx.b.cast(unit, DType::F64)?;
    let unit = cx.b.broadcast_to(unit, &s)?;
    let a = cx.b.concat(&[a, unit], 2)?;
    let a = cx.b.reshape(a, &[s[0].clone(), n.clone(), wide])?;
    let s = Step::new(cx, a)?;
    let out = each_column(cx, n.clone(), &[a], |b, k, v| {
        let p = s.pivot(b, v[0], k)?;
        let mut flat = b.shape(p.pivot);
        flat.push(Dim::ONE);
        let pivot = b.reshape(p.pivot, &flat)?;
        let row = b.div(p.row, pivot)?;
        // The pivot's own row becomes the quotient: it less (pivot − 1) of it.
        let here = b.compare(CompareFn::Eq, s.rows, k)?;
        let one = b.scalar_like(p.column, 1.0)?;
        let rest = b.binary(BinaryFn::Sub, p.column, one)?;
        let factor = b.select(here, rest, p.column)?;
        Ok(vec![s.less(b, p.a, factor, row)?])
    })?;
    let y = cx.b.slice_axis(out[0], 2, n.clone(), n)?;
    let y = cx.b.cast(y, narrow)?;
    Ok(vec![cx.b.reshape(y, &shape)?])
}
