//! The rules of composites that training needs: loss, embedding, optimizer.

use crate::builder::Builder;
use crate::graph::Value;
use crate::op::*;
use crate::ops::composite::*;
use crate::ops::index::GatherElements;
use crate::ops::source::Iota;
use crate::{BinaryFn, CompareFn, DType, Dim, ReduceFn, TensorType, UnaryFn};

impl CrossEntropy {
    /// Which targets count, as 1 and 0; the targets with 0 for those that do not;
    /// and how many count.
    fn counted(
        &self,
        b: &mut Builder,
        target: Value,
        dtype: DType,
    ) -> Result<[Value; 3], TypeError> {
        let target = b.cast(target, DType::I64)?;
        let (ignore, zero) = (
            b.constant(crate::Tensor::scalar_i64(DType::I64, self.ignore))?,
            b.scalar(DType::I64, 0.0)?,
        );
        let counts = b.compare(CompareFn::Ne, target, ignore)?;
        let safe = b.select(counts, target, zero)?;
        let counts = b.cast(counts, dtype)?;
        let axes: Vec<usize> = (0..b.shape(counts).len()).collect();
        let total = b.reduce(ReduceFn::Sum, counts, &axes, false)?;
        Ok([counts, safe, total])
    }
}

impl Composite for CrossEntropy {
    const MNEMONIC: &'static str = "cross_entropy";
    const DONATES: &'static [usize] = &[];

    fn check(&self, args: &[&TensorType]) -> Result<(), TypeError> {
        count(args, 2)?;
        let (logits, target) = (args[0], args[1]);
        float(logits, "the logits")?;
        if !target.dtype.is_int() || logits.rank() != target.rank() + 1 {
            return type_err(format!(
                "the targets of {logits} are integers without its last axis, not {target}"
            ));
        }
        for (a, b) in logits.shape.iter().zip(&target.shape) {
            may_be(a, b, "the extents of logits and targets")?;
        }
        Ok(())
    }

    fn expand(&self, b: &mut Builder, args: &[Value]) -> Result<Vec<Value>, TypeError> {
        let x = widen(b, args[0])?;
        let dtype = b.ty(x).dtype;
        let axis = b.shape(x).len() - 1;
        let log = b.one(Softmax { axis, log: true }, &[x])?;
        let [counts, safe, total] = self.counted(b, args[1], dtype)?;
        let mut column = b.shape(safe);
        let shape = column.clone();
        column.push(Dim::ONE);
        let safe = b.reshape(safe, &column)?;
        let picked = b.one(GatherElements { axis }, &[log, safe])?;
        let picked = b.reshape(picked, &shape)?;
        // Selected rather than multiplied: an infinite loss that does not count
        // must not turn the sum into NaN.
        let (zero, one) = (b.scalar_like(picked, 0.0)?, b.scalar_like(counts, 1.0)?);
        let counted = b.compare(CompareFn::Eq, counts, one)?;
        let picked = b.select(counted, picked, zero)?;
        let axes: Vec<usize> = (0..shape.len()).collect();
        let sum = b.reduce(ReduceFn::Sum, picked, &axes, false)?;
        let mean = b.div(sum, total)?;
        Ok(vec![b.unary(UnaryFn::Neg, mean)?])
    }

    /// `(softmax(logits) − onehot(target)) · counts / total · d`.
    fn grad(&self, b: &mut Builder, io: Io<'_>, d: &[Value]) -> Result<Grad, TypeError> {
        let out = b.ty(io.args[0]).dtype;
        let x = widen(b, io.args[0])?;
        let dtype = b.ty(x).dtype;
        let shape = b.shape(x);
        let axis = shape.len() - 1;
        let p = b.one(Softmax { axis, log: false }, &[x])?;
        let [counts, safe, total] = self.counted(b, io.args[1], dtype)?;
        let mut column = b.shape(safe);
        column.push(Dim::ONE);
        let (safe, counts) = (b.reshape(safe, &column)?, b.reshape(counts, &column)?);
        let classes = b.one(
            Iota {
                shape: vec![shape[axis].clone()],
                axis: 0,
                dtype: DType::I64,
            },
            &[],
        )?;
        let hit = b.compare(CompareFn::Eq, safe, classes)?;
        let hit = b.cast(hit, dtype)?;
        let diff = b.sub(p, hit)?;
        let share = b.div(d[0], total)?;
        let weight = b.mul(counts, share)?;
        let dx = b.mul(diff, weight)?;
        Ok(Grad::Args(vec![Some(b.cast(dx, out)?), None]))
    }

    fn attrs(&self) -> Attrs {
        Attrs::none().with("ignore", Attr::Int(self.ignore))
    }

    fn from_attrs(a: &Attrs) -> Result<Self, TypeError> {
        Ok(CrossEntropy {
            ignore: a.int("ignore")?,
        })
    }
}

impl Composite for Embedding {
    const MNEMONIC: &'static str = "embedding";
    const DONATES: &'static [usize] = &[];

