//! The members of D-Bus interfaces by `docs/dbus.md` and by introspection, written in the same
//! words so that tests can compare them.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// The members of an interface, such as `method Cancel()` and `property State s signal`.
pub type Members = BTreeSet<String>;

/// Reads `docs/dbus.md`.
pub fn text() -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/dbus.md")).unwrap()
}

/// Returns the part of a text below a heading, up to the next heading of the same level.
pub fn section<'a>(text: &'a str, heading: &str) -> &'a str {
    let (level, _) = heading.split_once(' ').unwrap();
    let (_, rest) = text
        .split_once(&format!("\n{heading}\n"))
        .unwrap_or_else(|| panic!("{heading} is missing"));
    rest.split(&format!("\n{level} ")).next().unwrap()
}

/// Returns the rows of the table in a text, without its header.
pub fn rows(text: &str) -> Vec<Vec<&str>> {
    let lines = text.lines().filter_map(|line| line.strip_prefix('|'));
    lines
        .skip(2)
        .map(|line| {
            let line = line.strip_suffix('|').unwrap();
            line.split('|').map(str::trim).collect()
        })
        .collect()
}

/// Removes the backquotes from a table cell.
pub fn plain(cell: &str) -> String {
    cell.replace('`', "")
}

/// Returns the members of an interface that the document describes.
pub fn documented(interface: &str) -> Members {
    let text = text();
    let interface = section(&text, &format!("## Interface `{interface}`"));
    let mut members = Members::new();
    let mut add = |member: String| {
        assert!(!members.contains(&member), "{member} is described twice");
        members.insert(member);
    };
    for row in rows(section(interface, "### Methods")) {
        let (name, arguments, result) = (plain(row[0]), plain(row[1]), plain(row[2]));
        add(format!("method {name}({arguments}) -> ({result})"));
    }
    for row in rows(section(interface, "### Properties")) {
        add(format!(
            "property {} {} {}",
            plain(row[0]),
            plain(row[1]),
            row[2]
        ));
    }
    if interface.contains("\n### Signals\n") {
        for row in rows(section(interface, "### Signals")) {
            add(format!("signal {}({})", plain(row[0]), plain(row[1])));
        }
    }
    members
}

/// Returns the members of an interface that its introspection data describes.
pub fn introspected(description: &str, interface: &str) -> Members {
    let start = format!("<interface name=\"{interface}\">");
    let (_, rest) = description
        .split_once(&start)
        .expect("introspection describes the interface");
    let (inside, _) = rest.split_once("</interface>").unwrap();
    let mut members = Members::new();
    let mut member = Member::default();
    for tag in inside.split('<').skip(1) {
        let (tag, _) = tag.split_once('>').expect("every tag is closed");
        let is_whole = tag.ends_with('/');
        let attribute = |name: &str| {
            let value = tag.split_once(&format!(" {name}=\""))?.1;
            value.split('"').next().map(str::to_owned)
        };
        match tag.split([' ', '/']).find(|word| !word.is_empty()).unwrap() {
            "arg" => {
                let argument = format!(
                    "{} {}",
                    attribute("type").unwrap(),
                    attribute("name").unwrap()
                );
                match attribute("direction").as_deref() {
                    Some("out") if member.kind == "method" => member.results.push(argument),
                    _ => member.arguments.push(argument),
                }
            }
            "annotation" => {
                let name = "org.freedesktop.DBus.Property.EmitsChangedSignal";
                assert_eq!(attribute("name").as_deref(), Some(name));
                member.emits = attribute("value");
            }
            _ if tag.starts_with('/') => {
                members.insert(std::mem::take(&mut member).words());
            }
            kind => {
                member = Member {
                    kind: kind.to_owned(),
                    name: attribute("name").unwrap(),
                    signature: attribute("type").unwrap_or_default(),
                    ..Member::default()
                };
                if kind == "property" {
                    assert_eq!(attribute("access").as_deref(), Some("read"));
                }
                if is_whole {
                    members.insert(std::mem::take(&mut member).words());
                }
            }
        }
    }
    members
}

#[derive(Default)]
struct Member {
    kind: String,
    name: String,
    signature: String,
    arguments: Vec<String>,
    results: Vec<String>,
    emits: Option<String>,
}

impl Member {
    fn words(self) -> String {
        let (name, arguments) = (self.name, self.arguments.join(", "));
        match self.kind.as_str() {
            "method" => format!(
                "method {name}({arguments}) -> ({})",
                self.results.join(", ")
            ),
            "signal" => format!("signal {name}({arguments})"),
            "property" => {
                let changes = match self.emits.as_deref() {
                    None | Some("true") => "signal",
                    Some("const") => "const",
                    Some("false") => "none",
                    Some(other) => panic!("{name} emits {other}, for which there is no word"),
                };
                format!("property {name} {} {changes}", self.signature)
            }
            kind => panic!("there is no word for {kind}"),
        }
    }
}
