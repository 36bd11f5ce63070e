//! Matrix products of a warpgroup (PTX ISA, "Asynchronous Warpgroup Level Matrix
//! Instructions"): decoding, operands in registers, groups and waits.
//!
//! A warp computes its 16 of the 64 rows when it issues the instruction. The registers
//! then count as unwritten until the wait, and shared memory that was read as still being
//! read by the warp's agent: whoever does not wait meets a fault. Sums are those of
//! `mma.rs`.

use super::ast::Operand;
use super::decode::Cx;
use super::exec::{Flow, Machine};
use super::fault::{FaultKind, Outcome, trouble};
use super::float::{canonical, from_f16, to_f16};
use super::mma::{byte, element};
use super::op::Op;
use super::order::having_seen;
use super::regs::{ALL, LANES, Slot, lanes, predicate, store_words};
use super::report::Class;
use super::shared::Reader;
use super::types::Ty;
use super::warp::Warp;
use super::wgmma_desc::{Descriptor, Major, load};
use crate::error::Result;
use std::rc::Rc;

/// `wgmma.mma_async`
pub struct Wgmma {
    n: usize,
    k: usize,
    /// Types of A, B and D.
    a: Ty,
    b: Ty,
    d: Ty,
    saturate: bool,
    /// Accumulators.
    acc: Box<[Slot]>,
    left: Left,
    right: (Slot, Major),
    scale_d: (Slot, bool),
    negate: (bool, bool),
}

/// Where A is.
enum Left {
    Registers(Box<[Slot]>),
    Shared(Slot, Major),
}

/// What a warp has in flight.
#[derive(Default)]
pub struct Flight {
    /// Registers of wgmma since the last commit.
    open: Vec<Slot>,
    /// Committed groups, oldest first: their registers, and when they were committed.
    groups: Vec<(Vec<Slot>, u32)>,
    /// For each slot how many instructions in flight use it.
    pub users: Vec<u16>,
    /// Those in flight.
    pub count: u32,
    /// For each slot the instruction that wrote it last, counted in the warp; of wgmma
    /// itself nothing.
    pub written: Vec<u64>,
    /// The same of the last `wgmma.fence`.
    fence: u64,
    /// Instructions of the warp.
    pub step: u64,
}

pub fn decode(cx: &mut Cx) -> Result<Op> {
    cx.class = Class::Matrix;
    cx.need_hopper()?;
    cx.need(90, 80)?;
    cx.uses().wgmma = true;
    let what = cx.one_of(&[
        ("mma_async", 0u8),
        ("fence", 1),
        ("commit_group", 2),
        ("wait_group", 3),
    ])?;
    cx.require("sync")?;
    cx.require("aligned")?;
    cx.aligned();
    match what {
        0 => product(cx),
        1 => {
            cx.count(0)?;
            Ok(Op::WgmmaFence)
        }
        2 => {
            cx.count(0)?;
            Ok(Op::WgmmaCommit)
        }
        _ => {
            cx.count(1)?;
            Ok(Op::WgmmaWait(cx.known_in(0, 0..=7)? as u32))
        }
    }
}

/// `m64nNkK`
fn shape(cx: &mut Cx) -> Result<(usize, usize)> {
    let parse = |word: &str| -> Option<(usize, usize)> {
        let (n, k) = word.strip_prefix("m64n")?.split_once('k')?;
        Some((n.parse().ok()?, k.parse().ok()?))
    };
    let word = cx.peek().unwrap_or("");
    match parse(word) {
        Some((n, k)) if n % 8 == 0 && (8..=256).contains(&n) => {
            cx.accept(word);
            Ok((n, k))
        }
        _ => cx.err(
            "a shape .m64nNkK must follow, N a multiple of 8 up to 256",
            "see the ISA's shapes",
        ),
    }
}

