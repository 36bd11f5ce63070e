//! A typed builder of MLIR functions in the `scf`, `arith`, `vector` and `llvm`
//! dialects; and, for scalars, of PTX: one lowering of expressions serves both.
//!
//! Every kernel has the one kernel ABI (DESIGN §5): `(args, params, begin, end,
//! scratch) -> status`. Memory is reached through `llvm` loads and stores on raw
//! pointers: explicit addresses, no memref descriptors to convert away. No
//! fast-math flag is ever emitted, so results are the same at every level.

mod gpu;
mod on_gpu;

use crate::CpuTarget;
use gpu::Gpu;
use std::fmt::{self, Write};

/// The type of a lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Elem {
    F64,
    F32,
    F16,
    BF16,
    I64,
    I32,
    I16,
    I8,
    I1,
    Ptr,
}

impl Elem {
    /// Whether lanes are floating point.
    pub fn is_float(self) -> bool {
        matches!(self, Elem::F64 | Elem::F32 | Elem::F16 | Elem::BF16)
    }

    /// Whether lanes are 16-bit floats, which are accessed as integers: masked,
    /// LLVM would move them one by one and call a library to convert them.
    fn is_half(self) -> bool {
        matches!(self, Elem::F16 | Elem::BF16)
    }

    /// Bits of a lane.
    pub fn bits(self) -> u32 {
        match self {
            Elem::F64 | Elem::I64 | Elem::Ptr => 64,
            Elem::F32 | Elem::I32 => 32,
            Elem::F16 | Elem::BF16 | Elem::I16 => 16,
            Elem::I8 => 8,
            Elem::I1 => 1,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Elem::F64 => "f64",
            Elem::F32 => "f32",
            Elem::F16 => "f16",
            Elem::BF16 => "bf16",
            Elem::I64 => "i64",
            Elem::I32 => "i32",
            Elem::I16 => "i16",
            Elem::I8 => "i8",
            Elem::I1 => "i1",
            Elem::Ptr => "!llvm.ptr",
        }
    }
}

/// A scalar (`lanes` 0) or a vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ty {
    /// The type of a lane.
    pub elem: Elem,
    /// Lanes; 0 for a scalar.
    pub lanes: u32,
}

impl Ty {
    /// A scalar type.
    pub const fn scalar(elem: Elem) -> Ty {
        Ty { elem, lanes: 0 }
    }

    /// A vector type.
    pub const fn vector(elem: Elem, lanes: u32) -> Ty {
        Ty { elem, lanes }
    }

    /// The same shape with another lane type.
    pub fn with(self, elem: Elem) -> Ty {
        Ty { elem, ..self }
    }
}

impl fmt::Display for Ty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.lanes {
            0 => f.write_str(self.elem.name()),
            n => write!(f, "vector<{n}x{}>", self.elem.name()),
        }
    }
}

/// An SSA value of the function being built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Val {
    id: u32,
    part: u32,
    /// Its type.
    pub ty: Ty,
}

/// The id of the function's scratch pointer.
const SCRATCH: u32 = 4;

/// `part` of a value that is not one of several results.
const WHOLE: u32 = u32::MAX;

impl fmt::Display for Val {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.part {
            WHOLE => write!(f, "%{}", self.id),
            part => write!(f, "%{}#{part}", self.id),
        }
    }
}

/// How two numbers are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Cmp {
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
}

/// The parameters of a kernel function.
#[derive(Clone, Copy, Debug)]
pub struct KernelArgs {
    /// Table of buffer pointers.
    pub args: Val,
    /// Table of i64 parameters.
    pub params: Val,
    /// First tile.
    pub begin: Val,
    /// One past the last tile.
    pub end: Val,
    /// The thread's scratch memory.
    pub scratch: Val,
}

/// Builds the text of one MLIR function, or the body of a GPU's kernel.
pub struct Emitter {
    text: String,
    next: u32,
    /// The kernel that scalars' operations go to instead.
    gpu: Option<Box<Gpu>>,
    /// Whether the target has AVX-512's instructions.
    wide: bool,
    /// Whether it has those for bf16.
    bf16: bool,
}

impl Emitter {
    /// Builds a kernel: `body` returns the i32 status.
    pub fn kernel(
        symbol: &str,
        target: &CpuTarget,
        body: impl FnOnce(&mut Emitter, KernelArgs) -> Val,
    ) -> String {
        let mut e = Emitter {
            text: String::new(),
            next: 5,
            gpu: None,
            wide: target.vector_bits == 512,
            bf16: target.bf16_dots,
        };
        let port = |id, elem| Val {
            id,
            part: WHOLE,
            ty: Ty::scalar(elem),
        };
        let args = KernelArgs {
            args: port(0, Elem::Ptr),
            params: port(1, Elem::Ptr),
            begin: port(2, Elem::I64),
            end: port(3, Elem::I64),
            scratch: port(SCRATCH, Elem::Ptr),
        };
        let status = body(&mut e, args);
        format!(
            "func.func @{symbol}(%0: !llvm.ptr, %1: !llvm.ptr, %2: i64, %3: i64, %4: !llvm.ptr) -> i32 {{\n{}return {status} : i32\n}}\n",
            e.text
        )
    }

