//! What each command does. Answers go to stdout, everything else to stderr.

use crate::args::{Cli, Command, CompileArgs, RunArgs, TuneArgs};
use crate::diff;
use crate::draw;
use crate::inspect;
use crate::model::{self, Failure};
use crate::output::{out, outln};
use crate::quantize;
use crate::reduce;
use crate::{verify, weights};
use clap::CommandFactory;
use kiln::compile;
use kiln::ir::print::{PrintOptions, print_graph, print_module};
use kiln::ir::{Graph, Tensor};
use kiln::runtime::device::{self, Name};
use kiln::runtime::{Artifact, Threads, cli, tune};
use kiln_codegen::CpuTarget;
use std::path::{Path, PathBuf};

/// Runs a command; its exit status.
pub fn run(cli: Cli) -> Result<u8, Failure> {
    match cli.command {
        Command::Check { model, json } => check(&model, json),
        Command::Inspect {
            model,
            dim,
            json,
            dot,
            svg,
        } => inspect(&model, &dim, json, dot, svg),
        Command::Compile {
            model,
            output,
            options,
            emit,
            json,
            time,
            tune,
        } => compile(&model, output, (&options, &tune), &emit, json, time),
        Command::Tune {
            artifact,
            output,
            dim,
            target,
            seconds,
            run,
        } => {
            if run.device == Name::Cpu {
                let message = "give --device cuda (or sim, which counts instructions)";
                return Err(Failure::usage(message));
            }
            let request = cli::Request {
                command: "tune".into(),
                output: Some(output),
                dims: model::dims(&dim)?,
                target,
                seconds,
                ..request(artifact, &run)?
            };
            outln!("{}", cli::run(&request)?);
            Ok(0)
        }
        Command::Run {
            model,
            options,
            run,
            output_dir,
        } => {
            let rest = cli::Request {
                command: "run".into(),
                output_dir,
                ..Default::default()
            };
            execute(&model, &options, &run, rest)
        }
        Command::Bench {
            model,
            options,
            run,
            runs,
            profile,
            grow,
            scaling,
            sessions,
        } => {
            let target = CpuTarget::host();
            let fma = target.as_ref().map(kiln::roofline::fma_loop).transpose();
            let rest = cli::Request {
                command: "bench".into(),
                runs,
                profile,
                grow,
                scaling,
                sessions: sessions.map_or(0, |n| n.get()),
                fma: fma.map_err(|e| Failure::run(e.to_string()))?,
                ..Default::default()
            };
            execute(&model, &options, &run, rest)
        }
        Command::Plan {
            model,
            options,
            run,
        } => {
            let rest = cli::Request {
                command: "plan".into(),
                ..Default::default()
            };
            execute(&model, &options, &run, rest)
        }
        Command::Verify {
            model,
            data,
            suite,
            rtol,
            atol,
            interpreter,
            target,
            device,
            threads,
            json,
        } => verify::run(&verify::Request {
            model,
            data,
            suite,
            rtol,
            atol,
            interpreter,
            targets: target,
            device,
            threads,
            json,
        }),
        Command::Diff {
            model,
            options,
            run,
            rtol,
            reference,
        } => diff::run(&model, &options, &run, rtol, reference.as_deref()),
        Command::Quantize(args) => quantize::run(&args),
        Command::Opt {
            file,
            passes,
            print_changed,
            precision,
            time,
        } => {
            let options = kiln::passes::Options {
                precision: model::precision(precision.as_deref())?,
                ..Default::default()
            };
            opt(&file, &passes, &options, print_changed, time)
        }
        Command::Bisect {
            model,
            options,
            run,
            rtol,
        } => bisect(&model, &options, &run, rtol),
        Command::Reduce {
            model,
            output,
            options,
            rtol,
            command,
            timeout,
        } => reduce::run(&reduce::Request {
            model,
            output,
            options,
            rtol,
            command,
            timeout,
        }),
        Command::ReduceCheck {
            file,
            options,
            rtol,
        } => reduce::check(&file, &options, rtol),
        Command::Doctor { json } => doctor(json),
        Command::Completions { shell } => {
            let mut text = vec![];
            clap_complete::generate(shell, &mut Cli::command(), "kiln", &mut text);
            out!("{}", String::from_utf8_lossy(&text));
            Ok(0)
        }
    }
}

