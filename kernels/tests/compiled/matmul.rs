//! Contractions against sums in f64: every layout, tails, types, epilogues.

mod blocks;
mod bytes;
mod cores;
mod skinny;
mod split;
mod tiles;

use crate::support::{Launch, Rng, at_every_level, bytes, load, numbers, targets};
use kiln_ir::{BinaryFn, DType, UnaryFn};
use kiln_kernels::matmul::{Columns, MatMulSpec};
use kiln_kernels::*;

/// How a test lays out B.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Layout {
    Packed,
    Grouped,
    Rows,
    Transposed,
    Spread,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Epilogue {
    Plain,
    /// `relu(sum + bias[n])`
    Bias,
    /// `tanh(sum + bias[n]) + residual[.., m, n]`
    Residual,
}

#[derive(Clone, Debug)]
struct Problem {
    batch: Vec<usize>,
    m: usize,
    n: usize,
    k: usize,
    a: DType,
    b: DType,
    acc: DType,
    /// A and B hold numbers of tf32.
    tf32: bool,
    out: DType,
    layout: Layout,
    shared: bool,
    a_transposed: bool,
    out_transposed: bool,
    open: bool,
    nr: usize,
    epilogue: Epilogue,
    /// Bytes are mostly the least and the greatest of their type.
    extreme: bool,
}

struct Built {
    case: Launch,
    want: Vec<f64>,
    /// Where element `(batch, m, n)` of the result lies.
    place: Vec<usize>,
    /// `Σ |a·b|` of each result.
    scale: Vec<f64>,
}

impl Problem {
    fn plain(m: usize, n: usize, k: usize) -> Problem {
        let f = DType::F32;
        Problem {
            batch: vec![],
            m,
            n,
            k,
            a: f,
            b: f,
            acc: f,
            tf32: false,
            out: f,
            layout: Layout::Packed,
            shared: false,
            a_transposed: false,
            out_transposed: false,
            open: false,
            nr: 64,
            epilogue: Epilogue::Plain,
            extreme: false,
        }
    }

    /// A product of bytes, its sums as they are.
    fn bytes(a: DType, b: DType, m: usize, n: usize, k: usize) -> Problem {
        Problem {
            a,
            b,
            acc: DType::I32,
            out: DType::I32,
            layout: Layout::Grouped,
            extreme: true,
            ..Problem::plain(m, n, k)
        }
    }

    /// Elements of A or B.
    fn elements(&self, rng: &mut Rng, dtype: DType, n: usize) -> Vec<f64> {
        let (least, most) = match dtype {
            DType::U8 => (0.0, 255.0),
            _ => (-128.0, 127.0),
        };
        if !self.extreme {
            let data = numbers(dtype, &rng.data(dtype, n)).into_iter();
            return match self.tf32 {
                true => data.map(|x| UnaryFn::RoundTf32.eval_f64(x)).collect(),
                false => data.collect(),
            };
        }
        let any = |rng: &mut Rng| least + rng.below(256) as f64;
        (0..n)
            .map(|_| [least, most, least, most, any(rng)][rng.below(5)])
            .collect()
    }

    fn random(rng: &mut Rng) -> Problem {
        use DType::*;
        let (a, b, acc) = rng.pick(&[
            (F32, F32, F32),
            (F32, F32, F32),
            (F32, F32, F32),
            (F16, F16, F32),
            (BF16, BF16, F32),
            (BF16, BF16, F32),
            (BF16, BF16, F32),
            (F32, F16, F32),
            (F32, BF16, F32),
            (F32, I8, F32),
            (F32, U8, F32),
            (F8E4M3FN, F8E5M2, F32),
            (F64, F64, F64),
            (I8, I8, I32),
            (U8, I8, I32),
            (U8, U8, I32),
            (I8, U8, I32),
            (I32, I32, I32),
        ]);
        let a_transposed = rng.below(4) == 0;
        let bytes = acc == I32 && a.bits() == 8;
        let mut layouts = vec![
            Layout::Packed,
            Layout::Rows,
            Layout::Transposed,
            Layout::Spread,
        ];
        if (bytes || [a, b] == [BF16; 2]) && !a_transposed {
            layouts.extend([Layout::Grouped; 3]);
        }
        let out = match acc {
            F32 => rng.pick(&[F32, F32, F16, BF16]),
            other => other,
        };
        let epilogue = match acc {
            F32 => rng.pick(&[Epilogue::Plain, Epilogue::Bias, Epilogue::Residual]),
            _ => Epilogue::Plain,
        };
        Problem {
            batch: (0..rng.below(3)).map(|_| 1 + rng.below(3)).collect(),
            m: rng.pick(&[1, 1, 2, 5, 6, 7, 13, 48, 49, 61, 100]),
            n: rng.pick(&[1, 3, 15, 16, 17, 33, 63, 64, 65, 100, 130]),
            k: rng.pick(&[0, 1, 2, 3, 8, 17, 31, 64, 100]),
            a,
            b,
            acc,
            tf32: [a, b] == [F32; 2] && rng.below(3) == 0,
            out,
            layout: rng.pick(&layouts),
            shared: rng.below(2) == 0,
            a_transposed,
            out_transposed: rng.below(4) == 0,
            open: rng.below(2) == 0,
            nr: rng.pick(&[16, 32, 48, 64, 64, 80, 128]),
            epilogue,
            extreme: bytes,
        }
    }

