//! Kernels, sizes, memory, state, sessions, and runs that are recorded.

use super::*;
use crate::profile::Lane;

#[test]
fn kernels_run_at_changing_sizes_and_memory_stays() {
    let mut s = session(&program(vec![chain()]));
    let mut bytes = 0;
    for round in 0..4 {
        for n in [200usize, 1, 0, 65] {
            let x: Vec<f32> = (0..n).map(|i| i as f32).collect();
            let want: Vec<f32> = x.iter().map(|x| 2.0 * (x + 1.0)).collect();
            assert_eq!(run(&mut s, 0, &x).unwrap(), want, "{n}");
        }
        let now = s.device_bytes().unwrap();
        assert!(round == 0 || now == bytes, "{bytes}, then {now}");
        bytes = now;
    }
}

#[test]
fn a_launch_takes_the_first_form_that_serves() {
    let mut p = program(vec![chain()]);
    let plain = p.gpu[0].kernels[0][0].clone();
    let named = |entry: &str| Pass {
        entry: entry.into(),
        ..plain.passes[0].clone()
    };
    let doubles = GpuKernel {
        passes: vec![named("double")],
        scratch: dim("p0 * 4"),
        ..plain.clone()
    };
    // Doubling in place of adding 1: up to 9 numbers; and where rows of n halves could be
    // read by tiles, which the kernel does not look at.
    let few = GpuKernel {
        when: vec![(dim("p0"), dim("9"))],
        ..doubles.clone()
    };
    let tiled = GpuKernel {
        passes: vec![named("tiled")],
        tiles: vec![Tile {
            arg: 0,
            dtype: DType::F16,
            sizes: vec![dim("p0"), dim("2")],
            strides: vec![dim("p0")],
            tile: vec![64, 8],
        }],
        ..doubles
    };
    let forms = &mut p.gpu[0].kernels[0];
    forms.splice(0..0, [few, tiled]);
    // The same kernel with room for a tensor map behind its parameters.
    let from = PTX.split(".visible .entry double").nth(1).unwrap();
    let body = from.split(".visible .entry").next().unwrap();
    let map = ".param .s64 n, .param .align 64 .b8 map[128]";
    let body = body.replacen(".param .s64 n", map, 1);
    let text = format!("{PTX}\n.visible .entry tiled{body}");
    let model = Model::without_code(artifact(&p, text.as_bytes()).unwrap());
    let mut s = Session::on(model, 1, Name::Sim, None).unwrap();
    for (n, doubled) in [
        (9, true),
        (10, false),
        (12, false),
        (16, true),
        (100, false),
    ] {
        // 2 · (2 · 5) or 2 · (5 + 1).
        let want = vec![if doubled { 20.0 } else { 12.0 }; n];
        assert_eq!(run(&mut s, 0, &vec![5.0; n]).unwrap(), want, "{n}");
    }
    s.set_profiling(true);
    run(&mut s, 0, &[1.0; 9]).unwrap();
    let profile = s.take_profile().unwrap();
    let on_device = profile.steps.iter().find(|s| s.lane == Lane::Device);
    assert_eq!(on_device.unwrap().kernel, "double");
}

#[test]
fn a_form_may_be_several_launches() {
    let mut p = program(vec![chain()]);
    // Doubling through scratch, then adding 1 to what the caller gave: the last one stays.
    let first = &mut p.gpu[0].kernels[0][0];
    let last = first.passes[0].clone();
    first.passes[0].entry = "double".into();
    first.passes.push(last);
    first.scratch = dim("p0 * 4");
    let mut s = session(&p);
    assert_eq!(run(&mut s, 0, &[5.0; 70]).unwrap(), vec![12.0; 70]);
    s.set_profiling(true);
    run(&mut s, 0, &[1.0; 9]).unwrap();
    let profile = s.take_profile().unwrap();
    let on_device = profile.steps.iter().filter(|s| s.lane == Lane::Device);
    let names: Vec<&str> = on_device.map(|s| &s.kernel[..]).collect();
    assert_eq!(names, ["double", "increment", "double"]);
    // The first number of blocks that no device has is named.
    p.gpu[0].kernels[0][0].passes[1].grid[2] = dim("p0 * 100000");
    let e = run(&mut session(&p), 0, &[1.0; 3]).unwrap_err();
    assert!(e.message.contains("300000 blocks along axis 2"), "{e}");
}

#[test]
fn what_a_run_takes_is_known_before() {
    let p = program(vec![chain()]);
    let model = model(&p);
    let sizes = [("n".into(), 1000)].into();
    let plan = model.predict_memory(0, &sizes, 1, Some(0)).unwrap();
    let device = plan.device.unwrap();
    assert_eq!((device.inputs, device.outputs), (4000, 4000));
    assert_eq!((device.scratch, device.globals), (4000, 0));
    assert_eq!(device.arena, 4032);
    // Nothing but the caller's side is on the host.
    assert_eq!((plan.arena, plan.inputs, plan.outputs), (0, 4000, 4000));
    let mut s = Session::on(model, 1, Name::Sim, None).unwrap();
    run(&mut s, 0, &[0.5; 1000]).unwrap();
    let status = 2 * crate::gpu::STATUS_BYTES;
    assert_eq!(s.device_bytes(), Some(device.total + status));
}

