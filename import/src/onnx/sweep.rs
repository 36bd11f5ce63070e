//! Drops what import left without use: mostly shape arithmetic that dissolved
//! into sizes.

use kiln_ir::graph::NodeId;
use kiln_ir::{Graph, Op, RegionId};
use std::collections::BTreeSet;

/// Removes nodes whose results nothing uses. Ops that name sizes stay: types
/// may use what they mint.
pub(crate) fn sweep(graph: &mut Graph) {
    let mut uses = graph.use_counts();
    let mut dead = BTreeSet::new();
    // Backwards: what only dead nodes use is dead too. A node's regions come
    // after it in program order, so one pass suffices.
    for n in graph.nodes_in_order().into_iter().rev() {
        let node = graph.node(n);
        let unused = node.results.iter().all(|v| uses[v.index()] == 0);
        if !unused || mints(graph, n) {
            continue;
        }
        node.args.iter().for_each(|v| uses[v.index()] -= 1);
        for &r in &node.regions {
            release(graph, r, &dead, &mut uses);
        }
        dead.insert(n);
    }
    graph.remove_nodes(&dead);
}

/// Takes back the uses that a region makes.
fn release(graph: &Graph, region: RegionId, dead: &BTreeSet<NodeId>, uses: &mut [u32]) {
    let region = graph.region(region);
    region.results.iter().for_each(|v| uses[v.index()] -= 1);
    for n in &region.nodes {
        if !dead.contains(n) {
            let node = graph.node(*n);
            node.args.iter().for_each(|v| uses[v.index()] -= 1);
            node.regions
                .iter()
                .for_each(|&r| release(graph, r, dead, uses));
        }
    }
}

fn mints(graph: &Graph, n: NodeId) -> bool {
    let node = graph.node(n);
    let own = match &node.op {
        Op::BindDim(_) | Op::NonZero(_) | Op::StringSplit(_) => true,
        Op::Loop(l) => l.symbol.is_some() || !l.sizes.is_empty(),
        Op::If(i) => !i.sizes.is_empty(),
        _ => false,
    };
    own || node.regions.iter().any(|&r| {
        graph
            .region(r)
            .nodes
            .iter()
            .any(|&n| graph.contains(n) && mints(graph, n))
    })
}
