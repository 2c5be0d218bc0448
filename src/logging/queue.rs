//! The queue between those who log and the one thread that waits for whoever reads the log.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

/// How many messages wait at most. Further ones are dropped and counted.
const MOST_WAITING: usize = 4096;

/// How long the end of the process waits for the last messages.
const LAST_MESSAGES: Duration = Duration::from_secs(1);

/// Messages on their way to whoever reads the log.
#[derive(Debug)]
pub(super) struct Queue<T> {
    state: Mutex<State<T>>,
    changed: Condvar,
}

#[derive(Debug)]
struct State<T> {
    waiting: VecDeque<T>,
    /// The thread has taken a message that it has not yet written.
    sending: bool,
    /// How many messages were dropped since that was last logged.
    lost: u64,
}

impl<T> Queue<T> {
    fn new() -> Queue<T> {
        Queue {
            state: Mutex::new(State {
                waiting: VecDeque::new(),
                sending: false,
                lost: 0,
            }),
            changed: Condvar::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a message, or drops it if the queue is full. Waits for nobody.
    pub(super) fn push(&self, message: T) {
        let mut state = self.lock();
        if state.waiting.len() == MOST_WAITING {
            state.lost += 1;
            return;
        }
        state.waiting.push_back(message);
        drop(state);
        self.changed.notify_all();
    }

    /// Notes that the message before is written, and waits for the next one. With the last one in
    /// the queue comes how many were lost behind it.
    pub(super) fn next(&self) -> (T, u64) {
        let mut state = self.lock();
        state.sending = false;
        self.changed.notify_all();
        loop {
            if let Some(message) = state.waiting.pop_front() {
                state.sending = true;
                let lost = match state.waiting.is_empty() {
                    true => std::mem::take(&mut state.lost),
                    false => 0,
                };
                return (message, lost);
            }
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Waits until all messages are written, but not for long.
    pub(super) fn flush(&self) {
        let unsent = |state: &mut State<T>| state.sending || !state.waiting.is_empty();
        // Whether it was the time that ended the waiting changes nothing.
        let _ = self
            .changed
            .wait_timeout_while(self.lock(), LAST_MESSAGES, unsent);
    }
}

impl<T: Send + 'static> Queue<T> {
    /// Starts the thread that writes each message with `send`, which may wait as long as it likes.
    /// The thread reads no environment variables, so those may still be changed.
    pub(super) fn start(mut send: impl FnMut(T) + Send + 'static) -> io::Result<Arc<Queue<T>>> {
        let queue = Arc::new(Queue::new());
        let shared = queue.clone();
        thread::Builder::new().name("log".into()).spawn(move || {
            loop {
                let (message, lost) = shared.next();
                send(message);
                if lost > 0 {
                    tracing::warn!(lost, "messages lost, they were not taken in time");
                }
            }
        })?;
        Ok(queue)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_there_is_no_room_for_is_counted_once() {
        let queue = Queue::new();
        (0..MOST_WAITING + 3).for_each(|number| queue.push(number));
        let lost = |queue: &Queue<usize>| queue.next().1;
        assert_eq!((1..MOST_WAITING).map(|_| lost(&queue)).sum::<u64>(), 0);
        assert_eq!(lost(&queue), 3);
        queue.push(0);
        assert_eq!(lost(&queue), 0);
    }

    #[test]
    fn nobody_waits_for_a_thread_that_is_stuck() {
        let (_keep, stuck) = std::sync::mpsc::channel::<()>();
        let queue = Queue::start(move |_: usize| stuck.recv().unwrap_or_default()).unwrap();
        (0..2 * MOST_WAITING).for_each(|number| queue.push(number));
        assert!(queue.lock().lost >= MOST_WAITING as u64 - 1);
    }
}
