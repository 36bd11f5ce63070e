//! Loops, with what they carry.
//!
//! A loop over tensors is one loop of the IR. One that carries sequences or
//! optionals, or that looks into them, is unrolled where its steps are known, or
//! becomes a loop in which each carried sequence stays as it is or grows by one
//! element of one shape a step: those elements are a stacked result.

use super::control::different_axes;
use crate::diagnostic::{Diagnostic, Severity, code};
use crate::onnx::cx::{Cx, Fail, Items};
use crate::onnx::item::{Item, Part, Sequence, unknown};
use kiln_ir::graph::{NodeId, RegionId, Value};
use kiln_ir::ops::control::{Loop, MintedSize};
use kiln_ir::{DType, Dim, Graph, Op, Tensor, TensorType};
use onnx_protobuf::GraphProto;
use std::collections::BTreeSet;
use std::sync::Arc;

/// How often a loop's body is converted again because it changes the extents of
/// what it carries.
const MAX_TRIES: usize = 6;
/// Steps that are unrolled.
const MAX_UNROLLED: i64 = 1024;
/// Loops up to this long are unrolled rather than kept, where they carry or look
/// into sequences: then every step knows its elements.
const SHORT: i64 = 16;

/// How an item goes through a loop.
#[derive(Clone)]
enum Carry {
    /// As a carried tensor of this type.
    Tensor(TensorType),
    /// It is the same in every step.
    Same,
    /// A sequence to which every step adds one element.
    Grown,
}

/// A loop's region, converted.
pub(super) struct Body {
    pub(super) region: RegionId,
    /// All that the graph yields, in its order.
    pub(super) results: Vec<Item>,
    /// How each carried item goes through.
    carries: Vec<Carry>,
    pub(super) sizes: Vec<MintedSize>,
}

/// What a body's graph takes, given its region, the step and the carried items.
type More<'f, 'm> =
    dyn Fn(&mut Cx<'_, '_, 'm>, RegionId, Value, &[Item]) -> Result<Vec<Item>, Fail> + 'f;

/// Converts a body: `(i, carried…)` and what `more` adds become its inputs in
/// the order that `more` gives; `first` of its results stand before the carried
/// ones. Axes that the body changes get names, sequences that it changes grow,
/// and it is converted again.
pub(super) fn body<'m>(
    cx: &mut Cx<'_, '_, 'm>,
    graph: &'m GraphProto,
    carried: &[Item],
    first: usize,
    more: &More<'_, 'm>,
) -> Result<Body, Fail> {
    let carry = |item: &Item| match item {
        Item::Tensor(v) => Carry::Tensor(cx.ty(*v)),
        _ => Carry::Same,
    };
    let mut carries: Vec<Carry> = carried.iter().map(carry).collect();
    let mut sizes: Vec<MintedSize> = vec![];
    for _ in 0..MAX_TRIES {
        let (guards, said) = (cx.b.graph.guards.len(), cx.imp.said());
        let region = cx.b.graph.add_region();
        let step = TensorType::scalar(DType::I64);
        let i = cx.b.graph.add_region_param(region, step);
        let params: Vec<Item> = (carried.iter().zip(&carries).enumerate())
            .map(|(k, (item, carry))| parameter(cx.b.graph, region, k, item, carry))
            .collect();
        let given = more(cx, region, i, &params)?;
        let results = match cx.in_region(region, graph, &given) {
            Ok(results) => results,
            // What a sequence seemed to hold need not be what it holds later.
            Err(_) if grow_all(&mut carries, carried) => {
                cx.b.graph.guards.truncate(guards);
                cx.imp.unsay(said);
                continue;
            }
            Err(e) => return Err(e),
        };
        let next = results
            .get(first..first + carried.len())
            .ok_or_else(|| Fail::invalid("the body yields fewer values than are carried"))?;
        let mut changed = false;
        let mut tensor = 0;
        for (k, item) in next.iter().enumerate() {
            changed |= match &mut carries[k] {
                Carry::Tensor(ty) => {
                    tensor += 1;
                    mint_extents(cx, ty, item, tensor - 1, &mut sizes)?
                }
                carry => settle_sequence(carry, &carried[k], item)?,
            };
        }
        if !changed {
            return Ok(Body {
                region,
                results,
                carries,
                sizes,
            });
        }
        cx.b.graph.guards.truncate(guards);
        cx.imp.unsay(said);
    }
    Err(Fail::new(
        code::DATA_SHAPE,
        "the extents of carried values do not settle",
    )
    .help("export the model so that carried values keep their shape"))
}

