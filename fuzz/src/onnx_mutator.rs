//! Changes to models that keep most of them models: other operators, edges,
//! attributes, shapes, types and constants.

use crate::random::Random;
use libfuzzer_sys::fuzzer_mutate;
use onnx_protobuf::attribute_proto::AttributeType;
use onnx_protobuf::tensor_shape_proto::{Dimension, dimension};
use onnx_protobuf::{
    AttributeProto, GraphProto, Message, ModelProto, NodeProto, TensorProto, TypeProto,
    ValueInfoProto, type_proto,
};
use std::sync::LazyLock;

/// Operators and attributes by name, from libFuzzer's dictionary of this target.
struct Names {
    operators: Vec<&'static str>,
    attributes: Vec<&'static str>,
}

static NAMES: LazyLock<Names> = LazyLock::new(|| {
    let lines = include_str!("../dictionaries/onnx.dict").lines();
    let names = lines.filter_map(|l| l.strip_prefix('"')?.strip_suffix('"'));
    let capital = |n: &&str| n.starts_with(|c: char| c.is_ascii_uppercase());
    let (operators, attributes) = names.partition(capital);
    Names {
        operators,
        attributes,
    }
});

/// libFuzzer's custom mutator.
pub fn mutate(data: &mut [u8], size: usize, max_size: usize, seed: u32) -> usize {
    let mut r = Random::new(seed);
    let parsed = ModelProto::parse_from_bytes(&data[..size]).ok();
    let model = parsed.filter(|m| m.graph.is_some() && !r.once_in(10));
    let Some(mut model) = model else {
        return fuzzer_mutate(data, size, max_size);
    };
    for _ in 0..1 + r.below(4) {
        change_model(&mut model, &mut r);
    }
    match model.write_to_bytes() {
        Ok(bytes) if bytes.len() <= max_size => {
            data[..bytes.len()].copy_from_slice(&bytes);
            bytes.len()
        }
        _ => fuzzer_mutate(data, size, max_size),
    }
}

fn change_model(model: &mut ModelProto, r: &mut Random) {
    if r.once_in(16)
        && let Some(opset) = pick(&mut model.opset_import, r)
    {
        opset.version = 7 + r.below(20) as i64;
        return;
    }
    if r.once_in(4)
        && let Some(function) = pick(&mut model.functions, r)
    {
        let names = node_names(&function.node);
        change_nodes(&mut function.node, &names, r);
        return;
    }
    if let Some(graph) = model.graph.as_mut() {
        change_graph(graph, &[], r);
    }
}

/// Changes a graph or one inside it; `outer` are names that it may use too.
fn change_graph(graph: &mut GraphProto, outer: &[String], r: &mut Random) {
    let mut names = node_names(&graph.node);
    names.extend(graph.input.iter().map(|i| i.name.clone()));
    names.extend(graph.initializer.iter().map(|t| t.name.clone()));
    names.extend_from_slice(outer);
    let graphs = graph.node.iter_mut().flat_map(|n| &mut n.attribute);
    let mut inner: Vec<&mut GraphProto> = graphs.filter_map(|a| a.g.as_mut()).collect();
    if !inner.is_empty() && r.once_in(2) {
        let at = r.below(inner.len());
        return change_graph(inner[at], &names, r);
    }
    match r.below(10) {
        0 | 1 => match pick(&mut graph.initializer, r) {
            Some(t) => change_tensor(t, r),
            None => graph
                .initializer
                .push(small_tensor(r.one_of(&["c", "x", "w"]), r)),
        },
        2 | 3 => match pick(&mut graph.input, r) {
            Some(input) => change_value(input, r),
            None => graph.input.push(ValueInfoProto::default()),
        },
        4 => {
            // Outputs get other values; an undeclared type is inferred.
            let name = some_name(&names, r);
            match pick(&mut graph.output, r) {
                Some(output) if r.once_in(2) => output.name = name,
                Some(output) => change_value(output, r),
                None => graph.output.push(ValueInfoProto {
                    name,
                    ..Default::default()
                }),
            }
        }
        _ => change_nodes(&mut graph.node, &names, r),
    }
}

