//! Limits how often a data thread logs failed requests of a service.
//!
//! Strangers decide how many requests come, and so how many fail while a service is broken. In each
//! interval, each thread logs the first few failures of each service one by one. At the end of the
//! interval it logs once how many more there were.

use std::cell::{Cell, RefCell};
use std::rc::{Rc, Weak};
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

/// The length of an interval. An interval begins with the first failure after the last interval.
const INTERVAL: Duration = Duration::from_secs(10);

/// How many failures of an interval are logged one by one.
const MOST_LOGGED: u32 = 10;

/// Counts the failures of one service, as one thread sees them.
#[derive(Default)]
pub(crate) struct Throttle {
    /// When the present interval ends, or the last one ended.
    until: Cell<Option<Instant>>,
    logged: Cell<u32>,
    summary: RefCell<Weak<Summary>>,
}

/// Counts the failures of an interval that are not logged one by one. The count is logged when the
/// interval or the thread ends.
struct Summary {
    service: String,
    count: Cell<u64>,
}

impl Throttle {
    /// Returns true if a failure may be logged. Otherwise the failure is counted. Must be called
    /// inside a `LocalRuntime`.
    pub(crate) fn admits(&self, service: &str) -> bool {
        let now = Instant::now();
        let until = match self.until.get().filter(|until| now < *until) {
            Some(until) => until,
            None => {
                self.logged.set(0);
                now + INTERVAL
            }
        };
        self.until.set(Some(until));
        if self.logged.get() < MOST_LOGGED {
            self.logged.set(self.logged.get() + 1);
            return true;
        }
        let known = self.summary.borrow().upgrade();
        let summary = known.unwrap_or_else(|| self.summarize(service, until));
        summary.count.set(summary.count.get() + 1);
        false
    }

    /// Begins to count failures, and logs their number at the end of the interval.
    fn summarize(&self, service: &str, until: Instant) -> Rc<Summary> {
        let summary = Rc::new(Summary {
            service: service.to_owned(),
            count: Cell::new(0),
        });
        *self.summary.borrow_mut() = Rc::downgrade(&summary);
        let counted = summary.clone();
        tokio::task::spawn_local(async move {
            sleep_until(until).await;
            drop(counted);
        });
        summary
    }
}

impl Drop for Summary {
    fn drop(&mut self) {
        let count = self.count.get();
        tracing::warn!(service = self.service, count, "more requests failed");
    }
}

#[cfg(test)]
mod tests {
    use std::fmt;
    use std::sync::{Arc, Mutex};

    use tracing::field::{Field, Visit};
    use tracing::{Event, Subscriber};
    use tracing_subscriber::layer::{Context, SubscriberExt};
    use tracing_subscriber::{Layer, Registry};

    use super::*;

    /// Collects the counts of all summaries.
    #[derive(Default, Clone)]
    struct Counts(Arc<Mutex<Vec<u64>>>);

    impl<S: Subscriber> Layer<S> for Counts {
        fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
            event.record(&mut self.clone());
        }
    }

    impl Visit for Counts {
        fn record_u64(&mut self, _: &Field, value: u64) {
            self.0.lock().unwrap().push(value);
        }

        fn record_debug(&mut self, _: &Field, _: &dyn fmt::Debug) {}
    }

    fn run(test: impl AsyncFnOnce(&Throttle, &Counts)) -> Vec<u64> {
        let counts = Counts::default();
        let subscriber = Registry::default().with(counts.clone());
        tracing::subscriber::with_default(subscriber, || {
            let mut builder = tokio::runtime::Builder::new_current_thread();
            builder.enable_time().start_paused(true);
            let runtime = builder.build_local(tokio::runtime::LocalOptions::default());
            let runtime = runtime.unwrap();
            runtime.block_on(test(&Throttle::default(), &counts));
        });
        counts.0.lock().unwrap().clone()
    }

    fn fail(throttle: &Throttle, times: u32) -> u32 {
        let admitted = (0..times).filter(|_| throttle.admits("shop"));
        u32::try_from(admitted.count()).unwrap()
    }

    #[test]
    fn the_first_failures_are_logged_and_the_others_counted() {
        let counts = run(async |throttle, counts| {
            assert_eq!(fail(throttle, 60_000), MOST_LOGGED);
            tokio::time::sleep(INTERVAL - Duration::from_millis(1)).await;
            assert_eq!(fail(throttle, 1), 0);
            assert!(counts.0.lock().unwrap().is_empty());
            tokio::time::sleep(Duration::from_millis(2)).await;
            assert_eq!(fail(throttle, 3), 3);
        });
        assert_eq!(counts, [60_001 - u64::from(MOST_LOGGED)]);
    }

    #[test]
    fn few_failures_need_no_summary() {
        let counts = run(async |throttle, _| {
            for _ in 0..5 {
                assert_eq!(fail(throttle, MOST_LOGGED), MOST_LOGGED);
                tokio::time::sleep(INTERVAL).await;
            }
        });
        assert!(counts.is_empty());
    }

    #[test]
    fn what_was_counted_is_said_when_the_thread_ends() {
        let counts = run(async |throttle, _| {
            assert_eq!(fail(throttle, MOST_LOGGED + 5), MOST_LOGGED);
        });
        assert_eq!(counts, [5]);
    }
}
