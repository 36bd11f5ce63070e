//! The check of the ONNX importer: what imports verifies, prints and reads back;
//! what does not says why, with a code and a remedy.

use kiln_import::{Diagnostic, ImportOptions, Severity, import_onnx_bytes};
use kiln_ir::parse::{Loader, parse_module};
use kiln_ir::print::{PrintOptions, print_with_blobs};
use kiln_ir::verify::verify_module;
use kiln_ir::{Bytes, Module};

/// Checks everything that must hold of a file, whatever it holds.
pub fn check(file: &[u8]) {
    let options = ImportOptions::default();
    match import_onnx_bytes("fuzzed.onnx", file.to_vec(), &options) {
        Err(all) => {
            let error = |d: &Diagnostic| d.severity == Severity::Error;
            assert!(all.iter().any(error), "it fails and says nothing: {all:?}");
            all.iter().for_each(is_whole);
        }
        Ok(imported) => {
            imported.warnings.iter().for_each(is_whole);
            if let Some(e) = verify_module(&imported.module).first() {
                let (text, _) = printed(&imported.module);
                panic!("does not verify: {e}\n{text}");
            }
            round_trips(&imported.module);
        }
    }
}

fn is_whole(d: &Diagnostic) {
    let digits = d.code.strip_prefix("K01").unwrap_or("");
    let coded = digits.len() == 2 && digits.bytes().all(|b| b.is_ascii_digit());
    assert!(coded && !d.message.is_empty(), "{d:?}");
    assert!(!d.place.file.is_empty() && !d.help.is_empty(), "{d:?}");
}

/// The constants that stand beside a text.
struct Stored(Vec<u8>);

impl Loader for Stored {
    fn load(&self, _: &str, offset: u64, length: u64) -> Result<Bytes, String> {
        let range = offset as usize..(offset + length) as usize;
        Ok(Bytes::from(self.0[range].to_vec()))
    }
}

fn printed(module: &Module) -> (String, Stored) {
    let options = PrintOptions {
        origins: true,
        ids: false,
    };
    let mut stored = vec![];
    let text = print_with_blobs(module, &options, &mut |bytes| {
        stored.extend_from_slice(bytes);
        ("weights".into(), (stored.len() - bytes.len()) as u64)
    });
    (text, Stored(stored))
}

fn round_trips(module: &Module) {
    let (text, stored) = printed(module);
    let again =
        parse_module(&text, &stored).unwrap_or_else(|e| panic!("does not read back: {e}\n{text}"));
    let (second, _) = printed(&again);
    assert_eq!(second, text, "prints another text when read back");
    if let Some(e) = verify_module(&again).first() {
        panic!("does not verify when read back: {e}\n{text}");
    }
}
