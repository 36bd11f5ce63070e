//! Keeps what one stage computes and a later one would compute again.
//!
//! ```text
//! before: stage 2: acc1 = sum(exp(x - acc0))      stage 3: store exp(x - acc0) / acc1
//! after:  stage 2: temp0 = exp(x - acc0); acc1 = sum(exp(x - acc0))
//!                                                 stage 3: store temp0 / acc1
//! ```
//! A row temporary costs a store and a load in the first-level cache, so only
//! what takes longer than that is kept; a mean's subtraction is computed twice.

use crate::expr::{ExprError, ExprId, Exprs, Node, Size};
use crate::nest::{Effect, LoopNest, Stage, Temp};
use crate::schedule::op_cost;
use std::collections::{BTreeSet, HashMap};

/// Operations below which computing again is no slower than keeping.
const WORTH_KEEPING: i64 = 12;

/// Elements of a temporary that are too many for a thread's scratch memory.
const TOO_LARGE: i64 = 1 << 24;

/// What a run-time extent is taken for.
const TYPICAL_EXTENT: i64 = 1 << 12;

/// The nest with row temporaries for shared expressions.
pub(crate) fn reuse(nest: &LoopNest) -> Result<LoopNest, ExprError> {
    let mut out = LoopNest {
        exprs: Exprs::new(),
        stages: vec![],
        ..nest.clone()
    };
    // Which expressions of the old nest are which temporaries by now.
    let mut kept: HashMap<ExprId, u16> = HashMap::new();
    for (i, stage) in nest.stages.iter().enumerate() {
        let known = kept.clone();
        let mut fresh = vec![];
        while let Some(id) = shared(nest, i, &kept) {
            let temp = out.temps.len() as u16;
            out.temps.push(Temp {
                dtype: nest.exprs.dtype(id),
                axes: stage.axes.clone(),
            });
            kept.insert(id, temp);
            fresh.push((id, temp));
        }
        let mut copy = Copy {
            nest,
            exprs: &mut out.exprs,
            kept: &known,
            ids: HashMap::new(),
        };
        let mut effects = vec![];
        for (id, temp) in fresh {
            let value = copy.expr(id)?;
            effects.push(Effect::Keep { temp, value });
        }
        for effect in &stage.effects {
            let roots = effect.roots();
            let new: Vec<ExprId> = roots
                .iter()
                .map(|&r| copy.expr(r))
                .collect::<Result<_, _>>()?;
            let map: HashMap<ExprId, ExprId> = roots.into_iter().zip(new).collect();
            effects.push(effect.with_roots(&|id| map[&id]));
        }
        out.stages.push(Stage {
            axes: stage.axes.clone(),
            effects,
        });
    }
    Ok(out)
}

/// The topmost expression of a stage that a later stage needs too and that is
/// worth keeping.
fn shared(nest: &LoopNest, at: usize, kept: &HashMap<ExprId, u16>) -> Option<ExprId> {
    let stage = &nest.stages[at];
    let points = (stage.axes.iter()).fold(1i64, |n, &a| {
        let extent = nest.axes[a as usize].as_const().unwrap_or(TYPICAL_EXTENT);
        n.saturating_mul(extent)
    });
    if stage.axes.is_empty() || points > TOO_LARGE {
        return None;
    }
    let here = reach(nest, stage, kept);
    let later: BTreeSet<ExprId> = (nest.stages[at + 1..].iter())
        .filter(|s| stage.axes.iter().all(|a| s.axes.contains(a)))
        .flat_map(|s| reach(nest, s, kept))
        .collect();
    let scans: Vec<u16> = (nest.effects())
        .filter_map(|e| match e {
            Effect::Scan { acc, .. } => Some(*acc),
            _ => None,
        })
        .collect();
    // Users have greater numbers than what they use.
    here.into_iter().rev().find(|id| {
        later.contains(id)
            && !kept.contains_key(id)
            && !nest
                .exprs
                .reachable(&[*id])
                .iter()
                .any(|x| matches!(nest.exprs.node(*x), Node::Acc(i, _) if scans.contains(i)))
            && work(nest, stage, *id, kept) >= WORTH_KEEPING
    })
}

