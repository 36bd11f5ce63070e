//! Equality saturation over windows of the graph (egg; Willsey et al. 2021; for
//! tensor graphs Yang et al. 2021).
//!
//! ```text
//! %0 = matmul %x, %w            %0 = matmul %x, %merged
//! %1 = matmul %x, %a
//! %2 = matmul %1, %b      →     where %merged = %w + 2·(%a·%b), a constant
//! %3 = mul %2, 2.0
//! %y = add %0, %3
//! ```
//!
//! A window is up to [`WINDOW`] pure nodes of one region, in program order; what
//! it reads from outside is a leaf. Its terms go into an e-graph, the rules of
//! [`rules`] add equal terms until nothing is new or a limit of rounds or terms
//! is reached (never a clock: the same input gives the same output), and the
//! cheapest terms come out. They are taken only if the window's cost as a DAG
//! falls. Rules that round differently are off where bits must not change.

mod chain;
mod cost;
mod extract;
mod language;
mod rules;
#[cfg(test)]
mod tests;

use crate::{Changed, PassCx, PassError};
use kiln_ir::{Class, Graph, NodeId, Op, RegionId, Value};
use language::{Terms, Tree};
use rules::{RULES, Rule};
use std::collections::{BTreeMap, BTreeSet};

/// Nodes of a window.
const WINDOW: usize = 200;
/// Rounds of rewriting.
const ROUNDS: usize = 6;
/// Terms at which rewriting stops.
const TERMS: usize = 4_000;

/// Rewrites every window that gets cheaper.
pub fn simplify(cx: &mut PassCx, graph: &mut Graph) -> Result<Changed, PassError> {
    let exact = cx.options.exact;
    let mut changed = Changed::No;
    if !exact {
        changed = chain::reorder(cx, graph)?;
        crate::eliminate_dead::eliminate_dead(cx, graph)?;
    }
    let rules: Vec<&Rule> = RULES.iter().filter(|r| r.exact || !exact).collect();
    let windows = windows(graph);
    let mut results: BTreeSet<Value> = BTreeSet::new();
    for r in 0..graph.region_count() {
        results.extend(&graph.region(RegionId(r as u32)).results);
    }
    let mut users = graph.users();
    let mut replaced: BTreeMap<Value, Value> = BTreeMap::new();
    for window in windows {
        let nodes = graph.node_capacity();
        let new = rewrite(cx, graph, &window, &users, &results, &rules)?;
        changed = changed.or((!new.is_empty()).into());
        // Only the users are visited: a walk of the graph for each window would be
        // quadratic. Nodes that were built are users too.
        users.resize(graph.value_count(), vec![]);
        for n in (nodes..graph.node_capacity()).map(|i| NodeId(i as u32)) {
            for v in graph.node(n).args.clone() {
                users[v.index()].push(n);
            }
        }
        for (&from, &to) in &new {
            for n in std::mem::take(&mut users[from.index()]) {
                let swap = |v: &mut Value| *v = if *v == from { to } else { *v };
                graph.node_mut(n).args.iter_mut().for_each(swap);
                users[to.index()].push(n);
            }
        }
        replaced.extend(new);
    }
    // What regions yield.
    graph.replace_all(&replaced);
    if changed == Changed::Yes {
        crate::eliminate_dead::eliminate_dead(cx, graph)?;
    }
    Ok(changed)
}

/// Runs of nodes that terms can say, in program order.
fn windows(graph: &Graph) -> Vec<Vec<NodeId>> {
    let mut out = vec![];
    for r in 0..graph.region_count() {
        let mut window = vec![];
        for &n in &graph.region(RegionId(r as u32)).nodes {
            if is_term(graph, n) {
                window.push(n);
                if window.len() == WINDOW {
                    out.push(std::mem::take(&mut window));
                }
            }
        }
        if window.len() > 1 {
            out.push(window);
        }
    }
    out
}

/// Whether a node is a term: pure, of one plain float result.
fn is_term(graph: &Graph, n: NodeId) -> bool {
    let node = graph.node(n);
    let [v] = node.results[..] else { return false };
    let value = graph.value(v);
    let kind = match node.op.class() {
        Class::Elementwise | Class::Move | Class::View | Class::Reduction => true,
        Class::Anchor | Class::Composite => true,
        Class::Plan => matches!(node.op, Op::Reshape(_)),
        Class::Kernel => false,
    };
    kind && node.regions.is_empty()
        && node.op.def().donates().is_empty()
        && value.ty.dtype.is_float()
        && value.ty.encoding.is_none()
        && value.shard.is_none()
}

/// Saturates one window; answers what replaces which of its roots, if that is
/// cheaper.
fn rewrite(
    cx: &mut PassCx,
    graph: &mut Graph,
    window: &[NodeId],
    users: &[Vec<NodeId>],
    results: &BTreeSet<Value>,
    rules: &[&Rule],
) -> Result<BTreeMap<Value, Value>, PassError> {
    // Nodes that do not type alone are outside, and what they read is a root.
    let (mut terms, window) = Terms::of(graph, cx.globals, window);
    let window = &window[..];
    let members: BTreeSet<NodeId> = window.iter().copied().collect();
    let outside = |v: &Value| {
        let inside = |u: &NodeId| members.contains(u);
        results.contains(v) || !users[v.index()].iter().all(inside)
    };
    let roots: Vec<Value> = (window.iter())
        .map(|&n| graph.node(n).results[0])
        .filter(outside)
        .collect();
    let roots = &roots[..];
    if !saturate(&mut terms, rules) {
        return Ok(BTreeMap::new());
    }
    let before = cost::of_window(graph, &terms, window, roots);
    let choice = extract::cheapest(&terms);
    let after = choice.cost_of(&terms, roots);
    // Sums of the same numbers in another order are not cheaper.
    if after >= before * (1.0 - 1e-9) {
        return Ok(BTreeMap::new());
    }
    choice.build(cx, graph, &terms, window, roots)
}

/// Adds equal terms; answers whether there are any.
fn saturate(terms: &mut Terms, rules: &[&Rule]) -> bool {
    let mut any = false;
    for _ in 0..ROUNDS {
        let mut found: Vec<(egg::Id, Tree)> = vec![];
        for (class, op, args) in terms.all() {
            for rule in rules {
                found.extend(
                    (rule.apply)(terms, class, op, args)
                        .into_iter()
                        .map(|t| (class, t)),
                );
            }
        }
        let mut new = false;
        for (class, tree) in found {
            if terms.size() >= TERMS {
                break;
            }
            new |= terms.equate(class, &tree);
        }
        terms.rebuild();
        any |= new;
        if !new || terms.size() >= TERMS {
            break;
        }
    }
    any
}
