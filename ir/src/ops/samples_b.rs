//! Samples of reductions, contractions and composites.

use super::samples::*;
use crate::ops::attention::*;
use crate::ops::block_matmul::BlockMatMul;
use crate::ops::composite::*;
use crate::ops::contract::*;
use crate::ops::conv::Conv;
use crate::ops::pack_filters::PackFilters;
use crate::ops::packed::PackedMatMul;
use crate::ops::packed_conv::PackedConv;
use crate::ops::reduce::*;
use crate::ops::strings::{StringFn, StringMap};
use crate::strings::Letters;
use crate::{DType, Dim, ReduceFn};

/// Samples of these families.
pub fn samples() -> Vec<Sample> {
    [
        reductions(),
        contractions(),
        composites(),
        quantization(),
        attentions(),
        convolutions(),
        strings(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn reductions() -> Vec<Sample> {
    let mut out = vec![];
    for &f_ in ReduceFn::ALL {
        let keep = f_ != ReduceFn::Max;
        out.push(smooth(
            Reduce {
                f: f_,
                axes: vec![0, 2],
                keep,
            },
            vec![distinct(&[2, 3, 4])],
        ));
        out.push(rough(
            Reduce {
                f: f_,
                axes: vec![1],
                keep,
            },
            vec![between(DType::I32, &[3, 5], -9.0, 9.0)],
        ));
    }
    for largest in [true, false] {
        out.push(rough(
            ArgReduce {
                largest,
                axis: 1,
                keep: largest,
                last: !largest,
            },
            vec![f(&[3, 5])],
        ));
        out.push(smooth(
            TopK {
                axis: 1,
                k: 2.into(),
                largest,
            },
            vec![distinct(&[3, 5])],
        ));
    }
    for (exclusive, reverse) in [(false, false), (true, false), (false, true), (true, true)] {
        out.push(smooth(
            Cumulate {
                f: ReduceFn::Sum,
                axis: 1,
                exclusive,
                reverse,
            },
            vec![f(&[2, 4])],
        ));
        out.push(rough(
            Cumulate {
                f: ReduceFn::Prod,
                axis: 0,
                exclusive,
                reverse,
            },
            vec![f(&[4, 2])],
        ));
    }
    out
}

fn strings() -> Vec<Sample> {
    let text = |shape: &[usize]| between(DType::Str, shape, 0.0, 1.0);
    let map = |f, args| rough(StringMap { f }, args);
    let mut out = vec![
        map(StringFn::Concat, vec![text(&[2, 3]), text(&[2, 3])]),
        map(StringFn::FullMatch("(?i)[a-z]*".into()), vec![text(&[4])]),
        map(
            StringFn::Parse(DType::I32),
            vec![exactly(DType::Str, &[2, 2], &[-1.0, 2.5, 1e9, 0.0])],
        ),
        map(StringFn::Rank, vec![text(&[3, 4])]),
        map(StringFn::Format, vec![f(&[2, 3])]),
        map(StringFn::Format, vec![between(DType::U8, &[3], 0.0, 255.0)]),
    ];
    for &(letters, _) in Letters::ALL {
        out.push(map(StringFn::Lower(letters), vec![text(&[3, 2])]));
        out.push(map(StringFn::Upper(letters), vec![text(&[])]));
    }
    out
}

fn convolutions() -> Vec<Sample> {
    let conv = |strides: &[usize], dilations: &[usize], lo: &[i64], hi: &[i64], groups| Conv {
        strides: strides.to_vec(),
        dilations: dilations.to_vec(),
        lo: lo.iter().map(|&d| Dim::from(d)).collect(),
        hi: hi.iter().map(|&d| Dim::from(d)).collect(),
        groups,
        out: None,
    };
    let bytes = |groups| Conv {
        out: Some(DType::I32),
        ..conv(&[2, 1], &[1, 2], &[1, 0], &[0, 1], groups)
    };
    let shapes = |groups: usize| [vec![2, 4, 6, 7], vec![4, 4 / groups, 3, 2]];
    let integers = |groups| {
        let [x, w] = shapes(groups);
        rough(
            bytes(groups),
            vec![
                between(DType::U8, &x, 0.0, 255.0),
                between(DType::I8, &w, -128.0, 127.0),
                exactly(DType::U8, &[], &[130.0]),
            ],
        )
    };
    vec![
        integers(1),
        integers(2),
        integers(4),
        rough(
            conv(&[1], &[1], &[1], &[1], 1),
            vec![
                between(DType::I32, &[2, 3, 5], -300.0, 300.0),
                between(DType::I32, &[2, 3, 2], -300.0, 300.0),
                between(DType::I32, &[2], -9.0, 9.0),
            ],
        ),
        smooth(
            conv(&[2, 1], &[1, 2], &[1, 0], &[0, 1], 1),
            vec![f(&[2, 3, 6, 7]), f(&[4, 3, 3, 2]), f(&[4])],
        ),
        smooth(
            conv(&[2], &[1], &[1], &[1], 2),
            vec![f(&[1, 4, 7]), f(&[6, 2, 3])],
        ),
        // Depthwise.
        smooth(
            conv(&[1, 2], &[1, 1], &[1, 1], &[1, 1], 3),
            vec![f(&[2, 3, 4, 5]), f(&[3, 1, 3, 3]), f(&[3])],
        ),
        smooth(
            conv(&[1, 1, 1], &[1, 1, 1], &[0, 0, 0], &[0, 0, 0], 1),
            vec![f(&[1, 2, 2, 3, 2]), f(&[2, 2, 1, 2, 2])],
        ),
    ]
}

fn contractions() -> Vec<Sample> {
    let product = |transpose_a, transpose_b| MatMul {
        transpose_a,
        transpose_b,
        out: None,
        tf32: false,
    };
    let bytes = |dtype, shape: &[usize]| match dtype {
        DType::U8 => between(dtype, shape, 0.0, 255.0),
        _ => between(dtype, shape, -128.0, 127.0),
    };
    vec![
        smooth(product(false, false), vec![f(&[2, 3]), f(&[3, 4])]),
        smooth(product(false, true), vec![f(&[2, 2, 3]), f(&[4, 3])]),
        smooth(product(false, false), vec![f(&[2, 5, 3]), f(&[3, 4])]),
        smooth(product(true, false), vec![f(&[2, 1, 3, 2]), f(&[3, 3, 4])]),
        smooth(product(true, true), vec![f(&[3, 2]), f(&[2, 4, 3])]),
        rough(
            MatMul {
                out: Some(DType::F32),
                ..product(false, true)
            },
            vec![
                between(DType::F8E4M3FN, &[2, 3], -2.0, 2.0),
                between(DType::F8E5M2, &[4, 3], -2.0, 2.0),
            ],
        ),
        // Differences over a step see the grid that it rounds to.
        rough(
            MatMul {
                tf32: true,
                ..product(false, true)
            },
            vec![f(&[2, 2, 3]), f(&[4, 3])],
        ),
        rough(
            MatMul {
                transpose_a: false,
                transpose_b: false,
                out: Some(DType::I32),
                tf32: false,
            },
            vec![bytes(DType::U8, &[3, 5]), bytes(DType::I8, &[5, 2])],
        ),
        rough(
            PackedMatMul { n: 6, out: None },
            vec![f(&[2, 3, 5]), f(&[2, 5, 4])],
        ),
        rough(
            BlockMatMul {
                bits: 4,
                block: 4,
                out: None,
            },
            vec![f(&[2, 3, 7]), bytes(DType::U8, &[5, 4]), f(&[5, 2])],
        ),
        rough(
            BlockMatMul {
                bits: 8,
                block: 4,
                out: Some(DType::F64),
            },
            vec![
                f(&[3, 8]),
                bytes(DType::U8, &[5, 8]),
                f(&[5, 2]),
                bytes(DType::U8, &[5, 2]),
            ],
        ),
        rough(convolution(6, 2), vec![f(&[2, 5, 4, 4]), f(&[2, 1, 12, 4])]),
        rough(convolution(4, 4), vec![f(&[2, 5, 4, 4]), f(&[6, 4])]),
        rough(
            convolution(6, 2),
            vec![
                bytes(DType::U8, &[2, 5, 4, 6]),
                bytes(DType::I8, &[2, 1, 6, 4, 4]),
                exactly(DType::U8, &[], &[130.0]),
            ],
        ),
        rough(
            convolution(4, 4),
            vec![
                bytes(DType::I8, &[2, 5, 4, 4]),
                bytes(DType::I8, &[2, 4, 4]),
            ],
        ),
        rough(
            PackFilters {
                group: 4,
                run: 3,
                ..filters(1, 4, false)
            },
            vec![bytes(DType::I8, &[5, 3, 2, 3])],
        ),
        rough(
            PackFilters {
                group: 4,
                run: 3,
                ..filters(4, 0, false)
            },
            vec![bytes(DType::I8, &[4, 1, 2, 3])],
        ),
        rough(filters(2, 4, false), vec![f(&[6, 2, 2, 3])]),
        rough(filters(4, 0, false), vec![f(&[4, 1, 3])]),
        rough(filters(1, 4, true), vec![f(&[5, 2, 3, 3])]),
        rough(tiled(5), vec![f(&[2, 5, 4, 3]), f(&[36, 2, 3, 4])]),
        rough(
            PackedMatMul { n: 6, out: None },
            vec![
                bytes(DType::I8, &[2, 3, 5]),
                bytes(DType::U8, &[2, 2, 4, 4]),
            ],
        ),
        rough(
            Pack {
                nr: 4,
                group: 4,
                transposed: true,
            },
            vec![bytes(DType::I8, &[6, 3])],
        ),
        rough(
            Pack {
                nr: 4,
                group: 1,
                transposed: false,
            },
            vec![f(&[2, 3, 6])],
        ),
        rough(
            Pack {
                nr: 4,
                group: 1,
                transposed: true,
            },
            vec![f(&[6, 3])],
        ),
    ]
}

fn filters(groups: usize, nr: usize, winograd: bool) -> PackFilters {
    PackFilters {
        groups,
        nr,
        winograd,
        group: 1,
        run: 1,
    }
}

/// Six taps, a stride, a dilation, paddings.
fn convolution(filters: usize, groups: usize) -> PackedConv {
    PackedConv {
        filters,
        groups,
        kernel: vec![2, 3],
        strides: vec![2, 1],
        dilations: vec![2, 1],
        lo: vec![1.into(), 0.into()],
        hi: vec![0.into(), 1.into()],
        winograd: false,
    }
}

/// Transformed 3×3 filters.
fn tiled(filters: usize) -> PackedConv {
    PackedConv {
        filters,
        groups: 1,
        kernel: vec![3, 3],
        strides: vec![1, 1],
        dilations: vec![1, 1],
        lo: vec![1.into(), 0.into()],
        hi: vec![0.into(), 1.into()],
        winograd: true,
    }
}

fn composites() -> Vec<Sample> {
    let scalar = |dtype, v| exactly(dtype, &[], &[v]);
    vec![
        smooth(
            Softmax {
                axis: 1,
                log: false,
            },
            vec![f(&[2, 3, 2])],
        ),
        smooth(Softmax { axis: 1, log: true }, vec![f(&[3, 4])]),
        rough(
            Softmax {
                axis: 1,
                log: false,
            },
            vec![between(DType::BF16, &[3, 4], -2.0, 2.0)],
        ),
        smooth(Gelu { tanh: false }, vec![f(&[2, 3])]),
        smooth(Gelu { tanh: true }, vec![f(&[2, 3])]),
        smooth(Silu, vec![f(&[2, 3])]),
        smooth(
            LayerNorm { axis: 2, eps: 1e-5 },
            vec![f(&[2, 2, 5]), f(&[5]), f(&[5])],
        ),
        smooth(
            LayerNorm { axis: 1, eps: 1e-3 },
            vec![f(&[2, 2, 3]), f(&[2, 3]), f(&[2, 3])],
        ),
        smooth(RmsNorm { axis: 1, eps: 1e-5 }, vec![f(&[3, 4]), f(&[4])]),
        smooth(
            CrossEntropy { ignore: -100 },
            vec![
                f(&[4, 3]),
                exactly(DType::I64, &[4], &[2.0, -100.0, 0.0, 1.0]),
            ],
        ),
        smooth(
            CrossEntropy { ignore: 0 },
            vec![
                f(&[2, 2, 3]),
                exactly(DType::I64, &[2, 2], &[2.0, 0.0, 1.0, 1.0]),
            ],
        ),
        smooth(
            Embedding,
            vec![
                f(&[4, 3]),
                exactly(DType::I64, &[2, 2], &[3.0, 1.0, 1.0, 0.0]),
            ],
        ),
        rough(
            AdamW {
                beta1: 0.9,
                beta2: 0.999,
                eps: 1e-8,
                weight_decay: 0.01,
            },
            vec![
                f(&[2, 3]),
                f(&[2, 3]),
                f(&[2, 3]),
                between(DType::F32, &[2, 3], 0.0, 1.0),
                scalar(DType::F32, 1e-2),
                scalar(DType::I64, 3.0),
            ],
        ),
    ]
}

fn quantization() -> Vec<Sample> {
    let scales = |shape: &[usize]| between(DType::F32, shape, 0.05, 0.5);
    let bytes = |shape: &[usize]| between(DType::I8, shape, -128.0, 127.0);
    vec![
        rough(
            Quantize {
                axis: 0,
                block: 0,
                to: DType::U8,
            },
            vec![f(&[3, 4]), scales(&[]), exactly(DType::U8, &[], &[128.0])],
        ),
        rough(
            Quantize {
                axis: 1,
                block: 0,
                to: DType::I8,
            },
            vec![f(&[3, 4]), scales(&[4])],
        ),
        rough(
            Quantize {
                axis: 1,
                block: 2,
                to: DType::I4,
            },
            vec![f(&[3, 4]), scales(&[3, 2])],
        ),
        rough(
            Dequantize { axis: 0, block: 0 },
            vec![bytes(&[3, 4]), scales(&[]), bytes(&[])],
        ),
        rough(
            Dequantize { axis: 0, block: 0 },
            vec![bytes(&[3, 4]), scales(&[3]), bytes(&[3])],
        ),
        rough(
            Dequantize { axis: 1, block: 2 },
            vec![between(DType::U4, &[3, 4], 0.0, 15.0), scales(&[3, 2])],
        ),
    ]
}

fn attentions() -> Vec<Sample> {
    let (q, kv) = (|| f(&[2, 4, 3, 4]), || f(&[2, 2, 5, 4]));
    let plain = Attention {
        scale: 0.5,
        mask: MaskKind::Full,
        bias: false,
        keep: false,
        slopes: false,
        lengths: false,
    };
    let masked = |mask| Attention {
        mask,
        ..plain.clone()
    };
    let all = Attention {
        bias: true,
        keep: true,
        slopes: true,
        lengths: true,
        ..masked(MaskKind::Causal { offset: 2.into() })
    };
    let extras = || {
        vec![
            f(&[3, 5]),
            between(DType::Bool, &[2, 1, 1, 5], 0.0, 1.0),
            between(DType::F32, &[4], 0.1, 0.5),
            exactly(DType::I64, &[2], &[5.0, 3.0]),
        ]
    };
    let same = || f(&[2, 2, 3, 4]);
    let rope = |interleaved, rotary_dims| Rope {
        interleaved,
        rotary_dims,
    };
    vec![
        smooth(plain.clone(), vec![same(), same(), same()]),
        smooth(plain.clone(), vec![q(), kv(), f(&[2, 2, 5, 3])]),
        smooth(
            masked(MaskKind::Causal { offset: 2.into() }),
            vec![q(), kv(), kv()],
        ),
        smooth(
            masked(MaskKind::Sliding {
                offset: 2.into(),
                window: 2,
                sinks: 1,
            }),
            vec![q(), kv(), kv()],
        ),
        smooth(
            masked(MaskKind::Prefix {
                offset: 0.into(),
                prefix: 2.into(),
            }),
            vec![q(), kv(), kv()],
        ),
        smooth(all, [vec![q(), kv(), kv()], extras()].concat()),
        smooth(
            rope(false, None),
            vec![f(&[1, 2, 3, 4]), f(&[3, 2]), f(&[3, 2])],
        ),
        smooth(
            rope(true, None),
            vec![f(&[2, 2, 3, 4]), f(&[2, 1, 3, 2]), f(&[2, 1, 3, 2])],
        ),
        smooth(
            rope(false, Some(2)),
            vec![f(&[1, 2, 3, 6]), f(&[3, 1]), f(&[3, 1])],
        ),
        smooth(
            KvCacheAppend,
            vec![
                f(&[1, 2, 5, 3]),
                f(&[1, 2, 2, 3]),
                exactly(DType::I64, &[], &[2.0]),
            ],
        ),
    ]
}
