//! HTTP/2 with clients: serves a connection, and each of its streams as a request.
//!
//! # Theory of operation
//! The h2 crate, which hyper uses, too, implements the protocol itself. Each stream becomes a
//! [`Client`] of its own, whose connection is the stream translated to HTTP/1.1 (see [`H2Stream`]).
//! From there on a request is like any other: routing, retries, limits, tunnels and rollouts know
//! nothing of HTTP/2, and whatever a client puts into its fields is checked by the same strict
//! parser.
//!
//! The task of the connection polls the h2 crate, which writes into a [`Cork`]. At the end of each
//! poll, everything that the streams have written meanwhile is sent by one system call.
//!
//! How a connection ends: when the worker drains, when the listener was removed and when the
//! connection is idle, the client gets a GOAWAY that names no last stream. When the client is known
//! to have this one, it gets a second GOAWAY, which names the last stream (RFC 9113, section 6.8).
//! So a request that is on its way meanwhile is served, not lost.
//!
//! What limits the load that a client can cause: the number of streams at a time
//! ([`MOST_STREAMS`]); the size of a head, over all its CONTINUATION frames
//! ([`LONGEST_REQUEST_HEAD`]); bounds for the heads of all streams and for their unsent responses
//! ([`held`](crate::proxy::net::held)), where the h2 crate keeps no heads, because it gets its
//! bytes in turns ([`Cork`]) in which all streams are taken; the windows, for unread bodies;
//! [`MOST_UNSENT`] for the unsent response of each stream; [`MOST_WASTED`] for requests that are
//! made only to be reset. The h2 crate answers control frames one at a time.

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use h2::server::{Connection, SendResponse};
use h2::{Reason, RecvStream};
use http::Request;
use http::request::Parts;
use tokio::sync::oneshot;

use super::requests::{let_read, serve_request};
use crate::proxy::exchange::client::{CLIENT_IDLE_LIMIT, Client, Next, Peer, REST_OF_IDLE_LIMIT};
use crate::proxy::http::http1::LONGEST_REQUEST_HEAD;
use crate::proxy::http::http2::incoming::STREAM_WINDOW;
use crate::proxy::net::cork::{Cork, Corked};
use crate::proxy::net::h2_stream::H2Stream;
use crate::proxy::net::held::UnsentData;
use crate::proxy::net::linger::LINGER_LIMIT;
use crate::proxy::net::stream::Stream;
use crate::proxy::net::timer::Timer;

/// The preface: the bytes with which every connection with HTTP/2 begins (RFC 9113, section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// How long the client may take for its preface.
const PREFACE_LIMIT: Duration = Duration::from_secs(15);

/// How many requests one connection may have at a time.
const MOST_STREAMS: u32 = 128;

/// How many unread bytes all request bodies of one connection may have.
const CONNECTION_WINDOW: u32 = 1 << 20;

/// How many bytes a field counts beside its name and value (RFC 9113, section 10.5.1).
const PER_FIELD: usize = 32;

/// How many bytes of one response are held for a client that does not read.
const MOST_UNSENT: usize = 64 << 10;

/// How many more requests a client may give up than it lets finish.
const MOST_WASTED: u32 = 100;

/// Returns true if the client speaks HTTP/2: it was agreed on in the TLS handshake, or the first
/// bytes are those of the preface.
pub(crate) fn is_begun(client: &Client) -> bool {
    let agreed = match &client.stream {
        Stream::Transport(transport) => transport.agreed_on_http2(),
        Stream::Http2(_) | Stream::H2c(_) => false,
    };
    agreed || is_preface(client.buffer.unread())
}

/// Returns true if more bytes are needed to see whether these begin the preface: a method of HTTP/1
/// may begin with `PR`, too.
pub(crate) fn may_begin(received: &[u8]) -> bool {
    (1..=2).contains(&received.len()) && PREFACE.starts_with(received)
}

fn is_preface(received: &[u8]) -> bool {
    let length = received.len().min(PREFACE.len());
    length > 2 && received[..length] == PREFACE[..length]
}

