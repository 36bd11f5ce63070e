//! Files as bytes: mapped, or handed over by the caller.
//!
//! Mapping, and letting go of pages, are this crate's unsafe acts: a file that
//! another process cuts short while it is mapped faults on access, as for every
//! program that maps files.

use kiln_ir::{Bytes, Owner};
use memmap2::{Mmap, UncheckedAdvice};
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

const PAGE: usize = 4096;

/// The bytes of a file.
pub(crate) enum Mapped {
    /// A mapped file, and the file itself for reads that should not map pages in.
    File(Mmap, File),
    /// Bytes that are in memory already.
    Memory(Bytes),
}

impl Owner for Mapped {
    fn all(&self) -> &[u8] {
        self.slice()
    }

    /// Unmaps whole pages of a file. They stay in the system's cache: evicting them
    /// too made the next compilation read the model from the disk.
    fn release(&self, range: Range<usize>) {
        let Mapped::File(map, _) = self else { return };
        let (start, end) = (range.start.next_multiple_of(PAGE), range.end / PAGE * PAGE);
        if start < end && end <= map.len() {
            // SAFETY: the pages are of a file that is only read; they come back with
            // its contents. Advice that fails leaves them where they are.
            let _ = unsafe {
                map.unchecked_advise_range(UncheckedAdvice::DontNeed, start, end - start)
            };
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

    /// All bytes.
    pub(crate) fn slice(&self) -> &[u8] {
        match self {
            Mapped::File(map, _) => map,
            Mapped::Memory(bytes) => bytes,
        }
    }

    /// How many bytes there are.
    pub(crate) fn len(&self) -> usize {
        self.slice().len()
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
        // Small enough to stay in a cache between reading and looking.
        let mut buffer = vec![0; (1 << 16).min(range.len())];
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_that_were_let_go_come_back() {
        let path = std::env::temp_dir().join(format!("kiln-mapped-{}", std::process::id()));
        let content: Vec<u8> = (0..5 * PAGE + 100).map(|i| (i % 251) as u8).collect();
        std::fs::write(&path, &content).unwrap();
        let mapped = Arc::new(Mapped::open(&path).unwrap());
        std::fs::remove_file(&path).unwrap();
        for range in [0..content.len(), 10..PAGE, PAGE - 1..3 * PAGE + 7, 9..9] {
            let bytes = mapped.bytes(range.clone()).unwrap();
            assert_eq!(bytes[..], content[range.clone()]);
            bytes.release();
            assert_eq!(bytes[..], content[range]);
        }
        assert_eq!(mapped.slice(), content);
    }
}
