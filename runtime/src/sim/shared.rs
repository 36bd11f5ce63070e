//! A CTA's shared memory: its bytes, and for every cell (as many bytes as the kernel's
//! narrowest access has) who wrote it and who read it last, and when.

use super::fault::{FaultKind, Outcome, Trouble, trouble};
use super::mbar::Mbar;
use super::memory::{misaligned, unwritten};
use super::order::{Agent, Clock, View};
use super::regs::lanes;
use super::report::Report;
use std::collections::BTreeMap;
use std::rc::Rc;

/// Bytes that shared addresses of neighbouring CTAs of a cluster lie apart.
pub const CTA_STRIDE: u64 = 1 << 24;

/// Shared memory of one CTA.
pub struct Shared {
    /// The contents.
    pub bytes: Vec<u8>,
    /// mbarriers by offset.
    pub mbars: BTreeMap<u32, Mbar>,
    /// What was published at an offset by a release.
    pub released: BTreeMap<u32, Rc<Clock>>,
    cells: Vec<Cell>,
    /// For each cell a column of each reader: the stamp, and lanes or an agent.
    reads: Vec<(u32, u32)>,
    columns: usize,
    /// Bytes of a cell as a shift.
    shift: u32,
    /// Stamps before this are of an earlier CTA.
    start: u32,
    warps: u32,
    /// The first thread's agent.
    first: Agent,
    /// The first agent that acts for a warp.
    agents: Agent,
}

#[derive(Clone, Copy, Default)]
struct Cell {
    /// When it was written.
    stamp: u32,
    /// By whom.
    writer: Agent,
    /// When lanes read it last.
    read: u32,
    /// When an agent, or another CTA, read it last.
    read_async: u32,
    kind: Written,
}

/// How a cell was written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Written {
    /// By a store.
    #[default]
    Generic,
    /// By an atomic.
    Atomic,
    /// By a copy that has not been waited for: `cp.async`.
    Pending,
    /// By a bulk copy.
    Async,
    /// It is an mbarrier.
    Mbarrier,
}

/// Who reads.
#[derive(Clone, Copy, Debug)]
pub enum Reader {
    /// A lane of a warp of this CTA.
    Lane(u32, u32),
    /// Another CTA's thread.
    Remote,
    /// wgmma of a warp.
    Wgmma(u32),
    /// A bulk copy of a warp.
    Bulk(u32),
}

impl Shared {
    /// Not yet of any CTA: `granule` bytes a cell, `warps` of the CTA; `agents` are the
    /// columns beside warps' own.
    pub fn new(bytes: usize, granule: u32, warps: u32, agents: bool) -> Shared {
        let shift = granule.trailing_zeros();
        let cells = bytes.div_ceil(granule as usize);
        let columns = if agents {
            3 * warps as usize + 1
        } else {
            warps as usize
        };
        Shared {
            bytes: vec![0; cells << shift],
            mbars: BTreeMap::new(),
            released: BTreeMap::new(),
            cells: vec![Cell::default(); cells],
            reads: vec![(0, 0); cells * columns],
            columns,
            shift,
            start: 1,
            warps,
            first: 0,
            agents: 0,
        }
    }

    /// For the CTA of this rank of `ctas`, whose accesses are stamped from `start` on.
    pub fn reset(&mut self, start: u32, rank: u32, ctas: u32) {
        self.start = start;
        self.first = rank * self.warps * 32;
        self.agents = (ctas * 32 + rank * 2) * self.warps;
        self.mbars.clear();
        self.released.clear();
    }

    fn cells_of(&self, at: u64, len: u64) -> Outcome<std::ops::Range<usize>> {
        let size = self.bytes.len() as u64;
        if at.checked_add(len).is_none_or(|end| end > size) {
            let what = format!("{len} bytes of shared memory, of which the CTA has {size}");
            let help = "check the index, and the dynamic size that the launch gives";
            return Err(trouble(FaultKind::OutOfBounds, what, help).at(at));
        }
        Ok((at >> self.shift) as usize..((at + len).div_ceil(1 << self.shift)) as usize)
    }

    fn aligned(at: u64, len: u64) -> Outcome {
        if !at.is_multiple_of(len.next_power_of_two().min(16)) {
            return Err(misaligned(at, len));
        }
        Ok(())
    }

