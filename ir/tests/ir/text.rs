//! Printing and parsing.

use super::*;
use kiln_ir::parse::{Loader, NoFiles, parse_module};
use kiln_ir::print::{PrintOptions, print_module, print_with_blobs};
use kiln_ir::tensor::Bytes;
use kiln_ir::{ConstSource, DType, Dim, Global, GlobalKind, Graph, TensorType};

const ALL: PrintOptions = PrintOptions {
    origins: true,
    ids: false,
};

#[track_caller]
fn round_trip(text: &str) -> Module {
    let module = parse_module(text, &NoFiles).unwrap_or_else(|e| panic!("{e}\n{text}"));
    assert_eq!(print_module(&module, &ALL), text);
    module
}

#[test]
fn everything_prints_as_it_was_written() {
    let module = round_trip(FULL);
    // Numbers are ids where the graph was just read.
    let ids = PrintOptions {
        origins: true,
        ids: true,
    };
    assert_eq!(print_module(&module, &ids), FULL);
}

#[test]
fn one_op_functions_of_every_sample_round_trip() {
    for s in samples() {
        let module = one_op(&s, &s.tensors(1));
        let text = print_module(&module, &ALL);
        let again = round_trip(&text);
        let (old, new) = (&module.functions[0], &again.functions[0]);
        for (&a, &b) in old.body().nodes.iter().zip(&new.body().nodes) {
            let same_nan = format!("{:?}", old.node(a).op) == format!("{:?}", new.node(b).op);
            assert!(same_nan, "{text}");
        }
        assert_eq!((&old.params, &old.guards), (&new.params, &new.guards));
    }
}

#[test]
fn random_modules_verify_round_trip_and_run() {
    for seed in 0..60 {
        let module = kiln_ir::filetest::random_module(seed, 20);
        let text = print_module(&module, &ALL);
        let errors = kiln_ir::verify::verify_module(&module);
        assert!(errors.is_empty(), "{errors:?}\n{text}");
        let again = round_trip(&text);
        kiln_ir::filetest::same_meaning(&module, &again, 0.0).unwrap();
    }
}

#[test]
fn big_constants_go_to_the_blobs_and_come_back() {
    let values: Vec<f64> = (0..100).map(f64::from).collect();
    let big = Tensor::from_f64(DType::F32, [100], &values).unwrap();
    let mut module = Module::default();
    module.globals.insert(
        "w".into(),
        Global {
            ty: big.ty(),
            kind: GlobalKind::Const(ConstSource::Tensor(big.clone())),
        },
    );
    let mut blob = vec![0u8; 64];
    let text = print_with_blobs(&module, &ALL, &mut |bytes| {
        let at = blob.len() as u64;
        blob.extend(bytes);
        ("w.bin".into(), at)
    });
    assert!(
        text.contains("const @w : f32[100] = file(\"w.bin\", 64, 400)"),
        "{text}"
    );

    struct Memory(Vec<u8>);
    impl Loader for Memory {
        fn load(&self, file: &str, offset: u64, length: u64) -> Result<Bytes, String> {
            let (offset, length) = (offset as usize, length as usize);
            assert_eq!(file, "w.bin");
            let bytes = self.0.get(offset..).and_then(|b| b.get(..length));
            bytes.map(|b| b.to_vec().into()).ok_or("too short".into())
        }
    }
    let again = parse_module(&text, &Memory(blob)).unwrap();
    let GlobalKind::Const(ConstSource::Tensor(t)) = &again.globals["w"].kind else {
        panic!("not a tensor")
    };
    assert_eq!(*t, big);
    let short = parse_module(&text, &Memory(vec![])).unwrap_err();
    assert_eq!((short.line, short.message.as_str()), (2, "too short"));
    // Without blobs, the text of larger ones says that something is missing.
    let values: Vec<f64> = (0..5000).map(f64::from).collect();
    let big = Tensor::from_f64(DType::F32, [5000], &values).unwrap();
    if let Some(w) = module.globals.get_mut("w") {
        w.ty = big.ty();
        w.kind = GlobalKind::Const(ConstSource::Tensor(big));
    }
    let text = print_module(&module, &ALL);
    let error = parse_module(&text, &NoFiles).unwrap_err();
    assert!(error.message.contains("left out"), "{error}");
}

