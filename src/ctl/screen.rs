//! What smoothctl prints. Everything passes through here, because most of it is text of others:
//! names, errors, and what instances have written.

use std::ffi::OsStr;
use std::io::{IsTerminal, Write};
use std::os::fd::AsFd;

use super::text::{self, Text};
use crate::printable::{printable, printable_json, printable_line};

/// Prints text with its line ends.
pub(super) fn print(text: &str) {
    to_stdout(&printable(text));
}

/// Makes an empty text that fits standard output: as wide as the terminal, or with lines of any
/// length if there is none, or if `full` is set.
pub(super) fn text(full: bool) -> Text {
    let is_terminal = std::io::stdout().is_terminal();
    Text::new((is_terminal && !full).then(|| width(std::io::stdout())))
}

/// Prints a text, in colors if standard output shows them. If something of it was cut, a hint
/// follows.
pub(super) fn print_text(mut text: Text) {
    if text.is_cut() {
        text.gap();
        text.paragraph(Vec::new(), "Hint: use -l to show it in full.", 0);
    }
    let variable = |name: &str| std::env::var_os(name);
    let has_colors = has_colors(
        std::io::stdout().is_terminal(),
        variable("SYSTEMD_COLORS").as_deref(),
        variable("NO_COLOR").as_deref(),
        variable("TERM").as_deref(),
    );
    to_stdout(&text.lines(has_colors));
}

/// Decides about colors as systemctl does: `SYSTEMD_COLORS` decides if it has a known value; other
/// than that, only terminals have colors, unless there is `NO_COLOR` or the terminal is dumb.
fn has_colors(
    is_terminal: bool,
    wanted: Option<&OsStr>,
    no_color: Option<&OsStr>,
    terminal: Option<&OsStr>,
) -> bool {
    let wanted = wanted.and_then(OsStr::to_str).map(str::to_ascii_lowercase);
    match wanted.as_deref() {
        Some("1" | "y" | "yes" | "t" | "true" | "on" | "16" | "256" | "24bit") => true,
        Some("0" | "n" | "no" | "f" | "false" | "off") => false,
        _ => is_terminal && no_color.is_none() && terminal.is_none_or(|kind| kind != "dumb"),
    }
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
            true => {
                // A line that is as wide as the terminal would end it.
                let line = text::cut(&text, width(std::io::stderr()).saturating_sub(1));
                to_stderr(&format!("\r\x1b[2K{line}"));
            }
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

/// Returns the number of columns of the terminal, as the variable `COLUMNS` or the terminal says.
fn width(terminal: impl AsFd) -> usize {
    let set = std::env::var("COLUMNS").ok();
    let set = set.and_then(|columns| columns.parse().ok());
    let size = || {
        let size = rustix::termios::tcgetwinsize(terminal).ok()?;
        Some(usize::from(size.ws_col))
    };
    let known = |columns: &usize| *columns > 0;
    let found = set.filter(known).or_else(|| size().filter(known));
    found.unwrap_or(80)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colors_are_for_terminals_and_for_those_who_ask() {
        let decided = |is_terminal, wanted: Option<&str>, no_color: Option<&str>, kind: &str| {
            let [wanted, no_color] = [wanted, no_color].map(|text| text.map(OsStr::new));
            has_colors(is_terminal, wanted, no_color, Some(OsStr::new(kind)))
        };
        assert!(decided(true, None, None, "xterm"));
        assert!(!decided(false, None, None, "xterm"));
        assert!(!decided(true, None, None, "dumb"));
        assert!(!decided(true, None, Some(""), "xterm"));
        assert!(decided(true, Some("1"), Some("1"), "dumb"));
        assert!(decided(false, Some("yes"), None, "xterm"));
        assert!(!decided(true, Some("0"), None, "xterm"));
        assert!(decided(true, Some("pink"), None, "xterm"));
    }
}
