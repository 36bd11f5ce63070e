//! Contractions: operands seen through strides, epilogues as expressions.

use super::{Kernel, OUT, Variant, finish, set_out};
use crate::compile::scalar::{Coord, NoKernel, Scalars, element};
use kiln_ir::{BinaryFn, DType, Dim, Graph, NodeId, Op, RegionId, Value};
use kiln_kernels::matmul::{Blocks, Columns, MatMulSpec};
use kiln_kernels::{Effect, KernelSpec, LoopNest, Reducer, Size, Stage};
use std::collections::BTreeMap;

/// A region parameter seen through strides.
pub(super) struct Strided {
    pub value: Value,
    /// By coordinate axis.
    pub strides: BTreeMap<u8, Dim>,
    pub offset: Dim,
}

/// Follows views to the region parameter behind them.
pub(super) fn strided(
    graph: &Graph,
    v: Value,
    at: Vec<Coord>,
    through_casts: bool,
) -> Option<Strided> {
    let Some((n, _)) = graph.producer(v) else {
        let shape = graph.shape(v);
        let mut out = Strided {
            value: v,
            strides: BTreeMap::new(),
            offset: Dim::ZERO,
        };
        for (i, c) in at.iter().enumerate() {
            let Coord::Linear { terms, offset } = c else {
                return None;
            };
            let stride = Dim::product(&shape[i + 1..]);
            out.offset = out.offset + offset.clone() * stride.clone();
            for (a, f) in terms {
                let slot = out.strides.entry(*a).or_insert(Dim::ZERO);
                *slot = slot.clone() + f.clone() * stride.clone();
            }
        }
        return Some(out);
    };
    let node = graph.node(n);
    let x = *node.args.first()?;
    let next: Vec<Coord> = match &node.op {
        Op::Transpose(t) => {
            let mut c = vec![Coord::zero(); at.len()];
            t.perm
                .axes()
                .iter()
                .enumerate()
                .for_each(|(i, &p)| c[p] = at[i].clone());
            c
        }
        Op::Broadcast(_) => {
            let lead = at.len() - graph.ty(x).rank();
            let shape = graph.shape(x);
            (0..shape.len())
                .map(|i| {
                    if shape[i] == Dim::ONE {
                        Coord::zero()
                    } else {
                        at[lead + i].clone()
                    }
                })
                .collect()
        }
        Op::Slice(s) => at
            .iter()
            .enumerate()
            .map(|(i, c)| match c {
                Coord::Linear { terms, offset } => Some(Coord::Linear {
                    terms: terms
                        .iter()
                        .map(|(a, f)| (*a, f.clone() * Dim::from(s.steps[i])))
                        .collect(),
                    offset: offset.clone() * Dim::from(s.steps[i]) + s.starts[i].clone(),
                }),
                Coord::Data(_) => None,
            })
            .collect::<Option<_>>()?,
        Op::Cast(_) if through_casts => at,
        _ => return None,
    };
    strided(graph, x, next, through_casts)
}

/// Coordinates of an operand whose batch axes broadcast against the result's.
pub(super) fn operand_coords(shape: &[Dim], rank: usize, last: [u8; 2]) -> Vec<Coord> {
    let lead = shape.len() - 2;
    let mut c: Vec<Coord> = (0..lead)
        .map(|i| {
            if shape[i] == Dim::ONE {
                Coord::zero()
            } else {
                Coord::axis((rank - 2 - lead + i) as u8)
            }
        })
        .collect();
    c.extend(last.map(Coord::axis));
    c
}

/// Whether a region's parameter is a global: memory of its own.
fn is_global(graph: &Graph, region: RegionId, v: Value) -> bool {
    let r = graph.region(region);
    let at = r.params.iter().position(|&p| p == v);
    let given = (r.owner.zip(at)).and_then(|(n, i)| graph.node(n).args.get(i));
    given.is_some_and(|&v| matches!(graph.producer_op(v), Some((Op::Global(_), _))))
}

