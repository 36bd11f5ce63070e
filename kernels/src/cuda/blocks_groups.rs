//! Products of many rows of halves with quantized blocks on Hopper's tensor cores (`wgmma`).
//!
//! Of two factors `wgmma` takes the first one alone from registers, so what is computed is
//! turned: `out^T = B^T · A^T`. Columns of B, 64 a group of four warps, are an instruction's
//! rows: their numbers become halves in the registers in which it wants them. A's [`ROWS`] rows
//! are its columns, in shared memory as `groups.rs` has them.
//!
//! ```text
//! copy A and B's bytes, a few parts of 64 elements a row ahead
//! for part in ..:
//!     wait for the part's copies; barrier
//!     for run of 32 elements in part:
//!         halves = numbers of the run              while the run before is multiplied
//!         start sums += halves · A^T(run)
//!         wait for the run before, whose registers are free
//!     copy the part that is as far ahead
//! ```
//! Bytes of B go through shared memory: they are few, and what is on its way there takes no
//! registers. A thread has 128: so a multiprocessor has four groups, by two blocks of 128
//! columns, or by one of 256, which reads A half as often and serves where there are enough of
//! them. All groups copy: one that did nothing else, as attention has it, would leave fewer
//! registers to those that multiply. A place in shared memory is written again two parts later,
//! when every group has waited for its products. Scales and zeros are read a part ahead.

use super::block::{self, Place, Shape, Sums};
use super::blocks::{Column, RUN, Stored, Weights};
use super::copies::{self, Layout, Rows};
use super::gemm::Source;
use super::groups::{ROW, descriptor};
use super::nest::long;
use super::{GpuKernel, Unit, ask, entry_of};
use crate::LoopNest;
use crate::lower::ExprCx;
use crate::matmul::{Blocks, Columns, MatMulSpec};
use kiln_codegen::ptx::{B32, B64, F32, Floats, Half, Order, Pred, Reg, Space, Sum};
use kiln_codegen::{Elem, Emitter, GpuTarget, Val};

/// Rows of a block: columns of an instruction.
const ROWS: i64 = 128;

/// Threads of a group of four warps, and the columns that it multiplies.
const GROUP: i64 = 128;
const GROUP_COLUMNS: i64 = 64;

/// Elements of a part's row, and its runs.
const DEPTH: i64 = ROW / 2;
const RUNS: i64 = DEPTH / RUN;

/// Groups of a block, and of one where there are blocks enough.
const GROUPS: i64 = 2;
const MANY: i64 = 4;

pub(super) fn emit(
    spec: &MatMulSpec,
    half: Half,
    nest: &LoopNest,
    name: &str,
    target: &GpuTarget,
) -> Vec<GpuKernel> {
    let Columns::Blocks(blocks) = &spec.b else {
        unreachable!("`blocks::emit` looked");
    };
    let one = |name: &str, groups: i64| {
        let wide = Groups::new(spec, blocks, half, groups);
        GpuKernel {
            unit: Unit::Wgmma,
            ..wide.kernel(nest, name, target)
        }
    };
    let [rows, columns, _, batches] = spec.dims();
    let parts =
        rows.ceil_div(&ROWS.into()) * columns.ceil_div(&(MANY * GROUP_COLUMNS).into()) * batches;
    let mut when = vec![];
    let enough = ask(&mut when, &i64::from(target.multiprocessors).into(), &parts);
    match (enough, when.is_empty()) {
        (None, _) => vec![one(name, GROUPS)],
        (Some(()), true) => vec![one(name, MANY)],
        (Some(()), false) => {
            let many = one(&entry_of(name, "wide"), MANY);
            vec![GpuKernel { when, ..many }, one(name, GROUPS)]
        }
    }
}

/// A block's product.
struct Groups<'a> {
    spec: &'a MatMulSpec,
    half: Half,
    blocks: &'a Blocks,
    weights: Weights<'a>,
    groups: i64,
    /// How parts of A are copied and lie.
    layout: Layout,
}

