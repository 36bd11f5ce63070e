//! What the rules of several ops share: broadcasting, strides, known values.

use crate::graph::{SymValue, Value};
use crate::op::{Arg, InferCx, TypeError, type_err};
use crate::ops::reduce::Reduce;
use crate::{Builder, Dim, ReduceFn, Tri};

/// Known values longer than this are not tracked.
pub(crate) const KNOWN_LIMIT: usize = 256;

/// The shape that all shapes broadcast to (NumPy's rule). Extents that may or
/// may not be equal are taken as equal under a guard.
pub(crate) fn broadcast_shapes(cx: &mut InferCx, shapes: &[&[Dim]]) -> Result<Vec<Dim>, TypeError> {
    let rank = shapes.iter().map(|s| s.len()).max().unwrap_or(0);
    let mut out = vec![Dim::ONE; rank];
    for shape in shapes {
        for (slot, dim) in out[rank - shape.len()..].iter_mut().zip(shape.iter()) {
            if dim.as_const() == Some(1) || slot == dim {
                continue;
            }
            *slot = if slot.as_const() == Some(1) {
                dim.clone()
            } else {
                cx.require_same(slot, dim, "extents do not broadcast")?
            };
        }
    }
    Ok(out)
}

/// Exactly `n` arguments.
pub(crate) fn arity<'s, 'a>(args: &'s [Arg<'a>], n: usize) -> Result<&'s [Arg<'a>], TypeError> {
    if args.len() == n {
        Ok(args)
    } else {
        type_err(format!("takes {n} arguments, not {}", args.len()))
    }
}

/// The axis, if the rank has it.
pub(crate) fn check_axis(axis: usize, rank: usize) -> Result<(), TypeError> {
    if axis < rank {
        Ok(())
    } else {
        type_err(format!("axis {axis} is beyond rank {rank}"))
    }
}

/// Row-major strides in elements. What is beyond the largest number counts as
/// that: only a tensor without elements has such strides, and they address none.
pub fn strides(shape: &[usize]) -> Vec<usize> {
    let mut out = vec![1usize; shape.len()];
    for i in (1..shape.len()).rev() {
        out[i - 1] = out[i].saturating_mul(shape[i]);
    }
    out
}

/// Calls `f` with every index of the shape, in row-major order.
pub fn for_each_index(shape: &[usize], mut f: impl FnMut(&[usize])) {
    if shape.contains(&0) {
        return;
    }
    let mut index = vec![0; shape.len()];
    loop {
        f(&index);
        let mut axis = shape.len();
        loop {
            if axis == 0 {
                return;
            }
            axis -= 1;
            index[axis] += 1;
            if index[axis] < shape[axis] {
                break;
            }
            index[axis] = 0;
        }
    }
}

/// Strides with which `shape` is read as if broadcast to `to`.
pub fn broadcast_strides(shape: &[usize], to: &[usize]) -> Vec<usize> {
    let own = strides(shape);
    let lead = to.len() - shape.len();
    (0..to.len())
        .map(|i| {
            if i < lead || shape[i - lead] == 1 {
                0
            } else {
                own[i - lead]
            }
        })
        .collect()
}

/// The flat offset of an index.
pub fn offset(index: &[usize], strides: &[usize]) -> usize {
    index.iter().zip(strides).map(|(i, s)| i * s).sum()
}

/// Known arguments combined element by element, broadcast against each other.
pub(crate) fn known_map(args: &[Arg], f: impl Fn(&[&Dim]) -> Option<Dim>) -> Option<SymValue> {
    let known: Vec<&SymValue> = args.iter().map(|a| a.known).collect::<Option<_>>()?;
    let rank = known.iter().map(|k| k.shape.len()).max()?;
    let mut shape = vec![1; rank];
    for k in &known {
        for (slot, &d) in shape[rank - k.shape.len()..].iter_mut().zip(&k.shape) {
            match (*slot, d) {
                (a, b) if a == b || b == 1 => {}
                (1, b) => *slot = b,
                _ => return None,
            }
        }
    }
    if shape.iter().product::<usize>() > KNOWN_LIMIT {
        return None;
    }
    let strides: Vec<Vec<usize>> = known
        .iter()
        .map(|k| broadcast_strides(&k.shape, &shape))
        .collect();
    let mut dims = Some(vec![]);
    for_each_index(&shape, |index| {
        let at = |(k, s): (&&SymValue, &Vec<usize>)| k.dims.get(offset(index, s)).cloned();
        let taken: Option<Vec<Dim>> = known.iter().zip(&strides).map(at).collect();
        let value = taken.and_then(|t| f(&t.iter().collect::<Vec<_>>()));
        match (&mut dims, value) {
            (Some(dims), Some(v)) => dims.push(v),
            _ => dims = None,
        }
    });
    dims.map(|dims| SymValue { shape, dims })
}

