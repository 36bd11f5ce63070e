use super::*;
use crate::ops::attention::*;

fn attention(mask: MaskKind) -> Attention {
    Attention {
        scale: 0.5,
        mask,
        bias: false,
        keep: false,
        slopes: false,
        lengths: false,
    }
}

/// Two rows, four query heads over two key heads, two queries, four keys.
fn qkv() -> [Tensor; 3] {
    [
        ramp(&[2, 4, 2, 2], 1),
        ramp(&[2, 2, 4, 2], 2),
        ramp(&[2, 2, 4, 1], 3),
    ]
}

#[track_caller]
fn check(mask: MaskKind, want: &[f64]) {
    let [q, k, v] = qkv();
    close(&run1(attention(mask), &[&q, &k, &v]), want, 1e-6);
}

#[test]
fn every_mask_kind_with_grouped_heads() {
    // NumPy, one (query, key) pair at a time.
    check(
        MaskKind::Full,
        &[
            -0.2812353, 0.3949804, 0.2782765, -0.2367336, -0.419458, -0.4991916, -0.6286835,
            -0.0624679, 0.682866, 0.6537175, 0.1172847, 0.0150784, 0.0376656, -0.0600809,
            -0.4375321, 0.1286835,
        ],
    );
    check(
        MaskKind::Causal { offset: 2.into() },
        &[
            -0.4282525, 0.3949804, 0.1554178, -0.2367336, -0.3616621, -0.4991916, -0.6554251,
            -0.0624679, 0.4943137, 0.6537175, -0.0096512, 0.0150784, 0.1479872, -0.0600809,
            -0.4721279, 0.1286835,
        ],
    );
    check(
        MaskKind::Sliding {
            offset: 2.into(),
            window: 2,
            sinks: 1,
        },
        &[
            -0.4282525, 0.5199372, 0.1554178, -0.277073, -0.3616621, -0.1992081, -0.6554251,
            0.1825825, 0.4943137, 0.7260273, -0.0096512, -0.1012766, 0.1479872, 0.0893433,
            -0.4721279, 0.3097573,
        ],
    );
    check(
        MaskKind::Prefix {
            offset: 0.into(),
            prefix: 3.into(),
        },
        &[
            -0.4282525, 0.2213094, 0.1554178, -0.4391415, -0.3616621, -0.4988687, -0.6554251,
            0.0125194, 0.4943137, 0.4969136, -0.0096512, -0.0995222, 0.1479872, 0.0176375,
            -0.4721279, 0.2551391,
        ],
    );
}

#[test]
fn a_query_that_sees_no_key_gives_zero() {
    let first = [
        0.0, 1.0, 0.0, 1.0, 0.0, -0.25, 0.0, -0.25, 0.0, 1.25, 0.0, 1.25, 0.0, 0.0, 0.0, 0.0,
    ];
    check(
        MaskKind::Causal {
            offset: (-1).into(),
        },
        &first,
    );
    let [q, k, v] = qkv();
    let hidden = Tensor::from_f64(DType::F32, [1], &[f64::NEG_INFINITY]).unwrap();
    let op = Attention {
        bias: true,
        ..attention(MaskKind::Full)
    };
    close(&run1(op, &[&q, &k, &v, &hidden]), &[0.0; 16], 0.0);
}

#[test]
fn bias_mask_slopes_and_lengths_together() {
    let [q, k, v] = qkv();
    let bias = ramp(&[4, 2, 4], 4);
    let keep: Vec<i64> = (0..8).map(|i| (i % 3 != 1) as i64).collect();
    let keep = Tensor::from_i64(DType::Bool, [2, 1, 1, 4], &keep).unwrap();
    let slopes = f32s(&[4], &[0.5, 0.25, 0.125, 0.0625]);
    let lengths = i64s(&[2], &[3, 0]);
    let op = Attention {
        bias: true,
        keep: true,
        slopes: true,
        lengths: true,
        ..attention(MaskKind::Causal { offset: 2.into() })
    };
    let want = [
        -0.9051483, -0.4743163, -0.3027097, 0.1549907, 0.1658528, -0.1897319, 0.1773895, 0.0061869,
        0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0,
    ];
    let y = run1(op.clone(), &[&q, &k, &v, &bias, &keep, &slopes, &lengths]);
    close(&y, &want, 1e-6);
    assert!(refuses(op, &[q.ty(), k.ty(), v.ty()]).contains("7 arguments"));
}

#[test]
fn half_precision_computes_in_f32() {
    let [q, k, v] = [
        ramp_of(DType::F16, &[2, 4, 2, 2], 1),
        ramp_of(DType::F16, &[2, 2, 4, 2], 2),
        ramp_of(DType::F16, &[2, 2, 4, 1], 3),
    ];
    let y = run1(attention(MaskKind::Full), &[&q, &k, &v]);
    assert_eq!(y.dtype(), DType::F16);
    let [q, k, v] = qkv();
    close(
        &y,
        &run1(attention(MaskKind::Full), &[&q, &k, &v]).to_f64(),
        1e-3,
    );
}

