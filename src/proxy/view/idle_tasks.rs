//! The idle client connections of a thread that keep their task: those with TLS or HTTP/2, which
//! cannot be parked.
//!
//! If there are too many connections, those that have been idle for longest end first. A connection
//! is registered here only after it has been idle for a while, so that busy ones pay nothing.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::time::Duration;

use tokio::sync::oneshot;

use crate::ipc::ListenerId;

/// How long a connection may be idle until it counts as one that may be ended or parked: most
/// requests of a browser follow each other quickly.
pub(crate) const IDLE_AFTER: Duration = Duration::from_secs(2);

/// The same while there are many connections, so that new ones need not wait for long if all others
/// have come at the same time.
pub(crate) const IDLE_AFTER_IN_CROWD: Duration = Duration::from_millis(50);

/// With fewer entries than this, those of connections that are not idle any more are not removed.
const FEW: usize = 64;

/// How many entries are looked at to find the oldest one of a listener.
const MOST_LOOKED_AT: usize = 1024;

/// The idle connections, by how long they have been idle.
#[derive(Default)]
pub(crate) struct IdleTasks {
    order: RefCell<VecDeque<IdleTask>>,
    /// With more entries than this, those of connections that are not idle any more are removed.
    most: Cell<usize>,
}

struct IdleTask {
    listener: ListenerId,
    end: oneshot::Sender<()>,
}

impl IdleTasks {
    /// Registers an idle connection of a listener. The receiver resolves when the connection is to
    /// end; the connection is idle until the receiver is dropped.
    pub(crate) fn register(&self, listener: ListenerId) -> oneshot::Receiver<()> {
        let (end, ends) = oneshot::channel();
        let mut order = self.order.borrow_mut();
        if order.len() >= self.most.get() {
            order.retain(|task| !task.end.is_closed());
            self.most.set(FEW.max(order.len() * 2));
        }
        order.push_back(IdleTask { listener, end });
        ends
    }

    /// Ends the connection that has been idle for longest: of `listener`, or of any listener.
    /// Returns false if there is none.
    pub(crate) fn end_oldest(&self, listener: Option<ListenerId>) -> bool {
        let mut order = self.order.borrow_mut();
        loop {
            while order.front().is_some_and(|task| task.end.is_closed()) {
                order.pop_front();
            }
            let mut tasks = order.iter().take(MOST_LOOKED_AT);
            let oldest = tasks.position(|task| {
                !task.end.is_closed() && listener.is_none_or(|id| task.listener == id)
            });
            let Some(oldest) = oldest.and_then(|index| order.remove(index)) else {
                return false;
            };
            if oldest.end.send(()).is_ok() {
                return true;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_ends_first() {
        let tasks = IdleTasks::default();
        let [one, other] = [ListenerId(1), ListenerId(2)];
        let busy = tasks.register(one);
        let mut first = tasks.register(one);
        let mut second = tasks.register(other);
        let mut third = tasks.register(one);
        drop(busy);
        assert!(tasks.end_oldest(Some(other)));
        assert!(second.try_recv().is_ok() && first.try_recv().is_err());
        assert!(!tasks.end_oldest(Some(other)));
        assert!(tasks.end_oldest(None));
        assert!(first.try_recv().is_ok() && third.try_recv().is_err());
        drop(third);
        assert!(!tasks.end_oldest(None));
    }

    #[test]
    fn connections_that_are_not_idle_any_more_are_forgotten() {
        let tasks = IdleTasks::default();
        let _stays = tasks.register(ListenerId(1));
        for _ in 0..10_000 {
            drop(tasks.register(ListenerId(1)));
        }
        assert!(tasks.order.borrow().len() <= FEW + 1);
        assert!(tasks.end_oldest(None));
    }
}
