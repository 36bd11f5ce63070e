//! The contraction family: `out = epilogue(A · B)`, batched.
//!
//! Work units are blocks of rows times one panel of `nr` columns; neighbouring
//! units share a panel, which is the side that comes from memory. Where all
//! batches share B, the batch axes are rows too. B comes packed in panels
//! `[n/nr][k][nr]`, or with contiguous columns, or strided, when a unit packs its
//! panel into scratch first. Sums build up in a block in scratch, [`KC`] products
//! at a time so that a panel's part stays in the second-level cache; the epilogue
//! then reads the block once, so its code exists once however many register
//! tiles there are. Products of bytes and of bf16 (`words.rs`) are summed four or two
//! at a time.

mod pack;
mod words;

pub(crate) use words::Words;

use crate::check::Names;
use crate::expr::{ExprId, Exprs, Index, Size};
use crate::lower::{ExprCx, compute_elem, memory_elem};
use crate::micro::{self, Operand, Tile};
use crate::nest::{LANES, SCRATCH_HEAD, SpecError, size_dim};
use kiln_codegen::emit::KernelArgs;
use kiln_codegen::{CpuTarget, Elem, Emitter, Ty, Val};
use kiln_ir::{DType, Dim};
use serde::{Deserialize, Serialize};

/// Rows of a work unit.
const MC: i64 = 48;

/// Rows of a work unit that packs its panel first: enough to pay for it.
const MC_PACKING: i64 = 192;

/// Products summed between two visits to the block of sums.
const KC: i64 = 1024;

/// How B lies in memory.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Columns {
    /// Panels `[.., ceil(n/nr), k, nr]`, zero-padded.
    Packed,
    /// Panels of words `[.., ceil(n/nr), ceil(k/g), nr, g]`, zero-padded, of four bytes
    /// or two bf16; A's k lie next to each other.
    Grouped,
    /// Numbers of a few bits, quantized in blocks along k.
    Blocks(Blocks),
    /// Element `[k][n]` at `k·row + n·column`.
    Strided {
        /// Elements from one k to the next.
        row: Size,
        /// Elements from one n to the next.
        column: Size,
    },
}

