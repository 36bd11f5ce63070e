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

use crate::graph::{SymValue, Value};
use crate::op::*;
use crate::ops::util::*;
use crate::tensor::{Encoder, computes_in_integers};
use crate::{Builder, DType, ReduceFn, Tensor, TensorType, Tri};

/// Moves elements one by one: for each result index, where it comes from
/// (`None`: `fill`).
pub(crate) fn move_elements(
    x: &Tensor,
    shape: Vec<usize>,
    fill: Option<&Tensor>,
    from: impl Fn(&[usize]) -> Option<usize>,
) -> Result<Tensor, EvalError> {
    let err = |e: crate::tensor::SizeMismatch| EvalError(e.to_string());
    if x.dtype() == DType::Str {
        let mut out = vec![];
        for_each_index(&shape, |i| {
            let taken = match from(i) {
                Some(at) => x.as_strings()[at].clone(),
                None => fill
                    .and_then(|f| f.as_strings().first().cloned())
                    .unwrap_or_default(),
            };
            out.push(taken);
        });
        return Tensor::strings(shape, out).map_err(err);
    }
    if let Some(size) = x.dtype().size() {
        let mut out = Vec::with_capacity(shape.iter().product::<usize>() * size);
        let zero = vec![0u8; size];
        for_each_index(&shape, |i| match from(i) {
            Some(at) => out.extend_from_slice(&x.bytes()[at * size..(at + 1) * size]),
            None => out.extend_from_slice(fill.map(|f| f.bytes()).unwrap_or(&zero)),
        });
        return Tensor::new(x.dtype(), shape, out).map_err(err);
    }
    let mut out = Encoder::new(x.dtype(), shape.iter().product());
    for_each_index(&shape, |i| {
        let (t, at) = match from(i) {
            Some(at) => (Some(x), at),
            None => (fill, 0),
        };
        match t {
            Some(t) if computes_in_integers(x.dtype()) => out.push_i64(t.get_i64(at)),
            Some(t) => out.push_f64(t.get_f64(at)),
            None => out.push_i64(0),
        }
    });
    Tensor::new(x.dtype(), shape, out.finish()).map_err(err)
}

parse_one!(Reshape, "reshape", |a| Ok(Reshape {
    shape: a.dims("shape")?
}));

impl OpDef for Reshape {
    fn mnemonic(&self) -> &'static str {
        "reshape"
    }

    fn infer(&self, cx: &mut InferCx, args: &[Arg]) -> Result<Vec<Inferred>, TypeError> {
        let a = arity(args, 1)?[0];
        let because = format!("reshape of {} keeps the element count", a.ty);
        cx.require_same(&a.ty.elements(), &Dim::product(&self.shape), &because)?;
        let ty = a.ty.with_shape(self.shape.clone());
        let known = a
            .known
            .zip(ty.const_shape())
            .filter(|(k, s)| s.iter().product::<usize>() == k.dims.len())
            .map(|(k, shape)| SymValue {
                shape,
                dims: k.dims.clone(),
            });
        Ok(vec![Inferred { ty, known }])
    }

    fn axes(&self, args: &[&TensorType]) -> AxisMap {
        // Leading axes that both shapes share pass through.
        let shared = args[0]
            .shape
            .iter()
            .zip(&self.shape)
            .take_while(|(a, b)| a == b)
            .count();
        if shared == 0 {
            return AxisMap::Whole {
                because: "reshaping mixes axes",
            };
        }
        let labels = |rank: usize| (0..rank).map(|i| (i < shared).then_some(i as u8)).collect();
        AxisMap::Labels {
            args: vec![labels(args[0].rank())],
            results: vec![labels(self.shape.len())],
            reduce: None,
        }
    }

    fn eval(&self, cx: &EvalCx, args: &[&Tensor]) -> Result<Vec<Tensor>, EvalError> {
        let shape = cx.dims(&self.shape)?;
        args[0]
            .reshaped(shape)
            .map(|t| vec![t])
            .map_err(|e| EvalError(format!("reshape: {e}")))
    }

    fn grad(&self, b: &mut Builder, io: Io<'_>, d: &[Value]) -> Result<Grad, TypeError> {
        let shape = b.shape(io.args[0]);
        Ok(Grad::Args(vec![Some(b.reshape(d[0], &shape)?)]))
    }

    fn attrs(&self) -> Attrs {
        Attrs::none().with("shape", Attr::Dims(self.shape.clone()))
    }

    primitive!();
}

