//! Whole programs on the simulated device, against the reference interpreter.

use super::{artifacts, assert_close, call, files_compute_what_they_say, program, reseal, run};
use kiln::compile::{self, Options};
use kiln::explain::explain;
use kiln::ir::filetest::{random_module, same_results};
use kiln::ir::interp::Interpreter;
use kiln::ir::parse::{NoFiles, parse_module};
use kiln::ir::print::{PrintOptions, print_module};
use kiln::ir::{DType, Module, Tensor};
use kiln::runtime::device::Name;
use kiln::runtime::exec::schedule::schedule;
use kiln::runtime::plan::Tuned;
use kiln::runtime::profile::Lane;
use kiln::runtime::{Artifact, Model, Session};
use kiln_codegen::GpuTarget;
use std::cell::RefCell;
use std::path::PathBuf;
use std::sync::Arc;

fn options(gpu: Vec<GpuTarget>) -> Options {
    Options {
        targets: vec![],
        gpu,
        verify: true,
        ..Options::default()
    }
}

fn compiled(module: Module, target: &GpuTarget, name: &str) -> Result<Arc<Model>, String> {
    let out = std::env::temp_dir().join(format!(
        "kiln-device-{name}-{}-{}.kiln",
        target.name,
        std::process::id()
    ));
    compile::compile(module, &options(vec![target.clone()]), &out).map_err(|e| e.to_string())?;
    let model = Model::load_for(&out, Name::Sim).unwrap();
    std::fs::remove_file(out).unwrap();
    Ok(model)
}

fn session(module: Module, target: &GpuTarget, name: &str) -> Session {
    let model = compiled(module, target, name).unwrap_or_else(|e| panic!("{name}: {e}"));
    Session::on(model, 2, Name::Sim, Some(&target.name)).unwrap()
}

#[test]
fn a_training_step_keeps_its_state_on_the_device() {
    let module = program("train_step.kir");
    let mut reference = Interpreter::new(&module).unwrap();
    let mut session = session(module.clone(), &GpuTarget::sm_80(), "train");
    let ports = &module.function("train_step").unwrap().params;
    for step in 0..6 {
        let x: Vec<f32> = (0..24)
            .map(|i| ((i * 7 + step) % 11) as f32 / 11.0 - 0.5)
            .collect();
        let x = Tensor::from_f32([6, 4], &x).unwrap();
        let t = Tensor::from_i64(DType::I64, [6], &[0, 1, 2, 0, 1, 2]).unwrap();
        let lr = Tensor::scalar_f64(DType::F32, 0.05);
        let named = [("x", &x), ("t", &t), ("lr", &lr)];
        let of = |name: &str| Some((*named.iter().find(|(n, _)| *n == name)?.1).clone());
        let ordered: Vec<Tensor> = ports.iter().filter_map(|p| of(&p.name)).collect();
        let want = reference.run("train_step", &ordered).unwrap();
        let got = run(&mut session, "train_step", &named);
        assert_close(&got[0], &want[0], &format!("loss of step {step}"));
        // Read in between as well as at the end: it has to come back from the device.
        if step % 3 == 2 {
            for (name, want) in &reference.state {
                let bytes = session.state(name).unwrap().to_vec();
                let got = Tensor::new(want.dtype(), want.shape(), bytes).unwrap();
                assert_close(&got, want, &format!("@{name} after step {step}"));
            }
        }
    }
}

#[test]
fn entries_share_weights_and_a_cache_on_the_device() {
    let module = program("decoder.kir");
    let mut session = session(module.clone(), &GpuTarget::sm_90a(), "decoder");
    let ids = [3i64, 1, 4, 1, 5, 2, 6];
    let tensor = |v: &[i64]| Tensor::from_i64(DType::I64, [1, v.len()], v).unwrap();
    let whole = run(&mut session, "forward", &[("ids", &tensor(&ids))]);
    let want = Interpreter::new(&module)
        .unwrap()
        .run("forward", &[tensor(&ids)])
        .unwrap();
    assert_close(&whole[0], &want[0], "forward");
    let width = whole[0].shape()[2];
    let row = |t: &Tensor, i: usize| {
        let values = &t.to_f64()[i * width..(i + 1) * width];
        Tensor::from_f64(DType::F32, [1, 1, width], values).unwrap()
    };
    let zero = Tensor::scalar_i64(DType::I64, 0);
    let inputs = [("ids", &tensor(&ids[..3])), ("past", &zero)];
    let start = run(&mut session, "prefill", &inputs);
    assert_close(&row(&start[0], 2), &row(&whole[0], 2), "prefill");
    for i in 3..ids.len() {
        let past = Tensor::scalar_i64(DType::I64, i as i64);
        let inputs = [("ids", &tensor(&ids[i..=i])), ("past", &past)];
        let next = run(&mut session, "decode", &inputs);
        assert_close(&next[0], &row(&whole[0], i), &format!("decode {i}"));
    }
}

