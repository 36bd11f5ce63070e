//! Matrices and tables whose elements take a few bits, quantized in blocks. They
//! stay packed in the model: the graph takes them apart.

use crate::onnx::cx::{Cx, Fail, Out};
use kiln_ir::graph::Value;
use kiln_ir::ops::block_matmul::BlockMatMul;
use kiln_ir::{BinaryFn, DType, Dim, Tensor, Tri};

type One = Result<Value, Fail>;

/// Larger matrices need terabytes.
const MAX_COUNT: i64 = 1 << 38;

/// The attribute `bits`: 2, 4 or 8.
fn width(cx: &Cx) -> Result<i64, Fail> {
    let bits = cx.int("bits", 4)?;
    match bits {
        2 | 4 | 8 => Ok(bits),
        _ => Err(Fail::form(format!("elements of {bits} bits"))),
    }
}

/// The attribute `name`, above 0 and in bounds.
fn count(cx: &Cx, name: &str) -> Result<Dim, Fail> {
    match cx.int(name, 0)? {
        n @ 1..=MAX_COUNT => Ok(n.into()),
        n => Err(Fail::invalid(format!("`{name}` is {n}"))),
    }
}

/// Bytes along the last axis as the elements packed in them, low bits first.
fn unpacked(cx: &mut Cx, x: Value, bits: i64) -> One {
    if bits == 8 {
        return Ok(x);
    }
    let mut shape = cx.shape(x);
    let Some(bytes) = shape.pop() else {
        return Err(Fail::invalid("packed elements of no axis"));
    };
    let each = 8 / bits;
    let column = [&shape[..], &[bytes.clone(), Dim::ONE]].concat();
    let x = cx.b.reshape(x, &column)?;
    let shifts: Vec<i64> = (0..each).map(|i| i * bits).collect();
    let shifts = Tensor::from_i64(DType::U8, vec![shifts.len()], &shifts)
        .map_err(|e| Fail::invalid(e.to_string()))?;
    let shifts = cx.b.constant(shifts)?;
    let x = cx.b.binary(BinaryFn::Shr, x, shifts)?;
    let mask = cx.like(x, ((1 << bits) - 1) as f64)?;
    let x = cx.b.binary(BinaryFn::And, x, mask)?;
    shape.push(bytes * Dim::from(each));
    Ok(cx.b.reshape(x, &shape)?)
}

/// The first `n` elements of the last axis.
fn cut(cx: &mut Cx, x: Value, n: &Dim) -> One {
    let last = cx.rank(x) - 1;
    match cx.extent(x, last)?.same(n) {
        Tri::Yes => Ok(x),
        Tri::No | Tri::Unknown => Ok(cx.b.slice_axis(x, last, Dim::ZERO, n.clone())?),
    }
}

/// `a[.., k]·wᵀ + bias` for a weight of `[n, k]` in blocks along `k`.
pub(crate) fn matmul_n_bits(cx: &mut Cx) -> Out {
    if cx.int("weight_prepacked", 0)? != 0 {
        return Err(Fail::form("a weight in the layout of one GPU"));
    }
    let a = cx.arg(0)?;
    if cx.rank(a) == 0 {
        return Err(Fail::invalid("a scalar is no matrix"));
    }
    let p = Packed::read(cx)?;
    let y = match cx.opt(4) {
        Some(groups) => {
            let w = by_group(cx, &p, groups)?;
            let w = cx.b.cast(w, cx.dtype(a))?;
            cx.b.matmul_t(a, w, false, true)?
        }
        None => by_block(cx, &p, a)?,
    };
    match cx.opt(5) {
        None => Ok(vec![y]),
        Some(bias) => Ok(vec![cx.b.add(y, bias)?]),
    }
}

/// A packed weight and what its elements mean.
struct Packed {
    bits: i64,
    k: Dim,
    /// Elements of a block.
    block: Dim,
    /// `u8[n, blocks·bytes]`, as it is stored.
    data: Value,
    /// `f[n, blocks]`.
    scales: Value,
    /// `u8[n, blocks]` or `f[n, blocks]`.
    zeros: Option<Value>,
}

impl Packed {
    fn read(cx: &mut Cx) -> Result<Packed, Fail> {
        let bits = width(cx)?;
        let (n, k, block) = (count(cx, "N")?, count(cx, "K")?, count(cx, "block_size")?);
        let blocks = k.ceil_div(&block);
        let bytes = (block.clone() * Dim::from(bits)).div_exact(&8.into());
        let bytes = bytes.ok_or_else(|| Fail::invalid("a block is no whole number of bytes"))?;
        let (data, scales) = (cx.arg(1)?, cx.arg(2)?);
        let by_block = [n.clone(), blocks.clone()];
        let scales = cx.b.reshape(scales, &by_block)?;
        let zeros = match cx.opt(3) {
            None => None,
            Some(z) if cx.dtype(z) == DType::U8 => {
                let bytes = (blocks.clone() * Dim::from(bits)).ceil_div(&8.into());
                let z = cx.b.reshape(z, &[n.clone(), bytes])?;
                let z = unpacked(cx, z, bits)?;
                Some(cut(cx, z, &blocks)?)
            }
            Some(z) => Some(cx.b.reshape(z, &by_block)?),
        };
        let data = cx.b.reshape(data, &[n, blocks * bytes])?;
        Ok(Packed {
            bits,
            k,
            block,
            data,
            scales,
            zeros,
        })
    }
}