    /// `view` reads: asynchronously if the reader is an agent.
    pub fn read(&mut self, at: u64, len: u64, view: &View, reader: Reader, now: u32) -> Outcome {
        Shared::aligned(at, len)?;
        for i in self.cells_of(at, len)? {
            let cell = self.cells[i];
            if cell.stamp < self.start {
                return Err(unwritten("shared", len).at(at));
            }
            if cell.kind == Written::Mbarrier {
                return Err(mbarrier_as_data().at(at));
            }
            let asynchronous = matches!(reader, Reader::Wgmma(_) | Reader::Bulk(_));
            let by_thread = !matches!(cell.kind, Written::Async | Written::Pending);
            let seen = by_thread && view.past(cell.stamp) || view.sees(cell.writer, cell.stamp);
            if cell.kind == Written::Pending || !seen {
                return Err(self.unordered(cell, "is read").at(at));
            }
            if asynchronous && by_thread && !view.proxied(cell.writer, cell.stamp) {
                let what = "generic writes to shared memory are read asynchronously, without a proxy fence";
                let help = "fence.proxy.async after the writes, before the barrier";
                return Err(trouble(FaultKind::MissingFence, what, help).at(at));
            }
            self.note_read(i, reader, view, now);
        }
        Ok(())
    }

    /// A lane's read where nothing can be wrong: false sends it to [`Shared::read`].
    #[inline]
    pub fn quick_read(
        &mut self,
        at: u64,
        len: u64,
        view: &View,
        (warp, lane): (u32, u32),
        now: u32,
    ) -> bool {
        if at & (len - 1) != 0 || at.saturating_add(len) > self.bytes.len() as u64 {
            return false;
        }
        for i in (at >> self.shift) as usize..=((at + len - 1) >> self.shift) as usize {
            let cell = &mut self.cells[i];
            let plain = matches!(cell.kind, Written::Generic | Written::Atomic);
            let seen = view.past(cell.stamp) || view.sees(cell.writer, cell.stamp);
            if cell.stamp < self.start || !plain || !seen {
                return false;
            }
            cell.read = now;
            let entry = &mut self.reads[i * self.columns + warp as usize];
            *entry = (now, 1 << lane | if entry.0 == now { entry.1 } else { 0 });
        }
        true
    }

    /// A lane's store where nothing can be wrong: false sends it to [`Shared::write`].
    #[inline]
    pub fn quick_write(&mut self, at: u64, len: u64, view: &View, now: u32) -> bool {
        if at & (len - 1) != 0 || at.saturating_add(len) > self.bytes.len() as u64 {
            return false;
        }
        let cells = (at >> self.shift) as usize..=((at + len - 1) >> self.shift) as usize;
        for i in cells.clone() {
            let cell = &self.cells[i];
            let plain = matches!(cell.kind, Written::Generic | Written::Atomic);
            let seen = view.past(cell.stamp) || view.sees(cell.writer, cell.stamp);
            let written = cell.stamp >= self.start && !(plain && seen);
            let read = cell.read >= self.start && !view.past(cell.read);
            if written || read || cell.read_async >= self.start {
                return false;
            }
        }
        for i in cells {
            let cell = &mut self.cells[i];
            (cell.stamp, cell.writer, cell.kind) = (now, view.agent, Written::Generic);
        }
        true
    }

    #[inline]
    fn note_read(&mut self, i: usize, reader: Reader, view: &View, now: u32) {
        let warps = self.warps;
        let (column, value) = match reader {
            Reader::Lane(warp, lane) => (warp, 1 << lane),
            Reader::Wgmma(warp) => (warps + warp, 0),
            Reader::Bulk(warp) => (2 * warps + warp, 0),
            Reader::Remote => (3 * warps, view.agent),
        };
        let entry = &mut self.reads[i * self.columns + column as usize];
        if matches!(reader, Reader::Lane(..)) {
            *entry = if entry.0 == now {
                (now, entry.1 | value)
            } else {
                (now, value)
            };
            self.cells[i].read = now;
        } else {
            *entry = (now, value);
            self.cells[i].read_async = now;
        }
    }

    /// `view` writes, or the agent `writer` on its behalf.
    pub fn write(
        &mut self,
        at: u64,
        len: u64,
        view: &View,
        writer: Agent,
        kind: Written,
        now: u32,
    ) -> Outcome {
        Shared::aligned(at, len)?;
        for i in self.cells_of(at, len)? {
            self.check_write(i, view, kind).map_err(|t| t.at(at))?;
            let cell = &mut self.cells[i];
            (cell.stamp, cell.writer, cell.kind) = (now, writer, kind);
        }
        Ok(())
    }

