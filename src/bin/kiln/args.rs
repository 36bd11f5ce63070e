//! The command line's grammar.

use clap::{Args, Parser, Subcommand};
use kiln::runtime::device::Name;
use kiln::runtime::{Pin, tune};
use std::num::NonZeroUsize;
use std::path::PathBuf;

/// Kiln compiles models ahead of time and runs them.
#[derive(Parser)]
#[command(name = "kiln", version, about, propagate_version = true)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Subcommand)]
pub enum Command {
    /// List everything in a model that Kiln does not support, at once.
    Check {
        model: PathBuf,
        /// One JSON document on stdout.
        #[arg(long)]
        json: bool,
    },
    /// Show what a model, an artifact or a file of weights (.safetensors) holds.
    Inspect {
        model: PathBuf,
        /// Of an artifact with code for GPUs: which form of its kernel each launch takes at
        /// these sizes, what the others are predicted to take, and why they are not taken.
        /// May be repeated.
        #[arg(long, value_name = "NAME=N")]
        dim: Vec<String>,
        #[arg(long)]
        json: bool,
        /// The graph after the passes, as Graphviz text.
        #[arg(long)]
        dot: bool,
        /// The groups after compiling as a drawing; to stdout without =FILE.
        #[arg(long, value_name = "FILE", num_args = 0..=1, require_equals = true, default_missing_value = "-")]
        svg: Option<String>,
    },
    /// Compile a model to an artifact.
    Compile {
        model: PathBuf,
        /// The artifact.
        #[arg(short, long)]
        output: Option<PathBuf>,
        #[command(flatten)]
        options: CompileArgs,
        /// Print a stage instead: kir, mlir, llvm, asm, ptx; =FILE writes it there.
        #[arg(long, value_name = "STAGE[=FILE]")]
        emit: Vec<String>,
        #[arg(long)]
        json: bool,
        /// Print how long each pass took.
        #[arg(long)]
        time: bool,
        #[command(flatten)]
        tune: TuneArgs,
    },
    /// Measure on a device which form of its kernel each launch of an artifact takes best
    /// at given sizes, and write the artifact with what was found.
    Tune {
        artifact: PathBuf,
        /// The tuned artifact.
        #[arg(short, long)]
        output: PathBuf,
        /// A size, NAME=N. May be repeated.
        #[arg(long, value_name = "NAME=N")]
        dim: Vec<String>,
        /// Which of the artifact's GPU targets; the best that the device runs if not given.
        #[arg(long)]
        target: Option<String>,
        /// How long forms are measured at most.
        #[arg(long, value_name = "SECONDS", default_value_t = tune::SECONDS, value_parser = tune::seconds)]
        seconds: f64,
        #[command(flatten)]
        run: RunArgs,
    },
    /// Run a model or an artifact once.
    Run {
        model: PathBuf,
        #[command(flatten)]
        options: CompileArgs,
        #[command(flatten)]
        run: RunArgs,
        /// Where outputs are written, as NAME.npy.
        #[arg(long)]
        output_dir: Option<PathBuf>,
    },
    /// Measure a model or an artifact.
    Bench {
        model: PathBuf,
        #[command(flatten)]
        options: CompileArgs,
        #[command(flatten)]
        run: RunArgs,
        /// How many runs; chosen by time if not given.
        #[arg(long, default_value_t = 0)]
        runs: usize,
        /// Write what one run did, step by step and thread by thread, for Perfetto.
        #[arg(long, value_name = "TRACE.json", conflicts_with_all = ["scaling", "sessions"])]
        profile: Option<PathBuf>,
        /// A size that is one more in each run than in the last one.
        #[arg(long, value_name = "NAME", conflicts_with_all = ["scaling", "sessions"])]
        grow: Option<String>,
        /// One thread against all, beside arithmetic in registers; and the steps that
        /// scale least.
        #[arg(long, conflicts_with = "sessions")]
        scaling: bool,
        /// That many sessions at once, against one after the other.
        #[arg(long, value_name = "N")]
        sessions: Option<NonZeroUsize>,
    },
    /// Show the memory that running takes, before running.
    Plan {
        model: PathBuf,
        #[command(flatten)]
        options: CompileArgs,
        #[command(flatten)]
        run: RunArgs,
    },
    /// Check outputs against ONNX test data (input_K.pb, output_K.pb).
    Verify {
        /// The model, unless a suite is given.
        model: Option<PathBuf>,
        /// Folders test_data_set_N; those beside the model if not given.
        data: Vec<PathBuf>,
        /// A folder of cases, each with model.onnx and test_data_set_N, or a folder of
        /// such folders. Cases run on every core.
        #[arg(long)]
        suite: Option<PathBuf>,
        #[arg(long, default_value_t = 1e-3)]
        rtol: f64,
        #[arg(long, default_value_t = 1e-5)]
        atol: f64,
        /// Run the reference interpreter instead of compiled code; with --target,
        /// beside it.
        #[arg(long)]
        interpreter: bool,
        /// CPU level: cpu (this machine's), x86-64-v3, x86-64-v4, both also with -vnni
        /// (products of bytes), x86-64-v4-bf16 (and of bf16); or GPU, with --device:
        /// sm_80, sm_89, sm_90a. May be repeated.
        #[arg(long)]
        target: Vec<String>,
        /// Where to run: cpu, cuda, cuda:N, sim (a PTX interpreter).
        #[arg(long, default_value_t = Name::Cpu)]
        device: Name,
        #[arg(long, default_value_t = 1)]
        threads: usize,
        #[arg(long)]
        json: bool,
    },
    /// Find the first node whose compiled results are beyond tolerance, against the
    /// reference interpreter or another runtime's values.
    Diff {
        model: PathBuf,
        #[command(flatten)]
        options: CompileArgs,
        #[command(flatten)]
        run: RunArgs,
        #[arg(long, default_value_t = 1e-4)]
        rtol: f64,
        /// What another runtime computed: arrays by the names of the model's values.
        #[arg(long, value_name = "REF.npz")]
        reference: Option<PathBuf>,
    },
    /// Write a model in 8-bit integers, calibrated on data (QDQ form: ONNX Runtime
    /// runs it as well).
    Quantize(Box<QuantizeArgs>),
    /// Run passes over a .kir file or a model and print the result.
    Opt {
        file: PathBuf,
        /// Names, separated by commas; `kiln opt FILE --passes=` lists them.
        #[arg(long, value_delimiter = ',')]
        passes: Vec<String>,
        /// Print the graph after every pass that changed it.
        #[arg(long)]
        print_changed: bool,
        /// What mixed-precision narrows products to: f32 (nothing), tf32, bf16 or f16.
        #[arg(long)]
        precision: Option<String>,
        #[arg(long)]
        time: bool,
    },
    /// Find the first pass after which the interpreter's results differ.
    Bisect {
        model: PathBuf,
        #[command(flatten)]
        options: CompileArgs,
        #[command(flatten)]
        run: RunArgs,
        #[arg(long, default_value_t = 1e-4)]
        rtol: f64,
    },
    /// Make a small .kir file of a model that compiles to wrong code or not at all.
    Reduce {
        model: PathBuf,
        /// The reduced file: a filetest, with its big constants beside it.
        #[arg(short, long, default_value = "reduced.kir")]
        output: PathBuf,
        #[command(flatten)]
        options: CompileArgs,
        #[arg(long, default_value_t = 1e-5)]
        rtol: f64,
        /// A shell command that a candidate's path is appended to: what it exits
        /// with non-zero on is kept. Without it: compiled code against the
        /// reference interpreter.
        #[arg(long, value_name = "CMD")]
        command: Option<String>,
        /// Seconds after which a candidate hangs.
        #[arg(long, default_value_t = 60)]
        timeout: u64,
    },
    #[command(name = "__reduce-check", hide = true)]
    ReduceCheck {
        file: PathBuf,
        #[command(flatten)]
        options: CompileArgs,
        #[arg(long)]
        rtol: f64,
    },
    /// Say what this machine and this build can do.
    Doctor {
        #[arg(long)]
        json: bool,
    },
    /// Print a completion script.
    Completions { shell: clap_complete::Shell },
}

