//! The contraction with a packed right side: what `choose_layouts` makes.

use crate::graph::Value;
use crate::op::*;
use crate::ops::contract::MatMul;
use crate::ops::util::*;
use crate::{Builder, DType, Tensor, TensorType};

/// `packed_matmul(x: [.., m, k], panels: [ceil(n/nr), k, nr])`: `x` times the
/// matrix that [`crate::ops::contract::Pack`] packed. Panels may be of a narrower
/// type than `x`: their elements are widened to `x`'s. Panels of bytes or of bf16 may
/// be in groups, `[ceil(n/nr), ceil(k/group), nr, group]`, then `x` is of such
/// elements too. Bytes are summed in i32, f16 and bf16 in f32.
#[derive(Clone, Debug, PartialEq)]
pub struct PackedMatMul {
    /// Columns of the matrix.
    pub n: usize,
    /// The result's dtype, for floats; none for `x`'s.
    pub out: Option<DType>,
}

fn is_byte(t: DType) -> bool {
    matches!(t, DType::I8 | DType::U8)
}

parse_one!(PackedMatMul, "packed_matmul", |a| Ok(PackedMatMul {
    n: a.index("n")?,
    out: match a.get("out") {
        Ok(_) => Some(a.dtype("out")?),
        Err(_) => None,
    },
}));

