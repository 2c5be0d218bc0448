//! The messages in smoothserve's source agree with `docs/logging.md` and with the message catalog.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use smoothserve_kit::{Home, Smoothserve, free_port, programs};

fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

fn read(name: &str) -> String {
    fs::read_to_string(path(name)).unwrap()
}

/// A call of a log macro in the source.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Message {
    level: String,
    text: String,
    /// The constant that the message has as its `message_id`.
    event: Option<String>,
    /// The fields of the message, by the names that they have in the journal.
    fields: BTreeSet<String>,
}

impl Message {
    fn read(level: &str, arguments: &str) -> Message {
        let mut arguments = split(arguments);
        let text = arguments.pop().expect("every message has a text");
        let text = text
            .strip_prefix('"')
            .and_then(|text| text.strip_suffix('"'));
        let mut message = Message {
            level: level.to_owned(),
            text: text
                .expect("the text of every message is constant")
                .to_owned(),
            event: None,
            fields: BTreeSet::new(),
        };
        for argument in arguments {
            let (name, value) = argument.split_once('=').unwrap_or((&argument, ""));
            let name = name.trim().trim_start_matches(['%', '?']);
            if name == "message_id" {
                let constant = value.trim().strip_prefix("events::");
                message.event = Some(constant.expect("one of the events").to_owned());
            } else {
                message.fields.insert(name.to_uppercase());
            }
        }
        message
    }
}

/// Splits the arguments of a macro at their commas.
fn split(arguments: &str) -> Vec<String> {
    let mut found = vec![String::new()];
    let (mut depth, mut is_text, mut is_escaped) = (0, false, false);
    for character in arguments.chars() {
        match character {
            _ if is_escaped => {}
            '"' => is_text = !is_text,
            _ if is_text => {}
            '(' | '[' | '{' => depth += 1,
            ')' | ']' | '}' if depth == 0 => break,
            ')' | ']' | '}' => depth -= 1,
            ',' if depth == 0 => {
                found.push(String::new());
                continue;
            }
            _ => {}
        }
        is_escaped = is_text && character == '\\' && !is_escaped;
        found.last_mut().unwrap().push(character);
    }
    let trimmed = found.iter().map(|argument| argument.trim().to_owned());
    trimmed.filter(|argument| !argument.is_empty()).collect()
}

fn sources(folder: &Path, found: &mut Vec<String>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(fs::read_to_string(path).unwrap());
        }
    }
}

/// Returns all messages in the source, at whatever level they are logged.
fn messages() -> BTreeSet<Message> {
    let mut files = Vec::new();
    sources(&path("src"), &mut files);
    let mut found = BTreeSet::new();
    for file in files {
        let file = file.split("#[cfg(test)]\nmod tests {").next().unwrap();
        for call in file.split("tracing::").skip(1) {
            if let Some((level, arguments)) = call.split_once("!(")
                && ["error", "warn", "info", "debug", "trace"].contains(&level)
            {
                found.insert(Message::read(level, arguments));
            }
        }
    }
    assert!(
        found.len() > 30,
        "expected more messages in the source: {found:#?}"
    );
    found
}

/// Returns the constants of `src/events.rs`: id by name.
fn events() -> BTreeMap<String, String> {
    let source = read("src/events.rs");
    let lines = source.lines().filter_map(|line| {
        let (name, id) = line.strip_prefix("pub const ")?.split_once(": &str = \"")?;
        Some((name.to_owned(), id.strip_suffix("\";")?.to_owned()))
    });
    lines.collect()
}

/// Returns the entries of the catalog: text by id.
fn catalog() -> BTreeMap<String, String> {
    let text = read("systemd/smoothserve.catalog");
    let entries = text.split("\n-- ").skip(1);
    let mut found = BTreeMap::new();
    for entry in entries {
        let (id, text) = entry.split_once('\n').unwrap();
        let before = found.insert(id.to_owned(), text.to_owned());
        assert_eq!(before, None, "{id} is explained twice");
    }
    found
}

/// Returns the rows of a table in the reference, without its header and the backquotes.
fn table(heading: &str) -> Vec<Vec<String>> {
    let text = read("docs/logging.md");
    let (_, chapter) = text.split_once(&format!("\n## {heading}\n")).unwrap();
    let chapter = chapter.split("\n## ").next().unwrap();
    let lines = chapter.lines().filter_map(|line| line.strip_prefix('|'));
    let cells = |line: &str| {
        let cells = line.trim_end_matches('|').split('|');
        cells.map(|cell| cell.trim().replace('`', "")).collect()
    };
    lines.skip(2).map(cells).collect()
}

