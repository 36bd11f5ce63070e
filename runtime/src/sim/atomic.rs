//! What atomics compute, and the order that they make.

use super::decode::Cx;
use super::exec::Machine;
use super::fault::{FaultKind, Outcome, trouble};
use super::float::{canonical, canonical64, from_bf16, from_f16, to_bf16, to_f16};
use super::order::Gather;
use super::regs::{LANES, lanes};
use super::tensor::TensorType;
use super::types::{Kind, Ty};
use super::warp::Warp;
use crate::error::Result;

/// An operation on a memory word.
#[derive(Clone, Copy, Debug)]
pub struct AtomOp {
    what: What,
    ty: Ty,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    Add,
    Min,
    Max,
    And,
    Or,
    Xor,
    Exch,
    Cas,
    Inc,
    Dec,
}

const OPS: [(&str, What); 10] = [
    ("add", What::Add),
    ("min", What::Min),
    ("max", What::Max),
    ("and", What::And),
    ("or", What::Or),
    ("xor", What::Xor),
    ("exch", What::Exch),
    ("cas", What::Cas),
    ("inc", What::Inc),
    ("dec", What::Dec),
];

/// The operation, its type, and how many elements a vector has.
pub fn decode(cx: &mut Cx, returns: bool) -> Result<(AtomOp, Ty, usize)> {
    let what = cx.one_of(&OPS)?;
    if !returns && matches!(what, What::Exch | What::Cas) {
        return cx.err("red has no exch and no cas", "use atom");
    }
    let noftz = cx.accept("noftz");
    cx.cache_hint();
    let n = if returns {
        1
    } else {
        cx.choice(&[("v2", 2), ("v4", 4)]).unwrap_or(1)
    };
    let types: &[Ty] = match what {
        What::Add => &[
            Ty::U32,
            Ty::S32,
            Ty::U64,
            Ty::F32,
            Ty::F64,
            Ty::F16x2,
            Ty::Bf16x2,
        ],
        What::Min | What::Max => &[Ty::U32, Ty::S32, Ty::U64, Ty::S64],
        What::And | What::Or | What::Xor | What::Exch => &[Ty::B32, Ty::B64],
        What::Cas => &[Ty::B16, Ty::B32, Ty::B64],
        What::Inc | What::Dec => &[Ty::U32],
    };
    let ty = cx.ty(types)?;
    if n > 1 {
        cx.need(90, 81)?;
        if ty != Ty::F32 {
            return cx.err(
                "vectors of atomics are of .f32 here",
                "write one after the other",
            );
        }
    }
    if noftz != matches!(ty, Ty::F16x2 | Ty::Bf16x2) {
        return cx.err(
            ".noftz belongs to halves, and they to it",
            "see the ISA's syntax",
        );
    }
    if ty == Ty::Bf16x2 {
        cx.need(90, 78)?;
    }
    Ok((AtomOp { what, ty }, ty, n))
}

/// The operation and the type of `cp.reduce.async.bulk`.
pub fn decode_reduction(cx: &mut Cx) -> Result<(AtomOp, Ty)> {
    let what = cx.one_of(&OPS[..6])?;
    let noftz = cx.accept("noftz");
    let types: &[Ty] = match what {
        What::Add => &[
            Ty::U32,
            Ty::S32,
            Ty::U64,
            Ty::F32,
            Ty::F64,
            Ty::F16,
            Ty::Bf16,
        ],
        What::Min | What::Max => &[Ty::U32, Ty::S32, Ty::U64, Ty::S64],
        _ => &[Ty::B32, Ty::B64],
    };
    let ty = cx.ty(types)?;
    if noftz != matches!(ty, Ty::F16 | Ty::Bf16) {
        return cx.err(
            ".noftz belongs to halves, and they to it",
            "see the ISA's syntax",
        );
    }
    Ok((AtomOp { what, ty }, ty))
}

/// The operation of `cp.reduce.async.bulk.tensor`: its type is the tensor's.
pub fn tensor_reduction(cx: &mut Cx) -> Result<AtomOp> {
    let what = cx.one_of(&OPS[..6])?;
    Ok(AtomOp { what, ty: Ty::U32 })
}

