//! The order of a graph's nodes, which files may get wrong, and its cycles.

use onnx_protobuf::{GraphProto, NodeProto};
use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap, HashMap, HashSet};

/// Subgraphs in subgraphs; the wire walk bounds this too.
const MAX_DEPTH: usize = 40;

/// A node on a cycle.
pub(crate) struct Cycle {
    /// Its index.
    pub(crate) node: usize,
}

/// Indices of the nodes so that each comes after those whose results it (or a
/// graph inside it) uses; the order of the file where that does.
pub(crate) fn sort(nodes: &[NodeProto]) -> Result<Vec<usize>, Cycle> {
    let mut producer: HashMap<&str, usize> = HashMap::new();
    for (i, node) in nodes.iter().enumerate() {
        for name in node.output.iter().filter(|n| !n.is_empty()) {
            producer.entry(name).or_insert(i);
        }
    }
    let needs: Vec<BTreeSet<usize>> = nodes
        .iter()
        .map(|node| {
            let mut used = HashSet::new();
            uses(node, 0, &mut used);
            used.iter()
                .filter_map(|n| producer.get(n).copied())
                .collect()
        })
        .collect();
    let sorted = needs
        .iter()
        .enumerate()
        .all(|(i, needs)| needs.iter().all(|&p| p < i));
    if sorted {
        return Ok((0..nodes.len()).collect());
    }
    let mut users: Vec<Vec<usize>> = vec![vec![]; nodes.len()];
    let mut open: Vec<usize> = vec![0; nodes.len()];
    for (i, needs) in needs.iter().enumerate() {
        open[i] = needs.len();
        needs.iter().for_each(|&p| users[p].push(i));
    }
    let mut ready: BinaryHeap<Reverse<usize>> = (0..nodes.len())
        .filter(|&i| open[i] == 0)
        .map(Reverse)
        .collect();
    let mut order = vec![];
    while let Some(Reverse(i)) = ready.pop() {
        order.push(i);
        for &u in &users[i] {
            open[u] -= 1;
            if open[u] == 0 {
                ready.push(Reverse(u));
            }
        }
    }
    match (0..nodes.len()).find(|&i| open[i] > 0) {
        None => Ok(order),
        Some(stuck) => Err(Cycle {
            node: on_cycle(stuck, &needs, &open),
        }),
    }
}

/// Going from a stuck node to what it waits for ends in a cycle.
fn on_cycle(mut at: usize, needs: &[BTreeSet<usize>], open: &[usize]) -> usize {
    let mut seen = HashSet::new();
    while seen.insert(at) {
        match needs[at].iter().find(|&&p| open[p] > 0) {
            Some(&p) => at = p,
            None => break,
        }
    }
    at
}

/// Names that a node uses, those of its graphs' own values among them.
fn uses<'m>(node: &'m NodeProto, depth: usize, out: &mut HashSet<&'m str>) {
    out.extend(node.input.iter().map(String::as_str));
    if depth >= MAX_DEPTH {
        return;
    }
    for attribute in &node.attribute {
        for graph in attribute.g.iter().chain(&attribute.graphs) {
            free(graph, depth, out);
        }
    }
}

/// Names that a graph uses and does not define.
fn free<'m>(graph: &'m GraphProto, depth: usize, out: &mut HashSet<&'m str>) {
    let mut used: HashSet<&str> = graph.output.iter().map(|o| o.name.as_str()).collect();
    graph
        .node
        .iter()
        .for_each(|n| uses(n, depth + 1, &mut used));
    let defined: HashSet<&str> = graph
        .input
        .iter()
        .map(|i| i.name.as_str())
        .chain(graph.initializer.iter().map(|t| t.name.as_str()))
        .chain(
            graph
                .node
                .iter()
                .flat_map(|n| n.output.iter().map(String::as_str)),
        )
        .collect();
    out.extend(used.difference(&defined));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(inputs: &[&str], output: &str) -> NodeProto {
        NodeProto {
            input: inputs.iter().map(|s| s.to_string()).collect(),
            output: vec![output.into()],
            ..Default::default()
        }
    }

    #[test]
    fn unsorted_graphs_sort_and_cycles_name_a_node_on_them() {
        let nodes = [node(&["b"], "c"), node(&["a"], "b"), node(&["x"], "a")];
        assert_eq!(sort(&nodes).ok().unwrap(), [2, 1, 0]);
        // The first node only hangs on the cycle of the other two.
        let nodes = [node(&["b"], "c"), node(&["a"], "b"), node(&["b"], "a")];
        let stuck = sort(&nodes).err().unwrap().node;
        assert!(stuck == 1 || stuck == 2);
    }
}