#[test]
fn every_event_is_logged_and_has_an_entry_in_the_catalog() {
    let events = events();
    let ids: BTreeSet<&String> = events.values().collect();
    assert_eq!(ids.len(), events.len(), "an id is there twice");
    assert_eq!(catalog().keys().collect::<BTreeSet<_>>(), ids);
    let messages = messages();
    let logged: BTreeSet<&String> = messages.iter().filter_map(|m| m.event.as_ref()).collect();
    assert_eq!(logged, events.keys().collect());
}

#[test]
fn the_catalog_names_fields_that_its_events_have() {
    let (events, catalog, messages) = (events(), catalog(), messages());
    for message in &messages {
        let Some(event) = &message.event else {
            continue;
        };
        let text = &catalog[&events[event]];
        let (head, body) = text.split_once("\n\n").unwrap();
        for line in ["Subject: ", "Defined-By: smoothserve", "Documentation: "] {
            assert!(head.contains(line), "{event}: {line}");
        }
        // Every second part stands between two `@`: it is the name of a field.
        for field in text.split('@').skip(1).step_by(2) {
            assert!(message.fields.contains(field), "{event} has no {field}");
        }
        assert!(text.lines().all(|line| line.len() <= 82), "{event}");
        let is_error = message.fields.contains("ERROR");
        assert_eq!(body.contains("@ERROR@"), is_error, "{event} says why");
    }
}

#[test]
fn journalctl_reads_the_catalog() {
    let root = tempfile::tempdir().unwrap();
    let folder = root.path().join("usr/lib/systemd/catalog");
    fs::create_dir_all(&folder).unwrap();
    fs::create_dir_all(root.path().join("var/lib/systemd/catalog")).unwrap();
    let name = "smoothserve.catalog";
    fs::copy(path("systemd").join(name), folder.join(name)).unwrap();
    let journalctl = |verb: &str| {
        let mut command = Command::new("journalctl");
        command.arg("--root").arg(root.path()).arg(verb);
        let output = command.output().unwrap();
        let words = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success() && words.is_empty(), "{words}");
        String::from_utf8(output.stdout).unwrap()
    };
    journalctl("--update-catalog");
    let list = journalctl("--list-catalog");
    let entries = list
        .lines()
        .map(|line| line.split_once(" smoothserve: ").unwrap());
    let subjects: BTreeMap<&str, &str> = entries.collect();
    let catalog = catalog();
    assert_eq!(subjects.len(), catalog.len(), "{list}");
    for (id, text) in &catalog {
        let subject = text.lines().find_map(|line| line.strip_prefix("Subject: "));
        assert_eq!(subjects.get(&**id).copied(), subject);
    }
}

#[test]
fn the_reference_describes_every_event_with_its_level_and_text() {
    let events = events();
    let described = table("Events").into_iter().collect::<BTreeSet<_>>();
    let logged = messages().into_iter().filter_map(|message| {
        let priority = match message.level.as_str() {
            "error" => "3",
            "warn" => "4",
            _ => "5",
        };
        let fields: Vec<String> = message.fields.into_iter().collect();
        let id = events[&message.event?].clone();
        Some(vec![message.text, id, priority.into(), fields.join(" ")])
    });
    assert_eq!(described, logged.collect());
}

#[test]
fn the_reference_describes_every_field_once() {
    let rows = table("Fields").into_iter().map(|mut row| row.remove(0));
    let mut described = BTreeSet::new();
    for field in rows {
        assert!(
            described.insert(field.clone()),
            "{field} is described twice"
        );
    }
    let logged = messages().into_iter().flat_map(|message| message.fields);
    assert_eq!(described, logged.collect());
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_on_stderr_have_no_ids() {
    let home = Home::new();
    home.add_shop("shop", free_port(), "bind: unix\n");
    let server = Smoothserve::start(programs!(), home).await;
    server.running("shop").await;
    let log = fs::read_to_string(server.home.log()).unwrap();
    assert!(
        log.contains(r#" INFO rollout started service="shop" "#),
        "{log}"
    );
    assert!(!log.contains("message_id"), "{log}");
    server.stop().await;
}
