//! Attention against softmax in f64: layouts, heads in groups, masks, tails.

mod forms;

use crate::gpu::Gpu;
use crate::support::{Launch, Rng, at_every_level, bytes, load, numbers, targets};
use kiln_ir::{BinaryFn, CompareFn, DType, UnaryFn};
use kiln_kernels::attention::AttentionSpec;
use kiln_kernels::*;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Mask {
    None,
    /// Key at most query + offset.
    Causal(i64),
    /// Causal within a window.
    Window(i64),
    /// Causal within a window, the first two keys besides.
    Sinks(i64),
    /// `5·tanh(score / 5)`, causal.
    Capped,
    /// `[batch, 1, 1, key]`, 0 or the least f32, added.
    Padding,
    /// `[batch, head, query, key]`, added.
    Bias,
    /// `[1, 1, query, key]` bools; some queries see nothing.
    Keep,
    /// Key at most query + an i64 for each head.
    Reach,
}

#[derive(Clone, Debug)]
struct Problem {
    batch: usize,
    heads: usize,
    group: usize,
    queries: usize,
    keys: usize,
    features: usize,
    values: usize,
    dtype: DType,
    mask: Mask,
    /// `[batch, seq, head, feature]` rather than `[batch, head, seq, feature]`.
    seq_first: bool,
    /// K as `[batch, head, feature, key]`.
    k_transposed: bool,
    open: bool,
    block: i64,
}

struct Built {
    spec: KernelSpec,
    buffers: Vec<Vec<u8>>,
    params: Vec<i64>,
    want: Vec<f64>,
    out_at: Vec<usize>,
}

/// Strides of batch, head, sequence, feature, and the elements.
fn layout(p: &Problem, heads: usize, seq: usize, width: usize) -> [usize; 4] {
    match p.seq_first {
        true => [seq * heads * width, width, heads * width, 1],
        false => [heads * seq * width, seq * width, width, 1],
    }
}

fn dot(at: [usize; 4], c: [usize; 4]) -> usize {
    (0..4).map(|i| at[i] * c[i]).sum()
}

impl Problem {
    fn random(rng: &mut Rng) -> Problem {
        let group = rng.pick(&[1, 1, 2, 4]);
        let queries = rng.pick(&[1, 3, 16, 17, 33, 64, 70, 130]);
        Problem {
            batch: 1 + rng.below(2),
            heads: group * (1 + rng.below(2)),
            group,
            queries,
            keys: rng.pick(&[1, 5, 16, 64, 127, 128, 129, 200, 300]),
            features: rng.pick(&[1, 8, 20, 32, 64]),
            values: rng.pick(&[1, 8, 16, 20, 40, 64, 72]),
            dtype: rng.pick(&[DType::F32, DType::F32, DType::F16, DType::BF16, DType::BF16]),
            mask: rng.pick(&[
                Mask::None,
                Mask::Causal(0),
                Mask::Causal(37),
                Mask::Window(9),
                Mask::Padding,
                Mask::Bias,
                Mask::Keep,
            ]),
            seq_first: rng.below(2) == 0,
            k_transposed: rng.below(4) == 0,
            open: rng.below(2) == 0,
            block: rng.pick(&[16, 16, 32, 64, 64]),
        }
    }

    fn added(&self, mask: &[f64], b: usize, h: usize, q: usize, k: usize) -> f64 {
        let (q_len, k_len) = (self.queries, self.keys);
        let (qi, ki) = (q as i64, k as i64);
        let hidden = |h: bool| if h { f64::NEG_INFINITY } else { 0.0 };
        match self.mask {
            Mask::None => 0.0,
            Mask::Causal(o) => hidden(ki > qi + o),
            Mask::Window(w) => hidden(ki > qi || ki <= qi - w),
            Mask::Sinks(w) => hidden(ki > qi || ki <= qi - w && ki > 1),
            Mask::Capped => hidden(ki > qi),
            Mask::Padding => mask[b * k_len + k],
            Mask::Bias => mask[((b * self.heads + h) * q_len + q) * k_len + k],
            Mask::Keep => hidden(mask[q * k_len + k] == 0.0),
            Mask::Reach => hidden(ki > qi + mask[h] as i64),
        }
    }

