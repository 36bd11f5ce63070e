//! The register tile for bytes: `mr` rows times `nv` vectors of i32 sums, fed by
//! four bytes of A at a time and panels of B that hold four k of each column
//! together, `[k/4][nr][4]`. Every sum is exact modulo 2³².
//!
//! With VNNI one instruction adds four products of an unsigned and a signed byte to
//! each lane; operands of the other sign are read with their top bit flipped, which
//! moves them by 128, and [`Shift`] says what to take off. Without it, bytes are
//! widened to 16 bits and `pmaddwd` adds products in pairs: it cannot saturate, as
//! `pmaddubsw` does.

use crate::lower::is_unsigned;
use kiln_codegen::emit::Cmp;
use kiln_codegen::{CpuTarget, Elem, Emitter, Ty, Val};
use kiln_ir::DType;

/// Products that an instruction sums in a lane, and k that lie together in a panel.
pub const GROUP: i64 = 4;

/// All four bytes moved by 128.
const FLIP: i64 = 0x8080_8080u32 as i32 as i64;

/// Tile sizes of a target.
#[derive(Clone, Copy, Debug)]
pub struct DotTile {
    /// i32 lanes of a register.
    pub lanes: u32,
    /// Rows computed together at most.
    pub rows: u32,
    /// Registers for sums.
    registers: u32,
    /// Whether a lane holds a column's whole sum (VNNI), not half of it.
    whole: bool,
}

/// The operands' types.
#[derive(Clone, Copy, Debug)]
pub struct Signs {
    /// A's.
    pub a: DType,
    /// B's.
    pub b: DType,
}

/// By how much operands are moved as they are read, 0 or 128:
/// `Σ a·b = Σ A·B + b·Σ A − a·Σ B − a·b·k` for `A = a + this.a`, `B = b − this.b`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shift {
    /// A signed A's.
    pub a: i64,
    /// An unsigned B's.
    pub b: i64,
}

impl Shift {
    /// Operands are read as they are.
    pub const NONE: Shift = Shift { a: 0, b: 0 };
}

impl DotTile {
    /// The tile of a target: as many sums in registers as fit beside the operands.
    pub fn of(target: &CpuTarget) -> DotTile {
        let many = target.vector_registers >= 32;
        let whole = target.byte_dots;
        DotTile {
            lanes: target.vector_bits / 32,
            // Halves take twice the registers, so fewer rows leave room for columns.
            rows: if many || whole { 6 } else { 3 },
            registers: if many { 24 } else { 12 },
            whole,
        }
    }

    /// Columns whose sums a register holds.
    fn columns_each(self) -> i64 {
        self.lanes as i64 / if self.whole { 1 } else { 2 }
    }

    /// Columns side by side for so many rows, a multiple of the lanes.
    pub fn columns(self, rows: u32) -> i64 {
        let vectors = (self.registers / rows).min(8) as i64;
        let lanes = self.lanes as i64;
        vectors * self.columns_each() / lanes * lanes
    }

    /// Rows computed together for panels of so many columns: as many as registers allow.
    pub fn rows_for(self, columns: i64) -> u32 {
        match self.whole && 8 * columns <= self.registers as i64 * self.columns_each() {
            true => 8,
            false => self.rows,
        }
    }

    /// How operands are moved.
    pub fn shift(self, signs: Signs) -> Shift {
        let moved = |yes: bool| if self.whole && yes { 128 } else { 0 };
        Shift {
            a: moved(!is_unsigned(signs.a)),
            b: moved(is_unsigned(signs.b)),
        }
    }

    /// A register of bytes that are all this one.
    fn bytes(self, e: &mut Emitter, value: i64) -> Val {
        e.int(Ty::vector(Elem::I8, 4 * self.lanes), value)
    }

    /// Four bytes of a row as an operand: in every lane, or in every second.
    fn spread(self, e: &mut Emitter, four: Val, a: DType) -> Val {
        if self.whole {
            let x = e.splat(four, self.lanes);
            return e.regroup(x, Elem::I8);
        }
        let x = e.splat(four, self.lanes / 2);
        let x = e.regroup(x, Elem::I8);
        e.cast(x, Elem::I16, is_unsigned(a), false)
    }

    /// A register of B, its bytes from `p` on.
    fn column(self, e: &mut Emitter, p: Val, b: DType) -> Val {
        if self.whole {
            let x = e.load_bytes(p, Ty::vector(Elem::I8, 4 * self.lanes));
            if !is_unsigned(b) {
                return x;
            }
            let flip = self.bytes(e, -128);
            return e.op2("arith.xori", x, flip);
        }
        let x = e.load_bytes(p, Ty::vector(Elem::I8, 2 * self.lanes));
        e.cast(x, Elem::I16, is_unsigned(b), false)
    }

