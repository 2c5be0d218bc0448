//! The route table.

use std::cmp::Ordering;
use std::net::SocketAddr;
use std::sync::Arc;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::{CertificateId, Handling, ListenerId, WireEndpoint};

/// All that a worker knows, or of its services only what is different since an earlier table.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WireTable {
    /// Grows with each table; a worker ignores one that is not newer than what it has.
    pub number: u64,
    /// `services` and `removed` are the differences from the table of this number, which must be in use. There is nothing
    /// in table 0, so a table with its differences from that is whole.
    #[serde(default)]
    pub since: u64,
    /// Peers whose `X-Forwarded-*` headers, and whose headers of the PROXY protocol, are believed.
    pub trusted_proxies: Vec<IpNet>,
    /// Whether instances are told by `Forwarded`, too, who has sent a request.
    #[serde(default)]
    pub forwarded: bool,
    /// Client connections of each listener at a time. `None`: as many as there can be.
    #[serde(default)]
    pub max_connections: Option<u32>,
    /// All that is accepted on. A listener that is missing here is closed; its connections end with their current request.
    pub listeners: Vec<WireListener>,
    /// Services that are new or others than they were. In a whole table they are in the order of their names.
    pub services: Vec<Arc<WireService>>,
    /// The names of services that are no more.
    #[serde(default)]
    pub removed: Vec<String>,
}

/// One listening socket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WireListener {
    /// The socket, sent before.
    pub id: ListenerId,
    /// The address it is bound to, for messages.
    pub address: SocketAddr,
    /// With TLS: the certificates, sent before, the first of which is for clients that name no host or another one.
    pub tls: Option<Vec<CertificateId>>,
    /// Whether each connection has to come from a trusted proxy and to begin with a header of the PROXY protocol.
    #[serde(default)]
    pub proxy_protocol: bool,
}

/// One service as the worker sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WireService {
    /// Its name: it is the same service as one of that name in another table.
    pub name: String,
    /// False for a service that was stopped: its requests get 503 at once instead of being held.
    pub running: bool,
    /// How its requests are treated.
    #[serde(default)]
    pub handling: Handling,
    /// The requests that are for it. Of all routes of all services the longest host wins, then the longest path.
    pub routes: Vec<Route>,
    /// Its instances.
    pub endpoints: Vec<WireEndpoint>,
}

/// Requests to this listener for this host and path prefix.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// One of those of the table.
    pub listener: ListenerId,
    /// The host.
    pub host: Host,
    /// A prefix on segment borders, `/` for all: `/api` is for `/api`, `/api/` and `/api/x`, not for `/apix`.
    pub path: String,
    /// So many bytes of `path`, from its beginning, are not for the instance to know.
    #[serde(default)]
    pub strip: usize,
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

impl WireTable {
    /// All that its listeners need.
    pub fn certificates(&self) -> impl Iterator<Item = CertificateId> {
        let certificates = self.listeners.iter().flat_map(|listener| &listener.tls);
        certificates.flatten().copied()
    }

    /// What is to be sent of this whole table to a worker that has got `before`, another whole table.
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
