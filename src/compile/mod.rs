//! The compiler, readable from top to bottom: a module goes through the passes,
//! is lowered to a plan and kernels, the kernels become machine code, and all of
//! it is written as one artifact.

mod assemble;
pub mod contents;
mod control;
pub mod gpu;
pub mod group;
mod guards;
mod liveness;
pub mod lower;
pub mod objects;
pub mod scalar;

pub use assemble::{Code, assemble};
use kiln_codegen::{CodegenError, CpuTarget, GpuTarget};
use kiln_ir::Module;
use kiln_passes::{Manager, PassError, Timing, pipeline};
use kiln_runtime::Error as RuntimeError;
use lower::{LowerError, Lowered};
use std::fmt;
use std::path::Path;

/// What the compiler may be told.
#[derive(Clone, Debug)]
pub struct Options {
    /// CPU levels, best first.
    pub targets: Vec<CpuTarget>,
    /// GPU targets, besides.
    pub gpu: Vec<GpuTarget>,
    /// What passes may do.
    pub passes: kiln_passes::Options,
    /// Verify after every pass.
    pub verify: bool,
    /// How kernels are compiled.
    pub workers: objects::Workers,
    /// Told how far the long parts are: what, how many done, of how many.
    pub progress: Progress,
}

/// Hears of progress.
pub type Progress = fn(&str, usize, usize);

impl Default for Options {
    /// For the machine at hand, in this process, without a cache.
    fn default() -> Options {
        Options {
            targets: CpuTarget::host().into_iter().collect(),
            gpu: vec![],
            passes: kiln_passes::Options::default(),
            verify: cfg!(debug_assertions),
            workers: objects::Workers::default(),
            progress: |_, _, _| {},
        }
    }
}

/// Why a module did not compile.
#[derive(Clone, Debug)]
pub enum CompileError {
    /// A pass failed.
    Pass(PassError),
    /// Parts of the model have no kernel.
    Lower(Vec<LowerError>),
    /// Parts of the model have no kernel for a GPU target.
    Gpu(Vec<gpu::GpuError>),
    /// Code generation failed.
    Codegen(CodegenError),
    /// A constant could not be computed.
    Constant(String),
    /// The artifact could not be written.
    Write(RuntimeError),
}

impl fmt::Display for CompileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CompileError::Pass(e) => e.fmt(f),
            CompileError::Lower(all) => list(f, all),
            CompileError::Gpu(all) => list(f, all),
            CompileError::Codegen(e) => e.fmt(f),
            CompileError::Constant(e) => write!(f, "K0504: a constant cannot be computed: {e}"),
            CompileError::Write(e) => e.fmt(f),
        }
    }
}

/// The first of several errors.
fn list(f: &mut fmt::Formatter<'_>, all: &[impl fmt::Display]) -> fmt::Result {
    for (i, e) in all.iter().take(20).enumerate() {
        write!(f, "{}{e}", if i > 0 { "\n" } else { "" })?;
    }
    if all.len() > 20 {
        write!(f, "\nand {} more", all.len() - 20)?;
    }
    Ok(())
}

impl std::error::Error for CompileError {}

impl From<PassError> for CompileError {
    fn from(e: PassError) -> CompileError {
        CompileError::Pass(e)
    }
}

impl From<CodegenError> for CompileError {
    fn from(e: CodegenError) -> CompileError {
        CompileError::Codegen(e)
    }
}

impl From<RuntimeError> for CompileError {
    fn from(e: RuntimeError) -> CompileError {
        CompileError::Write(e)
    }
}

/// A module after all passes, with its plan and kernels.
pub struct Compiled {
    /// The module as lowered: its globals are what the plan's refer to.
    pub module: Module,
    /// The plan and the kernels.
    pub lowered: Lowered,
    /// How long each pass took.
    pub timings: Vec<Timing>,
}

/// Runs the passes and lowers.
pub fn plan(mut module: Module, options: &Options) -> Result<Compiled, CompileError> {
    let mut manager = Manager {
        verify: options.verify,
        ..Manager::default()
    };
    let mut passes = options.passes.clone();
    // One plan serves all targets, and GPUs have no kernel of transformed filters.
    passes.transformed_filters &= options.gpu.is_empty();
    passes.panels &= options.gpu.is_empty() || !options.targets.is_empty();
    manager.run(pipeline::COMPILE, &mut module, &passes)?;
    let lowered = lower::lower(&module).map_err(CompileError::Lower)?;
    Ok(Compiled {
        module,
        lowered,
        timings: manager.timings,
    })
}

/// Compiles a module and writes the artifact. Weights are streamed: no more than
/// one for each thread is in memory besides what the file maps.
pub fn compile(module: Module, options: &Options, out: &Path) -> Result<Compiled, CompileError> {
    let mut compiled = plan(module, options)?;
    write(&mut compiled, options, out)?;
    Ok(compiled)
}

/// Generates code and writes the artifact.
pub fn write(compiled: &mut Compiled, options: &Options, out: &Path) -> Result<(), CompileError> {
    // The quick one first: it may refuse.
    let gpu = (options.gpu.iter())
        .map(|target| gpu::compile(&compiled.lowered, target).map_err(CompileError::Gpu))
        .collect::<Result<Vec<_>, _>>()?;
    let mut code = vec![];
    for target in &options.targets {
        let kernels = &compiled.lowered.kernels;
        code.push(Code {
            target: target.clone(),
            objects: objects::compile(kernels, target, &options.workers, options.progress)?,
        });
    }
    assemble(compiled, &code, &gpu, options, out)
}
