//! A connected socket: of a client that was accepted, or to an instance over TCP or a unix socket.
//!
//! # Theory of operation
//! A socket that a task waits for must be registered with the reactor, and deregistered afterwards,
//! which costs two system calls. Most clients that send a single request have sent it by the time
//! they are accepted. So an accepted socket is *fresh* at first: it is read from and written to as
//! if it were ready, and registered only when it turns out not to be ready.

use std::cell::{Cell, OnceCell, RefCell};
use std::io::{self, IoSlice, Read, Write};
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::sockopt::{
    set_socket_keepalive, set_socket_linger, set_tcp_keepcnt, set_tcp_keepidle, set_tcp_keepintvl,
};
use rustix::net::{RecvFlags, Shutdown, recv, shutdown};
use tokio::io::Interest;
use tokio::net::{TcpStream, UnixStream};
use tokio::time::{sleep, timeout};

use super::buffer::Receive;
use crate::ipc::Address;

/// How long a connection attempt may take. An instance on this machine that takes longer is
/// unreachable.
pub(crate) const CONNECT_LIMIT: Duration = Duration::from_secs(1);

/// The pause before another attempt while the queue of a unix socket is full.
const QUEUE_PAUSE: Duration = Duration::from_millis(5);

/// How long the reset of a fresh connection may stay unnoticed.
const BLIND: Duration = Duration::from_secs(1);

/// The pause between two looks whether a peer sends nothing more that has sent something unread.
const UNREAD_PAUSE: Duration = Duration::from_millis(500);

/// A silent peer is probed by TCP keepalive after this time, then every `PEER_ASKED`, and at most
/// `PEER_ASKED_MOST` times.
const PEER_IDLE: Duration = Duration::from_secs(60);
const PEER_ASKED: Duration = Duration::from_secs(15);
const PEER_ASKED_MOST: u32 = 4;

/// A connected stream socket.
#[derive(Debug)]
pub(crate) enum Socket {
    /// The socket of a client.
    Accepted(Accepted),
    /// A socket to an instance over TCP.
    Tcp(TcpStream, ToInstance),
    /// A unix socket to an instance.
    Unix(UnixStream, ToInstance),
}

thread_local! {
    static TO_INSTANCES: Cell<u32> = const { Cell::new(0) };
}

/// Counts a socket to an instance, from before it is opened until it is closed.
#[derive(Debug)]
pub(crate) struct ToInstance(());

impl ToInstance {
    fn new() -> ToInstance {
        TO_INSTANCES.set(TO_INSTANCES.get() + 1);
        ToInstance(())
    }

    /// Returns how many sockets to instances this thread has open.
    pub(crate) fn count() -> u32 {
        TO_INSTANCES.get()
    }
}

impl Drop for ToInstance {
    fn drop(&mut self) {
        TO_INSTANCES.set(TO_INSTANCES.get() - 1);
    }
}

/// The socket of a client, which is not registered with the reactor at first.
#[derive(Debug)]
pub(crate) struct Accepted {
    /// The socket, until it is registered with the reactor.
    fresh: RefCell<Option<std::net::TcpStream>>,
    /// True if the last read of the fresh socket has left nothing to read.
    emptied: Cell<bool>,
    registered: OnceCell<TcpStream>,
}

impl Socket {
    /// Makes a fresh socket of a connection that was just accepted.
    pub(crate) fn accepted(socket: std::net::TcpStream) -> Socket {
        Socket::Accepted(Accepted::new(socket))
    }

    /// Makes the socket of a connection that a test has opened.
    #[cfg(test)]
    pub(crate) fn opened(stream: UnixStream) -> Socket {
        Socket::Unix(stream, ToInstance::new())
    }

    /// Returns the socket of a client, no longer registered with the reactor; `None` for a socket
    /// to an instance.
    pub(crate) fn into_std(self) -> Option<std::net::TcpStream> {
        match self {
            Socket::Accepted(accepted) => accepted.into_std(),
            Socket::Tcp(..) | Socket::Unix(..) => None,
        }
    }

