//! The connection below HTTP/2. It collects the bytes that the h2 crate writes, and sends them when
//! the task of the connection says so.
//!
//! The h2 crate flushes after each frame of data. Without this, every small response would cost a
//! system call and a TLS record.

use std::cell::{Cell, RefCell};
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::buffer::Buffer;
use super::linger::linger;
use super::timer::Timer;
use super::transport::Transport;
use super::turn::{PLACES, wait_for_turn};

/// How many bytes are collected before they are sent without being asked for.
const MOST_COLLECTED: usize = 48 << 10;

/// How many bytes a small response and its framing usually need.
const USUAL: usize = 1 << 10;

/// How many bytes the h2 crate may read in a turn of its connection. It handles each frame that it
/// has read at once, and a frame may be as short as 9 bytes, so others would have to wait for long.
/// It also keeps the heads that it has read until the end of the turn, when all streams are taken
/// from it, and a head can need many times the bytes that it has come in. Then the connection waits
/// for a place among all those that move much ([`wait_for_turn`]).
const READ_IN_TURN: usize = 16 << 10;

/// A connection whose heads were larger than this in its last turn, when they were decoded, takes
/// all places of a round.
const MUCH_DECODED: usize = 64 << 10;

/// A connection with HTTP/2, as its task has it.
pub(crate) struct Corked {
    transport: Transport,
    /// Bytes that were received and that the h2 crate has not read yet.
    received: RefCell<Buffer>,
    collected: RefCell<Vec<u8>>,
    /// How many of the collected bytes were sent.
    sent: Cell<usize>,
    /// True if bytes were sent since the last call of [`Corked::has_moved`].
    moved: Cell<bool>,
    /// How many more bytes may be read in this turn.
    readable: Cell<usize>,
    /// How many bytes the heads had in this turn, when they were decoded.
    decoded: Cell<usize>,
    /// Resolves when the next bytes may be read; `None` if that is now.
    rest: RefCell<Option<Pin<Box<dyn Future<Output = ()>>>>>,
}

/// The same connection in the form that the h2 crate reads from and writes to.
pub(crate) struct Cork(pub(crate) Rc<Corked>);

impl Corked {
    /// Makes a connection on `transport`, of which the bytes in `received` were read already.
    pub(crate) fn new(transport: Transport, received: Buffer) -> Corked {
        Corked {
            transport,
            received: received.into(),
            collected: RefCell::default(),
            sent: Cell::new(0),
            moved: Cell::new(false),
            readable: Cell::new(READ_IN_TURN),
            decoded: Cell::new(0),
            rest: RefCell::default(),
        }
    }

    /// Begins a turn of the connection, in which a limited number of bytes may be read, if it has
    /// not to wait for it. Whoever polls the h2 crate calls this before, also if the crate may not
    /// read: a place that is not taken would be lost for others. The task is woken again if there
    /// may be more to read.
    pub(crate) fn begin_turn(&self, cx: &mut Context<'_>) {
        let mut rest = self.rest.borrow_mut();
        if let Some(waiting) = &mut *rest {
            if waiting.as_mut().poll(cx).is_pending() {
                return;
            }
            *rest = None;
        }
        self.decoded.set(0);
        self.readable.set(READ_IN_TURN);
    }

    /// Notes that a head has so many bytes, decoded.
    pub(crate) fn note_decoded(&self, bytes: usize) {
        self.decoded.update(|decoded| decoded + bytes);
    }

    /// Has the connection wait for its next turn.
    fn rest(&self, cx: &mut Context<'_>) {
        let mut rest = self.rest.borrow_mut();
        if rest.is_none() {
            let places = match self.decoded.get() > MUCH_DECODED {
                true => PLACES,
                false => 1,
            };
            let waiting = rest.insert(Box::pin(wait_for_turn(places)));
            if waiting.as_mut().poll(cx).is_ready() {
                *rest = None;
                cx.waker().wake_by_ref();
            }
        }
    }

    /// Sends what was collected. Ready when all of it is sent.
    pub(crate) fn poll_push(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut collected = self.collected.borrow_mut();
        while self.sent.get() < collected.len() {
            let rest = &collected[self.sent.get()..];
            match ready!(self.transport.poll_send(cx, &[IoSlice::new(rest)]))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                count => self.sent.set(self.sent.get() + count),
            }
            self.moved.set(true);
        }
        collected.clear();
        self.sent.set(0);
        Poll::Ready(Ok(()))
    }

    /// Frees the memory for collected bytes, because a connection may have no requests for a long
    /// time.
    pub(crate) fn release(&self) {
        let mut collected = self.collected.borrow_mut();
        if collected.is_empty() {
            *collected = Vec::new();
        }
    }

    /// Returns true if bytes were sent since the last call of this method.
    pub(crate) fn has_moved(&self) -> bool {
        self.moved.take()
    }

    /// Closes our side of the connection, and waits so that the client can read what was sent.
    pub(crate) async fn linger(&self, mut timer: Timer) {
        // Nothing takes a further turn, so a place would be lost for others.
        drop(self.rest.take());
        let mut received = self.received.take();
        linger(&self.transport, &mut received, &mut timer).await;
    }
}

impl AsyncRead for Cork {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let readable = self.0.readable.get();
        if readable == 0 {
            self.0.rest(cx);
            return Poll::Pending;
        }
        let mut received = self.0.received.borrow_mut();
        // Reads through a buffer of our own, because the buffer that is given would have to be
        // cleared first.
        if received.is_empty() {
            ready!(received.poll_fill(&self.0.transport, cx))?;
        }
        let most = buffer.remaining().min(readable);
        let count = received.unread().len().min(most);
        self.0.readable.set(readable - count);
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
        Poll::Ready(self.0.transport.finish())
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::time::Duration;

    use tokio::net::UnixStream;

    use super::super::socket::Socket;
    use super::super::turn::free_places;
    use super::*;

    /// Nothing polls the turn of such a connection any more.
    #[tokio::test]
    async fn a_connection_that_only_lingers_has_no_place() {
        let (theirs, ours) = UnixStream::pair().unwrap();
        let corked = Corked::new(Transport::Socket(Socket::opened(ours)), Buffer::default());
        let before = free_places();
        corked.readable.set(0);
        poll_fn(|cx| {
            corked.rest(cx);
            Poll::Ready(())
        })
        .await;
        assert_eq!(free_places(), before - 1);
        drop(theirs);
        corked.linger(Timer::new(Duration::from_secs(1))).await;
        assert_eq!(free_places(), before);
    }
}
