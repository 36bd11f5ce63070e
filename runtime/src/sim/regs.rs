//! Registers of a warp: 32 lanes of 32 bits each. A 64-bit value takes two
//! neighbouring slots (low half first), a 16-bit one the low half of a slot, a
//! predicate one bit a lane in lane 0's word.

/// Lanes of a warp.
pub const LANES: usize = 32;
/// Every lane.
pub const ALL: u32 = u32::MAX;

/// Which slot of a warp's registers.
pub type Slot = u32;

/// One slot: 32 lanes.
#[derive(Clone, Copy)]
#[repr(align(64))]
pub struct Reg(pub [u32; LANES]);

impl Default for Reg {
    fn default() -> Reg {
        Reg([0; LANES])
    }
}

/// What happens to registers in one instruction, for the lanes of a mask. All lanes
/// are computed, so that loops have a fixed length; only those of the mask are kept.
pub type Alu = Box<dyn Fn(&mut [Reg], u32) + Send + Sync>;

/// A value that registers hold.
pub trait Value: Copy + Default + 'static {
    /// All lanes.
    fn load(regs: &[Reg], slot: Slot) -> [Self; LANES];
    /// The lanes of `mask`.
    fn store(regs: &mut [Reg], slot: Slot, values: &[Self; LANES], mask: u32);
}

/// Writes the lanes of `mask` of one slot.
pub fn store_words(reg: &mut Reg, words: &[u32; LANES], mask: u32) {
    if mask == ALL {
        reg.0 = *words;
        return;
    }
    for (lane, word) in words.iter().enumerate() {
        let keep = 0u32.wrapping_sub(mask >> lane & 1);
        reg.0[lane] = reg.0[lane] & !keep | word & keep;
    }
}

macro_rules! narrow {
    ($($ty:ty: $from:expr, $to:expr;)*) => {$(
        impl Value for $ty {
            #[inline(always)]
            fn load(regs: &[Reg], slot: Slot) -> [$ty; LANES] {
                let from: fn(u32) -> $ty = $from;
                let words = &regs[slot as usize].0;
                std::array::from_fn(|lane| from(words[lane]))
            }
            #[inline(always)]
            fn store(regs: &mut [Reg], slot: Slot, values: &[$ty; LANES], mask: u32) {
                let to: fn($ty) -> u32 = $to;
                let words = std::array::from_fn(|lane| to(values[lane]));
                store_words(&mut regs[slot as usize], &words, mask);
            }
        }
    )*};
}

narrow! {
    u8: |w| w as u8, |v| v as u32;
    i8: |w| w as i8, |v| v as u8 as u32;
    u16: |w| w as u16, |v| v as u32;
    i16: |w| w as i16, |v| v as u16 as u32;
    u32: |w| w, |v| v;
    i32: |w| w as i32, |v| v as u32;
    f32: f32::from_bits, f32::to_bits;
}

macro_rules! wide {
    ($($ty:ty: $from:expr, $to:expr;)*) => {$(
        impl Value for $ty {
            #[inline(always)]
            fn load(regs: &[Reg], slot: Slot) -> [$ty; LANES] {
                let from: fn(u64) -> $ty = $from;
                let (low, high) = (&regs[slot as usize].0, &regs[slot as usize + 1].0);
                std::array::from_fn(|lane| from(low[lane] as u64 | (high[lane] as u64) << 32))
            }
            #[inline(always)]
            fn store(regs: &mut [Reg], slot: Slot, values: &[$ty; LANES], mask: u32) {
                let to: fn($ty) -> u64 = $to;
                let low = std::array::from_fn(|lane| to(values[lane]) as u32);
                let high = std::array::from_fn(|lane| (to(values[lane]) >> 32) as u32);
                store_words(&mut regs[slot as usize], &low, mask);
                store_words(&mut regs[slot as usize + 1], &high, mask);
            }
        }
    )*};
}

wide! {
    u64: |w| w, |v| v;
    i64: |w| w as i64, |v| v as u64;
    f64: f64::from_bits, f64::to_bits;
}

impl Value for bool {
    #[inline(always)]
    fn load(regs: &[Reg], slot: Slot) -> [bool; LANES] {
        let bits = predicate(regs, slot);
        std::array::from_fn(|lane| bits >> lane & 1 != 0)
    }

    #[inline(always)]
    fn store(regs: &mut [Reg], slot: Slot, values: &[bool; LANES], mask: u32) {
        let bits = (values.iter().enumerate()).fold(0, |m, (lane, v)| m | (*v as u32) << lane);
        set_predicate(regs, slot, bits, mask);
    }
}

/// A predicate of all lanes.
pub fn predicate(regs: &[Reg], slot: Slot) -> u32 {
    regs[slot as usize].0[0]
}

/// Writes a predicate's bits of `mask`.
pub fn set_predicate(regs: &mut [Reg], slot: Slot, bits: u32, mask: u32) {
    let word = &mut regs[slot as usize].0[0];
    *word = *word & !mask | bits & mask;
}

/// `d = f(a)` in each lane.
pub fn map1<D: Value, A: Value>(
    d: Slot,
    a: Slot,
    f: impl Fn(A) -> D + Send + Sync + 'static,
) -> Alu {
    Box::new(move |regs, mask| {
        let a = A::load(regs, a);
        let out: [D; LANES] = std::array::from_fn(|lane| f(a[lane]));
        D::store(regs, d, &out, mask);
    })
}

/// `d = f(a, b)` in each lane.
pub fn map2<D: Value, A: Value, B: Value>(
    d: Slot,
    [a, b]: [Slot; 2],
    f: impl Fn(A, B) -> D + Send + Sync + 'static,
) -> Alu {
    Box::new(move |regs, mask| {
        let (a, b) = (A::load(regs, a), B::load(regs, b));
        let mut out = [D::default(); LANES];
        for lane in 0..LANES {
            out[lane] = f(a[lane], b[lane]);
        }
        D::store(regs, d, &out, mask);
    })
}

/// `d = f(a, b, c)` in each lane.
pub fn map3<D: Value, A: Value, B: Value, C: Value>(
    d: Slot,
    [a, b, c]: [Slot; 3],
    f: impl Fn(A, B, C) -> D + Send + Sync + 'static,
) -> Alu {
    Box::new(move |regs, mask| {
        let (a, b, c) = (A::load(regs, a), B::load(regs, b), C::load(regs, c));
        let mut out = [D::default(); LANES];
        for lane in 0..LANES {
            out[lane] = f(a[lane], b[lane], c[lane]);
        }
        D::store(regs, d, &out, mask);
    })
}

/// `d = f(a, b, c, e)` in each lane.
pub fn map4<D: Value, A: Value, B: Value, C: Value, E: Value>(
    d: Slot,
    [a, b, c, e]: [Slot; 4],
    f: impl Fn(A, B, C, E) -> D + Send + Sync + 'static,
) -> Alu {
    Box::new(move |regs, mask| {
        let (a, b, c, e) = (
            A::load(regs, a),
            B::load(regs, b),
            C::load(regs, c),
            E::load(regs, e),
        );
        let mut out = [D::default(); LANES];
        for lane in 0..LANES {
            out[lane] = f(a[lane], b[lane], c[lane], e[lane]);
        }
        D::store(regs, d, &out, mask);
    })
}

/// The lanes of a mask, lowest first.
pub fn lanes(mask: u32) -> impl Iterator<Item = usize> {
    let mut left = mask;
    std::iter::from_fn(move || {
        let lane = (left != 0).then(|| left.trailing_zeros() as usize)?;
        left &= left - 1;
        Some(lane)
    })
}
