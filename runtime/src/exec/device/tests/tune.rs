//! Measuring forms, and taking what was measured: the interpreter's counts for times.

use super::*;
use crate::Input;
use crate::exec::tune::{Tuning, Unit};
use crate::plan::Tuned;
use std::time::{Duration, Instant};

/// `chain` whose first kernel has two forms more, each with a result of its own: doubling
/// up to 9 numbers, then doubling up to 40, then adding 1.
pub(super) fn of_three_forms() -> Program {
    let mut p = program(vec![chain()]);
    let doubles = |most: &str| {
        let mut form = p.gpu[0].kernels[0][0].clone();
        form.passes[0].entry = "double".into();
        form.scratch = dim("p0 * 4");
        form.when = vec![(dim("p0"), dim(most))];
        form
    };
    let more = [doubles("9"), doubles("40")];
    p.gpu[0].kernels[0].splice(0..0, more);
    p
}

pub(super) fn row(device: &str, kernel: u32, n: i64, form: u32) -> Tuned {
    Tuned {
        device: device.into(),
        kernel,
        params: vec![n],
        form,
    }
}

fn tune(s: &mut Session, x: &[f32], deadline: Instant) -> Tuning {
    let raw = bytes(x);
    let t = TensorRef {
        dtype: DType::F32,
        shape: &[x.len()],
        bytes: &raw,
    };
    s.tune(0, &[("x", Input::Numbers(t))], deadline).unwrap()
}

fn later() -> Instant {
    Instant::now() + Duration::from_secs(600)
}

#[test]
fn what_counts_least_is_taken_for_these_sizes_on_this_device() {
    let p = of_three_forms();
    let mut s = session(&p);
    assert_eq!(run(&mut s, 0, &[5.0; 9]).unwrap(), [20.0; 9]);
    let t = tune(&mut s, &[5.0; 9], later());
    assert_eq!(t.unit, Unit::WarpInstructions);
    let counts: Vec<u64> = t.measured[0].forms.iter().map(|f| f.median).collect();
    assert!(
        counts[0] == counts[1] && counts[2] < counts[0],
        "doubling goes through scratch: {counts:?}"
    );
    assert_eq!((t.measured.len(), t.of_one_form, t.alike), (1, 1, 0));
    assert!(t.untimed.is_empty());
    let rows = t.rows();
    assert_eq!(rows, [row("a PTX interpreter", 0, 9, 2)]);
    // The session goes on as before; a model with the rows takes what they say.
    assert_eq!(run(&mut s, 0, &[5.0; 9]).unwrap(), [20.0; 9]);
    let mut tuned = p.clone();
    tuned.gpu[0].tuned = rows;
    let mut s = session(&tuned);
    assert_eq!(run(&mut s, 0, &[5.0; 9]).unwrap(), [12.0; 9]);
    assert_eq!(run(&mut s, 0, &[5.0; 8]).unwrap(), [20.0; 8]);
    tuned.gpu[0].tuned[0].device = "another device".into();
    assert_eq!(run(&mut session(&tuned), 0, &[5.0; 9]).unwrap(), [20.0; 9]);
    // A row whose form does not serve its sizes gives way.
    tuned.gpu[0].tuned = vec![row("a PTX interpreter", 0, 41, 1)];
    let mut s = session(&tuned);
    assert_eq!(run(&mut s, 0, &[5.0; 41]).unwrap(), [12.0; 41]);
}

#[test]
fn scratch_of_a_form_that_was_measured_best_is_planned() {
    let mut p = of_three_forms();
    p.gpu[0].kernels[0][1].scratch = dim("p0 * 4000");
    let scratch = |p: &Program| {
        let sizes = [("n".into(), 20)].into();
        let m = model(p).predict_memory(0, &sizes, 1, Some(0)).unwrap();
        m.device.unwrap().scratch
    };
    assert_eq!(scratch(&p), 80000, "the first that serves 20 numbers");
    p.gpu[0].tuned = vec![row("any", 0, 20, 2)];
    // Whichever device it is.
    assert_eq!(scratch(&p), 80000);
    p.gpu[0].kernels[0][1].when = vec![(dim("p0"), dim("9"))];
    assert_eq!(scratch(&p), 80);
}

