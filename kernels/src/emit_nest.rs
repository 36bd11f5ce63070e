//! A loop nest as one MLIR function.
//!
//! ```text
//! for tile in begin..end            coordinates advance like an odometer
//!   [for a block of the vector axis, 16 points at a time, the last ones masked]
//!     for each stage
//!       for its inner axes          [the vector axis 16 points at a time]
//!         effects
//!       join the lanes of its accumulators
//! ```

use crate::cuda::Group;
use crate::expr::compute_dtype;
use crate::lower::{ExprCx, TempPlace, and, compute_elem, constant, is_unsigned};
use crate::math;
use crate::nest::{
    Effect, LANES, LoopNest, Reducer, SCRATCH_HEAD, SpecError, Stage, identity, temp_element_bytes,
};
use crate::schedule::Schedule;
use kiln_codegen::emit::Cmp;
use kiln_codegen::{CpuTarget, Elem, Emitter, Ty, Val};
use kiln_ir::{BinaryFn, DType};
use std::collections::HashMap;

/// Emits the kernel of a checked nest.
pub fn emit(symbol: &str, nest: &LoopNest, target: &CpuTarget) -> Result<String, SpecError> {
    nest.check()?;
    Ok(Emitter::kernel(symbol, target, |e, k| {
        let ptr = Ty::scalar(Elem::Ptr);
        let slot = |e: &mut Emitter, table: Val, i: usize, ty: Ty| {
            let i = e.i64(i as i64);
            let at = e.offset(table, i, ty.elem);
            e.load(at, ty)
        };
        let args = (0..nest.args.len())
            .map(|i| slot(e, k.args, i, ptr))
            .collect();
        let params = (0..nest.params as usize)
            .map(|i| slot(e, k.params, i, Ty::scalar(Elem::I64)))
            .collect();
        let mut cx = ExprCx::new(&nest.exprs, args, params, k.scratch);
        cx.axes = vec![None; nest.axes.len()];
        cx.clear_status(e);
        let extents = nest.axes.iter().map(|&s| cx.size(e, s)).collect();
        let mut nest = NestEmitter {
            nest,
            schedule: nest.schedule(),
            extents,
            temp_bases: vec![],
            group: None,
            cx,
        };
        nest.place_temps(e);
        nest.tiles(e, k.begin, k.end);
        nest.cx.status(e)
    }))
}

/// A nest while its function is emitted.
pub(crate) struct NestEmitter<'a> {
    pub(crate) nest: &'a LoopNest,
    pub(crate) schedule: Schedule,
    pub(crate) extents: Vec<Val>,
    pub(crate) temp_bases: Vec<Val>,
    /// The threads that share a work unit, where they do.
    pub(crate) group: Option<Group>,
    pub(crate) cx: ExprCx<'a>,
}

impl<'a> NestEmitter<'a> {
    /// The parallel axis along which lanes differ.
    pub(crate) fn outer_vector(&self) -> Option<u8> {
        self.schedule.vector.filter(|&v| !self.nest.is_inner(v))
    }

    /// The inner axis along which lanes differ.
    fn inner_vector(&self) -> Option<u8> {
        self.schedule.vector.filter(|&v| self.nest.is_inner(v))
    }

    fn round_up(e: &mut Emitter, x: Val, to: i64) -> Val {
        let (less, mask) = (e.i64(to - 1), e.i64(-to));
        let up = e.add(x, less);
        e.op2("arith.andi", up, mask)
    }

    /// The axes of a temporary as laid out: the vector axis last.
    fn temp_layout(&self, temp: usize) -> Vec<u8> {
        let mut axes = self.nest.temps[temp].axes.clone();
        axes.sort_by_key(|&a| self.schedule.vector == Some(a));
        axes
    }

    fn temp_extent(&self, e: &mut Emitter, axis: u8) -> Val {
        let extent = self.extents[axis as usize];
        if self.schedule.vector == Some(axis) {
            Self::round_up(e, extent, LANES)
        } else {
            extent
        }
    }

