//! Attention of few queries over many keys, as when a text is continued: keys are shared
//! out to blocks ([`attention_halves`] on a part of them), since there are fewer heads than
//! the chip has room for, and a second launch joins what they found.
//!
//! Query heads that share a key head are rows of one block (queries of the first head, then
//! those of the second one …), so keys and values are read once for up to 64 of these. Up to
//! 16 rows have a form of their own, whose warps share keys, so that tensor cores, which
//! work on 16 rows at least, do each product once: else they would take about as long as
//! memory does.
//!
//! Parts have [`PART`] keys, however many there are and whatever the batch is, and are joined
//! in a fixed order: results depend on neither. In scratch each query has, part after part,
//! its sums of weighted values, the maximum of its scores, and the sum of its weights.

use super::attention::{exponential, larger};
use super::attention_halves::{self, Deal};
use super::attention_rows::{Block, Place, Softmax, State, inverse};
use super::gemm::coordinates;
use super::nest::{divide, long};
use super::{GpuKernel, Ports, ask, dim, entry, entry_of};
use crate::Size;
use crate::attention::AttentionSpec;
use crate::lower::ExprCx;
use crate::softmax::Bounds;
use kiln_codegen::emit::Cmp;
use kiln_codegen::ptx::{F32, Half, Reg, Space};
use kiln_codegen::{Elem, Emitter, GpuTarget, Ty, Val};
use kiln_ir::{Dim, Tri};

/// Keys of a part.
const PART: i64 = 256;

/// Queries that this serves at most, and keys that it asks for.
const QUERIES: i64 = 16;
const LEAST: i64 = 2 * PART;

/// Threads of a block that joins: a warp for each query.
const THREADS: i64 = 128;

/// Parts that a lane reads before it adds them up.
const AHEAD: i64 = 4;

/// Columns that a lane has at once.
pub(super) const RUN: i64 = 4;

const SINGLE: Ty = Ty::scalar(Elem::F32);

/// Numbers of a query and a part in scratch: values to whole instructions, then maximum
/// and sum, to 16 bytes.
pub(super) fn width(spec: &AttentionSpec) -> i64 {
    ends_at(spec) + RUN
}

/// Numbers before maximum and sum.
pub(super) fn ends_at(spec: &AttentionSpec) -> i64 {
    (spec.values + 15) / 16 * 16
}

/// The forms for few queries, for few rows first; none where there are too many queries, or
/// too few keys.
pub(super) fn emit(
    spec: &AttentionSpec,
    half: Half,
    name: &str,
    target: &GpuTarget,
) -> Vec<GpuKernel> {
    let (queries, keys) = (dim(spec.queries), dim(spec.keys));
    let mut when = vec![];
    let asked = ask(&mut when, &queries, &QUERIES.into())
        .and_then(|()| ask(&mut when, &LEAST.into(), &keys));
    if asked.is_none() {
        return vec![];
    }
    let form = |deal, form: &str| passes(spec, half, (&entry_of(name, form), target), deal);
    let any = form(Deal::Rows, "parts").map(|form| GpuKernel {
        when: when.clone(),
        ..form
    });
    let most = Dim::from(Deal::Keys.rows());
    let group = dim(spec.group);
    let rows = [group.clone() * queries, group * QUERIES.into()];
    let few = ask(&mut when, &rows[0], &most).and_then(|()| form(Deal::Keys, "few"));
    let few = few.map(|form| GpuKernel { when, ..form });
    // Where there never are more rows, the form for few serves them all.
    let only = few.is_some() && rows.iter().any(|n| n.le(&most) == Tri::Yes);
    few.into_iter().chain(any.filter(|_| !only)).collect()
}

