//! A session on a device: the same plan, its kernels on the device and everything else
//! on the host.
//!
//! A buffer is on the host, on the device or on both ([`space`]). Which of its two
//! copies are current is known at every moment, and a copy is made exactly where one
//! side reads what the other wrote. Kernels, copies up and copies down have a lane each and
//! wait for each other where they meet ([`order`]); the host waits only where it reads.

mod arena;
mod cross;
mod graphs;
mod launch;
mod memory;
mod order;
mod recorded;
mod space;
#[cfg(all(test, feature = "sim"))]
mod tests;
pub mod tune;

use super::launch::Code;
use super::layout::Layout;
use super::steps::Run;
use super::{Model, Ready};
use crate::device::{self, Device, KernelId, Mark, Name};
use crate::error::{Error, Result};
use crate::gpu::STATUS_BYTES;
use crate::memory::Block;
use crate::plan::{Entry, GlobalData, Gpu, Place};
use crate::tuned::Preferred;
use graphs::Stretch;
use kiln_ir::{Binding, Dim};
pub use memory::DeviceMemory;
use memory::Piece;
pub(super) use memory::predict;
use order::{Last, Order};
pub use recorded::GraphCounts;
use recorded::Noted;
pub(crate) use space::{Spaces, host_access};
use std::collections::HashMap;
use std::sync::Arc;
use tune::Tuner;

/// Weights lie at multiples of this, as allocations do.
const ALIGN: usize = 256;

/// Which copies of a cell are current; neither: nothing has been written to it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Valid {
    pub(super) host: bool,
    pub(super) device: bool,
}

impl Valid {
    const HOST: Valid = Valid {
        host: true,
        device: false,
    };
    const DEVICE: Valid = Valid {
        host: false,
        device: true,
    };
    const BOTH: Valid = Valid {
        host: true,
        device: true,
    };
}

/// What a session has on its device.
pub(super) struct OnDevice {
    device: Box<dyn Device>,
    name: Name,
    /// Which of the plan's targets runs.
    pub(super) code: usize,
    /// What was measured to be best on devices of this name.
    preferred: Preferred,
    /// The passes of the forms of each of the plan's kernels.
    kernels: Vec<Vec<Vec<KernelId>>>,
    spaces: Vec<Arc<Spaces>>,
    /// Where the globals are that an entry's kernels touch.
    globals: Vec<Option<u64>>,
    /// Which copies of each global are current.
    valid: Vec<Valid>,
    weights: Piece,
    arena: Piece,
    /// Where each entry's temporaries lie in it, and the room of each.
    standing: Vec<Option<Layout>>,
    scratch: Piece,
    /// A block for each launch of an entry: kernels that fail write there.
    status: Piece,
    /// Whether a block may hold other than zeros.
    failed: bool,
    /// Inputs, outputs and buffers of late sizes, by entry and buffer.
    own: Vec<Vec<Piece>>,
    /// What loops stack up, and values on their way into the next iteration.
    stacks: Vec<Piece>,
    /// Grows when memory moves, or what lies where in it.
    epoch: u64,
    pub(super) graphs: bool,
    /// By where their first step lies in the plan, and how many they have.
    stretches: HashMap<(usize, usize), Stretch>,
    /// What the compute lane is given, while that is noted.
    noted: Option<Noted>,
    graph_counts: GraphCounts,
    /// The update of a node that is left out: for tests of who notices.
    #[cfg(all(test, feature = "sim"))]
    left_out: Option<usize>,
    order: Order,
    /// What measures the forms of kernels, while that is asked for.
    tuner: Option<Tuner>,
}

