//! Moves that swap two axes: each is walked in vectors along both.

use crate::support::{Case, Rng, check};
use kiln_ir::{BinaryFn, DType, UnaryFn};
use kiln_kernels::*;

/// Dense strides of axes that lie in memory in this order.
fn dense(order: &[usize], extents: &[i64], size: &mut dyn FnMut(i64) -> Size) -> Index {
    let mut strides = vec![Size::ZERO; extents.len()];
    let mut step = 1;
    for &a in order.iter().rev() {
        strides[a] = size(step);
        step *= extents[a];
    }
    Index::strided(strides)
}

/// `out[axes] = f(x[order of axes])`, with a second operand where `with` says so.
fn transpose(
    name: String,
    t: DType,
    extents: &[i64],
    order: &[usize],
    with: usize,
    open: bool,
) -> Case {
    let mut rng = Rng(extents.iter().sum::<i64>() as u64);
    let mut params = vec![];
    // Extents of short axes and their multiples are known, as channels are.
    let mut size = |n: i64| {
        if open && n > 8 {
            params.push(n);
            return Size::Param(params.len() as u16 - 1);
        }
        Size::Const(n)
    };
    let n: i64 = extents.iter().product();
    let straight: Vec<usize> = (0..extents.len()).collect();
    let (from, to) = (
        dense(order, extents, &mut size),
        dense(&straight, extents, &mut size),
    );
    let mut e = Exprs::new();
    let mut args = vec![t];
    let mut buffers = vec![rng.data(t, n as usize)];
    let mut x = e.load(0, t, from.clone()).unwrap();
    if with > 0 {
        // The same way across, straight on, or one value a point of the last axis.
        let index = match with {
            1 => from,
            2 => to.clone(),
            _ => dense(&[extents.len() - 1], extents, &mut size),
        };
        args.push(t);
        buffers.push(rng.data(t, n as usize));
        let y = e.load(1, t, index).unwrap();
        let f = [BinaryFn::Max, BinaryFn::Add][with % 2];
        x = match t {
            DType::Bool => e.binary(BinaryFn::Xor, x, y).unwrap(),
            _ => e.binary(f, x, y).unwrap(),
        };
    }
    if with == 3 && t.is_float() {
        x = e.unary(UnaryFn::Neg, x).unwrap();
    }
    let t = e.dtype(x);
    args.push(t);
    buffers.push(vec![0; n as usize * t.size().unwrap()]);
    let axes = extents.iter().map(|&n| size(n)).collect();
    let store = Effect::Store {
        arg: args.len() as u16 - 1,
        index: to,
        value: x,
        update: None,
        when: None,
    };
    let nest = LoopNest {
        exprs: e,
        args,
        params: params.len() as u16,
        axes,
        outer: extents.len() as u8,
        temps: vec![],
        stages: vec![Stage {
            axes: vec![],
            effects: vec![store],
        }],
    };
    Case {
        name,
        nest,
        buffers,
        params,
    }
}

const TYPES: [DType; 9] = [
    DType::F32,
    DType::F16,
    DType::BF16,
    DType::F64,
    DType::I64,
    DType::I32,
    DType::I16,
    DType::U8,
    DType::Bool,
];

#[test]
fn short_axes_are_interleaved_and_dealt() {
    let mut cases = vec![];
    for (i, t) in TYPES.into_iter().enumerate() {
        for (k, (c, g)) in [(16, 2), (37, 3), (40, 4), (9, 5), (23, 7), (35, 8)]
            .into_iter()
            .enumerate()
        {
            for open in [false, true] {
                let with = (i + k) % 4;
                let name = |way: &str| format!("{way}_{t}_{c}_{g}_{open}");
                let there = transpose(name("there"), t, &[3, c, g], &[0, 2, 1], with, open);
                let back = transpose(name("back"), t, &[3, g, c], &[0, 2, 1], with, open);
                cases.extend([there, back]);
            }
        }
    }
    for case in &cases {
        // What reads straight on as well may be cheaper along the short axis.
        let schedule = case.nest.schedule();
        assert!(
            schedule.crossed.is_some_and(|c| c.short),
            "{}: {schedule:?}",
            case.name
        );
    }
    check(cases);
}

#[test]
fn long_axes_are_transposed_in_tiles() {
    let mut cases = vec![];
    for (i, t) in TYPES.into_iter().enumerate() {
        for (k, (r, c)) in [(16, 32), (33, 17), (9, 48), (40, 10)]
            .into_iter()
            .enumerate()
        {
            for open in [false, true] {
                let name = format!("tiles_{t}_{r}_{c}_{open}");
                let with = (i + k) % 4;
                cases.push(transpose(name, t, &[2, r, c], &[0, 2, 1], with, open));
            }
        }
    }
    for case in &cases {
        let schedule = case.nest.schedule();
        let wide = matches!(case.nest.args[0].size(), Some(4 | 8));
        assert_eq!(
            schedule.crossed.is_some_and(|c| !c.short),
            wide,
            "{}: {schedule:?}",
            case.name
        );
    }
    check(cases);
}
