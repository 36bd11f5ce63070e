//! Host tensors: constants, the interpreter's values, and what importers map
//! from files.

use crate::{DType, Dim, Kind, TensorType};
use half::{bf16, f16};
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

/// What keeps bytes: a vector, a mapped file.
pub trait Owner: Send + Sync {
    /// All of them.
    fn all(&self) -> &[u8];
    /// Hears that a range is not needed soon. What can be had again, such as pages
    /// of a mapped file, may leave memory; contents never change.
    fn release(&self, range: Range<usize>);
}

impl Owner for Vec<u8> {
    fn all(&self) -> &[u8] {
        self
    }

    /// Nothing would bring them back.
    fn release(&self, _: Range<usize>) {}
}

/// Bytes that are owned or a range of something shared, such as a mapped file.
#[derive(Clone)]
pub struct Bytes {
    owner: Arc<dyn Owner>,
    range: Range<usize>,
}

impl Bytes {
    /// A range of a shared owner; `None` if it does not hold that range.
    pub fn shared(owner: Arc<dyn Owner>, range: Range<usize>) -> Option<Bytes> {
        (owner.all().get(range.clone()))
            .is_some()
            .then_some(Bytes { owner, range })
    }

    /// Tells the owner that these bytes are not needed soon.
    pub fn release(&self) {
        self.owner.release(self.range.clone());
    }
}

impl From<Vec<u8>> for Bytes {
    fn from(v: Vec<u8>) -> Bytes {
        Bytes {
            range: 0..v.len(),
            owner: Arc::new(v),
        }
    }
}

impl std::ops::Deref for Bytes {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.owner.all()[self.range.clone()]
    }
}

/// A dense row-major tensor on the host. Sub-byte elements are packed, lowest
/// bits first; bool is one byte of 0 or 1.
#[derive(Clone)]
pub struct Tensor {
    dtype: DType,
    shape: Vec<usize>,
    data: Data,
}

#[derive(Clone)]
enum Data {
    Bytes(Bytes),
    Strings(Arc<[String]>),
}

/// A tensor's bytes do not fit its type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SizeMismatch {
    /// Bytes (or strings) that the type needs; `None` beyond the address space.
    pub expected: Option<usize>,
    /// Bytes (or strings) given.
    pub found: usize,
}

impl fmt::Display for SizeMismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.expected {
            Some(e) => write!(f, "needs {e} bytes, found {}", self.found),
            None => write!(
                f,
                "needs more bytes than can be addressed, found {}",
                self.found
            ),
        }
    }
}

impl std::error::Error for SizeMismatch {}

/// The number of elements, `None` on overflow.
pub fn element_count(shape: &[usize]) -> Option<usize> {
    shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d))
}

impl Tensor {
    /// A tensor over these bytes, of any type but strings.
    pub fn new(
        dtype: DType,
        shape: impl Into<Vec<usize>>,
        bytes: impl Into<Bytes>,
    ) -> Result<Tensor, SizeMismatch> {
        let (shape, mut bytes): (_, Bytes) = (shape.into(), bytes.into());
        let count = element_count(&shape);
        // Strings are no bytes: see `Tensor::strings`.
        let expected = count.filter(|_| dtype != DType::Str);
        let expected = expected.and_then(|n| dtype.bytes_for(n));
        if expected != Some(bytes.len()) {
            return Err(SizeMismatch {
                expected,
                found: bytes.len(),
            });
        }
        // Bits behind the last element are zero, whatever a file has there: equal
        // elements are equal bytes.
        let used = count.unwrap_or(0) * dtype.bits() % 8;
        if dtype.bits() < 8 && used != 0 && bytes.last().is_some_and(|b| b >> used != 0) {
            let mut own = bytes.to_vec();
            own.iter_mut()
                .last()
                .into_iter()
                .for_each(|b| *b &= (1 << used) - 1);
            bytes = own.into();
        }
        Ok(Tensor {
            dtype,
            shape,
            data: Data::Bytes(bytes),
        })
    }

    /// A tensor of strings.
    pub fn strings(
        shape: impl Into<Vec<usize>>,
        strings: Vec<String>,
    ) -> Result<Tensor, SizeMismatch> {
        let shape = shape.into();
        let expected = element_count(&shape);
        if expected != Some(strings.len()) {
            return Err(SizeMismatch {
                expected,
                found: strings.len(),
            });
        }
        Ok(Tensor {
            dtype: DType::Str,
            shape,
            data: Data::Strings(strings.into()),
        })
    }

