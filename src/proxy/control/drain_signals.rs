//! The signals that a worker handles instead of ending at once.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// Receives the signals that ask a worker to drain, and the one that the worker ignores.
pub(crate) struct DrainSignals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl DrainSignals {
    /// Installs handlers for the signals, whose default action would end the worker.
    pub(crate) fn new() -> io::Result<DrainSignals> {
        Ok(DrainSignals {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// Resolves when a signal asks the worker to drain. SIGHUP concerns only the manager.
    pub(crate) async fn drain(&mut self) {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => return,
                _ = self.interrupt.recv() => return,
                _ = self.hangup.recv() => {}
            }
        }
    }
}
