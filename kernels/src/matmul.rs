//! The contraction family: `out = epilogue(A · B)`, batched.
//!
//! Work units are blocks of [`MC`] rows times one panel of `nr` columns. B comes
//! packed in panels `[n/nr][k][nr]`, or with contiguous columns, or strided, when
//! a unit packs its panel into scratch first. Raw sums go to a block in scratch
//! that stays in the first-level cache; the epilogue then reads it once, so its
//! code exists once however many register tiles there are.

use crate::expr::{ExprId, Exprs, Index, Size};
use crate::lower::{ExprCx, compute_elem, memory_elem};
use crate::micro::{self, Operand, Tile};
use crate::nest::{LANES, SCRATCH_HEAD, SpecError, size_dim};
use kiln_codegen::emit::KernelArgs;
use kiln_codegen::{CpuTarget, Elem, Emitter, Ty, Val};
use kiln_ir::{DType, Dim};
use serde::{Deserialize, Serialize};

/// Rows of a work unit: its part of A stays in the second-level cache.
pub const MC: i64 = 48;

/// How B lies in memory.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Columns {
    /// Panels `[.., ceil(n/nr), k, nr]`, zero-padded.
    Packed,
    /// Element `[k][n]` at `k·row + n·column`.
    Strided {
        /// Elements from one k to the next.
        row: Size,
        /// Elements from one n to the next.
        column: Size,
    },
}

/// A contraction. Buffers: 0 is A, 1 is B, the last is the result, those between
/// are the epilogue's. The epilogue's axes are the batch axes, then m, then n,
/// and its `Acc(0)` is the sum.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct MatMulSpec {
    /// The epilogue's expressions.
    pub exprs: Exprs,
    /// Element type of each buffer.
    pub args: Vec<DType>,
    /// How many launch parameters there are.
    pub params: u16,
    /// Batch extents.
    pub batch: Vec<Size>,
    /// Rows.
    pub m: Size,
    /// Columns.
    pub n: Size,
    /// Contracted extent.
    pub k: Size,
    /// Type of the sums: f32, f64 or i32.
    pub acc: DType,
    /// A's strides: of each batch axis, then m, then k.
    pub a: Vec<Size>,
    /// B's strides of each batch axis.
    pub b_batch: Vec<Size>,
    /// How B lies.
    pub b: Columns,
    /// Columns of a panel, a multiple of 16.
    pub nr: i64,
    /// Where results go.
    pub out: Index,
    /// What is stored, of the result's type.
    pub value: ExprId,
}

impl MatMulSpec {
    /// Checks that the parts agree.
    pub fn check(&self) -> Result<(), SpecError> {
        let rank = self.batch.len();
        let fits = self.a.len() == rank + 2
            && self.b_batch.len() == rank
            && self.args.len() >= 3
            && self.nr > 0
            && self.nr % LANES == 0
            && matches!(self.acc, DType::F32 | DType::F64 | DType::I32)
            && Some(&self.exprs.dtype(self.value)) == self.args.last();
        if fits { Ok(()) } else { Err(SpecError("a contraction's parts do not agree".into())) }
    }

    fn acc_bytes(&self) -> i64 {
        self.acc.size().unwrap_or(4) as i64
    }

    fn packs(&self) -> bool {
        matches!(self.b, Columns::Strided { column, .. } if column != Size::ONE)
    }

    /// Work units of a launch.
    pub fn tiles(&self, params: &[Dim]) -> Dim {
        let dim = |s: Size| size_dim(s, params);
        let batch = self.batch.iter().fold(Dim::ONE, |p, &s| p * dim(s));
        batch * dim(self.m).ceil_div(&MC.into()) * dim(self.n).ceil_div(&self.nr.into())
    }

    /// Scratch bytes of a thread.
    pub fn scratch_bytes(&self, params: &[Dim]) -> Dim {
        let block = Dim::from(SCRATCH_HEAD) + Dim::from(MC * self.nr * self.acc_bytes());
        let size = self.args[1].size().unwrap_or(1) as i64;
        match self.packs() {
            true => block + size_dim(self.k, params) * Dim::from(self.nr * size) + Dim::from(64),
            false => block,
        }
    }

    /// Arithmetic operations and bytes moved by a launch.
    pub fn cost(&self, params: &[Dim]) -> (Dim, Dim) {
        let dim = |s: Size| size_dim(s, params);
        let batch = self.batch.iter().fold(Dim::ONE, |p, &s| p * dim(s));
        let (m, n, k) = (dim(self.m), dim(self.n), dim(self.k));
        let bytes = |i: usize| Dim::from(self.args[i].size().unwrap_or(1));
        let out = self.args.len() - 1;
        let shared = self.b_batch.iter().all(|&s| s == Size::ZERO);
        let b = if shared { Dim::ONE } else { batch.clone() };
        let moved = batch.clone() * m.clone() * k.clone() * bytes(0)
            + b * k.clone() * n.clone() * bytes(1)
            + batch.clone() * m.clone() * n.clone() * bytes(out);
        (batch * m * n * k * Dim::from(2), moved)
    }

