//! What a client's connection holds of the worker's memory, and its bounds.
//!
//! # Theory of operation
//! A client decides how large its heads are, how many requests it makes at a time, and whether it
//! reads the responses. With HTTP/2 it may have many requests on one connection, and a few bytes
//! can stand for a large head. So a connection counts:
//!
//! * the heads of its requests, as large as they are decoded, from when they were read until the
//!   request has ended, together with what is kept of bodies for another try;
//! * the bytes of responses that were read from instances and that the client has not taken yet.
//!
//! # Bounds of HTTP/2
//! A further stream is refused while the connection has more than its bound of heads. The first one
//! never is, so a head that may be as large as it is finds room on every connection.
//!
//! What was handed over to the h2 crate goes out as soon as the client reads from its connection,
//! since it was taken for an open window. While that is more than [`MOST_FLOWING`], streams read no
//! more of their responses ([`Held::poll_room`]); whatever windows the client opens, no stream then
//! waits for that of another one.
//!
//! A stream reads as much of a response as its window is open for, and at least [`LITTLE`], because
//! the end of a response needs no window. The head, with what follows it, is read before there is a
//! window. While more than [`MUCH_STUCK`] waits for windows, little is read with it
//! ([`Held::read_limit`]). So many streams whose windows stay closed hold little each, and never
//! what others need to go on.
//!
//! A connection with HTTP/1 has one request at a time, whose bounds are those of its buffers. It is
//! counted here only so that the overload guard can see which connections hold most.

use std::cell::{Cell, OnceCell, RefCell};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use bytes::{Buf, Bytes};
use tokio::task::AbortHandle;

/// How many bytes of a connection's heads, and of what is kept of bodies, there may be at a time.
const MOST_HEADS: usize = 1 << 20;

/// How many bytes a connection may hold, with a further request, while memory is scarce: as much as
/// a few requests need.
const MOST_IN_SCARCITY: usize = 64 << 10;

/// While so many bytes of responses are on their way to the client, streams read no more.
const MOST_FLOWING: usize = 128 << 10;

/// With more bytes of responses than this that wait for windows, streams read little with a head.
const MUCH_STUCK: usize = 64 << 10;

/// How many bytes a stream reads at once of a response for which its window is not open.
pub(crate) const LITTLE: usize = 1 << 10;

/// How many bytes of response heads may wait to be sent before others wait behind them.
const MOST_UNSENT_HEADS: usize = 64 << 10;

/// About how many bytes a request needs beside its head: its task, and its connection to an
/// instance.
const PER_REQUEST: usize = 4 << 10;

/// What one connection of a client holds.
#[derive(Debug, Default)]
pub(crate) struct Held {
    heads: Cell<usize>,
    /// What streams have read of their responses and not sent yet.
    stuck: Cell<usize>,
    /// What was handed over to HTTP/2 and not sent yet.
    flowing: Cell<usize>,
    /// The requests whose heads these are.
    requests: Cell<usize>,
    /// The response heads that were handed over to HTTP/2 since everything was last sent.
    unsent_heads: Cell<usize>,
    /// Those that wait until less is unsent.
    waiting: RefCell<Vec<Waker>>,
    /// Ends the task of the connection.
    end: OnceCell<AbortHandle>,
}

impl Held {
    /// Returns how many bytes the connection holds.
    pub(crate) fn total(&self) -> usize {
        let requests = self.requests.get() * PER_REQUEST + self.heads.get();
        requests + self.stuck.get() + self.flowing.get()
    }

    /// Notes the task of the connection.
    pub(crate) fn belongs_to(&self, task: AbortHandle) {
        // A connection has one task as long as this value lives.
        let _ = self.end.set(task);
    }

    /// Ends the connection at once, in whatever it is doing.
    pub(crate) fn end(&self) {
        if let Some(task) = self.end.get() {
            task.abort();
        }
    }

    /// Counts the head of another request, unless the connection has others and then holds too
    /// much. While memory is scarce, that is what a few requests need.
    pub(crate) fn admit(self: &Rc<Self>, bytes: usize, scarce: bool) -> Option<HeldHead> {
        let has_room = match scarce {
            false => self.heads.get() + bytes <= MOST_HEADS,
            true => self.total() + PER_REQUEST + bytes <= MOST_IN_SCARCITY,
        };
        (has_room || self.requests.get() == 0).then(|| self.hold(bytes))
    }

    /// Counts the head of a request.
    pub(crate) fn hold(self: &Rc<Self>, bytes: usize) -> HeldHead {
        self.heads.update(|heads| heads + bytes);
        self.requests.update(|requests| requests + 1);
        HeldHead {
            held: self.clone(),
            bytes,
        }
    }

    /// Counts bytes of a response that were read and have to be sent.
    pub(crate) fn note_read(&self, bytes: usize) {
        self.stuck.update(|stuck| stuck + bytes);
    }

    /// Notes that these bytes of a response were sent, or are not sent any more.
    pub(crate) fn note_delivered(&self, bytes: usize) {
        self.stuck.update(|stuck| stuck - bytes);
    }

    /// Counts bytes of a response that are handed over to HTTP/2.
    pub(crate) fn unsent(self: &Rc<Self>, data: Bytes) -> UnsentData {
        let bytes = data.len();
        self.flowing.update(|flowing| flowing + bytes);
        UnsentData {
            data,
            held: self.clone(),
            bytes,
        }
    }

    fn sent(&self, bytes: usize) {
        self.flowing.update(|flowing| flowing - bytes);
        if self.flowing.get() < MOST_FLOWING {
            self.wake();
        }
    }

