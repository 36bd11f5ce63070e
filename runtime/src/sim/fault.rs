//! What goes wrong while a kernel runs.

use crate::error::Error;
use std::fmt;

/// Kinds of faults.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultKind {
    /// The launch does not fit the kernel.
    Launch,
    /// An access outside every allocation, window or variable.
    OutOfBounds,
    /// A store to memory that may only be read.
    ReadOnly,
    /// An address that is no multiple of the access's size.
    Misaligned,
    /// A read of memory that nothing wrote.
    Unwritten,
    /// A read of a register that nothing wrote.
    Uninitialised,
    /// Two threads access the same bytes of shared memory, one writes, and nothing
    /// orders them.
    Race,
    /// Data of a copy or of wgmma is used, or what they read is overwritten, before
    /// the wait.
    MissingWait,
    /// A fence between generic and asynchronous accesses is missing.
    MissingFence,
    /// Lanes are missing at an instruction that all must execute at once.
    Divergent,
    /// No thread can go on.
    Deadlock,
    /// An mbarrier that is none, or is used wrongly.
    Mbarrier,
    /// A tensor map, a box, a matrix descriptor that is not allowed.
    Tensor,
    /// An operand outside what the instruction allows.
    Operand,
    /// `trap`.
    Trap,
    /// More instructions than the launch allows.
    Steps,
}

impl FaultKind {
    /// The stable code of the error that this becomes.
    pub fn code(self) -> &'static str {
        match self {
            FaultKind::Launch => "K0781",
            FaultKind::OutOfBounds | FaultKind::ReadOnly | FaultKind::Misaligned => "K0782",
            FaultKind::Unwritten | FaultKind::Uninitialised => "K0783",
            FaultKind::Race | FaultKind::MissingWait | FaultKind::MissingFence => "K0784",
            FaultKind::Divergent | FaultKind::Deadlock | FaultKind::Mbarrier => "K0785",
            FaultKind::Tensor | FaultKind::Operand => "K0786",
            FaultKind::Trap | FaultKind::Steps => "K0787",
        }
    }
}

/// A fault: what, where, and what to do.
#[derive(Clone, Debug)]
pub struct Fault {
    /// What kind.
    pub kind: FaultKind,
    /// The kernel.
    pub kernel: String,
    /// The line of the PTX text, from 1; 0 if no instruction is at fault.
    pub line: u32,
    /// The instruction as it is written.
    pub instruction: String,
    /// The block.
    pub block: [u32; 3],
    /// The thread, if one is at fault.
    pub thread: Option<[u32; 3]>,
    /// The address, in the space of the access.
    pub address: Option<u64>,
    /// What happened.
    pub message: String,
    /// What to do.
    pub help: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "kernel `{}`", self.kernel)?;
        if self.line > 0 {
            write!(f, ", PTX line {}: `{}`", self.line, self.instruction)?;
        }
        write!(f, ", block {:?}", self.block)?;
        if let Some(thread) = self.thread {
            write!(f, ", thread {thread:?}")?;
        }
        if let Some(address) = self.address {
            write!(f, ", address {address:#x}")?;
        }
        write!(f, ": {}", self.message)
    }
}

impl std::error::Error for Fault {}

impl From<Fault> for Error {
    fn from(fault: Fault) -> Error {
        Error::run(fault.kind.code(), fault.to_string()).help(fault.help)
    }
}

impl From<Box<Fault>> for Error {
    fn from(fault: Box<Fault>) -> Error {
        Error::from(*fault)
    }
}

/// A fault before it is known where it happens.
#[derive(Clone, Debug)]
pub struct Trouble {
    pub kind: FaultKind,
    pub lane: Option<u32>,
    pub address: Option<u64>,
    pub message: String,
    pub help: String,
}

/// What an instruction gives, or why it cannot.
pub type Outcome<T = ()> = Result<T, Box<Trouble>>;

/// A trouble of no lane.
pub fn trouble(
    kind: FaultKind,
    message: impl Into<String>,
    help: impl Into<String>,
) -> Box<Trouble> {
    Box::new(Trouble {
        kind,
        lane: None,
        address: None,
        message: message.into(),
        help: help.into(),
    })
}

impl Trouble {
    /// In this lane.
    pub fn lane(mut self: Box<Self>, lane: usize) -> Box<Trouble> {
        self.lane.get_or_insert(lane as u32);
        self
    }

    /// At this address.
    pub fn at(mut self: Box<Self>, address: u64) -> Box<Trouble> {
        self.address.get_or_insert(address);
        self
    }
}
