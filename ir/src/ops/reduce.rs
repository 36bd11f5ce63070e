//! Reductions, cumulations and selections.

use crate::graph::{SymValue, Value};
use crate::op::*;
use crate::ops::index::{ScatterElements, ScatterFn};
use crate::ops::util::*;
use crate::tensor::{Encoder, computes_in_integers};
use crate::{Builder, CompareFn, DType, Dim, Kind, ReduceFn, Tensor, TensorType, Tri};
use std::cmp::Ordering;

/// Reduces axes; mnemonic `reduce_sum`, `reduce_max` … Max and min propagate
/// NaN; the mean of integers truncates toward zero.
#[derive(Clone, Debug, PartialEq)]
pub struct Reduce {
    /// The function.
    pub f: ReduceFn,
    /// The axes, ascending.
    pub axes: Vec<usize>,
    /// Whether they stay with extent 1.
    pub keep: bool,
}

/// The i64 index of the largest or smallest element along an axis; mnemonic
/// `arg_max` or `arg_min`. NaN counts as the extreme sought, as in NumPy: the
/// first (or last) NaN is found.
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

/// Running sums or products along an axis; mnemonic `cumulate_sum` …
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
/// i64 indices; among equals the lower index first. NaN is larger than every
/// number.
#[derive(Clone, Debug, PartialEq)]
pub struct TopK {
    /// The axis.
    pub axis: usize,
    /// How many.
    pub k: Dim,
    /// Largest (else smallest).
    pub largest: bool,
}

/// Numbers that can be put in order and, but for bool, added.
fn check_numbers(ty: &TensorType, f: ReduceFn) -> Result<(), TypeError> {
    plain(ty)?;
    let arithmetic = matches!(f, ReduceFn::Sum | ReduceFn::Mean | ReduceFn::Prod);
    match ty.dtype.kind() {
        Kind::Str | Kind::Complex => {
            type_err(format!("{} of {} has no meaning", f.name(), ty.dtype))
        }
        Kind::Bool if arithmetic => {
            type_err(format!("{} of bool: cast it to a number first", f.name()))
        }
        Kind::Bool | Kind::Float | Kind::Int | Kind::Uint => Ok(()),
    }
}

/// Argument labels 0, 1, 2 … with those of `whole` axes left out.
fn labels_but(rank: usize, whole: &[usize]) -> Vec<Option<u8>> {
    (0..rank)
        .map(|i| (!whole.contains(&i)).then_some(i as u8))
        .collect()
}

/// One running reduction, in f64 for floats and 64-bit integers otherwise.
#[derive(Clone, Copy)]
enum Acc {
    Float(f64),
    Int(i64),
    Uint(u64),
}

impl Acc {
    /// The value of the empty reduction.
    fn start(f: ReduceFn, dtype: DType) -> Acc {
        let bits = dtype.bits().min(64) as u32;
        let (least, greatest) = match dtype.kind() {
            Kind::Bool => (Acc::Int(0), Acc::Int(1)),
            Kind::Uint => (Acc::Uint(0), Acc::Uint(u64::MAX >> (64 - bits))),
            Kind::Int => (
                Acc::Int(i64::MIN >> (64 - bits)),
                Acc::Int(i64::MAX >> (64 - bits)),
            ),
            Kind::Float | Kind::Complex | Kind::Str => {
                (Acc::Float(f64::NEG_INFINITY), Acc::Float(f64::INFINITY))
            }
        };
        let number = |v: i64| match least {
            Acc::Float(_) => Acc::Float(v as f64),
            Acc::Int(_) => Acc::Int(v),
            Acc::Uint(_) => Acc::Uint(v as u64),
        };
        match f {
            ReduceFn::Sum | ReduceFn::Mean => number(0),
            ReduceFn::Prod => number(1),
            ReduceFn::Max => least,
            ReduceFn::Min => greatest,
        }
    }