    /// Neighbours along k that lie together in grouped panels.
    fn group(&self) -> usize {
        4 / self.b.size().unwrap()
    }

    /// Where `[p][j]` of B lies.
    fn at_b(&self, p: usize, j: usize) -> usize {
        let (n, k, nr) = (self.n, self.k, self.nr);
        match self.layout {
            Layout::Packed => (j / nr * k + p) * nr + j % nr,
            Layout::Grouped => {
                let g = self.group();
                ((j / nr * k.div_ceil(g) + p / g) * nr + j % nr) * g + p % g
            }
            Layout::Rows => p * (n + 3) + j,
            Layout::Transposed => j * k + p,
            Layout::Spread => (p * n + j) * 2,
        }
    }

    /// Elements of one B.
    fn b_size(&self) -> usize {
        let (n, k, nr) = (self.n, self.k, self.nr);
        match self.layout {
            Layout::Packed => n.div_ceil(nr) * nr * k,
            Layout::Grouped => n.div_ceil(nr) * nr * k.next_multiple_of(self.group()),
            Layout::Rows => k * (n + 3),
            Layout::Transposed => k * n,
            Layout::Spread => k * n * 2,
        }
    }

    /// A `[k][n]` matrix as B.
    fn lay(&self, weights: &[f64]) -> Vec<u8> {
        let mut memory = vec![0.0; self.b_size()];
        for (i, &w) in weights.iter().enumerate() {
            memory[self.at_b(i / self.n, i % self.n)] = w;
        }
        bytes(self.b, &memory)
    }

