//! The queue between those who log and the one thread that waits for whoever reads the log.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use tokio::sync::Notify;

/// How many messages wait at most. Further ones are dropped and counted.
const MOST_WAITING: usize = 4096;

/// How many bytes wait at most.
const MOST_BYTES: usize = 4 << 20;

/// How long the end of the process waits for the last messages.
const LAST_MESSAGES: Duration = Duration::from_secs(1);

/// How long a message may wait for room in the queue, if it can.
const PATIENCE: Duration = Duration::from_secs(1);

/// A message that has a size.
pub(super) trait Weight {
    /// Returns how many bytes the message holds.
    fn weight(&self) -> usize;
}

impl Weight for Vec<u8> {
    fn weight(&self) -> usize {
        self.len()
    }
}

/// Messages on their way to whoever reads the log.
#[derive(Debug)]
pub(super) struct Queue<T> {
    state: Mutex<State<T>>,
    changed: Condvar,
    /// Tells those who wait for room that a message was taken.
    room: Notify,
}

#[derive(Debug)]
struct State<T> {
    waiting: VecDeque<T>,
    bytes: usize,
    /// The thread has taken a message that it has not yet written.
    sending: bool,
    /// A message has waited in vain for room, and none was taken since.
    stuck: bool,
    /// How many messages were dropped since that was last logged.
    lost: u64,
}

impl<T: Weight> Queue<T> {
    fn new() -> Queue<T> {
        Queue {
            state: Mutex::new(State {
                waiting: VecDeque::new(),
                bytes: 0,
                sending: false,
                stuck: false,
                lost: 0,
            }),
            changed: Condvar::new(),
            room: Notify::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a message, or drops it if the queue is full. Waits for nobody.
    pub(super) fn push(&self, message: T) {
        if self.try_push(message).is_err() {
            self.lock().lost += 1;
        }
    }

    /// Adds a message. If the queue is full, waits for room, but not for long, and drops the
    /// message if none comes. Once a message has waited in vain, the next ones wait no more until
    /// there is room again.
    pub(super) async fn push_when_room(&self, message: T) {
        let Err(message) = self.try_push(message) else {
            return;
        };
        let mut message = Some(message);
        let pushing = async {
            while let Some(unsent) = message.take() {
                let room = self.room.notified();
                match self.try_push(unsent) {
                    Ok(()) => return,
                    Err(unsent) => message = Some(unsent),
                }
                if self.lock().stuck {
                    return;
                }
                room.await;
            }
        };
        let in_time = tokio::time::timeout(PATIENCE, pushing).await.is_ok();
        if message.is_some() {
            let mut state = self.lock();
            state.lost += 1;
            state.stuck |= !in_time;
        }
    }

    /// Adds a message, or returns it if the queue is full.
    fn try_push(&self, message: T) -> Result<(), T> {
        let mut state = self.lock();
        let bytes = state.bytes + message.weight();
        // A message that is larger than all the room has room in an empty queue.
        let is_full = state.waiting.len() == MOST_WAITING || bytes > MOST_BYTES;
        if is_full && !state.waiting.is_empty() {
            return Err(message);
        }
        state.bytes = bytes;
        state.waiting.push_back(message);
        drop(state);
        self.changed.notify_all();
        Ok(())
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
                state.stuck = false;
                state.bytes -= message.weight();
                let lost = match state.waiting.is_empty() {
                    true => std::mem::take(&mut state.lost),
                    false => 0,
                };
                drop(state);
                self.room.notify_waiters();
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

impl<T: Weight + Send + 'static> Queue<T> {
    /// Starts the thread that writes each message with `send`, which may wait as long as it likes,
    /// and then calls `tell` with the number of lost messages, if there are any. The thread reads
    /// no environment variables, so those may still be changed.
    pub(super) fn start(
        mut send: impl FnMut(T) + Send + 'static,
        tell: fn(u64),
    ) -> io::Result<Arc<Queue<T>>> {
        let queue = Arc::new(Queue::new());
        let shared = queue.clone();
        thread::Builder::new().name("log".into()).spawn(move || {
            loop {
                let (message, lost) = shared.next();
                send(message);
                if lost > 0 {
                    tell(lost);
                }
            }
        })?;
        Ok(queue)
    }
}

/// Logs how many messages of smoothserve were lost. This stands in the module whose messages
/// [`LogLevel::filter`](crate::log_level::LogLevel::filter) lets through at every level.
pub(super) fn tell_lost(lost: u64) {
    tracing::warn!(lost, "messages lost, they were not taken in time");
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Seek};

    use tracing_subscriber::Layer;
    use tracing_subscriber::layer::SubscriberExt;

    use super::*;
    use crate::log_level::LogLevel;

    impl Weight for usize {
        fn weight(&self) -> usize {
            1
        }
    }

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
    fn few_large_messages_fill_the_queue_and_the_largest_has_room_alone() {
        let queue = Queue::new();
        queue.push(vec![0; 2 * MOST_BYTES]);
        queue.push(vec![0]);
        assert_eq!(queue.next().1, 1);
        for _ in 0..5 {
            queue.push(vec![0; MOST_BYTES / 4]);
        }
        assert_eq!(queue.lock().waiting.len(), 4);
        (0..4).for_each(|_| drop(queue.next()));
        assert_eq!(queue.lock().bytes, 0);
    }

    #[test]
    fn nobody_waits_for_a_thread_that_is_stuck() {
        let (_keep, stuck) = std::sync::mpsc::channel::<()>();
        let send = move |_: usize| stuck.recv().unwrap_or_default();
        let queue = Queue::start(send, |_| {}).unwrap();
        (0..2 * MOST_WAITING).for_each(|number| queue.push(number));
        assert!(queue.lock().lost >= MOST_WAITING as u64 - 1);
    }

    #[test]
    fn a_loss_is_logged_at_the_level_error_too() {
        let mut file = tempfile::tempfile().unwrap();
        let lines = tracing_subscriber::fmt::layer()
            .with_ansi(false)
            .with_writer(Arc::new(file.try_clone().unwrap()));
        let level: LogLevel = "error".parse().unwrap();
        let registry = tracing_subscriber::registry().with(lines.with_filter(level.filter()));
        tracing::subscriber::with_default(registry, || tell_lost(7));
        let mut log = String::new();
        file.rewind().unwrap();
        file.read_to_string(&mut log).unwrap();
        assert!(log.contains("messages lost"), "{log}");
        assert!(log.contains("lost=7"), "{log}");
    }

    #[tokio::test(start_paused = true)]
    async fn who_can_wait_waits_once_for_a_reader_that_is_stuck() {
        let queue = Queue::new();
        (0..MOST_WAITING).for_each(|number| queue.push(number));
        let begin = tokio::time::Instant::now();
        for number in 0..100 {
            queue.push_when_room(number).await;
        }
        assert_eq!(begin.elapsed(), PATIENCE);
        assert_eq!(queue.lock().lost, 100);
        // The reader goes on.
        queue.next();
        queue.push_when_room(7).await;
        tokio::join!(queue.push_when_room(8), async { queue.next() });
        assert_eq!(queue.lock().lost, 100);
        assert_eq!(queue.lock().waiting.back(), Some(&8));
        assert_eq!(begin.elapsed(), PATIENCE);
    }
}
