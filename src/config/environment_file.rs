//! An environment file: reads it as systemd reads `EnvironmentFile=`, so that a file means the same
//! in a unit and here.

use std::collections::BTreeMap;

use super::fault::shorten;

/// The variables that smoothserve itself sets for an instance, beside those that begin with
/// [`OWN_PREFIX`].
const OWN: [&str; 6] = [
    "PORT",
    "SOCKET",
    "NOTIFY_SOCKET",
    "LISTEN_FDS",
    "LISTEN_PID",
    "LISTEN_FDNAMES",
];

/// What the names of further variables begin with that smoothserve sets.
const OWN_PREFIX: &str = "SMOOTHSERVE_";

/// Why most lines are ignored.
const NO_ASSIGNMENT: &str = "it is no `NAME=value`";

/// What an environment file says.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct EnvironmentFile {
    /// The variables that it sets.
    pub variables: BTreeMap<String, String>,
    /// Remarks about what is ignored in it, each with the number of a line. They quote nothing that
    /// could be a part of a secret.
    pub remarks: Vec<String>,
}

/// Returns true for a variable that smoothserve itself sets, so no file may.
pub fn is_own_variable(name: &str) -> bool {
    OWN.contains(&name) || name.starts_with(OWN_PREFIX)
}

impl EnvironmentFile {
    /// Reads the text of a file: `KEY=value`, comments with `#` or `;`, values with quotes and
    /// backslashes as in systemd.exec(5). In addition, `export` may stand before a name, as in
    /// files that are made for a shell, too.
    pub fn parse(text: &str) -> EnvironmentFile {
        let mut parser = Parser::default();
        for character in text.trim_start_matches('\u{feff}').chars() {
            parser.take(character);
        }
        if parser.state.is_value() {
            parser.end_assignment();
        }
        parser.file
    }

    fn remark(&mut self, line: usize, why: &str) {
        self.remarks.push(format!("line {line} is ignored: {why}"));
    }

    fn set(&mut self, line: usize, key: &str, value: String) {
        let name = key.strip_prefix("export ").unwrap_or(key).trim();
        if !is_name(name) {
            self.remark(line, NO_ASSIGNMENT);
        } else if is_own_variable(name) {
            let shown = shorten(name);
            self.remark(line, &format!("`{shown}` is set by smoothserve itself"));
        } else {
            self.variables.insert(name.to_owned(), value);
        }
    }
}

fn is_name(name: &str) -> bool {
    let is_part = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    !name.starts_with(|first: char| first.is_ascii_digit())
        && !name.is_empty()
        && name.bytes().all(is_part)
}

/// Where in a file the parser is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum State {
    #[default]
    BeforeKey,
    Key,
    /// Before the value, or behind a quoted part of it.
    BeforeValue,
    Value,
    ValueEscape,
    SingleQuotes,
    DoubleQuotes,
    DoubleQuotesEscape,
    Comment,
    CommentEscape,
}

impl State {
    fn is_value(self) -> bool {
        use State::*;
        !matches!(self, BeforeKey | Key | Comment | CommentEscape)
    }
}

/// The state machine over the characters of a file.
#[derive(Debug, Default)]
struct Parser {
    state: State,
    /// How many lines have ended.
    lines: usize,
    /// The line of the key.
    line: usize,
    key: String,
    value: String,
    /// The length of the value without the white space at its end that is not protected.
    kept: usize,
    file: EnvironmentFile,
}

