//! The emitter's operations on scalars as PTX.
//!
//! Integers of 8 and 16 bits live in words with zeros above them; f16 and bf16 are
//! their bits in such a word. Truths are predicates, pointers are 64-bit global
//! addresses. There are no vectors: lanes are threads.

use super::{Cmp, Elem, Ty, Val, WHOLE};
use crate::ptx::{
    self, Address, B32, B64, F32, F64, Fn1, Kernel, Order, Pred, Reg, Rounding, Shuffle, Space,
    Vector,
};
use std::collections::HashMap;

/// A register of some type.
#[derive(Clone, Copy, Debug)]
pub(super) enum Any {
    Pred(Reg<Pred>),
    Word(Reg<B32>),
    Long(Reg<B64>),
    Single(Reg<F32>),
    Double(Reg<F64>),
}

/// What the emitter writes to: a kernel, and the registers of its values.
pub(super) struct Gpu {
    pub(super) kernel: Kernel,
    values: Vec<Any>,
    /// Integers that are constants, by their values.
    constants: HashMap<u32, i64>,
}

/// Bits of an element in memory that are less than a word's.
fn narrow_bits(elem: Elem) -> Option<u32> {
    match elem {
        Elem::I8 | Elem::I1 => Some(8),
        Elem::I16 | Elem::F16 | Elem::BF16 => Some(16),
        Elem::F64 | Elem::F32 | Elem::I64 | Elem::I32 | Elem::Ptr => None,
    }
}

fn order(how: Cmp) -> Order {
    match how {
        Cmp::Eq => Order::Eq,
        Cmp::Ne => Order::Ne,
        Cmp::Lt => Order::Lt,
        Cmp::Le => Order::Le,
        Cmp::Gt => Order::Gt,
        Cmp::Ge => Order::Ge,
    }
}

impl Gpu {
    pub(super) fn new(kernel: Kernel) -> Gpu {
        Gpu {
            kernel,
            values: vec![],
            constants: HashMap::new(),
        }
    }

    fn value(&mut self, any: Any, ty: Ty) -> Val {
        debug_assert_eq!(ty.lanes, 0, "a GPU's lanes are threads");
        self.values.push(any);
        Val {
            id: self.values.len() as u32 - 1,
            part: WHOLE,
            ty,
        }
    }

    fn any(&self, x: Val) -> Any {
        self.values[x.id as usize]
    }

    pub(super) fn pred(&self, x: Val) -> Reg<Pred> {
        match self.any(x) {
            Any::Pred(r) => r,
            other => unreachable!("{:?} is no truth but {other:?}", x.ty),
        }
    }

    pub(super) fn word(&self, x: Val) -> Reg<B32> {
        match self.any(x) {
            Any::Word(r) => r,
            other => unreachable!("{:?} is no word but {other:?}", x.ty),
        }
    }

    pub(super) fn long(&self, x: Val) -> Reg<B64> {
        match self.any(x) {
            Any::Long(r) => r,
            other => unreachable!("{:?} is no 64-bit integer but {other:?}", x.ty),
        }
    }

    pub(super) fn single(&self, x: Val) -> Reg<F32> {
        match self.any(x) {
            Any::Single(r) => r,
            other => unreachable!("{:?} is no f32 but {other:?}", x.ty),
        }
    }

    pub(super) fn double(&self, x: Val) -> Reg<F64> {
        match self.any(x) {
            Any::Double(r) => r,
            other => unreachable!("{:?} is no f64 but {other:?}", x.ty),
        }
    }

    /// A value that a register holds.
    pub(super) fn of(&mut self, r: impl Into<Any>, elem: Elem) -> Val {
        self.value(r.into(), Ty::scalar(elem))
    }

    pub(super) fn float(&mut self, ty: Ty, v: f64) -> Val {
        let any = match ty.elem {
            Elem::F64 => Any::Double(self.kernel.mov(v)),
            _ => Any::Single(self.kernel.mov(v as f32)),
        };
        self.value(any, ty)
    }

