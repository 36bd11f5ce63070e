//! Arithmetic, comparisons, conversions.

use super::Kernel;
use super::reg::{Arith, B16, B32, B64, F32, F64, Float, Int, Pred, Reg, Src, Type};

/// How two numbers are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the ISA's own names")]
pub enum Order {
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
}

impl Order {
    fn name(self) -> &'static str {
        match self {
            Order::Eq => "eq",
            Order::Ne => "ne",
            Order::Lt => "lt",
            Order::Le => "le",
            Order::Gt => "gt",
            Order::Ge => "ge",
        }
    }
}

/// Rounding of a float to a whole number, kept as a float.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rounding {
    /// To the nearest, ties to even.
    Even,
    /// Down.
    Floor,
    /// Up.
    Ceil,
    /// Towards zero.
    Zero,
}

/// One-argument functions that are one instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fn1 {
    /// Sign change.
    Neg,
    /// Absolute value.
    Abs,
    /// Square root, correctly rounded.
    Sqrt,
    /// 2^x by the special function unit, at most 2 ulp off (f32).
    Exp2Approx,
    /// 1/x by the special function unit, at most 1 ulp off (f32).
    RecipApprox,
}

fn float_suffix<T: Type>() -> &'static str {
    T::REGISTER
}

impl Kernel {
    fn two<T: Type>(&mut self, op: &str, a: Src<T>, b: Src<T>) -> Reg<T> {
        let to = self.reg();
        self.line(format_args!("{op} {to}, {a}, {b}"));
        to
    }

    /// Sum.
    pub fn add<T: Arith>(&mut self, a: impl Into<Src<T>>, b: impl Into<Src<T>>) -> Reg<T> {
        self.two(&format!("add{}", T::ADD), a.into(), b.into())
    }

    /// Sum, into a register.
    pub fn add_to<T: Arith>(&mut self, to: Reg<T>, a: impl Into<Src<T>>, b: impl Into<Src<T>>) {
        let (a, b) = (a.into(), b.into());
        self.line(format_args!("add{} {to}, {a}, {b}", T::ADD));
    }

    /// Difference.
    pub fn sub<T: Arith>(&mut self, a: impl Into<Src<T>>, b: impl Into<Src<T>>) -> Reg<T> {
        self.two(&format!("sub{}", T::ADD), a.into(), b.into())
    }

    /// Product, of integers its low half.
    pub fn mul<T: Arith>(&mut self, a: impl Into<Src<T>>, b: impl Into<Src<T>>) -> Reg<T> {
        self.two(&format!("mul{}", T::MUL), a.into(), b.into())
    }

    /// Product of two 32-bit integers, whole.
    pub fn mul_wide(
        &mut self,
        a: impl Into<Src<B32>>,
        b: impl Into<Src<B32>>,
        signed: bool,
    ) -> Reg<B64> {
        let (a, b, to) = (a.into(), b.into(), self.reg());
        let kind = if signed { "s32" } else { "u32" };
        self.line(format_args!("mul.wide.{kind} {to}, {a}, {b}"));
        to
    }

    /// `a · b + c` of integers, the low half.
    pub fn mad<T: Int>(
        &mut self,
        a: impl Into<Src<T>>,
        b: impl Into<Src<T>>,
        c: impl Into<Src<T>>,
    ) -> Reg<T> {
        let (a, b, c, to) = (a.into(), b.into(), c.into(), self.reg());
        self.line(format_args!("mad.lo.s{} {to}, {a}, {b}, {c}", T::BITS));
        to
    }

    /// `a · b + c` of integers, the low half, into a register.
    pub fn mad_to<T: Int>(&mut self, to: Reg<T>, a: Reg<T>, b: Reg<T>, c: Reg<T>) {
        self.line(format_args!("mad.lo.s{} {to}, {a}, {b}, {c}", T::BITS));
    }

    /// `a · b + c` with one rounding.
    pub fn fma<T: Float>(
        &mut self,
        a: impl Into<Src<T>>,
        b: impl Into<Src<T>>,
        c: impl Into<Src<T>>,
    ) -> Reg<T> {
        let to = self.reg();
        self.fma_to(to, a, b, c);
        to
    }

