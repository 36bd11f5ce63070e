//! Bits (PTX ISA, "Logic and Shift Instructions", and of the integer instructions those
//! that move or count bits).

use super::decode::Cx;
use super::int::with_int;
use super::op::Op;
use super::regs::{Alu, map1, map2, map3, map4};
use super::report::Class;
use super::types::{Kind, Ty};
use crate::error::Result;

const WORDS: [Ty; 3] = [Ty::B16, Ty::B32, Ty::B64];

pub fn decode(cx: &mut Cx) -> Result<Op> {
    let alu = match cx.i.name {
        "and" | "or" | "xor" | "not" | "cnot" => logic(cx)?,
        "shl" | "shr" => shift(cx)?,
        "shf" => funnel(cx)?,
        "lop3" => lop3(cx)?,
        "bfe" | "bfi" => field(cx)?,
        "prmt" => permute(cx)?,
        _ => counting(cx)?,
    };
    cx.alu(Class::Integer, alu)
}

fn logic(cx: &mut Cx) -> Result<Alu> {
    let name = cx.i.name;
    let unary = matches!(name, "not" | "cnot");
    let ty = match name {
        "cnot" => cx.ty(&WORDS)?,
        _ => cx.ty(&[Ty::B16, Ty::B32, Ty::B64, Ty::Pred])?,
    };
    cx.count(3 - unary as usize)?;
    let d = cx.dst(0, ty)?;
    if unary {
        let a = cx.src(1, ty)?;
        return Ok(match (name, ty) {
            (_, Ty::Pred) => map1::<bool, bool>(d, a, |a| !a),
            ("not", _) => with_int!(ty, T => map1::<T, T>(d, a, |a| !a)),
            _ => with_int!(ty, T => map1::<T, T>(d, a, |a| (a == 0) as T)),
        });
    }
    let s = cx.srcs(1, [ty; 2])?;
    Ok(match (name, ty) {
        ("and", Ty::Pred) => map2::<bool, bool, bool>(d, s, |a, b| a & b),
        ("or", Ty::Pred) => map2::<bool, bool, bool>(d, s, |a, b| a | b),
        (_, Ty::Pred) => map2::<bool, bool, bool>(d, s, |a, b| a ^ b),
        ("and", _) => with_int!(ty, T => map2::<T, T, T>(d, s, |a, b| a & b)),
        ("or", _) => with_int!(ty, T => map2::<T, T, T>(d, s, |a, b| a | b)),
        _ => with_int!(ty, T => map2::<T, T, T>(d, s, |a, b| a ^ b)),
    })
}

/// Shifts by as many bits as the value has, or more, leave zeros or the sign.
fn shift(cx: &mut Cx) -> Result<Alu> {
    let left = cx.i.name == "shl";
    let ty = match left {
        true => cx.ty(&WORDS)?,
        false => cx.ty(&[
            Ty::B16,
            Ty::B32,
            Ty::B64,
            Ty::U16,
            Ty::U32,
            Ty::U64,
            Ty::S16,
            Ty::S32,
            Ty::S64,
        ])?,
    };
    cx.count(3)?;
    let (d, s) = (cx.dst(0, ty)?, cx.srcs(1, [ty, Ty::U32])?);
    let last = ty.bits() - 1;
    Ok(match left {
        true => with_int!(ty, T => map2::<T, T, u32>(d, s, |a, n| a.checked_shl(n).unwrap_or(0))),
        false if ty.kind() == Kind::Signed => {
            with_int!(ty, T => map2::<T, T, u32>(d, s, move |a, n| a >> n.min(last)))
        }
        false => with_int!(ty, T => map2::<T, T, u32>(d, s, |a, n| a.checked_shr(n).unwrap_or(0))),
    })
}

fn funnel(cx: &mut Cx) -> Result<Alu> {
    cx.need(32, 31)?;
    let left = cx.one_of(&[("l", true), ("r", false)])?;
    let wrap = cx.one_of(&[("wrap", true), ("clamp", false)])?;
    cx.require("b32")?;
    cx.count(4)?;
    let (d, s) = (
        cx.dst(0, Ty::B32)?,
        cx.srcs(1, [Ty::B32, Ty::B32, Ty::U32])?,
    );
    Ok(map3::<u32, u32, u32, u32>(d, s, move |low, high, n| {
        let n = if wrap { n & 31 } else { n.min(32) };
        let both = low as u64 | (high as u64) << 32;
        if left {
            (both << n >> 32) as u32
        } else {
            (both >> n) as u32
        }
    }))
}

/// Any function of three bits: its table is the immediate.
fn lop3(cx: &mut Cx) -> Result<Alu> {
    cx.need(50, 43)?;
    cx.require("b32")?;
    cx.count(5)?;
    let (d, s) = (cx.dst(0, Ty::B32)?, cx.srcs(1, [Ty::B32; 3])?);
    let table = cx.known_in(4, 0..=255)? as u32;
    Ok(map3::<u32, u32, u32, u32>(d, s, move |a, b, c| {
        (0..8).fold(0, |out, i: u32| {
            let pick = |x: u32, bit: u32| if i >> bit & 1 == 1 { x } else { !x };
            let on = 0u32.wrapping_sub(table >> i & 1);
            out | pick(a, 2) & pick(b, 1) & pick(c, 0) & on
        })
    }))
}

