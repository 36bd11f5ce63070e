//! Files that are wrong: each gives a coded error that names the place.

use crate::support::*;
use kiln_import::{Diagnostic, Severity, check_onnx, import_onnx};
use onnx_protobuf::{
    AttributeProto, FunctionProto, GraphProto, Message, ModelProto, OperatorSetIdProto,
    StringStringEntryProto, TensorProto, attribute_proto::AttributeType,
    tensor_proto::DataLocation, type_proto,
};

/// A graph of these nodes from `x` to `y`, both f32[a].
fn graph(nodes: Vec<onnx_protobuf::NodeProto>) -> GraphProto {
    GraphProto {
        node: nodes,
        input: vec![value("x", 1, &[-1])],
        output: vec![value("y", 1, &[-1])],
        ..Default::default()
    }
}

fn errors(name: &str, m: &ModelProto) -> Vec<Diagnostic> {
    match import_onnx(&write(name, m), &options()) {
        Ok(_) => vec![],
        Err(e) => e,
    }
}

/// The one error of a model, by code and node.
fn error(name: &str, m: &ModelProto) -> (&'static str, String) {
    match &errors(name, m)[..] {
        [e] => (e.code, e.place.node.clone()),
        other => panic!("{name}: {other:?}"),
    }
}

#[test]
fn cycles_duplicates_and_missing_values_are_named() {
    let relu = |i: &str, o: &str| node("Relu", &[i], &[o]);
    let cycle = model(graph(vec![relu("q", "p"), relu("p", "q"), relu("q", "y")]));
    let (code, at) = error("cycle", &cycle);
    assert_eq!(code, "K0120");
    assert!(at == "Relu_p" || at == "Relu_q", "{at}");
    let twice = model(graph(vec![relu("x", "y"), relu("x", "y")]));
    assert_eq!(error("twice", &twice), ("K0121", "y".into()));
    let missing = model(graph(vec![relu("nowhere", "y")]));
    assert_eq!(error("missing", &missing), ("K0122", "Relu_y".into()));
    let no_output = model(graph(vec![relu("x", "z")]));
    assert_eq!(error("no-output", &no_output), ("K0122", "y".into()));
    let unsorted = model(graph(vec![relu("p", "y"), relu("x", "p")]));
    assert!(errors("unsorted", &unsorted).is_empty());
}

#[test]
fn every_gap_is_told_at_once() {
    let m = model(graph(vec![
        node("Frobnicate", &["x"], &["p"]),
        node("Frobnicate", &["p"], &["q"]),
        node("ImageDecoder", &["q"], &["r"]),
        node("Concat", &["x", "x"], &["s"]),
        node("Add", &["r", "s"], &["y"]),
    ]));
    let report = check_onnx(&write("gaps", &m));
    let seen: Vec<_> = report
        .gaps
        .iter()
        .map(|g| (g.code, g.op.as_str(), g.opset, g.count, g.nodes.len()))
        .collect();
    assert!(
        seen.contains(&("K0110", "Frobnicate", 17, 2, 2)),
        "{report}"
    );
    assert!(
        seen.contains(&("K0110", "ImageDecoder", 17, 1, 1)),
        "{report}"
    );
    // An attribute is missing; what only depends on faulty nodes is not told.
    assert!(seen.contains(&("K0113", "Concat", 17, 1, 1)), "{report}");
    assert_eq!(seen.len(), 3, "{report}");
    assert!(report.gaps.iter().all(|g| !g.suggestion.is_empty()));
    assert!(report.to_string().contains("`Frobnicate_p`"));
}

#[test]
fn squeezing_what_data_decides_wants_a_declared_rank() {
    let nodes = || {
        vec![
            node("Unique", &["x"], &["u"]),
            node("Squeeze", &["u"], &["y"]),
        ]
    };
    let with = |outputs| {
        let mut g = graph(nodes());
        g.output = outputs;
        model(g)
    };
    let mut open = value("y", 1, &[]);
    if let Some(type_proto::Value::TensorType(t)) = &mut open.type_.mut_or_insert_default().value {
        t.shape.clear();
    }
    let refused = error("squeeze-open", &with(vec![open]));
    assert_eq!(refused, ("K0112", "Squeeze_y".into()));
    for (name, shape, rank) in [("squeeze-all", &[][..], 0), ("squeeze-none", &[-1], 1)] {
        let m = with(vec![value("y", 1, shape)]);
        let imported = import_onnx(&write(name, &m), &options()).unwrap();
        let f = &imported.module.functions[0];
        assert_eq!(f.shape(f.body().results[0]).len(), rank, "{name}");
    }
}