/// The plan's code for a device: the target that is named, or else the best that the
/// device runs.
fn choose(gpu: &[Gpu], device: &dyn Device, target: Option<&str>, levels: &str) -> Result<usize> {
    let names: Vec<&str> = gpu.iter().map(|g| &g.target[..]).collect();
    let have = names.join(", ");
    let name = &device.facts().name;
    if gpu.is_empty() {
        let message = format!("the artifact has no code for a GPU, only for {levels}");
        return Err(
            Error::run("K0804", message).help("compile with --target sm_80, sm_89 or sm_90a")
        );
    }
    let runs = |g: &Gpu| device.facts().capability.is_none_or(|c| g.runs_on(c));
    let found = match target {
        Some(t) => gpu
            .iter()
            .position(|g| g.target == t)
            .filter(|&i| runs(&gpu[i])),
        None => gpu.iter().position(runs),
    };
    found.ok_or_else(|| {
        let message = match (target, device.facts().capability) {
            (Some(t), _) if !names.contains(&t) => {
                format!("the artifact has no code for {t}, only for {have}")
            }
            (_, Some((major, minor))) => format!(
                "{name} has compute capability {major}.{minor}, which does not run {}",
                target.unwrap_or(&have)
            ),
            (_, None) => format!("{name} does not run {have}"),
        };
        let help = match device.facts().capability {
            Some(c) if c < (8, 0) => "the lowest target is sm_80: run with --device cpu".into(),
            _ => format!(
                "compile with --target {}",
                best_target(device.facts().capability)
            ),
        };
        Error::run("K0804", message).help(help)
    })
}

/// The best target that the compiler has for a device of a compute capability; without
/// one, the one that most GPUs run.
pub fn best_target(capability: Option<(u32, u32)>) -> &'static str {
    match capability {
        Some((9, 0)) => "sm_90a",
        Some(c) if c >= (8, 9) => "sm_89",
        _ => "sm_80",
    }
}

impl OnDevice {
    /// Opens a device, loads the code that it runs, and gives it weights and state.
    pub(super) fn open(
        model: &Model,
        name: Name,
        target: Option<&str>,
        state: &[Option<Block>],
    ) -> Result<OnDevice> {
        let program = model.program();
        let device = device::open(name)?;
        let levels: Vec<&str> = program.objects.iter().map(|o| &o.level[..]).collect();
        let code = choose(&program.gpu, &*device, target, &levels.join(", "))?;
        let is_state = |g: u32| program.globals[g as usize].state;
        let spaces = program.entries.iter();
        let here = &device.facts().name;
        let preferred = Preferred::of(&program.gpu[code].tuned, |d| d == here);
        let mut on = OnDevice {
            device,
            name,
            code,
            preferred,
            kernels: vec![],
            spaces: spaces.map(|e| Arc::new(Spaces::of(e, is_state))).collect(),
            globals: vec![None; program.globals.len()],
            valid: vec![Valid::HOST; program.globals.len()],
            weights: Piece::default(),
            arena: Piece::default(),
            standing: program.entries.iter().map(|_| None).collect(),
            scratch: Piece::default(),
            status: Piece::default(),
            failed: false,
            own: vec![],
            stacks: vec![],
            epoch: 0,
            graphs: true,
            stretches: HashMap::new(),
            noted: None,
            graph_counts: GraphCounts::default(),
            #[cfg(all(test, feature = "sim"))]
            left_out: None,
            order: Order::default(),
            tuner: None,
        };
        on.load(model)?;
        on.own = (program.entries.iter())
            .map(|e| e.buffers.iter().map(|_| Piece::default()).collect())
            .collect();
        on.place_globals(model)?;
        on.upload_globals(model, state)?;
        let launches = program.entries.iter();
        let most = launches
            .map(|e| super::launch::count_launches(&e.steps))
            .max();
        let bytes = STATUS_BYTES * most.unwrap_or(0).max(1);
        on.status = on.piece(bytes, "status blocks")?;
        on.device.fill(on.status.at, bytes, 0)?;
        on.order.gave([]);
        Ok(on)
    }

    fn load(&mut self, model: &Model) -> Result<()> {
        let program = model.program();
        let gpu = &program.gpu[self.code];
        let text = std::str::from_utf8(model.artifact.section(gpu.section)).map_err(|_| {
            let message = format!("the artifact's PTX for {} is not text", gpu.target);
            Error::input("K0703", message).help("compile the model again")
        })?;
        // A plan of copies alone has no kernels.
        if gpu.kernels.is_empty() {
            return Ok(());
        }
        self.device.load(text)?;
        for forms in &gpu.kernels {
            let mut ids = vec![];
            for form in forms {
                let passes = form.passes.iter();
                let kernels = passes.map(|p| self.device.kernel(&p.entry, p.shared));
                ids.push(kernels.collect::<Result<_>>()?);
            }
            self.kernels.push(ids);
        }
        Ok(())
    }

