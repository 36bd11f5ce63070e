//! Expressions to MLIR: what every family calls for its stages, prologues and
//! epilogues.
//!
//! A value that is the same for all lanes stays a scalar until it meets a
//! vector, so that row statistics, broadcasts and index arithmetic cost one
//! scalar instruction. Every emitted value is remembered in the scope (loop
//! body) where it was emitted.

use crate::expr::{ExprId, Exprs, Guard, Index, Node, Size, compute_dtype};
use crate::math;
use crate::nest::LANES;
use crate::quantized;
use crate::small::{self, is_small_float, is_small_int};
use crate::{STATUS_DIVISION_BY_ZERO, STATUS_OUT_OF_RANGE};
use kiln_codegen::emit::Cmp;
use kiln_codegen::{Elem, Emitter, Ty, Val};
use kiln_ir::{BinaryFn, CompareFn, DType, Kind};
use std::collections::HashMap;

/// Where the dummy vector starts in the scratch head.
const DUMMY: i64 = 64;

/// The lane type of a dtype in memory.
pub fn memory_elem(t: DType) -> Elem {
    match t {
        DType::F64 => Elem::F64,
        DType::F32 => Elem::F32,
        DType::F16 => Elem::F16,
        DType::BF16 => Elem::BF16,
        DType::I64 | DType::U64 => Elem::I64,
        DType::I32 | DType::U32 => Elem::I32,
        DType::I16 | DType::U16 => Elem::I16,
        DType::Bool => Elem::I1,
        // Bytes, and what has a byte of its own here.
        _ => Elem::I8,
    }
}

/// The lane type in which a dtype is computed.
pub fn compute_elem(t: DType) -> Elem {
    memory_elem(compute_dtype(t))
}

/// Whether integer operations on the type are the unsigned ones.
pub fn is_unsigned(t: DType) -> bool {
    matches!(t.kind(), Kind::Uint | Kind::Bool)
}

/// Everything that expressions refer to while one kernel is emitted.
pub struct ExprCx<'a> {
    /// The arena.
    pub exprs: &'a Exprs,
    /// Buffer pointers.
    pub args: Vec<Val>,
    /// Launch parameters (i64).
    pub params: Vec<Val>,
    /// The thread's scratch memory, which starts with the status word.
    pub scratch: Val,
    /// The first coordinate (i64) along each axis that has one here.
    pub axes: Vec<Option<Val>>,
    /// The axis along which lanes differ.
    pub vector: Option<u8>,
    /// Lanes of a vector.
    pub lanes: u32,
    /// Which lanes exist; `None`: all of them.
    pub mask: Option<Val>,
    /// Accumulators (and family results) that have a value here.
    pub accs: HashMap<u16, Val>,
    /// Pointers to the current element of each row temporary.
    pub temps: HashMap<u16, TempPlace>,
    /// Conditions that are known where code is being emitted.
    pub assumed: HashMap<ExprId, bool>,
    /// Loads whose lanes, as they stand in memory, were brought here already.
    pub ready: HashMap<ExprId, Val>,
    /// Where a guarded load's index counts.
    only: Option<Val>,
    scopes: Vec<HashMap<ExprId, Val>>,
}

/// Where a row temporary's current element is.
#[derive(Clone, Copy, Debug)]
pub struct TempPlace {
    /// Address.
    pub pointer: Val,
    /// Whether lanes have neighbouring elements (else one element serves all).
    pub spread: bool,
}

/// Where an index leads.
enum Place {
    /// One element for all lanes.
    One(Val),
    /// Neighbouring elements for neighbouring lanes.
    Run(Val),
    /// An address and a validity per lane.
    Each(Val, Option<Val>),
}

