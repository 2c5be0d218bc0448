//! A service as a data thread sees it: which requests may go on, how an endpoint is chosen for
//! them, and which requests wait for an endpoint.
//!
//! # Theory of operation
//! A request is first admitted: it takes a seat in the room of the thread, and before that a
//! permit if the service has a limit of its own (`max_in_flight`). Only then does it claim an
//! endpoint. So a request that waits to be admitted keeps no endpoint from becoming idle, and a
//! request that was admitted keeps its seat over all tries and rollouts.
//!
//! A service that has handed over its sites gets no requests any more, but requests that were
//! routed to it before may still wait. Its endpoints drain only when none of these waits any more
//! ([`ServiceView::part`]): nobody else would answer them.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;

use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};

use super::bound_log::BoundLog;
use super::endpoint::{Claim, Endpoint};
use super::room::{Occupancy, Requester, Room, Seat};
use super::throttle::Throttle;
use crate::ipc::{EndpointId, Handling};
use crate::proxy::policy::compiled::Policy;
use crate::proxy::shared::client_key::ClientKey;
use crate::proxy::shared::fair_queue::FairQueue;
use crate::proxy::shared::in_flight::InFlight;

/// How many requests of a service may wait for an endpoint, on each thread.
const MOST_HELD: usize = 1024;

/// A request that waits for an endpoint.
type Held = oneshot::Sender<Result<Claim, NoEndpoint>>;

/// The view that a data thread has of a service. Connections that refer to the service keep the
/// view alive after a table has removed the service.
pub(crate) struct ServiceView {
    name: String,
    running: Cell<bool>,
    handling: Cell<Handling>,
    policy: RefCell<Option<Rc<Policy>>>,
    /// The active endpoints.
    endpoints: RefCell<Vec<Rc<Endpoint>>>,
    /// Where the next choice begins, so that endpoints of the same rank take turns.
    next: Cell<usize>,
    held: RefCell<FairQueue<Held>>,
    /// How many requests wait for anything before they claim an endpoint.
    searching: Cell<u32>,
    /// The endpoints that drain when no request waits any more.
    parting: RefCell<Vec<Rc<Endpoint>>>,
    occupancy: Rc<Occupancy>,
    /// The limit of a service that has one.
    in_flight: RefCell<Option<Arc<InFlight>>>,
    waiting: BoundLog,
    failures: Throttle,
}

/// Why a request got no endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NoEndpoint {
    /// The service was stopped or removed.
    #[error("the service is stopped")]
    Stopped,
    /// Too many requests are waiting already.
    #[error("too many requests are waiting for an instance")]
    Full,
    /// The service, or the client, has as many requests in flight as it may, and none of them ended
    /// in time.
    #[error("too many requests are in flight, and none of them ended in time")]
    Busy,
    /// No endpoint became ready in time.
    #[error("no instance became ready in time")]
    TimedOut,
}

impl ServiceView {
    /// Makes the view of a service before its first table: a stopped service without endpoints.
    pub(crate) fn new(name: String) -> ServiceView {
        ServiceView {
            name,
            running: Cell::new(false),
            handling: Cell::default(),
            policy: RefCell::default(),
            endpoints: RefCell::default(),
            next: Cell::default(),
            held: RefCell::new(FairQueue::new(MOST_HELD)),
            searching: Cell::default(),
            parting: RefCell::default(),
            occupancy: Rc::default(),
            in_flight: RefCell::default(),
            waiting: BoundLog::default(),
            failures: Throttle::default(),
        }
    }

    /// The name of the service, which is unique in a table.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Returns false for a service that was stopped or removed: a request that finds no endpoint
    /// need not wait for one.
    pub(crate) fn running(&self) -> bool {
        self.running.get()
    }

    /// Returns true if a failed request of this service may be logged now. Otherwise the failure is
    /// counted.
    pub(crate) fn may_log_failure(&self) -> bool {
        self.failures.admits(&self.name)
    }

    /// Returns how the requests of the service are handled.
    pub(crate) fn handling(&self) -> Handling {
        self.handling.get()
    }

    /// Sets how a table wants the requests of the service to be handled.
    pub(crate) fn set_handling(&self, handling: Handling) {
        self.handling.set(handling);
    }

    /// Returns the compiled rules of the service; `None` if the service uses none.
    pub(crate) fn policy(&self) -> Option<Rc<Policy>> {
        self.policy.borrow().clone()
    }

