//! A route table as the worker uses it: checked once, compiled once, immutable, shared by all threads.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::endpoint::Spec;
use super::router::{Clash, Router};
use super::tls::{Certificates, Tls};
use crate::ipc::{self, CertificateId, EndpointId, EndpointState, Handling, ListenerId, Route};

/// All that a thread needs to know.
#[derive(Debug, Default)]
pub(crate) struct Table {
    pub(crate) number: u64,
    pub(crate) trusted_proxies: Vec<IpNet>,
    pub(crate) forwarded: bool,
    pub(crate) max_connections: Option<u32>,
    pub(crate) listeners: Vec<Listener>,
    /// Those that are the same in the table before, and of which nothing is drained, are shared with it.
    pub(crate) services: Vec<Arc<Service>>,
}

#[derive(Debug)]
pub(crate) struct Listener {
    pub(crate) id: ListenerId,
    pub(crate) address: SocketAddr,
    pub(crate) proxy_protocol: bool,
    /// What the router was made of.
    pub(crate) routes: Vec<Route>,
    /// Its services are indices into [`Table::services`].
    pub(crate) router: Arc<Router>,
    /// Its connections are TLS's.
    pub(crate) tls: Option<Tls>,
}

#[derive(Debug)]
pub(crate) struct Service {
    /// Unique in the table; it is the same service as one of that name in another table.
    pub(crate) name: String,
    pub(crate) running: bool,
    pub(crate) handling: Handling,
    pub(crate) endpoints: Vec<(Arc<Spec>, EndpointState)>,
}

/// Why a table cannot be used at all.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Fault {
    #[error("listener {0:?} was never received")]
    UnknownListener(ListenerId),
    #[error("certificate {0:?} was never received")]
    UnknownCertificate(CertificateId),
    #[error("listener {0:?} is named twice")]
    ListenerTwice(ListenerId),
    #[error("a route of listener {0:?} names a service that is not there")]
    UnknownService(ListenerId),
    #[error("service {0:?} is named twice")]
    ServiceTwice(String),
    #[error("endpoint {0:?} is named twice")]
    EndpointTwice(EndpointId),
    #[error(transparent)]
    Clash(#[from] Clash),
}

impl Table {
    /// Checks what the manager sent and makes it the successor of `self`. An endpoint goes on from where it was: its
    /// address stays, its counters go on, and its state only moves down.
    pub(crate) fn succeed(
        &self,
        table: ipc::Table,
        is_known: impl Fn(ListenerId) -> bool,
        certificates: &Certificates,
        threads: usize,
    ) -> Result<Table, Fault> {
        let mut listeners = Vec::with_capacity(table.listeners.len());
        let mut seen = HashSet::new();
        for listener in table.listeners {
            if !is_known(listener.id) {
                return Err(Fault::UnknownListener(listener.id));
            }
            if !seen.insert(listener.id) {
                return Err(Fault::ListenerTwice(listener.id));
            }
            let count = table.services.len();
            if listener.routes.iter().any(|route| route.service >= count) {
                return Err(Fault::UnknownService(listener.id));
            }
            let before = self.listeners.iter().find(|known| known.id == listener.id);
            let tls_before = before.and_then(|known| known.tls.as_ref());
            let tls = listener
                .tls
                .map(|ids| certificates.listener(ids, tls_before));
            let router = match before {
                Some(known) if known.routes == listener.routes => known.router.clone(),
                _ => Arc::new(Router::try_new(&listener.routes)?),
            };
            listeners.push(Listener {
                id: listener.id,
                address: listener.address,
                tls: tls.transpose().map_err(Fault::UnknownCertificate)?,
                proxy_protocol: listener.proxy_protocol,
                routes: listener.routes,
                router,
            });
        }
        Ok(Table {
            number: table.number,
            trusted_proxies: table.trusted_proxies,
            forwarded: table.forwarded,
            max_connections: table.max_connections,
            listeners,
            services: self.succeed_services(table.services, threads)?,
        })
    }

