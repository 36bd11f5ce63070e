//! f64 functions as vector code, about 1 to 3 ulp. Taylor coefficients where a
//! short interval allows; atan and erf use the coefficients of fdlibm
//! (Copyright 1993 Sun Microsystems, Inc., freely usable with this notice).

use crate::math::{M, log_edges};
use kiln_codegen::emit::Cmp;
use kiln_codegen::{Elem, Val};
use std::f64::consts::{FRAC_PI_2, FRAC_PI_4, LN_2, LOG2_E, PI};

/// ln 2 in two parts; the first has zero low bits, so that small multiples are exact.
const LN2_HI: f64 = 0.6931471787393093;
const LN2_LO: f64 = 1.8206359985041462e-09;

/// 1/k! for k from 13 down to 2.
const INVERSE_FACTORIALS: [f64; 12] = [
    1.6059043836821613e-10,
    2.08767569878681e-09,
    2.505210838544172e-08,
    2.755731922398589e-07,
    2.7557319223985893e-06,
    2.48015873015873e-05,
    0.0001984126984126984,
    0.001388888888888889,
    0.008333333333333333,
    0.041666666666666664,
    0.16666666666666666,
    0.5,
];

/// e^r − 1 and the n of `x = n ln 2 + r`.
fn exp_parts(m: &mut M, x: Val) -> (Val, Val) {
    let (n, k) = m.round_scaled(x, LOG2_E);
    let (hi, lo) = (m.c(-LN2_HI), m.c(-LN2_LO));
    let r = m.fma(n, hi, x);
    let r = m.fma(n, lo, r);
    let p = m.poly(r, &INVERSE_FACTORIALS);
    let square = m.mul(r, r);
    (m.fma(p, square, r), k)
}

pub(crate) fn exp(m: &mut M, x: Val) -> Val {
    let x = m.clamp(x, -746.0, 710.0);
    let (p, k) = exp_parts(m, x);
    let p = m.plus(p, 1.0);
    m.scale(p, k)
}

/// e^x − 1 for x up to 700.
fn expm1(m: &mut M, x: Val) -> Val {
    let x = m.clamp(x, -746.0, 700.0);
    let (p, k) = exp_parts(m, x);
    // 2^k p + (2^k − 1); below 2^-1021 the result is −1 in any case.
    let least = m.e.int(k.ty, -1000);
    let low = m.e.cmp(Cmp::Lt, k, least, false);
    let k = m.select(low, least, k);
    let scale = m.exp2_int(k);
    let rest = m.plus(scale, -1.0);
    m.fma(p, scale, rest)
}

/// The exponent and the mantissa in [√½, √2) of a positive number.
fn split(m: &mut M, x: Val) -> (Val, Val) {
    let tiny = m.is(Cmp::Lt, x, f64::MIN_POSITIVE);
    let grown = m.times(x, 1.8014398509481984e+16);
    let y = m.select(tiny, grown, x);
    let bits = m.bits(y);
    let from_root = m.int_op("arith.subi", bits, 0x3fe6_a09e_667f_3bcd);
    let e = m.int_op("arith.shrsi", from_root, 52);
    let shifted = m.int_op("arith.shli", e, 52);
    let mantissa = m.e.sub(bits, shifted);
    let f = m.e.bitcast(mantissa, Elem::F64);
    let e = m.e.cast(e, Elem::F64, false, false);
    let less = m.plus(e, -54.0);
    (m.select(tiny, less, e), f)
}

/// `(atanh(s)/s − 1)/s²` for |s| below 0.172, in s².
fn atanh_tail(m: &mut M, z: Val) -> Val {
    let coefficients: Vec<f64> = (1..=11).rev().map(|k| 1.0 / (2 * k + 1) as f64).collect();
    m.poly(z, &coefficients)
}

pub(crate) fn log(m: &mut M, x: Val) -> Val {
    let (hi, lo) = log_parts(m, x);
    let v = m.add(hi, lo);
    log_edges(m, x, v)
}

