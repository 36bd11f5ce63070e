//! Reductions of few results over many points: each result's points are cut into parts that
//! blocks take in one launch, and the next launch joins what they found.
//!
//! ```text
//! softmax over K, few rows (r), parts p of K:
//!   launch 1, blocks [r, p]:  scratch.max[r, p] = max(x over p)
//!   launch 2, blocks [r, p]:  max = join scratch.max[r, ..];  scratch.sum[r, p] = sum(exp(x - max))
//!   launch 3, blocks [r, p]:  max, sum = join ..;  store exp(x - max) / sum over p
//! ```
//! A launch ends with a stage that fills accumulators; stages of single points (a sum's
//! result) join the next one. Parts follow from the number of points alone and are joined in
//! a fixed order, so results depend on neither the chip nor, within the form's conditions,
//! the number of rows.

use super::group::{Group, WARP};
use super::nest::{long, open};
use super::points;
use super::{GpuKernel, THREADS, ask, dim, entry, entry_of};
use crate::emit_nest::{Accs, NestEmitter, beats, combine};
use crate::expr::{Node, Size};
use crate::lower::compute_elem;
use crate::nest::{Effect, LoopNest, Stage};
use kiln_codegen::emit::Cmp;
use kiln_codegen::{Elem, Emitter, GpuTarget, Ty, Val};
use kiln_ir::Dim;

/// Points that a thread has under way at once: a multiprocessor keeps the memory busy with
/// about 18 KB (3.3 TB/s · 0.7 µs / 132), which are two loads of 4 bytes of each thread.
const AHEAD: i64 = 4;

/// Parts that a thread reads at once while it joins.
const JOINED: i64 = 8;

/// How points are shared out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cut {
    /// A block for each part of each row, whose threads have neighbouring points.
    Rows,
    /// A thread for each part of each column, beside those of the neighbouring columns.
    Columns,
}

impl Cut {
    /// Rows that this serves at most. A block a row draws 4 KB at once (256 threads, 4 loads
    /// of 4 bytes), a fifth of what its multiprocessor could: up to about as many rows as
    /// there are multiprocessors, parts are read faster. A column is a thread's, which needs
    /// about 1,000 others beside it on each of 100 multiprocessors.
    pub(super) fn most_units(self) -> i64 {
        match self {
            Cut::Rows => 128,
            Cut::Columns => 32 << 10,
        }
    }

    /// Points that it asks for. A block alone reads 256 KB in about as long as two launches
    /// take (37 GB/s, a 54th of an A100's bandwidth); a thread 1,000 numbers likewise.
    pub(super) fn least_points(self) -> i64 {
        match self {
            Cut::Rows => 64 << 10,
            Cut::Columns => 1 << 10,
        }
    }

    /// Parts at most: what a block, or a thread, joins in few steps.
    fn most_parts(self) -> i64 {
        match self {
            Cut::Rows => 1024,
            Cut::Columns => 256,
        }
    }

    /// Points of a part are a multiple of this, and at least twice as many.
    fn grain(self) -> i64 {
        match self {
            Cut::Rows => AHEAD * i64::from(THREADS),
            Cut::Columns => 128,
        }
    }

    fn threads(self) -> u32 {
        match self {
            Cut::Rows => THREADS,
            Cut::Columns => 128,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Cut::Rows => "parts",
            Cut::Columns => "column_parts",
        }
    }

    /// Points of a part, of so many in all.
    pub(super) fn part(self, points: &Dim) -> Dim {
        let each = points.ceil_div(&self.most_parts().into());
        let grains = each.ceil_div(&self.grain().into());
        grains.maximum(&2.into()) * self.grain().into()
    }

    /// The same while a kernel runs.
    fn part_of(self, e: &mut Emitter, points: Val) -> Val {
        let each = up_by(e, points, self.most_parts());
        let grains = up_by(e, each, self.grain());
        let two = e.i64(2);
        let grains = e.max(grains, two, false);
        let grain = e.i64(self.grain());
        e.mul(grains, grain)
    }
}

fn up_by(e: &mut Emitter, x: Val, by: i64) -> Val {
    let by = e.i64(by);
    up(e, x, by)
}

