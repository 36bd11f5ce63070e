//! Composites: ops defined by their expansion.

use crate::graph::{Graph, Value};
use crate::module::Globals;
use crate::op::*;
use crate::ops::source::Iota;
use crate::{BinaryFn, Builder, CompareFn, DType, Dim, ReduceFn, Tensor, TensorType, UnaryFn};
use std::collections::BTreeMap;

/// Softmax (or its logarithm) along an axis.
#[derive(Clone, Debug, PartialEq)]
pub struct Softmax {
    /// The axis.
    pub axis: usize,
    /// The logarithm.
    pub log: bool,
}

/// GELU (Hendrycks and Gimpel 2016): exact by erf, or the tanh approximation.
#[derive(Clone, Debug, PartialEq)]
pub struct Gelu {
    /// The tanh approximation.
    pub tanh: bool,
}

/// `x * sigmoid(x)`.
#[derive(Clone, Debug, PartialEq)]
pub struct Silu;

/// `layer_norm(x, scale, bias)` over the axes from `axis` on (Ba et al. 2016);
/// scale and bias have the shape of those axes.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerNorm {
    /// First axis normalised.
    pub axis: usize,
    /// Added to the variance.
    pub eps: f64,
}

/// `rms_norm(x, scale)` over the axes from `axis` on (Zhang and Sennrich 2019).
#[derive(Clone, Debug, PartialEq)]
pub struct RmsNorm {
    /// First axis normalised.
    pub axis: usize,
    /// Added to the mean square.
    pub eps: f64,
}

/// `cross_entropy(logits: f[.., classes], target: i64[..]) -> f[]`: the mean of
/// −log softmax(logits)[target] over targets that are not `ignore`.
#[derive(Clone, Debug, PartialEq)]
pub struct CrossEntropy {
    /// The target that does not count.
    pub ignore: i64,
}

/// `embedding(table: f[n, d], ids: i64[..]) -> f[.., d]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Embedding;

/// `adamw(p, g, m, v, lr: f32[], step: i64[]) -> (p, m, v)` (Loshchilov and
/// Hutter 2019), bias-corrected, `step` counting from 1. Consumes p, m, v.
#[derive(Clone, Debug, PartialEq)]
pub struct AdamW {
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root.
    pub eps: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
}

/// `dequantize(x: int, scale, zero_point?)`: `(x − zero_point) * scale`, per
/// tensor (rank 0) or per element of `axis` (rank 1), or in blocks along `axis`.
#[derive(Clone, Debug, PartialEq)]
pub struct Dequantize {
    /// The axis of rank-1 or blocked scales.
    pub axis: usize,
    /// Elements a block; 0 for none.
    pub block: usize,
}

/// `quantize(x: float, scale, zero_point?)`: round half to even, add the zero
/// point, saturate to `to`.
#[derive(Clone, Debug, PartialEq)]
pub struct Quantize {
    /// The axis of rank-1 or blocked scales.
    pub axis: usize,
    /// Elements a block; 0 for none.
    pub block: usize,
    /// The result's dtype.
    pub to: DType,
}

/// Ops defined by their expansion: the blanket `OpDef` derives the rest.
pub trait Composite: Sized {
    /// The name in the text form.
    const MNEMONIC: &'static str;
    /// Arguments whose memory becomes a result's.
    const DONATES: &'static [usize] = &[];

    /// The same in other ops. Called with arguments of any types: it checks them.
    fn expand(&self, b: &mut Builder, args: &[Value]) -> Result<Vec<Value>, TypeError>;

    /// The attributes, for printing.
    fn attrs(&self) -> Attrs;

    /// From the attributes.
    fn from_attrs(attrs: &Attrs) -> Result<Self, TypeError>;
}

