//! Contractions of elements that are summed a word of 32 bits at a time: four bytes
//! ([`crate::dot`]) or two of bf16 ([`crate::pairs`]); and the packing of a B that is
//! computed.

use super::{KC, MatMulSpec, Rows, advance, ceil_div};
use crate::dot::{Depth, DotTile, GROUP, Shift, Signs, part_of_word};
use crate::expr::Size;
use crate::lower::{ExprCx, compute_elem};
use crate::matmul::Columns;
use crate::micro;
use crate::nest::LANES;
use crate::pairs::{PAIR, PairTile};
use kiln_codegen::{CpuTarget, Elem, Emitter, Ty, Val};
use kiln_ir::DType;

/// Products of bytes summed between two visits to the block of sums: a panel's part
/// stays in the second-level cache.
pub(super) const KC_BYTES: i64 = 2048;

/// What is summed a word at a time.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Words {
    /// Four bytes, exactly.
    Bytes(Signs),
    /// Two bf16, in f32.
    Pairs,
}

impl Words {
    /// Elements of a word.
    pub(crate) fn group(self) -> i64 {
        match self {
            Words::Bytes(_) => GROUP,
            Words::Pairs => PAIR,
        }
    }

    /// An element as the integer that it is in a word.
    fn elem(self) -> Elem {
        part_of_word(self.group())
    }

    /// Elements along k between two visits to the block of sums.
    fn depth(self) -> i64 {
        match self {
            Words::Bytes(_) => KC_BYTES,
            Words::Pairs => KC,
        }
    }

    /// How operands are moved as they are read.
    fn shift(self, target: &CpuTarget) -> Option<(Signs, Shift)> {
        match self {
            Words::Bytes(signs) => Some((signs, DotTile::of(target).shift(signs))),
            Words::Pairs => None,
        }
        .filter(|(_, shift)| *shift != Shift::NONE)
    }

    /// Rows computed together at most.
    fn rows(self, target: &CpuTarget) -> u32 {
        match self {
            Words::Bytes(_) => DotTile::of(target).rows,
            Words::Pairs => PairTile::of(target).rows,
        }
    }
}

/// Where a work unit is.
pub(super) struct Place<'a> {
    /// Its rows.
    pub rows: &'a Rows<'a>,
    /// Its batch, unless every row has its own.
    pub fixed: &'a Option<Vec<Val>>,
    /// Elements of B before the batch's matrix.
    pub b_at: Val,
    /// The panel's number.
    pub panel: Val,
    /// Its first column, and how many it has.
    pub columns: (Val, Val),
}

impl MatMulSpec {
    /// What it sums a word at a time, if it does: neighbours along k lie together in A.
    pub(crate) fn words(&self) -> Option<Words> {
        let byte = |t: DType| matches!(t, DType::I8 | DType::U8);
        let runs = self.a.last() == Some(&Size::ONE) && !matches!(self.b, Columns::Packed);
        let (a, b) = (self.args[0], self.args[1]);
        match (self.acc, a, b) {
            (DType::I32, a, b) if runs && byte(a) && byte(b) => Some(Words::Bytes(Signs { a, b })),
            (DType::F32, DType::BF16, DType::BF16) if runs => Some(Words::Pairs),
            _ => None,
        }
    }

    /// Bytes of scratch behind the block of sums.
    pub(super) fn word_scratch(&self, words: Words) -> i64 {
        let size = 4 / words.group();
        let panel = match self.b {
            Columns::Strided { .. } => words.depth() * self.nr * size,
            _ => 0,
        };
        panel + self.nr * self.acc_bytes()
    }

    /// Whether tiles start from nothing: there is one part of a panel, and nothing is
    /// taken off before.
    pub(super) fn starts_clear(&self, target: &CpuTarget) -> bool {
        let words = self.words();
        let depth = words.map_or(KC, Words::depth);
        let once = matches!(self.k, Size::Const(k) if (1..=depth).contains(&k));
        once && words.is_none_or(|words| words.shift(target).is_none())
    }

