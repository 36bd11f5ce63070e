//! Removes nodes whose results nothing uses. Nodes that name a size stay while a
//! type uses the name.

use crate::{Changed, PassCx, PassError};
use kiln_ir::{Graph, NodeId, Op};
use std::collections::BTreeSet;

/// Removes what is dead, in one backward walk.
pub fn eliminate_dead(_: &mut PassCx, graph: &mut Graph) -> Result<Changed, PassError> {
    let mut uses = graph.use_counts();
    let mut dead: BTreeSet<NodeId> = BTreeSet::new();
    for n in graph.nodes_in_order().into_iter().rev() {
        let node = graph.node(n);
        let names_a_size = match &node.op {
            Op::BindDim(_) | Op::NonZero(_) | Op::StringSplit(_) => true,
            Op::If(x) => !x.sizes.is_empty(),
            Op::Loop(x) => x.symbol.is_some() || !x.sizes.is_empty(),
            _ => false,
        };
        if names_a_size || node.results.iter().any(|v| uses[v.index()] > 0) {
            continue;
        }
        dead.insert(n);
        node.args.iter().for_each(|v| uses[v.index()] -= 1);
        // What a dead node's regions used dies with it, if nothing else uses it:
        // the next run of the pass sees that.
    }
    graph.remove_nodes(&dead);
    Ok((!dead.is_empty()).into())
}
