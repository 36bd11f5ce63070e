//! Bulk copies and their groups (PTX ISA, `cp.async.bulk`, `cp.reduce.async.bulk`): they
//! are done at once, and an agent did them that a thread has to wait for.

use super::access::{resolve, shared_place};
use super::ast::{Operand, Space};
use super::atomic::{self, AtomOp};
use super::decode::Cx;
use super::exec::Machine;
use super::fault::{FaultKind, Outcome, Trouble, trouble};
use super::mbar;
use super::memory::Span;
use super::op::{Addr, Op};
use super::order::having_seen;
use super::regs::{Slot, lanes};
use super::report::Class;
use super::shared::{CTA_STRIDE, Reader, Written};
use super::tma::{self, TensorCopy};
use super::types::Ty;
use super::warp::Warp;
use crate::error::Result;

/// Where a bulk copy goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// From global to shared memory.
    Load,
    /// From shared to global memory.
    Store,
    /// From the CTA's to another CTA's shared memory.
    Across,
}

/// A bulk copy.
pub struct Bulk {
    way: Way,
    to: Addr,
    from: Addr,
    size: Slot,
    /// The mbarrier that it completes.
    bar: Option<Addr>,
    /// The CTAs that get it.
    mask: Option<Slot>,
    /// What is done to each element.
    reduce: Option<(AtomOp, u32)>,
}

/// The bulk stores of a lane that nobody waited for.
#[derive(Default)]
pub struct Groups {
    /// When the last one was issued since the last commit.
    open: Option<u32>,
    /// Groups: when their last one was.
    closed: Vec<u32>,
}

impl Groups {
    /// Whether one still reads.
    pub fn pending(&self) -> bool {
        self.open.is_some() || !self.closed.is_empty()
    }
}

/// `cp.async.bulk…` and `cp.reduce.async.bulk…`.
pub fn decode(cx: &mut Cx) -> Result<Op> {
    cx.class = Class::Memory;
    cx.need(90, 80)?;
    cx.uses().bulk = true;
    cx.granule(16);
    let reduce = cx.accept("reduce");
    cx.require("async")?;
    cx.require("bulk")?;
    if cx.accept("commit_group") {
        cx.class = Class::Sync;
        cx.count(0)?;
        return Ok(Op::BulkCommit);
    }
    if cx.accept("wait_group") {
        cx.class = Class::Sync;
        // Writes are done when reads are.
        cx.accept("read");
        cx.count(1)?;
        return Ok(Op::BulkWait(cx.known_in(0, 0..=1 << 20)? as u32));
    }
    let prefetch = cx.accept("prefetch");
    if cx.accept("tensor") {
        return tma::decode(cx, reduce, prefetch);
    }
    if prefetch {
        cx.require("L2")?;
        cx.require("global")?;
        let hint = cx.cache_hint();
        cx.count(2 + hint as usize)?;
        cx.addr(0, Space::Global)?;
        cx.src(1, Ty::U32)?;
        return Ok(Op::Nop);
    }
    let way = way(cx)?;
    let multicast = completion(cx, way)?;
    let hint = cx.cache_hint();
    let reduce = if reduce { Some(reduction(cx)?) } else { None };
    if reduce.is_some() && way == Way::Load {
        return cx.err(
            "reductions go to global memory, or to another CTA",
            "store with cp.reduce",
        );
    }
    let bar = way != Way::Store;
    cx.count(3 + bar as usize + multicast as usize + hint as usize)?;
    let (to, from) = match way {
        Way::Load => (cx.addr(0, Space::Shared)?, cx.addr(1, Space::Global)?),
        Way::Store => (cx.addr(0, Space::Global)?, cx.addr(1, Space::Shared)?),
        Way::Across => (cx.addr(0, Space::Shared)?, cx.addr(1, Space::Shared)?),
    };
    let size = cx.src(2, Ty::U32)?;
    let bar = if bar {
        Some(cx.addr(3, Space::Shared)?)
    } else {
        None
    };
    let mask = if multicast {
        Some(cx.src(4, Ty::B16)?)
    } else {
        None
    };
    policy(cx, hint)?;
    if reduce.is_some() && way == Way::Across {
        return cx.err(
            "reductions into another CTA are not simulated",
            "reduce into global memory",
        );
    }
    Ok(Op::Bulk(Bulk {
        way,
        to,
        from,
        size,
        bar,
        mask,
        reduce,
    }))
}

/// The destination and the source.
pub fn way(cx: &mut Cx) -> Result<Way> {
    let to = cx.one_of(&[("shared::cluster", 0u8), ("shared::cta", 0), ("global", 1)])?;
    let from = match to {
        0 => cx.one_of(&[("global", Way::Load), ("shared::cta", Way::Across)])?,
        _ => cx.one_of(&[("shared::cta", Way::Store)])?,
    };
    Ok(from)
}

