//! Kernels to machine code: a cache on disk, and worker processes that compile
//! what is not in it. A worker is this executable again, so that an abort inside
//! LLVM ends the worker and becomes an error that names the kernel.

use kiln_codegen::{CodegenError, CpuTarget};
use kiln_kernels::{KernelSpec, compile_object};
use serde::{Deserialize, Serialize};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// The hidden command of worker processes.
pub const WORKER: &str = "__compile-kernels";

/// How kernels are compiled.
#[derive(Clone, Debug, Default)]
pub struct Workers {
    /// The executable to start; none: compile in this process.
    pub executable: Option<PathBuf>,
    /// How many at once.
    pub count: usize,
    /// Where compiled kernels are kept; none: nowhere.
    pub cache: Option<PathBuf>,
}

#[derive(Serialize, Deserialize)]
struct Job {
    target: CpuTarget,
    kernels: Vec<(String, KernelSpec)>,
}

/// One ELF object a kernel, in order.
pub fn compile(
    kernels: &[(String, KernelSpec)],
    target: &CpuTarget,
    workers: &Workers,
    progress: super::Progress,
) -> Result<Vec<Vec<u8>>, CodegenError> {
    let paths: Vec<Option<PathBuf>> = match &workers.cache {
        Some(dir) => kernels
            .iter()
            .map(|k| Ok(Some(dir.join(cache_name(k, target)?))))
            .collect::<Result<_, CodegenError>>()?,
        None => vec![None; kernels.len()],
    };
    let mut objects: Vec<Option<Vec<u8>>> = paths.iter().map(|p| cached(p.as_deref()?)).collect();
    let missing: Vec<usize> = (0..kernels.len())
        .filter(|&i| objects[i].is_none())
        .collect();
    let fresh = match &workers.executable {
        Some(exe) => in_workers(exe, workers.count, kernels, &missing, target, progress)?,
        None => missing
            .iter()
            .enumerate()
            .map(|(done, &i)| {
                progress("kernels", done + 1, missing.len());
                compile_object(&kernels[i..=i], target)
            })
            .collect::<Result<_, _>>()?,
    };
    for (&i, object) in missing.iter().zip(fresh) {
        if let Some(path) = &paths[i] {
            keep(path, &object);
        }
        objects[i] = Some(object);
    }
    Ok(objects.into_iter().flatten().collect())
}

/// The cache's name for a kernel: the hash of the very text that is compiled, and
/// of what compiles it. So a change to an emitter never meets old code.
fn cache_name(kernel: &(String, KernelSpec), target: &CpuTarget) -> Result<String, CodegenError> {
    let text = kiln_kernels::dump(
        std::slice::from_ref(kernel),
        target,
        kiln_codegen::Dump::Mlir,
    )?;
    let mut hash = xxhash_rust::xxh3::Xxh3::new();
    for part in [
        &text,
        &target.cpu,
        &target.features,
        kiln_codegen::object::COMPILER,
    ] {
        hash.update(part.as_bytes());
        hash.update(&[0]);
    }
    Ok(format!("{}-{:032x}.o", kernel.0, hash.digest128()))
}

/// A cached object, if it is whole: the file ends with its own hash.
fn cached(path: &Path) -> Option<Vec<u8>> {
    let mut bytes = std::fs::read(path).ok()?;
    let at = bytes.len().checked_sub(8)?;
    let tail = bytes.split_off(at);
    (xxhash_rust::xxh3::xxh3_64(&bytes).to_le_bytes()[..] == tail[..]).then_some(bytes)
}

/// Keeps an object; a cache that cannot be written is no error.
fn keep(path: &Path, object: &[u8]) {
    // Two threads may make the same kernel at once.
    let (process, thread) = (std::process::id(), std::thread::current().id());
    let temporary = path.with_extension(format!("{process}-{thread:?}.tmp"));
    let mut bytes = object.to_vec();
    bytes.extend(xxhash_rust::xxh3::xxh3_64(object).to_le_bytes());
    let written = path
        .parent()
        .is_some_and(|d| std::fs::create_dir_all(d).is_ok())
        && std::fs::write(&temporary, bytes).is_ok()
        && std::fs::rename(&temporary, path).is_ok();
    if !written {
        let _ = std::fs::remove_file(&temporary);
    }
}

