//! A listening socket as a data thread sees it: what is behind it, and the accepting.
//!
//! # Theory of operation
//! All threads, and other worker generations, accept from one shared socket, each thread through its own epoll. A
//! listener is in one of three modes, and only ever moves down: `Open`; `Finishing` (the whole worker drains: what the
//! kernel has already accepted is taken, then our descriptor is closed); `Closed` (a table removed it: the descriptor
//! is closed as it is). The socket is never shut down, for others may share it. Connections outlive their listener:
//! they hold its thread view and go by its last routes.

use std::cell::{Cell, RefCell};
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{SocketFlags, acceptfrom_with};
use tokio::io::{Interest, unix::AsyncFd};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::router::Router;
use super::service::Service;
use super::thread::Thread;
use crate::ipc::ListenerId;

/// Connections accepted in one go before other tasks of the thread get their turn.
const BATCH: usize = 64;

/// The pause after the process or the system ran out of descriptors or memory.
const EXHAUSTED_PAUSE: Duration = Duration::from_millis(100);

/// The pause while the worker has as many connections as it may.
const FULL_PAUSE: Duration = Duration::from_millis(20);

/// How often the same trouble is logged.
const LOG_INTERVAL: Duration = Duration::from_secs(10);

/// The thread's view of a listener.
pub(crate) struct Listener {
    id: ListenerId,
    address: SocketAddr,
    mode: Cell<Mode>,
    changed: Notify,
    routes: RefCell<Routes>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Open,
    Finishing,
    Closed,
}

/// A router and the thread's services, in the order in which the router counts them.
#[derive(Clone, Default)]
pub(crate) struct Routes {
    pub(crate) router: Arc<Router>,
    pub(crate) services: Rc<[Rc<Service>]>,
}

impl Listener {
    pub(crate) fn new(id: ListenerId, address: SocketAddr, routes: Routes) -> Listener {
        Listener {
            id,
            address,
            mode: Cell::new(Mode::Open),
            changed: Notify::new(),
            routes: RefCell::new(routes),
        }
    }

    /// The service for a host without its port, in any case, and a path without its query.
    pub(crate) fn route(&self, host: &[u8], path: &[u8]) -> Option<Rc<Service>> {
        let routes = self.routes.borrow();
        let index = routes.router.find(host, path)?;
        Some(routes.services[index].clone())
    }

    /// Whether connections are to end with their next response.
    pub(crate) fn closing(&self) -> bool {
        self.mode.get() != Mode::Open
    }

    /// The port it is bound to.
    pub(crate) fn port(&self) -> u16 {
        self.address.port()
    }

    pub(crate) fn id(&self) -> ListenerId {
        self.id
    }

    pub(crate) fn set_routes(&self, routes: Routes) {
        *self.routes.borrow_mut() = routes;
    }

    /// Accepts what waits in the queue, then no more.
    pub(crate) fn finish(&self) {
        if self.mode.get() == Mode::Open {
            self.mode.set(Mode::Finishing);
            self.changed.notify_waiters();
        }
    }

    /// Accepts no more.
    pub(crate) fn close(&self) {
        self.mode.set(Mode::Closed);
        self.changed.notify_waiters();
    }

