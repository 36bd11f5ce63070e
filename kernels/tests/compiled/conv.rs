//! Convolutions against sums in f64: strides, dilations, borders, groups, tails; those of
//! bytes, whose sums are exact.

use crate::support::{Launch, Rng, at_every_level, bytes, numbers};
use kiln_ir::ops::winograd;
use kiln_ir::{BinaryFn, DType};
use kiln_kernels::conv::ConvSpec;
use kiln_kernels::*;

#[derive(Clone, Debug)]
struct Problem {
    batch: usize,
    input: Vec<usize>,
    kernel: Vec<usize>,
    strides: Vec<usize>,
    dilations: Vec<usize>,
    lo: Vec<usize>,
    hi: Vec<usize>,
    groups: usize,
    /// Channels and filters of a group.
    depth: usize,
    m: usize,
    nr: usize,
    winograd: bool,
    dtype: DType,
    open: bool,
    /// `max(sum + bias[f], 0) + residual`, or the sum alone.
    epilogue: bool,
}

struct Built {
    case: Launch,
    want: Vec<f64>,
    scale: Vec<f64>,
}

impl Problem {
    fn plain(input: &[usize], kernel: &[usize], depth: usize, m: usize) -> Problem {
        let n = input.len();
        Problem {
            batch: 1,
            input: input.to_vec(),
            kernel: kernel.to_vec(),
            strides: vec![1; n],
            dilations: vec![1; n],
            lo: vec![0; n],
            hi: vec![0; n],
            groups: 1,
            depth,
            m,
            nr: 64,
            winograd: false,
            dtype: DType::F32,
            open: false,
            epilogue: false,
        }
    }

    fn random(rng: &mut Rng) -> Problem {
        let n = rng.pick(&[1, 2, 2, 2, 3]);
        let mut list = |of: &[usize]| (0..n).map(|_| rng.pick(of)).collect::<Vec<_>>();
        let (kernel, strides) = (list(&[1, 2, 3, 5]), list(&[1, 1, 2, 3]));
        let (dilations, lo, hi) = (list(&[1, 1, 2]), list(&[0, 0, 1, 2]), list(&[0, 0, 1, 3]));
        let room = list(&[0, 1, 2, 6, 11]);
        let input = (0..n)
            .map(|i| ((kernel[i] - 1) * dilations[i] + 1 + room[i]).saturating_sub(lo[i] + hi[i]))
            .map(|d| d.max(1))
            .collect();
        let depthwise = rng.below(3) == 0 && kernel.iter().product::<usize>() <= 64;
        let (groups, depth, m) = match depthwise {
            true => (rng.pick(&[2, 7, 16, 24, 33, 48]), 1, 1),
            false => (
                rng.pick(&[1, 1, 1, 2, 3]),
                rng.pick(&[1, 2, 3, 8, 17, 40]),
                rng.pick(&[1, 3, 16, 20, 33, 70]),
            ),
        };
        Problem {
            batch: 1 + rng.below(3),
            input,
            kernel,
            strides,
            dilations,
            lo,
            hi,
            groups,
            depth,
            m,
            nr: if depthwise {
                0
            } else {
                rng.pick(&[8, 16, 24, 40, 32, 48, 56, 64])
            },
            winograd: false,
            dtype: rng.pick(&[DType::F32, DType::F32, DType::F32, DType::F16, DType::BF16]),
            open: rng.below(2) == 0,
            epilogue: rng.below(2) == 0,
        }
    }

    fn output(&self) -> Vec<usize> {
        (0..self.input.len())
            .map(|i| {
                let span = (self.kernel[i] - 1) * self.dilations[i] + 1;
                (self.input[i] + self.lo[i] + self.hi[i] - span) / self.strides[i] + 1
            })
            .collect()
    }

    fn of_bytes(&self) -> bool {
        matches!(self.dtype, DType::I8 | DType::U8)
    }

    fn bordered(&self) -> bool {
        self.lo.iter().chain(&self.hi).any(|&p| p > 0)
    }

    /// Filters of bytes: the taps of a run, and the groups of four that it has.
    fn run(&self) -> (usize, usize) {
        let last = self.kernel.len() - 1;
        let joined = self.groups == 1 && !self.bordered() && self.dilations[last] == 1;
        let run = match joined || self.nr == 0 {
            true => self.kernel[last],
            false => 1,
        };
        (run, (run * self.depth).div_ceil(4))
    }