    fn fresh(&mut self, ty: Ty) -> Val {
        self.next += 1;
        Val {
            id: self.next,
            part: WHOLE,
            ty,
        }
    }

    fn line(&mut self, args: fmt::Arguments<'_>) {
        // Writing to a String does not fail.
        let _ = self.text.write_fmt(args);
        self.text.push('\n');
    }

    /// A constant, or a vector full of it. Integers are given as is, floats by value.
    pub fn float(&mut self, ty: Ty, value: f64) -> Val {
        if let Some(gpu) = &mut self.gpu {
            return gpu.float(ty, value);
        }
        let bits = match ty.elem {
            Elem::F64 => format!("0x{:016X}", value.to_bits()),
            _ => format!("0x{:08X}", (value as f32).to_bits()),
        };
        let v = self.fresh(ty);
        match ty.lanes {
            0 => self.line(format_args!("{v} = arith.constant {bits} : {ty}")),
            _ => self.line(format_args!("{v} = arith.constant dense<{bits}> : {ty}")),
        }
        v
    }

    /// An integer constant, or a vector full of it.
    pub fn int(&mut self, ty: Ty, value: i64) -> Val {
        if let Some(gpu) = &mut self.gpu {
            return gpu.int(ty, value);
        }
        let v = self.fresh(ty);
        let text = match ty.elem {
            Elem::I1 => (value != 0).to_string(),
            Elem::I8 => (value as i8).to_string(),
            Elem::I16 => (value as i16).to_string(),
            Elem::I32 => (value as i32).to_string(),
            _ => value.to_string(),
        };
        match (ty.lanes, ty.elem) {
            (0, Elem::I1) => self.line(format_args!("{v} = arith.constant {text}")),
            (0, _) => self.line(format_args!("{v} = arith.constant {text} : {ty}")),
            _ => self.line(format_args!("{v} = arith.constant dense<{text}> : {ty}")),
        }
        v
    }

    /// An i64 constant.
    pub fn i64(&mut self, value: i64) -> Val {
        self.int(Ty::scalar(Elem::I64), value)
    }

    /// The vector 0, 1, 2 … of this lane type.
    pub fn iota(&mut self, elem: Elem, lanes: u32) -> Val {
        let v = self.fresh(Ty::vector(elem, lanes));
        let list: Vec<String> = (0..lanes).map(|i| i.to_string()).collect();
        self.line(format_args!(
            "{v} = arith.constant dense<[{}]> : {}",
            list.join(", "),
            v.ty
        ));
        v
    }

    /// One-operand op whose result has another type.
    fn convert(&mut self, op: &str, x: Val, to: Ty) -> Val {
        if let Some(gpu) = &mut self.gpu {
            return gpu.convert(op, x, to);
        }
        let v = self.fresh(to);
        self.line(format_args!("{v} = {op} {x} : {} to {to}", x.ty));
        v
    }

    /// Two-operand op of one type.
    pub fn op2(&mut self, op: &str, a: Val, b: Val) -> Val {
        if let Some(gpu) = &mut self.gpu {
            return gpu.op2(op, a, b);
        }
        let (a, b) = self.match_lanes(a, b);
        let v = self.fresh(a.ty);
        self.line(format_args!("{v} = {op} {a}, {b} : {}", a.ty));
        v
    }

    /// LLVM intrinsic op with operands and result of one type.
    pub fn intrinsic(&mut self, name: &str, xs: &[Val]) -> Val {
        if let Some(gpu) = &mut self.gpu {
            return gpu.intrinsic(name, xs);
        }
        let ty = xs[0].ty;
        let v = self.fresh(ty);
        let names: Vec<String> = xs.iter().map(Val::to_string).collect();
        let types: Vec<String> = xs.iter().map(|x| x.ty.to_string()).collect();
        self.line(format_args!(
            "{v} = llvm.intr.{name}({}) : ({}) -> {ty}",
            names.join(", "),
            types.join(", ")
        ));
        v
    }

    /// LLVM intrinsic of a target, by its whole name.
    pub fn call(&mut self, name: &str, xs: &[Val], result: Ty) -> Val {
        let v = self.fresh(result);
        let names: Vec<String> = xs.iter().map(Val::to_string).collect();
        let types: Vec<String> = xs.iter().map(|x| x.ty.to_string()).collect();
        self.line(format_args!(
            "{v} = llvm.call_intrinsic \"{name}\"({}) : ({}) -> {result}",
            names.join(", "),
            types.join(", ")
        ));
        v
    }

