//! Tensor maps: what `cuTensorMapEncodeTiled` makes for a driver, here for the simulated
//! device (CUDA driver API, "Tensor Map Object Management"; PTX ISA, "Tensors").

use crate::error::{Error, Result};

/// The type of a tensor's elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the driver's own names")]
pub enum TensorType {
    U8,
    U16,
    U32,
    S32,
    U64,
    S64,
    F16,
    F32,
    F64,
    Bf16,
}

const TYPES: [TensorType; 10] = [
    TensorType::U8,
    TensorType::U16,
    TensorType::U32,
    TensorType::S32,
    TensorType::U64,
    TensorType::S64,
    TensorType::F16,
    TensorType::F32,
    TensorType::F64,
    TensorType::Bf16,
];

impl TensorType {
    /// Bytes of an element.
    pub fn bytes(self) -> u32 {
        match self {
            TensorType::U8 => 1,
            TensorType::U16 | TensorType::F16 | TensorType::Bf16 => 2,
            TensorType::U32 | TensorType::S32 | TensorType::F32 => 4,
            TensorType::U64 | TensorType::S64 | TensorType::F64 => 8,
        }
    }

    fn is_float(self) -> bool {
        matches!(
            self,
            TensorType::F16 | TensorType::F32 | TensorType::F64 | TensorType::Bf16
        )
    }
}

/// How chunks of 16 bytes are exchanged in shared memory, by the width of the pattern:
/// address bits from 4 on are changed by those from 7 on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Swizzle {
    /// They stay.
    #[default]
    None,
    /// 32 bytes: one bit.
    B32,
    /// 64 bytes: two bits.
    B64,
    /// 128 bytes: three bits.
    B128,
}

impl Swizzle {
    /// Bits of the address that change.
    pub fn bits(self) -> u32 {
        match self {
            Swizzle::None => 0,
            Swizzle::B32 => 1,
            Swizzle::B64 => 2,
            Swizzle::B128 => 3,
        }
    }

    /// Where the byte at `address` of shared memory lies.
    pub fn apply(self, address: u64) -> u64 {
        let mask = (1u64 << self.bits()) - 1;
        address ^ (address >> 7 & mask) << 4
    }
}

/// A tiled tensor map. Sizes and strides are of the innermost dimension first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorMap {
    /// The elements' type.
    pub dtype: TensorType,
    /// The tensor's address in global memory.
    pub address: u64,
    /// Elements along each dimension; their number is the rank, 1 to 5.
    pub sizes: Vec<u64>,
    /// Bytes between neighbours along each dimension but the first.
    pub strides: Vec<u64>,
    /// Elements of a box along each dimension.
    pub boxes: Vec<u32>,
    /// Steps between a box's elements along each dimension; the first is not used.
    pub steps: Vec<u32>,
    /// How rows lie in shared memory.
    pub swizzle: Swizzle,
    /// Elements outside the tensor read as NaN, not zero.
    pub nan: bool,
}

/// What a block of a map begins with: no other block is taken for one.
const MAGIC: u32 = 0x4d54_4b31;

fn bad(what: impl Into<String>, help: &str) -> Error {
    Error::input("K0786", format!("tensor map: {}", what.into())).help(help)
}

impl TensorMap {
    /// Elements of a box along dimension `i`, which its steps thin out.
    pub fn extent(&self, i: usize) -> u32 {
        match i {
            0 => self.boxes[0],
            _ => self.boxes[i].div_ceil(self.steps[i]),
        }
    }

    /// Bytes of a box in shared memory.
    pub fn box_bytes(&self) -> u64 {
        let elements: u64 = (0..self.boxes.len())
            .map(|i| self.extent(i) as u64)
            .product();
        elements * self.dtype.bytes() as u64
    }

    /// The map as kernels take it, checked as the driver checks it. K0786 where it is not
    /// allowed.
    pub fn encode(&self) -> Result<[u8; 128]> {
        self.check()?;
        let mut out = vec![];
        let rank = self.sizes.len();
        let head = [
            MAGIC,
            TYPES.iter().position(|t| *t == self.dtype).unwrap_or(0) as u32,
            rank as u32,
            self.swizzle.bits() | (self.nan as u32) << 8,
        ];
        head.iter().for_each(|w| out.extend(w.to_le_bytes()));
        out.extend(self.address.to_le_bytes());
        // Sizes have 33 bits at most: one less is stored.
        (0..5).for_each(|i| {
            out.extend((self.sizes.get(i).map_or(0, |s| s - 1) as u32).to_le_bytes())
        });
        (0..4).for_each(|i| out.extend(self.strides.get(i).unwrap_or(&0).to_le_bytes()));
        (0..5).for_each(|i| out.extend((*self.boxes.get(i).unwrap_or(&0) as u16).to_le_bytes()));
        (0..5).for_each(|i| out.extend((*self.steps.get(i).unwrap_or(&0) as u16).to_le_bytes()));
        let mut block = [0; 128];
        block[..out.len()].copy_from_slice(&out);
        Ok(block)
    }

