//! `kiln reduce`: from a model that compiles to wrong code, or does not compile, to
//! a `.kir` file of a few lines that shows the same.
//!
//! Every candidate runs in a process of its own: what crashes or hangs ends that
//! process, and is a finding like any other.

use crate::args::CompileArgs;
use crate::model::{self, Failure, Temporary};
use crate::output::{self, outln};
use crate::verify::Machine;
use kiln::compile;
use kiln::ir::filetest::same_results;
use kiln::ir::{Module, PortKind, Tensor, files, print::PrintOptions, shrink};
use kiln::runtime::device::Name;
use std::cell::{Cell, RefCell};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// What to reduce, and for what.
pub struct Request {
    pub model: PathBuf,
    pub output: PathBuf,
    pub options: CompileArgs,
    pub rtol: f64,
    pub command: Option<String>,
    pub timeout: u64,
}

/// What a candidate shows.
const SAME: &str = "same";
const DIFFERS: &str = "differs";

/// Runs `kiln reduce`.
pub fn run(r: &Request) -> Result<u8, Failure> {
    let module = model::import(&r.model, &r.options, true)?;
    let folder = std::env::temp_dir().join(format!("kiln-reduce-{}", std::process::id()));
    std::fs::create_dir_all(&folder)
        .map_err(|e| Failure::run(format!("K0706: cannot make {}: {e}", folder.display())))?;
    let files = [folder.join("candidate.kir"), folder.join("candidate.bin")];
    let _temporary = files.clone().map(Temporary);
    let wanted = shows(r, &module, &files[0])?;
    if wanted == SAME {
        let _ = std::fs::remove_dir(&folder);
        return Err(Failure::input(
            "K0811: there is nothing to reduce: the model compiles, and gives what the interpreter gives",
        ));
    }
    eprintln!("reducing what shows `{wanted}`");
    let (tried, failed) = (Cell::new(0), RefCell::new(None));
    let small = shrink::shrink(&module, &mut |m| {
        tried.set(tried.get() + 1);
        let nodes: usize = m.functions.iter().map(|f| f.nodes_in_order().len()).sum();
        output::progress(
            &format!("{nodes} nodes, candidate"),
            tried.get(),
            tried.get(),
        );
        match shows(r, m, &files[0]) {
            Ok(shown) => shown == wanted,
            Err(e) => {
                failed.borrow_mut().get_or_insert(e);
                false
            }
        }
    });
    let _ = std::fs::remove_dir_all(&folder);
    if let Some(e) = failed.into_inner() {
        return Err(e);
    }
    let text = |e| Failure::run(format!("K0706: cannot write {}: {e}", r.output.display()));
    files::save(&small, &r.output, &PrintOptions::default()).map_err(text)?;
    // A filetest from the start: what is fixed stays fixed.
    let body = std::fs::read_to_string(&r.output).map_err(text)?;
    let head = format!("// test: run=cpu tol={:e}\n// Shows `{wanted}`.\n", r.rtol);
    std::fs::write(&r.output, head + &body).map_err(text)?;
    let count =
        |m: &Module| -> usize { m.functions.iter().map(|f| f.nodes_in_order().len()).sum() };
    outln!(
        "{}: {} nodes of {}, shows `{wanted}`, {} candidates tried",
        r.output.display(),
        count(&small),
        count(&module),
        tried.get()
    );
    Ok(0)
}

/// What a module shows, found out in another process.
fn shows(r: &Request, module: &Module, file: &Path) -> Result<String, Failure> {
    let fail = |e: std::io::Error| Failure::run(format!("K0706: {}: {e}", file.display()));
    files::save(module, file, &PrintOptions::default()).map_err(fail)?;
    let mut command = match &r.command {
        Some(text) => {
            let mut c = Command::new("sh");
            c.arg("-c").arg(format!("{text} \"$0\"")).arg(file);
            c
        }
        None => {
            let mut c = Command::new(std::env::current_exe().map_err(fail)?);
            c.arg("__reduce-check")
                .arg(file)
                .arg(format!("--rtol={:e}", r.rtol));
            c.args(r.options.target.iter().map(|t| format!("--target={t}")));
            if r.options.deterministic {
                c.arg("--deterministic");
            }
            c
        }
    };
    let streams = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    let mut child = streams.spawn().map_err(fail)?;
    let start = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().map_err(fail)? {
            break status;
        }
        if start.elapsed() > Duration::from_secs(r.timeout) {
            child.kill().map_err(fail)?;
            child.wait().map_err(fail)?;
            return Ok("hangs".into());
        }
        std::thread::sleep(Duration::from_millis(2));
    };
    Ok(match status.code() {
        Some(0) => SAME.into(),
        // Another tool's exit status says nothing to us but "wrong".
        Some(_) if r.command.is_some() => DIFFERS.into(),
        Some(CODE_DIFFERS) => DIFFERS.into(),
        // It says why in a word.
        Some(CODE_REFUSED) => {
            let mut why = String::new();
            let out = child.stdout.as_mut().map(|o| o.read_to_string(&mut why));
            out.transpose().map_err(fail)?;
            format!("does not compile: {}", why.trim())
        }
        Some(code) => format!("exits with {code}"),
        None => format!("{status}"),
    })
}

const CODE_DIFFERS: i32 = 10;
const CODE_REFUSED: i32 = 11;

/// One candidate: compiled and run against the interpreter, as the exit status.
pub fn check(file: &Path, args: &CompileArgs, rtol: f64) -> Result<u8, Failure> {
    let module = model::read_kir(file)?;
    let options = model::options(args)?;
    for target in options.targets.clone() {
        if !target.runs_here() {
            continue;
        }
        let options = compile::Options {
            targets: vec![target],
            workers: compile::objects::Workers {
                executable: None,
                ..options.workers.clone()
            },
            verify: true,
            ..options.clone()
        };
        let machine = match Machine::compile(module.clone(), &options, Name::Cpu) {
            Ok(machine) => machine,
            Err(e) => {
                let text = e.render();
                outln!(
                    "{}",
                    text.trim_start_matches("error: ")
                        .split(':')
                        .next()
                        .unwrap_or("")
                );
                return Ok(CODE_REFUSED as u8);
            }
        };
        let run = |function: &str, inputs: &[Tensor]| {
            let graph = module.function(function).ok_or("no such function")?;
            let ports = graph.params.iter().filter(|p| p.kind == PortKind::Caller);
            let named: Vec<(String, Tensor)> = ports
                .map(|p| p.name.to_string())
                .zip(inputs.iter().cloned())
                .collect();
            let results = machine.run(function, &named, 1).map_err(|e| e.render())?;
            Ok(results.into_iter().map(|r| r.1).collect())
        };
        if same_results(&module, rtol, &run).is_err() {
            return Ok(CODE_DIFFERS as u8);
        }
    }
    Ok(0)
}
