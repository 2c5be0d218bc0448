//! The process of an instance as the manager sees it: the manager signals it, and waits for it,
//! through its pidfd.
//!
//! Under systemd, a process has its own scope and writes to the journal, so it outlives the
//! manager, and the next manager takes it over. Otherwise the process has a keeper, a child of the
//! manager: it writes to the manager's pipes and ends with the manager.

use std::cell::Cell;
use std::io;
use std::rc::Rc;
use std::time::SystemTime;

use rustix::process::{Pid, Signal};

use super::keeper_process::KeeperProcess;
use super::output::Tail;
use crate::ancestry::with_ancestors;
use crate::manager::host::pidfd::Pidfd;
use crate::systemd::journal;
use crate::systemd::units::Scope;

/// A process that runs, or has ended a moment ago.
#[derive(Debug)]
pub struct Process {
    /// The number of the process, which is also the number of its process group.
    pub pid: u32,
    /// When the process was started.
    pub started: SystemTime,
    pub(super) pidfd: Pidfd,
    /// The process has got a signal to end.
    pub(super) told_to_end: Cell<bool>,
    pub(super) keeper: ProcessKeeper,
}

/// What keeps a process and its children together, and where its output goes.
#[derive(Debug)]
pub(super) enum ProcessKeeper {
    /// A keeper keeps them together, and the manager reads their output.
    Keeper {
        /// The process of the keeper.
        keeper: Rc<KeeperProcess>,
        /// The last lines of stderr.
        stderr: Tail,
    },
    /// A scope keeps them together, and the journal has their output. The scope outlives the
    /// manager.
    Systemd {
        /// The scope of the process.
        scope: Scope,
        /// The slice of all instances of the service.
        slice: String,
    },
}

impl Process {
    /// Takes over a process that an earlier manager has started, if the process still runs.
    pub fn adopt(
        pid: u32,
        started: SystemTime,
        scope: Scope,
        slice: String,
    ) -> io::Result<Process> {
        let pidfd = Pidfd::open(pid)?;
        // The number may belong to another process by now, but no other process is in this scope.
        if !scope.holds(pid) || is_launcher(pid) {
            return Err(io::ErrorKind::NotFound.into());
        }
        let keeper = ProcessKeeper::Systemd { scope, slice };
        Ok(Process {
            pid,
            started,
            pidfd,
            told_to_end: Cell::default(),
            keeper,
        })
    }

    /// Waits for the end of the process and, if it was told to end, of the processes that it has
    /// left.
    pub async fn ended(&self) -> io::Result<()> {
        self.pidfd.ended().await?;
        self.left_behind().await;
        Ok(())
    }

    /// Returns true if process `pid` is this process or belongs to it.
    pub fn holds(&self, pid: u32) -> bool {
        match &self.keeper {
            ProcessKeeper::Keeper { .. } => {
                with_ancestors(pid).any(|ancestor| ancestor == self.root())
            }
            ProcessKeeper::Systemd { scope, .. } => scope.holds(pid),
        }
    }

    /// Returns the number of the process that all processes of the instance descend from, as far as
    /// that is known.
    pub fn root(&self) -> u32 {
        match &self.keeper {
            ProcessKeeper::Keeper { keeper, .. } => keeper.pid,
            ProcessKeeper::Systemd { .. } => self.pid,
        }
    }

    /// Returns the last lines of the process's stderr or, in the journal, of all its output.
    pub async fn last_lines(&self) -> Vec<String> {
        match &self.keeper {
            ProcessKeeper::Keeper { stderr, .. } => stderr.borrow().iter().cloned().collect(),
            ProcessKeeper::Systemd { scope, slice } => {
                journal::last_lines(&scope.name, slice, self.pid, self.started).await
            }
        }
    }

    /// Returns the name of the source of [`Process::last_lines`]: `stderr` or `log`.
    pub fn output(&self) -> &'static str {
        match self.keeper {
            ProcessKeeper::Keeper { .. } => "stderr",
            ProcessKeeper::Systemd { .. } => "log",
        }
    }

    /// Sends a signal to the process, to end it. Does nothing if the process has ended.
    pub fn signal(&self, signal: i32) {
        self.told_to_end.set(true);
        if let Some(signal) = Signal::from_named_raw(signal) {
            self.pidfd.signal(signal);
        }
    }

    /// Sends SIGKILL to the process and to all processes that it has started.
    pub fn kill(&self) {
        self.told_to_end.set(true);
        let is_there = self.pidfd.signal(Signal::KILL);
        match &self.keeper {
            // The keeper may have reaped the process by now, and its number may be another one's.
            ProcessKeeper::Keeper { keeper, .. } => keeper.kill(),
            ProcessKeeper::Systemd { scope, .. } => {
                // A process that can be signaled by its pidfd was not waited for yet, so no other
                // process has its number.
                if is_there && let Some(pid) = Pid::from_raw(self.pid.cast_signed()) {
                    let _ = rustix::process::kill_process_group(pid, Signal::KILL);
                }
                let scope = scope.clone();
                tokio::task::spawn_local(async move { scope.kill().await });
            }
        }
    }

    /// Ends the processes that an ended process has left. Waits for that if the process was told to
    /// end. Otherwise it has failed, and another one has to take its place at once.
    pub(super) async fn left_behind(&self) {
        match (&self.keeper, self.told_to_end.get()) {
            (ProcessKeeper::Keeper { keeper, .. }, true) => keeper.ended().await,
            (ProcessKeeper::Keeper { .. }, false) => {}
            (ProcessKeeper::Systemd { scope, .. }, true) => scope.end().await,
            (ProcessKeeper::Systemd { scope, .. }, false) => scope.stop().await,
        }
    }
}

/// Returns true if the process is still a launcher. The manager that started it has ended, so it
/// will end, too.
fn is_launcher(pid: u32) -> bool {
    // Earlier versions have named their launchers in two words.
    std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| {
        line.starts_with(b"smoothserve: launch\0") || line.starts_with(b"smoothserve\0launch\0")
    })
}
