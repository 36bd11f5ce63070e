//! Products of few rows on tensor cores: of f16 and bf16 with sums in f32, of bytes with
//! sums in i32 (`skinny.rs` has the frame).
//!
//! `mma.sync` multiplies 16 columns of B, as the rows of its first operand, by all rows of A,
//! as the columns of its second: eight rows take the time of one, and fragments are what
//! lanes read. In a step of 16 words along k lane `l` has words `4·(l % 4) ..` of columns
//! `2·(l / 4)` and the next, and of row `l / 4`: 64 bytes of each column, or of each
//! product where words of columns lie together. Which word an instruction takes for which of
//! its own is free, as long as both sides agree.

use super::block::{self, Place, Sums};
use super::gemm::Source;
use super::halves::{self, Factors};
use super::skinny::{self, WARPS};
use super::words::{byte, deep, words_apart};
use crate::lower::ExprCx;
use crate::matmul::{Columns, MatMulSpec, Words};
use kiln_codegen::emit::Cmp;
use kiln_codegen::ptx::{Byte, Half};
use kiln_codegen::{Elem, Emitter, Ty, Val};

/// Words of a lane in a step, words of a warp, and steps that are read together.
const OWN: i64 = 4;
const STEP: i64 = 16;
const TOGETHER: i64 = 4;

/// Columns of a lane.
const PAIR: i64 = 2;

/// What words hold.
#[derive(Clone, Copy)]
pub(super) enum Kind {
    /// Two halves.
    Halves(Half),
    /// Four bytes, of A and of B.
    Bytes(Byte, Byte),
}

impl Kind {
    /// The integer that an element's bits are.
    fn elem(self) -> Elem {
        match self {
            Kind::Halves(_) => Elem::I16,
            Kind::Bytes(..) => Elem::I8,
        }
    }

    /// Elements of a word.
    fn group(self) -> i64 {
        32 / i64::from(self.elem().bits())
    }
}

/// What tensor cores multiply, if they serve it: words along k lie together in both.
pub(super) fn serves(spec: &MatMulSpec) -> Option<Kind> {
    match (&spec.b, halves::serves(spec)) {
        (_, Some(Factors::Halves(half))) => Some(Kind::Halves(half)),
        (_, Some(Factors::Bytes((a, b)))) => Some(Kind::Bytes(a, b)),
        (Columns::Grouped, None) => match spec.words()? {
            Words::Pairs => Some(Kind::Halves(Half::Bf16)),
            Words::Bytes(signs) => Some(Kind::Bytes(byte(signs.a), byte(signs.b))),
        },
        (Columns::Packed | Columns::Strided { .. }, None) => None,
    }
}

/// Leaves the sums of each warp in shared memory.
pub(super) fn share(
    e: &mut Emitter,
    cx: &ExprCx,
    spec: &MatMulSpec,
    kind: Kind,
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
        kind,
        k: p.k,
        row: spec.row(e, cx, p.batch, row)[0],
        b: B::of(e, cx, spec, kind, p, group),
        aligned: rows_aligned(e, cx, spec, kind, p),
        sums: e.variables(&[zero; 4]),
    };
    let size = e.i64(OWN * kind.group());
    let own_k = e.mul(quad, size);
    let step = e.i64(STEP * kind.group());
    let first = e.mul(warp, step);
    let turn = e.i64(TOGETHER * WARPS * STEP * kind.group());
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

/// A lane's two columns of B.
enum B {
    /// Words along k lie together from these elements on.
    Together([Val; 2]),
    /// Words of columns do; `nr` of them lie between neighbours along k.
    Across {
        /// The address of the first.
        first: Val,
        nr: i64,
    },
}

impl B {
    fn of(e: &mut Emitter, cx: &ExprCx, spec: &MatMulSpec, kind: Kind, p: &Place, group: Val) -> B {
        let start = skinny::b_start(e, cx, spec, p);
        let two = e.i64(PAIR);
        let skip = e.mul(group, two);
        if let Columns::Strided { column, .. } = spec.b {
            let (first, all) = p.columns;
            let step = cx.size(e, column);
            return B::Together([0, 1].map(|c| {
                let c = e.i64(c);
                let at = e.add(skip, c);
                let at = e.add(first, at);
                let at = block::existing(e, at, all);
                let along = e.mul(at, step);
                e.add(start, along)
            }));
        }
        // A block's columns are of one panel, whose columns beyond the last are zeros.
        let nr = e.i64(spec.nr);
        let panel = e.op2("arith.divui", p.columns.0, nr);
        let within = e.op2("arith.remui", p.columns.0, nr);
        let deep = deep(e, kind.group(), p.k);
        let at = e.mul(panel, deep);
        let at = e.mul(at, nr);
        let at = e.add(at, within);
        let at = e.add(at, skip);
        let base = e.offset(cx.args[1], start, kind.elem());
        B::Across {
            first: e.offset(base, at, Elem::I32),
            nr: spec.nr,
        }
    }
}

