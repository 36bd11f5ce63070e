//! Whole programs, compiled and run, against the reference interpreter.

mod artifacts;
mod device;
mod planted;
mod reduce;
mod sessions;
mod strings;

use kiln::compile::{self, Options};
use kiln::ir::filetest::{RunFn, Runner, random_module, run_dir, same_results};
use kiln::ir::interp::Interpreter;
use kiln::ir::parse::{NoFiles, parse_module};
use kiln::ir::print::{PrintOptions, print_module};
use kiln::ir::{DType, Module, PortKind, Tensor};
use kiln::runtime::{Input, Model, Session, TensorRef};
use kiln_codegen::CpuTarget;
use std::cell::RefCell;
use std::path::{Path, PathBuf};

fn program(name: &str) -> Module {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/kir")
        .join(name);
    let mut text = std::fs::read_to_string(&path).unwrap();
    // Filetests may leave the version out.
    if !text.contains("kir 1") {
        text = format!("kir 1\n{text}");
    }
    parse_module(&text, &NoFiles).unwrap()
}

/// Every level that this machine runs.
fn levels() -> Vec<CpuTarget> {
    CpuTarget::all()
        .into_iter()
        .rev()
        .filter(CpuTarget::runs_here)
        .collect()
}

fn artifact(module: Module, target: CpuTarget, name: &str) -> PathBuf {
    let out = std::env::temp_dir().join(format!(
        "kiln-{name}-{}-{}.kiln",
        target.name,
        std::process::id()
    ));
    let options = Options {
        targets: vec![target],
        verify: true,
        ..Options::default()
    };
    compile::compile(module, &options, &out).unwrap_or_else(|e| panic!("{name}: {e}"));
    out
}

fn run(session: &mut Session, entry: &str, inputs: &[(&str, &Tensor)]) -> Vec<Tensor> {
    try_run(session, entry, inputs).unwrap()
}

fn try_run(
    session: &mut Session,
    entry: &str,
    inputs: &[(&str, &Tensor)],
) -> Result<Vec<Tensor>, kiln::runtime::Error> {
    let model = session.model().clone();
    let index = model.entry(Some(entry)).unwrap();
    let refs: Vec<(&str, Input)> = inputs.iter().map(|&(n, t)| (n, t.into())).collect();
    session.run_with(index, &refs)?;
    let count = model.program().entries[index].outputs.len();
    Ok((0..count).map(|i| session.tensor(i).unwrap()).collect())
}

fn assert_close(got: &Tensor, want: &Tensor, what: &str) {
    assert_eq!(
        (got.dtype(), got.shape()),
        (want.dtype(), want.shape()),
        "{what}"
    );
    let norm: f64 = want.to_f64().iter().map(|v| v * v).sum::<f64>().sqrt();
    let error: f64 = got
        .to_f64()
        .iter()
        .zip(want.to_f64())
        .map(|(a, b)| (a - b) * (a - b))
        .sum::<f64>()
        .sqrt();
    assert!(
        error <= 1e-5 * norm.max(1e-3),
        "{what}: {got:?} where {want:?} is expected"
    );
}

#[test]
fn a_training_step_updates_its_state_as_the_interpreter_does() {
    for target in levels() {
        let module = program("train_step.kir");
        let mut reference = Interpreter::new(&module).unwrap();
        let path = artifact(module.clone(), target, "train");
        let mut session = Session::new(Model::load(&path).unwrap(), 2).unwrap();
        let mut losses = vec![];
        let port_order: Vec<String> = module
            .function("train_step")
            .unwrap()
            .params
            .iter()
            .map(|p| p.name.to_string())
            .collect();
        for step in 0..20 {
            let x: Vec<f32> = (0..24)
                .map(|i| ((i * 7 + 3) % 11) as f32 / 11.0 - 0.5)
                .collect();
            let x = Tensor::from_f32([6, 4], &x).unwrap();
            let t = Tensor::from_i64(DType::I64, [6], &[0, 1, 2, 0, 1, 2]).unwrap();
            let lr = Tensor::scalar_f64(DType::F32, 0.05);
            let named = [("x", &x), ("t", &t), ("lr", &lr)];
            let ordered: Vec<Tensor> = port_order
                .iter()
                .filter_map(|n| {
                    named
                        .iter()
                        .find(|(m, _)| m == n)
                        .map(|(_, t)| (*t).clone())
                })
                .collect();
            let want = reference.run("train_step", &ordered).unwrap();
            let got = run(&mut session, "train_step", &named);
            assert_close(&got[0], &want[0], &format!("loss of step {step}"));
            losses.push(got[0].get_f64(0));
        }
        assert!(losses[19] < 0.8 * losses[0], "{losses:?}");
        for (name, want) in &reference.state {
            let bytes = session.state(name).unwrap();
            let got = Tensor::new(want.dtype(), want.shape(), bytes.to_vec()).unwrap();
            assert_close(&got, want, &format!("@{name} after 20 steps"));
        }
        std::fs::remove_file(path).unwrap();
    }
}

