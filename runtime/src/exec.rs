//! The executor: a [`Model`] is an opened artifact with its code loaded, shared
//! and immutable; a [`Session`] runs it and owns state, arena and threads.

use crate::artifact::Artifact;
use crate::elf::{Code, Kernel};
use crate::error::{Error, Result};
use crate::input::{Input, StringsRef};
use crate::memory::{Block, Request, assign};
use crate::plan::{Entry, Global, GlobalData, Guard, Launch, Loop, Place, Port, Program, Step};
use crate::pool::Pool;
use crate::profile::{Facts, Profile, Watch};
use crate::strings::{self, Table};
use kiln_ir::strings::Pattern;
use kiln_ir::tensor::read_i64;
use kiln_ir::{Binding, DType, Dim, Tensor};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Largest size of one buffer and of the arena: beyond it, a size is a mistake.
const MAX_BYTES: u64 = 1 << 40;
/// How many bindings a session remembers.
const REMEMBERED: usize = 16;
/// Work below this (floating-point operations plus bytes) is done by one thread.
const SERIAL_WORK: i64 = 60_000;

/// A loaded artifact.
pub struct Model {
    artifact: Artifact,
    code: Vec<Code>,
    kernels: Vec<Kernel>,
    patterns: BTreeMap<String, Pattern>,
    level: String,
}

impl Model {
    /// Opens an artifact and loads the best code for this machine.
    pub fn load(path: &Path) -> Result<Arc<Model>> {
        Model::from_artifact(Artifact::open(path)?)
    }

