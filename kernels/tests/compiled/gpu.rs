//! The same kernels as PTX, on the interpreter.

use crate::support::numbers;
use kiln_codegen::GpuTarget;
use kiln_ir::{Binding, Dim};
use kiln_kernels::KernelSpec;
use kiln_kernels::cuda::{self, GpuKernel, STATUS_BYTES, SortSpec};
use kiln_runtime::device::MAP_ALIGN;
use kiln_runtime::plan::Tile;
use kiln_runtime::sim::{Launch, Memory, Module, TensorMap, Window, launch};
use std::collections::BTreeSet;
use std::fmt::Debug;
use std::fs::OpenOptions;
use std::io::Write;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A module of kernels on the interpreter.
pub struct Gpu {
    /// The forms of each kernel, the last of its own name.
    kernels: Vec<Vec<GpuKernel>>,
    refused: BTreeSet<String>,
    module: Module,
}

/// Writes the kernels for every target, to be assembled.
fn write_all(all: &[(String, KernelSpec)], folder: &Path) {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    let n = COUNT.fetch_add(1, Ordering::Relaxed);
    for target in GpuTarget::all() {
        let one = |(symbol, spec): &(String, KernelSpec)| cuda::emit(spec, symbol, &target).ok();
        let kernels: Vec<GpuKernel> = all.iter().filter_map(one).flatten().collect();
        let path = folder.join(format!("module{n}.{}.ptx", target.name));
        std::fs::write(path, cuda::module(&kernels, &target)).unwrap();
    }
}

/// Notes how far a result is from another one, ‖got − want‖ / ‖want‖, beside the kernels'
/// text.
pub fn note(spec: &KernelSpec, got: &[u8], want: &[u8]) {
    let Some(folder) = std::env::var_os("KILN_TEST_PTX") else {
        return;
    };
    let (family, args) = match spec {
        KernelSpec::Nest(s) => ("nest", &s.args),
        KernelSpec::MatMul(s) => ("matmul", &s.args),
        KernelSpec::Conv(s) => ("conv", &s.args),
        KernelSpec::Attention(s) => ("attention", &s.args),
    };
    let (first, last) = (args[0], args[args.len() - 1]);
    if last.size().is_none() || got.len() != want.len() {
        return;
    }
    let (got, want) = (numbers(last, got), numbers(last, want));
    let finite = |x: &f64| if x.is_finite() { *x } else { 0.0 };
    let norm = |xs: &mut dyn Iterator<Item = f64>| xs.map(|x| x * x).sum::<f64>().sqrt();
    let apart = norm(&mut got.iter().zip(&want).map(|(g, w)| finite(g) - finite(w)));
    let all = norm(&mut want.iter().map(finite));
    let line = format!("{family} {first} {last} {:e}\n", apart / all.max(1e-30));
    let path = Path::new(&folder).join("errors.txt");
    let file = OpenOptions::new().create(true).append(true).open(path);
    file.unwrap().write_all(line.as_bytes()).unwrap();
}

/// Gets a form's name, buffers and status.
pub type See<'a> = &'a mut dyn FnMut(&str, &[Vec<u8>], i32);

/// A tile as plans have it.
fn planned(tile: &cuda::Tile) -> Tile {
    Tile {
        arg: tile.arg.into(),
        dtype: tile.dtype,
        sizes: tile.sizes.clone(),
        strides: tile.strides.clone(),
        tile: tile.tile.clone(),
    }
}

impl Gpu {
    /// Every kernel that there is for a GPU.
    pub fn new(all: &[(String, KernelSpec)]) -> Gpu {
        let name = std::env::var("KILN_TEST_GPU").unwrap_or("sm_80".into());
        Gpu::on(&name, all)
    }

    /// Every kernel that there is for a target.
    pub fn on(name: &str, all: &[(String, KernelSpec)]) -> Gpu {
        let target = GpuTarget::named(name).expect("a target");
        let (mut kernels, mut refused) = (vec![], BTreeSet::new());
        for (symbol, spec) in all {
            match cuda::emit(spec, symbol, &target) {
                Ok(forms) => kernels.push(forms),
                Err(_) => {
                    refused.insert(symbol.clone());
                }
            }
        }
        let text = cuda::module(kernels.iter().flatten(), &target);
        if let Some(folder) = std::env::var_os("KILN_TEST_PTX") {
            write_all(all, Path::new(&folder));
        }
        let module = Module::parse(&text).unwrap_or_else(|e| panic!("{e}"));
        Gpu {
            kernels,
            refused,
            module,
        }
    }

