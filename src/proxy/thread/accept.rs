//! Accepts the connections of a listener.
//!
//! # Theory of operation
//! All threads, and other worker generations, accept from one shared socket, each thread through an
//! epoll of its own. While the listener is open, a thread accepts connections in batches, as long
//! as the listener and the worker may have more. Once the listener is finishing, the thread takes
//! the connections that the kernel has already accepted, and closes its descriptor. The socket is
//! never shut down, because others may share it.
//!
//! While the listener or the worker has as many connections as it may have, idle connections are
//! closed so that new ones can be accepted; if none is idle, new ones wait in the queue of the
//! kernel. The same holds while the process or the system has no more descriptors. While the worker
//! uses too much of its memory, new connections wait, too.
//!
//! The caller decides which thread serves an accepted connection, and which idle connection is
//! closed ([`Placement`]).

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{SocketFlags, acceptfrom_with};
use tokio::io::{Interest, unix::AsyncFd};

use crate::ipc::{ListenerId, Overload};
use crate::log_pace::LogPace;
use crate::proxy::net::descriptor::SharedDescriptor;
use crate::proxy::shared::threads::Threads;
use crate::proxy::view::listener::ListenerView;

/// How many connections are accepted before other tasks of the thread get their turn.
const BATCH: usize = 64;

/// The pause when the process or the system has no more descriptors or memory.
const EXHAUSTED_PAUSE: Duration = Duration::from_millis(100);

/// The pause while the listener or the worker has as many connections as it may have.
const FULL_PAUSE: Duration = Duration::from_millis(20);

/// The pause while the worker uses too much memory: as long as the guard needs for its next look.
const OVERLOAD_PAUSE: Duration = Duration::from_millis(5);

/// What the caller does with connections.
pub(crate) trait Placement {
    /// Gives an accepted connection to a thread, or closes it if it belongs to no listener.
    fn place(&self, stream: TcpStream, peer: SocketAddr, listener: &Rc<ListenerView>);

    /// Returns a listener to which a connection of the passing listener may belong, and which has
    /// as many connections as it may, if there is one.
    fn full_owner(&self, passing: &ListenerView) -> Option<ListenerId>;

    /// Closes the connection that has been idle for longest: of `listener`, or of any listener.
    /// Returns false if there is none on this thread.
    fn make_room(&self, listener: Option<ListenerId>) -> bool;
}

