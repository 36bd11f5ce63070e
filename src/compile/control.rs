//! Control flow: branches and loops of a plan.

use super::lower::FunctionLowerer;
use kiln_ir::ops::control::{Loop as LoopOp, MintedSize};
use kiln_ir::{Dim, NodeId, Value};
use kiln_runtime::plan::{Loop, Place, Step};

impl FunctionLowerer<'_, '_> {
    /// The sizes that a branch or an iteration decides: the extents of these
    /// values, by name.
    fn minted(&self, sizes: &[MintedSize], values: &[Value]) -> Vec<(String, Dim)> {
        let extent = |m: &MintedSize| {
            let shape = self.graph.shape(values[m.result]);
            (m.symbol.to_string(), shape[m.axis].clone())
        };
        sizes.iter().map(extent).collect()
    }

    /// Lowers an `if`: each branch copies its results to where they are read.
    pub(super) fn branches(
        &mut self,
        n: NodeId,
        args: &[u32],
        sizes: &[MintedSize],
        steps: &mut Vec<Step>,
    ) {
        let node = self.graph.node(n);
        let results: Vec<u32> = node.results.iter().map(|&v| self.result(v)).collect();
        let mut branches = vec![];
        for &r in &node.regions {
            let mut inner = self.region(r);
            let yielded = &self.graph.region(r).results;
            if !sizes.is_empty() {
                inner.push(Step::SetDims {
                    sizes: self.minted(sizes, yielded),
                });
            }
            for (&v, &to) in yielded.iter().zip(&results) {
                let Some(&from) = self.of.get(&v) else { return };
                let bytes = self.memory(v);
                inner.push(Step::Copy { from, to, bytes });
            }
            branches.push(inner);
        }
        let otherwise = branches.pop().unwrap_or_default();
        let then = branches.pop().unwrap_or_default();
        steps.push(Step::If {
            cond: args[0],
            then,
            otherwise,
        });
    }

    /// Lowers a `loop`.
    pub(super) fn run_loop(&mut self, n: NodeId, args: &[u32], op: &LoopOp, steps: &mut Vec<Step>) {
        let (node, carried) = (self.graph.node(n), op.carried);
        let region = self.graph.region(node.regions[0]);
        if !op.sizes.is_empty() {
            steps.push(Step::SetDims {
                sizes: self.minted(&op.sizes, &node.args[2..]),
            });
        }
        let iteration = self.result(region.params[0]);
        let mut inner = vec![];
        for (i, &p) in region.params[1..].iter().enumerate() {
            let b = self.result(p);
            let bytes = self.memory(p);
            steps.push(Step::Copy {
                from: args[2 + i],
                to: b,
                bytes,
            });
            inner.push(b);
        }
        let mut body = self.region(node.regions[0]);
        let Some(out): Option<Vec<u32>> = region
            .results
            .iter()
            .map(|v| self.of.get(v).copied())
            .collect()
        else {
            return;
        };
        // Values that are other carried values, or not computed in the body, are
        // staged, so that carrying one does not overwrite another.
        let mut moves = vec![];
        for i in 0..carried {
            let bytes = self.memory(region.results[1 + i]);
            let base = self.base(out[1 + i]);
            if base == inner[i] {
                continue;
            }
            let from = if inner.contains(&base) {
                let staged = self.buffer(bytes.clone(), Place::Arena);
                body.push(Step::Copy {
                    from: out[1 + i],
                    to: staged,
                    bytes: bytes.clone(),
                });
                staged
            } else {
                out[1 + i]
            };
            moves.push((from, inner[i], bytes));
        }
        let mut scanned = vec![];
        for (k, &v) in node.results[carried..].iter().enumerate() {
            let to = self.result(v);
            scanned.push((
                out[1 + carried + k],
                to,
                self.memory(region.results[1 + carried + k]),
            ));
        }
        for (i, &v) in node.results[..carried].iter().enumerate() {
            let b = self.buffer(
                self.memory(v),
                Place::View {
                    of: inner[i],
                    offset: Dim::ZERO,
                },
            );
            self.of.insert(v, b);
        }
        steps.push(Step::Loop(Loop {
            trip: args[0],
            cond: args[1],
            iteration,
            body_cond: out[0],
            body,
            carried: moves,
            scanned,
            symbol: op.symbol.as_ref().map(|s| s.to_string()),
            sizes: self.minted(&op.sizes, &region.results[1..]),
        }));
    }
}
