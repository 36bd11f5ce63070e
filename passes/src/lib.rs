//! Kiln's pass manager and passes
