//! Control flow.

use super::loops::body;
use crate::diagnostic::code;
use crate::onnx::cx::{Cx, Fail, Items};
use crate::onnx::item::{Item, unknown};
use kiln_ir::graph::{RegionId, Value};
use kiln_ir::ops::control::{If, Loop, MintedSize};
use kiln_ir::ops::index::DynamicSlice;
use kiln_ir::{BinaryFn, CompareFn, DType, Dim, Op, Tensor, TensorType, Tri};
use onnx_protobuf::GraphProto;

impl<'m> Cx<'_, '_, 'm> {
    /// The truth that a value holds, if it is known.
    pub(crate) fn known_truth(&self, v: Value) -> Option<bool> {
        if let Some(k) = self.b.graph.known(v) {
            return match &k.dims[..] {
                [d] => d.as_const().map(|c| c != 0),
                _ => None,
            };
        }
        let t = self.literal(v).filter(|t| t.len() == 1)?;
        Some(t.get_i64(0) != 0)
    }

    pub(super) fn in_region(
        &mut self,
        region: RegionId,
        graph: &'m GraphProto,
        params: &[Item],
    ) -> Items {
        let (imp, scope, env) = (&mut *self.imp, self.scope, self.env);
        self.b
            .in_region(region, |b| imp.subgraph(b, scope, graph, params, env))
    }

    pub(super) fn constant_i64(&mut self, v: i64) -> Result<Value, Fail> {
        Ok(self.b.constant(Tensor::scalar_i64(DType::I64, v))?)
    }

    pub(super) fn constant_true(&mut self) -> Result<Value, Fail> {
        Ok(self.b.constant(Tensor::scalar_i64(DType::Bool, 1))?)
    }

    /// A truth of rank 0.
    pub(super) fn truth(&mut self, v: Value) -> Result<Value, Fail> {
        let v = self.b.cast(v, DType::Bool)?;
        Ok(self.b.reshape(v, &[])?)
    }
}

/// A condition that is known takes its branch in place. Extents that differ
/// between the branches get names.
pub(crate) fn branch(cx: &mut Cx) -> Items {
    let cond = cx.arg(0)?;
    let (yes, no) = (cx.graph("then_branch")?, cx.graph("else_branch")?);
    if let Some(c) = cx.known_truth(cond) {
        let taken = if c { yes } else { no };
        return cx.imp.subgraph(cx.b, cx.scope, taken, &[], cx.env);
    }
    let size = compared_size(cx, cond);
    let cond = cx.truth(cond)?;
    let (guards, said) = (cx.b.graph.guards.len(), cx.imp.said());
    let (then, other) = (cx.b.graph.add_region(), cx.b.graph.add_region());
    let a = cx.in_region(then, yes, &[])?;
    let b = cx.in_region(other, no, &[])?;
    let ranks = |cx: &Cx, items: &[Item]| {
        let values = items.iter().flat_map(Item::values);
        values.map(|v| cx.rank(v)).collect::<Vec<_>>()
    };
    if let Some((size, special)) = size
        && ranks(cx, &a) != ranks(cx, &b)
    {
        // `x.squeeze(1)` of an open size: what is compiled is the common case.
        cx.b.graph.guards.truncate(guards);
        cx.imp.unsay(said);
        let because = format!("the model's branch for a size of {special} has another rank");
        cx.assume_le(Dim::from(special + 1), size, &because);
        return cx.imp.subgraph(cx.b, cx.scope, no, &[], cx.env);
    }
    if a.len() != b.len() {
        return Err(Fail::invalid(
            "the branches yield different numbers of values",
        ));
    }
    if let Some((a, b)) = (a.iter().zip(&b)).find(|(a, b)| !a.like(b, cx.b.graph)) {
        return Err(unknown(format!(
            "the branches yield {} and {} of another structure, and which is taken depends on data",
            a.kind(),
            b.kind()
        )));
    }
    let structure = a.clone();
    let tensors = |items: &[Item]| items.iter().flat_map(Item::values).collect::<Vec<_>>();
    let (a, b) = (tensors(&a), tensors(&b));
    let mut sizes = vec![];
    for (result, (&a, &b)) in a.iter().zip(&b).enumerate() {
        let (a, b) = (cx.ty(a), cx.ty(b));
        for axis in different_axes(&a, &b)? {
            let symbol = cx.b.graph.fresh_symbol("branch");
            sizes.push(MintedSize {
                result,
                axis,
                symbol,
            });
        }
    }
    cx.b.graph.region_mut(then).results = a;
    cx.b.graph.region_mut(other).results = b;
    let results =
        cx.b.push_with_regions(If { sizes }, &[cond], vec![then, other])?;
    let mut results = results.into_iter();
    Ok(structure
        .iter()
        .map(|item| item.with(&mut results))
        .collect())
}