    /// Memory for the globals that kernels touch, in one piece.
    fn place_globals(&mut self, model: &Model) -> Result<()> {
        let globals = &model.program().globals;
        let mut used = vec![false; globals.len()];
        for s in &self.spaces {
            for (space, global) in s.of.iter().zip(&s.global) {
                if let (true, Some(g)) = (space.device, global) {
                    used[*g as usize] = true;
                }
            }
        }
        let mut offsets = vec![None; globals.len()];
        let mut at = 0usize;
        for (i, g) in globals.iter().enumerate().filter(|(i, _)| used[*i]) {
            offsets[i] = Some(at as u64);
            at = at.saturating_add((g.bytes as usize).next_multiple_of(ALIGN));
        }
        self.weights = self.piece(at, "weights and state")?;
        let base = self.weights.at;
        self.globals = offsets.into_iter().map(|o| o.map(|o| base + o)).collect();
        Ok(())
    }

    fn upload_globals(&mut self, model: &Model, state: &[Option<Block>]) -> Result<()> {
        for (i, g) in model.program().globals.iter().enumerate() {
            let Some(at) = self.globals[i] else { continue };
            let bytes = match (&state[i], &g.data) {
                (Some(block), _) => block.bytes(),
                (None, GlobalData::Section(s)) => model.artifact.section(*s),
                (None, GlobalData::Splat(_)) => continue,
            };
            self.upload(at, bytes, Last::Any)?;
            self.valid[i] = Valid::BOTH;
        }
        Ok(())
    }

    /// Copies to the device, when who touched that memory last is done.
    fn upload(&mut self, at: u64, bytes: &[u8], last: Last) -> Result<()> {
        let device = &mut *self.device;
        self.order.before_upload(device, last)?;
        device.upload(at, bytes)?;
        let to = at..at + bytes.len() as u64;
        self.order.uploaded(device, to)
    }

    /// Copies to the host what a cell's last writer left, or whoever wrote last.
    fn download(&mut self, at: u64, bytes: &mut [u8], cell: Option<usize>) -> Result<()> {
        let device = &mut *self.device;
        let from = at..at + bytes.len() as u64;
        let number = self.order.before_download(device, &from, cell)?;
        device.download(at, bytes)?;
        self.order.downloaded(number);
        Ok(())
    }

    /// The device and the target that it runs, for people.
    pub(super) fn describe(&self, model: &Model) -> String {
        let target = &model.program().gpu[self.code].target;
        let name = &self.device.facts().name;
        format!("{target} on {} ({name})", self.name)
    }

    /// The code that launches take.
    pub(super) fn code_of<'a>(&'a self, model: &'a Model) -> Code<'a> {
        Code {
            gpu: &model.program().gpu[self.code],
            preferred: &self.preferred,
        }
    }

    pub(super) fn spaces(&self, entry: usize) -> &Spaces {
        &self.spaces[entry]
    }

    #[cfg(all(test, feature = "sim"))]
    pub(super) fn leave_out_wait(&mut self, number: usize) {
        self.order.left_out = Some(number);
    }

    #[cfg(all(test, feature = "sim"))]
    pub(super) fn leave_out_update(&mut self, number: usize) {
        self.left_out = Some(number);
    }

    /// Bytes that are allocated on the device.
    pub(super) fn bytes(&self) -> usize {
        let own = self.own.iter().flatten().chain(&self.stacks);
        let one = [&self.weights, &self.arena, &self.scratch, &self.status];
        own.chain(one).map(|p| p.room).sum()
    }

    /// Brings a state value to the host, into its block.
    pub(super) fn fetch_state(&mut self, global: usize, block: &mut Block) -> Result<()> {
        if let (Some(at), false) = (self.globals[global], self.valid[global].host) {
            self.order.settle(&mut *self.device)?;
            self.device.download(at, block.bytes_mut())?;
            self.valid[global].host = true;
        }
        Ok(())
    }

    /// A state value was changed on the host.
    pub(super) fn state_changed(&mut self, global: usize) {
        self.valid[global] = Valid::HOST;
    }
}