    /// Sets the compiled rules that a table has for the service.
    pub(crate) fn set_policy(&self, policy: Option<Policy>) {
        *self.policy.borrow_mut() = policy.map(Rc::new);
    }

    /// Sets the limit of requests in flight that a table has for the service. If there is no limit
    /// any more, or if the service was stopped, those that wait need not wait any longer.
    pub(crate) fn set_in_flight(&self, in_flight: Option<Arc<InFlight>>) {
        let most = self.handling().max_in_flight;
        let most = most.filter(|_| self.running() && in_flight.is_some());
        let before = self.in_flight.replace(in_flight.clone());
        if let Some(limit) = in_flight.or(before) {
            limit.set_most(most);
        }
    }

    /// Lets a request go on, if it need not wait for others to end.
    pub(crate) fn try_admit(&self, room: &Rc<Room>, requester: &Rc<Requester>) -> Option<Seat> {
        let limit = self.in_flight.borrow();
        let permit = match &*limit {
            None => None,
            Some(limit) => Some(limit.try_take()?),
        };
        let mut seat = room.take(&self.occupancy, requester)?;
        seat.permit = permit;
        Some(seat)
    }

    /// Waits until the request may go on, and not longer than `until`. Clients take turns.
    pub(crate) async fn admit(
        &self,
        room: &Rc<Room>,
        requester: &Rc<Requester>,
        until: Instant,
    ) -> Result<Seat, NoEndpoint> {
        if !self.running() {
            return Err(NoEndpoint::Stopped);
        }
        let _waiting = self.waiting.begin(&self.name, room.counters());
        let admitted = self.admit_until(room, requester, until).await;
        if admitted.is_err() {
            room.counters().refuse_request();
        }
        admitted
    }

    async fn admit_until(
        &self,
        room: &Rc<Room>,
        requester: &Rc<Requester>,
        until: Instant,
    ) -> Result<Seat, NoEndpoint> {
        let limit = self.in_flight.borrow().clone();
        let permit = match limit {
            None => None,
            Some(limit) => Some(granted(limit.wait(requester.origin()), until).await?),
        };
        let mut seat = match room.take(&self.occupancy, requester) {
            Some(seat) => seat,
            None => granted(room.wait(&self.occupancy, requester), until).await?,
        };
        seat.permit = permit;
        Ok(seat)
    }

    /// Chooses the endpoint with the fewest requests in flight, in turn among equals, and claims
    /// it. An endpoint that fails its health check, or that has just refused a connection, is
    /// chosen only if there is no other. `None` if every active endpoint is in `tried`, or if there
    /// is none.
    pub(crate) fn claim(&self, tried: &[EndpointId]) -> Option<Claim> {
        let endpoints = self.endpoints.borrow();
        let count = endpoints.len();
        let first = self.next.get();
        let chosen = (0..count)
            .map(|offset| (first + offset) % count)
            .filter(|&index| !tried.contains(&endpoints[index].id()))
            .min_by_key(|&index| endpoints[index].rank())?;
        self.next.set((chosen + 1) % count);
        Some(endpoints[chosen].clone().claim())
    }

    /// Waits until the service has an active endpoint, and not longer than `until`, and claims it.
    /// The requests of a client are served in the order in which they came, and clients take turns.
    pub(crate) async fn hold(
        &self,
        client: Option<ClientKey>,
        until: Instant,
    ) -> Result<Claim, NoEndpoint> {
        if let Some(claim) = self.claim(&[]) {
            return Ok(claim);
        }
        if !self.running() {
            return Err(NoEndpoint::Stopped);
        }
        let answered = self.enqueue(client);
        match tokio::time::timeout_at(until, answered).await {
            Ok(answer) => answer.unwrap_or(Err(NoEndpoint::Full)),
            Err(_) => Err(NoEndpoint::TimedOut),
        }
    }

