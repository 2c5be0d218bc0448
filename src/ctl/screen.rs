//! What smoothctl prints. Everything passes through here, because most of it is text of others:
//! names, errors, and what instances have written.

use std::io::{IsTerminal, Write};

use super::render;
use crate::printable::{printable, printable_json, printable_line};

/// Prints text with its line ends.
pub(super) fn print(text: &str) {
    to_stdout(&printable(text));
}

/// Prints JSON, and ends the line.
pub(super) fn print_json(json: &str) {
    to_stdout(&(printable_json(json) + "\n"));
}

/// Prints an error, and ends the line.
pub(super) fn print_error(text: &str) {
    to_stderr(&(printable(text) + "\n"));
}

// Nobody can be told that there is no reader any more.

fn to_stdout(text: &str) {
    let mut stdout = std::io::stdout().lock();
    let _ = stdout.write_all(text.as_bytes());
    let _ = stdout.flush();
}

fn to_stderr(text: &str) {
    let _ = std::io::stderr().write_all(text.as_bytes());
}

/// The line that shows the step of a job. On a terminal the next step overwrites it; elsewhere each
/// step gets a line of its own.
pub(super) struct Line {
    is_terminal: bool,
    shown: String,
}

impl Line {
    /// Makes a line on which nothing is shown yet.
    pub(super) fn new() -> Line {
        Line {
            is_terminal: std::io::stderr().is_terminal(),
            shown: String::new(),
        }
    }

    /// Shows a step, unless it is shown already.
    pub(super) fn show(&mut self, step: &str) {
        let text = printable_line(step);
        if self.shown == text {
            return;
        }
        match self.is_terminal {
            true => to_stderr(&format!("\r\x1b[2K{}", render::cut(&text, width()))),
            false => to_stderr(&format!("{text}\n")),
        }
        self.shown = text;
    }

    /// Removes the step that is shown.
    pub(super) fn clear(&mut self) {
        if self.is_terminal && !self.shown.is_empty() {
            to_stderr("\r\x1b[2K");
        }
        self.shown.clear();
    }

    /// Removes the step, and prints a last text instead.
    pub(super) fn finish(&mut self, text: &str) {
        self.clear();
        print(&format!("{text}\n"));
    }
}

fn width() -> usize {
    let size =
        rustix::termios::tcgetwinsize(std::io::stderr()).map(|size| usize::from(size.ws_col));
    size.ok().filter(|&columns| columns > 0).unwrap_or(80)
}
