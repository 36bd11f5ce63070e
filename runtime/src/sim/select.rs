//! Comparisons and selections (PTX ISA, "Comparison and Selection Instructions", "Half
//! Precision Comparison Instructions").

use super::ast::Operand;
use super::decode::Cx;
use super::float::{flush, from_bf16, from_f16};
use super::int::with_int;
use super::op::Op;
use super::regs::{Alu, LANES, Reg, Slot, Value, map3, set_predicate};
use super::report::Class;
use super::types::{Kind, Ty};
use crate::error::Result;

const TYPES: [Ty; 11] = [
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
];

pub fn decode(cx: &mut Cx) -> Result<Op> {
    let alu = match cx.i.name {
        "setp" => setp(cx)?,
        "set" => set(cx)?,
        "selp" => {
            let ty = cx.ty(&TYPES)?;
            cx.count(4)?;
            let d = cx.dst(0, ty)?;
            let [a, b] = cx.srcs(1, [ty; 2])?;
            let c = cx.src(3, Ty::Pred)?;
            with_word(ty, d, [a, b, c])
        }
        _ => slct(cx)?,
    };
    cx.alu(Class::Integer, alu)
}

/// Bits of the one or the other.
fn with_word(ty: Ty, d: Slot, s: [Slot; 3]) -> Alu {
    match ty.bits() {
        64 => map3::<u64, u64, u64, bool>(d, s, |a, b, c| if c { a } else { b }),
        _ => map3::<u32, u32, u32, bool>(d, s, |a, b, c| if c { a } else { b }),
    }
}

fn slct(cx: &mut Cx) -> Result<Alu> {
    let flushed = cx.accept("ftz");
    let ty = cx.ty(&TYPES)?;
    let by = cx.ty(&[Ty::S32, Ty::F32])?;
    cx.count(4)?;
    let d = cx.dst(0, ty)?;
    let s = cx.srcs(1, [ty, ty, by])?;
    // Subnormal numbers below zero count as -0 when flushed, which is not below zero.
    Ok(match (ty.bits(), by) {
        (64, Ty::S32) => map3::<u64, u64, u64, i32>(d, s, |a, b, c| if c >= 0 { a } else { b }),
        (64, _) => map3::<u64, u64, u64, f32>(d, s, move |a, b, c| {
            if (if flushed { flush(c) } else { c }) >= 0.0 {
                a
            } else {
                b
            }
        }),
        (_, Ty::S32) => map3::<u32, u32, u32, i32>(d, s, |a, b, c| if c >= 0 { a } else { b }),
        _ => map3::<u32, u32, u32, f32>(d, s, move |a, b, c| {
            if (if flushed { flush(c) } else { c }) >= 0.0 {
                a
            } else {
                b
            }
        }),
    })
}

/// A comparison's result from "less", "equal" and "unordered".
#[derive(Clone, Copy)]
struct Compare {
    less: bool,
    equal: bool,
    greater: bool,
    unordered: bool,
}

const fn compare(less: bool, equal: bool, greater: bool, unordered: bool) -> Compare {
    Compare {
        less,
        equal,
        greater,
        unordered,
    }
}

const ORDERED: [(&str, Compare); 6] = [
    ("eq", compare(false, true, false, false)),
    ("ne", compare(true, false, true, false)),
    ("lt", compare(true, false, false, false)),
    ("le", compare(true, true, false, false)),
    ("gt", compare(false, false, true, false)),
    ("ge", compare(false, true, true, false)),
];
const UNSIGNED: [(&str, Compare); 4] = [
    ("lo", ORDERED[2].1),
    ("ls", ORDERED[3].1),
    ("hi", ORDERED[4].1),
    ("hs", ORDERED[5].1),
];
const UNORDERED: [(&str, Compare); 8] = [
    ("equ", compare(false, true, false, true)),
    ("neu", compare(true, false, true, true)),
    ("ltu", compare(true, false, false, true)),
    ("leu", compare(true, true, false, true)),
    ("gtu", compare(false, false, true, true)),
    ("geu", compare(false, true, true, true)),
    ("num", compare(true, true, true, false)),
    ("nan", compare(false, false, false, true)),
];

