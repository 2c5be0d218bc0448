//! The room of a data thread for requests in flight: how many it has, and who gets it.
//!
//! # Theory of operation
//! A request in flight may hold a connection to an instance, and the thread has its share of
//! descriptors for these ([`Budget`](crate::proxy::shared::budget::Budget)). So each request takes
//! a [`Seat`] before it claims an instance, and keeps it until it has ended. A request whose
//! instance is not connected yet, and one that waits for the rest of its own body, has a seat as
//! well: an instance may need the beginning of a request, or may answer before its end.
//!
//! Strangers decide how many requests come. What one service and one client may take of the room
//! follows from how much is free (the *dynamic threshold* of shared buffers in switches): a request
//! gets a seat if the seats that its service and its client have are fewer than those that are
//! free. So a service gets half of the room at most, and a single client gets a third of it from
//! one service, and half of it from many. However many clients and services take what they can
//! get, something stays free, and who has little gets it at once. Nothing is set aside for who does
//! not need it, and no number has to be configured.
//!
//! Who gets no seat waits in the queue of its service, which is fair to clients. When a seat
//! becomes free, the services with waiting requests take turns. A request that can have a seat
//! passes those that wait, because each of them waits for its own service or client.
//!
//! All of this belongs to one thread: taking a seat changes a few numbers that no other thread
//! sees.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::rc::{Rc, Weak};
use std::sync::Arc;

use tokio::sync::oneshot;

use crate::proxy::shared::bound_counters::BoundCounters;
use crate::proxy::shared::client_key::ClientKey;
use crate::proxy::shared::fair_queue::FairQueue;
use crate::proxy::shared::in_flight::Permit;

/// How many requests of a service may wait for a seat, on each thread.
const MOST_WAITING: usize = 1024;

/// With fewer clients than this, those that are gone are not looked for.
const FEW_CLIENTS: usize = 64;

/// The room of one thread.
pub(crate) struct Room {
    /// How many requests may be in flight.
    most: u32,
    counters: Arc<BoundCounters>,
    taken: Cell<u32>,
    /// Services with waiting requests, each once; the first has the next turn.
    turns: RefCell<VecDeque<Rc<Occupancy>>>,
    clients: RefCell<Clients>,
}

/// The clients that have a connection on the thread.
#[derive(Default)]
struct Clients {
    known: HashMap<ClientKey, Weak<Requester>>,
    /// With more clients than this, those that are gone are removed.
    most: usize,
}

/// What one service has of the room.
pub(crate) struct Occupancy {
    taken: Cell<u32>,
    waiting: RefCell<FairQueue<Waiting>>,
    /// True if the service has a turn.
    has_turn: Cell<bool>,
}

/// What one client has of the room, over all its connections on this thread.
pub(crate) struct Requester {
    /// `None` for a trusted proxy, which speaks for many clients.
    origin: Option<ClientKey>,
    taken: Cell<u32>,
}

struct Waiting {
    requester: Rc<Requester>,
    grant: oneshot::Sender<Seat>,
}

/// The seat of one request, until this value is dropped. Drop the claim on an instance before.
pub(crate) struct Seat {
    room: Rc<Room>,
    occupancy: Rc<Occupancy>,
    requester: Rc<Requester>,
    /// The permit of a service that has a limit of its own.
    pub(super) permit: Option<Permit>,
}

impl Room {
    /// Makes an empty room for this many requests. What becomes of them is counted by `counters`.
    pub(crate) fn new(most: u32, counters: Arc<BoundCounters>) -> Rc<Room> {
        Rc::new(Room {
            most,
            counters,
            taken: Cell::new(0),
            turns: RefCell::default(),
            clients: RefCell::default(),
        })
    }

    /// The counters of the thread.
    pub(crate) fn counters(&self) -> &BoundCounters {
        &self.counters
    }

    /// Returns how many requests may be in flight.
    pub(crate) fn most(&self) -> u32 {
        self.most
    }

    /// Returns what a client has of the room; `None` stands for trusted proxies.
    pub(crate) fn requester(&self, origin: Option<ClientKey>) -> Rc<Requester> {
        let new = || {
            Rc::new(Requester {
                origin,
                taken: Cell::new(0),
            })
        };
        let Some(origin) = origin else {
            return new();
        };
        let mut clients = self.clients.borrow_mut();
        if let Some(known) = clients.known.get(&origin).and_then(Weak::upgrade) {
            return known;
        }
        if clients.known.len() >= clients.most {
            clients.known.retain(|_, known| known.strong_count() > 0);
            clients.most = FEW_CLIENTS.max(clients.known.len() * 2);
        }
        let requester = new();
        clients.known.insert(origin, Rc::downgrade(&requester));
        requester
    }