    /// Begins the wait of a request that has not claimed an endpoint, for whatever it waits.
    pub(crate) fn search(&self) -> Searching<'_> {
        self.searching.set(self.searching.get() + 1);
        Searching(self)
    }

    /// Returns true if a request waits that has not claimed an endpoint.
    pub(crate) fn is_searched(&self) -> bool {
        self.searching.get() > 0
    }

    /// Sets the endpoints that the service, which gets no requests any more, keeps for requests
    /// that wait. They drain when no request waits any more. Call [`ServiceView::update`] before,
    /// with these endpoints.
    pub(crate) fn part(&self, endpoints: Vec<Rc<Endpoint>>) {
        *self.parting.borrow_mut() = endpoints;
        self.look_at_parting();
    }

    fn look_at_parting(&self) {
        if self.is_searched() || self.parting.borrow().is_empty() {
            return;
        }
        let endpoints = self.parting.take();
        self.update(false, Vec::new());
        for endpoint in endpoints {
            endpoint.drain();
        }
    }

    /// Sets the endpoints that a table has for the service. Waiting requests get one before any
    /// request that comes later.
    pub(crate) fn update(&self, running: bool, endpoints: Vec<Rc<Endpoint>>) {
        self.running.set(running);
        *self.endpoints.borrow_mut() = endpoints;
        let answerable = !running || !self.endpoints.borrow().is_empty();
        if answerable {
            self.release();
        }
    }

    fn release(&self) {
        let mut held = self.held.replace(FairQueue::new(MOST_HELD));
        while let Some(waiting) = held.pop(|_| true) {
            // If the waiting request was given up, its claim is returned here and dropped.
            let _ = waiting.send(self.claim(&[]).ok_or(NoEndpoint::Stopped));
        }
    }

    /// Begins to wait for an endpoint. The receiver fails if too many wait already.
    fn enqueue(&self, client: Option<ClientKey>) -> oneshot::Receiver<Result<Claim, NoEndpoint>> {
        let mut held = self.held.borrow_mut();
        if held.len() as usize >= MOST_HELD {
            held.retain(|waiting| !waiting.is_closed());
        }
        let (answer, answered) = oneshot::channel();
        // A request whose place is gone gets no answer.
        drop(held.push(client, answer));
        answered
    }
}

/// A request that waits and has not claimed an endpoint, until this value is dropped. Drop it after
/// the claim.
pub(crate) struct Searching<'a>(&'a ServiceView);

impl Drop for Searching<'_> {
    fn drop(&mut self) {
        let service = self.0;
        service.searching.set(service.searching.get() - 1);
        service.look_at_parting();
    }
}

