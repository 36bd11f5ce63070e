//! Constants: `TensorProto` to [`Tensor`], mapped where they are long.

use super::cx::Fail;
use super::files::{Files, Span};
use crate::diagnostic::code;
use kiln_ir::tensor::element_count;
use kiln_ir::{DType, Tensor};
use onnx_protobuf::{SparseTensorProto, TensorProto, tensor_proto::DataLocation};
use protobuf::UnknownValueRef;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

/// ONNX's numbers of element types, among them those that the protobuf crate
/// has no name for.
const DTYPES: [Option<DType>; 27] = [
    None,
    Some(DType::F32),
    Some(DType::U8),
    Some(DType::I8),
    Some(DType::U16),
    Some(DType::I16),
    Some(DType::I32),
    Some(DType::I64),
    Some(DType::Str),
    Some(DType::Bool),
    Some(DType::F16),
    Some(DType::F64),
    Some(DType::U32),
    Some(DType::U64),
    Some(DType::C64),
    Some(DType::C128),
    Some(DType::BF16),
    Some(DType::F8E4M3FN),
    Some(DType::F8E4M3FNUZ),
    Some(DType::F8E5M2),
    Some(DType::F8E5M2FNUZ),
    Some(DType::U4),
    Some(DType::I4),
    Some(DType::F4E2M1),
    Some(DType::F8E8M0),
    Some(DType::U2),
    Some(DType::I2),
];

/// The element type with this ONNX number.
pub(crate) fn dtype(number: i64) -> Option<DType> {
    *DTYPES.get(usize::try_from(number).ok()?)?
}

/// The ONNX number of an element type.
pub(crate) fn number(dtype: DType) -> Option<i32> {
    let at = DTYPES.iter().position(|d| *d == Some(dtype))?;
    i32::try_from(at).ok()
}

/// Where slimming left the contents of a long constant.
pub(crate) fn moved_range(t: &TensorProto) -> Option<Range<usize>> {
    let values: Vec<usize> = t
        .special_fields
        .unknown_fields()
        .iter()
        .filter(|(number, _)| *number == super::wire::MOVED_FIELD)
        .filter_map(|(_, value)| match value {
            UnknownValueRef::Varint(v) => usize::try_from(v).ok(),
            _ => None,
        })
        .collect();
    match values[..] {
        [.., offset, length] => Some(offset..offset.checked_add(length)?),
        _ => None,
    }
}

fn bad(message: impl Into<String>) -> Fail {
    Fail::new(code::CONSTANT, message).help("the file is damaged: export or fetch it again")
}

/// Extents as sizes: none negative, and the element count addressable.
fn extents(dims: &[i64]) -> Result<Vec<usize>, Fail> {
    let shape: Option<Vec<usize>> = dims.iter().map(|&d| usize::try_from(d).ok()).collect();
    shape
        .filter(|s| element_count(s).is_some_and(|n| n <= isize::MAX as usize))
        .ok_or_else(|| bad(format!("the shape {dims:?} is impossible")))
}

/// The constant, and where it is mapped from if it is.
pub(crate) fn load(t: &TensorProto, files: &mut Files) -> Result<(Tensor, Option<Span>), Fail> {
    let dtype = dtype(t.data_type as i64)
        .ok_or_else(|| bad(format!("{} is no element type", t.data_type)))?;
    let shape = extents(&t.dims)?;
    if t.segment.is_some() {
        return Err(bad(
            "the constant is split in segments, which ONNX does not define",
        ));
    }
    if let Some(span) = mapped_span(t, files)? {
        let bytes = span.file.bytes(span.range.clone());
        let bytes = bytes.ok_or_else(|| bad("the constant lies outside the file"))?;
        let tensor = Tensor::new(dtype, shape, bytes).map_err(|e| bad(e.to_string()))?;
        return Ok((well_formed(tensor)?, Some(span)));
    }
    Ok((inline(t, dtype, shape)?, None))
}

