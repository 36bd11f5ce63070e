//! `kiln reduce` as a user runs it.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const MODEL: &str = "kir 1
const @w : f32[4, 4] = splat 0.5
func @f(%x: f32[batch, 4]) -> (y: f32[batch, 4], z: f32[batch]) {
  %w = global {name = \"w\"}
  %0 = matmul %x, %w {transpose_a = false, transpose_b = false}
  %1 = tanh %0
  %2 = transpose %1 {perm = [1, 0]}
  %3 = transpose %2 {perm = [1, 0]}
  %4 = reduce_max %3 {axes = [1], keep = true}
  %5 = sub %3, %4
  %6 = reduce_sum %5 {axes = [1], keep = false}
  return %5, %6
}
";

fn reduce(name: &str, text: &str, more: &[&str]) -> (Output, PathBuf) {
    let base = std::env::temp_dir().join(format!("kiln-{name}-{}", std::process::id()));
    let (model, out) = (
        base.with_extension("kir"),
        base.with_extension("reduced.kir"),
    );
    std::fs::write(&model, text).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_kiln"))
        .args([Path::new("reduce"), &model, Path::new("-o"), &out])
        .args(more)
        .output()
        .unwrap();
    std::fs::remove_file(model).unwrap();
    (output, out)
}

#[test]
fn a_command_says_what_is_looked_for() {
    let (output, out) = reduce(
        "reduce-command",
        MODEL,
        &["--command", "! grep -q reduce_max"],
    );
    assert!(output.status.success(), "{output:?}");
    let text = std::fs::read_to_string(&out).unwrap();
    std::fs::remove_file(&out).unwrap();
    let ops: Vec<&str> = text
        .lines()
        .filter(|l| l.contains(" = ") && l.starts_with("  "))
        .collect();
    assert!(ops.len() == 1 && ops[0].contains("reduce_max"), "{text}");
    assert!(text.starts_with("// test: run=cpu tol=1e-5\n"), "{text}");
}

#[test]
fn a_right_model_is_not_reduced() {
    let (output, out) = reduce("reduce-right", MODEL, &[]);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(message.contains("K0811") && !out.exists(), "{message}");
}

#[test]
fn what_does_not_compile_is_found_by_its_code() {
    // Mirrored paddings have no kernel: the importer writes them as gathers.
    let with = MODEL.replace(
        "  %6 = reduce_sum %5",
        "  %p = pad %5, %half {lo = [0, 1], hi = [0, 1], mode = reflect}\n  %6 = reduce_sum %p",
    );
    let with = with.replace(
        "  %w = global",
        "  %half = constant {value = f32[] (0.5)}\n  %w = global",
    );
    let (output, out) = reduce("reduce-refused", &with, &[]);
    assert!(output.status.success(), "{output:?}");
    let text = std::fs::read_to_string(&out).unwrap();
    std::fs::remove_file(&out).unwrap();
    assert!(
        text.contains("does not compile: K0503") && text.contains(" = pad "),
        "{text}"
    );
    assert!(
        !text.contains("matmul") && !text.contains("reduce"),
        "{text}"
    );
}
