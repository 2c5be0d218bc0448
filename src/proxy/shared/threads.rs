//! What the threads of a worker know of one another, their loads, and the messages between them.

use std::cell::Cell;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::Hash;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::mpsc;

use super::bound_counters::BoundCounters;
use super::budget::Budget;
use super::client_key::ClientKey;
use super::heap;
use super::memory::Memory;
use super::table::Table;
use crate::ipc::{BoundCounts, EndpointId, ListenerId};

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
    /// Cut off all tunnels.
    CutTunnels,
    /// Free memory, by what the overload guard has decided.
    Relieve(Relief),
    /// Answer with [`ThreadEvent::Pong`].
    Ping(u64),
    /// End at once, even if connections are left.
    Stop,
}

/// How a data thread frees memory: it closes idle connections, and perhaps busy ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Relief {
    /// The busy connections to close.
    pub(crate) largest: Option<Excess>,
}

/// Which busy connections a data thread closes to free memory: the largest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Excess {
    /// How many bytes a connection must hold to be closed.
    pub(crate) least: usize,
    /// After the connections that hold this many bytes together, no more are closed.
    pub(crate) bytes: usize,
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
    budget: Budget,
    memory: Memory,
    /// How many client connections the worker has file descriptors for.
    most_connections: AtomicU32,
    /// How many client connections one listener may have, so that one port cannot take them all.
    most_of_listener: AtomicU32,
    /// True while the worker, or a listener, has more than half of the connections that it may.
    crowded: AtomicBool,
    /// The lock is taken once for each connection, not for each request.
    counts: Mutex<ConnectionCounts>,
}

/// How many client connections are open.
#[derive(Default)]
struct ConnectionCounts {
    of_listeners: HashMap<ListenerId, u32>,
    /// Those of each client on each listener, without clients that have none.
    of_origins: HashMap<(ListenerId, ClientKey), u32>,
}

/// How many connections a client may have on a listener as long as there is room for another one,
/// even if others have hardly any: as many as a browser needs, and those of its neighbors.
const FEW: u32 = 16;

/// The bits of a number of bytes below whole MiB.
const MEBIBYTE: u32 = 20;

/// The load of one thread, on a cache line of its own.
#[derive(Default)]
#[repr(align(128))]
struct Load {
    /// Open client connections.
    connections: AtomicU32,
    /// The number of the table that the thread uses.
    table: AtomicU64,
    /// What the bounds of the thread do.
    bounds: Arc<BoundCounters>,
}