/// Whether all that lies together along k starts at multiples of 16 bytes and ends there.
fn rows_aligned(e: &mut Emitter, cx: &ExprCx, spec: &MatMulSpec, kind: Kind, p: &Place) -> Val {
    let mut sizes = skinny::row_strides(e, cx, spec);
    sizes.push(p.k);
    let rows = skinny::aligned(e, (cx.args[0], kind.elem()), sizes, 16);
    let Columns::Strided { column, .. } = spec.b else {
        return rows;
    };
    let mut sizes = skinny::batch_strides(e, cx, spec);
    sizes.push(cx.size(e, column));
    let columns = skinny::aligned(e, (cx.args[1], kind.elem()), sizes, 16);
    e.op2("arith.andi", rows, columns)
}

/// A lane's share of a block.
struct Own {
    kind: Kind,
    /// Products.
    k: Val,
    /// The element of A at which its row starts.
    row: Val,
    b: B,
    aligned: Val,
    /// Of its first column two rows, then of its second.
    sums: Vec<Val>,
}

/// A lane's words of a step, of one row or column.
type Words4 = Vec<Val>;

impl Own {
    /// Adds several steps' products from `k0` on.
    fn together(&self, e: &mut Emitter, cx: &ExprCx, k0: Val) {
        let apart = STEP * WARPS * self.kind.group();
        let start = |e: &mut Emitter, arg: usize, at: Val| {
            let at = e.add(at, k0);
            e.offset(cx.args[arg], at, self.kind.elem())
        };
        let row = start(e, 0, self.row);
        let columns = match &self.b {
            B::Together(starts) => starts.map(|s| start(e, 1, s)).to_vec(),
            B::Across { .. } => vec![],
        };
        let mut read = vec![];
        for step in 0..TOGETHER {
            let skip = e.i64(step * apart);
            let k = e.add(k0, skip);
            let exists = e.cmp(Cmp::Lt, k, self.k, false);
            let words = |e: &mut Emitter, from: Val| {
                let from = e.offset(from, skip, self.kind.elem());
                e.load_few_where(exists, from, Elem::I32, OWN as u32)
            };
            let b = match &self.b {
                B::Together(_) => [0, 1].map(|c| words(e, columns[c])),
                B::Across { .. } => self.across(e, k, |_, _| exists),
            };
            read.push((b, words(e, row)));
        }
        for (b, a) in read {
            self.multiply(e, &b, &a);
        }
    }

    /// The same step by step, element by element where they lie together along k.
    fn apart(&self, e: &mut Emitter, cx: &ExprCx, k0: Val) {
        let group = self.kind.group();
        let (none, all, one) = (
            e.i64(0),
            e.i64(TOGETHER * WARPS * STEP * group),
            e.i64(WARPS * STEP * group),
        );
        let deep = deep(e, group, self.k);
        e.for_loop(none, all, one, &[], |e, skip, _| {
            let k = e.add(k0, skip);
            let words = |e: &mut Emitter, arg: usize, start: Val| {
                let from = e.add(start, k);
                words_apart(e, (cx.args[arg], self.kind.elem()), (from, k, self.k))
            };
            let b = match &self.b {
                B::Together(starts) => starts.map(|s| words(e, 1, s)),
                B::Across { .. } => self.across(e, k, |e, word| e.cmp(Cmp::Lt, word, deep, false)),
            };
            let a = words(e, 0, self.row);
            self.multiply(e, &b, &a);
            vec![]
        });
    }

    /// Both columns' words from product `k` on, where words of columns lie together.
    fn across(
        &self,
        e: &mut Emitter,
        k: Val,
        exists: impl Fn(&mut Emitter, Val) -> Val,
    ) -> [Words4; 2] {
        let B::Across { first, nr } = self.b else {
            unreachable!("words along k lie together");
        };
        let (group, pitch) = (e.i64(self.kind.group()), e.i64(nr));
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
            match self.kind {
                Kind::Halves(half) => {
                    let sums = sums.map(|s| e.single(s));
                    e.kernel_mut().multiply(half, sums, columns, rows);
                }
                Kind::Bytes(a, b) => {
                    let sums = sums.map(|s| e.word(s));
                    e.kernel_mut().multiply((b, a), sums, columns, rows);
                }
            }
        }
    }
}
