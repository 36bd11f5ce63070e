//! Groups nodes into kernels: `fused` nodes whose regions hold what one kernel
//! computes.
//!
//! A group grows from a root toward its producers. A producer joins when every
//! use of it is in the group, so a group has one result and nothing is computed
//! twice; views (transposes, broadcasts, slices) and literals are copied into
//! every group that reads them. What a group may hold:
//!
//! - *maps*: elementwise ops and moves that an index expression can say;
//! - reductions over one set of axes of one domain, with the maps before, between
//!   and after them (softmax, norms, losses);
//! - one contraction or attention, with the elementwise ops after it.
//!
//! ```text
//! %1 = packed_matmul %x, %w        %3 = fused %x, %w, %b (…) {
//! %2 = add %1, %b             →        packed_matmul, add, erf …
//! %3 = … gelu of %2 …             }
//! ```

use crate::{Changed, PassCx, PassError};
use kiln_ir::ops::control::Fused;
use kiln_ir::{Builder, Dim, Graph, NodeId, Op, Origins, Tri, Value};
use std::collections::{BTreeMap, BTreeSet};

/// How a node takes part in groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    /// Elementwise: the result's element depends on the arguments' at one place.
    Map,
    /// Moves elements: an index expression.
    Move,
    /// A move that costs nothing wherever it stands: copied into its users' groups.
    View,
    /// A reduction.
    Reduce,
    /// A contraction or attention: at most one a group.
    Anchor,
    /// A kernel of its own.
    Alone,
    /// No kernel: literals, globals, reshapes, control flow.
    None,
}

fn role(op: &Op) -> Role {
    match op {
        Op::Unary(_) | Op::Binary(_) | Op::Compare(_) | Op::Select(_) | Op::Cast(_) => Role::Map,
        Op::Gather(_) | Op::GatherElements(_) | Op::GatherNd(_) | Op::Pad(_) | Op::Concat(_) => {
            Role::Move
        }
        Op::Transpose(_) | Op::Broadcast(_) | Op::Slice(_) | Op::Iota(_) => Role::View,
        Op::Reduce(_) => Role::Reduce,
        Op::MatMul(_) | Op::PackedMatMul(_) | Op::Attention(_) => Role::Anchor,
        Op::ArgReduce(_)
        | Op::Cumulate(_)
        | Op::ScatterElements(_)
        | Op::ScatterNd(_)
        | Op::DynamicSlice(_)
        | Op::DynamicUpdateSlice(_)
        | Op::Philox(_)
        | Op::TopK(_) => Role::Alone,
        Op::Constant(_)
        | Op::Global(_)
        | Op::Dims(_)
        | Op::Reshape(_)
        | Op::NonZero(_)
        | Op::BindDim(_)
        | Op::Pack(_)
        | Op::Decode(_)
        | Op::If(_)
        | Op::Loop(_)
        | Op::Call(_)
        | Op::Fused(_) => Role::None,
        // Composites are expanded before groups are formed.
        Op::Softmax(_)
        | Op::Gelu(_)
        | Op::Silu(_)
        | Op::LayerNorm(_)
        | Op::RmsNorm(_)
        | Op::Rope(_)
        | Op::KvCacheAppend(_)
        | Op::CrossEntropy(_)
        | Op::Embedding(_)
        | Op::AdamW(_)
        | Op::Dequantize(_)
        | Op::Quantize(_) => Role::None,
    }
}

/// A group while it grows.
struct Group {
    /// The whole index space: the root's shape, or a reduction's argument's.
    domain: Vec<Dim>,
    /// The axes reduced.
    reduced: Option<Vec<usize>>,
    anchor: Option<NodeId>,
    members: BTreeSet<NodeId>,
    /// Nothing joins.
    closed: bool,
}

/// Elementwise work beyond this many nodes makes a kernel too large to help.
const MAX_MEMBERS: usize = 200;

