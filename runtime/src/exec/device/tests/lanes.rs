//! What waits for what: every wait that a run makes is one whose absence is found.

use super::*;
use crate::Error;
use crate::device::{self, Device, Lane, Window};

/// y = x + 1, and z = 2 (w + 1): the second kernel needs no copy but that of w.
fn two_inputs() -> Entry {
    let f32s = |name, buffer| port(name, DType::F32, &["n"], buffer);
    Entry {
        inputs: vec![f32s("x", 0), f32s("w", 1)],
        outputs: vec![f32s("y", 2), f32s("z", 4)],
        buffers: vec![
            buffer("n * 4", Place::Input),
            buffer("n * 4", Place::Input),
            buffer("n * 4", Place::Output),
            buffer("n * 4", Place::Arena),
            buffer("n * 4", Place::Output),
        ],
        steps: vec![
            launch(0, &[0, 2], &["n"], "x"),
            launch(0, &[1, 3], &["n"], "w"),
            launch(2, &[3, 4], &["n"], "z"),
        ],
        ..entry("two")
    }
}

/// y = x + 1, copied out of memory that then holds an index from the host: z = y[index].
pub(super) fn used_again() -> Entry {
    let live = |bytes, place, live| Buffer {
        live,
        ..buffer(bytes, place)
    };
    let dims = Step::WriteDims {
        to: 3,
        values: vec![dim("n - 1")],
    };
    Entry {
        inputs: vec![port("x", DType::F32, &["n"], 0)],
        outputs: vec![
            port("y", DType::F32, &["n"], 2),
            port("z", DType::F32, &["1"], 4),
        ],
        buffers: vec![
            buffer("n * 4", Place::Input),
            live("n * 4", Place::Arena, (0, 1)),
            buffer("n * 4", Place::Output),
            live("8", Place::Arena, (2, 3)),
            buffer("4", Place::Output),
        ],
        steps: vec![
            launch(0, &[0, 1], &["n"], "first"),
            copy(1, 2, "n * 4"),
            dims,
            launch(1, &[2, 3, 4], &["n", "1"], "pick"),
        ],
        ..entry("again")
    }
}

/// Runs with n numbers from 1 on for each input; the numbers of all outputs.
fn outputs(s: &mut Session, n: usize) -> Result<Vec<Vec<f32>>, Error> {
    let raw = bytes(&(0..n).map(|i| i as f32 + 1.0).collect::<Vec<f32>>());
    let t = TensorRef {
        dtype: DType::F32,
        shape: &[n],
        bytes: &raw,
    };
    let ports = &s.model().program().entries[0].inputs;
    let names: Vec<String> = ports.iter().map(|p| p.name.clone()).collect();
    let inputs: Vec<(&str, TensorRef)> = names.iter().map(|n| (&n[..], t)).collect();
    s.run(0, &inputs)?;
    let all = s.model().program().entries[0].outputs.len();
    Ok((0..all)
        .map(|i| numbers(s.output(i).unwrap().bytes))
        .collect())
}

fn waits(s: &Session) -> usize {
    s.on_device().unwrap().order.waits
}

