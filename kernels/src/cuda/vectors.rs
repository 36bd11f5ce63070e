//! Elementwise nests: a thread for a few neighbours along the last axis, which it reads
//! and writes by one instruction where they lie in a run.

use super::nest::divide;
use crate::Size;
use crate::emit_nest::NestEmitter;
use crate::expr::{ExprId, Index, Node, compute_dtype};
use crate::lower::{convert, memory_elem};
use crate::nest::{Effect, LoopNest};
use kiln_codegen::emit::Cmp;
use kiln_codegen::{Elem, Emitter, Ty, Val};
use kiln_ir::DType;
use std::collections::HashMap;

/// Bytes that one instruction moves at most.
const MOST_BYTES: i64 = 16;

/// Neighbours that a thread computes at most.
const MOST_RUN: i64 = 8;

/// How many neighbours along the last axis a thread computes.
pub(super) fn run(nest: &LoopNest) -> u32 {
    let (outer, axes) = (nest.outer as usize, &nest.axes);
    let plain = nest.effects().all(|e| {
        matches!(
            e,
            Effect::Store {
                update: None,
                when: None,
                ..
            }
        )
    });
    if outer == 0 || outer != axes.len() || !plain {
        return 1;
    }
    let last = outer as u8 - 1;
    let runs: Vec<(u16, Index)> = (nest.accesses().into_iter())
        .filter(|(_, i)| i.gathers.is_empty() && i.stride(last) == Size::ONE)
        .collect();
    let widest = (runs.iter())
        .map(|(arg, _)| element_bytes(nest.args[*arg as usize]))
        .max();
    let Some(widest) = widest else { return 1 };
    let mut run = (MOST_BYTES / widest).min(MOST_RUN);
    let multiple = |s: Size, run: i64| matches!(s, Size::Const(c) if c % run == 0);
    while run > 1 {
        let rows = outer == 1 || multiple(axes[last as usize], run);
        let starts = runs
            .iter()
            .all(|(_, i)| multiple(i.offset, run) && (0..last).all(|a| multiple(i.stride(a), run)));
        let enough = axes[last as usize].as_const().is_none_or(|n| n >= run);
        if rows && starts && enough {
            return run as u32;
        }
        run /= 2;
    }
    1
}

fn element_bytes(t: DType) -> i64 {
    i64::from(stored(memory_elem(t)).bits() / 8)
}

/// The integer type of an element's bits in memory, where it is not read as itself.
pub(super) fn stored(elem: Elem) -> Elem {
    match elem {
        Elem::I1 => Elem::I8,
        Elem::F16 | Elem::BF16 => Elem::I16,
        other => other,
    }
}

/// Where runs are: loads by expression, stores by effect.
struct Runs {
    loads: Vec<(ExprId, u16, Index)>,
    stores: Vec<(u16, Index, ExprId)>,
    others: Vec<(u16, Index, ExprId)>,
}

impl Runs {
    fn of(nest: &LoopNest, last: u8) -> Runs {
        let lies = |i: &Index| i.gathers.is_empty() && i.stride(last) == Size::ONE;
        let loads = (nest.live().into_iter())
            .filter_map(|id| match nest.exprs.node(id) {
                Node::Load {
                    arg,
                    index,
                    guard: None,
                    ..
                } if lies(index) => Some((id, *arg, index.clone())),
                _ => None,
            })
            .collect();
        let (mut stores, mut others) = (vec![], vec![]);
        for effect in nest.effects() {
            if let Effect::Store {
                arg, index, value, ..
            } = effect
            {
                let to = if lies(index) {
                    &mut stores
                } else {
                    &mut others
                };
                to.push((*arg, index.clone(), *value));
            }
        }
        Runs {
            loads,
            stores,
            others,
        }
    }

    /// The buffers that runs are read from or written to.
    fn args(&self) -> Vec<u16> {
        let loads = self.loads.iter().map(|l| l.1);
        let mut args: Vec<u16> = loads.chain(self.stores.iter().map(|s| s.0)).collect();
        args.sort();
        args.dedup();
        args
    }
}

/// Computes run number `unit` of `run` neighbours.
pub(super) fn points(n: &mut NestEmitter, e: &mut Emitter, unit: Val, run: u32) {
    let last = n.nest.outer as usize - 1;
    let known = n.nest.axes[last].as_const();
    let (one, width) = (e.i64(1), e.i64(i64::from(run)));
    let extent = n.extents[last];
    let less = e.i64(i64::from(run) - 1);
    let up = e.add(extent, less);
    let runs = e.op2("arith.divui", up, width);
    let all = (n.extents[..last].iter()).fold(runs, |p, &s| e.mul(p, s));
    let out = e.cmp(Cmp::Ge, unit, all, false);
    let out = e.pred(out);
    e.kernel_mut().exit_if(out);
    let mut rest = unit;
    let mut place = rest;
    if last > 0 {
        let some = e.max(runs, one, false);
        let known = known.map(|k| k.div_euclid(i64::from(run)) + i64::from(k % i64::from(run) > 0));
        (rest, place) = divide(e, rest, some, known);
        for axis in (1..last).rev() {
            let some = e.max(n.extents[axis], one, false);
            let (q, r) = divide(e, rest, some, n.nest.axes[axis].as_const());
            n.cx.axes[axis] = Some(r);
            rest = q;
        }
        n.cx.axes[0] = Some(rest);
    }
    let first = e.mul(place, width);
    let end = e.add(first, width);
    let end = e.min(end, extent, false);
    neighbours(n, e, (first, end), run, None);
}

