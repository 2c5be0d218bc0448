//! What the workers have counted.

use std::collections::BTreeMap;

use crate::ipc::EndpointCounts;

/// The figures of one instance, as all workers have counted them.
#[derive(Debug, Default)]
pub struct InstanceCounts {
    by_worker: BTreeMap<u32, EndpointCounts>,
    /// Of workers that are gone.
    past_requests: u64,
}

impl InstanceCounts {
    /// Goes on from what was kept.
    pub fn new(past_requests: u64) -> InstanceCounts {
        InstanceCounts {
            past_requests,
            ..InstanceCounts::default()
        }
    }

    /// A worker has counted.
    pub fn count(&mut self, worker: u32, counts: EndpointCounts) {
        self.by_worker.insert(worker, counts);
    }

    /// Whether a worker has said so before.
    pub fn has(&self, worker: u32, counts: &EndpointCounts) -> bool {
        self.by_worker.get(&worker) == Some(counts)
    }

    /// A worker is gone.
    pub fn gone(&mut self, worker: u32) {
        if let Some(counts) = self.by_worker.remove(&worker) {
            self.past_requests += counts.requests;
        }
    }

    /// Requests that are being worked on.
    pub fn in_flight(&self) -> u32 {
        self.by_worker.values().map(|counts| counts.in_flight).sum()
    }

    /// Tunnels to it.
    pub fn tunnels(&self) -> u32 {
        self.by_worker.values().map(|counts| counts.tunnels).sum()
    }

    /// Requests that it was chosen for.
    pub fn requests(&self) -> u64 {
        let now: u64 = self.by_worker.values().map(|counts| counts.requests).sum();
        self.past_requests + now
    }

    /// Those of workers that are gone, to be kept: the others will count theirs again.
    pub fn past_requests(&self) -> u64 {
        self.past_requests
    }
}
