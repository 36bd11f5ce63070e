//! From the text of functions to machine code: what may be asked for, and by whom it is
//! done.

#[cfg(feature = "llvm")]
#[path = "llvm.rs"]
mod backend;

use crate::CpuTarget;
use std::fmt;

/// Why code could not be generated: always a fault of Kiln's, not of the model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CodegenError {
    /// The stage.
    pub stage: &'static str,
    /// What it said.
    pub message: String,
}

impl fmt::Display for CodegenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "K0601: code generation failed in {}: {}",
            self.stage, self.message
        )
    }
}

impl std::error::Error for CodegenError {}

/// What to print of a kernel module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dump {
    /// The MLIR as built.
    Mlir,
    /// The LLVM IR after its passes.
    Llvm,
    /// Assembly.
    Asm,
}

/// What compiles: part of every cache key.
pub const COMPILER: &str = concat!(
    "llvm 22.1, kiln-codegen ",
    env!("CARGO_PKG_VERSION"),
    ", passes 1"
);

/// Compiles functions of the kernel ABI to an ELF object.
pub fn compile(functions: &[String], target: &CpuTarget) -> Result<Vec<u8>, CodegenError> {
    backend::compile(functions, target)
}

/// The text of one stage.
pub fn dump(functions: &[String], target: &CpuTarget, what: Dump) -> Result<String, CodegenError> {
    match what {
        Dump::Mlir => Ok(module_text(functions)),
        Dump::Llvm | Dump::Asm => backend::dump(functions, target, what),
    }
}

fn module_text(functions: &[String]) -> String {
    format!("module {{\n{}}}\n", functions.concat())
}

/// A build without LLVM has no code for processors.
#[cfg(not(feature = "llvm"))]
mod backend {
    use super::{CodegenError, Dump};
    use crate::CpuTarget;

    fn refuse<T>(target: &CpuTarget) -> Result<T, CodegenError> {
        Err(CodegenError {
            stage: "code emission",
            message: format!(
                "this kiln is built without LLVM, which makes code for {}: build it with the \
                 feature `llvm`, or compile for GPUs only (--target sm_80, …)",
                target.name
            ),
        })
    }

    pub(super) fn compile(_: &[String], target: &CpuTarget) -> Result<Vec<u8>, CodegenError> {
        refuse(target)
    }

    pub(super) fn dump(_: &[String], target: &CpuTarget, _: Dump) -> Result<String, CodegenError> {
        refuse(target)
    }
}
