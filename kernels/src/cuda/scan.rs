//! Running sums along a row by a block, and by several blocks where a row is long.
//!
//! ```text
//! y[i] = x[0] + .. + x[i], parts p of a long row:
//!   launch 1, blocks [r, p]:  scratch[r, p] = sum(x over p)        (the reduction's own)
//!   launch 2, blocks [r, p]:  before = join scratch[r, ..p];  y over p, beginning with it
//! ```
//! A thread has four neighbouring points; what threads have is summed within warps by
//! shuffles, then over warps: one fixed order, which the row's length alone decides.

use super::group::WARP;
use super::nest::open;
use super::parts::{self, Cut, Place, Step};
use super::points;
use super::{GpuKernel, THREADS, ask, dim, entry, entry_of};
use crate::Size;
use crate::emit_nest::{Accs, NestEmitter, combine};
use crate::expr::Node;
use crate::nest::{Effect, LoopNest, Reducer, Stage};
use kiln_codegen::emit::Cmp;
use kiln_codegen::{Elem, Emitter, GpuTarget, Val};
use kiln_ir::{DType, Dim};

/// Neighbouring points of a thread.
const ITEMS: i64 = 4;

/// Warps of a block.
const WARPS: i64 = (THREADS / WARP) as i64;

/// Points that a row asks for: a block walks them in one step, where a thread alone waits
/// for memory at each.
const LEAST: i64 = 512;

/// Rows beyond which a thread each is better where neighbouring rows are neighbours in
/// memory: lanes then read 128 bytes together, which a block along the row does not.
const MOST_COLUMNS: i64 = 1024;

/// The forms for long rows, and for fewer longer ones first; none where there is more than
/// a running reduction, or one that reads another's.
pub(super) fn emit(nest: &LoopNest, name: &str, target: &GpuTarget) -> Vec<GpuKernel> {
    match scanned(nest) {
        Some(stage) => (several(nest, stage, name, target).into_iter())
            .chain(one(nest, stage, name, target))
            .collect(),
        None => vec![],
    }
}

/// The stage, where it is the only one and its reductions do not read each other.
fn scanned(nest: &LoopNest) -> Option<&Stage> {
    let [stage] = &nest.stages[..] else {
        return None;
    };
    let inner: Vec<u8> = (nest.outer..nest.axes.len() as u8).collect();
    let is_acc = |id| matches!(nest.exprs.node(id), Node::Acc(..));
    let fits = |e: &Effect| match e {
        Effect::Scan { value, .. } => !nest.exprs.reachable(&[*value]).into_iter().any(is_acc),
        Effect::Store { update, .. } => update.is_none(),
        Effect::Reduce { .. } | Effect::ArgReduce { .. } | Effect::Keep { .. } => false,
    };
    let stored = |arg: u16| {
        let to = |e: &Effect| matches!(e, Effect::Store { arg: a, .. } if *a == arg);
        nest.effects().any(to)
    };
    let reads_back = (nest.live().into_iter())
        .any(|id| matches!(nest.exprs.node(id), Node::Load { arg, .. } if stored(*arg)));
    let some = stage
        .effects
        .iter()
        .any(|e| matches!(e, Effect::Scan { .. }));
    let whole = !inner.is_empty() && stage.axes == inner && nest.temps.is_empty();
    let fits = some && whole && !reads_back && stage.effects.iter().all(fits);
    (fits && !nest.schedule().serial).then_some(stage)
}

/// Rows and points of each.
fn sizes(nest: &LoopNest) -> (Dim, Dim) {
    let product = |axes: &[Size]| axes.iter().fold(Dim::ONE, |n, &s| n * dim(s));
    let (outer, inner) = nest.axes.split_at(nest.outer as usize);
    (product(outer), product(inner))
}

/// A block for each row.
fn one(nest: &LoopNest, stage: &Stage, name: &str, target: &GpuTarget) -> Option<GpuKernel> {
    let (rows, points) = sizes(nest);
    let mut when = vec![];
    ask(&mut when, &LEAST.into(), &points)?;
    let last = nest.axes.len() as u8 - 1;
    let lies = |s: Size| matches!(s, Size::Const(-1..=1));
    if !(nest.accesses().iter()).all(|(_, i)| lies(i.stride(last))) {
        ask(&mut when, &rows, &MOST_COLUMNS.into())?;
    }
    let name = entry_of(name, "scan");
    let (body, _) = entry(&name, target, THREADS, |e| write(e, nest, stage, &[]));
    Some(GpuKernel {
        entry: name,
        body,
        when,
        grid: [rows, Dim::ONE, Dim::ONE],
        block: [THREADS, 1, 1],
        cluster: [1; 3],
        ..GpuKernel::default()
    })
}

