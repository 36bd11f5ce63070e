//! A test of the tester: miscompiles planted on purpose, each of which random
//! modules must show. A plant changes what one part of the compiler hands to the
//! next (the graph that a rewriting pass leaves, the plan, a kernel's problem, the
//! text that becomes machine code); nothing in the compiler knows of it.
//!
//! Plants stay inside the memory that the right program uses, so that a wrong
//! number is seen as one and not as a crash.

use super::{call, levels};
use kiln::compile::{self, Code, Compiled, Options};
use kiln::ir::filetest::{random_module, same_results};
use kiln::ir::{
    BinaryFn, CompareFn, ConstSource, DType, Dim, GlobalKind, Graph, Module, Op, ReduceFn, Tensor,
    Value,
};
use kiln::runtime::plan::{Launch, Place, Step};
use kiln::runtime::{Model, Session};
use kiln_codegen::{CpuTarget, Dump};
use kiln_kernels::KernelSpec;
use std::cell::RefCell;
use std::collections::BTreeMap;

/// How many random modules may pass before a plant counts as unseen.
const GRAPHS: u64 = 1000;
/// Ops of a module.
const OPS: usize = 16;

/// Where a plant sits. Each answers whether there was a place for it.
enum Plant {
    /// What a pass makes of the graph.
    Rewrite(fn(&mut Graph) -> bool),
    /// What a pass makes of a weight.
    Weight(fn(&Tensor) -> Option<Tensor>),
    /// What lowering makes of the groups.
    Plan(fn(&mut Compiled) -> bool),
    /// A kernel's problem, as JSON.
    Problem(fn(&mut serde_json::Value) -> bool),
    /// A kernel's MLIR.
    Text(fn(&str) -> Option<String>),
}

const PLANTS: &[(&str, Plant)] = &[
    (
        "a difference's sides are exchanged",
        Plant::Rewrite(exchanged_sides),
    ),
    ("a mean is taken for a sum", Plant::Rewrite(mean_for_sum)),
    (
        "a softmax runs over another axis",
        Plant::Rewrite(softmax_axis),
    ),
    (
        "a slice starts one element late",
        Plant::Rewrite(late_slice),
    ),
    (
        "a concatenation's parts are exchanged",
        Plant::Rewrite(exchanged_parts),
    ),
    ("a padding's value is lost", Plant::Rewrite(lost_padding)),
    ("a mask includes its end", Plant::Rewrite(inclusive_mask)),
    (
        "nodes are shared though their attributes differ",
        Plant::Rewrite(shared_in_spite),
    ),
    ("weights are rounded to bf16", Plant::Weight(rounded)),
    ("a guard on sizes is lost", Plant::Plan(lost_guard)),
    (
        "memory is used again one step too early",
        Plant::Plan(aliasing),
    ),
    (
        "the last tile of a launch is left out",
        Plant::Plan(missing_tile),
    ),
    (
        "two arguments of a launch are exchanged",
        Plant::Plan(exchanged_arguments),
    ),
    (
        "an axis is read with a broadcast's stride",
        Plant::Problem(broadcast_stride),
    ),
    ("a tail's mask is one lane short", Plant::Text(short_mask)),
    ("a maximum starts at zero", Plant::Text(maximum_from_zero)),
    ("an accumulator's lane is lost", Plant::Text(lost_lane)),
];

#[test]
fn every_planted_miscompile_is_seen() {
    let target = levels().pop().expect("this machine runs no level");
    let mut unseen = vec![];
    for (name, plant) in PLANTS {
        let (mut tried, mut seen) = (0, None);
        for seed in 0..GRAPHS {
            match plant.seen(&random_module(seed, OPS), &target, "planted") {
                None => {}
                Some(false) => tried += 1,
                Some(true) => {
                    seen = Some(seed + 1);
                    break;
                }
            }
        }
        match seen {
            Some(graphs) => println!("{name}: seen after {graphs} graphs, missed in {tried}"),
            None => unseen.push(format!(
                "{name}: missed in {tried} graphs with a place for it"
            )),
        }
    }
    assert!(unseen.is_empty(), "{}", unseen.join("\n"));
}

