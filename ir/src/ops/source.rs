//! Ops without arguments (and the random bits).

use crate::graph::SymValue;
use crate::{DType, Dim, Tensor};
use std::sync::Arc;

/// A small literal. Big constants are globals.
#[derive(Clone, Debug, PartialEq)]
pub struct Constant {
    /// Its elements.
    pub value: Tensor,
}

/// The value of a const global.
#[derive(Clone, Debug, PartialEq)]
pub struct Global {
    /// Its name, without `@`.
    pub name: Arc<str>,
}

/// Sizes as an i64 tensor: shape arithmetic, done.
#[derive(Clone, Debug, PartialEq)]
pub struct Dims {
    /// The sizes.
    pub value: SymValue,
}

/// The index along one axis: element `[.., i, ..]` is `i`.
#[derive(Clone, Debug, PartialEq)]
pub struct Iota {
    /// The result's shape.
    pub shape: Vec<Dim>,
    /// The axis that counts.
    pub axis: usize,
    /// The result's dtype.
    pub dtype: DType,
}

/// `philox(key: u64[], offset: u64[]) -> u32[shape]`: counter-based random bits,
/// Philox4x32-10 (Salmon et al., SC 2011). Element `i` is word `i % 4` of block
/// `offset + i / 4`.
#[derive(Clone, Debug, PartialEq)]
pub struct Philox {
    /// The result's shape.
    pub shape: Vec<Dim>,
}

use crate::graph::Value;
use crate::op::*;
use crate::ops::util::*;
use crate::tensor::{Encoder, computes_in_integers};
use crate::{BinaryFn, Builder, CompareFn, GlobalKind, TensorType};

fn whole() -> AxisMap {
    AxisMap::Whole {
        because: "there are no arguments to cut",
    }
}

fn no_grad() -> Result<Grad, TypeError> {
    Ok(Grad::Zero {
        because: "there are no arguments",
    })
}

parse_one!(Constant, "constant", |a| Ok(Constant {
    value: a.tensor("value")?.clone()
}));

impl OpDef for Constant {
    fn mnemonic(&self) -> &'static str {
        "constant"
    }

    fn infer(&self, _: &mut InferCx, args: &[Arg]) -> Result<Vec<Inferred>, TypeError> {
        arity(args, 0)?;
        let v = &self.value;
        let known =
            (computes_in_integers(v.dtype()) && v.dtype() != DType::U64 && v.len() <= KNOWN_LIMIT)
                .then(|| SymValue {
                    shape: v.shape().to_vec(),
                    dims: v.to_i64().into_iter().map(Dim::from).collect(),
                });
        Ok(vec![Inferred { ty: v.ty(), known }])
    }

    fn axes(&self, _: &[&TensorType]) -> AxisMap {
        whole()
    }

    fn eval(&self, _: &EvalCx, _: &[&Tensor]) -> Result<Vec<Tensor>, EvalError> {
        Ok(vec![self.value.clone()])
    }

    fn grad(&self, _: &mut Builder, _: Io<'_>, _: &[Value]) -> Result<Grad, TypeError> {
        no_grad()
    }

    fn attrs(&self) -> Attrs {
        Attrs::none().with("value", Attr::Tensor(self.value.clone()))
    }

    primitive!();
}

parse_one!(Global, "global", |a| Ok(Global {
    name: a.str("name")?.into()
}));

impl OpDef for Global {
    fn mnemonic(&self) -> &'static str {
        "global"
    }

    fn infer(&self, cx: &mut InferCx, args: &[Arg]) -> Result<Vec<Inferred>, TypeError> {
        arity(args, 0)?;
        match cx.globals.get(&self.name) {
            None => type_err(format!("there is no global @{}", self.name)),
            Some(g) if matches!(g.kind, GlobalKind::State { .. }) => type_err(format!(
                "@{} is state: functions receive it as a parameter",
                self.name
            )),
            Some(g) => Ok(vec![g.ty.clone().into()]),
        }
    }

    fn axes(&self, _: &[&TensorType]) -> AxisMap {
        whole()
    }

    fn eval(&self, cx: &EvalCx, _: &[&Tensor]) -> Result<Vec<Tensor>, EvalError> {
        Ok(vec![(cx.global)(&self.name)?])
    }

    fn grad(&self, _: &mut Builder, _: Io<'_>, _: &[Value]) -> Result<Grad, TypeError> {
        no_grad()
    }

    fn attrs(&self) -> Attrs {
        Attrs::none().with("name", Attr::Str(self.name.to_string()))
    }

    primitive!();
}

impl Dims {
    /// The op from its text form; none if the mnemonic is another's.
    pub fn parse(mnemonic: &str, attrs: &Attrs) -> Option<Result<Self, TypeError>> {
        (mnemonic == "dims").then(|| {
            let dims = attrs.dims("values")?;
            let shape = attrs.indices("shape")?;
            if shape.iter().product::<usize>() != dims.len() {
                return type_err("the shape does not hold the values");
            }
            Ok(Dims {
                value: SymValue { shape, dims },
            })
        })
    }
}

