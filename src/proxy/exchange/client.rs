//! A client connection, as whoever serves a request on it sees it.

use std::future::{Future, poll_fn};
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use super::request::Request;
use crate::proxy::http::headers::{Persistence, RequestSender};
use crate::proxy::net::buffer::Buffer;
use crate::proxy::net::stream::Stream;
use crate::proxy::net::timer::Timer;
use crate::proxy::view::drain::Drain;
use crate::proxy::view::listener::ListenerView;
use crate::proxy::view::view::View;

/// How long a client connection may wait for its next request.
pub(crate) const CLIENT_IDLE_LIMIT: Duration = Duration::from_secs(60);

/// How long a client may neither send nor take anything, while one of that is waited for.
pub(crate) const STALL_LIMIT: Duration = Duration::from_secs(60);

/// A client connection, or one stream of a connection with HTTP/2.
pub(crate) struct Client {
    pub(crate) stream: Stream,
    pub(crate) buffer: Buffer,
    pub(crate) timer: Timer,
    pub(crate) peer: Rc<Peer>,
}

/// Who is on the other side of a client connection, and what this side knows: the listener, the
/// view and the drain.
pub(crate) struct Peer {
    pub(crate) address: SocketAddr,
    /// The IP address as instances are told it.
    text: Box<str>,
    pub(crate) listener: Rc<ListenerView>,
    pub(crate) view: Rc<View>,
    pub(crate) drain: Rc<Drain>,
}

/// What becomes of a client connection after a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Next {
    /// Another request may come.
    Request,
    /// The client will send nothing more, or is gone.
    Close,
    /// The client may have sent more, and must be able to read its response.
    Linger,
    /// The client must not take what it has got for a response.
    Reset,
}

impl Peer {
    /// The peer at `address`, which has connected to `listener`.
    pub(crate) fn new(
        address: SocketAddr,
        listener: Rc<ListenerView>,
        view: Rc<View>,
        drain: Rc<Drain>,
    ) -> Peer {
        Peer {
            address,
            text: address.ip().to_string().into(),
            listener,
            view,
            drain,
        }
    }

    /// The peer at `source`, for which this one, a proxy in front, has connected.
    pub(crate) fn in_place_of(&self, source: SocketAddr) -> Peer {
        let (view, drain) = (self.view.clone(), self.drain.clone());
        Peer::new(source, self.listener.clone(), view, drain)
    }

    /// The peer as the sender of a request that has come over TLS or not.
    pub(crate) fn sender(&self, secure: bool) -> RequestSender<'_> {
        RequestSender {
            address: &self.text,
            secure,
            trusted: self.view.trusts(self.address.ip()),
            forwarded: self.view.sets_forwarded(),
        }
    }

    /// Returns true if the connection is to end with the present response.
    pub(crate) fn closing(&self) -> bool {
        self.drain.has_begun() || self.listener.closing()
    }
}

impl Client {
    /// A connection of `peer` on which nothing was received yet.
    pub(crate) fn new(stream: Stream, peer: Rc<Peer>) -> Client {
        Client {
            stream,
            buffer: Buffer::default(),
            timer: Timer::new(CLIENT_IDLE_LIMIT),
            peer,
        }
    }

    /// Decides what becomes of the connection after a response to `request` that has told the
    /// client so much.
    pub(crate) fn next(&self, told: Persistence, request: &Request) -> Next {
        let received = request.outgoing.is_received();
        match told {
            Persistence::KeepAlive if received => Next::Request,
            // The client said itself that it would send nothing more, and it has not.
            Persistence::Close
                if received && !request.reply.keep_alive && self.buffer.is_empty() =>
            {
                Next::Close
            }
            _ => Next::Linger,
        }
    }

    /// Awaits `future`; `None` if the client resets the connection meanwhile.
    pub(crate) async fn unless_reset<F: Future>(&self, future: F) -> Option<F::Output> {
        let mut future = pin!(future);
        let mut reset = pin!(self.stream.reset());
        poll_fn(|cx| {
            if let Poll::Ready(output) = future.as_mut().poll(cx) {
                return Poll::Ready(Some(output));
            }
            reset.as_mut().poll(cx).map(|()| None)
        })
        .await
    }

    /// Logs that the response to `request` was cut off.
    pub(crate) fn log_cut(&self, request: &Request) {
        let service = request.service_name();
        let id = request.instance.map(|id| id.0);
        match request.may_log_failure() {
            true => {
                tracing::warn!(service, id, client_addr = %self.peer.address, "response cut off")
            }
            false => {
                tracing::debug!(service, id, client_addr = %self.peer.address, "response cut off")
            }
        }
    }
}