    /// Takes a seat, if the service and the client may have another one.
    pub(crate) fn take(
        self: &Rc<Self>,
        occupancy: &Rc<Occupancy>,
        requester: &Rc<Requester>,
    ) -> Option<Seat> {
        if !self.may_take(occupancy, requester) {
            return None;
        }
        self.taken.set(self.taken.get() + 1);
        occupancy.taken.set(occupancy.taken.get() + 1);
        requester.taken.set(requester.taken.get() + 1);
        Some(Seat {
            room: self.clone(),
            occupancy: occupancy.clone(),
            requester: requester.clone(),
            permit: None,
        })
    }

    fn may_take(&self, occupancy: &Occupancy, requester: &Requester) -> bool {
        let of_client = match requester.origin {
            Some(_) => requester.taken.get(),
            None => 0,
        };
        occupancy.taken.get() + of_client < self.free()
    }

    fn free(&self) -> u32 {
        self.most.saturating_sub(self.taken.get())
    }

    /// Begins to wait for a seat. The receiver fails if too many wait already.
    pub(crate) fn wait(
        &self,
        occupancy: &Rc<Occupancy>,
        requester: &Rc<Requester>,
    ) -> oneshot::Receiver<Seat> {
        let (grant, granted) = oneshot::channel();
        let waiting = Waiting {
            requester: requester.clone(),
            grant,
        };
        let displaced = {
            let mut queue = occupancy.waiting.borrow_mut();
            if queue.len() as usize >= MOST_WAITING {
                queue.retain(|waiting| !waiting.grant.is_closed());
            }
            queue.push(requester.origin, waiting)
        };
        drop(displaced);
        if !occupancy.has_turn.replace(true) {
            self.turns.borrow_mut().push_back(occupancy.clone());
        }
        granted
    }

    /// Gives the free seats to those that wait, until each service has had a turn in vain.
    fn grant(self: &Rc<Self>) {
        let mut in_vain = 0;
        loop {
            let (occupancy, others) = {
                let mut turns = self.turns.borrow_mut();
                let Some(next) = turns.pop_front() else {
                    return;
                };
                (next, turns.len())
            };
            // If the service has its part of the room, none of its clients has to be looked at.
            let next = match occupancy.taken.get() < self.free() {
                true => occupancy.waiting.borrow_mut().pop(|waiting| {
                    waiting.grant.is_closed() || self.may_take(&occupancy, &waiting.requester)
                }),
                false => None,
            };
            in_vain = if next.is_some() { 0 } else { in_vain + 1 };
            match occupancy.waiting.borrow().is_empty() {
                true => occupancy.has_turn.set(false),
                false => self.turns.borrow_mut().push_back(occupancy.clone()),
            }
            if let Some(Waiting { requester, grant }) = next
                && !grant.is_closed()
                && let Some(seat) = self.take(&occupancy, &requester)
            {
                // The receiver lives on this thread and was there a moment ago.
                drop(grant.send(seat));
            }
            if in_vain > others {
                return;
            }
        }
    }
}

impl Default for Occupancy {
    fn default() -> Occupancy {
        Occupancy {
            taken: Cell::new(0),
            waiting: RefCell::new(FairQueue::new(MOST_WAITING)),
            has_turn: Cell::new(false),
        }
    }
}