fn passes(
    spec: &AttentionSpec,
    half: Half,
    (name, target): (&str, &GpuTarget),
    deal: Deal,
) -> Option<GpuKernel> {
    let (queries, group) = (dim(spec.queries), dim(spec.group));
    let parts = dim(spec.keys).ceil_div(&PART.into());
    let kernel = attention_halves::part(spec, half, (name, target), (deal, Some(PART)))?;
    let rows = dim(spec.batch) * dim(spec.heads) * queries.clone();
    let key_heads = dim(spec.batch) * dim(spec.heads).floor_div(&group);
    let blocks = (group * queries).ceil_div(&deal.rows().into());
    let scratch = rows.clone() * parts.clone() * (4 * width(spec)).into();
    let params: Vec<Dim> = (0..spec.params).map(|i| dim(Size::Param(i))).collect();
    let (flops, bytes) = spec.cost(&params);
    let then = entry_of(name, "join");
    Some(GpuKernel {
        grid: [key_heads * blocks, parts, Dim::ONE],
        work: Some((flops, bytes + scratch.clone())),
        then: vec![join(spec, (&then, target), rows, &scratch)],
        scratch,
        ..kernel
    })
}

/// The keys that a block looks at: those of its part that some query sees. Where bounds
/// are a head's own, that is left to the scores.
pub(super) fn range(e: &mut Emitter, softmax: &mut Softmax, b: &Block, keys: i64) -> (Val, Val) {
    let spec = softmax.spec;
    let part = e.kernel_mut().block(1);
    let (part, keys) = (long(e, part), e.i64(keys));
    let from = e.mul(part, keys);
    let to = e.add(from, keys);
    let bounds = Bounds::of(&spec.exprs, spec.score);
    let bounds = match bounds.by_head(&spec.exprs) {
        true => Bounds::default(),
        false => bounds,
    };
    let zero = e.i64(0);
    let at = [b.batch, b.head, zero, b.queries];
    let (low, end) = bounds.range(e, &mut softmax.cx, at, b.keys);
    (e.max(low, from, false), e.min(end, to, false))
}

/// Where a query's part is in scratch.
fn place(e: &mut Emitter, spec: &AttentionSpec, scratch: Val, row: Val, of: [Val; 2]) -> Val {
    let [part, parts] = of;
    let at = e.mul(row, parts);
    let at = e.add(at, part);
    let width = e.i64(width(spec));
    let at = e.mul(at, width);
    e.offset(scratch, at, Elem::F32)
}

/// How many parts the keys have.
fn parts(e: &mut Emitter, keys: Val, each: i64) -> Val {
    let (less, each) = (e.i64(each - 1), e.i64(each));
    let up = e.add(keys, less);
    e.op2("arith.divui", up, each)
}

/// Where a block's rows have what they found in a part.
pub(super) struct Kept<'a> {
    pub spec: &'a AttentionSpec,
    scratch: Val,
    /// Rows of heads before the block's first one.
    before: Val,
    /// The part, and how many there are.
    of: [Val; 2],
}

impl<'a> Kept<'a> {
    /// Of parts of so many keys, in scratch.
    pub(super) fn of(
        e: &mut Emitter,
        softmax: &Softmax<'a>,
        b: &Block,
        (keys, scratch): (i64, Val),
    ) -> Kept<'a> {
        let spec = softmax.spec;
        let part = e.kernel_mut().block(1);
        let part = long(e, part);
        let all = parts(e, b.keys, keys);
        let heads = softmax.cx.size(e, spec.heads);
        let head = e.mul(b.batch, heads);
        let head = e.add(head, b.head);
        Kept {
            spec,
            scratch,
            before: e.mul(head, b.queries),
            of: [part, all],
        }
    }

    /// The address of a row's numbers.
    pub(super) fn row(&self, e: &mut Emitter, row: Val) -> Val {
        let row = e.add(self.before, row);
        place(e, self.spec, self.scratch, row, self.of)
    }

    /// Keeps what warps found that have rows of their own.
    pub(super) fn keep(
        &self,
        e: &mut Emitter,
        softmax: &Softmax,
        (b, p): (&Block, &Place),
        state: &State,
    ) {
        let totals = softmax.totals(e, state);
        for i in 0..2 {
            let exists = e.cmp(Cmp::Lt, p.rows[i], b.rows, false);
            e.if_then(exists, |e| {
                let to = self.row(e, p.rows[i]);
                self.write(e, p, to, (state, &totals), i);
            });
        }
    }

    /// Writes what a thread has of its row `i`: values, then maximum and sum.
    pub(super) fn write(
        &self,
        e: &mut Emitter,
        p: &Place,
        to: Val,
        (state, totals): (&State, &[Val; 2]),
        i: usize,
    ) {
        for (j, r) in (0..).zip(&state.result) {
            let skip = e.i64(8 * j);
            let column = e.add(p.column, skip);
            let to = e.offset(to, column, Elem::F32);
            let two = [0, 1].map(|c| e.from_single(r[2 * i + c]));
            e.store_few(&two, to);
        }
        let zero = e.i64(0);
        let first = e.cmp(Cmp::Eq, p.column, zero, false);
        e.if_then(first, |e| self.close(e, to, [state.max[i], totals[i]]));
    }

    /// Writes a row's maximum and sum.
    pub(super) fn close(&self, e: &mut Emitter, row: Val, ends: [Val; 2]) {
        let behind = e.i64(ends_at(self.spec));
        let to = e.offset(row, behind, Elem::F32);
        e.store_few(&ends, to);
    }
}

