//! Launches on a device.

use super::super::Ready;
use super::super::steps::Run;
use super::Valid;
use crate::device::{self, MAP_ALIGN, Mark, TensorMap, Window};
use crate::error::{Error, Result};
use crate::gpu::{Extent, STATUS_BYTES};
use crate::plan::Launch;
use crate::profile::{Lane, Watch};

impl Run<'_> {
    /// Starts a kernel on the device; `index` is the launch's place among all of the
    /// entry's.
    pub(in super::super) fn launch_on_device(
        &mut self,
        l: &Launch,
        r: &Ready,
        index: usize,
    ) -> Result<()> {
        let forms = r.forms.as_ref().map_err(|what| {
            Error::run("K0720", format!("{}: {what}", l.label)).help("give smaller inputs")
        })?;
        let written = l.args.len() - l.writes as usize;
        for (buffer, _) in &l.args {
            self.device_needs(*buffer)?;
        }
        let (form, extent, maps) = self.form(l, r, forms)?;
        self.parameters(l, r, (&extent, &maps), index)?;
        for (buffer, _) in &l.args[written..] {
            self.device()?.set_valid(*buffer, Valid::DEVICE);
        }
        // A grid without blocks has nothing to do.
        if extent.grid.contains(&0) {
            return Ok(());
        }
        let program = self.model.program();
        let before = self.mark()?;
        let watch = self.watch();
        let d = self.device()?;
        let kernel = &program.gpu[d.on.code].kernels[r.kernel as usize][form];
        d.started = true;
        let counts = d.on.device.launch(&device::Launch {
            kernel: d.on.kernels[r.kernel as usize][form],
            grid: extent.grid,
            block: kernel.block,
            cluster: kernel.cluster,
            shared: kernel.shared,
            params: &d.params,
            windows: &d.windows,
            label: &l.label,
        })?;
        self.note(watch, &l.label, &kernel.entry, r.flops, r.bytes);
        if let (Some(profile), Some(counts)) = (&mut self.profile, counts) {
            profile.count(counts);
        }
        self.time_from(before)
    }

    /// The form that a launch takes: the first one whose tiles its arguments allow; its
    /// extent, and the maps of its tiles.
    fn form(
        &mut self,
        l: &Launch,
        r: &Ready,
        forms: &[(u32, Extent)],
    ) -> Result<(usize, Extent, Vec<TensorMap>)> {
        let program = self.model.program();
        let all = &program.gpu[self.device()?.on.code].kernels[r.kernel as usize];
        for &(form, extent) in forms {
            let form = form as usize;
            let mut maps = vec![];
            for tile in &all[form].tiles {
                let (arg, offset) = match l.args.get(tile.arg as usize) {
                    Some((buffer, _)) => (*buffer, r.offsets[tile.arg as usize]),
                    None => break,
                };
                let at = self.device_at(arg)?.wrapping_add_signed(offset);
                maps.extend(tile.map(at, &r.params));
            }
            if maps.len() == all[form].tiles.len() {
                return Ok((form, extent, maps));
            }
        }
        Err(Error::run(
            "K0720",
            format!("{}: no form of its kernel serves these sizes", l.label),
        ))
    }

    /// Writes the parameters of a launch, and the windows that it may touch.
    fn parameters(
        &mut self,
        l: &Launch,
        r: &Ready,
        (extent, maps): (&Extent, &[TensorMap]),
        index: usize,
    ) -> Result<()> {
        let d = self.device()?;
        let status = d.on.status.at + (STATUS_BYTES * index) as u64;
        let scratch = d.on.scratch_for(extent.scratch)?;
        let checks = d.on.device.checks_windows();
        let mut params = std::mem::take(&mut d.params);
        let mut windows = std::mem::take(&mut d.windows);
        params.clear();
        windows.clear();
        let first_written = l.args.len() - l.writes as usize;
        for (i, ((buffer, _), offset)) in l.args.iter().zip(&r.offsets).enumerate() {
            let at = self.device_at(*buffer)?;
            params.extend(at.wrapping_add_signed(*offset).to_le_bytes());
            if checks {
                let len = self.size(&self.entry.buffers[*buffer as usize].bytes)?;
                windows.push(Window {
                    at,
                    len: len.max(0) as u64,
                    writable: i >= first_written,
                });
            }
        }
        params.extend(status.to_le_bytes());
        params.extend(scratch.to_le_bytes());
        r.params.iter().for_each(|p| params.extend(p.to_le_bytes()));
        for map in maps {
            params.resize(params.len().next_multiple_of(MAP_ALIGN), 0);
            params.extend(self.device()?.on.device.tensor_map(map)?);
        }
        if checks {
            let status = (status, STATUS_BYTES as u64);
            for (at, len) in [status, (scratch, extent.scratch as u64)] {
                let writable = true;
                windows.push(Window { at, len, writable });
            }
        }
        let d = self.device()?;
        (d.params, d.windows) = (params, windows);
        Ok(())
    }

    /// Marks this moment, if this run is profiled.
    pub(super) fn mark(&mut self) -> Result<Option<Mark>> {
        match self.profile.is_some() {
            true => Ok(Some(self.device()?.on.device.mark()?)),
            false => Ok(None),
        }
    }

    /// The profile's last step took the device's time from a mark to now.
    pub(super) fn time_from(&mut self, before: Option<Mark>) -> Result<()> {
        let steps = self.profile.as_ref().map_or(0, |p| p.steps.len());
        if let (Some(before), Some(step)) = (before, steps.checked_sub(1)) {
            let d = self.device()?;
            let after = d.on.device.mark()?;
            d.timed.push((step, before, after));
            if let Some(profile) = &mut self.profile {
                profile.steps[step].lane = Lane::Device;
            }
        }
        Ok(())
    }

    /// Notes a copy between the host and the device, if this run is profiled.
    pub(super) fn note_on(
        &mut self,
        watch: Option<Watch>,
        label: &str,
        kernel: &str,
        lane: Lane,
        bytes: usize,
    ) {
        self.note(watch, label, kernel, 0, bytes as i64);
        if let Some(step) = self.profile.as_mut().and_then(|p| p.steps.last_mut()) {
            step.lane = lane;
        }
    }
}
