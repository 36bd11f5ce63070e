//! Reverse-mode differentiation: appends the gradients of a scalar.
//!
//! ```text
//!   %y = matmul %x, %w          %y = matmul %x, %w
//!   %l = reduce_sum %y    →     %l = reduce_sum %y
//!                               %d = broadcast 1            : %y's gradient
//!                               %g = matmul %x, %d {ta}     : %w's gradient
//! ```
//!
//! The function is walked backwards once. Each node turns the gradients of its
//! results into gradients of its arguments by its own rule; contributions to one
//! value are added in walking order, so that the result is deterministic. Nodes
//! that no wanted value reaches are not visited, and no gradient is made for
//! values that are not floats.
//!
//! A composite without a rule of its own is expanded again behind the forward
//! pass and that expansion is differentiated: the forward composite stays whole
//! (and keeps its kernel), and what the backward pass needs of its inside is
//! computed again rather than kept.

use crate::PassError;
use kiln_ir::{Builder, DType, Globals, Grad, Graph, Io, NodeId, Value};
use std::collections::{BTreeMap, BTreeSet};

const PASS: &str = "differentiate";

/// Appends to the body the gradient of `loss`, a float scalar of the body, with
/// respect to each value of `wrt`; returns them in that order. A value on which
/// the loss does not depend has gradient zero.
pub fn differentiate(
    graph: &mut Graph,
    globals: &Globals,
    loss: Value,
    wrt: &[Value],
) -> Result<Vec<Value>, PassError> {
    let fail = |message: String| PassError {
        pass: PASS,
        function: graph.name.to_string(),
        message,
    };
    let ty = graph.ty(loss);
    if ty.rank() != 0 || !ty.dtype.is_float() {
        return Err(fail(format!(
            "the gradient of {ty} was asked for; only a float scalar has one"
        )));
    }
    if let Some(v) = wrt.iter().find(|v| !graph.ty(**v).dtype.is_float()) {
        return Err(fail(format!(
            "the gradient by {v} of type {} was asked for",
            graph.ty(*v)
        )));
    }
    let function = graph.name.to_string();
    let body = graph.body().nodes.clone();
    let mut walk = Walk {
        b: Builder::at_end(graph, globals, Graph::BODY),
        active: wrt.iter().copied().collect(),
        gradients: BTreeMap::new(),
    };
    let located = |message: String| PassError {
        pass: PASS,
        function: function.clone(),
        message,
    };
    walk.gradients(&body, loss, wrt).map_err(located)
}

struct Walk<'a> {
    b: Builder<'a>,
    /// Float values that depend on a wanted value.
    active: BTreeSet<Value>,
    /// The gradient of each value so far.
    gradients: BTreeMap<Value, Value>,
}

