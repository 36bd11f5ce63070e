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
use std::fmt;

/// Logical vector lanes, on every target.
pub const LANES: i64 = 16;

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

impl Stage {
    /// These effects, in order, over these axes.
    pub fn new(axes: &[u8], effects: Vec<Effect>) -> Stage {
        let axes = axes.to_vec();
        Stage { axes, effects }
    }
}

impl Effect {
    /// Writes an element everywhere, over what was there.
    pub fn store(arg: u16, index: Index, value: ExprId) -> Effect {
        Effect::Store {
            arg,
            index,
            value,
            update: None,
            when: None,
        }
    }

    /// Feeds an accumulator.
    pub fn reduce(acc: u16, by: Reducer, value: ExprId) -> Effect {
        Effect::Reduce { acc, by, value }
    }

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

    /// The same effect on other expressions.
    pub(crate) fn with_roots(&self, f: &dyn Fn(ExprId) -> ExprId) -> Effect {
        let mut out = self.clone();
        match &mut out {
            Effect::Reduce { value, .. }
            | Effect::Scan { value, .. }
            | Effect::Keep { value, .. } => *value = f(*value),
            Effect::ArgReduce {
                value, position, ..
            } => {
                *value = f(*value);
                *position = f(*position);
            }
            Effect::Store {
                index, value, when, ..
            } => {
                *index = index.with_operands(f);
                *value = f(*value);
                *when = when.map(f);
            }
        }
        out
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
}

/// Bytes of one element of a temporary (bool and narrow floats as computed).
pub(crate) fn temp_element_bytes(dtype: DType) -> i64 {
    compute_dtype(dtype).size().unwrap_or(8) as i64
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
