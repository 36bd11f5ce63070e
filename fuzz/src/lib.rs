//! What the fuzz targets share: the checks, how inputs are changed, and a limit
//! on memory.
//!
//! Each check is one file and uses nothing of this crate, because the tests of
//! the crate that it concerns include it to replay the regressions.

pub mod artifact;
pub mod artifact_mutator;
pub mod json;
pub mod kir;
pub mod kir_mutator;
pub mod limit;
pub mod onnx;
pub mod onnx_mutator;
pub mod random;
pub mod safetensors;
pub mod safetensors_mutator;
