//! Moves and conversions between plain types (PTX ISA, "Data Movement and Conversion
//! Instructions": `mov`, `cvt`).

use super::ast::{Operand, Space};
use super::decode::Cx;
use super::float::{Format, Round, directed, flush, from_bf16, from_f16, odd};
use super::narrow::narrow;
use super::op::Op;
use super::regs::{Alu, LANES, Value, map1, map2};
use super::report::Class;
use super::types::{Kind, Ty};
use crate::error::Result;

pub fn decode(cx: &mut Cx) -> Result<Op> {
    let (class, alu) = match cx.i.name {
        "mov" => (Class::Move, mov(cx)?),
        _ => (Class::Convert, cvt(cx)?),
    };
    cx.alu(class, alu)
}

const MOVED: [Ty; 12] = [
    Ty::B16,
    Ty::B32,
    Ty::B64,
    Ty::U16,
    Ty::U32,
    Ty::U64,
    Ty::S16,
    Ty::S32,
    Ty::S64,
    Ty::F32,
    Ty::F64,
    Ty::Pred,
];

fn mov(cx: &mut Cx) -> Result<Alu> {
    let ty = cx.ty(&MOVED)?;
    cx.count(2)?;
    let (to, from) = (cx.operand(0)?.clone(), cx.operand(1)?.clone());
    match (&to, &from) {
        (Operand::Vector(parts), _) => return unpack(cx, ty, parts),
        (_, Operand::Vector(parts)) => return pack(cx, ty, parts),
        (_, Operand::Var(var, offset)) => {
            let d = cx.dst(0, ty)?;
            let (space, slot) = cx.var_address(*var);
            if !matches!(
                ty,
                Ty::U64 | Ty::B64 | Ty::S64 | Ty::U32 | Ty::B32 | Ty::S32
            ) || ty.bits() == 32 && space == Space::Global
            {
                return cx.err(
                    "an address has another size",
                    "write mov.b64 (mov.b32 in shared memory)",
                );
            }
            let offset = *offset as u64;
            return Ok(match ty.bits() {
                64 => map1::<u64, u64>(d, slot, move |a| a.wrapping_add(offset)),
                _ => map1::<u32, u64>(d, slot, move |a| a.wrapping_add(offset) as u32),
            });
        }
        _ => {}
    }
    let (d, a) = (cx.dst(0, ty)?, cx.src(1, ty)?);
    Ok(match ty {
        Ty::Pred => map1::<bool, bool>(d, a, |a| a),
        _ => match ty.bits() {
            64 => map1::<u64, u64>(d, a, |a| a),
            16 => map1::<u16, u16>(d, a, |a| a),
            _ => map1::<u32, u32>(d, a, |a| a),
        },
    })
}

/// The type of a part of a vector that is packed into `ty`.
fn part_type(cx: &Cx, ty: Ty, n: usize) -> Result<Ty> {
    if ty.kind() != Kind::Bits {
        return cx.err("vectors are packed as .b32 or .b64", "write mov.bN");
    }
    match ty.bits() as usize / n.max(1) {
        16 if n > 1 => Ok(Ty::B16),
        32 if n > 1 => Ok(Ty::B32),
        _ => cx.err(
            format!("{n} parts do not make .{}", ty.name()),
            "two or four parts of 16 or 32 bits",
        ),
    }
}

fn pack(cx: &mut Cx, ty: Ty, parts: &[Operand]) -> Result<Alu> {
    let part = part_type(cx, ty, parts.len())?;
    let d = cx.dst(0, ty)?;
    let slots =
        (parts.iter().map(|p| cx.read(p, part, Ty::stands_for))).collect::<Result<Vec<_>>>()?;
    let bits = part.bits();
    Ok(match (&slots[..], ty.bits()) {
        ([a, b], 32) => map2::<u32, u16, u16>(d, [*a, *b], |a, b| a as u32 | (b as u32) << 16),
        ([a, b], _) => map2::<u64, u32, u32>(d, [*a, *b], |a, b| a as u64 | (b as u64) << 32),
        _ => Box::new(move |regs, mask| {
            let mut out = [0u64; LANES];
            for (i, slot) in slots.iter().enumerate() {
                let part = u16::load(regs, *slot);
                (0..LANES).for_each(|lane| out[lane] |= (part[lane] as u64) << (bits * i as u32));
            }
            u64::store(regs, d, &out, mask);
        }),
    })
}

