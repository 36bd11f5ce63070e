//! Convolutions of bytes: a block of sums by dot products of four ([`crate::dot`]).
//!
//! A register tile walks all taps and channels before its sums leave the registers; a
//! panel's bytes stay in the second-level cache.

use super::{ConvSpec, MC, Unit};
use crate::dot::{Depth, DotTile, GROUP, Signs};
use crate::image::{Image, Origin};
use crate::lower::ExprCx;
use crate::micro;
use kiln_codegen::{CpuTarget, Elem, Emitter, Ty, Val};

/// What the tiles of a unit share.
struct Part {
    tile: DotTile,
    /// Runs of a filter along each axis.
    kernel: Vec<i64>,
    /// Bytes of a run.
    run: i64,
    panel: Val,
    sums: Val,
    /// What stands around the image.
    around: Val,
    /// Channels before the group's.
    group_skip: Val,
    /// What each column's sums start from, where that is not 0.
    start: Option<Val>,
}

impl ConvSpec {
    fn signs(&self) -> Signs {
        Signs {
            a: self.args[0],
            b: self.args[1],
        }
    }

    /// The sums of a unit, by rows of `nr`.
    pub(super) fn sum_bytes(
        &self,
        e: &mut Emitter,
        cx: &mut ExprCx,
        target: &CpuTarget,
        image: &Image,
        unit: &Unit,
        sums: Val,
    ) {
        let tile = DotTile::of(target);
        let (kernel, run) = self.runs();
        let groups = kernel.iter().product::<i64>() * groups_of(run);
        let size = e.i64(groups * self.nr * GROUP);
        let at = e.mul(unit.panel, size);
        let panel = e.offset(cx.args[1], at, Elem::I8);
        let place = e.i64(self.zeros_place());
        let around = e.offset(cx.scratch, place, Elem::I8);
        let depth = e.i64(self.depth());
        let signed = tile.shift(self.signs()).a != 0;
        let part = Part {
            tile,
            kernel,
            run,
            panel,
            sums,
            around,
            group_skip: e.mul(unit.group, depth),
            start: signed.then(|| self.column_starts(e, tile, groups, panel, around)),
        };
        let sizes = micro::block_sizes(self.const_rows(), MC);
        let whole = tile.rows_for(self.nr);
        micro::for_rows(e, unit.count, whole, &sizes, &mut |e, first, count| {
            let row = e.add(unit.first, first);
            let origins = image.origins(e, self, row, count);
            self.byte_tile(e, cx, image, &part, &origins, first);
        });
    }

    /// Writes what the shift of signed bytes adds to each column's sums, negated, behind
    /// the row of what stands around; gives its place.
    fn column_starts(
        &self,
        e: &mut Emitter,
        tile: DotTile,
        groups: i64,
        panel: Val,
        around: Val,
    ) -> Val {
        let behind = e.i64(self.zeros());
        let to = e.offset(around, behind, Elem::I8);
        let step = e.i64(self.nr * GROUP);
        let depth = Depth::known(e, groups * GROUP);
        let lanes = tile.lanes as i64;
        let none = e.zero(Ty::vector(Elem::I32, tile.lanes));
        let mut j = 0;
        while j < self.nr {
            let vectors = ((self.nr - j) / lanes).min(8);
            let skip = e.i64(j * GROUP);
            let from = e.offset(panel, skip, Elem::I8);
            let off = tile.column_sums(e, depth, self.signs(), (from, step), vectors);
            for (v, &x) in (0..).zip(&off) {
                let at = e.i64(j + v * lanes);
                let p = e.offset(to, at, Elem::I32);
                let x = e.sub(none, x);
                e.store(x, p);
            }
            j += vectors * lanes;
        }
        to
    }

    /// A few rows times a panel.
    fn byte_tile(
        &self,
        e: &mut Emitter,
        cx: &ExprCx,
        image: &Image,
        part: &Part,
        origins: &[Origin],
        first: Val,
    ) {
        let tile = part.tile;
        let lanes = tile.lanes as i64;
        let most = tile.columns(origins.len() as u32);
        let ty = Ty::vector(Elem::I32, tile.lanes);
        let mut j = 0;
        while j < self.nr {
            let columns = (self.nr - j).min(most);
            let starts: Vec<Val> = (0..columns / lanes)
                .map(|v| match part.start {
                    Some(from) => {
                        let at = e.i64(j + v * lanes);
                        let p = e.offset(from, at, Elem::I32);
                        e.load(p, ty)
                    }
                    None => e.zero(ty),
                })
                .collect();
            let init = starts.repeat(origins.len());
            let grown = tile.begin(e, &init);
            let grown = self.walk(e, cx, image, part, (origins, j), &grown);
            let sums = tile.end(e, &grown, &init);
            for (i, sum) in (0..).zip(sums) {
                let (r, v) = (i / starts.len() as i64, i % starts.len() as i64);
                let r = e.i64(r);
                let row = e.add(first, r);
                let nr = e.i64(self.nr);
                let at = e.mul(row, nr);
                let column = e.i64(j + v * lanes);
                let at = e.add(at, column);
                let p = e.offset(part.sums, at, Elem::I32);
                e.store(sum, p);
            }
            j += columns;
        }
    }

    /// All runs of taps, of columns from `column` on.
    fn walk(
        &self,
        e: &mut Emitter,
        cx: &ExprCx,
        image: &Image,
        part: &Part,
        (origins, column): (&[Origin], i64),
        start: &[Val],
    ) -> Vec<Val> {
        let runs: i64 = part.kernel.iter().product();
        let (zero, one, end) = (e.i64(0), e.i64(1), e.i64(runs));
        let step = e.i64(self.nr * GROUP);
        let depth = Depth::known(e, part.run);
        let skip = e.i64(column * GROUP);
        let panel = e.offset(part.panel, skip, Elem::I8);
        e.for_loop(zero, end, one, start, |e, t, acc| {
            let rows: Vec<Val> = image
                .hits(e, self, &part.kernel, t, origins)
                .into_iter()
                .map(|(at, inside)| {
                    let at = e.add(at, part.group_skip);
                    let p = e.offset(cx.args[0], at, Elem::I8);
                    match inside {
                        Some(ok) => e.select(ok, p, part.around),
                        None => p,
                    }
                })
                .collect();
            let size = e.i64(groups_of(part.run) * self.nr * GROUP);
            let at = e.mul(t, size);
            let here = e.offset(panel, at, Elem::I8);
            part.tile
                .accumulate(e, depth, self.signs(), &rows, (here, step), acc)
        })
    }
}

/// Groups of a run of bytes.
fn groups_of(run: i64) -> i64 {
    (run + GROUP - 1) / GROUP
}
