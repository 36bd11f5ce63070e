//! From a `fused` node to a kernel: which family serves it, and its problem.

mod attention;
mod contraction;
mod conv;
mod nest;

use super::scalar::{NoKernel, Scalars, element};
use kiln_ir::{DType, Dim, Graph, Op, ReduceFn, RegionId, Value};
use kiln_kernels::{Effect, KernelSpec, LoopNest, Reducer, Stage, simplify};

/// One way to compute a group.
pub struct Variant {
    /// Serves where each left side is at most the right side.
    pub guards: Vec<(Dim, Dim)>,
    /// The problem.
    pub spec: KernelSpec,
    /// The launch's parameters.
    pub params: Vec<Dim>,
}

/// A kernel and how to launch it.
pub struct Kernel {
    /// Variants in order of preference; the last serves always.
    pub variants: Vec<Variant>,
    /// Region parameters that it reads, and bytes into each.
    pub inputs: Vec<(Value, Dim)>,
    /// The result's buffer starts as a copy of this region parameter.
    pub updates: Option<Value>,
}

/// The kernel of a group's region.
pub fn kernel(graph: &Graph, region: RegionId) -> Result<Kernel, NoKernel> {
    let r = graph.region(region);
    let [root] = r.results[..] else {
        return Err(NoKernel("a group has one result".into()));
    };
    for &n in &r.nodes {
        match &graph.node(n).op {
            Op::MatMul(_) | Op::PackedMatMul(_) | Op::BlockMatMul(_) => {
                return match contraction::contraction(graph, region, root, n)? {
                    Some(k) => Ok(k),
                    None => contraction::plain_product(graph, region, root, n),
                };
            }
            Op::PackedConv(op) => return conv::convolution(graph, region, root, n, op),
            Op::Attention(_) => return attention::attention(graph, region, root, n),
            Op::ArgReduce(_) | Op::Cumulate(_) => return nest::along_axis(graph, region, root, n),
            Op::ScatterElements(_) | Op::ScatterNd(_) | Op::DynamicUpdateSlice(_) => {
                return nest::scatter(graph, region, root, n);
            }
            _ => {}
        }
    }
    nest::nest(graph, region, root)
}

/// Finishes a loop nest: the result's buffer comes last.
fn finish(
    mut s: Scalars,
    nest: LoopNest,
    out: Value,
    updates: Option<Value>,
) -> Result<Kernel, NoKernel> {
    let mut nest = nest;
    let mut args: Vec<DType> = s
        .buffers
        .iter()
        .map(|&v| element(s.graph.ty(v).dtype))
        .collect();
    args.push(element(s.graph.ty(out).dtype));
    nest.args = args;
    nest.exprs = std::mem::take(&mut s.exprs);
    let dims = s.params.into_dims();
    nest.params = dims.len() as u16;
    let (nest, dims) = simplify(&nest, &dims)?;
    nest.check()?;
    let inputs = s.buffers.iter().map(|&v| (v, Dim::ZERO)).collect();
    Ok(Kernel {
        variants: vec![Variant {
            guards: vec![],
            spec: KernelSpec::Nest(nest),
            params: dims,
        }],
        inputs,
        updates,
    })
}

/// The number that the result's buffer will have: stores are built before all
/// inputs are known, so it is set at the end.
const OUT: u16 = u16::MAX;

fn set_out(stages: &mut [Stage], out: u16) {
    for effect in stages.iter_mut().flat_map(|s| &mut s.effects) {
        if let Effect::Store { arg, .. } = effect
            && *arg == OUT
        {
            *arg = out;
        }
    }
}

fn reducer(f: ReduceFn) -> Reducer {
    match f {
        ReduceFn::Sum | ReduceFn::Mean => Reducer::Sum,
        ReduceFn::Prod => Reducer::Prod,
        ReduceFn::Max => Reducer::Max,
        ReduceFn::Min => Reducer::Min,
    }
}
