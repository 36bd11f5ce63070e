//! `kiln verify`: models against ONNX's test data.

use crate::args::CompileArgs;
use crate::model::{self, Failure, Temporary};
use crate::output::outln;
use crate::suite;
use kiln::compile;
use kiln::import::{Diagnostic, ImportOptions, import_onnx, read_tensor};
use kiln::ir::interp::Interpreter;
use kiln::ir::{Module, Tensor};
use kiln::runtime::{Model, Session, TensorRef};
use std::path::{Path, PathBuf};

/// What to verify.
#[derive(Clone)]
pub struct Request {
    pub model: Option<PathBuf>,
    pub data: Vec<PathBuf>,
    pub suite: Option<PathBuf>,
    pub rtol: f64,
    pub atol: f64,
    pub interpreter: bool,
    pub json: bool,
}

/// How two tensors differ.
pub struct Difference {
    /// ‖a − b‖ / ‖b‖.
    pub relative: f64,
    /// max |a − b|.
    pub largest: f64,
    /// max |b|.
    pub scale: f64,
    /// They differ in type, shape, or in where they are NaN or infinite.
    pub mismatch: Option<String>,
}

/// Compares a result with what is expected.
pub fn difference(got: &Tensor, want: &Tensor) -> Difference {
    let mut d = Difference {
        relative: 0.0,
        largest: 0.0,
        scale: 0.0,
        mismatch: None,
    };
    if got.dtype() != want.dtype() || got.shape() != want.shape() {
        d.mismatch = Some(format!(
            "{}{:?} where {}{:?} is expected",
            got.dtype(),
            got.shape(),
            want.dtype(),
            want.shape()
        ));
        return d;
    }
    let (mut error, mut norm) = (0.0, 0.0);
    for i in 0..want.len() {
        let (a, b) = (got.get_f64(i), want.get_f64(i));
        if !a.is_finite() || !b.is_finite() {
            let same = a == b || (a.is_nan() && b.is_nan());
            if !same && d.mismatch.is_none() {
                d.mismatch = Some(format!("element {i} is {a}, not {b}"));
            }
            continue;
        }
        error += (a - b) * (a - b);
        norm += b * b;
        d.largest = d.largest.max((a - b).abs());
        d.scale = d.scale.max(b.abs());
    }
    d.relative = if norm > 0.0 {
        (error / norm).sqrt()
    } else {
        error.sqrt()
    };
    d
}

/// Runs the reference interpreter.
pub fn interpret(
    module: &Module,
    entry: &str,
    inputs: &[(String, Tensor)],
) -> Result<Vec<Tensor>, Failure> {
    let mut it = Interpreter::new(module).map_err(|e| Failure::run(format!("K0301: {e}")))?;
    let tensors: Vec<Tensor> = inputs.iter().map(|i| i.1.clone()).collect();
    it.run(entry, &tensors)
        .map_err(|e| Failure::run(format!("K0301: {e}")))
}

/// What compiled code gave, and the plan that gave it.
pub struct Ran {
    pub outputs: Vec<(String, Tensor)>,
    pub model: std::sync::Arc<Model>,
}

/// Compiles and runs.
pub fn run_compiled(
    module: Module,
    entry: &str,
    inputs: &[(String, Tensor)],
    options: &compile::Options,
    threads: usize,
) -> Result<Ran, Failure> {
    // Threads of one process verify different cases at once.
    let name = format!(
        "kiln-verify-{}-{:?}.kiln",
        std::process::id(),
        std::thread::current().id()
    );
    let out = std::env::temp_dir().join(name);
    let _temporary = Temporary(out.clone());
    compile::compile(module, options, &out)?;
    let model = Model::load(&out)?;
    let index = model.entry(Some(entry))?;
    let mut session = Session::new(model.clone(), threads.max(1))?;
    let refs: Vec<(&str, TensorRef)> = inputs
        .iter()
        .map(|(n, t)| {
            (
                &n[..],
                TensorRef {
                    dtype: t.dtype(),
                    shape: t.shape(),
                    bytes: t.bytes(),
                },
            )
        })
        .collect();
    session.run(index, &refs)?;
    let mut outputs = vec![];
    for (i, port) in model.program().entries[index].outputs.iter().enumerate() {
        let Some(t) = session.output(i) else { continue };
        let t = Tensor::new(t.dtype, t.shape, t.bytes.to_vec())
            .map_err(|e| Failure::run(e.to_string()))?;
        outputs.push((port.name.clone(), t));
    }
    Ok(Ran { outputs, model })
}

