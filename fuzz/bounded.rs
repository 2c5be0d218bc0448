//! An allocator that ends the program when it asks for much memory at once, as a reader does that
//! believes an announced length.

use std::alloc::{GlobalAlloc, Layout, System};

/// The most bytes of one allocation. The longest inputs have 4 KiB, the longest D-Bus message that
/// is read has 64 KiB, and a reader may double its room.
const MOST: usize = 256 << 10;

struct Bounded;

#[global_allocator]
static ALLOCATOR: Bounded = Bounded;

// SAFETY: every call goes to the system's allocator as it is, or does not return.
unsafe impl GlobalAlloc for Bounded {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        bound(layout.size());
        // SAFETY: the caller keeps to the contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        bound(layout.size());
        // SAFETY: the caller keeps to the contract.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        bound(size);
        // SAFETY: the caller keeps to the contract.
        unsafe { System.realloc(memory, layout, size) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps to the contract.
        unsafe { System.dealloc(memory, layout) }
    }
}

fn bound(size: usize) {
    if size > MOST {
        // A panic would need memory itself.
        std::process::abort();
    }
}
