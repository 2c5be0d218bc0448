//! How the process of an instance has ended.

use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

/// The end of a process and of what it has left, as far as anybody waits for it.
#[derive(Debug)]
pub enum Ending {
    /// The process has ended.
    Ended(ProcessEnd),
    /// Processes with these numbers do not end although they were killed. Nobody waits for them any
    /// more.
    LeftBehind(Vec<u32>),
}

/// How the process of an instance has ended, or why it was not started.
#[derive(Debug)]
pub struct ProcessEnd {
    /// The end in words that follow the name of the instance: `exited with status 1`.
    pub how: String,
    /// The status of the program, if it has run and somebody was there to be told.
    pub status: Option<ExitStatus>,
    /// How many processes that the program had started ran on when it ended.
    pub left: usize,
    /// False if the program never ran.
    pub has_run: bool,
}

impl ProcessEnd {
    /// Makes the end of a program that has run.
    pub(super) fn with_status(status: ExitStatus, left: usize) -> ProcessEnd {
        ProcessEnd {
            how: describe(status),
            status: Some(status),
            left,
            has_run: true,
        }
    }

    /// Makes the end of an instance whose program never ran.
    pub fn not_started(cause: &str) -> ProcessEnd {
        ProcessEnd {
            has_run: false,
            ..ProcessEnd::told(&format!("could not be started: {cause}"))
        }
    }

    /// Makes an end of which no more is known than these words.
    pub fn told(how: &str) -> ProcessEnd {
        ProcessEnd {
            how: how.to_owned(),
            status: None,
            left: 0,
            has_run: true,
        }
    }

    /// Returns true if the program has ended well, although nobody has told it to end, and has left
    /// a process that goes on in its place.
    pub fn went_to_the_background(&self) -> bool {
        self.ended_well() && self.left > 0
    }

    /// Returns true if the program has ended with status 0.
    pub fn ended_well(&self) -> bool {
        self.status.is_some_and(|status| status.success())
    }

    /// Returns true if the program has ended with another status than 0.
    pub fn ended_badly(&self) -> bool {
        self.status.is_some_and(|status| !status.success())
    }
}

fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exited with status {code}"),
        (None, Some(signal)) => {
            let core = if status.core_dumped() {
                " (core dumped)"
            } else {
                ""
            };
            match nix::sys::signal::Signal::try_from(signal) {
                Ok(signal) => format!("was killed by {signal}{core}"),
                Err(_) => format!("was killed by signal {signal}{core}"),
            }
        }
        (None, None) => "ended in an unknown way".to_owned(),
    }
}
