//! Makes a module smaller while it still shows what it is kept for: a difference
//! between two ways to run it, a crash, an error. Delta debugging (Zeller and
//! Hildebrandt 2002) with the edits that a graph offers.
//!
//! ```text
//! func @f(%x) {                          func @f(%cut7) {
//!   … 300 nodes …              →           %0 = reduce_max %cut7
//!   return %a, %b, %c                      return %0
//! }                                      }
//! ```
//!
//! Tried in turn until none helps: one function of several, constants as inputs, one
//! value as the only result (the earliest first, by bisection), runs of nodes cut
//! away (their values become inputs), a node passed by (its value is its argument's),
//! sizes as small constants, unused inputs. What does not verify is not tried.

use crate::edit::substitute_sizes;
use crate::graph::{Graph, NodeId, PortKind, Value};
use crate::module::{ConstSource, GlobalKind, Module};
use crate::verify::verify_module;
use crate::{Dim, Op};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Answers whether a module shows what is looked for.
pub type Shows<'a> = dyn FnMut(&Module) -> bool + 'a;

/// The smallest module found that still shows it; the given one must.
pub fn shrink(module: &Module, shows: &mut Shows) -> Module {
    let mut s = Shrinker {
        best: module.clone(),
        shows,
    };
    loop {
        let before = weight(&s.best);
        s.functions();
        s.results();
        s.constants();
        s.cuts();
        s.detours();
        s.sizes();
        s.inputs();
        if weight(&s.best) >= before {
            return s.best;
        }
    }
}

/// What every accepted edit lowers: nodes and results first, then what else there is
/// to read.
fn weight(module: &Module) -> (usize, usize) {
    let nodes = |g: &Graph| g.nodes_in_order().len() + g.results.len();
    let other = |g: &Graph| g.params.len() + g.guards.len() + symbols(g).len();
    (
        module.functions.iter().map(nodes).sum(),
        module.functions.iter().map(other).sum::<usize>() + module.globals.len(),
    )
}

fn symbols(g: &Graph) -> BTreeSet<Arc<str>> {
    let mut all = BTreeSet::new();
    for &v in &g.body().params {
        g.shape(v).iter().for_each(|d| d.symbols(&mut all));
    }
    all
}

struct Shrinker<'s, 'f> {
    best: Module,
    shows: &'s mut Shows<'f>,
}

impl Shrinker<'_, '_> {
    /// Takes an edited module if it is smaller, valid, and still shows it.
    fn attempt(&mut self, mut edited: Module) -> bool {
        edited.functions.iter_mut().for_each(drop_dead);
        drop_globals(&mut edited);
        let taken = weight(&edited) < weight(&self.best)
            && verify_module(&edited).is_empty()
            && (self.shows)(&edited);
        if taken {
            self.best = edited;
        }
        taken
    }

    fn functions(&mut self) {
        if self.best.functions.len() < 2 {
            return;
        }
        for i in 0..self.best.functions.len() {
            let mut edited = self.best.clone();
            edited.functions = vec![edited.functions.swap_remove(i)];
            if self.attempt(edited) {
                return;
            }
        }
    }

    /// One value as the only result: of the first half of all values one that shows
    /// it, of the first quarter, and so on; then those before it one by one.
    fn results(&mut self) {
        for f in 0..self.best.functions.len() {
            let mut step = self.best.functions[f].body().nodes.len().max(1);
            while step >= 1 {
                let nodes = self.best.functions[f].body().nodes.clone();
                for at in (0..nodes.len()).step_by(step) {
                    if self.only_result(f, nodes[at]) {
                        break;
                    }
                }
                // All of a long function's values one by one would take too long.
                if step == 1 || nodes.len() > 200 && step < nodes.len() / 50 {
                    break;
                }
                step = (step / 2).max(1);
            }
        }
    }

    fn only_result(&mut self, f: usize, node: NodeId) -> bool {
        if !self.best.functions[f].contains(node) {
            return false;
        }
        let results = self.best.functions[f].node(node).results.clone();
        results.into_iter().any(|v| {
            let mut edited = self.best.clone();
            let g = &mut edited.functions[f];
            g.results.clear();
            g.region_mut(Graph::BODY).results.clear();
            g.add_result("y", PortKind::Caller, v);
            self.attempt(edited)
        })
    }

