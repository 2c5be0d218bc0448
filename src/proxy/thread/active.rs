//! The client connections of a thread that have a task, so that the overload guard can end those
//! that hold most memory.

use std::cell::RefCell;
use std::cmp::Reverse;
use std::rc::{Rc, Weak};

use crate::proxy::net::held::Held;
use crate::proxy::shared::threads::Excess;

/// How many connections are ended at once: what is in use is known better after that.
const MOST_ENDED: usize = 32;

/// The connections that have a task.
#[derive(Default)]
pub(super) struct Active {
    /// Each connection at its place; the place of one that has ended is empty.
    connections: RefCell<Vec<Option<Weak<Held>>>>,
    /// The empty places.
    free: RefCell<Vec<usize>>,
}

impl Active {
    /// Adds a connection, by what it holds, and returns its place.
    pub(super) fn add(&self, held: &Rc<Held>) -> usize {
        let held = Some(Rc::downgrade(held));
        let mut connections = self.connections.borrow_mut();
        match self.free.borrow_mut().pop() {
            Some(place) => {
                connections[place] = held;
                place
            }
            None => {
                connections.push(held);
                connections.len() - 1
            }
        }
    }

    /// Removes the connection at this place, which has ended. What is left of it would keep the
    /// memory around it from being given back.
    pub(super) fn remove(&self, place: usize) {
        self.connections.borrow_mut()[place] = None;
        self.free.borrow_mut().push(place);
    }

    /// Ends the connections that hold most, as far as `excess` says, and returns how many.
    pub(super) fn end_largest(&self, excess: Excess) -> usize {
        let connections = self.connections.borrow();
        let connections = connections.iter().flatten().filter_map(Weak::upgrade);
        let mut large: Vec<Rc<Held>> = connections
            .filter(|held| held.total() >= excess.least)
            .collect();
        large.sort_by_key(|held| Reverse(held.total()));
        let mut freed = 0;
        let ended = large.iter().take(MOST_ENDED).take_while(|held| {
            let goes_on = freed < excess.bytes;
            if goes_on {
                freed += held.total();
                held.end();
            }
            goes_on
        });
        ended.count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_end_first_and_no_more_than_needed() {
        let active = Active::default();
        // Beside these, each holds the same for its request.
        let sizes = [10, 500_000, 300_000, 400_000];
        let held = sizes.map(|_| Rc::new(Held::default()));
        let _heads: Vec<_> = held
            .iter()
            .zip(sizes)
            .map(|(held, size)| {
                active.add(held);
                held.hold(size)
            })
            .collect();
        let end = |least, bytes| active.end_largest(Excess { least, bytes });
        assert_eq!(end(400_000, 10_000_000), 2);
        assert_eq!(end(1, 600_000), 2);
        assert_eq!(end(1, 500_000), 1);
        assert_eq!(end(600_000, 1), 0);
    }

    #[test]
    fn connections_that_have_ended_leave_their_places() {
        let active = Active::default();
        let stays = active.add(&Rc::default());
        for _ in 0..10_000 {
            let place = active.add(&Rc::default());
            assert_ne!(place, stays);
            active.remove(place);
        }
        assert_eq!(active.connections.borrow().len(), 2);
    }
}
