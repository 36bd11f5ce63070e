//! mbarriers (PTX ISA, "Parallel Synchronization and Communication Instructions:
//! mbarrier"): objects of 8 bytes in shared memory, kept beside it.

use super::access::{resolve, shared_place};
use super::ast::{Operand, Space};
use super::decode::Cx;
use super::exec::{Flow, Machine};
use super::fault::{FaultKind, Outcome, Trouble, trouble};
use super::op::{Addr, Op};
use super::order::{Agent, Clock, Gather};
use super::regs::{Slot, Value, lanes, set_predicate};
use super::report::Class;
use super::types::Ty;
use super::warp::Warp;
use crate::error::Result;
use std::rc::Rc;

/// The most arrivals and bytes that one counts.
const MOST: u32 = (1 << 20) - 1;

/// An mbarrier.
pub struct Mbar {
    expected: u32,
    pending: u32,
    /// Bytes that are still to come; below zero if they came first.
    bytes: i64,
    phase: u64,
    /// What those that arrived have seen and done.
    gather: Gather,
    /// The same of all phases that are complete.
    clock: Rc<Clock>,
    /// Who writes what copies complete here.
    agent: Agent,
}

/// What is done to one.
pub struct MbarOp {
    kind: Kind,
    addr: Addr,
    space: Space,
    /// Whether other CTAs' are allowed.
    cluster: bool,
    /// The state's register.
    to: Option<Slot>,
    /// A count, a state, a parity.
    value: Option<Slot>,
    /// Whether it orders memory.
    orders: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Init,
    Inval,
    ExpectTx,
    CompleteTx,
    Arrive { drop: bool, expect: bool },
    Wait { parity: bool, suspend: bool },
}

pub fn decode(cx: &mut Cx) -> Result<Op> {
    cx.class = Class::Sync;
    cx.need(80, 70)?;
    let which = cx.one_of(&[
        ("init", 0u8),
        ("inval", 1),
        ("expect_tx", 2),
        ("complete_tx", 3),
        ("arrive", 4),
        ("arrive_drop", 5),
        ("test_wait", 6),
        ("try_wait", 7),
        ("pending_count", 8),
    ])?;
    if which == 8 {
        cx.require("b64")?;
        cx.count(2)?;
        let (d, a) = (cx.dst(0, Ty::U32)?, cx.src(1, Ty::B64)?);
        return cx.alu(
            Class::Sync,
            super::regs::map1(d, a, |state: u64| state as u32),
        );
    }
    let kind = match which {
        0 => Kind::Init,
        1 => Kind::Inval,
        2 => Kind::ExpectTx,
        3 => Kind::CompleteTx,
        4 | 5 => Kind::Arrive {
            drop: which == 5,
            expect: cx.accept("expect_tx"),
        },
        _ => Kind::Wait {
            parity: cx.accept("parity"),
            suspend: which == 7,
        },
    };
    if matches!(kind, Kind::Arrive { .. }) && cx.accept("noComplete") {
        return cx.err(".noComplete is not simulated", "leave it out");
    }
    let sem = cx.choice(&[("release", true), ("acquire", true), ("relaxed", false)]);
    if sem.is_some() {
        cx.one_of(&[("cta", ()), ("cluster", ())])?;
    }
    let named = cx.choice(&[
        ("shared", false),
        ("shared::cta", false),
        ("shared::cluster", true),
    ]);
    cx.require("b64")?;
    match kind {
        Kind::ExpectTx | Kind::CompleteTx | Kind::Arrive { expect: true, .. } => cx.need(90, 80)?,
        Kind::Wait { suspend: true, .. } => cx.need(90, 78)?,
        Kind::Wait { parity: true, .. } => cx.need(80, 71)?,
        _ => {}
    }
    let space = if named.is_some() {
        Space::Shared
    } else {
        Space::Generic
    };
    let remote = !matches!(kind, Kind::Init | Kind::Inval | Kind::Wait { .. });
    let cluster = remote && named != Some(false);
    let mut op = MbarOp {
        kind,
        addr: Addr::NONE,
        space,
        cluster,
        to: None,
        value: None,
        orders: sem != Some(false),
    };
    operands(cx, &mut op, named == Some(true))?;
    cx.uses().bulk = true;
    cx.granule(8);
    Ok(Op::Mbar(op))
}