/// Computes the points `first .. end` of the last axis, at most `run` of them; the outer
/// axes are bound. `sums` is where the points' values of accumulator 0 lie in a run, at a
/// multiple of as many bytes as a run takes.
pub(super) fn neighbours(
    n: &mut NestEmitter,
    e: &mut Emitter,
    (first, end): (Val, Val),
    run: u32,
    sums: Option<(Val, Elem)>,
) {
    let last = n.nest.outer as usize - 1;
    let kinds = Runs::of(n.nest, last as u8);
    let each = |e: &mut Emitter, n: &mut NestEmitter| {
        let one = e.i64(1);
        e.for_loop(first, end, one, &[], |e, i, _| {
            n.in_loop(last as u8, i, None, |n| {
                if let Some((at, elem)) = sums {
                    let skip = e.sub(i, first);
                    let at = e.offset(at, skip, elem);
                    let sum = e.load(at, Ty::scalar(elem));
                    n.cx.accs.insert(0, sum);
                }
                n.stages(e);
                n.cx.accs.clear();
            });
            vec![]
        });
        vec![]
    };
    if run == 1 {
        each(e, n);
        return;
    }
    let whole = whole(n, e, &kinds, (first, end), run);
    let all = |e: &mut Emitter, n: &mut NestEmitter| {
        n.cx.push();
        together(n, e, &kinds, first, run, sums);
        n.cx.pop();
        vec![]
    };
    e.either(whole, &[], n, all, each);
}

/// Whether a run is whole, and every buffer starts where runs may.
fn whole(
    n: &mut NestEmitter,
    e: &mut Emitter,
    kinds: &Runs,
    (first, end): (Val, Val),
    run: u32,
) -> Val {
    let mut bits = e.i64(0);
    for arg in kinds.args() {
        let bytes = element_bytes(n.nest.args[arg as usize]) * i64::from(run);
        let mask = e.i64(bytes - 1);
        let r = e.long(n.cx.args[arg as usize]);
        let address = e.from_long(r, Elem::I64);
        let low = e.op2("arith.andi", address, mask);
        bits = e.op2("arith.ori", bits, low);
    }
    // A sum's run may begin anywhere: those of a group of filters do.
    let mask = e.i64(i64::from(run) - 1);
    let low = e.op2("arith.andi", first, mask);
    bits = e.op2("arith.ori", bits, low);
    let zero = e.i64(0);
    let aligned = e.cmp(Cmp::Eq, bits, zero, false);
    let width = e.i64(i64::from(run));
    let after = e.add(first, width);
    let inside = e.cmp(Cmp::Le, after, end, false);
    e.op2("arith.andi", aligned, inside)
}

fn together(
    n: &mut NestEmitter,
    e: &mut Emitter,
    kinds: &Runs,
    first: Val,
    run: u32,
    sums: Option<(Val, Elem)>,
) {
    let last = n.nest.outer as usize - 1;
    let roots: Vec<ExprId> = n.nest.effects().flat_map(Effect::roots).collect();
    // What all of them share is computed once.
    n.cx.axes[last] = None;
    n.cx.hoist(e, &roots);
    n.cx.axes[last] = Some(first);
    let mut read: HashMap<ExprId, Vec<Val>> = HashMap::new();
    for (id, arg, index) in &kinds.loads {
        let elem = stored(memory_elem(n.nest.args[*arg as usize]));
        let at = n.cx.address(e, *arg, elem, index);
        read.insert(*id, e.load_few(at, elem, run));
    }
    let sums = sums.map(|(at, elem)| e.load_few(at, elem, run));
    let mut written: Vec<Vec<Val>> = vec![vec![]; kinds.stores.len()];
    for j in 0..run {
        let skip = e.i64(i64::from(j));
        let here = e.add(first, skip);
        n.cx.axes[last] = Some(here);
        n.cx.push();
        if let Some(sums) = &sums {
            n.cx.accs.insert(0, sums[j as usize]);
        }
        n.cx.ready = read.iter().map(|(&id, v)| (id, v[j as usize])).collect();
        for ((arg, _, value), out) in kinds.stores.iter().zip(&mut written) {
            let t = n.nest.args[*arg as usize];
            let x = n.cx.value(e, *value);
            let x = convert(e, x, compute_dtype(t), t);
            out.push(e.as_stored(x));
        }
        for (arg, index, value) in &kinds.others {
            let t = n.nest.args[*arg as usize];
            let x = n.cx.value(e, *value);
            n.cx.store(e, *arg, t, index, x, None);
        }
        n.cx.pop();
    }
    n.cx.ready.clear();
    n.cx.accs.clear();
    n.cx.axes[last] = Some(first);
    for ((arg, index, _), values) in kinds.stores.iter().zip(&written) {
        let elem = stored(memory_elem(n.nest.args[*arg as usize]));
        let at = n.cx.address(e, *arg, elem, index);
        e.store_few(values, at);
    }
}
