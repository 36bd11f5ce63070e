//! Writes plan, code and weights as one artifact. Where each section lies follows
//! from the lengths alone, so threads compute, hash and write constants in any order
//! and the file's bytes are the same for any number of them.

use super::contents::{self, Bytes, Contents};
use super::gpu::GpuCode;
use super::{CompileError, Compiled, Options};
use kiln_codegen::CpuTarget;
use kiln_ir::{DType, Module};
use kiln_runtime::ArtifactWriter;
use kiln_runtime::plan::{GlobalData, Gpu, Object, Program};
use kiln_runtime::strings::Collector;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard};

/// Machine code for one CPU level: an ELF object for each of the plan's kernels.
pub struct Code {
    /// The level.
    pub target: CpuTarget,
    /// The objects, in the order of [`Lowered::kernels`](super::lower::Lowered).
    pub objects: Vec<Vec<u8>>,
}

/// Bytes of constants that threads compute at once; a larger one is alone.
const AT_ONCE: u64 = 128 << 20;

/// Writes plan, code and weights as one artifact.
pub fn assemble(
    compiled: &mut Compiled,
    code: &[Code],
    gpu: &[GpuCode],
    options: &Options,
    out: &Path,
) -> Result<(), CompileError> {
    let mut writer = ArtifactWriter::create(out)?;
    let program = &mut compiled.lowered.program;
    write_code(program, code, &mut writer)?;
    write_gpu(program, gpu, &mut writer)?;
    let contents = &compiled.lowered.contents;
    let mut strings = Collector::default();
    let mut jobs = vec![];
    for (global, contents) in program.globals.iter_mut().zip(contents) {
        let repeated = contents::repeated(&compiled.module, contents);
        global.data = match repeated {
            Some(element) if global.state => GlobalData::Splat(element),
            // A weight that repeats one number still needs its bytes to be read.
            _ => GlobalData::Section(writer.reserve(global.bytes)),
        };
        if let GlobalData::Section(section) = global.data {
            // Handles count strings in the order of the globals.
            if global.dtype == DType::Str {
                let handles = handles(&compiled.module, contents, &mut strings)?;
                // Strings that repeat are empty: handles of 0.
                let rest = vec![0; (global.bytes as usize).saturating_sub(handles.len())];
                writer.fill(section, [&handles[..], &rest[..]])?;
            } else {
                jobs.push((section, contents, global.bytes));
            }
        }
    }
    Constants {
        module: &compiled.module,
        writer: &writer,
        jobs: &jobs,
        next: AtomicUsize::new(0),
        memory: Mutex::new(Memory::default()),
        freed: Condvar::new(),
    }
    .write(options)?;
    program.strings = match strings.section() {
        [] => None,
        section => Some(writer.section(section)?),
    };
    program.meta = compiled.module.meta.clone();
    writer.finish(program)?;
    Ok(())
}

fn write_code(
    program: &mut Program,
    code: &[Code],
    writer: &mut ArtifactWriter,
) -> Result<(), CompileError> {
    program.objects.clear();
    // The runtime takes the first that it can run.
    let order = CpuTarget::all().map(|t| t.name);
    let rank = |c: &&Code| order.iter().position(|n| *n == c.target.name);
    let mut best_first: Vec<&Code> = code.iter().collect();
    best_first.sort_by_key(rank);
    for level in best_first {
        let mut sections = vec![];
        for object in &level.objects {
            sections.push(writer.section(object)?);
        }
        program.objects.push(Object {
            level: level.target.name.clone(),
            requires: level.target.requires.clone(),
            sections,
        });
    }
    Ok(())
}

