//! `kiln diff`: the first node whose results are beyond tolerance.

use crate::args::{CompileArgs, RunArgs};
use crate::commands::entry_inputs;
use crate::model::{self, Failure};
use crate::output::outln;
use crate::verify::{self, Difference};
use kiln::import::Keep;
use kiln::ir::{Graph, Module, Tensor};
use std::collections::BTreeMap;
use std::path::Path;

/// A value, where it is from, and how far it is off.
struct Compared {
    value: String,
    /// The nodes of the model that it stems from.
    node: String,
    difference: Difference,
}

/// Runs `kiln diff`. Exit status 1 if something is beyond the tolerance: a relative
/// error over `rtol`, another type or shape, or other places of NaN and infinities.
pub fn run(
    path: &Path,
    args: &CompileArgs,
    run: &RunArgs,
    rtol: f64,
    reference: Option<&Path>,
) -> Result<u8, Failure> {
    match reference {
        Some(file) => against_reference(path, args, run, rtol, file),
        None => against_interpreter(path, args, run, rtol),
    }
}

/// Against another runtime: the values that it gives are outputs of the compiled
/// model too, in the order of the nodes.
fn against_reference(
    path: &Path,
    args: &CompileArgs,
    run: &RunArgs,
    rtol: f64,
    file: &Path,
) -> Result<u8, Failure> {
    let arrays = kiln::runtime::npy::read_npz(file)?;
    let mut reference = BTreeMap::new();
    for (name, a) in arrays {
        let t = a.tensor(&format!("{}: {name}", file.display()))?;
        reference.insert(name, t);
    }
    let names = reference.keys().cloned().collect();
    let module = model::import_keeping(path, args, true, Keep::Named(names))?;
    let compared = compiled_against(module, args, run, &Reference::Given(&reference))?;
    let missing: Vec<&String> = reference
        .keys()
        .filter(|name| compared.iter().all(|c| c.value != **name))
        .collect();
    if compared.is_empty() {
        return Err(Failure::input(format!(
            "K0719: no name in {} is a value of the model",
            file.display()
        )));
    }
    Ok(report(&compared, &missing, rtol, run.json))
}

/// Against the interpreter: the model's outputs first, as it is compiled for use;
/// if one is off, again with every value as an output, to name a node.
fn against_interpreter(
    path: &Path,
    args: &CompileArgs,
    run: &RunArgs,
    rtol: f64,
) -> Result<u8, Failure> {
    let module = model::import(path, args, true)?;
    let outputs = compiled_against(module, args, run, &Reference::Interpreter)?;
    if outputs.iter().all(|c| within(c, rtol)) {
        return Ok(report(&outputs, &[], rtol, run.json));
    }
    let module = model::import_keeping(path, args, true, Keep::All)?;
    let all = compiled_against(module, args, run, &Reference::Interpreter)?;
    if all.iter().all(|c| within(c, rtol)) {
        report(&outputs, &[], rtol, run.json);
        if !run.json {
            outln!(
                "with every value kept all {} are within {rtol:e}: what differs is made by fusing; \
                 `kiln bisect` looks at the passes",
                all.len()
            );
        }
        return Ok(1);
    }
    Ok(report(&all, &[], rtol, run.json))
}

/// Where the right values are from.
enum Reference<'a> {
    Interpreter,
    /// By the names of results.
    Given(&'a BTreeMap<String, Tensor>),
}