    fn random_of_bytes(rng: &mut Rng) -> Problem {
        let p = Problem::random(rng);
        Problem {
            dtype: rng.pick(&[DType::U8, DType::U8, DType::I8]),
            nr: p.nr.next_multiple_of(16),
            ..p
        }
    }

    /// Where the filter's element lies.
    fn at_w(&self, tap: usize, c: usize, filter: usize) -> usize {
        let (taps, nr) = (self.kernel.iter().product::<usize>(), self.nr);
        if self.of_bytes() {
            let (run, groups) = self.run();
            let within = tap % run * self.depth + c;
            let row = tap / run * groups + within / 4;
            let element = match nr {
                0 => row * self.groups + filter,
                _ => {
                    let (group, j) = (filter / self.m, filter % self.m);
                    let panel = group * self.m.div_ceil(nr) + j / nr;
                    (panel * (taps / run) * groups + row) * nr + j % nr
                }
            };
            return element * 4 + within % 4;
        }
        if nr == 0 {
            return tap * self.groups + filter;
        }
        let (group, j) = (filter / self.m, filter % self.m);
        let panel = group * self.m.div_ceil(nr) + j / nr;
        (panel * taps * self.depth + tap * self.depth + c) * nr + j % nr
    }

    fn build(&self, rng: &mut Rng) -> Built {
        let (n, f32) = (self.input.len(), DType::F32);
        let (channels, filters) = (self.groups * self.depth, self.groups * self.m);
        let (taps, output) = (self.kernel.iter().product::<usize>(), self.output());
        let pixels: usize = self.input.iter().product();
        let places: usize = output.iter().product();
        let mut draw = |dtype: DType, n: usize| match dtype {
            DType::U8 | DType::I8 => {
                let all: Vec<u8> = (0..n).map(|_| rng.next() as u8).collect();
                numbers(dtype, &all)
            }
            _ => numbers(dtype, &rng.data(dtype, n)),
        };
        let bytes_out = self.of_bytes() && !self.epilogue;
        let (w_type, out_type) = match self.of_bytes() {
            true => (DType::I8, if bytes_out { DType::I32 } else { f32 }),
            false => (self.dtype, f32),
        };
        let x = draw(self.dtype, self.batch * pixels * channels);
        let runs = taps / self.run().0;
        let size = match self.nr {
            0 if self.of_bytes() => runs * self.run().1 * channels * 4,
            nr if self.of_bytes() => {
                self.groups * self.m.div_ceil(nr) * runs * self.run().1 * nr * 4
            }
            nr if self.winograd => winograd::PLACES * self.m.div_ceil(nr) * channels * nr,
            0 => taps * channels,
            nr => self.groups * self.m.div_ceil(nr) * taps * self.depth * nr,
        };
        let values = draw(w_type, taps * self.depth * filters);
        let around = match self.of_bytes() && self.bordered() {
            true => draw(self.dtype, 1)[0],
            false => 0.0,
        };
        let mut w = vec![0.0; size];
        let bias = draw(f32, filters);
        let residual = draw(f32, self.batch * places * filters);
        let value = |tap: usize, c: usize, f: usize| values[(tap * self.depth + c) * filters + f];
        if self.winograd {
            let nr = self.nr;
            for (f, c) in (0..filters).flat_map(|f| (0..channels).map(move |c| (f, c))) {
                let g = std::array::from_fn(|t| value(t, c, f));
                for (p, u) in winograd::transformed_filter(&g).into_iter().enumerate() {
                    let panel = p * self.m.div_ceil(nr) + f / nr;
                    w[(panel * channels + c) * nr + f % nr] = u;
                }
            }
        }
        for tap in 0..if self.winograd { 0 } else { taps } {
            for c in 0..self.depth {
                (0..filters).for_each(|f| w[self.at_w(tap, c, f)] = value(tap, c, f));
            }
        }
        let (mut want, mut scale) = (vec![], vec![]);
        for place in 0..self.batch * places {
            let mut at = vec![0; n];
            let mut rest = place;
            for i in (0..n).rev() {
                at[i] = rest % output[i];
                rest /= output[i];
            }
            for f in 0..filters {
                let (mut sum, mut size) = (0.0, 0.0);
                for tap in 0..taps {
                    let (mut left, mut pixel, mut step, mut inside) = (tap, 0, 1, true);
                    for i in (0..n).rev() {
                        let k = left % self.kernel[i];
                        left /= self.kernel[i];
                        let p = (at[i] * self.strides[i] + k * self.dilations[i]) as i64
                            - self.lo[i] as i64;
                        inside &= (0..self.input[i] as i64).contains(&p);
                        pixel += p.max(0) as usize * step;
                        step *= self.input[i];
                    }
                    for c in 0..self.depth {
                        let channel = f / self.m * self.depth + c;
                        let v = match inside {
                            true => x[(rest * pixels + pixel) * channels + channel],
                            false => around,
                        };
                        let v = v * value(tap, c, f);
                        sum += v;
                        size += v.abs();
                    }
                }
                scale.push(size);
                want.push(match self.epilogue {
                    true => (sum + bias[f]).max(0.0) + residual[place * filters + f],
                    false => sum,
                });
            }
        }

        let mut params = vec![];
        let mut size = |v: usize| {
            if self.open {
                params.push(v as i64);
                Size::Param(params.len() as u16 - 1)
            } else {
                Size::Const(v as i64)
            }
        };
        let mut e = Exprs::new();
        let mut args = vec![self.dtype, w_type];
        let mut buffers = vec![bytes(self.dtype, &x), bytes(w_type, &w)];
        let pad = self.of_bytes() && self.bordered();
        if pad {
            args.push(self.dtype);
            buffers.push(bytes(self.dtype, &[around]));
        }
        let mut strides = vec![0; n + 2];
        strides[n + 1] = 1;
        for i in (0..=n).rev() {
            strides[i] = strides[i + 1] * if i == n { filters } else { output[i] };
        }
        let whole = Index::strided(strides.iter().map(|&s| Size::Const(s as i64)));
        let acc = if self.of_bytes() { DType::I32 } else { f32 };
        let mut value = e.acc(0, acc).unwrap();
        value = e.cast(out_type, value).unwrap();
        if self.epilogue {
            let next = args.len() as u16;
            let mut one = vec![Size::ZERO; n + 1];
            one.push(Size::ONE);
            let b = e.load(next, f32, Index::strided(one)).unwrap();
            let r = e.load(next + 1, f32, whole.clone()).unwrap();
            let zero = e.f32(0.0);
            value = e.binary(BinaryFn::Add, value, b).unwrap();
            value = e.binary(BinaryFn::Max, value, zero).unwrap();
            value = e.binary(BinaryFn::Add, value, r).unwrap();
            args.extend([f32, f32]);
            buffers.extend([bytes(f32, &bias), bytes(f32, &residual)]);
        }
        args.push(out_type);
        buffers.push(vec![0; want.len() * 4]);
        let ints = |v: &[usize]| v.iter().map(|&i| i as i64).collect::<Vec<_>>();
        let batch = size(self.batch);
        let input = self.input.iter().map(|&d| size(d)).collect();
        let out_sizes = output.iter().map(|&d| size(d)).collect();
        let lo = self.lo.iter().map(|&d| size(d)).collect();
        let spec = ConvSpec {
            exprs: e,
            args,
            params: params.len() as u16,
            batch,
            input,
            output: out_sizes,
            channels: channels as i64,
            filters: filters as i64,
            groups: self.groups as i64,
            kernel: ints(&self.kernel),
            strides: ints(&self.strides),
            dilations: ints(&self.dilations),
            lo,
            pad,
            bordered: self.bordered(),
            nr: self.nr as i64,
            winograd: self.winograd,
            out: whole,
            value,
        };
        spec.check().unwrap();
        let spec = KernelSpec::Conv(spec);
        Built {
            case: Launch {
                spec,
                buffers,
                params,
            },
            want,
            scale,
        }
    }
}

