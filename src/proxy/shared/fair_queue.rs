//! A queue that is fair to the clients that wait in it, whatever one of them does. Pure.
//!
//! # Theory of operation
//! The entries of each client stand in a lane of their own, in the order in which they came. The
//! lanes take turns. So a client that has a thousand entries in the queue delays another client by
//! one entry. Entries without a client (those of trusted proxies, who speak for many) share a lane.
//!
//! The queue is bounded. If it is full, a new entry takes the place of the newest entry of the
//! client with the most entries, unless its own client would then have the most.

use std::collections::{HashMap, VecDeque};

use super::client_key::ClientKey;

/// Entries that wait for their turn.
#[derive(Debug)]
pub(crate) struct FairQueue<T> {
    most: usize,
    length: usize,
    lanes: HashMap<Option<ClientKey>, VecDeque<T>>,
    /// The clients with entries, each once; the first has the next turn.
    turns: VecDeque<Option<ClientKey>>,
}

impl<T> FairQueue<T> {
    /// Makes an empty queue that takes at most this many entries.
    pub(crate) fn new(most: usize) -> FairQueue<T> {
        FairQueue {
            most,
            length: 0,
            lanes: HashMap::new(),
            turns: VecDeque::new(),
        }
    }

    /// Returns true if nobody waits.
    pub(crate) fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Returns how many entries the queue has.
    pub(crate) fn len(&self) -> u32 {
        u32::try_from(self.length).unwrap_or(u32::MAX)
    }

    /// Adds an entry of a client. If the queue is full, it returns the entry that has to go: this
    /// one or another.
    pub(crate) fn push(&mut self, client: Option<ClientKey>, entry: T) -> Option<T> {
        let mut displaced = None;
        if self.length >= self.most {
            let own = self.lanes.get(&client).map_or(0, VecDeque::len);
            let longest = self.lanes.iter().max_by_key(|(_, lane)| lane.len());
            match longest.map(|(other, lane)| (*other, lane.len())) {
                Some((other, length)) if own + 1 < length => {
                    displaced = self.lanes.get_mut(&other).and_then(VecDeque::pop_back);
                    self.length -= 1;
                }
                _ => return Some(entry),
            }
        }
        let lane = self.lanes.entry(client).or_default();
        if lane.is_empty() {
            self.turns.push_back(client);
        }
        lane.push_back(entry);
        self.length += 1;
        displaced
    }

    /// Takes the first entry of the first client, by turns, that `may` have one.
    pub(crate) fn pop(&mut self, mut may: impl FnMut(&T) -> bool) -> Option<T> {
        for _ in 0..self.turns.len() {
            let client = self.turns.pop_front()?;
            let Some(lane) = self.lanes.get_mut(&client) else {
                continue;
            };
            let entry = match lane.front() {
                Some(first) if may(first) => lane.pop_front(),
                _ => None,
            };
            match lane.is_empty() {
                true => drop(self.lanes.remove(&client)),
                false => self.turns.push_back(client),
            }
            if entry.is_some() {
                self.length -= 1;
                return entry;
            }
        }
        None
    }

    /// Removes the entries that are not to `stay`.
    pub(crate) fn retain(&mut self, mut stay: impl FnMut(&T) -> bool) {
        for lane in self.lanes.values_mut() {
            lane.retain(&mut stay);
        }
        self.lanes.retain(|_, lane| !lane.is_empty());
        let lanes = &self.lanes;
        self.turns.retain(|client| lanes.contains_key(client));
        self.length = self.lanes.values().map(VecDeque::len).sum();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const A: Option<ClientKey> = Some(ClientKey::V4(1));
    const B: Option<ClientKey> = Some(ClientKey::V4(2));

    fn rest(queue: &mut FairQueue<u32>) -> Vec<u32> {
        std::iter::from_fn(|| queue.pop(|_| true)).collect()
    }

    #[test]
    fn clients_take_turns_and_each_keeps_its_order() {
        let mut queue = FairQueue::new(10);
        for (client, entry) in [(A, 1), (A, 2), (A, 3), (B, 4), (None, 5), (B, 6)] {
            assert_eq!(queue.push(client, entry), None);
        }
        assert_eq!(rest(&mut queue), [1, 4, 5, 2, 6, 3]);
        assert!(queue.is_empty());
    }

    #[test]
    fn a_client_that_may_not_go_on_keeps_nobody_waiting() {
        let mut queue = FairQueue::new(10);
        for (client, entry) in [(A, 1), (A, 2), (B, 3)] {
            queue.push(client, entry);
        }
        assert_eq!(queue.pop(|entry| *entry > 2), Some(3));
        assert_eq!(queue.pop(|entry| *entry > 2), None);
        assert_eq!(rest(&mut queue), [1, 2]);
    }

    #[test]
    fn who_waits_most_often_makes_room_for_others() {
        let mut queue = FairQueue::new(4);
        for entry in 1..=4 {
            assert_eq!(queue.push(A, entry), None);
        }
        assert_eq!(queue.push(A, 5), Some(5));
        assert_eq!(queue.push(B, 6), Some(4));
        assert_eq!(queue.push(B, 7), Some(3));
        assert_eq!(queue.push(B, 8), Some(8), "both have half of it");
        assert_eq!(rest(&mut queue), [1, 6, 2, 7]);
    }

    #[test]
    fn entries_that_were_given_up_leave_no_turn_behind() {
        let mut queue = FairQueue::new(4);
        for (client, entry) in [(A, 1), (B, 2), (A, 3)] {
            queue.push(client, entry);
        }
        queue.retain(|entry| *entry != 2);
        assert_eq!((queue.length, queue.turns.len()), (2, 1));
        assert_eq!(rest(&mut queue), [1, 3]);
    }

    proptest! {
        /// Whatever is pushed and popped, nothing is lost and the bound holds.
        #[test]
        fn nothing_is_lost(steps in prop::collection::vec((0..4u32, any::<bool>()), 0..60)) {
            let mut queue = FairQueue::new(5);
            let mut inside = std::collections::BTreeSet::new();
            for (number, (client, pop)) in steps.into_iter().enumerate() {
                let gone = match pop {
                    true => queue.pop(|_| true),
                    false => {
                        inside.insert(number);
                        queue.push(Some(ClientKey::V4(client)), number)
                    }
                };
                prop_assert!(!pop || gone.is_some() != inside.is_empty());
                if let Some(gone) = gone {
                    prop_assert!(inside.remove(&gone));
                }
                prop_assert!(inside.len() <= 5);
                prop_assert_eq!(queue.length, inside.len());
                prop_assert_eq!(queue.turns.len(), queue.lanes.len());
            }
        }
    }
}
