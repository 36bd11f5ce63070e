//! Local rewrites that leave less to say: no-ops vanish, neighbours of one kind
//! merge, sizes known while compiling become `dims` or constants. Every rule
//! keeps each element's bits.

use crate::{Changed, PassCx, PassError};
use kiln_ir::ops::{layout, source};
use kiln_ir::{BinaryFn, Builder, DType, Dim, Graph, NodeId, Op, Tensor, Value};
use std::collections::{BTreeMap, BTreeSet};

/// Applies the rules in one forward walk (arguments are canonical already when
/// their user is looked at).
pub fn canonicalize(cx: &mut PassCx, graph: &mut Graph) -> Result<Changed, PassError> {
    let mut replaced: BTreeMap<Value, Value> = BTreeMap::new();
    let mut dead = BTreeSet::new();
    let consumed = consumed(graph);
    for n in graph.nodes_in_order() {
        let args: Vec<Value> = graph
            .node(n)
            .args
            .iter()
            .map(|v| *replaced.get(v).unwrap_or(v))
            .collect();
        graph.node_mut(n).args = args;
        let [v] = graph.node(n).results[..] else {
            continue;
        };
        if !consumed.is_empty() && is_near(graph, n, &consumed) {
            continue;
        }
        if let Some(to) = known_sizes(cx, graph, n)? {
            replaced.insert(v, to);
            dead.insert(n);
            continue;
        }
        if let Some(to) = vanish(graph, n) {
            replaced.insert(v, to);
            dead.insert(n);
            continue;
        }
        if let Some(to) = merge(cx, graph, n)? {
            replaced.insert(v, to);
            dead.insert(n);
        }
    }
    graph.replace_all(&replaced);
    graph.remove_nodes(&dead);
    Ok((!dead.is_empty()).into())
}

/// Values whose memory some node takes over.
fn consumed(graph: &Graph) -> BTreeSet<Value> {
    let mut out = BTreeSet::new();
    for n in graph.nodes_in_order() {
        let node = graph.node(n);
        let taken = node.op.def().donates().iter();
        out.extend(taken.filter_map(|&i| node.args.get(i).copied()));
    }
    out
}

/// Whether a node makes or reads what is consumed, or reads what was read from it: a
/// copy outlives it.
fn is_near(graph: &Graph, n: NodeId, consumed: &BTreeSet<Value>) -> bool {
    let node = graph.node(n);
    let source = node.args.first().and_then(|&a| {
        let (_, inner) = graph.producer_op(a)?;
        inner.first().copied()
    });
    let all = node.args.iter().chain(&source).chain(&node.results);
    all.into_iter().any(|v| consumed.contains(v))
}

/// A value whose contents are known as sizes is written down as such.
fn known_sizes(cx: &mut PassCx, graph: &mut Graph, n: NodeId) -> Result<Option<Value>, PassError> {
    let node = graph.node(n);
    if matches!(node.op, Op::Dims(_) | Op::Constant(_)) {
        return Ok(None);
    }
    let v = node.results[0];
    let dtype = graph.ty(v).dtype;
    let Some(known) = graph.known(v).cloned() else {
        return Ok(None);
    };
    let values: Option<Vec<i64>> = known.dims.iter().map(Dim::as_const).collect();
    let mut b = Builder::before(graph, cx.globals, n);
    match values {
        Some(values) => {
            let t = Tensor::from_i64(dtype, known.shape, &values);
            Ok(t.ok().map(|t| b.constant(t)).transpose()?)
        }
        None if dtype == DType::I64 => Ok(Some(b.dims(known)?)),
        None => Ok(None),
    }
}

/// What a node that does nothing stands for.
fn vanish(graph: &Graph, n: NodeId) -> Option<Value> {
    let node = graph.node(n);
    let v = node.results[0];
    let first = *node.args.first()?;
    let same_type = graph.ty(first) == graph.ty(v);
    match &node.op {
        Op::Reshape(_) | Op::Broadcast(_) | Op::Cast(_) if same_type => Some(first),
        Op::Transpose(t) if t.perm.is_identity() => Some(first),
        Op::Concat(_) if node.args.len() == 1 => Some(first),
        Op::Slice(s)
            if same_type
                && s.steps.iter().all(|&s| s == 1)
                && s.starts.iter().all(|d| *d == Dim::ZERO) =>
        {
            Some(first)
        }
        Op::Pad(p) if same_type && p.lo.iter().chain(&p.hi).all(|d| *d == Dim::ZERO) => Some(first),
        Op::Select(_) if node.args[1] == node.args[2] && graph.ty(node.args[1]) == graph.ty(v) => {
            Some(node.args[1])
        }
        // x·1, x/1, and on integers x+0, x−0 (x + 0.0 turns −0 to 0).
        Op::Binary(b) => {
            let second = node.args[1];
            let is = |v: Value, what: f64| splat(graph, v) == Some(what);
            match b.f {
                BinaryFn::Mul | BinaryFn::Div if same_type && is(second, 1.0) => Some(first),
                BinaryFn::Mul if is(first, 1.0) && graph.ty(second) == graph.ty(v) => Some(second),
                BinaryFn::Add | BinaryFn::Sub
                    if same_type && is(second, 0.0) && graph.ty(v).dtype.is_int() =>
                {
                    Some(first)
                }
                _ => None,
            }
        }
        _ => None,
    }
}

/// The one number that a literal is full of.
pub fn splat(graph: &Graph, v: Value) -> Option<f64> {
    let (Op::Constant(c), _) = graph.producer_op(v)? else {
        return None;
    };
    let first = (!c.value.is_empty()).then(|| c.value.get_f64(0))?;
    (0..c.value.len())
        .all(|i| c.value.get_f64(i) == first)
        .then_some(first)
}

/// Merges a node with the one that feeds it.
fn merge(cx: &mut PassCx, graph: &mut Graph, n: NodeId) -> Result<Option<Value>, PassError> {
    let node = graph.node(n);
    let Some(&first) = node.args.first() else {
        return Ok(None);
    };
    let Some((inner, inner_args)) = graph.producer_op(first) else {
        return Ok(None);
    };
    let Some(&x) = inner_args.first() else {
        return Ok(None);
    };
    let op: Op = match (&node.op, inner) {
        (Op::Transpose(outer), Op::Transpose(inner)) => layout::Transpose {
            perm: outer.perm.after(&inner.perm),
        }
        .into(),
        (Op::Reshape(outer), Op::Reshape(_)) => outer.clone().into(),
        (Op::Broadcast(outer), Op::Broadcast(_)) => outer.clone().into(),
        (Op::Reshape(outer), Op::Dims(d)) => match outer
            .shape
            .iter()
            .map(|d| d.as_const().map(|c| c as usize))
            .collect()
        {
            Some(shape) => source::Dims {
                value: kiln_ir::SymValue {
                    shape,
                    dims: d.value.dims.clone(),
                },
            }
            .into(),
            None => return Ok(None),
        },
        _ => return Ok(None),
    };
    // Two that undo each other leave nothing.
    let undone = match &op {
        Op::Transpose(t) => t.perm.is_identity(),
        Op::Reshape(_) | Op::Broadcast(_) => graph.ty(x) == graph.ty(node.results[0]),
        _ => false,
    };
    if undone {
        return Ok(Some(x));
    }
    let args: &[Value] = if matches!(op, Op::Dims(_)) { &[] } else { &[x] };
    let mut b = Builder::before(graph, cx.globals, n);
    // Sizes that agree nowhere: such a graph has no run, and stays as it is.
    Ok(b.one(op, args).ok())
}
