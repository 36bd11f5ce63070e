//! ONNX models.
//!
//! The way of a file: `wire` slims it (weights stay mapped), the protobuf crate
//! parses the rest, `constants` turns every initializer into a global or a
//! literal, `order` sorts each graph and finds cycles, `convert` walks the nodes
//! and asks `table` for each operator's row, whose handlers stand in `ops/`.
//! Shape arithmetic dissolves on the way: what is known as sizes
//! ([`kiln_ir::SymValue`]) is used as sizes, and `sweep` drops what then has no
//! use.

mod attrs;
mod constants;
mod convert;
mod cx;
mod document;
mod draft;
mod files;
mod inputs;
mod item;
mod ops;
mod order;
mod ports;
mod report;
mod scope;
mod shapes;
mod sweep;
mod table;
mod tensor;
mod testdata;
mod wire;

use crate::diagnostic::{Diagnostic, Severity, code};
use crate::mapped::Mapped;
use convert::Importer;
use files::Files;
use kiln_ir::{Bytes, Dim, Module, Tensor};
use onnx_protobuf::{Message, ModelProto, TensorProto};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use document::operators_markdown;
pub use draft::{Draft, Weights};
pub use report::{Gap, Report};
pub use testdata::{DataSet, Interface, read_data_set, read_tensor};

/// What a user may say about a model on import.
#[derive(Clone, Debug)]
pub struct ImportOptions {
    /// Sizes fixed by name (`--dim NAME=N`).
    pub dims: BTreeMap<String, i64>,
    /// Shapes of inputs, in place of what the model declares.
    pub inputs: BTreeMap<String, Vec<Dim>>,
    /// Inputs that become constants (`--freeze NAME=FILE.npy`): axes, paddings and
    /// other values that decide the structure.
    pub frozen: BTreeMap<String, Tensor>,
    /// Whether weights are read once to warn of NaN and infinity.
    pub check_finite: bool,
    /// Which values inside the model become outputs too, after its own and in the
    /// order of its nodes: what a comparison with another runtime needs.
    pub keep: Keep,
}

/// Values of the main graph that nodes define.
#[derive(Clone, Debug, Default)]
pub enum Keep {
    /// None of them: the model as it is.
    #[default]
    Nothing,
    /// Those with these names; other names are ignored.
    Named(BTreeSet<String>),
    /// All of them.
    All,
}

impl Default for ImportOptions {
    fn default() -> ImportOptions {
        ImportOptions {
            dims: BTreeMap::new(),
            inputs: BTreeMap::new(),
            frozen: BTreeMap::new(),
            check_finite: true,
            keep: Keep::Nothing,
        }
    }
}

/// A model that imported.
#[derive(Clone, Debug)]
pub struct Imported {
    /// The entry point `forward` over the model's weights.
    pub module: Module,
    /// What its author should know.
    pub warnings: Vec<Diagnostic>,
}

/// Imports an ONNX model; or everything that keeps it from being imported.
pub fn import_onnx(path: &Path, options: &ImportOptions) -> Result<Imported, Vec<Diagnostic>> {
    let source = open(path)?;
    imported(source, options)
}

/// Imports an ONNX model from bytes; or everything that keeps it from being
/// imported. `name` stands for the file in what is said of the model. There is no
/// external data: a model that names some is refused (K0131).
pub fn import_onnx_bytes(
    name: &str,
    bytes: impl Into<Bytes>,
    options: &ImportOptions,
) -> Result<Imported, Vec<Diagnostic>> {
    let source = Source {
        name: name.to_string(),
        model: Arc::new(Mapped::Memory(bytes.into())),
        folder: None,
    };
    imported(source, options)
}

/// Everything in an ONNX model that does not import, at once.
pub fn check_onnx(path: &Path) -> Report {
    let attempted = open(path).and_then(|source| attempt(source, &ImportOptions::default()));
    match attempted {
        Ok((_, diagnostics)) => report::report(diagnostics),
        Err(errors) => report::report(errors),
    }
}

