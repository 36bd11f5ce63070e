//! Steps of the host between kernels: branches, loops, sizes that data decides.

use super::*;
use crate::plan::Loop;
use crate::profile::Lane;

/// x, repeated while i + 1 < limit: x = x + 1; y is the last x, z all of them.
fn looped() -> Entry {
    let l = Loop {
        trip: 1,
        cond: 2,
        iteration: 4,
        body_cond: 5,
        body: vec![
            launch(0, &[6, 7], &["n"], "body"),
            launch(4, &[4, 3, 5], &[], "condition"),
        ],
        carried: vec![(7, 6, dim("n * 4"))],
        scanned: vec![(7, 8, dim("n * 4"))],
        symbol: Some("steps".into()),
        sizes: vec![],
    };
    Entry {
        inputs: vec![
            port("x", DType::F32, &["n"], 0),
            port("trip", DType::I64, &[], 1),
            port("cond", DType::Bool, &[], 2),
            port("limit", DType::I64, &[], 3),
        ],
        outputs: vec![
            port("y", DType::F32, &["n"], 6),
            port("z", DType::F32, &["steps", "n"], 8),
        ],
        buffers: vec![
            buffer("n * 4", Place::Input),
            buffer("8", Place::Input),
            buffer("1", Place::Input),
            buffer("8", Place::Input),
            buffer("8", Place::Arena),
            buffer("1", Place::Arena),
            buffer("n * 4", Place::Output),
            buffer("n * 4", Place::Arena),
            buffer("steps * n * 4", Place::Output),
        ],
        steps: vec![copy(0, 6, "n * 4"), Step::Loop(l)],
        ..entry("looped")
    }
}

#[test]
fn loops_carry_and_stack_on_the_device() {
    let mut s = session(&program(vec![looped()]));
    let x = bytes(&[1.0, 2.0, 3.0]);
    let mut bytes_before = None;
    for (trip, on, limit) in [
        (5i64, 1u8, 99i64),
        (-1, 1, 4),
        (7, 1, 2),
        (3, 0, 9),
        (0, 1, 9),
    ] {
        let (trip_raw, limit_raw, on_raw) = (trip.to_le_bytes(), limit.to_le_bytes(), [on]);
        let scalar = |dtype, bytes| TensorRef {
            dtype,
            shape: &[],
            bytes,
        };
        let inputs = [
            (
                "x",
                TensorRef {
                    dtype: DType::F32,
                    shape: &[3],
                    bytes: &x,
                },
            ),
            ("trip", scalar(DType::I64, &trip_raw[..])),
            ("cond", scalar(DType::Bool, &on_raw[..])),
            ("limit", scalar(DType::I64, &limit_raw[..])),
        ];
        s.set_profiling(true);
        s.run(0, &inputs).unwrap();
        let steps = match (on, trip) {
            (0, _) => 0,
            (_, -1) => limit,
            (_, trip) => trip.min(limit),
        };
        let want = |k: i64| [1.0, 2.0, 3.0].map(|x| x + k as f32);
        assert_eq!(
            numbers(s.output(0).unwrap().bytes),
            want(steps),
            "{trip} {limit}"
        );
        let z = s.output(1).unwrap();
        assert_eq!(z.shape, [steps as usize, 3]);
        let all: Vec<f32> = (1..=steps).flat_map(want).collect();
        assert_eq!(numbers(z.bytes), all);
        // Down come a condition an iteration, and the outputs; up go x, the limit if an
        // iteration reads it, and the number of each one.
        let p = s.take_profile().unwrap();
        let down = steps as usize + 1 + (steps > 0) as usize;
        assert_eq!(p.crossings(Lane::ToHost).0, down, "{trip} {limit}");
        let up = 1 + (steps > 0) as usize + steps as usize;
        assert_eq!(p.crossings(Lane::ToDevice).0, up);
        let now = s.device_bytes();
        assert!(
            bytes_before.is_none_or(|b| now == b),
            "the largest was first"
        );
        bytes_before = Some(now);
    }
}

/// What kernels make and only the host reads comes down step by step.
#[test]
fn a_stack_that_the_host_reads_is_on_the_host() {
    let mut e = looped();
    e.outputs[1] = port("at", DType::I64, &["2", "found"], 9);
    e.buffers[8].place = Place::Arena;
    e.buffers.push(buffer("2 * found * 8", Place::Output));
    e.steps.push(Step::NonZero {
        from: 8,
        dtype: DType::F32,
        dims: vec![dim("steps"), dim("n")],
        to: 9,
        symbol: "found".into(),
    });
    let mut s = session(&program(vec![e]));
    let (x, trip, on) = (bytes(&[-2.0, 5.0]), 3i64.to_le_bytes(), [1u8]);
    let of = |dtype, shape, bytes| TensorRef {
        dtype,
        shape,
        bytes,
    };
    for _ in 0..2 {
        let inputs = [
            ("x", of(DType::F32, &[2][..], &x[..])),
            ("trip", of(DType::I64, &[], &trip)),
            ("cond", of(DType::Bool, &[], &on)),
            ("limit", of(DType::I64, &[], &[9, 0, 0, 0, 0, 0, 0, 0])),
        ];
        s.run(0, &inputs).unwrap();
        // -1 6, 0 7, 1 8: all but the third.
        let at = s.output(1).unwrap();
        let words = at.bytes.as_chunks::<8>().0.iter();
        let at: Vec<i64> = words.map(|w| i64::from_le_bytes(*w)).collect();
        assert_eq!(at, [0, 0, 1, 2, 2, 0, 1, 1, 0, 1]);
        assert_eq!(numbers(s.output(0).unwrap().bytes), [1.0, 8.0]);
    }
}

