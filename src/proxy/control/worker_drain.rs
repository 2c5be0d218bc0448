//! The drain of the worker, as the control thread keeps it: what it still waits for, and until
//! when. Pure.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::time::Instant;

/// The times of `ToWorker::Drain`.
pub(crate) struct DrainTimes {
    /// How long idle connections are left open.
    pub(crate) idle: Duration,
    /// How long requests in flight are waited for.
    pub(crate) limit: Duration,
    /// How long tunnels are waited for.
    pub(crate) tunnels: Duration,
}

impl DrainTimes {
    /// How a worker drains that a signal tells to, which knows no times.
    pub(crate) const OF_SIGNAL: DrainTimes = DrainTimes {
        idle: Duration::from_secs(1),
        limit: Duration::from_secs(30),
        tunnels: Duration::from_secs(30),
    };
}

/// A drain that has begun.
pub(crate) struct WorkerDrain {
    until: Instant,
    tunnels_until: Instant,
    /// The manager knows that nothing but tunnels is waited for.
    told: bool,
    /// The threads that still have listeners.
    accepting: BTreeSet<usize>,
}

impl WorkerDrain {
    /// Begins a drain, in which each of so many threads still has to close its listeners.
    pub(crate) fn begin(times: &DrainTimes, threads: usize) -> WorkerDrain {
        let now = Instant::now();
        WorkerDrain {
            until: now + times.limit,
            tunnels_until: now + times.tunnels,
            told: false,
            accepting: (0..threads).collect(),
        }
    }

    /// Gives the drain new limits, counted from now.
    pub(crate) fn extend(&mut self, times: &DrainTimes) {
        let now = Instant::now();
        self.until = now + times.limit;
        self.tunnels_until = now + times.tunnels;
    }

    /// Notes that a thread has closed its listeners.
    pub(crate) fn note_closed(&mut self, thread: usize) {
        self.accepting.remove(&thread);
    }

    /// Returns true while a thread still has listeners, from which connections may come.
    pub(crate) fn is_accepting(&self) -> bool {
        !self.accepting.is_empty()
    }

    /// When whatever is left is cut off, while there are so many tunnels.
    pub(crate) fn end(&self, tunnels: u32) -> Instant {
        match tunnels {
            0 => self.until,
            _ => self.until.max(self.tunnels_until),
        }
    }

    /// Returns true if the manager is to be told that nothing but tunnels is waited for: no other
    /// connection is left, or the time of the others is over.
    pub(crate) fn has_news(&self, connections: u32, tunnels: u32) -> bool {
        let alone = !self.is_accepting() && connections <= tunnels;
        let is_over = self.until <= Instant::now();
        !self.told && tunnels > 0 && (alone || is_over)
    }

    /// Notes whether the manager knows that nothing but tunnels is waited for. A new manager does
    /// not.
    pub(crate) fn set_told(&mut self, told: bool) {
        self.told = told;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_manager_is_told_once_that_only_tunnels_are_left() {
        let mut drain = WorkerDrain::begin(&DrainTimes::OF_SIGNAL, 1);
        assert!(!drain.has_news(1, 1), "a listener is open");
        drain.note_closed(0);
        assert!(!drain.has_news(2, 1), "a request is in flight");
        assert!(!drain.has_news(0, 0), "there is no tunnel");
        assert!(drain.has_news(1, 1));
        drain.set_told(true);
        assert!(!drain.has_news(1, 1));
        drain.set_told(false);
        tokio::time::advance(DrainTimes::OF_SIGNAL.limit).await;
        assert!(drain.has_news(2, 1), "the request is not waited for");
    }

    #[tokio::test(start_paused = true)]
    async fn tunnels_have_a_time_of_their_own() {
        let times = DrainTimes {
            idle: Duration::ZERO,
            limit: Duration::from_secs(5),
            tunnels: Duration::from_secs(9),
        };
        let now = Instant::now();
        let drain = WorkerDrain::begin(&times, 1);
        assert_eq!(drain.end(0), now + times.limit);
        assert_eq!(drain.end(1), now + times.tunnels);
    }
}
