//! A work unit's points by one number, which inner axes share.

use super::nest::divide;
use crate::emit_nest::NestEmitter;
use crate::expr::{Index, Node, Size};
use crate::nest::LoopNest;
use kiln_codegen::{Emitter, Val};

/// The inner axes in runs that every access walks as if they were one axis.
pub(super) fn runs(nest: &LoopNest) -> Vec<Vec<u8>> {
    let accesses = nest.accesses();
    let named = |a: u8| {
        let is = |id| matches!(nest.exprs.node(id), Node::Axis(b) if *b == a);
        nest.live().into_iter().any(is)
    };
    let joins = |a: u8, b: u8| {
        let extent = nest.axes[b as usize];
        !named(a) && !named(b) && accesses.iter().all(|(_, i)| follow(i, (a, b), extent))
    };
    let mut runs: Vec<Vec<u8>> = vec![];
    for axis in nest.outer..nest.axes.len() as u8 {
        match runs.last_mut() {
            Some(run) if joins(axis - 1, axis) => run.push(axis),
            _ => runs.push(vec![axis]),
        }
    }
    runs
}

/// Whether an index goes on along axis `a` where axis `b` ends.
fn follow(index: &Index, (a, b): (u8, u8), extent: Size) -> bool {
    match (index.stride(a), index.stride(b), extent) {
        (Size::Const(x), Size::Const(y), Size::Const(n)) => y.checked_mul(n) == Some(x),
        (x, Size::ONE, n) => x == n,
        (x, y, _) => (x, y) == (Size::ZERO, Size::ZERO),
    }
}

/// Binds the inner axes to a point's coordinates.
pub(super) fn bind(e: &mut Emitter, n: &mut NestEmitter, runs: &[Vec<u8>], point: Val) {
    let (zero, one) = (e.i64(0), e.i64(1));
    let mut rest = point;
    for (i, run) in runs.iter().enumerate().rev() {
        let known = (run.iter()).try_fold(1i64, |k, &a| {
            k.checked_mul(n.nest.axes[a as usize].as_const()?)
        });
        let mut own = rest;
        if i > 0 {
            let all = run
                .iter()
                .fold(one, |k, &a| e.mul(k, n.extents[a as usize]));
            (rest, own) = divide(e, rest, all, known);
        }
        for &axis in run {
            n.cx.axes[axis as usize] = Some(zero);
        }
        if let Some(&last) = run.last() {
            n.cx.axes[last as usize] = Some(own);
        }
    }
}
