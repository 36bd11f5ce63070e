//! Sums of bytes where every channel has a filter of its own.
//!
//! A lane holds four neighbours of a channel along the last axis, which one instruction
//! multiplies by four taps: columns are put together from the last to the first, so that
//! neighbouring pixels share that work.

use super::{Line, Pointer};
use crate::dot::GROUP;
use crate::lower::ExprCx;
use crate::nest::LANES;
use kiln_codegen::{Elem, Emitter, Ty, Val};
use kiln_ir::DType;
use std::collections::{BTreeMap, BTreeSet};

/// The top bit of each byte of a lane.
const FLIP: i64 = 0x8080_8080u32 as i32 as i64;

impl Line<'_> {
    /// The sums of one vector of channels of `count` pixels.
    pub(super) fn sum_bytes(
        &self,
        e: &mut Emitter,
        cx: &ExprCx,
        count: i64,
        c: Val,
        mask: Option<Val>,
        pointer: &Pointer,
    ) -> Vec<Val> {
        let (spec, last) = (self.spec, self.spec.kernel.len() - 1);
        let (taps, stride, dilation) =
            (spec.kernel[last], spec.strides[last], spec.dilations[last]);
        let lanes = Ty::vector(Elem::I32, LANES as u32);
        let none = e.zero(lanes);
        // Signed bytes are read 128 higher.
        let signed = spec.args[0] == DType::I8;
        let (flip, mut off) = (e.int(lanes, FLIP), none);
        let mut sums = vec![none; count as usize];
        let groups = (taps + GROUP - 1) / GROUP;
        for row in 0..self.rows.len() {
            let fours = self.fours(e, row, count, c, mask, pointer);
            for g in 0..groups {
                let at = e.i64((row as i64 * groups + g) * spec.channels);
                let at = e.add(at, c);
                let p = e.offset(cx.args[1], at, Elem::I32);
                let w = match mask {
                    Some(m) => e.load_masked_bytes(p, lanes, m),
                    None => e.load_bytes(p, lanes),
                };
                if signed {
                    off = self.tile.add_lanes(e, off, flip, w);
                }
                for (i, sum) in (0..).zip(&mut sums) {
                    let four = fours[&(i * stride + g * GROUP * dilation)];
                    *sum = self.tile.add_lanes(e, *sum, four, w);
                }
            }
        }
        if signed {
            sums.iter_mut().for_each(|sum| *sum = e.sub(*sum, off));
        }
        sums
    }

    /// By column, the bytes of it and of the three that follow a dilation apart, as far
    /// as some tap of some pixel reads them.
    fn fours(
        &self,
        e: &mut Emitter,
        row: usize,
        count: i64,
        c: Val,
        mask: Option<Val>,
        pointer: &Pointer,
    ) -> BTreeMap<i64, Val> {
        let (spec, last) = (self.spec, self.spec.kernel.len() - 1);
        let (stride, dilation) = (spec.strides[last], spec.dilations[last]);
        let read: BTreeSet<i64> = (0..count)
            .flat_map(|i| (0..spec.kernel[last]).map(move |k| i * stride + k * dilation))
            .collect();
        let bytes = Ty::vector(Elem::I8, LANES as u32);
        let lanes = Ty::vector(Elem::I32, LANES as u32);
        let (eight, top) = (e.int(lanes, 8), e.int(bytes, -128));
        let mut fours = BTreeMap::new();
        for &column in read.iter().rev() {
            let p = pointer(e, row, column, Elem::I8);
            let p = e.offset(p, c, Elem::I8);
            let mut x = match mask {
                Some(m) => e.load_masked_bytes(p, bytes, m),
                None => e.load_bytes(p, bytes),
            };
            if spec.args[0] == DType::I8 {
                x = e.op2("arith.xori", x, top);
            }
            let mut x = e.cast(x, Elem::I32, true, true);
            if let Some(&next) = fours.get(&(column + dilation)) {
                let next = e.op2("arith.shli", next, eight);
                x = e.op2("arith.ori", x, next);
            }
            fours.insert(column, x);
        }
        fours
    }
}
