//! The nests that graph lowering makes: norms, gathers, padding, scans.

use crate::support::{Case, Rng, bytes, check, load, numbers, targets};
use kiln_ir::{BinaryFn, CompareFn, DType, UnaryFn};
use kiln_kernels::*;

const F: DType = DType::F32;

fn c(n: i64) -> Size {
    Size::Const(n)
}

/// Softmax over `[m, k]` where `k` has stride `sk`.
fn softmax(m: Size, k: Size, strides: [Size; 2], params: u16) -> LoopNest {
    let mut e = Exprs::new();
    let index = Index::strided(strides);
    let x = e.load(0, F, index.clone()).unwrap();
    let top = e.acc(0, F).unwrap();
    let less = e.binary(BinaryFn::Sub, x, top).unwrap();
    let exp = e.unary(UnaryFn::Exp, less).unwrap();
    let kept = e.temp(0, F).unwrap();
    let total = e.acc(1, F).unwrap();
    let y = e.binary(BinaryFn::Div, kept, total).unwrap();
    LoopNest {
        exprs: e,
        args: vec![F, F],
        params,
        axes: vec![m, k],
        outer: 1,
        temps: vec![Temp {
            dtype: F,
            axes: vec![1],
        }],
        stages: vec![
            Stage::new(&[1], vec![Effect::reduce(0, Reducer::Max, x)]),
            Stage::new(
                &[1],
                vec![
                    Effect::Keep {
                        temp: 0,
                        value: exp,
                    },
                    Effect::reduce(1, Reducer::Sum, exp),
                ],
            ),
            Stage::new(&[1], vec![Effect::store(1, index, y)]),
        ],
    }
}

#[test]
fn softmax_along_rows_and_columns_with_known_and_run_time_sizes() {
    let mut rng = Rng(1);
    let mut cases = vec![];
    for (i, (m, k)) in [(3, 5), (7, 16), (5, 100), (1, 1), (33, 17)]
        .into_iter()
        .enumerate()
    {
        let n = (m * k) as usize;
        let buffers = vec![rng.data(F, n), vec![0; 4 * n]];
        for (how, nest, params) in [
            ("rows", softmax(c(m), c(k), [c(k), c(1)], 0), vec![]),
            ("columns", softmax(c(m), c(k), [c(1), c(m)], 0), vec![]),
            (
                "run_time",
                softmax(Size::Param(0), Size::Param(1), [Size::Param(1), c(1)], 2),
                vec![m, k],
            ),
            (
                "strided",
                softmax(Size::Param(0), Size::Param(1), [c(1), Size::Param(0)], 2),
                vec![m, k],
            ),
        ] {
            let name = format!("softmax_{how}_{i}");
            cases.push(Case {
                name,
                nest,
                buffers: buffers.clone(),
                params,
            });
        }
    }
    check(cases);
}

