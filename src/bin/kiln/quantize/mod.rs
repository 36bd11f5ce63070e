//! `kiln quantize`: a model in 8-bit integers, calibrated on data.

mod check;
mod data;
mod report;

use crate::args::QuantizeArgs;
use crate::model::{self, Failure};
use crate::output;
use crate::verify::Machine;
use check::Output;
use data::{Reader, Source};
use kiln::import::{Diagnostic, Draft, Interface, Keep};
use kiln::ir::{Module, Tensor};
use kiln::quantize::{self, Kind, Method, Observed, Options, Plan};
use kiln::runtime::device::Name;
use kiln::runtime::{Input, Session};
use report::Report;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Instant;

impl From<Box<Diagnostic>> for Failure {
    fn from(d: Box<Diagnostic>) -> Failure {
        Failure::input(d.to_string())
    }
}

/// Runs `kiln quantize`. Exit status 1, and nothing written, where an output is further
/// from the model's than `--max-error`.
pub fn run(args: &QuantizeArgs) -> Result<u8, Failure> {
    let start = Instant::now();
    let options = options(args)?;
    let target = target(&args.output)?;
    let calibration = data::sources(&args.calibration)?;
    let checked = match args.check.is_empty() {
        true => calibration.clone(),
        false => data::sources(&args.check)?,
    };
    // The path's own errors, and those of models that do not import, come first.
    let interface = Interface::of(&args.model);
    if args.model.extension().is_none_or(|e| e != "onnx") {
        let name = args.model.display();
        return Err(Failure::input(format!(
            "K0101: {name} is no .onnx file: those are quantized"
        )));
    }
    if !args.model.exists() {
        let name = args.model.display();
        return Err(Failure::input(format!(
            "K0700: cannot open {name}: there is no such file"
        )));
    }
    let mut draft = Draft::open(&args.model)?;
    let had = quantize::opset::raise(&mut draft)?;
    let mut plan = Plan::of(&mut draft, &options)?;
    let activations = plan.activations(&draft.proto.graph);

    let keep = Keep::Named(activations.iter().cloned().collect());
    let module = model::import_keeping(&args.model, &args.options, false, keep)?;
    let mut float = Runner::new(module, args, &interface)?;
    let observed = observe(
        &mut float,
        &calibration,
        &mut draft,
        &plan,
        &activations,
        &options,
    )?;
    plan.without(&draft.proto.graph, &observed.unusable(&activations));
    plan.has_products()?;
    let applied = quantize::apply(&mut draft, &plan, &observed, &options)?;
    drop(observed);
    let calibrated = start.elapsed();

    let names: Vec<String> = draft
        .proto
        .graph
        .output
        .iter()
        .map(|o| o.name.clone())
        .collect();
    let external = args.external_data || !draft.fits_one_file()?;
    let staged = Staged::new(&target)?;
    draft.write(&staged.folder, &target.name, external)?;
    let module = model::import_keeping(&staged.model(), &args.options, false, Keep::Nothing)?;
    let mut integer = Runner::new(module, args, &interface)?;
    let outputs = compare(&mut float, &mut integer, &checked, &names)?;
    let largest = outputs.iter().map(Output::relative).fold(0.0, f64::max);
    let within = args.max_error.is_none_or(|most| largest <= most);
    let report = Report {
        args,
        had,
        batches: (calibration.len(), checked.len()),
        plan: &plan,
        applied: &applied,
        outputs: &outputs,
        largest,
        written: within,
        bytes: (model_bytes(&args.model)?, staged.bytes()),
        calibrated,
        total: start.elapsed(),
    };
    report.print();
    if !within {
        eprintln!(
            "error: K0746: an output's relative error is {largest:.3e}, over --max-error {:e}: \
             nothing was written\n  help: try another --method, --smooth, or leave nodes as they are by --exclude",
            args.max_error.unwrap_or_default()
        );
        return Ok(1);
    }
    staged.publish()?;
    Ok(0)
}

