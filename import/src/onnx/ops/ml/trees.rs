//! Ensembles of trees. All trees of all rows go down one level at a time: a loop
//! of as many steps as the deepest tree has levels, in which each row and tree
//! holds the node that it stands at. A leaf leads to itself.

use super::forest::{Forest, Mode};
use super::scores;
use super::{floats, indices, rows, table};
use crate::onnx::cx::{Cx, Fail, Out};
use kiln_ir::graph::Value;
use kiln_ir::ops::control::Loop;
use kiln_ir::ops::index::GatherElements;
use kiln_ir::{
    BinaryFn, Builder, CompareFn, DType, Dim, ReduceFn, Tensor, TensorType, TypeError, UnaryFn,
};

type One = Result<Value, Fail>;

/// How the leaves that a row reaches combine.
#[derive(Clone, Copy, PartialEq)]
enum Aggregate {
    Sum,
    Average,
    Min,
    Max,
}

/// The forest's tables in the graph.
struct Tables {
    feature: Value,
    split: Value,
    yes: Value,
    no: Value,
    /// The modes that occur; where they are several, also each node's.
    modes: Vec<Mode>,
    mode: Option<Value>,
    /// Where NaN takes the true branch.
    missing: Option<Value>,
}

fn tables(cx: &mut Cx, f: &Forest, dtype: DType) -> Result<Tables, Fail> {
    let n = f.nodes.len();
    let column = |get: &dyn Fn(usize) -> i64| (0..n).map(get).collect::<Vec<i64>>();
    let features = column(&|i| f.nodes[i].feature);
    let (yes, no) = (
        column(&|i| f.nodes[i].yes as i64),
        column(&|i| f.nodes[i].no as i64),
    );
    let splits: Vec<f64> = f.nodes.iter().map(|n| n.split).collect();
    let inner = || f.nodes.iter().filter(|n| !n.leaf);
    let modes: Vec<Mode> = (Mode::ALL.iter().copied())
        .filter(|m| inner().any(|n| n.mode == *m))
        .collect();
    let mode = match modes.len() {
        0 | 1 => None,
        _ => Some(indices(cx, &column(&|i| f.nodes[i].mode as i64), &[n])?),
    };
    let missing = match inner().any(|n| n.missing) {
        false => None,
        true => {
            let m = indices(cx, &column(&|i| f.nodes[i].missing as i64), &[n])?;
            Some(cx.b.cast(m, DType::Bool)?)
        }
    };
    Ok(Tables {
        feature: indices(cx, &features, &[n])?,
        split: table(cx, &splits, &[n], dtype)?,
        yes: indices(cx, &yes, &[n])?,
        no: indices(cx, &no, &[n])?,
        modes,
        mode,
        missing,
    })
}

impl Tables {
    /// One level down: `x[n, f]`, `at[n, t]`.
    fn step(&self, b: &mut Builder, x: Value, at: Value) -> Result<Value, TypeError> {
        let feature = b.gather(self.feature, at, 0)?;
        let v = b.one(GatherElements { axis: 1 }, &[x, feature])?;
        let split = b.gather(self.split, at, 0)?;
        let mut taken: Option<Value> = None;
        for &m in &self.modes {
            let mut here = b.compare(m.compare(), v, split)?;
            if let Some(mode) = self.mode {
                let own = b.gather(mode, at, 0)?;
                let this = b.constant(Tensor::scalar_i64(DType::I64, m as i64))?;
                let own = b.compare(CompareFn::Eq, own, this)?;
                here = b.binary(BinaryFn::And, here, own)?;
            }
            taken = Some(match taken {
                None => here,
                Some(t) => b.binary(BinaryFn::Or, t, here)?,
            });
        }
        let Some(mut taken) = taken else {
            return Ok(at);
        };
        if let Some(missing) = self.missing {
            let nan = b.unary(UnaryFn::IsNan, v)?;
            let tracks = b.gather(missing, at, 0)?;
            let nan = b.binary(BinaryFn::And, nan, tracks)?;
            taken = b.binary(BinaryFn::Or, taken, nan)?;
        }
        let (yes, no) = (b.gather(self.yes, at, 0)?, b.gather(self.no, at, 0)?);
        b.select(taken, yes, no)
    }
}