    /// Loads the best code of an opened artifact for this machine.
    pub fn from_artifact(artifact: Artifact) -> Result<Arc<Model>> {
        let object = artifact
            .program
            .objects
            .iter()
            .find(|o| o.requires.iter().all(|f| machine_has(f)));
        let Some(object) = object else {
            let levels: Vec<&str> = artifact
                .program
                .objects
                .iter()
                .map(|o| &o.level[..])
                .collect();
            return Err(Error::run(
                "K0704",
                format!(
                    "the artifact has code for {}, and this machine runs none of it",
                    levels.join(", ")
                ),
            )
            .help("compile with --target x86-64-v3"));
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

    /// What running an entry under a binding takes.
    pub fn predict_memory(
        &self,
        entry: usize,
        binding: &Binding,
        threads: usize,
    ) -> Result<MemoryReport> {
        let e = &self.program().entries[entry];
        let layout = Layout::of(e, binding)?;
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
        let scratch = max_scratch(&e.steps, binding)?.saturating_mul(threads);
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
}

/// A tensor lent by the caller.
#[derive(Clone, Copy, Debug)]
pub struct TensorRef<'a> {
    /// Element type.
    pub dtype: DType,
    /// Extents.
    pub shape: &'a [usize],
    /// Elements, row-major, little-endian, at least aligned to the element.
    pub bytes: &'a [u8],
}

/// Sizes and places of an entry's buffers under a binding.
struct Layout {
    /// `None`: depends on a size that is not known yet.
    sizes: Vec<Option<usize>>,
    offsets: Vec<usize>,
    arena: usize,
}

impl Layout {
    fn of(entry: &Entry, binding: &Binding) -> Result<Layout> {
        let mut sizes = Vec::with_capacity(entry.buffers.len());
        for b in &entry.buffers {
            sizes.push(match b.bytes.eval(binding) {
                Ok(n) if (0..=MAX_BYTES as i64).contains(&n) => Some(n as usize),
                Ok(n) => return Err(too_large(&b.bytes, n as i128)),
                Err(kiln_ir::DimError::Unbound(_)) => None,
                Err(e) => {
                    return Err(Error::input(
                        "K0714",
                        format!("a buffer's size cannot be computed: {e}"),
                    ));
                }
            });
        }
        let mut requests = vec![];
        let mut which = vec![];
        for (i, b) in entry.buffers.iter().enumerate() {
            if let (Place::Arena, Some(size)) = (&b.place, sizes[i]) {
                requests.push(Request {
                    size,
                    first: b.live.0,
                    last: b.live.1,
                });
                which.push(i);
            }
        }
        let (places, arena) = assign(&requests);
        if arena as u64 > MAX_BYTES {
            return Err(too_large(&Dim::from(arena), arena as i128));
        }
        let mut offsets = vec![0; entry.buffers.len()];
        which.iter().zip(places).for_each(|(&i, o)| offsets[i] = o);
        Ok(Layout {
            sizes,
            offsets,
            arena,
        })
    }
}

fn too_large(dim: &Dim, n: i128) -> Error {
    Error::input(
        "K0714",
        format!("a buffer of {dim} = {n} bytes is beyond what can be run"),
    )
    .help("give smaller inputs")
}

fn max_scratch(steps: &[Step], binding: &Binding) -> Result<usize> {
    let mut most = 0;
    for s in steps {
        most = most.max(match s {
            Step::Launch(l) => {
                let sizes = l
                    .variants
                    .iter()
                    .map(|v| v.scratch.eval(binding).unwrap_or(0).max(0) as usize);
                sizes.max().unwrap_or(0)
            }
            Step::If {
                then, otherwise, ..
            } => max_scratch(then, binding)?.max(max_scratch(otherwise, binding)?),
            Step::Loop(l) => max_scratch(&l.body, binding)?,
            Step::WriteDims { .. }
            | Step::Copy { .. }
            | Step::BindDim { .. }
            | Step::SetDims { .. }
            | Step::Repack { .. }
            | Step::NonZero { .. }
            | Step::TopK { .. }
            | Step::Strings { .. }
            | Step::SplitStrings { .. } => 0,
        });
    }
    Ok(most.max(64))
}

/// A launch with its sizes evaluated.
struct Ready {
    kernel: u32,
    params: Vec<i64>,
    tiles: i64,
    scratch: usize,
    offsets: Vec<i64>,
    work: i64,
    flops: i64,
    bytes: i64,
}

/// A remembered binding.
struct Bound {
    key: Vec<i64>,
    layout: Layout,
    binding: Binding,
    /// By position among all launches in program order; `None`: not known before
    /// it runs.
    ready: Vec<Option<Ready>>,
}

/// Runs one model. Sessions are independent of each other.
pub struct Session {
    model: Arc<Model>,
    pool: Pool,
    arena: Block,
    scratch: Vec<Block>,
    state: Vec<Option<Block>>,
    bounds: Vec<Vec<Bound>>,
    outputs: Vec<Vec<Block>>,
    shapes: Vec<Vec<usize>>,
    last: usize,
    cancel: Arc<AtomicBool>,
    profile: Option<Profile>,
    strings: Table,
    /// Of each output of the last run that is of strings.
    texts: Vec<Vec<String>>,
}

/// What the steps of one run share.
pub(crate) struct Run<'a> {
    pub(crate) model: &'a Model,
    entry: &'a Entry,
    pub(crate) pool: &'a mut Pool,
    scratch: &'a mut Vec<Block>,
    base: Vec<*mut u8>,
    pub(crate) sizes: Vec<Option<usize>>,
    dynamic: Vec<Option<Block>>,
    pub(crate) binding: Binding,
    ready: &'a [Option<Ready>],
    pub(crate) cancel: &'a AtomicBool,
    pub(crate) profile: Option<&'a mut Profile>,
    pub(crate) strings: &'a mut Table,
}

impl Session {
    /// A session with its own threads and fresh state.
    pub fn new(model: Arc<Model>, threads: usize) -> Result<Session> {
        let program = model.program();
        let mut state = vec![];
        for g in &program.globals {
            state.push(if g.state {
                Some(initial(&model, g)?)
            } else {
                None
            });
        }
        let entries = program.entries.len();
        Ok(Session {
            pool: Pool::new(threads),
            arena: memory(0)?,
            scratch: vec![],
            state,
            bounds: (0..entries).map(|_| vec![]).collect(),
            outputs: (0..entries).map(|_| vec![]).collect(),
            shapes: vec![],
            last: 0,
            cancel: Arc::new(AtomicBool::new(false)),
            profile: None,
            strings: Table::new(model.artifact.strings.clone()),
            texts: vec![],
            model,
        })
    }

    /// Set it to stop the run at its next step.
    pub fn cancel_flag(&self) -> Arc<AtomicBool> {
        self.cancel.clone()
    }

    /// Starts (or stops) noting what each step of a run takes.
    pub fn set_profiling(&mut self, on: bool) {
        self.profile = on.then(Profile::new);
    }

    /// The profile of the last run, if profiling.
    pub fn profile(&self) -> Option<&Profile> {
        self.profile.as_ref()
    }

    /// Takes the last run's profile and stops profiling.
    pub fn take_profile(&mut self) -> Option<Profile> {
        self.profile.take()
    }

    /// The bytes of a state value.
    pub fn state(&self, name: &str) -> Option<&[u8]> {
        let i = self
            .model
            .program()
            .globals
            .iter()
            .position(|g| g.name == name && g.state)?;
        self.state[i].as_ref().map(Block::bytes)
    }

    /// Overwrites a state value.
    pub fn set_state(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        let found = self
            .model
            .program()
            .globals
            .iter()
            .position(|g| g.name == name && g.state);
        let block = found.and_then(|i| self.state[i].as_mut());
        match block {
            Some(b) if b.len() == bytes.len() => b.bytes_mut().copy_from_slice(bytes),
            Some(b) => {
                return Err(Error::input(
                    "K0712",
                    format!("@{name} has {} bytes, not {}", b.len(), bytes.len()),
                ));
            }
            None => return Err(Error::input("K0711", format!("there is no state @{name}"))),
        }
        Ok(())
    }

