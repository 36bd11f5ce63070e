//! Conversions to and from small and packed formats (PTX ISA, `cvt`: the forms with
//! `.relu` and `.satfinite`).

use super::convert::ROUNDS;
use super::decode::Cx;
use super::float::{Format, Round, flush, from_f16, saturate, to_bf16, to_f16, to_tf32};
use super::regs::{Alu, map1, map2};
use super::types::Ty;
use crate::error::Result;

/// Conversions to and from small and packed formats.
pub fn narrow(cx: &mut Cx, to: Ty, from: Ty) -> Result<Alu> {
    let round = cx.one_of(&ROUNDS)?;
    let ftz = cx.accept("ftz");
    let mut finite = cx.accept("satfinite");
    let sat = !finite && cx.accept("sat");
    let relu = cx.accept("relu");
    finite |= cx.accept("satfinite");
    cx.require(to.name())?;
    cx.require(from.name())?;
    let bytes = |ty| matches!(ty, Ty::E4m3x2 | Ty::E5m2x2);
    if bytes(to) || bytes(from) {
        return narrow_bytes(cx, to, from, round, finite, relu);
    }
    if from != Ty::F32 {
        return cx.err("there is no such conversion", "see the ISA's list of forms");
    }
    if round == Round::Away && to != Ty::Tf32
        || matches!(round, Round::Down | Round::Up) && to != Ty::F16
    {
        return cx.err(
            "this rounding does not belong here",
            ".rn or .rz; .rna for .tf32",
        );
    }
    match to {
        Ty::F16 if !relu && !finite => cx.need(53, 40)?,
        Ty::Tf32 if round != Round::Away => cx.need(90, 78)?,
        _ => cx.need(80, 70)?,
    }
    if (ftz || sat) && to != Ty::F16 {
        return cx.err(
            "a modifier does not belong here",
            "see the ISA's list of forms",
        );
    }
    let value = move |x: f32| {
        let x = if ftz { flush(x) } else { x };
        let x = if sat { saturate(x) } else { x };
        if relu && (x < 0.0 || x.to_bits() == 1 << 31) {
            0.0
        } else {
            x
        }
    };
    let two = matches!(to, Ty::F16x2 | Ty::Bf16x2);
    cx.count(2 + two as usize)?;
    let d = cx.dst(0, if to == Ty::Tf32 { Ty::B32 } else { to })?;
    let a = cx.src(1, Ty::F32)?;
    let bf16 = matches!(to, Ty::Bf16 | Ty::Bf16x2);
    let half = move |x: f32| -> u16 {
        let x = value(x);
        match (round == Round::Even && !finite, bf16) {
            (true, true) => to_bf16(x),
            (true, false) => to_f16(x as f64),
            (_, true) => Format::BF16.encode(x as f64, round, finite) as u16,
            _ => Format::F16.encode(x as f64, round, finite) as u16,
        }
    };
    if to == Ty::Tf32 {
        return Ok(map1::<u32, f32>(d, a, move |x| {
            to_tf32(value(x), round, finite)
        }));
    }
    if !two {
        return Ok(map1::<u16, f32>(d, a, half));
    }
    let b = cx.src(2, Ty::F32)?;
    // The first operand is the upper half.
    Ok(map2::<u32, f32, f32>(d, [a, b], move |a, b| {
        half(b) as u32 | (half(a) as u32) << 16
    }))
}

fn narrow_bytes(
    cx: &mut Cx,
    to: Ty,
    from: Ty,
    round: Round,
    finite: bool,
    relu: bool,
) -> Result<Alu> {
    cx.need(89, 81)?;
    if round != Round::Even {
        return cx.err("conversions of byte floats round to nearest", "write .rn");
    }
    let format = |ty| {
        if ty == Ty::E4m3x2 {
            Format::E4M3
        } else {
            Format::E5M2
        }
    };
    let clip = move |x: f32| {
        if relu && (x < 0.0 || x.to_bits() == 1 << 31) {
            0.0
        } else {
            x
        }
    };
    match (to, from) {
        (Ty::F16x2, _) if from != Ty::F32 && !finite => {
            let f = format(from);
            cx.count(2)?;
            let (d, a) = (cx.dst(0, Ty::F16x2)?, cx.src(1, Ty::B16)?);
            let one = move |byte: u16| to_f16(clip(f.decode(byte as u32 & 0xff)) as f64) as u32;
            Ok(map1::<u32, u16>(d, a, move |a| one(a) | one(a >> 8) << 16))
        }
        (_, Ty::F32 | Ty::F16x2) if to != Ty::F16x2 && finite => {
            let f = format(to);
            let one = move |x: f32| f.encode(clip(x) as f64, Round::Even, true) as u16;
            let d = cx.dst(0, Ty::B16)?;
            if from == Ty::F16x2 {
                cx.count(2)?;
                let a = cx.src(1, Ty::F16x2)?;
                return Ok(map1::<u16, u32>(d, a, move |a| {
                    one(from_f16(a as u16)) | one(from_f16((a >> 16) as u16)) << 8
                }));
            }
            cx.count(3)?;
            let s = cx.srcs(1, [Ty::F32; 2])?;
            Ok(map2::<u16, f32, f32>(d, s, move |a, b| {
                one(b) | one(a) << 8
            }))
        }
        _ => cx.err(
            "there is no such conversion",
            "to byte floats .satfinite belongs, from them not",
        ),
    }
}
