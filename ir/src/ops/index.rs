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

use crate::graph::{SymValue, Value};
use crate::op::*;
use crate::ops::layout::move_elements;
use crate::ops::source::Iota;
use crate::ops::util::*;
use crate::tensor::{Encoder, computes_in_integers};
use crate::{BinaryFn, Builder, CompareFn, DType, Tensor, TensorType};

/// An index that may count from the end, as an offset; an error out of range.
fn resolve(index: i64, extent: usize) -> Result<usize, EvalError> {
    let from_front = if index < 0 {
        index + extent as i64
    } else {
        index
    };
    usize::try_from(from_front)
        .ok()
        .filter(|&i| i < extent)
        .ok_or_else(|| {
            EvalError(format!(
                "index {index} is out of range for an axis of {extent}"
            ))
        })
}

fn require_indices(ty: &TensorType) -> Result<(), TypeError> {
    match ty.dtype {
        DType::I64 | DType::I32 => Ok(()),
        other => type_err(format!("indices are i64 or i32, not {other}")),
    }
}

/// Strings replace each other, and combine in no other way.
fn combines(f: ScatterFn, ty: &TensorType) -> Result<(), TypeError> {
    match (f, ty.dtype) {
        (ScatterFn::Set, _) => Ok(()),
        (_, DType::Str) => type_err(format!("{} of strings has no meaning", f.name())),
        _ => Ok(()),
    }
}

fn start_vector(ty: &TensorType, rank: usize) -> Result<(), TypeError> {
    if ty.dtype == DType::I64 && ty.shape == [Dim::from(rank)] {
        Ok(())
    } else {
        type_err(format!("the starts are i64[{rank}], not {ty}"))
    }
}

parse_one!(Gather, "gather", |a| Ok(Gather {
    axis: a.index("axis")?
}));