fn check(path: &Path, json: bool) -> Result<u8, Failure> {
    if !path.exists() {
        return Err(Failure::input(format!(
            "K0700: cannot open {}: there is no such file",
            path.display()
        )));
    }
    let report = kiln::import::check_onnx(path);
    let mut gaps: Vec<String> = report.gaps.iter().map(|g| g.to_string()).collect();
    let mut others: Vec<String> = report.warnings.iter().map(|d| d.to_string()).collect();
    let mut failed = !report.ok();
    // What imports must also have kernels: both kinds of gaps are listed.
    if !failed
        && let Ok(imported) = kiln::import::import_onnx(path, &Default::default())
        && let Err(e) = compile::plan(imported.module, &compile::Options::default())
    {
        failed = true;
        gaps.extend(e.to_string().lines().map(str::to_string));
    }
    if json {
        let doc = serde_json::json!({ "supported": !failed, "gaps": gaps, "notes": others });
        outln!("{doc}");
    } else {
        others.append(&mut gaps);
        others.iter().for_each(|line| outln!("{line}"));
        if !failed {
            outln!("{}: everything is supported", path.display());
        }
    }
    Ok(if failed { 2 } else { 0 })
}

fn inspect(
    path: &Path,
    dims: &[String],
    json: bool,
    dot: bool,
    svg: Option<String>,
) -> Result<u8, Failure> {
    if model::is_artifact(path) {
        return inspect::artifact(path, &model::dims(dims)?, json);
    }
    if !dims.is_empty() {
        return Err(Failure::usage(
            "`--dim` is for artifacts: compile the model first",
        ));
    }
    if weights::is_safetensors(path) {
        return weights::inspect(path, json);
    }
    let module = model::import(path, &CompileArgs::default(), false)?;
    if dot || svg.is_some() {
        let compiled = compile::plan(module, &compile::Options::default())?;
        for f in &compiled.module.functions {
            match &svg {
                None => out!("{}", draw::dot(f)),
                Some(file) => {
                    let text = draw::svg(f).map_err(|e| Failure::run(format!("K0709: {e}")))?;
                    match &file[..] {
                        "-" => out!("{text}"),
                        file => write_text(Path::new(file), &text)?,
                    }
                }
            }
        }
        return Ok(0);
    }
    let ports = |f: &Graph, results: bool| -> Vec<serde_json::Value> {
        let (ports, values) = if results {
            (&f.results, &f.body().results)
        } else {
            (&f.params, &f.body().params)
        };
        ports
            .iter()
            .zip(values)
            .map(|(p, &v)| serde_json::json!({ "name": &*p.name, "type": f.ty(v).to_string() }))
            .collect()
    };
    let functions: Vec<serde_json::Value> = module
        .functions
        .iter()
        .map(|f| {
            let mut ops = std::collections::BTreeMap::<&str, usize>::new();
            f.nodes_in_order().iter().for_each(|&n| *ops.entry(f.node(n).op.def().mnemonic()).or_default() += 1);
            serde_json::json!({ "name": &*f.name, "inputs": ports(f, false), "outputs": ports(f, true), "ops": ops })
        })
        .collect();
    let weights: i64 = module
        .globals
        .values()
        .filter_map(|g| g.ty.bytes().as_const())
        .sum();
    let doc = serde_json::json!({ "functions": functions, "globals": module.globals.len(), "weight_bytes": weights, "meta": module.meta });
    if json {
        outln!("{doc}");
        return Ok(0);
    }
    for f in &module.functions {
        outln!("@{}: {} nodes", f.name, f.nodes_in_order().len());
        for (what, results) in [("in ", false), ("out", true)] {
            for p in ports(f, results) {
                outln!(
                    "  {what} {} : {}",
                    p["name"].as_str().unwrap_or(""),
                    p["type"].as_str().unwrap_or("")
                );
            }
        }
    }
    outln!(
        "{} weights, {:.1} MB",
        module.globals.len(),
        weights as f64 / 1e6
    );
    Ok(0)
}

/// Writes a file under a temporary name first, so that it is whole or not there.
fn write_text(path: &Path, text: &str) -> Result<(), Failure> {
    kiln::runtime::npy::write_whole(path, &[text.as_bytes()]).map_err(Failure::from)
}

