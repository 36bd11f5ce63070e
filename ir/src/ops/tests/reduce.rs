use super::*;
use crate::ops::reduce::*;
use crate::{ReduceFn, Relation};
use std::slice::from_ref;

const NAN: f32 = f32::NAN;
const INF: f32 = f32::INFINITY;

fn reduce(f: ReduceFn, axes: &[usize], keep: bool) -> Reduce {
    Reduce {
        f,
        axes: axes.to_vec(),
        keep,
    }
}

#[test]
fn reduces_any_set_of_axes() {
    let x = f32s(
        &[2, 3, 2],
        &[1., 2., 3., 4., 5., 6., 7., 8., 9., 10., 11., 12.],
    );
    let sum = |axes: &[usize]| run1(reduce(ReduceFn::Sum, axes, false), &[&x]).to_f64();
    assert_eq!(sum(&[0]), [8., 10., 12., 14., 16., 18.]);
    assert_eq!(sum(&[1]), [9., 12., 27., 30.]);
    assert_eq!(sum(&[0, 2]), [18., 26., 34.]);
    assert_eq!(sum(&[0, 1, 2]), [78.]);
    assert_eq!(sum(&[]), x.to_f64());
    let mean = run1(reduce(ReduceFn::Mean, &[1, 2], true), &[&x]);
    assert_eq!(
        (mean.shape(), mean.to_f64()),
        (&[2, 1, 1][..], vec![3.5, 9.5])
    );
    assert_eq!(
        run1(reduce(ReduceFn::Prod, &[1], false), &[&x]).to_f64(),
        [15., 48., 693., 960.]
    );
}

#[test]
fn max_and_min_propagate_nan_and_start_at_the_extremes() {
    let x = f32s(&[2, 2], &[1., NAN, -INF, 2.]);
    let max = run1(reduce(ReduceFn::Max, &[1], false), &[&x]).to_f64();
    assert!(max[0].is_nan() && max[1] == 2.0);
    let min = run1(reduce(ReduceFn::Min, &[0], false), &[&x]).to_f64();
    assert!(min[0] == f64::NEG_INFINITY && min[1].is_nan());
    let empty = f32s(&[2, 0], &[]);
    for (f, want) in [
        (ReduceFn::Sum, 0.0),
        (ReduceFn::Prod, 1.0),
        (ReduceFn::Max, f64::NEG_INFINITY),
        (ReduceFn::Min, f64::INFINITY),
        (ReduceFn::Mean, f64::NAN),
    ] {
        close(&run1(reduce(f, &[1], false), &[&empty]), &[want, want], 0.0);
    }
    let empty = Tensor::from_i64(DType::I8, [0], &[]).unwrap();
    assert_eq!(
        run1(reduce(ReduceFn::Max, &[0], false), &[&empty]).to_i64(),
        [-128]
    );
    assert_eq!(
        run1(reduce(ReduceFn::Min, &[0], false), &[&empty]).to_i64(),
        [127]
    );
    assert!(run(reduce(ReduceFn::Mean, &[0], false), &[&empty]).is_err());
}

#[test]
fn integers_are_exact_and_unsigned_ones_compare_unsigned() {
    let big = i64s(&[2], &[9_007_199_254_740_993, 2]);
    assert_eq!(
        run1(reduce(ReduceFn::Sum, &[0], false), &[&big]).to_i64(),
        [9_007_199_254_740_995]
    );
    let u = Tensor::from_i64(DType::U64, [2], &[-1, 5]).unwrap();
    assert_eq!(
        run1(reduce(ReduceFn::Max, &[0], false), &[&u]).to_i64(),
        [-1]
    );
    assert_eq!(
        run1(reduce(ReduceFn::Min, &[0], false), &[&u]).to_i64(),
        [5]
    );
    let i = i64s(&[3], &[-1, -2, -4]);
    assert_eq!(
        run1(reduce(ReduceFn::Mean, &[0], false), &[&i]).to_i64(),
        [-2]
    );
}

#[test]
fn sums_accumulate_in_f64() {
    let mut values = vec![1e8f32];
    values.extend([1.0; 1000]);
    values.push(-1e8);
    let x = f32s(&[1002], &values);
    assert_eq!(
        run1(reduce(ReduceFn::Sum, &[0], false), &[&x]).to_f64(),
        [1000.0]
    );
}

#[test]
fn known_sizes_are_followed() {
    let shape = SymValue::vector(vec![Dim::sym("batch"), Dim::sym("seq"), 3.into()]);
    let all = |f| {
        known(reduce(f, &[0], false), shape.clone())
            .unwrap()
            .dims
            .remove(0)
            .to_string()
    };
    assert_eq!(all(ReduceFn::Prod), "3*batch*seq");
    assert_eq!(all(ReduceFn::Sum), "batch + seq + 3");
}

