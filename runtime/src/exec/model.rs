//! A loaded artifact: its plan and its code for this machine.

use super::device::{DeviceMemory, predict};
use super::launch::max_scratch;
use super::layout::Layout;
use crate::artifact::Artifact;
use crate::device::Name;
use crate::elf::{Code, Kernel};
use crate::error::{Error, Result};
use crate::plan::{Place, Port, Program};
use crate::strings;
use kiln_ir::Binding;
use kiln_ir::strings::Pattern;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

/// A loaded artifact.
pub struct Model {
    pub(super) artifact: Artifact,
    code: Vec<Code>,
    pub(super) kernels: Vec<Kernel>,
    patterns: BTreeMap<String, Pattern>,
    level: String,
}

impl Model {
    /// Opens an artifact and loads the best code for this machine.
    pub fn load(path: &Path) -> Result<Arc<Model>> {
        Model::from_artifact(Artifact::open(path)?)
    }

    /// Opens an artifact to run on a device; its machine code is loaded if that is the
    /// CPU.
    pub fn load_for(path: &Path, device: Name) -> Result<Arc<Model>> {
        let artifact = Artifact::open(path)?;
        match device {
            Name::Cpu => Model::from_artifact(artifact),
            Name::Cuda(_) | Name::Sim => Ok(Model::without_code(artifact)),
        }
    }

    /// An opened artifact without machine code: for devices, and to look into it.
    pub fn without_code(artifact: Artifact) -> Arc<Model> {
        Arc::new(Model {
            patterns: strings::patterns(&artifact.program.entries),
            artifact,
            code: vec![],
            kernels: vec![],
            level: String::new(),
        })
    }

    /// K0704 if the model was loaded without code for the CPU.
    pub(super) fn has_code(&self) -> Result<()> {
        if self.kernels.len() == self.program().kernels.len() {
            return Ok(());
        }
        let message = "the model was loaded without code for the CPU";
        Err(Error::run("K0704", message).help("load it with `Model::load`"))
    }

    /// Loads the best code of an opened artifact for this machine.
    pub fn from_artifact(artifact: Artifact) -> Result<Arc<Model>> {
        let object = artifact
            .program
            .objects
            .iter()
            .find(|o| o.requires.iter().all(|f| machine_has(f)));
        let Some(object) = object else {
            let program = &artifact.program;
            let cpu = program.objects.iter().map(|o| &o.level[..]);
            let gpu = program.gpu.iter().map(|g| &g.target[..]);
            let levels: Vec<&str> = cpu.chain(gpu).collect();
            return Err(Error::run(
                "K0704",
                format!(
                    "the artifact has code for {}, and this machine runs none of it",
                    levels.join(", ")
                ),
            )
            .help("compile with --target x86-64-v3, or run on a device with --device"));
        };
        let code: Vec<Code> = object
            .sections
            .iter()
            .map(|&s| Code::load(artifact.section(s)))
            .collect::<Result<_>>()?;
        let kernels = artifact
            .program
            .kernels
            .iter()
            .map(|name| {
                code.iter().find_map(|c| c.kernel(name)).ok_or_else(|| {
                    Error::input(
                        "K0705",
                        format!("the artifact's machine code lacks the kernel `{name}`"),
                    )
                })
            })
            .collect::<Result<_>>()?;
        let level = object.level.clone();
        Ok(Arc::new(Model {
            patterns: strings::patterns(&artifact.program.entries),
            artifact,
            code,
            kernels,
            level,
        }))
    }

    /// The plan.
    pub fn program(&self) -> &Program {
        &self.artifact.program
    }

    /// A compiled expression of the plan.
    pub(crate) fn pattern(&self, text: &str) -> Option<&Pattern> {
        self.patterns.get(text)
    }

    /// The CPU level in use.
    pub fn level(&self) -> &str {
        &self.level
    }

    /// Bytes of machine code.
    pub fn code_bytes(&self) -> usize {
        self.code.iter().map(Code::len).sum()
    }

    /// The entry of this name, or the only one, or `forward`.
    pub fn entry(&self, name: Option<&str>) -> Result<usize> {
        let entries = &self.program().entries;
        let found = match name {
            Some(n) => entries.iter().position(|e| e.name == n),
            None if entries.len() == 1 => Some(0),
            None => entries.iter().position(|e| e.name == "forward"),
        };
        found.ok_or_else(|| {
            let names: Vec<&str> = entries.iter().map(|e| &e.name[..]).collect();
            Error::input("K0710", format!("no entry `{}`", name.unwrap_or("forward")))
                .help(format!("the artifact has {}", names.join(", ")))
        })
    }

