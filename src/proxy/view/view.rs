//! A data thread's own view of the table.
//!
//! # Theory of operation
//! A table is shared by all threads and never changes. What changes while it is in use (whether a
//! listener is open, which endpoint is chosen next, which connections are idle) belongs to one
//! thread each, in `Rc` and `Cell`, and is part of the thread's view. A table is taken over in one
//! step without an await, so a request sees either the old table or the new one. The view changes
//! only what is different: listeners, services and endpoints that stay are the same objects.
//!
//! The view reports that the thread uses the table before it drains endpoints. Draining may report
//! endpoints idle at once, and each such report counts for the table that was reported last.

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::endpoint::Endpoint;
use super::idle_tasks::{IDLE_AFTER, IDLE_AFTER_IN_CROWD, IdleTasks};
use super::listener::{ListenerView, Routes};
use super::room::Room;
use super::service::ServiceView;
use crate::ipc::{EndpointId, EndpointState, ListenerId, Overload};
use crate::proxy::net::socket::ToInstance;
use crate::proxy::shared::client_key::ClientKey;
use crate::proxy::shared::table::Table;
use crate::proxy::shared::threads::{OpenBehindProxy, Reporter, ThreadEvent, Threads};

/// Why a connection is closed at once: its client has as many connections as it may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the client has as many connections as it may have at the moment")]
pub(crate) struct TooManyConnections;

/// Counts a connection for the client that a trusted proxy has named, if that client is not a
/// trusted proxy itself. Counts nothing for any other connection.
#[derive(Default)]
pub(crate) struct BehindProxy {
    _open: Option<Box<OpenBehindProxy>>,
}

/// The table as one data thread uses it.
pub(crate) struct View {
    reporter: Reporter,
    threads: Arc<Threads>,
    room: Rc<Room>,
    idle_tasks: IdleTasks,
    table: RefCell<Arc<Table>>,
    listeners: RefCell<HashMap<ListenerId, Rc<ListenerView>>>,
    services: RefCell<HashMap<String, Rc<ServiceView>>>,
    /// The same services as in `services`, in the order of the table.
    in_order: RefCell<Rc<[Rc<ServiceView>]>>,
    endpoints: RefCell<HashMap<EndpointId, Rc<Endpoint>>>,
    /// Endpoints removed from the table that still have requests in flight.
    removed_endpoints: RefCell<HashMap<EndpointId, Rc<Endpoint>>>,
}

impl View {
    /// Makes the view of one of these threads, without a table. The endpoints will report to
    /// `reporter`.
    pub(crate) fn new(threads: Arc<Threads>, reporter: Reporter) -> View {
        View {
            room: Room::new(
                threads.budget().instances,
                threads.bound_counters(reporter.thread()).clone(),
            ),
            reporter,
            threads,
            idle_tasks: IdleTasks::default(),
            table: RefCell::default(),
            listeners: RefCell::default(),
            services: RefCell::default(),
            in_order: RefCell::default(),
            endpoints: RefCell::default(),
            removed_endpoints: RefCell::default(),
        }
    }

    /// Takes over a table, and reports that. `settle` is called when the view shows the new table,
    /// and nothing was reported about it yet.
    pub(crate) fn apply(&self, table: Arc<Table>, settle: impl FnOnce()) {
        self.reporter.follow(table.number);
        let before = self.table.replace(table.clone());
        let (services, drained) = self.apply_services(&before, &table);
        self.apply_listeners(&table, services);
        settle();
        self.reporter.send(ThreadEvent::Applied(table.number));
        for endpoint in drained {
            endpoint.drain();
        }
    }

    /// Cuts off the open tunnels of all instances.
    pub(crate) fn cut_tunnels(&self) {
        let (present, removed) = (self.endpoints.borrow(), self.removed_endpoints.borrow());
        let all = present.values().chain(removed.values());
        all.for_each(|endpoint| endpoint.cut_open());
    }

    /// The table that the thread uses.
    pub(crate) fn table(&self) -> Arc<Table> {
        self.table.borrow().clone()
    }

    /// Returns true if the table trusts this peer to name its own client, by `X-Forwarded-*` or by
    /// the PROXY protocol.
    pub(crate) fn trusts(&self, ip: IpAddr) -> bool {
        let table = self.table.borrow();
        table.trusted_proxies.iter().any(|net| net.contains(&ip))
    }

