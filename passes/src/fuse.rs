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
use kiln_ir::ops::layout::PadMode;
use kiln_ir::{Builder, Class, DType, Dim, Graph, NodeId, Op, Origins, RegionId, Tri, Value};
use std::collections::{BTreeMap, BTreeSet};

/// A group while it grows.
struct Group {
    /// The whole index space: the root's shape, or a reduction's argument's.
    domain: Vec<Dim>,
    /// The axes reduced.
    reduced: Option<Vec<usize>>,
    anchor: Option<NodeId>,
    /// The anchor whose bytes the group takes in ([`narrowed`]).
    promised: Option<NodeId>,
    members: BTreeSet<NodeId>,
    /// Nothing joins.
    closed: bool,
}

/// Elementwise work beyond this many nodes makes a kernel too large to help.
const MAX_MEMBERS: usize = 200;

/// Elements of a run below which a guard for each is not cheaper than a copy.
const MIN_RUN: i64 = 8;

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
        let class = node.op.class();
        if matches!(class, Class::Plan | Class::Composite) || inside_fused(n) {
            continue;
        }
        if class == Class::View && views_are_absorbed(graph, n, &users, &results, &home, &groups) {
            continue;
        }
        let target = only_group(graph, n, &users, &results, &home);
        match target.filter(|&g| joins(graph, n, class, &groups[g], &users)) {
            Some(g) => {
                let group = &mut groups[g];
                group.promised = group.promised.or_else(|| narrowed(graph, n, &users));
                group.members.insert(n);
                home.insert(n, g);
                match (&node.op, class) {
                    // A row's value between a reduction and its use: the reduction,
                    // which is met next, must be over the same rows.
                    (_, Class::Elementwise) if group.reduced.is_none() => {
                        let axes = ones(graph.shape(node.results[0]), &group.domain);
                        if !axes.is_empty() {
                            group.reduced = Some(axes);
                        }
                    }
                    (Op::Reduce(r), _) => {
                        group.domain = graph.shape(node.args[0]).to_vec();
                        group.reduced = Some(r.axes.clone());
                    }
                    (_, Class::Anchor) => {
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
                let anchor = (class == Class::Anchor).then_some(n);
                let closed = matches!(class, Class::Anchor | Class::Kernel);
                home.insert(n, groups.len());
                groups.push(Group {
                    domain,
                    reduced,
                    anchor,
                    promised: narrowed(graph, n, &users),
                    members: [n].into(),
                    closed,
                });
            }
        }
    }
    let mut place = vec![0; graph.node_capacity()];
    (order.iter().enumerate()).for_each(|(i, n)| place[n.index()] = i);
    let mut outlined = Outlined::default();
    for group in &groups {
        outline(cx, graph, group, &home, &place, &mut outlined)?;
    }
    graph.replace_all(&outlined.swap);
    outlined.settle(graph);
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
            None if graph.node(u).op.class() == Class::View
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
                Some(&g) => match (user.op.class(), groups[g].anchor) {
                    (Class::Elementwise | Class::Move | Class::Reduction | Class::View, None) => {
                        true
                    }
                    // The epilogue reads its own arguments by index too.
                    (Class::Elementwise, Some(_)) => true,
                    (Class::Anchor, _) => anchor_reads(graph, u, n, v),
                    _ => false,
                },
                None => {
                    user.op.class() == Class::View
                        && views_are_absorbed(graph, u, users, results, home, groups)
                        && anchors_read_through(graph, n, u, users)
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
    let args = &graph.node(anchor).args;
    match &graph.node(anchor).op {
        Op::MatMul(_) => strided,
        // Panels in groups: neighbours along k are read at once.
        Op::PackedMatMul(_) if graph.ty(args[1]).rank() == 4 => {
            strided && args[0] == v && keeps_runs(graph, view)
        }
        Op::PackedMatMul(_) | Op::BlockMatMul(_) => strided && args[0] == v,
        Op::Attention(_) => strided && (args[2] != v || keeps_runs(graph, view)),
        _ => false,
    }
}

/// Whether a view's last axis runs through memory as that of what it reads does:
/// attention reads V in runs of features.
fn keeps_runs(graph: &Graph, view: NodeId) -> bool {
    let node = graph.node(view);
    match &node.op {
        Op::Transpose(t) => t.perm.axes().last() == Some(&(t.perm.axes().len() - 1)),
        Op::Slice(s) => s.steps.last() == Some(&1),
        Op::Broadcast(_) => {
            let last = |v: Value| graph.shape(v).last().cloned();
            last(node.args[0]) == last(node.results[0])
        }
        _ => false,
    }
}

/// Whether a view that another view reads is no hindrance to the anchors that read
/// that one.
fn anchors_read_through(graph: &Graph, n: NodeId, view: NodeId, users: &[Vec<NodeId>]) -> bool {
    let v = graph.node(view).results[0];
    users[v.index()]
        .iter()
        .all(|&u| match graph.node(u).op.class() {
            Class::Anchor => anchor_reads(graph, u, n, v),
            Class::View => anchors_read_through(graph, n, u, users),
            _ => true,
        })
}

/// Whether a producer all of whose uses are in a group may join it.
fn joins(graph: &Graph, n: NodeId, class: Class, group: &Group, users: &[Vec<NodeId>]) -> bool {
    let node = graph.node(n);
    let v = node.results[0];
    let shape = graph.shape(v);
    if group.members.len() >= MAX_MEMBERS {
        return false;
    }
    // Of two products that end in bytes, one stays with what reads both: the other would
    // leave its sums in memory, four times as large.
    let other = |held: Option<NodeId>| match (held, narrowed(graph, n, users)) {
        (Some(held), Some(own)) => held != own,
        _ => false,
    };
    if other(group.promised) || other(group.anchor) {
        return false;
    }
    if let Some(anchor) = group.anchor {
        // Behind an anchor only what does not feed it could join; feeding the
        // epilogue it would be computed once an element of the domain.
        let feeds_anchor = feeds(graph, n, anchor, group);
        return !feeds_anchor
            && class == Class::Elementwise
            && elements(shape) == elements(&group.domain);
    }
    if group.closed {
        return false;
    }
    match class {
        Class::Elementwise => {
            fits(shape, group)
                || (group.reduced.is_none() && only_elementwise_uses(graph, n, group) && {
                    let axes = ones(shape, &group.domain);
                    !axes.is_empty() && ends_in_reduction(graph, n, &axes, &group.domain)
                })
        }
        Class::Move | Class::View => fits(shape, group) || borders(graph, n, group, users),
        Class::Reduction => {
            let Op::Reduce(r) = &node.op else {
                return false;
            };
            let argument = graph.shape(node.args[0]);
            let aligned = read_in_place(graph, v, group);
            match &group.reduced {
                Some(axes) => *axes == r.axes && group.domain == argument && aligned,
                // The group works on whole rows, or on what is left of them.
                None => {
                    aligned && (group.domain == argument || rows(argument, &r.axes, &group.domain))
                }
            }
        }
        Class::Anchor => {
            let plain =
                group.reduced.is_none() && group.domain == shape && read_in_place(graph, v, group);
            match &node.op {
                Op::Attention(_) => {
                    group.members.len() == 1
                        && group.members.iter().all(|&m| {
                            let node = graph.node(m);
                            matches!(node.op, Op::Transpose(_)) && node.args[0] == v
                        })
                }
                _ => {
                    plain
                        && group
                            .members
                            .iter()
                            .all(|&m| graph.node(m).op.class() == Class::Elementwise)
                }
            }
        }
        Class::Kernel | Class::Plan | Class::Composite => false,
    }
}

/// The anchor whose sums end in this node as bytes, by elementwise steps alone that
/// nobody else reads.
fn narrowed(graph: &Graph, n: NodeId, users: &[Vec<NodeId>]) -> Option<NodeId> {
    let node = graph.node(n);
    let byte = |v: Value| matches!(graph.ty(v).dtype, DType::I8 | DType::U8);
    if !matches!(node.op, Op::Cast(_)) || !byte(node.results[0]) || byte(node.args[0]) {
        return None;
    }
    let elements = Dim::product(graph.shape(node.results[0]));
    let mut at = node.args[0];
    for _ in 0..MAX_MEMBERS {
        let (p, _) = graph.producer(at)?;
        let node = graph.node(p);
        match node.op.class() {
            _ if users[at.index()].len() != 1 || byte(at) => return None,
            Class::Anchor => return Some(p),
            Class::Elementwise => {}
            _ => return None,
        }
        let whole = |v: &&Value| Dim::product(graph.shape(**v)) == elements;
        at = *node.args.iter().find(whole)?;
    }
    None
}

/// Whether a node puts a border around what a group reads in windows, such that whole
/// runs are border or not: then a guard is cheaper than a copy with the border on it.
fn borders(graph: &Graph, n: NodeId, group: &Group, users: &[Vec<NodeId>]) -> bool {
    let node = graph.node(n);
    let (Op::Pad(pad), Some(reduced)) = (&node.op, &group.reduced) else {
        return false;
    };
    let (shape, last) = (graph.shape(node.results[0]), group.domain.len() - 1);
    let run = !reduced.contains(&last) && shape.last() == group.domain.last();
    let beside = pad.lo.last() == Some(&Dim::ZERO) && pad.hi.last() == Some(&Dim::ZERO);
    let long = (shape.last()).is_some_and(|d| d.as_const().is_none_or(|n| n >= MIN_RUN));
    // Reshaped, the windows would no longer be sums of coordinates.
    pad.mode == PadMode::Constant && run && beside && long && in_windows(graph, n, group, users)
}

/// Whether all that a group makes of a value is windows that end in a reduction.
fn in_windows(graph: &Graph, n: NodeId, group: &Group, users: &[Vec<NodeId>]) -> bool {
    let v = graph.node(n).results[0];
    (users[v.index()].iter()).all(|&u| match &graph.node(u).op {
        Op::Unfold(unfold) => {
            unfold.axis + 1 < graph.shape(v).len() && in_windows(graph, u, group, users)
        }
        Op::Reduce(_) => group.members.contains(&u),
        _ => false,
    })
}

/// The axes at which a shape has extent 1 where the domain has not, if it is the
/// domain otherwise.
fn ones(shape: &[Dim], domain: &[Dim]) -> Vec<usize> {
    let same = |i: &usize| shape[*i] == domain[*i] || shape[*i] == Dim::ONE;
    if shape.len() != domain.len() || !(0..shape.len()).all(|i| same(&i)) {
        return vec![];
    }
    let differs = |i: &usize| shape[*i] != domain[*i];
    (0..shape.len()).filter(differs).collect()
}

/// Whether a value of one element a row is what elementwise work makes of a
/// reduction of rows of the domain: `1/√(mean + eps)` between a norm's sums and
/// what they scale.
fn ends_in_reduction(graph: &Graph, n: NodeId, axes: &[usize], domain: &[Dim]) -> bool {
    let mut stack = vec![n];
    let mut seen = 0;
    while let Some(n) = stack.pop() {
        seen += 1;
        for &a in &graph.node(n).args {
            let Some((p, _)) = graph.producer(a) else {
                continue;
            };
            let node = graph.node(p);
            match &node.op {
                Op::Reduce(r)
                    if r.keep && r.axes == axes && graph.shape(node.args[0]) == domain =>
                {
                    return true;
                }
                op if op.class() == Class::Elementwise && seen < 16 => stack.push(p),
                _ => {}
            }
        }
    }
    false
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
        match node.op.class() {
            Class::Elementwise => same_axes(graph.shape(v), graph.shape(node.results[0])),
            Class::Reduction => true,
            _ => false,
        }
    }) && !through_views(graph, v, group)
}

