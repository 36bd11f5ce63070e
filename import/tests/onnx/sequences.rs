//! Sequences and optionals: their ports, and what is refused.

use crate::support::*;
use kiln_import::{Diagnostic, ImportOptions, import_onnx};
use kiln_ir::{DType, Dim, Tensor};
use onnx_protobuf::{
    AttributeProto, GraphProto, NodeProto, TypeProto, ValueInfoProto,
    attribute_proto::AttributeType, type_proto,
};
use std::path::Path;

/// A sequence of f32[a].
fn sequence(name: &str) -> ValueInfoProto {
    let element = type_proto::Sequence {
        elem_type: value("", 1, &[-1]).type_,
        ..Default::default()
    };
    of_type(name, type_proto::Value::SequenceType(element))
}

/// An optional f32[a].
fn optional(name: &str) -> ValueInfoProto {
    let element = type_proto::Optional {
        elem_type: value("", 1, &[-1]).type_,
        ..Default::default()
    };
    of_type(name, type_proto::Value::OptionalType(element))
}

fn of_type(name: &str, ty: type_proto::Value) -> ValueInfoProto {
    let ty = TypeProto {
        value: Some(ty),
        ..Default::default()
    };
    ValueInfoProto {
        name: name.into(),
        type_: Some(ty).into(),
        ..Default::default()
    }
}

fn graph(
    nodes: Vec<NodeProto>,
    inputs: Vec<ValueInfoProto>,
    outputs: Vec<ValueInfoProto>,
) -> GraphProto {
    GraphProto {
        node: nodes,
        input: inputs,
        output: outputs,
        ..Default::default()
    }
}

fn with_graph(mut node: NodeProto, name: &str, graph: GraphProto) -> NodeProto {
    node.attribute.push(AttributeProto {
        name: name.into(),
        type_: AttributeType::GRAPH.into(),
        g: Some(graph).into(),
        ..Default::default()
    });
    node
}

fn dims(list: &[(&str, i64)]) -> ImportOptions {
    ImportOptions {
        dims: list.iter().map(|&(n, c)| (n.to_string(), c)).collect(),
        ..options()
    }
}

fn ports(path: &Path, options: &ImportOptions) -> Result<[Vec<String>; 2], Vec<Diagnostic>> {
    let imported = import_onnx(path, options)?;
    let f = forward(&imported.module);
    let names = |all: &[kiln_ir::graph::Port]| all.iter().map(|p| p.name.to_string()).collect();
    Ok([names(&f.params), names(&f.results)])
}

/// The one error, by code and help.
fn refused(path: &Path, options: &ImportOptions) -> (&'static str, String) {
    match &import_onnx(path, options).err().unwrap_or_default()[..] {
        [e] => (e.code, e.help.clone()),
        other => panic!("{}: {other:?}", path.display()),
    }
}

#[test]
fn a_sequence_is_a_port_for_each_element() {
    let g = graph(
        vec![node("SequenceInsert", &["s", "x"], &["t"])],
        vec![sequence("s"), value("x", 1, &[-2])],
        vec![sequence("t")],
    );
    let path = write("sequence-ports", &model(g));
    assert_eq!(
        ports(&path, &dims(&[("s", 2)])).unwrap(),
        [vec!["s.0", "s.1", "x"], vec!["t.0", "t.1", "t.2"]]
    );
    assert_eq!(
        ports(&path, &dims(&[("s", 0)])).unwrap(),
        [vec!["x"], vec!["t.0"]]
    );
    // Each element has sizes of its own, which can be fixed, and can be frozen.
    let mut o = dims(&[("s", 2), ("s_0_dim0", 3)]);
    let frozen = Tensor::from_f32([2], &[1.0, 2.0]).unwrap();
    o.frozen.insert("s.1".into(), frozen.clone());
    o.inputs.insert("x".into(), vec![Dim::from(1)]);
    let imported = import_onnx(&path, &o).unwrap();
    let f = forward(&imported.module);
    assert_eq!(f.ty(f.body().params[0]).to_string(), "f32[3]");
    let x = Tensor::from_f32([1], &[7.0]).unwrap();
    let s = Tensor::from_f32([3], &[4.0, 5.0, 6.0]).unwrap();
    let got = run(&imported.module, &[s.clone(), x.clone()]).unwrap();
    assert_eq!(got, [s, frozen, x]);
    let (code, help) = refused(&path, &options());
    assert!(code == "K0112" && help.contains("--dim s=N"), "{help}");
    assert_eq!(refused(&path, &dims(&[("s", -1)])).0, "K0105");
    assert_eq!(refused(&path, &dims(&[("s", 1 << 40)])).0, "K0105");
    o.dims.insert("s".into(), 2);
    let wrong = Tensor::from_i64(DType::I64, [1], &[1]).unwrap();
    o.frozen.insert("s.1".into(), wrong);
    assert_eq!(refused(&path, &o).0, "K0105");
}

