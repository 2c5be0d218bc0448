//! Forwards one request: finds an instance for it, and another one after a failure, if by that no
//! request is lost and none is processed twice.
//!
//! # Which failures lead to another try
//! * No connection: any request goes to another instance, at once while there is one that was not
//!   tried, and then after growing pauses, until the service's `queue_timeout` is over. The same
//!   holds for a request that an instance has refused without having begun to process it, as HTTP/2
//!   can say, if everything that was sent is still kept.
//! * A connection on which not a byte of the request could be sent: the same, since no instance has
//!   seen the request.
//! * A connection that ended after something was sent and before anything was received: the
//!   instance may have processed the request. The request is sent again only once, only if its
//!   method is idempotent, and only if everything that was sent is still kept.
//! * On a connection that had carried another request, something came that is no response to this
//!   one ([`ExchangeEnd::Stray`]): the same as if the connection had ended.
//! * Everything else is answered with an error.
//!
//! # Connections that belong to one client
//! Once a request or a response has begun to authenticate the connection and not the request (NTLM,
//! Negotiate), the connection to the instance belongs to the client's connection: it carries no
//! request of another client, and the next request of this client to the same service goes over it.
//!
//! # Admission
//! Before an instance is looked for, the request has to be admitted, for which it may have to wait:
//! see [`room`](crate::proxy::view::room).

use std::io;
use std::rc::Rc;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::client::{Client, Next, Peer, Pinned};
use super::error::ProxyError;
use super::exchange::{ExchangeLimits, exchange};
use super::flow::ExchangeEnd;
use super::request::Request;
use super::tunnel::tunnel;
use crate::ipc::EndpointId;
use crate::proxy::http::headers::Persistence;
use crate::proxy::view::endpoint::Claim;
use crate::proxy::view::room::Seat;
use crate::proxy::view::service::{Searching, ServiceView};
use crate::proxy::view::upstream::Upstream;

/// The pause after every instance was tried once. The pause doubles after each further round.
const FIRST_PAUSE: Duration = Duration::from_millis(50);

/// The longest pause between two rounds of tries.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// Gets the response of an instance to the client. An error means that the client has got no
/// response.
pub(crate) async fn forward(
    client: &mut Client,
    request: &mut Request,
) -> Result<Next, ProxyError> {
    let service = request.service.clone().ok_or(ProxyError::UnknownHost)?;
    if let Some(denial) = request.denial.take() {
        return Err(denial.into());
    }
    if request.outgoing.is_too_large() {
        return Err(ProxyError::BodyTooLarge);
    }
    let peer = client.peer.clone();
    let mut search = Search::new(&service, &peer, request.outgoing.is_repeatable());
    // Kept as long as the request may hold a connection to an instance.
    let seat = match service.try_admit(peer.view.room(), peer.requester()) {
        Some(seat) => seat,
        None => match client.unless_reset(Box::pin(search.admit())).await {
            Some(admitted) => admitted?,
            None => return Ok(Next::Close),
        },
    };
    let mut pinned = pinned(client, request, &service);
    let mut repeated = false;
    let handling = service.handling();
    let limits = ExchangeLimits {
        response: handling.response_timeout,
        gone: handling.client_gone_timeout,
    };
    loop {
        let mut lease = match pinned.take() {
            Some(lease) => lease,
            None => match client.unless_reset(search.lease()).await {
                Some(lease) => lease?,
                None => return Ok(Next::Close),
            },
        };
        request.instance = Some(lease.claim.id());
        let has_another_try = lease.reused && !repeated && request.outgoing.can_be_repeated();
        let Lease {
            upstream, claim, ..
        } = &mut lease;
        match exchange(client, request, upstream, claim, limits, has_another_try).await {
            ExchangeEnd::Answered { reusable, response } => {
                if reusable {
                    let binds = request.binds_connection || response.binds_connection;
                    let Lease {
                        mut upstream,
                        claim,
                        pinned,
                        ..
                    } = lease;
                    let keep_alive = response.keep_alive_timeout;
                    upstream.is_suspect = response.has_no_body;
                    match pinned || binds {
                        true => client.pinned = pin(claim, upstream, keep_alive, &service),
                        false => claim.give_back(upstream, keep_alive),
                    }
                } else {
                    drop(lease);
                }
                drop(seat);
                if response.persistence == Persistence::KeepAlive {
                    client.discard_rest(request).await;
                }
                return Ok(client.next(response.persistence, request));
            }
            ExchangeEnd::Unanswered { sent: false } => {
                search.note_unsent(lease);
            }
            ExchangeEnd::Refused if !request.outgoing.is_forgotten() => {
                search.note_failure(&lease.claim, io::ErrorKind::ConnectionRefused.into());
            }
            ExchangeEnd::Refused => return Err(ProxyError::NoResponse),
            ExchangeEnd::Unanswered { sent: true } | ExchangeEnd::Stray => {
                lease.claim.count_failure();
                if repeated || !request.outgoing.can_be_repeated() {
                    return Err(ProxyError::NoResponse);
                }
                repeated = true;
                search.only_new_connections = true;
            }
            ExchangeEnd::Failed(error) => {
                if error.is_failure() {
                    lease.claim.count_failure();
                }
                return Err(error);
            }
            ExchangeEnd::Cut { reset } => {
                lease.claim.count_failure();
                client.log_cut(request);
                return Ok(if reset { Next::Reset } else { Next::Close });
            }
            ExchangeEnd::Switched { head } => {
                let Lease {
                    upstream, claim, ..
                } = &mut lease;
                claim.become_tunnel();
                return Ok(Box::pin(tunnel(client, upstream, claim, head)).await);
            }
            ExchangeEnd::Abandoned => return Ok(Next::Close),
            ExchangeEnd::ClientGone => return Err(ProxyError::ClientGone),
        }
    }
}

