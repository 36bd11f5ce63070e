//! Models and artifacts as the command line names them, and its errors.

use crate::args::CompileArgs;
use kiln::compile::{self, CompileError, objects::Workers};
use kiln::import::{Diagnostic, ImportOptions, Interface, Keep, import_onnx};
use kiln::ir::{Dim, Graph, Module, PortKind, Value};
use kiln::passes::Precision;
use kiln::runtime::device::Name;
use kiln_codegen::{CpuTarget, GpuTarget};
use std::path::{Path, PathBuf};

/// Why a command failed: the text for people, and the exit status.
pub struct Failure {
    text: String,
    pub exit: u8,
    /// The file at fault and the place in it, where it is text.
    source: Option<Source>,
}

struct Source {
    name: String,
    text: String,
    line: usize,
    column: usize,
}

impl Failure {
    /// The input is at fault.
    pub fn input(text: impl Into<String>) -> Failure {
        Failure {
            text: text.into(),
            exit: 2,
            source: None,
        }
    }

    /// It failed while running.
    pub fn run(text: impl Into<String>) -> Failure {
        Failure {
            text: text.into(),
            exit: 1,
            source: None,
        }
    }

    /// The command line is at fault.
    pub fn usage(text: impl Into<String>) -> Failure {
        Failure {
            text: text.into(),
            exit: 64,
            source: None,
        }
    }

    /// With the file whose contents led to it.
    pub fn while_reading(mut self, path: &Path) -> Failure {
        self.text = format!("{}\n  with {}", self.text, path.display());
        self
    }

    /// With the place in a text file that it is about; lines and columns from 1.
    fn at(mut self, name: &str, text: &str, line: usize, column: usize) -> Failure {
        self.source = Some(Source {
            name: name.to_string(),
            text: text.to_string(),
            line,
            column,
        });
        self
    }

    /// The whole message, as it goes to a file or a pipe.
    pub fn render(&self) -> String {
        let mut out = format!("error: {}", self.text);
        if let Some(s) = &self.source {
            let line = s.text.lines().nth(s.line - 1).unwrap_or("");
            let number = s.line.to_string();
            let (margin, before) = (" ".repeat(number.len()), " ".repeat(s.column - 1));
            out += &format!("\n {number} | {line}\n {margin} | {before}^");
        }
        out
    }

    /// The whole message for a terminal.
    pub fn report(self) -> miette::Report {
        let (head, mut help) = (self.text.lines(), vec![]);
        let mut message: Vec<&str> = vec![];
        for line in head {
            match line.trim_start().strip_prefix("help: ") {
                Some(text) => help.push(text),
                None => message.push(line),
            }
        }
        let mut message = message.join("\n");
        let mut code = None;
        // "error[K0110]: …" and "K0110: …": the code has a place of its own.
        if let Some(rest) = message.strip_prefix("error[") {
            message = rest.replacen("]: ", ": ", 1);
        }
        if let Some((first, rest)) = message.split_once(": ")
            && first.len() == 5
            && first.starts_with('K')
        {
            (code, message) = (Some(first.to_string()), rest.to_string());
        }
        let mut d = miette::MietteDiagnostic::new(message);
        if let Some(code) = code {
            d = d.with_code(code);
        }
        if !help.is_empty() {
            d = d.with_help(help.join("\n"));
        }
        match self.source {
            None => miette::Report::new(d),
            Some(s) => {
                let start: usize = s
                    .text
                    .split_inclusive('\n')
                    .take(s.line - 1)
                    .map(str::len)
                    .sum();
                let line = s.text.lines().nth(s.line - 1).unwrap_or("");
                let inside: usize = line.chars().take(s.column - 1).map(char::len_utf8).sum();
                let word = line[inside..].find(char::is_whitespace);
                let length = word.unwrap_or(line.len() - inside).max(1);
                let label =
                    miette::LabeledSpan::at(start + inside..start + inside + length, "here");
                let source = miette::NamedSource::new(s.name, s.text);
                miette::Report::new(d.with_label(label)).with_source_code(source)
            }
        }
    }

    /// The message as one JSON document.
    pub fn json(&self) -> String {
        let code = self.text.split(|c: char| !c.is_ascii_alphanumeric());
        let code = code
            .into_iter()
            .find(|w| w.len() == 5 && w.starts_with('K'));
        serde_json::json!({ "error": { "code": code, "message": self.text } }).to_string()
    }
}

impl From<kiln::runtime::Error> for Failure {
    fn from(e: kiln::runtime::Error) -> Failure {
        Failure {
            exit: e.exit_code(),
            text: e.to_string(),
            source: None,
        }
    }
}

impl From<CompileError> for Failure {
    fn from(e: CompileError) -> Failure {
        let exit = match &e {
            CompileError::Lower(_) | CompileError::Gpu(_) | CompileError::Constant(_) => 2,
            CompileError::Pass(_) | CompileError::Codegen(_) => 1,
            CompileError::Write(e) => e.exit_code(),
        };
        Failure {
            text: e.to_string(),
            exit,
            source: None,
        }
    }
}

