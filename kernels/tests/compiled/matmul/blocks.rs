//! Products with weights of a few bits, quantized in blocks, on the interpreter: every width
//! and type, tails, zeros, an epilogue, every form.

use crate::gpu::{Gpu, note};
use crate::support::{Rng, bytes, numbers};
use kiln_codegen::GpuTarget;
use kiln_ir::{BinaryFn, DType};
use kiln_kernels::cuda::{self, Unit};
use kiln_kernels::matmul::{Blocks, Columns, MatMulSpec};
use kiln_kernels::*;
use std::collections::BTreeSet;

#[derive(Clone, Debug)]
struct Problem {
    rows: (usize, usize),
    n: usize,
    k: usize,
    bits: usize,
    size: usize,
    zeros: bool,
    /// Types of A and of the scales.
    types: (DType, DType),
    /// A's elements lie one row apart.
    turned: bool,
    /// Where B starts is not known.
    anywhere: bool,
}

struct Built {
    spec: KernelSpec,
    buffers: Vec<Vec<u8>>,
    params: Vec<i64>,
    want: Vec<f64>,
    scale: Vec<f64>,
}

impl Problem {
    fn of(rows: usize, n: usize, k: usize, bits: usize, types: (DType, DType)) -> Problem {
        Problem {
            rows: (1, rows),
            n,
            k,
            bits,
            size: 32,
            zeros: true,
            types,
            turned: false,
            anywhere: false,
        }
    }

    /// Packed numbers, their meaning `[n][k]` as the product's types have it.
    fn weight(
        &self,
        rng: &mut Rng,
        scales: &[f64],
        zeros: &[u8],
        count: usize,
    ) -> (Vec<u8>, Vec<f64>) {
        let own = self.size * self.bits / 8;
        let mut data: Vec<u8> = (0..self.n * count * own)
            .map(|_| rng.below(256) as u8)
            .collect();
        data.extend([0; 16]);
        let mask = (1usize << self.bits) - 1;
        let value = |n: usize, k: usize| {
            let bit = k * self.bits;
            let q = usize::from(data[n * count * own + bit / 8]) >> (bit % 8) & mask;
            let at = n * count + k / self.size;
            let z = match self.zeros {
                true => usize::from(zeros[at]) & mask,
                false => 1 << (self.bits - 1),
            };
            let w = (q as f32 - z as f32) * scales[at] as f32;
            numbers(self.types.0, &bytes(self.types.0, &[f64::from(w)]))[0]
        };
        let all = (0..self.n * self.k).map(|i| value(i / self.k, i % self.k));
        let all = all.collect();
        (data, all)
    }

