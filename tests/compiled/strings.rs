//! Strings in compiled models: constants, sessions that run often, damaged artifacts.

use super::{artifact, levels, reseal, run, try_run};
use kiln::compile::{self, Options};
use kiln::ir::parse::{NoFiles, parse_module};
use kiln::ir::{DType, Module, Tensor};
use kiln::runtime::{Artifact, Input, Model, Session, StringsRef, TensorRef};
use std::sync::Arc;

fn module(text: &str) -> Module {
    parse_module(&format!("kir 1\n{text}"), &NoFiles).unwrap_or_else(|e| panic!("{}", e.message))
}

/// The bytes of the artifact of a module.
fn compiled(text: &str, name: &str) -> Option<Vec<u8>> {
    let path = artifact(module(text), levels().into_iter().next()?, name);
    let bytes = std::fs::read(&path).unwrap();
    std::fs::remove_file(path).unwrap();
    Some(bytes)
}

fn load(bytes: &[u8]) -> Result<Arc<Model>, kiln::runtime::Error> {
    Model::from_artifact(Artifact::from_bytes("test", bytes)?)
}

fn strings(shape: &[usize], all: &[&str]) -> Tensor {
    Tensor::strings(shape, all.iter().map(|s| s.to_string()).collect()).unwrap()
}

const GREET: &str = r#"func @f(%x: str[B], %k: i64[B]) -> (y: str[B], same: bool[B], one: str[B]) {
  %hello = constant {value = str[2] ("hello ", "bye ")}
  %h = gather %hello, %k {axis = 0}
  %y = string_concat %h, %x
  %target = constant {value = str[] ("hello you")}
  %same = eq %y, %target
  %one = select %same, %target, %x
  return %y, %same, %one
}"#;

#[test]
fn a_session_forgets_the_strings_of_its_runs() {
    let Some(bytes) = compiled(GREET, "strings-runs") else {
        return;
    };
    let mut session = Session::new(load(&bytes).unwrap(), 1).unwrap();
    let ids = Tensor::from_i64(DType::I64, [2], &[0, 1]).unwrap();
    for i in 0..1000 {
        let name = format!("n{i}");
        let x = strings(&[2], &["you", &name]);
        let got = run(&mut session, "f", &[("x", &x), ("k", &ids)]);
        assert_eq!(
            got[0],
            strings(&[2], &["hello you", &format!("bye {name}")])
        );
        assert_eq!(got[1].to_i64(), [1, 0]);
        assert_eq!(got[2], strings(&[2], &["hello you", &name]));
        // Those of the run's inputs and results, and no others.
        assert_eq!(session.live_strings(), 0, "after run {i}");
    }
    // Also of a run that failed in the middle.
    let bad = Tensor::from_i64(DType::I64, [2], &[0, 2]).unwrap();
    let x = strings(&[2], &["a", "b"]);
    let error = try_run(&mut session, "f", &[("x", &x), ("k", &bad)]).unwrap_err();
    assert_eq!((error.code, session.live_strings()), ("K0723", 0));
    assert!(session.strings(0).is_none_or(|t| t.strings.is_empty()));
}

#[test]
fn inputs_and_outputs_have_one_kind_each() {
    let Some(bytes) = compiled(GREET, "strings-kinds") else {
        return;
    };
    let mut session = Session::new(load(&bytes).unwrap(), 1).unwrap();
    let all = ["a".to_string(), "b".to_string()];
    let x = Input::Strings(StringsRef {
        shape: &[2],
        strings: &all,
    });
    let (dtype, shape, zeros) = (DType::I64, &[2usize][..], [0u8; 16]);
    let k = TensorRef {
        dtype,
        shape,
        bytes: &zeros,
    };
    session.run_with(0, &[("x", x), ("k", k.into())]).unwrap();
    assert!(session.output(0).is_none() && session.strings(1).is_none());
    assert_eq!(session.strings(0).unwrap().strings, ["hello a", "hello b"]);
    assert_eq!(session.output(1).unwrap().bytes, [0, 0]);
    // Handles are no input, whatever type they say that they have.
    for dtype in [DType::I64, DType::Str] {
        let handles = TensorRef {
            dtype,
            shape,
            bytes: &zeros,
        };
        let refused = session.run_with(0, &[("x", handles.into()), ("k", k.into())]);
        assert_eq!(refused.unwrap_err().code, "K0712", "{dtype}");
    }
    let short = Input::Strings(StringsRef {
        shape: &[3],
        strings: &all,
    });
    let error = session
        .run_with(0, &[("x", short), ("k", k.into())])
        .unwrap_err();
    assert!(error.message.contains("comes with 2 strings"), "{error}");
}

