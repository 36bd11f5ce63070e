//! Hopper's own instructions: products of a group of four warps, barriers in shared memory,
//! registers that change hands.

use super::Kernel;
use super::matrix::Half;
use super::reg::{B32, B64, F32, Pred, Reg};

impl Kernel {
    /// Starts `sums += a · b` (or `= a · b` where `add` does not hold) of a 64 × 16 by a
    /// 16 × n matrix of halves in shared memory, both by descriptors, with neighbours
    /// along k together; `sums` are the n/2 of the thread. All threads of a group of four
    /// warps.
    pub fn multiply_group(
        &mut self,
        t: Half,
        sums: &[Reg<F32>],
        a: Reg<B64>,
        b: Reg<B64>,
        add: Reg<Pred>,
    ) {
        let names: Vec<String> = sums.iter().map(Reg::to_string).collect();
        let (names, n, t) = (names.join(", "), 2 * sums.len(), t.name());
        self.line(format_args!(
            "wgmma.mma_async.sync.aligned.m64n{n}k16.f32.{t}.{t} {{{names}}}, {a}, {b}, {add}, 1, 1, 0, 0"
        ));
    }

    /// The same of a 64 × 16 matrix in registers, as `mma` has the fragments of a warp's
    /// 16 rows, by one in shared memory with neighbours along n together.
    pub fn multiply_group_turned(
        &mut self,
        t: Half,
        sums: &[Reg<F32>],
        a: [Reg<B32>; 4],
        b: Reg<B64>,
        add: Reg<Pred>,
    ) {
        let names: Vec<String> = sums.iter().map(Reg::to_string).collect();
        let (names, n, t) = (names.join(", "), 2 * sums.len(), t.name());
        let [a0, a1, a2, a3] = a;
        self.line(format_args!(
            "wgmma.mma_async.sync.aligned.m64n{n}k16.f32.{t}.{t} {{{names}}}, {{{a0}, {a1}, {a2}, {a3}}}, {b}, {add}, 1, 1, 1"
        ));
    }

    /// What the group's registers and shared memory hold is what products read from here
    /// on.
    pub fn fence_group(&mut self) {
        self.line(format_args!("wgmma.fence.sync.aligned"));
    }

    /// Ends a batch of products.
    pub fn end_products(&mut self) {
        self.line(format_args!("wgmma.commit_group.sync.aligned"));
    }

    /// Waits until at most `batches` batches of products are under way.
    pub fn wait_products(&mut self, batches: u32) {
        self.line(format_args!("wgmma.wait_group.sync.aligned {batches}"));
    }

    /// What the thread wrote to shared memory is seen by products and tensor copies.
    pub fn fence_shared(&mut self) {
        self.line(format_args!("fence.proxy.async.shared::cta"));
    }

    /// Makes 8 bytes of shared memory a barrier that `count` arrivals complete a phase of.
    pub fn barrier_init(&mut self, bar: Reg<B32>, count: u32) {
        self.line(format_args!(
            "mbarrier.init.shared::cta.b64 [{bar}], {count}"
        ));
    }

    /// The thread arrives: what it did before is done before the phase completes.
    pub fn barrier_arrive(&mut self, bar: Reg<B32>) {
        self.line(format_args!("mbarrier.arrive.shared::cta.b64 _, [{bar}]"));
    }

    /// Waits until the barrier's phase of this parity is complete; before the first one
    /// completes, that of parity 1 is.
    pub fn barrier_wait(&mut self, bar: Reg<B32>, parity: Reg<B32>) {
        let top = self.begin_loop();
        let done: Reg<Pred> = self.reg();
        self.line(format_args!(
            "mbarrier.try_wait.parity.shared::cta.b64 {done}, [{bar}], {parity}"
        ));
        let again = self.not(done);
        self.end_loop(top, again);
    }

    /// Each thread of the group of four warps has `n` registers from here on: more (`up`),
    /// once others have given them away, or fewer.
    pub fn registers(&mut self, n: u32, up: bool) {
        self.exchanges = true;
        let how = if up { "inc" } else { "dec" };
        self.line(format_args!("setmaxnreg.{how}.sync.aligned.u32 {n}"));
    }
}
