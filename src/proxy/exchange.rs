//! One request and its response over one connection to an instance.
//!
//! # Theory of operation
//! Two directions run at the same time within one task: [`upload`] takes the request to the instance, [`download`] the
//! response to the client. They share nothing but a few flags ([`Flow`]). Neither reads more than it has passed on, so
//! each side is as fast as the slower of the two.
//!
//! * The client is committed to once a byte of the final response has been sent to it. Before that, a failure can still
//!   become another try or an error response; after that, it can only be made visible by cutting the connection off.
//! * A response may end before the request does. The upload then goes on as long as the instance takes it, and the
//!   instance counts as in use for as long.
//! * An instance that takes no more of the request may still respond: then only the upload ends.
//! * A client that has asked whether it should send its body at all is told what the instance says. If that says
//!   nothing, it is told to go on.
//! * A client that has sent all it wants to send and closed its side still gets its response; one that has reset the
//!   connection ends the exchange.
//! * An instance that changes the protocol, as the client has asked it to, ends the exchange; a tunnel follows.
//! * Time runs out when neither direction has moved anything: for the service's `response_timeout` if it is the instance
//!   that is waited for, and for [`STALL_LIMIT`] if it is the client. Between two events of an event stream, which come when
//!   they come, it does not run out ([`EVENT_LIMIT`]).

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use super::client::Client;
use super::download::{Response, download};
use super::error::ProxyError;
use super::request::Request;
use super::upload::upload;
use super::upstream::Upstream;
use crate::proxy::net::buffer::Buffer;
use crate::proxy::net::stream::Stream;

/// How long a client may neither send nor take anything, while one of that is waited for.
pub(crate) const STALL_LIMIT: Duration = Duration::from_secs(60);

/// How long an instance may have no event to send.
const EVENT_LIMIT: Duration = Duration::from_secs(24 * 60 * 60);

/// How an exchange ended.
#[derive(Debug)]
pub(crate) enum End {
    /// The client has the whole response.
    Answered {
        /// Whether the connection to the instance can take another request.
        reusable: bool,
        response: Response,
    },
    /// The instance closed the connection, or broke it, without a byte of a response.
    Unanswered {
        /// Whether a byte of the request was sent.
        sent: bool,
    },
    /// The instance has said that it has not begun with the request, and will not.
    Refused,
    /// No byte of a response was sent to the client.
    Failed(ProxyError),
    /// The response ended in the middle.
    Cut {
        /// Only a reset can tell the client, because for it the response ends with the connection.
        reset: bool,
    },
    /// The instance speaks the other protocol that the client has asked for.
    Switched {
        /// The response that says so, which the client has not got yet.
        head: Vec<u8>,
    },
    /// The client does not want it any more.
    Abandoned,
}

/// What the two directions know of each other.
pub(crate) struct Flow {
    /// Something moved since the timer was set.
    pub(crate) moved: Cell<bool>,
    /// A byte of the request was sent.
    pub(crate) sent: Cell<bool>,
    /// The client waits to be told to send the body.
    pub(crate) awaits_permission: Cell<bool>,
    /// It was told by us, since the instance said nothing.
    pub(crate) permitted: Cell<bool>,
    pub(crate) upload: Cell<Upload>,
    /// The instance has sent something.
    pub(crate) heard: Cell<bool>,
    /// A byte of the response was sent, or may have been.
    pub(crate) committed: Cell<bool>,
    /// It is the client that is waited for, to take more of the response.
    pub(crate) delivering: Cell<bool>,
    /// The response is an event stream.
    pub(crate) events: Cell<bool>,
    /// For the client the response ends with the connection.
    pub(crate) until_close: Cell<bool>,
    /// The protocol that the client wants to change to.
    pub(crate) upgrade: Option<Rc<[u8]>>,
}

/// How far the request is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Upload {
    Sending,
    /// It is the client that is waited for.
    Receiving,
    Done,
    /// The instance takes no more of it.
    Refused,
}

