//! Large copies between the host and a GPU through two pieces of page-locked memory: while
//! the device works on one, the host does on the other.

use super::driver::check;
use crate::error::Result;
use cudarc::driver::sys;
use std::ffi::c_void;
use std::ptr::null_mut;

/// Copies of at least so many bytes are worth it.
pub(super) const LARGE: usize = 1 << 20;
/// Bytes of a piece.
const PIECE: usize = 8 << 20;

/// One piece: its memory, and when the device is done with it.
struct Piece {
    at: *mut c_void,
    read: sys::CUevent,
}

/// The two pieces. They are made and dropped while their context is the thread's.
pub(super) struct Staging {
    pieces: [Piece; 2],
    next: usize,
}

impl Staging {
    pub(super) fn new() -> Result<Staging> {
        let piece = || Piece {
            at: null_mut(),
            read: null_mut(),
        };
        // What is there already is given back if the rest cannot be had.
        let mut staging = Staging {
            pieces: [piece(), piece()],
            next: 0,
        };
        for p in &mut staging.pieces {
            // SAFETY: the places outlive the calls.
            unsafe {
                check(
                    sys::cuMemHostAlloc(&mut p.at, PIECE, 0),
                    "allocating page-locked memory",
                )?;
                let kind = sys::CUevent_flags::CU_EVENT_DISABLE_TIMING as u32;
                check(sys::cuEventCreate(&mut p.read, kind), "making an event")?;
            }
        }
        Ok(staging)
    }

    /// Copies to the device; the bytes may change as soon as this returns.
    pub(super) fn upload(&mut self, to: u64, bytes: &[u8], stream: sys::CUstream) -> Result<()> {
        for (i, part) in bytes.chunks(PIECE).enumerate() {
            let piece = &self.pieces[self.next];
            // SAFETY: the piece has room for the part and is not written before the
            // device has read what was in it; an event that was never recorded is past.
            unsafe {
                check(sys::cuEventSynchronize(piece.read), "waiting for an event")?;
                std::ptr::copy_nonoverlapping(part.as_ptr(), piece.at.cast(), part.len());
                let at = to + (i * PIECE) as u64;
                let code = sys::cuMemcpyHtoDAsync_v2(at, piece.at, part.len(), stream);
                check(code, "copying to the device")?;
                check(sys::cuEventRecord(piece.read, stream), "recording an event")?;
            }
            self.next = 1 - self.next;
        }
        Ok(())
    }
}

impl Staging {
    /// Copies from the device, and waits for that.
    pub(super) fn download(
        &mut self,
        from: u64,
        bytes: &mut [u8],
        stream: sys::CUstream,
    ) -> Result<()> {
        let at = |part: usize| from + (part * PIECE) as u64;
        let mut parts = bytes.chunks_mut(PIECE).enumerate();
        let mut ahead = parts.next();
        if let Some((i, part)) = &ahead {
            self.fetch(*i, at(*i), part.len(), stream)?;
        }
        // The device brings the next part while this one is taken out.
        while let Some((i, part)) = ahead {
            ahead = parts.next();
            if let Some((next, part)) = &ahead {
                self.fetch(*next, at(*next), part.len(), stream)?;
            }
            let piece = &self.pieces[i % 2];
            // SAFETY: the piece holds the part once its event is past, and the device puts
            // nothing else there before the next call of `fetch` for it.
            unsafe {
                check(sys::cuEventSynchronize(piece.read), "waiting for an event")?;
                std::ptr::copy_nonoverlapping(piece.at.cast(), part.as_mut_ptr(), part.len());
            }
        }
        Ok(())
    }

    /// Has the device put a part into its piece.
    fn fetch(&self, part: usize, from: u64, bytes: usize, stream: sys::CUstream) -> Result<()> {
        let piece = &self.pieces[part % 2];
        // SAFETY: the piece has room for a part, and what was in it has been taken out.
        unsafe {
            let code = sys::cuMemcpyDtoHAsync_v2(piece.at, from, bytes, stream);
            check(code, "copying from the device")?;
            check(sys::cuEventRecord(piece.read, stream), "recording an event")
        }
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        for p in &self.pieces {
            // SAFETY: the handles are used no more; copies in flight are waited for first.
            unsafe {
                if !p.read.is_null() {
                    sys::cuEventSynchronize(p.read).result().ok();
                    sys::cuEventDestroy_v2(p.read).result().ok();
                }
                if !p.at.is_null() {
                    sys::cuMemFreeHost(p.at).result().ok();
                }
            }
        }
    }
}
