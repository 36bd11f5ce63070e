//! Integer arithmetic (PTX ISA, "Integer Arithmetic Instructions", "Extended-Precision
//! Integer Arithmetic Instructions").

use super::decode::Cx;
use super::op::Op;
use super::regs::{Alu, Reg, Slot, Value, map1, map2, map3, map4};
use super::report::Class;
use super::types::{Kind, Ty};
use crate::error::Result;

/// All integer types of registers.
pub const INTS: [Ty; 6] = [Ty::U16, Ty::U32, Ty::U64, Ty::S16, Ty::S32, Ty::S64];

/// The body with `$t` the Rust type of an integer or untyped `Ty`.
macro_rules! with_int {
    ($ty:expr, $t:ident => $body:expr) => {
        match $ty {
            Ty::U16 | Ty::B16 => {
                type $t = u16;
                $body
            }
            Ty::S16 => {
                type $t = i16;
                $body
            }
            Ty::U64 | Ty::B64 => {
                type $t = u64;
                $body
            }
            Ty::S64 => {
                type $t = i64;
                $body
            }
            Ty::S32 => {
                type $t = i32;
                $body
            }
            _ => {
                type $t = u32;
                $body
            }
        }
    };
}
pub(super) use with_int;

pub fn decode(cx: &mut Cx) -> Result<Op> {
    let alu = match cx.i.name {
        "add" | "sub" | "addc" | "subc" => add(cx)?,
        "mul" | "mad" => multiply(cx)?,
        "div" | "rem" | "min" | "max" => binary(cx)?,
        "abs" | "neg" => unary(cx)?,
        "sad" => {
            let ty = cx.ty(&INTS)?;
            cx.count(4)?;
            let (d, s) = (cx.dst(0, ty)?, cx.srcs(1, [ty; 3])?);
            with_int!(ty, T => map3::<T, T, T, T>(d, s, |a, b, c| {
                c.wrapping_add(if a < b { b.wrapping_sub(a) } else { a.wrapping_sub(b) })
            }))
        }
        "dp4a" => dp4a(cx)?,
        name => return cx.err(format!("no integer instruction `{name}`"), "see the ISA"),
    };
    cx.alu(Class::Integer, alu)
}

/// `add`, `sub`, with carry in and out.
fn add(cx: &mut Cx) -> Result<Alu> {
    let sub = cx.i.name.starts_with("sub");
    let carry_in = cx.i.name.ends_with('c');
    let saturate = !carry_in && cx.accept("sat");
    let carry_out = !saturate && cx.accept("cc");
    let ty = if saturate {
        cx.ty(&[Ty::S32])?
    } else if carry_in || carry_out {
        cx.ty(&[Ty::U32, Ty::S32, Ty::U64, Ty::S64])?
    } else {
        cx.ty(&INTS)?
    };
    cx.count(3)?;
    let (d, s) = (cx.dst(0, ty)?, cx.srcs(1, [ty; 2])?);
    if saturate {
        return Ok(match sub {
            false => map2::<i32, i32, i32>(d, s, i32::saturating_add),
            true => map2::<i32, i32, i32>(d, s, i32::saturating_sub),
        });
    }
    if carry_in || carry_out {
        let carry = cx.carry();
        if carry_in {
            cx.reads.push(carry);
        }
        if carry_out {
            cx.writes.push(carry);
        }
        let out = carry_out.then_some(carry);
        let into = carry_in.then_some(carry);
        return Ok(match ty.bits() {
            32 => carried::<u32>(d, s, sub, into, out),
            _ => carried::<u64>(d, s, sub, into, out),
        });
    }
    Ok(match sub {
        false => with_int!(ty, T => map2::<T, T, T>(d, s, |a, b| a.wrapping_add(b))),
        true => with_int!(ty, T => map2::<T, T, T>(d, s, |a, b| a.wrapping_sub(b))),
    })
}

/// An unsigned word that carries.
trait Word: Value {
    fn add(self, other: Self, carry: bool) -> (Self, bool);
    fn invert(self) -> Self;
}

macro_rules! word {
    ($($ty:ty)*) => {$(
        impl Word for $ty {
            fn add(self, other: $ty, carry: bool) -> ($ty, bool) {
                let (sum, first) = self.overflowing_add(other);
                let (sum, second) = sum.overflowing_add(carry as $ty);
                (sum, first | second)
            }
            fn invert(self) -> $ty {
                !self
            }
        }
    )*};
}
word! { u32 u64 }

/// A subtraction adds the complement; the flag holds its borrow.
fn carried<T: Word>(
    d: Slot,
    [a, b]: [Slot; 2],
    sub: bool,
    into: Option<Slot>,
    out: Option<Slot>,
) -> Alu {
    Box::new(move |regs: &mut [Reg], mask| {
        let (a, b) = (T::load(regs, a), T::load(regs, b));
        let start = into.map_or([false; 32], |slot| bool::load(regs, slot));
        let mut carries = [false; 32];
        let mut sums = [T::default(); 32];
        for lane in 0..32 {
            let other = if sub { b[lane].invert() } else { b[lane] };
            let (sum, carry) = a[lane].add(other, start[lane] ^ sub);
            (sums[lane], carries[lane]) = (sum, carry ^ sub);
        }
        T::store(regs, d, &sums, mask);
        if let Some(slot) = out {
            bool::store(regs, slot, &carries, mask);
        }
    })
}

#[derive(Clone, Copy, PartialEq)]
enum Part {
    Low,
    High,
    Wide,
}

