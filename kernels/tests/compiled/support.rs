//! Loads objects and runs kernels the way the runtime does.

use crate::gpu::{self, Gpu};
use kiln_codegen::CpuTarget;
use kiln_ir::{Binding, DType, Dim};
use kiln_kernels::nest::SCRATCH_HEAD;
use kiln_kernels::{KernelSpec, LoopNest, compile_object, reference};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

type Raw = unsafe extern "C" fn(*const *mut u8, *const i64, i64, i64, *mut u8) -> i32;

/// A loaded object.
pub struct Loaded(libloading::Library);

/// Bytes after each buffer that no kernel may touch.
const RED_ZONE: usize = 192;
const RED: u8 = 0xa5;

/// The levels that this machine runs.
pub fn targets() -> Vec<CpuTarget> {
    let all = CpuTarget::all().into_iter().rev();
    all.filter(CpuTarget::runs_here).collect()
}

/// Compiles and loads; an object that needs anything from outside is refused.
pub fn load(kernels: &[(String, KernelSpec)], target: &CpuTarget) -> Loaded {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    let object = compile_object(kernels, target).expect("the kernels compile");
    let n = COUNT.fetch_add(1, Ordering::Relaxed);
    let stem = std::env::temp_dir().join(format!("kiln-kernels-{}-{n}", std::process::id()));
    let (o, so) = (stem.with_extension("o"), stem.with_extension("so"));
    std::fs::write(&o, object).unwrap();
    let undefined = Command::new("nm").arg("-u").arg(&o).output().unwrap();
    let undefined = String::from_utf8_lossy(&undefined.stdout).into_owned();
    assert_eq!(undefined.trim(), "", "symbols from outside");
    let linked = Command::new("cc")
        .args(["-shared", "-nostdlib", "-o"])
        .args([&so, &o])
        .status();
    assert!(linked.unwrap().success());
    // SAFETY: the library has no initialisers; it is code that was just made.
    let library = unsafe { libloading::Library::new(&so) }.unwrap();
    std::fs::remove_file(&o).unwrap();
    std::fs::remove_file(&so).unwrap();
    Loaded(library)
}

impl Loaded {
    /// Runs a nest over its buffers in a few tile ranges; gives the status.
    pub fn run(
        &self,
        symbol: &str,
        spec: &KernelSpec,
        buffers: &mut [Vec<u8>],
        params: &[i64],
    ) -> i32 {
        let dims: Vec<Dim> = params.iter().map(|&p| Dim::from(p)).collect();
        let constant = |d: Dim| d.eval(&Binding::new()).unwrap();
        let tiles = constant(spec.tiles(&dims));
        let scratch_bytes = constant(spec.scratch_bytes(&dims)) as usize;
        assert!(scratch_bytes >= SCRATCH_HEAD as usize);
        let mut padded: Vec<Vec<u8>> = buffers
            .iter()
            .map(|b| b.iter().copied().chain([RED; RED_ZONE]).collect())
            .collect();
        let pointers: Vec<*mut u8> = padded.iter_mut().map(|b| b.as_mut_ptr()).collect();
        // SAFETY: the symbol has the kernel ABI.
        let f = unsafe { self.0.get::<Raw>(symbol.as_bytes()) }.unwrap();
        let mut status = 0;
        for (begin, end) in [(0, tiles / 3), (tiles / 3, tiles)] {
            let mut scratch = vec![RED; scratch_bytes + 64 + RED_ZONE];
            let skip = scratch.as_ptr().align_offset(64);
            // SAFETY: buffers hold what the spec's indices reach; the red zones
            // show the kernel that writes elsewhere.
            let s = unsafe {
                f(
                    pointers.as_ptr(),
                    params.as_ptr(),
                    begin,
                    end,
                    scratch.as_mut_ptr().add(skip),
                )
            };
            assert!(
                scratch[skip + scratch_bytes..].iter().all(|&b| b == RED),
                "{symbol}: scratch"
            );
            status = status.max(s);
        }
        for (b, p) in buffers.iter_mut().zip(&padded) {
            assert!(
                p[b.len()..].iter().all(|&x| x == RED),
                "{symbol}: wrote past a buffer"
            );
            let n = b.len();
            b.copy_from_slice(&p[..n]);
        }
        status
    }
}

