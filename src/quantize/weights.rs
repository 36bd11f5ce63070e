//! Weights and biases in integers.
//!
//! A weight is symmetric in i8 (`w ≈ q · scale`, no zero point), with one scale for
//! each output channel or one in all. Its largest magnitude becomes 127: nothing is
//! clipped. A bias is in i32, in steps of the activation's scale times the weight's, as
//! sums of their products are, so that a runtime adds it to them.

use super::calibrate::decibels;

/// A quantized weight.
#[derive(Clone, Debug, PartialEq)]
pub struct Quantized {
    /// Row-major, as the weight was.
    pub values: Vec<i8>,
    /// One, or one for each place of the axis.
    pub scales: Vec<f32>,
    /// Signal to quantization noise, in dB.
    pub sqnr_db: f64,
}

/// What a bias in i32 holds at most, with room for sums.
const MOST_BIAS: f64 = (1u32 << 30) as f64;

/// Quantizes a weight of this shape: `axis` has a scale for each place, `most` is the
/// largest integer (127, or 63 for runtimes whose sums saturate), and `floors` are the
/// least scales, for biases to fit (empty: none). `None` where a value is not finite.
pub fn quantize(
    w: &[f32],
    shape: &[usize],
    axis: Option<usize>,
    most: i8,
    floors: &[f32],
) -> Option<Quantized> {
    let (channels, inner) = match axis {
        Some(a) => (shape[a], shape[a + 1..].iter().product::<usize>()),
        None => (1, w.len()),
    };
    let inner = inner.max(1);
    let channel = |i: usize| i / inner % channels.max(1);
    let mut largest = vec![0f32; channels];
    for (i, v) in w.iter().enumerate() {
        if !v.is_finite() {
            return None;
        }
        let m = &mut largest[channel(i)];
        *m = m.max(v.abs());
    }
    // A channel of zeros takes the widest scale: any is right for it, and its bias is in
    // steps as others' are.
    let widest = largest.iter().fold(0f32, |a, &b| a.max(b));
    let widest = if widest > 0.0 { widest } else { most as f32 };
    let scales: Vec<f32> = (largest.iter().enumerate())
        .map(|(c, &m)| {
            let m = if m > 0.0 { m } else { widest };
            let floor = floors.get(c).copied().unwrap_or(0.0);
            (m / most as f32).max(floor).max(f32::MIN_POSITIVE)
        })
        .collect();
    let (mut noise, mut signal) = (0.0, 0.0);
    let round = |(i, v): (usize, &f32)| {
        let scale = scales[channel(i)];
        let q = (v / scale)
            .round_ties_even()
            .clamp(-(most as f32), most as f32);
        noise += (*v as f64 - q as f64 * scale as f64).powi(2);
        signal += (*v as f64).powi(2);
        q as i8
    };
    Some(Quantized {
        values: w.iter().enumerate().map(round).collect(),
        sqnr_db: decibels(signal, noise),
        scales,
    })
}

/// The least scale of each channel of a weight for which its bias fits into i32, given
/// the activation's scale.
pub fn floors(bias: &[f32], activation: f32) -> Vec<f32> {
    let least = |b: &f32| (b.abs() as f64 / (activation as f64 * MOST_BIAS)) as f32;
    bias.iter().map(least).collect()
}

/// A bias in i32 and the scales of its steps. Where the weight has one scale, the bias
/// has.
pub fn bias(b: &[f32], activation: f32, scales: &[f32]) -> (Vec<i32>, Vec<f32>) {
    let steps: Vec<f32> = scales.iter().map(|s| s * activation).collect();
    let round = |(i, v): (usize, &f32)| {
        let step = steps[if steps.len() == 1 { 0 } else { i }] as f64;
        // Saturates; `floors` sees to it that nothing does.
        (*v as f64 / step).round_ties_even() as i32
    };
    (b.iter().enumerate().map(round).collect(), steps)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_of_each_channel_is_127() {
        let w = [1.0, -2.0, 0.5, 0.25, 10.0, -5.0];
        let q = quantize(&w, &[3, 2], Some(0), 127, &[]).unwrap();
        assert_eq!(q.values, [64, -127, 127, 64, 127, -64]);
        assert_eq!(q.scales, [2.0 / 127.0, 0.5 / 127.0, 10.0 / 127.0]);
        let columns = quantize(&w, &[3, 2], Some(1), 127, &[]).unwrap();
        assert_eq!(columns.values, [13, -51, 6, 6, 127, -127]);
        let one = quantize(&w, &[3, 2], None, 63, &[]).unwrap();
        assert_eq!(one.values, [6, -13, 3, 2, 63, -31]);
        assert!(q.sqnr_db > one.sqnr_db);
    }

    #[test]
    fn noise_is_what_rounding_gives() {
        // Uniform over the steps: noise is a twelfth of a step squared.
        let w: Vec<f32> = (0..=25_400).map(|i| (i - 12_700) as f32 / 100.0).collect();
        let q = quantize(&w, &[w.len()], None, 127, &[]).unwrap();
        let want = 10.0 * ((127.0f64 * 127.0 / 3.0) / (1.0 / 12.0)).log10();
        assert!((q.sqnr_db - want).abs() < 0.05, "{} and {want}", q.sqnr_db);
    }

    #[test]
    fn channels_of_zeros_and_large_biases_fit() {
        let w = [0.0, 0.0, 1e-6, 1e-6];
        let b = [3.0f32, 900.0];
        let floors = floors(&b, 0.01);
        let q = quantize(&w, &[2, 2], Some(0), 127, &floors).unwrap();
        let (ints, steps) = bias(&b, 0.01, &q.scales);
        for (i, v) in b.iter().enumerate() {
            let back = ints[i] as f64 * steps[i] as f64;
            assert!(
                (back - *v as f64).abs() <= 1e-6 * *v as f64,
                "{back} and {v}"
            );
        }
        assert!(quantize(&[f32::NAN], &[1], None, 127, &[]).is_none());
        assert!(quantize(&[], &[0, 4], Some(0), 127, &[]).is_some());
    }
}
