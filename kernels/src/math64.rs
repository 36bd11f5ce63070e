//! f64 functions as vector code, about 1 to 3 ulp. Taylor coefficients where a
//! short interval allows; atan and erf use the coefficients of fdlibm
//! (Copyright 1993 Sun Microsystems, Inc., freely usable with this notice).

use crate::math::{M, log_edges};
use kiln_codegen::emit::Cmp;
use kiln_codegen::{Elem, Val};
use std::f64::consts::{FRAC_PI_2, LN_2, LOG2_E, PI};

/// ln 2 in two parts; the first has zero low bits, so that small multiples are exact.
const LN2_HI: f64 = 0.6931471787393093;
const LN2_LO: f64 = 1.8206359985041462e-9;

/// 1/k! for k from 13 down to 2.
const INVERSE_FACTORIALS: [f64; 12] = [
    1.6059043836821613e-10,
    2.08767569878681e-9,
    2.505210838544172e-8,
    2.755731922398589e-7,
    2.7557319223985893e-6,
    2.48015873015873e-5,
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
    let grown = m.times(x, 18014398509481984.0);
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
        (
            0.4375,
            0.5,
            4.636_476_090_008_061e-1,
            2.269_877_745_296_168_7e-17,
        ),
        (
            0.6875,
            1.0,
            7.853_981_633_974_483e-1,
            3.061_616_997_868_383e-17,
        ),
        (
            1.1875,
            1.5,
            9.827_937_232_473_291e-1,
            1.390_331_103_123_099_8e-17,
        ),
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
            1.628_582_011_536_578_2e-2,
            -3.653_157_274_421_691_6e-2,
            4.976_877_994_615_932e-2,
            -5.833_570_133_790_573_5e-2,
            6.661_073_137_387_531e-2,
            -7.691_876_205_044_83e-2,
            9.090_887_133_436_507e-2,
            -1.111_111_040_546_235_6e-1,
            1.428_571_427_250_346_6e-1,
            -1.999_999_999_987_648_3e-1,
            3.333_333_333_333_293e-1,
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
    let mid = m.plus(mid, 0.845062911510467529297);
    let inverse = m.div(one, z);
    let (near_p, near_q) = ratio(m, inverse, &NEAR.0, &NEAR.1);
    let (far_p, far_q) = ratio(m, inverse, &FAR.0, &FAR.1);
    let is_near = m.is(Cmp::Lt, a, 2.857_142_857);
    let (p, q) = (
        m.select(is_near, near_p, far_p),
        m.select(is_near, near_q, far_q),
    );
    let tail = m.div(p, q);
    let exponent = m.sub(tail, z);
    let exponent = m.plus(exponent, -0.5625);
    let decay = exp(m, exponent);
    let decay = m.div(decay, a);
    let large = m.sub(one, decay);
    let saturated = m.is(Cmp::Ge, a, 6.0);
    let large = m.select(saturated, one, large);
    let in_middle = m.is(Cmp::Lt, a, 1.25);
    let outer = m.select(in_middle, mid, large);
    let outer = m.sign_of(outer, x);
    let beyond = m.is(Cmp::Ge, a, 0.84375);
    m.select(beyond, outer, small)
}

/// A rational function: numerator and denominator, highest power first.
type Ratio<const P: usize, const Q: usize> = ([f64; P], [f64; Q]);

#[rustfmt::skip]
const SMALL: Ratio<5, 6> = (
    [-2.37630166566501626084e-05, -5.77027029648944159157e-03, -2.84817495755985104766e-02,
     -3.25042107247001499370e-01, 1.28379167095512558561e-01],
    [-3.96022827877536812320e-06, 1.32494738004321644526e-04, 5.08130628187576562776e-03,
     6.50222499887672944485e-02, 3.97917223959155352819e-01, 1.0],
);
#[rustfmt::skip]
const MIDDLE: Ratio<7, 7> = (
    [-2.16637559486879084300e-03, 3.54783043256182359371e-02, -1.10894694282396677476e-01,
     3.18346619901161753674e-01, -3.72207876035701323847e-01, 4.14856118683748331666e-01,
     -2.36211856075265944077e-03],
    [1.19844998467991074170e-02, 1.36370839120290507362e-02, 1.26171219808761642112e-01,
     7.18286544141962662868e-02, 5.40397917702171048937e-01, 1.06420880400844228286e-01, 1.0],
);
#[rustfmt::skip]
const NEAR: Ratio<8, 9> = (
    [-9.81432934416914548592e+00, -8.12874355063065934246e+01, -1.84605092906711035994e+02,
     -1.62396669462573470355e+02, -6.23753324503260060396e+01, -1.05586262253232909814e+01,
     -6.93858572707181764372e-01, -9.86494403484714822705e-03],
    [-6.04244152148580987438e-02, 6.57024977031928170135e+00, 1.08635005541779435134e+02,
     4.29008140027567833386e+02, 6.45387271733267880336e+02, 4.34565877475229228821e+02,
     1.37657754143519042600e+02, 1.96512716674392571292e+01, 1.0],
);
#[rustfmt::skip]
const FAR: Ratio<7, 8> = (
    [-4.83519191608651397019e+02, -1.02509513161107724954e+03, -6.37566443368389627722e+02,
     -1.60636384855821916062e+02, -1.77579549177547519889e+01, -7.99283237680523006574e-01,
     -9.86494292470009928597e-03],
    [-2.24409524465858183362e+01, 4.74528541206955367215e+02, 2.55305040643316442583e+03,
     3.19985821950859553908e+03, 1.53672958608443695994e+03, 3.25792512996573918826e+02,
     3.03380607434824582924e+01, 1.0],
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
