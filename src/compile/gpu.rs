//! Kernels for a GPU target: one module of PTX, and how each kernel is launched.

use super::lower::Lowered;
use kiln_codegen::GpuTarget;
use kiln_kernels::KernelSpec;
use kiln_kernels::cuda;
use kiln_runtime::plan::{Factors, GpuKernel, Pass, Step, Tile, Unit, Work};
use std::collections::BTreeSet;
use std::fmt;

/// PTX for one GPU target.
pub struct GpuCode {
    /// The target.
    pub target: GpuTarget,
    /// The module's text.
    pub text: String,
    /// The forms of each of the plan's kernels.
    pub kernels: Vec<Vec<GpuKernel>>,
}

/// A kernel that has no form for a GPU target.
#[derive(Clone, Debug)]
pub struct GpuError {
    /// The target.
    pub target: String,
    /// The kernel's symbol.
    pub kernel: String,
    /// What its launches stem from.
    pub labels: Vec<String>,
    /// Why there is none.
    pub message: String,
}

// What the runtime gives a launch is what kernels read.
const _: () = assert!(cuda::STATUS_BYTES == kiln_runtime::gpu::STATUS_BYTES);

/// Labels that an error names.
const NAMED: usize = 4;

impl fmt::Display for GpuError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown: Vec<String> = self
            .labels
            .iter()
            .take(NAMED)
            .map(|l| format!("`{l}`"))
            .collect();
        write!(
            f,
            "K0505: {} on {}: {}",
            self.kernel, self.target, self.message
        )?;
        if !shown.is_empty() {
            write!(f, "; it computes {}", shown.join(", "))?;
        }
        match self.labels.len().saturating_sub(NAMED) {
            0 => Ok(()),
            more => write!(f, " and {more} more"),
        }
    }
}

impl std::error::Error for GpuError {}

/// Emits every kernel of a plan for a target; all those that have no form for it.
pub fn compile(lowered: &Lowered, target: &GpuTarget) -> Result<GpuCode, Vec<GpuError>> {
    let (mut emitted, mut errors) = (vec![], vec![]);
    for (i, (symbol, spec)) in lowered.kernels.iter().enumerate() {
        match cuda::emit(spec, symbol, target) {
            Ok(forms) => emitted.push(forms),
            Err(e) => errors.push(GpuError {
                target: target.name.clone(),
                kernel: symbol.clone(),
                labels: labels(lowered, i as u32),
                message: e.0,
            }),
        }
    }
    if !errors.is_empty() {
        return Err(errors);
    }
    let selections = lowered.selections.iter();
    emitted.extend(selections.map(|(symbol, spec)| cuda::emit_sort(spec, symbol, target)));
    let text = cuda::module(emitted.iter().flatten(), target);
    // Selections, which come last, are no problem of the kernel families.
    let specs = lowered.kernels.iter().map(|k| Some(&k.1));
    let specs = specs.chain(std::iter::repeat(None));
    let planned = |(spec, forms): (Option<&KernelSpec>, Vec<cuda::GpuKernel>)| {
        let work = |k: &cuda::GpuKernel| spec.map_or_else(Work::default, |s| work(s, k));
        forms.into_iter().map(|k| planned(work(&k), k)).collect()
    };
    Ok(GpuCode {
        target: target.clone(),
        text,
        kernels: specs.zip(emitted).map(planned).collect(),
    })
}

/// What a form's time is predicted from.
fn work(spec: &KernelSpec, k: &cuda::GpuKernel) -> Work {
    Work {
        unit: match k.unit {
            cuda::Unit::Lanes => Unit::Lanes,
            cuda::Unit::Mma => Unit::Mma,
            cuda::Unit::Wgmma => Unit::Wgmma,
        },
        factors: match cuda::cost::factors(spec) {
            cuda::cost::Factors::Halves => Factors::Halves,
            cuda::cost::Factors::Tf32 => Factors::Tf32,
            cuda::cost::Factors::Eights => Factors::Eights,
            cuda::cost::Factors::Bytes => Factors::Bytes,
        },
        rows: cuda::cost::few_rows(spec, k).map(|(n, height)| (n, height as u32)),
        parts: k.parts.clone(),
    }
}

/// A form as plans have it.
fn planned(work: Work, k: cuda::GpuKernel) -> GpuKernel {
    let tile = |t: cuda::Tile| Tile {
        arg: t.arg.into(),
        dtype: t.dtype,
        sizes: t.sizes,
        strides: t.strides,
        tile: t.tile,
    };
    let then = k.then.clone();
    let pass = |k: cuda::GpuKernel| Pass {
        entry: k.entry,
        grid: k.grid,
        block: k.block,
        cluster: k.cluster,
        shared: k.shared,
        work: k.work,
    };
    GpuKernel {
        when: k.when.clone(),
        tiles: k.tiles.iter().cloned().map(tile).collect(),
        scratch: k.scratch.clone(),
        work,
        passes: [k].into_iter().chain(then).map(pass).collect(),
    }
}

/// What the launches of a kernel stem from, each once.
fn labels(lowered: &Lowered, kernel: u32) -> Vec<String> {
    let mut seen = BTreeSet::new();
    for e in &lowered.program.entries {
        walk(&e.steps, kernel, &mut seen);
    }
    seen.into_iter().collect()
}

fn walk(steps: &[Step], kernel: u32, seen: &mut BTreeSet<String>) {
    for step in steps {
        match step {
            Step::Launch(l) | Step::TopK { launch: l, .. }
                if l.variants.iter().any(|v| v.kernel == kernel) =>
            {
                seen.insert(l.label.clone());
            }
            Step::If {
                then, otherwise, ..
            } => {
                walk(then, kernel, seen);
                walk(otherwise, kernel, seen);
            }
            Step::Loop(l) => walk(&l.body, kernel, seen),
            Step::Launch(_)
            | Step::WriteDims { .. }
            | Step::Copy { .. }
            | Step::BindDim { .. }
            | Step::SetDims { .. }
            | Step::Check { .. }
            | Step::Repack { .. }
            | Step::NonZero { .. }
            | Step::TopK { .. }
            | Step::Strings { .. }
            | Step::SplitStrings { .. } => {}
        }
    }
}
