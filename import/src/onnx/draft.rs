//! A model to be changed and written again.
//!
//! The messages are those of the file, whole; contents of long constants stay mapped,
//! in the model's file or in its external data, until they are read or written. So a
//! model of many gigabytes is changed in little memory.

use super::files::Files;
use super::{open, tensor, wire};
use crate::diagnostic::{Diagnostic, code};
use kiln_ir::Tensor;
use onnx_protobuf::tensor_proto::DataLocation;
use onnx_protobuf::{
    GraphProto, Message, ModelProto, NodeProto, StringStringEntryProto, TensorProto,
};
use std::fs::File;
use std::io::{BufWriter, Seek, Write};
use std::path::Path;

/// Constants at least this long go into the file of external data.
const EXTERNAL_FROM: usize = 1024;
/// Where a constant begins in that file: what runtimes that map pages ask for.
const ALIGNMENT: u64 = 4096;
/// A protobuf message is shorter than 2 GiB; nodes and names take some of it.
const MOST_INSIDE: u64 = (1 << 31) - (1 << 27);

/// A model that is open for changes.
pub struct Draft {
    /// The model. Long constants hold no contents here: [`Weights::read`] has them.
    pub proto: ModelProto,
    /// Where those contents are.
    pub weights: Weights,
}

/// The contents of a draft's constants.
pub struct Weights {
    name: String,
    files: Files,
}

impl Draft {
    /// Opens a model: K0101 where it cannot be read, K0102 where it is no ONNX model.
    pub fn open(path: &Path) -> Result<Draft, Vec<Diagnostic>> {
        let source = open(path)?;
        let name = source.name;
        let not_onnx = |what: String| {
            let d = Diagnostic::error(code::FORMAT, format!("this is no ONNX model: {what}"))
                .help("the file is damaged or of another format: export or fetch it again");
            vec![d.at(&name, "")]
        };
        let slim = wire::slim_whole((*source.model).as_ref()).map_err(not_onnx)?;
        let proto = ModelProto::parse_from_bytes(&slim).map_err(|e| not_onnx(e.to_string()))?;
        if proto.graph.is_none() {
            return Err(not_onnx("it holds no graph".into()));
        }
        let files = Files::new(source.model, source.folder.as_deref());
        Ok(Draft {
            proto,
            weights: Weights { name, files },
        })
    }

    /// Bytes that the contents of all constants take.
    pub fn weight_bytes(&mut self) -> Result<u64, Box<Diagnostic>> {
        let weights = &mut self.weights;
        let mut bytes = 0;
        each_tensor(&mut self.proto, &mut |t| {
            bytes += weights.length(t)? as u64;
            Ok(())
        })?;
        Ok(bytes)
    }

    /// Whether the model fits into one file, as far as its constants go.
    pub fn fits_one_file(&mut self) -> Result<bool, Box<Diagnostic>> {
        Ok(self.weight_bytes()? <= MOST_INSIDE)
    }

    /// Writes the model to `folder/name`, on the disk when this returns: with all
    /// constants in it, or, if `external`, with long ones in `folder/name.data`.
    /// K0130 and K0131 where a constant cannot be read, K0707 where a file cannot be
    /// written.
    pub fn write(
        mut self,
        folder: &Path,
        name: &str,
        external: bool,
    ) -> Result<(), Box<Diagnostic>> {
        let weights = &mut self.weights;
        let data_name = format!("{name}.data");
        let data_path = folder.join(&data_name);
        let mut data = match external {
            true => Some(create(&data_path)?),
            false => None,
        };
        each_tensor(&mut self.proto, &mut |t| {
            let long = weights.length(t)? >= EXTERNAL_FROM;
            match &mut data {
                Some(file) if long => weights.put_outside(t, &data_name, &data_path, file),
                _ => weights.put_inside(t),
            }
        })?;
        if let Some(file) = data {
            finish(&data_path, file)?;
        }
        let path = folder.join(name);
        let mut file = create(&path)?;
        let written = self.proto.write_to_writer(&mut file);
        written.map_err(|e| cannot_write(&path, e))?;
        finish(&path, file)
    }
}

impl Weights {
    /// A constant of the draft: its contents are mapped where they are long. K0130
    /// where they do not fit its declaration, K0131 where external data is missing.
    pub fn read(&mut self, t: &TensorProto) -> Result<Tensor, Box<Diagnostic>> {
        let loaded = tensor::load(t, &mut self.files);
        let (tensor, _) = loaded.map_err(|e| Box::new(e.diagnostic().at(&self.name, &t.name)))?;
        Ok(tensor)
    }

