//! What importers say about a file: coded, with the place and the remedy.

use std::fmt;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Severity {
    /// The model imports, yet its author should know.
    Warning,
    /// The model does not import.
    Error,
}

/// Where in a model.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Place {
    /// The file, as the user named it.
    pub file: String,
    /// The node's name, or the name of what stands there (an initializer, an
    /// input); empty for the file as a whole.
    pub node: String,
    /// The operator, with its domain unless it is ONNX's own; may be empty.
    pub op: String,
    /// The opset version of the operator's domain; 0 where none is meant.
    pub opset: i64,
}

/// One thing to say about a model.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Diagnostic {
    /// A stable code, `K` and four digits.
    pub code: &'static str,
    /// How bad it is.
    pub severity: Severity,
    /// What is wrong.
    pub message: String,
    /// Where.
    pub place: Place,
    /// What to do about it; may be empty.
    pub help: String,
}

/// The codes of this crate.
pub(crate) mod code {
    /// The file cannot be opened or mapped.
    pub const READ: &str = "K0101";
    /// The bytes are no ONNX model.
    pub const FORMAT: &str = "K0102";
    /// The model is beyond a limit that keeps importing bounded.
    pub const LIMIT: &str = "K0103";
    /// The opset is missing or too old.
    pub const OPSET: &str = "K0104";
    /// An option does not fit the model.
    pub const OPTION: &str = "K0105";
    /// The operator is not supported.
    pub const OPERATOR: &str = "K0110";
    /// This form of a supported operator is not.
    pub const FORM: &str = "K0111";
    /// A size depends on data in a way that has no lowering.
    pub const DATA_SHAPE: &str = "K0112";
    /// The node does not follow the operator's definition.
    pub const INVALID: &str = "K0113";
    /// The node's arguments do not type.
    pub const TYPE: &str = "K0114";
    /// The graph has a cycle.
    pub const CYCLE: &str = "K0120";
    /// A value is defined twice.
    pub const DUPLICATE: &str = "K0121";
    /// A value is used and nothing defines it.
    pub const UNDEFINED: &str = "K0122";
    /// A constant's data does not fit its declaration.
    pub const CONSTANT: &str = "K0130";
    /// A file of external data is missing, or outside the model's folder.
    pub const EXTERNAL: &str = "K0131";
    /// A file cannot be written.
    pub const WRITE: &str = "K0707";
    /// A constant holds NaN or infinity.
    pub const NOT_FINITE: &str = "K0140";
    /// A safetensors file's header is missing, cut short or malformed.
    pub const ST_HEADER: &str = "K0150";
    /// A safetensors file's header is longer than the format allows.
    pub const ST_LIMIT: &str = "K0151";
    /// A tensor of a safetensors file has an element type that Kiln has not.
    pub const ST_DTYPE: &str = "K0152";
    /// Tensors of a safetensors file overlap, leave gaps or end beyond it.
    pub const ST_LAYOUT: &str = "K0153";
    /// The bytes of a tensor of a safetensors file do not fit its shape.
    pub const ST_SIZE: &str = "K0154";
}

impl Diagnostic {
    pub(crate) fn error(code: &'static str, message: impl Into<String>) -> Diagnostic {
        Diagnostic {
            code,
            severity: Severity::Error,
            message: message.into(),
            place: Place::default(),
            help: String::new(),
        }
    }

    pub(crate) fn warning(code: &'static str, message: impl Into<String>) -> Diagnostic {
        Diagnostic {
            severity: Severity::Warning,
            ..Diagnostic::error(code, message)
        }
    }

    pub(crate) fn help(mut self, help: impl Into<String>) -> Diagnostic {
        self.help = help.into();
        self
    }

    pub(crate) fn at(mut self, file: &str, node: &str) -> Diagnostic {
        self.place.file = file.into();
        self.place.node = node.into();
        self
    }

    pub(crate) fn op(mut self, op: &str, opset: i64) -> Diagnostic {
        self.place.op = op.into();
        self.place.opset = opset;
        self
    }
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Severity::Warning => "warning",
            Severity::Error => "error",
        })
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file)?;
        if !self.node.is_empty() {
            write!(f, ": `{}`", self.node)?;
        }
        match (self.op.is_empty(), self.opset) {
            (true, _) => Ok(()),
            (false, 0) => write!(f, " ({})", self.op),
            (false, v) => write!(f, " ({}, opset {v})", self.op),
        }
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = &self.message;
        write!(
            f,
            "{}[{}]: {text}\n  at {}",
            self.severity, self.code, self.place
        )?;
        if !self.help.is_empty() {
            write!(f, "\n  help: {}", self.help)?;
        }
        Ok(())
    }
}

impl std::error::Error for Diagnostic {}
