//! What the manager and the proxy worker say to each other.
//!
//! The manager sends whole, numbered, declarative route tables; the worker answers with acknowledgements, probe
//! results, idleness and counts. Sending a table again is harmless, so after any interruption both sides just go on.
//!
//! # Quiescence
//! An endpoint goes `Active → Draining` in some table. The worker reports [`FromWorker::Idle`] for it when every
//! worker thread uses that table or a newer one, has closed its idle upstream connections to the endpoint, and has
//! no request in flight on it. From then on no connection to the instance is open or can be opened, so stopping it
//! cannot lose a request. Only tunnels may be left; there will be no more of them, and how many there are is said in
//! [`FromWorker::Counts`] before.

mod channel;
mod handling;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

pub use channel::{Channel, ChannelError, Receiver, Sender};
pub use handling::Handling;

/// A message from the manager to a worker.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum ToWorker {
    /// A listening socket, sent with its file descriptor before the first table that names it.
    Listener(ListenerId),
    /// A certificate with its key, sent before the first table that names it. A worker forgets one that the table it takes
    /// does not name.
    Certificate(Certificate),
    /// The whole table to use from now on.
    Table(Table),
    /// Accept nothing more, serve what was accepted, then exit with status 0.
    Drain {
        /// How long idle client connections may wait for their next request, which is answered with
        /// `Connection: close`, before they are closed.
        idle: Duration,
        /// After this time whatever is left is cut off, unless there are tunnels.
        limit: Duration,
        /// After this time they are cut off, too.
        #[serde(default)]
        tunnels: Duration,
    },
    /// To be answered with [`FromWorker::Pong`] of the same number once every thread has seen it.
    Ping(u64),
}

/// A message from a worker to the manager. The manager trusts none of it: every message is bounded in size, and one
/// about an unknown table or endpoint is ignored.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum FromWorker {
    /// The first message on every connection.
    Hello {
        /// `CARGO_PKG_VERSION` of the worker.
        version: String,
    },
    /// All threads use the table of this number.
    Acknowledged(u64),
    /// The answer of one probe of an endpoint that is [`EndpointState::Probing`]: sent for the first success and for
    /// each failure before it.
    Probed {
        /// The endpoint.
        endpoint: EndpointId,
        /// What went wrong, as a person wants to read it: `connect to 127.0.0.1:9001: connection refused`,
        /// `GET /health: status 503`.
        result: Result<(), String>,
    },
    /// The steady health check took an active endpoint out of the balance or put it back.
    Health {
        /// The endpoint.
        endpoint: EndpointId,
        /// `None`: healthy again. Otherwise the last failure, in words.
        fault: Option<String>,
    },
    /// A draining endpoint has become quiescent.
    Idle(EndpointId),
    /// Draining, the worker has nothing left but tunnels.
    OnlyTunnels,
    /// Counters, sent at most five times a second and only while they change.
    Counts {
        /// Open client connections.
        connections: u32,
        /// All endpoints of the table.
        endpoints: Vec<EndpointCounts>,
    },
    /// No thread is stuck.
    Pong(u64),
}

/// Names a listening socket for the life of a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ListenerId(pub u32);

/// Names an instance of a service, never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct EndpointId(pub u64);

/// Names a certificate and its key by their digest: another content is another certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct CertificateId(pub [u8; 32]);

/// A certificate as a worker gets it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Certificate {
    /// Its name.
    pub id: CertificateId,
    /// The hosts that it is for, in lower case, also `*.example`.
    pub names: Vec<String>,
    /// DER, the server's own first.
    pub chain: Vec<Vec<u8>>,
    /// DER.
    pub key: Secret,
}

/// Bytes that are never shown.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Secret(pub Vec<u8>);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret")
    }
}

