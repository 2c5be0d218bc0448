//! A listening socket as a data thread sees it: what is behind it, and the accepting.
//!
//! # Theory of operation
//! All threads, and other worker generations, accept from one shared socket, each thread through its own epoll. A
//! listener is `Open` until the worker drains or a table removes it, and from then on, for good, `Finishing`: what the
//! kernel has already accepted is taken, then our descriptor is closed. The socket is never shut down, for others may
//! share it. Connections outlive their listener: they hold its thread view and go by its last routes.

use std::cell::{Cell, RefCell};
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{SocketFlags, acceptfrom_with};
use rustls::ServerConfig;
use tokio::io::{Interest, unix::AsyncFd};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::router::Router;
use super::service::Service;
use super::thread::Thread;
use crate::ipc::ListenerId;
use crate::proxy::net::descriptor::SharedDescriptor;
use crate::proxy::net::proxy_protocol::NoProxyHeader;
use crate::proxy::shared::certificates::ListenerTls;

/// Connections accepted in one go before other tasks of the thread get their turn.
const BATCH: usize = 64;

/// The pause after the process or the system ran out of descriptors or memory.
const EXHAUSTED_PAUSE: Duration = Duration::from_millis(100);

/// The pause while there are as many connections as there may be.
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
    /// When it may be logged again that a connection did not begin as it should.
    quiet_until: Cell<Option<Instant>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Open,
    Finishing,
}

/// What becomes of the connections.
#[derive(Clone, Default)]
pub(crate) struct Routes {
    /// Its connections are TLS's.
    pub(crate) tls: Option<ListenerTls>,
    pub(crate) router: Arc<Router>,
    /// The thread's, in the order in which the router counts them.
    pub(crate) services: Rc<[Rc<Service>]>,
    /// A proxy in front says whose they are.
    pub(crate) proxy_protocol: bool,
}

impl Listener {
    pub(crate) fn new(id: ListenerId, address: SocketAddr, routes: Routes) -> Listener {
        Listener {
            id,
            address,
            mode: Cell::new(Mode::Open),
            changed: Notify::new(),
            routes: RefCell::new(routes),
            quiet_until: Cell::new(None),
        }
    }

    /// The service for a host without its port, in any case, and a path without its query, and how many bytes of the
    /// path it does not get.
    pub(crate) fn route(&self, host: &[u8], path: &[u8]) -> Option<(Rc<Service>, usize)> {
        let routes = self.routes.borrow();
        let destination = routes.router.find(host, path)?;
        let service = routes.services[destination.service].clone();
        Some((service, destination.strip))
    }

    /// Whether connections begin with a header of the PROXY protocol.
    pub(crate) fn has_proxy_protocol(&self) -> bool {
        self.routes.borrow().proxy_protocol
    }

    /// A trusted proxy has sent something else.
    pub(crate) fn log_no_header(&self, peer: SocketAddr, error: NoProxyHeader) {
        let now = Instant::now();
        if self.quiet_until.get().is_none_or(|until| now >= until) {
            self.quiet_until.set(Some(now + LOG_INTERVAL));
            tracing::warn!(listener = %self.address, client_addr = %peer, %error, "connection refused");
        }
    }

    /// How its next connection is to be secured, if it is.
    pub(crate) fn tls(&self) -> Option<Arc<ServerConfig>> {
        let routes = self.routes.borrow();
        routes.tls.as_ref().map(|tls| tls.config.clone())
    }

