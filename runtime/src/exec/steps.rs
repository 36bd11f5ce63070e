//! The steps of one run, in order.

use super::Model;
use super::bind::check_guards;
use super::device::DeviceRun;
use super::launch::{Ready, count_launches, ready};
use super::layout::{MAX_BYTES, memory, too_large};
use crate::error::{Error, Result};
use crate::memory::Block;
use crate::plan::{Entry, Launch, Place, Step};
use crate::pool::Pool;
use crate::profile::{Facts, Profile, Watch};
use crate::strings::Table;
use kiln_ir::{Binding, Dim};
use std::sync::atomic::{AtomicBool, Ordering};

/// What the steps of one run share.
pub(crate) struct Run<'a> {
    pub(crate) model: &'a Model,
    pub(super) entry: &'a Entry,
    pub(crate) pool: &'a mut Pool,
    pub(super) scratch: &'a mut Vec<Block>,
    pub(super) base: Vec<*mut u8>,
    pub(crate) sizes: Vec<Option<usize>>,
    pub(super) dynamic: Vec<Option<Block>>,
    pub(crate) binding: Binding,
    pub(super) ready: &'a [Option<Ready>],
    pub(crate) cancel: &'a AtomicBool,
    pub(crate) profile: Option<&'a mut Profile>,
    pub(crate) strings: &'a mut Table,
    /// Where kernels run, if not here.
    pub(super) device: Option<DeviceRun<'a>>,
}