    fn wake(&self) {
        if !self.waiting.borrow().is_empty() {
            // In the order in which they came, since that is the order in which they will run.
            self.waiting.take().into_iter().for_each(Waker::wake);
        }
    }

    /// Waits until little enough is on its way for more of a response to be read.
    pub(crate) fn poll_room(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.wait_if(self.is_blocked(), cx)
    }

    /// Returns true if so much is on its way to the client that streams read no more.
    pub(crate) fn is_blocked(&self) -> bool {
        self.flowing.get() >= MOST_FLOWING
    }

    /// Waits until the heads before have been sent.
    pub(crate) fn poll_room_for_head(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.wait_if(self.unsent_heads.get() >= MOST_UNSENT_HEADS, cx)
    }

    fn wait_if(&self, waits: bool, cx: &mut Context<'_>) -> Poll<()> {
        if !waits {
            return Poll::Ready(());
        }
        let mut waiting = self.waiting.borrow_mut();
        if !waiting.iter().any(|waker| waker.will_wake(cx.waker())) {
            waiting.push(cx.waker().clone());
        }
        Poll::Pending
    }

    /// Counts the head of a response that was handed over to HTTP/2.
    pub(crate) fn hand_over_head(&self, bytes: usize) {
        self.unsent_heads.update(|heads| heads + bytes);
    }

    /// Notes that everything was sent that was handed over to HTTP/2 and that the client has room
    /// for.
    pub(crate) fn is_flushed(&self) {
        if self.unsent_heads.take() >= MOST_UNSENT_HEADS {
            self.wake();
        }
    }

    /// Returns how many bytes a stream may read at once of a response whose client may have no room
    /// for it.
    pub(crate) fn read_limit(&self) -> usize {
        match self.stuck.get() < MUCH_STUCK {
            true => usize::MAX,
            false => LITTLE,
        }
    }
}

/// The head of a request, which is counted until this value is dropped.
#[derive(Debug)]
pub(crate) struct HeldHead {
    held: Rc<Held>,
    bytes: usize,
}

impl HeldHead {
    /// Counts more that is kept of the request, unless the connection then holds too much.
    pub(crate) fn grow(&mut self, bytes: usize) -> bool {
        let heads = self.held.heads.get() + bytes;
        if heads > MOST_HEADS {
            return false;
        }
        self.held.heads.set(heads);
        self.bytes += bytes;
        true
    }
}

impl Drop for HeldHead {
    fn drop(&mut self) {
        self.held.heads.update(|heads| heads - self.bytes);
        self.held.requests.update(|requests| requests - 1);
    }
}

/// Data of a response that the h2 crate keeps until it is sent. It is counted as long.
#[derive(Debug)]
pub(crate) struct UnsentData {
    data: Bytes,
    held: Rc<Held>,
    bytes: usize,
}

impl Buf for UnsentData {
    #[inline]
    fn remaining(&self) -> usize {
        self.data.remaining()
    }

    #[inline]
    fn chunk(&self) -> &[u8] {
        self.data.chunk()
    }

    #[inline]
    fn advance(&mut self, count: usize) {
        self.data.advance(count);
    }
}

impl Drop for UnsentData {
    fn drop(&mut self) {
        if self.bytes > 0 {
            self.held.sent(self.bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    #[test]
    fn a_first_head_always_has_room_and_further_ones_up_to_the_bound() {
        let held = Rc::new(Held::default());
        let first = held.admit(MOST_HEADS + 1, false).unwrap();
        assert!(held.admit(1, false).is_none());
        drop(first);
        let second = held.admit(MOST_HEADS - 40, false).unwrap();
        assert!(held.admit(41, false).is_none());
        assert!(held.admit(40, false).is_some());
        assert_eq!(held.total(), MOST_HEADS - 40 + PER_REQUEST);
        drop(second);
        let _first = held.admit(MOST_IN_SCARCITY, true).unwrap();
        assert!(held.admit(1, true).is_none() && held.admit(1, false).is_some());
    }

    #[test]
    fn in_scarcity_everything_counts_that_a_connection_holds() {
        let held = Rc::new(Held::default());
        let requests: Vec<HeldHead> = std::iter::from_fn(|| held.admit(0, true)).collect();
        assert_eq!(requests.len(), MOST_IN_SCARCITY / PER_REQUEST);
        drop(requests);
        held.note_read(MOST_IN_SCARCITY);
        let first = held.admit(0, true);
        assert!(first.is_some() && held.admit(0, true).is_none());
    }

    #[tokio::test]
    async fn a_stream_waits_until_the_others_are_sent() {
        let held = Rc::new(Held::default());
        let waits = || poll_fn(|cx| Poll::Ready(held.poll_room(cx).is_pending()));
        let one = held.unsent(Bytes::from_static(&[0; MOST_FLOWING]));
        assert!(waits().await);
        drop(one);
        assert!(!waits().await);
        held.note_read(MUCH_STUCK);
        assert_eq!((held.read_limit(), waits().await), (LITTLE, false));
        held.note_delivered(MUCH_STUCK);
        assert_eq!((held.read_limit(), held.total()), (usize::MAX, 0));
    }

    #[test]
    fn what_is_kept_of_bodies_has_a_bound() {
        let held = Rc::new(Held::default());
        let mut head = held.hold(MOST_HEADS / 2);
        assert!(head.grow(MOST_HEADS / 2) && !head.grow(1));
        drop(head);
        assert_eq!(held.total(), 0);
    }
}