    /// Whether connections are to end with their next response.
    pub(crate) fn closing(&self) -> bool {
        self.mode.get() != Mode::Open
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
                        tracing::warn!(
                            listener = %self.address,
                            connections = thread.most_connections(),
                            "connection limit reached, further clients wait (max_connections)"
                        );
                    }
                    tokio::time::sleep(FULL_PAUSE).await;
                }
                Batch::Failed(error) => {
                    if Instant::now() >= quiet_until {
                        quiet_until = Instant::now() + LOG_INTERVAL;
                        tracing::error!(listener = %self.address, %error, "cannot accept connections");
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
    /// It has as many connections as it may.
    Full,
    /// No descriptor, no memory, or worse.
    Failed(io::Error),
}

/// The shared socket, registered with the epoll of one thread.
struct Acceptor {
    socket: AsyncFd<SharedDescriptor>,
}

impl Acceptor {
    fn register(socket: Arc<OwnedFd>) -> io::Result<Acceptor> {
        let socket = SharedDescriptor::register(socket)?;
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
            let accepted = match listener.mode.get() {
                Mode::Open if thread.is_full(listener.id) => return Batch::Full,
                Mode::Open => self.socket.try_io(Interest::READABLE, accept),
                // What is in the queue counts, not what the reactor has heard of it, and all of it is taken: the queue
                // is bounded, and the limit leaves room for it.
                Mode::Finishing => accept(self.socket.get_ref()),
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

fn accept(socket: &SharedDescriptor) -> io::Result<(TcpStream, SocketAddr)> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let (socket, peer) = acceptfrom_with(socket, flags)?;
    let peer = peer
        .and_then(|peer| SocketAddr::try_from(peer).ok())
        .ok_or(Errno::CONNABORTED)?;
    let peer = SocketAddr::new(peer.ip().to_canonical(), peer.port());
    Ok((TcpStream::from(socket), peer))
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

#[cfg(test)]
mod tests {
    use tokio::runtime::{Builder, LocalOptions};
    use tokio::sync::mpsc;

    use super::super::threads::{Reporter, Threads};
    use super::*;

    /// The only thread of a worker.
    fn thread(most_connections: u32) -> (Rc<Thread>, Arc<Threads>) {
        let threads = Threads::new(vec![mpsc::unbounded_channel().0], most_connections);
        let threads = Arc::new(threads);
        let reporter = Reporter::new(0, mpsc::unbounded_channel().0);
        let thread = Rc::new(Thread::new(threads.clone(), reporter).unwrap());
        (thread, threads)
    }

    fn listen() -> (Arc<OwnedFd>, Rc<Listener>, SocketAddr) {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        socket.set_nonblocking(true).unwrap();
        let address = socket.local_addr().unwrap();
        let listener = Listener::new(ListenerId(1), address, Routes::default());
        (Arc::new(socket.into()), Rc::new(listener), address)
    }

    fn run_locally(future: impl Future<Output = ()>) {
        let mut builder = Builder::new_current_thread();
        let runtime = builder.enable_all().build_local(LocalOptions::default());
        runtime.unwrap().block_on(future);
    }

    #[test]
    fn race_03_what_the_kernel_has_accepted_is_taken_before_the_socket_is_closed() {
        run_locally(async {
            let (socket, listener, address) = listen();
            let connect = |_| TcpStream::connect(address).unwrap();
            let clients: Vec<TcpStream> = (0..BATCH + 20).map(connect).collect();
            let (thread, threads) = thread(1000);
            listener.finish();
            let watch = Arc::downgrade(&socket);
            listener.accept(thread, socket).await.unwrap();
            assert!(watch.upgrade().is_none());
            assert!(TcpStream::connect(address).is_err());
            assert_eq!(threads.connections() as usize, clients.len());
        });
    }

    #[test]
    fn no_more_connections_are_accepted_than_the_worker_may_have() {
        run_locally(async {
            let (socket, listener, address) = listen();
            let (thread, threads) = thread(2);
            let mut clients: Vec<TcpStream> = (0..3)
                .map(|_| TcpStream::connect(address).unwrap())
                .collect();
            let accepting =
                tokio::task::spawn_local(listener.clone().accept(thread.clone(), socket));
            while threads.connections() < 2 {
                tokio::task::yield_now().await;
            }
            tokio::time::sleep(FULL_PAUSE * 2).await;
            assert_eq!(threads.connections(), 2);
            assert!(thread.is_full(ListenerId(1)));
            // Two end, the third takes their place and stays.
            clients.drain(..2);
            tokio::time::sleep(FULL_PAUSE * 2).await;
            while threads.connections() != 1 {
                tokio::task::yield_now().await;
            }
            listener.finish();
            accepting.await.unwrap().unwrap();
            assert_eq!(threads.connections(), 1);
        });
    }
}
