//! A data thread: one core's worth of the worker, with a runtime, a table, pools and connections of its own.
//!
//! # Theory of operation
//! The control thread sends [`Command`]s; the thread answers with [`Report`]s. A table is taken over in one step without
//! an await, so a request sees either the old one or the new one, and what the thread has said about a table is true
//! from then on. Nothing on the way of a request is shared with another thread, but for counters that it alone writes.
//!
//! A thread that accepts a connection gives it to the thread with the fewest. That one must know the listener: a
//! thread with an older table is passed over, and one that has removed the listener in the meantime serves the
//! connection by the routes of the table that came with it.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::{Builder, LocalOptions};
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::client::{self, Client, IDLE_LIMIT, Peer};
use super::endpoint::Endpoint;
use super::listener::{Listener, Routes};
use super::parking::{PARK_AFTER, Parked, Parking};
use super::service::Service;
use super::table::Table;
use super::threads::{Command, Event, Handover, Open, Report, Reporter, Threads};
use crate::ipc::{EndpointId, EndpointState, ListenerId};
use crate::proxy::net::socket::Socket;
use crate::proxy::net::turn;

/// How often idle upstream connections are looked after.
const SWEEP_INTERVAL: Duration = Duration::from_millis(500);

/// A data thread as its own tasks see it.
pub(crate) struct Thread {
    threads: Arc<Threads>,
    reporter: Reporter,
    table: RefCell<Arc<Table>>,
    listeners: RefCell<HashMap<ListenerId, Rc<Listener>>>,
    services: RefCell<HashMap<String, Rc<Service>>>,
    /// The same ones, as the table counts them.
    in_order: RefCell<Rc<[Rc<Service>]>>,
    endpoints: RefCell<HashMap<EndpointId, Rc<Endpoint>>>,
    /// Those no longer in the table that still have requests in flight.
    removed_endpoints: RefCell<HashMap<EndpointId, Rc<Endpoint>>>,
    accepting: RefCell<JoinSet<io::Result<()>>>,
    parking: Parking,
    draining: Cell<bool>,
    idle_over: Cell<bool>,
    drain_begins: Notify,
    idle_ends: Notify,
}

/// Runs a data thread until it is told to stop. It reports its end also if it panics.
pub(crate) fn run(
    index: usize,
    threads: Arc<Threads>,
    mut commands: mpsc::UnboundedReceiver<Command>,
    reports: mpsc::UnboundedSender<Report>,
) -> io::Result<()> {
    let reporter = Reporter::new(index, reports);
    let _end = ReportEnd(reporter.clone());
    let runtime = Builder::new_current_thread()
        .enable_all()
        .event_interval(turn::TASKS_BETWEEN_LOOKS)
        .build_local(LocalOptions::default())?;
    runtime.block_on(async {
        let thread = Rc::new(Thread::new(threads, reporter)?);
        let mut parking = pin!(thread.watch_parked());
        let mut sweeps = tokio::time::interval(SWEEP_INTERVAL);
        loop {
            tokio::select! {
                command = commands.recv() => match command {
                    Some(Command::Apply { table, opened }) => thread.apply(table, opened),
                    Some(Command::Serve(handover)) => thread.take(handover),
                    Some(Command::Drain { idle }) => thread.drain(idle),
                    Some(Command::Ping(number)) => thread.reporter.send(Event::Pong(number)),
                    Some(Command::Stop) | None => break,
                },
                _ = sweeps.tick() => thread.sweep(),
                Err(error) = &mut parking => return Err(error),
            }
        }
        Ok(())
    })
}

struct ReportEnd(Reporter);

impl Drop for ReportEnd {
    fn drop(&mut self) {
        self.0.send(Event::Ended);
    }
}

impl Thread {
    pub(crate) fn new(threads: Arc<Threads>, reporter: Reporter) -> io::Result<Thread> {
        Ok(Thread {
            threads,
            reporter,
            table: RefCell::default(),
            listeners: RefCell::default(),
            services: RefCell::default(),
            in_order: RefCell::default(),
            endpoints: RefCell::default(),
            removed_endpoints: RefCell::default(),
            accepting: RefCell::default(),
            parking: Parking::new()?,
            draining: Cell::new(false),
            idle_over: Cell::new(false),
            drain_begins: Notify::new(),
            idle_ends: Notify::new(),
        })
    }

    /// Whether the worker drains: every connection is to end with its next response.
    pub(crate) fn draining(&self) -> bool {
        self.draining.get()
    }

    /// Resolves when the worker drains.
    pub(crate) async fn drain_begins(&self) {
        let begins = self.drain_begins.notified();
        if !self.draining.get() {
            begins.await;
        }
    }

    /// Resolves when the worker drains and idle connections have had their time for one more request.
    pub(crate) async fn drain_idle(&self) {
        let ends = self.idle_ends.notified();
        if !self.idle_over.get() {
            ends.await;
        }
    }