fn operands(cx: &mut Cx, op: &mut MbarOp, remote: bool) -> Result<()> {
    match op.kind {
        Kind::Init => {
            cx.count(2)?;
            op.addr = cx.addr(0, op.space)?;
            op.value = Some(cx.src(1, Ty::U32)?);
        }
        Kind::Inval => {
            cx.count(1)?;
            op.addr = cx.addr(0, op.space)?;
        }
        Kind::ExpectTx | Kind::CompleteTx => {
            cx.count(2)?;
            op.addr = cx.addr(0, op.space)?;
            op.value = Some(cx.src(1, Ty::U32)?);
        }
        Kind::Arrive { expect, .. } => {
            cx.count_in(2 + expect as usize, 3)?;
            op.to = match cx.operand(0)? {
                Operand::Sink => None,
                _ if remote => return cx.err("a remote arrival has no state", "write `_`"),
                _ => Some(cx.dst(0, Ty::B64)?),
            };
            op.addr = cx.addr(1, op.space)?;
            if cx.i.operands.len() == 3 {
                op.value = Some(cx.src(2, Ty::U32)?);
            }
        }
        Kind::Wait { parity, suspend } => {
            cx.count_in(3, 3 + suspend as usize)?;
            op.to = Some(cx.dst(0, Ty::Pred)?);
            op.addr = cx.addr(1, op.space)?;
            op.value = Some(cx.src(2, if parity { Ty::U32 } else { Ty::B64 })?);
            if cx.i.operands.len() == 4 {
                cx.src(3, Ty::U32)?;
            }
        }
    }
    Ok(())
}

fn misuse(what: impl Into<String>, help: &str) -> Box<Trouble> {
    trouble(FaultKind::Mbarrier, what, help)
}

/// The mbarrier at a place, which the lane knows to be initialised.
fn find<'m>(
    m: &'m mut Machine,
    warp: &Warp,
    lane: usize,
    rank: usize,
    offset: u64,
) -> Outcome<&'m mut Mbar> {
    let shared = &mut m.ctas[rank].shared;
    shared.check_mbarrier(offset, &warp.views[lane], false)?;
    let none = || misuse("no mbarrier is here", "mbarrier.init first");
    shared.mbars.get_mut(&(offset as u32)).ok_or_else(none)
}

/// Who writes what copies of this mbarrier bring; the barrier is known to asynchronous
/// accesses.
pub fn agent(
    m: &mut Machine,
    warp: &Warp,
    lane: usize,
    rank: usize,
    offset: u64,
) -> Outcome<Agent> {
    Ok(find(m, warp, lane, rank, offset)?.agent)
}

/// The same for a bulk copy, to which the initialisation must be known.
pub fn bulk_agent(
    m: &mut Machine,
    warp: &Warp,
    lane: usize,
    rank: usize,
    offset: u64,
) -> Outcome<Agent> {
    let agent = agent(m, warp, lane, rank, offset)?;
    m.ctas[rank]
        .shared
        .check_mbarrier(offset, &warp.views[lane], true)?;
    Ok(agent)
}

/// `bytes` bytes have come, written by the barrier's agent.
pub fn complete_bytes(m: &mut Machine, rank: usize, offset: u64, bytes: u64) {
    let now = m.tick();
    if let Some(bar) = m.ctas[rank].shared.mbars.get_mut(&(offset as u32)) {
        bar.bytes -= bytes as i64;
        bar.gather.done(bar.agent, now);
    }
    settle(m, rank, offset);
}

/// Copies of a lane by `cp.async` have come.
pub fn complete_copies(
    m: &mut Machine,
    warp: &Warp,
    lane: usize,
    rank: usize,
    offset: u64,
    arrive: bool,
) -> Outcome {
    let now = m.tick();
    let bar = find(m, warp, lane, rank, offset)?;
    bar.gather.done(bar.agent, now);
    if arrive {
        bar.gather.release(&warp.views[lane], now);
        bar.pending = bar.pending.checked_sub(1).ok_or_else(too_many)?;
    }
    settle(m, rank, offset);
    Ok(())
}

fn too_many() -> Box<Trouble> {
    misuse(
        "more arrivals in a phase than the mbarrier expects",
        "check the count of mbarrier.init",
    )
}

/// Completes the phase if nothing is awaited any more.
fn settle(m: &mut Machine, rank: usize, offset: u64) {
    let threads = m.threads;
    let Some(bar) = m.ctas[rank].shared.mbars.get_mut(&(offset as u32)) else {
        return;
    };
    if bar.pending > 0 || bar.bytes != 0 {
        return;
    }
    bar.phase += 1;
    bar.pending = bar.expected;
    bar.clock = std::mem::take(&mut bar.gather).finish(threads);
    bar.gather = Gather::from(&bar.clock);
    m.report.mbarrier_phases += 1;
    m.changes += 1;
}

/// Executes an operation on mbarriers.
pub fn operate(
    m: &mut Machine,
    warp: &mut Warp,
    op: &MbarOp,
    active: u32,
    token: Option<u64>,
) -> Outcome<Flow> {
    let addrs = op.addr.lanes(&warp.regs);
    if let Kind::Wait { parity, suspend } = op.kind {
        // A suspended wait gives up once, where nobody else can go on.
        let suspend = suspend && !(m.time_out && token.is_some());
        return wait(m, warp, op, &addrs, active, parity, suspend);
    }
    let now = m.tick();
    let mut states = [0u64; 32];
    for lane in lanes(active) {
        let (space, at) = resolve(op.space, addrs[lane]);
        if space != Space::Shared {
            let help = "mbarriers lie in shared memory";
            return Err(misuse("an address outside shared memory", help)
                .at(at)
                .lane(lane));
        }
        let value = op.value.map_or(1, |slot| warp.regs[slot as usize].0[lane]);
        let one = one(m, warp, op, lane, at, value, now);
        states[lane] = one.map_err(|t| t.lane(lane).at(at))?;
    }
    if let Some(to) = op.to {
        u64::store(&mut warp.regs, to, &states, active);
    }
    Ok(Flow::Next)
}