/// Several blocks for each row.
fn several(nest: &LoopNest, stage: &Stage, name: &str, target: &GpuTarget) -> Option<GpuKernel> {
    let (rows, points) = sizes(nest);
    let mut when = vec![];
    ask(&mut when, &rows, &Cut::Rows.most_units().into())?;
    ask(&mut when, &Cut::Rows.least_points().into(), &points)?;
    let totals = totals(nest, stage);
    let [all] = &totals.stages[..] else {
        return None;
    };
    let [first, second] = ["scan_parts1", "scan_parts2"].map(|form| entry_of(name, form));
    let step = Step {
        stages: vec![all],
        reads: vec![],
    };
    let (sum, _) = entry(&first, target, THREADS, |e| {
        parts::write(e, &totals, Cut::Rows, &step);
    });
    let (body, _) = entry(&second, target, THREADS, |e| {
        write(e, nest, stage, &all.effects);
    });
    let count = points.ceil_div(&Cut::Rows.part(&points));
    let params: Vec<Dim> = (0..nest.params).map(|i| dim(Size::Param(i))).collect();
    let kernel = |entry, body, work: &LoopNest| GpuKernel {
        entry,
        body,
        grid: [rows.clone(), count.clone(), Dim::ONE],
        block: [THREADS, 1, 1],
        cluster: [1; 3],
        work: Some(work.cost(&params)),
        ..GpuKernel::default()
    };
    let kept = all.effects.len() as i64;
    Some(GpuKernel {
        when,
        scratch: rows.clone() * count.clone() * (8 * kept).into(),
        then: vec![kernel(second, body, nest)],
        ..kernel(first, sum, &totals)
    })
}

/// What parts sum up to, as a nest of reductions.
fn totals(nest: &LoopNest, stage: &Stage) -> LoopNest {
    let effects = (stage.effects.iter())
        .filter_map(|effect| match effect {
            Effect::Scan { acc, by, value, .. } => Some(Effect::reduce(*acc, *by, *value)),
            _ => None,
        })
        .collect();
    LoopNest {
        stages: vec![Stage::new(&stage.axes, effects)],
        ..nest.clone()
    }
}

/// Scans rows; or parts of them, behind what `totals` of the parts before join to.
fn write(e: &mut Emitter, nest: &LoopNest, stage: &Stage, totals: &[Effect]) {
    let (mut n, scratch) = open(e, nest);
    let mut p = parts::place(e, &n, Cut::Rows, scratch);
    // A grid has as many blocks as there are rows.
    n.bind_outer(e, p.unit);
    let step = Step {
        stages: vec![],
        reads: totals.to_vec(),
    };
    n.group = Some(parts::group(e, nest, &p, &step));
    let accs = Accs::of(stage);
    let start = accs.start(e, nest, 0);
    let before = match totals {
        [] => {
            let one = e.i64(1);
            let inner = &n.extents[nest.outer as usize..];
            let all = inner.iter().fold(one, |k, &s| e.mul(k, s));
            p.points = (e.i64(0), all);
            start.clone()
        }
        _ => {
            parts::join(e, &mut n, &p, totals, p.part);
            accs.numbers.iter().map(|a| n.cx.accs[a]).collect()
        }
    };
    n.cx.accs.clear();
    let roots: Vec<_> = stage.effects.iter().flat_map(Effect::roots).collect();
    n.cx.hoist(e, &roots);
    let told = e
        .kernel_mut()
        .shared((WARPS * 8) as u32 * start.len() as u32, 8);
    let told = e.from_word(told, Elem::Ptr);
    let scan = Scan {
        stage,
        how: (stage.effects.iter())
            .filter_map(|effect| match effect {
                Effect::Scan { by, value, .. } => Some((*by, nest.exprs.dtype(*value))),
                _ => None,
            })
            .collect(),
        runs: points::runs(nest),
        start,
        told,
    };
    let ((from, to), tile) = (p.points, e.i64(ITEMS * i64::from(THREADS)));
    e.for_loop(from, to, tile, &before, |e, first, before| {
        scan.tile(e, &mut n, &p, first, before)
    });
}

/// The reductions of a stage, while it is written.
struct Scan<'a> {
    stage: &'a Stage,
    how: Vec<(Reducer, DType)>,
    runs: Vec<Vec<u8>>,
    /// What nothing sums up to.
    start: Vec<Val>,
    /// Shared memory: what each warp sums up to, of each reduction.
    told: Val,
}

impl<'a> Scan<'a> {
    /// What earlier and later points sum up to.
    fn sum(&self, e: &mut Emitter, earlier: &[Val], later: &[Val]) -> Vec<Val> {
        (self.how.iter().zip(earlier).zip(later))
            .map(|((&(by, t), &a), &b)| combine(e, by, t, a, b))
            .collect()
    }

