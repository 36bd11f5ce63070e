//! Control flow: ops that own regions.

use std::sync::Arc;

/// `if(cond: bool[])`: region 0 if true, else region 1; both take no parameters
/// and yield the same dtypes and ranks.
#[derive(Clone, Debug, PartialEq)]
pub struct If;

/// `loop(trip: i64[], cond: bool[], carried…)`: region 0 takes `(i: i64[],
/// carried…)` and yields `(cond: bool[], carried…, scanned…)`. Runs while `i <
/// trip` and `cond` (a negative trip count: no limit). Results: the carried
/// values, then each scanned value stacked along a new first axis (ONNX Loop).
#[derive(Clone, Debug, PartialEq)]
pub struct Loop {
    /// How many values are carried.
    pub carried: usize,
    /// The size of the stacked axis: minted by the loop, or a known trip count.
    pub symbol: Option<Arc<str>>,
}

/// Calls another function of the module on its caller-bound ports.
#[derive(Clone, Debug, PartialEq)]
pub struct Call {
    /// The function's name, without `@`.
    pub function: Arc<str>,
}

/// A group that one kernel computes: region 0 takes the arguments and yields the
/// results; it is closed (no values from outside).
#[derive(Clone, Debug, PartialEq)]
pub struct Fused;

use crate::graph::Value;
use crate::op::*;
use crate::ops::util::*;
use crate::{Builder, DType, Dim, Tensor, TensorType, Tri};

const NO_REGION_GRAD: Grad = Grad::Unsupported {
    because: "control flow is not differentiated yet",
};

fn scalar_of(ty: &TensorType, dtype: DType, what: &str) -> Result<(), TypeError> {
    if ty.dtype == dtype && ty.rank() == 0 {
        Ok(())
    } else {
        type_err(format!("{what} is {dtype}[], not {ty}"))
    }
}

parse_one!(If, "if", |_a| Ok(If));

impl OpDef for If {
    fn mnemonic(&self) -> &'static str {
        "if"
    }

    fn infer(&self, cx: &mut InferCx, args: &[Arg]) -> Result<Vec<Inferred>, TypeError> {
        scalar_of(arity(args, 1)?[0].ty, DType::Bool, "the condition")?;
        let [(p0, yes), (p1, no)] = &cx.regions[..] else {
            return type_err("owns two regions");
        };
        if !p0.is_empty() || !p1.is_empty() || yes.len() != no.len() {
            return type_err("the branches take nothing and yield as many values");
        }
        yes.iter()
            .zip(no)
            .map(|(a, b)| match a.same(b) {
                Tri::Yes => Ok(a.clone().into()),
                _ => type_err(format!("the branches yield {a} and {b}")),
            })
            .collect()
    }

    fn axes(&self, _: &[&TensorType]) -> AxisMap {
        AxisMap::Whole {
            because: "a branch is taken as a whole",
        }
    }

    fn eval(&self, cx: &EvalCx, args: &[&Tensor]) -> Result<Vec<Tensor>, EvalError> {
        (cx.region)(if args[0].get_i64(0) != 0 { 0 } else { 1 }, &[])
    }

    fn grad(&self, _: &mut Builder, _: Io<'_>, _: &[Value]) -> Result<Grad, TypeError> {
        Ok(NO_REGION_GRAD)
    }

    fn attrs(&self) -> Attrs {
        Attrs::none()
    }

    primitive!();
}

impl Loop {
    /// The op from its text form; none if the mnemonic is another's.
    pub fn parse(mnemonic: &str, a: &Attrs) -> Option<Result<Self, TypeError>> {
        (mnemonic == "loop").then(|| {
            let symbol = if a.get("symbol").is_ok() {
                Some(a.str("symbol")?.into())
            } else {
                None
            };
            Ok(Loop {
                carried: a.index("carried")?,
                symbol,
            })
        })
    }
}

