//! Quiescence: knows which threads have acknowledged which table, and which draining endpoints are
//! idle on all threads. Pure.
//!
//! # Theory of operation
//! Every thread answers every table, in order. So a table is acknowledged when the last thread has
//! answered it, and every table gets acknowledged. An endpoint that a table marks draining is idle
//! when every thread has reported that, after it applied this table or a newer one. An older report
//! about the same endpoint, from before it was away from the table for a while, does not count. A
//! thread may report the same endpoint more than once. An idle endpoint stays idle until it leaves
//! the table.

use std::collections::{BTreeMap, BTreeSet};

use crate::ipc::EndpointId;

/// What the threads have said about tables and draining endpoints.
#[derive(Debug)]
pub(crate) struct Quiescence {
    /// The newest table that each thread uses, by the index of the thread.
    applied: Vec<u64>,
    draining: BTreeMap<EndpointId, Draining>,
}

#[derive(Debug)]
struct Draining {
    /// The first table that marks the endpoint draining.
    since: u64,
    /// The threads that have not reported the endpoint idle yet.
    busy: BTreeSet<usize>,
}

impl Quiescence {
    /// Makes the state for this many threads, to which no table was sent yet.
    pub(crate) fn new(threads: usize) -> Quiescence {
        Quiescence {
            applied: vec![0; threads],
            draining: BTreeMap::new(),
        }
    }

    /// Notes that a table was sent to all threads. `draining` are all draining endpoints in the
    /// table.
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

    /// Notes that a thread uses a table. Returns the newest table that all threads use, if it has
    /// changed.
    pub(crate) fn applied(&mut self, thread: usize, table: u64) -> Option<u64> {
        let before = self.acknowledged();
        self.applied[thread] = table;
        let now = self.acknowledged();
        (now > before).then_some(now)
    }

    /// Notes the report of a thread that had applied `table` and holds no connection to a draining
    /// endpoint. Returns true if this was the last thread to report that.
    pub(crate) fn idle(&mut self, thread: usize, endpoint: EndpointId, table: u64) -> bool {
        match self.draining.get_mut(&endpoint) {
            Some(draining) if table >= draining.since => {
                draining.busy.remove(&thread) && draining.busy.is_empty()
            }
            _ => false,
        }
    }

    /// Returns the newest table that all threads use; 0 before the first table.
    pub(crate) fn acknowledged(&self) -> u64 {
        self.applied.iter().copied().min().unwrap_or(0)
    }

