//! Convolutions in which every channel has a filter of its own, channels last.
//!
//! Lanes run along channels. A unit is a part of one line of the result; pixels whose
//! taps are all in the image are done some at a time, so that a filter's vector and an
//! image's vector are read once for several products; the others are done singly, with
//! a row of zeros in the place of what is outside. Bytes are summed four taps at a time
//! (`bytes.rs`).

mod bytes;

use crate::conv::ConvSpec;
use crate::dot::DotTile;
use crate::image::Image;
use crate::lower::{ExprCx, memory_elem};
use crate::matmul::{ceil_div, div_rem};
use crate::micro;
use crate::nest::{LANES, size_dim};
use kiln_codegen::emit::{Cmp, KernelArgs};
use kiln_codegen::{CpuTarget, Elem, Emitter, Ty, Val};
use kiln_ir::{DType, Dim};
use std::collections::BTreeMap;

/// Pixels of a work unit.
const LINE: i64 = 64;

/// Pixels computed together.
const TOGETHER: i64 = 4;

/// Taps beyond which code that names each of them is too long.
pub const MOST_TAPS: i64 = 64;

/// Work units of a launch.
pub(crate) fn tiles(spec: &ConvSpec, params: &[Dim]) -> Dim {
    let dim = |s| size_dim(s, params);
    let last = spec.output.len() - 1;
    let lines = spec.output[..last]
        .iter()
        .fold(dim(spec.batch), |p, &s| p * dim(s));
    lines * dim(spec.output[last]).ceil_div(&LINE.into())
}

/// The loop over units.
pub(crate) fn body(
    e: &mut Emitter,
    cx: &mut ExprCx,
    spec: &ConvSpec,
    target: &CpuTarget,
    image: &Image,
    args: &KernelArgs,
) {
    let last = spec.output.len() - 1;
    let (one, line) = (e.i64(1), e.i64(LINE));
    let width = image.output[last];
    let parts = ceil_div(e, width, line);
    e.for_loop(args.begin, args.end, one, &[], |e, unit, _| {
        cx.push();
        let (mut rest, part) = div_rem(e, unit, parts);
        let mut place = vec![];
        for &extent in image.output[..last].iter().rev() {
            let (next, here) = div_rem(e, rest, extent);
            place.push(here);
            rest = next;
        }
        place.push(rest);
        place.reverse();
        let from = e.mul(part, line);
        let to = e.add(from, line);
        let to = e.min(to, width, false);
        let line = Line::new(e, cx, (spec, DotTile::of(target)), image, place);
        line.run(e, cx, from, to);
        cx.pop();
        vec![]
    });
}

/// Channel 0 of a pixel of the image, by row and column.
type Pointer<'a> = dyn Fn(&mut Emitter, usize, i64, Elem) -> Val + 'a;

/// The rows of the image that one line of the result reads.
struct Line<'a> {
    spec: &'a ConvSpec,
    tile: DotTile,
    image: &'a Image,
    /// Batch and all spatial places but the last.
    place: Vec<Val>,
    /// By taps of all axes but the last: the row's first element, and whether the row
    /// is in the image.
    rows: Vec<(Val, Option<Val>)>,
    zeros: Val,
}

impl<'a> Line<'a> {
    fn new(
        e: &mut Emitter,
        cx: &ExprCx,
        (spec, tile): (&'a ConvSpec, DotTile),
        image: &'a Image,
        place: Vec<Val>,
    ) -> Line<'a> {
        let last = spec.kernel.len() - 1;
        let at = e.mul(place[0], image.steps[0]);
        let mut rows: Vec<(Val, Option<Val>)> = vec![(at, None)];
        for i in 0..last {
            let stride = e.i64(spec.strides[i]);
            let first = e.mul(place[i + 1], stride);
            let first = e.sub(first, image.lo[i]);
            let mut next = vec![];
            for (at, inside) in rows {
                for k in 0..spec.kernel[i] {
                    let away = e.i64(k * spec.dilations[i]);
                    let p = e.add(first, away);
                    let skip = e.mul(p, image.steps[i + 1]);
                    let ok = spec
                        .bordered
                        .then(|| e.cmp(Cmp::Lt, p, image.input[i], true));
                    next.push((e.add(at, skip), both(e, inside, ok)));
                }
            }
            rows = next;
        }
        let elem = memory_elem(spec.args[0]);
        let rows = rows
            .into_iter()
            .map(|(at, ok)| (e.offset(cx.args[0], at, elem), ok))
            .collect();
        let zeros_at = e.i64(spec.zeros_place());
        let zeros = e.offset(cx.scratch, zeros_at, Elem::I8);
        Line {
            spec,
            tile,
            image,
            place,
            rows,
            zeros,
        }
    }

