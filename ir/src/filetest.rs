//! Tests that are files of text form, run by the test binaries of this
//! workspace. A file says in its first lines what is done with it:
//!
//! ```text
//! // test: roundtrip              prints as it stands here
//! // test: verify                 has the errors that `// error: …` names on their lines, and no others
//! // test: interp tol=1e-6        `// run: @f(f32[2] (1, 2)) == f32[2] (2, 4)`, `// fails: @f(…) message`
//! // test: passes=a,b tol=1e-5    before and after the passes the interpreter gives the same
//! // test: run=cpu                the interpreter and the compiled function give the same
//! ```
//!
//! Where a test prints, `// check: text` lines must be found in the printed module
//! in their order, `// check-not: text` not before the next one, and lines `//| …`
//! are the whole of it. Blessing rewrites the `//|` lines and the results of
//! `// run:` lines. `kir 1` may be left out. `dims=B:4,S:3` binds sizes; else a few
//! are tried. `ints=0..5` bounds integer inputs.

mod compare;
mod directives;
mod random;

use crate::interp::{Interpreter, State};
use crate::ops::samples::Random;
use crate::parse::{NoFiles, parse_with_lines};
use crate::print::{PrintOptions, print_module};
use crate::verify::verify_module;
use crate::{DType, Graph, Module, NodeId, Op, Tensor};
use compare::{cases, compare, within_noise};
use directives::Directives;
pub use random::random_module;
use std::path::{Path, PathBuf};

/// Runs a pass of this name over a module.
pub type PassFn<'a> = &'a dyn Fn(&str, &mut Module) -> Result<(), String>;
/// Compiles a module for a device and runs a function on the caller's ports.
pub type RunFn<'a> = &'a dyn Fn(&str, &Module, &str, &[Tensor]) -> Result<Vec<Tensor>, String>;

/// Runs a function of one module on the caller's ports.
pub type CallFn<'a> = &'a dyn Fn(&str, &[Tensor]) -> Result<Vec<Tensor>, String>;

/// What the test binary at hand can do.
#[derive(Clone, Copy, Default)]
pub struct Runner<'a> {
    /// Passes by name.
    pub pass: Option<PassFn<'a>>,
    /// Devices by name.
    pub run: Option<RunFn<'a>>,
    /// Rewrite expectations instead of checking them.
    pub bless: bool,
}

/// What became of the files.
#[derive(Debug, Default)]
pub struct Report {
    /// How many passed.
    pub passed: usize,
    /// What failed, and how.
    pub failed: Vec<(PathBuf, String)>,
    /// What was not run, and why.
    pub skipped: Vec<(PathBuf, String)>,
}

/// Why a test did not pass.
#[derive(Debug, PartialEq, Eq)]
pub enum Failure {
    /// It failed.
    Failed(String),
    /// This binary cannot run it.
    Skipped(String),
}

impl<E: std::fmt::Display> From<E> for Failure {
    fn from(e: E) -> Failure {
        Failure::Failed(e.to_string())
    }
}

fn failed<T>(message: impl Into<String>) -> Result<T, Failure> {
    Err(Failure::Failed(message.into()))
}

/// Runs every `.kir` file below a folder, in order.
pub fn run_dir(dir: &Path, runner: &Runner) -> std::io::Result<Report> {
    let (mut report, mut folders, mut files) = (Report::default(), vec![dir.to_owned()], vec![]);
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder)? {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "kir") {
                files.push(path);
            }
        }
    }
    files.sort();
    for path in files {
        match run_file(&path, runner) {
            Ok(()) => report.passed += 1,
            Err(Failure::Failed(message)) => report.failed.push((path, message)),
            Err(Failure::Skipped(why)) => report.skipped.push((path, why)),
        }
    }
    Ok(report)
}

/// Runs one file.
pub fn run_file(path: &Path, runner: &Runner) -> Result<(), Failure> {
    let text = std::fs::read_to_string(path)?;
    if let Some(blessed) = run_text(&text, runner)? {
        std::fs::write(path, blessed)?;
    }
    Ok(())
}

/// Runs one test; where blessing changes its text, the new text.
pub fn run_text(text: &str, runner: &Runner) -> Result<Option<String>, Failure> {
    let test = Directives::of(text)?;
    // On the first line, so that the others keep their numbers.
    let versioned = text.lines().any(|l| l.trim_start().starts_with("kir "));
    let source = if versioned {
        text.to_string()
    } else {
        format!("kir 1 {text}")
    };
    if test.mode == "verify" {
        return verify(&test, &source).map(|()| None);
    }
    let (module, _) = parse_with_lines(&source, &NoFiles)?;
    if let Some(first) = verify_module(&module).first() {
        return failed(format!("does not verify: {first}"));
    }
    match test.mode.as_str() {
        "roundtrip" => round_trip(&test, text, &module).map(|()| None),
        "interp" => interpret(&test, text, &module, runner.bless),
        "passes" => passes(&test, text, module, runner),
        "run" => run(&test, &module, runner).map(|()| None),
        mode => failed(format!("there is no mode `{mode}`")),
    }
}