fn in_workers(
    exe: &Path,
    count: usize,
    kernels: &[(String, KernelSpec)],
    missing: &[usize],
    target: &CpuTarget,
    progress: super::Progress,
) -> Result<Vec<Vec<u8>>, CodegenError> {
    if missing.is_empty() {
        return Ok(vec![]);
    }
    // Dealt out like cards: neighbours are of one kind and cost about the same.
    let hands = count.clamp(1, missing.len());
    let deal =
        |h: usize| -> Vec<usize> { missing.iter().copied().skip(h).step_by(hands).collect() };
    let mut children = vec![];
    for h in 0..hands {
        children.push((deal(h), start(exe, kernels, &deal(h), target)?));
    }
    let mut by_kernel: Vec<Option<Vec<u8>>> = vec![None; kernels.len()];
    for (hand, child) in children {
        progress("kernels", by_kernel.iter().flatten().count(), missing.len());
        match finish(child, hand.len()) {
            Ok(objects) => hand
                .iter()
                .zip(objects)
                .for_each(|(&i, o)| by_kernel[i] = Some(o)),
            // One of them brought the worker down: which?
            Err(failure) => {
                for &i in &hand {
                    let child = start(exe, kernels, &[i], target)?;
                    match finish(child, 1) {
                        Ok(mut one) => by_kernel[i] = one.pop(),
                        Err(e) => return Err(blame(&kernels[i], target, &e)),
                    }
                }
                if hand.iter().any(|&i| by_kernel[i].is_none()) {
                    return Err(CodegenError {
                        stage: "a worker process",
                        message: failure,
                    });
                }
            }
        }
    }
    progress("kernels", missing.len(), missing.len());
    Ok(missing
        .iter()
        .filter_map(|&i| by_kernel[i].take())
        .collect())
}

/// The error for a kernel that cannot be compiled, with a file that shows it.
fn blame(kernel: &(String, KernelSpec), target: &CpuTarget, failure: &str) -> CodegenError {
    let path = std::env::temp_dir().join(format!("{}.json", kernel.0));
    let job = Job {
        target: target.clone(),
        kernels: vec![kernel.clone()],
    };
    let saved = serde_json::to_vec(&job).is_ok_and(|bytes| std::fs::write(&path, bytes).is_ok());
    let note = match saved {
        true => format!(
            "; the reproducer is {0} (kiln {WORKER} < {0})",
            path.display()
        ),
        false => String::new(),
    };
    CodegenError {
        stage: "a worker process",
        message: format!("kernel {} on {}: {failure}{note}", kernel.0, target.name),
    }
}

fn start(
    exe: &Path,
    kernels: &[(String, KernelSpec)],
    which: &[usize],
    target: &CpuTarget,
) -> Result<Child, CodegenError> {
    let fail = |m: String| CodegenError {
        stage: "a worker process",
        message: m,
    };
    let job = Job {
        target: target.clone(),
        kernels: which.iter().map(|&i| kernels[i].clone()).collect(),
    };
    let bytes = serde_json::to_vec(&job).map_err(|e| fail(e.to_string()))?;
    let mut child = Command::new(exe)
        .arg(WORKER)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|e| fail(format!("cannot start {}: {e}", exe.display())))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A worker that is gone already is found out when it is waited for.
        let _ = stdin.write_all(&bytes);
    }
    Ok(child)
}

fn finish(child: Child, count: usize) -> Result<Vec<Vec<u8>>, String> {
    let output = child.wait_with_output().map_err(|e| e.to_string())?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        let last = text
            .lines()
            .find(|l| !l.trim().is_empty())
            .unwrap_or("no message");
        return Err(format!("{}: {last}", output.status));
    }
    let mut objects = vec![];
    let mut rest = &output.stdout[..];
    while rest.len() >= 8 {
        let (head, tail) = rest.split_at(8);
        let mut size = [0; 8];
        size.copy_from_slice(head);
        let size = usize::try_from(u64::from_le_bytes(size))
            .ok()
            .filter(|&n| n <= tail.len());
        let Some(size) = size else {
            return Err("the answer is cut off".into());
        };
        objects.push(tail[..size].to_vec());
        rest = &tail[size..];
    }
    if objects.len() == count {
        Ok(objects)
    } else {
        Err(format!("{} objects for {count} kernels", objects.len()))
    }
}

/// A worker's whole life: a job on stdin, objects on stdout.
pub fn worker(abort_on: Option<&str>) -> Result<(), String> {
    let mut text = vec![];
    std::io::stdin()
        .read_to_end(&mut text)
        .map_err(|e| e.to_string())?;
    let job: Job = serde_json::from_slice(&text).map_err(|e| e.to_string())?;
    let mut out = std::io::stdout().lock();
    for kernel in &job.kernels {
        if abort_on.is_some_and(|part| kernel.0.contains(part)) {
            // What LLVM's report_fatal_error does to the process.
            std::process::abort();
        }
        let object =
            compile_object(std::slice::from_ref(kernel), &job.target).map_err(|e| e.to_string())?;
        out.write_all(&(object.len() as u64).to_le_bytes())
            .map_err(|e| e.to_string())?;
        out.write_all(&object).map_err(|e| e.to_string())?;
    }
    out.flush().map_err(|e| e.to_string())
}