    fn place_temps(&mut self, e: &mut Emitter) {
        let mut at = e.i64(SCRATCH_HEAD);
        for (i, temp) in self.nest.temps.iter().enumerate() {
            self.temp_bases
                .push(e.offset(self.cx.scratch, at, Elem::I8));
            let lanes = if self.outer_vector().is_some() {
                LANES
            } else {
                1
            };
            let mut bytes = e.i64(lanes * temp_element_bytes(temp.dtype));
            for axis in self.temp_layout(i) {
                let extent = self.temp_extent(e, axis);
                bytes = e.mul(bytes, extent);
            }
            let bytes = Self::round_up(e, bytes, 64);
            at = e.add(at, bytes);
        }
    }

    /// How many steps of the tile counter an outer axis takes.
    fn steps(&self, e: &mut Emitter, axis: u8) -> Val {
        let extent = self.extents[axis as usize];
        let points = self.schedule.points(axis);
        if points == 1 {
            return extent;
        }
        let (less, block) = (e.i64(points - 1), e.i64(points));
        let up = e.add(extent, less);
        e.op2("arith.divui", up, block)
    }

    fn tiles(&mut self, e: &mut Emitter, begin: Val, end: Val) {
        let nest = self.nest;
        let outer: Vec<u8> = (0..nest.outer).collect();
        let (zero, one) = (e.i64(0), e.i64(1));
        let steps: Vec<Val> = outer.iter().map(|&a| self.steps(e, a)).collect();
        let (mut begin, mut end) = (begin, end);
        if self.schedule.serial {
            // One tile stands for all of them.
            let all = steps.iter().fold(one, |n, &s| e.mul(n, s));
            let first = e.cmp(Cmp::Eq, begin, zero, false);
            let some = e.cmp(Cmp::Gt, end, begin, false);
            let run = e.op2("arith.andi", first, some);
            end = e.select(run, all, zero);
            begin = zero;
        }
        // The first tile's coordinates; an empty axis divides by one instead.
        let mut rest = begin;
        let mut start = vec![zero; outer.len()];
        for (i, &step) in steps.iter().enumerate().rev() {
            let divisor = e.max(step, one, false);
            start[i] = e.op2("arith.remui", rest, divisor);
            rest = e.op2("arith.divui", rest, divisor);
        }
        let roots: Vec<_> = nest.effects().flat_map(Effect::roots).collect();
        self.cx.hoist(e, &roots);
        e.for_loop(begin, end, one, &start, |e, _, at| {
            self.tile(e, at);
            // Count up, the last axis first.
            let (zero, one) = (e.i64(0), e.i64(1));
            let mut next = at.to_vec();
            let mut carry: Option<Val> = None;
            for i in (0..at.len()).rev() {
                let up = e.add(at[i], one);
                let wraps = e.cmp(Cmp::Ge, up, steps[i], false);
                let moved = e.select(wraps, zero, up);
                next[i] = match carry {
                    Some(c) => e.select(c, moved, at[i]),
                    None => moved,
                };
                carry = Some(match carry {
                    Some(c) => e.op2("arith.andi", c, wraps),
                    None => wraps,
                });
            }
            next
        });
    }

    fn tile(&mut self, e: &mut Emitter, at: &[Val]) {
        let vector = self.outer_vector();
        for (axis, &c) in at.iter().enumerate() {
            if self.schedule.points(axis as u8) == 1 {
                self.cx.axes[axis] = Some(c);
            }
        }
        self.cx.push();
        self.cx.accs.clear();
        match vector {
            None => self.stages(e),
            Some(axis) => {
                let roots: Vec<_> = self.nest.effects().flat_map(Effect::roots).collect();
                self.cx.hoist(e, &roots);
                let block = e.i64(self.schedule.block);
                let low = e.mul(at[axis as usize], block);
                let above = e.add(low, block);
                let extent = self.extents[axis as usize];
                let high = e.min(above, extent, false);
                self.cx.vector = Some(axis);
                let known = self.nest.axes[axis as usize].as_const();
                match self.schedule.crossed {
                    Some(c) => {
                        self.vector_loop(e, axis, (low, high, known), &[], |s, e, _| {
                            s.cross(e, c, at[c.axis as usize], high);
                            vec![]
                        });
                    }
                    None => self.cases(e, axis, (low, high), &mut |s, e, part| {
                        s.vector_loop(e, axis, part, &[], |s, e, _| {
                            s.cx.accs.clear();
                            s.stages(e);
                            vec![]
                        });
                    }),
                }
                self.cx.vector = None;
            }
        }
        self.cx.pop();
        self.cx.axes.fill(None);
    }

