//! Floating-point arithmetic (PTX ISA, "Floating Point Instructions", "Half Precision
//! Floating Point Instructions").
//!
//! Where the ISA bounds an error (`.approx`, `.full`, `tanh`, `ex2` …) the result here is
//! the exact one rounded once: hardware's differs in the last bits (unconfirmed). `add`
//! and `mul` without a rounding modifier are not contracted, as ptxas may do.

use super::decode::Cx;
use super::float::{
    Round, add_odd, canonical, canonical64, directed, div_odd, flush, fma_odd, from_bf16, from_f16,
    saturate, sqrt_odd, sum_error, to_f16, to_f32,
};
use super::op::Op;
use super::regs::{Alu, LANES, Slot, Value, map1, map2, map3};
use super::report::Class;
use super::types::Ty;
use crate::error::Result;

const ROUNDS: [(&str, Round); 4] = [
    ("rn", Round::Even),
    ("rz", Round::Zero),
    ("rm", Round::Down),
    ("rp", Round::Up),
];
const HALVES: [Ty; 4] = [Ty::F16, Ty::F16x2, Ty::Bf16, Ty::Bf16x2];

pub fn decode(cx: &mut Cx) -> Result<Op> {
    let alu = match cx.i.name {
        "add" | "sub" | "mul" | "fma" => arithmetic(cx)?,
        "min" | "max" => extreme(cx)?,
        "abs" | "neg" => sign(cx)?,
        "copysign" => copy_sign(cx)?,
        "testp" => test(cx)?,
        "div" | "rcp" | "sqrt" | "rsqrt" => quotient(cx)?,
        _ => transcendental(cx)?,
    };
    cx.alu(Class::Float, alu)
}

/// How a single-precision result is finished.
#[derive(Clone, Copy)]
struct Finish {
    round: Round,
    ftz: bool,
    sat: bool,
}

impl Finish {
    fn plain(self) -> bool {
        self.round == Round::Even && !self.ftz && !self.sat
    }

    #[inline(always)]
    fn argument(self, x: f32) -> f32 {
        if self.ftz { flush(x) } else { x }
    }

    #[inline(always)]
    fn result(self, x: f64) -> f32 {
        let x = to_f32(x, self.round);
        let x = if self.ftz { flush(x) } else { x };
        if self.sat { saturate(x) } else { x }
    }
}

fn arithmetic(cx: &mut Cx) -> Result<Alu> {
    let fma = cx.i.name == "fma";
    let round = match fma {
        true => Some(cx.one_of(&ROUNDS)?),
        false => cx.choice(&ROUNDS),
    };
    let (ftz, sat) = (cx.accept("ftz"), cx.accept("sat"));
    let relu = fma && !sat && cx.accept("relu");
    let ty = cx.ty(&[Ty::F32, Ty::F64, Ty::F16, Ty::F16x2, Ty::Bf16, Ty::Bf16x2])?;
    let finish = Finish {
        round: round.unwrap_or(Round::Even),
        ftz,
        sat,
    };
    if ty == Ty::F64 && (ftz || sat) || relu && !HALVES.contains(&ty) {
        return cx.err(
            format!("a modifier does not belong to .{}", ty.name()),
            "take it out",
        );
    }
    cx.count(3 + fma as usize)?;
    let d = cx.dst(0, ty)?;
    let (a, b) = (cx.src(1, ty)?, cx.src(2, ty)?);
    let c = if fma { Some(cx.src(3, ty)?) } else { None };
    match ty {
        Ty::F32 => Ok(single(cx.i.name, d, [a, b], c, finish)),
        Ty::F64 => double(cx, d, [a, b], c, finish.round),
        _ => halves(cx, ty, d, [a, b], c, finish, relu),
    }
}

