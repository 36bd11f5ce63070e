//! Hopper's own instructions: products of a group of four warps, copies of tiles, barriers
//! in shared memory, clusters of blocks.

use super::Kernel;
use super::matrix::{Half, Sum};
use super::reg::{B16, B32, B64, F32, Pred, Reg};

impl Kernel {
    /// Starts `sums += a · b` (or `= a · b` where `add` does not hold) of a 64 × k by a k × n
    /// matrix in shared memory, where k numbers have 32 bytes, both by descriptors, with
    /// neighbours along k together; `sums` are the n/2 of the thread, those of integers wrap.
    /// All threads of a group of four warps.
    pub fn multiply_group<T: Sum>(
        &mut self,
        of: impl Into<T::Factors>,
        sums: &[Reg<T>],
        a: Reg<B64>,
        b: Reg<B64>,
        add: Reg<Pred>,
    ) {
        let names: Vec<String> = sums.iter().map(Reg::to_string).collect();
        let (names, n, d) = (names.join(", "), 2 * sums.len(), T::SUM);
        let of = of.into();
        let ([ta, tb], deep) = (T::factors(of), 256 / T::factor_bits(of));
        // Scales of floats A and B; of 16 bits also whether they are turned.
        let rest = match (d, deep) {
            ("f32", 16) => ", 1, 1, 0, 0",
            ("f32", _) => ", 1, 1",
            _ => "",
        };
        self.line(format_args!(
            "wgmma.mma_async.sync.aligned.m64n{n}k{deep}.{d}.{ta}.{tb} {{{names}}}, {a}, {b}, {add}{rest}"
        ));
    }

    /// The same of a 64 × 16 matrix in registers, as `mma` has the fragments of a warp's
    /// 16 rows, by one in shared memory, which is `turned` if neighbours along n are together.
    pub fn multiply_group_from(
        &mut self,
        t: Half,
        sums: &[Reg<F32>],
        a: [Reg<B32>; 4],
        (b, turned): (Reg<B64>, bool),
        add: Reg<Pred>,
    ) {
        let names: Vec<String> = sums.iter().map(Reg::to_string).collect();
        let (names, n, t) = (names.join(", "), 2 * sums.len(), t.name());
        let ([a0, a1, a2, a3], turned) = (a, i32::from(turned));
        self.line(format_args!(
            "wgmma.mma_async.sync.aligned.m64n{n}k16.f32.{t}.{t} {{{names}}}, {{{a0}, {a1}, {a2}, {a3}}}, {b}, {add}, 1, 1, {turned}"
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

    /// Asks for `n` registers a thread where it has fewer (`up`), or gives those beyond
    /// back. All threads of a group of four warps.
    pub fn registers(&mut self, n: u32, up: bool) {
        let way = if up { "inc" } else { "dec" };
        self.line(format_args!("setmaxnreg.{way}.sync.aligned.u32 {n}"));
    }
}

/// Barriers of eight bytes in shared memory (`mbarrier`), each with phases that end when
/// so many threads have arrived and so many bytes have come.
impl Kernel {
    /// Makes a barrier for `count` arrivals a phase.
    pub fn barrier_init(&mut self, bar: Reg<B32>, count: u32) {
        self.line(format_args!(
            "mbarrier.init.shared::cta.b64 [{bar}], {count}"
        ));
    }

    /// Barriers that the thread made are seen by the cluster and by tile copies, once the
    /// cluster has met.
    pub fn fence_barriers(&mut self) {
        self.line(format_args!("fence.mbarrier_init.release.cluster"));
    }

    /// Arrives.
    pub fn barrier_arrive(&mut self, bar: Reg<B32>) {
        self.line(format_args!("mbarrier.arrive.shared::cta.b64 _, [{bar}]"));
    }

    /// Arrives at the same barrier of another block of the cluster.
    pub fn barrier_arrive_at(&mut self, bar: Reg<B32>, rank: Reg<B32>) {
        let there: Reg<B32> = self.reg();
        self.line(format_args!(
            "mapa.shared::cluster.u32 {there}, {bar}, {rank}"
        ));
        self.line(format_args!(
            "mbarrier.arrive.release.cluster.shared::cluster.b64 _, [{there}]"
        ));
    }

    /// Arrives, and has the phase wait for `bytes` more bytes of copies.
    pub fn barrier_expect(&mut self, bar: Reg<B32>, bytes: u32) {
        self.line(format_args!(
            "mbarrier.arrive.expect_tx.shared::cta.b64 _, [{bar}], {bytes}"
        ));
    }

    /// Waits until the phase of this parity (0: the first, third …) is over; for 1 it is
    /// at first.
    pub fn barrier_wait(&mut self, bar: Reg<B32>, parity: Reg<B32>) {
        let again = self.begin_loop();
        let over: Reg<Pred> = self.reg();
        self.line(format_args!(
            "mbarrier.try_wait.parity.shared::cta.b64 {over}, [{bar}], {parity}"
        ));
        self.line(format_args!("@!{over} bra {again}"));
    }

    /// Starts copying a tile to shared memory, at a multiple of 1024: what lies outside the
    /// tensor becomes zeros; when it is there, the barrier gets its bytes. With `blocks`,
    /// to the same places of the cluster's blocks of these bits, whose barriers get them.
    pub fn copy_tile(
        &mut self,
        to: Reg<B32>,
        map: Reg<B64>,
        at: &[Reg<B32>],
        bar: Reg<B32>,
        blocks: Option<u16>,
    ) {
        let names: Vec<String> = at.iter().map(Reg::to_string).collect();
        let (rank, at) = (at.len(), names.join(", "));
        let copy = format!(
            "cp.async.bulk.tensor.{rank}d.shared::cluster.global.mbarrier::complete_tx::bytes"
        );
        match blocks {
            None => self.line(format_args!("{copy} [{to}], [{map}, {{{at}}}], [{bar}]")),
            Some(mask) => {
                let bits: Reg<B16> = self.reg();
                self.line(format_args!("mov.b16 {bits}, {mask}"));
                self.line(format_args!(
                    "{copy}.multicast::cluster [{to}], [{map}, {{{at}}}], [{bar}], {bits}"
                ));
            }
        }
    }
}

/// Clusters of blocks.
impl Kernel {
    /// The block's number in its cluster.
    pub fn cluster_rank(&mut self) -> Reg<B32> {
        let to = self.reg();
        self.line(format_args!("mov.u32 {to}, %cluster_ctarank"));
        to
    }

    /// All threads of the cluster meet.
    pub fn cluster_barrier(&mut self) {
        self.line(format_args!("barrier.cluster.arrive.release"));
        self.line(format_args!("barrier.cluster.wait.acquire"));
    }
}
