//! Control flow: ops that own regions.

use std::collections::BTreeMap;
use std::sync::Arc;

/// A size known only when a node has run, and the name it then has: the extent
/// of one axis of one result.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct MintedSize {
    /// Which result.
    pub result: usize,
    /// Which axis of it.
    pub axis: usize,
    /// The size's name.
    pub symbol: Arc<str>,
}

/// `if(cond: bool[])`: region 0 if true, else region 1; both take no parameters
/// and yield the same dtypes and ranks. Extents that differ between the branches
/// are named in `sizes`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct If {
    /// Extents that the branch taken decides.
    pub sizes: Vec<MintedSize>,
}

/// `loop(trip: i64[], cond: bool[], carried…)`: region 0 takes `(i: i64[],
/// carried…)` and yields `(cond: bool[], carried…, scanned…)`. Runs while `i <
/// trip` and `cond` (a negative trip count: no limit). Results: the carried
/// values, then each scanned value stacked along a new first axis (ONNX Loop).
#[derive(Clone, Debug, PartialEq)]
pub struct Loop {
    /// How many values are carried.
    pub carried: usize,
    /// The size of the stacked axis, minted by the loop. None: the trip count,
    /// which must be known, and a loop that stops earlier is an error.
    pub symbol: Option<Arc<str>>,
    /// Extents of carried values that change from step to step: inside the
    /// region the name is the extent at the step's start (the region's parameter
    /// has it), after the loop the last.
    pub sizes: Vec<MintedSize>,
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

/// The name of this result's axis, if it has one.
fn minted(sizes: &[MintedSize], result: usize, axis: usize) -> Option<&Arc<str>> {
    let found = sizes.iter().find(|m| m.result == result && m.axis == axis);
    found.map(|m| &m.symbol)
}

/// Gives the named sizes of these results their values.
fn bind(cx: &EvalCx, sizes: &[MintedSize], results: &[Tensor]) -> Result<(), EvalError> {
    for m in sizes {
        let extent = results.get(m.result).and_then(|t| t.shape().get(m.axis));
        let Some(&extent) = extent else {
            return Err(EvalError(format!(
                "result {} has no axis {}",
                m.result, m.axis
            )));
        };
        cx.binding
            .borrow_mut()
            .insert(m.symbol.clone(), extent as i64);
    }
    Ok(())
}

/// `sized=[result, axis, …]` and `sizes=[<name>, …]`.
fn with_sizes(attrs: Attrs, sizes: &[MintedSize]) -> Attrs {
    if sizes.is_empty() {
        return attrs;
    }
    let places = sizes.iter().flat_map(|m| [m.result as i64, m.axis as i64]);
    let names = sizes.iter().map(|m| Dim::sym(m.symbol.clone())).collect();
    attrs
        .with_ints("sized", places)
        .with("sizes", Attr::Dims(names))
}

fn parse_sizes(attrs: &Attrs) -> Result<Vec<MintedSize>, TypeError> {
    if attrs.get("sized").is_err() {
        return Ok(vec![]);
    }
    let (places, names) = (attrs.indices("sized")?, attrs.dims("sizes")?);
    if places.len() != 2 * names.len() {
        return type_err("`sized` gives a result and an axis for each of `sizes`");
    }
    let pairs = places.chunks_exact(2).zip(&names);
    pairs
        .map(|(place, name)| match name.as_sym() {
            Some(symbol) => Ok(MintedSize {
                result: place[0],
                axis: place[1],
                symbol: symbol.clone(),
            }),
            None => type_err(format!("`{name}` is not a name for a size")),
        })
        .collect()
}

parse_one!(If, "if", |attrs| Ok(If {
    sizes: parse_sizes(attrs)?
}));

impl If {
    /// The type that result `i` has whichever branch is taken.
    fn join(&self, i: usize, a: &TensorType, b: &TensorType) -> Result<TensorType, TypeError> {
        if a.dtype != b.dtype || a.rank() != b.rank() || a.encoding != b.encoding {
            return type_err(format!("the branches yield {a} and {b}"));
        }
        let extent = |(axis, (x, y)): (usize, (&Dim, &Dim))| match minted(&self.sizes, i, axis) {
            Some(symbol) => Ok(Dim::sym(symbol.clone())),
            None if x.same(y) == Tri::Yes => Ok(x.clone()),
            None => type_err(format!(
                "the branches yield {a} and {b}, and axis {axis} of result {i} has no name in `sizes`"
            )),
        };
        let shape = a.shape.iter().zip(&b.shape).enumerate().map(extent);
        Ok(a.with_shape(shape.collect::<Result<Vec<_>, _>>()?))
    }
}

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
        let joined = yes
            .iter()
            .zip(no)
            .enumerate()
            .map(|(i, (a, b))| self.join(i, a, b));
        joined.map(|ty| ty.map(Inferred::from)).collect()
    }

    fn axes(&self, _: &[&TensorType]) -> AxisMap {
        AxisMap::Whole {
            because: "a branch is taken as a whole",
        }
    }

    fn eval(&self, cx: &EvalCx, args: &[&Tensor]) -> Result<Vec<Tensor>, EvalError> {
        let results = (cx.region)(if args[0].get_i64(0) != 0 { 0 } else { 1 }, &[])?;
        bind(cx, &self.sizes, &results)?;
        Ok(results)
    }

    fn grad(&self, _: &mut Builder, _: Io<'_>, _: &[Value]) -> Result<Grad, TypeError> {
        Ok(NO_REGION_GRAD)
    }

    fn attrs(&self) -> Attrs {
        with_sizes(Attrs::none(), &self.sizes)
    }

    primitive!();
}

