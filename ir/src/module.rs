//! A module: functions over shared globals.

use crate::{Graph, Op, Tensor, TensorType};
use std::collections::BTreeMap;
use std::sync::Arc;

/// A value that outlives a call.
#[derive(Clone, Debug)]
pub struct Global {
    /// Its type.
    pub ty: TensorType,
    /// Weight or state.
    pub kind: GlobalKind,
}

/// Weight or state.
#[derive(Clone, Debug)]
pub enum GlobalKind {
    /// Never changes.
    Const(ConstSource),
    /// Changed by entry points that bind it.
    State {
        /// The value of a new session.
        init: ConstSource,
        /// The name in checkpoints; none for what is not saved.
        checkpoint: Option<Arc<str>>,
    },
}

/// Where a constant's contents come from. Nothing is read or computed before it
/// is needed.
#[derive(Clone, Debug)]
pub enum ConstSource {
    /// These elements, often mapped from a file. For an encoded type: `u8`
    /// blocks.
    Tensor(Tensor),
    /// One number everywhere.
    Splat(f64),
    /// The result of one op on other globals (a packed or cast weight).
    Expr {
        /// A pure op with one result.
        op: Box<Op>,
        /// Names of globals.
        args: Vec<Arc<str>>,
    },
}

/// The globals of a module, by name.
pub type Globals = BTreeMap<Arc<str>, Global>;

/// Functions over globals: what an importer makes and a compiler takes.
#[derive(Clone, Debug, Default)]
pub struct Module {
    /// Weights and state.
    pub globals: Globals,
    /// Entry points and what they call; names are unique.
    pub functions: Vec<Graph>,
    /// Facts about the model for people and tools (producer, architecture …).
    pub meta: BTreeMap<String, String>,
}

impl Module {
    /// The function with this name.
    pub fn function(&self, name: &str) -> Option<&Graph> {
        self.functions.iter().find(|f| &*f.name == name)
    }
}