    /// Whether the `X-Forwarded-*` headers of this peer are believed.
    pub(crate) fn trusts(&self, ip: IpAddr) -> bool {
        let table = self.table.borrow();
        table.trusted_proxies.iter().any(|net| net.contains(&ip))
    }

    /// Whether instances are told by `Forwarded`, too, who has sent a request.
    pub(crate) fn sets_forwarded(&self) -> bool {
        self.table.borrow().forwarded
    }

    /// Whether a listener has as many connections as it may.
    pub(crate) fn is_full(&self, listener: ListenerId) -> bool {
        self.threads.are_full(listener)
    }

    /// How many client connections a listener may have.
    pub(crate) fn most_connections(&self) -> u32 {
        self.threads.most_connections()
    }

    /// Gives a connection, just accepted, to the thread with the fewest.
    pub(crate) fn place(
        self: &Rc<Self>,
        stream: std::net::TcpStream,
        peer: SocketAddr,
        listener: &Rc<Listener>,
    ) {
        let target = match listener.closing() {
            // The others may have forgotten it already.
            true => self.reporter.thread(),
            false => self.threads.least_loaded(self.reporter.thread()),
        };
        let open = Open::new(self.threads.clone(), target, listener.id());
        if target == self.reporter.thread() {
            self.serve(stream, peer, listener.clone(), open);
            return;
        }
        let handover = Handover {
            stream,
            peer,
            listener: listener.id(),
            table: self.table.borrow().clone(),
            open,
        };
        if let Err(Command::Serve(handover)) = self.threads.send(target, Command::Serve(handover)) {
            self.take(handover);
        }
    }

    fn take(self: &Rc<Self>, handover: Handover) {
        let known = self.listeners.borrow().get(&handover.listener).cloned();
        let listener = known.or_else(|| self.removed_listener(&handover));
        if let Some(listener) = listener {
            self.serve(handover.stream, handover.peer, listener, handover.open);
        }
    }

    /// The view of a listener that was removed while a connection that it had accepted was on its way here.
    fn removed_listener(&self, handover: &Handover) -> Option<Rc<Listener>> {
        let mut listeners = handover.table.listeners.iter();
        let listener = listeners.find(|listener| listener.id == handover.listener)?;
        let services = self.services.borrow();
        let services = handover.table.services.iter().map(|service| {
            let known = services.get(&service.name).cloned();
            known.unwrap_or_else(|| Rc::new(Service::new(service.name.clone())))
        });
        let routes = Routes {
            tls: listener.tls.clone(),
            router: listener.router.clone(),
            services: services.collect(),
            proxy_protocol: listener.proxy_protocol,
        };
        let listener = Listener::new(listener.id, listener.address, routes);
        listener.finish();
        Some(Rc::new(listener))
    }

    pub(crate) fn serve(
        self: &Rc<Self>,
        stream: std::net::TcpStream,
        peer: SocketAddr,
        listener: Rc<Listener>,
        open: Open,
    ) {
        let client = self.client(stream, peer, listener);
        self.spawn(open, client::serve(client));
    }

    fn client(
        self: &Rc<Self>,
        stream: std::net::TcpStream,
        peer: SocketAddr,
        listener: Rc<Listener>,
    ) -> Box<Client> {
        let peer = Rc::new(Peer::new(peer, listener, self.clone()));
        Box::new(Client::new(Socket::accepted(stream).into(), peer))
    }

    /// Serves a connection by a task of its own, to the end of which it counts.
    fn spawn(
        self: &Rc<Self>,
        open: Open,
        service: impl Future<Output = Option<Box<Client>>> + 'static,
    ) {
        let mut counted = Counted {
            open: Some(open),
            thread: self.clone(),
        };
        tokio::task::spawn_local(async move {
            if let Some(idle) = service.await
                && let Some(open) = counted.open.take()
            {
                counted.thread.park(*idle, open);
            }
        });
    }

    /// Takes its task from a connection.
    fn park(self: &Rc<Self>, idle: Client, open: Open) {
        let socket = idle.stream.into_socket();
        let Some(socket) = socket.and_then(Socket::into_std) else {
            return;
        };
        let parked = Parked {
            socket,
            peer: idle.peer.address,
            listener: idle.peer.listener.clone(),
            open,
            until: Instant::now() + (IDLE_LIMIT - PARK_AFTER),
        };
        if let Err(parked) = self.parking.park(parked) {
            self.resume(parked);
        }
    }

    /// Looks after the connections without a task.
    pub(crate) async fn watch_parked(self: &Rc<Self>) -> io::Result<()> {
        self.parking.watch(self).await
    }

    #[cfg(test)]
    pub(crate) fn parked(&self) -> usize {
        self.parking.len()
    }

