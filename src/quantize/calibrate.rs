//! The grid of a tensor's quantized values, chosen from its histogram.
//!
//! A grid is that of `QuantizeLinear` to u8: `q = clamp(round(x / scale) + zero, 0, 255)`,
//! and what is computed with is `(q − zero) · scale`. Zero is a point of every grid, as
//! paddings and the outputs of ReLU need it.

use super::histogram::Histogram;

/// How the range of values that a grid spans is chosen. What lies outside is clipped.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Method {
    /// The least and the greatest value that was seen.
    MinMax,
    /// This share of the values, in per cent; half of the rest is cut off at each end.
    Percentile(f64),
    /// Least relative entropy between the values' distribution and that of the
    /// quantized ones (Migacz, 8-bit Inference with TensorRT, 2017; there with one
    /// threshold for |x|, here with one for each sign).
    Entropy,
    /// Least mean squared error of the quantized values.
    Mse,
}

/// Scale and zero point of a tensor in u8.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Grid {
    pub scale: f32,
    pub zero: u8,
}

/// Steps of a grid.
const STEPS: f64 = 255.0;

impl Grid {
    /// The grid that spans a range, widened to hold zero.
    pub fn spanning(low: f64, high: f64) -> Grid {
        let (low, high) = (low.min(0.0), high.max(0.0));
        if low == high {
            return Grid {
                scale: 1.0,
                zero: 0,
            };
        }
        // A subnormal scale would lose its bits, and some runtimes flush it to zero.
        let scale = ((high - low) / STEPS).max(f32::MIN_POSITIVE as f64) as f32;
        let zero = (-low / scale as f64).round().clamp(0.0, STEPS) as u8;
        Grid { scale, zero }
    }

    /// The least and the greatest number of the grid.
    pub fn range(&self) -> (f64, f64) {
        let at = |q: f64| (q - self.zero as f64) * self.scale as f64;
        (at(0.0), at(STEPS))
    }

    /// The nearest number of the grid; of two, the one whose step is even.
    pub fn nearest(&self, x: f64) -> f64 {
        let (scale, zero) = (self.scale as f64, self.zero as f64);
        let q = (x / scale).round_ties_even() + zero;
        (q.clamp(0.0, STEPS) - zero) * scale
    }

    /// The share of the values that are clipped: off by more than half a step.
    pub fn clipped(&self, h: &Histogram) -> f64 {
        let (low, high) = self.range();
        let half = 0.5 * self.scale as f64;
        h.outside(low - half, high + half)
    }

    /// Signal to quantization noise of the values, in dB.
    pub fn sqnr_db(&self, h: &Histogram) -> f64 {
        let moments = Moments::of(h);
        decibels(moments.signal(), moments.noise(self))
    }
}

/// Σ 1, Σ x and Σ x² over the values below each bin, each value at the middle of its bin:
/// with them the noise of a grid takes a step a level, not one a bin.
struct Moments {
    sums: Vec<[f64; 3]>,
    edge: f64,
    width: f64,
}

impl Moments {
    fn of(h: &Histogram) -> Moments {
        let (mut sum, width) = ([0.0; 3], h.width());
        let mut sums = vec![sum];
        for (i, &n) in h.counts().iter().enumerate() {
            let (x, n) = (h.edge(i) + 0.5 * width, n as f64);
            sum = [sum[0] + n, sum[1] + n * x, sum[2] + n * x * x];
            sums.push(sum);
        }
        Moments {
            sums,
            edge: h.edge(0),
            width,
        }
    }

    /// Σ x².
    fn signal(&self) -> f64 {
        self.sums[self.sums.len() - 1][2]
    }

    /// Σ (x − nearest)².
    fn noise(&self, grid: &Grid) -> f64 {
        let last = self.sums.len() - 1;
        let (scale, zero) = (grid.scale as f64, grid.zero as f64);
        let (mut from, mut noise) = (0, 0.0);
        for level in 0..=STEPS as usize {
            let at = (level as f64 - zero) * scale;
            // The first bin whose middle lies beyond the border to the next level.
            let border = (at + 0.5 * scale - self.edge) / self.width - 0.5;
            let to = match level == STEPS as usize {
                true => last,
                false => (border.ceil().max(0.0) as usize).min(last),
            };
            let [a, b] = [self.sums[from], self.sums[to]];
            noise += (b[2] - a[2]) - 2.0 * at * (b[1] - a[1]) + at * at * (b[0] - a[0]);
            from = to;
        }
        noise.max(0.0)
    }
}

/// A ratio of energies in dB; 200 where there is no noise to speak of.
pub fn decibels(signal: f64, noise: f64) -> f64 {
    match signal > 0.0 && noise > 0.0 {
        true => (10.0 * (signal / noise).log10()).min(200.0),
        false => 200.0,
    }
}