#[test]
fn layer_norm_with_residual_gives_two_outputs() {
    let (m, k) = (6, 83);
    let mut e = Exprs::new();
    let (row, col) = (Index::strided([c(k), c(1)]), Index::strided([c(0), c(1)]));
    let x = e.load(0, F, row.clone()).unwrap();
    let r = e.load(1, F, row.clone()).unwrap();
    let (gamma, beta) = (
        e.load(2, F, col.clone()).unwrap(),
        e.load(3, DType::F16, col).unwrap(),
    );
    let beta = e.cast(F, beta).unwrap();
    let sum = e.binary(BinaryFn::Add, x, r).unwrap();
    let n = e.f32(k as f32);
    let total = e.acc(0, F).unwrap();
    let mean = e.binary(BinaryFn::Div, total, n).unwrap();
    let kept = e.temp(0, F).unwrap();
    let centred = e.binary(BinaryFn::Sub, kept, mean).unwrap();
    let square = e.binary(BinaryFn::Mul, centred, centred).unwrap();
    let squares = e.acc(1, F).unwrap();
    let var = e.binary(BinaryFn::Div, squares, n).unwrap();
    let eps = e.f32(1e-5);
    let var = e.binary(BinaryFn::Add, var, eps).unwrap();
    let scale = e.unary(UnaryFn::Rsqrt, var).unwrap();
    let y = e.binary(BinaryFn::Mul, centred, scale).unwrap();
    let y = e.binary(BinaryFn::Mul, y, gamma).unwrap();
    let y = e.binary(BinaryFn::Add, y, beta).unwrap();
    let half = e.cast(DType::BF16, y).unwrap();
    let nest = LoopNest {
        exprs: e,
        args: vec![F, F, F, DType::F16, F, F, DType::BF16, F],
        params: 0,
        axes: vec![c(m), c(k)],
        outer: 1,
        temps: vec![Temp {
            dtype: F,
            axes: vec![1],
        }],
        stages: vec![
            Stage::new(
                &[1],
                vec![
                    Effect::Keep {
                        temp: 0,
                        value: sum,
                    },
                    Effect::reduce(0, Reducer::Sum, sum),
                    Effect::store(4, row.clone(), sum),
                ],
            ),
            Stage::new(&[1], vec![Effect::reduce(1, Reducer::Sum, square)]),
            Stage::new(
                &[1],
                vec![
                    Effect::store(5, row.clone(), y),
                    Effect::store(6, row, half),
                ],
            ),
            Stage::new(&[], vec![Effect::store(7, Index::strided([c(1)]), mean)]),
        ],
    };
    let mut rng = Rng(2);
    let n = (m * k) as usize;
    let buffers = vec![
        rng.data(F, n),
        rng.data(F, n),
        rng.data(F, k as usize),
        rng.data(DType::F16, k as usize),
        vec![0; 4 * n],
        vec![0; 4 * n],
        vec![0; 2 * n],
        vec![0; 4 * m as usize],
    ];
    check(vec![Case {
        name: "layer_norm".into(),
        nest,
        buffers,
        params: vec![],
    }]);
}

/// Rows of a table by i64 index: `y[i, j] = table[ids[i], j]`.
fn embedding(rows: i64, width: i64, count: i64, along: bool) -> LoopNest {
    let mut e = Exprs::new();
    let ids = Index::strided(if along { [c(0), c(1)] } else { [c(1), c(0)] });
    let id = e.load(1, DType::I64, ids).unwrap();
    // Gathered rows leave `j` contiguous; gathered columns need a gather per lane.
    let (own, stride) = if along {
        ([c(rows), c(0)], c(1))
    } else {
        ([c(0), c(1)], c(width))
    };
    let index = Index {
        gathers: vec![Gathered {
            index: id,
            stride,
            extent: c(rows),
        }],
        ..Index::strided(own)
    };
    let x = e.load(0, F, index).unwrap();
    let (a, b) = if along {
        (width, count)
    } else {
        (count, width)
    };
    LoopNest {
        exprs: e,
        args: vec![F, DType::I64, F],
        params: 0,
        axes: vec![c(a), c(b)],
        outer: 2,
        temps: vec![],
        stages: vec![Stage::new(
            &[],
            vec![Effect::store(2, Index::strided([c(b), c(1)]), x)],
        )],
    }
}

#[test]
fn gathers_take_negative_indices_and_report_those_out_of_range() {
    let (rows, width, count) = (11, 37, 19);
    let mut rng = Rng(3);
    let table = rng.data(F, (rows * width) as usize);
    let mut cases = vec![];
    for along in [false, true] {
        for (what, special) in [("inside", -11.0), ("above", 11.0), ("below", -12.0)] {
            let mut ids: Vec<f64> = (0..count).map(|i| (i % rows) as f64).collect();
            ids[13] = special;
            let out = vec![0; (4 * count * width) as usize];
            cases.push(Case {
                name: format!("gather_{along}_{what}"),
                nest: embedding(rows, width, count, along),
                buffers: vec![table.clone(), bytes(DType::I64, &ids), out],
                params: vec![],
            });
        }
    }
    check(cases);
}

#[test]
fn an_empty_table_is_not_read() {
    for target in targets() {
        let nest = embedding(0, 8, 3, false);
        let spec = KernelSpec::Nest(nest);
        let loaded = load(&[("none".into(), spec.clone())], &target);
        let mut buffers = vec![vec![], bytes(DType::I64, &[0.0; 3]), vec![0; 4 * 24]];
        assert_eq!(
            loaded.run("none", &spec, &mut buffers, &[]),
            STATUS_OUT_OF_RANGE
        );
    }
}

