//! The reference interpreter: the meaning of the IR. Slow, obvious,
//! deterministic.

use crate::graph::{Def, Graph, PortKind, RegionId, Relation, Value};
use crate::module::{ConstSource, Global, GlobalKind, Module};
use crate::op::OpDef;
use crate::op::{EvalCx, EvalError, Op};
use crate::ops::contract::Decode;
use crate::tensor::Encoder;
use crate::{Binding, NodeId, Tensor};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// State by global name.
pub type State = BTreeMap<Arc<str>, Tensor>;

/// Looks at every node's results as they come up, and may change their elements:
/// what compares two runs node by node, or asks how far rounding carries.
pub type Observer<'a> = dyn FnMut(&Graph, NodeId, &mut [Tensor]) + 'a;

/// Runs functions of a module.
pub struct Interpreter<'m> {
    module: &'m Module,
    constants: RefCell<BTreeMap<Arc<str>, Tensor>>,
    /// The state values; entry points read and write them.
    pub state: State,
}

/// The contents of a source of this type.
pub fn materialize(
    global: &Global,
    source: &ConstSource,
    lookup: &dyn Fn(&str) -> Result<Tensor, EvalError>,
) -> Result<Tensor, EvalError> {
    let fail = |e: crate::tensor::SizeMismatch| EvalError(e.to_string());
    let shape = || {
        global
            .ty
            .const_shape()
            .ok_or_else(|| EvalError("a global's shape must be constant".into()))
    };
    match source {
        ConstSource::Tensor(t) => match Decode::of(&global.ty) {
            None => Ok(t.clone()),
            Some(decode) => {
                let binding = RefCell::new(Binding::new());
                let mut plain = decode.eval(&EvalCx::pure(&binding), &[t])?;
                Ok(plain.remove(0))
            }
        },
        ConstSource::Splat(v) => {
            let shape = shape()?;
            let n = crate::tensor::element_count(&shape)
                .ok_or_else(|| EvalError("a global is too large".into()))?;
            let mut out = Encoder::new(global.ty.dtype, n);
            (0..n).for_each(|_| out.push_f64(*v));
            Tensor::new(global.ty.dtype, shape, out.finish()).map_err(fail)
        }
        ConstSource::Expr { op, args } => {
            let args: Vec<Tensor> = args.iter().map(|a| lookup(a)).collect::<Result<_, _>>()?;
            let refs: Vec<&Tensor> = args.iter().collect();
            let nothing = |_: usize, _: &[Tensor]| {
                Err(EvalError("a constant expression has no regions".into()))
            };
            let no_call = |_: &str, _: &[Tensor]| {
                Err(EvalError("a constant expression calls nothing".into()))
            };
            let cx = EvalCx {
                binding: &RefCell::new(Binding::new()),
                global: lookup,
                region: &nothing,
                region_results: &|_| vec![],
                call: &no_call,
            };
            let mut out = op.def().eval(&cx, &refs)?;
            match out.len() {
                1 => Ok(out.remove(0)),
                n => Err(EvalError(format!("a constant expression has {n} results"))),
            }
        }
    }
}