fn unpack(cx: &mut Cx, ty: Ty, parts: &[Operand]) -> Result<Alu> {
    let part = part_type(cx, ty, parts.len())?;
    let a = cx.src(1, ty)?;
    let slots =
        (parts.iter().map(|p| cx.write(p, part, Ty::stands_for))).collect::<Result<Vec<_>>>()?;
    let (wide, bits) = (ty.bits() == 64, part.bits());
    Ok(Box::new(move |regs, mask| {
        let value = if wide {
            u64::load(regs, a)
        } else {
            u32::load(regs, a).map(u64::from)
        };
        for (i, slot) in slots.iter().enumerate() {
            let shift = bits * i as u32;
            let keep = u32::MAX >> (32 - bits);
            let words = value.map(|v| (v >> shift) as u32 & keep);
            u32::store(regs, *slot, &words, mask);
        }
    }))
}

/// A value on the way from one type to another.
#[derive(Clone, Copy)]
enum Number {
    Int(i128),
    Float(f64),
}

const PLAIN: [Ty; 12] = [
    Ty::U8,
    Ty::U16,
    Ty::U32,
    Ty::U64,
    Ty::S8,
    Ty::S16,
    Ty::S32,
    Ty::S64,
    Ty::F16,
    Ty::F32,
    Ty::F64,
    Ty::Bf16,
];

/// Integer rounding, and the rounding of the same direction.
const INTEGRAL: [(&str, Round); 4] = [
    ("rni", Round::Even),
    ("rzi", Round::Zero),
    ("rmi", Round::Down),
    ("rpi", Round::Up),
];
pub const ROUNDS: [(&str, Round); 5] = [
    ("rn", Round::Even),
    ("rz", Round::Zero),
    ("rm", Round::Down),
    ("rp", Round::Up),
    ("rna", Round::Away),
];

fn is_float(ty: Ty) -> bool {
    matches!(ty.kind(), Kind::Float | Kind::Alternate)
}

fn cvt(cx: &mut Cx) -> Result<Alu> {
    let last = |n: usize| {
        cx.i.mods
            .len()
            .checked_sub(n)
            .and_then(|i| Ty::parse(cx.i.mods[i]))
    };
    let (Some(to), Some(from)) = (last(2), last(1)) else {
        return cx.err("cvt names two types", "write cvt.TO.FROM");
    };
    let small = |ty| {
        matches!(
            ty,
            Ty::F16x2 | Ty::Bf16x2 | Ty::Tf32 | Ty::E4m3x2 | Ty::E5m2x2
        )
    };
    if small(to) || small(from) || (matches!(to, Ty::F16 | Ty::Bf16) && from == Ty::F32) {
        return narrow(cx, to, from);
    }
    let integral = cx.choice(&INTEGRAL);
    let round = if integral.is_none() {
        cx.choice(&ROUNDS[..4])
    } else {
        None
    };
    let (ftz, sat) = (cx.accept("ftz"), cx.accept("sat"));
    let (to, from) = (cx.ty(&PLAIN)?, cx.ty(&PLAIN)?);
    check_rounding(cx, to, from, integral.is_some(), round.is_some())?;
    cx.count(2)?;
    let (d, register) = cx.dst_wide(0, to)?;
    let a = cx.src_wide(1, from)?;
    let wide = cx
        .declared(cx.operand(1)?)
        .map_or(from.bits() == 64, |ty| ty.bits() == 64);
    let round = integral.or(round).unwrap_or(Round::Even);
    let plan = Plan {
        to,
        from,
        round,
        integral: integral.is_some(),
        ftz,
        sat,
    };
    let out_wide = register.bits() == 64;
    Ok(Box::new(move |regs, mask| {
        let words = if wide {
            u64::load(regs, a)
        } else {
            u32::load(regs, a).map(u64::from)
        };
        let out = words.map(|w| plan.convert(w));
        if out_wide {
            u64::store(regs, d, &out, mask);
        } else {
            u32::store(regs, d, &out.map(|v| v as u32), mask);
        }
    }))
}

