//! Elementwise ops. Arguments broadcast against each other as in NumPy.

use crate::{BinaryFn, CompareFn, DType, UnaryFn};

/// `f(x)` elementwise; the mnemonic is the function's name.
#[derive(Clone, Debug, PartialEq)]
pub struct Unary {
    /// The function.
    pub f: UnaryFn,
}

/// `f(a, b)` elementwise; both of one dtype; the mnemonic is the function's name.
#[derive(Clone, Debug, PartialEq)]
pub struct Binary {
    /// The function.
    pub f: BinaryFn,
}

/// `f(a, b)` elementwise, giving bool; the mnemonic is the function's name.
#[derive(Clone, Debug, PartialEq)]
pub struct Compare {
    /// The comparison.
    pub f: CompareFn,
}

/// `select(cond, a, b)`: `a` where `cond`, else `b`.
#[derive(Clone, Debug, PartialEq)]
pub struct Select;

/// The same bytes as elements of another type of the same width (at least a byte); or
/// elements of less than a byte as bytes `[.., n·bits/8]`, the first one's bits lowest.
#[derive(Clone, Debug, PartialEq)]
pub struct BitCast {
    /// The result's dtype.
    pub to: DType,
}

/// Conversion: floats round to nearest even, float to integer truncates and
/// saturates (NaN gives 0), integers wrap, bool is `x != 0`.
#[derive(Clone, Debug, PartialEq)]
pub struct Cast {
    /// The result's dtype.
    pub to: DType,
}

use crate::graph::Value;
use crate::op::*;
use crate::ops::util::*;
use crate::tensor::{Encoder, computes_in_integers};
use crate::{Builder, Dim, Kind, Tensor, TensorType};

/// Broadcasts argument shapes and labels their axes alike.
pub(crate) fn map_axes(args: &[&TensorType]) -> AxisMap {
    let rank = args.iter().map(|a| a.rank()).max().unwrap_or(0);
    let labels = broadcast_labels(args, rank);
    let results = (0..rank)
        .map(|i| {
            labels
                .iter()
                .any(|l| l.contains(&Some(i as u8)))
                .then_some(i as u8)
        })
        .collect();
    AxisMap::Labels {
        args: labels,
        results: vec![results],
        reduce: None,
    }
}

fn shapes<'a>(args: &'a [Arg]) -> Vec<&'a [Dim]> {
    args.iter().map(|a| &a.ty.shape[..]).collect()
}

fn same_dtype(args: &[Arg]) -> Result<DType, TypeError> {
    let first = args[0].ty.dtype;
    match args.iter().find(|a| a.ty.dtype != first) {
        Some(other) => type_err(format!(
            "arguments differ in element type: {first} and {}",
            other.ty.dtype
        )),
        None => Ok(first),
    }
}

/// Walks the broadcast of `args`, giving each index's flat offsets.
fn broadcast_walk(args: &[&Tensor], mut f: impl FnMut(&[usize])) -> Vec<usize> {
    let rank = args.iter().map(|a| a.shape().len()).max().unwrap_or(0);
    let mut shape = vec![1; rank];
    for a in args {
        for (slot, &d) in shape[rank - a.shape().len()..].iter_mut().zip(a.shape()) {
            if d != 1 {
                *slot = d;
            }
        }
    }
    let strides: Vec<Vec<usize>> = args
        .iter()
        .map(|a| broadcast_strides(a.shape(), &shape))
        .collect();
    let mut offsets = vec![0; args.len()];
    for_each_index(&shape, |index| {
        for (o, s) in offsets.iter_mut().zip(&strides) {
            *o = offset(index, s);
        }
        f(&offsets);
    });
    shape
}

fn finish(dtype: DType, shape: Vec<usize>, out: Encoder) -> Result<Vec<Tensor>, EvalError> {
    Tensor::new(dtype, shape, out.finish())
        .map(|t| vec![t])
        .map_err(|e| EvalError(e.to_string()))
}

