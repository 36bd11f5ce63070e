use super::*;
use crate::ops::contract::*;
use crate::{BlockFormat, Encoding};

fn matmul(transpose_a: bool, transpose_b: bool, out: Option<DType>) -> MatMul {
    MatMul {
        transpose_a,
        transpose_b,
        out,
        tf32: false,
    }
}

/// The last two axes swapped.
fn swapped(t: &Tensor) -> Tensor {
    let (r, c) = (
        t.shape()[t.shape().len() - 2],
        t.shape()[t.shape().len() - 1],
    );
    let mut shape = t.shape().to_vec();
    let n = shape.len();
    shape.swap(n - 2, n - 1);
    let values: Vec<f64> = (0..t.len())
        .map(|i| {
            let (m, at) = (i / (r * c), i % (r * c));
            t.get_f64(m * r * c + at % r * c + at / r)
        })
        .collect();
    Tensor::from_f64(t.dtype(), shape, &values).unwrap()
}

#[test]
fn multiplies_batches_with_broadcast_and_transposes() {
    // NumPy: ramp([2,1,2,3], 1) @ ramp([3,3,2], 2)
    let want = [
        0.875, 0.5625, 0.8125, 0.5625, 1.0625, 0.0625, 0.6875, 0.4375, 0.5625, -1.8125, 0.5625,
        -1.75, 0.75, 0.5625, 0.6875, 0.5625, 0.3125, 0.8125, -0.0625, 1.1875, 0.5625, -1.6875,
        0.5625, -1.625,
    ];
    let (a, b) = (ramp(&[2, 1, 2, 3], 1), ramp(&[3, 3, 2], 2));
    let (at, bt) = (swapped(&a), swapped(&b));
    for (ta, tb) in [(false, false), (false, true), (true, false), (true, true)] {
        let y = run1(
            matmul(ta, tb, None),
            &[if ta { &at } else { &a }, if tb { &bt } else { &b }],
        );
        assert_eq!(y.shape(), [2, 3, 2, 2]);
        close(&y, &want, 0.0);
    }
}

#[test]
fn integers_accumulate_exactly_in_the_wanted_type() {
    let a = Tensor::from_i64(DType::U8, [1, 3], &[255, 255, 2]).unwrap();
    let b = Tensor::from_i64(DType::I8, [3, 2], &[127, -128, 127, -128, 3, 4]).unwrap();
    let y = run1(matmul(false, false, Some(DType::I32)), &[&a, &b]);
    assert_eq!(y.to_i64(), [255 * 254 + 6, -255 * 256 + 8]);
    assert_eq!(y.dtype(), DType::I32);
    assert!(run(matmul(false, false, None), &[&a, &b]).is_err());
}

#[test]
fn half_floats_accumulate_wide() {
    // 2049 is no f16; the running sum must not be one.
    let a = Tensor::from_f64(DType::F16, [1, 2050], &[1.0; 2050]).unwrap();
    let b = Tensor::from_f64(DType::F16, [2050, 1], &[1.0; 2050]).unwrap();
    assert_eq!(
        run1(matmul(false, false, None), &[&a, &b]).to_f64(),
        [2050.0]
    );
    assert_eq!(
        run1(matmul(false, false, Some(DType::F32)), &[&a, &b]).dtype(),
        DType::F32
    );
}

#[test]
fn inner_extents_must_agree() {
    let a = ty(DType::F32, &["b", "m", "k"]);
    assert!(
        refuses(
            matmul(false, false, None),
            &[a.clone(), ty(DType::F32, &["k + 1", "n"])]
        )
        .contains("inner")
    );
    let (types, guards) = infer(
        matmul(false, false, None),
        &[a.clone(), ty(DType::F32, &["j", "n"])],
    )
    .unwrap();
    assert_eq!(types[0].to_string(), "f32[b, m, n]");
    assert_eq!(
        (guards.len(), guards[0].left.to_string().as_str()),
        (1, "k")
    );
    assert!(
        refuses(
            matmul(false, false, None),
            &[a.clone(), ty(DType::F32, &["k"])]
        )
        .contains("matrices")
    );
    assert!(
        refuses(
            matmul(false, false, None),
            &[a, ty(DType::F16, &["k", "n"])]
        )
        .contains("element type")
    );
}

#[test]
fn axes_of_a_product() {
    let (a, b) = (
        ty(DType::F32, &["2", "m", "k"]),
        ty(DType::F32, &["n", "k"]),
    );
    let AxisMap::Labels {
        args,
        results,
        reduce,
    } = matmul(false, true, None).axes(&[&a, &b])
    else {
        panic!("a product has labels")
    };
    assert_eq!(
        args,
        [vec![Some(0), Some(1), Some(2)], vec![Some(3), Some(2)]]
    );
    assert_eq!(results, [vec![Some(0), Some(1), Some(3)]]);
    assert_eq!(reduce, Some(crate::ReduceFn::Sum));
}

#[test]
fn packs_panels_with_zeros_at_the_edge() {
    let w = f32s(&[2, 3], &[1., 2., 3., 4., 5., 6.]);
    let y = run1(
        Pack {
            nr: 2,
            group: 1,
            transposed: false,
        },
        &[&w],
    );
    assert_eq!(y.shape(), [2, 2, 2]);
    assert_eq!(y.to_f64(), [1., 2., 4., 5., 3., 0., 6., 0.]);
    let same = run1(
        Pack {
            nr: 2,
            group: 1,
            transposed: true,
        },
        &[&swapped(&w)],
    );
    assert_eq!(same.to_f64(), y.to_f64());
    let pairs = run1(
        Pack {
            nr: 2,
            group: 4,
            transposed: false,
        },
        &[&w],
    );
    assert_eq!(pairs.shape(), [2, 1, 2, 4]);
    let want = [
        1., 4., 0., 0., 2., 5., 0., 0., 3., 6., 0., 0., 0., 0., 0., 0.,
    ];
    assert_eq!(pairs.to_f64(), want);
}

