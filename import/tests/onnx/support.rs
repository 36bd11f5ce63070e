//! What the tests share: Python, comparing tensors, building models.

use kiln_import::{ImportOptions, read_tensor};
use kiln_ir::interp::Interpreter;
use kiln_ir::parse::{Loader, parse_module};
use kiln_ir::print::{PrintOptions, print_with_blobs};
use kiln_ir::verify::verify_module;
use kiln_ir::{Bytes, DType, Module, Tensor};
use onnx_protobuf::{
    GraphProto, Message, ModelProto, NodeProto, OperatorSetIdProto, TensorProto, TypeProto,
    ValueInfoProto, tensor_shape_proto, type_proto,
};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The repository's root.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// A folder for this run's files.
pub fn scratch(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

/// Runs a Python script with the project's environment, or the machine's. None,
/// with a line that says why, where what it needs is not installed.
pub fn python(script: &Path, args: &[&str]) -> Option<()> {
    let own = root().join(".venv/bin/python");
    let python = if own.exists() { own } else { "python3".into() };
    let run = Command::new(python).arg(script).args(args).output();
    match run {
        Ok(out) if out.status.success() => Some(()),
        Ok(out) if out.status.code() == Some(3) => {
            let why = String::from_utf8_lossy(&out.stderr).trim().to_string();
            println!("skipped: {why}");
            None
        }
        Ok(out) => panic!(
            "{}: {}",
            script.display(),
            String::from_utf8_lossy(&out.stderr)
        ),
        Err(e) => {
            println!("skipped: no Python here ({e})");
            None
        }
    }
}

/// `input_0.pb`, `input_1.pb` … (or `output_…`) of a folder.
pub fn tensors(folder: &Path, kind: &str) -> Result<Vec<(String, Tensor)>, String> {
    let mut out = vec![];
    loop {
        let path = folder.join(format!("{kind}_{}.pb", out.len()));
        if !path.exists() {
            return Ok(out);
        }
        out.push(read_tensor(&path).map_err(|e| e.to_string())?);
    }
}

/// What differs between a result and what was expected. Floats may be off by
/// `tolerance` of the larger of the expected element and `scale` (the largest
/// expected element times a share).
pub fn difference(got: &Tensor, want: &Tensor, tolerance: f64) -> Option<String> {
    if got.dtype() != want.dtype() || got.shape() != want.shape() {
        return Some(format!("{got:?} has another type than {want:?}"));
    }
    if got.dtype() == DType::Str {
        return (got.as_strings() != want.as_strings()).then(|| format!("{got:?} is not {want:?}"));
    }
    for i in 0..got.len() {
        let (a, b) = (got.get_f64(i), want.get_f64(i));
        let near = a == b
            || (a.is_nan() && b.is_nan())
            || (got.dtype().is_float() && (a - b).abs() <= 1e-6 + tolerance * b.abs());
        if !near {
            return Some(format!("element {i} is {a}, not {b}: {got:?}, {want:?}"));
        }
    }
    None
}

/// ‖got − want‖ / ‖want‖.
pub fn relative_error(got: &Tensor, want: &Tensor) -> f64 {
    assert_eq!((got.dtype(), got.shape()), (want.dtype(), want.shape()));
    let (mut off, mut all) = (0.0, 0.0);
    for i in 0..got.len() {
        off += (got.get_f64(i) - want.get_f64(i)).powi(2);
        all += want.get_f64(i).powi(2);
    }
    (off / all.max(f64::MIN_POSITIVE)).sqrt()
}

/// Default options.
pub fn options() -> ImportOptions {
    ImportOptions::default()
}

/// The function that importing makes.
pub fn forward(module: &Module) -> &kiln_ir::Graph {
    module
        .function("forward")
        .expect("importing makes `forward`")
}

/// A node with a name.
pub fn node(op: &str, inputs: &[&str], outputs: &[&str]) -> NodeProto {
    NodeProto {
        op_type: op.into(),
        name: format!("{op}_{}", outputs.first().unwrap_or(&"")),
        input: inputs.iter().map(|s| s.to_string()).collect(),
        output: outputs.iter().map(|s| s.to_string()).collect(),
        ..Default::default()
    }
}

/// A tensor-typed value; extents below 0 are named by their letter: −1 is `a`.
pub fn value(name: &str, elem_type: i32, dims: &[i64]) -> ValueInfoProto {
    let dim = |&d: &i64| {
        use tensor_shape_proto::{Dimension, dimension::Value};
        let value = match d {
            0.. => Value::DimValue(d),
            _ => Value::DimParam(((b'a' + (-d - 1) as u8) as char).to_string()),
        };
        Dimension {
            value: Some(value),
            ..Default::default()
        }
    };
    let shape = onnx_protobuf::TensorShapeProto {
        dim: dims.iter().map(dim).collect(),
        ..Default::default()
    };
    let tensor = type_proto::Tensor {
        elem_type,
        shape: Some(shape).into(),
        ..Default::default()
    };
    let ty = TypeProto {
        value: Some(type_proto::Value::TensorType(tensor)),
        ..Default::default()
    };
    ValueInfoProto {
        name: name.into(),
        type_: Some(ty).into(),
        ..Default::default()
    }
}

/// An f32 constant.
pub fn floats(name: &str, dims: &[i64], data: &[f32]) -> TensorProto {
    TensorProto {
        name: name.into(),
        data_type: 1,
        dims: dims.to_vec(),
        raw_data: data.iter().flat_map(|v| v.to_le_bytes()).collect(),
        ..Default::default()
    }
}

/// An i64 constant.
pub fn ints(name: &str, data: &[i64]) -> TensorProto {
    TensorProto {
        name: name.into(),
        data_type: 7,
        dims: vec![data.len() as i64],
        int64_data: data.to_vec(),
        ..Default::default()
    }
}

/// A model of opset 17 over a graph.
pub fn model(graph: GraphProto) -> ModelProto {
    let opset = OperatorSetIdProto {
        version: 17,
        ..Default::default()
    };
    ModelProto {
        ir_version: 8,
        opset_import: vec![opset],
        graph: Some(graph).into(),
        ..Default::default()
    }
}

/// Writes a model and gives its path.
pub fn write(name: &str, model: &ModelProto) -> PathBuf {
    let path = scratch("models").join(format!("{name}.onnx"));
    std::fs::write(&path, model.write_to_bytes().unwrap()).unwrap();
    path
}

/// Verifies a module and interprets its function.
pub fn run(module: &Module, inputs: &[Tensor]) -> Result<Vec<Tensor>, String> {
    if let Some(e) = verify_module(module).first() {
        return Err(format!("not verified: {e}"));
    }
    let mut interpreter = Interpreter::new(module).map_err(|e| e.to_string())?;
    interpreter
        .run("forward", inputs)
        .map_err(|e| e.to_string())
}

/// Fails where a module's text does not parse back to the same text.
pub fn round_trips(module: &Module) -> Result<(), String> {
    struct Stored(Vec<u8>);
    impl Loader for Stored {
        fn load(&self, _: &str, offset: u64, length: u64) -> Result<Bytes, String> {
            let range = offset as usize..(offset + length) as usize;
            Ok(Bytes::from(self.0[range].to_vec()))
        }
    }
    let options = PrintOptions {
        origins: true,
        ids: false,
    };
    let print = |module: &Module| {
        let mut stored = vec![];
        let text = print_with_blobs(module, &options, &mut |bytes| {
            stored.extend_from_slice(bytes);
            ("weights".into(), (stored.len() - bytes.len()) as u64)
        });
        (text, stored)
    };
    let (text, stored) = print(module);
    let back = parse_module(&text, &Stored(stored)).map_err(|e| e.to_string())?;
    match print(&back).0 == text {
        true => Ok(()),
        false => Err("the text changes when it is parsed and printed".into()),
    }
}