/// Compiles, runs and compares, in the order of the nodes.
fn compiled_against(
    module: Module,
    args: &CompileArgs,
    run: &RunArgs,
    reference: &Reference,
) -> Result<Vec<Compared>, Failure> {
    let (entry, inputs) = entry_inputs(&module, run)?;
    let Some(f) = module.function(&entry) else {
        return Err(Failure::input(format!("K0710: no entry `{entry}`")));
    };
    let order = in_order(f);
    let names: Vec<String> = f.results.iter().map(|p| p.name.to_string()).collect();
    let nodes: Vec<String> = f.body().results.iter().map(|&v| origin(f, v)).collect();
    let want: Vec<Option<Tensor>> = match reference {
        Reference::Given(by_name) => names.iter().map(|n| by_name.get(n).cloned()).collect(),
        Reference::Interpreter => {
            let results = verify::interpret(&module, &entry, &inputs)?;
            results.into_iter().map(Some).collect()
        }
    };
    let options = model::options(&model::for_device(args, run.device)?)?;
    let (device, threads) = (run.device, run.threads);
    let ran = verify::run_compiled(module, &entry, &inputs, &options, device, threads)?;
    let got: BTreeMap<String, Tensor> = ran.into_iter().collect();
    let mut compared = vec![];
    for i in order {
        if let (Some(got), Some(Some(want))) = (got.get(&names[i]), want.get(i)) {
            compared.push(Compared {
                value: names[i].clone(),
                node: nodes[i].clone(),
                difference: verify::difference(got, want),
            });
        }
    }
    Ok(compared)
}

/// The results' numbers in the order in which the nodes stand that make them.
fn in_order(f: &Graph) -> Vec<usize> {
    let nodes = f.nodes_in_order();
    let place: BTreeMap<_, _> = nodes.iter().enumerate().map(|(i, &n)| (n, i)).collect();
    let made_at = |r: &usize| {
        let producer = f.producer(f.body().results[*r]);
        producer.and_then(|(n, _)| place.get(&n).copied())
    };
    let mut order: Vec<usize> = (0..f.results.len()).collect();
    order.sort_by_key(made_at);
    order
}

/// The model's nodes that a value stems from; its op where none is named.
fn origin(f: &Graph, v: kiln::ir::Value) -> String {
    let Some((n, _)) = f.producer(v) else {
        return "an input".into();
    };
    let node = f.node(n);
    let names: Vec<&str> = node.origins.iter().map(|o| &*o.node).collect();
    match names.is_empty() {
        true => node.op.def().mnemonic().to_string(),
        false => names.join(", "),
    }
}

fn within(c: &Compared, rtol: f64) -> bool {
    c.difference.mismatch.is_none() && c.difference.relative <= rtol
}

/// Prints what was found; the exit status.
fn report(compared: &[Compared], missing: &[&String], rtol: f64, json: bool) -> u8 {
    let beyond: Vec<&Compared> = compared.iter().filter(|c| !within(c, rtol)).collect();
    let first = beyond.first();
    if json {
        let first = first.map(|c| {
            let d = &c.difference;
            serde_json::json!({ "value": c.value, "node": c.node, "relative": d.relative,
                "largest": d.largest, "scale": d.scale, "mismatch": d.mismatch })
        });
        outln!(
            "{}",
            serde_json::json!({ "compared": compared.len(), "beyond": beyond.len(), "first": first,
                "not_in_the_model": missing })
        );
        return u8::from(!beyond.is_empty());
    }
    // All of a few; of many, what is off.
    let shown: Vec<&Compared> = match compared.len() {
        0..=20 => compared.iter().collect(),
        _ => beyond.iter().take(20).copied().collect(),
    };
    for c in shown {
        let d = &c.difference;
        outln!(
            "{}: relative error {:.3e}, largest difference {:.3e} of {:.3e}{}{}",
            c.value,
            d.relative,
            d.largest,
            d.scale,
            if within(c, rtol) { "" } else { ", beyond" },
            d.mismatch
                .iter()
                .map(|m| format!(": {m}"))
                .collect::<String>()
        );
    }
    if !missing.is_empty() {
        let names: Vec<&str> = missing.iter().take(5).map(|m| &m[..]).collect();
        let count = missing.len();
        outln!(
            "{count} names are no values of the model: {}",
            names.join(", ")
        );
    }
    match first {
        Some(c) => outln!(
            "first node beyond {rtol:e}: {} (its value {}); {} of {} values are",
            c.node,
            c.value,
            beyond.len(),
            compared.len()
        ),
        None => outln!("all {} values are within {rtol:e}", compared.len()),
    }
    u8::from(!beyond.is_empty())
}
