//! The verifier. What it guarantees:
//!
//! 1. A node's arguments are defined before it, in its region or an enclosing
//!    one; `fused` regions use nothing from outside.
//! 2. Every node's result types are what its op infers from its arguments
//!    (equal, or equal under a recorded guard).
//! 3. A function's ports match its body; a state port names a state global of
//!    the same type, once among the parameters and once among the results.
//! 4. A value that an op consumes is not used after it, in program order; a
//!    value from outside a loop is not consumed inside it; weights never are.
//! 5. A size symbol of a node's type comes from a parameter's shape or from a
//!    node before it that mints it.
//! 6. Function names are unique; called functions exist.

use crate::graph::{Def, Graph, NodeId, PortKind, RegionId, Value};
use crate::module::{GlobalKind, Module};
use crate::op::{Arg, InferCx, Op, region_types};
use crate::{TensorType, Tri};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

/// A broken invariant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifyError {
    /// Where: function and node.
    pub place: String,
    /// The node, if it is one's fault.
    pub node: Option<NodeId>,
    /// What is broken.
    pub message: String,
}

impl fmt::Display for VerifyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.message)
    }
}

impl std::error::Error for VerifyError {}

/// Every broken invariant of a module.
pub fn verify_module(module: &Module) -> Vec<VerifyError> {
    let mut errors = vec![];
    let mut names = BTreeSet::new();
    for f in &module.functions {
        if !names.insert(f.name.clone()) {
            errors.push(VerifyError {
                place: format!("@{}", f.name),
                node: None,
                message: "two functions have this name".into(),
            });
        }
        errors.extend(verify_function(module, f));
    }
    errors
}

/// Every broken invariant of one function.
pub fn verify_function(module: &Module, graph: &Graph) -> Vec<VerifyError> {
    let mut v = Verifier {
        module,
        graph,
        errors: vec![],
        defined: BTreeSet::new(),
        consumed: BTreeMap::new(),
        symbols: BTreeSet::new(),
    };
    v.ports();
    for &p in &graph.body().params {
        graph
            .shape(p)
            .iter()
            .for_each(|d| d.symbols(&mut v.symbols));
    }
    v.region(Graph::BODY, false);
    v.errors
}

struct Verifier<'a> {
    module: &'a Module,
    graph: &'a Graph,
    errors: Vec<VerifyError>,
    defined: BTreeSet<Value>,
    consumed: BTreeMap<Value, NodeId>,
    symbols: BTreeSet<Arc<str>>,
}

