//! Floating point: rounding in every direction, small formats, PTX's NaN.
//!
//! A result is computed in f64 rounded to odd where it is not exact there, and then
//! rounded once to its format: f64 has more than two bits beyond twice every smaller
//! format's, so this equals rounding the exact result (Boldo and Melquiond).

/// How a result is rounded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Round {
    /// To nearest, ties to even.
    Even,
    /// Towards zero.
    Zero,
    /// Down.
    Down,
    /// Up.
    Up,
    /// To nearest, ties away from zero.
    Away,
}

/// A binary format of at most 32 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Format {
    /// Bits of the exponent.
    exponent: u32,
    /// Stored bits of the significand.
    fraction: u32,
    /// The largest finite magnitude's bits.
    largest: u32,
    /// NaN as results have it.
    nan: u32,
    /// Whether it has infinities.
    infinite: bool,
}

impl Format {
    const fn ieee(exponent: u32, fraction: u32) -> Format {
        let infinity = ((1 << exponent) - 1) << fraction;
        let nan = infinity | ((1 << fraction) - 1);
        Format {
            exponent,
            fraction,
            largest: infinity - 1,
            nan,
            infinite: true,
        }
    }

    /// binary16
    pub const F16: Format = Format::ieee(5, 10);
    /// bfloat16
    pub const BF16: Format = Format::ieee(8, 7);
    /// tf32, held in the high bits of an f32: see [`to_tf32`].
    pub const TF32: Format = Format::ieee(8, 10);
    /// binary32
    pub const F32: Format = Format::ieee(8, 23);
    /// 8 bits, 5 of exponent
    pub const E5M2: Format = Format::ieee(5, 2);
    /// 8 bits, 4 of exponent, no infinities
    pub const E4M3: Format = Format {
        exponent: 4,
        fraction: 3,
        largest: 0x7e,
        nan: 0x7f,
        infinite: false,
    };

    /// `x` rounded; `finite`: beyond the largest number it is that number.
    pub fn encode(self, x: f64, round: Round, finite: bool) -> u32 {
        let sign = ((x.to_bits() >> 63) as u32) << (self.exponent + self.fraction);
        if x.is_nan() {
            return self.nan;
        }
        let negative = sign != 0;
        if x.is_infinite() {
            return sign | self.overflow(finite || !self.infinite);
        }
        let bits = x.to_bits();
        let biased = (bits >> 52) as i32 & 0x7ff;
        let implicit = (biased != 0) as u64;
        let significand = bits & ((1 << 52) - 1) | implicit << 52;
        let exponent = biased.max(1) - 1023;
        let bias = (1 << (self.exponent - 1)) - 1;
        let lowest = 1 - bias;
        let dropped = 52 - self.fraction as i32 + (lowest - exponent).max(0);
        // 54 zeros and a sticky bit are as good as more.
        let dropped = dropped.min(55) as u32;
        let (kept, rest) = (
            significand >> dropped,
            significand & ((1u64 << dropped) - 1),
        );
        let half = 1u64 << (dropped - 1);
        let up = match round {
            Round::Even => rest > half || rest == half && kept & 1 == 1,
            Round::Away => rest >= half,
            Round::Zero => false,
            Round::Down => negative && rest != 0,
            Round::Up => !negative && rest != 0,
        };
        let kept = kept + up as u64;
        // A carry out of the significand is the next exponent.
        let above = exponent.max(lowest) - lowest;
        let magnitude = kept + ((above as u64) << self.fraction);
        if magnitude <= self.largest as u64 {
            return sign | magnitude as u32;
        }
        let to_largest = match round {
            Round::Even | Round::Away => finite || !self.infinite,
            Round::Zero => true,
            Round::Down => finite || !negative,
            Round::Up => finite || negative,
        };
        sign | self.overflow(to_largest)
    }

    fn overflow(self, to_largest: bool) -> u32 {
        if to_largest {
            self.largest
        } else {
            self.largest + 1
        }
    }

