//! Random modules: what compiled programs and rewritten ones are compared on.
//!
//! Only functions without steps are drawn (no rounding, no comparison of floats):
//! two ways to compute a value differ in its last bits, and a step would make
//! that any difference.

use crate::builder::Builder;
use crate::graph::{Graph, PortKind, Value};
use crate::module::{ConstSource, Global, GlobalKind, Module};
use crate::op::TypeError;
use crate::ops::composite::{Gelu, LayerNorm, RmsNorm, Silu, Softmax};
use crate::ops::contract::MatMul;
use crate::ops::elementwise::Select;
use crate::ops::layout::{Pad, PadMode};
use crate::ops::samples::{ArgSpec, Fill, Random};
use crate::ops::source::Iota;
use crate::{BinaryFn, CompareFn, DType, Dim, ReduceFn, Tensor, TensorType, Tri, UnaryFn};
use std::sync::Arc;

/// A module with one function, `f`, of about this many ops. The same seed gives
/// the same module.
pub fn random_module(seed: u64, ops: usize) -> Module {
    let mut module = Module::default();
    let mut graph = Graph::new("f");
    let mut r = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x243f_6a88);
    let mut weights = Weights::new(&mut r);
    for (name, t) in &weights.0 {
        let kind = GlobalKind::Const(ConstSource::Tensor(t.clone()));
        let global = Global { ty: t.ty(), kind };
        module.globals.insert(name.clone(), global);
    }
    let shapes: [Vec<Dim>; 3] = [
        vec![Dim::sym("B"), 6.into()],
        vec![2.into(), Dim::sym("S"), 4.into()],
        vec![Dim::sym("B"), 1.into(), Dim::sym("S"), 4.into()],
    ];
    let mut pool: Vec<Value> = vec![];
    for (i, shape) in shapes.into_iter().enumerate() {
        let ty = TensorType::new(DType::F32, shape);
        pool.push(graph.add_param(format!("x{i}"), PortKind::Caller, ty));
    }
    let mut b = Builder::at_end(&mut graph, &module.globals, Graph::BODY);
    for _ in 0..ops {
        // Late values more often, so that programs are deep as well as wide.
        let back = r.below(pool.len()).min(r.below(pool.len()));
        let x = pool[pool.len() - 1 - back];
        // What does not type is not drawn.
        if let Ok(y) = step(&mut b, &mut r, &mut weights, &pool, x) {
            pool.push(y);
        }
    }
    let results = 1 + r.below(3);
    let last = pool.len();
    for (i, &v) in pool[last.saturating_sub(results)..].iter().enumerate() {
        graph.add_result(format!("y{i}"), PortKind::Caller, v);
    }
    module.functions.push(graph);
    // Parameters that are not used stay: their sizes bind others.
    let used: Vec<Arc<str>> = used_globals(&module);
    module.globals.retain(|name, _| used.contains(name));
    module
}

fn used_globals(module: &Module) -> Vec<Arc<str>> {
    let f = &module.functions[0];
    let name = |n| match &f.node(n).op {
        crate::Op::Global(g) => Some(g.name.clone()),
        _ => None,
    };
    f.nodes_in_order().into_iter().filter_map(name).collect()
}

impl Random {
    fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }

    fn one_of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len())]
    }
}

/// Constants of the shapes that ops ask for.
struct Weights(Vec<(Arc<str>, Tensor)>);

impl Weights {
    fn new(r: &mut Random) -> Weights {
        let shapes: [&[usize]; 7] = [&[4], &[6], &[8], &[4, 8], &[6, 5], &[8, 4], &[4, 64]];
        let tensor = |(i, shape): (usize, &&[usize])| {
            let spec = ArgSpec {
                dtype: DType::F32,
                shape: shape.to_vec(),
                fill: Fill::Between(-0.7, 0.7),
            };
            (Arc::from(format!("w{i}")), spec.tensor(r))
        };
        Weights(shapes.iter().enumerate().map(tensor).collect())
    }

    /// A weight of this rank that starts with this extent.
    fn find(&self, b: &mut Builder, rank: usize, first: &Dim) -> Result<Value, TypeError> {
        let fits = |t: &Tensor| t.shape().len() == rank && Dim::from(t.shape()[0]) == *first;
        match self.0.iter().find(|(_, t)| fits(t)) {
            Some((name, _)) => b.global(name.clone()),
            None => Err(TypeError("no weight fits".into())),
        }
    }
}

