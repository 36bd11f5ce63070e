//! Compiled kernels against their references, at every CPU level that this
//! machine has.

mod attention;
mod cases;
mod conv;
mod crossed;
mod gpu;
mod math;
mod matmul;
mod nest;
mod parts;
mod random;
mod scan;
mod scatter;
mod sort;
mod support;
