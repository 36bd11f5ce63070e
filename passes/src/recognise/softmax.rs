//! Softmax and its logarithm.

use super::{Found, Parts};
use kiln_ir::ops::composite::Softmax;
use kiln_ir::{BinaryFn, NodeId, Op, ReduceFn, UnaryFn, Value};

/// `exp(x − max x) / Σ exp(x − max x)`.
pub(super) fn softmax(p: &Parts, n: NodeId) -> Option<Found> {
    let v = p.graph.node(n).results.first().copied()?;
    let (root, e, sum) = p.binary(v, BinaryFn::Div)?;
    let (s, of, axis) = reduction(p, sum, ReduceFn::Sum)?;
    if of != e {
        return None;
    }
    let (exp, d) = p.unary(e, UnaryFn::Exp)?;
    let (mut parts, x) = below_max(p, d, axis)?;
    parts.extend([root, s, exp]);
    Some(found(parts, x, axis, false))
}

/// `(x − max x) − log Σ exp(x − max x)`.
pub(super) fn log_softmax(p: &Parts, n: NodeId) -> Option<Found> {
    let v = p.graph.node(n).results.first().copied()?;
    let (root, d, log) = p.binary(v, BinaryFn::Sub)?;
    let (l, sum) = p.unary(log, UnaryFn::Log)?;
    let (s, e, axis) = reduction(p, sum, ReduceFn::Sum)?;
    let (exp, of) = p.unary(e, UnaryFn::Exp)?;
    if of != d {
        return None;
    }
    let (mut parts, x) = below_max(p, d, axis)?;
    parts.extend([root, l, s, exp]);
    Some(found(parts, x, axis, true))
}

fn found(parts: Vec<NodeId>, x: Value, axis: usize, log: bool) -> Found {
    Found {
        parts,
        build: Box::new(move |b| b.one(Softmax { axis, log }, &[x])),
    }
}

/// `x − max x` along this axis.
fn below_max(p: &Parts, v: Value, axis: usize) -> Option<(Vec<NodeId>, Value)> {
    let (n, x, top) = p.binary(v, BinaryFn::Sub)?;
    let (m, of, at) = reduction(p, top, ReduceFn::Max)?;
    let float = p.graph.ty(x).dtype.is_float();
    (of == x && at == axis && float).then_some((vec![n, m], x))
}

/// A reduction along one axis, which stays with extent 1.
fn reduction(p: &Parts, v: Value, f: ReduceFn) -> Option<(NodeId, Value, usize)> {
    let (n, _) = p.graph.producer(v)?;
    let node = p.graph.node(n);
    match &node.op {
        Op::Reduce(r) if r.f == f && r.keep && r.axes.len() == 1 => {
            Some((n, node.args[0], r.axes[0]))
        }
        _ => None,
    }
}
