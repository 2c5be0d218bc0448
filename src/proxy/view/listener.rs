//! A listener as a data thread sees it: which services are behind it, and whether it is still open.
//!
//! # Theory of operation
//! A listener is `Open` until the worker drains or a table removes it, and from then on, for good,
//! `Finishing`: the thread takes what the kernel has already accepted, then closes its descriptor.
//! Connections outlive their listener: they hold its view and go by its last routes.

use std::cell::{Cell, RefCell};
use std::fmt::Display;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use rustls::ServerConfig;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::service::ServiceView;
use crate::ipc::ListenerId;
use crate::proxy::shared::certificates::ListenerTls;
use crate::proxy::shared::router::Router;

/// How often a listener logs that a connection did not begin as it should.
const LOG_INTERVAL: Duration = Duration::from_secs(10);

/// The view that a data thread has of a listener.
pub(crate) struct ListenerView {
    id: ListenerId,
    address: SocketAddr,
    mode: Cell<Mode>,
    changed: Notify,
    routes: RefCell<Routes>,
    /// When it may be logged again that a connection did not begin as it should.
    quiet_until: Cell<Option<Instant>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Open,
    Finishing,
}

/// What becomes of the connections of a listener.
#[derive(Clone, Default)]
pub(crate) struct Routes {
    /// Connections of this listener begin with a TLS handshake, for which this is the
    /// configuration.
    pub(crate) tls: Option<ListenerTls>,
    pub(crate) router: Arc<Router>,
    /// The thread's views of all services, in the order in which the router counts them.
    pub(crate) services: Rc<[Rc<ServiceView>]>,
    /// Connections of this listener begin with a header of the PROXY protocol.
    pub(crate) proxy_protocol: bool,
}

impl ListenerView {
    /// The view of an open listener.
    pub(crate) fn new(id: ListenerId, address: SocketAddr, routes: Routes) -> ListenerView {
        ListenerView {
            id,
            address,
            mode: Cell::new(Mode::Open),
            changed: Notify::new(),
            routes: RefCell::new(routes),
            quiet_until: Cell::new(None),
        }
    }

    /// The service for a host without its port, in any case, and a path without its query, and how
    /// many bytes of the path the service does not get.
    pub(crate) fn route(&self, host: &[u8], path: &[u8]) -> Option<(Rc<ServiceView>, usize)> {
        let routes = self.routes.borrow();
        let destination = routes.router.find(host, path)?;
        let service = routes.services[destination.service].clone();
        Some((service, destination.strip))
    }

    /// Returns true if connections of this listener begin with a header of the PROXY protocol.
    pub(crate) fn has_proxy_protocol(&self) -> bool {
        self.routes.borrow().proxy_protocol
    }

    /// Logs, now and then, that a connection from `peer` was refused because it did not begin as it
    /// should.
    pub(crate) fn log_refused(&self, peer: SocketAddr, error: impl Display) {
        let now = Instant::now();
        if self.quiet_until.get().is_none_or(|until| now >= until) {
            self.quiet_until.set(Some(now + LOG_INTERVAL));
            tracing::warn!(listener = %self.address, client_addr = %peer, %error, "connection refused");
        }
    }

    /// The configuration of TLS for the next connection of this listener, if it is one with TLS.
    pub(crate) fn tls(&self) -> Option<Arc<ServerConfig>> {
        let routes = self.routes.borrow();
        routes.tls.as_ref().map(|tls| tls.config.clone())
    }

    /// Returns true once the listener is to finish: its connections are to end with their next
    /// response.
    pub(crate) fn closing(&self) -> bool {
        self.mode.get() != Mode::Open
    }

    /// Resolves once the listener is to finish.
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

    /// Takes over what a table says about connections of the listener.
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
