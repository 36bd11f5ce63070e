//! What the globals of a plan hold, as bytes of the artifact.

use kiln_ir::{ConstSource, GlobalKind, Module, Tensor};
use std::sync::Arc;

/// Where the bytes of a global of the plan come from.
#[derive(Clone, Debug)]
pub enum Contents {
    /// A global of the module.
    Global(Arc<str>),
    /// A literal.
    Literal(Tensor),
}

/// The contents of a plan's global as bytes; for constants that repeat one
/// element, that element.
pub fn contents(module: &Module, c: &Contents) -> Result<Bytes, String> {
    match c {
        Contents::Literal(t) => Ok(Bytes::Whole(t.clone())),
        Contents::Global(name) => {
            let global = module
                .globals
                .get(name)
                .ok_or_else(|| format!("there is no global @{name}"))?;
            if let Some(element) = repeated(module, c) {
                return Ok(Bytes::Repeated(element));
            }
            let (GlobalKind::Const(source) | GlobalKind::State { init: source, .. }) = &global.kind;
            let lookup = |n: &str| constant(module, n);
            kiln_ir::interp::materialize(global, source, &lookup)
                .map(Bytes::Whole)
                .map_err(|e| e.to_string())
        }
    }
}

/// The element that a global repeats, if its contents are said so.
pub fn repeated(module: &Module, c: &Contents) -> Option<Vec<u8>> {
    let Contents::Global(name) = c else {
        return None;
    };
    let global = module.globals.get(name)?;
    match &global.kind {
        GlobalKind::Const(ConstSource::Splat(v))
        | GlobalKind::State {
            init: ConstSource::Splat(v),
            ..
        } => Some(Tensor::scalar_f64(global.ty.dtype, *v).bytes().to_vec()),
        GlobalKind::Const(_) | GlobalKind::State { .. } => None,
    }
}

/// The bytes of a global.
pub enum Bytes {
    /// All of them.
    Whole(Tensor),
    /// One element, repeated.
    Repeated(Vec<u8>),
}

fn constant(module: &Module, name: &str) -> Result<Tensor, kiln_ir::EvalError> {
    let global = module
        .globals
        .get(name)
        .ok_or_else(|| kiln_ir::EvalError(format!("there is no global @{name}")))?;
    match &global.kind {
        GlobalKind::Const(s) => kiln_ir::interp::materialize(global, s, &|n| constant(module, n)),
        GlobalKind::State { .. } => Err(kiln_ir::EvalError(format!("@{name} is state"))),
    }
}

/// Lets go of pages of mapped weights that a global was made from.
pub fn release(module: &Module, c: &Contents) {
    let Contents::Global(name) = c else { return };
    let mut names = vec![name.clone()];
    while let Some(name) = names.pop() {
        match module.globals.get(&name).map(|g| &g.kind) {
            Some(GlobalKind::Const(s) | GlobalKind::State { init: s, .. }) => match s {
                ConstSource::Tensor(t) => t.shared_bytes().iter().for_each(kiln_ir::Bytes::release),
                ConstSource::Expr { args, .. } => names.extend(args.iter().cloned()),
                ConstSource::Splat(_) => {}
            },
            None => {}
        }
    }
}
