//! Launches: their sizes evaluated, and run by the pool.

use super::bind::holds;
use super::layout::memory;
use super::steps::Run;
use crate::error::{Error, Result};
use crate::gpu::Extent;
use crate::memory::Block;
use crate::plan::{Gpu, GpuKernel, Launch, Step};
use crate::tuned::Preferred;
use kiln_ir::{Binding, Dim};

/// Work below this (floating-point operations plus bytes) is done by one thread.
const SERIAL_WORK: i64 = 60_000;

/// A launch with its sizes evaluated.
pub(super) struct Ready {
    pub(super) kernel: u32,
    pub(super) params: Vec<i64>,
    tiles: i64,
    scratch: usize,
    pub(super) offsets: Vec<i64>,
    work: i64,
    pub(super) flops: i64,
    pub(super) bytes: i64,
    /// Forms for a device, by number, with their blocks and scratch: the ones to be tried
    /// in order, of which the last one asks for no tiles; what is wrong, and so without a
    /// device.
    pub(super) forms: std::result::Result<Vec<(u32, Extent)>, String>,
}

/// The code that launches of a device take, and the forms that they try first.
#[derive(Clone, Copy)]
pub(super) struct Code<'a> {
    pub(super) gpu: &'a Gpu,
    pub(super) preferred: &'a Preferred,
}

/// The steps inside a step, in the order in which launches are counted.
fn inside(step: &Step) -> [&[Step]; 2] {
    match step {
        Step::If {
            then, otherwise, ..
        } => [then, otherwise],
        Step::Loop(l) => [&l.body, &[]],
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
        | Step::SplitStrings { .. } => [&[], &[]],
    }
}

/// Calls `f` with every launch, also those inside branches and loops.
pub(super) fn each_launch<'a>(steps: &'a [Step], f: &mut dyn FnMut(&'a Launch)) {
    for step in steps {
        if let Step::Launch(l) | Step::TopK { launch: l, .. } = step {
            f(l);
        }
        inside(step).into_iter().for_each(|s| each_launch(s, f));
    }
}

/// Bytes of scratch that a thread needs for launches whose sizes are known.
pub(super) fn max_scratch(steps: &[Step], binding: &Binding) -> usize {
    let mut most = 64;
    each_launch(steps, &mut |l| {
        let sizes = l.variants.iter().map(|v| v.scratch.eval(binding));
        let known = sizes.map(|n| n.unwrap_or(0).max(0) as usize);
        most = known.fold(most, usize::max);
    });
    most
}

/// The launches in order, with their sizes where those are known.
pub(super) fn prepare(
    steps: &[Step],
    binding: &Binding,
    code: Option<Code>,
    out: &mut Vec<Option<Ready>>,
) {
    each_launch(steps, &mut |l| out.push(ready(l, binding, code).ok()));
}

/// What the launch at this place among all of them stems from.
pub(super) fn label(steps: &[Step], index: usize) -> Option<&str> {
    let mut labels = vec![];
    each_launch(steps, &mut |l| labels.push(&l.label[..]));
    labels.get(index).copied()
}

pub(super) fn count_launches(steps: &[Step]) -> usize {
    let mut count = 0;
    each_launch(steps, &mut |_| count += 1);
    count
}

/// A launch's sizes; `code` is what runs, if it runs on a device.
pub(super) fn ready(l: &Launch, binding: &Binding, code: Option<Code>) -> Result<Ready> {
    let value = |d: &Dim| {
        d.eval(binding)
            .map_err(|e| Error::run("K0720", format!("{}: {e}", l.label)))
    };
    for v in &l.variants {
        let mut fits = true;
        for g in &v.guards {
            fits &= holds(g, binding)?;
        }
        if fits {
            let (flops, bytes) = (value(&l.flops)?, value(&l.bytes)?);
            let params = v.params.iter().map(value).collect::<Result<Vec<i64>>>()?;
            let forms = match code {
                Some(code) => {
                    let first = code.preferred.first(v.kernel, &params);
                    forms(&code.gpu.kernels[v.kernel as usize], &params, first)
                }
                None => Err(String::new()),
            };
            return Ok(Ready {
                kernel: v.kernel,
                params,
                forms,
                tiles: value(&v.tiles)?,
                scratch: usize::try_from(value(&v.scratch)?).unwrap_or(0),
                offsets: l.args.iter().map(|a| value(&a.1)).collect::<Result<_>>()?,
                work: flops.saturating_add(bytes),
                flops,
                bytes,
            });
        }
    }
    Err(Error::run(
        "K0720",
        format!("{}: no kernel serves these sizes", l.label),
    ))
}