/// The leaf that each row reaches in each tree: `i64[n, t]`.
fn leaves(cx: &mut Cx, x: Value, f: &Forest) -> One {
    let t = tables(cx, f, cx.dtype(x))?;
    let roots: Vec<i64> = f.roots.iter().map(|&r| r as i64).collect();
    let roots = indices(cx, &roots, &[1, roots.len()])?;
    let all = [cx.extent(x, 0)?, Dim::from(f.roots.len())];
    let start = cx.b.broadcast_to(roots, &all)?;
    if f.depth == 0 {
        return Ok(start);
    }
    let region = cx.b.graph.add_region();
    let index = TensorType::scalar(DType::I64);
    cx.b.graph.add_region_param(region, index);
    let ty = cx.ty(start);
    let at = cx.b.graph.add_region_param(region, ty);
    let yielded = cx.b.in_region(region, |b| {
        let next = t.step(b, x, at)?;
        let go = b.constant(Tensor::scalar_i64(DType::Bool, 1))?;
        Ok::<_, TypeError>(vec![go, next])
    })?;
    cx.b.graph.region_mut(region).results = yielded;
    let trip = cx.scalar_dim(Dim::from(f.depth))?;
    let go = cx.b.constant(Tensor::scalar_i64(DType::Bool, 1))?;
    let op = Loop {
        carried: 1,
        symbol: None,
        sizes: vec![],
    };
    let out =
        cx.b.push_with_regions(op, &[trip, go, start], vec![region])?;
    Ok(out[0])
}

/// `[n, targets]`: what the leaves say, and the base. A target of which no leaf
/// says anything is 0, as in ONNX Runtime.
fn aggregated(cx: &mut Cx, at: Value, f: &Forest, how: Aggregate, base: &[f64]) -> One {
    let (n, e) = (f.nodes.len(), f.targets);
    let absent = match how {
        Aggregate::Sum | Aggregate::Average => 0.0,
        Aggregate::Min => f64::INFINITY,
        Aggregate::Max => f64::NEG_INFINITY,
    };
    let (mut weights, mut there) = (vec![absent; n * e], vec![0.0; n * e]);
    for v in &f.votes {
        let i = v.node * e + v.target;
        let first = there[i] == 0.0;
        weights[i] = match how {
            _ if first => v.weight,
            Aggregate::Sum | Aggregate::Average => weights[i] + v.weight,
            Aggregate::Min => weights[i].min(v.weight),
            Aggregate::Max => weights[i].max(v.weight),
        };
        there[i] = 1.0;
    }
    let (reduce, share) = match how {
        Aggregate::Sum => (ReduceFn::Sum, 1.0),
        Aggregate::Average => (ReduceFn::Sum, f.roots.len() as f64),
        Aggregate::Min => (ReduceFn::Min, 1.0),
        Aggregate::Max => (ReduceFn::Max, 1.0),
    };
    let weights = table(cx, &weights, &[n, e], DType::F32)?;
    let y = cx.b.gather(weights, at, 0)?;
    let mut y = cx.b.reduce(reduce, y, &[1], false)?;
    if share != 1.0 {
        let share = cx.like(y, share)?;
        y = cx.b.div(y, share)?;
    }
    if !base.is_empty() {
        let base = table(cx, base, &[base.len()], DType::F32)?;
        y = cx.b.add(y, base)?;
    }
    if f.complete() {
        return Ok(y);
    }
    let there = table(cx, &there, &[n, e], DType::F32)?;
    let there = cx.b.gather(there, at, 0)?;
    let there = cx.b.reduce(ReduceFn::Max, there, &[1], false)?;
    let zero = cx.like(y, 0.0)?;
    let some = cx.b.compare(CompareFn::Gt, there, zero)?;
    Ok(cx.b.select(some, y, zero)?)
}

/// Rows in the type of the comparisons: f64 where they are, else f32.
fn features(cx: &mut Cx) -> One {
    match cx.dtype(cx.arg(0)?) {
        DType::F64 => cx.arg(0),
        _ => rows(cx),
    }
}

