//! Stores that may meet, by many threads: a thread for each coordinate that cannot meet
//! another one's, and for each share of what is gathered; what remains it walks in order.
//!
//! ```text
//! y[ids[i], j] += x[i, j]     threads (j, share), each:
//!   for i in order: if ids[i] % shares == share: y[ids[i], j] += x[i, j]
//! ```
//! An element's place is a number whose digits are the axes' own coordinates and what is
//! gathered, so points with another coordinate along an axis, or another share, never meet;
//! whether strides and extents make it so is the form's condition. Each element sees its
//! points in the order of one thread, and so the same bits.

use super::nest::{divide, long, open};
use super::{GpuKernel, ask, dim, entry, entry_of};
use crate::emit_nest::{Accs, NestEmitter};
use crate::expr::{Index, Node, Size};
use crate::lower::is_unsigned;
use crate::nest::{Effect, LoopNest, Stage};
use kiln_codegen::emit::Cmp;
use kiln_codegen::{Elem, Emitter, GpuTarget, Val};
use kiln_ir::{DType, Dim, Tri};

/// Threads of a block.
const THREADS: i64 = 128;

/// Threads that a chip wants, of which shares make up what axes lack; where their number is
/// open, so many shares.
const WANTED: i64 = 32 << 10;
const SHARES: i64 = 16;

/// Shares at most: every thread looks at all points.
const MOST_SHARES: i64 = 1024;

/// Points whose operands a thread reads before it stores the first: loads do not overtake
/// stores that may be to the same place.
const AHEAD: i64 = 8;

/// How a store's points are shared out.
struct Plan<'a> {
    stage: &'a Stage,
    index: &'a Index,
    /// Axes with threads of their own, and those that are walked.
    apart: Vec<u8>,
    walked: Vec<u8>,
    /// Shares of what is gathered, a power of two.
    shares: i64,
    when: Vec<(Dim, Dim)>,
}

/// The form of many threads; none where there is nothing to share out, or strides say that
/// points meet.
pub(super) fn emit(nest: &LoopNest, name: &str, target: &GpuTarget) -> Option<GpuKernel> {
    let plan = plan(nest)?;
    let name = match plan.when.is_empty() {
        true => name.to_string(),
        false => entry_of(name, "apart"),
    };
    let (body, _) = entry(&name, target, THREADS as u32, |e| write(e, nest, &plan));
    let units = (plan.apart.iter()).fold(plan.shares.into(), |n: Dim, &a| {
        n * dim(nest.axes[a as usize])
    });
    Some(GpuKernel {
        entry: name,
        body,
        when: plan.when,
        grid: [units.ceil_div(&THREADS.into()), Dim::ONE, Dim::ONE],
        block: [THREADS as u32, 1, 1],
        cluster: [1; 3],
        ..GpuKernel::default()
    })
}

fn plan(nest: &LoopNest) -> Option<Plan<'_>> {
    let [stage] = &nest.stages[..] else {
        return None;
    };
    let [Effect::Store { arg, index, .. }] = &stage.effects[..] else {
        return None;
    };
    let read = |id| matches!(nest.exprs.node(id), Node::Load { arg: a, .. } if a == arg);
    if !stage.axes.is_empty() || nest.live().into_iter().any(read) {
        return None;
    }
    let (apart, walked): (Vec<u8>, Vec<u8>) =
        (0..nest.outer).partition(|&a| index.stride(a) != Size::ZERO);
    let known = |axes: &[u8]| {
        axes.iter().try_fold(1i64, |n, &a| {
            n.checked_mul(nest.axes[a as usize].as_const()?)
        })
    };
    let shares = match known(&apart) {
        _ if index.gathers.is_empty() => 1,
        Some(n) => (WANTED / n.max(1)).clamp(1, MOST_SHARES),
        None => SHARES,
    };
    // A share of no more than a few points is not worth looking at all of them.
    let most = known(&walked).map_or(MOST_SHARES, |n| (n / AHEAD).max(1));
    let shares = 1 << shares.min(most).ilog2();
    if apart.is_empty() && shares == 1 {
        return None;
    }
    let when = digits(nest, index)?;
    Some(Plan {
        stage,
        index,
        apart,
        walked,
        shares,
        when,
    })
}

/// What makes an index a number of digits: of any two terms, one's whole extent lies within
/// a step of the other. None where that can never be.
fn digits(nest: &LoopNest, index: &Index) -> Option<Vec<(Dim, Dim)>> {
    let own = (nest.axes.iter().enumerate()).map(|(a, &n)| (index.stride(a as u8), n));
    let gathered = index.gathers.iter().map(|g| (g.stride, g.extent));
    let terms: Vec<(Dim, Dim)> = (own.chain(gathered))
        .filter(|&(stride, extent)| stride != Size::ZERO && extent != Size::ONE)
        .map(|(stride, extent)| match stride {
            Size::Const(c) => (c.checked_abs().map(Dim::from), extent),
            Size::Param(_) => (Some(dim(stride)), extent),
        })
        .map(|(stride, extent)| Some((stride?, dim(extent))))
        .collect::<Option<_>>()?;
    let mut when = vec![];
    for (i, (stride, extent)) in terms.iter().enumerate() {
        ask(&mut when, &Dim::ONE, stride)?;
        let whole = stride.clone() * extent.clone();
        for (other, other_extent) in &terms[..i] {
            let other_whole = other.clone() * other_extent.clone();
            match (whole.le(other), other_whole.le(stride)) {
                (Tri::Yes, _) | (_, Tri::Yes) => {}
                (Tri::No, Tri::No) => return None,
                (Tri::No, _) => when.push((other_whole, stride.clone())),
                (_, Tri::No) => when.push((whole.clone(), other.clone())),
                _ => {
                    let over = whole.clone() - other.clone();
                    let other_over = other_whole - stride.clone();
                    when.push((over.minimum(&other_over), Dim::ZERO));
                }
            }
        }
    }
    Some(when)
}

