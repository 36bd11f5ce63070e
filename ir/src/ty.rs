//! Tensor types, value encodings and shard specifications.

use crate::{DType, Dim, Tri};
use serde::{Deserialize, Serialize};
use std::fmt;

/// Block formats of quantized values, named as GGUF names them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[allow(non_camel_case_types, missing_docs)]
pub enum BlockFormat {
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2_K,
    Q3_K,
    Q4_K,
    Q5_K,
    Q6_K,
    IQ4_NL,
    /// Weights in {-1, 0, 1}, two bits each, one f32 scale per block of 32.
    Ternary,
}

impl BlockFormat {
    /// Every format with its text name, elements per block and bytes per block.
    pub const ALL: &'static [(BlockFormat, &'static str, usize, usize)] = &[
        (BlockFormat::Q4_0, "q4_0", 32, 18),
        (BlockFormat::Q4_1, "q4_1", 32, 20),
        (BlockFormat::Q5_0, "q5_0", 32, 22),
        (BlockFormat::Q5_1, "q5_1", 32, 24),
        (BlockFormat::Q8_0, "q8_0", 32, 34),
        (BlockFormat::Q2_K, "q2_k", 256, 84),
        (BlockFormat::Q3_K, "q3_k", 256, 110),
        (BlockFormat::Q4_K, "q4_k", 256, 144),
        (BlockFormat::Q5_K, "q5_k", 256, 176),
        (BlockFormat::Q6_K, "q6_k", 256, 210),
        (BlockFormat::IQ4_NL, "iq4_nl", 32, 18),
        (BlockFormat::Ternary, "ternary", 32, 12),
    ];

    fn row(self) -> &'static (BlockFormat, &'static str, usize, usize) {
        // The table holds every variant: `encodings_are_all_in_the_table` tests it.
        Self::ALL
            .iter()
            .find(|r| r.0 == self)
            .unwrap_or(&Self::ALL[0])
    }

    /// The text name.
    pub fn name(self) -> &'static str {
        self.row().1
    }

    /// Elements per block.
    pub fn block_len(self) -> usize {
        self.row().2
    }

    /// Bytes per block.
    pub fn block_bytes(self) -> usize {
        self.row().3
    }

    /// The format with this text name.
    pub fn from_name(name: &str) -> Option<BlockFormat> {
        Self::ALL.iter().find(|r| r.1 == name).map(|r| r.0)
    }
}

/// How a value's elements are held, where that is not plainly: the value's
/// dtype is what an element means, the encoding is what memory holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Encoding {
    /// The block format.
    pub format: BlockFormat,
    /// The axis along which elements form blocks.
    pub axis: u8,
}

/// Where one axis of a value lives on a mesh of devices, and whether the value
/// is a partial sum over some mesh axes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ShardSpec {
    /// For each tensor axis, the mesh axes that split it, outermost first.
    pub axes: Vec<Vec<String>>,
    /// Mesh axes over which the value must still be summed.
    pub partial: Vec<String>,
}

/// The type of a value: element type, shape, encoding.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct TensorType {
    /// What an element means.
    pub dtype: DType,
    /// The extents, outermost first; rank 0 is a scalar.
    pub shape: Vec<Dim>,
    /// `None`: plain elements, row-major and dense.
    pub encoding: Option<Encoding>,
}

impl TensorType {
    /// A plain dense tensor.
    pub fn new(dtype: DType, shape: impl Into<Vec<Dim>>) -> TensorType {
        TensorType {
            dtype,
            shape: shape.into(),
            encoding: None,
        }
    }

    /// A scalar.
    pub fn scalar(dtype: DType) -> TensorType {
        TensorType::new(dtype, [])
    }

    /// Number of axes.
    pub fn rank(&self) -> usize {
        self.shape.len()
    }

    /// The number of elements.
    pub fn elements(&self) -> Dim {
        Dim::product(&self.shape)
    }

    /// The shape, if every extent is a constant.
    pub fn const_shape(&self) -> Option<Vec<usize>> {
        self.shape
            .iter()
            .map(|d| d.as_const().and_then(|c| usize::try_from(c).ok()))
            .collect()
    }

    /// The same type with another element type.
    pub fn with_dtype(&self, dtype: DType) -> TensorType {
        TensorType {
            dtype,
            ..self.clone()
        }
    }

    /// The same type with another shape.
    pub fn with_shape(&self, shape: impl Into<Vec<Dim>>) -> TensorType {
        TensorType {
            shape: shape.into(),
            ..self.clone()
        }
    }

    /// Bytes in memory; sub-byte types are packed, strings are handles.
    pub fn bytes(&self) -> Dim {
        if let Some(e) = self.encoding {
            let (len, bytes) = (e.format.block_len(), e.format.block_bytes());
            return self.elements().floor_div(&len.into()) * Dim::from(bytes);
        }
        match self.dtype.size() {
            Some(size) => self.elements() * Dim::from(size),
            None => self.elements().ceil_div(&Dim::from(8 / self.dtype.bits())),
        }
    }

    /// Whether the two types are the same for every binding.
    pub fn same(&self, other: &TensorType) -> Tri {
        if self.dtype != other.dtype
            || self.rank() != other.rank()
            || self.encoding != other.encoding
        {
            return Tri::No;
        }
        let mut answer = Tri::Yes;
        for (a, b) in self.shape.iter().zip(&other.shape) {
            match a.same(b) {
                Tri::Yes => {}
                Tri::No => return Tri::No,
                Tri::Unknown => answer = Tri::Unknown,
            }
        }
        answer
    }
}

impl fmt::Display for TensorType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}[", self.dtype)?;
        for (i, d) in self.shape.iter().enumerate() {
            write!(f, "{}{d}", if i > 0 { ", " } else { "" })?;
        }
        f.write_str("]")?;
        match self.encoding {
            Some(e) => write!(f, ":{}@{}", e.format.name(), e.axis),
            None => Ok(()),
        }
    }
}

impl fmt::Display for ShardSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[")?;
        for (i, axes) in self.axes.iter().enumerate() {
            let text = if axes.is_empty() {
                "-".into()
            } else {
                axes.join("+")
            };
            write!(f, "{}{text}", if i > 0 { ", " } else { "" })?;
        }
        f.write_str("]")?;
        if !self.partial.is_empty() {
            write!(f, " partial {}", self.partial.join("+"))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn encodings_are_all_in_the_table() {
        for row in BlockFormat::ALL {
            assert_eq!(BlockFormat::from_name(row.1), Some(row.0));
            assert_eq!(row.0.name(), row.1);
        }
        let ty = TensorType {
            dtype: DType::F32,
            shape: vec![4.into(), 64.into()],
            encoding: Some(Encoding {
                format: BlockFormat::Q4_0,
                axis: 1,
            }),
        };
        assert_eq!(ty.bytes(), Dim::from(4 * 2 * 18));
        assert_eq!(ty.to_string(), "f32[4, 64]:q4_0@1");
    }
}
