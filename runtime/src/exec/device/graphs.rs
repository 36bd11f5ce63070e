//! Stretches of a run that a graph does as a whole.
//!
//! Kernels and copies on the device that follow each other are a stretch: what it does
//! follows from the sizes that have values when it begins and from where memory is, as long
//! as the same copies are current. Where a graph holds that, it is replayed; otherwise the stretch's steps are
//! gone through, and what they would give the compute lane is noted, for a graph to be made
//! or updated ([`recorded`](super::recorded)). What a stretch reads of the host's is copied
//! up before. Steps of the host, and blocks, part stretches, and so does their length.

use super::super::launch::{count_launches, ready};
use super::super::steps::Run;
use super::Valid;
use super::memory::scratch_of;
use super::order::Bytes;
use super::recorded::{Done, Kept, Noted};
use crate::device::Node;
use crate::error::{Error, Result};
use crate::plan::{Launch, Place, Step};
use kiln_ir::Dim;
use std::collections::BTreeSet;
use std::sync::atomic::Ordering;

/// Steps from which on a graph pays.
const LEAST: usize = 2;
/// Steps of one graph at most: the lane works on one while the next one's nodes are changed.
const MOST: usize = 64;

/// A stretch that came up.
pub(super) struct Stretch {
    launches: usize,
    /// Whether it touches buffers whose sizes came up in the run.
    late: bool,
    buffers: Buffers,
    pub(super) kept: Kept,
}

/// What a stretch does with buffers.
struct Buffers {
    touched: Vec<u32>,
    written: Vec<u32>,
    /// Those that its copies read, before it writes them. A copy of what was never written
    /// is left out, so what is done depends on them.
    copied: Vec<u32>,
}