/// The size and the small number whose equality a condition tells.
fn compared_size(cx: &Cx, mut cond: Value) -> Option<(Dim, i64)> {
    loop {
        match cx.b.graph.producer_op(cond)? {
            (Op::Cast(_) | Op::Reshape(_), &[inner]) => cond = inner,
            (Op::Compare(c), &[a, b]) if c.f == CompareFn::Eq => {
                let one = |v| match &cx.b.graph.known(v)?.dims[..] {
                    [d] => Some(d.clone()),
                    _ => None,
                };
                let (a, b) = (one(a)?, one(b)?);
                return match (a.as_const(), b.as_const()) {
                    (None, Some(c @ 0..=1)) => Some((a, c)),
                    (Some(c @ 0..=1), None) => Some((b, c)),
                    _ => None,
                };
            }
            _ => return None,
        }
    }
}

/// Axes whose extents are not known to be the same.
pub(super) fn different_axes(a: &TensorType, b: &TensorType) -> Result<Vec<usize>, Fail> {
    if a.dtype != b.dtype || a.rank() != b.rank() {
        let message = format!("control flow yields different types: {a} and {b}");
        return Err(Fail::new(code::DATA_SHAPE, message)
            .help("export the model so that the rank does not depend on data, or with a constant condition"));
    }
    let axes = 0..a.rank();
    Ok(axes
        .filter(|&i| a.shape[i].same(&b.shape[i]) != Tri::Yes)
        .collect())
}

/// A scanned input: the value, its axis and whether it runs backwards.
struct Scanned {
    value: Value,
    axis: usize,
    backwards: bool,
}

/// Scan as a loop: each step slices its inputs, and what it yields is stacked
/// (then moved to its axis, and turned round).
pub(crate) fn scan(cx: &mut Cx) -> Items {
    if cx.opset < 9 {
        return batched_scan(cx);
    }
    let all = cx.all()?;
    scan_over(cx, &all, "scan_input_directions")
}

/// Opset 8, where everything has a batch axis in front: of one entry, the same
/// without it.
fn batched_scan(cx: &mut Cx) -> Items {
    let no = |what: &str| {
        Err(Fail::form(format!("{what} in a Scan of opset 8"))
            .help("convert the model with onnx.version_converter to opset 17"))
    };
    if cx.opt(0).is_some() {
        return no("sequence lengths");
    }
    let mut all = vec![];
    for i in 1..cx.args.len() {
        let v = cx.arg(i)?;
        let shape = cx.shape(v);
        match shape.split_first() {
            Some((n, rest)) if *n == Dim::ONE => all.push(cx.b.reshape(v, rest)?),
            _ => return no("more than one batch entry"),
        }
    }
    let mut out = scan_over(cx, &all, "directions")?;
    for item in &mut out {
        let v = item.tensor()?;
        let shape = [&[Dim::ONE], &cx.shape(v)[..]].concat();
        *item = Item::Tensor(cx.b.reshape(v, &shape)?);
    }
    Ok(out)
}

