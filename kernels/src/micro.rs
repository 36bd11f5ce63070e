//! The register tile that contractions and attention share: `mr` rows times
//! `nv` vectors of accumulators, fed by broadcast loads of A and vector loads
//! of B (Goto and van de Geijn 2008; tile sizes measured, DESIGN §5).
//!
//! Each result is one chain of fused multiply-adds over k in order, whatever
//! the tile: results do not depend on batch, tile or thread.

use crate::lower::{compute_elem, convert, memory_elem};
use crate::nest::LANES;
use crate::small::{self, is_small_float};
use kiln_codegen::emit::Cmp;
use kiln_codegen::{CpuTarget, Elem, Emitter, Ty, Val};
use kiln_ir::DType;

/// Tile sizes of a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tile {
    /// Lanes of a register for the accumulators' type.
    pub lanes: u32,
    /// Rows computed together at most.
    pub rows: u32,
    /// Registers for accumulators.
    registers: u32,
}

impl Tile {
    /// The tile for accumulators of `bytes` bytes: 6×4 vectors of 32 registers,
    /// 6×2 of 16.
    pub fn of(target: &CpuTarget, bytes: u32) -> Tile {
        Tile {
            lanes: target.vector_bits / 8 / bytes,
            rows: 6,
            registers: if target.vector_registers >= 32 {
                24
            } else {
                12
            },
        }
    }

    /// Registers for accumulators.
    pub fn registers(self) -> u32 {
        self.registers
    }

    /// Vectors side by side for so many rows: few rows get more, since a chain of
    /// multiply-adds alone waits for each result.
    pub fn vectors(self, rows: u32) -> u32 {
        (self.registers / rows).min(8)
    }
}

/// One operand of a register tile.
#[derive(Clone, Copy, Debug)]
pub struct Operand {
    /// Its element type in memory.
    pub dtype: DType,
    /// Elements from one k to the next.
    pub step: Val,
}

/// Emits `acc[r][v] += Σ_k a[r][k] · b[k][v]`, rows by `rows` pointers to
/// `a[r][0]`, columns from `b0`, a pointer to `b[0][0]`; `masks` hide columns. Vectors
/// side by side have the lanes of `init`, alike in each row.
pub fn multiply(
    e: &mut Emitter,
    acc_dtype: DType,
    k: Val,
    (a, rows): (Operand, &[Val]),
    (b, b0): (Operand, Val),
    masks: Option<&[Val]>,
    init: &[Val],
) -> Vec<Val> {
    let vectors = init.len() / rows.len();
    let lanes: Vec<u32> = init[..vectors].iter().map(|v| v.ty.lanes).collect();
    let elem = compute_elem(acc_dtype);
    let (zero, one) = (e.i64(0), e.i64(1));
    e.for_loop(zero, k, one, init, |e, i, acc| {
        let at = e.mul(i, b.step);
        let base = e.offset(b0, at, memory_elem(b.dtype));
        let columns: Vec<Val> = (0..vectors)
            .map(|v| {
                let step = e.i64(lanes[..v].iter().sum::<u32>() as i64);
                let p = e.offset(base, step, memory_elem(b.dtype));
                let ty = Ty::vector(memory_elem(b.dtype), lanes[v]);
                let raw = match masks {
                    Some(masks) => e.load_masked(p, ty, masks[v]),
                    None => e.load(p, ty),
                };
                widen(e, raw, b.dtype, acc_dtype)
            })
            .collect();
        let at = e.mul(i, a.step);
        let mut out = Vec::with_capacity(acc.len());
        for (r, &row) in rows.iter().enumerate() {
            let p = e.offset(row, at, memory_elem(a.dtype));
            let raw = e.load(p, Ty::scalar(memory_elem(a.dtype)));
            let x = widen(e, raw, a.dtype, acc_dtype);
            for (v, &column) in columns.iter().enumerate() {
                let x = e.splat(x, lanes[v]);
                let sum = acc[r * vectors + v];
                out.push(if elem.is_float() {
                    e.fma(x, column, sum)
                } else {
                    let p = e.mul(x, column);
                    e.add(p, sum)
                });
            }
        }
        out
    })
}

/// A loaded value in the accumulators' type.
pub fn widen(e: &mut Emitter, x: Val, from: DType, to: DType) -> Val {
    if from == to {
        return x;
    }
    if is_small_float(from) {
        let x = small::decode(e, x, from);
        return e.cast(x, compute_elem(to), false, false);
    }
    convert(e, x, from, to)
}

/// The sizes that blocks of `block` cut from `total` can have; `None`: any.
pub fn block_sizes(total: Option<i64>, block: i64) -> Option<Vec<i64>> {
    total.map(|n| vec![n.min(block), n % block])
}

