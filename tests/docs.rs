//! The pages for people: their lines are short, the paths, anchors, tests and versions that they
//! name exist, and the forms for issues have the parts that GitHub requires.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use clap::Parser;
use smoothserve::config::{GLOBAL_KEYS, SERVICE_KEYS};
use smoothserve::ctl::Smoothctl;

/// The most columns that a line of prose may have.
const COLUMNS: usize = 100;

/// Folders at the root of the project whose paths the pages name. `services/` and `examples/` are
/// not among them, because the pages name the folders of an installation by these words.
const FOLDERS: [&str; 12] = [
    ".ci", ".config", ".github", "benches", "debian", "docs", "fuzz", "manual", "scripts", "src",
    "systemd", "tests",
];

/// Folders that contain no page of the project.
const NOT_OURS: [&str; 3] = [".git", "corpus", "target"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Collects the files below a folder whose names have this extension.
fn files(folder: &Path, extension: &str, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy();
        if path.is_dir() && !NOT_OURS.contains(&&*name) {
            files(&path, extension, found);
        } else if path.extension().is_some_and(|found| found == extension) {
            found.push(path);
        }
    }
}

/// Returns every Markdown page of the project.
fn pages() -> Vec<PathBuf> {
    let mut pages = Vec::new();
    files(root(), "md", &mut pages);
    pages.sort();
    assert!(pages.len() > 10, "{pages:?}");
    pages
}

/// Returns the numbered lines of a page that are prose: no table, code, or address.
fn prose(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut is_code = false;
    (1..).zip(text.lines()).filter(move |(_, line)| {
        let is_fence = line.trim_start().starts_with("```");
        is_code ^= is_fence;
        let is_table = line.starts_with('|');
        !is_fence && !is_code && !is_table && !line.starts_with("    ") && !line.contains("://")
    })
}

#[test]
fn prose_keeps_to_100_columns() {
    let mut wide = Vec::new();
    for page in pages() {
        let text = read(&page);
        let lines = prose(&text).filter(|(_, line)| line.chars().count() > COLUMNS);
        wide.extend(lines.map(|(number, _)| format!("{}:{number}", page.display())));
    }
    assert!(
        wide.is_empty(),
        "lines of prose wider than {COLUMNS} columns:\n{}",
        wide.join("\n")
    );
}

/// Returns the paths from the root of the project that a text names. A pattern stands for the
/// folder before its first star.
fn named_paths(text: &str) -> Vec<&str> {
    let is_part = |c: char| c.is_ascii_alphanumeric() || "._-*/".contains(c);
    let words = text.split(|c: char| !is_part(c));
    words
        .filter_map(|word| {
            let word = word.trim_end_matches(['.', '-']);
            let (folder, _) = word.split_once('/')?;
            FOLDERS.contains(&folder).then_some(word)
        })
        .map(|word| {
            let before_star = word.split('*').next().unwrap();
            match before_star.len() < word.len() {
                true => before_star.rsplit_once('/').unwrap().0,
                false => word,
            }
        })
        .collect()
}

#[test]
fn a_path_is_recognized_in_prose_code_and_patterns() {
    let text = "See `src/ipc.rs`, docs/*.md, (tests/kit/src/load.rs). Not /usr/src/x or a/src/b.";
    assert_eq!(
        named_paths(text),
        ["src/ipc.rs", "docs", "tests/kit/src/load.rs"]
    );
}

#[test]
fn every_path_that_a_page_names_exists() {
    let mut missing = Vec::new();
    // This page has the versions of programs, some of which look like paths.
    let is_generated = |page: &PathBuf| page.ends_with("benches/RESULTS.md");
    for page in pages().into_iter().filter(|page| !is_generated(page)) {
        let text = read(&page);
        for path in named_paths(&text) {
            if !root().join(path).exists() {
                missing.push(format!("{} names {path}", page.display()));
            }
        }
    }
    assert!(
        missing.is_empty(),
        "paths that do not exist:\n{}",
        missing.join("\n")
    );
}

/// Returns the targets of the links in a page.
fn links(text: &str) -> impl Iterator<Item = &str> {
    let after = text.split("](").skip(1);
    after.filter_map(|rest| rest.split_once(')').map(|(target, _)| target))
}

/// Returns the anchors that GitHub makes of the headings of a page.
fn anchors(text: &str) -> BTreeSet<String> {
    let headings = text.lines().filter(|line| line.starts_with('#'));
    headings
        .map(|line| {
            let title = line.trim_start_matches('#').trim().to_lowercase();
            let kept = title
                .chars()
                .filter(|c| c.is_alphanumeric() || " -_".contains(*c));
            kept.map(|c| if c == ' ' { '-' } else { c }).collect()
        })
        .collect()
}

