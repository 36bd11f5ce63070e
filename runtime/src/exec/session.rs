//! A session: state, arena and threads, and what a run does before and after its steps.

use super::Model;
use super::bind::{bind, check_guards};
use super::launch::{Ready, max_scratch, prepare};
use super::layout::{Layout, memory};
use super::steps::Run;
use crate::error::{Error, Result};
use crate::input::{Input, StringsRef};
use crate::memory::Block;
use crate::plan::{Entry, Global, GlobalData, Place, Port};
use crate::pool::{Busy, Pool};
use crate::profile::Profile;
use crate::strings::Table;
use crate::threads::{Pin, Pinned, Threads, pin};
use kiln_ir::tensor::read_i64;
use kiln_ir::{Binding, DType, Dim, Tensor};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// How many bindings a session remembers.
const REMEMBERED: usize = 16;

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

impl Session {
    /// A session with its own threads and fresh state. `threads` is a number of them,
    /// or [`Threads`] with the processors that they stay on.
    pub fn new(model: Arc<Model>, threads: impl Into<Threads>) -> Result<Session> {
        let threads = threads.into();
        let (count, places) = threads.places()?;
        // Who names processors knows who else uses them.
        let own = matches!(threads.pin, Pin::Processors(_));
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
            pool: Pool::new(count, places.as_deref(), own)?,
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

    /// How many threads it has, the caller's included.
    pub fn threads(&self) -> usize {
        self.pool.threads()
    }

    /// Keeps the calling thread on the processor that is meant for it, if threads are
    /// pinned, until what is returned is dropped. Threads that it starts in that time
    /// stay there as well.
    pub fn pin_caller(&self) -> Result<Option<Pinned>> {
        self.pool.caller().map(pin).transpose()
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
        let at = self.remember(e, entry, binding)?;
        self.make_room(e, entry, at)?;
        let bound = &self.bounds[entry][at];
        let outputs = &mut self.outputs[entry];
        let mut base = places(&model, e, bound, &self.arena, &self.state);
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
                base[i] = view(base[*of as usize], offset, &bound.binding);
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
        let _busy = Busy::begin();
        let mut launch = 0;
        run.steps(&e.steps, &mut launch)?;
        self.shapes.clear();
        for (p, output) in e.outputs.iter().zip(outputs) {
            self.shapes.push(hand_over(&mut run, p, output)?);
            let handles = output.bytes().chunks_exact(8);
            let handles = handles.filter(|_| p.dtype == DType::Str);
            let text = |h: &[u8]| Ok(run.strings.text(read_i64(DType::I64, h, 0))?.to_string());
            self.texts.push(handles.map(text).collect::<Result<_>>()?);
        }
        self.last = entry;
        Ok(())
    }

    /// Which of the remembered bindings this one is; a new one is prepared.
    fn remember(&mut self, e: &Entry, entry: usize, binding: Binding) -> Result<usize> {
        let key: Vec<i64> = binding.values().copied().collect();
        if let Some(at) = self.bounds[entry].iter().position(|b| b.key == key) {
            return Ok(at);
        }
        check_guards(&e.guards, &binding)?;
        let layout = Layout::of(e, &binding)?;
        let mut ready = vec![];
        prepare(&e.steps, &binding, &mut ready);
        if self.bounds[entry].len() == REMEMBERED {
            self.bounds[entry].remove(0);
        }
        self.bounds[entry].push(Bound {
            key,
            layout,
            binding,
            ready,
        });
        Ok(self.bounds[entry].len() - 1)
    }

    /// Arena, outputs and scratch as large as a binding wants them.
    fn make_room(&mut self, e: &Entry, entry: usize, at: usize) -> Result<()> {
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
        let scratch = max_scratch(&e.steps, &bound.binding);
        if self.scratch.len() < self.pool.threads()
            || self.scratch.iter().any(|s| s.len() < scratch)
        {
            self.scratch = (0..self.pool.threads())
                .map(|_| memory(scratch))
                .collect::<Result<_>>()?;
        }
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

/// Where an entry's buffers are, but for inputs and outputs and what views those; null
/// where that is not known yet.
fn places(
    model: &Model,
    e: &Entry,
    bound: &Bound,
    arena: &Block,
    state: &[Option<Block>],
) -> Vec<*mut u8> {
    let mut base = vec![std::ptr::null_mut(); e.buffers.len()];
    for (i, b) in e.buffers.iter().enumerate() {
        base[i] = match &b.place {
            // SAFETY: the offset lies inside the arena by `assign`.
            Place::Arena => match bound.layout.sizes[i] {
                Some(_) => unsafe { arena.ptr().add(bound.layout.offsets[i]) },
                None => std::ptr::null_mut(),
            },
            Place::Global(g) => {
                let global = &model.program().globals[*g as usize];
                match (&state[*g as usize], &global.data) {
                    (Some(block), _) => block.ptr(),
                    (None, GlobalData::Section(s)) => {
                        model.artifact.section(*s).as_ptr().cast_mut()
                    }
                    (None, GlobalData::Splat(_)) => std::ptr::null_mut(),
                }
            }
            Place::View { of, offset } => view(base[*of as usize], offset, &bound.binding),
            Place::Input | Place::Output => std::ptr::null_mut(),
        };
    }
    base
}

/// Where a view of a buffer begins; null while that is not known.
fn view(from: *mut u8, offset: &Dim, binding: &Binding) -> *mut u8 {
    match offset.eval(binding) {
        // SAFETY: lowering makes views inside their buffer.
        Ok(o) if !from.is_null() => unsafe { from.offset(o as isize) },
        _ => std::ptr::null_mut(),
    }
}

/// Gives the caller an output whose size came up during the run, or that is another
/// buffer (an input or state returned as it is); its shape.
fn hand_over(run: &mut Run, p: &Port, output: &mut Block) -> Result<Vec<usize>> {
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
    if output.len() != bytes {
        *output = memory(bytes)?;
    }
    let from = run.pointer(p.buffer)?;
    if from != output.ptr() && bytes > 0 {
        // SAFETY: the buffer holds the output's bytes.
        unsafe { std::ptr::copy_nonoverlapping(from, output.ptr(), bytes) };
    }
    Ok(shape)
}

/// The handles of an input's strings.
fn handles_of(strings: &[String], table: &mut Table) -> Result<Block> {
    let mut block = memory(strings.len().saturating_mul(8))?;
    for (s, to) in strings.iter().zip(block.bytes_mut().chunks_exact_mut(8)) {
        to.copy_from_slice(&table.handle(s)?.to_le_bytes());
    }
    Ok(block)
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
