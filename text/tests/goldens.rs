//! Against Hugging Face's own package: `scripts/tokenizer_goldens.py` wrote what it
//! makes of each string.

use kiln_text::Tokenizer;
use serde_json::Value;
use std::path::{Path, PathBuf};

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/data")
        .join(name)
}

fn ids(v: &Value) -> Vec<i64> {
    let list = v.as_array().expect("a list of ids");
    list.iter().map(|i| i.as_i64().expect("an id")).collect()
}

#[test]
fn every_kind_of_tokenizer_agrees() {
    let text = std::fs::read(data("goldens.json")).unwrap();
    let goldens: Value = serde_json::from_slice(&text).unwrap();
    let mut compared = 0;
    for (name, cases) in goldens.as_object().unwrap() {
        let tokenizer = Tokenizer::open(&data(name)).unwrap();
        for case in cases.as_array().unwrap() {
            let text = case["text"].as_str().unwrap();
            let (plain, all) = (ids(&case["plain"]), ids(&case["ids"]));
            assert_eq!(
                tokenizer.encode(text, false).unwrap(),
                plain,
                "{name} {text:?}"
            );
            assert_eq!(
                tokenizer.encode(text, true).unwrap(),
                all,
                "{name} {text:?}"
            );
            assert_eq!(
                tokenizer.decode(&all).unwrap(),
                case["decoded"],
                "{name} {text:?}"
            );
            compared += 1;
        }
    }
    assert!(compared >= 80, "only {compared} cases");
}

#[test]
fn a_batch_is_padded_and_cut() {
    let tokenizer = Tokenizer::open(&data("bert-uncased")).unwrap();
    let texts = ["the dog", "the quick brown fox jumps over the lazy dog"];
    let batch = tokenizer.batch(&texts, 6).unwrap();
    assert_eq!((batch.rows, batch.columns), (2, 6));
    let whole = tokenizer.encode(texts[0], true).unwrap();
    assert_eq!(batch.ids[..4], whole);
    assert_eq!(batch.ids[4..6], [tokenizer.pad_id().unwrap(); 2]);
    assert_eq!(batch.mask, [1, 1, 1, 1, 0, 0, 1, 1, 1, 1, 1, 1]);
    // The cut row still ends with the separator.
    assert_eq!(batch.ids[11], tokenizer.token_id("[SEP]").unwrap());
}

#[test]
fn what_cannot_be_done_is_a_coded_error() {
    let bert = Tokenizer::open(&data("bert-uncased")).unwrap();
    assert_eq!(bert.decode(&[-1]).unwrap_err().code, "K0905");
    assert_eq!(bert.decode(&[1 << 40]).unwrap_err().code, "K0905");
    assert_eq!(
        bert.decode(&[bert.vocabulary() as i64]).unwrap_err().code,
        "K0905"
    );
    assert_eq!(bert.batch(&["the dog"], 1).unwrap_err().code, "K0902");
    // GPT-2's kind names no padding token.
    let gpt = Tokenizer::open(&data("byte-bpe")).unwrap();
    assert_eq!(
        gpt.batch(&["a", "a longer text"], 64).unwrap_err().code,
        "K0904"
    );
    assert_eq!(gpt.batch(&["a text"], 64).unwrap().rows, 1);

    for path in ["", "missing", "goldens.json"] {
        let e = Tokenizer::open(&data(path)).err().expect(path);
        assert_eq!(e.code, "K0901", "{path}");
    }
}

#[test]
fn a_damaged_file_is_a_coded_error() {
    let folder = std::env::temp_dir().join(format!("kiln-text-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let whole = std::fs::read(data("unigram/tokenizer.json")).unwrap();
    let file = folder.join("tokenizer.json");
    for cut in (0..whole.len() - 1).step_by(97) {
        std::fs::write(&file, &whole[..cut]).unwrap();
        assert_eq!(
            Tokenizer::open(&folder).err().map(|e| e.code),
            Some("K0901"),
            "cut at {cut}"
        );
    }
    std::fs::remove_file(&file).unwrap();
    std::fs::write(folder.join("vocab.txt"), "only\nwords\n").unwrap();
    assert_eq!(
        Tokenizer::open(&folder).err().map(|e| e.code),
        Some("K0901")
    );
    std::fs::remove_dir_all(&folder).unwrap();
}
