//! GELU in both forms, and SiLU.

use super::{Found, Parts, near};
use kiln_ir::ops::composite::{Gelu, Silu};
use kiln_ir::{BinaryFn, NodeId, Op, UnaryFn, Value};
use std::f64::consts::{FRAC_1_SQRT_2, FRAC_2_PI};

/// `x/2 · (1 + erf(x/√2))`, or with `tanh(√(2/π)·(x + 0.044715·x³))`; factors in
/// any order.
pub(super) fn gelu(p: &Parts, n: NodeId) -> Option<Found> {
    let v = product(p, n)?;
    let mut parts = vec![];
    let (factors, number) = p.factors(v, &mut parts);
    let &[a, b] = &factors[..] else { return None };
    if !near(number, 0.5) {
        return None;
    }
    for (x, gate) in [(a, b), (b, a)] {
        let Some((plus, f, one)) = p.plus_number(gate) else {
            continue;
        };
        if one != 1.0 {
            continue;
        }
        let mut nodes = parts.clone();
        nodes.push(plus);
        let tanh = if let Some((n, inner)) = p.unary(f, UnaryFn::Erf) {
            nodes.push(n);
            if !is_scaled(p, inner, x, FRAC_1_SQRT_2, &mut nodes) {
                continue;
            }
            false
        } else if let Some((n, inner)) = p.unary(f, UnaryFn::Tanh) {
            nodes.push(n);
            if !is_bent(p, inner, x, &mut nodes) {
                continue;
            }
            true
        } else {
            continue;
        };
        return Some(Found {
            parts: nodes,
            build: Box::new(move |b| b.one(Gelu { tanh }, &[x])),
        });
    }
    None
}

/// `x · sigmoid(x)`.
pub(super) fn silu(p: &Parts, n: NodeId) -> Option<Found> {
    let v = product(p, n)?;
    let (root, a, b) = p.binary(v, BinaryFn::Mul)?;
    for (x, gate) in [(a, b), (b, a)] {
        if let Some((s, y)) = p.unary(gate, UnaryFn::Sigmoid)
            && x == y
        {
            return Some(Found {
                parts: vec![root, s],
                build: Box::new(move |b| b.one(Silu, &[x])),
            });
        }
    }
    None
}

fn product(p: &Parts, n: NodeId) -> Option<Value> {
    let node = p.graph.node(n);
    match (&node.op, &node.results[..]) {
        (Op::Binary(b), &[v])
            if matches!(b.f, BinaryFn::Mul | BinaryFn::Div) && p.graph.ty(v).dtype.is_float() =>
        {
            Some(v)
        }
        _ => None,
    }
}

/// Whether `v` is `x·factor`.
fn is_scaled(p: &Parts, v: Value, x: Value, factor: f64, nodes: &mut Vec<NodeId>) -> bool {
    let (factors, number) = p.factors(v, nodes);
    factors == [x] && near(number, factor)
}

/// Whether `v` is `√(2/π)·(x + 0.044715·x³)`, also as `√(2/π)·x·(1 + 0.044715·x²)`.
fn is_bent(p: &Parts, v: Value, x: Value, nodes: &mut Vec<NodeId>) -> bool {
    let (factors, number) = p.factors(v, nodes);
    if !near(number, FRAC_2_PI.sqrt()) {
        return false;
    }
    match factors[..] {
        [sum] => {
            let Some((n, a, b)) = p.binary(sum, BinaryFn::Add) else {
                return false;
            };
            nodes.push(n);
            let cubic = match (a == x, b == x) {
                (true, _) => b,
                (_, true) => a,
                _ => return false,
            };
            is_power(p, cubic, x, 3, 0.044715, nodes)
        }
        [a, b] => {
            let rest = match (a == x, b == x) {
                (true, false) => b,
                (false, true) => a,
                _ => return false,
            };
            let Some((n, square, one)) = p.plus_number(rest) else {
                return false;
            };
            nodes.push(n);
            one == 1.0 && is_power(p, square, x, 2, 0.044715, nodes)
        }
        _ => false,
    }
}

/// Whether `v` is `factor·xⁿ`.
fn is_power(
    p: &Parts,
    v: Value,
    x: Value,
    power: usize,
    factor: f64,
    nodes: &mut Vec<NodeId>,
) -> bool {
    let (factors, number) = p.factors(v, nodes);
    if !near(number, factor) {
        return false;
    }
    let mut count = 0;
    for f in factors {
        if f == x {
            count += 1;
        } else if let Some((n, base, e)) = p.binary(f, BinaryFn::Pow)
            && base == x
            && let Some(e) = p.number(e).filter(|e| *e == 2.0 || *e == 3.0)
        {
            nodes.push(n);
            count += e as usize;
        } else if let Some((n, base)) = p.square(f)
            && base == x
        {
            nodes.push(n);
            count += 2;
        } else {
            return false;
        }
    }
    count == power
}