fn field(cx: &mut Cx) -> Result<Alu> {
    if cx.i.name == "bfi" {
        let ty = cx.ty(&[Ty::B32, Ty::B64])?;
        cx.count(5)?;
        let (d, s) = (cx.dst(0, ty)?, cx.srcs(1, [ty, ty, Ty::U32, Ty::U32])?);
        let insert = |a: u64, b: u64, at: u32, len: u32, bits: u32| {
            let (at, len) = (at & 0xff, len & 0xff);
            let ones =
                u64::MAX >> (64 - len.min(bits)).min(63) & 0u64.wrapping_sub((len > 0) as u64);
            let mask = ones.checked_shl(at).unwrap_or(0);
            b & !mask | a.checked_shl(at).unwrap_or(0) & mask
        };
        return Ok(match ty {
            Ty::B32 => map4::<u32, u32, u32, u32, u32>(d, s, move |a, b, at, len| {
                insert(a as u64, b as u64, at, len, 32) as u32
            }),
            _ => map4::<u64, u64, u64, u32, u32>(d, s, move |a, b, at, len| {
                insert(a, b, at, len, 64)
            }),
        });
    }
    let ty = cx.ty(&[Ty::U32, Ty::U64, Ty::S32, Ty::S64])?;
    cx.count(4)?;
    let (d, s) = (cx.dst(0, ty)?, cx.srcs(1, [ty, Ty::U32, Ty::U32])?);
    let (signed, last) = (ty.kind() == Kind::Signed, ty.bits() - 1);
    // Beyond the value's bits lies its sign; the field's own sign fills the result.
    let extract = move |a: i128, at: u32, len: u32| {
        let (at, len) = (at & 0xff, len & 0xff);
        if len == 0 {
            return 0;
        }
        let sign = signed && a >> (at + len - 1).min(last) & 1 == 1;
        let kept = len.min((last + 1).saturating_sub(at));
        let low = (1i128 << kept) - 1;
        let value = (if at > last { 0 } else { a >> at }) & low;
        if sign { value | !low } else { value }
    };
    Ok(match ty {
        Ty::U32 | Ty::S32 => {
            map3::<u32, u32, u32, u32>(d, s, move |a, at, len| extract(a as i128, at, len) as u32)
        }
        _ => map3::<u64, u64, u32, u32>(d, s, move |a, at, len| extract(a as i128, at, len) as u64),
    })
}

/// `prmt`: bytes of two words in any order, or replicated.
fn permute(cx: &mut Cx) -> Result<Alu> {
    cx.require("b32")?;
    let modes = [
        ("f4e", 1u8),
        ("b4e", 2),
        ("rc8", 3),
        ("ecl", 4),
        ("ecr", 5),
        ("rc16", 6),
    ];
    let mode = cx.choice(&modes).unwrap_or(0);
    cx.count(4)?;
    let (d, s) = (cx.dst(0, Ty::B32)?, cx.srcs(1, [Ty::B32; 3])?);
    Ok(map3::<u32, u32, u32, u32>(d, s, move |a, b, c| {
        let both = a as u64 | (b as u64) << 32;
        let n = c & 3;
        (0..4).fold(0, |out, i: u32| {
            let select = match mode {
                0 => c >> (4 * i) & 15,
                1 => (n + i) & 7,
                2 => n.wrapping_sub(i) & 7,
                3 => n,
                4 => n.max(i),
                5 => n.min(i),
                _ => (n & 1) * 2 + (i & 1),
            };
            let byte = (both >> (8 * (select & 7))) as u8;
            let byte = if select & 8 != 0 {
                (byte as i8 >> 7) as u8
            } else {
                byte
            };
            out | (byte as u32) << (8 * i)
        })
    }))
}

fn counting(cx: &mut Cx) -> Result<Alu> {
    let name = cx.i.name;
    if name == "fns" {
        cx.need(30, 60)?;
        cx.require("b32")?;
        cx.count(4)?;
        let (d, s) = (
            cx.dst(0, Ty::B32)?,
            cx.srcs(1, [Ty::B32, Ty::B32, Ty::S32])?,
        );
        return Ok(map3::<u32, u32, u32, i32>(d, s, find_nth));
    }
    let amount = name == "bfind" && cx.accept("shiftamt");
    let ty = match name {
        "bfind" => cx.ty(&[Ty::U32, Ty::U64, Ty::S32, Ty::S64])?,
        _ => cx.ty(&[Ty::B32, Ty::B64])?,
    };
    cx.count(2)?;
    let d = cx.dst(0, if name == "brev" { ty } else { Ty::U32 })?;
    let a = cx.src(1, ty)?;
    let (top, signed) = (ty.bits() - 1, ty.kind() == Kind::Signed);
    Ok(match name {
        "popc" => with_int!(ty, T => map1::<u32, T>(d, a, |a| a.count_ones())),
        "clz" => with_int!(ty, T => map1::<u32, T>(d, a, |a| a.leading_zeros())),
        "brev" => with_int!(ty, T => map1::<T, T>(d, a, |a| a.reverse_bits())),
        // The highest bit that differs from the sign.
        _ => with_int!(ty, T => map1::<u32, T>(d, a, move |a| {
            let a = if signed && (a >> top) & 1 != 0 { !a } else { a };
            match a.leading_zeros() {
                n if n > top => u32::MAX,
                n if amount => n,
                n => top - n,
            }
        })),
    })
}

/// The `offset`-th set bit of `mask` from `base` on, upwards or downwards.
fn find_nth(mask: u32, base: u32, offset: i32) -> u32 {
    let base = base & 31;
    let up = mask & u32::MAX << base;
    let down = mask & u32::MAX >> (31 - base);
    match offset {
        0 => {
            if mask >> base & 1 == 1 {
                base
            } else {
                u32::MAX
            }
        }
        n if n > 0 => super::regs::lanes(up)
            .nth(n as usize - 1)
            .map_or(u32::MAX, |i| i as u32),
        n => {
            let found = super::regs::lanes(down.reverse_bits()).nth(n.unsigned_abs() as usize - 1);
            found.map_or(u32::MAX, |i| 31 - i as u32)
        }
    }
}
