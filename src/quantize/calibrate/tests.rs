//! The calibrators on distributions whose answers are known.

use super::*;

fn uniform(state: &mut u64) -> f64 {
    *state = state
        .wrapping_mul(6364136223846793005)
        .wrapping_add(1442695040888963407);
    ((*state >> 11) as f64 + 0.5) / (1u64 << 53) as f64
}

/// Normal numbers of deviation 1 (Box and Muller).
fn normal(n: usize, seed: u64) -> Vec<f32> {
    let mut s = seed;
    let mut one = || {
        let (u, v) = (uniform(&mut s), uniform(&mut s));
        ((-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos()) as f32
    };
    (0..n).map(|_| one()).collect()
}

/// Laplace's distribution of scale 1.
fn laplace(n: usize, seed: u64) -> Vec<f32> {
    let mut s = seed;
    let mut one = || {
        let u = uniform(&mut s) - 0.5;
        (-u.signum() * (1.0 - 2.0 * u.abs()).ln()) as f32
    };
    (0..n).map(|_| one()).collect()
}

fn of(values: &[f32]) -> Histogram {
    let mut h = Histogram::default();
    h.add(values);
    h
}

/// The mean squared error of a grid on the values themselves.
fn error(grid: Grid, values: &[f32]) -> f64 {
    let square = |v: &f32| (*v as f64 - grid.nearest(*v as f64)).powi(2);
    values.iter().map(square).sum::<f64>() / values.len() as f64
}

#[test]
fn grids_hold_zero_and_span_their_range() {
    for (low, high) in [
        (-1.0, 3.0),
        (0.5, 2.0),
        (-4.0, -1.0),
        (0.0, 1e-44),
        (-1e38, 3e38),
    ] {
        let g = Grid::spanning(low, high);
        assert_eq!(g.nearest(0.0), 0.0);
        let (least, most) = g.range();
        let slack = 0.51 * g.scale as f64;
        assert!(
            least <= low.min(0.0) + slack && most >= high.max(0.0) - slack,
            "{low} {high}"
        );
        assert!(g.scale.is_normal());
    }
    assert_eq!(
        Grid::spanning(0.0, 0.0),
        Grid {
            scale: 1.0,
            zero: 0
        }
    );
    assert_eq!(
        grid(Method::Mse, &Histogram::default()),
        Grid {
            scale: 1.0,
            zero: 0
        }
    );
}

#[test]
fn min_max_and_percentiles_are_those_of_the_values() {
    let mut values = normal(200_000, 1);
    let h = of(&values);
    values.sort_by(f32::total_cmp);
    let spans = |g: Grid, low: f32, high: f32| {
        let (a, b) = g.range();
        (a - low as f64).abs() < g.scale as f64 && (b - high as f64).abs() < g.scale as f64
    };
    assert!(spans(grid(Method::MinMax, &h), values[0], values[199_999]));
    let g = grid(Method::Percentile(99.0), &h);
    assert!(spans(g, values[1000], values[199_000]), "{g:?}");
    assert!((g.clipped(&h) - 0.01).abs() < 2e-3);
    assert_eq!(grid(Method::MinMax, &h).clipped(&h), 0.0);
}

/// Of normal numbers in 256 uniform steps the best range is ±4.07 deviations or so
/// (Max, Quantizing for Minimum Distortion, 1960, has a step of 0.0308 for 256 levels).
#[test]
fn least_squares_find_the_best_uniform_quantizer() {
    let values = normal(400_000, 2);
    let h = of(&values);
    let g = grid(Method::Mse, &h);
    assert!((g.scale as f64 - 0.0308).abs() < 0.0015, "{g:?}");
    // No range of a fine sweep is better by more than a thousandth, on the values.
    let ours = error(g, &values);
    for k in 1..=60 {
        let most = 6.0 * k as f64 / 60.0;
        let other = error(Grid::spanning(-most, most), &values);
        assert!(ours <= other * 1.001, "±{most}: {other:e}, not {ours:e}");
    }
}

#[test]
fn noise_by_levels_is_noise_by_bins() {
    let h = of(&laplace(20_000, 7));
    for (low, high) in [(-3.0, 5.0), (-0.01, 20.0), (-30.0, 0.0), (-1.0, 0.004)] {
        let g = Grid::spanning(low, high);
        let moments = Moments::of(&h);
        let square = |(x, n): (f64, u64)| n as f64 * (x - g.nearest(x)).powi(2);
        let direct: f64 = h.masses().map(square).sum();
        let fast = moments.noise(&g);
        assert!(
            (fast - direct).abs() <= 1e-6 * direct,
            "{low} {high}: {fast} {direct}"
        );
    }
}

#[test]
fn one_outlier_among_many_is_clipped() {
    let mut values = laplace(200_000, 3);
    values.push(400.0);
    let h = of(&values);
    for method in [Method::Entropy, Method::Percentile(99.99)] {
        let g = grid(method, &h);
        let (low, high) = g.range();
        assert!(high < 60.0 && low > -60.0, "{method:?}: {low} to {high}");
        assert!(g.clipped(&h) > 0.0);
    }
    assert!(grid(Method::MinMax, &h).range().1 > 399.0);
    // By squares it counts for itself, against the steps of all the others.
    let ours = error(grid(Method::Mse, &h), &values);
    for high in [40.0, 100.0, 200.0, 399.0, 400.0] {
        assert!(
            ours < 1.001 * error(Grid::spanning(-10.0, high), &values),
            "{high}"
        );
    }
}

#[test]
fn what_is_never_negative_has_zero_at_its_end() {
    let values: Vec<f32> = normal(100_000, 4).iter().map(|v| v.max(0.0)).collect();
    let h = of(&values);
    for method in [
        Method::MinMax,
        Method::Percentile(99.9),
        Method::Entropy,
        Method::Mse,
    ] {
        let g = grid(method, &h);
        assert_eq!(g.zero, 0, "{method:?}");
        assert!(g.range().1 > 2.0);
    }
}

/// The definition, word for word: distributions as whole vectors, one step after the
/// other, over every pair of ends that the search may choose from.
fn direct_entropy(counts: &[u64], from: usize, to: usize) -> f64 {
    let inside: Vec<f64> = counts[from..to].iter().map(|&c| c as f64).collect();
    let n = inside.len();
    let mut p = inside.clone();
    p[0] += counts[..from].iter().sum::<u64>() as f64;
    p[n - 1] += counts[to..].iter().sum::<u64>() as f64;
    let level_of = |i: usize| {
        (0..256.min(n))
            .find(|l| i < (l + 1) * n / 256.min(n))
            .unwrap()
    };
    let mut q = vec![0.0; n];
    for i in 0..n {
        let mates: Vec<usize> = (0..n).filter(|&j| level_of(j) == level_of(i)).collect();
        let total: f64 = mates.iter().map(|&j| inside[j]).sum();
        let used = mates.iter().filter(|&&j| inside[j] > 0.0).count();
        q[i] = if inside[i] > 0.0 {
            total / used as f64
        } else {
            0.0
        };
    }
    let (sp, sq): (f64, f64) = (p.iter().sum(), q.iter().sum());
    if sq == 0.0 {
        return f64::INFINITY;
    }
    (0..n)
        .filter(|&i| p[i] > 0.0)
        .map(|i| (p[i] / sp) * ((p[i] / sp) / (q[i] / sq).max(1e-9)).ln())
        .sum()
}

#[test]
fn relative_entropy_is_its_definition() {
    // 300 bins or so: more than levels, and few enough for the direct way.
    let values: Vec<f32> = laplace(3000, 5)
        .iter()
        .map(|v| (v * 40.0).round() / 40.0)
        .collect();
    let h = of(&values);
    let counts = h.counts();
    let n = counts.len();
    for (from, to) in [
        (n / 2 - 200, n / 2 + 150),
        (n / 3, n / 3 + 300),
        (n / 2 - 40, n / 2 + 33),
    ] {
        let (a, b) = (
            relative_entropy(counts, from, to),
            direct_entropy(counts, from, to),
        );
        assert!(
            (a - b).abs() <= 1e-9 * b.abs().max(1e-3),
            "{from}..{to}: {a} and {b}"
        );
    }
    assert_eq!(relative_entropy(counts, 0, 1).is_finite(), counts[0] > 0);
}

#[test]
fn the_search_finds_a_minimum_over_both_ends() {
    let bowl = |low: f64, high: f64| (low + 0.5).powi(2) + (high - 0.25).powi(2) + 0.1 * low * high;
    let (low, high) = search((-2.0, 2.0), 0.0, bowl);
    // The true minimum, within one candidate.
    assert!(
        (low + 0.5138).abs() < 0.02 && (high - 0.2757).abs() < 0.02,
        "{low} {high}"
    );
    // Where all are equal, nothing is clipped.
    assert_eq!(search((-1.0, 3.0), 0.0, |_, _| 0.0), (-1.0, 3.0));
}