    /// Rounds each number to `dtype` (floats: nearest even; integers wrap;
    /// bool: not zero). `values` has one number per element.
    pub fn from_f64(
        dtype: DType,
        shape: impl Into<Vec<usize>>,
        values: &[f64],
    ) -> Result<Tensor, SizeMismatch> {
        let mut out = Encoder::new(dtype, values.len());
        values.iter().for_each(|&v| out.push_f64(v));
        Tensor::new(dtype, shape, out.finish())
    }

    /// Wraps each integer to `dtype` (floats: nearest).
    pub fn from_i64(
        dtype: DType,
        shape: impl Into<Vec<usize>>,
        values: &[i64],
    ) -> Result<Tensor, SizeMismatch> {
        let mut out = Encoder::new(dtype, values.len());
        values.iter().for_each(|&v| out.push_i64(v));
        Tensor::new(dtype, shape, out.finish())
    }

    /// An f32 tensor.
    pub fn from_f32(shape: impl Into<Vec<usize>>, values: &[f32]) -> Result<Tensor, SizeMismatch> {
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        Tensor::new(DType::F32, shape, bytes)
    }

    /// A one-element tensor of rank 0. Of strings it is the empty one, whatever the
    /// number: what zero is among numbers.
    pub fn scalar_f64(dtype: DType, value: f64) -> Tensor {
        if dtype == DType::Str {
            return Tensor::empty_string();
        }
        let mut out = Encoder::new(dtype, 1);
        out.push_f64(value);
        Tensor {
            dtype,
            shape: vec![],
            data: Data::Bytes(out.finish().into()),
        }
    }

    fn empty_string() -> Tensor {
        Tensor {
            dtype: DType::Str,
            shape: vec![],
            data: Data::Strings([String::new()].into()),
        }
    }

    /// A one-element integer tensor of rank 0; of strings the empty one.
    pub fn scalar_i64(dtype: DType, value: i64) -> Tensor {
        if dtype == DType::Str {
            return Tensor::empty_string();
        }
        let mut out = Encoder::new(dtype, 1);
        out.push_i64(value);
        Tensor {
            dtype,
            shape: vec![],
            data: Data::Bytes(out.finish().into()),
        }
    }

    /// Element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Extents.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The constant type of this tensor.
    pub fn ty(&self) -> TensorType {
        TensorType::new(
            self.dtype,
            self.shape.iter().map(|&d| Dim::from(d)).collect::<Vec<_>>(),
        )
    }

    /// The packed elements; empty for strings.
    pub fn bytes(&self) -> &[u8] {
        match &self.data {
            Data::Bytes(b) => b,
            Data::Strings(_) => &[],
        }
    }

    /// The packed elements as shared bytes; `None` for strings.
    pub fn shared_bytes(&self) -> Option<Bytes> {
        match &self.data {
            Data::Bytes(b) => Some(b.clone()),
            Data::Strings(_) => None,
        }
    }

    /// The strings; empty for other types.
    pub fn as_strings(&self) -> &[String] {
        match &self.data {
            Data::Bytes(_) => &[],
            Data::Strings(s) => s,
        }
    }

    /// The same elements under another shape with as many elements.
    pub fn reshaped(&self, shape: impl Into<Vec<usize>>) -> Result<Tensor, SizeMismatch> {
        let shape = shape.into();
        if element_count(&shape) != Some(self.len()) {
            return Err(SizeMismatch {
                expected: element_count(&shape),
                found: self.len(),
            });
        }
        Ok(Tensor {
            dtype: self.dtype,
            shape,
            data: self.data.clone(),
        })
    }

    /// Element `i` in row-major order as f64 (integers beyond 2^53 round;
    /// complex: the real part; strings: NaN).
    pub fn get_f64(&self, i: usize) -> f64 {
        read_f64(self.dtype, self.bytes(), i)
    }

    /// Element `i` as i64 (floats truncate; u64 wraps).
    pub fn get_i64(&self, i: usize) -> i64 {
        read_i64(self.dtype, self.bytes(), i)
    }

    /// Every element as f64.
    pub fn to_f64(&self) -> Vec<f64> {
        (0..self.len()).map(|i| self.get_f64(i)).collect()
    }

    /// Every element as i64.
    pub fn to_i64(&self) -> Vec<i64> {
        (0..self.len()).map(|i| self.get_i64(i)).collect()
    }

    /// Every element as f32.
    pub fn to_f32(&self) -> Vec<f32> {
        if self.dtype == DType::F32 {
            let (elements, _) = self.bytes().as_chunks();
            return elements.iter().map(|&e| f32::from_le_bytes(e)).collect();
        }
        (0..self.len()).map(|i| self.get_f64(i) as f32).collect()
    }
}

