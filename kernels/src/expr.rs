//! The scalar expression language of every kernel: a typed DAG over loads,
//! index arithmetic and math, shared by loop nests and by the prologues and
//! epilogues of the other families.
//!
//! Nodes live in an arena and are hash-consed: building the same expression
//! twice gives the same id. f16 and bf16 values are *computed in f32* and
//! rounded only where they are stored or where a `Cast` to their type stands;
//! integers wrap in their own width; bool is 0 or 1.

use crate::small::{is_small_float, is_small_int};
use kiln_ir::{BinaryFn, CompareFn, DType, Kind, UnaryFn};
use serde::{Deserialize, Deserializer, Serialize};
use std::collections::HashMap;
use std::fmt;
use std::hash::{Hash, Hasher};

/// An extent, offset or stride: known when the kernel is compiled, or read from
/// the launch's parameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Size {
    /// A compile-time constant.
    Const(i64),
    /// `params[i]` of the launch.
    Param(u16),
}

/// Distances between elements are sizes too.
pub type Stride = Size;

impl Size {
    /// The constant zero.
    pub const ZERO: Size = Size::Const(0);
    /// The constant one.
    pub const ONE: Size = Size::Const(1);

    /// The value under the launch's parameters.
    pub fn eval(self, params: &[i64]) -> i64 {
        match self {
            Size::Const(c) => c,
            Size::Param(i) => params[i as usize],
        }
    }

    /// The constant, if this is one.
    pub fn as_const(self) -> Option<i64> {
        match self {
            Size::Const(c) => Some(c),
            Size::Param(_) => None,
        }
    }
}

/// A node of an [`Exprs`] arena.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ExprId(pub u32);

/// Where a load or a store goes, in elements:
/// `offset + Σ axis·stride + Σ gathered·stride`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Index {
    /// Constant part.
    pub offset: Size,
    /// Stride of each axis; axes beyond the end have stride 0.
    pub strides: Vec<Stride>,
    /// Positions read from data, each checked.
    pub gathers: Vec<Gathered>,
}

/// One data-dependent term of an index. Negative values count from the end;
/// a value outside `-extent..extent` makes the kernel return
/// [`crate::STATUS_OUT_OF_RANGE`] and the element is not accessed.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Gathered {
    /// An integer expression.
    pub index: ExprId,
    /// Elements between neighbours.
    pub stride: Stride,
    /// Positions that exist.
    pub extent: Size,
}

impl Default for Size {
    fn default() -> Size {
        Size::ZERO
    }
}

impl Index {
    /// An index with constant strides and no offset.
    pub fn strided(strides: impl IntoIterator<Item = Stride>) -> Index {
        Index {
            offset: Size::ZERO,
            strides: strides.into_iter().collect(),
            gathers: vec![],
        }
    }

    /// The stride along an axis.
    pub fn stride(&self, axis: u8) -> Stride {
        self.strides.get(axis as usize).copied().unwrap_or_default()
    }

    pub(crate) fn with_operands(&self, f: &dyn Fn(ExprId) -> ExprId) -> Index {
        let mut out = self.clone();
        out.gathers.iter_mut().for_each(|g| g.index = f(g.index));
        out
    }

    /// Trailing zero strides say nothing: without them equal indices are equal.
    pub(crate) fn normalised(mut self) -> Index {
        while self.strides.last() == Some(&Size::ZERO) {
            self.strides.pop();
        }
        self
    }
}

/// What stands in for elements that a load does not touch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Guard {
    /// A bool expression; where it is false nothing is read.
    pub when: ExprId,
    /// The value there, of the load's type.
    pub otherwise: ExprId,
}

/// One operation.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Node {
    /// A constant: floats by their own bits, integers sign- or zero-extended.
    Const {
        /// Element type.
        dtype: DType,
        /// The bits of `f64` for f64, of `f32` for every other float.
        bits: u64,
    },
    /// A launch parameter (i64).
    Param(u16),
    /// The coordinate along an axis (i64).
    Axis(u8),
    /// An element of a buffer.
    Load {
        /// Which buffer.
        arg: u16,
        /// Its element type.
        dtype: DType,
        /// Which element.
        index: Index,
        /// Where not to read.
        guard: Option<Guard>,
    },
    /// An accumulator's final value, in stages after the one that fills it; in
    /// an epilogue, the family's result.
    Acc(u16, DType),
    /// A row temporary at the current inner coordinates.
    Temp(u16, DType),
    /// One-argument function.
    Unary(UnaryFn, ExprId),
    /// Two-argument function; both arguments have one type.
    Binary(BinaryFn, ExprId, ExprId),
    /// Comparison of two values of one type, a bool.
    Compare(CompareFn, ExprId, ExprId),
    /// `if .0 { .1 } else { .2 }`.
    Select(ExprId, ExprId, ExprId),
    /// Conversion: floats round to nearest even, float to integer truncates and
    /// saturates (NaN gives 0), integers wrap, anything to bool is `!= 0`.
    Cast(DType, ExprId),
}