fn printed(module: &Module) -> String {
    let options = PrintOptions {
        origins: true,
        ids: false,
    };
    print_module(module, &options)
}

/// The text reads back and prints as it was.
fn reparses(text: &str) -> Result<Module, Failure> {
    let (again, _) =
        parse_with_lines(text, &NoFiles).map_err(|e| format!("does not read back: {e}\n{text}"))?;
    let second = printed(&again);
    if second != text {
        return failed(format!(
            "prints another text when read back:\n{text}\n{second}"
        ));
    }
    Ok(again)
}

fn round_trip(test: &Directives, text: &str, module: &Module) -> Result<(), Failure> {
    let want: String = text
        .lines()
        .filter(|l| !l.trim_start().starts_with("//") && !l.trim().is_empty())
        .map(|l| format!("{l}\n"))
        .collect();
    let have = printed(module);
    reparses(&have)?;
    test.check(&have)?;
    if have != want {
        return failed(format!("prints as\n{have}"));
    }
    Ok(())
}

fn verify(test: &Directives, source: &str) -> Result<(), Failure> {
    let found: Vec<(usize, String)> = match parse_with_lines(source, &NoFiles) {
        Err(e) => vec![(e.line, e.message)],
        Ok((module, lines)) => verify_module(&module)
            .into_iter()
            .map(|e| {
                let function = module.functions.iter().position(|f| {
                    e.node.is_some() && e.place.starts_with(&format!("@{} ", f.name))
                });
                let node = function.and_then(|i| lines[i].get(&e.node?).copied());
                (
                    node.unwrap_or_else(|| head_line(source, &e.place)),
                    e.message,
                )
            })
            .collect(),
    };
    let mut left = test.errors.clone();
    for (line, message) in &found {
        match left
            .iter()
            .position(|(l, want)| l == line && message.contains(want.as_str()))
        {
            Some(i) => drop(left.remove(i)),
            None => return failed(format!("line {line}: unexpected error: {message}")),
        }
    }
    match left.first() {
        Some((line, want)) => failed(format!("line {line}: no error `{want}`")),
        None => Ok(()),
    }
}

/// The line that begins a function or a global.
fn head_line(source: &str, place: &str) -> usize {
    let starts = |l: &str| {
        ["func ", "const ", "state "].iter().any(|w| {
            let rest = l
                .trim_start()
                .strip_prefix(w)
                .and_then(|r| r.strip_prefix(place));
            rest.is_some_and(|r| r.starts_with(['(', ' ']))
        })
    };
    source.lines().position(starts).map_or(1, |i| i + 1)
}

fn interpret(
    test: &Directives,
    text: &str,
    module: &Module,
    bless: bool,
) -> Result<Option<String>, Failure> {
    let mut interpreter = Interpreter::new(module)?;
    let mut lines: Vec<String> = text.lines().map(str::to_string).collect();
    if test.runs.is_empty() {
        return failed("an `interp` test needs `// run:` or `// fails:` lines");
    }
    for run in &test.runs {
        let place = format!("line {}", run.line);
        match (interpreter.run(&run.function, &run.args), &run.fails) {
            (Err(e), Some(want)) if e.0.contains(want.as_str()) => {}
            (Err(e), _) => return failed(format!("{place}: {e}")),
            (Ok(_), Some(_)) => return failed(format!("{place}: does not fail")),
            (Ok(results), None) if bless => lines[run.line - 1] = run.blessed(&results),
            (Ok(results), None) => {
                compare(&results, &run.results, test.tol).map_err(|e| format!("{place}: {e}"))?
            }
        }
    }
    Ok(bless
        .then(|| directives::join(&lines))
        .filter(|t| t != text))
}

/// Whether a rewritten module gives what the module gives, on a few seeded inputs
/// for every function, within this relative tolerance.
pub fn same_meaning(module: &Module, rewritten: &Module, tol: f64) -> Result<(), String> {
    let run = |m: &Module, f: &str, x: &[Tensor]| outcome(m, f, x).map(|o| o.0);
    same_results(module, tol, &|name, inputs| run(rewritten, name, inputs))
}

/// Like [`same_meaning`], for anything that runs a function on inputs.
///
/// Where a result is beyond the tolerance, it must still be within what rounding
/// alone does to it: the reference is run again with every intermediate float off
/// by up to one unit in the last place, and the largest difference, four times,
/// is allowed. So values that cancel are judged by what they are made of.
pub fn same_results(module: &Module, tol: f64, run: CallFn) -> Result<(), String> {
    let test = Directives::default();
    for f in &module.functions {
        let inputs = cases(&test, f).map_err(|e| format!("@{}: {e:?}", f.name))?;
        for inputs in inputs {
            let place = |e: String| format!("@{} on {inputs:?}: {e}", f.name);
            let (want, _) = match outcome(module, &f.name, &inputs) {
                Ok(want) => want,
                // What the reference refuses (sizes that break a guard) is refused.
                Err(why) => match run(&f.name, &inputs) {
                    Ok(_) => return Err(place(format!("runs, and is to fail: {why}"))),
                    Err(_) => continue,
                },
            };
            let have = run(&f.name, &inputs).map_err(place)?;
            if let Err(e) = compare(&have, &want, tol) {
                let noisy: Vec<Vec<Tensor>> = (0..8)
                    .map(|seed| noisy_outcome(module, &f.name, &inputs, seed))
                    .collect::<Result<_, _>>()
                    .map_err(place)?;
                if !within_noise(&have, &want, &noisy, tol) {
                    return Err(place(e));
                }
            }
        }
    }
    Ok(())
}

