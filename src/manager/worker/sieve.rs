//! What the manager lets through of the messages of one worker.
//!
//! A worker reads from the network, so it may have been taken over, and then it may send anything
//! at any rate. A message counts only if it fits what the worker was told and the state of the
//! instance that it names. What does not fit is dropped before it touches anything. All messages
//! together, whether they fit or not, have an allowance, which an honest worker never uses up. A
//! worker that does has to be replaced. [`Sieve`] is pure: it holds a few numbers, whatever comes.

use std::time::{Duration, Instant};

use crate::ipc::{EndpointId, FromWorker};

/// How many messages in a second a worker may send. It sends its counts five times a second.
pub(super) const STEADY: f64 = 200.0;

/// How many messages a worker may send at once. It reports everything that it knows when a manager
/// connects.
pub(super) const AT_ONCE: f64 = 1000.0;

/// How many more these are for each instance. A worker probes an instance that starts at most ten
/// times in the first second.
pub(super) const PER_ENDPOINT: f64 = 10.0;

/// How many counts of instances are one message.
const COUNTS_OF_MESSAGE: usize = 64;

/// The messages of one worker, as far as they decide about the next one.
#[derive(Debug)]
pub struct Sieve {
    left: f64,
    at: Instant,
    has_greeted: bool,
    is_distrusted: bool,
}

/// What the manager does with a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Judgement {
    /// It takes the message in.
    Take,
    /// It ignores the message.
    Ignore,
    /// It replaces the worker. The sieve says this once, and ignores everything that follows.
    Replace,
}

/// What a worker has been told, and what it has said already.
#[derive(Debug, Clone, Copy)]
pub struct WorkerKnowledge {
    /// The number of the newest table.
    pub table: u64,
    /// The number of the newest ping.
    pub ping: u64,
    /// How many instances there are.
    pub endpoints: usize,
    /// The worker was told to drain.
    pub draining: bool,
}

/// The state of an instance, as far as it decides which messages about the instance fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExpectedReport {
    /// The workers probe whether it is ready.
    Probed,
    /// The workers check its health.
    Health,
    /// The workers report when they have no connection to it any more.
    Idle,
    /// The workers have nothing to say about it.
    Nothing,
}

impl Sieve {
    /// Makes the sieve for a worker that has sent nothing yet.
    pub fn new(now: Instant) -> Sieve {
        Sieve {
            // The first message brings this down to what may be sent at once.
            left: f64::INFINITY,
            at: now,
            has_greeted: false,
            is_distrusted: false,
        }
    }

    /// Decides about a message. `expected` tells what can be said about an instance.
    pub fn judge(
        &mut self,
        now: Instant,
        message: &FromWorker,
        knowledge: WorkerKnowledge,
        expected: impl Fn(EndpointId) -> ExpectedReport,
    ) -> Judgement {
        if self.is_distrusted {
            return Judgement::Ignore;
        }
        if !self.spend(now, price(message), knowledge.endpoints) {
            self.is_distrusted = true;
            return Judgement::Replace;
        }
        let fits = match message {
            FromWorker::Hello { .. } => !std::mem::replace(&mut self.has_greeted, true),
            FromWorker::Acknowledged(table) | FromWorker::Refused(table) => {
                *table <= knowledge.table
            }
            FromWorker::Probed { endpoint, .. } => expected(*endpoint) == ExpectedReport::Probed,
            // Only the worker that accepts connections decides about health.
            FromWorker::Health { endpoint, .. } => {
                !knowledge.draining && expected(*endpoint) == ExpectedReport::Health
            }
            FromWorker::Idle(endpoint) => expected(*endpoint) == ExpectedReport::Idle,
            FromWorker::OnlyTunnels => knowledge.draining,
            FromWorker::Counts { .. } => true,
            FromWorker::Pong(ping) => *ping <= knowledge.ping,
            FromWorker::NotUnderstood => false,
        };
        match fits {
            true => Judgement::Take,
            false => Judgement::Ignore,
        }
    }

    fn spend(&mut self, now: Instant, price: f64, endpoints: usize) -> bool {
        let endpoints = endpoints as f64 * PER_ENDPOINT;
        let passed = now.saturating_duration_since(self.at);
        let earned = passed.min(Duration::from_secs(3600)).as_secs_f64() * (STEADY + endpoints);
        self.left = (self.left + earned).min(AT_ONCE + endpoints) - price;
        self.at = now;
        self.left >= 0.0
    }
}