/// Runs the problems at every level, which must agree in every bit.
fn check(problems: &[Problem], seed: u64) {
    let mut rng = Rng(seed);
    let built: Vec<Built> = problems.iter().map(|p| p.build(&mut rng)).collect();
    let cases: Vec<&Launch> = built.iter().map(|b| &b.case).collect();
    at_every_level(&cases, &mut |level, i, result| {
        let (p, b) = (&problems[i], &built[i]);
        if p.of_bytes() && !p.epilogue {
            assert_eq!(numbers(DType::I32, result), b.want, "{level}: {p:?}");
            return;
        }
        let got = numbers(DType::F32, result);
        let unit = if p.winograd { 4e-6 } else { 3e-7 };
        for (e, &want) in b.want.iter().enumerate() {
            let allowed = unit * b.scale[e] + 1e-6 * want.abs().max(1.0);
            assert!(
                (got[e] - want).abs() <= allowed,
                "{level} element {e}: {} not {want}; {p:?}",
                got[e]
            );
        }
    });
}

#[test]
fn random_convolutions_match() {
    let mut rng = Rng(17);
    for round in 0..5 {
        let problems: Vec<Problem> = (0..20).map(|_| Problem::random(&mut rng)).collect();
        check(&problems, round);
    }
}

#[test]
fn random_convolutions_of_bytes_are_exact() {
    let mut rng = Rng(23);
    for round in 0..5 {
        let problems = (0..20).map(|_| Problem::random_of_bytes(&mut rng));
        check(&problems.collect::<Vec<_>>(), round);
    }
}