    fn choose(&self, e: &mut Emitter, cond: Val, yes: &[Val], no: &[Val]) -> Vec<Val> {
        (yes.iter().zip(no))
            .map(|(&a, &b)| e.select(cond, a, b))
            .collect()
    }

    /// The points of a tile; gives what all up to its end sum up to.
    fn tile(
        &self,
        e: &mut Emitter,
        n: &mut NestEmitter<'a>,
        p: &Place,
        first: Val,
        before: &[Val],
    ) -> Vec<Val> {
        let (one, items) = (e.i64(1), e.i64(ITEMS));
        let own = e.mul(p.thread, items);
        let own = e.add(first, own);
        let last = e.sub(p.points.1, one);
        let read: Vec<_> = (0..ITEMS)
            .map(|i| {
                let skip = e.i64(i);
                let at = e.add(own, skip);
                let exists = e.cmp(Cmp::Lt, at, p.points.1, false);
                // Beyond the end the last point stands in, for nothing.
                let at = e.min(at, last, false);
                points::bind(e, n, &self.runs, at);
                n.cx.push();
                let values: Vec<Val> = (self.stage.effects.iter())
                    .filter_map(|effect| match effect {
                        Effect::Scan { value, .. } => Some(n.cx.value(e, *value)),
                        _ => None,
                    })
                    .collect();
                let values = self.choose(e, exists, &values, &self.start);
                (at, exists, values, n.cx.leave())
            })
            .collect();
        let total = (read.iter()).fold(self.start.clone(), |sum, (_, _, values, _)| {
            self.sum(e, &sum, values)
        });
        let (in_block, all) = self.before(e, p, &total);
        let mut running = self.sum(e, before, &in_block);
        let accs = Accs::of(self.stage);
        for (at, exists, values, scope) in read {
            points::bind(e, n, &self.runs, at);
            n.cx.enter(scope);
            e.if_then(exists, |e| {
                n.cx.push();
                n.loops(e, self.stage, &[], &accs, &running);
                n.cx.pop();
            });
            n.cx.pop();
            running = self.sum(e, &running, &values);
        }
        n.cx.axes[n.nest.outer as usize..].fill(None);
        self.sum(e, before, &all)
    }

    /// What the threads before this one, and all of the block, sum up to.
    fn before(&self, e: &mut Emitter, p: &Place, total: &[Val]) -> (Vec<Val>, Vec<Val>) {
        let lanes = e.i64(i64::from(WARP));
        let lane = e.op2("arith.remui", p.thread, lanes);
        let warp = e.op2("arith.divui", p.thread, lanes);
        let mut up_to = total.to_vec();
        for by in [1, 2, 4, 8, 16] {
            let other: Vec<Val> = up_to.iter().map(|&x| e.shuffle_up(x, by)).collect();
            let least = e.i64(i64::from(by));
            let has = e.cmp(Cmp::Ge, lane, least, false);
            let more = self.sum(e, &other, &up_to);
            up_to = self.choose(e, has, &more, &up_to);
        }
        let (zero, most) = (e.i64(0), e.i64(i64::from(WARP) - 1));
        let speaks = e.cmp(Cmp::Eq, lane, most, false);
        let place = |e: &mut Emitter, i: usize, warp: Val| {
            let skip = e.i64(WARPS * i as i64);
            let at = e.add(skip, warp);
            e.offset(self.told, at, Elem::F64)
        };
        // Nobody still reads what the tile before left.
        e.kernel_mut().barrier();
        e.if_then(speaks, |e| {
            for (i, &x) in up_to.iter().enumerate() {
                let to = place(e, i, warp);
                e.store(x, to);
            }
        });
        e.kernel_mut().barrier();
        let (mut before, mut all) = (self.start.clone(), self.start.clone());
        for w in 0..WARPS {
            let w = e.i64(w);
            let theirs: Vec<Val> = (total.iter().enumerate())
                .map(|(i, x)| {
                    let from = place(e, i, w);
                    e.load(from, x.ty)
                })
                .collect();
            let is_before = e.cmp(Cmp::Lt, w, warp, false);
            let more = self.sum(e, &before, &theirs);
            before = self.choose(e, is_before, &more, &before);
            all = self.sum(e, &all, &theirs);
        }
        let left: Vec<Val> = up_to.iter().map(|&x| e.shuffle_up(x, 1)).collect();
        let is_first = e.cmp(Cmp::Eq, lane, zero, false);
        let left = self.choose(e, is_first, &self.start, &left);
        (self.sum(e, &before, &left), all)
    }
}
