//! A block's share of a product: where it is, how it is launched, and what becomes of its
//! sums, for every kernel of sums of products.

use super::gemm::Source;
use super::nest::{divide, long};
use super::{GpuKernel, Ports, entry, tail, vectors};
use crate::LoopNest;
use crate::emit_nest::NestEmitter;
use crate::lower::ExprCx;
use kiln_codegen::emit::Cmp;
use kiln_codegen::ptx::{B32, Reg};
use kiln_codegen::{Elem, Emitter, GpuTarget, Ty, Val};
use kiln_ir::Dim;

/// Rows and columns of a block, and its threads.
#[derive(Clone, Copy)]
pub(super) struct Shape {
    pub rows: i64,
    pub columns: i64,
    pub threads: i64,
}

/// Where a block is.
pub(super) struct Place {
    pub thread: Val,
    pub batch: Val,
    /// The block's first row, and all rows; columns likewise.
    pub rows: (Val, Val),
    pub columns: (Val, Val),
    /// Products.
    pub k: Val,
    /// Those of the block, from and to.
    pub span: (Val, Val),
}

impl Place {
    /// Numbers that the epilogue reads again: sums take their registers.
    const KEPT: i64 = 4;

    /// Bytes of them.
    const BYTES: i64 = 8 * Place::KEPT;

    /// Leaves them in shared memory: behind what the launch adds, if it adds some, which so
    /// begins at a multiple of 1024, as it must for products that read it swizzled.
    fn keep(&self, e: &mut Emitter, shared: i64) -> Val {
        let kept = match shared {
            0 => {
                let kept = e.kernel_mut().shared(Place::BYTES as u32, 8);
                e.from_word(kept, Elem::Ptr)
            }
            _ => {
                let base = e.kernel_mut().dynamic_shared();
                let base = e.from_word(base, Elem::Ptr);
                let behind = e.i64(shared);
                e.offset(base, behind, Elem::I8)
            }
        };
        let none = e.i64(0);
        let writes = e.cmp(Cmp::Eq, self.thread, none, false);
        e.if_then(writes, |e| {
            let all = [self.batch, self.rows.0, self.rows.1, self.columns.0];
            for (i, x) in (0..).zip(all) {
                let i = e.i64(i);
                let to = e.offset(kept, i, Elem::I64);
                e.store(x, to);
            }
        });
        kept
    }

    /// The place as the epilogue reads it, behind a barrier.
    fn kept(&self, e: &mut Emitter, kept: Val) -> Place {
        let [batch, row, rows, column] = [0, 1, 2, 3].map(|i| {
            let i = e.i64(i);
            let from = e.offset(kept, i, Elem::I64);
            e.load(from, Ty::scalar(Elem::I64))
        });
        Place {
            batch,
            rows: (row, rows),
            columns: (column, self.columns.1),
            ..*self
        }
    }
}

/// The sums of a block in shared memory, `[row][column]`.
#[derive(Clone, Copy)]
pub(super) struct Sums {
    pub at: Val,
    /// Elements between rows.
    pub pitch: i64,
    pub elem: Elem,
}

/// A kernel whose blocks share a product; `shared` bytes of shared memory are added.
/// `write` gets what expressions need and where a block is, and gives its sums when every
/// thread has written its own; the epilogue follows.
pub(super) fn kernel(
    (name, target): (&str, &GpuTarget),
    source: &dyn Source,
    nest: &LoopNest,
    shape: Shape,
    shared: i64,
    write: impl FnOnce(&mut Emitter, &ExprCx, &Place) -> Sums,
) -> GpuKernel {
    frame(
        (name, target),
        (source, nest),
        (shape, shared),
        |e, cx, p, _| write(e, cx, p),
        |e, cx, p, sums, _| finish(e, nest, cx, source, p, shape, sums),
    )
}

/// The same with another `end` than the epilogue; both get the launch's scratch.
pub(super) fn frame(
    (name, target): (&str, &GpuTarget),
    (source, nest): (&dyn Source, &LoopNest),
    (shape, shared): (Shape, i64),
    write: impl FnOnce(&mut Emitter, &ExprCx, &Place, Val) -> Sums,
    end: impl FnOnce(&mut Emitter, ExprCx, &Place, Sums, Val),
) -> GpuKernel {
    let [rows, columns, _, batches] = source.dims();
    let threads = shape.threads as u32;
    let (body, _) = entry(name, target, threads, |e| {
        let ports = Ports::declare(e, nest.args.len(), nest.params);
        let scratch = ports.scratch;
        let cx = ExprCx::new(&nest.exprs, ports.args, ports.params, ports.status);
        let place = place(e, &cx, source, shape);
        let kept = place.keep(e, shared);
        let sums = write(e, &cx, &place, scratch);
        e.kernel_mut().barrier();
        let place = place.kept(e, kept);
        end(e, cx, &place, sums, scratch);
    });
    GpuKernel {
        entry: name.to_string(),
        body,
        grid: [
            batches * rows.ceil_div(&shape.rows.into()),
            columns.ceil_div(&shape.columns.into()),
            Dim::ONE,
        ],
        block: [threads, 1, 1],
        cluster: [1; 3],
        shared: match shared {
            0 => 0,
            _ => (shared + Place::BYTES) as u32,
        },
        ..GpuKernel::default()
    }
}