impl OpDef for Gather {
    fn mnemonic(&self) -> &'static str {
        "gather"
    }

    fn infer(&self, _: &mut InferCx, args: &[Arg]) -> Result<Vec<Inferred>, TypeError> {
        let (x, indices) = (arity(args, 2)?[0], args[1]);
        check_axis(self.axis, x.ty.rank())?;
        require_indices(indices.ty)?;
        let mut shape = x.ty.shape[..self.axis].to_vec();
        shape.extend(indices.ty.shape.iter().cloned());
        shape.extend(x.ty.shape[self.axis + 1..].iter().cloned());
        let known = match (x.known, indices.known) {
            (Some(k), Some(i)) if k.shape.len() == 1 => i
                .dims
                .iter()
                .map(|d| {
                    resolve(d.as_const()?, k.dims.len())
                        .ok()
                        .map(|at| k.dims[at].clone())
                })
                .collect::<Option<Vec<_>>>()
                .map(|dims| SymValue {
                    shape: i.shape.clone(),
                    dims,
                }),
            _ => None,
        };
        Ok(vec![Inferred {
            ty: x.ty.with_shape(shape),
            known,
        }])
    }

    fn axes(&self, args: &[&TensorType]) -> AxisMap {
        let (rank, extra) = (args[0].rank(), args[1].rank());
        let x: Vec<Option<u8>> = (0..rank)
            .map(|i| (i != self.axis).then_some(i as u8))
            .collect();
        let indices: Vec<Option<u8>> = (0..extra).map(|i| Some((rank + i) as u8)).collect();
        let mut result = x[..self.axis].to_vec();
        result.extend(&indices);
        result.extend(&x[self.axis + 1..]);
        AxisMap::Labels {
            args: vec![x, indices],
            results: vec![result],
            reduce: None,
        }
    }

    fn eval(&self, _: &EvalCx, args: &[&Tensor]) -> Result<Vec<Tensor>, EvalError> {
        let (x, indices) = (args[0], args[1]);
        let extent = x.shape()[self.axis];
        let at: Vec<usize> = indices
            .to_i64()
            .into_iter()
            .map(|i| resolve(i, extent))
            .collect::<Result<_, _>>()?;
        let (own, istrides) = (strides(x.shape()), strides(indices.shape()));
        let mut shape = x.shape()[..self.axis].to_vec();
        shape.extend(indices.shape());
        shape.extend(&x.shape()[self.axis + 1..]);
        let n = indices.shape().len();
        Ok(vec![move_elements(x, shape, None, |i| {
            let (lead, rest) = i.split_at(self.axis);
            let picked = at[offset(&rest[..n], &istrides)];
            Some(
                offset(lead, &own)
                    + picked * own[self.axis]
                    + offset(&rest[n..], &own[self.axis + 1..]),
            )
        })?])
    }

    fn grad(&self, b: &mut Builder, io: Io<'_>, d: &[Value]) -> Result<Grad, TypeError> {
        // Rows of a zero tensor receive the sums: axis first, indices flat.
        let (x, indices) = (io.args[0], io.args[1]);
        let (xs, is) = (b.shape(x), b.shape(indices));
        let n = is.len();
        let rank = b.shape(d[0]).len();
        let mut perm: Vec<usize> = (self.axis..self.axis + n).collect();
        perm.extend((0..rank).filter(|i| !(self.axis..self.axis + n).contains(i)));
        let moved = b.transpose(d[0], &perm)?;
        let mut front: Vec<usize> = vec![self.axis];
        front.extend((0..xs.len()).filter(|&i| i != self.axis));
        let table: Vec<Dim> = front.iter().map(|&i| xs[i].clone()).collect();
        let dtype = b.ty(d[0]).dtype;
        let zeros = b.full(dtype, &table, 0.0)?;
        let mut ishape = is.clone();
        ishape.push(Dim::ONE);
        let wide = b.cast(indices, DType::I64)?;
        let nd = b.reshape(wide, &ishape)?;
        let summed = b.one(ScatterNd { f: ScatterFn::Add }, &[zeros, nd, moved])?;
        let mut back = vec![0; xs.len()];
        front.iter().enumerate().for_each(|(i, &p)| back[p] = i);
        Ok(Grad::Args(vec![Some(b.transpose(summed, &back)?), None]))
    }

    fn attrs(&self) -> Attrs {
        Attrs::none().with("axis", Attr::Int(self.axis as i64))
    }

    primitive!();
}

parse_one!(GatherElements, "gather_elements", |a| Ok(GatherElements {
    axis: a.index("axis")?
}));

impl OpDef for GatherElements {
    fn mnemonic(&self) -> &'static str {
        "gather_elements"
    }

    fn infer(&self, _: &mut InferCx, args: &[Arg]) -> Result<Vec<Inferred>, TypeError> {
        let (x, indices) = (arity(args, 2)?[0], args[1]);
        check_axis(self.axis, x.ty.rank())?;
        require_indices(indices.ty)?;
        if indices.ty.rank() != x.ty.rank() {
            return type_err(format!(
                "indices {} and data {} differ in rank",
                indices.ty, x.ty
            ));
        }
        Ok(vec![x.ty.with_shape(indices.ty.shape.clone()).into()])
    }

    fn axes(&self, _: &[&TensorType]) -> AxisMap {
        AxisMap::Whole {
            because: "indices may be shorter than the data on every axis",
        }
    }

    fn eval(&self, _: &EvalCx, args: &[&Tensor]) -> Result<Vec<Tensor>, EvalError> {
        let (x, indices) = (args[0], args[1]);
        let extent = x.shape()[self.axis];
        let at: Vec<usize> = indices
            .to_i64()
            .into_iter()
            .map(|i| resolve(i, extent))
            .collect::<Result<_, _>>()?;
        let fits = indices
            .shape()
            .iter()
            .zip(x.shape())
            .enumerate()
            .all(|(i, (a, b))| i == self.axis || a <= b);
        if !fits {
            return Err(EvalError("the indices' shape leaves the data".into()));
        }
        let (own, istrides) = (strides(x.shape()), strides(indices.shape()));
        Ok(vec![move_elements(
            x,
            indices.shape().to_vec(),
            None,
            |i| {
                let picked = at[offset(i, &istrides)];
                Some(offset(i, &own) - i[self.axis] * own[self.axis] + picked * own[self.axis])
            },
        )?])
    }

    fn grad(&self, b: &mut Builder, io: Io<'_>, d: &[Value]) -> Result<Grad, TypeError> {
        let (dtype, shape) = (b.ty(d[0]).dtype, b.shape(io.args[0]));
        let zeros = b.full(dtype, &shape, 0.0)?;
        let op = ScatterElements {
            axis: self.axis,
            f: ScatterFn::Add,
        };
        Ok(Grad::Args(vec![
            Some(b.one(op, &[zeros, io.args[1], d[0]])?),
            None,
        ]))
    }

    fn attrs(&self) -> Attrs {
        Attrs::none().with("axis", Attr::Int(self.axis as i64))
    }

    primitive!();
}

