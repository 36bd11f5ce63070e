//! Graphs that a session keeps, and what it does where another one is wanted.
//!
//! ```text
//! run 1  n = 5   k(5) k'(5)          given one by one: what it does comes up first
//! run 2  n = 6   k(6) k'(6) ─► A     the same kernels again: recorded as the graph A
//! run 3  n = 7   k(7) k'(7) ─► A     nodes of A that hold anything else are updated
//! run 4  n = 7              ─► A     A holds these sizes: nothing is evaluated
//! run 5  n = 6   k(6) k'(6) ─► B     sizes that come again get a graph of their own
//! ```
//! So sizes that never repeat, as those of a text that grows, cost one graph and updates,
//! and the few sizes of a server cost nothing once each has come up again. Which kernels
//! run, in which form, and which copies are made is a graph's structure; another one needs
//! another graph.

use super::OnDevice;
use super::order::Bytes;
use crate::device::{GraphId, Launch, Node};
use crate::error::Result;
use kiln_ir::Binding;
use std::collections::VecDeque;

/// How many graphs, and structures that came up once, a stretch keeps; and how many sizes
/// it remembers.
pub(super) const REMEMBERED: usize = 8;

/// What a session's graphs did so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct GraphCounts {
    /// Graphs that were recorded.
    pub recorded: usize,
    /// Nodes of graphs that were given other sizes or addresses.
    pub updated: usize,
    /// Graphs that were done, also right after they were recorded.
    pub replayed: usize,
}

/// What a stretch did under some sizes.
pub(super) struct Done {
    /// What the compute lane was given, and what the nodes of the graph hold.
    pub(super) nodes: Vec<Node>,
    /// None: it came up once.
    pub(super) graph: Option<GraphId>,
    pub(super) sizes: Binding,
    /// What [`OnDevice`] said of its memory: the nodes hold while that is where it was.
    pub(super) epoch: u64,
    /// Where what it touches is.
    pub(super) places: Vec<Bytes>,
}

impl Done {
    fn alike(&self, nodes: &[Node]) -> bool {
        let mut pairs = self.nodes.iter().zip(nodes);
        self.nodes.len() == nodes.len() && pairs.all(|(a, b)| a.alike(b))
    }
}

/// What a session keeps of a stretch.
#[derive(Default)]
pub(super) struct Kept {
    /// Used last stands last.
    pub(super) done: Vec<Done>,
    /// Sizes that came up and that no graph held, latest last.
    sizes: VecDeque<Binding>,
}

impl Kept {
    /// Whether a graph holds these sizes, and addresses that are right; it stands last then.
    pub(super) fn holds(&mut self, sizes: &Binding, epoch: u64) -> bool {
        let holds = |d: &Done| d.graph.is_some() && d.epoch == epoch && d.sizes == *sizes;
        let Some(at) = self.done.iter().position(holds) else {
            return false;
        };
        self.done[at..].rotate_left(1);
        true
    }

    /// Where what was done last is.
    pub(super) fn places(&self) -> &[Bytes] {
        self.done.last().map_or(&[], |d| &d.places)
    }

    /// Notes sizes; whether they came up before.
    fn again(&mut self, sizes: &Binding) -> bool {
        if self.sizes.iter().any(|s| s == sizes) {
            return true;
        }
        if self.sizes.len() == REMEMBERED {
            self.sizes.pop_front();
        }
        self.sizes.push_back(sizes.clone());
        false
    }
}

/// The compute lane's work while a stretch is noted.
pub(super) struct Noted {
    pub(super) nodes: Vec<Node>,
    /// Whether it is given to the lane as well.
    pub(super) given: bool,
}

impl OnDevice {
    /// Starts a kernel, or notes it; what the device counted.
    pub(super) fn launch(&mut self, l: &Launch) -> Result<Option<serde_json::Value>> {
        if let Some(noted) = &mut self.noted {
            noted.nodes.push(Node::Launch(l.owned()));
            if !noted.given {
                return Ok(None);
            }
        }
        self.device.launch(l)
    }