/// Nothing crosses but what goes in and comes out: a selection is a kernel between others,
/// of few elements and of many.
#[test]
fn selections_stay_on_the_device() {
    let module = program("run/top_k.kir");
    let mut session = session(module.clone(), &GpuTarget::sm_80(), "select");
    for n in [6usize, 2100] {
        // Ties and NaN, in an order of their own.
        let values: Vec<f32> = (0..2 * n * 3)
            .map(|i| match i % 97 {
                5 => f32::NAN,
                j => (j * 31 % 23) as f32,
            })
            .collect();
        let x = Tensor::from_f32([2, n, 3], &values).unwrap();
        let want = Interpreter::new(&module)
            .unwrap()
            .run("inner", std::slice::from_ref(&x))
            .unwrap();
        // The third run is the one that was recorded.
        for turn in 0..3 {
            session.set_profiling(turn == 0);
            let got = run(&mut session, "inner", &[("x", &x)]);
            assert_eq!(
                got[1].bytes(),
                want[1].bytes(),
                "indices of {n}, run {turn}"
            );
            let same = |(a, b): (&f64, &f64)| a == b || a.is_nan() && b.is_nan();
            let (values, wanted) = (got[0].to_f64(), want[0].to_f64());
            assert!(
                values.iter().zip(&wanted).all(same),
                "values of {n}, run {turn}"
            );
            if let Some(profile) = session.take_profile() {
                let bytes = 2 * n * 3 * 4;
                assert_eq!(profile.crossings(Lane::ToDevice), (1, bytes as i64));
                assert_eq!(profile.crossings(Lane::ToHost), (2, 3 * bytes as i64));
                let on_device = profile.steps.iter().filter(|s| s.lane == Lane::Device);
                let kernels: Vec<&str> = on_device.map(|s| &s.kernel[..]).collect();
                let rows = kernels.iter().any(|k| k.ends_with("_f32_rows"));
                assert_eq!(rows, n <= 2048, "{kernels:?}");
            }
        }
    }
}

#[test]
fn files_run_on_the_device_as_they_run_interpreted() {
    files_compute_what_they_say(&|_, module, function, inputs| {
        let model = compiled(module.clone(), &GpuTarget::sm_80(), "file")?;
        let mut session = Session::on(model, 2, Name::Sim, None).unwrap();
        call(&mut session, module, function, inputs)
    });
}

#[test]
fn random_modules_compute_on_the_device_what_the_interpreter_does() {
    for (i, target) in GpuTarget::all().into_iter().enumerate() {
        for seed in 0..8 {
            let module = random_module(seed + 5000 + 1000 * i as u64, 12);
            let on = RefCell::new(session(module.clone(), &target, &format!("random-{seed}")));
            let compiled = |f: &str, x: &[Tensor]| call(&mut on.borrow_mut(), &module, f, x);
            if let Err(e) = same_results(&module, 1e-5, &compiled) {
                let text = print_module(&module, &PrintOptions::default());
                panic!("seed {seed} on {}: {e}\n{text}", target.name);
            }
        }
    }
}

fn written(gpu: Vec<GpuTarget>, name: &str) -> (PathBuf, Vec<u8>) {
    let path = std::env::temp_dir().join(format!("kiln-{name}-{}.kiln", std::process::id()));
    compile::compile(artifacts::module(), &options(gpu), &path).unwrap();
    let bytes = std::fs::read(&path).unwrap();
    (path, bytes)
}

