//! Memory on a device: pieces that grow and stay, and what a run will need.

use super::super::layout::Layout;
use super::super::{Model, Ready, launch};
use super::arena::ahead;
use super::{OnDevice, Spaces};
use crate::error::{Error, Result};
use crate::plan::{Entry, Place};
use crate::tuned::Preferred;
use kiln_ir::Binding;

/// A piece of device memory: where it is, and its bytes.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Piece {
    pub(super) at: u64,
    pub(super) room: usize,
}

/// Bytes that a run takes on a device, by purpose.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct DeviceMemory {
    /// Temporaries.
    pub arena: usize,
    /// Copies of inputs that kernels read.
    pub inputs: usize,
    /// Outputs that kernels write.
    pub outputs: usize,
    /// Weights and state that kernels of any entry touch.
    pub globals: usize,
    /// Scratch of the launch that needs most.
    pub scratch: usize,
    /// All of it.
    pub total: usize,
}

/// Bytes of scratch that launches need at most.
pub(super) fn scratch_of<'r>(ready: impl Iterator<Item = &'r Ready>) -> usize {
    let forms = ready.filter_map(|r| r.forms.as_ref().ok());
    let sizes = forms.flatten().map(|(_, extent)| extent.scratch);
    sizes.max().unwrap_or(0)
}

/// The same of those whose sizes are known before a run.
fn device_scratch(ready: &[Option<Ready>]) -> usize {
    scratch_of(ready.iter().flatten())
}

/// What running an entry under a binding takes on a device that runs this code.
pub(in super::super) fn predict(
    model: &Model,
    entry: usize,
    binding: &Binding,
    code: usize,
) -> Result<(Spaces, DeviceMemory)> {
    let program = model.program();
    let e = &program.entries[entry];
    let is_state = |g: u32| program.globals[g as usize].state;
    let spaces = Spaces::of(e, is_state);
    let layout = Layout::of(e, binding, &|b| spaces.space(b).device)?;
    let mut ready = vec![];
    // Of whichever device: what may be taken is counted.
    let gpu = program.gpu.get(code);
    let preferred = Preferred::of(gpu.map_or(&[], |g| &g.tuned), |_| true);
    let code = gpu.map(|gpu| launch::Code {
        gpu,
        preferred: &preferred,
    });
    launch::prepare(&e.steps, binding, code, &mut ready);
    let mut used = vec![false; program.globals.len()];
    for other in &program.entries {
        let s = Spaces::of(other, is_state);
        for (space, global) in s.of.iter().zip(&s.global) {
            if let (true, Some(g)) = (space.device, global) {
                used[*g as usize] = true;
            }
        }
    }
    let globals = program.globals.iter().zip(used).filter(|(_, used)| *used);
    let globals = globals.map(|(g, _)| (g.bytes as usize).next_multiple_of(super::ALIGN));
    let globals = globals.fold(0, usize::saturating_add);
    let needs = needs(e, &spaces, &layout, &ready, globals);
    Ok((spaces, needs))
}

fn needs(
    e: &Entry,
    spaces: &Spaces,
    layout: &Layout,
    ready: &[Option<Ready>],
    globals: usize,
) -> DeviceMemory {
    let place = |input: bool| {
        let buffers = e.buffers.iter().enumerate().filter(|(i, b)| {
            let here = match b.place {
                Place::Input => input,
                Place::Output => !input,
                _ => false,
            };
            here && spaces.space(*i as u32).device
        });
        let sizes = buffers.map(|(i, _)| layout.sizes[i].unwrap_or(0));
        sizes.fold(0, usize::saturating_add)
    };
    let mut m = DeviceMemory {
        arena: layout.arena,
        inputs: place(true),
        outputs: place(false),
        globals,
        scratch: device_scratch(ready),
        total: 0,
    };
    let all = [m.arena, m.inputs, m.outputs, m.globals, m.scratch];
    m.total = all.into_iter().fold(0, usize::saturating_add);
    m
}

/// An error for want of memory with what the plan needs.
pub(super) fn with_plan(mut e: Error, m: &DeviceMemory) -> Error {
    if e.code == "K0806" {
        e.message += &format!(
            "; this run takes {} bytes on the device: {} of weights and state, {} of temporaries, {} of inputs, {} of outputs, {} of scratch",
            m.total, m.globals, m.arena, m.inputs, m.outputs, m.scratch
        );
    }
    e
}

impl OnDevice {
    pub(super) fn needs(
        &self,
        e: &Entry,
        spaces: &Spaces,
        layout: &Layout,
        ready: &[Option<Ready>],
    ) -> DeviceMemory {
        needs(e, spaces, layout, ready, self.weights.room)
    }

