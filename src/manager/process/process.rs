//! The process of an instance as the manager sees it: the manager signals it, and waits for it,
//! through its pidfd.
//!
//! Under systemd, a process has its own scope and writes to the journal, so it outlives the
//! manager, and the next manager takes it over. Otherwise the process has a keeper, a child of the
//! manager: it writes to the manager's pipes and ends with the manager.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::rc::Rc;
use std::time::{Duration, SystemTime};

use rustix::process::{Pid, Signal};

use super::ending::{Ending, ProcessEnd};
use super::keeper_process::KeeperProcess;
use super::killed::{Killed, Unkillable};
use super::output::Tail;
use crate::ancestry::{descendants, with_ancestors};
use crate::manager::host::pidfd::Pidfd;
use crate::systemd::journal;
use crate::systemd::units::Scope;

/// The pause between two looks whether something is left in a scope.
const LOOK: Duration = Duration::from_millis(50);

/// A process that runs, or has ended a moment ago.
#[derive(Debug)]
pub struct Process {
    /// The number of the process, which is also the number of its process group.
    pub pid: u32,
    /// When the process was started.
    pub started: SystemTime,
    pub(super) pidfd: Pidfd,
    /// The process has got a signal to end.
    told_to_end: Cell<bool>,
    /// When the process was killed, if it was.
    pub(super) killed: Killed,
    pub(super) keeper: ProcessKeeper,
}

/// The processes of an instance.
#[derive(Debug, Clone)]
pub enum Members {
    /// They descend from this process.
    Descendants(u32),
    /// They are in this scope.
    Scope(Scope),
}

impl Members {
    /// Returns the numbers of those that there are now.
    pub fn pids(&self) -> BTreeSet<u32> {
        match self {
            Members::Descendants(root) => descendants(*root),
            Members::Scope(scope) => scope.pids(),
        }
    }
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
        /// The folder of the scope's cgroup, if it is known.
        cgroup: Option<PathBuf>,
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
        let keeper = ProcessKeeper::in_scope(scope, slice, pid);
        Ok(Process::new(pid, started, pidfd, keeper))
    }

    /// Makes a process that has got no signal yet.
    pub(super) fn new(
        pid: u32,
        started: SystemTime,
        pidfd: Pidfd,
        keeper: ProcessKeeper,
    ) -> Process {
        Process {
            pid,
            started,
            pidfd,
            told_to_end: Cell::default(),
            killed: Killed::default(),
            keeper,
        }
    }

    /// Waits for the end of a process that was taken over and, if it was told to end, of the
    /// processes that it has left.
    pub async fn ended(&self) -> Ending {
        let ended = async {
            let ended = self.killed.bounds(self.pidfd.ended()).await?;
            self.remains_ended().await?;
            Ok(ended)
        };
        match ended.await {
            Ok(Ok(())) => Ending::Ended(ProcessEnd::told(
                "ended (how is not known, it was started before smoothserve itself)",
            )),
            Ok(Err(error)) => Ending::Ended(ProcessEnd::told(&format!("was lost: {error}"))),
            Err(Unkillable) => self.leave(),
        }
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

    /// Returns the processes of the instance, for another thread to look at.
    pub fn members(&self) -> Members {
        match &self.keeper {
            ProcessKeeper::Keeper { keeper, .. } => Members::Descendants(keeper.pid),
            ProcessKeeper::Systemd { scope, .. } => Members::Scope(scope.clone()),
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
            ProcessKeeper::Systemd { scope, slice, .. } => {
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
        self.killed.note();
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
    pub(super) async fn remains_ended(&self) -> Result<(), Unkillable> {
        match (&self.keeper, self.told_to_end.get()) {
            (ProcessKeeper::Keeper { keeper, .. }, true) => {
                self.killed.bounds(keeper.ended()).await
            }
            (ProcessKeeper::Keeper { .. }, false) => Ok(()),
            (ProcessKeeper::Systemd { scope, cgroup, .. }, true) => {
                let emptied = async {
                    match cgroup {
                        Some(cgroup) if !is_populated(cgroup) => return,
                        _ => scope.terminate().await,
                    }
                    match cgroup {
                        Some(cgroup) => {
                            while is_populated(cgroup) {
                                tokio::time::sleep(LOOK).await;
                            }
                        }
                        None => scope.ended().await,
                    }
                };
                self.killed.bounds(emptied).await
            }
            (ProcessKeeper::Systemd { scope, .. }, false) => {
                scope.stop().await;
                Ok(())
            }
        }
    }

    /// Ends the waiting for a process that was killed and has not ended, or has left processes that
    /// have not.
    pub(super) fn leave(&self) -> Ending {
        match self.left() {
            left if left.is_empty() => Ending::Ended(ProcessEnd::told("was killed")),
            left => Ending::LeftBehind(left),
        }
    }

    /// Counts the processes that run on in the place of one that has ended with this status. Only
    /// one that has ended well and unasked can have gone to the background.
    pub(super) fn left_by(&self, status: ExitStatus) -> usize {
        match status.success() && !self.told_to_end.get() {
            true => self.left().len(),
            false => 0,
        }
    }

    /// Returns the processes of the instance that are there, as far as that is known.
    fn left(&self) -> Vec<u32> {
        match &self.keeper {
            ProcessKeeper::Keeper { keeper, .. } => keeper.left(),
            ProcessKeeper::Systemd { cgroup, .. } => {
                let file = cgroup.as_ref().map(|folder| folder.join("cgroup.procs"));
                // The cgroup is removed once nothing is in it.
                let text = file.and_then(|file| std::fs::read_to_string(file).ok());
                let lines = text.iter().flat_map(|text| text.lines());
                lines.filter_map(|line| line.parse().ok()).collect()
            }
        }
    }

    /// Returns true if the process was told to end.
    pub(super) fn was_told_to_end(&self) -> bool {
        self.told_to_end.get()
    }
}

impl ProcessKeeper {
    /// Makes the keeper of process `pid`, which is in this scope now.
    pub(super) fn in_scope(scope: Scope, slice: String, pid: u32) -> ProcessKeeper {
        let cgroup = scope.cgroup_of(pid);
        ProcessKeeper::Systemd {
            scope,
            slice,
            cgroup,
        }
    }
}

/// Returns true if processes are in a cgroup, or in one below it. The cgroup is removed once
/// nothing is in it.
fn is_populated(cgroup: &Path) -> bool {
    let events = std::fs::read_to_string(cgroup.join("cgroup.events"));
    events.is_ok_and(|events| events.lines().any(|line| line == "populated 1"))
}

/// Returns true if the process is still a launcher. The manager that started it has ended, so it
/// will end, too.
fn is_launcher(pid: u32) -> bool {
    // Earlier versions have named their launchers in two words.
    std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| {
        line.starts_with(b"smoothserve: launch\0") || line.starts_with(b"smoothserve\0launch\0")
    })
}
