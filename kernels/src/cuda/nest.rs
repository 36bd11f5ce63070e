//! Loop nests on a GPU.
//!
//! - A nest whose inner axis lies in runs (norms, softmax): a warp or a block for each
//!   work unit, its points dealt out to threads, reductions by shuffles.
//! - Another: a thread for each work unit; without inner axes, for a few neighbouring
//!   ones that it reads and writes 16 bytes at a time ([`super::vectors`]).
//! - Few rows or columns of many points: parts of them ([`super::parts`]).
//! - Running reductions along long rows: blocks of threads ([`super::scan`]).
//! - Stores that may meet: a thread for what cannot ([`super::apart`]), else one for all.

use super::apart;
use super::group::{Group, WARP};
use super::parts::{self, Cut};
use super::scan;
use super::vectors;
use super::{GpuKernel, Ports, THREADS, dim, entry};
use crate::Size;
use crate::emit_nest::NestEmitter;
use crate::lower::ExprCx;
use crate::nest::{Effect, LoopNest, temp_element_bytes};
use crate::schedule::Schedule;
use kiln_codegen::emit::Cmp;
use kiln_codegen::{Elem, Emitter, GpuTarget, Ty, Val};
use kiln_ir::Dim;

/// Points of an axis up to which one warp serves a work unit.
const WARP_POINTS: i64 = 1024;

/// Bytes of shared memory that row temporaries of a block may take.
const MOST_TEMPS: i64 = 32 << 10;

/// How a nest is dealt out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Deal {
    /// A group of this many threads for each work unit, along this inner axis.
    Group { threads: u32, axis: u8 },
    /// A thread for this many neighbouring work units.
    Thread { run: u32 },
    /// One thread for everything.
    Serial,
}

/// The forms of a nest, the general one last.
pub(super) fn emit(nest: &LoopNest, name: &str, target: &GpuTarget) -> Vec<GpuKernel> {
    let mut forms = vec![];
    if nest.schedule().serial
        && let Some(form) = apart::emit(nest, name, target)
    {
        if form.when.is_empty() {
            return vec![form];
        }
        forms.push(form);
    }
    forms.extend(parts::emit(nest, Cut::Rows, name, target));
    // Where threads have neighbouring columns; a row's points are dealt out to a block.
    if matches!(deal(nest), Deal::Thread { .. }) {
        forms.extend(parts::emit(nest, Cut::Columns, name, target));
    }
    forms.extend(scan::emit(nest, name, target));
    forms.push(general(nest, name, target));
    forms
}

/// The form that serves every launch.
fn general(nest: &LoopNest, name: &str, target: &GpuTarget) -> GpuKernel {
    let deal = deal(nest);
    let outer = &nest.axes[..nest.outer as usize];
    let points = |axes: &[Size]| axes.iter().fold(Dim::ONE, |n, &s| n * dim(s));
    let blocks = match deal {
        Deal::Group { threads, .. } => points(outer).ceil_div(&i64::from(THREADS / threads).into()),
        Deal::Thread { run: 1 } => points(outer).ceil_div(&i64::from(THREADS).into()),
        Deal::Thread { run } => {
            let (last, rest) = outer.split_last().unwrap_or((&Size::ONE, &[]));
            let runs = points(rest) * dim(*last).ceil_div(&i64::from(run).into());
            runs.ceil_div(&i64::from(THREADS).into())
        }
        Deal::Serial => points(outer).minimum(&Dim::ONE),
    };
    let (body, _) = entry(name, target, THREADS, |e| write(e, nest, deal));
    GpuKernel {
        entry: name.to_string(),
        body,
        scratch: scratch(nest, deal, &blocks),
        grid: [blocks, Dim::ONE, Dim::ONE],
        block: [THREADS, 1, 1],
        cluster: [1; 3],
        ..GpuKernel::default()
    }
}

fn deal(nest: &LoopNest) -> Deal {
    let schedule = nest.schedule();
    if schedule.serial {
        return Deal::Serial;
    }
    match schedule.vector {
        Some(axis) if nest.is_inner(axis) && shares(nest, axis) => {
            let few = nest.axes[axis as usize]
                .as_const()
                .is_some_and(|n| n <= WARP_POINTS);
            let threads = if few { WARP } else { THREADS };
            Deal::Group { threads, axis }
        }
        _ => Deal::Thread {
            run: vectors::run(nest),
        },
    }
}

/// Whether threads may share a work unit along an axis: temporaries are each thread's
/// own points.
fn shares(nest: &LoopNest, axis: u8) -> bool {
    nest.stages.iter().all(|s| {
        let keeps = s.effects.iter().any(|e| matches!(e, Effect::Keep { .. }));
        let scans = s.effects.iter().any(|e| matches!(e, Effect::Scan { .. }));
        !scans && (!keeps || s.axes.contains(&axis))
    }) && nest.temps.iter().all(|t| t.axes.contains(&axis))
}

