//! The graph of one function: arena SSA with stable ids, regions, origins.
//!
//! A graph is one function of a [`crate::Module`]. Nodes and values live in
//! arenas and are named by small ids; a region lists its nodes in program order,
//! and a node may own further regions (`if`, `loop`, `fused`). Values of an
//! enclosing region may be used inside a region, except in `fused`, which is
//! closed.

use crate::{Dim, Op, ShardSpec, Signature, TensorType};
use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident $prefix:literal;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(pub u32);

        impl $name {
            /// The arena index.
            pub fn index(self) -> usize { self.0 as usize }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result { write!(f, concat!($prefix, "{}"), self.0) }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result { fmt::Display::fmt(self, f) }
        }
    )*};
}

ids! {
    /// A node of a graph.
    NodeId "n";
    /// A value of a graph, shown as `%3`.
    Value "%";
    /// A region of a graph; 0 is the body.
    RegionId "r";
}

/// A place in a user's model that a node stems from.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Origin {
    /// The file, as the user named it.
    pub file: Arc<str>,
    /// The node's name in that file.
    pub node: Arc<str>,
}

/// The origins of a node: passes merge them and never drop them.
pub type Origins = BTreeSet<Origin>;

/// Small integer values known while compiling, as sizes: what shape
/// arithmetic yields. Row-major, rank 0 or 1 in practice.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SymValue {
    /// Extents.
    pub shape: Vec<usize>,
    /// One dim an element.
    pub dims: Vec<Dim>,
}

impl SymValue {
    /// A known scalar.
    pub fn scalar(dim: impl Into<Dim>) -> SymValue {
        SymValue {
            shape: vec![],
            dims: vec![dim.into()],
        }
    }

    /// A known vector.
    pub fn vector(dims: Vec<Dim>) -> SymValue {
        SymValue {
            shape: vec![dims.len()],
            dims,
        }
    }
}

/// An operation with its arguments and results.
#[derive(Clone, Debug)]
pub struct Node {
    /// What it does.
    pub op: Op,
    /// Its arguments.
    pub args: Vec<Value>,
    /// Its results.
    pub results: Vec<Value>,
    /// Regions it owns.
    pub regions: Vec<RegionId>,
    /// The region that lists it.
    pub parent: RegionId,
    /// Where it stems from.
    pub origins: Origins,
}

/// Who defines a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Def {
    /// Result `.1` of node `.0`.
    Node(NodeId, u32),
    /// Parameter `.1` of region `.0`.
    Param(RegionId, u32),
}

/// A value's type and what is known of it.
#[derive(Clone, Debug)]
pub struct ValueData {
    /// Its type.
    pub ty: TensorType,
    /// Who defines it.
    pub def: Def,
    /// Its contents, where known as sizes.
    pub known: Option<Arc<SymValue>>,
    /// How it is split over devices.
    pub shard: Option<ShardSpec>,
    /// A name for people.
    pub name: Option<Arc<str>>,
}

/// A list of nodes with parameters and results.
#[derive(Clone, Debug, Default)]
pub struct Region {
    /// Values the region receives.
    pub params: Vec<Value>,
    /// Nodes in program order.
    pub nodes: Vec<NodeId>,
    /// Values the region yields.
    pub results: Vec<Value>,
    /// The node that owns it; none for the body.
    pub owner: Option<NodeId>,
}

/// What a function's parameter or result is tied to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum PortKind {
    /// Given by, or returned to, the caller.
    Caller,
    /// The state global of this name: read before, donated, and written after.
    State(Arc<str>),
}

/// A parameter or result of a function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// Its name for the caller.
    pub name: Arc<str>,
    /// What it is tied to.
    pub kind: PortKind,
}

/// How the sides of a guard relate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Relation {
    /// `left == right`
    Eq,
    /// `left <= right`
    Le,
}

