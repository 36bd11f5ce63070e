//! The files in `tests/kir` that need neither passes nor a device, and the runner
//! itself.

use kiln_ir::Module;
use kiln_ir::filetest::{Failure, Runner, run_dir, run_text};
use kiln_ir::ops::elementwise::Unary;
use kiln_ir::{Op, UnaryFn};
use std::path::Path;

fn folder(name: &str) -> usize {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../tests/kir")
        .join(name);
    let runner = Runner {
        bless: std::env::var_os("KILN_BLESS").is_some(),
        ..Runner::default()
    };
    let report = run_dir(&dir, &runner).unwrap();
    for (path, message) in &report.failed {
        eprintln!("{}: {message}\n", path.display());
    }
    assert!(report.failed.is_empty() && report.skipped.is_empty());
    report.passed
}

#[test]
fn files_that_verify_or_do_not() {
    assert!(folder("verify") >= 8);
}

#[test]
fn files_that_round_trip() {
    assert!(folder("roundtrip") >= 2);
}

#[test]
fn files_that_the_interpreter_runs() {
    assert!(folder("interp") >= 5);
}

/// `turn-neg` makes every `neg` an `abs`; `nothing` does nothing.
fn pass(name: &str, module: &mut Module) -> Result<(), String> {
    match name {
        "nothing" => return Ok(()),
        "turn-neg" => {}
        _ => return Err("there is no such pass".into()),
    }
    for f in &mut module.functions {
        for n in f.nodes_in_order() {
            let op = &mut f.node_mut(n).op;
            if *op == Op::from(Unary { f: UnaryFn::Neg }) {
                *op = Unary { f: UnaryFn::Abs }.into();
            }
        }
    }
    Ok(())
}

fn with_passes(text: &str, bless: bool) -> Result<Option<String>, String> {
    let runner = Runner {
        pass: Some(&pass),
        run: None,
        bless,
    };
    run_text(text, &runner).map_err(|e| match e {
        Failure::Failed(m) | Failure::Skipped(m) => m,
    })
}

const BODY: &str =
    "func @f(%x: f32[B, 2]) -> f32[B, 2] {\n  %1 = abs %x\n  %2 = neg %1\n  return %2\n}\n";

#[test]
fn passes_are_compared_and_checked() {
    let test = |head: &str, tail: &str| format!("{head}\n{BODY}{tail}");
    let good = test(
        "// test: passes=nothing tol=0",
        "// check: abs\n// check-not: exp\n// check: neg %1\n",
    );
    assert_eq!(with_passes(&good, false), Ok(None));
    // A pass that changes what comes out.
    let wrong = with_passes(&test("// test: passes=nothing,turn-neg", ""), false).unwrap_err();
    assert!(wrong.contains("result 0 is"), "{wrong}");
    for (tail, message) in [
        ("// check: exp\n", "`exp` is not found"),
        ("// check: neg\n// check: abs\n", "`abs` is not found"),
        ("// check-not: neg\n", "`neg` is found"),
        ("// check-not: abs\n// check: neg\n", "`abs` is found"),
        ("//| other\n", "another text"),
    ] {
        let e = with_passes(&test("// test: passes=nothing", tail), false).unwrap_err();
        assert!(e.contains(message), "{tail}: {e}");
    }
    let e = with_passes(&test("// test: passes=missing", ""), false).unwrap_err();
    assert!(e.contains("no such pass"), "{e}");
    let e = with_passes(&test("// test: passses=a", ""), false).unwrap_err();
    assert!(e.contains("not understood"), "{e}");
    assert!(with_passes(BODY, false).is_err());
}

#[test]
fn blessing_writes_what_then_passes() {
    let text = format!("// test: passes=nothing\n{BODY}//| old\n");
    let blessed = with_passes(&text, true).unwrap().unwrap();
    assert!(
        blessed.contains("//|   %2 = neg %1 : f32[B, 2]\n"),
        "{blessed}"
    );
    assert_eq!(with_passes(&blessed, false), Ok(None));
    assert_eq!(with_passes(&blessed, true), Ok(None));
    let text = format!("// test: interp\n{BODY}// run: @f(f32[1, 2] (1, -2))\n");
    let blessed = with_passes(&text, true).unwrap().unwrap();
    assert!(blessed.ends_with("// run: @f(f32[1, 2] (1.0, -2.0)) == f32[1, 2] (-1.0, -2.0)\n"));
    assert_eq!(with_passes(&blessed, false), Ok(None));
}

#[test]
fn what_cannot_run_is_skipped_and_says_why() {
    let text = format!("// test: run=cpu\n{BODY}");
    let runner = Runner::default();
    let why = "this binary cannot run on cpu".to_string();
    assert_eq!(run_text(&text, &runner), Err(Failure::Skipped(why)));
    let doubled = |_: &str, _: &Module, _: &str, x: &[kiln_ir::Tensor]| Ok(x.to_vec());
    let runner = Runner {
        run: Some(&doubled),
        ..runner
    };
    assert!(matches!(run_text(&text, &runner), Err(Failure::Failed(_))));
}
