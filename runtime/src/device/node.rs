//! What graphs are made of.

use super::{Device, Launch};
use crate::error::Result;
use std::borrow::Cow;

/// Work of the compute lane with copies of all that it takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Node {
    /// A copy inside device memory; both parts are apart, and there are bytes.
    Copy {
        /// Where they are.
        from: u64,
        /// Where they go.
        to: u64,
        /// How many there are.
        bytes: usize,
    },
    /// A kernel.
    Launch(Launch<'static>),
}

impl Node {
    /// Whether a graph's node that holds the one may be given the other: both are copies,
    /// or launches of one kernel in clusters of one shape, which a graph's nodes keep.
    pub fn alike(&self, other: &Node) -> bool {
        match (self, other) {
            (Node::Copy { .. }, Node::Copy { .. }) => true,
            (Node::Launch(a), Node::Launch(b)) => a.kernel == b.kernel && a.cluster == b.cluster,
            (Node::Copy { .. }, Node::Launch(_)) | (Node::Launch(_), Node::Copy { .. }) => false,
        }
    }

    /// Gives it to a device by itself.
    pub fn give(&self, device: &mut dyn Device) -> Result<()> {
        match self {
            Node::Copy { from, to, bytes } => device.copy(*from, *to, *bytes),
            Node::Launch(l) => device.launch(l).map(|_| ()),
        }
    }
}

impl Launch<'_> {
    /// The same with copies of what it borrows.
    pub fn owned(&self) -> Launch<'static> {
        Launch {
            params: Cow::Owned(self.params.to_vec()),
            windows: Cow::Owned(self.windows.to_vec()),
            label: Cow::Owned(self.label.to_string()),
            ..*self
        }
    }
}