#[test]
fn renumbering_does_not_depend_on_the_arena() {
    // Two orders of making the same function.
    let text = "kir 1\nfunc @f(%x: f32[2]) -> (y: f32[2]) {\n  %1 = exp %x : f32[2]\n  %2 = neg %1 : f32[2]\n  return %2\n}\n";
    let mut module = round_trip(text);
    let graph = &mut module.functions[0];
    let globals = Default::default();
    let last = graph.body().nodes[1];
    let mut b = Builder::before(graph, &globals, last);
    let x = b.graph.body().params[0];
    let new = b.unary(kiln_ir::UnaryFn::Exp, x).unwrap();
    let old = graph.node(last).args[0];
    graph.replace_uses(old, new);
    let dead = [graph.body().nodes[0]].into();
    graph.remove_nodes(&dead);
    assert_eq!(print_module(&module, &ALL), text);
}

#[test]
fn errors_say_where() {
    let body = |line: &str| {
        format!("kir 1\nfunc @f(%x: f32[2, B]) -> (y: f32[2, B]) {{\n  {line}\n  return %x\n}}\n")
    };
    let cases: &[(&str, usize, usize, &str)] = &[
        ("%1 = add %x, %y", 3, 16, "%y is not defined before"),
        ("%1 = nonsense %x", 3, 8, "no op `nonsense`"),
        ("%1 = softmax %x", 3, 8, "`axis` is missing"),
        (
            "%1 = reduce_sum %x, %x {axes = [0], keep = false}",
            3,
            3,
            "takes 1",
        ),
        ("%1 = neg %x : f32[3, B]", 3, 3, "f32[2, B], not f32[3, B]"),
        ("%1 = neg %x : f33[3, B]", 3, 17, "element type"),
        ("%x = neg %x", 3, 3, "%x is defined twice"),
        ("%1, %2 = neg %x", 3, 3, "1 results, not 2"),
        ("%1 = global {name = \"w", 3, 23, "does not end"),
        ("%1 = neg %x : f32[2, B", 3, 24, "does not end"),
        ("%1 = iota {shape = [<B +>]}", 3, 24, "not a size"),
        ("%1 = constant {value = i8[2] (1)}", 3, 32, "do not fill"),
        ("%1 = constant {value = i8[] (1.5)}", 3, 32, "type i8"),
        (
            "%1 = constant {value = f32[2] hex \"00\"}",
            3,
            33,
            "needs 8 bytes",
        ),
        (
            "%1 = constant {value = f32[99999999999] splat 1}",
            3,
            43,
            "no literal",
        ),
    ];
    for (line, row, column, message) in cases {
        let text = body(line);
        let error = parse_module(&text, &NoFiles).expect_err(line);
        assert!(error.message.contains(message), "{line}: {error}");
        assert_eq!(
            (error.line, error.column),
            (*row, *column),
            "{line}: {error}"
        );
    }
    let whole: &[(&str, &str)] = &[
        ("", "expected `kir 1`"),
        ("kir 2\n", "version 2"),
        ("kir 1\nfoo", "expected `meta`"),
        ("kir 1\nconst @w : f32[2] = splat\n", "number"),
        (
            "kir 1\nconst @w : f32[2] = splat 1\nconst @w : f32[2] = splat 1\n",
            "two globals",
        ),
        ("kir 1\nfunc @f() -> () {", "does not end"),
        (
            "kir 1\nfunc @f() -> (y: f32[]) {\n return\n}\n",
            "returns 0 values",
        ),
    ];
    for (text, message) in whole {
        let error = parse_module(text, &NoFiles).expect_err(text);
        assert!(error.message.contains(message), "{text}: {error}");
    }
}

#[test]
fn deep_nesting_is_an_error() {
    let mut text = String::from("kir 1\nfunc @f(%c: bool[]) -> () {\n");
    text += &"if %c () {".repeat(10_000);
    text += &"yield } () { yield }".repeat(10_000);
    text += "return }";
    let error = parse_module(&text, &NoFiles).unwrap_err();
    assert!(error.message.contains("nested deeper"), "{error}");
    let dims = format!("kir 1\nconst @w : f32[{}] = splat 1", "(".repeat(100_000));
    assert!(parse_module(&dims, &NoFiles).is_err());
}

#[test]
fn damaged_text_never_panics() {
    // Every prefix, and every single byte replaced by each of these.
    for end in (0..FULL.len()).filter(|&i| FULL.is_char_boundary(i)) {
        let _ = parse_module(&FULL[..end], &NoFiles);
    }
    for at in 0..FULL.len() {
        for c in ["}", "%", "9", "\"", "-", " "] {
            let text = format!("{}{c}{}", &FULL[..at], &FULL[at + 1..]);
            let _ = parse_module(&text, &NoFiles);
        }
    }
}