/// Bytes of a work unit's temporaries, where they are known.
fn const_temps(nest: &LoopNest) -> Option<i64> {
    nest.temps.iter().try_fold(0i64, |sum, t| {
        let points = (t.axes.iter()).try_fold(1i64, |n, &a| {
            n.checked_mul(nest.axes[a as usize].as_const()?)
        })?;
        let bytes = points.checked_mul(temp_element_bytes(t.dtype))?;
        sum.checked_add(bytes.checked_add(7)? / 8 * 8)
    })
}

/// Work units that are under way at once in a block.
fn units(deal: Deal) -> i64 {
    match deal {
        Deal::Group { threads, .. } => i64::from(THREADS / threads),
        Deal::Thread { .. } | Deal::Serial => i64::from(THREADS),
    }
}

/// Bytes of shared memory for a block's temporaries, if that is where they are.
fn shared_temps(nest: &LoopNest, deal: Deal) -> Option<i64> {
    let all = const_temps(nest)?.checked_mul(units(deal))?;
    (all > 0 && all <= MOST_TEMPS && matches!(deal, Deal::Group { .. })).then_some(all)
}

fn temp_bytes(nest: &LoopNest) -> Dim {
    nest.temps.iter().fold(Dim::ZERO, |sum, t| {
        let points = (t.axes.iter()).fold(Dim::ONE, |n, &a| n * dim(nest.axes[a as usize]));
        let bytes = points * temp_element_bytes(t.dtype).into();
        sum + bytes.ceil_div(&8.into()) * 8.into()
    })
}

fn scratch(nest: &LoopNest, deal: Deal, blocks: &Dim) -> Dim {
    match shared_temps(nest, deal) {
        Some(_) => Dim::ZERO,
        None => temp_bytes(nest) * blocks.clone() * units(deal).into(),
    }
}

/// What writes a nest point by point, and the address of the launch's scratch.
pub(super) fn open<'a>(e: &mut Emitter, nest: &'a LoopNest) -> (NestEmitter<'a>, Val) {
    let ports = Ports::declare(e, nest.args.len(), nest.params);
    let mut cx = ExprCx::new(&nest.exprs, ports.args, ports.params, ports.status);
    cx.axes = vec![None; nest.axes.len()];
    let extents: Vec<Val> = nest.axes.iter().map(|&s| cx.size(e, s)).collect();
    let n = NestEmitter {
        nest,
        schedule: Schedule {
            vector: None,
            block: 1,
            crossed: None,
            serial: false,
        },
        extents,
        temp_bases: vec![],
        group: None,
        cx,
    };
    (n, ports.scratch)
}

fn write(e: &mut Emitter, nest: &LoopNest, deal: Deal) {
    let (mut n, scratch) = open(e, nest);
    let (thread, block) = (e.kernel_mut().thread(), e.kernel_mut().block(0));
    let thread = long(e, thread);
    let block = long(e, block);
    let size = e.i64(units(deal));
    let in_block = match deal {
        Deal::Group { threads, .. } => {
            let threads = e.i64(i64::from(threads));
            e.op2("arith.divui", thread, threads)
        }
        Deal::Thread { .. } | Deal::Serial => thread,
    };
    let unit = e.mul(block, size);
    let unit = e.add(unit, in_block);
    n.place_temps_on_gpu(e, (unit, in_block), deal, scratch);
    match deal {
        Deal::Group { threads, axis } => n.rows(e, unit, thread, (threads, axis)),
        Deal::Thread { run: 1 } => n.points(e, unit),
        Deal::Thread { run } => vectors::points(&mut n, e, unit, run),
        Deal::Serial => n.in_order(e, unit),
    }
}

/// A word as an i64.
pub(super) fn long(e: &mut Emitter, r: kiln_codegen::ptx::Reg<kiln_codegen::ptx::B32>) -> Val {
    let wide = e.kernel_mut().extend(r, false);
    e.from_long(wide, Elem::I64)
}