/// Rows in groups: `whole` rows at a time, then what remains by powers of two.
/// `body(e, first row, rows)` is emitted for the groups that `sizes` can have.
pub fn for_rows(
    e: &mut Emitter,
    count: Val,
    whole: u32,
    sizes: &Option<Vec<i64>>,
    body: &mut dyn FnMut(&mut Emitter, Val, u32),
) {
    let some = |f: &dyn Fn(i64) -> bool| match sizes {
        Some(sizes) => sizes.iter().any(|&n| f(n)),
        None => true,
    };
    let (zero, step) = (e.i64(0), e.i64(whole as i64));
    let groups = e.op2("arith.divsi", count, step);
    let full = e.mul(groups, step);
    if some(&|n| n >= whole as i64) {
        e.for_loop(zero, full, step, &[], |e, r, _| {
            body(e, r, whole);
            vec![]
        });
    }
    let mut done = full;
    let mut part = whole.next_power_of_two() / 2;
    while part > 0 {
        if part < whole && some(&|n| (n % whole as i64) & part as i64 != 0) {
            let p = e.i64(part as i64);
            let left = e.sub(count, done);
            let fits = e.cmp(Cmp::Ge, left, p, false);
            let at = done;
            e.if_then(fits, |e| body(e, at, part));
            let next = e.add(done, p);
            done = e.select(fits, next, done);
        }
        part /= 2;
    }
}

/// Sets `cells` elements to 0, whole vectors of [`LANES`] at a time.
pub fn clear(e: &mut Emitter, to: Val, cells: Val, elem: Elem) {
    let (zero, step) = (e.i64(0), e.i64(LANES));
    let none = e.zero(Ty::vector(elem, LANES as u32));
    e.for_loop(zero, cells, step, &[], |e, i, _| {
        let p = e.offset(to, i, elem);
        e.store(none, p);
        vec![]
    });
}

/// A pointer read from the kernel's table of buffers.
pub fn buffer(e: &mut Emitter, table: Val, index: usize) -> Val {
    let i = e.i64(index as i64);
    let slot = e.offset(table, i, Elem::Ptr);
    e.load(slot, Ty::scalar(Elem::Ptr))
}

/// The launch's parameters.
pub fn params(e: &mut Emitter, table: Val, count: u16) -> Vec<Val> {
    (0..count)
        .map(|i| {
            let i = e.i64(i as i64);
            let slot = e.offset(table, i, Elem::I64);
            e.load(slot, Ty::scalar(Elem::I64))
        })
        .collect()
}

/// Sixteen rows of sixteen lanes to columns: four times, row `i` and row `i + 8`
/// are dealt into rows `2i` and `2i + 1`.
pub fn transpose(e: &mut Emitter, mut rows: Vec<Val>) -> Vec<Val> {
    let half = rows.len() as u32 / 2;
    let deal = |from: u32| -> Vec<u32> {
        (from..from + half)
            .flat_map(|i| [i, i + 2 * half])
            .collect()
    };
    let (low, high) = (deal(0), deal(half));
    for _ in 0..rows.len().ilog2() {
        let (a, b) = rows.split_at(half as usize);
        rows = a
            .iter()
            .zip(b)
            .flat_map(|(&a, &b)| [e.shuffle(a, b, &low), e.shuffle(a, b, &high)])
            .collect();
    }
    rows
}

/// `(e, row, i, mask)`: reads 16 elements of a row from `i` on.
pub type LoadRun<'a> = dyn FnMut(&mut Emitter, Val, Val, Option<Val>) -> Val + 'a;

/// Rows that lie in runs, turned into columns 16 by 16: `to[i][row] = rows[row][i]` for
/// `length` elements of `rows` rows, `to`'s rows `stride` apart. Rows beyond the last
/// repeat it, and what is beyond `length` in the last 16 is written too. There is no
/// mask where `whole` says that it would hide none.
pub fn turn(
    e: &mut Emitter,
    (rows, length, whole): (Val, Val, bool),
    (to, stride): (Val, Val),
    load: &mut LoadRun,
) {
    let (zero, one, step) = (e.i64(0), e.i64(1), e.i64(LANES));
    let last = e.sub(rows, one);
    e.for_loop(zero, rows, step, &[], |e, j, _| {
        e.for_loop(zero, length, step, &[], |e, i, _| {
            let left = e.sub(length, i);
            let mask = (!whole).then(|| e.mask_first(left, LANES as u32));
            let runs = (0..LANES)
                .map(|r| {
                    let r = e.i64(r);
                    let row = e.add(j, r);
                    let row = e.min(row, last, false);
                    load(e, row, i, mask)
                })
                .collect();
            for (r, x) in (0..).zip(transpose(e, runs)) {
                let r = e.i64(r);
                let at = e.add(i, r);
                let at = e.mul(at, stride);
                let at = e.add(at, j);
                let p = e.offset(to, at, x.ty.elem);
                e.store(x, p);
            }
            vec![]
        });
        vec![]
    });
}
