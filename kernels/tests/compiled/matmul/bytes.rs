//! Products of bytes: exact whatever the signs and the level.

use super::{Built, Layout, Problem, check};
use crate::support::{Rng, bytes, load, numbers, targets};
use kiln_codegen::{CpuTarget, Dump};
use kiln_ir::DType;
use kiln_kernels::*;

/// Every pair of signs, every way that B can lie, tails of rows, columns and k, and
/// sums over more than one part of a panel.
#[test]
fn products_of_bytes_are_exact_at_the_extremes() {
    use DType::{I8, U8};
    let mut problems = vec![];
    for (a, b) in [(U8, I8), (I8, I8), (U8, U8), (I8, U8)] {
        for (m, n, k) in [(1, 64, 384), (7, 65, 129), (50, 70, 302), (13, 17, 4096)] {
            for layout in [
                Layout::Grouped,
                Layout::Rows,
                Layout::Transposed,
                Layout::Spread,
            ] {
                problems.push(Problem {
                    layout,
                    ..Problem::bytes(a, b, m, n, k)
                });
            }
        }
        // Sizes that are not known, a panel that is not the usual, batches.
        problems.push(Problem {
            open: true,
            nr: 48,
            batch: vec![2, 3],
            ..Problem::bytes(a, b, 9, 100, 67)
        });
        problems.push(Problem {
            open: true,
            layout: Layout::Transposed,
            batch: vec![3],
            ..Problem::bytes(a, b, 200, 30, 2051)
        });
    }
    for (seed, part) in (0..).zip(problems.chunks(18)) {
        check(part, seed);
    }
}

/// All products are as large as they can be: 255 · −128 · 4096 and so on.
#[test]
fn sums_of_bytes_do_not_saturate() {
    use DType::{I8, U8};
    let value = |t: DType, low: bool| match (t, low) {
        (U8, true) => 0.0,
        (U8, false) => 255.0,
        (_, true) => -128.0,
        (_, false) => 127.0,
    };
    let mut problems = vec![];
    for (a, b) in [(U8, I8), (I8, I8), (U8, U8), (I8, U8)] {
        for layout in [Layout::Grouped, Layout::Rows] {
            problems.push(Problem {
                layout,
                ..Problem::bytes(a, b, 7, 33, 4094)
            });
        }
    }
    let built: Vec<Built> = problems.iter().map(|p| p.build(&mut Rng(1))).collect();
    let kernels: Vec<(String, KernelSpec)> = (0..)
        .zip(&built)
        .map(|(i, b)| (format!("mm{i}"), b.case.spec.clone()))
        .collect();
    for target in targets() {
        let loaded = load(&kernels, &target);
        for ((p, b), (symbol, spec)) in problems.iter().zip(&built).zip(&kernels) {
            for (x, y) in [(true, true), (false, true), (true, false), (false, false)] {
                let (x, y) = (value(p.a, x), value(p.b, y));
                let mut buffers = b.case.buffers.clone();
                buffers[0] = bytes(p.a, &[x].repeat(7 * 4094));
                buffers[1] = bytes(p.b, &[y].repeat(p.b_size()));
                loaded.run(symbol, spec, &mut buffers, &b.case.params);
                let got = numbers(DType::I32, buffers.last().unwrap());
                let at = format!("{p:?} at {}", target.name);
                assert!(got.iter().all(|&s| s == x * y * 4094.0), "{at}: {}", got[0]);
            }
        }
    }
}

/// Levels that no machine at hand has are at least compiled to what they should be.
#[test]
fn products_of_bytes_use_what_the_level_has() {
    let spec = Problem::bytes(DType::U8, DType::I8, 12, 64, 64)
        .build(&mut Rng(1))
        .case
        .spec;
    for (target, instruction, register) in [
        (CpuTarget::x86_64_v4_vnni(), "vpdpbusd", "zmm"),
        (CpuTarget::x86_64_v3_vnni(), "vpdpbusd", "ymm"),
        (CpuTarget::x86_64_v4(), "vpmaddwd", "zmm"),
        (CpuTarget::x86_64_v3(), "vpmaddwd", "ymm"),
    ] {
        let kernel = ("mm".to_string(), spec.clone());
        let asm = dump(&[kernel], &target, Dump::Asm).unwrap();
        let line = |l: &str| l.contains(instruction) && l.contains(register);
        assert!(asm.lines().any(line), "{}: {asm}", target.name);
        assert!(!asm.contains("vpmaddubsw"), "{} saturates", target.name);
        // Sums stay in registers.
        let whole = format!("{}-byte Spill", target.vector_bits / 8);
        let spills = asm.lines().filter(|l| l.contains(&whole)).count();
        assert_eq!(spills, 0, "{}", target.name);
    }
}
