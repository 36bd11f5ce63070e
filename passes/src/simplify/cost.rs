//! What a term costs: a roofline of the machine class that the windows are
//! chosen for. Only ratios matter: all windows are compared with themselves.

use super::language::{Data, Terms};
use kiln_ir::{Binding, Class, Dim, Graph, NodeId, Op, TensorType, UnaryFn, Value};
use std::collections::BTreeSet;
use std::sync::Arc;

/// What a size that is not known is taken to be.
const NOMINAL: i64 = 64;
/// Operations a nanosecond of one core.
const FLOPS: f64 = 100.0;
/// Bytes a nanosecond from memory.
const BYTES: f64 = 20.0;
/// The share of an elementwise op's traffic that fusion leaves.
const FUSED: f64 = 0.25;
/// Nanoseconds that a node costs by being there.
const NODE: f64 = 1.0;

/// A size with every name at its nominal value.
pub fn nominal(d: &Dim) -> f64 {
    let mut names: BTreeSet<Arc<str>> = BTreeSet::new();
    d.symbols(&mut names);
    let binding: Binding = names.into_iter().map(|n| (n, NOMINAL)).collect();
    d.eval(&binding).map_or(1.0, |n| n.max(0) as f64)
}

fn bytes(ty: &TensorType) -> f64 {
    nominal(&ty.bytes())
}

fn elements(ty: &TensorType) -> f64 {
    nominal(&ty.elements())
}

/// Nanoseconds of one term, its arguments' not counted.
pub fn of_term(op: &Op, args: &[&Data], result: &Data) -> f64 {
    if result.constant {
        return 0.0;
    }
    let moved = bytes(&result.ty) + args.iter().map(|d| bytes(&d.ty)).sum::<f64>();
    let n = elements(&result.ty);
    let (flops, traffic) = match op {
        Op::Reshape(_) | Op::Constant(_) => return 0.0,
        Op::Unary(u) => (if is_cheap(u.f) { n } else { 10.0 * n }, FUSED * moved),
        Op::MatMul(m) => {
            let a = &args[0].ty.shape;
            let depth = &a[if m.transpose_a {
                a.len() - 2
            } else {
                a.len() - 1
            }];
            (2.0 * n * nominal(depth), moved)
        }
        op => match op.class() {
            Class::View => (0.0, FUSED * bytes(&result.ty)),
            Class::Elementwise | Class::Move => (n, FUSED * moved),
            Class::Reduction => (elements(&args[0].ty), FUSED * moved),
            Class::Composite | Class::Anchor | Class::Kernel | Class::Plan => (10.0 * n, moved),
        },
    };
    (flops / FLOPS).max(traffic / BYTES) + NODE
}

fn is_cheap(f: UnaryFn) -> bool {
    use UnaryFn::*;
    matches!(
        f,
        Neg | Abs | Sign | Floor | Ceil | Round | Not | BitNot | IsNan | IsInf
    )
}

/// Nanoseconds of the window as it stands, as far as its roots need it.
pub fn of_window(graph: &Graph, terms: &Terms, window: &[NodeId], roots: &[Value]) -> f64 {
    let inside: BTreeSet<NodeId> = window.iter().copied().collect();
    let mut seen = BTreeSet::new();
    let mut stack = roots.to_vec();
    let mut sum = 0.0;
    while let Some(v) = stack.pop() {
        let Some((n, _)) = graph.producer(v) else {
            continue;
        };
        if !inside.contains(&n) || !seen.insert(n) {
            continue;
        }
        let node = graph.node(n);
        let data = |v: &Value| terms.class_of(*v).map(|c| terms.data(c));
        let args: Option<Vec<&Data>> = node.args.iter().map(data).collect();
        if let (Some(args), Some(result)) = (args, data(&v)) {
            sum += of_term(&node.op, &args, result);
        }
        stack.extend(node.args.iter().copied());
    }
    sum
}