/// How to quantize.
#[derive(Args, Clone)]
pub struct QuantizeArgs {
    pub model: PathBuf,
    /// The quantized model, OUT.onnx.
    #[arg(short, long)]
    pub output: PathBuf,
    /// Weights in i8, activations in u8.
    #[arg(long)]
    pub int8: bool,
    /// Batches of inputs: .npz files (arrays by the names of inputs, one batch each),
    /// folders test_data_set_N, or folders of such.
    #[arg(long, value_name = "DATA", num_args = 1.., required = true)]
    pub calibration: Vec<PathBuf>,
    /// How an activation's range is chosen: minmax, percentile, entropy, mse.
    #[arg(long, default_value = "minmax")]
    pub method: String,
    /// The share of the values that are not clipped, in per cent, for --method percentile.
    #[arg(long, default_value_t = 99.99)]
    pub percentile: f64,
    /// One scale in all for each weight, not one a channel.
    #[arg(long)]
    pub per_tensor: bool,
    /// Weights in 7 bits: for runtimes on CPUs without VNNI whose sums saturate. Kiln's
    /// are exact.
    #[arg(long)]
    pub reduce_range: bool,
    /// Operators to quantize: MatMul, Gemm, Conv if not given; Gather quantizes tables
    /// that are looked up, which saves memory alone.
    #[arg(long, value_delimiter = ',', value_name = "OP,OP")]
    pub ops: Vec<String>,
    /// Nodes to leave as they are, by their names or their outputs' (* and ? stand for
    /// anything). May be repeated.
    #[arg(long, value_delimiter = ',', value_name = "PATTERN")]
    pub exclude: Vec<String>,
    /// Also products of two computed values (attention's).
    #[arg(long)]
    pub all_products: bool,
    /// Also round what products give: ONNX Runtime's integer convolutions ask for it,
    /// Kiln's do not.
    #[arg(long)]
    pub outputs: bool,
    /// Move part of the spread between an activation's channels into the weights, by a
    /// Mul before quantizing; 0 moves nothing, 1 all.
    #[arg(long, value_name = "STRENGTH", num_args = 0..=1, require_equals = true, default_missing_value = "0.75")]
    pub smooth: Option<f64>,
    /// Data to compare both models on; the calibration data if not given.
    #[arg(long, value_name = "DATA", num_args = 1..)]
    pub check: Vec<PathBuf>,
    /// Write nothing, and exit with 1, if an output's relative error is larger.
    #[arg(long, value_name = "X")]
    pub max_error: Option<f64>,
    /// Weights in a file of their own, OUT.onnx.data (as happens by itself near 2 GB).
    #[arg(long)]
    pub external_data: bool,
    #[command(flatten)]
    pub options: CompileArgs,
    /// Threads; as many as there are cores if not given.
    #[arg(long, default_value_t = 0)]
    pub threads: usize,
    /// One JSON document on stdout.
    #[arg(long)]
    pub json: bool,
}

