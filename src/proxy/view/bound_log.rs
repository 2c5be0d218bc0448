//! Says in the journal when a service begins and ceases to be at its bound.
//!
//! Strangers decide how often that happens, so the beginnings have a [`LogPace`], and an end is
//! logged only after a beginning that was logged.

use std::cell::Cell;

use crate::log_pace::LogPace;
use crate::proxy::shared::bound_counters::BoundCounters;

/// Counts the requests of one service that wait because the service is at its bound, as one thread
/// sees them.
#[derive(Default)]
pub(crate) struct BoundLog {
    waiting: Cell<u32>,
    /// How often a beginning is logged.
    beginnings: LogPace,
    told: Cell<bool>,
}

/// A request that waits, until this value is dropped.
pub(crate) struct WaitsAtBound<'a> {
    log: &'a BoundLog,
    counters: &'a BoundCounters,
    service: &'a str,
}

impl BoundLog {
    /// Counts a request of `service` that begins to wait, also by the counters of the thread.
    pub(crate) fn begin<'a>(
        &'a self,
        service: &'a str,
        counters: &'a BoundCounters,
    ) -> WaitsAtBound<'a> {
        counters.begin_to_wait();
        if self.waiting.get() == 0 && self.beginnings.due().is_some() {
            self.told.set(true);
            tracing::warn!(
                service,
                "too many requests in flight, further ones wait (max_in_flight)"
            );
        }
        self.waiting.set(self.waiting.get() + 1);
        WaitsAtBound {
            log: self,
            counters,
            service,
        }
    }
}

impl Drop for WaitsAtBound<'_> {
    fn drop(&mut self) {
        let WaitsAtBound {
            log,
            counters,
            service,
        } = self;
        counters.end_to_wait();
        log.waiting.set(log.waiting.get() - 1);
        if log.waiting.get() == 0 && log.told.take() {
            tracing::info!(service, "no request waits for others any more");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log_pace::PACE;

    #[tokio::test(start_paused = true)]
    async fn a_beginning_is_told_once_in_an_interval_and_an_end_only_after_it() {
        let (log, counters) = (BoundLog::default(), BoundCounters::default());
        let first = log.begin("shop", &counters);
        assert!(log.told.get());
        let second = log.begin("shop", &counters);
        drop(first);
        assert!(log.told.get(), "another one waits");
        assert_eq!(counters.counts().waiting, 1);
        drop(second);
        assert!(!log.told.get());
        drop(log.begin("shop", &counters));
        let third = log.begin("shop", &counters);
        assert!(!log.told.get());
        drop(third);
        tokio::time::advance(PACE).await;
        let _fourth = log.begin("shop", &counters);
        assert!(log.told.get());
    }
}