#[test]
fn targets_lie_best_first_whatever_their_order_and_bytes_repeat() {
    let all = GpuTarget::all().to_vec();
    let (path, first) = written(all.clone(), "targets");
    let turned: Vec<GpuTarget> = all.into_iter().rev().collect();
    let (_, second) = written(turned, "targets");
    assert!(first == second);
    let artifact = Artifact::open(&path).unwrap();
    std::fs::remove_file(path).unwrap();
    let targets = artifact.program.gpu.iter().map(|g| &g.target[..]);
    assert_eq!(targets.collect::<Vec<_>>(), ["sm_90a", "sm_89", "sm_80"]);
    for gpu in &artifact.program.gpu {
        let text = std::str::from_utf8(artifact.section(gpu.section)).unwrap();
        assert!(text.contains(&format!(".target {}\n", gpu.target)));
        // A kernel is there under the name that the plan has for it.
        let there = |k: &String| text.contains(&format!(".entry {k}"));
        let program = &artifact.program;
        let mut kernels = program.kernels.iter().chain(&program.device_kernels);
        assert!(kernels.all(there));
    }
    // The CPU has no code in this file.
    let refused = Model::from_artifact(artifact).err().unwrap();
    assert!(
        refused.code == "K0704" && refused.message.contains("sm_90a"),
        "{refused}"
    );
}

/// A product with weights, a softmax and strings are right on every target, with sizes
/// that change, and with graphs and without.
#[test]
fn sizes_change_from_run_to_run() {
    let module = artifacts::module();
    let mut reference = Interpreter::new(&module).unwrap();
    for target in [GpuTarget::sm_80(), GpuTarget::sm_90a()] {
        let mut session = session(module.clone(), &target, "sizes");
        for (round, b) in [1usize, 3, 3, 3, 1].into_iter().enumerate() {
            let values: Vec<f64> = (0..b * 512)
                .map(|i| ((i + round) % 97) as f64 / 97.0)
                .collect();
            let x = Tensor::from_f64(DType::F32, [b, 512], &values).unwrap();
            let k = Tensor::from_i64(DType::I64, [b], &vec![round as i64 % 3; b]).unwrap();
            let want = reference.run("f", &[x.clone(), k.clone()]).unwrap();
            let got = run(&mut session, "f", &[("x", &x), ("k", &k)]);
            assert_close(&got[0], &want[0], &format!("{round} on {}", target.name));
            assert_eq!(got[1], want[1]);
        }
    }
}

/// A text that grows by one token a run, and rows of products that are read by tiles: a graph
/// takes each size, with the bits of kernels by themselves.
#[test]
fn what_grows_is_replayed() {
    let products = "kir 1
func @f(%x: bf16[n, 64], %w: bf16[64, 128], %u: bf16[128, 64]) -> (y: bf16[n, 64]) {
  %1 = matmul %x, %w {transpose_a = false, transpose_b = false} : bf16[n, 128]
  %2 = matmul %1, %u {transpose_a = false, transpose_b = false} : bf16[n, 64]
  return %2
}";
    let numbers = |dims: [usize; 2], seed: usize| {
        let values = (0..dims[0] * dims[1]).map(|i| ((i * 7 + seed) % 13) as f64 / 16.0 - 0.375);
        Tensor::from_f64(DType::BF16, dims, &values.collect::<Vec<f64>>()).unwrap()
    };
    let (w, u) = (numbers([64, 128], 1), numbers([128, 64], 2));
    for target in [GpuTarget::sm_80(), GpuTarget::sm_90a()] {
        let sessions = |module: &Module, name: &str| {
            let mut both = [0; 2].map(|_| session(module.clone(), &target, name));
            both[1].set_graphs(false);
            both
        };
        let [mut s, mut plain] = sessions(&program("decoder.kir"), "text");
        for past in 0..12i64 {
            let ids = Tensor::from_i64(DType::I64, [1, 1], &[past * 3 % 8]).unwrap();
            let past = Tensor::scalar_i64(DType::I64, past);
            let inputs = [("ids", &ids), ("past", &past)];
            let want = run(&mut plain, "decode", &inputs);
            assert_eq!(run(&mut s, "decode", &inputs), want);
        }
        let text = s.graph_counts().unwrap();
        assert_eq!((text.recorded, text.replayed), (1, 11), "{text:?}");
        let [mut s, mut plain] = sessions(&parse_module(products, &NoFiles).unwrap(), "rows");
        for n in (125..=140).chain(90..94) {
            let x = numbers([n, 64], n);
            let inputs = [("x", &x), ("w", &w), ("u", &u)];
            let want = run(&mut plain, "f", &inputs);
            assert_eq!(run(&mut s, "f", &inputs), want, "{n} on {}", target.name);
        }
        let rows = s.graph_counts().unwrap();
        assert!(rows.recorded <= 3 && rows.replayed >= 16, "{rows:?}");
    }
}

