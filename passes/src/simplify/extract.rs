//! Which term of each class is taken, and the graph that they make.

use super::cost::of_term;
use super::language::{Data, Terms};
use crate::{PassCx, PassError};
use egg::Id;
use kiln_ir::{Builder, Graph, NodeId, Op, Origins, Value};
use std::collections::{BTreeMap, BTreeSet};

/// A class's best term.
#[derive(Clone, Debug)]
enum Best {
    Leaf(Value),
    Op(Op, Vec<Id>),
}

/// The best term of every class.
pub struct Choice {
    best: BTreeMap<Id, (f64, Best)>,
}

/// The term of each class whose tree costs least. Trees count shared parts twice,
/// so what is chosen is costed once more as a DAG before it is taken.
pub fn cheapest(terms: &Terms) -> Choice {
    // What a term costs alone does not change from round to round: it is size
    // arithmetic, 90 % of the pass where it was done in every round.
    let rows: Vec<Row> = terms
        .classes()
        .into_iter()
        .map(|class| Row {
            class,
            leaf: terms.leaves(class).min(),
            terms: terms
                .terms(class)
                .map(|(op, args)| {
                    let data: Vec<&Data> = args.iter().map(|&a| terms.data(a)).collect();
                    let own = of_term(op, &data, terms.data(class));
                    (own, op, args.iter().map(|&a| terms.find(a)).collect())
                })
                .collect(),
        })
        .collect();
    let mut best: BTreeMap<Id, (f64, Best)> = BTreeMap::new();
    // Costs only fall, and every round but the last lowers one: it ends.
    loop {
        let mut changed = false;
        for row in &rows {
            let current = best.get(&row.class).map_or(f64::INFINITY, |b| b.0);
            let mut lowest = (current, None);
            if let Some(v) = row.leaf.filter(|_| current > 0.0) {
                lowest = (0.0, Some(Best::Leaf(v)));
            }
            for (own, op, args) in &row.terms {
                let below = args.iter().map(|a| best.get(a).map(|b| b.0));
                let Some(below): Option<f64> = below.sum() else {
                    continue;
                };
                if below + own < lowest.0 {
                    let term = Best::Op((*op).clone(), args.clone());
                    lowest = (below + own, Some(term));
                }
            }
            if let (cost, Some(term)) = lowest {
                best.insert(row.class, (cost, term));
                changed = true;
            }
        }
        if !changed {
            return Choice { best };
        }
    }
}

/// A class: a value that stands, if there is one, and its terms with what each costs
/// alone.
struct Row<'t> {
    class: Id,
    leaf: Option<Value>,
    terms: Vec<(f64, &'t Op, Vec<Id>)>,
}

impl Choice {
    /// Nanoseconds of the roots' terms as a DAG.
    pub fn cost_of(&self, terms: &Terms, roots: &[Value]) -> f64 {
        let mut seen: BTreeSet<Id> = BTreeSet::new();
        let mut stack: Vec<Id> = roots.iter().filter_map(|&v| terms.class_of(v)).collect();
        let mut sum = 0.0;
        while let Some(class) = stack.pop() {
            if !seen.insert(class) {
                continue;
            }
            if let Some((_, Best::Op(op, args))) = self.best.get(&class) {
                let data: Vec<&Data> = args.iter().map(|&a| terms.data(a)).collect();
                sum += of_term(op, &data, terms.data(class));
                stack.extend(args.iter().map(|&a| terms.find(a)));
            }
        }
        sum
    }

    /// Builds the chosen terms before the roots that need them, and leaves what
    /// stands already; answers what replaces which root. The window is in program
    /// order.
    pub fn build(
        &self,
        cx: &mut PassCx,
        graph: &mut Graph,
        terms: &Terms,
        window: &[NodeId],
        roots: &[Value],
    ) -> Result<BTreeMap<Value, Value>, PassError> {
        let mut standing: BTreeMap<Id, Vec<(usize, NodeId)>> = BTreeMap::new();
        for (place, &n) in window.iter().enumerate() {
            if let Some(class) = terms.class_of(graph.node(n).results[0]) {
                standing.entry(class).or_default().push((place, n));
            }
        }
        let place: BTreeMap<NodeId, usize> = (window.iter().copied()).zip(0..).collect();
        let mut built: BTreeMap<Id, Value> = BTreeMap::new();
        let mut replaced = BTreeMap::new();
        for &root in roots {
            let (Some(class), Some((at, _))) = (terms.class_of(root), graph.producer(root)) else {
                continue;
            };
            let origins = self.origins(graph, terms, class, at, &place);
            let mut maker = Maker {
                choice: self,
                terms,
                standing: &standing,
                before: place.get(&at).copied().unwrap_or(0),
                b: Builder::before(graph, cx.globals, at),
                root: origins,
                built: &mut built,
            };
            let v = maker.make(class)?;
            if v != root {
                replaced.insert(root, v);
            }
        }
        Ok(replaced)
    }

