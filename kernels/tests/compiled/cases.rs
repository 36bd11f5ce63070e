//! Borders and pieces: what is decided for whole runs, and what is not.

use crate::support::{Case, Rng, check};
use kiln_ir::{BinaryFn, CompareFn, DType};
use kiln_kernels::*;

fn c(n: i64) -> Size {
    Size::Const(n)
}

/// Where an axis plus an offset lies in `0..extent`.
fn inside(e: &mut Exprs, x: ExprId, extent: i64) -> ExprId {
    let (zero, end) = (e.i64(0), e.i64(extent));
    let low = e.compare(CompareFn::Ge, x, zero).unwrap();
    let high = e.compare(CompareFn::Lt, x, end).unwrap();
    e.binary(BinaryFn::And, low, high).unwrap()
}

/// Pieces of `[rows, ..]` joined along the last axis (`along` 1) or the first, with a
/// sum of something else so that no piece is a plain copy.
fn concat(t: DType, lengths: &[i64], across: i64, along: u8, seed: u64) -> Case {
    let mut rng = Rng(seed);
    let total: i64 = lengths.iter().sum();
    let (mut e, mut args, mut buffers) = (Exprs::new(), vec![], vec![]);
    let place = e.axis(along);
    let mut start = 0;
    let mut pieces = vec![];
    for (k, &n) in lengths.iter().enumerate() {
        let (from, to) = (e.i64(start), e.i64(start + n));
        let below = e.compare(CompareFn::Lt, place, to).unwrap();
        let above = e.compare(CompareFn::Ge, place, from).unwrap();
        // As the first and the last piece are guarded, and those between.
        let when = match k {
            0 => below,
            _ if k + 1 == lengths.len() => above,
            _ => e.binary(BinaryFn::And, above, below).unwrap(),
        };
        let row = if along == 1 { n } else { across };
        let index = Index {
            offset: c(-start * if along == 1 { 1 } else { row }),
            ..Index::strided([c(row), c(1)])
        };
        let zero = e.int(t, 0).unwrap();
        let x = e.load_where(k as u16, t, index, when, zero).unwrap();
        args.push(t);
        buffers.push(rng.data(t, (n * across) as usize));
        pieces.push((below, x));
        start += n;
    }
    let mut pieces = pieces.into_iter().rev();
    let (_, mut out) = pieces.next().unwrap();
    for (below, x) in pieces {
        out = e.select(below, x, out).unwrap();
    }
    let (rows, columns) = if along == 1 {
        (across, total)
    } else {
        (total, across)
    };
    let index = Index::strided([c(columns), c(1)]);
    let at = args.len();
    args.push(t);
    buffers.push(vec![0; (rows * columns) as usize * t.size().unwrap()]);
    Case {
        name: format!("concat_{t}_{seed}"),
        nest: LoopNest {
            exprs: e,
            args,
            axes: vec![c(rows), c(columns)],
            outer: 2,
            stages: vec![Stage {
                axes: vec![],
                effects: vec![Effect::store(at as u16, index, out)],
            }],
            ..LoopNest::default()
        },
        buffers,
        params: vec![],
    }
}

#[test]
fn pieces_are_joined_along_runs_and_across_them() {
    let mut cases = vec![];
    let pieces: [&[i64]; 6] = [
        &[16, 32],
        &[3, 5],
        &[17, 1, 30],
        &[1, 64, 16, 7],
        &[5, 1, 1, 1, 1, 1, 1, 1, 1, 9],
        &[4000, 200],
    ];
    let types = [DType::F32, DType::BF16, DType::I64, DType::U8, DType::Bool];
    for (i, lengths) in pieces.into_iter().enumerate() {
        for (k, t) in types.into_iter().enumerate() {
            let seed = (10 * i + k) as u64;
            cases.push(concat(t, lengths, 3, 1, 2 * seed));
            cases.push(concat(t, lengths, 21, 0, 2 * seed + 1));
        }
    }
    check(cases);
}