    /// Gives every state value its initial contents again.
    pub fn reset(&mut self) -> Result<()> {
        for (g, slot) in self.model.program().globals.iter().zip(&mut self.state) {
            if g.state {
                *slot = Some(initial(&self.model, g)?);
            }
        }
        Ok(())
    }

    /// Runs an entry on numbers. Outputs are read with [`Session::output`],
    /// [`Session::strings`] or [`Session::tensor`] until the next run.
    pub fn run(&mut self, entry: usize, inputs: &[(&str, TensorRef)]) -> Result<()> {
        let inputs: Vec<(&str, Input)> = inputs.iter().map(|&(n, t)| (n, t.into())).collect();
        self.run_with(entry, &inputs)
    }

    /// Runs an entry on numbers and strings.
    pub fn run_with(&mut self, entry: usize, inputs: &[(&str, Input)]) -> Result<()> {
        self.texts.clear();
        let done = self.run_steps(entry, inputs);
        // Those of a run that failed as well.
        self.strings.clear();
        done
    }

    fn run_steps(&mut self, entry: usize, inputs: &[(&str, Input)]) -> Result<()> {
        let model = self.model.clone();
        let e = model
            .program()
            .entries
            .get(entry)
            .ok_or_else(|| Error::input("K0710", "no such entry"))?;
        let (ordered, binding) = bind(e, inputs)?;
        let key: Vec<i64> = binding.values().copied().collect();
        let at = match self.bounds[entry].iter().position(|b| b.key == key) {
            Some(at) => at,
            None => {
                check_guards(&e.guards, &binding)?;
                let layout = Layout::of(e, &binding)?;
                let mut ready = vec![];
                prepare(&e.steps, &binding, &mut ready)?;
                if self.bounds[entry].len() == REMEMBERED {
                    self.bounds[entry].remove(0);
                }
                self.bounds[entry].push(Bound {
                    key,
                    layout,
                    binding,
                    ready,
                });
                self.bounds[entry].len() - 1
            }
        };
        let bound = &self.bounds[entry][at];
        if self.arena.len() < bound.layout.arena {
            self.arena = memory(bound.layout.arena)?;
        }
        let outputs = &mut self.outputs[entry];
        outputs.truncate(e.outputs.len());
        for (i, p) in e.outputs.iter().enumerate() {
            let size = bound.layout.sizes[p.buffer as usize].unwrap_or(0);
            match outputs.get_mut(i) {
                Some(block) if block.len() == size => {}
                Some(block) => *block = memory(size)?,
                None => outputs.push(memory(size)?),
            }
        }
        let scratch = max_scratch(&e.steps, &bound.binding)?;
        if self.scratch.len() < self.pool.threads()
            || self.scratch.iter().any(|s| s.len() < scratch)
        {
            self.scratch = (0..self.pool.threads())
                .map(|_| memory(scratch))
                .collect::<Result<_>>()?;
        }
        let mut base = vec![std::ptr::null_mut(); e.buffers.len()];
        for (i, b) in e.buffers.iter().enumerate() {
            base[i] = match &b.place {
                // SAFETY: the offset lies inside the arena by `assign`.
                Place::Arena => match bound.layout.sizes[i] {
                    Some(_) => unsafe { self.arena.ptr().add(bound.layout.offsets[i]) },
                    None => std::ptr::null_mut(),
                },
                Place::Global(g) => {
                    let global = &model.program().globals[*g as usize];
                    match (&self.state[*g as usize], &global.data) {
                        (Some(block), _) => block.ptr(),
                        (None, GlobalData::Section(s)) => {
                            model.artifact.section(*s).as_ptr().cast_mut()
                        }
                        (None, GlobalData::Splat(_)) => std::ptr::null_mut(),
                    }
                }
                Place::View { of, offset } => {
                    let from = base[*of as usize];
                    match offset.eval(&bound.binding) {
                        // SAFETY: lowering makes views inside their buffer.
                        Ok(o) if !from.is_null() => unsafe { from.offset(o as isize) },
                        _ => std::ptr::null_mut(),
                    }
                }
                Place::Input | Place::Output => std::ptr::null_mut(),
            };
        }
        let mut handles = vec![];
        for (p, t) in e.inputs.iter().zip(&ordered) {
            base[p.buffer as usize] = match t {
                Input::Numbers(t) => t.bytes.as_ptr().cast_mut(),
                Input::Strings(t) => {
                    handles.push(handles_of(t.strings, &mut self.strings)?);
                    handles.last().map_or(std::ptr::null_mut(), Block::ptr)
                }
            };
        }
        for (p, block) in e.outputs.iter().zip(outputs.iter()) {
            if matches!(e.buffers[p.buffer as usize].place, Place::Output)
                && bound.layout.sizes[p.buffer as usize].is_some()
            {
                base[p.buffer as usize] = block.ptr();
            }
        }
        // Views of inputs and outputs have their base only now.
        for (i, b) in e.buffers.iter().enumerate() {
            if let (Place::View { of, offset }, true) = (&b.place, base[i].is_null()) {
                let from = base[*of as usize];
                if let (Ok(o), false) = (offset.eval(&bound.binding), from.is_null()) {
                    // SAFETY: as above.
                    base[i] = unsafe { from.offset(o as isize) };
                }
            }
        }
        self.cancel.store(false, Ordering::Relaxed);
        if let Some(p) = &mut self.profile {
            *p = Profile::new();
        }
        let mut run = Run {
            model: &model,
            entry: e,
            pool: &mut self.pool,
            scratch: &mut self.scratch,
            base,
            sizes: bound.layout.sizes.clone(),
            dynamic: (0..e.buffers.len()).map(|_| None).collect(),
            binding: bound.binding.clone(),
            ready: &bound.ready,
            cancel: &self.cancel,
            profile: self.profile.as_mut(),
            strings: &mut self.strings,
        };
        let mut launch = 0;
        run.steps(&e.steps, &mut launch)?;
        // Outputs whose size came up during the run, and those that are other
        // buffers (an input or state returned as it is).
        self.shapes.clear();
        for (i, p) in e.outputs.iter().enumerate() {
            let shape: Vec<usize> = (p.dims.iter())
                .map(|d| {
                    d.eval(&run.binding)
                        .ok()
                        .and_then(|v| usize::try_from(v).ok())
                })
                .collect::<Option<_>>()
                .ok_or_else(|| {
                    Error::run(
                        "K0720",
                        format!("the size of output `{}` never came up", p.name),
                    )
                })?;
            let count = shape.iter().product::<usize>();
            let bytes = p.dtype.bytes_for(count).unwrap_or(0);
            if outputs[i].len() != bytes {
                outputs[i] = memory(bytes)?;
            }
            let from = run.pointer(p.buffer)?;
            if from != outputs[i].ptr() && bytes > 0 {
                // SAFETY: the buffer holds the output's bytes.
                unsafe { std::ptr::copy_nonoverlapping(from, outputs[i].ptr(), bytes) };
            }
            let handles = outputs[i].bytes().chunks_exact(8);
            let handles = handles.filter(|_| p.dtype == DType::Str);
            let text = |h: &[u8]| Ok(run.strings.text(read_i64(DType::I64, h, 0))?.to_string());
            self.texts.push(handles.map(text).collect::<Result<_>>()?);
            self.shapes.push(shape);
        }
        self.last = entry;
        Ok(())
    }

