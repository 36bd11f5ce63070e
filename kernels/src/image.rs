//! The pixels of a convolution's image and of its result, as a kernel counts them.

use crate::conv::ConvSpec;
use crate::expr::Size;
use crate::lower::ExprCx;
use crate::matmul::div_rem;
use kiln_codegen::emit::Cmp;
use kiln_codegen::{Emitter, Val};

/// Where the first tap of a row falls.
pub(crate) struct Origin {
    /// Its element, outside the image or not.
    at: Val,
    /// Its place along each spatial axis.
    places: Vec<Val>,
}

/// The extents of a launch as values.
pub(crate) struct Image {
    pub batch: Val,
    pub input: Vec<Val>,
    pub output: Vec<Val>,
    pub lo: Vec<Val>,
    /// Elements from one place to the next along the batch and each spatial axis.
    pub steps: Vec<Val>,
}

impl Image {
    pub fn new(e: &mut Emitter, cx: &ExprCx, spec: &ConvSpec) -> Image {
        let mut all = |s: &[Size]| -> Vec<Val> { s.iter().map(|&s| cx.size(e, s)).collect() };
        let (input, output, lo) = (all(&spec.input), all(&spec.output), all(&spec.lo));
        let batch = cx.size(e, spec.batch);
        let mut steps = vec![e.i64(spec.channels)];
        for &extent in input.iter().rev() {
            steps.push(e.mul(steps[steps.len() - 1], extent));
        }
        steps.reverse();
        Image {
            batch,
            input,
            output,
            lo,
            steps,
        }
    }

    /// The batch and the spatial place of a row.
    pub fn coordinates(&self, e: &mut Emitter, row: Val) -> Vec<Val> {
        let (mut rest, mut places) = (row, vec![]);
        for &extent in self.output.iter().rev() {
            let (next, here) = div_rem(e, rest, extent);
            places.push(here);
            rest = next;
        }
        places.push(rest);
        places.reverse();
        places
    }

    /// The coordinates of the next row.
    pub fn next(&self, e: &mut Emitter, place: &[Val]) -> Vec<Val> {
        let (zero, one) = (e.i64(0), e.i64(1));
        let mut out = place.to_vec();
        let mut carry = one;
        for i in (1..place.len()).rev() {
            let up = e.add(place[i], carry);
            let wraps = e.cmp(Cmp::Ge, up, self.output[i - 1], false);
            out[i] = e.select(wraps, zero, up);
            carry = e.select(wraps, one, zero);
        }
        out[0] = e.add(place[0], carry);
        out
    }

    /// Where the first taps of `count` rows from `row` on fall.
    pub fn origins(&self, e: &mut Emitter, spec: &ConvSpec, row: Val, count: u32) -> Vec<Origin> {
        let plain = !spec.bordered && spec.taps() == 1 && spec.strides.iter().all(|&s| s == 1);
        if plain {
            // Row by row as the image lies.
            let channels = e.i64(spec.channels);
            return (0..count as i64)
                .map(|r| {
                    let r = e.i64(r);
                    let row = e.add(row, r);
                    Origin {
                        at: e.mul(row, channels),
                        places: vec![],
                    }
                })
                .collect();
        }
        let mut place = self.coordinates(e, row);
        let mut out = vec![];
        for r in 0..count {
            let mut at = e.mul(place[0], self.steps[0]);
            let mut places = vec![];
            for i in 0..self.input.len() {
                let stride = e.i64(spec.strides[i]);
                let p = e.mul(place[i + 1], stride);
                let p = e.sub(p, self.lo[i]);
                let skip = e.mul(p, self.steps[i + 1]);
                at = e.add(at, skip);
                places.push(p);
            }
            out.push(Origin { at, places });
            if r + 1 < count {
                place = self.next(e, &place);
            }
        }
        out
    }

    /// The elements that tap `t` hits in rows, and whether they are in the image.
    pub fn hits(
        &self,
        e: &mut Emitter,
        spec: &ConvSpec,
        kernel: &[i64],
        t: Val,
        origins: &[Origin],
    ) -> Vec<(Val, Option<Val>)> {
        let mut rest = t;
        let mut away = vec![e.i64(0); kernel.len()];
        for i in (0..kernel.len()).rev() {
            let extent = e.i64(kernel[i]);
            let (next, k) = match i {
                0 => (rest, rest),
                _ if kernel[i] == 1 => (rest, e.i64(0)),
                _ => div_rem(e, rest, extent),
            };
            let dilation = e.i64(spec.dilations[i]);
            away[i] = e.mul(k, dilation);
            rest = next;
        }
        let mut skip = e.i64(0);
        for (i, &d) in away.iter().enumerate() {
            let step = e.mul(d, self.steps[i + 1]);
            skip = e.add(skip, step);
        }
        origins
            .iter()
            .map(|o| {
                let at = e.add(o.at, skip);
                let mut inside: Option<Val> = None;
                if spec.bordered {
                    for (i, &p) in o.places.iter().enumerate() {
                        let p = e.add(p, away[i]);
                        // Below 0 is far above as an unsigned number.
                        let ok = e.cmp(Cmp::Lt, p, self.input[i], true);
                        inside = Some(match inside {
                            Some(all) => e.op2("arith.andi", all, ok),
                            None => ok,
                        });
                    }
                }
                (at, inside)
            })
            .collect()
    }
}