    /// Gives a connection a task again.
    pub(crate) fn resume(self: &Rc<Self>, parked: Parked) {
        let client = self.client(parked.socket, parked.peer, parked.listener);
        self.spawn(parked.open, client::serve_requests(client));
    }

    /// Ends a connection that has no task.
    pub(crate) fn close(self: &Rc<Self>, parked: Parked) {
        drop(parked.socket);
        drop(Counted {
            open: Some(parked.open),
            thread: self.clone(),
        });
    }

    fn apply(self: &Rc<Self>, table: Arc<Table>, opened: Vec<(ListenerId, Arc<OwnedFd>)>) {
        self.reporter.follow(table.number);
        let before = self.table.replace(table.clone());
        let (services, drained) = self.apply_services(&before, &table);
        self.apply_listeners(&table, services);
        for (id, socket) in opened {
            self.open(id, socket);
        }
        self.threads.applied(self.reporter.thread(), table.number);
        self.reporter.send(Event::Applied(table.number));
        for endpoint in drained {
            endpoint.drain();
        }
    }

    /// Takes over the services that are not the same as `before`, and their endpoints. Returns all services in the order of
    /// the table, and the endpoints that it drains or has removed, none of which can be claimed any more.
    fn apply_services(
        &self,
        before: &Table,
        table: &Table,
    ) -> (Rc<[Rc<Service>]>, Vec<Rc<Endpoint>>) {
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
        for (index, service) in table.services.iter().enumerate() {
            if is_same(index) {
                in_order.push(in_order_before[index].clone());
                continue;
            }
            let mut active = Vec::with_capacity(service.endpoints.len());
            for (spec, state) in &service.endpoints {
                let endpoint = endpoints_before
                    .remove(&spec.id)
                    .unwrap_or_else(|| Rc::new(Endpoint::new(spec.clone(), self.reporter.clone())));
                match state {
                    EndpointState::Probing => {}
                    EndpointState::Active if endpoint.is_draining() => {}
                    EndpointState::Active => active.push(endpoint.clone()),
                    EndpointState::Draining => drained.push(endpoint.clone()),
                    EndpointState::Cut => {
                        endpoint.cut();
                        drained.push(endpoint.clone());
                    }
                }
                endpoints.insert(spec.id, endpoint);
            }
            let known = views_before.remove(&service.name);
            let view = known.unwrap_or_else(|| Rc::new(Service::new(service.name.clone())));
            view.set_handling(service.handling);
            view.update(service.running, active);
            in_order.push(view.clone());
            services.insert(service.name.clone(), view);
        }
        drained.extend(endpoints_before.values().cloned());
        endpoints_before.retain(|_, removed| removed.is_in_use());
        self.removed_endpoints.replace(endpoints_before);
        for removed in views_before.into_values() {
            removed.update(false, Vec::new());
        }
        let in_order: Rc<[Rc<Service>]> = in_order.into();
        self.in_order.replace(in_order.clone());
        (in_order, drained)
    }

    fn apply_listeners(&self, table: &Table, services: Rc<[Rc<Service>]>) {
        let mut before = self.listeners.take();
        let mut listeners = HashMap::with_capacity(table.listeners.len());
        for listener in &table.listeners {
            let routes = Routes {
                tls: listener.tls.clone(),
                router: listener.router.clone(),
                services: services.clone(),
                proxy_protocol: listener.proxy_protocol,
            };
            let view = match before.remove(&listener.id) {
                Some(known) => {
                    known.set_routes(routes);
                    known
                }
                None => Rc::new(Listener::new(listener.id, listener.address, routes)),
            };
            listeners.insert(listener.id, view);
        }
        for removed in before.into_values() {
            removed.finish();
        }
        *self.listeners.borrow_mut() = listeners;
    }

    fn open(self: &Rc<Self>, id: ListenerId, socket: Arc<OwnedFd>) {
        let listener = self.listeners.borrow().get(&id).cloned();
        if let Some(listener) = listener
            && !self.draining()
        {
            let mut accepting = self.accepting.borrow_mut();
            // Those that have ended were closed by a table.
            while accepting.try_join_next().is_some() {}
            accepting.spawn_local(listener.accept(self.clone(), socket));
        }
    }

    pub(crate) fn drain(self: &Rc<Self>, idle: Duration) {
        if self.draining.replace(true) {
            return;
        }
        self.drain_begins.notify_waiters();
        for listener in self.listeners.borrow().values() {
            listener.finish();
        }
        let thread = self.clone();
        tokio::task::spawn_local(async move {
            let idle_over = Instant::now() + idle;
            let mut accepting = thread.accepting.take();
            while accepting.join_next().await.is_some() {}
            thread.reporter.send(Event::Closed);
            tokio::time::sleep_until(idle_over).await;
            thread.idle_over.set(true);
            thread.idle_ends.notify_waiters();
        });
    }

