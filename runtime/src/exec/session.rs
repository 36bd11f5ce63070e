//! A session: state, arena and threads, and what a run does before and after its steps.

use super::Model;
use super::bind::{bind, check_guards};
use super::device::tune::Tuning;
use super::device::{DeviceRun, GraphCounts, OnDevice};
use super::launch::{Ready, max_scratch, prepare};
use super::layout::{Layout, memory};
use super::steps::Run;
use crate::device::Name;
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
use std::time::Instant;

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
    /// On the host.
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
    device: Option<Box<OnDevice>>,
}

impl Session {
    /// A session on the CPU with its own threads and fresh state. `threads` is a number
    /// of them, or [`Threads`] with the processors that they stay on.
    pub fn new(model: Arc<Model>, threads: impl Into<Threads>) -> Result<Session> {
        Session::on(model, threads, Name::Cpu, None)
    }

    /// A session on a device, with threads for the steps that the host computes.
    /// `target` names the code that runs; without it, that is the best of the artifact's
    /// that the device runs. K0801 to K0806 where the device or the code is missing, and
    /// K0704 for the CPU if the model was loaded without its code.
    pub fn on(
        model: Arc<Model>,
        threads: impl Into<Threads>,
        device: Name,
        target: Option<&str>,
    ) -> Result<Session> {
        if device == Name::Cpu {
            model.has_code()?;
        }
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
        let device = match device {
            Name::Cpu => None,
            name => Some(Box::new(OnDevice::open(&model, name, target, &state)?)),
        };
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
            device,
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

    /// The code that runs: the CPU level, or the target and the device.
    pub fn runs(&self) -> String {
        match &self.device {
            None => self.model.level().to_string(),
            Some(d) => d.describe(&self.model),
        }
    }

    /// Bytes that the session has allocated on its device; none on the CPU.
    pub fn device_bytes(&self) -> Option<usize> {
        self.device.as_ref().map(|d| d.bytes())
    }

    /// Whether runs of the same kernels are recorded and done again as a whole, on devices;
    /// on at first. For debugging.
    pub fn set_graphs(&mut self, on: bool) {
        if let Some(d) = &mut self.device {
            d.graphs = on;
            d.forget_graphs();
        }
    }

    /// What its graphs did so far; none on the CPU.
    pub fn graph_counts(&self) -> Option<GraphCounts> {
        self.device.as_ref().map(|d| d.graph_counts())
    }

    #[cfg(all(test, feature = "sim"))]
    pub(super) fn on_device(&self) -> Option<&OnDevice> {
        self.device.as_deref()
    }

    /// Leaves out one of the waits between lanes, by its number among all of the session's.
    #[cfg(all(test, feature = "sim"))]
    pub(super) fn leave_out_wait(&mut self, number: usize) {
        if let Some(d) = &mut self.device {
            d.leave_out_wait(number);
        }
    }

    /// Leaves out one of the updates of nodes, by its number among all of the session's.
    #[cfg(all(test, feature = "sim"))]
    pub(super) fn leave_out_update(&mut self, number: usize) {
        if let Some(d) = &mut self.device {
            d.leave_out_update(number);
        }
    }

    fn state_index(&self, name: &str) -> Option<usize> {
        let mut globals = self.model.program().globals.iter();
        globals.position(|g| g.name == name && g.state)
    }

    /// The bytes of a state value, brought from the device if they are there; K0711 if
    /// there is no such value.
    pub fn state(&mut self, name: &str) -> Result<&[u8]> {
        let none = || Error::input("K0711", format!("there is no state @{name}"));
        let i = self.state_index(name).ok_or_else(none)?;
        let block = self.state[i].as_mut().ok_or_else(none)?;
        if let Some(d) = &mut self.device {
            d.fetch_state(i, block)?;
        }
        Ok(block.bytes())
    }

    /// Overwrites a state value.
    pub fn set_state(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        let found = self.state_index(name);
        let block = found.and_then(|i| self.state[i].as_mut());
        match block {
            Some(b) if b.len() == bytes.len() => {
                b.bytes_mut().copy_from_slice(bytes);
                if let (Some(d), Some(i)) = (&mut self.device, found) {
                    d.state_changed(i);
                }
            }
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
        let globals = self.model.program().globals.iter().enumerate();
        for ((i, g), slot) in globals.zip(&mut self.state) {
            if g.state {
                *slot = Some(initial(&self.model, g)?);
                if let Some(d) = &mut self.device {
                    d.state_changed(i);
                }
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

    /// Runs an entry and measures, until `deadline`, every form of its kernels that serves
    /// these inputs; the session's state is that of two runs. K0801 on the CPU, whose
    /// kernels have one form.
    pub fn tune(
        &mut self,
        entry: usize,
        inputs: &[(&str, Input)],
        deadline: Instant,
    ) -> Result<Tuning> {
        let none = || {
            Error::run("K0801", "kernels have several forms on devices alone")
                .help("give --device cuda")
        };
        self.device.as_ref().ok_or_else(none)?;
        // Memory grows, and code is loaded, in a run before.
        self.run_with(entry, inputs)?;
        let model = self.model.clone();
        let on = self.device.as_mut().ok_or_else(none)?;
        on.start_tuning(deadline)?;
        let done = self.run_with(entry, inputs);
        let on = self.device.as_mut().ok_or_else(none)?;
        let program = model.program();
        let target = &program.gpu[on.code].target;
        let tuning = on.end_tuning(&program.entries[entry].steps, target);
        done?;
        tuning?.ok_or_else(none)
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
        let mut device = match &mut self.device {
            Some(on) => Some(DeviceRun::begin(
                on,
                (e, entry),
                &bound.layout.sizes,
                &bound.ready,
                &bound.binding,
            )?),
            None => None,
        };
        let here = |b: u32| device.as_ref().is_none_or(|d| d.spaces().space(b).host);
        let mut base = places(&model, e, bound, &self.arena, &self.state, &here);
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
                && here(p.buffer)
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
        if let Some(d) = &mut device {
            e.inputs.iter().for_each(|p| d.given(p.buffer));
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
            device,
        };
        let _busy = Busy::begin();
        let done = run.whole(outputs, &mut self.shapes, &mut self.texts);
        if let Some(d) = run.device.take() {
            d.end();
        }
        done?;
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
        let spaces = self.device.as_ref().map(|d| d.spaces(entry));
        let space = |b: u32| spaces.map(|s| s.space(b));
        let layout = Layout::of(e, &binding, &|b| space(b).is_none_or(|s| s.host))?;
        let code = self.device.as_ref().map(|d| d.code_of(&self.model));
        let mut ready = vec![];
        prepare(&e.steps, &binding, code, &mut ready);
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
        if self.device.is_some() {
            return Ok(());
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

impl Run<'_> {
    /// The entry's steps, and what the caller gets.
    fn whole(
        &mut self,
        outputs: &mut [Block],
        shapes: &mut Vec<Vec<usize>>,
        texts: &mut Vec<Vec<String>>,
    ) -> Result<()> {
        let mut launch = 0;
        self.steps(&self.entry.steps, &mut launch)?;
        shapes.clear();
        let entry = self.entry;
        for (p, output) in entry.outputs.iter().zip(outputs) {
            shapes.push(hand_over(self, p, output)?);
            // Numbers are not looked at, however many there are.
            let handles: &[u8] = match p.dtype {
                DType::Str => output.bytes(),
                _ => &[],
            };
            let text = |h: &[u8]| Ok(self.strings.text(read_i64(DType::I64, h, 0))?.to_string());
            texts.push(handles.chunks_exact(8).map(text).collect::<Result<_>>()?);
        }
        match self.device.is_some() {
            true => self.end_on_device(),
            false => Ok(()),
        }
    }
}

/// Where an entry's buffers are that are here, but for inputs and outputs and what views those; null
/// where that is not known yet.
fn places(
    model: &Model,
    e: &Entry,
    bound: &Bound,
    arena: &Block,
    state: &[Option<Block>],
    here: &dyn Fn(u32) -> bool,
) -> Vec<*mut u8> {
    let mut base = vec![std::ptr::null_mut(); e.buffers.len()];
    for (i, b) in e.buffers.iter().enumerate() {
        // Globals have a home on the host in any case.
        if !here(i as u32) && !matches!(b.place, Place::Global(_)) {
            continue;
        }
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
    if run.device.is_some() {
        run.fetch(p.buffer, output.bytes_mut())?;
        if p.dtype == DType::Str {
            // Handles are looked up at once: a failing kernel's are none.
            run.check_kernels()?;
        }
        return Ok(shape);
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