impl Walk<'_> {
    fn gradients(
        &mut self,
        body: &[NodeId],
        loss: Value,
        wrt: &[Value],
    ) -> Result<Vec<Value>, String> {
        self.activate(body);
        let one = self.b.scalar_like(loss, 1.0).map_err(|e| e.0)?;
        self.gradients.insert(loss, one);
        self.backward(body)?;
        wrt.iter()
            .map(|&v| match self.gradients.get(&v) {
                Some(&g) => Ok(g),
                None => self.zeros(v),
            })
            .collect()
    }

    /// Marks what depends on a wanted value. Regions see values from outside, so
    /// a node also depends on what its regions use.
    fn activate(&mut self, nodes: &[NodeId]) {
        for &n in nodes {
            let graph = &*self.b.graph;
            if reads(graph, n).iter().any(|v| self.active.contains(v)) {
                let results = &graph.node(n).results;
                let floats = results
                    .iter()
                    .copied()
                    .filter(|&v| graph.ty(v).dtype.is_float());
                self.active.extend(floats);
            }
        }
    }

    fn backward(&mut self, nodes: &[NodeId]) -> Result<(), String> {
        for &n in nodes.iter().rev() {
            let node = self.b.graph.node(n);
            let wanted = node.results.iter().any(|v| self.active.contains(v));
            if wanted && node.results.iter().any(|v| self.gradients.contains_key(v)) {
                self.backward_node(n)?;
            }
        }
        Ok(())
    }

    fn backward_node(&mut self, n: NodeId) -> Result<(), String> {
        let node = self.b.graph.node(n).clone();
        self.b.origins = node.origins.clone();
        let name = node.op.def().mnemonic();
        let at = |what: &str| {
            let places: Vec<String> = node
                .origins
                .iter()
                .map(|o| format!("{} of {}", o.node, o.file))
                .collect();
            let place = if places.is_empty() {
                String::new()
            } else {
                format!(" (from {})", places.join(", "))
            };
            format!("{name} at {n}{place}: {what}")
        };
        let mut d = vec![];
        for &r in &node.results {
            d.push(match self.gradients.get(&r) {
                Some(&g) => g,
                None => self.zeros(r)?,
            });
        }
        let io = Io {
            args: &node.args,
            results: &node.results,
        };
        match node
            .op
            .def()
            .grad(&mut self.b, io, &d)
            .map_err(|e| at(&e.0))?
        {
            Grad::Args(gradients) => {
                for (&arg, g) in node.args.iter().zip(gradients) {
                    match g {
                        Some(g) if self.active.contains(&arg) => {
                            self.accumulate(arg, g).map_err(|e| at(&e))?
                        }
                        _ => {}
                    }
                }
                Ok(())
            }
            Grad::Zero { .. } => Ok(()),
            Grad::Unsupported { because } => Err(at(&format!(
                "it is not differentiable here: {because}; cut the graph before it or take it out of what is trained"
            ))),
            Grad::Expand => self.through_expansion(n, &d).map_err(|e| at(&e)),
        }
    }

    /// Expands the node's op at the end and walks back through the expansion,
    /// which ends at the node's own arguments.
    fn through_expansion(&mut self, n: NodeId, d: &[Value]) -> Result<(), String> {
        let node = self.b.graph.node(n).clone();
        let before = self.b.graph.body().nodes.len();
        let expanded = node
            .op
            .def()
            .expand(&mut self.b, &node.args)
            .map_err(|e| e.0)?;
        let results = expanded.ok_or("it says to differentiate its expansion, but has none")?;
        let nodes = self.b.graph.body().nodes[before..].to_vec();
        self.activate(&nodes);
        for ((&r, &old), &d) in results.iter().zip(&node.results).zip(d) {
            if self.gradients.contains_key(&old) && self.active.contains(&r) {
                self.accumulate(r, d)?;
            }
        }
        self.backward(&nodes)
    }

    fn accumulate(&mut self, v: Value, g: Value) -> Result<(), String> {
        let (ty, gty) = (self.b.ty(v), self.b.ty(g));
        if ty.dtype != gty.dtype || ty.rank() != gty.rank() {
            return Err(format!(
                "its rule gives a gradient of type {gty} for an argument of type {ty}"
            ));
        }
        let sum = match self.gradients.get(&v) {
            Some(&other) => self.b.add(other, g).map_err(|e| e.0)?,
            None => g,
        };
        self.gradients.insert(v, sum);
        Ok(())
    }

    /// Zero in the value's type; for what is no float a scalar that no rule reads.
    fn zeros(&mut self, v: Value) -> Result<Value, String> {
        let ty = self.b.ty(v);
        let zero = match ty.dtype.is_float() {
            true => self.b.full(ty.dtype, &ty.shape, 0.0),
            false => self.b.scalar(DType::F32, 0.0),
        };
        zero.map_err(|e| e.0)
    }
}

/// What a node reads: its arguments, and what its regions take from outside.
fn reads(graph: &Graph, n: NodeId) -> Vec<Value> {
    let node = graph.node(n);
    let mut out = node.args.clone();
    for &r in &node.regions {
        let region = graph.region(r);
        out.extend(&region.results);
        region
            .nodes
            .iter()
            .for_each(|&inner| out.extend(reads(graph, inner)));
    }
    out
}

#[cfg(test)]
mod tests;
