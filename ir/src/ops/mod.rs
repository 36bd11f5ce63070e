//! The ops, by family. A family's file holds each op's struct (its attributes)
//! and its [`crate::op::OpDef`] (or, for composites, [`composite::Composite`]).

pub mod attention;
pub mod block_matmul;
pub mod blocks;
pub mod composite;
pub mod contract;
pub mod control;
pub mod conv;
mod derive;
pub mod elementwise;
pub mod index;
pub mod layout;
mod norm;
pub mod pack_filters;
pub mod packed;
pub mod packed_conv;
mod quant;
pub mod reduce;
pub mod samples;
mod samples_b;
pub mod source;
pub mod strings;
mod sugar;
mod train;
pub mod util;
pub mod window;
pub mod winograd;

#[cfg(test)]
mod tests;