#[test]
fn a_profile_says_what_crosses_and_what_the_device_counts() {
    let mut s = session(&program(vec![chain()]));
    s.set_profiling(true);
    run(&mut s, 0, &[1.0; 100]).unwrap();
    let p = s.take_profile().unwrap();
    assert_eq!(p.crossings(Lane::ToDevice), (1, 400));
    assert_eq!(p.crossings(Lane::ToHost), (1, 400));
    let on_device: Vec<_> = p.steps.iter().filter(|s| s.lane == Lane::Device).collect();
    let labels: Vec<&str> = on_device.iter().map(|s| &s.label[..]).collect();
    assert_eq!(labels, ["first", "second"]);
    let counts = on_device[0].counts.as_ref().unwrap();
    let found = counts.to_string();
    assert!(found.contains("400"), "100 numbers of four bytes: {found}");
}

#[test]
fn runs_that_repeat_are_recorded_and_give_the_same() {
    let mut s = session(&program(vec![chain()]));
    for i in 0..5 {
        let x = i as f32;
        assert_eq!(run(&mut s, 0, &[x; 70]).unwrap(), [2.0 * (x + 1.0); 70]);
        // The second run is recorded, later ones replay it.
        assert_eq!(graphs(&s), (i > 0) as usize, "after run {i}");
    }
    // A larger one moves memory and takes the graph; the other gets one of its own then.
    for round in 0..3 {
        assert_eq!(run(&mut s, 0, &[1.0; 7000]).unwrap(), [4.0; 7000]);
        assert_eq!(run(&mut s, 0, &[2.0; 70]).unwrap(), [6.0; 70], "{round}");
    }
    assert_eq!(graphs(&s), 2);
    // Many sizes: a few are remembered.
    for n in (1..40).chain(1..40) {
        assert_eq!(run(&mut s, 0, &vec![3.0; n]).unwrap(), vec![8.0; n]);
        assert!(graphs(&s) <= 8);
    }
    s.set_graphs(false);
    for _ in 0..3 {
        assert_eq!(run(&mut s, 0, &[2.0; 70]).unwrap(), [6.0; 70]);
        assert_eq!(graphs(&s), 0);
    }
}

/// y = x[at], and how that fails.
fn gather() -> Entry {
    Entry {
        inputs: vec![
            port("x", DType::F32, &["n"], 0),
            port("at", DType::I64, &["m"], 1),
        ],
        outputs: vec![port("y", DType::F32, &["m"], 2)],
        buffers: vec![
            buffer("n * 4", Place::Input),
            buffer("m * 8", Place::Input),
            buffer("m * 4", Place::Output),
        ],
        steps: vec![launch(1, &[0, 1, 2], &["n", "m"], "gather [pick]")],
        ..entry("gather")
    }
}

#[test]
fn a_failing_kernel_is_the_cpus_error_with_its_place_and_the_next_run_is_whole() {
    let mut s = session(&program(vec![gather()]));
    let x = bytes(&[10.0, 20.0, 30.0]);
    let mut pick = |at: &[i64]| {
        let raw: Vec<u8> = at.iter().flat_map(|i| i.to_le_bytes()).collect();
        let x = TensorRef {
            dtype: DType::F32,
            shape: &[3],
            bytes: &x,
        };
        let at = TensorRef {
            dtype: DType::I64,
            shape: &[at.len()],
            bytes: &raw,
        };
        s.run(0, &[("x", x), ("at", at)])?;
        crate::Result::Ok(numbers(s.output(0).unwrap().bytes))
    };
    // Also when it is recorded, and when it is replayed.
    for _ in 0..3 {
        assert_eq!(pick(&[2, 0]).unwrap(), [30.0, 10.0]);
    }
    let want = super::super::super::launch::status_error(1, "gather [pick]");
    for _ in 0..3 {
        let e = pick(&[0, 3]).unwrap_err();
        assert_eq!((e.code, &e.message), (want.code, &want.message));
        assert_eq!(pick(&[1, 1]).unwrap(), [20.0, 20.0]);
    }
}

#[test]
fn a_kernel_that_leaves_its_buffer_faults() {
    let e = Entry {
        inputs: vec![port("x", DType::F32, &["n"], 0)],
        outputs: vec![port("y", DType::F32, &["n"], 1)],
        buffers: vec![
            buffer("n * 4", Place::Input),
            buffer("n * 4", Place::Output),
            // Memory that the arena has, but not this launch.
            buffer("n * 4", Place::Arena),
            buffer("n * 4", Place::Arena),
        ],
        steps: vec![
            launch(0, &[0, 2], &["n"], "a"),
            launch(0, &[0, 3], &["n"], "b"),
            launch(3, &[2], &["n"], "beyond [it]"),
            launch(0, &[2, 1], &["n"], "c"),
        ],
        ..entry("f")
    };
    let mut s = session(&program(vec![e]));
    let e = run(&mut s, 0, &[1.0; 16]).unwrap_err();
    assert!(e.message.contains("beyond [it]"), "{e}");
    assert!(e.message.contains("st.global.u32"), "{e}");
}

