//! Processes as `/proc` shows them.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use rustix::process::{Pid, Signal, kill_process};

/// A process, identified by its number and its start time, so that a reused number is no confusion.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Process {
    /// The process number.
    pub pid: u32,
    parent: u32,
    started: u64,
    /// The command line, as `ps` shows it.
    pub command: String,
}

impl Process {
    /// Returns the process of this number, or `None` if there is none or it is a zombie.
    pub fn of(pid: u32) -> Option<Process> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The second field is the name of the program, in parentheses, and may contain anything.
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

    /// Returns true if the process still runs.
    pub fn runs(&self) -> bool {
        Process::of(self.pid).is_some_and(|now| now.started == self.started)
    }

    /// Sends the process a signal if it still runs.
    pub fn signal(&self, signal: Signal) {
        if self.runs() {
            signal_pid(self.pid, signal);
        }
    }
}

/// Sends a signal to the process of this number. A process that has just ended is no error.
pub fn signal_pid(pid: u32, signal: Signal) {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    let _ = kill_process(pid.expect("a process has a positive number"), signal);
}

/// Returns all descendants of the process of this number.
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

/// Returns all processes whose executable or working directory is in this folder.
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