/// ln x as an unevaluated sum, to about 2^-65.
fn log_parts(m: &mut M, x: Val) -> (Val, Val) {
    let (e, f) = split(m, x);
    let above = m.plus(f, -1.0);
    let below = m.plus(f, 1.0);
    // What the sum f + 1 lost.
    let back = m.plus(below, -1.0);
    let lost = m.sub(f, back);
    let s = m.div(above, below);
    let minus = m.neg(s);
    let rest = m.fma(minus, below, above);
    let rest = m.fma(minus, lost, rest);
    let s_lo = m.div(rest, below);
    let z = m.mul(s, s);
    let p = atanh_tail(m, z);
    let cube = m.mul(z, s);
    let tail = m.mul(p, cube);
    let tail = m.add(tail, s_lo);
    let (ln_hi, ln_lo) = (m.c(LN2_HI), m.c(LN2_LO));
    let tail = m.times(tail, 2.0);
    let tail = m.fma(e, ln_lo, tail);
    let lead = m.mul(e, ln_hi);
    let s2 = m.times(s, 2.0);
    // |lead| is 0 or more than |s2|: the two-term sum is exact.
    let hi = m.add(lead, s2);
    let moved = m.sub(hi, lead);
    let err = m.sub(s2, moved);
    let lo = m.add(err, tail);
    (hi, lo)
}

fn log1p(m: &mut M, x: Val) -> Val {
    let u = m.plus(x, 1.0);
    let v = log(m, u);
    let rounded = m.plus(u, -1.0);
    let lost = m.sub(x, rounded);
    let fix = m.div(lost, u);
    let exact = m.add(v, fix);
    let infinite = m.is(Cmp::Eq, u, f64::INFINITY);
    m.select(infinite, u, exact)
}

pub(crate) fn pow(m: &mut M, x: Val, y: Val) -> Val {
    let ax = m.abs(x);
    let (hi, lo) = log_parts(m, ax);
    let finite = m.is(Cmp::Lt, ax, f64::INFINITY);
    let positive = m.is(Cmp::Gt, ax, 0.0);
    let plain = m.both(finite, positive);
    let v = m.add(hi, lo);
    // A renormalised sum: what is below one ulp of the logarithm.
    let moved = m.sub(v, hi);
    let lo = m.sub(lo, moved);
    let edge = log_edges(m, ax, v);
    let zero = m.c(0.0);
    let hi = m.select(plain, v, edge);
    let lo = m.select(plain, lo, zero);
    let p = m.mul(y, hi);
    let minus = m.neg(p);
    let err = m.fma(y, hi, minus);
    let err = m.fma(y, lo, err);
    // Where the product is not an ordinary number its error means nothing.
    let size = m.abs(p);
    let ordinary = m.is(Cmp::Lt, size, 800.0);
    let err = m.select(ordinary, err, zero);
    let base = exp(m, p);
    let r = m.fma(base, err, base);
    let overflow = m.is(Cmp::Eq, base, f64::INFINITY);
    let r = m.select(overflow, base, r);
    pow_edges(m, x, y, ax, r)
}

/// Signs and the exact cases of `|x|^y = r`.
fn pow_edges(m: &mut M, x: Val, y: Val, ax: Val, r: Val) -> Val {
    let (one, zero, nan) = (m.c(1.0), m.c(0.0), m.c(f64::NAN));
    let square = m.mul(ax, ax);
    let is_two = m.is(Cmp::Eq, y, 2.0);
    let r = m.select(is_two, square, r);
    let is_one = m.is(Cmp::Eq, y, 1.0);
    let r = m.select(is_one, ax, r);
    let unit = m.is(Cmp::Eq, ax, 1.0);
    let y_is_nan = m.cmp(Cmp::Ne, y, y);
    let from_unit = m.select(y_is_nan, y, one);
    let r = m.select(unit, from_unit, r);
    // Integers: y = floor(y); odd: half of it is not an integer.
    let whole = m.e.intrinsic("floor", &[y]);
    let is_whole = m.cmp(Cmp::Eq, whole, y);
    let half = m.times(y, 0.5);
    let half_whole = m.e.intrinsic("floor", &[half]);
    let half_differs = m.cmp(Cmp::Ne, half_whole, half);
    let is_odd = m.both(is_whole, half_differs);
    let signed = m.sign_of(r, x);
    let with_sign = m.select(is_odd, signed, r);
    let negative = m.cmp(Cmp::Lt, x, zero);
    let y_size = m.abs(y);
    let y_finite = m.is(Cmp::Lt, y_size, f64::INFINITY);
    let x_finite = m.is(Cmp::Lt, ax, f64::INFINITY);
    let fraction = m.cmp(Cmp::Ne, whole, y);
    let bad = m.both(negative, fraction);
    let bad = m.both(bad, y_finite);
    let bad = m.both(bad, x_finite);
    let r = m.select(bad, nan, with_sign);
    let exponent_zero = m.cmp(Cmp::Eq, y, zero);
    let base_one = m.cmp(Cmp::Eq, x, one);
    let always_one = m.either(exponent_zero, base_one);
    m.select(always_one, one, r)
}

