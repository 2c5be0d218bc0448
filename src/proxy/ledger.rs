//! The proof of quiescence: which thread has said what about which table and endpoint. Pure.
//!
//! # Theory of operation
//! Every thread answers every table, in order, so a table is acknowledged when the last thread has answered it, and no
//! acknowledgement is passed over. An endpoint that a table marks draining is idle when every thread has said so having
//! applied that table or a newer one: what a thread said before, about an endpoint that was away for a while, counts
//! for nothing. Threads may say it more than once. Once idle, an endpoint stays idle until it leaves the table.

use std::collections::{BTreeMap, BTreeSet};

use crate::ipc::EndpointId;

#[derive(Debug)]
pub(crate) struct Ledger {
    /// By thread, the newest table it uses.
    applied: Vec<u64>,
    draining: BTreeMap<EndpointId, Draining>,
}

#[derive(Debug)]
struct Draining {
    /// The table that said so first.
    since: u64,
    /// The threads that have not said that it is idle.
    busy: BTreeSet<usize>,
}

impl Ledger {
    pub(crate) fn new(threads: usize) -> Ledger {
        Ledger {
            applied: vec![0; threads],
            draining: BTreeMap::new(),
        }
    }

    /// A table was sent to the threads, in which these are all the draining endpoints.
    pub(crate) fn sent(&mut self, table: u64, draining: impl IntoIterator<Item = EndpointId>) {
        let mut before = std::mem::take(&mut self.draining);
        for id in draining {
            let entry = before.remove(&id).unwrap_or_else(|| Draining {
                since: table,
                busy: (0..self.applied.len()).collect(),
            });
            self.draining.insert(id, entry);
        }
    }

    /// A thread uses this table. Returns the table if it was the last one to do so.
    pub(crate) fn applied(&mut self, thread: usize, table: u64) -> Option<u64> {
        let before = self.acknowledged();
        self.applied[thread] = table;
        let now = self.acknowledged();
        (now > before).then_some(now)
    }

    /// A thread that had applied `table` holds no connection to a draining endpoint. True if it was the last one.
    pub(crate) fn idle(&mut self, thread: usize, endpoint: EndpointId, table: u64) -> bool {
        match self.draining.get_mut(&endpoint) {
            Some(draining) if table >= draining.since => {
                draining.busy.remove(&thread) && draining.busy.is_empty()
            }
            _ => false,
        }
    }

    /// The newest table that all threads use; 0 before the first.
    pub(crate) fn acknowledged(&self) -> u64 {
        self.applied.iter().copied().min().unwrap_or(0)
    }

    /// The draining endpoints that are idle.
    pub(crate) fn idle_endpoints(&self) -> impl Iterator<Item = EndpointId> {
        let draining = self.draining.iter();
        draining
            .filter(|(_, draining)| draining.busy.is_empty())
            .map(|(&id, _)| id)
    }
}
