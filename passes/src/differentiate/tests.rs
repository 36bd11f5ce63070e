//! Gradients against central differences in f64, and what cannot be had.

use super::*;
use kiln_ir::graph::PortKind;
use kiln_ir::ops::composite::{AdamW, CrossEntropy};
use kiln_ir::ops::reduce::ArgReduce;
use kiln_ir::ops::samples::{Sample, samples};
use kiln_ir::{Binding, EvalCx, Op, Origin, ReduceFn, Tensor, TensorType};
use std::cell::RefCell;

/// The values wanted of a graph without regions and globals.
fn evaluate(graph: &Graph, args: &[Tensor], wanted: &[Value]) -> Vec<Tensor> {
    let binding = RefCell::new(Binding::new());
    let cx = EvalCx::pure(&binding);
    let params = graph.body().params.iter().copied();
    let mut values: BTreeMap<Value, Tensor> = params.zip(args.iter().cloned()).collect();
    for n in graph.nodes_in_order() {
        let node = graph.node(n);
        let inputs: Vec<&Tensor> = node.args.iter().map(|v| &values[v]).collect();
        let outputs = node.op.def().eval(&cx, &inputs).unwrap();
        values.extend(node.results.iter().copied().zip(outputs));
    }
    wanted.iter().map(|v| values[v].clone()).collect()
}

/// A function of these arguments.
fn graph_of<T>(
    types: &[TensorType],
    build: impl FnOnce(&mut Builder, &[Value]) -> T,
) -> (Graph, T) {
    let globals = Globals::new();
    let mut graph = Graph::new("f");
    let params: Vec<Value> = types
        .iter()
        .map(|ty| graph.add_param("x", PortKind::Caller, ty.clone()))
        .collect();
    let out = build(
        &mut Builder::at_end(&mut graph, &globals, Graph::BODY),
        &params,
    );
    (graph, out)
}

/// The sum of the op's float results, each element weighted differently.
fn weighted_sum(b: &mut Builder, op: &Op, args: &[Value]) -> Value {
    let mut loss = b.scalar(DType::F64, 0.0).unwrap();
    for r in b.push(op.clone(), args).unwrap() {
        let ty = b.ty(r);
        if !ty.dtype.is_float() {
            continue;
        }
        let shape = ty.const_shape().unwrap();
        let n: usize = shape.iter().product();
        let weights: Vec<f64> = (0..n)
            .map(|i| 0.3 + ((i * 5 + 2) % 7) as f64 / 5.0)
            .collect();
        let weights = b
            .constant(Tensor::from_f64(ty.dtype, shape.clone(), &weights).unwrap())
            .unwrap();
        let weighted = b.mul(r, weights).unwrap();
        let axes: Vec<usize> = (0..shape.len()).collect();
        let sum = b.reduce(ReduceFn::Sum, weighted, &axes, false).unwrap();
        let sum = b.cast(sum, DType::F64).unwrap();
        loss = b.add(loss, sum).unwrap();
    }
    loss
}

/// f32 arguments as f64, so that differences have digits left.
fn widened(s: &Sample) -> Vec<Tensor> {
    let widen = |t: &Tensor| match t.dtype() {
        DType::F32 => Tensor::from_f64(DType::F64, t.shape(), &t.to_f64()).unwrap(),
        _ => t.clone(),
    };
    s.tensors(3).iter().map(widen).collect()
}

fn nudged(args: &[Tensor], which: usize, element: usize, by: f64) -> Vec<Tensor> {
    let mut args = args.to_vec();
    let mut values = args[which].to_f64();
    values[element] += by;
    args[which] = Tensor::from_f64(DType::F64, args[which].shape(), &values).unwrap();
    args
}

#[test]
fn every_op_agrees_with_central_differences() {
    let mut checked = 0;
    for s in samples().iter().filter(|s| s.differentiable) {
        let args = widened(s);
        let types: Vec<TensorType> = args.iter().map(Tensor::ty).collect();
        let (mut graph, loss) = graph_of(&types, |b, args| weighted_sum(b, &s.op, args));
        let wrt: Vec<Value> = (graph.body().params.iter().copied())
            .filter(|&v| graph.ty(v).dtype == DType::F64)
            .collect();
        let gradients = differentiate(&mut graph, &Globals::new(), loss, &wrt)
            .unwrap_or_else(|e| panic!("{:?}: {e}", s.op));
        let values = evaluate(&graph, &args, &gradients);
        for (v, g) in wrt.iter().zip(&values) {
            let which = graph.body().params.iter().position(|p| p == v).unwrap();
            assert_eq!(g.shape(), args[which].shape(), "{:?}", s.op);
            for i in 0..g.len() {
                let at =
                    |h: f64| evaluate(&graph, &nudged(&args, which, i, h), &[loss])[0].get_f64(0);
                let slope = (at(1e-5) - at(-1e-5)) / 2e-5;
                let got = g.get_f64(i);
                let near = (got - slope).abs() <= 1e-6 * slope.abs().max(1.0);
                assert!(
                    near,
                    "{:?}: argument {which}, element {i}: {got}, not {slope}",
                    s.op
                );
                checked += 1;
            }
        }
    }
    assert!(checked > 1000, "only {checked} slopes were checked");
}