pub(crate) fn mapped_span(t: &TensorProto, files: &mut Files) -> Result<Option<Span>, Fail> {
    if t.data_location.enum_value() == Ok(DataLocation::EXTERNAL) {
        let entry = |key: &str| {
            let found = t.external_data.iter().find(|e| e.key == key);
            found.map(|e| e.value.as_str())
        };
        let number = |key: &str| match entry(key) {
            None => Ok(None),
            Some(text) => match text.trim().parse::<u64>() {
                Ok(n) => Ok(Some(n)),
                Err(_) => Err(bad(format!("the external {key} `{text}` is no number"))),
            },
        };
        let location = entry("location").unwrap_or_default();
        let span = files.external(location, number("offset")?.unwrap_or(0), number("length")?)?;
        return Ok(Some(span));
    }
    Ok(moved_range(t).map(|range| Span {
        file: files.model.clone(),
        range,
    }))
}

/// Bools are 0 or 1 from here on, whatever the file holds.
fn well_formed(t: Tensor) -> Result<Tensor, Fail> {
    if t.dtype() != DType::Bool || t.bytes().iter().all(|&b| b <= 1) {
        return Ok(t);
    }
    let bytes: Vec<u8> = t.bytes().iter().map(|&b| (b != 0) as u8).collect();
    Tensor::new(DType::Bool, t.shape(), bytes).map_err(|e| bad(e.to_string()))
}

fn inline(t: &TensorProto, dtype: DType, shape: Vec<usize>) -> Result<Tensor, Fail> {
    if dtype == DType::Str {
        let strings = t
            .string_data
            .iter()
            .map(|s| String::from_utf8(s.clone()))
            .collect::<Result<_, _>>()
            .map_err(|_| bad("a string is not UTF-8"))?;
        return Tensor::strings(shape, strings).map_err(|e| bad(e.to_string()));
    }
    let bytes: Vec<u8> = if !t.raw_data.is_empty() {
        t.raw_data.clone()
    } else {
        match dtype {
            DType::F32 | DType::C64 => t.float_data.iter().flat_map(|v| v.to_le_bytes()).collect(),
            DType::F64 | DType::C128 => {
                t.double_data.iter().flat_map(|v| v.to_le_bytes()).collect()
            }
            DType::I64 => t.int64_data.iter().flat_map(|v| v.to_le_bytes()).collect(),
            DType::U64 => t.uint64_data.iter().flat_map(|v| v.to_le_bytes()).collect(),
            DType::U32 => t
                .uint64_data
                .iter()
                .flat_map(|&v| (v as u32).to_le_bytes())
                .collect(),
            // Everything else is an int32 each: the element's bits, or for types
            // below a byte, one byte of packed elements.
            _ => {
                let width = dtype.size().unwrap_or(1);
                let ints = t.int32_data.iter();
                ints.flat_map(|v| v.to_le_bytes()[..width.min(4)].to_vec())
                    .collect()
            }
        }
    };
    well_formed(Tensor::new(dtype, shape, bytes).map_err(|e| bad(e.to_string()))?)
}

/// A sparse constant made dense; refused where that is out of proportion.
pub(crate) fn load_sparse(t: &SparseTensorProto, files: &mut Files) -> Result<Tensor, Fail> {
    let (values, _) = load(&t.values, files)?;
    let (indices, _) = load(&t.indices, files)?;
    let shape = extents(&t.dims)?;
    let n: usize = shape.iter().product();
    let (count, rank) = (values.len(), shape.len());
    let size = values.dtype().size();
    let bytes = size
        .and_then(|s| n.checked_mul(s))
        .filter(|&b| b <= 1 << 28);
    let (Some(size), Some(bytes)) = (size, bytes) else {
        return Err(bad(format!(
            "a sparse constant of shape {shape:?} is too large to fill"
        )));
    };
    let flat = indices.shape() == [count];
    if indices.dtype() != DType::I64 || !(flat || indices.shape() == [count, rank]) {
        return Err(bad(
            "the indices of a sparse constant do not fit its values",
        ));
    }
    let place = |i: usize| {
        let at = if flat {
            usize::try_from(indices.get_i64(i)).ok()
        } else {
            (0..rank).try_fold(0usize, |at, axis| {
                let p = usize::try_from(indices.get_i64(i * rank + axis)).ok()?;
                (p < shape[axis]).then_some(at * shape[axis] + p)
            })
        };
        at.filter(|&at| at < n)
            .ok_or_else(|| bad("an index of a sparse constant lies outside it"))
    };
    let dense = if values.dtype() == DType::Str {
        let mut dense = vec![String::new(); n];
        for (i, s) in values.as_strings().iter().enumerate() {
            dense[place(i)?].clone_from(s);
        }
        Tensor::strings(shape.clone(), dense)
    } else {
        let mut dense = vec![0; bytes];
        for i in 0..count {
            dense[place(i)? * size..][..size].copy_from_slice(&values.bytes()[i * size..][..size]);
        }
        Tensor::new(values.dtype(), shape.clone(), dense)
    };
    dense.map_err(|e| bad(e.to_string()))
}

