//! Kernel families on top of the code generation toolkits: loop nests now,
//! contractions and attention beside them.
//!
//! A family has a *spec* (the problem, hashable and serialisable), derives its
//! own schedule, says how many tiles a launch has and what it costs, and emits
//! one function of the kernel ABI.

pub mod expr;
pub mod nest;
pub mod reference;
pub mod simplify;

/// Kernel status: done.
pub const STATUS_OK: i32 = 0;
/// Kernel status: a gathered or scattered index was outside its extent.
pub const STATUS_OUT_OF_RANGE: i32 = 1;
/// Kernel status: an integer was divided by zero.
pub const STATUS_DIVISION_BY_ZERO: i32 = 2;
