//! One instance as a data thread sees it: its state, its idle connections, and the claims on it.
//!
//! # Theory of operation
//! An endpoint can be claimed until a table marks it draining or removes it; after that, never
//! again. A [`Claim`] is one request on its way through the endpoint. Choosing an endpoint and
//! counting the request are one step, since a thread does nothing else in between. The count goes
//! down when the claim is dropped. The thread that marks an endpoint draining closes its idle
//! connections in the same step, so from then on only claims hold connections to it. When the last
//! claim goes, the thread reports the endpoint idle. A drain does not wait for a claim that has
//! become a tunnel: tunnels are counted separately, and live until they end by themselves or a
//! table cuts them off.
//!
//! An endpoint may be reported idle only if no connection to it is left. So the holder of a claim
//! must drop the connection **before** the claim: [`Claim::give_back`] does so, and a type that
//! holds both must declare the connection first.

use std::cell::{Cell, RefCell};
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Mutex, Notify};
use tokio::time::Instant;

use super::pins::{PinnedPlace, Pins};
use super::upstream::Upstream;
use crate::ipc::{Address, EndpointId, Protocol};
use crate::proxy::net::h2c_stream::InstanceConnection;
use crate::proxy::net::socket::{Socket, is_own_lack};
use crate::proxy::net::stream::Stream;
use crate::proxy::shared::spec::{EndpointCounters, EndpointSpec};
use crate::proxy::shared::threads::Reporter;

/// How long a connection to an instance may lie idle. This is shorter than the limit of any usual
/// server, so that smoothserve closes the connection first.
const INSTANCE_IDLE_LIMIT: Duration = Duration::from_secs(2);

/// How long before the limit that an instance has announced smoothserve closes its idle connection.
const IDLE_MARGIN: Duration = Duration::from_secs(1);

/// How long a connection to an instance that belongs to one client may lie idle, which is as long
/// as the client's own connection. The client would have to prove its identity anew on another one.
const PINNED_IDLE_LIMIT: Duration = Duration::from_secs(60);

/// How many idle connections a thread keeps for each endpoint.
const MOST_IDLE: usize = 512;

/// How long an endpoint ranks behind the others after a failure to connect.
const PENALTY: Duration = Duration::from_secs(1);

/// The view that a data thread has of an endpoint.
pub(crate) struct Endpoint {
    spec: Arc<EndpointSpec>,
    reporter: Reporter,
    draining: Cell<bool>,
    drains: Notify,
    /// True once the tunnels to the endpoint must end.
    cut: Cell<bool>,
    cuts: Notify,
    /// Idle connections, the newest at the end; the newest is taken first, so that the others can
    /// grow old.
    idle: RefCell<Vec<Idle>>,
    pins: Pins,
    /// Connections on which many requests can run at a time.
    shared: Shared,
    penalised_until: Cell<Option<Instant>>,
}

/// The connections with HTTP/2 to one endpoint.
#[derive(Default)]
struct Shared {
    connections: RefCell<Vec<InstanceConnection>>,
    /// How many of these connections have been opened so far.
    opened: Cell<u64>,
    /// Locked while a connection is opened, because the next request may find room on that
    /// connection.
    opening: Mutex<()>,
}

impl Shared {
    /// Begins a request on an open connection with room for it; `None` if there is no such
    /// connection.
    fn request(&self) -> Option<Stream> {
        let connections = self.connections.borrow();
        let connection = connections
            .iter()
            .find(|connection| connection.has_room())?;
        Some(connection.request().into())
    }
}

struct Idle {
    upstream: Upstream,
    until: Instant,
}

/// The rank of an endpoint in its service. The endpoint with the lowest rank is chosen first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Rank {
    out: bool,
    penalised: bool,
    in_flight: u32,
}

impl Endpoint {
    /// Makes the view of an endpoint without connections, which reports to `reporter` when it is
    /// idle.
    pub(crate) fn new(spec: Arc<EndpointSpec>, reporter: Reporter) -> Endpoint {
        Endpoint {
            spec,
            reporter,
            draining: Cell::new(false),
            drains: Notify::new(),
            cut: Cell::new(false),
            cuts: Notify::new(),
            idle: RefCell::default(),
            pins: Pins::default(),
            shared: Shared::default(),
            penalised_until: Cell::default(),
        }
    }

