//! ONNX's test data: folders of `input_K.pb` and `output_K.pb`.
//!
//! What a file holds is told by the model's declaration of the port alone: a
//! `TensorProto`, a `SequenceProto` or an `OptionalProto`. The latter two number
//! their fields alike (1: name, 2: kind, 3: tensors, 5: sequences), so one reader
//! does for both.

use super::cx::Fail;
use super::files::Files;
use super::inputs::Form;
use super::{ImportOptions, ports, tensor, wire};
use crate::diagnostic::{Diagnostic, code};
use crate::mapped::Mapped;
use kiln_ir::{Dim, Tensor};
use onnx_protobuf::{Message, ModelProto, TensorProto, ValueInfoProto};
use protobuf::CodedInputStream;
use protobuf::rt::WireType;
use std::path::Path;
use std::sync::Arc;

/// What a model declares its inputs and outputs to be.
#[derive(Clone, Debug, Default)]
pub struct Interface {
    inputs: Vec<Declared>,
    outputs: Vec<Declared>,
}

#[derive(Clone, Debug)]
struct Declared {
    name: String,
    sequence: bool,
    optional: bool,
    /// Whether the shape of the tensor, or of each element, is declared.
    shaped: bool,
}

/// One `test_data_set_N`, on the ports that importing the model makes.
#[derive(Clone, Debug, Default)]
pub struct DataSet {
    /// Tensors by the names of input ports.
    pub inputs: Vec<(String, Tensor)>,
    /// Tensors by the names of output ports.
    pub outputs: Vec<(String, Tensor)>,
    /// What importing the model for this data needs to be told: how many elements
    /// its sequences have, their shapes where the model declares none, and which
    /// optionals have a value.
    pub options: ImportOptions,
}

/// The kind of an optional that holds a sequence.
const SEQUENCE: u64 = 3;

/// A `SequenceProto` or an `OptionalProto`; of a `TensorProto`, the element type
/// as the kind and nothing else.
#[derive(Default)]
struct Wire {
    kind: u64,
    tensors: Vec<Vec<u8>>,
    sequences: Vec<Vec<u8>>,
}

impl Wire {
    fn parse(bytes: &[u8]) -> protobuf::Result<Wire> {
        let mut input = CodedInputStream::from_bytes(bytes);
        let mut out = Wire::default();
        while let Some(tag) = input.read_raw_tag_or_eof()? {
            let wire = WireType::new(tag & 7);
            match (tag >> 3, wire) {
                (2, Some(WireType::Varint)) => out.kind = input.read_uint64()?,
                (3, Some(WireType::LengthDelimited)) => out.tensors.push(input.read_bytes()?),
                (5, Some(WireType::LengthDelimited)) => out.sequences.push(input.read_bytes()?),
                _ => protobuf::rt::skip_field_for_tag(tag, &mut input)?,
            }
        }
        Ok(out)
    }
}

impl Interface {
    /// Reads a model's declarations; none where the file is no model.
    pub fn of(path: &Path) -> Interface {
        let parsed = Mapped::open(path).ok().and_then(|mapped| {
            let slim = wire::slim(mapped.slice()).ok()?;
            ModelProto::parse_from_bytes(&slim).ok()
        });
        let declared = |all: &[ValueInfoProto]| all.iter().map(declared).collect();
        parsed.map_or_else(Interface::default, |model| Interface {
            inputs: declared(&model.graph.input),
            outputs: declared(&model.graph.output),
        })
    }

    /// Whether this input is a sequence or an optional.
    pub fn is_structure(&self, input: &str) -> bool {
        let named = self.inputs.iter().find(|d| d.name == input);
        named.is_some_and(|d| d.sequence || d.optional)
    }
}

fn declared(info: &ValueInfoProto) -> Declared {
    let form = Form::of(&info.type_).ok();
    Declared {
        name: info.name.clone(),
        sequence: matches!(form, Some((Form::Sequence(_), _))),
        optional: matches!(form, Some((_, true))),
        shaped: form.is_some_and(|(form, _)| form.tensor().shape.is_some()),
    }
}

/// Reads a folder of test data for a model of this interface.
pub fn read_data_set(folder: &Path, interface: &Interface) -> Result<DataSet, Box<Diagnostic>> {
    let (inputs, options) = side(folder, "input", &interface.inputs)?;
    let (outputs, _) = side(folder, "output", &interface.outputs)?;
    Ok(DataSet {
        inputs,
        outputs,
        options,
    })
}

type Side = (Vec<(String, Tensor)>, ImportOptions);

fn side(folder: &Path, kind: &str, declared: &[Declared]) -> Result<Side, Box<Diagnostic>> {
    let (mut ports, mut options) = (vec![], ImportOptions::default());
    for k in 0.. {
        let path = folder.join(format!("{kind}_{k}.pb"));
        if !path.exists() {
            break;
        }
        match declared.get(k) {
            Some(d) if d.sequence || d.optional => {
                let held = read(&path, d)?;
                describe(d, held.as_deref(), &mut options);
                let named = held.into_iter().flatten().enumerate();
                ports.extend(named.map(|(i, t)| (port_name(d, i), t)));
            }
            _ => ports.push(read_tensor(&path)?),
        }
    }
    Ok((ports, options))
}

fn port_name(d: &Declared, i: usize) -> String {
    match d.sequence {
        true => ports::element_name(&d.name, i),
        false => d.name.clone(),
    }
}