/// sin and cos, accurate to |x| of about 2^50.
pub(crate) fn sin_cos(m: &mut M, x: Val) -> (Val, Val) {
    let (s, c, q) = quarter(m, x);
    let zero = m.e.int(q.ty, 0);
    let odd = m.int_op("arith.andi", q, 1);
    let swap = m.e.cmp(Cmp::Ne, odd, zero, false);
    let sin = m.select(swap, c, s);
    let cos = m.select(swap, s, c);
    // sin changes sign in quadrants 2 and 3, cos in 1 and 2.
    let upper = m.int_op("arith.andi", q, 2);
    let sin_flips = m.e.cmp(Cmp::Ne, upper, zero, false);
    let next = m.int_op("arith.addi", q, 1);
    let next = m.int_op("arith.andi", next, 2);
    let cos_flips = m.e.cmp(Cmp::Ne, next, zero, false);
    let (ns, nc) = (m.neg(sin), m.neg(cos));
    (m.select(sin_flips, ns, sin), m.select(cos_flips, nc, cos))
}

pub(crate) fn tan(m: &mut M, x: Val) -> Val {
    let (s, c, q) = quarter(m, x);
    let zero = m.e.int(q.ty, 0);
    let odd = m.int_op("arith.andi", q, 1);
    let swap = m.e.cmp(Cmp::Ne, odd, zero, false);
    let minus = m.neg(c);
    let above = m.select(swap, minus, s);
    let below = m.select(swap, s, c);
    m.div(above, below)
}

/// sin r and cos r for `x = n π/2 + r`, and n.
fn quarter(m: &mut M, x: Val) -> (Val, Val, Val) {
    let (n, k) = m.round_scaled(x, 1.0 / FRAC_PI_2);
    let mut r = x;
    for part in [FRAC_PI_2, 6.123233995736766e-17, -1.4973849048591698e-33] {
        let part = m.c(-part);
        r = m.fma(n, part, r);
    }
    // Beyond the reduction's reach: bounded rather than wild; NaN stays.
    let r = m.clamp(r, -1.1, 1.1);
    let inverse = |k: u32| (1..=k).fold(1.0, |v: f64, i| v / i as f64);
    let odd: Vec<f64> = (1..=8u32)
        .rev()
        .map(|i| inverse(2 * i + 1) * if i % 2 == 1 { -1.0 } else { 1.0 })
        .collect();
    let even: Vec<f64> = (2..=9u32)
        .rev()
        .map(|i| inverse(2 * i) * if i % 2 == 1 { -1.0 } else { 1.0 })
        .collect();
    let z = m.mul(r, r);
    let p = m.poly(z, &odd);
    let p = m.mul(p, z);
    let sin = m.fma(p, r, r);
    let p = m.poly(z, &even);
    let fourth = m.mul(z, z);
    let p = m.mul(p, fourth);
    let half = m.c(-0.5);
    let base = m.fma(half, z, p);
    let cos = m.plus(base, 1.0);
    (sin, cos, k)
}

pub(crate) fn atan(m: &mut M, x: Val) -> Val {
    let a = m.abs(x);
    let one = m.c(1.0);
    // atan a = atan c + atan((a − c)/(1 + c a)); c grows with a, at last ∞.
    let (mut above, mut below) = (a, one);
    let (mut hi, mut lo) = (m.c(0.0), m.c(0.0));
    for (from, c, c_hi, c_lo) in [
        (0.4375, 0.5, 0.4636476090008061, 2.2698777452961687e-17),
        (0.6875, 1.0, FRAC_PI_4, 3.061616997868383e-17),
        (1.1875, 1.5, 0.982793723247329, 1.3903311031230998e-17),
    ] {
        let here = m.is(Cmp::Ge, a, from);
        let up = m.plus(a, -c);
        let k = m.c(c);
        let down = m.fma(k, a, one);
        above = m.select(here, up, above);
        below = m.select(here, down, below);
        let (h, l) = (m.c(c_hi), m.c(c_lo));
        hi = m.select(here, h, hi);
        lo = m.select(here, l, lo);
    }
    let far = m.is(Cmp::Ge, a, 2.4375);
    let minus = m.c(-1.0);
    above = m.select(far, minus, above);
    below = m.select(far, a, below);
    let (h, l) = (m.c(FRAC_PI_2), m.c(6.123233995736766e-17));
    hi = m.select(far, h, hi);
    lo = m.select(far, l, lo);
    let t = m.div(above, below);
    let z = m.mul(t, t);
    let p = m.poly(
        z,
        &[
            0.016285820115365782,
            -0.036531572744216916,
            0.04976877994615932,
            -0.058335701337905735,
            0.06661073137387531,
            -0.0769187620504483,
            0.09090887133436507,
            -0.11111110405462356,
            0.14285714272503466,
            -0.19999999999876483,
            0.3333333333333293,
        ],
    );
    let p = m.mul(p, z);
    let p = m.mul(p, t);
    // hi + (t − (t p − lo)).
    let small = m.sub(p, lo);
    let small = m.sub(t, small);
    let r = m.add(hi, small);
    m.sign_of(r, x)
}