/// The expansion on its own: a graph from the arguments to the results.
fn expansion<T: Composite>(op: &T, args: &[&TensorType]) -> Result<Graph, TypeError> {
    let globals = Globals::new();
    let mut graph = Graph::new("expansion");
    let params: Vec<Value> = args
        .iter()
        .enumerate()
        .map(|(i, ty)| graph.add_param(format!("arg{i}"), crate::PortKind::Caller, (*ty).clone()))
        .collect();
    let results = op.expand(
        &mut Builder::at_end(&mut graph, &globals, Graph::BODY),
        &params,
    )?;
    for (i, v) in results.into_iter().enumerate() {
        graph.add_result(format!("result{i}"), crate::PortKind::Caller, v);
    }
    Ok(graph)
}

impl<T: Composite> OpDef for T {
    fn mnemonic(&self) -> &'static str {
        T::MNEMONIC
    }

    fn infer(&self, cx: &mut InferCx, args: &[Arg]) -> Result<Vec<Inferred>, TypeError> {
        let types: Vec<&TensorType> = args.iter().map(|a| a.ty).collect();
        let graph = expansion(self, &types)?;
        cx.guards.extend(graph.guards.iter().cloned());
        Ok(graph
            .body()
            .results
            .iter()
            .map(|&v| graph.ty(v).clone().into())
            .collect())
    }

    fn axes(&self, args: &[&TensorType]) -> AxisMap {
        match expansion(self, args) {
            Ok(graph) => axes_of(&graph),
            Err(_) => AxisMap::Whole {
                because: "the arguments do not type",
            },
        }
    }

    fn eval(&self, cx: &EvalCx, args: &[&Tensor]) -> Result<Vec<Tensor>, EvalError> {
        let types: Vec<TensorType> = args.iter().map(|t| t.ty()).collect();
        let graph =
            expansion(self, &types.iter().collect::<Vec<_>>()).map_err(|e| EvalError(e.0))?;
        let mut values: BTreeMap<Value, Tensor> = BTreeMap::new();
        graph
            .body()
            .params
            .iter()
            .zip(args)
            .for_each(|(&v, &t)| drop(values.insert(v, t.clone())));
        for &n in &graph.body().nodes {
            let node = graph.node(n);
            let inputs: Vec<&Tensor> = node.args.iter().map(|v| &values[v]).collect();
            let outputs = node.op.def().eval(cx, &inputs)?;
            node.results
                .iter()
                .zip(outputs)
                .for_each(|(&v, t)| drop(values.insert(v, t)));
        }
        Ok(graph
            .body()
            .results
            .iter()
            .map(|v| values[v].clone())
            .collect())
    }

    fn grad(&self, _: &mut Builder, _: Io<'_>, _: &[Value]) -> Result<Grad, TypeError> {
        Ok(Grad::Expand)
    }

    fn attrs(&self) -> Attrs {
        Composite::attrs(self)
    }

    fn donates(&self) -> &'static [usize] {
        T::DONATES
    }

    fn expand(&self, b: &mut Builder, args: &[Value]) -> Result<Option<Vec<Value>>, TypeError> {
        Composite::expand(self, b, args).map(Some)
    }
}