#[test]
fn every_wait_of_a_run_is_needed_and_a_missing_one_is_found() {
    // Entry, its outputs, and what is found without each of its waits.
    type Case = (Entry, [Vec<f32>; 2], &'static [&'static str]);
    let cases: [Case; 2] = [
        (
            two_inputs(),
            [vec![2.0, 3.0, 4.0], vec![4.0, 6.0, 8.0]],
            // In the order of the waits: for each input's copy, then for each output's
            // writer. The host has waited for the last kernel then.
            &[
                "a copy of 12 bytes from the host and the kernel of x touch",
                "a copy of 12 bytes from the host and the kernel of w touch",
                "the kernel of x and a copy of 12 bytes to the host touch",
                "the kernel of z and a copy of 12 bytes to the host touch",
            ],
        ),
        (
            used_again(),
            [vec![2.0, 3.0, 4.0], vec![4.0]],
            // The index is copied to where the first result was.
            &[
                "a copy of 12 bytes from the host and the kernel of first touch",
                "a copy of 8 bytes from the host touch",
                "a copy of 8 bytes from the host and the kernel of pick touch",
                "a copy of 12 bytes to the host touch",
                "the kernel of pick and a copy of 4 bytes to the host touch",
            ],
        ),
    ];
    for (entry, want, faults) in cases {
        let p = program(vec![entry]);
        let mut s = session(&p);
        // Past the first run, which also waits for what opening the device began.
        s.set_graphs(false);
        outputs(&mut s, 3).unwrap();
        let before = waits(&s);
        assert_eq!(outputs(&mut s, 3).unwrap(), want);
        assert_eq!(waits(&s) - before, faults.len());
        for (i, fault) in faults.iter().enumerate() {
            let mut s = session(&p);
            s.set_graphs(false);
            outputs(&mut s, 3).unwrap();
            s.leave_out_wait(waits(&s) + i);
            let e = outputs(&mut s, 3).unwrap_err();
            assert_eq!(e.code, "K0808", "{e}");
            assert!(e.message.contains(fault), "wait {i}: {e}");
            // The next run waits for what the failed one left under way.
            assert_eq!(outputs(&mut s, 3).unwrap(), want);
        }
    }
}

#[test]
fn recorded_runs_wait_for_all_copies_once() {
    let mut s = session(&program(vec![two_inputs()]));
    for _ in 0..2 {
        outputs(&mut s, 3).unwrap();
    }
    let before = waits(&s);
    for _ in 0..4 {
        assert_eq!(outputs(&mut s, 3).unwrap()[1], [4.0, 6.0, 8.0]);
    }
    // For the last copy up; for all kernels, before the first copy down.
    assert_eq!(waits(&s) - before, 4 * 2);
    s.leave_out_wait(waits(&s));
    let e = outputs(&mut s, 3).unwrap_err();
    assert!(
        e.code == "K0808" && e.message.contains("from the host and the kernel of x"),
        "{e}"
    );
}

/// Kernels and copies between steps of the host are recorded by themselves.
#[test]
fn stretches_between_steps_of_the_host_are_recorded() {
    let mut s = session(&program(vec![used_again()]));
    for round in 0..4 {
        let all = outputs(&mut s, 3).unwrap();
        assert_eq!(all, [vec![2.0, 3.0, 4.0], vec![4.0]]);
        // The first kernel and the copy; the last kernel is alone.
        assert_eq!(graphs(&s), (round > 0) as usize);
    }
    // Another size gets its own.
    for _ in 0..3 {
        assert_eq!(outputs(&mut s, 700).unwrap()[1], [701.0]);
        assert_eq!(outputs(&mut s, 3).unwrap()[1], [4.0]);
    }
    assert_eq!(graphs(&s), 2);
    let waited = waits(&s);
    assert_eq!(outputs(&mut s, 3).unwrap()[1], [4.0]);
    let count = waits(&s) - waited;
    for i in 0..count {
        s.leave_out_wait(waits(&s) + i);
        let e = outputs(&mut s, 3).unwrap_err();
        assert_eq!(e.code, "K0808", "wait {i} of {count}: {e}");
        assert_eq!(outputs(&mut s, 3).unwrap()[1], [4.0]);
    }
    assert_eq!(count, 5);
}

/// x = 2 (x + 1), again and again as a loop says.
pub(super) fn repeated() -> Entry {
    // The condition is the caller's, for want of a kernel that writes one.
    Entry {
        inputs: vec![
            port("x", DType::F32, &["n"], 0),
            port("trip", DType::I64, &[], 1),
            port("go", DType::Bool, &[], 5),
        ],
        outputs: vec![port("y", DType::F32, &["n"], 2)],
        buffers: vec![
            buffer("n * 4", Place::Input),
            buffer("8", Place::Input),
            buffer("n * 4", Place::Output),
            buffer("n * 4", Place::Arena),
            buffer("8", Place::Arena),
            buffer("1", Place::Input),
            buffer("n * 4", Place::Arena),
        ],
        steps: vec![
            copy(0, 2, "n * 4"),
            Step::Loop(crate::plan::Loop {
                trip: 1,
                cond: 5,
                iteration: 4,
                body_cond: 5,
                body: vec![
                    launch(0, &[2, 3], &["n"], "add"),
                    launch(2, &[3, 6], &["n"], "double"),
                ],
                carried: vec![(6, 2, dim("n * 4"))],
                scanned: vec![],
                symbol: None,
                sizes: vec![],
            }),
        ],
        ..entry("loop")
    }
}