impl NestEmitter<'_> {
    fn place_temps_on_gpu(
        &mut self,
        e: &mut Emitter,
        (unit, in_block): (Val, Val),
        deal: Deal,
        scratch: Val,
    ) {
        if self.nest.temps.is_empty() {
            return;
        }
        let (base, own) = match shared_temps(self.nest, deal) {
            Some(bytes) => {
                let at = e.kernel_mut().shared(bytes as u32, 8);
                (e.from_word(at, Elem::Ptr), in_block)
            }
            None => (scratch, unit),
        };
        let sizes: Vec<Val> = (self.nest.temps.iter())
            .map(|t| {
                let mut bytes = e.i64(temp_element_bytes(t.dtype));
                for &a in &t.axes {
                    bytes = e.mul(bytes, self.extents[a as usize]);
                }
                let (seven, mask) = (e.i64(7), e.i64(-8));
                let up = e.add(bytes, seven);
                e.op2("arith.andi", up, mask)
            })
            .collect();
        let zero = e.i64(0);
        let all = sizes.iter().fold(zero, |sum, &b| e.add(sum, b));
        let mut at = e.mul(all, own);
        for bytes in sizes {
            self.temp_bases.push(e.offset(base, at, Elem::I8));
            at = e.add(at, bytes);
        }
    }

    /// Binds the outer axes to the coordinates of a work unit; gives whether it exists.
    pub(super) fn bind_outer(&mut self, e: &mut Emitter, unit: Val) -> Val {
        let outer = self.nest.outer as usize;
        let one = e.i64(1);
        let all = (self.extents[..outer].iter()).fold(one, |n, &s| e.mul(n, s));
        let exists = e.cmp(Cmp::Lt, unit, all, false);
        let mut rest = unit;
        for axis in (0..outer).rev() {
            let extent = self.extents[axis];
            let c = if axis == 0 {
                rest
            } else {
                let divisor = e.max(extent, one, false);
                let (q, r) = divide(e, rest, divisor, self.nest.axes[axis].as_const());
                rest = q;
                r
            };
            self.cx.axes[axis] = Some(c);
        }
        exists
    }

    /// A thread for each work unit.
    fn points(&mut self, e: &mut Emitter, unit: Val) {
        let exists = self.bind_outer(e, unit);
        let exists = e.pred(exists);
        let none = e.kernel_mut().not(exists);
        e.kernel_mut().exit_if(none);
        self.cx.accs.clear();
        self.stages(e);
    }

    /// A group of threads for each work unit.
    fn rows(&mut self, e: &mut Emitter, unit: Val, thread: Val, (threads, axis): (u32, u8)) {
        let exists = self.bind_outer(e, unit);
        let exists = e.pred(exists);
        let none = e.kernel_mut().not(exists);
        // A whole group leaves, which no other waits for.
        e.kernel_mut().exit_if(none);
        let step = e.i64(i64::from(threads));
        let first = e.op2("arith.remui", thread, step);
        let zero = e.i64(0);
        let leads = e.cmp(Cmp::Eq, first, zero, false);
        let warps = threads / WARP;
        let lanes = e.i64(i64::from(WARP));
        let warp = e.op2("arith.divui", first, lanes);
        let told = (warps > 1).then(|| {
            let values: usize = self.nest.effects().map(joined).sum();
            let bytes = (values as u32 * warps * 8).max(8);
            let at = e.kernel_mut().shared(bytes, 8);
            (e.from_word(at, Elem::Ptr), 0)
        });
        self.group = Some(Group {
            axis,
            first,
            step,
            leads,
            warps: (warps, warp),
            told,
        });
        self.cx.accs.clear();
        self.stages(e);
    }

    /// Everything in order by one thread.
    fn in_order(&mut self, e: &mut Emitter, unit: Val) {
        let (zero, one) = (e.i64(0), e.i64(1));
        let out = e.cmp(Cmp::Ge, unit, one, false);
        let out = e.pred(out);
        e.kernel_mut().exit_if(out);
        self.walk(e, 0, self.nest.outer as usize, (zero, one));
    }

    fn walk(&mut self, e: &mut Emitter, axis: usize, walked: usize, (zero, one): (Val, Val)) {
        if axis == walked {
            self.cx.push();
            self.cx.accs.clear();
            self.stages(e);
            self.cx.pop();
            return;
        }
        let extent = self.extents[axis];
        e.for_loop(zero, extent, one, &[], |e, i, _| {
            self.in_loop(axis as u8, i, None, |s| {
                s.walk(e, axis + 1, walked, (zero, one))
            });
            vec![]
        });
    }
}

/// Values that threads of a group join for an effect.
fn joined(effect: &Effect) -> usize {
    match effect {
        Effect::Reduce { .. } => 1,
        Effect::ArgReduce { .. } => 2,
        Effect::Scan { .. } | Effect::Store { .. } | Effect::Keep { .. } => 0,
    }
}

/// Quotient and remainder of numbers that are not negative. Where neither is beyond 32
/// bits, which is nearly always, the division is of 32 bits.
pub(super) fn divide(e: &mut Emitter, a: Val, b: Val, known: Option<i64>) -> (Val, Val) {
    let word = Ty::scalar(Elem::I32);
    if known.is_some_and(|n| n > 0 && n & (n - 1) == 0) {
        return (e.op2("arith.divui", a, b), e.op2("arith.remui", a, b));
    }
    let both = e.op2("arith.ori", a, b);
    let by = e.i64(32);
    let high = e.op2("arith.shrui", both, by);
    let zero = e.i64(0);
    let small = e.cmp(Cmp::Eq, high, zero, false);
    let both = e.either(
        small,
        &[a.ty, a.ty],
        &mut (),
        |e, ()| {
            let x = e.cast(a, Elem::I32, true, true);
            let y = match known {
                Some(n) => e.int(word, n),
                None => e.cast(b, Elem::I32, true, true),
            };
            let q = e.op2("arith.divui", x, y);
            let taken = e.mul(q, y);
            let r = e.sub(x, taken);
            vec![
                e.cast(q, Elem::I64, true, true),
                e.cast(r, Elem::I64, true, true),
            ]
        },
        |e, ()| vec![e.op2("arith.divui", a, b), e.op2("arith.remui", a, b)],
    );
    (both[0], both[1])
}