    /// Constants as inputs: all of them, then one by one.
    fn constants(&mut self) {
        for f in 0..self.best.functions.len() {
            let constants = |m: &Module| -> Vec<NodeId> {
                let g = &m.functions[f];
                let plain = |n: &NodeId| match &g.node(*n).op {
                    Op::Global(x) => m.globals.get(&x.name).is_some_and(|x| {
                        matches!(x.kind, GlobalKind::Const(_)) && x.ty.encoding.is_none()
                    }),
                    _ => false,
                };
                g.body().nodes.iter().copied().filter(plain).collect()
            };
            let all = constants(&self.best);
            if all.len() > 1 && self.cut(f, &all) {
                continue;
            }
            for n in all {
                self.cut(f, &[n]);
            }
        }
    }

    /// Runs of nodes cut away, long runs first.
    fn cuts(&mut self) {
        for f in 0..self.best.functions.len() {
            let mut length = self.best.functions[f].body().nodes.len() / 2;
            while length >= 1 {
                let mut at = 0;
                loop {
                    let nodes = &self.best.functions[f].body().nodes;
                    let Some(run) = nodes.get(at..(at + length).min(nodes.len())) else {
                        break;
                    };
                    if run.is_empty() {
                        break;
                    }
                    let run = run.to_vec();
                    if !self.cut(f, &run) {
                        at += length;
                    }
                }
                length /= 2;
            }
        }
    }

    /// The values of nodes that others use become inputs, and the nodes go.
    fn cut(&mut self, f: usize, nodes: &[NodeId]) -> bool {
        let mut edited = self.best.clone();
        let g = &mut edited.functions[f];
        if nodes
            .iter()
            .any(|&n| !g.contains(n) || names_a_size(&g.node(n).op))
        {
            return false;
        }
        let uses = g.use_counts();
        let mut to = BTreeMap::new();
        for &n in nodes {
            for v in g.node(n).results.clone() {
                if uses[v.index()] == 0 {
                    continue;
                }
                let mut k = g.params.len();
                while g.params.iter().any(|p| *p.name == format!("cut{k}")) {
                    k += 1;
                }
                let ty = g.ty(v).clone();
                to.insert(v, g.add_param(format!("cut{k}"), PortKind::Caller, ty));
            }
        }
        g.replace_all(&to);
        self.attempt(edited)
    }

    /// A node's value becomes one of its arguments of the same type.
    fn detours(&mut self) {
        for f in 0..self.best.functions.len() {
            let nodes = self.best.functions[f].body().nodes.clone();
            for n in nodes.into_iter().rev() {
                let g = &self.best.functions[f];
                if !g.contains(n) || g.node(n).results.len() != 1 {
                    continue;
                }
                let v = g.node(n).results[0];
                let same = |a: &Value| g.ty(*a) == g.ty(v);
                let args: Vec<Value> = g.node(n).args.iter().copied().filter(same).collect();
                for a in args {
                    let mut edited = self.best.clone();
                    edited.functions[f].replace_all(&BTreeMap::from([(v, a)]));
                    if self.attempt(edited) {
                        break;
                    }
                }
            }
        }
    }

    /// Sizes as constants, small ones first: one, then a few elements, then more than
    /// a vector has lanes.
    fn sizes(&mut self) {
        for f in 0..self.best.functions.len() {
            for symbol in symbols(&self.best.functions[f]) {
                for n in [1, 2, 3, 5, 19] {
                    let mut edited = self.best.clone();
                    let with = |s: &str| (*s == *symbol).then(|| Dim::from(n));
                    if substitute_sizes(&mut edited.functions[f], &with) && self.attempt(edited) {
                        break;
                    }
                }
            }
        }
    }

    /// Inputs that nothing uses.
    fn inputs(&mut self) {
        for f in 0..self.best.functions.len() {
            for i in (0..self.best.functions[f].params.len()).rev() {
                let mut edited = self.best.clone();
                let g = &mut edited.functions[f];
                if g.use_counts()[g.body().params[i].index()] > 0 {
                    continue;
                }
                g.remove_param(i);
                self.attempt(edited);
            }
        }
    }
}

/// Whether a node mints a size.
pub(crate) fn names_a_size(op: &Op) -> bool {
    match op {
        Op::BindDim(_) | Op::NonZero(_) | Op::StringSplit(_) => true,
        Op::If(x) => !x.sizes.is_empty(),
        Op::Loop(x) => x.symbol.is_some() || !x.sizes.is_empty(),
        _ => false,
    }
}

