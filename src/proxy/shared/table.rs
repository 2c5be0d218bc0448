//! A route table as the worker uses it: checked once, compiled once, immutable, shared by all
//! threads.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::certificates::{ListenerCertificates, ListenerTls};
use super::in_flight::InFlight;
use super::router::{Clash, Router};
use super::spec::EndpointSpec;
use crate::ipc::{
    CertificateId, EndpointId, EndpointState, Handling, HealthCheck, ListenerId, Route,
    WireEndpoint, WireListener, WireService, WireTable,
};
use crate::proxy::policy::compiled::Policy;

/// A whole table: everything that a thread needs to know in order to serve.
#[derive(Debug, Default)]
pub(crate) struct Table {
    /// The number that the manager gave the table; a later table has a higher one.
    pub(crate) number: u64,
    /// Networks of the proxies that may say who their own clients are.
    pub(crate) trusted_proxies: Vec<IpNet>,
    /// True if instances learn about the client by `Forwarded`, too.
    pub(crate) forwarded: bool,
    /// How many client connections one listener may have; `None` if only the worker's own limit
    /// applies.
    pub(crate) max_connections: Option<u32>,
    /// How many bytes of memory the worker may use; `None` if only the worker's own limit applies.
    pub(crate) max_memory: Option<u64>,
    /// The listeners, in the order in which the manager names them.
    pub(crate) listeners: Vec<ListenerSpec>,
    /// The services, in the order of their names. Services that are the same in the table before,
    /// and of which nothing drains, are shared with that table.
    pub(crate) services: Vec<Arc<ServiceSpec>>,
    /// The place of every endpoint: the index of its service, and its index in the service.
    pub(crate) places: HashMap<EndpointId, (usize, usize)>,
}

/// A listener as a table describes it.
#[derive(Debug)]
pub(crate) struct ListenerSpec {
    /// The id by which the manager names the listener's socket.
    pub(crate) id: ListenerId,
    /// The address that the socket listens on, for log messages.
    pub(crate) address: SocketAddr,
    /// Connections of this listener begin with a header of the PROXY protocol.
    pub(crate) proxy_protocol: bool,
    /// Each connection belongs to the listener that has the address to which it was made.
    pub(crate) passing: bool,
    /// Finds the service of a request, as an index into [`Table::services`].
    pub(crate) router: Arc<Router>,
    /// The TLS configuration, if connections of this listener begin with a TLS handshake.
    pub(crate) tls: Option<ListenerTls>,
}

/// A service as a table describes it.
#[derive(Debug, Clone)]
pub(crate) struct ServiceSpec {
    /// The name, which is unique in the table. A service of the same name in another table is the
    /// same service.
    pub(crate) name: String,
    /// False for a service that was stopped: requests for it need not wait for an endpoint.
    pub(crate) running: bool,
    /// What is done with each request and response of the service.
    pub(crate) handling: Handling,
    /// The compiled rules of `handling` and `routes`; `None` if the service uses no rule.
    pub(crate) policy: Option<Policy>,
    /// The limit of requests in flight, if the service has one (`max_in_flight`).
    pub(crate) in_flight: Option<Arc<InFlight>>,
    /// The hosts and paths that the service serves.
    pub(crate) routes: Vec<Route>,
    /// The endpoints, one for each instance, with their states.
    pub(crate) endpoints: Vec<(Arc<EndpointSpec>, EndpointState)>,
    /// The endpoints whose health is not checked in the steady way, and how it is checked.
    checks: Vec<(EndpointId, HealthCheck)>,
}

/// The services that a table does not share with the one before it.
#[derive(Debug)]
pub(crate) struct TableDifference {
    /// True if both tables name the same services in the same places. Otherwise all services count
    /// as different.
    stay: bool,
    /// The services of the table before.
    pub(crate) before: Vec<Arc<ServiceSpec>>,
    /// The services of the new table, with their indices.
    pub(crate) now: Vec<(usize, Arc<ServiceSpec>)>,
}