    fn output_port(&self, index: usize) -> Option<&Port> {
        let entry = self.model.program().entries.get(self.last)?;
        entry.outputs.get(index)
    }

    /// Output `index` of the last run; none for one of strings.
    pub fn output(&self, index: usize) -> Option<TensorRef<'_>> {
        let port = self.output_port(index).filter(|p| p.dtype != DType::Str)?;
        let block = self.outputs[self.last].get(index)?;
        Some(TensorRef {
            dtype: port.dtype,
            shape: self.shapes.get(index)?,
            bytes: block.bytes(),
        })
    }

    /// Output `index` of the last run; none for one of numbers.
    pub fn strings(&self, index: usize) -> Option<StringsRef<'_>> {
        self.output_port(index).filter(|p| p.dtype == DType::Str)?;
        Some(StringsRef {
            shape: self.shapes.get(index)?,
            strings: self.texts.get(index)?,
        })
    }

    /// A copy of output `index` of the last run, whatever it is of.
    pub fn tensor(&self, index: usize) -> Option<Tensor> {
        if let Some(t) = self.strings(index) {
            return Tensor::strings(t.shape, t.strings.to_vec()).ok();
        }
        let t = self.output(index)?;
        Tensor::new(t.dtype, t.shape, t.bytes.to_vec()).ok()
    }

    /// Strings that the session holds besides the model's constants: none between
    /// runs, however many there were.
    pub fn live_strings(&self) -> usize {
        self.strings.len()
    }

    /// The model.
    pub fn model(&self) -> &Arc<Model> {
        &self.model
    }
}

/// The handles of an input's strings.
fn handles_of(strings: &[String], table: &mut Table) -> Result<Block> {
    let mut block = memory(strings.len().saturating_mul(8))?;
    for (s, to) in strings.iter().zip(block.bytes_mut().chunks_exact_mut(8)) {
        to.copy_from_slice(&table.handle(s)?.to_le_bytes());
    }
    Ok(block)
}

fn memory(bytes: usize) -> Result<Block> {
    Block::new(bytes).ok_or_else(|| Error::run("K0715", format!("no memory for {bytes} bytes")))
}

