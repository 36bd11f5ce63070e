//! The model's files: mapped once each, on first use.
//!
//! Mapping is this crate's one unsafe act: a file that another process cuts
//! short while it is mapped faults on access, as for every program that maps
//! files.

use super::cx::Fail;
use crate::diagnostic::code;
use kiln_ir::Bytes;
use memmap2::Mmap;
use std::collections::BTreeMap;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

/// A mapped file, and the file itself for reads that should not map pages in.
pub(crate) struct Mapped {
    map: Mmap,
    file: File,
}

impl AsRef<[u8]> for Mapped {
    fn as_ref(&self) -> &[u8] {
        &self.map
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
        Ok(Mapped { map, file })
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
        let mut buffer = vec![0; (1 << 20).min(range.len())];
        let mut at = range.start;
        while at < range.end {
            let piece = (range.end - at).min(buffer.len());
            self.file.read_exact_at(&mut buffer[..piece], at as u64)?;
            f(&buffer[..piece]);
            at += piece;
        }
        Ok(())
    }
}

/// Part of a mapped file.
#[derive(Clone)]
pub(crate) struct Span {
    /// The file.
    pub(crate) file: Arc<Mapped>,
    /// Which bytes.
    pub(crate) range: Range<usize>,
}

/// The model file and the files of external data next to it.
pub(crate) struct Files {
    /// The model file.
    pub(crate) model: Arc<Mapped>,
    folder: PathBuf,
    external: BTreeMap<String, Arc<Mapped>>,
}

impl Files {
    /// The files of the model at `path`.
    pub(crate) fn new(model: Arc<Mapped>, path: &Path) -> Files {
        Files {
            model,
            folder: path.parent().unwrap_or(Path::new("")).to_path_buf(),
            external: BTreeMap::new(),
        }
    }

    /// The part of an external file that `location`, `offset` and `length`
    /// name. A location that leaves the model's folder is refused.
    pub(crate) fn external(
        &mut self,
        location: &str,
        offset: u64,
        length: Option<u64>,
    ) -> Result<Span, Fail> {
        let file = self.open_external(location)?;
        let size = file.map.len() as u64;
        let end = match length {
            Some(length) => offset.checked_add(length),
            None => Some(size),
        };
        match end {
            Some(end) if offset <= end && end <= size => Ok(Span {
                file,
                range: offset as usize..end as usize,
            }),
            _ => Err(Fail::new(
                code::EXTERNAL,
                format!(
                    "`{location}` is {size} bytes long, the constant lies at {offset}, {} long",
                    length.map_or("?".into(), |l| l.to_string())
                ),
            )
            .help(
                "the external data file is cut short or belongs to another model: fetch it again",
            )),
        }
    }

    fn open_external(&mut self, location: &str) -> Result<Arc<Mapped>, Fail> {
        if let Some(file) = self.external.get(location) {
            return Ok(file.clone());
        }
        let plain = Path::new(location)
            .components()
            .all(|c| matches!(c, Component::Normal(_) | Component::CurDir));
        if location.is_empty() || !plain {
            return Err(Fail::new(
                code::EXTERNAL,
                format!("external data at `{location}` lies outside the model's folder"),
            )
            .help("external data must be named by a path inside the model's folder"));
        }
        let path = self.folder.join(location);
        let file = Mapped::open(&path).map_err(|e| {
            Fail::new(
                code::EXTERNAL,
                format!(
                    "the external data file `{}` cannot be read: {e}",
                    path.display()
                ),
            )
            .help("put the file that came with the model next to it")
        })?;
        let file = Arc::new(file);
        self.external.insert(location.to_string(), file.clone());
        Ok(file)
    }
}
