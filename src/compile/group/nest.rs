//! Loop nests: maps, moves, reductions, running sums, scatters.

use super::{Kernel, OUT, finish, reducer, set_out};
use crate::compile::scalar::{Coord, NoKernel, Scalars};
use kiln_ir::ops::index::ScatterFn;
use kiln_ir::{BinaryFn, DType, Dim, Graph, NodeId, Op, ReduceFn, RegionId, Value};
use kiln_kernels::{Effect, ExprId, LoopNest, Node, Reducer, Size, Stage};
use std::collections::BTreeMap;

/// Maps, moves and reductions.
pub(super) fn nest(graph: &Graph, region: RegionId, root: Value) -> Result<Kernel, NoKernel> {
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
pub(super) fn along_axis(
    graph: &Graph,
    region: RegionId,
    root: Value,
    n: NodeId,
) -> Result<Kernel, NoKernel> {
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
pub(super) fn scatter(
    graph: &Graph,
    region: RegionId,
    root: Value,
    n: NodeId,
) -> Result<Kernel, NoKernel> {
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
