//! Edits of graphs that passes share: one sweep with replacements, copying, and
//! moving nodes into a `fused` region and out of it.

use crate::builder::Builder;
use crate::graph::{Def, Graph, NodeId, Origins, PortKind, RegionId, Value};
use crate::module::Globals;
use crate::op::{Op, TypeError, type_err};
use crate::ops::control::Fused;
use crate::{Dim, ShardSpec, TensorType};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// What a sweep does with a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rewrite {
    /// Nothing.
    Keep,
    /// Its results become these, and it goes.
    With(Vec<Value>),
}

/// What `sweep` calls: a builder just before the node, and the node, whose
/// arguments are already rewritten.
pub type Rule<'a> = dyn FnMut(&mut Builder, NodeId) -> Result<Rewrite, TypeError> + 'a;

/// Walks all nodes once, those of a node's regions before it, and replaces as the
/// rule says: linear in the size of the graph. Answers whether anything changed.
/// After an error the graph is whole, with what was replaced until then.
pub fn sweep(graph: &mut Graph, globals: &Globals, rule: &mut Rule) -> Result<bool, TypeError> {
    let (mut to, mut dead) = (BTreeMap::new(), BTreeSet::new());
    let done = sweep_region(graph, globals, Graph::BODY, rule, &mut to, &mut dead);
    // Chains end here, and so do uses in what an error left unvisited.
    graph.replace_all(&to);
    graph.remove_nodes(&dead);
    done.map(|()| !dead.is_empty())
}

fn sweep_region(
    graph: &mut Graph,
    globals: &Globals,
    region: RegionId,
    rule: &mut Rule,
    to: &mut BTreeMap<Value, Value>,
    dead: &mut BTreeSet<NodeId>,
) -> Result<(), TypeError> {
    let old = std::mem::take(&mut graph.region_mut(region).nodes);
    let mut done = Ok(());
    for n in old {
        if done.is_ok() {
            done = sweep_node(graph, globals, n, rule, to, dead);
        }
        if !dead.contains(&n) {
            graph.region_mut(region).nodes.push(n);
        }
    }
    let resolved = |v: &mut Value| *v = resolve(to, *v);
    graph
        .region_mut(region)
        .results
        .iter_mut()
        .for_each(resolved);
    done
}

fn sweep_node(
    graph: &mut Graph,
    globals: &Globals,
    n: NodeId,
    rule: &mut Rule,
    to: &mut BTreeMap<Value, Value>,
    dead: &mut BTreeSet<NodeId>,
) -> Result<(), TypeError> {
    let node = graph.node_mut(n);
    node.args.iter_mut().for_each(|v| *v = resolve(to, *v));
    for r in node.regions.clone() {
        sweep_region(graph, globals, r, rule, to, dead)?;
    }
    let (region, origins) = (graph.node(n).parent, graph.node(n).origins.clone());
    let mut b = Builder::at_end(graph, globals, region);
    b.origins = origins;
    let Rewrite::With(values) = rule(&mut b, n)? else {
        return Ok(());
    };
    let results = graph.node(n).results.clone();
    if values.len() != results.len() {
        let (have, want) = (values.len(), results.len());
        return type_err(format!("{have} values replace {want} results"));
    }
    for (old, new) in results.into_iter().zip(values) {
        let new = resolve(to, new);
        if new != old {
            to.insert(old, new);
        }
    }
    dead.insert(n);
    Ok(())
}

fn resolve(to: &BTreeMap<Value, Value>, mut v: Value) -> Value {
    while let Some(&next) = to.get(&v) {
        v = next;
    }
    v
}

/// Nodes taken out of a graph as a value, to be built again elsewhere.
#[derive(Clone, Debug)]
pub struct Snippet(Vec<Piece>);

#[derive(Clone, Debug)]
struct Piece {
    op: Op,
    args: Vec<Value>,
    results: Vec<(Value, Option<Arc<str>>, Option<ShardSpec>)>,
    regions: Vec<PieceRegion>,
    origins: Origins,
}

#[derive(Clone, Debug)]
struct PieceRegion {
    params: Vec<(Value, TensorType)>,
    nodes: Snippet,
    results: Vec<Value>,
}

impl Snippet {
    /// These nodes, with the regions they own.
    pub fn of(graph: &Graph, nodes: &[NodeId]) -> Snippet {
        let piece = |&n: &NodeId| {
            let node = graph.node(n);
            let result = |&v: &Value| {
                let data = graph.value(v);
                (v, data.name.clone(), data.shard.clone())
            };
            Piece {
                op: node.op.clone(),
                args: node.args.clone(),
                results: node.results.iter().map(result).collect(),
                regions: node
                    .regions
                    .iter()
                    .map(|&r| PieceRegion::of(graph, r))
                    .collect(),
                origins: node.origins.clone(),
            }
        };
        Snippet(nodes.iter().map(piece).collect())
    }

