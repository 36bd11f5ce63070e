//! Loads, stores and atomics as they are executed: each lane's address is resolved,
//! checked and counted.

use super::ast::Space;
use super::atomic;
use super::exec::Machine;
use super::fault::{FaultKind, Outcome, trouble};
use super::kernel::{CONST_WINDOW, LOCAL_WINDOW, PARAM_WINDOW, SHARED_WINDOW, WINDOW};
use super::ldst::{Atom, Load, Store};
use super::memory::{Span, misaligned, unwritten};
use super::regs::{LANES, Reg, Slot, lanes};
use super::shared::{CTA_STRIDE, Reader, Written, count_banks};
use super::warp::Warp;

/// A generic address as a space and the address in it.
pub fn resolve(space: Space, at: u64) -> (Space, u64) {
    if space != Space::Generic {
        return (space, at);
    }
    let windows = [
        (SHARED_WINDOW, Space::Shared),
        (LOCAL_WINDOW, Space::Local),
        (PARAM_WINDOW, Space::Param),
        (CONST_WINDOW, Space::Const),
    ];
    let inside = windows
        .iter()
        .find(|(start, _)| at >= *start && at - *start < WINDOW);
    inside.map_or((Space::Global, at), |(start, space)| (*space, at - start))
}

/// A shared address as a CTA of the cluster and an offset.
pub fn shared_place(m: &Machine, warp: &Warp, at: u64, cluster: bool) -> Outcome<(usize, u64)> {
    let rank = (at / CTA_STRIDE) as usize;
    if rank >= m.ctas.len() || (rank != warp.rank && !cluster) {
        let what = "an address outside the CTA's shared memory";
        let help =
            "check the index; other CTAs of the cluster are reached by mapa and .shared::cluster";
        return Err(trouble(FaultKind::OutOfBounds, what, help).at(at));
    }
    Ok((rank, at % CTA_STRIDE))
}

fn bytes_at(bytes: &[u8], at: u64, len: u32, name: &str) -> Outcome<u64> {
    if !at.is_multiple_of(len as u64) {
        return Err(misaligned(at, len as u64));
    }
    let found = usize::try_from(at)
        .ok()
        .and_then(|at| bytes.get(at..at.checked_add(len as usize)?));
    let Some(found) = found else {
        let what = format!("{len} bytes of {name} memory, which has {}", bytes.len());
        return Err(trouble(FaultKind::OutOfBounds, what, "check the offset").at(at));
    };
    let mut word = [0; 8];
    word[..len as usize].copy_from_slice(found);
    Ok(u64::from_le_bytes(word))
}

/// Writes one lane of a register, or of two.
fn put(regs: &mut [Reg], (slot, wide): (Slot, bool), lane: usize, value: u64) {
    regs[slot as usize].0[lane] = value as u32;
    if wide {
        regs[slot as usize + 1].0[lane] = (value >> 32) as u32;
    }
}

fn get(regs: &[Reg], (slot, wide): (Slot, bool), lane: usize) -> u64 {
    let low = regs[slot as usize].0[lane] as u64;
    if wide {
        low | (regs[slot as usize + 1].0[lane] as u64) << 32
    } else {
        low
    }
}

fn extend(value: u64, size: u32, signed: bool) -> u64 {
    if !signed {
        return value;
    }
    let shift = 64 - size * 8;
    ((value << shift) as i64 >> shift) as u64
}

/// The addresses of a warp's access, split by what they touch: whose counts they are.
fn count(m: &mut Machine, space: Space, addrs: &[u64; LANES], mask: u32, size: u32, store: bool) {
    match space {
        Space::Shared => count_banks(addrs, mask, size, &mut m.report),
        Space::Global => {
            let total = mask.count_ones() as u64 * size as u64;
            *(if store {
                &mut m.report.global_stored
            } else {
                &mut m.report.global_loaded
            }) += total;
            count_sectors(m, addrs, mask, size);
        }
        _ => {}
    }
}

