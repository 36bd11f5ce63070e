//! One type for every family's problem, and their way to object code.

use crate::attention::AttentionSpec;
use crate::conv::ConvSpec;
use crate::matmul::{Columns, MatMulSpec};
use crate::nest::{LoopNest, SpecError};
use kiln_codegen::{CodegenError, CpuTarget, Dump};
use kiln_ir::Dim;
use serde::{Deserialize, Serialize};
use std::hash::{DefaultHasher, Hash, Hasher};

/// The problem that a kernel solves.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KernelSpec {
    /// Maps, reductions, scans, gathers, scatters.
    Nest(LoopNest),
    /// Contractions.
    MatMul(MatMulSpec),
    /// Convolutions.
    Conv(ConvSpec),
    /// Attention.
    Attention(AttentionSpec),
}

impl KernelSpec {
    /// Checks that every reference exists and every type agrees.
    pub fn check(&self) -> Result<(), SpecError> {
        match self {
            KernelSpec::Nest(s) => s.check(),
            KernelSpec::MatMul(s) => s.check(),
            KernelSpec::Conv(s) => s.check(),
            KernelSpec::Attention(s) => s.check(),
        }
    }

    /// Work units of a launch with these parameters.
    pub fn tiles(&self, params: &[Dim]) -> Dim {
        match self {
            KernelSpec::Nest(s) => s.tiles(params),
            KernelSpec::MatMul(s) => s.tiles(params),
            KernelSpec::Conv(s) => s.tiles(params),
            KernelSpec::Attention(s) => s.tiles(params),
        }
    }

    /// Scratch bytes that each thread of a launch needs, aligned to 64.
    pub fn scratch_bytes(&self, params: &[Dim]) -> Dim {
        match self {
            KernelSpec::Nest(s) => s.scratch_bytes(params),
            KernelSpec::MatMul(s) => s.scratch_bytes(params),
            KernelSpec::Conv(s) => s.scratch_bytes(params),
            KernelSpec::Attention(s) => s.scratch_bytes(params),
        }
    }

    /// Arithmetic operations and bytes moved by a launch.
    pub fn cost(&self, params: &[Dim]) -> (Dim, Dim) {
        match self {
            KernelSpec::Nest(s) => s.cost(params),
            KernelSpec::MatMul(s) => s.cost(params),
            KernelSpec::Conv(s) => s.cost(params),
            KernelSpec::Attention(s) => s.cost(params),
        }
    }

    /// What the kernel is made of: equal identities are equal code. The
    /// compiler's version and the target are part of it.
    pub fn identity(&self, target: &CpuTarget) -> u64 {
        // SipHash with fixed keys: the same in every process.
        let mut h = DefaultHasher::new();
        (env!("CARGO_PKG_VERSION"), EMITTER_VERSION, target, self).hash(&mut h);
        h.finish()
    }

    fn emit(&self, symbol: &str, target: &CpuTarget) -> Result<String, CodegenError> {
        let refuse = |e: SpecError| CodegenError {
            stage: "kernel check",
            message: format!("{symbol}: {e}"),
        };
        self.check().map_err(refuse)?;
        match self {
            KernelSpec::Nest(s) => crate::emit_nest::emit(symbol, s, target).map_err(refuse),
            KernelSpec::MatMul(s) if matches!(s.b, Columns::Blocks(_)) => Err(refuse(SpecError(
                "quantized blocks have kernels for GPUs alone".into(),
            ))),
            KernelSpec::MatMul(s) => Ok(s.emit(symbol, target)),
            KernelSpec::Conv(s) => Ok(s.emit(symbol, target)),
            KernelSpec::Attention(s) => Ok(s.emit(symbol, target)),
        }
    }
}

/// Counts up when emitted code changes, so that caches do not serve old code.
const EMITTER_VERSION: u32 = 4;

/// Compiles kernels to one ELF object, a symbol each.
pub fn compile_object(
    kernels: &[(String, KernelSpec)],
    target: &CpuTarget,
) -> Result<Vec<u8>, CodegenError> {
    kiln_codegen::compile(&functions(kernels, target)?, target)
}

/// The text of one stage of the same compilation.
pub fn dump(
    kernels: &[(String, KernelSpec)],
    target: &CpuTarget,
    what: Dump,
) -> Result<String, CodegenError> {
    kiln_codegen::dump(&functions(kernels, target)?, target, what)
}

fn functions(
    kernels: &[(String, KernelSpec)],
    target: &CpuTarget,
) -> Result<Vec<String>, CodegenError> {
    kernels
        .iter()
        .map(|(symbol, spec)| spec.emit(symbol, target))
        .collect()
}