#[test]
fn enormous_shapes_are_refused() {
    let mut g = graph(vec![node("ConstantOfShape", &["shape"], &["y"])]);
    g.initializer.push(ints("shape", &[1_000_000, 1_000_000]));
    assert_eq!(
        error("enormous", &model(g)),
        ("K0103", "ConstantOfShape_y".into())
    );
    let mut g = graph(vec![node("Relu", &["w"], &["y"])]);
    g.initializer
        .push(floats("w", &[1_000_000, 1_000_000], &[1.0]));
    assert_eq!(error("enormous-weight", &model(g)), ("K0130", "w".into()));
    let mut g = graph(vec![node("Relu", &["w"], &["y"])]);
    g.initializer.push(floats("w", &[i64::MAX, i64::MAX], &[]));
    assert_eq!(
        error("overflowing-weight", &model(g)),
        ("K0130", "w".into())
    );
}

#[test]
fn external_data_is_mapped_and_checked() {
    let folder = scratch("models");
    let data: Vec<u8> = (0..1200).flat_map(|i| (i as f32).to_le_bytes()).collect();
    std::fs::write(folder.join("weights.bin"), &data).unwrap();
    let with = |location: &str, offset: &str| {
        let entry = |key: &str, value: &str| StringStringEntryProto {
            key: key.into(),
            value: value.into(),
            ..Default::default()
        };
        let mut g = graph(vec![node("Add", &["x", "w"], &["y"])]);
        g.initializer.push(TensorProto {
            name: "w".into(),
            data_type: 1,
            dims: vec![1000],
            data_location: DataLocation::EXTERNAL.into(),
            external_data: vec![
                entry("location", location),
                entry("offset", offset),
                entry("length", "4000"),
            ],
            ..Default::default()
        });
        model(g)
    };
    let imported =
        import_onnx(&write("external", &with("weights.bin", "400")), &options()).unwrap();
    let global = &imported.module.globals["w"];
    match &global.kind {
        kiln_ir::GlobalKind::Const(kiln_ir::ConstSource::Tensor(t)) => {
            assert_eq!((t.get_f64(0), t.get_f64(999)), (100.0, 1099.0));
        }
        other => panic!("{other:?}"),
    }
    for (name, location, offset) in [
        ("external-missing", "nothing.bin", "0"),
        ("external-escape", "../models/weights.bin", "0"),
        ("external-absolute", "/etc/hostname", "0"),
        ("external-short", "weights.bin", "4000"),
        ("external-far", "weights.bin", "18446744073709551615"),
    ] {
        let (code, at) = error(name, &with(location, offset));
        assert_eq!((code, at.as_str()), ("K0131", "w"), "{name}");
    }
}

#[test]
fn weights_that_are_not_finite_warn() {
    let mut data = vec![1.0f32; 600];
    (data[7], data[9]) = (f32::NAN, f32::INFINITY);
    let mut g = graph(vec![node("Add", &["x", "w"], &["y"])]);
    g.initializer.push(floats("w", &[600], &data));
    let imported = import_onnx(&write("nan", &model(g)), &options()).unwrap();
    let [warning] = &imported.warnings[..] else {
        panic!("{:?}", imported.warnings)
    };
    assert_eq!(
        (warning.severity, warning.code),
        (Severity::Warning, "K0140")
    );
    assert_eq!(warning.place.node, "w");
    assert!(warning.message.starts_with("2 of 600"), "{warning}");
}

#[test]
fn options_that_fit_nothing_are_errors() {
    let path = write("plain", &model(graph(vec![node("Relu", &["x"], &["y"])])));
    let mut o = options();
    o.dims.insert("nowhere".into(), 3);
    let e = import_onnx(&path, &o).unwrap_err();
    assert_eq!(e[0].code, "K0105");
    assert!(e[0].help.contains(": a"), "{}", e[0]);
    let mut o = options();
    o.dims.insert("a".into(), 3);
    let imported = import_onnx(&path, &o).unwrap();
    let graph = forward(&imported.module);
    assert_eq!(graph.ty(graph.body().params[0]).to_string(), "f32[3]");
}

/// `depth` functions, each of which calls the next `fan` times.
fn calls(depth: usize, fan: usize) -> ModelProto {
    let mut m = model(graph(vec![onnx_protobuf::NodeProto {
        domain: "f".into(),
        ..node("f0", &["x"], &["y"])
    }]));
    let opset = |domain: &str, version| OperatorSetIdProto {
        domain: domain.into(),
        version,
        ..Default::default()
    };
    m.opset_import.push(opset("f", 1));
    for i in 0..depth {
        let mut nodes = vec![];
        for k in 0..fan {
            let (from, to) = match k {
                0 => ("x".to_string(), format!("v{k}")),
                _ => (format!("v{}", k - 1), format!("v{k}")),
            };
            nodes.push(onnx_protobuf::NodeProto {
                domain: if i + 1 < depth {
                    "f".into()
                } else {
                    String::new()
                },
                ..node(
                    &if i + 1 < depth {
                        format!("f{}", i + 1)
                    } else {
                        "Relu".into()
                    },
                    &[&from],
                    &[&to],
                )
            });
        }
        m.functions.push(FunctionProto {
            name: format!("f{i}"),
            domain: "f".into(),
            input: vec!["x".into()],
            output: vec![format!("v{}", fan - 1)],
            node: nodes,
            opset_import: vec![opset("", 17), opset("f", 1)],
            ..Default::default()
        });
    }
    m
}