impl Unary {
    /// The op from its text form; none if the mnemonic is another's.
    pub fn parse(mnemonic: &str, _: &Attrs) -> Option<Result<Self, TypeError>> {
        UnaryFn::from_name(mnemonic).map(|f| Ok(Unary { f }))
    }
}

impl OpDef for Unary {
    fn mnemonic(&self) -> &'static str {
        self.f.name()
    }

    fn infer(&self, _: &mut InferCx, args: &[Arg]) -> Result<Vec<Inferred>, TypeError> {
        let a = arity(args, 1)?[0];
        let known = match self.f {
            UnaryFn::Neg => known_map(args, |d| Some(-d[0].clone())),
            UnaryFn::Not => known_map(args, |d| known_truth(d[0].same(&Dim::ZERO))),
            _ => None,
        };
        if matches!(a.ty.dtype.kind(), Kind::Str) {
            return type_err("strings have no arithmetic");
        }
        if self.f == UnaryFn::RoundTf32 && a.ty.dtype != DType::F32 {
            return type_err(format!("rounds f32, not {}", a.ty.dtype));
        }
        if computes_in_integers(a.ty.dtype) && self.f.eval_i64(1).is_none() {
            return type_err(format!(
                "needs a floating-point argument, not {}",
                a.ty.dtype
            ));
        }
        let dtype = if self.f.returns_bool() {
            DType::Bool
        } else {
            a.ty.dtype
        };
        Ok(vec![Inferred {
            ty: a.ty.with_dtype(dtype),
            known,
        }])
    }

    fn axes(&self, args: &[&TensorType]) -> AxisMap {
        map_axes(args)
    }

    fn eval(&self, _: &EvalCx, args: &[&Tensor]) -> Result<Vec<Tensor>, EvalError> {
        let x = args[0];
        let dtype = if self.f.returns_bool() {
            DType::Bool
        } else {
            x.dtype()
        };
        let mut out = Encoder::new(dtype, x.len());
        for i in 0..x.len() {
            match computes_in_integers(x.dtype())
                .then(|| self.f.eval_i64(x.get_i64(i)))
                .flatten()
            {
                Some(v) => out.push_i64(v),
                None => out.push_f64(self.f.eval_f64(x.get_f64(i))),
            }
        }
        finish(dtype, x.shape().to_vec(), out)
    }

    fn grad(&self, b: &mut Builder, io: Io<'_>, d: &[Value]) -> Result<Grad, TypeError> {
        let (x, y, d) = (io.args[0], io.results[0], d[0]);
        let one = b.scalar_like(x, 1.0)?;
        use UnaryFn as U;
        let slope = match self.f {
            U::Neg => return Ok(Grad::Args(vec![Some(b.unary(U::Neg, d)?)])),
            U::Abs => b.unary(U::Sign, x)?,
            U::Exp => y,
            U::Log => b.unary(U::Recip, x)?,
            U::Sqrt => {
                let two = b.scalar_like(x, 2.0)?;
                let two_y = b.mul(two, y)?;
                b.unary(U::Recip, two_y)?
            }
            U::Rsqrt => {
                let half = b.scalar_like(x, -0.5)?;
                let y_over_x = b.div(y, x)?;
                b.mul(half, y_over_x)?
            }
            U::Recip => {
                let yy = b.mul(y, y)?;
                b.unary(U::Neg, yy)?
            }
            U::Sin => b.unary(U::Cos, x)?,
            U::Cos => {
                let s = b.unary(U::Sin, x)?;
                b.unary(U::Neg, s)?
            }
            U::Tan => {
                let yy = b.mul(y, y)?;
                b.add(one, yy)?
            }
            U::Asin | U::Acos => {
                let xx = b.mul(x, x)?;
                let rest = b.sub(one, xx)?;
                let r = b.unary(U::Rsqrt, rest)?;
                if self.f == U::Asin {
                    r
                } else {
                    b.unary(U::Neg, r)?
                }
            }
            U::Atan => {
                let xx = b.mul(x, x)?;
                let den = b.add(one, xx)?;
                b.unary(U::Recip, den)?
            }
            U::Sinh => b.unary(U::Cosh, x)?,
            U::Cosh => b.unary(U::Sinh, x)?,
            U::Tanh => {
                let yy = b.mul(y, y)?;
                b.sub(one, yy)?
            }
            U::Asinh | U::Acosh => {
                let xx = b.mul(x, x)?;
                let den = if self.f == U::Asinh {
                    b.add(xx, one)?
                } else {
                    b.sub(xx, one)?
                };
                b.unary(U::Rsqrt, den)?
            }
            U::Atanh => {
                let xx = b.mul(x, x)?;
                let den = b.sub(one, xx)?;
                b.unary(U::Recip, den)?
            }
            U::Erf => {
                let c = b.scalar_like(x, std::f64::consts::FRAC_2_SQRT_PI)?;
                let xx = b.mul(x, x)?;
                let neg = b.unary(U::Neg, xx)?;
                let e = b.unary(U::Exp, neg)?;
                b.mul(c, e)?
            }
            U::NormalCdf => {
                let c = b.scalar_like(x, (0.5 / std::f64::consts::PI).sqrt())?;
                let half = b.scalar_like(x, -0.5)?;
                let xx = b.mul(x, x)?;
                let inner = b.mul(half, xx)?;
                let e = b.unary(U::Exp, inner)?;
                b.mul(c, e)?
            }
            U::Sigmoid => {
                let rest = b.sub(one, y)?;
                b.mul(y, rest)?
            }
            U::Sign | U::Floor | U::Ceil | U::Round => {
                return Ok(Grad::Zero {
                    because: "piecewise constant",
                });
            }
            // As a cast to a narrower type.
            U::RoundTf32 => return Ok(Grad::Args(vec![Some(d)])),
            U::Not | U::BitNot | U::IsNan | U::IsInf => {
                return Ok(Grad::Zero {
                    because: "not a function of real numbers",
                });
            }
        };
        Ok(Grad::Args(vec![Some(b.mul(d, slope)?)]))
    }

    fn attrs(&self) -> Attrs {
        Attrs::none()
    }

    primitive!();
}