/// How completion is told, and whether several CTAs get the data.
pub fn completion(cx: &mut Cx, way: Way) -> Result<bool> {
    if way == Way::Store {
        cx.require("bulk_group")?;
        return Ok(false);
    }
    cx.require("mbarrier::complete_tx::bytes")?;
    Ok(way == Way::Load && cx.accept("multicast::cluster"))
}

/// The cache policy, the last operand.
pub fn policy(cx: &mut Cx, hint: bool) -> Result<()> {
    if hint {
        let last = cx.i.operands.len() - 1;
        cx.src(last, Ty::B64)?;
    }
    Ok(())
}

fn reduction(cx: &mut Cx) -> Result<(AtomOp, u32)> {
    let (op, ty) = atomic::decode_reduction(cx)?;
    cx.uses().ordered |= !op.commutes();
    Ok((op, ty.bytes()))
}

/// The mask of CTAs of a multicast, or the one CTA that is addressed.
pub fn targets(
    m: &Machine,
    warp: &Warp,
    mask: Option<Slot>,
    lane: usize,
    rank: usize,
) -> Outcome<Vec<usize>> {
    let Some(slot) = mask else {
        return Ok(vec![rank]);
    };
    let bits = warp.regs[slot as usize].0[lane] & 0xffff;
    if bits == 0 || bits >> m.ctas.len() != 0 {
        let what = format!(
            "a copy to the CTAs {bits:#x} of a cluster of {}",
            m.ctas.len()
        );
        return Err(trouble(
            FaultKind::Operand,
            what,
            "a bit for each CTA of the cluster",
        ));
    }
    Ok(lanes(bits).collect())
}

fn bad(what: impl Into<String>) -> Box<Trouble> {
    trouble(
        FaultKind::Misaligned,
        what,
        "addresses and sizes of bulk copies are multiples of 16",
    )
}

/// Executes a bulk copy of each lane.
pub fn copy(m: &mut Machine, warp: &mut Warp, op: &Bulk, active: u32) -> Outcome {
    for lane in lanes(active) {
        one(m, warp, op, lane).map_err(|t| t.lane(lane))?;
    }
    Ok(())
}

fn one(m: &mut Machine, warp: &mut Warp, op: &Bulk, lane: usize) -> Outcome {
    let size = warp.regs[op.size as usize].0[lane] as u64;
    let (to, from) = (op.to.lane(&warp.regs, lane), op.from.lane(&warp.regs, lane));
    if to % 16 != 0 || from % 16 != 0 || !size.is_multiple_of(16) {
        return Err(bad(format!(
            "a bulk copy of {size} bytes from {from:#x} to {to:#x}"
        )));
    }
    match op.way {
        Way::Store => {
            let data = read_shared(m, warp, lane, from, size)?;
            write_global(m, to, &data, op.reduce)?;
            warp.groups_of[lane].open = Some(m.now);
            m.report.global_stored += size;
            count(m, size);
        }
        Way::Load => {
            let mut span = Span::default();
            let mut data = Vec::with_capacity(size as usize);
            for i in (0..size).step_by(8) {
                data.extend(m.env.global.load(from + i, 8, &mut span)?.to_le_bytes());
            }
            m.report.global_loaded += size;
            count(m, size);
            deliver(m, warp, lane, (to, op.bar), op.mask, &[(0, data)])?;
        }
        Way::Across => {
            let data = read_shared(m, warp, lane, from, size)?;
            deliver(m, warp, lane, (to, op.bar), None, &[(0, data)])?;
        }
    }
    Ok(())
}

fn count(m: &mut Machine, size: u64) {
    m.report.global_sectors += size.div_ceil(32);
    m.report.global_sectors_least += size.div_ceil(32);
}

/// Bytes of the CTA's shared memory, read by the warp's agent for bulk copies.
pub fn read_shared(
    m: &mut Machine,
    warp: &Warp,
    lane: usize,
    from: u64,
    size: u64,
) -> Outcome<Vec<u8>> {
    let (rank, offset) = shared_place(m, warp, from, false)?;
    let now = m.now;
    let shared = &mut m.ctas[rank].shared;
    for i in (0..size).step_by(16) {
        let reader = Reader::Bulk(warp.index);
        shared
            .read(offset + i, 16, &warp.views[lane], reader, now)
            .map_err(|t| t.at(from + i))?;
    }
    Ok(shared.bytes[offset as usize..][..size as usize].to_vec())
}

fn write_global(m: &mut Machine, to: u64, data: &[u8], reduce: Option<(AtomOp, u32)>) -> Outcome {
    let mut span = Span::default();
    let Some((op, size)) = reduce else {
        for (i, chunk) in data.chunks(8).enumerate() {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            m.env
                .global
                .store(to + 8 * i as u64, 8, u64::from_le_bytes(word), &mut span)?;
        }
        return Ok(());
    };
    for (i, chunk) in data.chunks(size as usize).enumerate() {
        reduce_one(m, to + i as u64 * size as u64, chunk, op)?;
    }
    Ok(())
}

