//! Sliding windows: what convolution and pooling are made of.

use crate::graph::Value;
use crate::op::*;
use crate::ops::layout::{Pad, PadMode, move_elements, spaced};
use crate::ops::util::*;
use crate::{Builder, Dim, Tensor, TensorType, Tri};

/// One axis as its windows: an axis of length `L` becomes two, the windows and the
/// places in a window, of `(L − span) / step + 1` and `size` elements, where
/// `span = (size − 1)·dilation + 1`. Element `(i, k)` is `i·step + k·dilation`.
#[derive(Clone, Debug, PartialEq)]
pub struct Unfold {
    /// The axis.
    pub axis: usize,
    /// Places in a window.
    pub size: usize,
    /// From one window to the next.
    pub step: usize,
    /// From one place to the next.
    pub dilation: usize,
}

impl Unfold {
    /// How many elements a window reaches over.
    pub fn span(&self) -> usize {
        (self.size.saturating_sub(1)).saturating_mul(self.dilation) + 1
    }

    /// How many windows an axis of this length has.
    pub fn windows(&self, length: &Dim) -> Dim {
        (length.clone() - Dim::from(self.span())).floor_div(&self.step.into()) + Dim::ONE
    }
}

parse_one!(Unfold, "unfold", |a| Ok(Unfold {
    axis: a.index("axis")?,
    size: a.index("size")?,
    step: a.index("step")?,
    dilation: a.index("dilation")?,
}));

impl OpDef for Unfold {
    fn mnemonic(&self) -> &'static str {
        "unfold"
    }

    fn infer(&self, cx: &mut InferCx, args: &[Arg]) -> Result<Vec<Inferred>, TypeError> {
        let a = arity(args, 1)?[0];
        check_axis(self.axis, a.ty.rank())?;
        // Sizes of windows are counts of elements: none is near this.
        let sane = 1..=i32::MAX as usize;
        if ![self.size, self.step, self.dilation]
            .iter()
            .all(|n| sane.contains(n))
        {
            return type_err("size, step and dilation are 1 or more, and below 2^31");
        }
        let length = a.ty.shape[self.axis].clone();
        let span = Dim::from(self.span());
        match span.le(&length) {
            Tri::Yes => {}
            Tri::No => {
                return type_err(format!(
                    "a window spans {span} elements, axis {} of {} has {length}",
                    self.axis, a.ty
                ));
            }
            Tri::Unknown => cx.guards.push(crate::Guard {
                left: span,
                relation: crate::Relation::Le,
                right: length.clone(),
                because: format!("a window fits into axis {}", self.axis),
            }),
        }
        let mut shape = a.ty.shape.clone();
        shape[self.axis] = self.windows(&length);
        shape.insert(self.axis + 1, self.size.into());
        Ok(vec![a.ty.with_shape(shape).into()])
    }

    fn axes(&self, args: &[&TensorType]) -> AxisMap {
        let arg: Vec<Option<u8>> = (0..args[0].rank())
            .map(|i| (i != self.axis).then_some(i as u8))
            .collect();
        let mut result = arg.clone();
        result.insert(self.axis, None);
        AxisMap::Labels {
            args: vec![arg],
            results: vec![result],
            reduce: None,
        }
    }

    fn eval(&self, _: &EvalCx, args: &[&Tensor]) -> Result<Vec<Tensor>, EvalError> {
        let mut shape = args[0].shape().to_vec();
        let Some(room) = shape[self.axis].checked_sub(self.span()) else {
            return Err(EvalError(format!(
                "a window spans {} elements, axis {} has {}",
                self.span(),
                self.axis,
                shape[self.axis]
            )));
        };
        let own = strides(args[0].shape());
        shape[self.axis] = room / self.step + 1;
        shape.insert(self.axis + 1, self.size);
        Ok(vec![move_elements(args[0], shape, None, |index| {
            let place = index[self.axis] * self.step + index[self.axis + 1] * self.dilation;
            let before = offset(&index[..self.axis], &own[..self.axis]);
            let after = offset(&index[self.axis + 2..], &own[self.axis + 1..]);
            Some(before + place * own[self.axis] + after)
        })?])
    }

    /// Each place in the windows adds its gradients to where it was read from.
    fn grad(&self, b: &mut Builder, io: Io<'_>, d: &[Value]) -> Result<Grad, TypeError> {
        let shape = b.shape(io.args[0]);
        let windows = self.windows(&shape[self.axis]);
        let reached = (windows.clone() - Dim::ONE) * Dim::from(self.step) + Dim::ONE;
        let zero = b.scalar_like(d[0], 0.0)?;
        let mut sum: Option<Value> = None;
        for k in 0..self.size {
            let part = b.slice_axis(d[0], self.axis + 1, k.into(), Dim::ONE)?;
            let mut flat = shape.clone();
            flat[self.axis] = windows.clone();
            let part = b.reshape(part, &flat)?;
            let part = spaced(b, part, self.axis, self.step)?;
            let (mut lo, mut hi) = (vec![Dim::ZERO; shape.len()], vec![Dim::ZERO; shape.len()]);
            lo[self.axis] = (k * self.dilation).into();
            hi[self.axis] = shape[self.axis].clone() - lo[self.axis].clone() - reached.clone();
            let mode = PadMode::Constant;
            let part = b.one(Pad { lo, hi, mode }, &[part, zero])?;
            let part = b.reshape(part, &shape)?;
            sum = Some(match sum {
                Some(s) => b.add(s, part)?,
                None => part,
            });
        }
        Ok(Grad::Args(vec![sum]))
    }

    fn attrs(&self) -> Attrs {
        Attrs::none()
            .with("axis", Attr::Int(self.axis as i64))
            .with("size", Attr::Int(self.size as i64))
            .with("step", Attr::Int(self.step as i64))
            .with("dilation", Attr::Int(self.dilation as i64))
    }

    primitive!();
}

#[allow(missing_docs)]
impl Builder<'_> {
    pub fn unfold(
        &mut self,
        x: Value,
        axis: usize,
        size: usize,
        step: usize,
        dilation: usize,
    ) -> Result<Value, TypeError> {
        self.one(
            Unfold {
                axis,
                size,
                step,
                dilation,
            },
            &[x],
        )
    }
}