/// `mul`, `mad`.
fn multiply(cx: &mut Cx) -> Result<Alu> {
    let add = cx.i.name == "mad";
    let part = cx.one_of(&[("lo", Part::Low), ("hi", Part::High), ("wide", Part::Wide)])?;
    let saturate = add && part == Part::High && cx.accept("sat");
    if cx.peek() == Some("cc") {
        return cx.err("mad with carries is not simulated", "use mul and add.cc");
    }
    let ty = match (part, saturate) {
        (Part::Wide, _) => cx.ty(&[Ty::U16, Ty::U32, Ty::S16, Ty::S32])?,
        (_, true) => cx.ty(&[Ty::S32])?,
        _ => cx.ty(&INTS)?,
    };
    let result = match (part, ty) {
        (Part::Wide, Ty::U16) => Ty::U32,
        (Part::Wide, Ty::S16) => Ty::S32,
        (Part::Wide, Ty::U32) => Ty::U64,
        (Part::Wide, _) => Ty::S64,
        _ => ty,
    };
    cx.count(3 + add as usize)?;
    let (d, [a, b]) = (cx.dst(0, result)?, cx.srcs(1, [ty; 2])?);
    let c = if add {
        cx.src(3, result)?
    } else {
        cx.constant(0, result.bits() == 64)
    };
    let s = [a, b, c];
    Ok(match part {
        Part::Low => with_int!(ty, T => map3::<T, T, T, T>(d, s, |a, b, c| {
            a.wrapping_mul(b).wrapping_add(c)
        })),
        Part::Wide => match ty {
            Ty::U16 => {
                map3::<u32, u16, u16, u32>(d, s, |a, b, c| (a as u32 * b as u32).wrapping_add(c))
            }
            Ty::S16 => {
                map3::<i32, i16, i16, i32>(d, s, |a, b, c| (a as i32 * b as i32).wrapping_add(c))
            }
            Ty::U32 => {
                map3::<u64, u32, u32, u64>(d, s, |a, b, c| (a as u64 * b as u64).wrapping_add(c))
            }
            _ => map3::<i64, i32, i32, i64>(d, s, |a, b, c| (a as i64 * b as i64).wrapping_add(c)),
        },
        Part::High if saturate => map3::<i32, i32, i32, i32>(d, s, |a, b, c| {
            (((a as i64 * b as i64) >> 32) as i32).saturating_add(c)
        }),
        Part::High => {
            let shift = ty.bits();
            with_int!(ty, T => map3::<T, T, T, T>(d, s, move |a, b, c| {
                ((a as i128).wrapping_mul(b as i128) >> shift) as T
            }.wrapping_add(c)))
        }
    })
}

/// `div`, `rem`, `min`, `max`. Division by zero gives all ones, the remainder then is the
/// dividend: the ISA leaves both open, hardware does this.
fn binary(cx: &mut Cx) -> Result<Alu> {
    let name = cx.i.name;
    let ty = cx.ty(&INTS)?;
    cx.count(3)?;
    let (d, s) = (cx.dst(0, ty)?, cx.srcs(1, [ty; 2])?);
    Ok(match name {
        "div" => with_int!(ty, T => map2::<T, T, T>(d, s, |a, b| {
            if b == 0 { !0 } else { a.wrapping_div(b) }
        })),
        "rem" => with_int!(ty, T => map2::<T, T, T>(d, s, |a, b| {
            if b == 0 { a } else { a.wrapping_rem(b) }
        })),
        "min" => with_int!(ty, T => map2::<T, T, T>(d, s, |a, b| a.min(b))),
        _ => with_int!(ty, T => map2::<T, T, T>(d, s, |a, b| a.max(b))),
    })
}

/// `abs`, `neg`: of signed integers alone.
fn unary(cx: &mut Cx) -> Result<Alu> {
    let abs = cx.i.name == "abs";
    let ty = cx.ty(&[Ty::S16, Ty::S32, Ty::S64])?;
    cx.count(2)?;
    let (d, a) = (cx.dst(0, ty)?, cx.src(1, ty)?);
    Ok(match (abs, ty) {
        (true, Ty::S16) => map1::<i16, i16>(d, a, i16::wrapping_abs),
        (true, Ty::S32) => map1::<i32, i32>(d, a, i32::wrapping_abs),
        (true, _) => map1::<i64, i64>(d, a, i64::wrapping_abs),
        (false, Ty::S16) => map1::<i16, i16>(d, a, i16::wrapping_neg),
        (false, Ty::S32) => map1::<i32, i32>(d, a, i32::wrapping_neg),
        (false, _) => map1::<i64, i64>(d, a, i64::wrapping_neg),
    })
}

/// `dp4a`: four products of bytes and a sum.
fn dp4a(cx: &mut Cx) -> Result<Alu> {
    cx.need(61, 50)?;
    let a = cx.ty(&[Ty::U32, Ty::S32])?;
    let b = cx.ty(&[Ty::U32, Ty::S32])?;
    cx.count(4)?;
    let c = if a == Ty::U32 && b == Ty::U32 {
        Ty::U32
    } else {
        Ty::S32
    };
    let (d, s) = (cx.dst(0, c)?, cx.srcs(1, [Ty::B32, Ty::B32, c])?);
    let signs = [a, b].map(|ty| ty.kind() == Kind::Signed);
    let zero = cx.constant(0, false);
    let byte = |word: u32, i: u32, signed: bool| {
        let byte = (word >> (8 * i)) as u8;
        if signed {
            byte as i8 as i32
        } else {
            byte as i32
        }
    };
    let [a, b, c] = s;
    Ok(map4::<u32, u32, u32, u32, u32>(
        d,
        [a, b, c, zero],
        move |a, b, c, _| {
            (0..4).fold(c, |sum, i| {
                sum.wrapping_add((byte(a, i, signs[0]) * byte(b, i, signs[1])) as u32)
            })
        },
    ))
}
