//! Global memory: allocations with addresses of 64 bits, gaps between them, a bit per
//! byte that says whether anything wrote it.
//!
//! Several CTAs run at once on threads of the host, and a kernel may race with itself;
//! so all accesses while a kernel runs are relaxed atomics of their own size.

use super::fault::{FaultKind, Outcome, Trouble, trouble};
use crate::error::{Error, Result};
use crate::memory::Block;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering::Relaxed};

/// Where allocations begin: no small integer is an address.
const BASE: u64 = 0x7_0000_0000;
/// Between allocations at least so many bytes belong to nobody.
const GAP: u64 = 4096;
/// Alignment of allocations, bytes.
const ALIGN: u64 = 256;

/// The global address space of a device.
#[derive(Default)]
pub struct Memory {
    /// By address.
    allocations: Vec<Allocation>,
    end: u64,
    /// Addresses of modules' `.global` variables, by module.
    pub(super) globals: HashMap<u64, Vec<u64>>,
}

struct Allocation {
    start: u64,
    len: u64,
    bytes: Block,
    written: Vec<AtomicU8>,
}

/// A part of memory that a launch may access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// Its first address.
    pub start: u64,
    /// Bytes.
    pub len: u64,
    /// Whether it may be written.
    pub writable: bool,
}

impl Memory {
    /// No allocations.
    pub fn new() -> Memory {
        Memory::default()
    }

    /// `bytes` bytes that nothing has written, at a multiple of 256; 0 bytes take an
    /// address as well. K0788 if the host has no memory for it.
    pub fn try_alloc(&mut self, bytes: usize) -> Result<u64> {
        let start = (self.end.max(BASE) + GAP).next_multiple_of(ALIGN);
        let none = || {
            Error::run(
                "K0788",
                format!("no memory for {bytes} bytes of a simulated device"),
            )
            .help("use smaller sizes, or a machine with more memory")
        };
        let len = bytes as u64;
        self.end = start.checked_add(len).ok_or_else(none)?;
        let block = Block::new(bytes).ok_or_else(none)?;
        let written = (0..bytes.div_ceil(8)).map(|_| AtomicU8::new(0)).collect();
        self.allocations.push(Allocation {
            start,
            len,
            bytes: block,
            written,
        });
        Ok(start)
    }

    /// The same, where the host is known to have the memory.
    ///
    /// # Panics
    /// If it has not.
    pub fn alloc(&mut self, bytes: usize) -> u64 {
        match self.try_alloc(bytes) {
            Ok(at) => at,
            Err(error) => panic!("{error}"),
        }
    }

    /// Gives an allocation back: accesses to it are faults from now on, as its
    /// addresses are not used again. An address where none begins is ignored.
    pub fn free(&mut self, at: u64) {
        self.allocations.retain(|a| a.start != at);
    }

    /// Bytes that are allocated.
    pub fn allocated(&self) -> u64 {
        self.allocations.iter().map(|a| a.len).sum()
    }

    /// Writes bytes from the host. K0789 outside an allocation.
    pub fn write(&mut self, at: u64, bytes: &[u8]) -> Result<()> {
        let (_, offset) = self.host(at, bytes.len())?;
        let allocation = self.at_mut(at);
        allocation.bytes.bytes_mut()[offset as usize..][..bytes.len()].copy_from_slice(bytes);
        allocation.mark(offset, bytes.len() as u64);
        Ok(())
    }

    /// Reads bytes to the host, written or not. K0789 outside an allocation.
    pub fn read(&self, at: u64, into: &mut [u8]) -> Result<()> {
        let (allocation, offset) = self.host(at, into.len())?;
        let from = allocation.bytes.bytes();
        into.copy_from_slice(&from[offset as usize..offset as usize + into.len()]);
        Ok(())
    }

    /// Copies within the device; what was not written stays so. K0789 outside
    /// allocations.
    pub fn copy(&mut self, to: u64, from: u64, bytes: usize) -> Result<()> {
        let (source, start) = self.host(from, bytes)?;
        let data = source.bytes.bytes()[start as usize..start as usize + bytes].to_vec();
        let all = source.is_written(start, bytes as u64);
        let known: Vec<bool> = match all {
            true => vec![],
            false => (0..bytes as u64)
                .map(|i| source.is_written(start + i, 1))
                .collect(),
        };
        self.write(to, &data)?;
        let (target, offset) = self.host(to, bytes)?;
        let unknown = known.iter().enumerate().filter(|(_, known)| !**known);
        unknown.for_each(|(i, _)| target.forget(offset + i as u64));
        Ok(())
    }

