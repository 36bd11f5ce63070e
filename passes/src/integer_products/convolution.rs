//! Convolutions of quantized values, computed in integers.
//!
//! `Σ (x − zx)·(w − zw) = Σ x·w − zx·(Σ w − k·zw) − zw·Σ x`, where the image is padded
//! with its own zero point, so that every tap counts and the first correction is one
//! number a filter. Filters become i8, which kernels multiply: unsigned ones, and their
//! zero points, move by 128. What is then left of a zero point of filters (mostly
//! nothing) takes sums of windows, which a filter of ones makes.

use super::{MOST_TERMS, Scales, Side, dequantize_of, is_byte, number, numbers, widened_side};
use kiln_ir::ops::contract::MatMul;
use kiln_ir::ops::conv::Conv;
use kiln_ir::{
    BinaryFn, Builder, DType, Dim, Globals, Graph, NodeId, Op, ReduceFn, Tensor, TypeError, Value,
};

/// `(x − zx) ∗ (w − zw) + bias` of bytes.
pub(super) struct Convolution {
    op: Conv,
    x: Side,
    w: Side,
    /// Added to the sums, an i32 of each filter.
    bias: Option<Value>,
}

/// What makes numbers of sums.
pub(super) struct Numbers {
    scales: Scales,
    /// Added to the numbers, an f32 of each filter.
    bias: Option<Value>,
}

/// A convolution of two dequantized values.
pub(super) fn dequantized(
    graph: &Graph,
    globals: &Globals,
    n: NodeId,
) -> Option<(Convolution, Numbers)> {
    let node = graph.node(n);
    let Op::Conv(op) = &node.op else { return None };
    if op.out.is_some() || graph.ty(node.results[0]).dtype != DType::F32 {
        return None;
    }
    let side = |i: usize| -> Option<(Side, Value)> {
        let (d, args) = dequantize_of(graph, node.args[i])?;
        let whole = graph.ty(args[1]).rank() == 0 || i == 1 && d.axis == 0;
        let fits = is_byte(graph.ty(args[0]).dtype) && whole;
        let side = Side {
            bytes: args[0],
            zero: args.get(2).copied(),
        };
        (fits && graph.ty(args[1]).dtype == DType::F32).then_some((side, args[1]))
    };
    let ((x, sx), (w, sw)) = (side(0)?, side(1)?);
    let given = node.args.get(2).copied();
    let exact = given.and_then(|b| bias_of_sums(graph, globals, b, [sx, sw]));
    let c = Convolution {
        op: Conv {
            out: Some(DType::I32),
            ..op.clone()
        },
        x,
        w,
        bias: exact,
    };
    let numbers = Numbers {
        scales: [sx, sw],
        bias: given.filter(|_| exact.is_none()),
    };
    (c.fits(graph) && c.around(graph, globals).is_some()).then_some((c, numbers))
}

/// The integers of a bias whose scale is the product of the others: they add to the sums.
fn bias_of_sums(graph: &Graph, globals: &Globals, bias: Value, scales: Scales) -> Option<Value> {
    let (d, args) = dequantize_of(graph, bias)?;
    let plain = args
        .get(2)
        .is_none_or(|&z| number(graph, globals, z) == Some(0.0));
    if graph.ty(args[0]).dtype != DType::I32 || d.axis != 0 || !plain {
        return None;
    }
    let read = |v: Value| numbers(graph, globals, v);
    let (own, [sx, sw]) = (read(args[1])?, [read(scales[0])?, read(scales[1])?]);
    let same = |i: usize| {
        let at = |v: &[f64]| {
            if v.len() == 1 {
                v[0]
            } else {
                v[i.min(v.len() - 1)]
            }
        };
        let product = at(&sx) * at(&sw);
        // The one was rounded to an f32, the other is exact.
        (at(&own) - product).abs() <= 1e-6 * product.abs()
    };
    let most = own.len().max(sw.len());
    let fits = !own.is_empty() && sx.len() == 1 && !sw.is_empty();
    (fits && (0..most).all(same)).then_some(args[0])
}