    /// Returns the draining endpoints that every thread has reported idle.
    pub(crate) fn idle_endpoints(&self) -> impl Iterator<Item = EndpointId> {
        let draining = self.draining.iter();
        draining
            .filter(|(_, draining)| draining.busy.is_empty())
            .map(|(&id, _)| id)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    const ID: EndpointId = EndpointId(7);

    #[test]
    fn a_table_is_acknowledged_by_the_last_thread() {
        let mut quiescence = Quiescence::new(2);
        assert_eq!(quiescence.applied(0, 1), None);
        assert_eq!(quiescence.applied(0, 2), None);
        assert_eq!(quiescence.applied(1, 1), Some(1));
        assert_eq!(quiescence.applied(1, 2), Some(2));
    }

    #[test]
    fn an_endpoint_is_idle_when_every_thread_says_so() {
        let mut quiescence = Quiescence::new(2);
        quiescence.sent(1, [ID]);
        assert!(!quiescence.idle(0, ID, 1));
        assert!(!quiescence.idle(0, ID, 1));
        assert!(quiescence.idle(1, ID, 1));
        assert!(!quiescence.idle(1, ID, 2), "it is said once");
        quiescence.sent(2, [ID]);
        assert!(quiescence.idle_endpoints().eq([ID]));
        quiescence.sent(3, []);
        assert_eq!(quiescence.idle_endpoints().count(), 0);
    }

    #[test]
    fn what_was_said_of_an_endpoint_before_it_went_away_counts_for_nothing() {
        let mut quiescence = Quiescence::new(1);
        quiescence.sent(1, []);
        quiescence.sent(2, [ID]);
        assert!(!quiescence.idle(0, ID, 1));
        assert!(quiescence.idle(0, ID, 2));
    }

    /// A model of a data thread: the parts that matter for quiescence.
    #[derive(Debug, Clone, Default)]
    struct Model {
        inbox: VecDeque<(u64, BTreeSet<EndpointId>)>,
        table: u64,
        draining: BTreeSet<EndpointId>,
        in_flight: BTreeMap<EndpointId, u32>,
    }

    impl Model {
        fn is_quiescent(&self, id: EndpointId) -> bool {
            self.draining.contains(&id) && self.in_flight.get(&id).is_none_or(|&count| count == 0)
        }
    }

    #[derive(Debug, Clone)]
    enum Step {
        /// The manager sends a table that drains all endpoints with a smaller id than this.
        Table(u64),
        /// A thread takes its next table.
        Apply(usize),
        /// A thread claims an endpoint, if the endpoint can be claimed.
        Claim(usize, u64),
        /// A thread ends a request.
        End(usize, u64),
        /// The control thread handles the next report.
        Note,
    }

    const THREADS: usize = 3;
    const ENDPOINTS: u64 = 4;

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0..=ENDPOINTS).prop_map(Step::Table),
            (0..THREADS).prop_map(Step::Apply),
            (0..THREADS, 0..ENDPOINTS).prop_map(|(thread, id)| Step::Claim(thread, id)),
            (0..THREADS, 0..ENDPOINTS).prop_map(|(thread, id)| Step::End(thread, id)),
            Just(Step::Note),
        ]
    }

    #[derive(Default)]
    struct World {
        threads: Vec<Model>,
        reports: VecDeque<(usize, Said)>,
        sent: u64,
        drained: u64,
        acknowledged: Vec<u64>,
        idle: BTreeSet<EndpointId>,
    }

    enum Said {
        Applied(u64),
        Idle(EndpointId, u64),
    }

    impl World {
        fn take(&mut self, quiescence: &mut Quiescence, step: Step) {
            match step {
                Step::Table(drained) => {
                    self.sent += 1;
                    self.drained = self.drained.max(drained);
                    let draining: BTreeSet<_> = (0..self.drained).map(EndpointId).collect();
                    quiescence.sent(self.sent, draining.iter().copied());
                    for thread in &mut self.threads {
                        thread.inbox.push_back((self.sent, draining.clone()));
                    }
                }
                Step::Apply(index) => self.apply(index),
                Step::Claim(index, id) => {
                    let thread = &mut self.threads[index];
                    if !thread.draining.contains(&EndpointId(id)) {
                        *thread.in_flight.entry(EndpointId(id)).or_default() += 1;
                    }
                }
                Step::End(index, id) => self.end(index, EndpointId(id)),
                Step::Note => self.note(quiescence),
            }
        }

        fn apply(&mut self, index: usize) {
            let thread = &mut self.threads[index];
            if let Some((table, draining)) = thread.inbox.pop_front() {
                thread.table = table;
                thread.draining = draining;
                self.reports.push_back((index, Said::Applied(table)));
                for &id in &thread.draining {
                    if thread.is_quiescent(id) {
                        self.reports.push_back((index, Said::Idle(id, table)));
                    }
                }
            }
        }

        fn end(&mut self, index: usize, id: EndpointId) {
            let thread = &mut self.threads[index];
            let Some(count @ 1..) = thread.in_flight.get_mut(&id) else {
                return;
            };
            *count -= 1;
            if thread.is_quiescent(id) {
                self.reports
                    .push_back((index, Said::Idle(id, thread.table)));
            }
        }

        fn note(&mut self, quiescence: &mut Quiescence) {
            match self.reports.pop_front() {
                Some((thread, Said::Applied(table))) => {
                    let acknowledged = quiescence.applied(thread, table);
                    assert!(
                        self.threads
                            .iter()
                            .all(|thread| Some(thread.table) >= acknowledged)
                    );
                    self.acknowledged.extend(acknowledged);
                }
                Some((thread, Said::Idle(id, table))) if quiescence.idle(thread, id, table) => {
                    assert!(self.threads.iter().all(|thread| thread.is_quiescent(id)));
                    assert!(self.idle.insert(id), "an endpoint is reported idle once");
                }
                Some(_) | None => {}
            }
        }
    }

    proptest! {
        #[test]
        fn idleness_is_never_claimed_too_early_and_never_forgotten(
            steps in proptest::collection::vec(step(), 0..200),
        ) {
            let mut quiescence = Quiescence::new(THREADS);
            let mut world = World {
                threads: vec![Model::default(); THREADS],
                ..World::default()
            };
            for step in steps {
                world.take(&mut quiescence, step);
            }
            // Let everything that is under way come to its end.
            for index in 0..THREADS {
                while !world.threads[index].inbox.is_empty() {
                    world.apply(index);
                }
                for id in (0..ENDPOINTS).map(EndpointId) {
                    while world.threads[index].in_flight.get(&id).is_some_and(|&count| count > 0) {
                        world.end(index, id);
                    }
                }
            }
            while !world.reports.is_empty() {
                world.note(&mut quiescence);
            }
            prop_assert!(world.acknowledged.iter().copied().eq(1..=world.sent));
            prop_assert!(world.idle.iter().copied().eq((0..world.drained).map(EndpointId)));
        }
    }
}
