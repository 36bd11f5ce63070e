//! What is in sight of a node: names, opsets, the function being inlined.

use super::attrs::Given;
use super::cx::Fail;
use super::item::Item;
use crate::diagnostic::code;
use onnx_protobuf::{GraphProto, NodeProto, OperatorSetIdProto};
use std::collections::HashMap;
use std::rc::Rc;

/// Subgraphs and functions in each other.
const MAX_DEPTH: usize = 40;
/// What surrounds a node: the function that is being inlined, or the model.
pub(crate) struct Env<'m> {
    /// Opset versions by domain; ONNX's own is "".
    pub(crate) opsets: Rc<HashMap<&'m str, i64>>,
    /// Attributes that the caller gave.
    pub(crate) given: Given<'m>,
    /// Put before node names.
    pub(crate) prefix: String,
    /// Functions being inlined, to find those that call themselves.
    pub(crate) stack: Vec<(&'m str, &'m str)>,
    pub(crate) depth: usize,
}

/// What a name stands for.
#[derive(Clone)]
pub(crate) enum Bound {
    /// A tensor, a sequence or an empty optional.
    Item(Item),
    /// Something that failed and was reported.
    Reported,
    /// An input that a function's caller left out.
    Absent,
}

/// Values by name.
pub(crate) struct Scope<'p, 'm> {
    pub(crate) values: HashMap<&'m str, Bound>,
    parent: Option<&'p Scope<'p, 'm>>,
}

impl<'p, 'm> Scope<'p, 'm> {
    pub(crate) fn new(parent: Option<&'p Scope<'p, 'm>>) -> Scope<'p, 'm> {
        Scope {
            values: HashMap::new(),
            parent,
        }
    }

    pub(crate) fn find(&self, name: &str) -> Option<Bound> {
        match self.values.get(name) {
            Some(v) => Some(v.clone()),
            None => self.parent?.find(name),
        }
    }
}

/// The domain's name; ONNX's own is "".
pub(crate) fn domain(name: &str) -> &str {
    if name == "ai.onnx" { "" } else { name }
}

/// Versions by domain.
pub(crate) fn opsets(imports: &[OperatorSetIdProto]) -> Rc<HashMap<&str, i64>> {
    Rc::new(
        imports
            .iter()
            .map(|o| (domain(&o.domain), o.version))
            .collect(),
    )
}

impl<'m> Env<'m> {
    /// One graph or function further in.
    pub(crate) fn deeper(&self, prefix: String) -> Result<Env<'m>, Fail> {
        if self.depth >= MAX_DEPTH {
            return Err(Fail::new(
                code::LIMIT,
                format!("graphs and functions nest deeper than {MAX_DEPTH}"),
            ));
        }
        Ok(Env {
            opsets: self.opsets.clone(),
            given: self.given.clone(),
            prefix,
            stack: self.stack.clone(),
            depth: self.depth + 1,
        })
    }
}

/// Names of a graph's constants.
pub(crate) fn initializer_names(graph: &GraphProto) -> impl Iterator<Item = &str> {
    graph
        .initializer
        .iter()
        .map(|t| &*t.name)
        .chain(graph.sparse_initializer.iter().map(|t| &*t.values.name))
}

/// The node's name, or what it makes where it has none.
pub(crate) fn node_name(node: &NodeProto, prefix: &str) -> String {
    let own = match node.output.first() {
        _ if !node.name.is_empty() => &node.name,
        Some(output) => output,
        None => &node.op_type,
    };
    format!("{prefix}{own}")
}
