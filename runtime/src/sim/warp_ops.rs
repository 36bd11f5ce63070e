//! What lanes of a warp exchange (PTX ISA, `shfl.sync`, `vote.sync`, `match.sync`,
//! `activemask`, `redux.sync`, `elect.sync`).

use super::ast::Operand;
use super::decode::Cx;
use super::fault::{FaultKind, trouble};
use super::op::{Collect, Op};
use super::regs::{Alu, LANES, Slot, Value, lanes, predicate, set_predicate, store_words};
use super::report::Class;
use super::types::{Kind, Ty};
use crate::error::Result;

pub fn decode(cx: &mut Cx) -> Result<Op> {
    cx.class = Class::Move;
    match cx.i.name {
        "shfl" => shuffle(cx),
        "vote" => vote(cx),
        "match" => match_any(cx),
        "activemask" => {
            cx.need(30, 62)?;
            cx.require("b32")?;
            cx.count(1)?;
            let d = cx.dst(0, Ty::B32)?;
            Ok(Op::Alu(Box::new(move |regs, mask| {
                store_words(&mut regs[d as usize], &[mask; LANES], mask);
            })))
        }
        "redux" => redux(cx),
        _ => elect(cx),
    }
}

/// The mask of members is operand `i`.
fn members(cx: &mut Cx, i: usize) -> Result<()> {
    let slot = cx.src(i, Ty::B32)?;
    cx.collect = Collect::Members(slot);
    Ok(())
}

/// A result and a predicate `d|p`.
fn pair(cx: &mut Cx, ty: Ty) -> Result<(Slot, Option<Slot>)> {
    match cx.operand(0)?.clone() {
        Operand::Pair(pair) => {
            let d = cx.write(&pair.0, ty, Ty::stands_for)?;
            Ok((d, Some(cx.write(&pair.1, Ty::Pred, Ty::stands_for)?)))
        }
        one => Ok((cx.write(&one, ty, Ty::stands_for)?, None)),
    }
}

fn shuffle(cx: &mut Cx) -> Result<Op> {
    cx.need(30, 60)?;
    cx.require("sync")?;
    let mode = cx.one_of(&[("up", 0u8), ("down", 1), ("bfly", 2), ("idx", 3)])?;
    cx.require("b32")?;
    cx.count(5)?;
    let (d, p) = pair(cx, Ty::B32)?;
    let [a, b, c] = cx.srcs(1, [Ty::B32; 3])?;
    members(cx, 4)?;
    Ok(Op::Exchange(Box::new(move |regs, mask| {
        let (a, b, c) = (u32::load(regs, a), u32::load(regs, b), u32::load(regs, c));
        let (mut out, mut inside) = (a, 0u32);
        for lane in lanes(mask) {
            let (l, n) = (lane as u32, b[lane] & 31);
            let (clamp, segment) = (c[lane] & 31, c[lane] >> 8 & 31);
            let (most, least) = (l & segment | clamp & !segment, l & segment);
            let (from, ok) = match mode {
                0 => (l.wrapping_sub(n), l as i32 - n as i32 >= most as i32),
                1 => (l + n, l + n <= most),
                2 => (l ^ n, (l ^ n) <= most),
                _ => (least | n & !segment, (least | n & !segment) <= most),
            };
            let from = if ok { from } else { l };
            if mask >> from & 1 == 0 {
                let what = format!("the value of lane {from} is read, which does not take part");
                let help = "let all lanes that are read execute it, and name them in the mask";
                return Err(trouble(FaultKind::Divergent, what, help).lane(lane));
            }
            out[lane] = a[from as usize];
            inside |= (ok as u32) << lane;
        }
        u32::store(regs, d, &out, mask);
        if let Some(p) = p {
            set_predicate(regs, p, inside, mask);
        }
        Ok(())
    })))
}