    /// From now on, reading these bytes before they are written is a fault again.
    /// K0789 outside an allocation.
    pub fn forget(&mut self, at: u64, bytes: usize) -> Result<()> {
        let (allocation, offset) = self.host(at, bytes)?;
        (0..bytes as u64).for_each(|i| allocation.forget(offset + i));
        Ok(())
    }

    /// Whether something wrote all of these bytes. K0789 outside an allocation.
    pub fn written(&self, at: u64, bytes: usize) -> Result<bool> {
        let (allocation, offset) = self.host(at, bytes)?;
        Ok(allocation.is_written(offset, bytes as u64))
    }

    fn host(&self, at: u64, bytes: usize) -> Result<(&Allocation, u64)> {
        let found = self.index(at).map(|i| &self.allocations[i]);
        match found {
            Some(a) if at - a.start + bytes as u64 <= a.len => Ok((a, at - a.start)),
            _ => {
                let what =
                    format!("{bytes} bytes at {at:#x} of a simulated device are not allocated");
                Err(Error::run("K0789", what).help("stay inside one allocation"))
            }
        }
    }

    /// The allocation of an address that is in one.
    fn at_mut(&mut self, at: u64) -> &mut Allocation {
        let index = self.index(at).unwrap_or(0);
        &mut self.allocations[index]
    }

    /// The last allocation that begins at or before `at`.
    fn index(&self, at: u64) -> Option<usize> {
        self.allocations
            .partition_point(|a| a.start <= at)
            .checked_sub(1)
    }
}

impl Allocation {
    fn mark(&self, offset: u64, len: u64) {
        let mut at = offset;
        while at < offset + len {
            let (byte, bit) = ((at / 8) as usize, at % 8);
            let n = (8 - bit).min(offset + len - at);
            let mask = ((u16::MAX >> (16 - n)) << bit) as u8;
            match mask {
                u8::MAX => self.written[byte].store(mask, Relaxed),
                _ if self.written[byte].load(Relaxed) & mask == mask => {}
                _ => {
                    self.written[byte].fetch_or(mask, Relaxed);
                }
            }
            at += n;
        }
    }

    fn forget(&self, at: u64) {
        self.written[(at / 8) as usize].fetch_and(!(1 << (at % 8)), Relaxed);
    }

    fn is_written(&self, offset: u64, len: u64) -> bool {
        let mut at = offset;
        while at < offset + len {
            let (byte, bit) = ((at / 8) as usize, at % 8);
            let n = (8 - bit).min(offset + len - at);
            let mask = ((u16::MAX >> (16 - n)) << bit) as u8;
            if self.written[byte].load(Relaxed) & mask != mask {
                return false;
            }
            at += n;
        }
        true
    }
}

/// Global memory as a launch sees it.
pub struct Global<'a> {
    memory: &'a Memory,
    windows: &'a [Window],
}

/// A run of addresses that is accessible alike, so that lanes need no search each.
#[derive(Clone, Copy, Default)]
pub struct Span {
    start: u64,
    end: u64,
    allocation: usize,
    writable: bool,
}

