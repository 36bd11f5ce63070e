//! Products of few rows without tensor cores: every layout of B, types of 32 bits and less
//! (`skinny.rs` has the frame).
//!
//! A lane has four products of four columns in each step, which it reads from B by four
//! accesses in the direction in which they lie together, and the same products of every row
//! of A. Several steps are read before the first is multiplied.

use super::block::{self, Place, Sums};
use super::gemm::{Source, summand};
use super::skinny::{
    WARPS, aligned, b_start, batch_strides, part, row_strides, rows, warp_and_lane,
};
use crate::Size;
use crate::lower::{ExprCx, compute_elem, memory_elem};
use crate::matmul::{Columns, MatMulSpec};
use kiln_codegen::emit::Cmp;
use kiln_codegen::{Elem, Emitter, Ty, Val};

/// Products and columns of a lane in a step, products of a warp, and steps read together.
const OWN: i64 = 4;
const STEP: i64 = 32;
const TOGETHER: i64 = 2;

/// Which elements of B lie together.
#[derive(Clone, Copy, PartialEq)]
enum Lies {
    /// Neighbouring columns.
    Columns,
    /// Neighbouring products.
    Products,
    /// None.
    Apart,
}

impl Lies {
    fn of(spec: &MatMulSpec) -> Lies {
        match spec.b {
            Columns::Packed | Columns::Grouped | Columns::Blocks(_) => Lies::Columns,
            Columns::Strided {
                column: Size::ONE, ..
            } => Lies::Columns,
            Columns::Strided { row: Size::ONE, .. } => Lies::Products,
            Columns::Strided { .. } => Lies::Apart,
        }
    }
}

/// Four products of something each.
type Four = [Val; OWN as usize];

/// A lane's share of a block.
pub(super) struct Lanes<'a> {
    spec: &'a MatMulSpec,
    lies: Lies,
    /// Products.
    k: Val,
    /// The elements of A at which rows start, and from one product to the next.
    rows: (Vec<Val>, Val),
    /// Where the lane's columns lie in B.
    columns: Columns4,
    /// By row, then column.
    sums: Vec<Val>,
}

