//! How much memory a worker may use, and how far it is from that: what the threads share.
//!
//! The control thread looks at what is in use and sets the step; the data threads only read it,
//! where a connection or a stream is new.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering::Relaxed};

use crate::ipc::Overload;

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
}