    /// `a · b + c` with one rounding, into a register.
    pub fn fma_to<T: Float>(
        &mut self,
        to: Reg<T>,
        a: impl Into<Src<T>>,
        b: impl Into<Src<T>>,
        c: impl Into<Src<T>>,
    ) {
        let (a, b, c) = (a.into(), b.into(), c.into());
        self.line(format_args!("fma.rn{} {to}, {a}, {b}, {c}", T::REGISTER));
    }

    /// Quotient of floats, correctly rounded.
    pub fn div_float<T: Float>(&mut self, a: impl Into<Src<T>>, b: impl Into<Src<T>>) -> Reg<T> {
        self.two(&format!("div.rn{}", T::REGISTER), a.into(), b.into())
    }

    /// Quotient (`rest` false) or remainder of integers, towards zero.
    pub fn divide<T: Int>(
        &mut self,
        rest: bool,
        signed: bool,
        a: impl Into<Src<T>>,
        b: impl Into<Src<T>>,
    ) -> Reg<T> {
        let op = if rest { "rem" } else { "div" };
        let kind = if signed { 's' } else { 'u' };
        self.two(&format!("{op}.{kind}{}", T::BITS), a.into(), b.into())
    }

    /// The larger (or smaller) number; the other one if one is NaN.
    pub fn extreme_float<T: Float>(&mut self, larger: bool, a: Reg<T>, b: Reg<T>) -> Reg<T> {
        let op = if larger { "max" } else { "min" };
        self.two(&format!("{op}{}", T::REGISTER), a.into(), b.into())
    }

    /// The larger number; NaN if one is NaN. One instruction from sm_80 on.
    pub fn larger_or_nan(&mut self, a: Reg<F32>, b: Reg<F32>) -> Reg<F32> {
        self.two("max.NaN.f32", a.into(), b.into())
    }

    /// The larger (or smaller) of two integers.
    pub fn extreme_int<T: Int>(
        &mut self,
        larger: bool,
        signed: bool,
        a: impl Into<Src<T>>,
        b: impl Into<Src<T>>,
    ) -> Reg<T> {
        let op = if larger { "max" } else { "min" };
        let kind = if signed { 's' } else { 'u' };
        self.two(&format!("{op}.{kind}{}", T::BITS), a.into(), b.into())
    }

    /// A bitwise operation: `and`, `or` or `xor`.
    pub fn bitwise<T: Int>(
        &mut self,
        op: &'static str,
        a: impl Into<Src<T>>,
        b: impl Into<Src<T>>,
    ) -> Reg<T> {
        self.two(&format!("{op}.b{}", T::BITS), a.into(), b.into())
    }

    /// The same of truths.
    pub fn logic(&mut self, op: &'static str, a: Reg<Pred>, b: Reg<Pred>) -> Reg<Pred> {
        self.two(&format!("{op}.pred"), a.into(), b.into())
    }

    /// The opposite of a truth.
    pub fn not(&mut self, a: Reg<Pred>) -> Reg<Pred> {
        let to = self.reg();
        self.line(format_args!("not.pred {to}, {a}"));
        to
    }

    /// `a << n`; 0 from `n` = width on.
    pub fn shl<T: Int>(&mut self, a: impl Into<Src<T>>, n: impl Into<Src<B32>>) -> Reg<T> {
        let (a, n, to) = (a.into(), n.into(), self.reg());
        self.line(format_args!("shl.b{} {to}, {a}, {n}", T::BITS));
        to
    }

    /// `a >> n`; the sign or 0 from `n` = width on.
    pub fn shr<T: Int>(
        &mut self,
        signed: bool,
        a: impl Into<Src<T>>,
        n: impl Into<Src<B32>>,
    ) -> Reg<T> {
        let (a, n, to) = (a.into(), n.into(), self.reg());
        let kind = if signed { 's' } else { 'u' };
        self.line(format_args!("shr.{kind}{} {to}, {a}, {n}", T::BITS));
        to
    }

    /// A one-instruction function of a float.
    pub fn float_fn<T: Float>(&mut self, f: Fn1, x: Reg<T>) -> Reg<T> {
        let to = self.reg();
        let op = match f {
            Fn1::Neg => "neg",
            Fn1::Abs => "abs",
            Fn1::Sqrt => "sqrt.rn",
            Fn1::Exp2Approx => "ex2.approx",
            Fn1::RecipApprox => "rcp.approx",
        };
        self.line(format_args!("{op}{} {to}, {x}", float_suffix::<T>()));
        to
    }

