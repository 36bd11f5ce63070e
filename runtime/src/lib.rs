//! Kiln's runtime: loads an artifact, plans memory for the sizes at hand and
//! executes. No compiler, no LLVM, no protobuf.

pub mod artifact;
pub mod bench;
pub mod cli;
pub mod device;
pub mod elf;
pub mod error;
pub mod exec;
pub mod gpu;
mod host_steps;
pub mod input;
pub mod memory;
pub mod npy;
pub mod plan;
pub mod pool;
pub mod profile;
pub mod roofline;
mod scaling;
#[cfg(feature = "sim")]
pub mod sim;
pub mod strings;
pub mod threads;
mod top_k;
mod trace;
pub mod tune;
pub mod tuned;

pub use artifact::{Artifact, ArtifactWriter};
pub use error::{Error, Fault, Result};
pub use exec::{GraphCounts, MemoryReport, Model, Session, TensorRef};
pub use input::{Input, StringsRef};
pub use profile::{Profile, StepTime, Work};
pub use threads::{Pin, Threads};
