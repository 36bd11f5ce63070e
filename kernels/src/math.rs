//! Scalar functions as vector code: what [`crate::lower`] calls for each node.
//!
//! No function calls out: everything is a polynomial in vector operations. The
//! f32 functions that networks run on every element (exp, log, erf, tanh,
//! sigmoid) have their own f32 code; the others go through the f64 functions
//! of [`crate::math64`], which makes them correctly rounded nearly everywhere.

use crate::math64 as m64;
use kiln_codegen::emit::Cmp;
use kiln_codegen::{Elem, Emitter, Ty, Val};
use kiln_ir::{BinaryFn, CompareFn, UnaryFn};

/// A builder that knows the float type in work: formulas read as formulas.
pub(crate) struct M<'a> {
    pub e: &'a mut Emitter,
    pub ty: Ty,
}

impl M<'_> {
    pub fn c(&mut self, v: f64) -> Val {
        self.e.float(self.ty, v)
    }

    pub fn add(&mut self, a: Val, b: Val) -> Val {
        self.e.add(a, b)
    }

    pub fn sub(&mut self, a: Val, b: Val) -> Val {
        self.e.sub(a, b)
    }

    pub fn mul(&mut self, a: Val, b: Val) -> Val {
        self.e.mul(a, b)
    }

    pub fn div(&mut self, a: Val, b: Val) -> Val {
        self.e.divf(a, b)
    }

    pub fn fma(&mut self, a: Val, b: Val, c: Val) -> Val {
        self.e.fma(a, b, c)
    }

    pub fn neg(&mut self, x: Val) -> Val {
        self.e.neg(x)
    }

    pub fn abs(&mut self, x: Val) -> Val {
        self.e.intrinsic("fabs", &[x])
    }

    pub fn sqrt(&mut self, x: Val) -> Val {
        self.e.intrinsic("sqrt", &[x])
    }

    pub fn sign_of(&mut self, magnitude: Val, sign: Val) -> Val {
        self.e.intrinsic("copysign", &[magnitude, sign])
    }

    pub fn select(&mut self, c: Val, a: Val, b: Val) -> Val {
        self.e.select(c, a, b)
    }

    pub fn cmp(&mut self, how: Cmp, a: Val, b: Val) -> Val {
        self.e.cmp(how, a, b, false)
    }

    /// Compares with a constant.
    pub fn is(&mut self, how: Cmp, a: Val, b: f64) -> Val {
        let b = self.c(b);
        self.cmp(how, a, b)
    }

    pub fn both(&mut self, a: Val, b: Val) -> Val {
        self.e.op2("arith.andi", a, b)
    }

    pub fn either(&mut self, a: Val, b: Val) -> Val {
        self.e.op2("arith.ori", a, b)
    }

    /// `x + constant`.
    pub fn plus(&mut self, x: Val, v: f64) -> Val {
        let c = self.c(v);
        self.add(x, c)
    }

    /// `x * constant`.
    pub fn times(&mut self, x: Val, v: f64) -> Val {
        let c = self.c(v);
        self.mul(x, c)
    }

    /// Horner's rule, the highest coefficient first.
    pub fn poly(&mut self, x: Val, coefficients: &[f64]) -> Val {
        let mut r = self.c(coefficients[0]);
        for &k in &coefficients[1..] {
            let k = self.c(k);
            r = self.fma(r, x, k);
        }
        r
    }

    /// The lanes as integers of the same width.
    pub fn bits(&mut self, x: Val) -> Val {
        let elem = if x.ty.elem == Elem::F64 {
            Elem::I64
        } else {
            Elem::I32
        };
        self.e.bitcast(x, elem)
    }

    /// An integer operation with a constant.
    pub fn int_op(&mut self, op: &str, x: Val, v: i64) -> Val {
        let c = self.e.int(x.ty, v);
        self.e.op2(op, x, c)
    }

    /// `2^n` for integer lanes within the exponent's range.
    pub fn exp2_int(&mut self, n: Val) -> Val {
        let (bias, shift, to) = match n.ty.elem {
            Elem::I64 => (1023, 52, Elem::F64),
            _ => (127, 23, Elem::F32),
        };
        let biased = self.int_op("arith.addi", n, bias);
        let bits = self.int_op("arith.shli", biased, shift);
        self.e.bitcast(bits, to)
    }

    /// `x * 2^n` with one rounding, for `n` within twice the exponent's range.
    pub fn scale(&mut self, x: Val, n: Val) -> Val {
        let half = self.int_op("arith.shrsi", n, 1);
        let rest = self.e.sub(n, half);
        let (a, b) = (self.exp2_int(half), self.exp2_int(rest));
        let x = self.mul(x, a);
        self.mul(x, b)
    }

    /// The same for an `n` that is at hand as a float and as an integer.
    pub fn scale_either(&mut self, x: Val, (float, n): (Val, Val)) -> Val {
        match self.e.scale(x, float) {
            Some(y) => y,
            None => self.scale(x, n),
        }
    }

    /// The nearest integer to `x * factor`, as a float and as an integer.
    pub fn round_scaled(&mut self, x: Val, factor: f64) -> (Val, Val) {
        // Adding 1.5·2^(mantissa bits) leaves the integer in the low bits.
        let magic = if self.ty.elem == Elem::F64 {
            6755399441055744.0
        } else {
            12582912.0
        };
        let (f, m) = (self.c(factor), self.c(magic));
        let shifted = self.fma(x, f, m);
        let n = self.sub(shifted, m);
        let (sb, mb) = (self.bits(shifted), self.bits(m));
        (n, self.e.sub(sb, mb))
    }

    /// Limits to a range; NaN stays.
    pub fn clamp(&mut self, x: Val, low: f64, high: f64) -> Val {
        let (l, h) = (self.c(low), self.c(high));
        let above = self.cmp(Cmp::Gt, x, h);
        let x = self.select(above, h, x);
        let below = self.cmp(Cmp::Lt, x, l);
        self.select(below, l, x)
    }
}