    /// `magnitude` with the sign of `sign`.
    pub fn copysign<T: Float>(&mut self, magnitude: Reg<T>, sign: Reg<T>) -> Reg<T> {
        let to = self.reg();
        // The instruction takes the sign first.
        self.line(format_args!(
            "copysign{} {to}, {sign}, {magnitude}",
            T::REGISTER
        ));
        to
    }

    /// A float rounded to a whole number.
    pub fn round<T: Float>(&mut self, how: Rounding, x: Reg<T>) -> Reg<T> {
        let to = self.reg();
        let mode = match how {
            Rounding::Even => "rni",
            Rounding::Floor => "rmi",
            Rounding::Ceil => "rpi",
            Rounding::Zero => "rzi",
        };
        let t = T::REGISTER;
        self.line(format_args!("cvt.{mode}{t}{t} {to}, {x}"));
        to
    }

    /// Comparison of integers.
    pub fn compare<T: Int>(
        &mut self,
        how: Order,
        a: impl Into<Src<T>>,
        b: impl Into<Src<T>>,
        unsigned: bool,
    ) -> Reg<Pred> {
        let (a, b, to) = (a.into(), b.into(), self.reg());
        let kind = match (how, unsigned) {
            (Order::Eq | Order::Ne, _) => 'b',
            (_, true) => 'u',
            (_, false) => 's',
        };
        self.line(format_args!(
            "setp.{}.{kind}{} {to}, {a}, {b}",
            how.name(),
            T::BITS
        ));
        to
    }

    /// Comparison of floats: false where one is NaN, but for `Ne`, which is true.
    pub fn compare_float<T: Float>(
        &mut self,
        how: Order,
        a: impl Into<Src<T>>,
        b: impl Into<Src<T>>,
    ) -> Reg<Pred> {
        let (a, b, to) = (a.into(), b.into(), self.reg());
        let name = if how == Order::Ne { "neu" } else { how.name() };
        self.line(format_args!("setp.{name}{} {to}, {a}, {b}", T::REGISTER));
        to
    }

    /// `a` where `cond`, else `b`.
    pub fn select<T: Type>(
        &mut self,
        cond: Reg<Pred>,
        a: impl Into<Src<T>>,
        b: impl Into<Src<T>>,
    ) -> Reg<T> {
        let (a, b, to) = (a.into(), b.into(), self.reg());
        self.line(format_args!("selp{} {to}, {a}, {b}, {cond}", T::REGISTER));
        to
    }

    /// A truth as 1 or 0.
    pub fn truth(&mut self, p: Reg<Pred>) -> Reg<B32> {
        self.select(p, 1, 0)
    }

    /// An i32 or u32 as 64 bits.
    pub fn extend(&mut self, x: Reg<B32>, signed: bool) -> Reg<B64> {
        let to = self.reg();
        let k = if signed { 's' } else { 'u' };
        self.line(format_args!("cvt.{k}64.{k}32 {to}, {x}"));
        to
    }

    /// The low 32 bits.
    pub fn low(&mut self, x: Reg<B64>) -> Reg<B32> {
        let to = self.reg();
        self.line(format_args!("cvt.u32.u64 {to}, {x}"));
        to
    }

    /// The low `bits` (8 or 16) of a word, with the sign or with zeros before them.
    pub fn narrow(&mut self, x: Reg<B32>, bits: u32, signed: bool) -> Reg<B32> {
        if !signed {
            return self.bitwise("and", x, (1u32 << bits) - 1);
        }
        let to = self.reg();
        self.line(format_args!("cvt.s32.s{bits} {to}, {x}"));
        to
    }

    /// Bits `down .. down + bits` of a word, with zeros above them.
    pub fn field(&mut self, x: Reg<B32>, down: u32, bits: u32) -> Reg<B32> {
        let top = down + bits == 32;
        match (down, top) {
            (0, true) => x,
            (_, true) => self.shr(false, x, down),
            _ => {
                let to = self.reg();
                self.line(format_args!("bfe.u32 {to}, {x}, {down}, {bits}"));
                to
            }
        }
    }

    /// A word of parts of `bits` bits each, the first lowest; each has zeros above it.
    pub fn joined(&mut self, parts: &[Reg<B32>], bits: u32) -> Reg<B32> {
        let mut all = parts[0];
        for (i, &part) in parts.iter().enumerate().skip(1) {
            let to = self.reg();
            let at = bits * i as u32;
            self.line(format_args!("bfi.b32 {to}, {part}, {all}, {at}, {bits}"));
            all = to;
        }
        all
    }