fn change_nodes(nodes: &mut Vec<NodeProto>, names: &[String], r: &mut Random) {
    match r.below(12) {
        0 => {
            let node = new_node(nodes.len(), names, r);
            nodes.push(node);
        }
        1 if !nodes.is_empty() => {
            let mut copy = r.one_of(nodes);
            let fresh = nodes.len();
            for (i, output) in copy.output.iter_mut().enumerate() {
                *output = format!("n{fresh}_{i}");
            }
            nodes.push(copy);
        }
        2 if !nodes.is_empty() => drop(nodes.remove(r.below(nodes.len()))),
        _ => {
            if let Some(node) = pick(nodes, r) {
                change_node(node, names, r);
            }
        }
    }
}

fn new_node(count: usize, names: &[String], r: &mut Random) -> NodeProto {
    NodeProto {
        op_type: r.one_of(&NAMES.operators).to_string(),
        input: (0..r.below(4)).map(|_| some_name(names, r)).collect(),
        output: (0..1 + r.below(2))
            .map(|i| format!("n{count}_{i}"))
            .collect(),
        attribute: (0..r.below(3)).map(|_| new_attribute(r)).collect(),
        ..Default::default()
    }
}

fn change_node(node: &mut NodeProto, names: &[String], r: &mut Random) {
    match r.below(10) {
        0 => node.op_type = r.one_of(&NAMES.operators).to_string(),
        1 => node.input.push(some_name(names, r)),
        2 => drop(node.input.pop()),
        3 | 4 => {
            let name = match r.below(6) {
                0 => String::new(),
                _ => some_name(names, r),
            };
            if let Some(input) = pick(&mut node.input, r) {
                *input = name;
            }
        }
        5 if r.once_in(2) => drop(node.output.pop()),
        5 => node.output.push(format!("o{}", r.below(4))),
        6 => node.attribute.push(new_attribute(r)),
        7 if !node.attribute.is_empty() && r.once_in(2) => {
            node.attribute.remove(r.below(node.attribute.len()));
        }
        _ => match pick(&mut node.attribute, r) {
            Some(attribute) => change_attribute(attribute, r),
            None => node.attribute.push(new_attribute(r)),
        },
    }
}

fn new_attribute(r: &mut Random) -> AttributeProto {
    let mut attribute = AttributeProto {
        name: r.one_of(&NAMES.attributes).to_string(),
        ..Default::default()
    };
    let kind = match r.below(5) {
        0 => {
            attribute.ints = (0..r.below(6)).map(|_| r.integer()).collect();
            AttributeType::INTS
        }
        1 => {
            attribute.f = float(r);
            AttributeType::FLOAT
        }
        2 => {
            attribute.s = text(r).as_bytes().to_vec();
            AttributeType::STRING
        }
        3 => {
            attribute.t = Some(small_tensor("t", r)).into();
            AttributeType::TENSOR
        }
        _ => {
            attribute.i = r.integer();
            AttributeType::INT
        }
    };
    attribute.type_ = kind.into();
    attribute
}

fn change_attribute(a: &mut AttributeProto, r: &mut Random) {
    match r.below(9) {
        0 => a.name = r.one_of(&NAMES.attributes).to_string(),
        1 => {
            let name = std::mem::take(&mut a.name);
            *a = AttributeProto {
                name,
                ..new_attribute(r)
            };
        }
        2 => a.ints.push(r.integer()),
        3 => drop(a.ints.pop()),
        4 => match a.t.as_mut() {
            Some(t) => change_tensor(t, r),
            None => a.i = r.integer(),
        },
        _ if !a.ints.is_empty() => {
            let at = r.below(a.ints.len());
            a.ints[at] = r.integer();
        }
        _ if !a.floats.is_empty() => {
            let at = r.below(a.floats.len());
            a.floats[at] = float(r);
        }
        _ if !a.s.is_empty() => a.s = text(r).as_bytes().to_vec(),
        _ => (a.i, a.f) = (r.integer(), float(r)),
    }
}