    /// `x · 2^n` of f32 with one rounding, by one instruction; none where the target
    /// has none for so many lanes.
    pub fn scale(&mut self, x: Val, n: Val) -> Option<Val> {
        if !self.wide || x.ty != Ty::vector(Elem::F32, 16) {
            return None;
        }
        let all = Ty::scalar(Elem::I16);
        // All lanes, rounded as always.
        let (mask, current) = (self.int(all, -1), self.int(Ty::scalar(Elem::I32), 4));
        let name = "llvm.x86.avx512.mask.scalef.ps.512";
        Some(self.call(name, &[x, n, x, mask, current], x.ty))
    }

    /// Two vectors of f32, rounded to bf16, as the halves of words: `low` below `high`.
    /// Subnormal numbers may become 0.
    pub fn bf16_words(&mut self, low: Val, high: Val) -> Val {
        let words = low.ty.with(Elem::I32);
        let half = |e: &mut Emitter, x: Val| {
            let rounded = match e.bf16 && x.ty == Ty::vector(Elem::F32, 16) {
                true => {
                    let name = "llvm.x86.avx512bf16.cvtneps2bf16.512";
                    e.call(name, &[x], x.ty.with(Elem::BF16))
                }
                false => e.cast(x, Elem::BF16, false, false),
            };
            let bits = e.bitcast(rounded, Elem::I16);
            e.cast(bits, Elem::I32, true, true)
        };
        let (low, high) = (half(self, low), half(self, high));
        let by = self.int(words, 16);
        let high = self.op2("arith.shli", high, by);
        self.op2("arith.ori", low, high)
    }

    /// Makes a scalar a vector if the other side is one.
    pub fn match_lanes(&mut self, a: Val, b: Val) -> (Val, Val) {
        match (a.ty.lanes, b.ty.lanes) {
            (0, n) if n > 0 => (self.splat(a, n), b),
            (n, 0) if n > 0 => (a, self.splat(b, n)),
            _ => (a, b),
        }
    }

    /// A vector full of a scalar; vectors stay.
    pub fn splat(&mut self, x: Val, lanes: u32) -> Val {
        if x.ty.lanes > 0 || lanes == 0 {
            return x;
        }
        if x.ty.elem.is_half() {
            let bits = self.bitcast(x, Elem::I16);
            let bits = self.splat(bits, lanes);
            return self.bitcast(bits, x.ty.elem);
        }
        let v = self.fresh(Ty::vector(x.ty.elem, lanes));
        self.line(format_args!(
            "{v} = vector.broadcast {x} : {} to {}",
            x.ty, v.ty
        ));
        v
    }

    /// Sum, by type.
    pub fn add(&mut self, a: Val, b: Val) -> Val {
        self.op2(
            if a.ty.elem.is_float() {
                "arith.addf"
            } else {
                "arith.addi"
            },
            a,
            b,
        )
    }

    /// Difference, by type.
    pub fn sub(&mut self, a: Val, b: Val) -> Val {
        self.op2(
            if a.ty.elem.is_float() {
                "arith.subf"
            } else {
                "arith.subi"
            },
            a,
            b,
        )
    }

    /// Product, by type.
    pub fn mul(&mut self, a: Val, b: Val) -> Val {
        self.op2(
            if a.ty.elem.is_float() {
                "arith.mulf"
            } else {
                "arith.muli"
            },
            a,
            b,
        )
    }

    /// `a * b + c` with one rounding.
    pub fn fma(&mut self, a: Val, b: Val, c: Val) -> Val {
        let lanes = a.ty.lanes.max(b.ty.lanes).max(c.ty.lanes);
        let xs = [
            self.splat(a, lanes),
            self.splat(b, lanes),
            self.splat(c, lanes),
        ];
        self.intrinsic("fma", &xs)
    }

    /// Floating-point quotient.
    pub fn divf(&mut self, a: Val, b: Val) -> Val {
        self.op2("arith.divf", a, b)
    }

    /// Sign change, by type.
    pub fn neg(&mut self, x: Val) -> Val {
        if x.ty.elem.is_float() {
            if let Some(gpu) = &mut self.gpu {
                return gpu.neg_float(x);
            }
            let v = self.fresh(x.ty);
            self.line(format_args!("{v} = arith.negf {x} : {}", x.ty));
            return v;
        }
        let zero = self.int(x.ty, 0);
        self.sub(zero, x)
    }

