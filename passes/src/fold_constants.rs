//! Computes what depends on literals alone, and turns layout changes of weights
//! into constant expressions (evaluated once, when the artifact is written).
//!
//! A result is never larger than its inputs or 1 MiB, whichever is more, and a
//! cast that would widen a weight is left to run: a quantized weight stays
//! quantized.

use crate::{Changed, PassCx, PassError};
use kiln_ir::{
    Binding, Builder, ConstSource, EvalCx, Global, GlobalKind, Graph, NodeId, Op, Tensor, Value,
};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Results below this are folded even if they are larger than their inputs.
const ALWAYS: i64 = 1 << 20;

/// Folds in one forward walk.
pub fn fold_constants(cx: &mut PassCx, graph: &mut Graph) -> Result<Changed, PassError> {
    let mut replaced: BTreeMap<Value, Value> = BTreeMap::new();
    let mut dead = BTreeSet::new();
    for n in graph.nodes_in_order() {
        let args: Vec<Value> = graph
            .node(n)
            .args
            .iter()
            .map(|v| *replaced.get(v).unwrap_or(v))
            .collect();
        graph.node_mut(n).args = args;
        let to = match fold_literal(cx, graph, n)? {
            Some(to) => Some(to),
            None => fold_weight(cx, graph, n)?,
        };
        if let (Some(to), [v]) = (to, &graph.node(n).results[..]) {
            replaced.insert(*v, to);
            dead.insert(n);
        }
    }
    graph.replace_all(&replaced);
    graph.remove_nodes(&dead);
    Ok((!dead.is_empty()).into())
}

fn foldable(graph: &Graph, n: NodeId) -> bool {
    let node = graph.node(n);
    node.results.len() == 1
        && node.regions.is_empty()
        && !node.args.is_empty()
        && !matches!(
            node.op,
            Op::Philox(_) | Op::NonZero(_) | Op::Call(_) | Op::Pack(_) | Op::Decode(_)
        )
        && graph.ty(node.results[0]).const_shape().is_some()
}

fn fold_literal(cx: &mut PassCx, graph: &mut Graph, n: NodeId) -> Result<Option<Value>, PassError> {
    if !foldable(graph, n) {
        return Ok(None);
    }
    let node = graph.node(n);
    let mut literals = vec![];
    for &a in &node.args {
        match graph.producer_op(a) {
            Some((Op::Constant(c), _)) => literals.push(&c.value),
            _ => return Ok(None),
        }
    }
    let size = |t: &Tensor| t.bytes().len() as i64;
    let largest = literals.iter().map(|t| size(t)).max().unwrap_or(0);
    let bytes = graph
        .ty(node.results[0])
        .bytes()
        .as_const()
        .unwrap_or(i64::MAX);
    if bytes > largest.max(ALWAYS) {
        return Ok(None);
    }
    // An error (an index out of range) is left to happen when it runs.
    let binding = RefCell::new(Binding::new());
    let Ok(mut out) = node.op.def().eval(&EvalCx::pure(&binding), &literals) else {
        return Ok(None);
    };
    let (Some(value), true) = (out.pop(), out.is_empty()) else {
        return Ok(None);
    };
    let mut b = Builder::before(graph, cx.globals, n);
    Ok(Some(b.constant(value)?))
}

/// `transpose(global w)` and the like become a global of their own.
fn fold_weight(cx: &mut PassCx, graph: &mut Graph, n: NodeId) -> Result<Option<Value>, PassError> {
    let node = graph.node(n);
    if !foldable(graph, n) || !matches!(node.op, Op::Transpose(_) | Op::Reshape(_) | Op::Slice(_)) {
        return Ok(None);
    }
    let Some((Op::Global(g), _)) = graph.producer_op(node.args[0]) else {
        return Ok(None);
    };
    let ty = graph.ty(node.results[0]).clone();
    let source = g.name.clone();
    let name = add_expr(cx, &source, node.op.clone(), ty);
    let mut b = Builder::before(graph, cx.globals, n);
    Ok(Some(b.global(name)?))
}

/// The global that holds `op(@source)`; one for equal expressions.
pub fn add_expr(cx: &mut PassCx, source: &Arc<str>, op: Op, ty: kiln_ir::TensorType) -> Arc<str> {
    for i in 0.. {
        let name: Arc<str> = format!("{source}.{}{i}", op.def().mnemonic()).into();
        match cx.globals.get(&name) {
            None => {
                let kind = GlobalKind::Const(ConstSource::Expr {
                    op: Box::new(op),
                    args: vec![source.clone()],
                });
                cx.globals.insert(name.clone(), Global { ty, kind });
                return name;
            }
            Some(Global {
                kind: GlobalKind::Const(ConstSource::Expr { op: o, args }),
                ..
            }) if **o == op && args[..] == [source.clone()] => {
                return name;
            }
            Some(_) => {}
        }
    }
    unreachable!("there are more names than globals")
}