parse_one!(GatherNd, "gather_nd", |a| Ok(GatherNd {
    batch_dims: a.index("batch_dims")?
}));

/// How many axes the last axis of `indices` indexes.
fn depth(indices: &TensorType) -> Result<usize, TypeError> {
    indices
        .shape
        .last()
        .and_then(Dim::as_const)
        .and_then(|c| usize::try_from(c).ok())
        .ok_or_else(|| TypeError("the last extent of the indices must be a constant".into()))
}

impl OpDef for GatherNd {
    fn mnemonic(&self) -> &'static str {
        "gather_nd"
    }

    fn infer(&self, cx: &mut InferCx, args: &[Arg]) -> Result<Vec<Inferred>, TypeError> {
        let (x, indices) = (arity(args, 2)?[0], args[1]);
        require_indices(indices.ty)?;
        let k = depth(indices.ty)?;
        if self.batch_dims >= indices.ty.rank() || self.batch_dims + k > x.ty.rank() {
            return type_err(format!("indices {} reach beyond {}", indices.ty, x.ty));
        }
        for i in 0..self.batch_dims {
            cx.require_same(&x.ty.shape[i], &indices.ty.shape[i], "batch axes agree")?;
        }
        let mut shape = indices.ty.shape[..indices.ty.rank() - 1].to_vec();
        shape.extend(x.ty.shape[self.batch_dims + k..].iter().cloned());
        Ok(vec![x.ty.with_shape(shape).into()])
    }

    fn axes(&self, _: &[&TensorType]) -> AxisMap {
        AxisMap::Whole {
            because: "indices reach the whole of the data",
        }
    }

    fn eval(&self, _: &EvalCx, args: &[&Tensor]) -> Result<Vec<Tensor>, EvalError> {
        let (x, indices) = (args[0], args[1]);
        let k = indices.shape().last().copied().unwrap_or(0);
        let own = strides(x.shape());
        let lead = &indices.shape()[..indices.shape().len() - 1];
        let mut at = vec![];
        let lead_strides = strides(lead);
        let mut failed = None;
        for_each_index(lead, |i| {
            let row = offset(i, &lead_strides) * k;
            let mut place = offset(&i[..self.batch_dims], &own);
            for j in 0..k {
                let axis = self.batch_dims + j;
                match resolve(indices.get_i64(row + j), x.shape()[axis]) {
                    Ok(p) => place += p * own[axis],
                    Err(e) => failed = Some(e),
                }
            }
            at.push(place);
        });
        if let Some(e) = failed {
            return Err(e);
        }
        let mut shape = lead.to_vec();
        shape.extend(&x.shape()[self.batch_dims + k..]);
        Ok(vec![move_elements(x, shape, None, |i| {
            let (l, rest) = i.split_at(lead.len());
            Some(at[offset(l, &lead_strides)] + offset(rest, &own[self.batch_dims + k..]))
        })?])
    }

    fn grad(&self, b: &mut Builder, io: Io<'_>, d: &[Value]) -> Result<Grad, TypeError> {
        if self.batch_dims != 0 {
            return Ok(Grad::Unsupported {
                because: "batched gather_nd has no scatter to match",
            });
        }
        let (dtype, shape) = (b.ty(d[0]).dtype, b.shape(io.args[0]));
        let zeros = b.full(dtype, &shape, 0.0)?;
        Ok(Grad::Args(vec![
            Some(b.one(ScatterNd { f: ScatterFn::Add }, &[zeros, io.args[1], d[0]])?),
            None,
        ]))
    }

    fn attrs(&self) -> Attrs {
        Attrs::none().with("batch_dims", Attr::Int(self.batch_dims as i64))
    }

    primitive!();
}

