//! Importers: ONNX models to Kiln's IR
