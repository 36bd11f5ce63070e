//! Unique: how many elements there are, only the data says.

use super::attention::index;
use crate::onnx::cx::{Cx, Fail, Out};
use kiln_ir::graph::Value;
use kiln_ir::ops::index::{NonZero, ScatterElements, ScatterFn};
use kiln_ir::ops::reduce::ArgReduce;
use kiln_ir::ops::strings::{StringFn, StringMap};
use kiln_ir::{BinaryFn, CompareFn, DType, Dim, Kind, ReduceFn, UnaryFn};

type One = Result<Value, Fail>;

/// What a comparison of every element with every other gives.
struct Found {
    /// The unique elements, in their order.
    unique: Value,
    /// Where each stands first.
    first: Value,
    /// For each element, where its equal stands among the unique ones.
    inverse: Value,
    /// How often each occurs.
    counts: Value,
}

/// Values, or slices along an axis, each once.
pub(crate) fn unique(cx: &mut Cx) -> Out {
    let x = cx.arg(0)?;
    let (x, axis) = match cx.opt_int("axis")? {
        Some(a) => (x, cx.axis(a, cx.rank(x))?),
        None => {
            let n = Dim::product(&cx.shape(x));
            (cx.b.reshape(x, &[n])?, 0)
        }
    };
    let sorted = cx.flag("sorted", true)?;
    let f = found(cx, x, axis, sorted)?;
    Ok(vec![f.unique, f.first, f.inverse, f.counts])
}

/// Of ONNX Runtime: of a vector, in the order of their first places.
pub(crate) fn in_order(cx: &mut Cx) -> Out {
    let x = cx.arg(0)?;
    let f = found(cx, x, 0, false)?;
    Ok(vec![f.unique, f.inverse, f.counts])
}

/// `n²` comparisons: good for thousands of elements, and for any order of work.
fn found(cx: &mut Cx, x: Value, axis: usize, sorted: bool) -> Result<Found, Fail> {
    // Strings have no order in compiled code, and their ranks have.
    let keys = match cx.dtype(x).kind() {
        Kind::Complex => {
            return Err(Fail::form(format!("unique elements of {}", cx.dtype(x))));
        }
        Kind::Str => cx.b.one(StringMap { f: StringFn::Rank }, &[x])?,
        Kind::Float | Kind::Int | Kind::Uint | Kind::Bool => x,
    };
    let n = cx.extent(x, axis)?;
    let rows = as_rows(cx, keys, axis)?;
    let (equal, less) = compared(cx, rows, sorted)?;
    let j = index(cx, vec![Dim::ONE, n.clone()], 1)?;
    // The first place of each element's equals.
    let end = cx.scalar_dim(n.clone())?;
    let at = cx.b.select(equal, j, end)?;
    let at = cx.b.reduce(ReduceFn::Min, at, &[1], false)?;
    let own = index(cx, vec![n.clone()], 0)?;
    let leads = cx.b.compare(CompareFn::Eq, at, own)?;
    let column = cx.b.reshape(at, &[n.clone(), Dim::ONE])?;
    let before = match less {
        Some(less) => less,
        None => cx.b.compare(CompareFn::Lt, j, column)?,
    };
    let line = cx.b.reshape(leads, &[Dim::ONE, n.clone()])?;
    let before = cx.b.binary(BinaryFn::And, before, line)?;
    let before = cx.b.cast(before, DType::I64)?;
    let inverse = cx.b.reduce(ReduceFn::Sum, before, &[1], false)?;
    let symbol = cx.b.graph.fresh_symbol("unique");
    let places = NonZero {
        symbol: symbol.clone(),
    };
    let places = cx.b.one(places, &[leads])?;
    let count = Dim::sym(symbol);
    let places = cx.b.reshape(places, std::slice::from_ref(&count))?;
    // Each leader's place among the unique elements is its own alone.
    let order = cx.b.gather(inverse, places, 0)?;
    let blank = cx.b.full(DType::I64, std::slice::from_ref(&count), 0.0)?;
    let op = ScatterElements {
        axis: 0,
        f: ScatterFn::Set,
    };
    let first = cx.b.one(op, &[blank, order, places])?;
    let k = index(cx, vec![count, Dim::ONE], 0)?;
    let line = cx.b.reshape(inverse, &[Dim::ONE, n])?;
    let here = cx.b.compare(CompareFn::Eq, line, k)?;
    let here = cx.b.cast(here, DType::I64)?;
    Ok(Found {
        unique: cx.b.gather(x, first, axis)?,
        first,
        inverse,
        counts: cx.b.reduce(ReduceFn::Sum, here, &[1], false)?,
    })
}