/// Forms the groups of a function.
pub fn fuse(cx: &mut PassCx, graph: &mut Graph) -> Result<Changed, PassError> {
    let order = graph.nodes_in_order();
    let users = graph.users();
    let results: BTreeSet<Value> = (0..graph.region_count())
        .flat_map(|r| graph.region(kiln_ir::RegionId(r as u32)).results.clone())
        .collect();
    let mut groups: Vec<Group> = vec![];
    let mut home: BTreeMap<NodeId, usize> = BTreeMap::new();
    let inside_fused = |n: NodeId| {
        let owner = graph.region(graph.node(n).parent).owner;
        owner.is_some_and(|o| matches!(graph.node(o).op, Op::Fused(_)))
    };
    for &n in order.iter().rev() {
        let node = graph.node(n);
        let role = role(&node.op);
        if role == Role::None || inside_fused(n) {
            continue;
        }
        if role == Role::View && views_are_absorbed(graph, n, &users, &results, &home, &groups) {
            continue;
        }
        let target = only_group(graph, n, &users, &results, &home);
        match target.filter(|&g| joins(graph, n, role, &groups[g])) {
            Some(g) => {
                let group = &mut groups[g];
                group.members.insert(n);
                home.insert(n, g);
                match (&node.op, role) {
                    (Op::Reduce(r), _) => {
                        group.domain = graph.shape(node.args[0]).to_vec();
                        group.reduced = Some(r.axes.clone());
                    }
                    (_, Role::Anchor) => {
                        group.anchor = Some(n);
                        group.closed = true;
                    }
                    _ => {}
                }
            }
            None => {
                let (domain, reduced) = match &node.op {
                    Op::Reduce(r) => (graph.shape(node.args[0]).to_vec(), Some(r.axes.clone())),
                    _ => (
                        node.results
                            .first()
                            .map(|&v| graph.shape(v).to_vec())
                            .unwrap_or_default(),
                        None,
                    ),
                };
                let anchor = (role == Role::Anchor).then_some(n);
                let closed = matches!(role, Role::Anchor | Role::Alone);
                home.insert(n, groups.len());
                groups.push(Group {
                    domain,
                    reduced,
                    anchor,
                    members: [n].into(),
                    closed,
                });
            }
        }
    }
    for group in &groups {
        outline(cx, graph, group, &home)?;
    }
    crate::eliminate_dead::eliminate_dead(cx, graph)?;
    Ok((!groups.is_empty()).into())
}

/// The group that holds every use of a node, if there is one.
fn only_group(
    graph: &Graph,
    n: NodeId,
    users: &[Vec<NodeId>],
    results: &BTreeSet<Value>,
    home: &BTreeMap<NodeId, usize>,
) -> Option<usize> {
    let node = graph.node(n);
    let [v] = node.results[..] else { return None };
    if results.contains(&v) {
        return None;
    }
    let mut found = None;
    for &u in &users[v.index()] {
        // A view that was absorbed stands in for its own users.
        let groups = match home.get(&u) {
            Some(&g) if graph.node(u).parent == node.parent => vec![g],
            Some(_) => return None,
            None if role(&graph.node(u).op) == Role::View
                && graph.node(u).parent == node.parent =>
            {
                vec![only_group(graph, u, users, results, home)?]
            }
            None => return None,
        };
        for g in groups {
            if found.is_some_and(|f| f != g) {
                return None;
            }
            found = Some(g);
        }
    }
    found
}

/// Whether every user of a view reads it through its own index expressions.
fn views_are_absorbed(
    graph: &Graph,
    n: NodeId,
    users: &[Vec<NodeId>],
    results: &BTreeSet<Value>,
    home: &BTreeMap<NodeId, usize>,
    groups: &[Group],
) -> bool {
    let node = graph.node(n);
    let v = node.results[0];
    !results.contains(&v)
        && !users[v.index()].is_empty()
        && users[v.index()].iter().all(|&u| {
            let user = graph.node(u);
            if user.parent != node.parent {
                return false;
            }
            match home.get(&u) {
                Some(&g) => match (role(&user.op), groups[g].anchor) {
                    (Role::Map | Role::Move | Role::Reduce | Role::View, None) => true,
                    // The epilogue reads its own arguments by index too.
                    (Role::Map, Some(_)) => true,
                    (Role::Anchor, _) => anchor_reads(graph, u, n, v),
                    _ => false,
                },
                None => {
                    role(&user.op) == Role::View
                        && views_are_absorbed(graph, u, users, results, home, groups)
                }
            }
        })
}

