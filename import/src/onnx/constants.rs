//! Every constant of the model, loaded before any node: large ones become
//! globals, small ones literals.

use super::cx::Fail;
use super::files::{Files, Span};
use super::tensor;
use crate::diagnostic::{Diagnostic, code};
use kiln_ir::{ConstSource, DType, Global, GlobalKind, Globals, Tensor};
use onnx_protobuf::{GraphProto, ModelProto, NodeProto, SparseTensorProto, TensorProto};
use std::collections::HashMap;
use std::sync::Arc;

/// Literals have at most so many elements. Integers are literals up to a larger
/// count, so that they are known as sizes.
const INLINE: usize = 64;
const INLINE_INTS: usize = 256;

/// A loaded constant.
#[derive(Clone)]
pub(crate) enum Const {
    /// A literal.
    Inline(Tensor),
    /// The global of this name.
    Global(Arc<str>),
    /// Reported already.
    Failed,
}

/// A constant of the model, by identity: nodes of functions share theirs.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Key(usize);

impl From<&TensorProto> for Key {
    fn from(t: &TensorProto) -> Key {
        Key(t as *const TensorProto as usize)
    }
}

impl From<&SparseTensorProto> for Key {
    fn from(t: &SparseTensorProto) -> Key {
        Key(t as *const SparseTensorProto as usize)
    }
}

/// The model's constants.
#[derive(Default)]
pub(crate) struct Constants {
    /// What nodes refer to.
    pub(crate) by_key: HashMap<Key, Const>,
    /// What large constants became.
    pub(crate) globals: Globals,
    /// What was noticed.
    pub(crate) diagnostics: Vec<Diagnostic>,
}

/// Loads every constant of the model.
pub(crate) fn load_all(
    file: &str,
    model: &ModelProto,
    files: &mut Files,
    check_finite: bool,
) -> Constants {
    let mut loader = Loader {
        file,
        files,
        check_finite,
        looked_at: (vec![], vec![]),
        out: Constants::default(),
    };
    loader.graph(&model.graph);
    for function in &model.functions {
        function.node.iter().for_each(|n| loader.node(n));
    }
    let (names, constants) = std::mem::take(&mut loader.looked_at);
    let counts = tensor::not_finite(&constants);
    for ((name, (t, _)), count) in names.iter().zip(&constants).zip(counts) {
        loader.warn_not_finite(name, t, count);
    }
    loader.out
}

struct Loader<'a> {
    file: &'a str,
    files: &'a mut Files,
    check_finite: bool,
    /// The constants to look for NaN and infinities in, and their names.
    looked_at: (Vec<String>, Vec<(Tensor, Option<Span>)>),
    out: Constants,
}

impl Loader<'_> {
    fn graph(&mut self, graph: &GraphProto) {
        for t in &graph.initializer {
            self.dense(&t.name, t);
        }
        for t in &graph.sparse_initializer {
            self.sparse(&t.values.name, t);
        }
        graph.node.iter().for_each(|n| self.node(n));
    }

    fn node(&mut self, node: &NodeProto) {
        let name = node.output.first().unwrap_or(&node.name);
        for a in &node.attribute {
            a.t.iter()
                .chain(&a.tensors)
                .for_each(|t| self.dense(name, t));
            let sparse = a.sparse_tensor.iter().chain(&a.sparse_tensors);
            sparse.for_each(|t| self.sparse(name, t));
            a.g.iter().chain(&a.graphs).for_each(|g| self.graph(g));
        }
    }

    fn dense(&mut self, name: &str, t: &TensorProto) {
        let loaded = tensor::load(t, self.files);
        let (loaded, span) = match loaded {
            Ok((tensor, span)) => (Ok(tensor), span),
            Err(e) => (Err(e), None),
        };
        if let Ok(tensor) = &loaded
            && self.check_finite
        {
            self.looked_at.0.push(name.to_string());
            self.looked_at.1.push((tensor.clone(), span));
        }
        self.keep(name, t.into(), loaded);
    }

    fn sparse(&mut self, name: &str, t: &SparseTensorProto) {
        let loaded = tensor::load_sparse(t, self.files);
        self.keep(name, t.into(), loaded);
    }

    fn warn_not_finite(&mut self, name: &str, t: &Tensor, count: usize) {
        // A lone infinity is a bound, not a fault of training.
        if count == 0 || t.len() == 1 {
            return;
        }
        let message = format!("{count} of {} elements are NaN or infinite", t.len());
        self.out.diagnostics.push(
            Diagnostic::warning(code::NOT_FINITE, message)
                .at(self.file, name)
                .help("results that depend on them are NaN or infinite too: check how the model was trained or converted"),
        );
    }

    fn keep(&mut self, name: &str, key: Key, loaded: Result<Tensor, Fail>) {
        let kept = match loaded {
            Ok(t) if is_small(&t) => Const::Inline(t),
            Ok(t) => Const::Global(self.add_global(name, t)),
            Err(e) => {
                self.out
                    .diagnostics
                    .push(e.diagnostic().at(self.file, name));
                Const::Failed
            }
        };
        self.out.by_key.insert(key, kept);
    }

    fn add_global(&mut self, name: &str, t: Tensor) -> Arc<str> {
        let name = unique_global(&self.out.globals, name);
        let global = Global {
            ty: t.ty(),
            kind: GlobalKind::Const(ConstSource::Tensor(t)),
        };
        self.out.globals.insert(name.clone(), global);
        name
    }
}

fn is_small(t: &Tensor) -> bool {
    let limit = if t.dtype().is_int() || t.dtype() == DType::Bool {
        INLINE_INTS
    } else {
        INLINE
    };
    t.len() <= limit || t.dtype() == DType::Str
}

/// A name for people and the text form that no global has yet.
fn unique_global(globals: &Globals, name: &str) -> Arc<str> {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '.';
    let base: String = name
        .chars()
        .take(200)
        .map(|c| if word(c) { c } else { '_' })
        .collect();
    let base = match base.chars().next() {
        Some(c) if c.is_ascii_alphabetic() || c == '_' => base,
        _ => format!("w{base}"),
    };
    let mut unique = base.clone();
    let mut n = 1;
    while globals.contains_key(unique.as_str()) {
        n += 1;
        unique = format!("{base}_{n}");
    }
    unique.into()
}
