//! Counts what the bounds of one thread do. Only that thread writes the counters, and the control
//! thread reads them.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

use crate::ipc::BoundCounts;

/// The counters of one thread, on cache lines of their own.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(crate) struct BoundCounters {
    waiting: AtomicU32,
    refused_requests: AtomicU64,
    refused_connections: AtomicU64,
    closed_idle: AtomicU64,
    refused_streams: AtomicU64,
    closed_largest: AtomicU64,
}

impl BoundCounters {
    /// Counts a request that begins to wait for others to end.
    pub(crate) fn begin_to_wait(&self) {
        self.waiting.store(self.waiting.load(Relaxed) + 1, Relaxed);
    }

    /// Counts the end of such a wait.
    pub(crate) fn end_to_wait(&self) {
        self.waiting.store(self.waiting.load(Relaxed) - 1, Relaxed);
    }

    /// Counts a request that was refused because of a bound.
    pub(crate) fn refuse_request(&self) {
        add_one(&self.refused_requests);
    }

    /// Counts a connection that was refused because of a bound.
    pub(crate) fn refuse_connection(&self) {
        add_one(&self.refused_connections);
    }

    /// Counts an idle connection that was closed to make room for another one.
    pub(crate) fn close_idle(&self) {
        add_one(&self.closed_idle);
    }

    /// Counts a stream that was refused because its connection holds too much memory.
    pub(crate) fn refuse_stream(&self) {
        add_one(&self.refused_streams);
    }

    /// Counts a busy connection that was closed because it held most of the memory.
    pub(crate) fn close_largest(&self) {
        add_one(&self.closed_largest);
    }

    /// Returns the counts of this thread.
    pub(crate) fn counts(&self) -> BoundCounts {
        BoundCounts {
            waiting: self.waiting.load(Relaxed),
            refused_requests: self.refused_requests.load(Relaxed),
            refused_connections: self.refused_connections.load(Relaxed),
            closed_idle: self.closed_idle.load(Relaxed),
            refused_streams: self.refused_streams.load(Relaxed),
            closed_largest: self.closed_largest.load(Relaxed),
            ..BoundCounts::default()
        }
    }
}

fn add_one(counter: &AtomicU64) {
    counter.store(counter.load(Relaxed).wrapping_add(1), Relaxed);
}