#[test]
fn faults_are_named() {
    let x = ty(DType::F32, &["a", "4"]);
    assert!(refuses(reduce(ReduceFn::Sum, &[2], false), from_ref(&x)).contains("axis 2"));
    assert!(refuses(reduce(ReduceFn::Sum, &[1, 0], false), from_ref(&x)).contains("ascend"));
    assert!(refuses(reduce(ReduceFn::Sum, &[0, 0], false), from_ref(&x)).contains("ascend"));
    assert!(
        refuses(
            reduce(ReduceFn::Sum, &[0], false),
            &[ty(DType::Bool, &["4"])]
        )
        .contains("cast")
    );
    let k = |k: &str| TopK {
        axis: 1,
        k: k.parse().unwrap(),
        largest: true,
    };
    assert!(refuses(k("5"), from_ref(&x)).contains("more than"));
    let (_, guards) = infer(k("k"), &[x]).unwrap();
    assert_eq!(guards[0].relation, Relation::Le);
}

#[test]
fn arg_reduce_finds_first_last_and_nan() {
    let x = f32s(
        &[3, 4],
        &[1., 3., 3., 0., NAN, 5., NAN, 2., -1., -1., 7., 7.],
    );
    let find = |largest, last| {
        run1(
            ArgReduce {
                largest,
                axis: 1,
                keep: false,
                last,
            },
            &[&x],
        )
        .to_i64()
    };
    // numpy.argmax / argmin; `last` as argmax of the reversed rows.
    assert_eq!(find(true, false), [1, 0, 2]);
    assert_eq!(find(true, true), [2, 2, 3]);
    assert_eq!(find(false, false), [3, 0, 0]);
    assert_eq!(find(false, true), [3, 2, 1]);
    let kept = run1(
        ArgReduce {
            largest: true,
            axis: 0,
            keep: true,
            last: false,
        },
        &[&x],
    );
    assert_eq!(
        (kept.shape(), kept.to_i64()),
        (&[1, 4][..], vec![1, 1, 1, 2])
    );
}

#[test]
fn cumulates_in_both_directions() {
    let x = f32s(&[2, 3], &[1., 2., 3., 4., 5., 6.]);
    let cumulate = |f, axis, exclusive, reverse| {
        run1(
            Cumulate {
                f,
                axis,
                exclusive,
                reverse,
            },
            &[&x],
        )
        .to_f64()
    };
    assert_eq!(
        cumulate(ReduceFn::Sum, 1, false, false),
        [1., 3., 6., 4., 9., 15.]
    );
    assert_eq!(
        cumulate(ReduceFn::Sum, 1, true, false),
        [0., 1., 3., 0., 4., 9.]
    );
    assert_eq!(
        cumulate(ReduceFn::Sum, 1, false, true),
        [6., 5., 3., 15., 11., 6.]
    );
    assert_eq!(
        cumulate(ReduceFn::Sum, 1, true, true),
        [5., 3., 0., 11., 6., 0.]
    );
    assert_eq!(
        cumulate(ReduceFn::Sum, 0, false, false),
        [1., 2., 3., 5., 7., 9.]
    );
    assert_eq!(
        cumulate(ReduceFn::Prod, 1, false, false),
        [1., 2., 6., 4., 20., 120.]
    );
    assert_eq!(
        cumulate(ReduceFn::Max, 0, false, true),
        [4., 5., 6., 4., 5., 6.]
    );
}

#[test]
fn top_k_is_stable_and_orders_nan_above_all() {
    let x = f32s(&[2, 5], &[1., 4., 4., NAN, 2., 0., -0., 3., 1., 3.]);
    let top = |k: usize, largest| {
        run(
            TopK {
                axis: 1,
                k: k.into(),
                largest,
            },
            &[&x],
        )
        .unwrap()
    };
    let largest = top(3, true);
    assert!(largest[0].get_f64(0).is_nan());
    assert_eq!(largest[0].to_f64()[1..], [4., 4., 3., 3., 1.]);
    assert_eq!(largest[1].to_i64(), [3, 1, 2, 2, 4, 3]);
    let smallest = top(2, false);
    assert_eq!(smallest[0].to_f64(), [1., 2., 0., 0.]);
    assert_eq!(smallest[1].to_i64(), [0, 4, 0, 1]);
    let column = run(
        TopK {
            axis: 0,
            k: 1.into(),
            largest: true,
        },
        &[&x],
    )
    .unwrap();
    assert_eq!(column[1].to_i64(), [0, 0, 0, 0, 1]);
    assert_eq!(top(0, true)[0].shape(), [2, 0]);
}