/// The shape an ONNX Reshape target means: 0 copies the argument's extent
/// (unless `allow_zero`), −1 is what remains.
pub fn resolve_reshape(
    input: &[Dim],
    target: &[Dim],
    allow_zero: bool,
) -> Result<Vec<Dim>, TypeError> {
    let mut shape = vec![];
    let mut rest = None;
    for (i, d) in target.iter().enumerate() {
        match d.as_const() {
            Some(0) if !allow_zero => match input.get(i) {
                Some(copied) => shape.push(copied.clone()),
                None => {
                    return type_err(format!(
                        "extent {i} of the target copies an axis that is not there"
                    ));
                }
            },
            Some(-1) if rest.is_some() => return type_err("two extents of the target are -1"),
            Some(-1) => {
                rest = Some(i);
                shape.push(Dim::ONE);
            }
            Some(c) if c < 0 => return type_err(format!("extent {i} of the target is {c}")),
            _ => shape.push(d.clone()),
        }
    }
    if let Some(i) = rest {
        let (total, others) = (Dim::product(input), Dim::product(&shape));
        shape[i] = if others == Dim::ZERO {
            Dim::ZERO
        } else {
            total.floor_div(&others)
        };
    }
    Ok(shape)
}

parse_one!(Broadcast, "broadcast", |a| Ok(Broadcast {
    shape: a.dims("shape")?
}));

impl OpDef for Broadcast {
    fn mnemonic(&self) -> &'static str {
        "broadcast"
    }

    fn infer(&self, cx: &mut InferCx, args: &[Arg]) -> Result<Vec<Inferred>, TypeError> {
        let a = arity(args, 1)?[0];
        if a.ty.rank() > self.shape.len() {
            return type_err(format!("{} has more axes than the target", a.ty));
        }
        let lead = self.shape.len() - a.ty.rank();
        for (from, to) in a.ty.shape.iter().zip(&self.shape[lead..]) {
            if from.as_const() != Some(1) {
                cx.require_same(from, to, "extents do not broadcast")?;
            }
        }
        let ty = a.ty.with_shape(self.shape.clone());
        let known = a.known.zip(ty.const_shape()).and_then(|(k, shape)| {
            let n: usize = shape.iter().product();
            (n <= KNOWN_LIMIT && (k.dims.len() == 1 || k.dims.len() == n)).then(|| {
                let dims = if k.dims.len() == n {
                    k.dims.clone()
                } else {
                    vec![k.dims[0].clone(); n]
                };
                SymValue { shape, dims }
            })
        });
        Ok(vec![Inferred { ty, known }])
    }

    fn axes(&self, args: &[&TensorType]) -> AxisMap {
        let labels = broadcast_labels(args, self.shape.len());
        // An axis that the op creates is not cut: its extent is the op's own.
        let results = (0..self.shape.len())
            .map(|i| labels[0].contains(&Some(i as u8)).then_some(i as u8))
            .collect();
        AxisMap::Labels {
            args: labels,
            results: vec![results],
            reduce: None,
        }
    }

    fn eval(&self, cx: &EvalCx, args: &[&Tensor]) -> Result<Vec<Tensor>, EvalError> {
        let shape = cx.dims(&self.shape)?;
        let s = broadcast_strides(args[0].shape(), &shape);
        Ok(vec![move_elements(args[0], shape, None, |i| {
            Some(offset(i, &s))
        })?])
    }

    fn grad(&self, b: &mut Builder, io: Io<'_>, d: &[Value]) -> Result<Grad, TypeError> {
        let shape = b.shape(io.args[0]);
        Ok(Grad::Args(vec![Some(unbroadcast(b, d[0], &shape)?)]))
    }

    fn attrs(&self) -> Attrs {
        Attrs::none().with("shape", Attr::Dims(self.shape.clone()))
    }

    primitive!();
}

