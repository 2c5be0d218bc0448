//! A connection, to an instance over TCP or a unix socket, or of a client that was accepted.
//!
//! # Theory of operation
//! The reactor has to hear of a socket that is to be waited for, and forget it afterwards: two system calls. A client
//! that asks once and goes has mostly sent its request when it is accepted, so an accepted socket is *fresh* at first:
//! it is read from and written to as if it were ready, and the reactor hears of it when it turns out not to be.

use std::cell::{Cell, OnceCell, RefCell};
use std::io::{self, IoSlice, Read, Write};
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::sockopt::{
    set_socket_keepalive, set_socket_linger, set_tcp_keepcnt, set_tcp_keepidle, set_tcp_keepintvl,
};
use rustix::net::{RecvFlags, Shutdown, recv, shutdown};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::{sleep, timeout};

use super::http2::{H2Stream, H2cStream};
use super::tls::Secure;
use crate::ipc::Address;

/// An instance on this machine that does not accept within this time is as good as gone.
pub(crate) const CONNECT_LIMIT: Duration = Duration::from_secs(1);

/// The wait for room in the queue of a unix socket.
const QUEUE_PAUSE: Duration = Duration::from_millis(5);

/// How long the reset of a fresh connection may go unnoticed.
const BLIND: Duration = Duration::from_secs(1);

/// A silent peer is asked for a sign of life after this time, then at this interval, and so often.
const PEER_IDLE: Duration = Duration::from_secs(60);
const PEER_ASKED: Duration = Duration::from_secs(15);
const PEER_ASKED_MOST: u32 = 4;

/// A connected stream socket.
#[derive(Debug)]
pub(crate) enum Stream {
    Accepted(Accepted),
    /// An accepted one with TLS on it.
    Secure(Box<Secure>),
    /// One stream of a connection with HTTP/2, which speaks HTTP/1.1 here.
    Http2(Box<H2Stream>),
    /// One stream of a connection with HTTP/2 to an instance, the same way.
    H2c(Box<H2cStream>),
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// The socket of a client.
#[derive(Debug)]
pub(crate) struct Accepted {
    /// Until the reactor knows it.
    fresh: RefCell<Option<std::net::TcpStream>>,
    /// Nothing more was there when it was read from last.
    emptied: Cell<bool>,
    registered: OnceCell<TcpStream>,
}

impl Accepted {
    fn new(socket: std::net::TcpStream) -> Accepted {
        Accepted {
            fresh: RefCell::new(Some(socket)),
            emptied: Cell::new(false),
            registered: OnceCell::new(),
        }
    }

    /// The socket as the reactor knows it, which hears of it now at the latest.
    fn register(&self) -> io::Result<&TcpStream> {
        if let Some(socket) = self.fresh.take() {
            let _ = self.registered.set(TcpStream::from_std(socket)?);
        }
        // The reactor did not take it.
        self.registered
            .get()
            .ok_or_else(|| io::ErrorKind::NotConnected.into())
    }

    /// Whether it is to be taken for ready, though nobody has said so.
    fn is_fresh(&self, interest: Interest) -> bool {
        let used_up = interest.is_readable() && self.emptied.get();
        !used_up && self.fresh.borrow().is_some()
    }

    /// It is not, even if it is fresh.
    fn unready(&self, interest: Interest) {
        match interest.is_readable() {
            true => self.emptied.set(true),
            // An error comes up again where it can be told.
            false => drop(self.register()),
        }
    }

    /// Does something with the socket, of which the reactor does not know.
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

impl Stream {
    /// A socket that was just accepted.
    pub(crate) fn accepted(socket: std::net::TcpStream) -> Stream {
        Stream::Accepted(Accepted::new(socket))
    }

    /// The socket of a client without TLS, of which the reactor no longer knows.
    pub(crate) fn into_socket(self) -> Option<std::net::TcpStream> {
        match self {
            Stream::Accepted(stream) => match stream.registered.into_inner() {
                Some(socket) => socket.into_std().ok(),
                None => stream.fresh.into_inner(),
            },
            _ => None,
        }
    }

    /// Whether the peer alone can read what is sent.
    pub(crate) fn is_secure(&self) -> bool {
        match self {
            Stream::Secure(_) => true,
            Stream::Http2(stream) => stream.is_secure(),
            _ => false,
        }
    }

    /// Whether TLS was told to go on with HTTP/2.
    pub(crate) fn agreed_on_http2(&self) -> bool {
        matches!(self, Stream::Secure(secure) if secure.agreed_on_http2())
    }

    /// Whether the one response that a stream is for was sent.
    pub(crate) fn is_answered(&self) -> bool {
        matches!(self, Stream::Http2(stream) if stream.is_answered())
    }

    /// What lies below TLS, if there is any.
    fn socket(&self) -> &Stream {
        match self {
            Stream::Secure(secure) => secure.socket(),
            plain => plain,
        }
    }