/// Labels of an expansion's ports: axes that every node inside moves together.
/// An axis that some node inside cuts off, or reduces, stays whole.
fn axes_of(graph: &Graph) -> AxisMap {
    // Union-find over (value, axis); index 0 stands for "whole".
    let mut base = vec![0usize; graph.value_count()];
    let mut count = 1;
    for (i, slot) in base.iter_mut().enumerate() {
        *slot = count;
        count += graph.ty(Value(i as u32)).rank();
    }
    let mut parent: Vec<usize> = (0..count).collect();
    fn root(parent: &[usize], mut i: usize) -> usize {
        while parent[i] != i {
            i = parent[i];
        }
        i
    }
    fn join(parent: &mut [usize], a: usize, b: usize) {
        let (a, b) = (root(parent, a), root(parent, b));
        let (low, high) = (a.min(b), a.max(b));
        parent[high] = low;
    }
    for &n in &graph.body().nodes {
        let node = graph.node(n);
        let types: Vec<&TensorType> = node.args.iter().map(|&v| graph.ty(v)).collect();
        let ports = node.args.iter().chain(&node.results);
        let labels: Vec<Vec<Option<u8>>> = match node.op.def().axes(&types) {
            AxisMap::Whole { .. } => ports
                .clone()
                .map(|&v| vec![None; graph.ty(v).rank()])
                .collect(),
            AxisMap::Labels { args, results, .. } => {
                let kept: Vec<u8> = results.iter().flatten().flatten().copied().collect();
                let used: Vec<u8> = args.iter().flatten().flatten().copied().collect();
                let keep = |l: &Option<u8>| l.filter(|l| kept.contains(l) && used.contains(l));
                args.iter()
                    .chain(&results)
                    .map(|ls| ls.iter().map(keep).collect())
                    .collect()
            }
        };
        let mut first: BTreeMap<u8, usize> = BTreeMap::new();
        for (&v, ls) in ports.zip(&labels) {
            for (axis, label) in ls.iter().enumerate() {
                let at = base[v.index()] + axis;
                match label {
                    Some(l) => {
                        let with = *first.entry(*l).or_insert(at);
                        join(&mut parent, with, at);
                    }
                    // An extent of 1 broadcasts: it constrains no one.
                    None if graph.shape(v)[axis] == Dim::ONE => {}
                    None => join(&mut parent, 0, at),
                }
            }
        }
    }
    let mut names: BTreeMap<usize, u8> = BTreeMap::new();
    let mut label = |v: Value| -> Vec<Option<u8>> {
        (0..graph.ty(v).rank())
            .map(|axis| {
                let r = root(&parent, base[v.index()] + axis);
                if r == 0 || graph.shape(v)[axis] == Dim::ONE {
                    return None;
                }
                let next = names.len() as u8;
                Some(*names.entry(r).or_insert(next))
            })
            .collect()
    };
    let args: Vec<Vec<Option<u8>>> = graph.body().params.iter().map(|&v| label(v)).collect();
    let results: Vec<Vec<Option<u8>>> = graph.body().results.iter().map(|&v| label(v)).collect();
    // Only labels that both sides have are cut.
    let shared = |l: &Option<u8>| {
        l.filter(|_| {
            args.iter().flatten().any(|x| x == l) && results.iter().flatten().any(|x| x == l)
        })
    };
    let clean = |side: &[Vec<Option<u8>>]| {
        side.iter()
            .map(|ls| ls.iter().map(shared).collect())
            .collect()
    };
    AxisMap::Labels {
        args: clean(&args),
        results: clean(&results),
        reduce: None,
    }
}

/// `parse` of composites.
macro_rules! parse_composite {
    ($($ty:ty),* $(,)?) => {$(
        impl $ty {
            /// The op from its text form; none if the mnemonic is another's.
            pub fn parse(mnemonic: &str, attrs: &Attrs) -> Option<Result<Self, TypeError>> {
                (mnemonic == <$ty as Composite>::MNEMONIC).then(|| Self::from_attrs(attrs))
            }
        }
    )*};
}
pub(crate) use parse_composite;

parse_composite!(
    Softmax,
    Gelu,
    Silu,
    LayerNorm,
    RmsNorm,
    CrossEntropy,
    Embedding,
    AdamW,
    Dequantize,
    Quantize
);

/// Checks the number of arguments of an expansion.
pub(crate) fn take<const N: usize>(args: &[Value]) -> Result<[Value; N], TypeError> {
    args.try_into()
        .map_err(|_| TypeError(format!("takes {N} arguments, not {}", args.len())))
}

