//! What the threads of a worker are to one another: their loads, and the messages between them.

use std::cell::Cell;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::mpsc;

use super::table::Table;
use crate::ipc::{EndpointId, ListenerId};

/// What the control thread, or another data thread, asks of a data thread.
pub(crate) enum Command {
    /// Use this table; accept on these sockets, which it is the first to name.
    Apply {
        table: Arc<Table>,
        opened: Vec<(ListenerId, Arc<OwnedFd>)>,
    },
    /// Serve this connection, which another thread accepted.
    Serve(Handover),
    /// Accept what waits, then no more; close idle connections after this time.
    Drain { idle: Duration },
    /// Answer with [`Event::Pong`].
    Ping(u64),
    /// End, whatever is left.
    Stop,
}

/// A connection on its way from the thread that accepted it.
pub(crate) struct Handover {
    pub(crate) stream: std::net::TcpStream,
    pub(crate) peer: SocketAddr,
    pub(crate) listener: ListenerId,
    pub(crate) table: Arc<Table>,
    pub(crate) open: Open,
}

/// What a data thread says to the control thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Report {
    /// Which thread.
    pub(crate) thread: usize,
    /// What it says.
    pub(crate) event: Event,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Event {
    /// It uses the table of this number.
    Applied(u64),
    /// Having applied this table, it has no connection to a draining endpoint, and will have none.
    Idle { endpoint: EndpointId, table: u64 },
    /// It is not stuck.
    Pong(u64),
    /// Draining, it has closed its listeners.
    Closed,
    /// Draining, it has ended its last connection.
    Empty,
    /// It has ended.
    Ended,
}

/// What every thread may know of every other.
pub(crate) struct Threads {
    loads: Box<[Load]>,
    commands: Box<[mpsc::UnboundedSender<Command>]>,
    /// There are no descriptors for more connections.
    most_connections: u32,
    /// So that one port cannot take them all.
    most_of_listener: AtomicU32,
    /// Open connections of each listener that has any. Looked at once a connection, not once a request.
    of_listeners: Mutex<HashMap<ListenerId, u32>>,
}

#[derive(Default)]
#[repr(align(128))]
struct Load {
    connections: AtomicU32,
    table: AtomicU64,
}

impl Threads {
    /// For as many threads as there are senders.
    pub(crate) fn new(
        commands: Vec<mpsc::UnboundedSender<Command>>,
        most_connections: u32,
    ) -> Threads {
        Threads {
            loads: commands.iter().map(|_| Load::default()).collect(),
            commands: commands.into(),
            most_connections,
            most_of_listener: AtomicU32::new(most_connections),
            of_listeners: Mutex::default(),
        }
    }

    /// Open client connections.
    pub(crate) fn connections(&self) -> u32 {
        let loads = self.loads.iter();
        loads
            .map(|load| load.connections.load(Ordering::Acquire))
            .sum()
    }

    pub(crate) fn count(&self) -> usize {
        self.commands.len()
    }

    /// False if the thread has ended.
    pub(crate) fn send(&self, thread: usize, command: Command) -> Result<(), Command> {
        self.commands[thread].send(command).map_err(|error| error.0)
    }

    /// A thread has taken over a table.
    pub(crate) fn applied(&self, thread: usize, table: u64) {
        self.loads[thread].table.store(table, Ordering::Release);
    }

    /// How many client connections a listener may have.
    pub(crate) fn most_connections(&self) -> u32 {
        self.most_of_listener.load(Ordering::Relaxed)
    }

    /// From now on a listener may have so many, if there can be so many; those that are open stay.
    pub(crate) fn limit_connections(&self, most: Option<u32>) {
        let most = most.unwrap_or(u32::MAX).min(self.most_connections);
        self.most_of_listener.store(most, Ordering::Relaxed);
    }

    /// Whether the listener, or the worker, has as many connections as it may.
    pub(crate) fn are_full(&self, listener: ListenerId) -> bool {
        let of_listener = self.of_listeners().get(&listener).copied();
        of_listener.unwrap_or(0) >= self.most_connections()
            || self.connections() >= self.most_connections
    }