#[test]
fn a_step_that_fails_says_at_which_element() {
    let text =
        "func @f(%x: str[B]) -> (y: i32[B]) {\n  %y = parse_number %x {to = i32}\n  return %y\n}";
    let Some(bytes) = compiled(text, "strings-parse") else {
        return;
    };
    let mut session = Session::new(load(&bytes).unwrap(), 1).unwrap();
    let good = strings(&[3], &["1", "-2.9", " 3e2 "]);
    assert_eq!(
        run(&mut session, "f", &[("x", &good)])[0].to_i64(),
        [1, -2, 300]
    );
    let bad = strings(&[2], &["1", "two"]);
    let error = try_run(&mut session, "f", &[("x", &bad)]).unwrap_err();
    assert_eq!(error.code, "K0728");
    assert!(
        error.message.contains("element 1: \"two\" is no number"),
        "{error}"
    );
}

/// Where these bytes begin, which are there once.
fn place(bytes: &[u8], what: &[u8]) -> usize {
    let all: Vec<usize> = (0..bytes.len() - what.len())
        .filter(|&i| bytes[i..].starts_with(what))
        .collect();
    assert_eq!(all.len(), 1, "{what:?}");
    all[0]
}

#[test]
fn damaged_strings_are_coded_errors() {
    let Some(whole) = compiled(GREET, "strings-damaged") else {
        return;
    };
    load(&whole).unwrap();
    let refused = |change: &dyn Fn(&mut Vec<u8>), what: &str| {
        let mut bytes = whole.clone();
        change(&mut bytes);
        reseal(&mut bytes);
        let error = load(&bytes).map(|_| ()).expect_err(what);
        assert_eq!(error.code, "K0703");
        assert!(error.message.contains(what), "{error}");
    };
    let text = place(&whole, b"hello you");
    refused(&|b| b[text] = 0xff, "is not UTF-8");
    refused(&|b| b[text - 4] = 200, "is cut off");
    refused(&|b| b[text - 4..text].fill(0), "is empty or there twice");
    // The same string twice, in as many bytes.
    let section = place(&whole, b"\x06\0\0\0hello \x04\0\0\0bye ");
    refused(
        &|b| b[section..section + 18].copy_from_slice(b"\x05\0\0\0bye e\x05\0\0\0bye e"),
        "is empty or there twice",
    );
    // The vector of both constants: handles 1 and 2.
    let handles = place(&whole, &[1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0]);
    refused(&|b| b[handles] = 4, "refers to strings that are not there");
    refused(
        &|b| b[handles + 7] = 0x80,
        "refers to strings that are not there",
    );
}

#[test]
fn a_damaged_step_on_strings_is_a_coded_error() {
    let text = "func @f(%x: str[B]) -> (y: bool[B]) {\n  %y = full_match %x {pattern = \"a+b\"}\n  return %y\n}";
    let Some(whole) = compiled(text, "strings-step") else {
        return;
    };
    let change = |from: &[u8], to: &[u8]| {
        let mut bytes = whole.clone();
        let at = place(&bytes, from);
        bytes[at..at + from.len()].copy_from_slice(to);
        reseal(&mut bytes);
        load(&bytes)
    };
    let message = |m: Result<Arc<Model>, kiln::runtime::Error>| m.map(|_| ()).unwrap_err().message;
    assert!(
        message(change(b"\"a+b\"", b"\"a(b\"")).contains("an expression that does not compile")
    );
    assert!(
        message(change(b"\"args\":[0]", b"\"args\":[9]")).contains("a buffer that is not there")
    );
    assert!(
        message(change(
            b"\"dtype\":\"str\",\"count\"",
            b"\"dtype\":\"i32\",\"count\""
        ))
        .contains("no such arguments")
    );
    // What nobody made is no string: the input is said to be of numbers.
    let model = change(b"\"dtype\":\"str\",\"dims\"", b"\"dtype\":\"i64\",\"dims\"").unwrap();
    let mut session = Session::new(model, 1).unwrap();
    let x = Tensor::from_i64(DType::I64, [1], &[77]).unwrap();
    let error = try_run(&mut session, "f", &[("x", &x)]).unwrap_err();
    assert_eq!(error.code, "K0727");
}

#[test]
fn state_of_strings_is_refused() {
    let text = r#"state @s : str[1] = str[1] ("a")
func @f(%s: str[1] = state @s) -> (y: str[1], s: str[1] = state @s) {
  return %s, %s
}"#;
    let refused = compile::plan(module(text), &Options::default()).map(|_| ());
    assert!(
        refused
            .unwrap_err()
            .to_string()
            .contains("the state @s is of strings")
    );
}