#[test]
fn prefill_and_decode_share_weights_and_equal_the_whole_sequence() {
    for target in levels() {
        let module = program("decoder.kir");
        let path = artifact(module.clone(), target, "decoder");
        let mut session = Session::new(Model::load(&path).unwrap(), 1).unwrap();
        let ids = [3i64, 1, 4, 1, 5, 2, 6];
        let tensor = |v: &[i64]| Tensor::from_i64(DType::I64, [1, v.len()], v).unwrap();
        let whole = run(&mut session, "forward", &[("ids", &tensor(&ids))]);
        let want = Interpreter::new(&module)
            .unwrap()
            .run("forward", &[tensor(&ids)])
            .unwrap();
        assert_close(&whole[0], &want[0], "forward");
        let width = whole[0].shape()[2];
        let row = |i: usize| {
            Tensor::from_f64(
                DType::F32,
                [1, 1, width],
                &whole[0].to_f64()[i * width..(i + 1) * width],
            )
            .unwrap()
        };
        let zero = Tensor::scalar_i64(DType::I64, 0);
        let start = run(
            &mut session,
            "prefill",
            &[("ids", &tensor(&ids[..3])), ("past", &zero)],
        );
        let last = &start[0].to_f64()[2 * width..];
        assert_close(
            &Tensor::from_f64(DType::F32, [1, 1, width], last).unwrap(),
            &row(2),
            "prefill",
        );
        for i in 3..ids.len() {
            let past = Tensor::scalar_i64(DType::I64, i as i64);
            let next = run(
                &mut session,
                "decode",
                &[("ids", &tensor(&ids[i..=i])), ("past", &past)],
            );
            assert_close(&next[0], &row(i), &format!("decode {i}"));
        }
        std::fs::remove_file(path).unwrap();
    }
}

#[test]
fn a_cache_that_is_full_is_an_error_and_not_a_write_beyond_it() {
    let target = levels().remove(0);
    let path = artifact(program("decoder.kir"), target, "full");
    let mut session = Session::new(Model::load(&path).unwrap(), 1).unwrap();
    let model = session.model().clone();
    let index = model.entry(Some("decode")).unwrap();
    let id = 1i64.to_le_bytes();
    let past = 12i64.to_le_bytes();
    let i64s = |shape, bytes| TensorRef {
        dtype: DType::I64,
        shape,
        bytes,
    };
    let failed = session.run(
        index,
        &[("ids", i64s(&[1, 1], &id)), ("past", i64s(&[], &past))],
    );
    assert_eq!(failed.unwrap_err().code, "K0723");
    std::fs::remove_file(path).unwrap();
}

/// Runs a function of a compiled module on the caller's ports in order.
fn call(
    session: &mut Session,
    module: &Module,
    function: &str,
    inputs: &[Tensor],
) -> Result<Vec<Tensor>, String> {
    let graph = module.function(function).unwrap();
    let ports = graph.params.iter().filter(|p| p.kind == PortKind::Caller);
    let named: Vec<(&str, &Tensor)> = ports.map(|p| &*p.name).zip(inputs).collect();
    try_run(session, function, &named).map_err(|e| e.to_string())
}

#[test]
fn random_modules_compute_what_the_interpreter_does() {
    for (i, target) in levels().into_iter().enumerate() {
        for seed in 0..20 {
            let module = random_module(seed + 1000 * i as u64, 16);
            let path = artifact(module.clone(), target.clone(), &format!("random-{seed}"));
            let session = Session::new(Model::load(&path).unwrap(), 2).unwrap();
            let session = RefCell::new(session);
            let compiled = |f: &str, x: &[Tensor]| call(&mut session.borrow_mut(), &module, f, x);
            if let Err(e) = same_results(&module, 1e-5, &compiled) {
                let text = print_module(&module, &PrintOptions::default());
                panic!("seed {seed} on {}: {e}\n{text}", target.name);
            }
            std::fs::remove_file(path).unwrap();
        }
    }
}

#[test]
fn files_run_compiled_as_they_run_interpreted() {
    let target = levels().pop().unwrap();
    files_compute_what_they_say(&|device, module, function, inputs| {
        assert_eq!(device, "cpu");
        let path = artifact(module.clone(), target.clone(), "file");
        let mut session = Session::new(Model::load(&path).unwrap(), 2).unwrap();
        let results = call(&mut session, module, function, inputs);
        std::fs::remove_file(path).unwrap();
        results
    });
}

