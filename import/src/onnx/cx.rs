//! What an operator's handler works with.

use super::attrs::{self, Given};
use super::constants::{Const, Key};
use super::convert::Importer;
use super::item::{Item, Sequence};
use super::scope::{Env, Scope};
use crate::diagnostic::{Diagnostic, code};
use kiln_ir::graph::Value;
use kiln_ir::{Builder, ConstSource, DType, Dim, GlobalKind, Op, Tensor, TensorType, TypeError};
use onnx_protobuf::attribute_proto::AttributeType;
use onnx_protobuf::{AttributeProto, GraphProto, NodeProto, type_proto};

/// Why a node does not convert.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Fail {
    /// The diagnostic's code; empty for what was reported elsewhere.
    pub(crate) code: &'static str,
    /// What is wrong; the same for all nodes of which it is true.
    pub(crate) message: String,
    /// What to do.
    pub(crate) help: String,
}

/// What handlers give: the node's results, at least as many as it names.
pub(crate) type Out = Result<Vec<Value>, Fail>;

/// The same of operators that know sequences and optionals.
pub(crate) type Items = Result<Vec<Item>, Fail>;

impl Fail {
    pub(crate) fn new(code: &'static str, message: impl Into<String>) -> Fail {
        Fail {
            code,
            message: message.into(),
            help: String::new(),
        }
    }

    pub(crate) fn help(mut self, help: impl Into<String>) -> Fail {
        self.help = help.into();
        self
    }

    /// The same for people, at no place yet.
    pub(crate) fn diagnostic(self) -> Diagnostic {
        Diagnostic::error(self.code, self.message).help(self.help)
    }

    /// The node breaks the operator's definition.
    pub(crate) fn invalid(message: impl Into<String>) -> Fail {
        Fail::new(code::INVALID, message).help(
            "the model does not follow ONNX here: check it with onnx.checker and export it again",
        )
    }

    /// This form of the operator has no lowering.
    pub(crate) fn form(message: impl Into<String>) -> Fail {
        Fail::new(code::FORM, message).help("export the model without it")
    }

    /// Something that it depends on failed and was reported.
    pub(crate) fn reported() -> Fail {
        Fail::new("", "")
    }
}

impl From<TypeError> for Fail {
    fn from(e: TypeError) -> Fail {
        Fail::new(code::TYPE, e.0)
            .help("the arguments' types do not fit the operator: check the model with onnx.checker")
    }
}

/// One node on its way into the graph.
pub(crate) struct Cx<'c, 'b, 'm> {
    /// Where nodes go.
    pub(crate) b: &'c mut Builder<'b>,
    /// The whole import.
    pub(crate) imp: &'c mut Importer<'m>,
    /// Values in sight.
    pub(crate) scope: &'c Scope<'c, 'm>,
    /// The function that is being inlined.
    pub(crate) env: &'c Env<'m>,
    /// The node.
    pub(crate) node: &'m NodeProto,
    /// The opset version of its domain.
    pub(crate) opset: i64,
    /// Its arguments that are tensors; none for those left out and for others.
    pub(crate) args: Vec<Option<Value>>,
    /// All its arguments; none for those left out.
    pub(crate) items: Vec<Option<Item>>,
}

impl<'m> Cx<'_, '_, 'm> {
    /// Argument `i`, if it is given.
    pub(crate) fn opt(&self, i: usize) -> Option<Value> {
        self.args.get(i).copied().flatten()
    }

    /// Argument `i`.
    pub(crate) fn arg(&self, i: usize) -> Result<Value, Fail> {
        self.opt(i)
            .ok_or_else(|| Fail::invalid(format!("argument {i} is missing")))
    }

    /// Argument `i`, whatever it is.
    pub(crate) fn item(&self, i: usize) -> Result<Item, Fail> {
        let item = self.items.get(i).cloned().flatten();
        item.ok_or_else(|| Fail::invalid(format!("argument {i} is missing")))
    }

    /// Argument `i`, a sequence.
    pub(crate) fn sequence(&self, i: usize) -> Result<Sequence, Fail> {
        match self.item(i)? {
            Item::Sequence(s) => Ok(s),
            other => Err(Fail::invalid(format!(
                "argument {i} is {} where a sequence is wanted",
                other.kind()
            ))),
        }
    }

    /// All arguments, of which there is at least one and none is left out.
    pub(crate) fn all(&self) -> Result<Vec<Value>, Fail> {
        let all: Option<Vec<Value>> = self.args.iter().copied().collect();
        all.filter(|v| !v.is_empty())
            .ok_or_else(|| Fail::invalid("an argument is missing"))
    }

    /// Whether the node names result `i`.
    pub(crate) fn wants(&self, i: usize) -> bool {
        self.node.output.get(i).is_some_and(|n| !n.is_empty())
    }