    /// Walks an axis from `low` to `high`, 16 points at a time: whole vectors
    /// first, then once more with a mask if points are left. `known` is how many
    /// points there are, or a number with as many left over and no fewer vectors.
    fn vector_loop(
        &mut self,
        e: &mut Emitter,
        axis: u8,
        (low, high, known): (Val, Val, Option<i64>),
        carried: &[Val],
        mut body: impl FnMut(&mut Self, &mut Emitter, &[Val]) -> Vec<Val>,
    ) -> Vec<Val> {
        let step = e.i64(LANES);
        let count = e.sub(high, low);
        let mask = e.i64(-LANES);
        let whole = e.op2("arith.andi", count, mask);
        let middle = e.add(low, whole);
        let mut carried = carried.to_vec();
        if known.is_none_or(|n| n >= LANES) {
            carried = e.for_loop(low, middle, step, &carried, |e, i, c| {
                self.in_loop(axis, i, None, |s| body(s, e, c))
            });
        }
        if known.is_none_or(|n| n % LANES != 0) {
            carried = e.for_loop(middle, high, step, &carried, |e, i, c| {
                let left = e.sub(high, i);
                let mask = e.mask_first(left, LANES as u32);
                self.in_loop(axis, i, Some(mask), |s| body(s, e, c))
            });
        }
        carried
    }

    /// Binds an axis for the length of a loop body.
    pub(crate) fn in_loop<T>(
        &mut self,
        axis: u8,
        i: Val,
        mask: Option<Val>,
        body: impl FnOnce(&mut Self) -> T,
    ) -> T {
        self.cx.axes[axis as usize] = Some(i);
        self.cx.push();
        let before = self.cx.mask;
        if mask.is_some() {
            self.cx.mask = mask;
        }
        let out = body(self);
        self.cx.mask = before;
        self.cx.pop();
        self.cx.axes[axis as usize] = None;
        out
    }

    pub(crate) fn stages(&mut self, e: &mut Emitter) {
        let nest = self.nest;
        for stage in &nest.stages {
            self.stage(e, stage);
        }
    }

    fn stage(&mut self, e: &mut Emitter, stage: &'a Stage) {
        let inner = self.inner_vector().filter(|v| stage.axes.contains(v));
        let outer_vector = self.cx.vector;
        if inner.is_some() {
            self.cx.vector = inner;
        }
        let lanes = if self.cx.vector.is_some() {
            LANES as u32
        } else {
            0
        };
        let accs = Accs::of(stage);
        let start: Vec<Val> = accs.start(e, self.nest, lanes);
        for acc in &accs.numbers {
            self.cx.accs.remove(acc);
        }
        let end = self.loops(e, stage, &stage.axes, &accs, &start);
        for (acc, &v) in accs.numbers.iter().zip(&end) {
            self.cx.accs.insert(*acc, v);
        }
        if inner.is_some() {
            self.join_lanes(e, stage);
        }
        if (self.group.as_ref()).is_some_and(|g| stage.axes.contains(&g.axis)) {
            self.join_threads(e, stage);
        }
        self.cx.vector = outer_vector;
    }