    /// The number that the manager knows the endpoint by.
    pub(crate) fn id(&self) -> EndpointId {
        self.spec.id
    }

    /// Returns true once the endpoint takes no more requests.
    pub(crate) fn is_draining(&self) -> bool {
        self.draining.get()
    }

    /// Returns how many requests of this thread are in flight to the endpoint, without tunnels.
    pub(crate) fn in_flight(&self) -> u32 {
        self.counters().in_flight()
    }

    /// Returns the rank of the endpoint at this moment.
    pub(crate) fn rank(&self) -> Rank {
        Rank {
            out: self.spec.is_out(),
            penalised: self.is_penalised(),
            in_flight: self.in_flight(),
        }
    }

    /// Claims the endpoint for a request. Must not be called once the endpoint drains.
    pub(crate) fn claim(self: Rc<Self>) -> Claim {
        debug_assert!(!self.draining.get());
        self.counters().begin_request();
        Claim {
            endpoint: self,
            tunnel: false,
        }
    }

    /// Marks the endpoint draining, so that it cannot be claimed any more. Reports the endpoint if
    /// it is idle, also if it was draining before.
    pub(crate) fn drain(&self) {
        self.draining.set(true);
        self.drains.notify_waiters();
        drop(self.idle.take());
        self.pins.close();
        drop(self.shared.connections.take());
        if self.in_flight() == 0 {
            self.reporter.idle(self.id());
        }
    }

    /// Cuts off the tunnels to the endpoint, which must be draining already.
    pub(crate) fn cut(&self) {
        self.cut.set(true);
        self.cuts.notify_waiters();
    }

    /// Cuts off the tunnels that are open now. Later ones are not concerned.
    pub(crate) fn cut_open(&self) {
        self.cuts.notify_waiters();
    }

    /// Returns true if a request or a tunnel holds a connection to the endpoint.
    pub(crate) fn is_in_use(&self) -> bool {
        self.in_flight() > 0 || self.counters().tunnels() > 0
    }

    /// Closes the connection that has been idle for longest. Returns false if none is idle.
    pub(crate) fn close_one_idle(&self) -> bool {
        let mut idle = self.idle.borrow_mut();
        if !idle.is_empty() {
            drop(idle.remove(0));
            return true;
        }
        let mut shared = self.shared.connections.borrow_mut();
        let idle = shared.iter().position(|connection| connection.is_idle());
        idle.map(|index| shared.remove(index)).is_some() || self.pins.close_one()
    }

    /// Closes idle connections that are too old, and those that the instance has closed.
    pub(crate) fn sweep(&self, now: Instant) {
        self.idle
            .borrow_mut()
            .retain_mut(|idle| now < idle.until && idle.upstream.is_reusable());
        self.pins.sweep(now);
        let mut shared = self.shared.connections.borrow_mut();
        shared.retain(|connection| connection.is_wanted(now, INSTANCE_IDLE_LIMIT));
    }

    fn is_penalised(&self) -> bool {
        match self.penalised_until.get() {
            None => false,
            Some(until) if Instant::now() < until => true,
            Some(_) => {
                self.penalised_until.set(None);
                false
            }
        }
    }

    fn counters(&self) -> &EndpointCounters {
        self.spec.counters_of(self.reporter.thread())
    }
}

/// A claim on an endpoint: one request that the endpoint was chosen for. The request counts as in
/// flight until the claim is dropped.
///
/// Drop the connection before the claim.
pub(crate) struct Claim {
    endpoint: Rc<Endpoint>,
    tunnel: bool,
}

impl Claim {
    /// Returns the id of the endpoint, which the caller notes as tried if the endpoint fails.
    pub(crate) fn id(&self) -> EndpointId {
        self.endpoint.id()
    }

    /// Returns the address on which the instance listens.
    pub(crate) fn address(&self) -> &Address {
        &self.endpoint.spec.address
    }