/// A quotient, rounded up.
fn up(e: &mut Emitter, x: Val, by: Val) -> Val {
    let one = e.i64(1);
    let more = e.add(x, by);
    let more = e.sub(more, one);
    e.op2("arith.divui", more, by)
}

/// The stages of one launch, and the accumulators of earlier ones that they read.
pub(super) struct Step<'a> {
    pub stages: Vec<&'a Stage>,
    pub reads: Vec<Effect>,
}

impl Step<'_> {
    /// Whether it walks points, and not only joins what others found.
    fn walks(&self) -> bool {
        self.stages.iter().any(|s| !s.axes.is_empty())
    }
}

/// The accumulators that an effect fills.
pub(super) fn fills(effect: &Effect) -> Vec<u16> {
    match effect {
        Effect::Reduce { acc, .. } | Effect::Scan { acc, .. } => vec![*acc],
        Effect::ArgReduce { best, at, .. } => vec![*best, *at],
        Effect::Store { .. } | Effect::Keep { .. } => vec![],
    }
}

/// Launches of a nest's stages; none where it has others than those that walk all inner
/// axes and those of single points, or where one point depends on another otherwise.
fn steps(nest: &LoopNest) -> Option<Vec<Step<'_>>> {
    let inner: Vec<u8> = (nest.outer..nest.axes.len() as u8).collect();
    let plain = |s: &Stage| {
        let fits = |e: &Effect| match e {
            Effect::Reduce { .. } | Effect::ArgReduce { .. } => !s.axes.is_empty(),
            Effect::Store { update, .. } => update.is_none(),
            Effect::Scan { .. } | Effect::Keep { .. } => false,
        };
        (s.axes.is_empty() || s.axes == inner) && s.effects.iter().all(fits)
    };
    let reduces = nest.effects().any(|e| !fills(e).is_empty());
    let stored = |arg: u16| {
        let to = |e: &Effect| matches!(e, Effect::Store { arg: a, .. } if *a == arg);
        nest.effects().any(to)
    };
    let reads_back = (nest.live().into_iter())
        .any(|id| matches!(nest.exprs.node(id), Node::Load { arg, .. } if stored(*arg)));
    let fits = nest.temps.is_empty() && !inner.is_empty() && reduces && !reads_back;
    if !fits || nest.schedule().serial || !nest.stages.iter().all(plain) {
        return None;
    }
    let mut steps: Vec<Step> = vec![];
    let mut open = false;
    for stage in &nest.stages {
        if !open {
            steps.push(Step {
                stages: vec![],
                reads: vec![],
            });
        }
        if let Some(step) = steps.last_mut() {
            step.stages.push(stage);
        }
        open = stage.effects.iter().all(|e| fills(e).is_empty());
    }
    for step in &mut steps {
        let roots: Vec<_> = (step.stages.iter())
            .flat_map(|s| s.effects.iter().flat_map(Effect::roots))
            .collect();
        let read: Vec<u16> = (nest.exprs.reachable(&roots).into_iter())
            .filter_map(|id| match nest.exprs.node(id) {
                Node::Acc(i, _) => Some(*i),
                _ => None,
            })
            .collect();
        let read = |e: &&Effect| fills(e).iter().any(|acc| read.contains(acc));
        step.reads = nest.effects().filter(read).cloned().collect();
    }
    Some(steps)
}

