//! One stream of HTTP/2 as the rest of the worker sees it: a connection of HTTP/1.1 with one request on it.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::{HeaderMap, Method, Request};

use super::super::http1::{Decoder, ResponseHead, Spans, slots};
use super::head::{self, Body};

/// Bytes of a body that may be sent beyond what the client has room for; they are kept until it has. A piece of framing is shorter.
const SLACK: usize = 32;

/// The stream.
pub(crate) struct H2Stream {
    incoming: RefCell<Incoming>,
    outgoing: RefCell<Outgoing>,
    secure: bool,
    /// The whole response was sent.
    answered: Cell<bool>,
}

impl fmt::Debug for H2Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("H2Stream")
    }
}

impl H2Stream {
    pub(super) fn new(
        request: Request<RecvStream>,
        respond: SendResponse<Bytes>,
        secure: bool,
    ) -> H2Stream {
        let (parts, body) = request.into_parts();
        let mut text = Vec::with_capacity(512);
        let form = head::write_request(&parts, !body.is_end_stream(), &mut text);
        let outgoing = Outgoing {
            to_head: parts.method == Method::HEAD,
            tunnel: head::asks_for_tunnel(&parts),
            respond,
            state: State::Head,
        };
        H2Stream {
            incoming: RefCell::new(Incoming {
                text,
                read: 0,
                data: Bytes::new(),
                form,
                body,
                end: End::Ahead,
            }),
            outgoing: RefCell::new(outgoing),
            secure,
            answered: Cell::new(false),
        }
    }

    pub(crate) fn is_secure(&self) -> bool {
        self.secure
    }

    /// Whether the client has got, or will get, all of a response.
    pub(crate) fn is_answered(&self) -> bool {
        self.answered.get()
    }

    pub(crate) fn poll_read_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut incoming = self.incoming.borrow_mut();
        match incoming.is_empty() {
            true => incoming.poll_more(cx).map_ok(drop),
            false => Poll::Ready(Ok(())),
        }
    }

    pub(crate) fn poll_receive(
        &self,
        cx: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        self.incoming.borrow_mut().poll_receive(cx, buffer)
    }

    pub(crate) fn poll_send(
        &self,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut outgoing = self.outgoing.borrow_mut();
        let mut taken = 0;
        for slice in slices {
            let mut rest: &[u8] = slice;
            while !rest.is_empty() {
                match outgoing.poll_take(cx, rest) {
                    Poll::Ready(Ok(count)) => {
                        taken += count;
                        rest = &rest[count..];
                    }
                    Poll::Pending if taken > 0 => return Poll::Ready(Ok(taken)),
                    other => return other,
                }
            }
        }
        self.answered.set(matches!(outgoing.state, State::Done));
        Poll::Ready(Ok(taken))
    }

    /// Resolves when the client has given up, or the connection has ended.
    pub(crate) async fn reset(&self) {
        poll_fn(|cx| {
            let outgoing = &mut *self.outgoing.borrow_mut();
            match &mut outgoing.state {
                State::Head => outgoing.respond.poll_reset(cx).map(drop),
                State::Body { send, .. } | State::Tunnel { send } => send.poll_reset(cx).map(drop),
                State::Done => Poll::Pending,
            }
        })
        .await;
    }

    /// Tells the client that nothing more will be sent.
    pub(crate) fn finish(&self) -> io::Result<()> {
        let mut outgoing = self.outgoing.borrow_mut();
        if let State::Tunnel { send } = &mut outgoing.state {
            send.send_data(Bytes::new(), true)
                .map_err(io::Error::other)?;
            outgoing.state = State::Done;
            self.answered.set(true);
        }
        Ok(())
    }
}

impl Drop for H2Stream {
    /// A response that has not come to its end must not look as if it had.
    fn drop(&mut self) {
        let outgoing = self.outgoing.get_mut();
        match &mut outgoing.state {
            State::Head => outgoing.respond.send_reset(Reason::INTERNAL_ERROR),
            State::Body { send, .. } | State::Tunnel { send } => {
                send.send_reset(Reason::INTERNAL_ERROR);
            }
            State::Done => {}
        }
    }
}

/// The request.
struct Incoming {
    /// Bytes of HTTP/1.1 that come before the data, of which so many were read.
    text: Vec<u8>,
    read: usize,
    /// A piece of the body.
    data: Bytes,
    form: Body,
    body: RecvStream,
    end: End,
}

/// How far the body is.
enum End {
    Ahead,
    /// Trailers may follow.
    OfData,
    OfAll,
}

impl Incoming {
    fn is_empty(&self) -> bool {
        self.read == self.text.len() && self.data.is_empty()
    }

    fn poll_receive(&mut self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        let mut count = 0;
        while count < buffer.len() {
            if self.is_empty() {
                match self.poll_more(cx) {
                    Poll::Ready(Ok(true)) => {}
                    // The error comes up again.
                    _ if count > 0 => break,
                    Poll::Ready(Ok(false)) => break,
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                    Poll::Pending => return Poll::Pending,
                }
            }
            count += self.take(&mut buffer[count..]);
        }
        Poll::Ready(Ok(count))
    }

    /// Moves what is there.
    fn take(&mut self, buffer: &mut [u8]) -> usize {
        let text = &self.text[self.read..];
        if !text.is_empty() {
            let count = text.len().min(buffer.len());
            buffer[..count].copy_from_slice(&text[..count]);
            self.read += count;
            return count;
        }
        let count = self.data.len().min(buffer.len());
        buffer[..count].copy_from_slice(&self.data.split_to(count));
        // If the stream has ended, nobody has use for the room.
        let _ = self.body.flow_control().release_capacity(count);
        if self.data.is_empty() && self.form == Body::Chunked {
            self.write(|text| text.extend_from_slice(b"\r\n"));
        }
        count
    }