/// A function's results when every node's floats are off by up to one unit in the
/// last place (Monte Carlo arithmetic).
fn noisy_outcome(
    module: &Module,
    function: &str,
    inputs: &[Tensor],
    seed: u64,
) -> Result<Vec<Tensor>, String> {
    let mut interpreter = Interpreter::new(module).map_err(|e| e.0)?;
    let mut random = Random(seed);
    // Inputs too: sums inside one op round as if its terms did.
    let inputs: Vec<Tensor> = inputs.iter().map(|t| noisy(t, &mut random)).collect();
    let mut observe = |graph: &Graph, n: NodeId, results: &mut [Tensor]| {
        if !matches!(graph.node(n).op, Op::Constant(_) | Op::Global(_)) {
            results.iter_mut().for_each(|t| *t = noisy(t, &mut random));
        }
    };
    interpreter
        .run_observed(function, &inputs, &mut observe)
        .map_err(|e| e.0)
}

/// Results of one function, and the state after it.
type Outcome = (Vec<Tensor>, State);

fn outcome(module: &Module, function: &str, inputs: &[Tensor]) -> Result<Outcome, String> {
    let mut interpreter = Interpreter::new(module).map_err(|e| e.0)?;
    let results = interpreter.run(function, inputs).map_err(|e| e.0)?;
    Ok((results, interpreter.state))
}

/// A tensor whose f32 elements are off by up to one unit in the last place.
fn noisy(t: &Tensor, random: &mut Random) -> Tensor {
    if t.dtype() != DType::F32 {
        return t.clone();
    }
    let mut off = || ((random.next() % 3) as f64 - 1.0) * f64::from(f32::EPSILON);
    let elements: Vec<f64> = t.to_f64().iter().map(|v| v * (1.0 + off())).collect();
    Tensor::from_f64(DType::F32, t.shape(), &elements).unwrap_or_else(|_| t.clone())
}

fn passes(
    test: &Directives,
    text: &str,
    mut module: Module,
    runner: &Runner,
) -> Result<Option<String>, Failure> {
    let Some(pass) = runner.pass else {
        return Err(Failure::Skipped("this binary has no passes".into()));
    };
    let mut before = vec![];
    for f in &module.functions {
        let mut ran = 0;
        let mut last = String::new();
        for inputs in cases(test, f)? {
            match outcome(&module, &f.name, &inputs) {
                Ok(result) => before.push((f.name.clone(), inputs, result)),
                // Sizes that the function's guards rule out.
                Err(e) => last = e,
            }
            ran = before.iter().filter(|(name, ..)| *name == f.name).count();
        }
        if ran == 0 {
            return failed(format!("@{} runs on no inputs: {last}", f.name));
        }
    }
    for name in test.value.split(',') {
        pass(name, &mut module).map_err(|e| format!("{name}: {e}"))?;
        if let Some(first) = verify_module(&module).first() {
            let text = printed(&module);
            return failed(format!("after {name}: {first}\n{text}"));
        }
    }
    let after = printed(&module);
    let again = reparses(&after)?;
    for (name, inputs, want) in before {
        let place = |e: String| format!("@{name} on {inputs:?}: {e}\n{after}");
        let have = outcome(&again, &name, &inputs).map_err(place)?;
        compare(&have.0, &want.0, test.tol).map_err(place)?;
        for (state, t) in &want.1 {
            let Some(new) = have.1.get(state) else {
                return failed(format!("@{state} is gone"));
            };
            compare(std::slice::from_ref(new), std::slice::from_ref(t), test.tol)
                .map_err(|e| place(format!("@{state}: {e}")))?;
        }
    }
    if runner.bless {
        let new = test.with_output(text, &after);
        return Ok((new != text).then_some(new));
    }
    test.check(&after)?;
    Ok(None)
}

fn run(test: &Directives, module: &Module, runner: &Runner) -> Result<(), Failure> {
    let Some(device) = runner.run else {
        return Err(Failure::Skipped(format!(
            "this binary cannot run on {}",
            test.value
        )));
    };
    for f in &module.functions {
        let mut ran = 0;
        for inputs in cases(test, f)? {
            let Ok((want, _)) = outcome(module, &f.name, &inputs) else {
                continue;
            };
            ran += 1;
            let have = device(&test.value, module, &f.name, &inputs)?;
            compare(&have, &want, test.tol)
                .map_err(|e| format!("@{} on {inputs:?}: {e}", f.name))?;
        }
        if ran == 0 {
            return failed(format!("@{} runs on no inputs", f.name));
        }
    }
    Ok(())
}