impl OpDef for PackedMatMul {
    fn mnemonic(&self) -> &'static str {
        "packed_matmul"
    }

    fn infer(&self, cx: &mut InferCx, args: &[Arg]) -> Result<Vec<Inferred>, TypeError> {
        let (x, w) = (arity(args, 2)?[0].ty, args[1].ty);
        let bytes = is_byte(x.dtype) && is_byte(w.dtype);
        let grouped = bytes || [x.dtype, w.dtype] == [DType::BF16; 2];
        let (fits, wants) = match bytes {
            true => (w.rank() == 4, "[panels, k/group, nr, group]"),
            false => (
                w.rank() == 3 || grouped && w.rank() == 4,
                "[panels, k, nr], or such in groups if both are bf16",
            ),
        };
        if x.rank() < 2 || !fits || !(bytes || x.dtype.is_float()) {
            return type_err(format!("{x} · {w}: needs [.., m, k] and {wants}"));
        }
        if self.out.is_some_and(|t| bytes || !t.is_float()) {
            return type_err(format!("a product of {x} and {w} has no other type"));
        }
        let (panels, nr) = (w.shape[0].as_const(), w.shape[2].as_const());
        if !matches!((panels, nr), (Some(p), Some(nr)) if nr > 0 && p == (self.n as i64 + nr - 1) / nr)
        {
            return type_err(format!("{w} does not hold {} columns", self.n));
        }
        let last = x.rank() - 1;
        let depth = match w.shape.get(3) {
            Some(group) => x.shape[last].ceil_div(group),
            None => x.shape[last].clone(),
        };
        cx.require_same(&depth, &w.shape[1], "the contracted extents agree")?;
        let mut shape = x.shape[..last].to_vec();
        shape.push(self.n.into());
        let dtype = match bytes {
            true => DType::I32,
            false => self.out.unwrap_or(x.dtype),
        };
        Ok(vec![TensorType::new(dtype, shape).into()])
    }

    fn axes(&self, args: &[&TensorType]) -> AxisMap {
        let rank = args[0].rank();
        let mut x: Vec<Option<u8>> = (0..rank - 1).map(|i| Some(i as u8)).collect();
        let mut result = x.clone();
        x.push(None);
        result.push(None);
        AxisMap::Labels {
            args: vec![x, vec![None; args[1].rank()]],
            results: vec![result],
            reduce: None,
        }
    }

    fn eval(&self, cx: &EvalCx, args: &[&Tensor]) -> Result<Vec<Tensor>, EvalError> {
        let (x, w) = (args[0], args[1]);
        let (nr, group) = (w.shape()[2], w.shape().get(3).copied().unwrap_or(1));
        let (k, groups) = (x.shape().last().copied().unwrap_or(0), w.shape()[1]);
        let at = |i: usize, j: usize| {
            let (panel, place) = (j / nr, i / group);
            ((panel * groups + place) * nr + j % nr) * group + i % group
        };
        let places = (0..k).flat_map(|i| (0..self.n).map(move |j| (i, j)));
        let bytes = is_byte(x.dtype());
        let plain = if bytes {
            let columns: Vec<i64> = places.map(|(i, j)| w.get_i64(at(i, j))).collect();
            Tensor::from_i64(w.dtype(), [k, self.n], &columns)
        } else {
            let columns: Vec<f64> = places.map(|(i, j)| w.get_f64(at(i, j))).collect();
            Tensor::from_f64(x.dtype(), [k, self.n], &columns)
        };
        let plain = plain.map_err(|e| EvalError(e.to_string()))?;
        MatMul {
            transpose_a: false,
            transpose_b: false,
            out: if bytes { Some(DType::I32) } else { self.out },
            tf32: false,
        }
        .eval(cx, &[x, &plain])
    }

    fn grad(&self, _: &mut Builder, _: Io<'_>, _: &[Value]) -> Result<Grad, TypeError> {
        Ok(Grad::Unsupported {
            because: "layouts are chosen after differentiation",
        })
    }

    fn attrs(&self) -> Attrs {
        let attrs = Attrs::none().with("n", Attr::Int(self.n as i64));
        match self.out {
            Some(d) => attrs.with("out", Attr::Name(d.name().into())),
            None => attrs,
        }
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
    fn packing_bytes_in_groups_does_not_change_the_product() {
        let data: Vec<i64> = (0..6 * 37)
            .map(|i| ((i * 7919) % 256) as i64 - 128)
            .collect();
        let w = Tensor::from_i64(DType::I8, [6, 37], &data).unwrap();
        let rows: Vec<i64> = data[..18].iter().map(|x| x + 128).collect();
        let x = Tensor::from_i64(DType::U8, [3, 6], &rows).unwrap();
        let binding = RefCell::new(Binding::new());
        let cx = EvalCx::pure(&binding);
        let pack = Pack {
            nr: 16,
            group: 4,
            transposed: false,
        };
        let panels = pack.eval(&cx, &[&w]).unwrap();
        assert_eq!(panels[0].shape(), [3, 2, 16, 4]);
        let product = PackedMatMul { n: 37, out: None };
        let got = product.eval(&cx, &[&x, &panels[0]]).unwrap();
        let plain = MatMul {
            transpose_a: false,
            transpose_b: false,
            out: Some(DType::I32),
            tf32: false,
        };
        assert_eq!(got, plain.eval(&cx, &[&x, &w]).unwrap());
    }

    #[test]
    fn packing_bf16_in_pairs_does_not_change_the_product() {
        let data: Vec<f64> = (0..5 * 37)
            .map(|i| ((i * 7919) % 23) as f64 / 8.0 - 1.0)
            .collect();
        let w = Tensor::from_f64(DType::BF16, [5, 37], &data).unwrap();
        let x = Tensor::from_f64(DType::BF16, [3, 5], &data[..15]).unwrap();
        let binding = RefCell::new(Binding::new());
        let cx = EvalCx::pure(&binding);
        let pack = Pack {
            nr: 16,
            group: 2,
            transposed: false,
        };
        let panels = pack.eval(&cx, &[&w]).unwrap();
        assert_eq!(panels[0].shape(), [3, 3, 16, 2]);
        for out in [None, Some(DType::F32)] {
            let product = PackedMatMul { n: 37, out };
            let got = product.eval(&cx, &[&x, &panels[0]]).unwrap();
            let plain = MatMul {
                transpose_a: false,
                transpose_b: false,
                out,
                tf32: false,
            };
            assert_eq!(got, plain.eval(&cx, &[&x, &w]).unwrap());
            assert_eq!(got[0].dtype(), out.unwrap_or(DType::BF16));
        }
    }

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
            group: 1,
            transposed: false,
        }
        .eval(&cx, &[&w])
        .unwrap();
        let product = PackedMatMul { n: 37, out: None };
        let got = product.eval(&cx, &[&x, &panels[0]]).unwrap();
        let want = MatMul {
            transpose_a: false,
            transpose_b: false,
            out: None,
            tf32: false,
        }
        .eval(&cx, &[&x, &w])
        .unwrap();
        assert_eq!(got, want);
        let ty = TensorType::new(crate::DType::F32, [crate::Dim::from(3), 37.into()]);
        assert_eq!(got[0].ty(), ty);
    }
}
