//! Sizes: reading them from values, broadcasting and clamping them, and naming
//! those that are known only when the model runs.

use super::cx::{Cx, Fail};
use crate::diagnostic::code;
use kiln_ir::graph::{Guard, Relation, SymValue, Value};
use kiln_ir::ops::index::BindDim;
use kiln_ir::ops::source::Iota;
use kiln_ir::{BinaryFn, Builder, DType, Dim, Op, Tensor, TensorType, Tri};
use std::collections::BTreeSet;

/// Elements of one value: what is beyond needs terabytes.
const MAX_ELEMENTS: u128 = 1 << 38;
/// Axes of one value.
const MAX_RANK: usize = 32;
/// Characters of one size; longer ones get a name of their own.
const MAX_DIM: usize = 240;
/// Terms of a shape's product.
const MAX_TERMS: usize = 4096;
/// Parentheses in parentheses of one size: the text form reads 256.
const MAX_NESTING: usize = 128;
/// Factors of one size: chains of products square them.
const MAX_FACTORS: usize = 1024;

/// Refuses types that cannot be worked with in bounded memory.
pub(crate) fn check(ty: &TensorType) -> Result<(), Fail> {
    let limit = |message: String| {
        Err(Fail::new(code::LIMIT, message)
            .help("check the sizes in the model; give --dim for those that are open"))
    };
    if ty.rank() > MAX_RANK {
        return limit(format!("a value has {} axes", ty.rank()));
    }
    let (mut elements, mut terms, mut empty) = (1u128, 1usize, false);
    for d in &ty.shape {
        match d.as_const() {
            Some(c) if c < 0 => {
                return limit(format!("a value's shape {:?} is negative", ty.shape));
            }
            Some(0) => empty = true,
            Some(c) => elements = elements.saturating_mul(c as u128),
            None if d.factor_count() > MAX_FACTORS => {
                return limit("a size is a product of too many sizes".into());
            }
            None if d.nesting() > MAX_NESTING => {
                return limit("a size is divided and compared too often".into());
            }
            None => terms = terms.saturating_mul(d.term_count()),
        }
    }
    if elements > MAX_ELEMENTS && !empty {
        return limit(format!("a value of type {ty} is too large to work with"));
    }
    if terms > MAX_TERMS {
        return limit("the size expressions of a value are too complicated".into());
    }
    Ok(())
}

/// Replaces integer arithmetic whose result is known as sizes by the sizes.
pub(crate) fn settle(b: &mut Builder, v: Value) -> Result<Value, Fail> {
    let Some(known) = b.graph.known(v).cloned() else {
        return Ok(v);
    };
    let plain = matches!(
        b.graph.producer_op(v),
        None | Some((Op::Constant(_) | Op::Dims(_), _))
    );
    let ty = b.ty(v);
    if plain || ty.const_shape().as_deref() != Some(&known.shape) {
        return Ok(v);
    }
    let ints: Option<Vec<i64>> = known.dims.iter().map(Dim::as_const).collect();
    if let Some(ints) = ints {
        return match Tensor::from_i64(ty.dtype, known.shape.clone(), &ints) {
            Ok(t) => Ok(b.constant(t)?),
            Err(_) => Ok(v),
        };
    }
    if known.dims.iter().any(|d| d.to_string().len() > MAX_DIM) {
        b.graph.value_mut(v).known = None;
        return Ok(v);
    }
    let sizes = b.dims(known)?;
    Ok(b.cast(sizes, ty.dtype)?)
}

/// A shape's extent at axis `i` of the shape of this rank that it broadcasts to.
fn extent(shape: &[Dim], i: usize, rank: usize) -> Dim {
    let at = (i + shape.len()).checked_sub(rank);
    at.map_or(Dim::ONE, |j| shape[j].clone())
}

