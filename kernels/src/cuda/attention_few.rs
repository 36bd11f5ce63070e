//! The end of attention of few rows: warps that had all rows, and each a part of the keys,
//! join what they found.
//!
//! Each writes its sums, maxima and sums of weights to shared memory, where keys and values
//! were; then eight threads a row add these up in the warps' order.

use super::attention::{exponential, larger};
use super::attention_halves::{Attend, ROWS, THREADS, Thread, WARPS};
use super::attention_rows::{Block, Place, State};
use super::attention_split::{Kept, RUN, ends_at, width};
use kiln_codegen::emit::Cmp;
use kiln_codegen::{Elem, Emitter, Ty, Val};

/// Threads of a row.
const ACROSS: i64 = THREADS / ROWS;

const SINGLE: Ty = Ty::scalar(Elem::F32);

/// Keeps what the warps of a block found in a part.
pub(super) fn join(
    e: &mut Emitter,
    attend: &Attend,
    kept: &Kept,
    (b, p, t): (&Block, &Place, &Thread),
    state: &State,
) {
    let totals = attend.softmax.totals(e, state);
    let pitch = width(kept.spec);
    let start = e.i64(attend.shape.places()[0]);
    let start = e.offset(t.shared, start, Elem::I8);
    // All warps are done with keys and values.
    e.kernel_mut().barrier();
    let size = e.i64(ROWS * pitch);
    let own = e.mul(t.warp, size);
    let own = e.offset(start, own, Elem::F32);
    for i in 0..2 {
        let row = e.sub(p.rows[i], b.first);
        let to = at_row(e, own, row, pitch);
        kept.write(e, p, to, (state, &totals), i);
    }
    e.kernel_mut().barrier();
    let across = e.i64(ACROSS);
    let (row, c) = (
        e.op2("arith.divui", t.number, across),
        e.op2("arith.remui", t.number, across),
    );
    let here = e.add(b.first, row);
    let exists = e.cmp(Cmp::Lt, here, b.rows, false);
    e.if_then(exists, |e| {
        let found: Vec<Val> = (0..WARPS)
            .map(|w| {
                let skip = e.i64(w * ROWS * pitch);
                let from = e.offset(start, skip, Elem::F32);
                at_row(e, from, row, pitch)
            })
            .collect();
        let to = kept.row(e, here);
        add_up(e, kept, &found, c, to);
    });
}

fn at_row(e: &mut Emitter, from: Val, row: Val, pitch: i64) -> Val {
    let pitch = e.i64(pitch);
    let at = e.mul(row, pitch);
    e.offset(from, at, Elem::F32)
}

/// Adds up what warps found for a row, by the thread that is the `c`th of it.
fn add_up(e: &mut Emitter, kept: &Kept, found: &[Val], c: Val, to: Val) {
    let ends = e.i64(ends_at(kept.spec));
    let two: Vec<Vec<Val>> = (found.iter())
        .map(|&from| {
            let from = e.offset(from, ends, Elem::F32);
            e.load_few(from, Elem::F32, 2)
        })
        .collect();
    let (low, zero) = (e.float(SINGLE, f64::NEG_INFINITY), e.float(SINGLE, 0.0));
    let max = two.iter().fold(low, |max, of| larger(e, max, of[0]));
    // A row that has seen no key has −∞, whose difference is no number.
    let none = e.cmp(Cmp::Eq, max, low, false);
    let from = e.select(none, zero, max);
    let scales: Vec<Val> = two.iter().map(|of| exponential(e, of[0], from)).collect();
    let total = two.iter().zip(&scales).fold(zero, |sum, (of, &scale)| {
        let x = e.mul(of[1], scale);
        e.add(sum, x)
    });
    let first = e.i64(0);
    let first = e.cmp(Cmp::Eq, c, first, false);
    e.if_then(first, |e| kept.close(e, to, [max, total]));
    for skip in (0..ends_at(kept.spec)).step_by((RUN * ACROSS) as usize) {
        let (run, skip) = (e.i64(RUN), e.i64(skip));
        let column = e.mul(c, run);
        let column = e.add(column, skip);
        let inside = e.cmp(Cmp::Lt, column, ends, false);
        e.if_then(inside, |e| {
            let mut sums = vec![zero; RUN as usize];
            for (&from, &scale) in found.iter().zip(&scales) {
                let from = e.offset(from, column, Elem::F32);
                for (sum, x) in sums.iter_mut().zip(e.load_few(from, Elem::F32, RUN as u32)) {
                    let x = e.mul(x, scale);
                    *sum = e.add(*sum, x);
                }
            }
            let to = e.offset(to, column, Elem::F32);
            e.store_few(&sums, to);
        });
    }
}