/// An instance and a connection to it. The connection is declared first, so that it is closed
/// before the claim ends.
struct Lease {
    upstream: Upstream,
    claim: Claim,
    reused: bool,
    /// True if the connection belongs to the client's connection alone.
    pinned: bool,
}

/// Takes the connection to an instance that belongs to the client's connection, if it leads to this
/// service and can still be used.
fn pinned(client: &mut Client, request: &Request, service: &Rc<ServiceView>) -> Option<Lease> {
    let is_of_service = |pinned: &mut Box<Pinned>| Rc::ptr_eq(&pinned.service, service);
    let (mut upstream, claim) = client.pinned.take_if(is_of_service)?.pin.claim()?;
    if !request.outgoing.is_repeatable() && !upstream.is_surely_reusable() {
        return None;
    }
    Some(Lease {
        upstream,
        claim,
        reused: true,
        pinned: true,
    })
}

/// Keeps a connection for the client's connection alone.
fn pin(
    claim: Claim,
    upstream: Upstream,
    keep_alive: Option<Duration>,
    service: &Rc<ServiceView>,
) -> Option<Box<Pinned>> {
    let pin = claim.pin(upstream, keep_alive)?;
    let service = service.clone();
    Some(Box::new(Pinned { pin, service }))
}

/// The search for an instance that accepts a connection.
struct Search<'a> {
    service: &'a ServiceView,
    peer: &'a Peer,
    repeatable: bool,
    only_new_connections: bool,
    tried: Vec<EndpointId>,
    pause: Duration,
    /// When the request has waited for long enough, whatever it waits for. Set when it begins to.
    until: Option<Instant>,
    /// The last failure.
    failed: Option<io::Error>,
    /// Set from the first wait until an instance is claimed.
    searching: Option<Searching<'a>>,
}

impl Search<'_> {
    fn new<'a>(service: &'a ServiceView, peer: &'a Peer, repeatable: bool) -> Search<'a> {
        Search {
            service,
            peer,
            repeatable,
            only_new_connections: false,
            tried: Vec::new(),
            pause: FIRST_PAUSE,
            until: None,
            failed: None,
            searching: None,
        }
    }

    /// Notes that the request has to wait before it has an instance.
    fn begin_to_wait(&mut self) {
        let service = self.service;
        self.searching.get_or_insert_with(|| service.search());
    }

    /// Waits until the request may go on.
    async fn admit(&mut self) -> Result<Seat, ProxyError> {
        self.begin_to_wait();
        let until = self.wait_until();
        let (room, requester) = (self.peer.view.room(), self.peer.requester());
        Ok(self.service.admit(room, requester, until).await?)
    }

    /// Returns until when the request waits, which is decided when it first has to.
    fn wait_until(&mut self) -> Instant {
        let limit = self.service.handling().queue_timeout;
        *self.until.get_or_insert_with(|| Instant::now() + limit)
    }

    /// Claims an instance and connects to it.
    async fn lease(&mut self) -> Result<Lease, ProxyError> {
        loop {
            let claim = match self.service.claim(&self.tried) {
                Some(claim) => claim,
                None => self.wait().await?,
            };
            self.searching = None;
            if let Some(upstream) = self.idle_connection(&claim) {
                return Ok(Lease {
                    upstream,
                    claim,
                    reused: true,
                    pinned: false,
                });
            }
            self.peer.view.make_room_for_connection();
            match claim.connect().await {
                Ok(stream) => {
                    return Ok(Lease {
                        upstream: Upstream::new(stream),
                        claim,
                        reused: false,
                        pinned: false,
                    });
                }
                Err(error) => self.note_failure(&claim, error),
            }
        }
    }

    /// Takes an idle connection. For a request that cannot be repeated, a system call first finds
    /// out whether the instance has just closed the connection.
    fn idle_connection(&self, claim: &Claim) -> Option<Upstream> {
        if self.only_new_connections {
            return None;
        }
        std::iter::from_fn(|| claim.take_idle())
            .find_map(|mut idle| (self.repeatable || idle.is_surely_reusable()).then_some(idle))
    }

    /// Claims an instance, after waiting: every active instance was tried, or there was none.
    async fn wait(&mut self) -> Result<Claim, ProxyError> {
        self.begin_to_wait();
        let until = self.wait_until();
        if self.failed.is_some() {
            if Instant::now() + self.pause > until
                && let Some(error) = self.failed.take()
            {
                return Err(ProxyError::Connect(error));
            }
            sleep(self.pause).await;
            self.pause = LONGEST_PAUSE.min(self.pause * 2);
            self.tried.clear();
        }
        let client = self.peer.requester().origin();
        Ok(self.service.hold(client, until).await?)
    }

    fn note_failure(&mut self, claim: &Claim, error: io::Error) {
        tracing::debug!(service = self.service.name(), id = claim.id().0, %error, "cannot connect to instance");
        self.tried.push(claim.id());
        // From its first failure on, the request waits for a success.
        self.wait_until();
        self.failed = Some(error);
    }

    /// Notes that not a byte of the request could be sent. This happens on an idle connection that
    /// the instance is closing at this moment. On a new connection it counts as a failure to
    /// connect.
    fn note_unsent(&mut self, lease: Lease) {
        if !lease.reused {
            self.note_failure(&lease.claim, io::ErrorKind::ConnectionReset.into());
        }
    }
}
