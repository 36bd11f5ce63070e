//! The walk over the nodes.

use super::constants::{self, Const, Constants, Key};
use super::cx::{Cx, Fail, Items};
use super::files::Files;
use super::item::Item;
use super::scope::{Bound, Env, Scope, domain, initializer_names, node_name, opsets};
use super::table::{self, Convert};
use super::{ImportOptions, order, shapes, sweep};
use crate::diagnostic::{Diagnostic, code};
use kiln_ir::graph::{Origin, Origins, Value};
use kiln_ir::{Builder, Globals, Graph, Module};
use onnx_protobuf::{FunctionProto, GraphProto, ModelProto, NodeProto};
use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

/// Opsets from before this one are not read.
const OLDEST_OPSET: i64 = 6;
/// Operators that mean the same from opset 1 to the oldest that is read.
const SINCE_THE_FIRST: &[&str] = &[
    "And",
    "Equal",
    "Flatten",
    "GlobalAveragePool",
    "GlobalMaxPool",
    "Greater",
    "Identity",
    "Less",
    "MatMul",
    "Not",
    "Or",
    "Shape",
    "Size",
    "Softplus",
    "Softsign",
    "Transpose",
    "Xor",
];
/// Newer opsets may change meanings that this importer does not know.
const NEWEST_OPSET: i64 = 28;
/// Nodes in all, functions inlined: functions that call each other twice grow
/// exponentially.
const MAX_NODES: usize = 2_000_000;
/// Things said about one model.
const MAX_DIAGNOSTICS: usize = 10_000;

/// A model on its way into a module.
pub(crate) struct Importer<'m> {
    file: Arc<str>,
    pub(crate) model: &'m ModelProto,
    pub(crate) options: &'m ImportOptions,
    constants: HashMap<Key, Const>,
    globals: Globals,
    /// The sizes that the caller's inputs decide.
    pub(crate) sizes: BTreeSet<Arc<str>>,
    /// The sizes that loops carry from step to step.
    pub(crate) carried: BTreeSet<Arc<str>>,
    diagnostics: Vec<Diagnostic>,
    functions: HashMap<(&'m str, &'m str, &'m str), &'m FunctionProto>,
    nodes: usize,
}