    /// Takes the most recently used idle connection that is still usable, or a place on a shared
    /// connection.
    pub(crate) fn take_idle(&self) -> Option<Upstream> {
        if self.endpoint.spec.protocol == Protocol::H2c {
            return self.endpoint.shared.request().map(Upstream::new);
        }
        let mut idle = self.endpoint.idle.borrow_mut();
        if idle.is_empty() {
            return None;
        }
        let now = Instant::now();
        while let Some(mut last) = idle.pop() {
            if now < last.until && last.upstream.is_reusable() {
                return Some(last.upstream);
            }
        }
        None
    }

    /// Ends the request and keeps its connection for others. The connection must be reusable:
    /// request and response complete, nothing unread. `keep_alive` is what the instance announced
    /// with `Keep-Alive: timeout=`.
    pub(crate) fn give_back(self, upstream: Upstream, keep_alive: Option<Duration>) {
        let limit = idle_limit(INSTANCE_IDLE_LIMIT, keep_alive);
        let mut idle = self.endpoint.idle.borrow_mut();
        let exclusive = self.endpoint.spec.protocol == Protocol::Http1;
        let kept = exclusive && !limit.is_zero() && idle.len() < MOST_IDLE;
        if kept && !self.endpoint.draining.get() {
            let until = Instant::now() + limit;
            idle.push(Idle { upstream, until });
        }
        // Otherwise the connection is closed here, before the claim ends.
    }

    /// Ends the request like [`give_back`](Claim::give_back), but keeps the connection for one
    /// client alone. `None` if the connection was closed instead.
    pub(crate) fn pin(self, upstream: Upstream, keep_alive: Option<Duration>) -> Option<Pin> {
        let endpoint = &self.endpoint;
        if endpoint.spec.protocol != Protocol::Http1 || endpoint.draining.get() {
            return None;
        }
        let until = Instant::now() + idle_limit(PINNED_IDLE_LIMIT, keep_alive);
        let place = endpoint.pins.add(upstream, until);
        let endpoint = endpoint.clone();
        Some(Pin { place, endpoint })
    }

    /// Opens a new connection to the instance. A failure is counted, and for a short time the
    /// endpoint is then chosen only if there is no other.
    pub(crate) async fn connect(&self) -> io::Result<Stream> {
        let result = match self.endpoint.spec.protocol {
            Protocol::Http1 => Socket::connect(self.address()).await.map(Stream::from),
            Protocol::H2c => self.connect_shared().await,
        };
        match &result {
            Ok(_) => self.endpoint.penalised_until.set(None),
            Err(error) if is_own_lack(error) => {}
            Err(_) => {
                self.endpoint
                    .penalised_until
                    .set(Some(Instant::now() + PENALTY));
                self.count_failure();
            }
        }
        result
    }

    async fn connect_shared(&self) -> io::Result<Stream> {
        let Shared {
            connections,
            opened,
            opening,
        } = &self.endpoint.shared;
        let before = opened.get();
        let _turn = opening.lock().await;
        if opened.get() != before
            && let Some(request) = self.endpoint.shared.request()
        {
            return Ok(request);
        }
        let socket = Socket::connect(self.address()).await?;
        let connection = InstanceConnection::open(socket).await?;
        let request = connection.request().into();
        opened.set(opened.get() + 1);
        if !self.endpoint.draining.get() {
            connections.borrow_mut().push(connection);
        }
        Ok(request)
    }

    /// Turns the request into a tunnel, which does not count as in flight any more.
    pub(crate) fn become_tunnel(&mut self) {
        if !self.tunnel {
            self.tunnel = true;
            self.endpoint.counters().begin_tunnel();
            self.end_request();
        }
    }

    /// Resolves when the endpoint drains.
    pub(crate) async fn drains(&self) {
        let drains = self.endpoint.drains.notified();
        if !self.endpoint.draining.get() {
            drains.await;
        }
    }

    /// Resolves when the tunnels to the endpoint must end.
    pub(crate) async fn cut(&self) {
        let cuts = self.endpoint.cuts.notified();
        if !self.endpoint.cut.get() {
            cuts.await;
        }
    }

    fn end_request(&self) {
        let left = self.endpoint.counters().end_request();
        if left == 0 && self.endpoint.draining.get() {
            self.endpoint.reporter.idle(self.id());
        }
    }