/// Whether and how the forms of kernels are measured once they are compiled.
#[derive(Args, Clone)]
pub struct TuneArgs {
    /// Measure on a device which form of its kernel each launch takes best, as `kiln tune`
    /// does, before the artifact is written.
    #[arg(long)]
    pub tune: bool,
    /// A size to measure at that --dim leaves open, NAME=N. May be repeated.
    #[arg(long, value_name = "NAME=N", requires = "tune")]
    pub tune_dim: Vec<String>,
    /// The device to measure on: cuda, cuda:N, or sim, which counts instructions.
    #[arg(long, value_name = "DEVICE", default_value_t = Name::Cuda(0), requires = "tune")]
    pub tune_device: Name,
    /// How long forms are measured at most.
    #[arg(long, value_name = "SECONDS", default_value_t = tune::SECONDS, value_parser = tune::seconds, requires = "tune")]
    pub tune_seconds: f64,
}

/// How to compile.
#[derive(Args, Clone, Default)]
pub struct CompileArgs {
    /// CPU level: cpu (this machine's), x86-64-v3, x86-64-v4, both also with -vnni
    /// (products of bytes), x86-64-v4-bf16 (and of bf16); or GPU: sm_80, sm_89, sm_90a.
    /// May be repeated.
    #[arg(long)]
    pub target: Vec<String>,
    /// Fix or give a size, or how many elements the input sequence NAME has, NAME=N;
    /// of an optional input without a value, NAME=-1. May be repeated.
    #[arg(long, value_name = "NAME=N")]
    pub dim: Vec<String>,
    /// The shape of an input that declares none, NAME=D,D…: numbers and names of
    /// sizes. May be repeated.
    #[arg(long, value_name = "NAME=D,D…")]
    pub shape: Vec<String>,
    /// Make an input a constant, NAME=FILE.npy: for axes, paddings and other values
    /// that decide what is computed. May be repeated.
    #[arg(long, value_name = "NAME=FILE.npy")]
    pub freeze: Vec<String>,
    /// f32; tf32: what products read, rounded to ten bits of mantissa, for tensor cores;
    /// bf16: what products and attention read, with sums and everything between
    /// them in f32; f16: weights alone, as they are stored.
    #[arg(long)]
    pub precision: Option<String>,
    /// No rewrite that changes a result's bits.
    #[arg(long)]
    pub deterministic: bool,
    /// Verify the graph after every pass.
    #[arg(long)]
    pub verify_passes: bool,
    /// Neither read nor write the kernel cache.
    #[arg(long)]
    pub no_cache: bool,
}

/// How to run.
#[derive(Args, Clone, Default)]
pub struct RunArgs {
    /// An input, NAME=FILE.npy. May be repeated.
    #[arg(long, value_name = "NAME=FILE.npy")]
    pub input: Vec<String>,
    /// Inputs by name.
    #[arg(long, value_name = "FILE.npz")]
    pub inputs: Option<PathBuf>,
    /// Which entry point.
    #[arg(long)]
    pub entry: Option<String>,
    /// Where to run: cpu, cuda, cuda:N, sim (a PTX interpreter; --target says which code
    /// it runs).
    #[arg(long, default_value_t = Name::Cpu)]
    pub device: Name,
    /// On a GPU, start every kernel by itself, also in runs of the same kernels.
    #[arg(long)]
    pub no_graphs: bool,
    /// Threads; as many as the process may use if not given.
    #[arg(long, default_value_t = 0)]
    pub threads: usize,
    /// Keep threads on processors: auto, or a list such as 0,2-3.
    #[arg(
        long,
        value_name = "none|auto|LIST",
        default_value = "none",
        hide_default_value = true
    )]
    pub pin: Pin,
    #[arg(long)]
    pub json: bool,
}