pub(crate) fn asin(m: &mut M, x: Val) -> Val {
    let (up, down) = (m.plus(x, 1.0), m.neg(x));
    let down = m.plus(down, 1.0);
    let product = m.mul(up, down);
    let root = m.sqrt(product);
    let t = m.div(x, root);
    let small = m.abs(x);
    let v = atan(m, t);
    // Tiny arguments are their own sine; the quotient keeps their sign too.
    let tiny = m.is(Cmp::Lt, small, 1e-9);
    m.select(tiny, x, v)
}

pub(crate) fn acos(m: &mut M, x: Val) -> Val {
    let (up, down) = (m.plus(x, 1.0), m.neg(x));
    let down = m.plus(down, 1.0);
    let q = m.div(down, up);
    let root = m.sqrt(q);
    let v = atan(m, root);
    m.times(v, 2.0)
}

pub(crate) fn atan2(m: &mut M, y: Val, x: Val) -> Val {
    let (ay, ax) = (m.abs(y), m.abs(x));
    let both_infinite = {
        let (a, b) = (
            m.is(Cmp::Eq, ay, f64::INFINITY),
            m.is(Cmp::Eq, ax, f64::INFINITY),
        );
        m.both(a, b)
    };
    let ratio = m.div(ay, ax);
    let one = m.c(1.0);
    let ratio = m.select(both_infinite, one, ratio);
    let zero = m.c(0.0);
    let y_zero = m.cmp(Cmp::Eq, ay, zero);
    // NaN in x must survive a zero y.
    let zero_or_nan = m.mul(zero, ax);
    let x_infinite = m.is(Cmp::Eq, ax, f64::INFINITY);
    let flat = m.select(x_infinite, zero, zero_or_nan);
    let ratio = m.select(y_zero, flat, ratio);
    let v = atan(m, ratio);
    let bits = m.bits(x);
    let no = m.e.int(bits.ty, 0);
    let left = m.e.cmp(Cmp::Lt, bits, no, false);
    let (pi, pi_lo) = (m.c(PI), m.c(1.2246467991473532e-16));
    let back = m.sub(v, pi_lo);
    let back = m.sub(pi, back);
    let v = m.select(left, back, v);
    m.sign_of(v, y)
}

pub(crate) fn sinh(m: &mut M, x: Val) -> Val {
    let a = m.abs(x);
    let t = expm1(m, a);
    let next = m.plus(t, 1.0);
    let q = m.div(t, next);
    let sum = m.add(t, q);
    let near = m.times(sum, 0.5);
    let v = beyond(m, a, near);
    m.sign_of(v, x)
}

pub(crate) fn cosh(m: &mut M, x: Val) -> Val {
    let a = m.abs(x);
    let t = exp(m, a);
    let one = m.c(1.0);
    let q = m.div(one, t);
    let sum = m.add(t, q);
    let near = m.times(sum, 0.5);
    beyond(m, a, near)
}

/// e^a/2 without early overflow where a is large, else `near`.
fn beyond(m: &mut M, a: Val, near: Val) -> Val {
    let half = m.times(a, 0.5);
    let t = exp(m, half);
    let h = m.times(t, 0.5);
    let far = m.mul(h, t);
    let large = m.is(Cmp::Gt, a, 600.0);
    m.select(large, far, near)
}

pub(crate) fn tanh(m: &mut M, x: Val) -> Val {
    let a = m.abs(x);
    let a = m.clamp(a, 0.0, 22.0);
    let twice = m.add(a, a);
    let t = expm1(m, twice);
    let below = m.plus(t, 2.0);
    let v = m.div(t, below);
    m.sign_of(v, x)
}