    /// Bytes of the contents that are not kept in typed fields.
    fn length(&mut self, t: &TensorProto) -> Result<usize, Box<Diagnostic>> {
        let span = tensor::mapped_span(t, &mut self.files);
        let span = span.map_err(|e| Box::new(e.diagnostic().at(&self.name, &t.name)))?;
        Ok(span.map_or(t.raw_data.len(), |s| s.range.len()))
    }

    /// Calls `f` with the contents that lie elsewhere; whether there are any.
    fn mapped(
        &mut self,
        t: &TensorProto,
        f: impl FnOnce(&[u8]) -> Result<(), Box<Diagnostic>>,
    ) -> Result<bool, Box<Diagnostic>> {
        let fail = |e: super::cx::Fail, file: &str| Box::new(e.diagnostic().at(file, &t.name));
        let span = tensor::mapped_span(t, &mut self.files).map_err(|e| fail(e, &self.name))?;
        let Some(span) = span else {
            return Ok(false);
        };
        match (*span.file).as_ref().get(span.range) {
            Some(bytes) => f(bytes).map(|()| true),
            None => Err(fail(
                super::cx::Fail::new(code::CONSTANT, "the constant lies outside the file")
                    .help("the file is damaged: export or fetch it again"),
                &self.name,
            )),
        }
    }

    fn put_inside(&mut self, t: &mut TensorProto) -> Result<(), Box<Diagnostic>> {
        let mut raw = vec![];
        let moved = self.mapped(t, |bytes| {
            raw = bytes.to_vec();
            Ok(())
        })?;
        if moved {
            forget_place(t);
            t.raw_data = raw;
        }
        Ok(())
    }

    fn put_outside(
        &mut self,
        t: &mut TensorProto,
        location: &str,
        path: &Path,
        file: &mut BufWriter<File>,
    ) -> Result<(), Box<Diagnostic>> {
        let at = file.stream_position().map_err(|e| cannot_write(path, e))?;
        let offset = at.next_multiple_of(ALIGNMENT);
        let mut put = |bytes: &[u8]| -> Result<usize, Box<Diagnostic>> {
            let padding = vec![0; (offset - at) as usize];
            let written = file
                .write_all(&padding)
                .and_then(|()| file.write_all(bytes));
            written.map_err(|e| cannot_write(path, e))?;
            Ok(bytes.len())
        };
        let mut length = 0;
        let moved = self.mapped(t, |bytes| {
            length = put(bytes)?;
            Ok(())
        })?;
        if !moved {
            length = put(&t.raw_data)?;
        }
        forget_place(t);
        t.raw_data = vec![];
        t.data_location = DataLocation::EXTERNAL.into();
        let entries = [
            ("location", location.to_string()),
            ("offset", offset.to_string()),
            ("length", length.to_string()),
        ];
        t.external_data = entries
            .into_iter()
            .map(|(key, value)| StringStringEntryProto {
                key: key.into(),
                value,
                ..Default::default()
            })
            .collect();
        Ok(())
    }
}

/// Takes away where the contents of a constant were.
fn forget_place(t: &mut TensorProto) {
    let unknown = t.special_fields.mut_unknown_fields();
    unknown.remove(wire::MOVED_FIELD);
    t.data_location = DataLocation::DEFAULT.into();
    t.external_data.clear();
}

fn cannot_write(path: &Path, e: impl std::fmt::Display) -> Box<Diagnostic> {
    let d = Diagnostic::error(code::WRITE, format!("the file cannot be written: {e}"))
        .help("check the folder's permissions and the space on the disk");
    Box::new(d.at(&path.display().to_string(), ""))
}

fn create(path: &Path) -> Result<BufWriter<File>, Box<Diagnostic>> {
    let file = File::create(path).map_err(|e| cannot_write(path, e))?;
    Ok(BufWriter::with_capacity(1 << 20, file))
}

fn finish(path: &Path, file: BufWriter<File>) -> Result<(), Box<Diagnostic>> {
    let file = file.into_inner().map_err(|e| cannot_write(path, e))?;
    file.sync_all().map_err(|e| cannot_write(path, e))
}

type Visit<'a> = dyn FnMut(&mut TensorProto) -> Result<(), Box<Diagnostic>> + 'a;

