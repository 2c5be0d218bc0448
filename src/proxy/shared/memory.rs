//! How much memory a worker may use, and how far it is from that: what the threads share.
//!
//! The control thread looks at what is in use and sets the step. Between two looks, strangers can
//! fill much, so the data threads see for themselves, where a connection or a stream is new, that a
//! further step would be due.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering::Relaxed};

use super::heap;
use crate::ipc::Overload;

/// The part of the budget, in percent, with which each step begins, after that without measures.
pub(crate) const BEGINS: [(u64, Overload); 4] = [
    (60, Overload::Idle),
    (70, Overload::Streams),
    (80, Overload::Largest),
    (90, Overload::Connections),
];

/// The memory budget of the worker, and the step of its overload guard.
#[derive(Debug)]
pub(crate) struct Memory {
    /// The budget if no table sets another one.
    default: u64,
    most: AtomicU64,
    step: AtomicU8,
}

impl Memory {
    /// Makes the state of a worker that may use this many bytes, unless a table says otherwise.
    pub(crate) fn new(default: u64) -> Memory {
        Memory {
            default,
            most: AtomicU64::new(default),
            step: AtomicU8::new(0),
        }
    }

    /// Returns how many bytes the worker may use.
    pub(crate) fn most(&self) -> u64 {
        self.most.load(Relaxed)
    }

    /// Sets how many bytes the worker may use; `None` for the default.
    pub(crate) fn limit(&self, most: Option<u64>) {
        self.most.store(most.unwrap_or(self.default), Relaxed);
    }

    /// Returns what the worker does to need less memory.
    #[inline]
    pub(crate) fn overload(&self) -> Overload {
        let step = usize::from(self.step.load(Relaxed));
        Overload::STEPS.get(step).copied().unwrap_or_default()
    }

    /// Returns true if the worker does what this step says, or should do it by what is in use.
    pub(crate) fn needs(&self, step: Overload) -> bool {
        let is_due = |(percent, begun): &(u64, Overload)| {
            *begun == step && heap::in_use() / percent >= self.most() / 100
        };
        self.overload() >= step || BEGINS.iter().any(is_due)
    }

    /// Sets what the worker does to need less memory.
    pub(crate) fn set_overload(&self, overload: Overload) {
        self.step.store(overload as u8, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_step_is_read_as_it_was_set() {
        let memory = Memory::new(1000);
        assert_eq!(memory.overload(), Overload::None);
        for step in Overload::STEPS {
            memory.set_overload(step);
            assert_eq!(memory.overload(), step);
        }
        memory.limit(Some(10));
        assert_eq!(memory.most(), 10);
        memory.limit(None);
        assert_eq!(memory.most(), 1000);
    }

    #[test]
    fn a_step_is_needed_if_it_was_set_or_by_what_is_in_use() {
        let memory = Memory::new(u64::MAX);
        memory.set_overload(Overload::Streams);
        let needed = || Overload::STEPS.map(|step| memory.needs(step));
        assert_eq!(needed(), [true, true, true, false, false]);
        memory.set_overload(Overload::None);
        let _much: Vec<u8> = Vec::with_capacity(1 << 20);
        memory.limit(Some(1 << 10));
        assert_eq!(needed(), [true; 5]);
    }
}
