//! The output of an instance: both streams are passed on line by line, and the last lines are kept.
//!
//! The lines go to the manager's stderr through a queue, so only the task of the stream waits for
//! a slow reader, and not for long: then lines are dropped, so output never blocks the instance.
//! The manager keeps only a few lines, however much an instance writes. A terminal would obey the
//! control characters in a line, so it gets them escaped.

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::VecDeque;
use std::fmt::Write;
use std::io::IsTerminal;
use std::rc::Rc;

use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::{ChildStderr, ChildStdout};
use tokio::task::JoinSet;

use crate::logging;

/// The number of lines that are kept of stderr.
const TAIL: usize = 20;

/// The number of characters that are kept of each line.
const TAIL_LINE: usize = 512;

/// The number of bytes that are passed on as one line; a longer line is cut into several.
const LONGEST_LINE: usize = 8 << 10;

/// The tasks that read both streams of a process.
#[derive(Debug)]
pub(super) struct Output {
    readers: JoinSet<()>,
}

/// The last lines of a stream, oldest first.
pub(super) type Tail = Rc<RefCell<VecDeque<String>>>;

impl Output {
    /// Begins to read both streams. Must run inside a `LocalSet`.
    pub(super) fn read(
        label: &str,
        stdout: Option<ChildStdout>,
        stderr: Option<ChildStderr>,
        tail: &Tail,
    ) -> Output {
        let mut readers = JoinSet::new();
        if let Some(stdout) = stdout {
            readers.spawn_local(pass_on(label.to_owned(), stdout, Tail::default()));
        }
        if let Some(stderr) = stderr {
            readers.spawn_local(pass_on(label.to_owned(), stderr, tail.clone()));
        }
        Output { readers }
    }

    /// Waits until both streams have ended.
    pub(super) async fn ended(&mut self) {
        while self.readers.join_next().await.is_some() {}
    }
}

async fn pass_on(label: String, mut pipe: impl AsyncRead + Unpin, tail: Tail) {
    let mut buffer = Vec::with_capacity(LONGEST_LINE);
    loop {
        let end = match (&mut pipe)
            .take((LONGEST_LINE - buffer.len()) as u64)
            .read_buf(&mut buffer)
            .await
        {
            Ok(0) | Err(_) => true,
            Ok(_) => false,
        };
        while let Some(length) = buffer.iter().position(|&byte| byte == b'\n') {
            line(&label, &buffer[..length], &tail).await;
            buffer.drain(..=length);
        }
        if (end && !buffer.is_empty()) || buffer.len() == LONGEST_LINE {
            line(&label, &buffer, &tail).await;
            buffer.clear();
        }
        if end {
            return;
        }
    }
}

async fn line(label: &str, line: &[u8], tail: &Tail) {
    let line = String::from_utf8_lossy(line.strip_suffix(b"\r").unwrap_or(line));
    keep(&line, tail);
    let shown = match std::io::stderr().is_terminal() {
        true => escaped(&line),
        false => line,
    };
    logging::pass_on(format!("{label}: {shown}\n").into_bytes()).await;
}

fn keep(line: &str, tail: &Tail) {
    let mut tail = tail.borrow_mut();
    if tail.len() == TAIL {
        tail.pop_front();
    }
    let kept = line
        .char_indices()
        .nth(TAIL_LINE)
        .map_or(line, |(end, _)| &line[..end]);
    tail.push_back(kept.to_owned());
}

/// Escapes the control characters of a line, except tabs.
fn escaped(line: &str) -> Cow<'_, str> {
    let is_control = |char: char| char.is_control() && char != '\t';
    if !line.contains(is_control) {
        return Cow::Borrowed(line);
    }
    let mut escaped = String::with_capacity(line.len() + 16);
    for char in line.chars() {
        match is_control(char) {
            // Writing into a string cannot fail.
            true => drop(write!(escaped, "\\x{:02x}", u32::from(char))),
            false => escaped.push(char),
        }
    }
    Cow::Owned(escaped)
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn read(bytes: &[u8]) -> Vec<String> {
        let tail = Tail::default();
        pass_on("test/1".into(), bytes, tail.clone()).await;
        let lines = tail.borrow();
        lines.iter().cloned().collect()
    }

    #[tokio::test]
    async fn the_last_lines_are_kept_even_without_a_line_end() {
        let many: String = (1..=30).map(|number| format!("line {number}\n")).collect();
        let lines = read(many.as_bytes()).await;
        assert_eq!(
            (lines.len(), lines[0].as_str(), lines[19].as_str()),
            (20, "line 11", "line 30")
        );
        assert_eq!(read(b"one\r\ntwo").await, ["one", "two"]);
    }

    #[tokio::test]
    async fn a_line_without_end_is_cut() {
        let lines = read(&[b'x'; 3 * LONGEST_LINE + 1]).await;
        assert_eq!(
            lines.iter().map(String::len).collect::<Vec<_>>(),
            [TAIL_LINE, TAIL_LINE, TAIL_LINE, 1]
        );
    }

    #[tokio::test]
    async fn bytes_that_are_no_text_are_shown_as_such() {
        assert_eq!(read(b"\xff\n").await, ["\u{fffd}"]);
    }

    #[test]
    fn a_terminal_gets_no_control_characters_of_an_instance() {
        assert_eq!(escaped("a\tplain line, größer"), "a\tplain line, größer");
        assert_eq!(
            escaped("\u{1b}]0;title\u{7}\rover\u{9b}2J"),
            "\\x1b]0;title\\x07\\x0dover\\x9b2J"
        );
    }
}
