//! `kiln verify --suite`: folders of cases in one process, and what a case that
//! passes says about the compiler.

use crate::model::Failure;
use crate::output::{self, outln};
use crate::verify::{self, Case, Outcome, Request};
use kiln::compile;
use kiln::ir::op::Class;
use kiln::ir::{Graph, Op};
use kiln::runtime::plan::{Entry, Place, Step};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// How a case passed. It is *all compiled* if its inputs are values of run time,
/// all of its arithmetic is in kernels, and nothing that it returns was known
/// before it ran. Exactly: none of the other rows, which are tried in order, holds.
///
/// Steps that decide what runs (`if`, `loop`, sizes that data or the way taken
/// binds) and that move bytes (copies, packing) compute no element and are allowed.
/// Constants inside a model may be folded: only what is returned may not be one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Passed {
    /// The reference interpreter ran it.
    Interpreted,
    /// It has no inputs: passing shows that it imports and folds, no more.
    NoInputs,
    /// Its `data.json` says `"constant_weights": true`: every weight repeats one
    /// number, so passing shows that it imports and runs, and not that a kernel reads
    /// the right element.
    ConstantWeights,
    /// An input was made a constant, because its values decide structure.
    Frozen,
    /// An output is a constant of the artifact, or written from sizes alone.
    Folded,
    /// The runtime itself computes elements: the indices of nonzero elements, a
    /// selection (top k), strings, or sizes as numbers.
    OnHost,
    /// It has arithmetic (any op but moves, views, data, sizes and control flow), and
    /// no kernel runs.
    NoKernel,
    /// None of these.
    AllCompiled,
}

impl Passed {
    /// Every row, with its name in the output.
    pub const ALL: [(Passed, &'static str); 8] = [
        (Passed::AllCompiled, "all_compiled"),
        (Passed::Frozen, "frozen"),
        (Passed::NoInputs, "no_inputs"),
        (Passed::ConstantWeights, "constant_weights"),
        (Passed::Folded, "folded"),
        (Passed::OnHost, "on_host"),
        (Passed::NoKernel, "no_kernel"),
        (Passed::Interpreted, "interpreted"),
    ];

    /// The row of a model as imported, and its plan.
    pub fn of(imported: &Graph, plan: &Entry, frozen: bool) -> Passed {
        let base = |mut b: u32| {
            while let Place::View { of, .. } = plan.buffers[b as usize].place {
                b = of;
            }
            b
        };
        let mut work = Work::default();
        work.count(&plan.steps);
        let known = |b: u32| {
            matches!(plan.buffers[base(b) as usize].place, Place::Global(_))
                || work.sizes.iter().any(|&s| base(s) == base(b))
        };
        if frozen {
            Passed::Frozen
        } else if plan.inputs.is_empty() {
            Passed::NoInputs
        } else if plan.outputs.iter().any(|p| known(p.buffer)) {
            Passed::Folded
        } else if work.host || !work.sizes.is_empty() {
            Passed::OnHost
        } else if work.kernels == 0 && has_arithmetic(imported) {
            Passed::NoKernel
        } else {
            Passed::AllCompiled
        }
    }
}

fn has_arithmetic(g: &Graph) -> bool {
    g.nodes_in_order()
        .into_iter()
        .map(|n| &g.node(n).op)
        .any(|op: &Op| match op.class() {
            Class::Elementwise
            | Class::Reduction
            | Class::Anchor
            | Class::Kernel
            | Class::Composite => true,
            Class::Move | Class::View | Class::Plan => false,
        })
}

/// What a plan's steps do, nested ones included.
#[derive(Default)]
struct Work {
    kernels: usize,
    host: bool,
    /// Where sizes are written as elements.
    sizes: Vec<u32>,
}

impl Work {
    fn count(&mut self, steps: &[Step]) {
        for step in steps {
            match step {
                Step::Launch(_) => self.kernels += 1,
                Step::WriteDims { to, .. } => self.sizes.push(*to),
                Step::NonZero { .. }
                | Step::TopK { .. }
                | Step::Strings { .. }
                | Step::SplitStrings { .. } => self.host = true,
                Step::If {
                    then, otherwise, ..
                } => {
                    self.count(then);
                    self.count(otherwise);
                }
                Step::Loop(l) => self.count(&l.body),
                Step::Copy { .. }
                | Step::Repack { .. }
                | Step::BindDim { .. }
                | Step::SetDims { .. }
                | Step::Check { .. } => {}
            }
        }
    }
}

/// Passed, failed, skipped, and how those that passed did.
#[derive(Clone, Default)]
struct Tally {
    counts: [usize; 3],
    how: BTreeMap<Passed, usize>,
}

impl Tally {
    fn add(&mut self, outcome: &Outcome) {
        match outcome {
            Outcome::Passed(how) => {
                self.counts[0] += 1;
                *self.how.entry(*how).or_default() += 1;
            }
            Outcome::Failed(_) => self.counts[1] += 1,
            Outcome::Skipped(_) => self.counts[2] += 1,
        }
    }

