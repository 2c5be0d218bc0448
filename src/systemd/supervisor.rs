//! What a supervised process tells systemd, see sd_notify(3).

use std::io;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use sd_notify::NotifyState;

/// The way to tell systemd something, which a supervised process has.
#[derive(Debug, Clone, Copy)]
pub struct Supervisor {
    _heard: (),
}

impl Supervisor {
    /// Finds the way in the environment. `None`: this process is not supervised.
    pub(super) fn find() -> Option<Supervisor> {
        std::env::var_os("NOTIFY_SOCKET").map(|_| Supervisor { _heard: () })
    }

    /// Tells systemd that this process has started, or has read its configuration again.
    pub fn ready(self) {
        tell(&[NotifyState::Ready]);
    }

    /// Tells systemd that the configuration is being read again, until [`Supervisor::ready`].
    pub fn reloading(self) {
        let now = NotifyState::monotonic_usec_now();
        let state = [NotifyState::Reloading].into_iter().chain(now.ok());
        tell(&state.collect::<Vec<_>>());
    }

    /// Tells systemd that this process is about to end.
    pub fn stopping(self) {
        tell(&[NotifyState::Stopping]);
    }

    /// Sets the line that `systemctl status` shows.
    pub fn status(self, line: &str) {
        tell(&[NotifyState::Status(line)]);
    }

    /// Tells systemd's watchdog that this process is not stuck.
    pub fn alive(self) {
        tell(&[NotifyState::Watchdog]);
    }

    /// Asks systemd to wait this long from now for whatever is going on.
    pub fn extend(self, time: Duration) {
        let microseconds = u32::try_from(time.as_micros()).unwrap_or(u32::MAX);
        tell(&[NotifyState::ExtendTimeoutUsec(microseconds)]);
    }

    /// Has systemd keep a copy of a descriptor for the next process of this unit. systemd does not
    /// poll it: a descriptor that has an error or was hung up is kept, too.
    pub fn store(self, name: &str, descriptor: BorrowedFd<'_>) {
        let state = [
            NotifyState::FdStore,
            NotifyState::FdName(name),
            NotifyState::Custom("FDPOLL=0"),
        ];
        log_failure(sd_notify::notify_with_fds(&state, &[descriptor]));
    }

    /// Has systemd drop the descriptors of this name.
    pub fn forget(self, name: &str) {
        tell(&[NotifyState::FdStoreRemove, NotifyState::FdName(name)]);
    }
}

fn tell(state: &[NotifyState<'_>]) {
    log_failure(sd_notify::notify(state));
}

fn log_failure(result: io::Result<()>) {
    if let Err(error) = result {
        tracing::warn!(error = %error, "cannot send the state of smoothserve to systemd");
    }
}