/// A condition on sizes that compilation relied on, checked when sizes are
/// bound.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Guard {
    /// The left side.
    pub left: Dim,
    /// How they relate.
    pub relation: Relation,
    /// The right side.
    pub right: Dim,
    /// What fails otherwise, for the error message.
    pub because: String,
}

/// One function: its ports, its guards and the arena of its nodes.
#[derive(Clone, Debug)]
pub struct Graph {
    /// The function's name, without `@`.
    pub name: Arc<str>,
    /// The ports of the body's parameters, in order.
    pub params: Vec<Port>,
    /// The ports of the body's results, in order.
    pub results: Vec<Port>,
    /// Conditions on sizes.
    pub guards: Vec<Guard>,
    nodes: Vec<Option<Node>>,
    values: Vec<ValueData>,
    regions: Vec<Region>,
    next_symbol: u32,
    /// Where a node was last looked for in its region: passes walk in order.
    cursor: usize,
}

impl Graph {
    /// The body region of every graph.
    pub const BODY: RegionId = RegionId(0);

    /// An empty function.
    pub fn new(name: impl Into<Arc<str>>) -> Graph {
        Graph {
            name: name.into(),
            params: vec![],
            results: vec![],
            guards: vec![],
            nodes: vec![],
            values: vec![],
            regions: vec![Region::default()],
            next_symbol: 0,
            cursor: 0,
        }
    }

    /// Adds a parameter to the body.
    pub fn add_param(
        &mut self,
        name: impl Into<Arc<str>>,
        kind: PortKind,
        ty: TensorType,
    ) -> Value {
        let name = name.into();
        self.params.push(Port {
            name: name.clone(),
            kind,
        });
        let v = self.add_region_param(Graph::BODY, ty);
        self.values[v.index()].name = Some(name);
        v
    }

    /// Removes parameter `i` of the body, which nothing may use.
    pub(crate) fn remove_param(&mut self, i: usize) {
        self.params.remove(i);
        self.regions[0].params.remove(i);
        for (k, &v) in self.regions[0].params.iter().enumerate() {
            self.values[v.index()].def = Def::Param(Graph::BODY, k as u32);
        }
    }

    /// Adds a result to the body.
    pub fn add_result(&mut self, name: impl Into<Arc<str>>, kind: PortKind, value: Value) {
        self.results.push(Port {
            name: name.into(),
            kind,
        });
        self.regions[0].results.push(value);
    }

    /// A region without nodes, owned by no node yet.
    pub fn add_region(&mut self) -> RegionId {
        self.regions.push(Region::default());
        RegionId(self.regions.len() as u32 - 1)
    }

    /// Adds a parameter to a region.
    pub fn add_region_param(&mut self, region: RegionId, ty: TensorType) -> Value {
        let index = self.regions[region.index()].params.len() as u32;
        let v = self.add_value(ty, Def::Param(region, index));
        self.regions[region.index()].params.push(v);
        v
    }

