//! Invariants of globals, and of who calls whom.

use super::VerifyError;
use crate::builder::no_callee;
use crate::module::{ConstSource, Global, GlobalKind, Globals, Module};
use crate::op::{Arg, InferCx, Op};
use crate::{DType, Dim, TensorType, Tri};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

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
    let mut edges = BTreeMap::new();
    for (name, global) in &module.globals {
        if let Err(message) = contents(&module.globals, global) {
            errors.push(fail(name, message));
        }
        if let ConstSource::Expr { args, .. } = source(global) {
            edges.insert(name.clone(), args.iter().cloned().collect());
        }
    }
    for name in in_cycles(&edges) {
        errors.push(fail(&name, "its expression uses itself"));
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
    let mut edges: BTreeMap<Arc<str>, BTreeSet<Arc<str>>> = BTreeMap::new();
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
    for name in in_cycles(&edges) {
        errors.push(fail(&name, "the function calls itself, directly or not"));
    }
    errors
}

/// Names that reach themselves.
fn in_cycles(edges: &BTreeMap<Arc<str>, BTreeSet<Arc<str>>>) -> Vec<Arc<str>> {
    // Takes away what has no way on until nothing changes; the rest has cycles,
    // or leads to one.
    let mut left = edges.clone();
    loop {
        let before = left.len();
        let names: BTreeSet<Arc<str>> = left.keys().cloned().collect();
        left.retain(|_, to| !to.is_disjoint(&names));
        if left.len() == before {
            break;
        }
    }
    let reaches = |from: &Arc<str>| {
        let (mut seen, mut next) = (BTreeSet::new(), vec![from]);
        while let Some(at) = next.pop() {
            for to in left.get(at).into_iter().flatten() {
                if seen.insert(to) {
                    next.push(to);
                }
            }
        }
        seen.contains(from)
    };
    left.keys().filter(|name| reaches(name)).cloned().collect()
}
