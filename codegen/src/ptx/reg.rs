//! Registers and operands, by type.

use std::fmt;
use std::marker::PhantomData;

/// The type of a register: what operands an instruction takes is checked by Rust.
pub trait Type: Copy + fmt::Debug {
    /// Letter of its registers' names.
    const LETTER: char;
    /// PTX's name of the type of its registers.
    const REGISTER: &'static str;
    /// Which counter numbers its registers.
    const CLASS: usize;
}

macro_rules! types {
    ($($(#[$doc:meta])* $name:ident $letter:literal $register:literal $class:literal),+ $(,)?) => {
        $(
            $(#[$doc])*
            #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
            pub enum $name {}
            impl Type for $name {
                const LETTER: char = $letter;
                const REGISTER: &'static str = $register;
                const CLASS: usize = $class;
            }
        )+
        /// Letters and register types of every class, in order.
        pub(super) const CLASSES: &[(char, &str)] = &[$(($letter, $register)),+];
    };
}

types! {
    /// A truth.
    Pred 'p' ".pred" 0,
    /// 16 bits: a short integer, an f16 or a bf16.
    B16 'h' ".b16" 1,
    /// 32 bits: an integer, or packed halves or bytes.
    B32 'r' ".b32" 2,
    /// 64 bits: an integer or an address.
    B64 'l' ".b64" 3,
    /// A single-precision number.
    F32 'f' ".f32" 4,
    /// A double-precision number.
    F64 'd' ".f64" 5,
}

/// A register. Registers are variables: an instruction may write one again.
#[derive(Debug, PartialEq, Eq, Hash)]
pub struct Reg<T: Type> {
    pub(super) number: u32,
    pub(super) of: PhantomData<T>,
}

impl<T: Type> Clone for Reg<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T: Type> Copy for Reg<T> {}

impl<T: Type> fmt::Display for Reg<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "%{}{}", T::LETTER, self.number)
    }
}

/// What an instruction reads: a register or a constant of its type.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Src<T: Type> {
    /// A register.
    Reg(Reg<T>),
    /// An integer.
    Int(i64, PhantomData<T>),
    /// The bits of an f32.
    Single(u32),
    /// The bits of an f64.
    Double(u64),
}

impl<T: Type> fmt::Display for Src<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Src::Reg(r) => r.fmt(f),
            Src::Int(v, _) => v.fmt(f),
            Src::Single(bits) => write!(f, "0f{bits:08X}"),
            Src::Double(bits) => write!(f, "0d{bits:016X}"),
        }
    }
}

impl<T: Type> From<Reg<T>> for Src<T> {
    fn from(r: Reg<T>) -> Src<T> {
        Src::Reg(r)
    }
}

impl From<i32> for Src<B32> {
    fn from(v: i32) -> Src<B32> {
        Src::Int(v.into(), PhantomData)
    }
}

impl From<u32> for Src<B32> {
    fn from(v: u32) -> Src<B32> {
        Src::Int((v as i32).into(), PhantomData)
    }
}

impl From<i64> for Src<B64> {
    fn from(v: i64) -> Src<B64> {
        Src::Int(v, PhantomData)
    }
}

impl From<f32> for Src<F32> {
    fn from(v: f32) -> Src<F32> {
        Src::Single(v.to_bits())
    }
}

impl From<f64> for Src<F64> {
    fn from(v: f64) -> Src<F64> {
        Src::Double(v.to_bits())
    }
}

/// Types of integers.
pub trait Int: Type {
    /// Bits.
    const BITS: u32;
    /// A constant.
    fn constant(v: i64) -> Src<Self>;
}

impl Int for B32 {
    const BITS: u32 = 32;
    fn constant(v: i64) -> Src<B32> {
        Src::Int((v as i32).into(), PhantomData)
    }
}

impl Int for B64 {
    const BITS: u32 = 64;
    fn constant(v: i64) -> Src<B64> {
        Src::Int(v, PhantomData)
    }
}

/// Types of floats that are computed.
pub trait Float: Type {
    /// Bits.
    const BITS: u32;
    /// A constant, rounded to the type.
    fn constant(v: f64) -> Src<Self>;
}

impl Float for F32 {
    const BITS: u32 = 32;
    fn constant(v: f64) -> Src<F32> {
        (v as f32).into()
    }
}

impl Float for F64 {
    const BITS: u32 = 64;
    fn constant(v: f64) -> Src<F64> {
        v.into()
    }
}

/// Types with sums and products: the suffix of `add`, with its rounding.
pub trait Arith: Type {
    /// Suffix of add and sub: `.rn.f32`, which no compiler fuses, or `.s32`.
    const ADD: &'static str;
    /// Suffix of mul.
    const MUL: &'static str;
}

impl Arith for B32 {
    const ADD: &'static str = ".s32";
    const MUL: &'static str = ".lo.s32";
}

impl Arith for B64 {
    const ADD: &'static str = ".s64";
    const MUL: &'static str = ".lo.s64";
}

impl Arith for F32 {
    const ADD: &'static str = ".rn.f32";
    const MUL: &'static str = ".rn.f32";
}

impl Arith for F64 {
    const ADD: &'static str = ".rn.f64";
    const MUL: &'static str = ".rn.f64";
}
