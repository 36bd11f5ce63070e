//! Matrix products of a warp (PTX ISA, "Matrix Fragments for mma.m16n8k16 …", `mma.sync`)
//! and the transposition of a matrix in registers (`movmatrix`).
//!
//! Fragments follow one rule: a register holds `p` elements of a row. With `g = lane / 4`
//! and `t = lane % 4`, register `r` of A has row `g + 8 (r % 2)` (of 16 rows) and columns
//! from `t p + 4 p (r / 2)` on; of B rows from `t p + 4 p r` on and column `g`; of C and D
//! row `g + 8 (r / 2)` and column `2 t + r % 2`.
//!
//! Sums go over k in ascending order, each product exact (of tf32 and smaller formats in
//! f32) and each sum rounded to f32; results in f16 are rounded once. Hardware's order is
//! not documented: unconfirmed.

use super::decode::Cx;
use super::float::{Format, canonical, canonical64, from_bf16, from_f16, to_f16};
use super::op::Op;
use super::regs::{ALL, Alu, LANES, Reg, Slot, Value, store_words};
use super::report::Class;
use super::types::{Kind, Ty};
use crate::error::Result;
use std::sync::LazyLock;

static E4M3: LazyLock<[f32; 256]> =
    LazyLock::new(|| std::array::from_fn(|i| Format::E4M3.decode(i as u32)));
static E5M2: LazyLock<[f32; 256]> =
    LazyLock::new(|| std::array::from_fn(|i| Format::E5M2.decode(i as u32)));

/// Element `i` of a word of elements of `ty`, as f32.
#[inline(always)]
pub fn element(ty: Ty, word: u32, i: u32) -> f32 {
    match ty {
        Ty::F16 => from_f16((word >> (16 * i)) as u16),
        Ty::Bf16 => from_bf16((word >> (16 * i)) as u16),
        // The low bits take no part.
        Ty::Tf32 => f32::from_bits(word & !0x1fff),
        Ty::E4m3 => E4M3[(word >> (8 * i)) as usize & 0xff],
        _ => E5M2[(word >> (8 * i)) as usize & 0xff],
    }
}

/// Byte `i` of a word as an integer.
pub fn byte(ty: Ty, word: u32, i: u32) -> i32 {
    let byte = (word >> (8 * i)) as u8;
    if ty == Ty::S8 {
        byte as i8 as i32
    } else {
        byte as i32
    }
}

pub fn decode(cx: &mut Cx) -> Result<Op> {
    cx.class = Class::Matrix;
    cx.require("sync")?;
    cx.require("aligned")?;
    cx.aligned();
    match cx.i.name {
        "mma" => product(cx),
        _ => {
            cx.need(75, 78)?;
            for word in ["m8n8", "trans", "b16"] {
                cx.require(word)?;
            }
            cx.count(2)?;
            let (d, a) = (cx.dst(0, Ty::B32)?, cx.src(1, Ty::B32)?);
            Ok(Op::Matrix(transpose(d, a), 0))
        }
    }
}

/// `movmatrix`: lane `4 i + j` holds elements `2 j`, `2 j + 1` of row `i`.
fn transpose(d: Slot, a: Slot) -> Alu {
    Box::new(move |regs, mask| {
        let words = regs[a as usize].0;
        let half =
            |row: usize, column: usize| words[row * 4 + column / 2] >> (16 * (column % 2)) & 0xffff;
        let out = std::array::from_fn(|lane| {
            let (row, column) = (lane / 4, lane % 4 * 2);
            half(column, row) | half(column + 1, row) << 16
        });
        store_words(&mut regs[d as usize], &out, mask);
    })
}

/// Rows of A and its columns; B has 8 columns.
struct Shape {
    m: usize,
    k: usize,
}