    /// Accepts for `thread` until the listener is closed, or has finished.
    pub(crate) async fn accept(
        self: Rc<Self>,
        thread: Rc<Thread>,
        socket: Arc<OwnedFd>,
    ) -> io::Result<()> {
        let socket = Acceptor::register(socket)?;
        let mut quiet_until = Instant::now();
        loop {
            let changed = self.changed.notified();
            let outcome = match self.mode.get() {
                Mode::Closed => return Ok(()),
                Mode::Finishing => socket.accept_batch(&thread, &self),
                Mode::Open => tokio::select! {
                    () = changed => continue,
                    ready = socket.readable() => ready.map(|()| socket.accept_batch(&thread, &self))?,
                },
            };
            match outcome {
                Batch::More => tokio::task::yield_now().await,
                Batch::Empty if self.mode.get() == Mode::Open => {}
                Batch::Empty => return Ok(()),
                Batch::Full => {
                    if Instant::now() >= quiet_until {
                        quiet_until = Instant::now() + LOG_INTERVAL;
                        tracing::warn!(listener = %self.address, "ConnectionLimitReached");
                    }
                    tokio::time::sleep(FULL_PAUSE).await;
                }
                Batch::Failed(error) => {
                    if Instant::now() >= quiet_until {
                        quiet_until = Instant::now() + LOG_INTERVAL;
                        tracing::error!(listener = %self.address, %error, "AcceptFailed");
                    }
                    tokio::time::sleep(EXHAUSTED_PAUSE).await;
                }
            }
        }
    }
}

/// How accepting a batch ended.
enum Batch {
    /// There may be more in the queue.
    More,
    /// The queue is empty.
    Empty,
    /// The worker has as many connections as it may.
    Full,
    /// No descriptor, no memory, or worse.
    Failed(io::Error),
}

/// The shared socket, registered with the epoll of one thread.
struct Acceptor {
    socket: AsyncFd<Shared>,
}

/// `AsyncFd` wants something that has a raw descriptor.
struct Shared(Arc<OwnedFd>);

impl AsRawFd for Shared {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl Acceptor {
    #[allow(unsafe_code)]
    fn register(socket: Arc<OwnedFd>) -> io::Result<Acceptor> {
        // SAFETY: the Arc keeps the descriptor open and the same for as long as the AsyncFd that owns the Arc lives,
        // and nothing takes an OwnedFd out of an Arc that is still shared with it.
        let socket =
            unsafe { AsyncFd::register_with_interest(Shared(socket), Interest::READABLE)? };
        Ok(Acceptor { socket })
    }

    async fn readable(&self) -> io::Result<()> {
        // The readiness is cleared by the accept that finds the queue empty.
        self.socket
            .readable()
            .await
            .map(|mut ready| ready.retain_ready())
    }

    fn accept_batch(&self, thread: &Rc<Thread>, listener: &Rc<Listener>) -> Batch {
        for _ in 0..BATCH {
            if thread.is_full() {
                return Batch::Full;
            }
            let accepted = match listener.mode.get() {
                Mode::Open => self
                    .socket
                    .try_io(Interest::READABLE, |socket| socket.accept()),
                // What is in the queue counts, not what the reactor has heard of it.
                Mode::Finishing => self.socket.get_ref().accept(),
                Mode::Closed => return Batch::Empty,
            };
            match accepted {
                Ok((stream, peer)) => thread.place(stream, peer, listener),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Batch::Empty,
                Err(error) if is_connection_error(&error) => {}
                Err(error) => return Batch::Failed(error),
            }
        }
        Batch::More
    }
}

impl Shared {
    fn accept(&self) -> io::Result<(TcpStream, SocketAddr)> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (socket, peer) = acceptfrom_with(&self.0, flags)?;
        let peer = peer
            .and_then(|peer| SocketAddr::try_from(peer).ok())
            .ok_or(Errno::CONNABORTED)?;
        let peer = SocketAddr::new(peer.ip().to_canonical(), peer.port());
        Ok((TcpStream::from(socket), peer))
    }
}

/// Errors of the one connection, which accept(2) tells to pass over.
fn is_connection_error(error: &io::Error) -> bool {
    matches!(
        Errno::from_io_error(error),
        Some(
            Errno::INTR
                | Errno::CONNABORTED
                | Errno::NETDOWN
                | Errno::PROTO
                | Errno::NOPROTOOPT
                | Errno::HOSTDOWN
                | Errno::NONET
                | Errno::HOSTUNREACH
                | Errno::OPNOTSUPP
                | Errno::NETUNREACH
                | Errno::PERM
        )
    )
}
