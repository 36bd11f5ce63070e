//! What a measured run did: its steps in order, and how long each thread worked on
//! each of them.

use std::sync::Mutex;
use std::time::Instant;

/// Whose time a step takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Lane {
    /// The host's.
    #[default]
    Host,
    /// The device's, by its own clock: kernels, and copies inside its memory.
    Device,
    /// A copy from the host to the device, by the device's clock.
    ToDevice,
    /// A copy from the device to the host, by the device's clock, with what it waits for.
    ToHost,
}

/// One step of a profiled run.
#[derive(Clone, Debug)]
pub struct StepTime {
    /// What the step stems from.
    pub label: String,
    /// The kernel.
    pub kernel: String,
    /// Nanoseconds from the run's first step to this one's start.
    pub start: u64,
    /// Nanoseconds that it took.
    pub ns: u64,
    /// Floating-point operations.
    pub flops: i64,
    /// Bytes read and written.
    pub bytes: i64,
    /// Which threads worked on it.
    pub work: Vec<Work>,
    /// Whose time it is.
    pub lane: Lane,
    /// What the device counted while it ran, where it counts.
    pub counts: Option<serde_json::Value>,
}

/// One thread's part of a step.
#[derive(Clone, Copy, Debug)]
pub struct Work {
    /// The thread; 0 is the caller's.
    pub thread: usize,
    /// Units of work that it ran.
    pub units: i64,
    /// When its first unit began, in nanoseconds from the run's first step.
    pub start: u64,
    /// Nanoseconds from there to the end of its last unit.
    pub ns: u64,
}

/// The profile of a session's last run.
#[derive(Debug)]
pub struct Profile {
    begin: Instant,
    /// Its steps, in the order in which they ran.
    pub steps: Vec<StepTime>,
}

impl Profile {
    /// An empty profile that begins now.
    pub fn new() -> Profile {
        Profile {
            begin: Instant::now(),
            steps: vec![],
        }
    }

    /// Nanoseconds from the first step's start to the last end of one.
    pub fn ns(&self) -> u64 {
        // Steps of different lanes overlap.
        self.steps.iter().map(|s| s.start + s.ns).max().unwrap_or(0)
    }

    /// A watch for a step that starts now on up to `threads` threads.
    pub(crate) fn watch(&self, threads: usize) -> Watch {
        Watch {
            begin: self.begin,
            start: self.since(),
            parts: (0..threads).map(|_| Mutex::new(None)).collect(),
        }
    }

    /// Adds a step that ends now.
    pub(crate) fn add(&mut self, watch: Watch, step: Facts) {
        let end = self.since();
        let part = |m: Mutex<Option<Work>>| m.into_inner().ok().flatten();
        self.steps.push(StepTime {
            label: step.label,
            kernel: step.kernel,
            start: watch.start,
            // Two readings of the clock may be equal; rates divide by this.
            ns: end.saturating_sub(watch.start).max(1),
            flops: step.flops,
            bytes: step.bytes,
            work: watch.parts.into_iter().filter_map(part).collect(),
            lane: Lane::Host,
            counts: None,
        });
    }

    /// Adds what the device counted to the step that was added last.
    pub(crate) fn count(&mut self, counts: serde_json::Value) {
        if let Some(step) = self.steps.last_mut() {
            step.counts = Some(counts);
        }
    }

    /// Copies between the host and the device: how many, and their bytes.
    pub fn crossings(&self, lane: Lane) -> (usize, i64) {
        let copies = self.steps.iter().filter(|s| s.lane == lane);
        copies.fold((0, 0), |(n, bytes), s| (n + 1, bytes + s.bytes))
    }

    fn since(&self) -> u64 {
        self.begin.elapsed().as_nanos() as u64
    }
}

impl Default for Profile {
    fn default() -> Profile {
        Profile::new()
    }
}

/// What is known of a step besides its times.
pub(crate) struct Facts {
    pub label: String,
    pub kernel: String,
    pub flops: i64,
    pub bytes: i64,
}

/// A running step's clock. Each thread writes a place of its own, so its lock is
/// never waited for: two clock readings and a lock, some 60 ns a grain.
pub(crate) struct Watch {
    begin: Instant,
    start: u64,
    parts: Vec<Mutex<Option<Work>>>,
}

impl Watch {
    /// Runs a thread's units and notes when.
    pub fn units(&self, thread: usize, units: i64, run: impl FnOnce() -> i32) -> i32 {
        let start = self.begin.elapsed().as_nanos() as u64;
        let status = run();
        let end = self.begin.elapsed().as_nanos() as u64;
        if let Some(Ok(mut part)) = self.parts.get(thread).map(Mutex::lock) {
            let work = part.get_or_insert(Work {
                thread,
                units: 0,
                start,
                ns: 0,
            });
            work.units += units;
            work.ns = end.saturating_sub(work.start);
        }
        status
    }
}