fn single(name: &str, d: Slot, s: [Slot; 2], c: Option<Slot>, f: Finish) -> Alu {
    let [a, b] = s;
    match (name, c) {
        (_, Some(c)) if f.plain() => fused(d, [a, b, c]),
        (_, Some(c)) => map3::<f32, f32, f32, f32>(d, [a, b, c], move |a, b, c| {
            f.result(fma_odd(f.argument(a), f.argument(b), f.argument(c)))
        }),
        ("add", _) if f.plain() => map2::<f32, f32, f32>(d, s, |a, b| canonical(a + b)),
        ("sub", _) if f.plain() => map2::<f32, f32, f32>(d, s, |a, b| canonical(a - b)),
        ("mul", _) if f.plain() => map2::<f32, f32, f32>(d, s, |a, b| canonical(a * b)),
        ("add", _) => map2::<f32, f32, f32>(d, s, move |a, b| {
            f.result(add_odd(f.argument(a) as f64, f.argument(b) as f64))
        }),
        ("sub", _) => map2::<f32, f32, f32>(d, s, move |a, b| {
            f.result(add_odd(f.argument(a) as f64, -f.argument(b) as f64))
        }),
        _ => map2::<f32, f32, f32>(d, s, move |a, b| {
            f.result(f.argument(a) as f64 * f.argument(b) as f64)
        }),
    }
}

/// `fma.rn.f32` as fast as the host can.
fn fused(d: Slot, [a, b, c]: [Slot; 3]) -> Alu {
    #[cfg(target_arch = "x86_64")]
    let fast = std::arch::is_x86_feature_detected!("fma");
    Box::new(move |regs, mask| {
        let (a, b, c) = (f32::load(regs, a), f32::load(regs, b), f32::load(regs, c));
        let mut out = [0f32; LANES];
        #[cfg(target_arch = "x86_64")]
        if fast {
            // SAFETY: the processor has what the function is compiled for.
            unsafe { fused_lanes(&a, &b, &c, &mut out) };
            f32::store(regs, d, &out, mask);
            return;
        }
        for lane in 0..LANES {
            out[lane] = canonical(a[lane].mul_add(b[lane], c[lane]));
        }
        f32::store(regs, d, &out, mask);
    })
}

/// # Safety
/// The processor must have FMA.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "fma")]
unsafe fn fused_lanes(
    a: &[f32; LANES],
    b: &[f32; LANES],
    c: &[f32; LANES],
    out: &mut [f32; LANES],
) {
    for lane in 0..LANES {
        out[lane] = canonical(a[lane].mul_add(b[lane], c[lane]));
    }
}

fn double(cx: &Cx, d: Slot, s: [Slot; 2], c: Option<Slot>, round: Round) -> Result<Alu> {
    let [a, b] = s;
    Ok(match (cx.i.name, c) {
        (_, Some(c)) if round == Round::Even => {
            map3::<f64, f64, f64, f64>(d, [a, b, c], |a, b, c| canonical64(a.mul_add(b, c)))
        }
        (_, Some(_)) => {
            return cx.err(
                "fma of .f64 rounds to nearest alone here",
                "write fma.rn.f64",
            );
        }
        ("add", _) => map2::<f64, f64, f64>(d, s, move |a, b| {
            canonical64(directed(a + b, sum_error(a, b), round))
        }),
        ("sub", _) => map2::<f64, f64, f64>(d, s, move |a, b| {
            canonical64(directed(a - b, sum_error(a, -b), round))
        }),
        _ => map2::<f64, f64, f64>(d, s, move |a, b| {
            canonical64(directed(a * b, a.mul_add(b, -(a * b)), round))
        }),
    })
}

/// A 16-bit format as functions.
#[derive(Clone, Copy)]
pub struct Half {
    /// To f32, exactly.
    pub from: fn(u16) -> f32,
    /// From f64, rounded once.
    pub to: fn(f64) -> u16,
}

/// binary16
pub const F16: Half = Half {
    from: from_f16,
    to: to_f16,
};
/// bfloat16
pub const BF16: Half = Half {
    from: from_bf16,
    to: bf16_of,
};

fn bf16_of(x: f64) -> u16 {
    super::float::Format::BF16.encode(x, Round::Even, false) as u16
}

/// The format of a 16-bit type, and whether two are packed.
pub fn half_of(ty: Ty) -> (Half, bool) {
    match ty {
        Ty::F16 => (F16, false),
        Ty::F16x2 => (F16, true),
        Ty::Bf16 => (BF16, false),
        _ => (BF16, true),
    }
}