parse_one!(Transpose, "transpose", |a| {
    let perm = a.indices("perm")?;
    let perm = Perm::new(perm).ok_or_else(|| TypeError("`perm` is no permutation".into()))?;
    Ok(Transpose { perm })
});

impl OpDef for Transpose {
    fn mnemonic(&self) -> &'static str {
        "transpose"
    }

    fn infer(&self, _: &mut InferCx, args: &[Arg]) -> Result<Vec<Inferred>, TypeError> {
        let a = arity(args, 1)?[0];
        if a.ty.rank() != self.perm.axes().len() {
            return type_err(format!(
                "the permutation has {} axes, {} has {}",
                self.perm.axes().len(),
                a.ty,
                a.ty.rank()
            ));
        }
        let shape: Vec<Dim> = self
            .perm
            .axes()
            .iter()
            .map(|&i| a.ty.shape[i].clone())
            .collect();
        let known = a.known.filter(|k| k.shape.len() <= 1).cloned();
        Ok(vec![Inferred {
            ty: a.ty.with_shape(shape),
            known,
        }])
    }

    fn axes(&self, args: &[&TensorType]) -> AxisMap {
        let arg = (0..args[0].rank()).map(|i| Some(i as u8)).collect();
        let result = self.perm.axes().iter().map(|&i| Some(i as u8)).collect();
        AxisMap::Labels {
            args: vec![arg],
            results: vec![result],
            reduce: None,
        }
    }

    fn eval(&self, _: &EvalCx, args: &[&Tensor]) -> Result<Vec<Tensor>, EvalError> {
        let own = strides(args[0].shape());
        let s: Vec<usize> = self.perm.axes().iter().map(|&i| own[i]).collect();
        let shape = self
            .perm
            .axes()
            .iter()
            .map(|&i| args[0].shape()[i])
            .collect();
        Ok(vec![move_elements(args[0], shape, None, |i| {
            Some(offset(i, &s))
        })?])
    }

    fn grad(&self, b: &mut Builder, _: Io<'_>, d: &[Value]) -> Result<Grad, TypeError> {
        Ok(Grad::Args(vec![Some(
            b.transpose(d[0], self.perm.inverse().axes())?,
        )]))
    }

    fn attrs(&self) -> Attrs {
        Attrs::none().with_ints("perm", self.perm.axes().iter().map(|&i| i as i64))
    }

    primitive!();
}

parse_one!(Slice, "slice", |a| Ok(Slice {
    starts: a.dims("starts")?,
    sizes: a.dims("sizes")?,
    steps: a.ints("steps")?
}));

