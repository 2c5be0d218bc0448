//! What a supervised process tells systemd, see sd_notify(3).

use std::io;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use sd_notify::NotifyState;

/// systemd, as far as it wants to hear from this process.
#[derive(Debug, Clone, Copy)]
pub struct Supervisor {
    _heard: (),
}

impl Supervisor {
    /// Nothing if this process is not supervised.
    pub(super) fn find() -> Option<Supervisor> {
        std::env::var_os("NOTIFY_SOCKET").map(|_| Supervisor { _heard: () })
    }

    /// All is up.
    pub fn ready(self) {
        tell(&[NotifyState::Ready]);
    }

    /// The configuration is being read again, until [`Supervisor::ready`].
    pub fn reloading(self) {
        let now = NotifyState::monotonic_usec_now();
        let state = [NotifyState::Reloading].into_iter().chain(now.ok());
        tell(&state.collect::<Vec<_>>());
    }

    /// The end has begun.
    pub fn stopping(self) {
        tell(&[NotifyState::Stopping]);
    }

    /// The line that `systemctl status` shows.
    pub fn status(self, line: &str) {
        tell(&[NotifyState::Status(line)]);
    }

    /// This process is not stuck.
    pub fn alive(self) {
        tell(&[NotifyState::Watchdog]);
    }

    /// Whatever is going on takes this long from now.
    pub fn extend(self, time: Duration) {
        let microseconds = u32::try_from(time.as_micros()).unwrap_or(u32::MAX);
        tell(&[NotifyState::ExtendTimeoutUsec(microseconds)]);
    }

    /// Keeps a copy of a descriptor for the next process of this unit. Not polled: one that has an error or was hung
    /// up is kept, too.
    pub fn store(self, name: &str, descriptor: BorrowedFd<'_>) {
        let state = [
            NotifyState::FdStore,
            NotifyState::FdName(name),
            NotifyState::Custom("FDPOLL=0"),
        ];
        log_failure(sd_notify::notify_with_fds(&state, &[descriptor]));
    }

    /// Forgets the descriptors of this name.
    pub fn forget(self, name: &str) {
        tell(&[NotifyState::FdStoreRemove, NotifyState::FdName(name)]);
    }
}

fn tell(state: &[NotifyState<'_>]) {
    log_failure(sd_notify::notify(state));
}

fn log_failure(result: io::Result<()>) {
    if let Err(error) = result {
        tracing::warn!(error = %error, "systemd cannot be told");
    }
}