/// The PTX of each target, the best first.
fn write_gpu(
    program: &mut Program,
    gpu: &[GpuCode],
    writer: &mut ArtifactWriter,
) -> Result<(), CompileError> {
    program.gpu.clear();
    let mut best_first: Vec<&GpuCode> = gpu.iter().collect();
    best_first.sort_by_key(|c| std::cmp::Reverse(c.target.capability));
    for code in best_first {
        program.gpu.push(Gpu {
            target: code.target.name.clone(),
            section: writer.section(code.text.as_bytes())?,
            kernels: code.kernels.clone(),
            tuned: vec![],
        });
    }
    Ok(())
}

/// The handles of a constant of strings.
fn handles(
    module: &Module,
    contents: &Contents,
    strings: &mut Collector,
) -> Result<Vec<u8>, CompileError> {
    match contents::contents(module, contents).map_err(CompileError::Constant)? {
        Bytes::Whole(t) => {
            let handles = t.as_strings().iter().map(|s| strings.handle(s));
            let handles: Vec<i64> = handles.collect::<Result<_, _>>()?;
            Ok(handles.iter().flat_map(|h| h.to_le_bytes()).collect())
        }
        Bytes::Repeated(_) => Ok(vec![]),
    }
}

/// The constants that threads write.
struct Constants<'a> {
    module: &'a Module,
    writer: &'a ArtifactWriter,
    /// Section, contents and bytes of each.
    jobs: &'a [(u32, &'a Contents, u64)],
    next: AtomicUsize,
    memory: Mutex<Memory>,
    freed: Condvar,
}

/// What the threads have in hand.
#[derive(Default)]
struct Memory {
    bytes: u64,
    done: usize,
    /// The first of the jobs that failed.
    failed: Option<(usize, CompileError)>,
}

impl Constants<'_> {
    fn write(self, options: &Options) -> Result<(), CompileError> {
        let total: u64 = self.jobs.iter().map(|j| j.2).sum();
        // Small models are written before a thread would have started.
        let threads = match total {
            0..=1_000_000 => 1,
            _ => options.workers.count.clamp(1, self.jobs.len().max(1)),
        };
        std::thread::scope(|s| {
            for _ in 1..threads {
                s.spawn(|| self.work(options));
            }
            self.work(options);
        });
        let memory = self.memory.into_inner().unwrap_or_else(|e| e.into_inner());
        match memory.failed {
            Some((_, error)) => Err(error),
            None => Ok(()),
        }
    }

    fn work(&self, options: &Options) {
        loop {
            let i = self.next.fetch_add(1, Ordering::Relaxed);
            let Some((section, contents, bytes)) = self.jobs.get(i) else {
                return;
            };
            let mut memory = self.locked();
            while memory.bytes > 0 && memory.bytes + bytes > AT_ONCE {
                memory = self.freed.wait(memory).unwrap_or_else(|e| e.into_inner());
            }
            if memory.failed.is_some() {
                return;
            }
            memory.bytes += bytes;
            drop(memory);
            let written = self.constant(*section, contents, *bytes);
            let mut memory = self.locked();
            memory.bytes -= bytes;
            memory.done += 1;
            (options.progress)("weights", memory.done, self.jobs.len());
            if let Err(e) = written
                && memory.failed.as_ref().is_none_or(|(first, _)| i < *first)
            {
                memory.failed = Some((i, e));
            }
            self.freed.notify_all();
        }
    }

    fn locked(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn constant(&self, section: u32, contents: &Contents, bytes: u64) -> Result<(), CompileError> {
        match contents::contents(self.module, contents).map_err(CompileError::Constant)? {
            Bytes::Whole(t) => self.writer.fill(section, [t.bytes()])?,
            Bytes::Repeated(element) => {
                let chunk = element.repeat((1 << 16) / element.len().max(1));
                let (whole, rest) = (bytes as usize / chunk.len(), bytes as usize % chunk.len());
                let chunks = std::iter::repeat_n(&chunk[..], whole).chain([&chunk[..rest]]);
                self.writer.fill(section, chunks)?;
            }
        }
        contents::release(self.module, contents);
        Ok(())
    }
}
