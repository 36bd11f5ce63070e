//! Memory: aligned blocks, and the assignment of arena offsets.

use memmap2::{Advice, MmapMut};
use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ptr::NonNull;

/// Alignment of every buffer: a cache line, and a 512-bit register.
pub const ALIGN: usize = 64;

/// Blocks of at least so many bytes are pages of their own. The system zeroes those
/// where they are first touched, by the thread that touches them; the allocator
/// writes zeros over the whole block.
const MAPPED: usize = 1 << 20;

/// A zeroed block aligned to [`ALIGN`].
pub struct Block {
    at: NonNull<u8>,
    len: usize,
    /// What `at` points into, unless it is the allocator's.
    pages: Option<MmapMut>,
}

// SAFETY: a block owns its memory; it is moved, and shared only by reference.
unsafe impl Send for Block {}
unsafe impl Sync for Block {}

impl Block {
    /// A block of `len` bytes; none if the system has no memory for it.
    pub fn new(len: usize) -> Option<Block> {
        if len >= MAPPED {
            let mut pages = MmapMut::map_anon(len).ok()?;
            // Fewer faults, and fewer misses of address translation; a system without
            // large pages has small ones.
            let _ = pages.advise(Advice::HugePage);
            let at = NonNull::new(pages.as_mut_ptr())?;
            let pages = Some(pages);
            return Some(Block { at, len, pages });
        }
        let layout = Layout::from_size_align(len.max(1), ALIGN).ok()?;
        // SAFETY: the layout's size is not zero.
        let at = NonNull::new(unsafe { alloc_zeroed(layout) })?;
        let pages = None;
        Some(Block { at, len, pages })
    }

    /// The first byte.
    pub fn ptr(&self) -> *mut u8 {
        self.at.as_ptr()
    }

    /// Bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it holds nothing.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The contents.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: `at` points to `len` initialised bytes that live as long as self.
        unsafe { std::slice::from_raw_parts(self.at.as_ptr(), self.len) }
    }

    /// The contents, for writing.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and the borrow is exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.at.as_ptr(), self.len) }
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        if self.pages.is_some() {
            return;
        }
        // SAFETY: allocated in `new` with this layout.
        unsafe {
            dealloc(
                self.at.as_ptr(),
                Layout::from_size_align_unchecked(self.len.max(1), ALIGN),
            )
        }
    }
}

/// A buffer that wants arena memory: its size and when it is in use.
#[derive(Clone, Copy, Debug)]
pub struct Request {
    /// Bytes.
    pub size: usize,
    /// First step that touches it.
    pub first: u32,
    /// Last step that touches it.
    pub last: u32,
}

/// Offsets for each request and the arena's size: the largest first, each at the
/// lowest offset free during its life (the greedy-by-size heuristic of Pisarchyk
/// and Lee, 2020). Deterministic.
pub fn assign(requests: &[Request]) -> (Vec<usize>, usize) {
    let mut order: Vec<usize> = (0..requests.len()).collect();
    order.sort_by_key(|&i| (std::cmp::Reverse(requests[i].size), requests[i].first, i));
    let mut offsets = vec![0usize; requests.len()];
    let mut placed: Vec<usize> = vec![];
    let mut peak = 0usize;
    for i in order {
        let r = requests[i];
        let size = r.size.max(1).next_multiple_of(ALIGN);
        let mut taken: Vec<(usize, usize)> = placed
            .iter()
            .filter(|&&j| requests[j].first <= r.last && r.first <= requests[j].last)
            .map(|&j| {
                (
                    offsets[j],
                    offsets[j] + requests[j].size.max(1).next_multiple_of(ALIGN),
                )
            })
            .collect();
        taken.sort_unstable();
        let mut at = 0;
        for (low, high) in taken {
            if at + size <= low {
                break;
            }
            at = at.max(high);
        }
        offsets[i] = at;
        peak = peak.max(at + size);
        placed.push(i);
    }
    (offsets, peak)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_of_either_kind_are_aligned_zeros() {
        for len in [0, 1, 1000, MAPPED - 1, MAPPED, 3 * MAPPED + 5] {
            let mut block = Block::new(len).unwrap();
            assert!(block.ptr().addr().is_multiple_of(ALIGN) && block.len() == len);
            assert!(block.bytes().iter().all(|&b| b == 0), "{len}");
            block.bytes_mut().fill(7);
            assert!(block.bytes().iter().all(|&b| b == 7), "{len}");
        }
        assert!(Block::new(usize::MAX / 2).is_none());
    }

    #[test]
    fn lives_that_meet_do_not_share_memory() {
        // A fixed pseudo-random sequence: every run tests the same cases.
        let mut state = 12345u64;
        let mut next = |n: u64| {
            state = state
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            (state >> 33) % n
        };
        for _ in 0..200 {
            let requests: Vec<Request> = (0..1 + next(40))
                .map(|_| {
                    let first = next(30) as u32;
                    Request {
                        size: next(5000) as usize,
                        first,
                        last: first + next(8) as u32,
                    }
                })
                .collect();
            let (offsets, peak) = assign(&requests);
            for (i, a) in requests.iter().enumerate() {
                assert!(offsets[i] % ALIGN == 0 && offsets[i] + a.size <= peak);
                for (j, b) in requests.iter().enumerate().take(i) {
                    let meet = a.first <= b.last && b.first <= a.last;
                    let apart =
                        offsets[i] + a.size <= offsets[j] || offsets[j] + b.size <= offsets[i];
                    assert!(!meet || apart || a.size == 0 || b.size == 0);
                }
            }
        }
    }

    #[test]
    fn a_chain_needs_two_buffers() {
        let chain: Vec<Request> = (0..10)
            .map(|i| Request {
                size: 1024,
                first: i,
                last: i + 1,
            })
            .collect();
        assert_eq!(assign(&chain).1, 2048);
    }
}
