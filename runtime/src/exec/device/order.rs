//! What orders copies and kernels: which of them wait for which, decided as they are given
//! to their lanes.
//!
//! ```text
//! up        x ──► y ──►
//!             s1    s2                 each copy up is signalled,
//! compute   ┄┄┄s1─ k(x) ─s3─ k'(y)┄    the first kernel that touches it waits, and
//! down                  └s3── z ──►    a copy down waits for who wrote, not for all
//! ```
//! A copy up waits for the kernels that touched its memory before. Of memory that is a
//! buffer's own these are known; memory of the arena is used again, so there it waits for
//! all so far. The host waits for a copy down, so nothing has to wait for one.

use crate::device::{Device, Lane, Signal};
use crate::error::{Error, Result};
use std::ops::Range;

/// Addresses.
pub(super) type Bytes = Range<u64>;

/// Which kernels and copies of the compute lane touched some memory last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Last {
    /// A cell's own memory.
    Cell(usize),
    /// Any of them may have.
    Any,
}

/// What a cell's last writer is known by.
#[derive(Clone, Copy)]
struct Written {
    number: u64,
    signal: Signal,
}

/// The order of one session's lanes.
#[derive(Default)]
pub(super) struct Order {
    /// Copies up that the compute lane has not waited for, in order.
    uploads: Vec<(Bytes, Signal)>,
    /// How many operations the compute lane was given, and how many of them the host knows
    /// to be done.
    given: u64,
    done: u64,
    /// By cell of the entry that runs: the last operation that touched it, and the last one
    /// that wrote it where that was signalled.
    touched: Vec<u64>,
    wrote: Vec<Option<Written>>,
    /// Whether work is noted before it is given: nothing can be signalled or waited for.
    held: bool,
    free: Vec<Signal>,
    /// Waits that were made, and the one that is left out: for tests of who notices.
    #[cfg(all(test, feature = "sim"))]
    pub(super) waits: usize,
    #[cfg(all(test, feature = "sim"))]
    pub(super) left_out: Option<usize>,
}

impl Order {
    /// Begins a run over so many cells, with nothing under way.
    pub(super) fn begin(&mut self, device: &mut dyn Device, cells: usize) -> Result<()> {
        self.settle(device)?;
        self.free
            .extend(self.wrote.drain(..).flatten().map(|w| w.signal));
        self.touched.clear();
        self.touched.resize(cells, 0);
        self.wrote.resize(cells, None);
        Ok(())
    }

    /// Waits for whatever is under way.
    pub(super) fn settle(&mut self, device: &mut dyn Device) -> Result<()> {
        if self.given > self.done || !self.uploads.is_empty() {
            device.wait()?;
        }
        self.done = self.given;
        self.free.extend(self.uploads.drain(..).map(|u| u.1));
        Ok(())
    }

    fn signal(&mut self, device: &mut dyn Device, lane: Lane) -> Result<Signal> {
        self.not_held()?;
        device.signal(lane, self.free.pop())
    }

    fn not_held(&self) -> Result<()> {
        match self.held {
            true => Err(Error::run("K0725", "a graph's work waits for another lane")),
            false => Ok(()),
        }
    }

    fn after(&mut self, device: &mut dyn Device, lane: Lane, signal: Signal) -> Result<()> {
        self.not_held()?;
        #[cfg(all(test, feature = "sim"))]
        {
            self.waits += 1;
            if self.left_out == Some(self.waits - 1) {
                return Ok(());
            }
        }
        device.after(lane, signal)
    }

    /// Whether there are copies up that the compute lane has not waited for.
    pub(super) fn has_uploads(&self) -> bool {
        !self.uploads.is_empty()
    }

    /// Before an operation of the compute lane: it waits for copies up of what it touches.
    pub(super) fn before_compute(
        &mut self,
        device: &mut dyn Device,
        touches: &[Bytes],
    ) -> Result<()> {
        let meets = |u: &(Bytes, Signal)| {
            let meets = |t: &Bytes| t.start < u.0.end && u.0.start < t.end;
            touches.iter().any(meets)
        };
        // Whoever waits for a copy has waited for those before it.
        match self.uploads.iter().rposition(meets) {
            Some(last) => self.wait_for_uploads(device, last + 1),
            None => Ok(()),
        }
    }

    fn wait_for_uploads(&mut self, device: &mut dyn Device, count: usize) -> Result<()> {
        if let Some(&(_, signal)) = count.checked_sub(1).and_then(|i| self.uploads.get(i)) {
            self.after(device, Lane::Compute, signal)?;
        }
        self.free.extend(self.uploads.drain(..count).map(|u| u.1));
        Ok(())
    }

    /// The compute lane was given an operation that touches these cells.
    pub(super) fn gave(&mut self, cells: impl IntoIterator<Item = usize>) {
        self.given += 1;
        for cell in cells {
            self.touched[cell] = self.given;
        }
    }

    /// The operation that was given last wrote a cell; `signalled`: a copy down of it may
    /// follow, which need not wait for what comes after.
    pub(super) fn wrote(
        &mut self,
        device: &mut dyn Device,
        cell: usize,
        signalled: bool,
    ) -> Result<()> {
        let old = self.wrote[cell].take();
        self.free.extend(old.map(|w| w.signal));
        if signalled && !self.held {
            let signal = self.signal(device, Lane::Compute)?;
            let number = self.given;
            self.wrote[cell] = Some(Written { number, signal });
        }
        Ok(())
    }

    /// Work is noted before it is given from here on, or no longer.
    pub(super) fn hold(&mut self, on: bool) {
        self.held = on;
    }

    /// Before a copy up.
    pub(super) fn before_upload(&mut self, device: &mut dyn Device, last: Last) -> Result<()> {
        let touched = match last {
            Last::Cell(cell) => self.touched[cell],
            Last::Any => self.given,
        };
        if touched > self.done {
            let signal = self.signal(device, Lane::Compute)?;
            self.after(device, Lane::Up, signal)?;
            self.free.push(signal);
        }
        Ok(())
    }

    /// After a copy up to some memory.
    pub(super) fn uploaded(&mut self, device: &mut dyn Device, to: Bytes) -> Result<()> {
        let signal = self.signal(device, Lane::Up)?;
        self.uploads.push((to, signal));
        Ok(())
    }

    /// Before a copy down of some memory, of a cell or of whatever was written last; what
    /// [`downloaded`](Order::downloaded) is told.
    pub(super) fn before_download(
        &mut self,
        device: &mut dyn Device,
        from: &Bytes,
        cell: Option<usize>,
    ) -> Result<u64> {
        let meets = |u: &(Bytes, Signal)| from.start < u.0.end && u.0.start < from.end;
        if let Some(&(_, signal)) = self.uploads.iter().rfind(|u| meets(u)) {
            self.after(device, Lane::Down, signal)?;
        }
        if let Some(w) = cell.and_then(|c| self.wrote[c]) {
            if w.number > self.done {
                self.after(device, Lane::Down, w.signal)?;
            }
            return Ok(w.number);
        }
        if self.given > self.done {
            let signal = self.signal(device, Lane::Compute)?;
            self.after(device, Lane::Down, signal)?;
            self.free.push(signal);
        }
        Ok(self.given)
    }

    /// The host has waited for a copy down, and with it for what that waited for.
    pub(super) fn downloaded(&mut self, number: u64) {
        self.done = self.done.max(number);
    }
}