    fn how(&self, row: Passed) -> usize {
        self.how.get(&row).copied().unwrap_or(0)
    }

    fn json(&self) -> serde_json::Value {
        let [passed, failed, skipped] = self.counts;
        let mut doc = serde_json::json!({ "passed": passed, "failed": failed, "skipped": skipped });
        for (row, name) in Passed::ALL {
            doc[name] = self.how(row).into();
        }
        doc
    }
}

/// Runs a folder of cases, or a folder of such folders, on every core. The exit
/// status: 1 if a case failed.
pub fn run(dir: &Path, r: &Request, options: compile::Options) -> Result<u8, Failure> {
    let cases = discover(dir)?;
    // Thousands of small kernels: starting a process for each would cost more
    // than compiling it here.
    let options = compile::Options {
        workers: compile::objects::Workers {
            executable: None,
            ..options.workers
        },
        // The bar counts cases.
        progress: |_, _, _| {},
        ..options
    };
    let outcomes = on_every_core(&cases, r, &options)?;
    report(&cases, &outcomes, r.json);
    let failed = outcomes.iter().any(|o| matches!(o, Outcome::Failed(_)));
    Ok(if failed { 1 } else { 0 })
}

/// Deep models recurse: a thread gets as much stack as a main thread usually has.
const STACK: usize = 8 << 20;

fn on_every_core(
    cases: &[Case],
    r: &Request,
    options: &compile::Options,
) -> Result<Vec<Outcome>, Failure> {
    let (next, done) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let results: Mutex<Vec<Option<Outcome>>> = Mutex::new(cases.iter().map(|_| None).collect());
    let work = || {
        loop {
            let i = next.fetch_add(1, Ordering::Relaxed);
            let Some(c) = cases.get(i) else { return };
            let run = || verify_one(c, r, options);
            // A panic is a bug that this case has found; the others still run.
            let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(run))
                .unwrap_or_else(|_| Outcome::Failed("it panicked".into()));
            results.lock().unwrap_or_else(|e| e.into_inner())[i] = Some(outcome);
            let done = done.fetch_add(1, Ordering::Relaxed) + 1;
            output::progress("verify", done, cases.len());
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get());
    std::thread::scope(|scope| {
        for _ in 0..threads.min(cases.len()) {
            std::thread::Builder::new()
                .stack_size(STACK)
                .spawn_scoped(scope, work)
                .map_err(|e| Failure::run(format!("K0717: no thread can be started: {e}")))?;
        }
        Ok::<(), Failure>(())
    })?;
    let results = results.into_inner().unwrap_or_else(|e| e.into_inner());
    Ok(results.into_iter().flatten().collect())
}

/// Folders with a `model.onnx`, in order: those of `dir`, or those of its folders.
fn discover(dir: &Path) -> Result<Vec<Case>, Failure> {
    let mut cases = vec![];
    for folder in folders(dir)? {
        if let Some(case) = case_of("", &folder) {
            cases.push(case);
            continue;
        }
        let set = name(&folder);
        cases.extend(folders(&folder)?.iter().filter_map(|f| case_of(&set, f)));
    }
    if cases.is_empty() {
        return Err(Failure::input(format!(
            "K0718: {}: neither its folders nor theirs hold a model.onnx",
            dir.display()
        )));
    }
    Ok(cases)
}

fn case_of(set: &str, folder: &Path) -> Option<Case> {
    let model = folder.join("model.onnx");
    model.exists().then(|| Case {
        set: set.to_string(),
        name: name(folder),
        model,
        data: verify::data_sets(folder),
    })
}

fn folders(dir: &Path) -> Result<Vec<PathBuf>, Failure> {
    let entries = std::fs::read_dir(dir)
        .map_err(|e| Failure::input(format!("K0700: cannot open {}: {e}", dir.display())))?;
    let mut all: Vec<PathBuf> = entries
        .flatten()
        .map(|e| e.path())
        .filter(|p| p.is_dir())
        .collect();
    all.sort();
    Ok(all)
}

fn name(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default();
    name.to_string_lossy().into_owned()
}

/// One case, as its `data.json` wants it, which the standard's models have beside
/// them: `rtol`, `atol`, `constant_weights`.
fn verify_one(case: &Case, r: &Request, options: &compile::Options) -> Outcome {
    let text = std::fs::read_to_string(case.model.with_file_name("data.json"));
    let own: serde_json::Value = text
        .ok()
        .and_then(|t| serde_json::from_str(&t).ok())
        .unwrap_or_default();
    let request = Request {
        rtol: own["rtol"].as_f64().unwrap_or(r.rtol),
        atol: own["atol"].as_f64().unwrap_or(r.atol),
        ..r.clone()
    };
    match verify::case(&case.model, &case.data, &request, options) {
        Outcome::Passed(Passed::AllCompiled) if own["constant_weights"] == true => {
            Outcome::Passed(Passed::ConstantWeights)
        }
        outcome => outcome,
    }
}

/// The operator that a case's name begins with.
fn operator(case: &Case) -> String {
    let name = case.name.trim_start_matches("test_");
    let name = name.trim_start_matches("operator_");
    name.split('_').next().unwrap_or("").to_string()
}

/// What the skipped cases with one reason have in common: the text from the last
/// code on, so without the node that each names first.
fn reason(text: &str) -> String {
    let line = text.lines().next().unwrap_or("");
    let is_code = |w: &[u8]| w[0] == b'K' && w[1..].iter().all(u8::is_ascii_digit);
    let at = line.as_bytes().windows(5).rposition(is_code);
    at.map_or(line, |at| &line[at..]).replacen("]: ", ": ", 1)
}

fn report(cases: &[Case], outcomes: &[Outcome], json: bool) {
    let (mut all, mut expanded) = (Tally::default(), Tally::default());
    let mut sets: BTreeMap<&str, Tally> = BTreeMap::new();
    let mut operators: BTreeMap<&str, BTreeMap<String, [usize; 3]>> = BTreeMap::new();
    let mut skips: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    let mut hows: BTreeMap<Passed, Vec<&str>> = BTreeMap::new();
    let mut failures = vec![];
    for (case, outcome) in cases.iter().zip(outcomes) {
        all.add(outcome);
        sets.entry(&case.set).or_default().add(outcome);
        if case.name.ends_with("_expanded") {
            expanded.add(outcome);
        }
        let row = operators.entry(&case.set).or_default();
        let row = row.entry(operator(case)).or_default();
        match outcome {
            Outcome::Passed(how) => {
                row[0] += 1;
                hows.entry(*how).or_default().push(&case.name);
            }
            Outcome::Failed(why) => {
                row[1] += 1;
                let name = match &case.set[..] {
                    "" => case.name.clone(),
                    set => format!("{set} {}", case.name),
                };
                failures.push(format!("FAILED {name}: {why}"));
            }
            Outcome::Skipped(why) => {
                row[2] += 1;
                skips.entry(reason(why)).or_default().push(&case.name);
            }
        }
    }
    let [passed, failed, skipped] = all.counts;
    if json {
        let by_how = |row| hows.get(&row).cloned().unwrap_or_default();
        let not_compiled = Passed::ALL
            .iter()
            .filter(|row| row.0 != Passed::AllCompiled);
        let mut doc = all.json();
        doc["expanded"] = expanded.json();
        doc["sets"] = sets
            .iter()
            .map(|(s, t)| (s.to_string(), t.json()))
            .collect();
        doc["by_operator"] = serde_json::json!(operators);
        doc["skips"] = serde_json::json!(skips);
        doc["failures"] = serde_json::json!(failures);
        doc["passed_otherwise"] = not_compiled
            .map(|&(row, name)| (name.to_string(), serde_json::json!(by_how(row))))
            .collect();
        outln!("{doc}");
        return;
    }
    failures.iter().for_each(|row| outln!("{row}"));
    for (why, names) in &skips {
        outln!("skipped {:>4}  {why}: {}", names.len(), names.join(", "));
    }
    for (set, rows) in &operators {
        for (op, [p, f, s]) in rows {
            let set = if set.is_empty() { "-" } else { set };
            outln!("{set:<18} {op:<28} {p:>4} passed {f:>4} failed {s:>4} skipped");
        }
    }
    let named = sets
        .iter()
        .map(|(&s, t)| (s, t))
        .filter(|(s, _)| !s.is_empty());
    for (set, t) in named.chain([("_expanded cases", &expanded), ("all", &all)]) {
        outln!("{}", line(set, t));
    }
    outln!("{passed} passed, {failed} failed, {skipped} skipped");
}

/// One tally for people.
fn line(name: &str, t: &Tally) -> String {
    let [p, f, s] = t.counts;
    let mut text = format!("{name:<18} {p:>5} passed {f:>4} failed {s:>4} skipped; of the passed");
    for (row, what) in Passed::ALL {
        if t.how(row) > 0 {
            text += &format!(" {} {}", t.how(row), what.replace('_', " "));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use kiln::ir::parse::{NoFiles, parse_module};

    /// The row of a function in the text form.
    fn how(text: &str, frozen: bool) -> Passed {
        let module = parse_module(&format!("kir 1\n{text}"), &NoFiles)
            .unwrap_or_else(|e| panic!("{}", e.message));
        let imported = module.functions[0].clone();
        let compiled = compile::plan(module, &compile::Options::default());
        let compiled = compiled.unwrap_or_else(|e| panic!("{e}"));
        Passed::of(&imported, &compiled.lowered.program.entries[0], frozen)
    }

    #[test]
    fn how_a_case_passed() {
        let double = "func @f(%x: f32[4]) -> (y: f32[4]) {\n  %0 = add %x, %x\n  return %0\n}";
        assert_eq!(how(double, false), Passed::AllCompiled);
        assert_eq!(how(double, true), Passed::Frozen);
        let moved = "func @f(%x: f32[4]) -> (y: f32[2, 2]) {\n  %0 = reshape %x {shape = [2, 2]}\n  return %0\n}";
        assert_eq!(how(moved, false), Passed::AllCompiled);
        let constant =
            "func @f() -> (y: f32[2]) {\n  %0 = constant {value = f32[2] (1, 2)}\n  return %0\n}";
        assert_eq!(how(constant, false), Passed::NoInputs);
        let folded = "func @f(%x: f32[2]) -> (y: f32[2], z: f32[2]) {\n  %0 = constant {value = f32[2] (1, 2)}\n  %1 = add %0, %0\n  %2 = add %x, %x\n  return %1, %2\n}";
        assert_eq!(how(folded, false), Passed::Folded);
        let nonzero = "func @f(%x: bool[4]) -> (y: i64[1, n]) {\n  %0 = nonzero %x {symbol = \"n\"}\n  return %0\n}";
        assert_eq!(how(nonzero, false), Passed::OnHost);
        let nothing =
            "func @f(%x: f32[4]) -> (y: f32[4]) {\n  %0 = neg %x\n  %1 = neg %0\n  return %1\n}";
        assert_eq!(how(nothing, false), Passed::NoKernel);
    }

    #[test]
    fn reasons_without_nodes() {
        let text =
            "error: K0503: @f: `eq [z]` (from z): K0501: kernels do not compute on str\nmore";
        assert_eq!(reason(text), "K0501: kernels do not compute on str");
        assert_eq!(reason("error[K0110]: no Foo"), "K0110: no Foo");
        assert_eq!(reason("no test_data_set"), "no test_data_set");
    }
}
