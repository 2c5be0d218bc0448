//! One stream of a client's connection with HTTP/2, as the rest of the worker sees it: a connection
//! of HTTP/1.1 with one request on it.

use std::cell::RefCell;
use std::fmt;
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::{Method, Request};

use super::buffer::{Buffer, Receive};
use super::held::{Held, LITTLE, UnsentData};
use crate::proxy::http::http1::{Decoder, ResponseHead, slots};
use crate::proxy::http::http2::head;
use crate::proxy::http::http2::incoming::Incoming;
use crate::proxy::http::http2::outgoing;
use crate::proxy::http::http2::websocket_key::WebSocketKey;

/// How many bytes of a response are read at once at most.
const MOST_READ: usize = 64 << 10;

/// A request of a client with HTTP/2, and the response to it.
pub(crate) struct H2Stream {
    incoming: RefCell<Incoming>,
    response: RefCell<Response>,
    /// The key for the instance, if the client asks for a WebSocket.
    websocket: Option<WebSocketKey>,
    secure: bool,
}

impl fmt::Debug for H2Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("H2Stream")
    }
}

impl H2Stream {
    /// Makes a stream from a request that the h2 crate has received. `secure` is true if HTTP/2
    /// runs on TLS; `held` counts what the connection holds.
    pub(crate) fn new(
        request: Request<RecvStream>,
        respond: SendResponse<UnsentData>,
        secure: bool,
        held: Rc<Held>,
    ) -> H2Stream {
        let (parts, body) = request.into_parts();
        let mut text = Vec::with_capacity(512);
        let websocket = head::asks_for_websocket(&parts).then(WebSocketKey::new);
        let has_body = !body.is_end_stream();
        let encoding = head::write_request(&parts, has_body, websocket.as_ref(), &mut text);
        let response = Response {
            to_head: parts.method == Method::HEAD,
            tunnel: websocket.is_some(),
            respond,
            state: State::Head,
            reset: Reason::INTERNAL_ERROR,
            held,
        };
        H2Stream {
            incoming: RefCell::new(Incoming::new(text, encoding, body)),
            response: RefCell::new(response),
            websocket,
            secure,
        }
    }

    /// Lets the stream end with the error that makes clients repeat the request with HTTP/1.1. An
    /// identity that belongs to a connection cannot be used on one that carries many requests at a
    /// time.
    pub(crate) fn require_http1(&self) {
        self.response.borrow_mut().reset = Reason::HTTP_1_1_REQUIRED;
    }

    /// Returns the key for the instance, if the client asks for a WebSocket.
    pub(crate) fn websocket(&self) -> Option<&WebSocketKey> {
        self.websocket.as_ref()
    }

    /// Returns true if the stream runs on TLS, so only the client can read what is sent.
    pub(crate) fn is_secure(&self) -> bool {
        self.secure
    }

    /// Returns true if a whole response was handed over for sending, so the client has it or will
    /// get it.
    pub(crate) fn is_answered(&self) -> bool {
        matches!(self.response.borrow().state, State::Done)
    }

    /// Sends as much of a response, given in HTTP/1.1, as the client has room for.
    pub(crate) fn poll_send(
        &self,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut response = self.response.borrow_mut();
        outgoing::poll_send(slices, |bytes| response.poll_take(cx, bytes))
    }

    /// Reads more of the response from `instance` into `buffer`, as soon as the connection takes
    /// more, and as much as the client has room for.
    pub(crate) fn poll_fill(
        &self,
        buffer: &mut Buffer,
        instance: &impl Receive,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        ready!(instance.poll_read_ready(cx))?;
        let mut response = self.response.borrow_mut();
        ready!(response.held.poll_room(cx));
        buffer.poll_fill_up_to(response.room(), instance, cx)
    }

    /// Returns true if the connection takes nothing more until its client has read.
    pub(crate) fn is_blocked(&self) -> bool {
        self.response.borrow().held.is_blocked()
    }

    /// Resolves when the client has reset the stream, or the connection has ended.
    pub(crate) async fn reset(&self) {
        poll_fn(|cx| {
            let response = &mut *self.response.borrow_mut();
            match &mut response.state {
                State::Head => response.respond.poll_reset(cx).map(drop),
                State::Body { send, .. } | State::Tunnel { send } => send.poll_reset(cx).map(drop),
                State::Done => Poll::Pending,
            }
        })
        .await;
    }

