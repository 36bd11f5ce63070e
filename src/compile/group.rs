//! From a `fused` node to a kernel: which family serves it, and its problem.

use super::scalar::{Coord, NoKernel, Scalars};
use kiln_ir::ops::attention::MaskKind;
use kiln_ir::ops::index::ScatterFn;
use kiln_ir::{BinaryFn, CompareFn, DType, Dim, Graph, NodeId, Op, ReduceFn, RegionId, Value};
use kiln_kernels::attention::AttentionSpec;
use kiln_kernels::matmul::{Columns, MatMulSpec};
use kiln_kernels::{Effect, ExprId, KernelSpec, LoopNest, Node, Reducer, Size, Stage, simplify};
use std::collections::BTreeMap;

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
            Op::MatMul(_) | Op::PackedMatMul(_) => {
                return match contraction(graph, region, root, n)? {
                    Some(k) => Ok(k),
                    None => plain_product(graph, region, root, n),
                };
            }
            Op::Attention(_) => return attention(graph, region, root, n),
            Op::ArgReduce(_) | Op::Cumulate(_) => return along_axis(graph, region, root, n),
            Op::ScatterElements(_) | Op::ScatterNd(_) | Op::DynamicUpdateSlice(_) => {
                return scatter(graph, region, root, n);
            }
            _ => {}
        }
    }
    nest(graph, region, root)
}

