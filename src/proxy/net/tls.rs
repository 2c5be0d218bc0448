//! TLS on the socket of a client.
//!
//! # Theory of operation
//! A [`Secure`] connection lies between the socket and the plain bytes that the rest of the worker
//! sees. The session is a rustls session. Reading may have to send bytes, and sending may have to
//! read some (a closing alert, a key update), so both directions use one session, which is never
//! borrowed across an await.
//!
//! * Bytes are encrypted first and then written in as few system calls as possible. If the socket
//!   takes only a part, the send stays pending until the last encrypted byte is written, because
//!   nobody else would send the rest.
//! * What the handshake leaves to be sent (the session tickets) is sent along with the first
//!   response.
//! * A connection that ends without the closing alert of TLS is an error, so nobody can make a part
//!   pass for the whole. We send that alert whenever a connection ends regularly.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::future::poll_fn;
use std::io::{self, IoSlice, Read, Write};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use rustls::{ServerConfig, ServerConnection};
use tokio::time::timeout;

use super::buffer::{Buffer, Receive};
use super::socket::Socket;

/// How long a handshake may take.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(10);

/// The name of HTTP/2 in the handshake (ALPN).
const HTTP2: &[u8] = b"h2";

/// How many bytes are encrypted at a time: the contents of a large buffer, and the framing around
/// them.
const MOST_ENCRYPTED: usize = 144 << 10;

/// A client connection that runs on TLS.
pub(crate) struct Secure {
    socket: Socket,
    session: RefCell<ServerConnection>,
    /// True if decrypted bytes may wait in the session.
    decrypted: Cell<bool>,
    /// How many plain bytes of the present send are encrypted; 0 once the socket has taken all of
    /// them.
    sending: Cell<usize>,
    /// True if no closing alert is to be sent: the connection has failed, or the alert was sent.
    aborted: Cell<bool>,
}

impl fmt::Debug for Secure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Secure").field(&self.socket).finish()
    }
}

/// Performs the TLS handshake on the socket of a client. `received` has what was already read from
/// it.
pub(crate) async fn accept(
    socket: Socket,
    received: &mut Buffer,
    config: Arc<ServerConfig>,
) -> io::Result<Secure> {
    let mut session = ServerConnection::new(config).map_err(io::Error::other)?;
    session.set_buffer_limit(Some(MOST_ENCRYPTED));
    let secure = Secure {
        socket,
        session: RefCell::new(session),
        decrypted: Cell::new(false),
        sending: Cell::new(0),
        aborted: Cell::new(false),
    };
    while !received.is_empty() {
        let mut session = secure.session.borrow_mut();
        let count = session.read_tls(&mut received.unread())?;
        received.consume(count);
        secure.decrypt(&mut session)?;
    }
    match timeout(HANDSHAKE_LIMIT, poll_fn(|cx| secure.poll_handshake(cx))).await {
        Ok(result) => result?,
        Err(_) => return Err(io::ErrorKind::TimedOut.into()),
    }
    Ok(secure)
}

impl Secure {
    /// The socket below TLS.
    pub(crate) fn socket(&self) -> &Socket {
        &self.socket
    }

    /// Returns true if the handshake has agreed on HTTP/2.
    pub(crate) fn agreed_on_http2(&self) -> bool {
        self.session.borrow().alpn_protocol() == Some(HTTP2)
    }

    fn poll_handshake(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut session = self.session.borrow_mut();
        while session.is_handshaking() {
            if session.wants_write() {
                ready!(self.poll_flush(&mut session, cx))?;
            } else {
                match ready!(self.poll_more(&mut session, cx))? {
                    0 => return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into())),
                    _ => continue,
                }
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Sends what is left of the handshake, or the answer to a key update: the client may wait for
    /// it before it sends the bytes that we wait for. What the socket does not take now, the next
    /// send sends.
    fn send_rest(&self, cx: &mut Context<'_>) -> io::Result<()> {
        let mut session = self.session.borrow_mut();
        if session.wants_write()
            && self.sending.get() == 0
            && let Poll::Ready(result) = self.poll_flush(&mut session, cx)
        {
            result?;
        }
        Ok(())
    }

    /// Encrypts and sends what it can. After `Pending`, the caller must try again with the same
    /// bytes.
    pub(crate) fn poll_send(
        &self,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut session = self.session.borrow_mut();
        if self.sending.get() == 0 {
            self.sending.set(session.writer().write_vectored(slices)?);
        }
        ready!(self.poll_flush(&mut session, cx))?;
        Poll::Ready(Ok(self.sending.take()))
    }

    /// Reads from the socket, and decrypts.
    fn poll_more(
        &self,
        session: &mut ServerConnection,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        let mut socket = Waiting(&self.socket, cx);
        let count = match session.read_tls(&mut socket) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Poll::Pending,
            result => result?,
        };
        Poll::Ready(self.decrypt(session).map(|()| count))
    }

