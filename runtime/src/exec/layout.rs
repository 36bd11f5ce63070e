//! Where buffers lie under a binding of sizes.

use crate::error::{Error, Result};
use crate::memory::{Block, Request, assign};
use crate::plan::{Buffer, Entry, Place};
use kiln_ir::{Binding, Dim};

/// Largest size of one buffer and of the arena: beyond it, a size is a mistake.
pub(super) const MAX_BYTES: u64 = 1 << 40;

/// Sizes and places of an entry's buffers under a binding.
pub(super) struct Layout {
    /// `None`: depends on a size that is not known yet.
    pub(super) sizes: Vec<Option<usize>>,
    pub(super) offsets: Vec<usize>,
    pub(super) arena: usize,
}

impl Layout {
    /// Sizes of all buffers, and places for those in the arena that are `here`.
    pub(super) fn of(
        entry: &Entry,
        binding: &Binding,
        here: &dyn Fn(u32) -> bool,
    ) -> Result<Layout> {
        let size = |b: &Buffer| match b.bytes.eval(binding) {
            Ok(n) if (0..=MAX_BYTES as i64).contains(&n) => Ok(Some(n as usize)),
            Ok(n) => Err(too_large(&b.bytes, n as i128)),
            Err(kiln_ir::DimError::Unbound(_)) => Ok(None),
            Err(e) => {
                let message = format!("a buffer's size cannot be computed: {e}");
                Err(Error::input("K0714", message))
            }
        };
        let sizes = entry.buffers.iter().map(size).collect::<Result<_>>()?;
        Layout::placed(entry, sizes, here)
    }

    /// Places for buffers in the arena that are `here`, for these sizes.
    pub(super) fn placed(
        entry: &Entry,
        sizes: Vec<Option<usize>>,
        here: &dyn Fn(u32) -> bool,
    ) -> Result<Layout> {
        let mut requests = vec![];
        let mut which = vec![];
        for (i, b) in entry.buffers.iter().enumerate() {
            if let (Place::Arena, Some(size), true) = (&b.place, sizes[i], here(i as u32)) {
                requests.push(Request {
                    size,
                    first: b.live.0,
                    last: b.live.1,
                });
                which.push(i);
            }
        }
        let (places, arena) = assign(&requests);
        if arena as u64 > MAX_BYTES {
            return Err(too_large(&Dim::from(arena), arena as i128));
        }
        let mut offsets = vec![0; entry.buffers.len()];
        which.iter().zip(places).for_each(|(&i, o)| offsets[i] = o);
        Ok(Layout {
            sizes,
            offsets,
            arena,
        })
    }
}

pub(super) fn too_large(dim: &Dim, n: i128) -> Error {
    Error::input(
        "K0714",
        format!("a buffer of {dim} = {n} bytes is beyond what can be run"),
    )
    .help("give smaller inputs")
}

pub(super) fn memory(bytes: usize) -> Result<Block> {
    Block::new(bytes).ok_or_else(|| Error::run("K0715", format!("no memory for {bytes} bytes")))
}