    /// `sum` plus products of four bytes each, or two pairs.
    fn add_products(self, e: &mut Emitter, sum: Val, a: Val, b: Val) -> Val {
        let wide = self.lanes == 16;
        if self.whole {
            let name = match wide {
                true => "llvm.x86.avx512.vpdpbusd.512",
                false => "llvm.x86.avx512.vpdpbusd.256",
            };
            return e.call(name, &[sum, a, b], sum.ty);
        }
        let name = match wide {
            true => "llvm.x86.avx512.pmaddw.d.512",
            false => "llvm.x86.avx2.pmadd.wd",
        };
        let pairs = e.call(name, &[a, b], sum.ty);
        e.add(sum, pairs)
    }

    /// Adds products of `k` bytes to `init`, by row and then by vectors of lanes:
    /// rows from pointers to their first byte, columns from a panel whose groups lie
    /// `step` bytes apart.
    pub fn multiply(
        self,
        e: &mut Emitter,
        k: Depth,
        signs: Signs,
        rows: &[Val],
        (panel, step): (Val, Val),
        init: &[Val],
    ) -> Vec<Val> {
        let start = self.begin(e, init);
        let out = self.accumulate(e, k, signs, rows, (panel, step), &start);
        self.end(e, &out, init)
    }

    /// The registers in which sums that start from `init` grow.
    pub fn begin(self, e: &mut Emitter, init: &[Val]) -> Vec<Val> {
        match self.whole {
            true => init.to_vec(),
            false => vec![e.zero(Ty::vector(Elem::I32, self.lanes)); 2 * init.len()],
        }
    }

    /// The sums that began as `init` and grew to `out`.
    pub fn end(self, e: &mut Emitter, out: &[Val], init: &[Val]) -> Vec<Val> {
        match self.whole {
            true => out.to_vec(),
            false => self.join(e, out, init),
        }
    }

    /// What [`DotTile::multiply`] does, between [`DotTile::begin`] and [`DotTile::end`].
    pub fn accumulate(
        self,
        e: &mut Emitter,
        k: Depth,
        signs: Signs,
        rows: &[Val],
        (panel, step): (Val, Val),
        start: &[Val],
    ) -> Vec<Val> {
        let vectors = start.len() / rows.len();
        k.groups(e, start, &mut |e, group, acc| {
            let at = e.mul(group.index, step);
            let base = e.offset(panel, at, Elem::I8);
            let columns: Vec<Val> = (0..vectors as i64)
                .map(|v| {
                    let skip = e.i64(v * self.columns_each() * GROUP);
                    let p = e.offset(base, skip, Elem::I8);
                    self.column(e, p, signs.b)
                })
                .collect();
            let mut next = Vec::with_capacity(acc.len());
            for (r, &row) in rows.iter().enumerate() {
                let four = group.read(e, row);
                let four = match self.shift(signs).a {
                    0 => four,
                    _ => {
                        let flip = group.flip(e);
                        e.op2("arith.xori", four, flip)
                    }
                };
                let x = self.spread(e, four, signs.a);
                for (v, &c) in columns.iter().enumerate() {
                    next.push(self.add_products(e, acc[r * vectors + v], x, c));
                }
            }
            next
        })
    }

    /// `sum` plus, in each of 16 lanes, the products of four unsigned bytes of `a` and
    /// four signed ones of `b`, all lanes of i32.
    pub fn add_lanes(self, e: &mut Emitter, sum: Val, a: Val, b: Val) -> Val {
        let total = sum.ty.lanes;
        if total > self.lanes {
            let half = total / 2;
            let parts = [0, half].map(|first| {
                let lanes: Vec<u32> = (first..first + half).collect();
                let [sum, a, b] = [sum, a, b].map(|x| e.shuffle(x, x, &lanes));
                self.add_lanes(e, sum, a, b)
            });
            let all: Vec<u32> = (0..total).collect();
            return e.shuffle(parts[0], parts[1], &all);
        }
        if self.whole {
            let [a, b] = [a, b].map(|x| e.regroup(x, Elem::I8));
            return self.add_products(e, sum, a, b);
        }
        // Every second byte, as 16 bits: the lower ones, then the upper ones.
        let wide = Ty::vector(Elem::I16, 2 * total);
        let (eight, low) = (e.int(wide, 8), e.int(wide, 0xff));
        let [a, b] = [a, b].map(|x| e.regroup(x, Elem::I16));
        let even = e.op2("arith.andi", a, low);
        let odd = e.op2("arith.shrui", a, eight);
        let b_even = e.op2("arith.shli", b, eight);
        let b_even = e.op2("arith.shrsi", b_even, eight);
        let b_odd = e.op2("arith.shrsi", b, eight);
        let sum = self.add_products(e, sum, even, b_even);
        self.add_products(e, sum, odd, b_odd)
    }