fn text(r: &mut Random) -> &'static str {
    r.one_of(&[
        "",
        "constant",
        "reflect",
        "edge",
        "wrap",
        "linear",
        "cubic",
        "nearest",
        "floor",
        "SAME_UPPER",
        "SAME_LOWER",
        "VALID",
        "bidirectional",
        "reverse",
        "tanh",
        "none",
        "mul",
        "add",
        "max",
        "half_pixel",
        "align_corners",
        "tf_crop_and_resize",
        "ij,jk->ik",
        "...ii->i",
        "i,j",
        "->",
    ])
}

fn float(r: &mut Random) -> f32 {
    r.one_of(&[
        0.0,
        -0.0,
        1.0,
        -1.0,
        0.5,
        2.0,
        1e-30,
        1e30,
        f32::NAN,
        f32::INFINITY,
        f32::NEG_INFINITY,
    ])
}

fn small_tensor(name: &str, r: &mut Random) -> TensorProto {
    let count = r.below(5);
    let mut t = TensorProto {
        name: name.into(),
        data_type: r.one_of(&[1, 6, 7, 9, 11]),
        ..Default::default()
    };
    if count != 1 || r.once_in(2) {
        t.dims.push(count as i64);
    }
    for _ in 0..count {
        match t.data_type {
            1 => t.float_data.push(float(r)),
            11 => t.double_data.push(f64::from(float(r))),
            7 => t.int64_data.push(r.integer()),
            _ => t.int32_data.push(r.integer() as i32),
        }
    }
    t
}

fn change_tensor(t: &mut TensorProto, r: &mut Random) {
    match r.below(8) {
        0 => {
            let name = std::mem::take(&mut t.name);
            *t = small_tensor(&name, r);
        }
        1 => t.data_type = r.below(28) as i32,
        2 => {
            if let Some(d) = pick(&mut t.dims, r) {
                *d = r.integer();
            }
        }
        3 => t.dims.push(r.one_of(&[0, 1, 1, 2, -1])),
        4 => drop(t.dims.pop()),
        5 => {
            if let Some(v) = pick(&mut t.int64_data, r) {
                *v = r.integer();
            }
        }
        6 if t.raw_data.len() >= 8 => {
            let at = r.below(t.raw_data.len() / 8) * 8;
            t.raw_data[at..at + 8].copy_from_slice(&r.integer().to_le_bytes());
        }
        _ => {
            if let Some(b) = pick(&mut t.raw_data, r) {
                *b = r.number() as u8;
            }
        }
    }
}

fn change_value(v: &mut ValueInfoProto, r: &mut Random) {
    let ty = v.type_.mut_or_insert_default();
    if r.once_in(20) {
        *ty = TypeProto::default();
        return;
    }
    let Some(type_proto::Value::TensorType(tensor)) = &mut ty.value else {
        ty.value = Some(type_proto::Value::TensorType(Default::default()));
        return;
    };
    if r.once_in(5) {
        tensor.elem_type = r.below(28) as i32;
        return;
    }
    if r.once_in(12) {
        tensor.shape.clear();
        return;
    }
    let shape = tensor.shape.mut_or_insert_default();
    let size = match r.below(3) {
        0 => dimension::Value::DimParam(r.one_of(&["a", "b", "N", "", "a + 1", "a*b", "/"]).into()),
        _ => dimension::Value::DimValue(r.integer()),
    };
    let new = Dimension {
        value: Some(size),
        ..Default::default()
    };
    match r.below(6) {
        0 => shape.dim.push(new),
        1 => drop(shape.dim.pop()),
        2 if shape.dim.len() > 1 => {
            let (a, b) = (r.below(shape.dim.len()), r.below(shape.dim.len()));
            shape.dim.swap(a, b);
        }
        _ => {
            if let Some(d) = pick(&mut shape.dim, r) {
                *d = new;
            }
        }
    }
}

fn node_names(nodes: &[NodeProto]) -> Vec<String> {
    nodes.iter().flat_map(|n| n.output.clone()).collect()
}

fn some_name(names: &[String], r: &mut Random) -> String {
    match names.is_empty() {
        true => "x".into(),
        false => r.one_of(names),
    }
}

fn pick<'a, T>(all: &'a mut [T], r: &mut Random) -> Option<&'a mut T> {
    let at = r.below(all.len());
    all.get_mut(at)
}