    /// Builds the nodes anew. Arguments in the map are replaced by what they map
    /// to, others stay; the results are added to the map. Types follow from the
    /// arguments there, so a copy may have other extents.
    pub fn paste(
        &self,
        b: &mut Builder,
        map: &mut BTreeMap<Value, Value>,
    ) -> Result<(), TypeError> {
        let mapped = |map: &BTreeMap<Value, Value>, vs: &[Value]| -> Vec<Value> {
            vs.iter().map(|v| *map.get(v).unwrap_or(v)).collect()
        };
        for piece in &self.0 {
            let mut regions = vec![];
            for r in &piece.regions {
                let region = b.graph.add_region();
                for (old, ty) in &r.params {
                    map.insert(*old, b.graph.add_region_param(region, ty.clone()));
                }
                b.in_region(region, |b| r.nodes.paste(b, map))?;
                b.graph.region_mut(region).results = mapped(map, &r.results);
                regions.push(region);
            }
            let origins = b.origins.clone();
            b.origins.extend(piece.origins.iter().cloned());
            let pushed = b.push_with_regions(piece.op.clone(), &mapped(map, &piece.args), regions);
            b.origins = origins;
            for ((old, name, shard), new) in piece.results.iter().zip(pushed?) {
                let data = b.graph.value_mut(new);
                data.name.clone_from(name);
                data.shard.clone_from(shard);
                map.insert(*old, new);
            }
        }
        Ok(())
    }
}

impl PieceRegion {
    fn of(graph: &Graph, r: RegionId) -> PieceRegion {
        let region = graph.region(r);
        let param = |&v: &Value| (v, graph.ty(v).clone());
        PieceRegion {
            params: region.params.iter().map(param).collect(),
            nodes: Snippet::of(graph, &region.nodes),
            results: region.results.clone(),
        }
    }
}

/// Moves nodes of one region, given in program order, into a new `fused` node at
/// the place of the last. Fails, and changes nothing, where a node between them
/// needs one of their results.
pub fn outline(
    graph: &mut Graph,
    globals: &Globals,
    nodes: &[NodeId],
) -> Result<NodeId, TypeError> {
    let (Some(&last), group) = (nodes.last(), nodes.iter().copied().collect::<BTreeSet<_>>())
    else {
        return type_err("a group needs nodes");
    };
    let (inputs, outputs) = boundary(graph, &group);
    between(graph, &group, last)?;
    if outputs.is_empty() {
        return type_err("nothing needs the group");
    }
    let snippet = Snippet::of(graph, nodes);
    let origins: Origins = nodes
        .iter()
        .flat_map(|&n| graph.node(n).origins.iter().cloned())
        .collect();
    let region = graph.add_region();
    let mut map = BTreeMap::new();
    for &v in &inputs {
        let ty = graph.ty(v).clone();
        map.insert(v, graph.add_region_param(region, ty));
    }
    let mut b = Builder::before(graph, globals, last);
    b.origins = Origins::new();
    b.in_region(region, |b| snippet.paste(b, &mut map))?;
    b.graph.region_mut(region).results = outputs.iter().map(|v| map[v]).collect();
    b.origins = origins;
    let results = b.push_with_regions(Fused, &inputs, vec![region])?;
    let fused = graph.producer(results[0]).map(|(n, _)| n);
    let to: BTreeMap<Value, Value> = outputs.into_iter().zip(results).collect();
    for (&old, &new) in &to {
        let (name, shard) = (
            graph.value(old).name.clone(),
            graph.value(old).shard.clone(),
        );
        let data = graph.value_mut(new);
        (data.name, data.shard) = (name, shard);
    }
    graph.replace_all(&to);
    graph.remove_nodes(&group);
    fused.ok_or_else(|| TypeError("a group yields something".into()))
}

/// What a group takes from outside and what others need of it.
fn boundary(graph: &Graph, group: &BTreeSet<NodeId>) -> (Vec<Value>, Vec<Value>) {
    let (mut inputs, mut outputs) = (vec![], BTreeSet::new());
    let inside = |mut at: RegionId| loop {
        match graph.region(at).owner {
            Some(owner) if group.contains(&owner) => return true,
            Some(owner) => at = graph.node(owner).parent,
            None => return false,
        }
    };
    let of_group = |v: Value| match graph.value(v).def {
        Def::Node(n, _) => group.contains(&n) || inside(graph.node(n).parent),
        Def::Param(r, _) => inside(r),
    };
    let mut used = |v: Value, by_group: bool| match (by_group, of_group(v)) {
        (true, false) if !inputs.contains(&v) => inputs.push(v),
        (false, true) => drop(outputs.insert(v)),
        _ => {}
    };
    for n in graph.nodes_in_order() {
        let node = graph.node(n);
        let member = group.contains(&n) || inside(node.parent);
        node.args.iter().for_each(|&v| used(v, member));
        for &r in &node.regions {
            let results = graph.region(r).results.iter();
            results.for_each(|&v| used(v, member));
        }
    }
    graph.body().results.iter().for_each(|&v| used(v, false));
    (inputs, outputs.into_iter().collect())
}

