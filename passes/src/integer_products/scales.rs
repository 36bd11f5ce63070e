//! `quantize(f(x), s)` where dividing by `s` moves into the scales inside `f`: a number
//! was multiplied by a scale to become what it means, and is then divided by the next.
//!
//! ```text
//! %y = mul %sums, %t        %y = mul %sums, %t/s     (one constant)
//! %r = max %y, 0       →    %r = max %y, 0
//! %q = quantize %r, s       %q = quantize %r, 1
//! ```
//!
//! One rounding less, so *rounding* as the products themselves are.

use super::{dequantize_of, is_byte};
use crate::canonicalize::splat;
use kiln_ir::edit::{Rewrite, sweep};
use kiln_ir::ops::composite::Quantize;
use kiln_ir::{BinaryFn, Builder, DType, Globals, Graph, Op, TypeError, Value};

/// Applies the rule everywhere.
pub(super) fn scales_into_quantize(
    graph: &mut Graph,
    globals: &Globals,
) -> Result<bool, TypeError> {
    let users: Vec<usize> = graph.users().iter().map(Vec::len).collect();
    sweep(graph, globals, &mut |b, n| {
        let node = b.graph.node(n).clone();
        let Op::Quantize(q @ Quantize { block: 0, .. }) = &node.op else {
            return Ok(Rewrite::Keep);
        };
        let (y, s) = (node.args[0], node.args[1]);
        let positive = splat(b.graph, s).is_some_and(|s| (1e-30..1e30).contains(&s) && s != 1.0);
        let f32 = b.graph.ty(y).dtype == DType::F32 && b.graph.ty(s).dtype == DType::F32;
        let fits = f32 && positive && b.graph.ty(s).rank() == 0 && is_byte(q.to);
        if !fits || !divides(b.graph, &users, y, 8) {
            return Ok(Rewrite::Keep);
        }
        let mut args = node.args.clone();
        args[0] = divided(b, y, s)?;
        args[1] = b.scalar(DType::F32, 1.0)?;
        Ok(Rewrite::With(vec![b.one(q.clone(), &args)?]))
    })
}

/// What a value is, for this rule.
enum Scaled {
    /// Integers times a scale.
    Product(Value, Value),
    /// Bytes as numbers.
    Numbers,
    Sum(Value, Value),
    /// At least 0.
    Clamped(Value, Value),
    Constant,
}

fn scaled(graph: &Graph, v: Value) -> Option<Scaled> {
    if let Some((_, args)) = dequantize_of(graph, v) {
        let byte = is_byte(graph.ty(args[0]).dtype);
        return (byte && graph.ty(args[1]).dtype == DType::F32).then_some(Scaled::Numbers);
    }
    let (op, args) = graph.producer_op(v)?;
    let integers = |v: Value| match graph.producer_op(v) {
        Some((Op::Cast(_), args)) => graph.ty(args[0]).dtype == DType::I32,
        _ => false,
    };
    match op {
        Op::Global(_) | Op::Constant(_) => Some(Scaled::Constant),
        Op::Reshape(_) => scaled(graph, args[0]).filter(|s| matches!(s, Scaled::Constant)),
        Op::Binary(f) => match f.f {
            BinaryFn::Mul if integers(args[0]) => Some(Scaled::Product(args[0], args[1])),
            BinaryFn::Add => Some(Scaled::Sum(args[0], args[1])),
            BinaryFn::Max if splat(graph, args[1]) == Some(0.0) => {
                Some(Scaled::Clamped(args[0], args[1]))
            }
            _ => None,
        },
        _ => None,
    }
}

/// Whether a value can be divided inside, without computing anything of it twice.
fn divides(graph: &Graph, users: &[usize], v: Value, depth: usize) -> bool {
    let alone = users.get(v.index()).is_none_or(|&n| n <= 1);
    let inner = |v: Value| depth > 0 && divides(graph, users, v, depth - 1);
    match scaled(graph, v) {
        Some(Scaled::Numbers | Scaled::Constant) => true,
        Some(Scaled::Product(..)) => alone,
        Some(Scaled::Sum(a, b)) => alone && inner(a) && inner(b),
        Some(Scaled::Clamped(a, _)) => alone && inner(a),
        None => false,
    }
}

fn divided(b: &mut Builder, v: Value, s: Value) -> Result<Value, TypeError> {
    match scaled(b.graph, v) {
        Some(Scaled::Product(x, t)) => {
            let t = b.div(t, s)?;
            b.mul(x, t)
        }
        Some(Scaled::Sum(x, y)) => {
            let (x, y) = (divided(b, x, s)?, divided(b, y, s)?);
            b.add(x, y)
        }
        Some(Scaled::Clamped(x, zero)) => {
            let x = divided(b, x, s)?;
            b.binary(BinaryFn::Max, x, zero)
        }
        Some(Scaled::Numbers) => {
            let Some((d, mut args)) =
                dequantize_of(b.graph, v).map(|(d, a)| (d.clone(), a.to_vec()))
            else {
                return b.div(v, s);
            };
            args[1] = b.div(args[1], s)?;
            b.one(d, &args)
        }
        Some(Scaled::Constant) | None => b.div(v, s),
    }
}
