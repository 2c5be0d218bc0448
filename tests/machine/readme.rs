//! The life of an installation as README.md tells it: each command is run, and must print what the
//! README shows.

use std::fmt::Write;

use smoothserve_kit::{Build, example, machine};

use crate::package;

const README: &str = include_str!("../../README.md");

/// The character that stands for omitted output.
const ANYTHING: char = '…';

/// A step of README.md.
enum Step {
    /// A file, whose first line names its path.
    File { path: String, text: String },
    /// A command of root or of a user, and the output that the README shows.
    Command {
        of_root: bool,
        line: String,
        shows: String,
    },
}

fn steps() -> Vec<Step> {
    let mut steps = Vec::new();
    // The parts of the text at odd positions are the contents of the fences.
    for block in README.split("\n```").skip(1).step_by(2) {
        let (kind, text) = block.split_once('\n').expect("a fence ends its line");
        match kind {
            "yaml" | "python" | "js" => {
                let first = text.lines().next().unwrap_or_default();
                let path = first.strip_prefix("# ").or(first.strip_prefix("// "));
                steps.push(Step::File {
                    path: path.expect("the first line says where it is").to_owned(),
                    text: text.to_owned(),
                });
            }
            "console" => commands(text, &mut steps),
            kind => panic!("a block of {kind:?} is not tried"),
        }
    }
    steps
}

/// Returns the file names of the two packages that the page installs.
fn packages() -> [&'static str; 2] {
    let lines = README.lines();
    let names: Vec<&str> = lines
        .filter_map(|line| line.strip_prefix("# apt install ./"))
        .collect();
    let [first, second] = names[..] else {
        panic!("README.md installs a package and upgrades it: {names:?}");
    };
    [first, second]
}

fn commands(text: &str, steps: &mut Vec<Step>) {
    for line in text.lines() {
        let command = line
            .strip_prefix("# ")
            .map(|line| (true, line))
            .or(line.strip_prefix("$ ").map(|line| (false, line)));
        match (command, steps.last_mut()) {
            (None, Some(Step::Command { shows, .. })) => {
                writeln!(shows, "{line}").expect("it is a string");
            }
            (Some((of_root, line)), _) => steps.push(Step::Command {
                of_root,
                line: line.to_owned(),
                shows: String::new(),
            }),
            (None, _) => panic!("{line:?} is shown by no command"),
        }
    }
}

/// Returns true if `text` is as `shown`, in which [`ANYTHING`] stands for any text.
fn fits(shown: &str, text: &str) -> bool {
    let parts = shown.trim_end().split(ANYTHING);
    let parts: Vec<&str> = parts.map(|part| part.trim_matches('\n')).collect();
    let text = text.trim_end();
    let [first, middle @ .., last] = parts.as_slice() else {
        return parts == [text];
    };
    let Some(mut rest) = text.strip_prefix(first) else {
        return false;
    };
    for part in middle {
        let Some(at) = rest.find(part) else {
            return false;
        };
        rest = &rest[at + part.len()..];
    }
    rest.ends_with(last)
}

#[test]
fn a_text_fits_what_is_shown_of_it() {
    assert!(fits("one\n", "one\n"));
    assert!(!fits("one\n", "one\ntwo\n"));
    assert!(fits("one\n…\n", "one\ntwo\n"));
    assert!(fits("…\ntwo\n", "one\ntwo\n"));
    assert!(!fits("…\none\n", "one\ntwo\n"));
    assert!(fits("s \"…\"\n", "s \"running\"\n"));
    assert!(fits("…3/3…\n", "shop 3/3 ready\nand more\n"));
    assert!(!fits("…3/3…\n", "shop 2/3 ready\n"));
}

#[test]
fn the_life_of_an_installation_is_as_the_readme_tells_it() {
    machine::test(async |machine| {
        machine.run("useradd --create-home ada");
        // Commands in the README do not answer the questions of apt.
        machine.write(
            "/etc/apt/apt.conf.d/yes",
            "APT::Get::Assume-Yes \"true\";\n",
        );
        for version in ["1.0", "1.1"] {
            let folder = tempfile::tempdir().unwrap();
            let file = folder.path().join("shop");
            smoothserve_kit::install(&example("shop"), &file, &Build::good(version)).unwrap();
            machine.install(&file, &format!("/srv/shop-{version}"));
        }
        package::bring_package(machine);
        let newer = package::newer(machine, 1, "true");
        let [first, second] = packages();
        machine.run(&format!(
            "cd /srv && mv {} {first} && mv {newer} {second}",
            package::HERE
        ));
        for step in steps() {
            match step {
                Step::File { path, text } => machine.write(&path, &text),
                Step::Command {
                    of_root,
                    line,
                    shows,
                } => {
                    println!("{line}");
                    let quoted = line.replace('\'', "'\\''");
                    let said = machine.run(&match of_root {
                        true => format!("cd /srv && {line}"),
                        false => format!("su - ada -c '{quoted}'"),
                    });
                    assert!(shows.is_empty() || fits(&shows, &said), "{line}: {said}");
                }
            }
        }
        let left = machine.run("systemctl list-units --all --plain --no-legend 'smoothserve*'");
        assert_eq!(left, "");
    });
}