impl<'m> Importer<'m> {
    pub(crate) fn new(
        file: &str,
        model: &'m ModelProto,
        mut files: Files,
        options: &'m ImportOptions,
    ) -> Importer<'m> {
        let Constants {
            by_key,
            globals,
            diagnostics,
        } = constants::load_all(file, model, &mut files, options.check_finite);
        let functions = model
            .functions
            .iter()
            .map(|f| ((domain(&f.domain), &*f.name, &*f.overload), f))
            .collect();
        Importer {
            file: file.into(),
            model,
            options,
            constants: by_key,
            globals,
            sizes: BTreeSet::new(),
            carried: BTreeSet::new(),
            diagnostics,
            functions,
            nodes: 0,
        }
    }

    /// The whole walk; the module is whole if no diagnostic is an error.
    pub(crate) fn run(mut self) -> (Module, Vec<Diagnostic>) {
        let env = Env {
            opsets: opsets(&self.model.opset_import),
            given: HashMap::new(),
            prefix: String::new(),
            stack: vec![],
            depth: 0,
        };
        if let Some(&version) = env.opsets.get("")
            && version > NEWEST_OPSET
        {
            let message = format!("opset {version} is newer than {NEWEST_OPSET}, the newest known");
            let d = Diagnostic::warning(code::OPSET, message)
                .help("operators that changed since then may be misread: compare results with `kiln verify`");
            self.say(d, "");
        }
        let mut graph = Graph::new("forward");
        let globals = std::mem::take(&mut self.globals);
        {
            let mut b = Builder::at_end(&mut graph, &globals, Graph::BODY);
            self.forward(&mut b, &env);
        }
        sweep::sweep(&mut graph);
        let used: HashSet<Arc<str>> = graph
            .nodes_in_order()
            .into_iter()
            .filter_map(|n| match &graph.node(n).op {
                kiln_ir::Op::Global(g) => Some(g.name.clone()),
                _ => None,
            })
            .collect();
        let mut module = Module {
            globals,
            functions: vec![graph],
            meta: self.meta(),
        };
        module.globals.retain(|name, _| used.contains(name));
        self.diagnostics
            .sort_by_key(|d| std::cmp::Reverse(d.severity));
        (module, self.diagnostics)
    }

    fn meta(&self) -> std::collections::BTreeMap<String, String> {
        let m = self.model;
        let mut meta: std::collections::BTreeMap<String, String> = [
            ("format", "onnx".to_string()),
            ("ir_version", m.ir_version.to_string()),
            (
                "producer",
                format!("{} {}", m.producer_name, m.producer_version),
            ),
            ("graph", m.graph.name.clone()),
        ]
        .into_iter()
        .map(|(k, v)| (k.to_string(), v.trim().to_string()))
        .collect();
        for o in &m.opset_import {
            let domain = if o.domain.is_empty() {
                "ai.onnx"
            } else {
                &o.domain
            };
            meta.insert(format!("opset.{domain}"), o.version.to_string());
        }
        meta
    }

    /// A constant that was loaded before the walk.
    pub(crate) fn constant(&self, key: Key) -> Result<Const, Fail> {
        match self.constants.get(&key) {
            Some(Const::Failed) | None => Err(Fail::reported()),
            Some(c) => Ok(c.clone()),
        }
    }

    /// How much was said so far, for [`Importer::unsay`].
    pub(crate) fn said(&self) -> usize {
        self.diagnostics.len()
    }

    /// Takes back what an attempt said that is made again.
    pub(crate) fn unsay(&mut self, said: usize) -> Vec<Diagnostic> {
        self.diagnostics.split_off(said)
    }

    /// Says after all what was taken back.
    pub(crate) fn say_all(&mut self, said: Vec<Diagnostic>) {
        self.diagnostics.extend(said);
    }

    pub(crate) fn initializers(
        &mut self,
        b: &mut Builder,
        scope: &mut Scope<'_, 'm>,
        graph: &'m GraphProto,
    ) {
        let dense = graph.initializer.iter().map(|t| (&t.name, Key::from(t)));
        let sparse = graph
            .sparse_initializer
            .iter()
            .map(|t| (&t.values.name, Key::from(t)));
        for (name, key) in dense.chain(sparse) {
            b.origins = self.origin(name);
            let value = match self.constant(key) {
                Ok(Const::Inline(t)) => b.constant(t).ok(),
                Ok(Const::Global(g)) => b.global(g).ok(),
                Ok(Const::Failed) | Err(_) => None,
            };
            self.name(b, value, name);
            self.define(scope, name, value.map(Item::Tensor));
        }
    }

    fn origin(&self, node: &str) -> Origins {
        [Origin {
            file: self.file.clone(),
            node: node.into(),
        }]
        .into()
    }

    fn name(&self, b: &mut Builder, value: Option<Value>, name: &str) {
        if let Some(v) = value {
            let slot = &mut b.graph.value_mut(v).name;
            if slot.is_none() {
                *slot = Some(name.into());
            }
        }
    }

    pub(crate) fn define(&mut self, scope: &mut Scope<'_, 'm>, name: &'m str, item: Option<Item>) {
        let bound = item.map_or(Bound::Reported, Bound::Item);
        if scope.values.insert(name, bound).is_some() {
            let message = format!("`{name}` is defined twice");
            let d = Diagnostic::error(code::DUPLICATE, message)
                .help("every value of an ONNX graph has one definition: export the model again");
            self.say(d, name);
        }
    }

    pub(crate) fn result(&self, scope: &Scope<'_, 'm>, name: &str) -> Result<Item, Fail> {
        match scope.find(name) {
            Some(Bound::Item(item)) => Ok(item),
            Some(Bound::Reported) => Err(Fail::reported()),
            Some(Bound::Absent) => Err(Fail::invalid("an output is an input that was left out")),
            None => Err(Fail::new(
                code::UNDEFINED,
                format!("nothing defines the output `{name}`"),
            )
            .help("the graph is incomplete: export the model again")),
        }
    }

    /// Converts nodes in an order that respects their dependencies.
    pub(crate) fn nodes(
        &mut self,
        b: &mut Builder,
        scope: &mut Scope<'_, 'm>,
        nodes: &'m [NodeProto],
        env: &Env<'m>,
    ) {
        match order::sort(nodes) {
            Ok(order) => {
                for i in order {
                    self.node(b, scope, &nodes[i], env);
                }
            }
            Err(cycle) => {
                let node = &nodes[cycle.node];
                let name = node_name(node, &env.prefix);
                let fail = Fail::new(code::CYCLE, "the node depends on its own result").help(
                    "an ONNX graph has no cycles: use Loop or Scan, or export the model again",
                );
                self.fail(fail, &name, &node.op_type, 0);
                // What the graph yields counts as reported.
                for output in nodes.iter().flat_map(|n| &n.output) {
                    scope.values.insert(output, Bound::Reported);
                }
            }
        }
    }

    fn node(
        &mut self,
        b: &mut Builder,
        scope: &mut Scope<'_, 'm>,
        node: &'m NodeProto,
        env: &Env<'m>,
    ) {
        let name = node_name(node, &env.prefix);
        let in_domain = domain(&node.domain);
        let opset = env.opsets.get(in_domain).copied().unwrap_or(0);
        let shown = match in_domain {
            "" => node.op_type.clone(),
            d => format!("{d}.{}", node.op_type),
        };
        let converted = self.results(b, scope, node, env, &name, opset);
        let mut results: Vec<Option<Item>> = match converted {
            Ok(results) => results.into_iter().map(Some).collect(),
            Err(e) => {
                self.fail(e, &name, &shown, opset);
                vec![None; node.output.len()]
            }
        };
        for (i, output) in node.output.iter().enumerate() {
            if output.is_empty() {
                continue;
            }
            let item = match results.get_mut(i) {
                Some(item) => item.take(),
                None => {
                    let e = Fail::form(format!("result {i} of the operator is not supported"));
                    self.fail(e, &name, &shown, opset);
                    None
                }
            };
            if let Some(Item::Tensor(v)) = item {
                self.name(b, Some(v), output);
            }
            self.define(scope, output, item);
        }
    }

    /// The node's results, known sizes made plain.
    fn results(
        &mut self,
        b: &mut Builder,
        scope: &Scope<'_, 'm>,
        node: &'m NodeProto,
        env: &Env<'m>,
        name: &str,
        opset: i64,
    ) -> Items {
        self.nodes += 1;
        if self.nodes > MAX_NODES {
            return Err(Fail::new(
                code::LIMIT,
                format!("the model has more than {MAX_NODES} nodes, functions inlined"),
            ));
        }
        let in_domain = domain(&node.domain);
        let function = self
            .functions
            .get(&(in_domain, &*node.op_type, &*node.overload))
            .copied();
        let row = table::find(in_domain, &node.op_type);
        if function.is_none() {
            self.supported(in_domain, node, row, opset)?;
        }
        let Some(items) = arguments(scope, node)? else {
            self.scan_inner(node, env);
            return Err(Fail::reported());
        };
        b.origins = self.origin(name);
        let results = match (function, row) {
            (Some(f), _) => self.inline(b, node, f, items, env)?,
            (None, Some(row)) => {
                let args = items.iter().map(|item| match item {
                    Some(Item::Tensor(v)) => Some(*v),
                    _ => None,
                });
                let mut cx = Cx {
                    b,
                    imp: self,
                    scope,
                    env,
                    node,
                    opset,
                    args: args.collect(),
                    items,
                };
                convert(row, &mut cx)?
            }
            (None, None) => return Err(Fail::reported()),
        };
        results
            .into_iter()
            .map(|item| {
                for v in item.values() {
                    shapes::check(b.graph.ty(v))?;
                }
                match item {
                    Item::Tensor(v) => Ok(Item::Tensor(shapes::settle(b, v)?)),
                    other => Ok(other),
                }
            })
            .collect()
    }

    /// Whether the table has the operator in this version.
    fn supported(
        &self,
        in_domain: &str,
        node: &NodeProto,
        row: Option<&table::Row>,
        opset: i64,
    ) -> Result<(), Fail> {
        if opset == 0 {
            let message = format!(
                "the model imports no opset for the domain `{}`",
                if in_domain.is_empty() {
                    "ai.onnx"
                } else {
                    in_domain
                }
            );
            return Err(Fail::new(code::OPSET, message).help("export the model again"));
        }
        let old = in_domain.is_empty() && opset < OLDEST_OPSET;
        if old && !SINCE_THE_FIRST.contains(&node.op_type.as_str()) {
            let message = format!("opset {opset} is older than {OLDEST_OPSET}");
            return Err(Fail::new(code::OPSET, message)
                .help("convert it with onnx.version_converter to opset 17"));
        }
        match row {
            Some(_) => Ok(()),
            None => {
                let message = format!("the operator {} is not supported", node.op_type);
                Err(Fail::new(code::OPERATOR, message).help(table::suggestion(in_domain)))
            }
        }
    }

    /// Looks for unsupported operators in the graphs of a node that is not
    /// converted, so that one check finds them all.
    fn scan_inner(&mut self, node: &'m NodeProto, env: &Env<'m>) {
        let graphs = node
            .attribute
            .iter()
            .flat_map(|a| a.g.iter().chain(&a.graphs));
        for inner in graphs.flat_map(|g| &g.node) {
            let in_domain = domain(&inner.domain);
            let opset = env.opsets.get(in_domain).copied().unwrap_or(0);
            let function = (in_domain, &*inner.op_type, &*inner.overload);
            if !self.functions.contains_key(&function) {
                let row = table::find(in_domain, &inner.op_type);
                if let Err(e) = self.supported(in_domain, inner, row, opset) {
                    let name = node_name(inner, &env.prefix);
                    self.fail(e, &name, &inner.op_type, opset);
                }
            }
            self.scan_inner(inner, env);
        }
    }

    /// Converts a graph that a node owns into the builder's region, its inputs
    /// bound to `params`; its outputs.
    pub(crate) fn subgraph(
        &mut self,
        b: &mut Builder,
        outer: &Scope<'_, 'm>,
        graph: &'m GraphProto,
        params: &[Item],
        env: &Env<'m>,
    ) -> Items {
        let env = env.deeper(format!("{}{}/", env.prefix, graph.name))?;
        let mut scope = Scope::new(Some(outer));
        let origins = b.origins.clone();
        self.initializers(b, &mut scope, graph);
        let constant: HashSet<&str> = initializer_names(graph).collect();
        let inputs = graph.input.iter().filter(|i| !constant.contains(&*i.name));
        let inputs: Vec<&str> = inputs.map(|i| &*i.name).collect();
        if inputs.len() != params.len() {
            return Err(Fail::invalid(format!(
                "its graph takes {} values where {} are given",
                inputs.len(),
                params.len()
            )));
        }
        for (name, item) in inputs.into_iter().zip(params) {
            if let Item::Tensor(v) = *item {
                self.name(b, Some(v), name);
            }
            self.define(&mut scope, name, Some(item.clone()));
        }
        self.nodes(b, &mut scope, &graph.node, &env);
        b.origins = origins;
        graph
            .output
            .iter()
            .map(|o| self.result(&scope, &o.name))
            .collect()
    }

    fn inline(
        &mut self,
        b: &mut Builder,
        node: &'m NodeProto,
        function: &'m FunctionProto,
        args: Vec<Option<Item>>,
        env: &Env<'m>,
    ) -> Items {
        let id = (&*function.domain, &*function.name);
        if env.stack.contains(&id) {
            return Err(Fail::invalid(format!(
                "the function {} calls itself",
                function.name
            )));
        }
        let mut inner = env.deeper(format!("{}/", node_name(node, &env.prefix)))?;
        inner.stack.push(id);
        inner.opsets = opsets(&function.opset_import);
        inner.given = function
            .attribute_proto
            .iter()
            .map(|a| (&*a.name, a))
            .chain(node.attribute.iter().filter_map(|a| {
                let given = super::attrs::find(node, &env.given, &a.name)?;
                Some((&*a.name, given))
            }))
            .collect();
        let mut scope = Scope::new(None);
        for (i, name) in function.input.iter().enumerate() {
            let bound = args.get(i).cloned().flatten();
            scope
                .values
                .insert(name, bound.map_or(Bound::Absent, Bound::Item));
        }
        self.nodes(b, &mut scope, &function.node, &inner);
        function
            .output
            .iter()
            .take(node.output.len().max(1))
            .map(|o| self.result(&scope, o))
            .collect()
    }

    pub(crate) fn fail(&mut self, e: Fail, node: &str, op: &str, opset: i64) {
        if e.code.is_empty() {
            return;
        }
        let d = e.diagnostic().op(op, opset);
        self.say(d, node);
    }

    pub(crate) fn say(&mut self, d: Diagnostic, node: &str) {
        if self.diagnostics.len() < MAX_DIAGNOSTICS {
            let file = self.file.clone();
            self.diagnostics.push(d.at(&file, node));
        }
    }
}

/// A node's arguments; none of them where one was reported as faulty.
fn arguments(scope: &Scope, node: &NodeProto) -> Result<Option<Vec<Option<Item>>>, Fail> {
    let mut items = vec![];
    let mut reported = false;
    for input in &node.input {
        match scope.find(input) {
            _ if input.is_empty() => items.push(None),
            Some(Bound::Item(item)) => items.push(Some(item)),
            Some(Bound::Absent) => items.push(None),
            Some(Bound::Reported) => reported = true,
            None => {
                let message = format!("nothing defines its input `{input}`");
                return Err(Fail::new(code::UNDEFINED, message)
                    .help("the graph is incomplete: export the model again"));
            }
        }
    }
    Ok((!reported).then_some(items))
}

/// Converts a node by its row. What takes tensors alone is given nothing else.
fn convert(row: &table::Row, cx: &mut Cx) -> Items {
    match row.convert {
        Convert::Any(handler) => handler(cx),
        Convert::Tensors(handler) => {
            for item in cx.items.iter().flatten() {
                item.tensor()?;
            }
            Ok(handler(cx)?.into_iter().map(Item::Tensor).collect())
        }
    }
}