fn step(
    b: &mut Builder,
    r: &mut Random,
    weights: &mut Weights,
    pool: &[Value],
    x: Value,
) -> Result<Value, TypeError> {
    let shape = b.shape(x);
    let rank = shape.len();
    if rank == 0 {
        let y = b.broadcast_to(x, &[2.into(), 3.into()])?;
        return b.unary(UnaryFn::Tanh, y);
    }
    let (axis, last) = (r.below(rank), rank - 1);
    match r.below(19) {
        0 | 1 => {
            use UnaryFn::*;
            b.unary(
                r.one_of(&[Neg, Abs, Tanh, Sigmoid, Sin, Erf, NormalCdf, Cos, Atan]),
                x,
            )
        }
        2..=4 => binary(b, r, pool, x),
        5 => {
            let f = r.one_of(&[ReduceFn::Sum, ReduceFn::Max, ReduceFn::Min, ReduceFn::Mean]);
            let axes: Vec<usize> = (0..rank)
                .filter(|a| *a == axis || r.below(4) == 0)
                .collect();
            let y = b.reduce(f, x, &axes, r.below(2) == 0)?;
            b.unary(UnaryFn::Tanh, y)
        }
        6 => {
            let mut perm: Vec<usize> = (0..rank).collect();
            (1..rank).for_each(|i| perm.swap(i, r.below(i + 1)));
            b.transpose(x, &perm)
        }
        7 => reshape(b, r, x),
        8 => {
            let shape = [&[Dim::from(2)], &shape[..]].concat();
            b.broadcast_to(x, &shape)
        }
        9 => match shape[axis].as_const() {
            Some(n) if n > 1 => b.slice_axis(x, axis, 1.into(), (n - 1).into()),
            _ => b.slice_axis(x, axis, Dim::ZERO, Dim::ONE),
        },
        10 => {
            let y = b.unary(UnaryFn::Neg, x)?;
            b.concat(&[x, y], axis)
        }
        11 => b.one(Softmax { axis, log: false }, &[x]),
        12 => {
            let scale = weights.find(b, 1, &shape[last])?;
            let eps = 1e-5;
            if r.below(2) == 0 {
                return b.one(RmsNorm { axis: last, eps }, &[x, scale]);
            }
            b.one(LayerNorm { axis: last, eps }, &[x, scale, scale])
        }
        13 | 14 => {
            let w = weights.find(b, 2, &shape[last])?;
            b.matmul(x, w)
        }
        15 => match r.below(3) {
            0 => b.one(Gelu { tanh: false }, &[x]),
            1 => b.one(Gelu { tanh: true }, &[x]),
            _ => b.one(Silu, &[x]),
        },
        16 if rank > 1 => {
            let product = MatMul {
                transpose_a: false,
                transpose_b: true,
                out: None,
                tf32: false,
            };
            let y = b.one(product, &[x, x])?;
            b.unary(UnaryFn::Tanh, y)
        }
        16 => masked(b, r, x, axis),
        17 => tied(b, r, pool, x),
        _ => {
            let zero = b.scalar(DType::F32, 0.25)?;
            let mut lo = vec![Dim::ZERO; rank];
            lo[axis] = Dim::ONE;
            let hi = vec![Dim::ZERO; rank];
            let mode = PadMode::Constant;
            b.one(Pad { lo, hi, mode }, &[x, zero])
        }
    }
}

fn binary(b: &mut Builder, r: &mut Random, pool: &[Value], x: Value) -> Result<Value, TypeError> {
    use BinaryFn::*;
    let f = r.one_of(&[Add, Sub, Mul, Max, Min]);
    let shape = b.shape(x);
    let y = match r.below(4) {
        0 => b.scalar(DType::F32, r.one_of(&[0.0, 1.0, 0.5, -2.0]))?,
        1 => b.reduce(ReduceFn::Max, x, &[shape.len() - 1], true)?,
        2 => b.unary(UnaryFn::Sin, x)?,
        _ => {
            let same = |v: &&Value| b.graph.shape(**v) == shape;
            let others: Vec<Value> = pool.iter().filter(same).copied().collect();
            r.one_of(&others)
        }
    };
    let z = if r.below(2) == 0 {
        b.binary(f, x, y)?
    } else {
        b.binary(f, y, x)?
    };
    if f == Mul {
        return b.unary(UnaryFn::Tanh, z);
    }
    Ok(z)
}

fn reshape(b: &mut Builder, r: &mut Random, x: Value) -> Result<Value, TypeError> {
    let mut shape = b.shape(x);
    let at = r.below(shape.len());
    match r.below(3) {
        0 => shape.insert(at, Dim::ONE),
        1 if at + 1 < shape.len() => {
            let next = shape.remove(at + 1);
            shape[at] = shape[at].clone() * next;
        }
        _ => match shape[at].as_const() {
            Some(n) if n % 2 == 0 => {
                shape[at] = 2.into();
                shape.insert(at + 1, (n / 2).into());
            }
            _ => shape.push(Dim::ONE),
        },
    }
    b.reshape(x, &shape)
}

/// A sum of values whose sizes may or may not be equal: a guard. Seldom, since
/// most inputs break it, and then nothing else of the module is compared.
fn tied(b: &mut Builder, r: &mut Random, pool: &[Value], x: Value) -> Result<Value, TypeError> {
    let shape = b.shape(x);
    let unknown = |v: &&Value| {
        let other = b.graph.shape(**v);
        let pairs = || shape.iter().zip(other);
        other.len() == shape.len()
            && pairs().all(|(p, q)| p.same(q) != Tri::No)
            && pairs().any(|(p, q)| p.same(q) == Tri::Unknown)
    };
    let others: Vec<Value> = pool.iter().filter(unknown).copied().collect();
    if others.is_empty() || r.below(8) > 0 {
        return Err(TypeError("nothing to tie".into()));
    }
    b.binary(BinaryFn::Add, x, r.one_of(&others))
}

/// Elements up to a place along one axis, zero behind it.
fn masked(b: &mut Builder, r: &mut Random, x: Value, axis: usize) -> Result<Value, TypeError> {
    let place = b.one(
        Iota {
            shape: b.shape(x),
            axis,
            dtype: DType::I64,
        },
        &[],
    )?;
    let end = b.scalar(DType::I64, 1.0 + r.below(3) as f64)?;
    let keep = b.compare(CompareFn::Lt, place, end)?;
    let zero = b.scalar(DType::F32, 0.0)?;
    b.one(Select, &[keep, x, zero])
}
