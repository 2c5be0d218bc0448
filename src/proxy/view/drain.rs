//! The drain of a worker, as the tasks of one data thread see it.

use std::cell::Cell;
use std::time::Duration;

use tokio::sync::Notify;

/// The state of the worker's drain, which begins once.
#[derive(Default)]
pub(crate) struct Drain {
    /// How long a connection may be idle in a drain that has begun.
    idle_limit: Cell<Option<Duration>>,
    begins: Notify,
}

impl Drain {
    /// Returns true if the worker drains, so that every connection ends with its next response.
    pub(crate) fn has_begun(&self) -> bool {
        self.idle_limit.get().is_some()
    }

    /// Begins the drain. A connection that is idle has so long for one more request, counted from
    /// now or from the end of the response that is being sent: that response has told its client
    /// that the connection stays open. Returns false if the drain has begun before.
    pub(crate) fn begin(&self, idle_limit: Duration) -> bool {
        if self.has_begun() {
            return false;
        }
        self.idle_limit.set(Some(idle_limit));
        self.begins.notify_waiters();
        true
    }

    /// Resolves when the drain of the worker begins, with the time that an idle connection then has
    /// for one more request.
    pub(crate) async fn begins(&self) -> Duration {
        let begins = self.begins.notified();
        if !self.has_begun() {
            begins.await;
        }
        self.idle_limit.get().unwrap_or_default()
    }
}
