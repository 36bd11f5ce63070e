//! Products of quantized values, computed in integers.
//!
//! ```text
//! %a = dequantize %p, %s, %z                 (one scale)
//! %b = dequantize @w, @t, @u {axis = 1}      (one, or one for each column)
//! %y = matmul %a, %b
//! becomes
//! %i = matmul %p, @w {out = i32}
//! %j = sub %i, z·(Σ_k w − k·u) + u·Σ_k p
//! %y = mul (cast %j {to = f32}), s·t
//! ```
//!
//! What is constant of the correction folds to one number a column; without a zero
//! point nothing of it is left. Quantize ops around it are maps, which `fuse` makes
//! the product's epilogue or its producer's.
//!
//! The sums are exact, where the product of numbers rounded each step: results are
//! nearer to what the model means, and not the same bits, so this rule is *rounding*
//! and off where bits must not change. That it is off under `--deterministic` is not
//! for want of determinism (integer sums do not depend on batch, tiles or threads),
//! but because that option promises the graph as it is written.
//!
//! Products of values in floats of eight bits keep to these (`floats.rs`).
//!
//! Convolutions of quantized values become convolutions of bytes in the same way
//! (`convolution.rs`).
//!
//! Some rules are *exact* and always on: the same rewriting of a product whose
//! arguments were widened to i32 before (MatMulInteger; integers wrap alike), a gather
//! that goes before a dequantize, so that rows are dequantized and not tables,
//! a quantize that undoes a dequantize, and what `moves.rs` has. Activations that are quantized to i8 for
//! left sides become u8, right sides i8, with zero points moved by 128: what one
//! instruction multiplies. (That moves what NaN is quantized to, so it is off where
//! bits must not change.)

mod convolution;
mod floats;
mod moves;
mod scales;

use crate::canonicalize::splat;
use crate::{Changed, PassCx, PassError};
use kiln_ir::edit::{Rewrite, sweep};
use kiln_ir::graph::Relation;
use kiln_ir::ops::composite::{Dequantize, Quantize};
use kiln_ir::ops::contract::MatMul;
use kiln_ir::ops::index::Gather;
use kiln_ir::{
    BinaryFn, Builder, ConstSource, DType, Dim, GlobalKind, Globals, Graph, NodeId, Op, ReduceFn,
    Tensor, TypeError, Value,
};
use std::collections::{BTreeMap, BTreeSet};

/// Products of two differences of bytes that surely fit in i32: 255² · this.
const MOST_TERMS: i64 = i32::MAX as i64 / (255 * 255);

/// Elements of a zero point that are looked at to find that it is one number.
const MOST_READ: usize = 1 << 16;

/// Applies the rules.
pub fn integer_products(cx: &mut PassCx, graph: &mut Graph) -> Result<Changed, PassError> {
    let globals = &*cx.globals;
    let exact = cx.options.exact;
    let gpus = !cx.options.panels;
    // Where bytes flow from convolution to convolution, all of them are u8.
    let mut changed = !exact && has_convolutions(graph) && retype(graph, globals, true)?;
    changed |= sweep(graph, globals, &mut |b, n| {
        let mut found = gather_first(b, n)?.or(undone(b.graph, n));
        let more = [
            moves::move_first,
            moves::concat_first,
            moves::quantize_before_concat,
            moves::pool_first,
        ];
        for rule in more {
            if found.is_none() {
                found = rule(b, n)?;
            }
        }
        Ok(found.map_or(Rewrite::Keep, |v| Rewrite::With(vec![v])))
    })?;
    if !exact {
        changed |= retype(graph, globals, false)?;
    }
    changed |= sweep(graph, globals, &mut |b, n| {
        let found = if let Some(p) = widened(b.graph, n) {
            Some(p.sums(b, globals)?)
        } else if let Some(c) = convolution::widened(b.graph, globals, n) {
            Some(c.sums(b, globals)?)
        } else if exact {
            None
        } else if let Some((p, scales)) = dequantized(b.graph, n) {
            Some(rescaled(b, globals, &p, scales)?)
        } else if let Some(p) = floats::dequantized(b.graph, globals, n).filter(|_| gpus) {
            Some(p.numbers(b)?)
        } else if let Some((c, numbers)) = convolution::dequantized(b.graph, globals, n) {
            Some(c.numbers(b, globals, &numbers)?)
        } else {
            None
        };
        Ok(found.map_or(Rewrite::Keep, |v| Rewrite::With(vec![v])))
    })?;
    if !exact {
        changed |= scales::scales_into_quantize(graph, globals)?;
    }
    crate::eliminate_dead::eliminate_dead(cx, graph)?;
    Ok(changed.into())
}