/// The forms of a kernel that serve a launch with these parameters, in the plan's order;
/// what is wrong with the last one where none has a grid.
pub(super) fn serving(
    all: &[GpuKernel],
    params: &[i64],
) -> std::result::Result<Vec<(u32, Extent)>, String> {
    let mut out = vec![];
    for (i, form) in (0..).zip(all).filter(|(_, form)| form.serves(params)) {
        match form.extent(params) {
            Ok(extent) => out.push((i, extent)),
            Err(what) if i as usize + 1 == all.len() && out.is_empty() => return Err(what),
            Err(_) => continue,
        }
    }
    Ok(out)
}

/// Those that a launch tries in turn: the `first` ones, then the plan's order as far as a
/// form that asks for no tiles.
fn forms(
    all: &[GpuKernel],
    params: &[i64],
    first: &[u32],
) -> std::result::Result<Vec<(u32, Extent)>, String> {
    let serving = serving(all, params)?;
    let certain = |(i, _): &(u32, Extent)| all[*i as usize].tiles.is_empty();
    let end = serving.iter().position(certain);
    let end = end.map_or(serving.len(), |i| i + 1);
    let preferred = first
        .iter()
        .filter_map(|f| serving.iter().find(|s| s.0 == *f));
    let rest = serving[..end].iter().filter(|s| !first.contains(&s.0));
    Ok(preferred.chain(rest).cloned().collect())
}

impl Run<'_> {
    pub(super) fn launch(&mut self, l: &Launch, r: &Ready, index: usize) -> Result<()> {
        if self.device.is_some() {
            return self.launch_on_device(l, r, index);
        }
        // Sizes that came up during the run may ask for more than was planned.
        if self.scratch.iter().any(|s| s.len() < r.scratch) {
            for s in self.scratch.iter_mut() {
                *s = memory(r.scratch)?;
            }
        }
        let mut args = [std::ptr::null_mut::<u8>(); 256];
        for (slot, ((buffer, _), offset)) in args.iter_mut().zip(l.args.iter().zip(&r.offsets)) {
            // SAFETY: lowering keeps offsets inside their buffer.
            *slot = unsafe { self.pointer(*buffer)?.offset(*offset as isize) };
        }
        let kernel = self.model.kernels[r.kernel as usize];
        struct Shared(*const *mut u8, *const i64, Vec<*mut u8>);
        // SAFETY: kernels write disjoint parts per tile, and scratch is per thread.
        unsafe impl Sync for Shared {}
        let shared = Shared(
            args.as_ptr(),
            r.params.as_ptr(),
            self.scratch.iter().map(Block::ptr).collect(),
        );
        let shared = &shared;
        let watch = self.watch();
        let status = self
            .pool
            .run(r.tiles, r.work < SERIAL_WORK, &|thread, begin, end| {
                // SAFETY: the arguments are what lowering planned for this kernel.
                let run = || unsafe { kernel(shared.0, shared.1, begin, end, shared.2[thread]) };
                match &watch {
                    Some(w) => w.units(thread, end - begin, run),
                    None => run(),
                }
            });
        let name = &self.model.program().kernels[r.kernel as usize];
        self.note(watch, &l.label, name, r.flops, r.bytes);
        match status {
            0 => Ok(()),
            code => Err(status_error(code, &l.label)),
        }
    }
}

/// What a kernel's status other than 0 says.
pub(super) fn status_error(status: i32, label: &str) -> Error {
    match status {
        1 => Error::run("K0723", format!("an index is out of range in {label}"))
            .help("check the values of integer inputs against the sizes of what they index"),
        2 => Error::run("K0723", format!("a division by zero in {label}")),
        n => Error::run(
            "K0724",
            format!("a kernel gave up with status {n} in {label}"),
        ),
    }
}