    pub(super) fn int(&mut self, ty: Ty, v: i64) -> Val {
        let any = match ty.elem {
            Elem::I64 | Elem::Ptr => Any::Long(self.kernel.mov(v)),
            Elem::I1 => {
                let word: Reg<B32> = self.kernel.mov((v != 0) as i32);
                Any::Pred(self.kernel.compare(Order::Ne, word, 0, false))
            }
            elem => {
                let mask = narrow_bits(elem).map_or(-1i64, |bits| (1 << bits) - 1);
                Any::Word(self.kernel.mov((v & mask) as i32))
            }
        };
        let x = self.value(any, ty);
        self.constants.insert(x.id, v);
        x
    }

    /// Sum, difference or product.
    pub(super) fn arith(&mut self, op: char, a: Val, b: Val) -> Val {
        if let ('*', Any::Long(x), Some(up)) = (op, self.any(a), self.power_of_two(b)) {
            let shifted = self.kernel.shl(x, up as i32);
            return self.value(Any::Long(shifted), a.ty);
        }
        macro_rules! of {
            ($a:expr, $b:expr) => {
                match op {
                    '+' => self.kernel.add($a, $b),
                    '-' => self.kernel.sub($a, $b),
                    _ => self.kernel.mul($a, $b),
                }
            };
        }
        let any = match (self.any(a), self.any(b)) {
            (Any::Word(x), Any::Word(y)) => Any::Word(of!(x, y)),
            (Any::Long(x), Any::Long(y)) => Any::Long(of!(x, y)),
            (Any::Single(x), Any::Single(y)) => Any::Single(of!(x, y)),
            (Any::Double(x), Any::Double(y)) => Any::Double(of!(x, y)),
            (x, y) => unreachable!("{op} of {x:?} and {y:?}"),
        };
        let v = self.value(any, a.ty);
        self.wrapped(v)
    }

    /// Drops what an operation left above a narrow integer.
    fn wrapped(&mut self, v: Val) -> Val {
        match (self.any(v), narrow_bits(v.ty.elem)) {
            (Any::Word(r), Some(bits)) => {
                let low = self.kernel.narrow(r, bits, false);
                self.value(Any::Word(low), v.ty)
            }
            _ => v,
        }
    }

    /// A narrow integer with its sign above it; others as they are.
    fn signed(&mut self, x: Val) -> Any {
        match (self.any(x), narrow_bits(x.ty.elem)) {
            (Any::Word(r), Some(bits)) => Any::Word(self.kernel.narrow(r, bits, true)),
            (any, _) => any,
        }
    }

    /// MLIR's two-operand integer operations by their names.
    pub(super) fn op2(&mut self, op: &str, a: Val, b: Val) -> Val {
        match op {
            "arith.addi" | "arith.addf" => return self.arith('+', a, b),
            "arith.subi" | "arith.subf" => return self.arith('-', a, b),
            "arith.muli" | "arith.mulf" => return self.arith('*', a, b),
            "arith.divf" => return self.divide_floats(a, b),
            "arith.andi" | "arith.ori" | "arith.xori" => {
                let name = match op {
                    "arith.andi" => "and",
                    "arith.ori" => "or",
                    _ => "xor",
                };
                let k = &mut self.kernel;
                let any = match (self.values[a.id as usize], self.values[b.id as usize]) {
                    (Any::Pred(x), Any::Pred(y)) => Any::Pred(k.logic(name, x, y)),
                    (Any::Word(x), Any::Word(y)) => Any::Word(k.bitwise(name, x, y)),
                    (Any::Long(x), Any::Long(y)) => Any::Long(k.bitwise(name, x, y)),
                    (x, y) => unreachable!("{op} of {x:?} and {y:?}"),
                };
                return self.value(any, a.ty);
            }
            "arith.shli" | "arith.shrui" | "arith.shrsi" => return self.shift(op, a, b),
            _ => {}
        }
        let (rest, signed) = match op {
            "arith.divsi" => (false, true),
            "arith.divui" => (false, false),
            "arith.remsi" => (true, true),
            "arith.remui" => (true, false),
            other => unreachable!("{other} has no PTX"),
        };
        if let Some(down) = self.power_of_two(b).filter(|_| !signed) {
            return self.divide_by_power(rest, a, down);
        }
        let (x, y) = match signed {
            true => (self.signed(a), self.signed(b)),
            false => (self.any(a), self.any(b)),
        };
        let any = match (x, y) {
            (Any::Word(x), Any::Word(y)) => Any::Word(self.kernel.divide(rest, signed, x, y)),
            (Any::Long(x), Any::Long(y)) => Any::Long(self.kernel.divide(rest, signed, x, y)),
            (x, y) => unreachable!("{op} of {x:?} and {y:?}"),
        };
        let v = self.value(any, a.ty);
        self.wrapped(v)
    }