impl<'a> Lanes<'a> {
    pub(super) fn of(e: &mut Emitter, cx: &ExprCx, spec: &'a MatMulSpec, p: &Place) -> Lanes<'a> {
        let rows = rows(spec);
        let starts = (0..rows)
            .map(|i| {
                let row = e.i64(i);
                let row = block::existing(e, row, p.rows.1);
                spec.row(e, cx, p.batch, row)[0]
            })
            .collect();
        let step = cx.size(e, spec.a[spec.batch.len() + 1]);
        let zero = e.zero(Ty::scalar(compute_elem(spec.acc)));
        Lanes {
            spec,
            lies: Lies::of(spec),
            k: p.k,
            rows: (starts, step),
            columns: Columns4::of(e, cx, spec, p),
            sums: e.variables(&vec![zero; (rows * OWN) as usize]),
        }
    }

    /// Leaves the warp's sums in shared memory.
    pub(super) fn share(&self, e: &mut Emitter, cx: &ExprCx, p: &Place, sums: Sums) {
        let (warp, lane) = warp_and_lane(e, p.thread);
        let (own, step) = (e.i64(OWN), e.i64(STEP));
        let group = e.op2("arith.divui", lane, own);
        let quad = e.op2("arith.remui", lane, own);
        let (own_k, own_column) = (e.mul(group, own), e.mul(quad, own));
        let first = e.mul(warp, step);
        let turn = e.i64(TOGETHER * WARPS * STEP);
        let wide = self.wide(e, cx);
        e.for_loop(first, p.k, turn, &[], |e, k0, _| {
            let k0 = e.add(k0, own_k);
            match wide {
                None => self.apart(e, cx, k0),
                Some(wide) => {
                    let all = |e: &mut Emitter, (): &mut ()| {
                        self.together(e, cx, k0);
                        vec![]
                    };
                    let each = |e: &mut Emitter, (): &mut ()| {
                        self.apart(e, cx, k0);
                        vec![]
                    };
                    e.either(wide, &[], &mut (), all, each);
                }
            }
            vec![]
        });
        let whole: Vec<Val> = (self.sums.iter())
            .map(|&sum| {
                [OWN, 2 * OWN, 4 * OWN].iter().fold(sum, |sum, &mask| {
                    let other = e.shuffle_xor(sum, mask as u32);
                    e.add(sum, other)
                })
            })
            .collect();
        let none = e.i64(0);
        let writes = e.cmp(Cmp::Eq, group, none, false);
        e.if_then(writes, |e| {
            for (row, four) in (0..).zip(whole.chunks(OWN as usize)) {
                let row = e.i64(row);
                let to = part(e, sums, warp, row, own_column);
                e.store_few(four, to);
            }
        });
    }

    /// Whether fours lie where one access reaches them; none where they never do.
    fn wide(&self, e: &mut Emitter, cx: &ExprCx) -> Option<Val> {
        let spec = self.spec;
        let [a, b] = [0, 1].map(|i| memory_elem(spec.args[i]));
        let bytes = |elem: Elem| OWN * i64::from(elem.bits() / 8);
        let mut sizes = batch_strides(e, cx, spec);
        match (self.lies, &spec.b) {
            (Lies::Apart, _) => return None,
            (Lies::Products, Columns::Strided { column, .. }) => {
                sizes.extend([cx.size(e, *column), self.k]);
            }
            (Lies::Columns, Columns::Strided { row, .. }) => {
                sizes.extend([cx.size(e, *row), cx.size(e, spec.n)]);
            }
            _ => {}
        }
        let mut wide = aligned(e, (cx.args[1], b), sizes, bytes(b));
        if self.rows_run() {
            let mut sizes = row_strides(e, cx, spec);
            sizes.push(self.k);
            let rows = aligned(e, (cx.args[0], a), sizes, bytes(a));
            wide = e.op2("arith.andi", wide, rows);
        }
        Some(wide)
    }

    /// Whether neighbouring products of A lie together.
    fn rows_run(&self) -> bool {
        self.spec.a.last() == Some(&Size::ONE)
    }

    /// Adds several steps' products from `k0` on.
    fn together(&self, e: &mut Emitter, cx: &ExprCx, k0: Val) {
        let mut read = vec![];
        for step in 0..TOGETHER {
            let skip = e.i64(step * WARPS * STEP);
            let k = e.add(k0, skip);
            let b = match self.lies {
                Lies::Products => self.down(e, cx, k),
                _ => self.across(e, cx, k),
            };
            read.push((k, b));
        }
        for (k, b) in read {
            self.multiply(e, cx, k, &b, self.rows_run());
        }
    }

    /// The same step by step, element by element.
    fn apart(&self, e: &mut Emitter, cx: &ExprCx, k0: Val) {
        let (none, all, one) = (
            e.i64(0),
            e.i64(TOGETHER * WARPS * STEP),
            e.i64(WARPS * STEP),
        );
        e.for_loop(none, all, one, &[], |e, skip, _| {
            let k = e.add(k0, skip);
            let starts = [0, 1, 2, 3].map(|c| self.columns.start(e, c));
            let b: Vec<Four> = (0..OWN)
                .map(|j| {
                    let (k, exists) = self.product(e, k, j);
                    let along = e.mul(k, self.columns.step);
                    starts.map(|start| {
                        let at = e.add(start, along);
                        self.element(e, cx, 1, exists, at)
                    })
                })
                .collect();
            self.multiply(e, cx, k, &b, false);
            vec![]
        });
    }

    /// Product `j` from `k` on, and whether it exists.
    fn product(&self, e: &mut Emitter, k: Val, j: i64) -> (Val, Val) {
        let skip = e.i64(j);
        let k = e.add(k, skip);
        (k, e.cmp(Cmp::Lt, k, self.k, false))
    }

    /// B by products, then columns; columns lie together.
    fn across(&self, e: &mut Emitter, cx: &ExprCx, k: Val) -> Vec<Four> {
        let start = self.columns.start(e, 0);
        (0..OWN)
            .map(|j| {
                let (k, exists) = self.product(e, k, j);
                let along = e.mul(k, self.columns.step);
                let at = e.add(start, along);
                self.four(e, cx, 1, exists, at)
            })
            .collect()
    }

    /// The same; products lie together.
    fn down(&self, e: &mut Emitter, cx: &ExprCx, k: Val) -> Vec<Four> {
        let exists = e.cmp(Cmp::Lt, k, self.k, false);
        let columns = [0, 1, 2, 3].map(|c| {
            let start = self.columns.start(e, c);
            let at = e.add(start, k);
            self.four(e, cx, 1, exists, at)
        });
        (0..OWN as usize)
            .map(|j| columns.map(|four| four[j]))
            .collect()
    }

    /// A row's four products; `wide` where they lie together.
    fn row(&self, e: &mut Emitter, cx: &ExprCx, start: Val, k: Val, wide: bool) -> Four {
        let products = [0, 1, 2, 3].map(|j| self.product(e, k, j));
        if wide {
            let at = e.add(start, k);
            return self.four(e, cx, 0, products[0].1, at);
        }
        products.map(|(k, exists)| {
            let along = e.mul(k, self.rows.1);
            let at = e.add(start, along);
            self.element(e, cx, 0, exists, at)
        })
    }

    /// Four neighbours of A or B as sums have them; zeros where they do not exist.
    fn four(&self, e: &mut Emitter, cx: &ExprCx, arg: usize, exists: Val, at: Val) -> Four {
        let t = self.spec.args[arg];
        let elem = memory_elem(t);
        let from = e.offset(cx.args[arg], at, elem);
        let xs = e.load_few_where(exists, from, elem, OWN as u32);
        std::array::from_fn(|j| summand(e, xs[j], t, self.spec.acc))
    }

    /// One.
    fn element(&self, e: &mut Emitter, cx: &ExprCx, arg: usize, exists: Val, at: Val) -> Val {
        let t = self.spec.args[arg];
        let elem = memory_elem(t);
        let from = e.offset(cx.args[arg], at, elem);
        let x = e.load_where(exists, from, Ty::scalar(elem));
        summand(e, x, t, self.spec.acc)
    }

    /// Adds a step's products, in the order of k; reads A a row at a time.
    fn multiply(&self, e: &mut Emitter, cx: &ExprCx, k: Val, b: &[Four], wide: bool) {
        for (&start, sums) in self.rows.0.iter().zip(self.sums.chunks(OWN as usize)) {
            let row = self.row(e, cx, start, k, wide);
            for (x, columns) in row.into_iter().zip(b) {
                for (&sum, &y) in sums.iter().zip(columns) {
                    e.multiply_into(sum, x, y);
                }
            }
        }
    }
}

/// Where a lane's columns lie in B.
struct Columns4 {
    /// The element at which the batch starts; of panels, at which the first column does.
    base: Val,
    /// Elements from one product to the next.
    step: Val,
    /// If columns are so far apart: that, the first one, and where the block's begin and all
    /// end.
    apart: Option<[Val; 4]>,
}

impl Columns4 {
    fn of(e: &mut Emitter, cx: &ExprCx, spec: &MatMulSpec, p: &Place) -> Columns4 {
        let (_, lane) = warp_and_lane(e, p.thread);
        let own = e.i64(OWN);
        let quad = e.op2("arith.remui", lane, own);
        let skip = e.mul(quad, own);
        let first = e.add(p.columns.0, skip);
        let base = b_start(e, cx, spec, p);
        if let Columns::Strided { row, column } = spec.b {
            let step = cx.size(e, column);
            return Columns4 {
                base,
                step: cx.size(e, row),
                apart: Some([step, first, p.columns.0, p.columns.1]),
            };
        }
        // A block's columns are of one panel, whose columns beyond the last are zeros.
        let nr = e.i64(spec.nr);
        let panel = e.op2("arith.divui", p.columns.0, nr);
        let within = e.op2("arith.remui", first, nr);
        let size = e.mul(p.k, nr);
        let before = e.mul(panel, size);
        let base = e.add(base, before);
        Columns4 {
            base: e.add(base, within),
            step: nr,
            apart: None,
        }
    }

    /// The element at which column `c` of the four starts.
    fn start(&self, e: &mut Emitter, c: i64) -> Val {
        let c = e.i64(c);
        let Some([step, first, low, high]) = self.apart else {
            return e.add(self.base, c);
        };
        let at = e.add(first, c);
        // Four columns that do not exist are read as the block's first.
        let exists = e.cmp(Cmp::Lt, at, high, false);
        let at = e.select(exists, at, low);
        let along = e.mul(at, step);
        e.add(self.base, along)
    }
}
