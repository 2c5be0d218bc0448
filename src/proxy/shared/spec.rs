//! What all threads share of an endpoint: where it is, whether its health check has taken it out,
//! and its counters.
//!
//! # Theory of operation
//! Counters are kept for each thread, on a cache line of its own, and only the thread itself writes
//! them. So counting needs no atomic addition and no two threads contend for a line; the control
//! thread adds the counters up when it reports.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};

use crate::ipc::{Address, EndpointCounts, EndpointId, Probe, Protocol};

/// An endpoint as a table describes it, shared by all threads and by all tables that have it.
#[derive(Debug)]
pub(crate) struct EndpointSpec {
    /// The id by which the manager names the endpoint.
    pub(crate) id: EndpointId,
    /// Where the instance listens.
    pub(crate) address: Address,
    /// What the instance speaks.
    pub(crate) protocol: Protocol,
    /// How the control thread asks the instance whether it is ready and healthy.
    pub(crate) probe: Probe,
    /// True while the health check has taken the endpoint out: the endpoint then gets requests only
    /// if all endpoints of its service are out.
    out: AtomicBool,
    /// The counters of each thread, written by that thread alone.
    counters: Box<[EndpointCounters]>,
}

/// The counters of an endpoint on one thread. Only that thread may call methods that change a
/// counter.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(crate) struct EndpointCounters {
    in_flight: AtomicU32,
    tunnels: AtomicU32,
    requests: AtomicU64,
    failures: AtomicU64,
}

impl EndpointSpec {
    /// Makes the spec of an endpoint that speaks HTTP/1.1, with counters at zero for this many
    /// threads.
    pub(crate) fn new(
        id: EndpointId,
        address: Address,
        probe: Probe,
        threads: usize,
    ) -> EndpointSpec {
        EndpointSpec {
            id,
            address,
            protocol: Protocol::default(),
            probe,
            out: AtomicBool::new(false),
            counters: (0..threads).map(|_| EndpointCounters::default()).collect(),
        }
    }

    /// Returns the spec of the same endpoint with another `protocol`.
    pub(crate) fn speaking(self, protocol: Protocol) -> EndpointSpec {
        EndpointSpec { protocol, ..self }
    }

    /// Returns true while the health check has taken the endpoint out.
    pub(crate) fn is_out(&self) -> bool {
        self.out.load(Relaxed)
    }

    /// Takes the endpoint out, or puts it back in, for all threads.
    pub(crate) fn set_out(&self, out: bool) {
        self.out.store(out, Relaxed);
    }

    /// Returns the counters that the thread with this index writes.
    pub(crate) fn counters_of(&self, thread: usize) -> &EndpointCounters {
        &self.counters[thread]
    }

    /// Returns the sums of the counters over all threads.
    pub(crate) fn counts(&self) -> EndpointCounts {
        let mut counts = EndpointCounts {
            id: self.id,
            in_flight: 0,
            tunnels: 0,
            requests: 0,
            failures: 0,
        };
        for counters in &self.counters {
            counts.in_flight += counters.in_flight.load(Relaxed);
            counts.tunnels += counters.tunnels.load(Relaxed);
            counts.requests += counters.requests.load(Relaxed);
            counts.failures += counters.failures.load(Relaxed);
        }
        counts
    }
}

impl EndpointCounters {
    /// Returns how many requests to the endpoint are in flight on this thread, without tunnels.
    pub(crate) fn in_flight(&self) -> u32 {
        self.in_flight.load(Relaxed)
    }

    /// Returns how many tunnels to the endpoint are open on this thread.
    pub(crate) fn tunnels(&self) -> u32 {
        self.tunnels.load(Relaxed)
    }

    /// Counts a request that the endpoint was chosen for.
    pub(crate) fn begin_request(&self) {
        self.in_flight.store(self.in_flight() + 1, Relaxed);
        let requests = self.requests.load(Relaxed).wrapping_add(1);
        self.requests.store(requests, Relaxed);
    }

    /// Counts the end of a request, and returns how many requests are left in flight.
    pub(crate) fn end_request(&self) -> u32 {
        let left = self.in_flight() - 1;
        self.in_flight.store(left, Relaxed);
        left
    }

    /// Counts a request that has become a tunnel. The caller must also count the end of the
    /// request.
    pub(crate) fn begin_tunnel(&self) {
        self.tunnels.store(self.tunnels() + 1, Relaxed);
    }

    /// Counts the end of a tunnel.
    pub(crate) fn end_tunnel(&self) {
        self.tunnels.store(self.tunnels() - 1, Relaxed);
    }

    /// Counts a request that the endpoint has failed.
    pub(crate) fn add_failure(&self) {
        let failures = self.failures.load(Relaxed).wrapping_add(1);
        self.failures.store(failures, Relaxed);
    }
}
