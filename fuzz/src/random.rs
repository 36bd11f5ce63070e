//! Numbers for mutators: the same seed gives the same change.

/// A splitmix64 generator.
pub struct Random(u64);

impl Random {
    /// A generator from libFuzzer's seed.
    pub fn new(seed: u32) -> Random {
        Random(u64::from(seed))
    }

    /// The next number.
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `n`; 0 where that is 0.
    pub fn below(&mut self, n: usize) -> usize {
        (self.number() % n.max(1) as u64) as usize
    }

    /// Whether to do what is done once in `n` times.
    pub fn once_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    /// One of these; there must be one.
    pub fn one_of<T: Clone>(&mut self, all: &[T]) -> T {
        all[self.below(all.len())].clone()
    }

    /// An integer of the kind that breaks things, or a small one.
    pub fn integer(&mut self) -> i64 {
        const EDGES: [i64; 16] = [
            -1,
            0,
            1,
            2,
            3,
            7,
            64,
            127,
            1 << 16,
            (1 << 31) - 1,
            1 << 31,
            1 << 32,
            1 << 40,
            1 << 62,
            i64::MAX,
            i64::MIN,
        ];
        match self.below(3) {
            0 => self.one_of(&EDGES),
            1 => self.below(5) as i64 - 2,
            _ => self.below(20) as i64,
        }
    }
}
