//! 3×3 convolutions by Winograd's F(4×4, 3×3) ([`kiln_ir::ops::winograd`]), channels
//! last.
//!
//! A unit is a block of tiles of 4×4 results times one panel of filters: it transforms
//! the tiles' elements into scratch, multiplies them place by place with the transformed
//! filters (36 contractions over channels, by the register tiles of [`crate::micro`]),
//! and transforms the products back. Tiles lie on a grid that begins at each image's
//! corner: results depend on no block, thread or batch.

use crate::conv::ConvSpec;
use crate::image::Image;
use crate::lower::{ExprCx, memory_elem};
use crate::matmul::{ceil_div, div_rem};
use crate::micro::{self, Operand, Tile};
use crate::nest::{LANES, SCRATCH_HEAD, size_dim};
use kiln_codegen::emit::{Cmp, KernelArgs};
use kiln_codegen::{CpuTarget, Elem, Emitter, Ty, Val};
use kiln_ir::ops::winograd::{PLACES, TILE};
use kiln_ir::{DType, Dim};

/// Tiles of a block at most: a multiple of the register tiles' rows.
const BLOCK: i64 = 24;

const PLACES_I: i64 = PLACES as i64;
const TILE_I: i64 = TILE as i64;
/// Results of a tile.
const RESULTS: i64 = TILE_I * TILE_I;

/// Work units of a launch.
pub(crate) fn tiles(spec: &ConvSpec, params: &[Dim]) -> Dim {
    let dim = |s| size_dim(s, params);
    let tiles = spec
        .output
        .iter()
        .fold(dim(spec.batch), |p, &s| p * dim(s).ceil_div(&TILE_I.into()));
    tiles.ceil_div(&BLOCK.into()) * Dim::from(spec.panels())
}

/// Bytes of scratch before the row of zeros.
pub(crate) fn zeros_place(spec: &ConvSpec) -> i64 {
    results_place(spec) + RESULTS * spec.nr * 4
}

/// Where the products start: behind the transformed elements.
fn products_place(spec: &ConvSpec) -> i64 {
    let elements = PLACES_I * BLOCK * spec.channels;
    SCRATCH_HEAD + (elements + LANES) / LANES * LANES * 4
}

/// Where one tile's results start.
fn results_place(spec: &ConvSpec) -> i64 {
    products_place(spec) + PLACES_I * BLOCK * spec.nr * 4
}

/// What a unit works on.
struct Unit {
    /// The first tile.
    first: Val,
    /// How many.
    count: Val,
    panel: Val,
    elements: Val,
    products: Val,
    results: Val,
    zeros: Val,
}

/// The loop over units.
pub(crate) fn body(
    e: &mut Emitter,
    cx: &mut ExprCx,
    spec: &ConvSpec,
    target: &CpuTarget,
    image: &Image,
    args: &KernelArgs,
) {
    let (one, side, most, six) = (e.i64(1), e.i64(TILE_I), e.i64(BLOCK), e.i64(6));
    let grid: Vec<Val> = image.output.iter().map(|&d| ceil_div(e, d, side)).collect();
    let all = grid.iter().fold(image.batch, |p, &s| e.mul(p, s));
    // Blocks of about one size, in whole register tiles.
    let blocks = ceil_div(e, all, most);
    let least = e.max(blocks, one, false);
    let even = ceil_div(e, all, least);
    let even = ceil_div(e, even, six);
    let size = e.mul(even, six);
    let scratch = cx.scratch;
    let place = |e: &mut Emitter, at: i64| {
        let at = e.i64(at);
        e.offset(scratch, at, Elem::I8)
    };
    let elements = place(e, SCRATCH_HEAD);
    let products = place(e, products_place(spec));
    let results = place(e, results_place(spec));
    let zeros = place(e, zeros_place(spec));
    e.for_loop(args.begin, args.end, one, &[], |e, unit, _| {
        cx.push();
        // Neighbouring units share a panel.
        let (panel, block) = div_rem(e, unit, blocks);
        let first = e.mul(block, size);
        let left = e.sub(all, first);
        let unit = Unit {
            first,
            count: e.min(left, size, false),
            panel,
            elements,
            products,
            results,
            zeros,
        };
        transform(e, cx, spec, image, &grid, &unit);
        multiply(e, cx, spec, target, &unit);
        finish(e, cx, spec, image, &grid, &unit);
        cx.pop();
        vec![]
    });
}

