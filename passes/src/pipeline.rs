//! The pipelines, and the passes by name.

use crate::manager::Pass;
use crate::{choose_layouts, decompose, fuse};

/// Every pass there is.
pub const ALL: &[Pass] = &[
    Pass { name: "decompose", run: decompose::decompose },
    Pass { name: "choose-layouts", run: choose_layouts::choose_layouts },
    Pass { name: "fuse", run: fuse::fuse },
];

/// The pass of this name.
pub fn by_name(name: &str) -> Option<Pass> {
    ALL.iter().copied().find(|p| p.name == name)
}