    fn step(self, f: ReduceFn, t: &Tensor, i: usize) -> Acc {
        match self {
            Acc::Float(a) => {
                let x = t.get_f64(i);
                Acc::Float(match f {
                    ReduceFn::Sum | ReduceFn::Mean => a + x,
                    ReduceFn::Prod => a * x,
                    ReduceFn::Max if a.is_nan() || x.is_nan() => f64::NAN,
                    ReduceFn::Max => a.max(x),
                    ReduceFn::Min if a.is_nan() || x.is_nan() => f64::NAN,
                    ReduceFn::Min => a.min(x),
                })
            }
            Acc::Int(a) => {
                let x = t.get_i64(i);
                Acc::Int(match f {
                    ReduceFn::Sum | ReduceFn::Mean => a.wrapping_add(x),
                    ReduceFn::Prod => a.wrapping_mul(x),
                    ReduceFn::Max => a.max(x),
                    ReduceFn::Min => a.min(x),
                })
            }
            Acc::Uint(a) => {
                let x = t.get_i64(i) as u64;
                Acc::Uint(match f {
                    ReduceFn::Sum | ReduceFn::Mean => a.wrapping_add(x),
                    ReduceFn::Prod => a.wrapping_mul(x),
                    ReduceFn::Max => a.max(x),
                    ReduceFn::Min => a.min(x),
                })
            }
        }
    }

    /// Divided by the number of elements.
    fn mean(self, n: usize) -> Result<Acc, EvalError> {
        Ok(match self {
            Acc::Float(a) => Acc::Float(a / n as f64),
            Acc::Int(_) | Acc::Uint(_) if n == 0 => {
                return Err(EvalError("the mean of no integers".into()));
            }
            Acc::Int(a) => Acc::Int(a / n as i64),
            Acc::Uint(a) => Acc::Uint(a / n as u64),
        })
    }

    fn push(self, out: &mut Encoder) {
        match self {
            Acc::Float(a) => out.push_f64(a),
            Acc::Int(a) => out.push_i64(a),
            Acc::Uint(a) => out.push_i64(a as i64),
        }
    }
}

impl Reduce {
    /// The op from its text form; none if the mnemonic is another's.
    pub fn parse(mnemonic: &str, attrs: &Attrs) -> Option<Result<Self, TypeError>> {
        let f = ReduceFn::from_name(mnemonic.strip_prefix("reduce_")?)?;
        Some((|| {
            Ok(Reduce {
                f,
                axes: attrs.indices("axes")?,
                keep: attrs.bool("keep")?,
            })
        })())
    }

    /// The reduced axes as extents of 1.
    fn kept_shape(&self, shape: &[Dim]) -> Vec<Dim> {
        shape
            .iter()
            .enumerate()
            .map(|(i, d)| {
                if self.axes.contains(&i) {
                    Dim::ONE
                } else {
                    d.clone()
                }
            })
            .collect()
    }

    fn known(&self, known: &SymValue) -> Option<SymValue> {
        let all = self.axes.len() == known.shape.len();
        if !all || known.dims.is_empty() {
            return None;
        }
        let dims = known.dims.iter().cloned();
        let dim = match self.f {
            ReduceFn::Sum => dims.reduce(|a, b| a + b),
            ReduceFn::Prod => dims.reduce(|a, b| a * b),
            ReduceFn::Max => dims.reduce(|a, b| a.maximum(&b)),
            ReduceFn::Min => dims.reduce(|a, b| a.minimum(&b)),
            ReduceFn::Mean => None,
        }?;
        Some(SymValue {
            shape: vec![1; if self.keep { known.shape.len() } else { 0 }],
            dims: vec![dim],
        })
    }
}