pub(crate) fn asinh(m: &mut M, x: Val) -> Val {
    let a = m.abs(x);
    let one = m.c(1.0);
    let root = m.fma(a, a, one);
    let root = m.sqrt(root);
    let below = m.plus(root, 1.0);
    let square = m.mul(a, a);
    let extra = m.div(square, below);
    let arg = m.add(a, extra);
    let near = log1p(m, arg);
    let v = log_beyond(m, a, near);
    m.sign_of(v, x)
}

pub(crate) fn acosh(m: &mut M, x: Val) -> Val {
    let (down, up) = (m.plus(x, -1.0), m.plus(x, 1.0));
    let product = m.mul(down, up);
    let root = m.sqrt(product);
    let arg = m.add(down, root);
    let near = log1p(m, arg);
    let v = log_beyond(m, x, near);
    let nan = m.c(f64::NAN);
    let inside = m.is(Cmp::Ge, x, 1.0);
    m.select(inside, v, nan)
}

/// ln 2a where a² would overflow, else `near`.
fn log_beyond(m: &mut M, a: Val, near: Val) -> Val {
    let far = log(m, a);
    let far = m.plus(far, LN_2);
    let large = m.is(Cmp::Gt, a, 1e150);
    m.select(large, far, near)
}

pub(crate) fn atanh(m: &mut M, x: Val) -> Val {
    let a = m.abs(x);
    let one = m.c(1.0);
    let below = m.sub(one, a);
    let twice = m.add(a, a);
    let q = m.div(twice, below);
    let v = log1p(m, q);
    let v = m.times(v, 0.5);
    let nan = m.c(f64::NAN);
    let outside = m.is(Cmp::Gt, a, 1.0);
    let v = m.select(outside, nan, v);
    m.sign_of(v, x)
}

pub(crate) fn erf(m: &mut M, x: Val) -> Val {
    let a = m.abs(x);
    let one = m.c(1.0);
    let parts = error_function(m, x, a);
    let large = m.sub(one, parts.decay);
    let saturated = m.is(Cmp::Ge, a, 6.0);
    let large = m.select(saturated, one, large);
    let in_middle = m.is(Cmp::Lt, a, 1.25);
    let outer = m.select(in_middle, parts.middle, large);
    let outer = m.sign_of(outer, x);
    let beyond = m.is(Cmp::Ge, a, 0.84375);
    m.select(beyond, outer, parts.small)
}

/// `(1 + erf(x/√2))/2`; the lower tail keeps its relative precision.
pub(crate) fn normal_cdf(m: &mut M, x: Val) -> Val {
    let z = m.times(x, std::f64::consts::FRAC_1_SQRT_2);
    let a = m.abs(z);
    let parts = error_function(m, a, a);
    let one = m.c(1.0);
    let beyond = m.is(Cmp::Ge, a, 0.84375);
    let inner = m.select(beyond, parts.middle, parts.small);
    let inner = m.sub(one, inner);
    let in_middle = m.is(Cmp::Lt, a, 1.25);
    let twice = m.select(in_middle, inner, parts.decay);
    let tail = m.times(twice, 0.5);
    let rest = m.sub(one, tail);
    let upper = m.is(Cmp::Ge, x, 0.0);
    m.select(upper, rest, tail)
}

/// The error function by parts.
struct ErrorFunction {
    /// erf x, for |x| below 0.84375.
    small: Val,
    /// erf |x|, from there to 1.25.
    middle: Val,
    /// 1 − erf |x|, from there on.
    decay: Val,
}

fn error_function(m: &mut M, x: Val, a: Val) -> ErrorFunction {
    let one = m.c(1.0);
    let z = m.mul(x, x);
    let ratio = |m: &mut M, s: Val, above: &[f64], below: &[f64]| {
        let (p, q) = (m.poly(s, above), m.poly(s, below));
        (p, q)
    };
    let (p, q) = ratio(m, z, &SMALL.0, &SMALL.1);
    let y = m.div(p, q);
    let small = m.fma(x, y, x);
    let s = m.plus(a, -1.0);
    let (mid_p, mid_q) = ratio(m, s, &MIDDLE.0, &MIDDLE.1);
    let mid = m.div(mid_p, mid_q);
    let middle = m.plus(mid, 0.8450629115104675);
    let inverse = m.div(one, z);
    let (near_p, near_q) = ratio(m, inverse, &NEAR.0, &NEAR.1);
    let (far_p, far_q) = ratio(m, inverse, &FAR.0, &FAR.1);
    let is_near = m.is(Cmp::Lt, a, 2.857142857);
    let (p, q) = (
        m.select(is_near, near_p, far_p),
        m.select(is_near, near_q, far_q),
    );
    let tail = m.div(p, q);
    let exponent = m.sub(tail, z);
    let exponent = m.plus(exponent, -0.5625);
    let decay = exp(m, exponent);
    let decay = m.div(decay, a);
    ErrorFunction {
        small,
        middle,
        decay,
    }
}

