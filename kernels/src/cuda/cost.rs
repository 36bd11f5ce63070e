//! How long a launch should take: the roofline of a target's chip, and what waves of blocks
//! leave idle.
//!
//! ```text
//! time = max(arithmetic / (peak · share of the chip at work), bytes / bandwidth) + launch
//! ```
//! and, of a form of several passes, the sum of theirs.
//!
//! A prediction, to be held against measurements: rates are the data sheet's, what a
//! product's kernel reaches of its unit's peak is a constant of its kind.

use super::gemm::Source;
use super::{GpuKernel, Unit};
use crate::KernelSpec;
use kiln_codegen::GpuTarget;
use kiln_ir::{Binding, DType, Dim, DimError};
use serde::Serialize;

/// Seconds from a launch to the first instruction, of a stream that is busy.
const LAUNCH: f64 = 3e-6;

/// Registers of a thread of a kernel whose assembler was not asked.
const REGISTERS: u32 = 128;

/// Parts of bandwidth and of f32's peak that kernels reach at best.
const BANDWIDTH: f64 = 0.92;
const F32_SHARE: f64 = 0.75;

/// Parts of the tensor cores' peak that `wgmma` and `mma.sync` reach at best; Hopper's
/// cores take the older instruction at less.
const WGMMA_SHARE: f64 = 0.75;
const MMA_SHARE: f64 = 0.7;
const MMA_ON_HOPPER: f64 = 0.55;

/// Part of bandwidth that products of few rows reach at best: their loops are short, and
/// begin with a wait.
const SKINNY_BANDWIDTH: f64 = 0.85;

/// What a launch is predicted to take, and why.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Prediction {
    /// Seconds.
    pub seconds: f64,
    /// Arithmetic operations.
    pub flops: f64,
    /// Bytes from and to device memory at least.
    pub bytes: f64,
    /// Blocks, and rounds in which the chip works them off.
    pub blocks: f64,
    /// Rounds, begun ones whole.
    pub waves: f64,
    /// Operations a second that its unit reaches at best.
    pub rate: f64,
    /// Whether arithmetic, not memory, takes longer.
    pub by_arithmetic: bool,
}

/// What tensor cores multiply.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Factors {
    /// f16 or bf16.
    #[default]
    Halves,
    /// f32 rounded to tf32.
    Tf32,
    /// Floats of eight bits.
    Eights,
    /// Integers of eight bits.
    Bytes,
}

/// What a launch asks of a chip.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Load {
    /// Arithmetic operations.
    pub flops: f64,
    /// Bytes from and to device memory at least.
    pub bytes: f64,
    /// Blocks that have work.
    pub blocks: f64,
    /// Threads of a block.
    pub threads: u32,
    /// Bytes of shared memory of a block.
    pub shared: u32,
    /// What multiplies.
    pub unit: Unit,
    /// What it multiplies, if tensor cores do.
    pub factors: Factors,
    /// Of a form for few rows: the share of the rows that it multiplies that exist.
    pub rows: Option<f64>,
}

/// Threads that keep a multiprocessor's tensor cores busy by `wgmma`: two groups of four
/// warps, of which one prepares what it multiplies next while the other one's products are
/// under way.
const WGMMA_THREADS: u32 = 256;

/// Blocks that a multiprocessor holds, as far as they add to what it does at once.
fn resident(load: &Load, target: &GpuTarget) -> u32 {
    let threads = load.threads.max(1);
    let by_threads = target.threads / threads;
    let by_registers = target.registers / (threads * REGISTERS);
    let by_shared = match load.shared {
        0 => 32,
        bytes => target.shared_per_multiprocessor / (bytes + 1024),
    };
    let useful = match load.unit {
        Unit::Wgmma => WGMMA_THREADS / threads,
        Unit::Lanes | Unit::Mma => 32,
    };
    (by_threads.min(by_registers).min(by_shared).min(useful)).clamp(1, 32)
}