    /// The number of a GPU target's code, of the named one or the first; K0804 if it is
    /// not there.
    pub fn gpu_code(&self, target: Option<&str>) -> Result<usize> {
        let gpu = &self.program().gpu;
        let found = match target {
            Some(t) => gpu.iter().position(|g| g.target == t),
            None => (!gpu.is_empty()).then_some(0),
        };
        found.ok_or_else(|| {
            let names: Vec<&str> = gpu.iter().map(|g| &g.target[..]).collect();
            let have = match names.is_empty() {
                true => "has no code for a GPU".to_string(),
                false => format!("has code for {}", names.join(", ")),
            };
            Error::run("K0804", format!("the artifact {have}"))
                .help("compile with --target sm_80, sm_89 or sm_90a")
        })
    }

    /// What running an entry under a binding takes; with the number of a GPU target's
    /// code, on a device that runs that.
    pub fn predict_memory(
        &self,
        entry: usize,
        binding: &Binding,
        threads: usize,
        gpu: Option<usize>,
    ) -> Result<MemoryReport> {
        let e = &self.program().entries[entry];
        let on_device = gpu
            .map(|code| predict(self, entry, binding, code))
            .transpose()?;
        let spaces = on_device.as_ref().map(|d| &d.0);
        let here = |b: u32| spaces.is_none_or(|s| s.space(b).host);
        let layout = Layout::of(e, binding, &here)?;
        let sum = |ports: &[Port]| -> usize {
            total(
                ports
                    .iter()
                    .map(|p| layout.sizes[p.buffer as usize].unwrap_or(0)),
            )
        };
        let mut used = vec![false; self.program().globals.len()];
        for b in &e.buffers {
            if let Place::Global(g) = b.place {
                used[g as usize] = true;
            }
        }
        let bytes = |state: bool| -> usize {
            let globals = self.program().globals.iter().zip(&used);
            let globals = globals.filter(|(g, used)| **used && g.state == state);
            total(globals.map(|(g, _)| g.bytes as usize))
        };
        let scratch = match gpu {
            Some(_) => 0,
            None => max_scratch(&e.steps, binding).saturating_mul(threads),
        };
        let mut report = MemoryReport {
            arena: layout.arena,
            inputs: sum(&e.inputs),
            outputs: sum(&e.outputs),
            weights: bytes(false),
            state: bytes(true),
            code: self.code_bytes(),
            scratch,
            file: self.artifact.len(),
            total: 0,
            device: on_device.map(|d| d.1),
        };
        // The file is mapped and read whole when it is opened (every section is
        // hashed), so weights count through it.
        report.total = total([
            report.arena,
            report.inputs,
            report.outputs,
            report.state,
            report.code,
            report.scratch,
            report.file,
        ]);
        Ok(report)
    }
}

/// A sum that stays at the largest number: plans may name any sizes.
fn total(bytes: impl IntoIterator<Item = usize>) -> usize {
    bytes.into_iter().fold(0, usize::saturating_add)
}

/// Bytes that a run takes, by purpose.
#[derive(Clone, Copy, Debug, Default, serde::Serialize)]
pub struct MemoryReport {
    /// Temporaries.
    pub arena: usize,
    /// The caller's inputs.
    pub inputs: usize,
    /// Outputs.
    pub outputs: usize,
    /// Weights that the entry reads (part of `file`).
    pub weights: usize,
    /// State.
    pub state: usize,
    /// Machine code.
    pub code: usize,
    /// Scratch of all threads.
    pub scratch: usize,
    /// The mapped artifact.
    pub file: usize,
    /// All of it.
    pub total: usize,
    /// Bytes on the device, besides; none on the CPU.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device: Option<DeviceMemory>,
}

/// Whether this machine has a CPU feature.
fn machine_has(feature: &str) -> bool {
    macro_rules! features {
        ($($name:tt),*) => { match feature { $($name => std::arch::is_x86_feature_detected!($name),)* _ => false } };
    }
    features!(
        "avx2",
        "fma",
        "bmi1",
        "bmi2",
        "f16c",
        "lzcnt",
        "movbe",
        "avx512f",
        "avx512bw",
        "avx512cd",
        "avx512dq",
        "avx512vl",
        "avx512vnni",
        "avx512bf16",
        "avxvnni"
    )
}
