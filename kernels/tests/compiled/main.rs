//! Compiled kernels against their references, at every CPU level that this
//! machine has.

mod math;
mod nest;
mod random;
mod support;