    /// Builds the chosen term of one class.
    #[cfg(test)]
    pub fn build_one(&self, b: &mut Builder, terms: &Terms, class: Id) -> Result<Value, PassError> {
        let mut stack = vec![(terms.find(class), false)];
        let mut built: BTreeMap<Id, Value> = BTreeMap::new();
        while let Some((class, ready)) = stack.pop() {
            match &self.best[&class].1 {
                Best::Leaf(v) => drop(built.insert(class, *v)),
                Best::Op(op, args) if ready => {
                    let args: Vec<Value> = args.iter().map(|&a| built[&terms.find(a)]).collect();
                    built.insert(class, b.one(op.clone(), &args)?);
                }
                Best::Op(_, args) => {
                    stack.push((class, true));
                    stack.extend(args.iter().map(|&a| (terms.find(a), false)));
                }
            }
        }
        Ok(built[&terms.find(class)])
    }

    /// Where a root's new nodes stem from: the root, and what went into it and is
    /// no longer computed.
    fn origins(
        &self,
        graph: &Graph,
        terms: &Terms,
        root: Id,
        at: NodeId,
        window: &BTreeMap<NodeId, usize>,
    ) -> Origins {
        let mut kept: BTreeSet<Id> = BTreeSet::new();
        let mut stack = vec![root];
        while let Some(class) = stack.pop() {
            if let Some((_, Best::Op(_, args))) = self.best.get(&class) {
                let new = args.iter().map(|&a| terms.find(a));
                stack.extend(new.filter(|&a| kept.insert(a)));
            }
        }
        let mut origins = Origins::new();
        let mut seen: BTreeSet<NodeId> = [at].into();
        let mut stack = vec![at];
        while let Some(n) = stack.pop() {
            let node = graph.node(n);
            origins.extend(node.origins.iter().cloned());
            for &v in &node.args {
                let gone = terms.class_of(v).is_some_and(|c| !kept.contains(&c));
                if let (Some((p, _)), true) = (graph.producer(v), gone)
                    && window.contains_key(&p)
                    && seen.insert(p)
                {
                    stack.push(p);
                }
            }
        }
        origins
    }
}

struct Maker<'a, 'b> {
    choice: &'a Choice,
    terms: &'a Terms,
    /// The window's nodes of each class, with their places.
    standing: &'a BTreeMap<Id, Vec<(usize, NodeId)>>,
    /// The root's place: what stands up to it may be read.
    before: usize,
    b: Builder<'b>,
    /// Origins of the root and of what it takes over.
    root: Origins,
    built: &'a mut BTreeMap<Id, Value>,
}

impl Maker<'_, '_> {
    fn make(&mut self, class: Id) -> Result<Value, PassError> {
        let class = self.terms.find(class);
        if let Some(&v) = self.built.get(&class) {
            return Ok(v);
        }
        let v = match self.choice.best.get(&class).map(|b| b.1.clone()) {
            Some(Best::Leaf(v)) => v,
            Some(Best::Op(op, args)) => {
                let args: Vec<Value> = args
                    .into_iter()
                    .map(|a| self.make(a))
                    .collect::<Result<_, _>>()?;
                self.node(class, op, &args)?
            }
            None => {
                let message = "a class without a term".to_string();
                return Err(PassError::from(kiln_ir::TypeError(message)));
            }
        };
        self.built.insert(class, v);
        Ok(v)
    }

    /// The node with this op and these arguments: one that stands, or a new one.
    fn node(&mut self, class: Id, op: Op, args: &[Value]) -> Result<Value, PassError> {
        let mut origins = Origins::new();
        for &(place, n) in self.standing.get(&class).into_iter().flatten() {
            let node = self.b.graph.node(n);
            if place <= self.before && node.op == op && node.args == args {
                return Ok(node.results[0]);
            }
            origins.extend(node.origins.iter().cloned());
        }
        if origins.is_empty() {
            origins.extend(self.root.iter().cloned());
        }
        self.b.origins = origins;
        Ok(self.b.one(op, args)?)
    }
}