/// The grid for what a histogram counted.
pub fn grid(method: Method, h: &Histogram) -> Grid {
    let (low, high) = h.range.unwrap_or_default();
    let (low, high) = (low.min(0.0) as f64, high.max(0.0) as f64);
    let (low, high) = match method {
        Method::MinMax => (low, high),
        Method::Percentile(p) => {
            let cut = (1.0 - p / 100.0) / 2.0;
            (h.quantile(cut), h.quantile(1.0 - cut))
        }
        Method::Mse => {
            let moments = Moments::of(h);
            search((low, high), 0.0, |low, high| {
                moments.noise(&Grid::spanning(low, high))
            })
        }
        Method::Entropy => {
            let (counts, edge, width) = coarse(h);
            // What an estimate from so many values is off by (half of a chi-squared's mean):
            // less of a difference is chance.
            let used = counts.iter().filter(|c| **c > 0).count();
            let chance = used as f64 / (2.0 * (h.count - h.zeros).max(1) as f64);
            let bin = |x: f64| (x - edge) / width;
            search((low, high), chance, |low, high| {
                let (from, to) = (bin(low).floor() as usize, bin(high).ceil() as usize);
                relative_entropy(&counts, from, to)
            })
        }
    };
    Grid::spanning(low, high)
}

/// Candidates for each end of a range.
const CANDIDATES: usize = 128;
/// Times that both ends are moved in turn.
const ROUNDS: usize = 3;

/// The range around zero of least cost, within a widest one: each end in turn goes
/// where the cost is least while the other stays. Of costs that differ by at most
/// `slack` the widest range wins.
fn search(widest: (f64, f64), slack: f64, cost: impl Fn(f64, f64) -> f64) -> (f64, f64) {
    let part = |k: usize| 1.0 - k as f64 / CANDIDATES as f64;
    let (mut low, mut high) = widest;
    for _ in 0..ROUNDS {
        let before = (low, high);
        if widest.1 > 0.0 {
            let candidates = (0..CANDIDATES).map(|k| widest.1 * part(k));
            high = best(candidates, slack, |h| cost(low, h));
        }
        if widest.0 < 0.0 {
            let candidates = (0..CANDIDATES).map(|k| widest.0 * part(k));
            low = best(candidates, slack, |l| cost(l, high));
        }
        if (low, high) == before {
            break;
        }
    }
    (low, high)
}

/// The first of the candidates whose cost is least, or `slack` more.
fn best(candidates: impl Iterator<Item = f64>, slack: f64, cost: impl Fn(f64) -> f64) -> f64 {
    let costs: Vec<(f64, f64)> = candidates.map(|x| (cost(x), x)).collect();
    let least = costs.iter().fold(f64::INFINITY, |a, c| a.min(c.0));
    let first = costs.iter().find(|c| c.0 <= least + slack);
    first.map_or(0.0, |c| c.1)
}

/// Levels that a window of bins is quantized to.
const LEVELS: usize = 256;
/// What an impossible value's probability counts as: a distribution that gives none to
/// what happens is infinitely far, and cannot be compared with another such.
const LEAST: f64 = 1e-9;

/// Bins that relative entropy is taken over, at most: finer ones hold so few values each
/// that chance tells the distributions apart.
const ENTROPY_BINS: usize = 4096;

/// The counts in wider bins, where the first begins, and how wide they are.
fn coarse(h: &Histogram) -> (Vec<u64>, f64, f64) {
    let counts = h.counts();
    let mut by = 1;
    while counts.len() > by * ENTROPY_BINS {
        by *= 2;
    }
    let sum = |bins: &[u64]| bins.iter().sum();
    (
        counts.chunks(by).map(sum).collect(),
        h.edge(0),
        by as f64 * h.width(),
    )
}

/// Σ p·ln(p/q) over the bins of `from..to`: `p` has what lies outside added at the ends,
/// `q` has within each level the mean of its nonempty bins, of what lies inside.
fn relative_entropy(counts: &[u64], from: usize, to: usize) -> f64 {
    if counts.is_empty() {
        return f64::INFINITY;
    }
    let (from, to) = (from.min(counts.len() - 1), to.min(counts.len()));
    let (from, to) = (from, to.max(from + 1));
    let window = &counts[from..to];
    let below: u64 = counts[..from].iter().sum();
    let above: u64 = counts[to..].iter().sum();
    let inside: u64 = window.iter().sum();
    let all = (inside + below + above) as f64;
    if inside == 0 {
        return f64::INFINITY;
    }
    let n = window.len();
    let levels = LEVELS.min(n);
    let mut sum = 0.0;
    for level in 0..levels {
        let bins = level * n / levels..(level + 1) * n / levels;
        let held = &window[bins.clone()];
        let used = held.iter().filter(|c| **c > 0).count();
        let total: u64 = held.iter().sum();
        let q = (total as f64 / used.max(1) as f64 / inside as f64).max(LEAST);
        for i in bins {
            let mut p = window[i];
            p += if i == 0 { below } else { 0 };
            p += if i == n - 1 { above } else { 0 };
            if p > 0 {
                let p = p as f64 / all;
                let q = if window[i] > 0 { q } else { LEAST };
                sum += p * (p / q).ln();
            }
        }
    }
    sum
}

#[cfg(test)]
mod tests;