/// What a stage evaluates; temporaries are leaves.
fn reach(nest: &LoopNest, stage: &Stage, kept: &HashMap<ExprId, u16>) -> BTreeSet<ExprId> {
    let mut todo: Vec<ExprId> = stage.effects.iter().flat_map(Effect::roots).collect();
    let mut seen = BTreeSet::new();
    while let Some(id) = todo.pop() {
        if seen.insert(id) && !kept.contains_key(&id) {
            todo.extend(nest.exprs.operands(id));
        }
    }
    seen
}

/// Operations that an expression takes at every point of a stage.
fn work(nest: &LoopNest, stage: &Stage, root: ExprId, kept: &HashMap<ExprId, u16>) -> i64 {
    let varies = |id: ExprId| stage.axes.iter().any(|&a| nest.varies_along(id, a));
    let mut todo = vec![root];
    let mut seen = BTreeSet::new();
    let mut sum = 0;
    while let Some(id) = todo.pop() {
        if seen.insert(id) && !kept.contains_key(&id) && varies(id) {
            sum += match nest.exprs.node(id) {
                Node::Load { index, .. } if index.strides.contains(&Size::ONE) => 1,
                Node::Load { .. } => 4,
                node => op_cost(node),
            };
            todo.extend(nest.exprs.operands(id));
        }
    }
    sum
}

/// Copies expressions of one stage, reading temporaries where there are some.
struct Copy<'a> {
    nest: &'a LoopNest,
    exprs: &'a mut Exprs,
    kept: &'a HashMap<ExprId, u16>,
    ids: HashMap<ExprId, ExprId>,
}

impl Copy<'_> {
    fn expr(&mut self, root: ExprId) -> Result<ExprId, ExprError> {
        for id in self.nest.exprs.reachable(&[root]) {
            if self.ids.contains_key(&id) {
                continue;
            }
            let new = match self.kept.get(&id) {
                Some(&temp) => self.exprs.temp(temp, self.nest.exprs.dtype(id))?,
                None => {
                    let node = self.nest.exprs.node(id).with_operands(&|x| self.ids[&x]);
                    self.exprs.add(node)?
                }
            };
            self.ids.insert(id, new);
        }
        Ok(self.ids[&root])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::expr::Index;
    use crate::nest::Reducer;
    use kiln_ir::{BinaryFn, DType, UnaryFn};

    #[test]
    fn softmax_keeps_its_exponentials_and_not_its_differences() {
        let mut e = Exprs::new();
        let row = Index::strided([Size::Const(64), Size::ONE]);
        let x = e.load(0, DType::F32, row.clone()).unwrap();
        let top = e.acc(0, DType::F32).unwrap();
        let less = e.binary(BinaryFn::Sub, x, top).unwrap();
        let exp = e.unary(UnaryFn::Exp, less).unwrap();
        let total = e.acc(1, DType::F32).unwrap();
        let y = e.binary(BinaryFn::Div, exp, total).unwrap();
        let stage = |effect| Stage {
            axes: vec![1],
            effects: vec![effect],
        };
        let nest = LoopNest {
            exprs: e,
            args: vec![DType::F32; 2],
            params: 0,
            axes: vec![Size::Const(8), Size::Const(64)],
            outer: 1,
            temps: vec![],
            stages: vec![
                stage(Effect::Reduce {
                    acc: 0,
                    by: Reducer::Max,
                    value: x,
                }),
                stage(Effect::Reduce {
                    acc: 1,
                    by: Reducer::Sum,
                    value: exp,
                }),
                stage(Effect::Store {
                    arg: 1,
                    index: row,
                    value: y,
                    update: None,
                    when: None,
                }),
            ],
        };
        let out = reuse(&nest).unwrap();
        out.check().unwrap();
        assert_eq!(out.temps.len(), 1);
        assert!(matches!(out.stages[1].effects[0], Effect::Keep { .. }));
        let last = out.exprs.reachable(&out.stages[2].effects[0].roots());
        let nodes: Vec<&Node> = last.iter().map(|&id| out.exprs.node(id)).collect();
        assert!(
            !nodes.iter().any(|n| matches!(n, Node::Load { .. })),
            "{nodes:?}"
        );
        assert_eq!(reuse(&out).unwrap(), out);
    }
}