fn initial(model: &Model, g: &Global) -> Result<Block> {
    let mut block = memory(g.bytes as usize)?;
    match &g.data {
        GlobalData::Section(s) => {
            let bytes = model.artifact.section(*s);
            if bytes.len() != block.len() {
                return Err(Error::input(
                    "K0703",
                    format!("@{} has {} bytes, not {}", g.name, bytes.len(), block.len()),
                ));
            }
            block.bytes_mut().copy_from_slice(bytes);
        }
        GlobalData::Splat(element) => {
            for chunk in block.bytes_mut().chunks_exact_mut(element.len()) {
                chunk.copy_from_slice(element);
            }
        }
    }
    Ok(block)
}

/// Orders the inputs as the entry wants them and binds its sizes.
fn bind<'a>(e: &Entry, inputs: &[(&str, Input<'a>)]) -> Result<(Vec<Input<'a>>, Binding)> {
    let names = || {
        e.inputs
            .iter()
            .map(|p| format!("`{}`", p.name))
            .collect::<Vec<_>>()
            .join(", ")
    };
    for (name, _) in inputs {
        if !e.inputs.iter().any(|p| p.name == *name) {
            return Err(
                Error::input("K0711", format!("@{} has no input `{name}`", e.name))
                    .help(format!("its inputs are {}", names())),
            );
        }
    }
    let mut binding = Binding::new();
    let mut ordered = vec![];
    for p in &e.inputs {
        let Some((_, t)) = inputs.iter().find(|(n, _)| *n == p.name) else {
            return Err(
                Error::input("K0711", format!("the input `{}` is missing", p.name)).help(format!(
                    "@{} takes {}",
                    e.name,
                    names()
                )),
            );
        };
        let (dtype, shape) = (t.dtype(), t.shape());
        if dtype != p.dtype {
            return Err(Error::input(
                "K0712",
                format!("input `{}` is {}, not {}", p.name, p.dtype, dtype),
            ));
        }
        if matches!(t, Input::Numbers(t) if t.dtype == DType::Str) {
            return Err(Error::input(
                "K0712",
                format!("input `{}` is of strings, and bytes are given", p.name),
            )
            .help("give it as `Input::Strings`"));
        }
        if shape.len() != p.dims.len() {
            return Err(Error::input(
                "K0713",
                format!(
                    "input `{}` has {} axes, not {}",
                    p.name,
                    p.dims.len(),
                    shape.len()
                ),
            )
            .help(format!("its shape is {:?}", p.dims)));
        }
        let count = (shape.iter()).try_fold(1usize, |n, &d| n.checked_mul(d));
        let (want, have, what) = match t {
            Input::Numbers(t) => {
                let bytes = count.and_then(|n| p.dtype.bytes_for(n));
                (bytes, t.bytes.len(), "bytes")
            }
            Input::Strings(t) => (count, t.strings.len(), "strings"),
        };
        if want != Some(have) {
            let name = &p.name;
            return Err(Error::input(
                "K0712",
                format!("input `{name}` of shape {shape:?} comes with {have} {what}"),
            ));
        }
        for (axis, (dim, &size)) in p.dims.iter().zip(shape).enumerate() {
            if let Some(symbol) = dim.as_sym() {
                let before = *binding.entry(symbol.clone()).or_insert(size as i64);
                if before != size as i64 {
                    return Err(Error::input(
                        "K0713",
                        format!(
                            "axis {axis} of input `{}` is `{symbol}`, which is {before} elsewhere, not {size}",
                            p.name
                        ),
                    ));
                }
            }
        }
        ordered.push(*t);
    }
    for (p, t) in e.inputs.iter().zip(&ordered) {
        for (axis, (dim, &size)) in p.dims.iter().zip(t.shape()).enumerate() {
            let want = dim.eval(&binding).map_err(|err| {
                Error::input("K0713", format!("axis {axis} of input `{}`: {err}", p.name))
            })?;
            if want != size as i64 {
                return Err(Error::input(
                    "K0713",
                    format!(
                        "axis {axis} of input `{}` is {dim} = {want}, not {size}",
                        p.name
                    ),
                ));
            }
        }
    }
    Ok((ordered, binding))
}

fn holds(g: &Guard, binding: &Binding) -> Result<bool> {
    let value = |d: &Dim| {
        d.eval(binding)
            .map_err(|e| Error::input("K0716", format!("{}: {e}", g.because)))
    };
    let (l, r) = (value(&g.left)?, value(&g.right)?);
    Ok(if g.equal { l == r } else { l <= r })
}