    fn check_write(&self, i: usize, view: &View, kind: Written) -> Outcome {
        let cell = self.cells[i];
        if cell.stamp >= self.start {
            if cell.kind == Written::Mbarrier {
                return Err(mbarrier_as_data());
            }
            let by_thread = !matches!(cell.kind, Written::Async | Written::Pending);
            let both = kind == Written::Atomic && cell.kind == Written::Atomic;
            let seen = by_thread && view.past(cell.stamp) || view.sees(cell.writer, cell.stamp);
            if cell.kind == Written::Pending || !(seen || both) {
                return Err(self.unordered(cell, "is overwritten"));
            }
        }
        if cell.read >= self.start && !view.past(cell.read) {
            self.check_lanes(i, view)?;
        }
        if cell.read_async >= self.start {
            self.check_agents(i, view)?;
        }
        Ok(())
    }

    /// Lanes that read cell `i` did so before.
    fn check_lanes(&self, i: usize, view: &View) -> Outcome {
        let row = &self.reads[i * self.columns..][..self.warps as usize];
        for (warp, (stamp, mask)) in row.iter().enumerate() {
            if *stamp < self.start || view.past(*stamp) {
                continue;
            }
            for lane in lanes(*mask) {
                let agent = self.first + warp as u32 * 32 + lane as u32;
                if !view.sees(agent, *stamp) {
                    let what = format!(
                        "shared memory that thread {} reads is overwritten, and nothing orders them",
                        agent - self.first
                    );
                    return Err(race(what));
                }
            }
        }
        Ok(())
    }

    /// Agents that read cell `i` are known to be done.
    fn check_agents(&self, i: usize, view: &View) -> Outcome {
        let row = &self.reads[i * self.columns..][..self.columns];
        for (column, (stamp, value)) in row.iter().enumerate().skip(self.warps as usize) {
            let warp = column as u32 % self.warps.max(1);
            let (agent, what, help) = match column as u32 / self.warps.max(1) {
                1 => (
                    self.agent(Reader::Wgmma(warp)),
                    "shared memory that wgmma still reads is overwritten",
                    "wgmma.wait_group, then a barrier, before the write",
                ),
                2 => (
                    self.agent(Reader::Bulk(warp)),
                    "shared memory that a bulk copy still reads is overwritten",
                    "cp.async.bulk.wait_group.read, then a barrier, before the write",
                ),
                _ => (
                    *value,
                    "shared memory that another CTA reads is overwritten",
                    "order them by a barrier",
                ),
            };
            if *stamp >= self.start && !view.sees(agent, *stamp) {
                let kind = if column as u32 / self.warps.max(1) < 3 {
                    FaultKind::MissingWait
                } else {
                    FaultKind::Race
                };
                return Err(trouble(kind, what, help));
            }
        }
        Ok(())
    }

    /// The number of the agent that reads for a warp: after all threads of the cluster.
    pub fn agent(&self, reader: Reader) -> Agent {
        match reader {
            Reader::Wgmma(warp) => self.agents + warp,
            Reader::Bulk(warp) => self.agents + self.warps + warp,
            Reader::Lane(warp, lane) => self.first + warp * 32 + lane,
            Reader::Remote => 0,
        }
    }

    fn unordered(&self, cell: Cell, what: &str) -> Box<Trouble> {
        match cell.kind {
            Written::Pending => trouble(
                FaultKind::MissingWait,
                format!("shared memory that cp.async still writes {what}"),
                "cp.async.wait_group (then a barrier) before it",
            ),
            Written::Async => trouble(
                FaultKind::MissingWait,
                format!(
                    "shared memory that a bulk copy writes {what}, before its mbarrier was waited for"
                ),
                "wait for the phase of the mbarrier that the copy completes",
            ),
            _ => race(format!(
                "shared memory that thread {} writes {what}, and nothing orders them",
                cell.writer.wrapping_sub(self.first)
            )),
        }
    }

    /// Copies by `cp.async` have landed, by `agent`.
    pub fn landed(&mut self, at: u64, len: u64, agent: Agent, kind: Written, now: u32) {
        let Ok(cells) = self.cells_of(at, len) else {
            return;
        };
        for i in cells {
            let cell = &mut self.cells[i];
            if cell.kind == Written::Pending {
                (cell.kind, cell.writer, cell.stamp) = (kind, agent, now);
            }
        }
    }

    /// The bytes become an mbarrier, or stop being one.
    pub fn mark_mbarrier(&mut self, at: u64, view: &View, on: bool, now: u32) -> Outcome {
        Shared::aligned(at, 8)?;
        for i in self.cells_of(at, 8)? {
            if on {
                self.check_write(i, view, Written::Generic)
                    .map_err(|t| t.at(at))?;
            }
            let kind = if on {
                Written::Mbarrier
            } else {
                Written::Generic
            };
            let cell = &mut self.cells[i];
            (cell.stamp, cell.writer, cell.kind) = (now, view.agent, kind);
        }
        Ok(())
    }

