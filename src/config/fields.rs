//! The keys of one file: each known, taken once and turned into what it means.

use std::collections::BTreeMap;

use super::fault::{Fault, Position};
use super::raw::{Node, Value};
use super::source::Source;

/// The most faults of one file that are listed: a file with more is no configuration.
const MAX_FAULTS: usize = 100;

/// Collects the faults of one file.
pub(super) struct Report<'s> {
    /// The text of the file.
    pub(super) source: &'s Source,
    /// The faults that were found so far.
    pub(super) faults: Vec<Fault>,
}

impl<'s> Report<'s> {
    /// Begins without any fault.
    pub(super) fn new(source: &'s Source) -> Report<'s> {
        Report {
            source,
            faults: Vec::new(),
        }
    }

    /// Adds a fault at a position.
    pub(super) fn at(&mut self, at: Position, message: impl Into<String>) {
        if self.is_full() {
            return;
        }
        let last = self.faults.len() + 1 == MAX_FAULTS;
        let message = if last {
            "there are more faults from here on; mend the ones above first".to_owned()
        } else {
            message.into()
        };
        self.faults.push(self.source.fault(at, message));
    }

    /// Adds a fault at the place of `part` in the value that begins at `value`.
    pub(super) fn at_part(&mut self, value: Position, part: &str, message: impl Into<String>) {
        // Looking for the part costs more than the rest.
        if !self.is_full() {
            let at = self.source.find(value, part);
            self.at(at, message);
        }
    }

    /// Returns true if there are so many faults that no more are added.
    fn is_full(&self) -> bool {
        self.faults.len() >= MAX_FAULTS
    }

    /// Adds a fault of the file as a whole.
    pub(super) fn whole(&mut self, message: impl Into<String>) {
        let fault = self.source.whole(message.into());
        self.faults.push(fault);
    }
}

/// A function that turns the value of a key into what it means, or reports why it cannot.
pub(super) type Meaning<T> = fn(&Node, &str, &mut Report<'_>) -> Option<T>;

/// The keys of a mapping, with their values.
pub(super) struct Fields {
    /// Where the mapping begins.
    at: Position,
    /// Every key that the mapping may have.
    known: &'static [&'static str],
    values: BTreeMap<&'static str, (Position, Node)>,
}

/// A value with its position in the file.
#[derive(Debug)]
pub(super) struct At<T> {
    /// Where the value stands.
    pub(super) at: Position,
    /// The value.
    pub(super) value: T,
}

impl Fields {
    /// Takes the keys of a mapping, and reports those that are unknown or occur twice. `None`:
    /// `root` is no mapping, which is reported too.
    pub(super) fn new(
        root: Node,
        known: &'static [&'static str],
        report: &mut Report<'_>,
    ) -> Option<Fields> {
        let Value::Map(entries) = root.value else {
            report.at(root.at, "the file has to consist of lines `key: value`");
            return None;
        };
        let mut fields = Fields {
            at: root.at,
            known,
            values: BTreeMap::new(),
        };
        for (key, value) in entries {
            if report.is_full() {
                break;
            }
            let Value::Scalar { text, .. } = &key.value else {
                report.at(
                    key.at,
                    format!("a key is {}; it has to be a word", key.kind()),
                );
                continue;
            };
            match known.iter().find(|known| *known == text) {
                None => report.at(key.at, unknown_key(text, known)),
                Some(known) => match fields.values.get(known) {
                    Some((first, _)) => report.at(
                        key.at,
                        format!("`{known}` stands in line {} already; keep one", first.line),
                    ),
                    None => {
                        fields.values.insert(known, (key.at, value));
                    }
                },
            }
        }
        Some(fields)
    }

    /// Returns the position of a key, if the mapping has it.
    pub(super) fn key(&self, key: &str) -> Option<Position> {
        self.values.get(key).map(|(at, _)| *at)
    }

    /// Reads the value of a key. `None`: the key is left out, has no value or a wrong one.
    pub(super) fn get<T>(
        &self,
        key: &'static str,
        report: &mut Report<'_>,
        meaning: Meaning<T>,
    ) -> Option<At<T>> {
        debug_assert!(self.known.contains(&key), "{key} is not in the list");
        let (_, node) = self.values.get(key)?;
        if node.is_null() {
            return None;
        }
        let value = meaning(node, key, report)?;
        Some(At { at: node.at, value })
    }

    /// Reads a value as [`Fields::get`] does, and reports a key that is left out or has no value.
    pub(super) fn need<T>(
        &self,
        key: &'static str,
        report: &mut Report<'_>,
        meaning: Meaning<T>,
    ) -> Option<At<T>> {
        match self.values.get(key) {
            None => report.at(self.at, format!("`{key}` is missing; add it")),
            Some((at, node)) if node.is_null() => {
                report.at(*at, format!("`{key}` has no value; give it one"));
            }
            Some(_) => {}
        }
        self.get(key, report, meaning)
    }
}

fn unknown_key(key: &str, known: &[&str]) -> String {
    if key == "<<" {
        return "merge keys (`<<`) are not followed here; write the keys themselves".to_owned();
    }
    let shown = shorten(key);
    match nearest(key, known) {
        Some(near) => format!("unknown key `{shown}`; did you mean `{near}`?"),
        None => format!("unknown key `{shown}`; the keys are {}", known.join(", ")),
    }
}

/// Escapes and shortens a value, so that a message can quote it.
pub(super) fn shorten(text: &str) -> String {
    let mut shown: String = text.escape_debug().take(60).collect();
    if shown.len() < text.len() && shown.chars().count() == 60 {
        shown.push('…');
    }
    shown
}

/// Finds the known word that was probably meant: the most similar one, or one that begins like
/// `word`.
pub(super) fn nearest<'k>(word: &str, known: &[&'k str]) -> Option<&'k str> {
    // The distance costs the product of both lengths, and no word is that long.
    if word.is_empty() || word.len() > 64 {
        return None;
    }
    let word = word.to_lowercase().replace('-', "_");
    let distance = |known: &str| strsim::damerau_levenshtein(&known.to_lowercase(), &word);
    let near = known
        .iter()
        .map(|known| (distance(known), *known))
        .min()
        .filter(|(distance, known)| *distance <= known.len().max(word.len()).div_ceil(3));
    let begins = || {
        known
            .iter()
            .find(|known| word.len() >= 3 && known.to_lowercase().starts_with(&word))
    };
    near.map(|(_, known)| known).or_else(|| begins().copied())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suggests_what_was_meant_and_nothing_else() {
        let known = ["instance_count", "environment", "port", "server_name"];
        for (word, near) in [
            ("instance_cout", Some("instance_count")),
            ("instance-count", Some("instance_count")),
            ("Port", Some("port")),
            ("servername", Some("server_name")),
            ("env", Some("environment")),
            ("color", None),
            ("", None),
        ] {
            assert_eq!(nearest(word, &known), near, "{word}");
        }
    }
}