#[test]
fn guarded_loads_pad_and_concatenate() {
    // y = concat(a[.., 5], b[.., 40]) with a row of padding above.
    let (rows, wa, wb) = (4i64, 5i64, 40i64);
    let mut e = Exprs::new();
    let (i, j) = (e.axis(0), e.axis(1));
    let (one, edge, pad) = (e.i64(1), e.i64(wa), e.f32(-7.0));
    let below = e.compare(CompareFn::Ge, i, one).unwrap();
    let left = e.compare(CompareFn::Lt, j, edge).unwrap();
    let right = e.unary(UnaryFn::Not, left).unwrap();
    let on_left = e.binary(BinaryFn::And, below, left).unwrap();
    let on_right = e.binary(BinaryFn::And, below, right).unwrap();
    let ia = Index {
        offset: c(-wa),
        ..Index::strided([c(wa), c(1)])
    };
    let ib = Index {
        offset: c(-wb - wa),
        ..Index::strided([c(wb), c(1)])
    };
    let a = e.load_where(0, F, ia, on_left, pad).unwrap();
    let b = e.load_where(1, F, ib, on_right, a).unwrap();
    let nest = LoopNest {
        exprs: e,
        args: vec![F, F, F],
        params: 0,
        axes: vec![c(rows + 1), c(wa + wb)],
        outer: 2,
        temps: vec![],
        stages: vec![Stage::new(
            &[],
            vec![Effect::store(2, Index::strided([c(wa + wb), c(1)]), b)],
        )],
    };
    let mut rng = Rng(4);
    let buffers = vec![
        rng.data(F, (rows * wa) as usize),
        rng.data(F, (rows * wb) as usize),
        vec![0; (4 * (rows + 1) * (wa + wb)) as usize],
    ];
    check(vec![Case {
        name: "concat".into(),
        nest,
        buffers,
        params: vec![],
    }]);
}

#[test]
fn arg_max_takes_the_first_or_last_and_nan_above_all() {
    let (m, k) = (5i64, 53i64);
    let mut cases = vec![];
    let mut rng = Rng(5);
    for t in [F, DType::F16, DType::I64, DType::U8] {
        for (largest, last) in [(true, false), (true, true), (false, false), (false, true)] {
            for rows in [true, false] {
                let mut e = Exprs::new();
                let s = if rows { [c(k), c(1)] } else { [c(1), c(m)] };
                let value = e.load(0, t, Index::strided(s)).unwrap();
                let position = e.axis(1);
                let at = e.acc(1, DType::I64).unwrap();
                let best = e.acc(0, t).unwrap();
                let effect = Effect::ArgReduce {
                    best: 0,
                    at: 1,
                    largest,
                    last,
                    value,
                    position,
                };
                let mut values: Vec<f64> = (0..m * k).map(|_| rng.below(9) as f64).collect();
                if t.is_float() {
                    values[60] = f64::NAN;
                    values[63] = f64::NAN;
                }
                cases.push(Case {
                    name: format!("arg_{t}_{largest}_{last}_{rows}"),
                    nest: LoopNest {
                        exprs: e,
                        args: vec![t, DType::I64, t],
                        params: 0,
                        axes: vec![c(m), c(k)],
                        outer: 1,
                        temps: vec![],
                        stages: vec![
                            Stage::new(&[1], vec![effect]),
                            Stage::new(
                                &[],
                                vec![
                                    Effect::store(1, Index::strided([c(1)]), at),
                                    Effect::store(2, Index::strided([c(1)]), best),
                                ],
                            ),
                        ],
                    },
                    buffers: vec![
                        bytes(t, &values),
                        vec![0; 8 * m as usize],
                        vec![0; t.size().unwrap() * m as usize],
                    ],
                    params: vec![],
                });
            }
        }
    }
    check(cases);
}

