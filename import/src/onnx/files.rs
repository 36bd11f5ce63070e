//! The model's files: mapped once each, on first use.

use super::cx::Fail;
use crate::diagnostic::code;
use crate::mapped::Mapped;
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

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
    /// Where external data lies; none for a model that is no file.
    folder: Option<PathBuf>,
    external: BTreeMap<String, Arc<Mapped>>,
}

impl Files {
    /// The files of a model, external ones from its folder (if it has one).
    pub(crate) fn new(model: Arc<Mapped>, folder: Option<&Path>) -> Files {
        Files {
            model,
            folder: folder.map(Path::to_path_buf),
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
        let size = file.len() as u64;
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
        let Some(folder) = &self.folder else {
            return Err(Fail::new(
                code::EXTERNAL,
                format!("external data at `{location}` is not at hand: the model is no file"),
            )
            .help("import the model from its file, with its external data next to it"));
        };
        let path = folder.join(location);
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