/// A function of halves, of one or of two packed.
fn lift(
    packed: bool,
    d: Slot,
    s: [Slot; 3],
    f: impl Fn(u16, u16, u16) -> u16 + Send + Sync + 'static,
) -> Alu {
    if !packed {
        return map3::<u16, u16, u16, u16>(d, s, f);
    }
    map3::<u32, u32, u32, u32>(d, s, move |a, b, c| {
        let high = f((a >> 16) as u16, (b >> 16) as u16, (c >> 16) as u16);
        f(a as u16, b as u16, c as u16) as u32 | (high as u32) << 16
    })
}

fn halves(
    cx: &Cx,
    ty: Ty,
    d: Slot,
    [a, b]: [Slot; 2],
    c: Option<Slot>,
    f: Finish,
    relu: bool,
) -> Result<Alu> {
    let (half, packed) = half_of(ty);
    let bf16 = matches!(ty, Ty::Bf16 | Ty::Bf16x2);
    match (bf16, c.is_some()) {
        (true, false) => cx.need(90, 78)?,
        (true, true) => cx.need(80, 70)?,
        _ => cx.need(53, 42)?,
    }
    if f.round != Round::Even || bf16 && (f.ftz || f.sat) {
        return cx.err(
            format!("a modifier does not belong to .{}", ty.name()),
            "take it out",
        );
    }
    let which = match cx.i.name {
        "add" => 0u8,
        "sub" => 1,
        "mul" => 2,
        _ => 3,
    };
    let (ftz, sat) = (f.ftz, f.sat);
    Ok(lift(packed, d, [a, b, c.unwrap_or(a)], move |a, b, c| {
        let read = |x: u16| {
            (half.from)(if ftz && x & 0x7c00 == 0 {
                x & 0x8000
            } else {
                x
            })
        };
        let (a, b, c) = (read(a), read(b), read(c));
        let exact = match which {
            0 => add_odd(a as f64, b as f64),
            1 => add_odd(a as f64, -b as f64),
            2 => a as f64 * b as f64,
            _ => fma_odd(a, b, c),
        };
        let out = (half.to)(exact);
        let out = if ftz && out & 0x7c00 == 0 {
            out & 0x8000
        } else {
            out
        };
        let value = (half.from)(out);
        match () {
            _ if sat => (half.to)(saturate(value) as f64),
            _ if relu && (value < 0.0 || out == 0x8000) => 0,
            _ => out,
        }
    }))
}

/// The smaller or larger one: of one NaN the other operand, unless `.NaN`.
fn pick(a: f32, b: f32, max: bool, nan: bool) -> f32 {
    match (a.is_nan(), b.is_nan()) {
        (true, true) => return canonical(a),
        (true, false) | (false, true) if nan => return canonical(f32::NAN),
        (true, false) => return b,
        (false, true) => return a,
        _ => {}
    }
    // -0 lies below +0.
    let less = a < b || a == b && a.is_sign_negative();
    if less != max { a } else { b }
}

fn extreme(cx: &mut Cx) -> Result<Alu> {
    let max = cx.i.name == "max";
    let ftz = cx.accept("ftz");
    let nan = cx.accept("NaN");
    let xorsign = cx.accept("xorsign");
    if xorsign {
        cx.require("abs")?;
        cx.need(86, 72)?;
    }
    let ty = cx.ty(&[Ty::F32, Ty::F64, Ty::F16, Ty::F16x2, Ty::Bf16, Ty::Bf16x2])?;
    if ty == Ty::F64 && (ftz || nan || xorsign) || matches!(ty, Ty::Bf16 | Ty::Bf16x2) && ftz {
        return cx.err(
            format!("a modifier does not belong to .{}", ty.name()),
            "take it out",
        );
    }
    if HALVES.contains(&ty) || nan {
        cx.need(80, 70)?;
    }
    cx.count(3)?;
    let (d, s) = (cx.dst(0, ty)?, cx.srcs(1, [ty; 2])?);
    let of = move |a: f32, b: f32| {
        if !xorsign {
            return pick(a, b, max, nan);
        }
        let negative = a.is_sign_negative() != b.is_sign_negative();
        let out = pick(a.abs(), b.abs(), max, nan);
        if negative && !out.is_nan() { -out } else { out }
    };
    Ok(match ty {
        Ty::F32 if !(ftz || nan || xorsign) => {
            map2::<f32, f32, f32>(d, s, move |a, b| pick(a, b, max, false))
        }
        Ty::F32 => map2::<f32, f32, f32>(d, s, move |a, b| {
            if ftz {
                flush(of(flush(a), flush(b)))
            } else {
                of(a, b)
            }
        }),
        Ty::F64 => map2::<f64, f64, f64>(d, s, move |a, b| match (a.is_nan(), b.is_nan()) {
            (true, true) => canonical64(a),
            (true, false) => b,
            (false, true) => a,
            _ => {
                if (a < b || a == b && a.is_sign_negative()) != max {
                    a
                } else {
                    b
                }
            }
        }),
        _ => {
            let (half, packed) = half_of(ty);
            let [a, b] = s;
            lift(packed, d, [a, b, a], move |a, b, _| {
                let read = |x: u16| {
                    (half.from)(if ftz && x & 0x7c00 == 0 {
                        x & 0x8000
                    } else {
                        x
                    })
                };
                (half.to)(of(read(a), read(b)) as f64)
            })
        }
    })
}