fn compile(
    path: &Path,
    output: Option<PathBuf>,
    (args, tuning): (&CompileArgs, &TuneArgs),
    emit: &[String],
    json: bool,
    time: bool,
) -> Result<u8, Failure> {
    if output.is_none() && (emit.is_empty() || tuning.tune) {
        return Err(Failure::usage("give -o OUT.kiln, or --emit"));
    }
    if tuning.tune {
        can_tune(args, tuning)?;
    }
    let start = std::time::Instant::now();
    let module = model::import(path, args, true)?;
    let options = model::options(args)?;
    let import_ms = start.elapsed().as_secs_f64() * 1e3;
    let mut compiled = compile::plan(module, &options)?;
    let plan_ms = start.elapsed().as_secs_f64() * 1e3 - import_ms;
    for stage in emit {
        let (stage, file) = stage
            .split_once('=')
            .map_or((&stage[..], None), |(s, f)| (s, Some(f)));
        let text = stage_text(stage, &compiled, &options)?;
        match file {
            Some(file) => write_text(Path::new(file), &text)?,
            None => out!("{text}"),
        }
    }
    if let Some(out) = &output {
        let tuned = match tuning.tune {
            true => Some(write_tuned(&mut compiled, &options, tuning, out)?),
            false => {
                compile::write(&mut compiled, &options, out)?;
                None
            }
        };
        let total_ms = start.elapsed().as_secs_f64() * 1e3;
        let bytes = std::fs::metadata(out).map_or(0, |m| m.len());
        let kernels = compiled.lowered.kernels.len();
        if json {
            let doc = serde_json::json!({
                "artifact": out.display().to_string(), "bytes": bytes, "kernels": kernels,
                "compile_ms": total_ms, "import_ms": import_ms, "passes_ms": plan_ms,
                "peak_bytes": cli::peak_bytes(),
                "targets": target_names(&options), "tune": tuned,
            });
            outln!("{doc}");
        } else if emit.iter().all(|e| e.contains('=')) {
            outln!(
                "{}: {:.1} MB, {kernels} kernels, compiled in {:.2} s (import {import_ms:.0} ms, passes {plan_ms:.0} ms)",
                out.display(),
                bytes as f64 / 1e6,
                total_ms / 1e3
            );
            if let Some(report) = &tuned {
                outln!("{}", report.text());
            }
        }
    }
    if time {
        for t in &compiled.timings {
            eprintln!(
                "{:>9.3} ms  {:<16} @{} {} nodes",
                t.time.as_secs_f64() * 1e3,
                t.pass,
                t.function,
                t.nodes
            );
        }
    }
    Ok(0)
}

/// Whether there is what `--tune` asks for, before anything is compiled.
fn can_tune(args: &CompileArgs, tuning: &TuneArgs) -> Result<(), Failure> {
    if model::gpu_target(args).is_none() {
        let message = "--tune needs code for a GPU: give --target sm_80, sm_89 or sm_90a";
        return Err(Failure::usage(message));
    }
    if tuning.tune_device == Name::Cpu {
        return Err(Failure::usage("--tune-device is cuda, cuda:N or sim"));
    }
    device::open(tuning.tune_device)?;
    Ok(())
}

/// Writes an artifact and measures it; it takes its name when both are done.
fn write_tuned(
    compiled: &mut compile::Compiled,
    options: &compile::Options,
    tuning: &TuneArgs,
    out: &Path,
) -> Result<tune::Report, Failure> {
    let name = out.file_name().map(|n| n.to_string_lossy());
    let name = format!(
        ".{}.{}.untuned",
        name.unwrap_or_default(),
        std::process::id()
    );
    let untuned = model::Temporary(out.with_file_name(name));
    compile::write(compiled, options, &untuned.0)?;
    let request = cli::Request {
        dims: model::dims(&tuning.tune_dim)?,
        device: tuning.tune_device,
        seconds: tuning.tune_seconds,
        ..Default::default()
    };
    let artifact = Artifact::open(&untuned.0)?;
    Ok(tune::tune(&request, &artifact, out)?)
}

/// The CPU levels and GPU targets that code is made for.
fn target_names(options: &compile::Options) -> Vec<&str> {
    let cpu = options.targets.iter().map(|t| &t.name[..]);
    cpu.chain(options.gpu.iter().map(|t| &t.name[..])).collect()
}