impl fmt::Debug for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{:?}", self.dtype, self.shape)?;
        if self.dtype == DType::Str {
            return write!(f, " {:?}", self.as_strings());
        }
        let shown: Vec<f64> = (0..self.len().min(8)).map(|i| self.get_f64(i)).collect();
        write!(f, " {shown:?}{}", if self.len() > 8 { "…" } else { "" })
    }
}

impl PartialEq for Tensor {
    /// Same type, same bits.
    fn eq(&self, other: &Tensor) -> bool {
        self.dtype == other.dtype
            && self.shape == other.shape
            && self.bytes() == other.bytes()
            && self.as_strings() == other.as_strings()
    }
}

fn at<const N: usize>(bytes: &[u8], i: usize) -> [u8; N] {
    let mut raw = [0; N];
    raw.copy_from_slice(&bytes[i * N..(i + 1) * N]);
    raw
}

fn sub_byte(bytes: &[u8], i: usize, bits: usize) -> u8 {
    let per = 8 / bits;
    (bytes[i / per] >> (bits * (i % per))) & ((1 << bits) - 1)
}

/// Reads element `i` of packed `bytes` as f64.
pub fn read_f64(dtype: DType, bytes: &[u8], i: usize) -> f64 {
    match dtype {
        DType::F64 => f64::from_le_bytes(at(bytes, i)),
        DType::F32 | DType::C64 => {
            let k = if dtype == DType::C64 { 2 * i } else { i };
            f32::from_le_bytes(at(bytes, k)) as f64
        }
        DType::C128 => f64::from_le_bytes(at(bytes, 2 * i)),
        DType::F16 => f16::from_le_bytes(at(bytes, i)).to_f64(),
        DType::BF16 => bf16::from_le_bytes(at(bytes, i)).to_f64(),
        DType::U64 => u64::from_le_bytes(at(bytes, i)) as f64,
        DType::F8E4M3FN | DType::F8E4M3FNUZ | DType::F8E5M2 | DType::F8E5M2FNUZ | DType::F8E8M0 => {
            minifloat_decode(dtype, bytes[i])
        }
        DType::F4E2M1 => minifloat_decode(dtype, sub_byte(bytes, i, 4)),
        DType::Str => f64::NAN,
        DType::I64
        | DType::I32
        | DType::I16
        | DType::I8
        | DType::I4
        | DType::I2
        | DType::U32
        | DType::U16
        | DType::U8
        | DType::U4
        | DType::U2
        | DType::Bool => read_i64(dtype, bytes, i) as f64,
    }
}

/// Reads element `i` of packed `bytes` as i64.
pub fn read_i64(dtype: DType, bytes: &[u8], i: usize) -> i64 {
    match dtype {
        DType::I64 => i64::from_le_bytes(at(bytes, i)),
        DType::I32 => i32::from_le_bytes(at(bytes, i)) as i64,
        DType::I16 => i16::from_le_bytes(at(bytes, i)) as i64,
        DType::I8 => bytes[i] as i8 as i64,
        DType::I4 => ((sub_byte(bytes, i, 4) << 4) as i8 >> 4) as i64,
        DType::I2 => ((sub_byte(bytes, i, 2) << 6) as i8 >> 6) as i64,
        DType::U64 => u64::from_le_bytes(at(bytes, i)) as i64,
        DType::U32 => u32::from_le_bytes(at(bytes, i)) as i64,
        DType::U16 => u16::from_le_bytes(at(bytes, i)) as i64,
        DType::U8 => bytes[i] as i64,
        DType::U4 => sub_byte(bytes, i, 4) as i64,
        DType::U2 => sub_byte(bytes, i, 2) as i64,
        DType::Bool => (bytes[i] != 0) as i64,
        DType::F64
        | DType::F32
        | DType::F16
        | DType::BF16
        | DType::F8E4M3FN
        | DType::F8E4M3FNUZ
        | DType::F8E5M2
        | DType::F8E5M2FNUZ
        | DType::F8E8M0
        | DType::F4E2M1
        | DType::C64
        | DType::C128
        | DType::Str => read_f64(dtype, bytes, i) as i64,
    }
}

/// Exponent bits, mantissa bits and bias of a small float.
fn minifloat_shape(dtype: DType) -> (u32, u32, i32) {
    match dtype {
        DType::F8E4M3FN => (4, 3, 7),
        DType::F8E4M3FNUZ => (4, 3, 8),
        DType::F8E5M2FNUZ => (5, 2, 16),
        DType::F4E2M1 => (2, 1, 1),
        _ => (5, 2, 15),
    }
}

