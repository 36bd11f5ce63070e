//! What a launch did: counts, never times.

use serde::Serialize;

/// What an instruction is counted as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "said by Counts")]
pub enum Class {
    Integer,
    Float,
    Convert,
    Move,
    Control,
    Memory,
    Matrix,
    Sync,
}

/// Instructions, counted once a lane that executes them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Integer arithmetic, logic, comparisons.
    pub integer: u64,
    /// Floating-point arithmetic outside matrix instructions.
    pub float: u64,
    /// Conversions.
    pub convert: u64,
    /// Moves, shuffles, votes.
    pub moves: u64,
    /// Branches and exits.
    pub control: u64,
    /// Loads, stores, copies, atomics.
    pub memory: u64,
    /// mma, wgmma, ldmatrix and so on.
    pub matrix: u64,
    /// Barriers, fences, waits.
    pub sync: u64,
}

/// What a launch did. Sums over all its CTAs; the same for any number of threads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Instructions by class, a lane each.
    pub instructions: Counts,
    /// Instructions of warps, whatever their lanes.
    pub warp_instructions: u64,
    /// Bytes that lanes loaded from global memory, copies into shared memory included.
    pub global_loaded: u64,
    /// Bytes that lanes stored to global memory, copies from shared memory included.
    pub global_stored: u64,
    /// Sectors of 32 bytes that global loads, stores and atomics touched, counted once
    /// an instruction of a warp.
    pub global_sectors: u64,
    /// The least sectors that could hold as many different bytes: `global_sectors` over
    /// this is 1 for coalesced accesses.
    pub global_sectors_least: u64,
    /// Instructions of warps that access shared memory through its banks.
    pub shared_accesses: u64,
    /// Wavefronts beyond the least for the accesses' widths.
    pub bank_conflicts: u64,
    /// Atomic operations, a lane each.
    pub atomics: u64,
    /// Barriers of a CTA that were passed.
    pub barriers: u64,
    /// Phases that mbarriers completed.
    pub mbarrier_phases: u64,
    /// Multiplications and additions in matrix instructions (two a product).
    pub mma_flops: u64,
    /// CTAs that ran.
    pub blocks: u64,
}

impl Report {
    /// Counts `lanes` lanes of one instruction.
    #[inline]
    pub fn count(&mut self, class: Class, lanes: u32) {
        self.warp_instructions += 1;
        let counts = &mut self.instructions;
        let counter = match class {
            Class::Integer => &mut counts.integer,
            Class::Float => &mut counts.float,
            Class::Convert => &mut counts.convert,
            Class::Move => &mut counts.moves,
            Class::Control => &mut counts.control,
            Class::Memory => &mut counts.memory,
            Class::Matrix => &mut counts.matrix,
            Class::Sync => &mut counts.sync,
        };
        *counter += lanes as u64;
    }

    /// Adds what another part of the launch did.
    pub fn add(&mut self, other: &Report) {
        let (a, b) = (&mut self.instructions, &other.instructions);
        a.integer += b.integer;
        a.float += b.float;
        a.convert += b.convert;
        a.moves += b.moves;
        a.control += b.control;
        a.memory += b.memory;
        a.matrix += b.matrix;
        a.sync += b.sync;
        self.warp_instructions += other.warp_instructions;
        self.global_loaded += other.global_loaded;
        self.global_stored += other.global_stored;
        self.global_sectors += other.global_sectors;
        self.global_sectors_least += other.global_sectors_least;
        self.shared_accesses += other.shared_accesses;
        self.bank_conflicts += other.bank_conflicts;
        self.atomics += other.atomics;
        self.barriers += other.barriers;
        self.mbarrier_phases += other.mbarrier_phases;
        self.mma_flops += other.mma_flops;
        self.blocks += other.blocks;
    }
}
