//! Convolutions, channels last: sums of products whose rows are pixels and whose products
//! are taps and channels; and those where every channel has a filter of its own.

use super::gemm::{self, Source, coordinates};
use super::matmul::panel_offset;
use super::nest::{divide, long};
use super::{GpuKernel, Ports, THREADS, dim, entry, tail, vectors};
use crate::LoopNest;
use crate::Size;
use crate::conv::ConvSpec;
use crate::lower::{ExprCx, compute_elem, convert, memory_elem, widen};
use crate::nest::SpecError;
use kiln_codegen::emit::Cmp;
use kiln_codegen::{Elem, Emitter, GpuTarget, Ty, Val};
use kiln_ir::{DType, Dim};

pub(super) fn emit(
    spec: &ConvSpec,
    name: &str,
    target: &GpuTarget,
) -> Result<GpuKernel, SpecError> {
    if spec.winograd {
        return Err(SpecError(format!(
            "transformed filters have no kernel for {}",
            target.name
        )));
    }
    let axes = [spec.batch]
        .into_iter()
        .chain(spec.output.iter().copied())
        .chain([Size::Const(spec.filters)])
        .collect();
    let out = (&spec.out, spec.value);
    let nest = tail::nest(&spec.exprs, &spec.args, spec.params, axes, out);
    if spec.nr == 0 {
        return Ok(depthwise(spec, &nest, name, target));
    }
    Ok(gemm::emit(&Pixels { spec }, &nest, name, target))
}

/// A convolution's extents as values.
fn outputs(spec: &ConvSpec, e: &mut Emitter, cx: &ExprCx) -> Vec<Val> {
    let extents = [spec.batch].into_iter().chain(spec.output.iter().copied());
    extents.map(|s| cx.size(e, s)).collect()
}

/// Where the first tap of a pixel falls: the image's first element, and the place along
/// each spatial axis, in it or not.
fn origin(spec: &ConvSpec, e: &mut Emitter, cx: &ExprCx, pixel: &[Val]) -> Vec<Val> {
    let channels = e.i64(spec.channels);
    let image = (spec.input.iter()).fold(channels, |n, &s| {
        let extent = cx.size(e, s);
        e.mul(n, extent)
    });
    let mut out = vec![e.mul(pixel[0], image)];
    for (i, &c) in pixel[1..].iter().enumerate() {
        let stride = e.i64(spec.strides[i]);
        let at = e.mul(c, stride);
        let lo = cx.size(e, spec.lo[i]);
        out.push(e.sub(at, lo));
    }
    out
}

/// The element of channel 0 that lies `away` from an origin, and whether it is in the
/// image.
fn tap(
    spec: &ConvSpec,
    e: &mut Emitter,
    cx: &ExprCx,
    origin: &[Val],
    away: &[Val],
) -> (Val, Option<Val>) {
    let mut place = e.i64(0);
    let mut inside: Option<Val> = None;
    for (i, (&from, &d)) in origin[1..].iter().zip(away).enumerate() {
        let extent = cx.size(e, spec.input[i]);
        let at = e.add(from, d);
        if spec.bordered {
            // Below 0 is far above as an unsigned number.
            let ok = e.cmp(Cmp::Lt, at, extent, true);
            inside = Some(crate::lower::and(e, inside, ok));
        }
        place = e.mul(place, extent);
        place = e.add(place, at);
    }
    let channels = e.i64(spec.channels);
    let place = e.mul(place, channels);
    (e.add(origin[0], place), inside)
}

/// What stands around the image, if not 0, as sums have it.
fn around(spec: &ConvSpec, e: &mut Emitter, cx: &ExprCx) -> Option<Val> {
    spec.pad.then(|| {
        let x = e.load(cx.args[2], Ty::scalar(memory_elem(spec.args[2])));
        convert(e, x, spec.args[2], spec.acc())
    })
}

/// A dense or grouped convolution: groups are batches.
struct Pixels<'a> {
    spec: &'a ConvSpec,
}

impl Pixels<'_> {
    fn depth(&self) -> i64 {
        self.spec.channels / self.spec.groups
    }

    fn columns(&self) -> i64 {
        self.spec.filters / self.spec.groups
    }

    fn products(&self) -> i64 {
        self.spec.taps() * self.depth()
    }

    /// The element of a group's filters, packed in panels of words of four bytes, each run
    /// of the image filled up.
    fn in_words(&self, e: &mut Emitter, k: Val, column: Val) -> Val {
        let (kernel, run) = self.spec.runs();
        let words = (run + GROUP - 1) / GROUP;
        let all = words * kernel.iter().product::<i64>();
        let [run, words, all, nr, four] = [run, words, all, self.spec.nr, GROUP].map(|n| e.i64(n));
        let at = e.op2("arith.divui", k, run);
        let in_run = e.op2("arith.remui", k, run);
        let word = e.mul(at, words);
        let in_words = e.op2("arith.divui", in_run, four);
        let word = e.add(word, in_words);
        let panel = e.op2("arith.divui", column, nr);
        let within = e.op2("arith.remui", column, nr);
        let row = e.mul(panel, all);
        let row = e.add(row, word);
        let at = e.mul(row, nr);
        let at = e.add(at, within);
        let at = e.mul(at, four);
        let part = e.op2("arith.remui", in_run, four);
        e.add(at, part)
    }
}

