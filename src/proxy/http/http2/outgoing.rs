//! Decodes a body in the framing of HTTP/1.1 and sends its data on a stream of HTTP/2.

use std::io::{self, IoSlice};
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use h2::SendStream;
use http::HeaderMap;

use super::head;
use crate::proxy::http::http1::{Decoder, Spans};

/// How many bytes of a body may be sent beyond the room that the peer has given. The h2 crate keeps
/// them until there is room. A piece of framing is shorter than this.
const SLACK: usize = 32;

/// Sends as much of the slices as there is room for. `poll_take` sends a part from the beginning of
/// the bytes that it is given, and returns its length.
pub(crate) fn poll_send(
    slices: &[IoSlice<'_>],
    mut poll_take: impl FnMut(&[u8]) -> Poll<io::Result<usize>>,
) -> Poll<io::Result<usize>> {
    let mut taken = 0;
    for slice in slices {
        let mut rest: &[u8] = slice;
        while !rest.is_empty() {
            match poll_take(rest) {
                Poll::Ready(Ok(count)) => {
                    taken += count;
                    rest = &rest[count..];
                }
                Poll::Pending if taken > 0 => return Poll::Ready(Ok(taken)),
                other => return other,
            }
        }
    }
    Poll::Ready(Ok(taken))
}

/// Takes a part from the beginning of `bytes`, a piece of a body in its framing, and sends the data
/// of this part, in the form that `wrap` gives it. Returns its length.
pub(crate) fn poll_take<B: Buf>(
    send: &mut SendStream<B>,
    wrap: impl Fn(Bytes) -> B,
    body: &mut Decoder,
    cx: &mut Context<'_>,
    bytes: &[u8],
) -> Poll<io::Result<usize>> {
    let malformed = |_| io::Error::from(io::ErrorKind::InvalidData);
    // Framing needs no room. If only the end of the body is left, the peer may never give more
    // room.
    let framing = body.decode(bytes, &mut Spans::full()).map_err(malformed)?;
    if body.is_end() {
        let trailers = head::trailers(body.trailers()).ok_or(io::ErrorKind::InvalidData)?;
        match trailers.is_empty() {
            true => send.send_data(wrap(Bytes::new()), true),
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
    send.send_data(wrap(data.freeze()), last)
        .map_err(io::Error::other)?;
    if !trailers.is_empty() {
        send.send_trailers(trailers).map_err(io::Error::other)?;
    }
    Poll::Ready(Ok(framing + count))
}

/// Takes a part from the beginning of `bytes`, which belong to a tunnel, and sends it. Returns its
/// length.
pub(crate) fn poll_take_plain<B: Buf>(
    send: &mut SendStream<B>,
    wrap: impl Fn(Bytes) -> B,
    cx: &mut Context<'_>,
    bytes: &[u8],
) -> Poll<io::Result<usize>> {
    let room = ready!(poll_room(send, cx, bytes.len()))?;
    let count = room.min(bytes.len());
    let data = Bytes::copy_from_slice(&bytes[..count]);
    send.send_data(wrap(data), false)
        .map_err(io::Error::other)?;
    Poll::Ready(Ok(count))
}

/// Waits until the peer has room. Returns for how many bytes, which may be fewer than wanted.
fn poll_room<B: Buf>(
    send: &mut SendStream<B>,
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
