//! What follows from a composite's expansion: its types, its meaning, its axes
//! and, where nothing better is written, its gradient.

use crate::builder::Builder;
use crate::graph::{Graph, PortKind, Value};
use crate::module::Globals;
use crate::op::*;
use crate::ops::composite::Composite;
use crate::{ReduceFn, Tensor, TensorType};
use std::collections::BTreeMap;

/// The expansion alone in a graph, over arguments of these types.
struct Scratch {
    graph: Graph,
    args: Vec<Value>,
    results: Vec<Value>,
}

fn scratch<C: Composite>(op: &C, globals: &Globals, args: &[Arg]) -> Result<Scratch, TypeError> {
    let types: Vec<&TensorType> = args.iter().map(|a| a.ty).collect();
    types.iter().try_for_each(|t| super::util::plain(t))?;
    op.check(&types)?;
    let mut graph = Graph::new(C::MNEMONIC);
    let mut values = vec![];
    for (i, arg) in args.iter().enumerate() {
        let v = graph.add_param(format!("a{i}"), PortKind::Caller, arg.ty.clone());
        graph.value_mut(v).known = arg.known.cloned().map(std::sync::Arc::new);
        values.push(v);
    }
    let mut b = Builder::at_end(&mut graph, globals, Graph::BODY);
    let results = Composite::expand(op, &mut b, &values)?;
    Ok(Scratch {
        graph,
        args: values,
        results,
    })
}

impl<C: Composite> OpDef for C {
    fn mnemonic(&self) -> &'static str {
        C::MNEMONIC
    }

    fn infer(&self, cx: &mut InferCx, args: &[Arg]) -> Result<Vec<Inferred>, TypeError> {
        let s = scratch(self, cx.globals, args)?;
        cx.guards.extend(s.graph.guards.iter().cloned());
        let result = |v: &Value| Inferred {
            ty: s.graph.ty(*v).clone(),
            known: s.graph.known(*v).cloned(),
        };
        Ok(s.results.iter().map(result).collect())
    }

    fn axes(&self, args: &[&TensorType]) -> AxisMap {
        let views: Vec<Arg> = args.iter().map(|ty| Arg { ty, known: None }).collect();
        match scratch(self, &Globals::new(), &views) {
            Ok(s) => axes_of(&s),
            Err(_) => AxisMap::Whole {
                because: "the composite does not type",
            },
        }
    }

    fn eval(&self, cx: &EvalCx, args: &[&Tensor]) -> Result<Vec<Tensor>, EvalError> {
        let types: Vec<TensorType> = args.iter().map(|t| t.ty()).collect();
        let views: Vec<Arg> = types.iter().map(|ty| Arg { ty, known: None }).collect();
        let s = scratch(self, &Globals::new(), &views)
            .map_err(|e| EvalError(format!("{}: {e}", C::MNEMONIC)))?;
        let mut values: BTreeMap<Value, Tensor> = BTreeMap::new();
        for (&v, &t) in s.args.iter().zip(args) {
            values.insert(v, t.clone());
        }
        for n in s.graph.nodes_in_order() {
            let node = s.graph.node(n);
            let inputs: Vec<&Tensor> = node.args.iter().map(|v| &values[v]).collect();
            let outputs = node.op.def().eval(cx, &inputs)?;
            values.extend(node.results.iter().copied().zip(outputs));
        }
        Ok(s.results.iter().map(|v| values[v].clone()).collect())
    }

    fn grad(&self, b: &mut Builder, io: Io<'_>, d: &[Value]) -> Result<Grad, TypeError> {
        Composite::grad(self, b, io, d)
    }

    fn attrs(&self) -> Attrs {
        Composite::attrs(self)
    }

    fn donates(&self) -> &'static [usize] {
        C::DONATES
    }

    fn expand(&self, b: &mut Builder, args: &[Value]) -> Result<Option<Vec<Value>>, TypeError> {
        Composite::expand(self, b, args).map(Some)
    }
}

/// Sets of axes that must be cut alike, with those that may not be cut at all.
#[derive(Default)]
struct Classes {
    parent: Vec<usize>,
    whole: Vec<bool>,
    reduced: Vec<Option<ReduceFn>>,
}

impl Classes {
    fn fresh(&mut self) -> usize {
        self.parent.push(self.parent.len());
        self.whole.push(false);
        self.reduced.push(None);
        self.parent.len() - 1
    }