/// Runs the functions of `tests/kir/run`, and holds the results against what the files
/// expect.
fn files_compute_what_they_say(run: RunFn) {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/kir/run");
    let runner = Runner {
        run: Some(run),
        ..Runner::default()
    };
    let report = run_dir(&dir, &runner).unwrap();
    for (path, message) in &report.failed {
        eprintln!("{}: {message}\n", path.display());
    }
    assert!(report.failed.is_empty() && report.skipped.is_empty());
    assert!(report.passed >= 20, "only {} files", report.passed);
}

#[test]
fn results_do_not_depend_on_threads() {
    let target = levels().pop().unwrap();
    let path = artifact(program("decoder.kir"), target, "threads");
    let ids = Tensor::from_i64(DType::I64, [1, 9], &[3, 1, 4, 1, 5, 2, 6, 5, 3]).unwrap();
    let mut results = vec![];
    for threads in [1, 2, 3] {
        let mut session = Session::new(Model::load(&path).unwrap(), threads).unwrap();
        results.push(run(&mut session, "forward", &[("ids", &ids)]));
    }
    assert!(results.windows(2).all(|w| w[0] == w[1]));
    std::fs::remove_file(path).unwrap();
}

/// In whatever order the levels were named.
#[test]
fn the_best_level_that_the_machine_has_is_loaded() {
    let out = std::env::temp_dir().join(format!("kiln-levels-{}.kiln", std::process::id()));
    let options = Options {
        targets: levels(),
        ..Options::default()
    };
    let best = levels().pop().unwrap();
    compile::compile(program("run/mlp.kir"), &options, &out).unwrap();
    let model = Model::load(&out).unwrap();
    std::fs::remove_file(&out).unwrap();
    assert_eq!(model.level(), best.name);
}

/// `--deterministic`: each row of a batch has the bits that it has alone, whatever
/// the batch, the threads and the level's tiles.
#[test]
fn exact_results_depend_on_neither_batch_nor_threads() {
    use kiln::passes::Precision::{Bf16, F16, F32, Tf32};
    let programs = [
        ("run/attention.kir", "forward", true, F32),
        ("run/attention.kir", "forward", true, Bf16),
        ("run/mlp.kir", "forward", true, F32),
        ("run/mlp.kir", "forward", true, Tf32),
        ("run/mlp.kir", "forward", true, Bf16),
        ("run/mlp.kir", "forward", true, F16),
        ("run/conv.kir", "plain", true, F32),
        ("run/channels_last_network.kir", "network", true, F32),
        ("run/channels_last_moves.kir", "shuffle", false, F32),
        ("run/convolutions_of_bytes.kir", "network", false, F32),
        ("run/convolutions_of_bytes.kir", "groups", false, F32),
        ("run/convolutions_of_bytes.kir", "widened", true, F32),
        // Their tiles lie as the image says, so they keep the promise too.
        ("run/winograd.kir", "tiles", false, F32),
    ];
    for target in levels() {
        for (name, entry, exact, precision) in programs {
            let module = program(name);
            let options = Options {
                targets: vec![target.clone()],
                passes: kiln::passes::Options {
                    exact,
                    precision,
                    ..Default::default()
                },
                ..Options::default()
            };
            let stem = name.replace(['/', '.'], "-");
            let out = std::env::temp_dir().join(format!("kiln-exact-{stem}-{}.kiln", target.name));
            compile::compile(module.clone(), &options, &out).unwrap();
            let model = Model::load(&out).unwrap();
            let ports = module.function(entry).unwrap();
            for batch in [1usize, 2, 3, 7, 16] {
                let inputs: Vec<(&str, Tensor)> = (ports.params.iter().zip(&ports.body().params))
                    .filter(|(p, _)| p.kind == PortKind::Caller)
                    .map(|(p, &v)| (&*p.name, batched(ports.ty(v), batch)))
                    .collect();
                let mut whole = vec![];
                for threads in [1, 2, 3] {
                    let mut session = Session::new(model.clone(), threads).unwrap();
                    let refs: Vec<(&str, &Tensor)> = inputs.iter().map(|(n, t)| (*n, t)).collect();
                    whole.push(run(&mut session, entry, &refs).remove(0));
                }
                assert!(
                    whole.windows(2).all(|w| w[0] == w[1]),
                    "{name}, batch {batch}"
                );
                let mut session = Session::new(model.clone(), 1).unwrap();
                let size = whole[0].bytes().len() / batch;
                for row in 0..batch {
                    let alone: Vec<(&str, Tensor)> = inputs
                        .iter()
                        .map(|(n, t)| (*n, row_of(t, batch, row)))
                        .collect();
                    let refs: Vec<(&str, &Tensor)> = alone.iter().map(|(n, t)| (*n, t)).collect();
                    let one = run(&mut session, entry, &refs).remove(0);
                    let same = one.bytes() == &whole[0].bytes()[row * size..(row + 1) * size];
                    assert!(same, "{name} on {}: row {row} of {batch}", target.name);
                }
            }
            std::fs::remove_file(out).unwrap();
        }
    }
}