impl ScatterFn {
    const NAMES: [(ScatterFn, &'static str); 5] = [
        (ScatterFn::Set, "set"),
        (ScatterFn::Add, "add"),
        (ScatterFn::Mul, "mul"),
        (ScatterFn::Max, "max"),
        (ScatterFn::Min, "min"),
    ];

    /// The name in the text form.
    pub fn name(self) -> &'static str {
        Self::NAMES
            .iter()
            .find(|n| n.0 == self)
            .map(|n| n.1)
            .unwrap_or("set")
    }

    /// The function of this name.
    pub fn from_name(name: &str) -> Result<ScatterFn, TypeError> {
        let row = Self::NAMES.iter().find(|n| n.1 == name);
        row.map(|n| n.0)
            .ok_or_else(|| TypeError(format!("no scatter function `{name}`")))
    }

    fn binary(self) -> Option<BinaryFn> {
        match self {
            ScatterFn::Set => None,
            ScatterFn::Add => Some(BinaryFn::Add),
            ScatterFn::Mul => Some(BinaryFn::Mul),
            ScatterFn::Max => Some(BinaryFn::Max),
            ScatterFn::Min => Some(BinaryFn::Min),
        }
    }
}

/// `x` with `updates[i]` combined into place `at[i]`, in order.
fn scatter_into(
    x: &Tensor,
    f: ScatterFn,
    writes: &[(usize, usize)],
    updates: &Tensor,
) -> Result<Tensor, EvalError> {
    let err = |e: crate::tensor::SizeMismatch| EvalError(e.to_string());
    if x.dtype() == DType::Str {
        let mut out = x.as_strings().to_vec();
        writes
            .iter()
            .for_each(|&(to, from)| out[to] = updates.as_strings()[from].clone());
        return Tensor::strings(x.shape(), out).map_err(err);
    }
    let mut out = Encoder::new(x.dtype(), x.len());
    if computes_in_integers(x.dtype()) {
        let mut values = x.to_i64();
        for &(to, from) in writes {
            let u = updates.get_i64(from);
            values[to] = f
                .binary()
                .map_or(Some(u), |b| b.eval_i64(values[to], u))
                .unwrap_or(u);
        }
        values.into_iter().for_each(|v| out.push_i64(v));
    } else {
        let mut values = x.to_f64();
        for &(to, from) in writes {
            let u = updates.get_f64(from);
            values[to] = f.binary().map_or(u, |b| b.eval_f64(values[to], u));
        }
        values.into_iter().for_each(|v| out.push_f64(v));
    }
    Tensor::new(x.dtype(), x.shape(), out.finish()).map_err(err)
}

parse_one!(ScatterElements, "scatter_elements", |a| Ok(
    ScatterElements {
        axis: a.index("axis")?,
        f: ScatterFn::from_name(a.name("f")?)?
    }
));

