//! What a tensor's values were over all calibration data, in bounded memory.
//!
//! Bins are `[i·w, (i+1)·w)` where `w` is a power of two and 0 is an edge. When a value
//! lies beyond the bins that memory allows, `w` doubles and pairs of bins are added up,
//! which is exact: what the histogram says in the end depends on the values alone and
//! not on the order in which batches brought them, and one pass over the data is enough.

/// Bins at most; more than half of them span the values and zero.
pub const MOST_BINS: usize = 8192;

/// Counts of a tensor's values.
#[derive(Clone, Debug, Default)]
pub struct Histogram {
    /// Width of a bin is `2^exponent`.
    exponent: i32,
    /// The number of the first bin: its values are at least `first · width`.
    first: i64,
    counts: Vec<u64>,
    /// Values that are zero exactly; they are in no bin.
    pub zeros: u64,
    /// Finite values, zeros too.
    pub count: u64,
    /// Values that are NaN or infinite; they are counted nowhere else.
    pub not_finite: u64,
    /// The least and the greatest finite value.
    pub range: Option<(f32, f32)>,
    /// max |x| at each place of the last axis, if asked for.
    pub channels: Vec<f32>,
}

/// 2^e, exactly.
fn power(e: i32) -> f64 {
    2f64.powi(e)
}

impl Histogram {
    /// Counts values.
    pub fn add(&mut self, values: &[f32]) {
        let (mut low, mut high) = (f32::INFINITY, f32::NEG_INFINITY);
        let mut finite = 0;
        for &v in values.iter().filter(|v| v.is_finite()) {
            (low, high) = (low.min(v), high.max(v));
            finite += 1;
        }
        self.not_finite += values.len() as u64 - finite;
        if finite == 0 {
            return;
        }
        let (old_low, old_high) = self.range.unwrap_or((low, high));
        let (low, high) = (low.min(old_low), high.max(old_high));
        self.range = Some((low, high));
        self.count += finite;
        self.cover(low as f64, high as f64);
        let (by, first) = (power(-self.exponent), self.first as f64);
        for &v in values.iter().filter(|v| v.is_finite()) {
            match v == 0.0 {
                true => self.zeros += 1,
                false => self.counts[((v as f64 * by).floor() - first) as usize] += 1,
            }
        }
    }

    /// Keeps max |x| of each place of the last axis too, `n` long: what smoothing needs.
    pub fn add_channels(&mut self, values: &[f32], n: usize) {
        self.channels.resize(n, 0.0);
        for row in values.chunks_exact(n.max(1)) {
            for (most, v) in self.channels.iter_mut().zip(row) {
                *most = most.max(v.abs());
            }
        }
    }

    /// Makes bins for everything from `low` to `high`, and zero.
    fn cover(&mut self, low: f64, high: f64) {
        let (low, high) = (low.min(0.0), high.max(0.0));
        if self.counts.is_empty() {
            // The finest width that an f32 needs: nothing is lost before the first.
            let span = (high - low).max(f32::MIN_POSITIVE as f64);
            self.exponent = (span / MOST_BINS as f64).log2().floor() as i32;
            self.first = (low * power(-self.exponent)).floor() as i64;
            self.counts = vec![0];
        }
        loop {
            let by = power(-self.exponent);
            let end = self.first + self.counts.len() as i64 - 1;
            let first = (low * by).floor().min(self.first as f64);
            let last = (high * by).floor().max(end as f64);
            // Numbers of bins may be beyond i64 until the bins are wide enough.
            if last - first < MOST_BINS as f64 {
                let (first, last) = (first as i64, last as i64);
                let mut counts = vec![0; (last - first + 1) as usize];
                let at = (self.first - first) as usize;
                counts[at..at + self.counts.len()].copy_from_slice(&self.counts);
                (self.first, self.counts) = (first, counts);
                return;
            }
            self.halve();
        }
    }

    /// Doubles the width of the bins.
    fn halve(&mut self) {
        let first = self.first.div_euclid(2);
        let last = (self.first + self.counts.len() as i64 - 1).div_euclid(2);
        let mut counts = vec![0; (last - first + 1) as usize];
        for (i, n) in self.counts.iter().enumerate() {
            counts[((self.first + i as i64).div_euclid(2) - first) as usize] += n;
        }
        (self.first, self.counts) = (first, counts);
        self.exponent += 1;
    }

    /// The width of a bin.
    pub fn width(&self) -> f64 {
        power(self.exponent)
    }

    /// The counts of nonzero values, from the bin that [`Histogram::edge`]`(0)` begins.
    pub fn counts(&self) -> &[u64] {
        &self.counts
    }

    /// Where bin `i` of [`Histogram::counts`] begins.
    pub fn edge(&self, i: usize) -> f64 {
        (self.first + i as i64) as f64 * self.width()
    }

    /// The bin that zero begins; the number of bins if all are negative.
    pub fn zero_bin(&self) -> usize {
        (-self.first).clamp(0, self.counts.len() as i64) as usize
    }

    /// The middle of each bin that is not empty, and its count.
    pub fn masses(&self) -> impl Iterator<Item = (f64, u64)> {
        let half = 0.5 * self.width();
        let counts = self.counts.iter().enumerate().filter(|(_, n)| **n > 0);
        counts.map(move |(i, n)| (self.edge(i) + half, *n))
    }