    /// Connects to an instance within [`CONNECT_LIMIT`]. TCP connections get `TCP_NODELAY`.
    pub(crate) async fn connect(address: &Address) -> io::Result<Socket> {
        match timeout(CONNECT_LIMIT, Socket::open(address)).await {
            Ok(result) => result,
            Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "timed out")),
        }
    }

    async fn open(address: &Address) -> io::Result<Socket> {
        let counted = ToInstance::new();
        match address {
            Address::Tcp(address) => {
                let stream = TcpStream::connect(address).await?;
                if is_to_itself(&stream, *address)? {
                    return Err(io::ErrorKind::ConnectionRefused.into());
                }
                stream.set_nodelay(true)?;
                Ok(Socket::Tcp(stream, counted))
            }
            Address::Unix(path) => loop {
                // On TCP a connection waits for room in the listen queue. A unix socket returns an
                // error if the queue is full, so try again.
                match UnixStream::connect(path).await {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        sleep(QUEUE_PAUSE).await;
                    }
                    result => return result.map(|stream| Socket::Unix(stream, counted)),
                }
            },
        }
    }

    /// Writes as much as the socket takes. After a short write the socket counts as full.
    pub(crate) fn poll_send(
        &self,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.poll_write_ready(cx))?;
            match self.try_write(slices) {
                Ok(count) => {
                    if count < slices.iter().map(|slice| slice.len()).sum() {
                        self.forget(Interest::WRITABLE);
                    }
                    return Poll::Ready(Ok(count));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.register()?,
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }

    /// Reads the bytes that have come; `WouldBlock` if the socket is not known to have any.
    pub(crate) fn try_read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Socket::Accepted(accepted) => accepted.try_read(buffer),
            Socket::Tcp(stream, _) => stream.try_read(buffer),
            Socket::Unix(stream, _) => stream.try_read(buffer),
        }
    }

    /// Writes as much as the socket takes; `WouldBlock` if it takes nothing.
    pub(crate) fn try_write(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        match (self, slices) {
            (Socket::Accepted(accepted), slices) => accepted.try_write(slices),
            (Socket::Tcp(stream, _), [slice]) => stream.try_write(slice),
            (Socket::Tcp(stream, _), slices) => stream.try_write_vectored(slices),
            (Socket::Unix(stream, _), [slice]) => stream.try_write(slice),
            (Socket::Unix(stream, _), slices) => stream.try_write_vectored(slices),
        }
    }

    /// Resolves when the peer has reset the connection. A peer that has only closed its sending
    /// side has not.
    pub(crate) async fn reset(&self) {
        let ready = match self {
            Socket::Accepted(accepted) => {
                if accepted.registered.get().is_none() {
                    // Most responses are sent within this time, and then the connection need not be
                    // registered.
                    sleep(BLIND).await;
                }
                match accepted.register() {
                    Ok(stream) => stream.ready(Interest::ERROR).await,
                    Err(_) => return,
                }
            }
            Socket::Tcp(stream, _) => stream.ready(Interest::ERROR).await,
            Socket::Unix(stream, _) => stream.ready(Interest::ERROR).await,
        };
        // An error means that the runtime is ending, and every connection with it.
        let _ = ready;
    }

    /// Resolves when the peer sends nothing more: it has closed the connection, or its sending side
    /// alone. What it has sent before need not have been read.
    pub(crate) async fn sending_ends(&self) {
        loop {
            let ready = match self {
                Socket::Accepted(accepted) => match accepted.register() {
                    Ok(stream) => stream.ready(Interest::READABLE).await,
                    Err(_) => return,
                },
                Socket::Tcp(stream, _) => stream.ready(Interest::READABLE).await,
                Socket::Unix(stream, _) => stream.ready(Interest::READABLE).await,
            };
            match ready {
                Ok(ready) if !ready.is_read_closed() => {}
                // An error means that the runtime is ending, and every connection with it.
                _ => return,
            }
            // The reactor reports that there is something to read until somebody reads it.
            sleep(UNREAD_PAUSE).await;
        }
    }

    /// Asks the kernel, and returns true if there is nothing to read at this moment, not even the
    /// end of the stream.
    pub(crate) fn is_quiet(&self) -> bool {
        self.with(|socket| Ok(is_quiet(socket))).unwrap_or(false)
    }

    /// Tells the peer that nothing more will be sent.
    pub(crate) fn finish(&self) -> io::Result<()> {
        self.with(|socket| Ok(shutdown(socket, Shutdown::Write)?))
    }

    /// Makes the closing of a TCP connection a reset, which the peer cannot take for a regular end.
    pub(crate) fn reset_on_close(&self) -> io::Result<()> {
        match self {
            Socket::Unix(..) => Ok(()),
            _ => self.with(|socket| Ok(set_socket_linger(socket, Some(Duration::ZERO))?)),
        }
    }

    /// Turns on TCP keepalive, so that the kernel notices a vanished peer even if nothing is sent.
    pub(crate) fn watch_peer(&self) -> io::Result<()> {
        match self {
            // The peer is on this machine: the kernel itself would have ended the connection.
            Socket::Unix(..) => Ok(()),
            _ => self.with(|socket| {
                set_tcp_keepidle(socket, PEER_IDLE)?;
                set_tcp_keepintvl(socket, PEER_ASKED)?;
                set_tcp_keepcnt(socket, PEER_ASKED_MOST)?;
                Ok(set_socket_keepalive(socket, true)?)
            }),
        }
    }

    /// Calls `act` with the descriptor of the socket.
    fn with<T>(&self, act: impl FnOnce(BorrowedFd<'_>) -> io::Result<T>) -> io::Result<T> {
        match self {
            Socket::Accepted(accepted) => match accepted.registered.get() {
                Some(stream) => act(stream.as_fd()),
                None => accepted.with_fresh(|socket| act(socket.as_fd())),
            },
            Socket::Tcp(stream, _) => act(stream.as_fd()),
            Socket::Unix(stream, _) => act(stream.as_fd()),
        }
    }

    /// Registers the socket with the reactor, because a task has to wait for it.
    fn register(&self) -> io::Result<()> {
        match self {
            Socket::Accepted(accepted) => accepted.register().map(drop),
            Socket::Tcp(..) | Socket::Unix(..) => Ok(()),
        }
    }

    /// Treats the socket as one that would block, until the reactor reports that it is ready.
    fn forget(&self, interest: Interest) {
        let would_block = || io::Result::<()>::Err(io::ErrorKind::WouldBlock.into());
        let _ = match self {
            Socket::Accepted(accepted) => match accepted.registered.get() {
                Some(stream) => stream.try_io(interest, would_block),
                None => {
                    accepted.unready(interest);
                    Ok(())
                }
            },
            Socket::Tcp(stream, _) => stream.try_io(interest, would_block),
            Socket::Unix(stream, _) => stream.try_io(interest, would_block),
        };
    }

    /// Ready when a write may not block.
    fn poll_write_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Socket::Accepted(accepted) => match accepted.is_fresh(Interest::WRITABLE) {
                true => Poll::Ready(Ok(())),
                false => accepted.register()?.poll_write_ready(cx),
            },
            Socket::Tcp(stream, _) => stream.poll_write_ready(cx),
            Socket::Unix(stream, _) => stream.poll_write_ready(cx),
        }
    }
}

