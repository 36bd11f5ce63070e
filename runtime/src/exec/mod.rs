//! The executor: a [`Model`] is an opened artifact with its code loaded, shared
//! and immutable; a [`Session`] runs it and owns state, arena and threads.

mod bind;
mod control;
mod device;
mod launch;
mod layout;
mod model;
pub mod schedule;
mod session;
mod steps;

pub use device::{DeviceMemory, GraphCounts, best_target, tune};
use launch::Ready;
pub use model::{MemoryReport, Model};
pub use session::{Session, TensorRef};
pub(crate) use steps::Run;