    /// The value below which a share of all values lies, linear within a bin.
    pub fn quantile(&self, share: f64) -> f64 {
        let (low, high) = self.range.unwrap_or_default();
        let wanted = share * self.count as f64;
        let (mut below, zero) = (0.0, self.zero_bin());
        for (i, &n) in self.counts.iter().enumerate() {
            if i == zero {
                below += self.zeros as f64;
                if below >= wanted {
                    return 0f64.clamp(low as f64, high as f64);
                }
            }
            if n > 0 && below + n as f64 >= wanted {
                let within = ((wanted - below) / n as f64).max(0.0);
                let at = self.edge(i) + within * self.width();
                return at.clamp(low as f64, high as f64);
            }
            below += n as f64;
        }
        high as f64
    }

    /// The share of all values that lie outside `[low, high]`, linear within a bin.
    pub fn outside(&self, low: f64, high: f64) -> f64 {
        let width = self.width();
        let (least, most) = self.range.unwrap_or_default();
        // Nothing lies beyond the least and the greatest value.
        let low = if least as f64 >= low {
            f64::NEG_INFINITY
        } else {
            low
        };
        let high = if most as f64 <= high {
            f64::INFINITY
        } else {
            high
        };
        let mut outside = 0.0;
        for (i, &n) in self.counts.iter().enumerate().filter(|(_, n)| **n > 0) {
            let edge = self.edge(i);
            let below = ((low - edge) / width).clamp(0.0, 1.0);
            let above = ((edge + width - high) / width).clamp(0.0, 1.0);
            outside += n as f64 * (below + above).min(1.0);
        }
        outside / self.count.max(1) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers that look random, in (-1, 1).
    fn noise(n: usize, seed: u64) -> Vec<f32> {
        let mut state = seed;
        let mut next = || {
            state = state
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            (state >> 33) as f32 / (1u64 << 30) as f32 - 1.0
        };
        (0..n).map(|_| next()).collect()
    }

    #[test]
    fn the_order_of_batches_does_not_matter() {
        let batches: Vec<Vec<f32>> = (0..6)
            .map(|i| {
                noise(500, i)
                    .iter()
                    .map(|v| v * 10f32.powi(i as i32 - 3))
                    .collect()
            })
            .chain([vec![0.0; 7], vec![f32::NAN, 1.0, f32::INFINITY]])
            .collect();
        let of = |order: &[usize]| {
            let mut h = Histogram::default();
            order.iter().for_each(|&i| h.add(&batches[i]));
            h
        };
        let (a, b) = (of(&[0, 1, 2, 3, 4, 5, 6, 7]), of(&[6, 5, 7, 3, 1, 0, 2, 4]));
        assert_eq!(
            (a.exponent, a.first, &a.counts),
            (b.exponent, b.first, &b.counts)
        );
        assert_eq!((a.zeros, a.count, a.not_finite), (7, 3008, 2));
        assert_eq!(a.range, b.range);
        assert!(a.counts.len() > MOST_BINS / 2 && a.counts.len() <= MOST_BINS);
        assert_eq!(a.counts.iter().sum::<u64>() + a.zeros, a.count);
    }

    #[test]
    fn every_value_is_in_its_bin() {
        let values = [-3.0, -0.75, 1e-30, 0.5, 0.5, 2.999, 1e3];
        let mut h = Histogram::default();
        h.add(&values);
        for v in values {
            let i = ((v as f64 - h.edge(0)) / h.width()).floor() as usize;
            let same = values
                .iter()
                .filter(|&&o| (o as f64) >= h.edge(i) && (o as f64) < h.edge(i) + h.width());
            assert_eq!(h.counts()[i], same.count() as u64, "{v}");
        }
    }

    #[test]
    fn extreme_values_and_none_at_all_are_counted() {
        let mut h = Histogram::default();
        h.add(&[]);
        h.add(&[f32::NAN]);
        assert_eq!((h.count, h.not_finite, h.quantile(0.5)), (0, 1, 0.0));
        h.add(&[1e-45, -1e-45]);
        h.add(&[f32::MAX, f32::MIN]);
        assert_eq!((h.count, h.range), (4, Some((f32::MIN, f32::MAX))));
        assert!(h.counts().len() <= MOST_BINS);
    }

    #[test]
    fn quantiles_and_shares_are_those_of_the_values() {
        let mut values = noise(100_000, 3);
        let mut h = Histogram::default();
        h.add(&values);
        values.sort_by(f32::total_cmp);
        for share in [0.001, 0.1, 0.5, 0.9, 0.9999] {
            let want = values[(share * 100_000.0) as usize] as f64;
            assert!(
                (h.quantile(share) - want).abs() < 2.0 * h.width(),
                "{share}"
            );
        }
        let outside = h.outside(-0.5, 0.75);
        let want = values
            .iter()
            .filter(|&&v| !(-0.5..=0.75).contains(&v))
            .count();
        assert!((outside - want as f64 / 1e5).abs() < 1e-4);
        assert_eq!(h.outside(-1.0, 1.0), 0.0);
    }

    #[test]
    fn zeros_count_among_the_quantiles() {
        let mut h = Histogram::default();
        h.add(&[0.0, 0.0, 0.0, 1.0]);
        assert_eq!(h.quantile(0.5), 0.0);
        assert!(h.quantile(0.99) > 0.9);
    }
}
