//! Control flow, barriers, what a thread is.

use super::reg::{Arith, B32, B64, Int, Pred, Reg, Src, Type};
use super::{Kernel, Order};

/// Which lane's value a lane gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shuffle {
    /// That of `lane ^ mask`.
    Xor(u32),
    /// That of `lane - by`; its own where there is none.
    Up(u32),
}

impl Kernel {
    fn label(&mut self) -> String {
        self.labels += 1;
        format!("$L{}", self.labels)
    }

    fn place(&mut self, label: &str) {
        self.body.push_str(label);
        self.body.push_str(":\n");
    }

    /// A comment in the text.
    pub fn comment(&mut self, text: &str) {
        let indent = 4 * self.depth;
        self.body.push_str(&format!("{:indent$}// {text}\n", ""));
    }

    /// The thread's number in its block, along x.
    pub fn thread(&mut self) -> Reg<B32> {
        self.special("%tid.x")
    }

    /// The block's number along an axis of the grid.
    pub fn block(&mut self, axis: usize) -> Reg<B32> {
        self.special(["%ctaid.x", "%ctaid.y", "%ctaid.z"][axis])
    }

    /// How many blocks the grid has along an axis.
    pub fn blocks(&mut self, axis: usize) -> Reg<B32> {
        self.special(["%nctaid.x", "%nctaid.y", "%nctaid.z"][axis])
    }

    /// The thread's lane in its warp.
    pub fn lane(&mut self) -> Reg<B32> {
        self.special("%laneid")
    }

    fn special(&mut self, name: &str) -> Reg<B32> {
        let to = self.reg();
        self.line(format_args!("mov.u32 {to}, {name}"));
        to
    }

    /// All threads of the block meet; what they wrote to shared memory is seen.
    pub fn barrier(&mut self) {
        self.line(format_args!("bar.sync 0"));
    }

    /// So many threads meet at one of the block's other barriers, 1 to 15: those that
    /// [`Kernel::arrive_of`] lets pass are counted too. All threads of a warp.
    pub fn barrier_of(&mut self, id: u32, threads: u32) {
        self.line(format_args!("bar.sync {id}, {threads}"));
    }

    /// Arrives at such a barrier, and goes on. All threads of a warp.
    pub fn arrive_of(&mut self, id: u32, threads: u32) {
        self.line(format_args!("bar.arrive {id}, {threads}"));
    }

    /// All threads of the warp meet.
    pub fn warp_barrier(&mut self) {
        self.line(format_args!("bar.warp.sync -1"));
    }

    /// Lane `lane ^ mask`'s value, in every lane of the warp.
    pub fn shuffle_xor(&mut self, x: Reg<B32>, mask: u32) -> Reg<B32> {
        self.shuffle(x, Shuffle::Xor(mask))
    }

    /// Another lane's value, in every lane of the warp.
    pub fn shuffle(&mut self, x: Reg<B32>, from: Shuffle) -> Reg<B32> {
        let to = self.reg();
        match from {
            Shuffle::Xor(mask) => {
                self.line(format_args!("shfl.sync.bfly.b32 {to}, {x}, {mask}, 31, -1"))
            }
            Shuffle::Up(by) => self.line(format_args!("shfl.sync.up.b32 {to}, {x}, {by}, 0, -1")),
        }
        to
    }

    /// The same of 64 bits, half by half.
    pub fn shuffle_long(&mut self, x: Reg<B64>, from: Shuffle) -> Reg<B64> {
        let (low, high): (Reg<B32>, Reg<B32>) = (self.reg(), self.reg());
        self.line(format_args!("mov.b64 {{{low}, {high}}}, {x}"));
        let (low, high) = (self.shuffle(low, from), self.shuffle(high, from));
        let to = self.reg();
        self.line(format_args!("mov.b64 {to}, {{{low}, {high}}}"));
        to
    }

    /// Runs `body` where `cond` holds, else jumps over it.
    pub fn if_then(&mut self, cond: Reg<Pred>, body: impl FnOnce(&mut Kernel)) {
        let end = self.skip_unless(cond);
        body(self);
        self.end_of(end);
    }