    fn build(&self, rng: &mut Rng) -> Built {
        let (m, n, k, nr) = (self.m, self.n, self.k, self.nr);
        let batches: usize = self.batch.iter().product();
        let b_batches = if self.shared { 1 } else { batches };
        let a_data = self.elements(rng, self.a, batches * m * k);
        let b_data = self.elements(rng, self.b, b_batches * k * n);
        let bias = numbers(DType::F32, &rng.data(DType::F32, n));
        let residual = numbers(DType::F32, &rng.data(DType::F32, batches * m * n));

        let b_size = self.b_size();
        let mut b_memory = vec![0.0; b_batches * b_size];
        for i in 0..b_batches {
            for p in 0..k {
                for j in 0..n {
                    b_memory[i * b_size + self.at_b(p, j)] = b_data[(i * k + p) * n + j];
                }
            }
        }
        let mut a_memory = vec![0.0; a_data.len()];
        let mut want = vec![];
        let mut scale = vec![];
        let mut place = vec![];
        for i in 0..batches {
            let ib = if self.shared { 0 } else { i };
            for r in 0..m {
                for p in 0..k {
                    let at = if self.a_transposed {
                        p * m + r
                    } else {
                        r * k + p
                    };
                    a_memory[i * m * k + at] = a_data[(i * m + r) * k + p];
                }
                for j in 0..n {
                    let terms =
                        (0..k).map(|p| a_data[(i * m + r) * k + p] * b_data[(ib * k + p) * n + j]);
                    let sum: f64 = terms.clone().sum();
                    scale.push(terms.map(f64::abs).sum::<f64>());
                    want.push(match self.epilogue {
                        Epilogue::Plain => sum,
                        Epilogue::Bias => (sum + bias[j]).max(0.0),
                        Epilogue::Residual => {
                            (sum + bias[j]).tanh() + residual[(i * m + r) * n + j]
                        }
                    });
                    let at = if self.out_transposed {
                        j * m + r
                    } else {
                        r * n + j
                    };
                    place.push(i * m * n + at);
                }
            }
        }

        // The spec; open sizes are launch parameters.
        let mut params = vec![];
        let mut size = |v: usize| {
            if self.open {
                params.push(v as i64);
                Size::Param(params.len() as u16 - 1)
            } else {
                Size::Const(v as i64)
            }
        };
        let rank = self.batch.len();
        let row_strides = |whole: usize| -> Vec<usize> {
            let mut s = vec![whole; rank];
            for i in (0..rank.saturating_sub(1)).rev() {
                s[i] = s[i + 1] * self.batch[i + 1];
            }
            s
        };
        let mut a: Vec<Size> = row_strides(m * k).into_iter().map(&mut size).collect();
        a.extend(if self.a_transposed {
            [Size::ONE, size(m)]
        } else {
            [size(k), Size::ONE]
        });
        let b_batch: Vec<Size> = match self.shared {
            true => vec![Size::ZERO; rank],
            false => row_strides(b_size).into_iter().map(&mut size).collect(),
        };
        let b = match self.layout {
            Layout::Packed => Columns::Packed,
            Layout::Grouped => Columns::Grouped,
            Layout::Rows => Columns::Strided {
                row: size(n + 3),
                column: Size::ONE,
            },
            Layout::Transposed => Columns::Strided {
                row: Size::ONE,
                column: size(k),
            },
            Layout::Spread => Columns::Strided {
                row: size(2 * n),
                column: Size::Const(2),
            },
        };
        let mut out: Vec<Size> = row_strides(m * n).into_iter().map(&mut size).collect();
        out.extend(if self.out_transposed {
            [Size::ONE, size(m)]
        } else {
            [size(n), Size::ONE]
        });
        let batch: Vec<Size> = self.batch.iter().map(|&d| size(d)).collect();
        let (m_size, n_size, k_size) = (size(m), size(n), size(k));
        let residual_strides: Vec<Size> = row_strides(m * n)
            .into_iter()
            .chain([n, 1])
            .map(|s| Size::Const(s as i64))
            .collect();
        let mut e = Exprs::new();
        let mut args = vec![self.a, self.b];
        let mut buffers = vec![bytes(self.a, &a_memory), bytes(self.b, &b_memory)];
        let mut value = e.acc(0, self.acc).unwrap();
        if self.epilogue != Epilogue::Plain {
            let mut strides = vec![Size::ZERO; rank + 1];
            strides.push(Size::ONE);
            let x = e.load(2, DType::F32, Index::strided(strides)).unwrap();
            value = e.binary(BinaryFn::Add, value, x).unwrap();
            args.push(DType::F32);
            buffers.push(bytes(DType::F32, &bias));
        }
        match self.epilogue {
            Epilogue::Plain => {}
            Epilogue::Bias => {
                let zero = e.f32(0.0);
                value = e.binary(BinaryFn::Max, value, zero).unwrap();
            }
            Epilogue::Residual => {
                let r = e
                    .load(3, DType::F32, Index::strided(residual_strides))
                    .unwrap();
                let t = e.unary(UnaryFn::Tanh, value).unwrap();
                value = e.binary(BinaryFn::Add, t, r).unwrap();
                args.push(DType::F32);
                buffers.push(bytes(DType::F32, &residual));
            }
        }
        let value = e.cast(self.out, value).unwrap();
        args.push(self.out);
        buffers.push(vec![0; want.len() * self.out.size().unwrap()]);
        let spec = MatMulSpec {
            exprs: e,
            args,
            params: params.len() as u16,
            batch,
            m: m_size,
            n: n_size,
            k: k_size,
            acc: self.acc,
            tf32: self.tf32,
            a,
            b_batch,
            b,
            nr: nr as i64,
            out: Index::strided(out),
            value,
        };
        spec.check().unwrap();
        let spec = KernelSpec::MatMul(spec);
        Built {
            case: Launch {
                spec,
                buffers,
                params,
            },
            want,
            place,
            scale,
        }
    }
}

