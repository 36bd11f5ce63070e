//! Files as bytes: mapped, or handed over by the caller.
//!
//! Mapping is this crate's one unsafe act: a file that another process cuts
//! short while it is mapped faults on access, as for every program that maps
//! files.

use kiln_ir::Bytes;
use memmap2::Mmap;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

/// The bytes of a file.
pub(crate) enum Mapped {
    /// A mapped file, and the file itself for reads that should not map pages in.
    File(Mmap, File),
    /// Bytes that are in memory already.
    Memory(Bytes),
}

impl AsRef<[u8]> for Mapped {
    fn as_ref(&self) -> &[u8] {
        match self {
            Mapped::File(map, _) => map,
            Mapped::Memory(bytes) => bytes,
        }
    }
}

impl Mapped {
    /// Opens and maps a regular file.
    pub(crate) fn open(path: &Path) -> std::io::Result<Mapped> {
        let file = File::open(path)?;
        if !file.metadata()?.is_file() {
            return Err(std::io::Error::other("not a regular file"));
        }
        // SAFETY: the map is read-only and its bytes are only read as plain
        // numbers; what another process writes into the file changes values, and
        // breaks no invariant of this one.
        let map = unsafe { Mmap::map(&file)? };
        Ok(Mapped::File(map, file))
    }

    /// How many bytes there are.
    pub(crate) fn len(&self) -> usize {
        self.as_ref().len()
    }

    /// A range of the file as shared bytes.
    pub(crate) fn bytes(self: &Arc<Mapped>, range: Range<usize>) -> Option<Bytes> {
        Bytes::shared(self.clone(), range)
    }

    /// Calls `f` with consecutive pieces of a range, read rather than mapped: a
    /// scan of all weights leaves no page of them in memory.
    pub(crate) fn scan(
        &self,
        range: Range<usize>,
        mut f: impl FnMut(&[u8]),
    ) -> std::io::Result<()> {
        let file = match self {
            Mapped::File(_, file) => file,
            Mapped::Memory(bytes) => {
                let piece = bytes.get(range);
                f(piece.ok_or_else(|| std::io::Error::other("the range lies outside"))?);
                return Ok(());
            }
        };
        let mut buffer = vec![0; (1 << 20).min(range.len())];
        let mut at = range.start;
        while at < range.end {
            let piece = (range.end - at).min(buffer.len());
            file.read_exact_at(&mut buffer[..piece], at as u64)?;
            f(&buffer[..piece]);
            at += piece;
        }
        Ok(())
    }
}
