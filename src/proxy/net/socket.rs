//! A connected socket: of a client that was accepted, or to an instance over TCP or a unix socket.
//!
//! # Theory of operation
//! The reactor has to hear of a socket that is to be waited for, and forget it afterwards: two
//! system calls. A client that asks once and goes has mostly sent its request when it is accepted,
//! so an accepted socket is *fresh* at first: it is read from and written to as if it were ready,
//! and the reactor hears of it when it turns out not to be.

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

/// An instance on this machine that does not accept within this time is as good as gone.
pub(crate) const CONNECT_LIMIT: Duration = Duration::from_secs(1);

/// The pause before another attempt while the queue of a unix socket is full.
const QUEUE_PAUSE: Duration = Duration::from_millis(5);

/// How long the reset of a fresh connection may go unnoticed.
const BLIND: Duration = Duration::from_secs(1);

/// A silent peer is asked for a sign of life after this time, then at this interval, and so often.
const PEER_IDLE: Duration = Duration::from_secs(60);
const PEER_ASKED: Duration = Duration::from_secs(15);
const PEER_ASKED_MOST: u32 = 4;

/// A connected stream socket.
#[derive(Debug)]
pub(crate) enum Socket {
    /// The socket of a client.
    Accepted(Accepted),
    /// A socket to an instance over TCP.
    Tcp(TcpStream),
    /// A unix socket to an instance.
    Unix(UnixStream),
}

/// The socket of a client, which the reactor does not know at first.
#[derive(Debug)]
pub(crate) struct Accepted {
    /// The socket, until the reactor knows it.
    fresh: RefCell<Option<std::net::TcpStream>>,
    /// The last read of the fresh socket has left nothing to read.
    emptied: Cell<bool>,
    registered: OnceCell<TcpStream>,
}

impl Socket {
    /// Makes a fresh socket of one that was just accepted.
    pub(crate) fn accepted(socket: std::net::TcpStream) -> Socket {
        Socket::Accepted(Accepted::new(socket))
    }

    /// Returns the socket of a client, of which the reactor no longer knows; `None` for a socket to
    /// an instance.
    pub(crate) fn into_std(self) -> Option<std::net::TcpStream> {
        match self {
            Socket::Accepted(accepted) => accepted.into_std(),
            Socket::Tcp(_) | Socket::Unix(_) => None,
        }
    }