#[test]
fn every_link_leads_to_a_file_and_a_heading() {
    let mut broken = Vec::new();
    let mut count = 0;
    for page in pages() {
        let text = read(&page);
        for link in links(&text).filter(|link| !link.contains("://")) {
            count += 1;
            let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target = match file {
                "" => page.clone(),
                file => page.parent().unwrap().join(file),
            };
            let leads = match anchor {
                "" => target.exists(),
                anchor => target.is_file() && anchors(&read(&target)).contains(anchor),
            };
            if !leads {
                broken.push(format!("{} links to {link}", page.display()));
            }
        }
    }
    assert!(count > 10, "links are found: {count}");
    assert!(broken.is_empty(), "broken links:\n{}", broken.join("\n"));
}

/// Returns the code spans of a page, without its blocks of code.
fn code_spans(text: &str) -> Vec<String> {
    let lines: Vec<&str> = prose(text).map(|(_, line)| line).collect();
    let text = lines.join(" ");
    let spans = text.split('`').skip(1).step_by(2);
    spans.map(str::to_owned).collect()
}

#[test]
fn every_test_that_the_guide_names_exists() {
    let mut sources = Vec::new();
    for folder in ["src", "tests"] {
        files(&root().join(folder), "rs", &mut sources);
    }
    let code: String = sources.iter().map(|path| read(path)).collect();
    let guide = read(&root().join("CONTRIBUTING.md"));
    // The name of a test is a sentence; other names have fewer words.
    let is_test = |span: &String| {
        span.matches('_').count() >= 3
            && span
                .chars()
                .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
    };
    let tests: Vec<String> = code_spans(&guide).into_iter().filter(is_test).collect();
    assert!(tests.len() >= 5, "tests are found: {tests:?}");
    for test in tests {
        assert!(
            code.contains(&format!("fn {test}(")),
            "there is no test {test}"
        );
    }
}

#[test]
fn keys_and_commands_for_people_who_come_from_other_programs_exist() {
    let readme = read(&root().join("README.md"));
    let mut count = 0;
    for title in ["Coming from nginx", "Coming from PM2"] {
        let (_, section) = readme.split_once(&format!("\n## {title}\n")).unwrap();
        let section = section.split("\n## ").next().unwrap();
        for row in section.lines().filter(|line| line.starts_with("| ")) {
            let (_, here) = row.trim_end_matches(" |").rsplit_once(" | ").unwrap();
            for span in here.split('`').skip(1).step_by(2) {
                let key = span.split(':').next().unwrap();
                let is_known = match span.split(' ').next().unwrap() {
                    "smoothctl" => Smoothctl::try_parse_from(span.split(' ')).is_ok(),
                    "systemctl" | "PORT" => true,
                    _ => GLOBAL_KEYS.contains(&key) || SERVICE_KEYS.contains(&key),
                };
                assert!(is_known, "{title}: there is no `{span}`");
                count += 1;
            }
        }
    }
    assert!(count > 30, "{count}");
}

#[test]
fn the_version_is_the_same_everywhere() {
    let version = env!("CARGO_PKG_VERSION");
    for package in ["benches", "manual", "tests/kit"] {
        let manifest = read(&root().join(package).join("Cargo.toml"));
        assert!(
            manifest.contains(&format!("\nversion = \"{version}\"\n")),
            "{package}/Cargo.toml is not of version {version}"
        );
    }
    let changelog = read(&root().join("debian/changelog"));
    assert!(
        changelog.starts_with(&format!("smoothserve ({version}) ")),
        "debian/changelog does not begin with version {version}"
    );
    let readme = read(&root().join("README.md"));
    assert!(
        readme.contains(&format!("# apt install ./smoothserve_{version}_amd64.deb")),
        "README.md does not install version {version}"
    );
}

#[test]
fn every_issue_form_has_the_parts_that_github_requires() {
    let folder = root().join(".github/ISSUE_TEMPLATE");
    let mut forms = Vec::new();
    files(&folder, "yml", &mut forms);
    assert!(forms.len() > 1, "{forms:?}");
    for path in forms {
        let form: serde_yaml::Value = serde_yaml::from_str(&read(&path)).unwrap();
        if path.ends_with("config.yml") {
            assert!(form["blank_issues_enabled"].is_bool());
            continue;
        }
        for key in ["name", "description"] {
            assert!(form[key].is_string(), "{} has no {key}", path.display());
        }
        let body = form["body"].as_sequence().expect("a form has a body");
        let mut ids = BTreeSet::new();
        for element in body {
            let kind = element["type"].as_str().expect("an element has a type");
            let attributes = &element["attributes"];
            if kind == "markdown" {
                assert!(attributes["value"].is_string(), "{element:?}");
                continue;
            }
            assert!(["input", "textarea", "dropdown"].contains(&kind), "{kind}");
            assert!(attributes["label"].is_string(), "{element:?}");
            let id = element["id"].as_str().expect("an element has an id");
            assert!(ids.insert(id.to_owned()), "{id} is there twice");
        }
        assert!(!ids.is_empty(), "{} asks nothing", path.display());
    }
}