impl Binary {
    /// The op from its text form; none if the mnemonic is another's.
    pub fn parse(mnemonic: &str, _: &Attrs) -> Option<Result<Self, TypeError>> {
        BinaryFn::from_name(mnemonic).map(|f| Ok(Binary { f }))
    }
}

impl OpDef for Binary {
    fn mnemonic(&self) -> &'static str {
        self.f.name()
    }

    fn infer(&self, cx: &mut InferCx, args: &[Arg]) -> Result<Vec<Inferred>, TypeError> {
        let dtype = same_dtype(arity(args, 2)?)?;
        if dtype == DType::Str {
            return type_err("strings have no arithmetic");
        }
        let ty = TensorType::new(dtype, broadcast_shapes(cx, &shapes(args))?);
        let known = known_map(args, |d| {
            let (a, b) = (d[0], d[1]);
            match self.f {
                BinaryFn::Add => Some(a.clone() + b.clone()),
                BinaryFn::Sub => Some(a.clone() - b.clone()),
                BinaryFn::Mul => Some(a.clone() * b.clone()),
                // Truncating equals flooring where nothing is negative.
                BinaryFn::Div if b.as_const() == Some(0) => None,
                BinaryFn::Div if a.is_nonneg() && b.is_nonneg() => Some(a.floor_div(b)),
                BinaryFn::Mod | BinaryFn::Rem
                    if b.as_const().is_some_and(|c| c > 0) && a.is_nonneg() =>
                {
                    Some(a.modulo(b))
                }
                BinaryFn::Min => Some(a.minimum(b)),
                BinaryFn::Max => Some(a.maximum(b)),
                BinaryFn::And | BinaryFn::Or | BinaryFn::Xor | BinaryFn::Div | BinaryFn::Pow => {
                    let v = self.f.eval_i64(a.as_const()?, b.as_const()?)?;
                    Some(v.into())
                }
                _ => None,
            }
        });
        Ok(vec![Inferred { ty, known }])
    }

    fn axes(&self, args: &[&TensorType]) -> AxisMap {
        map_axes(args)
    }

    fn eval(&self, _: &EvalCx, args: &[&Tensor]) -> Result<Vec<Tensor>, EvalError> {
        let dtype = args[0].dtype();
        let mut out = Encoder::new(dtype, args[0].len().max(args[1].len()));
        let mut failed = false;
        let shape = broadcast_walk(args, |o| {
            if dtype == DType::U64
                && matches!(
                    self.f,
                    BinaryFn::Div
                        | BinaryFn::Rem
                        | BinaryFn::Mod
                        | BinaryFn::Min
                        | BinaryFn::Max
                        | BinaryFn::Shr
                )
            {
                let (a, b) = (args[0].get_i64(o[0]) as u64, args[1].get_i64(o[1]) as u64);
                let v = match self.f {
                    BinaryFn::Div => a.checked_div(b),
                    BinaryFn::Rem | BinaryFn::Mod => a.checked_rem(b),
                    BinaryFn::Min => Some(a.min(b)),
                    BinaryFn::Max => Some(a.max(b)),
                    _ => Some(if b < 64 { a >> b } else { 0 }),
                };
                failed |= v.is_none();
                out.push_i64(v.unwrap_or(0) as i64);
            } else if computes_in_integers(dtype) {
                let v = self
                    .f
                    .eval_i64(args[0].get_i64(o[0]), args[1].get_i64(o[1]));
                failed |= v.is_none();
                out.push_i64(v.unwrap_or(0));
            } else {
                out.push_f64(
                    self.f
                        .eval_f64(args[0].get_f64(o[0]), args[1].get_f64(o[1])),
                );
            }
        });
        if failed {
            return Err(EvalError(format!(
                "{}: division by zero, or no meaning on {dtype}",
                self.f.name()
            )));
        }
        finish(dtype, shape, out)
    }

    fn grad(&self, b: &mut Builder, io: Io<'_>, d: &[Value]) -> Result<Grad, TypeError> {
        let (x, y, z, d) = (io.args[0], io.args[1], io.results[0], d[0]);
        let (dx, dy) = match self.f {
            BinaryFn::Add => (d, d),
            BinaryFn::Sub => (d, b.unary(UnaryFn::Neg, d)?),
            BinaryFn::Mul => (b.mul(d, y)?, b.mul(d, x)?),
            BinaryFn::Div => {
                let dx = b.div(d, y)?;
                let t = b.mul(dx, z)?;
                (dx, b.unary(UnaryFn::Neg, t)?)
            }
            BinaryFn::Pow => {
                let one = b.scalar_like(y, 1.0)?;
                let y1 = b.sub(y, one)?;
                let p = b.binary(BinaryFn::Pow, x, y1)?;
                let yp = b.mul(y, p)?;
                let log = b.unary(UnaryFn::Log, x)?;
                let zl = b.mul(z, log)?;
                (b.mul(d, yp)?, b.mul(d, zl)?)
            }
            BinaryFn::Atan2 => {
                let (xx, yy) = (b.mul(x, x)?, b.mul(y, y)?);
                let r = b.add(xx, yy)?;
                let (p, q) = (b.div(y, r)?, b.div(x, r)?);
                let dy = b.mul(d, q)?;
                (b.mul(d, p)?, b.unary(UnaryFn::Neg, dy)?)
            }
            // Ties go to the first argument.
            BinaryFn::Min | BinaryFn::Max => {
                let f = if self.f == BinaryFn::Min {
                    CompareFn::Le
                } else {
                    CompareFn::Ge
                };
                let first = b.compare(f, x, y)?;
                let zero = b.scalar_like(d, 0.0)?;
                (b.select(first, d, zero)?, b.select(first, zero, d)?)
            }
            BinaryFn::Rem | BinaryFn::Mod => {
                return Ok(Grad::Unsupported {
                    because: "the remainder jumps",
                });
            }
            BinaryFn::And | BinaryFn::Or | BinaryFn::Xor | BinaryFn::Shl | BinaryFn::Shr => {
                return Ok(Grad::Zero {
                    because: "not a function of real numbers",
                });
            }
        };
        let (sx, sy) = (b.shape(x), b.shape(y));
        Ok(Grad::Args(vec![
            Some(unbroadcast(b, dx, &sx)?),
            Some(unbroadcast(b, dy, &sy)?),
        ]))
    }

    fn attrs(&self) -> Attrs {
        Attrs::none()
    }

    primitive!();
}