fn is_byte(t: DType) -> bool {
    matches!(t, DType::I8 | DType::U8)
}

/// The op and arguments of what makes a value, if it is a dequantize of whole axes.
fn dequantize_of(graph: &Graph, v: Value) -> Option<(&Dequantize, &[Value])> {
    match graph.producer_op(v)? {
        (Op::Dequantize(d), args) if d.block == 0 => Some((d, args)),
        _ => None,
    }
}

/// `gather(dequantize(x), i)` with scales that the gather does not choose among.
fn gather_first(b: &mut Builder, n: NodeId) -> Result<Option<Value>, TypeError> {
    let node = b.graph.node(n);
    let Op::Gather(Gather { axis }) = node.op else {
        return Ok(None);
    };
    let index = node.args[1];
    let Some((d, args)) = dequantize_of(b.graph, node.args[0]) else {
        return Ok(None);
    };
    let whole = b.graph.ty(args[1]).rank() == 0;
    if !whole && d.axis == axis {
        return Ok(None);
    }
    let (mut d, mut args) = (d.clone(), args.to_vec());
    if d.axis > axis {
        d.axis = d.axis + b.graph.ty(index).rank() - 1;
    }
    args[0] = b.one(Gather { axis }, &[args[0], index])?;
    Ok(Some(b.one(d, &args)?))
}

/// `quantize(dequantize(q))` with the same parameters gives `q` back: a step times a
/// number over that number is off by two roundings, far less than half a step.
fn undone(graph: &Graph, n: NodeId) -> Option<Value> {
    let node = graph.node(n);
    let Op::Quantize(q) = &node.op else {
        return None;
    };
    undone_by(graph, q, &node.args)
}

/// What a quantize of these arguments gives back.
fn undone_by(graph: &Graph, q: &Quantize, given: &[Value]) -> Option<Value> {
    let (d, args) = dequantize_of(graph, given[0])?;
    let scale = splat(graph, given[1])?.abs();
    let same = given[1..] == args[1..]
        && q.block == 0
        && (graph.ty(args[1]).rank() == 0 || q.axis == d.axis)
        && graph.ty(args[0]).dtype == q.to
        && is_byte(q.to);
    // No step is subnormal or overflows.
    let tame = graph.ty(args[1]).dtype == DType::F32 && (1e-30..1e30).contains(&scale);
    (same && tame).then_some(args[0])
}

/// A quantize, or what it would give back.
fn quantized(b: &mut Builder, q: &Quantize, args: &[Value]) -> Result<Value, TypeError> {
    match undone_by(b.graph, q, args) {
        Some(bytes) => Ok(bytes),
        None => b.one(q.clone(), args),
    }
}

/// Whether quantized images are convolved.
fn has_convolutions(graph: &Graph) -> bool {
    graph.nodes_in_order().into_iter().any(|n| {
        let node = graph.node(n);
        matches!(node.op, Op::Conv(_)) && dequantize_of(graph, node.args[0]).is_some()
    })
}

