//! Loads, stores, atomics (PTX ISA, "Data Movement and Conversion Instructions", `atom`,
//! `red`): decoding and execution.

use super::ast::Space;
use super::atomic::{self, AtomOp};
use super::decode::Cx;
use super::exec::{Machine, Warp};
use super::fault::{FaultKind, Outcome, trouble};
use super::kernel::{CONST_WINDOW, LOCAL_WINDOW, PARAM_WINDOW, SHARED_WINDOW, WINDOW};
use super::memory::{Span, misaligned, unwritten};
use super::op::{Addr, Op};
use super::regs::{LANES, Reg, Slot, lanes};
use super::report::Class;
use super::shared::{CTA_STRIDE, Reader, Written, count_banks};
use super::types::{Kind, Ty};
use crate::error::Result;

/// A load.
pub struct Load {
    space: Space,
    addr: Addr,
    /// Bytes of an element.
    size: u32,
    /// Whether it is extended by its sign.
    signed: bool,
    /// Elements' registers, and whether they take two slots.
    to: Box<[(Slot, bool)]>,
    /// Whether other CTAs' shared memory may be named.
    cluster: bool,
    acquire: bool,
}

/// A store.
pub struct Store {
    space: Space,
    addr: Addr,
    size: u32,
    from: Box<[(Slot, bool)]>,
    cluster: bool,
    release: bool,
}

/// An atomic.
pub struct Atom {
    pub space: Space,
    pub addr: Addr,
    /// Bytes of an operand.
    pub size: u32,
    pub op: AtomOp,
    /// Where the old value goes.
    pub to: Option<Slot>,
    /// Operands: one, or two of a vector element after another's.
    pub from: Box<[Slot]>,
    pub compare: Option<Slot>,
    pub acquire: bool,
    pub release: bool,
}

const SPACES: [(&str, (Space, bool)); 8] = [
    ("global", (Space::Global, false)),
    ("shared", (Space::Shared, false)),
    ("shared::cta", (Space::Shared, false)),
    ("shared::cluster", (Space::Shared, true)),
    ("local", (Space::Local, false)),
    ("const", (Space::Const, false)),
    ("param", (Space::Param, false)),
    ("param::entry", (Space::Param, false)),
];

const SCOPES: [(&str, ()); 4] = [("cta", ()), ("cluster", ()), ("gpu", ()), ("sys", ())];

const DATA: [Ty; 18] = [
    Ty::B8,
    Ty::B16,
    Ty::B32,
    Ty::B64,
    Ty::U8,
    Ty::U16,
    Ty::U32,
    Ty::U64,
    Ty::S8,
    Ty::S16,
    Ty::S32,
    Ty::S64,
    Ty::F32,
    Ty::F64,
    Ty::B128,
    Ty::F16,
    Ty::F16x2,
    Ty::Bf16,
];

pub fn decode(cx: &mut Cx) -> Result<Op> {
    cx.class = Class::Memory;
    match cx.i.name {
        "ld" | "ldu" => decode_load(cx),
        "st" => decode_store(cx),
        "atom" | "red" => decode_atom(cx),
        "createpolicy" => create_policy(cx),
        "prefetch" | "prefetchu" => prefetch(cx),
        name => cx.err(format!("`{name}` is not simulated"), "take it out"),
    }
}

fn space(cx: &mut Cx) -> (Space, bool) {
    cx.choice(&SPACES).unwrap_or((Space::Generic, true))
}

/// Eviction priorities, prefetch sizes: they change no value. Whether a policy follows.
fn cache_words(cx: &mut Cx) -> bool {
    cx.choice(&[
        ("L1::evict_normal", ()),
        ("L1::evict_unchanged", ()),
        ("L1::evict_first", ()),
        ("L1::evict_last", ()),
        ("L1::no_allocate", ()),
    ]);
    cx.choice(&[
        ("L2::evict_normal", ()),
        ("L2::evict_first", ()),
        ("L2::evict_last", ()),
    ]);
    let hint = cx.cache_hint();
    cx.choice(&[("L2::64B", ()), ("L2::128B", ()), ("L2::256B", ())]);
    hint
}