/// The launch that joins parts: a warp for each query of each head.
fn join(
    spec: &AttentionSpec,
    (name, target): (&str, &GpuTarget),
    rows: Dim,
    scratch: &Dim,
) -> GpuKernel {
    let (body, _) = entry(name, target, THREADS as u32, |e| {
        // For 64 registers a thread: ptxas would aim at more blocks, and spill.
        e.kernel_mut().set_resident(8);
        let ports = Ports::declare(e, spec.args.len(), spec.params);
        let cx = ExprCx::new(&spec.exprs, ports.args, ports.params, ports.status);
        let softmax = Softmax {
            spec,
            cx,
            pause: None,
        };
        write_join(e, &softmax, ports.scratch);
    });
    GpuKernel {
        entry: name.to_string(),
        body,
        grid: [rows.ceil_div(&(THREADS / 32).into()), Dim::ONE, Dim::ONE],
        block: [THREADS as u32, 1, 1],
        cluster: [1; 3],
        // An addition of a product for each number of scratch.
        work: Some((scratch.floor_div(&2.into()), scratch.clone())),
        ..GpuKernel::default()
    }
}

fn write_join(e: &mut Emitter, softmax: &Softmax, scratch: Val) {
    let spec = softmax.spec;
    let [batch, heads, queries, keys] =
        [spec.batch, spec.heads, spec.queries, spec.keys].map(|s| softmax.cx.size(e, s));
    let k = e.kernel_mut();
    let (thread, block, lane) = (k.thread(), k.block(0), k.lane());
    let (thread, block, lane) = (long(e, thread), long(e, block), long(e, lane));
    let (size, warps) = (e.i64(32), e.i64(THREADS / 32));
    let warp = e.op2("arith.divui", thread, size);
    let row = e.mul(block, warps);
    let row = e.add(row, warp);
    let all = e.mul(batch, heads);
    let all = e.mul(all, queries);
    let exists = e.cmp(Cmp::Lt, row, all, false);
    let parts = parts(e, keys, PART);
    e.if_then(exists, |e| {
        let (head, query) = divide(e, row, queries, spec.queries.as_const());
        let at = coordinates(e, head, &[batch, heads]);
        let joined = Joined::of(e, spec, (scratch, row), (lane, parts));
        let to = softmax.row(e, [at[0], at[1], query]);
        for first in (0..spec.values).step_by(32 * RUN as usize) {
            let (run, skip) = (e.i64(RUN), e.i64(first));
            let column = e.mul(lane, run);
            let column = e.add(column, skip);
            let width = e.i64(spec.values);
            let inside = e.cmp(Cmp::Lt, column, width, false);
            e.if_then(inside, |e| {
                let sums = joined.sums(e, column);
                for (i, sum) in (0..).zip(sums) {
                    let skip = e.i64(i);
                    let column = e.add(column, skip);
                    let x = e.mul(sum, joined.inverse);
                    softmax.store(e, to, column, x, spec.values % RUN == 0);
                }
            });
        }
    });
}