impl Compare {
    /// The op from its text form; none if the mnemonic is another's.
    pub fn parse(mnemonic: &str, _: &Attrs) -> Option<Result<Self, TypeError>> {
        CompareFn::from_name(mnemonic).map(|f| Ok(Compare { f }))
    }
}

impl OpDef for Compare {
    fn mnemonic(&self) -> &'static str {
        self.f.name()
    }

    fn infer(&self, cx: &mut InferCx, args: &[Arg]) -> Result<Vec<Inferred>, TypeError> {
        let dtype = same_dtype(arity(args, 2)?)?;
        if dtype == DType::Str && !matches!(self.f, CompareFn::Eq | CompareFn::Ne) {
            return type_err("strings are equal or not, and have no order");
        }
        let known = known_map(args, |d| {
            let (a, b) = (d[0], d[1]);
            let (a1, b1) = (a.clone() + Dim::ONE, b.clone() + Dim::ONE);
            match self.f {
                CompareFn::Eq => known_truth(a.same(b)),
                CompareFn::Ne => known_truth(a.same(b)).map(|t| Dim::ONE - t),
                CompareFn::Le => known_truth(a.le(b)),
                CompareFn::Ge => known_truth(b.le(a)),
                CompareFn::Lt => known_truth(a1.le(b)),
                CompareFn::Gt => known_truth(b1.le(a)),
            }
        });
        let ty = TensorType::new(DType::Bool, broadcast_shapes(cx, &shapes(args))?);
        Ok(vec![Inferred { ty, known }])
    }

    fn axes(&self, args: &[&TensorType]) -> AxisMap {
        map_axes(args)
    }

    fn eval(&self, _: &EvalCx, args: &[&Tensor]) -> Result<Vec<Tensor>, EvalError> {
        let (a, b) = (args[0], args[1]);
        let mut out = Encoder::new(DType::Bool, a.len());
        let shape = broadcast_walk(args, |o| {
            let truth = match a.dtype() {
                DType::Str => self.f.eval(&a.as_strings()[o[0]], &b.as_strings()[o[1]]),
                DType::U64 => self.f.eval(a.get_i64(o[0]) as u64, b.get_i64(o[1]) as u64),
                d if computes_in_integers(d) => self.f.eval(a.get_i64(o[0]), b.get_i64(o[1])),
                _ => self.f.eval(a.get_f64(o[0]), b.get_f64(o[1])),
            };
            out.push_i64(truth as i64);
        });
        finish(DType::Bool, shape, out)
    }

    fn grad(&self, _: &mut Builder, _: Io<'_>, _: &[Value]) -> Result<Grad, TypeError> {
        Ok(Grad::Zero {
            because: "comparisons are piecewise constant",
        })
    }

    fn attrs(&self) -> Attrs {
        Attrs::none()
    }

    primitive!();
}

