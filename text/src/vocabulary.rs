//! BERT's older form: `vocab.txt`, a token a line, its id the line's number.

use crate::config::Config;
use crate::{TextError, code};
use std::path::Path;
use tokenizers::decoders::wordpiece::WordPiece as WordPieceDecoder;
use tokenizers::models::wordpiece::WordPiece;
use tokenizers::normalizers::BertNormalizer;
use tokenizers::pre_tokenizers::bert::BertPreTokenizer;
use tokenizers::processors::bert::BertProcessing;
use tokenizers::{AddedToken, Model, Tokenizer};

/// The tokenizer that BERT's own code builds from a vocabulary and the switches
/// beside it.
pub(crate) fn bert(path: &Path, config: &Config) -> Result<Tokenizer, TextError> {
    let fail = |e: &dyn std::fmt::Display| {
        TextError::new(code::OPEN, format!("cannot read {}: {e}", path.display()))
    };
    let file = path
        .to_str()
        .ok_or_else(|| fail(&"its name is not UTF-8"))?;
    let role = |role: &str, usual: &str| config.token(role).unwrap_or_else(|| usual.to_string());
    let unknown = role("unk_token", "[UNK]");
    let model = WordPiece::builder()
        .files(file.to_string())
        .unk_token(unknown.clone())
        .continuing_subword_prefix("##".into())
        .build()
        .map_err(|e| fail(&e))?;
    let special = |name: String| match model.token_to_id(&name) {
        Some(id) => Ok((name, id)),
        None => Err(fail(&format!("there is no token {name}")).help(
            "BERT's vocabularies have [UNK], [CLS] and [SEP]; give tokenizer.json for others",
        )),
    };
    special(unknown.clone())?;
    let separator = special(role("sep_token", "[SEP]"))?;
    let start = special(role("cls_token", "[CLS]"))?;
    let roles = [
        unknown,
        separator.0.clone(),
        start.0.clone(),
        role("pad_token", "[PAD]"),
        role("mask_token", "[MASK]"),
    ];
    let added = roles.into_iter().filter(|t| model.token_to_id(t).is_some());
    let added: Vec<AddedToken> = added.map(|t| AddedToken::from(t, true)).collect();

    let mut tokenizer = Tokenizer::new(model);
    tokenizer.add_special_tokens(&added);
    tokenizer
        .with_normalizer(Some(BertNormalizer::new(
            true,
            config.flag("tokenize_chinese_chars").unwrap_or(true),
            config.flag("strip_accents"),
            config.flag("do_lower_case").unwrap_or(true),
        )))
        .with_pre_tokenizer(Some(BertPreTokenizer))
        .with_post_processor(Some(BertProcessing::new(separator, start)))
        .with_decoder(Some(WordPieceDecoder::default()));
    Ok(tokenizer)
}
