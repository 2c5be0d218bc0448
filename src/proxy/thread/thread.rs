//! A data thread: serves connections on one core, with a runtime, a view of the table and memory
//! pools of its own.
//!
//! # Theory of operation
//! The control thread sends [`ThreadCommand`]s; the thread answers with [`ThreadReport`]s. A table
//! is taken over in one step without an await ([`View`]), and what the thread has reported about a
//! table stays true. Nothing on the way of a request is shared with another thread, except for
//! counters that only this thread writes.
//!
//! A thread that accepts a connection gives it to the thread with the fewest connections. The other
//! thread must know the listener: a thread with an older table is passed over, and a thread that
//! has removed the listener in the meantime uses the routes of the table that came with the
//! connection.
//!
//! A connection has a task while it is active. A connection that stays idle loses its task and is
//! parked ([`Parking`]).

use std::cell::RefCell;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::{Builder, LocalOptions};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::accept::{Placement, accept};
use super::active::Active;
use super::parking::{Parked, Parking, Wake};
use crate::ipc::ListenerId;
use crate::proxy::connection::connection::{resume, serve};
use crate::proxy::exchange::client::{Client, Peer, REST_OF_IDLE_LIMIT};
use crate::proxy::exchange::error::too_many_connections;
use crate::proxy::net::held::Held;
use crate::proxy::net::socket::Socket;
use crate::proxy::net::turn;
use crate::proxy::shared::table::Table;
use crate::proxy::shared::threads::{
    Handover, Open, Relief, Reporter, ThreadCommand, ThreadEvent, ThreadReport, Threads,
};
use crate::proxy::view::drain::Drain;
use crate::proxy::view::listener::ListenerView;
use crate::proxy::view::view::{TooManyConnections, View};

/// How often old idle connections to instances are closed.
const SWEEP_INTERVAL: Duration = Duration::from_millis(500);

/// How many idle connections a thread closes at once to free memory, before it looks again whether
/// that suffices.
const MOST_RELIEVED: usize = 64;

/// A data thread as its own tasks see it.
pub(crate) struct Thread {
    threads: Arc<Threads>,
    reporter: Reporter,
    view: Rc<View>,
    drain: Rc<Drain>,
    accepting: RefCell<JoinSet<io::Result<()>>>,
    parking: Parking,
    active: Active,
}

/// Runs a data thread until it is told to stop. The thread reports its end even if it panics.
pub(crate) fn run(
    index: usize,
    threads: Arc<Threads>,
    mut commands: mpsc::UnboundedReceiver<ThreadCommand>,
    reports: mpsc::UnboundedSender<ThreadReport>,
) -> io::Result<()> {
    let reporter = Reporter::new(index, reports);
    let _end = ReportEnd(reporter.clone());
    let runtime = Builder::new_current_thread()
        .enable_all()
        .event_interval(turn::TASKS_BETWEEN_LOOKS)
        .build_local(LocalOptions::default())?;
    runtime.block_on(async {
        let thread = Rc::new(Thread::new(threads, reporter)?);
        let mut parking = pin!(thread.watch_parked());
        let mut sweeps = tokio::time::interval(SWEEP_INTERVAL);
        loop {
            tokio::select! {
                command = commands.recv() => match command {
                    Some(ThreadCommand::Apply { table, opened }) => thread.apply(table, opened),
                    Some(ThreadCommand::Serve(handover)) => thread.take(handover),
                    Some(ThreadCommand::Drain { idle }) => thread.drain(idle),
                    Some(ThreadCommand::CutTunnels) => thread.view.cut_tunnels(),
                    Some(ThreadCommand::Relieve(relief)) => thread.relieve(relief),
                    Some(ThreadCommand::Ping(number)) => thread.reporter.send(ThreadEvent::Pong(number)),
                    Some(ThreadCommand::Stop) | None => break,
                },
                _ = sweeps.tick() => thread.view.sweep(Instant::now()),
                Err(error) = &mut parking => return Err(error),
            }
        }
        Ok(())
    })
}

struct ReportEnd(Reporter);

impl Drop for ReportEnd {
    fn drop(&mut self) {
        self.0.send(ThreadEvent::Ended);
    }
}

impl Thread {
    /// Makes a thread without a table and without connections.
    pub(crate) fn new(threads: Arc<Threads>, reporter: Reporter) -> io::Result<Thread> {
        Ok(Thread {
            view: Rc::new(View::new(threads.clone(), reporter.clone())),
            threads,
            reporter,
            drain: Rc::default(),
            accepting: RefCell::default(),
            parking: Parking::new()?,
            active: Active::default(),
        })
    }