    fn build(&self, rng: &mut Rng) -> Built {
        let p = self;
        let key_heads = p.heads / p.group;
        let t = p.dtype;
        let q_at = layout(p, p.heads, p.queries, p.features);
        let mut k_at = layout(p, key_heads, p.keys, p.features);
        if p.k_transposed {
            k_at = [
                key_heads * p.keys * p.features,
                p.keys * p.features,
                1,
                p.keys,
            ];
        }
        let v_at = layout(p, key_heads, p.keys, p.values);
        let o_at = layout(p, p.heads, p.queries, p.values);
        let q = rng.data(t, p.batch * p.heads * p.queries * p.features);
        let k = rng.data(t, p.batch * key_heads * p.keys * p.features);
        let v = rng.data(t, p.batch * key_heads * p.keys * p.values);
        let low = f32::MIN as f64;
        let (mask_type, mask): (DType, Vec<f64>) = match p.mask {
            Mask::None | Mask::Causal(_) | Mask::Window(_) | Mask::Sinks(_) | Mask::Capped => {
                (DType::F32, vec![])
            }
            Mask::Padding => {
                let n = p.batch * p.keys;
                (
                    DType::F32,
                    (0..n)
                        .map(|_| if rng.below(3) == 0 { low } else { 0.0 })
                        .collect(),
                )
            }
            Mask::Bias => {
                let n = p.batch * p.heads * p.queries * p.keys;
                (DType::F32, numbers(DType::F32, &rng.data(DType::F32, n)))
            }
            Mask::Reach => {
                let one = |h: usize| ((p.keys * (h + 1)) / p.heads) as f64 - 3.0;
                (DType::I64, (0..p.heads).map(one).collect())
            }
            Mask::Keep => {
                let n = p.queries * p.keys;
                let blind = |i: usize| i / p.keys % 5 == 3;
                let shown = |rng: &mut Rng, i: usize| !blind(i) && rng.below(2) == 0;
                (
                    DType::Bool,
                    (0..n).map(|i| shown(rng, i) as u8 as f64).collect(),
                )
            }
        };
        let (qn, kn, vn) = (numbers(t, &q), numbers(t, &k), numbers(t, &v));
        let scale = 1.0 / (p.features as f64).sqrt();
        let (mut want, mut out_at) = (vec![], vec![]);
        for b in 0..p.batch {
            for h in 0..p.heads {
                for i in 0..p.queries {
                    let score = |j: usize| {
                        let s: f64 = (0..p.features)
                            .map(|f| {
                                qn[dot(q_at, [b, h, i, f])] * kn[dot(k_at, [b, h / p.group, j, f])]
                            })
                            .sum();
                        // The sum with a huge mask is rounded as f32 rounds it.
                        let mask = p.added(&mask, b, h, i, j);
                        if mask == low {
                            (s * scale) as f32 as f64 + low
                        } else if p.mask == Mask::Capped {
                            5.0 * (s * scale / 5.0).tanh() + mask
                        } else {
                            s * scale + mask
                        }
                    };
                    let mut s: Vec<f64> = (0..p.keys).map(score).collect();
                    if s.iter().all(|&x| x < -1e30) {
                        s.iter_mut().for_each(|x| *x = *x as f32 as f64);
                    }
                    let top = s.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                    let blind = top == f64::NEG_INFINITY;
                    let e: Vec<f64> = s
                        .iter()
                        .map(|x| if blind { 0.0 } else { (x - top).exp() })
                        .collect();
                    let total: f64 = if blind { 1.0 } else { e.iter().sum() };
                    for c in 0..p.values {
                        let x: f64 = (0..p.keys)
                            .map(|j| e[j] * vn[dot(v_at, [b, h / p.group, j, c])])
                            .sum();
                        want.push(x / total);
                        out_at.push(dot(o_at, [b, h, i, c]));
                    }
                }
            }
        }

        let mut params = vec![];
        let mut size = |v: usize| {
            if p.open {
                params.push(v as i64);
                Size::Param(params.len() as u16 - 1)
            } else {
                Size::Const(v as i64)
            }
        };
        let mut four = |at: [usize; 4]| at.map(|s| if s == 1 { Size::ONE } else { size(s) });
        let strides = [q_at, k_at, v_at, o_at].map(&mut four);
        let sizes = [p.batch, p.heads, p.group, p.queries, p.keys].map(&mut size);
        let mut e = Exprs::new();
        let raw = e.acc(0, DType::F32).unwrap();
        let factor = e.f32(scale as f32);
        let mut score = e.binary(BinaryFn::Mul, raw, factor).unwrap();
        let (i, j, hide) = (e.axis(2), e.axis(3), e.f32(f32::NEG_INFINITY));
        let c = |n: usize| Size::Const(n as i64);
        let (l, m, n) = (
            c(p.heads * p.queries * p.keys),
            c(p.queries * p.keys),
            c(p.keys),
        );
        let mut added = |e: &mut Exprs, strides: [Size; 4]| {
            let x = e.load(3, DType::F32, Index::strided(strides)).unwrap();
            score = e.binary(BinaryFn::Add, score, x).unwrap();
        };
        match p.mask {
            Mask::None => {}
            Mask::Causal(_) | Mask::Window(_) | Mask::Sinks(_) | Mask::Capped => {
                if p.mask == Mask::Capped {
                    let (cap, part) = (e.f32(5.0), e.f32(0.2));
                    score = e.binary(BinaryFn::Mul, score, part).unwrap();
                    score = e.unary(UnaryFn::Tanh, score).unwrap();
                    score = e.binary(BinaryFn::Mul, score, cap).unwrap();
                }
                let offset = e.i64(if let Mask::Causal(o) = p.mask { o } else { 0 });
                let last = e.binary(BinaryFn::Add, i, offset).unwrap();
                let seen = e.compare(CompareFn::Le, j, last).unwrap();
                score = e.select(seen, score, hide).unwrap();
                if let Mask::Window(w) | Mask::Sinks(w) = p.mask {
                    let w = e.i64(w);
                    let first = e.binary(BinaryFn::Sub, i, w).unwrap();
                    let mut near = e.compare(CompareFn::Gt, j, first).unwrap();
                    if let Mask::Sinks(_) = p.mask {
                        let two = e.i64(2);
                        let sink = e.compare(CompareFn::Lt, j, two).unwrap();
                        near = e.binary(BinaryFn::Or, near, sink).unwrap();
                    }
                    score = e.select(near, score, hide).unwrap();
                }
            }
            Mask::Padding => added(&mut e, [n, Size::ZERO, Size::ZERO, Size::ONE]),
            Mask::Bias => added(&mut e, [l, m, n, Size::ONE]),
            Mask::Reach => {
                let index = Index::strided([Size::ZERO, Size::ONE]);
                let reach = e.load(3, DType::I64, index).unwrap();
                let last = e.binary(BinaryFn::Add, i, reach).unwrap();
                let seen = e.compare(CompareFn::Le, j, last).unwrap();
                score = e.select(seen, score, hide).unwrap();
            }
            Mask::Keep => {
                let index = Index::strided([Size::ZERO, Size::ZERO, n, Size::ONE]);
                let seen = e.load(3, DType::Bool, index).unwrap();
                score = e.select(seen, score, hide).unwrap();
            }
        }
        let mut args = vec![t; 3];
        let mut buffers = vec![q, k, v];
        if !mask.is_empty() {
            args.push(mask_type);
            buffers.push(bytes(mask_type, &mask));
        }
        args.push(t);
        buffers.push(vec![0; want.len() * t.size().unwrap()]);
        let spec = AttentionSpec {
            exprs: e,
            args,
            params: params.len() as u16,
            batch: sizes[0],
            heads: sizes[1],
            group: sizes[2],
            queries: sizes[3],
            keys: sizes[4],
            features: p.features as i64,
            values: p.values as i64,
            q: strides[0],
            k: strides[1],
            v: strides[2],
            out: strides[3],
            score,
            block: p.block,
        };
        spec.check().unwrap();
        Built {
            spec: KernelSpec::Attention(spec),
            buffers,
            params,
            want,
            out_at,
        }
    }
}

