//! Running reductions along long rows, which GPUs give to blocks.

use crate::gpu::Gpu;
use crate::support::{Case, Rng, bytes, check_form};
use kiln_ir::DType;
use kiln_kernels::*;

const F: DType = DType::F32;

fn c(n: i64) -> Size {
    Size::Const(n)
}

/// Whole numbers, so that sums in any order are exact, and those that stay small.
fn data(rng: &mut Rng, t: DType, n: usize) -> Vec<u8> {
    let values: Vec<f64> = (0..n)
        .map(|_| match t {
            DType::Bool => (rng.below(50) == 0) as u8 as f64,
            DType::U8 => rng.below(200) as f64,
            _ => rng.below(5) as f64 - 2.0,
        })
        .collect();
    bytes(t, &values)
}

/// Two running reductions of `[m, k]`, forwards, and from the end if `back`.
fn scan(
    (name, t): (String, DType),
    sizes: [Size; 2],
    strides: [Size; 2],
    by: [Reducer; 2],
    (exclusive, back): (bool, bool),
    (data, params): (Vec<u8>, Vec<i64>),
) -> Case {
    let mut e = Exprs::new();
    let forwards = Index::strided(strides);
    let index = match (back, strides[1], sizes[1]) {
        (true, Size::Const(s), Size::Const(k)) => Index {
            offset: c((k - 1) * s),
            ..Index::strided([strides[0], c(-s)])
        },
        _ => forwards,
    };
    let x = e.load(0, t, index.clone()).unwrap();
    let (first, second) = (e.acc(0, t).unwrap(), e.acc(1, t).unwrap());
    let scan = |acc: u16| Effect::Scan {
        acc,
        by: by[acc as usize],
        value: x,
        exclusive,
    };
    let effects = vec![
        scan(0),
        Effect::store(1, index.clone(), first),
        scan(1),
        Effect::store(2, index, second),
    ];
    let nest = LoopNest {
        exprs: e,
        args: vec![t; 3],
        params: params.len() as u16,
        axes: sizes.to_vec(),
        outer: 1,
        temps: vec![],
        stages: vec![Stage::new(&[1], effects)],
    };
    let room = vec![0; data.len()];
    Case {
        name,
        nest,
        buffers: vec![data, room.clone(), room],
        params,
    }
}

#[test]
fn blocks_scan_rows_of_every_type() {
    use Reducer::{Max, Min, Prod, Sum};
    let mut rng = Rng(41);
    let mut cases = vec![];
    let types = [
        F,
        DType::F64,
        DType::BF16,
        DType::I64,
        DType::I32,
        DType::U8,
        DType::Bool,
    ];
    for (i, t) in types.into_iter().enumerate() {
        for (exclusive, back) in [(false, false), (true, false), (false, true), (true, true)] {
            let (m, k) = [(3i64, 512i64), (2, 1024), (1, 2500), (4, 1023)][(i + cases.len()) % 4];
            let wraps = !t.is_float();
            let by = match i % 2 {
                0 => [Sum, if wraps { Prod } else { Max }],
                _ => [Sum, Min],
            };
            cases.push(scan(
                (format!("row_{t}_{exclusive}_{back}"), t),
                [c(m), c(k)],
                [c(k), c(1)],
                by,
                (exclusive, back),
                (data(&mut rng, t, (m * k) as usize), vec![]),
            ));
        }
    }
    // Columns, of open sizes.
    let (m, k) = (5i64, 700i64);
    cases.push(scan(
        ("column".into(), F),
        [Size::Param(0), Size::Param(1)],
        [c(1), Size::Param(0)],
        [Sum, Max],
        (false, false),
        (data(&mut rng, F, (m * k) as usize), vec![m, k]),
    ));
    check_form(cases, "scan");
}

#[test]
fn several_blocks_scan_a_long_row() {
    use Reducer::{Max, Sum};
    let mut rng = Rng(42);
    let mut cases = vec![];
    for (i, t) in [F, DType::I64, DType::F16, DType::F64]
        .into_iter()
        .enumerate()
    {
        let (m, k) = [(1i64, 65536i64), (2, 70001), (1, 66001), (1, 65537)][i];
        let (exclusive, back) = (i % 2 == 1, i == 3);
        let open = !back && i > 0;
        let size = |i: u16, n: i64| if open { Size::Param(i) } else { c(n) };
        cases.push(scan(
            (format!("long_{t}"), t),
            [size(0, m), size(1, k)],
            [size(1, k), c(1)],
            [if t == DType::F16 { Max } else { Sum }, Max],
            (exclusive, back),
            (
                data(&mut rng, t, (m * k) as usize),
                if open { vec![m, k] } else { vec![] },
            ),
        ));
    }
    check_form(cases, "scan_parts1");
}

#[test]
fn sums_of_fractions_are_near_the_exact_ones() {
    let (m, k) = (1i64, 65600i64);
    let mut rng = Rng(43);
    // Of one sign: rounding is held against the largest sum.
    let values: Vec<f64> = (0..k).map(|_| rng.unit().abs()).collect();
    let mut e = Exprs::new();
    let index = Index::strided([c(k), c(1)]);
    let x = e.load(0, F, index.clone()).unwrap();
    let sum = e.acc(0, F).unwrap();
    let effects = vec![
        Effect::Scan {
            acc: 0,
            by: Reducer::Sum,
            value: x,
            exclusive: false,
        },
        Effect::store(1, index, sum),
    ];
    let nest = LoopNest {
        exprs: e,
        args: vec![F; 2],
        params: 0,
        axes: vec![c(m), c(k)],
        outer: 1,
        temps: vec![],
        stages: vec![Stage::new(&[1], effects)],
    };
    let buffers = [bytes(F, &values), vec![0; 4 * k as usize]];
    let name = "fractions".to_string();
    let kernels = [(name.clone(), KernelSpec::Nest(nest.clone()))];
    let gpu = Gpu::on("sm_80", &kernels);
    let spec = &kernels[0].1;
    let mut seen = 0;
    let mut exact = 0.0;
    let exact: Vec<f64> = (values.iter())
        .map(|&v| {
            exact += v as f32 as f64;
            exact
        })
        .collect();
    gpu.run(
        &name,
        spec,
        (&buffers[..], &[]),
        &mut |form, got, status| {
            assert_eq!(status, 0);
            // One thread rounds 65,600 times, blocks a few hundred times.
            let most = if form.contains("_scan") { 1e-6 } else { 1e-4 };
            for (g, w) in crate::support::numbers(F, &got[1]).iter().zip(&exact) {
                assert!(
                    (g - w).abs() <= most * exact[exact.len() - 1],
                    "{form}: {g}, not {w}"
                );
            }
            seen += 1;
        },
    );
    assert_eq!(seen, 3);
}