/// What carried item `k` is inside the body.
fn parameter(graph: &mut Graph, region: RegionId, k: usize, item: &Item, carry: &Carry) -> Item {
    match (carry, item) {
        (Carry::Tensor(ty), _) => Item::Tensor(graph.add_region_param(region, ty.clone())),
        (Carry::Grown, Item::Sequence(s)) => Item::Sequence(Sequence {
            dtype: s.dtype,
            parts: vec![Part::Before(region, k)],
        }),
        _ => item.clone(),
    }
}

/// Takes every carried sequence for one that grows; whether one was not before.
fn grow_all(carries: &mut [Carry], carried: &[Item]) -> bool {
    let mut changed = false;
    for (carry, item) in carries.iter_mut().zip(carried) {
        if let (Carry::Same, Item::Sequence(_)) = (&carry, item) {
            *carry = Carry::Grown;
            changed = true;
        }
    }
    changed
}

/// Names the axes of a carried tensor that the body changes; whether there are
/// some without a name.
fn mint_extents(
    cx: &mut Cx,
    ty: &mut TensorType,
    next: &Item,
    result: usize,
    sizes: &mut Vec<MintedSize>,
) -> Result<bool, Fail> {
    let next = cx.ty(next.tensor()?);
    let mut changed = false;
    for axis in different_axes(ty, &next)? {
        if sizes.iter().any(|m| m.result == result && m.axis == axis) {
            continue;
        }
        let symbol = cx.b.graph.fresh_symbol("carried");
        cx.imp.carried.insert(symbol.clone());
        ty.shape[axis] = Dim::sym(symbol.clone());
        sizes.push(MintedSize {
            result,
            axis,
            symbol,
        });
        changed = true;
    }
    Ok(changed)
}

/// Checks what a step makes of a sequence or an optional; whether it must be
/// taken for one that grows.
fn settle_sequence(carry: &mut Carry, start: &Item, next: &Item) -> Result<bool, Fail> {
    match (&carry, start, next) {
        (Carry::Same, _, _) if start == next => Ok(false),
        (Carry::Same, Item::Sequence(_), Item::Sequence(_)) => {
            *carry = Carry::Grown;
            Ok(true)
        }
        (Carry::Grown, _, Item::Sequence(s)) => match s.parts[..] {
            [Part::Before(..), Part::One(_)] => Ok(false),
            _ => Err(unknown(
                "a loop of unknown length does something else to a carried sequence than to append one element a step",
            )),
        },
        _ => Err(unknown(format!(
            "a loop of unknown length carries {}, then {}",
            start.kind(),
            next.kind()
        ))),
    }
}

/// Loop keeps its meaning: a trip count (negative: none), a condition, carried
/// values and stacked ones.
pub(crate) fn repeat<'m>(cx: &mut Cx<'_, '_, 'm>) -> Items {
    let graph = cx.graph("body")?;
    let carried: Vec<Item> = (2..cx.items.len())
        .map(|i| cx.item(i))
        .collect::<Result<_, _>>()?;
    let tensors = carried.iter().all(|item| matches!(item, Item::Tensor(_)));
    if tensors && !looks_into_sequences(graph) {
        return kept(cx, graph, &carried);
    }
    let trip = match cx.opt(0) {
        None => None,
        Some(v) => match cx.known_ints(v).as_deref() {
            Some(&[n]) => Some(n),
            // Not to be unrolled.
            _ => return kept(cx, graph, &carried),
        },
    };
    // Where neither way does, what kept the steps from being unrolled is said.
    let mut made;
    if trip.is_some_and(|n| n <= SHORT) {
        made = attempt(cx, |cx| unrolled(cx, graph, trip, &carried));
        if made.is_err() {
            made = attempt(cx, |cx| kept(cx, graph, &carried)).or(made);
        }
    } else {
        made = attempt(cx, |cx| kept(cx, graph, &carried));
        if made.is_err() {
            made = attempt(cx, |cx| unrolled(cx, graph, trip, &carried));
        }
    }
    made.map_err(|refusal| {
        cx.imp.say_all(refusal.said);
        refusal.why
    })
}

