//! A request on its way to an instance, over all tries: what was kept of it, and what is still to
//! come of its body.

use std::io;

use super::error::ProxyError;
use crate::proxy::http::http1::{Decoder, Encoding, Framing, Spans};
use crate::proxy::net::buffer::Buffer;
use crate::proxy::net::send::{GATHERED, Sendable};
use crate::proxy::net::stream::Stream;
use crate::proxy::policy::body_room::BodyRoom;

/// Bytes of a request's body that are kept for a second try.
const LONGEST_REPLAY: usize = 64 << 10;

/// A request on its way to an instance, over all tries.
pub(crate) struct Outgoing {
    /// The head, and as much of the body as is kept, as the instance gets them.
    bytes: Vec<u8>,
    /// Length of the head.
    head: usize,
    /// Where the client's framing of the body stands.
    body: Decoder,
    encoding: Encoding,
    /// The client waits to be told to send the body.
    pub(crate) awaits_permission: bool,
    /// A second try would do no harm, so what was sent is worth keeping.
    repeatable: bool,
    /// Something was sent that is not in `bytes` any more.
    forgotten: bool,
    /// What the body may still have. If it has more, what is left of it in the buffer is no other
    /// request.
    room: BodyRoom,
    /// A piece of the body was decoded, but is still in the buffer because it is not sent yet.
    behind: bool,
}

impl Outgoing {
    /// A request of which nothing was sent.
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
            behind: false,
        }
    }

    /// Returns true if the body is announced or known to be too large, so that sending any of it
    /// has no use.
    pub(crate) fn is_too_large(&self) -> bool {
        self.room.is_exceeded()
    }

    /// Decodes the beginning of `input`, a piece of the body, and returns how many bytes it takes.
    fn decode(&mut self, input: &[u8], data: &mut Spans) -> Result<usize, ProxyError> {
        let consumed = self.body.decode(input, data)?;
        self.room.take(data.len() as u64)?;
        Ok(consumed)
    }

    /// Returns true if the whole request has been taken out of the buffer, so that what comes next
    /// is another one.
    pub(crate) fn is_received(&self) -> bool {
        self.body.is_end() && !self.behind && !self.room.is_exceeded()
    }

    /// Returns true if the method allows a second try.
    pub(crate) fn is_repeatable(&self) -> bool {
        self.repeatable
    }

    /// Returns true if the request may be sent again although bytes of it were sent.
    pub(crate) fn can_be_repeated(&self) -> bool {
        self.repeatable && !self.forgotten
    }

    /// Returns true if something was sent that is not at hand any more.
    pub(crate) fn is_forgotten(&self) -> bool {
        self.forgotten
    }

    /// What every try begins with: the head, and as much of the body as is kept.
    pub(crate) fn kept(&self) -> &[u8] {
        &self.bytes
    }

    /// Returns true if the body has no more to come.
    pub(crate) fn is_whole(&self) -> bool {
        self.body.is_end()
    }

    /// Adds what has already come of the body to what every try begins with.
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

    /// Sends what `buffer` has of the body, and keeps it if that is of use. The outer error is the
    /// client's, the inner one the instance's.
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
            // Another try begins with what is kept, so it must not find this in the buffer again.
            buffer.consume(consumed);
            return Ok(Sendable::plain(&self.bytes[from..])
                .send(instance, moved)
                .await);
        }
        self.forgotten = true;
        self.behind = true;
        self.bytes.clear();
        let trailers = self.body.is_end().then(|| self.body.trailers());
        let input = buffer.unread();
        let sendable = Sendable::framed(&mut self.bytes, self.encoding, input, data, trailers);
        if let Err(error) = sendable.send(instance, moved).await {
            return Ok(Err(error));
        }
        self.bytes.clear();
        buffer.consume(consumed);
        self.behind = false;
        Ok(Ok(()))
    }

    fn has_room_for(&self, data: &Spans) -> bool {
        self.bytes.len() - self.head + data.len() <= LONGEST_REPLAY
    }
}
