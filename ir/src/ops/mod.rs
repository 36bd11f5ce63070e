//! The ops, by family. A family's file holds each op's struct (its attributes)
//! and its [`crate::op::OpDef`] (or, for composites, [`composite::Composite`]).

pub mod attention;
pub mod blocks;
pub mod composite;
pub mod contract;
pub mod control;
pub mod elementwise;
pub mod index;
pub mod layout;
pub mod reduce;
pub mod source;
mod sugar;
pub mod util;