/// Whether all that is made of a reduction's or a product's value, up to the next
/// reduction, is read at the value's own place: a gather of `x - max(x)` asks for the
/// maxima of other rows, a reversing slice of `x·w + b` for other sums.
fn read_in_place(graph: &Graph, v: Value, group: &Group) -> bool {
    let (mut stack, mut seen) = (vec![v], BTreeSet::from([v]));
    while let Some(v) = stack.pop() {
        let Some((n, _)) = graph.producer(v) else {
            return false;
        };
        if !only_elementwise_uses(graph, n, group) {
            return false;
        }
        for &m in &group.members {
            let node = graph.node(m);
            let made = node.results[0];
            if node.args.contains(&v) && node.op.class() == Class::Elementwise && seen.insert(made)
            {
                stack.push(made);
            }
        }
    }
    true
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
                if node.op.class() != Class::View
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
            && (group.members.contains(&p) || graph.node(p).op.class() == Class::View)
        {
            stack.extend(graph.node(p).args.iter().copied());
        }
    }
    false
}

/// What to do when all groups stand: at once, since each is a walk of the graph.
#[derive(Default)]
struct Outlined {
    /// Results of roots, and of the `fused` nodes that take their place.
    swap: BTreeMap<Value, Value>,
    /// The `fused` node of each root; until `settle` it stands at its region's end.
    of_root: BTreeMap<NodeId, NodeId>,
}

