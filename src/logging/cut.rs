//! The length of what is logged.

use std::fmt::{self, Write};

use tracing::Level;

/// The most bytes of a value at the levels `debug` and `trace`, where clients decide about values.
const LONGEST_DETAIL: usize = 1 << 10;

/// The most bytes of a value at the other levels, such as all faults of a configuration.
const LONGEST: usize = 64 << 10;

/// Returns the most bytes of a value in a message of this level.
pub(super) fn longest(level: &Level) -> usize {
    match *level {
        Level::DEBUG | Level::TRACE => LONGEST_DETAIL,
        _ => LONGEST,
    }
}

/// Formats a value, and stops when it is too long.
pub(super) fn format(value: &dyn fmt::Debug, longest: usize) -> String {
    let mut text = Cut {
        text: String::new(),
        longest,
    };
    // An error means that the value is cut.
    let _ = write!(text, "{value:?}");
    text.text
}

/// Returns the beginning of a text.
pub(super) fn cut(text: &str, longest: usize) -> &str {
    &text[..text.floor_char_boundary(longest)]
}

struct Cut {
    text: String,
    longest: usize,
}

impl Write for Cut {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let room = self.longest - self.text.len();
        let cut = cut(text, room);
        self.text.push_str(cut);
        match cut.len() == text.len() {
            true => Ok(()),
            false => Err(fmt::Error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_cut_while_it_is_formatted() {
        assert_eq!(format(&"short", 1024), "\"short\"");
        assert_eq!(format(&vec![10; 1000], 9), "[10, 10, ");
        assert_eq!(format(&format_args!("{}", "ü".repeat(9)), 5), "üü");
        assert_eq!(longest(&Level::TRACE), 1024);
        assert_eq!(longest(&Level::INFO), 65536);
    }
}
