//! Contractions of f16, bf16, tf32, f8 or bytes with few rows, as when a batch is decoded: they take
//! as long as reading B does.
//!
//! A block has all rows (16, 32 or 64) and 16 or 32 columns, so that many blocks share B; its
//! eight warps share k, chunk by chunk. B and A go from memory to registers as `mma.sync`
//! wants them, without shared memory: a lane reads 16 bytes of its row and column, which are
//! two steps' words (which products a step has does not matter, so long as both sides
//! agree). A few chunks of each row are under way at a time. The warps' sums are added in
//! order through shared memory. A long k of few columns is shared out to several blocks as
//! well (`split.rs`).

use super::block::{self, Place, Shape, Sums};
use super::copies::{self, CHUNK};
use super::gemm::Source;
use super::halves::sum_elem;
use super::matmul::EIGHTS;
use super::nest::long;
use super::{GpuKernel, Unit, entry_of, split};
use crate::LoopNest;
use crate::lower::ExprCx;
use crate::matmul::{Columns, MatMulSpec};
use kiln_codegen::emit::Cmp;
use kiln_codegen::ptx::{B32, Reg, Space, Sum};
use kiln_codegen::{Elem, Emitter, GpuTarget, Ty, Val};
use kiln_ir::{Dim, Tri};

/// Threads of a block, and its warps.
const THREADS: i64 = 256;
pub(super) const WARPS: i64 = THREADS / 32;

/// Bytes of a row that a warp reads at once: four lanes' chunks.
const SPAN: i64 = 4 * CHUNK;

/// Chunks that a lane reads of a row before it multiplies: of 16 rows, and of more, which
/// leave less room.
const AHEAD: i64 = 4;
const AHEAD_OF_MANY: i64 = 2;

/// Rows that this serves at most.
const MOST_ROWS: i64 = 64;

/// Blocks that a grid has at most along its second axis.
const MOST_BLOCKS: i64 = 65535;

/// Words of a chunk.
const WORDS: i64 = CHUNK / 4;

/// The forms for few rows.
pub(super) fn emit<T: Sum>(
    spec: &MatMulSpec,
    of: T::Factors,
    nest: &LoopNest,
    name: &str,
    target: &GpuTarget,
) -> Vec<GpuKernel> {
    forms(spec, (name, target), wide, |name, rows, parts| {
        let kernel = one::<T>(spec, of, nest, (name, target), rows, parts);
        GpuKernel {
            ptx: if T::is_short(of) { EIGHTS } else { kernel.ptx },
            ..kernel
        }
    })
}

/// The forms for few rows, of which `one` makes each, with its name, for so many rows, in so
/// many parts of k if any: the one form where their number is known and small; where it is
/// open, one for up to 16 and one for more. Their blocks have `wide` columns.
pub(super) fn forms(
    spec: &MatMulSpec,
    (name, target): (&str, &GpuTarget),
    wide: impl Fn(i64) -> i64,
    one: impl Fn(&str, i64, Option<i64>) -> GpuKernel,
) -> Vec<GpuKernel> {
    let [rows, columns, ..] = &spec.dims();
    let most = Dim::from(MOST_BLOCKS * wide(16));
    let wider = match columns.le(&most) {
        Tri::Yes => vec![],
        Tri::No => return vec![],
        Tri::Unknown => vec![(columns.clone(), most)],
    };
    let heights = match rows.as_const() {
        Some(m) if m > MOST_ROWS => vec![],
        // Of 48 rows there are as many products as of 64.
        Some(m) if m > 32 => vec![MOST_ROWS],
        Some(m) => vec![((m + 15) / 16 * 16).max(16)],
        None => vec![16, MOST_ROWS],
    };
    let shape = |&rows: &i64| Shape {
        rows,
        columns: wide(rows),
        threads: THREADS,
    };
    let shapes: Vec<Shape> = heights.iter().map(shape).collect();
    let parts = split::parts(spec, &shapes, target);
    let form = |height: i64| {
        let mut when = wider.clone();
        if rows.as_const().is_none() {
            when.push((rows.clone(), Dim::from(height)));
        }
        let name = match when.is_empty() {
            true => name.to_string(),
            false => entry_of(name, &format!("rows{height}")),
        };
        GpuKernel {
            when,
            unit: Unit::Mma,
            height: Some(height),
            ..one(&name, height, parts)
        }
    };
    heights.into_iter().map(form).collect()
}