/// The builder's comparison of a scalar function.
pub fn cmp_of(f: CompareFn) -> Cmp {
    match f {
        CompareFn::Eq => Cmp::Eq,
        CompareFn::Ne => Cmp::Ne,
        CompareFn::Lt => Cmp::Lt,
        CompareFn::Le => Cmp::Le,
        CompareFn::Gt => Cmp::Gt,
        CompareFn::Ge => Cmp::Ge,
    }
}

/// A one-argument function.
pub fn unary(e: &mut Emitter, f: UnaryFn, x: Val, unsigned: bool) -> Val {
    if x.ty.elem.is_float() {
        float_unary(e, f, x)
    } else {
        int_unary(e, f, x, unsigned)
    }
}

/// A two-argument function, but for integer division.
pub fn binary(e: &mut Emitter, f: BinaryFn, a: Val, b: Val, unsigned: bool) -> Val {
    let (a, b) = e.match_lanes(a, b);
    match f {
        BinaryFn::Add => e.add(a, b),
        BinaryFn::Sub => e.sub(a, b),
        BinaryFn::Mul => e.mul(a, b),
        BinaryFn::Min => extreme(e, Cmp::Lt, a, b, unsigned),
        BinaryFn::Max => extreme(e, Cmp::Gt, a, b, unsigned),
        BinaryFn::And => e.op2("arith.andi", a, b),
        BinaryFn::Or => e.op2("arith.ori", a, b),
        BinaryFn::Xor => e.op2("arith.xori", a, b),
        BinaryFn::Shl | BinaryFn::Shr => shift(e, f, a, b, unsigned),
        BinaryFn::Div if a.ty.elem.is_float() => e.divf(a, b),
        BinaryFn::Pow if !a.ty.elem.is_float() => int_pow(e, a, b, unsigned),
        BinaryFn::Div | BinaryFn::Rem | BinaryFn::Mod if !a.ty.elem.is_float() => {
            integer_division(e, f, a, b, unsigned)
        }
        BinaryFn::Div => e.divf(a, b),
        BinaryFn::Rem => through_f64(e, &[a, b], |m, x| m64::fmod(m, x[0], x[1])),
        BinaryFn::Mod => through_f64(e, &[a, b], |m, x| m64::floor_mod(m, x[0], x[1])),
        BinaryFn::Pow => through_f64(e, &[a, b], |m, x| m64::pow(m, x[0], x[1])),
        BinaryFn::Atan2 => through_f64(e, &[a, b], |m, x| m64::atan2(m, x[0], x[1])),
    }
}