#[test]
fn samples_that_are_not_differentiable_are_refused_or_flat() {
    for s in samples().iter().filter(|s| !s.differentiable) {
        let types: Vec<TensorType> = s.tensors(3).iter().map(Tensor::ty).collect();
        let (mut graph, loss) = graph_of(&types, |b, args| weighted_sum(b, &s.op, args));
        let wrt: Vec<Value> = (graph.body().params.iter().copied())
            .filter(|&v| graph.ty(v).dtype.is_float())
            .collect();
        // Either an answer (perhaps zero) or an error that names the op.
        if let Err(e) = differentiate(&mut graph, &Globals::new(), loss, &wrt) {
            assert!(e.message.contains(s.op.def().mnemonic()), "{e}");
        }
    }
}

#[test]
fn a_value_used_twice_gets_both_contributions() {
    let ty = TensorType::new(DType::F64, []);
    let (mut graph, loss) = graph_of(&[ty], |b, x| {
        let square = b.mul(x[0], x[0]).unwrap();
        b.add(square, x[0]).unwrap()
    });
    let x = graph.body().params[0];
    let g = differentiate(&mut graph, &Globals::new(), loss, &[x]).unwrap();
    let value = evaluate(&graph, &[Tensor::scalar_f64(DType::F64, 3.0)], &g);
    assert_eq!(value[0].to_f64(), [7.0]);
}

#[test]
fn what_the_loss_does_not_see_has_gradient_zero() {
    let ty = |d: &str| TensorType::new(DType::F32, [d.parse().unwrap()]);
    let (mut graph, loss) = graph_of(&[ty("n"), ty("m")], |b, x| {
        b.reduce(ReduceFn::Sum, x[0], &[0], false).unwrap()
    });
    let y = graph.body().params[1];
    let g = differentiate(&mut graph, &Globals::new(), loss, &[y]).unwrap();
    assert_eq!(graph.ty(g[0]), graph.ty(y));
    // Nothing else was made: a constant, its broadcast and the seed.
    assert_eq!(graph.body().nodes.len(), 1 + 3);
}

#[test]
fn gradients_through_an_index_stop() {
    let ty = TensorType::new(DType::F32, [4.into()]);
    let (mut graph, loss) = graph_of(&[ty], |b, x| {
        let op = ArgReduce {
            largest: true,
            axis: 0,
            keep: false,
            last: false,
        };
        let best = b.one(op, &[x[0]]).unwrap();
        b.gather(x[0], best, 0).unwrap()
    });
    let x = graph.body().params[0];
    let g = differentiate(&mut graph, &Globals::new(), loss, &[x]).unwrap();
    let args = [Tensor::from_f32([4], &[1.0, 5.0, 2.0, 3.0]).unwrap()];
    assert_eq!(
        evaluate(&graph, &args, &g)[0].to_f64(),
        [0.0, 1.0, 0.0, 0.0]
    );
}

#[test]
fn errors_name_the_op_and_where_it_comes_from() {
    let f = TensorType::new(DType::F32, []);
    let i = TensorType::new(DType::I64, []);
    let (mut graph, loss) = graph_of(
        &[f.clone(), f.clone(), f.clone(), f.clone(), f, i],
        |b, x| {
            b.origins.insert(Origin {
                file: "m.onnx".into(),
                node: "/opt/step".into(),
            });
            let op = AdamW {
                beta1: 0.9,
                beta2: 0.99,
                eps: 1e-8,
                weight_decay: 0.0,
            };
            b.push(op, x).unwrap()[0]
        },
    );
    let x = graph.body().params[0];
    let e = differentiate(&mut graph, &Globals::new(), loss, &[x])
        .unwrap_err()
        .message;
    assert!(
        e.contains("adamw") && e.contains("/opt/step of m.onnx") && e.contains("optimizer"),
        "{e}"
    );
    let int = graph.body().params[5];
    assert!(differentiate(&mut graph, &Globals::new(), loss, &[int]).is_err());
    assert!(differentiate(&mut graph, &Globals::new(), int, &[x]).is_err());
}

#[test]
fn the_fused_rule_of_cross_entropy_makes_no_scatter() {
    let types = [
        TensorType::new(DType::F32, ["b".parse().unwrap(), 10.into()]),
        TensorType::new(DType::I64, ["b".parse().unwrap()]),
    ];
    let (mut graph, loss) = graph_of(&types, |b, x| {
        b.one(CrossEntropy { ignore: -100 }, x).unwrap()
    });
    let x = graph.body().params[0];
    let g = differentiate(&mut graph, &Globals::new(), loss, &[x]).unwrap();
    assert_eq!(graph.ty(g[0]), &types[0]);
    let scatters = graph
        .nodes_in_order()
        .into_iter()
        .filter(|&n| matches!(graph.node(n).op, Op::ScatterElements(_)));
    assert_eq!(scatters.count(), 0);
    assert!(graph.guards.is_empty());
}