/// The batch and the first result of a tile.
fn corner(e: &mut Emitter, grid: &[Val], tile: Val) -> [Val; 3] {
    let (rest, x) = div_rem(e, tile, grid[1]);
    let (n, y) = div_rem(e, rest, grid[0]);
    let side = e.i64(TILE_I);
    [n, e.mul(y, side), e.mul(x, side)]
}

/// `V = Bᵀ d B` of every tile and channel, `[36, BLOCK, channels]`.
fn transform(
    e: &mut Emitter,
    cx: &ExprCx,
    spec: &ConvSpec,
    image: &Image,
    grid: &[Val],
    unit: &Unit,
) {
    let (zero, one) = (e.i64(0), e.i64(1));
    e.for_loop(zero, unit.count, one, &[], |e, t, _| {
        let tile = e.add(unit.first, t);
        let [n, y0, x0] = corner(e, grid, tile);
        let pointers = pointers(e, cx, spec, image, [n, y0, x0], unit.zeros);
        let channels = e.i64(spec.channels);
        let at = e.mul(t, channels);
        let to = e.offset(unit.elements, at, Elem::F32);
        let whole = spec.channels / LANES * LANES;
        let (end, step) = (e.i64(whole), e.i64(LANES));
        if whole > 0 {
            e.for_loop(zero, end, step, &[], |e, c, _| {
                transform_vector(e, spec, &pointers, to, c, None);
                vec![]
            });
        }
        if whole < spec.channels {
            let left = e.i64(spec.channels - whole);
            let mask = e.mask_first(left, LANES as u32);
            transform_vector(e, spec, &pointers, to, end, Some(mask));
        }
        vec![]
    });
}

/// Channel 0 of the 6×6 elements of a tile, or zeros where there is no image.
fn pointers(
    e: &mut Emitter,
    cx: &ExprCx,
    spec: &ConvSpec,
    image: &Image,
    [n, y0, x0]: [Val; 3],
    zeros: Val,
) -> Vec<Val> {
    let elem = memory_elem(spec.args[0]);
    let along = |e: &mut Emitter, from: Val, axis: usize| -> Vec<(Val, Val)> {
        let from = e.sub(from, image.lo[axis]);
        (0..6)
            .map(|k| {
                let k = e.i64(k);
                let p = e.add(from, k);
                // Below 0 is far above as an unsigned number.
                let inside = e.cmp(Cmp::Lt, p, image.input[axis], true);
                (e.mul(p, image.steps[axis + 1]), inside)
            })
            .collect()
    };
    let (rows, columns) = (along(e, y0, 0), along(e, x0, 1));
    let start = e.mul(n, image.steps[0]);
    let mut out = vec![];
    for &(y, y_inside) in &rows {
        let row = e.add(start, y);
        for &(x, x_inside) in &columns {
            let at = e.add(row, x);
            let p = e.offset(cx.args[0], at, elem);
            let inside = e.op2("arith.andi", y_inside, x_inside);
            out.push(e.select(inside, p, zeros));
        }
    }
    out
}