/// Calls `f` with every constant of the model, inner graphs and functions included.
fn each_tensor(model: &mut ModelProto, f: &mut Visit) -> Result<(), Box<Diagnostic>> {
    if let Some(graph) = model.graph.as_mut() {
        in_graph(graph, f)?;
    }
    for training in &mut model.training_info {
        for graph in [&mut training.initialization, &mut training.algorithm] {
            graph.as_mut().map_or(Ok(()), |g| in_graph(g, f))?;
        }
    }
    for function in &mut model.functions {
        function.node.iter_mut().try_for_each(|n| in_node(n, f))?;
        for a in &mut function.attribute_proto {
            in_attribute(a, f)?;
        }
    }
    Ok(())
}

fn in_graph(graph: &mut GraphProto, f: &mut Visit) -> Result<(), Box<Diagnostic>> {
    graph.initializer.iter_mut().try_for_each(&mut *f)?;
    for sparse in &mut graph.sparse_initializer {
        sparse.values.as_mut().map_or(Ok(()), &mut *f)?;
        sparse.indices.as_mut().map_or(Ok(()), &mut *f)?;
    }
    graph.node.iter_mut().try_for_each(|n| in_node(n, f))
}

fn in_node(node: &mut NodeProto, f: &mut Visit) -> Result<(), Box<Diagnostic>> {
    for a in &mut node.attribute {
        in_attribute(a, f)?;
    }
    Ok(())
}

fn in_attribute(
    a: &mut onnx_protobuf::AttributeProto,
    f: &mut Visit,
) -> Result<(), Box<Diagnostic>> {
    a.t.as_mut().map_or(Ok(()), &mut *f)?;
    a.tensors.iter_mut().try_for_each(&mut *f)?;
    let sparse = a.sparse_tensor.as_mut().into_iter();
    for sparse in sparse.chain(&mut a.sparse_tensors) {
        sparse.values.as_mut().map_or(Ok(()), &mut *f)?;
        sparse.indices.as_mut().map_or(Ok(()), &mut *f)?;
    }
    a.g.as_mut().map_or(Ok(()), |g| in_graph(g, f))?;
    a.graphs.iter_mut().try_for_each(|g| in_graph(g, f))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn constant(name: &str, n: usize) -> TensorProto {
        TensorProto {
            name: name.into(),
            data_type: 1,
            dims: vec![n as i64],
            raw_data: (0..n).flat_map(|i| (i as f32).to_le_bytes()).collect(),
            ..Default::default()
        }
    }

    /// A model with a long and a short constant, and a long one in a node.
    fn model() -> ModelProto {
        let value = onnx_protobuf::AttributeProto {
            name: "value".into(),
            t: Some(constant("v", 700)).into(),
            ..Default::default()
        };
        let node = NodeProto {
            op_type: "Constant".into(),
            doc_string: "kept".into(),
            attribute: vec![value],
            ..Default::default()
        };
        let graph = GraphProto {
            name: "g".into(),
            initializer: vec![constant("w", 600), constant("b", 3)],
            node: vec![node],
            ..Default::default()
        };
        ModelProto {
            graph: Some(graph).into(),
            ..Default::default()
        }
    }

    #[test]
    fn a_model_is_the_same_after_each_way_of_writing_it() {
        let folder = std::env::temp_dir().join(format!("kiln-draft-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let path = |name: &str| folder.join(name);
        std::fs::write(path("a.onnx"), model().write_to_bytes().unwrap()).unwrap();
        let opened = |name: &str| Draft::open(&path(name)).unwrap();
        let mut draft = opened("a.onnx");
        assert_eq!(draft.weight_bytes().unwrap(), 4 * (700 + 600 + 3));
        // Out to a file beside it, changed there, and back into one file.
        draft.write(&folder, "b.onnx", true).unwrap();
        assert!(std::fs::metadata(path("b.onnx")).unwrap().len() < 500);
        assert!(std::fs::metadata(path("b.onnx.data")).unwrap().len() > 5000);
        let mut draft = opened("b.onnx");
        let w = draft.proto.graph.initializer[0].clone();
        let read = draft.weights.read(&w).unwrap();
        assert_eq!((read.len(), read.get_f64(599)), (600, 599.0));
        draft.write(&folder, "c.onnx", false).unwrap();
        let back = std::fs::read(path("c.onnx")).unwrap();
        assert!(ModelProto::parse_from_bytes(&back).unwrap() == model());
        std::fs::remove_file(path("b.onnx.data")).unwrap();
        assert_eq!(opened("b.onnx").weight_bytes().unwrap_err().code, "K0131");
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
