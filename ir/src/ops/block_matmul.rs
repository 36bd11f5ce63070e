//! Products with weights of a few bits, quantized in blocks.

use crate::graph::Value;
use crate::op::*;
use crate::ops::composite::{Composite, composite_parse, float, grad_by_expansion, may_be};
use crate::ops::layout::{Pad, PadMode};
use crate::{BinaryFn, Builder, DType, Dim, Tensor, TensorType};

/// `block_matmul(x: f[.., m, k], q: u8[n, blocks·bytes], scales: f[n, blocks], zeros?:
/// u8[n, blocks] or f[n, blocks]) -> f[.., m, n]`: `Σ_k x·w` with the weight `w = (q −
/// zero)·scale`, rounded to `x`'s type. `q` holds `bits` bits for each element, low bits of
/// a byte first, blocks of `block` elements along k, the last one filled up; without zeros
/// they are `2^(bits − 1)`, and of zeros in bytes the low `bits` bits count. All as ONNX
/// Runtime's operator MatMulNBits has it.
#[derive(Clone, Debug, PartialEq)]
pub struct BlockMatMul {
    /// Bits of an element of `q`: 2, 4 or 8.
    pub bits: usize,
    /// Elements of a block, a whole number of bytes.
    pub block: usize,
    /// The result's type, if not `x`'s; sums are in f32 or wider.
    pub out: Option<DType>,
}

composite_parse!(BlockMatMul);

impl BlockMatMul {
    /// Elements in a byte.
    fn each(&self) -> usize {
        8 / self.bits
    }

    /// The weight with the first elements of all bytes in front, then the second ones,
    /// and so on: `f32[n, each·blocks·bytes]`. So nothing is woven, and the kernel that
    /// reads the bytes walks them as they lie.
    fn weight(&self, b: &mut Builder, args: &[Value]) -> Result<Value, TypeError> {
        let (n, blocks) = (b.shape(args[2])[0].clone(), b.shape(args[2])[1].clone());
        let bytes = Dim::from(self.block * self.bits / 8);
        let stored = [n.clone(), Dim::ONE, blocks.clone(), bytes.clone()];
        let mut q = b.reshape(args[1], &stored)?;
        if self.each() > 1 {
            let shifts: Vec<i64> = (0..self.each()).map(|i| (i * self.bits) as i64).collect();
            let shifts = Tensor::from_i64(DType::U8, vec![shifts.len(), 1, 1], &shifts)
                .map_err(|e| TypeError(e.to_string()))?;
            let shifts = b.constant(shifts)?;
            q = b.binary(BinaryFn::Shr, q, shifts)?;
            let mask = b.scalar(DType::U8, f64::from((1u32 << self.bits) - 1))?;
            q = b.binary(BinaryFn::And, q, mask)?;
        }
        let q = b.cast(q, DType::F32)?;
        let column = [n.clone(), Dim::ONE, blocks.clone(), Dim::ONE];
        let scales = b.cast(args[2], DType::F32)?;
        let scales = b.reshape(scales, &column)?;
        let zeros = match args.get(3) {
            None => b.scalar(DType::F32, f64::from(1u32 << (self.bits - 1)))?,
            Some(&z) => {
                let mut z = z;
                if b.ty(z).dtype == DType::U8 && self.bits < 8 {
                    let mask = b.scalar(DType::U8, f64::from((1u32 << self.bits) - 1))?;
                    z = b.binary(BinaryFn::And, z, mask)?;
                }
                let z = b.cast(z, DType::F32)?;
                b.reshape(z, &column)?
            }
        };
        let q = b.sub(q, zeros)?;
        let w = b.mul(q, scales)?;
        b.reshape(w, &[n, Dim::from(self.each()) * blocks * bytes])
    }