    fn apply(self: &Rc<Self>, table: Arc<Table>, opened: Vec<(ListenerId, Arc<OwnedFd>)>) {
        let number = table.number;
        self.view.apply(table, || {
            for (id, socket) in opened {
                self.open(id, socket);
            }
            self.threads.applied(self.reporter.thread(), number);
        });
    }

    fn open(self: &Rc<Self>, id: ListenerId, socket: Arc<OwnedFd>) {
        if let Some(listener) = self.view.listener(id)
            && !self.drain.has_begun()
        {
            let mut accepting = self.accepting.borrow_mut();
            // Remove the finished tasks of listeners that a table has closed.
            while accepting.try_join_next().is_some() {}
            accepting.spawn_local(accept(listener, socket, self.threads.clone(), self.clone()));
        }
    }

    /// Takes over a connection that another thread has accepted.
    fn take(self: &Rc<Self>, handover: Handover) {
        let Handover {
            stream,
            peer,
            listener,
            table,
            open,
        } = handover;
        let known = self.view.listener(listener);
        if let Some(listener) = known.or_else(|| self.view.removed_listener(listener, &table)) {
            self.serve(stream, peer, listener, open);
        }
    }

    /// Serves a new connection.
    pub(crate) fn serve(
        self: &Rc<Self>,
        stream: TcpStream,
        peer: SocketAddr,
        listener: Rc<ListenerView>,
        open: Open,
    ) {
        let client = self.client(stream, peer, listener);
        let held = client.peer.held.clone();
        self.spawn(open, &held, serve(client));
    }

    /// Finds the listener to which a connection of a passing listener belongs.
    fn owner(&self, stream: &TcpStream) -> Option<Rc<ListenerView>> {
        let local = stream.local_addr().ok()?;
        let local = SocketAddr::new(local.ip().to_canonical(), local.port());
        self.view.listener_at(local)
    }

    fn client(
        &self,
        stream: TcpStream,
        peer: SocketAddr,
        listener: Rc<ListenerView>,
    ) -> Box<Client> {
        let (view, drain) = (self.view.clone(), self.drain.clone());
        let peer = Rc::new(Peer::new(peer, listener, view, drain));
        Box::new(Client::new(Socket::accepted(stream).into(), peer))
    }

    /// Closes a connection whose client has too many, and tells the client so if it is clear which
    /// protocol it expects.
    fn refuse(stream: &TcpStream, peer: SocketAddr, listener: &ListenerView) {
        listener.log_refused(peer, TooManyConnections);
        if listener.tls().is_some() || listener.has_proxy_protocol() {
            return;
        }
        // What was sent is read, because otherwise the response could be lost by a reset.
        let mut begin = [0; 16 << 10];
        let length = (&mut &*stream).read(&mut begin).unwrap_or(0);
        if is_http1(&begin[..length]) {
            // The client is told if there is room for it, which is the case on a new connection.
            let _ = (&mut &*stream).write(&too_many_connections());
            let _ = stream.shutdown(Shutdown::Write);
        }
    }

    /// Serves a connection in a task of its own. The connection counts as open until the task ends,
    /// or longer if it is parked.
    fn spawn(
        self: &Rc<Self>,
        open: Open,
        held: &Rc<Held>,
        service: impl Future<Output = Option<Box<Client>>> + 'static,
    ) {
        let mut counted = Counted {
            open: Some(open),
            place: Some(self.active.add(held)),
            thread: self.clone(),
        };
        let task = tokio::task::spawn_local(async move {
            if let Some(idle) = service.await
                && let Some(open) = counted.open.take()
            {
                counted.thread.park(*idle, open);
            }
        });
        held.belongs_to(task.abort_handle());
    }

    /// Frees memory: closes idle connections, those that need most first, and perhaps busy ones.
    fn relieve(self: &Rc<Self>, relief: Relief) {
        let counters = self.view.room().counters();
        let closes_idle = |_: &usize| {
            // An idle connection with a task needs more than a parked one.
            self.view.idle_tasks().end_oldest(None) || self.parking.make_room(self, None)
        };
        let closed = (0..MOST_RELIEVED).take_while(closes_idle).count();
        (0..closed).for_each(|_| counters.close_idle());
        if let Some(excess) = relief.largest {
            let closed = self.active.end_largest(excess);
            (0..closed).for_each(|_| counters.close_largest());
        }
    }

    /// Parks an idle connection, whose task has ended.
    fn park(self: &Rc<Self>, idle: Client, open: Open) {
        let socket = idle.stream.into_socket();
        let socket = socket.and_then(Socket::into_std);
        // Nothing but the task of an idle connection knows its peer.
        let (Some(socket), Some(peer)) = (socket, Rc::into_inner(idle.peer)) else {
            return;
        };
        let parked = Parked {
            socket,
            peer: peer.address,
            listener: peer.listener,
            open,
            behind_proxy: peer.behind_proxy,
            speaks_http1: peer.speaks_http1.get(),
            until: Instant::now() + REST_OF_IDLE_LIMIT,
        };
        if let Err(parked) = self.parking.park(parked) {
            self.resume(parked);
        }
    }