/// A guard on a size that data decides is checked when it has: such a size once read
/// beyond what it was added to.
#[test]
fn sizes_that_data_decides_meet_their_guards() {
    let text = "kir 1
func @f(%x: f32[A], %y: i64[1, B]) -> (z: i64[1, B]) {
  %n = nonzero %x {symbol = \"found\"}
  %z = add %y, %n
  return %z
}";
    let module = parse_module(text, &NoFiles).unwrap_or_else(|e| panic!("{}", e.message));
    assert_eq!(module.function("f").unwrap().guards.len(), 1);
    for target in levels() {
        let path = artifact(module.clone(), target, "minted-guard");
        let mut session = Session::new(Model::load(&path).unwrap(), 1).unwrap();
        std::fs::remove_file(path).unwrap();
        let y = Tensor::from_i64(DType::I64, [1, 2], &[10, 20]).unwrap();
        let mut sum = |x: &[f32]| {
            let x = Tensor::from_f32([3], x).unwrap();
            try_run(&mut session, "f", &[("x", &x), ("y", &y)])
        };
        assert_eq!(sum(&[1.0, 0.0, 2.0]).unwrap()[0].to_i64(), [10, 22]);
        let refused = sum(&[0.0, 0.0, 2.0]).unwrap_err();
        assert_eq!(refused.code, "K0716", "{refused}");
        assert_eq!(sum(&[0.0, 3.0, 2.0]).unwrap()[0].to_i64(), [11, 22]);
    }
}

#[test]
fn guards_inside_loops_and_branches_are_met() {
    // Step i keeps what is above i: as many as %y has, or the step fails.
    let text = "kir 1
func @f(%x: f32[A], %y: i64[1, B], %n: i64[], %on: bool[], %way: bool[]) -> (z: i64[]) {
  %none = constant {value = i64[] (0)}
  %last, %all = loop %n, %on, %none {carried = 1, symbol = <steps>} (%i: i64[], %sum: i64[]) {
    %j = cast %i {to = f32}
    %above = gt %x, %j
    %m = cast %above {to = f32}
    %found = if %way () {
      %k = nonzero %m {symbol = \"found\"}
      %s = add %y, %k
      %t = reduce_sum %s {axes = [0, 1], keep = false}
      yield %t
    } () {
      yield %i
    }
    %next = add %sum, %found
    yield %on, %next, %next
  }
  return %last
}";
    let module = parse_module(text, &NoFiles).unwrap_or_else(|e| panic!("{}", e.message));
    assert_eq!(module.function("f").unwrap().guards.len(), 1);
    for target in levels() {
        let path = artifact(module.clone(), target, "inner-guard");
        let mut session = Session::new(Model::load(&path).unwrap(), 1).unwrap();
        std::fs::remove_file(path).unwrap();
        let y = Tensor::from_i64(DType::I64, [1, 2], &[10, 20]).unwrap();
        let on = Tensor::from_i64(DType::Bool, [], &[1]).unwrap();
        let mut sum = |x: &[f32], n: i64, way: i64| {
            let x = Tensor::from_f32([3], x).unwrap();
            let n = Tensor::scalar_i64(DType::I64, n);
            let way = Tensor::from_i64(DType::Bool, [], &[way]).unwrap();
            let inputs = [("x", &x), ("y", &y), ("n", &n), ("on", &on), ("way", &way)];
            try_run(&mut session, "f", &inputs).map(|out| out[0].to_i64())
        };
        assert_eq!(sum(&[9.0, 0.0, 9.0], 2, 1).unwrap(), [64]);
        let refused = sum(&[9.0, 0.0, 1.0], 2, 1).unwrap_err();
        assert_eq!(refused.code, "K0716", "{refused}");
        assert_eq!(sum(&[9.0, 0.0, 1.0], 2, 0).unwrap(), [1]);
        assert_eq!(sum(&[9.0, 9.0, 0.0], 2, 1).unwrap(), [62]);
    }
}

/// Elements for a port whose first axis, where it has a name, is the batch.
fn batched(ty: &kiln::ir::TensorType, batch: usize) -> Tensor {
    let extent = |(i, d): (usize, &kiln::ir::Dim)| match d.as_const() {
        Some(n) => n as usize,
        None if i == 0 => batch,
        None => 9,
    };
    let shape: Vec<usize> = ty.shape.iter().enumerate().map(extent).collect();
    let n = shape.iter().product::<usize>();
    if ty.dtype == DType::F32 {
        let x: Vec<f32> = (0..n)
            .map(|i| ((i * 37 + 11) % 101) as f32 / 50.0 - 1.0)
            .collect();
        return Tensor::from_f32(shape, &x).unwrap();
    }
    let x: Vec<i64> = (0..n).map(|i| (i * 5 + 3) as i64 % 7).collect();
    Tensor::from_i64(ty.dtype, shape, &x).unwrap()
}

/// One row of what is batched; weights given as inputs stay whole.
fn row_of(t: &Tensor, batch: usize, row: usize) -> Tensor {
    if t.shape().first() != Some(&batch) {
        return t.clone();
    }
    let size = t.bytes().len() / batch;
    let mut shape = t.shape().to_vec();
    shape[0] = 1;
    let bytes = t.bytes()[row * size..(row + 1) * size].to_vec();
    Tensor::new(t.dtype(), shape, bytes).unwrap()
}

/// Header and table of an artifact hash what they say about it: this makes the
/// hashes right again after a change, so that what lies behind them is reached.
fn reseal(bytes: &mut [u8]) {
    use xxhash_rust::xxh3::xxh3_64;
    let u64_at = |b: &[u8], at: usize| u64::from_le_bytes(b[at..at + 8].try_into().unwrap());
    let table = u64_at(bytes, 16) as usize;
    let count = u32::from_le_bytes(bytes[12..16].try_into().unwrap()) as usize;
    let row = (bytes.len() - table) / count;
    for r in (0..count).map(|i| table + i * row) {
        let (at, size) = (u64_at(bytes, r) as usize, u64_at(bytes, r + 8) as usize);
        let hash = xxh3_64(&bytes[at..at + size]);
        bytes[r + 16..r + 24].copy_from_slice(&hash.to_le_bytes());
    }
    let hash = xxh3_64(&bytes[table..]);
    bytes[24..32].copy_from_slice(&hash.to_le_bytes());
    let hash = xxh3_64(&bytes[..40]);
    bytes[40..48].copy_from_slice(&hash.to_le_bytes());
}

#[test]
fn a_damaged_artifact_is_a_coded_error_wherever_it_is_damaged() {
    let Some(target) = levels().into_iter().next() else {
        return;
    };
    let path = artifact(program("decoder.kir"), target, "damaged");
    let whole = std::fs::read(&path).unwrap();
    let load = |bytes: &[u8]| {
        // A name of its own each time: a mapped file must not change.
        let file = path.with_extension("damaged");
        std::fs::write(&file, bytes).unwrap();
        let loaded = Model::load(&file).map(|_| ());
        std::fs::remove_file(&file).unwrap();
        loaded
    };
    load(&whole).unwrap();
    let coded = |e: &kiln::runtime::Error| e.to_string().contains("K07");
    let stride = whole.len() / 1500 + 1;
    for at in (0..whole.len()).step_by(stride) {
        let e = load(&whole[..at]).expect_err("a cut file loads");
        assert!(coded(&e), "cut at {at}: {e}");
        let mut flipped = whole.clone();
        flipped[at] ^= 1 << (at % 8);
        let e = load(&flipped).expect_err("a changed file loads");
        assert!(coded(&e), "flipped at {at}: {e}");
    }
    // With right hashes, a change may go unseen (a number, an instruction), but
    // never ends in a panic, and what is seen is named.
    let table = u64::from_le_bytes(whole[16..24].try_into().unwrap()) as usize;
    let (mut seen, mut resealed) = (0, whole.clone());
    reseal(&mut resealed);
    assert_eq!(resealed, whole, "the format is another one");
    for at in (64..table).step_by(stride) {
        for change in [0x01, 0x80, 0xff] {
            let mut bytes = whole.clone();
            bytes[at] ^= change;
            reseal(&mut bytes);
            if let Err(e) = load(&bytes) {
                assert!(coded(&e), "changed at {at}: {e}");
                seen += 1;
            }
        }
    }
    assert!(
        seen > 100,
        "only {seen} changes behind the hashes were seen"
    );
    std::fs::remove_file(&path).unwrap();
}