/// Cut, flipped, and changed behind its hashes: no file ends in a panic, and every error
/// has a code.
#[test]
fn a_damaged_artifact_is_a_coded_error_for_a_device_too() {
    let path = std::env::temp_dir().join(format!("kiln-gpu-damaged-{}.kiln", std::process::id()));
    let options = options(vec![GpuTarget::sm_80()]);
    compile::compile(program("run/gather_of_rows.kir"), &options, &path).unwrap();
    let whole = std::fs::read(&path).unwrap();
    std::fs::remove_file(path).unwrap();
    let load = |bytes: &[u8]| {
        let artifact = Artifact::from_bytes("damaged", bytes)?;
        Session::on(Model::without_code(artifact), 1, Name::Sim, None).map(|_| ())
    };
    load(&whole).unwrap();
    let stride = whole.len() / 400 + 1;
    for at in (0..whole.len()).step_by(stride) {
        assert!(load(&whole[..at]).is_err(), "cut at {at}");
        let mut flipped = whole.clone();
        flipped[at] ^= 1 << (at % 8);
        let e = load(&flipped).expect_err("a changed file loads");
        assert!(e.code.starts_with("K07"), "flipped at {at}: {e}");
    }
    let table = u64::from_le_bytes(whole[16..24].try_into().unwrap()) as usize;
    let mut seen = 0;
    for at in (64..table).step_by(stride) {
        for change in [0x01, 0x80, 0xff] {
            let mut bytes = whole.clone();
            bytes[at] ^= change;
            reseal(&mut bytes);
            if let Err(e) = load(&bytes) {
                assert!(
                    ["K07", "K08"].contains(&&e.code[..3]),
                    "changed at {at}: {e}"
                );
                seen += 1;
            }
        }
    }
    assert!(seen > 400, "only {seen} changes were seen");
}

/// Products whose kernels have several forms: few rows, more, whole tiles.
const PRODUCTS: &str = "kir 1
func @f(%x: bf16[rows, 128], %w: bf16[128, 192], %v: i8[128, 72], %y: u8[rows, 128]) -> (p: f32[rows, 192], q: i32[rows, 72]) {
  %a = matmul %x, %w {transpose_a = false, transpose_b = false}
  %p = cast %a {to = f32}
  %c = cast %y {to = i32}
  %d = cast %v {to = i32}
  %q = matmul %c, %d {transpose_a = false, transpose_b = false}
  return %p, %q
}
";

/// Each form of each kernel in turn, put into the artifact as if it had been measured to
/// be the best: it runs, and results are those of the form that runs without.
#[test]
fn results_are_right_whichever_form_was_measured_best() {
    let module = parse_module(PRODUCTS, &NoFiles).unwrap();
    let path = std::env::temp_dir().join(format!("kiln-forms-{}.kiln", std::process::id()));
    let mut forced = 0;
    for target in [GpuTarget::sm_80(), GpuTarget::sm_90a()] {
        compile::compile(module.clone(), &options(vec![target.clone()]), &path).unwrap();
        let plain = Artifact::open(&path).unwrap();
        for rows in [1usize, 24, 160] {
            let binding = [("rows".into(), rows as i64)].into();
            let all = schedule(&plain.program, 0, &binding, &plain.program.gpu[0]).unwrap();
            let sizes: Vec<_> = all.iter().map(|s| s.sizes.as_ref().unwrap()).collect();
            let inputs = product_inputs(rows);
            let named: Vec<(&str, &Tensor)> = inputs.iter().map(|(n, t)| (*n, t)).collect();
            let ordered: Vec<Tensor> = inputs.iter().map(|(_, t)| t.clone()).collect();
            let mut interpreter = Interpreter::new(&module).unwrap();
            let want = interpreter.run("f", &ordered).unwrap();
            for s in sizes {
                for form in (0..s.forms.len()).filter(|&f| s.forms[f].is_ok()) {
                    let forced_to = [Tuned {
                        device: "a PTX interpreter".into(),
                        kernel: s.kernel,
                        params: s.params.clone(),
                        form: form as u32,
                    }];
                    plain.retuned(0, &forced_to, &path).unwrap();
                    let model = Model::load_for(&path, Name::Sim).unwrap();
                    let mut session = Session::on(model, 1, Name::Sim, None).unwrap();
                    session.set_profiling(true);
                    let got = run(&mut session, "f", &named);
                    let entry =
                        &plain.program.gpu[0].kernels[s.kernel as usize][form].passes[0].entry;
                    let profile = session.take_profile().unwrap();
                    let ran = profile.steps.iter().any(|step| step.kernel == *entry);
                    assert!(ran, "{entry} did not run");
                    let what = format!("{rows} rows by {entry} on {}", target.name);
                    // bf16 rounds to 8 bits; integers are exact.
                    let off = got[0].to_f64().into_iter().zip(want[0].to_f64());
                    let off = off.map(|(a, b)| (a - b).abs() / b.abs().max(1.0));
                    assert!(off.fold(0.0, f64::max) < 1e-2, "{what}");
                    assert_eq!(got[1], want[1], "{what}");
                    forced += 1;
                }
            }
        }
    }
    std::fs::remove_file(path).unwrap();
    assert!(forced >= 16, "only {forced} forms");
}