    /// The remaining loops of a stage around its effects.
    pub(crate) fn loops(
        &mut self,
        e: &mut Emitter,
        stage: &'a Stage,
        axes: &[u8],
        accs: &Accs,
        carried: &[Val],
    ) -> Vec<Val> {
        let Some((&axis, rest)) = axes.split_first() else {
            return self.effects(e, stage, accs, carried);
        };
        let roots: Vec<_> = stage.effects.iter().flat_map(Effect::roots).collect();
        self.cx.hoist(e, &roots);
        let extent = self.extents[axis as usize];
        let zero = e.i64(0);
        if self.inner_vector() == Some(axis) {
            let known = self.nest.axes[axis as usize].as_const();
            return self.vector_loop(e, axis, (zero, extent, known), carried, |s, e, c| {
                s.loops(e, stage, rest, accs, c)
            });
        }
        if let Some(group) = self.group.as_ref().filter(|g| g.axis == axis) {
            let (first, step) = (group.first, group.step);
            return e.for_loop(first, extent, step, carried, |e, i, c| {
                self.in_loop(axis, i, None, |s| s.loops(e, stage, rest, accs, c))
            });
        }
        if let Some(points) = self.unrolled(stage, axes) {
            return self.written_out(e, stage, (axis, points), rest, accs, carried);
        }
        let one = e.i64(1);
        e.for_loop(zero, extent, one, carried, |e, i, c| {
            self.in_loop(axis, i, None, |s| s.loops(e, stage, rest, accs, c))
        })
    }

    /// The effects at one point (or 16); gives the next accumulators.
    fn effects(
        &mut self,
        e: &mut Emitter,
        stage: &'a Stage,
        accs: &Accs,
        carried: &[Val],
    ) -> Vec<Val> {
        self.locate_temps(e, stage);
        let mut now: HashMap<u16, Val> = accs
            .numbers
            .iter()
            .copied()
            .zip(carried.iter().copied())
            .collect();
        for effect in &stage.effects {
            match effect {
                Effect::Reduce { acc, by, value } => {
                    let t = self.nest.exprs.dtype(*value);
                    let v = self.cx.value(e, *value);
                    let next = combine(e, *by, t, now[acc], v);
                    let next = self.if_lane(e, next, now[acc]);
                    now.insert(*acc, next);
                }
                Effect::Scan {
                    acc,
                    by,
                    value,
                    exclusive,
                } => {
                    let t = self.nest.exprs.dtype(*value);
                    let v = self.cx.value(e, *value);
                    let next = combine(e, *by, t, now[acc], v);
                    let shown = if *exclusive { now[acc] } else { next };
                    self.cx.accs.insert(*acc, shown);
                    now.insert(*acc, next);
                }
                Effect::ArgReduce {
                    best,
                    at,
                    value,
                    position,
                    ..
                } => {
                    let t = self.nest.exprs.dtype(*value);
                    let v = self.cx.value(e, *value);
                    let p = self.cx.value(e, *position);
                    let (v, p) = (e.splat(v, now[best].ty.lanes), e.splat(p, now[at].ty.lanes));
                    let wins = beats(e, effect, t, (v, p), (now[best], now[at]));
                    let wins = match self.cx.mask {
                        Some(mask) if wins.ty.lanes > 0 => e.op2("arith.andi", wins, mask),
                        _ => wins,
                    };
                    let (b, a) = (e.select(wins, v, now[best]), e.select(wins, p, now[at]));
                    now.insert(*best, b);
                    now.insert(*at, a);
                }
                Effect::Keep { temp, value } => {
                    let v = self.cx.value(e, *value);
                    let place = self.cx.temps[temp];
                    let v = if place.spread {
                        e.splat(v, LANES as u32)
                    } else {
                        v
                    };
                    e.store(v, place.pointer);
                }
                Effect::Store {
                    arg,
                    index,
                    value,
                    update,
                    when,
                } => {
                    let t = self.nest.args[*arg as usize];
                    let when = when.map(|w| self.cx.value(e, w));
                    let when = match &self.group {
                        // What no thread has a part of, one of them stores.
                        Some(g) if !stage.axes.contains(&g.axis) => Some(and(e, when, g.leads)),
                        _ => when,
                    };
                    let v = self.cx.value(e, *value);
                    match update {
                        None => self.cx.store(e, *arg, t, index, v, when),
                        Some(by) => {
                            let f = &mut |e: &mut Emitter, old| combine(e, *by, t, old, v);
                            self.cx.update(e, *arg, t, index, f, when);
                        }
                    }
                }
            }
        }
        // A scan's running value ends with the loop body.
        for acc in &accs.numbers {
            self.cx.accs.remove(acc);
        }
        accs.numbers.iter().map(|acc| now[acc]).collect()
    }