    /// Copies inside device memory, or notes it.
    pub(super) fn copy(&mut self, from: u64, to: u64, bytes: usize) -> Result<()> {
        if let Some(noted) = &mut self.noted {
            noted.nodes.push(Node::Copy { from, to, bytes });
            if !noted.given {
                return Ok(());
            }
        }
        self.device.copy(from, to, bytes)
    }

    /// Has the compute lane wait for copies up of what a graph touches.
    pub(super) fn wait_for(&mut self, places: &[Bytes]) -> Result<()> {
        self.order.before_compute(&mut *self.device, places)
    }

    /// Keeps, last of all, what a stretch is about to do: with a graph that holds it, but
    /// where its structure has come up for the first time.
    pub(super) fn keep(&mut self, kept: &mut Kept, mut now: Done) -> Result<()> {
        let again = kept.again(&now.sizes);
        let alike = |d: &Done| d.alike(&now.nodes);
        let same = |d: &Done| alike(d) && d.sizes == now.sizes;
        // Where there is no room for a graph of these sizes, the one used longest ago is
        // made one.
        let same = kept.done.iter().position(same);
        let found = same.or_else(|| kept.done.iter().position(alike));
        let another = same.is_none() && again && kept.done.len() < REMEMBERED;
        now.graph = match found {
            None => None,
            Some(at) if another && kept.done[at].graph.is_some() => Some(self.record(&now.nodes)?),
            Some(at) => Some(self.changed(kept.done.remove(at), &now.nodes)?),
        };
        if kept.done.len() == REMEMBERED {
            let oldest = kept.done.remove(0).graph;
            oldest.into_iter().for_each(|g| self.device.forget(g));
        }
        kept.done.push(now);
        Ok(())
    }

    /// A graph that holds these nodes, made of what did others of the same structure.
    fn changed(&mut self, old: Done, nodes: &[Node]) -> Result<GraphId> {
        let Some(graph) = old.graph else {
            return self.record(nodes);
        };
        match self.update(&graph, &old.nodes, nodes) {
            Ok(true) => Ok(graph),
            done => {
                self.device.forget(graph);
                done?;
                // The device changes no such node: it has to make it anew.
                self.record(nodes)
            }
        }
    }

    /// Updates the nodes of a graph that differ; false where the device refuses one.
    fn update(&mut self, graph: &GraphId, old: &[Node], new: &[Node]) -> Result<bool> {
        let pairs = old.iter().zip(new).enumerate();
        for (at, (_, node)) in pairs.filter(|(_, (a, b))| a != b) {
            let number = self.graph_counts.updated;
            if !self.leaves_out(number) && !self.device.update(graph, at, node)? {
                return Ok(false);
            }
            self.graph_counts.updated += 1;
        }
        Ok(true)
    }

    /// Whether a test asks for this update not to be made.
    fn leaves_out(&self, _number: usize) -> bool {
        #[cfg(all(test, feature = "sim"))]
        return self.left_out == Some(_number);
        #[cfg(not(all(test, feature = "sim")))]
        false
    }

    fn record(&mut self, nodes: &[Node]) -> Result<GraphId> {
        self.graph_counts.recorded += 1;
        self.device.graph(nodes)
    }

    /// Does what was kept last.
    pub(super) fn redo(&mut self, kept: &Kept) -> Result<()> {
        let device = &mut *self.device;
        let Some(last) = kept.done.last() else {
            return Ok(());
        };
        match &last.graph {
            Some(graph) => {
                self.graph_counts.replayed += 1;
                device.replay(graph)
            }
            None => last.nodes.iter().try_for_each(|node| node.give(device)),
        }
    }

    /// Forgets every graph.
    pub(in super::super) fn forget_graphs(&mut self) {
        let all = std::mem::take(&mut self.stretches).into_values();
        let graphs = all.flat_map(|s| s.kept.done).filter_map(|d| d.graph);
        graphs.for_each(|graph| self.device.forget(graph));
    }

    /// What its graphs did so far.
    pub(in super::super) fn graph_counts(&self) -> GraphCounts {
        self.graph_counts
    }
}