    /// Returns which client a peer is; `None` for a trusted proxy, which speaks for many clients.
    pub(crate) fn origin(&self, peer: SocketAddr) -> Option<ClientKey> {
        (!self.trusts(peer.ip())).then(|| peer.into())
    }

    /// Returns true if the worker needs memory, so that connections that hold much get no new
    /// streams.
    pub(crate) fn refuses_streams(&self) -> bool {
        self.threads.memory().needs(Overload::Streams)
    }

    /// The room of the thread for requests in flight.
    pub(crate) fn room(&self) -> &Rc<Room> {
        &self.room
    }

    /// The idle client connections of the thread that keep their task.
    pub(crate) fn idle_tasks(&self) -> &IdleTasks {
        &self.idle_tasks
    }

    /// Returns how long a connection may be silent until it counts as idle.
    pub(crate) fn idle_after(&self) -> Duration {
        match self.threads.is_crowded() {
            true => IDLE_AFTER_IN_CROWD,
            false => IDLE_AFTER,
        }
    }

    /// Counts a connection of a listener for the client that a trusted proxy has named. The error:
    /// that client has as many connections as it may, and this one counts as refused.
    pub(crate) fn count_behind_proxy(
        &self,
        listener: ListenerId,
        source: SocketAddr,
    ) -> Result<BehindProxy, TooManyConnections> {
        let Some(origin) = self.origin(source) else {
            return Ok(BehindProxy::default());
        };
        let Some(open) = OpenBehindProxy::new(self.threads.clone(), listener, origin) else {
            self.room.counters().refuse_connection();
            return Err(TooManyConnections);
        };
        Ok(BehindProxy {
            _open: Some(Box::new(open)),
        })
    }

    /// Closes idle connections to instances, unless there is a descriptor for another connection.
    pub(crate) fn make_room_for_connection(&self) {
        if ToInstance::count() < self.room.most() {
            return;
        }
        for endpoint in self.endpoints.borrow().values() {
            while ToInstance::count() >= self.room.most() {
                if !endpoint.close_one_idle() {
                    break;
                }
            }
        }
    }

    /// Returns true if instances learn about the sender of a request by `Forwarded`, too.
    pub(crate) fn sets_forwarded(&self) -> bool {
        self.table.borrow().forwarded
    }

    /// Returns the view of a listener; `None` if the table does not have the listener.
    pub(crate) fn listener(&self, id: ListenerId) -> Option<Rc<ListenerView>> {
        self.listeners.borrow().get(&id).cloned()
    }

    /// Returns the view of the listener that gets the clients which connect to `address`; `None` if
    /// the table has none for them. A listener for this address comes before one for all.
    pub(crate) fn listener_at(&self, address: SocketAddr) -> Option<Rc<ListenerView>> {
        let listeners = self.listeners.borrow();
        let is_for = |listener: &&Rc<ListenerView>| {
            let (ip, port) = (listener.address().ip(), listener.address().port());
            let all = ip.is_unspecified() && (ip.is_ipv6() || address.is_ipv4());
            !listener.is_passing() && port == address.port() && (all || ip == address.ip())
        };
        let found = listeners.values().filter(is_for);
        let rank = |listener: &&Rc<ListenerView>| {
            let ip = listener.address().ip();
            (ip.is_unspecified(), ip.is_ipv6())
        };
        found.min_by_key(rank).cloned()
    }

    /// Finds a listener for which `is` returns true, among those to which a connection of a passing
    /// listener on `address` may belong.
    pub(crate) fn find_owner(
        &self,
        address: SocketAddr,
        is: impl Fn(ListenerId) -> bool,
    ) -> Option<ListenerId> {
        if !address.ip().is_unspecified() {
            let owner = self.listener_at(address).map(|listener| listener.id());
            return owner.filter(|&id| is(id));
        }
        let listeners = self.listeners.borrow();
        let may_own = |listener: &&Rc<ListenerView>| {
            let other = listener.address();
            !listener.is_passing()
                && other.port() == address.port()
                && (address.is_ipv6() || other.is_ipv4() || other.ip().is_unspecified())
        };
        let mut owners = listeners.values().filter(may_own);
        owners.find_map(|listener| is(listener.id()).then(|| listener.id()))
    }