impl Loaded {
    /// Times whole launches with no open sizes.
    #[allow(dead_code)]
    pub fn time(
        &self,
        symbol: &str,
        spec: &KernelSpec,
        buffers: &mut [Vec<u8>],
        runs: usize,
        seen: &mut dyn FnMut(f64),
    ) {
        let constant = |d: Dim| d.eval(&Binding::new()).unwrap();
        let tiles = constant(spec.tiles(&[]));
        let pointers: Vec<*mut u8> = buffers.iter_mut().map(|b| b.as_mut_ptr()).collect();
        let mut scratch = vec![0u8; constant(spec.scratch_bytes(&[])) as usize + 64];
        let skip = scratch.as_ptr().align_offset(64);
        // SAFETY: the symbol has the kernel ABI.
        let f = unsafe { self.0.get::<Raw>(symbol.as_bytes()) }.unwrap();
        for _ in 0..runs {
            let start = std::time::Instant::now();
            let params = std::ptr::NonNull::dangling().as_ptr();
            // SAFETY: buffers hold what the spec's indices reach; no parameter is read.
            let s = unsafe {
                f(
                    pointers.as_ptr(),
                    params,
                    0,
                    tiles,
                    scratch.as_mut_ptr().add(skip),
                )
            };
            assert_eq!(s, 0);
            seen(start.elapsed().as_secs_f64());
        }
    }
}

/// Elements of a dtype as bytes.
pub fn bytes(dtype: DType, values: &[f64]) -> Vec<u8> {
    kiln_ir::Tensor::from_f64(dtype, [values.len()], values)
        .unwrap()
        .bytes()
        .to_vec()
}

/// Bytes as numbers.
pub fn numbers(dtype: DType, data: &[u8]) -> Vec<f64> {
    let n = data.len() / dtype.size().unwrap();
    (0..n)
        .map(|i| kiln_ir::tensor::read_f64(dtype, data, i))
        .collect()
}

/// A nest with its inputs.
pub struct Case {
    pub name: String,
    pub nest: LoopNest,
    pub buffers: Vec<Vec<u8>>,
    pub params: Vec<i64>,
}

/// Runs every case at every level and compares every buffer with the reference.
pub fn check(cases: Vec<Case>) {
    let kernels: Vec<(String, KernelSpec)> = cases
        .iter()
        .map(|c| (c.name.clone(), KernelSpec::Nest(c.nest.clone())))
        .collect();
    let mut first: Vec<Vec<Vec<u8>>> = vec![];
    for target in targets() {
        let loaded = load(&kernels, &target);
        for (n, (case, (symbol, spec))) in cases.iter().zip(&kernels).enumerate() {
            let mut want = case.buffers.clone();
            let expected = reference::run(&case.nest, &mut want, &case.params);
            let mut got = case.buffers.clone();
            let status = loaded.run(symbol, spec, &mut got, &case.params);
            assert_eq!(
                status != 0,
                expected.is_err(),
                "{symbol}: status {status}, {expected:?}"
            );
            if expected.is_ok() {
                for (i, (g, w)) in got.iter().zip(&want).enumerate() {
                    let at = format!("{symbol} at {}, buffer {i}: {:?}", target.name, case.nest);
                    compare(case.nest.args[i], g, w, &at);
                }
            }
            // Every level gives the same bits.
            match first.get(n) {
                Some(bits) => assert!(*bits == got, "{symbol} at {}", target.name),
                None => first.push(got),
            }
        }
    }
    check_on(&Gpu::new(&kernels), &cases, &mut |_, _| {});
}

/// The same with both kinds of GPU; every case has a form of this name on Hopper.
pub fn check_form(cases: Vec<Case>, form: &str) {
    let kernels: Vec<(String, KernelSpec)> = (cases.iter())
        .map(|c| (c.name.clone(), KernelSpec::Nest(c.nest.clone())))
        .collect();
    let mut seen = vec![];
    let gpu = Gpu::on("sm_90a", &kernels);
    check_on(&gpu, &cases, &mut |name, _| seen.push(name.to_string()));
    for case in &cases {
        let name = format!("{}_{form}", case.name);
        assert!(seen.contains(&name), "{name} did not run: {seen:?}");
    }
    check(cases);
}

