//! Matrices in shared memory as wgmma reads them (PTX ISA, "Matrix Descriptor Format",
//! "Shared Memory Matrix Layout", "Strides").
//!
//! Cores are 8 rows of 16 bytes. With `w` the width of the swizzle in bytes (16 without),
//! and "rows" those of A or the columns of B:
//!
//! - k contiguous: row `r`, bytes from `k` on lie at `r % 8 * w + r / 8 * stride + k`;
//!   without swizzle the second 16 bytes along k lie at `leading`;
//! - rows contiguous (16-bit types): element `k`, row `r` lies at `k % 8 * w +
//!   k / 8 * stride + r % (w / 2) * 2 + r / (w / 2) * leading`; without swizzle `leading`
//!   and `stride` change places.
//!
//! The address that results is then swizzled, as tensor copies swizzle it.

use super::exec::Machine;
use super::fault::{FaultKind, Outcome, trouble};
use super::shared::Reader;
use super::tensor::Swizzle;
use super::warp::Warp;
use std::ops::Range;

/// Which dimension is contiguous.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Major {
    /// k.
    K,
    /// Rows of A, columns of B.
    Mn,
}

/// A matrix descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Descriptor {
    start: u64,
    leading: u64,
    stride: u64,
    swizzle: Swizzle,
}

/// Bits that belong to no field.
const NO_FIELD: u64 = 3 << 14 | 3 << 30 | 7 << 46 | 0x3ff << 52;

impl Descriptor {
    /// From its 64 bits.
    pub fn new(bits: u64) -> Outcome<Descriptor> {
        let field = |at: u32| (bits >> at & 0x3fff) << 4;
        let (unused, base) = (bits & NO_FIELD, bits >> 49 & 7);
        if unused != 0 || base != 0 {
            let what = format!(
                "a matrix descriptor {bits:#018x} with bits where none belong, or with a base offset"
            );
            let help = "start, leading and stride offsets in units of 16 bytes at bits 0, 16, 32; the swizzle at bit 62; patterns aligned to their size";
            return Err(trouble(FaultKind::Tensor, what, help));
        }
        let swizzle =
            [Swizzle::None, Swizzle::B128, Swizzle::B64, Swizzle::B32][(bits >> 62) as usize];
        Ok(Descriptor {
            start: field(0),
            leading: field(16),
            stride: field(32),
            swizzle,
        })
    }

    /// Where 16 bytes lie: `chunk` of two along k of row `row`, or 8 rows from `row` on of
    /// element `chunk` along k.
    fn at(&self, major: Major, row: u64, chunk: u64) -> u64 {
        let width = 16u64 << self.swizzle.bits();
        let plain = self.swizzle == Swizzle::None;
        let offset = match major {
            Major::K => {
                let along = if plain { self.leading } else { 16 };
                row % 8 * width + row / 8 * self.stride + chunk * along
            }
            Major::Mn => {
                let rows = width / 2;
                let (group, eight) = if plain {
                    (self.stride, self.leading)
                } else {
                    (self.leading, self.stride)
                };
                chunk % 8 * width + chunk / 8 * eight + row % rows * 2 + row / rows * group
            }
        };
        self.swizzle.apply(self.start + offset)
    }
}

/// Rows of a matrix, as words of 32 bytes along k.
pub fn load(
    m: &mut Machine,
    warp: &Warp,
    desc: &Descriptor,
    major: Major,
    rows: Range<usize>,
) -> Outcome<Vec<[u32; 8]>> {
    let now = m.now;
    let shared = &mut m.ctas[warp.rank].shared;
    let mut chunk = |at: u64| -> Outcome<[u8; 16]> {
        let reader = Reader::Wgmma(warp.index);
        shared
            .read(at, 16, &warp.views[0], reader, now)
            .map_err(|t| t.at(at))?;
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&shared.bytes[at as usize..][..16]);
        Ok(bytes)
    };
    let mut out = vec![[0u32; 8]; rows.len()];
    match major {
        Major::K => {
            for (row, words) in rows.zip(&mut out) {
                for c in 0..2 {
                    let bytes = chunk(desc.at(major, row as u64, c))?;
                    for (word, bytes) in words[4 * c as usize..]
                        .iter_mut()
                        .zip(bytes.chunks_exact(4))
                    {
                        *word = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
                    }
                }
            }
        }
        Major::Mn => {
            let first = rows.start;
            for row in rows.step_by(8) {
                for k in 0..16 {
                    let bytes = chunk(desc.at(major, row as u64, k as u64))?;
                    for (i, half) in bytes.chunks_exact(2).enumerate() {
                        let half = u16::from_le_bytes([half[0], half[1]]) as u32;
                        out[row - first + i][k / 2] |= half << (16 * (k % 2));
                    }
                }
            }
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_of_a_descriptor() {
        let bits = 0x40 | 0x1 << 16 | 0x40u64 << 32 | 1 << 62;
        let d = Descriptor::new(bits).unwrap();
        assert_eq!(
            (d.start, d.leading, d.stride, d.swizzle),
            (0x400, 16, 0x400, Swizzle::B128)
        );
        assert!(Descriptor::new(1 << 14).is_err() && Descriptor::new(1 << 50).is_err());
        // Row 1 of a pattern of 128 bytes: its chunks are exchanged by one bit.
        assert_eq!(d.at(Major::K, 1, 0), 0x400 + 128 + 16);
        assert_eq!(d.at(Major::K, 9, 1), 0x800 + 128);
        assert_eq!(d.at(Major::Mn, 8, 1), 0x400 + 128);
        assert_eq!(d.at(Major::Mn, 64, 0), 0x410);
        assert_eq!(d.at(Major::Mn, 0, 8), 0x800);
    }
}