/// Why a table cannot be used at all.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum TableFault {
    /// The table names only the difference from another table, and that table is not the one in
    /// use.
    #[error("it is made of table {0}, which is not in use")]
    OtherBefore(u64),
    /// The table names a listener whose socket was not received.
    #[error("listener {0:?} was never received")]
    UnknownListener(ListenerId),
    /// A listener names a certificate that was not received.
    #[error("certificate {0:?} was never received")]
    UnknownCertificate(CertificateId),
    /// The table names a listener twice.
    #[error("listener {0:?} is named twice")]
    ListenerTwice(ListenerId),
    /// A route belongs to a listener that the table does not name.
    #[error("a route names listener {0:?}, which is not there")]
    RouteWithoutListener(ListenerId),
    /// The table names a service twice.
    #[error("service {0:?} is named twice")]
    ServiceTwice(String),
    /// Two services name the same endpoint, or one service names an endpoint twice.
    #[error("endpoint {0:?} is named twice")]
    EndpointTwice(EndpointId),
    /// Two routes of one listener are for the same host and path.
    #[error(transparent)]
    Clash(#[from] Clash),
}

impl Table {
    /// Checks a table that the manager sent, and compiles it to the successor of `self`. An
    /// endpoint that is in both tables keeps its address and its counters, and its state never
    /// moves back, for example from draining to active.
    pub(crate) fn succeed(
        &self,
        table: WireTable,
        is_known: impl Fn(ListenerId) -> bool,
        certificates: &ListenerCertificates,
        threads: usize,
    ) -> Result<Table, TableFault> {
        if table.since != 0 && table.since != self.number {
            return Err(TableFault::OtherBefore(table.since));
        }
        let mut successor = Table {
            number: table.number,
            trusted_proxies: table.trusted_proxies,
            forwarded: table.forwarded,
            max_connections: table.max_connections,
            max_memory: table.max_memory,
            listeners: Vec::with_capacity(table.listeners.len()),
            services: match table.since {
                0 => Vec::with_capacity(table.services.len()),
                _ => self.services.clone(),
            },
            places: HashMap::new(),
        };
        successor.take_over_services(self, table.services, &table.removed, threads)?;
        let difference = successor.difference_from(self);
        successor.places = successor.places(self, &difference)?;
        let mut routers = successor.routers(self, &table.listeners, &difference)?;
        for listener in table.listeners {
            let Some(router) = routers.remove(&listener.id) else {
                return Err(TableFault::ListenerTwice(listener.id));
            };
            if !is_known(listener.id) {
                return Err(TableFault::UnknownListener(listener.id));
            }
            let tls_before = self.listener(listener.id);
            let tls_before = tls_before.and_then(|known| known.tls.as_ref());
            let tls = listener
                .tls
                .map(|ids| certificates.listener(ids, tls_before));
            successor.listeners.push(ListenerSpec {
                id: listener.id,
                address: listener.address,
                tls: tls.transpose().map_err(TableFault::UnknownCertificate)?,
                proxy_protocol: listener.proxy_protocol,
                passing: listener.passing,
                router,
            });
        }
        Ok(successor)
    }

    /// Inserts the services that are different, and replaces services that drain by copies: for
    /// these, the threads must report for each table when the endpoints are idle.
    fn take_over_services(
        &mut self,
        before: &Table,
        changed: Vec<Arc<WireService>>,
        removed: &[String],
        threads: usize,
    ) -> Result<(), TableFault> {
        for name in removed {
            if let Ok(index) = self.find(name) {
                self.services.remove(index);
            }
        }
        for service in self.services.iter_mut().filter(|service| service.drains()) {
            *service = Arc::new((**service).clone());
        }
        let mut names = HashSet::with_capacity(changed.len());
        for service in changed {
            if !names.insert(service.name.clone()) {
                return Err(TableFault::ServiceTwice(service.name.clone()));
            }
            let service = before.successor_of(Arc::unwrap_or_clone(service), threads);
            match self.find(&service.name) {
                Ok(index) => self.services[index] = service,
                Err(index) => self.services.insert(index, service),
            }
        }
        Ok(())
    }

