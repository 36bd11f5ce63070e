//! The order of a chain of matrix products, by dynamic programming (Cormen et
//! al., "Matrix-chain multiplication"): `((x·A)·B)·C` as the sizes ask for.

use super::cost::nominal;
use crate::{Changed, PassCx, PassError};
use kiln_ir::{Builder, Dim, Graph, NodeId, Op, Value};
use std::collections::{BTreeMap, BTreeSet};

/// Longest chain that is looked at: the work grows with its cube.
const LONGEST: usize = 64;

/// Reorders every chain whose operations fall.
pub fn reorder(cx: &mut PassCx, graph: &mut Graph) -> Result<Changed, PassError> {
    let uses = graph.use_counts();
    let mut inner: BTreeSet<NodeId> = BTreeSet::new();
    let mut chains: Vec<(NodeId, Vec<Value>)> = vec![];
    let order = graph.nodes_in_order();
    for &n in order.iter().rev() {
        if inner.contains(&n) || !is_link(graph, n) {
            continue;
        }
        let mut operands = vec![];
        collect(graph, n, &uses, &mut inner, &mut operands);
        if (3..=LONGEST).contains(&operands.len()) {
            chains.push((n, operands));
        }
    }
    let mut replaced: BTreeMap<Value, Value> = BTreeMap::new();
    for (n, operands) in chains.into_iter().rev() {
        let (best, now) = (Plan::of(graph, &operands), flops_now(graph, n, &operands));
        if best.cost >= now * (1.0 - 1e-9) {
            continue;
        }
        let origins = origins(graph, n, &operands);
        let v = graph.node(n).results[0];
        let operands: Vec<Value> = (operands.iter())
            .map(|v| *replaced.get(v).unwrap_or(v))
            .collect();
        let mut b = Builder::before(graph, cx.globals, n);
        b.origins = origins;
        let y = best.build(&mut b, &operands, 0, operands.len() - 1)?;
        if b.ty(y) == b.ty(v) {
            replaced.insert(v, y);
        }
    }
    graph.replace_all(&replaced);
    Ok((!replaced.is_empty()).into())
}

/// A plain product whose right side is a matrix, of floats.
fn is_link(graph: &Graph, n: NodeId) -> bool {
    let node = graph.node(n);
    match &node.op {
        Op::MatMul(m) => {
            !m.transpose_a
                && !m.transpose_b
                && m.out.is_none()
                && graph.ty(node.args[1]).rank() == 2
                && graph.ty(node.results[0]).dtype.is_float()
                && graph.value(node.results[0]).shard.is_none()
        }
        _ => false,
    }
}

/// The factors of a product, left to right; products that only it uses are opened.
fn collect(
    graph: &Graph,
    n: NodeId,
    uses: &[u32],
    inner: &mut BTreeSet<NodeId>,
    out: &mut Vec<Value>,
) {
    let node = graph.node(n);
    for &v in &node.args {
        match graph.producer(v) {
            Some((p, _))
                if uses[v.index()] == 1
                    && graph.node(p).parent == node.parent
                    && is_link(graph, p) =>
            {
                inner.insert(p);
                collect(graph, p, uses, inner, out);
            }
            _ => out.push(v),
        }
    }
}

fn origins(graph: &Graph, n: NodeId, operands: &[Value]) -> kiln_ir::Origins {
    let mut out = kiln_ir::Origins::new();
    let mut stack = vec![n];
    while let Some(n) = stack.pop() {
        out.extend(graph.node(n).origins.iter().cloned());
        for v in &graph.node(n).args {
            if !operands.contains(v) {
                stack.extend(graph.producer(*v).map(|p| p.0));
            }
        }
    }
    out
}

/// Rows (all leading axes) and columns of a factor.
fn sizes(graph: &Graph, v: Value) -> (f64, f64) {
    let shape = graph.shape(v);
    let (last, rows) = match shape.split_last() {
        Some((last, rows)) => (nominal(last), nominal(&Dim::product(rows))),
        None => (1.0, 1.0),
    };
    (rows, last)
}

fn flops_now(graph: &Graph, n: NodeId, operands: &[Value]) -> f64 {
    let mut sum = 0.0;
    let mut stack = vec![n];
    while let Some(n) = stack.pop() {
        let node = graph.node(n);
        let ((rows, depth), (_, columns)) =
            (sizes(graph, node.args[0]), sizes(graph, node.args[1]));
        sum += 2.0 * rows * depth * columns;
        for v in &node.args {
            if !operands.contains(v) {
                stack.extend(graph.producer(*v).map(|p| p.0));
            }
        }
    }
    sum
}

/// Where each run of factors is cut.
struct Plan {
    cost: f64,
    cut: Vec<Vec<usize>>,
}

impl Plan {
    fn of(graph: &Graph, operands: &[Value]) -> Plan {
        let n = operands.len();
        // Factor i is edge[i] × edge[i + 1].
        let mut edge = vec![sizes(graph, operands[0]).0];
        edge.extend(operands.iter().map(|&v| sizes(graph, v).1));
        let mut cost = vec![vec![0.0; n]; n];
        let mut cut = vec![vec![0; n]; n];
        for length in 2..=n {
            for i in 0..=n - length {
                let j = i + length - 1;
                cost[i][j] = f64::INFINITY;
                for k in i..j {
                    let here = 2.0 * edge[i] * edge[k + 1] * edge[j + 1];
                    let c = cost[i][k] + cost[k + 1][j] + here;
                    if c < cost[i][j] {
                        (cost[i][j], cut[i][j]) = (c, k);
                    }
                }
            }
        }
        Plan {
            cost: cost[0][n - 1],
            cut,
        }
    }

    fn build(
        &self,
        b: &mut Builder,
        operands: &[Value],
        i: usize,
        j: usize,
    ) -> Result<Value, PassError> {
        if i == j {
            return Ok(operands[i]);
        }
        let k = self.cut[i][j];
        let left = self.build(b, operands, i, k)?;
        let right = self.build(b, operands, k + 1, j)?;
        Ok(b.matmul(left, right)?)
    }
}
