//! Where smoothserve's messages go: with all their fields to journald if that is behind stderr,
//! else to stderr.
//!
//! # Theory of operation
//! A message for journald is a datagram, and tracing-journald waits as long as journald's queue has
//! no room for it. That is short while journald is restarted, and very long when it hangs. A pipe
//! or a terminal behind stderr may be as slow. Neither the manager's loop nor the proxy's data
//! threads may wait for it, so a thread of its own does: what is to be logged is copied into a
//! [`Queue`]. What the queue has no room for is dropped and counted, and the count is logged when
//! there is room again. Each datagram is addressed anew, so a journald that went away is found
//! again; what is too long for a datagram travels as a file in memory.
//!
//! The [`LogLevel`] in force is a filter in front of everything: what it does not let through costs
//! a comparison where it occurs. [`set_level`] replaces the filter while messages are logged.

mod message;
mod queue;

use std::fmt;
use std::io::{self, IsTerminal, Write};
use std::sync::{Arc, Mutex, PoisonError};

use tracing::field::{Field, Visit};
use tracing::{Dispatch, Event, Subscriber};
use tracing_journald::{Priority, PriorityMappings};
use tracing_subscriber::field::{RecordFields, VisitOutput};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::format::{DefaultVisitor, Writer};
use tracing_subscriber::fmt::{FormatFields, MakeWriter};
use tracing_subscriber::layer::{Context, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, Registry, reload};

use self::message::{JournalMessage, MESSAGE_ID};
use self::queue::Queue;
use crate::log_level::LogLevel;
use crate::systemd::journal;

/// The log level in force, and the filters of all subscribers that it is made of. The filters are
/// the same at all times: where subscribers differ in what they want, tracing asks them at each
/// message.
static IN_FORCE: Mutex<InForce> = Mutex::new(InForce {
    level: None,
    filters: Vec::new(),
});

struct InForce {
    level: Option<LogLevel>,
    filters: Vec<reload::Handle<Targets, Registry>>,
}

/// Logs until it is dropped, when all that was logged has been written.
#[must_use]
pub struct Logging {
    waiting: Waiting,
}

/// What is still to be written when logging ends.
enum Waiting {
    /// Messages for journald.
    Messages(Arc<Queue<JournalMessage>>),
    /// Lines for stderr.
    Lines(Arc<Queue<Vec<u8>>>),
    /// Nothing: each message is written at once.
    Nothing,
}

impl Logging {
    /// Logs to journald if stderr is read by it, else to stderr, by a thread that does the waiting.
    pub fn begin(level: &LogLevel) -> Logging {
        if journal::is_behind(io::stderr())
            && let Ok(queue) = to_journald(level)
        {
            registry(level).with(Enqueue(queue.clone())).init();
            return Logging {
                waiting: Waiting::Messages(queue),
            };
        }
        // What stderr does not take is lost, whatever the reason.
        let Ok(queue) = Queue::start(|line: Vec<u8>| drop(io::stderr().write_all(&line))) else {
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
    }
}

/// Makes this the log level from now on. Before [`Logging::begin`] there is nothing to change.
pub fn set_level(level: &LogLevel) {
    let mut in_force = IN_FORCE.lock().unwrap_or_else(PoisonError::into_inner);
    if in_force.level.as_ref() == Some(level) {
        return;
    }
    in_force.level = Some(level.clone());
    for filter in &in_force.filters {
        // A filter whose subscriber is gone has nothing left to let through.
        let _ = filter.reload(level.filter());
    }
}

/// Makes a registry behind a filter that [`set_level`] changes.
fn registry(
    level: &LogLevel,
) -> tracing_subscriber::layer::Layered<reload::Layer<Targets, Registry>, Registry> {
    let (filter, handle) = reload::Layer::new(level.filter());
    let mut in_force = IN_FORCE.lock().unwrap_or_else(PoisonError::into_inner);
    in_force.level = Some(level.clone());
    in_force.filters.push(handle);
    Registry::default().with(filter)
}

/// Logs lines for people.
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
    Queue::start(move |message: JournalMessage| match message.is_notable() {
        true => message.send(&notable),
        false => message.send(&ordinary),
    })
}

/// Makes a subscriber that sends to journald what the systemd world expects. `info` is the priority
/// of that level.
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

/// Puts a copy of each event into the queue.
struct Enqueue(Arc<Queue<JournalMessage>>);

impl<S: Subscriber> Layer<S> for Enqueue {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        self.0.push(JournalMessage::new(event));
    }
}

/// Puts each line into the queue. tracing-subscriber writes a message, with the end of its line, in
/// one go.
struct Lines(Arc<Queue<Vec<u8>>>);

impl<'w> MakeWriter<'w> for Lines {
    type Writer = &'w Lines;

    fn make_writer(&'w self) -> &'w Lines {
        self
    }
}

impl Write for &Lines {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.push(line.to_owned());
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Writes the fields of a message on stderr, without those that are for machines.
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