    /// A new piece for a purpose.
    pub(super) fn piece(&mut self, bytes: usize, what: &str) -> Result<Piece> {
        let held = self.bytes();
        let at = self.device.alloc(bytes).map_err(|mut e| {
            if e.code == "K0806" {
                e.message += &format!(", for {what}; the session holds {held}");
            }
            e
        })?;
        self.epoch += 1;
        Ok(Piece { at, room: bytes })
    }

    /// The piece with room for so many bytes: it, or another one in its place, without
    /// its contents. One that grows gets more than it has to where there is that much, so
    /// that sizes that grow bit by bit seldom move it: each time takes the device a wait,
    /// and graphs their updates.
    pub(super) fn grown(&mut self, old: Piece, bytes: usize, what: &str) -> Result<Piece> {
        if old.at != 0 && old.room >= bytes {
            return Ok(old);
        }
        if old.at == 0 {
            return self.piece(bytes, what);
        }
        self.device.free(old.at)?;
        self.epoch += 1;
        let more = ahead(old.room);
        if more > bytes {
            match self.piece(more, what) {
                Err(e) if e.code == "K0806" => {}
                done => return done,
            }
        }
        self.piece(bytes, what)
    }

    /// Room for a run: arena, scratch, and inputs and outputs of known sizes. What pieces
    /// have beyond their plan's is given back where the run would not fit otherwise.
    pub(super) fn make_room(
        &mut self,
        e: &Entry,
        entry: usize,
        sizes: &[Option<usize>],
        ready: &[Option<Ready>],
    ) -> Result<()> {
        match self.room_of(e, entry, sizes, ready) {
            Err(e) if e.code == "K0806" => self.give_back()?,
            done => return done,
        }
        self.room_of(e, entry, sizes, ready)
    }

    /// Gives back all that a run makes room for; between runs nothing in it is wanted.
    fn give_back(&mut self) -> Result<()> {
        let own = self.own.iter_mut().flatten().chain(&mut self.stacks);
        for piece in own.chain([&mut self.arena, &mut self.scratch]) {
            let old = std::mem::take(piece);
            if old.at != 0 {
                self.device.free(old.at)?;
            }
        }
        self.standing.iter_mut().for_each(|s| *s = None);
        self.epoch += 1;
        Ok(())
    }

    fn room_of(
        &mut self,
        e: &Entry,
        entry: usize,
        sizes: &[Option<usize>],
        ready: &[Option<Ready>],
    ) -> Result<()> {
        self.stand(e, entry, sizes)?;
        let arena = self.standing[entry].as_ref().map_or(0, |s| s.arena);
        if self.arena.at == 0 || self.arena.room < arena {
            let old = std::mem::take(&mut self.arena);
            if old.at != 0 {
                self.device.free(old.at)?;
            }
            self.arena = self.piece(arena, "temporaries")?;
        }
        self.scratch_for(device_scratch(ready))?;
        for (i, b) in e.buffers.iter().enumerate() {
            let port = matches!(b.place, Place::Input | Place::Output);
            if let (true, Some(size)) = (port, sizes[i])
                && self.spaces[entry].space(i as u32).device
            {
                self.own_piece(entry, i, size)?;
            }
        }
        Ok(())
    }

    pub(super) fn scratch_for(&mut self, bytes: usize) -> Result<u64> {
        let old = std::mem::take(&mut self.scratch);
        self.scratch = self.grown(old, bytes, "scratch")?;
        Ok(self.scratch.at)
    }

    /// A buffer's own memory, for so many bytes.
    pub(super) fn own_piece(&mut self, entry: usize, buffer: usize, bytes: usize) -> Result<u64> {
        let old = std::mem::take(&mut self.own[entry][buffer]);
        let new = self.grown(old, bytes, "a buffer")?;
        self.own[entry][buffer] = new;
        Ok(new.at)
    }

    /// Room for so many bytes in a stack, the first `keep` of which stay.
    pub(super) fn stack_piece(&mut self, stack: usize, bytes: usize, keep: usize) -> Result<u64> {
        while self.stacks.len() <= stack {
            self.stacks.push(Piece::default());
        }
        let old = self.stacks[stack];
        if old.at != 0 && old.room >= bytes {
            return Ok(old.at);
        }
        // Twice as much, so that a loop's copies add up to what it stacks.
        let new = self.piece(bytes.max(old.room.saturating_mul(2)), "what a loop stacks")?;
        if old.at != 0 {
            if keep > 0 {
                let device = &mut *self.device;
                let from = old.at..old.at + keep as u64;
                self.order.before_compute(device, &[from])?;
                device.copy(old.at, new.at, keep)?;
                self.order.gave([]);
            }
            self.device.free(old.at)?;
        }
        self.stacks[stack] = new;
        Ok(new.at)
    }
}