#[test]
fn functions_inline_and_do_not_run_away() {
    let imported = import_onnx(&write("calls", &calls(3, 2)), &options()).unwrap();
    let graph = forward(&imported.module);
    let nodes = graph.nodes_in_order();
    let relus = nodes
        .iter()
        .filter(|&&n| graph.node(n).op.def().mnemonic() == "max")
        .count();
    assert_eq!(relus, 8);
    assert!(nodes.iter().all(|&n| {
        let origins = &graph.node(n).origins;
        origins.iter().any(|o| o.node.starts_with("f0_y/f1_v"))
    }));
    let deep = errors("deep-calls", &calls(100, 1));
    assert_eq!(deep[0].code, "K0103", "{deep:?}");
    let mut own = calls(1, 1);
    own.functions[0].node[0].op_type = "f0".into();
    own.functions[0].node[0].domain = "f".into();
    assert_eq!(errors("own-call", &own)[0].code, "K0113");
}

#[test]
fn nested_graphs_are_bounded() {
    let mut g = graph(vec![node("Relu", &["x"], &["y"])]);
    for _ in 0..60 {
        let attribute = |name: &str, g: &GraphProto| AttributeProto {
            name: name.into(),
            type_: AttributeType::GRAPH.into(),
            g: Some(GraphProto {
                input: vec![],
                ..g.clone()
            })
            .into(),
            ..Default::default()
        };
        let mut outer = node("If", &["x"], &["y"]);
        outer.attribute = vec![attribute("then_branch", &g)];
        g = graph(vec![outer]);
    }
    let e = errors("nested", &model(g));
    assert_eq!(e[0].code, "K0102", "{e:?}");
}

/// A model with a bit of everything, as bytes.
fn sample() -> Vec<u8> {
    let mut g = graph(vec![
        node("Shape", &["x"], &["s"]),
        node("Reshape", &["w", "s"], &["r"]),
        node("MatMul", &["m", "r"], &["p"]),
        node("Relu", &["p"], &["y"]),
    ]);
    g.input = vec![value("x", 1, &[600])];
    g.initializer.push(floats("w", &[20, 30], &[0.5; 600]));
    g.initializer.push(floats("m", &[4, 600], &[0.5; 2400]));
    let mut sub = node("If", &["c"], &["z"]);
    let branch = |name: &str| AttributeProto {
        name: name.into(),
        type_: AttributeType::GRAPH.into(),
        g: Some(GraphProto {
            node: vec![node("Identity", &["x"], &["t"])],
            output: vec![value("t", 1, &[600])],
            ..Default::default()
        })
        .into(),
        ..Default::default()
    };
    sub.attribute = vec![branch("then_branch"), branch("else_branch")];
    g.node.push(sub);
    g.input.push(value("c", 9, &[]));
    model(g).write_to_bytes().unwrap()
}

#[test]
fn damaged_files_are_errors_and_no_more() {
    let bytes = sample();
    let path = scratch("models").join("damaged.onnx");
    let attempt = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        import_onnx(&path, &options())
    };
    attempt(&bytes).unwrap_or_else(|e| panic!("{}", e[0]));
    for cut in (0..bytes.len()).step_by(bytes.len() / 150 + 1) {
        if let Err(e) = attempt(&bytes[..cut]) {
            assert!(e.iter().all(|d| d.code.starts_with('K')), "{e:?}");
        }
    }
    // Every bit of the structure, and some of the weights.
    for at in 0..bytes.len() {
        let weight = bytes[at] == bytes[(at + 4) % bytes.len()] && at % 997 != 0;
        for bit in if weight { 0..0 } else { 0..8 } {
            let mut flipped = bytes.clone();
            flipped[at] ^= 1 << bit;
            if let Err(e) = attempt(&flipped) {
                assert!(e.iter().all(|d| d.code.starts_with('K')), "{e:?}");
            }
        }
    }
    let missing = import_onnx("/nowhere/at/all.onnx".as_ref(), &options()).unwrap_err();
    assert_eq!(missing[0].code, "K0101");
    let empty = attempt(&[]).unwrap_err();
    assert_eq!(empty[0].code, "K0102");
}
