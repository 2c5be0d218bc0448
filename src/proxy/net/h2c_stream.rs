//! HTTP/2 towards an instance (`upstream_protocol: h2c`): a connection that many requests share,
//! and one request on it, which the rest of the worker sees as a connection of HTTP/1.1 of its own.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::future::{Future, poll_fn};
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use h2::client::{ResponseFuture, SendRequest};
use h2::{Reason, SendStream};
use tokio::time::{Instant, timeout};

use super::buffer::{Buffer, Receive};
use super::cork::{Cork, Corked};
use super::socket::{CONNECT_LIMIT, Socket};
use super::transport::Transport;
use crate::proxy::http::http1::{Decoder, RequestHead, slots};
use crate::proxy::http::http2::incoming::{Incoming, STREAM_WINDOW};
use crate::proxy::http::http2::{head, outgoing};

/// How many requests share one connection at a time, if the instance allows that many.
const MOST_REQUESTS: usize = 100;

/// How many unread bytes all responses on one connection may have. A stream that nobody reads must
/// not stop the others, so there is room for the windows of all streams.
const CONNECTION_WINDOW: u32 = STREAM_WINDOW * MOST_REQUESTS as u32;

/// A connection to an instance that speaks HTTP/2.
pub(crate) struct InstanceConnection {
    sender: SendRequest<Bytes>,
    state: Rc<State>,
}

/// What the task of a connection, the requests on it and its owner share.
struct State {
    /// True if the connection takes no more requests.
    over: Cell<bool>,
    /// How many requests on the connection have not ended yet.
    requests: Cell<usize>,
    /// When the last request ended.
    idle_since: Cell<Instant>,
}

impl InstanceConnection {
    /// Begins HTTP/2 on a socket to an instance. A task drives the connection until nobody needs it
    /// any more.
    pub(crate) async fn open(socket: Socket) -> io::Result<InstanceConnection> {
        let corked = Rc::new(Corked::new(Transport::Socket(socket), Buffer::default()));
        let mut builder = h2::client::Builder::new();
        builder
            .enable_push(false)
            .initial_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW);
        let handshake = builder.handshake(Cork(corked.clone()));
        let (sender, mut connection) = timeout(CONNECT_LIMIT, handshake)
            .await?
            .map_err(io::Error::other)?;
        let state = Rc::new(State {
            over: Cell::new(false),
            requests: Cell::new(0),
            idle_since: Cell::new(Instant::now()),
        });
        let known = state.clone();
        tokio::task::spawn_local(async move {
            let end = poll_fn(|cx| {
                corked.begin_turn(cx);
                let end = Pin::new(&mut connection).poll(cx);
                let pushed = corked.poll_push(cx);
                match (end, pushed) {
                    (Poll::Ready(end), _) => Poll::Ready(end.map_err(io::Error::other)),
                    (_, Poll::Ready(Err(error))) => Poll::Ready(Err(error)),
                    _ => Poll::Pending,
                }
            });
            if let Err(error) = end.await {
                tracing::debug!(%error, "HTTP/2 connection to an instance ended");
            }
            known.over.set(true);
        });
        Ok(InstanceConnection { sender, state })
    }

    /// Returns true if another request may be sent now.
    pub(crate) fn has_room(&self) -> bool {
        let most = self.sender.current_max_send_streams().min(MOST_REQUESTS);
        !self.state.over.get() && self.state.requests.get() < most
    }

    /// Returns true unless the connection has ended, or has been without a request for as long as
    /// `limit`.
    pub(crate) fn is_wanted(&self, now: Instant, limit: Duration) -> bool {
        let State {
            over,
            requests,
            idle_since,
        } = &*self.state;
        !over.get() && (requests.get() > 0 || now < idle_since.get() + limit)
    }

    /// Returns true if no request is on the connection.
    pub(crate) fn is_idle(&self) -> bool {
        self.state.requests.get() == 0
    }

    /// Begins another request on this connection. Nothing is sent yet.
    pub(crate) fn request(&self) -> H2cStream {
        self.state.requests.set(self.state.requests.get() + 1);
        H2cStream {
            outgoing: RefCell::new(Outgoing::Head(self.sender.clone())),
            incoming: RefCell::new(Response::None),
            state: self.state.clone(),
        }
    }
}

/// One request to an instance that speaks HTTP/2, and the response to it.
pub(crate) struct H2cStream {
    outgoing: RefCell<Outgoing>,
    incoming: RefCell<Response>,
    state: Rc<State>,
}

/// How much of the request was sent.
enum Outgoing {
    /// The head of the request was not sent yet.
    Head(SendRequest<Bytes>),
    Body {
        send: SendStream<Bytes>,
        body: Decoder,
    },
    Done,
}

/// How much of the response has come.
enum Response {
    /// No request was sent yet.
    None,
    Awaited {
        future: ResponseFuture,
        to_head: bool,
        /// What nobody has read yet of interim responses, in HTTP/1.1.
        interim: Bytes,
    },
    Begun(Box<Incoming>),
}

impl fmt::Debug for H2cStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("H2cStream")
    }
}