/// A block whose byte `i` is `37i + 11`, with f16 numbers 0.5 and 0.25 at `halves`.
fn block(format: BlockFormat, halves: &[usize]) -> Vec<u8> {
    let mut b: Vec<u8> = (0..format.block_bytes())
        .map(|i| (i * 37 + 11) as u8)
        .collect();
    for (&at, v) in halves.iter().zip([0.5, 0.25]) {
        b[at..at + 2].copy_from_slice(&half::f16::from_f64(v).to_le_bytes());
    }
    b
}

fn decode(
    format: BlockFormat,
    shape: &[usize],
    axis: u8,
    bytes: Vec<u8>,
) -> Result<Tensor, String> {
    let shape: Vec<Dim> = shape.iter().map(|&d| d.into()).collect();
    let ty = TensorType {
        dtype: DType::F32,
        shape,
        encoding: Some(Encoding { format, axis }),
    };
    let op = Decode::of(&ty).unwrap();
    let plain = infer(op.clone(), &[ty])?.0;
    let x = Tensor::new(DType::U8, [bytes.len()], bytes).map_err(|e| e.to_string())?;
    let binding = RefCell::new(Binding::new());
    let y = op
        .eval(&EvalCx::pure(&binding), &[&x])
        .map_err(|e| e.0)?
        .remove(0);
    assert_eq!(y.ty(), plain[0]);
    Ok(y)
}

/// Format, places of its f16 numbers, then what is checked.
type Row = (BlockFormat, &'static [usize], [f64; 3], f64, f64, f64);

#[test]
fn decodes_blocks_as_ggml_does() {
    // First three elements, last, sum, and sum weighted by i % 7 + 1, from the
    // dequantizers of ggml's Python package on the same bytes.
    use BlockFormat::*;
    let rows: [Row; 11] = [
        (Q4_0, &[0], [-1.5, 1.0, 3.5], 0.0, -10.5, 14.0),
        (Q4_1, &[0, 2], [7.75, 2.25, 4.75], 6.25, 130.5, 478.5),
        (Q5_0, &[0], [4.5, -1.0, 1.5], 0.5, 7.5, 56.0),
        (Q5_1, &[0, 2], [9.75, 12.25, 14.75], 2.75, 260.5, 936.0),
        (Q8_0, &[0], [42.5, 61.0, -48.5], -24.0, -88.0, -309.0),
        (Q2_K, &[80, 82], [16.5, 0.0, 5.5], 2.25, 1029.5, 4015.75),
        (Q3_K, &[108], [40.5, -54.0, 13.5], 21.0, 479.0, 1482.0),
        (
            Q4_K,
            &[0, 2],
            [157.75, -12.75, 64.75],
            24.25,
            27220.0,
            105074.5,
        ),
        (
            Q5_K,
            &[0, 2],
            [405.75, -12.75, 312.75],
            54.25,
            58108.0,
            229678.5,
        ),
        (Q6_K, &[208], [-715.5, 848.0, 291.5], -30.0, 2306.0, 4938.5),
        (IQ4_NL, &[0], [-17.5, 12.5, 56.5], 0.5, -128.5, 306.5),
    ];
    for (format, halves, first, last, sum, weighted) in rows {
        let n = format.block_len();
        let y = decode(format, &[1, n], 1, block(format, halves))
            .unwrap()
            .to_f64();
        assert_eq!(y[..3], first, "{}", format.name());
        assert_eq!(y[n - 1], last, "{}", format.name());
        assert_eq!(y.iter().sum::<f64>(), sum, "{}", format.name());
        let w: f64 = y
            .iter()
            .enumerate()
            .map(|(i, v)| v * (i % 7 + 1) as f64)
            .sum();
        assert_eq!(w, weighted, "{}", format.name());
    }
}

#[test]
fn decodes_ternary_blocks_and_refuses_what_means_nothing() {
    let mut b = 2.5f32.to_le_bytes().to_vec();
    b.extend([0b10_01_00_10, 0, 0, 0, 0, 0, 0, 0b01_01_01_01]);
    let y = decode(BlockFormat::Ternary, &[32], 0, b.clone())
        .unwrap()
        .to_f64();
    assert_eq!(y[..5], [2.5, -2.5, 0.0, 2.5, -2.5]);
    assert_eq!(y[28..], [0.0; 4]);
    b[5] = 3;
    assert!(
        decode(BlockFormat::Ternary, &[32], 0, b.clone())
            .unwrap_err()
            .contains("means nothing")
    );
    assert!(
        decode(BlockFormat::Ternary, &[2, 32], 1, b)
            .unwrap_err()
            .contains("bytes")
    );
    let halves = block(BlockFormat::Q8_0, &[0]);
    assert!(
        decode(BlockFormat::Q8_0, &[2, 17], 1, halves)
            .unwrap_err()
            .contains("divide")
    );
}

#[test]
fn blocks_along_an_outer_axis_are_put_in_place() {
    // Two columns, each one block of 32 rows.
    let mut bytes = block(BlockFormat::Q8_0, &[0]);
    let mut other = bytes.clone();
    other[2] = 2;
    bytes.extend(other);
    let y = decode(BlockFormat::Q8_0, &[32, 2], 0, bytes)
        .unwrap()
        .to_f64();
    assert_eq!(y[..4], [42.5, 1.0, 61.0, 61.0]);
}