/// The body is recorded in the first run.
#[test]
fn bodies_of_loops_are_recorded() {
    let mut s = session(&program(vec![repeated()]));
    let x = bytes(&[1.0; 5]);
    for trip in [4i64, 1, 6, 0, 2] {
        let raw = trip.to_le_bytes();
        let tensor = |dtype, shape, bytes| TensorRef {
            dtype,
            shape,
            bytes,
        };
        let inputs = [
            ("x", tensor(DType::F32, &[5][..], &x[..])),
            ("trip", tensor(DType::I64, &[], &raw)),
            ("go", tensor(DType::Bool, &[], &[1])),
        ];
        s.run(0, &inputs).unwrap();
        let want = (0..trip).fold(1.0, |x, _| 2.0 * (x + 1.0));
        assert_eq!(numbers(s.output(0).unwrap().bytes), [want; 5], "{trip}");
        assert_eq!(graphs(&s), 1, "{trip}");
    }
}

/// The device by itself, with orders that are wrong.
#[test]
fn lanes_that_nothing_orders_are_faults() {
    let increment = |d: &mut Box<dyn Device>, x: u64, y: u64, label: &str| {
        let kernel = d.kernel("increment", 0).unwrap();
        let params: Vec<u8> = [x, y, 0, 0, 4]
            .iter()
            .flat_map(|w| w.to_le_bytes())
            .collect();
        let window = |at, writable| Window {
            at,
            len: 16,
            writable,
        };
        d.launch(&device::Launch {
            kernel,
            grid: [1; 3],
            block: [32, 1, 1],
            cluster: [1; 3],
            shared: 0,
            params: params.into(),
            windows: vec![window(x, false), window(y, true)].into(),
            label: label.into(),
        })
    };
    let open = || {
        let mut d = device::open(Name::Sim).unwrap();
        d.load(PTX).unwrap();
        let (x, y) = (d.alloc(16).unwrap(), d.alloc(16).unwrap());
        d.upload(x, &[0; 16]).unwrap();
        (d, x, y)
    };
    // A kernel that does not wait for its input.
    let (mut d, x, y) = open();
    let e = increment(&mut d, x, y, "early").unwrap_err();
    assert_eq!(e.code, "K0808");
    assert!(
        e.message
            .contains("a copy of 16 bytes from the host and the kernel of early"),
        "{e}"
    );
    // A copy over what a kernel still reads, and one of what it still writes.
    let ordered = || {
        let (mut d, x, y) = open();
        let s = d.signal(Lane::Up, None).unwrap();
        d.after(Lane::Compute, s).unwrap();
        increment(&mut d, x, y, "k").unwrap();
        (d, x, y)
    };
    let (mut d, x, _) = ordered();
    let e = d.upload(x, &[1; 4]).unwrap_err();
    assert!(
        e.message
            .contains("the kernel of k and a copy of 4 bytes from the host"),
        "{e}"
    );
    let (mut d, _, y) = ordered();
    let e = d.download(y + 12, &mut [0; 4]).unwrap_err();
    assert!(
        e.message
            .contains("the kernel of k and a copy of 4 bytes to the host"),
        "{e}"
    );
    // What the host has waited for is in order.
    let (mut d, x, y) = ordered();
    d.wait().unwrap();
    d.upload(x, &[1; 4]).unwrap();
    let mut out = [0; 4];
    d.download(y, &mut out).unwrap();
    assert_eq!(out, 1f32.to_le_bytes());
}