/// Makes activations u8 where a product has them on the left, or in any place but the
/// right if `all`; i8 on the right.
fn retype(graph: &mut Graph, globals: &Globals, all: bool) -> Result<bool, PassError> {
    let users = graph.users();
    let results: BTreeSet<Value> = (0..graph.region_count())
        .flat_map(|r| graph.region(kiln_ir::RegionId(r as u32)).results.clone())
        .collect();
    let zero_is_number = |g: &Graph, args: &[Value]| match args.get(2) {
        Some(&z) => g.ty(z).rank() == 0 && splat(g, z).is_some(),
        None => g.ty(args[1]).rank() == 0,
    };
    // Quantize and dequantize nodes, by the type that the products at the end want.
    let mut wanted: BTreeMap<NodeId, DType> = BTreeMap::new();
    for n in graph.nodes_in_order() {
        let node = graph.node(n);
        let Op::Quantize(Quantize { block: 0, to, .. }) = node.op else {
            continue;
        };
        let v = node.results[0];
        if !is_byte(to) || results.contains(&v) || !zero_is_number(graph, &node.args) {
            continue;
        }
        let mut sides = [false; 2];
        let plain = users[v.index()].iter().all(|&u| {
            let user = graph.node(u);
            let ok = matches!(user.op, Op::Dequantize(Dequantize { block: 0, .. }))
                && user.args[0] == v
                && zero_is_number(graph, &user.args);
            for &m in users[user.results[0].index()].iter().filter(|_| ok) {
                let product = graph.node(m);
                if matches!(product.op, Op::MatMul(_) | Op::Conv(_)) {
                    (0..2).for_each(|i| sides[i] |= product.args[i] == user.results[0]);
                }
            }
            ok
        });
        let want = match sides {
            [true, _] => DType::U8,
            [false, true] => DType::I8,
            [false, false] if all => DType::U8,
            [false, false] => to,
        };
        if plain && want != to {
            wanted.insert(n, want);
            wanted.extend(users[v.index()].iter().map(|&u| (u, want)));
        }
    }
    let moved = |b: &mut Builder, args: &[Value], to: DType| -> Result<Vec<Value>, TypeError> {
        let zero = args.get(2).and_then(|&z| splat(b.graph, z)).unwrap_or(0.0);
        let by = if to == DType::U8 { 128.0 } else { -128.0 };
        let zero = b.scalar(to, zero + by)?;
        Ok(vec![args[0], args[1], zero])
    };
    Ok(sweep(graph, globals, &mut |b, n| {
        let Some(&to) = wanted.get(&n) else {
            return Ok(Rewrite::Keep);
        };
        let node = b.graph.node(n).clone();
        let args = moved(b, &node.args, to)?;
        let made = match node.op {
            Op::Quantize(q) => b.one(Quantize { to, ..q }, &args)?,
            op => b.one(op, &args)?,
        };
        Ok(Rewrite::With(vec![made]))
    })?)
}

/// One side of a product: bytes, and the zero point as it is.
struct Side {
    bytes: Value,
    zero: Option<Value>,
}

/// `(a − za)·(b − zb)` of bytes.
struct Product {
    op: MatMul,
    a: Side,
    b: Side,
}

/// The scales of two dequantized sides.
type Scales = [Value; 2];

/// Whether an extent is surely at most this: a number, or bounded by a guard.
fn at_most(graph: &Graph, d: &Dim, limit: i64) -> bool {
    let small = |d: &Dim| d.as_const().is_some_and(|n| n <= limit);
    small(d)
        || (graph.guards.iter())
            .any(|g| g.relation == Relation::Le && g.left == *d && small(&g.right))
}

fn depth(graph: &Graph, a: Value, op: &MatMul) -> Dim {
    let shape = graph.shape(a);
    shape[shape.len() - if op.transpose_a { 2 } else { 1 }].clone()
}

/// The scale of a dequantize op, an f32, if it is one number or has one for each column.
fn scale_of(graph: &Graph, d: &Dequantize, args: &[Value], column: Option<usize>) -> Option<Value> {
    let ty = graph.ty(args[1]);
    let fits = (ty.rank() == 0 || column == Some(d.axis)) && ty.dtype == DType::F32;
    fits.then_some(args[1])
}

