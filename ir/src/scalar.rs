//! Scalar functions: the one list that graph ops, kernel expressions and both
//! code generators share. Each has its meaning here, on `f64` or `i64`.

use serde::{Deserialize, Serialize};

macro_rules! scalar_fns {
    ($(#[$doc:meta])* $name:ident { $($variant:ident = $text:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(rename_all = "snake_case")]
        pub enum $name { $($variant,)* }

        impl $name {
            /// Every function, in declaration order.
            pub const ALL: &'static [$name] = &[$($name::$variant,)*];

            /// The name used in the text form.
            pub fn name(self) -> &'static str {
                match self { $($name::$variant => $text,)* }
            }

            /// The function with this text-form name.
            pub fn from_name(name: &str) -> Option<Self> {
                match name { $($text => Some($name::$variant),)* _ => None }
            }
        }
    };
}

scalar_fns! {
    /// One-argument elementwise functions. Result type = argument type, but
    /// `is_nan`, `is_inf` and `not` (bool).
    UnaryFn {
        Neg = "neg", Abs = "abs", Sign = "sign",
        Exp = "exp", Log = "log", Sqrt = "sqrt", Rsqrt = "rsqrt", Recip = "recip",
        Sin = "sin", Cos = "cos", Tan = "tan",
        Asin = "asin", Acos = "acos", Atan = "atan",
        Sinh = "sinh", Cosh = "cosh", Tanh = "tanh",
        Asinh = "asinh", Acosh = "acosh", Atanh = "atanh",
        Erf = "erf", NormalCdf = "normal_cdf", Sigmoid = "sigmoid",
        Floor = "floor", Ceil = "ceil", Round = "round",
        RoundTf32 = "round_tf32",
        Not = "not", BitNot = "bit_not", IsNan = "is_nan", IsInf = "is_inf",
    }
}

scalar_fns! {
    /// Two-argument elementwise functions; both arguments and the result share
    /// one type. `div` and `rem` on integers truncate toward zero; `mod` takes
    /// the divisor's sign; `min`/`max` propagate NaN, as ONNX and IEEE 754-2019
    /// `minimum`/`maximum` do. Integer division by zero is an error.
    BinaryFn {
        Add = "add", Sub = "sub", Mul = "mul", Div = "div",
        Rem = "rem", Mod = "mod", Pow = "pow", Atan2 = "atan2",
        Min = "min", Max = "max",
        And = "and", Or = "or", Xor = "xor",
        Shl = "shl", Shr = "shr",
    }
}

scalar_fns! {
    /// Comparisons: result is bool; any comparison with NaN but `ne` is false.
    CompareFn { Eq = "eq", Ne = "ne", Lt = "lt", Le = "le", Gt = "gt", Ge = "ge", }
}

scalar_fns! {
    /// Reductions. The empty sum is 0, product 1, max −inf (or the type's least
    /// value), min +inf (or the greatest); the empty mean is NaN.
    ReduceFn { Sum = "sum", Mean = "mean", Prod = "prod", Max = "max", Min = "min", }
}

impl UnaryFn {
    /// Whether the result is bool whatever the argument's type.
    pub fn returns_bool(self) -> bool {
        matches!(self, UnaryFn::Not | UnaryFn::IsNan | UnaryFn::IsInf)
    }

    /// The meaning on floating-point arguments; predicates give 1 or 0.
    /// `round` rounds halves to even (ONNX Round), `round_tf32` as [`round_tf32`] does.
    pub fn eval_f64(self, x: f64) -> f64 {
        let truth = |b: bool| if b { 1.0 } else { 0.0 };
        match self {
            UnaryFn::Neg => -x,
            UnaryFn::Abs => x.abs(),
            UnaryFn::Sign if x == 0.0 || x.is_nan() => x,
            UnaryFn::Sign => x.signum(),
            UnaryFn::Exp => x.exp(),
            UnaryFn::Log => x.ln(),
            UnaryFn::Sqrt => x.sqrt(),
            UnaryFn::Rsqrt => 1.0 / x.sqrt(),
            UnaryFn::Recip => 1.0 / x,
            UnaryFn::Sin => x.sin(),
            UnaryFn::Cos => x.cos(),
            UnaryFn::Tan => x.tan(),
            UnaryFn::Asin => x.asin(),
            UnaryFn::Acos => x.acos(),
            UnaryFn::Atan => x.atan(),
            UnaryFn::Sinh => x.sinh(),
            UnaryFn::Cosh => x.cosh(),
            UnaryFn::Tanh => x.tanh(),
            UnaryFn::Asinh => x.asinh(),
            UnaryFn::Acosh => x.acosh(),
            UnaryFn::Atanh => x.atanh(),
            UnaryFn::Erf => erf(x),
            UnaryFn::NormalCdf => normal_cdf(x),
            UnaryFn::Sigmoid => 1.0 / (1.0 + (-x).exp()),
            UnaryFn::Floor => x.floor(),
            UnaryFn::Ceil => x.ceil(),
            UnaryFn::Round => x.round_ties_even(),
            UnaryFn::RoundTf32 => round_tf32(x as f32) as f64,
            UnaryFn::Not => truth(x == 0.0),
            UnaryFn::BitNot => !(x as i64) as f64,
            UnaryFn::IsNan => truth(x.is_nan()),
            UnaryFn::IsInf => truth(x.is_infinite()),
        }
    }

