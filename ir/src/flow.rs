//! The order that the nodes of one region must keep, as a petgraph graph: so
//! petgraph's algorithms (topological order, components, dominators) run on it.
//!
//! Neighbours have to be at hand in constant time, which a [`Graph`] does not keep
//! while it changes: [`Flow`] lists them once, for a graph that is not changing.

use crate::Dim;
use crate::graph::{Graph, NodeId, RegionId, Value};
use crate::op::{Attr, Op};
use petgraph::visit::{
    Data, EdgeRef, GraphBase, GraphProp, IntoEdgeReferences, IntoEdges, IntoNeighbors,
    IntoNeighborsDirected, IntoNodeIdentifiers, NodeCompactIndexable, NodeCount, NodeIndexable,
    Visitable,
};
use petgraph::{Directed, Direction};
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;

/// Nodes of a region with an edge from each to those that must come after it:
/// they use its results, use a size that it names, or consume what it reads. What
/// a node's regions do counts as its own.
pub struct Flow {
    nodes: Vec<NodeId>,
    index: BTreeMap<NodeId, usize>,
    after: Vec<Vec<NodeId>>,
    before: Vec<Vec<NodeId>>,
    /// In the order of the nodes that they leave.
    edges: Vec<FlowEdge>,
    /// Where the edges that leave each node start.
    starts: Vec<usize>,
}

/// An edge of a [`Flow`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowEdge {
    from: NodeId,
    to: NodeId,
    id: usize,
}

impl Flow {
    /// The flow of one region.
    pub fn of(graph: &Graph, region: RegionId) -> Flow {
        let nodes = graph.region(region).nodes.clone();
        let index: BTreeMap<NodeId, usize> =
            nodes.iter().enumerate().map(|(i, &n)| (n, i)).collect();
        let mut flow = Flow {
            after: vec![vec![]; nodes.len()],
            before: vec![vec![]; nodes.len()],
            edges: vec![],
            starts: vec![0],
            nodes,
            index,
        };
        let mut walk = Walk::default();
        for n in flow.nodes.clone() {
            for before in walk.predecessors(graph, n) {
                flow.after[flow.index[&before]].push(n);
                flow.before[flow.index[&n]].push(before);
            }
        }
        for (&from, after) in flow.nodes.iter().zip(&flow.after) {
            for &to in after {
                let id = flow.edges.len();
                flow.edges.push(FlowEdge { from, to, id });
            }
            flow.starts.push(flow.edges.len());
        }
        flow
    }
}

/// What the nodes seen so far define, name and read.
#[derive(Default)]
struct Walk {
    defined: BTreeMap<Value, NodeId>,
    named: BTreeMap<Arc<str>, NodeId>,
    readers: BTreeMap<Value, Vec<NodeId>>,
}

/// What a node does, its regions included.
#[derive(Default)]
struct Effects {
    uses: BTreeSet<Value>,
    consumes: BTreeSet<Value>,
    sizes: BTreeSet<Arc<str>>,
    names: BTreeSet<Arc<str>>,
}

impl Walk {
    fn predecessors(&mut self, graph: &Graph, n: NodeId) -> BTreeSet<NodeId> {
        let mut effects = Effects::default();
        effects.node(graph, n);
        let mut before = BTreeSet::new();
        before.extend(effects.uses.iter().filter_map(|v| self.defined.get(v)));
        before.extend(effects.sizes.iter().filter_map(|s| self.named.get(s)));
        for v in &effects.consumes {
            before.extend(self.readers.get(v).into_iter().flatten());
        }
        for &v in &effects.uses {
            self.readers.entry(v).or_default().push(n);
        }
        self.defined
            .extend(graph.node(n).results.iter().map(|&v| (v, n)));
        self.named.extend(effects.names.into_iter().map(|s| (s, n)));
        before.remove(&n);
        before
    }
}

