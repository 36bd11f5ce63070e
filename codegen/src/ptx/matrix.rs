//! Tensor cores: `ldmatrix` and `mma.sync`.

use super::Kernel;
use super::memory::Vector;
use super::reg::{Arith, B32, F32, Pred, Reg};

/// Eight-bit integers with a sign or without.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Byte {
    /// i8.
    Signed,
    /// u8.
    Unsigned,
}

impl Byte {
    fn name(self) -> &'static str {
        match self {
            Byte::Signed => "s8",
            Byte::Unsigned => "u8",
        }
    }
}

/// Halves that tensor cores multiply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Half {
    /// f16.
    F16,
    /// bf16.
    Bf16,
}

impl Half {
    pub(super) fn name(self) -> &'static str {
        match self {
            Half::F16 => "f16",
            Half::Bf16 => "bf16",
        }
    }
}

/// Floats of eight bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Eight {
    /// Four bits of exponent, three of mantissa.
    E4m3,
    /// Five bits of exponent, two of mantissa.
    E5m2,
}

impl Eight {
    fn name(self) -> &'static str {
        match self {
            Eight::E4m3 => "e4m3",
            Eight::E5m2 => "e5m2",
        }
    }
}

/// Floats that tensor cores multiply, with sums in f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Floats {
    /// Both of one type of 16 bits.
    Halves(Half),
    /// Words of f32, of which the upper 19 bits count.
    Tf32,
    /// Both of eight bits.
    Eights(Eight, Eight),
}

impl From<Half> for Floats {
    fn from(half: Half) -> Floats {
        Floats::Halves(half)
    }
}

/// Types of sums of products on tensor cores.
pub trait Sum: Vector + Arith {
    /// What is multiplied.
    type Factors: Copy + std::fmt::Debug;
    /// The type in instructions: `f32`.
    const SUM: &'static str;
    /// 0.
    fn zero(k: &mut Kernel) -> Reg<Self>;
    /// The names of A's and B's types.
    fn factors(of: Self::Factors) -> [&'static str; 2];
    /// Bits of a factor.
    fn factor_bits(of: Self::Factors) -> u32;
    /// Whether tensor cores hold sums with fewer bits than their type has, so that long
    /// ones are to be added up outside of them.
    fn is_short(of: Self::Factors) -> bool;
}

impl Sum for F32 {
    type Factors = Floats;
    const SUM: &'static str = "f32";

    fn zero(k: &mut Kernel) -> Reg<F32> {
        k.mov(0.0f32)
    }

    fn factors(of: Floats) -> [&'static str; 2] {
        match of {
            Floats::Halves(half) => [half.name(); 2],
            Floats::Tf32 => ["tf32"; 2],
            Floats::Eights(a, b) => [a.name(), b.name()],
        }
    }

    fn factor_bits(of: Floats) -> u32 {
        match of {
            Floats::Halves(_) => 16,
            Floats::Tf32 => 32,
            Floats::Eights(..) => 8,
        }
    }

    /// Of f8 Hopper's and Ada's keep about 14 bits (DeepSeek-V3 Technical Report,
    /// arXiv:2412.19437, 3.3.2; SageAttention2, arXiv:2411.10958, 3.2).
    fn is_short(of: Floats) -> bool {
        matches!(of, Floats::Eights(..))
    }
}

impl Sum for B32 {
    type Factors = (Byte, Byte);
    const SUM: &'static str = "s32";

    fn zero(k: &mut Kernel) -> Reg<B32> {
        k.mov(0)
    }

    fn factors((a, b): (Byte, Byte)) -> [&'static str; 2] {
        [a.name(), b.name()]
    }

    fn factor_bits(_: (Byte, Byte)) -> u32 {
        8
    }

    fn is_short(_: (Byte, Byte)) -> bool {
        false
    }
}

fn list(xs: &[impl ToString]) -> String {
    let names: Vec<String> = xs.iter().map(ToString::to_string).collect();
    format!("{{{}}}", names.join(", "))
}

impl Kernel {
    /// Four 8 × 8 matrices of 16-bit elements from shared memory: lane `l` gives the
    /// address of row `l % 8` of matrix `l / 8`, 16 bytes; and gets of each matrix the
    /// word `l % 4` of row `l / 4`. All lanes of the warp.
    pub fn load_matrices(&mut self, at: Reg<B32>, offset: i64) -> [Reg<B32>; 4] {
        let to = [self.reg(), self.reg(), self.reg(), self.reg()];
        let names = list(&to);
        self.line(format_args!(
            "ldmatrix.sync.aligned.m8n8.x4.shared.b16 {names}, [{at}+{offset}]"
        ));
        to
    }

