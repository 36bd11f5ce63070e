//! The convolution family: `out = epilogue(x ∗ w)`, channels last.
//!
//! A convolution is a contraction whose rows are the result's pixels: row `r` of A,
//! for one tap, is the run of channels of the pixel that the tap hits. So the register
//! tiles of contractions serve it ([`crate::micro`]), and nothing is unfolded in
//! memory: a tile keeps a pointer a row, moved from tap to tap, and a tap outside the
//! image reads a row of zeros instead (the indirection of Dukhan's "The indirect
//! convolution algorithm", 2019, computed and not stored).
//!
//! An element is one chain of fused multiply-adds over taps, then channels, in order:
//! results depend on no tile, thread or batch. Where every channel has a filter of its
//! own, [`crate::depthwise`] serves. Bytes are summed four at a time (`bytes.rs`).

mod bytes;
mod floats;

use crate::check::Names;
use crate::depthwise::MOST_TAPS;
use crate::expr::{ExprId, Exprs, Index, Size};
use crate::image::Image;
use crate::lower::{ExprCx, memory_elem};
use crate::matmul::{ceil_div, div_rem};
use crate::micro::{self, Tile};
use crate::nest::{LANES, SCRATCH_HEAD, SpecError, size_dim};
use kiln_codegen::emit::KernelArgs;
use kiln_codegen::{CpuTarget, Elem, Emitter, Ty, Val};
use kiln_ir::{DType, Dim};
use serde::{Deserialize, Serialize};

/// Bands of rows that a launch goes through one after the other, panel by panel each, and
/// bytes of filters up to which it has more than one: threads that begin with parts of the
/// units then have rows of their own, whose pixels they wrote a step before, and filters
/// are read anew for each band, from the second-level cache.
const BANDS: i64 = 2;
const BANDED_BYTES: i64 = 256 << 10;

/// Rows of a work unit: a multiple of the tiles' 6 and 8.
const MC: i64 = 48;

/// A convolution. Buffers: 0 is the image `[batch, input.., channels]`, 1 the filters
/// (`[groups, panels, taps·depth, nr]`, or `[taps, channels]` if depthwise), the last
/// is the result, those between are the epilogue's. The epilogue's axes are the batch,
/// the spatial axes, then the filter; its `Acc(0)` is the sum, an f32, or an i32 of
/// bytes: those times filters of i8, packed as
/// [`kiln_ir::ops::packed_conv::PackedConv`] says.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ConvSpec {
    /// The epilogue's expressions.
    pub exprs: Exprs,
    /// Element type of each buffer.
    pub args: Vec<DType>,
    /// How many launch parameters there are.
    pub params: u16,
    /// Images.
    pub batch: Size,
    /// Spatial extents of the image.
    pub input: Vec<Size>,
    /// Spatial extents of the result.
    pub output: Vec<Size>,
    /// Channels of the image.
    pub channels: i64,
    /// Channels of the result.
    pub filters: i64,
    /// Groups of channels that do not meet.
    pub groups: i64,
    /// Taps along each spatial axis.
    pub kernel: Vec<i64>,
    /// From one result element to the next.
    pub strides: Vec<i64>,
    /// From one tap to the next.
    pub dilations: Vec<i64>,
    /// What is before each spatial axis.
    pub lo: Vec<Size>,
    /// Whether buffer 2 holds the element that stands around the image, not 0.
    pub pad: bool,
    /// Whether a tap may be outside the image.
    pub bordered: bool,
    /// Columns of a panel, a multiple of 8 (of 16 by tiles); 0: depthwise.
    pub nr: i64,
    /// Whether the filters are those of [`kiln_ir::ops::winograd`],
    /// `[36, panels, channels, nr]`.
    pub winograd: bool,
    /// Where results go.
    pub out: Index,
    /// What is stored, of the result's type.
    pub value: ExprId,
}

