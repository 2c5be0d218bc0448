//! The pace of a message that strangers can cause: how often it is logged.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// The shortest time between two messages of a kind that a stranger can cause.
pub(crate) const PACE: Duration = Duration::from_secs(10);

/// Lets a message through at most once in ten seconds, and counts the others. A message that
/// strangers can cause has its own `LogPace`, so that nobody can fill the journal.
#[derive(Debug, Default)]
pub(crate) struct LogPace {
    state: Mutex<PaceState>,
}

#[derive(Debug, Default)]
struct PaceState {
    last: Option<Instant>,
    held_back: u64,
}

impl LogPace {
    /// Makes the pace of a message that was never logged.
    pub(crate) const fn new() -> LogPace {
        LogPace {
            state: Mutex::new(PaceState {
                last: None,
                held_back: 0,
            }),
        }
    }

    /// Returns how many messages were held back since the last one if another one may be logged
    /// now, otherwise counts this one and returns `None`.
    pub(crate) fn due(&self) -> Option<u64> {
        self.due_at(Instant::now())
    }

    fn due_at(&self, now: Instant) -> Option<u64> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.last.is_some_and(|last| now < last + PACE) {
            state.held_back += 1;
            return None;
        }
        state.last = Some(now);
        Some(std::mem::take(&mut state.held_back))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_message_in_ten_seconds_and_the_number_of_the_others() {
        let (pace, start) = (LogPace::new(), Instant::now());
        assert_eq!(pace.due_at(start), Some(0));
        assert_eq!(pace.due_at(start), None);
        assert_eq!(pace.due_at(start + PACE / 2), None);
        assert_eq!(pace.due_at(start + PACE), Some(2));
        assert_eq!(pace.due_at(start + 3 * PACE), Some(0));
    }
}