#[test]
fn types_that_a_guard_equates_may_be_written_either_way() {
    let text = "kir 1\nfunc @f(%a: f32[A], %b: f32[B]) -> (y: f32[B]) {\n  guard <A> == <B> \"extents do not broadcast\"\n  %2 = add %a, %b : f32[B]\n  return %2\n}\n";
    let module = round_trip(text);
    let f = &module.functions[0];
    let sum = f.body().results[0];
    assert_eq!(*f.ty(sum), TensorType::new(DType::F32, [Dim::sym("B")]));
    let _: &Graph = f;
}

#[test]
fn files_keep_big_constants_beside_the_text() {
    use kiln_ir::files::{load, save};
    let dir = std::env::temp_dir().join(format!("kiln-kir-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let path = dir.join("m.kir");
    let mut module = parse_module(FULL, &NoFiles).unwrap();
    for (i, n) in [100usize, 77].into_iter().enumerate() {
        let values: Vec<f64> = (0..n).map(|v| (v + i) as f64).collect();
        let t = Tensor::from_f64(DType::F32, [n], &values).unwrap();
        let kind = GlobalKind::Const(ConstSource::Tensor(t.clone()));
        let global = Global { ty: t.ty(), kind };
        module.globals.insert(format!("big{i}").into(), global);
    }
    save(&module, &path, &ALL).unwrap();
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(
        text.contains("@big1 : f32[77] = file(\"m.bin\", 448, 308)"),
        "{text}"
    );
    let again = load(&path).unwrap();
    assert_eq!(print_module(&again, &ALL), print_module(&module, &ALL));
    for (from, to, message) in [
        ("m.bin", "../m.bin", "not inside"),
        ("m.bin", "/etc/passwd", "not inside"),
        ("m.bin", "other.bin", "other.bin"),
        ("448, 308", "449000, 308", "the file has"),
        ("448, 308", "448, 304", "needs 308 bytes"),
        ("448, 308", "18446744073709551615, 308", "the file has"),
    ] {
        std::fs::write(&path, text.replace(from, to)).unwrap();
        let error = load(&path).unwrap_err();
        assert!(error.contains(message), "{error}");
    }
    std::fs::remove_dir_all(&dir).unwrap();
}

#[test]
fn long_chains_of_calls_and_expressions_are_errors_and_take_no_long() {
    let n = 20_000;
    let mut calls = "kir 1\nfunc @f0(%x: f32[2]) -> f32[2] {\n return %x\n}\n".to_string();
    let mut exprs = "kir 1\nconst @g0 : f32[2] = splat 1.0\n".to_string();
    for i in 1..n {
        let before = i - 1;
        calls += &format!(
            "func @f{i}(%x: f32[2]) -> f32[2] {{\n %0 = call %x {{function = \"f{before}\"}}\n return %0\n}}\n"
        );
        exprs += &format!("const @g{i} : f32[2] = expr neg @g{before}\n");
    }
    for (text, what) in [(calls, "calls nest"), (exprs, "its expression stands on")] {
        let module = kiln_ir::parse::parse_module(&text, &kiln_ir::parse::NoFiles).unwrap();
        let errors = kiln_ir::verify::verify_module(&module);
        // The first that is too deep, and not each above it.
        assert_eq!(errors.len(), 1, "{errors:?}");
        assert!(errors[0].message.contains(what), "{}", errors[0]);
    }
}

#[test]
fn one_number_fills_so_many_bytes_in_a_text_and_no_more() {
    let line = |i: usize| format!("const @g{i} : f64[4096, 4096] = f64[4096, 4096] splat 1.0\n");
    let text = |n: usize| "kir 1\n".to_string() + &(0..n).map(line).collect::<String>();
    assert!(parse_module(&text(2), &NoFiles).is_ok());
    let error = parse_module(&text(3), &NoFiles).unwrap_err();
    assert_eq!(error.line, 4);
    assert!(error.message.contains("too large to be filled"), "{error}");
}

#[test]
fn strides_of_a_tensor_without_elements_do_not_wrap() {
    let strides = kiln_ir::ops::util::strides(&[0, usize::MAX, 16]);
    assert_eq!(strides, [usize::MAX, 16, 1]);
}