    /// The meaning on integer arguments; `None` where there is none.
    pub fn eval_i64(self, x: i64) -> Option<i64> {
        match self {
            UnaryFn::Neg => Some(x.wrapping_neg()),
            UnaryFn::Abs => Some(x.wrapping_abs()),
            UnaryFn::Sign => Some(x.signum()),
            UnaryFn::Not => Some((x == 0) as i64),
            UnaryFn::BitNot => Some(!x),
            UnaryFn::Floor | UnaryFn::Ceil | UnaryFn::Round => Some(x),
            UnaryFn::IsNan | UnaryFn::IsInf => Some(0),
            UnaryFn::Exp
            | UnaryFn::Log
            | UnaryFn::Sqrt
            | UnaryFn::Rsqrt
            | UnaryFn::Recip
            | UnaryFn::Sin
            | UnaryFn::Cos
            | UnaryFn::Tan
            | UnaryFn::Asin
            | UnaryFn::Acos
            | UnaryFn::Atan
            | UnaryFn::Sinh
            | UnaryFn::Cosh
            | UnaryFn::Tanh
            | UnaryFn::Asinh
            | UnaryFn::Acosh
            | UnaryFn::Atanh
            | UnaryFn::Erf
            | UnaryFn::NormalCdf
            | UnaryFn::Sigmoid
            | UnaryFn::RoundTf32 => None,
        }
    }
}

impl BinaryFn {
    /// The meaning on floating-point arguments.
    pub fn eval_f64(self, a: f64, b: f64) -> f64 {
        let truth = |b: bool| if b { 1.0 } else { 0.0 };
        match self {
            BinaryFn::Add => a + b,
            BinaryFn::Sub => a - b,
            BinaryFn::Mul => a * b,
            BinaryFn::Div => a / b,
            BinaryFn::Rem => a % b,
            BinaryFn::Mod => a - b * (a / b).floor(),
            BinaryFn::Pow => a.powf(b),
            BinaryFn::Atan2 => a.atan2(b),
            BinaryFn::Min if a.is_nan() || b.is_nan() => f64::NAN,
            BinaryFn::Min => a.min(b),
            BinaryFn::Max if a.is_nan() || b.is_nan() => f64::NAN,
            BinaryFn::Max => a.max(b),
            BinaryFn::And => truth(a != 0.0 && b != 0.0),
            BinaryFn::Or => truth(a != 0.0 || b != 0.0),
            BinaryFn::Xor => truth((a != 0.0) != (b != 0.0)),
            BinaryFn::Shl => ((a as i64) << (b as u32 & 63)) as f64,
            BinaryFn::Shr => ((a as i64) >> (b as u32 & 63)) as f64,
        }
    }

    /// The meaning on integers in 64-bit arithmetic (the caller wraps the
    /// result to the type); `None` on division by zero.
    pub fn eval_i64(self, a: i64, b: i64) -> Option<i64> {
        Some(match self {
            BinaryFn::Add => a.wrapping_add(b),
            BinaryFn::Sub => a.wrapping_sub(b),
            BinaryFn::Mul => a.wrapping_mul(b),
            BinaryFn::Div | BinaryFn::Rem | BinaryFn::Mod if b == 0 => return None,
            BinaryFn::Div => a.wrapping_div(b),
            BinaryFn::Rem => a.wrapping_rem(b),
            BinaryFn::Mod => {
                let r = a.wrapping_rem(b);
                if r != 0 && (r < 0) != (b < 0) {
                    r + b
                } else {
                    r
                }
            }
            BinaryFn::Pow => pow_i64(a, b),
            BinaryFn::Atan2 => return None,
            BinaryFn::Min => a.min(b),
            BinaryFn::Max => a.max(b),
            BinaryFn::And => a & b,
            BinaryFn::Or => a | b,
            BinaryFn::Xor => a ^ b,
            // By a negative count, or by the width or more: what is left when every
            // bit has gone.
            BinaryFn::Shl if !(0..64).contains(&b) => 0,
            BinaryFn::Shr if !(0..64).contains(&b) => a >> 63,
            BinaryFn::Shl => a << b,
            BinaryFn::Shr => a >> b,
        })
    }
}

/// Integer power with wrap-around; negative exponents truncate toward zero.
fn pow_i64(a: i64, b: i64) -> i64 {
    match (a, b) {
        (_, 0) | (1, _) => 1,
        (-1, b) => {
            if b % 2 == 0 {
                1
            } else {
                -1
            }
        }
        (_, b) if b < 0 => 0,
        (a, b) => a.wrapping_pow(b.min(u32::MAX as i64) as u32),
    }
}

