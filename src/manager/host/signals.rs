//! The signals that a person or systemd sends to the manager.

use std::io;

use tokio::signal::unix::{SignalKind, signal};

/// What a signal asks the manager to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// SIGHUP: apply what changed on disk.
    Reload,
    /// SIGTERM or SIGINT: drain and stop everything, then end.
    End,
    /// A signal that asks other servers for something, by its name. It must not end this one.
    Other(&'static str),
}

/// The stream of the signals that the manager handles.
#[derive(Debug)]
pub struct Signals {
    hangup: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
    quit: tokio::signal::unix::Signal,
    user1: tokio::signal::unix::Signal,
    user2: tokio::signal::unix::Signal,
}

impl Signals {
    /// Starts to handle the signals, in place of their default actions.
    pub fn new() -> io::Result<Signals> {
        Ok(Signals {
            hangup: signal(SignalKind::hangup())?,
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            quit: signal(SignalKind::quit())?,
            user1: signal(SignalKind::user_defined1())?,
            user2: signal(SignalKind::user_defined2())?,
        })
    }

    /// Waits for the next signal. Cancel-safe.
    pub async fn next(&mut self) -> Signal {
        tokio::select! {
            _ = self.hangup.recv() => Signal::Reload,
            _ = self.terminate.recv() => Signal::End,
            _ = self.interrupt.recv() => Signal::End,
            _ = self.quit.recv() => Signal::Other("SIGQUIT"),
            _ = self.user1.recv() => Signal::Other("SIGUSR1"),
            _ = self.user2.recv() => Signal::Other("SIGUSR2"),
        }
    }
}