    /// Counts a failed request of the endpoint after the connection was established: no response,
    /// or a broken one.
    pub(crate) fn count_failure(&self) {
        self.endpoint.counters().add_failure();
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if self.tunnel {
            self.endpoint.counters().end_tunnel();
        } else {
            self.end_request();
        }
    }
}

/// A connection to an instance that belongs to one client's connection, between two requests. It is
/// closed when the pin is dropped.
pub(crate) struct Pin {
    place: Rc<PinnedPlace>,
    endpoint: Rc<Endpoint>,
}

impl Pin {
    /// Claims the endpoint for another request on the connection; `None` if the connection cannot
    /// be used any more.
    pub(crate) fn claim(self) -> Option<(Upstream, Claim)> {
        let (mut upstream, until) = self.place.take()?;
        let is_usable = Instant::now() < until && upstream.is_reusable();
        // The place is empty once the endpoint drains.
        is_usable.then(|| (upstream, self.endpoint.claim()))
    }
}

/// Returns how long a connection may lie idle: at most as long as `most`, and less than what the
/// instance has announced.
fn idle_limit(most: Duration, announced: Option<Duration>) -> Duration {
    announced.map_or(most, |announced| {
        most.min(announced.saturating_sub(IDLE_MARGIN))
    })
}

#[cfg(test)]
mod tests {
    use tokio::net::{UnixListener, UnixStream};
    use tokio::sync::mpsc;

    use super::*;
    use crate::ipc::{EndpointCounts, Probe};
    use crate::proxy::net::socket::ToInstance;
    use crate::proxy::shared::threads::{ThreadEvent, ThreadReport};

    const ID: EndpointId = EndpointId(3);

    struct Fixture {
        endpoint: Rc<Endpoint>,
        reports: mpsc::UnboundedReceiver<ThreadReport>,
        server: UnixListener,
        _directory: tempfile::TempDir,
    }

    impl Fixture {
        fn new() -> Fixture {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("socket");
            let server = UnixListener::bind(&path).unwrap();
            let (report, reports) = mpsc::unbounded_channel();
            let spec = Arc::new(EndpointSpec::new(
                ID,
                Address::Unix(path),
                Probe::Connect,
                1,
            ));
            Fixture {
                endpoint: Rc::new(Endpoint::new(spec, Reporter::new(0, report))),
                reports,
                server,
                _directory: directory,
            }
        }

        fn claim(&self) -> Claim {
            self.endpoint.clone().claim()
        }

        /// Runs a request that leaves an idle connection behind, and returns the instance's end of
        /// it.
        async fn leave_idle(&self, keep_alive: Option<Duration>) -> UnixStream {
            let claim = self.claim();
            let upstream = Upstream::new(claim.connect().await.unwrap());
            let (instance, _) = self.server.accept().await.unwrap();
            claim.give_back(upstream, keep_alive);
            instance
        }

        fn is_reported_idle(&mut self) -> bool {
            let report = self.reports.try_recv();
            let endpoint = ID;
            report.is_ok_and(|report| report.event == ThreadEvent::Idle { endpoint, table: 0 })
        }
    }

    /// Returns true if our end of the connection is closed.
    fn is_closed(instance: &UnixStream) -> bool {
        use std::os::fd::AsFd;
        let mut byte = [0];
        let flags = rustix::net::RecvFlags::DONTWAIT;
        rustix::net::recv(instance.as_fd(), &mut byte[..], flags).is_ok_and(|(_, count)| count == 0)
    }

    #[tokio::test]
    async fn the_connection_that_was_used_last_is_used_next() {
        let fixture = Fixture::new();
        let first = fixture.claim();
        let old = Upstream::new(first.connect().await.unwrap());
        let second = fixture.claim();
        let new = Upstream::new(second.connect().await.unwrap());
        let (_old_peer, _) = fixture.server.accept().await.unwrap();
        let (new_peer, _) = fixture.server.accept().await.unwrap();
        first.give_back(old, None);
        second.give_back(new, None);
        drop(fixture.claim().take_idle().unwrap());
        assert!(is_closed(&new_peer));
        assert!(fixture.claim().take_idle().is_some());
        assert!(fixture.claim().take_idle().is_none());
    }

