//! The text of one configuration file: read with bounds, and able to show its lines.

use std::ops::Range;
use std::path::{Path, PathBuf};

use super::fault::{Fault, Position};
use super::written::Written;
use crate::patience;
use crate::trust::{self, FileFault};

/// The most bytes that a file of the configuration may have.
const MAX_BYTES: u64 = 1024 * 1024;

/// The path and the text of one file.
#[derive(Debug)]
pub(super) struct Source {
    /// The path of the file.
    pub(super) path: PathBuf,
    /// The whole text.
    pub(super) text: String,
    /// When the file was written.
    pub(super) written: Written,
    /// The bytes of each line, without its end.
    lines: Vec<Range<usize>>,
}

impl Source {
    /// Reads a file. `Ok(None)`: the file does not exist.
    pub(super) fn read(path: &Path) -> Result<Option<Source>, Fault> {
        let whole = |message: String| Fault {
            file: path.to_owned(),
            position: None,
            message,
            source_line: None,
        };
        let needed = |kind: &str| whole(format!("is {kind}; a text file is needed here"));
        let own = path.to_owned();
        let read = patience::within(&path.display().to_string(), move || {
            // The time comes first: a change after it is noticed later.
            let written = Written::of(&own);
            trust::read(&own, MAX_BYTES, None).map(|bytes| (bytes, written))
        });
        match read.map_err(|unanswered| whole(unanswered.to_string()))? {
            Ok((bytes, written)) => {
                let source = Source::decode(path, bytes)?;
                Ok(Some(Source { written, ..source }))
            }
            // A symlink that leads nowhere is there, its target is not.
            Err(fault) if fault.is_missing() && path.symlink_metadata().is_err() => Ok(None),
            Err(FileFault::Folder) => Err(needed("a folder")),
            Err(FileFault::NotRegular) => Err(needed("no regular file")),
            Err(FileFault::TooLarge(_)) => Err(whole(
                "is larger than 1 MiB; that is no configuration".to_owned(),
            )),
            Err(fault) => Err(whole(format!("cannot be opened: {fault}"))),
        }
    }

    /// Checks that the bytes of a file are text.
    pub(super) fn decode(path: &Path, bytes: Vec<u8>) -> Result<Source, Fault> {
        let (text, valid) = match String::from_utf8(bytes) {
            Ok(text) => (text, true),
            Err(error) => {
                let valid = error.utf8_error().valid_up_to();
                let mut bytes = error.into_bytes();
                bytes.truncate(valid);
                (String::from_utf8(bytes).unwrap_or_default(), false)
            }
        };
        let text = match text.strip_prefix('\u{feff}') {
            Some(rest) => rest.to_owned(),
            None => text,
        };
        let source = Source {
            path: path.to_owned(),
            written: Written::default(),
            lines: lines(&text),
            text,
        };
        if !valid {
            let at = source.position(source.text.len());
            let message = "is not UTF-8 from here on; save the file as UTF-8".to_owned();
            return Err(source.fault(at, message));
        }
        let control = |c: char| c.is_control() && !matches!(c, '\n' | '\r' | '\t' | '\u{85}');
        if let Some((offset, c)) = source.text.char_indices().find(|(_, c)| control(*c)) {
            let code = u32::from(c);
            let message = format!("the control character U+{code:04X} stands here; remove it");
            return Err(source.fault(source.position(offset), message));
        }
        Ok(source)
    }

    /// Makes a fault at a position of this file, with the line that stands there.
    pub(super) fn fault(&self, at: Position, message: String) -> Fault {
        let at = self.clamp(at);
        Fault {
            file: self.path.clone(),
            position: Some(at),
            message: message.replace(char::is_control, "\u{fffd}"),
            source_line: self.line(at.line).map(str::to_owned),
        }
    }

    /// Moves a position behind the last line, where the parser may see the end of the text, to the
    /// end of that line.
    fn clamp(&self, at: Position) -> Position {
        let end = self.position(self.text.len());
        if at.line > end.line { end } else { at }
    }

    /// Makes a fault of this file as a whole.
    pub(super) fn whole(&self, message: String) -> Fault {
        Fault {
            file: self.path.clone(),
            position: None,
            message,
            source_line: None,
        }
    }

    /// Returns the line of a number, counted from 1.
    pub(super) fn line(&self, number: usize) -> Option<&str> {
        let range = self.lines.get(number.checked_sub(1)?)?;
        Some(&self.text[range.clone()])
    }

    /// Returns the position of a byte.
    fn position(&self, offset: usize) -> Position {
        let line = self.lines.partition_point(|line| line.start <= offset);
        let start = self.lines[line - 1].start;
        let column = self.text[start..offset].chars().count() + 1;
        Position { line, column }
    }

