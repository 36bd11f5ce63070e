//! Sums of products of few rows, where reading B is all that takes time.
//!
//! A block has the sums of [`ROWS`] rows (or of those there are) and [`COLUMNS`] columns, so
//! that 4096 columns keep a whole chip reading; its [`WARPS`] warps share k, a step in turn
//! each, and their sums are added through shared memory:
//! ```text
//! k:      0 … 31   32 … 63   …   224 … 255   256 … 287   …
//! warp:   0        1             7           0
//! ```
//! Tensor cores multiply panels of words (`skinny_words.rs`), lanes all else
//! (`skinny_lanes.rs`) but what `thin.rs` serves; A is read from the cache by every warp.
//!
//! Rows and columns that do not exist are read as ones that do: nobody stores their sums.
//! A sum's order is a lane's products, then lanes by halves, then warps: it depends on k
//! alone, so a row has the same bits among other rows as alone.

use super::block::{self, Place, Shape, Sums};
use super::gemm::Source;
use super::nest::long;
use super::skinny_lanes::Lanes;
use super::{GpuKernel, Unit, skinny_words};
use crate::LoopNest;
use crate::lower::{ExprCx, compute_elem, memory_elem};
use crate::matmul::MatMulSpec;
use kiln_codegen::emit::Cmp;
use kiln_codegen::{Elem, Emitter, GpuTarget, Ty, Val};
use kiln_ir::{DType, Dim, Tri};

/// Rows and columns of a block, and the warps that share its k.
pub(super) const ROWS: i64 = 8;
pub(super) const COLUMNS: i64 = 16;
pub(super) const WARPS: i64 = 8;

/// A block.
pub(super) const SHAPE: Shape = Shape {
    rows: ROWS,
    columns: COLUMNS,
    threads: 32 * WARPS,
};

/// Blocks that a grid has at most along its second axis.
const MOST_BLOCKS: i64 = 65535;

/// Rows whose sums take so many registers that a multiprocessor holds one block alone.
const MANY: i64 = 4;

/// What a launch's parameters must satisfy (left ≤ right) for this to serve it; none where
/// it never does.
pub(super) fn when(spec: &MatMulSpec) -> Option<Vec<(Dim, Dim)>> {
    serves(spec).then(|| few(spec)).flatten()
}

/// The same of how many rows and columns there are.
pub(super) fn few(spec: &MatMulSpec) -> Option<Vec<(Dim, Dim)>> {
    let [rows, columns, ..] = spec.dims();
    let mut open = vec![];
    for (size, most) in [(rows, ROWS), (columns, MOST_BLOCKS * COLUMNS)] {
        let most = Dim::from(most);
        match size.le(&most) {
            Tri::Yes => {}
            Tri::No => return None,
            Tri::Unknown => open.push((size, most)),
        }
    }
    Some(open)
}

/// Whether four elements are one access, and sums are of 32 bits.
fn serves(spec: &MatMulSpec) -> bool {
    let small = |t: DType| memory_elem(t) != Elem::I1 && memory_elem(t).bits() <= 32;
    spec.acc != DType::F64 && small(spec.args[0]) && small(spec.args[1])
}

/// Emits the form for few rows, if there is one; it has the given name where it serves every
/// launch.
pub(super) fn emit(
    spec: &MatMulSpec,
    nest: &LoopNest,
    name: &str,
    target: &GpuTarget,
) -> Option<GpuKernel> {
    let when = when(spec)?;
    let entry = match when.is_empty() {
        true => name.to_string(),
        false => format!("{name}_few"),
    };
    let kernel = block::kernel((&entry, target), spec, nest, SHAPE, 0, |e, cx, p| {
        let bytes = 4 * WARPS * ROWS * COLUMNS;
        let shared = e.kernel_mut().shared(bytes as u32, 16);
        let sums = Sums {
            at: e.from_word(shared, Elem::Ptr),
            pitch: COLUMNS,
            elem: compute_elem(spec.acc),
        };
        let kind = skinny_words::serves(spec);
        let many = kind.is_none() && rows(spec) > MANY;
        e.kernel_mut().set_resident(if many { 1 } else { 2 });
        match kind {
            Some(kind) => skinny_words::share(e, cx, spec, kind, p, sums),
            None => Lanes::of(e, cx, spec, p).share(e, cx, p, sums),
        }
        join(e, p.thread, rows(spec), sums);
        sums
    });
    // Tensor cores multiply rows that do not exist as well.
    let (unit, height) = match skinny_words::serves(spec) {
        Some(_) => (Unit::Mma, ROWS),
        None => (Unit::Lanes, rows(spec)),
    };
    Some(GpuKernel {
        when,
        unit,
        height: Some(height),
        ..kernel
    })
}

/// Rows that may exist.
pub(super) fn rows(spec: &MatMulSpec) -> i64 {
    let [all, ..] = spec.dims();
    all.as_const().unwrap_or(ROWS).clamp(1, ROWS)
}

