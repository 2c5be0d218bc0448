//! A service as a data thread sees it: the choice among its endpoints, and the requests that wait for one.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Duration;

use tokio::sync::oneshot;

use super::endpoint::{Claim, Endpoint};
use crate::ipc::EndpointId;

/// How long a request may wait for an endpoint.
const HOLD_LIMIT: Duration = Duration::from_secs(10);

/// How many requests may wait, per service and thread.
const MOST_HELD: usize = 1024;

/// The thread's view of a service. It survives the table that removes it, for the connections that still name it.
pub(crate) struct Service {
    name: String,
    running: Cell<bool>,
    /// The active ones.
    endpoints: RefCell<Vec<Rc<Endpoint>>>,
    /// Where the next choice begins, so that equals take turns.
    next: Cell<usize>,
    held: RefCell<VecDeque<oneshot::Sender<Result<Claim, NoEndpoint>>>>,
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
    /// None became ready in time.
    #[error("no instance became ready in time")]
    TimedOut,
}

impl Service {
    pub(crate) fn new(name: String) -> Service {
        Service {
            name,
            running: Cell::new(false),
            endpoints: RefCell::default(),
            next: Cell::default(),
            held: RefCell::default(),
        }
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// False for a service that was stopped or removed: a request that finds no endpoint need not wait for one.
    pub(crate) fn running(&self) -> bool {
        self.running.get()
    }

    /// Chooses the endpoint with the fewest requests in flight, in turn among equals, and counts the request in. One
    /// that fails its health check or was just refused a connection is chosen only if there is no other. `None` if
    /// every active endpoint was tried, or there is none.
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

    /// Waits, in the order of arrival, until there is an active endpoint, and claims it.
    pub(crate) async fn hold(&self) -> Result<Claim, NoEndpoint> {
        if let Some(claim) = self.claim(&[]) {
            return Ok(claim);
        }
        if !self.running() {
            return Err(NoEndpoint::Stopped);
        }
        let answered = self.enqueue()?;
        match tokio::time::timeout(HOLD_LIMIT, answered).await {
            Ok(answer) => answer.unwrap_or(Err(NoEndpoint::Stopped)),
            Err(_) => Err(NoEndpoint::TimedOut),
        }
    }

    /// Takes over what a table says. Waiting requests are answered before any that comes later.
    pub(crate) fn update(&self, running: bool, endpoints: Vec<Rc<Endpoint>>) {
        self.running.set(running);
        *self.endpoints.borrow_mut() = endpoints;
        let answerable = !running || !self.endpoints.borrow().is_empty();
        if answerable {
            self.release();
        }
    }

    fn release(&self) {
        for waiting in self.held.take() {
            // The claim of a request that was given up comes back and is dropped.
            let _ = waiting.send(self.claim(&[]).ok_or(NoEndpoint::Stopped));
        }
    }

    fn enqueue(&self) -> Result<oneshot::Receiver<Result<Claim, NoEndpoint>>, NoEndpoint> {
        let mut held = self.held.borrow_mut();
        if held.len() >= MOST_HELD {
            held.retain(|waiting| !waiting.is_closed());
        }
        if held.len() >= MOST_HELD {
            return Err(NoEndpoint::Full);
        }
        let (answer, answered) = oneshot::channel();
        held.push_back(answer);
        Ok(answered)
    }
}