fn base(cx: &mut Cx) -> Result<Vec<f64>, Fail> {
    if let Some(t) = cx.tensor("base_values_as_tensor")? {
        let v = cx.place(t)?;
        return Ok(cx.literal(v).ok_or_else(Fail::reported)?.to_f64());
    }
    Ok(floats(cx, "base_values")?.unwrap_or_default())
}

pub(crate) fn regressor(cx: &mut Cx) -> Out {
    let x = features(cx)?;
    let targets = usize::try_from(cx.int("n_targets", 1)?).unwrap_or(0);
    let f = Forest::of_nodes(cx, "target", targets)?;
    let how = match cx.text("aggregate_function", "SUM")? {
        "SUM" => Aggregate::Sum,
        "AVERAGE" => Aggregate::Average,
        "MIN" => Aggregate::Min,
        "MAX" => Aggregate::Max,
        other => return Err(Fail::invalid(format!("there is no aggregate `{other}`"))),
    };
    let base = base(cx)?;
    if !base.is_empty() && base.len() != targets {
        return Err(Fail::invalid(format!("{} base values", base.len())));
    }
    let at = leaves(cx, x, &f)?;
    let y = aggregated(cx, at, &f, how, &base)?;
    match targets {
        // ONNX Runtime transforms the results of several targets only.
        1 => Ok(vec![y]),
        _ => Ok(vec![scores::transformed(cx, y)?]),
    }
}

/// Labels and scores. Where the votes name one class of two, its score decides:
/// above a half where all votes are positive, above 0 else.
pub(crate) fn classifier(cx: &mut Cx) -> Out {
    let x = features(cx)?;
    let labels = scores::labels(cx, "classlabels_int64s")?;
    let f = Forest::of_nodes(cx, "class", labels.len())?;
    let base = base(cx)?;
    let first = f.votes.first().map_or(0, |v| v.target);
    let one = labels.len() == 2 && f.votes.iter().all(|v| v.target == first);
    let fits = match (one, base.len()) {
        (_, 0) => true,
        (true, n) => n == 1 && first == 0,
        (false, n) => n == labels.len(),
    };
    if !fits {
        return Err(Fail::form(format!(
            "{} base values for the classes of an ensemble",
            base.len()
        )));
    }
    let at = leaves(cx, x, &f)?;
    if !one {
        let y = aggregated(cx, at, &f, Aggregate::Sum, &base)?;
        let label = scores::best(cx, y, &labels)?;
        return Ok(vec![label, scores::transformed(cx, y)?]);
    }
    let y = aggregated(cx, at, &f, Aggregate::Sum, &[])?;
    let mut p = scores::column(cx, y, first)?;
    if let [base] = base[..] {
        let base = cx.like(p, base)?;
        p = cx.b.add(p, base)?;
    }
    let positive = f.votes.iter().all(|v| v.weight >= 0.0);
    let (threshold, from) = if positive { (0.5, 1.0) } else { (0.0, 0.0) };
    let label = scores::above(cx, p, threshold, &labels)?;
    let z = match first {
        0 => scores::two(cx, p, from)?,
        _ => scores::transformed(cx, y)?,
    };
    Ok(vec![label, z])
}

/// Opset 5: nodes and leaves apart.
pub(crate) fn ensemble(cx: &mut Cx) -> Out {
    let x = cx.arg(0)?;
    let narrow = cx.dtype(x);
    let x = features(cx)?;
    let f = Forest::of_branches(cx)?;
    let how = match cx.int("aggregate_function", 1)? {
        0 => Aggregate::Average,
        1 => Aggregate::Sum,
        2 => Aggregate::Min,
        3 => Aggregate::Max,
        other => return Err(Fail::invalid(format!("there is no aggregate {other}"))),
    };
    let transform = match cx.int("post_transform", 0)? {
        0 => "NONE",
        1 => "SOFTMAX",
        2 => "LOGISTIC",
        3 => "SOFTMAX_ZERO",
        _ => "PROBIT",
    };
    let at = leaves(cx, x, &f)?;
    let y = aggregated(cx, at, &f, how, &[])?;
    let y = match f.targets {
        1 => y,
        _ => scores::transform(cx, y, transform)?,
    };
    Ok(vec![cx.b.cast(y, narrow)?])
}