/// `x` in at least f32, and the dtype to return to.
pub(crate) fn widen(b: &mut Builder, x: Value) -> Result<(Value, DType), TypeError> {
    let dtype = b.ty(x).dtype;
    if !dtype.is_float() {
        return type_err(format!("needs floating point, not {}", b.ty(x)));
    }
    let wide = if dtype == DType::F64 {
        x
    } else {
        b.cast(x, DType::F32)?
    };
    Ok((wide, dtype))
}

impl Composite for Softmax {
    const MNEMONIC: &'static str = "softmax";

    fn expand(&self, b: &mut Builder, args: &[Value]) -> Result<Vec<Value>, TypeError> {
        let [x] = take(args)?;
        crate::ops::util::check_axis(self.axis, b.ty(x).rank())?;
        let (x, dtype) = widen(b, x)?;
        let max = b.reduce(ReduceFn::Max, x, &[self.axis], true)?;
        let shifted = b.sub(x, max)?;
        let e = b.unary(UnaryFn::Exp, shifted)?;
        let sum = b.reduce(ReduceFn::Sum, e, &[self.axis], true)?;
        let y = if self.log {
            let l = b.unary(UnaryFn::Log, sum)?;
            b.sub(shifted, l)?
        } else {
            b.div(e, sum)?
        };
        Ok(vec![b.cast(y, dtype)?])
    }

    fn attrs(&self) -> Attrs {
        Attrs::none()
            .with("axis", Attr::Int(self.axis as i64))
            .with("log", Attr::Bool(self.log))
    }

    fn from_attrs(a: &Attrs) -> Result<Self, TypeError> {
        Ok(Softmax {
            axis: a.index("axis")?,
            log: a.bool("log")?,
        })
    }
}

impl Composite for Gelu {
    const MNEMONIC: &'static str = "gelu";

    fn expand(&self, b: &mut Builder, args: &[Value]) -> Result<Vec<Value>, TypeError> {
        let [x] = take(args)?;
        let (x, dtype) = widen(b, x)?;
        let (half, one) = (b.scalar_like(x, 0.5)?, b.scalar_like(x, 1.0)?);
        let inner = if self.tanh {
            let (c, k) = (
                b.scalar_like(x, 0.044715)?,
                b.scalar_like(x, (2.0 / std::f64::consts::PI).sqrt())?,
            );
            let xx = b.mul(x, x)?;
            let cxx = b.mul(c, xx)?;
            let poly = b.add(one, cxx)?;
            let px = b.mul(poly, x)?;
            let arg = b.mul(k, px)?;
            b.unary(UnaryFn::Tanh, arg)?
        } else {
            let r = b.scalar_like(x, std::f64::consts::FRAC_1_SQRT_2)?;
            let arg = b.mul(x, r)?;
            b.unary(UnaryFn::Erf, arg)?
        };
        let hx = b.mul(half, x)?;
        let cdf2 = b.add(one, inner)?;
        let y = b.mul(hx, cdf2)?;
        Ok(vec![b.cast(y, dtype)?])
    }

    fn attrs(&self) -> Attrs {
        Attrs::none().with("tanh", Attr::Bool(self.tanh))
    }

    fn from_attrs(a: &Attrs) -> Result<Self, TypeError> {
        Ok(Gelu {
            tanh: a.bool("tanh")?,
        })
    }
}

impl Composite for Silu {
    const MNEMONIC: &'static str = "silu";

    fn expand(&self, b: &mut Builder, args: &[Value]) -> Result<Vec<Value>, TypeError> {
        let [x] = take(args)?;
        let (x, dtype) = widen(b, x)?;
        let s = b.unary(UnaryFn::Sigmoid, x)?;
        let y = b.mul(x, s)?;
        Ok(vec![b.cast(y, dtype)?])
    }

    fn attrs(&self) -> Attrs {
        Attrs::none()
    }

    fn from_attrs(_: &Attrs) -> Result<Self, TypeError> {
        Ok(Silu)
    }
}

