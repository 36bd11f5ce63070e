//! Types of inputs: dim params become named sizes.

use super::tensor::dtype;
use super::{ImportOptions, cx::Fail};
use crate::diagnostic::{Diagnostic, code};
use kiln_ir::{DType, Dim, TensorType};
use onnx_protobuf::{GraphProto, TypeProto, tensor_shape_proto::dimension, type_proto};
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// The model's sizes by the names that it gives them.
pub(crate) struct Symbols {
    by_param: HashMap<String, Dim>,
    taken: BTreeSet<String>,
    dims: BTreeMap<String, i64>,
    unused: BTreeSet<String>,
    /// Sequences and optionals, whose counts are sizes too.
    known: BTreeSet<String>,
}

impl Symbols {
    pub(crate) fn new(options: &ImportOptions) -> Symbols {
        Symbols {
            by_param: HashMap::new(),
            taken: BTreeSet::new(),
            dims: options.dims.clone(),
            unused: options.dims.keys().cloned().collect(),
            known: BTreeSet::new(),
        }
    }

    /// Names every plain dim param of the inputs, so that expressions over them
    /// (`past + seq`) can be read.
    pub(crate) fn declare(&mut self, graph: &GraphProto) {
        for input in &graph.input {
            for d in tensor_dims(&input.type_) {
                if let Some(dimension::Value::DimParam(p)) = d
                    && names_something(p)
                    && !is_expression(p)
                {
                    self.named(p);
                }
            }
        }
    }

    /// A name for a size that the model leaves without one.
    pub(crate) fn fresh(&mut self, base: &str) -> Dim {
        let name = self.unique(base);
        self.fixed(&name).unwrap_or_else(|| Dim::sym(name))
    }

    /// Options that named no size of the model.
    pub(crate) fn unused(&self) -> Option<Diagnostic> {
        let first = self.unused.first()?;
        let names = self.taken.union(&self.known);
        let names: Vec<&str> = names.map(String::as_str).collect();
        let help = match names[..] {
            [] => "the model has no open sizes".to_string(),
            _ => format!("its open sizes are: {}", names.join(", ")),
        };
        let message = format!("the model has no size named `{first}`");
        Some(Diagnostic::error(code::OPTION, message).help(help))
    }

    fn fixed(&mut self, name: &str) -> Option<Dim> {
        let n = *self.dims.get(name)?;
        self.unused.remove(name);
        Some(n.into())
    }

    fn named(&mut self, param: &str) -> Dim {
        if let Some(d) = self.by_param.get(param) {
            return d.clone();
        }
        let name = self.unique(param);
        let fixed = self.fixed(param).or_else(|| self.fixed(&name));
        let d = fixed.unwrap_or_else(|| Dim::sym(name));
        self.by_param.insert(param.to_string(), d.clone());
        d
    }

    fn unique(&mut self, base: &str) -> String {
        let base = identifier(base);
        let mut name = base.clone();
        let mut n = 1;
        while !self.taken.insert(name.clone()) {
            n += 1;
            name = format!("{base}_{n}");
        }
        name
    }

    fn param(&mut self, param: &str) -> Dim {
        if !is_expression(param) {
            return self.named(param);
        }
        if let Ok(d) = param.parse::<Dim>() {
            let mut symbols = BTreeSet::new();
            d.symbols(&mut symbols);
            if symbols.iter().all(|s| self.by_param.contains_key(&**s)) {
                return d.substitute(&|s| self.by_param.get(s).cloned());
            }
        }
        self.named(param)
    }

    /// The number that the user gives for a name of the model (`--dim NAME=N`).
    pub(crate) fn count(&mut self, name: &str) -> Option<i64> {
        self.known.insert(name.to_string());
        let n = *self.dims.get(name)?;
        self.unused.remove(name);
        Some(n)
    }

