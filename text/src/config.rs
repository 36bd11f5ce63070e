//! What stands beside a tokenizer: `tokenizer_config.json` and
//! `special_tokens_map.json`.

use crate::{TextError, code};
use serde_json::{Map, Value};
use std::io::ErrorKind;
use std::path::Path;

/// The two files as one table; the former wins.
#[derive(Default)]
pub(crate) struct Config {
    entries: Map<String, Value>,
    /// Short rows are filled on the left.
    pub pad_left: bool,
}

impl Config {
    /// Reads what a folder has of them; neither must be there.
    pub fn read(folder: &Path) -> Result<Config, TextError> {
        let mut entries = Map::new();
        for name in ["special_tokens_map.json", "tokenizer_config.json"] {
            let path = folder.join(name);
            let bad = |e: &dyn std::fmt::Display| {
                TextError::new(code::OPEN, format!("cannot read {}: {e}", path.display()))
            };
            let text = match std::fs::read(&path) {
                Ok(text) => text,
                // `parent` of a path that goes through a file is no folder.
                Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
                    continue;
                }
                Err(e) => return Err(bad(&e)),
            };
            let table: Map<String, Value> = serde_json::from_slice(&text).map_err(|e| bad(&e))?;
            entries.extend(table.into_iter().filter(|(_, v)| !v.is_null()));
        }
        let pad_left = entries.get("padding_side").and_then(Value::as_str) == Some("left");
        Ok(Config { entries, pad_left })
    }

    /// A special token by its role: a string, or an object that holds one.
    pub fn token(&self, role: &str) -> Option<String> {
        let value = self.entries.get(role)?;
        let text = value.as_str().or_else(|| value.get("content")?.as_str())?;
        Some(text.to_string())
    }

    /// A switch, if it is set.
    pub fn flag(&self, name: &str) -> Option<bool> {
        self.entries.get(name)?.as_bool()
    }
}