impl Plant {
    /// Whether the tester sees the plant in this module; none if there is no place
    /// for it.
    fn seen(&self, module: &Module, target: &CpuTarget, file: &str) -> Option<bool> {
        let mut wrong = module.clone();
        match self {
            Plant::Rewrite(f) => f(&mut wrong.functions[0]).then_some(())?,
            Plant::Weight(f) => change_weights(&mut wrong, *f).then_some(())?,
            Plant::Plan(_) | Plant::Problem(_) | Plant::Text(_) => {}
        }
        let options = Options {
            targets: vec![target.clone()],
            verify: true,
            ..Options::default()
        };
        let mut compiled = compile::plan(wrong, &options).expect("a plant that still compiles");
        match self {
            Plant::Plan(f) => f(&mut compiled).then_some(())?,
            Plant::Problem(f) => change_problems(&mut compiled, *f).then_some(())?,
            Plant::Rewrite(_) | Plant::Weight(_) | Plant::Text(_) => {}
        }
        let change = match self {
            Plant::Text(f) => *f,
            _ => |_: &str| None,
        };
        let (mut changed, mut objects) = (false, vec![]);
        for kernel in &compiled.lowered.kernels {
            let one = std::slice::from_ref(kernel);
            let text = kiln_kernels::dump(one, target, Dump::Mlir).expect("MLIR");
            let new = change(&text);
            changed |= new.is_some();
            objects.push((text, new));
        }
        if matches!(self, Plant::Text(_)) && !changed {
            return None;
        }
        let object = |(text, new): (String, Option<String>)| {
            let text = new.unwrap_or(text);
            // `dump` wraps functions in a module, `compile` does it again.
            let inner = text
                .strip_prefix("module {\n")
                .and_then(|t| t.strip_suffix("}\n"));
            let inner = inner.expect("a module").to_string();
            kiln_codegen::compile(&[inner], target).expect("an object")
        };
        let objects = objects.into_iter().map(object).collect();
        let code = Code {
            target: target.clone(),
            objects,
        };
        let path = std::env::temp_dir().join(format!("kiln-{file}-{}.kiln", std::process::id()));
        compile::assemble(&mut compiled, &[code], &[], &Default::default(), &path)
            .expect("an artifact");
        let session = Session::new(Model::load(&path).expect("a model"), 1).expect("a session");
        let session = RefCell::new(session);
        let run = |f: &str, x: &[Tensor]| call(&mut session.borrow_mut(), module, f, x);
        let seen = same_results(module, 1e-5, &run).is_err();
        std::fs::remove_file(path).expect("the artifact is there");
        Some(seen)
    }
}

/// The same tester says nothing of right programs: what it sees is the plant.
#[test]
fn modules_without_a_plant_are_right() {
    let target = levels().pop().expect("this machine runs no level");
    let nothing = Plant::Rewrite(|_| true);
    for seed in 0..25 {
        assert_eq!(
            nothing.seen(&random_module(seed, OPS), &target, "not-planted"),
            Some(false),
            "seed {seed}"
        );
    }
}

// --- in a rewriting pass

/// Changes the op of the first node for which there is a change.
fn change_op(g: &mut Graph, f: impl Fn(&Graph, kiln::ir::NodeId) -> Option<Op>) -> bool {
    for n in g.nodes_in_order() {
        if let Some(op) = f(g, n) {
            g.node_mut(n).op = op;
            return true;
        }
    }
    false
}

fn exchanged_sides(g: &mut Graph) -> bool {
    let order = g.nodes_in_order();
    let found = order.into_iter().find(|&n| {
        let node = g.node(n);
        matches!(&node.op, Op::Binary(b) if b.f == BinaryFn::Sub) && node.args[0] != node.args[1]
    });
    found.map(|n| g.node_mut(n).args.swap(0, 1)).is_some()
}

fn mean_for_sum(g: &mut Graph) -> bool {
    change_op(g, |g, n| match &g.node(n).op {
        Op::Reduce(r) if r.f == ReduceFn::Mean => {
            let mut r = r.clone();
            r.f = ReduceFn::Sum;
            Some(r.into())
        }
        _ => None,
    })
}