fn place(e: &mut Emitter, cx: &ExprCx, source: &dyn Source, shape: Shape) -> Place {
    let [rows, columns, k, _] = source.extents(e, cx);
    let thread = e.kernel_mut().thread();
    let thread = long(e, thread);
    let (x, y) = (e.kernel_mut().block(0), e.kernel_mut().block(1));
    let (x, y) = (long(e, x), long(e, y));
    let (less, high, wide) = (
        e.i64(shape.rows - 1),
        e.i64(shape.rows),
        e.i64(shape.columns),
    );
    let up = e.add(rows, less);
    let blocks = e.op2("arith.divui", up, high);
    let (batch, block) = divide(e, x, blocks, None);
    Place {
        thread,
        batch,
        rows: (e.mul(block, high), rows),
        columns: (e.mul(y, wide), columns),
        k,
        span: (e.i64(0), k),
    }
}

/// A row or column, or the last of `all` where it does not exist: it is read, and nobody
/// stores its sums.
pub(super) fn existing(e: &mut Emitter, at: Val, all: Val) -> Val {
    let one = e.i64(1);
    let last = e.sub(all, one);
    e.min(at, last, false)
}

/// Where the first of a thread's two neighbours goes that `mma` and `wgmma` leave in each
/// eight rows and columns: row `lane / 4`, column `2·(lane % 4)`, from this corner on.
pub(super) fn fragment(e: &mut Emitter, sums: Sums, (row, column): (Val, Val)) -> Reg<B32> {
    let lane = e.kernel_mut().lane();
    let lane = long(e, lane);
    let (four, two, pitch) = (e.i64(4), e.i64(2), e.i64(sums.pitch));
    let t = e.op2("arith.remui", lane, four);
    let g = e.op2("arith.divui", lane, four);
    let r = e.add(row, g);
    let at = e.mul(r, pitch);
    let c = e.mul(t, two);
    let c = e.add(column, c);
    let at = e.add(at, c);
    let to = e.offset(sums.at, at, sums.elem);
    e.word(to)
}

/// The epilogue of a block, as [`write`] does it.
pub(super) fn finish(
    e: &mut Emitter,
    nest: &LoopNest,
    cx: ExprCx,
    source: &dyn Source,
    p: &Place,
    shape: Shape,
    sums: Sums,
) {
    let mut tail = tail::emitter(e, nest, cx);
    write(e, &mut tail, source, p, shape, sums);
}

/// The epilogue of sums that lie in shared memory, by the threads that `p` and `shape`
/// tell of; neighbours along a row together.
pub(super) fn write(
    e: &mut Emitter,
    tail: &mut NestEmitter,
    source: &dyn Source,
    p: &Place,
    shape: Shape,
    sums: Sums,
) {
    // What one access reads of the sums.
    let most = 128 / sums.elem.bits();
    let run = i64::from(tail::run(tail.nest, most));
    let width = shape.columns / run;
    let (threads, all) = (e.i64(shape.threads), e.i64(shape.rows * width));
    e.for_loop(p.thread, all, threads, &[], |e, i, _| {
        let (width, step) = (e.i64(width), e.i64(run));
        let r = e.op2("arith.divui", i, width);
        let c = e.op2("arith.remui", i, width);
        let c = e.mul(c, step);
        let (row, column) = (e.add(p.rows.0, r), e.add(p.columns.0, c));
        let row_is = e.cmp(Cmp::Lt, row, p.rows.1, false);
        let column_is = e.cmp(Cmp::Lt, column, p.columns.1, false);
        let exists = e.op2("arith.andi", row_is, column_is);
        e.if_then(exists, |e| {
            let pitch = e.i64(sums.pitch);
            let at = e.mul(r, pitch);
            let at = e.add(at, c);
            let from = e.offset(sums.at, at, sums.elem);
            let left = e.sub(p.columns.1, column);
            let count = e.min(left, step, false);
            tail.cx.push();
            let point = source.point(e, &tail.cx, p.batch, row, column);
            let last = point.len() - 1;
            for (axis, &c) in point[..last].iter().enumerate() {
                tail.cx.axes[axis] = Some(c);
            }
            let end = e.add(point[last], count);
            let from = Some((from, sums.elem));
            vectors::neighbours(tail, e, (point[last], end), run as u32, from);
            tail.cx.axes.fill(None);
            tail.cx.pop();
        });
        vec![]
    });
}
