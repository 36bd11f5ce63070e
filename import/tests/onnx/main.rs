//! ONNX import, held against ONNX's own node tests, ONNX Runtime, and files that
//! are damaged.

mod bad;
mod hostile;
mod document;
mod models;
mod nodes;
mod sequences;
mod random;
mod support;
