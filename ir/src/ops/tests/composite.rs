use super::*;
use crate::ops::composite::*;
use std::slice::from_ref;

#[test]
fn softmax_and_its_logarithm() {
    let x = ramp(&[2, 5], 1);
    let soft = |axis, log| run1(Softmax { axis, log }, &[&x]);
    close(
        &soft(1, false),
        &[
            0.0707609, 0.407201, 0.1498009, 0.0551087, 0.3171285, 0.2197713, 0.0808493, 0.4652558,
            0.171158, 0.0629655,
        ],
        1e-6,
    );
    close(
        &soft(1, true),
        &[
            -2.6484483, -0.8984483, -1.8984483, -2.8984483, -1.1484483, -1.5151679, -2.5151679,
            -0.7651679, -1.7651679, -2.7651679,
        ],
        1e-6,
    );
    close(
        &soft(0, false),
        &[
            0.3775407, 0.9046505, 0.3775407, 0.3775407, 0.9046505, 0.6224593, 0.0953495, 0.6224593,
            0.6224593, 0.0953495,
        ],
        1e-6,
    );
    let far = f32s(&[1, 3], &[1e4, 1e4, -1e4]);
    close(
        &run1(
            Softmax {
                axis: 1,
                log: false,
            },
            &[&far],
        ),
        &[0.5, 0.5, 0.0],
        0.0,
    );
}

#[test]
fn activations() {
    let x = ramp(&[6], 2);
    let gelu = |tanh| run1(Gelu { tanh }, &[&x]);
    close(
        &gelu(false),
        &[0.1496766, -0.1699705, 0.8413447, 0.0, -0.1586553, 0.5800295],
        1e-6,
    );
    close(
        &gelu(true),
        &[0.1496754, -0.1700394, 0.841192, 0.0, -0.158808, 0.5799606],
        1e-6,
    );
    close(
        &run1(Silu, &[&x]),
        &[0.1405441, -0.240616, 0.7310586, 0.0, -0.2689414, 0.509384],
        1e-6,
    );
    let half = run1(Silu, &[&ramp_of(DType::BF16, &[6], 2)]);
    assert_eq!(half.dtype(), DType::BF16);
    close(
        &half,
        &[0.1405441, -0.240616, 0.7310586, 0.0, -0.2689414, 0.509384],
        4e-3,
    );
}

#[test]
fn norms() {
    let (x, g, b) = (ramp(&[2, 3, 4], 3), ramp(&[4], 4), ramp(&[4], 5));
    close(
        &run1(LayerNorm { axis: 2, eps: 1e-5 }, &[&x, &g, &b]),
        &[
            -1.2941765, -1.4307229, 0.881526, -1.4036143, -0.4499974, -2.2999866, 0.1500045,
            -0.2500032, -1.2941765, -1.4307229, 0.881526, -1.4036143, -0.4499974, -2.2999866,
            0.1500045, -0.2500032, 1.0630571, -0.8560829, 0.6313057, -2.1413214, -0.4499974,
            -2.2999866, 0.1500045, -0.2500032,
        ],
        1e-6,
    );
    close(
        &run1(RmsNorm { axis: 1, eps: 1e-6 }, &[&x, &ramp(&[3, 4], 4)]),
        &[
            -1.2344259, 0.0, 0.3086065, -1.1572742, -0.1543032, 0.7715162, 0.7715162, -0.1543032,
            -1.1572742, 0.3086065, 0.0, -1.2344259, 0.0, -0.9908665, -0.2477166, 0.4128611,
            -0.8257221, -0.3302888, -0.8257221, 0.4128611, -0.2477166, -0.9908665, 0.0, 0.0,
        ],
        1e-6,
    );
}

#[test]
fn the_variance_survives_a_large_mean() {
    // One pass (mean of squares − square of mean) would lose every digit.
    let x = f32s(&[1, 4], &[10000.0, 10001.0, 10002.0, 10003.0]);
    let (one, zero) = (f32s(&[4], &[1.0; 4]), f32s(&[4], &[0.0; 4]));
    let y = run1(LayerNorm { axis: 1, eps: 0.0 }, &[&x, &one, &zero]);
    let s = 1.25f64.sqrt();
    close(&y, &[-1.5 / s, -0.5 / s, 0.5 / s, 1.5 / s], 1e-6);
}

