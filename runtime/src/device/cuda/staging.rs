//! Large copies to a GPU through two pieces of page-locked memory: while the device
//! reads one, the next part is put into the other.

use super::driver::check;
use crate::error::Result;
use cudarc::driver::sys;
use std::ffi::c_void;
use std::ptr::null_mut;

/// Copies of at least so many bytes are worth it.
pub(super) const LARGE: usize = 1 << 20;
/// Bytes of a piece.
const PIECE: usize = 8 << 20;

/// One piece: its memory, and when the device has read it.
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