/// Runs every form of every case on a GPU and compares every buffer with the reference;
/// `see` gets each form's name and buffers.
pub fn check_on(gpu: &Gpu, cases: &[Case], see: &mut dyn FnMut(&str, &[Vec<u8>])) {
    for case in cases {
        let (symbol, spec) = (&case.name, KernelSpec::Nest(case.nest.clone()));
        let mut want = case.buffers.clone();
        let expected = reference::run(&case.nest, &mut want, &case.params);
        let launch = (&case.buffers[..], &case.params[..]);
        gpu.run(symbol, &spec, launch, &mut |name, got, status| {
            assert_eq!(
                status != 0,
                expected.is_err(),
                "{name}: status {status}, {expected:?}"
            );
            if expected.is_ok() {
                for (i, (g, w)) in got.iter().zip(&want).enumerate() {
                    let at = format!("{name} on a GPU, buffer {i}: {:?}", case.nest);
                    compare(case.nest.args[i], g, w, &at);
                }
                if let (Some(g), Some(w)) = (got.last(), want.last()) {
                    gpu::note(&spec, g, w);
                }
            }
            see(name, got);
        });
    }
}

/// Integers equal, floats within rounding of the buffer's largest value.
pub fn compare(dtype: DType, got: &[u8], want: &[u8], at: &str) {
    let (g, w) = (numbers(dtype, got), numbers(dtype, want));
    let tolerance = match dtype {
        DType::F64 => 1e-12,
        DType::F32 => 3e-6,
        DType::F16 => 2e-3,
        DType::BF16 => 1e-2,
        _ => return assert_eq!(got, want, "{at}"),
    };
    let largest = w
        .iter()
        .filter(|x| x.is_finite())
        .fold(0.0f64, |m, x| m.max(x.abs()));
    for (i, (&a, &b)) in g.iter().zip(&w).enumerate() {
        let same = a == b || (a.is_nan() && b.is_nan());
        let near = (a - b).abs() <= tolerance * largest.max(1e-30);
        assert!(same || near, "element {i} is {a}, not {b}; {at}");
    }
}

/// A small generator of test data: the same numbers everywhere.
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        // SplitMix64.
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }

    /// Between −1 and 1.
    pub fn unit(&mut self) -> f64 {
        self.next() as i64 as f64 / i64::MAX as f64
    }

    pub fn data(&mut self, dtype: DType, n: usize) -> Vec<u8> {
        let values: Vec<f64> = (0..n)
            .map(|_| match dtype {
                DType::Bool => self.below(2) as f64,
                _ if dtype.is_float() => 2.0 * self.unit(),
                DType::U8 | DType::U16 | DType::U32 | DType::U64 => self.below(20) as f64,
                _ => self.below(41) as f64 - 20.0,
            })
            .collect();
        bytes(dtype, &values)
    }
}

/// A kernel's problem with what it works on.
pub struct Launch {
    pub spec: KernelSpec,
    pub buffers: Vec<Vec<u8>>,
    pub params: Vec<i64>,
}

/// Runs the cases at every level: `see(level, case, result)` for each result, whose bits
/// must be the same at all of them. Gives the results.
pub fn at_every_level(cases: &[&Launch], see: &mut dyn FnMut(&str, usize, &[u8])) -> Vec<Vec<u8>> {
    let kernels: Vec<(String, KernelSpec)> = (0..)
        .zip(cases)
        .map(|(i, c)| (format!("case{i}"), c.spec.clone()))
        .collect();
    let mut first: Vec<Vec<u8>> = vec![];
    for target in targets() {
        let loaded = load(&kernels, &target);
        for (i, c) in cases.iter().enumerate() {
            let mut buffers = c.buffers.clone();
            let status = loaded.run(&kernels[i].0, &c.spec, &mut buffers, &c.params);
            assert_eq!(status, 0, "{}: case {i}", target.name);
            let last = buffers.pop().unwrap();
            see(&target.name, i, &last);
            match first.get(i) {
                Some(bits) => assert!(*bits == last, "{}: other bits, case {i}", target.name),
                None => first.push(last),
            }
        }
    }
    let gpu = Gpu::new(&kernels);
    for (i, c) in cases.iter().enumerate() {
        let (symbol, spec) = &kernels[i];
        if gpu.refuses(symbol) {
            continue;
        }
        let launch = (&c.buffers[..], &c.params[..]);
        gpu.run(symbol, spec, launch, &mut |name, buffers, status| {
            assert_eq!(status, 0, "{name} on a GPU");
            let last = buffers.last().unwrap();
            see("sim", i, last);
            gpu::note(spec, last, &first[i]);
        });
    }
    first
}
