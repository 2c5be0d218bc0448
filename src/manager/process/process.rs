//! The process of an instance as the manager sees it: signalled and waited for through its pidfd.
//!
//! Under systemd a process has a scope of its own and writes to the journal, so it lives on when
//! the manager ends, and the next manager takes it over. Otherwise it is a plain child that writes
//! to the manager's pipes and ends with it.

use std::io;
use std::time::SystemTime;

use rustix::process::{Pid, Signal};

use super::output::Tail;
use crate::manager::host::pidfd::Pidfd;
use crate::systemd::journal;
use crate::systemd::units::Scope;

/// A process that lives, or has lived until a moment ago.
#[derive(Debug)]
pub struct Process {
    /// The number of the process, and of its process group.
    pub pid: u32,
    /// When the process was started.
    pub started: SystemTime,
    pub(super) pidfd: Pidfd,
    pub(super) keeper: ProcessKeeper,
}

/// Who keeps a process together and has its output.
#[derive(Debug)]
pub(super) enum ProcessKeeper {
    /// The process group keeps the process together, and the manager has its output.
    Manager(Tail),
    /// A scope keeps the process together, and the journal has its output. It lives on when the
    /// manager ends.
    Systemd(Scope),
}

impl Process {
    /// Takes over a process that an earlier manager has started, if it is still there.
    pub fn adopt(pid: u32, started: SystemTime, scope: Scope) -> io::Result<Process> {
        let pidfd = Pidfd::open(pid)?;
        // By now the number may be that of another process, but none of those is in the scope.
        if !scope.holds(pid) || is_launcher(pid) {
            return Err(io::ErrorKind::NotFound.into());
        }
        let keeper = ProcessKeeper::Systemd(scope);
        Ok(Process {
            pid,
            started,
            pidfd,
            keeper,
        })
    }

    /// Waits for the end of the process.
    pub async fn ended(&self) -> io::Result<()> {
        self.pidfd.ended().await?;
        self.left_behind().await;
        Ok(())
    }

    /// Returns the last lines of the process's stderr or, in the journal, of all its output.
    pub async fn last_lines(&self) -> Vec<String> {
        match &self.keeper {
            ProcessKeeper::Manager(stderr) => stderr.borrow().iter().cloned().collect(),
            ProcessKeeper::Systemd(scope) => {
                journal::last_lines(&scope.name, self.pid, self.started).await
            }
        }
    }

    /// Returns what [`Process::last_lines`] are called: `stderr` or `log`.
    pub fn output(&self) -> &'static str {
        match self.keeper {
            ProcessKeeper::Manager(_) => "stderr",
            ProcessKeeper::Systemd(_) => "log",
        }
    }

    /// Sends a signal to the process. One that is gone needs none.
    pub fn signal(&self, signal: i32) {
        if let Some(signal) = Signal::from_named_raw(signal) {
            self.pidfd.signal(signal);
        }
    }

    /// Sends SIGKILL to the process and to all that it has started, as far as that is known.
    pub fn kill(&self) {
        // The pidfd vouches for the number: as long as the process was not waited for, it is nobody
        // else's.
        if self.pidfd.signal(Signal::KILL)
            && let Some(pid) = Pid::from_raw(self.pid.cast_signed())
        {
            let _ = rustix::process::kill_process_group(pid, Signal::KILL);
        }
        if let ProcessKeeper::Systemd(scope) = &self.keeper {
            let scope = scope.clone();
            tokio::task::spawn_local(async move { scope.kill().await });
        }
    }

    /// Ends what a process that is gone has left in its scope.
    pub(super) async fn left_behind(&self) {
        if let ProcessKeeper::Systemd(scope) = &self.keeper {
            scope.stop().await;
        }
    }
}

/// Returns true if the process is still a launcher: its manager ended before it was let go, and so
/// will it.
fn is_launcher(pid: u32) -> bool {
    std::fs::read(format!("/proc/{pid}/cmdline"))
        .is_ok_and(|line| line.starts_with(b"smoothserve\0launch\0"))
}
