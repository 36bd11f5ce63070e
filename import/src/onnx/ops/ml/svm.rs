//! Support vector machines.

use super::scores::{self, column, counted};
use super::{floats, rows, table, width};
use crate::onnx::cx::{Cx, Fail, Out};
use kiln_ir::graph::Value;
use kiln_ir::ops::control::Loop;
use kiln_ir::{
    BinaryFn, Builder, CompareFn, DType, Dim, ReduceFn, Tensor, TensorType, TypeError, UnaryFn,
};

type One = Result<Value, Fail>;

/// Support vectors of one class; more are a mistake.
const MAX_VECTORS: usize = 1 << 24;
/// Classes: each two have a score, and the graph holds their votes one by one.
const MAX_CLASSES: usize = 256;
/// Classes with probabilities, which take operations for each two, over and over.
const MAX_COUPLED: usize = 32;

/// The kernel between each row of `x[n, f]` and each vector of `[v, f]`: `[n, v]`.
fn kernel(cx: &mut Cx, x: Value, vectors: &[f64]) -> One {
    let f = width(cx, x)?;
    if f == 0 || !vectors.len().is_multiple_of(f) {
        return Err(Fail::invalid(format!(
            "{} numbers are no vectors of {f} features",
            vectors.len()
        )));
    }
    let n = vectors.len() / f;
    let v = table(cx, vectors, &[n, f], DType::F32)?;
    let params = floats(cx, "kernel_params")?.unwrap_or_default();
    let at = |i: usize| params.get(i).copied().unwrap_or(0.0);
    let (gamma, offset, degree) = (at(0), at(1), at(2));
    let kind = cx.text("kernel_type", "LINEAR")?;
    if kind == "RBF" {
        // The difference first: squares of far points cancel.
        let (r, c) = (cx.extent(x, 0)?, Dim::from(f));
        let x = cx.b.reshape(x, &[r, Dim::ONE, c])?;
        let d = cx.b.sub(x, v)?;
        let d = cx.b.mul(d, d)?;
        let d = cx.b.reduce(ReduceFn::Sum, d, &[2], false)?;
        let gamma = cx.like(d, -gamma)?;
        let d = cx.b.mul(d, gamma)?;
        return Ok(cx.b.unary(UnaryFn::Exp, d)?);
    }
    let dot = cx.b.matmul_t(x, v, false, true)?;
    if kind == "LINEAR" {
        return Ok(dot);
    }
    let (gamma, offset) = (cx.like(dot, gamma)?, cx.like(dot, offset)?);
    let y = cx.b.mul(dot, gamma)?;
    let y = cx.b.add(y, offset)?;
    match kind {
        "SIGMOID" => Ok(cx.b.unary(UnaryFn::Tanh, y)?),
        "POLY" => {
            let degree = cx.like(y, degree)?;
            Ok(cx.b.binary(BinaryFn::Pow, y, degree)?)
        }
        other => Err(Fail::invalid(format!("there is no kernel `{other}`"))),
    }
}

/// A sum over the support vectors; of one class, its sign.
pub(crate) fn regressor(cx: &mut Cx) -> Out {
    let x = rows(cx)?;
    let coefficients = floats(cx, "coefficients")?.unwrap_or_default();
    let rho = floats(cx, "rho")?.unwrap_or_default();
    let rho = rho.first().copied().unwrap_or(0.0);
    let y = match cx.int("n_supports", 0)? {
        // The coefficients are the one vector.
        0 => kernel(cx, x, &coefficients)?,
        _ => {
            let vectors = floats(cx, "support_vectors")?.unwrap_or_default();
            let k = kernel(cx, x, &vectors)?;
            scores::product(cx, k, &coefficients, &[], 1)?
        }
    };
    let rho = cx.like(y, rho)?;
    let y = cx.b.add(y, rho)?;
    if !cx.flag("one_class", false)? {
        return Ok(vec![y]);
    }
    let (zero, one, minus) = (cx.like(y, 0.0)?, cx.like(y, 1.0)?, cx.like(y, -1.0)?);
    let over = cx.b.compare(CompareFn::Gt, y, zero)?;
    Ok(vec![cx.b.select(over, one, minus)?])
}

/// The classes' pairs and the weights of each pair's score, as `[pairs, vectors]`.
struct Pairs {
    pairs: Vec<(usize, usize)>,
    weights: Vec<f64>,
}