/// No other node before the group's last may need the group.
fn between(graph: &Graph, group: &BTreeSet<NodeId>, last: NodeId) -> Result<(), TypeError> {
    let region = graph.node(last).parent;
    if group.iter().any(|&n| graph.node(n).parent != region) {
        return type_err("a group's nodes stand in one region");
    }
    let flow = crate::flow::Flow::of(graph, region);
    let mut late = BTreeSet::new();
    for &n in &graph.region(region).nodes {
        use petgraph::visit::IntoNeighborsDirected;
        let mut before = flow.neighbors_directed(n, petgraph::Direction::Incoming);
        if before.any(|p| group.contains(&p) || late.contains(&p)) && !group.contains(&n) {
            late.insert(n);
        }
        if n == last {
            break;
        }
    }
    match late.first() {
        None => Ok(()),
        Some(n) => type_err(format!(
            "{n} stands between the group's nodes and needs their results"
        )),
    }
}

/// Puts the nodes of a `fused` node's region in its place.
pub fn inline(graph: &mut Graph, globals: &Globals, fused: NodeId) -> Result<(), TypeError> {
    let node = graph.node(fused).clone();
    let (Op::Fused(_), [region]) = (&node.op, &node.regions[..]) else {
        return type_err(format!("{fused} is no group"));
    };
    let region = graph.region(*region).clone();
    let snippet = Snippet::of(graph, &region.nodes);
    let mut map: BTreeMap<Value, Value> = region
        .params
        .iter()
        .copied()
        .zip(node.args.iter().copied())
        .collect();
    let mut b = Builder::before(graph, globals, fused);
    b.origins = Origins::new();
    snippet.paste(&mut b, &mut map)?;
    let inner = region.results.iter().map(|v| *map.get(v).unwrap_or(v));
    let to: BTreeMap<Value, Value> = node.results.iter().copied().zip(inner).collect();
    graph.replace_all(&to);
    graph.remove_nodes(&BTreeSet::from([fused]));
    Ok(())
}

/// Puts other sizes in the place of named ones, in every type, attribute and guard.
/// False where an op cannot have them: the graph is then to be thrown away.
pub fn substitute_sizes(g: &mut Graph, with: &dyn Fn(&str) -> Option<Dim>) -> bool {
    let all: Vec<Value> = (0..g.value_count() as u32).map(Value).collect();
    for v in all {
        let data = g.value_mut(v);
        for d in &mut data.ty.shape {
            *d = d.substitute(with);
        }
        if let Some(known) = &mut data.known {
            let mut new = (**known).clone();
            new.dims.iter_mut().for_each(|d| *d = d.substitute(with));
            *known = new.into();
        }
    }
    for n in g.nodes_in_order() {
        let op = &g.node(n).op;
        let mut attrs = op.def().attrs();
        attrs.substitute(with);
        match Op::parse(op.def().mnemonic(), &attrs) {
            Ok(op) => g.node_mut(n).op = op,
            Err(_) => return false,
        }
    }
    for guard in &mut g.guards {
        guard.left = guard.left.substitute(with);
        guard.right = guard.right.substitute(with);
    }
    g.guards.retain(|g| g.left != g.right);
    true
}

/// Puts a function's body in the place of a call of it. False, and nothing changed,
/// where that is not said by copying: a callee with state, or one that mints sizes.
pub fn inline_call(
    graph: &mut Graph,
    globals: &Globals,
    call: NodeId,
    callee: &Graph,
) -> Result<bool, TypeError> {
    let (args, old) = (
        graph.node(call).args.clone(),
        graph.node(call).results.clone(),
    );
    let mut ports = callee.params.iter().chain(&callee.results);
    let mints = |n: &NodeId| crate::shrink::names_a_size(&callee.node(*n).op);
    if ports.any(|p| p.kind != PortKind::Caller) || callee.nodes_in_order().iter().any(mints) {
        return Ok(false);
    }
    let mut body = callee.clone();
    let mut sizes: BTreeMap<Arc<str>, Dim> = BTreeMap::new();
    for (&param, &arg) in body.body().params.iter().zip(&args) {
        for (d, given) in body.shape(param).iter().zip(graph.shape(arg)) {
            if let Some(symbol) = d.as_sym() {
                sizes.entry(symbol.clone()).or_insert_with(|| given.clone());
            }
        }
    }
    if !substitute_sizes(&mut body, &|s| sizes.get(s).cloned()) {
        return type_err(format!(
            "@{} does not type with the call's sizes",
            callee.name
        ));
    }
    body.guards.iter().for_each(|g| graph.add_guard(g.clone()));
    let snippet = Snippet::of(&body, &body.body().nodes);
    let params = body.body().params.iter().copied();
    let mut map: BTreeMap<Value, Value> = params.zip(args).collect();
    let mut b = Builder::before(graph, globals, call);
    snippet.paste(&mut b, &mut map)?;
    let new = body.body().results.iter().map(|v| map[v]);
    let to: BTreeMap<Value, Value> = old.into_iter().zip(new).collect();
    graph.replace_all(&to);
    graph.remove_nodes(&BTreeSet::from([call]));
    Ok(true)
}
