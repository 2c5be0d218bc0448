//! The output of an instance: both streams are passed on line by line, and the last lines are kept.
//!
//! The lines go to the manager's stderr through a queue, so only the task of the stream waits for
//! a slow reader, and not for long: then lines are dropped, so output never blocks the instance.
//! The manager keeps only a few lines, however much an instance writes.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;

use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::{ChildStderr, ChildStdout};
use tokio::task::JoinSet;

use crate::logging;
use crate::printable::printable_line;

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
    let shown = format!("{label}: {}\n", printable_line(&line));
    logging::pass_on(shown.into_bytes()).await;
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
}
