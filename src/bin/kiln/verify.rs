//! `kiln verify`: models against ONNX's test data.

use crate::args::CompileArgs;
use crate::model::{self, Failure, Temporary};
use crate::output::outln;
use crate::suite;
use kiln::compile;
use kiln::import::{DataSet, Diagnostic, Interface, import_onnx, read_data_set};
use kiln::ir::interp::Interpreter;
use kiln::ir::{DType, Graph, Module, Op, Tensor};
use kiln::runtime::device::Name;
use kiln::runtime::{Input, Model, Session};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

/// What to verify.
#[derive(Clone)]
pub struct Request {
    pub model: Option<PathBuf>,
    pub data: Vec<PathBuf>,
    pub suite: Option<PathBuf>,
    pub rtol: f64,
    pub atol: f64,
    pub interpreter: bool,
    /// CPU levels to compile for, one after the other; this machine's if empty.
    pub targets: Vec<String>,
    /// Where compiled code runs.
    pub device: Name,
    pub threads: usize,
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
    if want.dtype() == DType::Str {
        let mut pairs = got.as_strings().iter().zip(want.as_strings()).enumerate();
        let found = pairs.find(|(_, (a, b))| a != b);
        d.mismatch = found.map(|(i, (a, b))| format!("element {i} is {a:?}, not {b:?}"));
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

/// Compiles and runs.
pub fn run_compiled(
    module: Module,
    entry: &str,
    inputs: &[(String, Tensor)],
    options: &compile::Options,
    device: Name,
    threads: usize,
) -> Result<Vec<(String, Tensor)>, Failure> {
    Machine::compile(module, options, device)?.run(entry, inputs, threads)
}

/// A compiled model. Its artifact is removed with it.
pub struct Machine {
    /// The CPU level or GPU target.
    level: String,
    device: Name,
    model: std::sync::Arc<Model>,
    _artifact: Temporary,
}

impl Machine {
    /// Compiles for the first level of the options, or the first GPU target if it is to
    /// run on a device.
    pub fn compile(
        module: Module,
        options: &compile::Options,
        device: Name,
    ) -> Result<Machine, Failure> {
        let level = match device {
            Name::Cpu => options.targets.first().map(|t| &t.name),
            Name::Cuda(_) | Name::Sim => options.gpu.first().map(|t| &t.name),
        };
        let level = level.cloned().unwrap_or_default();
        // A process may have several at once, on one thread or on many.
        static MADE: AtomicUsize = AtomicUsize::new(0);
        let (process, number) = (std::process::id(), MADE.fetch_add(1, Ordering::Relaxed));
        let name = format!("kiln-verify-{process}-{number}-{level}.kiln");
        let out = std::env::temp_dir().join(name);
        let artifact = Temporary(out.clone());
        compile::compile(module, options, &out)?;
        Ok(Machine {
            level,
            device,
            model: Model::load_for(&out, device)?,
            _artifact: artifact,
        })
    }

    /// A session on so many threads, and the number of an entry.
    pub fn session(&self, entry: &str, threads: usize) -> Result<(Session, usize), Failure> {
        let index = self.model.entry(Some(entry))?;
        let target = Some(&self.level[..]).filter(|_| self.device != Name::Cpu);
        let session = Session::on(self.model.clone(), threads.max(1), self.device, target)?;
        Ok((session, index))
    }

    /// Runs an entry in a session of its own.
    pub fn run(
        &self,
        entry: &str,
        inputs: &[(String, Tensor)],
        threads: usize,
    ) -> Result<Vec<(String, Tensor)>, Failure> {
        let (mut session, index) = self.session(entry, threads)?;
        let refs: Vec<(&str, Input)> = inputs.iter().map(|(n, t)| (&n[..], t.into())).collect();
        session.run_with(index, &refs)?;
        let ports = &self.model.program().entries[index].outputs;
        let mut outputs = vec![];
        for (i, port) in ports.iter().enumerate() {
            let Some(t) = session.tensor(i) else { continue };
            outputs.push((port.name.clone(), t));
        }
        Ok(outputs)
    }
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
    let args = CompileArgs {
        target: r.targets.clone(),
        ..CompileArgs::default()
    };
    let options = model::options(&model::for_device(&args, r.device)?)?;
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

/// One model with its data: in the interpreter, or as code compiled once for each
/// level, or in both where levels are named beside `--interpreter`.
pub fn case(path: &Path, data: &[PathBuf], r: &Request, options: &compile::Options) -> Outcome {
    let interface = Interface::of(path);
    let mut ready: Option<Ready> = None;
    let mut how = None;
    for set in data {
        let given = match read_data_set(set, &interface) {
            Ok(given) => given,
            Err(e) => return Outcome::Skipped(e.to_string()),
        };
        // What was made for the data before serves this too, unless that data's
        // values or numbers of elements went into it.
        let plain = given.options.dims.is_empty() && given.options.inputs.is_empty();
        let one = match ready.take().filter(|old| plain && !old.special) {
            Some(old) => Ok(old),
            None => Ready::of(path, &given, r, options),
        };
        match one.and_then(|one| one.check(set, &given, r).map(|passed| (one, passed))) {
            Ok((one, passed)) => (ready, how) = (Some(one), Some(passed)),
            Err(outcome) => return outcome,
        }
    }
    match how {
        Some(how) => Outcome::Passed(how),
        None => Outcome::Skipped("no test_data_set".into()),
    }
}

/// A model imported and compiled for a data set.
struct Ready {
    module: Module,
    /// Inputs were made constants.
    frozen: bool,
    /// It serves data like the one that it was made for, and no other.
    special: bool,
    machines: Vec<Machine>,
}

impl Ready {
    fn of(
        path: &Path,
        data: &DataSet,
        r: &Request,
        options: &compile::Options,
    ) -> Result<Ready, Outcome> {
        let (module, frozen) = import(path, data).map_err(|all| {
            let first = all.first().map(|d| d.to_string()).unwrap_or_default();
            Outcome::Skipped(first.lines().next().unwrap_or("").into())
        })?;
        let compiles = !r.interpreter || !r.targets.is_empty();
        let one = |targets, gpu| {
            let options = compile::Options {
                targets,
                gpu,
                ..options.clone()
            };
            Machine::compile(module.clone(), &options, r.device).map_err(|e| refused(&e))
        };
        let cpu = options.targets.iter().map(|t| (vec![t.clone()], vec![]));
        let all = cpu.chain(options.gpu.iter().map(|t| (vec![], vec![t.clone()])));
        let machines = all.filter(|_| compiles).map(|(cpu, gpu)| one(cpu, gpu));
        Ok(Ready {
            machines: machines.collect::<Result<_, _>>()?,
            special: frozen || !data.options.dims.is_empty() || !data.options.inputs.is_empty(),
            module,
            frozen,
        })
    }

    /// Runs one data set on all there is, and compares.
    fn check(&self, set: &Path, data: &DataSet, r: &Request) -> Result<suite::Passed, Outcome> {
        let f = self.module.functions.first();
        let f = f.ok_or_else(|| Outcome::Failed("no entry".into()))?;
        // Data names its tensors as the model does, or comes in order.
        let given = |(i, p): (usize, &kiln::ir::Port)| {
            let named = data.inputs.iter().find(|(n, _)| **n == *p.name);
            let (_, t) = named.or(data.inputs.get(i))?;
            Some((p.name.to_string(), t.clone()))
        };
        let inputs: Vec<_> = f.params.iter().enumerate().filter_map(given).collect();
        let set = set.file_name().unwrap_or_default().to_string_lossy();
        let mut how = suite::Passed::Interpreted;
        for machine in &self.machines {
            let got = machine
                .run(&f.name, &inputs, r.threads)
                .map_err(|e| refused(&e))?;
            let got: Vec<Tensor> = got.into_iter().map(|r| r.1).collect();
            compare(&got, f, data, r)
                .map_err(|why| judge(f, &got, data, format!("{}, {set}: {why}", machine.level)))?;
            how = suite::Passed::of(f, &machine.model.program().entries[0], self.frozen);
        }
        if r.interpreter {
            let got = interpret(&self.module, &f.name, &inputs).map_err(|e| refused(&e))?;
            compare(&got, f, data, r)
                .map_err(|why| judge(f, &got, data, format!("interpreter, {set}: {why}")))?;
        }
        Ok(how)
    }
}

/// What a difference says: nothing where the model draws random numbers and gives
/// what has the right types and shapes.
fn judge(f: &Graph, got: &[Tensor], data: &DataSet, why: String) -> Outcome {
    let draws = (f.nodes_in_order().into_iter()).any(|n| matches!(f.node(n).op, Op::Philox(_)));
    let like = |(g, (_, w)): (&Tensor, &(String, Tensor))| {
        (g.dtype(), g.shape()) == (w.dtype(), w.shape())
    };
    let alike = got.len() == data.outputs.len() && got.iter().zip(&data.outputs).all(like);
    match draws && alike {
        true => Outcome::Skipped("random numbers: only types and shapes can be compared".into()),
        false => Outcome::Failed(why),
    }
}

/// What has no kernel yet is skipped; any other failure counts.
fn refused(e: &Failure) -> Outcome {
    let text = e.render();
    // K0505: none for the GPU target.
    match text.contains("K0503") || text.contains("K0505") {
        true => Outcome::Skipped(text),
        false => Outcome::Failed(text.lines().next().unwrap_or("").to_string()),
    }
}

/// Imports a model for its data: with as many elements of sequences as that has.
/// Where the importer asks for values that an input holds (axes, paddings), that
/// input is frozen to what the data gives. Whether one was.
fn import(path: &Path, data: &DataSet) -> Result<(Module, bool), Vec<Diagnostic>> {
    let mut options = data.options.clone();
    let first = match import_onnx(path, &options) {
        Ok(i) => return Ok((i.module, false)),
        Err(all) => all,
    };
    let structural = |t: &Tensor| t.shape().len() <= 1 && t.len() <= 64;
    let asks = |all: &[Diagnostic]| all.iter().any(|d| d.code == NEEDS_VALUE);
    if !asks(&first) {
        return Err(first);
    }
    let mut given = data.inputs.clone();
    // Integers before floats, which are structure only as scales.
    given.sort_by_key(|(_, t)| t.dtype().is_int());
    // The structural inputs come last in ONNX's operators: the fewest, from the end.
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

/// Compares a case's outputs with what its data says.
fn compare(got: &[Tensor], f: &Graph, data: &DataSet, r: &Request) -> Result<(), String> {
    let want = &data.outputs;
    if got.len() != want.len() {
        let (have, need) = (got.len(), want.len());
        return Err(format!("{have} outputs where {need} are expected"));
    }
    for (i, (g, port)) in got.iter().zip(&f.results).enumerate() {
        let named = want.iter().find(|(n, _)| **n == *port.name);
        let (name, w) = named.unwrap_or(&want[i]);
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
    Ok(())
}
