//! The kernel families at the shapes of real models, each on one thread.
//!
//! `cargo bench` runs all, `cargo bench -- conv` one group. A case is one op in text
//! form. The compiler chooses its kernel, as in a model; the case says which kernel it
//! must be, so that no figure is of another. What is timed is that kernel's launch and
//! not what is around it: copying inputs, other steps.
//!
//! Throughput is in operations for what computes (Winograd's is that of the direct
//! form) and in bytes, read and written, for what moves.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use kiln::compile::{self, Options};
use kiln::ir::parse::{NoFiles, parse_module};
use kiln::runtime::{Model, Session, TensorRef};
use kiln_kernels::KernelSpec;
use kiln_kernels::matmul::Columns;
use std::time::Duration;

/// Which kernel a case is about.
type Is = fn(&KernelSpec) -> bool;

struct Case {
    group: &'static str,
    /// Its shape, and the model that has it.
    name: &'static str,
    is: Is,
    /// A module without its version line. Its constants repeat one number.
    module: String,
}

fn case(group: &'static str, name: &'static str, is: Is, module: String) -> Case {
    Case {
        group,
        name,
        is,
        module,
    }
}

fn cases() -> Vec<Case> {
    let mut all = contractions();
    all.extend(convolutions());
    all.extend(rows());
    all.extend(moves());
    all
}

fn contractions() -> Vec<Case> {
    let packed: Is = |s| matches!(s, KernelSpec::MatMul(m) if matches!(m.b, Columns::Packed));
    let strided: Is = |s| matches!(s, KernelSpec::MatMul(m) if !matches!(m.b, Columns::Packed));
    let linear = |m: i64, k: i64, n: i64| {
        format!(
            "const @w : f32[{k}, {n}] = splat 0.01
func @f(%x: f32[{m}, {k}]) -> f32[{m}, {n}] {{
  %w = global {{name = \"w\"}}
  %y = matmul %x, %w {{transpose_a = false, transpose_b = false}}
  return %y
}}"
        )
    };
    let both = |h: i64, m: i64, k: i64, n: i64| {
        format!(
            "func @f(%x: f32[{h}, {m}, {k}], %w: f32[{h}, {k}, {n}]) -> f32[{h}, {m}, {n}] {{
  %y = matmul %x, %w {{transpose_a = false, transpose_b = false}}
  return %y
}}"
        )
    };
    let attention = |b: i64, h: i64, l: i64, d: i64| {
        let t = format!("f32[{b}, {h}, {l}, {d}]");
        format!(
            "func @f(%q: {t}, %k: {t}, %v: {t}) -> {t} {{
  %y = attention %q, %k, %v {{scale = 0.17, mask = full, bias = false, keep = false, slopes = false}}
  return %y
}}"
        )
    };
    let is_attention: Is = |s| matches!(s, KernelSpec::Attention(_));
    vec![
        case(
            "matmul packed",
            "128x384x384 MiniLM",
            packed,
            linear(128, 384, 384),
        ),
        case(
            "matmul packed",
            "128x1536x384 MiniLM",
            packed,
            linear(128, 1536, 384),
        ),
        case(
            "matmul packed",
            "1024x768x3072 BERT",
            packed,
            linear(1024, 768, 3072),
        ),
        case(
            "matmul strided",
            "12 of 128x32x128 MiniLM",
            strided,
            both(12, 128, 32, 128),
        ),
        case(
            "matmul strided",
            "1 of 512x512x512",
            strided,
            both(1, 512, 512, 512),
        ),
        case("gemv", "1x384x1536 MiniLM", packed, linear(1, 384, 1536)),
        case(
            "gemv",
            "1x4096x4096 a language model",
            packed,
            linear(1, 4096, 4096),
        ),
        case(
            "attention",
            "1x12x128x32 MiniLM",
            is_attention,
            attention(1, 12, 128, 32),
        ),
        case(
            "attention",
            "8x12x512x64 BERT",
            is_attention,
            attention(8, 12, 512, 64),
        ),
    ]
}