    /// The logarithm of a constant that is a power of two.
    fn power_of_two(&self, x: Val) -> Option<u32> {
        let n = *self.constants.get(&x.id)?;
        (n > 0 && n & (n - 1) == 0).then(|| n.trailing_zeros())
    }

    /// Quotient or remainder by 2^down without a sign: ptxas calls a routine of a hundred
    /// instructions to divide 64 bits, also by a constant.
    fn divide_by_power(&mut self, rest: bool, a: Val, down: u32) -> Val {
        let k = &mut self.kernel;
        let mask = (1i64 << down) - 1;
        let any = match (self.values[a.id as usize], rest) {
            (Any::Word(x), false) => Any::Word(k.shr(false, x, down as i32)),
            (Any::Word(x), true) => Any::Word(k.bitwise("and", x, mask as i32)),
            (Any::Long(x), false) => Any::Long(k.shr(false, x, down as i32)),
            (Any::Long(x), true) => Any::Long(k.bitwise("and", x, mask)),
            (other, _) => unreachable!("{other:?} is no integer"),
        };
        self.value(any, a.ty)
    }

    fn shift(&mut self, op: &str, a: Val, by: Val) -> Val {
        let n = match self.any(by) {
            Any::Word(n) => n,
            Any::Long(n) => self.kernel.low(n),
            other => unreachable!("a shift by {other:?}"),
        };
        let signed = op == "arith.shrsi";
        let x = if signed { self.signed(a) } else { self.any(a) };
        let k = &mut self.kernel;
        let any = match (x, op) {
            (Any::Word(x), "arith.shli") => Any::Word(k.shl(x, n)),
            (Any::Long(x), "arith.shli") => Any::Long(k.shl(x, n)),
            (Any::Word(x), _) => Any::Word(k.shr(signed, x, n)),
            (Any::Long(x), _) => Any::Long(k.shr(signed, x, n)),
            (other, _) => unreachable!("{op} of {other:?}"),
        };
        let v = self.value(any, a.ty);
        self.wrapped(v)
    }

    fn divide_floats(&mut self, a: Val, b: Val) -> Val {
        let any = match a.ty.elem {
            Elem::F64 => {
                let (x, y) = (self.double(a), self.double(b));
                Any::Double(self.kernel.div_float(x, y))
            }
            _ => {
                let (x, y) = (self.single(a), self.single(b));
                Any::Single(self.kernel.div_float(x, y))
            }
        };
        self.value(any, a.ty)
    }

    /// LLVM's intrinsics of floats by their names.
    pub(super) fn intrinsic(&mut self, name: &str, xs: &[Val]) -> Val {
        let any = match xs[0].ty.elem {
            Elem::F64 => {
                let xs: Vec<_> = xs.iter().map(|&x| self.double(x)).collect();
                Any::Double(function(&mut self.kernel, name, &xs))
            }
            _ => {
                let xs: Vec<_> = xs.iter().map(|&x| self.single(x)).collect();
                Any::Single(function(&mut self.kernel, name, &xs))
            }
        };
        self.value(any, xs[0].ty)
    }

    pub(super) fn neg_float(&mut self, x: Val) -> Val {
        self.intrinsic("neg", &[x])
    }

