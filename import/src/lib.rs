//! Importers: model files to a [`kiln_ir::Module`].
//!
//! [`import_onnx`] gives a verified-by-construction module or everything that is
//! wrong with the file; [`check_onnx`] gives the same list without needing the
//! module. No input makes either panic, recurse without bound or allocate much
//! more than the file is long.

mod diagnostic;
pub mod onnx;

pub use diagnostic::{Diagnostic, Place, Severity};
pub use onnx::{Gap, ImportOptions, Imported, Keep, Report, check_onnx, import_onnx, read_tensor};
