//! Endpoints: the instances of a service, as a worker sees them.

use std::net::SocketAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Names an instance of a service. No number is used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct EndpointId(pub u64);

/// One instance of a service, as a table describes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WireEndpoint {
    /// The number of the instance, which never changes.
    pub id: EndpointId,
    /// The address that the instance listens on.
    pub address: Address,
    /// The protocol that the worker speaks to the instance.
    #[serde(default)]
    pub protocol: Protocol,
    /// What the worker is to do with the instance.
    pub state: EndpointState,
    /// How the worker finds out whether the instance is ready, and later whether it is healthy.
    pub probe: Probe,
    /// How closely the worker checks the health of an active instance.
    #[serde(default)]
    pub check: HealthCheck,
}

/// How closely a worker checks the health of an active instance.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HealthCheck {
    /// The worker probes the instance now and then.
    #[default]
    Steady,
    /// The worker probes the instance often, because its rollout depends on the result.
    Close,
    /// As `Close`. The worker begins with a probe at once, and also reports its first decision if
    /// that is that the instance is healthy.
    Report,
}

/// The address that an instance listens on.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Address {
    /// An IP address and a TCP port.
    Tcp(SocketAddr),
    /// The path of a unix stream socket.
    Unix(PathBuf),
}

/// The protocol that a worker speaks to an instance.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// HTTP/1.1.
    #[default]
    Http1,
    /// HTTP/2 from the first byte, without TLS.
    H2c,
}

/// The part of an instance's life that concerns a worker. The state only ever moves down this list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum EndpointState {
    /// Started, not yet known to be ready: the worker probes the instance and sends it no request.
    Probing,
    /// The instance gets requests and health checks.
    Active,
    /// The instance gets no new request; the worker reports when it is idle. Nothing brings it
    /// back.
    Draining,
    /// As `Draining`, and the worker cuts off the tunnels to the instance.
    Cut,
}

/// How a worker asks an endpoint whether it is ready or healthy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Probe {
    /// A TCP or unix connection is accepted.
    Connect,
    /// `GET` of this path is answered with a status of 200 to 399.
    Http(String),
}

/// The counts of one endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointCounts {
    /// The endpoint.
    pub id: EndpointId,
    /// Requests that the instance is working on.
    pub in_flight: u32,
    /// Open tunnels to the instance.
    #[serde(default)]
    pub tunnels: u32,
    /// All requests that the instance was ever chosen for.
    pub requests: u64,
    /// How many of these requests failed: no connection, no response, or a broken response. A whole
    /// response is no failure, whatever its status.
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