    /// The type of the port `name`, or of this element of a sequence: what names
    /// its type gives to sizes are no element's own, so each gets names of its own.
    pub(crate) fn port_type(
        &mut self,
        name: &str,
        tensor: &type_proto::Tensor,
        element: Option<usize>,
        shape: Option<&Vec<Dim>>,
    ) -> Result<TensorType, Fail> {
        let dtype = element_type(tensor)?;
        if let Some(shape) = shape {
            return Ok(TensorType::new(dtype, shape.clone()));
        }
        let Some(declared) = tensor.shape.as_ref() else {
            return Err(Fail::new(code::FORM, "the input declares no shape")
                .help("give it with --shape NAME=D,D…, or export the model with shapes"));
        };
        let mut dims = vec![];
        for (i, d) in declared.dim.iter().enumerate() {
            dims.push(match &d.value {
                Some(dimension::Value::DimValue(n)) if *n >= 0 => Dim::from(*n),
                Some(dimension::Value::DimParam(p)) if names_something(p) && element.is_none() => {
                    self.param(p)
                }
                _ => self.fresh(&format!("{name}_dim{i}")),
            });
        }
        Ok(TensorType::new(dtype, dims))
    }
}

fn element_type(tensor: &type_proto::Tensor) -> Result<DType, Fail> {
    dtype(tensor.elem_type as i64)
        .ok_or_else(|| Fail::invalid(format!("{} is no element type", tensor.elem_type)))
}

/// What a value's declaration says that it is.
pub(crate) enum Form<'m> {
    /// A tensor.
    Tensor(&'m type_proto::Tensor),
    /// A sequence of such tensors.
    Sequence(&'m type_proto::Tensor),
}

impl<'m> Form<'m> {
    /// The form, and whether it may be missing.
    pub(crate) fn of(ty: &'m TypeProto) -> Result<(Form<'m>, bool), Fail> {
        use type_proto::Value;
        match &ty.value {
            Some(Value::TensorType(t)) => Ok((Form::Tensor(t), false)),
            Some(Value::SequenceType(s)) => match &s.elem_type.value {
                Some(Value::TensorType(t)) => Ok((Form::Sequence(t), false)),
                _ => Err(not_supported("a sequence of something else than tensors")),
            },
            Some(Value::OptionalType(o)) => match Form::of(&o.elem_type)? {
                (form, false) => Ok((form, true)),
                _ => Err(not_supported("an optional of an optional")),
            },
            Some(Value::MapType(_)) => Err(not_supported("a map")),
            Some(Value::SparseTensorType(_)) => Err(not_supported("a sparse tensor")),
            _ => Err(not_supported("of no type")),
        }
    }

    /// The tensor, or what each element is.
    pub(crate) fn tensor(&self) -> &'m type_proto::Tensor {
        match self {
            Form::Tensor(t) | Form::Sequence(t) => t,
        }
    }

    /// The element type of its tensors.
    pub(crate) fn dtype(&self) -> Result<DType, Fail> {
        element_type(self.tensor())
    }
}

fn not_supported(what: &str) -> Fail {
    Fail::new(code::FORM, format!("the value is {what}"))
        .help("export the model with tensors, sequences of tensors or optionals of these as inputs and outputs")
}

fn tensor_dims(ty: &TypeProto) -> impl Iterator<Item = &Option<dimension::Value>> {
    let dims = match &ty.value {
        Some(type_proto::Value::TensorType(t)) => t.shape.as_ref().map(|s| &s.dim[..]),
        _ => None,
    };
    dims.unwrap_or_default().iter().map(|d| &d.value)
}

/// Exporters write "?" for every size that they do not know: such a name does not
/// make sizes equal.
fn names_something(param: &str) -> bool {
    param.contains(char::is_alphanumeric) && param.parse::<i64>().is_err()
}

fn is_expression(param: &str) -> bool {
    param.contains(['+', '-', '*', '/', '(', ' '])
}

/// The name with what the text form does not read in names replaced.
pub(crate) fn identifier(name: &str) -> String {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let mut out: String = name
        .chars()
        .take(120)
        .map(|c| if word(c) { c } else { '_' })
        .collect();
    if out.is_empty() || out.starts_with(|c: char| c.is_ascii_digit()) {
        out.insert(0, 'd');
    }
    if out == "max" || out == "min" {
        out.push('_');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::names_something;

    #[test]
    fn placeholders_are_no_names() {
        assert!(names_something("batch") && names_something("p2o.DynamicDimension.0"));
        assert!(!names_something("?") && !names_something("") && !names_something("-1"));
    }
}