impl<'a> Global<'a> {
    /// The windows' part of memory, or all of it without windows.
    pub fn new(memory: &'a Memory, windows: &'a [Window]) -> Global<'a> {
        Global { memory, windows }
    }

    /// Where `len` bytes at `at` lie; `span` is the last one found.
    fn find(&self, at: u64, len: u64, write: bool, span: &mut Span) -> Outcome<(&Allocation, u64)> {
        if !at.is_multiple_of(len.next_power_of_two()) {
            return Err(misaligned(at, len));
        }
        if !(at >= span.start && at + len <= span.end && (span.writable || !write)) {
            *span = self.search(at, len, write)?;
        }
        let allocation = &self.memory.allocations[span.allocation];
        Ok((allocation, at - allocation.start))
    }

    fn search(&self, at: u64, len: u64, write: bool) -> Outcome<Span> {
        let end = at.checked_add(len).ok_or_else(|| self.outside(at, len))?;
        let index = self.memory.index(at).ok_or_else(|| self.outside(at, len))?;
        let a = &self.memory.allocations[index];
        if end > a.start + a.len {
            return Err(self.outside(at, len));
        }
        let mut span = Span {
            start: a.start,
            end: a.start + a.len,
            allocation: index,
            writable: true,
        };
        if self.windows.is_empty() {
            return Ok(span);
        }
        let inside = |w: &&Window| at >= w.start && end <= w.start.saturating_add(w.len);
        let mut found = self.windows.iter().filter(inside);
        let window = found
            .clone()
            .find(|w| w.writable || !write)
            .or_else(|| found.next());
        let Some(window) = window else {
            return Err(self.outside(at, len));
        };
        if write && !window.writable {
            let help = "the buffer is an input of this step: write to another one";
            let what = format!("{len} bytes are stored to a buffer that may only be read");
            return Err(trouble(FaultKind::ReadOnly, what, help).at(at));
        }
        span.start = span.start.max(window.start);
        span.end = span.end.min(window.start.saturating_add(window.len));
        span.writable = window.writable;
        Ok(span)
    }

    fn outside(&self, at: u64, len: u64) -> Box<Trouble> {
        let near = |start: u64, size: u64| {
            let end = start.saturating_add(size);
            let past = (at >= end).then(|| format!("{} bytes past the end of", at - end));
            let before = (at < start).then(|| format!("{} bytes before", start - at));
            let where_ = past.or(before).unwrap_or("across the end of".into());
            format!("{where_} the buffer of {size} bytes at {start:#x}")
        };
        let distance = |start: u64, size: u64| {
            if at < start {
                start - at
            } else {
                at.saturating_sub(start.saturating_add(size))
            }
        };
        let buffers: Vec<(u64, u64)> = if self.windows.is_empty() {
            self.memory
                .allocations
                .iter()
                .map(|a| (a.start, a.len))
                .collect()
        } else {
            self.windows.iter().map(|w| (w.start, w.len)).collect()
        };
        let nearest = buffers
            .iter()
            .min_by_key(|(start, size)| distance(*start, *size));
        let place = match nearest {
            Some((start, size)) if distance(*start, *size) < 1 << 20 => near(*start, *size),
            _ => "far from every buffer".into(),
        };
        let help = "check the index, the grid's last block and the guard on its tail";
        trouble(
            FaultKind::OutOfBounds,
            format!("{len} bytes of global memory, {place}"),
            help,
        )
        .at(at)
    }

    /// The lanes of `mask` access `len` bytes each, at multiples of `len`, in one run of
    /// addresses: where that lies. None if they do not, or must not.
    pub fn run(&self, at: &[u64; 32], mask: u32, len: u64, write: bool) -> Option<Run<'_>> {
        let first = at[mask.trailing_zeros() as usize & 31];
        let span = self.search(first, len, write).ok()?;
        let last = span.end.checked_sub(len)?;
        let mut low_bits = 0;
        let mut inside = true;
        for lane in super::regs::lanes(mask) {
            low_bits |= at[lane];
            inside &= (span.start..=last).contains(&at[lane]);
        }
        let fits = inside && low_bits & (len - 1) == 0 && (span.writable || !write);
        fits.then(|| Run(&self.memory.allocations[span.allocation]))
    }

    /// Loads 1, 2, 4 or 8 bytes.
    pub fn load(&self, at: u64, len: u32, span: &mut Span) -> Outcome<u64> {
        let (a, _) = self.find(at, len as u64, false, span)?;
        // SAFETY: `find` says that the bytes lie inside the block and are aligned.
        let value = unsafe { Run(a).load(at, len) };
        value.ok_or_else(|| unwritten("global", len as u64).at(at))
    }

    /// Stores 1, 2, 4 or 8 bytes.
    pub fn store(&self, at: u64, len: u32, value: u64, span: &mut Span) -> Outcome {
        let (a, _) = self.find(at, len as u64, true, span)?;
        // SAFETY: as in `load`.
        unsafe { Run(a).store(at, len, value) };
        Ok(())
    }

    /// Replaces 2, 4 or 8 bytes by a function of them, at once; what was there.
    pub fn update(&self, at: u64, len: u32, f: impl Fn(u64) -> u64) -> Outcome<u64> {
        let mut span = Span::default();
        let (a, offset) = self.find(at, len as u64, true, &mut span)?;
        if !a.is_written(offset, len as u64) {
            return Err(unwritten("global", len as u64).at(at));
        }
        // SAFETY: as in `load`.
        let old = unsafe {
            let p = a.bytes.ptr().add(offset as usize);
            match len {
                2 => AtomicU16::from_ptr(p.cast())
                    .fetch_update(Relaxed, Relaxed, |v| Some(f(v as u64) as u16))
                    .unwrap_or(0) as u64,
                4 => AtomicU32::from_ptr(p.cast())
                    .fetch_update(Relaxed, Relaxed, |v| Some(f(v as u64) as u32))
                    .unwrap_or(0) as u64,
                _ => AtomicU64::from_ptr(p.cast())
                    .fetch_update(Relaxed, Relaxed, |v| Some(f(v)))
                    .unwrap_or(0),
            }
        };
        Ok(old)
    }
}

