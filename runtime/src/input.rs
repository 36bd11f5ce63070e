//! What a session is given and gives back besides numbers.

use crate::exec::TensorRef;
use kiln_ir::{DType, Tensor};

/// Strings lent by the caller, or by a session.
#[derive(Clone, Copy, Debug)]
pub struct StringsRef<'a> {
    /// Extents.
    pub shape: &'a [usize],
    /// Elements, row-major.
    pub strings: &'a [String],
}

/// What an input is given.
#[derive(Clone, Copy, Debug)]
pub enum Input<'a> {
    /// Elements of any type but strings.
    Numbers(TensorRef<'a>),
    /// Strings.
    Strings(StringsRef<'a>),
}

impl<'a> Input<'a> {
    /// Element type.
    pub fn dtype(&self) -> DType {
        match self {
            Input::Numbers(t) => t.dtype,
            Input::Strings(_) => DType::Str,
        }
    }

    /// Extents.
    pub fn shape(&self) -> &'a [usize] {
        match self {
            Input::Numbers(t) => t.shape,
            Input::Strings(t) => t.shape,
        }
    }
}

impl<'a> From<TensorRef<'a>> for Input<'a> {
    fn from(t: TensorRef<'a>) -> Input<'a> {
        Input::Numbers(t)
    }
}

impl<'a> From<&'a Tensor> for Input<'a> {
    fn from(t: &'a Tensor) -> Input<'a> {
        let shape = t.shape();
        match t.dtype() {
            DType::Str => Input::Strings(StringsRef {
                shape,
                strings: t.as_strings(),
            }),
            dtype => Input::Numbers(TensorRef {
                dtype,
                shape,
                bytes: t.bytes(),
            }),
        }
    }
}
