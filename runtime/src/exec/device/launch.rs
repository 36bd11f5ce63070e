//! Launches on a device.

use super::super::steps::Run;
use super::super::{Model, Ready};
use super::Valid;
use crate::device::{self, MAP_ALIGN, Mark, TensorMap, Window};
use crate::error::{Error, Result};
use crate::gpu::{Extent, STATUS_BYTES};
use crate::plan::{GpuKernel, Launch};
use crate::profile::Lane;
use std::borrow::Cow;

impl<'m> Run<'m> {
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
        self.wait_for_uploads(l.args.iter().map(|a| a.0))?;
        self.tune(l, r, index)?;
        let (form, extent, maps) = self.form(l, r, forms)?;
        self.parameters(l, r, (&extent, &maps), index)?;
        for (buffer, _) in &l.args[written..] {
            self.device()?.set_valid(*buffer, Valid::DEVICE);
        }
        for (i, grid) in extent.grids.iter().enumerate() {
            // A grid without blocks has nothing to do.
            if grid.contains(&0) {
                continue;
            }
            let before = self.mark(device::Lane::Compute)?;
            let watch = self.watch();
            let counts = self.pass(l, r, (form, i), &extent)?;
            // The work is counted once.
            let (flops, bytes) = if i == 0 { (r.flops, r.bytes) } else { (0, 0) };
            let pass = &self.forms_of(r)?[form].passes[i];
            self.note(watch, &l.label, &pass.entry, flops, bytes);
            if let (Some(profile), Some(counts)) = (&mut self.profile, counts) {
                profile.count(counts);
            }
            self.time_from(before, Lane::Device)?;
        }
        let touched = l.args.iter().map(|a| a.0);
        let written = l.args[written..].iter().map(|a| a.0);
        self.device()?.computed(touched, written)
    }

    /// The forms of a launch's kernel.
    pub(super) fn forms_of(&mut self, r: &Ready) -> Result<&'m [GpuKernel]> {
        let model: &'m Model = self.model;
        let code = self.device()?.on.code;
        Ok(&model.program().gpu[code].kernels[r.kernel as usize])
    }

    /// Starts a pass of a form with the parameters that are written; what the device
    /// counted. A grid without blocks has nothing to do.
    pub(super) fn pass(
        &mut self,
        l: &Launch,
        r: &Ready,
        (form, i): (usize, usize),
        extent: &Extent,
    ) -> Result<Option<serde_json::Value>> {
        let grid = extent.grids[i];
        if grid.contains(&0) {
            return Ok(None);
        }
        let pass = &self.forms_of(r)?[form].passes[i];
        let d = self.device()?;
        d.started = true;
        let kernel = d.on.kernels[r.kernel as usize][form][i];
        d.on.launch(&device::Launch {
            kernel,
            grid,
            block: pass.block,
            cluster: pass.cluster,
            shared: pass.shared,
            params: Cow::Borrowed(&d.params),
            windows: Cow::Borrowed(&d.windows),
            label: Cow::Borrowed(&l.label),
        })
    }

    /// The form that a launch takes: the first one whose tiles its arguments allow; its
    /// extent, and the maps of its tiles.
    fn form(
        &mut self,
        l: &Launch,
        r: &Ready,
        forms: &[(u32, Extent)],
    ) -> Result<(usize, Extent, Vec<TensorMap>)> {
        let all = self.forms_of(r)?;
        for (form, extent) in forms {
            let form = *form as usize;
            if let Some(maps) = self.maps(l, r, &all[form])? {
                return Ok((form, extent.clone(), maps));
            }
        }
        Err(Error::run(
            "K0720",
            format!("{}: no form of its kernel serves these sizes", l.label),
        ))
    }

    /// The maps of a form's tiles; none where an argument does not allow one.
    pub(super) fn maps(
        &mut self,
        l: &Launch,
        r: &Ready,
        form: &GpuKernel,
    ) -> Result<Option<Vec<TensorMap>>> {
        let mut maps = vec![];
        for tile in &form.tiles {
            let arg = tile.arg as usize;
            let Some((buffer, _)) = l.args.get(arg) else {
                return Ok(None);
            };
            let at = self.device_at(*buffer)?;
            match tile.map(at.wrapping_add_signed(r.offsets[arg]), &r.params) {
                Ok(map) => maps.push(map),
                Err(_) => return Ok(None),
            }
        }
        Ok(Some(maps))
    }

    /// Writes the parameters of a launch, and the windows that it may touch.
    pub(super) fn parameters(
        &mut self,
        l: &Launch,
        r: &Ready,
        (extent, maps): (&Extent, &[TensorMap]),
        index: usize,
    ) -> Result<()> {
        let d = self.device()?;
        let status = d.on.status.at + (STATUS_BYTES * index) as u64;
        // What has none does not depend on where it is.
        let scratch = match extent.scratch {
            0 => 0,
            bytes => d.on.scratch_for(bytes)?,
        };
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

    /// Marks this moment in a lane, if this run is profiled.
    pub(super) fn mark(&mut self, lane: device::Lane) -> Result<Option<Mark>> {
        match self.profile.is_some() {
            true => Ok(Some(self.device()?.on.device.mark(lane)?)),
            false => Ok(None),
        }
    }

    /// The profile's last step, of a lane, took the device's time from a mark to now.
    pub(super) fn time_from(&mut self, before: Option<Mark>, lane: Lane) -> Result<()> {
        let steps = self.profile.as_ref().map_or(0, |p| p.steps.len());
        if let (Some(before), Some(step)) = (before, steps.checked_sub(1)) {
            let of = match lane {
                Lane::ToDevice => device::Lane::Up,
                Lane::ToHost => device::Lane::Down,
                Lane::Host | Lane::Device => device::Lane::Compute,
            };
            let d = self.device()?;
            let after = d.on.device.mark(of)?;
            d.timed.push((step, before, after));
            if let Some(profile) = &mut self.profile {
                profile.steps[step].lane = lane;
            }
        }
        Ok(())
    }
}