/// Windows of `k` by `k` over `[h, w, channels]` with a border of `p`: `by` of what is
/// in them, where the border counts as `fill`.
#[allow(clippy::too_many_arguments)]
fn pool(
    t: DType,
    by: Reducer,
    (h, w, channels): (i64, i64, i64),
    (k, step, p): (i64, i64, i64),
    open: bool,
    seed: u64,
) -> Case {
    let mut rng = Rng(seed);
    let out = |n: i64| (n + 2 * p - k) / step + 1;
    let mut e = Exprs::new();
    let mut params = vec![];
    let mut size = |n: i64| {
        if open {
            params.push(n);
            return Size::Param(params.len() as u16 - 1);
        }
        Size::Const(n)
    };
    let (oh, ow, ch) = (size(out(h)), size(out(w)), size(channels));
    let mut when = None;
    for (axis, inner, extent) in [(0, 3, h), (1, 4, w)] {
        let (o, i) = (e.axis(axis), e.axis(inner));
        let (by, back) = (e.i64(step), e.i64(-p));
        let at = e.binary(BinaryFn::Mul, o, by).unwrap();
        let at = e.binary(BinaryFn::Add, back, at).unwrap();
        let at = e.binary(BinaryFn::Add, at, i).unwrap();
        let here = inside(&mut e, at, extent);
        when = Some(match when {
            Some(w) => e.binary(BinaryFn::And, w, here).unwrap(),
            None => here,
        });
    }
    let (row, step_row) = (w * channels, step * w * channels);
    let index = Index {
        offset: c(-p * row - p * channels),
        ..Index::strided([c(step_row), c(step * channels), c(1), c(row), c(channels)])
    };
    let fill = e.int(t, -3).unwrap();
    let x = e.load_where(0, t, index, when.unwrap(), fill).unwrap();
    let acc = e.acc(0, t).unwrap();
    let n = (out(h) * out(w) * channels) as usize;
    let nest = LoopNest {
        exprs: e,
        args: vec![t, t],
        params: params.len() as u16,
        axes: vec![oh, ow, ch, c(k), c(k)],
        outer: 3,
        temps: vec![],
        stages: vec![
            Stage {
                axes: vec![3, 4],
                effects: vec![Effect::Reduce {
                    acc: 0,
                    by,
                    value: x,
                }],
            },
            Stage {
                axes: vec![],
                effects: vec![Effect::store(
                    1,
                    Index::strided([c(out(w) * channels), c(channels), c(1)]),
                    acc,
                )],
            },
        ],
    };
    Case {
        name: format!("pool_{t}_{seed}"),
        nest,
        buffers: vec![
            rng.data(t, (h * w * channels) as usize),
            vec![0; n * t.size().unwrap()],
        ],
        params,
    }
}

#[test]
fn windows_with_borders_are_guarded_at_the_borders() {
    let mut cases = vec![];
    let shapes = [
        ((7, 9, 16), (3, 2, 1)),
        ((5, 6, 35), (3, 1, 1)),
        ((1, 2, 20), (2, 1, 1)),
        ((4, 4, 530), (2, 2, 0)),
        ((9, 8, 17), (7, 2, 3)),
    ];
    for (i, (image, window)) in shapes.into_iter().enumerate() {
        for (k, (t, by)) in [
            (DType::F32, Reducer::Max),
            (DType::F32, Reducer::Sum),
            (DType::F16, Reducer::Max),
            (DType::I32, Reducer::Min),
            (DType::I8, Reducer::Max),
        ]
        .into_iter()
        .enumerate()
        {
            for open in [false, true] {
                let seed = (20 * i + 2 * k) as u64 + open as u64;
                cases.push(pool(t, by, image, window, open, seed));
            }
        }
    }
    for case in &cases {
        assert_eq!(case.nest.schedule().vector, Some(2));
    }
    check(cases);
}