impl AtomOp {
    /// On elements of a tensor's type.
    pub fn of(self, dtype: TensorType) -> Outcome<AtomOp> {
        let ty = match dtype {
            TensorType::U32 => Ty::U32,
            TensorType::S32 => Ty::S32,
            TensorType::U64 => Ty::U64,
            TensorType::S64 => Ty::S64,
            TensorType::F16 => Ty::F16,
            TensorType::Bf16 => Ty::Bf16,
            TensorType::F32 => Ty::F32,
            TensorType::F64 => Ty::F64,
            TensorType::U8 | TensorType::U16 => {
                let what = "a reduction into a tensor of short integers";
                return Err(trouble(
                    FaultKind::Tensor,
                    what,
                    "reduce 32 or 64 bits, or floats",
                ));
            }
        };
        let float = matches!(ty.kind(), Kind::Float | Kind::Alternate);
        if float && self.what != What::Add {
            let what = "a reduction of floats that is no sum";
            return Err(trouble(FaultKind::Tensor, what, "use .add"));
        }
        Ok(AtomOp { ty, ..self })
    }

    /// Whether it compares.
    pub fn is_cas(self) -> bool {
        self.what == What::Cas
    }

    /// Whether memory is the same in the end, whatever the order.
    pub fn commutes(self) -> bool {
        let float = matches!(self.ty.kind(), Kind::Float | Kind::Alternate);
        !float && !matches!(self.what, What::Exch | What::Cas | What::Inc | What::Dec)
    }

    /// The new word.
    pub fn apply(self, old: u64, value: u64, compare: u64) -> u64 {
        let (o, v) = (old as u32, value as u32);
        let signed = self.ty.kind() == Kind::Signed;
        let wide = self.ty.bits() == 64;
        match self.what {
            What::Add => self.add(old, value),
            What::Min | What::Max => {
                let less = match (signed, wide) {
                    (false, _) => value < old,
                    (true, false) => (v as i32) < (o as i32),
                    (true, true) => (value as i64) < (old as i64),
                };
                if less == (self.what == What::Min) {
                    value
                } else {
                    old
                }
            }
            What::And => old & value,
            What::Or => old | value,
            What::Xor => old ^ value,
            What::Exch => value,
            What::Cas => {
                let mask = u64::MAX >> (64 - self.ty.bits());
                if (old ^ compare) & mask == 0 {
                    value
                } else {
                    old
                }
            }
            What::Inc => {
                if o >= v {
                    0
                } else {
                    o as u64 + 1
                }
            }
            What::Dec => {
                if o == 0 || o > v {
                    value
                } else {
                    o as u64 - 1
                }
            }
        }
    }

    fn add(self, old: u64, value: u64) -> u64 {
        let (o, v) = (old as u32, value as u32);
        let halves = |f: fn(u16, u16) -> u16| {
            f(o as u16, v as u16) as u64 | (f((o >> 16) as u16, (v >> 16) as u16) as u64) << 16
        };
        match self.ty {
            // Subnormal numbers of f32 are kept in global memory as in shared memory.
            Ty::F32 => canonical(f32::from_bits(o) + f32::from_bits(v)).to_bits() as u64,
            Ty::F64 => canonical64(f64::from_bits(old) + f64::from_bits(value)).to_bits(),
            Ty::F16 => to_f16((from_f16(o as u16) + from_f16(v as u16)) as f64) as u64,
            Ty::Bf16 => to_bf16(from_bf16(o as u16) + from_bf16(v as u16)) as u64,
            Ty::F16x2 => halves(|a, b| to_f16((from_f16(a) + from_f16(b)) as f64)),
            Ty::Bf16x2 => halves(|a, b| to_bf16(from_bf16(a) + from_bf16(b))),
            Ty::U64 => old.wrapping_add(value),
            _ => o.wrapping_add(v) as u64,
        }
    }
}

/// The lanes of `mask` publish what they did, at shared addresses.
pub fn release(m: &mut Machine, warp: &Warp, mask: u32, at: &[u64; LANES]) {
    let now = if mask != 0 { m.tick() } else { 0 };
    for lane in lanes(mask) {
        let (rank, offset) = ((at[lane] >> 24) as usize, at[lane] as u32 & 0xff_ffff);
        let shared = &mut m.ctas[rank].shared;
        let mut gather = shared
            .released
            .get(&offset)
            .map_or_else(Gather::default, Gather::from);
        gather.release(&warp.views[lane], now);
        shared.released.insert(offset, gather.finish(m.threads));
    }
}

/// The lanes of `mask` see what was published at shared addresses.
pub fn acquire(m: &mut Machine, warp: &mut Warp, mask: u32, at: &[u64; LANES]) {
    for lane in lanes(mask) {
        let (rank, offset) = ((at[lane] >> 24) as usize, at[lane] as u32 & 0xff_ffff);
        if let Some(clock) = m.ctas[rank].shared.released.get(&offset).cloned() {
            m.acquire(warp, 1 << lane, &clock);
        }
    }
}
