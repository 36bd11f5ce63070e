//! Block formats of quantized values: what their bytes mean. The layouts are
//! ggml's, the files' native ones; numbers are little-endian.

use crate::BlockFormat;
use crate::op::EvalError;
use half::f16;

/// Appends the elements of one block. The block has exactly the format's bytes.
pub fn decode_block(
    format: BlockFormat,
    block: &[u8],
    out: &mut Vec<f32>,
) -> Result<(), EvalError> {
    if block.len() != format.block_bytes() {
        return Err(EvalError(format!(
            "a block of {} has {} bytes",
            format.name(),
            block.len()
        )));
    }
    match format {
        BlockFormat::Q4_0 => {
            let d = half_at(block, 0);
            nibbles(&block[2..], |q| d * (q as i32 - 8) as f32, out);
        }
        BlockFormat::Q4_1 => {
            let (d, m) = (half_at(block, 0), half_at(block, 2));
            nibbles(&block[4..], |q| d * q as f32 + m, out);
        }
        BlockFormat::Q5_0 => {
            let d = half_at(block, 0);
            fifth_bits(&block[2..], |q| d * (q as i32 - 16) as f32, out);
        }
        BlockFormat::Q5_1 => {
            let (d, m) = (half_at(block, 0), half_at(block, 2));
            fifth_bits(&block[4..], |q| d * q as f32 + m, out);
        }
        BlockFormat::Q8_0 => {
            let d = half_at(block, 0);
            out.extend(block[2..].iter().map(|&q| d * q as i8 as f32));
        }
        BlockFormat::IQ4_NL => {
            let d = half_at(block, 0);
            nibbles(&block[2..], |q| d * IQ4_NL[q as usize] as f32, out);
        }
        BlockFormat::Q2_K => q2_k(block, out),
        BlockFormat::Q3_K => q3_k(block, out),
        BlockFormat::Q4_K => q4_k(block, out),
        BlockFormat::Q5_K => q5_k(block, out),
        BlockFormat::Q6_K => q6_k(block, out),
        BlockFormat::Ternary => return ternary(block, out),
    }
    Ok(())
}

/// The non-linear 4-bit code book.
const IQ4_NL: [i8; 16] = [
    -127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113,
];