impl OpDef for Slice {
    fn mnemonic(&self) -> &'static str {
        "slice"
    }

    fn infer(&self, cx: &mut InferCx, args: &[Arg]) -> Result<Vec<Inferred>, TypeError> {
        let a = arity(args, 1)?[0];
        let rank = a.ty.rank();
        if [self.starts.len(), self.sizes.len(), self.steps.len()] != [rank; 3]
            || self.steps.contains(&0)
        {
            return type_err(format!(
                "needs a start, a size and a step other than 0 for each axis of {}",
                a.ty
            ));
        }
        for i in 0..rank {
            let (start, size, step) = (&self.starts[i], &self.sizes[i], self.steps[i]);
            // First and last index lie inside, unless nothing is taken.
            if size.as_const() == Some(0) {
                continue;
            }
            let last = start.clone() + (size.clone() - Dim::ONE) * Dim::from(step);
            let (low, high) = if step > 0 {
                (start, &last)
            } else {
                (&last, start)
            };
            let end = high.clone() + Dim::ONE;
            if Dim::ZERO.le(low) == Tri::No
                || (end.le(&a.ty.shape[i]) == Tri::No && size.as_const().is_some_and(|s| s > 0))
            {
                return type_err(format!("the box leaves axis {i} of {}", a.ty));
            }
            if end.le(&a.ty.shape[i]) == Tri::Unknown && step > 0 {
                cx.guards.push(crate::Guard {
                    left: start.clone() + size.clone() * Dim::from(step) - Dim::from(step - 1),
                    relation: crate::Relation::Le,
                    right: a.ty.shape[i].maximum(&start.clone()),
                    because: format!("the slice stays inside axis {i}"),
                });
            }
        }
        let ty = a.ty.with_shape(self.sizes.clone());
        let known = match (a.known, &self.starts[..], &self.sizes[..]) {
            (Some(k), [start], [size]) => {
                start.as_const().zip(size.as_const()).and_then(|(s, n)| {
                    let dims: Option<Vec<Dim>> = (0..n)
                        .map(|i| {
                            k.dims
                                .get(usize::try_from(s + i * self.steps[0]).ok()?)
                                .cloned()
                        })
                        .collect();
                    dims.map(SymValue::vector)
                })
            }
            _ => None,
        };
        Ok(vec![Inferred { ty, known }])
    }

    fn axes(&self, args: &[&TensorType]) -> AxisMap {
        let labels: Vec<Option<u8>> = (0..args[0].rank())
            .map(|i| {
                let untouched = self.starts[i] == Dim::ZERO
                    && self.steps[i] == 1
                    && self.sizes[i] == args[0].shape[i];
                untouched.then_some(i as u8)
            })
            .collect();
        AxisMap::Labels {
            args: vec![labels.clone()],
            results: vec![labels],
            reduce: None,
        }
    }

    fn eval(&self, cx: &EvalCx, args: &[&Tensor]) -> Result<Vec<Tensor>, EvalError> {
        let (starts, sizes) = (cx.dims(&self.starts)?, cx.dims(&self.sizes)?);
        let own = strides(args[0].shape());
        for i in 0..sizes.len() {
            // A step may be any number that a file can hold.
            let last = starts[i] as i128 + (sizes[i] as i128 - 1) * i128::from(self.steps[i]);
            let extent = args[0].shape()[i] as i128;
            if sizes[i] > 0 && (last < 0 || last >= extent || starts[i] as i128 >= extent) {
                return Err(EvalError(format!(
                    "slice leaves axis {i}: {}..={last} of {extent}",
                    starts[i]
                )));
            }
        }
        Ok(vec![move_elements(args[0], sizes, None, |index| {
            let at =
                |i: usize| (starts[i] as i64 + index[i] as i64 * self.steps[i]) as usize * own[i];
            Some((0..index.len()).map(at).sum())
        })?])
    }

    fn grad(&self, b: &mut Builder, io: Io<'_>, d: &[Value]) -> Result<Grad, TypeError> {
        let shape = b.shape(io.args[0]);
        let (mut d, mut lo) = (d[0], self.starts.clone());
        for (axis, &step) in self.steps.iter().enumerate().filter(|(_, s)| **s != 1) {
            if self.sizes[axis] == Dim::ZERO {
                continue;
            }
            if step < 0 {
                d = reversed(b, d, axis)?;
                // The lowest element taken is the last.
                let last = (self.sizes[axis].clone() - Dim::ONE) * Dim::from(step);
                lo[axis] = lo[axis].clone() + last;
            }
            d = spaced(b, d, axis, step.unsigned_abs() as usize)?;
        }
        let taken = b.shape(d);
        let hi = (0..shape.len())
            .map(|i| shape[i].clone() - lo[i].clone() - taken[i].clone())
            .collect();
        let zero = b.scalar_like(d, 0.0)?;
        let mode = PadMode::Constant;
        let dx = b.one(Pad { lo, hi, mode }, &[d, zero])?;
        Ok(Grad::Args(vec![Some(b.reshape(dx, &shape)?)]))
    }

    fn attrs(&self) -> Attrs {
        Attrs::none()
            .with("starts", Attr::Dims(self.starts.clone()))
            .with("sizes", Attr::Dims(self.sizes.clone()))
            .with_ints("steps", self.steps.iter().copied())
    }

    primitive!();
}

