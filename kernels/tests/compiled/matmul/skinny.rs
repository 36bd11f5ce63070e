//! Products of few rows: every type and layout, tails, and a row's bits among others.

use super::{Layout, Problem, check};
use crate::gpu::Gpu;
use crate::support::{Rng, numbers};
use kiln_ir::DType::{self, BF16, F16, F32, I8, I32, U8};
use std::collections::HashMap;

/// Types of A, B and the sums, and whether B's panels may be of words.
const TYPES: &[(DType, DType, DType, bool)] = &[
    (F32, F32, F32, false),
    (F16, F16, F32, false),
    (BF16, BF16, F32, true),
    (I8, I8, I32, true),
    (U8, I8, I32, true),
    (I8, U8, I32, true),
    (F32, BF16, F32, false),
    (F32, I8, F32, false),
    (F16, F32, F32, false),
    (I32, I32, I32, false),
];

const LAYOUTS: [Layout; 5] = [
    Layout::Packed,
    Layout::Grouped,
    Layout::Rows,
    Layout::Transposed,
    Layout::Spread,
];

/// Products of these types in every layout that they have.
fn of_types(
    &(a, b, acc, words): &(DType, DType, DType, bool),
    (m, n, k): (usize, usize, usize),
) -> impl Iterator<Item = Problem> {
    let layouts = LAYOUTS
        .into_iter()
        .filter(move |&l| words || l != Layout::Grouped);
    layouts.map(move |layout| Problem {
        a,
        b,
        acc,
        out: acc,
        layout,
        extreme: [a, b].iter().all(|t| t.bits() == 8),
        ..Problem::plain(m, n, k)
    })
}

/// Fours and words that lie together, and such that do not; more steps than warps.
#[test]
fn few_rows_match_in_every_layout() {
    let sizes = [
        (1, 48, 1152),
        (3, 20, 80),
        (8, 17, 77),
        (5, 16, 1),
        (2, 4, 272),
    ];
    for (seed, &(m, n, k)) in (0..).zip(&sizes) {
        let problems: Vec<Problem> = (TYPES.iter())
            .flat_map(|types| of_types(types, (m, n, k)))
            .collect();
        check(&problems, seed);
    }
}

#[test]
fn random_products_of_few_rows_match() {
    let mut rng = Rng(17);
    for round in 0..3 {
        let problems: Vec<Problem> = (0..24)
            .map(|_| {
                let mut p = Problem::random(&mut rng);
                p.m = 1 + rng.below(8);
                p.n = 1 + rng.below(70);
                p.k = rng.pick(&[0, 1, 3, 4, 16, 33, 64, 128, 160, 300, 544]);
                p
            })
            .collect();
        check(&problems, round);
    }
}

/// A row has the same bits among seven others as alone; in f32 whatever the layout.
#[test]
fn rows_do_not_depend_on_how_many_there_are() {
    for types @ &(a, b, ..) in TYPES {
        let mut all = vec![];
        for k in [77, 96, 1100] {
            let row = Rng(12).data(a, k);
            let weights = numbers(b, &Rng(13).data(b, k * 40));
            for m in [1, 2, 3, 8] {
                for p in of_types(types, (m, 40, k)) {
                    let mut built = p.build(&mut Rng(11));
                    built.case.buffers[0] = row.repeat(m);
                    built.case.buffers[1] = p.lay(&weights);
                    all.push((p, built.case));
                }
            }
        }
        let named = (0..).zip(&all);
        let kernels: Vec<_> = named
            .map(|(i, (_, case))| (format!("mm{i}"), case.spec.clone()))
            .collect();
        let gpu = Gpu::new(&kernels);
        let mut alone: HashMap<(usize, Layout), Vec<u8>> = HashMap::new();
        for ((p, case), (symbol, spec)) in all.iter().zip(&kernels) {
            let launch = (&case.buffers[..], &case.params[..]);
            gpu.run(symbol, spec, launch, &mut |_, buffers, status| {
                assert_eq!(status, 0);
                let out = buffers.last().unwrap();
                // Tensor cores take words in another order where they lie otherwise.
                let like = if a == F32 { Layout::Packed } else { p.layout };
                let row = alone.entry((p.k, like)).or_insert_with(|| out.clone());
                let same = out.chunks(row.len()).all(|r| r == row);
                assert!(same, "{types:?}: {p:?}");
            });
        }
    }
}
