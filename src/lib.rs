//! Kiln: a compiler-style model-graph optimizer and runtime.
//!
//! ```no_run
//! use kiln::{compile, import, runtime};
//! use std::path::Path;
//!
//! let model = import::import_onnx(Path::new("model.onnx"), &Default::default()).unwrap();
//! compile::compile(model.module, &compile::Options::default(), Path::new("model.kiln")).unwrap();
//! let model = runtime::Model::load(Path::new("model.kiln")).unwrap();
//! let mut session = runtime::Session::new(model, 2).unwrap();
//! # let (ids, shape) = ([0u8; 8], [1usize, 1]);
//! let ids = runtime::TensorRef { dtype: kiln::ir::DType::I64, shape: &shape, bytes: &ids };
//! session.run(0, &[("input_ids", ids)]).unwrap();
//! ```

pub mod compile;
pub mod explain;
pub mod quantize;
pub mod roofline;

pub use kiln_import as import;
pub use kiln_ir as ir;
pub use kiln_passes as passes;
pub use kiln_runtime as runtime;
pub use kiln_text as text;