fn product(cx: &mut Cx) -> Result<Op> {
    let (n, k) = shape(cx)?;
    let saturate = cx.accept("satfinite");
    let d = cx.ty(&[Ty::F32, Ty::F16, Ty::S32])?;
    let factors = [
        Ty::F16,
        Ty::Bf16,
        Ty::Tf32,
        Ty::E4m3,
        Ty::E5m2,
        Ty::S8,
        Ty::U8,
    ];
    let (a, b) = (cx.ty(&factors)?, cx.ty(&factors)?);
    let bytes = |ty| matches!(ty, Ty::S8 | Ty::U8);
    let small = |ty| matches!(ty, Ty::E4m3 | Ty::E5m2);
    let known = match a {
        Ty::F16 => a == b && d != Ty::S32 && k == 16,
        Ty::Bf16 => a == b && d == Ty::F32 && k == 16,
        Ty::Tf32 => a == b && d == Ty::F32 && k == 8,
        _ if small(a) => small(b) && d != Ty::S32 && k == 32,
        // Integers have no odd multiples of 8 beyond 24.
        _ => bytes(b) && d == Ty::S32 && k == 32 && (n <= 32 || n % 16 == 0),
    };
    if !known || saturate && d != Ty::S32 {
        return cx.err(
            "no such product of these types",
            "see the ISA's shapes and types",
        );
    }
    let halves = matches!(a, Ty::F16 | Ty::Bf16);
    let registers = matches!(cx.operand(1)?, Operand::Vector(_));
    let immediates = if d == Ty::S32 {
        0
    } else {
        2 + halves as usize * (2 - registers as usize)
    };
    cx.count(4 + immediates)?;
    let (count, result) = match d {
        Ty::F16 => (n / 4, Ty::F16x2),
        _ => (n / 2, d),
    };
    let parts = cx.parts(0, count)?;
    // They are read or not as scale-d says, and written later: checked when executed.
    let acc: Box<[Slot]> = (parts.iter())
        .map(|part| {
            let slot = cx.read(part, result, Ty::stands_for)?;
            cx.reads.pop();
            Ok(slot)
        })
        .collect::<Result<_>>()?;
    let packed = if a == Ty::F16 { Ty::F16x2 } else { Ty::B32 };
    let immediate = |i: usize, cx: &Cx| match immediates {
        0 => Ok(false),
        _ => match cx.known(i)? {
            1 => Ok(false),
            -1 => Ok(true),
            v => cx.err(format!("a scale of {v}"), "1 or -1"),
        },
    };
    let major = |i: usize, cx: &Cx| match halves && cx.known_in(i, 0..=1)? == 1 {
        true => Ok(Major::Mn),
        false => Ok::<Major, crate::error::Error>(Major::K),
    };
    let left = match registers {
        true => Left::Registers(cx.src_parts(1, 4, packed)?),
        false => Left::Shared(cx.src(1, Ty::B64)?, major(6, cx)?),
    };
    let right = (cx.src(2, Ty::B64)?, major(7 - registers as usize, cx)?);
    let scale_d = cx.pred(3)?;
    let negate = (immediate(4, cx)?, immediate(5, cx)?);
    cx.granule(16);
    Ok(Op::Wgmma(Wgmma {
        n,
        k,
        a,
        b,
        d,
        saturate,
        acc,
        left,
        right,
        scale_d,
        negate,
    }))
}

/// Rows of A of a warp, and rows of B by k: `n` columns each. Bytes as f32 too.
struct Factors {
    left: Vec<[f32; 32]>,
    right: Vec<f32>,
}

/// Executes `wgmma.mma_async`.
pub fn issue(m: &mut Machine, warp: &mut Warp, op: &Wgmma) -> Outcome {
    let threads: u32 = warp.place.ntid.iter().product();
    if (warp.index / 4 * 4 + 4) * 32 > threads {
        let what = "the warpgroup has fewer than 128 threads";
        return Err(trouble(
            FaultKind::Divergent,
            what,
            "launch blocks of whole warpgroups",
        ));
    }
    let (slot, negated) = op.scale_d;
    let bits = predicate(&warp.regs, slot) ^ if negated { u32::MAX } else { 0 };
    if bits != 0 && bits != ALL {
        let what = "scale-d differs between lanes";
        return Err(trouble(
            FaultKind::Divergent,
            what,
            "use one value in the whole warpgroup",
        ));
    }
    let add = bits != 0;
    check_registers(warp, op, add)?;
    let factors = factors(m, warp, op)?;
    let mut sums = vec![0f32; 16 * op.n];
    if op.d == Ty::S32 {
        integers(warp, op, &factors, add);
    } else {
        if add {
            gather(warp, op, &mut sums);
        }
        multiply(&factors, op.k, op.n, &mut sums);
        scatter(warp, op, &sums);
    }
    m.report.mma_flops += (2 * 16 * op.n * op.k) as u64;
    m.ctas[warp.rank].issued[warp.index as usize] += 1;
    let flight = &mut warp.flight;
    let registers = match &op.left {
        Left::Registers(slots) => &slots[..],
        Left::Shared(..) => &[],
    };
    for slot in op.acc.iter() {
        warp.defined[*slot as usize] = 0;
    }
    for slot in op.acc.iter().chain(registers) {
        flight.users[*slot as usize] += 1;
        flight.open.push(*slot);
    }
    flight.count += 1;
    Ok(())
}