/// The library's options from the command line's.
fn options(args: &QuantizeArgs) -> Result<Options, Failure> {
    if !args.int8 {
        return Err(Failure::usage("say what to quantize to: --int8"));
    }
    let method = match &args.method[..] {
        "minmax" => Method::MinMax,
        "percentile" => Method::Percentile(args.percentile),
        "entropy" => Method::Entropy,
        "mse" => Method::Mse,
        other => {
            return Err(Failure::usage(format!(
                "there is no method `{other}`: minmax, percentile, entropy, mse"
            )));
        }
    };
    if !(args.percentile > 50.0 && args.percentile <= 100.0) {
        return Err(Failure::usage("--percentile is over 50 and at most 100"));
    }
    if args.smooth.is_some_and(|a| !(a > 0.0 && a < 1.0)) {
        return Err(Failure::usage("--smooth is between 0 and 1"));
    }
    let kind = |name: &String| {
        Kind::by_name(name).ok_or_else(|| {
            Failure::usage(format!(
                "`{name}` cannot be quantized: MatMul, Gemm, Conv and Gather can"
            ))
        })
    };
    let kinds = args.ops.iter().map(kind).collect::<Result<Vec<_>, _>>()?;
    Ok(Options {
        method,
        kinds: if kinds.is_empty() {
            Kind::DEFAULT.to_vec()
        } else {
            kinds
        },
        exclude: args.exclude.clone(),
        per_channel: !args.per_tensor,
        reduce_range: args.reduce_range,
        all_products: args.all_products,
        outputs: args.outputs,
        smooth: args.smooth,
    })
}

/// Where the model goes.
struct Target {
    folder: PathBuf,
    name: String,
}

fn target(path: &Path) -> Result<Target, Failure> {
    let name = path
        .file_name()
        .and_then(|n| n.to_str())
        .map(str::to_string);
    match name.filter(|n| n.ends_with(".onnx") && !path.is_dir()) {
        Some(name) => Ok(Target {
            folder: path.parent().unwrap_or(Path::new("")).to_path_buf(),
            name,
        }),
        None => Err(Failure::usage(format!(
            "{} is no name of an .onnx file",
            path.display()
        ))),
    }
}

/// The written model before it takes its name: in a folder of its own beside that, so
/// that a file of external data has its name already.
struct Staged<'a> {
    folder: PathBuf,
    target: &'a Target,
}

impl<'a> Staged<'a> {
    fn new(target: &'a Target) -> Result<Staged<'a>, Failure> {
        let name = format!(".{}.{}.tmp", target.name, std::process::id());
        let folder = target.folder.join(name);
        std::fs::create_dir(&folder).map_err(|e| {
            Failure::run(format!("K0707: cannot write beside {}: {e}", target.name))
        })?;
        Ok(Staged { folder, target })
    }

    fn model(&self) -> PathBuf {
        self.folder.join(&self.target.name)
    }

    fn data(&self) -> PathBuf {
        self.folder.join(format!("{}.data", self.target.name))
    }

    fn bytes(&self) -> u64 {
        let size = |p: PathBuf| std::fs::metadata(p).map_or(0, |m| m.len());
        size(self.model()) + size(self.data())
    }

    /// Gives the files their names.
    fn publish(self) -> Result<(), Failure> {
        let to = |path: &Path| {
            self.target
                .folder
                .join(path.file_name().unwrap_or_default())
        };
        for path in [self.data(), self.model()] {
            if path.exists() {
                std::fs::rename(&path, to(&path)).map_err(|e| {
                    Failure::run(format!("K0707: cannot write {}: {e}", to(&path).display()))
                })?;
            }
        }
        Ok(())
    }
}

impl Drop for Staged<'_> {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(self.model());
        let _ = std::fs::remove_file(self.data());
        let _ = std::fs::remove_dir(&self.folder);
    }
}

/// The bytes of a model's file, and of external data that it names beside it.
fn model_bytes(path: &Path) -> Result<u64, Failure> {
    let own = std::fs::metadata(path).map_or(0, |m| m.len());
    let weights = Draft::open(path)?.weight_bytes()?;
    Ok(own.max(weights))
}

/// A compiled model that reads batches.
struct Runner<'a> {
    function: kiln::ir::Graph,
    interface: &'a Interface,
    strays: BTreeSet<String>,
    session: Session,
    entry: usize,
    /// The places of outputs by name.
    outputs: BTreeMap<String, usize>,
    /// Its artifact is on the disk as long as it is here.
    _machine: Machine,
}