    #[tokio::test]
    async fn idle_connections_end_before_the_instance_would_end_them() {
        for (keep_alive, limit) in [(None, 2000), (Some(60), 2000), (Some(2), 1000)] {
            let fixture = Fixture::new();
            let instance = fixture
                .leave_idle(keep_alive.map(Duration::from_secs))
                .await;
            let now = Instant::now();
            fixture
                .endpoint
                .sweep(now + Duration::from_millis(limit - 100));
            assert!(!is_closed(&instance));
            fixture.endpoint.sweep(now + Duration::from_millis(limit));
            assert!(is_closed(&instance));
        }
        let fixture = Fixture::new();
        assert!(is_closed(
            &fixture.leave_idle(Some(Duration::from_secs(1))).await
        ));
    }

    #[tokio::test]
    async fn what_has_been_idle_for_longest_is_closed_first_to_make_room() {
        let fixture = Fixture::new();
        let before = ToInstance::count();
        let (one, other) = (fixture.claim(), fixture.claim());
        let streams = [one.connect().await.unwrap(), other.connect().await.unwrap()];
        let mut instances = Vec::new();
        for (claim, stream) in [one, other].into_iter().zip(streams) {
            instances.push(fixture.server.accept().await.unwrap().0);
            claim.give_back(Upstream::new(stream), None);
        }
        assert_eq!(ToInstance::count(), before + 2);
        assert!(fixture.endpoint.close_one_idle());
        assert_eq!(ToInstance::count(), before + 1);
        let closed: Vec<bool> = instances.iter().map(is_closed).collect();
        assert_eq!(closed, [true, false]);
        assert!(fixture.endpoint.close_one_idle());
        assert!(!fixture.endpoint.close_one_idle());
    }

    #[tokio::test]
    async fn race_01_idle_connections_are_closed_before_the_endpoint_is_reported_idle() {
        let mut fixture = Fixture::new();
        let instance = fixture.leave_idle(None).await;
        assert!(!fixture.is_reported_idle());
        fixture.endpoint.drain();
        assert!(is_closed(&instance));
        assert!(fixture.is_reported_idle());
    }

    #[tokio::test]
    async fn race_02_a_claim_counts_from_the_choice_to_the_end_of_its_connection() {
        let mut fixture = Fixture::new();
        let claim = fixture.claim();
        fixture.endpoint.drain();
        assert!(!fixture.is_reported_idle());
        let upstream = Upstream::new(claim.connect().await.unwrap());
        let (instance, _) = fixture.server.accept().await.unwrap();
        claim.give_back(upstream, None);
        assert!(
            is_closed(&instance),
            "nothing goes back to a draining endpoint"
        );
        assert!(fixture.is_reported_idle());
        assert_eq!(fixture.endpoint.in_flight(), 0);
    }

    #[tokio::test]
    async fn a_tunnel_is_not_waited_for_but_can_be_cut() {
        let mut fixture = Fixture::new();
        let mut claim = fixture.claim();
        fixture.endpoint.drain();
        assert!(!fixture.is_reported_idle());
        claim.become_tunnel();
        assert!(fixture.is_reported_idle());
        let counts = fixture.endpoint.spec.counts();
        assert_eq!((counts.in_flight, counts.tunnels), (0, 1));
        assert!(fixture.endpoint.is_in_use());
        let cutting = async { fixture.endpoint.cut() };
        tokio::join!(claim.cut(), cutting);
        claim.cut().await;
        drop(claim);
        assert!(!fixture.endpoint.is_in_use());
        assert!(!fixture.is_reported_idle(), "it is said once");
    }

    #[tokio::test]
    async fn counters_count() {
        let fixture = Fixture::new();
        let held = fixture.claim();
        fixture.claim().count_failure();
        let counts = fixture.endpoint.spec.counts();
        drop(held);
        let expected = EndpointCounts {
            id: ID,
            in_flight: 1,
            tunnels: 0,
            requests: 2,
            failures: 1,
        };
        assert_eq!(counts, expected);
    }
}
