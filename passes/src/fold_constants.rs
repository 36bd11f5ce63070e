//! Computes what depends on literals alone, and turns layout changes of weights
//! into constant expressions (evaluated once, when the artifact is written).
//!
//! A result is never larger than its inputs or 1 MiB, whichever is more, and a
//! cast that would widen a weight is left to run: a quantized weight stays
//! quantized.

use crate::{Changed, PassCx, PassError};
use kiln_ir::op::Class;
use kiln_ir::{
    Binding, Builder, ConstSource, Dim, EvalCx, Global, GlobalKind, Graph, NodeId, Op, Tensor,
    TensorType, Value,
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
            Op::Philox(_)
                | Op::NonZero(_)
                | Op::StringSplit(_)
                | Op::Call(_)
                | Op::Pack(_)
                | Op::PackFilters(_)
                | Op::Decode(_)
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
    let size = |t: &Tensor| t.ty().bytes().as_const().unwrap_or(i64::MAX);
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

/// Operations beyond which a weight is not computed while compiling: the
/// interpreter does about that many a second.
const MOST_WORK: i64 = 1 << 30;

/// What depends on weights and literals alone becomes a global of its own:
/// `transpose(@w)`, or a merged `@w + @a·@b`.
fn fold_weight(cx: &mut PassCx, graph: &mut Graph, n: NodeId) -> Result<Option<Value>, PassError> {
    let node = graph.node(n);
    if !foldable(graph, n) {
        return Ok(None);
    }
    let ty = graph.ty(node.results[0]).clone();
    let types: Vec<&TensorType> = node.args.iter().map(|&a| graph.ty(a)).collect();
    if !folds(&node.op, &types, &ty) {
        return Ok(None);
    }
    let (mut names, mut literals) = (vec![], vec![]);
    for &a in &node.args {
        match graph.producer_op(a) {
            Some((Op::Global(g), _)) if is_plain(cx, &g.name) => names.push(g.name.clone()),
            Some((Op::Constant(c), _)) => {
                names.push(literal_name(&c.value));
                literals.push(c.value.clone());
            }
            _ => return Ok(None),
        }
    }
    // Literals alone are folded as literals.
    if ty.encoding.is_some() || literals.len() == names.len() {
        return Ok(None);
    }
    let op = node.op.clone();
    for value in literals {
        literal_global(cx, &value);
    }
    let name = add_expr(cx, &names, op, ty);
    let mut b = Builder::before(graph, cx.globals, n);
    Ok(Some(b.global(name)?))
}

/// The global that holds a constant value: a weight, or a literal, which becomes one.
pub fn constant_name(cx: &mut PassCx, graph: &Graph, v: Value) -> Option<Arc<str>> {
    match graph.producer_op(v)? {
        (Op::Global(g), _) if is_plain(cx, &g.name) => Some(g.name.clone()),
        (Op::Constant(c), _) => Some(literal_global(cx, &c.value)),
        _ => None,
    }
}

fn literal_global(cx: &mut PassCx, value: &Tensor) -> Arc<str> {
    let name = literal_name(value);
    cx.globals.entry(name.clone()).or_insert_with(|| Global {
        ty: value.ty(),
        kind: GlobalKind::Const(ConstSource::Tensor(value.clone())),
    });
    name
}

/// Constants without an encoding.
fn is_plain(cx: &PassCx, name: &str) -> bool {
    let global = cx.globals.get(name);
    global.is_some_and(|g| matches!(g.kind, GlobalKind::Const(_)) && g.ty.encoding.is_none())
}

/// A name that tells literals apart by their contents.
fn literal_name(t: &Tensor) -> Arc<str> {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hash = DefaultHasher::new();
    (t.dtype(), t.shape(), t.bytes(), t.as_strings()).hash(&mut hash);
    format!("literal.{:016x}", hash.finish()).into()
}

/// Whether an op of weights is computed while compiling: it is little work, does
/// not make them larger, and does not widen them.
pub fn folds(op: &Op, args: &[&TensorType], result: &TensorType) -> bool {
    // A dequantization widens, and many casts: they run where the weight is read.
    let widens = match op {
        Op::Cast(_) => args[0].dtype.bits() < result.dtype.bits(),
        op => matches!(op, Op::Dequantize(_) | Op::Broadcast(_)),
    };
    let largest = (args.iter().filter_map(|ty| ty.bytes().as_const())).fold(ALWAYS, i64::max);
    let small = (result.bytes().as_const()).is_some_and(|n| n <= largest);
    small && !widens && work(op, args, result) <= MOST_WORK
}

/// Operations that an op takes.
fn work(op: &Op, args: &[&TensorType], result: &TensorType) -> i64 {
    let elements = |ty: &TensorType| ty.elements().as_const().unwrap_or(i64::MAX);
    let size = |axis: Option<&Dim>| axis.and_then(Dim::as_const).unwrap_or(i64::MAX);
    let each = match op {
        Op::MatMul(m) => {
            let back = if m.transpose_a { 2 } else { 1 };
            size(args[0].shape.iter().rev().nth(back - 1))
        }
        Op::PackedMatMul(_) => size(args[0].shape.last()),
        op => match op.class() {
            // What is not known is taken for much.
            Class::Anchor | Class::Kernel | Class::Composite if !matches!(op, Op::Pack(_)) => {
                i64::MAX
            }
            _ => 1,
        },
    };
    let inputs = args.iter().map(|ty| elements(ty)).max().unwrap_or(0);
    elements(result).saturating_mul(each).max(inputs)
}

/// The global that holds `op(@sources…)`; one for equal expressions.
pub fn add_expr(cx: &mut PassCx, sources: &[Arc<str>], op: Op, ty: TensorType) -> Arc<str> {
    let stem = sources.first().map_or("expression", |s| &**s).to_string();
    for i in 0.. {
        let name: Arc<str> = format!("{stem}.{}{i}", op.def().mnemonic()).into();
        match cx.globals.get(&name) {
            None => {
                let kind = GlobalKind::Const(ConstSource::Expr {
                    op: Box::new(op),
                    args: sources.to_vec(),
                });
                cx.globals.insert(name.clone(), Global { ty, kind });
                return name;
            }
            Some(Global {
                kind: GlobalKind::Const(ConstSource::Expr { op: o, args }),
                ..
            }) if **o == op && args[..] == *sources => {
                return name;
            }
            Some(_) => {}
        }
    }
    unreachable!("there are more names than globals")
}