fn check_guards(guards: &[Guard], binding: &Binding) -> Result<()> {
    for g in guards {
        // A guard on sizes that data decides is the kernels' to check.
        let known = g.left.eval(binding).is_ok() && g.right.eval(binding).is_ok();
        if known && !holds(g, binding)? {
            let how = if g.equal { "==" } else { "<=" };
            return Err(Error::input(
                "K0716",
                format!(
                    "{}: these sizes break {} {how} {}",
                    g.because, g.left, g.right
                ),
            ));
        }
    }
    Ok(())
}

fn prepare(steps: &[Step], binding: &Binding, out: &mut Vec<Option<Ready>>) -> Result<()> {
    for s in steps {
        match s {
            Step::Launch(l) => out.push(ready(l, binding).ok()),
            Step::If {
                then, otherwise, ..
            } => {
                prepare(then, binding, out)?;
                prepare(otherwise, binding, out)?;
            }
            Step::Loop(l) => prepare(&l.body, binding, out)?,
            Step::WriteDims { .. }
            | Step::Copy { .. }
            | Step::BindDim { .. }
            | Step::SetDims { .. }
            | Step::Repack { .. }
            | Step::NonZero { .. }
            | Step::TopK { .. }
            | Step::Strings { .. }
            | Step::SplitStrings { .. } => {}
        }
    }
    Ok(())
}

fn count_launches(steps: &[Step]) -> usize {
    steps
        .iter()
        .map(|s| match s {
            Step::Launch(_) => 1,
            Step::If {
                then, otherwise, ..
            } => count_launches(then) + count_launches(otherwise),
            Step::Loop(l) => count_launches(&l.body),
            Step::WriteDims { .. }
            | Step::Copy { .. }
            | Step::BindDim { .. }
            | Step::SetDims { .. }
            | Step::Repack { .. }
            | Step::NonZero { .. }
            | Step::TopK { .. }
            | Step::Strings { .. }
            | Step::SplitStrings { .. } => 0,
        })
        .sum()
}

fn ready(l: &Launch, binding: &Binding) -> Result<Ready> {
    let value = |d: &Dim| {
        d.eval(binding)
            .map_err(|e| Error::run("K0720", format!("{}: {e}", l.label)))
    };
    for v in &l.variants {
        let mut fits = true;
        for g in &v.guards {
            fits &= holds(g, binding)?;
        }
        if fits {
            let (flops, bytes) = (value(&l.flops)?, value(&l.bytes)?);
            return Ok(Ready {
                kernel: v.kernel,
                params: v.params.iter().map(value).collect::<Result<_>>()?,
                tiles: value(&v.tiles)?,
                scratch: usize::try_from(value(&v.scratch)?).unwrap_or(0),
                offsets: l.args.iter().map(|a| value(&a.1)).collect::<Result<_>>()?,
                work: flops.saturating_add(bytes),
                flops,
                bytes,
            });
        }
    }
    Err(Error::run(
        "K0720",
        format!("{}: no kernel serves these sizes", l.label),
    ))
}

