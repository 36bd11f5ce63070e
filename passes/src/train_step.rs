//! Makes an entry point that trains: from a function that returns a loss, one
//! that also updates the weights by AdamW.
//!
//! ```text
//!   func @loss(%x, %t) -> loss          reads weights by `global`
//!       ↓ make_trainable
//!   func @loss(%x, %t, state %w) -> loss, state %w
//!       ↓ train_step
//!   func @train_step(%x, %t, lr, state %w, %w.m, %w.v, step)
//!       -> loss, state %w', %w.m', %w.v', step + 1
//! ```

use crate::PassError;
use crate::differentiate::differentiate;
use kiln_ir::graph::PortKind;
use kiln_ir::ops::composite::AdamW;
use kiln_ir::{
    BinaryFn, Builder, ConstSource, DType, Global, GlobalKind, Globals, Graph, Module, NodeId, Op,
    Tensor, TensorType, TypeError, Value,
};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

const PASS: &str = "train_step";

fn fail(function: &str, message: impl Into<String>) -> PassError {
    PassError {
        pass: PASS,
        function: function.to_string(),
        message: message.into(),
    }
}

/// Turns constant weights into state: every function that reads one takes it as a
/// state port and returns it as it was.
pub fn make_trainable(module: &mut Module, weights: &[Arc<str>]) -> Result<(), PassError> {
    for name in weights {
        let global = module.globals.get_mut(name);
        let global =
            global.ok_or_else(|| fail("", format!("there is no global @{name} to train")))?;
        if !global.ty.dtype.is_float() || global.ty.encoding.is_some() {
            return Err(fail(
                "",
                format!("@{name} is {}: only plain floats are trained", global.ty),
            ));
        }
        let GlobalKind::Const(init) = &global.kind else {
            continue;
        };
        let checkpoint = Some(name.clone());
        global.kind = GlobalKind::State {
            init: init.clone(),
            checkpoint,
        };
    }
    for graph in &mut module.functions {
        read_as_state(graph, weights);
    }
    Ok(())
}

/// Replaces `global` nodes of these names by state ports.
fn read_as_state(graph: &mut Graph, weights: &[Arc<str>]) {
    let mut readers: BTreeMap<Arc<str>, Vec<NodeId>> = BTreeMap::new();
    for n in graph.nodes_in_order() {
        if let Op::Global(g) = &graph.node(n).op
            && weights.contains(&g.name)
        {
            readers.entry(g.name.clone()).or_default().push(n);
        }
    }
    let mut swap = BTreeMap::new();
    for (name, nodes) in &readers {
        let ty = graph.ty(graph.node(nodes[0]).results[0]).clone();
        let port = graph.add_param(name.clone(), PortKind::State(name.clone()), ty);
        graph.add_result(name.clone(), PortKind::State(name.clone()), port);
        swap.extend(nodes.iter().map(|&n| (graph.node(n).results[0], port)));
    }
    graph.replace_all(&swap);
    graph.remove_nodes(
        &readers
            .into_values()
            .flatten()
            .collect::<BTreeSet<NodeId>>(),
    );
}

/// Adds `@name` to the module: what `@loss` does (its first result is the loss),
/// and one AdamW step on each weight that it reads as state. The rate is an input
/// `lr: f32[]`; moments and the step count are new state.
pub fn train_step(
    module: &mut Module,
    loss: &str,
    name: &str,
    optimizer: &AdamW,
) -> Result<(), PassError> {
    let source = module
        .function(loss)
        .ok_or_else(|| fail(loss, "there is no such function"))?;
    let mut graph = source.clone();
    graph.name = name.into();
    let weights = trained(&graph);
    if weights.is_empty() {
        return Err(fail(
            loss,
            "it reads no state: name the weights to train in `make_trainable`",
        ));
    }
    let wrt: Vec<Value> = weights.iter().map(|w| w.value).collect();
    let Some(&loss_value) = graph.body().results.first() else {
        return Err(fail(
            loss,
            "it returns nothing: its first result must be the loss",
        ));
    };
    add_optimizer_state(&mut module.globals, &graph, &weights)?;
    let gradients = differentiate(&mut graph, &module.globals, loss_value, &wrt)?;
    update(&mut graph, &module.globals, &weights, &gradients, optimizer)
        .map_err(|e| fail(name, e.0))?;
    module.functions.push(graph);
    Ok(())
}

/// A state port that is a float weight: its name, its value and the place of its
/// result.
struct Weight {
    name: Arc<str>,
    value: Value,
    result: usize,
}

