//! Faults of the configuration: what is wrong, where, and what to do about it.

use std::fmt;
use std::path::PathBuf;

use crate::printable::{is_deceptive, printable_line};

/// The most columns of a line that are shown.
const SHOWN_COLUMNS: usize = 120;

/// A position in a file. Line and column count from 1; a column is a character.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// The number of the line.
    pub line: usize,
    /// The number of the character in the line.
    pub column: usize,
}

/// The position where a file begins.
pub(super) const TOP: Position = Position { line: 1, column: 1 };

/// One fault of the configuration.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Fault {
    /// The file, or the folder that could not be read.
    pub file: PathBuf,
    /// Where the fault is. `None`: it is a fault of the file as a whole.
    pub position: Option<Position>,
    /// What is wrong and what to do about it, in one line.
    pub message: String,
    /// The text of the line at that position.
    pub source_line: Option<String>,
}

/// How many places of faults are named where they are not explained.
const MOST_PLACES: usize = 3;

impl Fault {
    /// Formats the fault as one line, `file:line:column: message`.
    pub fn summary(&self) -> String {
        let file = printable_line(&self.file.display().to_string());
        let message = printable_line(&self.message);
        match self.position {
            Some(Position { line, column }) => format!("{file}:{line}:{column}: {message}"),
            None => format!("{file}: {message}"),
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.summary())?;
        if let (Some(position), Some(source)) = (self.position, &self.source_line) {
            let (shown, caret) = excerpt(source, position.column);
            let line = position.line.to_string();
            let (margin, indent) = (line.len(), " ".repeat(caret));
            write!(f, "\n  {line} | {shown}\n  {:margin$} | {indent}^", "")?;
        }
        Ok(())
    }
}

/// Cuts out the part of a line around a column that fits on a terminal, and counts the characters
/// before that column.
fn excerpt(line: &str, column: usize) -> (String, usize) {
    let before = column.saturating_sub(1);
    let skipped = before.saturating_sub(SHOWN_COLUMNS / 2);
    let skipped = if line.chars().count() <= SHOWN_COLUMNS {
        0
    } else {
        skipped
    };
    let shown = line
        .chars()
        .skip(skipped)
        .take(SHOWN_COLUMNS)
        .map(|c| match c {
            '\t' => ' ',
            c if is_deceptive(c) => '\u{fffd}',
            c => c,
        })
        .collect::<String>();
    let caret = (before - skipped).min(shown.chars().count());
    (shown.trim_end().to_owned(), caret)
}

/// Something that the machine lacks for a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lack {
    /// Where the file of the service names it, what is wrong, and what to do about it.
    pub fault: Fault,
    /// True: nothing new can run before it is there. False: the service can be changed all the
    /// same, since its certificate is only out of date, or an address is only not here now.
    pub hinders: bool,
}

/// All faults of a configuration, sorted by file and position. `Display` is the whole report.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Faults(Vec<Fault>);

impl Faults {
    /// Sorts the faults and drops repetitions.
    pub(super) fn new(mut faults: Vec<Fault>) -> Faults {
        faults.sort();
        faults.dedup();
        Faults(faults)
    }

    /// Returns true if the configuration has no fault.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the faults one by one, sorted by file and position.
    pub fn iter(&self) -> std::slice::Iter<'_, Fault> {
        self.0.iter()
    }

    /// Returns the number of faults.
    pub fn len(&self) -> usize {
        self.0.len()
    }
}

impl<'a> IntoIterator for &'a Faults {
    type Item = &'a Fault;
    type IntoIter = std::slice::Iter<'a, Fault>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl Faults {
    /// Says where the faults are, and nothing of what stands there: everybody may read this.
    pub fn places(&self) -> String {
        let places = self.0.iter().map(|fault| {
            let file = printable_line(&fault.file.display().to_string());
            match fault.position {
                Some(Position { line, column }) => format!("{file}:{line}:{column}"),
                None => file,
            }
        });
        let mut places: Vec<String> = places.take(MOST_PLACES).collect();
        if let Some(more) = self
            .0
            .len()
            .checked_sub(MOST_PLACES)
            .filter(|more| *more > 0)
        {
            places.push(format!("{more} more"));
        }
        format!(
            "the configuration has faults, which `smoothctl check` explains: {}",
            places.join(", ")
        )
    }
}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, fault) in self.0.iter().enumerate() {
            if number > 0 {
                writeln!(f)?;
            }
            fault.fmt(f)?;
        }
        Ok(())
    }
}

impl std::error::Error for Faults {}

/// Escapes and shortens a value, so that a message can quote it.
pub(super) fn shorten(text: &str) -> String {
    let mut shown: String = text.escape_debug().take(60).collect();
    if shown.len() < text.len() && shown.chars().count() == 60 {
        shown.push('…');
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(line: usize, column: usize, source: &str) -> Fault {
        Fault {
            file: PathBuf::from("services/shop.yaml"),
            position: Some(Position { line, column }),
            message: "instance_count is 0; give at least 1".to_owned(),
            source_line: Some(source.to_owned()),
        }
    }

    #[test]
    fn shows_the_line_with_a_caret() {
        assert_eq!(
            fault(12, 17, "instance_count: 0").to_string(),
            "services/shop.yaml:12:17: instance_count is 0; give at least 1\n\
             \x20 12 | instance_count: 0\n\
             \x20    |                 ^"
        );
    }

    #[test]
    fn shows_a_part_of_a_long_line_and_no_control_characters() {
        let line = format!("{}\x1b[31m{}", "x".repeat(500), "y".repeat(500));
        let text = fault(1, 501, &line).to_string();
        let shown: Vec<&str> = text.lines().collect();
        assert!(shown[1].len() < 200, "{text}");
        assert!(!text.contains('\x1b'), "{text}");
        let caret = shown[2].chars().position(|c| c == '^');
        assert_eq!(caret, shown[1].chars().position(|c| c == '\u{fffd}'));
    }

    #[test]
    fn a_column_behind_the_line_is_no_harm() {
        assert!(fault(1, 80, "short").to_string().ends_with("     ^"));
        assert!(fault(1, 0, "").to_string().ends_with('^'));
    }
}