impl Run<'_> {
    /// Runs steps on the device: stretches by graphs, and the rest one by one.
    pub(in super::super) fn device_steps(
        &mut self,
        steps: &[Step],
        launch: &mut usize,
    ) -> Result<()> {
        let profiled = self.profile.is_some();
        let d = self.device()?;
        // Single launches are looked at.
        let apart = profiled || d.on.tuner.is_some() || !d.on.graphs;
        if apart {
            return self.one_by_one(steps, launch);
        }
        let mut rest = steps;
        while !rest.is_empty() {
            let length = self.length(rest, *launch);
            let (these, others) = match length {
                LEAST.. => rest.split_at(length),
                // With the step that ends it: it may give a size its value.
                n => rest.split_at((n + 1).min(rest.len())),
            };
            match length {
                LEAST.. => self.stretch(these, launch)?,
                _ => self.one_by_one(these, launch)?,
            }
            rest = others;
        }
        Ok(())
    }

    /// How many of the first steps are work of the device whose sizes have values, as far
    /// as one graph goes.
    fn length(&mut self, steps: &[Step], mut launch: usize) -> usize {
        if let Some(d) = &mut self.device {
            d.late.clear();
        }
        for (i, step) in steps.iter().enumerate().take(MOST) {
            let fits = match step {
                Step::Launch(l) | Step::TopK { launch: l, .. } => {
                    launch += 1;
                    self.has_sizes(l, launch - 1)
                }
                Step::Copy { from, to, bytes } => {
                    self.has_place(*from)
                        && self.has_place(*to)
                        && bytes.eval(&self.binding).is_ok()
                }
                _ => false,
            };
            if !fits {
                return i;
            }
        }
        steps.len().min(MOST)
    }

    /// Whether a launch's sizes have values; those that came up since the run began are
    /// kept for when it starts.
    fn has_sizes(&mut self, l: &Launch, index: usize) -> bool {
        if !l.args.iter().all(|a| self.has_place(a.0)) {
            return false;
        }
        if self.ready.get(index).is_some_and(Option::is_some) {
            return true;
        }
        let late = ready(l, &self.binding, self.device_code());
        match (late, &mut self.device) {
            (Ok(r), Some(d)) => {
                d.late.insert(index, r);
                true
            }
            _ => false,
        }
    }

    /// Whether a buffer is on the device, and its size and place have values. Asked in each
    /// run, so those that the layout has are not evaluated again.
    fn has_place(&self, mut buffer: u32) -> bool {
        let Some(d) = self.device.as_ref() else {
            return false;
        };
        if !d.spaces.space(buffer).device {
            return false;
        }
        let known = |dim: &Dim| dim.eval(&self.binding).is_ok();
        loop {
            let i = buffer as usize;
            let b = &self.entry.buffers[i];
            if !(d.base[i] != 0 && self.sizes[i].is_some() || known(&b.bytes)) {
                return false;
            }
            match &b.place {
                _ if d.base[i] != 0 => return true,
                Place::View { of, offset } if known(offset) => buffer = *of,
                Place::View { .. } | Place::Global(_) => return false,
                Place::Input | Place::Output | Place::Arena => return true,
            }
        }
    }

    fn stretch(&mut self, steps: &[Step], launch: &mut usize) -> Result<()> {
        // One ends sooner where sizes have no values yet, or no kernel serves them.
        let place = (steps.as_ptr() as usize, steps.len());
        let d = self.device()?;
        let mut s = match d.on.stretches.remove(&place) {
            Some(known) => known,
            None => self.new_stretch(steps),
        };
        let done = self.stretch_of(&mut s, steps, launch);
        let d = self.device()?;
        d.late.clear();
        d.on.stretches.insert(place, s);
        done
    }

    fn stretch_of(&mut self, s: &mut Stretch, steps: &[Step], launch: &mut usize) -> Result<()> {
        let Buffers {
            touched,
            written,
            copied,
        } = &s.buffers;
        // Nothing is copied up inside.
        touched.iter().try_for_each(|&b| self.device_needs(b))?;
        let d = self.device()?;
        if !copied.iter().all(|&b| d.valid(b).device) {
            return self.one_by_one(steps, launch);
        }
        // What came up late may have to move, which nothing inside may.
        let late = match s.late {
            true => Some(self.places_of(touched)?),
            false => None,
        };
        let d = self.device()?;
        if let most @ 1.. = scratch_of(d.late.values()) {
            d.on.scratch_for(most)?;
        }
        if s.kept.done.is_empty() {
            // Nothing can be replayed yet: the lanes wait for as little as they have to.
            let places = late.map_or_else(|| self.places_of(touched), Ok)?;
            let nodes = self.noted(steps, launch, true)?;
            return self.recall(&mut s.kept, nodes, places);
        }
        if self.cancel.load(Ordering::Relaxed) {
            return Err(Error::run("K0721", "the run was cancelled"));
        }
        let epoch = self.device()?.on.epoch;
        if s.kept.holds(&self.binding, epoch) {
            *launch += s.launches;
            self.device()?.on.wait_for(s.kept.places())?;
        } else {
            let places = late.map_or_else(|| self.places_of(touched), Ok)?;
            self.device()?.on.wait_for(&places)?;
            let nodes = self.noted(steps, launch, false)?;
            self.recall(&mut s.kept, nodes, places)?;
        }
        let d = self.device()?;
        d.on.redo(&s.kept)?;
        d.started |= s.launches > 0;
        written.iter().for_each(|&b| d.set_valid(b, Valid::DEVICE));
        d.computed(touched.iter().copied(), written.iter().copied())
    }

    /// Keeps what a stretch does in this run, and finds its graph.
    fn recall(&mut self, kept: &mut Kept, nodes: Vec<Node>, places: Vec<Bytes>) -> Result<()> {
        let sizes = self.binding.clone();
        let on = &mut *self.device()?.on;
        let now = Done {
            nodes,
            graph: None,
            sizes,
            epoch: on.epoch,
            places,
        };
        on.keep(kept, now)
    }

    /// Runs steps one by one; what the compute lane was given, or would have been.
    fn noted(&mut self, steps: &[Step], launch: &mut usize, given: bool) -> Result<Vec<Node>> {
        let on = &mut *self.device()?.on;
        let epoch = on.epoch;
        let nodes = vec![];
        on.noted = Some(Noted { nodes, given });
        on.order.hold(!given);
        let done = self.one_by_one(steps, launch);
        let on = &mut *self.device()?.on;
        on.order.hold(false);
        let noted = on.noted.take();
        if done.is_ok() && on.epoch != epoch {
            let message = "memory moved while a graph's work was noted";
            return Err(Error::run("K0725", message));
        }
        done.map(|()| noted.map_or(vec![], |n| n.nodes))
    }

    /// Where buffers are on the device, with all that they are views of.
    fn places_of(&mut self, buffers: &[u32]) -> Result<Vec<Bytes>> {
        let roots: BTreeSet<u32> = buffers.iter().map(|&b| self.root(b)).collect();
        let mut places = vec![];
        for root in roots {
            let at = self.device_at(root)?;
            places.push(at..at + self.bytes_of(root)? as u64);
        }
        Ok(places)
    }

    fn new_stretch(&self, steps: &[Step]) -> Stretch {
        let buffers = self.buffers(steps);
        let base = self.device.as_ref().map(|d| &d.base);
        let late = |&b: &u32| base.is_none_or(|base| base[self.root(b) as usize] == 0);
        Stretch {
            launches: count_launches(steps),
            late: buffers.touched.iter().any(late),
            buffers,
            kept: Kept::default(),
        }
    }

    /// What a stretch does with buffers.
    fn buffers(&self, steps: &[Step]) -> Buffers {
        let (mut touched, mut written) = (BTreeSet::new(), BTreeSet::new());
        let (mut copied, mut known) = (BTreeSet::new(), BTreeSet::new());
        for step in steps {
            match step {
                Step::Launch(l) | Step::TopK { launch: l, .. } => {
                    touched.extend(l.args.iter().map(|a| a.0));
                    let first = l.args.len() - l.writes as usize;
                    written.extend(l.args[first..].iter().map(|a| a.0));
                    known.extend(l.args[first..].iter().map(|a| self.root(a.0)));
                }
                Step::Copy { from, to, .. } => {
                    touched.extend([*from, *to]);
                    if !known.contains(&self.root(*from)) {
                        copied.insert(*from);
                    }
                    written.insert(*to);
                    known.insert(self.root(*to));
                }
                _ => {}
            }
        }
        Buffers {
            touched: Vec::from_iter(touched),
            written: Vec::from_iter(written),
            copied: Vec::from_iter(copied),
        }
    }
}