    /// Comparison; floats ordered (`Ne` unordered), integers signed unless told.
    pub fn cmp(&mut self, how: Cmp, a: Val, b: Val, unsigned: bool) -> Val {
        if let Some(gpu) = &mut self.gpu {
            return gpu.cmp(how, a, b, unsigned);
        }
        let (a, b) = self.match_lanes(a, b);
        let v = self.fresh(a.ty.with(Elem::I1));
        if a.ty.elem.is_float() {
            let p = match how {
                Cmp::Eq => "oeq",
                Cmp::Ne => "une",
                Cmp::Lt => "olt",
                Cmp::Le => "ole",
                Cmp::Gt => "ogt",
                Cmp::Ge => "oge",
            };
            self.line(format_args!("{v} = arith.cmpf {p}, {a}, {b} : {}", a.ty));
        } else {
            let p = match (how, unsigned) {
                (Cmp::Eq, _) => "eq",
                (Cmp::Ne, _) => "ne",
                (Cmp::Lt, false) => "slt",
                (Cmp::Le, false) => "sle",
                (Cmp::Gt, false) => "sgt",
                (Cmp::Ge, false) => "sge",
                (Cmp::Lt, true) => "ult",
                (Cmp::Le, true) => "ule",
                (Cmp::Gt, true) => "ugt",
                (Cmp::Ge, true) => "uge",
            };
            self.line(format_args!("{v} = arith.cmpi {p}, {a}, {b} : {}", a.ty));
        }
        v
    }

    /// `a` where `cond`, else `b`.
    pub fn select(&mut self, cond: Val, a: Val, b: Val) -> Val {
        if let Some(gpu) = &mut self.gpu {
            return gpu.select(cond, a, b);
        }
        let lanes = cond.ty.lanes.max(a.ty.lanes).max(b.ty.lanes);
        let (cond, a, b) = (
            self.splat(cond, lanes),
            self.splat(a, lanes),
            self.splat(b, lanes),
        );
        if a.ty.elem.is_half() {
            let (x, y) = (self.bitcast(a, Elem::I16), self.bitcast(b, Elem::I16));
            let bits = self.select(cond, x, y);
            return self.bitcast(bits, a.ty.elem);
        }
        let v = self.fresh(a.ty);
        match lanes {
            0 => self.line(format_args!(
                "{v} = arith.select {cond}, {a}, {b} : {}",
                a.ty
            )),
            _ => self.line(format_args!(
                "{v} = arith.select {cond}, {a}, {b} : {}, {}",
                cond.ty, a.ty
            )),
        }
        v
    }

    /// The larger of two; NaN if either is NaN.
    pub fn max(&mut self, a: Val, b: Val, unsigned: bool) -> Val {
        self.extreme(Cmp::Gt, a, b, unsigned)
    }

    /// The smaller of two; NaN if either is NaN.
    pub fn min(&mut self, a: Val, b: Val, unsigned: bool) -> Val {
        self.extreme(Cmp::Lt, a, b, unsigned)
    }

    fn extreme(&mut self, how: Cmp, a: Val, b: Val, unsigned: bool) -> Val {
        let (a, b) = self.match_lanes(a, b);
        let mut first = self.cmp(how, a, b, unsigned);
        if a.ty.elem.is_float() {
            let nan = self.cmp(Cmp::Ne, a, a, false);
            first = self.op2("arith.ori", first, nan);
        }
        self.select(first, a, b)
    }

    /// Reinterprets lanes of one width as another type.
    pub fn bitcast(&mut self, x: Val, elem: Elem) -> Val {
        if x.ty.elem == elem {
            x
        } else if let Some(gpu) = &mut self.gpu {
            gpu.bitcast(x, elem)
        } else {
            self.convert("arith.bitcast", x, x.ty.with(elem))
        }
    }

    /// Reinterprets a vector as one of as many bits in lanes of another width.
    pub fn regroup(&mut self, x: Val, elem: Elem) -> Val {
        let lanes = x.ty.elem.bits() * x.ty.lanes / elem.bits();
        self.convert("vector.bitcast", x, Ty::vector(elem, lanes))
    }