    /// The pixels `from..to` of the line.
    fn run(&self, e: &mut Emitter, cx: &mut ExprCx, from: Val, to: Val) {
        let (spec, one, together) = (self.spec, e.i64(1), e.i64(TOGETHER));
        let (start, end) = self.inner(e, from, to);
        let count = e.sub(end, start);
        let zero = e.i64(0);
        let count = e.max(count, zero, false);
        let whole = e.op2("arith.divsi", count, together);
        let whole = e.mul(whole, together);
        let middle = e.add(start, whole);
        e.for_loop(start, middle, together, &[], |e, x, _| {
            let stride = e.i64(spec.strides[spec.strides.len() - 1]);
            let p = e.mul(x, stride);
            let p = e.sub(p, self.image.lo[self.image.lo.len() - 1]);
            let channels = e.i64(spec.channels);
            let skip = e.mul(p, channels);
            self.pixels(e, cx, x, TOGETHER, &|e, row, column, elem| {
                let away = e.i64(column * spec.channels);
                let at = e.add(skip, away);
                e.offset(self.rows[row].0, at, elem)
            });
            vec![]
        });
        // Before and behind those.
        let two = e.i64(2);
        e.for_loop(zero, two, one, &[], |e, side, _| {
            let before = e.cmp(Cmp::Eq, side, zero, false);
            let low = e.select(before, from, middle);
            let high = e.select(before, start, to);
            e.for_loop(low, high, one, &[], |e, x, _| {
                let pointers = self.pointers(e, x);
                self.pixels(e, cx, x, 1, &|_, row, column, _| pointers[&(row, column)]);
                vec![]
            });
            vec![]
        });
    }

    /// The pixels of `from..to` whose taps are all in the image; none (`to..to`) if a
    /// row is not.
    fn inner(&self, e: &mut Emitter, from: Val, to: Val) -> (Val, Val) {
        let (spec, last) = (self.spec, self.spec.kernel.len() - 1);
        if !spec.bordered {
            return (from, to);
        }
        let (lo, width) = (self.image.lo[last], self.image.input[last]);
        let (stride, span) = (
            e.i64(spec.strides[last]),
            e.i64((spec.kernel[last] - 1) * spec.dilations[last] + 1),
        );
        let first = ceil_div(e, lo, stride);
        let room = e.add(width, lo);
        let room = e.sub(room, span);
        let zero = e.i64(0);
        let fits = e.cmp(Cmp::Ge, room, zero, false);
        let room = e.max(room, zero, false);
        let (end, one) = (e.op2("arith.divsi", room, stride), e.i64(1));
        let end = e.add(end, one);
        let all = self.rows.iter().fold(fits, |all, r| match r.1 {
            Some(ok) => e.op2("arith.andi", all, ok),
            None => all,
        });
        let start = e.max(first, from, false);
        let start = e.min(start, to, false);
        let end = e.min(end, to, false);
        (e.select(all, start, to), e.select(all, end, to))
    }

    /// Where each tap of pixel `x` reads.
    fn pointers(&self, e: &mut Emitter, x: Val) -> BTreeMap<(usize, i64), Val> {
        let (spec, last) = (self.spec, self.spec.kernel.len() - 1);
        let elem = memory_elem(spec.args[0]);
        let (stride, channels) = (e.i64(spec.strides[last]), e.i64(spec.channels));
        let first = e.mul(x, stride);
        let first = e.sub(first, self.image.lo[last]);
        let mut out = BTreeMap::new();
        for k in 0..spec.kernel[last] {
            let column = k * spec.dilations[last];
            let away = e.i64(column);
            let p = e.add(first, away);
            let at = e.mul(p, channels);
            let ok = spec
                .bordered
                .then(|| e.cmp(Cmp::Lt, p, self.image.input[last], true));
            for (row, &(start, inside)) in self.rows.iter().enumerate() {
                let mut pointer = e.offset(start, at, elem);
                if let Some(ok) = both(e, inside, ok) {
                    pointer = e.select(ok, pointer, self.zeros);
                }
                out.insert((row, column), pointer);
            }
        }
        out
    }