    /// Tells the client that nothing more will be sent.
    pub(crate) fn finish(&self) -> io::Result<()> {
        let response = &mut *self.response.borrow_mut();
        if let State::Tunnel { send } = &mut response.state {
            send.send_data(response.held.unsent(Bytes::new()), true)
                .map_err(io::Error::other)?;
            response.state = State::Done;
        }
        Ok(())
    }
}

impl Receive for H2Stream {
    fn poll_read_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.incoming.borrow_mut().poll_read_ready(cx)
    }

    fn poll_receive(&self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        self.incoming.borrow_mut().poll_receive(cx, buffer)
    }
}

impl Drop for H2Stream {
    /// Resets the stream if the response is incomplete, so that the client cannot take it for a
    /// whole one.
    fn drop(&mut self) {
        let response = self.response.get_mut();
        match &mut response.state {
            State::Head => response.respond.send_reset(response.reset),
            State::Body { send, .. } | State::Tunnel { send } => send.send_reset(response.reset),
            State::Done => {}
        }
    }
}

/// A response on its way to the client.
struct Response {
    to_head: bool,
    /// True if the client has asked for a tunnel, so the response may be a 101.
    tunnel: bool,
    respond: SendResponse<UnsentData>,
    state: State,
    /// The error of a stream that ends before its response is complete.
    reset: Reason,
    held: Rc<Held>,
}

enum State {
    /// The head of the response was not sent yet.
    Head,
    Body {
        send: SendStream<UnsentData>,
        body: Decoder,
    },
    Tunnel {
        send: SendStream<UnsentData>,
    },
    /// The whole response was handed over for sending.
    Done,
}

impl Response {
    /// Takes and sends a part from the beginning of `bytes`, which are not empty. Returns its
    /// length.
    fn poll_take(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let held = &self.held;
        let wrap = |data| held.unsent(data);
        match &mut self.state {
            State::Head => {
                ready!(held.poll_room_for_head(cx));
                Poll::Ready(self.take_head(bytes))
            }
            State::Body { send, body } => {
                let count = ready!(outgoing::poll_take(send, wrap, body, cx, bytes))?;
                if body.is_end() {
                    self.state = State::Done;
                }
                Poll::Ready(Ok(count))
            }
            State::Tunnel { send } => outgoing::poll_take_plain(send, wrap, cx, bytes),
            State::Done => Poll::Ready(Err(io::ErrorKind::InvalidData.into())),
        }
    }

    /// Takes a whole head from the beginning of `bytes` and sends it. Returns its length.
    fn take_head(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut slots = slots();
        let head = ResponseHead::parse(bytes, self.to_head, &mut slots);
        let head = head.ok().flatten().ok_or(io::ErrorKind::InvalidData)?;
        if head.binds_connection {
            self.reset = Reason::HTTP_1_1_REQUIRED;
            return Err(io::ErrorKind::InvalidData.into());
        }
        let switches = head.status == 101;
        if switches && !self.tunnel {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let response = match switches {
            true => head::tunnel_response(&head),
            false => head::client_response(&head),
        };
        let response = response.ok_or(io::ErrorKind::InvalidData)?;
        if switches {
            let send = self.respond.send_response(response, false);
            let send = send.map_err(io::Error::other)?;
            self.state = State::Tunnel { send };
        } else if head.is_interim() {
            let sent = self.respond.send_informational(response);
            sent.map_err(io::Error::other)?;
        } else {
            let body = Decoder::new(head.framing);
            let send = self.respond.send_response(response, body.is_end());
            let send = send.map_err(io::Error::other)?;
            self.state = match body.is_end() {
                true => State::Done,
                false => State::Body { send, body },
            };
        }
        self.held.hand_over_head(head.size);
        Ok(head.size)
    }

    /// Returns how many bytes the client has room for, but at least a few. No room stays reserved,
    /// because other streams may have data to send before this one.
    fn room(&mut self) -> usize {
        let (State::Body { send, .. } | State::Tunnel { send }) = &mut self.state else {
            return self.held.read_limit();
        };
        send.reserve_capacity(MOST_READ);
        let room = send.capacity();
        send.reserve_capacity(0);
        room.max(LITTLE)
    }
}
