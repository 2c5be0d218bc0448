//! The drain of the worker, as the control thread keeps it: which threads still have listeners, and
//! when the remaining connections are cut off. Pure.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::time::Instant;

/// The times that `ToWorker::Drain` carries.
pub(crate) struct DrainTimes {
    /// How long idle connections are left open.
    pub(crate) idle: Duration,
    /// How long the drain waits for requests in flight.
    pub(crate) limit: Duration,
    /// How long the drain waits for tunnels.
    pub(crate) tunnels: Duration,
}

impl DrainTimes {
    /// The times of a drain that a signal begins, since a signal carries none.
    pub(crate) const OF_SIGNAL: DrainTimes = DrainTimes {
        idle: Duration::from_secs(1),
        limit: Duration::from_secs(30),
        tunnels: Duration::from_secs(30),
    };
}

/// The state of a drain that has begun.
pub(crate) struct WorkerDrain {
    until: Instant,
    tunnels_until: Instant,
    /// True if the tunnels were cut off.
    are_tunnels_cut: bool,
    /// True if the manager knows that the drain waits only for tunnels.
    told: bool,
    /// The threads that still have listeners.
    accepting: BTreeSet<usize>,
}

impl WorkerDrain {
    /// Begins a drain with these times. Each of this many threads must still close its listeners.
    pub(crate) fn begin(times: &DrainTimes, threads: usize) -> WorkerDrain {
        let now = Instant::now();
        WorkerDrain {
            until: now + times.limit,
            tunnels_until: now + times.tunnels,
            are_tunnels_cut: false,
            told: false,
            accepting: (0..threads).collect(),
        }
    }

    /// Sets new time limits for the drain, counted from now.
    pub(crate) fn change(&mut self, times: &DrainTimes) {
        let now = Instant::now();
        self.until = now + times.limit;
        self.tunnels_until = now + times.tunnels;
        self.are_tunnels_cut = false;
    }

    /// Notes that a thread has closed all its listeners.
    pub(crate) fn note_closed(&mut self, thread: usize) {
        self.accepting.remove(&thread);
    }

    /// Returns true while a thread still has listeners, so that new connections may come.
    pub(crate) fn is_accepting(&self) -> bool {
        !self.accepting.is_empty()
    }

    /// Returns when the remaining tunnels are cut off; `None` if that has happened.
    pub(crate) fn cut(&self) -> Option<Instant> {
        (!self.are_tunnels_cut).then_some(self.tunnels_until)
    }

    /// Notes that the tunnels are cut off.
    pub(crate) fn note_cut(&mut self) {
        self.are_tunnels_cut = true;
    }

    /// Returns when the remaining connections are cut off, if this many tunnels are open now.
    pub(crate) fn end(&self, tunnels: u32) -> Instant {
        match tunnels {
            0 => self.until,
            _ => self.until.max(self.tunnels_until),
        }
    }

    /// Returns true if the manager must be told now that the drain waits only for tunnels: no other
    /// connection is left, or the time of the others is over. A connection with HTTP/2 may have
    /// several tunnels, and `requests` in flight beside them.
    pub(crate) fn has_news(&self, connections: u32, tunnels: u32, requests: u32) -> bool {
        let alone = !self.is_accepting() && connections <= tunnels && requests == 0;
        let is_over = self.until <= Instant::now();
        !self.told && tunnels > 0 && (alone || is_over)
    }

    /// Sets whether the manager knows that the drain waits only for tunnels. A new manager does not
    /// know.
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
        assert!(!drain.has_news(1, 1, 0), "a listener is open");
        drain.note_closed(0);
        assert!(!drain.has_news(2, 1, 0), "a connection may have a request");
        assert!(!drain.has_news(1, 2, 1), "a request is in flight");
        assert!(!drain.has_news(0, 0, 0), "there is no tunnel");
        assert!(drain.has_news(1, 1, 0));
        drain.set_told(true);
        assert!(!drain.has_news(1, 1, 0));
        drain.set_told(false);
        tokio::time::advance(DrainTimes::OF_SIGNAL.limit).await;
        assert!(drain.has_news(2, 1, 1), "the request is not waited for");
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
        // Other connections may have longer.
        let mut drain = drain;
        drain.change(&DrainTimes {
            limit: Duration::from_secs(20),
            ..times
        });
        assert_eq!(drain.cut(), Some(now + times.tunnels));
        assert_eq!(drain.end(1), now + Duration::from_secs(20));
        drain.note_cut();
        assert_eq!(drain.cut(), None);
    }
}