/// Removes what nothing uses. Nodes that name a size go too where no type has it.
fn drop_dead(g: &mut Graph) {
    loop {
        let uses = g.use_counts();
        let unused = |&n: &NodeId| {
            let results = &g.node(n).results;
            !names_a_size(&g.node(n).op) && results.iter().all(|v| uses[v.index()] == 0)
        };
        let dead: BTreeSet<NodeId> = g.nodes_in_order().into_iter().filter(unused).collect();
        if dead.is_empty() {
            return;
        }
        g.remove_nodes(&dead);
    }
}

/// Removes globals that no function reads, directly or through others.
fn drop_globals(module: &mut Module) {
    let mut used: BTreeSet<Arc<str>> = BTreeSet::new();
    let mut stack: Vec<Arc<str>> = vec![];
    for g in &module.functions {
        let ports = g.params.iter().chain(&g.results);
        stack.extend(ports.filter_map(|p| match &p.kind {
            PortKind::State(name) => Some(name.clone()),
            PortKind::Caller => None,
        }));
        stack.extend(
            g.nodes_in_order()
                .into_iter()
                .filter_map(|n| match &g.node(n).op {
                    Op::Global(x) => Some(x.name.clone()),
                    _ => None,
                }),
        );
    }
    while let Some(name) = stack.pop() {
        if let Some(global) = module.globals.get(&name)
            && used.insert(name)
        {
            let source = match &global.kind {
                GlobalKind::Const(source) => source,
                GlobalKind::State { init, .. } => init,
            };
            if let ConstSource::Expr { args, .. } = source {
                stack.extend(args.iter().cloned());
            }
        }
    }
    module.globals.retain(|name, _| used.contains(name));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parse::{NoFiles, parse_module};
    use crate::print::{PrintOptions, print_module};

    fn shrunk(text: &str, shows: &mut Shows) -> String {
        let module = parse_module(text, &NoFiles).unwrap();
        assert!(shows(&module));
        let small = shrink(&module, shows);
        assert!(verify_module(&small).is_empty());
        print_module(&small, &PrintOptions::default())
    }

    fn has(module: &Module, mnemonic: &str) -> bool {
        let has = |g: &Graph| {
            let nodes = g.nodes_in_order();
            nodes
                .iter()
                .any(|&n| g.node(n).op.def().mnemonic() == mnemonic)
        };
        module.functions.iter().any(has)
    }

    const TEXT: &str = "kir 1
const @w : f32[4, 4] = splat 0.5
func @g(%x: f32[2]) -> f32[2] {
  %0 = neg %x
  return %0
}
func @f(%x: f32[batch, 4], %unused: i64[]) -> (y: f32[batch, 4], z: f32[batch]) {
  %w = global {name = \"w\"}
  %0 = matmul %x, %w {transpose_a = false, transpose_b = false}
  %1 = tanh %0
  %2 = reduce_max %1 {axes = [1], keep = true}
  %3 = sub %1, %2
  %4 = exp %3
  %5 = reduce_sum %4 {axes = [1], keep = false}
  return %4, %5
}
";

    #[test]
    fn one_op_is_left_of_a_function() {
        let text = shrunk(TEXT, &mut |m| has(m, "reduce_max"));
        let want = "kir 1
func @f(%cut0: f32[1, 4]) -> (y: f32[1, 1]) {
  %1 = reduce_max %cut0 {axes = [1], keep = true} : f32[1, 1]
  return %1
}
";
        let squeeze = |t: &str| t.split_whitespace().collect::<Vec<_>>().join(" ");
        // Names of cut values depend on the order of the edits.
        assert_eq!(squeeze(&text).matches('=').count(), 3, "{text}");
        assert_eq!(text.lines().count(), want.lines().count(), "{text}");
        assert!(text.contains("f32[1, 4]") && !text.contains("@g"), "{text}");
    }

    #[test]
    fn what_needs_two_ops_keeps_two() {
        let text = shrunk(TEXT, &mut |m| has(m, "exp") && has(m, "tanh"));
        assert!(text.contains("exp") && text.contains("tanh"), "{text}");
        assert!(
            !text.contains("reduce") && !text.contains("matmul"),
            "{text}"
        );
    }
}
