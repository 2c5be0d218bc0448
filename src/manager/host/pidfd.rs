//! A process held by a pidfd, which never refers to another process, see pidfd_open(2).
#![allow(unsafe_code)]

use std::io;
use std::os::fd::OwnedFd;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// A process, which need not be a child of the manager.
#[derive(Debug)]
pub struct Pidfd {
    descriptor: AsyncFd<OwnedFd>,
}

impl Pidfd {
    /// Opens the process that has this number now. Must run inside a tokio runtime.
    pub fn open(pid: u32) -> io::Result<Pidfd> {
        let pid = Pid::from_raw(pid.cast_signed()).ok_or(io::ErrorKind::NotFound)?;
        let descriptor = pidfd_open(pid, PidfdFlags::empty())?;
        // SAFETY: `descriptor` is owned, so its number stays the same and stays open as long as it
        // is registered.
        let descriptor =
            unsafe { AsyncFd::register_with_interest(descriptor, Interest::READABLE)? };
        Ok(Pidfd { descriptor })
    }

    /// Waits for the end of the process. Cancel-safe.
    pub async fn ended(&self) -> io::Result<()> {
        self.descriptor.readable().await?.retain_ready();
        Ok(())
    }

    /// Sends a signal. Returns false if the process is gone.
    pub fn signal(&self, signal: Signal) -> bool {
        pidfd_send_signal(self.descriptor.get_ref(), signal).is_ok()
    }
}
