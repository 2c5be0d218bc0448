//! The kill of an instance, and how long it may take.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

/// How long processes have to end after SIGKILL. One that waits for a file system or a device that
/// hangs does not end before that answers, and one that has become another user may get no signal
/// at all.
const MERCY: Duration = Duration::from_secs(5);

/// When an instance was killed with everything that it has started, if it was.
#[derive(Debug)]
pub(super) struct Killed(watch::Sender<Option<Instant>>);

/// Processes that were killed do not end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Unkillable;

impl Default for Killed {
    fn default() -> Killed {
        Killed(watch::Sender::new(None))
    }
}

impl Killed {
    /// Notes that the instance is killed now. A second kill makes the time no longer.
    pub(super) fn note(&self) {
        let now = Instant::now();
        self.0.send_if_modified(|at| {
            let is_first = at.is_none();
            at.get_or_insert(now);
            is_first
        });
    }

    /// Waits for something that ends with the instance's processes. Fails if they should have ended
    /// by now, since they were killed.
    pub(super) async fn bounds<T>(&self, end: impl Future<Output = T>) -> Result<T, Unkillable> {
        tokio::select! {
            biased;
            ended = end => Ok(ended),
            () = self.mercy_over() => Err(Unkillable),
        }
    }

    async fn mercy_over(&self) {
        let mut killed = self.0.subscribe();
        // It does not fail, since the sender is there.
        let at = killed.wait_for(Option::is_some).await;
        match at.ok().and_then(|at| *at) {
            Some(at) => sleep_until(at + MERCY).await,
            None => std::future::pending().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_was_killed_is_waited_for_a_while_and_what_was_not_for_ever() {
        let killed = Killed::default();
        let never = || std::future::pending::<()>();
        let hour = Duration::from_secs(3600);
        let waited = tokio::time::timeout(hour, killed.bounds(never())).await;
        assert!(waited.is_err());
        killed.note();
        let at = Instant::now();
        tokio::time::sleep(MERCY / 2).await;
        killed.note();
        assert_eq!(killed.bounds(never()).await, Err(Unkillable));
        assert_eq!(at.elapsed(), MERCY);
        assert_eq!(killed.bounds(async { 1 }).await, Ok(1));
    }
}