    /// The rank that the model's graph declares for result `i`, if it does.
    pub(crate) fn declared_rank(&self, i: usize) -> Option<usize> {
        let name = self.node.output.get(i).filter(|name| !name.is_empty())?;
        let graph = &self.imp.model.graph;
        // Functions have names of their own.
        graph.node.iter().find(|n| std::ptr::eq(*n, self.node))?;
        let declared = graph.output.iter().chain(&graph.value_info);
        let info = declared.filter(|info| info.name == *name).next_back()?;
        match info.type_.value.as_ref()? {
            type_proto::Value::TensorType(t) => Some(t.shape.as_ref()?.dim.len()),
            _ => None,
        }
    }

    /// A value's type.
    pub(crate) fn ty(&self, v: Value) -> TensorType {
        self.b.graph.ty(v).clone()
    }

    /// A value's element type.
    pub(crate) fn dtype(&self, v: Value) -> DType {
        self.b.graph.ty(v).dtype
    }

    /// A value's extents.
    pub(crate) fn shape(&self, v: Value) -> Vec<Dim> {
        self.b.graph.shape(v).to_vec()
    }

    /// A value's extents, of which there must be this many.
    pub(crate) fn ranked(&self, v: Value, rank: usize) -> Result<Vec<Dim>, Fail> {
        let shape = self.shape(v);
        match shape.len() == rank {
            true => Ok(shape),
            false => Err(Fail::invalid(format!(
                "an argument has rank {}, not {rank}",
                shape.len()
            ))),
        }
    }

    /// One extent of a value.
    pub(crate) fn extent(&self, v: Value, axis: usize) -> Result<Dim, Fail> {
        let shape = self.b.graph.shape(v);
        shape.get(axis).cloned().ok_or_else(|| {
            Fail::invalid(format!(
                "an argument has rank {} and no axis {axis}",
                shape.len()
            ))
        })
    }

    /// A value's rank.
    pub(crate) fn rank(&self, v: Value) -> usize {
        self.b.graph.shape(v).len()
    }

    /// An axis that may count from the end.
    pub(crate) fn axis(&self, axis: i64, rank: usize) -> Result<usize, Fail> {
        resolve_axis(axis, rank)
    }

    /// The axis attribute, resolved.
    pub(crate) fn axis_attr(&self, default: i64, rank: usize) -> Result<usize, Fail> {
        resolve_axis(self.int("axis", default)?, rank)
    }

    /// Axes that may count from the end, ascending and without repeats.
    pub(crate) fn axes(&self, axes: &[i64], rank: usize) -> Result<Vec<usize>, Fail> {
        let mut out = axes
            .iter()
            .map(|&a| resolve_axis(a, rank))
            .collect::<Result<Vec<_>, _>>()?;
        out.sort_unstable();
        if out.windows(2).any(|w| w[0] == w[1]) {
            return Err(Fail::invalid(format!("the axes {axes:?} repeat")));
        }
        Ok(out)
    }