impl H2cStream {
    /// Sends as much of a request, given in HTTP/1.1, as the instance has room for.
    pub(crate) fn poll_send(
        &self,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        outgoing::poll_send(slices, |bytes| self.poll_take(cx, bytes))
    }

    fn poll_take(&self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let mut outgoing = self.outgoing.borrow_mut();
        match &mut *outgoing {
            Outgoing::Head(sender) => {
                if let Err(error) = ready!(sender.poll_ready(cx)) {
                    self.state.over.set(true);
                    return Poll::Ready(Err(io::Error::other(error)));
                }
                let (count, next) = self.take_head(sender, bytes)?;
                *outgoing = next;
                Poll::Ready(Ok(count))
            }
            Outgoing::Body { send, body } => {
                let count = ready!(outgoing::poll_take(send, |data| data, body, cx, bytes))?;
                if body.is_end() {
                    *outgoing = Outgoing::Done;
                }
                Poll::Ready(Ok(count))
            }
            Outgoing::Done => Poll::Ready(Err(io::ErrorKind::InvalidData.into())),
        }
    }

    /// Takes a whole head from the beginning of `bytes` and sends it. Returns its length.
    fn take_head(
        &self,
        sender: &mut SendRequest<Bytes>,
        bytes: &[u8],
    ) -> io::Result<(usize, Outgoing)> {
        let mut slots = slots();
        let head = RequestHead::parse(bytes, &mut slots);
        let head = head.ok().flatten().ok_or(io::ErrorKind::InvalidInput)?;
        let request = head::instance_request(&head).ok_or(io::ErrorKind::InvalidInput)?;
        let body = Decoder::new(head.framing);
        let sent = sender.send_request(request, body.is_end());
        let (future, send) = sent.map_err(|error| {
            self.state.over.set(true);
            io::Error::other(error)
        })?;
        *self.incoming.borrow_mut() = Response::Awaited {
            future,
            to_head: head.method == "HEAD",
            interim: Bytes::new(),
        };
        let next = match body.is_end() {
            true => Outgoing::Done,
            false => Outgoing::Body { send, body },
        };
        Ok((head.length, next))
    }
}

impl Receive for H2cStream {
    fn poll_read_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut incoming = self.incoming.borrow_mut();
        ready!(incoming.poll_head(cx))?;
        match &mut *incoming {
            Response::Begun(response) => response.poll_read_ready(cx),
            Response::None | Response::Awaited { .. } => Poll::Ready(Ok(())),
        }
    }

    fn poll_receive(&self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        let mut incoming = self.incoming.borrow_mut();
        ready!(incoming.poll_head(cx))?;
        match &mut *incoming {
            Response::Begun(response) => response.poll_receive(cx, buffer),
            Response::Awaited { interim, .. } => {
                let count = interim.len().min(buffer.len());
                buffer[..count].copy_from_slice(&interim.split_to(count));
                Poll::Ready(Ok(count))
            }
            Response::None => Poll::Ready(Ok(0)),
        }
    }
}

impl Response {
    /// Waits for the head of the response, or of an interim one before it, if a request was sent.
    fn poll_head(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Response::Awaited {
            future,
            to_head,
            interim,
        } = self
        else {
            return Poll::Ready(Ok(()));
        };
        if !interim.is_empty() {
            return Poll::Ready(Ok(()));
        }
        if let Some(head) = ready!(future.poll_informational(cx)) {
            let (parts, ()) = head.map_err(in_our_terms)?.into_parts();
            let mut text = Vec::with_capacity(128);
            head::write_interim(&parts, &mut text);
            *interim = text.into();
            return Poll::Ready(Ok(()));
        }
        let response = ready!(Pin::new(future).poll(cx)).map_err(in_our_terms)?;
        let (parts, body) = response.into_parts();
        let mut text = Vec::with_capacity(512);
        let encoding = head::write_response(&parts, body.is_end_stream(), *to_head, &mut text);
        *self = Response::Begun(Box::new(Incoming::new(text, encoding, body)));
        Poll::Ready(Ok(()))
    }
}

/// The kind of error that stands for a request that an instance has refused. A connected socket
/// never reports this kind.
const REFUSAL: io::ErrorKind = io::ErrorKind::ConnectionRefused;

/// Returns true if the instance has refused a request without having begun to process it.
pub(crate) fn is_refusal(error: &io::Error) -> bool {
    error.kind() == REFUSAL
}

/// Translates an error of the h2 crate. An instance that is about to end refuses the requests that
/// it has not begun to process, so that they can be sent to another instance (RFC 9113, section
/// 8.7). Such a refusal counts like a failure to connect.
fn in_our_terms(error: h2::Error) -> io::Error {
    let refused = error.is_remote() && error.reason() == Some(Reason::REFUSED_STREAM);
    let left = error.is_go_away() && error.is_remote() && error.reason() == Some(Reason::NO_ERROR);
    match refused || left {
        true => io::Error::new(REFUSAL, error),
        false => io::Error::other(error),
    }
}

impl Drop for H2cStream {
    fn drop(&mut self) {
        self.state.requests.set(self.state.requests.get() - 1);
        self.state.idle_since.set(Instant::now());
    }
}
