//! The environment of an instance.

use std::collections::BTreeMap;
use std::path::Path;

use super::identity::UserIdentity;
use crate::launch::{DEFAULT_PATH, inherited_environment};

/// Returns the environment that an instance starts from: the manager's own environment if the
/// instance runs as the same user, otherwise only what a login of the instance's user would set.
pub fn base(identity: &UserIdentity) -> BTreeMap<String, String> {
    if identity.credentials.is_none() {
        return inherited_environment();
    }
    let text = |path: &Path| path.to_string_lossy().into_owned();
    let mut base = BTreeMap::from([
        ("PATH".to_owned(), DEFAULT_PATH.to_owned()),
        ("HOME".to_owned(), text(&identity.home)),
        ("SHELL".to_owned(), text(&identity.shell)),
        ("USER".to_owned(), identity.name.clone()),
        ("LOGNAME".to_owned(), identity.name.clone()),
    ]);
    let locale = inherited_environment()
        .into_iter()
        .filter(|(key, _)| matches!(key.as_str(), "LANG" | "TZ"));
    base.extend(locale);
    base
}

/// The values of the placeholders in `args`, such as `{port}`.
#[derive(Debug, Clone, Default)]
pub struct Placeholders {
    /// The value of `{port}`.
    pub port: Option<u16>,
    /// The value of `{instance}`.
    pub instance: u32,
    /// The value of `{name}`.
    pub name: String,
    /// The value of `{socket}`.
    pub socket: Option<String>,
}

impl Placeholders {
    /// Replaces the placeholders in an argument. An unknown placeholder stays as it is; the
    /// configuration has already refused it.
    pub fn fill(&self, argument: &str) -> String {
        let mut filled = argument
            .replace("{instance}", &self.instance.to_string())
            .replace("{name}", &self.name);
        if let Some(port) = self.port {
            filled = filled.replace("{port}", &port.to_string());
        }
        if let Some(socket) = &self.socket {
            filled = filled.replace("{socket}", socket);
        }
        filled
    }
}

/// Parses an environment file as systemd does: `KEY=value`, a value in single or double quotes, a
/// backslash before a literal character or at the end of a line that continues, comments with `#`
/// or `;`. Other lines are ignored.
pub fn parse_file(text: &str) -> BTreeMap<String, String> {
    let mut environment = BTreeMap::new();
    let mut rest = text.chars().peekable();
    while let Some(&first) = rest.peek() {
        if first.is_whitespace() {
            rest.next();
            continue;
        }
        if matches!(first, '#' | ';') {
            rest.by_ref().find(|&character| character == '\n');
            continue;
        }
        let mut key = String::new();
        let mut found = false;
        for character in rest.by_ref() {
            match character {
                '=' => {
                    found = true;
                    break;
                }
                '\n' => break,
                _ => key.push(character),
            }
        }
        if !found {
            continue;
        }
        let value = value(&mut rest);
        let key = key.trim();
        let name = key.strip_prefix("export ").unwrap_or(key).trim();
        if is_name(name) {
            environment.insert(name.to_owned(), value);
        }
    }
    environment
}

fn value(rest: &mut std::iter::Peekable<std::str::Chars<'_>>) -> String {
    let mut value = String::new();
    // Unquoted space at the end of a value is cut off: `kept` is the length without it.
    let mut kept = 0;
    let mut quote = None;
    while rest
        .next_if(|&character| character == ' ' || character == '\t')
        .is_some()
    {}
    while let Some(character) = rest.next() {
        match (quote, character) {
            (None, '\n') => break,
            (None, '\'' | '"') => {
                quote = Some(character);
                kept = value.len();
            }
            (Some(open), _) if character == open => {
                quote = None;
                kept = value.len();
            }
            (None | Some('"'), '\\') => {
                match rest.next() {
                    Some('\n') | None => {}
                    Some(protected) => value.push(protected),
                }
                kept = value.len();
            }
            _ => {
                value.push(character);
                if quote.is_some() || !character.is_whitespace() {
                    kept = value.len();
                }
            }
        }
    }
    value.truncate(kept);
    value
}

fn is_name(name: &str) -> bool {
    let first = name.chars().next();
    first.is_some_and(|first| first.is_ascii_alphabetic() || first == '_')
        && name
            .chars()
            .all(|character| character.is_ascii_alphanumeric() || character == '_')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pairs(text: &str) -> Vec<(String, String)> {
        parse_file(text).into_iter().collect()
    }

    fn pair(key: &str, value: &str) -> (String, String) {
        (key.to_owned(), value.to_owned())
    }

    #[test]
    fn lines_are_read_as_systemd_reads_them() {
        let text = "# a comment\n; another\n\nA=1\n  B = two words  \nC='single # \\n'\nD=\"double \\\" \\\\\"\nE=a\\\nb\n\
                    export F=x=y\nnothing\n1G=no\nH=\nI='  kept  '\r\n";
        let expected = [
            pair("A", "1"),
            pair("B", "two words"),
            pair("C", "single # \\n"),
            pair("D", "double \" \\"),
            pair("E", "ab"),
            pair("F", "x=y"),
            pair("H", ""),
            pair("I", "  kept  "),
        ];
        assert_eq!(pairs(text), expected);
    }

    #[test]
    fn places_are_filled_in() {
        let places = Placeholders {
            port: Some(9001),
            instance: 2,
            name: "shop".into(),
            socket: None,
        };
        assert_eq!(
            places.fill("-addr=:{port}/{name}-{instance}"),
            "-addr=:9001/shop-2"
        );
    }

    proptest! {
        #[test]
        fn any_text_is_read(text in ".*") {
            parse_file(&text);
        }

        #[test]
        fn a_quoted_value_comes_back_as_it_was(value in "[^\"\\\\]*") {
            let text = format!("KEY=\"{value}\"\n");
            prop_assert_eq!(pairs(&text), [pair("KEY", &value)]);
        }
    }
}