impl OpDef for Reduce {
    fn mnemonic(&self) -> &'static str {
        match self.f {
            ReduceFn::Sum => "reduce_sum",
            ReduceFn::Mean => "reduce_mean",
            ReduceFn::Prod => "reduce_prod",
            ReduceFn::Max => "reduce_max",
            ReduceFn::Min => "reduce_min",
        }
    }

    fn infer(&self, _: &mut InferCx, args: &[Arg]) -> Result<Vec<Inferred>, TypeError> {
        let x = arity(args, 1)?[0];
        check_numbers(x.ty, self.f)?;
        for (i, &axis) in self.axes.iter().enumerate() {
            check_axis(axis, x.ty.rank())?;
            if i > 0 && self.axes[i - 1] >= axis {
                return type_err(format!("the axes {:?} do not ascend", self.axes));
            }
        }
        let kept = self.kept_shape(&x.ty.shape);
        let shape: Vec<Dim> = match self.keep {
            true => kept,
            false => kept
                .into_iter()
                .enumerate()
                .filter(|(i, _)| !self.axes.contains(i))
                .map(|(_, d)| d)
                .collect(),
        };
        let known = x.known.and_then(|k| self.known(k));
        Ok(vec![Inferred {
            ty: TensorType::new(x.ty.dtype, shape),
            known,
        }])
    }

    fn axes(&self, args: &[&TensorType]) -> AxisMap {
        // Means over parts of different sizes do not combine by a mean.
        let whole = if self.f == ReduceFn::Mean {
            &self.axes[..]
        } else {
            &[]
        };
        let labels = labels_but(args[0].rank(), whole);
        let result = (0..args[0].rank())
            .filter(|i| self.keep || !self.axes.contains(i))
            .map(|i| (!self.axes.contains(&i)).then_some(i as u8))
            .collect();
        AxisMap::Labels {
            args: vec![labels],
            results: vec![result],
            reduce: Some(self.f),
        }
    }

    fn eval(&self, _: &EvalCx, args: &[&Tensor]) -> Result<Vec<Tensor>, EvalError> {
        let x = args[0];
        let kept: Vec<usize> = x
            .shape()
            .iter()
            .enumerate()
            .map(|(i, &d)| if self.axes.contains(&i) { 1 } else { d })
            .collect();
        let into = broadcast_strides(&kept, x.shape());
        let from = strides(x.shape());
        let mut acc = vec![Acc::start(self.f, x.dtype()); kept.iter().product()];
        for_each_index(x.shape(), |index| {
            let slot = &mut acc[offset(index, &into)];
            *slot = slot.step(self.f, x, offset(index, &from));
        });
        let count: usize = self.axes.iter().map(|&a| x.shape()[a]).product();
        let mut out = Encoder::new(x.dtype(), acc.len());
        for a in acc {
            let a = if self.f == ReduceFn::Mean {
                a.mean(count)?
            } else {
                a
            };
            a.push(&mut out);
        }
        let shape: Vec<usize> = kept
            .into_iter()
            .enumerate()
            .filter(|(i, _)| self.keep || !self.axes.contains(i))
            .map(|(_, d)| d)
            .collect();
        finish(x.dtype(), shape, out)
    }

    fn grad(&self, b: &mut Builder, io: Io<'_>, d: &[Value]) -> Result<Grad, TypeError> {
        let x = io.args[0];
        let shape = b.shape(x);
        let kept = self.kept_shape(&shape);
        let d = b.reshape(d[0], &kept)?;
        let dx = match self.f {
            ReduceFn::Sum => b.broadcast_to(d, &shape)?,
            ReduceFn::Mean => {
                let count = Dim::product(self.axes.iter().map(|&a| &shape[a]));
                let share = divide_by_count(b, d, count)?;
                b.broadcast_to(share, &shape)?
            }
            ReduceFn::Prod => self.grad_prod(b, x, d)?,
            // Shared evenly among ties.
            ReduceFn::Max | ReduceFn::Min => {
                let y = b.reshape(io.results[0], &kept)?;
                let dtype = b.ty(x).dtype;
                let hit = b.compare(CompareFn::Eq, x, y)?;
                let hit = b.cast(hit, dtype)?;
                let count = b.reduce(ReduceFn::Sum, hit, &self.axes, true)?;
                let share = b.div(d, count)?;
                b.mul(hit, share)?
            }
        };
        Ok(Grad::Args(vec![Some(dx)]))
    }

    fn attrs(&self) -> Attrs {
        Attrs::none()
            .with_ints("axes", self.axes.iter().map(|&a| a as i64))
            .with("keep", Attr::Bool(self.keep))
    }

    primitive!();
}

impl Reduce {
    /// The gradient of a product: the product of all other elements, which holds
    /// where an element is 0 too. Done on one axis that joins the reduced ones.
    fn grad_prod(&self, b: &mut Builder, x: Value, d: Value) -> Result<Value, TypeError> {
        let shape = b.shape(x);
        let rank = shape.len();
        let others: Vec<usize> = (0..rank).filter(|i| !self.axes.contains(i)).collect();
        let perm: Vec<usize> = others.iter().chain(&self.axes).copied().collect();
        let moved = b.transpose(x, &perm)?;
        let moved_shape = b.shape(moved);
        let mut joined: Vec<Dim> = moved_shape[..others.len()].to_vec();
        joined.push(Dim::product(&moved_shape[others.len()..]));
        let flat = b.reshape(moved, &joined)?;
        let axis = others.len();
        let running = |reverse| Cumulate {
            f: ReduceFn::Prod,
            axis,
            exclusive: true,
            reverse,
        };
        let before = b.one(running(false), &[flat])?;
        let after = b.one(running(true), &[flat])?;
        let rest = b.mul(before, after)?;
        let rest = b.reshape(rest, &moved_shape)?;
        let mut inverse = vec![0; rank];
        perm.iter().enumerate().for_each(|(i, &p)| inverse[p] = i);
        let rest = b.transpose(rest, &inverse)?;
        b.mul(d, rest)
    }
}