fn half_at(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// 16 bytes: elements 0..16 in the low nibbles, 16..32 in the high ones.
fn nibbles(qs: &[u8], value: impl Fn(u8) -> f32, out: &mut Vec<f32>) {
    out.extend(qs.iter().map(|q| value(q & 0xf)));
    out.extend(qs.iter().map(|q| value(q >> 4)));
}

/// 4 bytes with the fifth bit of each element, then nibbles.
fn fifth_bits(rest: &[u8], value: impl Fn(u8) -> f32, out: &mut Vec<f32>) {
    let high = |i: usize| (rest[i / 8] >> (i % 8) & 1) << 4;
    let qs = &rest[4..];
    out.extend((0..16).map(|i| value(qs[i] & 0xf | high(i))));
    out.extend((0..16).map(|i| value(qs[i] >> 4 | high(i + 16))));
}

/// 16 bytes of (4-bit scale, 4-bit minimum) for sixteens, 64 bytes of 2-bit
/// quants, d, dmin. Each 32 bytes of quants hold four runs of 32, by bit pair.
fn q2_k(block: &[u8], out: &mut Vec<f32>) {
    let (scales, qs) = (&block[..16], &block[16..80]);
    let (d, dmin) = (half_at(block, 80), half_at(block, 82));
    for i in 0..256 {
        let (half, pair, within) = (i / 128, i % 128 / 32, i % 32);
        let q = qs[half * 32 + within] >> (2 * pair) & 3;
        let s = scales[i / 16];
        out.push(d * (s & 0xf) as f32 * q as f32 - dmin * (s >> 4) as f32);
    }
}

/// 32 bytes of high bits, 64 of low bit pairs, 12 of 6-bit scales, d.
fn q3_k(block: &[u8], out: &mut Vec<f32>) {
    let (high, qs, packed) = (&block[..32], &block[32..96], &block[96..108]);
    let d = half_at(block, 108);
    // Scale i: low 4 bits from byte i % 8, high 2 bits from byte 8 + i % 4.
    let scale = |i: usize| {
        let low = if i < 8 {
            packed[i] & 0xf
        } else {
            packed[i - 8] >> 4
        };
        let top = packed[8 + i % 4] >> (2 * (i / 4)) & 3;
        (low | top << 4) as i32 - 32
    };
    for i in 0..256 {
        let (half, pair, within) = (i / 128, i % 128 / 32, i % 32);
        let low = (qs[half * 32 + within] >> (2 * pair) & 3) as i32;
        let set = high[within] >> (4 * half + pair) & 1 == 1;
        out.push(d * scale(i / 16) as f32 * (low - if set { 0 } else { 4 }) as f32);
    }
}

/// The 6-bit scale and minimum of run `i` of 32, from 12 packed bytes.
fn scale_min(packed: &[u8], i: usize) -> (f32, f32) {
    let (s, m) = if i < 4 {
        (packed[i] & 63, packed[i + 4] & 63)
    } else {
        (
            packed[i + 4] & 0xf | packed[i - 4] >> 6 << 4,
            packed[i + 4] >> 4 | packed[i] >> 6 << 4,
        )
    };
    (s as f32, m as f32)
}

/// d, dmin, 12 bytes of scales and minima, 128 of nibbles: each 32 bytes hold a
/// run of 32 in the low nibbles and the next in the high ones.
fn q4_k(block: &[u8], out: &mut Vec<f32>) {
    let (d, dmin, packed, qs) = (
        half_at(block, 0),
        half_at(block, 2),
        &block[4..16],
        &block[16..],
    );
    for i in 0..256 {
        let (s, m) = scale_min(packed, i / 32);
        let q = qs[i / 64 * 32 + i % 32] >> (4 * (i / 32 % 2)) & 0xf;
        out.push(d * s * q as f32 - dmin * m);
    }
}

/// As `q4_k`, with 32 bytes of fifth bits before the nibbles.
fn q5_k(block: &[u8], out: &mut Vec<f32>) {
    let (d, dmin, packed) = (half_at(block, 0), half_at(block, 2), &block[4..16]);
    let (high, qs) = (&block[16..48], &block[48..]);
    for i in 0..256 {
        let (s, m) = scale_min(packed, i / 32);
        let low = qs[i / 64 * 32 + i % 32] >> (4 * (i / 32 % 2)) & 0xf;
        let q = low | (high[i % 32] >> (i / 32) & 1) << 4;
        out.push(d * s * q as f32 - dmin * m);
    }
}

/// 128 bytes of low nibbles, 64 of high bit pairs, 16 signed scales, d.
fn q6_k(block: &[u8], out: &mut Vec<f32>) {
    let (low, high, scales) = (&block[..128], &block[128..192], &block[192..208]);
    let d = half_at(block, 208);
    for i in 0..256 {
        let (half, run, within) = (i / 128, i % 128 / 32, i % 32);
        let nibble = low[half * 64 + run % 2 * 32 + within] >> (4 * (run / 2)) & 0xf;
        let top = high[half * 32 + within] >> (2 * run) & 3;
        let q = (nibble | top << 4) as i32 - 32;
        out.push(d * scales[i / 16] as i8 as f32 * q as f32);
    }
}

/// Ours: an f32 scale, then 8 bytes of 2-bit codes, lowest first, each its
/// value plus one.
fn ternary(block: &[u8], out: &mut Vec<f32>) -> Result<(), EvalError> {
    let scale = f32::from_le_bytes([block[0], block[1], block[2], block[3]]);
    for i in 0..32 {
        match block[4 + i / 4] >> (2 * (i % 4)) & 3 {
            3 => {
                return Err(EvalError(
                    "a ternary block holds the code 3, which means nothing".into(),
                ));
            }
            code => out.push(scale * (code as i32 - 1) as f32),
        }
    }
    Ok(())
}