    fn of_listeners(&self) -> MutexGuard<'_, HashMap<ListenerId, u32>> {
        let counts = self.of_listeners.lock();
        counts.unwrap_or_else(PoisonError::into_inner)
    }

    /// The thread with the fewest connections that has a table at least as new as `thread`; `thread` itself among equals.
    pub(crate) fn least_loaded(&self, thread: usize) -> usize {
        let table = self.loads[thread].table.load(Ordering::Relaxed);
        (0..self.loads.len())
            .filter(|&other| self.loads[other].table.load(Ordering::Acquire) >= table)
            .min_by_key(|&other| {
                let connections = self.loads[other].connections.load(Ordering::Relaxed);
                (connections, other != thread)
            })
            .unwrap_or(thread)
    }
}

/// An open client connection, counted for its thread and its listener.
pub(crate) struct Open {
    threads: Arc<Threads>,
    thread: usize,
    listener: ListenerId,
}

impl Open {
    pub(crate) fn new(threads: Arc<Threads>, thread: usize, listener: ListenerId) -> Open {
        threads.loads[thread]
            .connections
            .fetch_add(1, Ordering::AcqRel);
        *threads.of_listeners().entry(listener).or_default() += 1;
        Open {
            threads,
            thread,
            listener,
        }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.threads.loads[self.thread]
            .connections
            .fetch_sub(1, Ordering::AcqRel);
        if let Entry::Occupied(mut count) = self.threads.of_listeners().entry(self.listener) {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
    }
}

/// The way of an endpoint, or of the thread itself, to the control thread.
#[derive(Clone)]
pub(crate) struct Reporter {
    thread: usize,
    table: Rc<Cell<u64>>,
    reports: mpsc::UnboundedSender<Report>,
}

impl Reporter {
    pub(crate) fn new(thread: usize, reports: mpsc::UnboundedSender<Report>) -> Reporter {
        Reporter {
            thread,
            table: Rc::default(),
            reports,
        }
    }

    /// The index of the thread.
    pub(crate) fn thread(&self) -> usize {
        self.thread
    }

    /// What is reported from now on is true of this table.
    pub(crate) fn follow(&self, table: u64) {
        self.table.set(table);
    }

    /// A draining endpoint is idle.
    pub(crate) fn idle(&self, endpoint: EndpointId) {
        let table = self.table.get();
        self.send(Event::Idle { endpoint, table });
    }

    pub(crate) fn send(&self, event: Event) {
        // Nobody listens only when the process is about to end.
        let _ = self.reports.send(Report {
            thread: self.thread,
            event,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: ListenerId = ListenerId(1);
    const SECOND: ListenerId = ListenerId(2);

    fn threads(most_connections: u32) -> Arc<Threads> {
        let senders = (0..3).map(|_| mpsc::unbounded_channel().0).collect();
        Arc::new(Threads::new(senders, most_connections))
    }

    #[test]
    fn a_connection_goes_to_the_thread_with_the_fewest_that_knows_its_listener() {
        let threads = threads(3);
        assert_eq!(threads.least_loaded(1), 1);
        let _first = Open::new(threads.clone(), 1, FIRST);
        let _second = Open::new(threads.clone(), 0, FIRST);
        assert_eq!(threads.least_loaded(1), 2);
        threads.applied(1, 5);
        assert_eq!(threads.least_loaded(1), 1);
        threads.applied(0, 5);
        threads.applied(2, 6);
        assert_eq!(threads.least_loaded(1), 2);
    }

    #[test]
    fn a_listener_has_its_share_of_the_connections_that_there_can_be() {
        let threads = threads(3);
        let first = Open::new(threads.clone(), 0, FIRST);
        let _second = Open::new(threads.clone(), 1, FIRST);
        let full = || [FIRST, SECOND].map(|listener| threads.are_full(listener));
        assert_eq!(full(), [false, false]);
        threads.limit_connections(Some(2));
        assert_eq!(full(), [true, false]);
        drop(first);
        assert_eq!(full(), [false, false]);
        let _others = [0, 1].map(|thread| Open::new(threads.clone(), thread, SECOND));
        assert_eq!(full(), [true, true], "there are no more");
        for (limit, most) in [(Some(2), 2), (Some(9), 3), (None, 3)] {
            threads.limit_connections(limit);
            assert_eq!(threads.most_connections(), most);
        }
    }
}
