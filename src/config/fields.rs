//! The keys of one file: each known, taken once and turned into what it means.

use std::collections::BTreeMap;

use super::elsewhere::Elsewhere;
use super::fault::{Fault, Position, shorten};
use super::keys::KeySet;
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
    keys: &'static KeySet,
    values: BTreeMap<&'static str, Field>,
}

/// A key of a mapping with its value.
struct Field {
    /// Where the key stands.
    at: Position,
    /// The value. `None`: another key stands there that was probably meant for this one, which was
    /// reported. To read its value would be guessing.
    node: Option<Node>,
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
    /// Takes the keys of a mapping, and reports those that are unknown or occur twice. If a wrong
    /// key was probably meant for another one, that one counts as there: it is one fault, not two.
    /// `None`: `root` is no mapping, which is reported too.
    pub(super) fn new(
        root: Node,
        keys: &'static KeySet,
        report: &mut Report<'_>,
    ) -> Option<Fields> {
        let Value::Map(entries) = root.value else {
            report.at(root.at, no_mapping(&root.value));
            return None;
        };
        let mut fields = Fields {
            at: root.at,
            keys,
            values: BTreeMap::new(),
        };
        let mut unknown = Vec::new();
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
            match keys.known.iter().find(|known| *known == text) {
                None => unknown.push((key.at, text.clone())),
                Some(known) => match fields.values.get(known) {
                    Some(first) => report.at(
                        key.at,
                        format!(
                            "`{known}` stands in line {} already; keep one",
                            first.at.line
                        ),
                    ),
                    None => {
                        let node = Some(value);
                        fields.values.insert(known, Field { at: key.at, node });
                    }
                },
            }
        }
        for (at, text) in unknown {
            // To look for what was meant costs more than the rest.
            if report.is_full() {
                break;
            }
            let unknown = UnknownKey::find(&text, keys);
            report.at(at, unknown.message(&text, keys));
            for known in unknown.means() {
                let field = Field { at, node: None };
                fields.values.entry(known).or_insert(field);
            }
        }
        Some(fields)
    }

    /// Returns the position of a key with a value, if the mapping has it or one that was meant for
    /// it.
    pub(super) fn key(&self, key: &str) -> Option<Position> {
        let field = self.values.get(key)?;
        let is_null = field.node.as_ref().is_some_and(Node::is_null);
        (!is_null).then_some(field.at)
    }

    /// Reads the value of a key. `None`: the key is left out, has no value or a wrong one.
    pub(super) fn get<T>(
        &self,
        key: &'static str,
        report: &mut Report<'_>,
        meaning: Meaning<T>,
    ) -> Option<At<T>> {
        debug_assert!(self.keys.known.contains(&key), "{key} is not in the list");
        let field = self.values.get(key)?;
        let node = field.node.as_ref().filter(|node| !node.is_null())?;
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
            Some(field) if field.node.as_ref().is_some_and(Node::is_null) => {
                report.at(field.at, format!("`{key}` has no value; give it one"));
            }
            Some(_) => {}
        }
        self.get(key, report, meaning)
    }
}

/// Words the fault of a file that is no mapping.
fn no_mapping(value: &Value) -> String {
    let needed = "the file has to consist of lines `key: value`";
    let assigned = match value {
        Value::Scalar { text, .. } => text.split_once('='),
        _ => None,
    };
    let word = |text: &str| text.split_whitespace().next().map(shorten);
    match assigned.map(|(key, value)| (word(key), word(value))) {
        Some((Some(key), Some(value))) => format!("{needed}: write `{key}: {value}`"),
        _ => needed.to_owned(),
    }
}

