//! A listener as a data thread sees it: its routes, and whether it is still open.
//!
//! # Theory of operation
//! A listener is `Open` until the worker drains or a table removes the listener, and then
//! `Finishing` for good: the thread takes the connections that the kernel has already accepted, and
//! closes its descriptor. Connections outlive their listener: they hold its view and use its last
//! routes.

use std::cell::{Cell, RefCell};
use std::fmt::Display;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use rustls::ServerConfig;
use tokio::sync::Notify;

use super::service::ServiceView;
use crate::ipc::ListenerId;
use crate::log_pace::LogPace;
use crate::proxy::http::http1::Refusal;
use crate::proxy::shared::certificates::ListenerTls;
use crate::proxy::shared::router::{Routed, Router};

/// The view that a data thread has of a listener.
pub(crate) struct ListenerView {
    id: ListenerId,
    address: SocketAddr,
    mode: Cell<Mode>,
    changed: Notify,
    routes: RefCell<Routes>,
    /// How often a refused connection is logged.
    refusals: LogPace,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Open,
    Finishing,
}

/// How the connections of a listener begin, and where their requests are routed to.
#[derive(Clone, Default)]
pub(crate) struct Routes {
    /// Connections of this listener begin with a TLS handshake, for which this is the
    /// configuration.
    pub(crate) tls: Option<ListenerTls>,
    pub(crate) router: Arc<Router>,
    /// The thread's views of all services, by the indices that the router returns.
    pub(crate) services: Rc<[Rc<ServiceView>]>,
    /// Connections of this listener begin with a header of the PROXY protocol.
    pub(crate) proxy_protocol: bool,
    /// Each connection belongs to the listener that has the address to which it was made.
    pub(crate) passing: bool,
}

impl ListenerView {
    /// Makes the view of an open listener.
    pub(crate) fn new(id: ListenerId, address: SocketAddr, routes: Routes) -> ListenerView {
        ListenerView {
            id,
            address,
            mode: Cell::new(Mode::Open),
            changed: Notify::new(),
            routes: RefCell::new(routes),
            refusals: LogPace::default(),
        }
    }

    /// Finds the service for a host without its port, in any case, and a path without its query.
    /// Refuses a path that could be for several services.
    pub(crate) fn route(
        &self,
        host: &[u8],
        path: &[u8],
    ) -> Result<Option<(Rc<ServiceView>, Routed)>, Refusal> {
        let routes = self.routes.borrow();
        let found = routes.router.find(host, path)?;
        Ok(found.map(|found| (routes.services[found.service].clone(), found)))
    }

    /// Returns true if connections of this listener begin with a header of the PROXY protocol.
    pub(crate) fn has_proxy_protocol(&self) -> bool {
        self.routes.borrow().proxy_protocol
    }

    /// Returns true if connections of this listener belong to other listeners, see
    /// [`View::listener_at`](super::view::View::listener_at).
    pub(crate) fn is_passing(&self) -> bool {
        self.routes.borrow().passing
    }

    /// Logs a connection from `peer` that was refused because of `error`, unless one was logged a
    /// short time ago.
    pub(crate) fn log_refused(&self, peer: SocketAddr, error: impl Display) {
        if self.refusals.due().is_some() {
            tracing::warn!(listener = %self.address, client_addr = %peer, %error, "connection refused");
        }
    }

    /// Returns the TLS configuration for new connections of this listener; `None` for one without
    /// TLS.
    pub(crate) fn tls(&self) -> Option<Arc<ServerConfig>> {
        let routes = self.routes.borrow();
        routes.tls.as_ref().map(|tls| tls.config.clone())
    }

    /// Returns true once the listener is finishing, so that its connections end with their next
    /// response.
    pub(crate) fn closing(&self) -> bool {
        self.mode.get() != Mode::Open
    }

    /// Resolves once the listener is finishing.
    pub(crate) async fn closes(&self) {
        let changed = self.changed.notified();
        if !self.closing() {
            changed.await;
        }
    }

    /// The number that the manager knows the listener by.
    pub(crate) fn id(&self) -> ListenerId {
        self.id
    }

    /// The address that the listener is bound to.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Sets the routes that a table has for connections of the listener.
    pub(crate) fn set_routes(&self, routes: Routes) {
        *self.routes.borrow_mut() = routes;
    }

    /// Lets the listener finish: what waits in its queue is accepted, then no more.
    pub(crate) fn finish(&self) {
        if self.mode.get() == Mode::Open {
            self.mode.set(Mode::Finishing);
            self.changed.notify_waiters();
        }
    }
}
