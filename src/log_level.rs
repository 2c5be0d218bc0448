//! The log level: selects the messages of smoothserve, and of the libraries in it, that are logged.
//!
//! A log level is written as `debug`, or as a list of directives like
//! `info,smoothserve::proxy=debug,h2=debug`. This is the syntax of `RUST_LOG`, with one difference:
//! a level without a target applies to smoothserve alone. A library logs nothing unless a directive
//! names it, because clients can make some libraries log at any level: an HTTP/2 PING
//! acknowledgment without a PING, 17 bytes on the wire, makes h2 log a warning. An error inside a
//! library still reaches smoothserve, which logs it.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use tracing_subscriber::filter::{LevelFilter, Targets};

use crate::printable::quotable;

/// The target of all messages of smoothserve itself: the first part of its module paths.
const OWN_TARGET: &str = "smoothserve";

/// The target of the message that counts lost messages.
const LOSS_TARGET: &str = "smoothserve::logging::queue";

/// The longest text of a log level, in bytes. The limit exists because a worker gets the text as a
/// command-line argument.
const LONGEST: usize = 1024;

/// The names of the levels, each with the kind of message that it is for.
pub const LEVELS: [(&str, &str); 6] = [
    ("error", "Something has failed"),
    ("warn", "Something is odd, or a request has failed"),
    ("info", "What smoothserve does"),
    ("debug", "Why single requests and connections were refused"),
    ("trace", "Everything; as `debug` today"),
    ("off", "Nothing at all"),
];

/// Other words for levels, from other programs, each with the level that was probably meant.
const FOREIGN_WORDS: [(&str, &str); 18] = [
    ("emerg", "error"),
    ("alert", "error"),
    ("crit", "error"),
    ("critical", "error"),
    ("fatal", "error"),
    ("err", "error"),
    ("errors", "error"),
    ("warning", "warn"),
    ("warnings", "warn"),
    ("notice", "info"),
    ("information", "info"),
    ("verbose", "debug"),
    ("all", "trace"),
    ("none", "off"),
    ("no", "off"),
    ("false", "off"),
    ("quiet", "off"),
    ("silent", "off"),
];

/// The levels that digits stand for, as in `RUST_LOG` of other programs.
const DIGITS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

/// The log level: the messages that are logged, by level and target.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct LogLevel {
    /// The level of smoothserve's own messages.
    own: LevelFilter,
    /// The levels of the targets that directives name. Each applies to all targets that begin with
    /// the key.
    targets: BTreeMap<String, LevelFilter>,
}

/// Why a text is not a log level.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LogLevelError {
    /// The word in the place of a level is not the name of one.
    #[error("`{shown}` is no level; {advice}", shown = quotable(.0), advice = Advice(.0))]
    UnknownLevel(String),
    /// The target of a directive has characters that no target has, or is empty.
    #[error(
        "`{shown}` is no target; a directive is TARGET=LEVEL, as in `info,smoothserve::proxy=debug`",
        shown = quotable(.0)
    )]
    BadTarget(String),
    /// Two directives name the same target, or two levels apply to smoothserve.
    #[error("{shown} has two levels; keep one", shown = quotable(.0))]
    Twice(String),
    /// A level is missing: the text has no directive, or nothing stands behind a `=`.
    #[error("a level is missing; write one of error, warn, info, debug, trace and off")]
    Missing,
    /// The text is longer than anything that a person would write.
    #[error("longer than {LONGEST} bytes; name fewer targets")]
    TooLong,
}

impl LogLevelError {
    /// Returns the wrong part of the text, or an empty text if no single part of it is wrong.
    pub(crate) fn part(&self) -> &str {
        match self {
            LogLevelError::UnknownLevel(part) | LogLevelError::BadTarget(part) => part,
            LogLevelError::Twice(_) | LogLevelError::Missing | LogLevelError::TooLong => "",
        }
    }
}

/// Displays a suggestion for a word that is not the name of a level.
struct Advice<'a>(&'a str);

impl fmt::Display for Advice<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.len() > LONGEST_WORD {
            return f.write_str(ALL_LEVELS);
        }
        let word = self.0.to_lowercase();
        if let Some((_, meant)) = FOREIGN_WORDS.iter().find(|(foreign, _)| *foreign == word) {
            return write!(f, "did you mean `{meant}`?");
        }
        let near = LEVELS.iter().map(|(name, _)| *name);
        let near = near.min_by_key(|name| strsim::damerau_levenshtein(name, &word));
        match near {
            Some(near) if strsim::damerau_levenshtein(near, &word) <= 2 => {
                write!(f, "did you mean `{near}`?")
            }
            _ if word.bytes().all(|byte| byte.is_ascii_digit()) => {
                f.write_str("the numbers are 0 (off) to 5 (trace)")
            }
            _ => f.write_str(ALL_LEVELS),
        }
    }
}

