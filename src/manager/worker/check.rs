//! The properties of what the manager takes in from a worker, for a fuzz target and for tests:
//! whatever bytes a worker sends, only messages that fit count, and only as many as the allowance
//! covers.

use std::time::{Duration, Instant};

use super::sieve::{
    AT_ONCE, ExpectedReport, Judgement, PER_ENDPOINT, STEADY, Sieve, WorkerKnowledge, price,
};
use crate::ipc::{EndpointId, FromWorker};

/// What the worker of the checks has been told.
pub(super) const KNOWN: WorkerKnowledge = WorkerKnowledge {
    table: 5,
    ping: 3,
    endpoints: 4,
    draining: false,
};

/// Tells what can be said about an instance of the checks.
pub(super) fn expected(endpoint: EndpointId) -> ExpectedReport {
    match endpoint.0 {
        1 => ExpectedReport::Probed,
        2 => ExpectedReport::Health,
        3 => ExpectedReport::Idle,
        _ => ExpectedReport::Nothing,
    }
}

/// Takes in the bytes of a worker, from their frames to what counts of their messages. The first
/// byte of the input says what the worker knows and how often it sends the messages, the second how
/// many milliseconds there are between them. Panics if a property does not hold.
pub fn worker_message(input: &[u8]) {
    let Some((&[flags, milliseconds], bytes)) = input.split_first_chunk::<2>() else {
        return;
    };
    let knowledge = WorkerKnowledge {
        draining: flags & 2 != 0,
        ..KNOWN
    };
    let messages = crate::ipc::check::from_worker(bytes);
    let times = 1 + usize::from(flags >> 2);
    let messages = std::iter::repeat_n(messages, times).flatten();
    take_in(
        knowledge,
        messages.map(|message| (message, milliseconds.into())),
    );
}

/// Takes in messages, each with the milliseconds since the one before. However many come, what is
/// taken in a time has to stay within the allowance, and what is taken has to fit.
pub(super) fn take_in(
    knowledge: WorkerKnowledge,
    messages: impl IntoIterator<Item = (FromWorker, u64)>,
) {
    let start = Instant::now();
    let mut now = start;
    let mut sieve = Sieve::new(start);
    let (mut taken, mut greetings, mut replaced) = (0.0, 0, 0);
    for (message, milliseconds) in messages {
        now += Duration::from_millis(milliseconds);
        match sieve.judge(now, &message, knowledge, expected) {
            Judgement::Take => {
                assert_eq!(replaced, 0, "nothing is taken from a distrusted worker");
                assert_fits(&message, knowledge);
                taken += price(&message);
                greetings += u32::from(matches!(message, FromWorker::Hello { .. }));
            }
            Judgement::Ignore => {}
            Judgement::Replace => replaced += 1,
        }
    }
    let seconds = (now - start).as_secs_f64();
    let endpoints = knowledge.endpoints as f64 * PER_ENDPOINT;
    assert!(taken <= AT_ONCE + endpoints + seconds * (STEADY + endpoints) + 1.0);
    assert!(replaced <= 1, "a worker is replaced once");
    assert!(greetings <= 1, "a worker greets once");
}

fn assert_fits(message: &FromWorker, knowledge: WorkerKnowledge) {
    let fits = match message {
        FromWorker::Hello { .. } | FromWorker::Counts { .. } => true,
        FromWorker::Acknowledged(table) | FromWorker::Refused(table) => *table <= KNOWN.table,
        FromWorker::Probed { endpoint, .. } => endpoint.0 == 1,
        FromWorker::Health { endpoint, .. } => endpoint.0 == 2 && !knowledge.draining,
        FromWorker::Idle(endpoint) => endpoint.0 == 3,
        FromWorker::OnlyTunnels => knowledge.draining,
        FromWorker::Pong(ping) => *ping <= KNOWN.ping,
        FromWorker::NotUnderstood => false,
    };
    assert!(fits, "{message:?} was taken in");
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_corpus_of_worker_messages_holds() {
        crate::corpus::replay("worker_message", super::worker_message);
    }
}