fn one(
    m: &mut Machine,
    warp: &Warp,
    op: &MbarOp,
    lane: usize,
    at: u64,
    value: u32,
    now: u32,
) -> Outcome<u64> {
    let (rank, offset) = shared_place(m, warp, at, op.cluster)?;
    match op.kind {
        Kind::Init => return init(m, warp, lane, rank, offset, value, now),
        Kind::Inval => {
            find(m, warp, lane, rank, offset)?;
            let shared = &mut m.ctas[rank].shared;
            shared.mbars.remove(&(offset as u32));
            shared.mark_mbarrier(offset, &warp.views[lane], false, now)?;
            return Ok(0);
        }
        _ => {}
    }
    let orders = op.orders;
    let bar = find(m, warp, lane, rank, offset)?;
    let state = bar.phase << 32 | bar.pending as u64;
    match op.kind {
        Kind::ExpectTx => bar.bytes += value as i64,
        Kind::CompleteTx => bar.bytes -= value as i64,
        Kind::Arrive { drop, expect } => {
            let count = if expect { 1 } else { value };
            if expect {
                bar.bytes += value as i64;
            }
            if count == 0 || count > bar.pending {
                return Err(too_many());
            }
            bar.pending -= count;
            bar.expected -= if drop { count } else { 0 };
            if orders {
                bar.gather.release(&warp.views[lane], now);
            }
        }
        _ => {}
    }
    if bar.bytes.unsigned_abs() > MOST as u64 {
        return Err(misuse(
            "more bytes than an mbarrier counts",
            "at most 2^20 - 1",
        ));
    }
    settle(m, rank, offset);
    Ok(state)
}

fn init(
    m: &mut Machine,
    warp: &Warp,
    lane: usize,
    rank: usize,
    offset: u64,
    count: u32,
    now: u32,
) -> Outcome<u64> {
    if !(1..=MOST).contains(&count) {
        return Err(misuse(
            format!("an mbarrier of {count} arrivals"),
            "1 to 2^20 - 1",
        ));
    }
    let agent = m.next_agent;
    m.next_agent += 1;
    let shared = &mut m.ctas[rank].shared;
    if shared.mbars.contains_key(&(offset as u32)) {
        return Err(misuse(
            "an mbarrier is here already",
            "mbarrier.inval before it is initialised again",
        ));
    }
    shared.mark_mbarrier(offset, &warp.views[lane], true, now)?;
    let bar = Mbar {
        expected: count,
        pending: count,
        bytes: 0,
        phase: 0,
        gather: Gather::default(),
        clock: Rc::default(),
        agent,
    };
    shared.mbars.insert(offset as u32, bar);
    Ok(0)
}

/// `test_wait` and `try_wait`. A suspended thread comes back when the phase is complete,
/// or with false when nobody else can go on.
fn wait(
    m: &mut Machine,
    warp: &mut Warp,
    op: &MbarOp,
    addrs: &[u64; 32],
    active: u32,
    parity: bool,
    suspend: bool,
) -> Outcome<Flow> {
    let mut done = 0u32;
    let mut clocks: Vec<(u32, Rc<Clock>)> = vec![];
    let Some(value) = op.value else {
        return Ok(Flow::Next);
    };
    for lane in lanes(active) {
        let (_, at) = resolve(op.space, addrs[lane]);
        let place = |t: Box<Trouble>| t.lane(lane).at(at);
        let (rank, offset) = shared_place(m, warp, at, false).map_err(place)?;
        let low = warp.regs[value as usize].0[lane];
        let high = if parity {
            0
        } else {
            warp.regs[value as usize + 1].0[lane]
        };
        let bar = find(m, warp, lane, rank, offset).map_err(place)?;
        if parity && low > 1 {
            return Err(misuse(format!("a parity of {low}"), "0 or 1").lane(lane));
        }
        let complete = if parity {
            bar.phase & 1 != low as u64
        } else {
            bar.phase as u32 != high
        };
        if complete {
            done |= 1 << lane;
            match clocks
                .iter_mut()
                .find(|(_, clock)| Rc::ptr_eq(clock, &bar.clock))
            {
                Some((mask, _)) => *mask |= 1 << lane,
                None => clocks.push((1 << lane, bar.clock.clone())),
            }
        }
    }
    if done == 0 && suspend {
        return Ok(Flow::Block(0));
    }
    m.polled = done == 0;
    if op.orders {
        clocks
            .iter()
            .for_each(|(mask, clock)| m.acquire(warp, *mask, clock));
    }
    if let Some(to) = op.to {
        set_predicate(&mut warp.regs, to, done, active);
    }
    Ok(Flow::Next)
}