/// The more extreme of two numbers, NaN if either is. From `a`, which a
/// reduction carries, to the result are one `max` and one blend.
fn extreme(e: &mut Emitter, how: Cmp, a: Val, b: Val, unsigned: bool) -> Val {
    let beyond = e.cmp(how, b, a, unsigned);
    let r = e.select(beyond, b, a);
    if !a.ty.elem.is_float() {
        return r;
    }
    let nan = e.cmp(Cmp::Ne, b, b, false);
    e.select(nan, b, r)
}

/// `x^n` for the exponents that models write as constants; `None`: use `pow`.
pub fn pow_const(e: &mut Emitter, x: Val, n: f64) -> Option<Val> {
    if n == 1.0 {
        Some(x)
    } else if n == 2.0 {
        Some(e.mul(x, x))
    } else if n == 3.0 {
        let square = e.mul(x, x);
        Some(e.mul(square, x))
    } else if n == -1.0 {
        let one = e.float(x.ty, 1.0);
        Some(e.divf(one, x))
    } else if n == 0.75 && matches!(x.ty.elem, Elem::F32 | Elem::F64) {
        Some(three_quarters(e, x))
    } else {
        None
    }
}

/// `x^¾`, the exponent of local response normalisation, as `√x·√√x`. Neither factor
/// leaves the normal numbers, so the error is that of the roundings: 1½ of the first
/// root, one of the second, one of the product, at most 3.5·2⁻²⁴ in f32.
fn three_quarters(e: &mut Emitter, x: Val) -> Val {
    let ty = x.ty;
    let m = &mut M { e, ty };
    let root = m.sqrt(x);
    let fourth = m.sqrt(root);
    let power = m.mul(root, fourth);
    // A power of −∞ is +∞, where a root is NaN.
    let infinity = m.c(f64::INFINITY);
    let lowest = m.is(Cmp::Eq, x, f64::NEG_INFINITY);
    m.select(lowest, infinity, power)
}

/// Computes in f64 and rounds back.
fn through_f64(e: &mut Emitter, args: &[Val], f: impl Fn(&mut M, &[Val]) -> Val) -> Val {
    let to = args[0].ty.elem;
    let wide: Vec<Val> = args
        .iter()
        .map(|&x| e.cast(x, Elem::F64, false, false))
        .collect();
    let ty = wide[0].ty;
    let r = f(&mut M { e, ty }, &wide);
    e.cast(r, to, false, false)
}

fn float_unary(e: &mut Emitter, f: UnaryFn, x: Val) -> Val {
    let single = x.ty.elem == Elem::F32;
    let ty = x.ty;
    let m = &mut M { e, ty };
    match f {
        UnaryFn::Neg => m.neg(x),
        UnaryFn::Abs => m.abs(x),
        UnaryFn::Sign => {
            let one = m.c(1.0);
            let unit = m.sign_of(one, x);
            let (below, above) = (m.is(Cmp::Lt, x, 0.0), m.is(Cmp::Gt, x, 0.0));
            let moved = m.either(below, above);
            m.select(moved, unit, x)
        }
        UnaryFn::Sqrt => m.sqrt(x),
        UnaryFn::Rsqrt => {
            let (one, root) = (m.c(1.0), m.sqrt(x));
            m.div(one, root)
        }
        UnaryFn::Recip => {
            let one = m.c(1.0);
            m.div(one, x)
        }
        UnaryFn::Floor => m.e.intrinsic("floor", &[x]),
        UnaryFn::Ceil => m.e.intrinsic("ceil", &[x]),
        UnaryFn::Round => m.e.intrinsic("roundeven", &[x]),
        UnaryFn::RoundTf32 => round_tf32(m, x),
        UnaryFn::Not => m.is(Cmp::Eq, x, 0.0),
        UnaryFn::IsNan => m.cmp(Cmp::Ne, x, x),
        UnaryFn::IsInf => {
            let a = m.abs(x);
            m.is(Cmp::Eq, a, f64::INFINITY)
        }
        UnaryFn::Exp if single => exp_f32(m, x),
        UnaryFn::Log if single => log_f32(m, x),
        UnaryFn::Erf if single => erf_f32(m, x),
        UnaryFn::NormalCdf if single => normal_cdf_f32(m, x),
        UnaryFn::Tanh if single => tanh_f32(m, x),
        UnaryFn::Sigmoid if single => sigmoid(m, x, exp_f32),
        UnaryFn::Exp => m64::exp(m, x),
        UnaryFn::Log => m64::log(m, x),
        UnaryFn::Erf => m64::erf(m, x),
        UnaryFn::NormalCdf => m64::normal_cdf(m, x),
        UnaryFn::Tanh => m64::tanh(m, x),
        UnaryFn::Sigmoid => sigmoid(m, x, m64::exp),
        UnaryFn::Sin => through_f64(e, &[x], |m, x| m64::sin_cos(m, x[0]).0),
        UnaryFn::Cos => through_f64(e, &[x], |m, x| m64::sin_cos(m, x[0]).1),
        UnaryFn::Tan => through_f64(e, &[x], |m, x| m64::tan(m, x[0])),
        UnaryFn::Asin => through_f64(e, &[x], |m, x| m64::asin(m, x[0])),
        UnaryFn::Acos => through_f64(e, &[x], |m, x| m64::acos(m, x[0])),
        UnaryFn::Atan => through_f64(e, &[x], |m, x| m64::atan(m, x[0])),
        UnaryFn::Sinh => through_f64(e, &[x], |m, x| m64::sinh(m, x[0])),
        UnaryFn::Cosh => through_f64(e, &[x], |m, x| m64::cosh(m, x[0])),
        UnaryFn::Asinh => through_f64(e, &[x], |m, x| m64::asinh(m, x[0])),
        UnaryFn::Acosh => through_f64(e, &[x], |m, x| m64::acosh(m, x[0])),
        UnaryFn::Atanh => through_f64(e, &[x], |m, x| m64::atanh(m, x[0])),
        // The arena refuses it for floats.
        UnaryFn::BitNot => x,
    }
}

