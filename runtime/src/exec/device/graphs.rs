//! Runs that are recorded once and done again as a whole.
//!
//! An entry whose every step is work of the device does the same for the same sizes, as
//! long as its memory stays where it is: its second run with a binding is recorded, and
//! later ones replay that, on the compute lane. Inputs are copied up before and outputs down
//! after it.

use super::super::launch::count_launches;
use super::super::steps::Run;
use super::{OnDevice, Valid};
use crate::device::GraphId;
use crate::error::{Error, Result};
use std::sync::atomic::Ordering;

/// How many bindings a session remembers this for.
const REMEMBERED: usize = 8;

/// A binding of an entry that has run, and what was recorded of it.
pub(super) struct Recorded {
    entry: usize,
    key: Vec<i64>,
    pub(super) graph: Option<GraphId>,
    /// What was recorded holds while memory is where it was then.
    epoch: u64,
    /// Which copies are current after it.
    valid: Vec<Valid>,
}

impl OnDevice {
    /// Which of the remembered bindings this one is; the oldest gives way to a new one.
    fn recorded(&mut self, entry: usize, key: &[i64]) -> Option<usize> {
        let found = (self.recorded.iter()).position(|r| r.entry == entry && r.key == key);
        if found.is_none() {
            if self.recorded.len() == REMEMBERED
                && let Some(graph) = self.recorded.remove(0).graph
            {
                self.device.forget(graph);
            }
            self.recorded.push(Recorded {
                entry,
                key: key.to_vec(),
                graph: None,
                epoch: self.epoch,
                valid: vec![],
            });
        }
        found
    }

    /// Forgets everything that was recorded.
    pub(in super::super) fn forget_graphs(&mut self) {
        for graph in self.recorded.drain(..).filter_map(|r| r.graph) {
            self.device.forget(graph);
        }
    }
}

impl Run<'_> {
    /// Runs the entry's steps on the device: one by one, or as they were recorded.
    pub(in super::super) fn device_steps(&mut self, key: &[i64], launch: &mut usize) -> Result<()> {
        let profiled = self.profile.is_some();
        let known =
            self.ready.iter().all(Option::is_some) && self.sizes.iter().all(Option::is_some);
        let d = self.device()?;
        // Single launches are looked at.
        let apart = d.on.tuner.is_some() || profiled;
        if apart || !known || !d.on.graphs || !d.spaces.pure {
            return self.steps(&self.entry.steps, launch);
        }
        let Some(place) = d.on.recorded(d.entry, key) else {
            return self.steps(&self.entry.steps, launch);
        };
        let (epoch, r) = (d.on.epoch, &mut d.on.recorded[place]);
        if r.epoch != epoch {
            // Memory has moved: this run finds out where everything is now.
            r.epoch = epoch;
            if let Some(graph) = r.graph.take() {
                d.on.device.forget(graph);
            }
            return self.steps(&self.entry.steps, launch);
        }
        // Inputs and what was changed on the host, before anything else.
        self.upload_all()?;
        let on = &mut *self.device()?.on;
        on.order.before_all(&mut *on.device)?;
        if on.recorded[place].graph.is_none() {
            self.record(place, launch)?;
        }
        self.replay(place)?;
        *launch = count_launches(&self.entry.steps);
        Ok(())
    }

    fn record(&mut self, place: usize, launch: &mut usize) -> Result<()> {
        let on = &mut *self.device()?.on;
        on.device.record()?;
        on.order.record(true);
        let done = self.steps(&self.entry.steps, launch);
        let d = self.device()?;
        d.on.order.record(false);
        let graph = match done {
            Ok(()) => d.on.device.recorded()?,
            Err(e) => {
                d.on.device.abandon();
                return Err(e);
            }
        };
        let r = &mut d.on.recorded[place];
        r.graph = Some(graph);
        r.valid = d.valid.clone();
        Ok(())
    }

    fn replay(&mut self, place: usize) -> Result<()> {
        if self.cancel.load(Ordering::Relaxed) {
            return Err(Error::run("K0721", "the run was cancelled"));
        }
        let d = self.device()?;
        let r = &d.on.recorded[place];
        if let Some(graph) = &r.graph {
            d.on.device.replay(graph)?;
            d.on.order.replayed();
        }
        // What the host has of values that are not written is as current as it was.
        for (now, after) in d.valid.iter_mut().zip(&r.valid) {
            now.device |= after.device;
            now.host &= after.host;
        }
        d.started = true;
        Ok(())
    }
}