/// States and then scanned values; `directions` names the attribute that says
/// which of these run backwards.
fn scan_over(cx: &mut Cx, all: &[Value], directions: &str) -> Items {
    let graph = cx.graph("body")?;
    let n = usize::try_from(cx.int("num_scan_inputs", 0)?)
        .ok()
        .filter(|&n| n > 0 && n <= all.len())
        .ok_or_else(|| Fail::invalid("the number of scanned inputs does not fit"))?;
    let (carried, scanned) = all.split_at(all.len() - n);
    let scanned = scan_inputs(cx, scanned, directions)?;
    let steps = cx.shape(scanned[0].value)[scanned[0].axis].clone();
    let start: Vec<Item> = carried.iter().map(|&v| Item::Tensor(v)).collect();
    let inner = body(cx, graph, &start, 0, &|cx, region, i, params| {
        let mut given = params.to_vec();
        for s in &scanned {
            given.push(Item::Tensor(step_slice(cx, region, s, i)?));
        }
        Ok(given)
    })?;
    let always = cx.b.in_region(inner.region, |b| {
        b.constant(Tensor::scalar_i64(DType::Bool, 1))
    })?;
    let mut yielded = vec![always];
    for item in &inner.results {
        yielded.push(item.tensor()?);
    }
    cx.b.graph.region_mut(inner.region).results = yielded;
    let (trip, go) = (cx.scalar_dim(steps)?, cx.constant_true()?);
    let op = Loop {
        carried: carried.len(),
        symbol: None,
        sizes: inner.sizes,
    };
    let mut args = vec![trip, go];
    args.extend(carried);
    let mut results = cx.b.push_with_regions(op, &args, vec![inner.region])?;
    let axes = cx.ints("scan_output_axes")?.unwrap_or_default();
    let directions = cx.ints("scan_output_directions")?.unwrap_or_default();
    for (k, slot) in results[carried.len()..].iter_mut().enumerate() {
        let mut v = *slot;
        if directions.get(k) == Some(&1) {
            v = reversed(cx, v)?;
        }
        let axis = cx.axis(axes.get(k).copied().unwrap_or(0), cx.rank(v))?;
        let mut perm: Vec<usize> = (1..cx.rank(v)).collect();
        perm.insert(axis, 0);
        *slot = cx.b.transpose(v, &perm)?;
    }
    Ok(results.into_iter().map(Item::Tensor).collect())
}

fn scan_inputs(cx: &mut Cx, values: &[Value], directions: &str) -> Result<Vec<Scanned>, Fail> {
    let axes = cx.ints("scan_input_axes")?.unwrap_or_default();
    let directions = cx.ints(directions)?.unwrap_or_default();
    values
        .iter()
        .enumerate()
        .map(|(k, &value)| {
            Ok(Scanned {
                value,
                axis: cx.axis(axes.get(k).copied().unwrap_or(0), cx.rank(value))?,
                backwards: directions.get(k) == Some(&1),
            })
        })
        .collect()
}

/// What step `i` sees of a scanned input.
fn step_slice(cx: &mut Cx, r: RegionId, s: &Scanned, i: Value) -> Result<Value, Fail> {
    let shape = cx.shape(s.value);
    let (mut sizes, mut rest) = (shape.clone(), shape.clone());
    sizes[s.axis] = Dim::ONE;
    rest.remove(s.axis);
    let last = cx.scalar_dim(shape[s.axis].clone() - Dim::ONE)?;
    let zero = cx.constant_i64(0)?;
    let v = cx.b.in_region(r, |b| {
        let at = match s.backwards {
            true => b.binary(BinaryFn::Sub, last, i)?,
            false => i,
        };
        let mut starts = vec![b.reshape(zero, &[Dim::ONE])?; shape.len()];
        starts[s.axis] = b.reshape(at, &[Dim::ONE])?;
        let starts = b.concat(&starts, 0)?;
        let one = b.one(DynamicSlice { sizes }, &[s.value, starts])?;
        b.reshape(one, &rest)
    })?;
    Ok(v)
}

/// Turned round along the first axis.
pub(crate) fn reversed(cx: &mut Cx, v: Value) -> Result<Value, Fail> {
    let sizes = cx.shape(v);
    let mut starts = vec![Dim::ZERO; sizes.len()];
    let mut steps = vec![1; sizes.len()];
    starts[0] = sizes[0].clone() - Dim::ONE;
    steps[0] = -1;
    let op = kiln_ir::ops::layout::Slice {
        starts,
        sizes,
        steps,
    };
    Ok(cx.b.one(op, &[v])?)
}