/// The form for few rows, or columns, of many points; none where there can be no such
/// launch.
pub(super) fn emit(nest: &LoopNest, cut: Cut, name: &str, target: &GpuTarget) -> Option<GpuKernel> {
    let steps = steps(nest)?;
    let product = |axes: &[Size]| axes.iter().fold(Dim::ONE, |n, &s| n * dim(s));
    let (outer, inner) = nest.axes.split_at(nest.outer as usize);
    let (units, points) = (product(outer), product(inner));
    let mut when = vec![];
    ask(&mut when, &units, &cut.most_units().into())?;
    ask(&mut when, &cut.least_points().into(), &points)?;
    let parts = points.ceil_div(&cut.part(&points));
    let across = match cut {
        Cut::Rows => units.clone(),
        Cut::Columns => units.ceil_div(&i64::from(cut.threads()).into()),
    };
    let kept: i64 = nest.effects().map(|e| fills(e).len() as i64).sum();
    let mut launches = steps.iter().enumerate().map(|(i, step)| {
        let name = entry_of(name, &format!("{}{}", cut.name(), i + 1));
        let (body, _) = entry(&name, target, cut.threads(), |e| write(e, nest, cut, step));
        let down = if step.walks() {
            parts.clone()
        } else {
            Dim::ONE
        };
        GpuKernel {
            entry: name,
            body,
            grid: [across.clone(), down, Dim::ONE],
            block: [cut.threads(), 1, 1],
            cluster: [1; 3],
            work: Some(work(nest, step)),
            ..GpuKernel::default()
        }
    });
    let first = launches.next()?;
    Some(GpuKernel {
        when,
        scratch: units * parts.clone() * (8 * kept).into(),
        then: launches.collect(),
        ..first
    })
}

/// Arithmetic and bytes of a launch.
fn work(nest: &LoopNest, step: &Step) -> (Dim, Dim) {
    let own = LoopNest {
        stages: step.stages.iter().map(|&s| s.clone()).collect(),
        ..nest.clone()
    };
    let params: Vec<Dim> = (0..nest.params).map(|i| dim(Size::Param(i))).collect();
    own.cost(&params)
}

/// Where a thread is.
pub(super) struct Place {
    cut: Cut,
    pub thread: Val,
    /// The result's number, and how many there are.
    pub unit: Val,
    units: Val,
    /// The part's number, and how many there are.
    pub part: Val,
    parts: Val,
    /// The points of the part, from and to.
    pub points: (Val, Val),
    scratch: Val,
}

impl Place {
    /// Where a result's part of an accumulator lies: a row's parts are neighbours, as a
    /// block joins them, or a part's columns, as neighbouring threads do.
    fn at(&self, e: &mut Emitter, acc: u16, nest: &LoopNest, part: Val) -> Val {
        let all: Vec<u16> = nest.effects().flat_map(fills).collect();
        let slot = all.iter().position(|a| *a == acc).unwrap_or_default();
        let slot = e.i64(slot as i64);
        let (outer, outers, inner, inners) = match self.cut {
            Cut::Rows => (self.unit, self.units, part, self.parts),
            Cut::Columns => (part, self.parts, self.unit, self.units),
        };
        let at = e.mul(slot, outers);
        let at = e.add(at, outer);
        let at = e.mul(at, inners);
        let at = e.add(at, inner);
        e.offset(self.scratch, at, Elem::F64)
    }
}

pub(super) fn write(e: &mut Emitter, nest: &LoopNest, cut: Cut, step: &Step) {
    let (mut n, scratch) = open(e, nest);
    let p = place(e, &n, cut, scratch);
    let exists = n.bind_outer(e, p.unit);
    let exists = e.pred(exists);
    let none = e.kernel_mut().not(exists);
    // Of a row's block all threads are there.
    e.kernel_mut().exit_if(none);
    n.group = Some(group(e, nest, &p, step));
    join(e, &mut n, &p, &step.reads, p.parts);
    for stage in &step.stages {
        n.cx.push();
        match stage.axes.is_empty() {
            true => {
                n.loops(e, stage, &[], &Accs::of(stage), &[]);
            }
            false => walk(e, &mut n, &p, stage),
        }
        n.cx.pop();
    }
}

pub(super) fn place(e: &mut Emitter, n: &NestEmitter, cut: Cut, scratch: Val) -> Place {
    let k = e.kernel_mut();
    let (thread, x, part) = (k.thread(), k.block(0), k.block(1));
    let (thread, x, part) = (long(e, thread), long(e, x), long(e, part));
    let (outer, inner) = n.extents.split_at(n.nest.outer as usize);
    let one = e.i64(1);
    let units = outer.iter().fold(one, |n, &s| e.mul(n, s));
    let points = inner.iter().fold(one, |n, &s| e.mul(n, s));
    let each = cut.part_of(e, points);
    let parts = up(e, points, each);
    let from = e.mul(part, each);
    let to = e.add(from, each);
    let to = e.min(to, points, false);
    let unit = match cut {
        Cut::Rows => x,
        Cut::Columns => {
            let threads = e.i64(i64::from(cut.threads()));
            let first = e.mul(x, threads);
            e.add(first, thread)
        }
    };
    Place {
        cut,
        thread,
        unit,
        units,
        part,
        parts,
        points: (from, to),
        scratch,
    }
}

