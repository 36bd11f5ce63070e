//! Kiln: a compiler-style model-graph optimizer and runtime.