/// A query's parts.
struct Joined<'a> {
    spec: &'a AttentionSpec,
    scratch: Val,
    row: Val,
    parts: Val,
    /// The maximum of all scores; 0 where there are none.
    max: Val,
    inverse: Val,
}

impl Joined<'_> {
    /// A lane looks at every 32nd part, then lanes tell each other.
    fn of<'a>(
        e: &mut Emitter,
        spec: &'a AttentionSpec,
        (scratch, row): (Val, Val),
        (lane, parts): (Val, Val),
    ) -> Joined<'a> {
        let low = e.float(SINGLE, f64::NEG_INFINITY);
        let zero = e.float(SINGLE, 0.0);
        let mut joined = Joined {
            spec,
            scratch,
            row,
            parts,
            max: zero,
            inverse: zero,
        };
        let step = e.i64(32);
        let max = e.for_loop(lane, parts, step, &[low], |e, part, max| {
            let [own, _] = joined.ends(e, part);
            vec![larger(e, max[0], own)]
        });
        let max = [1, 2, 4, 8, 16].into_iter().fold(max[0], |m, mask| {
            let other = e.shuffle_xor(m, mask);
            larger(e, m, other)
        });
        let none = e.cmp(Cmp::Eq, max, low, false);
        joined.max = e.select(none, zero, max);
        let total = e.for_loop(lane, parts, step, &[zero], |e, part, total| {
            let [own, sum] = joined.ends(e, part);
            let scale = exponential(e, own, joined.max);
            let sum = e.mul(sum, scale);
            vec![e.add(total[0], sum)]
        });
        let total = [1, 2, 4, 8, 16].into_iter().fold(total[0], |sum, mask| {
            let other = e.shuffle_xor(sum, mask);
            e.add(sum, other)
        });
        joined.inverse = inverse(e, total);
        joined
    }

    fn place(&self, e: &mut Emitter, part: Val) -> Val {
        place(e, self.spec, self.scratch, self.row, [part, self.parts])
    }

    /// A part's maximum and sum.
    fn ends(&self, e: &mut Emitter, part: Val) -> [Val; 2] {
        let from = self.place(e, part);
        let from = e.long(from);
        let behind = 4 * ends_at(self.spec);
        let two: Vec<Reg<F32>> = e.kernel_mut().load(Space::Global, from, behind, 2);
        [e.from_single(two[0]), e.from_single(two[1])]
    }

    /// The sums of [`RUN`] columns over all parts, in order.
    fn sums(&self, e: &mut Emitter, column: Val) -> Vec<Val> {
        let zero = e.float(SINGLE, 0.0);
        let (none, one, ahead) = (e.i64(0), e.i64(1), e.i64(AHEAD));
        let last = e.sub(self.parts, one);
        let init = vec![zero; RUN as usize];
        e.for_loop(none, self.parts, ahead, &init, |e, part, sums| {
            let read: Vec<(Val, Val, Vec<Val>)> = (0..AHEAD)
                .map(|i| {
                    let skip = e.i64(i);
                    let own = e.add(part, skip);
                    let exists = e.cmp(Cmp::Lt, own, self.parts, false);
                    // Beyond the end the last one stands in, for nothing.
                    let own = e.min(own, last, false);
                    let [max, _] = self.ends(e, own);
                    let from = self.place(e, own);
                    let from = e.offset(from, column, Elem::F32);
                    let from = e.long(from);
                    let xs: Vec<Reg<F32>> =
                        e.kernel_mut().load(Space::Global, from, 0, RUN as usize);
                    let scale = exponential(e, max, self.max);
                    let xs = xs.into_iter().map(|x| e.from_single(x)).collect();
                    (exists, scale, xs)
                })
                .collect();
            read.iter()
                .fold(sums.to_vec(), |sums, (exists, scale, xs)| {
                    (sums.iter().zip(xs))
                        .map(|(&sum, &x)| {
                            let x = e.mul(x, *scale);
                            let x = e.select(*exists, x, zero);
                            e.add(sum, x)
                        })
                        .collect()
                })
        })
    }
}
