//! Code generation toolkits that know no model op: MLIR builder, LLVM to object code, targets