fn pairs(coefficients: &[f64], per_class: &[usize]) -> Result<Pairs, Fail> {
    let (classes, vectors) = (per_class.len(), per_class.iter().sum::<usize>());
    if coefficients.len() != classes.saturating_sub(1) * vectors || vectors == 0 {
        return Err(Fail::invalid(format!(
            "{} coefficients for {vectors} vectors of {classes} classes",
            coefficients.len()
        )));
    }
    let first: Vec<usize> = per_class
        .iter()
        .scan(0, |at, &n| Some(std::mem::replace(at, *at + n)))
        .collect();
    let mut out = Pairs {
        pairs: vec![],
        weights: vec![],
    };
    for i in 0..classes {
        for j in i + 1..classes {
            let mut row = vec![0.0; vectors];
            let own = |class: usize| first[class]..first[class] + per_class[class];
            own(i).for_each(|v| row[v] = coefficients[(j - 1) * vectors + v]);
            own(j).for_each(|v| row[v] = coefficients[i * vectors + v]);
            out.pairs.push((i, j));
            out.weights.extend(row);
        }
    }
    Ok(out)
}

/// One score for each pair of classes; the class that wins most pairs is the
/// label.
pub(crate) fn classifier(cx: &mut Cx) -> Out {
    let x = rows(cx)?;
    let labels = scores::labels(cx, "classlabels_ints")?;
    let coefficients = floats(cx, "coefficients")?.unwrap_or_default();
    let rho = floats(cx, "rho")?.unwrap_or_default();
    let per_class: Option<Vec<usize>> = (cx.ints("vectors_per_class")?.unwrap_or_default())
        .iter()
        .map(|&n| usize::try_from(n).ok().filter(|&n| n <= MAX_VECTORS))
        .collect();
    let per_class = per_class.unwrap_or_default();
    if per_class.len() != labels.len() || labels.len() < 2 {
        return Err(Fail::form(
            "a support vector classifier without vectors for each class",
        ));
    }
    if labels.len() > MAX_CLASSES {
        return Err(Fail::form(format!("{} classes", labels.len())));
    }
    let p = pairs(&coefficients, &per_class)?;
    let vectors = floats(cx, "support_vectors")?.unwrap_or_default();
    let k = kernel(cx, x, &vectors)?;
    let s = scores::product(cx, k, &p.weights, &rho, p.pairs.len())?;
    let label = voted(cx, s, &p.pairs, &labels)?;
    let (a, b) = (
        floats(cx, "prob_a")?.unwrap_or_default(),
        floats(cx, "prob_b")?.unwrap_or_default(),
    );
    let z = match (a.len(), labels.len()) {
        (0, 2) => scores::two(cx, s, 0.0)?,
        (0, _) => scores::transformed(cx, s)?,
        (_, classes) if classes > MAX_COUPLED => {
            return Err(Fail::form(format!("probabilities of {classes} classes")));
        }
        (n, _) if n == p.pairs.len() && b.len() == n => {
            let z = coupled(cx, s, &p.pairs, &a, &b, labels.len())?;
            scores::transformed(cx, z)?
        }
        (n, _) => return Err(Fail::invalid(format!("{n} probability coefficients"))),
    };
    Ok(vec![label, z])
}

fn voted(cx: &mut Cx, s: Value, pairs: &[(usize, usize)], labels: &Tensor) -> One {
    let zero = cx.like(s, 0.0)?;
    let first = cx.b.compare(CompareFn::Gt, s, zero)?;
    let second = cx.b.unary(UnaryFn::Not, first)?;
    let mut votes = vec![];
    for class in 0..labels.len() {
        let mut won = vec![];
        for (i, &(a, b)) in pairs.iter().enumerate() {
            if a == class {
                won.push(column(cx, first, i)?);
            } else if b == class {
                won.push(column(cx, second, i)?);
            }
        }
        let won = cx.b.concat(&won, 1)?;
        let n = counted(cx, won)?;
        let rows = cx.extent(n, 0)?;
        votes.push(cx.b.reshape(n, &[rows, Dim::ONE])?);
    }
    let votes = cx.b.concat(&votes, 1)?;
    scores::best(cx, votes, labels)
}

/// Probabilities of classes from those of pairs: a pair's is Platt's sigmoid of its
/// score, and the classes' are found by the second method of Wu, Lin and Weng 2004, with
/// libsvm's bounds: at most 100 rounds, until no class is off by 0.005/classes.
fn coupled(
    cx: &mut Cx,
    s: Value,
    pairs: &[(usize, usize)],
    a: &[f64],
    b: &[f64],
    classes: usize,
) -> One {
    let negated = |v: &[f64]| v.iter().map(|v| -v).collect::<Vec<f64>>();
    let a = table(cx, &negated(a), &[a.len()], DType::F32)?;
    let b = table(cx, &negated(b), &[b.len()], DType::F32)?;
    let y = cx.b.mul(s, a)?;
    let y = cx.b.add(y, b)?;
    let r = cx.b.unary(UnaryFn::Sigmoid, y)?;
    let (low, high) = (cx.like(r, 1e-7)?, cx.like(r, 1.0 - 1e-7)?);
    let r = cx.b.binary(BinaryFn::Max, r, low)?;
    let r = cx.b.binary(BinaryFn::Min, r, high)?;
    let q = pair_matrix(cx, r, pairs, classes)?;
    let n = cx.extent(s, 0)?;
    let start =
        cx.b.full(DType::F32, &[n, classes.into()], 1.0 / classes as f64)?;
    let region = cx.b.graph.add_region();
    let round = TensorType::scalar(DType::I64);
    cx.b.graph.add_region_param(region, round);
    let ty = cx.ty(start);
    let p = cx.b.graph.add_region_param(region, ty);
    let yielded = cx.b.in_region(region, |b| round_of(b, &q, p))?;
    cx.b.graph.region_mut(region).results = yielded;
    let (trip, go) = (
        cx.scalar_dim(100.into())?,
        Tensor::scalar_i64(DType::Bool, 1),
    );
    let go = cx.b.constant(go)?;
    let op = Loop {
        carried: 1,
        symbol: None,
        sizes: vec![],
    };
    let out =
        cx.b.push_with_regions(op, &[trip, go, start], vec![region])?;
    Ok(out[0])
}