fn stage_text(
    stage: &str,
    compiled: &compile::Compiled,
    options: &compile::Options,
) -> Result<String, Failure> {
    use kiln_codegen::Dump;
    let what = match stage {
        "kir" => {
            return Ok(print_module(
                &compiled.module,
                &PrintOptions {
                    origins: true,
                    ..Default::default()
                },
            ));
        }
        "mlir" => Dump::Mlir,
        "llvm" => Dump::Llvm,
        "asm" => Dump::Asm,
        "ptx" => {
            let target = options.gpu.first().ok_or_else(|| {
                Failure::usage("--emit ptx needs --target sm_80, sm_89 or sm_90a")
            })?;
            let code = compile::gpu::compile(&compiled.lowered, target);
            return Ok(code.map_err(compile::CompileError::Gpu)?.text);
        }
        other => {
            return Err(Failure::usage(format!(
                "there is no stage `{other}`: kir, mlir, llvm, asm, ptx"
            )));
        }
    };
    let target = options.targets.first().ok_or_else(|| {
        Failure::usage(format!(
            "--emit {stage} needs a CPU target: give --target x86-64-v3"
        ))
    })?;
    kiln_kernels::dump(&compiled.lowered.kernels, target, what)
        .map_err(|e| Failure::run(e.to_string()))
}

/// Compiles a model if it is none yet, and does with the artifact what `rest` asks.
fn execute(
    path: &Path,
    args: &CompileArgs,
    run: &RunArgs,
    rest: cli::Request,
) -> Result<u8, Failure> {
    let artifact_target = model::gpu_target(args);
    let args = &match model::is_artifact(path) {
        true => args.clone(),
        false => model::for_device(args, run.device)?,
    };
    let (artifact, _temporary, compile_ms) = model::artifact(path, args)?;
    let request = cli::Request {
        dims: model::dims(&args.dim)?,
        target: artifact_target.filter(|_| run.device != Name::Cpu),
        compile_ms,
        command: rest.command,
        output_dir: rest.output_dir,
        runs: rest.runs,
        scaling: rest.scaling,
        sessions: rest.sessions,
        profile: rest.profile,
        grow: rest.grow,
        fma: rest.fma,
        ..request(artifact, run)?
    };
    outln!("{}", cli::run(&request)?);
    Ok(0)
}

/// What every command that runs asks for.
fn request(artifact: PathBuf, run: &RunArgs) -> Result<cli::Request, Failure> {
    let mut inputs = vec![];
    for text in &run.input {
        let (name, file) = text
            .split_once('=')
            .ok_or_else(|| Failure::usage(format!("`--input {text}` is not NAME=FILE.npy")))?;
        inputs.push((name.to_string(), PathBuf::from(file)));
    }
    Ok(cli::Request {
        artifact,
        inputs,
        archive: run.inputs.clone(),
        entry: run.entry.clone(),
        threads: Threads {
            count: run.threads,
            pin: run.pin.clone(),
        },
        device: run.device,
        no_graphs: run.no_graphs,
        json: run.json,
        ..Default::default()
    })
}

/// The entry that a comparison runs, and its inputs in order.
pub fn entry_inputs(
    module: &kiln::ir::Module,
    run: &RunArgs,
) -> Result<(String, Vec<(String, Tensor)>), Failure> {
    let entry = run
        .entry
        .clone()
        .unwrap_or_else(|| module.functions[0].name.to_string());
    let mut given = match &run.inputs {
        Some(p) => kiln::runtime::npy::read_npz(p)?,
        None => vec![],
    };
    for text in &run.input {
        let (name, file) = text
            .split_once('=')
            .ok_or_else(|| Failure::usage(format!("`--input {text}` is not NAME=FILE.npy")))?;
        given.push((name.to_string(), kiln::runtime::npy::read(Path::new(file))?));
    }
    let f = module
        .function(&entry)
        .ok_or_else(|| Failure::input(format!("K0710: no entry `{entry}`")))?;
    let mut tensors = vec![];
    for port in &f.params {
        let found = given.iter().find(|(n, _)| **n == *port.name);
        let (_, a) = found.ok_or_else(|| {
            Failure::input(format!("K0711: the input `{}` is missing", port.name))
        })?;
        let t = a.clone().tensor(&port.name)?;
        tensors.push((port.name.to_string(), t));
    }
    Ok((entry, tensors))
}