/// Tells the importer what a sequence or an optional holds.
fn describe(d: &Declared, held: Option<&[Tensor]>, options: &mut ImportOptions) {
    let count = held.map_or(-1, |all| all.len() as i64);
    options.dims.insert(d.name.clone(), count);
    for (i, t) in held.unwrap_or_default().iter().enumerate() {
        if !d.shaped {
            let shape = t.shape().iter().map(|&n| Dim::from(n)).collect();
            options.inputs.insert(port_name(d, i), shape);
        }
    }
}

fn at(path: &Path) -> impl Fn(Diagnostic) -> Box<Diagnostic> {
    let name = path.display().to_string();
    move |d| Box::new(d.at(&name, ""))
}

fn open(path: &Path) -> Result<Arc<Mapped>, Box<Diagnostic>> {
    let read = |e| Diagnostic::error(code::READ, format!("the file cannot be read: {e}"));
    Ok(Arc::new(Mapped::open(path).map_err(|e| at(path)(read(e)))?))
}

fn damaged(what: impl std::fmt::Display) -> Fail {
    Fail::new(code::FORMAT, format!("this is no ONNX test data: {what}"))
        .help("the file is damaged or of another format")
}

/// Reads a file that holds one tensor (`input_0.pb` of ONNX's test data): its
/// name and contents.
pub fn read_tensor(path: &Path) -> Result<(String, Tensor), Box<Diagnostic>> {
    let mapped = open(path)?;
    let proto = TensorProto::parse_from_bytes(mapped.slice())
        .map_err(|e| at(path)(damaged(e).diagnostic()))?;
    let mut files = Files::new(mapped, super::folder(path));
    let (tensor, _) = tensor::load(&proto, &mut files).map_err(|e| at(path)(e.diagnostic()))?;
    Ok((proto.name, tensor))
}

/// The tensors of a sequence or of an optional; none where it has no value.
fn read(path: &Path, d: &Declared) -> Result<Option<Vec<Tensor>>, Box<Diagnostic>> {
    let mapped = open(path)?;
    let bytes = mapped.clone();
    let mut files = Files::new(mapped, super::folder(path));
    held(bytes.slice(), d, &mut files).map_err(|e| at(path)(e.diagnostic()))
}

fn held(file: &[u8], d: &Declared, files: &mut Files) -> Result<Option<Vec<Tensor>>, Fail> {
    let message = Wire::parse(file).map_err(damaged)?;
    let tensors = |all: &[Vec<u8>], files: &mut Files| {
        let load = |bytes: &Vec<u8>| {
            let proto = TensorProto::parse_from_bytes(bytes).map_err(damaged)?;
            Ok(tensor::load(&proto, files)?.0)
        };
        all.iter().map(load).collect::<Result<Vec<_>, Fail>>()
    };
    match (d.sequence, d.optional) {
        // A value that may be missing is written bare, too.
        (false, _) if message.tensors.is_empty() && message.kind != 0 => {
            tensors(&[file.to_vec()], files).map(Some)
        }
        (_, true) if message.kind == 0 => Ok(None),
        (true, true) if message.kind == SEQUENCE => {
            let [inner] = &message.sequences[..] else {
                return Err(damaged("an optional does not hold one sequence"));
            };
            let inner = Wire::parse(inner).map_err(damaged)?;
            tensors(&inner.tensors, files).map(Some)
        }
        _ => tensors(&message.tensors, files).map(Some),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A length-delimited field.
    fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
        [&[number << 3 | 2, bytes.len() as u8], bytes].concat()
    }

    fn kind(n: u8) -> Vec<u8> {
        vec![2 << 3, n]
    }

    #[test]
    fn sequences_and_optionals_are_read_in_every_form() {
        let tensor = |x: f32| {
            let proto = TensorProto {
                dims: vec![1],
                data_type: 1,
                float_data: vec![x],
                ..Default::default()
            };
            proto.write_to_bytes().unwrap()
        };
        let folder = std::env::temp_dir().join(format!("kiln-testdata-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let path = folder.join("input_0.pb");
        let reads = |sequence, optional, bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            let d = Declared {
                name: "x".into(),
                sequence,
                optional,
                shaped: true,
            };
            let held = read(&path, &d).map_err(|e| e.code)?;
            Ok(held.map(|all| all.iter().map(|t| t.get_f64(0)).collect::<Vec<_>>()))
        };
        let name = field(1, b"x");
        let both = [field(3, &tensor(1.0)), field(3, &tensor(2.0))].concat();
        let sequence = [name.clone(), kind(1), both].concat();
        let nothing = [name.clone(), kind(0)].concat();
        let one = [name.clone(), kind(1), field(3, &tensor(3.0))].concat();
        let inner = [name, kind(3), field(5, &sequence)].concat();
        assert_eq!(reads(true, false, &sequence), Ok(Some(vec![1.0, 2.0])));
        assert_eq!(reads(true, true, &sequence), Ok(Some(vec![1.0, 2.0])));
        assert_eq!(reads(true, true, &inner), Ok(Some(vec![1.0, 2.0])));
        assert_eq!(reads(true, true, &nothing), Ok(None));
        assert_eq!(reads(false, true, &nothing), Ok(None));
        assert_eq!(reads(false, true, &one), Ok(Some(vec![3.0])));
        assert_eq!(reads(false, true, &tensor(4.0)), Ok(Some(vec![4.0])));
        assert_eq!(reads(true, false, &kind(1)), Ok(Some(vec![])));
        assert_eq!(reads(true, true, &kind(3)), Err(code::FORMAT));
        assert_eq!(reads(true, false, &sequence[..9]), Err(code::FORMAT));
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