impl Effects {
    fn node(&mut self, graph: &Graph, n: NodeId) {
        let node = graph.node(n);
        self.uses.extend(&node.args);
        let consumed = node.op.def().donates().iter();
        self.consumes
            .extend(consumed.filter_map(|&i| node.args.get(i)));
        for &v in &node.results {
            self.sizes_of(graph.shape(v));
        }
        for (_, attr) in &node.op.def().attrs().0 {
            match attr {
                Attr::Dim(d) => self.sizes_of(std::slice::from_ref(d)),
                Attr::Dims(ds) => self.sizes_of(ds),
                _ => {}
            }
        }
        match &node.op {
            Op::NonZero(x) => drop(self.names.insert(x.symbol.clone())),
            Op::StringSplit(x) => drop(self.names.insert(x.symbol.clone())),
            Op::BindDim(x) => drop(self.names.insert(x.symbol.clone())),
            Op::If(x) => self.names.extend(x.sizes.iter().map(|m| m.symbol.clone())),
            Op::Loop(x) => {
                self.names.extend(x.symbol.clone());
                self.names.extend(x.sizes.iter().map(|m| m.symbol.clone()));
            }
            _ => {}
        }
        for &r in &node.regions {
            let region = graph.region(r);
            self.uses.extend(&region.results);
            for &inner in &region.nodes {
                self.node(graph, inner);
            }
        }
    }

    fn sizes_of(&mut self, dims: &[Dim]) {
        dims.iter().for_each(|d| d.symbols(&mut self.sizes));
    }
}

impl GraphBase for Flow {
    type NodeId = NodeId;
    type EdgeId = usize;
}

impl GraphProp for Flow {
    type EdgeType = Directed;
}

impl Data for Flow {
    type NodeWeight = ();
    type EdgeWeight = ();
}

impl NodeCount for Flow {
    fn node_count(&self) -> usize {
        self.nodes.len()
    }
}

impl NodeIndexable for Flow {
    fn node_bound(&self) -> usize {
        self.nodes.len()
    }

    fn to_index(&self, n: NodeId) -> usize {
        self.index[&n]
    }

    fn from_index(&self, i: usize) -> NodeId {
        self.nodes[i]
    }
}

impl NodeCompactIndexable for Flow {}

impl Visitable for Flow {
    type Map = HashSet<NodeId>;

    fn visit_map(&self) -> HashSet<NodeId> {
        HashSet::new()
    }

    fn reset_map(&self, map: &mut HashSet<NodeId>) {
        map.clear();
    }
}

impl<'a> IntoNodeIdentifiers for &'a Flow {
    type NodeIdentifiers = std::iter::Copied<std::slice::Iter<'a, NodeId>>;

    fn node_identifiers(self) -> Self::NodeIdentifiers {
        self.nodes.iter().copied()
    }
}

impl<'a> IntoNeighbors for &'a Flow {
    type Neighbors = std::iter::Copied<std::slice::Iter<'a, NodeId>>;

    fn neighbors(self, n: NodeId) -> Self::Neighbors {
        self.after[self.index[&n]].iter().copied()
    }
}

impl<'a> IntoNeighborsDirected for &'a Flow {
    type NeighborsDirected = std::iter::Copied<std::slice::Iter<'a, NodeId>>;

    fn neighbors_directed(self, n: NodeId, direction: Direction) -> Self::NeighborsDirected {
        let i = self.index[&n];
        match direction {
            Direction::Outgoing => self.after[i].iter().copied(),
            Direction::Incoming => self.before[i].iter().copied(),
        }
    }
}

impl EdgeRef for FlowEdge {
    type NodeId = NodeId;
    type EdgeId = usize;
    type Weight = ();

    fn source(&self) -> NodeId {
        self.from
    }

    fn target(&self) -> NodeId {
        self.to
    }

    fn weight(&self) -> &() {
        &()
    }

    fn id(&self) -> usize {
        self.id
    }
}

impl<'a> IntoEdgeReferences for &'a Flow {
    type EdgeRef = FlowEdge;
    type EdgeReferences = std::iter::Copied<std::slice::Iter<'a, FlowEdge>>;

    fn edge_references(self) -> Self::EdgeReferences {
        self.edges.iter().copied()
    }
}

impl<'a> IntoEdges for &'a Flow {
    type Edges = std::iter::Copied<std::slice::Iter<'a, FlowEdge>>;

    fn edges(self, n: NodeId) -> Self::Edges {
        let i = self.index[&n];
        self.edges[self.starts[i]..self.starts[i + 1]]
            .iter()
            .copied()
    }
}
