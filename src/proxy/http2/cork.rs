//! The connection below HTTP/2, which sends what it is given when it is told to.
//!
//! The h2 crate flushes after each frame of data. Left alone, every small response would be a system call, and a record of TLS.

use std::cell::{Cell, RefCell};
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::super::buffer::Buffer;
use super::super::client::{LINGER_LIMIT, MOST_LINGERED};
use super::super::stream::Stream;
use super::super::timer::Timer;

/// So much is collected before it is sent unasked.
const MOST_COLLECTED: usize = 48 << 10;

/// What a small response and what goes with it need.
const USUAL: usize = 1 << 10;

/// The connection.
pub(super) struct Corked {
    stream: Stream,
    /// What had come before it was known that this is HTTP/2.
    received: RefCell<Buffer>,
    collected: RefCell<Vec<u8>>,
    /// So much of it is sent.
    sent: Cell<usize>,
    moved: Cell<bool>,
}

/// The end of it that the h2 crate has.
pub(super) struct Cork(pub(super) Rc<Corked>);

impl Corked {
    pub(super) fn new(stream: Stream, received: Buffer) -> Corked {
        Corked {
            stream,
            received: received.into(),
            collected: RefCell::default(),
            sent: Cell::new(0),
            moved: Cell::new(false),
        }
    }

    /// Sends what was collected.
    pub(super) fn poll_push(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut collected = self.collected.borrow_mut();
        while self.sent.get() < collected.len() {
            let rest = &collected[self.sent.get()..];
            match ready!(self.stream.poll_send(cx, &[IoSlice::new(rest)]))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                count => self.sent.set(self.sent.get() + count),
            }
            self.moved.set(true);
        }
        collected.clear();
        self.sent.set(0);
        Poll::Ready(Ok(()))
    }

    /// A connection without requests may be so for a long time.
    pub(super) fn release(&self) {
        let mut collected = self.collected.borrow_mut();
        if collected.is_empty() {
            *collected = Vec::new();
        }
    }

    /// Whether anything was sent since this was asked last.
    pub(super) fn has_moved(&self) -> bool {
        self.moved.take()
    }

    /// Closes our side, and reads on until the client has closed its own, or long enough: a close with unread bytes is a reset,
    /// which can destroy what the client has not read yet.
    pub(super) async fn linger(&self, mut timer: Timer) {
        if self.stream.finish().is_err() {
            return;
        }
        let mut buffer = self.received.take();
        timer.set(LINGER_LIMIT);
        let mut lingered = 0;
        while lingered < MOST_LINGERED {
            let unread = buffer.unread().len();
            buffer.consume(unread);
            match timer.limit(buffer.fill(&self.stream)).await {
                Some(Ok(count)) if count > 0 => lingered += count,
                _ => return,
            }
        }
    }
}

impl AsyncRead for Cork {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut received = self.0.received.borrow_mut();
        // By way of a buffer, because the one that is given would have to be cleared first.
        if received.is_empty() {
            ready!(received.poll_fill(&self.0.stream, cx))?;
        }
        let count = received.unread().len().min(buffer.remaining());
        buffer.put_slice(&received.unread()[..count]);
        received.consume(count);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Cork {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.0.collected.borrow().len() >= MOST_COLLECTED {
            ready!(self.0.poll_push(cx))?;
        }
        let mut collected = self.0.collected.borrow_mut();
        let count = slices.iter().map(|slice| slice.len()).sum();
        collected.reserve(USUAL.max(count));
        slices
            .iter()
            .for_each(|slice| collected.extend_from_slice(slice));
        Poll::Ready(Ok(count))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.0.poll_push(cx))?;
        Poll::Ready(self.0.stream.finish())
    }
}
