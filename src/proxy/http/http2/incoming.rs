//! Reads a message from a stream of HTTP/2 as bytes of HTTP/1.1: the translated head, then the
//! body.

use std::io;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::RecvStream;
use http::HeaderMap;

use super::head;
use crate::proxy::http::http1::Encoding;

/// How many unread bytes of a body a peer may send on one stream.
pub(crate) const STREAM_WINDOW: u32 = 128 << 10;

/// The memory for framing is kept until the end of the message.
const FRAMING: usize = 32;

/// A message on a stream of HTTP/2 that is read as bytes of HTTP/1.1.
pub(crate) struct Incoming {
    /// Bytes of HTTP/1.1 that are read before `data`: the head, or framing.
    text: Vec<u8>,
    /// How many bytes of `text` were read.
    read: usize,
    /// The piece of the body that is being read.
    data: Bytes,
    encoding: Encoding,
    body: RecvStream,
    end: End,
}

/// How near the message is to its end.
enum End {
    /// More data may come.
    Ahead,
    /// All data has come; trailers may follow.
    OfData,
    /// Nothing more comes.
    OfAll,
}

impl Incoming {
    /// Makes a message from its translated head, `text`, and the stream with its body.
    pub(crate) fn new(text: Vec<u8>, encoding: Encoding, body: RecvStream) -> Incoming {
        Incoming {
            text,
            read: 0,
            data: Bytes::new(),
            encoding,
            body,
            end: End::Ahead,
        }
    }

    /// Ready when [`poll_receive`](Incoming::poll_receive) would not wait.
    pub(crate) fn poll_read_ready(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.is_empty() {
            true => self.poll_more(cx).map_ok(drop),
            false => Poll::Ready(Ok(())),
        }
    }

    fn is_empty(&self) -> bool {
        self.read == self.text.len() && self.data.is_empty()
    }

    /// Reads the bytes of the message that have come; 0 at its end.
    pub(crate) fn poll_receive(
        &mut self,
        cx: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let mut count = 0;
        while count < buffer.len() {
            if self.is_empty() {
                match self.poll_more(cx) {
                    Poll::Ready(Ok(true)) => {}
                    // The next call returns the error again.
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

    /// Moves bytes of the message to `buffer`, and lets the peer send as many more.
    fn take(&mut self, buffer: &mut [u8]) -> usize {
        let text = &self.text[self.read..];
        if !text.is_empty() {
            let count = text.len().min(buffer.len());
            buffer[..count].copy_from_slice(&text[..count]);
            self.read += count;
            if self.read == self.text.len() && self.text.capacity() > FRAMING {
                // A head is long, and the message may go on for long.
                (self.text, self.read) = (Vec::new(), 0);
            }
            return count;
        }
        let count = self.data.len().min(buffer.len());
        buffer[..count].copy_from_slice(&self.data.split_to(count));
        // This fails if the stream has ended; then the peer needs no more room.
        let _ = self.body.flow_control().release_capacity(count);
        if self.data.is_empty() && self.encoding == Encoding::Chunked {
            self.write(|text| text.extend_from_slice(b"\r\n"));
        }
        count
    }

    fn write(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        self.text.clear();
        self.read = 0;
        write(&mut self.text);
    }

    /// Gets the next piece of the body or its framing. Resolves to false if there is none.
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
                End::OfData if self.encoding == Encoding::Chunked => {
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
        if self.encoding == Encoding::Chunked {
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