#[test]
fn max_and_min_carry_nan_and_empty_reductions_give_identities() {
    let mut cases = vec![];
    for (name, k) in [("some", 40i64), ("none", 0)] {
        for by in [Reducer::Max, Reducer::Min, Reducer::Sum, Reducer::Prod] {
            for t in [F, DType::I32] {
                let mut e = Exprs::new();
                let x = e.load(0, t, Index::strided([c(40), c(1)])).unwrap();
                let acc = e.acc(0, t).unwrap();
                let mut values: Vec<f64> = (0..120).map(|i| (i % 7 - 3) as f64).collect();
                values[45] = f64::NAN;
                cases.push(Case {
                    name: format!("extreme_{name}_{by:?}_{t}"),
                    nest: LoopNest {
                        exprs: e,
                        args: vec![t, t],
                        params: 0,
                        axes: vec![c(3), c(k)],
                        outer: 1,
                        temps: vec![],
                        stages: vec![
                            Stage::new(&[1], vec![Effect::reduce(0, by, x)]),
                            Stage::new(&[], vec![Effect::store(1, Index::strided([c(1)]), acc)]),
                        ],
                    },
                    buffers: vec![bytes(t, &values), vec![0; 12]],
                    params: vec![],
                });
            }
        }
    }
    check(cases);
}

#[test]
fn scans_run_in_order_along_rows_and_columns() {
    let (m, k) = (3i64, 21i64);
    let mut cases = vec![];
    let mut rng = Rng(6);
    for t in [F, DType::I64] {
        for (exclusive, rows) in [(false, true), (true, true), (false, false), (true, false)] {
            let mut e = Exprs::new();
            let s = if rows { [c(k), c(1)] } else { [c(1), c(m)] };
            // Backwards: cumulative sums from the end.
            let back = Index {
                offset: c((k - 1) * if rows { 1 } else { m }),
                ..Index::strided(if rows { [c(k), c(-1)] } else { [c(1), c(-m)] })
            };
            let x = e.load(0, t, Index::strided(s)).unwrap();
            let running = e.acc(0, t).unwrap();
            let y = e.load(0, t, back.clone()).unwrap();
            let from_end = e.acc(1, t).unwrap();
            let n = (m * k) as usize;
            let effects = vec![
                Effect::Scan {
                    acc: 0,
                    by: Reducer::Sum,
                    value: x,
                    exclusive,
                },
                Effect::Scan {
                    acc: 1,
                    by: Reducer::Sum,
                    value: y,
                    exclusive,
                },
                Effect::store(1, Index::strided(s), running),
                Effect::store(2, back, from_end),
            ];
            cases.push(Case {
                name: format!("scan_{t}_{exclusive}_{rows}"),
                nest: LoopNest {
                    exprs: e,
                    args: vec![t; 3],
                    params: 0,
                    axes: vec![c(m), c(k)],
                    outer: 1,
                    temps: vec![],
                    stages: vec![Stage::new(&[1], effects)],
                },
                buffers: vec![
                    rng.data(t, n),
                    vec![0; n * t.size().unwrap()],
                    vec![0; n * t.size().unwrap()],
                ],
                params: vec![],
            });
        }
    }
    check(cases);
}

#[test]
fn scatters_write_or_add_in_order() {
    let (count, width, rows) = (9i64, 5i64, 4i64);
    let mut cases = vec![];
    let mut rng = Rng(7);
    for (name, update) in [
        ("set", None),
        ("add", Some(Reducer::Sum)),
        ("max", Some(Reducer::Max)),
    ] {
        for bad in [false, true] {
            let mut e = Exprs::new();
            let id = e.load(0, DType::I32, Index::strided([c(1)])).unwrap();
            let value = e.load(1, F, Index::strided([c(width), c(1)])).unwrap();
            let index = Index {
                gathers: vec![Gathered {
                    index: id,
                    stride: c(width),
                    extent: c(rows),
                }],
                ..Index::strided([c(0), c(1)])
            };
            let mut ids: Vec<f64> = (0..count).map(|_| rng.below(8) as f64 - 4.0).collect();
            if bad {
                ids[3] = 4.0;
            }
            cases.push(Case {
                name: format!("scatter_{name}_{bad}"),
                nest: LoopNest {
                    exprs: e,
                    args: vec![DType::I32, F, F],
                    params: 0,
                    axes: vec![c(count), c(width)],
                    outer: 2,
                    temps: vec![],
                    stages: vec![Stage::new(
                        &[],
                        vec![Effect::Store {
                            arg: 2,
                            index,
                            value,
                            update,
                            when: None,
                        }],
                    )],
                },
                buffers: vec![
                    bytes(DType::I32, &ids),
                    rng.data(F, (count * width) as usize),
                    rng.data(F, (rows * width) as usize),
                ],
                params: vec![],
            });
        }
    }
    check(cases);
}

