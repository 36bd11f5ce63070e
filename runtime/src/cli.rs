//! The commands that need an artifact and no compiler: `run`, `bench`, `plan`, `tune`.
//! `kiln-rt` is these alone; `kiln` takes them over for artifacts.

use crate::bench::{self, Loaded};
use crate::device::Name;
use crate::error::{Error, Result};
use crate::npy::{self, Array};
use crate::roofline::FmaLoop;
use crate::tune;
use crate::{Artifact, Input, Model, Session, StringsRef, TensorRef, Threads};
use kiln_ir::Binding;
use lexopt::prelude::*;
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

const USAGE: &str = "kiln-rt: run compiled Kiln artifacts

usage:
  kiln-rt run ARTIFACT [--input NAME=FILE.npy]... [--inputs FILE.npz] [--output-dir DIR]
                       [--device cpu|cuda|cuda:N] [--target sm_NN] [--no-graphs]
                       [--entry NAME] [--threads N] [--pin none|auto|LIST] [--json]
  kiln-rt bench ARTIFACT [--dim NAME=N]... [--input NAME=FILE.npy]... [--inputs FILE.npz]
                       [--device cpu|cuda|cuda:N] [--target sm_NN] [--no-graphs]
                       [--entry NAME] [--threads N] [--pin none|auto|LIST] [--json]
                       [--runs N] [--grow NAME] [--profile TRACE.json]
                       | --scaling | --sessions N
  kiln-rt plan ARTIFACT [--dim NAME=N]... [--entry NAME] [--threads N] [--json]
                       [--device cpu|cuda|cuda:N] [--target sm_NN]
  kiln-rt tune ARTIFACT -o OUT.kiln --device cuda|cuda:N [--dim NAME=N]... [--seconds N]
                       [--input NAME=FILE.npy]... [--inputs FILE.npz] [--target sm_NN]
                       [--entry NAME] [--threads N] [--pin none|auto|LIST] [--json]
  kiln-rt --version

--device    where kernels run; cpu if not given
--target    which of the artifact's GPU targets; the best that the device runs if not given
--no-graphs start every kernel by itself, also in runs of the same kernels
--threads   as many as the process may use, if not given
--pin       keep threads on processors: auto, or a list such as 0,2-3
--grow      bench: a size that is one more in each run than in the last one
--scaling   bench: one thread against all, beside arithmetic in registers
--sessions  bench: that many sessions at once, against one after the other
--seconds   tune: how long the forms of kernels are measured at most; 30 if not given

exit status: 0 done, 1 failed while running, 2 the artifact or input is at fault, 64 usage";

/// What the command line asks.
#[derive(Default)]
pub struct Request {
    /// `run`, `bench`, `plan` or `tune`.
    pub command: String,
    /// The artifact.
    pub artifact: PathBuf,
    /// `--input`.
    pub inputs: Vec<(String, PathBuf)>,
    /// `--inputs`.
    pub archive: Option<PathBuf>,
    /// `--output-dir`.
    pub output_dir: Option<PathBuf>,
    /// `--entry`.
    pub entry: Option<String>,
    /// `--dim`.
    pub dims: Vec<(String, i64)>,
    /// `--threads` and `--pin`.
    pub threads: Threads,
    /// `--device`.
    pub device: Name,
    /// `--target`, for a device.
    pub target: Option<String>,
    /// `--no-graphs`.
    pub no_graphs: bool,
    /// `--runs`; 0: chosen by time.
    pub runs: usize,
    /// `--json`.
    pub json: bool,
    /// `--scaling`.
    pub scaling: bool,
    /// `--sessions`; 0: not asked for.
    pub sessions: usize,
    /// `--grow`: the size that grows from run to run of `bench`.
    pub grow: Option<String>,
    /// `--profile`: where `bench` writes a trace of one run.
    pub profile: Option<PathBuf>,
    /// `--output`, of `tune`: where the tuned artifact goes.
    pub output: Option<PathBuf>,
    /// `--seconds`, of `tune`; 0: [`tune::SECONDS`].
    pub seconds: f64,
    /// Milliseconds spent compiling before, for `bench` of a model.
    pub compile_ms: f64,
    /// The loop that `bench` measures the machine's arithmetic with; none: the
    /// runtime's own.
    pub fma: Option<FmaLoop>,
}

impl Request {
    /// A session as the request wants it.
    pub(crate) fn session(&self, model: Arc<Model>) -> Result<Session> {
        self.session_of(model, self.threads.clone())
    }

