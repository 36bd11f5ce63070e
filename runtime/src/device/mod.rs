//! Devices besides the CPU: what a session asks of one, and the two that there are.
//!
//! - [`cuda`](Name::Cuda): an NVIDIA GPU through its driver, which is opened when it is
//!   asked for, so that one binary works with and without it.
//! - [`sim`](Name::Sim): an interpreter of PTX on the CPU, with a memory of its own; a
//!   feature of this crate.
//!
//! Nothing falls back to another device: one that is asked for and missing is an error.

mod cuda;
#[cfg(feature = "sim")]
mod lanes;
mod node;
#[cfg(feature = "sim")]
mod simulated;

use crate::error::{Error, Result};
use kiln_ir::DType;
use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

pub use cuda::{Gpu, gpus};
pub use node::Node;

/// A device as the command line names it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Name {
    /// The machine's processors.
    #[default]
    Cpu,
    /// An NVIDIA GPU by its number.
    Cuda(u32),
    /// The PTX interpreter.
    Sim,
}

impl FromStr for Name {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Name, String> {
        let wrong = || format!("there is no device `{text}`: cpu, cuda, cuda:N and sim are");
        match text {
            "cpu" => Ok(Name::Cpu),
            "cuda" => Ok(Name::Cuda(0)),
            "sim" => Ok(Name::Sim),
            _ => {
                let number = text.strip_prefix("cuda:").ok_or_else(wrong)?;
                Ok(Name::Cuda(number.parse().map_err(|_| wrong())?))
            }
        }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Name::Cpu => write!(f, "cpu"),
            Name::Cuda(0) => write!(f, "cuda"),
            Name::Cuda(n) => write!(f, "cuda:{n}"),
            Name::Sim => write!(f, "sim"),
        }
    }
}

/// A kernel of the loaded module, by the order in which kernels were asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KernelId(pub u32);

/// A queue of a device's work, which is done in the order in which it is given. Lanes run
/// beside each other; signals alone order them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lane {
    /// Kernels, copies inside device memory, fills, and graphs of kernels and copies.
    Compute,
    /// Copies from the host.
    Up,
    /// Copies to the host.
    Down,
}

impl Lane {
    /// Every lane, in the order of their numbers.
    pub const ALL: [Lane; 3] = [Lane::Compute, Lane::Up, Lane::Down];
}

/// What a lane was given up to a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Signal(pub u32);

/// A moment on the device's own clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark(pub u32);

/// A graph that a device holds.
#[derive(Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GraphId(pub u32);

/// A part of device memory that a launch may touch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// Its address.
    pub at: u64,
    /// Bytes.
    pub len: u64,
    /// Whether it may be written.
    pub writable: bool,
}

/// A tensor in device memory that a kernel reads by tiles, 128 bytes of the innermost
/// dimension, whose chunks of 16 bytes are swizzled. Dimensions go from the innermost out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorMap {
    /// f16, bf16, f32, f8, i8 or u8.
    pub dtype: DType,
    /// Its address.
    pub address: u64,
    /// Elements along each dimension.
    pub sizes: Vec<u64>,
    /// Bytes between neighbours along each dimension but the first.
    pub strides: Vec<u64>,
    /// Elements of a tile along each dimension.
    pub tile: Vec<u32>,
}

/// Bytes of an encoded [`TensorMap`].
pub const MAP_BYTES: usize = 128;
/// What the offset of an encoded [`TensorMap`] in a launch's parameters is a multiple of.
pub const MAP_ALIGN: usize = 64;

/// A kernel with everything that starting it takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Launch<'a> {
    /// Which kernel.
    pub kernel: KernelId,
    /// Blocks along x, y and z; none is 0.
    pub grid: [u32; 3],
    /// Threads of a block along x, y and z.
    pub block: [u32; 3],
    /// Blocks of a cluster along x, y and z.
    pub cluster: [u32; 3],
    /// Dynamic shared memory of a block, in bytes.
    pub shared: u32,
    /// The parameters' bytes.
    pub params: Cow<'a, [u8]>,
    /// What it may touch; used by devices that [check](Device::checks_windows) it.
    pub windows: Cow<'a, [Window]>,
    /// What it stems from, for errors.
    pub label: Cow<'a, str>,
}

/// What a device has to measure work with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clock {
    /// Marks, and the time between them.
    Time,
    /// Counts of what launches do, the same in each run; its time is an interpreter's.
    Counts,
}

/// What a device is.
#[derive(Clone, Debug)]
pub struct Facts {
    /// Its name.
    pub name: String,
    /// Compute capability, major and minor; none: it runs any target's code.
    pub capability: Option<(u32, u32)>,
    /// The driver's CUDA version, major and minor; none: there is no driver.
    pub driver: Option<(u32, u32)>,
    /// What it measures work with.
    pub clock: Clock,
}

/// A device of one session: memory, one loaded module, three lanes of work.
///
/// Work of a [`Lane`] is done in the order in which it is given; of two lanes, nothing is
/// in order but what follows [`after`](Device::after). Only [`download`](Device::download),
/// [`free`](Device::free), [`wait`](Device::wait) and [`elapsed`](Device::elapsed) wait for
/// it, so an error of a kernel may come with a later call. Addresses are those of [`alloc`](Device::alloc),
/// with offsets added. Everything is freed when the device is dropped.
pub trait Device: Send {
    /// What it is.
    fn facts(&self) -> &Facts;