    /// Adds a unit's products to its block of sums.
    pub(super) fn sum_words(
        &self,
        e: &mut Emitter,
        cx: &mut ExprCx,
        target: &CpuTarget,
        words: Words,
        at: &Place,
        sums: Val,
    ) {
        let (k, nr) = (cx.size(e, self.k), e.i64(self.nr));
        let (group, elem) = (words.group(), words.elem());
        let from = match self.b {
            Columns::Strided { column, .. } => advance(e, cx, at.b_at, at.columns.0, column),
            _ => {
                let group = e.i64(group);
                let groups = ceil_div(e, k, group);
                let width = e.mul(group, nr);
                let size = e.mul(groups, width);
                let skip = e.mul(at.panel, size);
                e.add(at.b_at, skip)
            }
        };
        let b0 = e.offset(cx.args[1], from, elem);
        let sizes = micro::block_sizes(self.const_rows(), self.unit_rows());
        let (zero, kc) = (e.i64(0), e.i64(words.depth()));
        e.for_loop(zero, k, kc, &[], |e, k0, _| {
            let left = e.sub(k, k0);
            let depth = Depth {
                products: e.min(left, kc, false),
                whole: matches!(self.k, Size::Const(k) if k % group == 0),
                group,
                tail: None,
            };
            let part = match self.b {
                Columns::Strided { row, column } => {
                    let skip = advance(e, cx, zero, k0, row);
                    let here = e.offset(b0, skip, elem);
                    let place = e.i64(self.panel_place());
                    let to = e.offset(cx.scratch, place, Elem::I8);
                    let steps = (cx.size(e, row), cx.size(e, column));
                    self.pack_words(e, (here, steps), to, depth, at.columns.1);
                    to
                }
                _ => {
                    let skip = e.mul(k0, nr);
                    e.offset(b0, skip, elem)
                }
            };
            let pointers = |e: &mut Emitter, cx: &ExprCx, first: Val, count: u32| {
                self.row_pointers(e, cx, (at.rows, at.fixed), (first, count), k0)
            };
            if let Some((signs, _)) = words.shift(target) {
                let tile = DotTile::of(target);
                let place = e.i64(self.panel_place() + self.word_scratch(words));
                let back = e.i64(self.nr * self.acc_bytes());
                let place = e.sub(place, back);
                let spare = e.offset(cx.scratch, place, Elem::I8);
                let one = e.i64(1);
                self.columns_off(e, (tile, signs), depth, part, spare);
                e.for_loop(zero, at.rows.count, one, &[], |e, r, _| {
                    let row = pointers(e, cx, r, 1)[0];
                    self.row_off(e, (tile, signs), depth, row, spare, (sums, r));
                    vec![]
                });
            }
            let most = words.rows(target);
            micro::for_rows(e, at.rows.count, most, &sizes, &mut |e, first, count| {
                let rows = pointers(e, cx, first, count);
                self.word_tile(e, target, (words, depth), &rows, part, (sums, first));
            });
            vec![]
        });
    }

    /// A few rows times a panel, added to the sums from row `first` on, or put there.
    fn word_tile(
        &self,
        e: &mut Emitter,
        target: &CpuTarget,
        (words, depth): (Words, Depth),
        rows: &[Val],
        panel: Val,
        (sums, first): (Val, Val),
    ) {
        let count = rows.len() as u32;
        let (bytes, pairs) = (DotTile::of(target), PairTile::of(target));
        let lanes = target.f32_lanes() as i64;
        let most = match words {
            Words::Bytes(_) => bytes.columns(count),
            Words::Pairs => pairs.vectors(count) as i64 * lanes,
        };
        let (nr, step) = (e.i64(self.nr), e.i64(4 * self.nr));
        let elem = compute_elem(self.acc);
        let ty = Ty::vector(elem, lanes as u32);
        let clear = self.starts_clear(target);
        let mut j = 0;
        while j < self.nr {
            let columns = (self.nr - j).min(most);
            let mut slots = vec![];
            for r in 0..rows.len() as i64 {
                let r = e.i64(r);
                let row = e.add(first, r);
                let at = e.mul(row, nr);
                for v in 0..columns / lanes {
                    let column = e.i64(j + v * lanes);
                    let at = e.add(at, column);
                    slots.push(e.offset(sums, at, elem));
                }
            }
            let init: Vec<Val> = match clear {
                true => vec![e.zero(ty); slots.len()],
                false => slots.iter().map(|&p| e.load(p, ty)).collect(),
            };
            let skip = e.i64(j);
            let from = e.offset(panel, skip, Elem::I32);
            let out = match words {
                Words::Bytes(signs) => bytes.multiply(e, depth, signs, rows, (from, step), &init),
                Words::Pairs => pairs.multiply(e, depth, rows, (from, step), &init),
            };
            out.iter().zip(slots).for_each(|(&sum, p)| e.store(sum, p));
            j += columns;
        }
    }