/// An f32 rounded to ten bits of mantissa, halves away from zero: in integers, which carry
/// into the exponent as they should, on every device.
fn round_tf32(m: &mut M, x: Val) -> Val {
    let bits = m.bits(x);
    let up = m.int_op("arith.addi", bits, 0x1000);
    let rounded = m.int_op("arith.andi", up, !0x1fff);
    let rounded = m.e.bitcast(rounded, Elem::F32);
    let nan = m.cmp(Cmp::Ne, x, x);
    // Quiet: what is left of its bits where the low ones take no part is still a NaN.
    let quiet = m.add(x, x);
    m.select(nan, quiet, rounded)
}

fn int_unary(e: &mut Emitter, f: UnaryFn, x: Val, unsigned: bool) -> Val {
    let zero = e.int(x.ty, 0);
    match f {
        UnaryFn::Neg => e.sub(zero, x),
        UnaryFn::Abs if unsigned => x,
        UnaryFn::Abs => {
            let (minus, below) = (e.sub(zero, x), e.cmp(Cmp::Lt, x, zero, false));
            e.select(below, minus, x)
        }
        UnaryFn::Sign => {
            let (one, minus) = (e.int(x.ty, 1), e.int(x.ty, -1));
            let above = e.cmp(Cmp::Gt, x, zero, unsigned);
            let positive = e.select(above, one, zero);
            let below = e.cmp(Cmp::Lt, x, zero, unsigned);
            e.select(below, minus, positive)
        }
        UnaryFn::Not => e.cmp(Cmp::Eq, x, zero, false),
        UnaryFn::BitNot => {
            let ones = e.int(x.ty, -1);
            e.op2("arith.xori", x, ones)
        }
        UnaryFn::IsNan | UnaryFn::IsInf => e.int(x.ty.with(Elem::I1), 0),
        UnaryFn::Floor | UnaryFn::Ceil | UnaryFn::Round => x,
        // The arena refuses the others for integers.
        UnaryFn::Exp | UnaryFn::Log | UnaryFn::Sqrt | UnaryFn::Rsqrt | UnaryFn::Recip => x,
        UnaryFn::Sin | UnaryFn::Cos | UnaryFn::Tan => x,
        UnaryFn::Asin | UnaryFn::Acos | UnaryFn::Atan => x,
        UnaryFn::Sinh | UnaryFn::Cosh | UnaryFn::Tanh => x,
        UnaryFn::Asinh | UnaryFn::Acosh | UnaryFn::Atanh => x,
        UnaryFn::Erf | UnaryFn::NormalCdf | UnaryFn::Sigmoid | UnaryFn::RoundTf32 => x,
    }
}

