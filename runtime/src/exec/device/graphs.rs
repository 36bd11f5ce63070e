//! Stretches of a run that are recorded once and done again as a whole.
//!
//! Kernels and copies on the device that follow each other do the same for the same sizes,
//! as long as memory stays where it is and the same copies are current: such a stretch is
//! recorded when it comes up a second time with a binding, and replayed from then on, on
//! the compute lane. What it reads of the host's is copied up before. An entry whose every
//! step is the device's is one stretch; steps of the host, and blocks, part others.

use super::super::launch::count_launches;
use super::super::steps::Run;
use super::order::Bytes;
use super::{OnDevice, Valid};
use crate::device::GraphId;
use crate::error::{Error, Result};
use crate::plan::Step;
use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::Ordering;

/// How many bindings a session remembers this for.
const REMEMBERED: usize = 8;
/// Steps from which on recording pays.
const LEAST: usize = 2;

/// A binding of an entry that has run.
pub(super) struct Recorded {
    entry: usize,
    key: Vec<i64>,
    /// Of each list of steps, by where it lies in the plan: steps that run by themselves,
    /// then a stretch's, and so on.
    parts: HashMap<usize, Vec<(usize, usize)>>,
    /// Stretches by where their first step lies in the plan.
    pub(super) stretches: HashMap<usize, Stretch>,
}

/// A stretch that came up.
pub(super) struct Stretch {
    /// None: it came up once.
    pub(super) graph: Option<GraphId>,
    /// What was recorded holds while memory is where it was then.
    epoch: u64,
    launches: usize,
    buffers: Buffers,
    /// Where what it touches is.
    places: Vec<Bytes>,
}

/// What a stretch does with buffers.
#[derive(Clone)]
struct Buffers {
    touched: Vec<u32>,
    written: Vec<u32>,
    /// Those that its copies read, before it writes them. A copy of what was never written
    /// is left out, so what is done depends on them.
    copied: Vec<u32>,
}

impl OnDevice {
    /// Which of the remembered bindings this one is; the oldest gives way to a new one.
    pub(super) fn recorded(&mut self, entry: usize, key: &[i64]) -> usize {
        let found = (self.recorded.iter()).position(|r| r.entry == entry && r.key == key);
        if let Some(place) = found {
            return place;
        }
        if self.recorded.len() == REMEMBERED {
            let oldest = self.recorded.remove(0);
            self.forget_all(oldest);
        }
        self.recorded.push(Recorded {
            entry,
            key: key.to_vec(),
            parts: HashMap::new(),
            stretches: HashMap::new(),
        });
        self.recorded.len() - 1
    }

    fn forget_all(&mut self, r: Recorded) {
        for graph in r.stretches.into_values().filter_map(|s| s.graph) {
            self.device.forget(graph);
        }
    }

    /// Forgets everything that was recorded.
    pub(in super::super) fn forget_graphs(&mut self) {
        let all = std::mem::take(&mut self.recorded);
        all.into_iter().for_each(|r| self.forget_all(r));
    }
}

impl Run<'_> {
    /// Runs steps on the device: stretches as they were recorded, and the rest one by one.
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
        let list = steps.as_ptr() as usize;
        let at = d.recorded_at;
        let parts = match d.on.recorded[at].parts.remove(&list) {
            Some(parts) => parts,
            None => self.parts(steps, *launch),
        };
        let mut rest = steps;
        let mut done = Ok(());
        for (alone, stretch) in &parts {
            let (these, others) = rest.split_at(*alone);
            let (stretch, others) = others.split_at(*stretch);
            done = done.and_then(|()| self.one_by_one(these, launch));
            if !stretch.is_empty() {
                done = done.and_then(|()| self.stretch(stretch, launch));
            }
            rest = others;
        }
        self.device()?.on.recorded[at].parts.insert(list, parts);
        done
    }

    /// A list of steps as steps that run by themselves, then a stretch's, and so on.
    fn parts(&self, steps: &[Step], mut launch: usize) -> Vec<(usize, usize)> {
        let mut parts = vec![];
        let mut rest = steps;
        while !rest.is_empty() {
            let (alone, stretch) = self.split(rest, launch);
            parts.push((alone, stretch));
            let (these, others) = rest.split_at(alone + stretch);
            launch += count_launches(these);
            rest = others;
        }
        parts
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
    fn repeats(&self, step: &Step, launch: usize) -> bool {
        let Some(d) = &self.device else { return false };
        let known = |b: u32| {
            let bytes = &self.entry.buffers[b as usize].bytes;
            d.spaces.space(b).device && d.base[b as usize] != 0 && bytes.eval(self.bound).is_ok()
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

    /// Runs a stretch: step by step the first time, recorded the second time.
    fn stretch(&mut self, steps: &[Step], launch: &mut usize) -> Result<()> {
        let place = steps.as_ptr() as usize;
        let d = self.device()?;
        let (at, epoch) = (d.recorded_at, d.on.epoch);
        let buffers = match d.on.recorded[at].stretches.get(&place) {
            Some(s) => s.buffers.clone(),
            None => self.buffers(steps),
        };
        // Nothing is copied up inside.
        buffers
            .touched
            .iter()
            .try_for_each(|&b| self.device_needs(b))?;
        let d = self.device()?;
        if !buffers.copied.iter().all(|&b| d.valid(b).device) {
            return self.one_by_one(steps, launch);
        }
        let known = d.on.recorded[at].stretches.remove(&place);
        let (s, done) = match known {
            Some(mut s) if s.epoch == epoch => {
                let done = self.recorded_stretch(steps, launch, &mut s);
                (s, done)
            }
            other => {
                if let Some(graph) = other.and_then(|s| s.graph) {
                    d.on.device.forget(graph);
                }
                let first = *launch;
                self.one_by_one(steps, launch)?;
                let s = Stretch {
                    graph: None,
                    epoch,
                    launches: *launch - first,
                    places: self.places_of(&buffers.touched)?,
                    buffers,
                };
                (s, Ok(()))
            }
        };
        self.device()?.on.recorded[at].stretches.insert(place, s);
        done
    }

    fn recorded_stretch(
        &mut self,
        steps: &[Step],
        launch: &mut usize,
        s: &mut Stretch,
    ) -> Result<()> {
        let first = *launch;
        if self.cancel.load(Ordering::Relaxed) {
            return Err(Error::run("K0721", "the run was cancelled"));
        }
        let on = &mut *self.device()?.on;
        on.order.before_compute(&mut *on.device, &s.places)?;
        if s.graph.is_none() {
            s.graph = Some(self.record(steps, launch)?);
        }
        let d = self.device()?;
        if let Some(graph) = &s.graph {
            d.on.device.replay(graph)?;
        }
        d.started |= s.launches > 0;
        let Buffers {
            touched, written, ..
        } = &s.buffers;
        written.iter().for_each(|&b| d.set_valid(b, Valid::DEVICE));
        *launch = first + s.launches;
        d.computed(touched.iter().copied(), written.iter().copied())
    }

    fn record(&mut self, steps: &[Step], launch: &mut usize) -> Result<GraphId> {
        let d = self.device()?;
        d.on.device.record()?;
        d.on.order.record(true);
        let done = self.one_by_one(steps, launch);
        let d = self.device()?;
        d.on.order.record(false);
        match done {
            Ok(()) => d.on.device.recorded(),
            Err(e) => {
                d.on.device.abandon();
                Err(e)
            }
        }
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
