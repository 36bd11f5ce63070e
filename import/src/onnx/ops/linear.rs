//! Matrix products.

use super::eliminate;
use crate::onnx::cx::{Cx, Fail, Out};
use kiln_ir::graph::Value;
use kiln_ir::{DType, Dim, ReduceFn};
use std::collections::BTreeSet;

type One = Result<Value, Fail>;

pub(crate) fn matmul(cx: &mut Cx) -> Out {
    let (a, b) = (cx.arg(0)?, cx.arg(1)?);
    Ok(vec![product(cx, a, b)?])
}

/// A product in which vectors stand for a row on the left and a column on the
/// right.
pub(super) fn product(cx: &mut Cx, a: Value, b: Value) -> One {
    let (sa, sb) = (cx.shape(a), cx.shape(b));
    if sa.is_empty() || sb.is_empty() {
        return Err(Fail::invalid("a scalar is no matrix"));
    }
    let row = match &sa[..] {
        [k] => cx.b.reshape(a, &[Dim::ONE, k.clone()])?,
        _ => a,
    };
    let column = match &sb[..] {
        [k] => cx.b.reshape(b, &[k.clone(), Dim::ONE])?,
        _ => b,
    };
    let y = cx.b.matmul(row, column)?;
    let mut shape = cx.shape(y);
    if sb.len() == 1 {
        shape.pop();
    }
    if sa.len() == 1 {
        let at = shape.len() - if sb.len() == 1 { 1 } else { 2 };
        shape.remove(at);
    }
    Ok(cx.b.reshape(y, &shape)?)
}

pub(crate) fn gemm(cx: &mut Cx) -> Out {
    let (a, b) = (cx.arg(0)?, cx.arg(1)?);
    let (ta, tb) = (cx.flag("transA", false)?, cx.flag("transB", false)?);
    let (alpha, beta) = (cx.float("alpha", 1.0)?, cx.float("beta", 1.0)?);
    let y = cx.b.matmul_t(a, b, ta, tb)?;
    let y = times(cx, y, alpha)?;
    match cx.opt(2) {
        Some(c) if beta != 0.0 => {
            let c = times(cx, c, beta)?;
            Ok(vec![cx.b.add(y, c)?])
        }
        _ => Ok(vec![y]),
    }
}

/// `v · factor`; for integers, in f64.
fn times(cx: &mut Cx, v: Value, factor: f64) -> One {
    if factor == 1.0 {
        return Ok(v);
    }
    let dtype = cx.dtype(v);
    let wide = if dtype.is_float() {
        v
    } else {
        cx.b.cast(v, DType::F64)?
    };
    let factor = cx.like(wide, factor)?;
    let y = cx.b.mul(wide, factor)?;
    Ok(cx.b.cast(y, dtype)?)
}

/// Of ONNX Runtime: a product with transposes and a factor.
pub(crate) fn fused_matmul(cx: &mut Cx) -> Out {
    let (a, b) = (cx.arg(0)?, cx.arg(1)?);
    let (a, b) = (
        batch_first(cx, a, "transBatchA")?,
        batch_first(cx, b, "transBatchB")?,
    );
    let (ta, tb) = (cx.flag("transA", false)?, cx.flag("transB", false)?);
    let alpha = cx.float("alpha", 1.0)?;
    let y = match (cx.rank(a), cx.rank(b)) {
        (2.., 2..) => cx.b.matmul_t(a, b, ta, tb)?,
        _ => product(cx, a, b)?,
    };
    Ok(vec![times(cx, y, alpha)?])
}

/// Where the flag says so: `[m, b…, k]` as `[b…, m, k]`.
fn batch_first(cx: &mut Cx, x: Value, flag: &str) -> One {
    let rank = cx.rank(x);
    if !cx.flag(flag, false)? || rank < 3 {
        return Ok(x);
    }
    let perm: Vec<usize> = (1..rank - 1).chain([0, rank - 1]).collect();
    Ok(cx.b.transpose(x, &perm)?)
}

/// Integers widen, zero points are taken away, and the product is in i32.
pub(crate) fn matmul_integer(cx: &mut Cx) -> Out {
    let (a, b) = (cx.arg(0)?, cx.arg(1)?);
    let a = centred(cx, a, cx.opt(2), true)?;
    let b = centred(cx, b, cx.opt(3), false)?;
    Ok(vec![product(cx, a, b)?])
}