    /// Makes the view of a listener that was removed while one of its connections was on its way to
    /// this thread. The view has the routes of `table`, which came with the connection.
    pub(crate) fn removed_listener(
        &self,
        id: ListenerId,
        table: &Table,
    ) -> Option<Rc<ListenerView>> {
        let mut listeners = table.listeners.iter();
        let listener = listeners.find(|listener| listener.id == id)?;
        let services = self.services.borrow();
        let services = table.services.iter().map(|service| {
            let known = services.get(&service.name).cloned();
            known.unwrap_or_else(|| Rc::new(ServiceView::new(service.name.clone())))
        });
        let routes = Routes {
            tls: listener.tls.clone(),
            router: listener.router.clone(),
            services: services.collect(),
            proxy_protocol: listener.proxy_protocol,
            passing: listener.passing,
        };
        let listener = ListenerView::new(listener.id, listener.address, routes);
        listener.finish();
        Some(Rc::new(listener))
    }

    /// Marks all listeners as finishing.
    pub(crate) fn finish_listeners(&self) {
        for listener in self.listeners.borrow().values() {
            listener.finish();
        }
    }

    /// Closes connections to instances that have been idle for too long.
    pub(crate) fn sweep(&self, now: Instant) {
        for endpoint in self.endpoints.borrow().values() {
            endpoint.sweep(now);
        }
    }

    /// Takes over the services that differ from those in `before`, and their endpoints. Returns all
    /// services in the order of the table, and the endpoints that the table drains or has removed;
    /// none of these can be claimed any more.
    fn apply_services(
        &self,
        before: &Table,
        table: &Table,
    ) -> (Rc<[Rc<ServiceView>]>, Vec<Rc<Endpoint>>) {
        let is_same = |index: usize| match (before.services.get(index), table.services.get(index)) {
            (Some(before), Some(service)) => Arc::ptr_eq(before, service),
            _ => false,
        };
        let mut services = self.services.borrow_mut();
        let mut endpoints = self.endpoints.borrow_mut();
        let mut views_before = HashMap::new();
        let mut endpoints_before = self.removed_endpoints.take();
        let changed = (0..before.services.len()).filter(|&index| !is_same(index));
        for service in changed.map(|index| &before.services[index]) {
            views_before.extend(services.remove_entry(&service.name));
            let ids = service.endpoints.iter().map(|(spec, _)| spec.id);
            endpoints_before.extend(ids.filter_map(|id| endpoints.remove_entry(&id)));
        }
        let in_order_before = self.in_order.take();
        let mut in_order = Vec::with_capacity(table.services.len());
        let mut drained = Vec::new();
        let mut parted = Vec::new();
        for (index, service) in table.services.iter().enumerate() {
            if is_same(index) {
                in_order.push(in_order_before[index].clone());
                continue;
            }
            let known = views_before.remove(&service.name);
            let view = known.unwrap_or_else(|| Rc::new(ServiceView::new(service.name.clone())));
            // Requests that were routed to it before get an answer.
            let is_needed = service.routes.is_empty() && view.is_searched();
            let was_active = |id: EndpointId| {
                let known = before.services.iter().find(|it| it.name == service.name);
                known.is_some_and(|known| {
                    let mut endpoints = known.endpoints.iter();
                    endpoints.any(|(spec, state)| spec.id == id && *state == EndpointState::Active)
                })
            };
            let mut parting = Vec::new();
            let mut active = Vec::with_capacity(service.endpoints.len());
            for (spec, state) in &service.endpoints {
                let endpoint = endpoints_before
                    .remove(&spec.id)
                    .unwrap_or_else(|| Rc::new(Endpoint::new(spec.clone(), self.reporter.clone())));
                match state {
                    EndpointState::Probing => {}
                    EndpointState::Active if endpoint.is_draining() => {}
                    EndpointState::Active => active.push(endpoint.clone()),
                    EndpointState::Draining
                        if is_needed && !endpoint.is_draining() && was_active(spec.id) =>
                    {
                        active.push(endpoint.clone());
                        parting.push(endpoint.clone());
                    }
                    EndpointState::Draining => drained.push(endpoint.clone()),
                    EndpointState::Cut => {
                        endpoint.cut();
                        drained.push(endpoint.clone());
                    }
                }
                endpoints.insert(spec.id, endpoint);
            }
            view.set_handling(service.handling);
            view.set_policy(service.policy.clone());
            view.update(service.running || !parting.is_empty(), active);
            view.set_in_flight(service.in_flight.clone());
            parted.push((view.clone(), parting));
            in_order.push(view.clone());
            services.insert(service.name.clone(), view);
        }
        drained.extend(endpoints_before.values().cloned());
        endpoints_before.retain(|_, removed| removed.is_in_use());
        self.removed_endpoints.replace(endpoints_before);
        for removed in views_before.into_values() {
            removed.update(false, Vec::new());
            removed.set_in_flight(None);
            parted.push((removed, Vec::new()));
        }
        for (service, endpoints) in parted {
            service.part(endpoints);
        }
        let in_order: Rc<[Rc<ServiceView>]> = in_order.into();
        self.in_order.replace(in_order.clone());
        (in_order, drained)
    }