fn softmax_axis(g: &mut Graph) -> bool {
    change_op(g, |g, n| match &g.node(n).op {
        Op::Softmax(s) if g.ty(g.node(n).args[0]).rank() > 1 => {
            let mut s = s.clone();
            s.axis = if s.axis == 0 { 1 } else { s.axis - 1 };
            Some(s.into())
        }
        _ => None,
    })
}

fn late_slice(g: &mut Graph) -> bool {
    change_op(g, |g, n| match &g.node(n).op {
        Op::Slice(s) => {
            let shape = g.shape(g.node(n).args[0]).to_vec();
            let mut s = s.clone();
            for (i, extent) in shape.iter().enumerate() {
                let start = s.starts[i].as_const()?;
                let room = extent.as_const().zip(s.sizes[i].as_const());
                if s.steps[i] == 1 && room.is_some_and(|(n, size)| size > 0 && start + size < n) {
                    s.starts[i] = (start + 1).into();
                    return Some(s.into());
                }
            }
            // One element too early where there is none behind.
            for i in 0..shape.len() {
                let start = s.starts[i].as_const()?;
                if s.steps[i] == 1 && start > 0 {
                    s.starts[i] = (start - 1).into();
                    return Some(s.into());
                }
            }
            None
        }
        _ => None,
    })
}

fn exchanged_parts(g: &mut Graph) -> bool {
    let order = g.nodes_in_order();
    let found = order.into_iter().find(|&n| {
        let node = g.node(n);
        matches!(node.op, Op::Concat(_)) && g.ty(node.args[0]) == g.ty(node.args[1])
    });
    found.map(|n| g.node_mut(n).args.swap(0, 1)).is_some()
}

fn lost_padding(g: &mut Graph) -> bool {
    change_op(g, |g, n| {
        let pads = |v: Value| {
            let user = |&m: &kiln::ir::NodeId| {
                let node = g.node(m);
                matches!(node.op, Op::Pad(_)) && node.args.get(1) == Some(&v)
            };
            g.nodes_in_order().iter().any(user)
        };
        match &g.node(n).op {
            Op::Constant(c) if c.value.len() == 1 && pads(g.node(n).results[0]) => {
                let mut c = c.clone();
                c.value = Tensor::scalar_f64(c.value.dtype(), 0.0);
                Some(c.into())
            }
            _ => None,
        }
    })
}

fn inclusive_mask(g: &mut Graph) -> bool {
    change_op(g, |g, n| match &g.node(n).op {
        Op::Compare(c) if c.f == CompareFn::Lt => {
            let mut c = c.clone();
            c.f = CompareFn::Le;
            Some(c.into())
        }
        _ => None,
    })
}

fn shared_in_spite(g: &mut Graph) -> bool {
    let order = g.nodes_in_order();
    for (i, &n) in order.iter().enumerate() {
        for &m in &order[i + 1..] {
            let (a, b) = (g.node(n), g.node(m));
            let alike = a.op.def().mnemonic() == b.op.def().mnemonic()
                && a.op != b.op
                && a.args == b.args
                && a.results.len() == 1
                && !matches!(a.op, Op::Global(_) | Op::Constant(_))
                && g.ty(a.results[0]) == g.ty(b.results[0]);
            if alike {
                let to = BTreeMap::from([(b.results[0], a.results[0])]);
                g.replace_all(&to);
                return true;
            }
        }
    }
    false
}

fn change_weights(module: &mut Module, f: fn(&Tensor) -> Option<Tensor>) -> bool {
    let mut changed = false;
    for global in module.globals.values_mut() {
        if let GlobalKind::Const(ConstSource::Tensor(t)) = &mut global.kind
            && let Some(new) = f(t)
        {
            *t = new;
            changed = true;
        }
    }
    changed
}

fn rounded(t: &Tensor) -> Option<Tensor> {
    let bits = |v: &f64| f32::from_bits((*v as f32).to_bits() & 0xffff_0000) as f64;
    let elements: Vec<f64> = t.to_f64().iter().map(bits).collect();
    (t.dtype() == DType::F32).then(|| Tensor::from_f64(DType::F32, t.shape(), &elements).ok())?
}

// --- in the plan