/// `saturate(round(a·b · (sa·sb/sy)) + zy)`, the product exact in integers.
pub(crate) fn qlinear_matmul(cx: &mut Cx) -> Out {
    let (a, b, z) = (cx.arg(0)?, cx.arg(3)?, cx.arg(7)?);
    let a = centred(cx, a, cx.opt(2), true)?;
    let b = centred(cx, b, cx.opt(5), false)?;
    let y = product(cx, a, b)?;
    let mut scale = |i: usize, row: bool| -> One {
        let s = cx.arg(i)?;
        let s = cx.b.cast(s, DType::F64)?;
        match &cx.shape(s)[..] {
            [n] if *n == Dim::ONE => Ok(cx.b.reshape(s, &[])?),
            [n] if row => Ok(cx.b.reshape(s, &[n.clone(), Dim::ONE])?),
            _ => Ok(s),
        }
    };
    let (sa, sb, sy) = (scale(1, true)?, scale(4, false)?, scale(6, true)?);
    let s = cx.b.mul(sa, sb)?;
    let s = cx.b.div(s, sy)?;
    let y = cx.b.cast(y, DType::F64)?;
    let y = cx.b.mul(y, s)?;
    let to = cx.dtype(z);
    let z = cx.b.cast(z, DType::F64)?;
    let z = match &cx.shape(z)[..] {
        [n] if *n == Dim::ONE => cx.b.reshape(z, &[])?,
        [n] => cx.b.reshape(z, &[n.clone(), Dim::ONE])?,
        _ => z,
    };
    let y = cx.b.add(y, z)?;
    let y = cx.b.unary(kiln_ir::UnaryFn::Round, y)?;
    // A cast of a float saturates.
    Ok(vec![cx.b.cast(y, to)?])
}

/// `x − zero` in i32.
pub(super) fn centred(cx: &mut Cx, x: Value, zero: Option<Value>, rows: bool) -> One {
    let wide = cx.b.cast(x, DType::I32)?;
    let Some(z) = zero else {
        return Ok(wide);
    };
    let z = cx.b.cast(z, DType::I32)?;
    // One per row of the left matrix, or per column of the right.
    let z = match &cx.shape(z)[..] {
        [n] if *n == Dim::ONE => cx.b.reshape(z, &[])?,
        [n] if rows => cx.b.reshape(z, &[n.clone(), Dim::ONE])?,
        _ => z,
    };
    Ok(cx.b.sub(wide, z)?)
}

/// An operand of an einsum: a value and a label for each axis.
#[derive(Clone)]
struct Labelled {
    value: Value,
    labels: Vec<char>,
}

/// Operands join two at a time; labels that no later operand and not the result
/// has are summed on the way.
pub(crate) fn einsum(cx: &mut Cx) -> Out {
    let equation: String = cx.text("equation", "")?.split_whitespace().collect();
    let all = cx.all()?;
    let (inputs, output) = match equation.split_once("->") {
        Some((i, o)) => (i.to_string(), Some(o.to_string())),
        None => (equation.clone(), None),
    };
    let terms: Vec<&str> = inputs.split(',').collect();
    if terms.len() != all.len() {
        return Err(Fail::invalid(format!(
            "`{equation}` has {} operands",
            terms.len()
        )));
    }
    let mut operands = vec![];
    let mut widest = 0;
    for (term, &value) in terms.iter().zip(&all) {
        let rank = cx.rank(value);
        let letters = term.replace("...", "").chars().count();
        if term.contains("...") && rank >= letters {
            widest = widest.max(rank - letters);
        }
    }
    for (term, value) in terms.into_iter().zip(all) {
        let labels = expand_term(term, cx.rank(value), &equation)?;
        operands.push(diagonal(cx, Labelled { value, labels })?);
    }
    let result = match output {
        Some(o) => expand_term(
            &o,
            o.replace("...", "").chars().count() + if o.contains("...") { widest } else { 0 },
            &equation,
        )?,
        None => implied(&operands, widest),
    };
    let mut acc = operands.remove(0);
    while !operands.is_empty() {
        let next = operands.remove(0);
        let later: BTreeSet<char> = operands
            .iter()
            .flat_map(|o| o.labels.iter())
            .chain(&result)
            .copied()
            .collect();
        acc = contract(cx, acc, next, &later)?;
    }
    let keep: BTreeSet<char> = result.iter().copied().collect();
    let acc = sum_out(cx, acc, &keep)?;
    Ok(vec![order_as(cx, &acc, &result)?])
}

