//! Logging: messages go to journald with all their fields if journald reads stderr, otherwise to
//! stderr as text.
//!
//! # Theory of operation
//! A message for journald is a datagram, and tracing-journald blocks while journald's queue is
//! full: briefly while journald restarts, and very long when journald hangs. A pipe or a terminal
//! behind stderr may be as slow. The manager's loop and the proxy's data threads must never block
//! on this, so they only copy each message into a [`Queue`], and a separate thread writes it. When
//! the queue is full, messages are dropped and counted; the count is logged when there is room
//! again. The queue is bounded in messages and bytes, and the values of a message in length,
//! because clients decide about some values. The lines of instances in the foreground have a queue
//! of their own. Each datagram is sent to journald's address anew, so it reaches a journald that
//! has restarted; in the root folder of a worker there is the socket that systemd keeps open for
//! journald. A message that is too long for a datagram is sent as a memfd.
//!
//! The [`LogLevel`] in force is a filter in front of the queue: a message that the filter rejects
//! costs one comparison. [`set_level`] replaces the filter at run time.

mod cut;
mod lines;
mod message;
mod queue;

use std::fmt;
use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use tracing::field::{Field, Visit};
use tracing::{Dispatch, Event, Level, Metadata, Subscriber};
use tracing_journald::{Priority, PriorityMappings};
use tracing_subscriber::field::{RecordFields, VisitOutput};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::format::{DefaultVisitor, Writer};
use tracing_subscriber::fmt::{FormatFields, MakeWriter};
use tracing_subscriber::layer::{Context, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, Registry, reload};

pub use self::lines::pass_on;
use self::message::{JournalMessage, MESSAGE_ID};
use self::queue::{Queue, tell_lost};
use crate::log_level::LogLevel;
use crate::printable::printable;
use crate::systemd::journal;

/// The socket to which tracing-journald sends messages.
const JOURNALD: &str = "/run/systemd/journal/socket";

/// The log level in force, and the filter of each subscriber. All filters are equal at all times:
/// if subscribers differed, tracing could not cache their answer and would ask them for every
/// message.
static IN_FORCE: Mutex<InForce> = Mutex::new(InForce {
    level: None,
    filters: Vec::new(),
});

struct InForce {
    level: Option<LogLevel>,
    filters: Vec<reload::Handle<Targets, Registry>>,
}

/// Keeps logging running. Dropping this value waits until all queued messages are written.
#[must_use]
pub struct Logging {
    waiting: Waiting,
}

/// The queue that is flushed when logging ends.
enum Waiting {
    /// Messages for journald.
    Messages(Arc<Queue<JournalMessage>>),
    /// Lines for stderr.
    Lines(Arc<Queue<Vec<u8>>>),
    /// No queue: each message is written at once.
    Nothing,
}

impl Logging {
    /// Starts logging: to journald if it reads stderr, otherwise to stderr. A separate thread
    /// writes the messages, so callers never wait.
    pub fn begin(level: &LogLevel) -> Logging {
        if journal::is_behind(io::stderr())
            && let Ok(queue) = to_journald(level)
        {
            registry(level).with(Enqueue(queue.clone())).init();
            return Logging {
                waiting: Waiting::Messages(queue),
            };
        }
        // An error of writing to stderr has no place to be reported, so it is ignored.
        let write = |line: Vec<u8>| drop(io::stderr().write_all(&line));
        let Ok(queue) = Queue::start(write, tell_lost) else {
            return Logging::without_thread(level);
        };
        log_lines(level, Lines(queue.clone()));
        Logging {
            waiting: Waiting::Lines(queue),
        }
    }

    /// Logs to stderr without a thread: each message waits until it is written.
    pub fn without_thread(level: &LogLevel) -> Logging {
        log_lines(level, io::stderr);
        Logging {
            waiting: Waiting::Nothing,
        }
    }
}

impl Drop for Logging {
    fn drop(&mut self) {
        match &self.waiting {
            Waiting::Messages(queue) => queue.flush(),
            Waiting::Lines(queue) => queue.flush(),
            Waiting::Nothing => {}
        }
        lines::flush();
    }
}

