//! A stream of bytes of HTTP/1.1, which is either a connection of its own or a translated stream of
//! HTTP/2. Code that serves a request sees no difference.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::buffer::{Buffer, Receive};
use super::h2_stream::H2Stream;
use super::h2c_stream::H2cStream;
use super::socket::Socket;
use super::transport::Transport;
use crate::proxy::http::http2::websocket_key::WebSocketKey;

/// Something that HTTP/1.1 is spoken on, with a client or with an instance.
#[derive(Debug)]
pub(crate) enum Stream {
    /// A connection of its own.
    Transport(Transport),
    /// One stream of a client's connection with HTTP/2.
    Http2(Box<H2Stream>),
    /// One stream of a connection to an instance that speaks HTTP/2.
    H2c(Box<H2cStream>),
}

// The layers cost no memory: a stream is as large as the socket at its bottom.
const _: () = assert!(size_of::<Stream>() == size_of::<Socket>());

impl From<Socket> for Stream {
    fn from(socket: Socket) -> Stream {
        Stream::Transport(Transport::Socket(socket))
    }
}

impl From<H2Stream> for Stream {
    fn from(stream: H2Stream) -> Stream {
        Stream::Http2(Box::new(stream))
    }
}

impl From<H2cStream> for Stream {
    fn from(stream: H2cStream) -> Stream {
        Stream::H2c(Box::new(stream))
    }
}

impl Stream {
    /// Returns true if the stream runs on TLS, so only the peer can read what is sent.
    pub(crate) fn is_secure(&self) -> bool {
        match self {
            Stream::Transport(transport) => transport.is_secure(),
            Stream::Http2(stream) => stream.is_secure(),
            Stream::H2c(_) => false,
        }
    }

    /// Returns the socket by reference, if neither TLS nor HTTP/2 runs on it.
    pub(crate) fn as_socket(&self) -> Option<&Socket> {
        match self {
            Stream::Transport(Transport::Socket(socket)) => Some(socket),
            _ => None,
        }
    }

    /// Returns the socket by value, if neither TLS nor HTTP/2 runs on it.
    pub(crate) fn into_socket(self) -> Option<Socket> {
        match self {
            Stream::Transport(Transport::Socket(socket)) => Some(socket),
            _ => None,
        }
    }

    /// Returns true if this is a client's stream of HTTP/2 and its whole response was handed over.
    pub(crate) fn is_answered(&self) -> bool {
        matches!(self, Stream::Http2(stream) if stream.is_answered())
    }

    /// Returns the key for the instance, if this is a client's stream of HTTP/2 that asks for a
    /// WebSocket.
    pub(crate) fn websocket(&self) -> Option<&WebSocketKey> {
        match self {
            Stream::Http2(stream) => stream.websocket(),
            Stream::Transport(_) | Stream::H2c(_) => None,
        }
    }

    /// Tells a client on a stream of HTTP/2 to repeat its request with HTTP/1.1. Returns true if
    /// this is such a stream, which then only has to end.
    pub(crate) fn requires_http1(&self) -> bool {
        match self {
            Stream::Http2(stream) => stream.require_http1(),
            Stream::Transport(_) | Stream::H2c(_) => return false,
        }
        true
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
            Stream::Transport(transport) => transport.poll_send(cx, slices),
            Stream::Http2(stream) => stream.poll_send(cx, slices),
            Stream::H2c(stream) => stream.poll_send(cx, slices),
        }
    }

    /// Reads more of the response to this client from `instance` into `buffer`: not more than the
    /// client has room for, if this is a stream of HTTP/2.
    #[inline]
    pub(crate) fn poll_fill(
        &self,
        buffer: &mut Buffer,
        instance: &Stream,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        match self {
            Stream::Transport(_) | Stream::H2c(_) => buffer.poll_fill(instance, cx),
            Stream::Http2(stream) => stream.poll_fill(buffer, instance, cx),
        }
    }

    /// Returns true if nothing more is read of a response until this client, who has a stream of
    /// HTTP/2, has taken what is on its way.
    pub(crate) fn is_blocked(&self) -> bool {
        matches!(self, Stream::Http2(stream) if stream.is_blocked())
    }

    /// Resolves when the client has reset the connection or its stream. A client that has only
    /// closed its sending side has not.
    pub(crate) async fn reset(&self) {
        match self {
            Stream::Transport(transport) => transport.socket().reset().await,
            Stream::Http2(stream) => stream.reset().await,
            // The other side of this stream is an instance, not a client.
            Stream::H2c(_) => std::future::pending().await,
        }
    }

    /// Resolves when a client with HTTP/1 sends nothing more: it is gone, or has closed its sending
    /// side.
    pub(crate) async fn sending_ends(&self) {
        match self {
            Stream::Transport(transport) => transport.socket().sending_ends().await,
            // A client with HTTP/2 that is gone resets its streams.
            Stream::Http2(_) | Stream::H2c(_) => std::future::pending().await,
        }
    }

    /// Returns true if there is nothing to read at this moment, not even the end of the stream.
    /// Asks the kernel if the stream is a connection of its own.
    pub(crate) fn is_quiet(&self) -> bool {
        match self {
            Stream::Transport(transport) => transport.is_quiet(),
            // A stream of HTTP/2 has one request, which was read before the stream was made.
            Stream::Http2(_) | Stream::H2c(_) => true,
        }
    }

    /// Tells the peer that nothing more will be sent.
    pub(crate) fn finish(&self) -> io::Result<()> {
        match self {
            Stream::Transport(transport) => transport.finish(),
            Stream::Http2(stream) => stream.finish(),
            // The end of the request has already told the instance that nothing more comes.
            Stream::H2c(_) => Ok(()),
        }
    }

    /// Makes closing the stream a reset, so that the peer cannot take the end for a regular one.
    pub(crate) fn reset_on_close(&self) -> io::Result<()> {
        match self {
            Stream::Transport(transport) => transport.reset_on_close(),
            // A stream of HTTP/2 ends with a reset unless everything was sent.
            Stream::Http2(_) | Stream::H2c(_) => Ok(()),
        }
    }

    /// Makes the kernel notice a vanished peer even if nothing is sent.
    pub(crate) fn watch_peer(&self) -> io::Result<()> {
        match self {
            Stream::Transport(transport) => transport.socket().watch_peer(),
            // The connection that the stream belongs to is watched.
            Stream::Http2(_) | Stream::H2c(_) => Ok(()),
        }
    }
}

impl Receive for Stream {
    #[inline]
    fn poll_read_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Stream::Transport(transport) => transport.poll_read_ready(cx),
            Stream::Http2(stream) => stream.poll_read_ready(cx),
            Stream::H2c(stream) => stream.poll_read_ready(cx),
        }
    }

    #[inline]
    fn poll_receive(&self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        match self {
            Stream::Transport(transport) => transport.poll_receive(cx, buffer),
            Stream::Http2(stream) => stream.poll_receive(cx, buffer),
            Stream::H2c(stream) => stream.poll_receive(cx, buffer),
        }
    }
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