/// Returns how many messages of the allowance a message costs.
pub(super) fn price(message: &FromWorker) -> f64 {
    match message {
        FromWorker::Counts { endpoints, .. } => (1 + endpoints.len() / COUNTS_OF_MESSAGE) as f64,
        _ => 1.0,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::ipc::{BoundCounts, EndpointCounts, MESSAGES};
    use crate::manager::worker::check::{KNOWN, expected, take_in};

    fn probed(id: u64) -> FromWorker {
        FromWorker::Probed {
            endpoint: EndpointId(id),
            result: Ok(()),
        }
    }

    fn health(id: u64) -> FromWorker {
        FromWorker::Health {
            endpoint: EndpointId(id),
            fault: None,
        }
    }

    #[test]
    fn what_does_not_fit_is_ignored() {
        let now = Instant::now();
        let mut sieve = Sieve::new(now);
        let hello = || FromWorker::Hello {
            version: "1".into(),
            messages: MESSAGES,
            unix_sockets: true,
        };
        let mut judge = |message, knowledge| sieve.judge(now, &message, knowledge, expected);
        let draining = WorkerKnowledge {
            draining: true,
            ..KNOWN
        };
        for (message, knowledge, fits) in [
            (hello(), KNOWN, true),
            (hello(), KNOWN, false),
            (FromWorker::Acknowledged(5), KNOWN, true),
            (FromWorker::Acknowledged(6), KNOWN, false),
            (FromWorker::Acknowledged(5), draining, true),
            (FromWorker::Refused(4), KNOWN, true),
            (FromWorker::Refused(6), KNOWN, false),
            (probed(1), KNOWN, true),
            (probed(2), KNOWN, false),
            (probed(9), KNOWN, false),
            (health(2), KNOWN, true),
            (health(2), draining, false),
            (health(1), KNOWN, false),
            (FromWorker::Idle(EndpointId(3)), draining, true),
            (FromWorker::Idle(EndpointId(2)), draining, false),
            (FromWorker::OnlyTunnels, KNOWN, false),
            (FromWorker::OnlyTunnels, draining, true),
            (FromWorker::Pong(3), KNOWN, true),
            (FromWorker::Pong(4), KNOWN, false),
        ] {
            let expected = match fits {
                true => Judgement::Take,
                false => Judgement::Ignore,
            };
            assert_eq!(judge(message.clone(), knowledge), expected, "{message:?}");
        }
    }

    #[test]
    fn a_worker_that_sends_without_an_end_is_replaced_once() {
        let now = Instant::now();
        let mut sieve = Sieve::new(now);
        let mut judged = Vec::new();
        for _ in 0..3000 {
            judged.push(sieve.judge(now, &probed(1), KNOWN, expected));
        }
        let count = |judgement| judged.iter().filter(|other| **other == judgement).count();
        let at_once = AT_ONCE + KNOWN.endpoints as f64 * PER_ENDPOINT;
        assert_eq!(count(Judgement::Take), at_once as usize);
        assert_eq!(count(Judgement::Replace), 1);
        let later = now + Duration::from_secs(3600);
        assert_eq!(
            sieve.judge(later, &probed(1), KNOWN, expected),
            Judgement::Ignore
        );
    }

    #[test]
    fn an_honest_worker_is_never_replaced() {
        let endpoints = 2000;
        let knowledge = WorkerKnowledge { endpoints, ..KNOWN };
        let start = Instant::now();
        let mut sieve = Sieve::new(start);
        let counts = FromWorker::Counts {
            connections: 0,
            bounds: BoundCounts::default(),
            endpoints: vec![
                EndpointCounts {
                    id: EndpointId(2),
                    in_flight: 0,
                    tunnels: 0,
                    requests: 0,
                    failures: 0
                };
                endpoints
            ],
        };
        // A manager connects, and everything is told to it; then all instances start at once.
        for second in 0..600 {
            let now = start + Duration::from_secs(second);
            let probes = match second {
                0 => 6,
                _ => 1,
            };
            for _ in 0..probes * endpoints {
                assert_ne!(
                    sieve.judge(now, &probed(1), knowledge, expected),
                    Judgement::Replace
                );
            }
            for _ in 0..5 {
                assert_eq!(
                    sieve.judge(now, &counts, knowledge, expected),
                    Judgement::Take
                );
            }
        }
    }

    fn any_message() -> impl Strategy<Value = FromWorker> {
        let id = || (0..6_u64).prop_map(EndpointId);
        let text = || {
            let texts = prop_oneof!["[a-z ]{0,20}", Just("x".repeat(2000))];
            texts.prop_map(|text| text.as_str().into())
        };
        let counts = (id(), any::<(u32, u32, u64, u64)>()).prop_map(|(id, numbers)| {
            let (in_flight, tunnels, requests, failures) = numbers;
            EndpointCounts {
                id,
                in_flight,
                tunnels,
                requests,
                failures,
            }
        });
        prop_oneof![
            (text(), any::<(u32, bool)>()).prop_map(|(version, (messages, unix_sockets))| {
                FromWorker::Hello {
                    version,
                    messages,
                    unix_sockets,
                }
            }),
            Just(FromWorker::NotUnderstood),
            any::<u64>().prop_map(FromWorker::Acknowledged),
            (0..8_u64).prop_map(FromWorker::Acknowledged),
            any::<u64>().prop_map(FromWorker::Refused),
            (id(), prop::result::maybe_err(Just(()), text()))
                .prop_map(|(endpoint, result)| FromWorker::Probed { endpoint, result }),
            (id(), prop::option::of(text()))
                .prop_map(|(endpoint, fault)| FromWorker::Health { endpoint, fault }),
            id().prop_map(FromWorker::Idle),
            Just(FromWorker::OnlyTunnels),
            prop::collection::vec(counts, 0..50).prop_map(|endpoints| FromWorker::Counts {
                connections: 1,
                bounds: BoundCounts::default(),
                endpoints
            }),
            (0..8_u64).prop_map(FromWorker::Pong),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        /// However many messages come, what is taken in a time stays within the allowance, and what
        /// is taken fits.
        #[test]
        fn whatever_comes_only_so_much_is_taken(
            messages in prop::collection::vec((any_message(), 0..3_u64), 0..3000),
            draining in any::<bool>(),
        ) {
            take_in(WorkerKnowledge { draining, ..KNOWN }, messages);
        }
    }
}
