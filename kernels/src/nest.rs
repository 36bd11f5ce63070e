//! Loop nests: the kernel family of everything that is neither a contraction
//! nor an attention.
//!
//! A nest has `outer` parallel axes, whose points are the work units, and inner
//! axes, which each work unit walks in stages:
//!
//! ```text
//! softmax over K, outer axes (M), inner axis k:
//!   stage 1 over k:  acc0 = max(load x[m,k])
//!   stage 2 over k:  temp0 = exp(load x[m,k] - acc0);  acc1 = sum(temp0)
//!   stage 3 over k:  store y[m,k] = temp0 / acc1
//! ```
//!
//! Reductions run in [`LANES`] explicit lanes and a fixed tree: the result
//! depends on the extents of the reduced axes alone, on no tile, thread count
//! or target.

use crate::expr::{ExprError, ExprId, Exprs, Index, Node, Size, compute_dtype};
use kiln_ir::{DType, Dim, Kind};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;

/// Logical vector lanes, on every target.
pub const LANES: i64 = 16;

/// Elements of a contiguous run that one tile of an elementwise nest handles.
const ELEMENT_BLOCK: i64 = 4096;

/// Columns that one tile of a column reduction handles.
const COLUMN_BLOCK: i64 = 64;

/// Bytes at the start of every scratch area: the status word, then room for a
/// vector that a load reads instead of memory that is not there.
pub const SCRATCH_HEAD: i64 = 256;

/// The problem that a loop-nest kernel solves.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct LoopNest {
    /// Every expression of the nest.
    pub exprs: Exprs,
    /// Element type of each buffer, in the order of the kernel's `args`.
    pub args: Vec<DType>,
    /// How many launch parameters there are.
    pub params: u16,
    /// Extents: parallel axes first, then inner axes.
    pub axes: Vec<Size>,
    /// How many of the axes are parallel.
    pub outer: u8,
    /// Row temporaries.
    pub temps: Vec<Temp>,
    /// What each work unit does, in order.
    pub stages: Vec<Stage>,
}

/// A value kept for every point of some inner axes, within one work unit.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Temp {
    /// Element type (f16 and bf16 are kept in f32).
    pub dtype: DType,
    /// The inner axes that it spans.
    pub axes: Vec<u8>,
}

/// One pass over some inner axes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Stage {
    /// Inner axes to loop over, outermost first; none: once per work unit.
    pub axes: Vec<u8>,
    /// What happens at each point, in order.
    pub effects: Vec<Effect>,
}

/// How an accumulator combines values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reducer {
    /// Sum, from 0.
    Sum,
    /// Product, from 1.
    Prod,
    /// Largest value, NaN if any; from −inf or the least integer.
    Max,
    /// Smallest value, NaN if any; from +inf or the greatest integer.
    Min,
}

/// What a stage does at a point.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Effect {
    /// Feeds an accumulator, which later stages read with [`Node::Acc`].
    Reduce {
        /// The accumulator, its type is the value's.
        acc: u16,
        /// How values combine.
        by: Reducer,
        /// The value.
        value: ExprId,
    },
    /// Finds the position of the extreme value; the first NaN wins, as in NumPy.
    ArgReduce {
        /// Accumulator of the extreme value.
        best: u16,
        /// Accumulator of its position (i64).
        at: u16,
        /// Greatest rather than least.
        largest: bool,
        /// Among equal values the last position rather than the first.
        last: bool,
        /// The value.
        value: ExprId,
        /// Its position (i64), increasing along the stage.
        position: ExprId,
    },
    /// A running reduction along the stage's axes in order. Later effects of the
    /// same stage read it with [`Node::Acc`].
    Scan {
        /// The accumulator.
        acc: u16,
        /// How values combine.
        by: Reducer,
        /// The value.
        value: ExprId,
        /// The reader sees the accumulator before this point's value.
        exclusive: bool,
    },
    /// Writes an element, rounded to the buffer's type.
    Store {
        /// Which buffer.
        arg: u16,
        /// Which element.
        index: Index,
        /// The value, of the buffer's type.
        value: ExprId,
        /// Combines with what is there (scatter-add and the like).
        update: Option<Reducer>,
        /// Writes only where this bool holds.
        when: Option<ExprId>,
    },
    /// Writes a row temporary.
    Keep {
        /// Which temporary.
        temp: u16,
        /// The value.
        value: ExprId,
    },
}

/// A nest's parts contradict each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpecError(pub String);

