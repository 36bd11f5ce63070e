//! What a loop nest must satisfy before it is emitted:
//!
//! - parameters, buffers, axes and temporaries that are named exist;
//! - types agree: buffers with loads and stores, accumulators and temporaries
//!   with their readers, conditions are bool, positions i64;
//! - accumulators and temporaries are filled once, before they are read;
//! - a stage uses the inner axes that it loops over and no others;
//! - different points store to different elements, unless a gathered index or
//!   an update says that they may meet.

use crate::expr::{ExprId, Index, Node, Size};
use crate::nest::{Effect, LoopNest, SpecError, Stage};
use kiln_ir::DType;
use std::collections::BTreeMap;

impl LoopNest {
    /// Checks that every reference exists and every type agrees.
    pub fn check(&self) -> Result<(), SpecError> {
        if self.outer as usize > self.axes.len() {
            return fail(format!("{} outer axes of {}", self.outer, self.axes.len()));
        }
        self.axes.iter().try_for_each(|&s| self.check_size(s))?;
        let lists = (self.temps.iter().map(|t| &t.axes)).chain(self.stages.iter().map(|s| &s.axes));
        for axes in lists {
            let fits = |&a: &u8| self.is_inner(a) && (a as usize) < self.axes.len();
            let distinct = axes.iter().enumerate().all(|(i, a)| !axes[..i].contains(a));
            if !axes.iter().all(fits) || !distinct {
                return fail(format!("{axes:?} are not distinct inner axes"));
            }
        }
        let mut seen = Seen::default();
        for stage in &self.stages {
            // What a stage accumulates is known after it; what it scans, at once.
            let mut pending = vec![];
            for effect in &stage.effects {
                self.check_reads(stage, effect, &seen)?;
                pending.extend(self.check_effect(stage, effect, &mut seen)?);
            }
            for (acc, t) in pending {
                seen.fill(acc, t)?;
            }
        }
        Ok(())
    }

    /// The effect's own rules; gives the accumulators that it fills.
    fn check_effect(
        &self,
        stage: &Stage,
        effect: &Effect,
        seen: &mut Seen,
    ) -> Result<Vec<(u16, DType)>, SpecError> {
        match effect {
            Effect::Reduce { acc, value, .. } => return Ok(vec![(*acc, self.exprs.dtype(*value))]),
            Effect::Scan { acc, value, .. } => seen.fill(*acc, self.exprs.dtype(*value))?,
            Effect::ArgReduce {
                best,
                at,
                value,
                position,
                ..
            } => {
                if self.exprs.dtype(*position) != DType::I64 {
                    return fail("a position is not i64".into());
                }
                return Ok(vec![(*best, self.exprs.dtype(*value)), (*at, DType::I64)]);
            }
            Effect::Keep { temp, value } => {
                let Some(t) = self.temps.get(*temp as usize) else {
                    return fail(format!("temporary {temp} of {}", self.temps.len()));
                };
                if t.dtype != self.exprs.dtype(*value) {
                    return fail(format!("temporary {temp} holds {}", t.dtype));
                }
                if !t.axes.iter().all(|a| stage.axes.contains(a)) {
                    return fail(format!("temporary {temp} spans axes outside its stage"));
                }
                if seen.kept.contains(temp) {
                    return fail(format!("temporary {temp} is filled twice"));
                }
                seen.kept.push(*temp);
            }
            Effect::Store {
                arg,
                index,
                value,
                update,
                when,
            } => {
                self.check_index(stage, *arg, index)?;
                let (have, want) = (self.exprs.dtype(*value), self.args[*arg as usize]);
                if have != want {
                    return fail(format!("{have} is stored to a buffer of {want}"));
                }
                if when.is_some_and(|w| self.exprs.dtype(w) != DType::Bool) {
                    return fail("a store's condition is not bool".into());
                }
                let walked: Vec<u8> = (0..self.outer).chain(stage.axes.iter().copied()).collect();
                let extent = |a: u8| self.axes[a as usize].as_const();
                // Where an axis is empty there are no points, and no strides either.
                let empty = walked.iter().any(|&a| extent(a) == Some(0));
                let mut long = walked
                    .into_iter()
                    .filter(|&a| extent(a).is_some_and(|n| n > 1));
                let meets = long.find(|&a| !empty && index.stride(a) == Size::ZERO);
                if let (Some(a), true, None) = (meets, index.gathers.is_empty(), update) {
                    return fail(format!("points along axis {a} store to one element"));
                }
            }
        }
        Ok(vec![])
    }

