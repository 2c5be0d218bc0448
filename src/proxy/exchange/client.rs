//! A client connection as the code that serves its requests sees it.

use std::cell::{Cell, OnceCell};
use std::future::{Future, poll_fn};
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use super::request::Request;
use crate::proxy::http::headers::{Persistence, RequestSender};
use crate::proxy::net::buffer::Buffer;
use crate::proxy::net::held::Held;
use crate::proxy::net::stream::Stream;
use crate::proxy::net::timer::Timer;
use crate::proxy::view::drain::Drain;
use crate::proxy::view::endpoint::Pin;
use crate::proxy::view::idle_tasks::IDLE_AFTER;
use crate::proxy::view::listener::ListenerView;
use crate::proxy::view::room::Requester;
use crate::proxy::view::service::ServiceView;
use crate::proxy::view::view::{BehindProxy, TooManyConnections, View};

/// How long a client connection may wait for its next request.
pub(crate) const CLIENT_IDLE_LIMIT: Duration = Duration::from_secs(60);

/// What is left of that when a connection begins to count as idle.
pub(crate) const REST_OF_IDLE_LIMIT: Duration = CLIENT_IDLE_LIMIT.saturating_sub(IDLE_AFTER);

/// How long a client may neither send nor receive anything while the proxy waits for it.
pub(crate) const STALL_LIMIT: Duration = Duration::from_secs(60);

/// A client connection, or one stream of a client connection with HTTP/2.
pub(crate) struct Client {
    pub(crate) stream: Stream,
    pub(crate) buffer: Buffer,
    pub(crate) timer: Timer,
    pub(crate) peer: Rc<Peer>,
    /// The connection to an instance that belongs to this connection alone, if there is one.
    pub(crate) pinned: Option<Box<Pinned>>,
}

/// A connection to an instance of a service that belongs to one client's connection.
pub(crate) struct Pinned {
    pub(crate) pin: Pin,
    pub(crate) service: Rc<ServiceView>,
}

/// The other side of a client connection, and what belongs to this connection on our side: the
/// listener, the view and the drain.
pub(crate) struct Peer {
    pub(crate) address: SocketAddr,
    /// The IP address in the form in which instances learn it.
    text: Box<str>,
    pub(crate) listener: Rc<ListenerView>,
    pub(crate) view: Rc<View>,
    pub(crate) drain: Rc<Drain>,
    /// True if this is a proxy in front that does not tell who its client is.
    anonymous: bool,
    /// Counts the connection for this peer, if a trusted proxy has named it.
    pub(crate) behind_proxy: BehindProxy,
    /// True once the client is known to speak HTTP/1.
    pub(crate) speaks_http1: Cell<bool>,
    /// What the connection holds of the worker's memory.
    pub(crate) held: Rc<Held>,
    /// What the peer has of the thread's room for requests, once it has made one.
    requester: OnceCell<Rc<Requester>>,
}

/// What happens to a client connection after a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Next {
    /// The next request is read.
    Request,
    /// The connection is closed: the client will send nothing more, or is gone.
    Close,
    /// The connection lingers: the client may have sent more, and must be able to read its
    /// response.
    Linger,
    /// The connection is reset: the client must not take what it has received for a whole response.
    Reset,
}

impl Peer {
    /// Makes the peer at `address`, which has connected to `listener`.
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
            anonymous: false,
            behind_proxy: BehindProxy::default(),
            speaks_http1: Cell::new(false),
            held: Rc::default(),
            requester: OnceCell::new(),
        }
    }

    /// Makes the peer at `source`, whose connection this peer, a proxy in front, passes on. The
    /// error: `source` has as many connections as it may.
    pub(crate) fn in_place_of(&self, source: SocketAddr) -> Result<Peer, TooManyConnections> {
        let (view, drain) = (self.view.clone(), self.drain.clone());
        let behind_proxy = view.count_behind_proxy(self.listener.id(), source)?;
        Ok(Peer {
            behind_proxy,
            held: self.held.clone(),
            ..Peer::new(source, self.listener.clone(), view, drain)
        })
    }

    /// Returns what the peer has of the thread's room for requests.
    pub(crate) fn requester(&self) -> &Rc<Requester> {
        let find = || self.view.room().requester(self.view.origin(self.address));
        self.requester.get_or_init(find)
    }

    /// Makes the peer whose connection this peer, a proxy in front, passes on without telling its
    /// address. Instances learn the address of the proxy, as if the client were there; but what
    /// this client says about clients of its own is not believed.
    pub(crate) fn for_somebody(&self) -> Peer {
        let (view, drain) = (self.view.clone(), self.drain.clone());
        Peer {
            anonymous: true,
            held: self.held.clone(),
            ..Peer::new(self.address, self.listener.clone(), view, drain)
        }
    }

    /// Returns true if this is a proxy in front that does not tell who its client is. This cannot
    /// be found out again from the address.
    pub(crate) fn is_anonymous(&self) -> bool {
        self.anonymous
    }

    /// Returns the peer as the sender of a request; `secure` is true if the request came over TLS.
    pub(crate) fn sender(&self, secure: bool) -> RequestSender<'_> {
        RequestSender {
            address: &self.text,
            secure,
            trusted: !self.anonymous && self.view.trusts(self.address.ip()),
            forwarded: self.view.sets_forwarded(),
        }
    }

    /// Returns true if the connection will end with the present response.
    pub(crate) fn closing(&self) -> bool {
        self.drain.has_begun() || self.listener.closing()
    }
}

impl Client {
    /// Makes a client of a connection to `peer` on which nothing was received yet.
    pub(crate) fn new(stream: Stream, peer: Rc<Peer>) -> Client {
        Client {
            stream,
            buffer: Buffer::default(),
            timer: Timer::new(CLIENT_IDLE_LIMIT),
            peer,
            pinned: None,
        }
    }

    /// Returns true if nothing of an idle connection has to be kept but its socket and its address.
    pub(crate) fn can_be_parked(&self) -> bool {
        let is_plain = self.stream.as_socket().is_some();
        is_plain && self.pinned.is_none() && !self.peer.is_anonymous()
    }

    /// Decides what happens to the connection after the response to `request`. `told` is what the
    /// response has told the client about the connection.
    pub(crate) fn next(&self, told: Persistence, request: &Request) -> Next {
        let received = request.outgoing.is_received();
        match told {
            Persistence::KeepAlive if received => Next::Request,
            // The client has announced that this was its last request, and has sent nothing after
            // it.
            Persistence::Close
                if received && !request.reply.keep_alive && self.buffer.is_empty() =>
            {
                Next::Close
            }
            _ => Next::Linger,
        }
    }

    /// Reads and drops what the client still sends of a request that was answered before its end.
    /// If that fails, the request stays incomplete.
    pub(crate) async fn discard_rest(&mut self, request: &mut Request) {
        while !request.outgoing.is_received() {
            if request.outgoing.discard(&mut self.buffer).is_err() || request.outgoing.is_received()
            {
                return;
            }
            self.timer.set(STALL_LIMIT);
            let received = self.buffer.fill(&self.stream);
            match self.timer.limit(received).await {
                Some(Ok(count)) if count > 0 => {}
                _ => return,
            }
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
        let client_addr = self.peer.address;
        let request_id = &request.id;
        match request.may_log_failure() {
            true => {
                tracing::warn!(service, id, %client_addr, %request_id, "response cut off")
            }
            false => {
                tracing::debug!(service, id, %client_addr, %request_id, "response cut off")
            }
        }
    }
}