    /// Decrypts what was read.
    fn decrypt(&self, session: &mut ServerConnection) -> io::Result<()> {
        match session.process_new_packets() {
            Ok(state) => self.decrypted.set(state.plaintext_bytes_to_read() > 0),
            Err(error) => {
                // Sends the alert that tells the client why the connection ends.
                self.send_at_once(session);
                self.aborted.set(true);
                return Err(io::Error::new(io::ErrorKind::InvalidData, error));
            }
        }
        Ok(())
    }

    /// Writes all encrypted bytes to the socket.
    fn poll_flush(
        &self,
        session: &mut ServerConnection,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        while session.wants_write() {
            match session.write_tls(&mut Waiting(&self.socket, cx)) {
                Ok(0) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Poll::Pending,
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Asks the kernel, and returns true if there is nothing to read at this moment, not even the
    /// end of the stream.
    pub(crate) fn is_quiet(&self) -> bool {
        !self.decrypted.get() && self.socket.is_quiet()
    }

    /// Tells the client that nothing more will be sent, if the socket takes the alert at once.
    pub(crate) fn finish(&self) -> io::Result<()> {
        self.say_end();
        self.socket.finish()
    }

    /// Makes closing the connection a reset, so that the client cannot take the end for a regular
    /// one.
    pub(crate) fn reset_on_close(&self) -> io::Result<()> {
        self.aborted.set(true);
        self.socket.reset_on_close()
    }

    /// Sends the closing alert, unless it was sent before or the connection has failed.
    fn say_end(&self) {
        if self.aborted.replace(true) {
            return;
        }
        let mut session = self.session.borrow_mut();
        session.send_close_notify();
        self.send_at_once(&mut session);
    }

    /// Sends what the socket takes at once of the encrypted bytes.
    fn send_at_once(&self, session: &mut ServerConnection) {
        while session.wants_write() {
            if !matches!(session.write_tls(&mut AtOnce(&self.socket)), Ok(1..)) {
                return;
            }
        }
    }
}

impl Receive for Secure {
    fn poll_read_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.decrypted.get() {
            return Poll::Ready(Ok(()));
        }
        self.send_rest(cx)?;
        self.socket.poll_read_ready(cx)
    }

    fn poll_receive(&self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        let mut session = self.session.borrow_mut();
        loop {
            match session.reader().read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => return Poll::Ready(result),
            }
            self.decrypted.set(false);
            match self.poll_more(&mut session, cx) {
                // At the end of the connection, the next turn of the loop tells a regular end from
                // a cut.
                Poll::Ready(Ok(_)) => {}
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => return Poll::Pending,
            }
        }
    }
}

impl Drop for Secure {
    fn drop(&mut self) {
        self.say_end();
    }
}

/// The socket as rustls sees it within a task, which is woken when the socket is ready again.
struct Waiting<'a, 'b, 'c>(&'a Socket, &'b mut Context<'c>);

fn or_would_block<T>(poll: Poll<io::Result<T>>) -> io::Result<T> {
    match poll {
        Poll::Ready(result) => result,
        Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
    }
}

impl Read for Waiting<'_, '_, '_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        or_would_block(self.0.poll_receive(self.1, buffer))
    }
}

impl Write for Waiting<'_, '_, '_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write_vectored(&[IoSlice::new(bytes)])
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        or_would_block(self.0.poll_send(self.1, slices))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The socket as rustls sees it where nobody waits: a socket that is not ready is an error.
struct AtOnce<'a>(&'a Socket);

impl Write for AtOnce<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.try_write(&[IoSlice::new(bytes)])
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
