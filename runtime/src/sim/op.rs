//! Decoded instructions.

use super::ast::Space;
use super::bulk::Bulk;
use super::cp::CpAsync;
use super::fault::Outcome;
use super::ldmatrix::Matrices;
use super::ldst::{Atom, Load, Store};
use super::mbar::MbarOp;
use super::regs::{Alu, LANES, Reg, Slot};
use super::report::Class;
use super::sync::{Bar, Fence};
use super::tma::TensorCopy;
use super::wgmma::Wgmma;

/// Which lanes must execute an instruction at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Collect {
    /// Any.
    None,
    /// All of the warp, none of which may have exited.
    Aligned,
    /// Those of the mask in this slot that have not exited.
    Members(Slot),
}

/// An instruction.
pub struct Inst {
    /// What it does.
    pub op: Op,
    /// The predicate that guards it, and whether it is negated.
    pub guard: Option<(Slot, bool)>,
    /// Slots that must have been written.
    pub reads: Box<[Slot]>,
    /// Slots that it writes.
    pub writes: Box<[Slot]>,
    /// Which lanes must be there.
    pub collect: Collect,
    /// What it counts as.
    pub class: Class,
    /// The line of the text, from 1.
    pub line: u32,
    /// How it is written.
    pub text: Box<str>,
}

impl Inst {
    /// One without operands.
    pub fn plain(op: Op, class: Class, line: u32, text: &str) -> Inst {
        let (guard, reads, writes) = (None, Box::default(), Box::default());
        Inst {
            op,
            guard,
            reads,
            writes,
            collect: Collect::None,
            class,
            line,
            text: text.into(),
        }
    }
}

/// An address: a register or a constant, and an offset.
#[derive(Clone, Copy, Debug)]
pub struct Addr {
    /// Where the base is.
    pub slot: Slot,
    /// Whether it has 64 bits.
    pub wide: bool,
    /// Bytes.
    pub offset: i64,
}

impl Addr {
    /// Not known yet.
    pub const NONE: Addr = Addr {
        slot: 0,
        wide: false,
        offset: 0,
    };

    /// In one lane.
    #[inline]
    pub fn lane(&self, regs: &[Reg], lane: usize) -> u64 {
        let low = regs[self.slot as usize].0[lane] as u64;
        if !self.wide {
            return low.wrapping_add(self.offset as u64) & u32::MAX as u64;
        }
        let high = regs[self.slot as usize + 1].0[lane] as u64;
        (low | high << 32).wrapping_add(self.offset as u64)
    }

    /// In every lane.
    pub fn lanes(&self, regs: &[Reg]) -> [u64; LANES] {
        std::array::from_fn(|lane| self.lane(regs, lane))
    }
}

/// Registers of one warp, and the lanes that execute: what lanes exchange.
pub type Exchange = Box<dyn Fn(&mut [Reg], u32) -> Outcome + Send + Sync>;

/// What an instruction does.
pub enum Op {
    /// Registers to registers, lane by lane.
    Alu(Alu),
    /// Registers to registers, lanes among each other.
    Exchange(Exchange),
    /// Nothing that shows here.
    Nop,
    /// A branch.
    Bra(u32),
    /// A branch by a table.
    Brx(Slot, Box<[u32]>),
    /// The thread ends.
    Exit,
    /// The kernel fails.
    Trap,
    /// A load.
    Load(Load),
    /// A store.
    Store(Store),
    /// An atomic.
    Atom(Atom),
    /// A barrier of the CTA.
    Bar(Bar),
    /// `bar.warp.sync`
    WarpBarrier,
    /// A fence.
    Fence(Fence),
    /// `barrier.cluster.arrive`, and whether it releases.
    ClusterArrive(bool),
    /// `barrier.cluster.wait`
    ClusterWait,
    /// A matrix product in registers, and its operations.
    Matrix(Alu, u64),
    /// `ldmatrix`, `stmatrix`
    Matrices(Matrices),
    /// `cp.async`
    CpAsync(CpAsync),
    /// `cp.async.commit_group`
    CpCommit,
    /// `cp.async.wait_group N`; all without N.
    CpWait(Option<u32>),
    /// `cp.async.mbarrier.arrive`, and whether it is an arrival of its own (`.noinc`).
    CpArrive(Addr, Space, bool),
    /// An mbarrier.
    Mbar(MbarOp),
    /// `cp.async.bulk`
    Bulk(Bulk),
    /// `cp.async.bulk.tensor`
    Tensor(TensorCopy),
    /// `cp.async.bulk.commit_group`
    BulkCommit,
    /// `cp.async.bulk.wait_group N`
    BulkWait(u32),
    /// `wgmma.mma_async`
    Wgmma(Wgmma),
    /// `wgmma.fence`
    WgmmaFence,
    /// `wgmma.commit_group`
    WgmmaCommit,
    /// `wgmma.wait_group N`
    WgmmaWait(u32),
}
