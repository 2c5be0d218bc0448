//! HTTP/2 facing the client: the connection, and its streams as requests.
//!
//! # Theory of operation
//! The protocol itself is the h2 crate's, which hyper uses, too. Each stream becomes a [`Client`]
//! of its own whose connection is the stream, translated to HTTP/1.1 (see [`H2Stream`]): from there
//! on a request is like any other, so routing, retries, limits, tunnels and rollouts know nothing
//! of HTTP/2, and whatever a client puts into its fields meets the same strict parser.
//!
//! The task of the connection polls the h2 crate, which writes into a [`Cork`]; what all streams
//! have written meanwhile goes out in one system call at the end of each poll.
//!
//! How a connection ends: a draining worker, a listener that was removed and an idle connection say
//! so with a GOAWAY that names no stream, and a second one, when the client is known to have got
//! the first, that names the last (RFC 9113, section 6.8). So a request on its way is served, not
//! lost.
//!
//! What a client can do to us, and what bounds it: streams at a time ([`MOST_STREAMS`]); the size
//! of a head, over all its CONTINUATION frames ([`LONGEST_REQUEST_HEAD`]); unread bodies (the
//! windows); unsent responses ([`MOST_UNSENT`] a stream); requests that are made to be reset
//! ([`MOST_WASTED`]); control frames, which the h2 crate answers one at a time.

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use h2::server::{Connection, SendResponse};
use h2::{Reason, RecvStream};
use http::Request;

use super::requests::serve_request;
use crate::proxy::exchange::client::{CLIENT_IDLE_LIMIT, Client, Peer};
use crate::proxy::http::http1::LONGEST_REQUEST_HEAD;
use crate::proxy::http::http2::incoming::STREAM_WINDOW;
use crate::proxy::net::cork::{Cork, Corked};
use crate::proxy::net::h2_stream::H2Stream;
use crate::proxy::net::linger::LINGER_LIMIT;
use crate::proxy::net::stream::Stream;
use crate::proxy::net::timer::Timer;

/// The bytes that every client that speaks HTTP/2 begins with (RFC 9113, section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// How long the client may take for its preface.
const PREFACE_LIMIT: Duration = Duration::from_secs(15);

/// Requests that one connection may have at a time.
const MOST_STREAMS: u32 = 128;

/// Unread bytes of all bodies of a connection.
const CONNECTION_WINDOW: u32 = 1 << 20;

/// Bytes of a response that lie between its instance and a client that does not read.
const MOST_UNSENT: usize = 64 << 10;

/// Requests that a client may give up beyond those that it has let be answered.
const MOST_WASTED: u32 = 100;

/// Returns true if the connection is one with HTTP/2: by the handshake of TLS, or by its first
/// bytes.
pub(crate) fn is_begun(client: &Client) -> bool {
    let agreed = match &client.stream {
        Stream::Transport(transport) => transport.agreed_on_http2(),
        Stream::Http2(_) | Stream::H2c(_) => false,
    };
    agreed || is_preface(client.buffer.unread())
}

fn is_preface(received: &[u8]) -> bool {
    let length = received.len().min(PREFACE.len());
    // A method of HTTP/1 may begin with `PR`.
    length > 2 && received[..length] == PREFACE[..length]
}

/// Serves a connection with HTTP/2 to its end.
pub(crate) async fn serve(client: Client) {
    let Client {
        stream,
        buffer,
        mut timer,
        peer,
    } = client;
    let Stream::Transport(transport) = stream else {
        return;
    };
    // A client that is gone without a word is found by the kernel, for streams may be silent for as
    // long as they like.
    if transport.socket().watch_peer().is_err() {
        return;
    }
    let secure = transport.is_secure();
    let corked = Rc::new(Corked::new(transport, buffer));
    timer.set(PREFACE_LIMIT);
    let handshake = builder().handshake(Cork(corked.clone()));
    let connection = match timer.limit(handshake).await {
        Some(Ok(connection)) => connection,
        Some(Err(_)) | None => return,
    };
    timer.set(CLIENT_IDLE_LIMIT);
    let mut serving = Serving {
        connection,
        corked,
        peer,
        secure,
        timer,
        ending: false,
        record: Rc::default(),
    };
    let drain = serving.peer.drain.clone();
    let mut drained = pin!(drain.begins());
    if poll_fn(|cx| serving.poll(drained.as_mut(), cx))
        .await
        .is_ok()
    {
        let Serving { corked, timer, .. } = serving;
        corked.linger(timer).await;
    }
}

