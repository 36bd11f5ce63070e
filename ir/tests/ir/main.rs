//! The text form, the interpreter, the verifier and edits, from outside.

mod dims;
mod edits;
mod filetests;
mod text;

use kiln_ir::graph::PortKind;
use kiln_ir::ops::samples::{HAND_TESTED, Sample, samples};
use kiln_ir::{Builder, Graph, Module, Tensor};

/// A function of one op: its arguments are the parameters, its results the
/// results.
fn one_op(sample: &Sample, args: &[Tensor]) -> Module {
    let mut module = Module::default();
    let mut graph = Graph::new("f");
    let params: Vec<_> = args
        .iter()
        .enumerate()
        .map(|(i, t)| graph.add_param(format!("x{i}"), PortKind::Caller, t.ty()))
        .collect();
    let mut b = Builder::at_end(&mut graph, &module.globals, Graph::BODY);
    let results = b
        .push(sample.op.clone(), &params)
        .unwrap_or_else(|e| panic!("{:?}: {e}", sample.op));
    for (i, v) in results.into_iter().enumerate() {
        graph.add_result(format!("y{i}"), PortKind::Caller, v);
    }
    module.functions.push(graph);
    module
}

/// A module whose text holds everything.
const FULL: &str = include_str!("full.kir");

#[test]
fn hand_tested_ops_stand_in_the_full_text() {
    for (mnemonic, _) in HAND_TESTED {
        assert!(FULL.contains(&format!("{mnemonic} ")), "{mnemonic}");
    }
    assert!(samples().len() > 100);
}