/// The axes that a norm starting at `axis` covers.
fn norm_axes(b: &Builder, x: Value, axis: usize) -> Result<Vec<usize>, TypeError> {
    let rank = b.ty(x).rank();
    crate::ops::util::check_axis(axis, rank)?;
    Ok((axis..rank).collect())
}

impl Composite for LayerNorm {
    const MNEMONIC: &'static str = "layer_norm";

    fn expand(&self, b: &mut Builder, args: &[Value]) -> Result<Vec<Value>, TypeError> {
        let [x, scale, bias] = take(args)?;
        let axes = norm_axes(b, x, self.axis)?;
        let (x, dtype) = widen(b, x)?;
        let ((scale, _), (bias, _)) = (widen(b, scale)?, widen(b, bias)?);
        let mean = b.reduce(ReduceFn::Mean, x, &axes, true)?;
        let centred = b.sub(x, mean)?;
        let square = b.mul(centred, centred)?;
        let variance = b.reduce(ReduceFn::Mean, square, &axes, true)?;
        let eps = b.scalar_like(x, self.eps)?;
        let shifted = b.add(variance, eps)?;
        let inverse = b.unary(UnaryFn::Rsqrt, shifted)?;
        let normal = b.mul(centred, inverse)?;
        let scaled = b.mul(normal, scale)?;
        let y = b.add(scaled, bias)?;
        Ok(vec![b.cast(y, dtype)?])
    }

    fn attrs(&self) -> Attrs {
        Attrs::none()
            .with("axis", Attr::Int(self.axis as i64))
            .with("eps", Attr::Float(self.eps))
    }

    fn from_attrs(a: &Attrs) -> Result<Self, TypeError> {
        Ok(LayerNorm {
            axis: a.index("axis")?,
            eps: a.float("eps")?,
        })
    }
}

impl Composite for RmsNorm {
    const MNEMONIC: &'static str = "rms_norm";

    fn expand(&self, b: &mut Builder, args: &[Value]) -> Result<Vec<Value>, TypeError> {
        let [x, scale] = take(args)?;
        let axes = norm_axes(b, x, self.axis)?;
        let (x, dtype) = widen(b, x)?;
        let (scale, _) = widen(b, scale)?;
        let square = b.mul(x, x)?;
        let mean = b.reduce(ReduceFn::Mean, square, &axes, true)?;
        let eps = b.scalar_like(x, self.eps)?;
        let shifted = b.add(mean, eps)?;
        let inverse = b.unary(UnaryFn::Rsqrt, shifted)?;
        let normal = b.mul(x, inverse)?;
        let y = b.mul(normal, scale)?;
        Ok(vec![b.cast(y, dtype)?])
    }

    fn attrs(&self) -> Attrs {
        Attrs::none()
            .with("axis", Attr::Int(self.axis as i64))
            .with("eps", Attr::Float(self.eps))
    }

    fn from_attrs(a: &Attrs) -> Result<Self, TypeError> {
        Ok(RmsNorm {
            axis: a.index("axis")?,
            eps: a.float("eps")?,
        })
    }
}

impl Composite for CrossEntropy {
    const MNEMONIC: &'static str = "cross_entropy";

