//! Cases of a tile: code for where conditions on coordinates are known.
//!
//! Padding and joining make loads that are guarded and results that are chosen by
//! where a point is. Lanes of one vector mostly agree, so the choice is made once
//! for many vectors:
//!
//! ```text
//! concat along the vector axis      pad of a tile's row      3x3 windows with padding
//!   for c in 0..64:  copy of a        if the row is inside     if all 9 places are inside
//!   for c in 64..96: copy of b          copy of the row          maxima of 9 plain loads
//!                                     else fill                else of 9 guarded loads
//! ```
//! A condition that is affine in the inner axes holds at all their points if it
//! holds at the corners. What is not decided stays a guard, so nothing here is
//! needed for a right result.

use crate::emit_nest::NestEmitter;
use crate::expr::{ExprId, Node, Size};
use crate::nest::{Effect, LoopNest};
use kiln_codegen::{Elem, Emitter, Ty, Val};
use kiln_ir::{BinaryFn, CompareFn};

/// Pieces of the vector axis, and branches of each, that a kernel may have.
const MOST_CASES: usize = 8;

/// Expressions times cases that a kernel may have.
const MOST_NODES: usize = 600;

/// What is emitted for part of a tile: `(from, to, their distance if known)`.
type Body<'b, 'a> = dyn FnMut(&mut NestEmitter<'a>, &mut Emitter, (Val, Val, Option<i64>)) + 'b;

impl<'a> NestEmitter<'a> {
    /// Emits `body` for a tile's points `low..high` of the vector axis, by cases.
    pub(crate) fn cases(
        &mut self,
        e: &mut Emitter,
        axis: u8,
        (low, high): (Val, Val),
        body: &mut Body<'_, 'a>,
    ) {
        let known = self.nest.axes[axis as usize].as_const();
        let live = self.nest.live().len().max(1);
        let mut left = (MOST_NODES / live).min(MOST_CASES);
        let cuts = cuts(self.nest, axis);
        let (Some(extent), true) = (known, !cuts.is_empty() && cuts.len() < left) else {
            return self.branches(e, axis, &mut left, &mut |s, e| {
                body(s, e, (low, high, known));
            });
        };
        left /= cuts.len() + 1;
        let ends: Vec<i64> = cuts.into_iter().chain([extent]).collect();
        let mut start = 0;
        for end in ends {
            let before = self.cx.assumed.clone();
            for place in places(self.nest, axis) {
                if end <= place.at || start >= place.at {
                    let truth = place.before == (end <= place.at);
                    self.cx.assume(place.condition, truth);
                }
            }
            let (from, to) = (e.i64(start), e.i64(end));
            let part = if extent <= self.schedule.block {
                (from, to, Some(end - start))
            } else {
                (e.max(from, low, false), e.min(to, high, false), None)
            };
            let mut left = left;
            self.cx.push();
            self.branches(e, axis, &mut left, &mut |s, e| body(s, e, part));
            self.cx.pop();
            self.cx.assumed = before;
            start = end;
        }
    }

    /// Emits `body` once for each way that conditions on the tile's place can turn out.
    fn branches(
        &mut self,
        e: &mut Emitter,
        axis: u8,
        left: &mut usize,
        body: &mut dyn FnMut(&mut Self, &mut Emitter),
    ) {
        if *left < 2 {
            return body(self, e);
        }
        let inner = self.nest.axes.len() > self.nest.outer as usize;
        let (conditions, condition) = if inner {
            let found = self.guards(axis);
            if found.is_empty() {
                return body(self, e);
            }
            *left = 0;
            let all = self.hold(e, &found);
            (found, all)
        } else {
            let Some(found) = self.open_condition(axis) else {
                return body(self, e);
            };
            *left -= 1;
            let value = self.cx.value(e, found);
            (vec![found], value)
        };
        for truth in [true, false] {
            let before = self.cx.assumed.clone();
            // That not all hold says nothing of one of them.
            if truth || !inner {
                conditions.iter().for_each(|&c| self.cx.assume(c, truth));
            }
            let mut when = condition;
            if !truth {
                let yes = e.int(Ty::scalar(Elem::I1), 1);
                when = e.op2("arith.xori", when, yes);
            }
            e.if_then(when, |e| {
                self.cx.push();
                self.branches(e, axis, left, body);
                self.cx.pop();
            });
            self.cx.assumed = before;
        }
    }

    /// The first condition that is the same for a whole vector and not known yet.
    fn open_condition(&self, axis: u8) -> Option<ExprId> {
        let mut todo: Vec<ExprId> = self.nest.effects().flat_map(Effect::roots).collect();
        let mut seen = vec![];
        while let Some(id) = todo.pop() {
            if seen.contains(&id) {
                continue;
            }
            seen.push(id);
            let node = self.nest.exprs.node(id);
            let condition = match node {
                Node::Select(c, ..) => Some(*c),
                Node::Load { guard: Some(g), .. } => Some(g.when),
                _ => None,
            };
            match (condition, condition.and_then(|c| self.cx.decided(c))) {
                (Some(c), None) if self.is_uniform(c, axis) => return Some(c),
                (_, Some(truth)) => match node {
                    Node::Select(_, yes, no) => todo.push(if truth { *yes } else { *no }),
                    Node::Load { guard: Some(g), .. } if !truth => todo.push(g.otherwise),
                    _ => {}
                },
                _ => todo.extend(self.nest.exprs.operands(id)),
            }
        }
        None
    }

    /// Whether a condition is on coordinates, the same for all lanes.
    fn is_uniform(&self, condition: ExprId, axis: u8) -> bool {
        let nest = self.nest;
        let data = |id: &ExprId| {
            matches!(
                nest.exprs.node(*id),
                Node::Load { .. } | Node::Acc(..) | Node::Temp(..)
            )
        };
        !nest.exprs.reachable(&[condition]).iter().any(data) && !nest.varies_along(condition, axis)
    }

    /// The comparisons that guard loads, if lanes agree and corners say it all.
    fn guards(&self, axis: u8) -> Vec<ExprId> {
        let nest = self.nest;
        let mut found = vec![];
        for id in nest.live() {
            let Node::Load { guard: Some(g), .. } = nest.exprs.node(id) else {
                continue;
            };
            let mut atoms = vec![];
            conjuncts(nest, g.when, &mut atoms);
            let decide = |&c: &ExprId| match nest.exprs.node(c) {
                Node::Compare(CompareFn::Lt | CompareFn::Ge, x, y) => {
                    is_affine(nest, *x) && is_affine(nest, *y) && self.is_uniform(c, axis)
                }
                _ => false,
            };
            found.extend(
                atoms
                    .into_iter()
                    .filter(|c| self.cx.decided(*c).is_none() && decide(c)),
            );
        }
        found.sort();
        found.dedup();
        found
    }

    /// Whether all conditions hold at all points of the inner axes.
    fn hold(&mut self, e: &mut Emitter, conditions: &[ExprId]) -> Val {
        let mut all = e.int(Ty::scalar(Elem::I1), 1);
        for &c in conditions {
            let axes = (self.nest.outer..self.nest.axes.len() as u8)
                .filter(|&a| self.nest.varies_along(c, a))
                .collect::<Vec<_>>();
            let corners = self.corners(e, c, &axes);
            all = e.op2("arith.andi", all, corners);
        }
        all
    }

    fn corners(&mut self, e: &mut Emitter, condition: ExprId, axes: &[u8]) -> Val {
        let Some((&axis, rest)) = axes.split_first() else {
            return self.cx.value(e, condition);
        };
        let (zero, one) = (e.i64(0), e.i64(1));
        let last = e.sub(self.extents[axis as usize], one);
        let first = self.in_loop(axis, zero, None, |s| s.corners(e, condition, rest));
        let last = self.in_loop(axis, last, None, |s| s.corners(e, condition, rest));
        e.op2("arith.andi", first, last)
    }
}

/// What is true if all parts are.
fn conjuncts(nest: &LoopNest, id: ExprId, out: &mut Vec<ExprId>) {
    match nest.exprs.node(id) {
        Node::Binary(BinaryFn::And, a, b) => {
            conjuncts(nest, *a, out);
            conjuncts(nest, *b, out);
        }
        _ => out.push(id),
    }
}

/// Whether an index is a sum of coordinates times sizes.
fn is_affine(nest: &LoopNest, id: ExprId) -> bool {
    let fixed = |id: ExprId| matches!(nest.exprs.node(id), Node::Const { .. } | Node::Param(_));
    match nest.exprs.node(id) {
        Node::Const { .. } | Node::Param(_) | Node::Axis(_) => true,
        Node::Binary(BinaryFn::Add | BinaryFn::Sub, a, b) => {
            is_affine(nest, *a) && is_affine(nest, *b)
        }
        Node::Binary(BinaryFn::Mul, a, b) => {
            (fixed(*a) && is_affine(nest, *b)) || (fixed(*b) && is_affine(nest, *a))
        }
        _ => false,
    }
}

/// A comparison that changes once along an axis.
struct Place {
    condition: ExprId,
    /// The coordinate from which on it is otherwise.
    at: i64,
    /// What it is before.
    before: bool,
}

/// The comparisons of `axis + n` with known numbers.
fn places(nest: &LoopNest, axis: u8) -> Vec<Place> {
    let number = |id: ExprId| match nest.exprs.node(id) {
        Node::Const { bits, .. } => Some(*bits as i64),
        _ => None,
    };
    let along = |id: ExprId| matches!(nest.exprs.node(id), Node::Axis(a) if *a == axis);
    let offset = |id: ExprId| match nest.exprs.node(id) {
        Node::Binary(BinaryFn::Add, a, b) if along(*b) => number(*a),
        Node::Binary(BinaryFn::Add, a, b) if along(*a) => number(*b),
        _ => along(id).then_some(0),
    };
    let place = |condition: ExprId| match nest.exprs.node(condition) {
        Node::Compare(f @ (CompareFn::Lt | CompareFn::Ge), x, y) => Some(Place {
            condition,
            at: number(*y)?.checked_sub(offset(*x)?)?,
            before: *f == CompareFn::Lt,
        }),
        _ => None,
    };
    nest.live().into_iter().filter_map(place).collect()
}

/// Where along the axis some comparison changes, in order.
fn cuts(nest: &LoopNest, axis: u8) -> Vec<i64> {
    let Size::Const(extent) = nest.axes[axis as usize] else {
        return vec![];
    };
    let mut cuts: Vec<i64> = (places(nest, axis).into_iter().map(|p| p.at))
        .filter(|at| (1..extent).contains(at))
        .collect();
    cuts.sort_unstable();
    cuts.dedup();
    cuts
}