/// Accepts connections of `listener` from `socket` and has them placed, until the listener has
/// finished.
pub(crate) async fn accept(
    listener: Rc<ListenerView>,
    socket: Arc<OwnedFd>,
    threads: Arc<Threads>,
    placement: impl Placement,
) -> io::Result<()> {
    let acceptor = Acceptor {
        socket: SharedDescriptor::register(socket)?,
        listener,
        threads,
        placement,
    };
    let listener = &acceptor.listener;
    let troubles = LogPace::default();
    // True if it was logged that there are too many connections.
    let mut full = false;
    loop {
        let outcome = match listener.closing() {
            true => acceptor.accept_batch(),
            false => tokio::select! {
                () = listener.closes() => continue,
                ready = acceptor.readable() => ready.map(|()| acceptor.accept_batch())?,
            },
        };
        if full && acceptor.full().is_none() {
            full = false;
            tracing::info!(
                listener = %listener.address(),
                connections = acceptor.threads.connections(),
                "further clients are accepted again"
            );
        }
        match outcome {
            Batch::More => tokio::task::yield_now().await,
            Batch::Empty if !listener.closing() => {}
            Batch::Empty => return Ok(()),
            Batch::Full => {
                if troubles.due().is_some() {
                    full = true;
                    tracing::warn!(
                        listener = %listener.address(),
                        connections = acceptor.threads.most_of_listener(),
                        "connection limit reached, further clients wait or replace idle ones (max_connections)"
                    );
                }
                let has_made_room = acceptor.make_room();
                tokio::task::yield_now().await;
                // A connection with HTTP/2 ends when its client has heard of it. Meanwhile, not all
                // others need to be ended for the same new one.
                if !has_made_room || acceptor.full().is_some() {
                    tokio::time::sleep(FULL_PAUSE).await;
                }
            }
            Batch::Overload => tokio::time::sleep(OVERLOAD_PAUSE).await,
            Batch::Failed(error) => {
                if troubles.due().is_some() {
                    tracing::error!(listener = %listener.address(), %error, "cannot accept connections");
                }
                acceptor.placement.make_room(None);
                tokio::time::sleep(EXHAUSTED_PAUSE).await;
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
    /// The listener or the worker has as many connections as it may have.
    Full,
    /// The worker uses too much memory.
    Overload,
    /// Accepting failed, for example because no descriptor or no memory is left.
    Failed(io::Error),
}

/// The shared socket of a listener, registered with the epoll of one thread.
struct Acceptor<P> {
    socket: AsyncFd<SharedDescriptor>,
    listener: Rc<ListenerView>,
    threads: Arc<Threads>,
    placement: P,
}

impl<P: Placement> Acceptor<P> {
    /// Returns the listener for which no further connection may be accepted now, if there is one.
    /// Before a connection of a passing listener is accepted, nobody knows to which listener it
    /// belongs, so each of those has to have room.
    fn full(&self) -> Option<ListenerId> {
        let id = self.listener.id();
        match self.listener.is_passing() {
            true if self.threads.is_full() => Some(id),
            true => self.placement.full_owner(&self.listener),
            false => self.threads.are_full(id).then_some(id),
        }
    }

    /// Closes an idle connection, so that another one may be accepted. Returns false if there is
    /// none.
    fn make_room(&self) -> bool {
        if self.threads.is_full() {
            return self.placement.make_room(None);
        }
        // Some connection may have ended in the meantime.
        let full = self.full();
        full.is_none_or(|listener| self.placement.make_room(Some(listener)))
    }

    async fn readable(&self) -> io::Result<()> {
        // The readiness is cleared by the call of accept that finds the queue empty.
        self.socket
            .readable()
            .await
            .map(|mut ready| ready.retain_ready())
    }

    fn accept_batch(&self) -> Batch {
        for _ in 0..BATCH {
            let accepted = match self.listener.closing() {
                false if self.threads.memory().needs(Overload::Connections) => {
                    return Batch::Overload;
                }
                false if self.full().is_some() => return Batch::Full,
                false => self.socket.try_io(Interest::READABLE, accept_one),
                // A finishing listener takes everything that is in the queue, also what the reactor
                // has not reported. The queue is bounded, and the limit leaves room for its
                // connections.
                true => accept_one(self.socket.get_ref()),
            };
            match accepted {
                Ok((stream, peer)) => self.placement.place(stream, peer, &self.listener),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Batch::Empty,
                Err(error) if is_connection_error(&error) => {}
                Err(error) => return Batch::Failed(error),
            }
        }
        Batch::More
    }
}

fn accept_one(socket: &SharedDescriptor) -> io::Result<(TcpStream, SocketAddr)> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let (socket, peer) = acceptfrom_with(socket, flags)?;
    let peer = peer
        .and_then(|peer| SocketAddr::try_from(peer).ok())
        .ok_or(Errno::CONNABORTED)?;
    let peer = SocketAddr::new(peer.ip().to_canonical(), peer.port());
    Ok((TcpStream::from(socket), peer))
}

/// Returns true for errors of a single connection, after which accept(2) advises to try again.
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
    use std::cell::{Cell, RefCell};
    use std::io::Read;

    use tokio::runtime::{Builder, LocalOptions};
    use tokio::sync::mpsc;
    use tokio::task::JoinHandle;

    use super::*;
    use crate::proxy::shared::budget::Budget;
    use crate::proxy::shared::threads::Open;
    use crate::proxy::view::listener::Routes;

    /// The only thread of a worker, and the connections that it has accepted.
    #[derive(Clone)]
    struct Worker {
        threads: Arc<Threads>,
        open: Rc<RefCell<Vec<(TcpStream, Open)>>>,
        /// True if the first connection is idle.
        idle: Rc<Cell<bool>>,
        /// The listener to which all connections of passing listeners belong.
        owner: ListenerId,
    }

    impl Worker {
        fn new(most_connections: u32) -> Worker {
            let budget = Budget {
                clients: most_connections,
                ..Budget::new(None, 1)
            };
            let threads = Threads::new(vec![mpsc::unbounded_channel().0], budget);
            Worker {
                threads: Arc::new(threads),
                open: Rc::default(),
                idle: Rc::default(),
                owner: ListenerId(2),
            }
        }

        fn accept(
            &self,
            listener: &Rc<ListenerView>,
            socket: Arc<OwnedFd>,
        ) -> impl Future<Output = io::Result<()>> + use<> {
            accept(listener.clone(), socket, self.threads.clone(), self.clone())
        }
    }

    impl Worker {
        /// Begins to accept, and opens one connection more than the two that there may be, which is
        /// not accepted.
        async fn fill(
            &self,
            listener: &Rc<ListenerView>,
            socket: Arc<OwnedFd>,
            address: SocketAddr,
        ) -> ([TcpStream; 3], JoinHandle<io::Result<()>>) {
            let clients = [(); 3].map(|()| TcpStream::connect(address).unwrap());
            let accepting = tokio::task::spawn_local(self.accept(listener, socket));
            while self.threads.connections() < 2 {
                tokio::task::yield_now().await;
            }
            // The third has the time of two tries to be accepted.
            tokio::time::sleep(FULL_PAUSE * 2).await;
            assert_eq!(self.threads.connections(), 2);
            (clients, accepting)
        }
    }

    impl Placement for Worker {
        fn place(&self, stream: TcpStream, _: SocketAddr, listener: &Rc<ListenerView>) {
            let id = match listener.is_passing() {
                true => self.owner,
                false => listener.id(),
            };
            let open = Open::new(self.threads.clone(), 0, id, None);
            self.open.borrow_mut().push((stream, open.unwrap()));
        }

        fn full_owner(&self, _: &ListenerView) -> Option<ListenerId> {
            self.threads.are_full(self.owner).then_some(self.owner)
        }

        fn make_room(&self, listener: Option<ListenerId>) -> bool {
            let full = (!self.threads.is_full()).then_some(self.owner);
            assert_eq!(listener, full, "room is made where it is needed");
            self.idle.replace(false) && {
                self.open.borrow_mut().remove(0);
                true
            }
        }
    }

    fn listen() -> (Arc<OwnedFd>, Rc<ListenerView>, SocketAddr) {
        listen_for(Routes::default())
    }

    fn listen_for(routes: Routes) -> (Arc<OwnedFd>, Rc<ListenerView>, SocketAddr) {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        socket.set_nonblocking(true).unwrap();
        let address = socket.local_addr().unwrap();
        let listener = ListenerView::new(ListenerId(1), address, routes);
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
            let worker = Worker::new(1000);
            listener.finish();
            let watch = Arc::downgrade(&socket);
            worker.accept(&listener, socket).await.unwrap();
            assert!(watch.upgrade().is_none());
            assert!(TcpStream::connect(address).is_err());
            assert_eq!(worker.threads.connections() as usize, clients.len());
        });
    }

    #[test]
    fn no_more_connections_are_accepted_than_the_worker_may_have() {
        run_locally(async {
            let (socket, listener, address) = listen();
            let worker = Worker::new(2);
            let (_clients, accepting) = worker.fill(&listener, socket, address).await;
            assert!(worker.threads.are_full(ListenerId(1)));
            // Two end, the third takes their place and stays.
            worker.open.take();
            while worker.threads.connections() != 1 {
                tokio::task::yield_now().await;
            }
            listener.finish();
            accepting.await.unwrap().unwrap();
            assert_eq!(worker.threads.connections(), 1);
        });
    }

    #[test]
    fn connections_of_a_passing_socket_count_for_the_listener_that_they_belong_to() {
        run_locally(async {
            let (socket, listener, address) = listen_for(Routes {
                passing: true,
                ..Routes::default()
            });
            let worker = Worker::new(100);
            worker.threads.limit_connections(Some(2), 2);
            let (_clients, accepting) = worker.fill(&listener, socket, address).await;
            // An idle one ends for it.
            worker.idle.set(true);
            while worker.idle.get() {
                tokio::task::yield_now().await;
            }
            while worker.threads.connections() < 2 {
                tokio::task::yield_now().await;
            }
            listener.finish();
            accepting.await.unwrap().unwrap();
            assert_eq!(worker.threads.connections(), 2);
        });
    }

    #[test]
    fn an_idle_connection_is_closed_for_a_new_one() {
        run_locally(async {
            let (socket, listener, address) = listen();
            let worker = Worker::new(1);
            let mut first = TcpStream::connect(address).unwrap();
            let accepting = tokio::task::spawn_local(worker.accept(&listener, socket));
            while worker.threads.connections() < 1 {
                tokio::task::yield_now().await;
            }
            worker.idle.set(true);
            let second = TcpStream::connect(address).unwrap();
            while worker.idle.get() || worker.open.borrow().is_empty() {
                tokio::task::yield_now().await;
            }
            assert!(first.read(&mut [0]).is_ok_and(|count| count == 0));
            let peer = worker.open.borrow()[0].0.peer_addr().unwrap();
            assert_eq!(peer, second.local_addr().unwrap());
            listener.finish();
            accepting.await.unwrap().unwrap();
        });
    }
}
