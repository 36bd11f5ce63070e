//! Stretches of a run that a graph does as a whole.
//!
//! Kernels and copies on the device that follow each other are a stretch: what it does
//! follows from the sizes of the inputs and from where memory is, as long as the same copies
//! are current. Where a graph holds that, it is replayed; otherwise the stretch's steps are
//! gone through, and what they would give the compute lane is noted, for a graph to be made
//! or updated ([`recorded`](super::recorded)). What a stretch reads of the host's is copied
//! up before. An entry whose every step is the device's is one stretch; steps of the host,
//! and blocks, part others.

use super::super::launch::count_launches;
use super::super::steps::Run;
use super::Valid;
use super::order::Bytes;
use super::recorded::{Done, Kept, Noted};
use crate::device::Node;
use crate::error::{Error, Result};
use crate::plan::Step;
use std::collections::BTreeSet;
use std::sync::atomic::Ordering;

/// Steps from which on a graph pays.
const LEAST: usize = 2;

/// A stretch that came up.
pub(super) struct Stretch {
    launches: usize,
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
            let (alone, stretch) = self.split(rest, *launch);
            let (these, others) = rest.split_at(alone);
            let (stretch, others) = others.split_at(stretch);
            self.one_by_one(these, launch)?;
            if !stretch.is_empty() {
                self.stretch(stretch, launch)?;
            }
            rest = others;
        }
        Ok(())
    }

    /// How many steps come before the first stretch, and how many that has.
    fn split(&self, steps: &[Step], mut launch: usize) -> (usize, usize) {
        let mut begin = 0;
        for (i, step) in steps.iter().enumerate() {
            if self.repeats(step, launch) {
                launch += matches!(step, Step::Launch(_) | Step::TopK { .. }) as usize;
                continue;
            }
            if i - begin >= LEAST {
                return (begin, i - begin);
            }
            begin = i + 1;
            launch += count_launches(std::slice::from_ref(step));
        }
        match steps.len() - begin {
            n if n >= LEAST => (begin, n),
            _ => (steps.len(), 0),
        }
    }

    /// Whether a step is work of the device whose sizes and places the binding decides.
    /// Asked in each run, so sizes that the layout has are not evaluated again.
    fn repeats(&self, step: &Step, launch: usize) -> bool {
        let Some(d) = &self.device else { return false };
        let known = |b: u32| {
            let b = b as usize;
            d.spaces.space(b as u32).device && d.base[b] != 0 && self.sizes[b].is_some()
        };
        match step {
            Step::Launch(l) | Step::TopK { launch: l, .. } => {
                let ready = self.ready.get(launch).is_some_and(Option::is_some);
                ready && l.args.iter().all(|a| known(a.0))
            }
            Step::Copy { from, to, bytes } => {
                known(*from) && known(*to) && bytes.eval(self.bound).is_ok()
            }
            _ => false,
        }
    }

    fn stretch(&mut self, steps: &[Step], launch: &mut usize) -> Result<()> {
        // Sizes that no kernel serves may end one of the same beginning sooner.
        let place = (steps.as_ptr() as usize, steps.len());
        let known = self.device()?.on.stretches.remove(&place);
        let mut s = known.unwrap_or_else(|| Stretch {
            launches: count_launches(steps),
            buffers: self.buffers(steps),
            kept: Kept::default(),
        });
        let done = self.stretch_of(&mut s, steps, launch);
        self.device()?.on.stretches.insert(place, s);
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
        if s.kept.done.is_empty() {
            // Nothing can be replayed yet: the lanes wait for as little as they have to.
            let places = self.places_of(touched)?;
            let nodes = self.noted(steps, launch, true)?;
            return self.recall(&mut s.kept, nodes, places);
        }
        if self.cancel.load(Ordering::Relaxed) {
            return Err(Error::run("K0721", "the run was cancelled"));
        }
        let d = self.device()?;
        if s.kept.holds(&d.sizes, d.on.epoch) {
            *launch += s.launches;
            d.on.wait_for(s.kept.places())?;
        } else {
            let places = self.places_of(touched)?;
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
        let d = self.device()?;
        let now = Done {
            nodes,
            graph: None,
            sizes: d.sizes.clone(),
            epoch: d.on.epoch,
            places,
        };
        d.on.keep(kept, now)
    }

    /// Runs steps one by one; what the compute lane was given, or would have been.
    fn noted(&mut self, steps: &[Step], launch: &mut usize, given: bool) -> Result<Vec<Node>> {
        let on = &mut *self.device()?.on;
        let nodes = vec![];
        on.noted = Some(Noted { nodes, given });
        on.order.hold(!given);
        let done = self.one_by_one(steps, launch);
        let on = &mut *self.device()?.on;
        on.order.hold(false);
        let noted = on.noted.take();
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