impl Receive for Socket {
    fn poll_read_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Socket::Accepted(accepted) => match accepted.is_fresh(Interest::READABLE) {
                true => Poll::Ready(Ok(())),
                false => accepted.register()?.poll_read_ready(cx),
            },
            Socket::Tcp(stream, _) => stream.poll_read_ready(cx),
            Socket::Unix(stream, _) => stream.poll_read_ready(cx),
        }
    }

    /// Reads the bytes that have come. After a short read the socket counts as empty, which saves a
    /// read that would find nothing: if more bytes come, the reactor reports it.
    fn poll_receive(&self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.poll_read_ready(cx))?;
            match self.try_read(buffer) {
                Ok(count) => {
                    if 0 < count && count < buffer.len() {
                        self.forget(Interest::READABLE);
                    }
                    return Poll::Ready(Ok(count));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.register()?,
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl Accepted {
    fn new(socket: std::net::TcpStream) -> Accepted {
        Accepted {
            fresh: RefCell::new(Some(socket)),
            emptied: Cell::new(false),
            registered: OnceCell::new(),
        }
    }

    /// Returns the socket registered with the reactor. Registers it if it is still fresh.
    fn register(&self) -> io::Result<&TcpStream> {
        if let Some(socket) = self.fresh.take() {
            let _ = self.registered.set(TcpStream::from_std(socket)?);
        }
        // There is no socket if the reactor failed to register it.
        self.registered
            .get()
            .ok_or_else(|| io::ErrorKind::NotConnected.into())
    }

    fn into_std(self) -> Option<std::net::TcpStream> {
        match self.registered.into_inner() {
            Some(socket) => socket.into_std().ok(),
            None => self.fresh.into_inner(),
        }
    }

    /// Returns true if the socket is fresh and may be tried without waiting for the reactor.
    fn is_fresh(&self, interest: Interest) -> bool {
        let used_up = interest.is_readable() && self.emptied.get();
        !used_up && self.fresh.borrow().is_some()
    }

    /// Notes that a fresh socket has turned out not to be ready.
    fn unready(&self, interest: Interest) {
        match interest.is_readable() {
            true => self.emptied.set(true),
            // If registering fails, the next use of the socket returns an error.
            false => drop(self.register()),
        }
    }

    /// Calls `act` with the fresh socket, which is not registered with the reactor.
    fn with_fresh<T>(
        &self,
        act: impl FnOnce(&std::net::TcpStream) -> io::Result<T>,
    ) -> io::Result<T> {
        match &*self.fresh.borrow() {
            Some(socket) => act(socket),
            None => Err(io::ErrorKind::NotConnected.into()),
        }
    }

    fn try_read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.registered.get() {
            Some(socket) => socket.try_read(buffer),
            None => self.with_fresh(|mut socket| socket.read(buffer)),
        }
    }

    fn try_write(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        match (self.registered.get(), slices) {
            (Some(socket), [slice]) => socket.try_write(slice),
            (Some(socket), slices) => socket.try_write_vectored(slices),
            (None, [slice]) => self.with_fresh(|mut socket| socket.write(slice)),
            (None, slices) => self.with_fresh(|mut socket| socket.write_vectored(slices)),
        }
    }
}

/// Asks the kernel, and returns true if there is nothing to read from the socket at this moment,
/// not even the end of the stream.
pub(crate) fn is_quiet(socket: impl AsFd) -> bool {
    let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
    recv(socket, &mut [0; 1], flags) == Err(Errno::WOULDBLOCK)
}

/// Returns true if opening a connection has failed because this machine or process lacks something,
/// for example file descriptors. That says nothing about the other side.
pub(crate) fn is_own_lack(error: &io::Error) -> bool {
    matches!(
        Errno::from_io_error(error),
        Some(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM | Errno::ADDRNOTAVAIL)
    )
}

/// Returns true if a TCP connection is connected to itself. If nobody listens on a port of the
/// ephemeral range, the kernel may choose that same port as the source of the connection. There is
/// no instance then, and none can bind the port while the connection lives.
fn is_to_itself(stream: &TcpStream, address: SocketAddr) -> io::Result<bool> {
    Ok(stream.local_addr()? == address)
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;

    use rustix::net::{AddressFamily, SocketAddrUnix, SocketType};

    use super::*;

    #[tokio::test]
    async fn a_full_queue_of_a_unix_socket_is_waited_for() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let listener: OwnedFd =
            rustix::net::socket(AddressFamily::UNIX, SocketType::STREAM, None).unwrap();
        rustix::net::bind(&listener, &SocketAddrUnix::new(&path).unwrap()).unwrap();
        rustix::net::listen(&listener, 0).unwrap();
        let address = Address::Unix(path);
        let _first = Socket::connect(&address).await.unwrap();
        let full = Socket::connect(&address).await.unwrap_err();
        assert_eq!(full.kind(), io::ErrorKind::TimedOut);
        let make_room = async {
            sleep(Duration::from_millis(50)).await;
            rustix::net::accept(&listener).unwrap()
        };
        let (second, _) = tokio::join!(Socket::connect(&address), make_room);
        assert!(second.is_ok());
    }

    #[tokio::test]
    async fn a_connection_to_itself_is_noticed() {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind(([127, 0, 0, 1], 0).into()).unwrap();
        let address = socket.local_addr().unwrap();
        let stream = socket.connect(address).await.unwrap();
        assert!(is_to_itself(&stream, address).unwrap());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let stream = TcpStream::connect(address).await.unwrap();
        assert!(!is_to_itself(&stream, address).unwrap());
    }
}