#[test]
fn cross_entropy_leaves_out_the_ignored() {
    let (x, t) = (ramp(&[3, 4], 6), i64s(&[3], &[1, -100, 3]));
    let ce = CrossEntropy { ignore: -100 };
    close(&run1(ce.clone(), &[&x, &t]), &[1.7625959], 1e-6);
    let none = i64s(&[3], &[-100; 3]);
    assert!(run1(ce.clone(), &[&x, &none]).get_f64(0).is_nan());
    assert!(
        run(ce.clone(), &[&x, &i64s(&[3], &[1, 4, 0])]).is_err(),
        "class 4 of 4"
    );
    assert_eq!(
        run1(ce.clone(), &[&ramp_of(DType::F16, &[3, 4], 6), &t]).dtype(),
        DType::F32
    );
    let (x, t) = (
        ty(DType::F32, &["b", "s", "50"]),
        ty(DType::I64, &["b", "s"]),
    );
    assert_eq!(
        infer(ce.clone(), &[x.clone(), t]).unwrap().0[0].to_string(),
        "f32[]"
    );
    assert!(refuses(ce, &[x, ty(DType::I64, &["b", "s + 1"])]).contains("targets"));
}

#[test]
fn embedding_looks_rows_up() {
    let (table, ids) = (
        f32s(&[3, 2], &[1., 2., 3., 4., 5., 6.]),
        i64s(&[2, 2], &[2, 0, 1, 1]),
    );
    let y = run1(Embedding, &[&table, &ids]);
    assert_eq!(
        (y.shape(), y.to_f64()),
        (&[2, 2, 2][..], vec![5., 6., 1., 2., 3., 4., 3., 4.])
    );
}

#[test]
fn adamw_takes_two_steps_as_its_paper_says() {
    let op = AdamW {
        beta1: 0.9,
        beta2: 0.999,
        eps: 1e-8,
        weight_decay: 0.01,
    };
    assert_eq!(Op::from(op.clone()).def().donates(), [0, 2, 3]);
    let (mut p, g) = (ramp(&[4], 1), ramp(&[4], 2));
    let (mut m, mut v) = (f32s(&[4], &[0.0; 4]), f32s(&[4], &[0.0; 4]));
    let lr = Tensor::scalar_f64(DType::F32, 0.1);
    let wants = [
        [-0.5995, 1.34875, 0.14975, -0.74925],
        [-0.6989005, 1.4474012, 0.0496003, -0.7485007],
    ];
    for (step, want) in wants.iter().enumerate() {
        let step = Tensor::scalar_i64(DType::I64, step as i64 + 1);
        let out = run(op.clone(), &[&p, &g, &m, &v, &lr, &step]).unwrap();
        [p, m, v] = out.try_into().unwrap();
        close(&p, want, 1e-6);
    }
    close(&m, &[0.0475, -0.1425, 0.19, 0.0], 1e-6);
    close(&v, &[0.0001249, 0.0011244, 0.001999, 0.0], 1e-6);
}