/// A contraction with an epilogue; none where the kernels do not serve it.
pub(super) fn contraction(
    graph: &Graph,
    region: RegionId,
    root: Value,
    n: NodeId,
) -> Result<Option<Kernel>, NoKernel> {
    let node = graph.node(n);
    let (a, b, y) = (node.args[0], node.args[1], node.results[0]);
    let rank = graph.ty(y).rank();
    let (m_axis, n_axis, k_axis) = ((rank - 2) as u8, (rank - 1) as u8, rank as u8);
    let out_dtype = graph.ty(y).dtype;
    let acc = match out_dtype {
        DType::F32 | DType::F16 | DType::BF16 => DType::F32,
        DType::F64 => DType::F64,
        DType::I32 => DType::I32,
        _ => return Ok(None),
    };
    let (ta, tb, tf32) = match &node.op {
        Op::MatMul(op) => (op.transpose_a, op.transpose_b, op.tf32),
        _ => (false, false, false),
    };
    let a_last = if ta {
        [k_axis, m_axis]
    } else {
        [m_axis, k_axis]
    };
    let Some(a_view) = strided(
        graph,
        a,
        operand_coords(graph.shape(a), rank, a_last),
        false,
    ) else {
        return Ok(None);
    };
    let a_shape = graph.shape(a);
    let k = a_shape[if ta {
        a_shape.len() - 2
    } else {
        a_shape.len() - 1
    }]
    .clone();
    let packed = matches!(node.op, Op::PackedMatMul(_) | Op::BlockMatMul(_));
    let b_view = if packed {
        Strided {
            value: b,
            strides: BTreeMap::new(),
            offset: Dim::ZERO,
        }
    } else {
        let last = if tb {
            [n_axis, k_axis]
        } else {
            [k_axis, n_axis]
        };
        match strided(graph, b, operand_coords(graph.shape(b), rank, last), true) {
            Some(view) => view,
            None => return Ok(None),
        }
    };
    // What B's numbers mean lies in buffers of their own.
    let meaning = match node.op {
        Op::BlockMatMul(_) => &node.args[2..],
        _ => &[],
    };
    let mut given = vec![b_view.value];
    given.extend(meaning);
    if given.iter().any(|&v| graph.producer(v).is_some()) {
        return Ok(None);
    }
    given.insert(0, a_view.value);
    let mut s = Scalars::new(graph, region, given);
    let shape = graph.shape(y).to_vec();
    let stride = |s: &mut Scalars, view: &Strided, axis: u8| match view.strides.get(&axis) {
        Some(d) => s.size(d),
        None => Size::ZERO,
    };
    let mut a_strides: Vec<Size> = (0..rank as u8 - 2)
        .map(|i| stride(&mut s, &a_view, i))
        .collect();
    a_strides.push(stride(&mut s, &a_view, m_axis));
    a_strides.push(stride(&mut s, &a_view, k_axis));
    let b_batch: Vec<Size> = (0..rank as u8 - 2)
        .map(|i| stride(&mut s, &b_view, i))
        .collect();
    let (columns, nr) = if let Op::BlockMatMul(op) = &node.op {
        let blocks = Blocks {
            bits: op.bits as u8,
            size: op.block as i64,
            count: s.size(&graph.shape(node.args[2])[1]),
            zeros: node.args.len() > 3,
            aligned: is_global(graph, region, b),
        };
        (Columns::Blocks(blocks), 16)
    } else if packed {
        let columns = match graph.ty(b).rank() {
            4 => Columns::Grouped,
            _ => Columns::Packed,
        };
        (columns, graph.shape(b)[2].as_const().unwrap_or(64))
    } else {
        let (row, column) = (
            stride(&mut s, &b_view, k_axis),
            stride(&mut s, &b_view, n_axis),
        );
        let n = shape[rank - 1]
            .as_const()
            .map_or(64, |n| (n + 15) / 16 * 16);
        (Columns::Strided { row, column }, n.clamp(16, 64))
    };
    let identity: Vec<Coord> = (0..rank as u8).map(Coord::axis).collect();
    let mut sum = s.exprs.acc(0, acc)?;
    if out_dtype != acc {
        sum = s.exprs.cast(out_dtype, sum)?;
    }
    s.fixed.insert(y, (sum, Some(identity.clone())));
    let value = s.value(root, &identity, None)?;
    let out = s.address(&shape, &identity)?;
    let batch = shape[..rank - 2].iter().map(|d| s.size(d)).collect();
    let (m, n_size, k) = (
        s.size(&shape[rank - 2]),
        s.size(&shape[rank - 1]),
        s.size(&k),
    );
    let mut args: Vec<DType> = s
        .buffers
        .iter()
        .map(|&v| element(graph.ty(v).dtype))
        .collect();
    args.push(element(graph.ty(root).dtype));
    let mut inputs: Vec<(Value, Dim)> = s.buffers.iter().map(|&v| (v, Dim::ZERO)).collect();
    let bytes = |v: Value| Dim::from(graph.ty(v).dtype.size().unwrap_or(1));
    inputs[0].1 = a_view.offset.clone() * bytes(a_view.value);
    inputs[1].1 = b_view.offset.clone() * bytes(b_view.value);
    let exprs = std::mem::take(&mut s.exprs);
    let dims = s.params.into_dims();
    // The pass `mixed-precision` rounds what such a product reads.
    let tf32 = tf32 && args[..2] == [DType::F32; 2];
    let spec = MatMulSpec {
        exprs,
        args,
        params: dims.len() as u16,
        batch,
        m,
        n: n_size,
        k,
        acc,
        tf32,
        a: a_strides,
        b_batch,
        b: columns,
        nr,
        out,
        value,
    };
    spec.check()?;
    Ok(Some(Kernel {
        variants: vec![Variant {
            guards: vec![],
            spec: KernelSpec::MatMul(spec),
            params: dims,
        }],
        inputs,
        updates: None,
    }))
}

