//! What a loop nest means, point by point: slow and obvious. Tests compare
//! compiled kernels with it.

use crate::expr::{ExprId, Index, Node, compute_dtype, is_narrow_float, wrap};
use crate::nest::{Effect, LoopNest, Reducer, identity};
use crate::small::is_small_int;
use crate::{STATUS_DIVISION_BY_ZERO, STATUS_OUT_OF_RANGE};
use kiln_ir::tensor::{Encoder, read_f64, read_i64};
use kiln_ir::{BinaryFn, CompareFn, DType, UnaryFn};
use std::collections::HashMap;

/// A scalar value; integers and bool as i64 (u64 by its bits).
#[derive(Clone, Copy, Debug, PartialEq)]
enum Scalar {
    F(f64),
    I(i64),
}

use Scalar::{F, I};

/// Runs a whole launch over byte buffers. `Err` is the kernel's status.
pub fn run(nest: &LoopNest, buffers: &mut [Vec<u8>], params: &[i64]) -> Result<(), i32> {
    let extents: Vec<i64> = nest.axes.iter().map(|s| s.eval(params)).collect();
    let mut run = Run {
        nest,
        buffers,
        params,
        point: vec![0; extents.len()],
        accs: HashMap::new(),
        temps: HashMap::new(),
        status: 0,
        extents,
    };
    run.walk(&(0..nest.outer).collect::<Vec<_>>(), &mut |r| r.tile());
    match run.status {
        0 => Ok(()),
        status => Err(status),
    }
}

struct Run<'a> {
    nest: &'a LoopNest,
    buffers: &'a mut [Vec<u8>],
    params: &'a [i64],
    extents: Vec<i64>,
    point: Vec<i64>,
    accs: HashMap<u16, Scalar>,
    temps: HashMap<(u16, Vec<i64>), Scalar>,
    status: i32,
}

