//! The rules of quantize and dequantize.

use crate::builder::Builder;
use crate::graph::Value;
use crate::op::*;
use crate::ops::composite::*;
use crate::ops::util::check_axis;
use crate::{DType, Dim, Kind, TensorType, Tri, UnaryFn};

/// The shape of scales and zero points against `x`.
fn check_scale(
    x: &TensorType,
    scale: &TensorType,
    axis: usize,
    block: usize,
) -> Result<(), TypeError> {
    let wrong = || {
        type_err(format!(
            "a scale of {scale} does not go with {x}, axis {axis}, blocks of {block}"
        ))
    };
    match (block, scale.rank()) {
        (0, 0) => Ok(()),
        (0, 1) => {
            check_axis(axis, x.rank())?;
            may_be(
                &scale.shape[0],
                &x.shape[axis],
                "the extents of the scale and of its axis",
            )
        }
        (n, rank) if n > 0 && rank == x.rank() => {
            check_axis(axis, rank)?;
            for (i, (s, d)) in scale.shape.iter().zip(&x.shape).enumerate() {
                let want = if i == axis {
                    d.ceil_div(&n.into())
                } else {
                    d.clone()
                };
                may_be(s, &want, "the extents of the scale and of the blocks")?;
            }
            Ok(())
        }
        _ => wrong(),
    }
}

fn check_quant(
    args: &[&TensorType],
    scale: &TensorType,
    axis: usize,
    block: usize,
) -> Result<(), TypeError> {
    check_scale(args[0], scale, axis, block)?;
    match args.get(2) {
        Some(z) if z.rank() != scale.rank() => type_err(format!(
            "a zero point of {z} does not go with a scale of {scale}"
        )),
        Some(z)
            if z.shape
                .iter()
                .zip(&scale.shape)
                .any(|(a, b)| a.same(b) == Tri::No) =>
        {
            type_err(format!(
                "a zero point of {z} does not go with a scale of {scale}"
            ))
        }
        _ => Ok(()),
    }
}

/// A scale or zero point in a shape that broadcasts to `x`'s.
fn spread(
    b: &mut Builder,
    s: Value,
    x: Value,
    axis: usize,
    block: usize,
) -> Result<Value, TypeError> {
    let (own, shape) = (b.shape(s), b.shape(x));
    if own.is_empty() {
        return Ok(s);
    }
    if block == 0 {
        let mut to = vec![Dim::ONE; shape.len() - axis];
        to[0] = own[0].clone();
        return b.reshape(s, &to);
    }
    // [.., blocks, ..] to [.., blocks, block, ..] to [.., blocks·block, ..], cut to size.
    let mut column = own.clone();
    column.insert(axis + 1, Dim::ONE);
    let mut repeated = own.clone();
    repeated.insert(axis + 1, block.into());
    let mut flat = own.clone();
    flat[axis] = own[axis].clone() * Dim::from(block);
    let s = b.reshape(s, &column)?;
    let s = b.broadcast_to(s, &repeated)?;
    let s = b.reshape(s, &flat)?;
    match flat[axis].same(&shape[axis]) {
        Tri::Yes => Ok(s),
        Tri::No | Tri::Unknown => b.slice_axis(s, axis, Dim::ZERO, shape[axis].clone()),
    }
}

/// Whether a value is a literal 0.
fn is_zero(b: &Builder, v: Value) -> bool {
    match b.graph.producer_op(v) {
        Some((Op::Constant(c), _)) => c.value.len() == 1 && c.value.get_f64(0) == 0.0,
        _ => false,
    }
}

impl Composite for Dequantize {
    const MNEMONIC: &'static str = "dequantize";
    const DONATES: &'static [usize] = &[];

    fn check(&self, args: &[&TensorType]) -> Result<(), TypeError> {
        if args.len() != 2 && args.len() != 3 {
            return type_err(format!("takes 2 or 3 arguments, not {}", args.len()));
        }
        float(args[1], "the scale")?;
        if !matches!(args[0].dtype.kind(), Kind::Int | Kind::Uint | Kind::Float) {
            return type_err(format!("needs numbers, not {}", args[0]));
        }
        if let Some(z) = args.get(2).filter(|z| z.dtype != args[0].dtype) {
            return type_err(format!(
                "the zero point is {}, but the argument {}",
                z.dtype, args[0].dtype
            ));
        }
        check_quant(args, args[1], self.axis, self.block)
    }