    /// Connects within [`CONNECT_LIMIT`]. A TCP connection sends without delay.
    pub(crate) async fn connect(address: &Address) -> io::Result<Socket> {
        match timeout(CONNECT_LIMIT, Socket::open(address)).await {
            Ok(result) => result,
            Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "timed out")),
        }
    }

    async fn open(address: &Address) -> io::Result<Socket> {
        match address {
            Address::Tcp(address) => {
                let stream = TcpStream::connect(address).await?;
                if is_to_itself(&stream, *address)? {
                    return Err(io::ErrorKind::ConnectionRefused.into());
                }
                stream.set_nodelay(true)?;
                Ok(Socket::Tcp(stream))
            }
            Address::Unix(path) => loop {
                // Where TCP lets a connection wait for room in the queue, a unix socket says that
                // there is none.
                match UnixStream::connect(path).await {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        sleep(QUEUE_PAUSE).await;
                    }
                    result => return result.map(Socket::Unix),
                }
            },
        }
    }

    /// Writes what fits. After a short write the socket is taken for full.
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

    /// Reads what is there; `WouldBlock` if nothing is, as far as the reactor has heard.
    pub(crate) fn try_read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Socket::Accepted(accepted) => accepted.try_read(buffer),
            Socket::Tcp(stream) => stream.try_read(buffer),
            Socket::Unix(stream) => stream.try_read(buffer),
        }
    }

    /// Writes what fits; `WouldBlock` if nothing does.
    pub(crate) fn try_write(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        match (self, slices) {
            (Socket::Accepted(accepted), slices) => accepted.try_write(slices),
            (Socket::Tcp(stream), [slice]) => stream.try_write(slice),
            (Socket::Tcp(stream), slices) => stream.try_write_vectored(slices),
            (Socket::Unix(stream), [slice]) => stream.try_write(slice),
            (Socket::Unix(stream), slices) => stream.try_write_vectored(slices),
        }
    }

    /// Resolves when the peer has reset the connection, not when it has merely sent all it wants to
    /// send.
    pub(crate) async fn reset(&self) {
        let ready = match self {
            Socket::Accepted(accepted) => {
                if accepted.registered.get().is_none() {
                    // Most answers come sooner, and the reactor need not hear of the connection for
                    // this.
                    sleep(BLIND).await;
                }
                match accepted.register() {
                    Ok(stream) => stream.ready(Interest::ERROR).await,
                    Err(_) => return,
                }
            }
            Socket::Tcp(stream) => stream.ready(Interest::ERROR).await,
            Socket::Unix(stream) => stream.ready(Interest::ERROR).await,
        };
        // An error means that the reactor is gone, and so is everything.
        let _ = ready;
    }

    /// Returns true if there is nothing to read, not even an end, as the kernel knows it at this
    /// moment.
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
            Socket::Unix(_) => Ok(()),
            _ => self.with(|socket| Ok(set_socket_linger(socket, Some(Duration::ZERO))?)),
        }
    }

    /// Makes the kernel notice a peer that is gone without a word, though nothing is sent.
    pub(crate) fn watch_peer(&self) -> io::Result<()> {
        match self {
            // The peer is on this machine: the kernel itself would have ended the connection.
            Socket::Unix(_) => Ok(()),
            _ => self.with(|socket| {
                set_tcp_keepidle(socket, PEER_IDLE)?;
                set_tcp_keepintvl(socket, PEER_ASKED)?;
                set_tcp_keepcnt(socket, PEER_ASKED_MOST)?;
                Ok(set_socket_keepalive(socket, true)?)
            }),
        }
    }

    /// Does something with the descriptor.
    fn with<T>(&self, act: impl FnOnce(BorrowedFd<'_>) -> io::Result<T>) -> io::Result<T> {
        match self {
            Socket::Accepted(accepted) => match accepted.registered.get() {
                Some(stream) => act(stream.as_fd()),
                None => accepted.with_fresh(|socket| act(socket.as_fd())),
            },
            Socket::Tcp(stream) => act(stream.as_fd()),
            Socket::Unix(stream) => act(stream.as_fd()),
        }
    }

    /// Makes the reactor know the socket, because it has to be waited for.
    fn register(&self) -> io::Result<()> {
        match self {
            Socket::Accepted(accepted) => accepted.register().map(drop),
            Socket::Tcp(_) | Socket::Unix(_) => Ok(()),
        }
    }

    /// Takes the socket for one that would block, until the reactor says otherwise.
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
            Socket::Tcp(stream) => stream.try_io(interest, would_block),
            Socket::Unix(stream) => stream.try_io(interest, would_block),
        };
    }

    /// Ready when a write may not block.
    fn poll_write_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Socket::Accepted(accepted) => match accepted.is_fresh(Interest::WRITABLE) {
                true => Poll::Ready(Ok(())),
                false => accepted.register()?.poll_write_ready(cx),
            },
            Socket::Tcp(stream) => stream.poll_write_ready(cx),
            Socket::Unix(stream) => stream.poll_write_ready(cx),
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
            Socket::Tcp(stream) => stream.poll_read_ready(cx),
            Socket::Unix(stream) => stream.poll_read_ready(cx),
        }
    }

    /// Reads what is there. After a short read the socket is taken for empty, which saves the next,
    /// futile call: if more comes, the reactor says so.
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

    /// Returns the socket as the reactor knows it, which hears of it now at the latest.
    fn register(&self) -> io::Result<&TcpStream> {
        if let Some(socket) = self.fresh.take() {
            let _ = self.registered.set(TcpStream::from_std(socket)?);
        }
        // There is none if the reactor did not take the socket.
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

    /// Returns true if the socket is to be taken for ready, though nobody has said so.
    fn is_fresh(&self, interest: Interest) -> bool {
        let used_up = interest.is_readable() && self.emptied.get();
        !used_up && self.fresh.borrow().is_some()
    }

    /// Notes that a fresh socket has turned out not to be ready.
    fn unready(&self, interest: Interest) {
        match interest.is_readable() {
            true => self.emptied.set(true),
            // An error comes up again where it can be told.
            false => drop(self.register()),
        }
    }

    /// Does something with the fresh socket, of which the reactor does not know.
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

/// Returns true if there is nothing to read from the socket, not even an end, as the kernel knows
/// it at this moment.
pub(crate) fn is_quiet(socket: impl AsFd) -> bool {
    let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
    recv(socket, &mut [0; 1], flags) == Err(Errno::WOULDBLOCK)
}

/// Returns true if a connection has reached itself. Where nobody listens on a port of the ephemeral
/// range, the kernel may pick that very port as the source: nobody is there, and while the
/// connection lives nobody can bind.
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