impl OpDef for ScatterElements {
    fn mnemonic(&self) -> &'static str {
        "scatter_elements"
    }

    fn infer(&self, cx: &mut InferCx, args: &[Arg]) -> Result<Vec<Inferred>, TypeError> {
        let (x, indices, updates) = (arity(args, 3)?[0], args[1], args[2]);
        check_axis(self.axis, x.ty.rank())?;
        require_indices(indices.ty)?;
        if indices.ty.rank() != x.ty.rank()
            || updates.ty.rank() != x.ty.rank()
            || updates.ty.dtype != x.ty.dtype
        {
            return type_err(format!(
                "{}, {} and {} do not go together",
                x.ty, indices.ty, updates.ty
            ));
        }
        for (a, b) in indices.ty.shape.iter().zip(&updates.ty.shape) {
            cx.require_same(a, b, "updates have the indices' shape")?;
        }
        combines(self.f, x.ty)?;
        Ok(vec![x.ty.clone().into()])
    }

    fn axes(&self, _: &[&TensorType]) -> AxisMap {
        AxisMap::Whole {
            because: "updates reach the whole of the data",
        }
    }

    fn eval(&self, _: &EvalCx, args: &[&Tensor]) -> Result<Vec<Tensor>, EvalError> {
        let (x, indices) = (args[0], args[1]);
        let own = strides(x.shape());
        let istrides = strides(indices.shape());
        let mut writes = vec![];
        let mut failed = None;
        for_each_index(indices.shape(), |i| {
            let from = offset(i, &istrides);
            match resolve(indices.get_i64(from), x.shape()[self.axis]) {
                Ok(p) => writes.push((
                    offset(i, &own) - i[self.axis] * own[self.axis] + p * own[self.axis],
                    from,
                )),
                Err(e) => failed = Some(e),
            }
        });
        match failed {
            Some(e) => Err(e),
            None => Ok(vec![scatter_into(x, self.f, &writes, args[2])?]),
        }
    }

    fn grad(&self, b: &mut Builder, io: Io<'_>, d: &[Value]) -> Result<Grad, TypeError> {
        scatter_grad(
            b,
            self.f,
            self.clone(),
            GatherElements { axis: self.axis },
            io,
            d[0],
        )
    }

    fn attrs(&self) -> Attrs {
        Attrs::none()
            .with("axis", Attr::Int(self.axis as i64))
            .with("f", Attr::Name(self.f.name().into()))
    }

    primitive!();
}

/// Updates that are set or added get the gradient of where they went. Where
/// several meet, only the last one set has a part in the result: scattering their
/// numbers tells which that is.
fn scatter_grad(
    b: &mut Builder,
    f: ScatterFn,
    scatter: impl Into<Op>,
    gather: impl Into<Op>,
    io: Io<'_>,
    d: Value,
) -> Result<Grad, TypeError> {
    let (scatter, gather, indices) = (scatter.into(), gather.into(), io.args[1]);
    let du = b.one(gather.clone(), &[d, indices])?;
    match f {
        ScatterFn::Add => return Ok(Grad::Args(vec![Some(d), None, Some(du)])),
        ScatterFn::Set => {}
        ScatterFn::Mul | ScatterFn::Max | ScatterFn::Min => {
            return Ok(Grad::Unsupported {
                because: "only scattered updates that are set or added are differentiated",
            });
        }
    }
    let (shape, updates) = (b.shape(io.args[0]), b.shape(io.args[2]));
    let count = Iota {
        shape: vec![Dim::product(&updates)],
        axis: 0,
        dtype: DType::I64,
    };
    let numbers = b.one(count, &[])?;
    let numbers = b.reshape(numbers, &updates)?;
    let none = b.full(DType::I64, &shape, -1.0)?;
    let last = b.one(scatter, &[none, indices, numbers])?;
    let won = b.one(gather, &[last, indices])?;
    let won = b.compare(CompareFn::Eq, won, numbers)?;
    let zero = b.scalar_like(d, 0.0)?;
    let du = b.select(won, du, zero)?;
    let minus = b.scalar(DType::I64, -1.0)?;
    let untouched = b.compare(CompareFn::Eq, last, minus)?;
    let dx = b.select(untouched, d, zero)?;
    Ok(Grad::Args(vec![Some(dx), None, Some(du)]))
}

parse_one!(ScatterNd, "scatter_nd", |a| Ok(ScatterNd {
    f: ScatterFn::from_name(a.name("f")?)?
}));

