//! Ops against numbers worked out elsewhere: by hand, with NumPy in f64, or with
//! ggml's own Python package.

mod attention;
mod composite;
mod contract;
mod control;
mod packing;
mod programs;
mod properties;
mod reduce;
mod strings;

use crate::graph::{Graph, PortKind};
use crate::module::Globals;
use crate::op::*;
use crate::{Binding, Builder, DType, Dim, Guard, SymValue, Tensor, TensorType};
use std::cell::RefCell;

/// Infers and evaluates; the results must have the inferred types.
fn run(op: impl Into<Op>, args: &[&Tensor]) -> Result<Vec<Tensor>, String> {
    let op = op.into();
    let types: Vec<TensorType> = args.iter().map(|t| t.ty()).collect();
    let inferred = infer(op.clone(), &types)?;
    let binding = RefCell::new(Binding::new());
    let results = op
        .def()
        .eval(&EvalCx::pure(&binding), args)
        .map_err(|e| e.0)?;
    assert_eq!(
        results.iter().map(Tensor::ty).collect::<Vec<_>>(),
        inferred.0
    );
    Ok(results)
}

/// The one result.
fn run1(op: impl Into<Op>, args: &[&Tensor]) -> Tensor {
    let mut results = run(op, args).unwrap();
    assert_eq!(results.len(), 1);
    results.remove(0)
}

/// The error that inference gives.
fn refuses(op: impl Into<Op>, types: &[TensorType]) -> String {
    infer(op, types).expect_err("must not type")
}

/// Types of the results, and the guards they rest on.
fn infer(op: impl Into<Op>, types: &[TensorType]) -> Result<(Vec<TensorType>, Vec<Guard>), String> {
    let globals = Globals::new();
    let mut graph = Graph::new("test");
    let params: Vec<_> = types
        .iter()
        .map(|ty| graph.add_param("x", PortKind::Caller, ty.clone()))
        .collect();
    let mut b = Builder::at_end(&mut graph, &globals, Graph::BODY);
    let results = b.push(op, &params).map_err(|e| e.0)?;
    let types = results.iter().map(|&v| graph.ty(v).clone()).collect();
    Ok((types, graph.guards.clone()))
}

/// What is known of the results when the one argument's contents are known.
fn known(op: impl Into<Op>, value: SymValue) -> Option<SymValue> {
    let globals = Globals::new();
    let mut graph = Graph::new("test");
    let mut b = Builder::at_end(&mut graph, &globals, Graph::BODY);
    let x = b.dims(value).unwrap();
    let y = b.one(op, &[x]).unwrap();
    graph.known(y).cloned()
}

fn ty(dtype: DType, shape: &[&str]) -> TensorType {
    TensorType::new(
        dtype,
        shape
            .iter()
            .map(|d| d.parse::<Dim>().unwrap())
            .collect::<Vec<_>>(),
    )
}

fn f32s(shape: &[usize], values: &[f32]) -> Tensor {
    Tensor::from_f32(shape, values).unwrap()
}

fn i64s(shape: &[usize], values: &[i64]) -> Tensor {
    Tensor::from_i64(DType::I64, shape, values).unwrap()
}

/// `((7i + 3·seed) mod 11 − 5) / 4`: what the NumPy references start from.
fn ramp(shape: &[usize], seed: usize) -> Tensor {
    ramp_of(DType::F32, shape, seed)
}

fn ramp_of(dtype: DType, shape: &[usize], seed: usize) -> Tensor {
    let n: usize = shape.iter().product();
    let values: Vec<f64> = (0..n)
        .map(|i| (((7 * i + 3 * seed) % 11) as f64 - 5.0) / 4.0)
        .collect();
    Tensor::from_f64(dtype, shape, &values).unwrap()
}

#[track_caller]
fn close(got: &Tensor, want: &[f64], tolerance: f64) {
    assert_eq!(got.len(), want.len());
    for (i, &w) in want.iter().enumerate() {
        let g = got.get_f64(i);
        let same =
            g == w || (g.is_nan() && w.is_nan()) || (g - w).abs() <= tolerance * w.abs().max(1.0);
        assert!(same, "element {i} is {g}, not {w}");
    }
}
