//! Matrices of 8 x 8 halves between shared memory and registers (PTX ISA, `ldmatrix`,
//! `stmatrix`): lane `8 i + j` gives the address of row `j` of matrix `i`; lane `4 r + c`
//! holds elements `2 c` and `2 c + 1` of row `r`.

use super::access::{reader, resolve, shared_place};
use super::ast::Space;
use super::decode::Cx;
use super::exec::Machine;
use super::fault::Outcome;
use super::memory::misaligned;
use super::op::{Addr, Op};
use super::regs::{ALL, LANES, Slot, store_words};
use super::report::Class;
use super::shared::{Written, count_banks};
use super::types::Ty;
use super::warp::Warp;
use crate::error::Result;

/// `ldmatrix` or `stmatrix`.
pub struct Matrices {
    space: Space,
    addr: Addr,
    /// A register a matrix.
    slots: Box<[Slot]>,
    transposed: bool,
    store: bool,
}

pub fn decode(cx: &mut Cx) -> Result<Op> {
    cx.class = Class::Matrix;
    let store = cx.i.name == "stmatrix";
    match store {
        true => cx.need(90, 78)?,
        false => cx.need(75, 65)?,
    }
    for word in ["sync", "aligned", "m8n8"] {
        cx.require(word)?;
    }
    cx.aligned();
    let n = cx.one_of(&[("x1", 1), ("x2", 2), ("x4", 4)])?;
    let transposed = cx.accept("trans");
    let named = cx.choice(&[("shared", ()), ("shared::cta", ())]).is_some();
    let space = if named { Space::Shared } else { Space::Generic };
    cx.require("b16")?;
    cx.count(2)?;
    let addr = cx.addr(!store as usize, space)?;
    let slots = match store {
        true => cx.src_parts(1, n, Ty::B32)?,
        false => cx.dst_parts(0, n, Ty::B32)?,
    };
    cx.granule(16);
    Ok(Op::Matrices(Matrices {
        space,
        addr,
        slots,
        transposed,
        store,
    }))
}

/// Executes it.
pub fn matrices(m: &mut Machine, warp: &mut Warp, op: &Matrices) -> Outcome {
    let addrs = op.addr.lanes(&warp.regs);
    let now = m.now;
    for (i, slot) in op.slots.iter().enumerate() {
        let mut rows = [[0u16; 8]; 8];
        if op.store {
            rows = unpack(&warp.regs[*slot as usize].0, op.transposed);
        }
        for (j, row) in rows.iter_mut().enumerate() {
            let lane = 8 * i + j;
            let (space, at) = resolve(op.space, addrs[lane]);
            access(m, warp, (space, at), lane, row, op.store, now)
                .map_err(|t| t.lane(lane).at(at))?;
        }
        if !op.store {
            let words = pack(&rows, op.transposed);
            store_words(&mut warp.regs[*slot as usize], &words, ALL);
        }
    }
    let lanes = (u64::pow(2, 8 * op.slots.len() as u32) - 1) as u32;
    let places = addrs.map(|at| resolve(op.space, at).1);
    count_banks(&places, lanes, 16, &mut m.report);
    Ok(())
}

/// A row of 16 bytes, which every lane of a quad of the warp takes part in.
fn access(
    m: &mut Machine,
    warp: &Warp,
    (space, at): (Space, u64),
    lane: usize,
    row: &mut [u16; 8],
    store: bool,
    now: u32,
) -> Outcome {
    if at % 16 != 0 {
        return Err(misaligned(at, 16));
    }
    if space != Space::Shared {
        let help = "matrices lie in shared memory";
        let what = "an address outside shared memory";
        return Err(super::fault::trouble(
            super::fault::FaultKind::OutOfBounds,
            what,
            help,
        ));
    }
    let (rank, offset) = shared_place(m, warp, at, false)?;
    let (view, reader) = (&warp.views[lane], reader(warp, rank, lane));
    let shared = &mut m.ctas[rank].shared;
    if store {
        shared.write(offset, 16, view, view.agent, Written::Generic, now)?;
        (0..8).for_each(|i| shared.set(offset + 2 * i, 2, row[i as usize] as u64));
    } else {
        shared.read(offset, 16, view, reader, now)?;
        (0..8).for_each(|i| row[i as usize] = shared.get(offset + 2 * i, 2) as u16);
    }
    Ok(())
}

fn pack(rows: &[[u16; 8]; 8], transposed: bool) -> [u32; LANES] {
    let at = |r: usize, c: usize| if transposed { rows[c][r] } else { rows[r][c] } as u32;
    std::array::from_fn(|lane| {
        let (r, c) = (lane / 4, lane % 4 * 2);
        at(r, c) | at(r, c + 1) << 16
    })
}

fn unpack(words: &[u32; LANES], transposed: bool) -> [[u16; 8]; 8] {
    let at = |r: usize, c: usize| (words[r * 4 + c / 2] >> (16 * (c % 2))) as u16;
    std::array::from_fn(|r| std::array::from_fn(|c| if transposed { at(c, r) } else { at(r, c) }))
}