    /// The kernel's MLIR.
    pub fn emit(&self, symbol: &str, target: &CpuTarget) -> String {
        Emitter::kernel(symbol, |e, args| self.body(e, args, target))
    }

    fn body(&self, e: &mut Emitter, args: KernelArgs, target: &CpuTarget) -> Val {
        let params = micro::params(e, args.params, self.params);
        let buffers: Vec<Val> = (0..self.args.len()).map(|i| micro::buffer(e, args.args, i)).collect();
        let mut cx = ExprCx::new(&self.exprs, buffers.clone(), params, args.scratch);
        cx.clear_status(e);
        let (m, n) = (cx.size(e, self.m), cx.size(e, self.n));
        let (mc, nr) = (e.i64(MC), e.i64(self.nr));
        let row_blocks = ceil_div(e, m, mc);
        let panels = ceil_div(e, n, nr);
        let batch: Vec<Val> = self.batch.iter().map(|&s| cx.size(e, s)).collect();
        let one = e.i64(1);
        e.for_loop(args.begin, args.end, one, &[], |e, unit, _| {
            cx.push();
            let (rest, panel) = div_rem(e, unit, panels);
            let (mut rest, block) = div_rem(e, rest, row_blocks);
            let mut coordinates = vec![];
            for &extent in batch.iter().rev() {
                let (next, at) = div_rem(e, rest, extent);
                coordinates.insert(0, at);
                rest = next;
            }
            self.unit(e, &mut cx, target, &coordinates, block, panel);
            cx.pop();
            vec![]
        });
        cx.status(e)
    }

    /// One block of rows times one panel.
    fn unit(&self, e: &mut Emitter, cx: &mut ExprCx, target: &CpuTarget, batch: &[Val], block: Val, panel: Val) {
        let tile = Tile::of(target, self.acc_bytes() as u32);
        let rank = self.batch.len();
        let (m, n, k) = (cx.size(e, self.m), cx.size(e, self.n), cx.size(e, self.k));
        let (mc, nr) = (e.i64(MC), e.i64(self.nr));
        let (row0, column0) = (e.mul(block, mc), e.mul(panel, nr));
        let left = e.sub(m, row0);
        let rows = e.min(left, mc, false);
        let left = e.sub(n, column0);
        let columns = e.min(left, nr, false);

        let mut a_at = e.i64(0);
        let mut b_at = e.i64(0);
        for (i, &c) in batch.iter().enumerate() {
            a_at = advance(e, cx, a_at, c, self.a[i]);
            b_at = advance(e, cx, b_at, c, self.b_batch[i]);
        }
        a_at = advance(e, cx, a_at, row0, self.a[rank]);
        let a0 = e.offset(cx.args[0], a_at, memory_elem(self.args[0]));
        let head = e.i64(SCRATCH_HEAD);
        let sums = e.offset(cx.scratch, head, Elem::I8);

        let (b0, b_step, masked) = match &self.b {
            Columns::Packed => {
                let panel_size = e.mul(k, nr);
                let at = e.mul(panel, panel_size);
                let at = e.add(b_at, at);
                (e.offset(cx.args[1], at, memory_elem(self.args[1])), nr, false)
            }
            Columns::Strided { row, column } => {
                let at = advance(e, cx, b_at, column0, *column);
                let from = e.offset(cx.args[1], at, memory_elem(self.args[1]));
                let row = cx.size(e, *row);
                if self.packs() {
                    let column = cx.size(e, *column);
                    let after = e.i64(SCRATCH_HEAD + MC * self.nr * self.acc_bytes());
                    let to = e.offset(cx.scratch, after, Elem::I8);
                    self.pack_panel(e, (from, row, column), to, k, columns);
                    (to, nr, false)
                } else {
                    (from, row, true)
                }
            }
        };

        let a = Operand { dtype: self.args[0], step: cx.size(e, self.a[rank + 1]) };
        let b = Operand { dtype: self.args[1], step: b_step };
        let a_row = cx.size(e, self.a[rank]);
        let acc_ty = Ty::vector(compute_elem(self.acc), tile.lanes);
        micro::for_rows(e, rows, tile.rows, &mut |e, first, count| {
            let pointers: Vec<Val> = (0..count)
                .map(|r| {
                    let r = e.i64(r as i64);
                    let row = e.add(first, r);
                    let at = e.mul(row, a_row);
                    e.offset(a0, at, memory_elem(self.args[0]))
                })
                .collect();
            let mut j = 0;
            while j < self.nr {
                let vectors = ((self.nr - j).min(tile.width as i64) / tile.lanes as i64) as u32;
                let masks: Vec<Val> = (0..vectors as i64 * masked as i64)
                    .map(|v| {
                        let before = e.i64(j + v * tile.lanes as i64);
                        let count = e.sub(columns, before);
                        e.mask_first(count, tile.lanes)
                    })
                    .collect();
                let zero = e.zero(acc_ty);
                let init = vec![zero; (count * vectors) as usize];
                let here = e.i64(j);
                let from = e.offset(b0, here, memory_elem(self.args[1]));
                let masks = masked.then_some(&masks[..]);
                let out = micro::multiply(e, self.acc, tile.lanes, k, (a, &pointers), (b, from), masks, &init);
                for (i, &sum) in out.iter().enumerate() {
                    let (r, v) = (i as i64 / vectors as i64, i as i64 % vectors as i64);
                    let r = e.i64(r);
                    let row = e.add(first, r);
                    let at = e.mul(row, nr);
                    let column = e.i64(j + v * tile.lanes as i64);
                    let at = e.add(at, column);
                    let p = e.offset(sums, at, compute_elem(self.acc));
                    e.store(sum, p);
                }
                j += vectors as i64 * tile.lanes as i64;
            }
        });
        self.epilogue(e, cx, batch, (row0, rows), (column0, columns), sums);
    }