/// `[n, m]`: what is compared, one row for each element or slice.
fn as_rows(cx: &mut Cx, x: Value, axis: usize) -> One {
    let mut perm: Vec<usize> = (0..cx.rank(x)).filter(|&i| i != axis).collect();
    perm.insert(0, axis);
    let x = cx.b.transpose(x, &perm)?;
    let shape = cx.shape(x);
    let x =
        cx.b.reshape(x, &[shape[0].clone(), Dim::product(&shape[1..])])?;
    match cx.dtype(x) {
        DType::Bool => Ok(cx.b.cast(x, DType::U8)?),
        _ => Ok(x),
    }
}

/// Whether row `i` equals row `j` and, where wanted, whether `j` comes before `i`
/// by its first element that differs; NaN equals NaN and comes last. `[n, n]`.
fn compared(cx: &mut Cx, rows: Value, order: bool) -> Result<(Value, Option<Value>), Fail> {
    let shape = cx.shape(rows);
    let (n, m) = (shape[0].clone(), shape[1].clone());
    let mine = cx.b.reshape(rows, &[n.clone(), Dim::ONE, m.clone()])?;
    let other = cx.b.reshape(rows, &[Dim::ONE, n.clone(), m.clone()])?;
    let mut same = cx.b.compare(CompareFn::Eq, other, mine)?;
    let mut below = cx.b.compare(CompareFn::Lt, other, mine)?;
    if cx.dtype(rows).is_float() {
        let (a, b) = (
            cx.b.unary(UnaryFn::IsNan, mine)?,
            cx.b.unary(UnaryFn::IsNan, other)?,
        );
        let both = cx.b.binary(BinaryFn::And, a, b)?;
        same = cx.b.binary(BinaryFn::Or, same, both)?;
        let number = cx.b.unary(UnaryFn::Not, b)?;
        let only = cx.b.binary(BinaryFn::And, a, number)?;
        below = cx.b.binary(BinaryFn::Or, below, only)?;
    }
    let flat = [n.clone(), n];
    if m == Dim::ONE {
        let (same, below) = (cx.b.reshape(same, &flat)?, cx.b.reshape(below, &flat)?);
        return Ok((same, Some(below).filter(|_| order)));
    }
    let all = cx.b.cast(same, DType::I64)?;
    let equal = cx.b.reduce(ReduceFn::Min, all, &[2], false)?;
    let equal = cx.b.cast(equal, DType::Bool)?;
    if !order {
        return Ok((equal, None));
    }
    let op = ArgReduce {
        largest: false,
        axis: 2,
        keep: true,
        last: false,
    };
    // The first that differs; of equal rows the first of all, which is not below.
    let differs = cx.b.one(op, &[all])?;
    let k = index(cx, vec![Dim::ONE, Dim::ONE, m], 2)?;
    let here = cx.b.compare(CompareFn::Eq, k, differs)?;
    let below = cx.b.binary(BinaryFn::And, below, here)?;
    let below = cx.b.cast(below, DType::I64)?;
    let below = cx.b.reduce(ReduceFn::Max, below, &[2], false)?;
    Ok((equal, Some(cx.b.cast(below, DType::Bool)?)))
}