impl ConvSpec {
    /// Checks that the parts agree.
    pub fn check(&self) -> Result<(), SpecError> {
        let spatial = self.input.len();
        let positive = |l: &[i64]| l.len() == spatial && l.iter().all(|&n| n > 0);
        let whole = self.groups > 0
            && self.channels > 0
            && self.filters > 0
            && self.channels % self.groups == 0
            && self.filters % self.groups == 0;
        let depthwise = self.groups == self.channels && self.groups == self.filters;
        let floats = |t: &DType| matches!(t, DType::F32 | DType::F16 | DType::BF16);
        let bytes = || {
            self.of_bytes()
                && self.args[1] == DType::I8
                && self.nr % LANES == 0
                && !self.winograd
                && (!self.pad || self.args.len() > 3 && self.args[2] == self.args[0])
        };
        let fits = spatial > 0
            && whole
            && [&self.kernel, &self.strides, &self.dilations]
                .iter()
                .all(|l| positive(l))
            && self.output.len() == spatial
            && self.lo.len() == spatial
            && self.nr >= 0
            && self.nr % 8 == 0
            && (self.nr > 0 || depthwise && self.taps() <= MOST_TAPS)
            && (!self.winograd || self.is_plain_3x3())
            && self.args.len() >= 3
            && (!self.pad && self.args[..2].iter().all(floats) || bytes())
            && self.out.gathers.is_empty()
            && (self.value.0 as usize) < self.exprs.len()
            && Some(&self.exprs.dtype(self.value)) == self.args.last();
        if !fits {
            return Err(SpecError("a convolution's parts do not agree".into()));
        }
        let names = Names {
            exprs: &self.exprs,
            args: &self.args[..self.args.len() - 1],
            params: self.params,
            axes: spatial + 2,
            acc: self.acc(),
        };
        names.expression(self.value)?;
        names.index(&self.out)?;
        names.sizes(&[self.batch])?;
        [&self.input, &self.output, &self.lo]
            .into_iter()
            .try_for_each(|s| names.sizes(s))
    }

    fn is_plain_3x3(&self) -> bool {
        let one = |l: &[i64]| l.iter().all(|&n| n == 1);
        self.kernel == [3, 3]
            && one(&self.strides)
            && one(&self.dilations)
            && self.groups == 1
            && self.nr > 0
            && self.nr % LANES == 0
    }

    /// Whether it multiplies bytes.
    pub(crate) fn of_bytes(&self) -> bool {
        matches!(self.args[0], DType::I8 | DType::U8)
    }

    /// The type of sums.
    pub(crate) fn acc(&self) -> DType {
        match self.of_bytes() {
            true => DType::I32,
            false => DType::F32,
        }
    }

    /// Taps of a filter.
    pub fn taps(&self) -> i64 {
        self.kernel.iter().fold(1, |n, &k| n.saturating_mul(k))
    }

    /// Panels of a group.
    pub(crate) fn panels(&self) -> i64 {
        (self.filters / self.groups + self.nr - 1) / self.nr
    }

    /// Channels that a filter sees.
    fn depth(&self) -> i64 {
        self.channels / self.groups
    }

    /// The runs of neighbouring elements that a filter reads: how many there are along
    /// each axis, and their length. Without a border, the taps along the last axis are
    /// one run.
    pub(crate) fn runs(&self) -> (Vec<i64>, i64) {
        let (mut kernel, last) = (self.kernel.clone(), self.kernel.len() - 1);
        let joined = !self.bordered && self.dilations[last] == 1 && self.groups == 1;
        let taps = match joined {
            true => std::mem::replace(&mut kernel[last], 1),
            false => 1,
        };
        (kernel, taps * self.depth())
    }

    fn rows_dim(&self, params: &[Dim]) -> Dim {
        let dim = |s: Size| size_dim(s, params);
        self.output.iter().fold(dim(self.batch), |p, &s| p * dim(s))
    }

    /// Work units of a launch.
    pub fn tiles(&self, params: &[Dim]) -> Dim {
        if self.nr == 0 {
            return crate::depthwise::tiles(self, params);
        }
        if self.winograd {
            return crate::winograd::tiles(self, params);
        }
        self.rows_dim(params).ceil_div(&MC.into()) * Dim::from(self.groups * self.panels())
    }

    /// Bands of rows of a launch.
    fn bands(&self) -> i64 {
        let bytes = self.args[1].size().unwrap_or(1) as i64;
        match self.taps() * self.depth() * self.filters * bytes <= BANDED_BYTES {
            true => BANDS,
            false => 1,
        }
    }

