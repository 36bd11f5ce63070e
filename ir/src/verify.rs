//! The verifier. What it guarantees:
//!
//! 1. A node is listed once, in the region that it names as its parent. Its
//!    arguments are defined before it, in its region or an enclosing one; `fused`
//!    regions use nothing from outside.
//! 2. Every node's result types are what its op infers from its arguments: equal,
//!    or equal under the function's guards; and every guard that inference asks
//!    for is among them.
//! 3. A function's ports match its body and have names of their own; a state port
//!    names a state global of the same type, once among the parameters and once
//!    among the results.
//! 4. A value that an op consumes is not used after it, in program order (of two
//!    branches neither is after the other); a value from outside a loop is not
//!    consumed inside it; weights never are.
//! 5. A size in a node's types and attributes comes from a parameter's shape or
//!    from a node before it that mints it; what a region mints ends with it.
//! 6. Function names are unique; called functions exist and do not call back, and
//!    calls nest at most 64 deep.
//! 7. A global's contents have its type; an expression uses constants that exist
//!    and not, in the end, itself, and stands on at most 64 others.

mod module;

use crate::graph::{Def, Graph, Guard, NodeId, PortKind, RegionId, Relation, Value};
use crate::module::{GlobalKind, Module};
use crate::op::{Arg, Attr, InferCx, Inferred, Op, region_types};
use crate::{Dim, TensorType, Tri};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

/// Factors of a size that is made by replacing symbols by what guards say.
const MOST_FACTORS: usize = 256;

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
        write!(f, "K0301: {}: {}", self.place, self.message)
    }
}

impl std::error::Error for VerifyError {}