/// What is known about a key that is none of the known ones.
enum UnknownKey {
    /// The key of YAML that merges mappings.
    Merge,
    /// This key was probably meant.
    Misspelled(&'static str),
    /// The key is one of another program.
    Elsewhere(&'static Elsewhere),
    /// The key belongs elsewhere in the configuration.
    Misplaced,
    /// Nothing is known about it.
    Unknown,
}

impl UnknownKey {
    fn find(key: &str, keys: &KeySet) -> UnknownKey {
        if key == "<<" {
            return UnknownKey::Merge;
        }
        let find = |is_it: &dyn Fn(&str) -> bool| {
            let mut entries = keys.elsewhere.iter();
            entries.find(|entry| entry.keys.iter().any(|known| is_it(known)))
        };
        // `autorestart` is a word of others, and `auto-restart` is one of ours.
        if let Some(entry) = find(&|known| known == key) {
            return UnknownKey::Elsewhere(entry);
        }
        let is_same = |known: &str| plain(known) == plain(key);
        if let Some(known) = keys.known.iter().find(|known| is_same(known)) {
            return UnknownKey::Misspelled(known);
        }
        if let Some(entry) = find(&is_same) {
            return UnknownKey::Elsewhere(entry);
        }
        if keys.misplaced.0.contains(&key) {
            return UnknownKey::Misplaced;
        }
        match nearest(key, keys.known) {
            Some(known) => UnknownKey::Misspelled(known),
            None => UnknownKey::Unknown,
        }
    }

    /// Returns the keys that were probably meant.
    fn means(&self) -> &[&'static str] {
        match self {
            UnknownKey::Misspelled(known) => std::slice::from_ref(known),
            UnknownKey::Elsewhere(entry) => entry.means,
            UnknownKey::Merge | UnknownKey::Misplaced | UnknownKey::Unknown => &[],
        }
    }

    fn message(&self, key: &str, keys: &KeySet) -> String {
        let shown = shorten(key);
        match self {
            UnknownKey::Merge => {
                "merge keys (`<<`) are not followed here; write the keys themselves".to_owned()
            }
            UnknownKey::Misspelled(near) => {
                format!("unknown key `{shown}`; did you mean `{near}`?")
            }
            UnknownKey::Elsewhere(entry) => format!("unknown key `{shown}`; {}", entry.advice),
            UnknownKey::Misplaced => {
                format!("`{shown}` is a key of {}", keys.misplaced.1)
            }
            UnknownKey::Unknown => {
                let known = keys.known.join(", ");
                format!("unknown key `{shown}`; the keys are {known}")
            }
        }
    }
}

/// Returns a key without the differences between ways to write it: `ExecStart`, `exec-start` and
/// `exec_start` are the same.
fn plain(key: &str) -> String {
    // No key is that long.
    let letters = key.chars().filter(|c| !matches!(c, '_' | '-')).take(65);
    letters.flat_map(char::to_lowercase).collect()
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
    use std::path::Path;

    use super::super::keys;
    use super::super::raw;
    use super::*;

    /// Takes the keys of a text, and returns their faults with them.
    fn read(text: &str, keys: &'static KeySet) -> (Fields, Vec<Fault>) {
        let source = Source::decode(Path::new("x.yaml"), text.as_bytes().to_vec()).unwrap();
        let root = raw::parse(&source).unwrap().unwrap();
        let mut report = Report::new(&source);
        let fields = Fields::new(root, keys, &mut report).unwrap();
        (fields, report.faults)
    }

    #[test]
    fn a_key_of_another_program_is_one_fault_that_says_what_to_write() {
        for keys in [keys::SERVICE_SET, keys::TLS_SET, keys::GLOBAL_SET] {
            for entry in keys.elsewhere {
                for key in entry.keys {
                    let (fields, faults) = read(&format!("{key}: x"), keys);
                    let messages: Vec<&str> = faults.iter().map(|fault| &*fault.message).collect();
                    assert_eq!(messages, [format!("unknown key `{key}`; {}", entry.advice)]);
                    for known in entry.means {
                        assert!(
                            fields.key(known).is_some(),
                            "{known} is missing beside {key}"
                        );
                    }
                }
            }
        }
        let (_, faults) = read("ExecStart: x\nENV-FILE: x", keys::SERVICE_SET);
        let fault = |number: usize| &*faults[number].message;
        assert!(fault(0).contains("as `executable_path`"), "{}", fault(0));
        assert!(fault(1).contains("`environment_file: "), "{}", fault(1));
    }

    #[test]
    fn a_key_at_the_wrong_place_is_told_where_it_belongs() {
        for (text, keys, message) in [
            (
                "trusted_proxies: x",
                keys::SERVICE_SET,
                "`trusted_proxies` is a key of all services; move it to smoothserve.yaml",
            ),
            (
                "instance_count: x",
                keys::GLOBAL_SET,
                "`instance_count` is a key of a service; move it to the file of the service",
            ),
            (
                "hsts: x",
                keys::TLS_SET,
                "`hsts` is a key of the service; move it out of `tls`",
            ),
        ] {
            assert_eq!(read(text, keys).1[0].message, message);
        }
    }

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