/// The advice for a word that is like no level.
const ALL_LEVELS: &str =
    "write one of error, warn, info, debug, trace and off, or TARGET=LEVEL as in `info,h2=debug`";

/// The longest word that is compared with the names of levels, in bytes.
const LONGEST_WORD: usize = 64;

impl Default for LogLevel {
    fn default() -> LogLevel {
        LogLevel {
            own: LevelFilter::INFO,
            targets: BTreeMap::new(),
        }
    }
}

impl FromStr for LogLevel {
    type Err = LogLevelError;

    fn from_str(text: &str) -> Result<LogLevel, LogLevelError> {
        if text.len() > LONGEST {
            return Err(LogLevelError::TooLong);
        }
        let mut own = None;
        let mut targets = BTreeMap::new();
        let directives = text.split(',').map(str::trim);
        let mut is_empty = true;
        // env_logger ignores empty directives, too.
        for directive in directives.filter(|directive| !directive.is_empty()) {
            is_empty = false;
            let before = match directive.split_once('=') {
                // All messages of a target, as env_logger has it. A word that is no path of a
                // module is rather a level with a slip of the pen.
                None if directive.contains("::") && is_target(directive) => {
                    targets.insert(directive.to_owned(), LevelFilter::TRACE)
                }
                None => own.replace(level(directive)?),
                Some((target, word)) => {
                    let target = target.trim_end();
                    if !is_target(target) {
                        return Err(LogLevelError::BadTarget(target.to_owned()));
                    }
                    targets.insert(target.to_owned(), level(word.trim_start())?)
                }
            };
            if before.is_some() {
                let target = match directive.split_once('=') {
                    Some((target, _)) => format!("`{}`", target.trim_end()),
                    None if directive.contains("::") => format!("`{directive}`"),
                    None => OWN_TARGET.to_owned(),
                };
                return Err(LogLevelError::Twice(target));
            }
        }
        if is_empty {
            return Err(LogLevelError::Missing);
        }
        Ok(LogLevel {
            own: own.unwrap_or(LogLevel::default().own),
            targets,
        })
    }
}

/// Reads the name or the number of a level.
fn level(word: &str) -> Result<LevelFilter, LogLevelError> {
    let lower = match word.parse::<usize>() {
        Ok(digit) if word.len() == 1 && digit < DIGITS.len() => DIGITS[digit].to_owned(),
        _ => word.to_ascii_lowercase(),
    };
    match LEVELS.iter().find(|(name, _)| *name == lower) {
        Some((name, _)) => Ok(name.parse().expect("tracing has levels of these names")),
        None if word.is_empty() => Err(LogLevelError::Missing),
        None => Err(LogLevelError::UnknownLevel(word.to_owned())),
    }
}

/// Returns true if the text can be the target of a message: a module path, or another name that a
/// library uses as its target.
fn is_target(text: &str) -> bool {
    let is_part = |byte: u8| byte.is_ascii_alphanumeric() || b"_:-./".contains(&byte);
    !text.is_empty() && text.bytes().all(is_part)
}

impl fmt::Display for LogLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.own.fmt(f)?;
        let mut targets = self.targets.iter();
        targets.try_for_each(|(target, level)| write!(f, ",{target}={level}"))
    }
}

impl TryFrom<String> for LogLevel {
    type Error = LogLevelError;

    fn try_from(text: String) -> Result<LogLevel, LogLevelError> {
        text.parse()
    }
}

impl From<LogLevel> for String {
    fn from(level: LogLevel) -> String {
        level.to_string()
    }
}