/// Whether an anchor's operand can be this view: strides say it all.
fn anchor_reads(graph: &Graph, anchor: NodeId, view: NodeId, v: Value) -> bool {
    let strided = matches!(
        graph.node(view).op,
        Op::Transpose(_) | Op::Slice(_) | Op::Broadcast(_)
    );
    match &graph.node(anchor).op {
        Op::MatMul(_) => strided,
        Op::PackedMatMul(_) => strided && graph.node(anchor).args[0] == v,
        // V is read in runs of features.
        Op::Attention(_) => {
            let args = &graph.node(anchor).args;
            let keeps_last = match &graph.node(view).op {
                Op::Transpose(t) => t.perm.axes().last() == Some(&(t.perm.axes().len() - 1)),
                _ => true,
            };
            strided && (args[2] != v || keeps_last)
        }
        _ => false,
    }
}

/// Whether a producer all of whose uses are in a group may join it.
fn joins(graph: &Graph, n: NodeId, role: Role, group: &Group) -> bool {
    let node = graph.node(n);
    let v = node.results[0];
    let shape = graph.shape(v);
    if group.members.len() >= MAX_MEMBERS {
        return false;
    }
    if let Some(anchor) = group.anchor {
        // Behind an anchor only what does not feed it could join; feeding the
        // epilogue it would be computed once an element of the domain.
        let feeds_anchor = feeds(graph, n, anchor, group);
        return !feeds_anchor && role == Role::Map && elements(shape) == elements(&group.domain);
    }
    if group.closed {
        return false;
    }
    match role {
        Role::Map | Role::Move | Role::View => fits(shape, group),
        Role::Reduce => {
            let Op::Reduce(r) = &node.op else {
                return false;
            };
            let argument = graph.shape(node.args[0]);
            let aligned = only_elementwise_uses(graph, n, group);
            match &group.reduced {
                Some(axes) => *axes == r.axes && group.domain == argument && aligned,
                // The group works on whole rows, or on what is left of them.
                None => {
                    aligned && (group.domain == argument || rows(argument, &r.axes, &group.domain))
                }
            }
        }
        Role::Anchor => {
            let plain = group.reduced.is_none()
                && group.domain == shape
                && only_elementwise_uses(graph, n, group);
            match &node.op {
                Op::Attention(_) => {
                    group.members.len() == 1
                        && group
                            .members
                            .iter()
                            .all(|&m| matches!(graph.node(m).op, Op::Transpose(_)))
                }
                _ => {
                    plain
                        && group
                            .members
                            .iter()
                            .all(|&m| self::role(&graph.node(m).op) == Role::Map)
                }
            }
        }
        Role::Alone | Role::None => false,
    }
}

/// Whether the shape is the group's domain, or one value for each of its rows.
fn fits(shape: &[Dim], group: &Group) -> bool {
    if elements(shape) == elements(&group.domain) {
        return true;
    }
    match &group.reduced {
        Some(axes) => rows(&group.domain, axes, shape),
        None => false,
    }
}

/// Whether `shape` is `domain` without (or with extents of 1 at) the axes.
fn rows(domain: &[Dim], axes: &[usize], shape: &[Dim]) -> bool {
    let kept: Vec<Dim> = domain
        .iter()
        .enumerate()
        .map(|(i, d)| {
            if axes.contains(&i) {
                Dim::ONE
            } else {
                d.clone()
            }
        })
        .collect();
    let dropped: Vec<Dim> = (0..domain.len())
        .filter(|i| !axes.contains(i))
        .map(|i| domain[i].clone())
        .collect();
    shape == kept || shape == dropped
}

fn elements(shape: &[Dim]) -> Dim {
    Dim::product(shape)
}

/// Whether all users of a node are maps or reductions whose index is the node's
/// own (no move between): so an accumulator can stand for it.
fn only_elementwise_uses(graph: &Graph, n: NodeId, group: &Group) -> bool {
    let v = graph.node(n).results[0];
    group.members.iter().all(|&m| {
        let node = graph.node(m);
        if !node.args.contains(&v) {
            return true;
        }
        match role(&node.op) {
            Role::Map => same_axes(graph.shape(v), graph.shape(node.results[0])),
            Role::Reduce => true,
            _ => false,
        }
    }) && !through_views(graph, v, group)
}

/// Whether elementwise broadcasting lines the axes up: equal ranks.
fn same_axes(a: &[Dim], b: &[Dim]) -> bool {
    a.len() == b.len()
        && a.iter()
            .zip(b)
            .all(|(x, y)| *x == Dim::ONE || x.same(y) == Tri::Yes)
}

