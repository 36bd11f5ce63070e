//! Small uses of every op: what property tests run on. A family of ops that is
//! not here is tested by hand only, and [`HAND_TESTED`] says why.

use crate::ops::elementwise::*;
use crate::ops::index::*;
use crate::ops::layout::*;
use crate::ops::source::*;
use crate::ops::window::Unfold;
use crate::tensor::Encoder;
use crate::{BinaryFn, CompareFn, DType, Dim, Op, SymValue, Tensor, UnaryFn};

/// One use of an op.
#[derive(Clone, Debug)]
pub struct Sample {
    /// The op.
    pub op: Op,
    /// What its arguments hold.
    pub args: Vec<ArgSpec>,
    /// Whether it has a gradient, and is smooth where the arguments lie.
    pub differentiable: bool,
}

/// An argument: its type and what to fill it with.
#[derive(Clone, Debug)]
pub struct ArgSpec {
    /// Element type.
    pub dtype: DType,
    /// Extents.
    pub shape: Vec<usize>,
    /// The elements.
    pub fill: Fill,
}

/// How an argument's elements are chosen.
#[derive(Clone, Debug)]
pub enum Fill {
    /// Anything between two numbers; integers include the upper.
    Between(f64, f64),
    /// Numbers that all differ by at least 0.1, in any order: no two tie.
    Distinct,
    /// Exactly these.
    Is(Vec<f64>),
}

/// Rows of the op table without samples, and why.
pub const HAND_TESTED: &[(&str, &str)] = &[
    ("global", "needs a module"),
    ("if", "owns regions"),
    ("loop", "owns regions"),
    ("call", "needs a module"),
    ("fused", "owns a region"),
    ("decode", "its argument is bytes while its type is encoded"),
    ("bind_dim", "has no result"),
    ("nonzero", "its result's size is known only when it has run"),
    (
        "string_split",
        "its result's size is known only when it has run",
    ),
];

impl Sample {
    /// Arguments for this seed.
    pub fn tensors(&self, seed: u64) -> Vec<Tensor> {
        let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5bd1_e995);
        self.args.iter().map(|a| a.tensor(&mut random)).collect()
    }
}

impl ArgSpec {
    pub(crate) fn tensor(&self, random: &mut Random) -> Tensor {
        let n: usize = self.shape.iter().product();
        if self.dtype == DType::Str {
            return self.strings(n, random);
        }
        let mut out = Encoder::new(self.dtype, n);
        match &self.fill {
            Fill::Is(values) => values.iter().for_each(|&v| out.push_f64(v)),
            Fill::Between(lo, hi) if self.dtype.is_float() => {
                (0..n).for_each(|_| out.push_f64(lo + (hi - lo) * random.unit()));
            }
            Fill::Between(lo, hi) => {
                let span = (hi - lo) as u64 + 1;
                (0..n).for_each(|_| out.push_i64(*lo as i64 + (random.next() % span) as i64));
            }
            Fill::Distinct => {
                let mut order: Vec<usize> = (0..n).collect();
                (1..n).for_each(|i| order.swap(i, (random.next() % (i as u64 + 1)) as usize));
                let middle = n as f64 / 2.0;
                order
                    .iter()
                    .for_each(|&i| out.push_f64((i as f64 - middle) * 0.15 + 0.05));
            }
        }
        match Tensor::new(self.dtype, self.shape.clone(), out.finish()) {
            Ok(t) => t,
            Err(e) => panic!("a sample's fill does not have its shape: {e}"),
        }
    }

    /// Numerals where numbers are given; else words, some of them equal.
    fn strings(&self, n: usize, random: &mut Random) -> Tensor {
        let all = match &self.fill {
            Fill::Is(values) => values.iter().map(f64::to_string).collect(),
            Fill::Between(..) | Fill::Distinct => (0..n)
                .map(|_| WORDS[(random.next() % WORDS.len() as u64) as usize].to_string())
                .collect(),
        };
        match Tensor::strings(self.shape.clone(), all) {
            Ok(t) => t,
            Err(e) => panic!("a sample's fill does not have its shape: {e}"),
        }
    }
}

/// What tests of strings are filled with.
const WORDS: [&str; 8] = [
    "",
    "a",
    "A",
    "naïve café",
    " two  words ",
    "7",
    "ǅ",
    "a,b,,c",
];

/// SplitMix64 (Steele et al. 2014).
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// A float argument between −2 and 2.
pub(crate) fn f(shape: &[usize]) -> ArgSpec {
    between(DType::F32, shape, -2.0, 2.0)
}