    fn expand(&self, b: &mut Builder, args: &[Value]) -> Result<Vec<Value>, TypeError> {
        let [logits, target] = take(args)?;
        let rank = b.ty(logits).rank();
        if rank == 0
            || b.shape(target) != b.shape(logits)[..rank - 1]
            || b.ty(target).dtype != DType::I64
        {
            return type_err(format!(
                "targets {} do not go with logits {}",
                b.ty(target),
                b.ty(logits)
            ));
        }
        let (logits, dtype) = widen(b, logits)?;
        let log_p = b.one(
            Softmax {
                axis: rank - 1,
                log: true,
            },
            &[logits],
        )?;
        // The target's log-probability by comparison with the class index:
        // a select and a sum, which fuse, and whose gradient is dense anyway.
        let shape = b.shape(logits);
        let classes = b.one(
            Iota {
                shape: vec![shape[rank - 1].clone()],
                axis: 0,
                dtype: DType::I64,
            },
            &[],
        )?;
        let mut column = b.shape(target);
        column.push(Dim::ONE);
        let wanted = b.reshape(target, &column)?;
        let hit = b.compare(CompareFn::Eq, wanted, classes)?;
        let zero = b.scalar_like(log_p, 0.0)?;
        let picked = b.select(hit, log_p, zero)?;
        let per_row = b.reduce(ReduceFn::Sum, picked, &[rank - 1], false)?;
        let ignore = b.constant(Tensor::scalar_i64(DType::I64, self.ignore))?;
        let counts = b.compare(CompareFn::Ne, target, ignore)?;
        let counted = b.select(counts, per_row, zero)?;
        let all: Vec<usize> = (0..rank - 1).collect();
        let total = b.reduce(ReduceFn::Sum, counted, &all, false)?;
        let wide = b.ty(log_p).dtype;
        let ones = b.cast(counts, wide)?;
        let n = b.reduce(ReduceFn::Sum, ones, &all, false)?;
        let mean = b.div(total, n)?;
        let loss = b.unary(UnaryFn::Neg, mean)?;
        Ok(vec![b.cast(loss, dtype)?])
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

    fn expand(&self, b: &mut Builder, args: &[Value]) -> Result<Vec<Value>, TypeError> {
        let [table, ids] = take(args)?;
        Ok(vec![b.gather(table, ids, 0)?])
    }

    fn attrs(&self) -> Attrs {
        Attrs::none()
    }

    fn from_attrs(_: &Attrs) -> Result<Self, TypeError> {
        Ok(Embedding)
    }
}

impl Composite for AdamW {
    const MNEMONIC: &'static str = "adamw";
    const DONATES: &'static [usize] = &[0, 2, 3];