    /// Scratch bytes of a thread.
    pub fn scratch_bytes(&self, _: &[Dim]) -> Dim {
        let zeros = self.zeros() * self.args[0].size().unwrap_or(4) as i64;
        let spare = if self.of_bytes() { self.nr * 4 } else { 0 };
        Dim::from(self.zeros_place() + zeros + spare)
    }

    /// Where in scratch the row of zeros starts.
    pub(crate) fn zeros_place(&self) -> i64 {
        match self.winograd {
            true => crate::winograd::zeros_place(self),
            // The epilogue reads whole vectors of sums.
            false => SCRATCH_HEAD + (MC * self.nr + LANES) * 4,
        }
    }

    /// Elements of the row of zeros (or of what stands around the image).
    pub(crate) fn zeros(&self) -> i64 {
        let run = match self.nr {
            0 => self.channels,
            _ if self.winograd => self.channels,
            _ => self.runs().1,
        };
        // Tiles reach beyond the image on their own.
        match self.bordered || self.winograd {
            true => (run + LANES - 1) / LANES * LANES,
            false => 0,
        }
    }

    /// Arithmetic operations and bytes moved by a launch.
    pub fn cost(&self, params: &[Dim]) -> (Dim, Dim) {
        let dim = |s: Size| size_dim(s, params);
        let bytes = |i: usize| self.args[i].size().unwrap_or(1) as i64;
        let rows = self.rows_dim(params);
        let weights = self.taps() * self.depth() * self.filters;
        let image = self.input.iter().fold(dim(self.batch), |p, &s| p * dim(s));
        let moved = image * Dim::from(self.channels * bytes(0))
            + Dim::from(weights * bytes(1))
            + rows.clone() * Dim::from(self.filters * bytes(self.args.len() - 1));
        (rows * Dim::from(2 * weights), moved)
    }

    /// The kernel's MLIR.
    pub fn emit(&self, symbol: &str, target: &CpuTarget) -> String {
        Emitter::kernel(symbol, target, |e, args| {
            let params = micro::params(e, args.params, self.params);
            let buffers: Vec<Val> = (0..self.args.len())
                .map(|i| micro::buffer(e, args.args, i))
                .collect();
            let mut cx = ExprCx::new(&self.exprs, buffers, params, args.scratch);
            cx.clear_status(e);
            self.clear_zeros(e, &cx, args.scratch);
            let image = Image::new(e, &cx, self);
            match self.nr {
                0 => crate::depthwise::body(e, &mut cx, self, target, &image, &args),
                _ if self.winograd => {
                    crate::winograd::body(e, &mut cx, self, target, &image, &args)
                }
                _ => self.body(e, &mut cx, target, &image, &args),
            }
            cx.status(e)
        })
    }

    /// The row of zeros, which no launch before has left, or of what stands around.
    fn clear_zeros(&self, e: &mut Emitter, cx: &ExprCx, scratch: Val) {
        let elem = memory_elem(self.args[0]);
        let place = e.i64(self.zeros_place());
        let zeros = e.offset(scratch, place, Elem::I8);
        let count = e.i64(self.zeros());
        if !self.pad || self.zeros() == 0 {
            micro::clear(e, zeros, count, elem);
            return;
        }
        let around = e.load(cx.args[2], Ty::scalar(elem));
        let around = e.splat(around, LANES as u32);
        let (zero, step) = (e.i64(0), e.i64(LANES));
        e.for_loop(zero, count, step, &[], |e, i, _| {
            let p = e.offset(zeros, i, elem);
            e.store(around, p);
            vec![]
        });
    }

