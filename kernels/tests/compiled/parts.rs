//! Reductions of few rows or columns over many points, which GPUs take in parts.

use crate::gpu::Gpu;
use crate::support::{Case, Rng, bytes, check_form, check_on};
use kiln_ir::{BinaryFn, DType, UnaryFn};
use kiln_kernels::*;

const F: DType = DType::F32;

fn c(n: i64) -> Size {
    Size::Const(n)
}

/// What a stage does with an element, and the results with their types.
type Reduced = (Vec<Effect>, Vec<(DType, ExprId)>);

/// A reduction of `[m, k]` to `[m]` where elements lie by these strides.
fn reduced(
    (name, t): (String, DType),
    sizes: [Size; 2],
    strides: [Size; 2],
    (data, params): (Vec<u8>, Vec<i64>),
    effects: fn(&mut Exprs, ExprId) -> Reduced,
) -> Case {
    let m = sizes[0].eval(&params);
    let mut e = Exprs::new();
    let x = e.load(0, t, Index::strided(strides)).unwrap();
    let (effects, results) = effects(&mut e, x);
    let out = Index::strided([c(1)]);
    let stores = (1..).zip(&results);
    let stores = stores.map(|(i, (_, r))| Effect::store(i, out.clone(), *r));
    let stages = vec![Stage::new(&[1], effects), Stage::new(&[], stores.collect())];
    let types = results.iter().map(|r| r.0);
    let nest = LoopNest {
        exprs: e,
        args: [t].into_iter().chain(types.clone()).collect(),
        params: params.len() as u16,
        axes: sizes.to_vec(),
        outer: 1,
        temps: vec![],
        stages,
    };
    let room = types.map(|t| vec![0; t.size().unwrap() * m as usize]);
    Case {
        name,
        nest,
        buffers: [data].into_iter().chain(room).collect(),
        params,
    }
}

/// Sum and largest value, computed and kept in the elements' own type.
fn sum_and_max(e: &mut Exprs, x: ExprId) -> Reduced {
    let t = e.dtype(x);
    let wide = if t.is_float() && t != DType::F64 {
        F
    } else {
        t
    };
    let y = e.cast(wide, x).unwrap();
    let (sum, max) = (e.acc(0, wide).unwrap(), e.acc(1, t).unwrap());
    let effects = vec![
        Effect::reduce(0, Reducer::Sum, y),
        Effect::reduce(1, Reducer::Max, x),
    ];
    (effects, vec![(wide, sum), (t, max)])
}

/// The place of the largest value, the first one, and that of the least, the last one.
fn places(e: &mut Exprs, x: ExprId) -> Reduced {
    let t = e.dtype(x);
    let position = e.axis(1);
    let arg = |acc: u16, largest| Effect::ArgReduce {
        best: acc,
        at: acc + 1,
        largest,
        last: !largest,
        value: x,
        position,
    };
    let (first, last) = (e.acc(1, DType::I64).unwrap(), e.acc(3, DType::I64).unwrap());
    let best = e.acc(0, t).unwrap();
    let results = vec![(DType::I64, first), (DType::I64, last), (t, best)];
    (vec![arg(0, true), arg(2, false)], results)
}

#[test]
fn few_rows_of_every_type_are_reduced_in_parts() {
    let mut rng = Rng(21);
    let types = [
        F,
        DType::F64,
        DType::F16,
        DType::BF16,
        DType::I64,
        DType::I32,
        DType::U8,
        DType::Bool,
    ];
    let mut cases = vec![];
    for (i, t) in types.into_iter().enumerate() {
        let (m, k) = [(3i64, 65536i64), (1, 70001), (2, 66777)][i % 3];
        let data = rng.data(t, (m * k) as usize);
        cases.push(reduced(
            (format!("rows_{t}"), t),
            [c(m), c(k)],
            [c(k), c(1)],
            (data, vec![]),
            sum_and_max,
        ));
    }
    // Sizes that are known when it is launched, and elements that are apart: whole numbers, as
    // one thread that adds up a column rounds 66,000 times.
    let (m, k) = (2i64, 65999i64);
    let open = [Size::Param(0), Size::Param(1)];
    let apart = [c(1), open[0]];
    for (name, t, strides) in [("open", F, [open[1], c(1)]), ("apart", DType::I32, apart)] {
        let values: Vec<f64> = (0..m * k).map(|_| rng.below(41) as f64 - 20.0).collect();
        let data = bytes(t, &values);
        let name = (format!("rows_{name}"), t);
        cases.push(reduced(
            name,
            open,
            strides,
            (data, vec![m, k]),
            sum_and_max,
        ));
    }
    check_form(cases, "parts1");
}

#[test]
fn places_of_extremes_are_found_in_parts() {
    let mut rng = Rng(22);
    let mut cases = vec![];
    for (t, nan) in [
        (F, true),
        (F, false),
        (DType::I32, false),
        (DType::F16, true),
    ] {
        let (m, k) = (2usize, 70003usize);
        let mut values: Vec<f64> = (0..m * k).map(|_| rng.below(40) as f64).collect();
        if nan {
            for at in [k - 9000, k - 5, k + 66000] {
                values[at] = f64::NAN;
            }
        }
        cases.push(reduced(
            (format!("place_{t}_{nan}"), t),
            [c(m as i64), c(k as i64)],
            [c(k as i64), c(1)],
            (bytes(t, &values), vec![]),
            places,
        ));
    }
    check_form(cases, "parts1");
}