/// A model and its data.
pub struct Case {
    /// The folder of cases that it is from; empty where there is one alone.
    pub set: String,
    pub name: String,
    pub model: PathBuf,
    pub data: Vec<PathBuf>,
}

pub enum Outcome {
    Passed(suite::Passed),
    Failed(String),
    Skipped(String),
}

/// Runs `kiln verify`.
pub fn run(r: &Request) -> Result<u8, Failure> {
    let options = model::options(&CompileArgs::default())?;
    if let Some(dir) = &r.suite {
        return suite::run(dir, r, options);
    }
    let Some(path) = &r.model else {
        return Err(Failure::usage("give a model, or --suite DIR"));
    };
    let data = match r.data.is_empty() {
        true => data_sets(path.parent().unwrap_or(Path::new("."))),
        false => r.data.clone(),
    };
    let outcome = case(path, &data, r, &options);
    let name = path.display();
    let (counts, notes) = match outcome {
        Outcome::Passed(_) => ([1, 0, 0], vec![]),
        Outcome::Failed(why) => ([0, 1, 0], vec![format!("FAILED {name}: {why}")]),
        Outcome::Skipped(why) => ([0, 0, 1], vec![format!("skipped {name}: {why}")]),
    };
    let [passed, failed, skipped] = counts;
    if r.json {
        outln!(
            "{}",
            serde_json::json!({ "passed": passed, "failed": failed, "skipped": skipped, "notes": notes })
        );
    } else {
        notes.iter().for_each(|row| outln!("{row}"));
        outln!("{passed} passed, {failed} failed, {skipped} skipped");
    }
    Ok(if failed > 0 { 1 } else { 0 })
}

/// The folders of data beside a model.
pub fn data_sets(dir: &Path) -> Vec<PathBuf> {
    let mut sets: Vec<PathBuf> = std::fs::read_dir(dir)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|e| {
            e.file_name()
                .to_string_lossy()
                .starts_with("test_data_set_")
        })
        .map(|e| e.path())
        .collect();
    sets.sort();
    sets
}

/// One model with its data.
pub fn case(path: &Path, data: &[PathBuf], r: &Request, options: &compile::Options) -> Outcome {
    let (module, frozen) = match import(path, data) {
        Ok(imported) => imported,
        Err(all) => {
            let first = all.first().map(|d| d.to_string()).unwrap_or_default();
            return Outcome::Skipped(first.lines().next().unwrap_or("").into());
        }
    };
    if data.is_empty() {
        return Outcome::Skipped("no test_data_set".into());
    }
    let mut how = suite::Passed::Interpreted;
    for set in data {
        match one_set(&module, frozen, set, r, options) {
            Ok(passed) => how = passed,
            Err(outcome) => return outcome,
        }
    }
    Outcome::Passed(how)
}

