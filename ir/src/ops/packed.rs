//! The contraction with a packed right side: what `choose_layouts` makes.

use crate::graph::Value;
use crate::op::*;
use crate::ops::contract::MatMul;
use crate::ops::util::*;
use crate::{Builder, Tensor, TensorType};

/// `packed_matmul(x: [.., m, k], panels: [ceil(n/nr), k, nr])`: `x` times the
/// matrix that [`crate::ops::contract::Pack`] packed. Panels may be of a narrower
/// type than `x`: their elements are widened to `x`'s.
#[derive(Clone, Debug, PartialEq)]
pub struct PackedMatMul {
    /// Columns of the matrix.
    pub n: usize,
}

parse_one!(PackedMatMul, "packed_matmul", |a| Ok(PackedMatMul {
    n: a.index("n")?
}));

impl OpDef for PackedMatMul {
    fn mnemonic(&self) -> &'static str {
        "packed_matmul"
    }

    fn infer(&self, cx: &mut InferCx, args: &[Arg]) -> Result<Vec<Inferred>, TypeError> {
        let (x, w) = (arity(args, 2)?[0].ty, args[1].ty);
        if x.rank() < 2 || w.rank() != 3 || !x.dtype.is_float() {
            return type_err(format!("{x} · {w}: needs [.., m, k] and [panels, k, nr]"));
        }
        let (panels, nr) = (w.shape[0].as_const(), w.shape[2].as_const());
        if !matches!((panels, nr), (Some(p), Some(nr)) if nr > 0 && p == (self.n as i64 + nr - 1) / nr)
        {
            return type_err(format!("{w} does not hold {} columns", self.n));
        }
        let last = x.rank() - 1;
        cx.require_same(&x.shape[last], &w.shape[1], "the contracted extents agree")?;
        let mut shape = x.shape[..last].to_vec();
        shape.push(self.n.into());
        Ok(vec![x.with_shape(shape).into()])
    }

    fn axes(&self, args: &[&TensorType]) -> AxisMap {
        let rank = args[0].rank();
        let mut x: Vec<Option<u8>> = (0..rank - 1).map(|i| Some(i as u8)).collect();
        let mut result = x.clone();
        x.push(None);
        result.push(None);
        AxisMap::Labels {
            args: vec![x, vec![None; 3]],
            results: vec![result],
            reduce: None,
        }
    }

    fn eval(&self, cx: &EvalCx, args: &[&Tensor]) -> Result<Vec<Tensor>, EvalError> {
        let (x, w) = (args[0], args[1]);
        let (k, nr) = (w.shape()[1], w.shape()[2]);
        let mut columns = vec![0.0; k * self.n];
        for i in 0..k {
            for j in 0..self.n {
                columns[i * self.n + j] = w.get_f64((j / nr * k + i) * nr + j % nr);
            }
        }
        let plain = Tensor::from_f64(x.dtype(), [k, self.n], &columns)
            .map_err(|e| EvalError(e.to_string()))?;
        MatMul {
            transpose_a: false,
            transpose_b: false,
            out: None,
        }
        .eval(cx, &[x, &plain])
    }

    fn grad(&self, _: &mut Builder, _: Io<'_>, _: &[Value]) -> Result<Grad, TypeError> {
        Ok(Grad::Unsupported {
            because: "layouts are chosen after differentiation",
        })
    }

    fn attrs(&self) -> Attrs {
        Attrs::none().with("n", Attr::Int(self.n as i64))
    }

    primitive!();
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Binding;
    use crate::ops::contract::Pack;
    use std::cell::RefCell;

    #[test]
    fn packing_does_not_change_the_product() {
        let data: Vec<f64> = (0..5 * 37)
            .map(|i| ((i * 7919) % 23) as f64 - 11.0)
            .collect();
        let w = Tensor::from_f64(crate::DType::F32, [5, 37], &data).unwrap();
        let x = Tensor::from_f64(crate::DType::F32, [3, 5], &data[..15]).unwrap();
        let binding = RefCell::new(Binding::new());
        let cx = EvalCx::pure(&binding);
        let panels = Pack {
            nr: 16,
            transposed: false,
        }
        .eval(&cx, &[&w])
        .unwrap();
        let got = PackedMatMul { n: 37 }.eval(&cx, &[&x, &panels[0]]).unwrap();
        let want = MatMul {
            transpose_a: false,
            transpose_b: false,
            out: None,
        }
        .eval(&cx, &[&x, &w])
        .unwrap();
        assert_eq!(got, want);
        let ty = TensorType::new(crate::DType::F32, [crate::Dim::from(3), 37.into()]);
        assert_eq!(got[0].ty(), ty);
    }
}