impl OpDef for Dims {
    fn mnemonic(&self) -> &'static str {
        "dims"
    }

    fn infer(&self, _: &mut InferCx, args: &[Arg]) -> Result<Vec<Inferred>, TypeError> {
        arity(args, 0)?;
        let shape: Vec<Dim> = self.value.shape.iter().map(|&d| Dim::from(d)).collect();
        Ok(vec![Inferred {
            ty: TensorType::new(DType::I64, shape),
            known: Some(self.value.clone()),
        }])
    }

    fn axes(&self, _: &[&TensorType]) -> AxisMap {
        whole()
    }

    fn eval(&self, cx: &EvalCx, _: &[&Tensor]) -> Result<Vec<Tensor>, EvalError> {
        let binding = cx.binding.borrow();
        let values: Vec<i64> = self
            .value
            .dims
            .iter()
            .map(|d| d.eval(&binding).map_err(|e| EvalError(e.to_string())))
            .collect::<Result<_, _>>()?;
        let t = Tensor::from_i64(DType::I64, self.value.shape.clone(), &values);
        t.map(|t| vec![t]).map_err(|e| EvalError(e.to_string()))
    }

    fn grad(&self, _: &mut Builder, _: Io<'_>, _: &[Value]) -> Result<Grad, TypeError> {
        no_grad()
    }

    fn attrs(&self) -> Attrs {
        Attrs::none()
            .with("values", Attr::Dims(self.value.dims.clone()))
            .with_ints("shape", self.value.shape.iter().map(|&d| d as i64))
    }

    primitive!();
}

parse_one!(Iota, "iota", |a| Ok(Iota {
    shape: a.dims("shape")?,
    axis: a.index("axis")?,
    dtype: a.dtype("dtype")?
}));

impl OpDef for Iota {
    fn mnemonic(&self) -> &'static str {
        "iota"
    }

    fn infer(&self, _: &mut InferCx, args: &[Arg]) -> Result<Vec<Inferred>, TypeError> {
        arity(args, 0)?;
        check_axis(self.axis, self.shape.len())?;
        if self.dtype == DType::Str {
            return type_err("strings do not count up");
        }
        let known = match (&self.shape[..], self.dtype) {
            ([n], DType::I64 | DType::I32) => n
                .as_const()
                .filter(|&n| (0..=KNOWN_LIMIT as i64).contains(&n))
                .map(|n| SymValue::vector((0..n).map(Dim::from).collect())),
            _ => None,
        };
        Ok(vec![Inferred {
            ty: TensorType::new(self.dtype, self.shape.clone()),
            known,
        }])
    }

    fn axes(&self, _: &[&TensorType]) -> AxisMap {
        whole()
    }

    fn eval(&self, cx: &EvalCx, _: &[&Tensor]) -> Result<Vec<Tensor>, EvalError> {
        let shape = cx.dims(&self.shape)?;
        let mut out = Encoder::new(self.dtype, shape.iter().product());
        for_each_index(&shape, |i| out.push_i64(i[self.axis] as i64));
        Tensor::new(self.dtype, shape, out.finish())
            .map(|t| vec![t])
            .map_err(|e| EvalError(e.to_string()))
    }

    fn grad(&self, _: &mut Builder, _: Io<'_>, _: &[Value]) -> Result<Grad, TypeError> {
        no_grad()
    }

    fn attrs(&self) -> Attrs {
        Attrs::none()
            .with("shape", Attr::Dims(self.shape.clone()))
            .with("axis", Attr::Int(self.axis as i64))
            .with("dtype", Attr::Name(self.dtype.name().into()))
    }

    primitive!();
}

parse_one!(Philox, "philox", |a| Ok(Philox {
    shape: a.dims("shape")?
}));