/// All that a worker knows.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Table {
    /// Grows with each table; a worker ignores one that is not newer than what it has.
    pub number: u64,
    /// Peers whose `X-Forwarded-*` headers, and whose headers of the PROXY protocol, are believed.
    pub trusted_proxies: Vec<IpNet>,
    /// Whether instances are told by `Forwarded`, too, who has sent a request.
    #[serde(default)]
    pub forwarded: bool,
    /// Client connections of each listener at a time. `None`: as many as there can be.
    #[serde(default)]
    pub max_connections: Option<u32>,
    /// What to accept on. A listener that is missing here is closed; its connections end with their current request.
    pub listeners: Vec<Listener>,
    /// The services, in the order that [`Route::service`] counts them.
    pub services: Vec<Service>,
}

impl Table {
    /// All that its listeners need.
    pub fn certificates(&self) -> impl Iterator<Item = CertificateId> {
        let certificates = self.listeners.iter().flat_map(|listener| &listener.tls);
        certificates.flatten().copied()
    }
}

/// One listening socket and what is behind it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Listener {
    /// The socket, sent before.
    pub id: ListenerId,
    /// The address it is bound to, for messages.
    pub address: SocketAddr,
    /// With TLS: the certificates, sent before, the first of which is for clients that name no host or another one.
    pub tls: Option<Vec<CertificateId>>,
    /// Whether each connection has to come from a trusted proxy and to begin with a header of the PROXY protocol.
    #[serde(default)]
    pub proxy_protocol: bool,
    /// Unordered; the longest host, then the longest path wins.
    pub routes: Vec<Route>,
}

/// Requests for this host and path prefix go to this service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// The host.
    pub host: Host,
    /// A prefix on segment borders, `/` for all: `/api` is for `/api`, `/api/` and `/api/x`, not for `/apix`.
    pub path: String,
    /// So many bytes of `path`, from its beginning, are not for the instance to know.
    #[serde(default)]
    pub strip: usize,
    /// Index into [`Table::services`].
    pub service: usize,
}

/// A host pattern, in lower case, without a port.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Host {
    /// `a.example`
    Exact(String),
    /// `*.example`, here without the `*.`: any host with at least one label before it.
    Subdomain(String),
    /// `_`
    Any,
}

/// One service as the worker sees it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Service {
    /// Its name, for messages.
    pub name: String,
    /// False for a service that was stopped: its requests get 503 at once instead of being held.
    pub running: bool,
    /// How its requests are treated.
    #[serde(default)]
    pub handling: Handling,
    /// Its instances.
    pub endpoints: Vec<Endpoint>,
}

/// One instance of a service as the worker sees it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Endpoint {
    /// Its name for ever.
    pub id: EndpointId,
    /// Where it listens.
    pub address: Address,
    /// What it speaks.
    #[serde(default)]
    pub protocol: Protocol,
    /// What to do with it.
    pub state: EndpointState,
    /// How to ask it whether it is ready, and later whether it is healthy.
    pub probe: Probe,
}

/// Where an instance listens.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Address {
    /// TCP.
    Tcp(SocketAddr),
    /// A unix stream socket.
    Unix(PathBuf),
}

/// What an instance speaks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// HTTP/1.1.
    #[default]
    Http1,
    /// HTTP/2 from the first byte, without TLS.
    H2c,
}

/// The part of an instance's life that the worker takes part in. It only ever moves down this list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum EndpointState {
    /// Started, not yet known to be ready: probe it, send it no request.
    Probing,
    /// Gets requests and health checks.
    Active,
    /// Gets no new request; report when it is idle. Nothing brings it back.
    Draining,
    /// The same, and tunnels to it are cut off.
    Cut,
}

/// How an endpoint is asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Probe {
    /// A TCP or unix connection is accepted.
    Connect,
    /// `GET` of this path is answered with a status of 200 to 399.
    Http(String),
}

/// The figures of one endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointCounts {
    /// The endpoint.
    pub id: EndpointId,
    /// Requests that it is working on.
    pub in_flight: u32,
    /// Tunnels to it.
    #[serde(default)]
    pub tunnels: u32,
    /// Requests that it was chosen for, ever.
    pub requests: u64,
    /// Of those, the ones that it failed (no connection, no or a broken response).
    pub failures: u64,
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Address::Tcp(address) => address.fmt(f),
            Address::Unix(path) => path.display().fmt(f),
        }
    }
}
