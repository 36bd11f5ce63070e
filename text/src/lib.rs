//! Tokenizers, read from a `tokenizer.json` or from the folder that holds one.
//! The algorithms are the Hugging Face `tokenizers` library's; this crate gives
//! them coded errors and the batch shapes that models take. It knows no IR.

use std::fmt;
use std::path::Path;
use tokenizers::{PaddingParams, PaddingStrategy, TruncationParams};

/// Why text could not be tokenized.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TextError {
    /// Stable code.
    pub code: &'static str,
    /// What happened, and where.
    pub message: String,
}

impl fmt::Display for TextError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code, self.message)
    }
}

impl std::error::Error for TextError {}

/// A batch of tokenized texts, padded to one length: row-major `[rows, columns]`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// Token ids.
    pub ids: Vec<i64>,
    /// 1 for tokens, 0 for padding.
    pub mask: Vec<i64>,
    /// Texts.
    pub rows: usize,
    /// Tokens of the longest, padding included.
    pub columns: usize,
}

/// A tokenizer.
pub struct Tokenizer(tokenizers::Tokenizer);

impl Tokenizer {
    /// Reads `tokenizer.json`, or the one in a folder.
    pub fn open(path: &Path) -> Result<Tokenizer, TextError> {
        let file = if path.is_dir() {
            path.join("tokenizer.json")
        } else {
            path.to_path_buf()
        };
        let inner = tokenizers::Tokenizer::from_file(&file).map_err(|e| TextError {
            code: "K0901",
            message: format!("cannot read {}: {e}", file.display()),
        })?;
        Ok(Tokenizer(inner))
    }

    /// Tokenizes texts with the model's special tokens; the longest, or `limit`
    /// tokens, sets the length.
    pub fn batch(&mut self, texts: &[&str], limit: usize) -> Result<Batch, TextError> {
        let fail = |e: tokenizers::Error| TextError {
            code: "K0902",
            message: e.to_string(),
        };
        let truncation = TruncationParams {
            max_length: limit,
            ..TruncationParams::default()
        };
        self.0.with_truncation(Some(truncation)).map_err(fail)?;
        let pad_id = self
            .0
            .token_to_id("[PAD]")
            .or(self.0.token_to_id("<pad>"))
            .unwrap_or(0);
        self.0.with_padding(Some(PaddingParams {
            strategy: PaddingStrategy::BatchLongest,
            pad_id,
            ..PaddingParams::default()
        }));
        let encodings = self.0.encode_batch(texts.to_vec(), true).map_err(fail)?;
        let mut batch = Batch {
            rows: encodings.len(),
            ..Batch::default()
        };
        for e in &encodings {
            batch.columns = e.get_ids().len();
            batch.ids.extend(e.get_ids().iter().map(|&i| i as i64));
            batch
                .mask
                .extend(e.get_attention_mask().iter().map(|&m| m as i64));
        }
        Ok(batch)
    }

    /// The text of tokens, without special ones.
    pub fn decode(&self, ids: &[i64]) -> Result<String, TextError> {
        let ids: Vec<u32> = ids.iter().map(|&i| i as u32).collect();
        self.0.decode(&ids, true).map_err(|e| TextError {
            code: "K0903",
            message: e.to_string(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A word-level tokenizer small enough to stand here.
    const SMALL: &str = r#"{"version":"1.0","truncation":null,"padding":null,"added_tokens":[],"normalizer":{"type":"Lowercase"},
        "pre_tokenizer":{"type":"Whitespace"},"post_processor":null,"decoder":null,
        "model":{"type":"WordLevel","vocab":{"[PAD]":0,"a":1,"fox":2,"runs":3,"[UNK]":4},"unk_token":"[UNK]"}}"#;

    #[test]
    fn batches_are_padded_and_cut() {
        let path = std::env::temp_dir().join(format!("kiln-text-{}.json", std::process::id()));
        std::fs::write(&path, SMALL).unwrap();
        let mut t = Tokenizer::open(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        let b = t.batch(&["A fox runs", "fox"], 16).unwrap();
        assert_eq!((b.rows, b.columns), (2, 3));
        assert_eq!(b.ids, [1, 2, 3, 2, 0, 0]);
        assert_eq!(b.mask, [1, 1, 1, 1, 0, 0]);
        assert_eq!(t.batch(&["A fox runs"], 2).unwrap().ids, [1, 2]);
        assert_eq!(t.decode(&[1, 2]).unwrap(), "a fox");
        assert_eq!(
            Tokenizer::open(Path::new("/nowhere")).err().map(|e| e.code),
            Some("K0901")
        );
    }
}
