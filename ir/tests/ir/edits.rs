//! Sweeps, copies, groups, and petgraph's algorithms on a region.

use super::*;
use kiln_ir::edit::{Rewrite, Snippet, inline, outline, sweep};
use kiln_ir::flow::Flow;
use kiln_ir::interp::Interpreter;
use kiln_ir::ops::elementwise::Unary;
use kiln_ir::parse::{NoFiles, parse_module};
use kiln_ir::print::{PrintOptions, print_module};
use kiln_ir::verify::verify_module;
use kiln_ir::{DType, Globals, NodeId, Op, UnaryFn};
use petgraph::algo::{connected_components, dominators, is_cyclic_directed, tarjan_scc, toposort};
use std::collections::BTreeMap;

fn module(body: &str) -> Module {
    let text = format!("kir 1\n{body}");
    let module = parse_module(&text, &NoFiles).unwrap_or_else(|e| panic!("{e}\n{text}"));
    verified(&module);
    module
}

#[track_caller]
fn verified(module: &Module) {
    let errors: Vec<String> = verify_module(module)
        .iter()
        .map(|e| e.to_string())
        .collect();
    let text = print_module(module, &PrintOptions::default());
    assert!(errors.is_empty(), "{errors:#?}\n{text}");
    // What holds together also reads back.
    let again = parse_module(&text, &NoFiles).unwrap_or_else(|e| panic!("{e}\n{text}"));
    assert_eq!(print_module(&again, &PrintOptions::default()), text);
}

fn run(module: &Module, inputs: &[Tensor]) -> Vec<Vec<f64>> {
    let mut it = Interpreter::new(module).unwrap();
    let results = it.run("f", inputs).unwrap();
    results.iter().map(Tensor::to_f64).collect()
}

fn f64s(values: &[f64]) -> Tensor {
    Tensor::from_f64(DType::F32, [values.len()], values).unwrap()
}

fn named(module: &Module, name: &str) -> NodeId {
    let graph = &module.functions[0];
    let is = |n: &NodeId| {
        let v = graph.node(*n).results.first();
        v.is_some_and(|&v| graph.value(v).name.as_deref() == Some(name))
    };
    graph.nodes_in_order().into_iter().find(is).unwrap()
}

