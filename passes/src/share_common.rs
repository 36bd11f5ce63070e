//! Equal nodes become one: same op, same arguments, an earlier node in the same
//! region or an enclosing one. Nodes that consume an argument, own regions or
//! name a size stay apart.

use crate::{Changed, PassCx, PassError};
use kiln_ir::{Graph, NodeId, Op, RegionId, Value};
use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::{Hash, Hasher};

type Table = HashMap<(&'static str, Vec<Value>, u64), Vec<NodeId>>;

/// A hash of the attributes of ops without arguments, which would all be looked
/// through otherwise: 10,000 literals made 50,000,000 comparisons.
fn fingerprint(op: &Op) -> u64 {
    let mut hash = DefaultHasher::new();
    match op {
        Op::Constant(c) => {
            let t = &c.value;
            (t.dtype(), t.shape(), t.bytes(), t.as_strings()).hash(&mut hash);
        }
        Op::Global(g) => g.name.hash(&mut hash),
        _ => format!("{:?}", op.def().attrs()).hash(&mut hash),
    }
    hash.finish()
}

/// Merges equal nodes; origins are merged too.
pub fn share_common(_: &mut PassCx, graph: &mut Graph) -> Result<Changed, PassError> {
    let mut replaced: BTreeMap<Value, Value> = BTreeMap::new();
    let mut dead = BTreeSet::new();
    let mut origins: Vec<(NodeId, NodeId)> = vec![];
    walk(
        graph,
        Graph::BODY,
        &mut vec![Table::new()],
        &mut replaced,
        &mut dead,
        &mut origins,
    );
    for (kept, gone) in origins {
        let more = graph.node(gone).origins.clone();
        graph.node_mut(kept).origins.extend(more);
    }
    graph.replace_all(&replaced);
    graph.remove_nodes(&dead);
    Ok((!dead.is_empty()).into())
}

fn walk(
    graph: &Graph,
    region: RegionId,
    tables: &mut Vec<Table>,
    replaced: &mut BTreeMap<Value, Value>,
    dead: &mut BTreeSet<NodeId>,
    origins: &mut Vec<(NodeId, NodeId)>,
) {
    for &n in &graph.region(region).nodes {
        let node = graph.node(n);
        let args: Vec<Value> = node
            .args
            .iter()
            .map(|v| *replaced.get(v).unwrap_or(v))
            .collect();
        for &r in &node.regions {
            if matches!(node.op, Op::Fused(_)) {
                continue;
            }
            tables.push(Table::new());
            walk(graph, r, tables, replaced, dead, origins);
            tables.pop();
        }
        let apart = !node.regions.is_empty()
            || node.results.is_empty()
            || !node.op.def().donates().is_empty()
            || matches!(
                node.op,
                Op::NonZero(_) | Op::StringSplit(_) | Op::BindDim(_) | Op::Call(_)
            );
        if apart {
            continue;
        }
        let print = if args.is_empty() {
            fingerprint(&node.op)
        } else {
            0
        };
        let key = (node.op.def().mnemonic(), args, print);
        let same = tables
            .iter()
            .flat_map(|t| t.get(&key).into_iter().flatten())
            .copied()
            .find(|&m| {
                let other = graph.node(m);
                other.op == node.op
                    && other
                        .results
                        .iter()
                        .zip(&node.results)
                        .all(|(a, b)| graph.ty(*a) == graph.ty(*b))
            });
        match same {
            Some(m) => {
                node.results
                    .iter()
                    .zip(&graph.node(m).results)
                    .for_each(|(&a, &b)| {
                        replaced.insert(a, b);
                    });
                dead.insert(n);
                // A literal that thousands share keeps its first origin: sets of
                // thousands, copied with it into every group, took 500 MB.
                if !node.args.is_empty() {
                    origins.push((m, n));
                }
            }
            None => {
                if let Some(table) = tables.last_mut() {
                    table.entry(key).or_default().push(n);
                }
            }
        }
    }
}
