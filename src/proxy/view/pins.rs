//! Connections to an instance that each belong to one client's connection.
//!
//! Some ways to authenticate (NTLM, and Negotiate, which may use it) prove the identity of a client
//! once, and then every request on the same connection counts as that client's. Such a connection
//! must never carry the request of anybody else.
//!
//! # Theory of operation
//! Between two requests, a pinned connection lies in a [`PinnedPlace`]. The client's connection
//! owns the place, so the pinned connection is closed with it, and there is at most one for each
//! client's connection. The endpoint knows the places, so that it can close what lies in them when
//! it drains, like its idle connections.

use std::cell::RefCell;
use std::rc::{Rc, Weak};

use tokio::time::Instant;

use super::upstream::Upstream;

/// Where a pinned connection lies between two requests; empty once the connection was closed.
pub(super) type PinnedPlace = RefCell<Option<(Upstream, Instant)>>;

/// The places of the pinned connections to one endpoint.
#[derive(Default)]
pub(super) struct Pins(RefCell<Vec<Weak<PinnedPlace>>>);

impl Pins {
    /// Makes a place for a connection, which may lie there until `until`.
    pub(super) fn add(&self, upstream: Upstream, until: Instant) -> Rc<PinnedPlace> {
        let place = Rc::new(RefCell::new(Some((upstream, until))));
        let mut places = self.0.borrow_mut();
        if places.len() == places.capacity() {
            places.retain(|place| place.strong_count() > 0);
        }
        places.push(Rc::downgrade(&place));
        place
    }

    /// Closes all connections that no request uses.
    pub(super) fn close(&self) {
        for place in self.0.take().iter().filter_map(Weak::upgrade) {
            place.take();
        }
    }

    /// Closes connections that are too old, and those that the instance has closed.
    pub(super) fn sweep(&self, now: Instant) {
        self.0.borrow_mut().retain(|place| {
            let Some(place) = place.upgrade() else {
                return false;
            };
            let mut place = place.borrow_mut();
            let is_wanted = |(upstream, until): &mut (Upstream, Instant)| {
                now < *until && upstream.is_reusable()
            };
            if !place.as_mut().is_some_and(is_wanted) {
                *place = None;
            }
            place.is_some()
        });
    }
}