#[test]
fn bytes_of_every_tail() {
    // Runs of 1 to 9 bytes and of a whole number of groups, joined and not, and more
    // filters than a panel has.
    let mut problems = vec![];
    for depth in (1..10).chain([64]) {
        for (pads, dtype) in [(0, DType::U8), (1, DType::U8), (1, DType::I8)] {
            problems.push(Problem {
                lo: vec![pads, 0],
                hi: vec![0, pads],
                dtype,
                ..Problem::plain(&[4, 5], &[2, 3], depth, 70)
            });
        }
    }
    check(&problems, 9);
}

#[test]
fn panels_of_half_vectors() {
    // As many filters as whole vectors hold, in panels that end inside one.
    let problems = [24, 40, 56].map(|nr| Problem {
        nr,
        epilogue: true,
        ..Problem::plain(&[4, 5], &[3, 3], 5, 2 * nr)
    });
    check(&problems, 11);
}

#[test]
fn long_sums_are_visited_in_parts() {
    // 9·150 products: more than one visit of some taps; 1500: of some channels.
    let taps = Problem {
        lo: vec![1, 1],
        hi: vec![1, 1],
        ..Problem::plain(&[5, 4], &[3, 3], 150, 20)
    };
    let channels = Problem::plain(&[3, 3], &[1, 1], 1500, 70);
    let both = Problem::plain(&[3, 4], &[2, 2], 1100, 16);
    check(&[taps, channels, both], 5);
}

#[test]
fn tiles_of_transformed_filters() {
    let tiled = |input: &[usize], depth, m| Problem {
        winograd: true,
        epilogue: true,
        ..Problem::plain(input, &[3, 3], depth, m)
    };
    let mut problems = vec![
        // 1 tile, 25 tiles (two blocks), images that end inside a tile.
        tiled(&[3, 3], 1, 1),
        tiled(&[22, 22], 5, 20),
        tiled(&[9, 31], 40, 70),
        tiled(&[8, 8], 16, 64),
    ];
    for (i, p) in problems.clone().into_iter().enumerate() {
        problems.push(Problem {
            batch: 3,
            lo: vec![1, i % 2],
            hi: vec![i % 3, 1],
            open: true,
            nr: [16, 48, 64, 32][i],
            ..p
        });
    }
    check(&problems, 8);
}

#[test]
fn lines_longer_than_a_unit() {
    let wide = Problem {
        groups: 20,
        nr: 0,
        lo: vec![1, 1],
        hi: vec![1, 1],
        ..Problem::plain(&[3, 150], &[3, 3], 1, 1)
    };
    let narrow = Problem {
        groups: 32,
        nr: 0,
        lo: vec![2],
        hi: vec![2],
        ..Problem::plain(&[2], &[5], 1, 1)
    };
    check(&[wide, narrow], 6);
}

#[test]
fn malformed_convolutions_are_refused() {
    let good = || match Problem::plain(&[4, 4], &[3, 3], 4, 4)
        .build(&mut Rng(1))
        .case
        .spec
    {
        KernelSpec::Conv(spec) => spec,
        other => panic!("{other:?}"),
    };
    assert!(good().check().is_ok());
    let mut groups = good();
    groups.groups = 3;
    let mut depthwise = good();
    depthwise.nr = 0;
    // A depthwise kernel names each tap.
    let mut taps = good();
    (taps.groups, taps.nr, taps.kernel) = (4, 0, vec![9, 9]);
    let mut open = good();
    open.lo[1] = Size::Param(0);
    // Of bytes, with filters of floats.
    let mut mixed = good();
    mixed.args[0] = DType::U8;
    let mut axes = good();
    axes.value = axes.exprs.axis(4);
    axes.args[2] = DType::I64;
    for (spec, what) in [
        (groups, "do not agree"),
        (depthwise, "do not agree"),
        (taps, "do not agree"),
        (mixed, "do not agree"),
        (open, "parameter 0 of 0"),
        (axes, "axis 4 of 4"),
    ] {
        let said = spec.check().unwrap_err().to_string();
        assert!(said.contains("K0502") && said.contains(what), "{said}");
    }
}
