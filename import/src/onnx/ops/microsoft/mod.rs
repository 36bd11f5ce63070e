//! Operators of the domain `com.microsoft`: what ONNX Runtime's own optimizer and
//! quantizer emit. Their meaning is that of ONNX Runtime's CPU kernels, against
//! which `scripts/microsoft_cases.py` holds them.

pub(crate) mod attention;
pub(crate) mod bits;
pub(crate) mod elementwise;
pub(crate) mod fused;
pub(crate) mod grouped;
pub(crate) mod norm;
pub(crate) mod product;
pub(crate) mod qlinear;