/// `.v2`, `.v4`, `.v8` and the type.
fn vector(cx: &mut Cx) -> Result<(usize, Ty)> {
    let n = cx.choice(&[("v2", 2), ("v4", 4), ("v8", 8)]).unwrap_or(1);
    let ty = cx.ty(&DATA)?;
    if matches!(ty, Ty::B128 | Ty::F16 | Ty::F16x2 | Ty::Bf16) {
        return cx.err(
            format!(".{} is not loaded or stored here", ty.name()),
            "use .b16, .b32 …",
        );
    }
    if n as u32 * ty.bytes() > 16 {
        return cx.err(
            "more than 16 bytes",
            "256-bit accesses need sm_100, which is not simulated",
        );
    }
    Ok((n, ty))
}

fn decode_load(cx: &mut Cx) -> Result<Op> {
    let order = cx.choice(&[
        ("weak", 0u8),
        ("volatile", 1),
        ("relaxed", 2),
        ("acquire", 3),
    ]);
    if matches!(order, Some(2 | 3)) {
        cx.need(70, 60)?;
        cx.one_of(&SCOPES)?;
    }
    let (space, cluster) = space(cx);
    let cached = cx.choice(&[("ca", ()), ("cg", ()), ("cs", ()), ("lu", ()), ("cv", ())]);
    if cached.is_some() && matches!(order, Some(1..)) {
        return cx.err(
            "a cache operator on a load that is not weak",
            "take one of them out",
        );
    }
    if cx.accept("nc") && space != Space::Global {
        return cx.err(".nc loads are of global memory", "write ld.global.nc");
    }
    let hint = cache_words(cx);
    let (n, ty) = vector(cx)?;
    cx.count(2 + hint as usize)?;
    let parts = cx.parts(0, n)?;
    let to = (parts.iter())
        .map(|part| {
            let slot = cx.write(part, ty, Ty::holds)?;
            Ok((slot, cx.declared(part).unwrap_or(ty).bits() == 64))
        })
        .collect::<Result<_>>()?;
    if hint {
        cx.src(2, Ty::B64)?;
    }
    let addr = cx.addr(1, space)?;
    if matches!(space, Space::Shared | Space::Generic) {
        cx.granule(ty.bytes());
    }
    if matches!(order, Some(1..)) && matches!(space, Space::Global | Space::Generic) {
        cx.uses().ordered = true;
    }
    let signed = ty.kind() == Kind::Signed;
    let acquire = order == Some(3);
    Ok(Op::Load(Load {
        space,
        addr,
        size: ty.bytes(),
        signed,
        to,
        cluster,
        acquire,
    }))
}

fn decode_store(cx: &mut Cx) -> Result<Op> {
    let order = cx.choice(&[
        ("weak", 0u8),
        ("volatile", 1),
        ("relaxed", 2),
        ("release", 3),
    ]);
    if matches!(order, Some(2 | 3)) {
        cx.need(70, 60)?;
        cx.one_of(&SCOPES)?;
    }
    let (space, cluster) = space(cx);
    if matches!(space, Space::Const | Space::Param) {
        return cx.err(
            "this memory may only be read",
            "store to global, shared or local memory",
        );
    }
    cx.choice(&[("wb", ()), ("cg", ()), ("cs", ()), ("wt", ())]);
    let hint = cache_words(cx);
    let (n, ty) = vector(cx)?;
    cx.count(2 + hint as usize)?;
    let addr = cx.addr(0, space)?;
    let parts = cx.parts(1, n)?;
    let from = (parts.iter())
        .map(|part| Ok((cx.read(part, ty, Ty::holds)?, ty.bits() == 64)))
        .collect::<Result<_>>()?;
    if hint {
        cx.src(2, Ty::B64)?;
    }
    if matches!(space, Space::Shared | Space::Generic) {
        cx.granule(ty.bytes());
    }
    let release = order == Some(3);
    Ok(Op::Store(Store {
        space,
        addr,
        size: ty.bytes(),
        from,
        cluster,
        release,
    }))
}