    /// The new value in lanes that exist, the old one elsewhere.
    fn if_lane(&mut self, e: &mut Emitter, new: Val, old: Val) -> Val {
        match self.cx.mask {
            Some(mask) if new.ty.lanes > 0 => e.select(mask, new, old),
            _ => new,
        }
    }

    /// Points every temporary that this stage can reach at the current element.
    fn locate_temps(&mut self, e: &mut Emitter, stage: &Stage) {
        self.cx.temps.clear();
        for (i, temp) in self.nest.temps.iter().enumerate() {
            if !temp.axes.iter().all(|a| stage.axes.contains(a)) {
                continue;
            }
            let mut at = e.i64(0);
            for axis in self.temp_layout(i) {
                let (extent, c) = (self.temp_extent(e, axis), self.cx.axes[axis as usize]);
                let Some(c) = c else {
                    unreachable!("the stage loops over its axes")
                };
                let row = e.mul(at, extent);
                at = e.add(row, c);
            }
            if self.outer_vector().is_some() {
                let lanes = e.i64(LANES);
                at = e.mul(at, lanes);
            }
            let spread = self.outer_vector().is_some()
                || self.inner_vector().is_some_and(|v| temp.axes.contains(&v));
            let pointer = e.offset(self.temp_bases[i], at, compute_elem(temp.dtype));
            self.cx
                .temps
                .insert(i as u16, TempPlace { pointer, spread });
        }
    }

    /// Folds the lanes of a stage's accumulators into scalars by a fixed tree.
    fn join_lanes(&mut self, e: &mut Emitter, stage: &Stage) {
        for effect in &stage.effects {
            match effect {
                Effect::Reduce { acc, by, value } => {
                    let t = self.nest.exprs.dtype(*value);
                    let x = self.cx.accs[acc];
                    let joined = e.fold_lanes(x, &mut |e, a, b| combine(e, *by, t, a, b));
                    self.cx.accs.insert(*acc, joined);
                }
                Effect::ArgReduce {
                    best, at, value, ..
                } => {
                    let t = self.nest.exprs.dtype(*value);
                    let (mut v, mut p) = (self.cx.accs[best], self.cx.accs[at]);
                    while v.ty.lanes > 1 {
                        let half = v.ty.lanes / 2;
                        let low: Vec<u32> = (0..half).collect();
                        let high: Vec<u32> = (half..2 * half).collect();
                        let (va, vb) = (e.shuffle(v, v, &low), e.shuffle(v, v, &high));
                        let (pa, pb) = (e.shuffle(p, p, &low), e.shuffle(p, p, &high));
                        let wins = beats(e, effect, t, (vb, pb), (va, pa));
                        v = e.select(wins, vb, va);
                        p = e.select(wins, pb, pa);
                    }
                    let (v, p) = (e.extract(v, 0), e.extract(p, 0));
                    self.cx.accs.insert(*best, v);
                    self.cx.accs.insert(*at, p);
                }
                Effect::Scan { .. } | Effect::Store { .. } | Effect::Keep { .. } => {}
            }
        }
    }
}

/// The accumulators that one stage fills.
pub(crate) struct Accs {
    pub(crate) numbers: Vec<u16>,
}

impl Accs {
    pub(crate) fn of(stage: &Stage) -> Accs {
        let mut numbers = vec![];
        for effect in &stage.effects {
            match effect {
                Effect::Reduce { acc, .. } | Effect::Scan { acc, .. } => numbers.push(*acc),
                Effect::ArgReduce { best, at, .. } => numbers.extend([*best, *at]),
                Effect::Store { .. } | Effect::Keep { .. } => {}
            }
        }
        Accs { numbers }
    }

