//! The term language: the IR's own ops over classes of equal values, and the
//! analysis of a class (type, constness, the number it is full of).

use crate::canonicalize::splat;
use crate::fold_constants::folds;
use egg::{Analysis, DidMerge, EGraph, Id, Language};
use kiln_ir::op::Arg;
use kiln_ir::{DType, Dim, Globals, Graph, InferCx, NodeId, Op, TensorType, Value};
use std::collections::BTreeMap;

/// One term: a leaf (a value from outside), or an op over classes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Term {
    /// Which op, or which leaf.
    pub head: Head,
    args: Vec<Id>,
}

/// What stands at a term's top: indices into [`Facts`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Head {
    /// A value of the graph.
    Leaf(u32),
    /// An op.
    Op(u32),
}

impl Language for Term {
    type Discriminant = Head;

    fn discriminant(&self) -> Head {
        self.head
    }

    fn matches(&self, other: &Term) -> bool {
        self.head == other.head && self.args.len() == other.args.len()
    }

    fn children(&self) -> &[Id] {
        &self.args
    }

    fn children_mut(&mut self) -> &mut [Id] {
        &mut self.args
    }
}

/// What holds for every term of a class.
#[derive(Clone, Debug)]
pub struct Data {
    /// The type.
    pub ty: TensorType,
    /// Computed when the model is compiled.
    pub constant: bool,
    /// The one number that it is full of, if that is known.
    pub full_of: Option<f64>,
}

/// The analysis: the ops and leaves that terms refer to.
#[derive(Default)]
pub struct Facts {
    ops: Vec<Op>,
    numbers: BTreeMap<String, u32>,
    leaves: Vec<(Value, Data)>,
}

impl Facts {
    fn intern(&mut self, op: &Op) -> u32 {
        // The text form with all attributes: equal text, equal op.
        let key = format!("{op:?}");
        if let Some(&i) = self.numbers.get(&key) {
            return i;
        }
        let i = self.ops.len() as u32;
        self.ops.push(op.clone());
        self.numbers.insert(key, i);
        i
    }
}

/// A term's data from its arguments', or none if it does not type, or types only
/// under a condition that the graph does not state.
fn infer(op: &Op, args: &[&Data]) -> Option<Data> {
    let globals = Globals::new();
    let mut cx = InferCx {
        globals: &globals,
        regions: vec![],
        callee: &kiln_ir::builder::no_callee,
        guards: vec![],
    };
    let views: Vec<Arg> = args
        .iter()
        .map(|d| Arg {
            ty: &d.ty,
            known: None,
        })
        .collect();
    let mut results = op.def().infer(&mut cx, &views).ok()?;
    let (Some(result), true, true) = (results.pop(), results.is_empty(), cx.guards.is_empty())
    else {
        return None;
    };
    let ty = result.ty;
    let full_of = match op {
        Op::Constant(c) if !c.value.is_empty() => {
            let first = c.value.get_f64(0);
            let same = (0..c.value.len()).all(|i| c.value.get_f64(i) == first);
            same.then_some(first)
        }
        Op::Broadcast(_) | Op::Reshape(_) | Op::Transpose(_) => args[0].full_of,
        _ => None,
    };
    let types: Vec<&TensorType> = args.iter().map(|d| &d.ty).collect();
    let constant = args.iter().all(|d| d.constant) && folds(op, &types, &ty);
    Some(Data {
        ty,
        constant,
        full_of,
    })
}

impl Analysis<Term> for Facts {
    type Data = Data;

    fn make(graph: &mut EGraph<Term, Facts>, term: &Term, _: Id) -> Data {
        match term.head {
            Head::Leaf(i) => graph.analysis.leaves[i as usize].1.clone(),
            Head::Op(i) => {
                let args: Vec<&Data> = term.args.iter().map(|&a| &graph[a].data).collect();
                let data = infer(&graph.analysis.ops[i as usize], &args);
                // `Terms::add` types a term before it comes here.
                data.unwrap_or(Data {
                    ty: TensorType::new(DType::F32, Vec::<Dim>::new()),
                    constant: false,
                    full_of: None,
                })
            }
        }
    }

    fn merge(&mut self, to: &mut Data, from: Data) -> DidMerge {
        let constant = to.constant || from.constant;
        let full_of = to.full_of.or(from.full_of);
        let left = (constant, full_of) != (to.constant, to.full_of);
        let right = (constant, full_of) != (from.constant, from.full_of);
        (to.constant, to.full_of) = (constant, full_of);
        DidMerge(left, right)
    }
}

/// A term to be added: what rules answer with.
#[derive(Clone, Debug)]
pub enum Tree {
    /// A class that is there.
    Class(Id),
    /// An op over terms.
    Node(Op, Vec<Tree>),
}

impl Tree {
    /// An op over classes.
    pub fn over(op: impl Into<Op>, args: impl IntoIterator<Item = Id>) -> Tree {
        Tree::Node(op.into(), args.into_iter().map(Tree::Class).collect())
    }

    /// An op over terms.
    pub fn node(op: impl Into<Op>, args: impl IntoIterator<Item = Tree>) -> Tree {
        Tree::Node(op.into(), args.into_iter().collect())
    }
}