    /// `relu(sum + bias[n])`, with the number of rows open.
    fn build(&self, rng: &mut Rng) -> Built {
        let (batch, m) = self.rows;
        let (t, s) = self.types;
        let count = self.k.div_ceil(self.size);
        let a_bytes = rng.data(t, batch * m * self.k);
        let a: Vec<f64> = numbers(t, &a_bytes);
        let scales = rng.data(s, self.n * count);
        let zeros: Vec<u8> = (0..self.n * count).map(|_| rng.below(256) as u8).collect();
        let (data, w) = self.weight(rng, &numbers(s, &scales), &zeros, count);
        let bias = rng.data(DType::F32, self.n);
        let b = numbers(DType::F32, &bias);
        let place = |i: usize, k: usize| match self.turned {
            true => i / m * m * self.k + k * m + i % m,
            false => i * self.k + k,
        };
        let (mut want, mut scale) = (vec![], vec![]);
        for i in 0..batch * m {
            for n in 0..self.n {
                let products = (0..self.k).map(|k| a[place(i, k)] * w[n * self.k + k]);
                let products: Vec<f64> = products.collect();
                want.push((products.iter().sum::<f64>() + b[n]).max(0.0));
                scale.push(products.iter().map(|x| x.abs()).sum::<f64>() + b[n].abs());
            }
        }
        let mut e = Exprs::new();
        let sum = e.acc(0, DType::F32).unwrap();
        let along = Index::strided(vec![Size::ZERO, Size::ZERO, Size::ONE]);
        let mut args = vec![t, DType::U8, s];
        let mut buffers = vec![a_bytes, data, scales];
        if self.zeros {
            args.push(DType::U8);
            buffers.push(zeros);
        }
        let x = e.load(args.len() as u16, DType::F32, along).unwrap();
        args.push(DType::F32);
        buffers.push(bytes(DType::F32, &b));
        let value = e.binary(BinaryFn::Add, sum, x).unwrap();
        let zero = e.f32(0.0);
        let value = e.binary(BinaryFn::Max, value, zero).unwrap();
        let value = e.cast(t, value).unwrap();
        args.push(t);
        buffers.push(vec![0; want.len() * t.size().unwrap()]);
        let [n, k] = [self.n, self.k].map(|x| Size::Const(x as i64));
        let steps = match self.turned {
            true => [Size::ONE, Size::Param(1)],
            false => [k, Size::ONE],
        };
        let spec = MatMulSpec {
            exprs: e,
            args,
            params: 4,
            batch: vec![Size::Param(0)],
            m: Size::Param(1),
            n,
            k,
            acc: DType::F32,
            tf32: false,
            a: vec![Size::Param(2), steps[0], steps[1]],
            b_batch: vec![Size::ZERO],
            b: Columns::Blocks(Blocks {
                bits: self.bits as u8,
                size: self.size as i64,
                count: Size::Const(count as i64),
                zeros: self.zeros,
                aligned: !self.anywhere,
            }),
            nr: 16,
            out: Index::strided(vec![Size::Param(3), n, Size::ONE]),
            value,
        };
        spec.check().unwrap();
        let params = [batch, m, m * self.k, m * self.n].map(|x| x as i64);
        Built {
            spec: KernelSpec::MatMul(spec),
            buffers,
            params: params.to_vec(),
            want,
            scale,
        }
    }

    fn compare(&self, b: &Built, name: &str, got: &[u8]) {
        let t = self.types.0;
        let grid = match t {
            DType::F16 => 1e-3,
            DType::BF16 => 8e-3,
            _ => 1e-6,
        };
        let got_all = numbers(t, got);
        for (i, (&want, &scale)) in b.want.iter().zip(&b.scale).enumerate() {
            let off = (got_all[i] - want).abs();
            let allowed = 3e-7 * scale + grid * want.abs();
            assert!(
                off <= allowed,
                "{name} element {i}: {} not {want}; {self:?}",
                got_all[i]
            );
        }
        note(&b.spec, got, &bytes(t, &b.want));
    }
}

/// Runs the problems on both kinds of tensor cores; gives the forms that served.
fn check(problems: &[Problem], seed: u64) -> BTreeSet<String> {
    check_on(&["sm_80", "sm_90a"], problems, seed)
}

fn check_on(targets: &[&str], problems: &[Problem], seed: u64) -> BTreeSet<String> {
    let mut rng = Rng(seed);
    let built: Vec<Built> = problems.iter().map(|p| p.build(&mut rng)).collect();
    let kernels: Vec<(String, KernelSpec)> = (built.iter().enumerate())
        .map(|(i, b)| (format!("blocks{i}"), b.spec.clone()))
        .collect();
    let mut served = BTreeSet::new();
    for target in targets {
        let gpu = Gpu::on(target, &kernels);
        for (p, (b, (symbol, spec))) in problems.iter().zip(built.iter().zip(&kernels)) {
            gpu.run(
                symbol,
                spec,
                (&b.buffers, &b.params),
                &mut |name, got, status| {
                    assert_eq!(status, 0, "{name}: {p:?}");
                    p.compare(b, name, &got[got.len() - 1]);
                    served.insert(name.trim_start_matches(symbol.as_str()).to_string());
                },
            );
        }
    }
    served
}

const TYPES: [(DType, DType); 6] = [
    (DType::F16, DType::F16),
    (DType::BF16, DType::BF16),
    (DType::F32, DType::F32),
    (DType::F16, DType::F32),
    (DType::BF16, DType::F32),
    (DType::F32, DType::F16),
];

