//! The pace of a message that strangers can cause: how often a data thread logs it.

use std::cell::Cell;
use std::time::Duration;

use tokio::time::Instant;

/// The least time between two messages of a kind.
pub(crate) const PACE: Duration = Duration::from_secs(10);

/// Lets a message through at most once in ten seconds.
#[derive(Default)]
pub(crate) struct LogPace {
    /// The time before which no message is let through, if one was before.
    quiet_until: Cell<Option<Instant>>,
}

impl LogPace {
    /// Returns true if a message may be logged now, which then counts as logged.
    pub(crate) fn is_due(&self) -> bool {
        let now = Instant::now();
        let is_due = self.quiet_until.get().is_none_or(|until| now >= until);
        if is_due {
            self.quiet_until.set(Some(now + PACE));
        }
        is_due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn one_message_in_ten_seconds() {
        let pace = LogPace::default();
        assert!(pace.is_due() && !pace.is_due());
        tokio::time::advance(PACE / 2).await;
        assert!(!pace.is_due());
        tokio::time::advance(PACE / 2).await;
        assert!(pace.is_due() && !pace.is_due());
    }
}