    /// The map of a block that [`TensorMap::encode`] made.
    pub fn decode(block: &[u8; 128]) -> Result<TensorMap> {
        let word = |at: usize| {
            u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]])
        };
        let long = |at: usize| word(at) as u64 | (word(at + 4) as u64) << 32;
        let half = |at: usize| u16::from_le_bytes([block[at], block[at + 1]]) as u32;
        let rank = word(8) as usize;
        if word(0) != MAGIC || !(1..=5).contains(&rank) {
            return Err(bad(
                "these 128 bytes are none",
                "pass what TensorMap::encode gives",
            ));
        }
        let swizzles = [Swizzle::None, Swizzle::B32, Swizzle::B64, Swizzle::B128];
        let map = TensorMap {
            dtype: *TYPES.get(word(4) as usize).unwrap_or(&TensorType::U8),
            address: long(16),
            sizes: (0..rank).map(|i| word(24 + 4 * i) as u64 + 1).collect(),
            strides: (0..rank - 1).map(|i| long(44 + 8 * i)).collect(),
            boxes: (0..rank).map(|i| half(76 + 2 * i)).collect(),
            steps: (0..rank).map(|i| half(86 + 2 * i)).collect(),
            swizzle: swizzles[word(12) as usize & 3],
            nan: word(12) >> 8 & 1 == 1,
        };
        map.check()?;
        Ok(map)
    }

    fn check(&self) -> Result<()> {
        let rank = self.sizes.len();
        let lengths = [self.strides.len() + 1, self.boxes.len(), self.steps.len()];
        if !(1..=5).contains(&rank) || lengths != [rank; 3] {
            return Err(bad(
                "the numbers of sizes, strides, box sizes and steps differ",
                "rank 1 to 5, one stride less",
            ));
        }
        if !self.address.is_multiple_of(16) {
            return Err(bad(
                format!("the tensor's address {:#x}", self.address),
                "a multiple of 16",
            ));
        }
        if self.sizes.iter().any(|s| *s == 0 || *s > 1 << 32) {
            return Err(bad(format!("sizes of {:?}", self.sizes), "1 to 2^32"));
        }
        if self.strides.iter().any(|s| s % 16 != 0 || *s >= 1 << 40) {
            return Err(bad(
                format!("strides of {:?} bytes", self.strides),
                "multiples of 16, below 2^40",
            ));
        }
        if self.boxes.iter().any(|b| !(1..=256).contains(b)) {
            return Err(bad(
                format!("a box of {:?}", self.boxes),
                "1 to 256 elements a dimension",
            ));
        }
        if self.steps.iter().any(|s| !(1..=8).contains(s)) {
            return Err(bad(format!("steps of {:?}", self.steps), "1 to 8"));
        }
        let inner = self.boxes[0] * self.dtype.bytes();
        if !inner.is_multiple_of(16) {
            return Err(bad(
                format!("a box of {inner} bytes along the first dimension"),
                "a multiple of 16",
            ));
        }
        let width = 16 << self.swizzle.bits();
        if self.swizzle != Swizzle::None && inner > width {
            return Err(bad(
                format!("a box of {inner} bytes along the first dimension, swizzled over {width}"),
                "at most the swizzle's width",
            ));
        }
        if self.swizzle != Swizzle::None && inner < width {
            // Where the next row begins then is not documented.
            return Err(bad(
                format!(
                    "a box of {inner} bytes along the first dimension, swizzled over {width}, is not simulated"
                ),
                "fill the swizzle's width",
            ));
        }
        if self.nan && !self.dtype.is_float() {
            return Err(bad("NaN outside a tensor of integers", "fill with zeros"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map() -> TensorMap {
        TensorMap {
            dtype: TensorType::Bf16,
            address: 0x7_0000_1000,
            sizes: vec![100, 1 << 32],
            strides: vec![208],
            boxes: vec![64, 256],
            steps: vec![1, 2],
            swizzle: Swizzle::B128,
            nan: true,
        }
    }

    #[test]
    fn a_map_comes_back_from_its_block() {
        let map = map();
        assert_eq!(TensorMap::decode(&map.encode().unwrap()).unwrap(), map);
        assert_eq!((map.extent(1), map.box_bytes()), (128, 64 * 128 * 2));
        assert!(TensorMap::decode(&[0; 128]).is_err());
    }

    #[test]
    fn what_the_driver_refuses_is_refused() {
        let check = |change: fn(&mut TensorMap)| {
            let mut map = map();
            change(&mut map);
            map.encode().unwrap_err().code
        };
        assert_eq!(check(|m| m.address += 8), "K0786");
        assert_eq!(check(|m| m.strides[0] = 200), "K0786");
        assert_eq!(check(|m| m.boxes[1] = 257), "K0786");
        assert_eq!(check(|m| m.boxes[0] = 65), "K0786");
        assert_eq!(check(|m| m.boxes[0] = 128), "K0786");
        assert_eq!(check(|m| m.steps[1] = 9), "K0786");
        assert_eq!(check(|m| m.dtype = TensorType::U16), "K0786");
        assert_eq!(check(|m| m.sizes[0] = 0), "K0786");
    }

    #[test]
    fn swizzles_exchange_chunks_of_their_width() {
        for (swizzle, width) in [(Swizzle::B32, 32), (Swizzle::B64, 64), (Swizzle::B128, 128)] {
            for at in 0..2048u64 {
                let to = swizzle.apply(at);
                assert_eq!((to / width, swizzle.apply(to)), (at / width, at));
            }
        }
        assert_eq!(Swizzle::B128.apply(7 * 128), 7 * 128 + 7 * 16);
        assert_eq!(Swizzle::B32.apply(128 + 16), 128);
    }
}