/// Shifts; by the width or more: what shifting bit by bit gives.
fn shift(e: &mut Emitter, f: BinaryFn, a: Val, b: Val, unsigned: bool) -> Val {
    let width = e.int(b.ty, a.ty.elem.bits() as i64);
    let last = e.int(b.ty, a.ty.elem.bits() as i64 - 1);
    let over = e.cmp(Cmp::Ge, b, width, true);
    let zero = e.int(a.ty, 0);
    if f == BinaryFn::Shr && !unsigned {
        let b = e.select(over, last, b);
        return e.op2("arith.shrsi", a, b);
    }
    let b = e.select(over, zero, b);
    let op = if f == BinaryFn::Shl {
        "arith.shli"
    } else {
        "arith.shrui"
    };
    let r = e.op2(op, a, b);
    e.select(over, zero, r)
}

/// Division, remainder or modulus; a zero divisor gives some number.
pub fn integer_division(e: &mut Emitter, f: BinaryFn, a: Val, b: Val, unsigned: bool) -> Val {
    let (a, b) = e.match_lanes(a, b);
    let (zero, one) = (e.int(b.ty, 0), e.int(b.ty, 1));
    let is_zero = e.cmp(Cmp::Eq, b, zero, false);
    if unsigned {
        let b = e.select(is_zero, one, b);
        let op = if f == BinaryFn::Div {
            "arith.divui"
        } else {
            "arith.remui"
        };
        return e.op2(op, a, b);
    }
    // The least value divided by −1 traps in hardware: a/−1 is −a.
    let minus = e.int(b.ty, -1);
    let by_minus = e.cmp(Cmp::Eq, b, minus, false);
    let special = e.op2("arith.ori", is_zero, by_minus);
    let safe = e.select(special, one, b);
    if f == BinaryFn::Div {
        let q = e.op2("arith.divsi", a, safe);
        let negated = e.sub(zero, a);
        return e.select(by_minus, negated, q);
    }
    let r = e.op2("arith.remsi", a, safe);
    if f == BinaryFn::Rem {
        return r;
    }
    let mixed = e.op2("arith.xori", r, b);
    let opposite = e.cmp(Cmp::Lt, mixed, zero, false);
    let nonzero = e.cmp(Cmp::Ne, r, zero, false);
    let fix = e.op2("arith.andi", opposite, nonzero);
    let moved = e.add(r, b);
    e.select(fix, moved, r)
}

/// Integer power with wrap-around by squaring; negative exponents truncate.
fn int_pow(e: &mut Emitter, a: Val, n: Val, unsigned: bool) -> Val {
    let ty = a.ty;
    let (zero, one) = (e.int(ty, 0), e.int(ty, 1));
    let (low, high, step) = (e.i64(0), e.i64(ty.elem.bits() as i64), e.i64(1));
    let out = e.for_loop(low, high, step, &[one, a, n], |e, _, carried| {
        let &[r, base, n] = carried else {
            unreachable!("three values are carried")
        };
        let (zero, one) = (e.int(ty, 0), e.int(ty, 1));
        let bit = e.op2("arith.andi", n, one);
        let set = e.cmp(Cmp::Ne, bit, zero, false);
        let product = e.mul(r, base);
        vec![
            e.select(set, product, r),
            e.mul(base, base),
            e.op2("arith.shrui", n, one),
        ]
    });
    if unsigned {
        return out[0];
    }
    // 1/a^|n| is 0 but for a = ±1, where a^n has the parity of n.
    let negative = e.cmp(Cmp::Lt, n, zero, false);
    let minus = e.int(ty, -1);
    let is_one = e.cmp(Cmp::Eq, a, one, false);
    let is_minus = e.cmp(Cmp::Eq, a, minus, false);
    let odd = e.op2("arith.andi", n, one);
    let is_odd = e.cmp(Cmp::Ne, odd, zero, false);
    let signed = e.select(is_odd, minus, one);
    let inverse = e.select(is_minus, signed, zero);
    let inverse = e.select(is_one, one, inverse);
    e.select(negative, inverse, out[0])
}

