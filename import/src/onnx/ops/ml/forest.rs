//! Trees as they stand in a model's attributes, checked.

use super::floats;
use crate::onnx::cx::{Cx, Fail};
use kiln_ir::CompareFn;
use std::collections::HashMap;

/// Votes of all nodes for all targets, as a table.
const MAX_TABLE: usize = 1 << 28;

/// The comparison at a node.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Mode {
    Le,
    Lt,
    Ge,
    Gt,
    Eq,
    Ne,
}

impl Mode {
    pub(super) const ALL: [Mode; 6] = [Mode::Le, Mode::Lt, Mode::Ge, Mode::Gt, Mode::Eq, Mode::Ne];

    pub(super) fn compare(self) -> CompareFn {
        match self {
            Mode::Le => CompareFn::Le,
            Mode::Lt => CompareFn::Lt,
            Mode::Ge => CompareFn::Ge,
            Mode::Gt => CompareFn::Gt,
            Mode::Eq => CompareFn::Eq,
            Mode::Ne => CompareFn::Ne,
        }
    }

    fn from_name(name: &str) -> Option<Mode> {
        match name {
            "BRANCH_LEQ" => Some(Mode::Le),
            "BRANCH_LT" => Some(Mode::Lt),
            "BRANCH_GTE" => Some(Mode::Ge),
            "BRANCH_GT" => Some(Mode::Gt),
            "BRANCH_EQ" => Some(Mode::Eq),
            "BRANCH_NEQ" => Some(Mode::Ne),
            _ => None,
        }
    }
}

/// A node; a leaf leads to itself.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) feature: i64,
    pub(super) split: f64,
    pub(super) mode: Mode,
    pub(super) yes: usize,
    pub(super) no: usize,
    /// NaN takes the true branch.
    pub(super) missing: bool,
    pub(super) leaf: bool,
}

/// What a leaf adds to a target.
pub(super) struct Vote {
    pub(super) node: usize,
    pub(super) target: usize,
    pub(super) weight: f64,
}

/// All trees.
pub(super) struct Forest {
    pub(super) nodes: Vec<Node>,
    pub(super) roots: Vec<usize>,
    pub(super) votes: Vec<Vote>,
    pub(super) targets: usize,
    /// Steps from a root to its deepest leaf.
    pub(super) depth: usize,
}

fn invalid<T>(message: impl Into<String>) -> Result<T, Fail> {
    Err(Fail::invalid(message))
}

/// `{name}` or, as doubles, `{name}_as_tensor`.
fn numbers(cx: &mut Cx, name: &str) -> Result<Vec<f64>, Fail> {
    match tensor(cx, &format!("{name}_as_tensor"))? {
        Some(v) => Ok(v),
        None => Ok(floats(cx, name)?.unwrap_or_default()),
    }
}

fn tensor(cx: &mut Cx, name: &str) -> Result<Option<Vec<f64>>, Fail> {
    let Some(t) = cx.tensor(name)? else {
        return Ok(None);
    };
    let v = cx.place(t)?;
    Ok(Some(cx.literal(v).ok_or_else(Fail::reported)?.to_f64()))
}