const DIAMOND: &str = "func @f(%x: f32[N]) -> (y: f32[N], a: f32[N]) {
  %a = exp %x loc(\"m\":\"a\")
  %b = neg %a loc(\"m\":\"b\")
  %c = abs %a
  %d = add %b, %c loc(\"m\":\"d\")
  %e = tanh %x
  %g = mul %d, %e
  return %g, %a
}";

#[test]
fn petgraph_runs_on_a_region() {
    let module = module(DIAMOND);
    let graph = &module.functions[0];
    let flow = Flow::of(graph, Graph::BODY);
    assert!(!is_cyclic_directed(&flow));
    let order = toposort(&flow, None).unwrap();
    let place = |name: &str| {
        order
            .iter()
            .position(|&n| n == named(&module, name))
            .unwrap()
    };
    for (before, after) in [
        ("a", "b"),
        ("a", "c"),
        ("b", "d"),
        ("c", "d"),
        ("d", "g"),
        ("e", "g"),
    ] {
        assert!(place(before) < place(after));
    }
    // Neither branch alone decides the sum.
    let by = dominators::simple_fast(&flow, named(&module, "a"));
    let of = |name| by.immediate_dominator(named(&module, name));
    assert_eq!(of("d"), Some(named(&module, "a")));
    assert_eq!(of("g"), Some(named(&module, "d")));
    assert_eq!(connected_components(&flow), 1);
    assert!(tarjan_scc(&flow).iter().all(|c| c.len() == 1));
}

#[test]
fn flow_keeps_sizes_and_consumption_in_order() {
    let module = module(
        "state @cache : f32[1, 1, 4, 2] = splat 0.0
func @f(%at: i64[], %new: f32[1, 1, 1, 2], %cache: f32[1, 1, 4, 2] = state @cache) -> (y: f32[1, 1, 4, 2], i: i64[past], cache: f32[1, 1, 4, 2] = state @cache) {
  bind_dim %at {symbol = \"past\"}
  %read = neg %cache
  %sized = iota {shape = [<past>], axis = 0, dtype = i64}
  %written = kv_cache_append %cache, %new, %at
  return %read, %sized, %written
}",
    );
    let graph = &module.functions[0];
    let flow = Flow::of(graph, Graph::BODY);
    let bind = graph.body().nodes[0];
    use petgraph::visit::{EdgeRef, IntoEdges, IntoNeighbors};
    let after: Vec<NodeId> = flow.neighbors(bind).collect();
    assert_eq!(after, [named(&module, "sized")]);
    let edges: Vec<_> = (&flow)
        .edges(named(&module, "read"))
        .map(|e| e.target())
        .collect();
    assert_eq!(edges, [named(&module, "written")]);
    assert_eq!(connected_components(&flow), 2);
}

#[test]
fn one_sweep_follows_chains_and_regions() {
    let mut module = module(
        "func @f(%x: f32[N], %c: bool[]) -> (y: f32[N]) {
  %a = neg %x
  %b = neg %a
  %r = if %c () {
    %d = neg %b
    %e = neg %d
    yield %e
  } () {
    %g = abs %b
    yield %g
  }
  %h = abs %r
  return %h
}",
    );
    let x = f64s(&[1.5, -2.0]);
    let yes = |b: bool| Tensor::scalar_i64(DType::Bool, b as i64);
    let before = [
        run(&module, &[x.clone(), yes(true)]),
        run(&module, &[x.clone(), yes(false)]),
    ];
    let globals = Globals::new();
    let graph = &mut module.functions[0];
    // neg(neg(x)) is x, and abs(x) is sqrt(x·x) for once.
    let mut rule = |b: &mut Builder, n: NodeId| {
        let node = b.graph.node(n);
        let (op, arg) = (node.op.clone(), node.args.first().copied());
        let (Op::Unary(Unary { f }), Some(x)) = (op, arg) else {
            return Ok(Rewrite::Keep);
        };
        if f == UnaryFn::Abs {
            let square = b.mul(x, x)?;
            return Ok(Rewrite::With(vec![b.unary(UnaryFn::Sqrt, square)?]));
        }
        match b.graph.producer_op(x) {
            Some((Op::Unary(Unary { f: UnaryFn::Neg }), &[y])) => Ok(Rewrite::With(vec![y])),
            _ => Ok(Rewrite::Keep),
        }
    };
    assert_eq!(sweep(graph, &globals, &mut rule), Ok(true));
    verified(&module);
    let names: Vec<&str> = ops(&module);
    assert_eq!(names, ["neg", "if", "neg", "mul", "sqrt", "mul", "sqrt"]);
    let after = [
        run(&module, &[x.clone(), yes(true)]),
        run(&module, &[x, yes(false)]),
    ];
    assert_eq!(after, before);
    let keep: &mut kiln_ir::edit::Rule = &mut |_, _| Ok(Rewrite::Keep);
    assert_eq!(sweep(&mut module.functions[0], &globals, keep), Ok(false));
}

fn ops(module: &Module) -> Vec<&'static str> {
    let graph = &module.functions[0];
    let nodes = graph.nodes_in_order();
    nodes
        .iter()
        .map(|&n| graph.node(n).op.def().mnemonic())
        .collect()
}

#[test]
fn a_failing_rule_leaves_a_whole_graph() {
    let mut module = module(DIAMOND);
    let x = f64s(&[0.5, -1.0]);
    let want = run(&module, std::slice::from_ref(&x));
    let globals = Globals::new();
    let rule: &mut kiln_ir::edit::Rule = &mut |b, n| match b.graph.node(n).op.def().mnemonic() {
        "exp" => {
            let x = b.graph.node(n).args[0];
            Ok(Rewrite::With(vec![b.unary(UnaryFn::Exp, x)?]))
        }
        "add" => Ok(Rewrite::With(vec![])),
        _ => Ok(Rewrite::Keep),
    };
    let error = sweep(&mut module.functions[0], &globals, rule).unwrap_err();
    assert_eq!(error.0, "0 values replace 1 results");
    verified(&module);
    assert_eq!(run(&module, &[x]), want);
}

#[test]
fn groups_form_and_dissolve() {
    let mut module = module(DIAMOND);
    let x = f64s(&[0.5, -1.0, 3.0]);
    let want = run(&module, std::slice::from_ref(&x));
    let text = print_module(&module, &PrintOptions::default());
    let globals = Globals::new();
    let group = ["a", "b", "c", "d"].map(|n| named(&module, n));
    let graph = &mut module.functions[0];
    let fused = outline(graph, &globals, &group).unwrap();
    let node = graph.node(fused);
    assert_eq!((node.args.len(), node.results.len()), (1, 2));
    let origins: Vec<&str> = node.origins.iter().map(|o| &*o.node).collect();
    assert_eq!(origins, ["a", "b", "d"]);
    verified(&module);
    assert_eq!(
        ops(&module),
        ["fused", "exp", "neg", "abs", "add", "tanh", "mul"]
    );
    assert_eq!(run(&module, std::slice::from_ref(&x)), want);
    inline(&mut module.functions[0], &globals, fused).unwrap();
    verified(&module);
    assert_eq!(print_module(&module, &PrintOptions::default()), text);
    assert_eq!(run(&module, &[x]), want);
}

#[test]
fn a_group_must_hang_together() {
    let mut module = module(DIAMOND);
    let text = print_module(&module, &PrintOptions::default());
    let globals = Globals::new();
    let broken = ["a", "d"].map(|n| named(&module, n));
    let error = outline(&mut module.functions[0], &globals, &broken).unwrap_err();
    assert!(error.0.contains("needs their results"), "{error}");
    assert!(outline(&mut module.functions[0], &globals, &[]).is_err());
    let none = named(&module, "a");
    assert!(inline(&mut module.functions[0], &globals, none).is_err());
    assert_eq!(print_module(&module, &PrintOptions::default()), text);
    verified(&module);
}

#[test]
fn copies_take_other_arguments() {
    let mut module = module(
        "func @f(%x: f32[N], %n: i64[]) -> (y: f32[N]) {
  %on = constant {value = bool[] (1)}
  %y = loop %n, %on, %x {carried = 1} (%i: i64[], %c: f32[N]) {
    %d = add %c, %c
    yield %on, %d
  }
  return %y
}",
    );
    let globals = Globals::new();
    let graph = &mut module.functions[0];
    // The whole body once more, on its own result: twice as many doublings.
    let snippet = Snippet::of(graph, &graph.body().nodes.clone());
    let (x, y) = (graph.body().params[0], graph.body().results[0]);
    let mut map = BTreeMap::from([(x, y)]);
    let mut b = Builder::at_end(graph, &globals, Graph::BODY);
    snippet.paste(&mut b, &mut map).unwrap();
    graph.region_mut(Graph::BODY).results = vec![map[&y]];
    verified(&module);
    let three = Tensor::scalar_i64(DType::I64, 3);
    assert_eq!(run(&module, &[f64s(&[1.0, -2.0]), three]), [[64.0, -128.0]]);
}