/// Runs the problems at every level and holds results against softmax in f64.
fn check(problems: &[Problem], rng: &mut Rng) {
    let built: Vec<Built> = problems.iter().map(|p| p.build(rng)).collect();
    let cases: Vec<Launch> = (built.iter())
        .map(|b| Launch {
            spec: b.spec.clone(),
            buffers: b.buffers.clone(),
            params: b.params.clone(),
        })
        .collect();
    let cases: Vec<&Launch> = cases.iter().collect();
    at_every_level(&cases, &mut |level, i, result| {
        built[i].matches(&problems[i], level, result);
    });
}

impl Built {
    /// Holds a result against softmax in f64.
    fn matches(&self, p: &Problem, at: &str, result: &[u8]) {
        let got = numbers(p.dtype, result);
        let allowed = match p.dtype {
            DType::F16 => 2e-3,
            DType::BF16 => 1.5e-2,
            _ => 4e-6,
        };
        for (n, (&want, &place)) in self.want.iter().zip(&self.out_at).enumerate() {
            let off = (got[place] - want).abs();
            assert!(
                off <= allowed,
                "{at} element {n}: {} not {want}; {p:?}",
                got[place]
            );
        }
    }
}

#[test]
fn random_attention_matches_softmax() {
    let mut rng = Rng(21);
    for _ in 0..3 {
        let problems: Vec<Problem> = (0..12).map(|_| Problem::random(&mut rng)).collect();
        check(&problems, &mut rng);
    }
}