impl OpDef for Loop {
    fn mnemonic(&self) -> &'static str {
        "loop"
    }

    fn infer(&self, cx: &mut InferCx, args: &[Arg]) -> Result<Vec<Inferred>, TypeError> {
        arity(args, 2 + self.carried)?;
        scalar_of(args[0].ty, DType::I64, "the trip count")?;
        scalar_of(args[1].ty, DType::Bool, "the condition")?;
        let [(params, results)] = &cx.regions[..] else {
            return type_err("owns one region");
        };
        if params.len() != 1 + self.carried || results.len() < 1 + self.carried {
            return type_err("the body takes and yields another number of values than are carried");
        }
        scalar_of(&params[0], DType::I64, "the iteration")?;
        scalar_of(&results[0], DType::Bool, "the body's condition")?;
        let mut out: Vec<Inferred> = vec![];
        for i in 0..self.carried {
            let (start, inner, next) = (args[2 + i].ty, &params[1 + i], &results[1 + i]);
            if start.same(inner) != Tri::Yes || next.same(inner) != Tri::Yes {
                return type_err(format!(
                    "carried value {i} is {start}, then {inner}, then {next}"
                ));
            }
            out.push(inner.clone().into());
        }
        let steps = match (&self.symbol, args[0].known.and_then(|k| k.dims.first())) {
            (Some(symbol), _) => Some(Dim::sym(symbol.clone())),
            (None, known) => known.cloned(),
        };
        for scanned in &results[1 + self.carried..] {
            let Some(steps) = &steps else {
                return type_err("stacked values need a known or named number of steps");
            };
            let mut shape = vec![steps.clone()];
            shape.extend(scanned.shape.iter().cloned());
            out.push(scanned.with_shape(shape).into());
        }
        Ok(out)
    }

    fn axes(&self, _: &[&TensorType]) -> AxisMap {
        AxisMap::Whole {
            because: "steps depend on each other",
        }
    }

    fn eval(&self, cx: &EvalCx, args: &[&Tensor]) -> Result<Vec<Tensor>, EvalError> {
        let trip = args[0].get_i64(0);
        let mut on = args[1].get_i64(0) != 0;
        let mut carried: Vec<Tensor> = args[2..].iter().map(|&t| t.clone()).collect();
        let mut scanned: Vec<Vec<Tensor>> = vec![];
        let mut i = 0;
        while on && (trip < 0 || i < trip) {
            let mut inputs = vec![Tensor::scalar_i64(DType::I64, i)];
            inputs.extend(carried);
            let mut out = (cx.region)(0, &inputs)?;
            let scans = out.split_off(1 + self.carried);
            on = out[0].get_i64(0) != 0;
            carried = out.split_off(1);
            scanned.resize_with(scans.len(), Vec::new);
            scanned
                .iter_mut()
                .zip(scans)
                .for_each(|(all, s)| all.push(s));
            i += 1;
        }
        if let Some(symbol) = &self.symbol {
            cx.binding.borrow_mut().insert(symbol.clone(), i);
        }
        for all in scanned {
            let first = all
                .first()
                .ok_or_else(|| EvalError("a loop stacked nothing".into()))?;
            if all.iter().any(|t| t.shape() != first.shape()) {
                return Err(EvalError(
                    "a stacked value changed its shape between steps".into(),
                ));
            }
            let shape = [&[all.len()], first.shape()].concat();
            let bytes: Vec<u8> = all.iter().flat_map(|t| t.bytes().to_vec()).collect();
            carried.push(
                Tensor::new(first.dtype(), shape, bytes).map_err(|e| EvalError(e.to_string()))?,
            );
        }
        Ok(carried)
    }

    fn grad(&self, _: &mut Builder, _: Io<'_>, _: &[Value]) -> Result<Grad, TypeError> {
        Ok(NO_REGION_GRAD)
    }

    fn attrs(&self) -> Attrs {
        let attrs = Attrs::none().with("carried", Attr::Int(self.carried as i64));
        match &self.symbol {
            Some(s) => attrs.with("symbol", Attr::Str(s.to_string())),
            None => attrs,
        }
    }

    primitive!();
}

parse_one!(Call, "call", |a| Ok(Call {
    function: a.str("function")?.into()
}));

impl OpDef for Call {
    fn mnemonic(&self) -> &'static str {
        "call"
    }

    fn infer(&self, cx: &mut InferCx, _: &[Arg]) -> Result<Vec<Inferred>, TypeError> {
        match (cx.callee)(&self.function) {
            Some(types) => Ok(types.into_iter().map(Inferred::from).collect()),
            None => type_err(format!("there is no function @{}", self.function)),
        }
    }

    fn axes(&self, _: &[&TensorType]) -> AxisMap {
        AxisMap::Whole {
            because: "the callee decides",
        }
    }

    fn eval(&self, cx: &EvalCx, args: &[&Tensor]) -> Result<Vec<Tensor>, EvalError> {
        let args: Vec<Tensor> = args.iter().map(|&t| t.clone()).collect();
        (cx.call)(&self.function, &args)
    }

    fn grad(&self, _: &mut Builder, _: Io<'_>, _: &[Value]) -> Result<Grad, TypeError> {
        Ok(NO_REGION_GRAD)
    }

    fn attrs(&self) -> Attrs {
        Attrs::none().with("function", Attr::Str(self.function.to_string()))
    }

    primitive!();
}

parse_one!(Fused, "fused", |_a| Ok(Fused));

impl OpDef for Fused {
    fn mnemonic(&self) -> &'static str {
        "fused"
    }

    fn infer(&self, cx: &mut InferCx, args: &[Arg]) -> Result<Vec<Inferred>, TypeError> {
        let [(params, results)] = &cx.regions[..] else {
            return type_err("owns one region");
        };
        if params.len() != args.len() {
            return type_err(format!(
                "the group takes {} values, not {}",
                params.len(),
                args.len()
            ));
        }
        for (p, a) in params.iter().zip(args) {
            if p.same(a.ty) != Tri::Yes {
                return type_err(format!("the group takes {p} where {} is given", a.ty));
            }
        }
        Ok(results.iter().cloned().map(Inferred::from).collect())
    }

    fn axes(&self, _: &[&TensorType]) -> AxisMap {
        AxisMap::Whole {
            because: "groups are formed after sharding",
        }
    }

    fn eval(&self, cx: &EvalCx, args: &[&Tensor]) -> Result<Vec<Tensor>, EvalError> {
        let args: Vec<Tensor> = args.iter().map(|&t| t.clone()).collect();
        (cx.region)(0, &args)
    }

    fn grad(&self, _: &mut Builder, _: Io<'_>, _: &[Value]) -> Result<Grad, TypeError> {
        Ok(Grad::Unsupported {
            because: "groups are formed after differentiation",
        })
    }

    fn attrs(&self) -> Attrs {
        Attrs::none()
    }

    primitive!();
}