/// The threads of a row's block; of columns, each thread by itself. What belongs to no
/// point, the first part's first thread stores.
pub(super) fn group(e: &mut Emitter, nest: &LoopNest, p: &Place, step: &Step) -> Group {
    let zero = e.i64(0);
    let mut leads = e.cmp(Cmp::Eq, p.part, zero, false);
    let (mut warps, mut told) = ((1, zero), None);
    if p.cut == Cut::Rows {
        let first = e.cmp(Cmp::Eq, p.thread, zero, false);
        leads = e.op2("arith.andi", leads, first);
        let lanes = e.i64(i64::from(WARP));
        warps = (THREADS / WARP, e.op2("arith.divui", p.thread, lanes));
        let own = step.stages.iter().flat_map(|s| &s.effects);
        let values: usize = own.chain(&step.reads).map(|e| fills(e).len()).sum();
        told = (values > 0).then(|| {
            let at = e.kernel_mut().shared(values as u32 * warps.0 * 8, 8);
            (e.from_word(at, Elem::Ptr), 0)
        });
    }
    Group {
        axis: nest.outer,
        first: p.thread,
        step: zero,
        leads,
        warps,
        told,
    }
}

/// One value more for an effect's accumulators.
fn add(e: &mut Emitter, nest: &LoopNest, effect: &Effect, old: &[Val], new: &[Val]) -> Vec<Val> {
    match effect {
        Effect::Reduce { by, value, .. } => {
            let t = nest.exprs.dtype(*value);
            vec![combine(e, *by, t, old[0], new[0])]
        }
        Effect::ArgReduce { value, .. } => {
            let t = nest.exprs.dtype(*value);
            let wins = beats(e, effect, t, (new[0], new[1]), (old[0], old[1]));
            vec![
                e.select(wins, new[0], old[0]),
                e.select(wins, new[1], old[1]),
            ]
        }
        Effect::Scan { .. } | Effect::Store { .. } | Effect::Keep { .. } => old.to_vec(),
    }
}

/// Types of an effect's accumulators.
fn types(nest: &LoopNest, effect: &Effect) -> Vec<Ty> {
    match effect {
        Effect::Reduce { value, .. } => {
            vec![Ty::scalar(compute_elem(nest.exprs.dtype(*value)))]
        }
        Effect::ArgReduce { value, .. } => vec![
            Ty::scalar(compute_elem(nest.exprs.dtype(*value))),
            Ty::scalar(Elem::I64),
        ],
        Effect::Scan { .. } | Effect::Store { .. } | Effect::Keep { .. } => vec![],
    }
}

/// Joins what the launches before found in the first so many parts: every thread that asks
/// has the whole.
pub(super) fn join(e: &mut Emitter, n: &mut NestEmitter, p: &Place, reads: &[Effect], parts: Val) {
    for effect in reads {
        let stage = Stage::new(&[n.nest.outer], vec![effect.clone()]);
        let accs = Accs::of(&stage);
        let start = accs.start(e, n.nest, 0);
        let few = |e: &mut Emitter, old: &[Val], first: Val, step: i64, count: i64| {
            let read: Vec<(Val, Vec<Val>)> = (0..count)
                .map(|i| {
                    let skip = e.i64(i * step);
                    let part = e.add(first, skip);
                    let exists = e.cmp(Cmp::Lt, part, parts, false);
                    let values = (accs.numbers.iter().zip(types(n.nest, effect)))
                        .map(|(&acc, ty)| {
                            let from = p.at(e, acc, n.nest, part);
                            e.load_where(exists, from, ty)
                        })
                        .collect();
                    (exists, values)
                })
                .collect();
            read.iter().fold(old.to_vec(), |old, (exists, new)| {
                let next = add(e, n.nest, effect, &old, new);
                (next.iter().zip(&old))
                    .map(|(&next, &old)| e.select(*exists, next, old))
                    .collect()
            })
        };
        let whole = match p.cut {
            Cut::Rows => {
                let threads = i64::from(THREADS);
                few(e, &start, p.thread, threads, p.cut.most_parts() / threads)
            }
            Cut::Columns => {
                let (zero, step) = (e.i64(0), e.i64(JOINED));
                e.for_loop(zero, parts, step, &start, |e, part, old| {
                    few(e, old, part, 1, JOINED)
                })
            }
        };
        for (&acc, value) in accs.numbers.iter().zip(whole) {
            n.cx.accs.insert(acc, value);
        }
        if p.cut == Cut::Rows {
            n.join_threads(e, &stage);
        }
    }
}

