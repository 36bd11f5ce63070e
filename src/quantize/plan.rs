//! Which nodes are quantized, and why others are not.

use super::constants::Constants;
use super::{Kind, Options, attribute, problem};
use crate::import::proto::{GraphProto, NodeProto};
use crate::import::{Diagnostic, Draft};
use crate::ir::DType;
use std::collections::{BTreeMap, BTreeSet};

/// A node to quantize.
#[derive(Clone, Debug, PartialEq)]
pub struct Product {
    /// Its place among the graph's nodes.
    pub node: usize,
    /// Its name; of a node without one, its first output's.
    pub name: String,
    pub kind: Kind,
    /// Which inputs are computed values that get a grid.
    pub activations: Vec<usize>,
    /// Which input is a constant, and the axis that has a scale for each place.
    pub weight: Option<(usize, Option<usize>)>,
    /// Which input is a constant added to the sums.
    pub bias: Option<usize>,
}

/// A node that stays as it is.
#[derive(Clone, Debug, PartialEq)]
pub struct Left {
    pub node: String,
    pub op: String,
    pub why: String,
}

/// What is to be done to a model.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    pub products: Vec<Product>,
    pub left: Vec<Left>,
    /// Products whose results get a grid too, and that value's name.
    pub outputs: Vec<String>,
}

impl Plan {
    /// Chooses among the nodes of the main graph. K0741 where a pattern of
    /// `options.exclude` names no node, K0742 where there is nothing to quantize,
    /// and what [`crate::import::Weights::read`] says of broken constants.
    pub fn of(draft: &mut Draft, options: &Options) -> Result<Plan, Box<Diagnostic>> {
        let constants = Constants::of(&draft.proto.graph);
        let mut plan = Plan::default();
        let mut matched = BTreeSet::new();
        for i in 0..draft.proto.graph.node.len() {
            let node = draft.proto.graph.node[i].clone();
            let inside = products_inside(&node, options);
            if inside > 0 {
                let why = format!("{inside} products in its inner graphs are left as they are");
                plan.leave(&node, why);
            }
            let Some(kind) = Kind::of(&node).filter(|k| options.kinds.contains(k)) else {
                continue;
            };
            let by: Vec<&String> = (options.exclude.iter())
                .filter(|pattern| names(&node).any(|n| matches(pattern, n)))
                .collect();
            if !by.is_empty() {
                plan.leave(&node, format!("excluded by `{}`", by[0]));
                matched.extend(by);
                continue;
            }
            match choose(draft, &constants, &node, kind, options)? {
                // Sizes and indices are looked up everywhere: no table is worth a word.
                Err(_) if kind == Kind::Gather => {}
                Ok(p) => plan.products.push(Product { node: i, ..p }),
                Err(why) => plan.leave(&node, why),
            }
        }
        for f in &draft.proto.functions {
            let inside: usize = f.node.iter().map(|n| products(n, options)).sum();
            if inside > 0 {
                plan.left.push(Left {
                    node: f.name.clone(),
                    op: "function".into(),
                    why: format!("{inside} products in it are left as they are"),
                });
            }
        }
        if let Some(stray) = options.exclude.iter().find(|p| !matched.contains(p)) {
            let some: Vec<&str> = plan.products.iter().take(3).map(|p| &p.name[..]).collect();
            return Err(problem(
                "K0741",
                format!("`--exclude {stray}` names no node that would be quantized"),
                format!(
                    "* stands for any characters; such nodes are {}",
                    some.join(", ")
                ),
            ));
        }
        if options.outputs {
            plan.outputs = results(&draft.proto.graph, &plan);
        }
        plan.has_products()?;
        Ok(plan)
    }

    fn leave(&mut self, node: &NodeProto, why: String) {
        self.left.push(Left {
            node: name(node).to_string(),
            op: node.op_type.clone(),
            why,
        });
    }

    /// K0742 where nothing is left to quantize.
    pub fn has_products(&self) -> Result<(), Box<Diagnostic>> {
        if !self.products.is_empty() {
            return Ok(());
        }
        let mut reasons: Vec<String> = (self.left.iter().take(3))
            .map(|l| format!("{} `{}`: {}", l.op, l.node, l.why))
            .collect();
        if reasons.is_empty() {
            reasons.push("no node of the main graph has one of these operators".into());
        }
        Err(problem(
            "K0742",
            format!("there is nothing to quantize: {}", reasons.join("; ")),
            "name operators by --ops (MatMul, Gemm, Conv, Gather), or see --all-products".into(),
        ))
    }

