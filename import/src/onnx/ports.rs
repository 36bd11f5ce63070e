//! The model's inputs and outputs as ports of the function.
//!
//! A tensor is a port of its name. A sequence `s` of n elements is the ports
//! `s.0` … `s.(n-1)`, each with a shape of its own; how many an input has is
//! given as the size `s` (`--dim s=3`). An optional is the ports of what it holds,
//! or none: an optional input has a value where the size of its name is not
//! negative (`--dim s=-1` says that it has none), a tensor where it is 1.

use super::convert::Importer;
use super::cx::Fail;
use super::inputs::{Form, Symbols};
use super::item::{Item, Sequence, unknown};
use super::scope::{Bound, Env, Scope, initializer_names};
use super::{Keep, order, shapes};
use crate::diagnostic::{Diagnostic, code};
use kiln_ir::Builder;
use kiln_ir::graph::{PortKind, Value};
use onnx_protobuf::{GraphProto, ValueInfoProto};
use std::collections::HashSet;

/// Ports that one sequence becomes.
const MAX_ELEMENTS: i64 = 4096;

/// The port of an element.
pub(crate) fn element_name(sequence: &str, i: usize) -> String {
    format!("{sequence}.{i}")
}

/// Whether a port is that of an element of this input.
pub(crate) fn is_element(input: &ValueInfoProto, port: &str) -> bool {
    let sequence = matches!(Form::of(&input.type_), Ok((Form::Sequence(_), _)));
    let rest = port.strip_prefix(&*input.name);
    let index = rest.and_then(|rest| rest.strip_prefix('.'));
    sequence && index.is_some_and(|i| i.parse::<usize>().is_ok())
}

impl<'m> Importer<'m> {
    /// The model's graph as the function's body.
    pub(crate) fn forward(&mut self, b: &mut Builder, env: &Env<'m>) {
        let graph: &'m GraphProto = &self.model.graph;
        let mut scope = Scope::new(None);
        let mut symbols = Symbols::new(self.options);
        symbols.declare(graph);
        self.initializers(b, &mut scope, graph);
        let constant: HashSet<&str> = initializer_names(graph).collect();
        let mut names = HashSet::new();
        for input in graph.input.iter().filter(|i| !constant.contains(&*i.name)) {
            let item = match self.input(b, &mut symbols, input, &mut names) {
                Ok(item) => Some(item),
                Err(e) => {
                    self.fail(e, &input.name, "", 0);
                    None
                }
            };
            self.define(&mut scope, &input.name, item);
        }
        self.stray_options(&names);
        if let Some(d) = symbols.unused() {
            self.say(d, "");
        }
        for d in (b.graph.body().params.iter()).flat_map(|&v| b.graph.shape(v)) {
            d.symbols(&mut self.sizes);
        }
        self.nodes(b, &mut scope, &graph.node, env);
        let mut names = HashSet::new();
        for output in &graph.output {
            let made = self.result(&scope, &output.name);
            if let Err(e) = made.and_then(|item| put_output(b, &output.name, &item, &mut names)) {
                self.fail(e, &output.name, "", 0);
            }
        }
        if graph.output.is_empty() {
            let d = Diagnostic::error(code::FORMAT, "the graph has no outputs")
                .help("a model without results computes nothing: export it again");
            self.say(d, "");
        }
        self.keep(b, &scope, graph);
    }

    /// Makes outputs of the values to keep.
    fn keep(&self, b: &mut Builder, scope: &Scope<'_, 'm>, graph: &'m GraphProto) {
        let kept = |name: &str| match &self.options.keep {
            Keep::Nothing => false,
            Keep::Named(names) => names.contains(name),
            Keep::All => true,
        };
        // A cycle was reported already.
        let order = order::sort(&graph.node).unwrap_or_default();
        let names = order.iter().flat_map(|&i| &graph.node[i].output);
        for name in names.filter(|n| !n.is_empty() && kept(n)) {
            let own = graph.output.iter().any(|o| o.name == *name);
            if let (false, Some(Bound::Item(Item::Tensor(v)))) = (own, scope.find(name)) {
                b.graph.add_result(&**name, PortKind::Caller, v);
            }
        }
    }