    fn succeed_services(
        &self,
        services: Vec<ipc::Service>,
        threads: usize,
    ) -> Result<Vec<Arc<Service>>, Fault> {
        let before: HashMap<EndpointId, _> = self
            .endpoints()
            .map(|(spec, state)| (spec.id, (spec, state)))
            .collect();
        let mut names = HashSet::new();
        let mut ids = HashSet::new();
        let mut result = Vec::with_capacity(services.len());
        for service in services {
            if !names.insert(service.name.clone()) {
                return Err(Fault::ServiceTwice(service.name));
            }
            let mut endpoints = Vec::with_capacity(service.endpoints.len());
            for endpoint in service.endpoints {
                if !ids.insert(endpoint.id) {
                    return Err(Fault::EndpointTwice(endpoint.id));
                }
                endpoints.push(match before.get(&endpoint.id) {
                    Some(&(spec, state)) => {
                        (spec.clone(), succeed_state(state, &endpoint, &service.name))
                    }
                    None => {
                        let ipc::Endpoint {
                            id,
                            address,
                            protocol,
                            state,
                            probe,
                        } = endpoint;
                        let spec = Spec::new(id, address, probe, threads).speaking(protocol);
                        (Arc::new(spec), state)
                    }
                });
            }
            let service = Service {
                name: service.name,
                running: service.running,
                handling: service.handling,
                endpoints,
            };
            // Most changes leave most services where they were.
            let before = self.services.get(result.len());
            result.push(match before {
                Some(before) if service.is_as(before) && !service.drains() => before.clone(),
                _ => Arc::new(service),
            });
        }
        Ok(result)
    }

    /// All endpoints of all services.
    pub(crate) fn endpoints(&self) -> impl Iterator<Item = (&Arc<Spec>, EndpointState)> {
        let services = self.services.iter();
        services.flat_map(|service| service.endpoints.iter().map(|(spec, state)| (spec, *state)))
    }

    /// The state of an endpoint, if the table has it.
    pub(crate) fn state(&self, id: EndpointId) -> Option<EndpointState> {
        self.endpoints()
            .find(|(spec, _)| spec.id == id)
            .map(|(_, state)| state)
    }
}

impl Service {
    fn is_as(&self, other: &Service) -> bool {
        self.name == other.name
            && self.running == other.running
            && self.handling == other.handling
            && self.endpoints.len() == other.endpoints.len()
            && self.endpoints.iter().zip(&other.endpoints).all(
                |((spec, state), (other_spec, other_state))| {
                    Arc::ptr_eq(spec, other_spec) && state == other_state
                },
            )
    }

    /// Whether the threads have to say when an endpoint of it is idle, which they do for each table.
    fn drains(&self) -> bool {
        let mut endpoints = self.endpoints.iter();
        endpoints.any(|(_, state)| *state >= EndpointState::Draining)
    }
}