parse_one!(Select, "select", |_a| Ok(Select));

impl OpDef for Select {
    fn mnemonic(&self) -> &'static str {
        "select"
    }

    fn infer(&self, cx: &mut InferCx, args: &[Arg]) -> Result<Vec<Inferred>, TypeError> {
        arity(args, 3)?;
        if args[0].ty.dtype != DType::Bool {
            return type_err(format!("the condition is {}, not bool", args[0].ty.dtype));
        }
        let dtype = same_dtype(&args[1..])?;
        let known = known_map(args, |d| match d[0].as_const() {
            Some(0) => Some(d[2].clone()),
            Some(_) => Some(d[1].clone()),
            None => (d[1] == d[2]).then(|| d[1].clone()),
        });
        Ok(vec![Inferred {
            ty: TensorType::new(dtype, broadcast_shapes(cx, &shapes(args))?),
            known,
        }])
    }

    fn axes(&self, args: &[&TensorType]) -> AxisMap {
        map_axes(args)
    }

    fn eval(&self, _: &EvalCx, args: &[&Tensor]) -> Result<Vec<Tensor>, EvalError> {
        let dtype = args[1].dtype();
        if dtype == DType::Str {
            let mut out = vec![];
            let shape = broadcast_walk(args, |o| {
                let (t, i) = if args[0].get_i64(o[0]) != 0 {
                    (args[1], o[1])
                } else {
                    (args[2], o[2])
                };
                out.push(t.as_strings()[i].clone());
            });
            return Tensor::strings(shape, out)
                .map(|t| vec![t])
                .map_err(|e| EvalError(e.to_string()));
        }
        let mut out = Encoder::new(dtype, args[1].len());
        let shape = broadcast_walk(args, |o| {
            let (t, i) = if args[0].get_i64(o[0]) != 0 {
                (args[1], o[1])
            } else {
                (args[2], o[2])
            };
            if computes_in_integers(dtype) {
                out.push_i64(t.get_i64(i))
            } else {
                out.push_f64(t.get_f64(i))
            }
        });
        finish(dtype, shape, out)
    }

    fn grad(&self, b: &mut Builder, io: Io<'_>, d: &[Value]) -> Result<Grad, TypeError> {
        let zero = b.scalar_like(d[0], 0.0)?;
        let (x, y) = (
            b.select(io.args[0], d[0], zero)?,
            b.select(io.args[0], zero, d[0])?,
        );
        let (sx, sy) = (b.shape(io.args[1]), b.shape(io.args[2]));
        Ok(Grad::Args(vec![
            None,
            Some(unbroadcast(b, x, &sx)?),
            Some(unbroadcast(b, y, &sy)?),
        ]))
    }

    fn attrs(&self) -> Attrs {
        Attrs::none()
    }

    primitive!();
}

