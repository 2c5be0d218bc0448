//! How many requests of a service may be in flight in the whole worker (`max_in_flight`), and who
//! waits until one of them ends.
//!
//! # Theory of operation
//! All threads share the number of a service that has this limit; other services have none. A
//! permit is one request that counts. While nobody waits, taking a permit and giving it back is one
//! atomic step each. If all permits are taken, requests wait in a queue behind a lock, which is
//! fair to clients. Whoever gives a permit back looks at the number of waiting requests afterwards,
//! and whoever begins to wait looks for a free permit after it has added itself to that number. So
//! one of the two always sees the other.

use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use super::client_key::ClientKey;
use super::fair_queue::FairQueue;

/// How many requests of a service may wait for a permit.
const MOST_WAITING: usize = 4096;

/// The limit of a service, shared by all threads and by all tables that have the service.
#[derive(Debug)]
pub(crate) struct InFlight {
    most: AtomicU32,
    taken: AtomicU32,
    /// How many entries the queue has.
    waiting: AtomicU32,
    queue: Mutex<FairQueue<oneshot::Sender<Permit>>>,
}

/// Counts one request until it is dropped.
#[derive(Debug)]
pub(crate) struct Permit(Option<Arc<InFlight>>);

impl InFlight {
    /// Makes a limit of this many requests.
    pub(crate) fn new(most: u32) -> Arc<InFlight> {
        Arc::new(InFlight {
            most: AtomicU32::new(most),
            taken: AtomicU32::new(0),
            waiting: AtomicU32::new(0),
            queue: Mutex::new(FairQueue::new(MOST_WAITING)),
        })
    }

    /// Sets another limit; `None` lets all requests go on. Requests over a lower limit end as they
    /// would have.
    pub(crate) fn set_most(self: &Arc<Self>, most: Option<u32>) {
        self.most.store(most.unwrap_or(u32::MAX), SeqCst);
        self.grant();
    }

    /// Takes a permit if there is one and nobody waits for it.
    pub(crate) fn try_take(self: &Arc<Self>) -> Option<Permit> {
        let is_free = self.waiting.load(SeqCst) == 0 && self.count();
        is_free.then(|| Permit(Some(self.clone())))
    }

    /// Begins to wait for a permit. The receiver fails if the queue has no room.
    pub(crate) fn wait(self: &Arc<Self>, client: Option<ClientKey>) -> oneshot::Receiver<Permit> {
        let (grant, granted) = oneshot::channel();
        let displaced = {
            let mut queue = self.queue();
            if self.waiting.load(SeqCst) as usize >= MOST_WAITING {
                queue.retain(|waiting| !waiting.is_closed());
            }
            let displaced = queue.push(client, grant);
            self.waiting.store(queue.len(), SeqCst);
            displaced
        };
        drop(displaced);
        self.grant();
        granted
    }

    /// Gives the free permits to those that wait.
    fn grant(self: &Arc<Self>) {
        while self.waiting.load(SeqCst) > 0 && self.count() {
            let permit = Permit(Some(self.clone()));
            let next = {
                let mut queue = self.queue();
                let next = queue.pop(|_| true);
                self.waiting.store(queue.len(), SeqCst);
                next
            };
            let unused = match next {
                Some(waiting) => waiting.send(permit).err(),
                None => Some(permit),
            };
            if let Some(unused) = unused {
                // It is offered to the next one by this loop, so it need not be offered by its end.
                unused.forget();
            }
        }
    }

    /// Counts another request, unless there are as many as there may be.
    fn count(&self) -> bool {
        let most = self.most.load(SeqCst);
        let more = |taken| (taken < most).then(|| taken + 1);
        self.taken.fetch_update(SeqCst, SeqCst, more).is_ok()
    }

    fn queue(&self) -> MutexGuard<'_, FairQueue<oneshot::Sender<Permit>>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Permit {
    /// Gives the permit back without offering it to those that wait.
    fn forget(mut self) {
        if let Some(limit) = self.0.take() {
            limit.taken.fetch_sub(1, SeqCst);
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if let Some(limit) = self.0.take() {
            limit.taken.fetch_sub(1, SeqCst);
            limit.grant();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use tokio::sync::oneshot::error::TryRecvError;

    use super::*;

    const A: Option<ClientKey> = Some(ClientKey::V4(1));
    const B: Option<ClientKey> = Some(ClientKey::V4(2));

    #[test]
    fn permits_go_to_clients_by_turns() {
        let limit = InFlight::new(1);
        let first = limit.try_take().unwrap();
        assert!(limit.try_take().is_none());
        let mut waiting = [A, A, B].map(|client| limit.wait(client));
        drop(first);
        let permit = waiting[0].try_recv().unwrap();
        assert!(limit.try_take().is_none(), "others wait");
        drop(permit);
        assert!(waiting[1].try_recv().is_err());
        drop(waiting[2].try_recv().unwrap());
        drop(waiting[1].try_recv().unwrap());
        drop(limit.try_take().unwrap());
    }

    #[test]
    fn what_was_given_up_takes_no_permit_with_it() {
        let limit = InFlight::new(1);
        let first = limit.try_take().unwrap();
        let (gone, mut stays) = (limit.wait(A), limit.wait(B));
        let granted_and_gone = limit.wait(A);
        drop(gone);
        drop(first);
        let permit = stays.try_recv().unwrap();
        drop(permit);
        drop(granted_and_gone);
        assert!(limit.try_take().is_some());
        assert_eq!(limit.taken.load(SeqCst), 0);
    }

    #[test]
    fn a_higher_limit_lets_those_go_on_that_wait() {
        let limit = InFlight::new(1);
        let _first = limit.try_take().unwrap();
        let mut waiting = [A, A, A].map(|client| limit.wait(client));
        limit.set_most(Some(2));
        let _second = waiting[0].try_recv().unwrap();
        assert!(waiting[1].try_recv().is_err());
        limit.set_most(None);
        assert!(waiting[1].try_recv().is_ok() && waiting[2].try_recv().is_ok());
    }

    #[test]
    fn the_queue_is_bounded_and_those_given_up_make_room() {
        let limit = InFlight::new(1);
        let _first = limit.try_take().unwrap();
        let mut waiting: Vec<_> = (0..MOST_WAITING).map(|_| limit.wait(A)).collect();
        let full = limit.wait(A).try_recv().err();
        assert_eq!(full, Some(TryRecvError::Closed));
        waiting.pop();
        let waits = limit.wait(A).try_recv().err();
        assert_eq!(waits, Some(TryRecvError::Empty));
    }

    /// No permit is lost or made twice, and nobody waits for ever, however the threads interleave.
    #[test]
    fn threads_share_the_permits() {
        let limit = InFlight::new(2);
        let is_over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let (limit, is_over) = (&limit, &is_over);
                scope.spawn(move || {
                    for round in 0..2000 {
                        let permit = limit.try_take();
                        let client = Some(ClientKey::V4(thread));
                        let permit = permit.or_else(|| limit.wait(client).blocking_recv().ok());
                        let taken = limit.taken.load(SeqCst);
                        // Somebody may hold a permit for a moment that is offered to nobody.
                        is_over.fetch_or(taken > 2, SeqCst);
                        if round % 7 == 0 {
                            drop(limit.wait(client));
                        }
                        drop(permit.unwrap());
                    }
                });
            }
        });
        assert!(!is_over.load(SeqCst));
        assert_eq!(limit.taken.load(SeqCst), 0);
    }
}