/// The matrix of the method's quadratic form, each element a column of rows.
fn pair_matrix(
    cx: &mut Cx,
    r: Value,
    pairs: &[(usize, usize)],
    classes: usize,
) -> Result<Vec<Vec<Value>>, Fail> {
    let one = cx.like(r, 1.0)?;
    // r[i][j]: class i rather than class j, a column of rows.
    let mut of = vec![vec![one; classes]; classes];
    for (at, &(i, j)) in pairs.iter().enumerate() {
        let p = column(cx, r, at)?;
        of[i][j] = p;
        of[j][i] = cx.b.sub(one, p)?;
    }
    let mut q = vec![vec![one; classes]; classes];
    for t in 0..classes {
        let mut sum = cx.like(r, 0.0)?;
        for j in (0..classes).filter(|&j| j != t) {
            let square = cx.b.mul(of[j][t], of[j][t])?;
            sum = cx.b.add(sum, square)?;
            let both = cx.b.mul(of[j][t], of[t][j])?;
            q[t][j] = cx.b.unary(UnaryFn::Neg, both)?;
        }
        q[t][t] = sum;
    }
    Ok(q)
}

/// One round: whether any row goes on, and the rows' next probabilities; a row that
/// is near enough stays.
fn round_of(b: &mut Builder, q: &[Vec<Value>], p: Value) -> Result<Vec<Value>, TypeError> {
    let classes = q.len();
    let mut own = vec![];
    for t in 0..classes {
        own.push(b.slice_axis(p, 1, t.into(), Dim::ONE)?);
    }
    let mut qp = vec![];
    for row in q {
        let mut sum = b.mul(row[0], own[0])?;
        for (&x, &y) in row.iter().zip(&own).skip(1) {
            let product = b.mul(x, y)?;
            sum = b.add(sum, product)?;
        }
        qp.push(sum);
    }
    let mut pqp = b.mul(own[0], qp[0])?;
    for (&x, &y) in own.iter().zip(&qp).skip(1) {
        let product = b.mul(x, y)?;
        pqp = b.add(pqp, product)?;
    }
    let mut error = None;
    for &v in &qp {
        let d = b.sub(v, pqp)?;
        let d = b.unary(UnaryFn::Abs, d)?;
        error = Some(match error {
            None => d,
            Some(e) => b.binary(BinaryFn::Max, e, d)?,
        });
    }
    let error = error.ok_or_else(|| TypeError("no classes".into()))?;
    let bound = b.scalar_like(error, 0.005 / classes as f64)?;
    let open = b.compare(CompareFn::Ge, error, bound)?;
    let one = b.scalar_like(p, 1.0)?;
    for t in 0..classes {
        let d = b.sub(pqp, qp[t])?;
        let d = b.div(d, q[t][t])?;
        own[t] = b.add(own[t], d)?;
        let grown = b.add(one, d)?;
        // (pQp + d·(d·q + 2·Qp)) / (1 + d)²
        let dq = b.mul(d, q[t][t])?;
        let twice = b.add(qp[t], qp[t])?;
        let more = b.add(dq, twice)?;
        let more = b.mul(d, more)?;
        pqp = b.add(pqp, more)?;
        pqp = b.div(pqp, grown)?;
        pqp = b.div(pqp, grown)?;
        for j in 0..classes {
            let more = b.mul(d, q[t][j])?;
            let sum = b.add(qp[j], more)?;
            qp[j] = b.div(sum, grown)?;
            own[j] = b.div(own[j], grown)?;
        }
    }
    let next = b.concat(&own, 1)?;
    let next = b.select(open, next, p)?;
    let going = b.cast(open, DType::I64)?;
    let going = b.reduce(ReduceFn::Max, going, &[0, 1], false)?;
    Ok(vec![b.cast(going, DType::Bool)?, next])
}