/// Serves a connection with HTTP/2 to its end.
pub(crate) async fn serve(client: Client) {
    let Client {
        stream,
        buffer,
        mut timer,
        peer,
        ..
    } = client;
    let Stream::Transport(transport) = stream else {
        return;
    };
    // Streams may be silent without limit, so the kernel has to notice a vanished client.
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
        idle: Idle::No,
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

/// Counts how the requests of a connection have ended.
#[derive(Default)]
struct Record {
    answered: Cell<u32>,
    wasted: Cell<u32>,
}

/// A connection whose preface was received.
struct Serving {
    connection: Connection<Cork, UnsentData>,
    corked: Rc<Corked>,
    peer: Rc<Peer>,
    secure: bool,
    timer: Timer,
    /// True if the client was told to send no more requests.
    ending: bool,
    idle: Idle,
    record: Rc<Record>,
}

/// How long a connection has had no request.
enum Idle {
    /// It has requests, or the client has not taken all that was sent.
    No,
    /// Not for long.
    Short,
    /// So long that it ends early if there are too many connections.
    Long { ends: oneshot::Receiver<()> },
}

impl Serving {
    /// Resolves when the connection has ended: `Ok` if everything that had to be sent was sent.
    fn poll(
        &mut self,
        drained: Pin<&mut impl Future<Output = ()>>,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.ending && (self.peer.closing() || drained.poll(cx).is_ready()) {
            // What is left of the time of an idle connection may be less than a request needs that
            // is on its way.
            self.end(CLIENT_IDLE_LIMIT);
        }
        self.check_waste();
        self.corked.begin_turn(cx);
        loop {
            match self.connection.poll_accept(cx) {
                Poll::Ready(Some(Ok((request, respond)))) => self.serve(request, respond),
                Poll::Ready(Some(Err(error))) => {
                    tracing::debug!(client_addr = %self.peer.address, %error, "HTTP/2 connection ended");
                    // The h2 crate may have written a GOAWAY that tells the client the reason.
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
        if !blocked {
            self.peer.held.is_flushed();
        }
        let is_idle = !blocked && !self.connection.has_streams();
        if is_idle {
            self.corked.release();
            self.rest(cx);
        } else if self.corked.has_moved() || !blocked || !matches!(self.idle, Idle::No) {
            // Streams may be silent without limit, but the client must take what is sent on them,
            // also after their end.
            self.timer.set(CLIENT_IDLE_LIMIT);
            self.idle = Idle::No;
        }
        if self.timer.poll_expired(cx).is_ready() {
            if self.ending {
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
            self.end(LINGER_LIMIT);
            cx.waker().wake_by_ref();
        }
        Poll::Pending
    }

    /// Notes how long the connection has had no request, and ends it if there are too many
    /// connections.
    fn rest(&mut self, cx: &mut Context<'_>) {
        if self.ending {
            return;
        }
        match &mut self.idle {
            Idle::No => {
                self.idle = Idle::Short;
                self.timer.set(self.peer.view.idle_after());
            }
            Idle::Short if self.timer.poll_expired(cx).is_ready() => {
                let idle_tasks = self.peer.view.idle_tasks();
                let ends = idle_tasks.register(self.peer.listener.id());
                self.idle = Idle::Long { ends };
                self.timer.set(REST_OF_IDLE_LIMIT);
                self.rest(cx);
            }
            Idle::Short => {}
            Idle::Long { ends } => {
                if let Poll::Ready(Ok(())) = Pin::new(ends).poll(cx) {
                    self.end(LINGER_LIMIT);
                    cx.waker().wake_by_ref();
                }
            }
        }
    }

    /// Tells the client to send no more requests. A client that does nothing after that is cut off
    /// after this time.
    fn end(&mut self, limit: Duration) {
        self.ending = true;
        self.connection.graceful_shutdown();
        self.timer.set(limit);
    }

    /// Ends the connection of a client that makes requests only to reset them (CVE-2023-44487).
    fn check_waste(&mut self) {
        let Record { answered, wasted } = &*self.record;
        if wasted.get() > answered.get().saturating_add(MOST_WASTED) {
            wasted.set(0);
            self.connection.abrupt_shutdown(Reason::ENHANCE_YOUR_CALM);
        }
    }

    fn serve(&self, request: Request<RecvStream>, mut respond: SendResponse<UnsentData>) {
        let (head, body) = request.into_parts();
        let view = &self.peer.view;
        let size = decoded_size(&head);
        self.corked.note_decoded(size);
        let Some(held) = self.peer.held.admit(size, view.refuses_streams()) else {
            view.room().counters().refuse_stream();
            // The client may repeat a stream that was refused so.
            return respond.send_reset(Reason::REFUSED_STREAM);
        };
        let request = Request::from_parts(head, body);
        let stream = H2Stream::new(request, respond, self.secure, self.peer.held.clone());
        let mut client = Client::new(stream.into(), self.peer.clone());
        let record = self.record.clone();
        tokio::task::spawn_local(async move {
            // The future is boxed, because a task is moved several times before it runs.
            let next = Box::pin(serve_request(&mut client, Some(held))).await;
            let count = match client.stream.is_answered() {
                true => &record.answered,
                false => &record.wasted,
            };
            count.set(count.get().saturating_add(1));
            if next == Next::Linger {
                Box::pin(let_read(&mut client)).await;
            }
        });
    }
}

/// Returns the size of a head as RFC 9113 counts it, whatever it was compressed to.
fn decoded_size(head: &Parts) -> usize {
    let fields = head.headers.iter();
    let fields = fields.map(|(name, value)| name.as_str().len() + value.len() + PER_FIELD);
    let authority = head.uri.authority().map_or(0, |name| name.as_str().len());
    let target = head
        .uri
        .path_and_query()
        .map_or(0, |path| path.as_str().len());
    // The pseudo-fields, whose names are a few bytes.
    4 * PER_FIELD + authority + target + fields.sum::<usize>()
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
