//! Importers: model files to a [`kiln_ir::Module`].
//!
//! [`import_onnx`] gives a verified-by-construction module or everything that is
//! wrong with the file; [`check_onnx`] gives the same list without needing the
//! module. No input makes either panic, recurse without bound or allocate much
//! more than the file is long.

mod diagnostic;
mod mapped;
pub mod onnx;
pub mod safetensors;

pub use diagnostic::{Diagnostic, Place, Severity};
pub use onnx::{
    DataSet, Draft, Gap, ImportOptions, Imported, Interface, Keep, Report, Weights, check_onnx,
    import_onnx, import_onnx_bytes, operators_markdown, read_data_set, read_tensor,
};
/// The format's messages, as [`Draft`] has them.
pub use onnx_protobuf as proto;