    /// Halves of columns' sums added to whole ones.
    fn join(self, e: &mut Emitter, halves: &[Val], init: &[Val]) -> Vec<Val> {
        let pick = |first: u32| -> Vec<u32> { (0..self.lanes).map(|i| 2 * i + first).collect() };
        let pairs = halves.chunks_exact(2).zip(init);
        pairs
            .map(|(pair, &sum)| {
                let even = e.shuffle(pair[0], pair[1], &pick(0));
                let odd = e.shuffle(pair[0], pair[1], &pick(1));
                let both = e.add(even, odd);
                e.add(sum, both)
            })
            .collect()
    }

    /// `shift.a · Σ_k B` of a panel's columns, a vector of lanes each.
    pub fn column_sums(
        self,
        e: &mut Emitter,
        k: Depth,
        signs: Signs,
        (panel, step): (Val, Val),
        vectors: i64,
    ) -> Vec<Val> {
        let none = e.zero(Ty::vector(Elem::I32, self.lanes));
        k.groups(e, &vec![none; vectors as usize], &mut |e, group, acc| {
            let at = e.mul(group.index, step);
            let base = e.offset(panel, at, Elem::I8);
            let flip = group.flip(e);
            let ones = self.spread(e, flip, DType::U8);
            (0..)
                .zip(acc)
                .map(|(v, &sum)| {
                    let skip = e.i64(v * self.lanes as i64 * GROUP);
                    let p = e.offset(base, skip, Elem::I8);
                    let b = self.column(e, p, signs.b);
                    self.add_products(e, sum, ones, b)
                })
                .collect()
        })
    }

    /// `−shift.b · Σ_k A` of a row.
    pub fn row_sum(self, e: &mut Emitter, k: Depth, signs: Signs, row: Val) -> Val {
        let sums = Ty::vector(Elem::I32, self.lanes);
        let (none, zero) = (e.zero(sums), e.i64(0));
        let weight = self.bytes(e, -128);
        // Whole registers of neighbours, then groups in every lane.
        let each = e.i64(4 * self.lanes as i64);
        let blocks = e.op2("arith.divui", k.products, each);
        let full = e.mul(blocks, each);
        let flipped = self.shift(signs).a != 0;
        let lanes = e.for_loop(zero, full, each, &[none], |e, i, acc| {
            let p = e.offset(row, i, Elem::I8);
            let mut x = e.load_bytes(p, Ty::vector(Elem::I8, 4 * self.lanes));
            if flipped {
                let flip = self.bytes(e, -128);
                x = e.op2("arith.xori", x, flip);
            }
            vec![self.add_products(e, acc[0], x, weight)]
        })[0];
        let rest = Depth {
            products: e.sub(k.products, full),
            ..k
        };
        let row = e.offset(row, full, Elem::I8);
        let last = rest.groups(e, &[none], &mut |e, group, acc| {
            let mut four = group.read(e, row);
            if flipped {
                let flip = group.flip(e);
                four = e.op2("arith.xori", four, flip);
            }
            let x = self.spread(e, four, signs.a);
            vec![self.add_products(e, acc[0], x, weight)]
        })[0];
        let last = e.extract(last, 0);
        let sum = e.fold_lanes(lanes, &mut |e, a, b| e.add(a, b));
        e.add(sum, last)
    }
}

/// How many products there are.
#[derive(Clone, Copy, Debug)]
pub struct Depth {
    /// Their number (i64).
    pub products: Val,
    /// Whether it is known to be whole groups.
    pub whole: bool,
    /// Elements that make a word of 32 bits: 4 bytes, or 2 of 16 bits.
    pub group: i64,
    /// Bytes of a last group that is none, where four bytes are known to end there:
    /// it is read by its end.
    pub tail: Option<i64>,
}

impl Depth {
    /// A number of bytes that is known.
    pub fn known(e: &mut Emitter, products: i64) -> Depth {
        Depth {
            products: e.i64(products),
            whole: products % GROUP == 0,
            group: GROUP,
            tail: (products > GROUP && products % GROUP != 0).then_some(products % GROUP),
        }
    }
}

/// A group of k that is being read.
pub struct Group {
    /// Its number.
    pub index: Val,
    /// Elements in it; `None`: all.
    members: Option<Val>,
    /// How many a whole one has.
    size: i64,
    /// [`Depth::tail`], if this is it.
    tail: Option<i64>,
}