/// A thread's warp, and its lane.
pub(super) fn warp_and_lane(e: &mut Emitter, thread: Val) -> (Val, Val) {
    let size = e.i64(32);
    let lane = e.kernel_mut().lane();
    (e.op2("arith.divui", thread, size), long(e, lane))
}

/// Whether a buffer and so many of its elements are multiples of `bytes` bytes.
pub(super) fn aligned(
    e: &mut Emitter,
    (base, elem): (Val, Elem),
    sizes: impl IntoIterator<Item = Val>,
    bytes: i64,
) -> Val {
    let r = e.long(base);
    let mut bits = e.from_long(r, Elem::I64);
    let size = e.i64(i64::from(elem.bits() / 8));
    for s in sizes {
        let s = e.mul(s, size);
        bits = e.op2("arith.ori", bits, s);
    }
    let (mask, zero) = (e.i64(bytes - 1), e.i64(0));
    let low = e.op2("arith.andi", bits, mask);
    e.cmp(Cmp::Eq, low, zero, false)
}

/// What A's rows start at multiples of.
pub(super) fn row_strides(e: &mut Emitter, cx: &ExprCx, spec: &MatMulSpec) -> Vec<Val> {
    let strides = &spec.a[..=spec.batch.len()];
    strides.iter().map(|&s| cx.size(e, s)).collect()
}

/// What the batches of B start at multiples of.
pub(super) fn batch_strides(e: &mut Emitter, cx: &ExprCx, spec: &MatMulSpec) -> Vec<Val> {
    spec.b_batch.iter().map(|&s| cx.size(e, s)).collect()
}

/// The element at which B of the block's batch starts.
pub(super) fn b_start(e: &mut Emitter, cx: &ExprCx, spec: &MatMulSpec, p: &Place) -> Val {
    let zero = e.i64(0);
    match spec.shared() {
        true => zero,
        false => spec.b(e, cx, p.batch, zero, zero),
    }
}

/// Where a warp's sums are: `[warp][row][column]`.
pub(super) fn part(e: &mut Emitter, sums: Sums, warp: Val, row: Val, column: Val) -> Val {
    let (rows, pitch) = (e.i64(ROWS), e.i64(sums.pitch));
    let at = e.mul(warp, rows);
    let at = e.add(at, row);
    let at = e.mul(at, pitch);
    let at = e.add(at, column);
    e.offset(sums.at, at, sums.elem)
}

/// Adds the warps' sums in their order, in the first one's place.
pub(super) fn join(e: &mut Emitter, thread: Val, rows: i64, sums: Sums) {
    e.kernel_mut().barrier();
    let all = e.i64(rows * COLUMNS);
    let mine = e.cmp(Cmp::Lt, thread, all, false);
    e.if_then(mine, |e| {
        let ty = Ty::scalar(sums.elem);
        let first = e.offset(sums.at, thread, sums.elem);
        let mut sum = e.load(first, ty);
        for warp in 1..WARPS {
            let skip = e.i64(warp * ROWS * COLUMNS);
            let at = e.offset(first, skip, sums.elem);
            let next = e.load(at, ty);
            sum = e.add(sum, next);
        }
        e.store(sum, first);
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Size;
    use crate::expr::{Exprs, Index};
    use crate::matmul::Columns;

    fn product(m: Size, batch: Vec<Size>, acc: DType) -> MatMulSpec {
        let mut exprs = Exprs::new();
        let value = exprs.acc(0, acc).unwrap();
        let rank = batch.len();
        MatMulSpec {
            exprs,
            args: vec![acc; 3],
            params: 2,
            a: vec![Size::ONE; rank + 2],
            b_batch: vec![Size::ZERO; rank],
            out: Index::strided(vec![Size::ONE; rank + 2]),
            batch,
            m,
            n: Size::Const(4096),
            k: Size::Const(4096),
            acc,
            tf32: false,
            b: Columns::Packed,
            nr: 64,
            value,
        }
    }

    /// Rows of all batches count where these share B.
    #[test]
    fn few_rows_are_known_or_asked_for() {
        let (few, many) = (Size::Const(4), Size::Const(9));
        let of = |m, batch| when(&product(m, batch, DType::F32));
        assert_eq!(of(few, vec![]), Some(vec![]));
        assert_eq!(of(few, vec![Size::Const(2)]), Some(vec![]));
        assert_eq!(of(few, vec![Size::Const(3)]), None);
        assert_eq!(of(many, vec![]), None);
        assert_eq!(when(&product(few, vec![], DType::F64)), None);
        let (m, batch) = (Dim::sym("p0"), Dim::sym("p1"));
        let open = of(Size::Param(0), vec![Size::Param(1)]);
        assert_eq!(open, Some(vec![(m * batch, ROWS.into())]));
    }
}