/// Why an attempt did not do, and what it said.
struct Refusal {
    why: Fail,
    said: Vec<Diagnostic>,
}

/// Tries a conversion; where it fails, nothing is left of it.
fn attempt<'m>(
    cx: &mut Cx<'_, '_, 'm>,
    convert: impl FnOnce(&mut Cx<'_, '_, 'm>) -> Items,
) -> Result<Vec<Item>, Refusal> {
    let (guards, before) = (cx.b.graph.guards.len(), cx.imp.said());
    let nodes = cx.b.graph.region(cx.b.region()).nodes.len();
    let made = convert(cx);
    let said = cx.imp.unsay(before);
    let why = match made {
        Ok(items) if said.iter().all(|d| d.severity != Severity::Error) => {
            cx.imp.say_all(said);
            return Ok(items);
        }
        Ok(_) => Fail::reported(),
        Err(why) => why,
    };
    cx.b.graph.guards.truncate(guards);
    let left: BTreeSet<NodeId> = cx.b.graph.region(cx.b.region()).nodes[nodes..]
        .iter()
        .copied()
        .collect();
    cx.b.graph.remove_nodes(&left);
    Err(Refusal { why, said })
}

/// Operators that need the structure of a sequence.
const SEQUENCE_OPS: [&str; 6] = [
    "ConcatFromSequence",
    "SequenceAt",
    "SequenceErase",
    "SequenceInsert",
    "SequenceLength",
    "SequenceMap",
];

fn looks_into_sequences(graph: &GraphProto) -> bool {
    graph.node.iter().any(|node| {
        let inner = node
            .attribute
            .iter()
            .flat_map(|a| a.g.iter().chain(&a.graphs));
        SEQUENCE_OPS.contains(&&*node.op_type) || inner.into_iter().any(looks_into_sequences)
    })
}

/// The loop as one of the IR.
fn kept<'m>(cx: &mut Cx<'_, '_, 'm>, graph: &'m GraphProto, carried: &[Item]) -> Items {
    let trip = match cx.opt(0) {
        Some(v) => {
            let v = cx.b.cast(v, DType::I64)?;
            cx.b.reshape(v, &[])?
        }
        None => cx.constant_i64(-1)?,
    };
    let cond = match cx.opt(1) {
        Some(v) => cx.truth(v)?,
        None => cx.constant_true()?,
    };
    // The body's second input is the condition, true whenever it runs.
    let always = cx.constant_true()?;
    let inner = body(cx, graph, carried, 1, &|_, _, i, params| {
        let mut given = vec![Item::Tensor(i), Item::Tensor(always)];
        given.extend_from_slice(params);
        Ok(given)
    })?;
    let next = inner.results[0].tensor()?;
    let next = cx.b.in_region(inner.region, |b| {
        let v = b.cast(next, DType::Bool)?;
        b.reshape(v, &[])
    })?;
    // A body that passes its condition on goes on.
    let goes_on = next == always || cx.known_truth(next) == Some(true);
    let starts = cx.known_truth(cond) == Some(true);
    let counted = goes_on && starts && known_count(cx, trip);
    let (tensors, stacked) = yields(cx, &inner, 1, carried.len())?;
    let symbol = (!stacked.is_empty() && !counted).then(|| cx.b.graph.fresh_symbol("steps"));
    let args: Vec<Value> = [trip, cond].into_iter().chain(starts_of(carried)).collect();
    let op = Loop {
        carried: tensors.len(),
        symbol,
        sizes: inner.sizes,
    };
    let yielded = [vec![next], tensors, stacked].concat();
    cx.b.graph.region_mut(inner.region).results = yielded;
    let results = cx.b.push_with_regions(op, &args, vec![inner.region])?;
    Ok(after(cx, carried, &inner.carries, results))
}

fn starts_of(carried: &[Item]) -> impl Iterator<Item = Value> {
    carried.iter().filter_map(|item| match item {
        Item::Tensor(v) => Some(*v),
        _ => None,
    })
}

