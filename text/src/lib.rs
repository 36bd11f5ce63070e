//! Tokenizers, read from a `tokenizer.json`, a BERT `vocab.txt`, or the folder that
//! holds one. The algorithms are the Hugging Face `tokenizers` library's; this
//! crate gives them coded errors and the batch shapes that models take. It knows
//! no IR.

mod config;
mod vocabulary;

use config::Config;
use std::fmt;
use std::path::Path;
use tokenizers::{
    Encoding, PaddingDirection, PostProcessor, TokenizerImpl, TruncationDirection, tokenizer,
};

/// Why text could not be tokenized.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TextError {
    /// Stable code.
    pub code: &'static str,
    /// What happened, and where.
    pub message: String,
    /// What to do about it; may be empty.
    pub help: &'static str,
}

/// The codes of this crate.
pub(crate) mod code {
    /// No tokenizer is there, or it cannot be read.
    pub const OPEN: &str = "K0901";
    /// The text or the limit cannot be encoded.
    pub const ENCODE: &str = "K0902";
    /// The tokens have no text.
    pub const DECODE: &str = "K0903";
    /// The tokenizer names no padding token.
    pub const PAD: &str = "K0904";
    /// An id is no token of the tokenizer.
    pub const ID: &str = "K0905";
}

impl TextError {
    pub(crate) fn new(code: &'static str, message: String) -> TextError {
        TextError {
            code,
            message,
            help: "",
        }
    }

    pub(crate) fn help(mut self, help: &'static str) -> TextError {
        self.help = help;
        self
    }
}

impl fmt::Display for TextError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code, self.message)?;
        match self.help {
            "" => Ok(()),
            help => write!(f, "\n  help: {help}"),
        }
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

/// A tokenizer. It has no state: threads may share one.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    pad: Option<i64>,
    pad_left: bool,
    cut: TruncationDirection,
}

impl Tokenizer {
    /// Reads a `tokenizer.json`, a `vocab.txt`, or the one in a folder; of the two
    /// the former, which says more.
    pub fn open(path: &Path) -> Result<Tokenizer, TextError> {
        let (file, folder) = locate(path)?;
        let config = folder.map(Config::read).transpose()?.unwrap_or_default();
        let mut inner = if file.extension().is_some_and(|e| e == "txt") {
            vocabulary::bert(&file, &config)?
        } else {
            read_json(&file)?
        };
        let pad = padding(&inner, &config);
        // What a file says about lengths is about the task it was made for.
        let padding = inner.get_padding();
        let pad_left = padding.map_or(config.pad_left, |p| {
            matches!(p.direction, PaddingDirection::Left)
        });
        let truncation = inner.get_truncation();
        let cut = truncation.map_or(TruncationDirection::Right, |t| t.direction);
        inner.with_padding(None);
        inner.with_truncation(None).map_err(encoding_failed)?;
        Ok(Tokenizer {
            inner,
            pad,
            pad_left,
            cut,
        })
    }

    /// How many ids there are: one more than the largest.
    pub fn vocabulary(&self) -> usize {
        let ids = self.inner.get_vocab(true).into_values();
        ids.max().map_or(0, |largest| largest as usize + 1)
    }

    /// The token that fills short rows of a batch, if the tokenizer names one.
    pub fn pad_id(&self) -> Option<i64> {
        self.pad
    }

    /// The id of a token by its exact text, such as `<|im_end|>`.
    pub fn token_id(&self, token: &str) -> Option<i64> {
        self.inner.token_to_id(token).map(i64::from)
    }

    /// The ids of a text, with the model's special tokens around it if asked.
    pub fn encode(&self, text: &str, special: bool) -> Result<Vec<i64>, TextError> {
        let encoding = self.inner.encode(text, special).map_err(encoding_failed)?;
        Ok(encoding.get_ids().iter().map(|&i| i.into()).collect())
    }

    /// Tokenizes texts with the model's special tokens; the longest, or `limit`
    /// tokens, sets the length.
    pub fn batch(&self, texts: &[&str], limit: usize) -> Result<Batch, TextError> {
        let added = self.inner.get_post_processor();
        let added = added.map_or(0, |p| p.added_tokens(false));
        let Some(room) = limit.checked_sub(added) else {
            let message =
                format!("a limit of {limit} tokens has no room for the {added} special ones");
            return Err(TextError::new(code::ENCODE, message).help("give a higher limit"));
        };
        let encodings = self.inner.encode_batch(texts.to_vec(), false);
        let finish = |mut e: Encoding| {
            e.truncate(room, 0, self.cut);
            self.inner.post_process(e, None, true)
        };
        let encodings = encodings.and_then(|all| all.into_iter().map(finish).collect());
        self.fill(encodings.map_err(encoding_failed)?)
    }