/// How many elements of each floating-point constant are NaN or infinite. −∞ does
/// not count: masks are made of it. Large constants are read in pieces, by as many
/// threads as the machine has.
pub(crate) fn not_finite(constants: &[(Tensor, Option<Span>)]) -> Vec<usize> {
    let float = |t: &Tensor| {
        matches!(
            t.dtype(),
            DType::F32 | DType::F16 | DType::BF16 | DType::F64
        )
    };
    let pieces: Vec<(usize, Range<usize>)> = constants
        .iter()
        .enumerate()
        .filter(|(_, (t, _))| float(t))
        .flat_map(|(i, (t, _))| {
            let n = t.bytes().len();
            let piece = move |at: usize| (i, at..(at + PIECE).min(n));
            (0..n).step_by(PIECE).map(piece)
        })
        .collect();
    let counts: Vec<AtomicUsize> = constants.iter().map(|_| AtomicUsize::new(0)).collect();
    let next = AtomicUsize::new(0);
    let work = || {
        while let Some((i, range)) = pieces.get(next.fetch_add(1, Ordering::Relaxed)) {
            let (t, span) = &constants[*i];
            let found = not_finite_in(t, span.as_ref(), range.clone());
            counts[*i].fetch_add(found, Ordering::Relaxed);
        }
    };
    let machine = std::thread::available_parallelism().map_or(1, |n| n.get());
    let all: usize = pieces.iter().map(|(_, r)| r.len()).sum();
    std::thread::scope(|s| {
        for _ in 1..machine.min(all / PIECE) {
            s.spawn(work);
        }
        work();
    });
    counts.into_iter().map(AtomicUsize::into_inner).collect()
}

/// Bytes of constants that a thread looks at before it takes the next.
const PIECE: usize = 4 << 20;

fn not_finite_in(t: &Tensor, span: Option<&Span>, range: Range<usize>) -> usize {
    let dtype = t.dtype();
    let mut count = 0;
    let mut look = |piece: &[u8]| {
        count += match dtype {
            // The exponent is all ones, and the number is not −∞.
            DType::F32 => count_of(piece, |b| {
                let v = u32::from_le_bytes(*b);
                v & 0x7f80_0000 == 0x7f80_0000 && v != 0xff80_0000
            }),
            DType::F16 => count_of(piece, |b| {
                let v = u16::from_le_bytes(*b);
                v & 0x7c00 == 0x7c00 && v != 0xfc00
            }),
            DType::BF16 => count_of(piece, |b| {
                let v = u16::from_le_bytes(*b);
                v & 0x7f80 == 0x7f80 && v != 0xff80
            }),
            DType::F64 => count_of(piece, |b| {
                let (v, ones) = (u64::from_le_bytes(*b), 0x7ff0_0000_0000_0000);
                v & ones == ones && v != ones | 1 << 63
            }),
            _ => 0,
        }
    };
    match span {
        Some(span) => {
            let range = span.range.start + range.start..span.range.start + range.end;
            if span.file.scan(range, &mut look).is_err() {
                return 0;
            }
        }
        None => look(&t.bytes()[range]),
    }
    count
}

fn count_of<const N: usize>(piece: &[u8], test: impl Fn(&[u8; N]) -> bool) -> usize {
    let (whole, _) = piece.as_chunks::<N>();
    whole.iter().map(|raw| test(raw) as usize).sum()
}