/// Blocks of more than 64 queries of halves, which Hopper's groups of warps multiply.
fn many_queries(
    (queries, keys): (usize, usize),
    (features, values): (usize, usize),
    mask: Mask,
    n: usize,
) -> Problem {
    let group = [1, 2][n % 2];
    Problem {
        batch: 1,
        heads: group,
        group,
        queries,
        keys,
        features,
        values,
        dtype: [DType::BF16, DType::F16][n / 2 % 2],
        mask,
        seq_first: n.is_multiple_of(3),
        k_transposed: false,
        open: n % 4 < 2,
        block: 64,
    }
}

#[test]
fn many_queries_of_halves_match_softmax() {
    let cases = [
        ((70, 1), (32, 32), Mask::None),
        ((130, 300), (64, 64), Mask::Causal(0)),
        ((150, 129), (40, 40), Mask::Keep),
        ((128, 257), (96, 96), Mask::Bias),
        ((65, 200), (128, 128), Mask::Window(9)),
        ((129, 128), (20, 72), Mask::Padding),
        ((66, 260), (128, 64), Mask::Causal(200)),
        // Queries that see no key, and blocks of them.
        ((130, 40), (32, 16), Mask::Causal(-100)),
        ((131, 40), (1, 1), Mask::Causal(-129)),
        ((140, 150), (64, 64), Mask::Sinks(20)),
        ((66, 260), (80, 80), Mask::Capped),
    ];
    let problems: Vec<Problem> = (cases.iter().enumerate())
        .map(|(n, &(lengths, sizes, mask))| many_queries(lengths, sizes, mask, n))
        .collect();
    check(&problems, &mut Rng(22));
}