    /// The same with other threads.
    pub(crate) fn session_of(&self, model: Arc<Model>, threads: Threads) -> Result<Session> {
        let mut session = Session::on(model, threads, self.device, self.target.as_deref())?;
        session.set_graphs(!self.no_graphs);
        Ok(session)
    }
}

enum Stop {
    Usage(String),
    Text(String),
}

/// Parses and runs a command line; prints the result and the error.
pub fn main(args: Vec<OsString>) -> ExitCode {
    match parse(args) {
        Err(Stop::Text(text)) => answer(&text),
        Err(Stop::Usage(message)) => {
            eprintln!("{message}\n\n{USAGE}");
            ExitCode::from(64)
        }
        Ok(request) => match run(&request) {
            Ok(text) => answer(&text),
            Err(e) => {
                eprintln!("error: {e}");
                ExitCode::from(e.exit_code())
            }
        },
    }
}

/// Prints an answer; a reader that has closed the pipe has what it wanted.
fn answer(text: &str) -> ExitCode {
    use std::io::Write;
    match writeln!(std::io::stdout(), "{text}") {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("error: K0731: cannot write the answer: {e}");
            ExitCode::FAILURE
        }
    }
}

fn parse(args: Vec<OsString>) -> std::result::Result<Request, Stop> {
    let mut r = Request::default();
    let mut parser = lexopt::Parser::from_args(args);
    let usage = |e: lexopt::Error| Stop::Usage(e.to_string());
    let text = |v: OsString| {
        v.into_string()
            .map_err(|_| Stop::Usage("an argument is not UTF-8".into()))
    };
    let pair = |v: String| match v.split_once('=') {
        Some((a, b)) => Ok((a.to_string(), b.to_string())),
        None => Err(Stop::Usage(format!("`{v}` is not NAME=VALUE"))),
    };
    let number = |v: String| {
        v.parse::<i64>()
            .map_err(|_| Stop::Usage(format!("`{v}` is not a number")))
    };
    let mut positional = vec![];
    while let Some(arg) = parser.next().map_err(usage)? {
        match arg {
            Long("input") => {
                let (name, file) = pair(text(parser.value().map_err(usage)?)?)?;
                r.inputs.push((name, file.into()));
            }
            Long("inputs") => r.archive = Some(parser.value().map_err(usage)?.into()),
            Long("output-dir") => r.output_dir = Some(parser.value().map_err(usage)?.into()),
            Long("entry") => r.entry = Some(text(parser.value().map_err(usage)?)?),
            Long("dim") => {
                let (name, n) = pair(text(parser.value().map_err(usage)?)?)?;
                r.dims.push((name, number(n)?));
            }
            Long("threads") => {
                r.threads.count =
                    number(text(parser.value().map_err(usage)?)?)?.clamp(0, 1024) as usize
            }
            Long("pin") => {
                let pin = text(parser.value().map_err(usage)?)?.parse();
                r.threads.pin = pin.map_err(|e| Stop::Usage(format!("`--pin`: {e}")))?
            }
            Long("device") => {
                let name = text(parser.value().map_err(usage)?)?.parse();
                r.device = name.map_err(Stop::Usage)?
            }
            Long("target") => r.target = Some(text(parser.value().map_err(usage)?)?),
            Long("no-graphs") => r.no_graphs = true,
            Long("grow") => r.grow = Some(text(parser.value().map_err(usage)?)?),
            Long("scaling") => r.scaling = true,
            Long("sessions") => {
                let n = number(text(parser.value().map_err(usage)?)?)?;
                r.sessions = n.clamp(1, 1024) as usize
            }
            Long("runs") => r.runs = number(text(parser.value().map_err(usage)?)?)?.max(0) as usize,
            Long("output") | Short('o') => r.output = Some(parser.value().map_err(usage)?.into()),
            Long("seconds") => {
                let text = text(parser.value().map_err(usage)?)?;
                r.seconds = tune::seconds(&text).map_err(Stop::Usage)?
            }
            Long("profile") => r.profile = Some(parser.value().map_err(usage)?.into()),
            Long("json") => r.json = true,
            Long("help") | Short('h') => return Err(Stop::Text(USAGE.into())),
            Long("version") | Short('V') => {
                return Err(Stop::Text(format!("kiln-rt {}", env!("CARGO_PKG_VERSION"))));
            }
            Value(v) => positional.push(v),
            other => return Err(usage(other.unexpected())),
        }
    }
    let mut positional = positional.into_iter();
    r.command = match positional.next() {
        Some(c) => text(c)?,
        None => return Err(Stop::Usage("a command is missing".into())),
    };
    if !["run", "bench", "plan", "tune"].contains(&&r.command[..]) {
        return Err(Stop::Usage(format!("there is no command `{}`", r.command)));
    }
    let of_bench = [r.profile.is_some(), r.scaling, r.sessions > 0];
    if of_bench.contains(&true) && r.command != "bench" {
        let message = "`--profile`, `--scaling` and `--sessions` are for `bench`";
        return Err(Stop::Usage(message.into()));
    }
    if of_bench.iter().filter(|&&asked| asked).count() > 1 {
        let message = "`--profile`, `--scaling` and `--sessions` exclude each other";
        return Err(Stop::Usage(message.into()));
    }
    if r.grow.is_some() && (r.command != "bench" || r.scaling || r.sessions > 0) {
        let message = "`--grow` is for `bench`, without `--scaling` and `--sessions`";
        return Err(Stop::Usage(message.into()));
    }
    if r.command == "tune" && (r.output.is_none() || r.device == Name::Cpu) {
        let message = "`tune` takes -o OUT.kiln and --device cuda";
        return Err(Stop::Usage(message.into()));
    }
    if r.command != "tune" && (r.output.is_some() || r.seconds > 0.0) {
        let message = "`-o` and `--seconds` are for `tune`";
        return Err(Stop::Usage(message.into()));
    }
    if r.device == Name::Cpu && (r.target.is_some() || r.no_graphs) {
        return Err(Stop::Usage(
            "`--target` and `--no-graphs` are for a `--device`".into(),
        ));
    }
    match (positional.next(), positional.next()) {
        (Some(a), None) => r.artifact = a.into(),
        _ => return Err(Stop::Usage(format!("`{}` takes one artifact", r.command))),
    }
    Ok(r)
}