impl Requester {
    /// The client; `None` for a trusted proxy.
    pub(crate) fn origin(&self) -> Option<ClientKey> {
        self.origin
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let Seat {
            room,
            occupancy,
            requester,
            ..
        } = self;
        room.taken.set(room.taken.get() - 1);
        occupancy.taken.set(occupancy.taken.get() - 1);
        requester.taken.set(requester.taken.get() - 1);
        if !room.turns.borrow().is_empty() {
            room.grant();
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn room(most: u32) -> Rc<Room> {
        Room::new(most, Arc::default())
    }

    fn take_all(room: &Rc<Room>, service: &Rc<Occupancy>, client: &Rc<Requester>) -> Vec<Seat> {
        std::iter::from_fn(|| room.take(service, client)).collect()
    }

    fn client(room: &Room, number: u32) -> Rc<Requester> {
        room.requester(Some(ClientKey::V4(number)))
    }

    #[test]
    fn one_client_gets_a_third_and_one_service_half() {
        let room = room(600);
        let [attacked, other] = [(), ()].map(|()| Rc::<Occupancy>::default());
        let mut held = take_all(&room, &attacked, &client(&room, 1));
        assert_eq!(held.len(), 200);
        for number in 2..1000 {
            held.extend(take_all(&room, &attacked, &client(&room, number)));
        }
        assert_eq!(held.len(), 300);
        assert!(room.take(&attacked, &client(&room, 5000)).is_none());
        let good = client(&room, 5000);
        assert_eq!(take_all(&room, &other, &good).len(), 100);
        drop(held);
        assert_eq!(room.taken.get(), 0);
    }

    #[test]
    fn a_trusted_proxy_is_not_one_client() {
        let room = room(600);
        let service = Rc::default();
        let proxy = room.requester(None);
        assert_eq!(take_all(&room, &service, &proxy).len(), 300);
    }

    #[test]
    fn all_connections_of_a_client_count_together() {
        let room = room(9);
        let service = Rc::default();
        let held = take_all(&room, &service, &client(&room, 1));
        assert_eq!(held.len(), 3);
        assert!(room.take(&Rc::default(), &client(&room, 2)).is_some());
        assert_eq!(client(&room, 1).taken.get(), 3);
        drop(held);
        assert_eq!(client(&room, 1).taken.get(), 0);
    }

    #[test]
    fn the_seats_that_become_free_go_to_clients_and_services_by_turns() {
        let room = room(4);
        let services = [(), ()].map(|()| Rc::<Occupancy>::default());
        let [a, b, c] = [1, 2, 3].map(|number| client(&room, number));
        let mut held: Vec<Seat> = take_all(&room, &services[0], &room.requester(None));
        held.extend(take_all(&room, &services[1], &room.requester(None)));
        let mut waiting = [(0, &a), (0, &a), (0, &b), (1, &c)]
            .map(|(service, client)| room.wait(&services[service], client));
        let mut order = Vec::new();
        let mut granted = Vec::new();
        while order.len() < waiting.len() {
            held.pop();
            for (index, waiting) in waiting.iter_mut().enumerate() {
                if let Ok(seat) = waiting.try_recv() {
                    order.push(index);
                    granted.push(seat);
                }
            }
            if held.is_empty() && !granted.is_empty() {
                granted.remove(0);
            }
        }
        let position = |index| order.iter().position(|other| *other == index).unwrap();
        assert!(position(2) < position(1), "{order:?}");
        drop(granted);
        assert_eq!(room.taken.get(), 0);
        assert!(room.turns.borrow().is_empty());
    }

    #[test]
    fn clients_that_are_gone_are_forgotten() {
        let room = room(9);
        for number in 0..10_000 {
            client(&room, number);
        }
        assert!(room.clients.borrow().known.len() <= FEW_CLIENTS);
    }

    proptest! {
        /// Whatever comes, the room is never too full, a newcomer of a new service gets a seat as
        /// long as there are two, and when all is over everybody has been served.
        #[test]
        fn something_is_free_for_a_newcomer(
            most in 1..40u32,
            steps in prop::collection::vec((0..3usize, 1..5u32, any::<bool>()), 0..200),
        ) {
            let room = room(most);
            let services = [(), (), ()].map(|()| Rc::<Occupancy>::default());
            let clients: Vec<_> = (0..5).map(|number| client(&room, number)).collect();
            let mut held = VecDeque::new();
            let mut waiting: Vec<oneshot::Receiver<Seat>> = Vec::new();
            for (service, number, ends) in steps {
                if ends {
                    held.pop_front();
                }
                let (service, client) = (&services[service], &clients[number as usize]);
                match room.take(service, client) {
                    Some(seat) => held.push_back(seat),
                    None => waiting.push(room.wait(service, client)),
                }
                waiting.retain_mut(|waiting| match waiting.try_recv() {
                    Ok(seat) => {
                        held.push_back(seat);
                        false
                    }
                    Err(_) => true,
                });
                prop_assert_eq!(room.taken.get() as usize, held.len());
                prop_assert!(room.taken.get() <= most);
            }
            if most - room.taken.get() > 0 {
                let newcomer = room.take(&Rc::default(), &client(&room, 99));
                prop_assert!(newcomer.is_some());
            }
            while !waiting.is_empty() {
                prop_assert!(held.pop_front().is_some(), "somebody waits for nobody");
                waiting.retain_mut(|waiting| match waiting.try_recv() {
                    Ok(seat) => {
                        held.push_back(seat);
                        false
                    }
                    Err(_) => true,
                });
            }
        }
    }
}
