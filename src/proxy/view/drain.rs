//! The drain of a worker, as the tasks of one data thread see it.

use std::cell::Cell;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::sync::futures::Notified;
use tokio::time::sleep;

/// The state of the worker's drain, which begins once.
#[derive(Default)]
pub(crate) struct Drain {
    /// How long a connection may be idle in a drain that has begun.
    idle_limit: Cell<Option<Duration>>,
    changed: Notify,
}

impl Drain {
    /// Returns true if the worker drains, so that every connection ends with its next response.
    pub(crate) fn has_begun(&self) -> bool {
        self.idle_limit.get().is_some()
    }

    /// Begins the drain, or changes its time limit. A connection that is idle has so long for one
    /// more request, counted from now or from the end of the response that is being sent: that
    /// response has told its client that the connection stays open. Returns false if the drain has
    /// begun before.
    pub(crate) fn begin(&self, idle_limit: Duration) -> bool {
        let before = self.idle_limit.replace(Some(idle_limit));
        if before != Some(idle_limit) {
            self.changed.notify_waiters();
        }
        before.is_none()
    }

    /// Returns how long a connection may be idle, if the drain has begun.
    pub(crate) fn idle_limit(&self) -> Option<Duration> {
        self.idle_limit.get()
    }

    /// Resolves when the drain begins, or its time limit changes, after this call.
    pub(crate) fn changes(&self) -> Notified<'_> {
        self.changed.notified()
    }

    /// Resolves when the drain of the worker has begun.
    pub(crate) async fn begins(&self) {
        let changes = self.changes();
        if !self.has_begun() {
            changes.await;
        }
    }

    /// Resolves when the drain has begun and the time of connections that were idle then is over.
    pub(crate) async fn ends_idle(&self) {
        loop {
            let changes = self.changes();
            let Some(limit) = self.idle_limit() else {
                changes.await;
                continue;
            };
            tokio::select! {
                () = sleep(limit) => return,
                () = changes => {}
            }
        }
    }
}
