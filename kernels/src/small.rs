//! Elements narrower than what machines compute on: 8-bit and 4-bit floats, and
//! integers of 4 and 2 bits.
//!
//! In a kernel's memory each has a byte of its own: a float its code (OCP 8-bit
//! and MX formats, and the FNUZ variants), an integer its value, sign-extended.
//! Packing to what files hold is a step of the plan. They are loaded, stored and
//! converted; arithmetic is done in f32 or after a cast.

use kiln_codegen::emit::Cmp;
use kiln_codegen::{Elem, Emitter, Val};
use kiln_ir::{DType, Kind};

/// The layout of a small float.
#[derive(Clone, Copy)]
struct Format {
    /// Bits of exponent and mantissa together: the sign stands above them.
    magnitude: u32,
    mantissa: i64,
    bias: i64,
    /// The largest finite value.
    largest: f64,
    /// The code of NaN (of −0 where there is none).
    nan: i64,
    /// The first magnitude that is not finite, if any is.
    special: Option<i64>,
    /// Whether the first special magnitude is infinity.
    infinity: bool,
    /// Whether zero has one code, and the other is NaN.
    one_zero: bool,
}

fn format(dtype: DType) -> Option<Format> {
    let f = |magnitude, mantissa, bias, largest, nan| Format {
        magnitude,
        mantissa,
        bias,
        largest,
        nan,
        special: None,
        infinity: false,
        one_zero: false,
    };
    Some(match dtype {
        DType::F8E4M3FN => Format {
            special: Some(0x7f),
            ..f(7, 3, 7, 448.0, 0x7f)
        },
        DType::F8E4M3FNUZ => Format {
            one_zero: true,
            ..f(7, 3, 8, 240.0, 0x80)
        },
        DType::F8E5M2 => Format {
            special: Some(0x7c),
            infinity: true,
            ..f(7, 2, 15, 57344.0, 0x7e)
        },
        DType::F8E5M2FNUZ => Format {
            one_zero: true,
            ..f(7, 2, 16, 57344.0, 0x80)
        },
        DType::F4E2M1 => f(3, 1, 1, 6.0, 0x8),
        _ => return None,
    })
}

/// Floats that are computed in f32 after their code is read.
pub fn is_small_float(dtype: DType) -> bool {
    dtype == DType::F8E8M0 || format(dtype).is_some()
}

/// Integers of less than a byte.
pub fn is_small_int(dtype: DType) -> bool {
    matches!(dtype, DType::I4 | DType::I2 | DType::U4 | DType::U2)
}

/// An f32 as the code of a small float: to nearest, ties to even, saturating.
pub fn encode(e: &mut Emitter, x: Val, dtype: DType) -> Val {
    let code = match format(dtype) {
        Some(f) => encode_signed(e, x, f),
        None => encode_power(e, x),
    };
    e.cast(code, Elem::I8, true, true)
}

/// The f32 that a code stands for.
pub fn decode(e: &mut Emitter, code: Val, dtype: DType) -> Val {
    let code = e.cast(code, Elem::I32, true, true);
    match format(dtype) {
        Some(f) => decode_signed(e, code, f),
        None => decode_power(e, code),
    }
}

/// Wraps an I8 to a small integer's width, extended back.
pub fn wrap_int(e: &mut Emitter, x: Val, dtype: DType) -> Val {
    let bits = dtype.bits() as i64;
    if dtype.kind() == Kind::Uint {
        let mask = e.int(x.ty, (1 << bits) - 1);
        return e.op2("arith.andi", x, mask);
    }
    let by = e.int(x.ty, 8 - bits);
    let up = e.op2("arith.shli", x, by);
    e.op2("arith.shrsi", up, by)
}

/// Clamps an I32 to a small integer's range.
pub fn clamp_int(e: &mut Emitter, x: Val, dtype: DType) -> Val {
    let bits = dtype.bits() as u32;
    let (low, high) = match dtype.kind() {
        Kind::Uint => (0, (1i64 << bits) - 1),
        _ => (-(1i64 << (bits - 1)), (1i64 << (bits - 1)) - 1),
    };
    let (low, high) = (e.int(x.ty, low), e.int(x.ty, high));
    let x = e.max(x, low, false);
    e.min(x, high, false)
}

fn int_like(e: &mut Emitter, x: Val, v: i64) -> Val {
    e.int(x.ty.with(Elem::I32), v)
}

/// Sign-less bits and whether the value is NaN.
fn magnitude(e: &mut Emitter, x: Val) -> (Val, Val, Val) {
    let bits = e.bitcast(x, Elem::I32);
    let mask = int_like(e, x, 0x7fff_ffff);
    let nan = e.cmp(Cmp::Ne, x, x, false);
    (bits, e.op2("arith.andi", bits, mask), nan)
}

/// `a` (bits of a positive f32) shifted to `keep` mantissa bits, ties to even.
fn rounded_shift(e: &mut Emitter, a: Val, keep: i64) -> Val {
    let drop = 23 - keep;
    let (by, one) = (int_like(e, a, drop), int_like(e, a, 1));
    let half = int_like(e, a, (1 << (drop - 1)) - 1);
    let up = e.op2("arith.shrui", a, by);
    let odd = e.op2("arith.andi", up, one);
    let bias = e.add(half, odd);
    let sum = e.add(a, bias);
    e.op2("arith.shrui", sum, by)
}