    pub(super) fn cmp(&mut self, how: Cmp, a: Val, b: Val, unsigned: bool) -> Val {
        let how = order(how);
        let plain = unsigned || matches!(how, Order::Eq | Order::Ne);
        let (x, y) = match plain {
            true => (self.any(a), self.any(b)),
            false => (self.signed(a), self.signed(b)),
        };
        let k = &mut self.kernel;
        let p = match (x, y) {
            (Any::Word(x), Any::Word(y)) => k.compare(how, x, y, unsigned),
            (Any::Long(x), Any::Long(y)) => k.compare(how, x, y, unsigned),
            (Any::Single(x), Any::Single(y)) => k.compare_float(how, x, y),
            (Any::Double(x), Any::Double(y)) => k.compare_float(how, x, y),
            // Truths are ordered as 0 and 1.
            (Any::Pred(x), Any::Pred(y)) => {
                let (x, y) = (k.truth(x), k.truth(y));
                k.compare(how, x, y, true)
            }
            (x, y) => unreachable!("{x:?} against {y:?}"),
        };
        self.value(Any::Pred(p), a.ty.with(Elem::I1))
    }

    pub(super) fn select(&mut self, cond: Val, a: Val, b: Val) -> Val {
        let c = self.pred(cond);
        let (x, y) = (self.any(a), self.any(b));
        let k = &mut self.kernel;
        let any = match (x, y) {
            (Any::Word(x), Any::Word(y)) => Any::Word(k.select(c, x, y)),
            (Any::Long(x), Any::Long(y)) => Any::Long(k.select(c, x, y)),
            (Any::Single(x), Any::Single(y)) => Any::Single(k.select(c, x, y)),
            (Any::Double(x), Any::Double(y)) => Any::Double(k.select(c, x, y)),
            (Any::Pred(x), Any::Pred(y)) => {
                let yes = k.logic("and", c, x);
                let not = k.not(c);
                let no = k.logic("and", not, y);
                Any::Pred(k.logic("or", yes, no))
            }
            (x, y) => unreachable!("{x:?} or {y:?}"),
        };
        self.value(any, a.ty)
    }

    pub(super) fn bitcast(&mut self, x: Val, elem: Elem) -> Val {
        let k = &mut self.kernel;
        let any = match (self.values[x.id as usize], elem) {
            (Any::Single(r), Elem::I32) => Any::Word(k.bits_of(r)),
            (Any::Word(r), Elem::F32) => Any::Single(k.float_of(r)),
            (Any::Double(r), Elem::I64) => Any::Long(k.bits_of_double(r)),
            (Any::Long(r), Elem::F64) => Any::Double(k.double_of(r)),
            // Half floats are their bits.
            (any, _) => any,
        };
        self.value(any, x.ty.with(elem))
    }

    /// MLIR's conversions by their names.
    pub(super) fn convert(&mut self, op: &str, x: Val, to: Ty) -> Val {
        let from = self.any(x);
        let any = match op {
            "arith.extf" | "arith.truncf" => self.float_to_float(x, to.elem),
            "arith.uitofp" | "arith.sitofp" => {
                let signed = op == "arith.sitofp";
                let from = if signed { self.signed(x) } else { from };
                let from = match from {
                    Any::Pred(p) => Any::Word(self.kernel.truth(p)),
                    other => other,
                };
                let k = &mut self.kernel;
                match (from, to.elem) {
                    (Any::Word(r), Elem::F64) => Any::Double(k.int_to_float(r, signed)),
                    (Any::Long(r), Elem::F64) => Any::Double(k.int_to_float(r, signed)),
                    (Any::Word(r), _) => Any::Single(k.int_to_float(r, signed)),
                    (Any::Long(r), _) => Any::Single(k.int_to_float(r, signed)),
                    (other, _) => unreachable!("{op} of {other:?}"),
                }
            }
            "arith.fptoui" | "arith.fptosi" => {
                let signed = op == "arith.fptosi";
                let k = &mut self.kernel;
                match (from, to.elem) {
                    (Any::Single(r), Elem::I64) => Any::Long(k.float_to_int(r, signed)),
                    (Any::Double(r), Elem::I64) => Any::Long(k.float_to_int(r, signed)),
                    (Any::Single(r), _) => Any::Word(k.float_to_int(r, signed)),
                    (Any::Double(r), _) => Any::Word(k.float_to_int(r, signed)),
                    (other, _) => unreachable!("{op} of {other:?}"),
                }
            }
            "arith.extui" | "arith.extsi" => {
                let signed = op == "arith.extsi";
                let from = match from {
                    Any::Pred(p) => Any::Word(self.kernel.truth(p)),
                    other if signed => {
                        let _ = other;
                        self.signed(x)
                    }
                    other => other,
                };
                match (from, to.elem) {
                    (Any::Word(r), Elem::I64) => Any::Long(self.kernel.extend(r, signed)),
                    (other, _) => other,
                }
            }
            "arith.trunci" => match from {
                Any::Long(r) => Any::Word(self.kernel.low(r)),
                other => other,
            },
            other => unreachable!("{other} has no PTX"),
        };
        let v = self.value(any, to);
        match op {
            "arith.extsi" | "arith.trunci" | "arith.fptosi" | "arith.fptoui" => self.wrapped(v),
            _ => v,
        }
    }

