//! Where values cross between the host and the device, and copies.

use super::super::launch::status_error;
use super::super::layout::{MAX_BYTES, too_large};
use super::super::steps::Run;
use super::{DeviceRun, Last, Valid};
use crate::device;
use crate::error::{Error, Result};
use crate::gpu::STATUS_BYTES;
use crate::plan::{Place, Step};
use crate::profile::Lane;
use kiln_ir::Dim;

/// A value that waits for its place.
pub(in super::super) enum Taken {
    Host(Vec<u8>),
    /// Which stack, and bytes.
    Device(usize, usize),
}

impl Taken {
    /// Bytes that wait.
    pub(in super::super) fn len(&self) -> usize {
        match self {
            Taken::Host(bytes) => bytes.len(),
            Taken::Device(_, len) => *len,
        }
    }
}

impl DeviceRun<'_> {
    fn cell(&self, buffer: u32) -> usize {
        self.spaces.cell[buffer as usize] as usize
    }

    pub(super) fn valid(&self, buffer: u32) -> Valid {
        self.valid[self.cell(buffer)]
    }

    /// The compute lane was given work that touches these buffers and writes some of them.
    pub(super) fn computed(
        &mut self,
        touched: impl Iterator<Item = u32>,
        written: impl Iterator<Item = u32>,
    ) -> Result<()> {
        let (spaces, on) = (&self.spaces, &mut *self.on);
        let cell = |b: u32| spaces.cell[b as usize] as usize;
        on.order.gave(touched.map(cell));
        for c in written.map(cell) {
            on.order.wrote(&mut *on.device, c, spaces.leaves[c])?;
        }
        Ok(())
    }

    /// Who touched a buffer's memory last: of the arena, that may be a kernel of another
    /// buffer's.
    fn last(&self, root: u32, place: &Place) -> Last {
        match place {
            Place::Arena if self.base[root as usize] != 0 => Last::Any,
            _ => Last::Cell(self.cell(root)),
        }
    }

    pub(super) fn set_valid(&mut self, buffer: u32, valid: Valid) {
        let cell = self.cell(buffer);
        self.valid[cell] = valid;
    }
}

fn unplanned(what: &str, buffer: u32) -> Error {
    Error::run(
        "K0725",
        format!("buffer {buffer} has no place on the {what}"),
    )
}