fn decode_atom(cx: &mut Cx) -> Result<Op> {
    let returns = cx.i.name == "atom";
    let sems = [
        ("relaxed", 0u8),
        ("acquire", 1),
        ("release", 2),
        ("acq_rel", 3),
    ];
    let sem = cx.choice(&sems).unwrap_or(0);
    cx.choice(&SCOPES);
    let (space, _) = space(cx);
    if !matches!(space, Space::Global | Space::Shared | Space::Generic) {
        return cx.err("atomics are on global or shared memory", "name one of them");
    }
    let (op, ty, n) = atomic::decode(cx, returns)?;
    let hint = cx.i.mods.contains(&"L2::cache_hint");
    let cas = op.is_cas();
    let first = returns as usize;
    cx.count(first + 2 + cas as usize + hint as usize)?;
    let to = if returns { Some(cx.dst(0, ty)?) } else { None };
    let addr = cx.addr(first, space)?;
    let compare = if cas {
        Some(cx.src(first + 1, ty)?)
    } else {
        None
    };
    let from = cx.src_parts(first + 1 + cas as usize, n, ty)?;
    if hint {
        let last = cx.i.operands.len() - 1;
        cx.src(last, Ty::B64)?;
    }
    if space != Space::Shared {
        // The order of CTAs shows, unless the results are the same in any.
        cx.uses().ordered |= returns || !op.commutes();
    }
    if space != Space::Global {
        cx.granule(ty.bytes());
    }
    let (acquire, release) = (sem & 1 != 0, sem & 2 != 0);
    Ok(Op::Atom(Atom {
        space,
        addr,
        size: ty.bytes(),
        op,
        to,
        from,
        compare,
        acquire,
        release,
    }))
}

fn create_policy(cx: &mut Cx) -> Result<Op> {
    cx.need(80, 74)?;
    let fractional = cx.one_of(&[("fractional", true), ("range", false)])?;
    let primary = [
        ("L2::evict_last", ()),
        ("L2::evict_normal", ()),
        ("L2::evict_first", ()),
        ("L2::evict_unchanged", ()),
    ];
    if !fractional {
        return cx.err(
            "createpolicy.range is not simulated",
            "use createpolicy.fractional",
        );
    }
    cx.one_of(&primary)?;
    cx.choice(&[("L2::evict_first", ()), ("L2::evict_unchanged", ())]);
    cx.require("b64")?;
    cx.count_in(1, 2)?;
    let d = cx.dst(0, Ty::B64)?;
    if cx.i.operands.len() == 2 {
        cx.src(1, Ty::F32)?;
    }
    // What a policy holds is nobody's business but the cache's.
    cx.alu(Class::Memory, super::regs::map1(d, d, |_: u64| 0u64))
}

fn prefetch(cx: &mut Cx) -> Result<Op> {
    if cx.accept("tensormap") {
        cx.need(90, 80)?;
        cx.addr(0, Space::Generic)?;
        return Ok(Op::Nop);
    }
    if cx.i.name == "prefetchu" {
        cx.require("L1")?;
        cx.addr(0, Space::Generic)?;
        return Ok(Op::Nop);
    }
    let (space, _) = space(cx);
    cx.one_of(&[
        ("L1", ()),
        ("L2", ()),
        ("L2::evict_last", ()),
        ("L2::evict_normal", ()),
    ])?;
    cx.count(1)?;
    cx.addr(0, space)?;
    Ok(Op::Nop)
}

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
    if at % len as u64 != 0 {
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
    let mut starts: Vec<u64> = Vec::with_capacity(LANES);
    starts.extend(lanes(mask).map(|lane| addrs[lane]));
    if !starts.is_sorted() {
        starts.sort_unstable();
    }
    let (mut sectors, mut bytes, mut last, mut end) = (0, 0, u64::MAX, 0);
    for at in starts {
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
            shared.write(
                offset,
                op.size as u64,
                view,
                view.agent,
                Written::Generic,
                now,
            )?;
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