#[test]
fn large_heads_of_halves_match_softmax() {
    let cases = [
        ((70, 170), (256, 256), Mask::Causal(60)),
        ((65, 81), (256, 256), Mask::Bias),
        ((72, 230), (192, 192), Mask::None),
        ((66, 120), (192, 128), Mask::Keep),
    ];
    let problems: Vec<Problem> = (cases.iter().enumerate())
        .map(|(n, &(lengths, sizes, mask))| many_queries(lengths, sizes, mask, n))
        .collect();
    check(&problems, &mut Rng(23));
}

/// Keys are shared out to blocks, on GPUs, where there are many of them for few queries.
#[test]
fn few_queries_over_parts_of_keys_match_softmax() {
    let cases = [
        ((1, 512), (64, 64), Mask::None),
        ((2, 600), (32, 20), Mask::Causal(598)),
        ((16, 1030), (128, 128), Mask::Keep),
        // Parts of which a query sees nothing, and a query that sees no key at all.
        ((5, 770), (40, 40), Mask::Causal(100)),
        ((3, 520), (16, 16), Mask::Causal(-1)),
        ((4, 700), (64, 130), Mask::Window(9)),
        ((7, 513), (96, 64), Mask::Bias),
    ];
    let problems: Vec<Problem> = (cases.iter().enumerate())
        .map(|(n, &(lengths, sizes, mask))| Problem {
            batch: 1 + n % 2,
            heads: 4,
            block: 16,
            ..many_queries(lengths, sizes, mask, n)
        })
        .collect();
    check(&problems, &mut Rng(25));
}

#[test]
fn a_query_gives_the_same_bits_alone_and_in_a_block() {
    for dtype in [DType::F32, DType::BF16] {
        let one = Problem {
            batch: 1,
            heads: 2,
            group: 2,
            queries: 1,
            keys: 301,
            features: 32,
            values: 24,
            dtype,
            mask: Mask::None,
            seq_first: true,
            k_transposed: false,
            open: true,
            block: 16,
        };
        let mut results: Vec<Vec<u8>> = vec![];
        for (queries, block) in [(1, 16), (40, 16), (70, 64)] {
            let p = Problem {
                queries,
                block,
                ..one.clone()
            };
            let mut b = p.build(&mut Rng(5));
            b.buffers[0] = Rng(6).data(dtype, 2 * 32).repeat(queries);
            b.buffers[1] = Rng(7).data(dtype, 301 * 32);
            b.buffers[2] = Rng(8).data(dtype, 301 * 24);
            for target in targets() {
                let loaded = load(&[("at".into(), b.spec.clone())], &target);
                let mut buffers = b.buffers.clone();
                assert_eq!(loaded.run("at", &b.spec, &mut buffers, &b.params), 0);
                let out = buffers.pop().unwrap();
                let row = 2 * 24 * dtype.size().unwrap();
                results.extend(out.chunks(row).map(<[u8]>::to_vec));
            }
        }
        assert!(results.iter().all(|r| *r == results[0]));
    }
}

#[test]
fn a_query_gives_the_same_bits_in_any_block_of_a_gpu() {
    for dtype in [DType::F32, DType::BF16] {
        let mut results: Vec<Vec<u8>> = vec![];
        for queries in [70, 140] {
            let p = Problem {
                dtype,
                seq_first: true,
                ..many_queries((queries, 150), (32, 24), Mask::None, 1)
            };
            let mut b = p.build(&mut Rng(5));
            b.buffers[0] = Rng(6).data(dtype, 2 * 32).repeat(queries);
            b.buffers[1] = Rng(7).data(dtype, 150 * 32);
            b.buffers[2] = Rng(8).data(dtype, 150 * 24);
            let gpu = Gpu::new(&[("at".into(), b.spec.clone())]);
            let row = 2 * 24 * dtype.size().unwrap();
            let launch = (&b.buffers[..], &b.params[..]);
            gpu.run("at", &b.spec, launch, &mut |_, buffers, status| {
                assert_eq!(status, 0);
                let out = buffers.last().unwrap();
                results.extend(out.chunks(row).map(<[u8]>::to_vec));
            });
        }
        assert!(results.iter().all(|r| *r == results[0]));
    }
}