    fn sweep(&self) {
        let now = Instant::now();
        for endpoint in self.endpoints.borrow().values() {
            endpoint.sweep(now);
        }
    }
}

/// A connection of this thread, from the start of its task to its end.
struct Counted {
    open: Option<Open>,
    thread: Rc<Thread>,
}

impl Drop for Counted {
    fn drop(&mut self) {
        // It may live on without a task.
        if self.open.take().is_some() && self.thread.draining() {
            self.thread.reporter.send(Event::Empty);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;
    use crate::ipc::{
        Address, Handling, Host, Probe, Protocol, Route, WireEndpoint, WireListener, WireService,
        WireTable,
    };
    use crate::proxy::shared::certificates::Certificates;

    const ID: EndpointId = EndpointId(1);

    struct Fixture {
        thread: Rc<Thread>,
        table: Arc<Table>,
        reports: mpsc::UnboundedReceiver<Report>,
    }

    impl Fixture {
        fn new() -> Fixture {
            let threads = Threads::new(vec![mpsc::unbounded_channel().0], 100);
            let (report, reports) = mpsc::unbounded_channel();
            let thread = Thread::new(Arc::new(threads), Reporter::new(0, report)).unwrap();
            Fixture {
                thread: Rc::new(thread),
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
            });
            let listener = listens.then(|| WireListener {
                id: ListenerId(1),
                address: ([127, 0, 0, 1], 80).into(),
                tls: None,
                proxy_protocol: false,
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
            let certificates = Certificates::new().unwrap();
            let table = self.table.succeed(table, |_| true, &certificates, 1);
            self.table = Arc::new(table.unwrap());
            self.thread.apply(self.table.clone(), Vec::new());
        }

        fn service(&self) -> Rc<Service> {
            self.thread.services.borrow()["shop"].clone()
        }

        fn events(&mut self) -> Vec<Event> {
            std::iter::from_fn(|| self.reports.try_recv().ok())
                .map(|report| report.event)
                .collect()
        }
    }

    fn idle(table: u64) -> Event {
        let endpoint = ID;
        Event::Idle { endpoint, table }
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
        assert_eq!(fixture.events(), [Event::Applied(1), Event::Applied(2)]);
        drop(claim);
        assert_eq!(fixture.events(), [idle(2)]);
        fixture.apply(true, Some(EndpointState::Draining));
        assert_eq!(fixture.events(), [Event::Applied(3), idle(3)]);
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

    /// In any order, each with some of the three endpoints that only it can have.
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
            let mut views: HashMap<String, Rc<Service>> = HashMap::new();
            for services in tables {
                let before = fixture.table.clone();
                fixture.apply_services(services);
                let table = fixture.table.clone();
                let mut after = HashMap::new();
                for (index, service) in table.services.iter().enumerate() {
                    let view = fixture.thread.in_order.borrow()[index].clone();
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
                    Event::Idle { endpoint, table: number } if number == table.number => Some(endpoint),
                    _ => None,
                });
                prop_assert_eq!(said.collect::<BTreeSet<_>>(), over);
            }
        }
    }

    #[test]
    fn connections_of_a_removed_listener_go_by_its_last_routes() {
        let mut fixture = Fixture::new();
        fixture.apply(true, Some(EndpointState::Active));
        let listener = fixture.thread.listeners.borrow()[&ListenerId(1)].clone();
        fixture.apply(false, Some(EndpointState::Active));
        assert!(listener.closing());
        let (service, _) = listener.route(b"a.example", b"/").unwrap();
        assert!(Rc::ptr_eq(&service, &fixture.service()));
    }

    #[tokio::test]
    async fn a_connection_that_arrives_after_the_end_of_its_listener_is_served() {
        let mut fixture = Fixture::new();
        fixture.apply(true, Some(EndpointState::Active));
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let peer = socket.local_addr().unwrap();
        let handover = Handover {
            stream: std::net::TcpStream::connect(peer).unwrap(),
            peer,
            listener: ListenerId(1),
            table: fixture.table.clone(),
            open: Open::new(fixture.thread.threads.clone(), 0, ListenerId(1)),
        };
        fixture.apply(false, Some(EndpointState::Active));
        let listener = fixture.thread.removed_listener(&handover).unwrap();
        assert!(listener.closing());
        let (service, _) = listener.route(b"a.example", b"/").unwrap();
        assert!(Rc::ptr_eq(&service, &fixture.service()));
    }

    #[test]
    fn only_the_proxies_of_the_table_are_trusted() {
        let mut fixture = Fixture::new();
        fixture.apply(true, None);
        assert!(fixture.thread.trusts([10, 1, 2, 3].into()));
        assert!(!fixture.thread.trusts([11, 1, 2, 3].into()));
    }
}