impl Flow {
    fn new(awaits_permission: bool, upgrade: Option<Rc<[u8]>>) -> Flow {
        Flow {
            moved: Cell::new(true),
            sent: Cell::new(false),
            awaits_permission: Cell::new(awaits_permission),
            permitted: Cell::new(false),
            upload: Cell::new(Upload::Sending),
            heard: Cell::new(false),
            committed: Cell::new(false),
            delivering: Cell::new(false),
            events: Cell::new(false),
            until_close: Cell::new(false),
            upgrade,
        }
    }

    pub(crate) fn note_moved(&self) {
        self.moved.set(true);
    }

    /// The client's fault, or the instance's, seen from here.
    pub(crate) fn fail(&self, error: impl Into<ProxyError>) -> End {
        match self.committed.get() {
            true => self.cut(),
            false => End::Failed(error.into()),
        }
    }

    pub(crate) fn cut(&self) -> End {
        End::Cut {
            reset: self.until_close.get(),
        }
    }

    /// How long it may take until something moves again.
    fn limit(&self, response_timeout: Duration) -> Duration {
        match self.delivering.get() || self.upload.get() == Upload::Receiving {
            true => STALL_LIMIT,
            false if self.events.get() => EVENT_LIMIT,
            false => response_timeout,
        }
    }

    fn time_out(&self) -> End {
        self.fail(match self.upload.get() {
            Upload::Receiving => ProxyError::RequestTimeout,
            Upload::Sending | Upload::Done | Upload::Refused => ProxyError::ResponseTimeout,
        })
    }
}

/// Sends the request to the instance and the response to the client.
pub(crate) async fn exchange(
    client: &mut Client,
    request: &mut Request,
    upstream: &mut Upstream,
    response_timeout: Duration,
) -> End {
    let flow = Flow::new(request.outgoing.awaits_permission, request.upgrade.clone());
    let (reply, outgoing) = (request.reply, &mut request.outgoing);
    let Upstream { stream, buffer } = upstream;
    let Client { peer, timer, .. } = client;
    let closing = || peer.closing();
    let mut reset = pin!(client.stream.reset());
    let mut up = pin!(upload(
        &flow,
        &client.stream,
        &mut client.buffer,
        outgoing,
        stream
    ));
    let mut down = pin!(download(
        &flow,
        stream,
        buffer,
        &client.stream,
        reply,
        closing
    ));
    let mut uploading = true;
    let mut response = None;
    poll_fn(|cx| {
        loop {
            let waits = flow.awaits_permission.get();
            if uploading && let Poll::Ready(result) = up.as_mut().poll(cx) {
                uploading = false;
                if let Err(end) = result {
                    return Poll::Ready(end);
                }
            }
            if response.is_none()
                && let Poll::Ready(result) = down.as_mut().poll(cx)
            {
                match result {
                    Ok(whole) => response = Some(whole),
                    Err(end) => return Poll::Ready(end),
                }
            }
            if let Some(response) = response {
                let wanted = response.instance_keeps_alive && !flow.awaits_permission.get();
                if !uploading || !wanted {
                    let reusable = wanted && flow.upload.get() == Upload::Done && response.is_clean;
                    return Poll::Ready(End::Answered { reusable, response });
                }
            }
            if waits == flow.awaits_permission.get() {
                break;
            }
        }
        if flow.moved.take() {
            timer.set(flow.limit(response_timeout));
        }
        if timer.poll_expired(cx).is_ready() {
            return Poll::Ready(flow.time_out());
        }
        reset.as_mut().poll(cx).map(|()| End::Abandoned)
    })
    .await
}

/// Reads more of a body or a head. `Ok(0)` is the end of the stream.
pub(crate) async fn receive(
    flow: &Flow,
    stream: &Stream,
    buffer: &mut Buffer,
) -> std::io::Result<usize> {
    let received = buffer.fill(stream).await;
    flow.note_moved();
    received
}