fn trained(graph: &Graph) -> Vec<Weight> {
    let mut out = vec![];
    for (port, &value) in graph.params.iter().zip(&graph.body().params) {
        let PortKind::State(name) = &port.kind else {
            continue;
        };
        let result = graph.results.iter().position(|r| r.kind == port.kind);
        if let Some(result) = result.filter(|_| graph.ty(value).dtype.is_float()) {
            out.push(Weight {
                name: name.clone(),
                value,
                result,
            });
        }
    }
    out
}

/// The dtype of a weight's moments: at least f32.
fn moment_type(ty: &TensorType) -> TensorType {
    ty.with_dtype(if ty.dtype == DType::F64 {
        DType::F64
    } else {
        DType::F32
    })
}

fn moments(name: &str) -> [Arc<str>; 2] {
    [format!("{name}.m").into(), format!("{name}.v").into()]
}

const STEP: &str = "optimizer.step";

fn add_optimizer_state(
    globals: &mut Globals,
    graph: &Graph,
    weights: &[Weight],
) -> Result<(), PassError> {
    let mut add = |name: Arc<str>, ty: TensorType| {
        let kind = GlobalKind::State {
            init: ConstSource::Splat(0.0),
            checkpoint: Some(name.clone()),
        };
        match globals.insert(name.clone(), Global { ty, kind }) {
            None => Ok(()),
            Some(_) => Err(fail(
                &graph.name,
                format!("the module has a global @{name} already"),
            )),
        }
    };
    add(STEP.into(), TensorType::scalar(DType::I64))?;
    for w in weights {
        let ty = moment_type(graph.ty(w.value));
        for name in moments(&w.name) {
            add(name, ty.clone())?;
        }
    }
    Ok(())
}