    /// Compiles a service of the next table. Returns the service of this table if nothing in it is
    /// different.
    fn successor_of(&self, service: WireService, threads: usize) -> Arc<ServiceSpec> {
        let checks = service.endpoints.iter();
        let checks = checks.map(|endpoint| (endpoint.id, endpoint.check));
        let checks = checks.filter(|(_, check)| *check != HealthCheck::Steady);
        let checks = checks.collect();
        let endpoints = service.endpoints.into_iter().map(|endpoint| {
            if let Some((spec, state)) = self.endpoint(endpoint.id) {
                return (spec.clone(), succeed_state(state, &endpoint, &service.name));
            }
            let WireEndpoint {
                id,
                address,
                protocol,
                state,
                probe,
                check: _,
            } = endpoint;
            let spec = EndpointSpec::new(id, address, probe, threads).speaking(protocol);
            (Arc::new(spec), state)
        });
        let endpoints = endpoints.collect();
        let before = self.find(&service.name).map(|index| &self.services[index]);
        let limit = service.handling.max_in_flight.map(|most| {
            let known = before.ok().and_then(|before| before.in_flight.clone());
            known.unwrap_or_else(|| InFlight::new(most))
        });
        let service = ServiceSpec {
            in_flight: limit,
            name: service.name,
            running: service.running,
            handling: service.handling,
            policy: Policy::compile(&service.handling, &service.routes),
            routes: service.routes,
            endpoints,
            checks,
        };
        match before {
            Ok(before) if service.is_as(before) && !service.drains() => before.clone(),
            _ => Arc::new(service),
        }
    }

    /// Finds the services that the table does not share with the one before it.
    pub(crate) fn difference_from(&self, before: &Table) -> TableDifference {
        let pairs = || before.services.iter().zip(&self.services);
        let stays = |(was, is): (&Arc<ServiceSpec>, &Arc<ServiceSpec>)| {
            Arc::ptr_eq(was, is) || was.name == is.name
        };
        let stay = before.services.len() == self.services.len() && pairs().all(stays);
        let mut difference = TableDifference {
            stay,
            before: Vec::new(),
            now: Vec::new(),
        };
        if !stay {
            difference.before.clone_from(&before.services);
            difference.now = self.services.iter().cloned().enumerate().collect();
            return difference;
        }
        for (index, (was, is)) in pairs().enumerate() {
            if !Arc::ptr_eq(was, is) {
                difference.before.push(was.clone());
                difference.now.push((index, is.clone()));
            }
        }
        difference
    }

    /// Finds the places of all endpoints, from those of the table before.
    fn places(
        &self,
        before: &Table,
        difference: &TableDifference,
    ) -> Result<HashMap<EndpointId, (usize, usize)>, TableFault> {
        let mut places = HashMap::new();
        if difference.stay {
            places.clone_from(&before.places);
            for service in &difference.before {
                for (spec, _) in &service.endpoints {
                    places.remove(&spec.id);
                }
            }
        }
        for (index, service) in &difference.now {
            for (inner, (spec, _)) in service.endpoints.iter().enumerate() {
                if places.insert(spec.id, (*index, inner)).is_some() {
                    return Err(TableFault::EndpointTwice(spec.id));
                }
            }
        }
        Ok(places)
    }

    /// Makes the routers of the listeners. Whatever is not different is shared with the routers of
    /// `before`.
    fn routers(
        &self,
        before: &Table,
        listeners: &[WireListener],
        difference: &TableDifference,
    ) -> Result<HashMap<ListenerId, Arc<Router>>, TableFault> {
        let known = before.listeners.iter().map(|listener| listener.id);
        let stay = difference.stay && known.eq(listeners.iter().map(|listener| listener.id));
        if !stay {
            let mut routers = HashMap::with_capacity(listeners.len());
            routers.extend(
                listeners
                    .iter()
                    .map(|listener| (listener.id, Arc::default())),
            );
            insert(&mut routers, self.services.iter().enumerate())?;
            return Ok(routers);
        }
        let known = before.listeners.iter();
        let mut routers = known
            .map(|known| (known.id, known.router.clone()))
            .collect();
        let pairs = difference.before.iter().zip(&difference.now);
        let rerouted = pairs.filter(|(was, (_, is))| was.routes != is.routes);
        let rerouted: Vec<_> = rerouted.collect();
        for (was, _) in &rerouted {
            remove(&mut routers, was);
        }
        let now = rerouted.iter().map(|(_, (index, is))| (*index, is));
        insert(&mut routers, now)?;
        Ok(routers)
    }

    /// Returns the index of the service with this name, or as an error the index where it would be
    /// inserted.
    fn find(&self, name: &str) -> Result<usize, usize> {
        self.services
            .binary_search_by(|service| service.name.as_str().cmp(name))
    }