/// Whether some member reads the value through an absorbed view.
fn through_views(graph: &Graph, v: Value, group: &Group) -> bool {
    group.members.iter().any(|&m| {
        graph.node(m).args.iter().any(|&a| {
            let mut at = a;
            while let Some((p, _)) = graph.producer(at) {
                let node = graph.node(p);
                if role(&node.op) != Role::View
                    || group.members.contains(&p)
                    || node.args.is_empty()
                {
                    return false;
                }
                at = node.args[0];
                if at == v {
                    return true;
                }
            }
            false
        })
    })
}

/// Whether a node's result reaches the anchor inside the group.
fn feeds(graph: &Graph, n: NodeId, anchor: NodeId, group: &Group) -> bool {
    let v = graph.node(n).results[0];
    let mut stack: Vec<Value> = graph.node(anchor).args.clone();
    while let Some(a) = stack.pop() {
        if a == v {
            return true;
        }
        if let Some((p, _)) = graph.producer(a)
            && (group.members.contains(&p) || role(&graph.node(p).op) == Role::View)
        {
            stack.extend(graph.node(p).args.iter().copied());
        }
    }
    false
}

/// Moves a group's nodes into the region of a `fused` node at its root.
fn outline(
    cx: &mut PassCx,
    graph: &mut Graph,
    group: &Group,
    home: &BTreeMap<NodeId, usize>,
) -> Result<(), PassError> {
    let Some(&root) = group.members.iter().max_by_key(|&&n| position(graph, n)) else {
        return Ok(());
    };
    // Members, and copies of the views and literals they read.
    let mut inside: BTreeSet<NodeId> = group.members.clone();
    let mut stack: Vec<NodeId> = inside.iter().copied().collect();
    while let Some(n) = stack.pop() {
        for &a in &graph.node(n).args.clone() {
            let Some((p, _)) = graph.producer(a) else {
                continue;
            };
            if inside.contains(&p) || home.contains_key(&p) {
                continue;
            }
            let node = graph.node(p);
            let copied = match &node.op {
                Op::Constant(c) => c.value.len() == 1,
                Op::Dims(d) => d.value.dims.len() == 1,
                op => role(op) == Role::View && node.parent == graph.node(root).parent,
            };
            if copied {
                inside.insert(p);
                stack.push(p);
            }
        }
    }
    let mut ordered: Vec<NodeId> = inside.iter().copied().collect();
    ordered.sort_by_key(|&n| position(graph, n));
    let defined: BTreeSet<Value> = ordered
        .iter()
        .flat_map(|&n| graph.node(n).results.clone())
        .collect();
    let mut args: Vec<Value> = vec![];
    for &n in &ordered {
        for &a in &graph.node(n).args {
            if !defined.contains(&a) && !args.contains(&a) {
                args.push(a);
            }
        }
    }
    let region = graph.add_region();
    let mut map: BTreeMap<Value, Value> = BTreeMap::new();
    for &a in &args {
        let ty = graph.ty(a).clone();
        map.insert(a, graph.add_region_param(region, ty));
    }
    let mut origins = Origins::new();
    for &n in &ordered {
        if group.members.contains(&n) {
            origins.extend(graph.node(n).origins.iter().cloned());
        }
        let node = graph.node(n).clone();
        let new_args: Vec<Value> = node.args.iter().map(|a| map[a]).collect();
        let mut b = Builder::at_end(graph, cx.globals, region);
        b.origins = node.origins.clone();
        let new = b.push(node.op.clone(), &new_args)?;
        for (&old, &v) in node.results.iter().zip(&new) {
            // The type as written: inference may name an equal size otherwise.
            let data = graph.value(old).clone();
            graph.value_mut(v).ty = data.ty;
            graph.value_mut(v).known = data.known;
            map.insert(old, v);
        }
    }
    let old = graph.node(root).results.clone();
    graph.region_mut(region).results = old.iter().map(|v| map[v]).collect();
    let mut b = Builder::before(graph, cx.globals, root);
    b.origins = origins;
    let new = b.push_with_regions(Fused, &args, vec![region])?;
    let swap: BTreeMap<Value, Value> = old.iter().copied().zip(new).collect();
    graph.replace_all(&swap);
    graph.remove_nodes(&[root].into());
    Ok(())
}

/// A node's place in its region.
fn position(graph: &Graph, n: NodeId) -> usize {
    let order = &graph.region(graph.node(n).parent).nodes;
    order.iter().position(|&m| m == n).unwrap_or(usize::MAX)
}