/// Accumulators and A must be fenced since something else wrote them, and the former must
/// have been written if they are added to.
fn check_registers(warp: &Warp, op: &Wgmma, add: bool) -> Outcome {
    let flight = &warp.flight;
    let registers = match &op.left {
        Left::Registers(slots) => &slots[..],
        Left::Shared(..) => &[],
    };
    let fenced = |slot: &Slot| flight.written[*slot as usize] < flight.fence;
    let unfenced = op.acc.iter().chain(registers).find(|slot| !fenced(slot));
    if flight.fence == 0 || unfenced.is_some() {
        let what = "registers of wgmma were written since the last wgmma.fence";
        let help = "wgmma.fence after the last write to accumulators and A, before the wgmma";
        return Err(trouble(FaultKind::MissingFence, what, help));
    }
    let flying = |slot: &Slot| flight.users[*slot as usize] > 0;
    let unknown = |slot: &&Slot| warp.defined[**slot as usize] != ALL && !flying(slot);
    if add && op.acc.iter().any(|slot| unknown(&slot)) {
        let what = "accumulators are added to that nothing wrote";
        return Err(trouble(
            FaultKind::Uninitialised,
            what,
            "set them, or make scale-d false at first",
        ));
    }
    Ok(())
}

fn factors(m: &mut Machine, warp: &Warp, op: &Wgmma) -> Outcome<Factors> {
    let mut left = vec![[0f32; 32]; 16];
    let first = (warp.index % 4) as usize * 16;
    let rows = match &op.left {
        Left::Registers(slots) => from_registers(warp, slots),
        Left::Shared(slot, major) => {
            let desc = descriptor(warp, *slot)?;
            load(m, warp, &desc, *major, first..first + 16)?
        }
    };
    widen(op.a, op.negate.0, &rows, |row, k, value| {
        left[row][k] = value
    });
    let desc = descriptor(warp, op.right.0)?;
    let columns = load(m, warp, &desc, op.right.1, 0..op.n)?;
    let mut right = vec![0f32; op.n * op.k];
    widen(op.b, op.negate.1, &columns, |column, k, value| {
        right[k * op.n + column] = value
    });
    Ok(Factors { left, right })
}

/// Rows of A from their fragments: words of 32 bytes along k.
fn from_registers(warp: &Warp, slots: &[Slot]) -> Vec<[u32; 8]> {
    let mut rows = vec![[0; 8]; 16];
    for (r, slot) in slots.iter().enumerate() {
        for lane in 0..LANES {
            rows[lane / 4 + 8 * (r % 2)][lane % 4 + 4 * (r / 2)] =
                warp.regs[*slot as usize].0[lane];
        }
    }
    rows
}

/// Tells `put` of every element of rows, as f32: row, k, value.
fn widen(ty: Ty, negate: bool, rows: &[[u32; 8]], put: impl FnMut(usize, usize, f32)) {
    match ty {
        Ty::F16 => each(rows, 2, negate, |w, i| element(Ty::F16, w, i), put),
        Ty::Bf16 => each(rows, 2, negate, |w, i| element(Ty::Bf16, w, i), put),
        Ty::Tf32 => each(rows, 1, negate, |w, i| element(Ty::Tf32, w, i), put),
        Ty::S8 | Ty::U8 => each(rows, 4, negate, |w, i| byte(ty, w, i) as f32, put),
        _ => each(rows, 4, negate, |w, i| element(ty, w, i), put),
    }
}

/// The same with `per` elements a word.
fn each(
    rows: &[[u32; 8]],
    per: usize,
    negate: bool,
    value: impl Fn(u32, u32) -> f32,
    mut put: impl FnMut(usize, usize, f32),
) {
    for (row, words) in rows.iter().enumerate() {
        for (i, word) in words.iter().enumerate() {
            for part in 0..per {
                let value = value(*word, part as u32);
                put(row, i * per + part, if negate { -value } else { value });
            }
        }
    }
}

fn descriptor(warp: &Warp, slot: Slot) -> Outcome<Descriptor> {
    let (low, high) = (&warp.regs[slot as usize].0, &warp.regs[slot as usize + 1].0);
    if low.iter().any(|w| *w != low[0]) || high.iter().any(|w| *w != high[0]) {
        let what = "a matrix descriptor differs between lanes";
        return Err(trouble(
            FaultKind::Tensor,
            what,
            "compute it alike in the whole warpgroup",
        ));
    }
    Descriptor::new(low[0] as u64 | (high[0] as u64) << 32)
}

/// Where register `r` of lane `lane` is in the warp's rows: row and column, of halves the
/// first of two.
fn place(r: usize, lane: usize, halves: bool) -> (usize, usize) {
    let (g, t) = (lane / 4, lane % 4);
    match halves {
        true => (g + 8 * (r % 2), 8 * (r / 2) + 2 * t),
        false => (g + 8 * (r / 2 % 2), 8 * (r / 4) + 2 * t + r % 2),
    }
}