fn succeed_state(before: EndpointState, endpoint: &ipc::Endpoint, service: &str) -> EndpointState {
    if endpoint.state < before {
        tracing::warn!(
            service,
            id = endpoint.id.0,
            state = ?endpoint.state,
            was = ?before,
            "instance was draining before, keeping it so"
        );
    }
    endpoint.state.max(before)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ipc::{Address, Host, Probe, Protocol, Route};

    fn endpoint(id: u64, state: EndpointState) -> ipc::Endpoint {
        ipc::Endpoint {
            id: EndpointId(id),
            address: Address::Unix(format!("/run/{id}").into()),
            state,
            protocol: Protocol::default(),
            probe: Probe::Connect,
        }
    }

    fn service(name: &str, endpoints: Vec<ipc::Endpoint>) -> ipc::Service {
        ipc::Service {
            name: name.to_owned(),
            running: true,
            handling: Handling::default(),
            endpoints,
        }
    }

    fn listener(id: u32, services: &[usize]) -> ipc::Listener {
        let route = |&service: &usize| Route {
            host: Host::Exact(format!("{service}.example")),
            path: "/".to_owned(),
            strip: 0,
            service,
        };
        ipc::Listener {
            id: ListenerId(id),
            address: ([127, 0, 0, 1], 80).into(),
            tls: None,
            proxy_protocol: false,
            routes: services.iter().map(route).collect(),
        }
    }

    fn table(listeners: Vec<ipc::Listener>, services: Vec<ipc::Service>) -> ipc::Table {
        ipc::Table {
            number: 1,
            listeners,
            services,
            ..ipc::Table::default()
        }
    }

    fn certificates() -> Certificates {
        Certificates::new().unwrap()
    }

    fn compile(table: ipc::Table) -> Result<Table, Fault> {
        Table::default().succeed(table, |id| id.0 < 10, &certificates(), 1)
    }

    #[test]
    fn a_table_that_contradicts_itself_is_refused() {
        let active = |id| endpoint(id, EndpointState::Active);
        let faults = [
            (
                table(vec![listener(10, &[])], vec![]),
                Fault::UnknownListener(ListenerId(10)),
            ),
            (
                table(vec![listener(1, &[]), listener(1, &[])], vec![]),
                Fault::ListenerTwice(ListenerId(1)),
            ),
            (
                table(vec![listener(1, &[0, 1])], vec![service("a", vec![])]),
                Fault::UnknownService(ListenerId(1)),
            ),
            (
                table(vec![], vec![service("a", vec![]), service("a", vec![])]),
                Fault::ServiceTwice("a".to_owned()),
            ),
            (
                table(
                    vec![],
                    vec![service("a", vec![active(1)]), service("b", vec![active(1)])],
                ),
                Fault::EndpointTwice(EndpointId(1)),
            ),
        ];
        for (table, fault) in faults {
            assert_eq!(compile(table).unwrap_err(), fault);
        }
        let clash = table(vec![listener(1, &[0, 0])], vec![service("a", vec![])]);
        assert!(matches!(compile(clash), Err(Fault::Clash(_))));
    }

    #[test]
    fn what_stays_the_same_is_shared_unless_something_of_it_is_drained() {
        use EndpointState::{Active, Draining};
        let tables = |state, hosts: &[usize]| {
            let others = vec![
                service("b", vec![endpoint(2, Active)]),
                service("c", vec![]),
            ];
            let services = [vec![service("a", vec![endpoint(1, state)])], others].concat();
            table(vec![listener(1, hosts)], services)
        };
        let succeed = |before: &Table, table| {
            let is_known = |_| true;
            before.succeed(table, is_known, &certificates(), 1).unwrap()
        };
        let shared = |before: &Table, after: &Table| {
            let services = before.services.iter().zip(&after.services);
            let services: Vec<bool> = services.map(|(a, b)| Arc::ptr_eq(a, b)).collect();
            let [before, after] = [before, after].map(|table| &table.listeners[0].router);
            (services, Arc::ptr_eq(before, after))
        };
        let first = succeed(&Table::default(), tables(Active, &[0, 1]));
        let second = succeed(&first, tables(Active, &[0, 1]));
        assert_eq!(shared(&first, &second), (vec![true, true, true], true));
        let third = succeed(&second, tables(Draining, &[1, 0]));
        assert_eq!(shared(&second, &third), (vec![false, true, true], false));
        let fourth = succeed(&third, tables(Draining, &[1, 0]));
        assert_eq!(shared(&third, &fourth), (vec![false, true, true], true));
    }

    #[test]
    fn an_endpoint_only_moves_down() {
        use EndpointState::{Active, Draining, Probing};
        let mut current = Table::default();
        for (sent, kept) in [
            (Probing, Probing),
            (Active, Active),
            (Probing, Active),
            (Draining, Draining),
            (Active, Draining),
            (Probing, Draining),
        ] {
            let next = table(vec![], vec![service("a", vec![endpoint(1, sent)])]);
            current = current
                .succeed(next, |_| false, &certificates(), 1)
                .unwrap();
            assert_eq!(current.state(EndpointId(1)), Some(kept), "after {sent:?}");
        }
    }

    #[test]
    fn an_endpoint_keeps_its_address_and_its_counters() {
        let first = table(
            vec![],
            vec![service("a", vec![endpoint(1, EndpointState::Active)])],
        );
        let first = compile(first).unwrap();
        let mut moved = endpoint(1, EndpointState::Active);
        moved.address = Address::Unix("/elsewhere".into());
        let second = table(vec![], vec![service("b", vec![moved])]);
        let second = first
            .succeed(second, |_| false, &certificates(), 1)
            .unwrap();
        let (before, _) = first.endpoints().next().unwrap();
        let (after, _) = second.endpoints().next().unwrap();
        assert!(Arc::ptr_eq(before, after));
    }
}
