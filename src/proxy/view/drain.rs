//! The drain of a worker, as the tasks of one data thread see it.

use std::cell::Cell;

use tokio::sync::Notify;

/// The state of the worker's drain: it begins once, and the time that idle connections have ends
/// once.
#[derive(Default)]
pub(crate) struct Drain {
    begun: Cell<bool>,
    idle_over: Cell<bool>,
    begins: Notify,
    idle_ends: Notify,
}

impl Drain {
    /// Returns true if the worker drains, so that every connection ends with its next response.
    pub(crate) fn has_begun(&self) -> bool {
        self.begun.get()
    }

    /// Begins the drain. Returns false if the drain has begun before.
    pub(crate) fn begin(&self) -> bool {
        if self.begun.replace(true) {
            return false;
        }
        self.begins.notify_waiters();
        true
    }

    /// Ends the time that idle connections have for one more request.
    pub(crate) fn end_idle(&self) {
        self.idle_over.set(true);
        self.idle_ends.notify_waiters();
    }

    /// Resolves when the drain of the worker begins.
    pub(crate) async fn begins(&self) {
        let begins = self.begins.notified();
        if !self.begun.get() {
            begins.await;
        }
    }

    /// Resolves when the worker drains and the time of idle connections for one more request is
    /// over.
    pub(crate) async fn idle_over(&self) {
        let ends = self.idle_ends.notified();
        if !self.idle_over.get() {
            ends.await;
        }
    }
}
