//! Copies without bulk (PTX ISA, `cp.async` and its waits): the bytes are in place at
//! once, and belong to nobody until the thread waits.

use super::access::{count_sectors, resolve, shared_place};
use super::ast::{Operand, Space};
use super::decode::Cx;
use super::exec::Machine;
use super::fault::{FaultKind, Outcome, trouble};
use super::memory::{Span, misaligned};
use super::op::{Addr, Op};
use super::regs::{Slot, lanes, predicate};
use super::report::Class;
use super::shared::Written;
use super::types::Ty;
use super::warp::Warp;
use crate::error::Result;
use std::collections::VecDeque;

/// `cp.async`
pub struct CpAsync {
    to: Addr,
    from: Addr,
    size: u32,
    /// Bytes that are read; the others become zero.
    bytes: Option<Slot>,
    /// Where the predicate holds, all become zero.
    ignore: Option<(Slot, bool)>,
}

/// A copy that a lane has not waited for.
#[derive(Clone, Copy)]
struct Copy {
    lane: u32,
    rank: usize,
    offset: u64,
    size: u32,
}

/// The copies of a warp.
#[derive(Default)]
pub struct Pending {
    /// Since the last commit.
    open: Vec<Copy>,
    /// Committed groups, oldest first: the lanes that committed.
    groups: VecDeque<(u32, Vec<Copy>)>,
}

pub fn decode(cx: &mut Cx) -> Result<Op> {
    cx.class = Class::Memory;
    cx.need(80, 70)?;
    cx.require("async")?;
    if cx.accept("commit_group") {
        cx.class = Class::Sync;
        cx.count(0)?;
        return Ok(Op::CpCommit);
    }
    if cx.accept("wait_group") {
        cx.class = Class::Sync;
        cx.count(1)?;
        return Ok(Op::CpWait(Some(cx.known_in(0, 0..=1 << 20)? as u32)));
    }
    if cx.accept("wait_all") {
        cx.class = Class::Sync;
        cx.count(0)?;
        return Ok(Op::CpWait(None));
    }
    if cx.accept("mbarrier") {
        cx.class = Class::Sync;
        cx.require("arrive")?;
        let keep = cx.accept("noinc");
        let space = match cx.choice(&[("shared", ()), ("shared::cta", ())]) {
            Some(()) => Space::Shared,
            None => Space::Generic,
        };
        cx.require("b64")?;
        cx.count(1)?;
        cx.uses().bulk = true;
        cx.granule(8);
        let addr = cx.addr(0, space)?;
        return Ok(Op::CpArrive(addr, space, keep));
    }
    let all = cx.one_of(&[("ca", true), ("cg", false)])?;
    cx.one_of(&[("shared", ()), ("shared::cta", ())])?;
    cx.require("global")?;
    let hint = cx.cache_hint();
    cx.choice(&[("L2::64B", ()), ("L2::128B", ()), ("L2::256B", ())]);
    cx.count_in(3 + hint as usize, 4 + hint as usize)?;
    let (to, from) = (cx.addr(0, Space::Shared)?, cx.addr(1, Space::Global)?);
    let size = cx.known(2)? as u32;
    if !(size == 16 || all && matches!(size, 4 | 8)) {
        return cx.err(
            "a copy has 4, 8 or 16 bytes, .cg ones 16",
            "write one of them",
        );
    }
    let (mut bytes, mut ignore) = (None, None);
    if cx.i.operands.len() == 4 + hint as usize {
        let pred = match cx.operand(3)? {
            Operand::Not(_) => true,
            other => cx.declared(other) == Some(Ty::Pred),
        };
        match pred {
            true => ignore = Some(cx.pred(3)?),
            false => bytes = Some(cx.src(3, Ty::U32)?),
        }
    }
    if hint {
        let last = cx.i.operands.len() - 1;
        cx.src(last, Ty::B64)?;
    }
    cx.granule(size);
    Ok(Op::CpAsync(CpAsync {
        to,
        from,
        size,
        bytes,
        ignore,
    }))
}

/// Executes `cp.async`.
pub fn copy(m: &mut Machine, warp: &mut Warp, op: &CpAsync, active: u32) -> Outcome {
    let (to, from) = (op.to.lanes(&warp.regs), op.from.lanes(&warp.regs));
    let (mut span, now) = (Span::default(), m.now);
    let ignored = op.ignore.map_or(0, |(slot, negated)| {
        predicate(&warp.regs, slot) ^ if negated { u32::MAX } else { 0 }
    });
    let mut read = 0;
    for lane in lanes(active) {
        let bytes = match op.bytes {
            _ if ignored >> lane & 1 == 1 => 0,
            Some(slot) => warp.regs[slot as usize].0[lane],
            None => op.size,
        };
        if bytes > op.size {
            let what = format!("a copy of {} bytes reads {bytes}", op.size);
            return Err(
                trouble(FaultKind::Operand, what, "read at most what is copied").lane(lane),
            );
        }
        let one = lane_copy(
            m,
            warp,
            op,
            lane,
            (to[lane], from[lane]),
            bytes,
            &mut span,
            now,
        );
        one.map_err(|t| t.lane(lane))?;
        m.report.global_loaded += bytes as u64;
        read |= ((bytes > 0) as u32) << lane;
    }
    if read != 0 {
        count_sectors(m, &from, read, op.size);
    }
    Ok(())
}