/// Bytes of a word.
const GROUP: i64 = 4;

impl Source for Pixels<'_> {
    fn types(&self) -> [DType; 3] {
        [self.spec.args[0], self.spec.args[1], self.spec.acc()]
    }

    fn dims(&self) -> [Dim; 4] {
        let rows = (self.spec.output.iter()).fold(dim(self.spec.batch), |n, &s| n * dim(s));
        [
            rows,
            self.columns().into(),
            self.products().into(),
            self.spec.groups.into(),
        ]
    }

    fn extents(&self, e: &mut Emitter, cx: &ExprCx) -> [Val; 4] {
        let one = e.i64(1);
        let all = outputs(self.spec, e, cx);
        let rows = all.iter().fold(one, |n, &s| e.mul(n, s));
        [
            rows,
            e.i64(self.columns()),
            e.i64(self.products()),
            e.i64(self.spec.groups),
        ]
    }

    fn width(&self) -> i64 {
        self.spec.input.len() as i64 + 1
    }

    fn row(&self, e: &mut Emitter, cx: &ExprCx, _: Val, row: Val) -> Vec<Val> {
        let extents = outputs(self.spec, e, cx);
        let pixel = coordinates(e, row, &extents);
        origin(self.spec, e, cx, &pixel)
    }

    /// The distance along each spatial axis, then the channel in the group.
    fn product(&self, e: &mut Emitter, _: &ExprCx, k: Val) -> Vec<Val> {
        let spec = self.spec;
        let depth = e.i64(self.depth());
        let mut rest = e.op2("arith.divui", k, depth);
        let mut out = vec![e.op2("arith.remui", k, depth)];
        for i in (0..spec.kernel.len()).rev() {
            let extent = e.i64(spec.kernel[i]);
            let at = match i {
                0 => rest,
                _ => e.op2("arith.remui", rest, extent),
            };
            rest = e.op2("arith.divui", rest, extent);
            let dilation = e.i64(spec.dilations[i]);
            out.push(e.mul(at, dilation));
        }
        out.reverse();
        out
    }

    fn a(
        &self,
        e: &mut Emitter,
        cx: &ExprCx,
        batch: Val,
        row: &[Val],
        product: &[Val],
    ) -> (Val, Option<Val>) {
        let (channel, away) = match product.split_last() {
            Some((c, away)) => (*c, away),
            None => unreachable!("a product has a channel"),
        };
        let (at, inside) = tap(self.spec, e, cx, row, away);
        let depth = e.i64(self.depth());
        let skip = e.mul(batch, depth);
        let at = e.add(at, skip);
        (e.add(at, channel), inside)
    }

    fn around(&self, e: &mut Emitter, cx: &ExprCx) -> Option<Val> {
        around(self.spec, e, cx)
    }

    fn b(&self, e: &mut Emitter, _: &ExprCx, batch: Val, k: Val, column: Val) -> Val {
        if self.spec.of_bytes() {
            let (kernel, run) = self.spec.runs();
            let words = kernel.iter().product::<i64>() * ((run + GROUP - 1) / GROUP);
            let size = e.i64(self.spec.panels() * words * self.spec.nr * GROUP);
            let skip = e.mul(batch, size);
            let at = self.in_words(e, k, column);
            return e.add(at, skip);
        }
        let all = e.i64(self.products());
        let at = panel_offset(e, (k, all), column, (self.spec.nr, 1));
        let size = e.i64(self.spec.panels() * self.spec.nr * self.products());
        let skip = e.mul(batch, size);
        e.add(at, skip)
    }

    fn b_made(&self, _: &mut Emitter, _: &ExprCx, _: Val, _: (Val, Val)) -> Option<Val> {
        None
    }

    fn turned(&self) -> [bool; 2] {
        [false, false]
    }

    fn point(&self, e: &mut Emitter, cx: &ExprCx, batch: Val, row: Val, column: Val) -> Vec<Val> {
        let extents = outputs(self.spec, e, cx);
        let mut point = coordinates(e, row, &extents);
        let columns = e.i64(self.columns());
        let before = e.mul(batch, columns);
        point.push(e.add(before, column));
        point
    }
}