/// The value of a small float's bits (OCP 8-bit and MX formats; ONNX's FNUZ).
pub fn minifloat_decode(dtype: DType, bits: u8) -> f64 {
    if dtype == DType::F8E8M0 {
        return if bits == 0xff {
            f64::NAN
        } else {
            2f64.powi(bits as i32 - 127)
        };
    }
    let (e_bits, m_bits, bias) = minifloat_shape(dtype);
    let sign = if bits >> (e_bits + m_bits) & 1 == 1 {
        -1.0
    } else {
        1.0
    };
    let exp = (bits >> m_bits) as i32 & ((1 << e_bits) - 1);
    let man = (bits & ((1 << m_bits) - 1)) as i32;
    match dtype {
        DType::F8E4M3FN if bits & 0x7f == 0x7f => return f64::NAN,
        DType::F8E4M3FNUZ | DType::F8E5M2FNUZ if bits == 0x80 => return f64::NAN,
        DType::F8E5M2 if exp == 31 => {
            return if man == 0 {
                sign * f64::INFINITY
            } else {
                f64::NAN
            };
        }
        _ => {}
    }
    let scale = 2f64.powi(-(m_bits as i32));
    if exp == 0 {
        sign * man as f64 * scale * 2f64.powi(1 - bias)
    } else {
        sign * (1.0 + man as f64 * scale) * 2f64.powi(exp - bias)
    }
}

/// The nearest small float (ties to even mantissa), saturating as ONNX Cast does
/// by default; NaN stays NaN where the format has one.
pub fn minifloat_encode(dtype: DType, value: f64) -> u8 {
    let (e_bits, m_bits, _) = minifloat_shape(dtype);
    let positive = if dtype == DType::F8E8M0 {
        256u16
    } else {
        1 << (e_bits + m_bits)
    };
    let sign_bit = if dtype == DType::F8E8M0 {
        0
    } else {
        positive as u8
    };
    if value.is_nan() {
        return match dtype {
            DType::F8E4M3FN => 0x7f,
            DType::F8E5M2 => 0x7e,
            DType::F8E8M0 => 0xff,
            // No NaN there: −0.
            DType::F4E2M1 => 0x8,
            _ => 0x80,
        };
    }
    // At most 256 codes: search them. Codes of positive values are ordered.
    // Beyond the largest number, distances would drown in rounding.
    let top = (0..positive)
        .map(|code| minifloat_decode(dtype, code as u8))
        .filter(|v| v.is_finite())
        .fold(0.0, f64::max);
    let magnitude = value.abs().min(top);
    let mut best = (f64::INFINITY, 0u8);
    for code in 0..positive {
        let v = minifloat_decode(dtype, code as u8);
        if v.is_finite() {
            let distance = (v - magnitude).abs();
            if distance < best.0 || (distance == best.0 && code % 2 == 0) {
                best = (distance, code as u8);
            }
        }
    }
    let fnuz_zero = best.1 == 0 && matches!(dtype, DType::F8E4M3FNUZ | DType::F8E5M2FNUZ);
    if value.is_sign_negative() && !fnuz_zero {
        best.1 | sign_bit
    } else {
        best.1
    }
}

/// Packs numbers into the bytes of one dtype.
pub struct Encoder {
    dtype: DType,
    bytes: Vec<u8>,
    count: usize,
}

impl Encoder {
    /// An encoder that expects about `n` elements.
    pub fn new(dtype: DType, n: usize) -> Encoder {
        Encoder {
            dtype,
            bytes: Vec::with_capacity(dtype.bytes_for(n).unwrap_or(0).min(1 << 30)),
            count: 0,
        }
    }

    /// Appends a number, rounded to the type.
    pub fn push_f64(&mut self, v: f64) {
        match self.dtype {
            DType::F64 => self.bytes.extend(v.to_le_bytes()),
            DType::F32 => self.bytes.extend((v as f32).to_le_bytes()),
            DType::F16 => self.bytes.extend(f16::from_f64(v).to_le_bytes()),
            DType::BF16 => self.bytes.extend(bf16::from_f64(v).to_le_bytes()),
            DType::C64 => self
                .bytes
                .extend((v as f32).to_le_bytes().into_iter().chain([0; 4])),
            DType::C128 => self.bytes.extend(v.to_le_bytes().into_iter().chain([0; 8])),
            DType::F8E4M3FN
            | DType::F8E4M3FNUZ
            | DType::F8E5M2
            | DType::F8E5M2FNUZ
            | DType::F8E8M0 => self.bytes.push(minifloat_encode(self.dtype, v)),
            DType::F4E2M1 => self.push_bits(minifloat_encode(self.dtype, v), 4),
            DType::Bool => self.bytes.push((v != 0.0) as u8),
            DType::U64 if v >= 0.0 => self.bytes.extend((v as u64).to_le_bytes()),
            DType::U64
            | DType::I64
            | DType::I32
            | DType::I16
            | DType::I8
            | DType::I4
            | DType::I2
            | DType::U32
            | DType::U16
            | DType::U8
            | DType::U4
            | DType::U2
            | DType::Str => return self.push_i64(v as i64),
        }
        if self.dtype != DType::F4E2M1 {
            self.count += 1;
        }
    }