/// The body's carried tensors, and what is stacked: the model's scanned values,
/// then the new element of each sequence that grows.
fn yields(cx: &Cx, inner: &Body, first: usize, n: usize) -> Result<(Vec<Value>, Vec<Value>), Fail> {
    let (carried, scanned) = inner.results[first..].split_at(n);
    let mut tensors = vec![];
    let mut stacked: Vec<Value> = scanned.iter().map(Item::tensor).collect::<Result<_, _>>()?;
    for (item, carry) in carried.iter().zip(&inner.carries) {
        match (carry, item) {
            (Carry::Tensor(_), item) => tensors.push(item.tensor()?),
            (Carry::Grown, Item::Sequence(s)) => {
                for part in &s.parts {
                    if let Part::One(v) = *part {
                        one_shape(cx, inner, v)?;
                        stacked.push(v);
                    }
                }
            }
            _ => {}
        }
    }
    Ok((tensors, stacked))
}

/// Refuses an element whose shape a step decides.
fn one_shape(cx: &Cx, inner: &Body, v: Value) -> Result<(), Fail> {
    let mut own = BTreeSet::new();
    own.extend(inner.sizes.iter().map(|m| m.symbol.clone()));
    symbols_made(cx.b.graph, inner.region, &mut own);
    let mut used = BTreeSet::new();
    let shape = cx.b.graph.shape(v);
    shape.iter().for_each(|d| d.symbols(&mut used));
    if used.is_disjoint(&own) {
        return Ok(());
    }
    Err(unknown(
        "a loop of unknown length appends tensors whose shape differs from step to step",
    ))
}

/// Names of sizes that a region's nodes make.
fn symbols_made(graph: &Graph, region: RegionId, out: &mut BTreeSet<Arc<str>>) {
    for &n in &graph.region(region).nodes {
        let node = graph.node(n);
        match &node.op {
            Op::BindDim(b) => out.extend([b.symbol.clone()]),
            Op::NonZero(z) => out.extend([z.symbol.clone()]),
            Op::StringSplit(s) => out.extend([s.symbol.clone()]),
            Op::Loop(l) => {
                out.extend(l.symbol.clone());
                out.extend(l.sizes.iter().map(|m| m.symbol.clone()));
            }
            Op::If(i) => out.extend(i.sizes.iter().map(|m| m.symbol.clone())),
            _ => {}
        }
        node.regions
            .iter()
            .for_each(|&r| symbols_made(graph, r, out));
    }
}

/// What the model's loop gives, from the results of the IR's.
fn after(cx: &Cx, carried: &[Item], carries: &[Carry], results: Vec<Value>) -> Vec<Item> {
    let grown = carries.iter().filter(|c| matches!(c, Carry::Grown)).count();
    let split = results.len() - grown;
    let (mut tensors, mut grown) = (results[..split].iter(), results[split..].iter());
    let mut items: Vec<Item> = vec![];
    for (item, carry) in carried.iter().zip(carries) {
        items.push(match (carry, item) {
            (Carry::Tensor(_), Item::Tensor(start)) => {
                Item::Tensor(*tensors.next().unwrap_or(start))
            }
            (Carry::Grown, Item::Sequence(s)) => {
                let mut s = s.clone();
                let made = grown.next().map(|&v| Part::Stack(v));
                let some = |part: &Part| part.count(cx.b.graph) != Ok(Dim::ZERO);
                s.parts.extend(made.filter(some));
                Item::Sequence(s)
            }
            _ => item.clone(),
        });
    }
    items.extend(tensors.map(|&v| Item::Tensor(v)));
    items
}

/// Whether the trip count is a size.
fn known_count(cx: &Cx, trip: Value) -> bool {
    let known = cx.b.graph.known(trip);
    known
        .and_then(|k| k.dims.first())
        .is_some_and(Dim::is_nonneg)
}