    /// Copies `k × nr` elements of B into a panel; columns beyond the end are 0.
    fn pack_panel(&self, e: &mut Emitter, (from, row, column): (Val, Val, Val), to: Val, k: Val, columns: Val) {
        let elem = memory_elem(self.args[1]);
        let (zero, one, nr) = (e.i64(0), e.i64(1), e.i64(self.nr));
        let lanes = LANES as u32;
        let lane = e.iota(Elem::I64, lanes);
        let steps = e.mul(lane, column);
        let groups: Vec<(i64, Val)> = (0..self.nr / LANES)
            .map(|g| {
                let before = e.i64(g * LANES);
                let count = e.sub(columns, before);
                (g * LANES, e.mask_first(count, lanes))
            })
            .collect();
        e.for_loop(zero, k, one, &[], |e, i, _| {
            let at = e.mul(i, row);
            let source = e.offset(from, at, elem);
            let at = e.mul(i, nr);
            let target = e.offset(to, at, elem);
            for &(j, mask) in &groups {
                let j = e.i64(j);
                let skip = e.mul(j, column);
                let base = e.offset(source, skip, elem);
                let pointers = e.offset(base, steps, elem);
                let v = e.gather(pointers, Ty::vector(elem, lanes), mask);
                let p = e.offset(target, j, elem);
                e.store(v, p);
            }
            vec![]
        });
    }

    fn epilogue(
        &self,
        e: &mut Emitter,
        cx: &mut ExprCx,
        batch: &[Val],
        (row0, rows): (Val, Val),
        (column0, columns): (Val, Val),
        sums: Val,
    ) {
        let rank = self.batch.len();
        let (zero, one, step, nr) = (e.i64(0), e.i64(1), e.i64(LANES), e.i64(self.nr));
        let out = self.args.len() as u16 - 1;
        e.for_loop(zero, rows, one, &[], |e, r, _| {
            let row = e.add(row0, r);
            let at = e.mul(r, nr);
            e.for_loop(zero, columns, step, &[], |e, c, _| {
                cx.push();
                let column = e.add(column0, c);
                let at = e.add(at, c);
                let p = e.offset(sums, at, compute_elem(self.acc));
                let sum = e.load(p, Ty::vector(compute_elem(self.acc), LANES as u32));
                let left = e.sub(columns, c);
                let mask = e.mask_first(left, LANES as u32);
                cx.axes = batch.iter().copied().map(Some).chain([Some(row), Some(column)]).collect();
                cx.vector = Some(rank as u8 + 1);
                cx.mask = Some(mask);
                cx.accs.insert(0, sum);
                let value = cx.value(e, self.value);
                cx.store(e, out, self.args[out as usize], &self.out, value, None);
                cx.mask = None;
                cx.pop();
                vec![]
            });
            vec![]
        });
    }
}

/// `at + coordinate · stride`.
pub(crate) fn advance(e: &mut Emitter, cx: &ExprCx, at: Val, coordinate: Val, stride: Size) -> Val {
    if stride == Size::ZERO {
        return at;
    }
    let s = cx.size(e, stride);
    let step = e.mul(coordinate, s);
    e.add(at, step)
}

/// Quotient rounded up, of positive numbers.
pub(crate) fn ceil_div(e: &mut Emitter, a: Val, b: Val) -> Val {
    let one = e.i64(1);
    let up = e.sub(b, one);
    let sum = e.add(a, up);
    e.op2("arith.divsi", sum, b)
}

/// Quotient and remainder of numbers that are not negative.
pub(crate) fn div_rem(e: &mut Emitter, a: Val, b: Val) -> (Val, Val) {
    let q = e.op2("arith.divui", a, b);
    let back = e.mul(q, b);
    (q, e.sub(a, back))
}