/// An entry that adds one to the state @s and gives it, by a kernel in place or by way
/// of a copy.
fn step(name: &str, in_place: bool) -> Entry {
    let bytes = "8 * 4";
    let home = |of| Place::View {
        of,
        offset: Dim::ZERO,
    };
    let (result, mut steps) = match in_place {
        true => (buffer(bytes, home(1)), vec![]),
        false => (buffer(bytes, Place::Arena), vec![copy(2, 1, bytes)]),
    };
    steps.insert(0, launch(0, &[1, 2], &["8"], "step"));
    Entry {
        inputs: vec![port("x", DType::F32, &["n"], 0)],
        outputs: vec![port("y", DType::F32, &["8"], 1)],
        buffers: vec![
            buffer("n * 4", Place::Input),
            buffer(bytes, Place::Global(0)),
            result,
        ],
        steps,
        ..entry(name)
    }
}

#[test]
fn state_stays_on_the_device_and_entries_share_it() {
    let mut p = program(vec![step("a", true), step("b", false)]);
    p.globals.push(state("s", 8));
    let mut s = session(&p);
    let mut want = 0.0;
    for i in 0..12 {
        want += 1.0;
        assert_eq!(run(&mut s, i / 2 % 2, &[0.0]).unwrap(), [want; 8]);
        if i == 7 {
            assert_eq!(numbers(s.state("s").unwrap()), [want; 8]);
            want = 100.0;
            s.set_state("s", &bytes(&[want; 8])).unwrap();
            assert_eq!(numbers(s.state("s").unwrap()), [want; 8]);
        }
    }
    assert_eq!(numbers(s.state("s").unwrap()), [104.0; 8]);
    s.reset().unwrap();
    assert_eq!(run(&mut s, 0, &[0.0]).unwrap(), [1.0; 8]);
    assert_eq!(s.state("t").unwrap_err().code, "K0711");
    // Another session has state of its own.
    let mut other = session(&p);
    assert_eq!(run(&mut other, 1, &[0.0]).unwrap(), [1.0; 8]);
    // Between runs nothing crosses but what the caller asks for.
    s.set_profiling(true);
    run(&mut s, 0, &[0.0]).unwrap();
    let profile = s.take_profile().unwrap();
    assert_eq!(profile.crossings(Lane::ToDevice), (0, 0));
    assert_eq!(profile.crossings(Lane::ToHost), (1, 32));
}

#[test]
fn sessions_at_once_do_not_meet() {
    let model = model(&program(vec![chain()]));
    std::thread::scope(|scope| {
        for t in 0..4 {
            let model = model.clone();
            scope.spawn(move || {
                let mut s = Session::on(model, 1, Name::Sim, None).unwrap();
                for i in 0..10 {
                    let x = (10 * t + i) as f32;
                    assert_eq!(run(&mut s, 0, &[x; 130]).unwrap(), [2.0 * (x + 1.0); 130]);
                }
            });
        }
    });
}

#[test]
fn weights_and_what_passes_through_are_where_they_are_read() {
    // y = w + 1 on the device; w and x as they are come from the host.
    let mut p = program(vec![Entry {
        inputs: vec![port("x", DType::F32, &["n"], 0)],
        outputs: vec![
            port("y", DType::F32, &["4"], 2),
            port("w", DType::F32, &["4"], 1),
            port("same", DType::F32, &["n"], 0),
            port("copied", DType::F32, &["n"], 3),
        ],
        buffers: vec![
            buffer("n * 4", Place::Input),
            buffer("16", Place::Global(0)),
            buffer("16", Place::Output),
            buffer("n * 4", Place::Output),
        ],
        steps: vec![launch(0, &[1, 2], &["4"], "w"), copy(0, 3, "n * 4")],
        ..entry("f")
    }]);
    // The text of the kernels' module begins with 16 bytes that do as numbers.
    p.globals.push(Global {
        state: false,
        bytes: PTX.len() as u64,
        shape: vec![PTX.len() as u64 / 4],
        data: GlobalData::Section(1),
        ..state("w", 4)
    });
    let mut s = session(&p);
    s.set_profiling(true);
    for _ in 0..3 {
        let w = numbers(&PTX.as_bytes()[..16]);
        let y = run(&mut s, 0, &[5.0, 6.0]).unwrap();
        assert_eq!(y, w.iter().map(|w| w + 1.0).collect::<Vec<_>>());
        let output = |i| numbers(s.output(i).unwrap().bytes);
        assert_eq!((output(1), output(2)), (w, vec![5.0, 6.0]));
        assert_eq!(output(3), [5.0, 6.0]);
    }
    let crossed = s.take_profile().unwrap().crossings(Lane::ToDevice);
    assert_eq!(crossed, (0, 0), "weights are there, x is not read there");
}
