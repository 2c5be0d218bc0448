//! The lines of instances that the manager passes on to its own stderr.
//!
//! They have a queue and a thread of their own, so an instance that writes without an end takes no
//! room from smoothserve's messages, and a reader that stalls holds up nobody but the instances.

use std::io::{self, Write};
use std::sync::{Arc, OnceLock};

use super::queue::Queue;

/// The queue, once a line was passed on.
static LINES: OnceLock<Option<Arc<Queue<Vec<u8>>>>> = OnceLock::new();

/// Passes a line on to stderr. Waits a moment if the reader of stderr is slow; then the line is
/// dropped and counted.
pub async fn pass_on(line: Vec<u8>) {
    // Without a thread there is no way to write that could not block.
    if let Some(queue) = LINES.get_or_init(start) {
        queue.push_when_room(line).await;
    }
}

fn start() -> Option<Arc<Queue<Vec<u8>>>> {
    // An error must not end the manager: the terminal or file behind stderr may take no more
    // output.
    let send = |line: Vec<u8>| drop(io::stderr().write_all(&line));
    let started = Queue::start(send, |lost| {
        tracing::warn!(lost, "lines of instances lost, they were not taken in time");
    });
    started
        .inspect_err(|error| tracing::error!(error = %error, "lines of instances are not shown"))
        .ok()
}

/// Waits until all lines are written, but not for long.
pub(super) fn flush() {
    if let Some(Some(queue)) = LINES.get() {
        queue.flush();
    }
}