    /// The value of `bits`.
    pub fn decode(self, bits: u32) -> f32 {
        let width = self.exponent + self.fraction;
        let negative = bits >> width & 1 == 1;
        let magnitude = bits & ((1 << width) - 1);
        let value = if magnitude > self.largest {
            if self.infinite && magnitude == self.largest + 1 {
                f32::INFINITY
            } else {
                f32::NAN
            }
        } else {
            let bias = (1 << (self.exponent - 1)) - 1;
            let exponent = (magnitude >> self.fraction) as i32;
            let fraction = magnitude & ((1 << self.fraction) - 1);
            let implicit = (exponent != 0) as u32;
            let significand = (fraction | implicit << self.fraction) as f64;
            let scale = exponent.max(1) - bias - self.fraction as i32;
            (significand * 2f64.powi(scale)) as f32
        };
        if negative { -value } else { value }
    }
}

/// NaN as single-precision results have it.
pub const NAN32: u32 = 0x7fff_ffff;
/// NaN as double-precision results have it.
pub const NAN64: u64 = 0xfff8_0000_0000_0000;

/// The canonical NaN instead of any other.
#[inline(always)]
pub fn canonical(x: f32) -> f32 {
    if x.is_nan() { f32::from_bits(NAN32) } else { x }
}

/// The canonical NaN instead of any other.
#[inline(always)]
pub fn canonical64(x: f64) -> f64 {
    if x.is_nan() { f64::from_bits(NAN64) } else { x }
}

/// Subnormal numbers become zeros of their sign (`.ftz`).
#[inline(always)]
pub fn flush(x: f32) -> f32 {
    let bits = x.to_bits();
    if bits & 0x7f80_0000 == 0 {
        f32::from_bits(bits & 0x8000_0000)
    } else {
        x
    }
}

/// Clamped to [0, 1]; NaN becomes 0 (`.sat`).
#[inline(always)]
pub fn saturate(x: f32) -> f32 {
    if x > 0.0 { x.min(1.0) } else { 0.0 }
}

/// The f32 of a binary16.
#[inline(always)]
pub fn from_f16(bits: u16) -> f32 {
    // The exponent moves by multiplication, which is exact, and right for subnormals.
    let wide = (bits as u32 & 0x7fff) << 13;
    let scaled = f32::from_bits(wide) * f32::from_bits(0x7780_0000);
    let special = bits & 0x7c00 == 0x7c00;
    let magnitude = if special {
        wide | 0x7f80_0000
    } else {
        scaled.to_bits()
    };
    f32::from_bits(magnitude | (bits as u32 & 0x8000) << 16)
}

/// The f32 of a bfloat16.
#[inline(always)]
pub fn from_bf16(bits: u16) -> f32 {
    f32::from_bits((bits as u32) << 16)
}

/// `x` rounded to binary16.
pub fn to_f16(x: f64) -> u16 {
    Format::F16.encode(x, Round::Even, false) as u16
}

/// `x` rounded to bfloat16.
#[inline(always)]
pub fn to_bf16(x: f32) -> u16 {
    let bits = x.to_bits();
    if x.is_nan() {
        return 0x7fff;
    }
    ((bits + 0x7fff + (bits >> 16 & 1)) >> 16) as u16
}

/// `x` rounded to tf32, as an f32 whose low 13 bits are zero.
pub fn to_tf32(x: f32, round: Round, finite: bool) -> u32 {
    if x.is_nan() {
        return NAN32;
    }
    Format::TF32.encode(x as f64, round, finite) << 13
}

/// `value` is the exact result rounded to nearest, `error` has the sign of what is
/// missing: the same rounded otherwise.
pub fn directed(value: f64, error: f64, round: Round) -> f64 {
    if error == 0.0 || !value.is_finite() || error.is_nan() {
        return value;
    }
    let down = match round {
        Round::Even | Round::Away => return value,
        Round::Zero => value > 0.0,
        Round::Down => true,
        Round::Up => false,
    };
    match (down, error < 0.0) {
        (true, true) => value.next_down(),
        (false, false) => value.next_up(),
        _ => value,
    }
}