impl From<Vec<Diagnostic>> for Failure {
    fn from(all: Vec<Diagnostic>) -> Failure {
        let shown: Vec<String> = all.iter().take(20).map(|d| d.to_string()).collect();
        let more = if all.len() > 20 {
            format!("\nand {} more: kiln check lists them all", all.len() - 20)
        } else {
            String::new()
        };
        Failure::input(shown.join("\n") + &more)
    }
}

/// Whether a file is an artifact, by its first bytes.
pub fn is_artifact(path: &Path) -> bool {
    use std::io::Read;
    let mut magic = [0; 8];
    let read = std::fs::File::open(path).and_then(|mut f| f.read_exact(&mut magic));
    read.is_ok() && &magic == b"KILNART\0"
}

/// `NAME=N` pairs.
pub fn dims(list: &[String]) -> Result<Vec<(String, i64)>, Failure> {
    list.iter()
        .map(|text| {
            let (name, n) = text
                .split_once('=')
                .ok_or_else(|| Failure::usage(format!("`--dim {text}` is not NAME=N")))?;
            let n = n
                .parse()
                .map_err(|_| Failure::usage(format!("`{n}` is not a number")))?;
            Ok((name.to_string(), n))
        })
        .collect()
}

/// Imports a model; prints its warnings.
pub fn import(path: &Path, args: &CompileArgs, fix_dims: bool) -> Result<Module, Failure> {
    import_keeping(path, args, fix_dims, Keep::Nothing)
}

/// The same, with values inside as outputs too. The text form keeps all or none.
pub fn import_keeping(
    path: &Path,
    args: &CompileArgs,
    fix_dims: bool,
    keep: Keep,
) -> Result<Module, Failure> {
    if !path.exists() {
        return Err(Failure::input(format!(
            "K0700: cannot open {}: there is no such file",
            path.display()
        )));
    }
    if path.extension().is_some_and(|e| e == "kir") {
        let mut module = read_kir(path)?;
        if let Keep::All = keep {
            module.functions.iter_mut().for_each(keep_all);
        }
        return Ok(module);
    }
    let known = path.extension().is_some_and(|e| e == "onnx");
    if path.is_dir() || !known {
        let what = if path.is_dir() {
            "a folder"
        } else {
            "neither an .onnx file nor an artifact"
        };
        return Err(Failure::input(format!(
            "K0101: {} is {what}; Hugging Face folders and GGUF files are not imported yet",
            path.display()
        )));
    }
    let mut options = ImportOptions {
        dims: dims(&args.dim)?.into_iter().collect(),
        keep,
        ..Default::default()
    };
    if !fix_dims && !options.dims.is_empty() {
        // How many elements a sequence has decides the ports: it is always told.
        let interface = Interface::of(path);
        options.dims.retain(|name, _| interface.is_structure(name));
    }
    for text in &args.shape {
        let wrong = || Failure::usage(format!("`--shape {text}` is not NAME=D,D…"));
        let (name, list) = text.split_once('=').ok_or_else(wrong)?;
        let list = list.split(',').map(str::trim).filter(|d| !d.is_empty());
        let shape = list.map(str::parse).collect::<Result<Vec<Dim>, _>>();
        options
            .inputs
            .insert(name.to_string(), shape.map_err(|_| wrong())?);
    }
    for text in &args.freeze {
        let (name, file) = text
            .split_once('=')
            .ok_or_else(|| Failure::usage(format!("`--freeze {text}` is not NAME=FILE.npy")))?;
        let array = kiln::runtime::npy::read(Path::new(file))?;
        options.frozen.insert(name.to_string(), array.tensor(file)?);
    }
    let imported = import_onnx(path, &options)?;
    for w in &imported.warnings {
        eprintln!("{w}");
    }
    Ok(imported.module)
}

/// Makes outputs of every value that a node of the body defines.
fn keep_all(f: &mut Graph) {
    let values: Vec<Value> = f
        .body()
        .nodes
        .iter()
        .flat_map(|&n| f.node(n).results.clone())
        .collect();
    for v in values {
        let own = f.body().results.contains(&v);
        if own {
            continue;
        }
        let name = f.value(v).name.clone();
        let name = name.map_or_else(|| format!("%{}", v.index()), |n| n.to_string());
        f.add_result(name, PortKind::Caller, v);
    }
}