    fn expand(&self, b: &mut Builder, args: &[Value]) -> Result<Vec<Value>, TypeError> {
        let x = args[0];
        let dtype = b.ty(args[1]).dtype;
        let scale = spread(b, args[1], x, self.axis, self.block)?;
        let scale = widen(b, scale)?;
        let compute = b.ty(scale).dtype;
        // The difference of integers is exact in i32, and in f32 only below 2^24.
        let difference = if b.ty(x).dtype.is_int() {
            DType::I32
        } else {
            compute
        };
        let mut y = b.cast(x, difference)?;
        if let Some(&zero) = args.get(2) {
            let zero = spread(b, zero, x, self.axis, self.block)?;
            let zero = b.cast(zero, difference)?;
            y = b.sub(y, zero)?;
        }
        let y = b.cast(y, compute)?;
        let y = b.mul(y, scale)?;
        Ok(vec![b.cast(y, dtype)?])
    }

    grad_by_expansion!();

    fn attrs(&self) -> Attrs {
        Attrs::none()
            .with("axis", Attr::Int(self.axis as i64))
            .with("block", Attr::Int(self.block as i64))
    }

    fn from_attrs(a: &Attrs) -> Result<Self, TypeError> {
        Ok(Dequantize {
            axis: a.index("axis")?,
            block: a.index("block")?,
        })
    }
}

impl Composite for Quantize {
    const MNEMONIC: &'static str = "quantize";
    const DONATES: &'static [usize] = &[];

    fn check(&self, args: &[&TensorType]) -> Result<(), TypeError> {
        if args.len() != 2 && args.len() != 3 {
            return type_err(format!("takes 2 or 3 arguments, not {}", args.len()));
        }
        float(args[0], "the argument")?;
        float(args[1], "the scale")?;
        let fits = self.to.bits() <= if self.to.is_int() { 32 } else { 8 };
        if !fits || !(self.to.is_int() || self.to.is_float()) {
            return type_err(format!(
                "quantizes to integers of at most 32 bits or small floats, not {}",
                self.to
            ));
        }
        if let Some(z) = args.get(2).filter(|z| z.dtype != self.to) {
            return type_err(format!(
                "the zero point is {}, but the result {}",
                z.dtype, self.to
            ));
        }
        check_quant(args, args[1], self.axis, self.block)
    }

    fn expand(&self, b: &mut Builder, args: &[Value]) -> Result<Vec<Value>, TypeError> {
        let scale = spread(b, args[1], args[0], self.axis, self.block)?;
        let x = widen(b, args[0])?;
        let compute = b.ty(x).dtype;
        let scale = b.cast(scale, compute)?;
        let y = b.div(x, scale)?;
        if self.to.is_float() {
            return Ok(vec![b.cast(y, self.to)?]);
        }
        let mut y = b.unary(UnaryFn::Round, y)?;
        // A zero point of 0 changes nothing: -0.0 becomes the same integer.
        if let Some(&zero) = args.get(2).filter(|&&z| !is_zero(b, z)) {
            let zero = spread(b, zero, args[0], self.axis, self.block)?;
            let zero = b.cast(zero, compute)?;
            y = b.add(y, zero)?;
        }
        // Casting saturates.
        Ok(vec![b.cast(y, self.to)?])
    }

    grad_by_expansion!();

    fn attrs(&self) -> Attrs {
        Attrs::none()
            .with("axis", Attr::Int(self.axis as i64))
            .with("block", Attr::Int(self.block as i64))
            .with("to", Attr::Name(self.to.name().into()))
    }

    fn from_attrs(a: &Attrs) -> Result<Self, TypeError> {
        Ok(Quantize {
            axis: a.index("axis")?,
            block: a.index("block")?,
            to: a.dtype("to")?,
        })
    }
}