/// A product of two dequantized values.
fn dequantized(graph: &Graph, n: NodeId) -> Option<(Product, Scales)> {
    let node = graph.node(n);
    let Op::MatMul(op) = &node.op else {
        return None;
    };
    if op.out.is_some() || graph.ty(node.results[0]).dtype != DType::F32 {
        return None;
    }
    let side = |i: usize, column: Option<usize>| -> Option<(Side, Value)> {
        let (d, args) = dequantize_of(graph, node.args[i])?;
        let scale = scale_of(graph, d, args, column)?;
        let side = Side {
            bytes: args[0],
            zero: args.get(2).copied(),
        };
        is_byte(graph.ty(args[0]).dtype).then_some((side, scale))
    };
    let rank = graph.ty(node.args[1]).rank();
    let column = rank - if op.transpose_b { 2 } else { 1 };
    let (a, sa) = side(0, None)?;
    let (b, sb) = side(1, Some(column))?;
    let op = MatMul {
        out: Some(DType::I32),
        tf32: false,
        ..op.clone()
    };
    let product = Product { op, a, b };
    let fits = at_most(graph, &depth(graph, node.args[0], &product.op), MOST_TERMS);
    fits.then_some((product, [sa, sb]))
}

/// Bytes that were widened to integers, less a zero point that `fits(bytes widened, zero
/// point)`, or less nothing.
fn widened_side(graph: &Graph, v: Value, fits: &dyn Fn(Value, Value) -> bool) -> Option<Side> {
    let bytes = |v: Value| match graph.producer_op(v)? {
        (Op::Cast(_), args) => is_byte(graph.ty(args[0]).dtype).then_some(args[0]),
        _ => None,
    };
    if let Some(bytes) = bytes(v) {
        return Some(Side { bytes, zero: None });
    }
    match graph.producer_op(v)? {
        (Op::Binary(f), args) if f.f == BinaryFn::Sub && fits(args[0], args[1]) => Some(Side {
            bytes: bytes(args[0])?,
            zero: Some(args[1]),
        }),
        _ => None,
    }
}

/// A product in i32 of bytes that were widened, with or without a zero point.
fn widened(graph: &Graph, n: NodeId) -> Option<Product> {
    let node = graph.node(n);
    let Op::MatMul(op) = &node.op else {
        return None;
    };
    if op.out.is_some() || graph.ty(node.results[0]).dtype != DType::I32 {
        return None;
    }
    // A zero point must be the same along k: `fixed` from the end.
    let side = |v: Value, fixed: usize| {
        widened_side(graph, v, &|x, zero| {
            let shape = graph.shape(zero);
            let along = shape.len().checked_sub(fixed).map(|i| shape[i].clone());
            along.is_none_or(|d| d == Dim::ONE) && shape.len() <= graph.ty(x).rank()
        })
    };
    let plain = !op.transpose_a && !op.transpose_b;
    let a = side(node.args[0], 1)?;
    let b = side(node.args[1], 2)?;
    let number = |s: &Side| s.zero.is_none_or(|z| graph.ty(z).rank() == 0);
    let op = MatMul {
        out: Some(DType::I32),
        tf32: false,
        ..op.clone()
    };
    (plain || (number(&a) && number(&b))).then_some(Product { op, a, b })
}

/// The product of dequantized sides as numbers.
fn rescaled(
    b: &mut Builder,
    globals: &Globals,
    p: &Product,
    scales: Scales,
) -> Result<Value, TypeError> {
    let sums = p.sums(b, globals)?;
    let sums = b.cast(sums, DType::F32)?;
    let scale = b.mul(scales[0], scales[1])?;
    b.mul(sums, scale)
}

impl Product {
    /// The exact sums, in i32.
    fn sums(&self, b: &mut Builder, globals: &Globals) -> Result<Value, TypeError> {
        let mut y = b.one(self.op.clone(), &[self.a.bytes, self.b.bytes])?;
        let zero = |b: &mut Builder, s: &Side| -> Result<Option<Value>, TypeError> {
            match s.zero.filter(|&z| number(b.graph, globals, z) != Some(0.0)) {
                Some(z) => Ok(Some(b.cast(z, DType::I32)?)),
                None => Ok(None),
            }
        };
        let (za, zb) = (zero(b, &self.a)?, zero(b, &self.b)?);
        if let Some(za) = za {
            let mut columns = self.column_sums(b)?;
            if let Some(zb) = zb {
                let k = depth(b.graph, self.a.bytes, &self.op);
                let k = match k.as_const() {
                    Some(k) => b.constant(Tensor::scalar_i64(DType::I32, k))?,
                    None => {
                        let k = b.dims(kiln_ir::SymValue {
                            shape: vec![],
                            dims: vec![k],
                        })?;
                        b.cast(k, DType::I32)?
                    }
                };
                let all = b.mul(k, zb)?;
                columns = b.sub(columns, all)?;
            }
            let off = b.mul(za, columns)?;
            y = b.sub(y, off)?;
        }
        if let Some(zb) = zb {
            let rows = self.row_sums(b)?;
            let off = b.mul(zb, rows)?;
            y = b.sub(y, off)?;
        }
        Ok(y)
    }

