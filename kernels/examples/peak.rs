//! How near to the machine's limits contractions and attention come, one thread:
//! `cargo run --release -p kiln-kernels --example peak [LEVEL] [bytes]`; with `bytes`
//! products of 8-bit integers, against the peak of `vpdpbusd`.

#[allow(dead_code, reason = "the tests use the rest")]
#[path = "../tests/compiled/gpu.rs"]
mod gpu;
#[path = "../tests/compiled/support.rs"]
#[allow(dead_code, reason = "the tests use the rest")]
mod support;

use kiln_codegen::CpuTarget;
use kiln_ir::{BinaryFn, DType, UnaryFn};
use kiln_kernels::attention::AttentionSpec;
use kiln_kernels::matmul::{Columns, MatMulSpec};
use kiln_kernels::*;
use std::time::Instant;
use support::{Rng, load};

const F: DType = DType::F32;

fn c(n: usize) -> Size {
    Size::Const(n as i64)
}

/// `gelu(A·B + bias)` or `A·B`.
fn contraction(
    m: usize,
    n: usize,
    k: usize,
    layout: &str,
    gelu: bool,
) -> (KernelSpec, Vec<Vec<u8>>) {
    let mut e = Exprs::new();
    let mut value = e.acc(0, F).unwrap();
    let mut args = vec![F, F];
    let mut rng = Rng(1);
    let nr = 64;
    let mut buffers = vec![rng.data(F, m * k), rng.data(F, n.next_multiple_of(nr) * k)];
    if gelu {
        let bias = e
            .load(2, F, Index::strided([Size::ZERO, Size::ONE]))
            .unwrap();
        value = e.binary(BinaryFn::Add, value, bias).unwrap();
        let (root, one) = (e.f32(std::f32::consts::FRAC_1_SQRT_2), e.f32(1.0));
        let scaled = e.binary(BinaryFn::Mul, value, root).unwrap();
        let erf = e.unary(UnaryFn::Erf, scaled).unwrap();
        let gate = e.binary(BinaryFn::Add, erf, one).unwrap();
        let half = e.f32(0.5);
        let gate = e.binary(BinaryFn::Mul, gate, half).unwrap();
        value = e.binary(BinaryFn::Mul, value, gate).unwrap();
        args.push(F);
        buffers.push(rng.data(F, n));
    }
    args.push(F);
    buffers.push(vec![0; m * n * 4]);
    let b = match layout {
        "packed" => Columns::Packed,
        "rows" => Columns::Strided {
            row: c(n),
            column: Size::ONE,
        },
        _ => Columns::Strided {
            row: Size::ONE,
            column: c(k),
        },
    };
    let spec = MatMulSpec {
        exprs: e,
        args,
        params: 0,
        batch: vec![],
        m: c(m),
        n: c(n),
        k: c(k),
        acc: F,
        tf32: false,
        a: vec![c(k), Size::ONE],
        b_batch: vec![],
        b,
        nr: nr as i64,
        out: Index::strided([c(n), Size::ONE]),
        value,
    };
    (KernelSpec::MatMul(spec), buffers)
}

