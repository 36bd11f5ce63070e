//! The rules of layer norm and root-mean-square norm. Both are computed in f32
//! (f64 for f64), the variance in two passes: the mean of squared differences
//! from the mean.

use crate::builder::Builder;
use crate::graph::Value;
use crate::op::*;
use crate::ops::composite::*;
use crate::ops::util::{check_axis, unbroadcast};
use crate::{DType, Dim, ReduceFn, TensorType, UnaryFn};

/// `x`, then vectors with the shape of its axes from `axis` on.
fn check_norm(args: &[&TensorType], axis: usize, n: usize) -> Result<(), TypeError> {
    count(args, n)?;
    let x = args[0];
    float(x, "the argument")?;
    check_axis(axis, x.rank())?;
    for (i, p) in args[1..].iter().enumerate() {
        let what = if i == 0 { "the scale" } else { "the bias" };
        float(p, what)?;
        if p.rank() != x.rank() - axis {
            return type_err(format!(
                "{what} is {p}, but {} axes of {x} are normalised",
                x.rank() - axis
            ));
        }
        for (d, e) in p.shape.iter().zip(&x.shape[axis..]) {
            may_be(
                d,
                e,
                &format!("the extents of {what} and of the normalised axes"),
            )?;
        }
    }
    Ok(())
}

/// Axes from `axis` on.
fn axes_from(b: &Builder, x: Value, axis: usize) -> Vec<usize> {
    (axis..b.graph.ty(x).rank()).collect()
}

/// 1 / sqrt(mean of squares + eps).
fn inverse_rms(b: &mut Builder, x: Value, axes: &[usize], eps: f64) -> Result<Value, TypeError> {
    let squares = b.mul(x, x)?;
    let mean = b.reduce(ReduceFn::Mean, squares, axes, true)?;
    let eps = b.scalar_like(x, eps)?;
    let sum = b.add(mean, eps)?;
    b.unary(UnaryFn::Rsqrt, sum)
}

/// Differences from the mean, and the factor that normalises them.
fn center(
    b: &mut Builder,
    x: Value,
    axes: &[usize],
    eps: f64,
) -> Result<(Value, Value), TypeError> {
    let mean = b.reduce(ReduceFn::Mean, x, axes, true)?;
    let c = b.sub(x, mean)?;
    let factor = inverse_rms(b, c, axes, eps)?;
    Ok((c, factor))
}

impl LayerNorm {
    fn compute_dtype(b: &Builder, args: &[Value]) -> DType {
        wide(b.graph.ty(args[0]).dtype)
    }
}

impl Composite for LayerNorm {
    const MNEMONIC: &'static str = "layer_norm";
    const DONATES: &'static [usize] = &[];

    fn check(&self, args: &[&TensorType]) -> Result<(), TypeError> {
        check_norm(args, self.axis, 3)
    }

    fn expand(&self, b: &mut Builder, args: &[Value]) -> Result<Vec<Value>, TypeError> {
        let (dtype, compute) = (b.ty(args[0]).dtype, LayerNorm::compute_dtype(b, args));
        let x = b.cast(args[0], compute)?;
        let (scale, bias) = (b.cast(args[1], compute)?, b.cast(args[2], compute)?);
        let axes = axes_from(b, x, self.axis);
        let (c, factor) = center(b, x, &axes, self.eps)?;
        let y = b.mul(c, factor)?;
        let y = b.mul(y, scale)?;
        let y = b.add(y, bias)?;
        Ok(vec![b.cast(y, dtype)?])
    }

    /// With `n` the normalised argument and `g = d·scale`:
    /// `dx = factor · (g − mean g − n · mean(g·n))`.
    fn grad(&self, b: &mut Builder, io: Io<'_>, d: &[Value]) -> Result<Grad, TypeError> {
        let compute = LayerNorm::compute_dtype(b, io.args);
        let x = b.cast(io.args[0], compute)?;
        let (scale, d) = (b.cast(io.args[1], compute)?, b.cast(d[0], compute)?);
        let axes = axes_from(b, x, self.axis);
        let (c, factor) = center(b, x, &axes, self.eps)?;
        let n = b.mul(c, factor)?;
        let g = b.mul(d, scale)?;
        let mean_g = b.reduce(ReduceFn::Mean, g, &axes, true)?;
        let gn = b.mul(g, n)?;
        let mean_gn = b.reduce(ReduceFn::Mean, gn, &axes, true)?;
        let along = b.mul(n, mean_gn)?;
        let dx = b.sub(g, mean_g)?;
        let dx = b.sub(dx, along)?;
        let dx = b.mul(dx, factor)?;
        let dn = b.mul(d, n)?;
        let mut grads = vec![];
        for (v, arg) in [dx, dn, d].into_iter().zip(io.args) {
            let (shape, dtype): (Vec<Dim>, DType) = (b.shape(*arg), b.ty(*arg).dtype);
            let v = sum_leading(b, v, &shape)?;
            grads.push(Some(b.cast(v, dtype)?));
        }
        Ok(Grad::Args(grads))
    }

    fn attrs(&self) -> Attrs {
        Attrs::none()
            .with("axis", Attr::Int(self.axis as i64))
            .with("eps", Attr::Float(self.eps))
    }

    fn from_attrs(a: &Attrs) -> Result<Self, TypeError> {
        Ok(LayerNorm {
            axis: a.index("axis")?,
            eps: a.float("eps")?,
        })
    }
}

fn sum_leading(b: &mut Builder, v: Value, to: &[Dim]) -> Result<Value, TypeError> {
    if b.shape(v).len() == to.len() {
        Ok(v)
    } else {
        unbroadcast(b, v, to)
    }
}

impl Composite for RmsNorm {
    const MNEMONIC: &'static str = "rms_norm";
    const DONATES: &'static [usize] = &[];

    fn check(&self, args: &[&TensorType]) -> Result<(), TypeError> {
        check_norm(args, self.axis, 2)
    }

    fn expand(&self, b: &mut Builder, args: &[Value]) -> Result<Vec<Value>, TypeError> {
        let dtype = b.ty(args[0]).dtype;
        let x = widen(b, args[0])?;
        let compute = b.ty(x).dtype;
        let scale = b.cast(args[1], compute)?;
        let axes = axes_from(b, x, self.axis);
        let factor = inverse_rms(b, x, &axes, self.eps)?;
        let y = b.mul(x, factor)?;
        let y = b.mul(y, scale)?;
        Ok(vec![b.cast(y, dtype)?])
    }

    grad_by_expansion!();

    fn attrs(&self) -> Attrs {
        Attrs::none()
            .with("axis", Attr::Int(self.axis as i64))
            .with("eps", Attr::Float(self.eps))
    }

    fn from_attrs(a: &Attrs) -> Result<Self, TypeError> {
        Ok(RmsNorm {
            axis: a.index("axis")?,
            eps: a.float("eps")?,
        })
    }
}