impl Compare {
    #[inline(always)]
    fn of<T: PartialOrd>(self, a: T, b: T) -> bool {
        let (less, equal, greater) = (a < b, a == b, a > b);
        (less & self.less)
            | (equal & self.equal)
            | (greater & self.greater)
            | (!(less | equal | greater) & self.unordered)
    }
}

#[derive(Clone, Copy)]
enum Combine {
    Plain,
    And,
    Or,
    Xor,
}

impl Combine {
    fn of(self, bits: u32, other: u32) -> u32 {
        match self {
            Combine::Plain => bits,
            Combine::And => bits & other,
            Combine::Or => bits | other,
            Combine::Xor => bits ^ other,
        }
    }
}

/// A comparison of all lanes: bits, and of packed types the second elements'.
type Test = Box<dyn Fn(&[Reg]) -> (u32, u32) + Send + Sync>;

fn test<T: Value + PartialOrd, U: PartialOrd>(
    [a, b]: [Slot; 2],
    how: Compare,
    view: impl Fn(T) -> U + Send + Sync + 'static,
) -> Test {
    Box::new(move |regs| {
        let (a, b) = (T::load(regs, a), T::load(regs, b));
        let bits = (0..LANES).fold(0, |m, i| m | (how.of(view(a[i]), view(b[i])) as u32) << i);
        (bits, 0)
    })
}

struct Parsed {
    how: Compare,
    combine: Combine,
    ftz: bool,
    only: Option<Kind>,
}

fn parse(cx: &mut Cx) -> Result<Parsed> {
    let unsigned = cx.choice(&UNSIGNED);
    let unordered = if unsigned.is_none() {
        cx.choice(&UNORDERED)
    } else {
        None
    };
    let only = match (unsigned.is_some(), unordered.is_some()) {
        (true, _) => Some(Kind::Unsigned),
        (_, true) => Some(Kind::Float),
        _ => None,
    };
    let how = match unsigned.or(unordered) {
        Some(how) => how,
        None => cx.one_of(&ORDERED)?,
    };
    let combine = cx
        .choice(&[
            ("and", Combine::And),
            ("or", Combine::Or),
            ("xor", Combine::Xor),
        ])
        .unwrap_or(Combine::Plain);
    let ftz = cx.accept("ftz");
    Ok(Parsed {
        how,
        combine,
        ftz,
        only,
    })
}

fn compared(cx: &mut Cx, parsed: &Parsed, ty: Ty, at: usize) -> Result<Test> {
    let (how, ftz) = (parsed.how, parsed.ftz);
    let float = matches!(ty.kind(), Kind::Float | Kind::Alternate);
    match parsed.only {
        Some(Kind::Unsigned) if ty.kind() != Kind::Unsigned => {
            return cx.err(
                "lo, ls, hi and hs compare unsigned integers",
                "use .uN, or lt …",
            );
        }
        Some(Kind::Float) if !float => {
            return cx.err(
                "unordered comparisons are of floating point",
                "use eq, lt …",
            );
        }
        _ => {}
    }
    if ty.kind() == Kind::Bits && !(how.less == how.greater && how.less != how.equal) {
        return cx.err("untyped values are equal or not", "compare .uN or .sN");
    }
    if ftz && !matches!(ty, Ty::F32 | Ty::F16 | Ty::F16x2) {
        return cx.err(".ftz belongs to .f32 and halves", "take it out");
    }
    let s = cx.srcs(at, [ty; 2])?;
    Ok(match ty {
        Ty::F32 => test::<f32, f32>(s, how, move |x| if ftz { flush(x) } else { x }),
        Ty::F64 => test::<f64, f64>(s, how, |x| x),
        Ty::F16 => test::<u16, f32>(s, how, half(ftz)),
        Ty::Bf16 => test::<u16, f32>(s, how, from_bf16),
        Ty::F16x2 | Ty::Bf16x2 => {
            let view: Box<dyn Fn(u16) -> f32 + Send + Sync> = match ty {
                Ty::F16x2 => Box::new(half(ftz)),
                _ => Box::new(from_bf16),
            };
            let [a, b] = s;
            Box::new(move |regs| {
                let (a, b) = (u32::load(regs, a), u32::load(regs, b));
                let bits = |shift: u32| {
                    (0..LANES).fold(0, |m, i| {
                        let (x, y) = ((a[i] >> shift) as u16, (b[i] >> shift) as u16);
                        m | (how.of(view(x), view(y)) as u32) << i
                    })
                };
                (bits(0), bits(16))
            })
        }
        _ => with_int!(ty, T => test::<T, T>(s, how, |x| x)),
    })
}