fn product(cx: &mut Cx) -> Result<Op> {
    let shape = cx.one_of(&[
        ("m16n8k4", (16, 4)),
        ("m16n8k8", (16, 8)),
        ("m16n8k16", (16, 16)),
        ("m16n8k32", (16, 32)),
        ("m8n8k4", (8, 4)),
        ("m8n8k16", (8, 16)),
    ])?;
    let (m, k) = shape;
    cx.require("row")?;
    cx.require("col")?;
    let saturate = cx.accept("satfinite");
    let sums = [Ty::F32, Ty::F16, Ty::S32, Ty::F64];
    let factors = [
        Ty::F16,
        Ty::Bf16,
        Ty::Tf32,
        Ty::E4m3,
        Ty::E5m2,
        Ty::S8,
        Ty::U8,
        Ty::F64,
    ];
    let d = cx.ty(&sums)?;
    let (a, b) = (cx.ty(&factors)?, cx.ty(&factors)?);
    cx.ty(&[d])?;
    let bytes = |ty| matches!(ty, Ty::S8 | Ty::U8);
    let floats = |ty| matches!(ty, Ty::E4m3 | Ty::E5m2);
    let known = match (m, k, a) {
        (16, 8 | 16, Ty::F16) if a == b && matches!(d, Ty::F32 | Ty::F16) => {
            (75 + 5 * (k == 16) as u32, 65)
        }
        (16, 8 | 16, Ty::Bf16) if a == b && d == Ty::F32 => (80, 70),
        (16, 4 | 8, Ty::Tf32) if a == b && d == Ty::F32 => (80, 70),
        (16, 32, _) if floats(a) && floats(b) && d == Ty::F32 => (89, 84),
        (16, 16 | 32, _) | (8, 16, _) if bytes(a) && bytes(b) && d == Ty::S32 => (80, 70),
        (8, 4, Ty::F64) if a == b && d == Ty::F64 => (80, 70),
        _ => {
            return cx.err(
                "no such shape of these types, or not one that is simulated",
                "see ARCHITECTURE.md",
            );
        }
    };
    cx.need(known.0, known.1)?;
    if saturate && d != Ty::S32 {
        return cx.err(".satfinite belongs to integers", "take it out");
    }
    cx.count(4)?;
    let shape = Shape { m, k };
    let flops = 2 * (m * 8 * k) as u64;
    match d {
        Ty::F64 => Ok(Op::Matrix(double(cx)?, flops)),
        _ => Ok(Op::Matrix(single(cx, shape, (a, b, d), saturate)?, flops)),
    }
}

fn double(cx: &mut Cx) -> Result<Alu> {
    let d = cx.dst_parts(0, 2, Ty::F64)?;
    let a = cx.src_parts(1, 1, Ty::F64)?[0];
    let b = cx.src_parts(2, 1, Ty::F64)?[0];
    let c = cx.src_parts(3, 2, Ty::F64)?;
    Ok(Box::new(move |regs, _| {
        let (a, b) = (f64::load(regs, a), f64::load(regs, b));
        let c = [f64::load(regs, c[0]), f64::load(regs, c[1])];
        for (r, slot) in d.iter().enumerate() {
            let out = std::array::from_fn(|lane| {
                let (row, column) = (lane / 4, lane % 4 * 2 + r);
                let sum = (0..4).fold(c[r][lane], |sum, k| {
                    a[row * 4 + k].mul_add(b[column * 4 + k], sum)
                });
                canonical64(sum)
            });
            f64::store(regs, *slot, &out, ALL);
        }
    }))
}

/// The slots of a product's operands.
struct Slots {
    d: Box<[Slot]>,
    a: Box<[Slot]>,
    b: Box<[Slot]>,
    c: Box<[Slot]>,
}

fn single(cx: &mut Cx, shape: Shape, (a, b, d): (Ty, Ty, Ty), saturate: bool) -> Result<Alu> {
    // A's elements are as wide as B's.
    let per = 32 / a.bits() as usize;
    let (na, nb) = (shape.m * shape.k / 32 / per, 8 * shape.k / 32 / per);
    let halves = d == Ty::F16;
    let n = shape.m / 8 * if halves { 1 } else { 2 };
    let packed = |ty| match ty {
        Ty::F16 => Ty::F16x2,
        _ => Ty::B32,
    };
    let result = if halves { Ty::F16x2 } else { d };
    let slots = Slots {
        d: cx.dst_parts(0, n, result)?,
        a: cx.src_parts(1, na, packed(a))?,
        b: cx.src_parts(2, nb, packed(b))?,
        c: cx.src_parts(3, n, result)?,
    };
    Ok(match a.kind() {
        Kind::Signed | Kind::Unsigned => {
            Box::new(move |regs, _| integers(regs, &shape, &slots, (a, b), saturate))
        }
        _ => Box::new(move |regs, _| floats(regs, &shape, &slots, (a, b), halves)),
    })
}

/// Elements of A and B at their rows and columns: A row by row, B by k, 8 columns each.
fn gather<T: Copy + Default>(
    regs: &[Reg],
    shape: &Shape,
    slots: &Slots,
    per: usize,
    (a, b): (impl Fn(u32, u32) -> T, impl Fn(u32, u32) -> T),
) -> ([[T; 32]; 16], [[T; 8]; 32]) {
    let mut left = [[T::default(); 32]; 16];
    let mut right = [[T::default(); 8]; 32];
    for lane in 0..LANES {
        let (g, t) = (lane / 4, lane % 4);
        for (r, slot) in slots.a.iter().enumerate() {
            let (half, step) = if shape.m == 16 {
                (r % 2, r / 2)
            } else {
                (0, r)
            };
            let word = regs[*slot as usize].0[lane];
            for i in 0..per {
                left[g + 8 * half][t * per + 4 * per * step + i] = a(word, i as u32);
            }
        }
        for (r, slot) in slots.b.iter().enumerate() {
            let word = regs[*slot as usize].0[lane];
            for i in 0..per {
                right[t * per + 4 * per * r + i][g] = b(word, i as u32);
            }
        }
    }
    (left, right)
}