/// `A·B` of bytes: the sums, or quantized again by a scale for each column.
fn bytes(m: usize, n: usize, k: usize, quantized: bool) -> (KernelSpec, Vec<Vec<u8>>) {
    let (a, b) = (DType::U8, DType::I8);
    let mut e = Exprs::new();
    let mut value = e.acc(0, DType::I32).unwrap();
    let mut rng = Rng(1);
    let nr = 64;
    let panels = n.next_multiple_of(nr) * k.next_multiple_of(4);
    let mut buffers = vec![rng.data(a, m * k), rng.data(b, panels)];
    let (mut args, mut out) = (vec![a, b], DType::I32);
    if quantized {
        let columns = Index::strided([Size::ZERO, Size::ONE]);
        let scale = e.load(2, F, columns).unwrap();
        value = e.cast(F, value).unwrap();
        value = e.binary(BinaryFn::Mul, value, scale).unwrap();
        let step = e.f32(0.37);
        value = e.binary(BinaryFn::Div, value, step).unwrap();
        value = e.unary(UnaryFn::Round, value).unwrap();
        let zero = e.f32(3.0);
        value = e.binary(BinaryFn::Add, value, zero).unwrap();
        value = e.cast(DType::U8, value).unwrap();
        out = DType::U8;
        args.push(F);
        buffers.push(rng.data(F, n));
    }
    args.push(out);
    buffers.push(vec![0; m * n * out.size().unwrap()]);
    let spec = MatMulSpec {
        exprs: e,
        args,
        params: 0,
        batch: vec![],
        m: c(m),
        n: c(n),
        k: c(k),
        acc: DType::I32,
        tf32: false,
        a: vec![c(k), Size::ONE],
        b_batch: vec![],
        b: Columns::Grouped,
        nr: nr as i64,
        out: Index::strided([c(n), Size::ONE]),
        value,
    };
    (KernelSpec::MatMul(spec), buffers)
}

fn attention(
    heads: usize,
    queries: usize,
    keys: usize,
    d: usize,
    block: i64,
) -> (KernelSpec, Vec<Vec<u8>>) {
    let mut e = Exprs::new();
    let raw = e.acc(0, F).unwrap();
    let scale = e.f32(1.0 / (d as f32).sqrt());
    let score = e.binary(BinaryFn::Mul, raw, scale).unwrap();
    let strides = |seq: usize| [c(heads * seq * d), c(d), c(heads * d), Size::ONE];
    let mut rng = Rng(2);
    let mut buffers: Vec<Vec<u8>> = [queries, keys, keys]
        .map(|s| rng.data(F, heads * s * d))
        .to_vec();
    buffers.push(vec![0; heads * queries * d * 4]);
    let spec = AttentionSpec {
        exprs: e,
        args: vec![F; 4],
        params: 0,
        batch: c(1),
        heads: c(heads),
        group: c(1),
        queries: c(queries),
        keys: c(keys),
        features: d as i64,
        values: d as i64,
        q: strides(queries),
        k: strides(keys),
        v: strides(keys),
        out: strides(queries),
        score,
        block,
    };
    (KernelSpec::Attention(spec), buffers)
}

/// Flops a second of fused multiply-adds in registers alone.
fn peak() -> f64 {
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f") {
            // SAFETY: the feature was just detected.
            return (0..40).map(|_| unsafe { peak_512() }).fold(0.0, f64::max);
        }
    }
    f64::NAN
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn peak_512() -> f64 {
    use std::arch::x86_64::*;
    let rounds = 300_000u64;
    let (x, y) = (_mm512_set1_ps(0.999), _mm512_set1_ps(1e-3));
    let mut acc = [y; 16];
    let start = Instant::now();
    for _ in 0..rounds {
        for a in &mut acc {
            *a = _mm512_fmadd_ps(*a, x, y);
        }
    }
    let t = start.elapsed().as_secs_f64();
    std::hint::black_box(acc);
    (rounds * 16 * 32) as f64 / t
}

/// Operations a second of products of bytes in registers alone.
fn peak_bytes() -> f64 {
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512vnni") {
            // SAFETY: the feature was just detected.
            return (0..40).map(|_| unsafe { peak_vnni() }).fold(0.0, f64::max);
        }
    }
    f64::NAN
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512vnni")]
fn peak_vnni() -> f64 {
    use std::arch::x86_64::*;
    let rounds = 300_000u64;
    let (x, y) = (_mm512_set1_epi8(3), _mm512_set1_epi8(-5));
    let mut acc = [y; 16];
    let start = Instant::now();
    for _ in 0..rounds {
        for a in &mut acc {
            *a = _mm512_dpbusd_epi32(*a, x, y);
        }
    }
    let t = start.elapsed().as_secs_f64();
    std::hint::black_box(acc);
    (rounds * 16 * 128) as f64 / t
}

type Case = (String, KernelSpec, Vec<Vec<u8>>);

