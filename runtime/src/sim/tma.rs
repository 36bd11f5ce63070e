//! Copies of boxes of tensors (PTX ISA, `cp.async.bulk.tensor`, "Tensors": tiled mode).

use super::access::resolve;
use super::ast::Space;
use super::atomic::{self, AtomOp};
use super::bulk::{Way, completion, coordinates, deliver, policy, read_shared, reduce_one, way};
use super::decode::Cx;
use super::exec::Machine;
use super::fault::{FaultKind, Outcome, Trouble, trouble};
use super::memory::Span;
use super::op::{Addr, Op};
use super::regs::Slot;
use super::tensor::{TensorMap, TensorType};
use super::types::Ty;
use super::warp::Warp;
use crate::error::Result;

/// A copy of a box.
pub struct TensorCopy {
    way: Way,
    map: Addr,
    coords: Box<[Slot]>,
    /// Where the box lies in shared memory.
    shared: Addr,
    bar: Option<Addr>,
    mask: Option<Slot>,
    reduce: Option<AtomOp>,
}

/// After `cp.async.bulk.tensor`, `cp.async.bulk.prefetch.tensor` or with `.reduce`.
pub fn decode(cx: &mut Cx, reduce: bool, prefetch: bool) -> Result<Op> {
    let ranks: [(&str, usize); 5] = [("1d", 1), ("2d", 2), ("3d", 3), ("4d", 4), ("5d", 5)];
    let rank = cx.one_of(&ranks)?;
    if prefetch {
        cx.require("L2")?;
        cx.require("global")?;
        cx.accept("tile");
        let hint = cx.cache_hint();
        cx.count(1 + hint as usize)?;
        coordinates(cx, 0, rank)?;
        policy(cx, hint)?;
        return Ok(Op::Nop);
    }
    let way = way(cx)?;
    if way == Way::Across || reduce && way != Way::Store {
        return cx.err(
            "tensors are copied between global and shared memory",
            "see the ISA's list of forms",
        );
    }
    let reduce = match reduce {
        true => Some(atomic::tensor_reduction(cx)?),
        false => None,
    };
    if matches!(cx.peek(), Some("im2col" | "im2col_no_offs")) {
        return cx.err("im2col mode is not simulated", "use .tile");
    }
    cx.accept("tile");
    let multicast = completion(cx, way)?;
    let hint = cx.cache_hint();
    cx.uses().ordered |= reduce.is_some();
    if way == Way::Store {
        cx.count(2 + hint as usize)?;
        let (map, coords) = coordinates(cx, 0, rank)?;
        let shared = cx.addr(1, Space::Shared)?;
        policy(cx, hint)?;
        return Ok(Op::Tensor(TensorCopy {
            way,
            map,
            coords,
            shared,
            bar: None,
            mask: None,
            reduce,
        }));
    }
    cx.count(3 + multicast as usize + hint as usize)?;
    let shared = cx.addr(0, Space::Shared)?;
    let (map, coords) = coordinates(cx, 1, rank)?;
    let bar = Some(cx.addr(2, Space::Shared)?);
    let mask = if multicast {
        Some(cx.src(3, Ty::B16)?)
    } else {
        None
    };
    policy(cx, hint)?;
    Ok(Op::Tensor(TensorCopy {
        way,
        map,
        coords,
        shared,
        bar,
        mask,
        reduce,
    }))
}

fn bad(what: impl Into<String>, help: &str) -> Box<Trouble> {
    trouble(FaultKind::Tensor, what, help)
}

/// The tensor map at a generic address.
fn map_at(m: &Machine, at: u64) -> Outcome<TensorMap> {
    if !at.is_multiple_of(64) {
        return Err(bad(
            "a tensor map at an address that is no multiple of 64",
            "declare it with .align 64",
        )
        .at(at));
    }
    let mut block = [0; 128];
    match resolve(Space::Generic, at) {
        (Space::Param, offset) => copy_block(&mut block, m.env.params, offset)?,
        (Space::Const, offset) => copy_block(&mut block, m.env.constants, offset)?,
        (Space::Global, at) => {
            let mut span = Span::default();
            for i in 0..16 {
                let word = m.env.global.load(at + 8 * i, 8, &mut span)?;
                block[8 * i as usize..][..8].copy_from_slice(&word.to_le_bytes());
            }
        }
        _ => {
            return Err(bad(
                "a tensor map in shared or local memory",
                "keep it in a parameter",
            )
            .at(at));
        }
    }
    TensorMap::decode(&block).map_err(|error| {
        let help = error.help.unwrap_or_default();
        trouble(FaultKind::Tensor, error.message, help).at(at)
    })
}

fn copy_block(block: &mut [u8; 128], from: &[u8], offset: u64) -> Outcome {
    match from.get(offset as usize..offset as usize + 128) {
        Some(bytes) => {
            block.copy_from_slice(bytes);
            Ok(())
        }
        None => Err(bad(
            "a tensor map reaches past its memory",
            "declare 128 bytes",
        )),
    }
}

/// What an element outside the tensor reads as.
fn fill(map: &TensorMap) -> u64 {
    match (map.nan, map.dtype) {
        (false, _) => 0,
        (true, TensorType::F16) => 0x7fff,
        (true, TensorType::Bf16) => 0x7fff,
        (true, TensorType::F32) => 0x7fff_ffff,
        (true, _) => 0x7fff_ffff_ffff_ffff,
    }
}

/// The address of each element of a row of the box, and whether it is inside the tensor.
struct Rows<'a> {
    map: &'a TensorMap,
    coords: &'a [i64],
}

