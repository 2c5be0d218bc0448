//! What `/proc` tells about processes.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use rustix::process::{Pid, Signal, kill_process};

/// A process, in a way that survives the reuse of its number.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Process {
    /// Its number.
    pub pid: u32,
    parent: u32,
    started: u64,
    /// What `ps` shows.
    pub command: String,
}

impl Process {
    /// The process of this number, unless it is gone or only waits for its parent to notice.
    pub fn of(pid: u32) -> Option<Process> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name of the program comes second, in parentheses, and may contain anything.
        let fields: Vec<&str> = stat.rsplit_once(") ")?.1.split(' ').collect();
        if fields[0] == "Z" || fields[0] == "X" {
            return None;
        }
        let command = fs::read_to_string(format!("/proc/{pid}/cmdline")).ok()?;
        Some(Process {
            pid,
            parent: fields.get(1)?.parse().ok()?,
            started: fields.get(19)?.parse().ok()?,
            command: command.replace('\0', " ").trim_end().to_owned(),
        })
    }

    /// Whether it still runs.
    pub fn runs(&self) -> bool {
        Process::of(self.pid).is_some_and(|now| now.started == self.started)
    }

    /// Sends it a signal if it still runs.
    pub fn signal(&self, signal: Signal) {
        if self.runs() {
            signal_pid(self.pid, signal);
        }
    }
}

/// Sends a signal to a process; that it has just ended is no error.
pub fn signal_pid(pid: u32, signal: Signal) {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    let _ = kill_process(pid.expect("a process has a positive number"), signal);
}

/// All processes below this one.
pub fn descendants(pid: u32) -> Vec<Process> {
    let all = all();
    let mut found: Vec<Process> = Vec::new();
    let mut parents = vec![pid];
    while let Some(parent) = parents.pop() {
        for process in all.values().filter(|process| process.parent == parent) {
            parents.push(process.pid);
            found.push(process.clone());
        }
    }
    found
}

/// All processes whose executable or working directory is in this folder.
pub fn inside(folder: &Path) -> Vec<Process> {
    let lives = |pid: u32, link: &str| {
        fs::read_link(format!("/proc/{pid}/{link}")).is_ok_and(|path| path.starts_with(folder))
    };
    all()
        .into_values()
        .filter(|process| lives(process.pid, "exe") || lives(process.pid, "cwd"))
        .collect()
}

fn all() -> BTreeMap<u32, Process> {
    let entries = fs::read_dir("/proc").expect("/proc is mounted");
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter_map(|pid| Some((pid, Process::of(pid)?)))
        .collect()
}
