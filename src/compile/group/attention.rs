//! Attention: the score as an expression over batch, head, query and key.

use super::contraction::{Strided, strided};
use super::{Kernel, Variant};
use crate::compile::scalar::{Coord, NoKernel, Scalars, element};
use kiln_ir::ops::attention::MaskKind;
use kiln_ir::{BinaryFn, CompareFn, DType, Dim, Graph, NodeId, Op, RegionId, Value};
use kiln_kernels::attention::AttentionSpec;
use kiln_kernels::{KernelSpec, Size};

/// Attention, with the transpose of its result if one follows.
pub(super) fn attention(
    graph: &Graph,
    region: RegionId,
    root: Value,
    n: NodeId,
) -> Result<Kernel, NoKernel> {
    let node = graph.node(n);
    let Op::Attention(op) = &node.op else {
        return Err(NoKernel("not attention".into()));
    };
    let (q, k, v, y) = (node.args[0], node.args[1], node.args[2], node.results[0]);
    let axes: Vec<Coord> = (0..4).map(Coord::axis).collect();
    let view = |x: Value| {
        strided(graph, x, axes.clone(), false)
            .ok_or_else(|| NoKernel("attention reads its arguments by strides".into()))
    };
    let (qv, kv, vv) = (view(q)?, view(k)?, view(v)?);
    // Axis `i` of the result lies at axis `order[i]` of what is stored.
    let mut order = [0usize, 1, 2, 3];
    if root != y {
        match graph.producer(root).map(|(r, _)| &graph.node(r).op) {
            Some(Op::Transpose(t))
                if graph.producer(root).map(|(r, _)| graph.node(r).args[0]) == Some(y) =>
            {
                t.perm
                    .axes()
                    .iter()
                    .enumerate()
                    .for_each(|(i, &p)| order[p] = i);
            }
            _ => return Err(NoKernel("attention has no epilogue".into())),
        }
    }
    let mut s = Scalars::new(graph, region, vec![qv.value, kv.value, vv.value]);
    let four = |s: &mut Scalars, view: &Strided| -> [Size; 4] {
        [0u8, 1, 2, 3].map(|i| view.strides.get(&i).map_or(Size::ZERO, |d| s.size(d)))
    };
    let (qs, ks, mut vs) = (four(&mut s, &qv), four(&mut s, &kv), four(&mut s, &vv));
    let stored = graph.shape(root).to_vec();
    let out: [Size; 4] = std::array::from_fn(|i| s.size(&Dim::product(&stored[order[i] + 1..])));
    let (features, values) = (graph.shape(q)[3].as_const(), graph.shape(v)[3].as_const());
    let (Some(features), Some(values)) = (features, values) else {
        return Err(NoKernel("attention needs constant head sizes".into()));
    };
    if values == 1 {
        vs[3] = Size::ONE;
    }
    if vs[3] != Size::ONE {
        return Err(NoKernel("attention reads values in runs".into()));
    }
    // The score: scale, bias, masks.
    let raw = s.exprs.acc(0, DType::F32)?;
    let scale = s.exprs.f32(op.scale as f32);
    let mut score = s.exprs.binary(BinaryFn::Mul, raw, scale)?;
    let score_shape = [
        graph.shape(q)[0].clone(),
        graph.shape(q)[1].clone(),
        graph.shape(q)[2].clone(),
        graph.shape(k)[2].clone(),
    ];
    let aligned = |x: Value| -> Vec<Coord> {
        let shape = graph.shape(x);
        let lead = 4 - shape.len();
        (0..shape.len())
            .map(|i| {
                if shape[i] == Dim::ONE && score_shape[lead + i] != Dim::ONE {
                    Coord::zero()
                } else {
                    axes[lead + i].clone()
                }
            })
            .collect()
    };
    let mut extras = node.args[3..].iter().copied();
    let mut next = || {
        extras
            .next()
            .ok_or_else(|| NoKernel("attention lacks an argument".into()))
    };
    let low = s.exprs.f32(f32::NEG_INFINITY);
    if op.bias {
        let bias = next()?;
        let e = s.value(bias, &aligned(bias), None)?;
        let e = s.exprs.cast(DType::F32, e)?;
        score = s.exprs.binary(BinaryFn::Add, score, e)?;
    }
    let mut hidden = vec![];
    if op.keep {
        let keep = next()?;
        hidden.push(s.value(keep, &aligned(keep), None)?);
    }
    let (i, j) = (s.exprs.axis(2), s.exprs.axis(3));
    let offset = match &op.mask {
        MaskKind::Full => Dim::ZERO,
        MaskKind::Causal { offset }
        | MaskKind::Sliding { offset, .. }
        | MaskKind::Prefix { offset, .. } => offset.clone(),
    };
    let o = s.dim(&offset);
    let place = s.exprs.binary(BinaryFn::Add, i, o)?;
    if op.slopes {
        let slopes = next()?;
        let slope = s.value(slopes, &[Coord::axis(1)], None)?;
        let slope = s.exprs.cast(DType::F32, slope)?;
        let distance = s.exprs.binary(BinaryFn::Sub, j, place)?;
        let distance = s.exprs.cast(DType::F32, distance)?;
        let alibi = s.exprs.binary(BinaryFn::Mul, slope, distance)?;
        score = s.exprs.binary(BinaryFn::Add, score, alibi)?;
    }
    if op.lengths {
        let lengths = next()?;
        let length = s.value(lengths, &[Coord::axis(0)], None)?;
        hidden.push(s.exprs.compare(CompareFn::Lt, j, length)?);
    }
    let causal = s.exprs.compare(CompareFn::Le, j, place)?;
    match &op.mask {
        MaskKind::Full => {}
        MaskKind::Causal { .. } => hidden.push(causal),
        MaskKind::Sliding { window, sinks, .. } => {
            let w = s.exprs.i64(*window);
            let first = s.exprs.binary(BinaryFn::Sub, place, w)?;
            let near = s.exprs.compare(CompareFn::Gt, j, first)?;
            let sinks = s.exprs.i64(*sinks);
            let sink = s.exprs.compare(CompareFn::Lt, j, sinks)?;
            let kept = s.exprs.binary(BinaryFn::Or, near, sink)?;
            hidden.extend([causal, kept]);
        }
        MaskKind::Prefix { prefix, .. } => {
            let p = s.dim(prefix);
            let inside = s.exprs.compare(CompareFn::Lt, j, p)?;
            hidden.push(s.exprs.binary(BinaryFn::Or, causal, inside)?);
        }
    }
    for shown in hidden {
        score = s.exprs.select(shown, score, low)?;
    }
    let Some(group) = graph.shape(q)[1].div_exact(&graph.shape(k)[1]) else {
        return Err(NoKernel("query heads are no multiple of key heads".into()));
    };
    let [batch, heads, queries, keys] = score_shape.clone().map(|d| s.size(&d));
    let group = s.size(&group);
    let mut args: Vec<DType> = s
        .buffers
        .iter()
        .map(|&v| element(graph.ty(v).dtype))
        .collect();
    args.push(element(graph.ty(root).dtype));
    let mut inputs: Vec<(Value, Dim)> = s.buffers.iter().map(|&v| (v, Dim::ZERO)).collect();
    for (slot, view) in inputs.iter_mut().zip([&qv, &kv, &vv]) {
        slot.1 = view.offset.clone() * Dim::from(graph.ty(view.value).dtype.size().unwrap_or(1));
    }
    let exprs = std::mem::take(&mut s.exprs);
    let dims = s.params.into_dims();
    let spec = |block: i64| AttentionSpec {
        exprs: exprs.clone(),
        args: args.clone(),
        params: dims.len() as u16,
        batch,
        heads,
        group,
        queries,
        keys,
        features,
        values,
        q: qs,
        k: ks,
        v: vs,
        out,
        score,
        block,
    };
    spec(16).check()?;
    // Few queries: a narrow block wastes fewer lanes.
    let variant = |guards, block| Variant {
        guards,
        spec: KernelSpec::Attention(spec(block)),
        params: dims.clone(),
    };
    let variants = match score_shape[2].as_const() {
        Some(n) if n <= 16 => vec![variant(vec![], 16)],
        Some(_) => vec![variant(vec![], 64)],
        None => vec![
            variant(vec![(score_shape[2].clone(), Dim::from(16))], 16),
            variant(vec![], 64),
        ],
    };
    Ok(Kernel {
        variants,
        inputs,
        updates: None,
    })
}