impl LogLevel {
    /// Returns the filter that lets through the messages of this log level.
    pub(crate) fn filter(&self) -> Targets {
        let targets = self.targets.iter();
        // Only messages that somebody wants can be lost, so the loss is always of interest.
        Targets::new()
            .with_target(OWN_TARGET, self.own)
            .with_target(LOSS_TARGET, LevelFilter::WARN.max(self.own))
            .with_targets(targets.map(|(target, level)| (target.as_str(), *level)))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tracing::Level;

    use super::*;

    const PROXY: &str = "smoothserve::proxy::connection";

    fn lets_through(text: &str, target: &str, level: Level) -> bool {
        let log_level: LogLevel = text.parse().unwrap();
        log_level.filter().would_enable(target, &level)
    }

    #[test]
    fn a_level_is_for_smoothserve_alone() {
        for (text, loudest) in [
            ("error", Level::ERROR),
            ("WARN", Level::WARN),
            ("info", Level::INFO),
            (" debug ", Level::DEBUG),
            ("trace", Level::TRACE),
        ] {
            assert!(lets_through(text, PROXY, loudest), "{text}");
            assert!(!lets_through(text, "h2::proto::ping_pong", Level::ERROR));
        }
        assert!(!lets_through("info", PROXY, Level::DEBUG));
        assert!(!lets_through("off", PROXY, Level::ERROR));
    }

    #[test]
    fn the_number_of_lost_messages_is_wanted_at_every_level() {
        for text in ["off,smoothserve::proxy=debug", "error", "info", "trace"] {
            assert!(lets_through(text, LOSS_TARGET, Level::WARN), "{text}");
        }
        assert!(!lets_through("off", "smoothserve::logging", Level::WARN));
    }

    #[test]
    fn a_directive_is_for_all_that_begins_with_its_target() {
        let text = "warn, h2 = debug ,smoothserve::proxy=trace";
        assert!(lets_through(text, "h2::proto::ping_pong", Level::DEBUG));
        assert!(!lets_through(text, "h2::proto::ping_pong", Level::TRACE));
        assert!(lets_through(text, PROXY, Level::TRACE));
        assert!(!lets_through(text, "smoothserve::manager", Level::INFO));
        assert!(!lets_through(text, "mio::poll", Level::ERROR));
        // A directive for a library leaves the level of smoothserve at its default.
        assert!(lets_through("h2=debug", PROXY, Level::INFO));
    }

    #[test]
    fn what_is_wrong_is_said_with_what_to_write_instead() {
        for (text, message) in [
            ("inof", "`inof` is no level; did you mean `info`?"),
            (
                "loud",
                "`loud` is no level; write one of error, warn, info, debug, trace and off, \
                 or TARGET=LEVEL as in `info,h2=debug`",
            ),
            ("lo ud", "`lo ud` is no level; write one of"),
            ("h2=verbose", "`verbose` is no level; did you mean `debug`?"),
            ("warning", "`warning` is no level; did you mean `warn`?"),
            ("ERR", "`ERR` is no level; did you mean `error`?"),
            ("fatal", "`fatal` is no level; did you mean `error`?"),
            ("none", "`none` is no level; did you mean `off`?"),
            ("6", "`6` is no level; the numbers are 0 (off) to 5 (trace)"),
            ("\x1b[2Jx", "`\\x1b[2Jx` is no level"),
            (",", "a level is missing"),
            ("a::b,a::b=info", "`a::b` has two levels"),
            ("a::b=info,a::b", "`a::b` has two levels"),
            (
                "",
                "a level is missing; write one of error, warn, info, debug, trace and off",
            ),
            ("h2=", "a level is missing"),
            ("info,debug", "smoothserve has two levels; keep one"),
            ("h2=info,h2=debug", "`h2` has two levels; keep one"),
            ("[span]=debug", "`[span]` is no target; a directive is"),
            ("=debug", "`` is no target"),
        ] {
            let error = text.parse::<LogLevel>().unwrap_err().to_string();
            assert!(error.starts_with(message), "{text}: {error}");
        }
        let long = "x".repeat(500).parse::<LogLevel>().unwrap_err().to_string();
        let shown = format!("`{}…` is no level; write one of", "x".repeat(60));
        assert!(long.starts_with(&shown) && long.len() < 300, "{long}");
        let error = "x".repeat(LONGEST + 1).parse::<LogLevel>().unwrap_err();
        assert_eq!(error, LogLevelError::TooLong);
    }

    #[test]
    fn what_other_programs_read_from_rust_log_is_understood() {
        for (text, meant) in [
            ("0", "off"),
            ("3", "info"),
            ("h2=5,2", "warn,h2=trace"),
            ("smoothserve::proxy", "info,smoothserve::proxy=trace"),
            ("info,,h2=debug,", "info,h2=debug"),
        ] {
            let level: LogLevel = text.parse().unwrap();
            assert_eq!(level.to_string(), meant, "{text}");
        }
    }

    #[test]
    fn words_of_other_programs_stand_for_levels() {
        let is_level = |word: &str| LEVELS.iter().any(|(name, _)| *name == word);
        for (word, meant) in FOREIGN_WORDS {
            assert!(is_level(meant) && !is_level(word), "{word}");
        }
        assert!(DIGITS.iter().all(|name| is_level(name)));
    }

    #[test]
    fn every_level_has_a_name() {
        for (name, _) in LEVELS {
            assert_eq!(name.parse::<LogLevel>().unwrap().to_string(), name);
        }
    }

    proptest! {
        #[test]
        fn a_log_level_is_read_back_as_it_was(
            own in 0..LEVELS.len(),
            targets in prop::collection::btree_map("[a-z0-9_:]{1,12}", 0..LEVELS.len(), 0..5),
        ) {
            let name = |index: usize| LEVELS[index].0;
            let targets = targets.iter().map(|(target, level)| format!(",{target}={}", name(*level)));
            let text = format!("{}{}", name(own), targets.collect::<String>());
            let level: LogLevel = text.parse().unwrap();
            prop_assert_eq!(level.to_string(), text);
        }

        #[test]
        fn any_text_is_read_or_refused(text in ".*") {
            if let Ok(level) = text.parse::<LogLevel>() {
                prop_assert_eq!(level.to_string().parse(), Ok(level));
            }
        }
    }
}