/// A contraction as a loop nest: for types that the matmul kernels do not sum.
pub(super) fn plain_product(
    graph: &Graph,
    region: RegionId,
    root: Value,
    n: NodeId,
) -> Result<Kernel, NoKernel> {
    let node = graph.node(n);
    let Op::MatMul(op) = &node.op else {
        return Err(NoKernel(
            "a packed product of this type has no kernel".into(),
        ));
    };
    let (a, b, y) = (node.args[0], node.args[1], node.results[0]);
    let rank = graph.ty(y).rank();
    let (m, c, k) = ((rank - 2) as u8, (rank - 1) as u8, rank as u8);
    let mut s = Scalars::new(graph, region, vec![]);
    let shape = graph.shape(y).to_vec();
    let depth = graph.shape(a)[graph.ty(a).rank() - if op.transpose_a { 2 } else { 1 }].clone();
    let mut axes: Vec<Size> = shape.iter().map(|d| s.size(d)).collect();
    axes.push(s.size(&depth));
    let at_a = operand_coords(
        graph.shape(a),
        rank,
        if op.transpose_a { [k, m] } else { [m, k] },
    );
    let at_b = operand_coords(
        graph.shape(b),
        rank,
        if op.transpose_b { [c, k] } else { [k, c] },
    );
    let out = graph.ty(y).dtype;
    let (x, w) = (s.value(a, &at_a, None)?, s.value(b, &at_b, None)?);
    let (x, w) = (s.exprs.cast(out, x)?, s.exprs.cast(out, w)?);
    let product = s.exprs.binary(BinaryFn::Mul, x, w)?;
    let sum = s.exprs.acc(0, s.exprs.dtype(product))?;
    let identity: Vec<Coord> = (0..rank as u8).map(Coord::axis).collect();
    s.fixed.insert(y, (sum, Some(identity.clone())));
    let value = s.value(root, &identity, None)?;
    let index = s.address(&shape, &identity)?;
    let mut stages = vec![
        Stage {
            axes: vec![k],
            effects: vec![Effect::Reduce {
                acc: 0,
                by: Reducer::Sum,
                value: product,
            }],
        },
        Stage {
            axes: vec![],
            effects: vec![Effect::Store {
                arg: OUT,
                index,
                value,
                update: None,
                when: None,
            }],
        },
    ];
    set_out(&mut stages, s.buffers.len() as u16);
    let nest = LoopNest {
        axes,
        outer: rank as u8,
        stages,
        ..LoopNest::default()
    };
    finish(s, nest, root, None)
}