    /// `count` pixels from `x` on, all channels; `pointer(row, column)` is channel 0 of
    /// a pixel of the image, columns counted from the first pixel's first tap.
    fn pixels(&self, e: &mut Emitter, cx: &mut ExprCx, x: Val, count: i64, pointer: &Pointer) {
        let whole = self.spec.channels / LANES * LANES;
        let (zero, end, step) = (e.i64(0), e.i64(whole), e.i64(LANES));
        if whole > 0 {
            e.for_loop(zero, end, step, &[], |e, c, _| {
                self.vector(e, cx, (x, count), c, None, pointer);
                vec![]
            });
        }
        if whole < self.spec.channels {
            let left = e.i64(self.spec.channels - whole);
            let mask = e.mask_first(left, LANES as u32);
            self.vector(e, cx, (x, count), end, Some(mask), pointer);
        }
    }

    /// One vector of channels of some pixels.
    fn vector(
        &self,
        e: &mut Emitter,
        cx: &mut ExprCx,
        (x, count): (Val, i64),
        c: Val,
        mask: Option<Val>,
        pointer: &Pointer,
    ) {
        let spec = self.spec;
        let sums = match spec.of_bytes() {
            true => self.sum_bytes(e, cx, count, c, mask, pointer),
            false => self.sum_floats(e, cx, count, c, mask, pointer),
        };
        let out = spec.args.len() as u16 - 1;
        for (i, sum) in sums.into_iter().enumerate() {
            cx.push();
            let i = e.i64(i as i64);
            let mut place = self.place.clone();
            place.push(e.add(x, i));
            cx.mask = mask;
            spec.finish(e, cx, &place, c, sum, out);
            cx.mask = None;
            cx.pop();
        }
    }

    fn sum_floats(
        &self,
        e: &mut Emitter,
        cx: &ExprCx,
        count: i64,
        c: Val,
        mask: Option<Val>,
        pointer: &Pointer,
    ) -> Vec<Val> {
        let (spec, last) = (self.spec, self.spec.kernel.len() - 1);
        let lanes = LANES as u32;
        let load = |e: &mut Emitter, p: Val, dtype: DType| {
            let elem = memory_elem(dtype);
            let p = e.offset(p, c, elem);
            let raw = match mask {
                Some(m) => e.load_masked(p, Ty::vector(elem, lanes), m),
                None => e.load(p, Ty::vector(elem, lanes)),
            };
            micro::widen(e, raw, dtype, DType::F32)
        };
        let mut sums = vec![e.zero(Ty::vector(Elem::F32, lanes)); count as usize];
        let (x_elem, w_elem) = (memory_elem(spec.args[0]), memory_elem(spec.args[1]));
        for row in 0..self.rows.len() {
            let mut seen: BTreeMap<i64, Val> = BTreeMap::new();
            for k in 0..spec.kernel[last] {
                let tap = row as i64 * spec.kernel[last] + k;
                let at = e.i64(tap * spec.channels);
                let p = e.offset(cx.args[1], at, w_elem);
                let w = load(e, p, spec.args[1]);
                for (i, sum) in sums.iter_mut().enumerate() {
                    let column = i as i64 * spec.strides[last] + k * spec.dilations[last];
                    let v = match seen.get(&column) {
                        Some(&v) => v,
                        None => {
                            let p = pointer(e, row, column, x_elem);
                            let v = load(e, p, spec.args[0]);
                            seen.insert(column, v);
                            v
                        }
                    };
                    *sum = e.fma(v, w, *sum);
                }
            }
        }
        sums
    }
}

fn both(e: &mut Emitter, a: Option<Val>, b: Option<Val>) -> Option<Val> {
    match (a, b) {
        (Some(a), Some(b)) => Some(e.op2("arith.andi", a, b)),
        (a, b) => a.or(b),
    }
}
