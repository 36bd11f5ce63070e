//! Kiln's passes and the manager that runs them.
//!
//! A pass is a function from a graph to a changed graph; its file is its name.
//! The pipelines are the lists in [`pipeline`].

pub mod block_weights;
pub mod canonicalize;
pub mod channels_last;
pub mod choose_layouts;
pub mod decompose;
pub mod differentiate;
pub mod eliminate_dead;
pub mod fold_constants;
pub mod fuse;
pub mod inline_calls;
pub mod integer_products;
pub mod manager;
pub mod mixed_precision;
pub mod pipeline;
pub mod recognise;
pub mod scaled_weights;
pub mod share_common;
pub mod simplify;
pub mod train_step;

pub use manager::{Changed, Manager, Options, Pass, PassCx, PassError, Precision, Timing};
