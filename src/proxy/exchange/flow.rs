//! What the two directions of an exchange share, and how an exchange ends.
//!
//! # Theory of operation
//! The upload and the download of one exchange run within one task and share a [`Flow`]: a few
//! flags in cells, each set by the direction that knows the fact. A direction that has read or
//! written bytes notes it in the flow, and the exchange then sets its timer anew. The flow also
//! makes the [`ExchangeEnd`] of a failure, because this depends on whether the client has received
//! part of a response.

use std::cell::Cell;
use std::future::poll_fn;
use std::io;
use std::rc::Rc;
use std::time::Duration;

use super::client::STALL_LIMIT;
use super::error::ProxyError;
use super::reply::DeliveredResponse;
use crate::proxy::net::buffer::Buffer;
use crate::proxy::net::held::Held;
use crate::proxy::net::stream::Stream;

/// How long an instance may leave an event stream without an event.
const EVENT_LIMIT: Duration = Duration::from_secs(24 * 60 * 60);

/// How an exchange ended.
#[derive(Debug)]
pub(crate) enum ExchangeEnd {
    /// The client has received the whole response.
    Answered {
        /// True if the connection to the instance can take another request.
        reusable: bool,
        response: DeliveredResponse,
    },
    /// The connection to the instance ended or broke before a byte of a response came.
    Unanswered {
        /// True if a byte of the request was sent.
        sent: bool,
    },
    /// What came first on a connection that had carried another request is no response to this one,
    /// and the request may be sent again. The instance may have begun to process it.
    Stray,
    /// The instance has refused the request without having begun to process it.
    Refused,
    /// The exchange failed before a byte of a response was sent to the client.
    Failed(ProxyError),
    /// The response was cut off in the middle.
    Cut {
        /// True if the client can see the cut only by a reset, because the end of the connection
        /// would mark the regular end of this response.
        reset: bool,
    },
    /// The instance has switched to the protocol that the client has asked for.
    Switched {
        /// The head of the 101 response, which was not sent to the client yet.
        head: Vec<u8>,
    },
    /// The client has given up the request.
    Abandoned,
    /// The instance drains, the client sends nothing more, and it has got no byte of a response.
    ClientGone,
}

/// What the two directions of an exchange know of each other, as flags.
pub(crate) struct Flow {
    /// True if bytes have moved since the timer was set.
    pub(crate) moved: Cell<bool>,
    /// True if a byte of the request was sent.
    pub(crate) sent: Cell<bool>,
    /// True while the client waits to be told to send the body.
    pub(crate) awaits_permission: Cell<bool>,
    /// True if the proxy has told the client to send the body, because the instance stayed silent.
    pub(crate) permitted: Cell<bool>,
    pub(crate) upload: Cell<UploadState>,
    /// True if the instance has sent a byte.
    pub(crate) heard: Cell<bool>,
    /// True if a byte of the response was sent, or may have been.
    pub(crate) committed: Cell<bool>,
    /// True while the download waits for the client to take more of the response.
    pub(crate) delivering: Cell<bool>,
    /// True if the response is an event stream.
    pub(crate) events: Cell<bool>,
    /// True if the end of the connection marks the end of the response for the client.
    pub(crate) until_close: Cell<bool>,
    /// True if the connection has carried another request, of which something may still come, and
    /// if this request may be sent again.
    pub(crate) has_another_try: Cell<bool>,
    /// The protocol that the client wants to switch to.
    pub(crate) upgrade: Option<Rc<[u8]>>,
    /// What the connection of the client holds.
    held: Rc<Held>,
    /// How many bytes of the response were read from the instance and not sent yet.
    unsent: Cell<usize>,
}

/// How much of a request was uploaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum UploadState {
    Sending,
    /// The upload waits for the client to send more of the body.
    Receiving,
    Done,
    /// The instance takes no more of the request.
    Refused,
}

impl Flow {
    /// Makes the flow of an exchange that has not begun.
    pub(crate) fn new(
        awaits_permission: bool,
        has_another_try: bool,
        upgrade: Option<Rc<[u8]>>,
        held: Rc<Held>,
    ) -> Flow {
        Flow {
            moved: Cell::new(true),
            sent: Cell::new(false),
            awaits_permission: Cell::new(awaits_permission),
            permitted: Cell::new(false),
            upload: Cell::new(UploadState::Sending),
            heard: Cell::new(false),
            committed: Cell::new(false),
            delivering: Cell::new(false),
            events: Cell::new(false),
            until_close: Cell::new(false),
            has_another_try: Cell::new(has_another_try),
            upgrade,
            held,
            unsent: Cell::new(0),
        }
    }

    /// Notes that everything was sent that was read of the response.
    pub(crate) fn note_delivered(&self) {
        self.held.note_delivered(self.unsent.take());
    }

    /// Notes that bytes have moved in either direction, so that the time limit starts anew.
    pub(crate) fn note_moved(&self) {
        self.moved.set(true);
    }

    /// Ends the exchange with an error. The client gets the error as a response, unless part of
    /// another response was sent already.
    pub(crate) fn fail(&self, error: impl Into<ProxyError>) -> ExchangeEnd {
        match self.committed.get() {
            true => self.cut(),
            false => ExchangeEnd::Failed(error.into()),
        }
    }

    /// Ends the exchange in the middle of the response.
    pub(crate) fn cut(&self) -> ExchangeEnd {
        ExchangeEnd::Cut {
            reset: self.until_close.get(),
        }
    }

    /// Returns how long the exchange may go on without moving any bytes.
    pub(crate) fn limit(&self, response_timeout: Duration) -> Duration {
        match self.delivering.get() || self.upload.get() == UploadState::Receiving {
            true => STALL_LIMIT,
            false if self.events.get() => EVENT_LIMIT,
            false => response_timeout,
        }
    }

    /// Ends the exchange because no bytes have moved for too long. The error blames the side that
    /// the exchange was waiting for.
    pub(crate) fn time_out(&self) -> ExchangeEnd {
        self.fail(match self.upload.get() {
            UploadState::Receiving => ProxyError::RequestTimeout,
            UploadState::Sending | UploadState::Done | UploadState::Refused => {
                ProxyError::ResponseTimeout
            }
        })
    }

    /// Reads more of a response to `client` into `buffer`. `Ok(0)` is the end of the stream.
    pub(crate) async fn receive_for(
        &self,
        client: &Stream,
        instance: &Stream,
        buffer: &mut Buffer,
    ) -> io::Result<usize> {
        let received = poll_fn(|cx| {
            let received = client.poll_fill(buffer, instance, cx);
            let blocked = received.is_pending() && client.is_blocked();
            if blocked != self.delivering.replace(blocked) {
                self.note_moved();
            }
            received
        });
        let received = received.await;
        self.note_moved();
        if let Ok(count) = received {
            self.held.note_read(count);
            self.unsent.update(|unsent| unsent + count);
        }
        received
    }

    /// Reads more of a body or a head into `buffer`. `Ok(0)` is the end of the stream.
    pub(crate) async fn receive(&self, stream: &Stream, buffer: &mut Buffer) -> io::Result<usize> {
        let received = buffer.fill(stream).await;
        self.note_moved();
        received
    }
}

impl Drop for Flow {
    fn drop(&mut self) {
        self.note_delivered();
    }
}