    /// An mbarrier is here, and `view` knows that it was initialised; `asynchronous`: also
    /// what acts for it does.
    pub fn check_mbarrier(&self, at: u64, view: &View, asynchronous: bool) -> Outcome {
        Shared::aligned(at, 8)?;
        for i in self.cells_of(at, 8)? {
            let cell = self.cells[i];
            if cell.stamp < self.start || cell.kind != Written::Mbarrier {
                let help = "mbarrier.init first";
                return Err(trouble(FaultKind::Mbarrier, "no mbarrier is here", help));
            }
            if !(view.past(cell.stamp) || view.sees(cell.writer, cell.stamp)) {
                return Err(race(
                    "an mbarrier that another thread initialises is used, and nothing orders them",
                ));
            }
            if asynchronous && !view.proxied(cell.writer, cell.stamp) {
                let help = "fence.mbarrier_init or fence.proxy.async after mbarrier.init";
                let what = "an mbarrier is used by a bulk copy that may not see its initialisation";
                return Err(trouble(FaultKind::MissingFence, what, help));
            }
        }
        Ok(())
    }

    /// Whether something wrote all of these bytes; also what is outside counts, so
    /// that the access itself says what is wrong.
    pub fn is_written(&self, at: u64, len: u64) -> bool {
        let cells = self.cells_of(at, len).unwrap_or(0..0);
        self.cells[cells]
            .iter()
            .all(|cell| cell.stamp >= self.start)
    }

    /// The value of 1, 2, 4 or 8 bytes that are known to be inside.
    #[inline]
    pub fn get(&self, at: u64, len: u32) -> u64 {
        let bytes = &self.bytes[at as usize..][..len as usize];
        match *bytes {
            [a] => a as u64,
            [a, b] => u16::from_le_bytes([a, b]) as u64,
            [a, b, c, d] => u32::from_le_bytes([a, b, c, d]) as u64,
            [a, b, c, d, e, f, g, h] => u64::from_le_bytes([a, b, c, d, e, f, g, h]),
            _ => 0,
        }
    }

    /// Sets up to 8 bytes that are known to be inside.
    #[inline]
    pub fn set(&mut self, at: u64, len: u32, value: u64) {
        self.bytes[at as usize..][..len as usize]
            .copy_from_slice(&value.to_le_bytes()[..len as usize]);
    }
}

fn race(what: impl Into<String>) -> Box<Trouble> {
    let help = "bar.sync between the accesses (bar.warp.sync inside a warp)";
    trouble(FaultKind::Race, what, help)
}

fn mbarrier_as_data() -> Box<Trouble> {
    let help = "mbarrier.inval before the bytes are used otherwise";
    trouble(FaultKind::Mbarrier, "an mbarrier is accessed as data", help)
}

/// Counts an access of `size` bytes a lane and its bank conflicts: 32 banks of 4 bytes,
/// 8-byte accesses in two halves of the warp, 16-byte ones in four quarters.
pub fn count_banks(addrs: &[u64; 32], mask: u32, size: u32, report: &mut Report) {
    report.shared_accesses += 1;
    let group = (128 / size.clamp(4, 16)) as usize;
    if size == 4 {
        // One word a bank, or one word for all: nothing to look for.
        let first = addrs[mask.trailing_zeros() as usize & 31];
        let banks = lanes(mask).fold(0u32, |m, lane| m | 1 << (addrs[lane] / 4 % 32));
        if banks.count_ones() == mask.count_ones() || lanes(mask).all(|lane| addrs[lane] == first) {
            return;
        }
    }
    for first in (0..32).step_by(group) {
        let mut words = [u64::MAX; 32];
        let mut extra = [0u32; 32];
        let mut more: Vec<u64> = vec![];
        for lane in lanes(mask).filter(|l| (first..first + group).contains(l)) {
            for word in addrs[lane] / 4..(addrs[lane] + size as u64).div_ceil(4) {
                let bank = (word % 32) as usize;
                if words[bank] == u64::MAX {
                    words[bank] = word;
                } else if words[bank] != word && !more.contains(&word) {
                    more.push(word);
                    extra[bank] += 1;
                }
            }
        }
        report.bank_conflicts += *extra.iter().max().unwrap_or(&0) as u64;
    }
}