/// Waits for something that another request gives up, until a moment.
async fn granted<T>(granted: oneshot::Receiver<T>, until: Instant) -> Result<T, NoEndpoint> {
    match timeout_at(until, granted).await {
        Ok(Ok(granted)) => Ok(granted),
        Ok(Err(_)) => Err(NoEndpoint::Full),
        Err(_) => Err(NoEndpoint::Busy),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use tokio::sync::mpsc;
    use tokio::time::Instant;

    use super::*;
    use crate::ipc::{Address, Probe};
    use crate::proxy::shared::spec::EndpointSpec;
    use crate::proxy::shared::threads::Reporter;

    fn reporter() -> Reporter {
        let (reports, _) = mpsc::unbounded_channel();
        Reporter::new(0, reports)
    }

    /// An endpoint at which nobody listens.
    fn spec(id: u64) -> Arc<EndpointSpec> {
        let address = Address::Unix(format!("/nonexistent/{id}").into());
        Arc::new(EndpointSpec::new(
            EndpointId(id),
            address,
            Probe::Connect,
            1,
        ))
    }

    fn endpoint(id: u64) -> Rc<Endpoint> {
        Rc::new(Endpoint::new(spec(id), reporter()))
    }

    fn service(ids: std::ops::Range<u64>) -> ServiceView {
        let service = ServiceView::new("shop".to_owned());
        service.update(true, ids.map(endpoint).collect());
        service
    }

    fn claim(service: &ServiceView) -> Claim {
        service.claim(&[]).expect("there is an active endpoint")
    }

    #[test]
    fn equals_take_turns() {
        let service = service(0..3);
        let chosen: Vec<u64> = (0..6).map(|_| claim(&service).id().0).collect();
        assert_eq!(chosen, [0, 1, 2, 0, 1, 2]);
    }

    #[test]
    fn the_fewest_in_flight_are_chosen() {
        let service = service(0..3);
        let first = claim(&service);
        let _second = claim(&service);
        let _third = claim(&service);
        let free = first.id();
        drop(first);
        assert_eq!(claim(&service).id(), free);
        assert_eq!(claim(&service).id(), free);
    }

    #[test]
    fn what_was_tried_is_not_tried_again() {
        let service = service(0..2);
        let claim = service.claim(&[EndpointId(0)]).unwrap();
        assert_eq!(claim.id(), EndpointId(1));
        assert!(service.claim(&[EndpointId(0), EndpointId(1)]).is_none());
    }

    #[test]
    fn the_unhealthy_are_chosen_only_when_all_are() {
        let specs = [spec(0), spec(1)];
        let view = |spec: &Arc<EndpointSpec>| Rc::new(Endpoint::new(spec.clone(), reporter()));
        let service = ServiceView::new("shop".to_owned());
        service.update(true, specs.iter().map(view).collect());
        specs[0].set_out(true);
        let held: Vec<Claim> = (0..3).map(|_| claim(&service)).collect();
        assert!(held.iter().all(|claim| claim.id() == EndpointId(1)));
        specs[1].set_out(true);
        assert_eq!(claim(&service).id(), EndpointId(0));
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_refuses_connections_stands_back_for_a_moment() {
        let service = service(0..2);
        let refused = claim(&service);
        assert!(refused.connect().await.is_err());
        let refused = {
            let id = refused.id();
            drop(refused);
            id
        };
        for _ in 0..3 {
            assert_ne!(claim(&service).id(), refused);
        }
        tokio::time::advance(Duration::from_secs(2)).await;
        let chosen: Vec<EndpointId> = (0..2).map(|_| claim(&service).id()).collect();
        assert!(chosen.contains(&refused));
    }

    fn in_ten_seconds() -> Instant {
        Instant::now() + Duration::from_secs(10)
    }

    #[tokio::test(start_paused = true)]
    async fn a_held_request_gets_the_endpoint_that_appears() {
        let service = service(0..0);
        let appear = async {
            tokio::time::sleep(Duration::from_secs(9)).await;
            service.update(true, vec![endpoint(4)]);
        };
        let (held, ()) = tokio::join!(service.hold(None, in_ten_seconds()), appear);
        assert_eq!(held.unwrap().id(), EndpointId(4));
    }

    #[test]
    fn held_requests_are_answered_in_order_and_before_later_ones() {
        let service = service(0..0);
        let held: Vec<_> = (0..3).map(|_| service.enqueue(None)).collect();
        service.update(true, (0..4).map(endpoint).collect());
        let later = claim(&service);
        let held = held
            .into_iter()
            .map(|mut answer| answer.try_recv().unwrap().unwrap());
        let order: Vec<u64> = held.chain([later]).map(|claim| claim.id().0).collect();
        assert_eq!(order, [0, 1, 2, 3]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_held_request_waits_no_longer_than_the_limit() {
        let service = service(0..0);
        for seconds in [10, 3, 0] {
            let start = Instant::now();
            let result = service
                .hold(None, start + Duration::from_secs(seconds))
                .await;
            assert_eq!(result.err(), Some(NoEndpoint::TimedOut));
            assert_eq!(start.elapsed().as_secs(), seconds);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_stopped_service_holds_nothing() {
        let service = service(0..0);
        let stop = async { service.update(false, Vec::new()) };
        let (held, ()) = tokio::join!(service.hold(None, in_ten_seconds()), stop);
        assert_eq!(held.err(), Some(NoEndpoint::Stopped));
        let later = service.hold(None, in_ten_seconds()).await;
        assert_eq!(later.err(), Some(NoEndpoint::Stopped));
    }

    #[test]
    fn a_service_without_sites_answers_the_requests_that_wait_before_it_drains() {
        let service = service(0..1);
        let endpoint = service.endpoints.borrow()[0].clone();
        let [first, second] = [service.search(), service.search()];
        service.part(vec![endpoint.clone()]);
        let claimed = claim(&service);
        drop(first);
        assert!(!endpoint.is_draining());
        let last = claim(&service);
        drop(second);
        assert!(endpoint.is_draining() && service.claim(&[]).is_none());
        assert_eq!((claimed.id(), last.id()), (EndpointId(0), EndpointId(0)));
        service.part(vec![endpoint]);
        assert!(!service.running());
    }

    #[tokio::test(start_paused = true)]
    async fn held_requests_are_bounded_and_those_given_up_make_room() {
        let service = service(0..0);
        let mut waiting: Vec<_> = (0..MOST_HELD).map(|_| service.enqueue(None)).collect();
        assert_eq!(
            service.hold(None, in_ten_seconds()).await.err(),
            Some(NoEndpoint::Full)
        );
        waiting.pop();
        let waits = service.enqueue(None).try_recv().err();
        assert_eq!(waits, Some(oneshot::error::TryRecvError::Empty));
    }
}
