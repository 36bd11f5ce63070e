//! Steps that the runtime itself computes: what has no kernel because its results'
//! sizes depend on data, because it sorts, or because elements share bytes.

use crate::error::{Error, Result};
use crate::exec::Run;
use crate::plan::{Launch, Step};
use crate::top_k::{Keys, TopK};
use kiln_ir::{DType, Dim};

/// Elements below which a selection is not worth a second thread.
const SERIAL_ELEMENTS: usize = 8_000;

/// A selection's sizes.
pub(crate) struct Selection<'a> {
    launch: &'a Launch,
    dtype: DType,
    largest: bool,
    /// Lanes, elements along the axis, lanes inside of it, and how many are taken.
    lanes: usize,
    n: usize,
    inner: usize,
    k: usize,
}

impl Run<'_> {
    /// Packs elements of less than a byte, or gives each its own.
    pub(crate) fn repack(
        &mut self,
        from: u32,
        to: u32,
        dtype: DType,
        count: &Dim,
        pack: bool,
    ) -> Result<()> {
        let n = count
            .eval(&self.binding)
            .map_err(|e| Error::run("K0720", e.to_string()))?;
        let n = usize::try_from(n).unwrap_or(0);
        let (bits, signed) = (dtype.bits(), dtype.kind() == kiln_ir::Kind::Int);
        let (per, mask) = (8 / bits, (1u8 << bits) - 1);
        let (from, to) = (self.pointer(from)?, self.pointer(to)?);
        let packed = n.div_ceil(per);
        let (have, want) = if pack { (n, packed) } else { (packed, n) };
        let watch = self.watch();
        // SAFETY: both buffers have at least these bytes by lowering, and they are
        // two buffers.
        let (from, to) = unsafe {
            (
                std::slice::from_raw_parts(from, have),
                std::slice::from_raw_parts_mut(to, want),
            )
        };
        if pack {
            to.fill(0);
            for (i, v) in from.iter().enumerate() {
                to[i / per] |= (v & mask) << (bits * (i % per));
            }
        } else {
            for (i, v) in to.iter_mut().enumerate() {
                let raw = from[i / per] >> (bits * (i % per)) & mask;
                let up = 8 - bits;
                *v = match signed {
                    true => ((raw << up) as i8 >> up) as u8,
                    false => raw,
                };
            }
        }
        let name = if pack { "pack" } else { "unpack" };
        self.note(watch, name, name, 0, (have + want) as i64);
        Ok(())
    }

    /// Finds the nonzero elements and names their number.
    pub(crate) fn nonzero(
        &mut self,
        from: u32,
        dtype: DType,
        dims: &[Dim],
        to: u32,
        symbol: &str,
    ) -> Result<()> {
        let shape: Vec<usize> = dims
            .iter()
            .map(|d| {
                d.eval(&self.binding)
                    .ok()
                    .and_then(|v| usize::try_from(v).ok())
            })
            .collect::<Option<_>>()
            .ok_or_else(|| Error::run("K0720", "the size of nonzero's argument is not known"))?;
        let total: usize = shape.iter().product();
        let size = dtype.size().unwrap_or(1);
        let source = self.pointer(from)?;
        // SAFETY: the buffer holds `total` elements by lowering.
        let bytes = unsafe { std::slice::from_raw_parts(source, total * size) };
        let watch = self.watch();
        let float = dtype.is_float();
        let found: Vec<usize> = (0..total)
            .filter(|&i| {
                if float {
                    kiln_ir::tensor::read_f64(dtype, bytes, i) != 0.0
                } else {
                    bytes[i * size..(i + 1) * size].iter().any(|&b| b != 0)
                }
            })
            .collect();
        self.binding.insert(symbol.into(), found.len() as i64);
        let out = self.pointer(to)?.cast::<i64>();
        for (axis, _) in shape.iter().enumerate() {
            let inner: usize = shape[axis + 1..].iter().product();
            for (k, &i) in found.iter().enumerate() {
                // SAFETY: the buffer has rank × count elements.
                unsafe {
                    out.add(axis * found.len() + k)
                        .write((i / inner.max(1) % shape[axis]) as i64)
                };
            }
        }
        let moved = total * size + 8 * shape.len() * found.len();
        self.note(watch, "nonzero", "nonzero", 0, moved as i64);
        Ok(())
    }

    /// The sizes of a selection, wherever it is computed; K0716 where `k` is too large.
    pub(crate) fn selection<'s>(&self, step: &'s Step) -> Result<Selection<'s>> {
        let Step::TopK {
            launch,
            dtype,
            dims,
            axis,
            k,
            largest,
        } = step
        else {
            return Err(Error::run("K0720", "a step is not what it was taken for"));
        };
        let label = &launch.label;
        let size = |d: &Dim| {
            let n = d
                .eval(&self.binding)
                .ok()
                .and_then(|v| usize::try_from(v).ok());
            n.ok_or_else(|| Error::run("K0720", format!("{label}: the size `{d}` has no value")))
        };
        let shape = dims.iter().map(size).collect::<Result<Vec<usize>>>()?;
        let (axis, k) = (*axis as usize, size(k)?);
        let n = shape[axis];
        if k > n {
            let message = format!("{label}: k = {k} is more than the {n} elements of axis {axis}");
            return Err(Error::run("K0716", message).help("give a smaller k"));
        }
        let inner: usize = shape[axis + 1..].iter().product();
        Ok(Selection {
            launch,
            dtype: *dtype,
            largest: *largest,
            lanes: shape[..axis].iter().product::<usize>() * inner,
            n,
            inner,
            k,
        })
    }

    /// Selects the best elements of every lane, lanes on all threads.
    pub(crate) fn top_k(&mut self, s: &Selection) -> Result<()> {
        let Selection {
            launch,
            dtype,
            largest,
            lanes,
            n,
            inner,
            k,
        } = *s;
        let label = &launch.label;
        let [from, values, indices] = [0, 1, 2].map(|i: usize| launch.args[i].0);
        let width = dtype.size().unwrap_or(1);
        let (source, to, at) = (
            self.pointer(from)?,
            self.pointer(values)?,
            self.pointer(indices)?,
        );
        let holds = |b: u32, bytes: usize| self.sizes[b as usize].is_none_or(|s| s >= bytes);
        let planned = holds(from, lanes * n * width)
            && holds(values, lanes * k * width)
            && holds(indices, lanes * k * 8);
        if !planned {
            return Err(Error::run(
                "K0725",
                format!("{label}: a buffer is too small"),
            ));
        }
        struct Places(*mut u8, *mut u8);
        // SAFETY: every lane writes places of its own.
        unsafe impl Sync for Places {}
        let places = &Places(to, at);
        let top = TopK {
            dtype,
            // SAFETY: the buffer holds this many bytes, as was just checked.
            from: unsafe { std::slice::from_raw_parts(source, lanes * n * width) },
            n,
            inner: inner.max(1),
            k,
            largest,
        };
        let watch = self.watch();
        let serial = lanes * n < SERIAL_ELEMENTS;
        let bytes = top.from;
        let select = |begin, end| {
            let mut keys = Keys::default();
            for lane in begin as usize..end as usize {
                top.lane(lane, &mut keys, |place, i, index| {
                    // SAFETY: places lie inside `lanes · k` elements.
                    unsafe {
                        let element = bytes[i * width..].as_ptr();
                        std::ptr::copy_nonoverlapping(element, places.0.add(place * width), width);
                        places.1.cast::<i64>().add(place).write_unaligned(index);
                    }
                });
            }
            0
        };
        self.pool
            .run(lanes as i64, serial, &|thread, begin, end| match &watch {
                Some(w) => w.units(thread, end - begin, || select(begin, end)),
                None => select(begin, end),
            });
        let moved = lanes * (n * width + k * (width + 8));
        self.note(watch, label, "top_k", 0, moved as i64);
        Ok(())
    }
}
