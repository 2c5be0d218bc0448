//! Counts the memory that this process has allocated.
//!
//! # Theory of operation
//! The overload guard needs the figure many times a second, and the system has none that is cheap:
//! the worker cannot open `/proc`, and the allocator's own statistics walk through all free pieces
//! of memory while they lock out the threads that serve. So every allocation is counted. A thread
//! counts on its own, and adds what has come together to the figure of the process in batches, so
//! that an allocation costs a few instructions more and touches no memory of other threads. The
//! figure is therefore wrong by at most one batch for each thread.
//!
//! What libraries in C allocate is not counted: of a connection with TLS that is a few hundred
//! bytes of keys. Nor is memory counted that was freed and that the allocator keeps.
//!
//! The allocator is that of the whole program `smoothserve`, so the manager counts, too, and nobody
//! asks it for the figure.

// A global allocator can only be written as an unsafe trait. All that this one does itself is to
// add numbers; each call goes to the system's allocator as it came.
#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::{AtomicIsize, Ordering::Relaxed};

/// How many bytes a thread counts on its own, in either direction.
const BATCH: usize = 64 << 10;

#[cfg(test)]
#[global_allocator]
static HEAP: CountingHeap = CountingHeap;

/// The bytes in use that threads have reported.
static REPORTED: AtomicIsize = AtomicIsize::new(0);

thread_local! {
    /// The bytes that this thread has allocated, or freed if negative, and not reported yet. The
    /// allocator may use it at any time, since it needs neither memory nor a destructor.
    static UNREPORTED: Cell<isize> = const { Cell::new(0) };
}

/// The system's allocator, with a count. In a program that has another allocator, nothing is
/// counted.
#[derive(Debug)]
pub struct CountingHeap;

/// Returns how many bytes this process has allocated and not freed, to within a batch for each
/// thread.
pub(crate) fn in_use() -> u64 {
    u64::try_from(REPORTED.load(Relaxed)).unwrap_or(0)
}

/// Gives free memory back to the system. The allocator does not do that by itself while a single
/// byte behind the free memory is in use.
pub(crate) fn trim() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim has no requirements.
    unsafe {
        nix::libc::malloc_trim(0);
    }
}

#[inline]
fn count(bytes: isize) {
    UNREPORTED.with(|unreported| {
        let sum = unreported.get().wrapping_add(bytes);
        if sum.unsigned_abs() < BATCH {
            unreported.set(sum);
        } else {
            unreported.set(0);
            report(sum);
        }
    });
}

#[cold]
fn report(sum: isize) {
    REPORTED.fetch_add(sum, Relaxed);
}

// SAFETY: every method passes its arguments on to the same method of the system's allocator, and
// returns what that returns. Counting neither allocates nor panics.
unsafe impl GlobalAlloc for CountingHeap {
    #[inline]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size().cast_signed());
        // SAFETY: the caller keeps to the contract of this method, which is the same.
        unsafe { System.alloc(layout) }
    }

    #[inline]
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size().cast_signed());
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    #[inline]
    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        count(-layout.size().cast_signed());
        // SAFETY: as above.
        unsafe { System.dealloc(memory, layout) }
    }

    #[inline]
    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size.cast_signed() - layout.size().cast_signed());
        // SAFETY: as above.
        unsafe { System.realloc(memory, layout, size) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_allocated_is_counted_until_it_is_freed() {
        // Other tests allocate meanwhile, but not as much.
        const MUCH: usize = 1 << 30;
        let before = in_use();
        let mut large: Vec<u8> = Vec::with_capacity(MUCH);
        let during = in_use();
        assert!(during - before > MUCH as u64 / 2, "{before} {during}");
        large.shrink_to(0);
        assert!(in_use() < before + MUCH as u64 / 2);
    }
}