/// Every broken invariant of a module.
pub fn verify_module(module: &Module) -> Vec<VerifyError> {
    let mut errors = module::globals(module);
    errors.extend(module::calls(module));
    for f in &module.functions {
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
        listed: BTreeSet::new(),
        guards: graph
            .guards
            .iter()
            .map(|g| (&g.left, g.relation, &g.right))
            .collect(),
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
    listed: BTreeSet<NodeId>,
    guards: BTreeSet<(&'a Dim, Relation, &'a Dim)>,
}

impl<'a> Verifier<'a> {
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
                        if !self.same(&global.ty, g.ty(v)) {
                            let (have, want) = (g.ty(v), &global.ty);
                            self.fail(None, format!("@{name} is {want}, its port {have}"));
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
            if !self.listed.insert(n) {
                self.fail(Some(n), "the node is listed twice");
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
            return;
        }
        // What a region defines ends with it.
        for v in &region.params {
            self.defined.remove(v);
        }
        for &n in region.nodes.iter().filter(|&&n| self.graph.contains(n)) {
            for v in &self.graph.node(n).results {
                self.defined.remove(v);
            }
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
                self.defined.extend(node.results.iter().copied());
                return;
            }
            if self.consumed.contains_key(&a) {
                self.fail(Some(n), format!("{a} is used after it was consumed"));
            }
        }
        self.consume(n);
        self.minted(&node.op);
        self.regions(n);
        self.attrs(n);
        self.types(n);
        self.defined.extend(node.results.iter().copied());
    }

    fn consume(&mut self, n: NodeId) {
        let node = self.graph.node(n);
        for &i in node.op.def().donates() {
            let Some(&a) = node.args.get(i) else { continue };
            if matches!(self.graph.producer_op(a), Some((Op::Global(_), _))) {
                self.fail(Some(n), format!("{a} is a weight: it cannot be consumed"));
            }
            if self.in_loop_but_from_outside(n, a) {
                let what = format!("{a} comes from outside the loop: it cannot be consumed in it");
                self.fail(Some(n), what);
            }
            if node.args.iter().filter(|&&x| x == a).count() > 1 {
                let what = format!("{a} is consumed and used by the same node");
                self.fail(Some(n), what);
            }
            self.consumed.insert(a, n);
        }
    }

    fn regions(&mut self, n: NodeId) {
        let node = self.graph.node(n);
        let closed = matches!(node.op, Op::Fused(_));
        let branches = matches!(node.op, Op::If(_));
        let (symbols, before) = (self.symbols.clone(), self.consumed.clone());
        let mut after = before.clone();
        for &r in &node.regions {
            if self.graph.region(r).owner != Some(n) {
                self.fail(Some(n), format!("{r} does not know its owner"));
            }
            if branches {
                self.consumed = before.clone();
            }
            self.region(r, closed);
            after.extend(self.consumed.iter().map(|(&v, &by)| (v, by)));
            self.symbols.clone_from(&symbols);
        }
        self.consumed = after;
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
            Op::StringSplit(x) => drop(self.symbols.insert(x.symbol.clone())),
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

    fn attrs(&mut self, n: NodeId) {
        let attrs = self.graph.node(n).op.def().attrs();
        for (name, attr) in &attrs.0 {
            let dims = match attr {
                Attr::Dim(d) => std::slice::from_ref(d),
                Attr::Dims(ds) => &ds[..],
                _ => &[],
            };
            self.named(n, &format!("the attribute `{name}`"), dims);
        }
    }

    /// Every size must be named before this node.
    fn named(&mut self, n: NodeId, what: &str, dims: &[Dim]) {
        let mut used = BTreeSet::new();
        dims.iter().for_each(|d| d.symbols(&mut used));
        if let Some(s) = used.iter().find(|s| !self.symbols.contains(*s)) {
            let what = format!("{what} has the size `{s}`, which nothing before names");
            self.fail(Some(n), what);
        }
    }

    fn types(&mut self, n: NodeId) {
        let node = self.graph.node(n);
        let callee = |name: &str| self.module.function(name).map(Graph::signature);
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
        let guards = cx.guards;
        match inferred {
            Err(e) => self.fail(Some(n), format!("does not type: {e}")),
            Ok(types) if types.len() != node.results.len() => {
                let (have, want) = (node.results.len(), types.len());
                self.fail(Some(n), format!("has {have} results, its op {want}"));
            }
            Ok(types) => {
                self.guarded(n, &guards);
                self.results(n, &types);
            }
        }
    }

    fn results(&mut self, n: NodeId, types: &[Inferred]) {
        let graph = self.graph;
        for (i, (&v, want)) in graph.node(n).results.iter().zip(types).enumerate() {
            let have = graph.ty(v);
            if !self.same(have, &want.ty) {
                self.fail(Some(n), format!("{v} is {have}, its op gives {}", want.ty));
            }
            if graph.value(v).def != Def::Node(n, i as u32) {
                self.fail(Some(n), format!("{v} does not know who defines it"));
            }
            self.named(n, &v.to_string(), &have.shape);
        }
    }

    /// What inference relies on must be promised by the function.
    fn guarded(&mut self, n: NodeId, guards: &[Guard]) {
        for g in guards {
            let promised = match g.relation {
                Relation::Eq => self.equal(&g.left, &g.right),
                Relation::Le => {
                    self.guards.contains(&(&g.left, g.relation, &g.right))
                        || g.left.le(&g.right) == Tri::Yes
                        || self.le_by_guards(&g.left, &g.right)
                }
            };
            if !promised {
                let what = format!(
                    "relies on {} {} {}, which is no guard of @{}",
                    g.left,
                    if g.relation == Relation::Eq {
                        "="
                    } else {
                        "<="
                    },
                    g.right,
                    self.graph.name
                );
                self.fail(Some(n), what);
            }
        }
    }

    fn same(&self, a: &TensorType, b: &TensorType) -> bool {
        let like = a.dtype == b.dtype && a.rank() == b.rank() && a.encoding == b.encoding;
        like && a.shape.iter().zip(&b.shape).all(|(x, y)| self.equal(x, y))
    }

    /// Whether two sizes are equal wherever the guards hold: the same, or joined
    /// by a chain of guards.
    fn equal(&self, a: &Dim, b: &Dim) -> bool {
        match a.same(b) {
            Tri::Yes => return true,
            Tri::No => return false,
            Tri::Unknown => {}
        }
        self.class(a).contains(b) || self.class(&(a.clone() - b.clone())).contains(&Dim::ZERO)
    }

    /// Whether a guard with equal sides says so.
    fn le_by_guards(&self, a: &Dim, b: &Dim) -> bool {
        let (low, high) = (self.class(a), self.class(b));
        self.guards.iter().any(|(l, relation, r)| {
            *relation == Relation::Le && low.contains(*l) && high.contains(*r)
        }) || low.iter().any(|l| high.iter().any(|h| l.le(h) == Tri::Yes))
    }

    /// The sizes that guards equate with this one, through its symbols too, as long
    /// as they do not grow beyond [`MOST_FACTORS`].
    fn class(&self, d: &Dim) -> BTreeSet<Dim> {
        let mut class = BTreeSet::from([d.clone()]);
        let mut next = vec![d.clone()];
        let equalities = || self.guards.iter().filter(|g| g.1 == Relation::Eq);
        // Enough for what passes make of a model's sizes, and bounded.
        while let Some(x) = next.pop().filter(|_| class.len() < 64) {
            let mut symbols = BTreeSet::new();
            x.symbols(&mut symbols);
            for (l, _, r) in equalities() {
                for (from, to) in [(*l, *r), (*r, *l)] {
                    let mut found = (x == *from).then(|| to.clone());
                    let factors = x.factor_count().saturating_mul(to.factor_count());
                    let small = factors <= MOST_FACTORS;
                    let symbol = from.as_sym().filter(|s| small && symbols.contains(*s));
                    if let Some(symbol) = symbol {
                        found = Some(x.substitute(&|s| (*s == **symbol).then(|| to.clone())));
                    }
                    if let Some(found) = found.filter(|f| !class.contains(f)) {
                        class.insert(found.clone());
                        next.push(found);
                    }
                }
            }
        }
        class
    }
}