impl Parser {
    fn take(&mut self, character: char) {
        use State::*;
        let ends_line = matches!(character, '\n' | '\r');
        let is_space = ends_line || matches!(character, ' ' | '\t');
        self.lines += usize::from(character == '\n');
        self.state = match (self.state, character) {
            (BeforeKey, '#' | ';') => Comment,
            (BeforeKey, _) if is_space => BeforeKey,
            (BeforeKey, _) => {
                self.line = self.lines + 1;
                self.key = character.to_string();
                Key
            }
            (Key, '=') => BeforeValue,
            (Key, _) if ends_line => {
                self.file.remark(self.line, NO_ASSIGNMENT);
                BeforeKey
            }
            (Key, _) => {
                self.key.push(character);
                Key
            }
            (BeforeValue | Value, _) if ends_line => {
                self.end_assignment();
                BeforeKey
            }
            (BeforeValue, '\'') => SingleQuotes,
            (BeforeValue, '"') => DoubleQuotes,
            (BeforeValue | Value, '\\') => ValueEscape,
            (BeforeValue, _) if is_space => BeforeValue,
            (BeforeValue | Value, _) => {
                self.value.push(character);
                if !is_space {
                    self.keep();
                }
                Value
            }
            (ValueEscape, _) => {
                // A backslash at the end of a line joins it with the next one.
                if !ends_line {
                    self.value.push(character);
                }
                self.keep();
                Value
            }
            (SingleQuotes, '\'') | (DoubleQuotes, '"') => BeforeValue,
            (DoubleQuotes, '\\') => DoubleQuotesEscape,
            (quotes @ (SingleQuotes | DoubleQuotes), _) => {
                self.value.push(character);
                self.keep();
                quotes
            }
            (DoubleQuotesEscape, '\n') => DoubleQuotes,
            (DoubleQuotesEscape, _) => {
                // As in a shell, a backslash before any other character stands for itself.
                if !matches!(character, '"' | '\\' | '`' | '$') {
                    self.value.push('\\');
                }
                self.value.push(character);
                self.keep();
                DoubleQuotes
            }
            (Comment | CommentEscape, _) if ends_line => BeforeKey,
            (Comment, '\\') => CommentEscape,
            (Comment | CommentEscape, _) => Comment,
        };
    }

    fn keep(&mut self) {
        self.kept = self.value.len();
    }

    fn end_assignment(&mut self) {
        self.value.truncate(self.kept);
        self.kept = 0;
        let (key, value) = (
            std::mem::take(&mut self.key),
            std::mem::take(&mut self.value),
        );
        self.file.set(self.line, key.trim_end(), value);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pairs(text: &str) -> Vec<(String, String)> {
        EnvironmentFile::parse(text).variables.into_iter().collect()
    }

    fn pair(key: &str, value: &str) -> (String, String) {
        (key.to_owned(), value.to_owned())
    }

    #[test]
    fn values_are_read_as_in_a_unit() {
        let text = "# a comment\n; another\n\nA=1\n  B = two words  \nC='single # \\n'\nD=\"double \\\" \\\\\"\nE=a\\\nb\n\
                    export F=x=y\nH=\nI='  kept  '\r\nJ=it's fine\nK={\"a\": \"b\"}\nL=a\"b\"c\nM=\"A\\nB\"\nN=\"^\\d+$\"\n\
                    # a comment with a \\\nO=1\nP=\"a\" b 'c'\nQ=a\\ \nR=\"two\nlines\"\nS=\"a\\\nb\"\nT=# no comment\nU=\"\\$x\"";
        let expected = [
            pair("A", "1"),
            pair("B", "two words"),
            pair("C", "single # \\n"),
            pair("D", "double \" \\"),
            pair("E", "ab"),
            pair("F", "x=y"),
            pair("H", ""),
            pair("I", "  kept  "),
            pair("J", "it's fine"),
            pair("K", "{\"a\": \"b\"}"),
            pair("L", "a\"b\"c"),
            pair("M", "A\\nB"),
            pair("N", "^\\d+$"),
            pair("O", "1"),
            pair("P", "ab 'c'"),
            pair("Q", "a "),
            pair("R", "two\nlines"),
            pair("S", "ab"),
            pair("T", "# no comment"),
            pair("U", "$x"),
        ];
        assert_eq!(pairs(text), expected);
        assert_eq!(EnvironmentFile::parse(text).remarks, [""; 0]);
    }

    #[test]
    fn what_is_ignored_is_said_without_its_value() {
        let text =
            "\u{feff}A=1\nnothing\n1G=secret\nPORT=3000\nSMOOTHSERVE_X=1\n=secret\nB C=secret\n";
        let file = EnvironmentFile::parse(text);
        assert_eq!(
            file.variables.into_iter().collect::<Vec<_>>(),
            [pair("A", "1")]
        );
        assert_eq!(
            file.remarks,
            [
                "line 2 is ignored: it is no `NAME=value`",
                "line 3 is ignored: it is no `NAME=value`",
                "line 4 is ignored: `PORT` is set by smoothserve itself",
                "line 5 is ignored: `SMOOTHSERVE_X` is set by smoothserve itself",
                "line 6 is ignored: it is no `NAME=value`",
                "line 7 is ignored: it is no `NAME=value`",
            ]
        );
    }

    proptest! {
        #[test]
        fn any_text_is_read(text in ".*") {
            EnvironmentFile::parse(&text);
        }

        #[test]
        fn a_quoted_value_comes_back_as_it_was(value in "[^\"\\\\]*") {
            let text = format!("KEY=\"{value}\"\n");
            prop_assert_eq!(pairs(&text), [pair("KEY", &value)]);
        }
    }
}