    fn check(&self, args: &[&TensorType]) -> Result<(), TypeError> {
        count(args, 2)?;
        match (args[0].rank(), args[1].dtype.is_int()) {
            (2, true) => Ok(()),
            _ => type_err(format!(
                "looks integers up in rows of a matrix, not {} in {}",
                args[1], args[0]
            )),
        }
    }

    fn expand(&self, b: &mut Builder, args: &[Value]) -> Result<Vec<Value>, TypeError> {
        Ok(vec![b.gather(args[0], args[1], 0)?])
    }

    grad_by_expansion!();

    fn attrs(&self) -> Attrs {
        Attrs::none()
    }

    fn from_attrs(_: &Attrs) -> Result<Self, TypeError> {
        Ok(Embedding)
    }
}

impl AdamW {
    /// `m/(1 − βᵗ)`; the power in f64, since `1 − βᵗ` cancels.
    fn corrected(
        &self,
        b: &mut Builder,
        m: Value,
        beta: f64,
        step: Value,
    ) -> Result<Value, TypeError> {
        let dtype = b.ty(m).dtype;
        let step = b.cast(step, DType::F64)?;
        let (beta, one) = (b.scalar(DType::F64, beta)?, b.scalar(DType::F64, 1.0)?);
        let power = b.binary(BinaryFn::Pow, beta, step)?;
        let rest = b.sub(one, power)?;
        let rest = b.cast(rest, dtype)?;
        b.div(m, rest)
    }

    /// `β·m + (1 − β)·x`.
    fn moment(&self, b: &mut Builder, m: Value, x: Value, beta: f64) -> Result<Value, TypeError> {
        let (old, new) = (b.scalar_like(m, beta)?, b.scalar_like(m, 1.0 - beta)?);
        let (old, new) = (b.mul(old, m)?, b.mul(new, x)?);
        b.add(old, new)
    }
}

impl Composite for AdamW {
    const MNEMONIC: &'static str = "adamw";
    const DONATES: &'static [usize] = &[0, 2, 3];

    fn check(&self, args: &[&TensorType]) -> Result<(), TypeError> {
        count(args, 6)?;
        for (ty, what) in args.iter().zip([
            "the parameter",
            "the gradient",
            "a moment",
            "a moment",
            "the rate",
        ]) {
            float(ty, what)?;
        }
        for other in &args[1..4] {
            if other.rank() != args[0].rank() {
                return type_err(format!(
                    "{other} does not go with a parameter of {}",
                    args[0]
                ));
            }
            for (a, b) in args[0].shape.iter().zip(&other.shape) {
                may_be(a, b, "the extents of parameter, gradient and moments")?;
            }
        }
        if args[4].rank() != 0 || args[5].rank() != 0 || !args[5].dtype.is_int() {
            return type_err(format!(
                "rate and step are a float and an integer scalar, not {} and {}",
                args[4], args[5]
            ));
        }
        Ok(())
    }

    fn expand(&self, b: &mut Builder, args: &[Value]) -> Result<Vec<Value>, TypeError> {
        let step = args[5];
        let compute = wide(b.ty(args[0]).dtype);
        let mut w = vec![];
        for &a in &args[..5] {
            w.push(b.cast(a, compute)?);
        }
        let (p, g, m, v, lr) = (w[0], w[1], w[2], w[3], w[4]);
        let m = self.moment(b, m, g, self.beta1)?;
        let square = b.mul(g, g)?;
        let v = self.moment(b, v, square, self.beta2)?;
        let mean = self.corrected(b, m, self.beta1, step)?;
        let var = self.corrected(b, v, self.beta2, step)?;
        let root = b.unary(UnaryFn::Sqrt, var)?;
        let eps = b.scalar_like(root, self.eps)?;
        let root = b.add(root, eps)?;
        let update = b.div(mean, root)?;
        let decay = b.scalar_like(p, self.weight_decay)?;
        let decay = b.mul(decay, p)?;
        let update = b.add(update, decay)?;
        let update = b.mul(lr, update)?;
        let p = b.sub(p, update)?;
        let mut out = vec![];
        for (value, like) in [(p, args[0]), (m, args[2]), (v, args[3])] {
            let dtype = b.ty(like).dtype;
            out.push(b.cast(value, dtype)?);
        }
        Ok(out)
    }

    fn grad(&self, _: &mut Builder, _: Io<'_>, _: &[Value]) -> Result<Grad, TypeError> {
        Ok(Grad::Unsupported {
            because: "an optimizer's update is not differentiated",
        })
    }

    fn attrs(&self) -> Attrs {
        Attrs::none()
            .with("beta1", Attr::Float(self.beta1))
            .with("beta2", Attr::Float(self.beta2))
            .with("eps", Attr::Float(self.eps))
            .with("weight_decay", Attr::Float(self.weight_decay))
    }

    fn from_attrs(a: &Attrs) -> Result<Self, TypeError> {
        Ok(AdamW {
            beta1: a.float("beta1")?,
            beta2: a.float("beta2")?,
            eps: a.float("eps")?,
            weight_decay: a.float("weight_decay")?,
        })
    }
}
