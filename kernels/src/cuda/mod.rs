//! Kernels for GPUs: the same problems as on the CPU, as PTX.
//!
//! A kernel's parameters are, in order: an address for each of the launch's `args`; the
//! address of the launch's status block ([`STATUS_BYTES`] bytes of zeros in device memory,
//! of which a kernel that fails sets the first four to its status); the address of global
//! scratch; and the launch's integer parameters as i64.

mod attention;
mod attention_halves;
mod block;
mod conv;
mod copies;
pub mod cost;
mod gemm;
mod group;
mod groups;
mod halves;
mod matmul;
mod nest;
mod skinny;
mod skinny_words;
mod tail;
mod vectors;
mod words;

pub(crate) use group::Group;

use crate::nest::SpecError;
use crate::{KernelSpec, Size};
use kiln_codegen::ptx::{self, Kernel};
use kiln_codegen::{Elem, Emitter, GpuTarget, Val};
use kiln_ir::Dim;

/// Bytes of a status block. Behind its first four there are zeros, which loads that are
/// not wanted read instead of memory that may not be there.
pub const STATUS_BYTES: usize = 256;

/// Threads of a block that has no reason for another number.
const THREADS: u32 = 256;

/// A kernel for a GPU: its text, and how it is launched. Dims are over `p0`, `p1` …, the
/// launch's integer parameters.
#[derive(Clone, Debug, PartialEq)]
pub struct GpuKernel {
    /// The entry's name.
    pub entry: String,
    /// The entry's text, without a module's header.
    pub body: String,
    /// Blocks.
    pub grid: [Dim; 3],
    /// Threads of a block.
    pub block: [u32; 3],
    /// Blocks of a cluster.
    pub cluster: [u32; 3],
    /// Bytes of shared memory that the launch adds.
    pub shared: u32,
    /// Bytes of global scratch that the launch needs, of any contents.
    pub scratch: Dim,
}

/// Emits a kernel for a target.
pub fn emit(spec: &KernelSpec, entry: &str, target: &GpuTarget) -> Result<GpuKernel, SpecError> {
    spec.check()?;
    match spec {
        KernelSpec::Nest(nest) => nest::emit(nest, entry, target),
        KernelSpec::MatMul(product) => Ok(matmul::emit(product, entry, target)),
        KernelSpec::Attention(attention) => attention::emit(attention, entry, target),
        KernelSpec::Conv(conv) => conv::emit(conv, entry, target),
    }
}

/// The text of a module of kernels.
pub fn module(kernels: &[GpuKernel], target: &GpuTarget) -> String {
    ptx::module(kernels.iter().map(|k| k.body.as_str()), target)
}

/// The parameters of a kernel as values.
struct Ports {
    args: Vec<Val>,
    status: Val,
    scratch: Val,
    params: Vec<Val>,
}

impl Ports {
    fn declare(e: &mut Emitter, args: usize, params: u16) -> Ports {
        let next = |e: &mut Emitter, elem| {
            let r = e.kernel_mut().param();
            e.from_long(r, elem)
        };
        Ports {
            args: (0..args).map(|_| next(e, Elem::Ptr)).collect(),
            status: next(e, Elem::Ptr),
            scratch: next(e, Elem::Ptr),
            params: (0..params).map(|_| next(e, Elem::I64)).collect(),
        }
    }
}

/// A size as a dim over a launch's parameters.
fn dim(size: Size) -> Dim {
    match size {
        Size::Const(c) => c.into(),
        Size::Param(i) => Dim::sym(format!("p{i}")),
    }
}

/// An entry for blocks of `threads` threads.
fn entry(
    name: &str,
    target: &GpuTarget,
    threads: u32,
    body: impl FnOnce(&mut Emitter),
) -> (String, u32) {
    let kernel = Emitter::on_gpu(Kernel::new(name, target, threads), body);
    let shared = kernel.static_shared();
    (kernel.finish(), shared)
}
