//! Kiln's runtime: loads an artifact, plans memory for the sizes at hand and
//! executes. No compiler, no LLVM, no protobuf.

pub mod artifact;
pub mod cli;
pub mod elf;
pub mod error;
pub mod exec;
mod host_steps;
pub mod input;
pub mod memory;
pub mod npy;
pub mod plan;
pub mod pool;
pub mod strings;
mod top_k;

pub use artifact::{Artifact, ArtifactWriter};
pub use error::{Error, Fault, Result};
pub use exec::{MemoryReport, Model, Session, StepTime, TensorRef};
pub use input::{Input, StringsRef};