    /// Watches the parked connections. Returns only if that fails.
    pub(crate) async fn watch_parked(self: &Rc<Self>) -> io::Result<()> {
        self.parking.watch(&self.drain, self).await
    }

    /// Returns how many connections are parked.
    #[cfg(test)]
    pub(crate) fn parked(&self) -> usize {
        self.parking.len()
    }

    /// Begins to drain: connections end with their next response. Those that are idle for so long
    /// are closed. If the thread drains already, only this limit changes.
    pub(crate) fn drain(self: &Rc<Self>, idle_limit: Duration) {
        if !self.drain.begin(idle_limit) {
            return;
        }
        self.view.finish_listeners();
        let thread = self.clone();
        tokio::task::spawn_local(async move {
            let mut accepting = thread.accepting.take();
            while accepting.join_next().await.is_some() {}
            thread.reporter.send(ThreadEvent::Closed);
        });
    }
}

impl Placement for Rc<Thread> {
    /// Gives a connection that was just accepted to the thread with the fewest connections.
    fn place(&self, stream: TcpStream, peer: SocketAddr, listener: &Rc<ListenerView>) {
        let owner;
        let listener = match listener.is_passing() {
            false => listener,
            true => match self.owner(&stream) {
                Some(found) => {
                    owner = found;
                    &owner
                }
                // Nobody is configured to listen there any more.
                None => return,
            },
        };
        let target = match listener.closing() {
            // Other threads may have removed the listener already.
            true => self.reporter.thread(),
            false => self.threads.least_loaded(self.reporter.thread()),
        };
        let origin = self.view.origin(peer);
        let Some(open) = Open::new(self.threads.clone(), target, listener.id(), origin) else {
            self.view.room().counters().refuse_connection();
            return Thread::refuse(&stream, peer, listener);
        };
        if target == self.reporter.thread() {
            self.serve(stream, peer, listener.clone(), open);
            return;
        }
        let handover = Handover {
            stream,
            peer,
            listener: listener.id(),
            table: self.view.table(),
            open,
        };
        if let Err(ThreadCommand::Serve(handover)) =
            self.threads.send(target, ThreadCommand::Serve(handover))
        {
            self.take(handover);
        }
    }

    fn full_owner(&self, passing: &ListenerView) -> Option<ListenerId> {
        let is_full = |owner: ListenerId| self.threads.are_full(owner);
        self.view.find_owner(passing.address(), is_full)
    }

    fn make_room(&self, listener: Option<ListenerId>) -> bool {
        let has_closed =
            self.parking.make_room(self, listener) || self.view.idle_tasks().end_oldest(listener);
        if has_closed {
            self.view.room().counters().close_idle();
        }
        has_closed
    }
}

impl Wake for Rc<Thread> {
    fn resume(&self, parked: Parked) {
        let Parked {
            socket,
            peer,
            listener,
            open,
            behind_proxy,
            speaks_http1,
            ..
        } = parked;
        let (view, drain) = (self.view.clone(), self.drain.clone());
        let mut peer = Peer::new(peer, listener, view, drain);
        peer.behind_proxy = behind_proxy;
        peer.speaks_http1.set(speaks_http1);
        let client = Client::new(Socket::accepted(socket).into(), Rc::new(peer));
        let held = client.peer.held.clone();
        self.spawn(open, &held, resume(Box::new(client)));
    }

    fn close(&self, parked: Parked) {
        drop(parked.socket);
        drop(Counted {
            open: Some(parked.open),
            place: None,
            thread: self.clone(),
        });
    }
}

/// Returns true if these are the first bytes of a client with HTTP/1.
fn is_http1(begin: &[u8]) -> bool {
    begin.first().is_some_and(u8::is_ascii_uppercase) && !begin.starts_with(b"PRI ")
}

/// Counts a connection of this thread while its task runs.
struct Counted {
    open: Option<Open>,
    /// Its place among the active ones, if it has a task.
    place: Option<usize>,
    thread: Rc<Thread>,
}

impl Drop for Counted {
    fn drop(&mut self) {
        if let Some(place) = self.place {
            self.thread.active.remove(place);
        }
        // A parked connection lives on without a task, and then `open` was taken.
        if self.open.take().is_some() && self.thread.drain.has_begun() {
            self.thread.reporter.send(ThreadEvent::Empty);
        }
    }
}