/// `x / count`, in f32 where the dtype is too narrow to hold the count.
pub(crate) fn divide_by_count(b: &mut Builder, x: Value, count: Dim) -> Result<Value, TypeError> {
    let dtype = b.ty(x).dtype;
    let wide = if dtype == DType::F64 {
        DType::F64
    } else {
        DType::F32
    };
    let n = b.dims(SymValue::scalar(count))?;
    let (n, x) = (b.cast(n, wide)?, b.cast(x, wide)?);
    let q = b.div(x, n)?;
    b.cast(q, dtype)
}

impl ArgReduce {
    /// The op from its text form; none if the mnemonic is another's.
    pub fn parse(mnemonic: &str, attrs: &Attrs) -> Option<Result<Self, TypeError>> {
        let largest = match mnemonic {
            "arg_max" => true,
            "arg_min" => false,
            _ => return None,
        };
        Some((|| {
            let (axis, keep, last) = (
                attrs.index("axis")?,
                attrs.bool("keep")?,
                attrs.bool("last")?,
            );
            Ok(ArgReduce {
                largest,
                axis,
                keep,
                last,
            })
        })())
    }
}

impl OpDef for ArgReduce {
    fn mnemonic(&self) -> &'static str {
        if self.largest { "arg_max" } else { "arg_min" }
    }

    fn infer(&self, _: &mut InferCx, args: &[Arg]) -> Result<Vec<Inferred>, TypeError> {
        let x = arity(args, 1)?[0].ty;
        check_numbers(x, ReduceFn::Max)?;
        check_axis(self.axis, x.rank())?;
        if x.shape[self.axis] == Dim::ZERO {
            return type_err(format!("axis {} has no elements to choose from", self.axis));
        }
        let mut shape = x.shape.clone();
        match self.keep {
            true => shape[self.axis] = Dim::ONE,
            false => drop(shape.remove(self.axis)),
        }
        Ok(vec![TensorType::new(DType::I64, shape).into()])
    }

    fn axes(&self, args: &[&TensorType]) -> AxisMap {
        let labels = labels_but(args[0].rank(), &[self.axis]);
        let mut result = labels.clone();
        if !self.keep {
            result.remove(self.axis);
        }
        AxisMap::Labels {
            args: vec![labels],
            results: vec![result],
            reduce: None,
        }
    }

    fn eval(&self, _: &EvalCx, args: &[&Tensor]) -> Result<Vec<Tensor>, EvalError> {
        let x = args[0];
        let n = x.shape()[self.axis];
        if n == 0 {
            return Err(EvalError(format!(
                "axis {} has no elements to choose from",
                self.axis
            )));
        }
        let mut out = Encoder::new(DType::I64, x.len() / n);
        for_each_lane(x.shape(), self.axis, |lane| {
            let mut best = 0;
            for i in 1..n {
                let order = self.compare(x, lane(i), lane(best));
                if order == Ordering::Greater || (self.last && order == Ordering::Equal) {
                    best = i;
                }
            }
            out.push_i64(best as i64);
        });
        let mut shape = x.shape().to_vec();
        match self.keep {
            true => shape[self.axis] = 1,
            false => drop(shape.remove(self.axis)),
        }
        finish(DType::I64, shape, out)
    }

    fn grad(&self, _: &mut Builder, _: Io<'_>, _: &[Value]) -> Result<Grad, TypeError> {
        Ok(Grad::Zero {
            because: "the index of an extreme is piecewise constant",
        })
    }

    fn attrs(&self) -> Attrs {
        Attrs::none()
            .with("axis", Attr::Int(self.axis as i64))
            .with("keep", Attr::Bool(self.keep))
            .with("last", Attr::Bool(self.last))
    }

    primitive!();
}

impl ArgReduce {
    /// Greater: element `i` is more extreme than element `j`.
    fn compare(&self, x: &Tensor, i: usize, j: usize) -> Ordering {
        let order = order(x, i, j);
        let nan = |k: usize| x.dtype().is_float() && x.get_f64(k).is_nan();
        // `order` puts NaN above all numbers, which is right for the smallest only
        // if NaN is then not turned around.
        if self.largest || nan(i) || nan(j) {
            order
        } else {
            order.reverse()
        }
    }
}