impl CompareFn {
    /// The meaning on any ordered type.
    pub fn eval<T: PartialOrd>(self, a: T, b: T) -> bool {
        match self {
            CompareFn::Eq => a == b,
            CompareFn::Ne => a != b,
            CompareFn::Lt => a < b,
            CompareFn::Le => a <= b,
            CompareFn::Gt => a > b,
            CompareFn::Ge => a >= b,
        }
    }
}

/// The error function to about 1e-15, by its Maclaurin series below 2.5 and the
/// continued fraction of `erfc` above (Abramowitz and Stegun 7.1.6, 7.1.14).
pub fn erf(x: f64) -> f64 {
    let a = x.abs();
    if x.is_nan() {
        return x;
    }
    if a < 2.5 {
        // erf x = 2/sqrt(pi) e^{-x²} Σ 2ⁿ x^{2n+1} / (1·3·…·(2n+1)): all terms positive.
        let (mut term, mut sum, mut n) = (a, a, 0.0);
        while term > sum * 1e-17 && n < 200.0 {
            n += 1.0;
            term *= 2.0 * a * a / (2.0 * n + 1.0);
            sum += term;
        }
        return (std::f64::consts::FRAC_2_SQRT_PI * (-a * a).exp() * sum).copysign(x);
    }
    if a > 6.0 {
        return 1f64.copysign(x);
    }
    (1.0 - erfc_tail(a)).copysign(x)
}

/// `1 − erf a` for a ≥ 1.5.
fn erfc_tail(a: f64) -> f64 {
    // erfc x = e^{-x²}/sqrt(pi) · 1/(x + (1/2)/(x + 1/(x + (3/2)/(x + …)))).
    let mut tail = a;
    for k in (1..=120).rev() {
        tail = a + (k as f64 / 2.0) / tail;
    }
    (-a * a).exp() / (std::f64::consts::PI.sqrt() * tail)
}

/// The nearest number of ten bits of mantissa, as tensor cores take f32 (tf32); of two as
/// near the one that is farther from zero: PTX's `cvt.rna.tf32.f32`. Beyond the largest
/// one there is infinity.
pub fn round_tf32(x: f32) -> f32 {
    match x.is_nan() {
        true => x,
        // A carry goes on into the exponent, from the largest one to infinity.
        false => f32::from_bits((x.to_bits() + 0x1000) & !0x1fff),
    }
}

/// The distribution function of the standard normal distribution,
/// `(1 + erf(x/√2))/2`, its lower tail precise in itself.
pub fn normal_cdf(x: f64) -> f64 {
    let z = x * std::f64::consts::FRAC_1_SQRT_2;
    match z < -1.5 {
        true => 0.5 * erfc_tail(-z),
        false => 0.5 * (1.0 + erf(z)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tf32_is_rounded_to_nearest_halves_away() {
        let up = f32::from_bits(0x3f80_2000);
        for (x, y) in [
            (1.0, 1.0),
            (f32::from_bits(0x3f80_0fff), 1.0),
            (f32::from_bits(0x3f80_1000), up),
            (-f32::from_bits(0x3f80_1000), -up),
            (up, up),
            (f32::from_bits(0x3fff_f000), 2.0),
            (f32::from_bits(0x0000_1000), f32::from_bits(0x0000_2000)),
            (-0.0, -0.0),
            (f32::MAX, f32::INFINITY),
            (f32::NEG_INFINITY, f32::NEG_INFINITY),
        ] {
            assert_eq!(round_tf32(x).to_bits(), y.to_bits(), "{x:e}");
        }
        assert!(round_tf32(-f32::NAN).is_nan());
    }

    #[test]
    fn erf_agrees_with_tabulated_values() {
        // Abramowitz and Stegun, table 7.1.
        for (x, y) in [
            (0.5, 0.5204998778),
            (1.0, 0.8427007929),
            (2.0, 0.9953222650),
            (3.0, 0.9999779095),
        ] {
            assert!((erf(x) - y).abs() < 1e-10, "erf({x}) = {}", erf(x));
            assert!((erf(-x) + y).abs() < 1e-10);
        }
        // The same book, tables 26.1 and 26.2.
        for (x, y) in [
            (0.0, 0.5),
            (1.0, 0.841344746068543),
            (-2.0, 0.022750131948179),
            (-5.0, 2.866515719e-7),
            (-10.0, 7.619853e-24),
        ] {
            let off = (normal_cdf(x) - y).abs();
            assert!(off < 1e-6 * y, "normal_cdf({x}) = {}", normal_cdf(x));
        }
        assert!((erf(2.5 - 1e-9) - erf(2.5 + 1e-9)).abs() < 1e-11);
    }
}
