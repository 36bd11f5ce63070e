//! ONNX import, held against ONNX's own node tests, ONNX Runtime, and files that
//! are damaged.

mod bad;
mod models;
mod nodes;
mod regressions;
mod support;