fn encode_signed(e: &mut Emitter, x: Val, f: Format) -> Val {
    let (bits, a, nan) = magnitude(e, x);
    let top = int_like(e, x, (f.largest as f32).to_bits() as i64);
    // Bits of positive floats are ordered as the floats are.
    let a = e.min(a, top, false);
    let wide = rounded_shift(e, a, f.mantissa);
    let base = int_like(e, x, (127 - f.bias) << f.mantissa);
    let normal = e.sub(wide, base);
    // Below the smallest normal number the grid is even: adding a number whose
    // last place is that grid rounds to it.
    let magic = 2f32.powi((23 + 1 - f.bias - f.mantissa) as i32);
    let magic_v = e.float(x.ty, magic as f64);
    let a_float = e.bitcast(a, Elem::F32);
    let sum = e.add(a_float, magic_v);
    let sum = e.bitcast(sum, Elem::I32);
    let magic_bits = int_like(e, x, magic.to_bits() as i64);
    let subnormal = e.sub(sum, magic_bits);
    let limit = int_like(e, x, (2f32.powi((1 - f.bias) as i32)).to_bits() as i64);
    let small = e.cmp(Cmp::Lt, a, limit, false);
    let code = e.select(small, subnormal, normal);
    let (by, place) = (int_like(e, x, 31), int_like(e, x, f.magnitude as i64));
    let sign = e.op2("arith.shrui", bits, by);
    let sign = e.op2("arith.shli", sign, place);
    let mut signed = e.op2("arith.ori", code, sign);
    if f.one_zero {
        let zero = int_like(e, x, 0);
        let is_zero = e.cmp(Cmp::Eq, code, zero, false);
        signed = e.select(is_zero, zero, signed);
    }
    let nan_code = int_like(e, x, f.nan);
    e.select(nan, nan_code, signed)
}

fn decode_signed(e: &mut Emitter, code: Val, f: Format) -> Val {
    let mask = int_like(e, code, (1 << f.magnitude) - 1);
    let m = e.op2("arith.andi", code, mask);
    let by = int_like(e, code, 23 - f.mantissa);
    let bits = e.op2("arith.shli", m, by);
    let raw = e.bitcast(bits, Elem::F32);
    // The exponent's bias changes by one exact product, subnormals included.
    let factor = e.float(raw.ty, 2f64.powi((127 - f.bias) as i32));
    let value = e.mul(raw, factor);
    let value_bits = e.bitcast(value, Elem::I32);
    let (one, up) = (int_like(e, code, f.magnitude as i64), int_like(e, code, 31));
    let sign = e.op2("arith.shrui", code, one);
    let sign = e.op2("arith.shli", sign, up);
    let signed = e.op2("arith.ori", value_bits, sign);
    let mut out = e.bitcast(signed, Elem::F32);
    if let Some(first) = f.special {
        let first = int_like(e, code, first);
        let special = e.cmp(Cmp::Ge, m, first, false);
        let nan_bits = int_like(e, code, 0x7fc0_0000);
        let mut bits = nan_bits;
        if f.infinity {
            let infinity = int_like(e, code, 0x7f80_0000);
            let infinity = e.op2("arith.ori", infinity, sign);
            let is_infinite = e.cmp(Cmp::Eq, m, first, false);
            bits = e.select(is_infinite, infinity, nan_bits);
        }
        let not_finite = e.bitcast(bits, Elem::F32);
        out = e.select(special, not_finite, out);
    }
    if f.one_zero {
        let (code_of, nan_bits) = (int_like(e, code, f.nan), int_like(e, code, 0x7fc0_0000));
        let is_nan = e.cmp(Cmp::Eq, code, code_of, false);
        let nan = e.bitcast(nan_bits, Elem::F32);
        out = e.select(is_nan, nan, out);
    }
    out
}

/// E8M0: a power of two; the nearest by distance, ties to the even code.
fn encode_power(e: &mut Emitter, x: Val) -> Val {
    let (_, a, nan) = magnitude(e, x);
    let top = int_like(e, x, 0x7f00_0000);
    let a = e.min(a, top, false);
    let normal = rounded_shift(e, a, 0);
    // Below 2^-126 the codes are 0 (2^-127) and 1; halfway is 1.5 · 2^-127.
    let (one, zero, middle) = (
        int_like(e, x, 1),
        int_like(e, x, 0),
        int_like(e, x, 0x0060_0000),
    );
    let above = e.cmp(Cmp::Gt, a, middle, false);
    let small_code = e.select(above, one, zero);
    let first_normal = int_like(e, x, 0x0080_0000);
    let small = e.cmp(Cmp::Lt, a, first_normal, false);
    let code = e.select(small, small_code, normal);
    let nan_code = int_like(e, x, 0xff);
    e.select(nan, nan_code, code)
}

fn decode_power(e: &mut Emitter, code: Val) -> Val {
    let by = int_like(e, code, 23);
    let bits = e.op2("arith.shli", code, by);
    let zero = int_like(e, code, 0);
    let least = int_like(e, code, 0x0040_0000);
    let is_zero = e.cmp(Cmp::Eq, code, zero, false);
    let bits = e.select(is_zero, least, bits);
    let (last, nan) = (int_like(e, code, 0xff), int_like(e, code, 0x7fc0_0000));
    let is_nan = e.cmp(Cmp::Eq, code, last, false);
    let bits = e.select(is_nan, nan, bits);
    e.bitcast(bits, Elem::F32)
}