fn sign(cx: &mut Cx) -> Result<Alu> {
    let abs = cx.i.name == "abs";
    let ftz = cx.accept("ftz");
    let ty = cx.ty(&[Ty::F32, Ty::F64, Ty::F16, Ty::F16x2, Ty::Bf16, Ty::Bf16x2])?;
    if ftz && !matches!(ty, Ty::F32 | Ty::F16 | Ty::F16x2) {
        return cx.err(
            format!(".ftz does not belong to .{}", ty.name()),
            "take it out",
        );
    }
    if matches!(ty, Ty::Bf16 | Ty::Bf16x2) {
        cx.need(80, 70)?;
    }
    cx.count(2)?;
    let (d, a) = (cx.dst(0, ty)?, cx.src(1, ty)?);
    let half = move |x: u16| {
        let x = if ftz && x & 0x7c00 == 0 {
            x & 0x8000
        } else {
            x
        };
        if abs { x & 0x7fff } else { x ^ 0x8000 }
    };
    Ok(match ty {
        Ty::F32 => map1::<f32, f32>(d, a, move |x| {
            let x = if ftz { flush(x) } else { x };
            if abs { x.abs() } else { -x }
        }),
        Ty::F64 => map1::<f64, f64>(d, a, move |x| if abs { x.abs() } else { -x }),
        _ => lift(half_of(ty).1, d, [a; 3], move |x, _, _| half(x)),
    })
}

fn copy_sign(cx: &mut Cx) -> Result<Alu> {
    let ty = cx.ty(&[Ty::F32, Ty::F64])?;
    cx.count(3)?;
    // The sign is the first operand's.
    let (d, s) = (cx.dst(0, ty)?, cx.srcs(1, [ty; 2])?);
    Ok(match ty {
        Ty::F32 => map2::<f32, f32, f32>(d, s, |a, b| b.copysign(a)),
        _ => map2::<f64, f64, f64>(d, s, |a, b| b.copysign(a)),
    })
}

fn test(cx: &mut Cx) -> Result<Alu> {
    type Test = fn(f64, bool) -> bool;
    let tests: [(&str, Test); 6] = [
        ("finite", |x, _| x.is_finite()),
        ("infinite", |x, _| x.is_infinite()),
        ("number", |x, _| !x.is_nan()),
        ("notanumber", |x, _| x.is_nan()),
        ("normal", |x, small| x.is_finite() && !small && x != 0.0),
        ("subnormal", |x, small| small && x != 0.0),
    ];
    let test = cx.one_of(&tests)?;
    let ty = cx.ty(&[Ty::F32, Ty::F64])?;
    cx.count(2)?;
    let (p, a) = (cx.dst(0, Ty::Pred)?, cx.src(1, ty)?);
    Ok(match ty {
        Ty::F32 => map1::<bool, f32>(p, a, move |x| test(x as f64, x.is_subnormal())),
        _ => map1::<bool, f64>(p, a, move |x| test(x, x.is_subnormal())),
    })
}

