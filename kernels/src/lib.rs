//! Kernel families: loop nests, matmul, attention