/// The product, each block of a column with its scale.
fn by_block(cx: &mut Cx, p: &Packed, a: Value) -> One {
    let size = p.block.as_const().and_then(|n| usize::try_from(n).ok());
    let op = BlockMatMul {
        bits: p.bits as usize,
        block: size.ok_or_else(|| Fail::invalid("the block size is no number"))?,
        out: None,
    };
    let mut args = vec![a, p.data, p.scales];
    args.extend(p.zeros);
    Ok(cx.b.one(op, &args)?)
}

/// The weight as it is meant, `f32[n, k]`, each input feature naming its block.
fn by_group(cx: &mut Cx, p: &Packed, groups: Value) -> One {
    let q = unpacked(cx, p.data, p.bits)?;
    let q = cut(cx, q, &p.k)?;
    let q = cx.b.cast(q, DType::F32)?;
    let s = cx.b.cast(p.scales, DType::F32)?;
    let s = cx.b.gather(s, groups, 1)?;
    let z = match p.zeros {
        None => cx.b.scalar(DType::F32, (1 << (p.bits - 1)) as f64)?,
        Some(z) => {
            let z = cx.b.cast(z, DType::F32)?;
            cx.b.gather(z, groups, 1)?
        }
    };
    let q = cx.b.sub(q, z)?;
    Ok(cx.b.mul(q, s)?)
}

/// Rows of a table, taken while they are packed and then read as numbers.
pub(crate) fn gather_block_quantized(cx: &mut Cx) -> Out {
    let (data, at, scales) = (cx.arg(0)?, cx.arg(1)?, cx.arg(2)?);
    let rank = cx.rank(data);
    let from = cx.axis(cx.int("gather_axis", 0)?, rank)?;
    let along = cx.axis(cx.int("quantize_axis", 1)?, rank)?;
    if from == along {
        return Err(Fail::form("a gather along the axis of the blocks"));
    }
    let bytes = cx.dtype(data) == DType::U8;
    if bytes && from != 0 {
        return Err(Fail::invalid("packed bytes are gathered along axis 0"));
    }
    let bits = if bytes { width(cx)? } else { 8 };
    let block = count(cx, "block_size").or_else(|_| match cx.has("block_size") {
        true => Err(Fail::form("blocks of a whole axis")),
        false => Ok(128.into()),
    })?;
    let q = cx.b.gather(data, at, from)?;
    let q = unpacked(cx, q, bits)?;
    let narrow = cx.dtype(scales);
    let q = cx.b.cast(q, DType::F32)?;
    // The axis of the blocks moves where the indices have not rank 1.
    let along = match along > from {
        true => along + cx.rank(at) - 1,
        false => along,
    };
    let extent = cx.extent(q, along)?;
    let s = cx.b.gather(scales, at, from)?;
    let s = cx.b.cast(s, DType::F32)?;
    let blocks = cx.extent(s, along)?;
    let z = match cx.opt(3) {
        None if !bytes => None,
        None => Some(cx.b.scalar(DType::F32, (1 << (bits - 1)) as f64)?),
        Some(z) => {
            let z = cx.b.gather(z, at, from)?;
            let z = unpacked(cx, z, bits)?;
            let z = match along + 1 == cx.rank(z) {
                true => cut(cx, z, &blocks)?,
                false => z,
            };
            let z = cx.b.cast(z, DType::F32)?;
            Some(repeated(cx, z, along, &block, &extent)?)
        }
    };
    let s = repeated(cx, s, along, &block, &extent)?;
    let q = match z {
        None => q,
        Some(z) => cx.b.sub(q, z)?,
    };
    let y = cx.b.mul(q, s)?;
    Ok(vec![cx.b.cast(y, narrow)?])
}

/// Each element of an axis `block` times, the axis cut to `extent`.
fn repeated(cx: &mut Cx, x: Value, axis: usize, block: &Dim, extent: &Dim) -> One {
    let shape = cx.shape(x);
    if axis >= shape.len() {
        return Err(Fail::invalid(
            "scales and zero points have the rank of the data",
        ));
    }
    let (mut column, mut wide, mut flat) = (shape.clone(), shape.clone(), shape.clone());
    column.insert(axis + 1, Dim::ONE);
    wide.insert(axis + 1, block.clone());
    flat[axis] = shape[axis].clone() * block.clone();
    let x = cx.b.reshape(x, &column)?;
    let x = cx.b.broadcast_to(x, &wide)?;
    let x = cx.b.reshape(x, &flat)?;
    match flat[axis].same(extent) {
        Tri::Yes => Ok(x),
        Tri::No | Tri::Unknown => Ok(cx.b.slice_axis(x, axis, Dim::ZERO, extent.clone())?),
    }
}
