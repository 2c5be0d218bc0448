//! What the workers have counted.

use std::collections::BTreeMap;

use crate::ipc::EndpointCounts;

/// The figures of one instance, as all workers have counted them.
#[derive(Debug, Default)]
pub struct InstanceCounts {
    by_worker: BTreeMap<u32, EndpointCounts>,
    /// The number of requests that workers counted which are gone.
    past_requests: u64,
}

impl InstanceCounts {
    /// Goes on from the number of requests that was saved.
    pub fn new(past_requests: u64) -> InstanceCounts {
        InstanceCounts {
            past_requests,
            ..InstanceCounts::default()
        }
    }

    /// Takes in what a worker has counted.
    pub fn count(&mut self, worker: u32, counts: EndpointCounts) {
        self.by_worker.insert(worker, counts);
    }

    /// Returns true if a worker has said exactly this before.
    pub fn has(&self, worker: u32, counts: &EndpointCounts) -> bool {
        self.by_worker.get(&worker) == Some(counts)
    }

    /// Adds the requests of a worker that is gone to the past.
    pub fn gone(&mut self, worker: u32) {
        if let Some(counts) = self.by_worker.remove(&worker) {
            self.past_requests += counts.requests;
        }
    }

    /// Returns the number of requests in flight.
    pub fn in_flight(&self) -> u32 {
        self.by_worker.values().map(|counts| counts.in_flight).sum()
    }

    /// Returns the number of open tunnels to the instance.
    pub fn tunnels(&self) -> u32 {
        self.by_worker.values().map(|counts| counts.tunnels).sum()
    }

    /// Returns how many requests the instance was chosen for.
    pub fn requests(&self) -> u64 {
        let now: u64 = self.by_worker.values().map(|counts| counts.requests).sum();
        self.past_requests + now
    }

    /// Returns the requests of workers that are gone, to be saved: workers that are still there
    /// will tell theirs again.
    pub fn past_requests(&self) -> u64 {
        self.past_requests
    }
}