    /// Bytes of two words, by four bits of `which` each: 0 to 3 are `low`'s, 4 to 7 `high`'s.
    pub fn permute(
        &mut self,
        low: Reg<B32>,
        high: Reg<B32>,
        which: impl Into<Src<B32>>,
    ) -> Reg<B32> {
        let (to, which) = (self.reg(), which.into());
        self.line(format_args!("prmt.b32 {to}, {low}, {high}, {which}"));
        to
    }

    /// `x & mask | ones`.
    pub fn masked(&mut self, x: Reg<B32>, mask: i32, ones: i32) -> Reg<B32> {
        let to = self.reg();
        self.line(format_args!("lop3.b32 {to}, {x}, {mask}, {ones}, 0xea"));
        to
    }

    /// The low 16 bits of a word as a register of their own.
    pub fn half_of(&mut self, x: Reg<B32>) -> Reg<B16> {
        let to = self.reg();
        self.line(format_args!("cvt.u16.u32 {to}, {x}"));
        to
    }

    /// 16 bits as a word, zeros before them.
    pub fn word_of(&mut self, x: Reg<B16>) -> Reg<B32> {
        let to = self.reg();
        self.line(format_args!("cvt.u32.u16 {to}, {x}"));
        to
    }

    /// The bits of a float, and back.
    pub fn bits_of(&mut self, x: Reg<F32>) -> Reg<B32> {
        let to = self.reg();
        self.line(format_args!("mov.b32 {to}, {x}"));
        to
    }

    /// The float of these bits.
    pub fn float_of(&mut self, x: Reg<B32>) -> Reg<F32> {
        let to = self.reg();
        self.line(format_args!("mov.b32 {to}, {x}"));
        to
    }

    /// The bits of a double.
    pub fn bits_of_double(&mut self, x: Reg<F64>) -> Reg<B64> {
        let to = self.reg();
        self.line(format_args!("mov.b64 {to}, {x}"));
        to
    }

    /// The double of these bits.
    pub fn double_of(&mut self, x: Reg<B64>) -> Reg<F64> {
        let to = self.reg();
        self.line(format_args!("mov.b64 {to}, {x}"));
        to
    }

    /// f32 to f64, exactly.
    pub fn widen(&mut self, x: Reg<F32>) -> Reg<F64> {
        let to = self.reg();
        self.line(format_args!("cvt.f64.f32 {to}, {x}"));
        to
    }

    /// f64 to f32, to nearest even.
    pub fn round_single(&mut self, x: Reg<F64>) -> Reg<F32> {
        let to = self.reg();
        self.line(format_args!("cvt.rn.f32.f64 {to}, {x}"));
        to
    }

    /// An f16 as f32, exactly.
    pub fn widen_f16(&mut self, x: Reg<B16>) -> Reg<F32> {
        let to = self.reg();
        self.line(format_args!("cvt.f32.f16 {to}, {x}"));
        to
    }

    /// f32 (or f64) to f16, to nearest even.
    pub fn round_f16<T: Float>(&mut self, x: Reg<T>) -> Reg<B16> {
        let to = self.reg();
        self.line(format_args!("cvt.rn.f16{} {to}, {x}", T::REGISTER));
        to
    }

    /// f32 to bf16, to nearest even.
    pub fn round_bf16(&mut self, x: Reg<F32>) -> Reg<B16> {
        let to = self.reg();
        self.line(format_args!("cvt.rn.bf16.f32 {to}, {x}"));
        to
    }

    /// An integer as a float, to nearest even.
    pub fn int_to_float<I: Int, T: Float>(&mut self, x: Reg<I>, signed: bool) -> Reg<T> {
        let to = self.reg();
        let k = if signed { 's' } else { 'u' };
        self.line(format_args!(
            "cvt.rn{}.{k}{} {to}, {x}",
            T::REGISTER,
            I::BITS
        ));
        to
    }

    /// A float as an integer, towards zero; the nearest one that exists; of NaN anything.
    pub fn float_to_int<T: Float, I: Int>(&mut self, x: Reg<T>, signed: bool) -> Reg<I> {
        let to = self.reg();
        let k = if signed { 's' } else { 'u' };
        self.line(format_args!(
            "cvt.rzi.{k}{}{} {to}, {x}",
            I::BITS,
            T::REGISTER
        ));
        to
    }
}