    /// Jumps to the label that this returns unless `cond` holds; [`Kernel::end_of`]
    /// places it.
    pub(crate) fn skip_unless(&mut self, cond: Reg<Pred>) -> String {
        let end = self.label();
        self.line(format_args!("@!{cond} bra {end}"));
        self.depth += 1;
        end
    }

    /// Places the label of [`Kernel::skip_unless`].
    pub(crate) fn end_of(&mut self, label: String) {
        self.depth -= 1;
        self.place(&label);
    }

    /// Jumps to the first label that this returns unless `cond` holds.
    pub(crate) fn begin_either(&mut self, cond: Reg<Pred>) -> (String, String) {
        let end = self.label();
        let other = self.skip_unless(cond);
        (other, end)
    }

    /// The end of the one way and the start of the other.
    pub(crate) fn otherwise(&mut self, other: String, end: &str) {
        self.line(format_args!("bra {end}"));
        self.end_of(other);
        self.depth += 1;
    }

    /// The loop whose body begins here is not to be unrolled.
    pub fn nounroll(&mut self) {
        self.line(format_args!(".pragma \"nounroll\""));
    }

    /// The start of a loop's body.
    pub(crate) fn begin_loop(&mut self) -> String {
        let top = self.label();
        self.place(&top);
        top
    }

    /// Back to the body's start where `again` holds.
    pub(crate) fn end_loop(&mut self, top: String, again: Reg<Pred>) {
        self.line(format_args!("@{again} bra {top}"));
    }

    /// Runs `yes` where `cond` holds, else `no`.
    pub fn if_else(
        &mut self,
        cond: Reg<Pred>,
        yes: impl FnOnce(&mut Kernel),
        no: impl FnOnce(&mut Kernel),
    ) {
        let (other, end) = (self.label(), self.label());
        self.line(format_args!("@!{cond} bra {other}"));
        self.depth += 1;
        yes(self);
        self.line(format_args!("bra {end}"));
        self.depth -= 1;
        self.place(&other);
        self.depth += 1;
        no(self);
        self.depth -= 1;
        self.place(&end);
    }

    /// Instructions of `body` run where `cond` holds, each under a guard: for a few, none
    /// of them a jump.
    pub fn guarded(&mut self, cond: Reg<Pred>, body: impl FnOnce(&mut Kernel)) {
        let before = self.guard.replace(cond.to_string());
        debug_assert!(before.is_none(), "guards do not nest");
        body(self);
        self.guard = before;
    }

    /// The thread is done where `cond` holds.
    pub fn exit_if(&mut self, cond: Reg<Pred>) {
        self.line(format_args!("@{cond} exit"));
    }

    /// A counted loop, for `i` from `low` below `high` in steps. A positive step.
    pub fn for_range<T: Int + Arith>(
        &mut self,
        low: impl Into<Src<T>>,
        high: impl Into<Src<T>>,
        step: impl Into<Src<T>>,
        body: impl FnOnce(&mut Kernel, Reg<T>),
    ) {
        let (high, step) = (high.into(), step.into());
        let (top, end) = (self.label(), self.label());
        let i = self.mov(low);
        let done = self.compare(Order::Ge, i, high, false);
        self.line(format_args!("@{done} bra {end}"));
        self.place(&top);
        self.depth += 1;
        body(self, i);
        self.add_to(i, i, step);
        let again = self.compare(Order::Lt, i, high, false);
        self.line(format_args!("@{again} bra {top}"));
        self.depth -= 1;
        self.place(&end);
    }

    /// A copy of a register or a constant.
    pub fn mov<T: Type>(&mut self, x: impl Into<Src<T>>) -> Reg<T> {
        let to = self.reg();
        self.set(to, x);
        to
    }

    /// Writes a register again.
    pub fn set<T: Type>(&mut self, to: Reg<T>, x: impl Into<Src<T>>) {
        let x = x.into();
        self.line(format_args!("mov{} {to}, {x}", T::REGISTER));
    }
}
