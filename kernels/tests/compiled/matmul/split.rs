//! Products of few rows whose k several blocks share, on the interpreter.

use super::{Built, Epilogue, Layout, Problem};
use crate::gpu::Gpu;
use crate::support::Rng;
use kiln_codegen::GpuTarget;
use kiln_ir::DType::{self, BF16, F16, F32, I8, I32, U8};
use kiln_kernels::cuda::{self, cost};
use kiln_kernels::{KernelSpec, Size};

const TARGETS: [&str; 2] = ["sm_80", "sm_90a"];

/// Types of A and B, of the sums, and whether numbers are of tf32.
const TYPES: [(DType, DType, DType, bool); 5] = [
    (F16, F16, F32, false),
    (BF16, BF16, F32, false),
    (F32, F32, F32, true),
    (I8, I8, I32, false),
    (U8, I8, I32, false),
];

fn problem((a, b, acc, tf32): (DType, DType, DType, bool), size: [usize; 3]) -> Problem {
    let [m, n, k] = size;
    Problem {
        a,
        b,
        acc,
        tf32,
        out: acc,
        layout: Layout::Transposed,
        ..Problem::plain(m, n, k)
    }
}

/// Makes the number of rows a launch parameter.
fn open_rows(built: &mut Built, m: usize) {
    let KernelSpec::MatMul(spec) = &mut built.case.spec else {
        unreachable!("it is a product");
    };
    (spec.m, spec.params) = (Size::Param(0), 1);
    built.case.params = vec![m as i64];
}

/// The forms that have several passes.
fn split(spec: &KernelSpec, target: &str) -> Vec<String> {
    let target = GpuTarget::named(target).unwrap();
    let forms = cuda::emit(spec, "mm", &target).unwrap();
    let split = forms.into_iter().filter(|f| !f.then.is_empty());
    split.map(|f| f.entry).collect()
}

#[test]
fn parts_of_a_long_k_are_joined() {
    let mut rng = Rng(23);
    let mut problems = vec![];
    for types in TYPES {
        let k = if types.0.bits() == 8 { 16400 } else { 8208 };
        let epilogue = |of| if types.2 == F32 { of } else { Epilogue::Plain };
        problems.extend([
            // The last part is not full, columns are no whole runs.
            problem(types, [3, 23, k]),
            // Rows start anywhere; several blocks of rows join.
            Problem {
                epilogue: epilogue(Epilogue::Bias),
                ..problem(types, [21, 36, k - 15])
            },
            Problem {
                epilogue: epilogue(Epilogue::Residual),
                ..problem(types, [40, 9, k - 16])
            },
        ]);
    }
    let mut built: Vec<_> = problems.iter().map(|p| p.build(&mut rng)).collect();
    // Of every three the last one's number of rows is known.
    for (p, b) in problems.iter().zip(&mut built).filter(|(p, _)| p.m < 40) {
        open_rows(b, p.m);
    }
    let kernels: Vec<_> = (built.iter().enumerate())
        .map(|(i, b)| (format!("mm{i}"), b.case.spec.clone()))
        .collect();
    for target in TARGETS {
        let gpu = Gpu::on(target, &kernels);
        for ((p, b), (symbol, spec)) in problems.iter().zip(&built).zip(&kernels) {
            assert!(!split(spec, target).is_empty(), "{target}: {p:?}");
            let launch = (&b.case.buffers[..], &b.case.params[..]);
            gpu.run(symbol, spec, launch, &mut |name, buffers, status| {
                assert_eq!(status, 0, "{name}");
                p.compare(b, &format!("{name}, {target}"), buffers.last().unwrap());
            });
        }
    }
}

/// A row has the same bits among 15 and among 63 others, whose block another form writes.
#[test]
fn rows_of_parts_do_not_depend_on_how_many_there_are() {
    let (n, k) = (20, 8208);
    let row = Rng(3).data(F16, k);
    let built: Vec<_> = ([1, 16, 64].iter())
        .map(|&m| {
            let mut built = problem(TYPES[0], [m, n, k]).build(&mut Rng(4));
            built.case.buffers[0] = row.repeat(m);
            built.case.buffers[1] = Rng(5).data(F16, n * k);
            open_rows(&mut built, m);
            built
        })
        .collect();
    let kernels: Vec<_> = (built.iter().enumerate())
        .map(|(i, b)| (format!("mm{i}"), b.case.spec.clone()))
        .collect();
    for target in TARGETS {
        assert_eq!(split(&kernels[0].1, target), ["mm_rows16", "mm_rows64"]);
        let gpu = Gpu::on(target, &kernels);
        let mut rows: Vec<Vec<u8>> = vec![];
        for (b, (symbol, spec)) in built.iter().zip(&kernels) {
            let launch = (&b.case.buffers[..], &b.case.params[..]);
            gpu.run(symbol, spec, launch, &mut |name, buffers, status| {
                assert_eq!(status, 0, "{name}");
                if name.contains("_rows") {
                    rows.extend(buffers.last().unwrap().chunks(4 * n).map(<[u8]>::to_vec));
                }
            });
        }
        assert_eq!(rows.len(), 2 * (1 + 16) + 64);
        assert!(rows.iter().all(|r| r == &rows[0]), "{target}");
    }
}

/// Parts are taken where they are predicted to gain: few blocks, and enough to read.
#[test]
fn parts_are_taken_where_they_gain() {
    let target = GpuTarget::named("sm_90a").unwrap();
    for ([m, n, k], parts) in [
        ([64, 1024, 16384], Some(8)),
        ([64, 4096, 16384], None),
        ([64, 1024, 2048], None),
        ([16, 256, 16384], Some(8)),
        ([16, 256, 4096], None),
        ([16, 4096, 4096], None),
        ([1, 1024, 16384], None),
    ] {
        let p = problem(TYPES[0], [m, n, 8]);
        let KernelSpec::MatMul(mut spec) = p.build(&mut Rng(1)).case.spec else {
            unreachable!("it is a product");
        };
        spec.k = Size::Const(k as i64);
        let spec = KernelSpec::MatMul(spec);
        let forms = cuda::emit(&spec, "mm", &target).unwrap();
        let form = cuda::form(&forms, &[]).unwrap();
        assert_eq!(
            form.grid[2].as_const(),
            Some(parts.unwrap_or(1)),
            "{m} {n} {k}"
        );
        assert_eq!(form.then.len(), usize::from(parts.is_some()));
        let time = cost::predict(&spec, form, &[], &target).unwrap();
        assert!(time.seconds > 3e-6 * (1 + form.then.len()) as f64);
    }
}