#[test]
fn ports_of_one_name_are_refused() {
    let g = graph(
        vec![node("Identity", &["s"], &["t"])],
        vec![sequence("s"), value("s.1", 1, &[-2])],
        vec![sequence("t")],
    );
    let path = write("sequence-names", &model(g));
    assert_eq!(refused(&path, &dims(&[("s", 2)])).0, "K0121");
    assert!(ports(&path, &dims(&[("s", 1)])).is_ok());
}

#[test]
fn an_optional_is_what_it_holds_or_nothing() {
    let has = node("OptionalHasElement", &["x"], &["y"]);
    let mut has = graph(vec![has], vec![optional("x")], vec![value("y", 9, &[])]);
    has.node.push(node("Identity", &["x"], &["z"]));
    has.output.push(optional("z"));
    let path = write("optional", &model(has));
    let some = ports(&path, &dims(&[("x", 1)])).unwrap();
    assert_eq!(some, [vec!["x"], vec!["y", "z"]]);
    let none = import_onnx(&path, &dims(&[("x", -1)])).unwrap();
    assert!(forward(&none.module).params.is_empty());
    let got = run(&none.module, &[]).unwrap();
    assert_eq!(got, [Tensor::scalar_i64(DType::Bool, 0)]);
    let (code, help) = refused(&path, &options());
    assert!(code == "K0112" && help.contains("--dim x=-1"), "{help}");
    assert_eq!(refused(&path, &dims(&[("x", 2)])).0, "K0105");
    let get = node("OptionalGetElement", &["x"], &["y"]);
    let get = graph(vec![get], vec![optional("x")], vec![value("y", 1, &[-1])]);
    let path = write("optional-get", &model(get));
    assert_eq!(refused(&path, &dims(&[("x", -1)])).0, "K0113");
}

#[test]
fn what_breaks_the_definition_is_told() {
    let refuses = |name: &str, nodes: Vec<NodeProto>| {
        let g = graph(
            nodes,
            vec![sequence("s"), value("x", 1, &[-2]), value("i", 7, &[])],
            vec![value("y", 1, &[-1])],
        );
        let mut g = model(g);
        let graph = g.graph.mut_or_insert_default();
        graph.initializer.push(ints("five", &[5]));
        refused(&write(name, &g), &dims(&[("s", 2)])).0
    };
    let at = node("SequenceAt", &["s", "five"], &["y"]);
    assert_eq!(refuses("sequence-beyond", vec![at]), "K0113");
    let of_tensor = node("SequenceAt", &["x", "five"], &["y"]);
    assert_eq!(refuses("sequence-of-tensor", vec![of_tensor]), "K0113");
    let as_tensor = node("Relu", &["s"], &["y"]);
    assert_eq!(refuses("sequence-as-tensor", vec![as_tensor]), "K0113");
    let mixed = node("SequenceInsert", &["s", "five"], &["t"]);
    let back = node("SequenceAt", &["t", "i"], &["y"]);
    assert_eq!(refuses("sequence-mixed", vec![mixed, back]), "K0113");
    // Elements of s may differ in shape: which is taken must be known.
    let by_data = node("SequenceAt", &["s", "i"], &["y"]);
    assert_eq!(refuses("sequence-by-data", vec![by_data]), "K0112");
    let insert = node("SequenceInsert", &["s", "x", "i"], &["t"]);
    let first = node("SequenceAt", &["t", "five"], &["y"]);
    assert_eq!(refuses("insert-by-data", vec![insert, first]), "K0112");
}