impl Outlined {
    /// Puts every `fused` node where its root stood: one walk of each region, where
    /// inserting them one by one would be one for each.
    fn settle(&self, graph: &mut Graph) {
        let new: BTreeSet<NodeId> = self.of_root.values().copied().collect();
        let regions: BTreeSet<RegionId> = new.iter().map(|&n| graph.node(n).parent).collect();
        for r in regions {
            let order = std::mem::take(&mut graph.region_mut(r).nodes);
            let placed = order
                .into_iter()
                .filter(|n| !new.contains(n))
                .flat_map(|n| {
                    let fused = self.of_root.get(&n).copied();
                    std::iter::once(n).chain(fused)
                });
            graph.region_mut(r).nodes = placed.collect();
        }
        graph.remove_nodes(&self.of_root.keys().copied().collect());
    }
}

/// Whether an op's first argument must be in memory, be it a literal: what is
/// scattered into, what a box is cut out of at a place that only data knows.
fn addresses(op: &Op) -> bool {
    matches!(
        op,
        Op::DynamicSlice(_) | Op::DynamicUpdateSlice(_) | Op::ScatterElements(_) | Op::ScatterNd(_)
    )
}

/// Moves a group's nodes into the region of a `fused` node at its root.
fn outline(
    cx: &mut PassCx,
    graph: &mut Graph,
    group: &Group,
    home: &BTreeMap<NodeId, usize>,
    place: &[usize],
    outlined: &mut Outlined,
) -> Result<(), PassError> {
    let Some(&root) = group.members.iter().max_by_key(|n| place[n.index()]) else {
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
            // A contraction sees its operands through strides of something in memory.
            let operand = |x: NodeId| n == x || feeds(graph, n, x, group);
            let stored = addresses(&graph.node(n).op) && graph.node(n).args[0] == a
                || group.anchor.is_some_and(operand);
            let copied = match &node.op {
                Op::Constant(_) | Op::Dims(_) if stored => false,
                // A string's handle is known when the artifact is written.
                Op::Constant(c) => c.value.len() == 1 && c.value.dtype() != DType::Str,
                Op::Dims(d) => d.value.dims.len() == 1,
                op => op.class() == Class::View && node.parent == graph.node(root).parent,
            };
            if copied {
                inside.insert(p);
                stack.push(p);
            }
        }
    }
    let mut ordered: Vec<NodeId> = inside.iter().copied().collect();
    ordered.sort_by_key(|n| place[n.index()]);
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
    let home = graph.node(root).parent;
    let mut b = Builder::at_end(graph, cx.globals, home);
    b.origins = origins;
    let new = b.push_with_regions(Fused, &args, vec![region])?;
    let made = new.first().and_then(|&v| graph.producer(v));
    outlined
        .of_root
        .extend(made.map(|(fused, _)| (root, fused)));
    outlined.swap.extend(old.iter().copied().zip(new));
    Ok(())
}