impl Run<'_> {
    /// Runs steps; `launch` counts the launches before them.
    pub(super) fn steps(&mut self, steps: &[Step], launch: &mut usize) -> Result<()> {
        match self.device.is_some() {
            true => self.device_steps(steps, launch),
            false => self.one_by_one(steps, launch),
        }
    }

    /// The same, each step by itself.
    pub(super) fn one_by_one(&mut self, steps: &[Step], launch: &mut usize) -> Result<()> {
        for step in steps {
            if self.cancel.load(Ordering::Relaxed) {
                return Err(Error::run("K0721", "the run was cancelled"));
            }
            if self.device.is_some() {
                self.cross(step)?;
            }
            match step {
                Step::Launch(l) => {
                    let index = *launch;
                    *launch += 1;
                    self.start(l, index)?;
                }
                Step::WriteDims { to, values } => {
                    let at = self.pointer(*to)?.cast::<i64>();
                    for (i, d) in values.iter().enumerate() {
                        let v = d
                            .eval(&self.binding)
                            .map_err(|e| Error::run("K0720", e.to_string()))?;
                        // SAFETY: lowering gives the buffer eight bytes a value.
                        unsafe { at.add(i).write_unaligned(v) };
                    }
                }
                Step::Copy { from, to, bytes } => self.copy(*from, *to, bytes)?,
                Step::BindDim { symbol, from, max } => {
                    let n = self.read_i64(*from)?;
                    let limit = match max {
                        Some(d) => d.eval(&self.binding).unwrap_or(i64::MAX),
                        None => i64::MAX,
                    };
                    if n < 0 || n > limit {
                        return Err(Error::run(
                            "K0722",
                            format!("the size `{symbol}` would be {n}, outside 0..={limit}"),
                        ));
                    }
                    self.binding.insert(symbol.as_str().into(), n);
                }
                Step::SetDims { sizes } => self.set_dims(sizes)?,
                Step::Check { guards } => check_guards(guards, &self.binding)?,
                Step::Repack {
                    from,
                    to,
                    dtype,
                    count,
                    pack,
                } => self.repack(*from, *to, *dtype, count, *pack)?,
                Step::NonZero {
                    from,
                    dtype,
                    dims,
                    to,
                    symbol,
                } => self.nonzero(*from, *dtype, dims, *to, symbol)?,
                Step::TopK { launch: l, .. } => {
                    let index = *launch;
                    *launch += 1;
                    let selection = self.selection(step)?;
                    match self.device.is_some() {
                        true => self.start(l, index)?,
                        false => self.top_k(&selection)?,
                    }
                }
                Step::Strings { .. } | Step::SplitStrings { .. } => self.string_step(step)?,
                Step::If {
                    cond,
                    then,
                    otherwise,
                } => {
                    // SAFETY: a bool scalar has one byte.
                    let yes = unsafe { self.pointer(*cond)?.read() } != 0;
                    if yes {
                        self.steps(then, launch)?;
                        *launch += count_launches(otherwise);
                    } else {
                        *launch += count_launches(then);
                        self.steps(otherwise, launch)?;
                    }
                }
                Step::Loop(l) => self.run_loop(l, launch)?,
            }
        }
        Ok(())
    }

    /// Starts the launch at this place among all of the entry's.
    fn start(&mut self, l: &Launch, index: usize) -> Result<()> {
        match self.ready.get(index).and_then(Option::as_ref) {
            // SAFETY of lifetimes: `ready` outlives the run.
            Some(r) => self.launch(l, r, index),
            None => {
                let late = self.device.as_mut().and_then(|d| d.late.remove(&index));
                let r = match late {
                    Some(r) => r,
                    None => ready(l, &self.binding, self.device_code())?,
                };
                self.launch(l, &r, index)
            }
        }
    }

    /// Where a buffer is; buffers of late sizes get memory here.
    pub(crate) fn pointer(&mut self, buffer: u32) -> Result<*mut u8> {
        let i = buffer as usize;
        if !self.base[i].is_null() {
            return Ok(self.base[i]);
        }
        match &self.entry.buffers[i].place {
            Place::View { of, offset } => {
                let from = self.pointer(*of)?;
                let o = offset
                    .eval(&self.binding)
                    .map_err(|e| Error::run("K0720", e.to_string()))?;
                // SAFETY: lowering makes views inside their buffer. The view is
                // not remembered: its buffer may move when its size changes.
                Ok(unsafe { from.offset(o as isize) })
            }
            _ => {
                let here = |d: &DeviceRun| d.spaces().space(buffer).host;
                if !self.device.as_ref().is_none_or(here) {
                    let message = format!("buffer {buffer} has no place on the host");
                    return Err(Error::run("K0725", message));
                }
                let dim = &self.entry.buffers[i].bytes;
                let n = dim
                    .eval(&self.binding)
                    .map_err(|e| Error::run("K0720", e.to_string()))?;
                if !(0..=MAX_BYTES as i64).contains(&n) {
                    return Err(too_large(dim, n as i128));
                }
                let keep = self.dynamic[i]
                    .as_ref()
                    .is_some_and(|b| b.len() == n as usize);
                if !keep {
                    self.dynamic[i] = Some(memory(n as usize)?);
                    self.sizes[i] = Some(n as usize);
                }
                Ok(self.dynamic[i]
                    .as_ref()
                    .map_or(std::ptr::null_mut(), Block::ptr))
            }
        }
    }

    pub(super) fn read_i64(&mut self, buffer: u32) -> Result<i64> {
        // SAFETY: an i64 scalar has eight bytes.
        Ok(unsafe { self.pointer(buffer)?.cast::<i64>().read_unaligned() })
    }

    pub(super) fn copy(&mut self, from: u32, to: u32, bytes: &Dim) -> Result<()> {
        if self.device.is_some() {
            return self.copy_across(from, to, bytes);
        }
        let n = bytes
            .eval(&self.binding)
            .map_err(|e| Error::run("K0720", e.to_string()))?;
        let (from, to) = (self.pointer(from)?, self.pointer(to)?);
        let watch = self.watch();
        // SAFETY: both buffers have at least this many bytes by lowering.
        unsafe { std::ptr::copy(from, to, usize::try_from(n).unwrap_or(0)) };
        self.note(watch, "copy", "copy", 0, n.saturating_mul(2));
        Ok(())
    }

    /// A watch for a step that starts now, if this run is profiled.
    pub(crate) fn watch(&self) -> Option<Watch> {
        let profile = self.profile.as_ref()?;
        Some(profile.watch(self.pool.threads()))
    }

    /// Notes a step that ends now, if this run is profiled.
    pub(crate) fn note(
        &mut self,
        watch: Option<Watch>,
        label: &str,
        kernel: &str,
        flops: i64,
        bytes: i64,
    ) {
        if let (Some(profile), Some(watch)) = (&mut self.profile, watch) {
            let facts = Facts {
                label: label.into(),
                kernel: kernel.into(),
                flops,
                bytes,
            };
            profile.add(watch, facts);
        }
    }

    /// Gives sizes their values, all from those before.
    pub(super) fn set_dims(&mut self, sizes: &[(String, Dim)]) -> Result<()> {
        let values: Vec<i64> = sizes
            .iter()
            .map(|(_, d)| d.eval(&self.binding))
            .collect::<std::result::Result<_, _>>()
            .map_err(|e| Error::run("K0720", e.to_string()))?;
        for ((name, _), n) in sizes.iter().zip(values) {
            self.binding.insert(name.as_str().into(), n);
        }
        Ok(())
    }
}
