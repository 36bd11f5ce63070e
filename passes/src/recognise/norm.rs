//! Layer norm and root-mean-square norm.

use super::{Found, Parts};
use kiln_ir::ops::composite::{LayerNorm, RmsNorm};
use kiln_ir::{BinaryFn, Builder, Dim, NodeId, Op, ReduceFn, TypeError, UnaryFn, Value};

/// `(x − mean) / √(variance + eps) · scale + bias`, scale and bias as they are
/// there.
pub(super) fn layer_norm(p: &Parts, n: NodeId) -> Option<Found> {
    let v = result(p, n)?;
    let mut parts = vec![];
    let (inner, bias) = match affine(p, v, BinaryFn::Add) {
        Some((n, inner, bias)) if normalised_below(p, inner) => {
            parts.push(n);
            (inner, Some(bias))
        }
        _ => (v, None),
    };
    let (inner, scale) = match affine(p, inner, BinaryFn::Mul) {
        Some((n, inner, scale)) if centred(p, inner).is_some() => {
            parts.push(n);
            (inner, Some(scale))
        }
        _ => (inner, None),
    };
    let c = centred(p, inner)?;
    parts.extend(&c.parts);
    let (axis, eps, x) = (c.axis, c.eps, c.x);
    let vectors = [(scale, 1.0), (bias, 0.0)].map(|(v, fill)| vector(p, v, x, axis, fill));
    let [Some(scale), Some(bias)] = vectors else {
        return None;
    };
    let build = move |b: &mut Builder| {
        let (scale, bias) = (scale.build(b)?, bias.build(b)?);
        b.one(LayerNorm { axis, eps }, &[x, scale, bias])
    };
    Some(Found {
        parts,
        build: Box::new(build),
    })
}

/// `x / √(mean x² + eps) · scale`.
pub(super) fn rms_norm(p: &Parts, n: NodeId) -> Option<Found> {
    let v = result(p, n)?;
    let mut parts = vec![];
    let (inner, scale) = match affine(p, v, BinaryFn::Mul) {
        Some((n, inner, scale)) if quotient(p, inner).is_some() => {
            parts.push(n);
            (inner, Some(scale))
        }
        _ => (v, None),
    };
    let (nodes, x, radicand) = quotient(p, inner)?;
    let (more, square, eps, axis) = mean_plus_eps(p, radicand)?;
    let (n, y) = p.square(square)?;
    if y != x || !last_axes(p, x, axis) {
        return None;
    }
    parts.extend(nodes);
    parts.extend(more);
    parts.push(n);
    let scale = vector(p, scale, x, axis, 1.0)?;
    let build = move |b: &mut Builder| {
        let scale = scale.build(b)?;
        b.one(RmsNorm { axis, eps }, &[x, scale])
    };
    Some(Found {
        parts,
        build: Box::new(build),
    })
}

fn result(p: &Parts, n: NodeId) -> Option<Value> {
    let node = p.graph.node(n);
    match (&node.op, &node.results[..]) {
        (Op::Binary(_), &[v]) if p.graph.ty(v).dtype.is_float() => Some(v),
        _ => None,
    }
}

/// `inner ∘ vector`, where the vector has fewer axes that do not broadcast.
fn affine(p: &Parts, v: Value, f: BinaryFn) -> Option<(NodeId, Value, Value)> {
    let (n, a, b) = p.binary(v, f)?;
    let full = |x: Value| p.graph.shape(x) == p.graph.shape(v);
    match (full(a), full(b)) {
        (true, false) => Some((n, a, b)),
        (false, true) => Some((n, b, a)),
        // A vector as large as the whole: the one that is no quotient.
        (true, true) if quotient(p, b).is_some() => Some((n, b, a)),
        (true, true) => Some((n, a, b)),
        (false, false) => None,
    }
}

/// Whether a value is a normalised one, or one scaled.
fn normalised_below(p: &Parts, v: Value) -> bool {
    centred(p, v).is_some()
        || affine(p, v, BinaryFn::Mul).is_some_and(|(_, inner, _)| centred(p, inner).is_some())
}

struct Centred {
    parts: Vec<NodeId>,
    x: Value,
    axis: usize,
    eps: f64,
}

/// `(x − mean x) / √(mean (x − mean x)² + eps)`.
fn centred(p: &Parts, v: Value) -> Option<Centred> {
    let (mut parts, c, radicand) = quotient(p, v)?;
    let (more, square, eps, axis) = mean_plus_eps(p, radicand)?;
    parts.extend(more);
    let (n, d) = p.square(square)?;
    parts.push(n);
    let (first, x) = difference(p, c, axis)?;
    parts.extend(first);
    if d != c {
        // The difference written twice.
        let (second, y) = difference(p, d, axis)?;
        parts.extend(second);
        if x != y {
            return None;
        }
    }
    parts.sort();
    parts.dedup();
    last_axes(p, x, axis).then_some(Centred {
        parts,
        x,
        axis,
        eps,
    })
}