/// What is emitted for a group: the carried values that follow.
pub type Body<'a> = dyn FnMut(&mut Emitter, Group, &[Val]) -> Vec<Val> + 'a;

/// The integer type of elements of which so many make a word of 32 bits.
pub fn part_of_word(group: i64) -> Elem {
    if group == GROUP { Elem::I8 } else { Elem::I16 }
}

/// A row of B, and whether it exists where that is open.
pub type Row = (Val, Option<Val>);

impl Depth {
    /// Walks the groups with carried values; the last may have fewer elements.
    pub fn groups(self, e: &mut Emitter, init: &[Val], body: &mut Body) -> Vec<Val> {
        let (zero, one, size) = (e.i64(0), e.i64(1), e.i64(self.group));
        let group = |index, members, tail| Group {
            index,
            members,
            size: self.group,
            tail,
        };
        let full = e.op2("arith.divui", self.products, size);
        let out = e.for_loop(zero, full, one, init, |e, index, acc| {
            body(e, group(index, None, None), acc)
        });
        if self.whole {
            return out;
        }
        if self.tail.is_some() {
            return body(e, group(full, None, self.tail), &out);
        }
        let begun = crate::matmul::ceil_div(e, self.products, size);
        e.for_loop(full, begun, one, &out, |e, index, acc| {
            let done = e.mul(index, size);
            let left = e.sub(self.products, done);
            body(e, group(index, Some(left), None), acc)
        })
    }

    /// Walks the groups: `body(e, number, its rows of B)`; a row that does not exist
    /// repeats the last.
    pub fn rows_of_groups(self, e: &mut Emitter, body: &mut dyn FnMut(&mut Emitter, Val, &[Row])) {
        self.groups(e, &[], &mut |e, group, _| {
            let (size, one) = (e.i64(self.group), e.i64(1));
            let first = e.mul(group.index, size);
            let last = e.sub(self.products, one);
            let rows: Vec<Row> = (0..self.group)
                .map(|t| {
                    let t = e.i64(t);
                    let row = e.add(first, t);
                    let Some(members) = group.members else {
                        return (row, None);
                    };
                    let exists = e.cmp(Cmp::Lt, t, members, false);
                    (e.min(row, last, false), Some(exists))
                })
                .collect();
            body(e, group.index, &rows);
            vec![]
        });
    }
}

impl Group {
    /// The group's elements of a row, as an i32; those that do not exist are 0.
    pub fn read(&self, e: &mut Emitter, row: Val) -> Val {
        let (size, elem) = (e.i64(self.size), part_of_word(self.size));
        let at = e.mul(self.index, size);
        let p = e.offset(row, at, elem);
        let word = Ty::scalar(Elem::I32);
        if let Some(bytes) = self.tail {
            let back = e.i64(bytes - GROUP);
            let p = e.offset(p, back, Elem::I8);
            let x = e.load_bytes(p, word);
            let by = e.int(word, 8 * (GROUP - bytes));
            return e.op2("arith.shrui", x, by);
        }
        let Some(members) = self.members else {
            return e.load_bytes(p, word);
        };
        let (one, zero) = (e.i64(1), e.int(word, 0));
        let last = e.sub(members, one);
        let mut out = zero;
        for t in 0..self.size - 1 {
            let place = e.i64(t);
            let here = e.min(place, last, false);
            let q = e.offset(p, here, elem);
            let part = e.load(q, Ty::scalar(elem));
            let part = e.cast(part, Elem::I32, true, true);
            let by = e.int(word, elem.bits() as i64 * t);
            let moved = e.op2("arith.shli", part, by);
            let exists = e.cmp(Cmp::Lt, place, members, false);
            let moved = e.select(exists, moved, zero);
            out = e.op2("arith.ori", out, moved);
        }
        out
    }

    /// 128 in each byte that exists.
    fn flip(&self, e: &mut Emitter) -> Val {
        let word = Ty::scalar(Elem::I32);
        let all = e.int(word, FLIP);
        if let Some(bytes) = self.tail {
            let by = e.int(word, 8 * (GROUP - bytes));
            return e.op2("arith.shrui", all, by);
        }
        let Some(bytes) = self.members else {
            return all;
        };
        let bytes = e.cast(bytes, Elem::I32, true, true);
        let (four, eight) = (e.int(word, GROUP), e.int(word, 8));
        let missing = e.sub(four, bytes);
        let by = e.mul(missing, eight);
        e.op2("arith.shrui", all, by)
    }
}
