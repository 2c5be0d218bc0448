//! What the threads of a worker know of one another, their loads, and the messages between them.

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
pub(crate) enum ThreadCommand {
    /// Use this table. The listeners of these sockets are in no table before this one: accept on
    /// them.
    Apply {
        /// The table.
        table: Arc<Table>,
        /// The sockets, with their listeners.
        opened: Vec<(ListenerId, Arc<OwnedFd>)>,
    },
    /// Serve this connection, which another data thread has accepted.
    Serve(Handover),
    /// Drain: accept the connections that wait in the queues, then no more. Close idle connections
    /// after this time.
    Drain {
        /// How long an idle connection is left open for one more request.
        idle: Duration,
    },
    /// Answer with [`ThreadEvent::Pong`].
    Ping(u64),
    /// End at once, even if connections are left.
    Stop,
}

/// A client connection on its way from the thread that has accepted it to the thread that will
/// serve it.
pub(crate) struct Handover {
    /// The socket.
    pub(crate) stream: std::net::TcpStream,
    /// The address of the client, or of the proxy in front.
    pub(crate) peer: SocketAddr,
    /// The listener that has accepted the connection.
    pub(crate) listener: ListenerId,
    /// The table of the thread that has accepted the connection.
    pub(crate) table: Arc<Table>,
    /// Counts the connection for the thread that will serve it.
    pub(crate) open: Open,
}

/// What a data thread says to the control thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ThreadReport {
    /// The index of the data thread.
    pub(crate) thread: usize,
    /// What the thread says.
    pub(crate) event: ThreadEvent,
}

/// What happens on a data thread and matters to the control thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ThreadEvent {
    /// The thread uses the table of this number.
    Applied(u64),
    /// The thread has applied this table, has no connection to a draining endpoint, and will have
    /// none.
    Idle { endpoint: EndpointId, table: u64 },
    /// The thread has taken the ping of this number, so it is not stuck.
    Pong(u64),
    /// The draining thread has closed its listeners.
    Closed,
    /// The draining thread has ended its last connection.
    Empty,
    /// The thread has ended.
    Ended,
}

/// What all threads of a worker know of one another: how loaded each is, and how to reach it.
pub(crate) struct Threads {
    loads: Box<[Load]>,
    commands: Box<[mpsc::UnboundedSender<ThreadCommand>]>,
    /// How many client connections the worker has file descriptors for.
    most_connections: u32,
    /// How many client connections one listener may have, so that one port cannot take them all.
    most_of_listener: AtomicU32,
    /// How many connections each listener has open. The lock is taken once for each connection, not
    /// for each request.
    of_listeners: Mutex<HashMap<ListenerId, u32>>,
}

/// The load of one thread, on a cache line of its own.
#[derive(Default)]
#[repr(align(128))]
struct Load {
    /// Open client connections.
    connections: AtomicU32,
    /// The number of the table that the thread uses.
    table: AtomicU64,
}

impl Threads {
    /// Makes the shared state of as many threads as there are senders.
    pub(crate) fn new(
        commands: Vec<mpsc::UnboundedSender<ThreadCommand>>,
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

    /// Returns the number of open client connections of all threads.
    pub(crate) fn connections(&self) -> u32 {
        let loads = self.loads.iter();
        loads
            .map(|load| load.connections.load(Ordering::Acquire))
            .sum()
    }

    /// Returns the number of data threads.
    pub(crate) fn count(&self) -> usize {
        self.commands.len()
    }

    /// Sends a command to a thread. The command comes back if the thread has ended.
    pub(crate) fn send(&self, thread: usize, command: ThreadCommand) -> Result<(), ThreadCommand> {
        self.commands[thread].send(command).map_err(|error| error.0)
    }

    /// Notes that a thread uses the table of this number.
    pub(crate) fn applied(&self, thread: usize, table: u64) {
        self.loads[thread].table.store(table, Ordering::Release);
    }

    /// Returns how many client connections one listener may have.
    pub(crate) fn most_connections(&self) -> u32 {
        self.most_of_listener.load(Ordering::Relaxed)
    }

    /// Limits the client connections of each listener. The limit is never higher than the number of
    /// connections that the worker has file descriptors for. Open connections stay.
    pub(crate) fn limit_connections(&self, most: Option<u32>) {
        let most = most.unwrap_or(u32::MAX).min(self.most_connections);
        self.most_of_listener.store(most, Ordering::Relaxed);
    }

    /// Returns true if the listener, or the worker, has as many connections as it may.
    pub(crate) fn are_full(&self, listener: ListenerId) -> bool {
        let of_listener = self.of_listeners().get(&listener).copied();
        of_listener.unwrap_or(0) >= self.most_connections()
            || self.connections() >= self.most_connections
    }

    fn of_listeners(&self) -> MutexGuard<'_, HashMap<ListenerId, u32>> {
        let counts = self.of_listeners.lock();
        counts.unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the thread with the fewest connections among those whose table is at least as new as
    /// that of `thread`. Among equals, `thread` itself is preferred.
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

/// Counts an open client connection for its thread and its listener, until this value is dropped.
pub(crate) struct Open {
    threads: Arc<Threads>,
    thread: usize,
    listener: ListenerId,
}

impl Open {
    /// Counts a connection of `listener` that `thread` will serve.
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

/// Sends the reports of a data thread and of its endpoints to the control thread.
#[derive(Clone)]
pub(crate) struct Reporter {
    thread: usize,
    table: Rc<Cell<u64>>,
    reports: mpsc::UnboundedSender<ThreadReport>,
}

impl Reporter {
    /// Makes the reporter of the thread of this index.
    pub(crate) fn new(thread: usize, reports: mpsc::UnboundedSender<ThreadReport>) -> Reporter {
        Reporter {
            thread,
            table: Rc::default(),
            reports,
        }
    }

    /// Returns the index of the thread.
    pub(crate) fn thread(&self) -> usize {
        self.thread
    }

    /// Sets the number of the table that all following reports are about.
    pub(crate) fn follow(&self, table: u64) {
        self.table.set(table);
    }

    /// Reports that a draining endpoint is idle.
    pub(crate) fn idle(&self, endpoint: EndpointId) {
        let table = self.table.get();
        self.send(ThreadEvent::Idle { endpoint, table });
    }

    /// Sends an event of this thread to the control thread.
    pub(crate) fn send(&self, event: ThreadEvent) {
        // The control thread stops receiving only when the process is about to end.
        let _ = self.reports.send(ThreadReport {
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
