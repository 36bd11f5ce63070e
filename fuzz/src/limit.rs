//! A limit on one allocation. libFuzzer's own counts only where a sanitizer hands
//! it every `malloc`, and there is none here.

use std::alloc::{GlobalAlloc, Layout, System};

/// Bytes that one allocation may have.
const LIMIT: usize = 1 << 30;

/// The system's allocator, out of memory beyond the limit: code that asks for
/// memory and cannot go on without aborts, which is a finding; code that is
/// ready for none says so.
pub struct Limited;

// SAFETY: either the system's allocator or, as the trait allows, null.
unsafe impl GlobalAlloc for Limited {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if layout.size() > LIMIT {
            return std::ptr::null_mut();
        }
        // SAFETY: the caller's contract is the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if layout.size() > LIMIT {
            return std::ptr::null_mut();
        }
        // SAFETY: the caller's contract is the same.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: what `alloc` gives is the system's.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        if size > LIMIT {
            return std::ptr::null_mut();
        }
        // SAFETY: what `alloc` gives is the system's.
        unsafe { System.realloc(at, layout, size) }
    }
}
