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
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::{Builder, LocalOptions};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::accept::accept;
use super::parking::{Parked, Parking, Wake};
use crate::ipc::ListenerId;
use crate::proxy::connection::connection::serve;
use crate::proxy::connection::requests::{PARK_AFTER, serve_requests};
use crate::proxy::exchange::client::{CLIENT_IDLE_LIMIT, Client, Peer};
use crate::proxy::net::socket::Socket;
use crate::proxy::net::turn;
use crate::proxy::shared::table::Table;
use crate::proxy::shared::threads::{
    Handover, Open, Reporter, ThreadCommand, ThreadEvent, ThreadReport, Threads,
};
use crate::proxy::view::drain::Drain;
use crate::proxy::view::listener::ListenerView;
use crate::proxy::view::view::View;

/// How often old idle connections to instances are closed.
const SWEEP_INTERVAL: Duration = Duration::from_millis(500);

/// A data thread as its own tasks see it.
pub(crate) struct Thread {
    threads: Arc<Threads>,
    reporter: Reporter,
    view: Rc<View>,
    drain: Rc<Drain>,
    accepting: RefCell<JoinSet<io::Result<()>>>,
    parking: Parking,
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
            threads,
            view: Rc::new(View::new(reporter.clone())),
            reporter,
            drain: Rc::default(),
            accepting: RefCell::default(),
            parking: Parking::new()?,
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
            let thread = self.clone();
            let place = move |stream, peer, listener: &Rc<_>| thread.place(stream, peer, listener);
            accepting.spawn_local(accept(listener, socket, self.threads.clone(), place));
        }
    }

    /// Gives a connection that was just accepted to the thread with the fewest connections.
    fn place(self: &Rc<Self>, stream: TcpStream, peer: SocketAddr, listener: &Rc<ListenerView>) {
        let target = match listener.closing() {
            // Other threads may have removed the listener already.
            true => self.reporter.thread(),
            false => self.threads.least_loaded(self.reporter.thread()),
        };
        let open = Open::new(self.threads.clone(), target, listener.id());
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
        self.spawn(open, serve(client));
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

    /// Serves a connection in a task of its own. The connection counts as open until the task ends,
    /// or longer if it is parked.
    fn spawn(
        self: &Rc<Self>,
        open: Open,
        service: impl Future<Output = Option<Box<Client>>> + 'static,
    ) {
        let mut counted = Counted {
            open: Some(open),
            thread: self.clone(),
        };
        tokio::task::spawn_local(async move {
            if let Some(idle) = service.await
                && let Some(open) = counted.open.take()
            {
                counted.thread.park(*idle, open);
            }
        });
    }

    /// Parks an idle connection, whose task has ended.
    fn park(self: &Rc<Self>, idle: Client, open: Open) {
        let socket = idle.stream.into_socket();
        let Some(socket) = socket.and_then(Socket::into_std) else {
            return;
        };
        let parked = Parked {
            socket,
            peer: idle.peer.address,
            listener: idle.peer.listener.clone(),
            open,
            until: Instant::now() + (CLIENT_IDLE_LIMIT - PARK_AFTER),
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
    /// are closed.
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

impl Wake for Rc<Thread> {
    fn resume(&self, parked: Parked) {
        let client = self.client(parked.socket, parked.peer, parked.listener);
        self.spawn(parked.open, serve_requests(client));
    }

    fn close(&self, parked: Parked) {
        drop(parked.socket);
        drop(Counted {
            open: Some(parked.open),
            thread: self.clone(),
        });
    }
}

/// Counts a connection of this thread while its task runs.
struct Counted {
    open: Option<Open>,
    thread: Rc<Thread>,
}

impl Drop for Counted {
    fn drop(&mut self) {
        // A parked connection lives on without a task, and then `open` was taken.
        if self.open.take().is_some() && self.thread.drain.has_begun() {
            self.thread.reporter.send(ThreadEvent::Empty);
        }
    }
}
