//! The overload guard: decides what the worker does when it uses much of its memory. Pure.
//!
//! # Theory of operation
//! Each connection has bounds of its own, but strangers decide how many connections there are. So
//! the control thread looks many times a second how much of the budget is in use, and goes through
//! steps ([`Overload`]). A step begins when a part of the budget is in use ([`BEGINS`]), and ends
//! when [`HYSTERESIS`] less is in use. Each step does what the steps before it do, too. The data
//! threads do not wait for a look before they refuse a stream or a connection.
//!
//! The order of the steps is that of the harm to clients that have done nothing:
//!
//! 1. Idle connections are closed, which no client has to notice.
//! 2. Connections that hold much get no new streams. A client may repeat a refused stream, and one
//!    that holds little is not refused anything.
//! 3. The connections that hold most are closed, the largest first. That hurts, but most likely
//!    those who have caused it. What counts as large becomes less as long as it does not suffice.
//! 4. No connections are accepted. That is last, because it keeps everybody out, and because those
//!    who fill the memory slowly could otherwise keep everybody out for as long as they like.

use crate::ipc::Overload;
use crate::proxy::shared::memory::BEGINS;
use crate::proxy::shared::threads::{Excess, Relief};

/// How many percent of the budget less than at its beginning must be in use before a step ends.
const HYSTERESIS: u64 = 5;

/// How many bytes a connection must hold to be closed first.
const LARGE_AT_FIRST: usize = 512 << 10;

/// How many bytes a connection must hold to be closed at all: more than a well-behaved client has
/// on its way.
const LARGE_AT_LAST: usize = 16 << 10;

/// The state of the guard.
#[derive(Debug)]
pub(super) struct OverloadGuard {
    step: Overload,
    /// What a connection must hold to be closed, at present.
    large: usize,
}

impl OverloadGuard {
    /// Makes a guard that takes no measures.
    pub(super) fn new() -> OverloadGuard {
        OverloadGuard {
            step: Overload::None,
            large: LARGE_AT_FIRST,
        }
    }

    /// Decides which step is due when this many bytes of `most` are in use.
    pub(super) fn look(&mut self, in_use: u64, most: u64) -> Overload {
        let percent = in_use.saturating_mul(100) / most.max(1);
        let due = |(begins, step): &&(u64, Overload)| {
            let begins = match *step <= self.step {
                true => begins - HYSTERESIS,
                false => *begins,
            };
            percent >= begins
        };
        let step = BEGINS.iter().rev().find(due);
        self.step = step.map_or(Overload::None, |(_, step)| *step);
        self.step
    }

    /// Decides what the data threads do at this look; `None` if nothing.
    pub(super) fn relief(&mut self, in_use: u64, most: u64) -> Option<Relief> {
        if self.step < Overload::Largest {
            self.large = LARGE_AT_FIRST;
        }
        if self.step < Overload::Idle {
            return None;
        }
        let largest = (self.step >= Overload::Largest).then(|| {
            let least = self.large;
            self.large = (self.large / 2).max(LARGE_AT_LAST);
            let goal = most / 100 * (percent_of(Overload::Largest) - HYSTERESIS);
            let bytes = usize::try_from(in_use.saturating_sub(goal)).unwrap_or(usize::MAX);
            Excess { least, bytes }
        });
        Some(Relief { largest })
    }
}

fn percent_of(step: Overload) -> u64 {
    let begins = BEGINS.iter().find(|(_, begun)| *begun == step);
    begins.map_or(100, |(percent, _)| *percent)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_begin_one_after_the_other_and_do_not_flap() {
        let mut guard = OverloadGuard::new();
        for (in_use, expected) in [
            (590, Overload::None),
            (600, Overload::Idle),
            (590, Overload::Idle),
            (549, Overload::None),
            (590, Overload::None),
            (700, Overload::Streams),
            (950, Overload::Connections),
            (851, Overload::Connections),
            (849, Overload::Largest),
            (600, Overload::Idle),
            (0, Overload::None),
        ] {
            assert_eq!(guard.look(in_use, 1000), expected, "{in_use}");
        }
        assert_eq!(guard.look(1, 0), Overload::Connections);
    }

    #[test]
    fn the_largest_are_closed_first_and_the_smallest_never() {
        let mut guard = OverloadGuard::new();
        guard.look(700, 1000);
        assert_eq!(guard.relief(700, 1000), Some(Relief { largest: None }));
        guard.look(850, 1000);
        let mut least = Vec::new();
        for _ in 0..10 {
            let excess = guard.relief(850, 1000).and_then(|relief| relief.largest);
            let excess = excess.unwrap();
            assert_eq!(excess.bytes, 100);
            least.push(excess.least);
        }
        assert_eq!(least[..2], [LARGE_AT_FIRST, LARGE_AT_FIRST / 2]);
        assert_eq!(least[9], LARGE_AT_LAST);
        guard.look(100, 1000);
        assert_eq!(guard.relief(100, 1000), None);
        assert_eq!(guard.large, LARGE_AT_FIRST);
    }
}