    fn stray_options(&mut self, names: &HashSet<String>) {
        let strays = self.options.inputs.keys();
        let strays: Vec<&String> = strays.filter(|name| !names.contains(*name)).collect();
        for name in strays {
            let d = Diagnostic::error(code::OPTION, format!("the model has no input `{name}`"))
                .help("name an input of the model: `kiln inspect` lists them");
            self.say(d, "");
        }
    }

    fn input(
        &self,
        b: &mut Builder,
        symbols: &mut Symbols,
        info: &ValueInfoProto,
        names: &mut HashSet<String>,
    ) -> Result<Item, Fail> {
        let (form, optional) = Form::of(&info.type_)?;
        let count = match (&form, optional) {
            (Form::Tensor(_), false) => None,
            _ => symbols.count(&info.name),
        };
        if optional && count.is_some_and(|n| n < 0) {
            return Ok(Item::Nothing);
        }
        let mut port = |b: &mut Builder, name: String, element: Option<usize>| {
            let shape = self.options.inputs.get(&name);
            let ty = symbols.port_type(&name, form.tensor(), element, shape)?;
            shapes::check(&ty)?;
            if !names.insert(name.clone()) {
                return Err(
                    Fail::new(code::DUPLICATE, format!("two inputs are `{name}`"))
                        .help("rename one of them in the model"),
                );
            }
            match self.options.frozen.get(&name) {
                Some(value) if value.dtype() == ty.dtype => Ok(b.constant(value.clone())?),
                Some(value) => Err(Fail::new(
                    code::OPTION,
                    format!("a {} cannot be frozen into `{name}`", value.dtype()),
                )
                .help("give a file of the input's element type")),
                None => Ok(b.graph.add_param(name, PortKind::Caller, ty)),
            }
        };
        match (&form, count) {
            (Form::Tensor(_), None) if !optional => {
                let v = port(b, info.name.clone(), None)?;
                Ok(Item::Tensor(v))
            }
            (Form::Tensor(_), Some(1)) if optional => {
                let v = port(b, info.name.clone(), None)?;
                Ok(Item::Tensor(v))
            }
            (Form::Sequence(_), Some(n @ 0..=MAX_ELEMENTS)) => {
                let one = |i| port(b, element_name(&info.name, i), Some(i));
                let all: Vec<Value> = (0..n as usize).map(one).collect::<Result<_, Fail>>()?;
                Ok(Item::Sequence(Sequence::of(form.dtype()?, all)))
            }
            (Form::Sequence(_), None) => Err(needs(
                "the number of elements of the input sequence is not given",
                format!("give it with --dim {}=N", info.name),
            )),
            (Form::Tensor(_), None) => Err(needs(
                "whether the optional input has a value is not given",
                format!("give --dim {0}=1 if it has one, else --dim {0}=-1", info.name),
            )),
            (_, Some(n)) => Err(Fail::new(
                code::OPTION,
                format!("the input cannot have {n} elements"),
            )
            .help("a sequence has 0 to 4096, an optional tensor 1, and an optional without a value -1")),
        }
    }
}

fn needs(message: &str, help: String) -> Fail {
    unknown(message).help(help)
}

/// Adds the ports of an output.
fn put_output(
    b: &mut Builder,
    name: &str,
    item: &Item,
    names: &mut HashSet<String>,
) -> Result<(), Fail> {
    let mut put = |b: &mut Builder, name: String, v: Value| {
        if !names.insert(name.clone()) {
            return Err(
                Fail::new(code::DUPLICATE, format!("two outputs are `{name}`"))
                    .help("rename one of them in the model"),
            );
        }
        b.graph.add_result(name, PortKind::Caller, v);
        Ok(())
    };
    match item {
        Item::Tensor(v) => put(b, name.to_string(), *v),
        Item::Nothing => Ok(()),
        Item::Sequence(s) => {
            let all = super::item::elements(b, s)?;
            let mut named = all.into_iter().enumerate();
            named.try_for_each(|(i, v)| put(b, element_name(name, i), v))
        }
    }
}