/// Operations a second that the load's unit reaches at best.
fn rate(load: &Load, target: &GpuTarget) -> f64 {
    let peak = match load.factors {
        Factors::Halves => target.f16_peak,
        Factors::Tf32 => target.tf32_peak,
        Factors::Eights => target.f8_peak,
        Factors::Bytes => target.i8_peak,
    };
    match load.unit {
        Unit::Lanes => target.f32_peak * F32_SHARE,
        Unit::Mma if target.is_hopper() => peak * MMA_ON_HOPPER,
        Unit::Mma => peak * MMA_SHARE,
        Unit::Wgmma => peak * WGMMA_SHARE,
    }
}

/// Predicts launches in turn, the passes of a form, on the target's chip. Blocks, waves, rate
/// and what binds are the first one's.
pub fn time(passes: &[Load], target: &GpuTarget) -> Prediction {
    let (first, then) = passes.split_first().expect("a form has a pass");
    let mut all = one(first, target);
    for next in then {
        let p = one(next, target);
        all.seconds += p.seconds;
        all.flops += p.flops;
        all.bytes += p.bytes;
    }
    all
}

/// Predicts a launch.
fn one(load: &Load, target: &GpuTarget) -> Prediction {
    let at_once = f64::from(target.multiprocessors * resident(load, target));
    let waves = (load.blocks / at_once).ceil().max(1.0);
    // Of the last round part of the chip rests; a first one that is not full is all there is.
    let busy = (load.blocks / (waves * at_once)).clamp(1e-6, 1.0);
    let mut rate = rate(load, target);
    let mut bandwidth = BANDWIDTH;
    if let Some(share) = load.rows {
        rate *= share.min(1.0);
        bandwidth = SKINNY_BANDWIDTH;
    }
    // Half of the multiprocessors keep the memory busy.
    let drawing = (2.0 * load.blocks / f64::from(target.multiprocessors)).min(1.0);
    let (compute, memory) = (
        load.flops / (rate * busy),
        load.bytes / (target.bandwidth * bandwidth * drawing.max(1e-6)),
    );
    Prediction {
        seconds: LAUNCH + compute.max(memory),
        flops: load.flops,
        bytes: load.bytes,
        blocks: load.blocks,
        waves,
        rate,
        by_arithmetic: compute >= memory,
    }
}

/// Of a form for few rows: how many there are, over the launch's parameters, and how many
/// a block multiplies whether they exist or not.
pub fn few_rows(spec: &KernelSpec, kernel: &GpuKernel) -> Option<(Dim, i64)> {
    match (spec, kernel.height) {
        (KernelSpec::MatMul(m), Some(height)) => Some((m.dims()[0].clone(), height)),
        _ => None,
    }
}

/// What a kernel multiplies where tensor cores do.
pub fn factors(spec: &KernelSpec) -> Factors {
    let eights = |t: &DType| t.is_float() && t.bits() == 8;
    match spec {
        KernelSpec::MatMul(m) if m.acc == DType::I32 => Factors::Bytes,
        KernelSpec::MatMul(m) if m.tf32 => Factors::Tf32,
        KernelSpec::MatMul(m) if m.args[..2].iter().all(eights) => Factors::Eights,
        _ => Factors::Halves,
    }
}

/// Predicts a launch with these parameters: all passes of its form, one after the other. An
/// error where a size has no value.
pub fn predict(
    spec: &KernelSpec,
    kernel: &GpuKernel,
    params: &[i64],
    target: &GpuTarget,
) -> Result<Prediction, DimError> {
    let dims: Vec<Dim> = params.iter().map(|&p| Dim::from(p)).collect();
    let mut passes = vec![pass(spec, kernel, spec.cost(&dims), params)?];
    for next in &kernel.then {
        passes.push(pass(spec, next, (Dim::ZERO, Dim::ZERO), params)?);
    }
    Ok(time(&passes, target))
}