impl Run<'_> {
    fn steps(&mut self, steps: &[Step], launch: &mut usize) -> Result<()> {
        for step in steps {
            if self.cancel.load(Ordering::Relaxed) {
                return Err(Error::run("K0721", "the run was cancelled"));
            }
            match step {
                Step::Launch(l) => {
                    let index = *launch;
                    *launch += 1;
                    match self.ready.get(index).and_then(Option::as_ref) {
                        // SAFETY of lifetimes: `ready` outlives the run.
                        Some(r) => self.launch(l, r)?,
                        None => {
                            let r = ready(l, &self.binding)?;
                            self.launch(l, &r)?;
                        }
                    }
                }
                Step::WriteDims { to, values } => {
                    let at = self.pointer(*to)?.cast::<i64>();
                    for (i, d) in values.iter().enumerate() {
                        let v = d
                            .eval(&self.binding)
                            .map_err(|e| Error::run("K0720", e.to_string()))?;
                        // SAFETY: lowering gives the buffer eight bytes a value.
                        unsafe { at.add(i).write_unaligned(v) };
                    }
                }
                Step::Copy { from, to, bytes } => self.copy(*from, *to, bytes)?,
                Step::BindDim { symbol, from, max } => {
                    let n = self.read_i64(*from)?;
                    let limit = match max {
                        Some(d) => d.eval(&self.binding).unwrap_or(i64::MAX),
                        None => i64::MAX,
                    };
                    if n < 0 || n > limit {
                        return Err(Error::run(
                            "K0722",
                            format!("the size `{symbol}` would be {n}, outside 0..={limit}"),
                        ));
                    }
                    self.binding.insert(symbol.as_str().into(), n);
                }
                Step::SetDims { sizes } => self.set_dims(sizes)?,
                Step::Repack {
                    from,
                    to,
                    dtype,
                    count,
                    pack,
                } => self.repack(*from, *to, *dtype, count, *pack)?,
                Step::NonZero {
                    from,
                    dtype,
                    dims,
                    to,
                    symbol,
                } => self.nonzero(*from, *dtype, dims, *to, symbol)?,
                Step::TopK { .. } => self.top_k(step)?,
                Step::Strings { .. } | Step::SplitStrings { .. } => self.string_step(step)?,
                Step::If {
                    cond,
                    then,
                    otherwise,
                } => {
                    // SAFETY: a bool scalar has one byte.
                    let yes = unsafe { self.pointer(*cond)?.read() } != 0;
                    if yes {
                        self.steps(then, launch)?;
                        *launch += count_launches(otherwise);
                    } else {
                        *launch += count_launches(then);
                        self.steps(otherwise, launch)?;
                    }
                }
                Step::Loop(l) => self.run_loop(l, launch)?,
            }
        }
        Ok(())
    }

    /// Where a buffer is; buffers of late sizes get memory here.
    pub(crate) fn pointer(&mut self, buffer: u32) -> Result<*mut u8> {
        let i = buffer as usize;
        if !self.base[i].is_null() {
            return Ok(self.base[i]);
        }
        match &self.entry.buffers[i].place {
            Place::View { of, offset } => {
                let from = self.pointer(*of)?;
                let o = offset
                    .eval(&self.binding)
                    .map_err(|e| Error::run("K0720", e.to_string()))?;
                // SAFETY: lowering makes views inside their buffer. The view is
                // not remembered: its buffer may move when its size changes.
                Ok(unsafe { from.offset(o as isize) })
            }
            _ => {
                let dim = &self.entry.buffers[i].bytes;
                let n = dim
                    .eval(&self.binding)
                    .map_err(|e| Error::run("K0720", e.to_string()))?;
                if !(0..=MAX_BYTES as i64).contains(&n) {
                    return Err(too_large(dim, n as i128));
                }
                let keep = self.dynamic[i]
                    .as_ref()
                    .is_some_and(|b| b.len() == n as usize);
                if !keep {
                    self.dynamic[i] = Some(memory(n as usize)?);
                    self.sizes[i] = Some(n as usize);
                }
                Ok(self.dynamic[i]
                    .as_ref()
                    .map_or(std::ptr::null_mut(), Block::ptr))
            }
        }
    }

    fn read_i64(&mut self, buffer: u32) -> Result<i64> {
        // SAFETY: an i64 scalar has eight bytes.
        Ok(unsafe { self.pointer(buffer)?.cast::<i64>().read_unaligned() })
    }

    fn copy(&mut self, from: u32, to: u32, bytes: &Dim) -> Result<()> {
        let n = bytes
            .eval(&self.binding)
            .map_err(|e| Error::run("K0720", e.to_string()))?;
        let (from, to) = (self.pointer(from)?, self.pointer(to)?);
        let watch = self.watch();
        // SAFETY: both buffers have at least this many bytes by lowering.
        unsafe { std::ptr::copy(from, to, usize::try_from(n).unwrap_or(0)) };
        self.note(watch, "copy", "copy", 0, n.saturating_mul(2));
        Ok(())
    }

    /// A watch for a step that starts now, if this run is profiled.
    pub(crate) fn watch(&self) -> Option<Watch> {
        let profile = self.profile.as_ref()?;
        Some(profile.watch(self.pool.threads()))
    }

    /// Notes a step that ends now, if this run is profiled.
    pub(crate) fn note(
        &mut self,
        watch: Option<Watch>,
        label: &str,
        kernel: &str,
        flops: i64,
        bytes: i64,
    ) {
        if let (Some(profile), Some(watch)) = (&mut self.profile, watch) {
            let facts = Facts {
                label: label.into(),
                kernel: kernel.into(),
                flops,
                bytes,
            };
            profile.add(watch, facts);
        }
    }

    /// Gives sizes their values, all from those before.
    fn set_dims(&mut self, sizes: &[(String, Dim)]) -> Result<()> {
        let values: Vec<i64> = sizes
            .iter()
            .map(|(_, d)| d.eval(&self.binding))
            .collect::<std::result::Result<_, _>>()
            .map_err(|e| Error::run("K0720", e.to_string()))?;
        for ((name, _), n) in sizes.iter().zip(values) {
            self.binding.insert(name.as_str().into(), n);
        }
        Ok(())
    }

    fn launch(&mut self, l: &Launch, r: &Ready) -> Result<()> {
        // Sizes that came up during the run may ask for more than was planned.
        if self.scratch.iter().any(|s| s.len() < r.scratch) {
            for s in self.scratch.iter_mut() {
                *s = memory(r.scratch)?;
            }
        }
        let mut args = [std::ptr::null_mut::<u8>(); 256];
        for (slot, ((buffer, _), offset)) in args.iter_mut().zip(l.args.iter().zip(&r.offsets)) {
            // SAFETY: lowering keeps offsets inside their buffer.
            *slot = unsafe { self.pointer(*buffer)?.offset(*offset as isize) };
        }
        let kernel = self.model.kernels[r.kernel as usize];
        struct Shared(*const *mut u8, *const i64, Vec<*mut u8>);
        // SAFETY: kernels write disjoint parts per tile, and scratch is per thread.
        unsafe impl Sync for Shared {}
        let shared = Shared(
            args.as_ptr(),
            r.params.as_ptr(),
            self.scratch.iter().map(Block::ptr).collect(),
        );
        let shared = &shared;
        let watch = self.watch();
        let status = self
            .pool
            .run(r.tiles, r.work < SERIAL_WORK, &|thread, begin, end| {
                // SAFETY: the arguments are what lowering planned for this kernel.
                let run = || unsafe { kernel(shared.0, shared.1, begin, end, shared.2[thread]) };
                match &watch {
                    Some(w) => w.units(thread, end - begin, run),
                    None => run(),
                }
            });
        let name = &self.model.program().kernels[r.kernel as usize];
        self.note(watch, &l.label, name, r.flops, r.bytes);
        match status {
            0 => Ok(()),
            1 => Err(
                Error::run("K0723", format!("an index is out of range in {}", l.label)).help(
                    "check the values of integer inputs against the sizes of what they index",
                ),
            ),
            2 => Err(Error::run(
                "K0723",
                format!("a division by zero in {}", l.label),
            )),
            n => Err(Error::run(
                "K0724",
                format!("a kernel gave up with status {n} in {}", l.label),
            )),
        }
    }

    /// Carries values whose extents change: all are taken before any size is, since
    /// sizes say where values lie.
    fn carry_resized(&mut self, l: &Loop) -> Result<()> {
        let mut taken = vec![];
        for (from, _, bytes) in &l.carried {
            let n = bytes
                .eval(&self.binding)
                .map_err(|e| Error::run("K0720", e.to_string()))?;
            let at = self.pointer(*from)?;
            let n = usize::try_from(n).unwrap_or(0);
            // SAFETY: the buffer holds `n` bytes by lowering.
            taken.push(unsafe { std::slice::from_raw_parts(at, n) }.to_vec());
        }
        self.set_dims(&l.sizes)?;
        for ((_, to, _), bytes) in l.carried.iter().zip(&taken) {
            let at = self.pointer(*to)?;
            // SAFETY: the buffer's size follows from the sizes just set.
            unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), at, bytes.len()) };
        }
        Ok(())
    }

    fn run_loop(&mut self, l: &Loop, launch: &mut usize) -> Result<()> {
        let trip = self.read_i64(l.trip)?;
        // SAFETY: a bool scalar has one byte.
        let mut on = unsafe { self.pointer(l.cond)?.read() } != 0;
        let first = *launch;
        let mut stacks: Vec<Vec<u8>> = vec![vec![]; l.scanned.len()];
        let mut i = 0i64;
        while on && (trip < 0 || i < trip) {
            *launch = first;
            // SAFETY: an i64 scalar has eight bytes.
            unsafe { self.pointer(l.iteration)?.cast::<i64>().write_unaligned(i) };
            self.steps(&l.body, launch)?;
            // SAFETY: a bool scalar has one byte.
            on = unsafe { self.pointer(l.body_cond)?.read() } != 0;
            for ((from, _, bytes), stack) in l.scanned.iter().zip(&mut stacks) {
                let n = bytes
                    .eval(&self.binding)
                    .map_err(|e| Error::run("K0720", e.to_string()))?;
                let at = self.pointer(*from)?;
                let n = usize::try_from(n).unwrap_or(0);
                if stack.len() as u64 + n as u64 > MAX_BYTES {
                    return Err(too_large(bytes, stack.len() as i128));
                }
                // SAFETY: the buffer holds `n` bytes by lowering.
                stack.extend_from_slice(unsafe { std::slice::from_raw_parts(at, n) });
            }
            if l.sizes.is_empty() {
                for (from, to, bytes) in &l.carried {
                    self.copy(*from, *to, bytes)?;
                }
            } else {
                self.carry_resized(l)?;
            }
            i += 1;
        }
        *launch = first + count_launches(&l.body);
        if let Some(symbol) = &l.symbol {
            self.binding.insert(symbol.as_str().into(), i);
        }
        for ((_, to, _), stack) in l.scanned.iter().zip(&stacks) {
            let at = self.pointer(*to)?;
            let room = self.sizes[*to as usize].unwrap_or(0);
            if room != stack.len() {
                return Err(Error::run(
                    "K0725",
                    format!(
                        "a loop stacked {} bytes where {room} were planned",
                        stack.len()
                    ),
                ));
            }
            // SAFETY: the buffer has `room` bytes.
            unsafe { std::ptr::copy_nonoverlapping(stack.as_ptr(), at, room) };
        }
        Ok(())
    }
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