    /// Finds where `part` stands in the value that begins at `from`, in the same line or in the
    /// further lines of a value with several. If the value is not written in one piece there, that
    /// is `from` itself.
    pub(super) fn find(&self, from: Position, part: &str) -> Position {
        let column_in = |line: usize, column: usize| {
            let text = self.line(line)?;
            let skipped = text.char_indices().nth(column - 1)?.0;
            let offset = text[skipped..].find(part)?;
            Some(column + text[skipped..skipped + offset].chars().count())
        };
        if let Some(column) = column_in(from.line, from.column) {
            return Position { column, ..from };
        }
        let indent = |text: &str| text.len() - text.trim_start_matches(' ').len();
        let own = self.line(from.line).map_or(0, indent);
        let further = (from.line + 1..).map_while(|line| Some((line, self.line(line)?)));
        // A value with several lines is indented more than its key; a block that has its position
        // at its first line, as much.
        let further = further.take_while(|(_, text)| {
            text.trim().is_empty() || indent(text) > own || (own > 0 && indent(text) == own)
        });
        let mut found = further.filter_map(|(line, _)| {
            let column = column_in(line, 1)?;
            Some(Position { line, column })
        });
        found.next().unwrap_or(from)
    }
}

/// Finds the lines as YAML counts them: ended by `\n`, `\r\n` or `\r`. The text behind the last end
/// is a line too, so there is at least one.
fn lines(text: &str) -> Vec<Range<usize>> {
    let mut lines = Vec::new();
    let mut start = 0;
    while let Some(length) = text[start..].find(['\n', '\r']) {
        let end = start + length;
        lines.push(start..end);
        start = end
            + if text[end..].starts_with("\r\n") {
                2
            } else {
                1
            };
    }
    lines.push(start..text.len());
    lines
}

/// Completes a path that a file gives, which begins at that file's folder. `..` stays, since a
/// symlink may stand before it.
pub(super) fn join(folder: &Path, path: &str) -> PathBuf {
    folder.join(path).components().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(bytes: &[u8]) -> Result<Source, Fault> {
        Source::decode(Path::new("x.yaml"), bytes.to_vec())
    }

    #[test]
    fn counts_lines_as_yaml_does() {
        let source = decode(b"a\r\nb\rc\n").unwrap();
        assert_eq!(source.line(0), None);
        assert_eq!(source.line(1), Some("a"));
        assert_eq!(source.line(2), Some("b"));
        assert_eq!(source.line(3), Some("c"));
        assert_eq!(source.line(4), Some(""));
        assert_eq!(source.line(5), None);
    }

    #[test]
    fn says_where_bytes_are_no_text() {
        let fault = decode(b"name: caf\xe9\n").unwrap_err();
        assert_eq!(
            fault.position,
            Some(Position {
                line: 1,
                column: 10
            })
        );
        assert_eq!(fault.source_line.as_deref(), Some("name: caf"));
        let fault = decode(b"a: 1\nb: \0\n").unwrap_err();
        assert_eq!(fault.position, Some(Position { line: 2, column: 4 }));
        assert!(fault.message.contains("U+0000"));
    }

    #[test]
    fn finds_a_part_of_a_value() {
        let source = decode("s: \"ä.example, b:80\"\n".as_bytes()).unwrap();
        let at = Position { line: 1, column: 4 };
        assert_eq!(source.find(at, "b:80").column, 16);
        assert_eq!(source.find(at, "zzz"), at);
        let source = decode(b"a: >-\n  info,\n  hax=1\nb: hax=2\n").unwrap();
        let at = Position { line: 1, column: 4 };
        assert_eq!(source.find(at, "hax"), Position { line: 3, column: 3 });
        assert_eq!(source.find(at, "b: "), at);
    }

    #[test]
    fn reads_no_fifo_no_folder_and_nothing_huge() {
        let dir = tempfile::tempdir().unwrap();
        let read = |name: &str| Source::read(&dir.path().join(name));
        assert!(read("missing").unwrap().is_none());

        let fifo = dir.path().join("fifo");
        let kind = rustix::fs::FileType::Fifo;
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, kind, 0o600.into(), 0).unwrap();
        assert!(
            read("fifo")
                .unwrap_err()
                .message
                .contains("no regular file")
        );

        std::fs::create_dir(dir.path().join("folder")).unwrap();
        assert!(read("folder").unwrap_err().message.contains("a folder"));

        std::os::unix::fs::symlink("nowhere", dir.path().join("dangling")).unwrap();
        assert!(
            read("dangling")
                .unwrap_err()
                .message
                .contains("cannot be opened")
        );

        std::fs::write(dir.path().join("huge"), vec![b'#'; 1024 * 1024 + 1]).unwrap();
        assert!(read("huge").unwrap_err().message.contains("1 MiB"));
    }
}