impl fmt::Display for SpecError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "K0502: malformed kernel: {}", self.0)
    }
}

impl std::error::Error for SpecError {}

impl From<ExprError> for SpecError {
    fn from(e: ExprError) -> SpecError {
        SpecError(e.0)
    }
}

/// How a nest is cut into vectors and tiles, derived from its strides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Schedule {
    /// The axis whose neighbours share a vector; `None`: scalar code.
    pub vector: Option<u8>,
    /// Points of a parallel vector axis in one tile (a multiple of [`LANES`]).
    pub block: i64,
    /// Everything is one tile, in order: stores may collide.
    pub serial: bool,
}

/// Gives launch parameters to the sizes that are not constants.
#[derive(Clone, Debug, Default)]
pub struct Params {
    dims: Vec<Dim>,
}

impl Params {
    /// No parameters yet.
    pub fn new() -> Params {
        Params::default()
    }

    /// The size that stands for a dim; equal dims share a parameter.
    pub fn size(&mut self, dim: &Dim) -> Size {
        if let Some(c) = dim.as_const() {
            return Size::Const(c);
        }
        let at = self.dims.iter().position(|d| d == dim).unwrap_or_else(|| {
            self.dims.push(dim.clone());
            self.dims.len() - 1
        });
        Size::Param(at as u16)
    }

    /// The dims, in the order of the launch's parameters.
    pub fn dims(&self) -> &[Dim] {
        &self.dims
    }

    /// The dims, in the order of the launch's parameters.
    pub fn into_dims(self) -> Vec<Dim> {
        self.dims
    }
}

/// A size as a dim, given the launch's parameters.
pub fn size_dim(size: Size, params: &[Dim]) -> Dim {
    match size {
        Size::Const(c) => c.into(),
        Size::Param(i) => params[i as usize].clone(),
    }
}

impl Effect {
    /// The expressions that the effect evaluates.
    pub fn roots(&self) -> Vec<ExprId> {
        match self {
            Effect::Reduce { value, .. }
            | Effect::Scan { value, .. }
            | Effect::Keep { value, .. } => vec![*value],
            Effect::ArgReduce {
                value, position, ..
            } => vec![*value, *position],
            Effect::Store {
                index, value, when, ..
            } => (index.gathers.iter().map(|g| g.index))
                .chain([*value])
                .chain(*when)
                .collect(),
        }
    }
}

impl LoopNest {
    /// Whether a stage's loop over an axis is inside a work unit.
    pub fn is_inner(&self, axis: u8) -> bool {
        axis >= self.outer
    }

    /// Every expression that some effect evaluates, arguments first.
    pub fn live(&self) -> Vec<ExprId> {
        let roots: Vec<_> = self.effects().flat_map(|e| e.roots()).collect();
        self.exprs.reachable(&roots)
    }

    /// Every effect.
    pub fn effects(&self) -> impl Iterator<Item = &Effect> {
        self.stages.iter().flat_map(|s| &s.effects)
    }

    /// Every place that is read or written, with the buffer.
    pub fn accesses(&self) -> Vec<(u16, Index)> {
        let loads = self.live().into_iter().filter_map(|id| {
            if let Node::Load { arg, index, .. } = self.exprs.node(id) {
                Some((*arg, index.clone()))
            } else {
                None
            }
        });
        let stores = self.effects().filter_map(|e| {
            if let Effect::Store { arg, index, .. } = e {
                Some((*arg, index.clone()))
            } else {
                None
            }
        });
        loads.chain(stores).collect()
    }