    /// `sums += a · b` of a 16 × k by a k × 8 matrix, where k numbers have 32 bytes; sums of
    /// integers wrap. Fragments as `mma.m16n8k8` of tf32, `mma.m16n8k16` and `mma.m16n8k32`
    /// have them: the same in words. All lanes of the warp.
    pub fn multiply<T: Sum>(
        &mut self,
        of: impl Into<T::Factors>,
        sums: [Reg<T>; 4],
        a: [Reg<B32>; 4],
        b: [Reg<B32>; 2],
    ) {
        let of = of.into();
        let (sums, a, b, d) = (list(&sums), list(&a), list(&b), T::SUM);
        let ([ta, tb], deep) = (T::factors(of), 256 / T::factor_bits(of));
        self.line(format_args!(
            "mma.sync.aligned.m16n8k{deep}.row.col.{d}.{ta}.{tb}.{d} {sums}, {a}, {b}, {sums}"
        ));
    }

    /// Adds the products of some steps to `sums`, each of fragments of A and of B; `apart`
    /// has them summed on their own first.
    pub fn multiply_steps<T: Sum>(
        &mut self,
        of: T::Factors,
        sums: [Reg<T>; 4],
        apart: bool,
        steps: impl IntoIterator<Item = ([Reg<B32>; 4], [Reg<B32>; 2])>,
    ) {
        let to = match apart {
            true => std::array::from_fn(|_| T::zero(self)),
            false => sums,
        };
        for (a, b) in steps {
            self.multiply(of, to, a, b);
        }
        if apart {
            self.add_all(&sums, &to);
        }
    }

    /// Sets sums to 0.
    pub fn clear<T: Sum>(&mut self, sums: &[Reg<T>]) {
        for &sum in sums {
            let zero = T::zero(self);
            self.set(sum, zero);
        }
    }

    /// Adds numbers to sums.
    pub fn add_all<T: Sum>(&mut self, sums: &[Reg<T>], more: &[Reg<T>]) {
        for (&sum, &x) in sums.iter().zip(more) {
            self.add_to(sum, sum, x);
        }
    }
}

/// Copies to shared memory that a thread does not wait for.
impl Kernel {
    /// Starts copying 16 bytes from global memory, of which the first `bytes` are read and
    /// the others zeros. Both addresses are multiples of 16.
    pub fn copy_async(
        &mut self,
        to: Reg<B32>,
        offset: i64,
        from: Reg<super::B64>,
        bytes: Reg<B32>,
    ) {
        self.line(format_args!(
            "cp.async.cg.shared.global [{to}+{offset}], [{from}], 16, {bytes}"
        ));
    }

    /// Starts copying 4, 8 or 16 bytes, of which none is read and all are zeros where
    /// `exists` does not hold. Both addresses are multiples of as many.
    pub fn copy_async_small(
        &mut self,
        size: i64,
        (to, from): (Reg<B32>, Reg<super::B64>),
        exists: Reg<Pred>,
    ) {
        let bytes = self.select(exists, size as i32, 0i32);
        // Only whole sixteens can pass by the first-level cache.
        let cache = if size == 16 { "cg" } else { "ca" };
        self.line(format_args!(
            "cp.async.{cache}.shared.global [{to}], [{from}], {size}, {bytes}"
        ));
    }

    /// Ends a group of copies.
    pub fn end_copies(&mut self) {
        self.line(format_args!("cp.async.commit_group"));
    }

    /// Waits until at most `groups` groups of the thread's copies are under way.
    pub fn wait_copies(&mut self, groups: u32) {
        self.line(format_args!("cp.async.wait_group {groups}"));
    }

    /// As [`Kernel::load_matrices`], each matrix turned: the lane gets the elements of
    /// column `l / 4` of rows `2·(l % 4)` and the next.
    pub fn load_matrices_turned(&mut self, at: Reg<B32>, offset: i64) -> [Reg<B32>; 4] {
        let to = [self.reg(), self.reg(), self.reg(), self.reg()];
        let names = list(&to);
        self.line(format_args!(
            "ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {names}, [{at}+{offset}]"
        ));
        to
    }

    /// `a·b + c` of both halves of words, rounded once.
    pub fn fma_halves(&mut self, t: Half, a: Reg<B32>, b: Reg<B32>, c: Reg<B32>) -> Reg<B32> {
        let (to, t) = (self.reg(), t.name());
        self.line(format_args!("fma.rn.{t}x2 {to}, {a}, {b}, {c}"));
        to
    }

    /// Two f32 rounded to halves of a word, `low` below `high`.
    pub fn pack_halves(&mut self, t: Half, low: Reg<F32>, high: Reg<F32>) -> Reg<B32> {
        let to = self.reg();
        let t = t.name();
        self.line(format_args!("cvt.rn.{t}x2.f32 {to}, {high}, {low}"));
        to
    }
}