impl Forest {
    /// The form of the operators before opset 5: leaves are nodes; votes have the
    /// prefix `target` or `class`.
    pub(super) fn of_nodes(cx: &mut Cx, votes: &str, targets: usize) -> Result<Forest, Fail> {
        let ints = |name: &str| Ok::<_, Fail>(cx.ints(name)?.unwrap_or_default());
        let (trees, ids) = (ints("nodes_treeids")?, ints("nodes_nodeids")?);
        let (yes, no) = (ints("nodes_truenodeids")?, ints("nodes_falsenodeids")?);
        let features = ints("nodes_featureids")?;
        let missing = ints("nodes_missing_value_tracks_true")?;
        let modes = cx.texts("nodes_modes")?.unwrap_or_default();
        let splits = numbers(cx, "nodes_values")?;
        let n = trees.len();
        let lengths = [ids.len(), yes.len(), no.len(), features.len(), modes.len()];
        if lengths.iter().any(|&l| l != n) || splits.len() != n || n == 0 {
            return invalid("the attributes of an ensemble's nodes differ in length");
        }
        let at: HashMap<(i64, i64), usize> = (0..n).map(|i| ((trees[i], ids[i]), i)).collect();
        let mut forest = Forest {
            nodes: vec![],
            roots: vec![],
            votes: vec![],
            targets,
            depth: 0,
        };
        for i in 0..n {
            if i == 0 || trees[i] != trees[i - 1] {
                forest.roots.push(i);
            }
            let leaf = modes[i] == "LEAF";
            let child = |id: i64| match at.get(&(trees[i], id)) {
                _ if leaf => Ok(i),
                Some(&j) => Ok(j),
                None => invalid(format!("tree {} has no node {id}", trees[i])),
            };
            let mode = match Mode::from_name(&modes[i]) {
                Some(m) => m,
                None if leaf => Mode::Le,
                None => return invalid(format!("there is no comparison `{}`", modes[i])),
            };
            forest.nodes.push(Node {
                feature: if leaf { 0 } else { features[i] },
                split: splits[i],
                mode,
                yes: child(yes[i])?,
                no: child(no[i])?,
                missing: missing.get(i) == Some(&1),
                leaf,
            });
        }
        forest.vote(cx, votes, &at)?;
        forest.checked(cx)
    }

    fn vote(
        &mut self,
        cx: &mut Cx,
        prefix: &str,
        at: &HashMap<(i64, i64), usize>,
    ) -> Result<(), Fail> {
        let ints = |what: &str| {
            let all = cx.ints(&format!("{prefix}_{what}"))?;
            Ok::<_, Fail>(all.unwrap_or_default())
        };
        let (trees, nodes, ids) = (ints("treeids")?, ints("nodeids")?, ints("ids")?);
        let weights = numbers(cx, &format!("{prefix}_weights"))?;
        if trees.len() != nodes.len() || trees.len() != ids.len() || trees.len() != weights.len() {
            return invalid("the attributes of an ensemble's leaves differ in length");
        }
        for (i, &weight) in weights.iter().enumerate() {
            let Some(&node) = at.get(&(trees[i], nodes[i])) else {
                return invalid(format!("tree {} has no node {}", trees[i], nodes[i]));
            };
            let target = usize::try_from(ids[i]).ok().filter(|&t| t < self.targets);
            let Some(target) = target else {
                return invalid(format!("there is no target {}", ids[i]));
            };
            self.votes.push(Vote {
                node,
                target,
                weight,
            });
        }
        Ok(())
    }

    /// The form of opset 5: branches, and then leaves.
    pub(super) fn of_branches(cx: &mut Cx) -> Result<Forest, Fail> {
        let targets = usize::try_from(cx.int("n_targets", 1)?).unwrap_or(0);
        let weights = tensor(cx, "leaf_weights")?.unwrap_or_default();
        let branches = Branches::read(cx, weights.len())?;
        let n = branches.features.len();
        let mut nodes = branches.nodes()?;
        for j in n..n + weights.len() {
            nodes.push(Node {
                feature: 0,
                split: 0.0,
                mode: Mode::Le,
                yes: j,
                no: j,
                missing: false,
                leaf: true,
            });
        }
        let sets = branches.sets()?;
        // Membership is a chain of equalities.
        for (mut last, rest) in sets {
            for &member in rest {
                let next = nodes.len();
                let mut node: Node = nodes[last].clone();
                node.split = member;
                nodes[last].no = next;
                nodes.push(node);
                last = next;
            }
        }
        let mut forest = Forest {
            nodes,
            roots: vec![],
            votes: vec![],
            targets,
            depth: 0,
        };
        for &r in cx.ints("tree_roots")?.unwrap_or_default() {
            forest.roots.push(branches.child(r, 0)?);
        }
        let ids = cx.ints("leaf_targetids")?.unwrap_or_default();
        if ids.len() != weights.len() {
            return invalid("the attributes of an ensemble's leaves differ in length");
        }
        for (j, (&id, &weight)) in ids.iter().zip(&weights).enumerate() {
            let target = usize::try_from(id).ok().filter(|&t| t < targets);
            let Some(target) = target else {
                return invalid(format!("there is no target {id}"));
            };
            let node = n + j;
            forest.votes.push(Vote {
                node,
                target,
                weight,
            });
        }
        forest.checked(cx)
    }