fn launches(compiled: &mut Compiled) -> Vec<&mut Launch> {
    fn launch(s: &mut Step) -> Option<&mut Launch> {
        match s {
            Step::Launch(l) => Some(l),
            _ => None,
        }
    }
    let entries = compiled.lowered.program.entries.iter_mut();
    let steps = entries.flat_map(|e| e.steps.iter_mut());
    steps.filter_map(launch).collect()
}

fn lost_guard(compiled: &mut Compiled) -> bool {
    let guards = &mut compiled.lowered.program.entries[0].guards;
    let any = !guards.is_empty();
    guards.clear();
    any
}

fn aliasing(compiled: &mut Compiled) -> bool {
    let mut any = false;
    for b in compiled
        .lowered
        .program
        .entries
        .iter_mut()
        .flat_map(|e| &mut e.buffers)
    {
        if matches!(b.place, Place::Arena) && b.live.1 > b.live.0 {
            b.live.1 -= 1;
            any = true;
        }
    }
    any
}

fn missing_tile(compiled: &mut Compiled) -> bool {
    let last = launches(compiled).pop();
    let Some(l) = last else { return false };
    for v in &mut l.variants {
        v.tiles = v.tiles.clone() - Dim::ONE;
    }
    true
}

fn exchanged_arguments(compiled: &mut Compiled) -> bool {
    let program = &compiled.lowered.program;
    let sizes: Vec<Dim> = program.entries[0]
        .buffers
        .iter()
        .map(|b| b.bytes.clone())
        .collect();
    for l in launches(compiled) {
        // The last argument is the result.
        let inputs = l.args.len() - 1;
        for i in 1..inputs {
            let (a, b) = (l.args[i - 1].0, l.args[i].0);
            if a != b && sizes[a as usize] == sizes[b as usize] {
                l.args.swap(i - 1, i);
                return true;
            }
        }
    }
    false
}

// --- in a kernel's problem

fn change_problems(compiled: &mut Compiled, f: fn(&mut serde_json::Value) -> bool) -> bool {
    for (_, spec) in &mut compiled.lowered.kernels {
        let mut json = serde_json::to_value(&*spec).expect("a problem is JSON");
        if f(&mut json) {
            let new: Option<KernelSpec> = serde_json::from_value(json).ok();
            // Not where the change makes two loads one.
            if let Some(new) = new.filter(|s| s.check().is_ok()) {
                *spec = new;
                return true;
            }
        }
    }
    false
}

/// The first load with two strides loses one.
fn broadcast_stride(problem: &mut serde_json::Value) -> bool {
    let nodes = problem
        .pointer_mut("/nest/exprs/nodes")
        .and_then(|n| n.as_array_mut());
    for node in nodes.into_iter().flatten() {
        let strides = node
            .pointer_mut("/Load/index/strides")
            .and_then(|s| s.as_array_mut());
        let Some(strides) = strides else { continue };
        if strides.len() >= 2 {
            strides[0] = serde_json::json!({ "Const": 0 });
            return true;
        }
    }
    false
}

// --- in the code

/// Lane numbers that masks compare with, one too large: the last lane is lost.
fn short_mask(text: &str) -> Option<String> {
    let list = |from: usize| {
        (from..from + 16)
            .map(|i| i.to_string())
            .collect::<Vec<_>>()
            .join(", ")
    };
    let lanes = |from| format!("dense<[{}]> : vector<16xi32>", list(from));
    text.contains(&lanes(0))
        .then(|| text.replace(&lanes(0), &lanes(1)))
}

fn maximum_from_zero(text: &str) -> Option<String> {
    let start = "0xFF800000 : f32";
    text.contains(start)
        .then(|| text.replace(start, "0x00000000 : f32"))
}

/// In the tree that adds an accumulator's lanes, one lane is added twice.
fn lost_lane(text: &str) -> Option<String> {
    let at = text.find("vector.shuffle")?;
    let open = at + text[at..].find('[')?;
    let close = open + text[open..].find(']')?;
    let lanes: Vec<&str> = text[open + 1..close].split(", ").collect();
    let mut wrong = lanes.clone();
    (lanes.len() > 1 && lanes[0] != lanes[1]).then_some(())?;
    wrong[0] = lanes[1];
    Some(format!(
        "{}{}{}",
        &text[..open + 1],
        wrong.join(", "),
        &text[close..]
    ))
}