/// A convolution in i32 of bytes that were widened, with or without a zero point.
pub(super) fn widened(graph: &Graph, globals: &Globals, n: NodeId) -> Option<Convolution> {
    let node = graph.node(n);
    let Op::Conv(op) = &node.op else { return None };
    if op.out.is_some() || graph.ty(node.results[0]).dtype != DType::I32 {
        return None;
    }
    // One number, or one for each filter.
    let side = |v: Value, per_filter: bool| {
        widened_side(graph, v, &|x, zero| {
            let shape = graph.shape(zero);
            let leads = shape.len() == graph.ty(x).rank();
            let alone = (shape.iter().enumerate()).all(|(i, d)| i == 0 && leads || *d == Dim::ONE);
            shape.is_empty() || per_filter && leads && alone
        })
    };
    let c = Convolution {
        op: Conv {
            out: Some(DType::I32),
            ..op.clone()
        },
        x: side(node.args[0], false)?,
        w: side(node.args[1], true)?,
        bias: node.args.get(2).copied(),
    };
    (c.fits(graph) && c.around(graph, globals).is_some()).then_some(c)
}

/// What the image is padded with.
enum Around {
    /// Nothing, or 0.
    Zero,
    /// A scalar of its type.
    Value(Value),
    /// The same, as a number.
    Number(f64),
}

impl Convolution {
    /// Whether sums surely fit.
    fn fits(&self, graph: &Graph) -> bool {
        self.terms(graph).is_some_and(|k| k <= MOST_TERMS)
    }

    /// Products of a sum.
    fn terms(&self, graph: &Graph) -> Option<i64> {
        let extents = graph.shape(self.w.bytes)[1..].iter().map(Dim::as_const);
        extents.into_iter().try_fold(1i64, |n, d| n.checked_mul(d?))
    }

    fn around(&self, graph: &Graph, globals: &Globals) -> Option<Around> {
        let zero = |d: &Dim| *d == Dim::ZERO;
        let Some(z) = self.x.zero else {
            return Some(Around::Zero);
        };
        if self.op.lo.iter().chain(&self.op.hi).all(zero) {
            return Some(Around::Zero);
        }
        let dtype = graph.ty(self.x.bytes).dtype;
        let scalar = |v: Value| {
            let ty = graph.ty(v);
            (ty.dtype == dtype && ty.rank() == 0).then_some(v)
        };
        let held = |x: &f64| match dtype {
            DType::U8 => (0.0..=255.0).contains(x),
            _ => (-128.0..=127.0).contains(x),
        };
        match number(graph, globals, z) {
            Some(0.0) => Some(Around::Zero),
            Some(x) => held(&x).then_some(Around::Number(x)),
            None => match graph.producer_op(z) {
                Some((Op::Cast(_), args)) => scalar(args[0]).map(Around::Value),
                _ => scalar(z).map(Around::Value),
            },
        }
    }

    /// The exact sums, in i32.
    pub(super) fn sums(&self, b: &mut Builder, globals: &Globals) -> Result<Value, TypeError> {
        let (w, zw) = self.signed_filters(b, globals)?;
        let mut args = vec![self.x.bytes, w];
        match self.around(b.graph, globals) {
            Some(Around::Value(v)) => args.push(v),
            Some(Around::Number(x)) => {
                let dtype = b.ty(self.x.bytes).dtype;
                args.push(b.scalar(dtype, x)?);
            }
            Some(Around::Zero) | None => {}
        }
        let mut y = b.one(self.op.clone(), &args)?;
        // What is known of each filter comes together first.
        let mut each: Option<Value> = match self.bias {
            Some(bias) => Some(self.column(b, bias)?),
            None => None,
        };
        let known = |z: &Value| number(b.graph, globals, *z) != Some(0.0);
        if let Some(zx) = self.x.zero.filter(known) {
            let zx = b.cast(zx, DType::I32)?;
            let mut off = self.filter_sums(b, w)?;
            if let Some(zw) = zw {
                let k = self.terms(b.graph).unwrap_or(0);
                let k = b.constant(Tensor::scalar_i64(DType::I32, k))?;
                let all = b.mul(k, zw)?;
                off = b.sub(off, all)?;
            }
            let off = b.mul(zx, off)?;
            each = Some(match each {
                Some(bias) => b.sub(bias, off)?,
                None => {
                    let none = b.scalar(DType::I32, 0.0)?;
                    b.sub(none, off)?
                }
            });
        }
        if let Some(each) = each {
            y = b.add(y, each)?;
        }
        if let Some(zw) = zw {
            args[1] = self.ones(b)?;
            let windows = b.one(self.op.clone(), &args)?;
            let off = b.mul(zw, windows)?;
            y = b.sub(y, off)?;
        }
        Ok(y)
    }