#[test]
fn loops_and_branches_that_data_decides_ask_for_it() {
    let grow = |nodes: Vec<NodeProto>| {
        let counters = [value("i", 7, &[]), value("on", 9, &[])];
        let inputs = counters.into_iter().chain([sequence("u")]).collect();
        let outputs = vec![value("go", 9, &[]), sequence("v")];
        graph(
            [vec![node("Identity", &["on"], &["go"])], nodes].concat(),
            inputs,
            outputs,
        )
    };
    let refuses = |name: &str, body: GraphProto| {
        let looped = with_graph(node("Loop", &["n", "", "s"], &["t"]), "body", body);
        let joined = node("SequenceAt", &["t", "zero"], &["y"]);
        let g = graph(
            vec![looped, joined],
            vec![sequence("s"), value("x", 1, &[-2]), value("n", 7, &[])],
            vec![value("y", 1, &[-1])],
        );
        let mut m = model(g);
        let g = m.graph.mut_or_insert_default();
        g.initializer.push(ints("zero", &[0]));
        let path = write(name, &m);
        let (code, help) = refused(&path, &dims(&[("s", 1)]));
        assert!(
            code == "K0112" && help.contains("--freeze"),
            "{code} {help}"
        );
        // With the trip count known it unrolls.
        let mut o = dims(&[("s", 1)]);
        o.frozen
            .insert("n".into(), Tensor::scalar_i64(DType::I64, 2));
        import_onnx(&path, &o).unwrap_or_else(|e| panic!("{name}: {e:?}"));
    };
    let reads = grow(vec![
        node("SequenceAt", &["u", "zero"], &["e"]),
        node("SequenceInsert", &["u", "e"], &["v"]),
    ]);
    refuses("loop-reads", reads);
    let twice = grow(vec![
        node("SequenceInsert", &["u", "x"], &["w"]),
        node("SequenceInsert", &["w", "x"], &["v"]),
    ]);
    refuses("loop-twice", twice);
    let shapes = grow(vec![
        node("Reshape", &["i", "one"], &["k"]),
        node("ConstantOfShape", &["k"], &["e"]),
        node("SequenceInsert", &["u", "e"], &["v"]),
    ]);
    let mut shapes = shapes;
    shapes.initializer.push(ints("one", &[1]));
    refuses("loop-shapes", shapes);
}

#[test]
fn branches_of_another_structure_ask_for_the_condition() {
    let made = |names: &[&str]| {
        let out = sequence("b");
        graph(
            vec![node("SequenceConstruct", names, &["b"])],
            vec![],
            vec![out],
        )
    };
    let branch = with_graph(node("If", &["c"], &["t"]), "then_branch", made(&["x"]));
    let branch = with_graph(branch, "else_branch", made(&["x", "x"]));
    let g = graph(
        vec![branch],
        vec![value("x", 1, &[-1]), value("c", 9, &[])],
        vec![sequence("t")],
    );
    let path = write("if-structure", &model(g));
    assert_eq!(refused(&path, &options()).0, "K0112");
    let mut o = options();
    o.frozen
        .insert("c".into(), Tensor::scalar_i64(DType::Bool, 0));
    let [_, results] = ports(&path, &o).unwrap();
    assert_eq!(results, ["t.0", "t.1"]);
}
