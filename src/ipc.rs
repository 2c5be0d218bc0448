//! What the manager and the proxy worker say to each other.
//!
//! The manager sends numbered, declarative route tables: a whole one first on every connection, and from then on what is
//! different in the next one. The worker answers with acknowledgements, probe results, idleness and counts. Sending a
//! whole table again is harmless, so after any interruption both sides just go on.
//!
//! # Quiescence
//! An endpoint goes `Active → Draining` in some table. The worker reports [`FromWorker::Idle`] for it when every
//! worker thread uses that table or a newer one, has closed its idle upstream connections to the endpoint, and has
//! no request in flight on it. From then on no connection to the instance is open or can be opened, so stopping it
//! cannot lose a request. Only tunnels may be left; there will be no more of them, and how many there are is said in
//! [`FromWorker::Counts`] before.

mod channel;
mod handling;
mod table;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use channel::{Channel, ChannelError, Receiver, Sender};
pub use handling::Handling;
pub use table::{Host, Route, WireListener, WireService, WireTable};

/// A message from the manager to a worker.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum ToWorker {
    /// A listening socket, sent with its file descriptor before the first table that names it.
    Listener(ListenerId),
    /// A certificate with its key, sent before the first table that names it. A worker forgets one that the table it takes
    /// does not name.
    Certificate(WireCertificate),
    /// The table to use from now on.
    Table(WireTable),
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
    /// The table of this number cannot be used, and is not. The next one has to be whole.
    Refused(u64),
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
pub struct WireCertificate {
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

/// One instance of a service as the worker sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WireEndpoint {
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