    /// Rows of one length.
    fn fill(&self, encodings: Vec<Encoding>) -> Result<Batch, TextError> {
        let columns = encodings.iter().map(Encoding::len).max().unwrap_or(0);
        let mut batch = Batch {
            rows: encodings.len(),
            columns,
            ..Batch::default()
        };
        for e in &encodings {
            let (ids, missing) = (e.get_ids(), columns - e.len());
            let pad = match (missing, self.pad) {
                (0, _) => 0,
                (_, Some(pad)) => pad,
                (_, None) => {
                    let message = "texts of different lengths need a padding token, and the tokenizer names none";
                    return Err(TextError::new(code::PAD, message.into()).help(
                        "give one text at a time, or add `pad_token` to tokenizer_config.json",
                    ));
                }
            };
            let mut row: Vec<(i64, i64)> = ids.iter().map(|&i| (i.into(), 1)).collect();
            let at = if self.pad_left { 0 } else { row.len() };
            row.splice(at..at, std::iter::repeat_n((pad, 0), missing));
            batch.ids.extend(row.iter().map(|t| t.0));
            batch.mask.extend(row.iter().map(|t| t.1));
        }
        Ok(batch)
    }

    /// The text of tokens, without special ones.
    pub fn decode(&self, ids: &[i64]) -> Result<String, TextError> {
        let known = |(at, &id): (usize, &i64)| {
            let token = u32::try_from(id).ok();
            let token = token.filter(|&t| self.inner.id_to_token(t).is_some());
            token.ok_or_else(|| {
                TextError::new(
                    code::ID,
                    format!("token {at} is {id}, which the tokenizer does not have"),
                )
                .help(
                    "the ids come from another tokenizer, or from a model with a larger vocabulary",
                )
            })
        };
        let ids: Vec<u32> = ids
            .iter()
            .enumerate()
            .map(known)
            .collect::<Result<_, _>>()?;
        let text = self.inner.decode(&ids, true);
        text.map_err(|e| TextError::new(code::DECODE, e.to_string()))
    }
}

fn encoding_failed(e: tokenizer::Error) -> TextError {
    TextError::new(code::ENCODE, e.to_string())
}

/// The file that a path means, and the folder with what describes it.
fn locate(path: &Path) -> Result<(std::path::PathBuf, Option<&Path>), TextError> {
    if !path.is_dir() {
        return Ok((path.to_path_buf(), path.parent()));
    }
    let candidates = ["tokenizer.json", "vocab.txt"].map(|name| path.join(name));
    match candidates.into_iter().find(|f| f.is_file()) {
        Some(file) => Ok((file, Some(path))),
        None => {
            let message = format!(
                "{} holds neither tokenizer.json nor vocab.txt",
                path.display()
            );
            Err(TextError::new(code::OPEN, message).help("give the model's folder, or the file"))
        }
    }
}

/// Reads a `tokenizer.json`.
fn read_json(file: &Path) -> Result<tokenizers::Tokenizer, TextError> {
    let fail = |e: &dyn fmt::Display| {
        TextError::new(code::OPEN, format!("cannot read {}: {e}", file.display()))
            .help("the file is damaged, or of a kind that is not supported")
    };
    let text = std::fs::read(file).map_err(|e| fail(&e))?;
    // The library's readers unwrap in places: text that is no JSON must not reach
    // them, and what still makes one panic is an error of the file.
    serde_json::from_slice::<serde::de::IgnoredAny>(&text).map_err(|e| fail(&e))?;
    let read = std::panic::catch_unwind(|| tokenizers::Tokenizer::from_bytes(&text));
    match read {
        Ok(read) => read.map_err(|e| fail(&e)),
        Err(_) => Err(fail(&"its parts do not fit together")),
    }
}

/// The padding token: the one the file pads with, else the one that its
/// configuration names, else one of the two usual names.
fn padding<M, N, PT, PP, D>(inner: &TokenizerImpl<M, N, PT, PP, D>, config: &Config) -> Option<i64>
where
    M: tokenizers::Model,
    N: tokenizers::Normalizer,
    PT: tokenizers::PreTokenizer,
    PP: PostProcessor,
    D: tokenizers::Decoder,
{
    if let Some(p) = inner.get_padding() {
        return Some(p.pad_id.into());
    }
    let named = config.token("pad_token");
    let names = match &named {
        Some(name) => vec![&name[..]],
        None => vec!["[PAD]", "<pad>"],
    };
    let found = names.into_iter().find_map(|n| inner.token_to_id(n));
    found.map(i64::from)
}