impl Node {
    /// The same operation on other operands.
    pub(crate) fn with_operands(&self, f: &dyn Fn(ExprId) -> ExprId) -> Node {
        match self {
            Node::Load {
                arg,
                dtype,
                index,
                guard,
            } => Node::Load {
                arg: *arg,
                dtype: *dtype,
                index: index.with_operands(f),
                guard: guard.map(|g| Guard {
                    when: f(g.when),
                    otherwise: f(g.otherwise),
                }),
            },
            Node::Unary(op, x) => Node::Unary(*op, f(*x)),
            Node::Binary(op, a, b) => Node::Binary(*op, f(*a), f(*b)),
            Node::Compare(op, a, b) => Node::Compare(*op, f(*a), f(*b)),
            Node::Select(c, a, b) => Node::Select(f(*c), f(*a), f(*b)),
            Node::Cast(t, x) => Node::Cast(*t, f(*x)),
            Node::Const { .. }
            | Node::Param(_)
            | Node::Axis(_)
            | Node::Acc(..)
            | Node::Temp(..) => self.clone(),
        }
    }
}

/// An expression was built from parts that do not fit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExprError(pub String);

impl fmt::Display for ExprError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "K0501: ill-typed kernel expression: {}", self.0)
    }
}

impl std::error::Error for ExprError {}

/// An arena of expressions.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Exprs {
    nodes: Vec<Node>,
    #[serde(skip)]
    dtypes: Vec<DType>,
    #[serde(skip)]
    ids: HashMap<Node, ExprId>,
}

impl PartialEq for Exprs {
    fn eq(&self, other: &Exprs) -> bool {
        self.nodes == other.nodes
    }
}

impl Eq for Exprs {}

impl Hash for Exprs {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.nodes.hash(state);
    }
}

impl<'de> Deserialize<'de> for Exprs {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Exprs, D::Error> {
        #[derive(Deserialize)]
        struct Raw {
            nodes: Vec<Node>,
        }
        let mut exprs = Exprs::new();
        for (i, node) in Raw::deserialize(d)?.nodes.into_iter().enumerate() {
            let id = exprs.add(node).map_err(serde::de::Error::custom)?;
            if id.0 as usize != i {
                return Err(serde::de::Error::custom("K0501: repeated expression node"));
            }
        }
        Ok(exprs)
    }
}

impl Exprs {
    /// An empty arena.
    pub fn new() -> Exprs {
        Exprs::default()
    }

    /// The node with this id.
    pub fn node(&self, id: ExprId) -> &Node {
        &self.nodes[id.0 as usize]
    }

    /// The type of a node.
    pub fn dtype(&self, id: ExprId) -> DType {
        self.dtypes[id.0 as usize]
    }

    /// Number of nodes.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Whether there are no nodes.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// Every node in order: arguments stand before their users.
    pub fn iter(&self) -> impl Iterator<Item = (ExprId, &Node)> {
        (0..).map(ExprId).zip(&self.nodes)
    }

    /// Adds a node after checking its types.
    pub fn add(&mut self, node: Node) -> Result<ExprId, ExprError> {
        let node = match node {
            Node::Load {
                arg,
                dtype,
                index,
                guard,
            } => Node::Load {
                arg,
                dtype,
                index: index.normalised(),
                guard,
            },
            other => other,
        };
        if let Some(&id) = self.ids.get(&node) {
            return Ok(id);
        }
        let dtype = self.infer(&node)?;
        let id = ExprId(self.nodes.len() as u32);
        self.nodes.push(node.clone());
        self.dtypes.push(dtype);
        self.ids.insert(node, id);
        Ok(id)
    }

    /// A constant rounded to the type; f16 and bf16 round to their own grid.
    pub fn float(&mut self, dtype: DType, v: f64) -> Result<ExprId, ExprError> {
        let bits = match dtype {
            DType::F64 => v.to_bits(),
            DType::F32 => (v as f32).to_bits() as u64,
            _ if is_narrow_float(dtype) => narrow_bits(dtype, v),
            _ => return self.int(dtype, v as i64),
        };
        self.add(Node::Const { dtype, bits })
    }

