//! The files in `tests/kir/passes`: the interpreter gives the same before and
//! after the passes that a file names, and the text is as the file says.
//! `KILN_BLESS=1` rewrites expectations.

use kiln_ir::filetest::{Runner, run_dir};
use std::path::Path;

#[test]
fn passes_keep_the_meaning() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/kir/passes");
    let runner = Runner {
        pass: Some(&super::pass),
        run: None,
        bless: std::env::var_os("KILN_BLESS").is_some(),
    };
    let report = run_dir(&dir, &runner).unwrap();
    for (path, message) in &report.failed {
        eprintln!("{}: {message}\n", path.display());
    }
    assert!(report.failed.is_empty() && report.skipped.is_empty());
    assert!(report.passed >= 8, "only {} files", report.passed);
}