    fn check_reads(&self, stage: &Stage, effect: &Effect, seen: &Seen) -> Result<(), SpecError> {
        let roots = effect.roots();
        if let Some(ExprId(i)) = roots.iter().find(|r| r.0 as usize >= self.exprs.len()) {
            return fail(format!("expression {i} of {}", self.exprs.len()));
        }
        for id in self.exprs.reachable(&roots) {
            match self.exprs.node(id) {
                Node::Acc(i, t) if seen.accs.get(i) != Some(t) => {
                    return fail(format!("accumulator {i} has no {t} value yet"));
                }
                Node::Temp(i, t) => {
                    let here = self.temps.get(*i as usize).is_some_and(|temp| {
                        temp.dtype == *t && temp.axes.iter().all(|a| stage.axes.contains(a))
                    });
                    if !here || !seen.kept.contains(i) {
                        return fail(format!("temporary {i} has no {t} value here"));
                    }
                }
                Node::Param(i) => self.check_size(Size::Param(*i))?,
                Node::Axis(a) if self.is_inner(*a) && !stage.axes.contains(a) => {
                    return fail(format!("axis {a} is not looped over here"));
                }
                Node::Load {
                    arg, dtype, index, ..
                } => {
                    self.check_index(stage, *arg, index)?;
                    if self.args[*arg as usize] != *dtype {
                        return fail(format!("buffer {arg} does not hold {dtype}"));
                    }
                }
                Node::Acc(..)
                | Node::Axis(_)
                | Node::Const { .. }
                | Node::Unary(..)
                | Node::Binary(..)
                | Node::Compare(..)
                | Node::Select(..)
                | Node::Cast(..) => {}
            }
        }
        Ok(())
    }

    fn check_index(&self, stage: &Stage, arg: u16, index: &Index) -> Result<(), SpecError> {
        if arg as usize >= self.args.len() {
            return fail(format!("buffer {arg} of {}", self.args.len()));
        }
        if index.strides.len() > self.axes.len() {
            return fail("an index strides along an axis that does not exist".into());
        }
        let own = index.strides.iter().chain([&index.offset]).copied();
        let gathered = index.gathers.iter().flat_map(|g| [g.stride, g.extent]);
        own.chain(gathered).try_for_each(|s| self.check_size(s))?;
        let strays = (self.outer..self.axes.len() as u8)
            .find(|a| index.stride(*a) != Size::ZERO && !stage.axes.contains(a));
        match strays {
            Some(a) => fail(format!("axis {a} is not looped over here")),
            None => Ok(()),
        }
    }

    fn check_size(&self, s: Size) -> Result<(), SpecError> {
        match s {
            Size::Param(i) if i >= self.params => fail(format!("parameter {i} of {}", self.params)),
            Size::Param(_) | Size::Const(_) => Ok(()),
        }
    }
}

/// What earlier effects have filled.
#[derive(Default)]
struct Seen {
    accs: BTreeMap<u16, DType>,
    kept: Vec<u16>,
}

impl Seen {
    fn fill(&mut self, acc: u16, t: DType) -> Result<(), SpecError> {
        match self.accs.insert(acc, t) {
            Some(_) => fail(format!("accumulator {acc} is filled twice")),
            None => Ok(()),
        }
    }
}

fn fail<T>(text: String) -> Result<T, SpecError> {
    Err(SpecError(text))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::expr::Exprs;
    use crate::nest::Reducer;

    fn c(n: i64) -> Size {
        Size::Const(n)
    }

    /// A row sum whose effects a test can spoil.
    fn row_sum(spoil: impl FnOnce(&mut LoopNest)) -> Result<(), SpecError> {
        let mut exprs = Exprs::new();
        let x = exprs.load(0, DType::F32, Index::strided([c(8), c(1)]))?;
        let sum = exprs.acc(0, DType::F32)?;
        let reduce = Effect::Reduce {
            acc: 0,
            by: Reducer::Sum,
            value: x,
        };
        let store = Effect::Store {
            arg: 1,
            index: Index::strided([c(1)]),
            value: sum,
            update: None,
            when: None,
        };
        let stage = |axes: &[u8], effect| Stage {
            axes: axes.to_vec(),
            effects: vec![effect],
        };
        let mut nest = LoopNest {
            exprs,
            args: vec![DType::F32; 2],
            params: 0,
            axes: vec![c(4), c(8)],
            outer: 1,
            temps: vec![],
            stages: vec![stage(&[1], reduce), stage(&[], store)],
        };
        spoil(&mut nest);
        nest.check()
    }

    #[test]
    fn each_rule_is_enforced() {
        row_sum(|_| {}).unwrap();
        type Case = (&'static str, fn(&mut LoopNest));
        let cases: [Case; 8] = [
            ("has no f32 value yet", |n| n.stages.reverse()),
            ("distinct inner axes", |n| n.stages[0].axes = vec![0]),
            ("distinct inner axes", |n| n.stages[0].axes = vec![1, 1]),
            ("not looped over", |n| n.stages[0].axes = vec![]),
            ("store to one element", |n| n.stages[1].axes = vec![1]),
            ("does not hold", |n| n.args[0] = DType::F16),
            ("stored to a buffer", |n| n.args[1] = DType::F16),
            ("filled twice", |n| {
                let again = n.stages[0].clone();
                n.stages.push(again);
            }),
        ];
        for (what, spoil) in cases {
            let error = row_sum(spoil).unwrap_err();
            assert!(error.0.contains(what), "{error} for {what}");
        }
    }
}