/// Runs a request; the text for stdout.
pub fn run(r: &Request) -> Result<String> {
    if let ("tune", Some(out)) = (&r.command[..], &r.output) {
        let report = tune::tune(r, &Artifact::open(&r.artifact)?, out)?;
        return match r.json {
            true => serde_json::to_string(&report).map_err(|e| Error::run("K0707", e.to_string())),
            false => Ok(report.text()),
        };
    }
    let before = status_bytes("VmRSS:");
    let start = Instant::now();
    let model = Model::load_for(&r.artifact, r.device)?;
    let load_ms = start.elapsed().as_secs_f64() * 1e3;
    let entry = model.entry(r.entry.as_deref())?;
    match &r.command[..] {
        "plan" => plan(r, &model, entry, r.threads.places()?.0),
        "bench" => {
            let loaded = Loaded {
                ms: load_ms,
                before,
            };
            bench::bench(r, model, entry, &loaded)
        }
        _ => run_once(r, model, entry, load_ms),
    }
}

pub(crate) fn gather(r: &Request) -> Result<Vec<(String, Array)>> {
    let mut given = match &r.archive {
        Some(path) => npy::read_npz(path)?,
        None => vec![],
    };
    for (name, path) in &r.inputs {
        let array = npy::read(path)?;
        given.retain(|(n, _)| n != name);
        given.push((name.clone(), array));
    }
    Ok(given)
}

pub(crate) fn refs(arrays: &[(String, Array)]) -> Vec<(&str, Input<'_>)> {
    arrays.iter().map(|(n, a)| (&n[..], a.input())).collect()
}

fn run_once(r: &Request, model: Arc<Model>, entry: usize, load_ms: f64) -> Result<String> {
    let arrays = gather(r)?;
    let mut session = r.session(model.clone())?;
    let threads = session.threads();
    let _pinned = session.pin_caller()?;
    let start = Instant::now();
    session.run_with(entry, &refs(&arrays))?;
    let run_ms = start.elapsed().as_secs_f64() * 1e3;
    if let Some(dir) = &r.output_dir {
        std::fs::create_dir_all(dir)
            .map_err(|e| Error::run("K0731", format!("cannot create {}: {e}", dir.display())))?;
    }
    let mut outputs = vec![];
    let mut lines = vec![];
    for (i, port) in model.program().entries[entry].outputs.iter().enumerate() {
        let path =
            (r.output_dir.as_ref()).map(|dir| dir.join(format!("{}.npy", file_name(&port.name))));
        let (shape, shown) = if let Some(t) = session.output(i) {
            if let Some(path) = &path {
                npy::write(path, t.dtype, t.shape, t.bytes)?;
            }
            (t.shape, summary(&t))
        } else if let Some(t) = session.strings(i) {
            if let Some(path) = &path {
                npy::write_strings(path, t.shape, t.strings)?;
            }
            (t.shape, summary_of_strings(&t))
        } else {
            continue;
        };
        let file = path.map(|p| p.display().to_string());
        lines.push(format!("{}: {}{shape:?} {shown}", port.name, port.dtype));
        outputs.push(serde_json::json!({ "name": port.name, "dtype": port.dtype.name(), "shape": shape, "file": file }));
    }
    if r.json {
        let doc = serde_json::json!({ "outputs": outputs, "load_ms": load_ms, "run_ms": run_ms, "threads": threads, "level": session.runs(), "device": r.device.to_string(), "device_bytes": session.device_bytes() });
        return Ok(doc.to_string());
    }
    lines.push(format!(
        "loaded in {load_ms:.1} ms, ran in {run_ms:.2} ms ({} threads, {})",
        threads,
        session.runs()
    ));
    Ok(lines.join("\n"))
}

