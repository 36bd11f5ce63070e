//! Kernels for GPUs: the same problems as on the CPU, as PTX.
//!
//! A kernel's parameters are, in order: an address for each of the launch's `args`; the
//! address of the launch's status block ([`STATUS_BYTES`] bytes of zeros in device memory,
//! of which a kernel that fails sets the first four to its status); the address of global
//! scratch; the launch's integer parameters as i64; and the tensor maps of its tiles.

mod apart;
mod attention;
mod attention_copies;
mod attention_few;
mod attention_groups;
mod attention_halves;
mod attention_products;
mod attention_rows;
mod attention_split;
mod attention_tiles;
mod block;
mod blocks;
mod blocks_element;
mod blocks_groups;
mod blocks_lanes;
mod blocks_thin;
mod blocks_wide;
mod conv;
mod copies;
pub mod cost;
mod gemm;
mod group;
mod groups;
mod halves;
mod matmul;
mod nest;
mod panels;
mod parts;
mod points;
mod scan;
mod skinny;
mod skinny_lanes;
mod skinny_words;
mod sort;
mod sort_rows;
mod split;
mod tail;
mod thin;
mod tiles;
mod vectors;
mod words;

pub(crate) use group::Group;
pub use sort::{SortSpec, emit_sort};

use crate::nest::SpecError;
use crate::{KernelSpec, Size};
use kiln_codegen::ptx::{self, Kernel};
use kiln_codegen::{Elem, Emitter, GpuTarget, Val};
use kiln_ir::{Binding, DType, Dim, Tri};

/// Bytes of a status block. Behind its first four there are zeros, which loads that are
/// not wanted read instead of memory that may not be there.
pub const STATUS_BYTES: usize = 256;

/// Threads of a block that has no reason for another number.
const THREADS: u32 = 256;

/// A kernel for a GPU: its text, and how it is launched. Dims are over `p0`, `p1` …, the
/// launch's integer parameters.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GpuKernel {
    /// The entry's name.
    pub entry: String,
    /// The entry's text, without a module's header.
    pub body: String,
    /// The lowest PTX version that has its instructions, where that of its target is lower.
    pub ptx: (u32, u32),
    /// What it asks of the parameters: left ≤ right.
    pub when: Vec<(Dim, Dim)>,
    /// The arguments that it reads by tiles.
    pub tiles: Vec<Tile>,
    /// Blocks.
    pub grid: [Dim; 3],
    /// Threads of a block.
    pub block: [u32; 3],
    /// Blocks of a cluster.
    pub cluster: [u32; 3],
    /// What multiplies.
    pub unit: Unit,
    /// Rows that a block multiplies whether they exist or not, of a kernel for few of them.
    pub height: Option<i64>,
    /// Parts that the clusters work off in turn; none: each block has its own.
    pub parts: Option<Dim>,
    /// Bytes of shared memory that the launch adds.
    pub shared: u32,
    /// Bytes of global scratch that the launch needs, of any contents.
    pub scratch: Dim,
    /// Arithmetic operations and bytes of this launch, where the launches of a form share
    /// the problem's otherwise than that the first one has it all.
    pub work: Option<(Dim, Dim)>,
    /// What is launched after it, with the same parameters.
    pub then: Vec<GpuKernel>,
}

/// What of a multiprocessor does a kernel's arithmetic.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Unit {
    /// Lanes.
    #[default]
    Lanes,
    /// Tensor cores by `mma.sync`.
    Mma,
    /// Tensor cores by `wgmma`.
    Wgmma,
}

/// How a kernel reads an argument by tiles, which the tensor memory accelerator copies to
/// shared memory: what a tensor map says (PTX ISA, "Tensors"). Dimensions go from the
/// innermost one out, whose neighbours are next to each other in memory.
#[derive(Clone, Debug, PartialEq)]
pub struct Tile {
    /// The argument.
    pub arg: u16,
    /// Its elements' type.
    pub dtype: DType,
    /// Elements along each dimension, 2 to 5 of them.
    pub sizes: Vec<Dim>,
    /// Elements between neighbours along each dimension but the first.
    pub strides: Vec<Dim>,
    /// Elements of a tile along each dimension; those of the first are 128 bytes, the
    /// width of the swizzle.
    pub tile: Vec<u32>,
}

/// Emits a kernel for a target: its forms, of which a launch takes the first one whose
/// conditions hold and whose tiles start and end at multiples of 16 bytes. The last form
/// has the given name and serves every launch.
pub fn emit(
    spec: &KernelSpec,
    entry: &str,
    target: &GpuTarget,
) -> Result<Vec<GpuKernel>, SpecError> {
    spec.check()?;
    match spec {
        KernelSpec::Nest(nest) => Ok(nest::emit(nest, entry, target)),
        KernelSpec::MatMul(product) => Ok(matmul::emit(product, entry, target)),
        KernelSpec::Attention(attention) => attention::emit(attention, entry, target),
        KernelSpec::Conv(conv) => Ok(vec![conv::emit(conv, entry, target)?]),
    }
}

/// The form that a launch with these parameters takes, if addresses are multiples of 16
/// bytes.
pub fn form<'a>(forms: &'a [GpuKernel], params: &[i64]) -> Option<&'a GpuKernel> {
    let names = (0..).map(|i| format!("p{i}").into());
    let binding: Binding = names.zip(params.iter().copied()).collect();
    let value = |d: &Dim| d.eval(&binding).ok();
    forms.iter().find(|form| {
        let holds = |(a, b): &(Dim, Dim)| value(a).zip(value(b)).is_some_and(|(a, b)| a <= b);
        let apart = |t: &Tile, d: &Dim| {
            let bytes = |n: i64| n.checked_mul(t.dtype.size().unwrap_or(1) as i64);
            let bytes = value(d).and_then(bytes);
            bytes.is_some_and(|n| (16..1 << 40).contains(&n) && n % 16 == 0)
        };
        let some = |d: &Dim| value(d).is_some_and(|n| (1..=i32::MAX as i64).contains(&n));
        let tiled = |t: &Tile| t.sizes.iter().all(some) && t.strides.iter().all(|d| apart(t, d));
        form.when.iter().all(holds) && form.tiles.iter().all(tiled)
    })
}

/// The text of a module of kernels.
pub fn module<'a>(kernels: impl IntoIterator<Item = &'a GpuKernel>, target: &GpuTarget) -> String {
    let kernels: Vec<&GpuKernel> = (kernels.into_iter())
        .flat_map(|k| [k].into_iter().chain(&k.then))
        .collect();
    let mut target = target.clone();
    target.ptx = (kernels.iter()).fold(target.ptx, |v, k| v.max(k.ptx));
    ptx::module(kernels.iter().map(|k| k.body.as_str()), &target)
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

/// Asks that left ≤ right; none where that can never be, and nothing where it always is.
fn ask(when: &mut Vec<(Dim, Dim)>, left: &Dim, right: &Dim) -> Option<()> {
    match left.le(right) {
        Tri::Yes => {}
        Tri::No => return None,
        Tri::Unknown => when.push((left.clone(), right.clone())),
    }
    Some(())
}

/// The name of a form of a kernel.
fn entry_of(name: &str, form: &str) -> String {
    format!("{name}_{form}")
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
