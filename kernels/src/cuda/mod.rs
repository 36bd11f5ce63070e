//! Kernels for NVIDIA GPUs, as PTX text.

use crate::KernelSpec;
use crate::nest::SpecError;
use kiln_codegen::GpuTarget;
use kiln_ir::Dim;

/// A kernel as PTX text, and how it is launched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GpuKernel {
    /// The name of its `.entry`.
    pub entry: String,
    /// Its text, without a module's header.
    pub body: String,
    /// Blocks along x, y and z, over `p0`, `p1`, …: the launch's integer parameters.
    pub grid: [Dim; 3],
    /// Threads of a block.
    pub block: [u32; 3],
    /// Blocks of a cluster.
    pub cluster: [u32; 3],
    /// Dynamic shared memory of a block, in bytes.
    pub shared: u32,
    /// Global scratch of a launch, in bytes, over `p0`, …; it is not cleared.
    pub scratch: Dim,
}

/// The kernel of a problem; an error where there is none for a GPU.
pub fn emit(_spec: &KernelSpec, entry: &str, target: &GpuTarget) -> Result<GpuKernel, SpecError> {
    Err(SpecError(format!(
        "{entry}: there is no kernel for {} yet",
        target.name
    )))
}

/// A module of kernels: the header and their texts.
pub fn module(kernels: &[GpuKernel], target: &GpuTarget) -> String {
    let mut text = format!(
        ".version {}.{}\n.target {}\n.address_size 64\n",
        target.ptx.0, target.ptx.1, target.name
    );
    kernels.iter().for_each(|k| text += &k.body);
    text
}
