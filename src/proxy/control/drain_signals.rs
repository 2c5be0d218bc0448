//! The signals that a worker handles instead of ending at once.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// Receives the signals that ask a worker to drain, and those that the worker ignores.
pub(crate) struct DrainSignals {
    terminate: Signal,
    interrupt: Signal,
    _ignored: [Signal; 4],
}

impl DrainSignals {
    /// Installs handlers for the signals, whose default action would end the worker.
    pub(crate) fn new() -> io::Result<DrainSignals> {
        Ok(DrainSignals {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            // They concern only the manager, but a person may send them to everything of its name.
            // As long as a handler is there, it does not matter that nobody takes them.
            _ignored: [
                signal(SignalKind::hangup())?,
                signal(SignalKind::quit())?,
                signal(SignalKind::user_defined1())?,
                signal(SignalKind::user_defined2())?,
            ],
        })
    }

    /// Resolves when a signal asks the worker to drain.
    pub(crate) async fn drain(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
