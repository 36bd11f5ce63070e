//! PTX's types (PTX ISA, "Fundamental Types", "Alternate Floating-Point Data
//! Formats") and which register may stand for which operand type ("Operand Type
//! Checking").

/// A type of PTX.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "the ISA's own names")]
pub enum Ty {
    U8,
    U16,
    U32,
    U64,
    S8,
    S16,
    S32,
    S64,
    B8,
    B16,
    B32,
    B64,
    B128,
    F16,
    F16x2,
    Bf16,
    Bf16x2,
    Tf32,
    E4m3,
    E5m2,
    E4m3x2,
    E5m2x2,
    F32,
    F64,
    Pred,
}

/// What the bits of a type mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Untyped.
    Bits,
    /// Unsigned integer.
    Unsigned,
    /// Signed integer.
    Signed,
    /// Floating point that registers can be declared as.
    Float,
    /// Floating point that lives in untyped registers.
    Alternate,
    /// A truth value.
    Pred,
}

impl Ty {
    /// All of them with their names.
    const NAMES: [(&'static str, Ty); 25] = [
        ("u8", Ty::U8),
        ("u16", Ty::U16),
        ("u32", Ty::U32),
        ("u64", Ty::U64),
        ("s8", Ty::S8),
        ("s16", Ty::S16),
        ("s32", Ty::S32),
        ("s64", Ty::S64),
        ("b8", Ty::B8),
        ("b16", Ty::B16),
        ("b32", Ty::B32),
        ("b64", Ty::B64),
        ("b128", Ty::B128),
        ("f16", Ty::F16),
        ("f16x2", Ty::F16x2),
        ("bf16", Ty::Bf16),
        ("bf16x2", Ty::Bf16x2),
        ("tf32", Ty::Tf32),
        ("e4m3", Ty::E4m3),
        ("e5m2", Ty::E5m2),
        ("e4m3x2", Ty::E4m3x2),
        ("e5m2x2", Ty::E5m2x2),
        ("f32", Ty::F32),
        ("f64", Ty::F64),
        ("pred", Ty::Pred),
    ];

    /// The type that is written `.name`.
    pub fn parse(name: &str) -> Option<Ty> {
        (Ty::NAMES.iter().find(|(n, _)| *n == name)).map(|(_, ty)| *ty)
    }

    /// Its name, without the dot.
    pub fn name(self) -> &'static str {
        (Ty::NAMES.iter().find(|(_, ty)| *ty == self)).map_or("?", |(n, _)| n)
    }

    /// Bits of one value; a predicate counts as one.
    pub fn bits(self) -> u32 {
        match self {
            Ty::Pred => 1,
            Ty::U8 | Ty::S8 | Ty::B8 | Ty::E4m3 | Ty::E5m2 => 8,
            Ty::U16 | Ty::S16 | Ty::B16 | Ty::F16 | Ty::Bf16 | Ty::E4m3x2 | Ty::E5m2x2 => 16,
            Ty::U32 | Ty::S32 | Ty::B32 | Ty::F16x2 | Ty::Bf16x2 | Ty::Tf32 | Ty::F32 => 32,
            Ty::U64 | Ty::S64 | Ty::B64 | Ty::F64 => 64,
            Ty::B128 => 128,
        }
    }

    /// Bytes of one value in memory.
    pub fn bytes(self) -> u32 {
        self.bits().div_ceil(8)
    }

    /// What its bits mean.
    pub fn kind(self) -> Kind {
        match self {
            Ty::B8 | Ty::B16 | Ty::B32 | Ty::B64 | Ty::B128 => Kind::Bits,
            Ty::U8 | Ty::U16 | Ty::U32 | Ty::U64 => Kind::Unsigned,
            Ty::S8 | Ty::S16 | Ty::S32 | Ty::S64 => Kind::Signed,
            Ty::F16 | Ty::F16x2 | Ty::F32 | Ty::F64 => Kind::Float,
            Ty::Bf16 | Ty::Bf16x2 | Ty::Tf32 => Kind::Alternate,
            Ty::E4m3 | Ty::E5m2 | Ty::E4m3x2 | Ty::E5m2x2 => Kind::Alternate,
            Ty::Pred => Kind::Pred,
        }
    }

    /// Whether a register of this type may stand for an operand of type `operand`:
    /// the sizes are equal, and the kinds are, or one of them is untyped, or both
    /// are integers.
    pub fn stands_for(self, operand: Ty) -> bool {
        use Kind::{Alternate, Bits, Pred, Signed, Unsigned};
        if self.bits() != operand.bits() {
            return false;
        }
        match (self.kind(), operand.kind()) {
            (Pred, other) | (other, Pred) => other == Pred,
            (_, Bits) | (Bits, _) => true,
            (Unsigned | Signed, Unsigned | Signed) => true,
            (_, Alternate) => false,
            _ => self == operand,
        }
    }

    /// Whether it may stand for the data operand of a load, a store or a
    /// conversion, which may be wider than the instruction's type unless that is
    /// floating point ("Operand Size Exceeding Instruction-Type Size").
    pub fn holds(self, operand: Ty) -> bool {
        if self.stands_for(operand) {
            return true;
        }
        let plain = |ty: Ty| matches!(ty.kind(), Kind::Bits | Kind::Unsigned | Kind::Signed);
        match operand.kind() {
            Kind::Bits | Kind::Unsigned | Kind::Signed => {
                plain(self) && self.bits() >= operand.bits()
            }
            // A half, a byte float: in an untyped register that is wide enough.
            _ => false,
        }
    }
}