    /// Selections for a target.
    pub fn selections(name: &str, all: &[(String, SortSpec)]) -> Gpu {
        let emitted = |target: &GpuTarget| -> Vec<Vec<GpuKernel>> {
            let one = |(symbol, spec): &(String, SortSpec)| cuda::emit_sort(spec, symbol, target);
            all.iter().map(one).collect()
        };
        let target = GpuTarget::named(name).expect("a target");
        let kernels = emitted(&target);
        let text = cuda::module(kernels.iter().flatten(), &target);
        if let Some(folder) = std::env::var_os("KILN_TEST_PTX") {
            for target in GpuTarget::all() {
                let kernels = emitted(&target);
                let text = cuda::module(kernels.iter().flatten(), &target);
                let path = Path::new(&folder).join(format!("selections.{}.ptx", target.name));
                std::fs::write(path, text).unwrap();
            }
        }
        Gpu {
            kernels,
            refused: BTreeSet::new(),
            module: Module::parse(&text).unwrap_or_else(|e| panic!("{e}")),
        }
    }

    /// Whether this kernel has no form for a GPU.
    pub fn refuses(&self, symbol: &str) -> bool {
        self.refused.contains(symbol)
    }

    /// Runs every form of a kernel that serves these parameters, the last one first:
    /// `see` gets each one's name, buffers and status.
    pub fn run(&self, symbol: &str, spec: &dyn Debug, launch: (&[Vec<u8>], &[i64]), see: See) {
        let named = |forms: &&Vec<GpuKernel>| forms.last().is_some_and(|k| k.entry == symbol);
        let forms = self.kernels.iter().find(named);
        for form in forms.expect("a kernel of this name").iter().rev() {
            let mut buffers = launch.0.to_vec();
            if let Some(status) = self.run_form(form, spec, &mut buffers, launch.1) {
                see(&form.entry, &buffers, status);
            }
        }
    }

    /// Runs a form over its buffers; gives the status, or none where it does not serve.
    fn run_form(
        &self,
        kernel: &GpuKernel,
        spec: &dyn Debug,
        buffers: &mut [Vec<u8>],
        params: &[i64],
    ) -> Option<i32> {
        let names = (0..).map(|i| format!("p{i}").into());
        let binding: Binding = names.zip(params.iter().copied()).collect();
        let size = |d: &Dim| d.eval(&binding).expect("a size of the parameters");
        if kernel.when.iter().any(|(a, b)| size(a) > size(b)) {
            return None;
        }
        let mut memory = Memory::new();
        let mut windows = vec![];
        let mut block = |bytes: Option<&[u8]>, len: usize, memory: &mut Memory| {
            let at = memory.alloc(len.max(1));
            if let Some(bytes) = bytes {
                memory.write(at, bytes).unwrap();
            }
            windows.push(Window {
                start: at,
                len: len as u64,
                writable: true,
            });
            at
        };
        let places: Vec<u64> = buffers
            .iter()
            .map(|b| block(Some(b), b.len(), &mut memory))
            .collect();
        let status = block(Some(&[0; STATUS_BYTES]), STATUS_BYTES, &mut memory);
        let scratch = block(None, size(&kernel.scratch) as usize, &mut memory);
        let words = (places.iter().copied().chain([status, scratch]))
            .chain(params.iter().map(|&p| p as u64));
        let mut words: Vec<u8> = words.flat_map(u64::to_le_bytes).collect();
        for tile in &kernel.tiles {
            let map = planned(tile).map(places[tile.arg as usize], params).ok()?;
            words.resize(words.len().next_multiple_of(MAP_ALIGN), 0);
            words.extend(TensorMap::from(&map).encode().unwrap());
        }
        for pass in [kernel].into_iter().chain(&kernel.then) {
            let grid = [0, 1, 2].map(|i| size(&pass.grid[i]) as u32);
            if grid.contains(&0) {
                continue;
            }
            let how = Launch {
                grid,
                block: pass.block,
                cluster: pass.cluster,
                shared: pass.shared,
                windows: windows.clone(),
                ..Launch::default()
            };
            let entry = self.module.kernel(&pass.entry);
            let entry = entry.expect("an entry of this name");
            if let Err(fault) = launch(&self.module, &mut memory, entry, &how, &words) {
                panic!("{}: {fault}\n{spec:?}", pass.entry);
            }
        }
        for (b, &at) in buffers.iter_mut().zip(&places) {
            memory.read(at, b).unwrap();
        }
        let mut code = [0; 4];
        memory.read(status, &mut code).unwrap();
        Some(i32::from_le_bytes(code))
    }
}