    /// Number conversion. Floats round to nearest even; float to integer
    /// truncates, saturates and maps NaN to 0; integers wrap; to I1 is `!= 0`.
    pub fn cast(&mut self, x: Val, to: Elem, from_unsigned: bool, to_unsigned: bool) -> Val {
        let (from, ty) = (x.ty.elem, x.ty.with(to));
        if from == to {
            return x;
        }
        match (from.is_float(), to.is_float()) {
            (true, true) => match (from, to) {
                (Elem::F64, Elem::BF16) | (Elem::F16, Elem::BF16) | (Elem::BF16, Elem::F16) => {
                    let mid = self.cast(x, Elem::F32, false, false);
                    self.cast(mid, to, false, false)
                }
                (Elem::F32, Elem::BF16) => match &mut self.gpu {
                    Some(gpu) => gpu.round_bf16(x),
                    None => self.f32_to_bf16(x),
                },
                (Elem::BF16, _) => {
                    let bits = self.bitcast(x, Elem::I16);
                    let wide = self.convert("arith.extui", bits, bits.ty.with(Elem::I32));
                    let sixteen = self.int(wide.ty, 16);
                    let high = self.op2("arith.shli", wide, sixteen);
                    let f = self.bitcast(high, Elem::F32);
                    self.cast(f, to, false, false)
                }
                _ if from.bits() < to.bits() => self.convert("arith.extf", x, ty),
                _ => self.convert("arith.truncf", x, ty),
            },
            (false, true) => {
                // Half types through f32.
                let mid = if to == Elem::F64 {
                    Elem::F64
                } else {
                    Elem::F32
                };
                let unsigned = from_unsigned || from == Elem::I1;
                let op = if unsigned {
                    "arith.uitofp"
                } else {
                    "arith.sitofp"
                };
                let f = self.convert(op, x, x.ty.with(mid));
                self.cast(f, to, false, false)
            }
            (true, false) if to == Elem::I1 => {
                let zero = self.cast_zero(x);
                self.cmp(Cmp::Ne, x, zero, false)
            }
            (true, false) => self.float_to_int(x, to, to_unsigned),
            (false, false) if to == Elem::I1 => {
                let zero = self.int(x.ty, 0);
                self.cmp(Cmp::Ne, x, zero, false)
            }
            (false, false) if from.bits() < to.bits() => {
                let op = if from_unsigned || from == Elem::I1 {
                    "arith.extui"
                } else {
                    "arith.extsi"
                };
                self.convert(op, x, ty)
            }
            (false, false) => self.convert("arith.trunci", x, ty),
        }
    }

    fn cast_zero(&mut self, x: Val) -> Val {
        if matches!(x.ty.elem, Elem::F32 | Elem::F64) {
            return self.float(x.ty, 0.0);
        }
        let zero = self.float(x.ty.with(Elem::F32), 0.0);
        self.cast(zero, x.ty.elem, false, false)
    }

    /// Rounds to nearest even by integer arithmetic: without AVX512-BF16, LLVM
    /// would call a library function.
    fn f32_to_bf16(&mut self, x: Val) -> Val {
        let bits = self.bitcast(x, Elem::I32);
        let (one, sixteen, half) = (
            self.int(bits.ty, 1),
            self.int(bits.ty, 16),
            self.int(bits.ty, 0x7fff),
        );
        let high = self.op2("arith.shrui", bits, sixteen);
        let odd = self.op2("arith.andi", high, one);
        let bias = self.add(half, odd);
        let rounded = self.add(bits, bias);
        let top = self.op2("arith.shrui", rounded, sixteen);
        let quiet = self.int(bits.ty, 0x40);
        let nan_bits = self.op2("arith.ori", high, quiet);
        let nan = self.cmp(Cmp::Ne, x, x, false);
        let chosen = self.select(nan, nan_bits, top);
        let short = self.convert("arith.trunci", chosen, chosen.ty.with(Elem::I16));
        self.bitcast(short, Elem::BF16)
    }

    fn float_to_int(&mut self, x: Val, to: Elem, unsigned: bool) -> Val {
        let x = if matches!(x.ty.elem, Elem::F32 | Elem::F64) {
            x
        } else {
            self.cast(x, Elem::F32, false, false)
        };
        let bits = to.bits() as i32;
        if bits < 32 {
            return self.float_to_narrow(x, to, unsigned);
        }
        let (low, high) = match unsigned {
            true => (0.0, 2f64.powi(bits)),
            false => (-(2f64.powi(bits - 1)), 2f64.powi(bits - 1)),
        };
        let (lo, hi) = (self.float(x.ty, low), self.float(x.ty, high));
        let zero_f = self.float(x.ty, 0.0);
        let (below, above) = (
            self.cmp(Cmp::Lt, x, lo, false),
            self.cmp(Cmp::Ge, x, hi, false),
        );
        let nan = self.cmp(Cmp::Ne, x, x, false);
        let outside = self.op2("arith.ori", below, above);
        let outside = self.op2("arith.ori", outside, nan);
        let safe = self.select(outside, zero_f, x);
        let op = if unsigned {
            "arith.fptoui"
        } else {
            "arith.fptosi"
        };
        let mut v = self.convert(op, safe, x.ty.with(to));
        let (least, most) = match unsigned {
            true => (0, if bits == 64 { -1 } else { (1i64 << bits) - 1 }),
            false => (i64::MIN >> (64 - bits), i64::MAX >> (64 - bits)),
        };
        let (least, most) = (self.int(v.ty, least), self.int(v.ty, most));
        v = self.select(above, most, v);
        self.select(below, least, v)
    }

