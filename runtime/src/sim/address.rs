//! Arithmetic of addresses (PTX ISA, `cvta`, `isspacep`, `mapa`, `getctarank`).

use super::ast::{Operand, Space};
use super::decode::Cx;
use super::kernel::{CONST_WINDOW, LOCAL_WINDOW, PARAM_WINDOW, SHARED_WINDOW, WINDOW};
use super::op::Op;
use super::regs::{Alu, Slot, map1, map2};
use super::report::Class;
use super::shared::CTA_STRIDE;
use super::special::Special;
use super::types::Ty;
use crate::error::Result;

pub fn decode(cx: &mut Cx) -> Result<Op> {
    let alu = match cx.i.name {
        "cvta" => cvta(cx)?,
        "isspacep" => is_space(cx)?,
        name => cluster_address(cx, name == "mapa")?,
    };
    cx.alu(Class::Integer, alu)
}

const SPACES: [(&str, (Space, u64)); 7] = [
    ("global", (Space::Global, 0)),
    ("shared", (Space::Shared, SHARED_WINDOW)),
    ("shared::cta", (Space::Shared, SHARED_WINDOW)),
    ("shared::cluster", (Space::Shared, SHARED_WINDOW)),
    ("local", (Space::Local, LOCAL_WINDOW)),
    ("param", (Space::Param, PARAM_WINDOW)),
    ("const", (Space::Const, CONST_WINDOW)),
];

/// `cvta`: a window's start is added or taken off.
fn cvta(cx: &mut Cx) -> Result<Alu> {
    let back = cx.accept("to");
    let (space, start) = cx.one_of(&SPACES)?;
    cx.ty(&[Ty::U64])?;
    cx.count(2)?;
    let d = cx.dst(0, Ty::U64)?;
    if let Operand::Var(var, offset) = *cx.operand(1)? {
        let (found, slot) = cx.var_address(var);
        if found != space || back {
            return cx.err("the variable is in another space", "name its own");
        }
        let add = start.wrapping_add(offset as u64);
        return Ok(map1::<u64, u64>(d, slot, move |a| a.wrapping_add(add)));
    }
    let a = cx.src(1, Ty::U64)?;
    let add = if back { start.wrapping_neg() } else { start };
    Ok(map1::<u64, u64>(d, a, move |a| a.wrapping_add(add)))
}

fn is_space(cx: &mut Cx) -> Result<Alu> {
    let cta = matches!(cx.peek(), Some("shared" | "shared::cta"));
    let (space, start) = cx.one_of(&SPACES)?;
    cx.count(2)?;
    let (p, a) = (cx.dst(0, Ty::Pred)?, cx.src(1, Ty::B64)?);
    if cta {
        let base = cx.special_slot(Special::SharedBase);
        return Ok(map2::<bool, u64, u32>(p, [a, base], |a, base| {
            a.wrapping_sub(SHARED_WINDOW).wrapping_sub(base as u64) < CTA_STRIDE
        }));
    }
    if space == Space::Global {
        let windows = [SHARED_WINDOW, LOCAL_WINDOW, PARAM_WINDOW, CONST_WINDOW];
        return Ok(map1::<bool, u64>(p, a, move |a| {
            windows.iter().all(|start| a.wrapping_sub(*start) >= WINDOW)
        }));
    }
    Ok(map1::<bool, u64>(p, a, move |a| {
        a.wrapping_sub(start) < WINDOW
    }))
}

/// `mapa`, `getctarank`: the CTA's rank is in the address's bits from 24 on.
fn cluster_address(cx: &mut Cx, map: bool) -> Result<Alu> {
    cx.need(90, 78)?;
    let shared = cx.accept("shared::cluster");
    let ty = cx.ty(&[Ty::U32, Ty::U64])?;
    if !shared && ty == Ty::U32 {
        return cx.err(
            "generic addresses have 64 bits",
            "write .u64, or .shared::cluster.u32",
        );
    }
    cx.count(2 + map as usize)?;
    let d = cx.dst(0, if map { ty } else { Ty::U32 })?;
    let a: Slot = match *cx.operand(1)? {
        Operand::Var(var, 0) if shared => cx.var_address(var).1,
        _ => cx.src(1, ty)?,
    };
    let low = CTA_STRIDE - 1;
    let rank_of = |a: u64| (a as u32 >> 24) & 0xff;
    Ok(match (map, ty) {
        (true, Ty::U32) => {
            let b = cx.src(2, Ty::U32)?;
            map2::<u32, u32, u32>(d, [a, b], move |a, b| a & low as u32 | b << 24)
        }
        (true, _) => {
            let b = cx.src(2, Ty::U32)?;
            map2::<u64, u64, u32>(d, [a, b], move |a, b| a & !(0xff << 24) | (b as u64) << 24)
        }
        (false, Ty::U32) => map1::<u32, u32>(d, a, move |a| rank_of(a as u64)),
        _ => map1::<u32, u64>(d, a, rank_of),
    })
}