    fn write(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        self.text.clear();
        self.read = 0;
        write(&mut self.text);
    }

    /// Gets the next piece of the request, which may turn out to be empty. False if there is none.
    fn poll_more(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        loop {
            match self.end {
                End::Ahead => match ready!(self.body.poll_data(cx)) {
                    Some(data) => {
                        self.data = data.map_err(io::Error::other)?;
                        if !self.data.is_empty() {
                            self.announce_data();
                            return Poll::Ready(Ok(true));
                        }
                    }
                    None => self.end = End::OfData,
                },
                End::OfData if self.form == Body::Chunked => {
                    let trailers = ready!(self.body.poll_trailers(cx)).map_err(io::Error::other)?;
                    self.end = End::OfAll;
                    self.end_chunks(trailers.as_ref());
                    return Poll::Ready(Ok(true));
                }
                End::OfData => self.end = End::OfAll,
                End::OfAll => return Poll::Ready(Ok(false)),
            }
        }
    }

    fn announce_data(&mut self) {
        if self.form == Body::Chunked {
            let size = format!("{:x}\r\n", self.data.len());
            self.write(|text| text.extend_from_slice(size.as_bytes()));
        }
    }

    fn end_chunks(&mut self, trailers: Option<&HeaderMap>) {
        self.write(|text| {
            text.extend_from_slice(b"0\r\n");
            if let Some(trailers) = trailers {
                head::write_trailers(trailers, text);
            }
            text.extend_from_slice(b"\r\n");
        });
    }
}

/// The response.
struct Outgoing {
    to_head: bool,
    /// The client has asked for a tunnel.
    tunnel: bool,
    respond: SendResponse<Bytes>,
    state: State,
}

enum State {
    /// A head is to come.
    Head,
    Body {
        send: SendStream<Bytes>,
        body: Decoder,
    },
    Tunnel {
        send: SendStream<Bytes>,
    },
    /// The whole response is on its way.
    Done,
}

impl Outgoing {
    /// Takes something from the beginning of these bytes, which are not empty.
    fn poll_take(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.state {
            State::Head => Poll::Ready(self.take_head(bytes)),
            State::Body { send, body } => {
                let count = ready!(poll_take_body(send, body, cx, bytes))?;
                if body.is_end() {
                    self.state = State::Done;
                }
                Poll::Ready(Ok(count))
            }
            State::Tunnel { send } => {
                let room = ready!(poll_room(send, cx, bytes.len()))?;
                let count = room.min(bytes.len());
                let data = Bytes::copy_from_slice(&bytes[..count]);
                send.send_data(data, false).map_err(io::Error::other)?;
                Poll::Ready(Ok(count))
            }
            State::Done => Poll::Ready(Err(io::ErrorKind::InvalidData.into())),
        }
    }

    /// Heads come whole.
    fn take_head(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut slots = slots();
        let head = ResponseHead::parse(bytes, self.to_head, &mut slots);
        let head = head.ok().flatten().ok_or(io::ErrorKind::InvalidData)?;
        let switches = head.status == 101;
        if switches && !self.tunnel {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let response = match switches {
            true => head::tunnel_response(&head),
            false => head::response(&head),
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
        Ok(head.size)
    }
}

/// Waits for room for up to so many bytes.
fn poll_room(
    send: &mut SendStream<Bytes>,
    cx: &mut Context<'_>,
    wanted: usize,
) -> Poll<io::Result<usize>> {
    send.reserve_capacity(wanted);
    match send.capacity() {
        0 => match ready!(send.poll_capacity(cx)) {
            Some(room) => Poll::Ready(room.map_err(io::Error::other)),
            None => Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
        },
        room => Poll::Ready(Ok(room)),
    }
}

/// Takes a part of a body out of its framing and sends its data.
fn poll_take_body(
    send: &mut SendStream<Bytes>,
    body: &mut Decoder,
    cx: &mut Context<'_>,
    bytes: &[u8],
) -> Poll<io::Result<usize>> {
    let malformed = |_| io::Error::from(io::ErrorKind::InvalidData);
    // Framing needs no room, and where the end is all that is left, there may never be any.
    let framing = body.decode(bytes, &mut Spans::full()).map_err(malformed)?;
    if body.is_end() {
        let trailers = head::trailers(body.trailers()).ok_or(io::ErrorKind::InvalidData)?;
        match trailers.is_empty() {
            true => send.send_data(Bytes::new(), true),
            false => send.send_trailers(trailers),
        }
        .map_err(io::Error::other)?;
        return Poll::Ready(Ok(framing));
    }
    let rest = &bytes[framing..];
    let room = match rest.is_empty() {
        true => return Poll::Ready(Ok(framing)),
        false => match poll_room(send, cx, rest.len()) {
            Poll::Pending if framing > 0 => return Poll::Ready(Ok(framing)),
            room => ready!(room)?,
        },
    };
    let rest = &rest[..rest.len().min(room + SLACK)];
    let mut spans = Spans::default();
    let count = body.decode(rest, &mut spans).map_err(malformed)?;
    let mut data = BytesMut::with_capacity(spans.len());
    spans.of(rest).for_each(|span| data.extend_from_slice(span));
    let trailers = match body.is_end() {
        true => head::trailers(body.trailers()).ok_or(io::ErrorKind::InvalidData)?,
        false => HeaderMap::new(),
    };
    let last = body.is_end() && trailers.is_empty();
    send.send_data(data.freeze(), last)
        .map_err(io::Error::other)?;
    if !trailers.is_empty() {
        send.send_trailers(trailers).map_err(io::Error::other)?;
    }
    Poll::Ready(Ok(framing + count))
}