/// A B whose element `[k][n]` is `(q − zero)·scale`, rounded to A's type. The bytes of buffer
/// 1 are `[n][count·size·bits/8]`: `bits` bits for each q, low ones of a byte first, and
/// what fills the last block. Buffer 2 has the scales, `[n][count]`; buffer 3, if there are
/// zeros, these, `[n][count]` bytes of which the low `bits` bits count; else all are
/// `2^(bits − 1)`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Blocks {
    /// Bits of a q: 2, 4 or 8.
    pub bits: u8,
    /// Elements of a block, whole bytes.
    pub size: i64,
    /// Blocks of a column.
    pub count: Size,
    /// Whether there are zeros.
    pub zeros: bool,
    /// Whether buffer 1 surely starts at a multiple of 16 bytes, as globals do.
    pub aligned: bool,
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
    /// Whether A and B, of f32, hold numbers of tf32 alone, which tensor cores multiply.
    pub tf32: bool,
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
            && (!self.tf32 || self.args[..2] == [DType::F32; 2] && self.acc == DType::F32)
            && self.out.gathers.is_empty()
            && (self.value.0 as usize) < self.exprs.len()
            && Some(&self.exprs.dtype(self.value)) == self.args.last();
        if !fits {
            return Err(SpecError("a contraction's parts do not agree".into()));
        }
        let names = Names {
            exprs: &self.exprs,
            args: &self.args[..self.args.len() - 1],
            params: self.params,
            axes: rank + 2,
            acc: self.acc,
        };
        names.expression(self.value)?;
        names.index(&self.out)?;
        names.sizes(&[self.m, self.n, self.k])?;
        [&self.batch, &self.a, &self.b_batch]
            .into_iter()
            .try_for_each(|s| names.sizes(s))?;
        match self.b {
            Columns::Strided { row, column } => names.sizes(&[row, column]),
            Columns::Grouped if self.words().is_none() => Err(SpecError(
                "grouped panels are of bytes with sums in i32, or of bf16 with sums in f32".into(),
            )),
            Columns::Packed | Columns::Grouped => Ok(()),
            Columns::Blocks(ref blocks) => {
                names.sizes(&[blocks.count])?;
                self.check_blocks(blocks)
            }
        }
    }

    fn check_blocks(&self, blocks: &Blocks) -> Result<(), SpecError> {
        let float = |t: DType| matches!(t, DType::F32 | DType::F16 | DType::BF16);
        let zeros = !blocks.zeros || self.args.get(3) == Some(&DType::U8);
        let fits = matches!(blocks.bits, 2 | 4 | 8)
            && (1..=1 << 30).contains(&blocks.size)
            && blocks.size * i64::from(blocks.bits) % 8 == 0
            && self.acc == DType::F32
            && self.args.len() >= 4 + usize::from(blocks.zeros)
            && float(self.args[0])
            && self.args[1] == DType::U8
            && float(self.args[2])
            && zeros
            && self.shared();
        match fits {
            true => Ok(()),
            false => Err(SpecError("a quantized side's parts do not agree".into())),
        }
    }

    fn acc_bytes(&self) -> i64 {
        self.acc.size().unwrap_or(4) as i64
    }

    fn packs(&self) -> bool {
        match self.b {
            Columns::Strided { column, .. } => column != Size::ONE || self.words().is_some(),
            Columns::Packed | Columns::Grouped | Columns::Blocks(_) => false,
        }
    }

    /// Rows of a work unit.
    fn unit_rows(&self) -> i64 {
        if self.packs() { MC_PACKING } else { MC }
    }

    /// Whether the batch axes are rows of one contraction.
    pub(crate) fn shared(&self) -> bool {
        self.b_batch.iter().all(|&s| s == Size::ZERO)
    }

    /// Rows that are cut into units, where they are known.
    fn const_rows(&self) -> Option<i64> {
        let batch = if self.shared() { &self.batch[..] } else { &[] };
        batch
            .iter()
            .try_fold(self.m.as_const()?, |n, s| n.checked_mul(s.as_const()?))
    }

    /// Work units of a launch.
    pub fn tiles(&self, params: &[Dim]) -> Dim {
        let dim = |s: Size| size_dim(s, params);
        let batch = self.batch.iter().fold(Dim::ONE, |p, &s| p * dim(s));
        let mc = Dim::from(self.unit_rows());
        let blocks = match self.shared() {
            true => (batch * dim(self.m)).ceil_div(&mc),
            false => batch * dim(self.m).ceil_div(&mc),
        };
        blocks * dim(self.n).ceil_div(&self.nr.into())
    }

    /// Scratch bytes of a thread.
    pub fn scratch_bytes(&self, _: &[Dim]) -> Dim {
        let size = self.args[1].size().unwrap_or(1) as i64;
        let panel = match (self.words(), self.packs()) {
            (Some(words), _) => self.word_scratch(words),
            (None, true) => KC * self.nr * size,
            (None, false) => 0,
        };
        Dim::from(self.panel_place() + panel)
    }

    /// Where in scratch a packed panel starts.
    fn panel_place(&self) -> i64 {
        SCRATCH_HEAD + self.unit_rows() * self.nr * self.acc_bytes()
    }

    /// Arithmetic operations and bytes moved by a launch.
    pub fn cost(&self, params: &[Dim]) -> (Dim, Dim) {
        let dim = |s: Size| size_dim(s, params);
        let batch = self.batch.iter().fold(Dim::ONE, |p, &s| p * dim(s));
        let (m, n, k) = (dim(self.m), dim(self.n), dim(self.k));
        let bytes = |i: usize| Dim::from(self.args[i].size().unwrap_or(1));
        let out = self.args.len() - 1;
        let b = if self.shared() {
            Dim::ONE
        } else {
            batch.clone()
        };
        let moved = batch.clone() * m.clone() * k.clone() * bytes(0)
            + b * self.b_bytes(params)
            + batch.clone() * m.clone() * n.clone() * bytes(out);
        (batch * m * n * k * Dim::from(2), moved)
    }

    /// Bytes of B, with what its elements' meaning takes.
    fn b_bytes(&self, params: &[Dim]) -> Dim {
        let dim = |s: Size| size_dim(s, params);
        let size = |i: usize| Dim::from(self.args[i].size().unwrap_or(1));
        let Columns::Blocks(blocks) = &self.b else {
            return dim(self.k) * dim(self.n) * size(1);
        };
        let own = Dim::from(blocks.size * i64::from(blocks.bits) / 8);
        let scales = size(2) + Dim::from(i64::from(blocks.zeros));
        dim(self.n) * dim(blocks.count) * (own + scales)
    }

    /// The kernel's MLIR. Quantized blocks have none: on processors they are taken apart
    /// before.
    pub fn emit(&self, symbol: &str, target: &CpuTarget) -> String {
        Emitter::kernel(symbol, target, |e, args| self.body(e, args, target))
    }

    fn body(&self, e: &mut Emitter, args: KernelArgs, target: &CpuTarget) -> Val {
        let params = micro::params(e, args.params, self.params);
        let buffers: Vec<Val> = (0..self.args.len())
            .map(|i| micro::buffer(e, args.args, i))
            .collect();
        let mut cx = ExprCx::new(&self.exprs, buffers.clone(), params, args.scratch);
        cx.clear_status(e);
        let (m, n) = (cx.size(e, self.m), cx.size(e, self.n));
        let (mc, nr) = (e.i64(self.unit_rows()), e.i64(self.nr));
        let batch: Vec<Val> = self.batch.iter().map(|&s| cx.size(e, s)).collect();
        let all_rows = match self.shared() {
            true => batch.iter().fold(m, |p, &s| e.mul(p, s)),
            false => m,
        };
        let row_blocks = ceil_div(e, all_rows, mc);
        let panels = ceil_div(e, n, nr);
        let one = e.i64(1);
        e.for_loop(args.begin, args.end, one, &[], |e, unit, _| {
            cx.push();
            let (rest, block) = div_rem(e, unit, row_blocks);
            let (rest, panel) = div_rem(e, rest, panels);
            let first = e.mul(block, mc);
            let left = e.sub(all_rows, first);
            let rows = Rows {
                first,
                count: e.min(left, mc, false),
                m,
                batch: &batch,
            };
            let fixed = (!self.shared()).then(|| coordinates(e, rest, &batch));
            self.unit(e, &mut cx, target, &rows, fixed, panel);
            cx.pop();
            vec![]
        });
        cx.status(e)
    }

    /// One block of rows times one panel; `fixed` is the batch, unless every row
    /// has its own.
    fn unit(
        &self,
        e: &mut Emitter,
        cx: &mut ExprCx,
        target: &CpuTarget,
        rows: &Rows,
        fixed: Option<Vec<Val>>,
        panel: Val,
    ) {
        let (n, nr) = (cx.size(e, self.n), e.i64(self.nr));
        let column0 = e.mul(panel, nr);
        let left = e.sub(n, column0);
        let columns = e.min(left, nr, false);
        let head = e.i64(SCRATCH_HEAD);
        let sums = e.offset(cx.scratch, head, Elem::I8);
        if !self.starts_clear(target) {
            let nr = e.i64(self.nr);
            let cells = e.mul(rows.count, nr);
            micro::clear(e, sums, cells, compute_elem(self.acc));
        }

        let mut b_at = e.i64(0);
        for (i, &c) in fixed.iter().flatten().enumerate() {
            b_at = advance(e, cx, b_at, c, self.b_batch[i]);
        }
        let place = words::Place {
            rows,
            fixed: &fixed,
            b_at,
            panel,
            columns: (column0, columns),
        };
        match self.words() {
            Some(words) => self.sum_words(e, cx, target, words, &place, sums),
            None => self.sum_elements(e, cx, target, &place, sums),
        }
        self.epilogue(e, cx, rows, &fixed, (column0, columns), sums);
    }

    /// Adds a unit's products to its block of sums.
    fn sum_elements(
        &self,
        e: &mut Emitter,
        cx: &mut ExprCx,
        target: &CpuTarget,
        at: &words::Place,
        sums: Val,
    ) {
        let rank = self.batch.len();
        let (k, nr) = (cx.size(e, self.k), e.i64(self.nr));
        let (column0, columns) = at.columns;
        let (from, row) = match &self.b {
            Columns::Packed | Columns::Grouped | Columns::Blocks(_) => {
                let panel_size = e.mul(k, nr);
                let skip = e.mul(at.panel, panel_size);
                (e.add(at.b_at, skip), nr)
            }
            Columns::Strided { row, column } => {
                let from = advance(e, cx, at.b_at, column0, *column);
                (from, cx.size(e, *row))
            }
        };
        let b_elem = memory_elem(self.args[1]);
        let b0 = e.offset(cx.args[1], from, b_elem);
        let masked = matches!(self.b, Columns::Strided { .. }) && !self.packs();
        let a_column = cx.size(e, self.a[rank + 1]);
        let (zero, kc) = (e.i64(0), e.i64(KC));
        let sizes = micro::block_sizes(self.const_rows(), self.unit_rows());
        let tile_rows = Tile::of(target, self.acc_bytes() as u32).rows;
        e.for_loop(zero, k, kc, &[], |e, k0, _| {
            let left = e.sub(k, k0);
            let depth = e.min(left, kc, false);
            let skip = e.mul(k0, row);
            let here = e.offset(b0, skip, b_elem);
            let (part, step) = match self.b {
                Columns::Strided { column, .. } if self.packs() => {
                    let place = e.i64(self.panel_place());
                    let to = e.offset(cx.scratch, place, Elem::I8);
                    let column = cx.size(e, column);
                    match self.b {
                        Columns::Strided { row: Size::ONE, .. } => {
                            self.pack_runs(e, (here, column), to, depth, columns)
                        }
                        _ => self.pack_panel(e, (here, row, column), to, depth, columns),
                    }
                    (to, nr)
                }
                _ => (here, row),
            };
            let b = Operand {
                dtype: self.args[1],
                step,
            };
            let a = Operand {
                dtype: self.args[0],
                step: a_column,
            };
            let mask = masked.then_some(columns);
            let count = at.rows.count;
            micro::for_rows(e, count, tile_rows, &sizes, &mut |e, first, count| {
                let pointers = self.row_pointers(e, cx, (at.rows, at.fixed), (first, count), k0);
                self.tile(
                    e,
                    target,
                    depth,
                    (a, &pointers),
                    (b, part),
                    mask,
                    (sums, first),
                );
            });
            vec![]
        });
    }

    /// Pointers to the unit's rows of A from `first` on, at `k0`.
    fn row_pointers(
        &self,
        e: &mut Emitter,
        cx: &ExprCx,
        (rows, fixed): (&Rows, &Option<Vec<Val>>),
        (first, count): (Val, u32),
        k0: Val,
    ) -> Vec<Val> {
        let rank = self.batch.len();
        let column = cx.size(e, self.a[rank + 1]);
        let skip = e.mul(k0, column);
        (0..count)
            .map(|r| {
                let r = e.i64(r as i64);
                let row = e.add(first, r);
                let mut at = skip;
                for (i, c) in rows.coordinates(e, row, fixed).into_iter().enumerate() {
                    at = advance(e, cx, at, c, self.a[i]);
                }
                e.offset(cx.args[0], at, memory_elem(self.args[0]))
            })
            .collect()
    }

    /// A few rows times a panel, added to the sums from row `first` on.
    #[allow(clippy::too_many_arguments)]
    fn tile(
        &self,
        e: &mut Emitter,
        target: &CpuTarget,
        depth: Val,
        (a, pointers): (Operand, &[Val]),
        (b, b0): (Operand, Val),
        columns: Option<Val>,
        (sums, first): (Val, Val),
    ) {
        let tile = Tile::of(target, self.acc_bytes() as u32);
        let (lanes, elem) = (tile.lanes as i64, compute_elem(self.acc));
        let nr = e.i64(self.nr);
        let most = tile.vectors(pointers.len() as u32) as i64;
        let mut j = 0;
        while j < self.nr {
            let vectors = ((self.nr - j) / lanes).min(most);
            let masks: Option<Vec<Val>> = columns.map(|columns| {
                (0..vectors)
                    .map(|v| {
                        let before = e.i64(j + v * lanes);
                        let count = e.sub(columns, before);
                        e.mask_first(count, tile.lanes)
                    })
                    .collect()
            });
            let mut slots = vec![];
            for r in 0..pointers.len() as i64 {
                let r = e.i64(r);
                let row = e.add(first, r);
                let at = e.mul(row, nr);
                for v in 0..vectors {
                    let column = e.i64(j + v * lanes);
                    let at = e.add(at, column);
                    slots.push(e.offset(sums, at, elem));
                }
            }
            let ty = Ty::vector(elem, tile.lanes);
            let init: Vec<Val> = match self.starts_clear(target) {
                true => vec![e.zero(ty); slots.len()],
                false => slots.iter().map(|&p| e.load(p, ty)).collect(),
            };
            let here = e.i64(j);
            let from = e.offset(b0, here, memory_elem(self.args[1]));
            let masks = masks.as_deref();
            let out = micro::multiply(e, self.acc, depth, (a, pointers), (b, from), masks, &init);
            out.iter().zip(slots).for_each(|(&sum, p)| e.store(sum, p));
            j += vectors * lanes;
        }
    }

    fn epilogue(
        &self,
        e: &mut Emitter,
        cx: &mut ExprCx,
        rows: &Rows,
        fixed: &Option<Vec<Val>>,
        (column0, columns): (Val, Val),
        sums: Val,
    ) {
        let rank = self.batch.len();
        let (zero, one, step, nr) = (e.i64(0), e.i64(1), e.i64(LANES), e.i64(self.nr));
        let out = self.args.len() as u16 - 1;
        // A masked store of bytes is sixteen stores without AVX-512.
        let full = matches!(self.n, Size::Const(n) if n % LANES == 0);
        e.for_loop(zero, rows.count, one, &[], |e, r, _| {
            let at = e.mul(r, nr);
            let place = rows.coordinates(e, r, fixed);
            e.for_loop(zero, columns, step, &[], |e, c, _| {
                cx.push();
                let column = e.add(column0, c);
                let at = e.add(at, c);
                let p = e.offset(sums, at, compute_elem(self.acc));
                let sum = e.load(p, Ty::vector(compute_elem(self.acc), LANES as u32));
                let mask = (!full).then(|| {
                    let left = e.sub(columns, c);
                    e.mask_first(left, LANES as u32)
                });
                cx.axes = place
                    .iter()
                    .copied()
                    .map(Some)
                    .chain([Some(column)])
                    .collect();
                cx.vector = Some(rank as u8 + 1);
                cx.mask = mask;
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

/// The rows of a work unit.
struct Rows<'a> {
    first: Val,
    count: Val,
    m: Val,
    batch: &'a [Val],
}

impl Rows<'_> {
    /// The batch coordinates and m of the unit's row `r`.
    fn coordinates(&self, e: &mut Emitter, r: Val, fixed: &Option<Vec<Val>>) -> Vec<Val> {
        let row = e.add(self.first, r);
        if let Some(batch) = fixed {
            return batch.iter().copied().chain([row]).collect();
        }
        if self.batch.is_empty() {
            return vec![row];
        }
        let (rest, m) = div_rem(e, row, self.m);
        let mut c = coordinates(e, rest, self.batch);
        c.push(m);
        c
    }
}

/// Coordinates of a row-major position.
fn coordinates(e: &mut Emitter, mut at: Val, extents: &[Val]) -> Vec<Val> {
    let mut c = vec![];
    for (i, &extent) in extents.iter().enumerate().rev() {
        if i == 0 {
            c.push(at);
        } else {
            let (next, here) = div_rem(e, at, extent);
            c.push(here);
            at = next;
        }
    }
    c.reverse();
    c
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