pub(crate) fn between(dtype: DType, shape: &[usize], lo: f64, hi: f64) -> ArgSpec {
    ArgSpec {
        dtype,
        shape: shape.to_vec(),
        fill: Fill::Between(lo, hi),
    }
}

pub(crate) fn distinct(shape: &[usize]) -> ArgSpec {
    ArgSpec {
        dtype: DType::F32,
        shape: shape.to_vec(),
        fill: Fill::Distinct,
    }
}

pub(crate) fn exactly(dtype: DType, shape: &[usize], values: &[f64]) -> ArgSpec {
    ArgSpec {
        dtype,
        shape: shape.to_vec(),
        fill: Fill::Is(values.to_vec()),
    }
}

pub(crate) fn smooth(op: impl Into<Op>, args: Vec<ArgSpec>) -> Sample {
    Sample {
        op: op.into(),
        args,
        differentiable: true,
    }
}

pub(crate) fn rough(op: impl Into<Op>, args: Vec<ArgSpec>) -> Sample {
    Sample {
        op: op.into(),
        args,
        differentiable: false,
    }
}

/// Samples of every op that has any.
pub fn samples() -> Vec<Sample> {
    let families = [elementwise(), sources(), layouts(), indices()];
    families
        .into_iter()
        .flatten()
        .chain(super::samples_b::samples())
        .collect()
}

fn elementwise() -> Vec<Sample> {
    let mut out = vec![];
    for &f_ in UnaryFn::ALL {
        use UnaryFn::*;
        let arg = match f_ {
            Not => between(DType::Bool, &[2, 3], 0.0, 1.0),
            BitNot => between(DType::I32, &[2, 3], -9.0, 9.0),
            Log | Sqrt | Rsqrt | Recip => between(DType::F32, &[2, 3], 0.3, 3.0),
            Acosh => between(DType::F32, &[2, 3], 1.2, 3.0),
            Asin | Acos | Atanh => between(DType::F32, &[2, 3], -0.8, 0.8),
            Tan => between(DType::F32, &[2, 3], -1.2, 1.2),
            Abs => distinct(&[2, 3]),
            Neg | Sign | Exp | Sin | Cos | Atan | Sinh | Cosh | Tanh | Asinh | Erf | NormalCdf
            | Sigmoid | Floor | Ceil | Round | RoundTf32 | IsNan | IsInf => f(&[2, 3]),
        };
        // The gradient of rounding to a narrower float is that of the number itself, which
        // differences over a step below its grid do not show.
        let rough_ = matches!(
            f_,
            Sign | Floor | Ceil | Round | RoundTf32 | Not | BitNot | IsNan | IsInf
        );
        out.push(Sample {
            op: Unary { f: f_ }.into(),
            args: vec![arg],
            differentiable: !rough_,
        });
    }
    for &f_ in BinaryFn::ALL {
        use BinaryFn::*;
        let (a, b, smooth_) = match f_ {
            And | Or | Xor => {
                let b = |s: &[usize]| between(DType::Bool, s, 0.0, 1.0);
                (b(&[2, 3]), b(&[3]), false)
            }
            Shl | Shr => (
                between(DType::I32, &[4], -99.0, 99.0),
                between(DType::I32, &[4], 0.0, 7.0),
                false,
            ),
            Div | Pow | Atan2 => {
                let p = |s: &[usize]| between(DType::F32, s, 0.4, 2.0);
                (p(&[2, 1]), p(&[1, 3]), true)
            }
            Rem | Mod => (f(&[2, 3]), between(DType::F32, &[3], 0.4, 2.0), false),
            // No element of one ties with one of the other.
            Min | Max => (
                distinct(&[2, 3]),
                exactly(DType::F32, &[3], &[0.01, -0.02, 0.12]),
                true,
            ),
            Add | Sub | Mul => (f(&[2, 3]), f(&[2, 1]), true),
        };
        out.push(Sample {
            op: Binary { f: f_ }.into(),
            args: vec![a, b],
            differentiable: smooth_,
        });
    }
    for &f_ in CompareFn::ALL {
        let ints = |s: &[usize]| between(DType::I64, s, -2.0, 2.0);
        out.push(rough(Compare { f: f_ }, vec![ints(&[3, 4]), ints(&[4])]));
        out.push(rough(Compare { f: f_ }, vec![f(&[3, 4]), f(&[3, 1])]));
    }
    out.push(smooth(
        Select,
        vec![between(DType::Bool, &[2, 1], 0.0, 1.0), f(&[2, 3]), f(&[3])],
    ));
    out.push(smooth(Cast { to: DType::F64 }, vec![f(&[5])]));
    out.push(rough(
        Cast { to: DType::I8 },
        vec![between(DType::F32, &[9], -300.0, 300.0)],
    ));
    out.push(rough(
        BitCast { to: DType::I8 },
        vec![between(DType::U8, &[7], 0.0, 255.0)],
    ));
    out.push(rough(Cast { to: DType::BF16 }, vec![f(&[9])]));
    out.push(rough(
        Cast { to: DType::F32 },
        vec![between(DType::U8, &[9], 0.0, 255.0)],
    ));
    out
}