    fn float_to_float(&mut self, x: Val, to: Elem) -> Any {
        let from = self.any(x);
        let k = &mut self.kernel;
        match (from, x.ty.elem, to) {
            (Any::Single(r), _, Elem::F64) => Any::Double(k.widen(r)),
            (Any::Double(r), _, Elem::F32) => Any::Single(k.round_single(r)),
            (Any::Single(r), _, Elem::F16) => {
                let half = k.round_f16(r);
                Any::Word(k.word_of(half))
            }
            (Any::Double(r), _, Elem::F16) => {
                let half = k.round_f16(r);
                Any::Word(k.word_of(half))
            }
            (Any::Word(r), Elem::F16, _) => {
                let half = k.half_of(r);
                let single = k.widen_f16(half);
                match to {
                    Elem::F64 => Any::Double(k.widen(single)),
                    _ => Any::Single(single),
                }
            }
            (from, ..) => unreachable!("{from:?} to {to:?}"),
        }
    }

    /// f32 to bf16, to nearest even.
    pub(super) fn round_bf16(&mut self, x: Val) -> Val {
        let r = self.single(x);
        let half = self.kernel.round_bf16(r);
        let word = self.kernel.word_of(half);
        self.value(Any::Word(word), x.ty.with(Elem::BF16))
    }

    /// `base + index` elements: pointers to global memory are long, to shared memory words.
    pub(super) fn offset(&mut self, base: Val, index: Val, elem: Elem) -> Val {
        let bytes = if elem == Elem::I1 { 8 } else { elem.bits() } / 8;
        let any = match (self.any(base), self.any(index)) {
            (Any::Long(base), Any::Long(index)) => {
                Any::Long(self.kernel.mad(index, i64::from(bytes), base))
            }
            (Any::Word(base), Any::Long(index)) => {
                let index = self.kernel.low(index);
                Any::Word(self.kernel.mad(index, bytes, base))
            }
            (base, index) => unreachable!("{base:?} and {index:?} elements"),
        };
        self.value(any, Ty::scalar(Elem::Ptr))
    }

    pub(super) fn load(&mut self, from: Val, ty: Ty) -> Val {
        let at = self.any(from);
        let k = &mut self.kernel;
        let any = match at {
            Any::Long(at) => load(k, Space::Global, at, ty.elem),
            Any::Word(at) => load(k, Space::Shared, at, ty.elem),
            other => unreachable!("{other:?} is no pointer"),
        };
        self.value(any, ty)
    }

    pub(super) fn store(&mut self, x: Val, to: Val) {
        let (at, any) = (self.any(to), self.any(x));
        let k = &mut self.kernel;
        match at {
            Any::Long(at) => store(k, Space::Global, at, any, x.ty.elem),
            Any::Word(at) => store(k, Space::Shared, at, any, x.ty.elem),
            other => unreachable!("{other:?} is no pointer"),
        }
    }

    /// Lane `lane ^ mask`'s value.
    pub(super) fn shuffle(&mut self, x: Val, from: Shuffle) -> Val {
        let any = self.any(x);
        let k = &mut self.kernel;
        let any = match any {
            Any::Word(r) => Any::Word(k.shuffle(r, from)),
            Any::Single(r) => {
                let bits = k.bits_of(r);
                let bits = k.shuffle(bits, from);
                Any::Single(k.float_of(bits))
            }
            Any::Long(r) => Any::Long(k.shuffle_long(r, from)),
            Any::Double(r) => {
                let bits = k.bits_of_double(r);
                let bits = k.shuffle_long(bits, from);
                Any::Double(k.double_of(bits))
            }
            Any::Pred(p) => {
                let word = k.truth(p);
                let word = k.shuffle(word, from);
                Any::Pred(k.compare(Order::Ne, word, 0, false))
            }
        };
        self.value(any, x.ty)
    }

