//! Products of tf32 and of f8 on tensor cores, for every target that has them.

use super::{Epilogue, Layout, Problem};
use crate::gpu::Gpu;
use crate::support::Rng;
use kiln_codegen::GpuTarget;
use kiln_ir::DType;
use kiln_kernels::cuda;

/// Types of A and B, and the name that instructions have for them.
const TYPES: [(DType, DType, &str); 4] = [
    (DType::F32, DType::F32, "tf32.tf32"),
    (DType::F8E4M3FN, DType::F8E4M3FN, "e4m3.e4m3"),
    (DType::F8E4M3FN, DType::F8E5M2, "e4m3.e5m2"),
    (DType::F8E5M2, DType::F8E4M3FN, "e5m2.e4m3"),
];

/// Rows, columns and products: few rows and many, tails along each axis, one product,
/// sums over many parts.
const SIZES: [(usize, usize, usize); 9] = [
    (1, 24, 40),
    (16, 33, 260),
    (40, 17, 1100),
    (100, 70, 36),
    (130, 129, 72),
    (129, 8, 1),
    (257, 40, 332),
    (70, 264, 16),
    (65, 7, 0),
];

fn problems(a: DType, b: DType, rng: &mut Rng) -> Vec<Problem> {
    let one = |(m, n, k), rng: &mut Rng| Problem {
        a,
        b,
        tf32: a == DType::F32,
        out: rng.pick(&[DType::F32, DType::F16]),
        layout: Layout::Transposed,
        open: rng.below(2) == 0,
        epilogue: rng.pick(&[Epilogue::Plain, Epilogue::Bias, Epilogue::Residual]),
        ..Problem::plain(m, n, k)
    };
    let mut all: Vec<Problem> = SIZES.iter().map(|&size| one(size, rng)).collect();
    for shared in [false, true] {
        all.push(Problem {
            batch: vec![2],
            shared,
            ..one((67, 24, 48), rng)
        });
    }
    all
}

#[test]
fn tensor_cores_multiply_narrow_floats() {
    let mut rng = Rng(41);
    for (a, b, name) in TYPES {
        let problems = problems(a, b, &mut rng);
        let built: Vec<_> = problems.iter().map(|p| p.build(&mut rng)).collect();
        let kernels: Vec<_> = (0..)
            .zip(&built)
            .map(|(i, b)| (format!("case{i}"), b.case.spec.clone()))
            .collect();
        for target in GpuTarget::all() {
            let serves = a == DType::F32 || target.f8_peak > 0.0;
            let gpu = Gpu::on(&target.name, &kernels);
            for ((p, b), (symbol, spec)) in problems.iter().zip(&built).zip(&kernels) {
                for form in cuda::emit(spec, symbol, &target).unwrap() {
                    let multiplies = form.body.contains(name);
                    assert!(multiplies == serves, "{}: {p:?}", form.entry);
                }
                let launch = (&b.case.buffers[..], &b.case.params[..]);
                let mut ran = 0;
                gpu.run(symbol, spec, launch, &mut |name, buffers, status| {
                    assert_eq!(status, 0, "{name}");
                    p.compare(
                        b,
                        &format!("{name}, {}", target.name),
                        buffers.last().unwrap(),
                    );
                    ran += 1;
                });
                assert!(ran > 0, "{symbol}: {p:?}");
            }
        }
    }
}