    /// The same to integers of less than 32 bits, whose range floats hold: clamped
    /// before, then through i32, whose conversion is one instruction.
    fn float_to_narrow(&mut self, x: Val, to: Elem, unsigned: bool) -> Val {
        let bits = to.bits() as i32;
        let (low, high) = match unsigned {
            true => (0.0, 2f64.powi(bits) - 1.0),
            false => (-(2f64.powi(bits - 1)), 2f64.powi(bits - 1) - 1.0),
        };
        let (low_v, high_v) = (self.float(x.ty, low), self.float(x.ty, high));
        // A comparison with NaN fails, which leaves the least.
        let number = if low == 0.0 {
            x
        } else {
            let (same, zero) = (self.cmp(Cmp::Eq, x, x, false), self.float(x.ty, 0.0));
            self.select(same, x, zero)
        };
        let above = self.cmp(Cmp::Gt, number, low_v, false);
        let v = self.select(above, number, low_v);
        let below = self.cmp(Cmp::Lt, v, high_v, false);
        let v = self.select(below, v, high_v);
        let whole = self.convert("arith.fptosi", v, v.ty.with(Elem::I32));
        self.convert("arith.trunci", whole, whole.ty.with(to))
    }

    /// `base + index` elements of this type.
    pub fn offset(&mut self, base: Val, index: Val, elem: Elem) -> Val {
        if let Some(gpu) = &mut self.gpu {
            return gpu.offset(base, index, elem);
        }
        let lanes = index.ty.lanes;
        let v = self.fresh(Ty {
            elem: Elem::Ptr,
            lanes,
        });
        let memory = if elem == Elem::I1 { Elem::I8 } else { elem };
        self.line(format_args!(
            "{v} = llvm.getelementptr {base}[{index}] : (!llvm.ptr, {}) -> {}, {}",
            index.ty,
            v.ty,
            memory.name()
        ));
        v
    }

    /// Reads a scalar or a run of lanes, aligned to the element.
    pub fn load(&mut self, from: Val, ty: Ty) -> Val {
        if ty.elem == Elem::I1 {
            let byte = self.load(from, ty.with(Elem::I8));
            return self.cast(byte, Elem::I1, true, true);
        }
        if ty.elem.is_half() {
            let bits = self.load(from, ty.with(Elem::I16));
            return self.bitcast(bits, ty.elem);
        }
        if let Some(gpu) = &mut self.gpu {
            return gpu.load(from, ty);
        }
        let v = self.fresh(ty);
        let align = ty.elem.bits() / 8;
        self.line(format_args!(
            "{v} = llvm.load {from} {{alignment = {align} : i64}} : !llvm.ptr -> {ty}"
        ));
        v
    }

    /// Reads a scalar or a run of lanes at any address.
    pub fn load_bytes(&mut self, from: Val, ty: Ty) -> Val {
        let v = self.fresh(ty);
        self.line(format_args!(
            "{v} = llvm.load {from} {{alignment = 1 : i64}} : !llvm.ptr -> {ty}"
        ));
        v
    }

    /// Reads a run, the lanes that a mask shows if there is one.
    pub fn load_run(&mut self, from: Val, ty: Ty, mask: Option<Val>) -> Val {
        match mask {
            Some(mask) => self.load_masked(from, ty, mask),
            None => self.load(from, ty),
        }
    }

    /// The same from where no address is a multiple of anything.
    pub fn load_run_bytes(&mut self, from: Val, ty: Ty, mask: Option<Val>) -> Val {
        match mask {
            Some(mask) => self.load_masked_bytes(from, ty, mask),
            None => self.load_bytes(from, ty),
        }
    }

    /// The value as memory holds it: bools as bytes, half floats as their bits.
    pub fn as_stored(&mut self, x: Val) -> Val {
        match x.ty.elem {
            Elem::I1 => self.cast(x, Elem::I8, true, true),
            half if half.is_half() => self.bitcast(x, Elem::I16),
            _ => x,
        }
    }

    /// Writes a scalar or a run of lanes.
    pub fn store(&mut self, x: Val, to: Val) {
        let x = self.as_stored(x);
        if let Some(gpu) = &mut self.gpu {
            return gpu.store(x, to);
        }
        let align = x.ty.elem.bits() / 8;
        self.line(format_args!(
            "llvm.store {x}, {to} {{alignment = {align} : i64}} : {}, !llvm.ptr",
            x.ty
        ));
    }

    /// Reads the lanes that `mask` shows; the others are 0.
    pub fn load_masked(&mut self, from: Val, ty: Ty, mask: Val) -> Val {
        if ty.elem == Elem::I1 {
            let bytes = self.load_masked(from, ty.with(Elem::I8), mask);
            return self.cast(bytes, Elem::I1, true, true);
        }
        if ty.elem.is_half() {
            let bits = self.load_masked(from, ty.with(Elem::I16), mask);
            return self.bitcast(bits, ty.elem);
        }
        self.masked_load(from, ty, mask, ty.elem.bits() / 8)
    }