/// The axis back to front.
fn reversed(b: &mut Builder, x: Value, axis: usize) -> Result<Value, TypeError> {
    let sizes = b.shape(x);
    let (mut starts, mut steps) = (vec![Dim::ZERO; sizes.len()], vec![1; sizes.len()]);
    (starts[axis], steps[axis]) = (sizes[axis].clone() - Dim::ONE, -1);
    let slice = Slice {
        starts,
        sizes,
        steps,
    };
    b.one(slice, &[x])
}

/// The axis with `by - 1` zeros between its elements.
pub(crate) fn spaced(
    b: &mut Builder,
    x: Value,
    axis: usize,
    by: usize,
) -> Result<Value, TypeError> {
    if by == 1 {
        return Ok(x);
    }
    let shape = b.shape(x);
    let mut column = shape.clone();
    column.insert(axis + 1, Dim::ONE);
    let x = b.reshape(x, &column)?;
    let (lo, mut hi) = (vec![Dim::ZERO; column.len()], vec![Dim::ZERO; column.len()]);
    hi[axis + 1] = (by - 1).into();
    let zero = b.scalar_like(x, 0.0)?;
    let mode = PadMode::Constant;
    let x = b.one(Pad { lo, hi, mode }, &[x, zero])?;
    let mut joined = shape;
    joined[axis] = joined[axis].clone() * Dim::from(by);
    let x = b.reshape(x, &joined)?;
    let used = joined[axis].clone() - Dim::from(by - 1);
    b.slice_axis(x, axis, Dim::ZERO, used)
}

parse_one!(Concat, "concat", |a| Ok(Concat {
    axis: a.index("axis")?
}));