    fn attr(&self, name: &str, want: AttributeType) -> Result<Option<&'m AttributeProto>, Fail> {
        let given: &Given<'m> = &self.env.given;
        match attrs::find(self.node, given, name) {
            None => Ok(None),
            Some(a) => attrs::expect(a, want).map(|_| Some(a)),
        }
    }

    /// Whether the node has the attribute.
    pub(crate) fn has(&self, name: &str) -> bool {
        attrs::find(self.node, &self.env.given, name).is_some()
    }

    /// An integer attribute, where it is given.
    pub(crate) fn opt_int(&self, name: &str) -> Result<Option<i64>, Fail> {
        Ok(self.attr(name, AttributeType::INT)?.map(|a| a.i))
    }

    /// An integer attribute.
    pub(crate) fn int(&self, name: &str, default: i64) -> Result<i64, Fail> {
        Ok(self.opt_int(name)?.unwrap_or(default))
    }

    /// An attribute that is 0 or 1.
    pub(crate) fn flag(&self, name: &str, default: bool) -> Result<bool, Fail> {
        Ok(self.int(name, default as i64)? != 0)
    }

    /// A floating-point attribute, where it is given.
    pub(crate) fn opt_float(&self, name: &str) -> Result<Option<f64>, Fail> {
        Ok(self.attr(name, AttributeType::FLOAT)?.map(|a| a.f as f64))
    }

    /// A floating-point attribute.
    pub(crate) fn float(&self, name: &str, default: f64) -> Result<f64, Fail> {
        Ok(self.opt_float(name)?.unwrap_or(default))
    }

    /// Integers, where they are given.
    pub(crate) fn ints(&self, name: &str) -> Result<Option<&'m [i64]>, Fail> {
        Ok(self.attr(name, AttributeType::INTS)?.map(|a| &a.ints[..]))
    }

    /// Floats, where they are given.
    pub(crate) fn floats(&self, name: &str) -> Result<Option<&'m [f32]>, Fail> {
        Ok(self
            .attr(name, AttributeType::FLOATS)?
            .map(|a| &a.floats[..]))
    }

    /// Text.
    pub(crate) fn text(&self, name: &str, default: &'static str) -> Result<&'m str, Fail> {
        match self.attr(name, AttributeType::STRING)? {
            None => Ok(default),
            Some(a) => std::str::from_utf8(&a.s)
                .map_err(|_| Fail::invalid(format!("the attribute `{name}` is no text"))),
        }
    }

    /// A graph.
    pub(crate) fn graph(&self, name: &str) -> Result<&'m GraphProto, Fail> {
        self.attr(name, AttributeType::GRAPH)?
            .and_then(|a| a.g.as_ref())
            .ok_or_else(|| Fail::invalid(format!("the attribute `{name}` is missing")))
    }

    /// A tensor attribute, where it is given.
    pub(crate) fn tensor(&self, name: &str) -> Result<Option<Const>, Fail> {
        match self.attr(name, AttributeType::TENSOR)? {
            None => Ok(None),
            Some(a) => {
                let t = a.t.as_ref();
                let t =
                    t.ok_or_else(|| Fail::invalid(format!("the attribute `{name}` is empty")))?;
                self.imp.constant(Key::from(t)).map(Some)
            }
        }
    }

    /// A sparse tensor attribute.
    pub(crate) fn sparse_tensor(&self, name: &str) -> Result<Const, Fail> {
        let a = self.attr(name, AttributeType::SPARSE_TENSOR)?;
        let t = a.and_then(|a| a.sparse_tensor.as_ref());
        let t = t.ok_or_else(|| Fail::invalid(format!("the attribute `{name}` is empty")))?;
        self.imp.constant(Key::from(t))
    }

    /// The strings of an attribute, where it is given.
    pub(crate) fn texts(&self, name: &str) -> Result<Option<Vec<String>>, Fail> {
        let Some(a) = self.attr(name, AttributeType::STRINGS)? else {
            return Ok(None);
        };
        let text = |s: &Vec<u8>| String::from_utf8(s.clone());
        let all: Result<_, _> = a.strings.iter().map(text).collect();
        all.map(Some)
            .map_err(|_| Fail::invalid(format!("a string of the attribute `{name}` is not UTF-8")))
    }

    /// A constant as a value.
    pub(crate) fn place(&mut self, c: Const) -> Result<Value, Fail> {
        match c {
            Const::Inline(t) => Ok(self.b.constant(t)?),
            Const::Global(name) => Ok(self.b.global(name)?),
            Const::Failed => Err(Fail::reported()),
        }
    }

    /// The contents of a value that is a constant of the model.
    pub(crate) fn literal(&self, v: Value) -> Option<Tensor> {
        match self.b.graph.producer_op(v)?.0 {
            Op::Constant(c) => Some(c.value.clone()),
            Op::Global(g) => match &self.b.globals.get(&g.name)?.kind {
                GlobalKind::Const(ConstSource::Tensor(t)) => Some(t.clone()),
                _ => None,
            },
            _ => None,
        }
    }

    /// The number that a value holds, if it is a literal of one element.
    pub(crate) fn number(&self, v: Value) -> Option<f64> {
        if let Some(k) = self.b.graph.known(v) {
            return match &k.dims[..] {
                [d] => d.as_const().map(|c| c as f64),
                _ => None,
            };
        }
        let t = self.literal(v).filter(|t| t.len() == 1)?;
        Some(t.get_f64(0))
    }

    /// The integers that a value holds, if they are constants.
    pub(crate) fn known_ints(&self, v: Value) -> Option<Vec<i64>> {
        if let Some(k) = self.b.graph.known(v) {
            return k.dims.iter().map(Dim::as_const).collect();
        }
        let t = self.literal(v)?;
        t.dtype().is_int().then(|| t.to_i64())
    }

    /// The integers that argument `i` must hold while importing.
    pub(crate) fn need_ints(&self, v: Value, what: &str) -> Result<Vec<i64>, Fail> {
        self.known_ints(v).ok_or_else(|| {
            Fail::new(code::DATA_SHAPE, format!("{what} must be known when the model is compiled"))
                .help("if an input holds them, fix it with --freeze NAME=FILE.npy; or export the model with them as constants")
        })
    }

    /// A scalar of `v`'s element type.
    pub(crate) fn like(&mut self, v: Value, x: f64) -> Result<Value, Fail> {
        Ok(self.b.scalar_like(v, x)?)
    }
}

/// An axis that may count from the end.
pub(crate) fn resolve_axis(axis: i64, rank: usize) -> Result<usize, Fail> {
    let from_front = if axis < 0 { axis + rank as i64 } else { axis };
    usize::try_from(from_front)
        .ok()
        .filter(|&a| a < rank)
        .ok_or_else(|| Fail::invalid(format!("there is no axis {axis} in rank {rank}")))
}
