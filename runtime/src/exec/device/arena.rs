//! Where an entry's temporaries lie in the arena, so that they stay there while sizes
//! change.
//!
//! Places follow from sizes, and one temporary that grows would move those behind it, with
//! every node of a graph that has their addresses. So a run takes the places of an earlier
//! one where its temporaries fit into theirs; where one does not, it gets a quarter more
//! room than it had, and all are placed again; as if it were the first run where that would
//! take more than half as much again as this run has to have.

use super::super::layout::Layout;
use super::OnDevice;
use crate::error::Result;
use crate::plan::{Entry, Place};

/// How many bytes are taken where one more than these is needed.
pub(super) fn ahead(bytes: usize) -> usize {
    bytes.saturating_add(bytes / 4)
}

impl OnDevice {
    /// Sees to it that an entry's places are there for a run of these sizes.
    pub(super) fn stand(&mut self, e: &Entry, entry: usize, sizes: &[Option<usize>]) -> Result<()> {
        let spaces = self.spaces[entry].clone();
        let here = |b: u32| spaces.space(b).device;
        let exact = |sizes: &[Option<usize>]| Layout::placed(e, sizes.to_vec(), &here);
        let new = match &self.standing[entry] {
            None => exact(sizes)?,
            Some(old) => {
                let pairs = || old.sizes.iter().zip(sizes);
                let temporary =
                    |i: usize| matches!(e.buffers[i].place, Place::Arena) && here(i as u32);
                let mut all = pairs().enumerate().filter(|(i, _)| temporary(*i));
                if all.all(|(_, (room, size))| size <= room) {
                    return Ok(());
                }
                let grown = |(room, size): (&Option<usize>, &Option<usize>)| match (room, size) {
                    (Some(room), Some(size)) if size <= room => Some(*room),
                    (Some(room), Some(size)) => Some(ahead(*room).max(*size)),
                    (_, size) => *size,
                };
                let grown = Layout::placed(e, pairs().map(grown).collect(), &here);
                let exact = exact(sizes)?;
                // Sizes of which one grows while another shrinks would add up.
                let most = (exact.arena + exact.arena / 2).max(self.arena.room);
                grown.ok().filter(|g| g.arena <= most).unwrap_or(exact)
            }
        };
        self.standing[entry] = Some(new);
        self.epoch += 1;
        Ok(())
    }

    /// Where a temporary lies in the arena.
    pub(super) fn place_of(&self, entry: usize, buffer: usize) -> u64 {
        let standing = self.standing[entry].as_ref();
        self.arena.at + standing.map_or(0, |s| s.offsets[buffer]) as u64
    }
}
