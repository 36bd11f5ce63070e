//! How far the quantized model's outputs are from the model's.

use kiln::ir::DType;
use kiln::runtime::TensorRef;

/// An output of both, over all batches.
#[derive(Clone, Debug, Default)]
pub struct Output {
    pub name: String,
    error: f64,
    norm: f64,
    dot: f64,
    other: f64,
    /// max |a − b|.
    pub largest: f64,
    /// Elements that differ, and all, of outputs that are no floats.
    differ: u64,
    count: u64,
    float: bool,
    /// They are of different shapes, or NaN or infinite in different places.
    pub mismatch: Option<String>,
}

impl Output {
    pub fn named(name: &str) -> Output {
        Output {
            name: name.to_string(),
            ..Output::default()
        }
    }

    /// Counts one batch: what the model gives, and what the quantized one gives.
    pub fn add(&mut self, want: TensorRef, got: TensorRef) {
        self.float = want.dtype.is_float();
        if (want.dtype, want.shape) != (got.dtype, got.shape) {
            let what = format!(
                "{}{:?} became {}{:?}",
                want.dtype, want.shape, got.dtype, got.shape
            );
            self.mismatch.get_or_insert(what);
            return;
        }
        let n: usize = want.shape.iter().product();
        self.count += n as u64;
        if !self.float {
            let size = want.dtype.size().unwrap_or(1);
            let pairs = want.bytes.chunks(size).zip(got.bytes.chunks(size));
            self.differ += pairs.filter(|(a, b)| a != b).count() as u64;
            return;
        }
        for i in 0..n {
            let a = kiln::ir::tensor::read_f64(want.dtype, want.bytes, i);
            let b = kiln::ir::tensor::read_f64(got.dtype, got.bytes, i);
            if !a.is_finite() || !b.is_finite() {
                if a != b && !(a.is_nan() && b.is_nan()) {
                    self.mismatch
                        .get_or_insert(format!("element {i} is {b}, not {a}"));
                }
                continue;
            }
            self.error += (a - b) * (a - b);
            self.norm += a * a;
            self.other += b * b;
            self.dot += a * b;
            self.largest = self.largest.max((a - b).abs());
        }
    }

    /// ‖a − b‖ / ‖a‖ of floats; of others the share of elements that differ.
    /// Infinite where they cannot be compared.
    pub fn relative(&self) -> f64 {
        match (&self.mismatch, self.float) {
            (Some(_), _) => f64::INFINITY,
            (None, false) => self.differ as f64 / self.count.max(1) as f64,
            (None, true) if self.norm > 0.0 => (self.error / self.norm).sqrt(),
            (None, true) => self.error.sqrt(),
        }
    }

    /// The cosine of the angle between both, of floats.
    pub fn cosine(&self) -> Option<f64> {
        let norms = (self.norm * self.other).sqrt();
        (self.float && norms > 0.0).then(|| self.dot / norms)
    }

    pub fn is_float(&self) -> bool {
        self.float
    }
}

/// The f32 elements of a value; none of another type.
pub fn floats(t: TensorRef) -> Option<Vec<f32>> {
    let (whole, _) = t.bytes.as_chunks::<4>();
    (t.dtype == DType::F32).then(|| whole.iter().map(|b| f32::from_le_bytes(*b)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(dtype: DType, want: &[u8], got: &[u8]) -> Output {
        let shape = [want.len() / dtype.size().unwrap()];
        let of = |bytes| TensorRef {
            dtype,
            shape: &shape,
            bytes,
        };
        let mut out = Output::default();
        out.add(of(want), of(got));
        out
    }

    #[test]
    fn errors_are_relative_and_integers_are_counted() {
        let f = |v: [f32; 2]| v.map(f32::to_le_bytes).concat();
        let o = one(DType::F32, &f([3.0, 4.0]), &f([3.0, 4.5]));
        assert!((o.relative() - 0.1).abs() < 1e-9 && o.largest == 0.5);
        assert!(o.cosine().unwrap() > 0.99);
        assert_eq!(
            one(DType::U8, &[1, 2, 3, 4], &[1, 2, 3, 5]).relative(),
            0.25
        );
        let nan = one(DType::F32, &f([f32::NAN, 1.0]), &f([0.0, 1.0]));
        assert_eq!(
            (nan.relative(), nan.mismatch.is_some()),
            (f64::INFINITY, true)
        );
        assert_eq!(
            one(DType::F32, &f([f32::NAN, 1.0]), &f([f32::NAN, 1.0])).relative(),
            0.0
        );
    }
}