fn write(e: &mut Emitter, nest: &LoopNest, plan: &Plan) {
    let (mut n, _) = open(e, nest);
    let (thread, block) = (e.kernel_mut().thread(), e.kernel_mut().block(0));
    let (thread, block) = (long(e, thread), long(e, block));
    let (size, one, shares) = (e.i64(THREADS), e.i64(1), e.i64(plan.shares));
    let unit = e.mul(block, size);
    let unit = e.add(unit, thread);
    let all = |e: &mut Emitter, n: &NestEmitter, axes: &[u8]| {
        (axes.iter()).fold(one, |p, &a| e.mul(p, n.extents[a as usize]))
    };
    let places = all(e, &n, &plan.apart);
    let units = e.mul(places, shares);
    let out = e.cmp(Cmp::Ge, unit, units, false);
    let out = e.pred(out);
    e.kernel_mut().exit_if(out);
    // Neighbouring threads have neighbouring places.
    let (share, place) = match plan.shares {
        1 => (unit, unit),
        _ => divide(e, unit, places, None),
    };
    coordinates(e, &mut n, &plan.apart, place);
    let count = all(e, &n, &plan.walked);
    let roots: Vec<_> = plan.stage.effects.iter().flat_map(Effect::roots).collect();
    n.cx.hoist(e, &roots);
    let (zero, ahead, mask) = (e.i64(0), e.i64(AHEAD), e.i64(-AHEAD));
    let whole = e.op2("arith.andi", count, mask);
    e.for_loop(zero, whole, ahead, &[], |e, at, _| {
        several(e, &mut n, plan, (at, AHEAD), share);
        vec![]
    });
    e.for_loop(whole, count, one, &[], |e, at, _| {
        several(e, &mut n, plan, (at, 1), share);
        vec![]
    });
}

/// Binds axes to the coordinates of a point among theirs, the last one's fastest.
fn coordinates(e: &mut Emitter, n: &mut NestEmitter, axes: &[u8], point: Val) {
    let mut rest = point;
    for (i, &axis) in axes.iter().enumerate().rev() {
        let extent = n.extents[axis as usize];
        let own = match i {
            0 => rest,
            _ => {
                let (q, r) = divide(e, rest, extent, n.nest.axes[axis as usize].as_const());
                rest = q;
                r
            }
        };
        n.cx.axes[axis as usize] = Some(own);
    }
}

/// A few points in order: what they need is read first, as far as it is needed whatever
/// the share is.
fn several<'a>(
    e: &mut Emitter,
    n: &mut NestEmitter<'a>,
    plan: &Plan<'a>,
    (first, count): (Val, i64),
    share: Val,
) {
    let read: Vec<_> = (0..count)
        .map(|i| {
            let skip = e.i64(i);
            let at = e.add(first, skip);
            coordinates(e, n, &plan.walked, at);
            n.cx.push();
            let own = match plan.shares {
                1 => {
                    for root in plan.stage.effects.iter().flat_map(Effect::roots) {
                        n.cx.value(e, root);
                    }
                    None
                }
                _ => Some(is_own(e, n, plan, share)),
            };
            (at, own, n.cx.leave())
        })
        .collect();
    for (at, own, scope) in read {
        coordinates(e, n, &plan.walked, at);
        n.cx.enter(scope);
        let store = |e: &mut Emitter, n: &mut NestEmitter<'a>| {
            n.cx.push();
            n.loops(e, plan.stage, &[], &Accs::of(plan.stage), &[]);
            n.cx.pop();
        };
        match own {
            None => store(e, n),
            Some(own) => e.if_then(own, |e| store(e, n)),
        }
        n.cx.pop();
    }
    for &axis in &plan.walked {
        n.cx.axes[axis as usize] = None;
    }
}

/// Whether what a point gathers is of the thread's share. What is out of range is of one,
/// too, which reports it.
fn is_own(e: &mut Emitter, n: &mut NestEmitter, plan: &Plan, share: Val) -> Val {
    let zero = e.i64(0);
    let sum = plan.index.gathers.iter().fold(zero, |sum, g| {
        let t = n.nest.exprs.dtype(g.index);
        let raw = n.cx.value(e, g.index);
        let i = e.cast(raw, Elem::I64, is_unsigned(t), false);
        let extent = n.cx.size(e, g.extent);
        let negative = e.cmp(Cmp::Lt, i, zero, false);
        let from_end = e.add(i, extent);
        let i = match t {
            DType::U64 => i,
            _ => e.select(negative, from_end, i),
        };
        e.add(sum, i)
    });
    let mask = e.i64(plan.shares - 1);
    let own = e.op2("arith.andi", sum, mask);
    e.cmp(Cmp::Eq, own, share, false)
}
