//! Strings that a file holds in ways of their own, and those that are none.

use crate::support::*;
use kiln_import::import_onnx;
use kiln_ir::Tensor;
use onnx_protobuf::{
    AttributeProto, GraphProto, ModelProto, SparseTensorProto, TensorProto,
    attribute_proto::AttributeType,
};

fn strings(name: &str, dims: &[i64], all: &[&[u8]]) -> TensorProto {
    TensorProto {
        name: name.into(),
        data_type: 8,
        dims: dims.to_vec(),
        string_data: all.iter().map(|s| s.to_vec()).collect(),
        ..Default::default()
    }
}

fn attribute(name: &str, type_: AttributeType) -> AttributeProto {
    AttributeProto {
        name: name.into(),
        type_: type_.into(),
        ..Default::default()
    }
}

/// A model of one node over `x`, whose result is strings.
fn one(
    op: &str,
    inputs: &[&str],
    attributes: Vec<AttributeProto>,
    constants: Vec<TensorProto>,
) -> ModelProto {
    let mut n = node(op, inputs, &["y"]);
    n.attribute = attributes;
    let mut m = model(GraphProto {
        node: vec![n],
        input: vec![value("x", 8, &[-1])],
        output: vec![value("y", 8, &[-1])],
        initializer: constants,
        ..Default::default()
    });
    m.opset_import[0].version = 20;
    m
}

fn sparse(values: &[&[u8]], indices: &[i64]) -> ModelProto {
    let mut a = attribute("sparse_value", AttributeType::SPARSE_TENSOR);
    a.sparse_tensor = Some(SparseTensorProto {
        values: Some(strings("", &[values.len() as i64], values)).into(),
        indices: Some(ints("", indices)).into(),
        dims: vec![4],
        ..Default::default()
    })
    .into();
    one("Constant", &[], vec![a], vec![])
}

fn code(name: &str, m: &ModelProto) -> &'static str {
    let errors = import_onnx(&write(name, m), &options()).map(|_| ());
    errors.expect_err(name)[0].code
}

#[test]
fn sparse_strings_are_made_dense() {
    let m = import_onnx(
        &write("sparse-strings", &sparse(&[b"a", "é".as_bytes()], &[3, 1])),
        &options(),
    );
    let x = Tensor::strings([0], vec![]).unwrap();
    let y = run(&m.unwrap().module, &[x]).unwrap();
    let want = ["", "é", "", "a"].map(str::to_string).to_vec();
    assert_eq!(y, [Tensor::strings([4], want).unwrap()]);
    assert_eq!(code("sparse-outside", &sparse(&[b"a"], &[4])), "K0130");
}

#[test]
fn what_is_no_text_is_refused() {
    let bad: &[u8] = b"\xff\xfe";
    let constant = one(
        "StringConcat",
        &["x", "w"],
        vec![],
        vec![strings("w", &[1], &[bad])],
    );
    assert_eq!(code("no-utf8", &constant), "K0130");
    let mut list = attribute("value_strings", AttributeType::STRINGS);
    list.strings = vec![bad.to_vec()];
    assert_eq!(
        code("no-utf8-list", &one("Constant", &[], vec![list], vec![])),
        "K0113"
    );
    let mut pattern = attribute("pattern", AttributeType::STRING);
    pattern.s = b"(".to_vec();
    let mut m = one("RegexFullMatch", &["x"], vec![pattern], vec![]);
    m.graph.mut_or_insert_default().output = vec![value("y", 9, &[-1])];
    assert_eq!(code("no-expression", &m), "K0111");
}

#[test]
fn operators_of_numbers_refuse_strings() {
    for op in [
        "Relu",
        "NonZero",
        "Neg",
        "Softmax",
        "ReduceMax",
        "TopK",
        "ArgMax",
        "Less",
        "Add",
    ] {
        let inputs: &[&str] = match op {
            "Less" | "Add" => &["x", "x"],
            "TopK" => &["x", "k"],
            _ => &["x"],
        };
        let m = one(op, inputs, vec![], vec![ints("k", &[1])]);
        assert!(code(op, &m).starts_with("K01"), "{op}");
    }
}