    /// Connects within [`CONNECT_LIMIT`]. A TCP connection sends without delay.
    pub(crate) async fn connect(address: &Address) -> io::Result<Stream> {
        match timeout(CONNECT_LIMIT, Stream::open(address)).await {
            Ok(result) => result,
            Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "timed out")),
        }
    }

    async fn open(address: &Address) -> io::Result<Stream> {
        match address {
            Address::Tcp(address) => {
                let stream = TcpStream::connect(address).await?;
                if is_to_itself(&stream, *address)? {
                    return Err(io::ErrorKind::ConnectionRefused.into());
                }
                stream.set_nodelay(true)?;
                Ok(Stream::Tcp(stream))
            }
            Address::Unix(path) => loop {
                // Where TCP lets a connection wait for room in the queue, a unix socket says that there is none.
                match UnixStream::connect(path).await {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        sleep(QUEUE_PAUSE).await;
                    }
                    result => return result.map(Stream::Unix),
                }
            },
        }
    }

    /// Reads what is there. After a short read the socket is taken for empty, which saves the next, futile call: if
    /// more comes, the reactor says so.
    pub(crate) fn poll_receive(
        &self,
        cx: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        match self {
            Stream::Secure(secure) => return secure.poll_receive(cx, buffer),
            Stream::Http2(stream) => return stream.poll_receive(cx, buffer),
            Stream::H2c(stream) => return stream.poll_receive(cx, buffer),
            _ => {}
        }
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

    /// Writes what fits. After a short write the socket is taken for full.
    pub(crate) fn poll_send(
        &self,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self {
            Stream::Secure(secure) => return secure.poll_send(cx, slices),
            Stream::Http2(stream) => return stream.poll_send(cx, slices),
            Stream::H2c(stream) => return stream.poll_send(cx, slices),
            _ => {}
        }
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

    /// Resolves when the peer has reset the connection, not when it has merely sent all it wants to send.
    pub(crate) async fn reset(&self) {
        let this = self.socket();
        if let Stream::Accepted(stream) = this
            && stream.registered.get().is_none()
        {
            // Most answers come sooner, and the reactor need not hear of the connection for this.
            sleep(BLIND).await;
            if this.register().is_err() {
                return;
            }
        }
        let ready = match this {
            Stream::Accepted(stream) => match stream.registered.get() {
                Some(stream) => stream.ready(Interest::ERROR).await,
                None => return,
            },
            Stream::Secure(_) | Stream::H2c(_) => return,
            Stream::Http2(stream) => return stream.reset().await,
            Stream::Tcp(stream) => stream.ready(Interest::ERROR).await,
            Stream::Unix(stream) => stream.ready(Interest::ERROR).await,
        };
        // An error means that the reactor is gone, and so is everything.
        let _ = ready;
    }

    /// Whether there is nothing to read, not even an end, as the kernel knows it at this moment.
    pub(crate) fn is_quiet(&self) -> bool {
        match self {
            Stream::Secure(secure) => return secure.is_quiet(),
            // Its one request is there from the beginning.
            Stream::Http2(_) | Stream::H2c(_) => return true,
            _ => {}
        }
        self.with(|socket| Ok(is_quiet(socket))).unwrap_or(false)
    }

    /// Tells the peer that nothing more will be sent.
    pub(crate) fn finish(&self) -> io::Result<()> {
        match self {
            Stream::Secure(secure) => return secure.finish(),
            Stream::Http2(stream) => return stream.finish(),
            Stream::H2c(_) => return Ok(()),
            _ => {}
        }
        self.with(|socket| Ok(shutdown(socket, Shutdown::Write)?))
    }

    /// Makes the closing of a TCP connection a reset, which the peer cannot take for a regular end.
    pub(crate) fn reset_on_close(&self) -> io::Result<()> {
        match self {
            Stream::Unix(_) => Ok(()),
            Stream::Secure(secure) => secure.reset_on_close(),
            // It is one unless everything was sent.
            Stream::Http2(_) | Stream::H2c(_) => Ok(()),
            _ => self.with(|socket| Ok(set_socket_linger(socket, Some(Duration::ZERO))?)),
        }
    }

    /// Makes the kernel notice a peer that is gone without a word, though nothing is sent.
    pub(crate) fn watch_peer(&self) -> io::Result<()> {
        match self {
            // The kernel itself would have ended the connection.
            Stream::Unix(_) => Ok(()),
            // It is done for the connection.
            Stream::Http2(_) | Stream::H2c(_) => Ok(()),
            _ => self.with(|socket| {
                set_tcp_keepidle(socket, PEER_IDLE)?;
                set_tcp_keepintvl(socket, PEER_ASKED)?;
                set_tcp_keepcnt(socket, PEER_ASKED_MOST)?;
                Ok(set_socket_keepalive(socket, true)?)
            }),
        }
    }

    /// Does something with the socket itself.
    fn with<T>(&self, act: impl FnOnce(BorrowedFd<'_>) -> io::Result<T>) -> io::Result<T> {
        match self {
            Stream::Accepted(stream) => match stream.registered.get() {
                Some(socket) => act(socket.as_fd()),
                None => stream.with_fresh(|socket| act(socket.as_fd())),
            },
            Stream::Secure(secure) => secure.socket().with(act),
            Stream::Http2(_) | Stream::H2c(_) => Err(io::ErrorKind::Unsupported.into()),
            Stream::Tcp(stream) => act(stream.as_fd()),
            Stream::Unix(stream) => act(stream.as_fd()),
        }
    }

    /// It has to be waited for.
    fn register(&self) -> io::Result<()> {
        match self {
            Stream::Accepted(stream) => stream.register().map(drop),
            Stream::Secure(secure) => secure.socket().register(),
            Stream::Http2(_) | Stream::H2c(_) | Stream::Tcp(_) | Stream::Unix(_) => Ok(()),
        }
    }

    fn forget(&self, interest: Interest) {
        let would_block = || io::Result::<()>::Err(io::ErrorKind::WouldBlock.into());
        let _ = match self {
            Stream::Accepted(stream) => match stream.registered.get() {
                Some(stream) => stream.try_io(interest, would_block),
                None => {
                    stream.unready(interest);
                    Ok(())
                }
            },
            Stream::Secure(secure) => {
                secure.socket().forget(interest);
                Ok(())
            }
            Stream::Http2(_) | Stream::H2c(_) => Ok(()),
            Stream::Tcp(stream) => stream.try_io(interest, would_block),
            Stream::Unix(stream) => stream.try_io(interest, would_block),
        };
    }

    /// Reads what is there; `WouldBlock` if nothing is.
    pub(crate) fn try_read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Stream::Accepted(stream) => stream.try_read(buffer),
            // Encrypted bytes are of no use to anybody but the session.
            Stream::Secure(_) | Stream::Http2(_) | Stream::H2c(_) => {
                Err(io::ErrorKind::Unsupported.into())
            }
            Stream::Tcp(stream) => stream.try_read(buffer),
            Stream::Unix(stream) => stream.try_read(buffer),
        }
    }

    /// Writes what fits; `WouldBlock` if nothing does.
    pub(crate) fn try_write(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        match (self, slices) {
            (Stream::Accepted(stream), slices) => stream.try_write(slices),
            (Stream::Secure(_) | Stream::Http2(_) | Stream::H2c(_), _) => {
                Err(io::ErrorKind::Unsupported.into())
            }
            (Stream::Tcp(stream), [slice]) => stream.try_write(slice),
            (Stream::Tcp(stream), slices) => stream.try_write_vectored(slices),
            (Stream::Unix(stream), [slice]) => stream.try_write(slice),
            (Stream::Unix(stream), slices) => stream.try_write_vectored(slices),
        }
    }

    /// Ready when a read may not block.
    pub(crate) fn poll_read_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Stream::Accepted(stream) => match stream.is_fresh(Interest::READABLE) {
                true => Poll::Ready(Ok(())),
                false => stream.register()?.poll_read_ready(cx),
            },
            Stream::Secure(secure) => secure.poll_read_ready(cx),
            Stream::Http2(stream) => stream.poll_read_ready(cx),
            Stream::H2c(stream) => stream.poll_read_ready(cx),
            Stream::Tcp(stream) => stream.poll_read_ready(cx),
            Stream::Unix(stream) => stream.poll_read_ready(cx),
        }
    }

    /// Ready when a write may not block.
    fn poll_write_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Stream::Accepted(stream) => match stream.is_fresh(Interest::WRITABLE) {
                true => Poll::Ready(Ok(())),
                false => stream.register()?.poll_write_ready(cx),
            },
            Stream::Secure(secure) => secure.socket().poll_write_ready(cx),
            Stream::Http2(_) | Stream::H2c(_) => Poll::Ready(Ok(())),
            Stream::Tcp(stream) => stream.poll_write_ready(cx),
            Stream::Unix(stream) => stream.poll_write_ready(cx),
        }
    }
}

/// Whether there is nothing to read, not even an end, as the kernel knows it at this moment.
pub(crate) fn is_quiet(socket: impl AsFd) -> bool {
    let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
    recv(socket, &mut [0; 1], flags) == Err(Errno::WOULDBLOCK)
}

/// Where nobody listens on a port of the ephemeral range, the kernel may pick that very port as the source, and the
/// connection reaches itself: nobody is there, and while it lives nobody can bind.
fn is_to_itself(stream: &TcpStream, address: SocketAddr) -> io::Result<bool> {
    Ok(stream.local_addr()? == address)
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let count = ready!(self.poll_receive(cx, buffer.initialize_unfilled()))?;
        buffer.advance(count);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_send(cx, &[IoSlice::new(bytes)])
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.finish())
    }
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
        let _first = Stream::connect(&address).await.unwrap();
        let full = Stream::connect(&address).await.unwrap_err();
        assert_eq!(full.kind(), io::ErrorKind::TimedOut);
        let make_room = async {
            sleep(Duration::from_millis(50)).await;
            rustix::net::accept(&listener).unwrap()
        };
        let (second, _) = tokio::join!(Stream::connect(&address), make_room);
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
