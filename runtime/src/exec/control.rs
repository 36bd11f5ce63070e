//! Loops.

use super::launch::count_launches;
use super::layout::{MAX_BYTES, too_large};
use super::steps::Run;
use crate::error::{Error, Result};
use crate::plan::Loop;

impl Run<'_> {
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

    pub(super) fn run_loop(&mut self, l: &Loop, launch: &mut usize) -> Result<()> {
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
