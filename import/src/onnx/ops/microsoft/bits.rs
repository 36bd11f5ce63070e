//! Matrices and tables whose elements take a few bits, quantized in blocks. They
//! stay packed in the model: the graph takes them apart.

use crate::onnx::cx::{Cx, Fail, Out};
use kiln_ir::graph::Value;
use kiln_ir::ops::layout::{Pad, PadMode};
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
    let p = Packed::read(cx)?;
    let (a, w) = match cx.opt(4) {
        Some(groups) => (a, by_group(cx, &p, groups)?),
        None => (spread(cx, &p, a)?, by_block(cx, &p)?),
    };
    let w = cx.b.cast(w, cx.dtype(a))?;
    let y = cx.b.matmul_t(a, w, false, true)?;
    match cx.opt(5) {
        None => Ok(vec![y]),
        Some(bias) => Ok(vec![cx.b.add(y, bias)?]),
    }
}

/// A packed weight and what its elements mean.
struct Packed {
    bits: i64,
    n: Dim,
    k: Dim,
    blocks: Dim,
    /// Bytes of one block.
    bytes: Dim,
    /// `u8`, as it is stored.
    data: Value,
    /// `f32[n, blocks]`.
    scales: Value,
    /// `f32[n, blocks]`.
    zeros: Value,
}

impl Packed {
    fn read(cx: &mut Cx) -> Result<Packed, Fail> {
        let bits = width(cx)?;
        let (n, k, block) = (count(cx, "N")?, count(cx, "K")?, count(cx, "block_size")?);
        let blocks = k.ceil_div(&block);
        let bytes = (block * Dim::from(bits)).div_exact(&8.into());
        let bytes = bytes.ok_or_else(|| Fail::invalid("a block is no whole number of bytes"))?;
        let (data, scales) = (cx.arg(1)?, cx.arg(2)?);
        let by_block = [n.clone(), blocks.clone()];
        let scales = cx.b.reshape(scales, &by_block)?;
        let zeros = match cx.opt(3) {
            None => cx.b.scalar(DType::F32, (1 << (bits - 1)) as f64)?,
            Some(z) if cx.dtype(z) == DType::U8 => {
                let bytes = (blocks.clone() * Dim::from(bits)).ceil_div(&8.into());
                let z = cx.b.reshape(z, &[n.clone(), bytes])?;
                let z = unpacked(cx, z, bits)?;
                cut(cx, z, &blocks)?
            }
            Some(z) => cx.b.reshape(z, &by_block)?,
        };
        let zeros = cx.b.cast(zeros, DType::F32)?;
        Ok(Packed {
            bits,
            zeros: cx.b.broadcast_to(zeros, &by_block)?,
            scales: cx.b.cast(scales, DType::F32)?,
            n,
            k,
            blocks,
            bytes,
            data,
        })
    }

    /// Elements in a byte.
    fn each(&self) -> i64 {
        8 / self.bits
    }
}

/// The weight with the first elements of all bytes in front, then the second ones,
/// and so on: `f32[n, each·blocks·bytes]`. So nothing is woven, and the kernel that
/// reads the bytes walks them as they lie.
fn by_block(cx: &mut Cx, p: &Packed) -> One {
    let each = p.each();
    let stored = [p.n.clone(), Dim::ONE, p.blocks.clone(), p.bytes.clone()];
    let mut q = cx.b.reshape(p.data, &stored)?;
    if each > 1 {
        let shifts: Vec<i64> = (0..each).map(|i| i * p.bits).collect();
        let shifts = Tensor::from_i64(DType::U8, vec![shifts.len(), 1, 1], &shifts)
            .map_err(|e| Fail::invalid(e.to_string()))?;
        let shifts = cx.b.constant(shifts)?;
        q = cx.b.binary(BinaryFn::Shr, q, shifts)?;
        let mask = cx.like(q, ((1 << p.bits) - 1) as f64)?;
        q = cx.b.binary(BinaryFn::And, q, mask)?;
    }
    let q = cx.b.cast(q, DType::F32)?;
    let column = [p.n.clone(), Dim::ONE, p.blocks.clone(), Dim::ONE];
    let (s, z) = (
        cx.b.reshape(p.scales, &column)?,
        cx.b.reshape(p.zeros, &column)?,
    );
    let q = cx.b.sub(q, z)?;
    let w = cx.b.mul(q, s)?;
    let flat = Dim::from(each) * p.blocks.clone() * p.bytes.clone();
    Ok(cx.b.reshape(w, &[p.n.clone(), flat])?)
}

/// The left matrix in the order of [`by_block`], zeros behind its end.
fn spread(cx: &mut Cx, p: &Packed, a: Value) -> One {
    let (rank, each) = (cx.rank(a), p.each());
    let Some(last) = rank.checked_sub(1) else {
        return Err(Fail::invalid("a scalar is no matrix"));
    };
    let whole = Dim::from(each) * p.blocks.clone() * p.bytes.clone();
    let mut a = a;
    let behind = whole.clone() - p.k.clone();
    if behind != Dim::ZERO {
        let mut hi = vec![Dim::ZERO; rank];
        hi[last] = behind;
        let op = Pad {
            lo: vec![Dim::ZERO; rank],
            hi,
            mode: PadMode::Constant,
        };
        let zero = cx.like(a, 0.0)?;
        a = cx.b.one(op, &[a, zero])?;
    }
    if each == 1 {
        return Ok(a);
    }
    let mut shape = cx.shape(a);
    shape[last] = p.blocks.clone() * p.bytes.clone();
    shape.push(each.into());
    let a = cx.b.reshape(a, &shape)?;
    let mut perm: Vec<usize> = (0..=rank).collect();
    perm.swap(last, rank);
    let a = cx.b.transpose(a, &perm)?;
    shape.truncate(last);
    shape.push(whole);
    Ok(cx.b.reshape(a, &shape)?)
}

/// The weight as it is meant, `f32[n, k]`, each input feature naming its block.
fn by_group(cx: &mut Cx, p: &Packed, groups: Value) -> One {
    let flat = [p.n.clone(), p.blocks.clone() * p.bytes.clone()];
    let q = cx.b.reshape(p.data, &flat)?;
    let q = unpacked(cx, q, p.bits)?;
    let q = cut(cx, q, &p.k)?;
    let q = cx.b.cast(q, DType::F32)?;
    let (s, z) = (
        cx.b.gather(p.scales, groups, 1)?,
        cx.b.gather(p.zeros, groups, 1)?,
    );
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
