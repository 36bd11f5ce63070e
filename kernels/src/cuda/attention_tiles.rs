//! How queries, keys and values come to [`attention_groups`](super::attention_groups) by
//! tiles: one thread of a block has the tensor memory accelerator copy them, so nobody
//! spends registers or time on addresses, and what does not exist becomes zeros.
//!
//! A tile is a panel of shared memory: 64 features of the rows of a part, whose bytes a
//! barrier counts. Rows, heads and batches are a tensor's dimensions, in whatever order they
//! lie (`[B, S, H, D]` as well as `[B, H, S, D]`); those of one extent or without a step are
//! left out.

use super::attention_groups::{Attend, Bar, Part, QUERIES, Shape, Walk};
use super::attention_rows::Block;
use super::{Tile, dim};
use crate::Size;
use crate::attention::AttentionSpec;
use kiln_codegen::emit::Cmp;
use kiln_codegen::ptx::{B32, B64, Order, Reg};
use kiln_codegen::{Emitter, Val};
use kiln_ir::Dim;

/// Elements of a row of a tile.
pub(super) const WIDE: i64 = 64;

/// Elements that 16 bytes have, which strides are multiples of.
const CHUNK: i64 = 8;

/// An argument's tiles, and whether heads and batches are among their dimensions.
#[derive(Clone, Debug)]
pub(super) struct Side {
    pub tile: Tile,
    heads: bool,
    batch: bool,
}

/// The tiles of queries, keys and values; none where strides that are known do not allow it.
pub(super) fn sides(spec: &AttentionSpec, shape: Shape) -> Option<[Side; 3]> {
    let key_heads = dim(spec.heads).floor_div(&dim(spec.group));
    let one = |arg: u16, rows: Size, width: i64, strides: &[Size; 4], heads: Dim, many: i64| {
        side(spec, arg, (rows, width), strides, heads, many)
    };
    Some([
        one(
            0,
            spec.queries,
            spec.features,
            &spec.q,
            dim(spec.heads),
            QUERIES,
        )?,
        one(
            1,
            spec.keys,
            spec.features,
            &spec.k,
            key_heads.clone(),
            shape.keys,
        )?,
        one(2, spec.keys, spec.values, &spec.v, key_heads, shape.keys)?,
    ])
}

fn side(
    spec: &AttentionSpec,
    arg: u16,
    (rows, width): (Size, i64),
    strides: &[Size; 4],
    heads: Dim,
    many: i64,
) -> Option<Side> {
    let mut tile = Tile {
        arg,
        dtype: spec.args[arg as usize],
        sizes: vec![width.into(), dim(rows)],
        strides: vec![dim(strides[2])],
        tile: vec![WIDE as u32, many as u32],
    };
    let mut outer = |extent: Dim, step: Size| {
        let there = extent != Dim::ONE && step != Size::ZERO;
        if there {
            tile.sizes.push(extent);
            tile.strides.push(dim(step));
            tile.tile.push(1);
        }
        there
    };
    let heads = outer(heads, strides[1]);
    let batch = outer(dim(spec.batch), strides[0]);
    let apart = |d: &Dim| d.as_const().is_none_or(|n| n >= CHUNK && n % CHUNK == 0);
    let side = Side { tile, heads, batch };
    side.tile.strides.iter().all(apart).then_some(side)
}

/// The tensor maps of a launch's tiles.
pub(super) struct Maps {
    sides: [Side; 3],
    maps: [Reg<B64>; 3],
}

impl Maps {
    /// Declares them, behind the launch's other parameters.
    pub(super) fn declare(e: &mut Emitter, sides: &[Side; 3]) -> Maps {
        Maps {
            sides: sides.clone(),
            maps: sides.each_ref().map(|_| e.kernel_mut().tensor_map()),
        }
    }
}

impl Attend<'_> {
    /// What the group that copies does: its first thread starts everything, in the order in
    /// which it is waited for.
    pub(super) fn copy_tiles(&self, e: &mut Emitter, maps: &Maps, b: &Block, walk: &Walk) {
        let k = e.kernel_mut();
        let thread = k.thread();
        let first = k.compare(Order::Eq, thread, 0, false);
        let first = e.from_pred(first);
        let zero = e.i64(0);
        let some = e.cmp(Cmp::Gt, walk.parts, zero, false);
        // Copies that nobody waits for would outlive the block.
        let first = e.op2("arith.andi", first, some);
        e.if_then(first, |e| self.copy_in_turn(e, maps, b, walk));
    }

    fn copy_in_turn(&self, e: &mut Emitter, maps: &Maps, b: &Block, walk: &Walk) {
        let bar = self.queries_bar(e);
        self.copy(e, (maps, 0), (b, b.head, b.first), self.shared, bar);
        let (zero, one) = (e.i64(0), e.i64(1));
        e.for_loop(zero, walk.parts, one, &[], |e, part, _| {
            self.copy_part(e, (maps, Part::Keys), b, walk, part);
            let later = e.cmp(Cmp::Gt, part, zero, false);
            e.if_then(later, |e| {
                let before = e.sub(part, one);
                self.copy_part(e, (maps, Part::Values), b, walk, before);
            });
            vec![]
        });
        let last = e.sub(walk.parts, one);
        self.copy_part(e, (maps, Part::Values), b, walk, last);
    }

    fn copy_part(
        &self,
        e: &mut Emitter,
        (maps, which): (&Maps, Part),
        b: &Block,
        walk: &Walk,
        part: Val,
    ) {
        let turn = self.turn(e, part);
        self.wait(e, Bar::Empty(which), turn);
        let full = self.bar(e, Bar::Full(which), turn);
        let to = self.place(e, which, turn);
        let key0 = self.key(e, walk, part);
        let side = match which {
            Part::Keys => 1,
            Part::Values => 2,
        };
        self.copy(e, (maps, side), (b, b.key_head, key0), to, full);
    }

    /// Starts the copies of an argument's rows from `row` on, panel after panel.
    fn copy(
        &self,
        e: &mut Emitter,
        (maps, i): (&Maps, usize),
        (b, head, row): (&Block, Val, Val),
        to: Reg<B32>,
        bar: Reg<B32>,
    ) {
        let panels = match i {
            0 => self.shape.queries(),
            1 => self.shape.part(Part::Keys),
            _ => self.shape.part(Part::Values),
        };
        let side = &maps.sides[i];
        let outer = [(side.heads, head), (side.batch, b.batch)];
        let outer = outer.into_iter().filter(|(there, _)| *there);
        let at: Vec<Reg<B32>> = ([row].into_iter().chain(outer.map(|(_, c)| c)))
            .map(|c| {
                let c = e.long(c);
                e.kernel_mut().low(c)
            })
            .collect();
        let k = e.kernel_mut();
        k.barrier_expect(bar, panels.bytes() as u32);
        for panel in 0..panels.elements / WIDE {
            let first: Reg<B32> = k.mov((panel * WIDE) as i32);
            let to = k.add(to, panels.column(4 * panel) as i32);
            k.copy_tile(to, maps.maps[i], &[&[first][..], &at].concat(), bar, None);
        }
    }
}