#[test]
fn attention_says_what_it_needs() {
    let t = |shape: &[&str]| ty(DType::F32, shape);
    let q = t(&["b", "8", "s", "64"]);
    let kv = t(&["b", "2", "t", "64"]);
    let (types, guards) = infer(
        attention(MaskKind::Full),
        &[q.clone(), kv.clone(), kv.clone()],
    )
    .unwrap();
    assert_eq!(
        (types[0].to_string().as_str(), guards.len()),
        ("f32[b, 8, s, 64]", 0)
    );
    let three = t(&["b", "3", "t", "64"]);
    assert!(
        refuses(
            attention(MaskKind::Full),
            &[q.clone(), three.clone(), three]
        )
        .contains("divide")
    );
    let short = t(&["b", "2", "t + 1", "64"]);
    assert!(refuses(attention(MaskKind::Full), &[q, kv, short]).contains("key and value"));
}

#[test]
fn attention_can_be_cut_along_batch_and_heads() {
    let q = ty(DType::F32, &["b", "8", "s", "64"]);
    let op = Op::from(attention(MaskKind::Causal { offset: 0.into() }));
    let AxisMap::Labels { args, results, .. } = op.def().axes(&[&q, &q, &q]) else {
        panic!("attention has labels")
    };
    // The values' features pass through as well; positions stay whole.
    assert_eq!(args[0], [Some(0), Some(1), None, None]);
    assert_eq!(args[2], [Some(0), Some(1), None, Some(2)]);
    assert_eq!(results[0], [Some(0), Some(1), None, Some(2)]);
}

#[test]
fn rope_by_halves_and_by_neighbours() {
    let x = ramp(&[1, 2, 3, 6], 7);
    let angles = ramp(&[3, 2], 8).to_f64();
    let of = |f: fn(f64) -> f64| {
        Tensor::from_f64(
            DType::F32,
            [3, 2],
            &angles.iter().map(|&a| f(a)).collect::<Vec<_>>(),
        )
        .unwrap()
    };
    let (cos, sin) = (of(f64::cos), of(f64::sin));
    let rope = |interleaved| {
        run1(
            Rope {
                interleaved,
                rotary_dims: Some(4),
            },
            &[&x, &cos, &sin],
        )
    };
    close(
        &rope(false),
        &[
            0.403382, -0.7063954, -1.4008151, 0.7506701, 0.0, -1.0, 0.75, 0.2856599, -1.25,
            0.4805189, -0.5, 1.25, -0.4987165, -0.7266843, 0.9020986, 0.185553, -1.0, 0.75,
            0.1578972, -0.2546424, 0.5362541, -1.3219899, 1.25, 0.25, -0.75, -0.3011687, 0.0,
            -1.3817733, 0.75, -0.25, -0.5737917, 0.7937112, -1.2178929, 1.0874385, 0.25, -0.75,
        ],
        1e-6,
    );
    close(
        &rope(true),
        &[
            1.0850208, -0.6691262, -1.2466977, -0.0908009, 0.0, -1.0, 0.75, -0.25, -0.2546424,
            1.3219899, -0.5, 1.25, 0.6941513, -0.378357, 0.9689124, -0.247404, -1.0, 0.75,
            -1.0349707, -0.7442014, 0.6908866, 0.1505843, 1.25, 0.25, -0.75, 1.0, -0.841471,
            -0.5403023, 0.75, -0.25, -1.2554305, -0.486204, -0.1752013, 1.3348425, 0.25, -0.75,
        ],
        1e-6,
    );
    let odd = Rope {
        interleaved: false,
        rotary_dims: Some(3),
    };
    assert!(refuses(odd, &[x.ty(), cos.ty(), sin.ty()]).contains("rotate 3 of 6"));
}

#[test]
fn the_cache_takes_new_keys_in_place() {
    let cache = f32s(&[1, 1, 4, 2], &[1., 1., 2., 2., 3., 3., 4., 4.]);
    let new = Tensor::from_f64(DType::F16, [1, 1, 2, 2], &[9., 8., 7., 6.]).unwrap();
    let append = |at| {
        run(
            KvCacheAppend,
            &[&cache, &new, &Tensor::scalar_i64(DType::I64, at)],
        )
    };
    let y = append(1).unwrap().remove(0);
    assert_eq!(y.to_f64(), [1., 1., 9., 8., 7., 6., 4., 4.]);
    assert_eq!(y.dtype(), DType::F32);
    assert!(append(3).is_err(), "leaves the cache");
    assert_eq!(Op::from(KvCacheAppend).def().donates(), [0]);
}