fn opt(
    file: &Path,
    names: &[String],
    options: &kiln::passes::Options,
    print_changed: bool,
    time: bool,
) -> Result<u8, Failure> {
    let mut module = model::import(file, &CompileArgs::default(), false)?;
    let known = || {
        kiln::passes::pipeline::ALL
            .iter()
            .map(|p| p.name)
            .collect::<Vec<_>>()
            .join(", ")
    };
    let mut passes = vec![];
    for name in names.iter().filter(|n| !n.is_empty()) {
        let pass = kiln::passes::pipeline::by_name(name);
        passes.push(
            pass.ok_or_else(|| Failure::usage(format!("there is no pass `{name}`: {}", known())))?,
        );
    }
    if passes.is_empty() {
        return Err(Failure::usage(format!("give --passes=a,b of {}", known())));
    }
    let mut manager = kiln::passes::Manager {
        verify: true,
        ..Default::default()
    };
    if print_changed {
        manager.on_change = Some(Box::new(|pass, graph| {
            eprintln!(
                "// after {pass}\n{}",
                print_graph(graph, &PrintOptions::default())
            );
        }));
    }
    manager
        .run(&passes, &mut module, options)
        .map_err(|e| Failure::run(e.to_string()))?;
    out!("{}", print_module(&module, &PrintOptions::default()));
    if time {
        manager
            .timings
            .iter()
            .for_each(|t| eprintln!("{:>9.3} ms  {}", t.time.as_secs_f64() * 1e3, t.pass));
    }
    Ok(0)
}

fn bisect(path: &Path, args: &CompileArgs, run: &RunArgs, rtol: f64) -> Result<u8, Failure> {
    let mut module = model::import(path, args, true)?;
    let (entry, tensors) = entry_inputs(&module, run)?;
    let want = verify::interpret(&module, &entry, &tensors)?;
    let options = model::options(args)?;
    for pass in kiln::passes::pipeline::COMPILE {
        let mut manager = kiln::passes::Manager {
            verify: true,
            ..Default::default()
        };
        manager
            .run(&[*pass], &mut module, &options.passes)
            .map_err(|e| Failure::run(e.to_string()))?;
        let got = verify::interpret(&module, &entry, &tensors)?;
        for (port, (g, w)) in got.iter().zip(&want).enumerate() {
            let d = verify::difference(g, w);
            if d.relative > rtol || d.mismatch.is_some() {
                outln!(
                    "{}: output {port} is off by {:.3e} after this pass",
                    pass.name,
                    d.relative
                );
                return Ok(1);
            }
        }
        outln!("{}: within {rtol:e}", pass.name);
    }
    outln!("every pass keeps the interpreter's results; `kiln diff` compares compiled code");
    Ok(0)
}

fn doctor(json: bool) -> Result<u8, Failure> {
    let levels: Vec<(String, bool)> = CpuTarget::all()
        .into_iter()
        .map(|t| (t.name.clone(), t.runs_here()))
        .collect();
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get());
    let cache = model::cache_dir();
    let gpus = device::gpus();
    if json {
        let doc = serde_json::json!({
            "version": env!("CARGO_PKG_VERSION"), "cores": threads,
            "cpu_levels": levels.iter().filter(|l| l.1).map(|l| &l.0).collect::<Vec<_>>(),
            "devices": device_names(gpus.as_ref().map_or(0, |g| g.1.len())),
            "gpus": gpus.as_ref().map_or(&[][..], |g| &g.1),
            "cuda_driver": gpus.as_ref().ok().map(|g| g.0),
            "cuda_error": gpus.as_ref().err().map(|e| e.to_string()),
            "kernel_cache": cache,
        });
        outln!("{doc}");
        return Ok(0);
    }
    outln!("kiln {}", env!("CARGO_PKG_VERSION"));
    outln!("cores: {threads}");
    for (name, here) in levels {
        outln!(
            "{name}: {}",
            if here {
                "yes"
            } else {
                "not on this machine (artifacts can still be made for it)"
            }
        );
    }
    match &gpus {
        Ok((driver, gpus)) => {
            outln!("NVIDIA driver: of CUDA {}.{}", driver.0, driver.1);
            for g in gpus {
                outln!(
                    "cuda:{}: {}, compute capability {}.{} (--target {}), {:.1} GB",
                    g.number,
                    g.name,
                    g.capability.0,
                    g.capability.1,
                    kiln::runtime::exec::best_target(Some(g.capability)),
                    g.memory as f64 / 1e9
                );
            }
        }
        Err(e) => outln!("NVIDIA driver: {}", e.message),
    }
    let count = gpus.as_ref().map_or(0, |g| g.1.len());
    outln!("devices: {}", device_names(count).join(", "));
    match cache {
        Some(d) => outln!("kernel cache: {}", d.display()),
        None => outln!("kernel cache: none (neither KILN_CACHE_DIR nor HOME is set)"),
    }
    Ok(0)
}

/// The devices that runs may name.
fn device_names(gpus: usize) -> Vec<String> {
    let cuda = (0..gpus).map(|n| format!("cuda:{n}"));
    ["cpu".to_string(), "sim".to_string()]
        .into_iter()
        .chain(cuda)
        .collect()
}
