//! HTTP/2 towards an instance (`upstream_protocol: h2c`): the connections to it, and a request on one of them as the rest of the
//! worker sees it, a connection of HTTP/1.1 of its own.

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

use super::super::buffer::Buffer;
use super::super::http1::{Decoder, RequestHead, slots};
use super::super::stream::{CONNECT_LIMIT, Stream};
use super::cork::{Cork, Corked};
use super::incoming::Incoming;
use super::{STREAM_WINDOW, head, outgoing};

/// Requests on one connection at a time, if the instance allows as many.
const MOST_REQUESTS: usize = 100;

/// One stream that nobody reads must not stop the others, so there is room for all.
const CONNECTION_WINDOW: u32 = STREAM_WINDOW * MOST_REQUESTS as u32;

/// A connection to an instance.
pub(crate) struct Connection {
    sender: SendRequest<Bytes>,
    state: Rc<State>,
}

/// What its task, its requests and its owner know of each other.
struct State {
    /// It takes no more requests.
    over: Cell<bool>,
    requests: Cell<usize>,
    /// When the last request ended.
    idle_since: Cell<Instant>,
}

impl Connection {
    /// Makes a connection over this one. A task of its own keeps it going until nobody has use for it.
    pub(crate) async fn open(stream: Stream) -> io::Result<Connection> {
        let corked = Rc::new(Corked::new(stream, Buffer::default()));
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
        Ok(Connection { sender, state })
    }

    /// Whether another request may be sent now.
    pub(crate) fn has_room(&self) -> bool {
        let most = self.sender.current_max_send_streams().min(MOST_REQUESTS);
        !self.state.over.get() && self.state.requests.get() < most
    }

    /// Whether it has been in use within this time.
    pub(crate) fn is_wanted(&self, now: Instant, limit: Duration) -> bool {
        let State {
            over,
            requests,
            idle_since,
        } = &*self.state;
        !over.get() && (requests.get() > 0 || now < idle_since.get() + limit)
    }

    /// Begins another request.
    pub(crate) fn request(&self) -> Stream {
        self.state.requests.set(self.state.requests.get() + 1);
        Stream::H2c(Box::new(H2cStream {
            outgoing: RefCell::new(Outgoing::Head(self.sender.clone())),
            incoming: RefCell::new(Response::None),
            state: self.state.clone(),
        }))
    }
}

/// One request and its response.
pub(crate) struct H2cStream {
    outgoing: RefCell<Outgoing>,
    incoming: RefCell<Response>,
    state: Rc<State>,
}

enum Outgoing {
    Head(SendRequest<Bytes>),
    Body {
        send: SendStream<Bytes>,
        body: Decoder,
    },
    Done,
}

enum Response {
    /// There is no request yet.
    None,
    Awaited {
        future: ResponseFuture,
        to_head: bool,
    },
    Begun(Box<Incoming>),
}

impl fmt::Debug for H2cStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("H2cStream")
    }
}

impl H2cStream {
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
                let count = ready!(outgoing::poll_take(send, body, cx, bytes))?;
                if body.is_end() {
                    *outgoing = Outgoing::Done;
                }
                Poll::Ready(Ok(count))
            }
            Outgoing::Done => Poll::Ready(Err(io::ErrorKind::InvalidData.into())),
        }
    }

    /// Heads come whole.
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
        };
        let next = match body.is_end() {
            true => Outgoing::Done,
            false => Outgoing::Body { send, body },
        };
        Ok((head.length, next))
    }
}

impl H2cStream {
    pub(crate) fn poll_read_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut incoming = self.incoming.borrow_mut();
        ready!(incoming.poll_head(cx))?;
        match &mut *incoming {
            Response::Begun(response) => response.poll_read_ready(cx),
            Response::None | Response::Awaited { .. } => Poll::Ready(Ok(())),
        }
    }

    pub(crate) fn poll_receive(
        &self,
        cx: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let mut incoming = self.incoming.borrow_mut();
        ready!(incoming.poll_head(cx))?;
        match &mut *incoming {
            Response::Begun(response) => response.poll_receive(cx, buffer),
            Response::None | Response::Awaited { .. } => Poll::Ready(Ok(0)),
        }
    }
}

impl Response {
    /// Waits for the head.
    fn poll_head(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Response::Awaited { future, to_head } = self else {
            return Poll::Ready(Ok(()));
        };
        let response = ready!(Pin::new(future).poll(cx)).map_err(in_our_terms)?;
        let (parts, body) = response.into_parts();
        let mut text = Vec::with_capacity(512);
        let form = head::write_response(&parts, body.is_end_stream(), *to_head, &mut text);
        *self = Response::Begun(Box::new(Incoming::new(text, form, body)));
        Poll::Ready(Ok(()))
    }
}

/// What no socket says after its connection stood.
const REFUSAL: io::ErrorKind = io::ErrorKind::ConnectionRefused;

/// Whether the instance has refused a request without having begun with it.
pub(crate) fn is_refusal(error: &io::Error) -> bool {
    error.kind() == REFUSAL
}

/// An instance that is about to end refuses what it has not begun with, so that it can be sent to another one (RFC 9113, section
/// 8.7): that is as good as no connection.
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