/// f64 to f32 rounding to odd: a second rounding to a narrower type is then
/// the same as one rounding.
pub fn f64_to_f32_odd(e: &mut Emitter, x: Val) -> Val {
    let near = e.cast(x, Elem::F32, false, false);
    let back = e.cast(near, Elem::F64, false, false);
    let m = &mut M { e, ty: x.ty };
    let (ax, ab) = (m.abs(x), m.abs(back));
    let above = m.cmp(Cmp::Gt, ab, ax);
    let inexact = m.cmp(Cmp::Ne, back, x);
    let bits = m.bits(near);
    // Toward zero, then the last bit remembers what was cut.
    let down = m.int_op("arith.subi", bits, 1);
    let bits = m.select(above, down, bits);
    let odd = m.int_op("arith.ori", bits, 1);
    let bits = m.select(inexact, odd, bits);
    m.e.bitcast(bits, Elem::F32)
}

/// e^x: Cody–Waite reduction, a polynomial of degree 7 in all, 1 ulp.
pub(crate) fn exp_f32(m: &mut M, x: Val) -> Val {
    let x = m.clamp(x, -105.0, 89.0);
    let (n, k) = m.round_scaled(x, std::f64::consts::LOG2_E);
    let (hi, lo) = (m.c(-0.693145751953125), m.c(-1.428606765330187e-6));
    let r = m.fma(n, hi, x);
    let r = m.fma(n, lo, r);
    let p = m.poly(
        r,
        &[
            0.00019852762,
            0.0013930436,
            0.008333361,
            0.041666485,
            0.16666667,
            0.5,
        ],
    );
    let square = m.mul(r, r);
    let p = m.fma(p, square, r);
    let p = m.plus(p, 1.0);
    m.scale_either(p, (n, k))
}

/// ln x: the mantissa in [√½, √2), a polynomial of degree 8, 1 ulp.
fn log_f32(m: &mut M, x: Val) -> Val {
    // Denormals get a normal mantissa first.
    let tiny = m.is(Cmp::Lt, x, f32::MIN_POSITIVE as f64);
    let grown = m.times(x, 8388608.0);
    let y = m.select(tiny, grown, x);
    let bits = m.bits(y);
    let from_root = m.int_op("arith.subi", bits, 0x3f35_04f3);
    let e = m.int_op("arith.shrsi", from_root, 23);
    let shifted = m.int_op("arith.shli", e, 23);
    let mantissa = m.e.sub(bits, shifted);
    let f = m.e.bitcast(mantissa, Elem::F32);
    let r = m.plus(f, -1.0);
    let e = m.e.cast(e, Elem::F32, false, false);
    let less = m.plus(e, -23.0);
    let e = m.select(tiny, less, e);
    let p = m.poly(
        r,
        &[
            7.0376836292e-2,
            -1.1514610310e-1,
            1.1676998740e-1,
            -1.2420140846e-1,
            1.4249322787e-1,
            -1.6668057665e-1,
            2.0000714765e-1,
            -2.4999993993e-1,
            3.3333331174e-1,
        ],
    );
    let square = m.mul(r, r);
    let cube = m.mul(square, r);
    let tail = m.mul(p, cube);
    let (lo, hi) = (m.c(-2.12194440e-4), m.c(0.693359375));
    let tail = m.fma(e, lo, tail);
    let half = m.c(-0.5);
    let tail = m.fma(half, square, tail);
    let sum = m.add(r, tail);
    let v = m.fma(e, hi, sum);
    log_edges(m, x, v)
}

/// Logarithms outside the finite positive numbers.
pub(crate) fn log_edges(m: &mut M, x: Val, v: Val) -> Val {
    let (inf, nan) = (m.c(f64::INFINITY), m.c(f64::NAN));
    let top = m.cmp(Cmp::Eq, x, inf);
    let v = m.select(top, inf, v);
    let minus_inf = m.c(f64::NEG_INFINITY);
    let zero = m.is(Cmp::Eq, x, 0.0);
    let v = m.select(zero, minus_inf, v);
    let good = m.is(Cmp::Ge, x, 0.0);
    m.select(good, v, nan)
}

