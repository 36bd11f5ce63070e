//! Local memory of a warp's lanes.

use super::fault::{FaultKind, Outcome, trouble};
use super::memory::{misaligned, unwritten};

/// `size` bytes a lane, and which of them something wrote.
pub struct Local {
    size: u64,
    bytes: Vec<u8>,
    written: Vec<bool>,
}

impl Local {
    /// Nothing written.
    pub fn new(size: u64) -> Local {
        let total = size as usize * 32;
        Local {
            size,
            bytes: vec![0; total],
            written: vec![false; total],
        }
    }

    /// Nothing written any more.
    pub fn reset(&mut self) {
        self.written.fill(false);
    }

    fn find(&self, lane: usize, at: u64, len: u32) -> Outcome<usize> {
        if !at.is_multiple_of(len as u64) {
            return Err(misaligned(at, len as u64));
        }
        if at.checked_add(len as u64).is_none_or(|end| end > self.size) {
            let what = format!(
                "{len} bytes of local memory, of which the thread has {}",
                self.size
            );
            return Err(trouble(FaultKind::OutOfBounds, what, "check the index").at(at));
        }
        Ok(lane * self.size as usize + at as usize)
    }

    /// Loads 1, 2, 4 or 8 bytes.
    pub fn load(&self, lane: usize, at: u64, len: u32) -> Outcome<u64> {
        let place = self.find(lane, at, len)?;
        let range = place..place + len as usize;
        if self.written[range.clone()].contains(&false) {
            return Err(unwritten("local", len as u64).at(at));
        }
        let mut word = [0; 8];
        word[..len as usize].copy_from_slice(&self.bytes[range]);
        Ok(u64::from_le_bytes(word))
    }

    /// Stores 1, 2, 4 or 8 bytes.
    pub fn store(&mut self, lane: usize, at: u64, len: u32, value: u64) -> Outcome {
        let place = self.find(lane, at, len)?;
        let range = place..place + len as usize;
        self.bytes[range.clone()].copy_from_slice(&value.to_le_bytes()[..len as usize]);
        self.written[range].fill(true);
        Ok(())
    }
}