/// A thread for a pixel and some neighbouring channels.
fn depthwise(spec: &ConvSpec, nest: &LoopNest, name: &str, target: &GpuTarget) -> GpuKernel {
    let run = match spec.channels % 4 {
        0 => tail::run(nest, 4),
        _ => 1,
    };
    let runs = spec.channels / i64::from(run);
    let pixels = (spec.output.iter()).fold(dim(spec.batch), |n, &s| n * dim(s));
    let (body, _) = entry(name, target, THREADS, |e| {
        write_depthwise(spec, nest, e, run, runs);
    });
    GpuKernel {
        entry: name.to_string(),
        body,
        grid: [
            (pixels * runs.into()).ceil_div(&i64::from(THREADS).into()),
            Dim::ONE,
            Dim::ONE,
        ],
        block: [THREADS, 1, 1],
        cluster: [1; 3],
        shared: 0,
        ..GpuKernel::default()
    }
}

fn write_depthwise(spec: &ConvSpec, nest: &LoopNest, e: &mut Emitter, run: u32, runs: i64) {
    let ports = Ports::declare(e, nest.args.len(), nest.params);
    let cx = ExprCx::new(&nest.exprs, ports.args, ports.params, ports.status);
    // A thread's sums on their way to the epilogue.
    let bytes = 4 * run;
    let shared = e.kernel_mut().shared(THREADS * bytes, 16);
    let shared = e.from_word(shared, Elem::Ptr);
    let (thread, block) = (e.kernel_mut().thread(), e.kernel_mut().block(0));
    let (thread, block) = (long(e, thread), long(e, block));
    let threads = e.i64(i64::from(THREADS));
    let before = e.mul(block, threads);
    let unit = e.add(before, thread);
    let extents = outputs(spec, e, &cx);
    let all = e.i64(runs);
    let all = extents.iter().fold(all, |n, &s| e.mul(n, s));
    let out = e.cmp(Cmp::Ge, unit, all, false);
    let out = e.pred(out);
    e.kernel_mut().exit_if(out);
    let by = e.i64(runs);
    let (pixel, part) = divide(e, unit, by, Some(runs));
    let pixel = coordinates(e, pixel, &extents);
    let width = e.i64(i64::from(run));
    let channel = e.mul(part, width);
    let from = origin(spec, e, &cx, &pixel);
    let elem = compute_elem(spec.acc());
    let zero = e.zero(Ty::scalar(elem));
    let sums = e.variables(&vec![zero; run as usize]);
    let around = around(spec, e, &cx);
    for t in 0..spec.taps() {
        let (mut rest, mut away) = (t, vec![]);
        for i in (0..spec.kernel.len()).rev() {
            away.push(e.i64(rest % spec.kernel[i] * spec.dilations[i]));
            rest /= spec.kernel[i];
        }
        away.reverse();
        let (at, inside) = tap(spec, e, &cx, &from, &away);
        for (j, &sum) in (0..).zip(&sums) {
            let j = e.i64(j);
            let c = e.add(channel, j);
            let x_at = e.add(at, c);
            let w_at = filter(spec, e, t, c);
            let mut x = element(e, &cx, spec, 0, x_at, inside);
            if let (Some(inside), Some(around)) = (inside, around) {
                x = e.select(inside, x, around);
            }
            let w = element(e, &cx, spec, 1, w_at, None);
            e.multiply_into(sum, x, w);
        }
    }
    let own = e.mul(thread, width);
    let place = e.offset(shared, own, elem);
    e.store_few(&sums, place);
    let mut tail = tail::emitter(e, nest, cx);
    for (axis, &c) in pixel.iter().enumerate() {
        tail.cx.axes[axis] = Some(c);
    }
    let end = e.add(channel, width);
    vectors::neighbours(&mut tail, e, (channel, end), run, Some((place, elem)));
}

/// The element of tap `t` of a channel's own filter.
fn filter(spec: &ConvSpec, e: &mut Emitter, t: i64, channel: Val) -> Val {
    if !spec.of_bytes() {
        let skip = e.i64(t * spec.channels);
        return e.add(skip, channel);
    }
    // Words of four taps along the last axis, filled up, channel by channel.
    let last = spec.kernel[spec.kernel.len() - 1];
    let words = (last + GROUP - 1) / GROUP;
    let (row, tap) = (t / last, t % last);
    let skip = e.i64((row * words + tap / GROUP) * spec.channels);
    let (four, part) = (e.i64(GROUP), e.i64(tap % GROUP));
    let at = e.add(skip, channel);
    let at = e.mul(at, four);
    e.add(at, part)
}

/// An element as sums have it, 0 where it is not there.
fn element(
    e: &mut Emitter,
    cx: &ExprCx,
    spec: &ConvSpec,
    arg: usize,
    at: Val,
    inside: Option<Val>,
) -> Val {
    let t = spec.args[arg];
    let elem = memory_elem(t);
    let from = e.offset(cx.args[arg], at, elem);
    let x = match inside {
        Some(inside) => e.load_where(inside, from, Ty::scalar(elem)),
        None => e.load(from, Ty::scalar(elem)),
    };
    let x = widen(e, x, t);
    convert(e, x, t, spec.acc())
}