fn gather(warp: &Warp, op: &Wgmma, sums: &mut [f32]) {
    let halves = op.d == Ty::F16;
    for (r, slot) in op.acc.iter().enumerate() {
        for lane in 0..LANES {
            let word = warp.regs[*slot as usize].0[lane];
            let (row, column) = place(r, lane, halves);
            if halves {
                sums[row * op.n + column] = from_f16(word as u16);
                sums[row * op.n + column + 1] = from_f16((word >> 16) as u16);
            } else {
                sums[row * op.n + column] = f32::from_bits(word);
            }
        }
    }
}

fn scatter(warp: &mut Warp, op: &Wgmma, sums: &[f32]) {
    let halves = op.d == Ty::F16;
    for (r, slot) in op.acc.iter().enumerate() {
        let words = std::array::from_fn(|lane| {
            let (row, column) = place(r, lane, halves);
            let at = row * op.n + column;
            if halves {
                to_f16(sums[at] as f64) as u32 | (to_f16(sums[at + 1] as f64) as u32) << 16
            } else {
                canonical(sums[at]).to_bits()
            }
        });
        store_words(&mut warp.regs[*slot as usize], &words, ALL);
    }
}

/// `sums += left * right`, in blocks that the compiler vectorises.
fn multiply(factors: &Factors, k: usize, n: usize, sums: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has what the function is compiled for.
        unsafe { multiply_wide(factors, k, n, sums) };
        return;
    }
    multiply_rows(factors, k, n, sums);
}

/// # Safety
/// The processor must have AVX2.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
unsafe fn multiply_wide(factors: &Factors, k: usize, n: usize, sums: &mut [f32]) {
    multiply_rows(factors, k, n, sums);
}

#[inline(always)]
fn multiply_rows(factors: &Factors, k: usize, n: usize, sums: &mut [f32]) {
    for (row, sums) in factors.left.iter().zip(sums.chunks_exact_mut(n)) {
        for (a, right) in row.iter().zip(factors.right.chunks_exact(n)).take(k) {
            for (sum, b) in sums.iter_mut().zip(right) {
                *sum += a * b;
            }
        }
    }
}

/// Products of bytes and their sums over k are exact in f32.
fn integers(warp: &mut Warp, op: &Wgmma, factors: &Factors, add: bool) {
    let mut sums = vec![0f32; 16 * op.n];
    multiply(factors, op.k, op.n, &mut sums);
    for (r, slot) in op.acc.iter().enumerate() {
        let old = warp.regs[*slot as usize].0;
        let words = std::array::from_fn(|lane| {
            let (row, column) = place(r, lane, false);
            let before = if add { old[lane] as i32 as i64 } else { 0 };
            let total = before + sums[row * op.n + column] as i64;
            let clamped = total.clamp(i32::MIN as i64, i32::MAX as i64);
            (if op.saturate { clamped } else { total }) as u32
        });
        store_words(&mut warp.regs[*slot as usize], &words, ALL);
    }
}

/// `wgmma.fence`
pub fn fence(warp: &mut Warp) {
    warp.flight.step += 1;
    warp.flight.fence = warp.flight.step;
}

/// `wgmma.commit_group`
pub fn commit(m: &mut Machine, warp: &mut Warp) {
    let now = m.tick();
    let open = std::mem::take(&mut warp.flight.open);
    warp.flight.groups.push((open, now));
}

/// `wgmma.wait_group N`: blocks until the warpgroup's other warps have issued as much.
pub fn wait(m: &mut Machine, warp: &mut Warp, left: u32) -> Outcome<Flow> {
    let first = warp.index as usize / 4 * 4;
    let issued = &m.ctas[warp.rank].issued;
    let mine = issued[warp.index as usize];
    if issued[first..(first + 4).min(issued.len())]
        .iter()
        .any(|n| *n < mine)
    {
        return Ok(Flow::Block(0));
    }
    let flight = &mut warp.flight;
    let done = flight.groups.len().saturating_sub(left as usize);
    let mut stamp = 0;
    for (slots, when) in flight.groups.drain(..done) {
        stamp = stamp.max(when);
        for slot in slots {
            flight.users[slot as usize] -= 1;
            if flight.users[slot as usize] == 0 {
                warp.defined[slot as usize] = ALL;
            }
        }
    }
    flight.count = flight.groups.len() as u32 + !flight.open.is_empty() as u32;
    if stamp > 0 {
        let agent = m.ctas[warp.rank].shared.agent(Reader::Wgmma(warp.index));
        let mut last: Option<(Rc<_>, Rc<_>)> = None;
        for lane in lanes(ALL) {
            let view = &mut warp.views[lane];
            let new = match &last {
                Some((from, to)) if Rc::ptr_eq(from, &view.clock) => Rc::clone(to),
                _ => {
                    let to = having_seen(&view.clock, agent, stamp);
                    last = Some((view.clock.clone(), to.clone()));
                    to
                }
            };
            view.clock = new;
        }
    }
    Ok(Flow::Next)
}