/// The order of elements `i` and `j`; NaN is above every number.
fn order(x: &Tensor, i: usize, j: usize) -> Ordering {
    if x.dtype() == DType::U64 {
        (x.get_i64(i) as u64).cmp(&(x.get_i64(j) as u64))
    } else if computes_in_integers(x.dtype()) {
        x.get_i64(i).cmp(&x.get_i64(j))
    } else {
        let (a, b) = (x.get_f64(i), x.get_f64(j));
        a.partial_cmp(&b)
            .unwrap_or_else(|| a.is_nan().cmp(&b.is_nan()))
    }
}

/// Calls `f` for every lane along `axis`, in row-major order of the other axes,
/// with a function from position to flat offset.
fn for_each_lane(shape: &[usize], axis: usize, mut f: impl FnMut(&dyn Fn(usize) -> usize)) {
    let stride = strides(shape);
    let mut lanes = shape.to_vec();
    lanes[axis] = 1;
    for_each_index(&lanes, |index| {
        let base = offset(index, &stride);
        f(&|i| base + i * stride[axis]);
    });
}

impl Cumulate {
    /// The op from its text form; none if the mnemonic is another's.
    pub fn parse(mnemonic: &str, attrs: &Attrs) -> Option<Result<Self, TypeError>> {
        let f = ReduceFn::from_name(mnemonic.strip_prefix("cumulate_")?)?;
        Some((|| {
            let (axis, exclusive, reverse) = (
                attrs.index("axis")?,
                attrs.bool("exclusive")?,
                attrs.bool("reverse")?,
            );
            Ok(Cumulate {
                f,
                axis,
                exclusive,
                reverse,
            })
        })())
    }
}

impl OpDef for Cumulate {
    fn mnemonic(&self) -> &'static str {
        match self.f {
            ReduceFn::Sum => "cumulate_sum",
            ReduceFn::Mean => "cumulate_mean",
            ReduceFn::Prod => "cumulate_prod",
            ReduceFn::Max => "cumulate_max",
            ReduceFn::Min => "cumulate_min",
        }
    }

    fn infer(&self, _: &mut InferCx, args: &[Arg]) -> Result<Vec<Inferred>, TypeError> {
        let x = arity(args, 1)?[0].ty;
        check_numbers(x, self.f)?;
        check_axis(self.axis, x.rank())?;
        if self.f == ReduceFn::Mean {
            return type_err("there is no running mean; divide a running sum");
        }
        Ok(vec![x.clone().into()])
    }

    fn axes(&self, args: &[&TensorType]) -> AxisMap {
        let labels = labels_but(args[0].rank(), &[self.axis]);
        AxisMap::Labels {
            args: vec![labels.clone()],
            results: vec![labels],
            reduce: None,
        }
    }

    fn eval(&self, _: &EvalCx, args: &[&Tensor]) -> Result<Vec<Tensor>, EvalError> {
        let x = args[0];
        let n = x.shape()[self.axis];
        let mut results = vec![Acc::start(self.f, x.dtype()); x.len()];
        for_each_lane(x.shape(), self.axis, |lane| {
            let mut acc = Acc::start(self.f, x.dtype());
            for step in 0..n {
                let at = lane(if self.reverse { n - 1 - step } else { step });
                let next = acc.step(self.f, x, at);
                results[at] = if self.exclusive { acc } else { next };
                acc = next;
            }
        });
        let mut out = Encoder::new(x.dtype(), x.len());
        results.into_iter().for_each(|a| a.push(&mut out));
        finish(x.dtype(), x.shape().to_vec(), out)
    }

    fn grad(&self, b: &mut Builder, _: Io<'_>, d: &[Value]) -> Result<Grad, TypeError> {
        match self.f {
            ReduceFn::Sum => {
                let back = Cumulate {
                    reverse: !self.reverse,
                    ..self.clone()
                };
                Ok(Grad::Args(vec![Some(b.one(back, &[d[0]])?)]))
            }
            ReduceFn::Prod => Ok(Grad::Unsupported {
                because: "the gradient of a running product is not written",
            }),
            ReduceFn::Max | ReduceFn::Min => Ok(Grad::Unsupported {
                because: "the gradient of a running extreme is not written",
            }),
            ReduceFn::Mean => Ok(Grad::Unsupported {
                because: "there is no running mean",
            }),
        }
    }

    fn attrs(&self) -> Attrs {
        Attrs::none()
            .with("axis", Attr::Int(self.axis as i64))
            .with("exclusive", Attr::Bool(self.exclusive))
            .with("reverse", Attr::Bool(self.reverse))
    }

    primitive!();
}