    fn root(&self, mut c: usize) -> usize {
        while self.parent[c] != c {
            c = self.parent[c];
        }
        c
    }

    fn join(&mut self, a: usize, b: usize) {
        let (a, b) = (self.root(a), self.root(b));
        if a != b {
            self.parent[b] = a;
            self.whole[a] |= self.whole[b];
            self.reduced[a] = self.reduced[a].or(self.reduced[b]);
        }
    }

    fn keep_whole(&mut self, c: usize) {
        let c = self.root(c);
        self.whole[c] = true;
    }
}

/// Follows the labels of the expansion's nodes: an axis may be cut if every node
/// that it reaches may be cut along it. A reduction over parts combines only
/// where nothing follows it.
fn axes_of(s: &Scratch) -> AxisMap {
    let mut classes = Classes::default();
    let mut axes: BTreeMap<Value, Vec<usize>> = BTreeMap::new();
    let rank = |v: Value| s.graph.ty(v).rank();
    for &v in &s.args {
        axes.insert(v, (0..rank(v)).map(|_| classes.fresh()).collect());
    }
    for n in s.graph.nodes_in_order() {
        let node = s.graph.node(n);
        let types: Vec<&TensorType> = node.args.iter().map(|&v| s.graph.ty(v)).collect();
        for &r in &node.results {
            axes.insert(r, (0..rank(r)).map(|_| classes.fresh()).collect());
        }
        let AxisMap::Labels {
            args,
            results,
            reduce,
        } = node.op.def().axes(&types)
        else {
            let all = node.args.iter().chain(&node.results).flat_map(|v| &axes[v]);
            all.for_each(|&c| classes.keep_whole(c));
            continue;
        };
        let mut labelled: BTreeMap<u8, usize> = BTreeMap::new();
        let slots = node
            .args
            .iter()
            .zip(&args)
            .chain(node.results.iter().zip(&results));
        for (v, labels) in slots {
            for (i, label) in labels.iter().enumerate() {
                let class = axes[v][i];
                match label {
                    Some(l) => classes.join(*labelled.entry(*l).or_insert(class), class),
                    // An extent of 1 that broadcasts is cut by no one.
                    None if s.graph.shape(*v)[i].as_const() == Some(1) => {}
                    None => classes.keep_whole(class),
                }
            }
        }
        let last = node.results == s.results;
        for (l, class) in labelled {
            if results.iter().any(|r| r.contains(&Some(l))) {
                continue;
            }
            let root = classes.root(class);
            match reduce {
                Some(f) if last && classes.reduced[root].is_none() => {
                    classes.reduced[root] = Some(f)
                }
                _ => classes.whole[root] = true,
            }
        }
    }
    // An axis that no result has and no reduction combines cannot be cut.
    let kept: Vec<usize> = s
        .results
        .iter()
        .flat_map(|v| &axes[v])
        .map(|&c| classes.root(c))
        .collect();
    for c in 0..classes.parent.len() {
        classes.whole[c] |=
            classes.root(c) == c && !kept.contains(&c) && classes.reduced[c].is_none();
    }
    labels_of(s, &classes, &axes)
}

/// Numbers the classes that reach an argument's axis and may be cut.
fn labels_of(s: &Scratch, classes: &Classes, axes: &BTreeMap<Value, Vec<usize>>) -> AxisMap {
    let mut numbers: BTreeMap<usize, u8> = BTreeMap::new();
    let mut reduce = None;
    for v in &s.args {
        for (i, &c) in axes[v].iter().enumerate() {
            let root = classes.root(c);
            if !classes.whole[root] && s.graph.shape(*v)[i].as_const() != Some(1) {
                let next = numbers.len() as u8;
                numbers.entry(root).or_insert(next);
                reduce = reduce.or(classes.reduced[root]);
            }
        }
    }
    let label = |v: &Value| -> Vec<Option<u8>> {
        let one = |i: usize| s.graph.shape(*v)[i].as_const() == Some(1);
        (axes[v].iter().enumerate())
            .map(|(i, &c)| numbers.get(&classes.root(c)).copied().filter(|_| !one(i)))
            .collect()
    };
    AxisMap::Labels {
        args: s.args.iter().map(label).collect(),
        results: s.results.iter().map(label).collect(),
        reduce,
    }
}
