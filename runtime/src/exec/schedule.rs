//! Which forms of its kernel serve each launch of an entry under a binding of sizes, and
//! what the others lack: what a session decides as it runs, said without one.

use super::launch::{Code, Ready, each_launch, ready};
use crate::error::{Error, Result};
use crate::gpu::{Extent, GpuKernel, Unmet};
use crate::plan::{Entry, Gpu, Launch, Place, Program, Step};
use crate::tuned::Preferred;
use kiln_ir::Binding;
use std::collections::BTreeSet;
use std::sync::Arc;

/// A launch of an entry.
pub struct Scheduled<'p> {
    /// The launch.
    pub launch: &'p Launch,
    /// Its sizes; why there are none, as for those that data decides.
    pub sizes: std::result::Result<Sizes, String>,
}

/// A launch's sizes, and what they mean for each form of its kernel.
pub struct Sizes {
    /// The kernel.
    pub kernel: u32,
    /// The launch's integer parameters.
    pub params: Vec<i64>,
    /// Floating-point operations.
    pub flops: i64,
    /// Bytes read and written.
    pub bytes: i64,
    /// Of each form, its blocks and scratch, or why it does not serve this launch.
    pub forms: Vec<std::result::Result<Extent, String>>,
    /// The form that is taken where nothing was measured.
    pub first: Option<usize>,
    /// The forms that are taken on devices where that was measured to be better, by the
    /// devices' names.
    pub tuned: Vec<(String, usize)>,
}

/// Every launch of an entry, in the order of its steps, blocks included. K0732 where a
/// size of an input has no value, or a name is no size of one.
pub fn schedule<'p>(
    program: &'p Program,
    entry: usize,
    binding: &Binding,
    gpu: &'p Gpu,
) -> Result<Vec<Scheduled<'p>>> {
    let e = &program.entries[entry];
    known_sizes(e, binding)?;
    let mut out = vec![];
    each_launch(&e.steps, &mut |launch| {
        let preferred = Preferred::default();
        let code = Code {
            gpu,
            preferred: &preferred,
        };
        let sizes = ready(launch, binding, Some(code))
            .map(|r| sizes(e, launch, &r, binding, gpu))
            .map_err(|e| e.message);
        out.push(Scheduled { launch, sizes });
    });
    Ok(out)
}

/// What the launches of an entry stem from, blocks included, by their places among all.
pub(super) fn numbered_launches(steps: &[Step]) -> Vec<(usize, &str)> {
    let mut labels = vec![];
    each_launch(steps, &mut |l| labels.push((labels.len(), &l.label[..])));
    labels
}

/// The names of the sizes of an entry's inputs.
pub fn input_sizes(e: &Entry) -> BTreeSet<Arc<str>> {
    let mut names = BTreeSet::new();
    let dims = e.inputs.iter().flat_map(|port| &port.dims);
    dims.for_each(|d| d.symbols(&mut names));
    names
}

/// Whether all sizes of an entry's inputs have values, and no others are given; K0732.
pub fn known_sizes(e: &Entry, binding: &Binding) -> Result<()> {
    for port in &e.inputs {
        for d in &port.dims {
            d.eval(binding).map_err(|err| {
                Error::input("K0732", format!("input `{}`: {err}", port.name))
                    .help("give every size with --dim NAME=N")
            })?;
        }
    }
    let names = input_sizes(e);
    match binding.keys().find(|name| !names.contains(*name)) {
        None => Ok(()),
        Some(name) => {
            let names: Vec<&str> = names.iter().map(|n| &**n).collect();
            let have = match names.is_empty() {
                true => "all its sizes are fixed".into(),
                false => format!("its sizes are {}", names.join(", ")),
            };
            let message = format!("no input of @{} has the size `{name}`", e.name);
            Err(Error::input("K0732", message).help(have))
        }
    }
}

fn sizes(e: &Entry, l: &Launch, r: &Ready, binding: &Binding, gpu: &Gpu) -> Sizes {
    let all = &gpu.kernels[r.kernel as usize];
    let fit = |form| fit(form, &|arg| address(e, l, r, arg, binding), &r.params);
    let forms: Vec<_> = all.iter().map(fit).collect();
    let serves = |form: usize| forms.get(form).is_some_and(|f| f.is_ok());
    let here = |t: &&crate::tuned::Tuned| t.kernel == r.kernel && t.params == r.params;
    let tuned = gpu.tuned.iter().filter(here);
    let tuned = tuned.map(|t| (t.device.clone(), t.form as usize));
    Sizes {
        kernel: r.kernel,
        params: r.params.clone(),
        flops: r.flops,
        bytes: r.bytes,
        first: (0..forms.len()).find(|&f| serves(f)),
        tuned: tuned.filter(|t| serves(t.1)).collect(),
        forms,
    }
}

/// What of an argument's address is known without memory: its distance from a multiple of
/// 16, since every buffer begins at one but for views.
fn address(e: &Entry, l: &Launch, r: &Ready, arg: usize, binding: &Binding) -> Option<u64> {
    let mut at = *r.offsets.get(arg)?;
    let mut buffer = l.args.get(arg)?.0;
    while let Place::View { of, offset } = &e.buffers[buffer as usize].place {
        at = at.checked_add(offset.eval(binding).ok()?)?;
        buffer = *of;
    }
    Some(at.rem_euclid(16) as u64)
}

/// A form's blocks and scratch, or why it does not serve the launch.
fn fit(
    form: &GpuKernel,
    address: &dyn Fn(usize) -> Option<u64>,
    params: &[i64],
) -> std::result::Result<Extent, String> {
    if let Some(Unmet { left, right, sides }) = form.unmet(params) {
        return Err(match sides {
            Some((a, b)) => format!("{left} <= {right} does not hold: {a} > {b}"),
            None => format!("{left} <= {right} has no value"),
        });
    }
    for tile in &form.tiles {
        let arg = tile.arg as usize;
        let at = address(arg).ok_or_else(|| {
            format!("where argument {arg}, read by tiles, begins is known only as it runs")
        })?;
        let map = tile.map(at, params);
        map.map_err(|misfit| format!("argument {arg} is not read by tiles: {misfit}"))?;
    }
    form.extent(params)
}