impl Cx<'_, '_, '_> {
    /// Whether an extent hangs on data, not on the caller's sizes alone.
    pub(crate) fn hangs_on_data(&self, d: &Dim) -> bool {
        let mut symbols = BTreeSet::new();
        d.symbols(&mut symbols);
        !symbols.is_subset(&self.imp.sizes)
    }

    /// Whether one of two extents may turn out to be 1 and broadcast: one of them hangs on
    /// data. What a loop carries is taken as equal to what it meets, under a guard, as its
    /// size would else be another one after every step.
    fn may_meet(&self, x: &Dim, y: &Dim) -> bool {
        let mut symbols = BTreeSet::new();
        x.symbols(&mut symbols);
        y.symbols(&mut symbols);
        !symbols.is_subset(&self.imp.sizes) && symbols.is_disjoint(&self.imp.carried)
    }

    /// The shape that shapes broadcast to. Extents of the caller's sizes that may or may
    /// not be equal are taken as equal, under a guard of the op that wants it; one that
    /// hangs on data may also turn out to be 1 ([`Cx::meet`]).
    pub(crate) fn broadcast(&self, shapes: &[Vec<Dim>]) -> Vec<Dim> {
        let rank = shapes.iter().map(Vec::len).max().unwrap_or(0);
        let joined = |x: Dim, y: Dim| match (x.as_const(), y.as_const()) {
            (_, Some(1)) | (Some(_), _) if x != Dim::ONE => x,
            (Some(1), _) | (_, Some(_)) => y,
            _ if x == y || !self.may_meet(&x, &y) => y,
            // The one that is not 1; 0 if either is.
            _ => x.maximum(&y) * x.minimum(&y).minimum(&Dim::ONE),
        };
        let axis = |i| {
            shapes
                .iter()
                .map(|s| extent(s, i, rank))
                .fold(Dim::ONE, joined)
        };
        (0..rank).map(axis).collect()
    }

    /// Values as they broadcast against each other: an extent that hangs on data and
    /// may be 1 becomes what the others have.
    pub(crate) fn meet(&mut self, values: &[Value]) -> Result<Vec<Value>, Fail> {
        let shapes: Vec<_> = values.iter().map(|&v| self.shape(v)).collect();
        let shape = self.broadcast(&shapes);
        values.iter().map(|&v| self.stretch(v, &shape)).collect()
    }

    /// A value whose extents are the shape's or 1 as the program stands, not only
    /// once it runs.
    pub(crate) fn stretch(&mut self, v: Value, shape: &[Dim]) -> Result<Value, Fail> {
        let mut x = v;
        for (axis, d) in self.shape(v).into_iter().enumerate() {
            let to = extent(shape, axis + shape.len() - self.rank(v), shape.len());
            let apart = d != Dim::ONE && d != to && (d.as_const().is_none() || to != Dim::ONE);
            if !(apart && self.may_meet(&d, &to)) {
                continue;
            }
            self.b.graph.add_guard(Guard {
                left: (d.clone() - to.clone()) * (d.clone() - Dim::ONE),
                relation: Relation::Eq,
                right: Dim::ZERO,
                because: "extents do not broadcast".into(),
            });
            let counted = Iota {
                shape: vec![to],
                axis: 0,
                dtype: DType::I64,
            };
            let counted = self.b.one(counted, &[])?;
            let last = self.scalar_dim(d - Dim::ONE)?;
            let index = self.b.binary(BinaryFn::Min, counted, last)?;
            x = self.b.gather(x, index, axis)?;
        }
        Ok(x)
    }

    /// The sizes that an integer value holds; those that only running tells get
    /// names.
    pub(crate) fn sizes(&mut self, v: Value) -> Result<Vec<Dim>, Fail> {
        if let Some(k) = self.b.graph.known(v) {
            return Ok(k.dims.clone());
        }
        if let Some(ints) = self.known_ints(v) {
            return Ok(ints.into_iter().map(Dim::from).collect());
        }
        let count = match &self.shape(v)[..] {
            [] => 1,
            [n] => n
                .as_const()
                .filter(|&n| (0..=64).contains(&n))
                .ok_or_else(|| {
                    Fail::new(code::DATA_SHAPE, "the rank of a result depends on data")
                        .help("export the model so that ranks are fixed")
                })?,
            _ => {
                return Err(Fail::invalid(
                    "sizes are given as a tensor of rank 2 or more",
                ));
            }
        };
        (0..count)
            .map(|i| {
                let one = self.element(v, i)?;
                self.mint(one, None)
            })
            .collect()
    }

    /// One size.
    pub(crate) fn size(&mut self, v: Value) -> Result<Dim, Fail> {
        match &self.sizes(v)?[..] {
            [d] => Ok(d.clone()),
            other => Err(Fail::invalid(format!(
                "{} numbers stand where one is wanted",
                other.len()
            ))),
        }
    }

    /// Element `i` of an integer value of rank 0 or 1, as `i64[]`.
    pub(crate) fn element(&mut self, v: Value, i: i64) -> Result<Value, Fail> {
        let one = match self.rank(v) {
            0 => v,
            _ => self.b.slice_axis(v, 0, i.into(), Dim::ONE)?,
        };
        let scalar = self.b.reshape(one, &[])?;
        Ok(self.b.cast(scalar, DType::I64)?)
    }

    /// Names a size that is known only when the model runs.
    pub(crate) fn mint(&mut self, n: Value, max: Option<Dim>) -> Result<Dim, Fail> {
        if let Some(k) = self.b.graph.known(n)
            && let [d] = &k.dims[..]
        {
            return Ok(d.clone());
        }
        let symbol = self.b.graph.fresh_symbol("n");
        self.b.push(
            BindDim {
                symbol: symbol.clone(),
                max,
            },
            &[n],
        )?;
        Ok(Dim::sym(symbol))
    }

    /// Sizes as an i64 vector.
    pub(crate) fn vector(&mut self, dims: Vec<Dim>) -> Result<Value, Fail> {
        Ok(self.b.dims(SymValue::vector(dims))?)
    }

    /// One size as `i64[]`.
    pub(crate) fn scalar_dim(&mut self, d: Dim) -> Result<Value, Fail> {
        match d.as_const() {
            Some(c) => Ok(self.b.constant(Tensor::scalar_i64(DType::I64, c))?),
            None => Ok(self.b.dims(SymValue::scalar(d))?),
        }
    }

    /// Records that `left <= right` is relied on.
    pub(crate) fn assume_le(&mut self, left: Dim, right: Dim, because: &str) {
        if left.le(&right) != Tri::Yes {
            self.b.graph.add_guard(Guard {
                left,
                relation: Relation::Le,
                right,
                because: because.to_string(),
            });
        }
    }

    /// A position on an axis of `extent` that may count from the end, clamped to
    /// `0..=extent`. A table (a constant of the model) is not read beyond its end:
    /// there a named position is taken to lie inside, under the slice's guard.
    pub(crate) fn position(&mut self, at: &Dim, extent: &Dim, table: bool) -> Dim {
        let at = match at.as_const() {
            Some(c) if c < 0 => {
                if c == -1 {
                    self.assume_le(
                        Dim::ONE,
                        extent.clone(),
                        "the last element is taken, so there is one",
                    );
                    return extent.clone() - Dim::ONE;
                }
                return (extent.clone() + at.clone()).maximum(&Dim::ZERO);
            }
            Some(1) => {
                self.assume_le(
                    Dim::ONE,
                    extent.clone(),
                    "the first element is taken, so there is one",
                );
                return Dim::ONE;
            }
            Some(_) => at.clone(),
            None if at.is_nonneg() => at.clone(),
            None if (-at.clone()).is_nonneg() => {
                return (extent.clone() + at.clone()).maximum(&Dim::ZERO);
            }
            None => {
                self.assume_le(Dim::ZERO, at.clone(), "the slice counts from the front");
                at.clone()
            }
        };
        match at.le(extent) {
            Tri::Yes => at,
            Tri::No => extent.clone(),
            Tri::Unknown if table && at.as_const().is_none() => {
                // The slice guards it.
                at
            }
            Tri::Unknown => at.minimum(extent),
        }
    }

    /// An integer scalar combined with a constant.
    pub(crate) fn with_int(&mut self, f: BinaryFn, a: Value, c: i64) -> Result<Value, Fail> {
        let dtype = self.dtype(a);
        let c = self.b.constant(Tensor::scalar_i64(dtype, c))?;
        Ok(self.b.binary(f, a, c)?)
    }
}