    fn expand(&self, b: &mut Builder, args: &[Value]) -> Result<Vec<Value>, TypeError> {
        let [p, g, m, v, lr, step] = take(args)?;
        let t = b.cast(step, DType::F32)?;
        let lr = b.cast(lr, DType::F32)?;
        let num = |b: &mut Builder, x: f64| b.scalar(DType::F32, x);
        let (b1, b2) = (num(b, self.beta1)?, num(b, self.beta2)?);
        let (c1, c2) = (num(b, 1.0 - self.beta1)?, num(b, 1.0 - self.beta2)?);
        let (m_old, g_new) = (b.mul(b1, m)?, b.mul(c1, g)?);
        let m = b.add(m_old, g_new)?;
        let gg = b.mul(g, g)?;
        let (v_old, gg_new) = (b.mul(b2, v)?, b.mul(c2, gg)?);
        let v = b.add(v_old, gg_new)?;
        let one = num(b, 1.0)?;
        let (p1, p2) = (
            b.binary(BinaryFn::Pow, b1, t)?,
            b.binary(BinaryFn::Pow, b2, t)?,
        );
        let (f1, f2) = (b.sub(one, p1)?, b.sub(one, p2)?);
        let (mh, vh) = (b.div(m, f1)?, b.div(v, f2)?);
        let root = b.unary(UnaryFn::Sqrt, vh)?;
        let eps = num(b, self.eps)?;
        let den = b.add(root, eps)?;
        let mut update = b.div(mh, den)?;
        if self.weight_decay != 0.0 {
            let wd = num(b, self.weight_decay)?;
            let decay = b.mul(wd, p)?;
            update = b.add(update, decay)?;
        }
        let scaled = b.mul(lr, update)?;
        let p = b.sub(p, scaled)?;
        Ok(vec![p, m, v])
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

/// A scale or zero point, shaped to broadcast against `x`.
fn per_axis(
    b: &mut Builder,
    s: Value,
    x: Value,
    axis: usize,
    block: usize,
) -> Result<Value, TypeError> {
    let (rank, shape) = (b.ty(x).rank(), b.shape(x));
    match b.ty(s).rank() {
        0 => Ok(s),
        1 if block == 0 && axis < rank => {
            let mut to = vec![Dim::ONE; rank];
            to[axis] = b.shape(s)[0].clone();
            b.reshape(s, &to)
        }
        r if block > 0 && r == rank && axis < rank => {
            // [.., n/block, ..] repeats each entry `block` times.
            let (mut split, mut wide) = (b.shape(s), b.shape(s));
            split.insert(axis + 1, Dim::ONE);
            wide.insert(axis + 1, block.into());
            let s = b.reshape(s, &split)?;
            let s = b.broadcast_to(s, &wide)?;
            let mut joined = shape.clone();
            joined[axis] = wide[axis].clone() * Dim::from(block);
            b.reshape(s, &joined)
        }
        _ => type_err(format!(
            "a scale of type {} does not go with {}",
            b.ty(s),
            b.ty(x)
        )),
    }
}

impl Composite for Dequantize {
    const MNEMONIC: &'static str = "dequantize";

    fn expand(&self, b: &mut Builder, args: &[Value]) -> Result<Vec<Value>, TypeError> {
        let (x, scale) = match args {
            [x, scale] | [x, scale, _] => (*x, *scale),
            _ => return type_err("takes a value, a scale and perhaps a zero point"),
        };
        let out = b.ty(scale).dtype;
        let (scale, _) = widen(b, scale)?;
        let wide = b.ty(scale).dtype;
        let mut v = b.cast(x, wide)?;
        if let [_, _, zero] = args {
            let zero = per_axis(b, *zero, x, self.axis, self.block)?;
            let zero = b.cast(zero, wide)?;
            v = b.sub(v, zero)?;
        }
        let scale = per_axis(b, scale, x, self.axis, self.block)?;
        let y = b.mul(v, scale)?;
        Ok(vec![b.cast(y, out)?])
    }

    fn attrs(&self) -> Attrs {
        Attrs::none()
            .with("axis", Attr::Int(self.axis as i64))
            .with("block", Attr::Int(self.block as i64))
    }

    fn from_attrs(a: &Attrs) -> Result<Self, TypeError> {
        Ok(Dequantize {
            axis: a.index("axis")?,
            block: a.index("block")?,
        })
    }
}

impl Composite for Quantize {
    const MNEMONIC: &'static str = "quantize";

    fn expand(&self, b: &mut Builder, args: &[Value]) -> Result<Vec<Value>, TypeError> {
        let (x, scale) = match args {
            [x, scale] | [x, scale, _] => (*x, *scale),
            _ => return type_err("takes a value, a scale and perhaps a zero point"),
        };
        if !self.to.is_int() {
            return type_err(format!("quantizing to {} is not available yet", self.to));
        }
        let ((x, _), (scale, _)) = (widen(b, x)?, widen(b, scale)?);
        let scale = per_axis(b, scale, x, self.axis, self.block)?;
        let ratio = b.div(x, scale)?;
        let mut q = b.unary(UnaryFn::Round, ratio)?;
        if let [_, _, zero] = args {
            let zero = per_axis(b, *zero, x, self.axis, self.block)?;
            let wide = b.ty(q).dtype;
            let zero = b.cast(zero, wide)?;
            q = b.add(q, zero)?;
        }
        // Casting saturates.
        Ok(vec![b.cast(q, self.to)?])
    }

    fn attrs(&self) -> Attrs {
        Attrs::none()
            .with("axis", Attr::Int(self.axis as i64))
            .with("block", Attr::Int(self.block as i64))
            .with("to", Attr::Name(self.to.name().into()))
    }

    fn from_attrs(a: &Attrs) -> Result<Self, TypeError> {
        Ok(Quantize {
            axis: a.index("axis")?,
            block: a.index("block")?,
            to: a.dtype("to")?,
        })
    }
}