/// Runs the problems at every level; gives the results' bytes of the first.
fn check(problems: &[Problem], seed: u64) -> Vec<Vec<u8>> {
    let mut rng = Rng(seed);
    let built: Vec<Built> = problems.iter().map(|p| p.build(&mut rng)).collect();
    let cases: Vec<&Launch> = built.iter().map(|b| &b.case).collect();
    at_every_level(&cases, &mut |level, i, result| {
        problems[i].compare(&built[i], level, result);
    })
}

impl Problem {
    /// Checks a result against sums in f64.
    fn compare(&self, b: &Built, level: &str, result: &[u8]) {
        let p = self;
        let got = numbers(p.out, result);
        let (unit, grid) = match (p.acc, p.out) {
            (DType::I32, _) => (0.0, 0.0),
            (DType::F64, _) => (1e-15, 1e-15),
            (_, DType::F16) => (1e-6, 1e-3),
            (_, DType::BF16) => (1e-6, 8e-3),
            _ => (3e-7, 1e-6),
        };
        for (e, (&want, &at)) in b.want.iter().zip(&b.place).enumerate() {
            // An epilogue may cancel: its rounding is that of values near 1.
            let allowed = unit * b.scale[e] + grid * want.abs().max(1.0);
            let off = (got[at] - want).abs();
            assert!(
                off <= allowed,
                "{level} element {e}: {} not {want}; {p:?}",
                got[at]
            );
        }
    }
}

#[test]
fn random_contractions_match() {
    let mut rng = Rng(7);
    for round in 0..4 {
        let problems: Vec<Problem> = (0..24).map(|_| Problem::random(&mut rng)).collect();
        check(&problems, round);
    }
}

#[test]
fn integer_sums_are_exact() {
    let p = Problem {
        a: DType::U8,
        b: DType::I8,
        acc: DType::I32,
        out: DType::I32,
        ..Problem::plain(50, 70, 300)
    };
    let rows = Problem {
        layout: Layout::Rows,
        ..p.clone()
    };
    check(&[p, rows], 3);
}

/// The first row of 70, alone and together, with these layouts of B: its bits.
fn rows_by_layout(dtype: DType, layouts: &[Layout]) {
    for target in targets() {
        let mut all: Vec<Vec<u8>> = vec![];
        for &layout in layouts {
            for (m, nr) in [(1, 64), (70, 64), (70, 32), (5, 128)] {
                let p = Problem {
                    layout,
                    nr,
                    a: dtype,
                    b: dtype,
                    ..Problem::plain(m, 100, 77)
                };
                let mut b = p.build(&mut Rng(11));
                b.case.buffers[0] = Rng(12).data(dtype, 77).repeat(m);
                b.case.buffers[1] = p.lay(&numbers(dtype, &Rng(13).data(dtype, 77 * 100)));
                let loaded = load(&[("mm".into(), b.case.spec.clone())], &target);
                assert_eq!(
                    loaded.run("mm", &b.case.spec, &mut b.case.buffers, &b.case.params),
                    0
                );
                let out = b.case.buffers.pop().unwrap();
                let row = out[..400].to_vec();
                assert!(out.chunks(400).all(|r| r == row), "rows of {p:?} differ");
                all.push(row);
            }
        }
        assert!(all.iter().all(|r| *r == all[0]));
    }
}

#[test]
fn results_do_not_depend_on_rows_or_layout() {
    use Layout::*;
    rows_by_layout(DType::F32, &[Packed, Rows, Transposed, Spread]);
    rows_by_layout(DType::BF16, &[Grouped, Rows, Transposed, Spread]);
}

#[test]
fn malformed_contractions_are_refused() {
    let good = || match Problem::plain(4, 4, 4).build(&mut Rng(1)).case.spec {
        KernelSpec::MatMul(spec) => spec,
        other => panic!("{other:?}"),
    };
    assert!(good().check().is_ok());
    let mut beyond = good();
    beyond.k = Size::Param(0);
    let mut axis = good();
    axis.value = axis.exprs.axis(2);
    axis.args[2] = DType::I64;
    let mut missing = good();
    missing.value = missing.exprs.load(2, DType::F32, Index::default()).unwrap();
    let mut narrow = good();
    narrow.nr = 24;
    for (spec, what) in [
        (beyond, "parameter 0 of 0"),
        (axis, "axis 2 of 2"),
        (missing, "no buffer 2"),
        (narrow, "do not agree"),
    ] {
        let said = spec.check().unwrap_err().to_string();
        assert!(said.contains("K0502") && said.contains(what), "{said}");
    }
}
