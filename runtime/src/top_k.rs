//! The `k` largest or smallest elements along an axis: a selection in linear time
//! (Hoare's, as the standard library has it), then a sort of what was selected.
//!
//! Elements become integers that are ordered as they are, so that one comparison
//! serves all types: of up to 32 bits together with their index in one word, which
//! also settles ties (the lower index first). NaN is larger than every number, and
//! −0 equals 0.

use kiln_ir::{DType, Kind, tensor};

/// One selection. Elements have at least a byte each.
pub(crate) struct TopK<'a> {
    pub(crate) dtype: DType,
    /// The argument.
    pub(crate) from: &'a [u8],
    /// Elements along the axis.
    pub(crate) n: usize,
    /// Elements between neighbours along it.
    pub(crate) inner: usize,
    /// How many are taken, at most `n`.
    pub(crate) k: usize,
    pub(crate) largest: bool,
}

impl TopK<'_> {
    /// Lane `lane` (of the outer axes' product times `inner`): `put(place, from, at)`
    /// hears, best first, of the flat place in the results, the flat place in the
    /// argument and the index along the axis.
    pub(crate) fn lane(
        &self,
        lane: usize,
        keys: &mut Keys,
        mut put: impl FnMut(usize, usize, i64),
    ) {
        let (outer, inner) = (lane / self.inner, lane % self.inner);
        let start = outer * self.n * self.inner + inner;
        let out = outer * self.k * self.inner + inner;
        let mut one = |place: usize, i: usize| {
            put(out + place * self.inner, start + i * self.inner, i as i64);
        };
        if self.dtype.bits() <= 32 && self.n <= u32::MAX as usize {
            keys.short.clear();
            keys.short.extend((0..self.n).map(|i| {
                let key = self.key32(start + i * self.inner);
                let key = if self.largest { !key } else { key };
                (key as u64) << 32 | i as u64
            }));
            let best = select(&mut keys.short, self.k);
            (best.iter().enumerate()).for_each(|(place, w)| one(place, *w as u32 as usize));
        } else {
            keys.long.clear();
            keys.long.extend((0..self.n).map(|i| {
                let key = self.key64(start + i * self.inner);
                (if self.largest { !key } else { key }, i)
            }));
            let best = select(&mut keys.long, self.k);
            (best.iter().enumerate()).for_each(|(place, w)| one(place, w.1));
        }
    }

    /// The order of elements of up to 32 bits.
    fn key32(&self, i: usize) -> u32 {
        match self.dtype.kind() {
            Kind::Float => {
                let v = tensor::read_f64(self.dtype, self.from, i) as f32;
                float32(v)
            }
            Kind::Uint | Kind::Bool => tensor::read_i64(self.dtype, self.from, i) as u32,
            Kind::Int | Kind::Complex | Kind::Str => {
                tensor::read_i64(self.dtype, self.from, i) as i32 as u32 ^ 1 << 31
            }
        }
    }

    fn key64(&self, i: usize) -> u64 {
        match self.dtype.kind() {
            Kind::Float => float64(tensor::read_f64(self.dtype, self.from, i)),
            Kind::Uint | Kind::Bool => tensor::read_i64(self.dtype, self.from, i) as u64,
            Kind::Int | Kind::Complex | Kind::Str => {
                tensor::read_i64(self.dtype, self.from, i) as u64 ^ 1 << 63
            }
        }
    }
}

/// Memory for the keys of one lane, kept from lane to lane.
#[derive(Default)]
pub(crate) struct Keys {
    short: Vec<u64>,
    long: Vec<(u64, usize)>,
}

/// The `k` least, in order.
fn select<T: Ord>(keys: &mut [T], k: usize) -> &[T] {
    if k == 0 {
        return &[];
    }
    if k < keys.len() {
        keys.select_nth_unstable(k - 1);
    }
    keys[..k].sort_unstable();
    &keys[..k]
}

/// Bits that order as the numbers do: those of negative ones are turned over.
fn float32(v: f32) -> u32 {
    if v.is_nan() {
        return u32::MAX;
    }
    let bits = (v + 0.0).to_bits();
    bits ^ if bits >> 31 == 1 { u32::MAX } else { 1 << 31 }
}

fn float64(v: f64) -> u64 {
    if v.is_nan() {
        return u64::MAX;
    }
    let bits = (v + 0.0).to_bits();
    bits ^ if bits >> 63 == 1 { u64::MAX } else { 1 << 63 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kiln_ir::Tensor;

    fn taken(t: &Tensor, n: usize, inner: usize, k: usize, largest: bool) -> Vec<i64> {
        let (dtype, from) = (t.dtype(), t.bytes());
        let top = TopK {
            dtype,
            from,
            n,
            inner,
            k,
            largest,
        };
        let lanes = t.len() / n;
        let mut out = vec![-1; lanes * k];
        for lane in 0..lanes {
            top.lane(lane, &mut Keys::default(), |place, _, at| out[place] = at);
        }
        out
    }

    #[test]
    fn numbers_nan_and_ties_have_one_order() {
        let values = [
            0.0,
            f64::NAN,
            -1.5,
            -0.0,
            f64::INFINITY,
            2.0,
            2.0,
            f64::NEG_INFINITY,
        ];
        for dtype in [DType::F32, DType::F64, DType::F16, DType::BF16] {
            let t = Tensor::from_f64(dtype, [8], &values).unwrap();
            assert_eq!(
                taken(&t, 8, 1, 8, true),
                [1, 4, 5, 6, 0, 3, 2, 7],
                "{dtype}"
            );
            assert_eq!(taken(&t, 8, 1, 3, false), [7, 2, 0], "{dtype}");
        }
    }

    #[test]
    fn integers_of_every_width() {
        for dtype in [DType::I8, DType::I16, DType::I32, DType::I64] {
            let t = Tensor::from_i64(dtype, [5], &[3, -7, 100, 3, 0]).unwrap();
            assert_eq!(taken(&t, 5, 1, 4, true), [2, 0, 3, 4], "{dtype}");
            assert_eq!(taken(&t, 5, 1, 2, false), [1, 4], "{dtype}");
        }
        let t = Tensor::from_i64(DType::U64, [3], &[1, -1, 5]).unwrap();
        assert_eq!(taken(&t, 3, 1, 1, true), [1]);
        let t = Tensor::from_i64(DType::Bool, [3], &[0, 1, 1]).unwrap();
        assert_eq!(taken(&t, 3, 1, 2, true), [1, 2]);
    }

    #[test]
    fn along_an_inner_axis() {
        // [2, 3, 2] along axis 1.
        let t = Tensor::from_f32([2, 3, 2], &[1., 9., 5., 8., 3., 7., 0., 0., 2., 1., 1., 2.]);
        assert_eq!(taken(&t.unwrap(), 3, 2, 2, true), [1, 0, 2, 1, 1, 2, 2, 1]);
    }
}