fn update(
    graph: &mut Graph,
    globals: &Globals,
    weights: &[Weight],
    gradients: &[Value],
    optimizer: &AdamW,
) -> Result<(), TypeError> {
    let lr = graph.add_param("lr", PortKind::Caller, TensorType::scalar(DType::F32));
    let state = |graph: &mut Graph, name: &Arc<str>, ty| {
        graph.add_param(name.clone(), PortKind::State(name.clone()), ty)
    };
    let before = state(graph, &STEP.into(), TensorType::scalar(DType::I64));
    let mut b = Builder::at_end(graph, globals, Graph::BODY);
    let one = b.constant(Tensor::scalar_i64(DType::I64, 1))?;
    let step = b.binary(BinaryFn::Add, before, one)?;
    graph.add_result(STEP, PortKind::State(STEP.into()), step);
    for (w, &gradient) in weights.iter().zip(gradients) {
        let ty = moment_type(graph.ty(w.value));
        let names = moments(&w.name);
        let [m, v] = [0, 1].map(|i| state(graph, &names[i], ty.clone()));
        let mut b = Builder::at_end(graph, globals, Graph::BODY);
        let updated = b.push(optimizer.clone(), &[w.value, gradient, m, v, lr, step])?;
        graph.region_mut(Graph::BODY).results[w.result] = updated[0];
        for (name, &value) in names.iter().zip(&updated[1..]) {
            graph.add_result(name.clone(), PortKind::State(name.clone()), value);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use kiln_ir::interp::Interpreter;
    use kiln_ir::ops::composite::CrossEntropy;
    use kiln_ir::parse::{NoFiles, parse_module};
    use kiln_ir::print::{PrintOptions, print_module};
    use kiln_ir::verify::verify_module;
    use kiln_ir::{Dim, UnaryFn};

    /// `((7i + 3·seed) mod 11 − 5) / 4 · scale`, as in the NumPy reference.
    fn ramp(shape: &[usize], seed: usize, scale: f64) -> Tensor {
        let n: usize = shape.iter().product();
        let values: Vec<f64> = (0..n)
            .map(|i| (((7 * i + 3 * seed) % 11) as f64 - 5.0) / 4.0 * scale)
            .collect();
        Tensor::from_f64(DType::F32, shape, &values).unwrap()
    }

    /// Two layers with tanh between and cross entropy at the end.
    fn perceptron() -> Module {
        let mut module = Module::default();
        let weights: [(&str, &[usize], usize, f64); 4] = [
            ("w1", &[4, 5], 2, 0.5),
            ("b1", &[5], 3, 0.25),
            ("w2", &[5, 3], 4, 0.5),
            ("b2", &[3], 5, 0.25),
        ];
        for (name, shape, seed, scale) in weights {
            let t = ramp(shape, seed, scale);
            let kind = GlobalKind::Const(ConstSource::Tensor(t.clone()));
            module
                .globals
                .insert(name.into(), Global { ty: t.ty(), kind });
        }
        let mut graph = Graph::new("loss");
        let batch = Dim::sym("batch");
        let x_type = TensorType::new(DType::F32, [batch.clone(), 4.into()]);
        let x = graph.add_param("x", PortKind::Caller, x_type);
        let t = graph.add_param("t", PortKind::Caller, TensorType::new(DType::I64, [batch]));
        let mut b = Builder::at_end(&mut graph, &module.globals, Graph::BODY);
        let layer = |b: &mut Builder, x, w: &str, bias: &str| {
            let (w, bias) = (b.global(w).unwrap(), b.global(bias).unwrap());
            let y = b.matmul(x, w).unwrap();
            b.add(y, bias).unwrap()
        };
        let h = layer(&mut b, x, "w1", "b1");
        let h = b.unary(UnaryFn::Tanh, h).unwrap();
        let y = layer(&mut b, h, "w2", "b2");
        let loss = b.one(CrossEntropy { ignore: -100 }, &[y, t]).unwrap();
        graph.add_result("loss", PortKind::Caller, loss);
        module.functions.push(graph);
        module
    }

    fn trainable() -> Module {
        let mut module = perceptron();
        let weights = ["w1", "b1", "w2", "b2"].map(Arc::from);
        make_trainable(&mut module, &weights).unwrap();
        let optimizer = AdamW {
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            weight_decay: 0.01,
        };
        train_step(&mut module, "loss", "train_step", &optimizer).unwrap();
        module
    }

    /// The program as `tests/kir/train_step.kir` has it; `KILN_BLESS=1` writes it
    /// anew.
    fn from_text(built: &Module) -> Module {
        let text = print_module(built, &PrintOptions::default());
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/kir/train_step.kir");
        if std::env::var_os("KILN_BLESS").is_some() {
            std::fs::write(path, &text).unwrap();
        }
        assert_eq!(text, std::fs::read_to_string(path).unwrap());
        parse_module(&text, &NoFiles).unwrap_or_else(|e| panic!("{e}"))
    }

    #[test]
    fn five_steps_follow_the_reference() {
        let module = from_text(&trainable());
        let errors: Vec<String> = verify_module(&module)
            .iter()
            .map(|e| e.to_string())
            .collect();
        assert_eq!(errors, [""; 0]);
        let mut it = Interpreter::new(&module).unwrap();
        let data = [
            ramp(&[6, 4], 1, 1.0),
            Tensor::from_i64(DType::I64, [6], &[0, 2, 1, 1, -100, 2]).unwrap(),
        ];
        let lr = Tensor::scalar_f64(DType::F32, 0.05);
        let step = [data[0].clone(), data[1].clone(), lr];
        let mut losses: Vec<f64> = (0..5)
            .map(|_| it.run("train_step", &step).unwrap()[0].get_f64(0))
            .collect();
        losses.push(it.run("loss", &data).unwrap()[0].get_f64(0));
        let near = |got: &[f64], want: &[f64]| {
            assert_eq!(got.len(), want.len());
            for (g, w) in got.iter().zip(want) {
                assert!((g - w).abs() < 2e-6, "{got:?} is not {want:?}");
            }
        };
        near(&losses, &LOSSES);
        near(&it.state["w2"].to_f64(), &W2);
        near(&it.state["b1"].to_f64(), &B1);
        assert_eq!(it.state[STEP].to_i64(), [5]);
    }

    // NumPy in f64, the backward pass written by hand.
    const LOSSES: [f64; 6] = [
        1.149022934,
        0.978003593,
        0.845202212,
        0.739618906,
        0.653916107,
        0.584691341,
    ];
    const W2: [f64; 15] = [
        -0.269560667,
        0.329656785,
        -0.370442882,
        -0.871747414,
        0.233080973,
        -0.004506116,
        0.386870289,
        0.364995804,
        -0.493960513,
        0.742554605,
        -0.240338664,
        -0.743325564,
        0.200714422,
        -0.374308197,
        -0.385836074,
    ];
    const B1: [f64; 5] = [
        0.485057878,
        0.234698909,
        -0.317360280,
        -0.039466247,
        0.166462920,
    ];

    #[test]
    fn what_cannot_be_trained_is_named() {
        let mut module = perceptron();
        assert!(
            make_trainable(&mut module, &["w9".into()])
                .unwrap_err()
                .message
                .contains("@w9")
        );
        let optimizer = AdamW {
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            weight_decay: 0.0,
        };
        let e = train_step(&mut module, "loss", "train_step", &optimizer).unwrap_err();
        assert!(e.message.contains("make_trainable"), "{e}");
        let mut module = trainable();
        let e = train_step(&mut module, "loss", "again", &optimizer).unwrap_err();
        assert!(e.message.contains("already"), "{e}");
    }
}