fn transform_vector(
    e: &mut Emitter,
    spec: &ConvSpec,
    pointers: &[Val],
    to: Val,
    c: Val,
    mask: Option<Val>,
) {
    let (elem, lanes) = (memory_elem(spec.args[0]), LANES as u32);
    let mut d: Vec<Val> = pointers
        .iter()
        .map(|&p| {
            let p = e.offset(p, c, elem);
            let raw = match mask {
                Some(m) => e.load_masked(p, Ty::vector(elem, lanes), m),
                None => e.load(p, Ty::vector(elem, lanes)),
            };
            micro::widen(e, raw, spec.args[0], DType::F32)
        })
        .collect();
    for x in 0..6 {
        let column = input(e, std::array::from_fn(|y| d[y * 6 + x]));
        (0..6).for_each(|y| d[y * 6 + x] = column[y]);
    }
    for y in 0..6 {
        let row = input(e, std::array::from_fn(|x| d[y * 6 + x]));
        for (x, v) in row.into_iter().enumerate() {
            let place = (y * 6 + x) as i64;
            let at = e.i64(place * BLOCK * spec.channels);
            let at = e.add(at, c);
            let p = e.offset(to, at, Elem::F32);
            match mask {
                Some(m) => e.store_masked(v, p, m),
                None => e.store(v, p),
            }
        }
    }
}

/// `Bᵀ d`.
fn input(e: &mut Emitter, d: [Val; 6]) -> [Val; 6] {
    let times = |e: &mut Emitter, k: f64, x: Val, y: Val| {
        let k = e.float(x.ty, k);
        e.fma(k, x, y)
    };
    let first = times(e, -5.0, d[2], d[4]);
    let last = times(e, -5.0, d[3], d[5]);
    let (p, q) = (times(e, -4.0, d[2], d[4]), times(e, -4.0, d[1], d[3]));
    let (r, s) = (e.sub(d[4], d[2]), e.sub(d[3], d[1]));
    [
        times(e, 4.0, d[0], first),
        e.add(p, q),
        e.sub(p, q),
        times(e, 2.0, s, r),
        times(e, -2.0, s, r),
        times(e, 4.0, d[1], last),
    ]
}

/// `Aᵀ m`.
fn output(e: &mut Emitter, m: [Val; 6]) -> [Val; 4] {
    let times = |e: &mut Emitter, k: f64, x: Val, y: Val| {
        let k = e.float(x.ty, k);
        e.fma(k, x, y)
    };
    let (s, d) = (e.add(m[1], m[2]), e.sub(m[1], m[2]));
    let (s2, d2) = (e.add(m[3], m[4]), e.sub(m[3], m[4]));
    let first = e.add(m[0], s);
    let last = e.add(d, m[5]);
    [
        e.add(first, s2),
        times(e, 2.0, d2, d),
        times(e, 4.0, s2, s),
        times(e, 8.0, d2, last),
    ]
}

/// The products, `[36, BLOCK, nr]`.
fn multiply(e: &mut Emitter, cx: &ExprCx, spec: &ConvSpec, target: &CpuTarget, unit: &Unit) {
    let tile = Tile::of(target, 4);
    let lanes = tile.lanes as i64;
    let b_elem = memory_elem(spec.args[1]);
    let (zero, one, places) = (e.i64(0), e.i64(1), e.i64(PLACES_I));
    let (nr, channels) = (e.i64(spec.nr), e.i64(spec.channels));
    let whole = spec.tile_rows(target);
    e.for_loop(zero, places, one, &[], |e, place, _| {
        let all = e.i64(spec.panels());
        let panel = e.mul(place, all);
        let panel = e.add(panel, unit.panel);
        let size = e.i64(spec.channels * spec.nr);
        let at = e.mul(panel, size);
        let panel = e.offset(cx.args[1], at, b_elem);
        let block = e.i64(BLOCK);
        let skip = e.mul(place, block);
        micro::for_rows(e, unit.count, whole, &None, &mut |e, first, count| {
            let (mut rows, mut outs) = (vec![], vec![]);
            for r in 0..count as i64 {
                let r = e.i64(r);
                let row = e.add(first, r);
                let row = e.add(skip, row);
                let at = e.mul(row, channels);
                rows.push(e.offset(unit.elements, at, Elem::F32));
                let at = e.mul(row, nr);
                outs.push(e.offset(unit.products, at, Elem::F32));
            }
            let most = tile.vectors(count) as i64;
            let mut j = 0;
            while j < spec.nr {
                let vectors = ((spec.nr - j) / lanes).min(most);
                let none = e.zero(Ty::vector(Elem::F32, tile.lanes));
                let init = vec![none; rows.len() * vectors as usize];
                let here = e.i64(j);
                let b0 = e.offset(panel, here, b_elem);
                let a = Operand {
                    dtype: DType::F32,
                    step: one,
                };
                let b = Operand {
                    dtype: spec.args[1],
                    step: nr,
                };
                let sums =
                    micro::multiply(e, DType::F32, channels, (a, &rows), (b, b0), None, &init);
                for (i, sum) in sums.into_iter().enumerate() {
                    let (r, v) = (i as i64 / vectors, i as i64 % vectors);
                    let at = e.i64(j + v * lanes);
                    let p = e.offset(outs[r as usize], at, Elem::F32);
                    e.store(sum, p);
                }
                j += vectors * lanes;
            }
        });
        vec![]
    });
}

