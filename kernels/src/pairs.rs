//! The register tile for bf16: `mr` rows times `nv` vectors of f32 sums, fed by two
//! neighbours of A along k at a time and panels of B that hold two k of each column
//! together, `[k/2][nr][2]`.
//!
//! With AVX512-BF16 one instruction adds both products to each lane, the later one
//! first (Intel SDM, VDPBF16PS). Products of bf16 are exact in f32, so that is two fused
//! multiply-adds, which is what levels without it do with operands widened in
//! registers: bits are the same, but for subnormal numbers, which the instruction
//! takes for 0.

use crate::dot::{Depth, Group};
use kiln_codegen::{CpuTarget, Elem, Emitter, Ty, Val};

/// Products that an instruction sums in a lane, and k that lie together in a panel.
pub const PAIR: i64 = 2;

/// Tile sizes of a target.
#[derive(Clone, Copy, Debug)]
pub struct PairTile {
    /// f32 lanes of a register.
    pub lanes: u32,
    /// Rows computed together at most.
    pub rows: u32,
    /// Registers for sums.
    registers: u32,
    /// Whether there is an instruction for pairs.
    dots: bool,
}

/// Two neighbours along k of one row, or of a register of columns.
#[derive(Clone, Copy)]
enum Pair {
    Together(Val),
    Apart(Val, Val),
}

impl PairTile {
    /// The tile of a target: as many sums in registers as fit beside the operands.
    pub fn of(target: &CpuTarget) -> PairTile {
        let many = target.vector_registers >= 32;
        let dots = target.bf16_dots;
        PairTile {
            lanes: target.vector_bits / 32,
            // A widened register of columns takes two, which leaves room for fewer sums.
            rows: if dots { 6 } else { 4 },
            registers: match (dots, many) {
                (true, true) => 24,
                (true, false) => 12,
                (false, true) => 16,
                (false, false) => 8,
            },
            dots,
        }
    }

    /// Vectors side by side for so many rows.
    pub fn vectors(self, rows: u32) -> u32 {
        (self.registers / rows).min(8)
    }

    /// A register of words as operands.
    fn operand(self, e: &mut Emitter, words: Val) -> Pair {
        if self.dots {
            return Pair::Together(e.regroup(words, Elem::BF16));
        }
        let (sixteen, top) = (e.int(words.ty, 16), e.int(words.ty, -65536));
        let low = e.op2("arith.shli", words, sixteen);
        let high = e.op2("arith.andi", words, top);
        Pair::Apart(e.bitcast(low, Elem::F32), e.bitcast(high, Elem::F32))
    }

    /// `sum` plus both products of each lane.
    fn add_products(self, e: &mut Emitter, sum: Val, a: Pair, b: Pair) -> Val {
        match (a, b) {
            (Pair::Together(a), Pair::Together(b)) => {
                let name = format!("llvm.x86.avx512bf16.dpbf16ps.{}", 32 * self.lanes);
                e.call(&name, &[sum, a, b], sum.ty)
            }
            (Pair::Apart(a0, a1), Pair::Apart(b0, b1)) => {
                let sum = e.fma(a1, b1, sum);
                e.fma(a0, b0, sum)
            }
            _ => unreachable!("operands of one tile are alike"),
        }
    }

    /// Adds products of `k` elements to `init`, by row and then by vectors of lanes:
    /// rows from pointers to their first element, columns from a panel whose pairs lie
    /// `step` bytes apart.
    pub fn multiply(
        self,
        e: &mut Emitter,
        k: Depth,
        rows: &[Val],
        panel: (Val, Val),
        init: &[Val],
    ) -> Vec<Val> {
        self.by_pairs(e, k, panel, init, rows.len(), &|e, group, r| {
            group.read(e, rows[r])
        })
    }

    /// The same where a row's pairs lie `apart` words from each other.
    pub fn multiply_spread(
        self,
        e: &mut Emitter,
        pairs: Val,
        (rows, apart): (&[Val], Val),
        panel: (Val, Val),
        init: &[Val],
    ) -> Vec<Val> {
        let two = e.i64(PAIR);
        let k = Depth {
            products: e.mul(pairs, two),
            whole: true,
            group: PAIR,
            tail: None,
        };
        self.by_pairs(e, k, panel, init, rows.len(), &|e, group, r| {
            let at = e.mul(group.index, apart);
            let p = e.offset(rows[r], at, Elem::I32);
            e.load(p, Ty::scalar(Elem::I32))
        })
    }

    fn by_pairs(
        self,
        e: &mut Emitter,
        k: Depth,
        (panel, step): (Val, Val),
        init: &[Val],
        rows: usize,
        read: &dyn Fn(&mut Emitter, &Group, usize) -> Val,
    ) -> Vec<Val> {
        let vectors = init.len() / rows;
        let words = Ty::vector(Elem::I32, self.lanes);
        k.groups(e, init, &mut |e, group: Group, acc| {
            let at = e.mul(group.index, step);
            let base = e.offset(panel, at, Elem::I8);
            let columns: Vec<Pair> = (0..vectors as i64)
                .map(|v| {
                    let skip = e.i64(v * self.lanes as i64);
                    let p = e.offset(base, skip, Elem::I32);
                    let x = e.load_bytes(p, words);
                    self.operand(e, x)
                })
                .collect();
            let mut next = Vec::with_capacity(acc.len());
            for r in 0..rows {
                let pair = read(e, &group, r);
                let x = e.splat(pair, self.lanes);
                let x = self.operand(e, x);
                for (v, &c) in columns.iter().enumerate() {
                    next.push(self.add_products(e, acc[r * vectors + v], x, c));
                }
            }
            next
        })
    }
}