/// Reads the text form; big constants lie beside it.
pub fn read_kir(path: &Path) -> Result<Module, Failure> {
    let name = path.display();
    let text = std::fs::read_to_string(path)
        .map_err(|e| Failure::input(format!("K0700: cannot open {name}: {e}")))?;
    let folder = path.parent().unwrap_or(Path::new(".")).to_path_buf();
    let module =
        kiln::ir::parse::parse_module(&text, &kiln::ir::files::Folder(folder)).map_err(|e| {
            let place = format!("K0201: {name}:{}:{}: {}", e.line, e.column, e.message);
            Failure::input(place).at(&name.to_string(), &text, e.line.max(1), e.column.max(1))
        })?;
    let errors = kiln::ir::verify::verify_module(&module);
    match errors.first() {
        None => Ok(module),
        Some(first) => Err(Failure::input(format!(
            "K0202: {name}: {first} ({} in all)",
            errors.len()
        ))),
    }
}

/// The precision of a name.
pub fn precision(name: Option<&str>) -> Result<Precision, Failure> {
    let name = name.unwrap_or("f32");
    Precision::from_name(name).ok_or_else(|| {
        Failure::usage(format!(
            "there is no precision `{name}`: f32, tf32, bf16 and f16 are"
        ))
    })
}

/// The compiler's options from the command line's.
pub fn options(args: &CompileArgs) -> Result<compile::Options, Failure> {
    let names: Vec<&str> = match args.target.is_empty() {
        true => vec!["cpu"],
        false => args.target.iter().map(String::as_str).collect(),
    };
    let (mut targets, mut gpu) = (vec![], vec![]);
    for name in names {
        match (CpuTarget::by_name(name), GpuTarget::named(name)) {
            (Some(cpu), _) => targets.push(cpu),
            (None, Some(g)) => gpu.push(g),
            (None, None) => {
                return Err(Failure::usage(format!(
                    "there is no target `{name}`: x86-64-v3, x86-64-v4, each also with -vnni, x86-64-v4-bf16, cpu, sm_80, sm_89 and sm_90a are"
                )));
            }
        }
    }
    let passes = kiln::passes::Options {
        exact: args.deterministic,
        precision: precision(args.precision.as_deref())?,
        ..Default::default()
    };
    let cache = if args.no_cache { None } else { cache_dir() };
    let count = std::thread::available_parallelism().map_or(1, |n| n.get());
    let workers = Workers {
        executable: std::env::current_exe().ok(),
        count,
        cache,
    };
    Ok(compile::Options {
        targets,
        gpu,
        progress: crate::output::progress,
        passes,
        verify: args.verify_passes,
        workers,
    })
}

/// The arguments with a target for the device, if they name none; an error where a
/// device or its target is missing, before anything is compiled.
pub fn for_device(args: &CompileArgs, device: Name) -> Result<CompileArgs, Failure> {
    let named = args.target.iter().any(|t| GpuTarget::named(t).is_some());
    let only_gpu = named && args.target.iter().all(|t| GpuTarget::named(t).is_some());
    let mut args = args.clone();
    let capability = match device {
        Name::Cpu if only_gpu => {
            let message = format!("--target {} is for a --device", args.target.join(", "));
            return Err(Failure::usage(message));
        }
        Name::Cpu => {
            args.target.retain(|t| GpuTarget::named(t).is_none());
            return Ok(args);
        }
        Name::Cuda(number) => {
            let (_, gpus) = kiln::runtime::device::gpus()?;
            gpus.get(number as usize).map(|g| g.capability)
        }
        Name::Sim => None,
    };
    if !named {
        let best = kiln::runtime::exec::best_target(capability);
        args.target = vec![best.into()];
    }
    args.target.retain(|t| GpuTarget::named(t).is_some());
    Ok(args)
}

/// The GPU target that a run on a device asks for.
pub fn gpu_target(args: &CompileArgs) -> Option<String> {
    let mut gpu = args.target.iter().filter(|t| GpuTarget::named(t).is_some());
    gpu.next().cloned()
}

/// Where compiled kernels are kept.
pub fn cache_dir() -> Option<PathBuf> {
    let base = std::env::var_os("KILN_CACHE_DIR").map(PathBuf::from);
    base.or_else(|| std::env::var_os("XDG_CACHE_HOME").map(|d| PathBuf::from(d).join("kiln")))
        .or_else(|| std::env::var_os("HOME").map(|d| PathBuf::from(d).join(".cache/kiln")))
}

/// A file that is removed when it is no longer needed.
pub struct Temporary(pub PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// The artifact of a model: itself, or compiled into a temporary file. With the
/// milliseconds that took.
pub fn artifact(
    path: &Path,
    args: &CompileArgs,
) -> Result<(PathBuf, Option<Temporary>, f64), Failure> {
    if is_artifact(path) {
        return Ok((path.to_path_buf(), None, 0.0));
    }
    let start = std::time::Instant::now();
    let module = import(path, args, false)?;
    let out = std::env::temp_dir().join(format!("kiln-{}.kiln", std::process::id()));
    let temporary = Temporary(out.clone());
    compile::compile(module, &options(args)?, &out)?;
    Ok((out, Some(temporary), start.elapsed().as_secs_f64() * 1e3))
}