/// The terms of a window and all that equal them.
pub struct Terms {
    graph: EGraph<Term, Facts>,
    classes: BTreeMap<Value, Id>,
}

impl Terms {
    /// The window's nodes as terms, and those that are.
    pub fn of(graph: &Graph, globals: &Globals, window: &[NodeId]) -> (Terms, Vec<NodeId>) {
        let mut typed = vec![];
        let mut terms = Terms {
            graph: EGraph::new(Facts::default()),
            classes: BTreeMap::new(),
        };
        for &n in window {
            let node = graph.node(n);
            let args: Vec<Id> = (node.args.iter())
                .map(|&v| terms.leaf(graph, globals, v))
                .collect();
            let class = terms.add(&node.op, &args);
            // What does not type alone (by a guard of the graph) is a leaf.
            let same = |c: &Id| terms.graph[*c].data.ty == *graph.ty(node.results[0]);
            match class.filter(same) {
                Some(c) => {
                    terms.classes.insert(node.results[0], c);
                    typed.push(n);
                }
                None => drop(terms.leaf(graph, globals, node.results[0])),
            }
        }
        terms.rebuild();
        (terms, typed)
    }

    fn leaf(&mut self, graph: &Graph, globals: &Globals, v: Value) -> Id {
        if let Some(&id) = self.classes.get(&v) {
            return id;
        }
        let constant = match graph.producer_op(v) {
            Some((Op::Constant(_), _)) => true,
            Some((Op::Global(g), _)) => {
                let kind = globals.get(&g.name).map(|g| &g.kind);
                matches!(kind, Some(kiln_ir::GlobalKind::Const(_)))
                    && graph.ty(v).encoding.is_none()
            }
            _ => false,
        };
        let data = Data {
            ty: graph.ty(v).clone(),
            constant,
            full_of: splat(graph, v),
        };
        let number = self.graph.analysis.leaves.len() as u32;
        self.graph.analysis.leaves.push((v, data));
        let id = self.graph.add(Term {
            head: Head::Leaf(number),
            args: vec![],
        });
        self.classes.insert(v, id);
        id
    }

    fn add(&mut self, op: &Op, args: &[Id]) -> Option<Id> {
        let data: Vec<&Data> = args.iter().map(|&a| &self.graph[a].data).collect();
        infer(op, &data)?;
        let head = Head::Op(self.graph.analysis.intern(op));
        Some(self.graph.add(Term {
            head,
            args: args.to_vec(),
        }))
    }

    fn add_tree(&mut self, tree: &Tree) -> Option<Id> {
        match tree {
            Tree::Class(id) => Some(self.graph.find(*id)),
            Tree::Node(op, args) => {
                let args: Option<Vec<Id>> = args.iter().map(|t| self.add_tree(t)).collect();
                self.add(op, &args?)
            }
        }
    }

    /// States that a term equals a class; answers whether that is new.
    pub fn equate(&mut self, class: Id, tree: &Tree) -> bool {
        let Some(id) = self.add_tree(tree) else {
            return false;
        };
        let (a, b) = (&self.graph[class].data.ty, &self.graph[id].data.ty);
        a == b && self.graph.union(class, id)
    }

    /// Restores the e-graph's invariants after terms were equated.
    pub fn rebuild(&mut self) {
        self.graph.rebuild();
    }

    /// How many terms there are.
    pub fn size(&self) -> usize {
        self.graph.total_size()
    }

    /// The class of a term.
    pub fn find(&self, id: Id) -> Id {
        self.graph.find(id)
    }

    /// The class of a value.
    pub fn class_of(&self, v: Value) -> Option<Id> {
        self.classes.get(&v).map(|&id| self.graph.find(id))
    }

    /// What is known of a class.
    pub fn data(&self, class: Id) -> &Data {
        &self.graph[class].data
    }

    /// The terms of a class whose head is an op.
    pub fn terms(&self, class: Id) -> impl Iterator<Item = (&Op, &[Id])> {
        self.graph[class].nodes.iter().filter_map(|t| match t.head {
            Head::Op(i) => Some((&self.graph.analysis.ops[i as usize], &t.args[..])),
            Head::Leaf(_) => None,
        })
    }

    /// The graph's values that a class stands for as they are.
    pub fn leaves(&self, class: Id) -> impl Iterator<Item = Value> {
        self.graph[class].nodes.iter().filter_map(|t| match t.head {
            Head::Leaf(i) => Some(self.graph.analysis.leaves[i as usize].0),
            Head::Op(_) => None,
        })
    }

    /// Every class, in a fixed order.
    pub fn classes(&self) -> Vec<Id> {
        let mut ids: Vec<Id> = self.graph.classes().map(|c| c.id).collect();
        ids.sort();
        ids
    }

    /// Every term with an op, in a fixed order.
    pub fn all(&self) -> Vec<(Id, &Op, &[Id])> {
        let classes = self.classes().into_iter();
        let terms = classes.flat_map(|c| self.terms(c).map(move |(op, args)| (c, op, args)));
        terms.collect()
    }
}