/// A convolution of one image, padded to keep its size (at stride 1).
fn conv(c: i64, size: i64, m: i64, kernel: i64, stride: i64, groups: i64) -> String {
    let (pad, out) = (kernel / 2, (size + stride - 1) / stride);
    format!(
        "const @w : f32[{m}, {}, {kernel}, {kernel}] = splat 0.01
func @f(%x: f32[1, {c}, {size}, {size}]) -> f32[1, {m}, {out}, {out}] {{
  %w = global {{name = \"w\"}}
  %y = conv %x, %w {{strides = [{stride}, {stride}], dilations = [1, 1], lo = [{pad}, {pad}], hi = [{pad}, {pad}], groups = {groups}}}
  return %y
}}",
        c / groups
    )
}

fn convolutions() -> Vec<Case> {
    let dense: Is = |s| matches!(s, KernelSpec::Conv(c) if !c.winograd && c.nr != 0);
    let depthwise: Is = |s| matches!(s, KernelSpec::Conv(c) if c.nr == 0);
    let winograd: Is = |s| matches!(s, KernelSpec::Conv(c) if c.winograd);
    // A 1x1 convolution at stride 1 is a product of matrices.
    let one: Is = |s| {
        matches!(s, KernelSpec::Conv(c) if c.kernel == [1, 1]) || matches!(s, KernelSpec::MatMul(_))
    };
    vec![
        case(
            "conv dense",
            "3x224 to 64, 7x7 by 2 ResNet-50",
            dense,
            conv(3, 224, 64, 7, 2, 1),
        ),
        case(
            "conv dense",
            "128x56 to 128, 3x3 by 2 ResNet-50",
            dense,
            conv(128, 56, 128, 3, 2, 1),
        ),
        case(
            "conv 1x1",
            "64x56 to 256 ResNet-50",
            one,
            conv(64, 56, 256, 1, 1, 1),
        ),
        case(
            "conv 1x1",
            "1024x14 to 256 ResNet-50",
            one,
            conv(1024, 14, 256, 1, 1, 1),
        ),
        case(
            "conv depthwise",
            "96x56 3x3 MobileNet",
            depthwise,
            conv(96, 56, 96, 3, 1, 96),
        ),
        case(
            "conv depthwise",
            "240x28 5x5 by 2 MobileNet",
            depthwise,
            conv(240, 28, 240, 5, 2, 240),
        ),
        case(
            "conv winograd",
            "64x56 to 64 ResNet-50",
            winograd,
            conv(64, 56, 64, 3, 1, 1),
        ),
        case(
            "conv winograd",
            "256x14 to 256 ResNet-50",
            winograd,
            conv(256, 14, 256, 3, 1, 1),
        ),
    ]
}

const NEST: Is = |s| matches!(s, KernelSpec::Nest(_));

/// One value computed from others: `ports` are parameters, the text is the op.
fn function(ports: &str, result: &str, op: &str) -> String {
    format!("func @f({ports}) -> {result} {{\n  %y = {op}\n  return %y\n}}")
}

fn rows() -> Vec<Case> {
    let one = |t: &str, op: &str| function(&format!("%x: {t}"), t, op);
    let norm = |rows: i64, n: i64| {
        let t = format!("f32[{rows}, {n}]");
        function(
            &format!("%x: {t}, %s: f32[{n}], %b: f32[{n}]"),
            &t,
            "layer_norm %x, %s, %b {axis = 1, eps = 1e-12}",
        )
    };
    let reduce = |op: &str, from: &str, to: &str, axes: &str| {
        let text = format!("{op} %x {{axes = [{axes}], keep = false}}");
        function(&format!("%x: {from}"), to, &text)
    };
    vec![
        case(
            "softmax",
            "1536x128 MiniLM",
            NEST,
            one("f32[1536, 128]", "softmax %x {axis = 1, log = false}"),
        ),
        case(
            "softmax",
            "64x50257 GPT-2",
            NEST,
            one("f32[64, 50257]", "softmax %x {axis = 1, log = false}"),
        ),
        case("layer norm", "1024x384 MiniLM", NEST, norm(1024, 384)),
        case(
            "layer norm",
            "128x4096 a language model",
            NEST,
            norm(128, 4096),
        ),
        case(
            "elementwise",
            "gelu of 128x1536 MiniLM",
            NEST,
            one("f32[128, 1536]", "gelu %x {tanh = false}"),
        ),
        case(
            "elementwise",
            "add of 64x112x112",
            NEST,
            function(
                "%x: f32[64, 112, 112], %z: f32[64, 112, 112]",
                "f32[64, 112, 112]",
                "add %x, %z",
            ),
        ),
        case(
            "reduction",
            "sum over 2048x49 ResNet-50",
            NEST,
            reduce("reduce_sum", "f32[2048, 49]", "f32[2048]", "1"),
        ),
        case(
            "reduction",
            "max over 512 rows of 4096",
            NEST,
            reduce("reduce_max", "f32[512, 4096]", "f32[4096]", "0"),
        ),
    ]
}

fn moves() -> Vec<Case> {
    vec![
        case(
            "transpose",
            "64x56x56 to channels last",
            NEST,
            function(
                "%x: f32[64, 3136]",
                "f32[3136, 64]",
                "transpose %x {perm = [1, 0]}",
            ),
        ),
        case(
            "transpose",
            "heads of 128x12x32 MiniLM",
            NEST,
            function(
                "%x: f32[128, 12, 32]",
                "f32[12, 128, 32]",
                "transpose %x {perm = [1, 0, 2]}",
            ),
        ),
        case(
            "concat",
            "channels of 256+32 x 28x28 DenseNet",
            NEST,
            function(
                "%x: f32[256, 784], %z: f32[32, 784]",
                "f32[288, 784]",
                "concat %x, %z {axis = 0}",
            ),
        ),
        case(
            "gather",
            "128 of 30522 rows of 384 MiniLM",
            NEST,
            function(
                "%x: f32[30522, 384], %i: i64[128]",
                "f32[128, 384]",
                "gather %x, %i {axis = 0}",
            ),
        ),
    ]
}

/// A compiled case.
struct Loaded {
    session: Session,
    inputs: Vec<(String, kiln::ir::DType, Vec<usize>, Vec<u8>)>,
    /// Names of the kernels that the case is about.
    kernels: Vec<String>,
}

fn load(case: &Case) -> Loaded {
    let what = format!("{} {}", case.group, case.name);
    let module = parse_module(&format!("kir 1\n{}\n", case.module), &NoFiles)
        .unwrap_or_else(|e| panic!("{what}: {e:?}"));
    let name = what.replace(|c: char| !c.is_alphanumeric(), "-");
    let path = std::env::temp_dir().join(format!("kiln-{}-{name}.kiln", std::process::id()));
    let compiled = compile::compile(module, &Options::default(), &path)
        .unwrap_or_else(|e| panic!("{what}: {e}"));
    let all = &compiled.lowered.kernels;
    let wanted = all.iter().filter(|k| (case.is)(&k.1));
    let kernels: Vec<String> = wanted.map(|k| k.0.clone()).collect();
    let names: Vec<&String> = all.iter().map(|k| &k.0).collect();
    assert!(!kernels.is_empty(), "{what} became {names:?}");
    let model = Model::load(&path).unwrap_or_else(|e| panic!("{what}: {e}"));
    let inputs = model.program().entries[0].inputs.iter();
    let inputs = inputs.map(|port| {
        let extent = |d: &kiln::ir::Dim| d.as_const().map_or(0, |n| n as usize);
        let shape: Vec<usize> = port.dims.iter().map(extent).collect();
        let count: usize = shape.iter().product();
        let bytes: Vec<u8> = match port.dtype {
            kiln::ir::DType::I64 => (0..count as i64)
                .flat_map(|i| (i * 231 % 30_000).to_le_bytes())
                .collect(),
            _ => (0..count)
                .flat_map(|i| ((i * 7 % 113) as f32 / 113.0 - 0.5).to_le_bytes())
                .collect(),
        };
        (port.name.clone(), port.dtype, shape, bytes)
    });
    let inputs = inputs.collect();
    let session = Session::new(model, 1).unwrap_or_else(|e| panic!("{what}: {e}"));
    // It is mapped, and needs its name no longer.
    let _ = std::fs::remove_file(&path);
    Loaded {
        session,
        inputs,
        kernels,
    }
}

impl Loaded {
    /// Time, operations and bytes of the kernels in one run.
    fn run(&mut self) -> (Duration, i64, i64) {
        let inputs: Vec<(&str, TensorRef)> = (self.inputs.iter())
            .map(|(name, dtype, shape, bytes)| {
                let t = TensorRef {
                    dtype: *dtype,
                    shape,
                    bytes,
                };
                (&name[..], t)
            })
            .collect();
        self.session.set_profiling(true);
        self.session
            .run(0, &inputs)
            .unwrap_or_else(|e| panic!("{e}"));
        let steps = self.session.profile().map_or(&[][..], |p| &p.steps);
        let own = steps.iter().filter(|s| self.kernels.contains(&s.kernel));
        let (ns, flops, bytes) =
            own.fold((0, 0, 0), |t, s| (t.0 + s.ns, t.1 + s.flops, t.2 + s.bytes));
        (Duration::from_nanos(ns), flops, bytes)
    }
}

fn kernels(c: &mut Criterion) {
    for case in cases() {
        let mut loaded = load(&case);
        let (_, flops, bytes) = loaded.run();
        let computes = case.group.starts_with("matmul")
            || case.group.starts_with("conv")
            || matches!(case.group, "gemv" | "attention");
        let mut group = c.benchmark_group(case.group);
        group.throughput(match computes {
            true => Throughput::Elements(flops as u64),
            false => Throughput::Bytes(bytes as u64),
        });
        group.sample_size(20);
        group.warm_up_time(Duration::from_millis(300));
        group.measurement_time(Duration::from_secs(2));
        group.bench_function(BenchmarkId::from_parameter(case.name), |b| {
            b.iter_custom(|n| (0..n).map(|_| loaded.run().0).sum());
        });
        group.finish();
    }
}

criterion_group!(benches, kernels);
criterion_main!(benches);