impl OpDef for Concat {
    fn mnemonic(&self) -> &'static str {
        "concat"
    }

    fn infer(&self, cx: &mut InferCx, args: &[Arg]) -> Result<Vec<Inferred>, TypeError> {
        let Some(first) = args.first() else {
            return type_err("takes at least one argument");
        };
        check_axis(self.axis, first.ty.rank())?;
        let mut shape = first.ty.shape.clone();
        for a in &args[1..] {
            if a.ty.dtype != first.ty.dtype || a.ty.rank() != shape.len() {
                return type_err(format!("cannot join {} to {}", a.ty, first.ty));
            }
            for (i, (slot, other)) in shape.iter_mut().zip(&a.ty.shape).enumerate() {
                *slot = if i == self.axis {
                    slot.clone() + other.clone()
                } else {
                    cx.require_same(slot, other, "joined values agree on other axes")?
                };
            }
        }
        let known: Option<Vec<&SymValue>> = args.iter().map(|a| a.known).collect();
        let known = known
            .filter(|k| k.iter().all(|k| k.shape.len() == 1))
            .map(|k| SymValue::vector(k.iter().flat_map(|k| k.dims.clone()).collect()));
        Ok(vec![Inferred {
            ty: first.ty.with_shape(shape),
            known,
        }])
    }

    fn axes(&self, args: &[&TensorType]) -> AxisMap {
        let labels: Vec<Option<u8>> = (0..args[0].rank())
            .map(|i| (i != self.axis).then_some(i as u8))
            .collect();
        AxisMap::Labels {
            args: vec![labels.clone(); args.len()],
            results: vec![labels],
            reduce: None,
        }
    }

    fn eval(&self, _: &EvalCx, args: &[&Tensor]) -> Result<Vec<Tensor>, EvalError> {
        let mut shape = args[0].shape().to_vec();
        shape[self.axis] = args.iter().map(|a| a.shape()[self.axis]).sum();
        let (outer, inner): (usize, usize) = (
            shape[..self.axis].iter().product(),
            shape[self.axis + 1..].iter().product(),
        );
        let dtype = args[0].dtype();
        let err = |e: crate::tensor::SizeMismatch| EvalError(e.to_string());
        if dtype == DType::Str {
            let mut out = vec![];
            for o in 0..outer {
                for a in args {
                    let run = a.shape()[self.axis] * inner;
                    out.extend_from_slice(&a.as_strings()[o * run..(o + 1) * run]);
                }
            }
            return Tensor::strings(shape, out).map(|t| vec![t]).map_err(err);
        }
        let mut out = Encoder::new(dtype, 0);
        let mut bytes = vec![];
        for o in 0..outer {
            for a in args {
                let run = a.shape()[self.axis] * inner;
                match dtype.size() {
                    Some(size) => {
                        bytes.extend_from_slice(&a.bytes()[o * run * size..(o + 1) * run * size])
                    }
                    None => (o * run..(o + 1) * run).for_each(|i| out.push_f64(a.get_f64(i))),
                }
            }
        }
        let data = if dtype.size().is_some() {
            bytes
        } else {
            out.finish()
        };
        Tensor::new(dtype, shape, data)
            .map(|t| vec![t])
            .map_err(err)
    }

    fn grad(&self, b: &mut Builder, io: Io<'_>, d: &[Value]) -> Result<Grad, TypeError> {
        let mut start = Dim::ZERO;
        let mut grads = vec![];
        for &a in io.args {
            let size = b.shape(a)[self.axis].clone();
            grads.push(Some(b.slice_axis(
                d[0],
                self.axis,
                start.clone(),
                size.clone(),
            )?));
            start = start + size;
        }
        Ok(Grad::Args(grads))
    }

    fn attrs(&self) -> Attrs {
        Attrs::none().with("axis", Attr::Int(self.axis as i64))
    }

    primitive!();
}

impl PadMode {
    const NAMES: [(PadMode, &'static str); 4] = [
        (PadMode::Constant, "constant"),
        (PadMode::Reflect, "reflect"),
        (PadMode::Edge, "edge"),
        (PadMode::Wrap, "wrap"),
    ];
}

parse_one!(Pad, "pad", |a| {
    let name = a.name("mode")?;
    let mode = PadMode::NAMES
        .iter()
        .find(|m| m.1 == name)
        .ok_or_else(|| TypeError(format!("no pad mode `{name}`")))?;
    Ok(Pad {
        lo: a.dims("lo")?,
        hi: a.dims("hi")?,
        mode: mode.0,
    })
});

impl OpDef for Pad {
    fn mnemonic(&self) -> &'static str {
        "pad"
    }

    fn infer(&self, _: &mut InferCx, args: &[Arg]) -> Result<Vec<Inferred>, TypeError> {
        let (x, value) = (arity(args, 2)?[0], args[1]);
        if value.ty.dtype != x.ty.dtype || value.ty.rank() != 0 {
            return type_err(format!("the fill of {} is {}", x.ty, value.ty));
        }
        if self.lo.len() != x.ty.rank() || self.hi.len() != x.ty.rank() {
            return type_err("needs a count before and after each axis");
        }
        let shape: Vec<Dim> =
            x.ty.shape
                .iter()
                .zip(self.lo.iter().zip(&self.hi))
                .map(|(d, (l, h))| d.clone() + l.clone() + h.clone())
                .collect();
        if shape.iter().any(|d| d.as_const().is_some_and(|c| c < 0)) {
            return type_err("takes away more than there is");
        }
        Ok(vec![x.ty.with_shape(shape).into()])
    }