impl OpDef for ScatterNd {
    fn mnemonic(&self) -> &'static str {
        "scatter_nd"
    }

    fn infer(&self, cx: &mut InferCx, args: &[Arg]) -> Result<Vec<Inferred>, TypeError> {
        let (x, indices, updates) = (arity(args, 3)?[0], args[1], args[2]);
        require_indices(indices.ty)?;
        combines(self.f, x.ty)?;
        let k = depth(indices.ty)?;
        if k > x.ty.rank() || updates.ty.dtype != x.ty.dtype {
            return type_err(format!(
                "{}, {} and {} do not go together",
                x.ty, indices.ty, updates.ty
            ));
        }
        let mut want = indices.ty.shape[..indices.ty.rank() - 1].to_vec();
        want.extend(x.ty.shape[k..].iter().cloned());
        if want.len() != updates.ty.rank() {
            return type_err(format!(
                "the updates are {}, of rank {} instead of {}",
                updates.ty,
                updates.ty.rank(),
                want.len()
            ));
        }
        for (a, b) in want.iter().zip(&updates.ty.shape) {
            cx.require_same(a, b, "updates have the shape that the indices ask for")?;
        }
        Ok(vec![x.ty.clone().into()])
    }

    fn axes(&self, _: &[&TensorType]) -> AxisMap {
        AxisMap::Whole {
            because: "updates reach the whole of the data",
        }
    }

    fn eval(&self, _: &EvalCx, args: &[&Tensor]) -> Result<Vec<Tensor>, EvalError> {
        let (x, indices) = (args[0], args[1]);
        let k = indices.shape().last().copied().unwrap_or(0);
        let own = strides(x.shape());
        let rows: usize = indices.shape()[..indices.shape().len() - 1]
            .iter()
            .product();
        let run: usize = x.shape()[k..].iter().product();
        let mut writes = vec![];
        for r in 0..rows {
            let mut place = 0;
            for (j, stride) in own.iter().enumerate().take(k) {
                place += resolve(indices.get_i64(r * k + j), x.shape()[j])? * stride;
            }
            writes.extend((0..run).map(|i| (place + i, r * run + i)));
        }
        Ok(vec![scatter_into(x, self.f, &writes, args[2])?])
    }

    fn grad(&self, b: &mut Builder, io: Io<'_>, d: &[Value]) -> Result<Grad, TypeError> {
        scatter_grad(
            b,
            self.f,
            self.clone(),
            GatherNd { batch_dims: 0 },
            io,
            d[0],
        )
    }

    fn attrs(&self) -> Attrs {
        Attrs::none().with("f", Attr::Name(self.f.name().into()))
    }

    primitive!();
}

parse_one!(DynamicSlice, "dynamic_slice", |a| Ok(DynamicSlice {
    sizes: a.dims("sizes")?
}));

/// The first corner of a box that must lie inside `shape`.
fn corner(starts: &Tensor, sizes: &[usize], shape: &[usize]) -> Result<Vec<usize>, EvalError> {
    (0..sizes.len())
        .map(|i| {
            let s = starts.get_i64(i);
            let fits = s >= 0 && s as u128 + sizes[i] as u128 <= shape[i] as u128;
            if fits {
                Ok(s as usize)
            } else {
                Err(EvalError(format!(
                    "the box {s}..+{} leaves axis {i} of {}",
                    sizes[i], shape[i]
                )))
            }
        })
        .collect()
}

