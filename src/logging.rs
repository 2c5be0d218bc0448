//! Where smoothserve's messages go: with all their fields to journald if that is behind stderr, else to stderr.
//!
//! # Theory of operation
//! A message for journald is a datagram, and tracing-journald waits as long as journald's queue has no room for it. That
//! is short while journald is restarted, and very long when it hangs. Neither the manager's loop nor the proxy's data
//! threads may wait for it, so a thread of its own does: what is to be logged is copied into a queue. What the queue has
//! no room for is dropped and counted, and the count is logged when there is room again. Each datagram is addressed
//! anew, so a journald that went away is found again; what is too long for a datagram travels as a file in memory.
//!
//! A person reads `MESSAGE` and nothing else most of the time, so it has the other fields behind the constant words.

use std::collections::VecDeque;
use std::fmt;
use std::io::{self, IsTerminal};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use tracing::field::{Field, Value, Visit};
use tracing::{Dispatch, Event, Metadata, Subscriber};
use tracing_journald::{Priority, PriorityMappings};
use tracing_subscriber::field::{RecordFields, VisitOutput};
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt::FormatFields;
use tracing_subscriber::fmt::format::{DefaultVisitor, Writer};
use tracing_subscriber::layer::{Context, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, Registry};

use crate::systemd::journal;

/// The least important that is logged.
const LEVEL: LevelFilter = LevelFilter::INFO;

/// Messages that wait for journald at most.
const MOST_WAITING: usize = 4096;

/// How long the end of the process waits for the last messages.
const LAST_MESSAGES: Duration = Duration::from_secs(1);

/// The field with one of [`crate::events`]. What has it is more notable than other messages of its level.
const MESSAGE_ID: &str = "message_id";

/// Logs until it is dropped, when all that was logged has been written.
#[derive(Debug)]
#[must_use]
pub struct Logging {
    queue: Option<Arc<Queue>>,
}

impl Logging {
    /// To journald if stderr is read by it, else to stderr.
    pub fn begin() -> Logging {
        if journal::is_behind(io::stderr())
            && let Ok(queue) = Queue::begin()
        {
            tracing_subscriber::registry()
                .with(LEVEL)
                .with(Enqueue(queue.clone()))
                .init();
            return Logging { queue: Some(queue) };
        }
        Logging::to_stderr()
    }

    /// To stderr, and without a thread.
    pub fn to_stderr() -> Logging {
        let colours = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        tracing_subscriber::fmt()
            .with_max_level(LEVEL)
            .with_writer(io::stderr)
            .with_ansi(colours)
            .with_target(false)
            .fmt_fields(ForPeople)
            .init();
        Logging { queue: None }
    }
}

impl Drop for Logging {
    fn drop(&mut self) {
        if let Some(queue) = &self.queue {
            queue.flush();
        }
    }
}

/// Fields on stderr, without those that are for machines.
struct ForPeople;

impl<'writer> FormatFields<'writer> for ForPeople {
    fn format_fields<R: RecordFields>(&self, writer: Writer<'writer>, fields: R) -> fmt::Result {
        let mut visitor = WithoutId(DefaultVisitor::new(writer, true));
        fields.record(&mut visitor);
        visitor.0.finish()
    }
}

struct WithoutId<'writer>(DefaultVisitor<'writer>);

impl Visit for WithoutId<'_> {
    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() != MESSAGE_ID {
            self.0.record_str(field, value);
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.0.record_debug(field, value);
    }
}

/// A copy of an event.
#[derive(Debug)]
struct Message {
    metadata: &'static Metadata<'static>,
    /// In the order of the metadata's fields.
    values: Vec<Option<String>>,
}

impl Message {
    fn new(event: &Event<'_>) -> Message {
        let metadata = event.metadata();
        let mut message = Message {
            metadata,
            values: vec![None; metadata.fields().len()],
        };
        event.record(&mut message);
        message
    }

    /// The constant words, the fields, and the error at the end, because that may have several lines.
    fn text(&self) -> String {
        let (mut words, mut fields, mut error) = (String::new(), String::new(), String::new());
        for (field, value) in self.metadata.fields().iter().zip(&self.values) {
            match (field.name(), value) {
                (_, None) | (MESSAGE_ID, _) => {}
                ("message", Some(value)) => words.clone_from(value),
                ("error", Some(value)) => error = format!(": {value}"),
                (name, Some(value)) => fields += &format!(" {name}={value}"),
            }
        }
        words + &fields + &error
    }

    fn is_notable(&self) -> bool {
        self.metadata.fields().field(MESSAGE_ID).is_some()
    }