fn check_rounding(cx: &Cx, to: Ty, from: Ty, integral: bool, round: bool) -> Result<()> {
    if (to == Ty::Bf16 || from == Ty::Bf16) && (to, from) != (Ty::Bf16, Ty::F32) {
        cx.need(90, 78)?;
    }
    let needs = match (is_float(to), is_float(from)) {
        (false, true) => (true, false),
        (true, false) => (false, true),
        (true, true) if to.bits() < from.bits() => (false, true),
        (true, true) if to.bits() == from.bits() && to == from => (integral, false),
        (true, true) if to.bits() == from.bits() => (false, true),
        _ => (false, false),
    };
    if (integral, round) == needs {
        return Ok(());
    }
    cx.err(
        "the rounding modifier is missing, or does not belong here",
        "float to integer: .rni .rzi .rmi .rpi; to a smaller float, or from an integer: .rn .rz .rm .rp",
    )
}

/// A conversion between plain types.
#[derive(Clone, Copy)]
struct Plan {
    to: Ty,
    from: Ty,
    round: Round,
    integral: bool,
    ftz: bool,
    sat: bool,
}

impl Plan {
    fn convert(self, word: u64) -> u64 {
        let number = self.read(word);
        match (number, is_float(self.to)) {
            (Number::Int(v), false) => self.integer(v),
            (Number::Float(v), false) => self.float_to_integer(v),
            (Number::Int(v), true) => {
                let near = v as f64;
                let error = (v - near as i128).signum() as f64;
                match self.to {
                    Ty::F64 => self.float(directed(near, error, self.round)),
                    _ => self.float(odd(near, error)),
                }
            }
            (Number::Float(v), true) => self.float(v),
        }
    }

    fn read(self, word: u64) -> Number {
        match self.from {
            Ty::F64 => Number::Float(f64::from_bits(word)),
            Ty::F32 => {
                let x = f32::from_bits(word as u32);
                Number::Float(if self.ftz { flush(x) } else { x } as f64)
            }
            Ty::F16 => Number::Float(from_f16(word as u16) as f64),
            Ty::Bf16 => Number::Float(from_bf16(word as u16) as f64),
            _ => {
                let shift = 64 - self.from.bits();
                Number::Int(match self.from.kind() {
                    Kind::Signed => (word << shift) as i64 as i128 >> shift,
                    _ => (word << shift >> shift) as i128,
                })
            }
        }
    }

    fn range(self) -> (i128, i128) {
        let bits = self.to.bits();
        match self.to.kind() {
            Kind::Signed => (-(1i128 << (bits - 1)), (1i128 << (bits - 1)) - 1),
            _ => (0, (1i128 << bits) - 1),
        }
    }

    /// Of an integer the low bits, or clamped with `.sat`; extended to the register.
    fn integer(self, v: i128) -> u64 {
        let (low, high) = self.range();
        let v = if self.sat { v.clamp(low, high) } else { v };
        let shift = 64 - self.to.bits();
        match self.to.kind() {
            Kind::Signed => (((v as u64) << shift) as i64 >> shift) as u64,
            _ => (v as u64) << shift >> shift,
        }
    }

    /// Clamped to the range. NaN gives 0, or the top bit where 64 bits take part.
    fn float_to_integer(self, v: f64) -> u64 {
        if v.is_nan() {
            let wide = self.from == Ty::F64 || self.to.bits() == 64;
            return self.integer(if wide {
                1i128 << (self.to.bits() - 1)
            } else {
                0
            });
        }
        let (low, high) = self.range();
        let whole = whole(v, self.round);
        self.integer((whole as i128).clamp(low, high))
    }

    fn float(self, v: f64) -> u64 {
        let v = if self.integral {
            whole(v, self.round)
        } else {
            v
        };
        let v = if self.sat { saturate_double(v) } else { v };
        match self.to {
            Ty::F64 => super::float::canonical64(v).to_bits(),
            Ty::F32 => {
                let x = super::float::to_f32(v, self.round);
                (if self.ftz { flush(x) } else { x }).to_bits() as u64
            }
            Ty::F16 => Format::F16.encode(v, self.round, false) as u64,
            _ => Format::BF16.encode(v, self.round, false) as u64,
        }
    }
}

fn saturate_double(v: f64) -> f64 {
    if v > 0.0 { v.min(1.0) } else { 0.0 }
}

/// To an integral value.
fn whole(v: f64, round: Round) -> f64 {
    match round {
        Round::Even => v.round_ties_even(),
        Round::Away => v.round(),
        Round::Zero => v.trunc(),
        Round::Down => v.floor(),
        Round::Up => v.ceil(),
    }
}