/// Sectors that an access touches, and the least that could hold its bytes.
pub fn count_sectors(m: &mut Machine, addrs: &[u64; LANES], mask: u32, size: u32) {
    let mut starts = [0u64; LANES];
    let mut n = 0;
    for lane in lanes(mask) {
        starts[n] = addrs[lane];
        n += 1;
    }
    let starts = &mut starts[..n];
    if !starts.is_sorted() {
        starts.sort_unstable();
    }
    let (mut sectors, mut bytes, mut last, mut end) = (0, 0, u64::MAX, 0);
    for at in starts.iter().copied() {
        let (first, until) = (at / 32, (at + size as u64 - 1) / 32);
        sectors += until - first + (last == u64::MAX || first > last) as u64;
        last = until;
        bytes += (at + size as u64).saturating_sub(end.max(at));
        end = at + size as u64;
    }
    m.report.global_sectors += sectors;
    m.report.global_sectors_least += u64::div_ceil(bytes, 32);
}

/// Executes a load.
pub fn load(m: &mut Machine, warp: &mut Warp, op: &Load, active: u32) -> Outcome {
    let addrs = op.addr.lanes(&warp.regs);
    let total = op.size * op.to.len() as u32;
    if op.space == Space::Shared && load_shared(m, warp, op, &addrs, active) {
        count(m, Space::Shared, &addrs, active, total, false);
        return Ok(());
    }
    if op.space == Space::Global && load_run(m, warp, op, &addrs, active) {
        count(m, Space::Global, &addrs, active, total, false);
        return Ok(());
    }
    let (mut span, now) = (Span::default(), m.now);
    let mut by_space = [0u32; 6];
    let mut places = [0u64; LANES];
    for lane in lanes(active) {
        let at = addrs[lane];
        let (space, at) = resolve(op.space, at);
        places[lane] = at;
        by_space[space as usize] |= 1 << lane;
        if at % total as u64 != 0 {
            return Err(misaligned(at, total as u64).lane(lane));
        }
        for (i, to) in op.to.iter().enumerate() {
            let at = at + i as u64 * op.size as u64;
            let value = load_one(m, warp, (space, at), op, lane, &mut span, now);
            let value = extend(value.map_err(|t| t.lane(lane).at(at))?, op.size, op.signed);
            put(&mut warp.regs, *to, lane, value);
        }
    }
    for space in [Space::Global, Space::Shared] {
        let mask = by_space[space as usize];
        if mask != 0 {
            count(m, space, &places, mask, total, false);
        }
    }
    if op.acquire {
        atomic::acquire(m, warp, by_space[Space::Shared as usize], &places);
    }
    Ok(())
}

/// A load from the CTA's own shared memory, where nothing is wrong; whether it was one.
fn load_shared(
    m: &mut Machine,
    warp: &mut Warp,
    op: &Load,
    addrs: &[u64; LANES],
    active: u32,
) -> bool {
    let (start, now) = (warp.rank as u64 * CTA_STRIDE, m.now);
    let shared = &mut m.ctas[warp.rank].shared;
    let size = op.size as u64;
    if op.acquire {
        return false;
    }
    for lane in lanes(active) {
        let at = addrs[lane].wrapping_sub(start);
        if at & (size * op.to.len() as u64 - 1) != 0 {
            return false;
        }
        for (i, to) in op.to.iter().enumerate() {
            let at = at.wrapping_add(i as u64 * size);
            let who = (warp.index, lane as u32);
            if !shared.quick_read(at, size, &warp.views[lane], who, now) {
                return false;
            }
            put(
                &mut warp.regs,
                *to,
                lane,
                extend(shared.get(at, op.size), op.size, op.signed),
            );
        }
    }
    true
}

/// A store to the CTA's own shared memory, where nothing is wrong; whether it was one.
fn store_shared(
    m: &mut Machine,
    warp: &Warp,
    op: &Store,
    addrs: &[u64; LANES],
    active: u32,
) -> bool {
    let (start, now) = (warp.rank as u64 * CTA_STRIDE, m.now);
    let shared = &mut m.ctas[warp.rank].shared;
    let size = op.size as u64;
    if op.release {
        return false;
    }
    for lane in lanes(active) {
        let at = addrs[lane].wrapping_sub(start);
        if at & (size * op.from.len() as u64 - 1) != 0 {
            return false;
        }
        for (i, from) in op.from.iter().enumerate() {
            let at = at.wrapping_add(i as u64 * size);
            if !shared.quick_write(at, size, &warp.views[lane], now) {
                return false;
            }
            shared.set(at, op.size, get(&warp.regs, *from, lane));
        }
    }
    true
}