/// `x − mean x` over the axes from `axis` on.
fn difference(p: &Parts, v: Value, axis: usize) -> Option<(Vec<NodeId>, Value)> {
    let (n, x, m) = p.binary(v, BinaryFn::Sub)?;
    let (mean, y, at) = mean(p, m)?;
    (x == y && at == axis).then_some((vec![n, mean], x))
}

/// `a / √b`, `a · 1/√b` or `a · (1 / √b)`: the nodes, `a` and `b`.
fn quotient(p: &Parts, v: Value) -> Option<(Vec<NodeId>, Value, Value)> {
    if let Some((n, a, root)) = p.binary(v, BinaryFn::Div) {
        let (r, b) = sqrt(p, root)?;
        return Some((vec![n, r], a, b));
    }
    let (n, a, b) = p.binary(v, BinaryFn::Mul)?;
    for (a, inverse) in [(a, b), (b, a)] {
        if let Some((r, x)) = p.unary(inverse, UnaryFn::Rsqrt) {
            return Some((vec![n, r], a, x));
        }
        if let Some((r, root)) = p.unary(inverse, UnaryFn::Recip)
            && let Some((s, x)) = sqrt(p, root)
        {
            return Some((vec![n, r, s], a, x));
        }
        if let Some((r, one, root)) = p.binary(inverse, BinaryFn::Div)
            && p.number(one) == Some(1.0)
            && let Some((s, x)) = sqrt(p, root)
        {
            return Some((vec![n, r, s], a, x));
        }
    }
    None
}

/// `√x`, also as a power.
fn sqrt(p: &Parts, v: Value) -> Option<(NodeId, Value)> {
    p.unary(v, UnaryFn::Sqrt).or_else(|| {
        let (n, x, e) = p.binary(v, BinaryFn::Pow)?;
        (p.number(e) == Some(0.5)).then_some((n, x))
    })
}

/// `mean(x) + eps` over trailing axes, kept: the nodes, `x`, eps and the first
/// axis.
fn mean_plus_eps(p: &Parts, v: Value) -> Option<(Vec<NodeId>, Value, f64, usize)> {
    let (n, m, eps) = p.plus_number(v)?;
    let (r, x, axis) = mean(p, m)?;
    (eps >= 0.0).then_some((vec![n, r], x, eps, axis))
}

/// A mean over all axes from one on, which stay with extent 1.
fn mean(p: &Parts, v: Value) -> Option<(NodeId, Value, usize)> {
    let (n, _) = p.graph.producer(v)?;
    let node = p.graph.node(n);
    let Op::Reduce(r) = &node.op else { return None };
    let rank = p.graph.ty(node.args[0]).rank();
    let axis = *r.axes.iter().min()?;
    let trailing = r.axes.len() == rank - axis;
    (r.f == ReduceFn::Mean && r.keep && trailing).then_some((n, node.args[0], axis))
}

/// Whether the norm's vectors can have the shape of the axes from `axis` on.
fn last_axes(p: &Parts, x: Value, axis: usize) -> bool {
    p.graph.shape(x)[axis..]
        .iter()
        .all(|d| d.as_const().is_some())
}

/// A vector of the norm: one that is there, or a number.
enum Vector {
    Value(Value, Vec<Dim>),
    Full(kiln_ir::DType, Vec<Dim>, f64),
}

impl Vector {
    fn build(&self, b: &mut Builder) -> Result<Value, TypeError> {
        match self {
            Vector::Value(v, shape) => b.reshape(*v, shape),
            Vector::Full(dtype, shape, fill) => b.full(*dtype, shape, *fill),
        }
    }
}

/// The vector for `x`'s axes from `axis` on; none where it has another shape.
fn vector(p: &Parts, v: Option<Value>, x: Value, axis: usize, fill: f64) -> Option<Vector> {
    let ty = p.graph.ty(x);
    let shape = ty.shape[axis..].to_vec();
    let Some(v) = v else {
        return Some(Vector::Full(ty.dtype, shape, fill));
    };
    let own = p.graph.shape(v);
    let extra = own.len().checked_sub(shape.len())?;
    let fits = own[extra..] == shape[..] && own[..extra].iter().all(|d| *d == Dim::ONE);
    (fits && p.graph.ty(v).dtype == ty.dtype).then_some(Vector::Value(v, shape))
}