    /// With its depth; trees that do not end, and features that rows do not have,
    /// are refused.
    fn checked(mut self, cx: &Cx) -> Result<Forest, Fail> {
        if self.targets == 0 || self.roots.is_empty() {
            return invalid("an ensemble without trees or targets");
        }
        let features = cx.shape(cx.arg(0)?).last().and_then(|d| d.as_const());
        let beyond = |f: i64| f < 0 || features.is_some_and(|n| f >= n);
        if let Some(n) = self.nodes.iter().find(|n| beyond(n.feature)) {
            return invalid(format!("rows have no feature {}", n.feature));
        }
        let size = self.nodes.len().saturating_mul(self.targets);
        if size > MAX_TABLE {
            return Err(Fail::form(format!(
                "{} targets of an ensemble",
                self.targets
            )));
        }
        self.depth = self.deepest()?;
        Ok(self)
    }

    /// The longest way from a root to a leaf. Branches may meet again, as those of
    /// a set's members do: each node is measured once, after what is below it.
    fn deepest(&self) -> Result<usize, Fail> {
        #[derive(Clone, Copy, PartialEq)]
        enum State {
            New,
            Open,
            Depth(usize),
        }
        let mut state = vec![State::New; self.nodes.len()];
        let mut open = self.roots.clone();
        while let Some(&i) = open.last() {
            let n = &self.nodes[i];
            match state[i] {
                State::Depth(_) => {
                    open.pop();
                }
                State::New if n.leaf => state[i] = State::Depth(0),
                State::New => {
                    state[i] = State::Open;
                    for below in [n.yes, n.no] {
                        match state[below] {
                            State::New => open.push(below),
                            State::Open => return invalid("a tree of an ensemble has no end"),
                            State::Depth(_) => {}
                        }
                    }
                }
                State::Open => {
                    let mut depth = 0;
                    for below in [n.yes, n.no] {
                        match state[below] {
                            State::Depth(d) => depth = depth.max(d + 1),
                            _ => return invalid("a tree of an ensemble has no end"),
                        }
                    }
                    state[i] = State::Depth(depth);
                }
            }
        }
        let depths = self.roots.iter().map(|&r| match state[r] {
            State::Depth(d) => d,
            State::New | State::Open => 0,
        });
        Ok(depths.max().unwrap_or(0))
    }

    /// Whether every row gets a vote for every target: some tree's every leaf has
    /// one.
    pub(super) fn complete(&self) -> bool {
        let mut voted = vec![false; self.nodes.len() * self.targets];
        for v in &self.votes {
            voted[v.node * self.targets + v.target] = true;
        }
        let mut done = vec![false; self.targets];
        let mut met = vec![usize::MAX; self.nodes.len()];
        for (tree, &r) in self.roots.iter().enumerate() {
            let mut all = vec![true; self.targets];
            let mut open = vec![r];
            while let Some(i) = open.pop() {
                if std::mem::replace(&mut met[i], tree) == tree {
                    continue;
                }
                let n = &self.nodes[i];
                if !n.leaf {
                    open.extend([n.yes, n.no]);
                    continue;
                }
                let own = &voted[i * self.targets..][..self.targets];
                all.iter_mut().zip(own).for_each(|(a, v)| *a &= v);
            }
            done.iter_mut().zip(all).for_each(|(d, a)| *d |= a);
        }
        done.into_iter().all(|d| d)
    }
}