/// A model that is open.
struct Source {
    name: String,
    model: Arc<Mapped>,
    folder: Option<PathBuf>,
}

pub(crate) fn folder(path: &Path) -> Option<&Path> {
    Some(path.parent().unwrap_or(Path::new("")))
}

fn open(path: &Path) -> Result<Source, Vec<Diagnostic>> {
    let name = path.display().to_string();
    let mapped = Mapped::open(path).map_err(|e| {
        let d = Diagnostic::error(code::READ, format!("the file cannot be read: {e}"));
        vec![d.help("check the path and its permissions").at(&name, "")]
    })?;
    Ok(Source {
        name,
        model: Arc::new(mapped),
        folder: folder(path).map(Path::to_path_buf),
    })
}

fn imported(source: Source, options: &ImportOptions) -> Result<Imported, Vec<Diagnostic>> {
    let (module, diagnostics) = attempt(source, options)?;
    let failed = diagnostics.iter().any(|d| d.severity == Severity::Error);
    if failed {
        return Err(diagnostics);
    }
    Ok(Imported {
        module,
        warnings: diagnostics,
    })
}

/// Imports what can be imported, with all that was noticed on the way; an error
/// where there is no graph to walk.
fn attempt(
    source: Source,
    options: &ImportOptions,
) -> Result<(Module, Vec<Diagnostic>), Vec<Diagnostic>> {
    let Source {
        name,
        model: mapped,
        folder,
    } = source;
    let fail = |d: Diagnostic| vec![d.at(&name, "")];
    let not_onnx = |what: String| {
        let d = Diagnostic::error(code::FORMAT, format!("this is no ONNX model: {what}"));
        fail(d.help("the file is damaged or of another format: export or fetch it again"))
    };
    let slim = wire::slim(mapped.slice()).map_err(not_onnx)?;
    let mut model = ModelProto::parse_from_bytes(&slim).map_err(|e| not_onnx(e.to_string()))?;
    drop(slim);
    if model.graph.is_none() {
        return Err(not_onnx("it holds no graph".into()));
    }
    for (input, value) in &options.frozen {
        freeze(&mut model, input, value).map_err(|d| fail(*d))?;
    }
    let files = Files::new(mapped, folder.as_deref());
    Ok(Importer::new(&name, &model, files, options).run())
}

/// Turns an input of the model into a constant.
fn freeze(model: &mut ModelProto, input: &str, value: &Tensor) -> Result<(), Box<Diagnostic>> {
    let graph = model.graph.mut_or_insert_default();
    let Some(at) = graph.input.iter().position(|i| i.name == input) else {
        if graph.input.iter().any(|i| ports::is_element(i, input)) {
            // Its port becomes a constant.
            return Ok(());
        }
        let names: Vec<&str> = graph.input.iter().map(|i| &i.name[..]).collect();
        let d = Diagnostic::error(
            code::OPTION,
            format!("there is no input `{input}` to freeze"),
        );
        return Err(Box::new(
            d.help(format!("the inputs are {}", names.join(", "))),
        ));
    };
    let declared = graph.input[at].type_.tensor_type().elem_type;
    let number = tensor::number(value.dtype()).filter(|&n| n == declared || declared == 0);
    let Some(number) = number else {
        let d = Diagnostic::error(
            code::OPTION,
            format!(
                "a {} cannot be frozen into the input `{input}`",
                value.dtype()
            ),
        );
        return Err(Box::new(d.help("give a file of the input's element type")));
    };
    let strings = value.as_strings().iter();
    graph.input.remove(at);
    graph.initializer.retain(|t| t.name != input);
    graph.initializer.push(TensorProto {
        name: input.to_string(),
        data_type: number,
        dims: value.shape().iter().map(|&d| d as i64).collect(),
        raw_data: value.bytes().to_vec(),
        string_data: strings.map(|s| s.clone().into_bytes()).collect(),
        ..TensorProto::default()
    });
    Ok(())
}
