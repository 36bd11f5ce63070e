//! Element types: all of ONNX's, with their sizes and text names.

use serde::{Deserialize, Serialize};
use std::fmt;

macro_rules! dtypes {
    ($($variant:ident $text:literal $bits:literal $kind:ident,)*) => {
        /// The type of one tensor element.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        pub enum DType { $(#[serde(rename = $text)] $variant,)* }

        impl DType {
            /// Every element type.
            pub const ALL: &'static [DType] = &[$(DType::$variant,)*];

            /// The name in the text form, such as `f32`.
            pub fn name(self) -> &'static str { match self { $(DType::$variant => $text,)* } }

            /// The type with this name.
            pub fn from_name(name: &str) -> Option<DType> {
                match name { $($text => Some(DType::$variant),)* _ => None }
            }

            /// Bits per element in memory (sub-byte types pack; a string is a handle there,
            /// and itself in a `Tensor`).
            pub fn bits(self) -> usize { match self { $(DType::$variant => $bits,)* } }

            /// The family the type belongs to.
            pub fn kind(self) -> Kind { match self { $(DType::$variant => Kind::$kind,)* } }
        }
    };
}

/// Families of element types.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// IEEE and small floating-point formats.
    Float,
    /// Signed integers.
    Int,
    /// Unsigned integers.
    Uint,
    /// One byte holding 0 or 1.
    Bool,
    /// Pairs of floats.
    Complex,
    /// UTF-8 strings: in compiled code handles, of which equal ones mean equal strings.
    Str,
}

dtypes! {
    F64 "f64" 64 Float, F32 "f32" 32 Float, F16 "f16" 16 Float, BF16 "bf16" 16 Float,
    F8E4M3FN "f8e4m3fn" 8 Float, F8E4M3FNUZ "f8e4m3fnuz" 8 Float,
    F8E5M2 "f8e5m2" 8 Float, F8E5M2FNUZ "f8e5m2fnuz" 8 Float, F8E8M0 "f8e8m0" 8 Float,
    F4E2M1 "f4e2m1" 4 Float,
    I64 "i64" 64 Int, I32 "i32" 32 Int, I16 "i16" 16 Int, I8 "i8" 8 Int, I4 "i4" 4 Int, I2 "i2" 2 Int,
    U64 "u64" 64 Uint, U32 "u32" 32 Uint, U16 "u16" 16 Uint, U8 "u8" 8 Uint, U4 "u4" 4 Uint, U2 "u2" 2 Uint,
    Bool "bool" 8 Bool,
    C64 "c64" 64 Complex, C128 "c128" 128 Complex,
    Str "str" 64 Str,
}

impl DType {
    /// Bytes per element; `None` for sub-byte types.
    pub fn size(self) -> Option<usize> {
        (self.bits() >= 8).then_some(self.bits() / 8)
    }

    /// Bytes that `n` packed elements take, or `None` on overflow.
    pub fn bytes_for(self, n: usize) -> Option<usize> {
        match self.bits() {
            b if b >= 8 => n.checked_mul(b / 8),
            b => Some(n.div_ceil(8 / b)),
        }
    }

    /// Floating point of any width.
    pub fn is_float(self) -> bool {
        self.kind() == Kind::Float
    }

    /// Signed or unsigned integer (not bool).
    pub fn is_int(self) -> bool {
        matches!(self.kind(), Kind::Int | Kind::Uint)
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
