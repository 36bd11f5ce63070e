//! Kiln's runtime: artifact, loader, plan, executor, thread pool
