//! A product of few rows whose k is shared out to several blocks, where rows and columns make
//! far fewer of them than a chip has multiprocessors: few would draw B from memory.
//!
//! ```text
//! launch 1, blocks [rows, columns, part]:  scratch[part, row, column] = sum over the part
//! launch 2, blocks [rows, columns]:        sum = scratch[0] + scratch[1] + …; the epilogue
//! ```
//! Parts have [`PART`] products, whatever else there is, and are added in order. Whether there
//! are parts depends on k, columns and the target, not on how many rows a launch has: so a row
//! has the same bits among others.

use super::block::{self, Place, Shape, Sums};
use super::cost::{self, Load};
use super::gemm::Source;
use super::nest::long;
use super::{GpuKernel, Unit, dim, entry_of};
use crate::lower::{ExprCx, compute_elem};
use crate::matmul::MatMulSpec;
use crate::{KernelSpec, LoopNest, Size};
use kiln_codegen::emit::Cmp;
use kiln_codegen::ptx::{B32, Reg, Space};
use kiln_codegen::{Elem, Emitter, GpuTarget, Val};
use kiln_ir::{Binding, Dim};

/// Products of a part: whole turns of a block of every family that is split.
pub(super) const PART: i64 = 2048;

/// The most parts: a block that joins names each.
const MOST: i64 = 32;

/// Sums that a thread moves at once.
const RUN: i64 = 4;

/// What a block joins.
const JOIN: Shape = Shape {
    rows: 8,
    columns: 32,
    threads: 64,
};

/// Elements between rows of sums in shared memory.
const PITCH: i64 = JOIN.columns + RUN;

/// Parts of k of a product whose blocks may have these shapes, by the number of its rows:
/// none where one of them is not predicted to gain.
pub(super) fn parts(spec: &MatMulSpec, shapes: &[Shape], target: &GpuTarget) -> Option<i64> {
    let (n, k) = (spec.n.as_const()?, spec.k.as_const()?);
    let parts = ceil_div(k, PART);
    let known = spec.shared() && (2..=MOST).contains(&parts) && n > 0;
    let gains = |&shape| gains(spec, shape, (n, parts), target).unwrap_or(false);
    (known && shapes.iter().all(gains)).then_some(parts)
}

/// Whether parts are predicted to take less time than the whole; none where a size of B has
/// no value yet.
fn gains(
    spec: &MatMulSpec,
    shape: Shape,
    (n, parts): (i64, i64),
    target: &GpuTarget,
) -> Option<bool> {
    let rows = MatMulSpec {
        batch: vec![],
        m: Size::Const(shape.rows),
        ..spec.clone()
    };
    let names: Vec<Dim> = (0..spec.params).map(|i| dim(Size::Param(i))).collect();
    let (flops, bytes) = rows.cost(&names);
    let value = |d: &Dim| d.eval(&Binding::default()).ok().map(|n| n as f64);
    let whole = Load {
        flops: value(&flops)?,
        bytes: value(&bytes)?,
        blocks: ceil_div(n, shape.columns) as f64,
        threads: shape.threads as u32,
        shared: 0,
        unit: Unit::Mma,
        factors: cost::factors(&KernelSpec::MatMul(rows)),
        rows: Some(1.0),
    };
    let moved = (4 * parts * shape.rows * pitch(n)) as f64;
    let part = Load {
        bytes: whole.bytes + moved,
        blocks: whole.blocks * parts as f64,
        ..whole
    };
    let join = Load {
        flops: moved / 4.0,
        bytes: moved,
        blocks: (ceil_div(shape.rows, JOIN.rows) * ceil_div(n, JOIN.columns)) as f64,
        threads: JOIN.threads as u32,
        unit: Unit::Lanes,
        rows: None,
        ..whole
    };
    let split = cost::time(&[part, join], target).seconds;
    Some(split < cost::time(&[whole], target).seconds)
}

fn ceil_div(n: i64, by: i64) -> i64 {
    n / by + i64::from(n % by > 0)
}

/// Elements between rows in scratch.
fn pitch(n: i64) -> i64 {
    ceil_div(n, RUN) * RUN
}

