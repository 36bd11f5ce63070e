//! An interpreter of NVIDIA PTX text: every GPU kernel's numbers and memory accesses are
//! checked with no GPU.
//!
//! [`Module::parse`] reads the text and is as strict as the ISA: an unknown instruction,
//! modifier or a register of another type is an error with its place. [`launch`] runs a
//! kernel on a [`Memory`] and gives counts ([`Report`]) or a [`Fault`] that says which
//! thread did what wrong where: accesses out of bounds or misaligned, reads of what nothing
//! wrote, races in shared memory, missing waits and fences, divergence, deadlocks.
//!
//! What the ISA leaves open is defined here, and written `unconfirmed` where hardware was
//! not asked: results of `.approx` instructions are the exact ones rounded once; sums in
//! matrix instructions go over k in ascending order, each addition rounded to f32.

mod access;
mod address;
mod ast;
mod atomic;
mod barrier;
mod bulk;
mod convert;
mod cp;
mod cx;
mod decode;
mod entry;
mod exec;
mod fault;
mod float;
mod fp;
mod int;
mod kernel;
mod launch;
mod ldmatrix;
mod ldst;
mod lex;
mod local;
mod logic;
mod mbar;
mod memory;
mod mma;
mod narrow;
mod op;
mod order;
mod parse;
mod regs;
mod report;
mod select;
mod shared;
mod special;
mod statement;
mod sync;
mod tensor;
#[cfg(test)]
mod tests;
mod tma;
mod types;
mod warp;
mod warp_ops;
mod wgmma;
mod wgmma_desc;

pub use fault::{Fault, FaultKind};
pub use kernel::{Kernel, Module, Param};
pub use launch::{Launch, launch};
pub use memory::{Memory, Window};
pub use report::{Counts, Report};
pub use tensor::{Swizzle, TensorMap, TensorType};