#[test]
fn blocks_match_in_every_type_and_width() {
    for bits in [2, 4, 8] {
        let of = |&t| Problem::of(5, 37, 288, bits, t);
        // What scales of another type take is the same for every width.
        let types = if bits == 4 { &TYPES[..] } else { &TYPES[..3] };
        let problems: Vec<Problem> = types.iter().map(of).collect();
        let served = check(&problems, bits as u64);
        let forms = ["", "_few", "_rows16", "_rows64"].map(String::from);
        assert_eq!(served, BTreeSet::from(forms), "{bits} bits");
    }
}

#[test]
fn blocks_match_with_tails_and_other_places() {
    let half = (DType::F16, DType::F16);
    let single = (DType::F32, DType::F32);
    let mut problems = vec![];
    for types in [half, single] {
        let plain = Problem::of(3, 21, 424, 4, types);
        problems.extend([
            // Several rows by batches, more than a block of rows.
            Problem {
                rows: (7, 21),
                size: 64,
                ..Problem::of(0, 140, 96, 4, types)
            },
            // The last block is not full; rows start anywhere.
            Problem {
                k: 421,
                ..plain.clone()
            },
            Problem {
                zeros: false,
                k: 40,
                ..plain.clone()
            },
            Problem {
                turned: true,
                k: 64,
                ..plain.clone()
            },
            // Blocks of which a run has several, or which share bytes with nothing.
            Problem {
                size: 16,
                k: 72,
                ..plain.clone()
            },
            Problem {
                size: 4,
                k: 18,
                bits: 2,
                ..plain.clone()
            },
            Problem {
                anywhere: true,
                k: 64,
                ..plain.clone()
            },
            // More products than all warps have at once.
            Problem {
                k: 2208,
                n: 9,
                size: 128,
                ..plain.clone()
            },
            // Products of halves that several blocks share: whole chunks, and others.
            Problem {
                k: 16400,
                ..plain.clone()
            },
            Problem { k: 16387, ..plain },
        ]);
    }
    assert_eq!(problems.iter().filter(|p| shares_k(p)).count(), 2);
    check(&problems, 5);
}

/// Whether every form for few rows has several blocks share k, and another one join them.
fn shares_k(p: &Problem) -> bool {
    let spec = p.build(&mut Rng(1)).spec;
    let target = GpuTarget::named("sm_90a").unwrap();
    let forms = cuda::emit(&spec, "one", &target).unwrap();
    let few = forms.iter().filter(|f| f.height.is_some());
    few.clone().count() > 0 && few.clone().all(|f| f.then.len() == 1)
}

/// Whether the forms for many rows are Hopper's own two.
fn multiplies_in_groups(p: &Problem) -> bool {
    let spec = p.build(&mut Rng(1)).spec;
    let target = GpuTarget::named("sm_90a").unwrap();
    let forms = cuda::emit(&spec, "one", &target).unwrap();
    let many =
        (forms.iter()).filter(|f| f.unit == Unit::Wgmma && f.body.contains("wgmma.mma_async"));
    many.count() == 2
}

#[test]
fn groups_of_warps_multiply_blocks() {
    let half = (DType::F16, DType::F16);
    let mut problems = vec![];
    for (bits, types) in [(2, half), (4, (DType::BF16, DType::BF16)), (8, half)] {
        // More parts than places in shared memory, rows and columns of several blocks.
        let plain = Problem::of(140, 150, 456, bits, types);
        problems.extend([
            // As many blocks as there are multiprocessors.
            Problem {
                zeros: bits != 2,
                ..Problem::of(
                    130,
                    66 * 256 - 7,
                    if bits == 4 { 72 } else { 40 },
                    bits,
                    types,
                )
            },
            // Blocks of which a part has less than one, or several.
            Problem {
                size: 96,
                ..plain.clone()
            },
            Problem {
                size: 64,
                zeros: false,
                types: (types.0, DType::F32),
                ..plain
            },
        ]);
    }
    assert!(problems.iter().all(multiplies_in_groups));
    let forms = ["", "_wide"].map(String::from);
    assert_eq!(check_on(&["sm_90a"], &problems, 7), BTreeSet::from(forms));
}
