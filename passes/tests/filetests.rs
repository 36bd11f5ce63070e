//! The files in `tests/kir/passes`: the interpreter gives the same before and
//! after the passes that a file names, and the text is as the file says.
//! `KILN_BLESS=1` rewrites expectations.

use kiln_ir::Module;
use kiln_ir::filetest::{Runner, run_dir};
use kiln_passes::{Manager, Options, pipeline};
use std::path::Path;

fn pass(name: &str, module: &mut Module) -> Result<(), String> {
    let passes = match name {
        "compile" => pipeline::COMPILE.to_vec(),
        _ => vec![pipeline::by_name(name).ok_or("there is no such pass")?],
    };
    let mut manager = Manager {
        verify: true,
        ..Manager::default()
    };
    let done = manager.run(&passes, module, &Options::default());
    done.map(|_| ()).map_err(|e| e.to_string())
}

#[test]
fn passes_keep_the_meaning() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/kir/passes");
    let runner = Runner {
        pass: Some(&pass),
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
