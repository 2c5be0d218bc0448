//! The counters of an instance, summed over all workers.

use std::collections::BTreeMap;

use crate::ipc::EndpointCounts;

/// The counters of one instance, summed over all workers. A worker that was taken over may count
/// anything, so sums stop at the largest number.
#[derive(Debug, Default)]
pub struct InstanceCounts {
    by_worker: BTreeMap<u32, EndpointCounts>,
    /// The requests that were counted by workers that have ended.
    past_requests: u64,
}

impl InstanceCounts {
    /// Makes counters that continue from a saved number of requests.
    pub fn new(past_requests: u64) -> InstanceCounts {
        InstanceCounts {
            past_requests,
            ..InstanceCounts::default()
        }
    }

    /// Takes in the newest counters of a worker.
    pub fn count(&mut self, worker: u32, counts: EndpointCounts) {
        self.by_worker.insert(worker, counts);
    }

    /// Returns true if `counts` are the last counters that this worker has sent.
    pub fn has(&self, worker: u32, counts: &EndpointCounts) -> bool {
        self.by_worker.get(&worker) == Some(counts)
    }

    /// Adds the requests of a worker that has ended to the past requests.
    pub fn gone(&mut self, worker: u32) {
        if let Some(counts) = self.by_worker.remove(&worker) {
            self.past_requests = self.past_requests.saturating_add(counts.requests);
        }
    }

    /// Returns the number of requests in flight.
    pub fn in_flight(&self) -> u32 {
        let counts = self.by_worker.values();
        counts.fold(0, |sum, counts| sum.saturating_add(counts.in_flight))
    }

    /// Returns the number of open tunnels to the instance.
    pub fn tunnels(&self) -> u32 {
        let counts = self.by_worker.values();
        counts.fold(0, |sum, counts| sum.saturating_add(counts.tunnels))
    }

    /// Returns how many requests the instance was chosen for in total.
    pub fn requests(&self) -> u64 {
        let counts = self.by_worker.values();
        counts.fold(self.past_requests, |sum, counts| {
            sum.saturating_add(counts.requests)
        })
    }

    /// Returns the requests that were counted by workers that have ended. Only these are saved,
    /// because running workers send their counters again.
    pub fn past_requests(&self) -> u64 {
        self.past_requests
    }
}