impl OpDef for Philox {
    fn mnemonic(&self) -> &'static str {
        "philox"
    }

    fn infer(&self, _: &mut InferCx, args: &[Arg]) -> Result<Vec<Inferred>, TypeError> {
        for a in arity(args, 2)? {
            if a.ty.dtype != DType::U64 || a.ty.rank() != 0 {
                return type_err(format!("key and offset are u64[], not {}", a.ty));
            }
        }
        Ok(vec![TensorType::new(DType::U32, self.shape.clone()).into()])
    }

    fn axes(&self, _: &[&TensorType]) -> AxisMap {
        AxisMap::Whole {
            because: "an element's bits depend on its place in the whole",
        }
    }

    fn eval(&self, cx: &EvalCx, args: &[&Tensor]) -> Result<Vec<Tensor>, EvalError> {
        let shape = cx.dims(&self.shape)?;
        let (key, offset) = (args[0].get_i64(0) as u64, args[1].get_i64(0) as u64);
        let n: usize = shape.iter().product();
        let mut out = Encoder::new(DType::U32, n);
        for i in 0..n as u64 {
            let block = philox4x32_10(key, offset.wrapping_add(i / 4));
            out.push_i64(block[(i % 4) as usize] as i64);
        }
        Tensor::new(DType::U32, shape, out.finish())
            .map(|t| vec![t])
            .map_err(|e| EvalError(e.to_string()))
    }

    fn grad(&self, _: &mut Builder, _: Io<'_>, _: &[Value]) -> Result<Grad, TypeError> {
        Ok(Grad::Zero {
            because: "random bits do not depend smoothly on the key",
        })
    }

    fn attrs(&self) -> Attrs {
        Attrs::none().with("shape", Attr::Dims(self.shape.clone()))
    }

    fn donates(&self) -> &'static [usize] {
        &[]
    }

    /// In integers of 64 bits, each element on its own: what code is compiled from.
    fn expand(&self, b: &mut Builder, args: &[Value]) -> Result<Option<Vec<Value>>, TypeError> {
        let n = Dim::product(&self.shape);
        let flat = Iota {
            shape: vec![n],
            axis: 0,
            dtype: DType::U64,
        };
        let i = b.one(flat, &[])?;
        let word = |b: &mut Builder, v: i64| b.constant(Tensor::scalar_i64(DType::U64, v));
        let (two, three, half) = (word(b, 2)?, word(b, 3)?, word(b, 32)?);
        let low = word(b, 0xffff_ffff)?;
        let quarter = b.binary(BinaryFn::Shr, i, two)?;
        let block = b.binary(BinaryFn::Add, args[1], quarter)?;
        let lower = |b: &mut Builder, v| b.binary(BinaryFn::And, v, low);
        let upper = |b: &mut Builder, v| b.binary(BinaryFn::Shr, v, half);
        let zero = word(b, 0)?;
        let mut c = [lower(b, block)?, upper(b, block)?, zero, zero];
        let mut k = [lower(b, args[0])?, upper(b, args[0])?];
        let factors = [
            word(b, PHILOX_FACTORS[0] as i64)?,
            word(b, PHILOX_FACTORS[1] as i64)?,
        ];
        let steps = [
            word(b, PHILOX_STEPS[0] as i64)?,
            word(b, PHILOX_STEPS[1] as i64)?,
        ];
        for _ in 0..10 {
            let p0 = b.mul(c[0], factors[0])?;
            let p1 = b.mul(c[2], factors[1])?;
            let mixed = |b: &mut Builder, p, c, k| {
                let h = upper(b, p)?;
                let h = b.binary(BinaryFn::Xor, h, c)?;
                b.binary(BinaryFn::Xor, h, k)
            };
            c = [
                mixed(b, p1, c[1], k[0])?,
                lower(b, p1)?,
                mixed(b, p0, c[3], k[1])?,
                lower(b, p0)?,
            ];
            for (k, step) in k.iter_mut().zip(steps) {
                let sum = b.add(*k, step)?;
                *k = lower(b, sum)?;
            }
        }
        let lane = b.binary(BinaryFn::And, i, three)?;
        let mut out = c[3];
        for (j, &word_j) in c.iter().enumerate().take(3).rev() {
            let j = word(b, j as i64)?;
            let here = b.compare(CompareFn::Eq, lane, j)?;
            out = b.select(here, word_j, out)?;
        }
        let out = b.cast(out, DType::U32)?;
        Ok(Some(vec![b.reshape(out, &self.shape)?]))
    }
}

/// Multipliers of the two halves of a round.
const PHILOX_FACTORS: [u64; 2] = [0xD251_1F53, 0xCD9E_8D57];
/// What the key's halves grow by from round to round.
const PHILOX_STEPS: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];

/// One block of Philox4x32 with ten rounds: counter (offset, 0), key split in two.
pub fn philox4x32_10(key: u64, offset: u64) -> [u32; 4] {
    let mut c = [offset as u32, (offset >> 32) as u32, 0, 0];
    let mut k = [key as u32, (key >> 32) as u32];
    for _ in 0..10 {
        let p0 = PHILOX_FACTORS[0] * c[0] as u64;
        let p1 = PHILOX_FACTORS[1] * c[2] as u64;
        c = [
            (p1 >> 32) as u32 ^ c[1] ^ k[0],
            p1 as u32,
            (p0 >> 32) as u32 ^ c[3] ^ k[1],
            p0 as u32,
        ];
        k = [
            k[0].wrapping_add(PHILOX_STEPS[0]),
            k[1].wrapping_add(PHILOX_STEPS[1]),
        ];
    }
    c
}

#[cfg(test)]
mod tests {
    #[test]
    fn philox_matches_the_published_vectors() {
        // Random123 known-answer test, philox4x32 10 rounds, counter and key zero.
        assert_eq!(
            super::philox4x32_10(0, 0),
            [0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8]
        );
    }
}