#[allow(
    clippy::too_many_arguments,
    reason = "both ends of a copy, and its sizes"
)]
fn lane_copy(
    m: &mut Machine,
    warp: &mut Warp,
    op: &CpAsync,
    lane: usize,
    (to, from): (u64, u64),
    bytes: u32,
    span: &mut Span,
    now: u32,
) -> Outcome {
    for at in [to, from] {
        if at % op.size as u64 != 0 {
            return Err(misaligned(at, op.size as u64));
        }
    }
    let mut data = [0u8; 16];
    let whole = bytes / 4 * 4;
    for i in (0..whole).step_by(4) {
        let word = m.env.global.load(from + i as u64, 4, span)? as u32;
        data[i as usize..][..4].copy_from_slice(&word.to_le_bytes());
    }
    for i in whole..bytes {
        data[i as usize] = m.env.global.load(from + i as u64, 1, span)? as u8;
    }
    let (rank, offset) = shared_place(m, warp, to, false)?;
    let (view, shared) = (&warp.views[lane], &mut m.ctas[rank].shared);
    shared
        .write(
            offset,
            op.size as u64,
            view,
            view.agent,
            Written::Pending,
            now,
        )
        .map_err(|t| t.at(to))?;
    shared.bytes[offset as usize..][..op.size as usize].copy_from_slice(&data[..op.size as usize]);
    warp.pending.open.push(Copy {
        lane: lane as u32,
        rank,
        offset,
        size: op.size,
    });
    Ok(())
}

/// `cp.async.commit_group`
pub fn commit(warp: &mut Warp, active: u32) {
    let pending = &mut warp.pending;
    let (group, rest) = pending
        .open
        .iter()
        .partition(|copy| active >> copy.lane & 1 == 1);
    pending.open = rest;
    pending.groups.push_back((active, group));
}

/// `cp.async.wait_group N`, or of everything: the copies are the lanes' own writes.
pub fn wait(m: &mut Machine, warp: &mut Warp, left: Option<u32>, active: u32) {
    let now = m.tick() + 1;
    let mut landed = vec![];
    if left.is_none() {
        landed.extend(
            warp.pending
                .open
                .iter()
                .filter(|c| active >> c.lane & 1 == 1)
                .copied(),
        );
        warp.pending.open.retain(|c| active >> c.lane & 1 == 0);
    }
    for lane in lanes(active) {
        let bit = 1 << lane;
        let count = warp
            .pending
            .groups
            .iter()
            .filter(|(mask, _)| mask & bit != 0)
            .count();
        let mut done = count.saturating_sub(left.unwrap_or(0) as usize);
        for (mask, copies) in &mut warp.pending.groups {
            if *mask & bit != 0 && done > 0 {
                done -= 1;
                *mask &= !bit;
                landed.extend(copies.iter().filter(|c| c.lane as usize == lane).copied());
                copies.retain(|c| c.lane as usize != lane);
            }
        }
    }
    warp.pending.groups.retain(|(mask, _)| *mask != 0);
    for copy in landed {
        let agent = warp.views[copy.lane as usize].agent;
        m.ctas[copy.rank].shared.landed(
            copy.offset,
            copy.size as u64,
            agent,
            Written::Generic,
            now,
        );
    }
}

/// `cp.async.mbarrier.arrive`: all copies of the lanes so far are the barrier's to
/// complete, and it sees the arrival once they have landed.
pub fn arrive(
    m: &mut Machine,
    warp: &mut Warp,
    addr: &Addr,
    space: Space,
    keep: bool,
    active: u32,
) -> Outcome {
    let addrs = addr.lanes(&warp.regs);
    for lane in lanes(active) {
        let (_, at) = resolve(space, addrs[lane]);
        let (rank, offset) = shared_place(m, warp, at, false).map_err(|t| t.lane(lane))?;
        let agent =
            super::mbar::agent(m, warp, lane, rank, offset).map_err(|t| t.lane(lane).at(at))?;
        let now = m.now;
        let mine = |c: &&Copy| c.lane as usize == lane;
        let all = warp
            .pending
            .groups
            .iter()
            .flat_map(|(_, copies)| copies)
            .chain(&warp.pending.open);
        for copy in all.filter(mine) {
            m.ctas[copy.rank].shared.landed(
                copy.offset,
                copy.size as u64,
                agent,
                Written::Async,
                now,
            );
        }
        warp.pending.open.retain(|c| c.lane as usize != lane);
        warp.pending
            .groups
            .iter_mut()
            .for_each(|(_, copies)| copies.retain(|c| c.lane as usize != lane));
        super::mbar::complete_copies(m, warp, lane, rank, offset, keep)
            .map_err(|t| t.lane(lane).at(at))?;
    }
    Ok(())
}