    fn axes(&self, args: &[&TensorType]) -> AxisMap {
        let labels: Vec<Option<u8>> = (0..args[0].rank())
            .map(|i| (self.lo[i] == Dim::ZERO && self.hi[i] == Dim::ZERO).then_some(i as u8))
            .collect();
        AxisMap::Labels {
            args: vec![labels.clone(), vec![]],
            results: vec![labels],
            reduce: None,
        }
    }

    fn eval(&self, cx: &EvalCx, args: &[&Tensor]) -> Result<Vec<Tensor>, EvalError> {
        let x = args[0];
        let value = |d: &Dim| {
            d.eval(&cx.binding.borrow())
                .map_err(|e| EvalError(e.to_string()))
        };
        let lo: Vec<i64> = self.lo.iter().map(value).collect::<Result<_, _>>()?;
        let hi: Vec<i64> = self.hi.iter().map(value).collect::<Result<_, _>>()?;
        let mut shape = vec![];
        for i in 0..x.shape().len() {
            let n = x.shape()[i] as i64 + lo[i] + hi[i];
            shape.push(
                usize::try_from(n)
                    .map_err(|_| EvalError(format!("pad leaves axis {i} with {n} elements")))?,
            );
            let border = match self.mode {
                PadMode::Reflect => x.shape()[i] > lo[i].max(hi[i]).max(0) as usize,
                PadMode::Edge | PadMode::Wrap => x.shape()[i] > 0 || n == 0,
                PadMode::Constant => true,
            };
            if !border {
                return Err(EvalError(format!("axis {i} is too short for this padding")));
            }
        }
        let own = strides(x.shape());
        let from = |index: &[usize]| {
            let mut at = 0;
            for i in 0..index.len() {
                let n = x.shape()[i] as i64;
                let mut p = index[i] as i64 - lo[i];
                if p < 0 || p >= n {
                    p = match self.mode {
                        PadMode::Constant => return None,
                        PadMode::Edge => p.clamp(0, n - 1),
                        PadMode::Wrap => p.rem_euclid(n),
                        PadMode::Reflect if p < 0 => -p,
                        PadMode::Reflect => 2 * (n - 1) - p,
                    };
                }
                at += p as usize * own[i];
            }
            Some(at)
        };
        Ok(vec![move_elements(x, shape, Some(args[1]), from)?])
    }

    fn grad(&self, b: &mut Builder, io: Io<'_>, d: &[Value]) -> Result<Grad, TypeError> {
        if self.mode != PadMode::Constant {
            return Ok(Grad::Unsupported {
                because: "only constant padding is differentiated",
            });
        }
        // Taking away what was added, and adding what was taken away.
        let back = Pad {
            lo: self.lo.iter().map(|d| -d.clone()).collect(),
            hi: self.hi.iter().map(|d| -d.clone()).collect(),
            mode: PadMode::Constant,
        };
        let (zero, one) = (b.scalar_like(d[0], 0.0)?, b.scalar_like(d[0], 1.0)?);
        let dx = b.one(back, &[d[0], zero])?;
        let (shape, dtype) = (b.shape(io.args[0]), b.ty(io.args[0]).dtype);
        let inside = b.full(dtype, &shape, 0.0)?;
        let added = b.one(self.clone(), &[inside, one])?;
        let added = b.mul(added, d[0])?;
        let axes: Vec<usize> = (0..shape.len()).collect();
        let dv = b.reduce(ReduceFn::Sum, added, &axes, false)?;
        Ok(Grad::Args(vec![Some(dx), Some(dv)]))
    }

    fn attrs(&self) -> Attrs {
        let name = PadMode::NAMES
            .iter()
            .find(|m| m.0 == self.mode)
            .map(|m| m.1)
            .unwrap_or("constant");
        Attrs::none()
            .with("lo", Attr::Dims(self.lo.clone()))
            .with("hi", Attr::Dims(self.hi.clone()))
            .with("mode", Attr::Name(name.into()))
    }

    primitive!();
}