/// Returns the socket that messages are sent to, by its path each time, if they go to journald.
pub fn socket() -> Option<&'static Path> {
    journal::is_behind(io::stderr()).then_some(Path::new(JOURNALD))
}

/// Puts `level` into force. Does nothing before [`Logging::begin`].
pub fn set_level(level: &LogLevel) {
    let mut in_force = IN_FORCE.lock().unwrap_or_else(PoisonError::into_inner);
    if in_force.level.as_ref() == Some(level) {
        return;
    }
    in_force.level = Some(level.clone());
    for filter in &in_force.filters {
        // Reloading fails only if the subscriber is gone, and then its filter is not needed.
        let _ = filter.reload(level.filter());
    }
}

/// Makes a registry with a filter that [`set_level`] can replace.
fn registry(
    level: &LogLevel,
) -> tracing_subscriber::layer::Layered<reload::Layer<Targets, Registry>, Registry> {
    let (filter, handle) = reload::Layer::new(level.filter());
    let mut in_force = IN_FORCE.lock().unwrap_or_else(PoisonError::into_inner);
    in_force.level = Some(level.clone());
    in_force.filters.push(handle);
    Registry::default().with(filter)
}

/// Logs messages as lines of text for people.
fn log_lines<W>(level: &LogLevel, to: W)
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let colors = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(to)
        .with_ansi(colors)
        .with_target(false)
        .fmt_fields(ForPeople);
    registry(level).with(lines).init();
}

/// Starts the thread that sends messages to journald.
fn to_journald(level: &LogLevel) -> io::Result<Arc<Queue<JournalMessage>>> {
    let ordinary = journald(level, Priority::Informational)?;
    let notable = journald(level, Priority::Notice)?;
    let send = move |message: JournalMessage| match message.is_notable() {
        true => message.send(&notable),
        false => message.send(&ordinary),
    };
    Queue::start(send, tell_lost)
}

/// Makes a subscriber that sends messages to journald with the fields and priorities that systemd's
/// tools expect. `info` is the priority of messages at the level `info`.
fn journald(level: &LogLevel, info: Priority) -> io::Result<Dispatch> {
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
    Ok(Dispatch::new(registry(level).with(layer)))
}

/// A layer that puts a copy of each event into the queue.
struct Enqueue(Arc<Queue<JournalMessage>>);

impl<S: Subscriber> Layer<S> for Enqueue {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        self.0.push(JournalMessage::new(event));
    }
}

/// A writer that puts each line into the queue. tracing-subscriber writes a whole message, with its
/// line end, in one call, so one call is one line.
struct Lines(Arc<Queue<Vec<u8>>>);

impl<'w> MakeWriter<'w> for Lines {
    type Writer = LineWriter<'w>;

    fn make_writer(&'w self) -> LineWriter<'w> {
        self.writer(&Level::INFO)
    }

    fn make_writer_for(&'w self, metadata: &Metadata<'_>) -> LineWriter<'w> {
        self.writer(metadata.level())
    }
}

impl Lines {
    fn writer(&self, level: &Level) -> LineWriter<'_> {
        LineWriter {
            queue: &self.0,
            longest: LINE_WORDS + cut::longest(level),
        }
    }
}

/// The room in a line on stderr for the time, the level and the words, besides the values.
const LINE_WORDS: usize = 3 << 10;

/// Writes one line.
struct LineWriter<'w> {
    queue: &'w Queue<Vec<u8>>,
    longest: usize,
}

impl Write for LineWriter<'_> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let mut kept = line[..line.len().min(self.longest)].to_owned();
        if kept.len() < line.len() {
            kept.push(b'\n');
        }
        self.queue.push(kept);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Formats the fields of a message for stderr, without the fields that only programs read.
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
        // The value may be an error with text of others in it.
        let text = printable(&format!("{value:?}"));
        self.0.record_debug(field, &format_args!("{text}"));
    }
}
