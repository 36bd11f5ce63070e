//! Invariants of globals, and of who calls whom.

use super::VerifyError;
use crate::builder::no_callee;
use crate::module::{ConstSource, Global, GlobalKind, Globals, Module};
use crate::op::{Arg, InferCx, Op};
use crate::{DType, Dim, TensorType, Tri};
use petgraph::algo::kosaraju_scc;
use petgraph::graph::{DiGraph, NodeIndex};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Expressions on expressions, and calls in calls: what evaluates them goes as
/// deep, so longer chains are an attack on the stack.
const MAX_DEPTH: usize = 64;

/// Who uses whom.
type Edges = BTreeMap<Arc<str>, BTreeSet<Arc<str>>>;

fn fail(place: &str, message: impl Into<String>) -> VerifyError {
    VerifyError {
        place: format!("@{place}"),
        node: None,
        message: message.into(),
    }
}

/// Contents must have the global's type; expressions must have an end.
pub(super) fn globals(module: &Module) -> Vec<VerifyError> {
    let mut errors = vec![];
    let mut edges = Edges::new();
    for (name, global) in &module.globals {
        if let Err(message) = contents(&module.globals, global) {
            errors.push(fail(name, message));
        }
        if let ConstSource::Expr { args, .. } = source(global) {
            edges.insert(name.clone(), args.iter().cloned().collect());
        }
    }
    let found = ways(&edges);
    for name in found.cyclic {
        errors.push(fail(&name, "its expression uses itself"));
    }
    for name in found.deep {
        let what = format!("its expression stands on more than {MAX_DEPTH} others");
        errors.push(fail(&name, what));
    }
    errors
}

fn source(global: &Global) -> &ConstSource {
    match &global.kind {
        GlobalKind::Const(source) => source,
        GlobalKind::State { init, .. } => init,
    }
}

fn contents(globals: &Globals, global: &Global) -> Result<(), String> {
    let ty = &global.ty;
    if ty.const_shape().is_none() {
        return Err(format!("its shape is not constant: {ty}"));
    }
    match source(global) {
        ConstSource::Splat(_) if ty.encoding.is_some() || ty.dtype == DType::Str => {
            Err(format!("one number does not fill {ty}"))
        }
        ConstSource::Splat(_) => Ok(()),
        ConstSource::Tensor(t) if ty.encoding.is_some() => {
            let bytes = Dim::from(t.bytes().len());
            if t.dtype() == DType::U8 && ty.bytes() == bytes {
                Ok(())
            } else {
                Err(format!(
                    "its contents are {}, not the blocks of {ty}",
                    t.ty()
                ))
            }
        }
        ConstSource::Tensor(t) if t.ty() == *ty => Ok(()),
        ConstSource::Tensor(t) => Err(format!("its contents are {}, not {ty}", t.ty())),
        ConstSource::Expr { op, args } => expression(globals, ty, op, args),
    }
}

fn expression(
    globals: &Globals,
    ty: &TensorType,
    op: &Op,
    args: &[Arc<str>],
) -> Result<(), String> {
    let mut types = vec![];
    for a in args {
        match globals.get(a) {
            Some(g) if matches!(g.kind, GlobalKind::Const(_)) => types.push(&g.ty),
            _ => return Err(format!("its expression uses @{a}, which is no constant")),
        }
    }
    let mut cx = InferCx {
        globals,
        regions: vec![],
        callee: &no_callee,
        guards: vec![],
    };
    let args: Vec<Arg> = types.iter().map(|ty| Arg { ty, known: None }).collect();
    let results = op
        .def()
        .infer(&mut cx, &args)
        .map_err(|e| format!("its expression does not type: {e}"))?;
    match &results[..] {
        [one] if one.ty.same(ty) == Tri::Yes => Ok(()),
        [one] => Err(format!("its expression gives {}, not {ty}", one.ty)),
        _ => Err(format!("its expression has {} results", results.len())),
    }
}

/// Functions have names of their own and do not call back.
pub(super) fn calls(module: &Module) -> Vec<VerifyError> {
    let mut errors = vec![];
    let mut edges = Edges::new();
    for f in &module.functions {
        let mut called = BTreeSet::new();
        for n in f.nodes_in_order() {
            if let Op::Call(call) = &f.node(n).op {
                called.insert(call.function.clone());
            }
        }
        if edges.insert(f.name.clone(), called).is_some() {
            errors.push(fail(&f.name, "two functions have this name"));
        }
    }
    let found = ways(&edges);
    for name in found.cyclic {
        errors.push(fail(&name, "the function calls itself, directly or not"));
    }
    for name in found.deep {
        errors.push(fail(&name, format!("calls nest deeper than {MAX_DEPTH}")));
    }
    errors
}

/// Names that reach themselves, and names from which a way is longer than
/// [`MAX_DEPTH`].
#[derive(Default)]
struct Ways {
    cyclic: BTreeSet<Arc<str>>,
    deep: BTreeSet<Arc<str>>,
}

/// Follows edges between names, in a time that grows with their number alone.
fn ways(edges: &Edges) -> Ways {
    let mut graph = DiGraph::<&Arc<str>, ()>::new();
    let ids: BTreeMap<&Arc<str>, NodeIndex> = edges
        .keys()
        .map(|name| (name, graph.add_node(name)))
        .collect();
    for (from, to) in edges {
        // What leads to no name of the map leads nowhere.
        for to in to.iter().filter_map(|name| ids.get(name)) {
            graph.add_edge(ids[from], *to, ());
        }
    }
    let (mut found, mut depths) = (Ways::default(), BTreeMap::new());
    // Components come after those that they lead to.
    for component in kosaraju_scc(&graph) {
        let first = component[0];
        if component.len() > 1 || graph.contains_edge(first, first) {
            found
                .cyclic
                .extend(component.iter().map(|&i| graph[i].clone()));
        }
        let below = |i| graph.neighbors(i).filter_map(|to| depths.get(&to)).max();
        let depth = component.iter().filter_map(|&i| below(i)).max();
        let depth = depth.map_or(0, |d: &usize| d + 1);
        for i in component {
            // One error for a chain: the names above it are as deep and deeper.
            if depth == MAX_DEPTH + 1 {
                found.deep.insert(graph[i].clone());
            }
            depths.insert(i, depth);
        }
    }
    found
}