/// A load from one buffer, where nothing is wrong; whether it was one.
fn load_run(m: &Machine, warp: &mut Warp, op: &Load, addrs: &[u64; LANES], active: u32) -> bool {
    let total = op.size as u64 * op.to.len() as u64;
    let Some(run) = m.env.global.run(addrs, active, total, false) else {
        return false;
    };
    for lane in lanes(active) {
        for (i, to) in op.to.iter().enumerate() {
            // SAFETY: `run` checked the whole access.
            let value = unsafe { run.load(addrs[lane] + i as u64 * op.size as u64, op.size) };
            let Some(value) = value else {
                return false;
            };
            put(&mut warp.regs, *to, lane, extend(value, op.size, op.signed));
        }
    }
    true
}

/// A store to one buffer, where nothing is wrong; whether it was one.
fn store_run(m: &Machine, warp: &Warp, op: &Store, addrs: &[u64; LANES], active: u32) -> bool {
    let total = op.size as u64 * op.from.len() as u64;
    let Some(run) = m.env.global.run(addrs, active, total, true) else {
        return false;
    };
    for lane in lanes(active) {
        for (i, from) in op.from.iter().enumerate() {
            let value = get(&warp.regs, *from, lane);
            // SAFETY: `run` checked the whole access.
            unsafe { run.store(addrs[lane] + i as u64 * op.size as u64, op.size, value) };
        }
    }
    true
}

#[inline]
fn load_one(
    m: &mut Machine,
    warp: &Warp,
    (space, at): (Space, u64),
    op: &Load,
    lane: usize,
    span: &mut Span,
    now: u32,
) -> Outcome<u64> {
    match space {
        Space::Global | Space::Generic => m.env.global.load(at, op.size, span),
        Space::Shared => {
            let (rank, offset) = shared_place(m, warp, at, op.cluster)?;
            let reader = reader(warp, rank, lane);
            let shared = &mut m.ctas[rank].shared;
            shared.read(offset, op.size as u64, &warp.views[lane], reader, now)?;
            Ok(shared.get(offset, op.size))
        }
        Space::Local => warp.local.load(lane, at, op.size),
        Space::Const => bytes_at(m.env.constants, at, op.size, "const"),
        Space::Param => bytes_at(m.env.params, at, op.size, "param"),
    }
}

/// A lane as a reader of a CTA's shared memory.
pub fn reader(warp: &Warp, rank: usize, lane: usize) -> Reader {
    if rank == warp.rank {
        Reader::Lane(warp.index, lane as u32)
    } else {
        Reader::Remote
    }
}

/// Executes a store.
pub fn store(m: &mut Machine, warp: &mut Warp, op: &Store, active: u32) -> Outcome {
    let addrs = op.addr.lanes(&warp.regs);
    let total = op.size * op.from.len() as u32;
    if op.space == Space::Shared && store_shared(m, warp, op, &addrs, active) {
        count(m, Space::Shared, &addrs, active, total, true);
        m.changes += 1;
        return Ok(());
    }
    if op.space == Space::Global && store_run(m, warp, op, &addrs, active) {
        count(m, Space::Global, &addrs, active, total, true);
        m.changes += 1;
        return Ok(());
    }
    let (mut span, now) = (Span::default(), m.now);
    let mut by_space = [0u32; 6];
    let mut places = [0u64; LANES];
    for lane in lanes(active) {
        let (space, at) = resolve(op.space, addrs[lane]);
        places[lane] = at;
        by_space[space as usize] |= 1 << lane;
        if at % total as u64 != 0 {
            return Err(misaligned(at, total as u64).lane(lane));
        }
        for (i, from) in op.from.iter().enumerate() {
            let at = at + i as u64 * op.size as u64;
            let value = get(&warp.regs, *from, lane);
            let done = store_one(m, warp, (space, at), op, lane, value, &mut span, now);
            done.map_err(|t| t.lane(lane).at(at))?;
        }
    }
    for space in [Space::Global, Space::Shared] {
        let mask = by_space[space as usize];
        if mask != 0 {
            count(m, space, &places, mask, total, true);
        }
    }
    m.changes += 1;
    if op.release {
        atomic::release(m, warp, by_space[Space::Shared as usize], &places);
    }
    Ok(())
}

