//! What a worker may use: how its descriptors are divided, and how much memory it has. Pure.
//!
//! # Theory of operation
//! Strangers decide how many connections and requests come, and each of them needs descriptors. So
//! the limit of the process is divided once, when the worker starts:
//!
//! * a reserve, for everything that must work whatever strangers do: listening sockets, the
//!   connection to the manager, the epolls of the threads, and probes;
//! * a third of the rest for connections of clients;
//! * two thirds for connections to instances: each thread has the same share of these, which it
//!   keeps to without asking the others (see the room of a thread, in the floor `view`).
//!
//! No part can grow into another, so the process never runs out of descriptors: whatever is over a
//! part waits, or is refused.

/// Descriptors for standard streams, the log, the connection to the manager, and everything else
/// that a worker has a few of.
const FIXED: u64 = 64;

/// Descriptors for each thread: its epolls and its waker, and the connection that it accepts while
/// another thread accepts the last one.
const PER_THREAD: u64 = 6;

/// How many listening sockets the reserve has room for. Each further one takes the place of a
/// client's connection.
const LISTENERS: u32 = 32;

/// The least and the highest number of probes at the same time.
const PROBES: (u64, u64) = (4, 64);

/// The descriptors of a worker, divided, and its memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Budget {
    /// How many connections of clients the worker may have.
    pub(crate) clients: u32,
    /// How many connections to instances each thread may have.
    pub(crate) instances: u32,
    /// How many endpoints may be probed at the same time.
    pub(crate) probes: u32,
    /// How many bytes of memory the worker may use if no table sets another limit.
    pub(crate) memory: u64,
}

impl Budget {
    /// Divides this many descriptors (`None`: there is no limit) for this many threads. Memory is
    /// not limited.
    pub(crate) fn new(descriptors: Option<u64>, threads: usize) -> Budget {
        let descriptors = descriptors.unwrap_or(u64::MAX);
        let threads = (threads as u64).max(1);
        let (least, most) = PROBES;
        let probes = (descriptors / 32).clamp(least, most);
        let reserve = FIXED + u64::from(LISTENERS) + PER_THREAD * threads + probes;
        let rest = descriptors.saturating_sub(reserve);
        let clients = rest / 3;
        Budget {
            clients: at_least_one(clients),
            instances: at_least_one((rest - clients) / threads),
            probes: at_least_one(probes),
            memory: u64::MAX,
        }
    }

    /// Returns how many connections of clients the worker may have while it has this many listening
    /// sockets.
    pub(crate) fn clients_beside(&self, listeners: usize) -> u32 {
        let listeners = u32::try_from(listeners).unwrap_or(u32::MAX);
        let over = listeners.saturating_sub(LISTENERS);
        self.clients.saturating_sub(over).max(1)
    }
}

fn at_least_one(count: u64) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX).max(1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_limits_of_the_package_are_divided() {
        let budget = Budget {
            clients: 174_701,
            instances: 87_350,
            probes: 64,
            memory: u64::MAX,
        };
        assert_eq!(Budget::new(Some(524_288), 4), budget);
        assert_eq!(budget.clients_beside(32), 174_701);
        assert_eq!(budget.clients_beside(132), 174_601);
        assert_eq!(budget.clients_beside(usize::MAX), 1);
        assert_eq!(Budget::new(None, 1).clients, u32::MAX);
    }

    proptest! {
        #[test]
        fn all_parts_together_are_never_more_than_there_are(
            descriptors in 400..2_000_000u64,
            threads in 1..32usize,
        ) {
            let budget = Budget::new(Some(descriptors), threads);
            let instances = u64::from(budget.instances) * threads as u64;
            let all = u64::from(budget.clients) + instances + u64::from(budget.probes);
            prop_assert!(all + FIXED <= descriptors);
            prop_assert!(u64::from(budget.clients) * 2 <= instances + threads as u64);
        }
    }
}