/// What is said of a launch is what a session does: of its forms one is taken, the others
/// lack something or are slower or faster by so much.
#[test]
fn each_form_of_each_launch_is_explained() {
    let module = parse_module(PRODUCTS, &NoFiles).unwrap();
    let path = std::env::temp_dir().join(format!("kiln-explained-{}.kiln", std::process::id()));
    let all = vec![GpuTarget::sm_80(), GpuTarget::sm_90a()];
    compile::compile(module, &options(all), &path).unwrap();
    let artifact = Artifact::open(&path).unwrap();
    let model = Model::load_for(&path, Name::Sim).unwrap();
    std::fs::remove_file(path).unwrap();
    let p = &*artifact.program;
    let (mut rejected, mut served) = (0, 0);
    for gpu in &p.gpu {
        for rows in [1usize, 24, 160] {
            let binding = [("rows".into(), rows as i64)].into();
            let s = explain(p, 0, &binding, gpu).unwrap();
            let mut session = Session::on(model.clone(), 1, Name::Sim, Some(&gpu.target)).unwrap();
            session.set_profiling(true);
            let inputs = product_inputs(rows);
            let named: Vec<(&str, &Tensor)> = inputs.iter().map(|(n, t)| (*n, t)).collect();
            run(&mut session, "f", &named);
            let profile = session.take_profile().unwrap();
            let text = s.text();
            for l in &s.launches {
                let taken: Vec<_> = l.forms.iter().filter(|f| f.taken).collect();
                assert!(taken.len() == 1 && taken[0].rejected.is_none(), "{text}");
                let ran = |f: &str| profile.steps.iter().any(|step| step.kernel == f);
                assert!(
                    ran(&taken[0].entry),
                    "{} did not run\n{text}",
                    taken[0].entry
                );
                for f in &l.forms {
                    match (&f.rejected, &f.predicted) {
                        (Some(why), None) => {
                            let named = why.contains("does not hold: ") || why.contains("tiles");
                            assert!(named && text.contains(why), "{text}");
                            rejected += 1;
                        }
                        (None, Some(x)) => {
                            assert!(x.prediction.seconds > 1e-6 && x.prediction.bytes > 0.0);
                            assert!(!f.taken || x.over_taken == 1.0, "{text}");
                            served += 1;
                        }
                        other => panic!("{other:?}"),
                    }
                }
            }
        }
    }
    assert!(rejected >= 8 && served >= 16, "{rejected} {served}");
    let unknown = explain(p, 0, &[("row".into(), 3)].into(), &p.gpu[0]).unwrap_err();
    assert_eq!(
        (unknown.code, unknown.exit_code()),
        ("K0732", 2),
        "{unknown}"
    );
}

fn product_inputs(rows: usize) -> [(&'static str, Tensor); 4] {
    let floats = |shape: [usize; 2], k: usize| {
        let values: Vec<f64> = (0..shape[0] * shape[1])
            .map(|i| ((i * k) % 61) as f64 / 61.0 - 0.4)
            .collect();
        Tensor::from_f64(DType::BF16, shape, &values).unwrap()
    };
    let bytes = |dtype, shape: [usize; 2], k: usize| {
        let values: Vec<i64> = (0..shape[0] * shape[1])
            .map(|i| ((i * k) % 100) as i64)
            .collect();
        Tensor::from_i64(dtype, shape, &values).unwrap()
    };
    [
        ("x", floats([rows, 128], 7)),
        ("w", floats([128, 192], 13)),
        ("v", bytes(DType::I8, [128, 72], 11)),
        ("y", bytes(DType::U8, [rows, 128], 17)),
    ]
}
