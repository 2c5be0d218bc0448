//! The keys of one file, each taken once and turned into what it means.

use std::collections::BTreeMap;

use super::fault::{Fault, Position};
use super::raw::{Node, Value};
use super::source::Source;

/// A file with more faults than this is no configuration; it is not worth the time to list them.
const MAX_FAULTS: usize = 100;

/// Collects the faults of one file.
pub(super) struct Report<'s> {
    pub(super) source: &'s Source,
    pub(super) faults: Vec<Fault>,
}

impl<'s> Report<'s> {
    pub(super) fn new(source: &'s Source) -> Report<'s> {
        Report {
            source,
            faults: Vec::new(),
        }
    }

    /// Something is wrong there.
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

    /// Something is wrong with a part of the value that begins there.
    pub(super) fn at_part(&mut self, value: Position, part: &str, message: impl Into<String>) {
        // Looking for the part costs more than the rest.
        if !self.is_full() {
            let at = self.source.find(value, part);
            self.at(at, message);
        }
    }

    /// True: nothing more is reported.
    fn is_full(&self) -> bool {
        self.faults.len() >= MAX_FAULTS
    }

    /// Something is wrong with the file as a whole.
    pub(super) fn whole(&mut self, message: impl Into<String>) {
        let fault = self.source.whole(message.into());
        self.faults.push(fault);
    }
}

/// Turns the value of a key into what it means, or reports why it cannot.
pub(super) type Meaning<T> = fn(&Node, &str, &mut Report<'_>) -> Option<T>;

/// The keys of a mapping.
pub(super) struct Fields {
    /// Where the mapping begins.
    at: Position,
    known: &'static [&'static str],
    values: BTreeMap<&'static str, (Position, Node)>,
}

/// A value, and where it stands.
#[derive(Debug)]
pub(super) struct At<T> {
    pub(super) at: Position,
    pub(super) value: T,
}

impl Fields {
    /// Reports keys that are unknown or stand there twice. `None`: it is no mapping, which is reported too.
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

    /// Where a key stands, if it is there.
    pub(super) fn key(&self, key: &str) -> Option<Position> {
        self.values.get(key).map(|(at, _)| *at)
    }

    /// What a key means; `None` if it is not there, has no value or a wrong one.
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

    /// The same for a key that has to be there.
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

/// A value as messages quote it.
pub(super) fn shorten(text: &str) -> String {
    let mut shown: String = text.escape_debug().take(60).collect();
    if shown.len() < text.len() && shown.chars().count() == 60 {
        shown.push('…');
    }
    shown
}

/// What was probably meant: the most similar word, or one that begins like it.
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
