//! Packed layouts, element by element, against the shapes in the ops' documentation.

use super::*;
use crate::ops::contract::Pack;
use crate::ops::pack_filters::PackFilters;
use crate::ops::winograd::{PLACES, transformed_filter};

fn numbers(dtype: DType, shape: &[usize]) -> Tensor {
    let n: usize = shape.iter().product();
    let values: Vec<f64> = (0..n).map(|i| ((i * 37) % 101) as f64 - 50.0).collect();
    Tensor::from_f64(dtype, shape, &values).unwrap()
}

/// The indices of a shape in row-major order.
fn indices(shape: &[usize]) -> Vec<Vec<usize>> {
    let mut all = vec![];
    crate::ops::util::for_each_index(shape, |i| all.push(i.to_vec()));
    all
}

#[test]
fn matrices_are_packed_by_panels() {
    for dtype in [DType::I4, DType::I8, DType::BF16, DType::F32, DType::F64] {
        for (nr, group, transposed) in [(16, 1, false), (16, 4, true), (5, 3, false), (8, 1, true)]
        {
            let (batch, k, n) = (2, 19, 37);
            let w = match transposed {
                true => numbers(dtype, &[batch, n, k]),
                false => numbers(dtype, &[batch, k, n]),
            };
            let pack = Pack {
                nr,
                group,
                transposed,
            };
            let packed = run1(pack, &[&w]);
            let extents = [batch, n.div_ceil(nr), k.div_ceil(group), nr, group];
            assert_eq!(packed.len(), extents.iter().product::<usize>());
            for (at, i) in indices(&extents).iter().enumerate() {
                let (row, column) = (i[2] * group + i[4], i[1] * nr + i[3]);
                let from = match transposed {
                    true => (i[0] * n + column) * k + row,
                    false => (i[0] * k + row) * n + column,
                };
                let inside = row < k && column < n;
                let want = if inside { w.get_f64(from) } else { 0.0 };
                assert_eq!(packed.get_f64(at), want, "{dtype} {nr} {group} at {i:?}");
            }
        }
    }
}

#[test]
fn filters_are_packed_by_panels() {
    for dtype in [DType::F16, DType::F32, DType::F64] {
        for (groups, nr, depth, kernel) in [(1, 16, 70, 3), (2, 8, 5, 1), (3, 4, 3, 2)] {
            let (m, taps) = (21, kernel * kernel);
            let w = numbers(dtype, &[groups * m, depth, kernel, kernel]);
            let pack = PackFilters {
                groups,
                nr,
                winograd: false,
                group: 1,
                run: 1,
            };
            let packed = run1(pack, &[&w]);
            let extents = [groups, m.div_ceil(nr), taps, depth, nr];
            assert_eq!(packed.len(), extents.iter().product::<usize>());
            for (at, i) in indices(&extents).iter().enumerate() {
                let filter = i[1] * nr + i[4];
                let from = ((i[0] * m + filter) * depth + i[3]) * taps + i[2];
                let want = if filter < m { w.get_f64(from) } else { 0.0 };
                assert_eq!(packed.get_f64(at), want, "{dtype} {nr} at {i:?}");
            }
        }
    }
}

#[test]
fn filters_of_one_channel_are_packed_by_taps() {
    let w = numbers(DType::F32, &[7, 1, 3, 3]);
    let pack = PackFilters {
        groups: 7,
        nr: 0,
        winograd: false,
        group: 1,
        run: 1,
    };
    let packed = run1(pack, &[&w]);
    for (at, i) in indices(&[9, 7]).iter().enumerate() {
        assert_eq!(packed.get_f64(at), w.get_f64(i[1] * 9 + i[0]));
    }
}

#[test]
fn transformed_filters_are_packed_by_places() {
    for dtype in [DType::F16, DType::F32, DType::F64] {
        let (m, nr, depth) = (21, 16, 11);
        let w = numbers(dtype, &[m, depth, 3, 3]);
        let pack = PackFilters {
            groups: 1,
            nr,
            winograd: true,
            group: 1,
            run: 1,
        };
        let packed = run1(pack, &[&w]);
        for (at, i) in indices(&[PLACES, m.div_ceil(nr), depth, nr])
            .iter()
            .enumerate()
        {
            let filter = i[1] * nr + i[3];
            let taps = |t| w.get_f64((filter * depth + i[2]) * 9 + t);
            let want = match filter < m {
                true => transformed_filter(&std::array::from_fn(taps))[i[0]],
                false => 0.0,
            };
            let rounded = Tensor::scalar_f64(dtype, want).get_f64(0);
            assert_eq!(packed.get_f64(at), rounded, "{dtype} at {i:?}");
        }
    }
}