    /// The sums as numbers.
    pub(super) fn numbers(
        &self,
        b: &mut Builder,
        globals: &Globals,
        n: &Numbers,
    ) -> Result<Value, TypeError> {
        let sums = self.sums(b, globals)?;
        let sums = b.cast(sums, DType::F32)?;
        let scale = match b.ty(n.scales[1]).rank() {
            0 => n.scales[1],
            _ => self.column(b, n.scales[1])?,
        };
        let scale = b.mul(n.scales[0], scale)?;
        let y = b.mul(sums, scale)?;
        match n.bias {
            Some(bias) => {
                let bias = self.column(b, bias)?;
                b.add(y, bias)
            }
            None => Ok(y),
        }
    }

    /// One value of each filter, against the result: `[m, 1, ..]`.
    fn column(&self, b: &mut Builder, v: Value) -> Result<Value, TypeError> {
        let mut shape = vec![Dim::ONE; self.op.strides.len() + 1];
        shape[0] = b.shape(v)[0].clone();
        b.reshape(v, &shape)
    }

    /// Filters in i8, and their zero points in i32 as the result sees them, if any is
    /// left.
    fn signed_filters(
        &self,
        b: &mut Builder,
        globals: &Globals,
    ) -> Result<(Value, Option<Value>), TypeError> {
        let (mut w, unsigned) = (self.w.bytes, b.ty(self.w.bytes).dtype == DType::U8);
        if unsigned {
            let top = b.scalar(DType::U8, 128.0)?;
            w = b.binary(BinaryFn::Xor, w, top)?;
            w = b.cast(w, DType::I8)?;
        }
        let by = if unsigned { 128.0 } else { 0.0 };
        let left = match self.w.zero {
            Some(z) => number(b.graph, globals, z).map(|z| z - by),
            None => Some(-by),
        };
        let zero = match (left, self.w.zero) {
            (Some(0.0), _) => None,
            (Some(z), _) => Some(b.scalar(DType::I32, z)?),
            (None, None) => None,
            (None, Some(z)) => {
                let mut z = b.cast(z, DType::I32)?;
                let rank = b.ty(z).rank();
                if rank > 0 {
                    z = self.column(b, z)?;
                }
                let by = b.scalar(DType::I32, by)?;
                Some(b.sub(z, by)?)
            }
        };
        Ok((w, zero))
    }

    /// `Σ w` of each filter, `[m, 1, ..]`: of a weight as a product, which folds.
    fn filter_sums(&self, b: &mut Builder, w: Value) -> Result<Value, TypeError> {
        let filters = b.shape(w)[0].clone();
        let k = self.terms(b.graph).unwrap_or(0);
        let flat = b.reshape(w, &[filters, k.into()])?;
        let constant = matches!(
            b.graph.producer_op(self.w.bytes),
            Some((Op::Global(_) | Op::Constant(_), _))
        );
        let sums = match constant {
            true => {
                let ones = Tensor::from_i64(DType::U8, [k as usize, 1], &vec![1; k as usize]);
                let ones = b.constant(ones.map_err(|e| TypeError(e.to_string()))?)?;
                let product = MatMul {
                    transpose_a: false,
                    transpose_b: false,
                    out: Some(DType::I32),
                    tf32: false,
                };
                b.one(product, &[flat, ones])?
            }
            false => {
                let wide = b.cast(flat, DType::I32)?;
                b.reduce(ReduceFn::Sum, wide, &[1], false)?
            }
        };
        self.column(b, sums)
    }

    /// Filters of ones: one, or one for each filter of groups.
    fn ones(&self, b: &mut Builder) -> Result<Value, TypeError> {
        let shape: Vec<Dim> = b.shape(self.w.bytes);
        let mut extents = vec![];
        for (i, d) in shape.iter().enumerate() {
            let d = d.as_const().filter(|&d| d > 0);
            let d = d.ok_or_else(|| TypeError("filters have known extents".into()))?;
            extents.push(if i == 0 && self.op.groups == 1 {
                1
            } else {
                d as usize
            });
        }
        let count: i64 = extents.iter().map(|&d| d as i64).product();
        let ones = Tensor::from_i64(DType::I8, extents, &vec![1; count as usize]);
        b.constant(ones.map_err(|e| TypeError(e.to_string()))?)
    }
}