/// Finishes a loop nest: the result's buffer comes last.
fn finish(
    mut s: Scalars,
    nest: LoopNest,
    out: Value,
    updates: Option<Value>,
) -> Result<Kernel, NoKernel> {
    let mut nest = nest;
    let mut args: Vec<DType> = s.buffers.iter().map(|&v| s.graph.ty(v).dtype).collect();
    args.push(s.graph.ty(out).dtype);
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

/// Maps, moves and reductions.
fn nest(graph: &Graph, region: RegionId, root: Value) -> Result<Kernel, NoKernel> {
    let mut s = Scalars::new(graph, region, vec![]);
    let reduces: Vec<NodeId> = (graph.region(region).nodes.iter().copied())
        .filter(|&n| matches!(graph.node(n).op, Op::Reduce(_)))
        .collect();
    let (domain, reduced) = match reduces.first() {
        None => (graph.shape(root).to_vec(), vec![]),
        Some(&n) => match &graph.node(n).op {
            Op::Reduce(r) => (graph.shape(graph.node(n).args[0]).to_vec(), r.axes.clone()),
            _ => (vec![], vec![]),
        },
    };
    // Kernel axes: those kept first, then the reduced ones.
    let kept: Vec<usize> = (0..domain.len()).filter(|i| !reduced.contains(i)).collect();
    let numbers: BTreeMap<usize, u8> = kept
        .iter()
        .chain(&reduced)
        .enumerate()
        .map(|(number, &axis)| (axis, number as u8))
        .collect();
    let full: Vec<Coord> = (0..domain.len())
        .map(|i| Coord::axis(numbers[&i]))
        .collect();
    let axes: Vec<Size> = kept
        .iter()
        .chain(&reduced)
        .map(|&i| s.size(&domain[i]))
        .collect();
    let inner: Vec<u8> = (kept.len() as u8..domain.len() as u8).collect();
    let mut stages: Vec<Stage> = vec![];
    let mut level: BTreeMap<u16, usize> = BTreeMap::new();
    let depth = |s: &Scalars, level: &BTreeMap<u16, usize>, e: ExprId| {
        let accs = s
            .exprs
            .reachable(&[e])
            .into_iter()
            .filter_map(|id| match s.exprs.node(id) {
                Node::Acc(i, _) => Some(level.get(i).map_or(0, |l| l + 1)),
                _ => None,
            });
        accs.max().unwrap_or(0)
    };
    for (number, &n) in reduces.iter().enumerate() {
        let node = graph.node(n);
        let Op::Reduce(r) = &node.op else { continue };
        if graph.shape(node.args[0]) != domain || r.axes != reduced {
            return Err(NoKernel("a group reduces two domains".into()));
        }
        let x = s.value(node.args[0], &full, None)?;
        let dtype = s.exprs.dtype(x);
        let at = depth(&s, &level, x);
        if stages.len() <= at {
            stages.resize_with(at + 1, || Stage {
                axes: inner.clone(),
                effects: vec![],
            });
        }
        stages[at].effects.push(Effect::Reduce {
            acc: number as u16,
            by: reducer(r.f),
            value: x,
        });
        level.insert(number as u16, at);
        let mut acc = s.exprs.acc(number as u16, dtype)?;
        if r.f == ReduceFn::Mean {
            let count = s.dim(&Dim::product(r.axes.iter().map(|&i| &domain[i])));
            let count = s.exprs.cast(dtype, count)?;
            acc = s.exprs.binary(BinaryFn::Div, acc, count)?;
        }
        // Readable at its own row alone.
        let rank = graph.ty(node.results[0]).rank();
        let place: Vec<Coord> = if rank == domain.len() {
            (0..rank)
                .map(|i| {
                    if reduced.contains(&i) || graph.shape(node.results[0])[i] == Dim::ONE {
                        Coord::zero()
                    } else {
                        full[i].clone()
                    }
                })
                .collect()
        } else {
            kept.iter().map(|&i| full[i].clone()).collect()
        };
        s.fixed.insert(node.results[0], (acc, Some(place)));
    }
    // The result: over the whole domain, or one a row.
    let shape = graph.shape(root).to_vec();
    let whole = reduces.is_empty() || (shape.len() == domain.len() && shape == domain);
    let place: Vec<Coord> = if whole {
        full.clone()
    } else if shape.len() == domain.len() {
        (0..shape.len())
            .map(|i| {
                if reduced.contains(&i) {
                    Coord::zero()
                } else {
                    full[i].clone()
                }
            })
            .collect()
    } else if shape.len() == kept.len() {
        kept.iter().map(|&i| full[i].clone()).collect()
    } else {
        return Err(NoKernel(
            "a group's result is neither its domain nor its rows".into(),
        ));
    };
    // Rows with an extent of one are read at zero, as every user writes it.
    let place: Vec<Coord> = place
        .into_iter()
        .zip(&shape)
        .map(|(c, d)| {
            if *d == Dim::ONE && !whole {
                Coord::zero()
            } else {
                c
            }
        })
        .collect();
    let value = s.value(root, &place, None)?;
    let index = s.address(&shape, &place)?;
    let store = Effect::Store {
        arg: OUT,
        index,
        value,
        update: None,
        when: None,
    };
    let at = depth(&s, &level, value);
    let store_axes = if whole { inner.clone() } else { vec![] };
    match stages.get_mut(at) {
        Some(stage) if stage.axes == store_axes => stage.effects.push(store),
        _ => stages.push(Stage {
            axes: store_axes,
            effects: vec![store],
        }),
    }
    set_out(&mut stages, s.buffers.len() as u16);
    let nest = LoopNest {
        axes,
        outer: kept.len() as u8,
        stages,
        ..LoopNest::default()
    };
    finish(s, nest, root, None)
}

/// Arg-reductions and running sums.
fn along_axis(graph: &Graph, region: RegionId, root: Value, n: NodeId) -> Result<Kernel, NoKernel> {
    let node = graph.node(n);
    if node.results[0] != root {
        return Err(NoKernel(format!(
            "`{}` has no epilogue",
            node.op.def().mnemonic()
        )));
    }
    let mut s = Scalars::new(graph, region, vec![]);
    let shape = graph.shape(node.args[0]).to_vec();
    let axis = match &node.op {
        Op::ArgReduce(a) => a.axis,
        Op::Cumulate(c) => c.axis,
        _ => return Err(NoKernel("not along an axis".into())),
    };
    let kept: Vec<usize> = (0..shape.len()).filter(|&i| i != axis).collect();
    let inner = kept.len() as u8;
    let mut at: Vec<Coord> = vec![Coord::zero(); shape.len()];
    kept.iter()
        .enumerate()
        .for_each(|(k, &i)| at[i] = Coord::axis(k as u8));
    at[axis] = Coord::axis(inner);
    let mut axes: Vec<Size> = kept.iter().map(|&i| s.size(&shape[i])).collect();
    axes.push(s.size(&shape[axis]));
    let mut stages = vec![];
    match &node.op {
        Op::ArgReduce(a) => {
            let value = s.value(node.args[0], &at, None)?;
            let position = s.exprs.axis(inner);
            stages.push(Stage {
                axes: vec![inner],
                effects: vec![Effect::ArgReduce {
                    best: 0,
                    at: 1,
                    largest: a.largest,
                    last: a.last,
                    value,
                    position,
                }],
            });
            let value = s.exprs.acc(1, DType::I64)?;
            let place: Vec<Coord> = if a.keep {
                (0..shape.len())
                    .map(|i| {
                        if i == axis {
                            Coord::zero()
                        } else {
                            at[i].clone()
                        }
                    })
                    .collect()
            } else {
                kept.iter().map(|&i| at[i].clone()).collect()
            };
            let index = s.address(graph.shape(root), &place)?;
            stages.push(Stage {
                axes: vec![],
                effects: vec![Effect::Store {
                    arg: OUT,
                    index,
                    value,
                    update: None,
                    when: None,
                }],
            });
        }
        Op::Cumulate(c) => {
            if c.reverse {
                let last = shape[axis].clone() - Dim::ONE;
                at[axis] = Coord::Linear {
                    terms: [(inner, Dim::from(-1i64))].into(),
                    offset: last,
                };
            }
            let value = s.value(node.args[0], &at, None)?;
            let dtype = s.exprs.dtype(value);
            let total = s.exprs.acc(0, dtype)?;
            let index = s.address(&shape, &at)?;
            stages.push(Stage {
                axes: vec![inner],
                effects: vec![
                    Effect::Scan {
                        acc: 0,
                        by: reducer(c.f),
                        value,
                        exclusive: c.exclusive,
                    },
                    Effect::Store {
                        arg: OUT,
                        index,
                        value: total,
                        update: None,
                        when: None,
                    },
                ],
            });
        }
        _ => {}
    }
    set_out(&mut stages, s.buffers.len() as u16);
    let nest = LoopNest {
        axes,
        outer: inner,
        stages,
        ..LoopNest::default()
    };
    finish(s, nest, root, None)
}

/// Writes into a copy of the first argument.
fn scatter(graph: &Graph, region: RegionId, root: Value, n: NodeId) -> Result<Kernel, NoKernel> {
    let node = graph.node(n);
    if node.results[0] != root {
        return Err(NoKernel(format!(
            "`{}` has no epilogue",
            node.op.def().mnemonic()
        )));
    }
    let x = node.args[0];
    if graph.producer(x).is_some() {
        return Err(NoKernel("what is scattered into must be in memory".into()));
    }
    let mut s = Scalars::new(graph, region, vec![]);
    let target = graph.shape(x).to_vec();
    let (updates, update) = match &node.op {
        Op::ScatterElements(e) => (node.args[2], e.f),
        Op::ScatterNd(e) => (node.args[2], e.f),
        _ => (node.args[1], ScatterFn::Set),
    };
    let shape = graph.shape(updates).to_vec();
    let axes: Vec<Size> = shape.iter().map(|d| s.size(d)).collect();
    let at: Vec<Coord> = (0..shape.len() as u8).map(Coord::axis).collect();
    let value = s.value(updates, &at, None)?;
    let mut place = vec![];
    match &node.op {
        Op::ScatterElements(e) => {
            let index = s.value(node.args[1], &at, None)?;
            place = at.clone();
            place[e.axis] = Coord::Data(s.exprs.cast(DType::I64, index)?);
        }
        Op::ScatterNd(_) => {
            let lead = graph.ty(node.args[1]).rank() - 1;
            let depth = graph.shape(node.args[1])[lead].as_const().unwrap_or(0);
            for j in 0..depth {
                let mut c = at[..lead].to_vec();
                c.push(Coord::Linear {
                    terms: BTreeMap::new(),
                    offset: j.into(),
                });
                let index = s.value(node.args[1], &c, None)?;
                place.push(Coord::Data(s.exprs.cast(DType::I64, index)?));
            }
            place.extend_from_slice(&at[lead..]);
        }
        _ => place = at.clone(),
    }
    let mut index = s.address(&target, &place)?;
    if matches!(node.op, Op::DynamicUpdateSlice(_)) {
        s.box_start(&mut index, node.args[2], &target, &shape)?;
    }
    let update = match update {
        ScatterFn::Set => None,
        ScatterFn::Add => Some(Reducer::Sum),
        ScatterFn::Mul => Some(Reducer::Prod),
        ScatterFn::Max => Some(Reducer::Max),
        ScatterFn::Min => Some(Reducer::Min),
    };
    let mut stages = vec![Stage {
        axes: vec![],
        effects: vec![Effect::Store {
            arg: OUT,
            index,
            value,
            update,
            when: None,
        }],
    }];
    set_out(&mut stages, s.buffers.len() as u16);
    let nest = LoopNest {
        outer: axes.len() as u8,
        axes,
        stages,
        ..LoopNest::default()
    };
    finish(s, nest, root, Some(x))
}

/// A region parameter seen through strides.
struct Strided {
    value: Value,
    /// By coordinate axis.
    strides: BTreeMap<u8, Dim>,
    offset: Dim,
}

/// Follows views to the region parameter behind them.
fn strided(graph: &Graph, v: Value, at: Vec<Coord>, through_casts: bool) -> Option<Strided> {
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
fn operand_coords(shape: &[Dim], rank: usize, last: [u8; 2]) -> Vec<Coord> {
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

/// A contraction with an epilogue; none where the kernels do not serve it.
fn contraction(
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
    let (ta, tb) = match &node.op {
        Op::MatMul(op) => (op.transpose_a, op.transpose_b),
        _ => (false, false),
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
    let packed = matches!(node.op, Op::PackedMatMul(_));
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
    if graph.producer(b_view.value).is_some() {
        return Ok(None);
    }
    let mut s = Scalars::new(graph, region, vec![a_view.value, b_view.value]);
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
    let (columns, nr) = if packed {
        (Columns::Packed, graph.shape(b)[2].as_const().unwrap_or(64))
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
    s.fixed.insert(y, (sum, None));
    let value = s.value(root, &identity, None)?;
    let out = s.address(&shape, &identity)?;
    let batch = shape[..rank - 2].iter().map(|d| s.size(d)).collect();
    let (m, n_size, k) = (
        s.size(&shape[rank - 2]),
        s.size(&shape[rank - 1]),
        s.size(&k),
    );
    let mut args: Vec<DType> = s.buffers.iter().map(|&v| graph.ty(v).dtype).collect();
    args.push(graph.ty(root).dtype);
    let mut inputs: Vec<(Value, Dim)> = s.buffers.iter().map(|&v| (v, Dim::ZERO)).collect();
    let bytes = |v: Value| Dim::from(graph.ty(v).dtype.size().unwrap_or(1));
    inputs[0].1 = a_view.offset.clone() * bytes(a_view.value);
    inputs[1].1 = b_view.offset.clone() * bytes(b_view.value);
    let exprs = std::mem::take(&mut s.exprs);
    let dims = s.params.into_dims();
    let spec = MatMulSpec {
        exprs,
        args,
        params: dims.len() as u16,
        batch,
        m,
        n: n_size,
        k,
        acc,
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
fn plain_product(
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
    s.fixed.insert(y, (sum, None));
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

/// Attention, with the transpose of its result if one follows.
fn attention(graph: &Graph, region: RegionId, root: Value, n: NodeId) -> Result<Kernel, NoKernel> {
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
    let mut args: Vec<DType> = s.buffers.iter().map(|&v| graph.ty(v).dtype).collect();
    args.push(graph.ty(root).dtype);
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