/// Columns of a block of so many rows.
pub(super) fn wide(rows: i64) -> i64 {
    if rows == 16 { 16 } else { 32 }
}

fn one<T: Sum>(
    spec: &MatMulSpec,
    of: T::Factors,
    nest: &LoopNest,
    (name, target): (&str, &GpuTarget),
    rows: i64,
    parts: Option<i64>,
) -> GpuKernel {
    let shape = Shape {
        rows,
        columns: wide(rows),
        threads: THREADS,
    };
    let thin: Thin<T> = Thin {
        // Hopper has no such instruction: its f8 becomes f16 (ptxas's code), whose sums are
        // whole.
        apart: T::is_short(of) && !target.is_hopper(),
        ..Thin::new(spec, of, shape)
    };
    let size = (shape, thin.shared());
    split::kernel((name, target), spec, nest, size, parts, |e, cx, p| {
        let shared = e.kernel_mut().dynamic_shared();
        let shared = e.from_word(shared, Elem::Ptr);
        let sums = thin.sums(e, cx, p);
        thin.join(e, p, &sums, shared)
    })
}

pub(super) struct Thin<'a, T: Sum> {
    spec: &'a MatMulSpec,
    of: T::Factors,
    /// Rows and columns of a block.
    pub rows: i64,
    pub columns: i64,
    /// Whether the products of a chunk are summed on their own first.
    apart: bool,
    /// Elements between rows of sums.
    pitch: i64,
}

/// A row of A or a column of B that a lane reads: where it starts, and whether there is one.
pub(super) struct Line {
    base: Val,
    start: Val,
    exists: Val,
}