/// A run of addresses in which accesses were checked.
#[derive(Clone, Copy)]
pub struct Run<'a>(&'a Allocation);

impl Run<'_> {
    /// Loads 1, 2, 4 or 8 bytes; none if nothing wrote them.
    ///
    /// # Safety
    /// The access is one that was checked, or a part of it: inside and aligned.
    #[inline]
    pub unsafe fn load(self, at: u64, len: u32) -> Option<u64> {
        let offset = at - self.0.start;
        let mask = ((1u32 << len) - 1) << (offset & 7);
        if !self.0.written[(offset / 8) as usize].load(Relaxed) as u32 & mask != 0 {
            return None;
        }
        // SAFETY: inside the block and aligned, as the caller promises; all accesses
        // while it is shared are atomic.
        Some(unsafe {
            let p = self.0.bytes.ptr().add(offset as usize);
            match len {
                1 => AtomicU8::from_ptr(p).load(Relaxed) as u64,
                2 => AtomicU16::from_ptr(p.cast()).load(Relaxed) as u64,
                4 => AtomicU32::from_ptr(p.cast()).load(Relaxed) as u64,
                _ => AtomicU64::from_ptr(p.cast()).load(Relaxed),
            }
        })
    }

    /// Stores 1, 2, 4 or 8 bytes.
    ///
    /// # Safety
    /// As of `load`.
    #[inline]
    pub unsafe fn store(self, at: u64, len: u32, value: u64) {
        let offset = at - self.0.start;
        // SAFETY: as in `load`.
        unsafe {
            let p = self.0.bytes.ptr().add(offset as usize);
            match len {
                1 => AtomicU8::from_ptr(p).store(value as u8, Relaxed),
                2 => AtomicU16::from_ptr(p.cast()).store(value as u16, Relaxed),
                4 => AtomicU32::from_ptr(p.cast()).store(value as u32, Relaxed),
                _ => AtomicU64::from_ptr(p.cast()).store(value, Relaxed),
            }
        }
        self.0.mark(offset, len as u64);
    }
}

/// A read of what nothing wrote.
pub fn unwritten(space: &str, len: u64) -> Box<Trouble> {
    let what = format!("{len} bytes of {space} memory are read that nothing wrote");
    trouble(
        FaultKind::Unwritten,
        what,
        "write them first, or do not read past what was written",
    )
}

/// An address that is no multiple of the size.
pub fn misaligned(at: u64, len: u64) -> Box<Trouble> {
    let what = format!("an access of {len} bytes at an address that is no multiple of {len}");
    trouble(
        FaultKind::Misaligned,
        what,
        "use a narrower access, or pad the rows",
    )
    .at(at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn allocations_have_gaps_and_remember_writes() {
        let mut memory = Memory::new();
        let (a, b) = (memory.alloc(100), memory.alloc(0));
        assert!(a % 256 == 0 && b % 256 == 0 && b >= a + 100 + GAP);
        memory.write(a + 4, &[1, 2, 3]).unwrap();
        assert!(memory.written(a + 4, 3).unwrap() && !memory.written(a + 3, 4).unwrap());
        let c = memory.alloc(100);
        memory.copy(c, a, 100).unwrap();
        assert!(memory.written(c + 4, 3).unwrap() && !memory.written(c + 7, 1).unwrap());
        let mut out = [0; 3];
        memory.read(c + 4, &mut out).unwrap();
        assert_eq!(out, [1, 2, 3]);
        assert_eq!(memory.write(a + 98, &[0; 3]).unwrap_err().code, "K0789");
        memory.free(a);
        assert_eq!(memory.read(a, &mut out).unwrap_err().code, "K0789");
    }

    #[test]
    fn windows_are_narrower_than_allocations() {
        let mut memory = Memory::new();
        let a = memory.alloc(256);
        memory.write(a, &[0; 256]).unwrap();
        let windows = [
            Window {
                start: a,
                len: 64,
                writable: false,
            },
            Window {
                start: a + 64,
                len: 64,
                writable: true,
            },
        ];
        let global = Global::new(&memory, &windows);
        let span = &mut Span::default();
        assert!(global.load(a + 60, 4, span).is_ok() && global.store(a + 64, 8, 1, span).is_ok());
        let kind = |r: Outcome<u64>| r.unwrap_err().kind;
        assert_eq!(
            kind(global.store(a, 4, 1, span).map(|_| 0)),
            FaultKind::ReadOnly
        );
        assert_eq!(kind(global.load(a + 128, 4, span)), FaultKind::OutOfBounds);
        assert_eq!(kind(global.load(a + 2, 4, span)), FaultKind::Misaligned);
    }
}