    /// Checks that every reference exists and every type agrees.
    pub fn check(&self) -> Result<(), SpecError> {
        let fail = |text: String| Err(SpecError(text));
        if self.outer as usize > self.axes.len() {
            return fail(format!("{} outer axes of {}", self.outer, self.axes.len()));
        }
        let size = |s: Size| match s {
            Size::Param(i) if i >= self.params => fail(format!("parameter {i} of {}", self.params)),
            _ => Ok(()),
        };
        self.axes.iter().try_for_each(|&s| size(s))?;
        let inner = |axes: &[u8]| {
            let fits = |&a: &u8| self.is_inner(a) && (a as usize) < self.axes.len();
            let distinct = axes.iter().enumerate().all(|(i, a)| !axes[..i].contains(a));
            axes.iter().all(fits) && distinct
        };
        if !(self.temps.iter().all(|t| inner(&t.axes))
            && self.stages.iter().all(|s| inner(&s.axes)))
        {
            return fail("a stage or temporary names an axis that is not an inner one".into());
        }
        for (arg, index) in self.accesses() {
            if arg as usize >= self.args.len() {
                return fail(format!("buffer {arg} of {}", self.args.len()));
            }
            if index.strides.len() > self.axes.len() {
                return fail("an index strides along an axis that does not exist".into());
            }
            (index.strides.iter().chain([&index.offset])).try_for_each(|&s| size(s))?;
            for g in &index.gathers {
                size(g.stride)?;
                size(g.extent)?;
            }
        }
        let mut known: BTreeMap<u16, DType> = BTreeMap::new();
        let mut kept = vec![false; self.temps.len()];
        for stage in &self.stages {
            // What a stage accumulates is known after it; what it scans, at once.
            let mut pending = vec![];
            for effect in &stage.effects {
                self.check_reads(stage, effect, &known, &kept)?;
                match effect {
                    Effect::Reduce { acc, value, .. } => {
                        pending.push((*acc, self.exprs.dtype(*value)));
                    }
                    Effect::Scan { acc, value, .. } => {
                        known.insert(*acc, self.exprs.dtype(*value));
                    }
                    Effect::ArgReduce {
                        best,
                        at,
                        value,
                        position,
                        ..
                    } => {
                        if self.exprs.dtype(*position) != DType::I64 {
                            return fail("a position is not i64".into());
                        }
                        pending.extend([(*best, self.exprs.dtype(*value)), (*at, DType::I64)]);
                    }
                    Effect::Keep { temp, value } => {
                        let Some(t) = self.temps.get(*temp as usize) else {
                            return fail(format!("temporary {temp} of {}", self.temps.len()));
                        };
                        if t.dtype != self.exprs.dtype(*value) {
                            return fail(format!("temporary {temp} holds {}", t.dtype));
                        }
                        if !t.axes.iter().all(|a| stage.axes.contains(a)) {
                            return fail(format!("temporary {temp} spans axes outside its stage"));
                        }
                        kept[*temp as usize] = true;
                    }
                    Effect::Store {
                        arg, value, when, ..
                    } => {
                        let (have, want) = (self.exprs.dtype(*value), self.args[*arg as usize]);
                        if have != want {
                            return fail(format!("{have} is stored to a buffer of {want}"));
                        }
                        if when.is_some_and(|w| self.exprs.dtype(w) != DType::Bool) {
                            return fail("a store's condition is not bool".into());
                        }
                    }
                }
            }
            known.extend(pending);
        }
        Ok(())
    }

