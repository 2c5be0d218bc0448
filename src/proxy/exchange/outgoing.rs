//! A request on its way to an instance, over all tries: what is kept of it for another try, and
//! what is still to come of its body.

use std::io;
use std::rc::Rc;

use super::error::ProxyError;
use crate::proxy::http::http1::{Decoder, Encoding, Framing, Spans};
use crate::proxy::net::buffer::Buffer;
use crate::proxy::net::held::{Held, HeldHead};
use crate::proxy::net::send::{GATHERED, Sendable};
use crate::proxy::net::stream::Stream;
use crate::proxy::policy::body_room::BodyRoom;

/// How many bytes of a request's body are kept for another try.
const LONGEST_REPLAY: usize = 64 << 10;

/// A request on its way to an instance, over all tries.
pub(crate) struct Outgoing {
    /// The head and the kept part of the body, in the form that instances get.
    bytes: Vec<u8>,
    /// Length of the head.
    head: usize,
    /// Decodes the body from the framing of the client, over all tries.
    body: Decoder,
    encoding: Encoding,
    /// True while the client waits to be told to send the body.
    pub(crate) awaits_permission: bool,
    /// True if the request may be sent twice, so that it is worth keeping what was sent.
    repeatable: bool,
    /// True if something was sent that is not in `bytes` any more.
    forgotten: bool,
    /// How many more bytes the body may have. If the body is too large, its rest in the buffer must
    /// not be read as another request.
    room: BodyRoom,
    /// How many bytes at the beginning of the buffer were decoded but not sent yet.
    behind: usize,
    /// Counts `bytes` for the connection of the client.
    held: Option<HeldHead>,
}

impl Outgoing {
    /// Makes a request of which nothing was sent yet.
    pub(crate) fn new(
        bytes: Vec<u8>,
        framing: Framing,
        repeatable: bool,
        room: BodyRoom,
    ) -> Outgoing {
        let encoding = match framing {
            Framing::Chunked => Encoding::Chunked,
            Framing::None | Framing::Length(_) | Framing::UntilClose => Encoding::Plain,
        };
        Outgoing {
            head: bytes.len(),
            bytes,
            body: Decoder::new(framing),
            encoding,
            awaits_permission: false,
            repeatable,
            forgotten: false,
            room,
            behind: 0,
            held: None,
        }
    }

    /// Counts the request for the connection that has sent it, unless its head was counted when it
    /// was decoded.
    pub(crate) fn count(&mut self, connection: &Rc<Held>, counted: Option<HeldHead>) {
        self.held = counted.or_else(|| Some(connection.hold(self.bytes.len())));
    }

    /// Returns true if the body is announced or known to be too large, so that it is useless to
    /// send it.
    pub(crate) fn is_too_large(&self) -> bool {
        self.room.is_exceeded()
    }

    /// Decodes the beginning of `input`, a piece of the body. Returns the number of decoded bytes.
    fn decode(&mut self, input: &[u8], data: &mut Spans) -> Result<usize, ProxyError> {
        let consumed = self.body.decode(input, data)?;
        self.room.take(data.len() as u64)?;
        Ok(consumed)
    }

    /// Returns true if the whole request was taken out of the buffer, so that what follows is
    /// another request.
    pub(crate) fn is_received(&self) -> bool {
        self.body.is_end() && self.behind == 0 && !self.room.is_exceeded()
    }

    /// Returns true if the method allows a second try.
    pub(crate) fn is_repeatable(&self) -> bool {
        self.repeatable
    }

    /// Returns true if the request may be sent again although an instance has received bytes of it.
    pub(crate) fn can_be_repeated(&self) -> bool {
        self.repeatable && !self.forgotten
    }

    /// Returns true if something was sent that is not kept any more.
    pub(crate) fn is_forgotten(&self) -> bool {
        self.forgotten
    }

    /// Returns what every try begins with: the head, and the kept part of the body.
    pub(crate) fn kept(&self) -> &[u8] {
        &self.bytes
    }

    /// Returns true if the whole body was decoded.
    pub(crate) fn is_whole(&self) -> bool {
        self.body.is_end()
    }

    /// Keeps what has already come of the body, so that every try begins with it.
    pub(crate) fn gather(&mut self, buffer: &mut Buffer) -> Result<(), ProxyError> {
        while !self.body.is_end() && !buffer.is_empty() {
            let room = GATHERED.saturating_sub(self.bytes.len());
            if room == 0 {
                return Ok(());
            }
            let input = &buffer.unread()[..room.min(buffer.unread().len())];
            let mut data = Spans::default();
            let consumed = self.decode(input, &mut data)?;
            self.keep(&data, buffer);
            buffer.consume(consumed);
        }
        Ok(())
    }

    fn keep(&mut self, data: &Spans, buffer: &Buffer) {
        self.encoding.before(data.len(), &mut self.bytes);
        for span in data.of(buffer.unread()) {
            self.bytes.extend_from_slice(span);
        }
        let trailers = self.body.is_end().then(|| self.body.trailers());
        self.encoding.after(data.len(), trailers, &mut self.bytes);
    }

    /// Sends what `buffer` has of the body, and keeps it if that is useful. The outer error is
    /// caused by the client, the inner one by the instance.
    pub(crate) async fn send_on(
        &mut self,
        buffer: &mut Buffer,
        instance: &Stream,
        moved: impl Fn(),
    ) -> Result<io::Result<()>, ProxyError> {
        let mut data = Spans::default();
        let consumed = self.decode(buffer.unread(), &mut data)?;
        if self.can_be_repeated() && self.has_room_for(&data) {
            let from = self.bytes.len();
            self.keep(&data, buffer);
            // Another try begins with what is kept, so it must not find the same bytes in the
            // buffer again.
            buffer.consume(consumed);
            return Ok(Sendable::plain(&self.bytes[from..])
                .send(instance, moved)
                .await);
        }
        self.forgotten = true;
        self.behind = consumed;
        self.bytes.clear();
        let trailers = self.body.is_end().then(|| self.body.trailers());
        let input = buffer.unread();
        let sendable = Sendable::framed(&mut self.bytes, self.encoding, input, data, trailers);
        if let Err(error) = sendable.send(instance, moved).await {
            return Ok(Err(error));
        }
        self.bytes.clear();
        buffer.consume(consumed);
        self.behind = 0;
        Ok(Ok(()))
    }

    /// Drops what `buffer` has of the body, which no instance gets. An error is caused by the
    /// client.
    pub(crate) fn discard(&mut self, buffer: &mut Buffer) -> Result<(), ProxyError> {
        buffer.consume(std::mem::take(&mut self.behind));
        while !self.body.is_end() && !buffer.is_empty() {
            let consumed = self.decode(buffer.unread(), &mut Spans::default())?;
            buffer.consume(consumed);
        }
        Ok(())
    }

    /// Returns true if this much more may be kept, and counts it.
    fn has_room_for(&mut self, data: &Spans) -> bool {
        let held = &mut self.held;
        self.bytes.len() - self.head + data.len() <= LONGEST_REPLAY
            && held.as_mut().is_none_or(|held| held.grow(data.len()))
    }
}