    /// An integer constant wrapped to the type (floats: nearest).
    pub fn int(&mut self, dtype: DType, v: i64) -> Result<ExprId, ExprError> {
        let bits = match dtype.kind() {
            Kind::Float => return self.float(dtype, v as f64),
            Kind::Bool => (v != 0) as u64,
            Kind::Int | Kind::Uint => wrap(dtype, v) as u64,
            Kind::Complex | Kind::Str => return Err(unsupported(dtype)),
        };
        self.add(Node::Const { dtype, bits })
    }

    /// An f32 constant.
    pub fn f32(&mut self, v: f32) -> ExprId {
        self.sure(Node::Const {
            dtype: DType::F32,
            bits: v.to_bits() as u64,
        })
    }

    /// An i64 constant.
    pub fn i64(&mut self, v: i64) -> ExprId {
        self.sure(Node::Const {
            dtype: DType::I64,
            bits: v as u64,
        })
    }

    /// A bool constant.
    pub fn truth(&mut self, v: bool) -> ExprId {
        self.sure(Node::Const {
            dtype: DType::Bool,
            bits: v as u64,
        })
    }

    /// A launch parameter.
    pub fn param(&mut self, i: u16) -> ExprId {
        self.sure(Node::Param(i))
    }

    /// A size as an i64 value.
    pub fn size(&mut self, size: Size) -> ExprId {
        match size {
            Size::Const(c) => self.i64(c),
            Size::Param(i) => self.param(i),
        }
    }

    /// An axis coordinate.
    pub fn axis(&mut self, axis: u8) -> ExprId {
        self.sure(Node::Axis(axis))
    }

    /// An element of a buffer.
    pub fn load(&mut self, arg: u16, dtype: DType, index: Index) -> Result<ExprId, ExprError> {
        self.add(Node::Load {
            arg,
            dtype,
            index,
            guard: None,
        })
    }

    /// An element of a buffer where `when` holds, else `otherwise`.
    pub fn load_where(
        &mut self,
        arg: u16,
        dtype: DType,
        index: Index,
        when: ExprId,
        otherwise: ExprId,
    ) -> Result<ExprId, ExprError> {
        self.add(Node::Load {
            arg,
            dtype,
            index,
            guard: Some(Guard { when, otherwise }),
        })
    }

    /// An accumulator's value.
    pub fn acc(&mut self, i: u16, dtype: DType) -> Result<ExprId, ExprError> {
        self.add(Node::Acc(i, dtype))
    }

    /// A row temporary's value.
    pub fn temp(&mut self, i: u16, dtype: DType) -> Result<ExprId, ExprError> {
        self.add(Node::Temp(i, dtype))
    }

    /// A one-argument function.
    pub fn unary(&mut self, f: UnaryFn, x: ExprId) -> Result<ExprId, ExprError> {
        self.add(Node::Unary(f, x))
    }

    /// A two-argument function.
    pub fn binary(&mut self, f: BinaryFn, a: ExprId, b: ExprId) -> Result<ExprId, ExprError> {
        self.add(Node::Binary(f, a, b))
    }

    /// A comparison.
    pub fn compare(&mut self, f: CompareFn, a: ExprId, b: ExprId) -> Result<ExprId, ExprError> {
        self.add(Node::Compare(f, a, b))
    }

    /// A choice.
    pub fn select(&mut self, c: ExprId, a: ExprId, b: ExprId) -> Result<ExprId, ExprError> {
        self.add(Node::Select(c, a, b))
    }

    /// A conversion; to the value's own type it is the value.
    pub fn cast(&mut self, to: DType, x: ExprId) -> Result<ExprId, ExprError> {
        // A narrow float holds excess precision until it is cast: keep the node.
        if self.dtype(x) == to && !is_narrow_float(to) {
            return Ok(x);
        }
        self.add(Node::Cast(to, x))
    }

    /// The direct operands of a node, those inside its index included.
    pub fn operands(&self, id: ExprId) -> Vec<ExprId> {
        match self.node(id) {
            Node::Const { .. } | Node::Param(_) | Node::Axis(_) => vec![],
            Node::Acc(..) | Node::Temp(..) => vec![],
            Node::Load { index, guard, .. } => {
                let mut v: Vec<_> = index.gathers.iter().map(|g| g.index).collect();
                v.extend(guard.iter().flat_map(|g| [g.when, g.otherwise]));
                v
            }
            Node::Unary(_, a) | Node::Cast(_, a) => vec![*a],
            Node::Binary(_, a, b) | Node::Compare(_, a, b) => vec![*a, *b],
            Node::Select(a, b, c) => vec![*a, *b, *c],
        }
    }