/// An output's name as a file's: `/` and the like become `_`.
pub fn file_name(name: &str) -> String {
    name.chars()
        .map(|c| {
            if c.is_alphanumeric() || "._-:".contains(c) {
                c
            } else {
                '_'
            }
        })
        .collect()
}

fn summary(t: &TensorRef) -> String {
    let n: usize = t.shape.iter().product();
    let value = |i| kiln_ir::tensor::read_f64(t.dtype, t.bytes, i);
    let shown: Vec<String> = (0..n.min(4)).map(|i| format!("{:.5}", value(i))).collect();
    let nan = (0..n).filter(|&i| value(i).is_nan()).count();
    let note = if nan > 0 {
        format!(", {nan} NaN")
    } else {
        String::new()
    };
    format!(
        "[{}{}]{note}",
        shown.join(", "),
        if n > 4 { ", …" } else { "" }
    )
}

/// The first strings, each cut where it is long.
fn summary_of_strings(t: &StringsRef) -> String {
    let short = |s: &String| match s.char_indices().nth(40) {
        Some((at, _)) => format!("{:?}…", &s[..at]),
        None => format!("{s:?}"),
    };
    let shown: Vec<String> = t.strings.iter().take(4).map(short).collect();
    let more = if t.strings.len() > 4 { ", …" } else { "" };
    format!("[{}{more}]", shown.join(", "))
}

fn plan(r: &Request, model: &Model, entry: usize, threads: usize) -> Result<String> {
    let e = &model.program().entries[entry];
    let binding: Binding = r
        .dims
        .iter()
        .map(|(n, v)| (n.as_str().into(), *v))
        .collect();
    for p in &e.inputs {
        for d in &p.dims {
            d.eval(&binding).map_err(|err| {
                Error::input("K0732", format!("input `{}`: {err}", p.name))
                    .help("give every size with --dim NAME=N")
            })?;
        }
    }
    let gpu = match r.device {
        Name::Cpu => None,
        Name::Cuda(_) | Name::Sim => Some(model.gpu_code(r.target.as_deref())?),
    };
    let m = model.predict_memory(entry, &binding, threads, gpu)?;
    if r.json {
        return serde_json::to_string(&m).map_err(|e| Error::run("K0707", e.to_string()));
    }
    let mb = |n: usize| n as f64 / 1e6;
    let device = m.device.map_or(String::new(), |d| {
        format!(
            "\n  on the device\n  arena    {:10.3} MB\n  inputs   {:10.3} MB\n  outputs  {:10.3} MB\n  globals  {:10.3} MB\n  scratch  {:10.3} MB\n  total    {:10.3} MB",
            mb(d.arena),
            mb(d.inputs),
            mb(d.outputs),
            mb(d.globals),
            mb(d.scratch),
            mb(d.total)
        )
    });
    Ok(format!(
        "@{} with {} threads\n  arena    {:10.3} MB\n  inputs   {:10.3} MB\n  outputs  {:10.3} MB\n  state    {:10.3} MB\n  code     {:10.3} MB\n  scratch  {:10.3} MB\n  artifact {:10.3} MB (weights {:.3} MB)\n  total    {:10.3} MB{device}",
        e.name,
        threads,
        mb(m.arena),
        mb(m.inputs),
        mb(m.outputs),
        mb(m.state),
        mb(m.code),
        mb(m.scratch),
        mb(m.file),
        mb(m.weights),
        mb(m.total)
    ))
}

/// The process's peak resident memory in bytes (0 where the system does not say).
pub fn peak_bytes() -> u64 {
    status_bytes("VmHWM:")
}

/// One of the process's memory figures by its name in /proc, in bytes.
fn status_bytes(name: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix(name));
    line.and_then(|l| l.trim().trim_end_matches(" kB").trim().parse::<u64>().ok())
        .map_or(0, |kb| kb * 1024)
}