/// `div`, `rcp`, `sqrt`, `rsqrt`.
fn quotient(cx: &mut Cx) -> Result<Alu> {
    let name = cx.i.name;
    let approx = cx.accept("approx");
    let full = !approx && name == "div" && cx.accept("full");
    let round = match (approx || full, name) {
        (true, _) => Round::Even,
        (false, "rsqrt") => return cx.err("rsqrt is approximate", "write rsqrt.approx"),
        (false, _) => cx.one_of(&ROUNDS)?,
    };
    let ftz = cx.accept("ftz");
    let ty = cx.ty(&[Ty::F32, Ty::F64])?;
    if ty == Ty::F64 && (full || (approx && name != "rsqrt") || (ftz && name != "rsqrt")) {
        return cx.err(
            "this form is not of .f64, or not simulated",
            "write .rn.f64",
        );
    }
    let two = name == "div";
    cx.count(2 + two as usize)?;
    let (d, a) = (cx.dst(0, ty)?, cx.src(1, ty)?);
    let b = if two { cx.src(2, ty)? } else { a };
    let f = Finish {
        round,
        ftz,
        sat: false,
    };
    let read = move |x| f.argument(x);
    Ok(match (ty, name) {
        (Ty::F32, "div") => {
            map2::<f32, f32, f32>(d, [a, b], move |a, b| f.result(div_odd(read(a), read(b))))
        }
        (Ty::F32, "rcp") => map1::<f32, f32>(d, a, move |a| f.result(div_odd(1.0, read(a)))),
        (Ty::F32, "sqrt") => map1::<f32, f32>(d, a, move |a| f.result(sqrt_odd(read(a)))),
        (Ty::F32, _) => map1::<f32, f32>(d, a, move |a| f.result(1.0 / (read(a) as f64).sqrt())),
        (_, "div") => map2::<f64, f64, f64>(d, [a, b], move |a, b| div_double(a, b, round)),
        (_, "rcp") => map1::<f64, f64>(d, a, move |a| div_double(1.0, a, round)),
        (_, "sqrt") => map1::<f64, f64>(d, a, move |a| {
            let q = a.sqrt();
            canonical64(directed(q, (-q).mul_add(q, a), round))
        }),
        _ => map1::<f64, f64>(d, a, |a| canonical64(1.0 / a.sqrt())),
    })
}

fn div_double(a: f64, b: f64, round: Round) -> f64 {
    let q = a / b;
    let rest = (-q).mul_add(b, a);
    canonical64(directed(q, if b < 0.0 { -rest } else { rest }, round))
}

fn transcendental(cx: &mut Cx) -> Result<Alu> {
    type Function = fn(f64) -> f64;
    let functions: [(&str, Function); 5] = [
        ("sin", f64::sin),
        ("cos", f64::cos),
        ("lg2", f64::log2),
        ("ex2", f64::exp2),
        ("tanh", f64::tanh),
    ];
    let name = cx.i.name;
    let Some((_, f)) = functions.iter().find(|(n, _)| *n == name).copied() else {
        return cx.err("no such function", "see the ISA");
    };
    cx.require("approx")?;
    let tanh = name == "tanh";
    let ftz = !tanh && cx.accept("ftz");
    let halves = matches!(name, "tanh" | "ex2");
    let types: &[Ty] = match halves {
        true => &[Ty::F32, Ty::F16, Ty::F16x2, Ty::Bf16, Ty::Bf16x2],
        false => &[Ty::F32],
    };
    let ty = cx.ty(types)?;
    if tanh {
        cx.need(75, 70)?;
    }
    let bf16 = matches!(ty, Ty::Bf16 | Ty::Bf16x2);
    if bf16 {
        cx.need(90, 78)?;
    }
    if ty != Ty::F32 && !tanh && ftz != bf16 {
        return cx.err(
            ".ftz belongs to .bf16, and not to .f16",
            "see the ISA's syntax",
        );
    }
    cx.count(2)?;
    let (d, a) = (cx.dst(0, ty)?, cx.src(1, ty)?);
    let finish = Finish {
        round: Round::Even,
        ftz,
        sat: false,
    };
    if ty == Ty::F32 {
        return Ok(map1::<f32, f32>(d, a, move |x| {
            finish.result(f(finish.argument(x) as f64))
        }));
    }
    let (half, packed) = half_of(ty);
    Ok(lift(packed, d, [a; 3], move |x, _, _| {
        let value = (half.from)(x);
        (half.to)(f(if ftz { flush(value) } else { value } as f64))
    }))
}
