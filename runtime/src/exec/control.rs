//! Loops.

use super::launch::count_launches;
use super::layout::{MAX_BYTES, too_large};
use super::steps::Run;
use crate::error::{Error, Result};
use crate::plan::Loop;
use kiln_ir::Dim;

impl Run<'_> {
    fn bytes(&self, dim: &Dim) -> Result<usize> {
        let n = dim
            .eval(&self.binding)
            .map_err(|e| Error::run("K0720", e.to_string()))?;
        Ok(usize::try_from(n).unwrap_or(0))
    }

    /// Carries values whose extents change: all are taken before any size is, since
    /// sizes say where values lie.
    fn carry_resized(&mut self, l: &Loop) -> Result<()> {
        let mut taken = vec![];
        for (from, to, bytes) in &l.carried {
            let n = self.bytes(bytes)?;
            let mut stack = self.new_stack(*to)?;
            self.push(&mut stack, *from, n)?;
            taken.push(stack);
        }
        self.set_dims(&l.sizes)?;
        for ((_, to, _), stack) in l.carried.iter().zip(taken).rev() {
            self.unstack(stack, *to)?;
        }
        Ok(())
    }

    pub(super) fn run_loop(&mut self, l: &Loop, launch: &mut usize) -> Result<()> {
        let trip = self.read_i64(l.trip)?;
        // SAFETY: a bool scalar has one byte.
        let mut on = unsafe { self.pointer(l.cond)?.read() } != 0;
        let first = *launch;
        let mut stacks = vec![];
        for (_, to, _) in &l.scanned {
            stacks.push(self.new_stack(*to)?);
        }
        let mut i = 0i64;
        while on && (trip < 0 || i < trip) {
            *launch = first;
            self.host_writes(l.iteration)?;
            // SAFETY: an i64 scalar has eight bytes.
            unsafe { self.pointer(l.iteration)?.cast::<i64>().write_unaligned(i) };
            self.steps(&l.body, launch)?;
            self.host_needs(l.body_cond)?;
            // SAFETY: a bool scalar has one byte.
            on = unsafe { self.pointer(l.body_cond)?.read() } != 0;
            for ((from, _, bytes), stack) in l.scanned.iter().zip(&mut stacks) {
                let n = self.bytes(bytes)?;
                if stack.len() as u64 + n as u64 > MAX_BYTES {
                    return Err(too_large(bytes, stack.len() as i128));
                }
                self.push(stack, *from, n)?;
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
        for ((_, to, _), stack) in l.scanned.iter().zip(stacks).rev() {
            // The number of iterations is known now, and with it the buffer's size.
            let room = self.bytes(&self.entry.buffers[*to as usize].bytes)?;
            if room != stack.len() {
                return Err(Error::run(
                    "K0725",
                    format!(
                        "a loop stacked {} bytes where {room} were planned",
                        stack.len()
                    ),
                ));
            }
            self.unstack(stack, *to)?;
        }
        Ok(())
    }
}
