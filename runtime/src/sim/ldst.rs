//! Loads, stores, atomics (PTX ISA, "Data Movement and Conversion Instructions", `atom`,
//! `red`): decoding.

use super::ast::Space;
use super::atomic::{self, AtomOp};
use super::decode::Cx;
use super::op::{Addr, Op};
use super::regs::Slot;
use super::report::Class;
use super::types::{Kind, Ty};
use crate::error::Result;

/// A load.
pub struct Load {
    pub(super) space: Space,
    pub(super) addr: Addr,
    /// Bytes of an element.
    pub(super) size: u32,
    /// Whether it is extended by its sign.
    pub(super) signed: bool,
    /// Elements' registers, and whether they take two slots.
    pub(super) to: Box<[(Slot, bool)]>,
    /// Whether other CTAs' shared memory may be named.
    pub(super) cluster: bool,
    pub(super) acquire: bool,
}

/// A store.
pub struct Store {
    pub(super) space: Space,
    pub(super) addr: Addr,
    pub(super) size: u32,
    pub(super) from: Box<[(Slot, bool)]>,
    pub(super) cluster: bool,
    pub(super) release: bool,
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