#[test]
fn columns_are_reduced_in_parts() {
    let mut rng = Rng(23);
    let mut cases = vec![];
    for (i, t) in [F, DType::BF16, DType::I64, DType::F64]
        .into_iter()
        .enumerate()
    {
        let (m, k) = [(70i64, 1500i64), (33, 1024), (129, 1281), (1, 40000)][i];
        let data = rng.data(t, (m * k) as usize);
        for (what, effects) in [
            ("sum", sum_and_max as fn(&mut Exprs, ExprId) -> Reduced),
            ("place", places),
        ] {
            cases.push(reduced(
                (format!("columns_{what}_{t}"), t),
                [c(m), Size::Param(0)],
                [c(1), c(m)],
                (data.clone(), vec![k]),
                effects,
            ));
        }
    }
    // One column's neighbours are a row's, which a block has.
    cases.retain(|c| c.nest.schedule().vector == Some(0));
    assert!(cases.len() >= 6);
    check_form(cases, "column_parts1");
}

/// `exp(x - max) / sum` over the axes behind the first, and the sums.
fn softmax(axes: Vec<Size>, strides: Vec<Size>, t: DType, params: u16) -> LoopNest {
    let mut e = Exprs::new();
    let index = Index::strided(strides);
    let x = e.load(0, t, index.clone()).unwrap();
    let x = e.cast(F, x).unwrap();
    let top = e.acc(0, F).unwrap();
    let less = e.binary(BinaryFn::Sub, x, top).unwrap();
    let exp = e.unary(UnaryFn::Exp, less).unwrap();
    let total = e.acc(1, F).unwrap();
    let y = e.binary(BinaryFn::Div, exp, total).unwrap();
    let y = e.cast(t, y).unwrap();
    let inner: Vec<u8> = (1..axes.len() as u8).collect();
    LoopNest {
        exprs: e,
        args: vec![t, t, F],
        params,
        axes,
        outer: 1,
        temps: vec![],
        stages: vec![
            Stage::new(&inner, vec![Effect::reduce(0, Reducer::Max, x)]),
            Stage::new(&inner, vec![Effect::reduce(1, Reducer::Sum, exp)]),
            Stage::new(&inner, vec![Effect::store(1, index, y)]),
            Stage::new(&[], vec![Effect::store(2, Index::strided([c(1)]), total)]),
        ],
    }
}

#[test]
fn stages_after_a_reduction_are_further_launches() {
    let mut rng = Rng(24);
    let mut cases = vec![];
    let mut case = |name: &str, sizes: &[i64], strides: &[Size], t: DType, open: bool| {
        let axes = match open {
            false => sizes.iter().map(|&n| c(n)).collect(),
            true => (0..sizes.len() as u16).map(Size::Param).collect(),
        };
        let params = if open { sizes.to_vec() } else { vec![] };
        let n: i64 = sizes.iter().product();
        let data = rng.data(t, n as usize);
        let room = vec![0; data.len()];
        cases.push(Case {
            name: name.to_string(),
            nest: softmax(axes, strides.to_vec(), t, params.len() as u16),
            buffers: vec![data, room, vec![0; 4 * sizes[0] as usize]],
            params,
        });
    };
    case("vocabulary", &[2, 66000], &[c(66000), c(1)], F, false);
    case("halves", &[1, 65537], &[c(65537), c(1)], DType::F16, true);
    // Axes that lie as one, and axes that do not: the last two are crossed.
    let whole = [c(41 * 43 * 38), c(43 * 38), c(38), c(1)];
    case("image", &[2, 41, 43, 38], &whole, F, false);
    let crossed = [c(41 * 43 * 38), c(43 * 38), c(1), c(43)];
    case("crossed", &[2, 41, 43, 38], &crossed, F, false);
    case("open_image", &[1, 41, 43, 38], &crossed, F, true);
    check_form(cases, "parts1");
}

#[test]
fn a_row_has_the_same_bits_among_others() {
    let (m, k) = (5i64, 65600i64);
    let data = Rng(25).data(F, (m * k) as usize);
    let of = |name: &str, rows: std::ops::Range<i64>| {
        let part = data[(4 * k * rows.start) as usize..(4 * k * rows.end) as usize].to_vec();
        let sizes = [c(rows.end - rows.start), c(k)];
        let name = (name.to_string(), F);
        reduced(name, sizes, [c(k), c(1)], (part, vec![]), sum_and_max)
    };
    let cases = [of("all", 0..m), of("one", 3..4)];
    let kernels: Vec<(String, KernelSpec)> = (cases.iter())
        .map(|c| (c.name.clone(), KernelSpec::Nest(c.nest.clone())))
        .collect();
    let mut sums = vec![];
    check_on(&Gpu::on("sm_80", &kernels), &cases, &mut |name, got| {
        if name.ends_with("_parts1") {
            sums.push(got[1].clone());
        }
    });
    assert_eq!(sums.len(), 2);
    assert_eq!(sums[0][12..16], sums[1][..]);
}
