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
            let source = match &global.kind {
                GlobalKind::Const(s) | GlobalKind::State { init: s, .. } => s,
            };
            if let ConstSource::Splat(v) = source {
                let t = Tensor::scalar_f64(global.ty.dtype, *v);
                return Ok(Bytes::Repeated(t.bytes().to_vec()));
            }
            let lookup = |n: &str| constant(module, n);
            kiln_ir::interp::materialize(global, source, &lookup)
                .map(Bytes::Whole)
                .map_err(|e| e.to_string())
        }
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

/// Lets go of the pages of mapped weights that a global was made from.
pub fn release(module: &Module, c: &Contents) {
    let Contents::Global(name) = c else { return };
    let mut names = vec![name.clone()];
    while let Some(name) = names.pop() {
        match module.globals.get(&name).map(|g| &g.kind) {
            Some(GlobalKind::Const(s) | GlobalKind::State { init: s, .. }) => match s {
                ConstSource::Tensor(t) => kiln_runtime::memory::page_out(t.bytes()),
                ConstSource::Expr { args, .. } => names.extend(args.iter().cloned()),
                ConstSource::Splat(_) => {}
            },
            None => {}
        }
    }
}