/// `Aᵀ M A` of every tile, and the epilogue.
fn finish(
    e: &mut Emitter,
    cx: &mut ExprCx,
    spec: &ConvSpec,
    image: &Image,
    grid: &[Val],
    unit: &Unit,
) {
    let (zero, one, step, nr) = (e.i64(0), e.i64(1), e.i64(LANES), e.i64(spec.nr));
    let out = spec.args.len() as u16 - 1;
    let filter0 = e.mul(unit.panel, nr);
    let filters = e.i64(spec.filters);
    let left = e.sub(filters, filter0);
    let columns = e.min(left, nr, false);
    e.for_loop(zero, unit.count, one, &[], |e, t, _| {
        let at = e.mul(t, nr);
        let from = e.offset(unit.products, at, Elem::F32);
        e.for_loop(zero, columns, step, &[], |e, c, _| {
            results(e, spec, from, unit.results, c);
            vec![]
        });
        let tile = e.add(unit.first, t);
        let [n, y0, x0] = corner(e, grid, tile);
        let (side, all) = (e.i64(TILE_I), e.i64(RESULTS));
        e.for_loop(zero, all, one, &[], |e, i, _| {
            let (down, right) = div_rem(e, i, side);
            let (y, x) = (e.add(y0, down), e.add(x0, right));
            let y_inside = e.cmp(Cmp::Lt, y, image.output[0], false);
            let x_inside = e.cmp(Cmp::Lt, x, image.output[1], false);
            let inside = e.op2("arith.andi", y_inside, x_inside);
            e.if_then(inside, |e| {
                let at = e.mul(i, nr);
                let row = e.offset(unit.results, at, Elem::F32);
                e.for_loop(zero, columns, step, &[], |e, c, _| {
                    cx.push();
                    let p = e.offset(row, c, Elem::F32);
                    let sum = e.load(p, Ty::vector(Elem::F32, LANES as u32));
                    let left = e.sub(columns, c);
                    cx.mask = Some(e.mask_first(left, LANES as u32));
                    let filter = e.add(filter0, c);
                    spec.finish(e, cx, &[n, y, x], filter, sum, out);
                    cx.mask = None;
                    cx.pop();
                    vec![]
                });
            });
            vec![]
        });
        vec![]
    });
}

/// The results of one tile and vector of filters, `[16, nr]`.
fn results(e: &mut Emitter, spec: &ConvSpec, from: Val, to: Val, c: Val) {
    let ty = Ty::vector(Elem::F32, LANES as u32);
    let half: [[Val; TILE]; 6] = std::array::from_fn(|x| {
        let column = std::array::from_fn(|y| {
            let at = e.i64((y * 6 + x) as i64 * BLOCK * spec.nr);
            let at = e.add(at, c);
            let p = e.offset(from, at, Elem::F32);
            e.load(p, ty)
        });
        output(e, column)
    });
    let rows: [[Val; 6]; TILE] = std::array::from_fn(|y| half.map(|column| column[y]));
    for (y, row) in rows.into_iter().enumerate() {
        for (x, v) in output(e, row).into_iter().enumerate() {
            let at = e.i64((y * TILE + x) as i64 * spec.nr);
            let at = e.add(at, c);
            let p = e.offset(to, at, Elem::F32);
            e.store(v, p);
        }
    }
}