impl<'a> ExprCx<'a> {
    /// A context with nothing bound.
    pub fn new(exprs: &'a Exprs, args: Vec<Val>, params: Vec<Val>, scratch: Val) -> ExprCx<'a> {
        ExprCx {
            exprs,
            args,
            params,
            scratch,
            axes: vec![],
            vector: None,
            lanes: LANES as u32,
            mask: None,
            accs: HashMap::new(),
            temps: HashMap::new(),
            assumed: HashMap::new(),
            ready: HashMap::new(),
            only: None,
            scopes: vec![HashMap::new()],
        }
    }

    /// Enters a loop body.
    pub fn push(&mut self) {
        self.scopes.push(HashMap::new());
    }

    /// Leaves a loop body: what was emitted in it is no longer visible.
    pub fn pop(&mut self) {
        self.scopes.pop();
    }

    /// Leaves a loop body, and gives what was emitted in it.
    pub(crate) fn leave(&mut self) -> HashMap<ExprId, Val> {
        self.scopes.pop().unwrap_or_default()
    }

    /// Enters a loop body of which this was emitted before.
    pub(crate) fn enter(&mut self, emitted: HashMap<ExprId, Val>) {
        self.scopes.push(emitted);
    }

    /// Stores 0 as the status.
    pub fn clear_status(&self, e: &mut Emitter) {
        let zero = e.int(Ty::scalar(Elem::I32), 0);
        e.store(zero, self.scratch);
    }

    /// The status so far.
    pub fn status(&self, e: &mut Emitter) -> Val {
        e.load(self.scratch, Ty::scalar(Elem::I32))
    }

    /// A size as an i64 value.
    pub fn size(&self, e: &mut Emitter, size: Size) -> Val {
        match size {
            Size::Const(c) => e.i64(c),
            Size::Param(i) => self.params[i as usize],
        }
    }

    /// Emits what the roots need that can be computed already, before a loop.
    pub fn hoist(&mut self, e: &mut Emitter, roots: &[ExprId]) {
        let exprs = self.exprs;
        let reachable = exprs.reachable(roots);
        let mut ready: HashMap<ExprId, bool> = HashMap::new();
        for &id in &reachable {
            let args_ready = exprs.operands(id).iter().all(|x| ready[x]);
            ready.insert(id, args_ready && self.is_ready(id));
        }
        // The topmost ready nodes pull in what they need.
        let mut wanted: Vec<ExprId> = roots.iter().copied().filter(|r| ready[r]).collect();
        for &id in reachable.iter().filter(|id| !ready[id]) {
            wanted.extend(exprs.operands(id).into_iter().filter(|x| ready[x]));
        }
        wanted.sort();
        wanted.dedup();
        for id in wanted {
            if !matches!(
                exprs.node(id),
                Node::Const { .. } | Node::Param(_) | Node::Axis(_)
            ) {
                self.value(e, id);
            }
        }
    }

    /// Takes a condition for known, with what follows from it.
    pub(crate) fn assume(&mut self, condition: ExprId, truth: bool) {
        self.assumed.insert(condition, truth);
        match self.exprs.node(condition) {
            Node::Binary(BinaryFn::And, a, b) if truth => {
                self.assume(*a, true);
                self.assume(*b, true);
            }
            Node::Compare(CompareFn::Lt, x, y) if self.exprs.dtype(*x) == DType::I64 => {
                let opposite = Node::Compare(CompareFn::Ge, *x, *y);
                let known = self.exprs.iter().find(|(_, n)| **n == opposite);
                if let Some((id, _)) = known {
                    self.assumed.insert(id, !truth);
                }
            }
            _ => {}
        }
    }

    /// What a condition is known to be.
    pub(crate) fn decided(&self, condition: ExprId) -> Option<bool> {
        if let Some(&truth) = self.assumed.get(&condition) {
            return Some(truth);
        }
        match self.exprs.node(condition) {
            Node::Const { bits, .. } => Some(*bits != 0),
            Node::Binary(BinaryFn::And, a, b) => match (self.decided(*a), self.decided(*b)) {
                (Some(false), _) | (_, Some(false)) => Some(false),
                (Some(true), rest) | (rest, Some(true)) => rest,
                (None, None) => None,
            },
            _ => None,
        }
    }

    /// Whether a node whose operands are ready can be computed here.
    fn is_ready(&self, id: ExprId) -> bool {
        let bound = |a: u8| self.axes.get(a as usize).is_some_and(Option::is_some);
        match self.exprs.node(id) {
            Node::Axis(a) => bound(*a),
            Node::Acc(i, _) => self.accs.contains_key(i),
            Node::Temp(..) => false,
            Node::Load { index, .. } => {
                // What can fail must not run for a loop of no iterations.
                let strides = (0..).zip(&index.strides);
                index.gathers.is_empty()
                    && strides
                        .filter(|(_, s)| **s != Size::ZERO)
                        .all(|(a, _)| bound(a))
            }
            Node::Binary(BinaryFn::Div | BinaryFn::Rem | BinaryFn::Mod, a, _) => {
                self.exprs.dtype(*a).is_float()
            }
            Node::Const { .. } | Node::Param(_) | Node::Unary(..) | Node::Binary(..) => true,
            Node::Compare(..) | Node::Select(..) | Node::Cast(..) => true,
        }
    }

    /// The value of an expression: a scalar where all lanes agree.
    pub fn value(&mut self, e: &mut Emitter, id: ExprId) -> Val {
        if let Some(v) = self.scopes.iter().rev().find_map(|s| s.get(&id)) {
            return *v;
        }
        let v = self.emit(e, id);
        if let Some(scope) = self.scopes.last_mut() {
            scope.insert(id, v);
        }
        v
    }

    fn emit(&mut self, e: &mut Emitter, id: ExprId) -> Val {
        let exprs = self.exprs;
        let t = exprs.dtype(id);
        match exprs.node(id) {
            Node::Const { dtype, bits } => constant(e, *dtype, *bits),
            Node::Param(i) => self.params[*i as usize],
            Node::Axis(a) => self.coordinate(e, *a),
            Node::Acc(i, _) => self.accs[i],
            Node::Temp(i, t) => {
                let place = self.temps[i];
                let lanes = if place.spread { self.lanes } else { 0 };
                let elem = compute_elem(*t);
                e.load(place.pointer, Ty { elem, lanes })
            }
            Node::Load {
                arg,
                dtype,
                index,
                guard,
            } => match self.ready.get(&id) {
                Some(&raw) => {
                    let elem = memory_elem(*dtype);
                    let v = match elem {
                        Elem::I1 => e.cast(raw, elem, true, true),
                        _ => e.bitcast(raw, elem),
                    };
                    widen(e, v, *dtype)
                }
                None => self.load(e, *arg, *dtype, index, *guard),
            },
            Node::Unary(f, x) => {
                let from = exprs.dtype(*x);
                let x = self.value(e, *x);
                math::unary(e, *f, x, is_unsigned(from))
            }
            Node::Binary(f, a, b) => {
                let exponent = float_constant(exprs, *b);
                let (a, b) = (self.value(e, *a), self.value(e, *b));
                let checked = matches!(f, BinaryFn::Div | BinaryFn::Rem | BinaryFn::Mod);
                if checked && !t.is_float() {
                    return self.integer_division(e, *f, a, b, is_unsigned(t));
                }
                if let (BinaryFn::Pow, Some(n)) = (f, exponent)
                    && let Some(v) = math::pow_const(e, a, n)
                {
                    return v;
                }
                math::binary(e, *f, a, b, is_unsigned(t))
            }
            Node::Compare(f, a, b) => {
                let unsigned = is_unsigned(exprs.dtype(*a));
                let (a, b) = (self.value(e, *a), self.value(e, *b));
                e.cmp(math::cmp_of(*f), a, b, unsigned)
            }
            Node::Select(c, a, b) => {
                if let Some(truth) = self.decided(*c) {
                    return self.value(e, if truth { *a } else { *b });
                }
                let (c, a, b) = (self.value(e, *c), self.value(e, *a), self.value(e, *b));
                e.select(c, a, b)
            }
            Node::Cast(to, x) => {
                if let Some((t, x, z)) = quantized::byte(exprs, id) {
                    let x = self.value(e, x);
                    let whole = quantized::to_byte_range(e, x, z, t);
                    return e.cast(whole, Elem::I8, false, false);
                }
                // What is read as a number again is never a byte.
                if let (DType::I32, Some((t, x, z))) = (*to, quantized::byte(exprs, *x)) {
                    let x = self.value(e, x);
                    return quantized::to_byte_range(e, x, z, t);
                }
                let from = exprs.dtype(*x);
                let x = self.value(e, *x);
                let stored = convert(e, x, from, *to);
                widen(e, stored, *to)
            }
        }
    }

    fn coordinate(&mut self, e: &mut Emitter, axis: u8) -> Val {
        let Some(base) = self.axes[axis as usize] else {
            unreachable!("the nest's check binds axis {axis} here");
        };
        if self.vector != Some(axis) {
            return base;
        }
        let lane = e.iota(Elem::I64, self.lanes);
        e.add(base, lane)
    }

    /// Marks the launch as failed where `bad` holds in a lane that exists.
    fn fail(&mut self, e: &mut Emitter, bad: Val, status: i32) {
        let bad = and(e, self.only, bad);
        let bad = match self.mask {
            Some(mask) if bad.ty.lanes > 0 => e.op2("arith.andi", bad, mask),
            _ => bad,
        };
        let any = e.any(bad);
        let scratch = self.scratch;
        e.if_then(any, |e| {
            let status = e.int(Ty::scalar(Elem::I32), status as i64);
            e.store(status, scratch);
        });
    }

    fn integer_division(
        &mut self,
        e: &mut Emitter,
        f: BinaryFn,
        a: Val,
        b: Val,
        unsigned: bool,
    ) -> Val {
        let zero = e.int(b.ty, 0);
        let bad = e.cmp(Cmp::Eq, b, zero, false);
        self.fail(e, bad, STATUS_DIVISION_BY_ZERO);
        math::integer_division(e, f, a, b, unsigned)
    }

    fn place(&mut self, e: &mut Emitter, arg: u16, elem: Elem, index: &Index) -> Place {
        let mut at = self.size(e, index.offset);
        let mut step = None;
        for (axis, &stride) in index.strides.iter().enumerate() {
            if stride == Size::ZERO {
                continue;
            }
            let Some(base) = self.axes[axis] else {
                unreachable!("the nest's check binds axis {axis} here");
            };
            if self.vector == Some(axis as u8) {
                step = Some(stride);
            }
            let s = self.size(e, stride);
            let term = e.mul(base, s);
            at = e.add(at, term);
        }
        // Gathered terms: those equal for all lanes move the base.
        let mut lanes_at: Option<Val> = None;
        let mut ok: Option<Val> = None;
        let mut base_ok: Option<Val> = None;
        for g in &index.gathers {
            let t = self.exprs.dtype(g.index);
            let raw = self.value(e, g.index);
            let i = e.cast(raw, Elem::I64, is_unsigned(t), false);
            let extent = self.size(e, g.extent);
            let zero = e.i64(0);
            let negative = e.cmp(Cmp::Lt, i, zero, false);
            let from_end = e.add(i, extent);
            // A u64 beyond i64 looks negative and is out of range.
            let i = if t == DType::U64 {
                i
            } else {
                e.select(negative, from_end, i)
            };
            let inside = e.cmp(Cmp::Lt, i, extent, true);
            let outside = e.cmp(Cmp::Ge, i, extent, true);
            self.fail(e, outside, STATUS_OUT_OF_RANGE);
            let stride = self.size(e, g.stride);
            let term = e.mul(i, stride);
            if term.ty.lanes == 0 {
                at = e.add(at, term);
                base_ok = Some(and(e, base_ok, inside));
            } else {
                lanes_at = Some(lanes_at.map_or(term, |l| e.add(l, term)));
                ok = Some(and(e, ok, inside));
            }
        }
        let base = e.offset(self.args[arg as usize], at, elem);
        let base = match base_ok {
            Some(good) => self.or_dummy(e, good, base),
            None => base,
        };
        let run = matches!(step, Some(Size::Const(1)));
        if lanes_at.is_none() && (run || step.is_none()) {
            return if run {
                Place::Run(base)
            } else {
                Place::One(base)
            };
        }
        if let Some(stride) = step {
            let lane = e.iota(Elem::I64, self.lanes);
            let s = self.size(e, stride);
            let term = e.mul(lane, s);
            lanes_at = Some(lanes_at.map_or(term, |l| e.add(l, term)));
        }
        // Lanes whose base is a dummy must not add their distances to it.
        if let Some(good) = base_ok {
            ok = Some(and(e, ok, good));
        }
        match lanes_at {
            Some(l) => {
                let pointers = e.offset(base, l, elem);
                let ok = ok.map(|x| e.splat(x, self.lanes));
                Place::Each(pointers, ok)
            }
            None => Place::One(base),
        }
    }

    /// The address of an index that gathers nothing, at the first lane.
    pub(crate) fn address(&mut self, e: &mut Emitter, arg: u16, elem: Elem, index: &Index) -> Val {
        let vector = self.vector.take();
        let place = self.place(e, arg, elem, index);
        self.vector = vector;
        match place {
            Place::One(p) => p,
            Place::Run(_) | Place::Each(..) => unreachable!("one lane has one place"),
        }
    }

    /// The pointer where `good`, else one to memory that can be read.
    fn or_dummy(&mut self, e: &mut Emitter, good: Val, pointer: Val) -> Val {
        let at = e.i64(DUMMY);
        let dummy = e.offset(self.scratch, at, Elem::I8);
        e.select(good, pointer, dummy)
    }

    fn load(
        &mut self,
        e: &mut Emitter,
        arg: u16,
        dtype: DType,
        index: &Index,
        guard: Option<Guard>,
    ) -> Val {
        let Some(guard) = guard else {
            return self.load_plain(e, arg, dtype, index, None);
        };
        match self.decided(guard.when) {
            Some(true) => return self.load_plain(e, arg, dtype, index, None),
            Some(false) => return self.value(e, guard.otherwise),
            None => {}
        }
        let (when, otherwise) = (self.value(e, guard.when), self.value(e, guard.otherwise));
        // A gathered index counts only where the guard holds.
        let outer = self.only;
        self.only = Some(and(e, outer, when));
        let v = self.load_plain(e, arg, dtype, index, Some(when));
        self.only = outer;
        e.select(when, v, otherwise)
    }

    /// A load that touches memory only where `when` holds.
    fn load_plain(
        &mut self,
        e: &mut Emitter,
        arg: u16,
        dtype: DType,
        index: &Index,
        when: Option<Val>,
    ) -> Val {
        let elem = memory_elem(dtype);
        // Masked 16-bit float accesses are not one instruction; integers are.
        let raw = match elem {
            Elem::F16 | Elem::BF16 => Elem::I16,
            other => other,
        };
        let mut place = self.place(e, arg, raw, index);
        if let Some(when) = when {
            let some = e.any(when);
            place = match place {
                Place::One(p) => Place::One(self.or_dummy(e, some, p)),
                Place::Run(p) => Place::Run(self.or_dummy(e, some, p)),
                Place::Each(p, ok) => Place::Each(p, Some(and(e, ok, when))),
            };
        }
        let v = match place {
            Place::One(p) => e.load(p, Ty::scalar(raw)),
            Place::Run(p) => {
                let ty = Ty::vector(raw, self.lanes);
                let lanes_differ = when.filter(|w| w.ty.lanes > 0);
                if self.mask.is_some() || lanes_differ.is_some() {
                    let mask = self.lane_mask(e, lanes_differ);
                    e.load_masked(p, ty, mask)
                } else {
                    e.load(p, ty)
                }
            }
            Place::Each(p, ok) => {
                let ty = Ty::vector(raw, self.lanes);
                let mask = self.lane_mask(e, ok);
                e.gather(p, ty, mask)
            }
        };
        let v = e.bitcast(v, elem);
        widen(e, v, dtype)
    }

    /// The lanes that exist and are `ok`.
    fn lane_mask(&mut self, e: &mut Emitter, ok: Option<Val>) -> Val {
        let all = match (self.mask, ok) {
            (Some(m), Some(ok)) => e.op2("arith.andi", m, ok),
            (Some(m), None) | (None, Some(m)) => m,
            (None, None) => e.int(Ty::scalar(Elem::I1), 1),
        };
        e.splat(all, self.lanes)
    }

    /// Writes a value to a buffer, rounded to its type.
    pub fn store(
        &mut self,
        e: &mut Emitter,
        arg: u16,
        dtype: DType,
        index: &Index,
        value: Val,
        when: Option<Val>,
    ) {
        let value = convert(e, value, compute_dtype(dtype), dtype);
        let (raw, value) = match value.ty.elem {
            Elem::F16 | Elem::BF16 => (Elem::I16, e.bitcast(value, Elem::I16)),
            other => (other, value),
        };
        let place = self.place(e, arg, raw, index);
        match place {
            Place::One(p) => {
                let x = if value.ty.lanes > 0 {
                    e.extract(value, 0)
                } else {
                    value
                };
                match when {
                    Some(w) => {
                        let w = e.any(w);
                        e.if_then(w, |e| e.store(x, p));
                    }
                    None => e.store(x, p),
                }
            }
            Place::Run(p) => {
                let x = e.splat(value, self.lanes);
                match (self.mask, when) {
                    (None, None) => e.store(x, p),
                    _ => {
                        let mask = self.lane_mask(e, when);
                        e.store_masked(x, p, mask);
                    }
                }
            }
            Place::Each(p, ok) => {
                let x = e.splat(value, self.lanes);
                let ok = match (ok, when) {
                    (Some(a), Some(b)) => Some(e.op2("arith.andi", a, b)),
                    (a, b) => a.or(b),
                };
                let mask = self.lane_mask(e, ok);
                e.scatter(x, p, mask);
            }
        }
    }

    /// The element that a store with an update combines with, and the store.
    pub fn update(
        &mut self,
        e: &mut Emitter,
        arg: u16,
        dtype: DType,
        index: &Index,
        combine: &mut dyn FnMut(&mut Emitter, Val) -> Val,
        when: Option<Val>,
    ) {
        let old = self.load_plain(e, arg, dtype, index, when);
        let new = combine(e, old);
        self.store(e, arg, dtype, index, new, when);
    }
}

/// The value of a floating-point constant.
fn float_constant(exprs: &Exprs, id: ExprId) -> Option<f64> {
    match exprs.node(id) {
        Node::Const {
            dtype: DType::F64,
            bits,
        } => Some(f64::from_bits(*bits)),
        Node::Const { dtype, bits } if dtype.is_float() => {
            Some(f32::from_bits(*bits as u32) as f64)
        }
        _ => None,
    }
}

/// Both conditions.
pub(crate) fn and(e: &mut Emitter, a: Option<Val>, b: Val) -> Val {
    match a {
        Some(a) => e.op2("arith.andi", a, b),
        None => b,
    }
}

/// A scalar constant of a dtype's compute type.
pub fn constant(e: &mut Emitter, dtype: DType, bits: u64) -> Val {
    let ty = Ty::scalar(compute_elem(dtype));
    match ty.elem {
        Elem::F64 => e.float(ty, f64::from_bits(bits)),
        Elem::F32 => e.float(ty, f32::from_bits(bits as u32) as f64),
        _ => e.int(ty, bits as i64),
    }
}

/// Narrow floats, as they stand in memory, to f32; other types stay.
pub fn widen(e: &mut Emitter, x: Val, dtype: DType) -> Val {
    if is_small_float(dtype) {
        return small::decode(e, x, dtype);
    }
    match x.ty.elem {
        Elem::F16 | Elem::BF16 => e.cast(x, Elem::F32, false, false),
        _ => x,
    }
}

/// A value of type `from` (as computed) to `to` as it stands in memory.
pub fn convert(e: &mut Emitter, x: Val, from: DType, to: DType) -> Val {
    let (a, b) = (is_unsigned(from), is_unsigned(to));
    if is_small_float(to) {
        let x = match x.ty.elem {
            Elem::F64 => math::f64_to_f32_odd(e, x),
            _ => e.cast(x, Elem::F32, a, false),
        };
        return small::encode(e, x, to);
    }
    if is_small_int(to) && from != to {
        if x.ty.elem.is_float() {
            let whole = e.cast(x, Elem::I32, a, false);
            let held = small::clamp_int(e, whole, to);
            return e.cast(held, Elem::I8, false, false);
        }
        let byte = e.cast(x, Elem::I8, a, b);
        return small::wrap_int(e, byte, to);
    }
    match (x.ty.elem, memory_elem(to)) {
        (Elem::F64, Elem::F16 | Elem::BF16) => {
            let odd = math::f64_to_f32_odd(e, x);
            e.cast(odd, memory_elem(to), a, b)
        }
        (_, elem) => e.cast(x, elem, a, b),
    }
}