impl Verifier<'_> {
    fn fail(&mut self, node: Option<NodeId>, message: impl Into<String>) {
        let mut place = format!("@{}", self.graph.name);
        if let Some(n) = node {
            let node = self.graph.node(n);
            let results: Vec<String> = node.results.iter().map(Value::to_string).collect();
            place += &format!(" {} = {}", results.join(", "), node.op.def().mnemonic());
        }
        self.errors.push(VerifyError {
            place,
            node,
            message: message.into(),
        });
    }

    fn ports(&mut self) {
        let g = self.graph;
        if g.params.len() != g.body().params.len() || g.results.len() != g.body().results.len() {
            self.fail(None, "ports and body differ in number");
            return;
        }
        for (ports, values) in [
            (&g.params, &g.body().params),
            (&g.results, &g.body().results),
        ] {
            let mut seen = BTreeSet::new();
            let mut named = BTreeSet::new();
            for (port, &v) in ports.iter().zip(values) {
                if !named.insert(port.name.clone()) {
                    self.fail(None, format!("two ports are called `{}`", port.name));
                }
                let PortKind::State(name) = &port.kind else {
                    continue;
                };
                if !seen.insert(name.clone()) {
                    self.fail(None, format!("@{name} is bound twice"));
                }
                match self.module.globals.get(name) {
                    Some(global) if matches!(global.kind, GlobalKind::State { .. }) => {
                        if global.ty.same(g.ty(v)) != Tri::Yes {
                            self.fail(
                                None,
                                format!("@{name} is {}, its port {}", global.ty, g.ty(v)),
                            );
                        }
                    }
                    _ => self.fail(None, format!("there is no state @{name}")),
                }
            }
        }
    }

    fn region(&mut self, id: RegionId, closed: bool) {
        let region = self.graph.region(id);
        let outer = closed.then(|| std::mem::take(&mut self.defined));
        for (i, &p) in region.params.iter().enumerate() {
            if self.graph.value(p).def != Def::Param(id, i as u32) {
                self.fail(None, format!("{p} is not parameter {i} of its region"));
            }
            self.defined.insert(p);
        }
        for &n in &region.nodes {
            if !self.graph.contains(n) {
                self.fail(None, format!("{n} was removed and is still listed"));
                continue;
            }
            self.node(n, id);
        }
        for &r in &region.results {
            if !self.defined.contains(&r) {
                self.fail(region.owner, format!("the result {r} is not defined here"));
            }
            if let Some(&by) = self.consumed.get(&r) {
                self.fail(Some(by), format!("{r} is a result after it was consumed"));
            }
        }
        if let Some(outer) = outer {
            self.defined = outer;
        }
    }

    fn node(&mut self, n: NodeId, parent: RegionId) {
        let node = self.graph.node(n);
        if node.parent != parent {
            self.fail(Some(n), "the node is listed in another region than its own");
        }
        for &a in &node.args {
            if a.index() >= self.graph.value_count() || !self.defined.contains(&a) {
                self.fail(Some(n), format!("{a} is used before it is defined"));
                return;
            }
            if self.consumed.contains_key(&a) {
                self.fail(Some(n), format!("{a} is used after it was consumed"));
            }
        }
        for &i in node.op.def().donates() {
            let Some(&a) = node.args.get(i) else { continue };
            if let Some((p, _)) = self.graph.producer(a)
                && matches!(self.graph.node(p).op, Op::Global(_))
            {
                self.fail(Some(n), format!("{a} is a weight: it cannot be consumed"));
            }
            if self.in_loop_but_from_outside(n, a) {
                self.fail(
                    Some(n),
                    format!("{a} comes from outside the loop: it cannot be consumed in it"),
                );
            }
            if node.args.iter().filter(|&&x| x == a).count() > 1 {
                self.fail(
                    Some(n),
                    format!("{a} is consumed and used by the same node"),
                );
            }
            self.consumed.insert(a, n);
        }
        self.minted(&node.op);
        let closed = matches!(node.op, Op::Fused(_));
        for &r in &node.regions {
            if self.graph.region(r).owner != Some(n) {
                self.fail(Some(n), format!("{r} does not know its owner"));
            }
            self.region(r, closed);
        }
        self.types(n);
        self.defined.extend(node.results.iter().copied());
    }

    fn in_loop_but_from_outside(&self, n: NodeId, v: Value) -> bool {
        let home = match self.graph.value(v).def {
            Def::Node(p, _) => self.graph.node(p).parent,
            Def::Param(r, _) => r,
        };
        let mut at = self.graph.node(n).parent;
        while at != home {
            let Some(owner) = self.graph.region(at).owner else {
                return false;
            };
            if matches!(self.graph.node(owner).op, Op::Loop(_)) {
                return true;
            }
            at = self.graph.node(owner).parent;
        }
        false
    }

    /// Sizes that an op names.
    fn minted(&mut self, op: &Op) {
        match op {
            Op::NonZero(x) => drop(self.symbols.insert(x.symbol.clone())),
            Op::BindDim(x) => drop(self.symbols.insert(x.symbol.clone())),
            Op::If(x) => self
                .symbols
                .extend(x.sizes.iter().map(|m| m.symbol.clone())),
            Op::Loop(x) => {
                self.symbols.extend(x.symbol.clone());
                self.symbols
                    .extend(x.sizes.iter().map(|m| m.symbol.clone()));
            }
            _ => {}
        }
    }

    fn types(&mut self, n: NodeId) {
        let node = self.graph.node(n);
        let callee = |name: &str| -> Option<Vec<TensorType>> {
            let f = self.module.function(name)?;
            Some(f.body().results.iter().map(|&v| f.ty(v).clone()).collect())
        };
        let mut cx = InferCx {
            globals: &self.module.globals,
            regions: node
                .regions
                .iter()
                .map(|&r| region_types(self.graph, self.graph.region(r)))
                .collect(),
            callee: &callee,
            guards: vec![],
        };
        let args: Vec<Arg> = node
            .args
            .iter()
            .map(|&v| Arg {
                ty: self.graph.ty(v),
                known: self.graph.known(v),
            })
            .collect();
        let inferred = node.op.def().infer(&mut cx, &args);
        match inferred {
            Err(e) => self.fail(Some(n), format!("does not type: {e}")),
            Ok(types) if types.len() != node.results.len() => {
                self.fail(
                    Some(n),
                    format!("has {} results, its op {}", node.results.len(), types.len()),
                );
            }
            Ok(types) => {
                for (i, want) in types.iter().enumerate() {
                    let v = node.results[i];
                    let have = self.graph.ty(v);
                    // Unknown is an equality that a guard covers.
                    if have.same(&want.ty) == Tri::No {
                        self.fail(Some(n), format!("{v} is {have}, its op gives {}", want.ty));
                    }
                    if self.graph.value(v).def != Def::Node(n, i as u32) {
                        self.fail(Some(n), format!("{v} does not know who defines it"));
                    }
                    let mut used = BTreeSet::new();
                    have.shape.iter().for_each(|d| d.symbols(&mut used));
                    if let Some(s) = used.iter().find(|s| !self.symbols.contains(*s)) {
                        self.fail(
                            Some(n),
                            format!("{v} has the size `{s}`, which nothing before names"),
                        );
                    }
                }
            }
        }
    }
}
