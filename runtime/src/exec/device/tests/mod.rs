//! Sessions on the simulated device, with plans and kernels written by hand.

mod arena;
mod control;
mod files;
mod graphs;
mod lanes;
mod runs;
mod tune;

use crate::device::Name;
use crate::plan::{
    Buffer, Entry, Global, GlobalData, Gpu, GpuKernel, Launch, PLAN_VERSION, Pass, Place, Port,
    Program, Step, Tile, Variant, Work,
};
use crate::{Artifact, ArtifactWriter, Model, Session, TensorRef};
use kiln_ir::{DType, Dim};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

const PTX: &str = include_str!("kernels.ptx");

/// The kernels of the text, in the order of the plans' numbers.
const KERNELS: [&str; 5] = ["increment", "gather", "double", "beyond", "below"];

fn dim(text: &str) -> Dim {
    text.parse().unwrap()
}

/// How each kernel is launched.
fn kernels() -> Vec<Vec<GpuKernel>> {
    let one = || Dim::from(1);
    let of = |blocks: &str, threads: u32, scratch: &str| GpuKernel {
        when: vec![],
        tiles: vec![],
        passes: vec![Pass {
            entry: String::new(),
            grid: [dim(blocks), one(), one()],
            block: [threads, 1, 1],
            cluster: [1; 3],
            shared: 0,
            work: None,
        }],
        scratch: dim(scratch),
        work: Work::default(),
    };
    let all = [
        of("(p0 + 63) / 64", 64, "0"),
        of("(p1 + 63) / 64", 64, "0"),
        of("(p0 + 63) / 64", 64, "p0 * 4"),
        of("1", 1, "0"),
        of("1", 1, "0"),
    ];
    let name = |(mut k, entry): (GpuKernel, &str)| {
        k.passes[0].entry = entry.into();
        vec![k]
    };
    all.into_iter().zip(KERNELS).map(name).collect()
}

/// A plan with the kernels' code for sm_80, in section 1.
fn program(entries: Vec<Entry>) -> Program {
    Program {
        version: PLAN_VERSION,
        kernels: KERNELS.map(String::from).to_vec(),
        gpu: vec![Gpu {
            target: "sm_80".into(),
            section: 1,
            kernels: kernels(),
            tuned: vec![],
        }],
        entries,
        ..Program::default()
    }
}

fn artifact(program: &Program, ptx: &[u8]) -> crate::Result<Artifact> {
    static MADE: AtomicUsize = AtomicUsize::new(0);
    let number = MADE.fetch_add(1, Ordering::Relaxed);
    let name = format!("kiln-device-{}-{number}.kiln", std::process::id());
    let path = std::env::temp_dir().join(name);
    let mut writer = ArtifactWriter::create(&path).unwrap();
    writer.section(ptx).unwrap();
    writer.finish(program).unwrap();
    let opened = Artifact::open(&path);
    std::fs::remove_file(path).unwrap();
    opened
}

fn model(program: &Program) -> Arc<Model> {
    Model::without_code(artifact(program, PTX.as_bytes()).unwrap())
}

fn session(program: &Program) -> Session {
    Session::on(model(program), 1, Name::Sim, None).unwrap()
}

fn buffer(bytes: &str, place: Place) -> Buffer {
    Buffer {
        bytes: dim(bytes),
        place,
        live: (0, 99),
    }
}

fn port(name: &str, dtype: DType, dims: &[&str], buffer: u32) -> Port {
    Port {
        name: name.into(),
        dtype,
        dims: dims.iter().map(|d| dim(d)).collect(),
        buffer,
    }
}

/// A launch of a kernel whose last argument is written.
fn launch(kernel: u32, args: &[u32], params: &[&str], label: &str) -> Step {
    Step::Launch(Launch {
        variants: vec![Variant {
            guards: vec![],
            kernel,
            params: params.iter().map(|d| dim(d)).collect(),
            tiles: Dim::from(1),
            scratch: Dim::ZERO,
        }],
        args: args.iter().map(|&b| (b, Dim::ZERO)).collect(),
        writes: 1,
        label: label.into(),
        flops: Dim::ZERO,
        bytes: Dim::ZERO,
    })
}

fn copy(from: u32, to: u32, bytes: &str) -> Step {
    let bytes = dim(bytes);
    Step::Copy { from, to, bytes }
}

fn entry(name: &str) -> Entry {
    Entry {
        name: name.into(),
        inputs: vec![],
        outputs: vec![],
        guards: vec![],
        buffers: vec![],
        steps: vec![],
    }
}

/// y = 2 (x + 1) for n numbers.
fn chain() -> Entry {
    Entry {
        inputs: vec![port("x", DType::F32, &["n"], 0)],
        outputs: vec![port("y", DType::F32, &["n"], 2)],
        buffers: vec![
            buffer("n * 4", Place::Input),
            buffer("n * 4", Place::Arena),
            buffer("n * 4", Place::Output),
        ],
        steps: vec![
            launch(0, &[0, 1], &["n"], "first"),
            launch(2, &[1, 2], &["n"], "second"),
        ],
        ..entry("chain")
    }
}

/// A state value of zeros.
fn state(name: &str, count: u64) -> Global {
    Global {
        name: name.into(),
        dtype: DType::F32,
        shape: vec![count],
        bytes: 4 * count,
        data: GlobalData::Splat(vec![0; 4]),
        state: true,
        checkpoint: None,
    }
}

fn bytes(numbers: &[f32]) -> Vec<u8> {
    numbers.iter().flat_map(|x| x.to_le_bytes()).collect()
}

fn numbers(bytes: &[u8]) -> Vec<f32> {
    let words = bytes.as_chunks::<4>().0.iter();
    words.map(|w| f32::from_le_bytes(*w)).collect()
}

/// Graphs that a session holds.
fn graphs(s: &Session) -> usize {
    let all = s.on_device().unwrap().stretches.values();
    let all = all.flat_map(|s| &s.kept.done);
    all.filter(|d| d.graph.is_some()).count()
}

/// Runs an entry on an input `x` of numbers; its first output.
fn run(s: &mut Session, entry: usize, x: &[f32]) -> crate::Result<Vec<f32>> {
    let raw = bytes(x);
    let t = TensorRef {
        dtype: DType::F32,
        shape: &[x.len()],
        bytes: &raw,
    };
    s.run(entry, &[("x", t)])?;
    Ok(numbers(s.output(0).unwrap().bytes))
}