    /// The same at any address, of lanes that memory holds as they are.
    pub fn load_masked_bytes(&mut self, from: Val, ty: Ty, mask: Val) -> Val {
        self.masked_load(from, ty, mask, 1)
    }

    fn masked_load(&mut self, from: Val, ty: Ty, mask: Val, align: u32) -> Val {
        let zero = self.zero(ty);
        let v = self.fresh(ty);
        self.line(format_args!(
            "{v} = llvm.intr.masked.load {from}, {mask}, {zero} {{alignment = {align} : i32}} : (!llvm.ptr, {}, {ty}) -> {ty}",
            mask.ty
        ));
        v
    }

    /// Writes the lanes that `mask` shows.
    pub fn store_masked(&mut self, x: Val, to: Val, mask: Val) {
        let x = self.as_stored(x);
        let mask = match x.ty.elem {
            Elem::I8 | Elem::I16 | Elem::I32 => self.hide_mask(mask),
            _ => mask,
        };
        let align = x.ty.elem.bits() / 8;
        self.line(format_args!(
            "llvm.intr.masked.store {x}, {to}, {mask} {{alignment = {align} : i32}} : {}, {} into !llvm.ptr",
            x.ty, mask.ty
        ));
    }

    /// The mask, its value hidden from LLVM: where it knows that one lane alone is
    /// stored, x86's code generator (LLVM 22) turns a truncation and its masked
    /// store into a store of the *wide* lane, beyond the element. Scratch is
    /// aligned, which LLVM is not told, so its lowest bit is an unknown zero.
    fn hide_mask(&mut self, mask: Val) -> Val {
        let word = Ty::scalar(Elem::I64);
        let address = self.fresh(word);
        self.line(format_args!(
            "{address} = llvm.ptrtoint %{SCRATCH} : !llvm.ptr to i64"
        ));
        let one = self.int(word, 1);
        let low = self.op2("arith.andi", address, one);
        let aligned = self.cmp(Cmp::Ne, low, one, false);
        self.op2("arith.andi", mask, aligned)
    }

    /// Reads one lane from each of a vector of pointers.
    pub fn gather(&mut self, from: Val, ty: Ty, mask: Val) -> Val {
        if ty.elem == Elem::I1 {
            let bytes = self.gather(from, ty.with(Elem::I8), mask);
            return self.cast(bytes, Elem::I1, true, true);
        }
        if ty.elem.is_half() {
            let bits = self.gather(from, ty.with(Elem::I16), mask);
            return self.bitcast(bits, ty.elem);
        }
        let zero = self.zero(ty);
        let v = self.fresh(ty);
        let align = ty.elem.bits() / 8;
        self.line(format_args!(
            "{v} = llvm.intr.masked.gather {from}, {mask}, {zero} {{alignment = {align} : i32}} : ({}, {}, {ty}) -> {ty}",
            from.ty, mask.ty
        ));
        v
    }

    /// Writes one lane to each of a vector of pointers.
    pub fn scatter(&mut self, x: Val, to: Val, mask: Val) {
        let x = self.as_stored(x);
        let align = x.ty.elem.bits() / 8;
        self.line(format_args!(
            "llvm.intr.masked.scatter {x}, {to}, {mask} {{alignment = {align} : i32}} : {}, {} into {}",
            x.ty, mask.ty, to.ty
        ));
    }

    /// Zero of any type.
    pub fn zero(&mut self, ty: Ty) -> Val {
        if self.gpu.is_some() {
            return match ty.elem.is_float() {
                true => self.float(ty, 0.0),
                false => self.int(ty, 0),
            };
        }
        let v = self.fresh(ty);
        self.line(format_args!("{v} = llvm.mlir.zero : {ty}"));
        v
    }

    /// Lanes picked from two vectors of one type.
    pub fn shuffle(&mut self, a: Val, b: Val, lanes: &[u32]) -> Val {
        if a.ty.elem.is_half() {
            let (x, y) = (self.bitcast(a, Elem::I16), self.bitcast(b, Elem::I16));
            let bits = self.shuffle(x, y, lanes);
            return self.bitcast(bits, a.ty.elem);
        }
        let v = self.fresh(Ty::vector(a.ty.elem, lanes.len() as u32));
        let list: Vec<String> = lanes.iter().map(u32::to_string).collect();
        self.line(format_args!(
            "{v} = vector.shuffle {a}, {b} [{}] : {}, {}",
            list.join(", "),
            a.ty,
            b.ty
        ));
        v
    }

    /// One lane as a scalar.
    pub fn extract(&mut self, x: Val, lane: u32) -> Val {
        if x.ty.elem.is_half() {
            let bits = self.bitcast(x, Elem::I16);
            let bits = self.extract(bits, lane);
            return self.bitcast(bits, x.ty.elem);
        }
        let v = self.fresh(Ty::scalar(x.ty.elem));
        self.line(format_args!(
            "{v} = vector.extract {x}[{lane}] : {} from {}",
            v.ty, x.ty
        ));
        v
    }