    /// The computed values that get a grid, in the order of the nodes.
    pub fn activations(&self, graph: &GraphProto) -> Vec<String> {
        let mut seen = BTreeSet::new();
        let read = self.products.iter().flat_map(|p| {
            let node = &graph.node[p.node];
            p.activations.iter().map(|&slot| node.input[slot].clone())
        });
        read.chain(self.outputs.iter().cloned())
            .filter(|name| seen.insert(name.clone()))
            .collect()
    }

    /// Leaves the products that read a value for which there is no grid; `why` by name.
    pub fn without(&mut self, graph: &GraphProto, why: &BTreeMap<String, String>) {
        let mut left = vec![];
        self.products.retain(|p| {
            let node = &graph.node[p.node];
            let read = p.activations.iter().map(|&slot| &node.input[slot]);
            let reason = read
                .filter_map(|name| why.get(name).map(|w| (name, w)))
                .next();
            if let Some((name, why)) = reason {
                left.push((p.node, format!("its input `{name}` {why}")));
            }
            reason.is_none()
        });
        for (i, why) in left {
            self.leave(&graph.node[i], why);
        }
        self.outputs.retain(|name| !why.contains_key(name));
    }
}

/// The name that a node is known by.
pub fn name(node: &NodeProto) -> &str {
    match node.name.is_empty() {
        true => node.output.first().map_or("", |o| &o[..]),
        false => &node.name,
    }
}

/// Every name that a pattern may mean.
fn names(node: &NodeProto) -> impl Iterator<Item = &str> {
    std::iter::once(&node.name[..]).chain(node.output.iter().map(|o| &o[..]))
}