fn vote(cx: &mut Cx) -> Result<Op> {
    cx.need(30, 60)?;
    cx.require("sync")?;
    let mode = cx.one_of(&[("all", 0u8), ("any", 1), ("uni", 2), ("ballot", 3)])?;
    cx.require(if mode == 3 { "b32" } else { "pred" })?;
    cx.count(3)?;
    let d = cx.dst(0, if mode == 3 { Ty::B32 } else { Ty::Pred })?;
    let (p, negated) = cx.pred(1)?;
    members(cx, 2)?;
    let alu: Alu = Box::new(move |regs, mask| {
        let bits = (predicate(regs, p) ^ if negated { u32::MAX } else { 0 }) & mask;
        let yes = match mode {
            0 => bits == mask,
            1 => bits != 0,
            2 => bits == mask || bits == 0,
            _ => return store_words(&mut regs[d as usize], &[bits; LANES], mask),
        };
        set_predicate(regs, d, if yes { u32::MAX } else { 0 }, mask);
    });
    Ok(Op::Alu(alu))
}

fn match_any(cx: &mut Cx) -> Result<Op> {
    cx.need(70, 60)?;
    let all = cx.one_of(&[("any", false), ("all", true)])?;
    cx.require("sync")?;
    let ty = cx.ty(&[Ty::B32, Ty::B64])?;
    cx.count(3)?;
    let (d, p) = pair(cx, Ty::B32)?;
    let a = cx.src(1, ty)?;
    members(cx, 2)?;
    let alu: Alu = Box::new(move |regs, mask| {
        let values = match ty {
            Ty::B64 => u64::load(regs, a),
            _ => u32::load(regs, a).map(u64::from),
        };
        let same = |lane: usize| {
            lanes(mask)
                .filter(|o| values[*o] == values[lane])
                .fold(0u32, |m, o| m | 1 << o)
        };
        let mut out = [0; LANES];
        lanes(mask).for_each(|lane| out[lane] = same(lane));
        let every = lanes(mask).all(|lane| out[lane] == mask);
        if all && !every {
            out = [0; LANES];
        }
        store_words(&mut regs[d as usize], &out, mask);
        if let Some(p) = p {
            set_predicate(regs, p, if every { u32::MAX } else { 0 }, mask);
        }
    });
    Ok(Op::Alu(alu))
}

fn redux(cx: &mut Cx) -> Result<Op> {
    cx.need(80, 70)?;
    cx.require("sync")?;
    let ops: [(&str, u8); 6] = [
        ("add", 0),
        ("min", 1),
        ("max", 2),
        ("and", 3),
        ("or", 4),
        ("xor", 5),
    ];
    let op = cx.one_of(&ops)?;
    let ty = match op {
        0..3 => cx.ty(&[Ty::U32, Ty::S32])?,
        _ => cx.ty(&[Ty::B32])?,
    };
    let signed = ty.kind() == Kind::Signed;
    cx.count(3)?;
    let (d, a) = (cx.dst(0, ty)?, cx.src(1, ty)?);
    members(cx, 2)?;
    let alu: Alu = Box::new(move |regs, mask| {
        let a = u32::load(regs, a);
        let less = |x: u32, y: u32| if signed { (x as i32) < y as i32 } else { x < y };
        let f = |x: u32, y: u32| match op {
            0 => x.wrapping_add(y),
            1 => {
                if less(y, x) {
                    y
                } else {
                    x
                }
            }
            2 => {
                if less(x, y) {
                    y
                } else {
                    x
                }
            }
            3 => x & y,
            4 => x | y,
            _ => x ^ y,
        };
        let out = lanes(mask).map(|lane| a[lane]).reduce(f).unwrap_or(0);
        store_words(&mut regs[d as usize], &[out; LANES], mask);
    });
    Ok(Op::Alu(alu))
}

/// The lowest member is elected: the ISA leaves open which one is.
fn elect(cx: &mut Cx) -> Result<Op> {
    cx.need(90, 80)?;
    cx.require("sync")?;
    cx.count(2)?;
    let (d, p) = pair(cx, Ty::B32)?;
    let Some(p) = p else {
        return cx.err("elect.sync has two results", "write `d|p` or `_|p`");
    };
    members(cx, 1)?;
    let alu: Alu = Box::new(move |regs, mask| {
        let leader = mask.trailing_zeros();
        store_words(&mut regs[d as usize], &[leader; LANES], mask);
        set_predicate(regs, p, 1 << leader, mask);
    });
    Ok(Op::Alu(alu))
}
