//! Kernel families on top of the code generation toolkits: loop nests,
//! contractions, convolutions, attention.
//!
//! A family has a *spec* (the problem, hashable and serialisable), derives its
//! own schedule, says how many tiles a launch has and what it costs, and emits
//! one function of the kernel ABI.

pub mod attention;
mod cases;
mod check;
pub mod conv;
pub mod crossed;
pub mod cuda;
pub mod depthwise;
mod dot;
pub mod emit_nest;
pub mod expr;
mod image;
pub mod lower;
pub mod math;
mod math64;
pub mod matmul;
mod micro;
pub mod nest;
mod nest_check;
mod pairs;
mod quantized;
pub mod reference;
mod reuse;
pub mod schedule;
pub mod simplify;
mod small;
mod softmax;
mod spec;
mod windows;
mod winograd;

pub use expr::{ExprError, ExprId, Exprs, Gathered, Guard, Index, Node, Size, Stride};
pub use nest::{Effect, LoopNest, Params, Reducer, SpecError, Stage, Temp};
pub use simplify::simplify;
pub use spec::{KernelSpec, compile_object, dump};

/// Kernel status: done.
pub const STATUS_OK: i32 = 0;
/// Kernel status: a gathered or scattered index was outside its extent.
pub const STATUS_OUT_OF_RANGE: i32 = 1;
/// Kernel status: an integer was divided by zero.
pub const STATUS_DIVISION_BY_ZERO: i32 = 2;