impl<'r> Run<'r> {
    pub(super) fn device(&mut self) -> Result<&mut DeviceRun<'r>> {
        let none = || Error::run("K0725", "the run has no device");
        self.device.as_mut().ok_or_else(none)
    }

    /// Where a buffer is on the device; buffers of late sizes get memory here.
    pub(super) fn device_at(&mut self, buffer: u32) -> Result<u64> {
        let i = buffer as usize;
        let d = self.device()?;
        if d.base[i] != 0 {
            return Ok(d.base[i]);
        }
        if !d.spaces.space(buffer).device {
            return Err(unplanned("device", buffer));
        }
        match &self.entry.buffers[i].place {
            Place::View { of, offset } => {
                let from = self.device_at(*of)?;
                let offset = self.size(offset)?;
                // Not remembered: the buffer may move when its size changes.
                Ok(from.wrapping_add_signed(offset))
            }
            Place::Global(_) => Err(unplanned("device", buffer)),
            Place::Input | Place::Output | Place::Arena => {
                let dim = &self.entry.buffers[i].bytes;
                let n = self.size(dim)?;
                if !(0..=MAX_BYTES as i64).contains(&n) {
                    return Err(too_large(dim, n as i128));
                }
                self.sizes[i] = Some(n as usize);
                let d = self.device()?;
                d.on.own_piece(d.entry, i, n as usize)
            }
        }
    }

    pub(super) fn size(&self, dim: &Dim) -> Result<i64> {
        dim.eval(&self.binding)
            .map_err(|e| Error::run("K0720", e.to_string()))
    }

    pub(super) fn bytes_of(&self, buffer: u32) -> Result<usize> {
        let n = self.size(&self.entry.buffers[buffer as usize].bytes)?;
        Ok(usize::try_from(n).unwrap_or(0))
    }

    /// The buffer that a buffer is a view of, in the end.
    pub(super) fn root(&self, mut buffer: u32) -> u32 {
        while let Place::View { of, .. } = self.entry.buffers[buffer as usize].place {
            buffer = of;
        }
        buffer
    }

    /// Brings a value that the host is about to read to the host. Nothing to do without
    /// a device, where it is there, and where nothing was ever written.
    pub(in super::super) fn host_needs(&mut self, buffer: u32) -> Result<()> {
        let Some(d) = &self.device else {
            return Ok(());
        };
        let valid = d.valid(buffer);
        if valid.host || !valid.device {
            return Ok(());
        }
        let root = self.root(buffer);
        let bytes = self.bytes_of(root)?;
        let to = self.pointer(root)?;
        // SAFETY: the buffer has this many bytes on the host, as on the device, and
        // nothing else refers to them now.
        let to = unsafe { std::slice::from_raw_parts_mut(to, bytes) };
        self.download(root, to)?;
        self.device()?.set_valid(root, Valid::BOTH);
        Ok(())
    }

    /// Copies a buffer from the device, and checks the kernels so far.
    pub(in super::super) fn download(&mut self, buffer: u32, to: &mut [u8]) -> Result<()> {
        self.bring(buffer, to)?;
        self.check_kernels()
    }

    /// Copies a buffer from the device, when its last writer is done.
    fn bring(&mut self, buffer: u32, to: &mut [u8]) -> Result<()> {
        if to.is_empty() {
            return Ok(());
        }
        let before = self.mark(device::Lane::Down)?;
        let watch = self.watch();
        let from = self.device_at(buffer)?;
        let d = self.device()?;
        let cell = d.cell(buffer);
        d.on.download(from, to, Some(cell))?;
        self.note(watch, "to the host", "download", 0, to.len() as i64);
        self.time_from(before, Lane::ToHost)
    }

    /// Has the compute lane wait for copies up of buffers that it is about to touch.
    pub(super) fn wait_for_uploads(&mut self, buffers: impl Iterator<Item = u32>) -> Result<()> {
        if !self.device()?.on.order.has_uploads() {
            return Ok(());
        }
        let mut touches = vec![];
        for b in buffers {
            let root = self.root(b);
            let at = self.device_at(root)?;
            touches.push(at..at + self.bytes_of(root)? as u64);
        }
        let on = &mut *self.device()?.on;
        on.order.before_compute(&mut *on.device, &touches)
    }

    /// Says that the host is about to write a buffer as a whole; where it writes a part
    /// of one, the rest is brought first.
    pub(in super::super) fn host_writes(&mut self, buffer: u32) -> Result<()> {
        if self.device.is_none() {
            return Ok(());
        }
        if self.root(buffer) != buffer {
            self.host_needs(buffer)?;
        }
        self.device()?.set_valid(buffer, Valid::HOST);
        Ok(())
    }

    /// Readies a step of the host: what it reads is brought.
    pub(in super::super) fn cross(&mut self, step: &Step) -> Result<()> {
        let (reads, writes) = super::host_access(step);
        reads.into_iter().try_for_each(|b| self.host_needs(b))?;
        writes.into_iter().try_for_each(|b| self.host_writes(b))
    }

    /// Brings a value to the device that a kernel is about to touch, if the host has a
    /// newer one.
    pub(super) fn device_needs(&mut self, buffer: u32) -> Result<()> {
        let valid = self.device()?.valid(buffer);
        if valid.device || !valid.host {
            return Ok(());
        }
        let root = self.root(buffer);
        let bytes = self.bytes_of(root)?;
        self.upload(root, root, bytes)?;
        self.device()?.set_valid(root, Valid::BOTH);
        Ok(())
    }

    /// Copies from one buffer on the host to another on the device.
    fn upload(&mut self, from: u32, to: u32, bytes: usize) -> Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        let source = self.pointer(from)?;
        let at = self.device_at(to)?;
        // SAFETY: the buffer holds this many bytes by lowering.
        let source = unsafe { std::slice::from_raw_parts(source, bytes) };
        let root = self.root(to);
        let place = &self.entry.buffers[root as usize].place;
        let d = self.device.as_ref();
        let last = d.map_or(Last::Any, |d| d.last(root, place));
        self.send(at, source, last)
    }

    /// Copies bytes to the device, when who touched that memory last is done.
    fn send(&mut self, at: u64, bytes: &[u8], last: Last) -> Result<()> {
        let before = self.mark(device::Lane::Up)?;
        let watch = self.watch();
        self.device()?.on.upload(at, bytes, last)?;
        self.note(watch, "to the device", "upload", 0, bytes.len() as i64);
        self.time_from(before, Lane::ToDevice)
    }

    /// A copy step: on the side where the value is, if the target is there.
    pub(in super::super) fn copy_across(&mut self, from: u32, to: u32, bytes: &Dim) -> Result<()> {
        let n = usize::try_from(self.size(bytes)?).unwrap_or(0);
        let d = self.device()?;
        let (source, target) = (d.valid(from), d.spaces.space(to));
        // Nothing was written where there is nothing to copy.
        if source == Valid::default() || n == 0 {
            return Ok(());
        }
        let on_device = target.device && (source.device || !target.host);
        if self.root(to) != to {
            match on_device {
                true => self.device_needs(to)?,
                false => self.host_needs(to)?,
            }
        }
        match (on_device, source.device, source.host) {
            (true, true, _) => {
                let (a, b) = (self.device_at(from)?, self.device_at(to)?);
                self.wait_for_uploads([from, to].into_iter())?;
                self.copy_on_device(a, b, n)?;
                let touched = [from, to].into_iter();
                self.device()?.computed(touched, [to].into_iter())?;
            }
            (true, false, _) => self.upload(from, to, n)?,
            (false, _, true) => {
                let (a, b) = (self.pointer(from)?, self.pointer(to)?);
                // SAFETY: both buffers have at least this many bytes by lowering.
                unsafe { std::ptr::copy(a, b, n) };
            }
            (false, _, false) => {
                let b = self.pointer(to)?;
                // SAFETY: as above.
                let bytes = unsafe { std::slice::from_raw_parts_mut(b, n) };
                self.download(from, bytes)?;
            }
        }
        let now = if on_device {
            Valid::DEVICE
        } else {
            Valid::HOST
        };
        self.device()?.set_valid(to, now);
        Ok(())
    }

    fn copy_on_device(&mut self, from: u64, to: u64, bytes: usize) -> Result<()> {
        if from == to || bytes == 0 {
            return Ok(());
        }
        let before = self.mark(device::Lane::Compute)?;
        let watch = self.watch();
        self.device()?.on.copy(from, to, bytes)?;
        let moved = (bytes as i64).saturating_mul(2);
        self.note(watch, "copy", "copy", 0, moved);
        self.time_from(before, Lane::Device)
    }

    /// Starts a stack for values that go to a buffer, on the side where that is.
    pub(in super::super) fn new_stack(&mut self, to: u32) -> Result<Taken> {
        let Some(d) = &mut self.device else {
            return Ok(Taken::Host(vec![]));
        };
        if !d.spaces.space(to).device {
            return Ok(Taken::Host(vec![]));
        }
        d.stacks += 1;
        Ok(Taken::Device(d.stacks - 1, 0))
    }

    fn only_on_device(&self, buffer: u32) -> bool {
        let away = |d: &DeviceRun| !d.spaces.space(buffer).host;
        self.device.as_ref().is_some_and(away)
    }

    /// Adds a buffer's bytes to a stack.
    pub(in super::super) fn push(
        &mut self,
        stack: &mut Taken,
        from: u32,
        bytes: usize,
    ) -> Result<()> {
        match stack {
            Taken::Host(stack) if self.only_on_device(from) => {
                // What is on the device alone comes down piece by piece.
                let start = stack.len();
                stack.resize(start + bytes, 0);
                if self.device()?.valid(from).device {
                    self.download(from, &mut stack[start..])?;
                }
            }
            Taken::Host(stack) => {
                self.host_needs(from)?;
                let at = self.pointer(from)?;
                // SAFETY: the buffer holds this many bytes by lowering.
                stack.extend_from_slice(unsafe { std::slice::from_raw_parts(at, bytes) });
            }
            Taken::Device(which, len) if !self.device()?.spaces.space(from).device => {
                // What is on the host alone goes up piece by piece.
                let source = self.pointer(from)?;
                let d = self.device()?;
                let at = d.on.stack_piece(*which, *len + bytes, *len)?;
                // SAFETY: the buffer holds `bytes` by lowering.
                let piece = unsafe { std::slice::from_raw_parts(source, bytes) };
                if bytes > 0 {
                    self.send(at + *len as u64, piece, Last::Any)?;
                }
                *len += bytes;
            }
            Taken::Device(which, len) => {
                self.device_needs(from)?;
                let d = self.device()?;
                let at = d.on.stack_piece(*which, *len + bytes, *len)?;
                let to = at + *len as u64;
                // What was never written has no bytes to take.
                if d.valid(from).device {
                    let at = self.device_at(from)?;
                    self.wait_for_uploads([from].into_iter())?;
                    self.copy_on_device(at, to, bytes)?;
                    self.device()?
                        .computed([from].into_iter(), [].into_iter())?;
                }
                *len += bytes;
            }
        }
        Ok(())
    }

    /// Puts a stack's bytes where they belong, and is done with it. Stacks end in the
    /// reverse of the order in which they began.
    pub(in super::super) fn unstack(&mut self, stack: Taken, to: u32) -> Result<()> {
        match stack {
            Taken::Host(bytes) => {
                self.host_writes(to)?;
                let at = self.pointer(to)?;
                // SAFETY: the caller has compared the buffer's size with the stack's.
                unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), at, bytes.len()) };
            }
            Taken::Device(which, len) => {
                let to_at = self.device_at(to)?;
                if len > 0 {
                    self.wait_for_uploads([to].into_iter())?;
                    let on = &mut *self.device()?.on;
                    let from = on.stack_piece(which, len, len)?;
                    let stack = from..from + len as u64;
                    on.order.before_compute(&mut *on.device, &[stack])?;
                    self.copy_on_device(from, to_at, len)?;
                    self.device()?
                        .computed([to].into_iter(), [to].into_iter())?;
                }
                let d = self.device()?;
                d.stacks -= 1;
                d.set_valid(to, Valid::DEVICE);
            }
        }
        Ok(())
    }

    /// An output's bytes, from whichever side has them; kernels are checked afterwards.
    pub(in super::super) fn fetch(&mut self, buffer: u32, to: &mut [u8]) -> Result<()> {
        let valid = self.device()?.valid(buffer);
        if valid.host {
            let from = self.pointer(buffer)?;
            if from != to.as_mut_ptr() && !to.is_empty() {
                // SAFETY: the buffer holds the output's bytes.
                unsafe { std::ptr::copy_nonoverlapping(from, to.as_mut_ptr(), to.len()) };
            }
        } else if valid.device {
            self.bring(buffer, to)?;
        }
        Ok(())
    }

    /// Reads the status blocks, if a kernel was started since: the first launch that
    /// failed is the error.
    pub(in super::super) fn check_kernels(&mut self) -> Result<()> {
        let d = self.device()?;
        if !std::mem::take(&mut d.started) {
            return Ok(());
        }
        let mut blocks = vec![0u8; d.on.status.room];
        d.on.download(d.on.status.at, &mut blocks, None)?;
        let words = blocks
            .chunks_exact(STATUS_BYTES)
            .map(|b| b.first_chunk::<4>());
        let mut codes = words
            .map(|w| w.map_or(0, |w| u32::from_le_bytes(*w)))
            .enumerate();
        let Some((launch, code)) = codes.find(|(_, code)| *code != 0) else {
            return Ok(());
        };
        d.on.failed = true;
        let label = super::super::launch::label(&self.entry.steps, launch);
        Err(status_error(code as i32, label.unwrap_or("a kernel")))
    }
}