    fn check_reads(
        &self,
        stage: &Stage,
        effect: &Effect,
        known: &BTreeMap<u16, DType>,
        kept: &[bool],
    ) -> Result<(), SpecError> {
        for id in self.exprs.reachable(&effect.roots()) {
            match self.exprs.node(id) {
                Node::Acc(i, t) if known.get(i) != Some(t) => {
                    return Err(SpecError(format!("accumulator {i} has no {t} value yet")));
                }
                Node::Temp(i, t) => {
                    let Some(temp) = self.temps.get(*i as usize) else {
                        return Err(SpecError(format!("temporary {i} does not exist")));
                    };
                    let spans = temp.axes.iter().all(|a| stage.axes.contains(a));
                    if !kept[*i as usize] || temp.dtype != *t || !spans {
                        return Err(SpecError(format!("temporary {i} has no {t} value here")));
                    }
                }
                Node::Param(i) if *i >= self.params => {
                    return Err(SpecError(format!("parameter {i} of {}", self.params)));
                }
                Node::Axis(a) if self.is_inner(*a) && !stage.axes.contains(a) => {
                    return Err(SpecError(format!("axis {a} is not looped over here")));
                }
                Node::Load {
                    arg, dtype, index, ..
                } => {
                    if self.args.get(*arg as usize) != Some(dtype) {
                        return Err(SpecError(format!("buffer {arg} does not hold {dtype}")));
                    }
                    let strays = (self.outer..self.axes.len() as u8)
                        .find(|a| index.stride(*a) != Size::ZERO && !stage.axes.contains(a));
                    if let Some(a) = strays {
                        return Err(SpecError(format!("axis {a} is not looped over here")));
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// The accumulators' types, by number.
    pub fn acc_dtypes(&self) -> Vec<(u16, DType)> {
        let mut out = vec![];
        for effect in self.effects() {
            match effect {
                Effect::Reduce { acc, value, .. } | Effect::Scan { acc, value, .. } => {
                    out.push((*acc, self.exprs.dtype(*value)));
                }
                Effect::ArgReduce {
                    best, at, value, ..
                } => out.extend([(*best, self.exprs.dtype(*value)), (*at, DType::I64)]),
                Effect::Store { .. } | Effect::Keep { .. } => {}
            }
        }
        out
    }

    /// The nest's one schedule.
    pub fn schedule(&self) -> Schedule {
        let collides = self.effects().any(|e| match e {
            Effect::Store { index, update, .. } => !index.gathers.is_empty() || update.is_some(),
            _ => false,
        });
        if collides {
            return Schedule {
                vector: None,
                block: 1,
                serial: true,
            };
        }
        let accesses = self.accesses();
        let candidates = (0..self.axes.len() as u8).filter(|&a| self.can_vectorise(a));
        // The cheapest axis; among equals the last, whose neighbours are closest.
        let best = candidates
            .map(|a| (self.vector_cost(a, &accesses), a))
            .min_by_key(|&(cost, a)| (cost, std::cmp::Reverse(a)));
        let vector = best.map(|(_, a)| a);
        let has_inner = self.axes.len() > self.outer as usize;
        Schedule {
            vector,
            block: if has_inner {
                COLUMN_BLOCK
            } else {
                ELEMENT_BLOCK
            },
            serial: false,
        }
    }

    fn can_vectorise(&self, axis: u8) -> bool {
        if !self.is_inner(axis) {
            return true;
        }
        // Scans run in order; an inner axis that no stage walks has no vectors.
        let scans = |s: &Stage| s.effects.iter().any(|e| matches!(e, Effect::Scan { .. }));
        let mut walking = self.stages.iter().filter(|s| s.axes.contains(&axis));
        walking.clone().count() > 0 && !walking.any(scans)
    }

    /// Rough cycles for 16 points along an axis, relative.
    fn vector_cost(&self, axis: u8, accesses: &[(u16, Index)]) -> u64 {
        let mut cost = 8u64;
        for (_, index) in accesses {
            let data_dependent = (index.gathers.iter()).any(|g| self.varies_along(g.index, axis));
            cost += match (data_dependent, index.stride(axis)) {
                (true, _) => 48,
                (false, Size::Const(0)) => 4,
                (false, Size::Const(1)) => 4,
                (false, _) => 48,
            };
        }
        let extent = self.axes[axis as usize].as_const().unwrap_or(64).max(1) as u64;
        let vectors = extent.div_ceil(LANES as u64);
        // Lanes that idle, and the tree that joins the lanes of a reduction.
        let tree = if self.is_inner(axis) { 24 } else { 0 };
        (cost * vectors + tree) * 1024 / extent
    }

    /// Whether an expression may differ between neighbours along an axis.
    pub fn varies_along(&self, root: ExprId, axis: u8) -> bool {
        self.exprs
            .reachable(&[root])
            .into_iter()
            .any(|id| match self.exprs.node(id) {
                Node::Axis(a) => *a == axis,
                Node::Load { index, .. } => index.stride(axis) != Size::ZERO,
                Node::Temp(t, _) => {
                    !self.is_inner(axis) || self.temps[*t as usize].axes.contains(&axis)
                }
                Node::Acc(..) => !self.is_inner(axis),
                _ => false,
            })
    }

    /// Work units of a launch.
    pub fn tiles(&self, params: &[Dim]) -> Dim {
        let schedule = self.schedule();
        if schedule.serial {
            return Dim::ONE;
        }
        let mut tiles = Dim::ONE;
        for axis in 0..self.outer {
            let extent = size_dim(self.axes[axis as usize], params);
            tiles = tiles
                * if schedule.vector == Some(axis) {
                    extent.ceil_div(&schedule.block.into())
                } else {
                    extent
                };
        }
        tiles
    }

    /// Scratch bytes that each thread of a launch needs.
    pub fn scratch_bytes(&self, params: &[Dim]) -> Dim {
        (self.temp_sizes(params).into_iter()).fold(SCRATCH_HEAD.into(), |sum, bytes| sum + bytes)
    }

    /// Bytes of each temporary, a multiple of a cache line.
    fn temp_sizes(&self, params: &[Dim]) -> Vec<Dim> {
        let vector = self.schedule().vector;
        (self.temps.iter())
            .map(|t| {
                let mut points = Dim::ONE;
                for &a in &t.axes {
                    let extent = size_dim(self.axes[a as usize], params);
                    points = points
                        * if vector == Some(a) {
                            extent.ceil_div(&LANES.into()) * LANES.into()
                        } else {
                            extent
                        };
                }
                if vector.is_some_and(|v| !self.is_inner(v)) {
                    points = points * LANES.into();
                }
                let bytes = temp_element_bytes(t.dtype);
                (points * bytes.into()).ceil_div(&64.into()) * 64.into()
            })
            .collect()
    }

    /// Arithmetic operations and bytes moved by a launch.
    pub fn cost(&self, params: &[Dim]) -> (Dim, Dim) {
        let extent = |a: u8| size_dim(self.axes[a as usize], params);
        let outer = Dim::product(&(0..self.outer).map(extent).collect::<Vec<_>>());
        let mut flops = Dim::ZERO;
        for stage in &self.stages {
            let roots: Vec<_> = stage.effects.iter().flat_map(|e| e.roots()).collect();
            let per_point: i64 = (self.exprs.reachable(&roots).into_iter())
                .map(|id| op_cost(self.exprs.node(id)))
                .sum();
            let points = stage.axes.iter().fold(outer.clone(), |n, &a| n * extent(a));
            flops = flops + points * Dim::from(per_point + stage.effects.len() as i64);
        }
        let mut bytes = Dim::ZERO;
        for (arg, index) in self.accesses() {
            let walked = (0..self.axes.len() as u8).filter(|&a| {
                index.stride(a) != Size::ZERO
                    || index.gathers.iter().any(|g| self.varies_along(g.index, a))
            });
            let points = walked.fold(Dim::ONE, |n, a| n * extent(a));
            let size = self.args[arg as usize].size().unwrap_or(1);
            bytes = bytes + points * size.into();
        }
        (flops, bytes)
    }
}

/// Bytes of one element of a temporary (bool and narrow floats as computed).
pub(crate) fn temp_element_bytes(dtype: DType) -> i64 {
    compute_dtype(dtype).size().unwrap_or(8) as i64
}

/// Rough operations of a node: what a polynomial takes.
fn op_cost(node: &Node) -> i64 {
    match node {
        Node::Const { .. } | Node::Param(_) | Node::Axis(_) | Node::Acc(..) => 0,
        Node::Load { .. } | Node::Temp(..) => 0,
        Node::Unary(f, _) => {
            use kiln_ir::UnaryFn as U;
            match f {
                U::Neg | U::Abs | U::Sign | U::Floor | U::Ceil | U::Round => 1,
                U::Not | U::BitNot | U::IsNan | U::IsInf => 1,
                U::Sqrt | U::Rsqrt | U::Recip => 4,
                U::Exp | U::Log | U::Sigmoid | U::Tanh | U::Erf => 16,
                U::Sin | U::Cos | U::Tan | U::Asin | U::Acos | U::Atan => 24,
                U::Sinh | U::Cosh | U::Asinh | U::Acosh | U::Atanh => 24,
            }
        }
        Node::Binary(f, ..) => {
            use kiln_ir::BinaryFn as B;
            match f {
                B::Div | B::Rem | B::Mod => 4,
                B::Pow | B::Atan2 => 40,
                B::Add | B::Sub | B::Mul | B::Min | B::Max => 1,
                B::And | B::Or | B::Xor | B::Shl | B::Shr => 1,
            }
        }
        Node::Compare(..) | Node::Select(..) | Node::Cast(..) => 1,
    }
}

/// The value that an empty reduction gives, as the bits of a [`Node::Const`].
pub(crate) fn identity(by: Reducer, dtype: DType) -> u64 {
    let float = |v: f64| match dtype {
        DType::F64 => v.to_bits(),
        _ => (v as f32).to_bits() as u64,
    };
    let bits = dtype.bits().clamp(1, 64) as u32;
    let (low, high) = match dtype.kind() {
        Kind::Int => (i64::MIN >> (64 - bits), i64::MAX >> (64 - bits)),
        Kind::Uint => (0, (u64::MAX >> (64 - bits)) as i64),
        Kind::Bool | Kind::Float | Kind::Complex | Kind::Str => (0, 1),
    };
    match (by, dtype.is_float()) {
        (Reducer::Sum, _) => 0,
        (Reducer::Prod, true) => float(1.0),
        (Reducer::Prod, false) => 1,
        (Reducer::Max, true) => float(f64::NEG_INFINITY),
        (Reducer::Max, false) => low as u64,
        (Reducer::Min, true) => float(f64::INFINITY),
        (Reducer::Min, false) => high as u64,
    }
}