/// What one run has on the device.
pub(super) struct DeviceRun<'a> {
    on: &'a mut OnDevice,
    entry: usize,
    spaces: Arc<Spaces>,
    /// Where buffers are on the device; 0 where that is not known yet.
    base: Vec<u64>,
    /// By cell.
    valid: Vec<Valid>,
    /// Whether a kernel was started since the status blocks were read.
    started: bool,
    /// Stacks that loops have in use.
    stacks: usize,
    /// By their places among all, launches of a stretch that have their sizes by now.
    pub(super) late: HashMap<usize, Ready>,
    /// Steps of the profile whose times are between two marks.
    timed: Vec<(usize, Mark, Mark)>,
    params: Vec<u8>,
    windows: Vec<device::Window>,
}

impl<'a> DeviceRun<'a> {
    /// Makes room for a run and says where its buffers are.
    pub(super) fn begin(
        on: &'a mut OnDevice,
        (e, entry): (&Entry, usize),
        sizes: &[Option<usize>],
        ready: &[Option<Ready>],
        binding: &Binding,
    ) -> Result<DeviceRun<'a>> {
        let spaces = on.spaces[entry].clone();
        on.order.begin(&mut *on.device, spaces.of.len())?;
        if let Err(err) = on.make_room(e, entry, sizes, ready) {
            let plan = Layout::placed(e, sizes.to_vec(), &|b| spaces.space(b).device)?;
            return Err(memory::with_plan(err, &on.needs(e, &spaces, &plan, ready)));
        }
        // Nothing of an earlier run is read in this one.
        on.device.discard(on.arena.at, on.arena.room)?;
        let mut base = vec![0; e.buffers.len()];
        for (i, b) in e.buffers.iter().enumerate() {
            if !spaces.space(i as u32).device {
                continue;
            }
            base[i] = match &b.place {
                Place::Arena if sizes[i].is_some() => on.place_of(entry, i),
                Place::Input | Place::Output if sizes[i].is_some() => on.own[entry][i].at,
                Place::Global(g) => on.globals[*g as usize].unwrap_or(0),
                Place::View { of, offset } => shifted(base[*of as usize], offset, binding),
                Place::Arena | Place::Input | Place::Output => 0,
            };
        }
        if on.failed {
            on.device.fill(on.status.at, on.status.room, 0)?;
            on.order.gave([]);
            on.failed = false;
        }
        let global = |g: &Option<u32>| g.map_or(Valid::default(), |g| on.valid[g as usize]);
        let valid = spaces.global.iter().map(global).collect();
        Ok(DeviceRun {
            on,
            entry,
            spaces,
            base,
            valid,
            started: false,
            stacks: 0,
            late: HashMap::new(),
            timed: vec![],
            params: vec![],
            windows: vec![],
        })
    }

    /// The caller's memory holds this buffer.
    pub(super) fn given(&mut self, buffer: u32) {
        self.valid[self.spaces.cell[buffer as usize] as usize] = Valid::HOST;
    }

    pub(super) fn spaces(&self) -> &Spaces {
        &self.spaces
    }

    /// Notes which copies of globals are current, after a run that ended in any way.
    pub(super) fn end(self) {
        for (cell, global) in self.spaces.global.iter().enumerate() {
            if let Some(g) = global {
                self.on.valid[*g as usize] = self.valid[cell];
            }
        }
    }
}

impl Run<'_> {
    /// The code that runs on the device, if one runs kernels.
    pub(super) fn device_code(&self) -> Option<Code<'_>> {
        Some(self.device.as_ref()?.on.code_of(self.model))
    }

    /// Ends a run: the kernels are checked, and the profile's steps on the device get
    /// the times that its clock says.
    pub(super) fn end_on_device(&mut self) -> Result<()> {
        self.check_kernels()?;
        let d = self.device.as_mut();
        let Some(d) = d else { return Ok(()) };
        let timed = std::mem::take(&mut d.timed);
        if let (Some(profile), Some(&(first, zero, _))) = (&mut self.profile, timed.first()) {
            let begin = profile.steps[first].start;
            for (step, from, to) in timed {
                let start = begin + d.on.device.elapsed(zero, from)?;
                let ns = d.on.device.elapsed(from, to)?;
                let step = &mut profile.steps[step];
                (step.start, step.ns) = (start, ns.max(1));
            }
        }
        d.on.device.forget_marks();
        Ok(())
    }
}

/// Where a view begins; 0 while that is not known.
fn shifted(from: u64, offset: &Dim, binding: &Binding) -> u64 {
    match offset.eval(binding) {
        Ok(o) if from != 0 => from.wrapping_add_signed(o),
        _ => 0,
    }
}
