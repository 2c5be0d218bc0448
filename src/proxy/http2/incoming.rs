//! What a stream of HTTP/2 brings, as bytes of HTTP/1.1: a head that is given, and the body behind it.

use std::io;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::RecvStream;
use http::HeaderMap;

use super::head::{self, Body};

/// The bytes.
pub(super) struct Incoming {
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
    /// `text` is the head.
    pub(super) fn new(text: Vec<u8>, form: Body, body: RecvStream) -> Incoming {
        Incoming {
            text,
            read: 0,
            data: Bytes::new(),
            form,
            body,
            end: End::Ahead,
        }
    }

    pub(super) fn poll_read_ready(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.is_empty() {
            true => self.poll_more(cx).map_ok(drop),
            false => Poll::Ready(Ok(())),
        }
    }

    fn is_empty(&self) -> bool {
        self.read == self.text.len() && self.data.is_empty()
    }

    pub(super) fn poll_receive(
        &mut self,
        cx: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
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

    /// Gets the next piece. False if there is none.
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