/// Imports a model; where the importer asks for values that an input holds (axes,
/// paddings), that input is frozen to what the first data set gives. Whether one was.
fn import(path: &Path, data: &[PathBuf]) -> Result<(Module, bool), Vec<Diagnostic>> {
    let first = match import_onnx(path, &ImportOptions::default()) {
        Ok(i) => return Ok((i.module, false)),
        Err(all) => all,
    };
    let structural = |t: &Tensor| t.shape().len() <= 1 && t.len() <= 64;
    let asks = |all: &[Diagnostic]| all.iter().any(|d| d.code == NEEDS_VALUE);
    let given = data.first().map(|set| numbered(set, "input"));
    let (true, Some(Ok(mut given))) = (asks(&first), given) else {
        return Err(first);
    };
    // Integers before floats, which are structure only as scales.
    given.sort_by_key(|(_, t)| t.dtype().is_int());
    // The structural inputs come last in ONNX's operators: the fewest, from the end.
    let mut options = ImportOptions::default();
    for (name, t) in given.iter().rev().filter(|(_, t)| structural(t)) {
        options.frozen.insert(name.clone(), t.clone());
        match import_onnx(path, &options) {
            Ok(i) => return Ok((i.module, true)),
            Err(all) if !asks(&all) => return Err(all),
            Err(_) => {}
        }
    }
    Err(first)
}

/// The importer's code for a value that must be known.
const NEEDS_VALUE: &str = "K0112";

fn numbered(dir: &Path, what: &str) -> Result<Vec<(String, Tensor)>, Outcome> {
    let mut out = vec![];
    for i in 0.. {
        let path = dir.join(format!("{what}_{i}.pb"));
        if !path.exists() {
            break;
        }
        out.push(read_tensor(&path).map_err(|e| Outcome::Skipped(e.to_string()))?);
    }
    Ok(out)
}

fn one_set(
    module: &Module,
    frozen: bool,
    set: &Path,
    r: &Request,
    options: &compile::Options,
) -> Result<suite::Passed, Outcome> {
    let fail = |e: Failure| Outcome::Failed(e.render().lines().next().unwrap_or("").to_string());
    let (given, want) = (numbered(set, "input")?, numbered(set, "output")?);
    let f = module
        .functions
        .first()
        .ok_or_else(|| Outcome::Failed("no entry".into()))?;
    // Data names its tensors as the model does, or comes in order.
    let inputs: Vec<(String, Tensor)> = f
        .params
        .iter()
        .enumerate()
        .filter_map(|(i, p)| {
            let named = given.iter().find(|(n, _)| **n == *p.name).or(given.get(i));
            named.map(|(_, t)| (p.name.to_string(), t.clone()))
        })
        .collect();
    let mut how = suite::Passed::Interpreted;
    let got: Vec<Tensor> = if r.interpreter {
        interpret(module, &f.name, &inputs).map_err(fail)?
    } else {
        match run_compiled(module.clone(), &f.name, &inputs, options, 1) {
            Ok(ran) => {
                how = suite::Passed::of(f, &ran.model.program().entries[0], frozen);
                ran.outputs.into_iter().map(|r| r.1).collect()
            }
            Err(e) if e.render().contains("K0503") => return Err(Outcome::Skipped(e.render())),
            Err(e) => return Err(fail(e)),
        }
    };
    compare(&got, &want, r).map_err(Outcome::Failed)?;
    Ok(how)
}

/// Compares a case's outputs with what its data says.
fn compare(got: &[Tensor], want: &[(String, Tensor)], r: &Request) -> Result<(), String> {
    for (i, (g, (name, w))) in got.iter().zip(want).enumerate() {
        let d = difference(g, w);
        if let Some(m) = d.mismatch {
            return Err(format!("output {i} `{name}`: {m}"));
        }
        // Half floats: what counts is the error of the whole (a function that
        // rounds between its steps differs by some units in single elements).
        if w.dtype().is_float() && w.dtype().bits() <= 16 {
            if d.relative > r.rtol.max(1e-2) {
                let relative = d.relative;
                return Err(format!(
                    "output {i} `{name}`: relative error {relative:.3e}"
                ));
            }
            continue;
        }
        for k in 0..w.len() {
            let (a, b) = (g.get_f64(k), w.get_f64(k));
            if a.is_finite() && b.is_finite() && (a - b).abs() > r.atol + r.rtol * b.abs() {
                return Err(format!("output {i} `{name}`: element {k} is {a}, not {b}"));
            }
        }
    }
    if got.len() < want.len() {
        return Err(format!(
            "{} outputs where {} are expected",
            got.len(),
            want.len()
        ));
    }
    Ok(())
}