    /// `Σ_k b`, `[.., 1, n]`: of a weight as a product, which folds.
    fn column_sums(&self, b: &mut Builder) -> Result<Value, TypeError> {
        let w = self.b.bytes;
        let shape = b.shape(w);
        let axis = shape.len() - if self.op.transpose_b { 1 } else { 2 };
        let constant = matches!(
            b.graph.producer_op(w),
            Some((Op::Global(_) | Op::Constant(_), _))
        );
        if let (true, Some(k)) = (constant, shape[axis].as_const()) {
            let ones = vec![1i64; k as usize];
            let ones = Tensor::from_i64(DType::U8, [1, k as usize], &ones)
                .map_err(|e| TypeError(e.to_string()))?;
            let ones = b.constant(ones)?;
            let op = MatMul {
                transpose_a: false,
                ..self.op.clone()
            };
            return b.one(op, &[ones, w]);
        }
        let wide = b.cast(w, DType::I32)?;
        let sums = b.reduce(ReduceFn::Sum, wide, &[axis], false)?;
        let mut shape = b.shape(sums);
        shape.insert(shape.len() - 1, Dim::ONE);
        b.reshape(sums, &shape)
    }

    /// `Σ_k a`, `[.., m, 1]`.
    fn row_sums(&self, b: &mut Builder) -> Result<Value, TypeError> {
        let rank = b.shape(self.a.bytes).len();
        let axis = rank - if self.op.transpose_a { 2 } else { 1 };
        let wide = b.cast(self.a.bytes, DType::I32)?;
        let sums = b.reduce(ReduceFn::Sum, wide, &[axis], false)?;
        let mut shape = b.shape(sums);
        shape.push(Dim::ONE);
        b.reshape(sums, &shape)
    }
}

/// The elements of a literal or a small weight.
fn numbers(graph: &Graph, globals: &Globals, v: Value) -> Option<Vec<f64>> {
    match graph.producer_op(v)? {
        (Op::Global(g), _) => match &globals.get(&g.name)?.kind {
            GlobalKind::Const(ConstSource::Splat(x)) => Some(vec![*x]),
            GlobalKind::Const(ConstSource::Tensor(t)) if t.len() <= MOST_READ => Some(t.to_f64()),
            _ => None,
        },
        (Op::Constant(c), _) if c.value.len() <= MOST_READ => Some(c.value.to_f64()),
        _ => None,
    }
}

/// The number that a literal or a small weight is full of.
fn number(graph: &Graph, globals: &Globals, v: Value) -> Option<f64> {
    let (op, args) = graph.producer_op(v)?;
    match op {
        Op::Cast(_) | Op::Reshape(_) => number(graph, globals, args[0]),
        Op::Global(g) => number_of(globals, &g.name),
        _ => splat(graph, v),
    }
}

fn number_of(globals: &Globals, name: &str) -> Option<f64> {
    match &globals.get(name)?.kind {
        GlobalKind::Const(ConstSource::Splat(x)) => Some(*x),
        GlobalKind::Const(ConstSource::Tensor(t)) if t.len() <= MOST_READ => {
            let first = (!t.is_empty()).then(|| t.get_f64(0))?;
            let same = (0..t.len()).all(|i| t.get_f64(i) == first);
            same.then_some(first)
        }
        // What moved when constants were folded.
        GlobalKind::Const(ConstSource::Expr { op, args }) => match (&**op, &args[..]) {
            (Op::Reshape(_), [from]) => number_of(globals, from),
            _ => None,
        },
        _ => None,
    }
}
