//! The one timer of a client connection.
//!
//! A client connection always has exactly one running limit: for its next request, for the rest of
//! a head, or for progress. Nearly every change moves the limit into the future. So the timer of
//! the runtime stays as it is, and is set again only when it fires before the limit. A limit for
//! each request then costs almost nothing.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep_until};

/// A time limit that can be moved at almost no cost.
pub(crate) struct Timer {
    /// The timer of the runtime, which fires no later than the deadline.
    sleep: Pin<Box<Sleep>>,
    deadline: Instant,
}

impl Timer {
    /// Makes a timer that runs out after this time.
    pub(crate) fn new(limit: Duration) -> Timer {
        let deadline = Instant::now() + limit;
        Timer {
            sleep: Box::pin(sleep_until(deadline)),
            deadline,
        }
    }

    /// Makes the timer run out after this time, counted from now.
    pub(crate) fn set(&mut self, limit: Duration) {
        self.deadline = Instant::now() + limit;
        if self.deadline < self.sleep.deadline() {
            self.sleep.as_mut().reset(self.deadline);
        }
    }

    /// Ready when the time limit has passed.
    pub(crate) fn poll_expired(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            ready!(self.sleep.as_mut().poll(cx));
            if self.sleep.deadline() >= self.deadline {
                return Poll::Ready(());
            }
            self.sleep.as_mut().reset(self.deadline);
        }
    }

    /// Awaits `future`. Returns `None` if the time limit passes first.
    pub(crate) async fn limit<F: Future>(&mut self, future: F) -> Option<F::Output> {
        let mut future = std::pin::pin!(future);
        poll_fn(|cx| {
            if let Poll::Ready(output) = future.as_mut().poll(cx) {
                return Poll::Ready(Some(output));
            }
            self.poll_expired(cx).map(|()| None)
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_limit_moves_both_ways() {
        let start = Instant::now();
        let mut timer = Timer::new(Duration::from_secs(60));
        timer.set(Duration::from_secs(15));
        assert_eq!(timer.limit(std::future::pending::<()>()).await, None);
        assert_eq!(start.elapsed().as_secs(), 15);
        timer.set(Duration::from_secs(5));
        timer.set(Duration::from_secs(60));
        assert_eq!(timer.limit(std::future::pending::<()>()).await, None);
        assert_eq!(start.elapsed().as_secs(), 75);
        assert_eq!(timer.limit(std::future::ready(7)).await, Some(7));
    }
}
