//! The page of operators.

use crate::support::root;
use kiln_import::operators_markdown;

/// The page is what the table says; `KILN_BLESS=1` writes it anew.
#[test]
fn the_page_of_operators_is_the_tables() {
    let path = root().join("docs/onnx-operators.md");
    let page = operators_markdown();
    if std::env::var_os("KILN_BLESS").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, &page).unwrap();
    }
    let stored = std::fs::read_to_string(&path).unwrap_or_default();
    let stale = stored.lines().zip(page.lines()).find(|(a, b)| a != b);
    assert!(
        stored == page,
        "docs/onnx-operators.md is stale: KILN_BLESS=1 cargo test -p kiln-import --test onnx document; first {stale:?}"
    );
}