/// The attributes of opset 5's branches, of one length.
struct Branches<'m> {
    features: &'m [i64],
    splits: Vec<f64>,
    modes: Vec<f64>,
    yes: (&'m [i64], &'m [i64]),
    no: (&'m [i64], &'m [i64]),
    missing: &'m [i64],
    /// The sets of the nodes that ask for membership, each ended by NaN.
    members: Vec<f64>,
    leaves: usize,
}

/// The mode that asks for membership of a set.
const MEMBER: f64 = 6.0;

impl<'m> Branches<'m> {
    fn read(cx: &mut Cx<'_, '_, 'm>, leaves: usize) -> Result<Branches<'m>, Fail> {
        let splits = tensor(cx, "nodes_splits")?.unwrap_or_default();
        let modes = tensor(cx, "nodes_modes")?.unwrap_or_default();
        let members = tensor(cx, "membership_values")?.unwrap_or_default();
        let ints = |name: &str| Ok::<_, Fail>(cx.ints(name)?.unwrap_or_default());
        let all = Branches {
            features: ints("nodes_featureids")?,
            splits,
            modes,
            yes: (ints("nodes_truenodeids")?, ints("nodes_trueleafs")?),
            no: (ints("nodes_falsenodeids")?, ints("nodes_falseleafs")?),
            missing: ints("nodes_missing_value_tracks_true")?,
            members,
            leaves,
        };
        let n = all.features.len();
        let lengths = [
            all.splits.len(),
            all.modes.len(),
            all.yes.0.len(),
            all.yes.1.len(),
            all.no.0.len(),
            all.no.1.len(),
        ];
        match lengths.iter().all(|&l| l == n) && n > 0 {
            true => Ok(all),
            false => invalid("the attributes of an ensemble's nodes differ in length"),
        }
    }

    /// Where a branch leads among all nodes: branches first, then leaves.
    fn child(&self, to: i64, leaf: i64) -> Result<usize, Fail> {
        let n = self.features.len();
        let (from, count) = if leaf == 0 { (0, n) } else { (n, self.leaves) };
        match usize::try_from(to).ok().filter(|&t| t < count) {
            Some(t) => Ok(from + t),
            None => invalid(format!("there is no node or leaf {to}")),
        }
    }

    /// The branches; one that asks for membership asks for its set's first member.
    fn nodes(&self) -> Result<Vec<Node>, Fail> {
        let mut firsts = self.members.split(|v| v.is_nan()).map(|s| s.first());
        (0..self.features.len())
            .map(|i| {
                let known = usize::try_from(self.modes[i] as i64).ok();
                let (mode, split) = match known.and_then(|m| Mode::ALL.get(m)) {
                    Some(&m) => (m, self.splits[i]),
                    None if self.modes[i] == MEMBER => match firsts.next().flatten() {
                        Some(&first) => (Mode::Eq, first),
                        None => return invalid("a set of members is missing or empty"),
                    },
                    None => {
                        return invalid(format!("there is no comparison {}", self.modes[i]));
                    }
                };
                Ok(Node {
                    feature: self.features[i],
                    split,
                    mode,
                    yes: self.child(self.yes.0[i], self.yes.1[i])?,
                    no: self.child(self.no.0[i], self.no.1[i])?,
                    missing: self.missing.get(i) == Some(&1),
                    leaf: false,
                })
            })
            .collect()
    }

    /// The nodes that ask for membership, each with its set's further members.
    fn sets(&self) -> Result<Vec<(usize, &[f64])>, Fail> {
        let asking = (0..self.modes.len()).filter(|&i| self.modes[i] == MEMBER);
        asking
            .zip(self.members.split(|v| v.is_nan()))
            .map(|(i, set)| match set.split_first() {
                Some((_, rest)) => Ok((i, rest)),
                None => invalid("a set of members is missing or empty"),
            })
            .collect()
    }
}