/// The same, rounded to odd: of the two neighbours of the exact result the one whose
/// last bit is set.
pub fn odd(value: f64, error: f64) -> f64 {
    if error == 0.0 || !value.is_finite() || error.is_nan() || value.to_bits() & 1 == 1 {
        return value;
    }
    if error < 0.0 {
        value.next_down()
    } else {
        value.next_up()
    }
}

/// What `a + b` in f64 misses (Knuth).
pub fn sum_error(a: f64, b: f64) -> f64 {
    let s = a + b;
    let t = s - a;
    (a - (s - t)) + (b - t)
}

/// `a + b` rounded to odd.
pub fn add_odd(a: f64, b: f64) -> f64 {
    odd(a + b, sum_error(a, b))
}

/// `a * b + c` of numbers with at most 26 bits each, rounded to odd.
pub fn fma_odd(a: f32, b: f32, c: f32) -> f64 {
    add_odd(a as f64 * b as f64, c as f64)
}

/// `a / b` rounded to odd.
pub fn div_odd(a: f32, b: f32) -> f64 {
    let (a, b) = (a as f64, b as f64);
    let q = a / b;
    let rest = (-q).mul_add(b, a);
    odd(q, if b < 0.0 { -rest } else { rest })
}

/// The square root rounded to odd.
pub fn sqrt_odd(a: f32) -> f64 {
    let a = a as f64;
    let q = a.sqrt();
    odd(q, (-q).mul_add(q, a))
}

/// `x` as an f32 in the direction of `round`.
pub fn to_f32(x: f64, round: Round) -> f32 {
    match round {
        Round::Even => canonical(x as f32),
        _ => f32::from_bits(Format::F32.encode(x, round, false)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_formats_there_and_back() {
        for format in [Format::F16, Format::BF16, Format::E5M2, Format::E4M3] {
            let width = 1 + format.exponent + format.fraction;
            for bits in 0..1u32 << width {
                let value = format.decode(bits);
                if value.is_nan() {
                    continue;
                }
                assert_eq!(
                    format.encode(value as f64, Round::Even, false),
                    bits,
                    "{format:?}"
                );
            }
        }
        for bits in 0..=u16::MAX {
            let (fast, slow) = (from_f16(bits), Format::F16.decode(bits as u32));
            assert!(fast.is_nan() && slow.is_nan() || fast.to_bits() == slow.to_bits());
        }
    }

    #[test]
    fn rounding_to_f32_is_the_hardware_s() {
        let mut state = 1u64;
        for _ in 0..100_000 {
            state = state
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            let exponent = 1023 + (state >> 40) % 400 - 200;
            let x = f64::from_bits(state >> 12 | exponent << 52);
            assert_eq!(
                Format::F32.encode(x, Round::Even, false),
                (x as f32).to_bits()
            );
            let (down, up) = (to_f32(x, Round::Down), to_f32(x, Round::Up));
            assert!(down as f64 <= x && up as f64 >= x && (down == up || down.next_up() == up));
            assert_eq!(to_f32(x, Round::Zero), down);
            let y = f32::from_bits(state as u32 & 0x7f7f_ffff);
            assert_eq!(
                to_bf16(y) as u32,
                Format::BF16.encode(y as f64, Round::Even, false)
            );
        }
    }

    #[test]
    fn a_sum_is_rounded_once() {
        // 1 + 2^-24 + 2^-60: to nearest through f64 would be a tie.
        let exact_half = fma_odd(1.0, 2f32.powi(-24), 1.0);
        let above = fma_odd(2f32.powi(-30), 2f32.powi(-30), 1.0 + 2f32.powi(-23));
        assert_eq!(to_f32(exact_half, Round::Even), 1.0);
        assert_eq!(to_f32(above, Round::Up), 1.0 + 2f32.powi(-22));
        assert_eq!(to_f32(div_odd(1.0, 3.0), Round::Even), 1.0 / 3.0);
        assert_eq!(to_f32(sqrt_odd(2.0), Round::Even), 2f32.sqrt());
    }
}
