//! The forms of attention on GPUs, each by its name.

use super::{Built, Mask, Problem, many_queries};
use crate::gpu::Gpu;
use crate::support::{Rng, numbers};
use kiln_ir::DType;
use std::collections::BTreeMap;

/// Runs every form that serves, each against softmax in f64; their results by name.
fn run(target: &str, p: &Problem, b: &Built) -> BTreeMap<String, Vec<u8>> {
    let gpu = Gpu::on(target, &[("at".into(), b.spec.clone())]);
    let mut results = BTreeMap::new();
    let launch = (&b.buffers[..], &b.params[..]);
    gpu.run("at", &b.spec, launch, &mut |name, buffers, status| {
        assert_eq!(status, 0, "{name}");
        let last = buffers.last().unwrap();
        b.matches(p, name, last);
        results.insert(name.to_string(), last.clone());
    });
    results
}

/// What tiles bring is what copies bring, in the same order of sums.
fn same_by_tiles(p: &Problem, rng: &mut Rng) {
    let results = run("sm_90a", p, &p.build(rng));
    let tiles = results.get("at_tiles");
    let tiles = tiles.unwrap_or_else(|| panic!("no tiles: {p:?}"));
    assert!(*tiles == results["at"], "other bits by tiles: {p:?}");
}

#[test]
fn tiles_bring_what_copies_bring() {
    let cases = [
        // Of the keys one part, not whole; then odd and even numbers of parts.
        ((65, 1), (32, 32), Mask::None),
        ((70, 100), (64, 64), Mask::None),
        ((129, 300), (128, 128), Mask::Causal(171)),
        ((200, 257), (128, 128), Mask::Causal(0)),
        ((130, 520), (64, 128), Mask::Window(70)),
        ((128, 385), (32, 64), Mask::Bias),
        ((66, 200), (40, 72), Mask::Keep),
        ((70, 300), (96, 8), Mask::Padding),
        ((90, 170), (160, 160), Mask::Causal(80)),
        ((67, 240), (192, 128), Mask::None),
        ((66, 97), (224, 256), Mask::Causal(31)),
        ((130, 161), (256, 256), Mask::Causal(31)),
        // Blocks that see no key at all.
        ((260, 140), (64, 64), Mask::Causal(-129)),
        ((140, 150), (64, 64), Mask::Sinks(20)),
        ((66, 260), (80, 80), Mask::Capped),
    ];
    let mut rng = Rng(31);
    for (n, (lengths, sizes, mask)) in cases.into_iter().enumerate() {
        same_by_tiles(&many_queries(lengths, sizes, mask, n), &mut rng);
    }
}

#[test]
fn random_tiles_bring_what_copies_bring() {
    let mut rng = Rng(32);
    for _ in 0..16 {
        let p = random(&mut rng);
        same_by_tiles(&p, &mut rng);
    }
}

/// Whole and interleaved heads, several key heads and batches, known and open sizes.
fn random(rng: &mut Rng) -> Problem {
    let group = rng.pick(&[1, 2, 3]);
    Problem {
        batch: 1 + rng.below(2),
        heads: group * (1 + rng.below(2)),
        group,
        queries: 1 + rng.below(140),
        keys: 1 + rng.below(300),
        features: 8 * (1 + rng.below(20)),
        values: 8 * (1 + rng.below(16)),
        dtype: rng.pick(&[DType::F16, DType::BF16]),
        mask: rng.pick(&[
            Mask::None,
            Mask::Causal(0),
            Mask::Causal(37),
            Mask::Window(9),
            Mask::Padding,
            Mask::Keep,
        ]),
        seq_first: rng.below(2) == 0,
        k_transposed: false,
        // So many may be known to be too few.
        open: true,
        block: 64,
    }
}

/// Rows that do not start at multiples of 16 bytes are copied.
#[test]
fn rows_that_no_tile_begins_at_are_copied() {
    for (n, sizes) in [(20, 64), (64, 20)].into_iter().enumerate() {
        for open in [false, true] {
            let p = Problem {
                open,
                ..many_queries((70, 150), sizes, Mask::Causal(0), n)
            };
            let results = run("sm_90a", &p, &p.build(&mut Rng(33)));
            let names: Vec<&String> = results.keys().collect();
            assert_eq!(names, ["at"], "{p:?}");
            assert!(numbers(p.dtype, &results["at"]).iter().any(|&x| x != 0.0));
        }
    }
}

/// Few queries of heads that share keys.
fn shared_keys(group: usize, queries: usize, keys: usize, mask: Mask, n: usize) -> Problem {
    Problem {
        batch: 1 + n % 2,
        heads: 2 * group,
        group,
        block: 16,
        ..many_queries(
            (queries, keys),
            ([64, 128][n % 2], [64, 40][n / 2 % 2]),
            mask,
            n,
        )
    }
}