    fn apply_listeners(&self, table: &Table, services: Rc<[Rc<ServiceView>]>) {
        let mut before = self.listeners.take();
        let mut listeners = HashMap::with_capacity(table.listeners.len());
        for listener in &table.listeners {
            let routes = Routes {
                tls: listener.tls.clone(),
                router: listener.router.clone(),
                services: services.clone(),
                proxy_protocol: listener.proxy_protocol,
                passing: listener.passing,
            };
            let view = match before.remove(&listener.id) {
                Some(known) => {
                    known.set_routes(routes);
                    known
                }
                None => Rc::new(ListenerView::new(listener.id, listener.address, routes)),
            };
            listeners.insert(listener.id, view);
        }
        for removed in before.into_values() {
            removed.finish();
        }
        *self.listeners.borrow_mut() = listeners;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;
    use tokio::sync::mpsc;

    use super::*;
    use crate::ipc::{
        Address, Handling, HealthCheck, Host, Probe, Protocol, Route, WireEndpoint, WireListener,
        WireService, WireTable,
    };
    use crate::proxy::shared::budget::Budget;
    use crate::proxy::shared::certificates::ListenerCertificates;
    use crate::proxy::shared::threads::ThreadReport;

    const ID: EndpointId = EndpointId(1);

    struct Fixture {
        view: View,
        table: Arc<Table>,
        reports: mpsc::UnboundedReceiver<ThreadReport>,
    }

    impl Fixture {
        fn new() -> Fixture {
            let (report, reports) = mpsc::unbounded_channel();
            let commands = vec![mpsc::unbounded_channel().0];
            let threads = Threads::new(commands, Budget::new(None, 1));
            Fixture {
                view: View::new(threads.into(), Reporter::new(0, report)),
                table: Arc::default(),
                reports,
            }
        }

        /// Applies a table with one service, on one listener or none.
        fn apply(&mut self, listens: bool, endpoint: Option<EndpointState>) {
            let endpoint = endpoint.map(|state| WireEndpoint {
                id: ID,
                address: Address::Unix("/nonexistent".into()),
                state,
                protocol: Protocol::default(),
                probe: Probe::Connect,
                check: HealthCheck::Steady,
            });
            let listener = listens.then(|| WireListener {
                id: ListenerId(1),
                address: ([127, 0, 0, 1], 80).into(),
                tls: None,
                proxy_protocol: false,
                passing: false,
            });
            let route = Route {
                listener: ListenerId(1),
                host: Host::Any,
                path: "/".to_owned(),
                strip: 0,
            };
            self.take_over(WireTable {
                listeners: listener.into_iter().collect(),
                services: vec![Arc::new(WireService {
                    name: "shop".to_owned(),
                    running: true,
                    handling: Handling::default(),
                    routes: listens.then_some(route).into_iter().collect(),
                    endpoints: endpoint.into_iter().collect(),
                })],
                trusted_proxies: vec!["10.0.0.0/8".parse().unwrap()],
                ..WireTable::default()
            });
        }

        /// Applies a table with these services, and no listener.
        fn apply_services(&mut self, services: Services) {
            let endpoint = |(id, state)| WireEndpoint {
                id: EndpointId(id),
                address: Address::Unix("/nonexistent".into()),
                state,
                protocol: Protocol::default(),
                probe: Probe::Connect,
                check: HealthCheck::Steady,
            };
            let services = services.into_iter().map(|(name, endpoints)| WireService {
                name: name.to_string(),
                running: true,
                handling: Handling::default(),
                routes: Vec::new(),
                endpoints: endpoints.into_iter().map(endpoint).collect(),
            });
            self.take_over(WireTable {
                services: services.map(Arc::new).collect(),
                ..WireTable::default()
            });
        }

        fn take_over(&mut self, table: WireTable) {
            let number = self.table.number + 1;
            let table = WireTable { number, ..table };
            let certificates = ListenerCertificates::new().unwrap();
            let table = self.table.succeed(table, |_| true, &certificates, 1);
            self.table = Arc::new(table.unwrap());
            self.view.apply(self.table.clone(), || {});
        }

        fn service(&self) -> Rc<ServiceView> {
            self.view.services.borrow()["shop"].clone()
        }

        fn events(&mut self) -> Vec<ThreadEvent> {
            std::iter::from_fn(|| self.reports.try_recv().ok())
                .map(|report| report.event)
                .collect()
        }
    }

    fn idle(table: u64) -> ThreadEvent {
        let endpoint = ID;
        ThreadEvent::Idle { endpoint, table }
    }

    #[test]
    fn only_an_active_endpoint_is_claimed() {
        let mut fixture = Fixture::new();
        for (state, claimed) in [
            (EndpointState::Probing, false),
            (EndpointState::Active, true),
            (EndpointState::Draining, false),
        ] {
            fixture.apply(true, Some(state));
            assert_eq!(fixture.service().claim(&[]).is_some(), claimed, "{state:?}");
        }
    }

    #[test]
    fn idleness_is_reported_after_the_table_and_after_the_last_request() {
        let mut fixture = Fixture::new();
        fixture.apply(true, Some(EndpointState::Active));
        let claim = fixture.service().claim(&[]);
        fixture.apply(true, Some(EndpointState::Draining));
        assert_eq!(
            fixture.events(),
            [ThreadEvent::Applied(1), ThreadEvent::Applied(2)]
        );
        drop(claim);
        assert_eq!(fixture.events(), [idle(2)]);
        fixture.apply(true, Some(EndpointState::Draining));
        assert_eq!(fixture.events(), [ThreadEvent::Applied(3), idle(3)]);
    }

    #[test]
    fn an_endpoint_that_left_with_a_request_in_flight_comes_back_draining() {
        let mut fixture = Fixture::new();
        fixture.apply(true, Some(EndpointState::Active));
        let claim = fixture.service().claim(&[]);
        fixture.apply(true, None);
        fixture.apply(true, Some(EndpointState::Active));
        assert!(fixture.service().claim(&[]).is_none());
        drop(claim);
        assert!(fixture.events().contains(&idle(3)));
    }

    /// Services by their names, each with its endpoints by their ids.
    type Services = Vec<(char, Vec<(u64, EndpointState)>)>;

    /// Makes services in any order, each with some of the three endpoints that only this service
    /// can have.
    fn services() -> impl Strategy<Value = Services> {
        let state = prop_oneof![
            Just(EndpointState::Probing),
            Just(EndpointState::Active),
            Just(EndpointState::Active),
            Just(EndpointState::Draining),
        ];
        let endpoints =
            |first: u64| proptest::collection::btree_map(first..first + 3, state.clone(), 0..=3);
        let service = |name: char, first| {
            let endpoints = endpoints(first).prop_map(Vec::from_iter);
            proptest::option::of(endpoints.prop_map(move |endpoints| (name, endpoints)))
        };
        let all = (service('a', 0), service('b', 3), service('c', 6));
        all.prop_map(|(a, b, c)| [a, b, c].into_iter().flatten().collect::<Vec<_>>())
            .prop_shuffle()
    }

    proptest! {
        #[test]
        fn a_table_is_taken_over_by_its_differences_as_it_is(
            tables in proptest::collection::vec(services(), 1..6)
        ) {
            let mut fixture = Fixture::new();
            let mut views: HashMap<String, Rc<ServiceView>> = HashMap::new();
            for services in tables {
                let before = fixture.table.clone();
                fixture.apply_services(services);
                let table = fixture.table.clone();
                let mut after = HashMap::new();
                for (index, service) in table.services.iter().enumerate() {
                    let view = fixture.view.in_order.borrow()[index].clone();
                    prop_assert_eq!(view.name(), &service.name);
                    if let Some(known) = views.get(&service.name) {
                        prop_assert!(Rc::ptr_eq(known, &view));
                    }
                    let active = service.endpoints.iter();
                    let active = active.filter(|(_, state)| *state == EndpointState::Active);
                    let mut claimed = Vec::new();
                    while let Some(claim) = view.claim(&claimed) {
                        claimed.push(claim.id());
                    }
                    claimed.sort();
                    prop_assert_eq!(claimed, Vec::from_iter(active.map(|(spec, _)| spec.id)));
                    after.insert(service.name.clone(), view);
                }
                views = after;
                let is_over = |id| table.state(id).is_none_or(|state| state >= EndpointState::Draining);
                let of_both = before.endpoints().chain(table.endpoints());
                let over: BTreeSet<_> = of_both.map(|(spec, _)| spec.id).filter(|&id| is_over(id)).collect();
                let said = fixture.events().into_iter().filter_map(|event| match event {
                    ThreadEvent::Idle { endpoint, table: number } if number == table.number => Some(endpoint),
                    _ => None,
                });
                prop_assert_eq!(said.collect::<BTreeSet<_>>(), over);
            }
        }
    }

    #[test]
    fn a_connection_belongs_to_the_listener_for_the_address_that_it_was_made_to() {
        let fixture = Fixture::new();
        let listen = |id, address: &str, passing| {
            let routes = Routes {
                passing,
                ..Routes::default()
            };
            let id = ListenerId(id);
            let listener = ListenerView::new(id, address.parse().unwrap(), routes);
            let mut listeners = fixture.view.listeners.borrow_mut();
            listeners.insert(id, Rc::new(listener));
        };
        let found = |address: &str| {
            let listener = fixture.view.listener_at(address.parse().unwrap());
            listener.map(|listener| listener.id().0)
        };
        listen(10, "[::]:81", true);
        listen(11, "127.0.0.1:81", false);
        assert_eq!(found("127.0.0.1:81"), Some(11));
        assert_eq!(found("127.0.0.2:81"), None);
        assert_eq!(found("127.0.0.1:82"), None);
        listen(12, "[::]:82", false);
        listen(13, "0.0.0.0:82", false);
        listen(14, "127.0.0.1:82", true);
        assert_eq!(found("127.0.0.1:82"), Some(13));
        assert_eq!(found("[::1]:82"), Some(12));
        listen(15, "0.0.0.0:83", false);
        assert_eq!(found("[::1]:83"), None);

        let owners = |address: &str| {
            let all = std::cell::RefCell::new(BTreeSet::new());
            let address = address.parse().unwrap();
            let none = fixture.view.find_owner(address, |id| {
                all.borrow_mut().insert(id.0);
                false
            });
            assert_eq!(none, None);
            all.into_inner()
        };
        assert_eq!(owners("[::]:81"), [11].into());
        assert_eq!(owners("127.0.0.1:82"), [13].into());
        assert_eq!(owners("[::]:82"), [12, 13].into());
        listen(16, "[::1]:83", false);
        assert_eq!(owners("0.0.0.0:83"), [15].into());
    }

    #[test]
    fn connections_of_a_removed_listener_go_by_its_last_routes() {
        let mut fixture = Fixture::new();
        fixture.apply(true, Some(EndpointState::Active));
        let listener = fixture.view.listeners.borrow()[&ListenerId(1)].clone();
        fixture.apply(false, Some(EndpointState::Active));
        assert!(listener.closing());
        let (service, _) = listener.route(b"a.example", b"/").unwrap().unwrap();
        assert!(Rc::ptr_eq(&service, &fixture.service()));
    }

    #[test]
    fn a_connection_that_arrives_after_the_end_of_its_listener_is_served() {
        let mut fixture = Fixture::new();
        fixture.apply(true, Some(EndpointState::Active));
        let table = fixture.table.clone();
        fixture.apply(false, Some(EndpointState::Active));
        assert!(fixture.view.listener(ListenerId(1)).is_none());
        let listener = fixture
            .view
            .removed_listener(ListenerId(1), &table)
            .unwrap();
        assert!(listener.closing());
        let (service, _) = listener.route(b"a.example", b"/").unwrap().unwrap();
        assert!(Rc::ptr_eq(&service, &fixture.service()));
    }

    #[test]
    fn only_the_proxies_of_the_table_are_trusted() {
        let mut fixture = Fixture::new();
        fixture.apply(true, None);
        assert!(fixture.view.trusts([10, 1, 2, 3].into()));
        assert!(!fixture.view.trusts([11, 1, 2, 3].into()));
    }
}