    /// Combines all lanes by halves: lane i with lane i + n/2, a fixed tree.
    pub fn fold_lanes(&mut self, x: Val, f: &mut dyn FnMut(&mut Emitter, Val, Val) -> Val) -> Val {
        let mut v = x;
        while v.ty.lanes > 1 {
            let half = v.ty.lanes / 2;
            let low: Vec<u32> = (0..half).collect();
            let high: Vec<u32> = (half..2 * half).collect();
            let (a, b) = (self.shuffle(v, v, &low), self.shuffle(v, v, &high));
            v = f(self, a, b);
        }
        self.extract(v, 0)
    }

    /// A counted loop with carried values: `body(e, i, carried)` returns the next
    /// ones. The step is positive.
    pub fn for_loop(
        &mut self,
        low: Val,
        high: Val,
        step: Val,
        init: &[Val],
        body: impl FnOnce(&mut Emitter, Val, &[Val]) -> Vec<Val>,
    ) -> Vec<Val> {
        if self.gpu.is_some() {
            return self.gpu_loop((low, high, step), init, body);
        }
        let i = self.fresh(low.ty);
        let carried: Vec<Val> = init.iter().map(|v| self.fresh(v.ty)).collect();
        let out = self.fresh(low.ty).id;
        let types: Vec<String> = init.iter().map(|v| v.ty.to_string()).collect();
        if init.is_empty() {
            self.line(format_args!(
                "scf.for {i} = {low} to {high} step {step} : {} {{",
                low.ty
            ));
        } else {
            let inits: Vec<String> = carried
                .iter()
                .zip(init)
                .map(|(c, v)| format!("{c} = {v}"))
                .collect();
            self.line(format_args!(
                "%{out}:{} = scf.for {i} = {low} to {high} step {step} iter_args({}) -> ({}) : {} {{",
                init.len(),
                inits.join(", "),
                types.join(", "),
                low.ty
            ));
        }
        let next = body(self, i, &carried);
        debug_assert_eq!(next.len(), init.len());
        if init.is_empty() {
            self.line(format_args!("}}"));
            return vec![];
        }
        let names: Vec<String> = next.iter().map(Val::to_string).collect();
        self.line(format_args!(
            "scf.yield {} : {}\n}}",
            names.join(", "),
            types.join(", ")
        ));
        init.iter()
            .enumerate()
            .map(|(k, v)| Val {
                id: out,
                part: k as u32,
                ty: v.ty,
            })
            .collect()
    }

    /// Runs `body` if `cond`.
    pub fn if_then(&mut self, cond: Val, body: impl FnOnce(&mut Emitter)) {
        if self.gpu.is_some() {
            let cond = self.pred(cond);
            let end = self.kernel_mut().skip_unless(cond);
            body(self);
            return self.kernel_mut().end_of(end);
        }
        self.line(format_args!("scf.if {cond} {{"));
        body(self);
        self.line(format_args!("}}"));
    }

    /// Whether any lane is set.
    pub fn any(&mut self, x: Val) -> Val {
        if x.ty.lanes == 0 {
            return x;
        }
        let v = self.fresh(Ty::scalar(Elem::I1));
        self.line(format_args!(
            "{v} = vector.reduction <or>, {x} : {} into i1",
            x.ty
        ));
        v
    }

    /// The mask of the first `count` lanes.
    pub fn mask_first(&mut self, count: Val, lanes: u32) -> Val {
        let short = self.cast(count, Elem::I32, false, false);
        let lane = self.iota(Elem::I32, lanes);
        self.cmp(Cmp::Lt, lane, short, false)
    }
}

#[cfg(all(test, feature = "llvm"))]
mod tests {
    use super::*;
    use crate::{CpuTarget, Dump, dump};

    /// LLVM 22 would write four bytes where one was asked for.
    #[test]
    fn a_masked_store_of_one_narrow_lane_is_narrow() {
        let wide = Ty::vector(Elem::I32, 16);
        let kernel = Emitter::kernel("k", &CpuTarget::x86_64_v3(), |e, k| {
            let to = e.load(k.args, Ty::scalar(Elem::Ptr));
            let x = e.load(to, wide);
            let x = e.cast(x, Elem::I8, false, false);
            let one = e.i64(1);
            let mask = e.mask_first(one, 16);
            e.store_masked(x, to, mask);
            e.int(Ty::scalar(Elem::I32), 0)
        });
        let asm = dump(&[kernel], &CpuTarget::x86_64_v4(), Dump::Asm).unwrap();
        assert!(asm.contains("vpmovdb"), "{asm}");
    }
}