impl OpDef for DynamicSlice {
    fn mnemonic(&self) -> &'static str {
        "dynamic_slice"
    }

    fn infer(&self, _: &mut InferCx, args: &[Arg]) -> Result<Vec<Inferred>, TypeError> {
        let (x, starts) = (arity(args, 2)?[0], args[1]);
        start_vector(starts.ty, x.ty.rank())?;
        if self.sizes.len() != x.ty.rank() {
            return type_err("the box needs a size for each axis");
        }
        Ok(vec![x.ty.with_shape(self.sizes.clone()).into()])
    }

    fn axes(&self, _: &[&TensorType]) -> AxisMap {
        AxisMap::Whole {
            because: "the box's place is known only when it runs",
        }
    }

    fn eval(&self, cx: &EvalCx, args: &[&Tensor]) -> Result<Vec<Tensor>, EvalError> {
        let sizes = cx.dims(&self.sizes)?;
        let at = corner(args[1], &sizes, args[0].shape())?;
        let own = strides(args[0].shape());
        let base = offset(&at, &own);
        Ok(vec![move_elements(args[0], sizes, None, |i| {
            Some(base + offset(i, &own))
        })?])
    }

    fn grad(&self, b: &mut Builder, io: Io<'_>, d: &[Value]) -> Result<Grad, TypeError> {
        let (dtype, shape) = (b.ty(d[0]).dtype, b.shape(io.args[0]));
        let zeros = b.full(dtype, &shape, 0.0)?;
        Ok(Grad::Args(vec![
            Some(b.one(DynamicUpdateSlice, &[zeros, d[0], io.args[1]])?),
            None,
        ]))
    }

    fn attrs(&self) -> Attrs {
        Attrs::none().with("sizes", Attr::Dims(self.sizes.clone()))
    }

    primitive!();
}

parse_one!(DynamicUpdateSlice, "dynamic_update_slice", |_a| Ok(
    DynamicUpdateSlice
));

impl OpDef for DynamicUpdateSlice {
    fn mnemonic(&self) -> &'static str {
        "dynamic_update_slice"
    }

    fn infer(&self, _: &mut InferCx, args: &[Arg]) -> Result<Vec<Inferred>, TypeError> {
        let (x, update, starts) = (arity(args, 3)?[0], args[1], args[2]);
        start_vector(starts.ty, x.ty.rank())?;
        if update.ty.rank() != x.ty.rank() || update.ty.dtype != x.ty.dtype {
            return type_err(format!("the update of {} is {}", x.ty, update.ty));
        }
        Ok(vec![x.ty.clone().into()])
    }

    fn axes(&self, _: &[&TensorType]) -> AxisMap {
        AxisMap::Whole {
            because: "the box's place is known only when it runs",
        }
    }

    fn eval(&self, _: &EvalCx, args: &[&Tensor]) -> Result<Vec<Tensor>, EvalError> {
        let (x, update) = (args[0], args[1]);
        let at = corner(args[2], update.shape(), x.shape())?;
        let own = strides(x.shape());
        let base = offset(&at, &own);
        let mut writes = vec![];
        for_each_index(update.shape(), |i| {
            writes.push((base + offset(i, &own), writes.len()))
        });
        Ok(vec![scatter_into(x, ScatterFn::Set, &writes, update)?])
    }

    fn grad(&self, b: &mut Builder, io: Io<'_>, d: &[Value]) -> Result<Grad, TypeError> {
        let sizes = b.shape(io.args[1]);
        let dtype = b.ty(d[0]).dtype;
        let du = b.one(
            DynamicSlice {
                sizes: sizes.clone(),
            },
            &[d[0], io.args[2]],
        )?;
        let zeros = b.full(dtype, &sizes, 0.0)?;
        // A copy keeps the gradient usable by others: this op consumes its argument.
        let zero = b.scalar_like(d[0], 0.0)?;
        let copy = b.add(d[0], zero)?;
        let dx = b.one(DynamicUpdateSlice, &[copy, zeros, io.args[2]])?;
        Ok(Grad::Args(vec![Some(dx), Some(du), None]))
    }

    fn attrs(&self) -> Attrs {
        Attrs::none()
    }

    fn donates(&self) -> &'static [usize] {
        &[0]
    }

    fn expand(&self, _: &mut Builder, _: &[Value]) -> Result<Option<Vec<Value>>, TypeError> {
        Ok(None)
    }
}

parse_one!(NonZero, "nonzero", |a| Ok(NonZero {
    symbol: a.symbol("symbol")?
}));