#[allow(clippy::too_many_arguments, reason = "one place for every space")]
#[inline]
fn store_one(
    m: &mut Machine,
    warp: &mut Warp,
    (space, at): (Space, u64),
    op: &Store,
    lane: usize,
    value: u64,
    span: &mut Span,
    now: u32,
) -> Outcome {
    match space {
        Space::Global | Space::Generic => m.env.global.store(at, op.size, value, span),
        Space::Shared => {
            let (rank, offset) = shared_place(m, warp, at, op.cluster)?;
            let (shared, view) = (&mut m.ctas[rank].shared, &warp.views[lane]);
            let (len, agent) = (op.size as u64, view.agent);
            shared.write(offset, len, view, agent, Written::Generic, now)?;
            shared.set(offset, op.size, value);
            Ok(())
        }
        Space::Local => warp.local.store(lane, at, op.size, value),
        Space::Const | Space::Param => {
            let help = "store to global, shared or local memory";
            Err(trouble(
                FaultKind::ReadOnly,
                "a store to memory that may only be read",
                help,
            ))
        }
    }
}

/// Executes an atomic, lane by lane.
pub fn atom(m: &mut Machine, warp: &mut Warp, op: &Atom, active: u32) -> Outcome {
    let addrs = op.addr.lanes(&warp.regs);
    let now = m.now;
    let (mut shared_mask, mut global_mask) = (0, 0);
    let mut places = [0u64; LANES];
    for lane in lanes(active) {
        let (space, at) = resolve(op.space, addrs[lane]);
        places[lane] = at;
        *(if space == Space::Shared {
            &mut shared_mask
        } else {
            &mut global_mask
        }) |= 1 << lane;
        let total = op.size * op.from.len() as u32;
        if at % total as u64 != 0 {
            return Err(misaligned(at, total as u64).lane(lane));
        }
        for (i, from) in op.from.iter().enumerate() {
            let at = at + i as u64 * op.size as u64;
            let wide = op.size == 8;
            let value = get(&warp.regs, (*from, wide), lane);
            let compare = op
                .compare
                .map_or(0, |slot| get(&warp.regs, (slot, wide), lane));
            let f = |old: u64| op.op.apply(old, value, compare);
            let old = match space {
                Space::Global => m.env.global.update(at, op.size, f),
                Space::Shared => update_shared(m, warp, at, op, lane, f, now),
                _ => {
                    let help = "name global or shared memory";
                    Err(trouble(
                        FaultKind::OutOfBounds,
                        "an atomic on neither global nor shared memory",
                        help,
                    ))
                }
            };
            let old = old.map_err(|t| t.lane(lane).at(at))?;
            if let Some(to) = op.to {
                put(&mut warp.regs, (to, wide), lane, old);
            }
        }
    }
    m.report.atomics += active.count_ones() as u64;
    m.changes += 1;
    if global_mask != 0 {
        count_sectors(m, &places, global_mask, op.size);
    }
    if op.release {
        atomic::release(m, warp, shared_mask, &places);
    }
    if op.acquire {
        atomic::acquire(m, warp, shared_mask, &places);
    }
    Ok(())
}

fn update_shared(
    m: &mut Machine,
    warp: &Warp,
    at: u64,
    op: &Atom,
    lane: usize,
    f: impl Fn(u64) -> u64,
    now: u32,
) -> Outcome<u64> {
    let (rank, offset) = shared_place(m, warp, at, true)?;
    let (shared, view) = (&mut m.ctas[rank].shared, &warp.views[lane]);
    if !shared.is_written(offset, op.size as u64) {
        return Err(unwritten("shared", op.size as u64));
    }
    shared.write(
        offset,
        op.size as u64,
        view,
        view.agent,
        Written::Atomic,
        now,
    )?;
    let old = shared.get(offset, op.size);
    shared.set(offset, op.size, f(old));
    Ok(old)
}
