//! What carries a connection: a bare socket, or TLS on the socket of a client.

use std::io::{self, IoSlice};
use std::task::{Context, Poll};

use super::buffer::Receive;
use super::socket::Socket;
use super::tls::Secure;

/// A socket, or TLS on one. Whatever protocol is spoken comes and goes as plain bytes here.
#[derive(Debug)]
pub(crate) enum Transport {
    /// A bare socket.
    Socket(Socket),
    /// The socket of a client with TLS on it.
    Secure(Box<Secure>),
}

impl Transport {
    /// Returns true if the transport is TLS, so only the peer can read what is sent.
    pub(crate) fn is_secure(&self) -> bool {
        matches!(self, Transport::Secure(_))
    }

    /// Returns true if the handshake of TLS has agreed on HTTP/2.
    pub(crate) fn agreed_on_http2(&self) -> bool {
        matches!(self, Transport::Secure(secure) if secure.agreed_on_http2())
    }

    /// The socket at the bottom, with or without TLS on it.
    pub(crate) fn socket(&self) -> &Socket {
        match self {
            Transport::Socket(socket) => socket,
            Transport::Secure(secure) => secure.socket(),
        }
    }

    /// Writes as much as the peer takes. After `Pending`, the caller must try again with the same
    /// bytes.
    #[inline]
    pub(crate) fn poll_send(
        &self,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self {
            Transport::Socket(socket) => socket.poll_send(cx, slices),
            Transport::Secure(secure) => secure.poll_send(cx, slices),
        }
    }

    /// Asks the kernel, and returns true if there is nothing to read at this moment, not even the
    /// end of the stream.
    pub(crate) fn is_quiet(&self) -> bool {
        match self {
            Transport::Socket(socket) => socket.is_quiet(),
            Transport::Secure(secure) => secure.is_quiet(),
        }
    }

    /// Tells the peer that nothing more will be sent.
    pub(crate) fn finish(&self) -> io::Result<()> {
        match self {
            Transport::Socket(socket) => socket.finish(),
            Transport::Secure(secure) => secure.finish(),
        }
    }

    /// Makes the closing of the connection a reset, which the peer cannot take for a regular end.
    pub(crate) fn reset_on_close(&self) -> io::Result<()> {
        match self {
            Transport::Socket(socket) => socket.reset_on_close(),
            Transport::Secure(secure) => secure.reset_on_close(),
        }
    }
}

impl Receive for Transport {
    #[inline]
    fn poll_read_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Transport::Socket(socket) => socket.poll_read_ready(cx),
            Transport::Secure(secure) => secure.poll_read_ready(cx),
        }
    }

    #[inline]
    fn poll_receive(&self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        match self {
            Transport::Socket(socket) => socket.poll_receive(cx, buffer),
            Transport::Secure(secure) => secure.poll_receive(cx, buffer),
        }
    }
}