    fn listener(&self, id: ListenerId) -> Option<&ListenerSpec> {
        self.listeners.iter().find(|listener| listener.id == id)
    }

    fn endpoint(&self, id: EndpointId) -> Option<(&Arc<EndpointSpec>, EndpointState)> {
        let &(service, index) = self.places.get(&id)?;
        let (spec, state) = &self.services[service].endpoints[index];
        Some((spec, *state))
    }

    /// Returns all endpoints of all services, with their states.
    pub(crate) fn endpoints(&self) -> impl Iterator<Item = (&Arc<EndpointSpec>, EndpointState)> {
        let services = self.services.iter();
        services.flat_map(|service| service.endpoints.iter().map(|(spec, state)| (spec, *state)))
    }

    /// Returns how closely the health of an endpoint is checked.
    pub(crate) fn check(&self, id: EndpointId) -> HealthCheck {
        let place = self.places.get(&id);
        place.map_or(HealthCheck::Steady, |&(service, _)| {
            self.services[service].check(id)
        })
    }

    /// Returns the state of an endpoint, if the table names the endpoint.
    pub(crate) fn state(&self, id: EndpointId) -> Option<EndpointState> {
        self.endpoint(id).map(|(_, state)| state)
    }
}

impl ServiceSpec {
    /// Returns true if both specs describe the service in the same way.
    fn is_as(&self, other: &ServiceSpec) -> bool {
        self.name == other.name
            && self.running == other.running
            && self.handling == other.handling
            && self.routes == other.routes
            && self.checks == other.checks
            && self.endpoints.len() == other.endpoints.len()
            && self.endpoints.iter().zip(&other.endpoints).all(
                |((spec, state), (other_spec, other_state))| {
                    Arc::ptr_eq(spec, other_spec) && state == other_state
                },
            )
    }

    /// Returns how closely the health of an endpoint of the service is checked.
    fn check(&self, id: EndpointId) -> HealthCheck {
        let mut checks = self.checks.iter();
        let found = checks.find(|(checked, _)| *checked == id);
        found.map_or(HealthCheck::Steady, |&(_, check)| check)
    }

    /// Returns true if an endpoint of the service drains, so that the threads must report for each
    /// table when the endpoint is idle.
    fn drains(&self) -> bool {
        let mut endpoints = self.endpoints.iter();
        endpoints.any(|(_, state)| *state >= EndpointState::Draining)
    }
}

fn insert<'a>(
    routers: &mut HashMap<ListenerId, Arc<Router>>,
    services: impl Iterator<Item = (usize, &'a Arc<ServiceSpec>)>,
) -> Result<(), TableFault> {
    for (index, service) in services {
        for route in &service.routes {
            let router = routers.get_mut(&route.listener);
            let router = router.ok_or(TableFault::RouteWithoutListener(route.listener))?;
            Arc::make_mut(router).insert(index, route)?;
        }
    }
    Ok(())
}

fn remove(routers: &mut HashMap<ListenerId, Arc<Router>>, service: &ServiceSpec) {
    for route in &service.routes {
        if let Some(router) = routers.get_mut(&route.listener) {
            Arc::make_mut(router).remove(route);
        }
    }
}