/// Walks a part's points, and keeps what their accumulators are.
fn walk<'a>(e: &mut Emitter, n: &mut NestEmitter<'a>, p: &Place, stage: &'a Stage) {
    let roots: Vec<_> = stage.effects.iter().flat_map(Effect::roots).collect();
    n.cx.hoist(e, &roots);
    let accs = Accs::of(stage);
    let runs = points::runs(n.nest);
    let start = accs.start(e, n.nest, 0);
    let width = start.len();
    let each = match p.cut {
        Cut::Rows => i64::from(THREADS),
        Cut::Columns => 1,
    };
    let (from, to) = p.points;
    let own = match p.cut {
        Cut::Rows => e.add(from, p.thread),
        Cut::Columns => from,
    };
    let (step, ahead, mask) = (e.i64(each), e.i64(AHEAD * each), e.i64(-AHEAD * each));
    let count = e.sub(to, from);
    let whole = e.op2("arith.andi", count, mask);
    let (middle, end) = (e.add(from, whole), e.add(own, whole));
    let point = |e: &mut Emitter, n: &mut NestEmitter<'a>, at: Val, old: &[Val]| {
        points::bind(e, n, &runs, at);
        n.cx.push();
        let new = n.loops(e, stage, &[], &accs, old);
        n.cx.pop();
        n.cx.axes[n.nest.outer as usize..].fill(None);
        new
    };
    // As many chains as there are points at once, so none waits for another.
    let all: Vec<Val> = (0..AHEAD).flat_map(|_| start.clone()).collect();
    let all = e.for_loop(own, end, ahead, &all, |e, at, old| {
        (0..AHEAD)
            .flat_map(|i| {
                let skip = e.i64(i * each);
                let at = e.add(at, skip);
                let i = i as usize * width;
                point(e, n, at, &old[i..i + width])
            })
            .collect()
    });
    let left = match p.cut {
        Cut::Rows => e.add(middle, p.thread),
        Cut::Columns => middle,
    };
    let first = e.for_loop(left, to, step, &all[..width], |e, at, old| {
        point(e, n, at, old)
    });
    let mut at = 0;
    for effect in &stage.effects {
        let wide = fills(effect).len();
        let chain = |i: usize| &all[i * width + at..i * width + at + wide];
        let whole = (1..AHEAD as usize).fold(first[at..at + wide].to_vec(), |sum, i| {
            add(e, n.nest, effect, &sum, chain(i))
        });
        for (acc, value) in fills(effect).into_iter().zip(whole) {
            n.cx.accs.insert(acc, value);
        }
        at += wide;
    }
    if p.cut == Cut::Rows {
        n.join_threads(e, stage);
    }
    let zero = e.i64(0);
    let speaks = match p.cut {
        Cut::Rows => e.cmp(Cmp::Eq, p.thread, zero, false),
        Cut::Columns => e.cmp(Cmp::Eq, zero, zero, false),
    };
    e.if_then(speaks, |e| {
        for &acc in &accs.numbers {
            let to = p.at(e, acc, n.nest, p.part);
            e.store(n.cx.accs[&acc], to);
        }
    });
}