/// A kernel as [`block::kernel`] has it, over all of k or in so many parts.
pub(super) fn kernel(
    (name, target): (&str, &GpuTarget),
    spec: &MatMulSpec,
    nest: &LoopNest,
    (shape, shared): (Shape, i64),
    parts: Option<i64>,
    write: impl FnOnce(&mut Emitter, &ExprCx, &Place) -> Sums,
) -> GpuKernel {
    let (Some(parts), Some(n)) = (parts, spec.n.as_const()) else {
        return block::kernel((name, target), spec, nest, shape, shared, write);
    };
    let kernel = block::frame(
        (name, target),
        (spec, nest),
        (shape, shared),
        |e, cx, p, _| {
            let span = span(e, p.k);
            write(e, cx, &Place { span, ..*p })
        },
        |e, _, p, sums, scratch| keep(e, (p, shape), sums, (scratch, n)),
    );
    let elem = compute_elem(spec.acc);
    let join = block::frame(
        (&entry_of(name, "join"), target),
        (spec, nest),
        (JOIN, 4 * JOIN.rows * PITCH),
        |e, _, p, scratch| add(e, p, elem, (scratch, n, parts)),
        |e, cx, p, sums, _| block::finish(e, nest, cx, spec, p, JOIN, sums),
    );
    let names: Vec<Dim> = (0..spec.params).map(|i| dim(Size::Param(i))).collect();
    let (flops, bytes) = spec.cost(&names);
    let scratch = spec.dims()[0].clone() * (4 * parts * pitch(n)).into();
    let adds = spec.dims()[0].clone() * (parts * n).into();
    let [x, y, _] = kernel.grid;
    GpuKernel {
        grid: [x, y, parts.into()],
        work: Some((flops, bytes + scratch.clone())),
        then: vec![GpuKernel {
            work: Some((adds, scratch.clone())),
            ..join
        }],
        scratch,
        ..kernel
    }
}

/// The products from which and to which the block's part goes.
fn span(e: &mut Emitter, k: Val) -> (Val, Val) {
    let part = e.kernel_mut().block(2);
    let (part, size) = (long(e, part), e.i64(PART));
    let from = e.mul(part, size);
    let to = e.add(from, size);
    (from, e.min(to, k, false))
}

/// Calls `body` with a run's row and column in a block, and its element in a part of scratch,
/// for every run of the thread's that exists.
fn runs(
    e: &mut Emitter,
    (p, shape): (&Place, Shape),
    n: i64,
    body: impl FnOnce(&mut Emitter, (Val, Val), Val),
) {
    let wide = shape.columns / RUN;
    let (threads, all) = (e.i64(shape.threads), e.i64(shape.rows * wide));
    e.for_loop(p.thread, all, threads, &[], |e, i, _| {
        let (wide, run, pitch) = (e.i64(wide), e.i64(RUN), e.i64(pitch(n)));
        let r = e.op2("arith.divui", i, wide);
        let c = e.op2("arith.remui", i, wide);
        let c = e.mul(c, run);
        let (row, column) = (e.add(p.rows.0, r), e.add(p.columns.0, c));
        let row_is = e.cmp(Cmp::Lt, row, p.rows.1, false);
        let column_is = e.cmp(Cmp::Lt, column, p.columns.1, false);
        let exists = e.op2("arith.andi", row_is, column_is);
        let at = e.mul(row, pitch);
        let at = e.add(at, column);
        e.if_then(exists, |e| body(e, (r, c), at));
        vec![]
    });
}

/// Elements of a part in scratch.
fn size(e: &mut Emitter, p: &Place, n: i64) -> Val {
    let pitch = e.i64(pitch(n));
    e.mul(p.rows.1, pitch)
}

/// Leaves the sums of the block's part in scratch.
fn keep(e: &mut Emitter, (p, shape): (&Place, Shape), sums: Sums, (scratch, n): (Val, i64)) {
    let part = e.kernel_mut().block(2);
    let (part, size) = (long(e, part), size(e, p, n));
    let own = e.mul(part, size);
    let own = e.offset(scratch, own, sums.elem);
    runs(e, (p, shape), n, |e, (r, c), at| {
        let pitch = e.i64(sums.pitch);
        let from = e.mul(r, pitch);
        let from = e.add(from, c);
        let from = e.offset(sums.at, from, sums.elem);
        let to = e.offset(own, at, sums.elem);
        let (from, to) = (e.word(from), e.long(to));
        let k = e.kernel_mut();
        let words: Vec<Reg<B32>> = k.load(Space::Shared, from, 0, RUN as usize);
        k.store(Space::Global, to, 0, &words);
    });
}

/// Adds the parts of a block's sums, in order.
fn add(e: &mut Emitter, p: &Place, elem: Elem, (scratch, n, parts): (Val, i64, i64)) -> Sums {
    let shared = e.kernel_mut().dynamic_shared();
    let sums = Sums {
        at: e.from_word(shared, Elem::Ptr),
        pitch: PITCH,
        elem,
    };
    let size = size(e, p, n);
    runs(e, (p, JOIN), n, |e, (r, c), at| {
        let mut from = e.offset(scratch, at, elem);
        let mut all: Vec<Vec<Val>> = vec![];
        for _ in 0..parts {
            all.push(e.load_few(from, elem, RUN as u32));
            from = e.offset(from, size, elem);
        }
        let (first, others) = all.split_first().expect("there are parts");
        let pitch = e.i64(PITCH);
        let to = e.mul(r, pitch);
        let to = e.add(to, c);
        let to = e.offset(sums.at, to, elem);
        for (i, &x) in (0..).zip(first) {
            let of = others.iter().map(|part| part[i as usize]);
            let sum = of.fold(x, |sum, x| e.add(sum, x));
            let i = e.i64(i);
            let to = e.offset(to, i, elem);
            e.store(sum, to);
        }
    });
    sums
}