    /// A variable that nothing has written.
    pub(super) fn variable(&mut self, ty: Ty) -> Val {
        let k = &mut self.kernel;
        let any = match ty.elem {
            Elem::F64 => Any::Double(k.reg()),
            Elem::F32 => Any::Single(k.reg()),
            Elem::I64 | Elem::Ptr => Any::Long(k.reg()),
            _ => Any::Word(k.reg()),
        };
        self.value(any, ty)
    }

    /// Neighbours as memory has them.
    pub(super) fn load_few(&mut self, from: Val, elem: Elem, n: u32) -> Vec<Val> {
        let all = match self.any(from) {
            Any::Long(at) => load_few(&mut self.kernel, Space::Global, at, elem, n as usize),
            Any::Word(at) => load_few(&mut self.kernel, Space::Shared, at, elem, n as usize),
            other => unreachable!("{other:?} is no pointer"),
        };
        all.into_iter()
            .map(|any| self.value(any, Ty::scalar(elem)))
            .collect()
    }

    /// Neighbours, whole words of them, where `cond` holds; zeros elsewhere.
    pub(super) fn load_few_where(&mut self, cond: Val, from: Val, elem: Elem, n: u32) -> Vec<Val> {
        let (p, at) = (self.pred(cond), self.long(from));
        let k = &mut self.kernel;
        let per_word = 32 / elem.bits();
        let words: Vec<Reg<B32>> = (0..n / per_word).map(|_| k.mov(0i32)).collect();
        k.guarded(p, |k| k.load_to(Space::Global, at, 0, &words));
        let part = |g: &mut Gpu, i: u32| {
            let word = words[(i / per_word) as usize];
            let any = match elem {
                Elem::F32 => Any::Single(g.kernel.float_of(word)),
                _ => Any::Word(
                    g.kernel
                        .field(word, elem.bits() * (i % per_word), elem.bits()),
                ),
            };
            g.value(any, Ty::scalar(elem))
        };
        (0..n).map(|i| part(self, i)).collect()
    }

    /// Writes neighbours as memory has them.
    pub(super) fn store_few(&mut self, xs: &[Val], to: Val) {
        let elem = xs[0].ty.elem;
        let xs: Vec<Any> = xs.iter().map(|&x| self.any(x)).collect();
        match self.any(to) {
            Any::Long(at) => store_few(&mut self.kernel, Space::Global, at, elem, &xs),
            Any::Word(at) => store_few(&mut self.kernel, Space::Shared, at, elem, &xs),
            other => unreachable!("{other:?} is no pointer"),
        }
    }

    /// `sum + a · b`, into the variable.
    pub(super) fn multiply_into(&mut self, sum: Val, a: Val, b: Val) {
        let (sum, a, b) = (self.any(sum), self.any(a), self.any(b));
        let k = &mut self.kernel;
        match (sum, a, b) {
            (Any::Single(s), Any::Single(a), Any::Single(b)) => k.fma_to(s, a, b, s),
            (Any::Double(s), Any::Double(a), Any::Double(b)) => k.fma_to(s, a, b, s),
            (Any::Word(s), Any::Word(a), Any::Word(b)) => k.mad_to(s, a, b, s),
            (sum, a, b) => unreachable!("{sum:?} and {a:?} times {b:?}"),
        }
    }