    /// Bytes of its memory that are free, and all of them; none where it has as much as
    /// the host.
    fn memory(&self) -> Result<Option<(usize, usize)>>;

    /// Memory of `bytes` bytes, aligned to 256; K0806 where there is not so much.
    fn alloc(&mut self, bytes: usize) -> Result<u64>;

    /// Gives memory back, when all work so far is done.
    fn free(&mut self, at: u64) -> Result<()>;

    /// Says that nobody wants what a part of memory holds: reading it before it is written
    /// is an error from here on, on devices that notice.
    fn discard(&mut self, at: u64, bytes: usize) -> Result<()>;

    /// What a lane was given so far, in the place of an earlier signal if that is named.
    fn signal(&mut self, lane: Lane, reuse: Option<Signal>) -> Result<Signal>;

    /// What a lane is given from here on begins when a signal is past.
    fn after(&mut self, lane: Lane, signal: Signal) -> Result<()>;

    /// Copies from the host, on the lane up. The bytes may change as soon as this returns.
    fn upload(&mut self, to: u64, bytes: &[u8]) -> Result<()>;

    /// Copies to the host, on the lane down, and waits for that.
    fn download(&mut self, from: u64, bytes: &mut [u8]) -> Result<()>;

    /// Copies inside device memory, on the compute lane; both parts are apart.
    fn copy(&mut self, from: u64, to: u64, bytes: usize) -> Result<()>;

    /// Sets every byte of a part of memory, on the compute lane.
    fn fill(&mut self, at: u64, bytes: usize, value: u8) -> Result<()>;

    /// Loads PTX text; K0805 with the driver's log where it is refused.
    fn load(&mut self, ptx: &str) -> Result<()>;

    /// A kernel of the loaded module by its name; K0705 where it is not there. `shared`
    /// is the dynamic shared memory that its launches ask for, in bytes.
    fn kernel(&mut self, name: &str, shared: u32) -> Result<KernelId>;

    /// A tensor map as kernels take it.
    fn tensor_map(&self, map: &TensorMap) -> Result<[u8; MAP_BYTES]>;

    /// Starts a kernel on the compute lane. What the device counted, where it counts.
    fn launch(&mut self, launch: &Launch) -> Result<Option<serde_json::Value>>;

    /// Whether launches may touch nothing but their windows.
    fn checks_windows(&self) -> bool;

    /// Waits for all work so far of every lane.
    fn wait(&mut self) -> Result<()>;

    /// Marks this moment in a lane.
    fn mark(&mut self, lane: Lane) -> Result<Mark>;

    /// Nanoseconds between two marks, when both are past.
    fn elapsed(&mut self, from: Mark, to: Mark) -> Result<u64>;

    /// Forgets all marks.
    fn forget_marks(&mut self);

    /// A graph of work that is done as a whole, each node after the one before it; what
    /// the nodes hold is copied.
    fn graph(&mut self, nodes: &[Node]) -> Result<GraphId>;

    /// Gives a node of a graph what it holds from the next [`replay`](Device::replay) on:
    /// another one [`alike`](Node::alike). False where the device refuses that; the graph
    /// is to be forgotten then.
    fn update(&mut self, graph: &GraphId, at: usize, node: &Node) -> Result<bool>;

    /// Does what a graph's nodes hold, on the compute lane.
    fn replay(&mut self, graph: &GraphId) -> Result<()>;

    /// Forgets a graph.
    fn forget(&mut self, graph: GraphId);
}

/// Opens a device; an error that says what is missing.
pub fn open(name: Name) -> Result<Box<dyn Device>> {
    match name {
        Name::Cpu => Err(Error::run("K0801", "the CPU is not opened as a device")),
        Name::Cuda(number) => Ok(Box::new(cuda::Cuda::open(number)?)),
        #[cfg(feature = "sim")]
        Name::Sim => Ok(Box::new(simulated::Sim::new())),
        #[cfg(not(feature = "sim"))]
        Name::Sim => Err(Error::run(
            "K0801",
            "this build has no PTX interpreter, the device `sim`",
        )
        .help("use `kiln`, which has it, or build with the feature `sim`")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_and_written() {
        for (text, name) in [
            ("cpu", Name::Cpu),
            ("cuda", Name::Cuda(0)),
            ("cuda:3", Name::Cuda(3)),
            ("sim", Name::Sim),
        ] {
            assert_eq!(text.parse(), Ok(name));
            assert_eq!(name.to_string(), text);
        }
        for text in ["", "cuda:", "cuda:-1", "cuda:x", "gpu", "cuda3"] {
            assert!(
                text.parse::<Name>().unwrap_err().contains("cuda:N"),
                "{text}"
            );
        }
    }

    #[test]
    fn a_missing_device_is_an_error_that_helps() {
        // With or without a driver, no machine has so many GPUs.
        let error = open(Name::Cuda(4000)).err().unwrap();
        assert!(["K0801", "K0803"].contains(&error.code), "{error}");
        assert!(error.help.is_some() && error.exit_code() == 1);
    }
}