impl Threads {
    /// Makes the shared state of as many threads as there are senders.
    pub(crate) fn new(
        commands: Vec<mpsc::UnboundedSender<ThreadCommand>>,
        budget: Budget,
    ) -> Threads {
        Threads {
            loads: commands.iter().map(|_| Load::default()).collect(),
            commands: commands.into(),
            budget,
            memory: Memory::new(budget.memory),
            most_connections: AtomicU32::new(budget.clients),
            most_of_listener: AtomicU32::new(budget.clients),
            crowded: AtomicBool::new(false),
            counts: Mutex::default(),
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
    pub(crate) fn most_of_listener(&self) -> u32 {
        self.most_of_listener.load(Ordering::Relaxed)
    }

    /// The counters that this thread writes.
    pub(crate) fn bound_counters(&self, thread: usize) -> &Arc<BoundCounters> {
        &self.loads[thread].bounds
    }

    /// Returns the state of the bounds of all threads.
    pub(crate) fn bounds(&self) -> BoundCounts {
        let threads = self.loads.iter().map(|load| load.bounds.counts());
        let counts = threads.fold(BoundCounts::default(), |sum, counts| sum + counts);
        BoundCounts {
            most_connections: self.most_connections.load(Ordering::Relaxed),
            memory: heap::in_use() >> MEBIBYTE << MEBIBYTE,
            most_memory: self.memory.most(),
            overload: self.memory.overload(),
            ..counts
        }
    }

    /// How the descriptors of the worker are divided.
    pub(crate) fn budget(&self) -> &Budget {
        &self.budget
    }

    /// The memory of the worker.
    pub(crate) fn memory(&self) -> &Memory {
        &self.memory
    }

    /// Limits the client connections of each listener. The limit is never higher than the number of
    /// connections that the worker has file descriptors for, beside its listening sockets. Open
    /// connections stay.
    pub(crate) fn limit_connections(&self, most: Option<u32>, listeners: usize) {
        let all = self.budget.clients_beside(listeners);
        self.most_connections.store(all, Ordering::Relaxed);
        let most = most.unwrap_or(u32::MAX).min(all);
        self.most_of_listener.store(most, Ordering::Relaxed);
        self.look_for_crowd(&self.counts());
    }

    /// Returns true while the worker, or one of its listeners, has more than half of the
    /// connections that it may, so that it may soon have to close idle ones. No single client can
    /// cause that.
    pub(crate) fn is_crowded(&self) -> bool {
        self.crowded.load(Ordering::Relaxed)
    }

    fn look_for_crowd(&self, counts: &ConnectionCounts) {
        let most = counts.of_listeners.values().max().copied().unwrap_or(0);
        let crowded = most > self.most_of_listener() / 2
            || self.connections() > self.most_connections.load(Ordering::Relaxed) / 2;
        self.crowded.store(crowded, Ordering::Relaxed);
    }

    /// Returns true if the worker has as many connections as it may.
    pub(crate) fn is_full(&self) -> bool {
        self.connections() >= self.most_connections.load(Ordering::Relaxed)
    }

    /// Returns true if the listener, or the worker, has as many connections as it may.
    pub(crate) fn are_full(&self, listener: ListenerId) -> bool {
        let of_listener = self.counts().of_listeners.get(&listener).copied();
        of_listener.unwrap_or(0) >= self.most_of_listener() || self.is_full()
    }

    fn counts(&self) -> MutexGuard<'_, ConnectionCounts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts another connection of a client. Returns false if the client has as many connections
    /// as it may: as many as there is still room for, on the listener and in the worker. So one
    /// client alone gets half of them, and however many clients take what they can get, there is
    /// room for another one.
    fn count_origin(
        &self,
        counts: &mut ConnectionCounts,
        listener: ListenerId,
        origin: ClientKey,
    ) -> bool {
        let of_listener = counts.of_listeners.get(&listener).copied().unwrap_or(0);
        let room = self.most_of_listener().saturating_sub(of_listener);
        let all = self.most_connections.load(Ordering::Relaxed);
        let room = room.min(all.saturating_sub(self.connections()));
        let count = counts.of_origins.entry((listener, origin)).or_default();
        if *count >= room.max(FEW) {
            return false;
        }
        *count += 1;
        true
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

/// Counts an open client connection for its thread, its listener and its client, until this value
/// is dropped.
pub(crate) struct Open {
    threads: Arc<Threads>,
    thread: usize,
    listener: ListenerId,
    origin: Option<ClientKey>,
}

impl Open {
    /// Counts a connection of `listener` that `thread` will serve. `None` if its client has as many
    /// connections as it may. A connection without a client is that of a trusted proxy.
    pub(crate) fn new(
        threads: Arc<Threads>,
        thread: usize,
        listener: ListenerId,
        origin: Option<ClientKey>,
    ) -> Option<Open> {
        {
            let mut counts = threads.counts();
            if let Some(origin) = origin
                && !threads.count_origin(&mut counts, listener, origin)
            {
                return None;
            }
            *counts.of_listeners.entry(listener).or_default() += 1;
            threads.loads[thread]
                .connections
                .fetch_add(1, Ordering::AcqRel);
            threads.look_for_crowd(&counts);
        }
        Some(Open {
            threads,
            thread,
            listener,
            origin,
        })
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.threads.loads[self.thread]
            .connections
            .fetch_sub(1, Ordering::AcqRel);
        let mut counts = self.threads.counts();
        subtract(&mut counts.of_listeners, self.listener);
        if let Some(origin) = self.origin {
            subtract(&mut counts.of_origins, (self.listener, origin));
        }
        self.threads.look_for_crowd(&counts);
    }
}

/// Counts a connection for the client that a trusted proxy has named, until this value is dropped.
/// The connection itself is counted by [`Open`], without a client.
pub(crate) struct OpenBehindProxy {
    threads: Arc<Threads>,
    listener: ListenerId,
    origin: ClientKey,
}

impl OpenBehindProxy {
    /// Counts a connection of `listener`. `None` if its client has as many connections as it may.
    pub(crate) fn new(
        threads: Arc<Threads>,
        listener: ListenerId,
        origin: ClientKey,
    ) -> Option<OpenBehindProxy> {
        let is_counted = threads.count_origin(&mut threads.counts(), listener, origin);
        is_counted.then(|| OpenBehindProxy {
            threads,
            listener,
            origin,
        })
    }
}

impl Drop for OpenBehindProxy {
    fn drop(&mut self) {
        let mut counts = self.threads.counts();
        subtract(&mut counts.of_origins, (self.listener, self.origin));
    }
}

/// Counts one less, and forgets what nobody has.
fn subtract<K: Eq + Hash>(counts: &mut HashMap<K, u32>, key: K) {
    if let Entry::Occupied(mut count) = counts.entry(key) {
        *count.get_mut() -= 1;
        if *count.get() == 0 {
            count.remove();
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
        let budget = Budget {
            clients: most_connections,
            ..Budget::new(None, 3)
        };
        Arc::new(Threads::new(senders, budget))
    }

    #[test]
    fn a_connection_goes_to_the_thread_with_the_fewest_that_knows_its_listener() {
        let threads = threads(3);
        assert_eq!(threads.least_loaded(1), 1);
        let _first = Open::new(threads.clone(), 1, FIRST, None);
        let _second = Open::new(threads.clone(), 0, FIRST, None);
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
        let first = Open::new(threads.clone(), 0, FIRST, None);
        let _second = Open::new(threads.clone(), 1, FIRST, None);
        let full = || [FIRST, SECOND].map(|listener| threads.are_full(listener));
        assert_eq!(full(), [false, false]);
        threads.limit_connections(Some(2), 1);
        assert_eq!(full(), [true, false]);
        drop(first);
        assert_eq!(full(), [false, false]);
        let _others = [0, 1].map(|thread| Open::new(threads.clone(), thread, SECOND, None));
        assert_eq!(full(), [true, true], "there are no more");
        for (limit, most) in [(Some(2), 2), (Some(9), 3), (None, 3)] {
            threads.limit_connections(limit, 1);
            assert_eq!(threads.most_of_listener(), most);
        }
    }

    #[test]
    fn a_crowd_is_more_than_half_of_what_there_can_be() {
        let threads = threads(4);
        let open = |thread, listener| Open::new(threads.clone(), thread, listener, None);
        let [_first, _second] = [open(0, FIRST), open(1, FIRST)];
        assert!(!threads.is_crowded());
        let third = open(1, SECOND);
        assert!(threads.is_crowded(), "of the worker");
        drop(third);
        assert!(!threads.is_crowded());
        threads.limit_connections(Some(3), 1);
        assert!(threads.is_crowded(), "of a listener");
        threads.limit_connections(None, 1);
        assert!(!threads.is_crowded());
    }

    fn open_all(threads: &Arc<Threads>, listener: ListenerId, origin: u32) -> Vec<Open> {
        let origin = Some(ClientKey::V4(origin));
        std::iter::from_fn(|| Open::new(threads.clone(), 0, listener, origin)).collect()
    }

    #[test]
    fn a_client_gets_as_many_connections_as_there_is_still_room_for() {
        let threads = threads(400);
        let first = open_all(&threads, FIRST, 1);
        assert_eq!(first.len(), 200);
        let second = open_all(&threads, FIRST, 2);
        assert_eq!(second.len(), 100);
        let third = open_all(&threads, SECOND, 3);
        assert_eq!(third.len(), 50, "all listeners together");
        // A trusted proxy speaks for many clients, each of which is counted.
        let proxy = Open::new(threads.clone(), 0, SECOND, None).unwrap();
        let origin = ClientKey::V4(4);
        let client = OpenBehindProxy::new(threads.clone(), SECOND, origin).unwrap();
        assert_eq!(threads.counts().of_origins[&(SECOND, origin)], 1);
        drop((first, second, third, proxy, client));
        let counts = threads.counts();
        assert!(counts.of_listeners.is_empty() && counts.of_origins.is_empty());
    }

    #[test]
    fn a_client_may_always_have_a_few_connections() {
        let threads = threads(20);
        let first: Vec<Open> = open_all(&threads, FIRST, 1);
        assert_eq!(first.len(), FEW as usize);
        threads.limit_connections(Some(FEW), 1);
        assert!(threads.are_full(FIRST) && !threads.are_full(SECOND));
    }
}