impl OpDef for NonZero {
    fn mnemonic(&self) -> &'static str {
        "nonzero"
    }

    fn infer(&self, _: &mut InferCx, args: &[Arg]) -> Result<Vec<Inferred>, TypeError> {
        let x = arity(args, 1)?[0].ty;
        if x.dtype == DType::Str {
            return type_err("strings are not zero or nonzero: compare them");
        }
        let rank = x.rank();
        let shape = vec![Dim::from(rank), Dim::sym(self.symbol.clone())];
        Ok(vec![TensorType::new(DType::I64, shape).into()])
    }

    fn axes(&self, _: &[&TensorType]) -> AxisMap {
        AxisMap::Whole {
            because: "the result's size depends on every element",
        }
    }

    fn eval(&self, cx: &EvalCx, args: &[&Tensor]) -> Result<Vec<Tensor>, EvalError> {
        let x = args[0];
        let own = strides(x.shape());
        let mut found: Vec<Vec<i64>> = vec![vec![]; x.shape().len()];
        let mut count = 0;
        for_each_index(x.shape(), |i| {
            let at = offset(i, &own);
            let nonzero = if computes_in_integers(x.dtype()) {
                x.get_i64(at) != 0
            } else {
                x.get_f64(at) != 0.0
            };
            if nonzero {
                count += 1;
                i.iter()
                    .zip(&mut found)
                    .for_each(|(&p, f)| f.push(p as i64));
            }
        });
        cx.binding.borrow_mut().insert(self.symbol.clone(), count);
        let t = Tensor::from_i64(
            DType::I64,
            [x.shape().len(), count as usize],
            &found.concat(),
        );
        t.map(|t| vec![t]).map_err(|e| EvalError(e.to_string()))
    }

    fn grad(&self, _: &mut Builder, _: Io<'_>, _: &[Value]) -> Result<Grad, TypeError> {
        Ok(Grad::Zero {
            because: "indices are piecewise constant",
        })
    }

    fn attrs(&self) -> Attrs {
        Attrs::none().with("symbol", Attr::Str(self.symbol.to_string()))
    }

    primitive!();
}

impl BindDim {
    /// The op from its text form; none if the mnemonic is another's.
    pub fn parse(mnemonic: &str, attrs: &Attrs) -> Option<Result<Self, TypeError>> {
        (mnemonic == "bind_dim").then(|| {
            let max = if attrs.get("max").is_ok() {
                Some(attrs.dim("max")?)
            } else {
                None
            };
            Ok(BindDim {
                symbol: attrs.symbol("symbol")?,
                max,
            })
        })
    }
}

impl OpDef for BindDim {
    fn mnemonic(&self) -> &'static str {
        "bind_dim"
    }

    fn infer(&self, _: &mut InferCx, args: &[Arg]) -> Result<Vec<Inferred>, TypeError> {
        let n = arity(args, 1)?[0];
        if n.ty.dtype != DType::I64 || n.ty.rank() != 0 {
            return type_err(format!("takes i64[], not {}", n.ty));
        }
        Ok(vec![])
    }

    fn axes(&self, _: &[&TensorType]) -> AxisMap {
        AxisMap::Whole {
            because: "a scalar has no axes",
        }
    }

    fn eval(&self, cx: &EvalCx, args: &[&Tensor]) -> Result<Vec<Tensor>, EvalError> {
        let n = args[0].get_i64(0);
        if n < 0 {
            return Err(EvalError(format!(
                "the size `{}` would be {n}",
                self.symbol
            )));
        }
        if let Some(max) = &self.max {
            let limit = cx.dim(max)?;
            if n as usize > limit {
                return Err(EvalError(format!(
                    "the size `{}` would be {n}, beyond {limit}",
                    self.symbol
                )));
            }
        }
        cx.binding.borrow_mut().insert(self.symbol.clone(), n);
        Ok(vec![])
    }

    fn grad(&self, _: &mut Builder, _: Io<'_>, _: &[Value]) -> Result<Grad, TypeError> {
        Ok(Grad::Zero {
            because: "sizes take no gradient",
        })
    }

    fn attrs(&self) -> Attrs {
        let attrs = Attrs::none().with("symbol", Attr::Str(self.symbol.to_string()));
        match &self.max {
            Some(max) => attrs.with("max", Attr::Dim(max.clone())),
            None => attrs,
        }
    }

    primitive!();
}