/// 1/(1 + e^-x), accurate in both tails.
fn sigmoid(m: &mut M, x: Val, exp: fn(&mut M, Val) -> Val) -> Val {
    let a = m.abs(x);
    let minus = m.neg(a);
    let t = exp(m, minus);
    let one = m.c(1.0);
    let below = m.add(one, t);
    let positive = m.is(Cmp::Ge, x, 0.0);
    let above = m.select(positive, one, t);
    m.div(above, below)
}

/// tanh x: an odd polynomial below 0.55, 1 − 2/(e^2x + 1) above.
fn tanh_f32(m: &mut M, x: Val) -> Val {
    let a = m.abs(x);
    let s = m.mul(x, x);
    let p = m.poly(
        s,
        &[
            -0.006274978164583445,
            0.021072791889309883,
            -0.053852736949920654,
            0.13332591950893402,
            -0.33333316445350647,
        ],
    );
    let p = m.mul(p, s);
    let small = m.fma(p, x, x);
    let twice = m.add(a, a);
    let t = exp_f32(m, twice);
    let t = m.plus(t, 1.0);
    let (one, two) = (m.c(1.0), m.c(2.0));
    let q = m.div(two, t);
    let large = m.sub(one, q);
    let large = m.sign_of(large, x);
    let use_large = m.is(Cmp::Ge, a, 0.55);
    m.select(use_large, large, small)
}

/// erf x: an odd polynomial below 0.93, 1 − e^-p(x) above.
fn erf_f32(m: &mut M, x: Val) -> Val {
    let t = m.abs(x);
    let s = m.mul(x, x);
    let high = m.poly(t, &[-1.72853470e-5, 3.83197126e-4]);
    let low = m.poly(t, &[-3.88396438e-3, 2.42546219e-2]);
    let r = m.fma(high, s, low);
    let mut r = r;
    for k in [-1.06777877e-1, -6.34846687e-1, -1.28717512e-1] {
        let k = m.c(k);
        r = m.fma(r, t, k);
    }
    let minus = m.neg(t);
    let r = m.fma(r, t, minus);
    // Far out, r falls below what exp distinguishes from 0; near −∞ it is NaN.
    let far = m.is(Cmp::Gt, t, 4.5);
    let floor = m.c(-30.0);
    let r = m.select(far, floor, r);
    let decay = exp_f32(m, r);
    let one = m.c(1.0);
    let large = m.sub(one, decay);
    let large = m.sign_of(large, x);
    let p = m.poly(
        s,
        &[
            -5.96761703e-4,
            4.99119423e-3,
            -2.67681349e-2,
            1.12819925e-1,
            -3.76125336e-1,
            1.28379166e-1,
        ],
    );
    let small = m.fma(p, x, x);
    let use_large = m.is(Cmp::Gt, t, 0.927734375);
    m.select(use_large, large, small)
}

/// `(1 + erf(x/√2))/2`. With t = |x|, `log2` of the smaller tail is a polynomial of
/// degree 10 in t, fitted on [0, 5.6] (relative to its size, 4.1e-8), where the tail is
/// 1e-8, and it falls on beyond: the tail is within 3e-6 of itself up to there, and the
/// function within 9e-8 everywhere.
fn normal_cdf_f32(m: &mut M, x: Val) -> Val {
    let t = m.abs(x);
    let y = m.poly(
        t,
        &[
            -2.34877202e-8,
            7.16656757e-7,
            -9.39383153e-6,
            6.70578302e-5,
            -2.46781448e-4,
            -6.84316619e-5,
            7.02930475e-3,
            -5.24946600e-2,
            -4.59204793e-1,
            -1.15110576,
            -1.0,
        ],
    );
    // Below f32's range; NaN stays.
    let low = m.is(Cmp::Lt, y, -150.0);
    let floor = m.c(-150.0);
    let y = m.select(low, floor, y);
    let (n, k) = m.round_scaled(y, 1.0);
    let r = m.sub(y, n);
    let p = m.poly(
        r,
        &[
            1.53533620e-4,
            1.33988750e-3,
            9.61843692e-3,
            5.55033237e-2,
            2.40226477e-1,
            6.93147182e-1,
            1.0,
        ],
    );
    let tail = m.scale_either(p, (n, k));
    let one = m.c(1.0);
    let rest = m.sub(one, tail);
    let upper = m.is(Cmp::Ge, x, 0.0);
    m.select(upper, rest, tail)
}