/// Reduces an element into global memory.
pub fn reduce_one(m: &Machine, at: u64, value: &[u8], op: AtomOp) -> Outcome {
    let mut word = [0; 8];
    word[..value.len()].copy_from_slice(value);
    let value_of = u64::from_le_bytes(word);
    m.env
        .global
        .update(at, value.len() as u32, |old| op.apply(old, value_of, 0))
        .map(|_| ())
}

/// Puts data into shared memory of one or several CTAs, at offsets from `to`, on behalf of
/// the mbarrier that it completes there.
pub fn deliver(
    m: &mut Machine,
    warp: &Warp,
    lane: usize,
    (to, bar): (u64, Option<Addr>),
    mask: Option<Slot>,
    data: &[(u64, Vec<u8>)],
) -> Outcome {
    let (rank, offset) = shared_place(m, warp, to, true)?;
    let Some(bar) = bar else {
        return Ok(());
    };
    let (_, bar) = resolve(Space::Shared, bar.lane(&warp.regs, lane));
    let (bar_rank, bar_offset) = shared_place(m, warp, bar, true)?;
    if mask.is_none() && bar_rank != rank {
        let help = "the mbarrier lies in the CTA that gets the data";
        return Err(trouble(
            FaultKind::Operand,
            "the mbarrier is in another CTA than the data",
            help,
        )
        .at(bar));
    }
    for target in targets(m, warp, mask, lane, rank)? {
        let agent = mbar::bulk_agent(m, warp, lane, target, bar_offset).map_err(|t| t.at(bar))?;
        let (now, view) = (m.now, &warp.views[lane]);
        let shared = &mut m.ctas[target].shared;
        let mut total = 0;
        for (start, bytes) in data {
            let at = offset + start;
            shared
                .write(at, bytes.len() as u64, view, agent, Written::Async, now)
                .map_err(|t| t.at(target as u64 * CTA_STRIDE + at))?;
            shared.bytes[at as usize..][..bytes.len()].copy_from_slice(bytes);
            total += bytes.len() as u64;
        }
        mbar::complete_bytes(m, target, bar_offset, total);
    }
    Ok(())
}

/// `cp.async.bulk.commit_group`
pub fn commit(m: &mut Machine, warp: &mut Warp, active: u32) {
    m.tick();
    for lane in lanes(active) {
        let groups = &mut warp.groups_of[lane];
        let stamp = groups.open.take().unwrap_or(0);
        groups.closed.push(stamp);
    }
}

/// `cp.async.bulk.wait_group N`: shared memory that older groups read is free.
pub fn wait(m: &mut Machine, warp: &mut Warp, left: u32, active: u32) {
    for lane in lanes(active) {
        let groups = &mut warp.groups_of[lane];
        let done = groups.closed.len().saturating_sub(left as usize);
        let Some(stamp) = groups.closed.drain(..done).max() else {
            continue;
        };
        let agent = m.ctas[warp.rank].shared.agent(Reader::Bulk(warp.index));
        let view = &mut warp.views[lane];
        view.clock = having_seen(&view.clock, agent, stamp);
    }
}

/// A lane ended while bulk copies or wgmma still read the CTA's shared memory.
pub fn unfinished(warp: &Warp, ended: u32) -> Outcome {
    if warp.flight.count > 0 {
        let help = "wgmma.wait_group 0 before the end";
        return Err(trouble(
            FaultKind::MissingWait,
            "the thread ends with wgmma in flight",
            help,
        ));
    }
    match lanes(ended).find(|lane| warp.groups_of[*lane].pending()) {
        None => Ok(()),
        Some(lane) => {
            let what = "the thread ends while its bulk copies may still read shared memory";
            let help = "cp.async.bulk.commit_group and wait_group.read before the end";
            Err(trouble(FaultKind::MissingWait, what, help).lane(lane))
        }
    }
}

/// Executes a tensor copy of each lane.
pub fn tensor(m: &mut Machine, warp: &mut Warp, op: &TensorCopy, active: u32) -> Outcome {
    for lane in lanes(active) {
        let stored = tma::one(m, warp, op, lane).map_err(|t| t.lane(lane))?;
        if stored {
            warp.groups_of[lane].open = Some(m.now);
        }
    }
    Ok(())
}

/// The parts of `[map, {x, y}]`.
pub fn coordinates(cx: &mut Cx, i: usize, rank: usize) -> Result<(Addr, Box<[Slot]>)> {
    let mem = match cx.operand(i)? {
        Operand::Mem(mem) if mem.coords.len() == rank => mem.clone(),
        _ => {
            return cx.err(
                format!("operand {i} is a tensor map with {rank} coordinates"),
                "write `[map, {x, …}]`",
            );
        }
    };
    let map = cx.mem(&mem, Space::Generic)?;
    let slots = mem
        .coords
        .iter()
        .map(|c| cx.read(c, Ty::S32, Ty::stands_for))
        .collect::<Result<_>>()?;
    Ok((map, slots))
}
