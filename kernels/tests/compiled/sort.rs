//! Selections on GPUs against a sort of indices.

use crate::gpu::Gpu;
use crate::support::{Rng, bytes, numbers};
use kiln_ir::DType;
use kiln_kernels::cuda::SortSpec;
use std::cmp::Ordering;

/// NaN above all numbers, −0 equal to 0.
fn order(a: f64, b: f64) -> Ordering {
    match (a.is_nan(), b.is_nan()) {
        (true, true) => Ordering::Equal,
        (true, false) => Ordering::Greater,
        (false, true) => Ordering::Less,
        _ => a.partial_cmp(&b).expect("two numbers"),
    }
}

/// Elements of a type with ties, and what is special in floats.
fn data(rng: &mut Rng, t: DType, n: usize) -> Vec<u8> {
    let special = [
        f64::NAN,
        0.0,
        -0.0,
        f64::INFINITY,
        f64::NEG_INFINITY,
        1.5,
        -1.5,
    ];
    let values: Vec<f64> = (0..n)
        .map(|_| match t {
            DType::Bool => rng.below(2) as f64,
            DType::U8 | DType::U16 | DType::U32 | DType::U64 => rng.below(200) as f64,
            _ if t.is_int() => rng.below(200) as f64 - 100.0,
            _ if rng.below(9) == 0 => special[rng.below(special.len())],
            _ => 100.0 * rng.unit(),
        })
        .collect();
    bytes(t, &values)
}

/// What is taken of each lane: values and indices.
fn taken(spec: &SortSpec, from: &[u8], [outer, n, inner, k]: [usize; 4]) -> [Vec<u8>; 2] {
    let width = spec.dtype.size().unwrap();
    // Numbers beyond f64's precision are not drawn.
    let values = numbers(spec.dtype, from);
    let mut out = [
        vec![0; outer * k * inner * width],
        vec![0; outer * k * inner * 8],
    ];
    for o in 0..outer {
        for i in 0..inner {
            let place = |j: usize| (o * n + j) * inner + i;
            let mut indices: Vec<usize> = (0..n).collect();
            indices.sort_by(|&a, &b| {
                let by = order(values[place(a)], values[place(b)]);
                if spec.largest { by.reverse() } else { by }
            });
            for (rank, &index) in indices[..k].iter().enumerate() {
                let to = (o * k + rank) * inner + i;
                let element = &from[place(index) * width..][..width];
                out[0][to * width..][..width].copy_from_slice(element);
                out[1][to * 8..][..8].copy_from_slice(&(index as i64).to_le_bytes());
            }
        }
    }
    out
}

fn check(rng: &mut Rng, types: &[DType], shapes: &[[usize; 4]], forms: usize) {
    let specs: Vec<(String, SortSpec)> = (types.iter())
        .flat_map(|&dtype| [false, true].map(|largest| SortSpec { dtype, largest }))
        .map(|spec| (format!("select_{}_{}", spec.dtype, spec.largest), spec))
        .collect();
    for target in ["sm_80", "sm_90a"] {
        let gpu = Gpu::selections(target, &specs);
        for (name, spec) in &specs {
            for shape in shapes {
                let [outer, n, inner, _] = *shape;
                let from = data(rng, spec.dtype, outer * n * inner);
                let want = taken(spec, &from, *shape);
                let room = |b: &Vec<u8>| vec![0xa5; b.len()];
                let buffers = vec![from, room(&want[0]), room(&want[1])];
                let params = shape.map(|n| n as i64);
                let mut seen = 0;
                gpu.run(name, spec, (&buffers, &params), &mut |form, got, status| {
                    assert_eq!(status, 0);
                    assert_eq!(got[0], buffers[0]);
                    let at = format!("{form} on {target}, {spec:?} of {shape:?}");
                    assert!(got[2] == want[1], "indices of {at}");
                    assert!(got[1] == want[0], "values of {at}");
                    seen += 1;
                });
                assert_eq!(seen, if n <= 2048 { forms } else { 1 }, "{name} {shape:?}");
            }
        }
    }
}

#[test]
fn selections_of_every_type_have_the_indices_of_a_stable_sort() {
    let types = [
        DType::F64,
        DType::F32,
        DType::F16,
        DType::BF16,
        DType::F8E4M3FN,
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
    let shapes = [[2, 70, 3, 5], [1, 1, 1, 1], [3, 300, 1, 300]];
    check(&mut Rng(51), &types, &shapes, 2);
}

#[test]
fn lanes_of_any_length_and_any_share_of_them() {
    let shapes = [
        [1, 2, 5, 2],
        [4, 2048, 1, 7],
        [2, 2047, 2, 2047],
        [1, 2049, 1, 2049],
        [2, 5000, 2, 17],
        [1, 40_000, 1, 300],
        [3, 64, 2, 0],
        [0, 64, 2, 4],
    ];
    check(&mut Rng(52), &[DType::F32, DType::I64], &shapes, 2);
}

#[test]
fn integers_beyond_the_precision_of_doubles_are_told_apart() {
    let spec = SortSpec {
        dtype: DType::I64,
        largest: true,
    };
    let values = [i64::MAX - 1, i64::MIN, i64::MAX, -1, 0, i64::MIN + 1];
    let from: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    let gpu = Gpu::selections("sm_80", &[("wide".into(), spec)]);
    let buffers = vec![from, vec![0; 48], vec![0; 48]];
    let mut seen = 0;
    gpu.run(
        "wide",
        &spec,
        (&buffers, &[1, 6, 1, 6]),
        &mut |_, got, _| {
            let indices: Vec<u8> = got[2].chunks(8).map(|b| b[0]).collect();
            assert_eq!(indices, [2, 0, 4, 3, 5, 1]);
            seen += 1;
        },
    );
    assert_eq!(seen, 2);
}