    /// Appends an integer, wrapped to the type (floats: nearest).
    pub fn push_i64(&mut self, v: i64) {
        match self.dtype {
            DType::I64 | DType::U64 => self.bytes.extend(v.to_le_bytes()),
            DType::I32 | DType::U32 => self.bytes.extend((v as i32).to_le_bytes()),
            DType::I16 | DType::U16 => self.bytes.extend((v as i16).to_le_bytes()),
            DType::I8 | DType::U8 => self.bytes.push(v as u8),
            DType::I4 | DType::U4 => return self.push_bits(v as u8 & 0xf, 4),
            DType::I2 | DType::U2 => return self.push_bits(v as u8 & 0x3, 2),
            DType::Bool => self.bytes.push((v != 0) as u8),
            DType::F64
            | DType::F32
            | DType::F16
            | DType::BF16
            | DType::F8E4M3FN
            | DType::F8E4M3FNUZ
            | DType::F8E5M2
            | DType::F8E5M2FNUZ
            | DType::F8E8M0
            | DType::F4E2M1
            | DType::C64
            | DType::C128 => {
                return self.push_f64(v as f64);
            }
            DType::Str => return,
        }
        self.count += 1;
    }

    /// The packed bytes.
    pub fn finish(self) -> Vec<u8> {
        self.bytes
    }

    fn push_bits(&mut self, v: u8, bits: usize) {
        let slot = self.count % (8 / bits);
        if slot == 0 {
            self.bytes.push(0);
        }
        if let Some(last) = self.bytes.last_mut() {
            *last |= v << (bits * slot);
        }
        self.count += 1;
    }
}

/// Whether arithmetic on this type is done in integers by the interpreter.
pub fn computes_in_integers(dtype: DType) -> bool {
    matches!(dtype.kind(), Kind::Int | Kind::Uint | Kind::Bool)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_type_round_trips_small_values() {
        for &dtype in DType::ALL {
            if dtype == DType::Str || dtype == DType::F8E8M0 {
                continue;
            }
            let values = [0.0, 1.0, 1.0];
            let t = Tensor::from_f64(dtype, [3], &values).unwrap();
            assert_eq!(t.to_f64(), values, "{dtype}");
            assert_eq!(t.to_i64(), [0, 1, 1], "{dtype}");
        }
    }

    #[test]
    fn small_floats_decode_and_encode_their_own_codes() {
        for dtype in [
            DType::F8E4M3FN,
            DType::F8E4M3FNUZ,
            DType::F8E5M2,
            DType::F8E5M2FNUZ,
        ] {
            for code in 0..=255u8 {
                let v = minifloat_decode(dtype, code);
                if v.is_finite() && !(v == 0.0) {
                    assert_eq!(minifloat_encode(dtype, v), code, "{dtype} {code:#x} {v}");
                }
            }
        }
        // OCP OFP8: the largest e4m3 is 448, of e5m2 57344.
        assert_eq!(minifloat_decode(DType::F8E4M3FN, 0x7e), 448.0);
        assert_eq!(minifloat_decode(DType::F8E5M2, 0x7b), 57344.0);
        assert_eq!(minifloat_decode(DType::F4E2M1, 0x7), 6.0);
        // What is beyond the largest number saturates.
        assert_eq!(minifloat_encode(DType::F8E5M2, f64::INFINITY), 0x7b);
        assert_eq!(minifloat_encode(DType::F4E2M1, -1e300), 0xf);
    }

    #[test]
    fn sizes_are_checked() {
        assert!(Tensor::new(DType::F32, [2, 2], vec![0; 15]).is_err());
        assert!(Tensor::new(DType::F32, [usize::MAX, 2], vec![0; 16]).is_err());
        assert!(Tensor::new(DType::I4, [3], vec![0; 2]).is_ok());
    }
}
