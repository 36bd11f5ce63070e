//! Products of few rows on tensor cores, of panels of words: of bf16 with sums in f32, of
//! bytes with sums in i32 (`skinny.rs` has the frame; where neighbours along k lie together
//! `thin.rs` serves).
//!
//! `mma.sync` multiplies 16 columns of B, as the rows of its first operand, by all rows of A,
//! as the columns of its second: eight rows take the time of one, and fragments are what
//! lanes read. In a step of 16 words along k lane `l` has words `4·(l % 4) ..` of columns
//! `2·(l / 4)` and the next, and of row `l / 4`: 64 bytes of each product. Which word an instruction takes for which of
//! its own is free, as long as both sides agree.

use super::block::{self, Place, Sums};
use super::gemm::Source;
use super::halves::Factors;
use super::skinny::{self, WARPS};
use super::words::{byte, deep, words_apart};
use crate::lower::ExprCx;
use crate::matmul::{Columns, MatMulSpec, Words};
use kiln_codegen::emit::Cmp;
use kiln_codegen::ptx::Half;
use kiln_codegen::{Elem, Emitter, Ty, Val};

/// Words of a lane in a step, words of a warp, and steps that are read together.
const OWN: i64 = 4;
const STEP: i64 = 16;
const TOGETHER: i64 = 4;

/// Columns of a lane.
const PAIR: i64 = 2;

/// What tensor cores multiply, if they serve it.
pub(super) fn serves(spec: &MatMulSpec) -> Option<Factors> {
    match spec.b {
        Columns::Grouped => Some(match spec.words()? {
            Words::Pairs => Factors::Floats(Half::Bf16.into()),
            Words::Bytes(signs) => Factors::Bytes((byte(signs.a), byte(signs.b))),
        }),
        Columns::Packed | Columns::Strided { .. } | Columns::Blocks(_) => None,
    }
}

/// The integer that an element's bits are.
fn elem(of: Factors) -> Elem {
    match of {
        Factors::Floats(_) => Elem::I16,
        Factors::Bytes(_) => Elem::I8,
    }
}

/// Elements of a word.
fn group_of(of: Factors) -> i64 {
    32 / i64::from(elem(of).bits())
}

/// Leaves the sums of each warp in shared memory.
pub(super) fn share(
    e: &mut Emitter,
    cx: &ExprCx,
    spec: &MatMulSpec,
    of: Factors,
    p: &Place,
    sums: Sums,
) {
    let (warp, lane) = skinny::warp_and_lane(e, p.thread);
    let four = e.i64(4);
    let group = e.op2("arith.divui", lane, four);
    let quad = e.op2("arith.remui", lane, four);
    let zero = e.zero(Ty::scalar(sums.elem));
    let row = block::existing(e, group, p.rows.1);
    let own = Own {
        of,
        k: p.k,
        row: spec.row(e, cx, p.batch, row)[0],
        first: first(e, cx, spec, of, p, group),
        nr: spec.nr,
        aligned: rows_aligned(e, cx, spec, of, p),
        sums: e.variables(&[zero; 4]),
    };
    let each = group_of(of);
    let size = e.i64(OWN * each);
    let own_k = e.mul(quad, size);
    let step = e.i64(STEP * each);
    let first = e.mul(warp, step);
    let turn = e.i64(TOGETHER * WARPS * STEP * each);
    e.for_loop(first, p.k, turn, &[], |e, k0, _| {
        let k0 = e.add(k0, own_k);
        let all = |e: &mut Emitter, (): &mut ()| {
            own.together(e, cx, k0);
            vec![]
        };
        let each = |e: &mut Emitter, (): &mut ()| {
            own.apart(e, cx, k0);
            vec![]
        };
        e.either(own.aligned, &[], &mut (), all, each);
        vec![]
    });
    // Of the first column rows 2·quad and the next, then of the second.
    let two = e.i64(2);
    let (row, column) = (e.mul(quad, two), e.mul(group, two));
    let to = skinny::part(e, sums, warp, row, column);
    e.store_few(&[own.sums[0], own.sums[2]], to);
    let pitch = e.i64(sums.pitch);
    let to = e.offset(to, pitch, sums.elem);
    e.store_few(&[own.sums[1], own.sums[3]], to);
}

/// The address of the words of a lane's two columns of B; `nr` words lie between neighbours
/// along k.
fn first(
    e: &mut Emitter,
    cx: &ExprCx,
    spec: &MatMulSpec,
    of: Factors,
    p: &Place,
    group: Val,
) -> Val {
    let start = skinny::b_start(e, cx, spec, p);
    let two = e.i64(PAIR);
    let skip = e.mul(group, two);
    // A block's columns are of one panel, whose columns beyond the last are zeros.
    let nr = e.i64(spec.nr);
    let panel = e.op2("arith.divui", p.columns.0, nr);
    let within = e.op2("arith.remui", p.columns.0, nr);
    let deep = deep(e, group_of(of), p.k);
    let at = e.mul(panel, deep);
    let at = e.mul(at, nr);
    let at = e.add(at, within);
    let at = e.add(at, skip);
    let base = e.offset(cx.args[1], start, elem(of));
    e.offset(base, at, Elem::I32)
}