fn builder() -> h2::server::Builder {
    let mut builder = h2::server::Builder::new();
    builder
        .max_concurrent_streams(MOST_STREAMS)
        .max_header_list_size(LONGEST_REQUEST_HEAD as u32)
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buffer_size(MOST_UNSENT)
        .enable_connect_protocol();
    builder
}

/// What became of the requests of a connection.
#[derive(Default)]
struct Record {
    answered: Cell<u32>,
    wasted: Cell<u32>,
}

/// A connection past its preface.
struct Serving {
    connection: Connection<Cork, Bytes>,
    corked: Rc<Corked>,
    peer: Rc<Peer>,
    secure: bool,
    timer: Timer,
    /// The client was told that no further requests are wanted.
    ending: bool,
    record: Rc<Record>,
}

impl Serving {
    /// Resolves when the connection has ended: `Ok` if all that was to be sent is sent.
    fn poll(
        &mut self,
        drained: Pin<&mut impl Future<Output = ()>>,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.ending && (self.peer.closing() || drained.poll(cx).is_ready()) {
            self.end();
        }
        self.check_waste();
        loop {
            match self.connection.poll_accept(cx) {
                Poll::Ready(Some(Ok((request, respond)))) => self.serve(request, respond),
                Poll::Ready(Some(Err(error))) => {
                    tracing::debug!(client_addr = %self.peer.address, %error, "HTTP/2 connection ended");
                    // The h2 crate may have a GOAWAY to send that says why.
                    ready!(self.corked.poll_push(cx))?;
                    return Poll::Ready(Ok(()));
                }
                Poll::Ready(None) => {
                    ready!(self.corked.poll_push(cx))?;
                    return Poll::Ready(Ok(()));
                }
                Poll::Pending => break,
            }
        }
        let blocked = self.corked.poll_push(cx)?.is_pending();
        if !self.connection.has_streams() {
            self.corked.release();
        } else if self.corked.has_moved() || !blocked {
            // Streams may be silent for as long as they like, but what they have to say must be
            // taken.
            self.timer.set(CLIENT_IDLE_LIMIT);
        }
        if self.timer.poll_expired(cx).is_ready() {
            if self.ending {
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
            self.end();
            self.timer.set(LINGER_LIMIT);
            cx.waker().wake_by_ref();
        }
        Poll::Pending
    }

    fn end(&mut self) {
        self.ending = true;
        self.connection.graceful_shutdown();
    }

    /// Ends the connection of a client that makes requests in order to give them up
    /// (CVE-2023-44487).
    fn check_waste(&mut self) {
        let Record { answered, wasted } = &*self.record;
        if wasted.get() > answered.get().saturating_add(MOST_WASTED) {
            wasted.set(0);
            self.connection.abrupt_shutdown(Reason::ENHANCE_YOUR_CALM);
        }
    }

    fn serve(&self, request: Request<RecvStream>, respond: SendResponse<Bytes>) {
        let stream = H2Stream::new(request, respond, self.secure);
        let mut client = Client::new(stream.into(), self.peer.clone());
        let record = self.record.clone();
        tokio::task::spawn_local(async move {
            // The future has memory of its own, because a task is moved several times until it
            // runs.
            Box::pin(serve_request(&mut client)).await;
            let count = match client.stream.is_answered() {
                true => &record.answered,
                false => &record.wasted,
            };
            count.set(count.get().saturating_add(1));
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_preface_is_known_by_its_first_bytes() {
        assert!(is_preface(PREFACE));
        assert!(is_preface(b"PRI"));
        assert!(is_preface(&[PREFACE, b"\0\0\0\x04"].concat()));
        for other in ["", "PR", "PRINT / HTTP/1.1", "GET / HTTP/1.1"] {
            assert!(!is_preface(other.as_bytes()), "{other}");
        }
    }
}