/// A's and B's elements, by row and column.
type Elements = ([[f32; 32]; 16], [[f32; 8]; 32]);

/// The elements as f32; the type is known in each arm, so that no element asks for it.
fn elements(regs: &[Reg], shape: &Shape, slots: &Slots, (a, b): (Ty, Ty)) -> Elements {
    macro_rules! of {
        ($ty:expr, $per:expr) => {{
            let read = |w, i| element($ty, w, i);
            gather(regs, shape, slots, $per, (read, read))
        }};
    }
    match a {
        Ty::F16 => of!(Ty::F16, 2),
        Ty::Bf16 => of!(Ty::Bf16, 2),
        Ty::Tf32 => of!(Ty::Tf32, 1),
        _ => gather(
            regs,
            shape,
            slots,
            4,
            (|w, i| element(a, w, i), |w, i| element(b, w, i)),
        ),
    }
}

/// `sums += left * right`
fn accumulate(elements: &Elements, shape: &Shape, sums: &mut [[f32; 8]; 16]) {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has what the function is compiled for.
        unsafe { accumulate_wide(elements, shape, sums) };
        return;
    }
    accumulate_rows(elements, shape, sums);
}

/// # Safety
/// The processor must have AVX2.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
unsafe fn accumulate_wide(elements: &Elements, shape: &Shape, sums: &mut [[f32; 8]; 16]) {
    accumulate_rows(elements, shape, sums);
}

#[inline(always)]
fn accumulate_rows((left, right): &Elements, shape: &Shape, sums: &mut [[f32; 8]; 16]) {
    for (row, sums) in left.iter().zip(sums).take(shape.m) {
        // A row's sums stay in registers.
        let mut row_sums = *sums;
        for (a, right) in row[..shape.k].iter().zip(right) {
            for i in 0..8 {
                row_sums[i] += a * right[i];
            }
        }
        *sums = row_sums;
    }
}

fn floats(regs: &mut [Reg], shape: &Shape, slots: &Slots, types: (Ty, Ty), halves: bool) {
    let factors = elements(regs, shape, slots, types);
    let mut sums = [[0f32; 8]; 16];
    for lane in 0..LANES {
        let (g, t) = (lane / 4, lane % 4);
        for (r, slot) in slots.c.iter().enumerate() {
            let word = regs[*slot as usize].0[lane];
            if halves {
                sums[g + 8 * r][2 * t] = from_f16(word as u16);
                sums[g + 8 * r][2 * t + 1] = from_f16((word >> 16) as u16);
            } else {
                sums[g + 8 * (r / 2)][2 * t + r % 2] = f32::from_bits(word);
            }
        }
    }
    accumulate(&factors, shape, &mut sums);
    for (r, slot) in slots.d.iter().enumerate() {
        let words = std::array::from_fn(|lane| {
            let (g, t) = (lane / 4, lane % 4);
            if halves {
                let one = |i: usize| to_f16(sums[g + 8 * r][2 * t + i] as f64) as u32;
                one(0) | one(1) << 16
            } else {
                canonical(sums[g + 8 * (r / 2)][2 * t + r % 2]).to_bits()
            }
        });
        store_words(&mut regs[*slot as usize], &words, ALL);
    }
}

fn integers(regs: &mut [Reg], shape: &Shape, slots: &Slots, (a, b): (Ty, Ty), saturate: bool) {
    let read = (|w, i| byte(a, w, i), |w, i| byte(b, w, i));
    let (left, right) = gather(regs, shape, slots, 4, read);
    let mut out = [[0u32; LANES]; 4];
    for (r, slot) in slots.c.iter().enumerate() {
        let before = regs[*slot as usize].0;
        for (lane, out) in out[r].iter_mut().enumerate() {
            let (row, column) = (lane / 4 + 8 * (r / 2), lane % 4 * 2 + r % 2);
            let sum = (0..shape.k).map(|k| left[row][k] as i64 * right[k][column] as i64);
            let total = sum.sum::<i64>() + before[lane] as i32 as i64;
            let clamped = total.clamp(i32::MIN as i64, i32::MAX as i64);
            *out = if saturate { clamped } else { total } as u32;
        }
    }
    for (r, slot) in slots.d.iter().enumerate() {
        store_words(&mut regs[*slot as usize], &out[r], ALL);
    }
}