fn sources() -> Vec<Sample> {
    let key = || exactly(DType::U64, &[], &[1234.0]);
    vec![
        rough(
            Constant {
                value: Tensor::scalar_f64(DType::F32, 0.1),
            },
            vec![],
        ),
        rough(
            Dims {
                value: SymValue::vector(vec![2.into(), 3.into()]),
            },
            vec![],
        ),
        rough(
            Iota {
                shape: vec![2.into(), 3.into()],
                axis: 1,
                dtype: DType::I64,
            },
            vec![],
        ),
        rough(
            Philox {
                shape: vec![5.into()],
            },
            vec![key(), key()],
        ),
    ]
}

fn layouts() -> Vec<Sample> {
    let dims = |d: &[i64]| d.iter().map(|&d| Dim::from(d)).collect::<Vec<_>>();
    let mut out = vec![
        smooth(
            Reshape {
                shape: dims(&[3, 2, 2]),
            },
            vec![f(&[2, 6])],
        ),
        smooth(
            Broadcast {
                shape: dims(&[2, 3, 4]),
            },
            vec![f(&[3, 1])],
        ),
        smooth(
            Slice {
                starts: dims(&[1, 4]),
                sizes: dims(&[2, 2]),
                steps: vec![1, -2],
            },
            vec![f(&[3, 5])],
        ),
        smooth(Concat { axis: 1 }, vec![f(&[2, 1]), f(&[2, 3]), f(&[2, 2])]),
    ];
    let unfold = Unfold {
        axis: 1,
        size: 3,
        step: 2,
        dilation: 2,
    };
    out.push(smooth(unfold, vec![f(&[2, 8, 2])]));
    out.extend(
        Perm::new(vec![2, 0, 1]).map(|perm| smooth(Transpose { perm }, vec![f(&[2, 3, 4])])),
    );
    for mode in [
        PadMode::Constant,
        PadMode::Reflect,
        PadMode::Edge,
        PadMode::Wrap,
    ] {
        // Only constant padding has a gradient.
        let differentiable = mode == PadMode::Constant;
        let op = Pad {
            lo: dims(&[1, 0]),
            hi: dims(&[0, 2]),
            mode,
        };
        out.push(Sample {
            op: op.into(),
            args: vec![f(&[3, 4]), f(&[])],
            differentiable,
        });
    }
    out
}

fn indices() -> Vec<Sample> {
    let at = |shape: &[usize], hi: f64| between(DType::I64, shape, -hi - 1.0, hi);
    let mut out = vec![
        smooth(Gather { axis: 1 }, vec![f(&[2, 4, 3]), at(&[2, 2], 3.0)]),
        smooth(
            GatherElements { axis: 0 },
            vec![f(&[3, 2]), at(&[4, 2], 2.0)],
        ),
        smooth(
            GatherNd { batch_dims: 0 },
            vec![f(&[3, 2, 2]), at(&[2, 2], 1.0)],
        ),
        smooth(
            DynamicSlice {
                sizes: vec![2.into(), 2.into()],
            },
            vec![f(&[3, 4]), exactly(DType::I64, &[2], &[1.0, 2.0])],
        ),
        smooth(
            DynamicUpdateSlice,
            vec![
                f(&[3, 4]),
                f(&[2, 2]),
                exactly(DType::I64, &[2], &[1.0, 2.0]),
            ],
        ),
    ];
    for f_ in [
        ScatterFn::Set,
        ScatterFn::Add,
        ScatterFn::Mul,
        ScatterFn::Max,
        ScatterFn::Min,
    ] {
        let smooth_ = matches!(f_, ScatterFn::Set | ScatterFn::Add);
        let rows = exactly(DType::I64, &[2, 2], &[0.0, 2.0, 0.0, 1.0]);
        let op = ScatterElements { axis: 0, f: f_ };
        out.push(Sample {
            op: op.into(),
            args: vec![f(&[3, 2]), rows, f(&[2, 2])],
            differentiable: smooth_,
        });
        let places = exactly(DType::I64, &[2, 1], &[2.0, 0.0]);
        let op = ScatterNd { f: f_ };
        out.push(Sample {
            op: op.into(),
            args: vec![f(&[3, 2]), places, f(&[2, 2])],
            differentiable: smooth_,
        });
    }
    out
}
