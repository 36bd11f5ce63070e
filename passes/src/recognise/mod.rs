//! Finds composites that exporters took apart: layer and root-mean-square norms,
//! GELU in both forms, SiLU, softmax and its logarithm, attention.
//!
//! ```text
//! %m = reduce_mean %x {axes = [2], keep = true}
//! %c = sub %x, %m
//! %s = mul %c, %c
//! %v = reduce_mean %s {axes = [2], keep = true}
//! %e = add %v, 1e-12
//! %r = sqrt %e
//! %n = div %c, %r
//! %t = mul %n, %scale
//! %y = add %t, %bias
//! becomes
//! %y = layer_norm %x, %scale, %bias {axis = 2, eps = 1e-12}
//! ```
//!
//! A composite rounds otherwise than its parts (it computes half floats in f32,
//! and its kernel keeps intermediates): the pass is off where bits must not
//! change. Parts that something else reads too are left alone, so nothing is
//! computed twice.

mod activation;
mod attention;
mod norm;
mod softmax;

use crate::canonicalize::splat;
use crate::{Changed, PassCx, PassError};
use kiln_ir::{BinaryFn, Builder, Graph, NodeId, Op, TypeError, UnaryFn, Value};
use std::collections::{BTreeMap, BTreeSet};

/// How far a constant may be from what the formula says, relative: exporters
/// write them in f32 or f16.
const NEAR: f64 = 1e-3;

/// What a rule found: builds the composite.
type Build = Box<dyn FnOnce(&mut Builder) -> Result<Value, TypeError>>;

/// A composite found at a node.
struct Found {
    /// Nodes whose work it takes over, the root among them.
    parts: Vec<NodeId>,
    build: Build,
}

/// A rule: the composite whose result is this node's.
type Rule = fn(&Parts, NodeId) -> Option<Found>;

/// Inner composites first: attention is found around a softmax.
const RULES: [&[Rule]; 2] = [
    &[
        norm::layer_norm,
        norm::rms_norm,
        activation::gelu,
        activation::silu,
        softmax::softmax,
        softmax::log_softmax,
    ],
    &[attention::attention],
];

/// Applies the rules once to every node.
pub fn recognise(cx: &mut PassCx, graph: &mut Graph) -> Result<Changed, PassError> {
    if cx.options.exact {
        return Ok(Changed::No);
    }
    let mut changed = Changed::No;
    for rules in RULES {
        changed = changed.or(walk(cx, graph, rules)?);
    }
    Ok(changed)
}

fn walk(cx: &mut PassCx, graph: &mut Graph, rules: &[Rule]) -> Result<Changed, PassError> {
    let uses = graph.use_counts();
    let mut replaced: BTreeMap<Value, Value> = BTreeMap::new();
    let mut dead: BTreeSet<NodeId> = BTreeSet::new();
    // From the results up: the whole of a norm is met before its parts.
    for &n in graph.nodes_in_order().iter().rev() {
        if dead.contains(&n) {
            continue;
        }
        let parts = Parts { graph, uses: &uses };
        let found = rules.iter().find_map(|rule| rule(&parts, n));
        let Some(found) = found.filter(|f| parts.whole(f, n)) else {
            continue;
        };
        let v = graph.node(n).results[0];
        let mut origins = graph.node(n).origins.clone();
        for &p in &found.parts {
            origins.extend(graph.node(p).origins.iter().cloned());
        }
        let shape = graph.shape(v).to_vec();
        let mut b = Builder::before(graph, cx.globals, n);
        b.origins = origins;
        let y = (found.build)(&mut b)?;
        // The type may be written with other, equal sizes.
        let y = b.reshape(y, &shape)?;
        replaced.insert(v, y);
        dead.insert(n);
        dead.extend(found.parts);
    }
    graph.replace_all(&replaced);
    crate::eliminate_dead::eliminate_dead(cx, graph)?;
    Ok((!replaced.is_empty()).into())
}

/// The graph as rules look at it.
struct Parts<'g> {
    graph: &'g Graph,
    uses: &'g [u32],
}

impl Parts<'_> {
    /// Whether nothing but the composite reads its parts.
    fn whole(&self, found: &Found, root: NodeId) -> bool {
        let inside: BTreeSet<NodeId> = found.parts.iter().copied().collect();
        let mut read: BTreeMap<Value, u32> = BTreeMap::new();
        for &n in &inside {
            for &v in &self.graph.node(n).args {
                *read.entry(v).or_default() += 1;
            }
        }
        let parent = self.graph.node(root).parent;
        inside.iter().all(|&n| {
            let node = self.graph.node(n);
            let own = |v: &Value| self.uses[v.index()] == read.get(v).copied().unwrap_or(0);
            node.parent == parent && (n == root || node.results.iter().all(own))
        })
    }

    /// The number that a value is full of.
    fn number(&self, v: Value) -> Option<f64> {
        splat(self.graph, v)
    }

    /// The producer and its arguments, if it is this function.
    fn unary(&self, v: Value, f: UnaryFn) -> Option<(NodeId, Value)> {
        let (n, _) = self.graph.producer(v)?;
        match &self.graph.node(n).op {
            Op::Unary(u) if u.f == f => Some((n, self.graph.node(n).args[0])),
            _ => None,
        }
    }

    fn binary(&self, v: Value, f: BinaryFn) -> Option<(NodeId, Value, Value)> {
        let (n, _) = self.graph.producer(v)?;
        let node = self.graph.node(n);
        match &node.op {
            Op::Binary(b) if b.f == f => Some((n, node.args[0], node.args[1])),
            _ => None,
        }
    }

    /// `a + number` in either order: the node, `a`, and the number.
    fn plus_number(&self, v: Value) -> Option<(NodeId, Value, f64)> {
        let (n, a, b) = self.binary(v, BinaryFn::Add)?;
        match (self.number(a), self.number(b)) {
            (_, Some(c)) => Some((n, a, c)),
            (Some(c), None) => Some((n, b, c)),
            (None, None) => None,
        }
    }

    /// `x²`, as a product or a power: the nodes and `x`.
    fn square(&self, v: Value) -> Option<(NodeId, Value)> {
        if let Some((n, a, b)) = self.binary(v, BinaryFn::Mul) {
            return (a == b).then_some((n, a));
        }
        let (n, x, e) = self.binary(v, BinaryFn::Pow)?;
        (self.number(e) == Some(2.0)).then_some((n, x))
    }

    /// The factors of a product, opened as far as products go that are read once,
    /// and the product of those that are numbers; division by a number is one.
    fn factors(&self, v: Value, nodes: &mut Vec<NodeId>) -> (Vec<Value>, f64) {
        let (mut factors, mut number) = (vec![], 1.0);
        let mut stack = vec![(v, true)];
        while let Some((v, root)) = stack.pop() {
            if let Some(c) = self.number(v) {
                number *= c;
                continue;
            }
            let open = root || self.uses[v.index()] == 1;
            if let Some((n, a, b)) = self.binary(v, BinaryFn::Mul).filter(|_| open) {
                nodes.push(n);
                stack.extend([(b, false), (a, false)]);
            } else if let Some((n, a, b)) = self.binary(v, BinaryFn::Div).filter(|_| open)
                && let Some(c) = self.number(b).filter(|c| *c != 0.0)
            {
                nodes.push(n);
                number /= c;
                stack.push((a, false));
            } else {
                factors.push(v);
            }
        }
        (factors, number)
    }
}

/// Whether two numbers agree to what an exporter's rounding leaves.
fn near(a: f64, b: f64) -> bool {
    (a - b).abs() <= NEAR * b.abs()
}
