//! Products that read tiles, on Hopper.

use super::{Epilogue, Layout, Problem};
use crate::gpu::Gpu;
use crate::support::Rng;
use kiln_ir::DType;

/// A product that tiles serve, of a random type, with an open or a known size.
fn problem(rng: &mut Rng, m: usize, n: usize, k: usize) -> Problem {
    let of = rng.pick(&[DType::F16, DType::BF16, DType::F32]);
    Problem {
        a: of,
        b: of,
        tf32: of == DType::F32,
        out: rng.pick(&[DType::F32, of]),
        layout: Layout::Transposed,
        open: rng.below(2) == 0,
        epilogue: rng.pick(&[Epilogue::Plain, Epilogue::Bias, Epilogue::Residual]),
        ..Problem::plain(m, n, k)
    }
}

#[test]
fn tiles_compute_what_plain_copies_do() {
    let mut rng = Rng(31);
    let shapes = [
        // Rows and columns that end inside a part; one part of products, several, a tail.
        (129, 8, 64),
        (300, 100, 136),
        (257, 264, 8),
        (512, 130, 72),
        // More rounds than the ring has places.
        (140, 40, 448),
    ];
    let mut problems: Vec<Problem> = (shapes.iter())
        .map(|&(m, n, k)| problem(&mut rng, m, n, k))
        .collect();
    // Batches: their own B, of two axes; one B, whose batch is rows.
    let of = |batch: &[usize], shared, open, m, rng: &mut Rng| Problem {
        batch: batch.to_vec(),
        shared,
        open,
        ..problem(rng, m, 40, 72)
    };
    problems.push(of(&[2, 2], false, false, 130, &mut rng));
    problems.push(of(&[3], false, true, 160, &mut rng));
    problems.push(of(&[2, 3], true, false, 50, &mut rng));
    problems.push(of(&[3, 2], true, true, 45, &mut rng));
    // Floats of eight bits, of both kinds.
    for (b, (m, n, k)) in [
        (DType::F8E4M3FN, (150, 136, 384)),
        (DType::F8E5M2, (300, 40, 528)),
    ] {
        problems.push(Problem {
            a: DType::F8E4M3FN,
            b,
            tf32: false,
            out: DType::F32,
            ..problem(&mut rng, m, n, k)
        });
    }
    // Bytes of every sign, their sums exact.
    let signs = [DType::I8, DType::U8];
    for (i, (m, n, k)) in [
        (150, 40, 128),
        (300, 72, 272),
        (256, 136, 16),
        (131, 24, 640),
    ]
    .into_iter()
    .enumerate()
    {
        problems.push(Problem {
            layout: Layout::Transposed,
            open: i % 2 == 0,
            ..Problem::bytes(signs[i / 2], signs[i % 2], m, n, k)
        });
    }
    let built: Vec<_> = problems.iter().map(|p| p.build(&mut rng)).collect();
    let kernels: Vec<_> = (0..)
        .zip(&built)
        .map(|(i, b)| (format!("case{i}"), b.case.spec.clone()))
        .collect();
    let gpu = Gpu::on("sm_90a", &kernels);
    for ((p, b), (symbol, spec)) in problems.iter().zip(&built).zip(&kernels) {
        let mut seen: Vec<(String, Vec<u8>)> = vec![];
        let launch = (&b.case.buffers[..], &b.case.params[..]);
        gpu.run(symbol, spec, launch, &mut |name, buffers, status| {
            assert_eq!(status, 0, "{name}");
            let result = buffers.last().unwrap();
            p.compare(b, name, result);
            seen.push((name.into(), result.clone()));
        });
        // Both forms for many rows ran, and add in the same order.
        let names: Vec<&str> = seen.iter().map(|(name, _)| &name[..]).collect();
        assert_eq!(names, [symbol, &format!("{symbol}_tiles")], "{p:?}");
        assert!(seen[0].1 == seen[1].1, "other bits: {p:?}");
    }
}

#[test]
fn rows_that_tiles_cannot_read_are_copied_plainly() {
    let mut rng = Rng(5);
    // Rows of 66 elements do not start at multiples of 16 bytes; one block has few rows.
    for (m, k) in [(200, 66), (100, 64)] {
        let p = Problem {
            open: true,
            ..problem(&mut rng, m, 24, k)
        };
        let b = p.build(&mut rng);
        let kernels = [("case".to_string(), b.case.spec.clone())];
        let gpu = Gpu::on("sm_90a", &kernels);
        let launch = (&b.case.buffers[..], &b.case.params[..]);
        let mut names = vec![];
        gpu.run("case", &b.case.spec, launch, &mut |name, buffers, _| {
            p.compare(&b, name, buffers.last().unwrap());
            names.push(name.to_string());
        });
        assert_eq!(names, ["case"]);
    }
}

#[test]
fn few_rows_are_read_as_they_lie() {
    let mut rng = Rng(17);
    let mut problems = vec![];
    // Every height, k that ends inside a chunk, a span and a turn, rows that are not aligned.
    for (m, n, k) in [
        (1, 40, 32),
        (16, 17, 264),
        (17, 33, 2048 + 24),
        (30, 64, 7),
        (33, 100, 530),
        (64, 8, 1100),
        (5, 24, 0),
    ] {
        problems.push(problem(&mut rng, m, n, k));
        problems.push(Problem {
            layout: Layout::Transposed,
            open: rng.below(2) == 0,
            ..Problem::bytes(DType::U8, DType::I8, m, n, k)
        });
    }
    for shared in [false, true] {
        problems.push(Problem {
            batch: vec![2, 2],
            shared,
            open: shared,
            ..problem(&mut rng, 9, 20, 72)
        });
    }
    let built: Vec<_> = problems.iter().map(|p| p.build(&mut rng)).collect();
    let kernels: Vec<_> = (0..)
        .zip(&built)
        .map(|(i, b)| (format!("case{i}"), b.case.spec.clone()))
        .collect();
    let gpu = Gpu::on("sm_80", &kernels);
    for ((p, b), (symbol, spec)) in problems.iter().zip(&built).zip(&kernels) {
        let mut seen = vec![];
        let launch = (&b.case.buffers[..], &b.case.params[..]);
        gpu.run(symbol, spec, launch, &mut |name, buffers, status| {
            assert_eq!(status, 0, "{name}");
            p.compare(b, name, buffers.last().unwrap());
            seen.push(name.to_string());
        });
        // Where rows are open there is a form for any number, and one or two for so few.
        let least = if p.open { 2 } else { 1 };
        assert!(seen.len() >= least, "{seen:?}: {p:?}");
    }
}