/// What the thread's products read.
struct Lane {
    /// Its columns: of the warp's sixteen `l / 4`, and 8 behind.
    columns: [Column; 2],
    /// Which of a run's elements it takes.
    which: Reg<B32>,
    /// The first of its columns' chunks in a stage.
    chunks: Reg<B32>,
    always: Reg<Pred>,
}

/// A chunk of B that the thread copies of every part.
struct Chunk {
    column: Column,
    /// Its first element in the part.
    at: Val,
    /// Its place in a stage.
    to: Val,
}

impl<'a> Groups<'a> {
    fn new(spec: &'a MatMulSpec, blocks: &'a Blocks, half: Half, groups: i64) -> Groups<'a> {
        Groups {
            spec,
            half,
            blocks,
            weights: Weights::of(spec, blocks, Some(half)),
            groups,
            layout: Layout::of::<F32>(Floats::Halves(half), groups * GROUP, ROW),
        }
    }

    fn columns(&self) -> i64 {
        self.groups * GROUP_COLUMNS
    }

    /// Chunks of a column's part, and bytes of a chunk of every column.
    fn chunks(&self) -> i64 {
        DEPTH * i64::from(self.blocks.bits) / 8 / self.weights.chunk()
    }

    fn plane(&self) -> i64 {
        self.columns() * self.weights.chunk()
    }

    /// Bytes of a stage: a part of A, then one of B, chunk by chunk.
    fn stage(&self) -> i64 {
        ROWS * ROW + self.chunks() * self.plane()
    }

    /// Parts in shared memory: as many as two blocks have room for.
    fn stages(&self) -> i64 {
        if self.blocks.bits == 8 { 4 } else { 5 }
    }

    /// How far ahead parts are copied.
    fn ahead(&self) -> i64 {
        self.stages() - 2
    }

    /// Elements between rows of sums.
    fn pitch(&self) -> i64 {
        self.columns() + 4
    }

    fn kernel(&self, nest: &LoopNest, name: &str, target: &GpuTarget) -> GpuKernel {
        let shape = Shape {
            rows: ROWS,
            columns: self.columns(),
            threads: self.groups * GROUP,
        };
        let shared = (self.stages() * self.stage()).max(4 * ROWS * self.pitch());
        let source = self.spec;
        block::kernel((name, target), source, nest, shape, shared, |e, cx, p| {
            // Four groups a multiprocessor: else the assembler takes more registers.
            e.kernel_mut().set_resident((MANY / self.groups) as u32);
            let shared = e.kernel_mut().dynamic_shared();
            let shared = e.from_word(shared, Elem::Ptr);
            let sums = self.sums(e, cx, p, shared);
            self.share(e, p, &sums, shared)
        })
    }

    fn sums(&self, e: &mut Emitter, cx: &ExprCx, p: &Place, shared: Val) -> Vec<Reg<F32>> {
        let k = e.kernel_mut();
        let sums: Vec<Reg<F32>> = (0..ROWS / 2).map(|_| F32::zero(k)).collect();
        let a = copies::left(e, cx, self.spec, self.layout, p, (ROWS, 0));
        let b = self.copied(e, cx, p);
        for s in 0..self.ahead() {
            let (k0, stage) = (e.i64(s * DEPTH), e.i64(s * self.stage()));
            self.copy(e, cx, (p, shared), (&a, &b), k0, stage);
        }
        let lane = self.lane(e, cx, p);
        let (zero, depth) = (e.i64(0), e.i64(DEPTH));
        let now = self.stored(e, cx, p, &lane, zero);
        let (size, last) = (
            e.i64(self.stage()),
            e.i64((self.stages() - 1) * self.stage()),
        );
        let (ahead, next) = (
            e.i64(self.ahead() * DEPTH),
            e.i64(self.ahead() * self.stage()),
        );
        let stages = e.variables(&[zero, next]);
        e.for_loop(zero, p.k, depth, &[], |e, k0, _| {
            let k = e.kernel_mut();
            k.wait_copies(self.ahead() as u32 - 1);
            // Copies are ordinary writes; products read by another way.
            k.fence_shared();
            k.barrier();
            let k1 = e.add(k0, depth);
            let then = self.stored(e, cx, p, &lane, k1);
            self.multiply(e, (shared, stages[0]), &lane, &now, &sums);
            let k1 = e.add(k0, ahead);
            self.copy(e, cx, (p, shared), (&a, &b), k1, stages[1]);
            copies::turn(e, &stages, (size, last));
            for (now, then) in now.as_flattened().iter().zip(then.as_flattened()) {
                for (to, from) in now.registers().zip(then.registers()) {
                    e.kernel_mut().set(to, from);
                }
            }
            vec![]
        });
        // The sums take the place of the parts.
        let k = e.kernel_mut();
        k.wait_products(0);
        k.wait_copies(0);
        k.barrier();
        sums
    }

    fn lane(&self, e: &mut Emitter, cx: &ExprCx, p: &Place) -> Lane {
        let (first, quarter) = own_column(e, p);
        let columns = [0, 8].map(|skip| {
            let skip = e.i64(skip);
            let at = e.add(first, skip);
            let at = e.add(p.columns.0, at);
            self.weights.column(e, cx, p, at)
        });
        let [quarter, first] = [quarter, first].map(|x| {
            let x = e.long(x);
            e.kernel_mut().low(x)
        });
        let which = self.weights.which(e, quarter);
        let k = e.kernel_mut();
        let zero: Reg<B32> = k.mov(0);
        Lane {
            columns,
            which,
            chunks: k.mul(first, self.weights.chunk() as i32),
            always: k.compare(Order::Eq, zero, 0, false),
        }
    }

    /// What is stored of a part's blocks, by runs, or of one for all.
    fn stored(
        &self,
        e: &mut Emitter,
        cx: &ExprCx,
        p: &Place,
        lane: &Lane,
        k0: Val,
    ) -> Vec<[Stored; 2]> {
        let many = if self.blocks.size % DEPTH == 0 {
            1
        } else {
            RUNS
        };
        (0..many)
            .map(|run| {
                let [low, high] = &lane.columns;
                [low, high].map(|c| self.weights.stored(e, cx, c, (k0, run * RUN), p.k))
            })
            .collect()
    }

    /// Adds the products of a stage's part; those of its last run are left under way.
    fn multiply(
        &self,
        e: &mut Emitter,
        (shared, stage): (Val, Val),
        lane: &Lane,
        stored: &[[Stored; 2]],
        sums: &[Reg<F32>],
    ) {
        let part = e.offset(shared, stage, Elem::I8);
        let a = descriptor(e, part);
        let part = e.word(part);
        let chunks = e.kernel_mut().add(part, lane.chunks);
        let per_run = self.chunks() / RUNS;
        for run in 0..RUNS {
            let first = ROWS * ROW + run * per_run * self.plane();
            let [low, high] = &stored[run as usize % stored.len()];
            let [low, high] = [(0, low), (8, high)].map(|(behind, stored)| {
                let at = (chunks, first + behind * self.weights.chunk());
                let meaning = self.weights.meaning(e, stored);
                self.weights.copied(e, at, self.plane(), meaning)
            });
            let b: Vec<[Reg<B32>; 4]> = (0..RUN as usize / 16)
                .map(|step| {
                    let mut words =
                        |run| self.weights.fragment(e, self.half, run, step, lane.which);
                    let ([b0, b2], [b1, b3]) = (words(&low), words(&high));
                    [b0, b1, b2, b3]
                })
                .collect();
            let k = e.kernel_mut();
            k.fence_group();
            for (step, b) in (2 * run..).zip(b) {
                // An instruction takes 32 bytes of a row.
                let a: Reg<B64> = k.add(a, 2 * step);
                k.multiply_group_from(self.half, sums, b, (a, false), lane.always);
            }
            k.end_products();
            k.wait_products(1);
        }
    }

    /// The chunks of B that the thread copies.
    fn copied(&self, e: &mut Emitter, cx: &ExprCx, p: &Place) -> Vec<Chunk> {
        let (per, threads) = (self.chunks(), self.groups * GROUP);
        let (all, bytes, plane) = (e.i64(per), e.i64(self.weights.chunk()), e.i64(self.plane()));
        let column = e.op2("arith.divui", p.thread, all);
        let chunk = e.op2("arith.remui", p.thread, all);
        let elements = e.i64(DEPTH / per);
        let at = e.mul(chunk, elements);
        let behind = e.i64(ROWS * ROW);
        let to = e.mul(chunk, plane);
        let to = e.add(to, behind);
        (0..per * self.columns() / threads)
            .map(|j| {
                let skip = e.i64(j * threads / per);
                let column = e.add(column, skip);
                let skip = e.mul(column, bytes);
                let column = e.add(p.columns.0, column);
                Chunk {
                    column: self.weights.column(e, cx, p, column),
                    at,
                    to: e.add(to, skip),
                }
            })
            .collect()
    }

    /// Starts copying both sides' parts from product `k0` on to a stage.
    fn copy(
        &self,
        e: &mut Emitter,
        cx: &ExprCx,
        (p, shared): (&Place, Val),
        (a, b): (&Rows, &[Chunk]),
        k0: Val,
        stage: Val,
    ) {
        copies::copy(e, self.layout, (p, shared), a, k0, stage);
        for chunk in b {
            let at = e.add(k0, chunk.at);
            let to = e.add(stage, chunk.to);
            let to = e.offset(shared, to, Elem::I8);
            let to = e.word(to);
            self.weights.copy(e, cx, &chunk.column, (at, p.k), to);
        }
        e.kernel_mut().end_copies();
    }

    /// Writes the group's sums to shared memory, turned: of each eight rows a thread has
    /// row `2·(l % 4)` and the next, of its warp's sixteen columns `l / 4` and that 8 behind.
    /// Lanes of a store meet in no bank, as a row is 4 banks longer than all of them.
    fn share(&self, e: &mut Emitter, p: &Place, sums: &[Reg<F32>], shared: Val) -> Sums {
        let shown = Sums {
            at: shared,
            pitch: self.pitch(),
            elem: Elem::F32,
        };
        let (column, quarter) = own_column(e, p);
        let apart = e.i64(2 * self.pitch());
        let at = e.mul(quarter, apart);
        let at = e.add(at, column);
        let to = e.offset(shown.at, at, shown.elem);
        let to = e.word(to);
        let k = e.kernel_mut();
        for (i, sums) in (0..).zip(sums.chunks(4)) {
            for (j, sum) in (0..).zip(sums.chunks(1)) {
                let skip = (8 * i + j % 2) * self.pitch() + 8 * (j / 2);
                k.store(Space::Shared, to, 4 * skip, sum);
            }
        }
        shown
    }
}

/// Which of the block's columns is the lane's first, and which of the four lanes that share it
/// this one is.
fn own_column(e: &mut Emitter, p: &Place) -> (Val, Val) {
    let lane = e.kernel_mut().lane();
    let lane = long(e, lane);
    let (four, size, sixteen) = (e.i64(4), e.i64(32), e.i64(16));
    let of_eight = e.op2("arith.divui", lane, four);
    let quarter = e.op2("arith.remui", lane, four);
    let warp = e.op2("arith.divui", p.thread, size);
    let first = e.mul(warp, sixteen);
    (e.add(first, of_eight), quarter)
}
