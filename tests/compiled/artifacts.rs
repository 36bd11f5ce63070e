//! What is written into artifacts, and how.

use super::levels;
use kiln::compile::{self, Options};
use kiln::ir::files::Folder;
use kiln::ir::parse::parse_module;
use kiln::ir::{ConstSource, DType, Global, GlobalKind, Module, Tensor};
use kiln::runtime::ArtifactWriter;
use std::path::PathBuf;

fn temporary(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("kiln-test-{name}-{}.kiln", std::process::id()))
}

/// Products with three matrices, of which one is packed in two layouts, a weight that
/// repeats one number, and strings.
pub(crate) fn module() -> Module {
    let text = r#"kir 1
const @a : f32[512, 300] = splat 0.5
const @b : f32[300, 512] = splat 0.25
const @s : f32[512] = splat 3.0
func @f(%x: f32[B, 512], %k: i64[B]) -> (y: f32[B, 512], t: str[B]) {
  %a = global {name = "a"}
  %b = global {name = "b"}
  %s = global {name = "s"}
  %u = matmul %x, %a {transpose_a = false, transpose_b = false}
  %v = matmul %u, %b {transpose_a = false, transpose_b = false}
  %w = matmul %v, %a {transpose_a = false, transpose_b = false}
  %z = matmul %w, %a {transpose_a = false, transpose_b = true}
  %y = add %z, %s
  %words = constant {value = str[3] ("one", "two", "three")}
  %t = gather %words, %k {axis = 0}
  return %y, %t
}"#;
    let mut module = parse_module(text, &Folder(PathBuf::new())).unwrap();
    for name in ["a", "b"] {
        let global: &mut Global = module.globals.get_mut(name).unwrap();
        let shape = global.ty.const_shape().unwrap();
        let n = shape.iter().product();
        let values: Vec<f64> = (0..n).map(|i| (i % 1013) as f64 / 1013.0).collect();
        let t = Tensor::from_f64(DType::F32, shape, &values).unwrap();
        global.kind = GlobalKind::Const(ConstSource::Tensor(t));
    }
    module
}

#[test]
fn threads_and_repetition_do_not_change_the_bytes() {
    let Some(target) = levels().into_iter().next() else {
        return;
    };
    let files: Vec<Vec<u8>> = [1, 1, 2, 5]
        .iter()
        .map(|&threads| {
            let mut options = Options {
                targets: vec![target.clone()],
                ..Options::default()
            };
            options.workers.count = threads;
            let path = temporary(&format!("threads-{threads}"));
            compile::compile(module(), &options, &path).unwrap();
            let bytes = std::fs::read(&path).unwrap();
            std::fs::remove_file(path).unwrap();
            bytes
        })
        .collect();
    // Enough that threads were started.
    assert!(files[0].len() > 1_000_000, "{} bytes", files[0].len());
    assert!(files.iter().all(|f| *f == files[0]));
}

#[test]
fn a_section_is_filled_whole_and_once() {
    let path = temporary("sections");
    let mut writer = ArtifactWriter::create(&path).unwrap();
    let section = writer.reserve(4);
    for wrong in [&b"abc"[..], b"abcde"] {
        assert_eq!(writer.fill(section, [wrong]).unwrap_err().code, "K0707");
    }
    writer.fill(section, [&b"ab"[..], b"cd"]).unwrap();
    assert_eq!(
        writer.fill(section, [&b"abcd"[..]]).unwrap_err().code,
        "K0707"
    );
    assert_eq!(writer.fill(9, [&b"a"[..]]).unwrap_err().code, "K0707");
    // One that stays empty is no artifact, and no file is left.
    writer.reserve(1);
    assert_eq!(
        writer.finish(&Default::default()).unwrap_err().code,
        "K0707"
    );
    assert!(!path.exists());
}