    /// `x` in the order of [`weight`](Self::weight), zeros behind its end.
    fn spread(&self, b: &mut Builder, x: Value, blocks: &Dim) -> Result<Value, TypeError> {
        let (shape, each) = (b.shape(x), self.each());
        let (rank, last) = (shape.len(), shape.len() - 1);
        let whole = blocks.clone() * Dim::from(self.block);
        let mut x = x;
        let behind = whole.clone() - shape[last].clone();
        if behind != Dim::ZERO {
            let mut hi = vec![Dim::ZERO; rank];
            hi[last] = behind;
            let op = Pad {
                lo: vec![Dim::ZERO; rank],
                hi,
                mode: PadMode::Constant,
            };
            let dtype = b.ty(x).dtype;
            let zero = b.scalar(dtype, 0.0)?;
            x = b.one(op, &[x, zero])?;
        }
        if each == 1 {
            return Ok(x);
        }
        let mut woven = shape;
        woven[last] = blocks.clone() * Dim::from(self.block / each);
        woven.push(each.into());
        let x = b.reshape(x, &woven)?;
        let mut perm: Vec<usize> = (0..=rank).collect();
        perm.swap(last, rank);
        let x = b.transpose(x, &perm)?;
        woven.truncate(last);
        woven.push(whole);
        b.reshape(x, &woven)
    }
}

impl Composite for BlockMatMul {
    const MNEMONIC: &'static str = "block_matmul";
    const DONATES: &'static [usize] = &[];

    fn check(&self, args: &[&TensorType]) -> Result<(), TypeError> {
        if args.len() != 3 && args.len() != 4 {
            return type_err(format!("takes 3 or 4 arguments, not {}", args.len()));
        }
        if !matches!(self.bits, 2 | 4 | 8) {
            return type_err(format!("there are no elements of {} bits", self.bits));
        }
        let bits = self.block.checked_mul(self.bits).filter(|&n| n > 0);
        if !bits.is_some_and(|n| n.is_multiple_of(8)) {
            return type_err(format!(
                "a block of {} elements is no whole number of bytes",
                self.block
            ));
        }
        let (x, q, scales) = (args[0], args[1], args[2]);
        float(x, "the left side")?;
        float(scales, "the scale")?;
        let fits = x.rank() >= 2 && q.rank() == 2 && q.dtype == DType::U8 && scales.rank() == 2;
        if !fits {
            return type_err(format!("{q} with scales of {scales} does not go with {x}"));
        }
        let blocks = &scales.shape[1];
        may_be(
            &q.shape[0],
            &scales.shape[0],
            "the weight's and the scales' columns",
        )?;
        let bytes = blocks.clone() * Dim::from(self.block * self.bits / 8);
        may_be(
            &q.shape[1],
            &bytes,
            "the bytes of a column and of its blocks",
        )?;
        let want = x.shape[x.rank() - 1].ceil_div(&self.block.into());
        may_be(
            blocks,
            &want,
            "the scales' blocks and those of the products",
        )?;
        if let Some(out) = self.out {
            float(&TensorType::scalar(out), "the result")?;
        }
        match args.get(3) {
            None => Ok(()),
            Some(z) if z.rank() != 2 => type_err(format!("zeros of {z} are no matrix")),
            Some(z) => {
                if z.dtype != DType::U8 {
                    float(z, "the zero")?;
                }
                may_be(
                    &z.shape[0],
                    &scales.shape[0],
                    "the zeros' and the scales' columns",
                )?;
                may_be(&z.shape[1], blocks, "the zeros' and the scales' blocks")
            }
        }
    }

    fn expand(&self, b: &mut Builder, args: &[Value]) -> Result<Vec<Value>, TypeError> {
        let blocks = b.shape(args[2])[1].clone();
        let x = self.spread(b, args[0], &blocks)?;
        let w = self.weight(b, args)?;
        let dtype = b.ty(x).dtype;
        let w = b.cast(w, dtype)?;
        let op = crate::ops::contract::MatMul {
            transpose_a: false,
            transpose_b: true,
            out: self.out,
            tf32: false,
        };
        Ok(vec![b.one(op, &[x, w])?])
    }

    grad_by_expansion!();

    fn attrs(&self) -> Attrs {
        let attrs = Attrs::none()
            .with("bits", Attr::Int(self.bits as i64))
            .with("block", Attr::Int(self.block as i64));
        match self.out {
            Some(d) => attrs.with("out", Attr::Name(d.name().into())),
            None => attrs,
        }
    }

    fn from_attrs(a: &Attrs) -> Result<Self, TypeError> {
        Ok(BlockMatMul {
            bits: a.index("bits")?,
            block: a.index("block")?,
            out: match a.get("out") {
                Ok(_) => Some(a.dtype("out")?),
                Err(_) => None,
            },
        })
    }
}
