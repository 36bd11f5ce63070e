//! Hopper's own instructions: products of a group of four warps.

use super::Kernel;
use super::matrix::Half;
use super::reg::{B64, F32, Pred, Reg};

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
}