    /// Writes what each column's sums have too much, by the shift of A.
    fn columns_off(
        &self,
        e: &mut Emitter,
        (tile, signs): (DotTile, Signs),
        depth: Depth,
        panel: Val,
        to: Val,
    ) {
        let lanes = tile.lanes as i64;
        let step = e.i64(self.nr * GROUP);
        let shift = tile.shift(signs);
        let mut j = 0;
        while j < self.nr {
            let vectors = ((self.nr - j) / lanes).min(8);
            let skip = e.i64(j * GROUP);
            let from = e.offset(panel, skip, Elem::I8);
            let mut off = match shift.a {
                0 => vec![e.zero(Ty::vector(Elem::I32, tile.lanes)); vectors as usize],
                _ => tile.column_sums(e, depth, signs, (from, step), vectors),
            };
            if shift.a != 0 && shift.b != 0 {
                let both = e.i64(shift.a * shift.b);
                let both = e.mul(both, depth.products);
                let both = e.cast(both, Elem::I32, false, false);
                off.iter_mut().for_each(|x| *x = e.add(*x, both));
            }
            for (v, &x) in (0..).zip(&off) {
                let at = e.i64(j + v * lanes);
                let p = e.offset(to, at, Elem::I32);
                e.store(x, p);
            }
            j += vectors * lanes;
        }
    }

    /// Takes off a row's sums what the columns and the row itself have too much.
    fn row_off(
        &self,
        e: &mut Emitter,
        (tile, signs): (DotTile, Signs),
        depth: Depth,
        row: Val,
        columns: Val,
        (sums, r): (Val, Val),
    ) {
        let ty = Ty::vector(Elem::I32, tile.lanes);
        let nr = e.i64(self.nr);
        let at = e.mul(r, nr);
        let own = match tile.shift(signs).b {
            0 => None,
            _ => Some(tile.row_sum(e, depth, signs, row)),
        };
        for j in (0..self.nr).step_by(tile.lanes as usize) {
            let j = e.i64(j);
            let place = e.add(at, j);
            let p = e.offset(sums, place, Elem::I32);
            let q = e.offset(columns, j, Elem::I32);
            let mut off = e.load(q, ty);
            if let Some(own) = own {
                off = e.add(off, own);
            }
            let sum = e.load(p, ty);
            let sum = e.sub(sum, off);
            e.store(sum, p);
        }
    }

    /// Copies `depth × columns` elements of B to a panel `[k/group][nr][group]`; rows
    /// beyond the last are 0, columns beyond the last are anything.
    fn pack_words(
        &self,
        e: &mut Emitter,
        (from, steps): (Val, (Val, Val)),
        to: Val,
        depth: Depth,
        columns: Val,
    ) {
        match self.b {
            Columns::Strided {
                column: Size::ONE, ..
            } => self.pack_rows(e, (from, steps.0), to, depth, columns),
            Columns::Strided { row: Size::ONE, .. } if depth.whole => {
                let size = e.i64(depth.group);
                let groups = e.op2("arith.divui", depth.products, size);
                self.pack_whole(e, (from, steps.1), to, (groups, depth.group), columns);
            }
            _ => self.pack_each(e, (from, steps), to, depth, columns),
        }
    }