    /// Inserts a node at position `at` of `region`'s order (`None`: the end)
    /// with results of these types. Types are the caller's promise: builders
    /// infer them, and the verifier infers them again.
    #[expect(
        clippy::too_many_arguments,
        reason = "one place that makes nodes; callers are builders"
    )]
    pub fn insert_node(
        &mut self,
        region: RegionId,
        at: Option<usize>,
        op: Op,
        args: Vec<Value>,
        types: Vec<TensorType>,
        regions: Vec<RegionId>,
        origins: Origins,
    ) -> NodeId {
        let id = NodeId(self.nodes.len() as u32);
        let results = types
            .into_iter()
            .enumerate()
            .map(|(i, ty)| self.add_value(ty, Def::Node(id, i as u32)))
            .collect();
        for &r in &regions {
            self.regions[r.index()].owner = Some(id);
        }
        self.nodes.push(Some(Node {
            op,
            args,
            results,
            regions,
            parent: region,
            origins,
        }));
        let order = &mut self.regions[region.index()].nodes;
        let at = at.unwrap_or(order.len());
        order.insert(at, id);
        id
    }

    /// The types of the function's parameters and results.
    pub fn signature(&self) -> Signature {
        let types = |vs: &[Value]| vs.iter().map(|&v| self.ty(v).clone()).collect();
        Signature {
            params: types(&self.body().params),
            results: types(&self.body().results),
        }
    }

    /// The node, which must exist.
    ///
    /// # Panics
    /// When the node was removed: a broken invariant of the caller.
    pub fn node(&self, id: NodeId) -> &Node {
        match &self.nodes[id.index()] {
            Some(node) => node,
            None => panic!("node {id} of @{} was removed", self.name),
        }
    }

    /// The node for editing; panics like [`Graph::node`].
    pub fn node_mut(&mut self, id: NodeId) -> &mut Node {
        match &mut self.nodes[id.index()] {
            Some(node) => node,
            None => panic!("node {id} was removed"),
        }
    }

    /// Whether the node is still there.
    pub fn contains(&self, id: NodeId) -> bool {
        self.nodes.get(id.index()).is_some_and(|n| n.is_some())
    }

    /// What is known of a value.
    pub fn value(&self, v: Value) -> &ValueData {
        &self.values[v.index()]
    }

    /// What is known of a value, for editing.
    pub fn value_mut(&mut self, v: Value) -> &mut ValueData {
        &mut self.values[v.index()]
    }

    /// The value's type.
    pub fn ty(&self, v: Value) -> &TensorType {
        &self.values[v.index()].ty
    }

    /// The value's extents.
    pub fn shape(&self, v: Value) -> &[Dim] {
        &self.values[v.index()].ty.shape
    }

    /// The value's contents as sizes, where known.
    pub fn known(&self, v: Value) -> Option<&SymValue> {
        self.values[v.index()].known.as_deref()
    }

    /// The node that defines the value and the index of the result; none for
    /// parameters.
    pub fn producer(&self, v: Value) -> Option<(NodeId, u32)> {
        match self.values[v.index()].def {
            Def::Node(n, i) => Some((n, i)),
            Def::Param(..) => None,
        }
    }

    /// The defining op if it has one result: what rewrite rules match on.
    pub fn producer_op(&self, v: Value) -> Option<(&Op, &[Value])> {
        let (n, _) = self.producer(v)?;
        let node = self.node(n);
        (node.results.len() == 1).then_some((&node.op, &node.args[..]))
    }

    /// A region.
    pub fn region(&self, r: RegionId) -> &Region {
        &self.regions[r.index()]
    }

    /// A region for editing.
    pub fn region_mut(&mut self, r: RegionId) -> &mut Region {
        &mut self.regions[r.index()]
    }

    /// A node's place in its region's order, searched for outward from where the
    /// last one was found: a walk in program order costs a step or two a node,
    /// where a search from the front made passes quadratic.
    pub fn position(&mut self, n: NodeId) -> Option<usize> {
        let order = &self.region(self.node(n).parent).nodes;
        let (mut below, mut above) = (self.cursor.min(order.len()), self.cursor);
        while below > 0 || above < order.len() {
            if order.get(above) == Some(&n) {
                self.cursor = above;
                return Some(above);
            }
            above += 1;
            below = below.saturating_sub(1);
            if order.get(below) == Some(&n) {
                self.cursor = below;
                return Some(below);
            }
        }
        None
    }

    /// The body.
    pub fn body(&self) -> &Region {
        &self.regions[0]
    }

    /// How many value ids were given out; ids are dense below it.
    pub fn value_count(&self) -> usize {
        self.values.len()
    }

    /// How many node ids were given out; some may be removed.
    pub fn node_capacity(&self) -> usize {
        self.nodes.len()
    }

    /// How many region ids were given out.
    pub fn region_count(&self) -> usize {
        self.regions.len()
    }

    /// Every live node, those of nested regions after their owner, in program
    /// order.
    pub fn nodes_in_order(&self) -> Vec<NodeId> {
        let mut out = vec![];
        self.collect_nodes(Graph::BODY, &mut out);
        out
    }

    fn collect_nodes(&self, region: RegionId, out: &mut Vec<NodeId>) {
        for &n in &self.region(region).nodes {
            out.push(n);
            for &r in &self.node(n).regions {
                self.collect_nodes(r, out);
            }
        }
    }

    /// How often each value is used: by nodes of any region and as region
    /// results. Indexed by value.
    pub fn use_counts(&self) -> Vec<u32> {
        let mut counts = vec![0; self.values.len()];
        for n in self.nodes_in_order() {
            let node = self.node(n);
            node.args.iter().for_each(|v| counts[v.index()] += 1);
            for &r in &node.regions {
                self.region(r)
                    .results
                    .iter()
                    .for_each(|v| counts[v.index()] += 1);
            }
        }
        self.body()
            .results
            .iter()
            .for_each(|v| counts[v.index()] += 1);
        counts
    }

    /// The nodes that use each value, in program order (a node that uses a value
    /// twice stands twice). Indexed by value.
    pub fn users(&self) -> Vec<Vec<NodeId>> {
        let mut users = vec![vec![]; self.values.len()];
        for n in self.nodes_in_order() {
            self.node(n)
                .args
                .iter()
                .for_each(|v| users[v.index()].push(n));
        }
        users
    }

    /// Makes every use of `from` a use of `to`.
    pub fn replace_uses(&mut self, from: Value, to: Value) {
        let swap = |v: &mut Value| {
            if *v == from {
                *v = to;
            }
        };
        self.nodes
            .iter_mut()
            .flatten()
            .flat_map(|n| n.args.iter_mut())
            .for_each(swap);
        self.regions
            .iter_mut()
            .flat_map(|r| r.results.iter_mut())
            .for_each(swap);
    }

    /// Makes every use of each key a use of what it maps to (chains followed):
    /// one walk for a whole pass.
    pub fn replace_all(&mut self, map: &std::collections::BTreeMap<Value, Value>) {
        if map.is_empty() {
            return;
        }
        let resolve = |v: &mut Value| {
            while let Some(&to) = map.get(v) {
                *v = to;
            }
        };
        self.nodes
            .iter_mut()
            .flatten()
            .flat_map(|n| n.args.iter_mut())
            .for_each(resolve);
        self.regions
            .iter_mut()
            .flat_map(|r| r.results.iter_mut())
            .for_each(resolve);
    }

    /// Removes nodes (with the regions they own) whose results are no longer
    /// used: one walk for a whole pass.
    pub fn remove_nodes(&mut self, dead: &BTreeSet<NodeId>) {
        for region in &mut self.regions {
            region.nodes.retain(|n| !dead.contains(n));
        }
        for &n in dead {
            let Some(node) = self.nodes[n.index()].take() else {
                continue;
            };
            for r in node.regions {
                let inner: BTreeSet<NodeId> =
                    self.regions[r.index()].nodes.iter().copied().collect();
                self.remove_nodes(&inner);
                self.regions[r.index()] = Region::default();
            }
        }
    }

    /// A size name that no one has used in this function.
    pub fn fresh_symbol(&mut self, prefix: &str) -> Arc<str> {
        loop {
            let name = format!("{prefix}{}", self.next_symbol);
            self.next_symbol += 1;
            let taken = self.values.iter().any(|v| {
                let mut symbols = BTreeSet::new();
                v.ty.shape.iter().for_each(|d| d.symbols(&mut symbols));
                symbols.contains(name.as_str())
            });
            if !taken {
                return name.into();
            }
        }
    }

    /// Records a guard once.
    pub fn add_guard(&mut self, guard: Guard) {
        if !self.guards.contains(&guard) {
            self.guards.push(guard);
        }
    }

    fn add_value(&mut self, ty: TensorType, def: Def) -> Value {
        self.values.push(ValueData {
            ty,
            def,
            known: None,
            shard: None,
            name: None,
        });
        Value(self.values.len() as u32 - 1)
    }
}