impl Rows<'_> {
    fn count(&self) -> u64 {
        (1..self.coords.len())
            .map(|i| self.map.extent(i) as u64)
            .product()
    }

    /// Where row `index` begins if its outer coordinates are inside.
    fn start(&self, mut index: u64) -> Option<u64> {
        let mut at = self.map.address;
        for i in 1..self.coords.len() {
            let extent = self.map.extent(i) as u64;
            let step = (index % extent) as i64 * self.map.steps[i] as i64;
            index /= extent;
            let coordinate = self.coords[i] + step;
            if coordinate < 0 || coordinate as u64 >= self.map.sizes[i] {
                return None;
            }
            at = at.wrapping_add(coordinate as u64 * self.map.strides[i - 1]);
        }
        Some(at)
    }

    /// The address of element `i` of a row.
    fn element(&self, start: Option<u64>, i: u32) -> Option<u64> {
        let coordinate = self.coords[0] + i as i64;
        let inside = coordinate >= 0 && (coordinate as u64) < self.map.sizes[0];
        let bytes = self.map.dtype.bytes() as u64;
        start
            .filter(|_| inside)
            .map(|at| at.wrapping_add(coordinate as u64 * bytes))
    }
}

/// Executes the copy of a lane; whether it was a store.
pub fn one(m: &mut Machine, warp: &mut Warp, op: &TensorCopy, lane: usize) -> Outcome<bool> {
    let map = map_at(m, op.map.lane(&warp.regs, lane))?;
    if map.sizes.len() != op.coords.len() {
        let what = format!(
            "a tensor of {} dimensions, with {} coordinates",
            map.sizes.len(),
            op.coords.len()
        );
        return Err(bad(what, "use the instruction of its rank"));
    }
    let coords: Vec<i64> = op
        .coords
        .iter()
        .map(|s| warp.regs[*s as usize].0[lane] as i32 as i64)
        .collect();
    let shared = op.shared.lane(&warp.regs, lane);
    if !shared.is_multiple_of(128) {
        let what = "a box in shared memory at an address that is no multiple of 128";
        return Err(trouble(
            FaultKind::Misaligned,
            what,
            "align it to 128 bytes, to 1024 where it is swizzled",
        )
        .at(shared));
    }
    let outside = (0..coords.len()).any(|i| {
        let (at, size) = (coords[i], map.sizes[i] as i64);
        at >= size || at + map.boxes[i] as i64 <= 0
    });
    if outside {
        let what = format!(
            "a box at {coords:?} lies outside the tensor of sizes {:?}",
            map.sizes
        );
        return Err(bad(
            what,
            "check the coordinates: the innermost dimension comes first",
        ));
    }
    let rows = Rows {
        map: &map,
        coords: &coords,
    };
    match op.way {
        Way::Store => store(m, warp, op, lane, &rows, shared)?,
        _ => load(m, warp, op, lane, &rows, shared)?,
    }
    Ok(op.way == Way::Store)
}

fn load(
    m: &mut Machine,
    warp: &Warp,
    op: &TensorCopy,
    lane: usize,
    rows: &Rows,
    shared: u64,
) -> Outcome {
    let (map, size) = (rows.map, rows.map.dtype.bytes());
    let (mut span, filled) = (Span::default(), fill(map));
    let mut data = Vec::with_capacity(map.box_bytes() as usize);
    let mut inside = 0;
    for row in 0..rows.count() {
        let start = rows.start(row);
        for i in 0..map.boxes[0] {
            let word = match rows.element(start, i) {
                Some(at) => {
                    inside += size as u64;
                    m.env.global.load(at, size, &mut span)?
                }
                None => filled,
            };
            data.extend_from_slice(&word.to_le_bytes()[..size as usize]);
        }
    }
    m.report.global_loaded += inside;
    m.report.global_sectors += inside.div_ceil(32);
    m.report.global_sectors_least += inside.div_ceil(32);
    let chunks: Vec<(u64, Vec<u8>)> = (data.chunks(16).enumerate())
        .map(|(i, chunk)| {
            (
                map.swizzle.apply(shared + 16 * i as u64) - shared,
                chunk.to_vec(),
            )
        })
        .collect();
    deliver(m, warp, lane, (shared, op.bar), op.mask, &chunks)
}

fn store(
    m: &mut Machine,
    warp: &Warp,
    op: &TensorCopy,
    lane: usize,
    rows: &Rows,
    shared: u64,
) -> Outcome {
    let (map, size) = (rows.map, rows.map.dtype.bytes() as usize);
    let total = map.box_bytes();
    let raw = read_shared(m, warp, lane, shared, total.next_multiple_of(16))?;
    let mut data = vec![0; raw.len()];
    for (i, chunk) in data.chunks_mut(16).enumerate() {
        let from = (map.swizzle.apply(shared + 16 * i as u64) - shared) as usize;
        chunk.copy_from_slice(&raw[from..from + 16]);
    }
    let mut span = Span::default();
    let mut inside = 0;
    for row in 0..rows.count() {
        let start = rows.start(row);
        for i in 0..map.boxes[0] {
            let Some(at) = rows.element(start, i) else {
                continue;
            };
            let from = (row as usize * map.boxes[0] as usize + i as usize) * size;
            let bytes = &data[from..from + size];
            inside += size as u64;
            match op.reduce {
                Some(reduce) => reduce_one(m, at, bytes, reduce.of(map.dtype)?)?,
                None => {
                    let mut word = [0; 8];
                    word[..size].copy_from_slice(bytes);
                    m.env
                        .global
                        .store(at, size as u32, u64::from_le_bytes(word), &mut span)?;
                }
            }
        }
    }
    m.report.global_stored += inside;
    m.report.global_sectors += inside.div_ceil(32);
    m.report.global_sectors_least += inside.div_ceil(32);
    Ok(())
}