    /// Their first values, in the order of `numbers`.
    pub(crate) fn start(&self, e: &mut Emitter, nest: &LoopNest, lanes: u32) -> Vec<Val> {
        let types = nest.acc_dtypes();
        let by = nest.effects().flat_map(|effect| match effect {
            Effect::Reduce { acc, by, .. } | Effect::Scan { acc, by, .. } => {
                vec![(*acc, Some(*by))]
            }
            Effect::ArgReduce {
                best, at, largest, ..
            } => {
                let by = if *largest { Reducer::Max } else { Reducer::Min };
                vec![(*best, Some(by)), (*at, None)]
            }
            Effect::Store { .. } | Effect::Keep { .. } => vec![],
        });
        let by: HashMap<u16, Option<Reducer>> = by.collect();
        (self.numbers.iter())
            .map(|acc| {
                let t = types
                    .iter()
                    .find(|(i, _)| i == acc)
                    .map_or(DType::I64, |x| x.1);
                let v = match by[acc] {
                    Some(by) => constant(e, compute_dtype(t), identity(by, t)),
                    None => e.i64(-1),
                };
                e.splat(v, lanes)
            })
            .collect()
    }
}

/// One step of a reduction.
pub fn combine(e: &mut Emitter, by: Reducer, t: DType, a: Val, b: Val) -> Val {
    let f = match by {
        Reducer::Sum if t == DType::Bool => BinaryFn::Or,
        Reducer::Prod if t == DType::Bool => BinaryFn::And,
        Reducer::Sum => BinaryFn::Add,
        Reducer::Prod => BinaryFn::Mul,
        Reducer::Max => BinaryFn::Max,
        Reducer::Min => BinaryFn::Min,
    };
    math::binary(e, f, a, b, is_unsigned(t))
}

/// Whether candidate `(v, p)` takes the place of `(best, at)`. Position −1 says
/// that there is none yet; the order is total, so lanes join in any order.
pub(crate) fn beats(
    e: &mut Emitter,
    how: &Effect,
    t: DType,
    new: (Val, Val),
    old: (Val, Val),
) -> Val {
    let Effect::ArgReduce { largest, last, .. } = how else {
        unreachable!("only arg reductions compare positions")
    };
    let order = if *largest { Cmp::Gt } else { Cmp::Lt };
    let better = e.cmp(order, new.0, old.0, is_unsigned(t));
    let equal = e.cmp(Cmp::Eq, new.0, old.0, false);
    let position = if *last { Cmp::Gt } else { Cmp::Lt };
    let nearer = e.cmp(position, new.1, old.1, false);
    let tie = e.op2("arith.andi", equal, nearer);
    let mut wins = e.op2("arith.ori", better, tie);
    if t.is_float() {
        let (new_nan, old_nan) = (
            e.cmp(Cmp::Ne, new.0, new.0, false),
            e.cmp(Cmp::Ne, old.0, old.0, false),
        );
        let earlier = e.cmp(Cmp::Lt, new.1, old.1, false);
        let first = e.int(Ty::scalar(Elem::I1), 1);
        let first = e.splat(first, old_nan.ty.lanes);
        // Both NaN: the earlier; only the new one: it wins; only the old one: it stays.
        let new_wins = e.select(old_nan, earlier, first);
        let not = e.op2("arith.xori", old_nan, first);
        let numbers = e.op2("arith.andi", wins, not);
        wins = e.select(new_nan, new_wins, numbers);
    }
    let none = e.int(old.1.ty, -1);
    let vacant = e.cmp(Cmp::Eq, old.1, none, false);
    let exists = e.cmp(Cmp::Ne, new.1, none, false);
    let wins = e.op2("arith.ori", wins, vacant);
    e.op2("arith.andi", wins, exists)
}
