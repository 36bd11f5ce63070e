//! Models of older opsets brought to 13, the first in which a weight has a scale for
//! each channel.
//!
//! Most operators mean in opset 13 what they meant before. Of the others, those whose
//! attributes became inputs are rewritten here; the rest is refused by name.

use super::{Names, attribute, problem};
use crate::import::proto::{
    AttributeProto, GraphProto, NodeProto, TensorProto, attribute_proto::AttributeType,
};
use crate::import::{Diagnostic, Draft};
use std::collections::BTreeSet;

/// The first opset of `DequantizeLinear` along an axis.
pub const NEEDED: i64 = 13;
/// The IR version that belongs to it.
const IR_VERSION: i64 = 7;
/// What Kiln imports from.
const OLDEST: i64 = 7;

/// Brings a model to opset 13 if it is older; the opset that it had. K0744 where an
/// operator in it changed its meaning in a way that is not rewritten, or where it
/// has functions, which name opsets of their own.
pub fn raise(draft: &mut Draft) -> Result<i64, Box<Diagnostic>> {
    let plain = |domain: &str| matches!(domain, "" | "ai.onnx");
    let import = (draft.proto.opset_import.iter()).find(|o| plain(&o.domain));
    let had = import.map_or(0, |o| o.version);
    if had >= NEEDED {
        return Ok(had);
    }
    let refuse = |what: String| {
        let help = "export the model with opset 13 or newer, or convert it by \
                    onnx.version_converter.convert_version(model, 13)";
        problem(
            "K0744",
            format!("the model is of opset {had}: {what}"),
            help.into(),
        )
    };
    if had < OLDEST {
        return Err(refuse(format!("nothing before {OLDEST} is understood")));
    }
    if !draft.proto.functions.is_empty() {
        return Err(refuse("its functions are not brought to opset 13".into()));
    }
    let mut read = BTreeSet::new();
    super::rewrite::collect_reads(&draft.proto.graph, &mut read);
    let mut raiser = Raiser {
        names: Names::of(draft),
        read,
        made: vec![],
        had,
    };
    let graph = draft.proto.graph.mut_or_insert_default();
    raiser.graph(graph).map_err(|refused| {
        let (node, what) = *refused;
        let mut d = refuse(what);
        d.place.node = super::plan::name(&node).to_string();
        (d.place.op, d.place.opset) = (node.op_type, had);
        d
    })?;
    graph.initializer.append(&mut raiser.made);
    let imports = draft.proto.opset_import.iter_mut();
    imports
        .filter(|o| plain(&o.domain))
        .for_each(|o| o.version = NEEDED);
    draft.proto.ir_version = draft.proto.ir_version.max(IR_VERSION);
    Ok(had)
}

/// The node, and why.
type Refused = Box<(NodeProto, String)>;

struct Raiser {
    names: Names,
    /// Every value that something reads.
    read: BTreeSet<String>,
    /// Constants for what were attributes.
    made: Vec<TensorProto>,
    had: i64,
}

impl Raiser {
    fn graph(&mut self, graph: &mut GraphProto) -> Result<(), Refused> {
        for mut node in std::mem::take(&mut graph.node) {
            for a in &mut node.attribute {
                let inner = a.g.as_mut().into_iter().chain(&mut a.graphs);
                for g in inner {
                    self.graph(g)?;
                }
            }
            if !matches!(&node.domain[..], "" | "ai.onnx") {
                graph.node.push(node);
                continue;
            }
            let found = self
                .node(&mut node)
                .map_err(|what| Box::new((node.clone(), what)))?;
            match found {
                Some(several) => graph.node.extend(several),
                None => graph.node.push(node),
            }
        }
        Ok(())
    }

