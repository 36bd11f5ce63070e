//! Attention.
//!
//! ```text
//! %s = matmul %q, %kt        (kt: k with its last two axes swapped)
//! %d = div %s, 5.65          (optional; or mul)
//! %m = add %d, %bias         (optional)
//! %p = softmax %m {axis = 3}
//! %y = matmul %p, %v
//! becomes
//! %k = transpose %kt [0, 1, 3, 2]
//! %y = attention %q, %k, %v, %bias {scale = 0.1767, mask = full, bias = true}
//! ```
//! The scores never exist in memory. Dividing by 5.65 and multiplying by its
//! reciprocal round differently by one unit in the last place: the rule is off
//! where bits must not change.

use super::Parts;
use crate::canonicalize::splat;
use kiln_ir::ops::attention::{Attention, MaskKind};
use kiln_ir::{BinaryFn, DType, Graph, NodeId, Op, Value};

/// The attention that ends in this product.
pub(super) fn attention(p: &Parts, n: NodeId) -> Option<super::Found> {
    let found = match_attention(p.graph, n, p.uses)?;
    let mut parts = found.nodes.clone();
    parts.push(n);
    Some(super::Found {
        parts,
        build: Box::new(move |b| {
            let k = b.transpose(found.kt, &[0, 1, 3, 2])?;
            let mut args = vec![found.q, k, found.v];
            args.extend(found.bias);
            let op = Attention {
                scale: found.scale,
                mask: MaskKind::Full,
                bias: found.bias.is_some(),
                keep: false,
                slopes: false,
                lengths: false,
            };
            b.one(op, &args)
        }),
    })
}

struct Found {
    q: Value,
    kt: Value,
    v: Value,
    bias: Option<Value>,
    scale: f64,
    nodes: Vec<NodeId>,
}

fn match_attention(graph: &Graph, n: NodeId, uses: &[u32]) -> Option<Found> {
    let node = graph.node(n);
    let Op::MatMul(outer) = &node.op else {
        return None;
    };
    if outer.transpose_a || outer.transpose_b || outer.out.is_some() {
        return None;
    }
    let (p, v) = (node.args[0], node.args[1]);
    let once = |x: Value| uses[x.index()] == 1;
    let mut nodes = vec![];
    let mut step = |x: Value| {
        nodes.extend(graph.producer(x).map(|p| p.0));
        once(x)
    };
    let (Op::Softmax(s), args) = graph.producer_op(p)? else {
        return None;
    };
    if s.log || s.axis != 3 || graph.ty(p).rank() != 4 || !step(p) {
        return None;
    }
    let mut score = args[0];
    if !step(score) {
        return None;
    }
    let (mut bias, mut scale) = (None, 1.0);
    if let (Op::Binary(b), args) = graph.producer_op(score)?
        && b.f == BinaryFn::Add
        && splat(graph, args[1]).is_none()
    {
        // The score is the side that leads to the product.
        let leads =
            |x: Value| leads_to_matmul(graph, x) && graph.ty(x).shape == graph.ty(score).shape;
        let (s, other) = match (leads(args[0]), leads(args[1])) {
            (true, _) => (args[0], args[1]),
            (false, true) => (args[1], args[0]),
            (false, false) => return None,
        };
        bias = Some(other);
        score = s;
        if !step(score) {
            return None;
        }
    }
    if let (Op::Binary(b), args) = graph.producer_op(score)? {
        let (x, factor) = match (splat(graph, args[0]), splat(graph, args[1])) {
            (_, Some(c)) => (args[0], c),
            (Some(c), _) if b.f == BinaryFn::Mul => (args[1], c),
            _ => return None,
        };
        scale = match b.f {
            BinaryFn::Mul => factor,
            BinaryFn::Div if factor != 0.0 => 1.0 / factor,
            _ => return None,
        };
        score = x;
        if !step(score) {
            return None;
        }
    }
    let (Op::MatMul(inner), args) = graph.producer_op(score)? else {
        return None;
    };
    if inner.transpose_a
        || inner.transpose_b
        || inner.out.is_some()
        || graph.ty(score).dtype != DType::F32
    {
        return None;
    }
    let (q, kt) = (args[0], args[1]);
    // Batch and heads are equal on all sides: nothing broadcasts.
    let lead = |x: Value| graph.shape(x).get(..2).map(<[_]>::to_vec);
    let same =
        graph.ty(q).rank() == 4 && lead(q) == lead(kt) && lead(q) == lead(v) && lead(q) == lead(p);
    (same && graph.ty(v).rank() == 4).then_some(Found {
        q,
        kt,
        v,
        bias,
        scale,
        nodes,
    })
}

/// Whether a value is a product, or one scaled.
fn leads_to_matmul(graph: &Graph, x: Value) -> bool {
    match graph.producer_op(x) {
        Some((Op::MatMul(_), _)) => true,
        Some((Op::Binary(b), args)) if matches!(b.f, BinaryFn::Mul | BinaryFn::Div) => args
            .iter()
            .any(|&a| matches!(graph.producer_op(a), Some((Op::MatMul(_), _)))),
        _ => false,
    }
}
