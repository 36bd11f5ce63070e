//! ONNX import, held against ONNX's own node tests, ONNX Runtime, and files that
//! are damaged.

mod bad;
mod document;
mod hostile;
mod models;
mod nodes;
mod random;
mod regressions;
mod sequences;
mod strings;
mod support;