impl<'a, T: Sum> Thin<'a, T> {
    pub fn new(spec: &'a MatMulSpec, of: T::Factors, shape: Shape) -> Thin<'a, T> {
        Thin {
            spec,
            of,
            rows: shape.rows,
            columns: shape.columns,
            apart: false,
            pitch: shape.columns + 4,
        }
    }

    /// Bytes of shared memory: every warp's sums.
    pub fn shared(&self) -> i64 {
        4 * WARPS * self.rows * self.pitch
    }

    /// Bytes of an element.
    fn size(&self) -> i64 {
        i64::from(T::factor_bits(self.of) / 8)
    }

    fn elem(&self) -> Elem {
        copies::bits_elem(self.size())
    }

    /// The lane's rows of A: of each sixteen, `l / 4` and eight below.
    pub fn a_lines(&self, e: &mut Emitter, cx: &ExprCx, p: &Place, of_eight: Val) -> Vec<Line> {
        (0..self.rows / 8)
            .map(|i| {
                let skip = e.i64(8 * i);
                let row = e.add(of_eight, skip);
                let row = e.add(p.rows.0, row);
                let exists = e.cmp(Cmp::Lt, row, p.rows.1, false);
                let start = self.spec.row(e, cx, p.batch, row)[0];
                self.line(e, cx.args[0], start, exists)
            })
            .collect()
    }

    /// The lane's columns of B: of each eight, `l / 4`.
    fn b_lines(&self, e: &mut Emitter, cx: &ExprCx, p: &Place, of_eight: Val) -> Vec<Line> {
        (0..self.columns / 8)
            .map(|j| {
                let skip = e.i64(8 * j);
                let column = e.add(of_eight, skip);
                let column = e.add(p.columns.0, column);
                let exists = e.cmp(Cmp::Lt, column, p.columns.1, false);
                let zero = e.i64(0);
                let start = self.spec.b(e, cx, p.batch, zero, column);
                self.line(e, cx.args[1], start, exists)
            })
            .collect()
    }

    fn line(&self, e: &mut Emitter, base: Val, start: Val, exists: Val) -> Line {
        let zero = e.i64(0);
        let start = e.select(exists, start, zero);
        Line {
            base,
            start,
            exists,
        }
    }

    /// Whether every row and column starts at a multiple of 16 bytes and has whole chunks.
    pub fn aligned(&self, e: &mut Emitter, cx: &ExprCx, k: Val) -> Val {
        let spec = self.spec;
        let mut strides = spec.a[..=spec.batch.len()].to_vec();
        strides.extend(&spec.b_batch);
        if let Columns::Strided { column, .. } = spec.b {
            strides.push(column);
        }
        let mut strides: Vec<Val> = strides.iter().map(|&s| cx.size(e, s)).collect();
        strides.push(k);
        copies::aligned(e, &cx.args[..2], &strides, self.size())
    }

    /// The warp's sums over its part of k: of each sixteen rows, by eight columns.
    fn sums(&self, e: &mut Emitter, cx: &ExprCx, p: &Place) -> Vec<[Reg<T>; 4]> {
        let k = e.kernel_mut();
        let tiles = (self.rows / 16 * self.columns / 8) as usize;
        let sums: Vec<[Reg<T>; 4]> = (0..tiles)
            .map(|_| std::array::from_fn(|_| T::zero(k)))
            .collect();
        let lane = k.lane();
        let lane = long(e, lane);
        let (four, size) = (e.i64(4), e.i64(32));
        let of_eight = e.op2("arith.divui", lane, four);
        let chunk = e.op2("arith.remui", lane, four);
        let warp = e.op2("arith.divui", p.thread, size);
        let lines = [
            self.a_lines(e, cx, p, of_eight),
            self.b_lines(e, cx, p, of_eight),
        ];
        let span = SPAN / self.size();
        let (span, many) = (e.i64(span), e.i64(CHUNK / self.size()));
        let first = e.mul(warp, span);
        let skip = e.mul(chunk, many);
        let first = e.add(first, skip);
        let first = e.add(p.span.0, first);
        let aligned = self.aligned(e, cx, p.k);
        // Lanes of a warp stay together: as many turns as its first lane has.
        let high = e.add(p.span.1, skip);
        e.either(
            aligned,
            &[],
            &mut (),
            |e, ()| {
                let ahead = if self.rows > 16 { AHEAD_OF_MANY } else { AHEAD };
                let step = e.i64(ahead * WARPS * SPAN / self.size());
                e.for_loop(first, high, step, &[], |e, k0, _| {
                    let parts: Vec<_> = (0..ahead)
                        .map(|i| {
                            let skip = e.i64(i * WARPS * SPAN / self.size());
                            let at = e.add(k0, skip);
                            lines.each_ref().map(|side| self.chunks(e, side, at, p.k))
                        })
                        .collect();
                    parts.iter().for_each(|part| self.multiply(e, part, &sums));
                    vec![]
                });
                vec![]
            },
            |e, ()| {
                let step = e.i64(WARPS * SPAN / self.size());
                e.for_loop(first, high, step, &[], |e, k0, _| {
                    let part = lines.each_ref().map(|side| self.pieces(e, side, k0, p.k));
                    self.multiply(e, &part, &sums);
                    vec![]
                });
                vec![]
            },
        );
        sums
    }

    /// A chunk of each line from product `at` on.
    pub fn chunks(&self, e: &mut Emitter, lines: &[Line], at: Val, all: Val) -> Vec<Vec<Reg<B32>>> {
        let some = e.cmp(Cmp::Lt, at, all, false);
        (lines.iter())
            .map(|line| {
                let exists = e.op2("arith.andi", some, line.exists);
                let from = e.add(line.start, at);
                let from = e.offset(line.base, from, self.elem());
                let (p, from) = (e.pred(exists), e.long(from));
                let k = e.kernel_mut();
                let to: Vec<Reg<B32>> = (0..WORDS).map(|_| k.mov(0i32)).collect();
                k.guarded(p, |k| k.load_to(Space::Global, from, 0, &to));
                to
            })
            .collect()
    }

    /// The same, element by element.
    pub fn pieces(&self, e: &mut Emitter, lines: &[Line], at: Val, all: Val) -> Vec<Vec<Reg<B32>>> {
        let word = Ty::scalar(Elem::I32);
        let (many, bits) = (4 / self.size(), e.int(word, 8 * self.size()));
        (lines.iter())
            .map(|line| {
                let start = e.add(line.start, at);
                (0..WORDS)
                    .map(|w| {
                        let (first, end) = (e.i64(w * many), e.i64((w + 1) * many));
                        let (one, none) = (e.i64(1), e.int(word, 0));
                        // From the last element of the word, which is the highest, on.
                        let of = e.for_loop(first, end, one, &[none], |e, i, of| {
                            e.kernel_mut().nounroll();
                            let back = e.sub(end, i);
                            let back = e.add(back, first);
                            let i = e.sub(back, one);
                            let k = e.add(at, i);
                            let some = e.cmp(Cmp::Lt, k, all, false);
                            let there = e.op2("arith.andi", some, line.exists);
                            let from = e.add(start, i);
                            let from = e.offset(line.base, from, self.elem());
                            let x = e.load_where(there, from, Ty::scalar(self.elem()));
                            let x = e.cast(x, Elem::I32, true, true);
                            let up = e.op2("arith.shli", of[0], bits);
                            vec![e.op2("arith.ori", up, x)]
                        });
                        e.word(of[0])
                    })
                    .collect()
            })
            .collect()
    }

    /// Adds the products of a chunk of each line: two steps of two words.
    fn multiply(&self, e: &mut Emitter, part: &[Vec<Vec<Reg<B32>>>; 2], sums: &[[Reg<T>; 4]]) {
        // Products that are added up on their own take both steps together.
        let turns: &[&[usize]] = match self.apart {
            true => &[&[0, 2]],
            false => &[&[0], &[2]],
        };
        for steps in turns {
            let pair = |b: &Vec<Reg<B32>>, s: usize| [b[s], b[s + 1]];
            let b: Vec<Vec<[Reg<B32>; 2]>> = (part[1].iter())
                .map(|b| steps.iter().map(|&s| pair(b, s)).collect())
                .collect();
            self.steps(e, &part[0], steps, &b, sums);
        }
    }

    /// Adds the products of words `s` and the next of each row, for each step `s`, with those
    /// that each column has for it.
    pub fn steps(
        &self,
        e: &mut Emitter,
        rows: &[Vec<Reg<B32>>],
        steps: &[usize],
        columns: &[Vec<[Reg<B32>; 2]>],
        sums: &[[Reg<T>; 4]],
    ) {
        let k = e.kernel_mut();
        for (rows, sums) in rows.chunks(2).zip(sums.chunks(columns.len())) {
            let [low, high] = [&rows[0], &rows[1]];
            for (b, &sums) in columns.iter().zip(sums) {
                let pairs = steps.iter().zip(b).map(|(&s, &b)| {
                    let a = [low[s], high[s], low[s + 1], high[s + 1]];
                    (a, b)
                });
                k.multiply_steps(self.of, sums, self.apart, pairs);
            }
        }
    }

    /// Adds the warps' sums, in order.
    pub fn join(&self, e: &mut Emitter, p: &Place, sums: &[[Reg<T>; 4]], shared: Val) -> Sums {
        let (all, elem) = (self.rows * self.pitch, sum_elem::<T>());
        let (size, own) = (e.i64(32), e.i64(all));
        let warp = e.op2("arith.divui", p.thread, size);
        let skip = e.mul(warp, own);
        let shown = Sums {
            at: e.offset(shared, skip, elem),
            pitch: self.pitch,
            elem,
        };
        let zero = e.i64(0);
        let to = block::fragment(e, shown, (zero, zero));
        let k = e.kernel_mut();
        for (at, s) in (0..).zip(sums) {
            let (i, j) = (at / (self.columns / 8), at % (self.columns / 8));
            for half in 0..2 {
                let skip = 4 * ((16 * i + 8 * half) * self.pitch + 8 * j);
                let h = 2 * half as usize;
                k.store(Space::Shared, to, skip, &s[h..h + 2]);
            }
        }
        k.barrier();
        let (all, step) = (e.i64(self.rows * self.columns), e.i64(THREADS));
        e.for_loop(p.thread, all, step, &[], |e, i, _| {
            let (wide, pitch) = (e.i64(self.columns), e.i64(self.pitch));
            let row = e.op2("arith.divui", i, wide);
            let column = e.op2("arith.remui", i, wide);
            let at = e.mul(row, pitch);
            let at = e.add(at, column);
            let first = e.offset(shared, at, elem);
            let mut sum = e.load(first, Ty::scalar(elem));
            for w in 1..WARPS {
                let skip = e.i64(w * self.rows * self.pitch);
                let from = e.offset(first, skip, elem);
                let x = e.load(from, Ty::scalar(elem));
                sum = e.add(sum, x);
            }
            e.store(sum, first);
            vec![]
        });
        Sums {
            at: shared,
            ..shown
        }
    }
}
