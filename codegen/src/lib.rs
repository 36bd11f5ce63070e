//! Code generation toolkits that know no model op: a typed MLIR builder, LLVM
//! to object code, a typed PTX builder, descriptions of targets.

pub mod emit;
pub mod gpu_target;
pub mod object;
pub mod ptx;
pub mod target;

pub use emit::{Elem, Emitter, Ty, Val};
pub use gpu_target::GpuTarget;
pub use object::{CodegenError, Dump, compile, dump};
pub use target::CpuTarget;