#[test]
fn casts_between_all_types_round_saturate_and_wrap() {
    let types = [
        DType::F64,
        DType::F32,
        DType::F16,
        DType::BF16,
        DType::Bool,
        DType::I64,
        DType::I32,
        DType::I16,
        DType::I8,
        DType::U64,
        DType::U32,
        DType::U16,
        DType::U8,
    ];
    let special = [
        0.0,
        -0.0,
        1.0,
        -1.0,
        0.5,
        1.5,
        2.5,
        -2.5,
        127.0,
        128.0,
        255.0,
        256.0,
        -129.0,
        32768.0,
        65504.0,
        65520.0,
        70000.0,
        1.0 / 3.0,
        1e-7,
        3e-8,
        4294967296.0,
        1e10,
        -1e10,
        1e19,
        -1e19,
        1e30,
        f64::INFINITY,
        f64::NEG_INFINITY,
        f64::NAN,
        1.00048828125,
        1.0004882812500002,
        1.0039062500000002,
        2049.0,
        2147483647.0,
        2147483648.0,
        9.3e18,
    ];
    let n = special.len();
    let mut cases = vec![];
    for from in types {
        for to in types {
            let mut e = Exprs::new();
            let x = e.load(0, from, Index::strided([c(1)])).unwrap();
            let y = e.cast(to, x).unwrap();
            let values: Vec<f64> = special
                .iter()
                .map(|&v| {
                    if from.is_float() || v.is_finite() {
                        v
                    } else {
                        3.0
                    }
                })
                .collect();
            cases.push(Case {
                name: format!("cast_{from}_{to}"),
                nest: LoopNest {
                    exprs: e,
                    args: vec![from, to],
                    params: 0,
                    axes: vec![c(n as i64)],
                    outer: 1,
                    temps: vec![],
                    stages: vec![Stage::new(
                        &[],
                        vec![Effect::store(1, Index::strided([c(1)]), y)],
                    )],
                },
                buffers: vec![bytes(from, &values), vec![0; n * to.size().unwrap()]],
                params: vec![],
            });
        }
    }
    check(cases);
}

/// Whatever computes it: next to each border between two steps, and
/// at the ends of what floats hold.
#[test]
fn quantizing_rounds_as_a_division_does() {
    let mut rng = Rng(5);
    let mut cases = vec![];
    for i in 0..24 {
        // The last mantissas are those whose reciprocals are hardest.
        let mantissa = [0, 1, 0x7f_ffff, 0x7f_fffe, rng.next() as u32 & 0x7f_ffff][i % 5];
        let scale = f32::from_bits(mantissa | (100 + rng.below(40) as u32) << 23);
        let to = [DType::U8, DType::I8][i % 2];
        let zero = [0.0, 128.0, 255.0, -128.0][rng.below(4)];
        let mut values: Vec<f64> = vec![];
        for step in -300..300 {
            let near = ((step as f64 + 0.5) * scale as f64) as f32;
            for off in -3i32..=3 {
                let bits = near.to_bits().wrapping_add_signed(off);
                values.push(f32::from_bits(bits) as f64);
            }
        }
        let largest = f32::MAX as f64;
        values.extend([0.0, -0.0, 1e-45, -1e-45, 1e-38, largest, -largest]);
        values.extend([f64::INFINITY, f64::NEG_INFINITY, f64::NAN]);
        let n = values.len() as i64;
        let mut e = Exprs::new();
        let x = e.load(0, F, Index::strided([Size::ONE])).unwrap();
        let by = e.f32(scale);
        let y = e.binary(BinaryFn::Div, x, by).unwrap();
        let mut y = e.unary(UnaryFn::Round, y).unwrap();
        if i % 3 != 0 {
            let zero = e.f32(zero as f32);
            y = e.binary(BinaryFn::Add, y, zero).unwrap();
        }
        let y = e.cast(to, y).unwrap();
        let nest = LoopNest {
            exprs: e,
            args: vec![F, to],
            axes: vec![c(n)],
            outer: 1,
            stages: vec![Stage::new(
                &[],
                vec![Effect::store(1, Index::strided([Size::ONE]), y)],
            )],
            ..LoopNest::default()
        };
        cases.push(Case {
            name: format!("quantize{i}"),
            nest,
            buffers: vec![bytes(F, &values), vec![0; n as usize]],
            params: vec![],
        });
    }
    check(cases);
}