fn byte_cases() -> Vec<Case> {
    let mut cases = vec![];
    for (n, k) in [(384, 384), (1536, 384), (384, 1536)] {
        for m in [1, 16, 128, 1024] {
            for quantized in [false, true] {
                let (spec, buffers) = bytes(m, n, k, quantized);
                let what = if quantized { " quantized" } else { "" };
                cases.push((format!("{m}x{n}x{k} bytes{what}"), spec, buffers));
            }
        }
    }
    let (spec, buffers) = bytes(1024, 1024, 1024, false);
    cases.push(("1024x1024x1024 bytes".into(), spec, buffers));
    cases
}

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let of_bytes = words.iter().any(|w| w == "bytes");
    let target = match words.iter().find(|w| *w != "bytes") {
        Some(name) => CpuTarget::by_name(name),
        None => CpuTarget::host(),
    };
    let Some(target) = target else {
        return eprintln!("no such CPU level");
    };
    match of_bytes {
        true => report(&target, byte_cases(), peak_bytes()),
        false => report(&target, float_cases(), peak()),
    }
}

fn float_cases() -> Vec<Case> {
    let mut cases: Vec<Case> = vec![];
    for (m, n, k) in [
        (128, 384, 384),
        (128, 1536, 384),
        (128, 384, 1536),
        (512, 512, 512),
        (1024, 1024, 1024),
        (1000, 1000, 1000),
        (128, 4096, 4096),
    ] {
        for (layout, gelu) in [
            ("packed", false),
            ("packed", true),
            ("rows", false),
            ("columns", false),
        ] {
            if layout != "packed" && (k != 512) {
                continue;
            }
            let (spec, buffers) = contraction(m, n, k, layout, gelu);
            let name = format!("{m}x{n}x{k} {layout}{}", if gelu { " gelu" } else { "" });
            cases.push((name, spec, buffers));
        }
    }
    for (n, k) in [(384, 384), (4096, 4096)] {
        for m in [1, 4, 16] {
            let (spec, buffers) = contraction(m, n, k, "packed", false);
            cases.push((format!("{m}x{n}x{k} packed"), spec, buffers));
        }
    }
    for (heads, queries, keys, d, block) in [
        (12, 128, 128, 32, 64),
        (12, 512, 512, 64, 64),
        (12, 512, 512, 64, 16),
        (8, 1, 1024, 64, 16),
    ] {
        let (spec, buffers) = attention(heads, queries, keys, d, block);
        cases.push((
            format!("attention {heads}h {queries}q {keys}k d{d} block {block}"),
            spec,
            buffers,
        ));
    }
    cases
}

fn report(target: &CpuTarget, cases: Vec<Case>, peak: f64) {
    println!("{}, peak {:.0} GF/s", target.name, peak / 1e9);
    let kernels: Vec<(String, KernelSpec)> = (0..)
        .zip(&cases)
        .map(|(i, c)| (format!("k{i}"), c.1.clone()))
        .collect();
    let start = Instant::now();
    let loaded = load(&kernels, target);
    println!(
        "{} kernels compiled in {:.2} s",
        kernels.len(),
        start.elapsed().as_secs_f64()
    );
    for ((name, spec, mut buffers), (symbol, _)) in cases.into_iter().zip(&kernels) {
        let (flops, bytes) = spec.cost(&[]);
        let value = |d: kiln_ir::Dim| d.eval(&kiln_ir::Binding::new()).unwrap_or(0) as f64;
        let (flops, bytes) = (value(flops), value(bytes));
        let mut best = f64::INFINITY;
        let runs = ((2e9 / flops) as usize).clamp(5, 400);
        loaded.time(symbol, &spec, &mut buffers, runs, &mut |t| {
            best = best.min(t)
        });
        println!(
            "{name:45} {:9.1} us {:7.1} GF/s {:5.2} of peak {:6.1} GB/s",
            best * 1e6,
            flops / best / 1e9,
            flops / best / peak,
            bytes / best / 1e9
        );
    }
}