    fn body(
        &self,
        e: &mut Emitter,
        cx: &mut ExprCx,
        target: &CpuTarget,
        image: &Image,
        args: &KernelArgs,
    ) {
        let (mc, panels) = (e.i64(MC), e.i64(self.panels()));
        let rows = image.output.iter().fold(image.batch, |p, &s| e.mul(p, s));
        let blocks = ceil_div(e, rows, mc);
        let one = e.i64(1);
        let (bands, every) = (e.i64(self.bands()), e.i64(self.groups * self.panels()));
        let deep = ceil_div(e, blocks, bands);
        let in_band = e.mul(deep, every);
        e.for_loop(args.begin, args.end, one, &[], |e, unit, _| {
            cx.push();
            // Neighbouring units of a band share a panel.
            let (band, unit) = div_rem(e, unit, in_band);
            let above = e.mul(band, deep);
            let left = e.sub(blocks, above);
            let high = e.min(left, deep, false);
            let (panel, block) = div_rem(e, unit, high);
            let block = e.add(above, block);
            let (group, within) = div_rem(e, panel, panels);
            let first = e.mul(block, mc);
            let left = e.sub(rows, first);
            let unit = Unit {
                first,
                count: e.min(left, mc, false),
                panel,
                group,
                within,
            };
            self.unit(e, cx, target, image, &unit);
            cx.pop();
            vec![]
        });
    }

    /// One block of rows times one panel.
    fn unit(
        &self,
        e: &mut Emitter,
        cx: &mut ExprCx,
        target: &CpuTarget,
        image: &Image,
        unit: &Unit,
    ) {
        let head = e.i64(SCRATCH_HEAD);
        let sums = e.offset(cx.scratch, head, Elem::I8);
        match self.of_bytes() {
            true => self.sum_bytes(e, cx, target, image, unit, sums),
            false => self.sum_floats(e, cx, target, image, unit, sums),
        }
        self.epilogue(e, cx, image, unit, sums);
    }

    /// Rows of a register tile: as many as registers (and pointers) allow.
    pub(crate) fn tile_rows(&self, target: &CpuTarget) -> u32 {
        let tile = Tile::of(target, 4);
        match (self.nr as u32).div_ceil(tile.lanes) * 8 <= tile.registers() {
            true => 8,
            false => tile.rows,
        }
    }

    fn const_rows(&self) -> Option<i64> {
        self.output
            .iter()
            .try_fold(self.batch.as_const()?, |n, s| n.checked_mul(s.as_const()?))
    }

    fn epilogue(&self, e: &mut Emitter, cx: &mut ExprCx, image: &Image, unit: &Unit, sums: Val) {
        let (zero, one, step, nr) = (e.i64(0), e.i64(1), e.i64(LANES), e.i64(self.nr));
        let out = self.args.len() as u16 - 1;
        let m = e.i64(self.filters / self.groups);
        let column0 = e.mul(unit.within, nr);
        let left = e.sub(m, column0);
        let columns = e.min(left, nr, false);
        let before = e.mul(unit.group, m);
        let filter0 = e.add(before, column0);
        let start = image.coordinates(e, unit.first);
        // No vector reaches beyond its panel or the last filter.
        let whole = self.filters / self.groups % LANES == 0 && self.nr % LANES == 0;
        e.for_loop(zero, unit.count, one, &start, |e, r, place| {
            let at = e.mul(r, nr);
            e.for_loop(zero, columns, step, &[], |e, c, _| {
                cx.push();
                let filter = e.add(filter0, c);
                let at = e.add(at, c);
                let ty = Ty::vector(memory_elem(self.acc()), LANES as u32);
                let p = e.offset(sums, at, ty.elem);
                let sum = e.load(p, ty);
                if !whole {
                    let left = e.sub(columns, c);
                    cx.mask = Some(e.mask_first(left, LANES as u32));
                }
                self.finish(e, cx, place, filter, sum, out);
                cx.mask = None;
                cx.pop();
                vec![]
            });
            image.next(e, place)
        });
    }

    /// The epilogue of one vector of filters of a pixel.
    pub(crate) fn finish(
        &self,
        e: &mut Emitter,
        cx: &mut ExprCx,
        place: &[Val],
        filter: Val,
        sum: Val,
        out: u16,
    ) {
        cx.axes = place
            .iter()
            .copied()
            .map(Some)
            .chain([Some(filter)])
            .collect();
        cx.vector = Some(place.len() as u8);
        cx.accs.insert(0, sum);
        let value = cx.value(e, self.value);
        cx.store(e, out, self.args[out as usize], &self.out, value, None);
    }
}

/// A block of rows times a panel.
struct Unit {
    first: Val,
    count: Val,
    panel: Val,
    group: Val,
    /// The panel's number in its group.
    within: Val,
}