    /// The ids that the roots reach, in order (arguments first).
    pub fn reachable(&self, roots: &[ExprId]) -> Vec<ExprId> {
        let mut seen = vec![false; self.nodes.len()];
        let mut todo = roots.to_vec();
        while let Some(id) = todo.pop() {
            if !std::mem::replace(&mut seen[id.0 as usize], true) {
                todo.extend(self.operands(id));
            }
        }
        (0..self.nodes.len() as u32)
            .filter(|&i| seen[i as usize])
            .map(ExprId)
            .collect()
    }

    /// Nodes that cannot be ill-typed.
    fn sure(&mut self, node: Node) -> ExprId {
        match self.add(node) {
            Ok(id) => id,
            Err(e) => unreachable!("a leaf is always well-typed: {e}"),
        }
    }

    fn known(&self, id: ExprId) -> Result<DType, ExprError> {
        (self.dtypes.get(id.0 as usize).copied())
            .ok_or_else(|| ExprError(format!("e{} does not exist yet", id.0)))
    }

    fn infer(&self, node: &Node) -> Result<DType, ExprError> {
        let same = |a: ExprId, b: ExprId| -> Result<DType, ExprError> {
            let (x, y) = (self.known(a)?, self.known(b)?);
            if x == y {
                Ok(x)
            } else {
                Err(ExprError(format!("operands are {x} and {y}")))
            }
        };
        let boolean = |id: ExprId| match self.known(id)? {
            DType::Bool => Ok(()),
            other => Err(ExprError(format!("a condition is {other}, not bool"))),
        };
        match node {
            Node::Const { dtype, .. } | Node::Acc(_, dtype) | Node::Temp(_, dtype) => {
                computable(*dtype)
            }
            Node::Param(_) | Node::Axis(_) => Ok(DType::I64),
            Node::Load {
                dtype,
                index,
                guard,
                ..
            } => {
                for g in &index.gathers {
                    let t = self.known(g.index)?;
                    if !t.is_int() {
                        return Err(ExprError(format!("an index is {t}, not an integer")));
                    }
                }
                if let Some(g) = guard {
                    boolean(g.when)?;
                    let t = self.known(g.otherwise)?;
                    if t != *dtype {
                        return Err(ExprError(format!("a load of {dtype} falls back to {t}")));
                    }
                }
                computable(*dtype)
            }
            Node::Unary(f, x) => {
                let t = self.known(*x)?;
                if !unary_takes(*f, t) {
                    return Err(ExprError(format!("{} does not take {t}", f.name())));
                }
                Ok(if f.returns_bool() { DType::Bool } else { t })
            }
            Node::Binary(f, a, b) => {
                let t = same(*a, *b)?;
                if !binary_takes(*f, t) {
                    return Err(ExprError(format!("{} does not take {t}", f.name())));
                }
                Ok(t)
            }
            Node::Compare(_, a, b) => same(*a, *b).map(|_| DType::Bool),
            Node::Select(c, a, b) => {
                boolean(*c)?;
                same(*a, *b)
            }
            Node::Cast(to, x) => {
                self.known(*x)?;
                computable(*to)
            }
        }
    }
}

/// f16, bf16 and smaller floats, which are computed in f32.
pub fn is_narrow_float(dtype: DType) -> bool {
    matches!(dtype, DType::F16 | DType::BF16) || is_small_float(dtype)
}

/// The type in which values of `dtype` are computed.
pub fn compute_dtype(dtype: DType) -> DType {
    if is_narrow_float(dtype) {
        DType::F32
    } else {
        dtype
    }
}

/// Wraps an integer to a type's width (sign- or zero-extended back to 64 bits).
pub(crate) fn wrap(dtype: DType, v: i64) -> i64 {
    let drop = 64 - (dtype.bits() as u32).clamp(1, 64);
    match dtype.kind() {
        Kind::Uint => ((v as u64) << drop >> drop) as i64,
        Kind::Bool => (v != 0) as i64,
        Kind::Int | Kind::Float | Kind::Complex | Kind::Str => v << drop >> drop,
    }
}

/// The f32 bits of a narrow float's nearest value.
fn narrow_bits(dtype: DType, v: f64) -> u64 {
    let t = kiln_ir::Tensor::scalar_f64(dtype, v);
    (t.get_f64(0) as f32).to_bits() as u64
}

fn unsupported(dtype: DType) -> ExprError {
    ExprError(format!("kernels do not compute on {dtype}"))
}