/// What one pass asks of a chip: this much arithmetic and so many bytes if it does not say
/// itself.
fn pass(
    spec: &KernelSpec,
    kernel: &GpuKernel,
    work: (Dim, Dim),
    params: &[i64],
) -> Result<Load, DimError> {
    let names = (0..).map(|i| format!("p{i}").into());
    let binding: Binding = names.zip(params.iter().copied()).collect();
    let value = |d: &Dim| d.eval(&binding).map(|n| n as f64);
    let (flops, bytes) = kernel.work.as_ref().unwrap_or(&work);
    let mut blocks = value(&kernel.grid[0])? * value(&kernel.grid[1])? * value(&kernel.grid[2])?;
    if let Some(parts) = &kernel.parts {
        blocks = value(parts)? * f64::from(kernel.cluster.iter().product::<u32>());
    }
    let rows = match few_rows(spec, kernel) {
        Some((rows, height)) => Some(value(&rows)? / height as f64),
        None => None,
    };
    Ok(Load {
        flops: value(flops)?,
        bytes: value(bytes)?,
        blocks,
        threads: kernel.block.iter().product(),
        shared: kernel.shared,
        unit: kernel.unit,
        factors: factors(spec),
        rows,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::LoopNest;
    use crate::attention::AttentionSpec;
    use crate::cuda::{blocks_wide, tail};
    use crate::cuda::{emit, form};
    use crate::expr::{Exprs, Index, Size};
    use crate::matmul::{Blocks, Columns, MatMulSpec};
    use kiln_codegen::ptx::Half;
    use kiln_ir::{BinaryFn, CompareFn};

    /// The same with weights of four bits in blocks of 128.
    fn quantized(m: i64, n: i64, k: i64) -> MatMulSpec {
        let KernelSpec::MatMul(mut spec) = product(m, n, k) else {
            unreachable!("it is a product");
        };
        spec.args = vec![DType::BF16, DType::U8, DType::BF16, DType::BF16];
        spec.b = Columns::Blocks(Blocks {
            bits: 4,
            size: 128,
            count: Size::Const(k / 128),
            zeros: false,
            aligned: true,
        });
        spec
    }

    #[test]
    fn many_rows_of_quantized_blocks_gain_by_groups_of_warps() {
        let target = GpuTarget::sm_90a();
        for (m, blocks) in [(512, 128.0), (4096, 512.0)] {
            let product = quantized(m, 4096, 4096);
            let axes = vec![product.m, product.n];
            let (exprs, out) = (&product.exprs, (&product.out, product.value));
            let nest: LoopNest = tail::nest(exprs, &product.args, 0, axes, out);
            let before = blocks_wide::emit(&product, Half::Bf16, &nest, "k", &target);
            let before = GpuKernel {
                unit: Unit::Mma,
                ..before
            };
            let spec = KernelSpec::MatMul(product);
            let forms = emit(&spec, "k", &target).unwrap();
            let now = predict(&spec, form(&forms, &[]).unwrap(), &[], &target).unwrap();
            let before = predict(&spec, &before, &[], &target).unwrap();
            assert!(now.blocks == blocks && now.by_arithmetic, "{now:?}");
            assert!(now.seconds < 0.8 * before.seconds, "{now:?} {before:?}");
            assert!(now.flops / now.seconds < target.f16_peak);
        }
    }

    fn product(m: i64, n: i64, k: i64) -> KernelSpec {
        let mut exprs = Exprs::new();
        let sum = exprs.acc(0, DType::F32).unwrap();
        let value = exprs.cast(DType::BF16, sum).unwrap();
        KernelSpec::MatMul(MatMulSpec {
            exprs,
            args: vec![DType::BF16; 3],
            params: 0,
            batch: vec![],
            m: Size::Const(m),
            n: Size::Const(n),
            k: Size::Const(k),
            acc: DType::F32,
            tf32: false,
            a: vec![Size::Const(k), Size::ONE],
            b_batch: vec![],
            b: Columns::Strided {
                row: Size::ONE,
                column: Size::Const(k),
            },
            nr: 64,
            out: Index::strided([Size::Const(n), Size::ONE]),
            value,
        })
    }

    #[test]
    fn large_products_are_bound_by_arithmetic_and_single_rows_by_memory() {
        let target = GpuTarget::sm_90a();
        let predicted = |m| {
            let spec = product(m, 4096, 4096);
            let forms = emit(&spec, "k", &target).unwrap();
            predict(&spec, form(&forms, &[]).unwrap(), &[], &target).unwrap()
        };
        let (large, row, eight) = (predicted(4096), predicted(1), predicted(8));
        // Eight rows read B once; all multiprocessors draw.
        assert!(row.blocks == 256.0 && eight.blocks == 256.0 && !eight.by_arithmetic);
        assert!(eight.seconds < 1.1 * row.seconds, "{eight:?}");
        let reading = row.bytes / target.bandwidth;
        assert!(row.seconds - LAUNCH < 1.2 * reading, "{row:?}");
        assert!(large.by_arithmetic && large.waves == 4.0, "{large:?}");
        assert_eq!(large.flops, 2.0 * 4096f64.powi(3));
        assert!(!row.by_arithmetic && row.waves == 1.0, "{row:?}");
        assert!(row.seconds < large.seconds);
        // Nothing is predicted to be faster than the data sheet allows.
        for p in [large, row, eight] {
            assert!(p.flops / p.seconds < target.f16_peak);
            assert!(p.bytes / p.seconds < target.bandwidth);
        }
    }

    /// Attention of bf16, head after head, of a causal mask or of none.
    fn attention(causal: bool, [heads, group, queries, keys]: [i64; 4]) -> KernelSpec {
        let mut exprs = Exprs::new();
        let mut score = exprs.acc(0, DType::F32).unwrap();
        if causal {
            let (query, key) = (exprs.axis(2), exprs.axis(3));
            let before = exprs.i64(keys - queries);
            let last = exprs.binary(BinaryFn::Add, query, before).unwrap();
            let seen = exprs.compare(CompareFn::Le, key, last).unwrap();
            let hidden = exprs.f32(f32::NEG_INFINITY);
            score = exprs.select(seen, score, hidden).unwrap();
        }
        let rows =
            |heads: i64, many: i64| [heads * many * 128, many * 128, 128, 1].map(Size::Const);
        KernelSpec::Attention(AttentionSpec {
            exprs,
            args: vec![DType::BF16; 4],
            params: 0,
            batch: Size::ONE,
            heads: Size::Const(heads),
            group: Size::Const(group),
            queries: Size::Const(queries),
            keys: Size::Const(keys),
            features: 128,
            values: 128,
            q: rows(heads, queries),
            k: rows(heads / group, keys),
            v: rows(heads / group, keys),
            out: rows(heads, queries),
            score,
            block: if queries > 16 { 64 } else { 16 },
        })
    }

    fn attends(causal: bool, sizes: [i64; 4]) -> Prediction {
        let (spec, target) = (attention(causal, sizes), GpuTarget::sm_90a());
        let forms = emit(&spec, "k", &target).unwrap();
        predict(&spec, form(&forms, &[]).unwrap(), &[], &target).unwrap()
    }

    #[test]
    fn a_causal_attention_does_half_of_a_whole_one() {
        let sizes = [32, 8, 4096, 4096];
        let (causal, whole) = (attends(true, sizes), attends(false, sizes));
        assert_eq!(causal.blocks, 1024.0);
        assert_eq!(2.0 * causal.flops, whole.flops * 2049.0 / 2048.0);
        assert!(causal.by_arithmetic && whole.by_arithmetic);
        let share = (causal.seconds - LAUNCH) / (whole.seconds - LAUNCH);
        assert!((share - 0.5).abs() < 0.01, "{share}");
    }

    #[test]
    fn a_step_of_decoding_reads_keys_once_for_heads_that_share_them() {
        let (shared, own) = (
            attends(true, [32, 4, 1, 8192]),
            attends(true, [32, 1, 1, 8192]),
        );
        let kept = 2.0 * 2.0 * 128.0 * 8192.0 * 8.0;
        // The last query sees all keys; scratch is a few percent.
        assert!(
            shared.bytes > kept && shared.bytes < 1.15 * kept,
            "{shared:?}"
        );
        assert!(own.bytes > 4.0 * kept && !own.by_arithmetic && !shared.by_arithmetic);
        assert!(shared.blocks == 256.0 && own.blocks == 1024.0);
    }
}