#[test]
fn heads_that_share_keys_are_rows_of_one_block() {
    let cases = [
        (1, 1, 512, Mask::None),
        (4, 1, 700, Mask::Causal(699)),
        (8, 1, 1030, Mask::Bias),
        // As many rows as a form for few has, and one more.
        (4, 4, 512, Mask::Causal(300)),
        (17, 1, 520, Mask::Causal(519)),
        (3, 5, 600, Mask::Causal(100)),
        (4, 16, 520, Mask::Keep),
        // More rows than a block has.
        (8, 9, 770, Mask::Window(9)),
        (5, 16, 513, Mask::Padding),
        // Of the second form's heads the largest, with fewer keys at once.
        (2, 8, 513, Mask::Causal(505)),
        (3, 6, 530, Mask::None),
        // Bounds of each head.
        (4, 2, 777, Mask::Reach),
        (2, 3, 600, Mask::Capped),
    ];
    let mut rng = Rng(34);
    for target in ["sm_80", "sm_89", "sm_90a"] {
        for (n, (group, queries, keys, mask)) in cases.into_iter().enumerate() {
            let mut p = shared_keys(group, queries, keys, mask, n);
            if group * queries > 15 && group < 4 {
                (p.features, p.values) = (256, 192);
            }
            let results = run(target, &p, &p.build(&mut rng));
            // Sizes that are open have both forms; the one for any rows serves few as well.
            let room = target != "sm_89" || p.features < 256;
            let few = group * queries <= 16 && room;
            assert_eq!(results.contains_key("at_few"), few, "{p:?}");
            assert_eq!(results.contains_key("at_parts"), p.open || !few, "{p:?}");
        }
    }
}

/// A head has the same bits with keys of its own as with keys that it shares, among more
/// batches and among fewer.
#[test]
fn bits_depend_on_no_other_head_and_no_batch() {
    let (queries, keys, wide) = (3, 600, 64);
    let (group, row) = (4, 2 * wide);
    let of = |form: &str, batch: usize, group: usize| {
        let p = Problem {
            batch,
            heads: 4,
            group,
            dtype: DType::BF16,
            seq_first: false,
            open: true,
            block: 16,
            ..many_queries((queries, keys), (wide, wide), Mask::Causal(590), 0)
        };
        let mut b = p.build(&mut Rng(35));
        let mut rng = Rng(36);
        let mut data = |n: usize| rng.data(DType::BF16, n * wide);
        let (q, k, v) = (data(4 * queries), data(keys), data(keys));
        let heads = 4 / group;
        b.buffers[0] = q.repeat(batch);
        b.buffers[1] = k.repeat(batch * heads);
        b.buffers[2] = v.repeat(batch * heads);
        let gpu = Gpu::on("sm_90a", &[("at".into(), b.spec.clone())]);
        let mut out = vec![];
        let launch = (&b.buffers[..], &b.params[..]);
        gpu.run("at", &b.spec, launch, &mut |name, buffers, _| {
            if name == form {
                out = buffers.last().unwrap().clone();
            }
        });
        assert_eq!(out.len(), batch * 4 * queries * row);
        out
    };
    for form in ["at_few", "at_parts"] {
        let shared = of(form, 1, group);
        assert!(shared == of(form, 1, 1), "keys of one's own");
        assert!(shared == of(form, 1, 2), "fewer heads");
        assert!(shared.repeat(3) == of(form, 3, group), "batches");
    }
}

/// Texts to be assembled (`KILN_TEST_PTX`), which the interpreter reads too.
#[test]
fn every_head_size_is_written() {
    let sizes = [32, 64, 80, 96, 128, 160, 192, 224, 256];
    let masks = [
        Mask::None,
        Mask::Causal(0),
        Mask::Sinks(9),
        Mask::Capped,
        Mask::Padding,
        Mask::Bias,
        Mask::Keep,
    ];
    let mut all = vec![];
    for (n, size) in sizes.into_iter().enumerate() {
        for (m, mask) in masks.into_iter().enumerate() {
            // Every mask with some sizes, every size with some masks.
            if !matches!(size, 64 | 128 | 256) && m > 1 {
                continue;
            }
            let p = many_queries((65, 3), (size, size), mask, n + m);
            let built = p.build(&mut Rng(24));
            all.push((format!("head{size}_{m}"), built.spec));
            let few = Problem {
                open: true,
                block: 16,
                ..p
            };
            let built = few.build(&mut Rng(24));
            all.push((format!("few{size}_{m}"), built.spec));
        }
    }
    let gpu = Gpu::new(&all);
    assert!(all.iter().all(|(symbol, _)| !gpu.refuses(symbol)));
}