/// One label an axis; the axes of `...` are labelled by digits from the right.
fn expand_term(term: &str, rank: usize, equation: &str) -> Result<Vec<char>, Fail> {
    let wrong = || Fail::invalid(format!("`{equation}` does not fit its operands"));
    let (before, after, dots) = match term.split_once("...") {
        Some((b, a)) => (b, a, true),
        None => (term, "", false),
    };
    let letters = before.chars().count() + after.chars().count();
    if !(before.chars().chain(after.chars())).all(|c| c.is_ascii_alphabetic()) {
        return Err(wrong());
    }
    let extra = rank
        .checked_sub(letters)
        .filter(|&n| (dots || n == 0) && n < 10)
        .ok_or_else(wrong)?;
    let digits = (0..extra).map(|i| (b'0' + (extra - 1 - i) as u8) as char);
    Ok(before.chars().chain(digits).chain(after.chars()).collect())
}

/// Without an arrow: the axes of `...`, then labels that occur once, in
/// alphabetical order.
fn implied(operands: &[Labelled], widest: usize) -> Vec<char> {
    let all: Vec<char> = operands.iter().flat_map(|o| o.labels.clone()).collect();
    let mut once: Vec<char> = all
        .iter()
        .copied()
        .filter(|c| c.is_ascii_alphabetic() && all.iter().filter(|d| *d == c).count() == 1)
        .collect();
    once.sort_unstable();
    let dots = (0..widest).map(|i| (b'0' + (widest - 1 - i) as u8) as char);
    dots.chain(once).collect()
}

/// An operand whose label repeats keeps the diagonal: elements off it are
/// masked, and the second axis summed away.
fn diagonal(cx: &mut Cx, mut o: Labelled) -> Result<Labelled, Fail> {
    loop {
        let labels = o.labels.clone();
        let twice = labels
            .iter()
            .enumerate()
            .find_map(|(i, c)| labels[..i].iter().position(|d| d == c).map(|j| (j, i)));
        let Some((first, second)) = twice else {
            return Ok(o);
        };
        let shape = cx.shape(o.value);
        let iota = |axis: usize| {
            let mut s = vec![Dim::ONE; shape.len()];
            s[axis] = shape[axis].clone();
            kiln_ir::ops::source::Iota {
                shape: s,
                axis,
                dtype: DType::I64,
            }
        };
        let (i, j) = (cx.b.one(iota(first), &[])?, cx.b.one(iota(second), &[])?);
        let same = cx.b.compare(kiln_ir::CompareFn::Eq, i, j)?;
        let zero = cx.like(o.value, 0.0)?;
        let masked = cx.b.select(same, o.value, zero)?;
        o.value = cx.b.reduce(ReduceFn::Sum, masked, &[second], false)?;
        o.labels.remove(second);
    }
}

/// Sums the axes whose label is not kept.
fn sum_out(cx: &mut Cx, o: Labelled, keep: &BTreeSet<char>) -> Result<Labelled, Fail> {
    let axes: Vec<usize> = (0..o.labels.len())
        .filter(|&i| !keep.contains(&o.labels[i]))
        .collect();
    if axes.is_empty() {
        return Ok(o);
    }
    let value = cx.b.reduce(ReduceFn::Sum, o.value, &axes, false)?;
    let labels = o
        .labels
        .iter()
        .copied()
        .filter(|c| keep.contains(c))
        .collect();
    Ok(Labelled { value, labels })
}

/// The operand with its axes in this order, axes of extent 1 put in where it
/// lacks a label.
fn order_as(cx: &mut Cx, o: &Labelled, order: &[char]) -> One {
    let present: Vec<char> = order
        .iter()
        .copied()
        .filter(|c| o.labels.contains(c))
        .collect();
    let perm: Vec<usize> = present
        .iter()
        .filter_map(|c| o.labels.iter().position(|d| d == c))
        .collect();
    let value = cx.b.transpose(o.value, &perm)?;
    let shape = cx.shape(value);
    let wide: Vec<Dim> = order
        .iter()
        .map(|c| match present.iter().position(|d| d == c) {
            Some(i) => shape[i].clone(),
            None => Dim::ONE,
        })
        .collect();
    Ok(cx.b.reshape(value, &wide)?)
}

