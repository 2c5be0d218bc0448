//! What the two directions of an exchange know of each other, and how an exchange ends.
//!
//! # Theory of operation
//! The upload and the download of one exchange run within one task and share a [`Flow`]: a few
//! flags in cells, each set by the direction that knows. Whoever reads or writes notes that
//! something has moved, and the exchange sets its timer accordingly. The [`ExchangeEnd`] of a
//! failure depends on whether the client has been committed to, so the flow makes it.

use std::cell::Cell;
use std::io;
use std::rc::Rc;
use std::time::Duration;

use super::client::STALL_LIMIT;
use super::error::ProxyError;
use super::reply::DeliveredResponse;
use crate::proxy::net::buffer::Buffer;
use crate::proxy::net::stream::Stream;

/// How long an instance may leave an event stream without an event.
const EVENT_LIMIT: Duration = Duration::from_secs(24 * 60 * 60);

/// How an exchange ended.
#[derive(Debug)]
pub(crate) enum ExchangeEnd {
    /// The client has the whole response.
    Answered {
        /// True if the connection to the instance can take another request.
        reusable: bool,
        response: DeliveredResponse,
    },
    /// The instance closed the connection, or broke it, without a byte of a response.
    Unanswered {
        /// True if a byte of the request was sent.
        sent: bool,
    },
    /// The instance has said that it has not begun with the request, and will not.
    Refused,
    /// The exchange failed before a byte of a response was sent to the client.
    Failed(ProxyError),
    /// The response ended in the middle.
    Cut {
        /// True if only a reset can tell the client, because for it the response ends with the
        /// connection.
        reset: bool,
    },
    /// The instance speaks the other protocol that the client has asked for.
    Switched {
        /// The response that says so, which the client has not got yet.
        head: Vec<u8>,
    },
    /// The client does not want the response any more.
    Abandoned,
}

/// What the two directions of an exchange know of each other.
pub(crate) struct Flow {
    /// Something moved since the timer was set.
    pub(crate) moved: Cell<bool>,
    /// A byte of the request was sent.
    pub(crate) sent: Cell<bool>,
    /// The client waits to be told to send the body.
    pub(crate) awaits_permission: Cell<bool>,
    /// The proxy has told the client to send the body, since the instance said nothing.
    pub(crate) permitted: Cell<bool>,
    pub(crate) upload: Cell<UploadState>,
    /// The instance has sent something.
    pub(crate) heard: Cell<bool>,
    /// A byte of the response was sent, or may have been.
    pub(crate) committed: Cell<bool>,
    /// The download waits for the client to take more of the response.
    pub(crate) delivering: Cell<bool>,
    /// The response is an event stream.
    pub(crate) events: Cell<bool>,
    /// For the client the response ends with the connection.
    pub(crate) until_close: Cell<bool>,
    /// The protocol that the client wants to change to.
    pub(crate) upgrade: Option<Rc<[u8]>>,
}

/// How far the upload of a request is.
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
    /// The flow of an exchange that has not begun.
    pub(crate) fn new(awaits_permission: bool, upgrade: Option<Rc<[u8]>>) -> Flow {
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
            upgrade,
        }
    }

    /// Notes that bytes have moved in either direction, so that the time for the next ones begins
    /// anew.
    pub(crate) fn note_moved(&self) {
        self.moved.set(true);
    }

    /// Ends the exchange with an error: the client gets it as a response, unless it has been
    /// committed to another one.
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

    /// How long the exchange may wait until something moves again.
    pub(crate) fn limit(&self, response_timeout: Duration) -> Duration {
        match self.delivering.get() || self.upload.get() == UploadState::Receiving {
            true => STALL_LIMIT,
            false if self.events.get() => EVENT_LIMIT,
            false => response_timeout,
        }
    }

    /// Ends the exchange because nothing has moved for too long, to the charge of whoever was
    /// waited for.
    pub(crate) fn time_out(&self) -> ExchangeEnd {
        self.fail(match self.upload.get() {
            UploadState::Receiving => ProxyError::RequestTimeout,
            UploadState::Sending | UploadState::Done | UploadState::Refused => {
                ProxyError::ResponseTimeout
            }
        })
    }

    /// Reads more of a body or a head into `buffer`. `Ok(0)` is the end of the stream.
    pub(crate) async fn receive(&self, stream: &Stream, buffer: &mut Buffer) -> io::Result<usize> {
        let received = buffer.fill(stream).await;
        self.note_moved();
        received
    }
}