parse_one!(TopK, "top_k", |attrs| Ok(TopK {
    axis: attrs.index("axis")?,
    k: attrs.dim("k")?,
    largest: attrs.bool("largest")?,
}));

impl OpDef for TopK {
    fn mnemonic(&self) -> &'static str {
        "top_k"
    }

    fn infer(&self, cx: &mut InferCx, args: &[Arg]) -> Result<Vec<Inferred>, TypeError> {
        let x = arity(args, 1)?[0].ty;
        check_numbers(x, ReduceFn::Max)?;
        check_axis(self.axis, x.rank())?;
        let n = &x.shape[self.axis];
        match self.k.le(n) {
            Tri::Yes => {}
            Tri::No => {
                return type_err(format!(
                    "k = {} is more than the {n} elements of axis {}",
                    self.k, self.axis
                ));
            }
            Tri::Unknown => cx.guards.push(crate::Guard {
                left: self.k.clone(),
                relation: crate::Relation::Le,
                right: n.clone(),
                because: "top_k: k is more than there are elements".into(),
            }),
        }
        let mut shape = x.shape.clone();
        shape[self.axis] = self.k.clone();
        Ok(vec![
            TensorType::new(x.dtype, shape.clone()).into(),
            TensorType::new(DType::I64, shape).into(),
        ])
    }

    fn axes(&self, args: &[&TensorType]) -> AxisMap {
        let labels = labels_but(args[0].rank(), &[self.axis]);
        AxisMap::Labels {
            args: vec![labels.clone()],
            results: vec![labels.clone(), labels],
            reduce: None,
        }
    }

    fn eval(&self, cx: &EvalCx, args: &[&Tensor]) -> Result<Vec<Tensor>, EvalError> {
        let x = args[0];
        let (n, k) = (x.shape()[self.axis], cx.dim(&self.k)?);
        if k > n {
            return Err(EvalError(format!(
                "top_k: k = {k} is more than the {n} elements of axis {}",
                self.axis
            )));
        }
        let mut shape = x.shape().to_vec();
        shape[self.axis] = k;
        let into = strides(&shape);
        let total = shape.iter().product();
        let (mut source, mut index) = (vec![0; total], vec![0; total]);
        let mut lanes = shape.clone();
        lanes[self.axis] = 1;
        let from = strides(x.shape());
        for_each_index(&lanes, |lane| {
            let at = |i: usize| offset(lane, &from) + i * from[self.axis];
            let mut ranked: Vec<usize> = (0..n).collect();
            // Stable, so that the lower index comes first among equals.
            ranked.sort_by(|&i, &j| {
                let o = order(x, at(i), at(j));
                if self.largest { o.reverse() } else { o }
            });
            for (place, &i) in ranked[..k].iter().enumerate() {
                let slot = offset(lane, &into) + place * into[self.axis];
                (source[slot], index[slot]) = (at(i), i as i64);
            }
        });
        let mut values = Encoder::new(x.dtype(), total);
        for i in source {
            match computes_in_integers(x.dtype()) {
                true => values.push_i64(x.get_i64(i)),
                false => values.push_f64(x.get_f64(i)),
            }
        }
        let indices = Tensor::from_i64(DType::I64, shape.clone(), &index)
            .map_err(|e| EvalError(e.to_string()))?;
        let mut results = finish(x.dtype(), shape, values)?;
        results.push(indices);
        Ok(results)
    }

    fn grad(&self, b: &mut Builder, io: Io<'_>, d: &[Value]) -> Result<Grad, TypeError> {
        let shape = b.shape(io.args[0]);
        let dtype = b.ty(io.args[0]).dtype;
        let zeros = b.full(dtype, &shape, 0.0)?;
        // Indices differ within a lane, so that nothing meets.
        let scatter = ScatterElements {
            axis: self.axis,
            f: ScatterFn::Set,
        };
        Ok(Grad::Args(vec![Some(
            b.one(scatter, &[zeros, io.results[1], d[0]])?,
        )]))
    }

    fn attrs(&self) -> Attrs {
        Attrs::none()
            .with("axis", Attr::Int(self.axis as i64))
            .with("k", Attr::Dim(self.k.clone()))
            .with("largest", Attr::Bool(self.largest))
    }

    primitive!();
}