/// Two operands as one batched matrix product: labels of both that stay are the
/// batch, labels of both that do not are summed.
fn contract(
    cx: &mut Cx,
    a: Labelled,
    b: Labelled,
    later: &BTreeSet<char>,
) -> Result<Labelled, Fail> {
    let keep_a: BTreeSet<char> = later.iter().chain(&b.labels).copied().collect();
    let keep_b: BTreeSet<char> = later.iter().chain(&a.labels).copied().collect();
    let (a, b) = (sum_out(cx, a, &keep_a)?, sum_out(cx, b, &keep_b)?);
    let shared = |c: &char| b.labels.contains(c);
    // An axis of 1 broadcasts against the other's: such labels cannot be summed
    // by a product, and are batch axes first.
    let extent = |cx: &Cx, o: &Labelled, c: char| {
        o.labels
            .iter()
            .position(|d| *d == c)
            .map(|i| cx.shape(o.value)[i].clone())
    };
    let alike = |cx: &Cx, c: char| extent(cx, &a, c) == extent(cx, &b, c);
    let summed: Vec<char> = a
        .labels
        .iter()
        .copied()
        .filter(|c| shared(c) && !later.contains(c) && alike(cx, *c))
        .collect();
    let batch: Vec<char> = a
        .labels
        .iter()
        .copied()
        .filter(|c| shared(c) && !summed.contains(c))
        .collect();
    let rows: Vec<char> = a.labels.iter().copied().filter(|c| !shared(c)).collect();
    let columns: Vec<char> = b
        .labels
        .iter()
        .copied()
        .filter(|c| !a.labels.contains(c))
        .collect();
    let left = order_as(cx, &a, &[&batch[..], &rows, &summed].concat())?;
    let right = order_as(cx, &b, &[&batch[..], &summed, &columns].concat())?;
    let (sl, sr) = (cx.shape(left), cx.shape(right));
    let n = batch.len();
    let part = |s: &[Dim], from: usize, len: usize| Dim::product(&s[from..from + len]);
    let matrix = |s: &[Dim], first: usize, second: usize| {
        let mut m = s[..n].to_vec();
        m.extend([part(s, n, first), part(s, n + first, second)]);
        m
    };
    let l = cx.b.reshape(left, &matrix(&sl, rows.len(), summed.len()))?;
    let r =
        cx.b.reshape(right, &matrix(&sr, summed.len(), columns.len()))?;
    let y = cx.b.matmul(l, r)?;
    let mut shape = cx.broadcast(&[sl[..n].to_vec(), sr[..n].to_vec()]);
    shape.extend_from_slice(&sl[n..n + rows.len()]);
    shape.extend_from_slice(&sr[n + summed.len()..]);
    let value = cx.b.reshape(y, &shape)?;
    let labels = [&batch[..], &rows, &columns].concat();
    sum_out(cx, Labelled { value, labels }, later)
}

/// The determinant of square matrices: of at most 4 rows by cofactors, of more by
/// elimination.
pub(crate) fn det(cx: &mut Cx) -> Out {
    let x = cx.arg(0)?;
    let shape = cx.shape(x);
    let n = match &shape[..] {
        [.., a, b] if a == b => a.as_const().filter(|n| (1..=4).contains(n)),
        _ => return Err(Fail::invalid("a determinant of no square matrix")),
    };
    let Some(n) = n else {
        return Ok(vec![eliminate::determinant(cx, x)?]);
    };
    let columns: Vec<i64> = (0..n).collect();
    let y = minor(cx, x, 0, &columns)?;
    Ok(vec![cx.b.reshape(y, &shape[..shape.len() - 2])?])
}

/// The determinant of the rows from `row` on and these columns.
fn minor(cx: &mut Cx, x: Value, row: i64, columns: &[i64]) -> One {
    let last = cx.rank(x) - 1;
    let mut sum = None;
    for (i, &c) in columns.iter().enumerate() {
        let e = cx.b.slice_axis(x, last - 1, row.into(), Dim::ONE)?;
        let mut e = cx.b.slice_axis(e, last, c.into(), Dim::ONE)?;
        let rest: Vec<i64> = columns.iter().copied().filter(|&o| o != c).collect();
        if !rest.is_empty() {
            let m = minor(cx, x, row + 1, &rest)?;
            e = cx.b.mul(e, m)?;
        }
        sum = Some(match sum {
            None => e,
            Some(s) if i % 2 == 1 => cx.b.sub(s, e)?,
            Some(s) => cx.b.add(s, e)?,
        });
    }
    sum.ok_or_else(|| Fail::invalid("a determinant of no columns"))
}