/// Whether a pattern with `*` and `?` means this name.
pub fn matches(pattern: &str, name: &str) -> bool {
    let (pattern, name): (Vec<char>, Vec<char>) =
        (pattern.chars().collect(), name.chars().collect());
    let (mut p, mut n) = (0, 0);
    // Where the last `*` was, and how much of the name it took.
    let mut star: Option<(usize, usize)> = None;
    while n < name.len() {
        match pattern.get(p) {
            Some('*') => {
                star = Some((p, n));
                p += 1;
            }
            Some(c) if *c == '?' || *c == name[n] => (p, n) = (p + 1, n + 1),
            _ => match star {
                Some((at, took)) => {
                    star = Some((at, took + 1));
                    (p, n) = (at + 1, took + 1);
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|c| *c == '*')
}

/// 1 for a node that could be quantized, and those inside of it.
fn products(node: &NodeProto, options: &Options) -> usize {
    let own = Kind::of(node).is_some_and(|k| options.kinds.contains(&k));
    usize::from(own) + products_inside(node, options)
}

fn products_inside(node: &NodeProto, options: &Options) -> usize {
    let graphs = (node.attribute.iter()).flat_map(|a| a.g.as_ref().into_iter().chain(&a.graphs));
    let nodes = graphs.flat_map(|g| &g.node);
    nodes.map(|n| products(n, options)).sum()
}

type Choice = Result<Product, String>;

/// How a node is quantized; or why it is not.
fn choose(
    draft: &mut Draft,
    constants: &Constants,
    node: &NodeProto,
    kind: Kind,
    options: &Options,
) -> Result<Choice, Box<Diagnostic>> {
    let mut product = Product {
        node: 0,
        name: name(node).to_string(),
        kind,
        activations: vec![],
        weight: None,
        bias: None,
    };
    let operands: &[usize] = match kind {
        Kind::Gather => &[0],
        _ => &[0, 1],
    };
    let mut shapes = BTreeMap::new();
    for &slot in operands {
        let Some(input) = node.input.get(slot).filter(|i| !i.is_empty()) else {
            return Ok(Err("it lacks an input".into()));
        };
        if constants.is_quantized(&draft.proto.graph, input) {
            return Ok(Err("it is quantized already".into()));
        }
        match constants.read(draft, input)? {
            Some(t) if t.dtype() != DType::F32 => {
                return Ok(Err(format!(
                    "its constant `{input}` is {}, not f32",
                    t.dtype()
                )));
            }
            Some(t) => {
                shapes.insert(slot, t.shape().to_vec());
            }
            None => product.activations.push(slot),
        }
    }
    let weight = match (kind, shapes.len()) {
        (Kind::Gather, 0) => return Ok(Err("its table is computed".into())),
        (Kind::Gather, _) => 0,
        (_, 2) => return Ok(Err("both of its sides are constants".into())),
        (_, 1) => usize::from(shapes.contains_key(&1)),
        _ if options.all_products => return Ok(Ok(product)),
        _ => return Ok(Err("both of its sides are computed (--all-products)".into())),
    };
    if kind == Kind::Conv && weight == 0 {
        return Ok(Err("its filters are computed".into()));
    }
    let shape = &shapes[&weight];
    if shape.len() < 2 && kind != Kind::Gather {
        return Ok(Err("its constant is a vector".into()));
    }
    let axis = channel_axis(node, kind, weight, shape.len());
    product.weight = Some((weight, axis.filter(|_| options.per_channel)));
    product.bias = bias(draft, constants, node, kind, weight, shape)?;
    Ok(Ok(product))
}

/// The axis of a weight that its products' columns (channels) lie along.
fn channel_axis(node: &NodeProto, kind: Kind, slot: usize, rank: usize) -> Option<usize> {
    match (kind, slot) {
        (Kind::Conv, _) => Some(0),
        (Kind::MatMul, 1) => Some(rank - 1),
        (Kind::Gemm, 1) if attribute(node, "transB").is_some_and(|a| a.i != 0) => Some(0),
        (Kind::Gemm, 1) => Some(1),
        // Rows of a left side would need a scale that the sums of columns do not share.
        (Kind::MatMul | Kind::Gemm, _) => None,
        // A scale for each column serves whichever row is looked up.
        (Kind::Gather, _) => {
            let axis = attribute(node, "axis").map_or(0, |a| a.i);
            let looked_up = if axis < 0 { axis + rank as i64 } else { axis };
            (rank >= 2 && looked_up != rank as i64 - 1).then(|| rank - 1)
        }
    }
}

/// The input that is a bias to be quantized: a vector, one element a channel, added to
/// plain sums.
fn bias(
    draft: &mut Draft,
    constants: &Constants,
    node: &NodeProto,
    kind: Kind,
    weight: usize,
    shape: &[usize],
) -> Result<Option<usize>, Box<Diagnostic>> {
    let Some(input) = node.input.get(2).filter(|i| !i.is_empty()) else {
        return Ok(None);
    };
    let one = |name: &str| attribute(node, name).is_none_or(|a| a.f == 1.0);
    let channels = match kind {
        Kind::Conv => shape[0],
        Kind::Gemm if weight == 1 && one("alpha") && one("beta") => {
            shape[channel_axis(node, kind, 1, 2).unwrap_or(1)]
        }
        _ => return Ok(None),
    };
    let found = constants.read(draft, input)?;
    let fits = |t: &crate::ir::Tensor| {
        let finite = || super::floats(t).iter().all(|v| v.is_finite());
        t.dtype() == DType::F32 && t.shape() == [channels] && finite()
    };
    Ok(found.filter(fits).map(|_| 2))
}

/// The results of the products that have no grid where they are read: of what a ReLU
/// alone reads, the ReLU's result.
fn results(graph: &GraphProto, plan: &Plan) -> Vec<String> {
    let read: BTreeSet<String> = plan.activations(graph).into_iter().collect();
    let mut readers: BTreeMap<&str, Vec<&NodeProto>> = BTreeMap::new();
    for node in &graph.node {
        node.input
            .iter()
            .for_each(|i| readers.entry(i).or_default().push(node));
    }
    let result = |p: &Product| {
        let made = graph.node[p.node].output.first()?;
        let own = |name: &str| graph.output.iter().any(|o| o.name == name);
        match readers.get(&made[..]).map_or(&[][..], |r| &r[..]) {
            [only] if only.op_type == "Relu" && !own(made) => only.output.first().cloned(),
            [] => None,
            _ => Some(made.clone()),
        }
    };
    let products = plan.products.iter().filter(|p| p.kind != Kind::Gather);
    products
        .filter_map(result)
        .filter(|r| !read.contains(r))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_mean_what_shells_mean() {
        for (pattern, name, yes) in [
            ("*", "", true),
            ("", "", true),
            ("a*c", "abcbc", true),
            ("a*c", "abcb", false),
            ("/layer.?/*", "/layer.1/dense", true),
            ("/layer.?/*", "/layer.11/dense", false),
            ("**x", "x", true),
            ("*é?", "caféS", true),
            ("dense", "dense_1", false),
        ] {
            assert_eq!(matches(pattern, name), yes, "{pattern} {name}");
        }
    }
}