parse_one!(Loop, "loop", |attrs| Ok(Loop {
    carried: attrs.index("carried")?,
    symbol: match attrs.get("symbol") {
        Ok(_) => match attrs.dim("symbol")?.as_sym() {
            Some(symbol) => Some(symbol.clone()),
            None => return type_err("`symbol` is not a name for a size"),
        },
        Err(_) => None,
    },
    sizes: parse_sizes(attrs)?,
}));

impl Loop {
    /// The type of carried value `i` in the region and after it, from its types at
    /// the start, as the region's parameter and as the region's result.
    fn carried(
        &self,
        cx: &mut InferCx,
        i: usize,
        [start, inner, next]: [&TensorType; 3],
    ) -> Result<TensorType, TypeError> {
        let like = |ty: &TensorType| {
            ty.dtype == inner.dtype && ty.rank() == inner.rank() && ty.encoding == inner.encoding
        };
        if !like(start) || !like(next) {
            return type_err(format!(
                "carried value {i} is {start}, then {inner}, then {next}"
            ));
        }
        for axis in 0..inner.rank() {
            let extent = &inner.shape[axis];
            match minted(&self.sizes, i, axis) {
                Some(symbol) if extent.as_sym() == Some(symbol) => {}
                Some(symbol) => {
                    return type_err(format!(
                        "axis {axis} of carried value {i} is {extent}, not `{symbol}`"
                    ));
                }
                None => {
                    let because = format!("axis {axis} of carried value {i} changes its extent");
                    cx.require_same(extent, &start.shape[axis], &because)?;
                    cx.require_same(extent, &next.shape[axis], &because)?;
                }
            }
        }
        Ok(inner.clone())
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
        let (params, results) = (params.clone(), results.clone());
        if params.len() != 1 + self.carried || results.len() < 1 + self.carried {
            return type_err(format!(
                "carries {} values, but its body takes {} and yields {}",
                self.carried,
                params.len(),
                results.len()
            ));
        }
        scalar_of(&params[0], DType::I64, "the iteration")?;
        scalar_of(&results[0], DType::Bool, "the body's condition")?;
        let mut out: Vec<Inferred> = vec![];
        for i in 0..self.carried {
            let types = [args[2 + i].ty, &params[1 + i], &results[1 + i]];
            out.push(self.carried(cx, i, types)?.into());
        }
        let scanned = &results[1 + self.carried..];
        let known = args[0].known.and_then(|k| k.dims.first());
        let steps = match (&self.symbol, known) {
            (Some(symbol), _) => Dim::sym(symbol.clone()),
            (None, Some(trip)) if trip.as_const().is_none_or(|c| c >= 0) => trip.clone(),
            (None, _) if scanned.is_empty() => Dim::ZERO,
            (None, _) => return type_err("stacked values need a known trip count or a `symbol`"),
        };
        for ty in scanned {
            plain(ty)?;
            let shape = std::iter::once(&steps).chain(&ty.shape).cloned();
            out.push(ty.with_shape(shape.collect::<Vec<_>>()).into());
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
        let types = (cx.region_results)(0);
        let scans = types.len().saturating_sub(1 + self.carried);
        let mut scanned: Vec<Vec<Tensor>> = vec![vec![]; scans];
        let mut steps = 0;
        while on && (trip < 0 || steps < trip) {
            bind(cx, &self.sizes, &carried)?;
            let mut inputs = vec![Tensor::scalar_i64(DType::I64, steps)];
            inputs.extend(carried);
            let mut out = (cx.region)(0, &inputs)?;
            for (all, one) in scanned.iter_mut().zip(out.drain(1 + self.carried..)) {
                all.push(one);
            }
            on = out[0].get_i64(0) != 0;
            carried = out.split_off(1);
            steps += 1;
        }
        bind(cx, &self.sizes, &carried)?;
        match &self.symbol {
            Some(symbol) => drop(cx.binding.borrow_mut().insert(symbol.clone(), steps)),
            None if scans > 0 && steps != trip => {
                return Err(EvalError(format!(
                    "the loop stopped after {steps} of {trip} steps"
                )));
            }
            None => {}
        }
        for (all, ty) in scanned.iter().zip(types.iter().skip(1 + self.carried)) {
            carried.push(stack(cx, all, ty)?);
        }
        Ok(carried)
    }

    fn grad(&self, _: &mut Builder, _: Io<'_>, _: &[Value]) -> Result<Grad, TypeError> {
        Ok(NO_REGION_GRAD)
    }

    fn attrs(&self) -> Attrs {
        let attrs = Attrs::none().with("carried", Attr::Int(self.carried as i64));
        let attrs = match &self.symbol {
            Some(symbol) => attrs.with("symbol", Attr::Dim(Dim::sym(symbol.clone()))),
            None => attrs,
        };
        with_sizes(attrs, &self.sizes)
    }

    primitive!();
}

/// The tensors along a new first axis; of type `ty` where there are none.
fn stack(cx: &EvalCx, all: &[Tensor], ty: &TensorType) -> Result<Tensor, EvalError> {
    let shape = match all.first() {
        Some(first) => first.shape().to_vec(),
        None => cx.dims(&ty.shape)?,
    };
    if let Some(other) = all.iter().find(|t| t.shape() != shape) {
        return Err(EvalError(format!(
            "a stacked value is {shape:?} and later {:?}",
            other.shape()
        )));
    }
    let whole = [&[all.len()], &shape[..]].concat();
    let stacked = if ty.dtype == DType::Str {
        Tensor::strings(
            whole,
            all.iter().flat_map(|t| t.as_strings().to_vec()).collect(),
        )
    } else if ty.dtype.bits() < 8 {
        let values: Vec<i64> = all.iter().flat_map(|t| t.to_i64()).collect();
        Tensor::from_i64(ty.dtype, whole, &values)
    } else {
        let bytes: Vec<u8> = all.iter().flat_map(|t| t.bytes().to_vec()).collect();
        Tensor::new(ty.dtype, whole, bytes)
    };
    stacked.map_err(|e| EvalError(e.to_string()))
}

parse_one!(Call, "call", |a| Ok(Call {
    function: a.str("function")?.into()
}));

impl Call {
    /// What the callee's sizes are in the caller: an extent that is a bare name
    /// gives the name its meaning, the others must agree.
    fn sizes(
        &self,
        cx: &mut InferCx,
        params: &[TensorType],
        args: &[Arg],
    ) -> Result<BTreeMap<Arc<str>, Dim>, TypeError> {
        arity(args, params.len())?;
        let mut sizes = BTreeMap::new();
        for (p, a) in params.iter().zip(args) {
            let like = p.dtype == a.ty.dtype && p.rank() == a.ty.rank();
            if !like || p.encoding != a.ty.encoding {
                return type_err(format!("@{} takes {p}, not {}", self.function, a.ty));
            }
            for (d, given) in p.shape.iter().zip(&a.ty.shape) {
                if let Some(symbol) = d.as_sym() {
                    sizes.entry(symbol.clone()).or_insert_with(|| given.clone());
                }
            }
        }
        for (p, a) in params.iter().zip(args) {
            for (d, given) in p.shape.iter().zip(&a.ty.shape) {
                let want = d.substitute(&|s| sizes.get(s).cloned());
                cx.require_same(given, &want, "arguments have the callee's extents")?;
            }
        }
        Ok(sizes)
    }
}

impl OpDef for Call {
    fn mnemonic(&self) -> &'static str {
        "call"
    }

    fn infer(&self, cx: &mut InferCx, args: &[Arg]) -> Result<Vec<Inferred>, TypeError> {
        let Some(f) = (cx.callee)(&self.function) else {
            return type_err(format!("there is no function @{}", self.function));
        };
        let sizes = self.sizes(cx, &f.params, args)?;
        let with = |s: &str| sizes.get(s).cloned();
        let caller = |ty: &TensorType| {
            let shape = ty.shape.iter().map(|d| d.substitute(&with));
            ty.with_shape(shape.collect::<Vec<_>>())
        };
        Ok(f.results.iter().map(|ty| caller(ty).into()).collect())
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