#[test]
fn integer_division_by_zero_is_reported_and_the_least_value_does_not_trap() {
    let t = DType::I64;
    let mut e = Exprs::new();
    let (a, b) = (
        e.load(0, t, Index::strided([c(1)])).unwrap(),
        e.load(1, t, Index::strided([c(1)])).unwrap(),
    );
    let quotient = e.binary(BinaryFn::Div, a, b).unwrap();
    let nest = LoopNest {
        exprs: e,
        args: vec![t; 3],
        params: 0,
        axes: vec![c(5)],
        outer: 1,
        temps: vec![],
        stages: vec![Stage::new(
            &[],
            vec![Effect::store(2, Index::strided([c(1)]), quotient)],
        )],
    };
    let spec = KernelSpec::Nest(nest);
    for target in targets() {
        let loaded = load(&[("quotient".into(), spec.clone())], &target);
        let a: Vec<u8> = [i64::MIN, 7, -7, 9, 1]
            .iter()
            .flat_map(|v| v.to_le_bytes())
            .collect();
        let mut buffers = vec![a, bytes(t, &[-1.0, 2.0, 2.0, -1.0, 3.0]), vec![0; 40]];
        assert_eq!(loaded.run("quotient", &spec, &mut buffers, &[]), STATUS_OK);
        assert_eq!(buffers[2][..8], i64::MIN.to_le_bytes());
        assert_eq!(numbers(t, &buffers[2])[1..], [3.0, -3.0, -9.0, 0.0]);
        buffers[1] = bytes(t, &[1.0, 1.0, 0.0, 1.0, 1.0]);
        assert_eq!(
            loaded.run("quotient", &spec, &mut buffers, &[]),
            STATUS_DIVISION_BY_ZERO
        );
    }
}

#[test]
fn a_slice_is_updated_in_parallel_where_its_start_is_data() {
    // x[start.., :] = y, as a key-value cache is appended to.
    let (rows, new, width) = (9i64, 4i64, 20i64);
    let mut cases = vec![];
    for (name, start) in [("inside", 5.0), ("first", 0.0), ("outside", 6.0)] {
        let mut e = Exprs::new();
        let at = e.load(0, DType::I64, Index::default()).unwrap();
        let y = e.load(1, F, Index::strided([c(width), c(1)])).unwrap();
        let index = Index {
            gathers: vec![Gathered {
                index: at,
                stride: c(width),
                extent: c(rows - new + 1),
            }],
            ..Index::strided([c(width), c(1)])
        };
        let nest = LoopNest {
            exprs: e,
            args: vec![DType::I64, F, F],
            params: 0,
            axes: vec![c(new), c(width)],
            outer: 2,
            temps: vec![],
            stages: vec![Stage::new(&[], vec![Effect::store(2, index, y)])],
        };
        let schedule = nest.schedule();
        assert!(!schedule.serial && schedule.vector == Some(1));
        let mut rng = Rng(8);
        cases.push(Case {
            name: format!("append_{name}"),
            nest,
            buffers: vec![
                bytes(DType::I64, &[start]),
                rng.data(F, (new * width) as usize),
                rng.data(F, (rows * width) as usize),
            ],
            params: vec![],
        });
    }
    check(cases);
}