/// A truth as a known value.
pub(crate) fn known_truth(t: Tri) -> Option<Dim> {
    match t {
        Tri::Yes => Some(Dim::ONE),
        Tri::No => Some(Dim::ZERO),
        Tri::Unknown => None,
    }
}

/// Sums a gradient over the axes along which its value was broadcast.
pub(crate) fn unbroadcast(b: &mut Builder, d: Value, to: &[Dim]) -> Result<Value, TypeError> {
    let from = b.shape(d);
    let lead = from.len() - to.len();
    let axes: Vec<usize> = (0..from.len())
        .filter(|&i| i < lead || (to[i - lead] == Dim::ONE && from[i] != Dim::ONE))
        .collect();
    let summed = if axes.is_empty() {
        d
    } else {
        b.one(
            Reduce {
                f: ReduceFn::Sum,
                axes,
                keep: true,
            },
            &[d],
        )?
    };
    if b.shape(summed) == to {
        Ok(summed)
    } else {
        b.reshape(summed, to)
    }
}

/// Labels for arguments that broadcast to `result`: label `i` for result axis
/// `i`, none where an argument's extent is 1.
pub(crate) fn broadcast_labels(args: &[&crate::TensorType], rank: usize) -> Vec<Vec<Option<u8>>> {
    args.iter()
        .map(|a| {
            let lead = rank - a.rank();
            a.shape
                .iter()
                .enumerate()
                .map(|(i, d)| (*d != Dim::ONE).then_some((lead + i) as u8))
                .collect()
        })
        .collect()
}

/// An argument whose elements lie plainly in memory.
pub(crate) fn plain(ty: &crate::TensorType) -> Result<(), TypeError> {
    match ty.encoding {
        Some(e) => type_err(format!(
            "the argument is encoded as {}: decode it first",
            e.format.name()
        )),
        None => Ok(()),
    }
}

/// A result of packed elements.
pub(crate) fn finish(
    dtype: crate::DType,
    shape: impl Into<Vec<usize>>,
    out: crate::tensor::Encoder,
) -> Result<Vec<crate::Tensor>, crate::op::EvalError> {
    crate::Tensor::new(dtype, shape, out.finish())
        .map(|t| vec![t])
        .map_err(|e| crate::op::EvalError(e.to_string()))
}

/// The `parse` of an op with one mnemonic.
macro_rules! parse_one {
    ($ty:ty, $name:literal, |$attrs:ident| $make:expr) => {
        impl $ty {
            /// The op from its text form; none if the mnemonic is another's.
            pub fn parse(
                mnemonic: &str,
                attrs: &crate::op::Attrs,
            ) -> Option<Result<Self, crate::op::TypeError>> {
                fn make($attrs: &crate::op::Attrs) -> Result<$ty, crate::op::TypeError> {
                    $make
                }
                (mnemonic == $name).then(|| make(attrs))
            }
        }
    };
}
pub(crate) use parse_one;

/// The rules shared by primitives that consume nothing.
macro_rules! primitive {
    () => {
        fn donates(&self) -> &'static [usize] {
            &[]
        }
        fn expand(
            &self,
            _: &mut crate::Builder,
            _: &[crate::Value],
        ) -> Result<Option<Vec<crate::Value>>, crate::op::TypeError> {
            Ok(None)
        }
    };
}
pub(crate) use primitive;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{CompareFn, DType, Globals, Graph, Tensor};

    #[test]
    fn known_values_broadcast() {
        let (mut graph, globals) = (Graph::new("f"), Globals::new());
        let mut b = Builder::at_end(&mut graph, &globals, Graph::BODY);
        let column = Tensor::from_i64(DType::I64, [2, 1], &[0, 1]).unwrap();
        let row = Tensor::from_i64(DType::I64, [1, 2], &[0, 1]).unwrap();
        let (column, row) = (b.constant(column).unwrap(), b.constant(row).unwrap());
        let less = b.compare(CompareFn::Lt, column, row).unwrap();
        let known = graph.known(less).unwrap();
        assert_eq!(known.shape, [2, 2]);
        assert_eq!(known.dims, [0, 1, 0, 0].map(Dim::from));
    }
}