/// Whether rows of A start at multiples of 16 bytes and end there.
fn rows_aligned(e: &mut Emitter, cx: &ExprCx, spec: &MatMulSpec, of: Factors, p: &Place) -> Val {
    let mut sizes = skinny::row_strides(e, cx, spec);
    sizes.push(p.k);
    skinny::aligned(e, (cx.args[0], elem(of)), sizes, 16)
}

/// A lane's share of a block.
struct Own {
    of: Factors,
    /// Products.
    k: Val,
    /// The element of A at which its row starts.
    row: Val,
    /// The address of its columns of B, and words between neighbours along k.
    first: Val,
    nr: i64,
    aligned: Val,
    /// Of its first column two rows, then of its second.
    sums: Vec<Val>,
}

/// A lane's words of a step, of one row or column.
type Words4 = Vec<Val>;

impl Own {
    /// Adds several steps' products from `k0` on.
    fn together(&self, e: &mut Emitter, cx: &ExprCx, k0: Val) {
        let (elem, apart) = (elem(self.of), STEP * WARPS * group_of(self.of));
        let at = e.add(self.row, k0);
        let row = e.offset(cx.args[0], at, elem);
        let mut read = vec![];
        for step in 0..TOGETHER {
            let skip = e.i64(step * apart);
            let k = e.add(k0, skip);
            let exists = e.cmp(Cmp::Lt, k, self.k, false);
            let b = self.across(e, k, |_, _| exists);
            let from = e.offset(row, skip, elem);
            let a = e.load_few_where(exists, from, Elem::I32, OWN as u32);
            read.push((b, a));
        }
        for (b, a) in read {
            self.multiply(e, &b, &a);
        }
    }

    /// The same step by step, A element by element.
    fn apart(&self, e: &mut Emitter, cx: &ExprCx, k0: Val) {
        let group = group_of(self.of);
        let (none, all, one) = (
            e.i64(0),
            e.i64(TOGETHER * WARPS * STEP * group),
            e.i64(WARPS * STEP * group),
        );
        let deep = deep(e, group, self.k);
        e.for_loop(none, all, one, &[], |e, skip, _| {
            let k = e.add(k0, skip);
            let b = self.across(e, k, |e, word| e.cmp(Cmp::Lt, word, deep, false));
            let from = e.add(self.row, k);
            let a = words_apart(e, (cx.args[0], elem(self.of)), (from, k, self.k));
            self.multiply(e, &b, &a);
            vec![]
        });
    }

    /// Both columns' words from product `k` on.
    fn across(
        &self,
        e: &mut Emitter,
        k: Val,
        exists: impl Fn(&mut Emitter, Val) -> Val,
    ) -> [Words4; 2] {
        let (first, nr) = (self.first, self.nr);
        let (group, pitch) = (e.i64(group_of(self.of)), e.i64(nr));
        let k = e.op2("arith.divui", k, group);
        let at = e.mul(k, pitch);
        let from = e.offset(first, at, Elem::I32);
        let mut columns = [vec![], vec![]];
        for j in 0..OWN {
            let skip = e.i64(j);
            let word = e.add(k, skip);
            let there = exists(e, word);
            let skip = e.i64(j * nr);
            let from = e.offset(from, skip, Elem::I32);
            let pair = e.load_few_where(there, from, Elem::I32, PAIR as u32);
            columns[0].push(pair[0]);
            columns[1].push(pair[1]);
        }
        columns
    }

    /// Adds a step's products: by two instructions, of two of the lane's words each.
    fn multiply(&self, e: &mut Emitter, b: &[Words4; 2], a: &Words4) {
        for pair in 0..2 {
            let (first, next) = (2 * pair, 2 * pair + 1);
            let columns = [b[0][first], b[1][first], b[0][next], b[1][next]];
            let columns = columns.map(|w| e.word(w));
            let rows = [a[first], a[next]].map(|w| e.word(w));
            let sums: [Val; 4] = std::array::from_fn(|i| self.sums[i]);
            match self.of {
                Factors::Floats(of) => {
                    let sums = sums.map(|s| e.single(s));
                    e.kernel_mut().multiply(of, sums, columns, rows);
                }
                Factors::Bytes((a, b)) => {
                    let sums = sums.map(|s| e.word(s));
                    e.kernel_mut().multiply((b, a), sums, columns, rows);
                }
            }
        }
    }
}