/// The loop as its steps, one after the other.
fn unrolled<'m>(
    cx: &mut Cx<'_, '_, 'm>,
    graph: &'m GraphProto,
    trip: Option<i64>,
    carried: &[Item],
) -> Items {
    let unsure = || unknown("whether a loop over sequences goes on depends on data");
    let mut on = match cx.opt(1) {
        Some(v) => cx.known_truth(v).ok_or_else(unsure)?,
        None => true,
    };
    let always = cx.constant_true()?;
    let mut carried = carried.to_vec();
    let count = graph.output.len().saturating_sub(1 + carried.len());
    let mut scanned: Vec<Vec<Value>> = vec![vec![]; count];
    let mut step = 0;
    while on && trip.is_none_or(|n| step < n) {
        if step == MAX_UNROLLED {
            return Err(unknown(format!(
                "a loop over sequences takes more than {MAX_UNROLLED} steps"
            )));
        }
        let i = cx.constant_i64(step)?;
        let mut given = vec![Item::Tensor(i), Item::Tensor(always)];
        given.append(&mut carried);
        let results = cx.imp.subgraph(cx.b, cx.scope, graph, &given, cx.env)?;
        if results.len() < 1 + given.len() - 2 {
            return Err(Fail::invalid(
                "the body yields fewer values than are carried",
            ));
        }
        let next = results[0].tensor()?;
        on = next == always || cx.known_truth(next).ok_or_else(unsure)?;
        carried = results[1..given.len() - 1].to_vec();
        for (all, one) in scanned.iter_mut().zip(&results[given.len() - 1..]) {
            all.push(one.tensor()?);
        }
        step += 1;
    }
    for all in scanned {
        if all.is_empty() {
            return Err(unknown(
                "a loop over sequences takes no step, and what it would stack has no shape",
            ));
        }
        let mut rows = vec![];
        for v in all {
            let mut shape = cx.shape(v);
            shape.insert(0, Dim::ONE);
            rows.push(cx.b.reshape(v, &shape)?);
        }
        carried.push(Item::Tensor(cx.b.concat(&rows, 0)?));
    }
    Ok(carried)
}

/// SequenceMap over sequences whose number of elements is not known: a loop over
/// stacks.
pub(super) fn map_stacks<'m>(cx: &mut Cx<'_, '_, 'm>, graph: &'m GraphProto) -> Items {
    let items: Vec<Item> = (0..cx.items.len())
        .map(|i| cx.item(i))
        .collect::<Result<_, _>>()?;
    let mut steps = None;
    for item in &items {
        let Item::Sequence(s) = item else { continue };
        let [Part::Stack(v)] = s.parts[..] else {
            return Err(unknown(
                "a sequence of an unknown number of elements is joined from several",
            ));
        };
        let n = cx.extent(v, 0)?;
        let all = steps.get_or_insert(n.clone()).clone();
        cx.assume_le(n.clone(), all.clone(), "mapped sequences are equally long");
        cx.assume_le(all, n, "mapped sequences are equally long");
    }
    let steps = steps.ok_or_else(|| Fail::invalid("no argument is a sequence"))?;
    let inner = body(cx, graph, &[], 0, &|cx, region, i, _| {
        let mut given = vec![];
        for item in &items {
            given.push(match item {
                Item::Sequence(s) => {
                    let stack = item.values()[0];
                    debug_assert_eq!(s.parts.len(), 1);
                    let one = cx.b.in_region(region, |b| b.gather(stack, i, 0))?;
                    Item::Tensor(one)
                }
                other => other.clone(),
            });
        }
        Ok(given)
    })?;
    let always = cx.b.in_region(inner.region, |b| {
        b.constant(Tensor::scalar_i64(DType::Bool, 1))
    })?;
    let mut yielded = vec![always];
    for item in &inner.results {
        one_shape(cx, &inner, item.tensor()?)?;
        yielded.push(item.tensor()?);
    }
    cx.b.graph.region_mut(inner.region).results = yielded;
    let (trip, go) = (cx.scalar_dim(steps)?, cx.constant_true()?);
    let op = Loop {
        carried: 0,
        symbol: None,
        sizes: vec![],
    };
    let results =
        cx.b.push_with_regions(op, &[trip, go], vec![inner.region])?;
    let sequence = |v: Value| {
        Item::Sequence(Sequence {
            dtype: cx.dtype(v),
            parts: vec![Part::Stack(v)],
        })
    };
    Ok(results.into_iter().map(sequence).collect())
}