#[test]
fn quantizes_by_tensor_channel_and_block() {
    let x = f32s(
        &[2, 4],
        &[0.0, 0.25, 0.75, -1.0, 2.0, 300.0, -300.0, f32::NAN],
    );
    let q = |axis, block, to| Quantize { axis, block, to };
    let (half, ten) = (
        Tensor::scalar_f64(DType::F32, 0.5),
        Tensor::scalar_i64(DType::U8, 10),
    );
    // Ties go to even: 0.25/0.5 = 0.5 → 0, 0.75/0.5 = 1.5 → 2.
    let y = run1(q(0, 0, DType::U8), &[&x, &half, &ten]);
    assert_eq!(y.to_i64(), [10, 10, 12, 8, 14, 255, 0, 0]);
    let rows = f32s(&[2], &[0.25, 2.0]);
    let y = run1(q(0, 0, DType::I8), &[&x, &rows]);
    assert_eq!(y.to_i64(), [0, 1, 3, -4, 1, 127, -128, 0]);
    let y = run1(q(0, 0, DType::I4), &[&x, &rows]);
    assert_eq!(y.to_i64(), [0, 1, 3, -4, 1, 7, -8, 0]);

    let d = |axis, block| Dequantize { axis, block };
    let y = Tensor::from_i64(DType::I8, [2, 4], &[1, 2, 3, 4, -5, -6, -7, -128]).unwrap();
    let zero = Tensor::from_i64(DType::I8, [2, 2], &[1, 0, 0, 127]).unwrap();
    let scale = f32s(&[2, 2], &[0.5, 2.0, 1.0, 0.25]);
    let x = run1(d(1, 2), &[&y, &scale, &zero]);
    assert_eq!(x.to_f64(), [0.0, 0.5, 6.0, 8.0, -5.0, -6.0, -33.5, -63.75]);
    // The last block may be short: 3 elements of 4.
    let y = Tensor::from_i64(DType::I8, [1, 3], &[1, 2, 3]).unwrap();
    let x = run1(d(1, 2), &[&y, &f32s(&[1, 2], &[0.5, 2.0])]);
    assert_eq!(x.to_f64(), [0.5, 1.0, 6.0]);
    // Differences beyond 2^24 are exact.
    let y = Tensor::from_i64(DType::I32, [1], &[16_777_217]).unwrap();
    let z = Tensor::scalar_i64(DType::I32, 16_777_216);
    assert_eq!(run1(d(0, 0), &[&y, &half, &z]).to_f64(), [0.5]);
}

#[test]
fn composites_say_what_they_need() {
    let x = ty(DType::F32, &["b", "8"]);
    assert!(
        refuses(
            Softmax {
                axis: 2,
                log: false
            },
            from_ref(&x)
        )
        .contains("axis 2")
    );
    assert!(refuses(Gelu { tanh: false }, &[ty(DType::I32, &["8"])]).contains("float"));
    let norm = LayerNorm { axis: 1, eps: 1e-5 };
    let message = refuses(
        norm.clone(),
        &[x.clone(), ty(DType::F32, &["7"]), ty(DType::F32, &["8"])],
    );
    assert!(
        message.starts_with("layer_norm: the extents of the scale"),
        "{message}"
    );
    assert!(refuses(norm, from_ref(&x)).contains("3 arguments"));
    let scale = ty(DType::F32, &["3"]);
    let y = ty(DType::I8, &["b", "8"]);
    assert!(refuses(Dequantize { axis: 1, block: 0 }, &[y, scale]).contains("scale"));
}

#[test]
fn axes_follow_from_the_expansion() {
    let labels = |op: Op, types: &[TensorType]| {
        let views: Vec<&TensorType> = types.iter().collect();
        match op.def().axes(&views) {
            AxisMap::Labels {
                args,
                results,
                reduce,
            } => (args, results, reduce),
            AxisMap::Whole { because } => panic!("{because}"),
        }
    };
    let x = ty(DType::F32, &["b", "s", "8"]);
    let v = ty(DType::F32, &["8"]);
    let (args, results, reduce) = labels(
        LayerNorm { axis: 2, eps: 0.0 }.into(),
        &[x.clone(), v.clone(), v],
    );
    assert_eq!(args, [vec![Some(0), Some(1), None], vec![None], vec![None]]);
    assert_eq!(
        (results, reduce),
        (vec![vec![Some(0), Some(1), None]], None)
    );
    let (args, results, _) = labels(Softmax { axis: 1, log: true }.into(), from_ref(&x));
    assert_eq!(
        (&args, &results),
        (&vec![vec![Some(0), None, Some(1)]], &args)
    );
    let (args, ..) = labels(Gelu { tanh: true }.into(), &[x]);
    assert_eq!(args, [vec![Some(0), Some(1), Some(2)]]);
    // The mean over what counts does not combine from parts.
    let (x, t) = (ty(DType::F32, &["b", "10"]), ty(DType::I64, &["b"]));
    let (args, results, _) = labels(CrossEntropy { ignore: -1 }.into(), &[x, t]);
    assert_eq!(
        (args, results),
        (vec![vec![None, None], vec![None]], vec![vec![]])
    );
}