impl<'m> Interpreter<'m> {
    /// An interpreter with fresh state.
    pub fn new(module: &'m Module) -> Result<Interpreter<'m>, EvalError> {
        let mut it = Interpreter {
            module,
            constants: RefCell::default(),
            state: State::new(),
        };
        for (name, global) in &module.globals {
            if let GlobalKind::State { init, .. } = &global.kind {
                let value = materialize(global, init, &|n| it.constant(n))?;
                it.state.insert(name.clone(), value);
            }
        }
        Ok(it)
    }

    /// A const global's value.
    pub fn constant(&self, name: &str) -> Result<Tensor, EvalError> {
        if let Some(t) = self.constants.borrow().get(name) {
            return Ok(t.clone());
        }
        let global = self
            .module
            .globals
            .get(name)
            .ok_or_else(|| EvalError(format!("there is no global @{name}")))?;
        let GlobalKind::Const(source) = &global.kind else {
            return Err(EvalError(format!("@{name} is state, not a constant")));
        };
        let value = materialize(global, source, &|n| self.constant(n))?;
        if matches!(source, ConstSource::Expr { .. }) {
            self.constants
                .borrow_mut()
                .insert(name.into(), value.clone());
        }
        Ok(value)
    }

    /// Runs a function on the caller's ports, in order; returns the caller's
    /// results and updates the state.
    pub fn run(&mut self, function: &str, inputs: &[Tensor]) -> Result<Vec<Tensor>, EvalError> {
        self.run_observed(function, inputs, &mut |_, _, _| {})
    }

    /// Like [`Interpreter::run`], showing every node's results.
    pub fn run_observed(
        &mut self,
        function: &str,
        inputs: &[Tensor],
        observe: &mut Observer,
    ) -> Result<Vec<Tensor>, EvalError> {
        let graph = self
            .module
            .function(function)
            .ok_or_else(|| EvalError(format!("there is no function @{function}")))?;
        let mut given = inputs.iter();
        let mut args = vec![];
        for port in &graph.params {
            args.push(match &port.kind {
                PortKind::Caller => given
                    .next()
                    .cloned()
                    .ok_or_else(|| EvalError(format!("the input `{}` is missing", port.name)))?,
                PortKind::State(name) => self
                    .state
                    .get(name)
                    .cloned()
                    .ok_or_else(|| EvalError(format!("there is no state @{name}")))?,
            });
        }
        let results = self.call(graph, &args, &RefCell::new(observe))?;
        let mut out = vec![];
        for (port, value) in graph.results.iter().zip(results) {
            match &port.kind {
                PortKind::Caller => out.push(value),
                PortKind::State(name) => drop(self.state.insert(name.clone(), value)),
            }
        }
        Ok(out)
    }

    fn call(
        &self,
        graph: &Graph,
        args: &[Tensor],
        observe: &RefCell<&mut Observer>,
    ) -> Result<Vec<Tensor>, EvalError> {
        let binding = bind(graph, args)?;
        check_guards(graph, &binding)?;
        let frame = Frame {
            graph,
            last_uses: last_uses(graph),
            values: RefCell::default(),
            binding: RefCell::new(binding),
            observe,
        };
        self.region(&frame, Graph::BODY, args)
    }

    fn region(
        &self,
        frame: &Frame,
        region: RegionId,
        args: &[Tensor],
    ) -> Result<Vec<Tensor>, EvalError> {
        let r = frame.graph.region(region);
        if r.params.len() != args.len() {
            return Err(EvalError(format!(
                "{} values for {} parameters",
                args.len(),
                r.params.len()
            )));
        }
        for (&v, t) in r.params.iter().zip(args) {
            frame.values.borrow_mut().insert(v, t.clone());
        }
        for &n in &r.nodes {
            let results = self.node(frame, n)?;
            for (&v, t) in frame.graph.node(n).results.iter().zip(results) {
                frame.values.borrow_mut().insert(v, t);
            }
            for v in frame.last_uses.get(&n).into_iter().flatten() {
                frame.values.borrow_mut().remove(v);
            }
        }
        r.results.iter().map(|v| frame.get(v)).collect()
    }

    fn node(&self, frame: &Frame, n: NodeId) -> Result<Vec<Tensor>, EvalError> {
        let (graph, node) = (frame.graph, frame.graph.node(n));
        let inputs: Vec<Tensor> = node
            .args
            .iter()
            .map(|v| frame.get(v))
            .collect::<Result<_, _>>()?;
        let refs: Vec<&Tensor> = inputs.iter().collect();
        let cx = EvalCx {
            binding: &frame.binding,
            global: &|name| self.constant(name),
            region_results: &|i| {
                let results = &graph.region(node.regions[i]).results;
                results.iter().map(|&v| graph.ty(v).clone()).collect()
            },
            region: &|i, args| self.region(frame, node.regions[i], args),
            call: &|name, args| {
                let callee = self
                    .module
                    .function(name)
                    .ok_or_else(|| EvalError(format!("there is no function @{name}")))?;
                self.call(callee, args, frame.observe)
            },
        };
        let sizes = frame.binding.borrow().len();
        let mut results = match &node.op {
            // A global is decoded where it is read: a host tensor is plain.
            Op::Decode(_) => inputs.clone(),
            op => op
                .def()
                .eval(&cx, &refs)
                .map_err(|e| located(graph, n, e))?,
        };
        if results.len() != node.results.len() {
            let e = EvalError("the number of results is wrong".into());
            return Err(located(graph, n, e));
        }
        if frame.binding.borrow().len() != sizes {
            check_guards(graph, &frame.binding.borrow()).map_err(|e| located(graph, n, e))?;
        }
        for (&v, t) in node.results.iter().zip(&results) {
            self.check(graph, n, v, t, &frame.binding.borrow())?;
        }
        (frame.observe.borrow_mut())(graph, n, &mut results);
        Ok(results)
    }

    /// A result's shape must be what its type says.
    fn check(
        &self,
        graph: &Graph,
        n: NodeId,
        v: Value,
        t: &Tensor,
        binding: &Binding,
    ) -> Result<(), EvalError> {
        let ty = graph.ty(v);
        let fits = ty.dtype == t.dtype()
            && ty.rank() == t.shape().len()
            && ty
                .shape
                .iter()
                .zip(t.shape())
                .all(|(d, &s)| d.eval(binding).map_or(true, |w| w == s as i64));
        if fits {
            return Ok(());
        }
        Err(located(
            graph,
            n,
            EvalError(format!(
                "{v} is {}{:?} where its type is {ty}",
                t.dtype(),
                t.shape()
            )),
        ))
    }
}

/// One call of a function while it runs.
struct Frame<'a, 'o, 'f> {
    graph: &'a Graph,
    last_uses: BTreeMap<NodeId, Vec<Value>>,
    values: RefCell<BTreeMap<Value, Tensor>>,
    binding: RefCell<Binding>,
    observe: &'a RefCell<&'o mut Observer<'f>>,
}