/// A rational function: numerator and denominator, highest power first.
type Ratio<const P: usize, const Q: usize> = ([f64; P], [f64; Q]);

#[rustfmt::skip]
const SMALL: Ratio<5, 6> = (
    [-2.3763016656650163e-05, -0.005770270296489442, -0.02848174957559851,
     -0.3250421072470015, 0.12837916709551256],
    [-3.960228278775368e-06, 0.00013249473800432164, 0.005081306281875766,
     0.0650222499887673, 0.39791722395915535, 1.0],
);
#[rustfmt::skip]
const MIDDLE: Ratio<7, 7> = (
    [-0.002166375594868791, 0.035478304325618236, -0.11089469428239668,
     0.31834661990116175, -0.3722078760357013, 0.41485611868374833,
     -0.0023621185607526594],
    [0.011984499846799107, 0.01363708391202905, 0.12617121980876164,
     0.07182865441419627, 0.540397917702171, 0.10642088040084423, 1.0],
);
#[rustfmt::skip]
const NEAR: Ratio<8, 9> = (
    [-9.814329344169145, -81.2874355063066, -184.60509290671104,
     -162.39666946257347, -62.375332450326006, -10.558626225323291,
     -0.6938585727071818, -0.009864944034847148],
    [-0.0604244152148581, 6.570249770319282, 108.63500554177944,
     429.00814002756783, 645.3872717332679, 434.56587747522923,
     137.65775414351904, 19.651271667439257, 1.0],
);
#[rustfmt::skip]
const FAR: Ratio<7, 8> = (
    [-483.5191916086514, -1025.0951316110772, -637.5664433683896,
     -160.63638485582192, -17.757954917754752, -0.799283237680523,
     -0.0098649429247001],
    [-22.44095244658582, 474.52854120695537, 2553.0504064331644,
     3199.8582195085955, 1536.729586084437, 325.7925129965739,
     30.33806074348246, 1.0],
);

/// The remainder of truncated division, exact: each turn takes up to 50 bits of
/// the quotient, so 44 turns serve every pair of f64 and a few any pair of f32.
pub(crate) fn fmod(m: &mut M, x: Val, y: Val) -> Val {
    let (a, b) = (m.abs(x), m.abs(y));
    let (low, high, step) = (m.e.i64(0), m.e.i64(44), m.e.i64(1));
    let ty = m.ty;
    let out = m.e.for_loop(low, high, step, &[a], |e, _, carried| {
        let m = &mut M { e, ty };
        let a = carried[0];
        let q = m.div(a, b);
        let bits = m.bits(q);
        let exponent = m.int_op("arith.shrui", bits, 52);
        let k = m.int_op("arith.subi", exponent, 1023 + 50);
        let zero = m.e.int(k.ty, 0);
        let k = m.e.max(k, zero, false);
        let scale = m.exp2_int(k);
        let scaled = m.mul(b, scale);
        let q = m.div(a, scaled);
        let whole = m.e.intrinsic("floor", &[q]);
        let minus = m.neg(whole);
        let r = m.fma(minus, scaled, a);
        // The quotient may have been rounded up to the next integer.
        let negative = m.is(Cmp::Lt, r, 0.0);
        let fixed = m.add(r, scaled);
        let r = m.select(negative, fixed, r);
        // An infinite divisor leaves everything finite as it is.
        let infinite = m.is(Cmp::Eq, b, f64::INFINITY);
        let finite = m.is(Cmp::Lt, a, f64::INFINITY);
        let keep = m.both(infinite, finite);
        vec![m.select(keep, a, r)]
    });
    m.sign_of(out[0], x)
}

/// `x − y floor(x/y)`, as the interpreter defines `mod` on floats.
pub(crate) fn floor_mod(m: &mut M, x: Val, y: Val) -> Val {
    let q = m.div(x, y);
    let q = m.e.intrinsic("floor", &[q]);
    let p = m.mul(y, q);
    m.sub(x, p)
}
