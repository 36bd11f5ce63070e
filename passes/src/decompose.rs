//! Replaces composites by their expansions, so that `fuse` sees elementwise ops
//! and reductions. Attention stays where the attention kernels serve it.

use crate::{Changed, PassCx, PassError};
use kiln_ir::{Builder, DType, Graph, NodeId, Op, Value};
use std::collections::{BTreeMap, BTreeSet};

/// Expands until nothing but primitives and kernel-served composites is left.
pub fn decompose(cx: &mut PassCx, graph: &mut Graph) -> Result<Changed, PassError> {
    let mut changed = Changed::No;
    // An expansion may hold composites: their depth bounds the rounds.
    loop {
        let mut replaced: BTreeMap<Value, Value> = BTreeMap::new();
        let mut dead = BTreeSet::new();
        for n in graph.nodes_in_order() {
            if has_kernel(graph, n) {
                continue;
            }
            let node = graph.node(n);
            let (op, args, old) = (node.op.clone(), node.args.clone(), node.results.clone());
            let mut b = Builder::before(graph, cx.globals, n);
            if let Some(new) = op.def().expand(&mut b, &args)? {
                old.iter().zip(new).for_each(|(&v, to)| {
                    replaced.insert(v, to);
                });
                dead.insert(n);
            }
        }
        if dead.is_empty() {
            return Ok(changed);
        }
        changed = Changed::Yes;
        graph.replace_all(&replaced);
        graph.remove_nodes(&dead);
    }
}

/// Whether a composite is lowered as a whole.
fn has_kernel(graph: &Graph, n: NodeId) -> bool {
    let node = graph.node(n);
    match &node.op {
        Op::Attention(_) => {
            let constant = |v: Value| {
                graph
                    .shape(v)
                    .get(3)
                    .is_some_and(|d| d.as_const().is_some_and(|c| c > 0))
            };
            let dtype = graph.ty(node.args[0]).dtype;
            constant(node.args[0])
                && constant(node.args[2])
                && matches!(dtype, DType::F32 | DType::F16 | DType::BF16)
        }
        _ => false,
    }
}