    /// Rows whose columns lie in runs: some of them make a group.
    fn pack_rows(
        &self,
        e: &mut Emitter,
        (from, row): (Val, Val),
        to: Val,
        depth: Depth,
        columns: Val,
    ) {
        let lanes = LANES as u32;
        let (nr, step) = (e.i64(self.nr), e.i64(LANES));
        let elem = part_of_word(depth.group);
        let ty = Ty::vector(elem, lanes);
        let words = Ty::vector(Elem::I32, lanes);
        let zero = e.i64(0);
        let full = matches!(self.n, Size::Const(n) if n % LANES == 0);
        depth.rows_of_groups(e, &mut |e, group, rows| {
            e.for_loop(zero, columns, step, &[], |e, j, _| {
                let mut out = e.zero(words);
                for (t, &(r, exists)) in rows.iter().enumerate() {
                    let at = e.mul(r, row);
                    let at = e.add(at, j);
                    let p = e.offset(from, at, elem);
                    let parts = if full {
                        e.load(p, ty)
                    } else {
                        let left = e.sub(columns, j);
                        let mask = e.mask_first(left, lanes);
                        e.load_masked(p, ty, mask)
                    };
                    let mut x = e.cast(parts, Elem::I32, true, true);
                    if let Some(exists) = exists {
                        let none = e.zero(words);
                        x = e.select(exists, x, none);
                    }
                    let by = e.int(words, elem.bits() as i64 * t as i64);
                    let x = e.op2("arith.shli", x, by);
                    out = e.op2("arith.ori", out, x);
                }
                let at = e.mul(group, nr);
                let at = e.add(at, j);
                let p = e.offset(to, at, Elem::I32);
                e.store(out, p);
                vec![]
            });
        });
    }

    /// Columns whose k lie in runs of whole groups: 16 of them are turned at a time.
    fn pack_whole(
        &self,
        e: &mut Emitter,
        (from, column): (Val, Val),
        to: Val,
        (groups, group): (Val, i64),
        columns: Val,
    ) {
        let ty = Ty::vector(Elem::I32, LANES as u32);
        let (size, elem, nr) = (e.i64(group), part_of_word(group), e.i64(self.nr));
        // Rows beyond the last fit: a panel has room for `Words::depth`.
        let extents = (columns, groups, false);
        micro::turn(e, extents, (to, nr), &mut |e, c, i, mask| {
            let at = e.mul(c, column);
            let skip = e.mul(i, size);
            let at = e.add(at, skip);
            let p = e.offset(from, at, elem);
            e.load_run_bytes(p, ty, mask)
        });
    }

    /// Element by element, whatever the strides.
    fn pack_each(
        &self,
        e: &mut Emitter,
        (from, (row, column)): (Val, (Val, Val)),
        to: Val,
        depth: Depth,
        columns: Val,
    ) {
        let (zero, one, nr) = (e.i64(0), e.i64(1), e.i64(self.nr));
        let (word, elem) = (Ty::scalar(Elem::I32), part_of_word(depth.group));
        depth.rows_of_groups(e, &mut |e, group, rows| {
            e.for_loop(zero, columns, one, &[], |e, j, _| {
                let skip = e.mul(j, column);
                let mut out = e.int(word, 0);
                for (t, &(r, exists)) in rows.iter().enumerate() {
                    let at = e.mul(r, row);
                    let at = e.add(at, skip);
                    let p = e.offset(from, at, elem);
                    let part = e.load(p, Ty::scalar(elem));
                    let mut x = e.cast(part, Elem::I32, true, true);
                    if let Some(exists) = exists {
                        let none = e.int(word, 0);
                        x = e.select(exists, x, none);
                    }
                    let by = e.int(word, elem.bits() as i64 * t as i64);
                    let x = e.op2("arith.shli", x, by);
                    out = e.op2("arith.ori", out, x);
                }
                let at = e.mul(group, nr);
                let at = e.add(at, j);
                let p = e.offset(to, at, Elem::I32);
                e.store(out, p);
                vec![]
            });
        });
    }
}