fn half(ftz: bool) -> impl Fn(u16) -> f32 + Send + Sync + Copy {
    move |x| {
        let zero = ftz && x & 0x7c00 == 0;
        from_f16(if zero { x & 0x8000 } else { x })
    }
}

fn all_types() -> Vec<Ty> {
    let mut types = TYPES.to_vec();
    types.extend([Ty::F16, Ty::F16x2, Ty::Bf16, Ty::Bf16x2]);
    types
}

/// `setp`: one or two destinations, the second one of the complement; of packed types the
/// second elements' result.
fn setp(cx: &mut Cx) -> Result<Alu> {
    let parsed = parse(cx)?;
    let ty = cx.ty(&all_types())?;
    if matches!(ty, Ty::Bf16 | Ty::Bf16x2) {
        cx.need(90, 78)?;
    }
    let packed = matches!(ty, Ty::F16x2 | Ty::Bf16x2);
    let combined = !matches!(parsed.combine, Combine::Plain);
    cx.count(3 + combined as usize)?;
    let (p, q) = match cx.operand(0)?.clone() {
        Operand::Pair(pair) => {
            let p = cx.write(&pair.0, Ty::Pred, Ty::stands_for)?;
            (p, Some(cx.write(&pair.1, Ty::Pred, Ty::stands_for)?))
        }
        one => (cx.write(&one, Ty::Pred, Ty::stands_for)?, None),
    };
    if packed != q.is_some() && packed {
        return cx.err("a packed comparison has two results", "write p|q");
    }
    let test = compared(cx, &parsed, ty, 1)?;
    let with = if combined { Some(cx.pred(3)?) } else { None };
    let combine = parsed.combine;
    Ok(Box::new(move |regs, mask| {
        let (first, second) = test(regs);
        let other = with.map_or(0, |(slot, negated)| {
            super::regs::predicate(regs, slot) ^ if negated { u32::MAX } else { 0 }
        });
        set_predicate(regs, p, combine.of(first, other), mask);
        if let Some(q) = q {
            let second = if packed { second } else { !first };
            set_predicate(regs, q, combine.of(second, other), mask);
        }
    }))
}

/// `set`: 1.0 or all ones where the comparison holds.
fn set(cx: &mut Cx) -> Result<Alu> {
    let parsed = parse(cx)?;
    let to = cx.ty(&[Ty::U32, Ty::S32, Ty::F32])?;
    let ty = cx.ty(&TYPES)?;
    let combined = !matches!(parsed.combine, Combine::Plain);
    cx.count(3 + combined as usize)?;
    let d = cx.dst(0, to)?;
    let test = compared(cx, &parsed, ty, 1)?;
    let with = if combined { Some(cx.pred(3)?) } else { None };
    let combine = parsed.combine;
    let yes = if to == Ty::F32 {
        1f32.to_bits()
    } else {
        u32::MAX
    };
    Ok(Box::new(move |regs, mask| {
        let other = with.map_or(0, |(slot, negated)| {
            super::regs::predicate(regs, slot) ^ if negated { u32::MAX } else { 0 }
        });
        let bits = combine.of(test(regs).0, other);
        let words: [u32; LANES] = std::array::from_fn(|i| if bits >> i & 1 == 1 { yes } else { 0 });
        u32::store(regs, d, &words, mask);
    }))
}
