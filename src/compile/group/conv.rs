//! Convolutions with channels last, and their epilogues.

use super::{Kernel, Variant};
use crate::compile::scalar::{Coord, NoKernel, Scalars};
use kiln_ir::ops::packed_conv::PackedConv;
use kiln_ir::{DType, Dim, Graph, NodeId, RegionId, Value};
use kiln_kernels::KernelSpec;
use kiln_kernels::conv::ConvSpec;

/// A convolution with an epilogue.
pub(super) fn convolution(
    graph: &Graph,
    region: RegionId,
    root: Value,
    n: NodeId,
    op: &PackedConv,
) -> Result<Kernel, NoKernel> {
    let node = graph.node(n);
    let (x, w, y) = (node.args[0], node.args[1], node.results[0]);
    let pad = node.args.get(2).copied();
    let read: Vec<Value> = [x, w].into_iter().chain(pad).collect();
    if read.iter().any(|&v| graph.producer(v).is_some()) {
        return Err(NoKernel("a convolution reads what lies in memory".into()));
    }
    let rank = graph.ty(y).rank();
    let (x_shape, shape) = (graph.shape(x).to_vec(), graph.shape(y).to_vec());
    let mut s = Scalars::new(graph, region, read);
    let out_dtype = graph.ty(y).dtype;
    let identity: Vec<Coord> = (0..rank as u8).map(Coord::axis).collect();
    let acc = match graph.ty(w).dtype {
        DType::I8 => DType::I32,
        _ => DType::F32,
    };
    let mut sum = s.exprs.acc(0, acc)?;
    if out_dtype != acc {
        sum = s.exprs.cast(out_dtype, sum)?;
    }
    s.fixed.insert(y, (sum, Some(identity.clone())));
    let value = s.value(root, &identity, None)?;
    let out = s.address(&shape, &identity)?;
    let ints = |v: &[usize]| v.iter().map(|&i| i as i64).collect::<Vec<_>>();
    let channels = x_shape[rank - 1].as_const();
    let channels = channels.ok_or_else(|| NoKernel("channels are not known".into()))?;
    let nr = match PackedConv::is_depthwise(graph.ty(w)) {
        true => 0,
        false => graph.shape(w)[3].as_const().unwrap_or(0),
    };
    let batch = s.size(&shape[0]);
    let mut sizes = |d: &[Dim]| d.iter().map(|d| s.size(d)).collect::<Vec<_>>();
    let (input, output) = (sizes(&x_shape[1..rank - 1]), sizes(&shape[1..rank - 1]));
    let lo = sizes(&op.lo);
    let mut args: Vec<DType> = s.buffers.iter().map(|&v| graph.ty(v).dtype).collect();
    args.push(graph.ty(root).dtype);
    let inputs = s.buffers.iter().map(|&v| (v, Dim::ZERO)).collect();
    let exprs = std::mem::take(&mut s.exprs);
    let dims = s.params.into_dims();
    let spec = ConvSpec {
        exprs,
        args,
        params: dims.len() as u16,
        batch,
        input,
        output,
        channels,
        filters: op.filters as i64,
        groups: op.groups as i64,
        kernel: ints(&op.kernel),
        strides: ints(&op.strides),
        dilations: ints(&op.dilations),
        lo,
        pad: pad.is_some(),
        bordered: op.is_bordered(),
        nr,
        winograd: op.winograd,
        out,
        value,
    };
    spec.check()?;
    Ok(Kernel {
        variants: vec![Variant {
            guards: vec![],
            spec: KernelSpec::Conv(spec),
            params: dims,
        }],
        inputs,
        updates: None,
    })
}