impl<'a> Runner<'a> {
    fn new(module: Module, args: &QuantizeArgs, interface: &'a Interface) -> Result<Self, Failure> {
        let function = module.functions.first();
        let function = function
            .ok_or_else(|| Failure::input("K0710: no entry"))?
            .clone();
        let machine = Machine::compile(module, &model::options(&args.options)?, Name::Cpu)?;
        let threads = match args.threads {
            0 => std::thread::available_parallelism().map_or(1, |n| n.get()),
            n => n,
        };
        let (session, entry) = machine.session(&function.name, threads)?;
        let ports = &session.model().program().entries[entry].outputs;
        let outputs = ports
            .iter()
            .enumerate()
            .map(|(i, p)| (p.name.clone(), i))
            .collect();
        Ok(Runner {
            function,
            interface,
            strays: BTreeSet::new(),
            session,
            entry,
            outputs,
            _machine: machine,
        })
    }

    fn read(&mut self, source: &Source) -> Result<Vec<(String, Tensor)>, Failure> {
        let mut reader = Reader {
            function: &self.function,
            interface: self.interface,
            strays: std::mem::take(&mut self.strays),
        };
        let batch = reader.read(source);
        self.strays = reader.strays;
        batch
    }

    fn run(&mut self, source: &Source, batch: &[(String, Tensor)]) -> Result<(), Failure> {
        let refs: Vec<(&str, Input)> = batch.iter().map(|(n, t)| (&n[..], t.into())).collect();
        let ran = self.session.run_with(self.entry, &refs);
        ran.map_err(|e| Failure::from(e).while_reading(source.path()))
    }

    fn output(&self, name: &str) -> Option<kiln::runtime::TensorRef<'_>> {
        self.session.output(*self.outputs.get(name)?)
    }
}

/// Runs all batches, and counts what activations are.
fn observe(
    float: &mut Runner,
    batches: &[Source],
    draft: &mut Draft,
    plan: &Plan,
    activations: &[String],
    options: &Options,
) -> Result<Observed, Failure> {
    let mut observed = Observed::default();
    if let Some(strength) = options.smooth {
        // Factors first: what is counted are values multiplied by them.
        each(
            float,
            batches,
            "smoothing",
            activations,
            &mut |name, shape, values| {
                let h = observed.histograms.entry(name.to_string()).or_default();
                h.add_channels(values, shape.last().copied().unwrap_or(1));
            },
        )?;
        let factors = quantize::smooth::factors(draft, plan, &observed, strength)?;
        observed = Observed {
            factors,
            ..Default::default()
        };
    }
    each(
        float,
        batches,
        "calibrating",
        activations,
        &mut |name, _, values| {
            observed.add(name, values);
        },
    )?;
    Ok(observed)
}

/// What is done with a value: its name, shape and elements.
type Visit<'a> = dyn FnMut(&str, &[usize], &[f32]) + 'a;

/// Calls `f` with every activation of every batch.
fn each(
    float: &mut Runner,
    batches: &[Source],
    what: &str,
    activations: &[String],
    f: &mut Visit,
) -> Result<(), Failure> {
    for (i, source) in batches.iter().enumerate() {
        output::progress(what, i, batches.len());
        let batch = float.read(source)?;
        float.run(source, &batch)?;
        for name in activations {
            let given = batch.iter().find(|(n, _)| n == name);
            match (float.output(name), given) {
                (Some(t), _) => {
                    if let Some(values) = check::floats(t) {
                        f(name, t.shape, &values);
                    }
                }
                (None, Some((_, t))) if t.dtype() == kiln::ir::DType::F32 => {
                    f(name, t.shape(), &quantize::floats(t));
                }
                _ => {}
            }
        }
    }
    output::progress(what, batches.len(), batches.len());
    Ok(())
}

/// Runs both models on all batches, and compares the outputs of these names.
fn compare(
    float: &mut Runner,
    integer: &mut Runner,
    batches: &[Source],
    names: &[String],
) -> Result<Vec<Output>, Failure> {
    let mut outputs: Vec<Output> = names.iter().map(|n| Output::named(n)).collect();
    for (i, source) in batches.iter().enumerate() {
        output::progress("checking", i, batches.len());
        let batch = float.read(source)?;
        float.run(source, &batch)?;
        integer.run(source, &batch)?;
        for out in &mut outputs {
            if let (Some(want), Some(got)) = (float.output(&out.name), integer.output(&out.name)) {
                out.add(want, got);
            }
        }
    }
    output::progress("checking", batches.len(), batches.len());
    Ok(outputs)
}