/// Types that kernels compute on, or load, store and convert (integers of less
/// than a byte): no complex, no strings.
fn computable(dtype: DType) -> Result<DType, ExprError> {
    match dtype {
        DType::F64 | DType::F32 | DType::F16 | DType::BF16 | DType::Bool => Ok(dtype),
        DType::I64 | DType::I32 | DType::I16 | DType::I8 => Ok(dtype),
        DType::U64 | DType::U32 | DType::U16 | DType::U8 => Ok(dtype),
        _ if is_small_float(dtype) || is_small_int(dtype) => Ok(dtype),
        _ => Err(unsupported(dtype)),
    }
}

fn unary_takes(f: UnaryFn, t: DType) -> bool {
    if is_small_int(t) {
        return false;
    }
    match f {
        UnaryFn::Neg | UnaryFn::Abs | UnaryFn::Sign => t != DType::Bool,
        UnaryFn::Floor | UnaryFn::Ceil | UnaryFn::Round => t != DType::Bool,
        UnaryFn::Not => true,
        UnaryFn::BitNot => t.is_int() || t == DType::Bool,
        UnaryFn::IsNan | UnaryFn::IsInf => true,
        UnaryFn::Exp | UnaryFn::Log | UnaryFn::Sqrt | UnaryFn::Rsqrt | UnaryFn::Recip => {
            t.is_float()
        }
        UnaryFn::Sin | UnaryFn::Cos | UnaryFn::Tan => t.is_float(),
        UnaryFn::Asin | UnaryFn::Acos | UnaryFn::Atan => t.is_float(),
        UnaryFn::Sinh | UnaryFn::Cosh | UnaryFn::Tanh => t.is_float(),
        UnaryFn::Asinh | UnaryFn::Acosh | UnaryFn::Atanh => t.is_float(),
        UnaryFn::Erf | UnaryFn::NormalCdf | UnaryFn::Sigmoid => t.is_float(),
        UnaryFn::RoundTf32 => t == DType::F32,
    }
}

fn binary_takes(f: BinaryFn, t: DType) -> bool {
    if is_small_int(t) {
        return false;
    }
    match f {
        BinaryFn::Add | BinaryFn::Sub | BinaryFn::Mul | BinaryFn::Div => t != DType::Bool,
        BinaryFn::Rem | BinaryFn::Mod | BinaryFn::Pow => t != DType::Bool,
        BinaryFn::Atan2 => t.is_float(),
        BinaryFn::Min | BinaryFn::Max => true,
        BinaryFn::And | BinaryFn::Or | BinaryFn::Xor => !t.is_float(),
        BinaryFn::Shl | BinaryFn::Shr => t.is_int(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_expressions_share_one_node() {
        let mut e = Exprs::new();
        let x = e
            .load(0, DType::F32, Index::strided([Size::Const(1), Size::ZERO]))
            .unwrap();
        let y = e
            .load(0, DType::F32, Index::strided([Size::Const(1)]))
            .unwrap();
        assert_eq!(x, y);
        let a = e.binary(BinaryFn::Add, x, y).unwrap();
        assert_eq!(e.binary(BinaryFn::Add, y, x).unwrap(), a);
        assert_eq!(e.len(), 2);
        let text = serde_json::to_string(&e).unwrap();
        let back: Exprs = serde_json::from_str(&text).unwrap();
        assert_eq!(back, e);
        assert_eq!(back.dtype(a), DType::F32);
    }

    #[test]
    fn ill_typed_nodes_are_refused() {
        let mut e = Exprs::new();
        let (x, i) = (e.f32(1.0), e.i64(1));
        assert!(e.binary(BinaryFn::Add, x, i).is_err());
        assert!(e.unary(UnaryFn::Exp, i).is_err());
        assert!(e.select(x, i, i).is_err());
        assert!(e.float(DType::C64, 0.0).is_err());
        assert!(e.unary(UnaryFn::Neg, ExprId(77)).is_err());
        let c = e.compare(CompareFn::Lt, i, i).unwrap();
        assert_eq!(e.dtype(c), DType::Bool);
    }

    #[test]
    fn constants_round_to_their_type() {
        let mut e = Exprs::new();
        let h = e.float(DType::F16, 0.1).unwrap();
        let Node::Const { bits, .. } = e.node(h) else {
            panic!()
        };
        assert_eq!(f32::from_bits(*bits as u32), 0.099975586);
        let w = e.int(DType::U8, -1).unwrap();
        assert_eq!(
            e.node(w),
            &Node::Const {
                dtype: DType::U8,
                bits: 255
            }
        );
    }
}