    /// Reads an element where `cond` holds; zero elsewhere, where memory is not touched.
    pub(super) fn load_where(&mut self, cond: Val, from: Val, ty: Ty) -> Val {
        let (p, at) = (self.pred(cond), self.long(from));
        let k = &mut self.kernel;
        let any = match ty.elem {
            Elem::F64 => {
                let to = k.mov(0.0f64);
                k.guarded(p, |k| k.load_to(Space::Global, at, 0, &[to]));
                Any::Double(to)
            }
            Elem::F32 => {
                let to = k.mov(0.0f32);
                k.guarded(p, |k| k.load_to(Space::Global, at, 0, &[to]));
                Any::Single(to)
            }
            Elem::I64 | Elem::Ptr => {
                let to = k.mov(0i64);
                k.guarded(p, |k| k.load_to(Space::Global, at, 0, &[to]));
                Any::Long(to)
            }
            elem => {
                let to = k.mov(0i32);
                k.guarded(p, |k| match narrow_bits(elem) {
                    Some(bits) => k.load_narrow_to(Space::Global, at, 0, bits, to),
                    None => k.load_to(Space::Global, at, 0, &[to]),
                });
                Any::Word(to)
            }
        };
        self.value(any, ty)
    }

    /// Variables with these first values.
    pub(super) fn variables(&mut self, init: &[Val]) -> Vec<Val> {
        let copy = |g: &mut Gpu, x: Val| {
            let any = match g.any(x) {
                Any::Pred(p) => Any::Word(g.kernel.truth(p)),
                Any::Word(r) => Any::Word(g.kernel.mov(r)),
                Any::Long(r) => Any::Long(g.kernel.mov(r)),
                Any::Single(r) => Any::Single(g.kernel.mov(r)),
                Any::Double(r) => Any::Double(g.kernel.mov(r)),
            };
            g.value(any, x.ty)
        };
        init.iter().map(|&x| copy(self, x)).collect()
    }

    /// What variables hold, as values (truths are words in variables).
    pub(super) fn read(&mut self, variables: &[Val]) -> Vec<Val> {
        let read = |g: &mut Gpu, v: Val| match (g.any(v), v.ty.elem) {
            (Any::Word(r), Elem::I1) => {
                let p = g.kernel.compare(Order::Ne, r, 0, false);
                g.value(Any::Pred(p), v.ty)
            }
            _ => v,
        };
        variables.iter().map(|&v| read(self, v)).collect()
    }

    /// Writes variables, all from what was before.
    pub(super) fn write(&mut self, variables: &[Val], values: &[Val]) {
        // Through copies where one is written before it is read.
        let copies = self.variables(values);
        for (&v, &x) in variables.iter().zip(&copies) {
            let (to, from) = (self.any(v), self.any(x));
            let k = &mut self.kernel;
            match (to, from) {
                (Any::Word(to), Any::Word(x)) => k.set(to, x),
                (Any::Long(to), Any::Long(x)) => k.set(to, x),
                (Any::Single(to), Any::Single(x)) => k.set(to, x),
                (Any::Double(to), Any::Double(x)) => k.set(to, x),
                (to, x) => unreachable!("{x:?} into {to:?}"),
            }
        }
    }
}

fn one<T: Vector, A: Address>(k: &mut Kernel, space: Space, at: Reg<A>) -> Reg<T> {
    let to = k.reg();
    k.load_to(space, at, 0, &[to]);
    to
}

fn load_few<A: Address>(
    k: &mut Kernel,
    space: Space,
    at: Reg<A>,
    elem: Elem,
    n: usize,
) -> Vec<Any> {
    fn of<T: Vector, A: Address>(k: &mut Kernel, space: Space, at: Reg<A>, n: usize) -> Vec<Any>
    where
        Any: From<Reg<T>>,
    {
        k.load::<T, A>(space, at, 0, n)
            .into_iter()
            .map(Any::from)
            .collect()
    }
    let Some(bits) = narrow_bits(elem) else {
        return match elem {
            Elem::F64 => of::<F64, A>(k, space, at, n),
            Elem::F32 => of::<F32, A>(k, space, at, n),
            Elem::I32 => of::<B32, A>(k, space, at, n),
            _ => of::<B64, A>(k, space, at, n),
        };
    };
    let per_word = 32 / bits as usize;
    let words: Vec<Reg<B32>> = match n < per_word {
        true => vec![k.load_narrow(space, at, 0, n as u32 * bits)],
        false => k.load(space, at, 0, n / per_word),
    };
    (0..n)
        .map(|i| Any::Word(k.field(words[i / per_word], bits * (i % per_word) as u32, bits)))
        .collect()
}