impl Run<'_> {
    fn walk(&mut self, axes: &[u8], body: &mut dyn FnMut(&mut Self)) {
        let Some((&first, rest)) = axes.split_first() else {
            return body(self);
        };
        for i in 0..self.extents[first as usize] {
            self.point[first as usize] = i;
            self.walk(rest, body);
        }
    }

    fn tile(&mut self) {
        self.temps.clear();
        let nest = self.nest;
        for stage in &nest.stages {
            // What the stage accumulates shows only after it.
            let mut accs = HashMap::new();
            for effect in &stage.effects {
                match effect {
                    Effect::Reduce { acc, by, value } | Effect::Scan { acc, by, value, .. } => {
                        let t = self.nest.exprs.dtype(*value);
                        accs.insert(*acc, from_bits(t, identity(*by, t)));
                    }
                    Effect::ArgReduce {
                        best,
                        at,
                        largest,
                        value,
                        ..
                    } => {
                        let t = self.nest.exprs.dtype(*value);
                        let by = if *largest { Reducer::Max } else { Reducer::Min };
                        accs.insert(*best, from_bits(t, identity(by, t)));
                        accs.insert(*at, I(-1));
                    }
                    Effect::Store { .. } | Effect::Keep { .. } => {}
                }
            }
            self.walk(&stage.axes, &mut |r| {
                (stage.effects.iter()).for_each(|e| r.effect(e, &mut accs));
            });
            for (acc, v) in accs {
                let t = self.acc_dtype(acc);
                self.accs.insert(acc, round(t, v));
            }
        }
    }

    fn acc_dtype(&self, acc: u16) -> DType {
        let all = self.nest.acc_dtypes();
        all.iter()
            .find(|(i, _)| *i == acc)
            .map_or(DType::F64, |x| x.1)
    }

    fn effect(&mut self, effect: &Effect, accs: &mut HashMap<u16, Scalar>) {
        match effect {
            Effect::Reduce { acc, by, value } => {
                let t = self.nest.exprs.dtype(*value);
                let v = self.value(*value);
                // Sums of floats keep f64 precision.
                accs.insert(*acc, combine(*by, t, accs[acc], v));
            }
            Effect::Scan {
                acc,
                by,
                value,
                exclusive,
            } => {
                let t = self.nest.exprs.dtype(*value);
                let v = self.value(*value);
                let before = accs[acc];
                let after = combine(*by, t, before, v);
                accs.insert(*acc, after);
                let shown = if *exclusive { before } else { after };
                self.accs.insert(*acc, round(t, shown));
            }
            Effect::ArgReduce {
                best,
                at,
                largest,
                last,
                value,
                position,
            } => {
                let (v, p) = (self.value(*value), self.value(*position));
                let unsigned = self.nest.exprs.dtype(*value) == DType::U64;
                let order = if *largest {
                    CompareFn::Gt
                } else {
                    CompareFn::Lt
                };
                let old = accs[best];
                let wins = match (is_nan(old), is_nan(v)) {
                    _ if accs[at] == I(-1) => true,
                    (true, _) => false,
                    (false, true) => true,
                    _ => {
                        compare(order, v, old, unsigned)
                            || (*last && compare(CompareFn::Eq, old, v, unsigned))
                    }
                };
                if wins {
                    accs.insert(*best, v);
                    accs.insert(*at, p);
                }
            }
            Effect::Keep { temp, value } => {
                let v = self.value(*value);
                let key = self.temp_key(*temp);
                self.temps.insert(key, v);
            }
            Effect::Store {
                arg,
                index,
                value,
                update,
                when,
            } => {
                if when.is_some_and(|w| self.value(w) != I(1)) {
                    return;
                }
                let mut v = self.value(*value);
                let Some(at) = self.place(index) else { return };
                let t = self.nest.args[*arg as usize];
                if let Some(by) = update {
                    let old = self.read(*arg, t, at);
                    v = combine(*by, t, old, v);
                }
                // Small elements have a byte each: integers extended, floats by code.
                let t = if is_small_int(t) { DType::I8 } else { t };
                let size = t.size().unwrap_or(1);
                let mut out = Encoder::new(t, 1);
                match v {
                    F(x) => out.push_f64(x),
                    I(x) => out.push_i64(x),
                }
                let at = at as usize * size;
                self.buffers[*arg as usize][at..at + size].copy_from_slice(&out.finish());
            }
        }
    }

    fn temp_key(&self, temp: u16) -> (u16, Vec<i64>) {
        let axes = &self.nest.temps[temp as usize].axes;
        (temp, axes.iter().map(|&a| self.point[a as usize]).collect())
    }

    /// The element that an index names, `None` where it is out of range.
    fn place(&mut self, index: &Index) -> Option<i64> {
        let mut at = index.offset.eval(self.params);
        for (axis, stride) in index.strides.iter().enumerate() {
            at += self.point[axis] * stride.eval(self.params);
        }
        for g in &index.gathers {
            let I(i) = self.value(g.index) else {
                return None;
            };
            let extent = g.extent.eval(self.params);
            // A u64 beyond i64 is out of range as well.
            let unsigned = self.nest.exprs.dtype(g.index) == DType::U64;
            let i = if i < 0 && !unsigned { i + extent } else { i };
            if i < 0 || i >= extent {
                self.status = STATUS_OUT_OF_RANGE;
                return None;
            }
            at += i * g.stride.eval(self.params);
        }
        Some(at)
    }

    fn read(&self, arg: u16, t: DType, at: i64) -> Scalar {
        let bytes = &self.buffers[arg as usize];
        if is_small_int(t) {
            return I(wrap(t, bytes[at as usize] as i64));
        }
        if t == DType::F4E2M1 {
            return F(read_f64(t, &bytes[at as usize..], 0));
        }
        if t.is_float() {
            F(read_f64(t, bytes, at as usize))
        } else {
            I(read_i64(t, bytes, at as usize))
        }
    }

    fn value(&mut self, id: ExprId) -> Scalar {
        let exprs = &self.nest.exprs;
        let t = exprs.dtype(id);
        match exprs.node(id).clone() {
            Node::Const { dtype, bits } => from_bits(dtype, bits),
            Node::Param(i) => I(self.params[i as usize]),
            Node::Axis(a) => I(self.point[a as usize]),
            Node::Acc(i, _) => self.accs[&i],
            Node::Temp(i, _) => self.temps[&self.temp_key(i)],
            Node::Load {
                arg,
                dtype,
                index,
                guard,
            } => {
                if let Some(g) = guard
                    && self.value(g.when) == I(0)
                {
                    return self.value(g.otherwise);
                }
                match self.place(&index) {
                    Some(at) => self.read(arg, dtype, at),
                    None => from_bits(dtype, 0),
                }
            }
            Node::Unary(f, x) => {
                let from = exprs.dtype(x);
                match self.value(x) {
                    F(v) if f.returns_bool() => I((f.eval_f64(v) != 0.0) as i64),
                    F(v) => round(t, F(f.eval_f64(v))),
                    I(v) => I(wrap(t, unary_int(f, from, v))),
                }
            }
            Node::Binary(f, a, b) => match (self.value(a), self.value(b)) {
                (F(x), F(y)) => round(t, F(f.eval_f64(x, y))),
                (I(x), I(y)) => match binary_int(f, t, x, y) {
                    Some(v) => I(wrap(t, v)),
                    None => {
                        self.status = STATUS_DIVISION_BY_ZERO;
                        I(0)
                    }
                },
                mixed => unreachable!("the arena checks types: {mixed:?}"),
            },
            Node::Compare(f, a, b) => {
                let unsigned = exprs.dtype(a) == DType::U64;
                let (x, y) = (self.value(a), self.value(b));
                I(compare(f, x, y, unsigned) as i64)
            }
            Node::Select(c, a, b) => {
                // Both sides are evaluated, as in the compiled kernel.
                let (c, a, b) = (self.value(c), self.value(a), self.value(b));
                if c == I(1) { a } else { b }
            }
            Node::Cast(to, x) => cast(exprs.dtype(x), to, self.value(x)),
        }
    }
}

fn is_nan(v: Scalar) -> bool {
    matches!(v, F(x) if x.is_nan())
}