/// x += 1 in place, as state: what is measured again and again counts once.
#[test]
fn what_launches_write_is_put_back_between_turns() {
    let add = |label| launch(0, &[0, 0], &["3"], label);
    let e = Entry {
        buffers: vec![buffer("12", Place::Global(0))],
        steps: vec![add("first"), add("again")],
        ..entry("add")
    };
    let mut p = program(vec![e]);
    p.globals = vec![state("x", 3)];
    let twin = p.gpu[0].kernels[0][0].clone();
    let mut few = twin.clone();
    few.when = vec![(dim("p0"), dim("3"))];
    p.gpu[0].kernels[0] = vec![few, twin];
    let mut s = session(&p);
    let t = s.tune(0, &[], later()).unwrap();
    assert_eq!((t.measured.len(), t.alike), (1, 1));
    assert_eq!(t.measured[0].forms.len(), 2);
    assert!(t.rows().is_empty(), "twins are as fast");
    // Two runs, each adding twice.
    assert_eq!(numbers(s.state("x").unwrap()), [4.0; 3]);
}

#[test]
fn what_is_left_out_is_named() {
    let mut s = session(&of_three_forms());
    let t = tune(&mut s, &[5.0; 9], Instant::now());
    assert!(t.measured.is_empty() && t.rows().is_empty());
    let all: Vec<_> = t
        .untimed
        .iter()
        .map(|u| (&u.label[..], &u.why[..]))
        .collect();
    assert_eq!(all, [("first", "the time was up")]);
    // A branch that is not taken.
    let mut p = of_three_forms();
    let e = &mut p.entries[0];
    e.inputs.push(port("c", DType::Bool, &[], 3));
    e.buffers.push(buffer("1", Place::Input));
    let then = vec![launch(0, &[0, 2], &["n"], "then")];
    e.steps.push(Step::If {
        cond: 3,
        then,
        otherwise: vec![],
    });
    let (x, shape) = (bytes(&[1.0; 5]), [5]);
    let tensor = |dtype, shape, bytes| {
        Input::Numbers(TensorRef {
            dtype,
            shape,
            bytes,
        })
    };
    let inputs = [
        ("x", tensor(DType::F32, &shape[..], &x[..])),
        ("c", tensor(DType::Bool, &[], &[0])),
    ];
    let t = session(&p).tune(0, &inputs, later()).unwrap();
    let all: Vec<_> = t
        .untimed
        .iter()
        .map(|u| (&u.label[..], &u.why[..]))
        .collect();
    assert_eq!(all, [("then", "the run did not come to it")]);
}

#[test]
fn damaged_tables_are_refused() {
    let good = || vec![row("A", 0, 9, 2), row("B", 0, 9, 1)];
    type Change = fn(&mut Vec<Tuned>);
    let changes: [(&str, Change); 6] = [
        ("kernel 5 of 5", |t| t[0].kernel = 5),
        ("form 3 of 3 of kernel 0", |t| t[0].form = 3),
        ("a row of device ``", |t| t[0].device.clear()),
        ("with 300 parameters", |t| t[0].params = vec![0; 300]),
        ("ascending order", |t| t.reverse()),
        ("ascending order, each once", |t| t[1].device = "A".into()),
    ];
    let mut p = of_three_forms();
    p.gpu[0].tuned = good();
    artifact(&p, PTX.as_bytes()).unwrap();
    for (what, change) in changes {
        p.gpu[0].tuned = good();
        change(&mut p.gpu[0].tuned);
        let e = artifact(&p, PTX.as_bytes()).err().unwrap();
        assert_eq!(e.code, "K0703", "{e}");
        assert!(
            e.message.contains("measured for sm_80") && e.message.contains(what),
            "{e}"
        );
    }
}

#[test]
fn artifacts_are_written_anew_with_the_same_sections() {
    let mut p = of_three_forms();
    let before = artifact(&p, PTX.as_bytes()).unwrap();
    p.gpu[0].tuned = vec![row("A", 0, 9, 2)];
    let name = format!("kiln-rewritten-{}.kiln", std::process::id());
    let path = std::env::temp_dir().join(name);
    before.retuned(0, &p.gpu[0].tuned, &path).unwrap();
    let after = Artifact::open(&path).unwrap();
    // The plan is the same but for the rows.
    let text = |p: &Program| serde_json::to_value(p).unwrap();
    assert_eq!(text(&after.program), text(&p));
    assert!(after.section(1) == PTX.as_bytes());
    std::fs::remove_file(&path).unwrap();
    // A plan that refers to nothing is not written.
    let wrong = [row("A", 0, 9, 9)];
    assert_eq!(before.retuned(0, &wrong, &path).unwrap_err().code, "K0703");
    assert!(!path.exists());
}