fn succeed_state(before: EndpointState, endpoint: &WireEndpoint, service: &str) -> EndpointState {
    if endpoint.state < before {
        tracing::warn!(
            service,
            id = endpoint.id.0,
            state = ?endpoint.state,
            was = ?before,
            "table tries to end the draining of an instance, ignored"
        );
    }
    endpoint.state.max(before)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::ipc::{Address, Host, Probe, Protocol, Route};

    fn endpoint(id: u64, state: EndpointState) -> WireEndpoint {
        WireEndpoint {
            id: EndpointId(id),
            address: Address::Unix(format!("/run/{id}").into()),
            state,
            protocol: Protocol::default(),
            probe: Probe::Connect,
            check: HealthCheck::Steady,
        }
    }

    /// Makes a service with one host on the first listener.
    fn service(name: &str, endpoints: Vec<WireEndpoint>) -> WireService {
        at(&format!("{name}.example"), name, endpoints)
    }

    fn at(host: &str, name: &str, endpoints: Vec<WireEndpoint>) -> WireService {
        WireService {
            name: name.to_owned(),
            running: true,
            handling: Handling::default(),
            routes: vec![Route {
                listener: ListenerId(1),
                host: Host::Exact(host.to_owned()),
                path: "/".to_owned(),
                strip: 0,
            }],
            endpoints,
        }
    }

    fn listener(id: u32) -> WireListener {
        WireListener {
            id: ListenerId(id),
            address: ([127, 0, 0, 1], 80).into(),
            tls: None,
            proxy_protocol: false,
            passing: false,
        }
    }

    fn table(listeners: Vec<WireListener>, services: Vec<WireService>) -> WireTable {
        WireTable {
            number: 1,
            listeners,
            services: services.into_iter().map(Arc::new).collect(),
            ..WireTable::default()
        }
    }

    /// Makes a table with these services and the first listener.
    fn of(services: Vec<WireService>) -> WireTable {
        table(vec![listener(1)], services)
    }

    fn certificates() -> ListenerCertificates {
        ListenerCertificates::new().unwrap()
    }

    fn succeed(before: &Table, table: WireTable) -> Result<Table, TableFault> {
        before.succeed(table, |id| id.0 < 10, &certificates(), 1)
    }

    fn compile(table: WireTable) -> Result<Table, TableFault> {
        succeed(&Table::default(), table)
    }

    /// Makes some of five services, each with one of two hosts and some of three endpoints of its
    /// own.
    fn services() -> impl Strategy<Value = Vec<WireService>> {
        let state = prop_oneof![
            Just(EndpointState::Probing),
            Just(EndpointState::Active),
            Just(EndpointState::Draining),
        ];
        let one = (
            any::<bool>(),
            proptest::collection::btree_map(0..3_u64, state, 0..=3),
        );
        proptest::collection::btree_map(0..5_u64, one, 0..=5).prop_map(|services| {
            let service = |(number, (other, endpoints)): (u64, (bool, BTreeMap<u64, _>))| {
                let endpoints = endpoints.into_iter();
                let endpoints = endpoints.map(|(id, state)| endpoint(number * 3 + id, state));
                at(
                    &host(number, other),
                    &format!("s{number}"),
                    endpoints.collect(),
                )
            };
            services.into_iter().map(service).collect()
        })
    }

    fn host(service: u64, other: bool) -> String {
        format!("{other}.{service}.example")
    }

    proptest! {
        #[test]
        fn changes_come_to_the_same_as_whole_tables(
            tables in proptest::collection::vec(services(), 1..6)
        ) {
            let (mut by_wholes, mut by_changes) = (Table::default(), Table::default());
            let mut last = WireTable::default();
            for (services, number) in tables.into_iter().zip(1..) {
                let whole = WireTable { number, ..of(services) };
                by_changes = succeed(&by_changes, whole.changes_since(&last)).unwrap();
                by_wholes = succeed(&by_wholes, whole.clone()).unwrap();
                last = whole;
                let [one, other] = [&by_wholes, &by_changes].map(|table| {
                    let names = table.services.iter().map(|service| service.name.clone());
                    let states = (0..15).map(|id| table.state(EndpointId(id)));
                    let hosts = (0..10).map(|n| host(n / 2, n % 2 == 0));
                    let found = hosts.map(|host| find(table, &host).map(str::to_owned));
                    let lists: (Vec<_>, Vec<_>, Vec<_>) =
                        (names.collect(), states.collect(), found.collect());
                    lists
                });
                prop_assert_eq!(one, other);
            }
        }
    }

    /// Returns the name of the service that serves a host on the first listener.
    fn find<'a>(table: &'a Table, host: &str) -> Option<&'a str> {
        let router = &table.listeners[0].router;
        let found = router.find(host.as_bytes(), b"/").unwrap()?;
        Some(&table.services[found.service].name)
    }

    #[test]
    fn a_table_that_contradicts_itself_is_refused() {
        let active = |id| endpoint(id, EndpointState::Active);
        let faults = [
            (
                table(vec![listener(10)], vec![]),
                TableFault::UnknownListener(ListenerId(10)),
            ),
            (
                table(vec![listener(1), listener(1)], vec![]),
                TableFault::ListenerTwice(ListenerId(1)),
            ),
            (
                table(vec![listener(2)], vec![service("a", vec![])]),
                TableFault::RouteWithoutListener(ListenerId(1)),
            ),
            (
                of(vec![service("a", vec![]), service("a", vec![])]),
                TableFault::ServiceTwice("a".to_owned()),
            ),
            (
                of(vec![
                    service("a", vec![active(1)]),
                    service("b", vec![active(1)]),
                ]),
                TableFault::EndpointTwice(EndpointId(1)),
            ),
            (
                WireTable {
                    since: 7,
                    ..table(vec![], vec![])
                },
                TableFault::OtherBefore(7),
            ),
        ];
        for (table, fault) in faults {
            assert_eq!(compile(table).unwrap_err(), fault);
        }
        let clash = of(vec![
            at("x.example", "a", vec![]),
            at("x.example", "b", vec![]),
        ]);
        assert!(matches!(compile(clash), Err(TableFault::Clash(_))));
    }

    #[test]
    fn what_stays_the_same_is_shared_unless_something_of_it_is_drained() {
        use EndpointState::{Active, Draining};
        let tables = |state, host: &str| {
            of(vec![
                at(host, "a", vec![endpoint(1, state)]),
                service("b", vec![endpoint(2, Active)]),
                service("c", vec![]),
            ])
        };
        let shared = |before: &Table, after: &Table| {
            let services = before.services.iter().zip(&after.services);
            let services: Vec<bool> = services.map(|(a, b)| Arc::ptr_eq(a, b)).collect();
            let [before, after] = [before, after].map(|table| &table.listeners[0].router);
            (services, Arc::ptr_eq(before, after))
        };
        let first = compile(tables(Active, "x.example")).unwrap();
        let second = succeed(&first, tables(Active, "x.example")).unwrap();
        assert_eq!(shared(&first, &second), (vec![true, true, true], true));
        let third = succeed(&second, tables(Draining, "y.example")).unwrap();
        assert_eq!(shared(&second, &third), (vec![false, true, true], false));
        let fourth = succeed(&third, tables(Draining, "y.example")).unwrap();
        assert_eq!(shared(&third, &fourth), (vec![false, true, true], true));
        let nothing_else = WireTable {
            number: 2,
            since: 1,
            ..of(vec![])
        };
        let fifth = succeed(&fourth, nothing_else).unwrap();
        assert_eq!(shared(&fourth, &fifth), (vec![false, true, true], true));
    }

    #[test]
    fn a_table_of_changes_leaves_the_rest_as_it_was() {
        let active = |id| vec![endpoint(id, EndpointState::Active)];
        let first = of(vec![
            service("b", active(1)),
            service("d", active(2)),
            service("e", vec![]),
        ]);
        let first = compile(first).unwrap();
        let changes = WireTable {
            number: 2,
            since: 1,
            removed: vec!["e".to_owned(), "never-was".to_owned()],
            ..of(vec![
                service("c", vec![]),
                at("moved.example", "d", active(2)),
            ])
        };
        let second = succeed(&first, changes).unwrap();
        let names = second.services.iter().map(|service| &*service.name);
        assert!(names.eq(["b", "c", "d"]));
        assert_eq!(find(&second, "b.example"), Some("b"));
        assert_eq!(find(&second, "c.example"), Some("c"));
        assert_eq!(find(&second, "moved.example"), Some("d"));
        assert_eq!(find(&second, "d.example"), None);
        assert_eq!(find(&second, "e.example"), None);
        assert_eq!(second.state(EndpointId(2)), Some(EndpointState::Active));
        let empty = WireTable {
            number: 3,
            ..table(vec![], vec![])
        };
        let third = succeed(&second, empty).unwrap();
        assert!(third.services.is_empty() && third.state(EndpointId(2)).is_none());
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
            let next = of(vec![service("a", vec![endpoint(1, sent)])]);
            current = succeed(&current, next).unwrap();
            assert_eq!(current.state(EndpointId(1)), Some(kept), "after {sent:?}");
        }
    }

    #[test]
    fn an_endpoint_keeps_its_address_and_its_counters() {
        let first = service("a", vec![endpoint(1, EndpointState::Active)]);
        let first = compile(of(vec![first])).unwrap();
        let mut moved = endpoint(1, EndpointState::Active);
        moved.address = Address::Unix("/elsewhere".into());
        let second = succeed(&first, of(vec![service("b", vec![moved])])).unwrap();
        let (before, _) = first.endpoints().next().unwrap();
        let (after, _) = second.endpoints().next().unwrap();
        assert!(Arc::ptr_eq(before, after));
    }
}