parse_one!(BitCast, "bit_cast", |a| Ok(BitCast { to: a.dtype("to")? }));
parse_one!(Cast, "cast", |a| Ok(Cast { to: a.dtype("to")? }));

impl OpDef for BitCast {
    fn mnemonic(&self) -> &'static str {
        "bit_cast"
    }

    fn infer(&self, _: &mut InferCx, args: &[Arg]) -> Result<Vec<Inferred>, TypeError> {
        let a = arity(args, 1)?[0];
        let from = a.ty.dtype;
        if let (None, DType::U8 | DType::I8, Some(last)) = (from.size(), self.to, a.ty.shape.last())
        {
            let bits = last.clone() * Dim::from(from.bits());
            let Some(bytes) = bits.div_exact(&8.into()) else {
                return type_err(format!("rows of {} are no whole bytes", a.ty));
            };
            let mut shape = a.ty.shape.clone();
            shape.pop();
            shape.push(bytes);
            return Ok(vec![TensorType::new(self.to, shape).into()]);
        }
        if from.size().is_none() || from.size() != self.to.size() {
            return type_err(format!("{from} and {} have different widths", self.to));
        }
        if DType::Str == from || DType::Str == self.to {
            return type_err("strings have no bits");
        }
        // Not every byte is a truth.
        if self.to == DType::Bool && from != DType::Bool {
            return type_err("bits are not taken for truths");
        }
        Ok(vec![TensorType::new(self.to, a.ty.shape.clone()).into()])
    }

    fn axes(&self, args: &[&TensorType]) -> AxisMap {
        if args[0].dtype.size().is_none() {
            return AxisMap::Whole {
                because: "elements share bytes",
            };
        }
        map_axes(args)
    }

    fn eval(&self, _: &EvalCx, args: &[&Tensor]) -> Result<Vec<Tensor>, EvalError> {
        let x = args[0];
        let mut shape = x.shape().to_vec();
        if let (None, Some(last)) = (x.dtype().size(), shape.last_mut()) {
            *last = *last * x.dtype().bits() / 8;
        }
        Tensor::new(self.to, shape, x.bytes().to_vec())
            .map(|t| vec![t])
            .map_err(|e| EvalError(format!("bit_cast: {e}")))
    }

    fn grad(&self, _: &mut Builder, _: Io<'_>, _: &[Value]) -> Result<Grad, TypeError> {
        Ok(Grad::Zero {
            because: "bits take no gradient",
        })
    }

    fn attrs(&self) -> Attrs {
        Attrs::none().with("to", Attr::Name(self.to.name().into()))
    }

    primitive!();
}

