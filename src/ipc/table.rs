//! The table: all that a worker knows of listeners and services, or what is different since another
//! table.

use std::cmp::Ordering;
use std::net::SocketAddr;
use std::sync::Arc;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::certificate::CertificateId;
use super::endpoint::{Address, WireEndpoint};
use super::handling::Handling;

/// All that a worker knows, or of the services only what is different since an earlier table.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WireTable {
    /// The number of the table, which grows. A worker ignores a table that is not newer than its
    /// own.
    pub number: u64,
    /// `services` and `removed` are the differences from the table of this number, which must be in
    /// use. Table 0 is empty, so the differences from table 0 are a whole table.
    #[serde(default)]
    pub since: u64,
    /// Peers whose `X-Forwarded-*` headers, and whose headers of the PROXY protocol, are trusted.
    pub trusted_proxies: Vec<IpNet>,
    /// True: `Forwarded`, too, tells instances who has sent a request.
    #[serde(default)]
    pub forwarded: bool,
    /// The most client connections of each listener at a time. `None`: as many as there can be.
    #[serde(default)]
    pub max_connections: Option<u32>,
    /// How many bytes of memory the worker may use before it takes measures. `None`: as many as it
    /// has found at its start.
    #[serde(default)]
    pub max_memory: Option<u64>,
    /// The log level of the worker, as text: a worker takes a table also if it does not understand
    /// the level in it. `None`, from a manager that knows of no levels: the worker keeps its own.
    #[serde(default)]
    pub log_level: Option<String>,
    /// All listeners. One that is missing here is closed; its connections end with their current
    /// request.
    pub listeners: Vec<WireListener>,
    /// The services that are new or different. In a whole table they are in the order of their
    /// names.
    pub services: Vec<Arc<WireService>>,
    /// The names of the services that are gone.
    #[serde(default)]
    pub removed: Vec<String>,
}

/// Names a listening socket for the life of a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ListenerId(pub u32);

/// One listener, a listening socket of the worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WireListener {
    /// The name of the socket, which was sent before.
    pub id: ListenerId,
    /// The address that the socket is bound to, for log messages.
    pub address: SocketAddr,
    /// The certificates of a listener with TLS, which were sent before. The first one is for
    /// clients that name no host or another one.
    pub tls: Option<Vec<CertificateId>>,
    /// True: each connection has to come from a trusted proxy and to begin with a header of the
    /// PROXY protocol.
    #[serde(default)]
    pub proxy_protocol: bool,
    /// True: each connection belongs to the listener of the table that has the address to which
    /// the client has connected, and is closed if there is none.
    #[serde(default)]
    pub passing: bool,
}

/// One service, as a table describes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WireService {
    /// The name. The same name in another table means the same service.
    pub name: String,
    /// False for a stopped service: its requests get 503 at once instead of being held.
    pub running: bool,
    /// What is done with the requests of the service.
    #[serde(default)]
    pub handling: Handling,
    /// The requests that the service gets. Of all routes of all services the longest host wins,
    /// then the longest path.
    pub routes: Vec<Route>,
    /// The instances of the service.
    pub endpoints: Vec<WireEndpoint>,
}

/// A route: the requests on one listener for one host and path prefix.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// One of the table's listeners.
    pub listener: ListenerId,
    /// The pattern of hosts.
    pub host: Host,
    /// The path prefix, which ends at a segment's end: `/api` is for `/api`, `/api/` and `/api/x`,
    /// not for `/apix`, and `/` is for all.
    pub path: String,
    /// How many bytes of `path`, from its beginning, the instance does not get.
    #[serde(default)]
    pub strip: usize,
}

/// A pattern of hosts, in lower case, without a port.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Host {
    /// One host, `a.example`.
    Exact(String),
    /// All hosts with at least one label before this one: `*.example`, here without the `*.`.
    Subdomain(String),
    /// Any host, `_`.
    Any,
}

impl WireTable {
    /// Lists the certificates of all listeners.
    pub fn certificates(&self) -> impl Iterator<Item = CertificateId> {
        let certificates = self.listeners.iter().flat_map(|listener| &listener.tls);
        certificates.flatten().copied()
    }

    /// Returns true if an instance of any service listens on a unix socket.
    pub fn has_unix_sockets(&self) -> bool {
        let mut endpoints = self.services.iter().flat_map(|service| &service.endpoints);
        endpoints.any(|endpoint| matches!(endpoint.address, Address::Unix(_)))
    }

    /// Returns what a worker that has `before`, another whole table, has to get of this one: the
    /// differences.
    pub fn changes_since(&self, before: &WireTable) -> WireTable {
        let mut changes = WireTable {
            since: before.number,
            services: Vec::new(),
            ..self.clone()
        };
        let (mut old, mut new) = (before.services.iter(), self.services.iter());
        let (mut was, mut is) = (old.next(), new.next());
        loop {
            let order = match (was, is) {
                (None, None) => return changes,
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (Some(was), Some(is)) if Arc::ptr_eq(was, is) => Ordering::Equal,
                (Some(was), Some(is)) => was.name.cmp(&is.name),
            };
            match (was, is) {
                (Some(was), _) if order.is_lt() => changes.removed.push(was.name.clone()),
                (Some(was), Some(is)) if order.is_eq() && was == is => {}
                (_, is) => changes.services.extend(is.cloned()),
            }
            if order.is_le() {
                was = old.next();
            }
            if order.is_ge() {
                is = new.next();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn whole(number: u64, services: &BTreeMap<String, bool>) -> WireTable {
        let service = |(name, running): (&String, &bool)| WireService {
            name: name.clone(),
            running: *running,
            handling: Handling::default(),
            routes: Vec::new(),
            endpoints: Vec::new(),
        };
        WireTable {
            number,
            services: services.iter().map(service).map(Arc::new).collect(),
            ..WireTable::default()
        }
    }

    proptest! {
        #[test]
        fn changes_name_what_is_different_and_nothing_else(
            before in proptest::collection::btree_map("[a-d]{1,2}", any::<bool>(), 0..8),
            after in proptest::collection::btree_map("[a-d]{1,2}", any::<bool>(), 0..8),
        ) {
            let changes = whole(2, &after).changes_since(&whole(1, &before));
            prop_assert_eq!((changes.number, changes.since), (2, 1));
            let mut applied = before.clone();
            for service in &changes.services {
                let was = applied.insert(service.name.clone(), service.running);
                prop_assert_ne!(was, Some(service.running));
            }
            for name in &changes.removed {
                prop_assert!(applied.remove(name).is_some());
            }
            prop_assert_eq!(applied, after);
        }
    }
}