fn compare(f: CompareFn, a: Scalar, b: Scalar, unsigned: bool) -> bool {
    match (a, b) {
        (F(x), F(y)) => f.eval(x, y),
        (I(x), I(y)) if unsigned => f.eval(x as u64, y as u64),
        (I(x), I(y)) => f.eval(x, y),
        mixed => unreachable!("the arena checks types: {mixed:?}"),
    }
}

fn from_bits(dtype: DType, bits: u64) -> Scalar {
    match dtype {
        DType::F64 => F(f64::from_bits(bits)),
        _ if dtype.is_float() => F(f32::from_bits(bits as u32) as f64),
        _ => I(bits as i64),
    }
}

/// Rounds to the type in which values of `t` are computed.
fn round(t: DType, v: Scalar) -> Scalar {
    match (compute_dtype(t), v) {
        (DType::F32, F(x)) => F(x as f32 as f64),
        (_, v) => v,
    }
}

fn combine(by: Reducer, t: DType, a: Scalar, b: Scalar) -> Scalar {
    let f = match by {
        Reducer::Sum if t == DType::Bool => BinaryFn::Or,
        Reducer::Prod if t == DType::Bool => BinaryFn::And,
        Reducer::Sum => BinaryFn::Add,
        Reducer::Prod => BinaryFn::Mul,
        Reducer::Max => BinaryFn::Max,
        Reducer::Min => BinaryFn::Min,
    };
    match (a, b) {
        (F(x), F(y)) => F(f.eval_f64(x, y)),
        (I(x), I(y)) => I(wrap(t, binary_int(f, t, x, y).unwrap_or(0))),
        mixed => unreachable!("the arena checks types: {mixed:?}"),
    }
}

fn unary_int(f: UnaryFn, t: DType, v: i64) -> i64 {
    match f {
        UnaryFn::Abs | UnaryFn::Floor if t == DType::U64 => v,
        UnaryFn::Sign if t == DType::U64 => (v != 0) as i64,
        UnaryFn::BitNot if t == DType::Bool => (v == 0) as i64,
        _ => f.eval_i64(v).unwrap_or(0),
    }
}

/// `None` on division by zero.
fn binary_int(f: BinaryFn, t: DType, a: i64, b: i64) -> Option<i64> {
    let bits = t.bits() as i64;
    match f {
        // Shifts by the width or more give what shifting bit by bit gives.
        BinaryFn::Shl if b < 0 || b >= bits => return Some(0),
        BinaryFn::Shr if b < 0 || b >= bits => {
            return Some(if a < 0 && t != DType::U64 { -1 } else { 0 });
        }
        BinaryFn::Pow if t == DType::U64 => {
            return Some((a as u64).wrapping_pow((b as u64).min(u32::MAX as u64) as u32) as i64);
        }
        _ => {}
    }
    if t != DType::U64 {
        return f.eval_i64(a, b);
    }
    let (x, y) = (a as u64, b as u64);
    Some(match f {
        BinaryFn::Div => x.checked_div(y)? as i64,
        BinaryFn::Rem | BinaryFn::Mod => x.checked_rem(y)? as i64,
        BinaryFn::Min => x.min(y) as i64,
        BinaryFn::Max => x.max(y) as i64,
        BinaryFn::Shr => x.wrapping_shr(b as u32) as i64,
        _ => return f.eval_i64(a, b),
    })
}

fn cast(from: DType, to: DType, v: Scalar) -> Scalar {
    let narrow = |x: f64| match to {
        DType::F64 => x,
        DType::F32 => x as f32 as f64,
        _ if is_narrow_float(to) => kiln_ir::Tensor::scalar_f64(to, x).get_f64(0),
        _ => x,
    };
    match v {
        F(x) if to.is_float() => F(narrow(x)),
        I(x) if to.is_float() && from == DType::U64 => F(narrow(x as u64 as f64)),
        // Straight from 64 bits to f32 there is one rounding.
        I(x) if to == DType::F32 => F(x as f32 as f64),
        I(x) if to.is_float() => F(narrow(x as f64)),
        F(x) if to == DType::Bool => I((x != 0.0) as i64),
        F(x) if is_small_int(to) => {
            let (low, high) = (wrap(to, 1 << (to.bits() - 1)), wrap(to, -1));
            let (low, high) = if low < 0 { (low, -low - 1) } else { (0, high) };
            I((x as i64).clamp(low, high))
        }
        F(x) => I(saturate(to, x)),
        I(x) => I(wrap(to, x)),
    }
}

/// Toward zero, clamped to the type; NaN gives 0.
fn saturate(to: DType, x: f64) -> i64 {
    match to {
        DType::I8 => x as i8 as i64,
        DType::I16 => x as i16 as i64,
        DType::I32 => x as i32 as i64,
        DType::U8 => x as u8 as i64,
        DType::U16 => x as u16 as i64,
        DType::U32 => x as u32 as i64,
        DType::U64 => x as u64 as i64,
        _ => x as i64,
    }
}