impl OpDef for Cast {
    fn mnemonic(&self) -> &'static str {
        "cast"
    }

    fn infer(&self, _: &mut InferCx, args: &[Arg]) -> Result<Vec<Inferred>, TypeError> {
        let a = arity(args, 1)?[0];
        if a.ty.dtype == DType::Str || self.to == DType::Str {
            return type_err("strings are not cast: parse_number and format_number are");
        }
        let known = match self.to.kind() {
            Kind::Int | Kind::Uint => a.known.cloned(),
            Kind::Bool => known_map(args, |d| {
                known_truth(d[0].same(&Dim::ZERO)).map(|t| Dim::ONE - t)
            }),
            Kind::Float | Kind::Complex | Kind::Str => None,
        };
        Ok(vec![Inferred {
            ty: TensorType::new(self.to, a.ty.shape.clone()),
            known,
        }])
    }

    fn axes(&self, args: &[&TensorType]) -> AxisMap {
        map_axes(args)
    }

    fn eval(&self, _: &EvalCx, args: &[&Tensor]) -> Result<Vec<Tensor>, EvalError> {
        let x = args[0];
        let mut out = Encoder::new(self.to, x.len());
        for i in 0..x.len() {
            if computes_in_integers(x.dtype()) && x.dtype() != DType::U64 {
                out.push_i64(x.get_i64(i));
            } else if computes_in_integers(self.to) && self.to != DType::Bool {
                out.push_i64(saturate(self.to, x.get_f64(i)));
            } else {
                out.push_f64(if x.dtype() == DType::U64 {
                    x.get_i64(i) as u64 as f64
                } else {
                    x.get_f64(i)
                });
            }
        }
        finish(self.to, x.shape().to_vec(), out)
    }

    fn grad(&self, b: &mut Builder, io: Io<'_>, d: &[Value]) -> Result<Grad, TypeError> {
        let from = b.ty(io.args[0]).dtype;
        if !from.is_float() || !self.to.is_float() {
            return Ok(Grad::Zero {
                because: "integers take no gradient",
            });
        }
        Ok(Grad::Args(vec![Some(b.cast(d[0], from)?)]))
    }

    fn attrs(&self) -> Attrs {
        Attrs::none().with("to", Attr::Name(self.to.name().into()))
    }

    primitive!();
}

/// Truncates toward zero and clamps to the integer type's range; NaN gives 0.
pub(crate) fn saturate(to: DType, v: f64) -> i64 {
    let bits = to.bits() as u32;
    match to.kind() {
        Kind::Uint if bits == 64 => v as u64 as i64,
        Kind::Uint => (v as i64).clamp(0, (1i64 << bits) - 1),
        _ if bits == 64 => v as i64,
        _ => (v as i64).clamp(-(1i64 << (bits - 1)), (1i64 << (bits - 1)) - 1),
    }
}
