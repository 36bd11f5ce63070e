//! The pass manager: runs a list of passes over every function of a module and
//! owns timing, dumps, early stops and verification.

use kiln_ir::{Globals, Graph, Module, TypeError};
use std::fmt;
use std::time::{Duration, Instant};

/// Whether a pass changed the graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Changed {
    /// It did.
    Yes,
    /// It left everything as it was.
    No,
}

impl Changed {
    /// Yes if either is.
    pub fn or(self, other: Changed) -> Changed {
        if self == Changed::Yes { self } else { other }
    }
}

impl From<bool> for Changed {
    fn from(changed: bool) -> Changed {
        if changed { Changed::Yes } else { Changed::No }
    }
}

/// What products of f32 read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    /// f32.
    F32,
    /// f32 rounded to ten bits of mantissa.
    Tf32,
    /// bf16.
    Bf16,
    /// Weights of f16, computed in f32.
    F16,
}

impl Precision {
    /// Every precision.
    pub const ALL: [Precision; 4] = [
        Precision::F32,
        Precision::Tf32,
        Precision::Bf16,
        Precision::F16,
    ];

    /// The name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Precision::F32 => "f32",
            Precision::Tf32 => "tf32",
            Precision::Bf16 => "bf16",
            Precision::F16 => "f16",
        }
    }

    /// The precision of this name.
    pub fn from_name(name: &str) -> Option<Precision> {
        Precision::ALL.into_iter().find(|p| p.name() == name)
    }
}

/// What every pass may know of the compilation.
#[derive(Clone, Debug)]
pub struct Options {
    /// No rewrite may change a result's bits.
    pub exact: bool,
    /// Panel width of packed matmul weights, in columns.
    pub panel: usize,
    /// What products read.
    pub precision: Precision,
    /// Whether weights lie in panels, as processors' kernels read them. Else those of f16, tf32, f8,
    /// bf16 and bytes lie by columns, neighbours along the summed axis together.
    pub panels: bool,
    /// Whether every target has kernels of transformed filters (Winograd).
    pub transformed_filters: bool,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            exact: false,
            panel: 64,
            precision: Precision::F32,
            panels: true,
            transformed_filters: true,
        }
    }
}

/// What a pass works with besides its graph.
pub struct PassCx<'a> {
    /// The module's globals; passes may add constants.
    pub globals: &'a mut Globals,
    /// The compilation's options.
    pub options: &'a Options,
    /// The module's other functions.
    pub functions: &'a [Graph],
}

/// Why a pass gave up.
#[derive(Clone, Debug)]
pub struct PassError {
    /// The pass.
    pub pass: &'static str,
    /// The function it worked on.
    pub function: String,
    /// What happened.
    pub message: String,
}

impl fmt::Display for PassError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "K0401: pass `{}` on @{}: {}",
            self.pass, self.function, self.message
        )
    }
}

impl std::error::Error for PassError {}

impl From<TypeError> for PassError {
    /// A pass built a node that does not type; the manager adds pass and place.
    fn from(e: TypeError) -> PassError {
        PassError {
            pass: "",
            function: String::new(),
            message: e.0,
        }
    }
}

/// A pass: its name and its function.
#[derive(Clone, Copy)]
pub struct Pass {
    /// The name for the command line; dashes between words.
    pub name: &'static str,
    /// What it does.
    pub run: fn(&mut PassCx, &mut Graph) -> Result<Changed, PassError>,
}

/// How long one pass took on one function.
#[derive(Clone, Debug)]
pub struct Timing {
    /// The pass.
    pub pass: &'static str,
    /// The function.
    pub function: String,
    /// Wall time.
    pub time: Duration,
    /// Whether it changed the graph.
    pub changed: Changed,
    /// Nodes after it.
    pub nodes: usize,
}

/// Looks at a graph that a pass has just changed.
pub type OnChange<'a> = dyn FnMut(&'static str, &Graph) + 'a;

/// Runs passes in order.
#[derive(Default)]
pub struct Manager<'a> {
    /// Verify every function after every pass that changed it.
    pub verify: bool,
    /// Stop after the first pass of this name.
    pub stop_after: Option<String>,
    /// Called after every change.
    pub on_change: Option<Box<OnChange<'a>>>,
    /// One entry per pass and function that ran.
    pub timings: Vec<Timing>,
}

impl Manager<'_> {
    /// Runs the passes over every function of the module.
    pub fn run(
        &mut self,
        passes: &[Pass],
        module: &mut Module,
        options: &Options,
    ) -> Result<Changed, PassError> {
        let mut changed = Changed::No;
        for pass in passes {
            changed = changed.or(self.run_one(pass, module, options)?);
            if self.stop_after.as_deref() == Some(pass.name) {
                break;
            }
        }
        Ok(changed)
    }

    fn run_one(
        &mut self,
        pass: &Pass,
        module: &mut Module,
        options: &Options,
    ) -> Result<Changed, PassError> {
        let mut any = Changed::No;
        for index in 0..module.functions.len() {
            let start = Instant::now();
            let name = module.functions[index].name.to_string();
            // Taken out while it is worked on, so that the pass can read the others.
            let mut graph = std::mem::replace(&mut module.functions[index], Graph::new(""));
            let mut cx = PassCx {
                globals: &mut module.globals,
                options,
                functions: &module.functions,
            };
            let done = (pass.run)(&mut cx, &mut graph);
            module.functions[index] = graph;
            let changed = done.map_err(|e| PassError {
                pass: pass.name,
                function: name.clone(),
                ..e
            })?;
            let graph = &module.functions[index];
            let nodes = graph.nodes_in_order().len();
            self.timings.push(Timing {
                pass: pass.name,
                function: name.clone(),
                time: start.elapsed(),
                changed,
                nodes,
            });
            any = any.or(changed);
            if changed == Changed::Yes {
                if let Some(look) = &mut self.on_change {
                    look(pass.name, graph);
                }
                if self.verify {
                    verify_after(pass.name, module, &name)?;
                }
            }
        }
        Ok(any)
    }
}

/// A verifier failure names the pass that broke the invariant.
fn verify_after(pass: &'static str, module: &Module, function: &str) -> Result<(), PassError> {
    let errors = kiln_ir::verify::verify_module(module);
    match errors.first() {
        None => Ok(()),
        Some(first) => Err(PassError {
            pass,
            function: function.to_string(),
            message: format!("broke an invariant ({} in all): {first}", errors.len()),
        }),
    }
}