    /// Rewrites a node in place, or gives what takes its place; or says why not.
    fn node(&mut self, node: &mut NodeProto) -> Result<Option<Vec<NodeProto>>, String> {
        let had = self.had;
        match &node.op_type[..] {
            "Squeeze" | "Unsqueeze" | "ReduceSum" => self.ints(node, "axes", 1),
            "Split" => self.ints(node, "split", 1),
            "Pad" if had < 11 => {
                self.ints(node, "pads", 1);
                self.float(node, "value", 2);
            }
            "Clip" if had < 11 => {
                self.float(node, "min", 1);
                self.float(node, "max", 2);
            }
            "Slice" if had < 10 => {
                let axes = attribute(node, "axes").is_some();
                self.ints(node, "starts", 1);
                self.ints(node, "ends", 2);
                if axes {
                    self.ints(node, "axes", 3);
                }
            }
            "TopK" if had < 10 => {
                let k = attribute(node, "k").map_or(1, |a| a.i);
                take(node, "k");
                self.input(node, 1, vec![k]);
            }
            "Dropout" if had < 12 => {
                let used = |mask: &String| !mask.is_empty() && self.read.contains(mask);
                if node.output.get(1).is_some_and(used) {
                    return Err("Dropout's mask changed its type".into());
                }
                node.output.truncate(1);
                // What it does while a model runs does not depend on the ratio.
                take(node, "ratio");
            }
            "Scatter" => node.op_type = "ScatterElements".into(),
            "Softmax" | "LogSoftmax" | "Hardmax" => return Ok(Some(self.flattened(node))),
            "BatchNormalization" if had < 9 => match take(node, "spatial") {
                Some(a) if a.i == 0 => {
                    return Err("normalization of each element is gone since opset 9".into());
                }
                _ => {}
            },
            "Upsample" => return Err("Upsample is Resize since opset 10".into()),
            "Resize" if had < 11 => {
                return Err("Resize counts pixels otherwise since opset 11".into());
            }
            "Resize" if mode(node) == "tf_half_pixel_for_nn" => {
                return Err("Resize lost its mode tf_half_pixel_for_nn in opset 13".into());
            }
            "Scan" if had < 9 => return Err("Scan lost its batch axis in opset 9".into()),
            "GatherND" if had < 11 => return Err("GatherND came with opset 11".into()),
            _ => {}
        }
        Ok(None)
    }

    /// Before opset 13 these made a matrix of their input, split at `axis`, and worked
    /// along its rows.
    fn flattened(&mut self, node: &NodeProto) -> Vec<NodeProto> {
        let axis = attribute(node, "axis").map_or(1, |a| a.i);
        let (x, y) = (node.input[0].clone(), node.output[0].clone());
        let mut name = |what: &str| self.names.fresh(format!("{y}_{what}"));
        let (shape, flat, out) = (name("shape"), name("flat"), name("rows"));
        let mut make = |op: &str, inputs: &[&str], output: &str, axis: Option<i64>| NodeProto {
            name: name(op),
            op_type: op.into(),
            input: inputs.iter().map(|i| i.to_string()).collect(),
            output: vec![output.into()],
            attribute: axis.map(|a| integer("axis", a)).into_iter().collect(),
            ..Default::default()
        };
        let rows = NodeProto {
            name: node.name.clone(),
            ..make(&node.op_type, &[&flat], &out, Some(-1))
        };
        vec![
            make("Shape", &[&x], &shape, None),
            make("Flatten", &[&x], &flat, Some(axis)),
            rows,
            make("Reshape", &[&out, &shape], &y, None),
        ]
    }

    /// Makes an input of a list of integers, if the node has it.
    fn ints(&mut self, node: &mut NodeProto, name: &str, at: usize) {
        if let Some(a) = take(node, name) {
            self.input(node, at, a.ints);
        }
    }

    fn float(&mut self, node: &mut NodeProto, name: &str, at: usize) {
        if let Some(a) = take(node, name) {
            let raw = a.f.to_le_bytes().to_vec();
            self.put(node, at, 1, vec![], raw);
        }
    }

    fn input(&mut self, node: &mut NodeProto, at: usize, values: Vec<i64>) {
        let raw = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        self.put(node, at, 7, vec![values.len() as i64], raw);
    }

    fn put(
        &mut self,
        node: &mut NodeProto,
        at: usize,
        data_type: i32,
        dims: Vec<i64>,
        raw: Vec<u8>,
    ) {
        let stem = format!("{}_input_{at}", super::plan::name(node));
        let name = self.names.fresh(stem);
        self.made.push(TensorProto {
            name: name.clone(),
            data_type,
            dims,
            raw_data: raw,
            ..Default::default()
        });
        node.input
            .resize(node.input.len().max(at + 1), String::new());
        node.input[at] = name;
    }
}

fn integer(name: &str, i: i64) -> AttributeProto {
    AttributeProto {
        name: name.into(),
        type_: AttributeType::INT.into(),
        i,
        ..Default::default()
    }
}

fn mode(node: &NodeProto) -> &str {
    let found = attribute(node, "coordinate_transformation_mode");
    found.map_or("", |a| std::str::from_utf8(&a.s).unwrap_or(""))
}

/// Takes an attribute from a node.
fn take(node: &mut NodeProto, name: &str) -> Option<AttributeProto> {
    let at = node.attribute.iter().position(|a| a.name == name)?;
    Some(node.attribute.remove(at))
}