    fn send(mut self, to: &Dispatch) {
        let text = self.text();
        let fields = self.metadata.fields();
        if let Some(message) = fields.field("message") {
            self.values[message.index()] = Some(text);
        }
        let values = self.values.iter().map(Option::as_ref);
        let values: Vec<_> = values
            .map(|value| value.map(|value| value as &dyn Value))
            .collect();
        to.event(&Event::new(self.metadata, &fields.value_set_all(&values)));
    }
}

impl Visit for Message {
    fn record_str(&mut self, field: &Field, value: &str) {
        // A field without a value, like the service of a job for all of them, only confuses those who search.
        self.values[field.index()] = (!value.is_empty()).then(|| value.to_owned());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.values[field.index()] = Some(format!("{value:?}"));
    }
}

/// Messages on their way to journald.
#[derive(Debug, Default)]
struct Queue {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    waiting: VecDeque<Message>,
    /// The thread has taken one that is not yet with journald.
    sending: bool,
    lost: u64,
}

impl Queue {
    /// Starts the thread. It reads no environment variables, so those may still be changed.
    fn begin() -> io::Result<Arc<Queue>> {
        let ordinary = journald(Priority::Informational)?;
        let notable = journald(Priority::Notice)?;
        let queue = Arc::new(Queue::default());
        let shared = queue.clone();
        thread::Builder::new()
            .name("journal".into())
            .spawn(move || {
                loop {
                    let (message, lost) = shared.next();
                    match message.is_notable() {
                        true => message.send(&notable),
                        false => message.send(&ordinary),
                    }
                    if lost > 0 {
                        tracing::warn!(lost, "messages lost, journald was too slow for them");
                    }
                }
            })?;
        Ok(queue)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, message: Message) {
        let mut state = self.lock();
        if state.waiting.len() == MOST_WAITING {
            state.lost += 1;
            return;
        }
        state.waiting.push_back(message);
        drop(state);
        self.changed.notify_all();
    }

    /// The one before has been sent. Waits for the next, and with the last says how many were lost behind it.
    fn next(&self) -> (Message, u64) {
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

    fn flush(&self) {
        let unsent = |state: &mut State| state.sending || !state.waiting.is_empty();
        // Whether it was the time that ended the waiting changes nothing.
        let _ = self
            .changed
            .wait_timeout_while(self.lock(), LAST_MESSAGES, unsent);
    }
}

/// Puts a copy of each event into the queue.
struct Enqueue(Arc<Queue>);

impl<S: Subscriber> Layer<S> for Enqueue {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        self.0.push(Message::new(event));
    }
}

/// tracing-journald as the systemd world expects it. `info` is the priority of that level.
fn journald(info: Priority) -> io::Result<Dispatch> {
    let priorities = PriorityMappings {
        error: Priority::Error,
        warn: Priority::Warning,
        info,
        debug: Priority::Debug,
        trace: Priority::Debug,
    };
    let layer = tracing_journald::layer()?
        .with_field_prefix(None)
        .with_syslog_identifier("smoothserve".into())
        .with_priority_mappings(priorities);
    // What is below the level is not even looked at where it occurs only if no subscriber wants it.
    Ok(Dispatch::new(Registry::default().with(LEVEL).with(layer)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn logged(log: impl Fn()) -> Arc<Queue> {
        let queue = Arc::new(Queue::default());
        let subscriber = Registry::default().with(Enqueue(queue.clone()));
        tracing::subscriber::with_default(subscriber, log);
        queue
    }

    #[test]
    fn people_read_the_words_then_the_fields_then_the_error() {
        let queue = logged(|| {
            let error = "exited with status 3\n  stderr: no such table";
            tracing::error!(message_id = "1", error, job = "", service = %"shop", "no luck");
            tracing::info!(count = 3, "done");
        });
        let (failed, _) = queue.next();
        assert_eq!(
            failed.text(),
            "no luck service=shop: exited with status 3\n  stderr: no such table"
        );
        assert!(failed.is_notable());
        let (done, _) = queue.next();
        assert_eq!(done.text(), "done count=3");
        assert!(!done.is_notable());
    }

    #[test]
    fn what_there_is_no_room_for_is_counted_once() {
        let queue = logged(|| (0..MOST_WAITING + 3).for_each(|number| tracing::info!(number)));
        let lost = |queue: &Queue| queue.next().1;
        assert_eq!((1..MOST_WAITING).map(|_| lost(&queue)).sum::<u64>(), 0);
        assert_eq!(lost(&queue), 3);
        queue.push(logged(|| tracing::info!("room again")).next().0);
        assert_eq!(lost(&queue), 0);
    }
}