fn store_few<A: Address>(k: &mut Kernel, space: Space, at: Reg<A>, elem: Elem, xs: &[Any]) {
    let words = |xs: &[Any]| -> Vec<Reg<B32>> {
        xs.iter()
            .map(|x| match x {
                Any::Word(r) => *r,
                other => unreachable!("{other:?} is no word"),
            })
            .collect()
    };
    macro_rules! put {
        ($kind:path) => {{
            let xs: Vec<_> = (xs.iter())
                .map(|x| match x {
                    $kind(r) => *r,
                    other => unreachable!("{other:?} among {elem:?}"),
                })
                .collect();
            k.store(space, at, 0, &xs);
        }};
    }
    match (elem, narrow_bits(elem)) {
        (Elem::F64, _) => put!(Any::Double),
        (Elem::F32, _) => put!(Any::Single),
        (Elem::I64 | Elem::Ptr, _) => put!(Any::Long),
        (_, None) => put!(Any::Word),
        (_, Some(bits)) => {
            let per_word = 32 / bits as usize;
            let parts = words(xs);
            let joined: Vec<_> = parts
                .chunks(per_word)
                .map(|parts| k.joined(parts, bits))
                .collect();
            match parts.len() < per_word {
                true => k.store_narrow(space, at, 0, parts.len() as u32 * bits, joined[0]),
                false => k.store(space, at, 0, &joined),
            }
        }
    }
}

fn load<A: Address>(k: &mut Kernel, space: Space, at: Reg<A>, elem: Elem) -> Any {
    match elem {
        Elem::F64 => Any::Double(one(k, space, at)),
        Elem::F32 => Any::Single(one(k, space, at)),
        Elem::I64 | Elem::Ptr => Any::Long(one(k, space, at)),
        Elem::I32 => Any::Word(one(k, space, at)),
        narrow => {
            let bits = narrow_bits(narrow).unwrap_or(8);
            Any::Word(k.load_narrow(space, at, 0, bits))
        }
    }
}

fn store<A: Address>(k: &mut Kernel, space: Space, at: Reg<A>, x: Any, elem: Elem) {
    match (x, narrow_bits(elem)) {
        (Any::Word(r), Some(bits)) => k.store_narrow(space, at, 0, bits, r),
        (Any::Word(r), None) => k.store(space, at, 0, &[r]),
        (Any::Long(r), _) => k.store(space, at, 0, &[r]),
        (Any::Single(r), _) => k.store(space, at, 0, &[r]),
        (Any::Double(r), _) => k.store(space, at, 0, &[r]),
        (Any::Pred(_), _) => unreachable!("truths are stored as bytes"),
    }
}

fn function<T: ptx::Float>(k: &mut Kernel, name: &str, xs: &[Reg<T>]) -> Reg<T> {
    match (name, xs) {
        ("fma", &[a, b, c]) => k.fma(a, b, c),
        ("neg", &[x]) => k.float_fn(Fn1::Neg, x),
        ("fabs", &[x]) => k.float_fn(Fn1::Abs, x),
        ("sqrt", &[x]) => k.float_fn(Fn1::Sqrt, x),
        ("copysign", &[magnitude, sign]) => k.copysign(magnitude, sign),
        ("floor", &[x]) => k.round(Rounding::Floor, x),
        ("ceil", &[x]) => k.round(Rounding::Ceil, x),
        ("roundeven", &[x]) => k.round(Rounding::Even, x),
        ("trunc", &[x]) => k.round(Rounding::Zero, x),
        (other, _) => unreachable!("{other} has no PTX"),
    }
}

impl From<Reg<Pred>> for Any {
    fn from(r: Reg<Pred>) -> Any {
        Any::Pred(r)
    }
}

impl From<Reg<B32>> for Any {
    fn from(r: Reg<B32>) -> Any {
        Any::Word(r)
    }
}

impl From<Reg<B64>> for Any {
    fn from(r: Reg<B64>) -> Any {
        Any::Long(r)
    }
}

impl From<Reg<F32>> for Any {
    fn from(r: Reg<F32>) -> Any {
        Any::Single(r)
    }
}

impl From<Reg<F64>> for Any {
    fn from(r: Reg<F64>) -> Any {
        Any::Double(r)
    }
}
