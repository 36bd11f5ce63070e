//! What the emitter does on a GPU alone: registers as values, variables, whole branches.

use super::gpu::Gpu;
use super::{Cmp, Elem, Emitter, Ty, Val};
use crate::ptx::{B32, B64, F32, F64, Kernel, Pred, Reg, Shuffle};

impl Emitter {
    /// Writes to a GPU's kernel while `body` runs: scalars only.
    pub fn on_gpu(kernel: Kernel, body: impl FnOnce(&mut Emitter)) -> Kernel {
        let mut e = Emitter {
            text: String::new(),
            next: 0,
            gpu: Some(Box::new(Gpu::new(kernel))),
            wide: false,
            bf16: false,
        };
        body(&mut e);
        debug_assert!(e.text.is_empty(), "MLIR in a GPU's kernel: {}", e.text);
        match e.gpu {
            Some(gpu) => gpu.kernel,
            None => unreachable!("it was there at the start"),
        }
    }

    /// The kernel that is written to, for what has no operation here.
    pub fn kernel_mut(&mut self) -> &mut Kernel {
        match &mut self.gpu {
            Some(gpu) => &mut gpu.kernel,
            None => unreachable!("no GPU's kernel is being built"),
        }
    }

    /// The value that lane `lane ^ mask` of the warp has.
    pub fn shuffle_xor(&mut self, x: Val, mask: u32) -> Val {
        self.on().shuffle(x, Shuffle::Xor(mask))
    }

    /// The value that lane `lane - by` of the warp has; its own where there is none.
    pub fn shuffle_up(&mut self, x: Val, by: u32) -> Val {
        self.on().shuffle(x, Shuffle::Up(by))
    }

    pub(super) fn on(&mut self) -> &mut Gpu {
        match &mut self.gpu {
            Some(gpu) => gpu,
            None => unreachable!("no GPU's kernel is being built"),
        }
    }

    /// A 64-bit register as a value: an i64, or a pointer.
    pub fn from_long(&mut self, r: Reg<B64>, elem: Elem) -> Val {
        self.on().of(r, elem)
    }

    /// A word as an i32, as what it holds the bits of, or as a pointer to shared memory.
    pub fn from_word(&mut self, r: Reg<B32>, elem: Elem) -> Val {
        self.on().of(r, elem)
    }

    /// A register as an f32.
    pub fn from_single(&mut self, r: Reg<F32>) -> Val {
        self.on().of(r, Elem::F32)
    }

    /// A register as an f64.
    pub fn from_double(&mut self, r: Reg<F64>) -> Val {
        self.on().of(r, Elem::F64)
    }

    /// A predicate as a truth.
    pub fn from_pred(&mut self, r: Reg<Pred>) -> Val {
        self.on().of(r, Elem::I1)
    }

    /// The register of an i64 or a pointer.
    pub fn long(&mut self, x: Val) -> Reg<B64> {
        self.on().long(x)
    }

    /// The register of an i32, or of narrower bits.
    pub fn word(&mut self, x: Val) -> Reg<B32> {
        self.on().word(x)
    }

    /// The register of an f32.
    pub fn single(&mut self, x: Val) -> Reg<F32> {
        self.on().single(x)
    }

    /// The register of an f64.
    pub fn double(&mut self, x: Val) -> Reg<F64> {
        self.on().double(x)
    }

    /// The register of a truth.
    pub fn pred(&mut self, x: Val) -> Reg<Pred> {
        self.on().pred(x)
    }

    /// `yes` where `cond` holds, else `no`, and what they give, of these types.
    /// Both work on `cx`.
    pub fn either<C: ?Sized>(
        &mut self,
        cond: Val,
        types: &[Ty],
        cx: &mut C,
        yes: impl FnOnce(&mut Emitter, &mut C) -> Vec<Val>,
        no: impl FnOnce(&mut Emitter, &mut C) -> Vec<Val>,
    ) -> Vec<Val> {
        let out: Vec<Val> = types.iter().map(|&ty| self.on().variable(ty)).collect();
        let cond = self.pred(cond);
        let (other, end) = self.kernel_mut().begin_either(cond);
        let values = yes(self, cx);
        self.on().write(&out, &values);
        self.kernel_mut().otherwise(other, &end);
        let values = no(self, cx);
        self.on().write(&out, &values);
        self.kernel_mut().end_of(end);
        self.on().read(&out)
    }

    /// `n` neighbours (of 16 bytes together at most) as memory has them, from a
    /// multiple of all their bytes.
    pub fn load_few(&mut self, from: Val, elem: Elem, n: u32) -> Vec<Val> {
        self.on().load_few(from, elem, n)
    }

    /// The same of elements of 32 bits or less, of whole words, where `cond` holds; zeros
    /// elsewhere, where nothing is read.
    pub fn load_few_where(&mut self, cond: Val, from: Val, elem: Elem, n: u32) -> Vec<Val> {
        self.on().load_few_where(cond, from, elem, n)
    }

    /// Writes as many, as memory has them.
    pub fn store_few(&mut self, xs: &[Val], to: Val) {
        self.on().store_few(xs, to)
    }

    /// Variables with these first values, to be written in place.
    pub fn variables(&mut self, init: &[Val]) -> Vec<Val> {
        self.on().variables(init)
    }

    /// Writes variables, all from what was before.
    pub fn assign(&mut self, variables: &[Val], values: &[Val]) {
        self.on().write(variables, values);
    }

    /// `sum + a · b` into the variable, of floats with one rounding.
    pub fn multiply_into(&mut self, sum: Val, a: Val, b: Val) {
        self.on().multiply_into(sum, a, b);
    }

    /// An element where `cond` holds; zero elsewhere, where nothing is read.
    pub fn load_where(&mut self, cond: Val, from: Val, ty: Ty) -> Val {
        if ty.elem == Elem::I1 || ty.elem.is_half() {
            let raw = if ty.elem == Elem::I1 {
                Elem::I8
            } else {
                Elem::I16
            };
            let bits = self.load_where(cond, from, ty.with(raw));
            return match ty.elem {
                Elem::I1 => self.cast(bits, Elem::I1, true, true),
                _ => self.bitcast(bits, ty.elem),
            };
        }
        self.on().load_where(cond, from, ty)
    }

    /// [`Emitter::for_loop`].
    pub(super) fn gpu_loop(
        &mut self,
        (low, high, step): (Val, Val, Val),
        init: &[Val],
        body: impl FnOnce(&mut Emitter, Val, &[Val]) -> Vec<Val>,
    ) -> Vec<Val> {
        let carried = self.on().variables(init);
        let counter = self.on().variables(&[low]);
        let more = self.cmp(Cmp::Lt, low, high, false);
        let more = self.pred(more);
        let end = self.kernel_mut().skip_unless(more);
        let top = self.kernel_mut().begin_loop();
        let now = self.on().read(&carried);
        let next = body(self, counter[0], &now);
        debug_assert_eq!(next.len(), init.len());
        self.on().write(&carried, &next);
        let i = self.add(counter[0], step);
        self.on().write(&counter, &[i]);
        let again = self.cmp(Cmp::Lt, i, high, false);
        let again = self.pred(again);
        self.kernel_mut().end_loop(top, again);
        self.kernel_mut().end_of(end);
        self.on().read(&carried)
    }
}
