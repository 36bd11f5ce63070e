//! Kiln's typed IR: element types, symbolic dims, the graph, the op table, the
//! builder, the verifier, the text form and the reference interpreter.

pub mod dim;
pub mod dtype;
pub mod scalar;

pub use dim::{Binding, Dim, DimError, Tri};
pub use dtype::{DType, Kind};
pub use scalar::{BinaryFn, CompareFn, ReduceFn, UnaryFn};