impl Frame<'_, '_, '_> {
    fn get(&self, v: &Value) -> Result<Tensor, EvalError> {
        let found = self.values.borrow().get(v).cloned();
        found.ok_or_else(|| EvalError(format!("{v} is used before it is defined")))
    }
}

/// The values that no one needs after each node. A value of an enclosing region
/// lives as long as the node that owns the region which uses it.
fn last_uses(graph: &Graph) -> BTreeMap<NodeId, Vec<Value>> {
    let order = graph.nodes_in_order();
    let mut last: BTreeMap<Value, NodeId> = BTreeMap::new();
    let mut kept: BTreeSet<Value> = graph.body().results.iter().copied().collect();
    let home = |v: Value| match graph.value(v).def {
        Def::Node(n, _) => graph.node(n).parent,
        Def::Param(r, _) => r,
    };
    let mut used = |v: Value, by: NodeId| {
        let (mut by, home) = (by, home(v));
        while graph.node(by).parent != home {
            match graph.region(graph.node(by).parent).owner {
                Some(owner) => by = owner,
                None => return,
            }
        }
        last.insert(v, by);
    };
    for &n in &order {
        let node = graph.node(n);
        node.results.iter().for_each(|&v| used(v, n));
        node.args.iter().for_each(|&v| used(v, n));
        for &r in &node.regions {
            for &v in &graph.region(r).results {
                // A region's own values leave with it; others it only reads.
                if home(v) == r {
                    kept.insert(v);
                } else {
                    used(v, n);
                }
            }
        }
    }
    let mut out: BTreeMap<NodeId, Vec<Value>> = BTreeMap::new();
    for (v, n) in last {
        if !kept.contains(&v) {
            out.entry(n).or_default().push(v);
        }
    }
    out
}

/// An error with the node's place.
fn located(graph: &Graph, n: NodeId, e: EvalError) -> EvalError {
    let node = graph.node(n);
    let origin = node
        .origins
        .iter()
        .next()
        .map(|o| format!(" ({})", o.node))
        .unwrap_or_default();
    EvalError(format!("{}{origin}: {e}", node.op.def().mnemonic()))
}

/// Sizes from the arguments' shapes.
pub fn bind(graph: &Graph, args: &[Tensor]) -> Result<Binding, EvalError> {
    let mut binding = Binding::new();
    for pass in 0..2 {
        for ((&v, t), port) in graph.body().params.iter().zip(args).zip(&graph.params) {
            let ty = graph.ty(v);
            if ty.dtype != t.dtype() || ty.rank() != t.shape().len() {
                return Err(EvalError(format!(
                    "`{}` is {ty}, not {}{:?}",
                    port.name,
                    t.dtype(),
                    t.shape()
                )));
            }
            for (d, &s) in ty.shape.iter().zip(t.shape()) {
                match (pass, d.as_sym()) {
                    (0, Some(symbol)) => drop(binding.entry(symbol.clone()).or_insert(s as i64)),
                    (0, None) => {}
                    _ => {
                        let want = d.eval(&binding).map_err(|e| EvalError(e.to_string()))?;
                        if want != s as i64 {
                            return Err(EvalError(format!(
                                "`{}`: an extent is {s} where {d} = {want}",
                                port.name
                            )));
                        }
                    }
                }
            }
        }
    }
    Ok(binding)
}

fn check_guards(graph: &Graph, binding: &Binding) -> Result<(), EvalError> {
    for g in &graph.guards {
        // Sizes that come up while running are checked where they come up.
        let (Ok(l), Ok(r)) = (g.left.eval(binding), g.right.eval(binding)) else {
            continue;
        };
        let holds = match g.relation {
            Relation::Eq => l == r,
            Relation::Le => l <= r,
        };
        if !holds {
            return Err(EvalError(format!(
                "{}: {} is {l}, {} is {r}",
                g.because, g.left, g.right
            )));
        }
    }
    Ok(())
}