#[test]
fn branches_are_taken_by_the_host() {
    let e = Entry {
        inputs: vec![
            port("x", DType::F32, &["n"], 0),
            port("c", DType::Bool, &[], 1),
        ],
        outputs: vec![port("y", DType::F32, &["n"], 4)],
        buffers: vec![
            buffer("n * 4", Place::Input),
            buffer("1", Place::Input),
            buffer("n * 4", Place::Arena),
            buffer("n * 4", Place::Arena),
            buffer("n * 4", Place::Output),
        ],
        steps: vec![Step::If {
            cond: 1,
            then: vec![launch(0, &[0, 2], &["n"], "then"), copy(2, 4, "n * 4")],
            otherwise: vec![launch(2, &[0, 3], &["n"], "otherwise"), copy(3, 4, "n * 4")],
        }],
        ..entry("f")
    };
    let mut s = session(&program(vec![e]));
    let x = bytes(&[5.0; 9]);
    for yes in [true, false, true, false] {
        let flag = [yes as u8];
        let (shape, dtype) = (&[9][..], DType::F32);
        let c = TensorRef {
            dtype: DType::Bool,
            shape: &[],
            bytes: &flag,
        };
        let bytes = &x;
        let x = TensorRef {
            dtype,
            shape,
            bytes,
        };
        s.run(0, &[("x", x), ("c", c)]).unwrap();
        let want = if yes { 6.0 } else { 10.0 };
        assert_eq!(numbers(s.output(0).unwrap().bytes), [want; 9]);
    }
}

/// The numbers x + 1 that are not 0, plus 1.
pub(super) fn found() -> Entry {
    Entry {
        inputs: vec![port("x", DType::F32, &["n"], 0)],
        outputs: vec![port("y", DType::F32, &["found"], 4)],
        buffers: vec![
            buffer("n * 4", Place::Input),
            buffer("n * 4", Place::Arena),
            buffer("found * 8", Place::Arena),
            buffer("found * 4", Place::Arena),
            buffer("found * 4", Place::Output),
        ],
        steps: vec![
            launch(0, &[0, 1], &["n"], "before"),
            Step::NonZero {
                from: 1,
                dtype: DType::F32,
                dims: vec![dim("n")],
                to: 2,
                symbol: "found".into(),
            },
            launch(1, &[1, 2, 3], &["n", "found"], "pick"),
            launch(0, &[3, 4], &["found"], "after"),
        ],
        ..entry("f")
    }
}

#[test]
fn sizes_that_data_decides_give_buffers_their_memory() {
    let mut s = session(&program(vec![found()]));
    for x in [
        &[-1.0, 3.0, -1.0, 4.0, 5.0][..],
        &[-1.0, -1.0, 7.0, -1.0, -1.0],
        &[-1.0; 5],
        &[0.0; 5],
        &[2.0, -1.0],
    ] {
        let picked = x.iter().filter(|&&x| x != -1.0);
        let want: Vec<f32> = picked.map(|x| x + 2.0).collect();
        assert_eq!(run(&mut s, 0, x).unwrap(), want);
    }
    let before = s.device_bytes();
    assert_eq!(run(&mut s, 0, &[0.0; 5]).unwrap(), [2.0; 5]);
    assert_eq!(s.device_bytes(), before, "what was the largest is kept");
}

#[test]
fn a_cancelled_run_ends() {
    let mut s = session(&program(vec![chain()]));
    run(&mut s, 0, &[1.0; 3]).unwrap();
    // The flag is cleared where a run begins: set from another thread it may come late,
    // so a run that was not stopped is right.
    let flag = s.cancel_flag();
    std::thread::scope(|scope| {
        scope.spawn(|| flag.store(true, Ordering::Relaxed));
        match run(&mut s, 0, &[1.0; 3]) {
            Ok(y) => assert_eq!(y, [4.0; 3]),
            Err(e) => assert_eq!(e.code, "K0721"),
        }
    });
    assert_eq!(run(&mut s, 0, &[1.0; 3]).unwrap(), [4.0; 3]);
}
